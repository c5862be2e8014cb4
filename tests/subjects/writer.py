"""Holds N MiB and writes to every page of them, again and again.

Arguments: the port, N. GET /check answers "good" while all pages hold what was written last and what was there from the
beginning; GET /rounds answers how often they were written to; any other GET answers a sum, POST n adds n to it.
"""
import os
import sys
import threading
import time

from serve import sum_up

PAGE = 4096

pages = (int(sys.argv[2]) << 20) // PAGE
block = os.urandom(PAGE)
memory = bytearray(PAGE * pages)
for start in range(0, len(memory), PAGE):
    memory[start : start + PAGE] = bytes(1) + block[1:]
lock = threading.Lock()
rounds = 0


def write():
    global rounds
    while True:
        with lock:
            rounds += 1
            memory[::PAGE] = bytes([rounds % 256]) * pages
        time.sleep(0.001)


def check():
    with lock:
        expected = bytes([rounds % 256]) + block[1:]
        for start in range(0, len(memory), PAGE):
            if memory[start : start + PAGE] != expected:
                return f"page {start // PAGE} is damaged in round {rounds}"
    return "good"


threading.Thread(target=write, daemon=True).start()
sum_up(sys.argv[1], check, lambda: rounds)
