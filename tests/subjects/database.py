"""Writes into a database without a pause: a transaction for each number, which has to be there once and for all.

Arguments: the port, the file, the journal mode ("delete" or "wal"). GET /check answers "good" where the database is
sound and holds exactly the numbers that were counted; GET /rounds answers how many they are; any other GET answers a
sum, POST n adds n to it.
"""
import sqlite3
import sys
import threading
import time

from serve import sum_up

path, mode = sys.argv[2], sys.argv[3]
lock = threading.Lock()
wrong = None
count = 0


def connect():
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=60)
    database.execute(f"PRAGMA journal_mode={mode}")
    return database


writer, reader = connect(), connect()
writer.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, text TEXT)")
writer.execute("CREATE TABLE counted (n INTEGER)")
writer.execute("INSERT INTO counted VALUES (0)")


def write():
    global count, wrong
    try:
        while True:
            with lock:
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("INSERT INTO numbers VALUES (?, ?)", (count + 1, "x" * (count % 97)))
                writer.execute("UPDATE counted SET n = n + 1")
                writer.execute("COMMIT")
                count += 1
            time.sleep(0.001)
    except sqlite3.Error as why:
        wrong = repr(why)


def check():
    if wrong:
        return wrong
    with lock:
        for database in (writer, reader):
            sound = database.execute("PRAGMA integrity_check").fetchall()
            found = database.execute("SELECT count(*), min(n), max(n), sum(length(text) != (n - 1) % 97) FROM numbers")
            found, counted = found.fetchone(), database.execute("SELECT n FROM counted").fetchone()
            if sound != [("ok",)] or found != (count, 1, count, 0) or counted != (count,):
                return f"counted {count}, found {found}, {counted}: {sound}"
        if writer.execute("PRAGMA journal_mode").fetchone() != (mode,):
            return "the journal mode is another one"
    return "good"


threading.Thread(target=write, daemon=True).start()
sum_up(sys.argv[1], check, lambda: count)
