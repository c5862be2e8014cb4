"""Runs a command as an ordinary user where no further namespace of a kind may be made.

usage: limit.py KIND UID COMMAND...   (as root)

A user namespace of our own has a limit of its own: set to 0 there, it closes namespaces for the command and
for nobody else on the machine.
"""
import ctypes
import os
import sys

CLONE_NEWUSER = 0x10000000
kind, uid = sys.argv[1], int(sys.argv[2])
made, mapped = os.pipe(), os.pipe()
pid = os.fork()
if pid == 0:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER) != 0:
        sys.exit("no user namespace for the test itself")
    os.write(made[1], b"x")
    os.read(mapped[0], 1)
    with open(f"/proc/sys/user/max_{kind}_namespaces", "w") as limit:
        limit.write("0")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.execv(sys.argv[3], sys.argv[3:])
os.read(made[0], 1)
for map in "uid_map", "gid_map":
    with open(f"/proc/{pid}/{map}", "w") as ids:
        ids.write("0 0 65536")
os.write(mapped[1], b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
