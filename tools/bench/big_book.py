"""A book of very many accounts, on SQLite, written faster than vending may write it.

Every event is what vending's own office decides, with its id, its link in the chains, its names and
its receipt's number: the office decides the first account, and the others are that one under
another name. Only the way into the file is another: nothing is durable before the end, and rows go
in by the order of their keys.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.common.kernel.ids import column_key, name_uuid
from services.common.kernel.routing import partition_of
from services.common.runtime import codec
from services.common.runtime.clock import SystemClock
from services.common.runtime.profiles import profiles
from services.common.runtime.topics import catalogue
from services.vending.adapters import filling, stores, tables
from services.vending.adapters.database import Claim
from services.vending.adapters.sqlite_file import make
from services.vending.application.book import Book
from services.vending.application.numbering import SUBJECTS
from services.vending.application.office import Office, Terms
from services.vending.application.relay import FIRST_BOOK_EPOCH, START, root_with
from services.vending.application.stored import event_of
from services.vending.domain import chain
from services.vending.domain.account import Account
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
from services.vending.domain.streams import stream_of
from services.vending.domain.tables import ACCOUNT_KEY, Checkpoint, Tables
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


class Rows:
    """An event store that is only ever added to, a stream at once, and never read."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        """Write into a file that has the schema."""
        self._connection = connection
        self._streams = 0
        self._events: list[tuple[Any, ...]] = []
        self._links: list[tuple[Any, ...]] = []
        self._names: list[tuple[str, str, str]] = []
        self._documents: list[tuple[Any, ...]] = []
        self.root = START
        self.newest: Sequence[NewEvent] = ()

    @property
    def receipts(self) -> int:
        """How many receipts have a number."""
        return len(self._documents)

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        """Put a stream down, and what its events change beside them."""
        assert expected < 0, f"{stream} is written at once"
        self.newest = events
        for event in self.put(stream, events):
            for change in tables.changes(event):
                if isinstance(change, Claim):
                    self.claim(change)
                else:
                    make(self._connection, [change])
            if event.type in SUBJECTS:
                sold = event_of(event)
                assert isinstance(sold, CreditSold)
                self.number(sold.receipt_id, event)
        return Appended(self.root.position, len(events) - 1)

    async def read(self, _stream: StreamId) -> list[StoredEvent]:
        """Return nothing: every stream is new."""
        return []

    def put(self, stream: StreamId, events: Sequence[NewEvent]) -> list[StoredEvent]:
        """Put the events of a stream down, with their links; return them as they are stored."""
        self._streams += 1
        stream_row = (self._streams, stream, len(events) - 1)
        self._connection.execute("INSERT INTO stream VALUES(?, ?, ?)", stream_row)
        stored = []
        for revision, new in enumerate(events):
            position = self.root.position + 1
            event = StoredEvent(position, stream, revision, new.id, new.type, new.data, new.meta)
            hash_ = chain.stored_hash(event)
            self.root = root_with(self.root, event, hash_)
            id_ = new.id.bytes
            place = (position, self._streams, revision)
            self._events.append((*place, id_, new.type, new.meta, new.data))
            self._links.append((position, stream, revision, id_, new.type, hash_))
            stored.append(event)
        if len(self._events) >= EVENTS_AT_ONCE:
            self._flush()
        return stored

    def claim(self, name: Claim) -> None:
        """Let a name have its owner."""
        self._names.append((name.kind, name.name, name.owner))

    def number(self, receipt_id: str, event: StoredEvent) -> None:
        """Give a receipt the next number."""
        number = len(self._documents) + 1
        place = (event.stream, event.revision, event.position)
        self._documents.append((receipt_id, NAME, number, *place))

    def _flush(self) -> None:
        self._connection.executemany("INSERT INTO event VALUES(?,?,?,?,?,?,?)", self._events)
        self._connection.executemany("INSERT INTO link VALUES(?,?,?,?,?,?)", self._links)
        self._events.clear()
        self._links.clear()

    def finish(self) -> None:
        """Write all that is not in the order of positions, as the tables have it."""
        self._flush()
        put = self._connection.executemany
        put("INSERT INTO unique_name VALUES(?,?,?)", sorted(self._names))
        put("INSERT INTO document VALUES(?,?,?,?,?,?)", sorted(self._documents))
        put("INSERT INTO series VALUES(?,?)", [(NAME, len(self._documents))])
        put("INSERT INTO numbered VALUES(1,?)", [(self.root.position,)])
        checkpoint = (self.root.position, self.root.count, self.root.root)
        put("INSERT INTO checkpoint VALUES(?,1,?,?,0,'',x'')", [checkpoint])


class Likeness:
    """The first account, as the office decided it, under the names of others."""

    def __init__(self, events: Sequence[NewEvent]) -> None:
        """`events`: the opening of an account, with its first sale."""
        self._metas = [chain.read_meta(event.meta) for event in events]
        self._types = [event.type for event in events]
        self._opened, self._sold = (
            codec.decode(meta.schema, event.data)
            for meta, event in zip(self._metas, events, strict=True)
        )

    def put(self, rows: Rows, number: int) -> None:
        """Put the account of a number down."""
        name = account_id(number)
        request = asked(name, 0)
        key = column_key("account", name)
        receipt_id = str(name_uuid("receipt", *request.key))
        by = {
            "request_id": request.request_id,
            "fingerprint": request.fingerprint,
            "account_id": name,
        }
        shard = partition_of(name, catalogue().shards)
        opened = self._opened | by | {"account_key": key, "shard": shard}
        sold = self._sold | by | {"receipt_id": receipt_id}
        stream = stream_of(Account, name)
        prev, events = chain.GENESIS, []
        for nth, record in enumerate((opened, sold)):
            type_, meta = self._types[nth], self._metas[nth]
            said = chain.meta_of(meta.schema, prev, meta.origin)
            id_ = name_uuid("event", *request.key, nth + 1)
            event = NewEvent(id_, type_, codec.encode(type_, record), said)
            prev = chain.hash_of(stream, nth, type_, event.data, said)
            events.append(event)
        *_, sale = rows.put(stream, events)
        rows.claim(Claim(ACCOUNT_KEY, str(key), name))
        rows.number(receipt_id, sale)


def write(
    path: Path, accounts: int, within_s: float, say: Callable[[str], None], at_ms: int
) -> tuple[int, Checkpoint]:
    """Write a book of so many accounts, or as many as there is time for, all opened at an instant.

    Return how many, and the checkpoint that says that all of it was told.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(stores.SQLITE_SCHEMA)
        make(connection, [filling.mark()])
        for pragma in FAST:
            connection.execute(f"PRAGMA {pragma}").fetchall()
        made = [
            connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchone()
            for index in LATER
        ]
        for index in LATER:
            connection.execute(f"DROP INDEX {index}")
        connection.execute("BEGIN")
        rows = Rows(connection)
        likeness = Likeness(asyncio.run(_first(rows, at_ms)))
        _open(rows, likeness, accounts, time.monotonic() + within_s, say)
        rows.finish()
        for (sql,) in made:
            connection.execute(sql)
        connection.execute("COMMIT")
    return rows.receipts, Checkpoint(FIRST_BOOK_EPOCH, rows.root)


