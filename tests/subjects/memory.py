"""Holds N MiB that check themselves, and ticks once a millisecond.

Arguments: the port, N. GET /check answers "good" while the memory is what it was; GET /gap answers the longest
time between two ticks since the last question, in microseconds; any other GET answers the character, POST sets it.
"""
import os
import sys
import threading
import time
import zlib

from serve import serve

PAGE, BLOCK = 4096, 4 << 20

size = int(sys.argv[2]) << 20
block = os.urandom(BLOCK // 2) + bytes(BLOCK // 2)
memory = bytearray(size)
for start in range(0, size, BLOCK):
    memory[start : start + BLOCK] = block[: min(BLOCK, size - start)]
for page in range(0, size, PAGE):
    memory[page : page + 8] = page.to_bytes(8, "little")
digest = zlib.crc32(memory)
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
        return "good" if zlib.crc32(memory) == digest else "damaged"
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
