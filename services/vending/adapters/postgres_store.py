"""The event store on PostgreSQL: one writer process, group commit, one call a commit.

Appends gather while a commit runs and go into one transaction: a call of the function `append`
alone, or with the changes of the tables behind it. One that fails does not fail its neighbours: the
group is tried again without it, or one by one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self, cast

import asyncpg

from services.common.kernel.errors import WattvendError
from services.common.runtime import points
from services.common.runtime.postgres import UNREACHABLE
from services.vending.adapters.database import Change, Claim, Statement
from services.vending.adapters.following import Following
from services.vending.adapters.postgres_database import PostgresDatabase
from services.vending.adapters.tables import Projection, nothing
from services.vending.adapters.tables.unique_names import OWNER
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    EventExists,
    NameTaken,
    NewEvent,
    NotTheWriter,
    StoredEvent,
    StoreUnavailable,
    StoreWentBack,
    StreamId,
    WrongRevision,
)

APPENDS_PER_COMMIT_MAX = 512
APPENDS_WAITING_MAX = 20_000
CHECK_TIMEOUT_S = 5.0
"""A connection that was cut in silence is given up, and the lock taken again, after so long."""
POLL_S = 1.0
"""Whoever follows is woken by each append; so is found a commit that only seemed to have failed."""

_APPEND = "SELECT stored, head, actual FROM append($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_COLUMNS = "e.position, s.name, e.revision, e.id, e.type, e.data, e.meta"
_READ = (
    f"SELECT {_COLUMNS} FROM event e JOIN stream s ON s.id = e.stream "  # noqa: S608 - constants
    "WHERE e.stream = (SELECT id FROM stream WHERE name = $1) AND e.revision > $2 "
    "ORDER BY e.revision"
)
_READ_ALL = (
    f"SELECT {_COLUMNS} FROM event e JOIN stream s ON s.id = e.stream "  # noqa: S608 - constants
    "WHERE e.position > $1 ORDER BY e.position LIMIT $2"
)
_CLAIM_ALL = (
    "INSERT INTO unique_name(kind, name, owner) SELECT * FROM unnest($1::text[], $2::text[], "
    "$3::text[]) ON CONFLICT DO NOTHING RETURNING kind, name"
)


_ITS_OWN_FAULT = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    ValueError,
    NameTaken,
)
"""What an append brought about itself: nothing is stored, and the connection goes on."""
_OF_THE_STORE = (
    *UNREACHABLE,
    asyncpg.PostgresError,
    StoreUnavailable,
    NotTheWriter,
    StoreWentBack,
)
"""What all of a group have met, and the connection with them; the outcome may be unknown."""


@dataclass(slots=True)
class _Append:
    stream: StreamId
    expected: int
    events: Sequence[NewEvent]
    done: asyncio.Future[Appended]

    def fail(self, failed: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(failed)


class PostgresEventStore:
    """services.vending.domain.event_store.EventStore on a PostgresDatabase. Made by `opened`."""

    def __init__(self, database: PostgresDatabase, projection: Projection, head: int) -> None:
        """`head`: the position of the last event, as the store has it."""
        self._database = database
        self._projection = projection
        self._head = head
        self._told: StoredEvent | None = None
        self._lost: StoreWentBack | None = None
        self._connection: asyncpg.Connection | None = None
        self._statement: Any = None
        self._waiting: deque[_Append] = deque()
        self._running: asyncio.Task[None] | None = None
        self._following = Following()

    @classmethod
    async def opened(cls, database: PostgresDatabase, projection: Projection = nothing) -> Self:
        """Return the store; make the changes of `projection` within each append."""
        store = cls(database, projection, FROM_START)
        store._head = await store.head()
        store._told = await store.event_at(store._head)
        return store

    def append(
        self, stream: StreamId, expected: int, events: Sequence[NewEvent]
    ) -> asyncio.Future[Appended]:
        """Append durably at the expected revision."""
        assert events, "an append needs an event"
        append = _Append(stream, expected, events, asyncio.get_running_loop().create_future())
        if len(self._waiting) >= APPENDS_WAITING_MAX:
            append.fail(
                StoreUnavailable(
                    f"{APPENDS_WAITING_MAX} appends wait for PostgreSQL already; "
                    "try again in a moment"
                )
            )
            return append.done
        self._waiting.append(append)
        if self._running is None:
            self._running = asyncio.create_task(self._work(), name="postgres-writer")
        return append.done

    async def check_writer(self) -> None:
        """Hold the lock still, or take it again, as an append does."""
        if self._running is None:  # else what is appended meets whatever there is
            checking = asyncio.create_task(self._check(), name="postgres-check")
            self._running = asyncio.create_task(self._work(checking), name="postgres-writer")
            await checking

    async def drained(self) -> None:
        """Wait for what was begun."""
        while self._running is not None:
            await asyncio.wait([self._running])

    async def _work(self, checking: asyncio.Task[None] | None = None) -> None:
        """Commit what waits, when the connection is not needed for a look any more."""
        try:
            if checking is not None:
                await asyncio.wait([checking])
            while self._waiting:
                await self._commit(self._group())
        finally:
            self._running = None

    async def _check(self) -> None:
        try:
            connection = await self._writer()
            await connection.execute("SELECT 1", timeout=CHECK_TIMEOUT_S)
        except _OF_THE_STORE as failed:
            self._database.let_go()
            if isinstance(failed, WattvendError):
                raise
            raise self._database.explained(failed) from failed

    def _group(self) -> list[_Append]:
        """Take what goes into one commit, in the order in which it came.

        Of a stream more than one append only where the next continues the one before.
        """
        group: list[_Append] = []
        ends: dict[StreamId, int] = {}
        while self._waiting and len(group) < APPENDS_PER_COMMIT_MAX:
            append = self._waiting[0]
            if ends.setdefault(append.stream, append.expected) != append.expected:
                break
            ends[append.stream] += len(append.events)
            group.append(self._waiting.popleft())
        return group

    async def _commit(self, group: list[_Append]) -> None:
        """Store a group and answer it."""
        while group:
            stored = self._placed(group)
            try:
                refused = await self._store(group, stored)
            except Exception as failed:  # noqa: BLE001 - it is handed to whoever asked
                await self._answer_failed(group, failed)
                return
            if refused is None:
                points.point("committed")
                self._answer(group, stored)
                return
            standing = []
            for append in group:
                actual = refused.pop(append.stream, append.expected)  # only of a stream's first
                if actual == append.expected:
                    standing.append(append)
                else:
                    append.fail(WrongRevision(append.stream, append.expected, actual))
            group = standing

    async def _answer_failed(self, group: list[_Append], failed: Exception) -> None:
        its_own = isinstance(failed, _ITS_OWN_FAULT) or not isinstance(failed, _OF_THE_STORE)
        if its_own and len(group) > 1:
            for append in group:
                await self._commit([append])
        elif its_own:
            group[0].fail(self._refusal(group[0], failed))
        else:
            self._database.let_go()
            if not isinstance(failed, WattvendError):
                failed = self._database.explained(failed)
            for append in group:
                append.fail(failed)

    def _placed(self, group: Sequence[_Append]) -> list[StoredEvent]:
        """Return the group's events where they will stand."""
        position = self._head
        placed = []
        for append in group:
            for revision, event in enumerate(append.events, append.expected + 1):
                position += 1
                placed.append(
                    StoredEvent(
                        position,
                        append.stream,
                        revision,
                        event.id,
                        event.type,
                        event.data,
                        event.meta,
                    )
                )
        return placed

    async def _store(
        self, group: Sequence[_Append], stored: Sequence[StoredEvent]
    ) -> dict[StreamId, int] | None:
        """Store the events, durably; or nothing, and return at which revisions the streams are."""
        changes = [change for event in stored for change in self._projection(event)]
        connection = await self._writer()
        if not changes:
            return await self._call(group, stored)
        async with connection.transaction():
            refused = await self._call(group, stored)
            if refused is None:
                await _make(connection, changes)
                points.point("written")
        return refused

    async def _call(
        self, group: Sequence[_Append], stored: Sequence[StoredEvent]
    ) -> dict[StreamId, int] | None:
        expected: dict[StreamId, int] = {}
        for append in group:
            expected.setdefault(append.stream, append.expected)
        nth = {stream: number for number, stream in enumerate(expected, 1)}
        answer = await self._statement.fetchrow(
            self._head,
            list(expected),
            list(expected.values()),
            [nth[event.stream] for event in stored],
            [event.revision for event in stored],
            [event.id for event in stored],
            [event.type for event in stored],
            [event.meta for event in stored],
            [event.data for event in stored],
        )
        if answer["stored"]:
            return None
        self._head = answer["head"]
        return dict(zip(expected, answer["actual"], strict=True))

    async def _writer(self) -> asyncpg.Connection:
        """Return the connection that writes. Raises StoreWentBack where it knows less than we."""
        connection = await self._database.writer()
        if connection is not self._connection:
            if (last := self._told) is not None:
                there = await connection.fetchval(
                    "SELECT id FROM event WHERE position = $1", last.position
                )
                if there != last.id:
                    self._lost = StoreWentBack(
                        f"PostgreSQL has lost event {last.id} at position {last.position}, which "
                        "it had told: it was restored to an earlier point, or a standby that was "
                        "behind took over"
                    )
                    raise self._lost
            self._statement = await connection.prepare(_APPEND)
            self._connection = connection
        return connection

    def _answer(self, group: Sequence[_Append], stored: Sequence[StoredEvent]) -> None:
        self._following.stored(stored)
        self._told = stored[-1]
        position = self._head
        self._head = stored[-1].position
        for append in group:
            position += len(append.events)
            if not append.done.done():
                append.done.set_result(Appended(position, append.expected + len(append.events)))
        self._following.wake()

    def _refusal(self, append: _Append, failed: Exception) -> Exception:
        if isinstance(failed, asyncpg.UniqueViolationError):
            if failed.constraint_name == "event_id":
                return EventExists(f"an event of {append.stream} is stored already")
            return self._database.explained(failed)  # somebody else has written
        return failed

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        """Return the stream's events above a revision."""
        return [_event(row) for row in await self._database.rows(_READ, stream, after)]

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        """Return at most `limit` events above a position."""
        if self._lost is not None:
            raise self._lost
        newest = self._following.newest(after, limit)
        if newest is not None:
            return newest
        found = [_event(row) for row in await self._database.rows(_READ_ALL, after, limit)]
        if found and (self._told is None or self._told.position < found[-1].position):
            self._told = found[-1]  # also where its append had no answer
        return found

    async def event_at(self, position: int) -> StoredEvent | None:
        """Return the event at a position: positions are dense."""
        found = await self.read_all(position - 1, 1)
        return found[0] if found and found[0].position == position else None

    async def head(self) -> int:
        """Return the position of the last event."""
        rows = await self._database.rows("SELECT coalesce(max(position), 0) FROM event")
        return int(rows[0][0])

    def count(self) -> int:
        """Return how many events are stored: positions are dense."""
        return self._head

    def subscribe_all(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield events above a position, those to come too. Raises StoreUnavailable."""
        return self._following.follow(self.read_all, after, poll_s=POLL_S)


async def _make(connection: asyncpg.Connection, changes: Sequence[Change]) -> None:
    """Make changes in the transaction that is open. Raises NameTaken."""
    for kind, run in groupby(changes, type):
        if kind is Claim:  # many accounts that open share a round trip
            await _claim(connection, cast("list[Claim]", list(run)))
        else:
            for statement in cast("Iterator[Statement]", run):
                await connection.executemany(statement.sql, statement.rows)


async def _claim(connection: asyncpg.Connection, claims: Sequence[Claim]) -> None:
    columns = ([c.kind for c in claims], [c.name for c in claims], [c.owner for c in claims])
    taken = {tuple(row) for row in await connection.fetch(_CLAIM_ALL, *columns)}
    for claim in claims:
        if (claim.kind, claim.name) not in taken:
            owner = await connection.fetchval(OWNER, claim.kind, claim.name)
            raise NameTaken(claim.kind, claim.name, owner)
        taken.remove((claim.kind, claim.name))


def _event(row: Any) -> StoredEvent:
    return StoredEvent(*row)
