"""What vending keeps beside its events in the same file: unique names, work half done, registers.

`unique_name` and `todo` are derived from events within the append that stores them. `charged` and
`consumer_offset` come from the topics that vending reads, both in one transaction. `book` holds the
book epoch, `raised` the position after which each began; `root` the latest roots of the hash chain
that the relay vouched for.
"""

import sqlite3
from collections.abc import Iterable, Sequence

from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.values import value_class
from services.common.runtime import codec
from services.vending.adapters.sqlite_file import SqliteFile
from services.vending.domain import chain
from services.vending.domain.event_store import NameTaken, StoredEvent
from services.vending.domain.events import (
    AccountMeterJoined,
    AccountMeterLeft,
    AccountOpened,
    Event,
    GatewayRegistered,
    MeterAssigned,
    MeterRegistered,
    MeterReplaced,
    event_from,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS unique_name(
  kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY(kind, name)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS todo(
  kind TEXT NOT NULL CHECK(kind IN ('join', 'leave')),
  account_id TEXT NOT NULL,
  meter_id TEXT NOT NULL,
  epoch INTEGER NOT NULL,
  register_milli INTEGER NOT NULL,
  position INTEGER NOT NULL,
  PRIMARY KEY(meter_id, epoch, kind)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS charged(
  meter_key INTEGER PRIMARY KEY,
  epoch INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  register_milli INTEGER NOT NULL,
  to_time_ms INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS consumer_offset(
  topic TEXT NOT NULL, partition INTEGER NOT NULL, next_offset INTEGER NOT NULL,
  PRIMARY KEY(topic, partition)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS book(
  one INTEGER PRIMARY KEY CHECK(one = 1), book_epoch INTEGER NOT NULL CHECK(book_epoch >= 1)
) STRICT;
INSERT OR IGNORE INTO book(one, book_epoch) VALUES(1, 1);
CREATE TABLE IF NOT EXISTS raised(
  book_epoch INTEGER PRIMARY KEY, position INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS root(
  position INTEGER PRIMARY KEY, count INTEGER NOT NULL, root BLOB NOT NULL
) STRICT;
"""

ROOTS_KEPT = 100
"""Checkpoints are written after their root is kept: the newest few are enough to meet again."""

SERIAL = "serial"
METER_KEY = "meter key"
ACCOUNT_KEY = "account key"
BUS_ADDRESS = "bus address"
GATEWAY_ADDRESS = "gateway address"


@value_class
class Todo:
    """An assignment that is decided in the meter's stream and not yet in the account's."""

    kind: str
    account_id: str
    meter_id: str
    epoch: int
    register_milli: int


@value_class
class Charged:
    """The newest charge of a meter: where it ended."""

    meter_key: int
    epoch: int
    sequence: int
    register_milli: int
    to_time_ms: int


@value_class
class Offset:
    """What is to be read next of a partition."""

    topic: str
    partition: int
    next_offset: int


@value_class
class Root:
    """The hash chain over the store after `count` events, the last at `position`."""

    position: int
    count: int
    root: bytes


_PROJECTED = {
    kind.SUBJECT
    for kind in (
        GatewayRegistered,
        MeterRegistered,
        AccountOpened,
        MeterAssigned,
        MeterReplaced,
        AccountMeterJoined,
        AccountMeterLeft,
    )
}


def event_of(stored: StoredEvent) -> Event:
    """Return what a stored event says."""
    return event_from(stored.type, codec.decode(chain.schema_of(stored.meta), stored.data))


class Tables:
    """The tables on a SqliteFile opened with SCHEMA; a Projection of the event store."""

    def __init__(self, file: SqliteFile) -> None:
        """Use `file`."""
        self._file = file

    def apply(self, connection: sqlite3.Connection, events: Sequence[StoredEvent]) -> None:
        """Derive unique names and todos. Raises NameTaken, which refuses the append."""
        for stored in events:
            if stored.type in _PROJECTED:
                _project(connection, event_of(stored), stored.position)

    def todos(self, meter_id: str | None = None) -> list[Todo]:
        """Return what is half done, oldest first: of one meter, or of all."""
        rows = self._file.look(
            "SELECT kind, account_id, meter_id, epoch, register_milli FROM todo "
            "WHERE ?1 IS NULL OR meter_id = ?1 ORDER BY position, kind DESC",
            meter_id,
        )
        return [Todo(*row) for row in rows]

    def charged_register_milli(self, meter_key: int, epoch: int) -> int | None:
        """Return the last register charged in a meter's epoch; None where none is known."""
        rows = self._file.look(
            "SELECT register_milli FROM charged WHERE meter_key = ? AND epoch = ?", meter_key, epoch
        )
        return rows[0][0] if rows else None

    async def keep_charged(self, charged: Iterable[Charged], offsets: Iterable[Offset]) -> None:
        """Keep what was charged and how far the topic was read, in one transaction."""
        charges = [
            (c.meter_key, c.epoch, c.sequence, c.register_milli, c.to_time_ms) for c in charged
        ]
        positions = [(o.topic, o.partition, o.next_offset) for o in offsets]

        def work(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT INTO charged VALUES(?,?,?,?,?) ON CONFLICT(meter_key) DO UPDATE SET "
                "epoch = excluded.epoch, sequence = excluded.sequence, "
                "register_milli = excluded.register_milli, to_time_ms = excluded.to_time_ms "
                "WHERE (excluded.epoch, excluded.sequence) > (charged.epoch, charged.sequence)",
                charges,
            )
            connection.executemany(
                "INSERT OR REPLACE INTO consumer_offset VALUES(?,?,?)", positions
            )

        await self._file.write(work)

    def offsets(self, topic: str) -> dict[int, int]:
        """Return partition → next offset of what was read of a topic."""
        return dict(
            self._file.look(
                "SELECT partition, next_offset FROM consumer_offset WHERE topic = ?", topic
            )
        )

    def book_epoch(self) -> int:
        """Return the epoch of the book."""
        return int(self._file.look("SELECT book_epoch FROM book")[0][0])

    async def raise_book_epoch(self, book_epoch: int) -> None:
        """Set the epoch of the book, which only rises."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE book SET book_epoch = max(book_epoch, ?)", (book_epoch,))
            connection.execute(
                "INSERT OR IGNORE INTO raised SELECT ?, coalesce(max(position), 0) FROM event",
                (book_epoch,),
            )

        await self._file.write(work)

    def raised_at(self) -> int:
        """Return the position of the last event before the present book epoch; 0 in the first."""
        return int(self._file.look("SELECT coalesce(max(position), 0) FROM raised")[0][0])

    def root_at(self, position: int) -> Root | None:
        """Return the kept root at a position, where there is one."""
        rows = self._file.look(
            "SELECT position, count, root FROM root WHERE position = ?", position
        )
        return Root(*rows[0]) if rows else None

    def latest_root(self) -> Root | None:
        """Return the newest kept root."""
        rows = self._file.look("SELECT position, count, root FROM root ORDER BY 1 DESC LIMIT 1")
        return Root(*rows[0]) if rows else None

    async def keep_root(self, root: Root) -> None:
        """Keep a root, and drop old ones."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO root VALUES(?,?,?)", (root.position, root.count, root.root)
            )
            connection.execute(
                "DELETE FROM root WHERE position NOT IN "
                "(SELECT position FROM root ORDER BY position DESC LIMIT ?)",
                (ROOTS_KEPT,),
            )

        await self._file.write(work)


def _claim(connection: sqlite3.Connection, kind: str, name: str, owner: str) -> None:
    found = connection.execute(
        "SELECT owner FROM unique_name WHERE kind = ? AND name = ?", (kind, name)
    ).fetchone()
    if found is not None:
        raise NameTaken(kind, name, found[0])
    connection.execute("INSERT INTO unique_name VALUES(?,?,?)", (kind, name, owner))


def _pass_on(connection: sqlite3.Connection, kind: str, before: str, now: str, owner: str) -> None:
    """Let an owner have another name; the one before is free."""
    if now != before:
        _claim(connection, kind, now, owner)
        connection.execute("DELETE FROM unique_name WHERE kind = ? AND name = ?", (kind, before))


def _project(connection: sqlite3.Connection, event: Event, position: int) -> None:
    match event:
        case GatewayRegistered():
            _claim(connection, GATEWAY_ADDRESS, event.address, event.gateway_id)
        case MeterRegistered():
            house = house_account_id(event.meter_id)
            _claim(connection, SERIAL, event.serial, event.meter_id)
            _claim(connection, METER_KEY, str(event.meter_key), event.meter_id)
            _claim(connection, ACCOUNT_KEY, str(column_key("account", house)), house)
            if event.unit:
                _claim(connection, BUS_ADDRESS, f"{event.line_id}/{event.unit}", event.meter_id)
        case MeterReplaced():
            _pass_on(connection, SERIAL, event.previous_serial, event.serial, event.meter_id)
            before, now = (f"{event.line_id}/{u}" for u in (event.previous_unit, event.unit))
            _pass_on(connection, BUS_ADDRESS, before, now, event.meter_id)
        case AccountOpened():
            _claim(connection, ACCOUNT_KEY, str(event.account_key), event.account_id)
        case MeterAssigned():
            _plan(connection, event, position)
        case AccountMeterJoined():
            connection.execute(
                "DELETE FROM todo WHERE meter_id = ? AND epoch = ? AND kind = 'join'",
                (event.meter_id, event.epoch),
            )
        case AccountMeterLeft():
            connection.execute(
                "DELETE FROM todo WHERE meter_id = ? AND epoch = ?", (event.meter_id, event.epoch)
            )


def _plan(connection: sqlite3.Connection, event: MeterAssigned, position: int) -> None:
    """Note what accounts have still to hear of an assignment."""
    house = house_account_id(event.meter_id)
    sides = (
        ("leave", event.previous_account_id, event.epoch - 1),
        ("join", event.account_id, event.epoch),
    )
    for kind, account_id, epoch in sides:
        if account_id != house:
            connection.execute(
                "INSERT INTO todo VALUES(?,?,?,?,?,?)",
                (kind, account_id, event.meter_id, epoch, event.register_milli, position),
            )
