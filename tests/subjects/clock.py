"""A thread that waits for moments of the clock that counts from the machine's start, as asyncio and timers do.

Argument: the port. GET tells whether the clock has ever gone back, POST waits until the thread has waited three times
more and answers "on time".
"""
import sys
import threading
import time

from serve import serve

waited = threading.Semaphore(0)
latest, back = [time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)], []


def wait():
    condition = threading.Condition()
    while True:
        # A deadline of CLOCK_MONOTONIC for the kernel, whichever second it was given in.
        with condition:
            condition.wait(0.5)
        now = [time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)]
        if any(new < old for new, old in zip(now, latest)):
            back.append(now)
        latest[:] = now
        waited.release()


def three_more(_):
    for _ in range(3):
        waited.acquire()
    return "on time"


threading.Thread(target=wait, daemon=True).start()
serve(sys.argv[1], lambda _: "went back" if back else "never back", three_more)
