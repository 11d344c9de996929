"""The event store on EventStoreDB or KurrentDB, through `kurrentdbclient`.

An append is one BatchAppend at the exact revision; a position is the event's commit position:
increasing, not dense. The server knows an event id again only where it repeats the very append (it
answers success), so unique ids and names are kept beside it: adapters.indexed_store.

The client tries a failed call again by itself, within our bound: with the ids that we chose and an
exact revision that stores nothing twice. What is unknown after that is StoreUnavailable.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import grpc
import structlog
from kurrentdbclient import AsyncKurrentDBClient, RecordedEvent, StreamState
from kurrentdbclient import NewEvent as ProposedEvent
from kurrentdbclient.exceptions import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidCommitPositionError,
    KurrentDBClientError,
    MaximumAppendSizeExceededError,
    NotFoundError,
    UnauthenticatedError,
    UnknownError,
    WrongCurrentVersionError,
)

from services.common.kernel.errors import WattvendError
from services.common.kernel.values import value_class
from services.vending.adapters.following import Following
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    NewEvent,
    StoredEvent,
    StoreUnavailable,
    StoreWentBack,
    StreamId,
    WrongRevision,
)

READ_PAUSES_S = (0.1, 0.4, 1.0)
"""A read that failed is tried again after these: a lost connection costs nobody a sale."""
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 5.0
NO_POSITION = "ReadAllResult"
"""In the server's words for a position at which no record begins, before it had a name for it."""

_FINAL = (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidCommitPositionError,
    TimeoutError,
    UnauthenticatedError,
)
"""A read that fails so is not tried again."""
_FAILED = (KurrentDBClientError, grpc.RpcError, grpc.aio.UsageError, TimeoutError)

T = TypeVar("T")


@value_class
class Bounds:
    """How long things may take, in seconds."""

    attempt_s: float = 2.5
    append_s: float = 5.0
    read_s: float = 30.0
    poll_s: float = 1.0

    @property
    def settled_s(self) -> float:
        """So long after it began an append is stored, or never will be.

        The last attempt begins within `append_s` and carries `attempt_s` as its deadline, at which
        the server drops what it has not begun to write.
        """
        return self.append_s + self.attempt_s


