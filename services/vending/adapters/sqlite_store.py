"""The event store on SQLite: one writer process, group commit, append only by triggers."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import Any

from services.vending.adapters.database import uuid_of
from services.vending.adapters.following import BATCH_EVENTS_MAX, Following
from services.vending.adapters.sqlite_file import SqliteFile, SqliteReader, make
from services.vending.adapters.tables import Projection, nothing
from services.vending.domain.event_store import (
    NO_EVENTS,
    Appended,
    EventExists,
    NewEvent,
    StoredEvent,
    StreamId,
    WrongRevision,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS stream(
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  revision INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS event(
  position INTEGER PRIMARY KEY,
  stream INTEGER NOT NULL REFERENCES stream(id),
  revision INTEGER NOT NULL CHECK(revision >= 0),
  id BLOB NOT NULL CHECK(length(id) = 16),
  type TEXT NOT NULL,
  meta BLOB NOT NULL,
  data BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS event_rev ON event(stream, revision);
CREATE UNIQUE INDEX IF NOT EXISTS event_id ON event(id);
CREATE TRIGGER IF NOT EXISTS event_update BEFORE UPDATE ON event
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS event_delete BEFORE DELETE ON event
  BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""

_COLUMNS = "e.position, s.name, e.revision, e.id, e.type, e.data, e.meta"
_READ = (
    f"SELECT {_COLUMNS} FROM event e JOIN stream s ON s.id = e.stream "  # noqa: S608 - constants
    "WHERE e.stream = (SELECT id FROM stream WHERE name = ?) AND e.revision > ? "
    "ORDER BY e.revision"
)
_READ_ALL = (
    f"SELECT {_COLUMNS} FROM event e JOIN stream s ON s.id = e.stream "  # noqa: S608 - constants
    "WHERE e.position > ? ORDER BY e.position LIMIT ?"
)
_MOVE_ON = "UPDATE stream SET revision = ? WHERE name = ? AND revision = ? RETURNING id"


class SqliteEventStore:
    """services.vending.domain.event_store.EventStore on a SqliteFile opened with SCHEMA."""

    def __init__(self, file: SqliteFile | SqliteReader, projection: Projection = nothing) -> None:
        """Use `file`; make the changes of `projection` within each append."""
        self._file = file
        self._projection = projection
        self._following = Following()
        file.after_commit.append(self._following.wake)

    def append(
        self, stream: StreamId, expected: int, events: Sequence[NewEvent]
    ) -> asyncio.Future[Appended]:
        """Append durably at the expected revision."""
        assert events, "an append needs an event"

        def work(connection: sqlite3.Connection) -> list[StoredEvent]:
            stored = _insert(connection, stream, expected, events)
            for event in stored:
                make(connection, self._projection(event))
            return stored

        return self._file.write(work, self._appended)

    def _appended(self, stored: Sequence[StoredEvent]) -> Appended:
        self._following.stored(stored)
        return Appended(stored[-1].position, stored[-1].revision)

    async def check_writer(self) -> None:
        """Return: the lock on the file is held until the process ends."""

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        """Return the stream's events above a revision."""
        rows = await self._file.read(lambda c: c.execute(_READ, (stream, after)).fetchall())
        return [_event(row) for row in rows]

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        """Return at most `limit` events above a position."""
        newest = self._following.newest(after, limit)
        if newest is not None:
            return newest
        if limit <= BATCH_EVENTS_MAX:
            rows = self._file.look(_READ_ALL, after, limit)
        else:
            rows = await self._file.read(lambda c: c.execute(_READ_ALL, (after, limit)).fetchall())
        return [_event(row) for row in rows]

    async def event_at(self, position: int) -> StoredEvent | None:
        """Return the event at a position: positions are dense."""
        found = await self.read_all(position - 1, 1)
        return found[0] if found and found[0].position == position else None

    async def head(self) -> int:
        """Return the position of the last event."""
        return self.count()

    def count(self) -> int:
        """Return how many events are stored: positions are dense."""
        return int(self._file.look("SELECT coalesce(max(position), 0) FROM event")[0][0])

    def subscribe_all(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield events above a position, those to come too."""
        return self._following.follow(self.read_all, after)


def _insert(
    connection: sqlite3.Connection, stream: StreamId, expected: int, events: Sequence[NewEvent]
) -> list[StoredEvent]:
    stream_key = _moved_on(connection, stream, expected, expected + len(events))
    stored = []
    for number, event in enumerate(events, expected + 1):
        try:
            row = connection.execute(
                "INSERT INTO event(stream, revision, id, type, meta, data) VALUES(?,?,?,?,?,?)",
                (stream_key, number, event.id.bytes, event.type, event.meta, event.data),
            )
        except sqlite3.IntegrityError as known:
            raise EventExists(f"event {event.id} of {stream} is stored already") from known
        assert row.lastrowid is not None
        stored.append(
            StoredEvent(row.lastrowid, stream, number, event.id, event.type, event.data, event.meta)
        )
    return stored


def _moved_on(
    connection: sqlite3.Connection, stream: StreamId, expected: int, revision: int
) -> int:
    """Take a stream from one revision to another; return its key. Raises WrongRevision."""
    moved = connection.execute(_MOVE_ON, (revision, stream, expected)).fetchone()
    if moved is not None:
        return int(moved[0])
    found = connection.execute("SELECT revision FROM stream WHERE name = ?", (stream,)).fetchone()
    actual = NO_EVENTS if found is None else found[0]
    if actual != expected:
        raise WrongRevision(stream, expected, actual)
    row = connection.execute("INSERT INTO stream(name, revision) VALUES(?, ?)", (stream, revision))
    assert row.lastrowid is not None
    return row.lastrowid


def _event(row: tuple[Any, ...]) -> StoredEvent:
    position, stream, revision, id_, type_, data, meta = row
    return StoredEvent(position, stream, revision, uuid_of(id_), type_, data, meta)