def asked(what: str, at_ms: int) -> Request:
    """Return the request of this bench for something."""
    return Request(NAME, str(name_uuid("bench", what)), fingerprint(what), at_ms)


async def open_account(office: Office, number: int, at_ms: int) -> None:
    """Let the office open the account of a number, with its first sale."""
    name = account_id(number)
    await office.open_account(
        asked(name, at_ms),
        account_id=name,
        site_id=NAME,
        subject_id=None,
        commodity="electricity",
        tariff_id=NAME,
        policy_id=NAME,
        first_sale_minor=FIRST_SALE_MINOR,
        method="cash",
    )


async def opened_office(store: EventStore, at_ms: int) -> Office:
    """Return an office of a book with a site, a tariff and a policy."""
    book = Book(store, Metrics(CollectorRegistry()))
    terms = Terms(catalogue().shards, 0, profiles())
    office = Office(book, cast("Tables", None), SystemClock(), terms)
    ask = partial(asked, at_ms=at_ms)
    await office.register_site(RegisterSite(ask("site"), NAME, NAME, "UTC", "CNY", NAME, 10))
    await office.publish_tariff(
        PublishTariff(ask("tariff"), NAME, "electricity", "CNY", NAME, 500_000, None, 0, 0)
    )
    await office.publish_policy(
        PublishPolicy(ask("policy"), NAME, "CNY", 3, 2, 0, 1, 0, 0, 0, None, 0, 0, 0, NAME, "")
    )
    return office


async def _first(rows: Rows, at_ms: int) -> Sequence[NewEvent]:
    """Return the events of the first account, as the office decides them."""
    office = await opened_office(cast("EventStore", rows), at_ms)
    await open_account(office, 0, at_ms)
    return rows.newest


def _open(
    rows: Rows, likeness: Likeness, accounts: int, deadline_s: float, say: Callable[[str], None]
) -> None:
    for number in range(1, accounts):
        if number % EVENTS_AT_ONCE == 0:
            say(f"a book of {accounts:,} accounts: {number:,}")
            if time.monotonic() > deadline_s:
                return
        likeness.put(rows, number)
