"""Three processes besides the first, joined by pipes, each with two threads that hold a number of their own.

Argument: the port. POST n adds n to every number; GET answers all numbers and which processes hold them.
"""
import os
import queue
import sys
import threading

from serve import serve

WORKERS, THREADS = 3, 2


class Keeper(threading.Thread):
    """The number lives on the stack of the thread, nowhere else."""

    def __init__(self, first):
        super().__init__(daemon=True)
        self.asked, self.answers, self.first = queue.Queue(), queue.Queue(), first
        self.start()

    def run(self):
        number = self.first
        while True:
            number += self.asked.get()
            self.answers.put(number)


def worker(index, asked, answers):
    keepers = [Keeper(100 * index + 10 * thread) for thread in range(THREADS)]
    with os.fdopen(asked, "r") as lines, os.fdopen(answers, "w") as out:
        for line in lines:
            for keeper in keepers:
                keeper.asked.put(int(line))
            numbers = [str(keeper.answers.get()) for keeper in keepers]
            print(",".join(numbers), os.getpid(), os.getppid(), file=out, flush=True)


def start(index):
    to_child, from_child = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(to_child[1])
        os.close(from_child[0])
        worker(index, to_child[0], from_child[1])
        os._exit(0)
    os.close(to_child[0])
    os.close(from_child[1])
    return os.fdopen(to_child[1], "w"), os.fdopen(from_child[0], "r")


workers = [start(index) for index in range(WORKERS)]


def ask(number):
    answers = []
    for out, lines in workers:
        print(number, file=out, flush=True)
        numbers, pid, parent = lines.readline().split()
        kin = "child" if int(parent) == os.getpid() and int(pid) != os.getpid() else f"orphan of {parent}"
        answers.append(f"{numbers} {kin}")
    return "; ".join(answers)


serve(sys.argv[1], lambda _: ask(0), lambda text: ask(int(text)))
