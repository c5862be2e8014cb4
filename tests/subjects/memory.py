"""Holds memory that checks itself, and ticks once a millisecond.

Arguments: the port, and how many MiB: N, or KxN for K processes of N each; with an h behind it in huge pages. GET /check
answers "good" while the memory of all is what it was; GET /gap answers the longest time between two ticks since the
last question, in microseconds; any other GET answers the character, POST sets it.
"""
import mmap
import os
import sys
import threading
import time
import zlib

from serve import serve

PAGE, BLOCK = 4096, 4 << 20

words = sys.argv[2].rstrip("h").split("x")
size = int(words[-1]) << 20
block = os.urandom(BLOCK // 2) + bytes(BLOCK // 2)
children = []


def holder(questions, answers):
    """A process that holds as much and answers each byte with one."""
    good = hold()
    while os.read(questions, 1):
        os.write(answers, b"y" if good() else b"n")
    os._exit(0)


def hold():
    """Memory; the answer tells whether it is what it was."""
    memory = mmap.mmap(-1, max(size, PAGE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE if sys.argv[2].endswith("h") else mmap.MADV_NOHUGEPAGE)
    for start in range(0, size, BLOCK):
        memory[start : start + BLOCK] = block[: min(BLOCK, size - start)]
    for page in range(0, size, PAGE):
        memory[page : page + 8] = page.to_bytes(8, "little")
    digest = zlib.crc32(memory)
    return lambda: zlib.crc32(memory) == digest


for _ in range(int(words[0]) - 1 if len(words) == 2 else 0):
    questions, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(questions[1])
        holder(questions[0], answers[1])
    os.close(questions[0])
    children.append((questions[1], answers[0]))
good = hold()


def check():
    for question, _ in children:
        os.write(question, b"?")
    return all([good()] + [os.read(answer, 1) == b"y" for _, answer in children])


state = "0"
longest = 0.0


def tick():
    global longest
    last = time.monotonic()
    while True:
        time.sleep(0.001)
        now = time.monotonic()
        longest = max(longest, now - last)
        last = now


def get(path):
    global longest
    if path == "/check":
        return "good" if check() else "damaged"
    if path == "/gap":
        gap, longest = longest, 0.0
        return str(int(gap * 1e6))
    return state


def post(text):
    global state
    state = text[:1]
    return state


threading.Thread(target=tick, daemon=True).start()
serve(sys.argv[1], get, post)
