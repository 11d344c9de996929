"""A book of very many accounts, on SQLite, written faster than vending may write it.

Every event is what vending's own office decides, with its id, its link in the chains, its names and
its receipt's number. Only the way into the file is another: nothing is durable before the end, and
rows go in by the order of their keys.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.common.kernel.ids import name_uuid
from services.common.runtime.clock import SystemClock
from services.common.runtime.profiles import profiles
from services.common.runtime.topics import catalogue
from services.vending.adapters import stores, tables
from services.vending.adapters.database import Claim
from services.vending.adapters.sqlite_file import make
from services.vending.application.book import Book
from services.vending.application.numbering import SUBJECTS
from services.vending.application.office import Office, Terms
from services.vending.application.relay import FIRST_BOOK_EPOCH, START, root_with
from services.vending.domain import chain
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.event_store import (
    Appended,
    EventStore,
    NewEvent,
    StoredEvent,
    StreamId,
)
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.policy import PublishPolicy
from services.vending.domain.site import RegisterSite
from services.vending.domain.tables import Checkpoint, Tables
from services.vending.domain.tariff import PublishTariff
from services.vending.metrics import Metrics

NAME = "bench"
"""Of the caller, the site, the legal entity, the tariff and the policy."""
FIRST_SALE_MINOR = 10_000
EVENTS_AT_ONCE = 10_000
FAST = ("journal_mode=OFF", "synchronous=OFF", "cache_size=-400000")
LATER = ("event_rev", "event_id")
"""Indexes of events: made at the end, when they are in order."""


def account_id(number: int) -> str:
    """Return the account of a number."""
    return f"{NAME}-{number:08d}"


class _Rows:
    """An event store that is only ever added to, a stream at once, and never read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._streams = 0
        self._events: list[tuple[Any, ...]] = []
        self._links: list[tuple[Any, ...]] = []
        self.root = START
        self.names: list[tuple[str, str, str]] = []
        self.documents: list[tuple[Any, ...]] = []

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        """Put a stream down."""
        assert expected < 0, f"{stream} is written at once"
        self._streams += 1
        stream_row = (self._streams, stream, len(events) - 1)
        self._connection.execute("INSERT INTO stream VALUES(?, ?, ?)", stream_row)
        for revision, new in enumerate(events):
            position = self.root.position + 1
            event = StoredEvent(position, stream, revision, new.id, new.type, new.data, new.meta)
            self._put(event)
        if len(self._events) >= EVENTS_AT_ONCE:
            self.flush()
        return Appended(self.root.position, len(events) - 1)

    async def read(self, _stream: StreamId) -> list[StoredEvent]:
        """Return nothing: every stream is new."""
        return []

    def _put(self, event: StoredEvent) -> None:
        place = (event.position, self._streams, event.revision)
        self._events.append((*place, event.id.bytes, event.type, event.meta, event.data))
        hash_ = chain.stored_hash(event)
        self.root = root_with(self.root, event, hash_)
        self._links.append(
            (event.position, event.stream, event.revision, event.id.bytes, event.type, hash_)
        )
        for change in tables.changes(event):
            if isinstance(change, Claim):  # of every account: later, in order
                self.names.append((change.kind, change.name, change.owner))
            else:
                make(self._connection, [change])
        if event.type in SUBJECTS:
            sold = tables.event_of(event)
            assert isinstance(sold, CreditSold)
            number = len(self.documents) + 1
            at = (event.stream, event.revision, event.position)
            self.documents.append((sold.receipt_id, NAME, number, *at))

    def flush(self) -> None:
        """Write what was put down."""
        self._connection.executemany("INSERT INTO event VALUES(?,?,?,?,?,?,?)", self._events)
        self._connection.executemany("INSERT INTO link VALUES(?,?,?,?,?,?)", self._links)
        self._events.clear()
        self._links.clear()

    def finish(self) -> None:
        """Write all that is not in the order of positions, as the tables have it."""
        self.flush()
        put = self._connection.executemany
        put("INSERT INTO unique_name VALUES(?,?,?)", sorted(self.names))
        put("INSERT INTO document VALUES(?,?,?,?,?,?)", sorted(self.documents))
        put("INSERT INTO series VALUES(?,?)", [(NAME, len(self.documents))])
        put("INSERT INTO numbered VALUES(1,?)", [(self.root.position,)])
        checkpoint = (self.root.position, self.root.count, self.root.root)
        put("INSERT INTO checkpoint VALUES(?,1,?,?,0,'',x'')", [checkpoint])


def write(
    path: Path, accounts: int, within_s: float, say: Callable[[str], None]
) -> tuple[int, Checkpoint]:
    """Write a book of so many accounts, or as many as there is time for.

    Return how many, and the checkpoint that says that all of it was told.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(stores.SQLITE_SCHEMA)
        for pragma in FAST:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        made = [
            connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
            for index in LATER
        ]
        for index in LATER:
            connection.execute(f"DROP INDEX {index}")
        connection.execute("BEGIN")
        rows = _Rows(connection)
        asyncio.run(_open(rows, accounts, time.monotonic() + within_s, say))
        rows.finish()
        for (sql,) in made:
            connection.execute(sql)
        connection.execute("COMMIT")
    return len(rows.documents), Checkpoint(FIRST_BOOK_EPOCH, rows.root)


async def _open(rows: _Rows, accounts: int, deadline_s: float, say: Callable[[str], None]) -> None:
    clock = SystemClock()
    book = Book(cast("EventStore", rows), Metrics(CollectorRegistry()))
    terms = Terms(catalogue().shards, 0, profiles())
    office = Office(book, cast("Tables", None), clock, terms)

    def ask(what: str) -> Request:
        request_id = str(name_uuid("bench", what))
        return Request(NAME, request_id, fingerprint(what), clock.now_ms())

    await office.register_site(RegisterSite(ask("site"), NAME, NAME, "UTC", "CNY", NAME, 10))
    await office.publish_tariff(
        PublishTariff(ask("tariff"), NAME, "electricity", "CNY", NAME, 500_000, None, 0, 0)
    )
    await office.publish_policy(
        PublishPolicy(ask("policy"), NAME, "CNY", 3, 2, 0, 1, 0, 0, 0, None, 0, 0, 0, NAME, "")
    )
    for number in range(accounts):
        if number % EVENTS_AT_ONCE == 0:
            say(f"a book of {accounts:,} accounts: {number:,}")
            if time.monotonic() > deadline_s:
                return
        name = account_id(number)
        await office.open_account(
            ask(name),
            account_id=name,
            site_id=NAME,
            subject_id=None,
            commodity="electricity",
            tariff_id=NAME,
            policy_id=NAME,
            first_sale_minor=FIRST_SALE_MINOR,
            method="cash",
        )
