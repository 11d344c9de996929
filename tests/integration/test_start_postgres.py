"""Goal: what a start reads of a book on PostgreSQL does not grow with the book.

Method: as of a file (tests/unit/test_vending_start.py); what is counted is pages, of all tables and
indexes, by PostgreSQL itself, when the sessions of the start and of the first sale are over.
"""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from services.vending.adapters.postgres_database import SCHEMA
from services.vending.application import statements
from services.vending.config import VendingSettings
from tests.contract.databases import execute, fresh_database
from tests.unit.vending_start import WITHIN_S, start_and_sell
from tests.unit.vending_world import T0_MS
from tools.bench import big_book, copied_book
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

FEW, MANY = 300, 6_000
DEEPER = 1.4
"""Trees of more rows are a level deeper: a page more in each search."""
PAGES = (
    "SELECT relname, "
    "heap_blks_read + heap_blks_hit + coalesce(idx_blks_read + idx_blks_hit, 0) AS pages "
    "FROM pg_statio_user_tables WHERE schemaname = $1"
)


async def pages_of(dsn: str) -> dict[str, int]:
    """Return table → pages read of it and its indexes."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(PAGES, SCHEMA)
        return {row["relname"]: row["pages"] for row in rows}
    finally:
        await connection.close()


async def test_a_start_reads_as_much_of_a_large_book_as_of_a_small_one(
    stack: BackgroundStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daily round about usage goes on where it was: so many accounts a second, never all.
    monkeypatch.setattr(statements, "PAGE_ACCOUNTS", 10)
    monkeypatch.setattr(statements, "PAGES_PER_STEP_MAX", 1)
    found: dict[int, dict[str, int]] = {}
    for accounts in (FEW, MANY):
        path = tmp_path / f"{accounts}.sqlite"
        _, told = await asyncio.to_thread(
            big_book.write, path, accounts, WITHIN_S, lambda _: None, T0_MS
        )
        async with fresh_database(stack.postgres_dsn) as dsn:
            await copied_book.copy(path, dsn, lambda _: None)
            await execute(dsn, "SELECT pg_stat_reset()")
            with monkeypatch.context() as patched:
                await start_and_sell(VendingSettings(store=dsn), told, patched)
            found[accounts] = await pages_of(dsn)
    few, many = (sum(found[accounts].values()) for accounts in (FEW, MANY))
    assert few > 0
    assert many <= few * DEEPER, found
