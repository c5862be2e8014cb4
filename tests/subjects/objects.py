"""Holds one kernel object of the kind named and says whether it works.

Arguments: the port, the kind. GET answers "works" or what is wrong.
"""
import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import time

from serve import serve

libc = ctypes.CDLL(None, use_errno=True)


def state(pid):
    """The letter of a process's state, and its parent."""
    with open(f"/proc/{pid}/stat") as text:
        letter, parent = text.read().rsplit(") ")[1].split()[:2]
    return letter, int(parent)


def status(pid, name):
    """What /proc/PID/status says under this name."""
    with open(f"/proc/{pid}/status") as text:
        return next(line.split()[1:] for line in text if line.startswith(name + ":"))


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

    def works():
        got = other.recv(100)
        one.send(got)
        return got == b"under way"

    return works


def inotify():
    """It watches a directory from the beginning on, which tells of every file that is made there."""
    os.makedirs("/dev/shm/watched", exist_ok=True)
    fd = libc.inotify_init()
    watch = libc.inotify_add_watch(fd, b"/dev/shm/watched", 0x100)

    def works():
        open("/dev/shm/watched/made", "w").close()
        os.unlink("/dev/shm/watched/made")
        ready, _, _ = select.select([fd], [], [], 1)
        told = os.read(fd, 4096) if ready else bytes(16)
        return struct.unpack_from("iI", told) == (watch, 0x100) and told[16:].rstrip(b"\0") == b"made"

    return works


def pidfd():
    """One of the process itself, and one of a child."""
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    held = [(pid, os.pidfd_open(pid)) for pid in (os.getpid(), child)]

    def works():
        for pid, fd in held:
            signal.pidfd_send_signal(fd, 0)
            with open(f"/proc/self/fdinfo/{fd}") as told:
                if f"Pid:\t{pid}\n" not in told.read():
                    return False
        return True

    return works


