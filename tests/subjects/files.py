"""Open files: one read half way, a log that is appended to, one that was deleted while open.

Arguments: the port, a directory to work in. POST appends its text to the log; GET answers what all of them hold.
"""
import os
import sys

from serve import serve

where = sys.argv[2]
os.makedirs(where, exist_ok=True)
with open(f"{where}/input", "w") as out:
    out.write("".join(f"line {number}\n" for number in range(1000)))
lines = open(f"{where}/input", buffering=1)
log = open(f"{where}/log", "a", buffering=1)
gone = open(f"{where}/gone", "w+")
os.unlink(f"{where}/gone")
gone.write("deleted but held")
gone.flush()
os.chdir(where)


def post(text):
    print(text, lines.readline().strip(), file=log)
    return get(None)


def get(_):
    gone.seek(0)
    with open("log") as written:
        count = len(written.readlines())
    return f"next {lines.readline().strip()}; log {count}; {gone.read()}; in {os.getcwd() == os.path.realpath(where)}"


serve(sys.argv[1], get, post)
