"""The event store in memory: for tests, with the promises of the durable ones but durability."""

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence

from services.vending.adapters.following import Following
from services.vending.domain.event_store import (
    NO_EVENTS,
    Appended,
    EventExists,
    NewEvent,
    StoredEvent,
    StreamId,
    WrongRevision,
)


class MemoryEventStore:
    """services.vending.domain.event_store.EventStore that forgets."""

    def __init__(self) -> None:
        """Begin empty."""
        self._all: list[StoredEvent] = []
        self._streams: defaultdict[StreamId, list[StoredEvent]] = defaultdict(list)
        self._ids: set[bytes] = set()
        self._following = Following()

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        """Append at the expected revision."""
        assert events, "an append needs an event"
        actual = len(self._streams[stream]) - 1
        if actual != expected:
            raise WrongRevision(stream, expected, actual)
        ids = {event.id.bytes for event in events}
        if len(ids) < len(events) or ids & self._ids:
            raise EventExists(f"an event of {stream} is stored already")
        self._ids |= ids
        for revision, event in enumerate(events, expected + 1):
            stored = StoredEvent(
                len(self._all) + 1, stream, revision, event.id, event.type, event.data, event.meta
            )
            self._all.append(stored)
            self._streams[stream].append(stored)
        self._following.wake()
        return Appended(len(self._all), expected + len(events))

    async def check_writer(self) -> None:
        """Return: nobody else has it."""

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        """Return the stream's events above a revision."""
        return self._streams[stream][after + 1 :]

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        """Return at most `limit` events above a position."""
        return self._all[after : after + limit]

    async def event_at(self, position: int) -> StoredEvent | None:
        """Return the event at a position."""
        return self._all[position - 1] if 0 < position <= len(self._all) else None

    async def head(self) -> int:
        """Return the position of the last event."""
        return len(self._all)

    def count(self) -> int:
        """Return how many events are stored."""
        return len(self._all)

    def subscribe_all(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield events above a position, those to come too."""
        return self._following.follow(self.read_all, after)
