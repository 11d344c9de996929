"""An event store with its unique ids and names in an index beside it: a SQLite file.

For a server that holds streams to an exact revision and knows no other uniqueness. The index is
derived from the store, up to a position of its own: it is caught up at start and after each append,
before that is answered, and made anew where it is gone or of another store. What an append would
claim is looked up before it is sent, and held until the index has it: two appends at once never
claim one name. Where an append's outcome is unknown it is held until it is stored or never will be.

One process writes a store (`may_write`); the index is exact for no other.
"""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from services.common.kernel.errors import WattvendError
from services.vending.adapters.database import Change, Claim
from services.vending.adapters.following import BATCH_EVENTS_MAX
from services.vending.adapters.kurrent_store import KurrentEventStore
from services.vending.adapters.sqlite_file import SqliteFile, SqliteReader, make
from services.vending.adapters.tables import DERIVED, Projection, nothing
from services.vending.adapters.tables.unique_names import FREE, OWNER
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    EventExists,
    NameTaken,
    NewEvent,
    StoredEvent,
    StoreUnavailable,
    StreamId,
    WrongRevision,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS event_id(
  id BLOB PRIMARY KEY CHECK(length(id) = 16)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS indexed(
  one INTEGER PRIMARY KEY CHECK(one = 1),
  position INTEGER NOT NULL, id BLOB NOT NULL, count INTEGER NOT NULL
) STRICT;
"""
CATCH_UP_PAUSE_S = 0.01

_INDEXED = "INSERT OR REPLACE INTO indexed(one, position, id, count) VALUES(1, ?, ?, ?)"

Name = tuple[str, str]
"""Kind and name."""


class IndexBroken(WattvendError):  # noqa: N818 - says what was found
    """The store holds an id or a name twice: it had two writers."""


@dataclass(slots=True)
class _Held:
    """An append under way, or of unknown outcome, and what it claims until the index has it."""

    stream: StreamId
    ids: tuple[UUID, ...]
    keys: set[UUID | Name]
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    settled_at: float | None = None


async def _anybody() -> None:
    """Let this process write."""


class IndexedEventStore:
    """services.vending.domain.event_store.EventStore on a server and a SqliteFile with SCHEMA."""

    def __init__(
        self,
        server: KurrentEventStore,
        file: SqliteFile | SqliteReader,
        projection: Projection = nothing,
        may_write: Callable[[], Awaitable[None]] = _anybody,
    ) -> None:
        """Index `server` in `file`. `may_write` raises NotTheWriter where another has come."""
        self._server = server
        self._file = file
        self._projection = projection
        self._may_write = may_write
        self._position = FROM_START
        self._count = sum(count for (count,) in file.look("SELECT count FROM indexed"))
        self._catching = asyncio.Lock()
        self._held: dict[UUID | Name, _Held] = {}

    async def open(self) -> None:
        """Catch the index up with the store. Raises StoreUnavailable, IndexBroken."""
        for position, id_ in self._file.look("SELECT position, id FROM indexed"):
            there = await self._server.event_at(position)
            if there is not None and there.id.bytes == id_:
                self._position = position
        if self._position == FROM_START:
            await self._file.write(_emptied)
            self._count = 0
        await self._catch_up(None)

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        """Append durably at the expected revision, where no id and no name is taken."""
        assert events, "an append needs an event"
        proposed = [
            StoredEvent(FROM_START, stream, revision, e.id, e.type, e.data, e.meta)
            for revision, e in enumerate(events, expected + 1)
        ]
        changes = [change for event in proposed for change in self._projection(event)]
        ids = tuple(event.id for event in events)
        names = {(change.kind, change.name) for change in changes if isinstance(change, Claim)}
        mine = _Held(stream, ids, {*ids, *names})
        await self._wait_for_others(mine)
        if taken := self._taken(mine, changes):
            await self._check_revision(stream, expected)
            raise taken
        self._hold(mine)
        try:
            await self._may_write()
            appended = await self._stored(mine, expected, events)
        except WrongRevision:
            self._release(mine)
            raise
        except BaseException:  # this append may be stored, or one of unknown outcome before it
            mine.settled_at = asyncio.get_running_loop().time() + self._server.bounds.settled_s
            mine.ended.set()
            raise
        self._release(mine)
        return appended

    async def check_writer(self) -> None:
        """Return where this process writes the store. Raises NotTheWriter; StoreUnavailable."""
        await self._may_write()

    async def _stored(self, mine: _Held, expected: int, events: Sequence[NewEvent]) -> Appended:
        """Append, and take into the index what is stored now, also by an append before this."""
        try:
            appended = await self._server.append(mine.stream, expected, events)
        except WrongRevision:
            await self._catch_up(None)
            raise
        if appended.position <= self._position and not self._knows(mine.ids[-1]):
            raise self._server.went_back(f"it stored at {appended.position} what comes next")
        await self._catch_up(mine.ids[-1])
        return appended

    # --- what is claimed --------------------------------------------------------------------------

    async def _wait_for_others(self, mine: _Held) -> None:
        """Wait until no append of another stream, and none under way, holds what one claims."""
        while others := [
            held
            for held in filter(None, map(self._held.get, mine.keys))
            if held.settled_at is None or held.stream != mine.stream
        ]:
            other = others[0]
            if other.settled_at is None:
                await other.ended.wait()
            else:
                await asyncio.sleep(other.settled_at - asyncio.get_running_loop().time())
                await self._catch_up(None)

    def _hold(self, mine: _Held) -> None:
        """Hold what an append claims, and what one of unknown outcome in its stream does.

        Of the two at most one is stored, or both are the same: when this one is stored, or refused
        for its revision, the other's outcome is known too.
        """
        for key in list(mine.keys):
            if key in self._held:
                mine.keys |= self._held[key].keys
        self._held.update(dict.fromkeys(mine.keys, mine))

    def _release(self, held: _Held) -> None:
        for key in held.keys:
            if self._held.get(key) is held:
                del self._held[key]
        held.ended.set()

    def _taken(self, mine: _Held, changes: Sequence[Change]) -> EventExists | NameTaken | None:
        """Return what the index refuses an append for: an id, or the first name that is taken."""
        known = self._file.look(
            f"SELECT id FROM event_id WHERE id IN ({','.join('?' * len(mine.ids))})",  # noqa: S608 - marks
            *(id_.bytes for id_ in mine.ids),
        )
        if known or len(set(mine.ids)) < len(mine.ids):
            return EventExists(f"an event of {mine.stream} is stored already")
        owners: dict[Name, str | None] = {}
        for change in changes:
            if isinstance(change, Claim):
                claimed = (change.kind, change.name)
                owner = owners[claimed] if claimed in owners else self._owner(claimed)
                if owner is not None:
                    return NameTaken(change.kind, change.name, owner)
                owners[claimed] = change.owner
            elif change.sql == FREE:
                for kind, name in change.rows:
                    owners[kind, name] = None
        return None

    def _owner(self, name: Name) -> str | None:
        rows = self._file.look(OWNER.replace("$", "?"), *name)
        return rows[0][0] if rows else None

    async def _check_revision(self, stream: StreamId, expected: int) -> None:
        """Raise WrongRevision: who decided on another state learns that first."""
        events = await self._server.read(stream)
        actual = events[-1].revision if events else NO_EVENTS
        if actual != expected:
            raise WrongRevision(stream, expected, actual)

    # --- the index --------------------------------------------------------------------------------

    async def _catch_up(self, until: UUID | None) -> None:
        """Take into the index what the store has, at least up to an event that it stored."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._server.bounds.read_s
        async with self._catching:
            while True:
                began = loop.time()
                if until is not None and self._knows(until):
                    return
                events = await self._server.read_all(self._position, BATCH_EVENTS_MAX)
                if events:
                    await self._take_in(events)
                if len(events) < BATCH_EVENTS_MAX:
                    self._settle(began)
                if events:
                    continue
                if until is None:
                    return
                if loop.time() > deadline:
                    raise StoreUnavailable(f"the event store does not show event {until}")
                await asyncio.sleep(CATCH_UP_PAUSE_S)

    def _knows(self, event_id: UUID) -> bool:
        return bool(self._file.look("SELECT 1 FROM event_id WHERE id = ?", event_id.bytes))

    async def _take_in(self, events: Sequence[StoredEvent]) -> None:
        last, count = events[-1], self._count + len(events)

        def work(connection: sqlite3.Connection) -> None:
            for event in events:
                connection.execute("INSERT INTO event_id VALUES(?)", (event.id.bytes,))
                make(connection, self._projection(event))
            connection.execute(_INDEXED, (last.position, last.id.bytes, count))

        try:
            await self._file.write(work)
        except (sqlite3.IntegrityError, NameTaken) as twice:
            raise IndexBroken(
                f"up to position {last.position} the event store holds something twice ({twice}): "
                "two processes wrote it. Stop all but one, and find out what both decided"
            ) from twice
        self._position, self._count = last.position, count
        for event in events:
            held = self._held.get(event.id)
            if held is not None and held.settled_at is not None:
                self._release(held)

    def _settle(self, seen_at: float) -> None:
        """Let go of appends that would have been seen by now."""
        for held in list(self._held.values()):
            if held.settled_at is not None and held.settled_at <= seen_at:
                self._release(held)

    @property
    def is_settled(self) -> bool:
        """Whether no append is under way or of unknown outcome."""
        return not self._held

    # --- what the server knows --------------------------------------------------------------------

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        """Return the stream's events above a revision."""
        return await self._server.read(stream, after)

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        """Return at most `limit` events above a position."""
        return await self._server.read_all(after, limit)

    async def event_at(self, position: int) -> StoredEvent | None:
        """Return the event at a position."""
        return await self._server.event_at(position)

    async def head(self) -> int:
        """Return the position of the last event."""
        return await self._server.head()

    def count(self) -> int:
        """Return how many events the index has."""
        return self._count

    def subscribe_all(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield events above a position, those to come too."""
        return self._server.subscribe_all(after)


def _emptied(connection: sqlite3.Connection) -> None:
    # What the relay vouched for may be of another store; its links stay: they say what was told.
    for table in ("event_id", "indexed", "checkpoint", *DERIVED):
        connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names
