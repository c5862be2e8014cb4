"""Holds one kernel object of the kind named and says whether it works.

Arguments: the port, the kind. GET answers "works" or what is wrong.
"""
import ctypes
import mmap
import os
import select
import socket
import struct
import sys

from serve import serve

libc = ctypes.CDLL(None, use_errno=True)


def timerfd():
    fd = libc.timerfd_create(1, 0)

    def works():
        libc.timerfd_settime(fd, 0, struct.pack("qqqq", 0, 0, 0, 1_000_000), None)
        ready, _, _ = select.select([fd], [], [], 1)
        return bool(ready) and len(os.read(fd, 8)) == 8

    return works


def memfd():
    fd = os.memfd_create("subject")
    os.ftruncate(fd, mmap.PAGESIZE)
    shared = mmap.mmap(fd, mmap.PAGESIZE)
    shared[:4] = b"kept"

    def works():
        os.pwrite(fd, b"both", 8)
        return shared[:4] == b"kept" and shared[8:12] == b"both"

    return works


def pty():
    leader, follower = os.openpty()

    def works():
        os.write(follower, b"there\n")
        return b"there" in os.read(leader, 100)

    return works


def eventfd():
    fd = os.eventfd(3)

    def works():
        held = os.eventfd_read(fd)
        os.eventfd_write(fd, held)
        return held == 3

    return works


def epoll():
    reader, writer = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN)

    def works():
        os.write(writer, b"x")
        ready = poll.poll(1)
        os.read(reader, 1)
        return ready == [(reader, select.EPOLLIN)]

    return works


def socketpair():
    one, other = socket.socketpair()
    one.send(b"under way")
    first = []

    def works():
        got = other.recv(100)
        one.send(got)
        first.append(got)
        return got == b"under way"

    return works


def inotify():
    fd = libc.inotify_init()
    return lambda: libc.inotify_add_watch(fd, b"/tmp", 0x100) > 0


def pidfd():
    fd = os.pidfd_open(os.getpid())
    return lambda: os.path.exists(f"/proc/self/fdinfo/{fd}")


def fanotify():
    fd = libc.fanotify_init(0x200, 0)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "fanotify_init")
    return lambda: os.path.exists(f"/proc/self/fdinfo/{fd}")


def shm():
    fd = os.open("/dev/shm/subject", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.ftruncate(fd, mmap.PAGESIZE)
    shared = mmap.mmap(fd, mmap.PAGESIZE)
    shared[:4] = b"kept"
    os.unlink("/dev/shm/subject")
    return lambda: shared[:4] == b"kept"


def peer():
    """A connection to a server outside the container, whose port is the third argument."""
    connected = socket.create_connection(("127.0.0.1", int(sys.argv[3])))

    def works():
        connected.send(b"x")
        return True

    return works


check = globals()[sys.argv[2]]()


def get(_):
    try:
        return "works" if check() else "dead"
    except Exception as error:
        return f"dead: {error}"


serve(sys.argv[1], get)
