"""`python -m tools.bench.durable fsync|sqlite|postgres PLACE SECONDS`: what durable costs alone.

What vending's sales are held against beside the empty call: how often the disk says that bytes are
safe, and a plain loop that inserts a row of an event's size and waits for its commit, as whoever
has no group commit would. PLACE is a file, or the variable of the environment that holds an
address. Prints how often a second.
"""

import asyncio
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import asyncpg

ROW = os.urandom(400)
"""As many bytes as a sale's data and metadata."""
PAGE = os.urandom(4096)


def fsyncs_per_second(path: Path, seconds: float) -> float:
    """Write a page behind the last one and wait for the disk, again and again."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)

    def once() -> None:
        os.write(descriptor, PAGE)
        os.fdatasync(descriptor)

    try:
        return _rate(once, seconds)
    finally:
        os.close(descriptor)


def sqlite_inserts_per_second(path: Path, seconds: float) -> float:
    """Insert a row a transaction, as durable as vending's file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL").fetchall()
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE row(id INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        insert = "INSERT INTO row(data) VALUES(?)"
        return _rate(lambda: connection.execute(insert, (ROW,)), seconds)


async def postgres_inserts_per_second(dsn: str, seconds: float) -> float:
    """Insert a row a transaction."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(
            "CREATE TABLE plain_row(id bigserial PRIMARY KEY, data bytea NOT NULL)"
        )
        insert = await connection.prepare("INSERT INTO plain_row(data) VALUES($1)")
        count, begin_s = 0, time.perf_counter()
        while (now_s := time.perf_counter()) < begin_s + seconds:
            await insert.fetch(ROW)
            count += 1
        await connection.execute("DROP TABLE plain_row")
        return count / (now_s - begin_s)
    finally:
        await connection.close()


def _rate(work: Callable[[], object], seconds: float) -> float:
    count, begin_s = 0, time.perf_counter()
    while (now_s := time.perf_counter()) < begin_s + seconds:
        work()
        count += 1
    return count / (now_s - begin_s)


def main() -> None:
    """Measure, and print what came of it."""
    what, place, seconds = sys.argv[1:]
    if what == "fsync":
        print(fsyncs_per_second(Path(place), float(seconds)))
    elif what == "sqlite":
        print(sqlite_inserts_per_second(Path(place), float(seconds)))
    else:
        print(asyncio.run(postgres_inserts_per_second(os.environ[place], float(seconds))))


if __name__ == "__main__":
    main()