class KurrentEventStore:
    """A book's streams on a server: EventStore without unique ids and names.

    Its streams have a prefix, so that a server can hold more than one book, and system streams
    (`$...`) and those of others are never seen.
    """

    def __init__(
        self,
        client: AsyncKurrentDBClient,
        prefix: str,
        log: structlog.stdlib.BoundLogger,
        bounds: Bounds,
    ) -> None:
        """Use `client`, which its owner closes."""
        self._client = client
        self._prefix = prefix
        self._log = log
        self.bounds = bounds
        self._following = Following()
        self._lost: StoreWentBack | None = None
        self._filter: dict[str, Any] = {
            "filter_include": (self._prefix,),
            "filter_by_stream_name": True,
            "filter_by_prefix": True,
        }

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        """Append at the expected revision. The same append again is answered as the first time."""
        assert events, "an append needs an event"
        if self._lost is not None:
            raise self._lost
        proposed = [
            ProposedEvent(e.type, e.data, e.meta, "application/octet-stream", e.id) for e in events
        ]
        try:
            async with _own_cancellation(), asyncio.timeout(self.bounds.append_s):
                position = await self._client.append_to_stream(
                    self._prefix + stream,
                    events=proposed,
                    current_version=StreamState.NO_STREAM if expected == NO_EVENTS else expected,
                    timeout=self.bounds.attempt_s,
                )
        except WrongCurrentVersionError as wrong:
            actual = wrong.actual_version
            raise WrongRevision(
                stream, expected, actual if isinstance(actual, int) else NO_EVENTS
            ) from wrong
        except MaximumAppendSizeExceededError as large:
            raise WattvendError(
                f"{len(events)} events for {stream} are more than the event store takes at once "
                f"({large}): raise its setting MaxAppendSize"
            ) from large
        except _FAILED as failed:
            raise _unavailable(failed) from failed
        return Appended(position, expected + len(events))

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        """Return the stream's events above a revision."""

        async def read() -> list[StoredEvent]:
            try:
                return await self._drained(
                    self._client.read_stream(
                        self._prefix + stream,
                        stream_position=after + 1,
                        timeout=self.bounds.read_s,
                    )
                )
            except NotFoundError:
                return []

        return await _patiently(read)

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        """Return at most `limit` events above a position: that of an event, or FROM_START."""
        if self._lost is not None:
            raise self._lost
        if after <= FROM_START:
            return await self._read_from(FROM_START, limit)
        for pause_s in (
            0.0,
            *READ_PAUSES_S,
        ):  # a server that has just begun may know it in a moment
            await asyncio.sleep(pause_s)
            found = await self._read_from(after, limit + 1)
            if found and found[0].position == after:
                return found[1:]
        raise self.went_back(f"it has no event at position {after} any more")

    def went_back(self, why: str) -> StoreWentBack:
        """Let nobody follow the store any further; return what they are told."""
        self._lost = StoreWentBack(f"the event store was restored to an earlier point: {why}")
        return self._lost

    async def event_at(self, position: int) -> StoredEvent | None:
        """Return the event at a position; None where none is."""
        found = await self._read_from(position, 1)
        return found[0] if found and found[0].position == position else None

    async def head(self) -> int:
        """Return the position of the last event."""
        last = await _patiently(
            lambda: self._drained(
                self._client.read_all(
                    backwards=True, limit=1, timeout=self.bounds.read_s, **self._filter
                )
            )
        )
        return last[0].position if last else FROM_START

    async def _read_from(self, position: int, limit: int) -> list[StoredEvent]:
        """Return events at and above a position: the server counts it in. None where it is none."""

        async def read() -> list[StoredEvent]:
            return await self._drained(
                self._client.read_all(
                    commit_position=None if position <= FROM_START else position,
                    limit=limit,
                    timeout=self.bounds.read_s,
                    **self._filter,
                )
            )

        try:
            return await _patiently(read)
        except StoreUnavailable as failed:
            if _is_no_position(failed.__cause__):
                return []
            raise

    async def _drained(self, reading: Awaitable[Any]) -> list[StoredEvent]:
        """Return all of a read. Its failure is known only when the client has let go of it."""
        async with asyncio.timeout(self.bounds.read_s):
            async with await reading as events:
                found = [self._stored(event) async for event in events]
        return found

    def _stored(self, event: RecordedEvent) -> StoredEvent:
        assert event.stream_name.startswith(self._prefix), "the server filters other streams"
        return StoredEvent(
            event.commit_position,
            StreamId(event.stream_name.removeprefix(self._prefix)),
            event.stream_position,
            event.id,
            event.type,
            event.data,
            event.metadata,
        )

    async def subscribe_all(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield events above a position, those to come too; never end, whatever the server does.

        Its subscription only says that there is more; what, is read, in the log's own order:
        subscriptions of several releases stalled, or skipped or repeated events where they change
        from the past to the present (KurrentDB's issues 2544, 2704, 3491, 3532).
        """
        bell = asyncio.create_task(self._ring(), name="kurrent-subscription")
        try:
            following = self._following.follow(self._insist, after, poll_s=self.bounds.poll_s)
            async with contextlib.aclosing(following) as batches:
                async for events in batches:
                    yield events
        finally:
            bell.cancel()
            await asyncio.gather(bell, return_exceptions=True)

    async def _ring(self) -> None:
        """Wake who follows at each event, and whenever some may have been missed; never return."""
        pause_s = RETRY_FIRST_S
        while True:
            why = "it ended"
            try:
                async with (
                    _own_cancellation(),
                    await self._client.subscribe_to_all(from_end=True, **self._filter) as events,
                ):
                    self._following.wake()
                    async for _ in events:
                        self._following.wake()
                        pause_s = RETRY_FIRST_S
            except (*_FAILED, StoreUnavailable) as failed:
                why = str(failed) or type(failed).__name__
            self._log.warning("the event store is subscribed to again", why=why, after_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)

    async def _insist(self, after: int, limit: int) -> list[StoredEvent]:
        """Read all above a position, also where that takes until the server is back."""
        pause_s = RETRY_FIRST_S
        while True:
            try:
                return await self.read_all(after, limit)
            except StoreUnavailable as away:
                self._log.warning("the event store is read again", why=str(away), after_s=pause_s)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_MAX_S)


@contextlib.asynccontextmanager
async def _own_cancellation() -> AsyncIterator[None]:
    """Turn a cancellation that is not ours into a failure: grpc raises it where a channel closes.

    The client closes its channel when another of its calls reconnects.
    """
    try:
        yield
    except asyncio.CancelledError as cancelled:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise StoreUnavailable("the connection to the event store was closed") from cancelled


async def _patiently(read: Callable[[], Awaitable[T]]) -> T:
    """Read, and where that fails read again a few times. Raises StoreUnavailable."""
    for pause_s in READ_PAUSES_S:
        try:
            async with _own_cancellation():
                return await read()
        except (*_FAILED, StoreUnavailable) as failed:
            if isinstance(failed, _FINAL) or _is_no_position(failed):
                raise _unavailable(failed) from failed
        await asyncio.sleep(pause_s)
    try:
        async with _own_cancellation():
            return await read()
    except _FAILED as failed:
        raise _unavailable(failed) from failed


def _is_no_position(failed: BaseException | None) -> bool:
    return isinstance(failed, InvalidCommitPositionError) or (
        isinstance(failed, UnknownError) and NO_POSITION in str(failed)
    )


def _unavailable(failed: Exception) -> StoreUnavailable:
    why = str(failed) or type(failed).__name__
    return StoreUnavailable(f"the event store did not answer ({why}): it is tried again")