def shm():
    fd = os.open("/dev/shm/subject", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    os.ftruncate(fd, mmap.PAGESIZE)
    shared = mmap.mmap(fd, mmap.PAGESIZE)
    shared[:4] = b"kept"
    os.unlink("/dev/shm/subject")

    def works():
        os.pwrite(fd, b"both", 8)
        return shared[:4] == b"kept" and shared[8:12] == b"both"

    return works


def named():
    """A file in /dev/shm that nobody has open, one in /tmp, a link and a pipe beside it."""
    with open("/dev/shm/named", "w") as out:
        out.write("kept")
    os.makedirs("/tmp/deep/er", exist_ok=True)
    with open("/tmp/deep/er/file", "w") as out:
        out.write("kept")
    os.symlink("file", "/tmp/deep/er/link")
    os.mkfifo("/tmp/deep/pipe", 0o640)

    def works():
        with open("/dev/shm/named") as one, open("/tmp/deep/er/link") as other:
            return one.read() + other.read() == "keptkept" and stat.S_ISFIFO(os.stat("/tmp/deep/pipe").st_mode)

    return works


def unix():
    """Listening by a name, a client of its own connected, bytes on the way."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("/dev/shm/socket")
    listener.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("/dev/shm/socket")
    server, _ = listener.accept()
    client.send(b"under way")

    def works():
        got = server.recv(100)
        client.send(got)
        late = socket.socket(socket.AF_UNIX)
        late.connect(listener.getsockname())
        listener.accept()
        return got == b"under way"

    return works


def datagram():
    """A bound UDP socket."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 0))

    def works():
        bound.sendto(b"x", bound.getsockname())
        bound.settimeout(1)
        return bound.recv(10) == b"x"

    return works


def shared():
    """Anonymous memory shared with a child."""
    memory = mmap.mmap(-1, mmap.PAGESIZE)
    asks, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        while os.read(asks[0], 1):
            memory[0] += 1
            os.write(answers[1], b"x")
        os._exit(0)

    def works():
        before = memory[0]
        os.write(asks[1], b"x")
        os.read(answers[0], 1)
        return memory[0] == before + 1

    return works


def zombie():
    """A child that has ended and was not waited for, and one in a session of its own."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    apart = os.fork()
    if apart == 0:
        os.setsid()
        while True:
            signal.pause()

    def works():
        # It is looked at and stays: the next copy has to have it as well.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        how = ended and (ended.si_pid, ended.si_code, ended.si_status)
        return how == (pid, os.CLD_EXITED, 7) and os.getsid(apart) == apart

    return works


def stopped():
    """A child that was stopped before, stays so, and goes on when it is told."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)

    def works():
        if state(pid)[0] != "T":
            return False
        os.kill(pid, signal.SIGCONT)
        _, continued = os.waitpid(pid, os.WCONTINUED)
        os.kill(pid, signal.SIGSTOP)
        _, halted = os.waitpid(pid, os.WUNTRACED)
        return os.WIFCONTINUED(continued) and os.WIFSTOPPED(halted)

    return works


def itimer():
    """An interval timer with its handler."""
    ticks = []
    signal.signal(signal.SIGALRM, lambda *_: ticks.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)

    def works():
        del ticks[:]
        end = time.monotonic() + 2
        while not ticks and time.monotonic() < end:
            time.sleep(0.005)
        return bool(ticks) and signal.getitimer(signal.ITIMER_REAL)[1] == 0.01

    return works


def signalfd():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    mask = struct.pack("Q", 1 << (signal.SIGUSR2 - 1))
    fd = libc.signalfd(-1, mask, 0x800)

    def works():
        os.kill(os.getpid(), signal.SIGUSR2)
        return struct.unpack_from("I", os.read(fd, 128)) == (signal.SIGUSR2,)

    return works


def ticking():
    """A timerfd that was set before and goes on."""
    fd = libc.timerfd_create(1, 0)
    libc.timerfd_settime(fd, 0, struct.pack("qqqq", 0, 10_000_000, 0, 10_000_000), None)

    def works():
        ready, _, _ = select.select([fd], [], [], 1)
        return bool(ready) and len(os.read(fd, 8)) == 8

    return works


def lock():
    """A lock on a file, against everybody else."""
    held = open("/dev/shm/lock", "w")
    fcntl.flock(held, fcntl.LOCK_EX)

    def works():
        with open(held.name) as other:
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    return works


def peer():
    """A connection to a server outside the container, whose port is the third argument."""
    connected = socket.create_connection(("127.0.0.1", int(sys.argv[3])))

    def works():
        return connected.send(b"x") == 1 and connected.getpeername()[1] == int(sys.argv[3])

    return works


def local():
    """A connection inside the container, with bytes on the way."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    server, _ = listener.accept()
    client.send(b"under way")

    def works():
        got = server.recv(100)
        server.send(b"back")
        answer = client.recv(100)
        client.send(b"under way")
        return (got, answer) == (b"under way", b"back")

    return works


def io_uring():
    fd = libc.syscall(425, 4, ctypes.create_string_buffer(120))
    if fd < 0:
        raise OSError(ctypes.get_errno(), "io_uring_setup")
    # Nothing is submitted and nothing waited for, which only a ring takes.
    return lambda: libc.syscall(426, fd, 0, 0, 0, None, 0) == 0


def sysv():
    """System V shared memory."""
    libc.shmat.restype = ctypes.c_void_p
    memory = libc.shmat(libc.shmget(0, 4096, 0o1600), None, 0)
    ctypes.memset(memory, 7, 1)
    return lambda: ctypes.string_at(memory, 1) == bytes([7])


def mqueue():
    """A POSIX message queue."""
    fd = libc.mq_open(b"/subject", os.O_CREAT | os.O_RDWR, 0o600, None)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "mq_open")
    got = ctypes.create_string_buffer(1 << 16)

    def works():
        libc.mq_send(fd, b"message", 7, 0)
        return libc.mq_receive(fd, got, len(got), None) == 7 and got.value == b"message"

    return works


def userns():
    """A child in a user namespace of its own."""
    ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.unshare(0x10000000)
        os.write(ready[1], b"x")
        while True:
            signal.pause()
    os.read(ready[0], 1)
    return lambda: os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")


def filtered():
    """A seccomp filter that allows everything."""
    allow = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
    held = ctypes.create_string_buffer(allow)
    program = struct.pack("HxxxxxxP", 1, ctypes.addressof(held))
    libc.prctl(38, 1, 0, 0, 0)
    if libc.prctl(22, 2, program, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return lambda: held is not None and status("self", "Seccomp") == ["2"]


def traced():
    """A child that another process of the application traces."""
    ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        libc.ptrace(0, 0, 0, 0)
        os.write(ready[1], b"x")
        while True:
            signal.pause()
    os.read(ready[0], 1)
    return lambda: status(pid, "TracerPid") == [str(os.getpid())]


def ghost():
    """A deleted file of three megabytes that is still open."""
    held = open("/tmp/ghost", "w+b")
    os.unlink("/tmp/ghost")
    content = b"ghostly\n" * (3 << 17)
    held.write(content)
    held.flush()

    def works():
        return os.pread(held.fileno(), 4 << 20, 0) == content

    return works


def daemon():
    """A daemon that left by forking twice, in a session whose leader has ended, with a child of its own."""
    ready = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.setsid()
        if os.fork() == 0:
            child = os.fork()
            if child:
                os.write(ready[1], f"{os.getpid()} {child}".encode())
            while True:
                signal.pause()
        os._exit(0)
    os.waitpid(middle, 0)
    apart, below = map(int, os.read(ready[0], 40).split())
    parent = state(apart)[1]

    def works():
        here = os.getsid(apart) == os.getsid(below) == os.getpgid(apart) == middle
        return here and state(apart) == ("S", parent) and state(below) == ("S", apart)

    return works


def elsewhere():
    """A child of another user, which others of that user may look into."""
    ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresuid(5833, 5833, 5833)
        libc.prctl(4, 1, 0, 0, 0)
        os.write(ready[1], b"x")
        while True:
            signal.pause()
    os.read(ready[0], 1)
    # What is not to be looked into belongs to root in /proc.
    return lambda: status(pid, "Uid") == ["5833"] * 4 and os.stat(f"/proc/{pid}/environ").st_uid == 5833


def orphan():
    """A process whose parent has ended: the application has adopted it, or init."""
    ready = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.write(ready[1], str(os.getpid()).encode())
            while True:
                signal.pause()
        os._exit(0)
    os.waitpid(middle, 0)
    pid = int(os.read(ready[0], 20))
    parent = state(pid)[1]

    def works():
        letter, now = state(pid)
        return letter in "SR" and now == parent

    return works


def leaderless():
    """Two processes in a group whose leader has ended, as a shell leaves them when the first of a pipeline is done."""
    rang = os.pipe()
    signal.signal(signal.SIGUSR1, lambda *_: os.write(rang[1], b"."))
    leader = os.fork()
    if leader == 0:
        signal.pause()
        os._exit(0)
    os.setpgid(leader, leader)
    members = []
    for _ in range(2):
        members.append(os.fork())
        if members[-1] == 0:
            while True:
                signal.pause()
        os.setpgid(members[-1], leader)
    os.kill(leader, signal.SIGKILL)
    os.waitpid(leader, 0)

    def works():
        os.killpg(leader, signal.SIGUSR1)
        return all(os.getpgid(pid) == leader for pid in members) and os.read(rang[0], 1) + os.read(rang[0], 1) == b".."

    return works


check = globals()[sys.argv[2]]()


def get(path):
    # The object is there, and is not touched by this question.
    if path == "/up":
        return "up"
    try:
        return "works" if check() else "dead"
    except Exception as error:
        return f"dead: {error}"


serve(sys.argv[1], get)
