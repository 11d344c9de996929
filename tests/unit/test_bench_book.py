"""Goal: the large book that starts are measured on is one that vending's own office could write.

Method: the same accounts are opened by the office, each decided by itself, at the same instant; the
events must be equal byte for byte. The file is verified, and its tables are those of its events.
"""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

from services.vending.adapters import stores, tables
from services.vending.adapters.database import Claim
from services.vending.adapters.keys import PublicKeys
from services.vending.adapters.memory_store import MemoryEventStore
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application.stored import event_of
from services.vending.application.verifying import verify
from services.vending.domain.event_store import FROM_START
from services.vending.domain.events.sales import CreditSold
from tests.unit.vending_world import T0_MS
from tools.bench import big_book

ACCOUNTS = 40
WITHIN_S = 20.0


async def test_the_accounts_of_the_book_are_what_the_office_decides(tmp_path: Path) -> None:
    path = tmp_path / "book.sqlite"
    written, told = await asyncio.to_thread(
        big_book.write, path, ACCOUNTS, WITHIN_S, lambda _: None, T0_MS
    )
    assert written == ACCOUNTS
    async with stores.reading(f"sqlite:{path}", "test") as stored:
        found = await stored.store.read_all(FROM_START, 1_000)
        with ScratchLasts() as lasts:
            verdict = await verify(
                stored.store, stored.tables, lasts, PublicKeys([]), lambda *_: None
            )
    assert verdict.fault is None
    assert (verdict.root, verdict.linked) == (told.root, len(found))
    office_store = MemoryEventStore()
    office = await big_book.opened_office(office_store, T0_MS)
    for number in range(ACCOUNTS):
        await big_book.open_account(office, number, T0_MS)
    assert found == await office_store.read_all(FROM_START, 1_000)
    with closing(sqlite3.connect(path)) as connection:
        names = set(connection.execute("SELECT kind, name, owner FROM unique_name"))
        papers = connection.execute("SELECT receipt_id, position FROM document ORDER BY number")
        numbered = papers.fetchall()
    claims = [change for event in found for change in tables.changes(event)]
    assert names == {(c.kind, c.name, c.owner) for c in claims if isinstance(c, Claim)}
    sold = [(e, event_of(e)) for e in found]
    assert numbered == [(s.receipt_id, e.position) for e, s in sold if isinstance(s, CreditSold)]
