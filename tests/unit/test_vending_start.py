"""Goal: what a start reads does not grow with the book.

Method: the service's own start on a book of few accounts and on one of twenty times as many, up to
the first sale and its publication. SQLite counts the steps of its virtual machine: of every
statement, on every connection. (On PostgreSQL: tests/integration/test_start_postgres.py.)
"""

import asyncio
import sqlite3
from pathlib import Path

import pytest

from services.common.kernel.values import value_class
from services.vending.adapters import sqlite_file
from services.vending.application import statements
from services.vending.config import VendingSettings
from services.vending.domain.tables import Checkpoint
from tests.unit.vending_start import WITHIN_S, start_and_sell
from tests.unit.vending_world import T0_MS
from tools.bench import big_book

FEW, MANY = 150, 3_000
DEEPER = 1.1
"""Trees of more rows are a level deeper: a step or two more in each search."""


@value_class
class Steps:
    """What was counted: until the start was over, and until the first sale was published."""

    to_start: int
    to_first_sale: int


async def steps_of(path: Path, told: Checkpoint, patched: pytest.MonkeyPatch) -> Steps:
    """Start on a book and sell; return what SQLite counted."""
    counted = to_start = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def started() -> None:
        nonlocal to_start
        to_start = counted

    def connected(at: Path) -> sqlite3.Connection:
        connection = connect(at)
        connection.set_progress_handler(count, 1)
        return connection

    connect = sqlite_file._connect
    patched.setattr(sqlite_file, "_connect", connected)
    await start_and_sell(VendingSettings(store_path=path), told, patched, started)
    return Steps(to_start, counted)


async def test_a_start_reads_as_much_of_a_large_book_as_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daily round about usage goes on where it was: so many accounts a second, never all.
    monkeypatch.setattr(statements, "PAGE_ACCOUNTS", 10)
    monkeypatch.setattr(statements, "PAGES_PER_STEP_MAX", 1)
    found = {}
    for accounts in (FEW, MANY):
        path = tmp_path / f"{accounts}.sqlite"
        written, told = await asyncio.to_thread(
            big_book.write, path, accounts, WITHIN_S, lambda _: None, T0_MS
        )
        assert written == accounts
        with monkeypatch.context() as patched:
            found[accounts] = await steps_of(path, told, patched)
    few, many = found[FEW], found[MANY]
    assert many.to_start <= few.to_start * DEEPER, found
    assert many.to_first_sale <= few.to_first_sale * DEEPER, found
    assert few.to_first_sale < FEW * 100, "and it is no scan that is quick"
