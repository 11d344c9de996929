"""The event store: append-only streams with one total order. A port.

Implementations: adapters.memory_store, adapters.sqlite_store. What each promises is in
tests/contract/event_store.py.
"""

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import NewType, Protocol
from uuid import UUID

from services.common.kernel.errors import Retriable, WattvendError
from services.common.kernel.values import value_class

StreamId = NewType("StreamId", str)

NO_EVENTS = -1
"""The revision of a stream without events: what the first append expects."""
FROM_START = 0
"""The position before the first event."""


@value_class
class NewEvent:
    """An event to append. `type` is the subject of `data`; `meta` is not the store's business."""

    id: UUID
    type: str
    data: bytes
    meta: bytes


@value_class
class StoredEvent:
    """An event in its place: `revision` dense from 0 within its stream, `position` increasing."""

    position: int
    stream: StreamId
    revision: int
    id: UUID
    type: str
    data: bytes
    meta: bytes


@value_class
class Appended:
    """Where the last event of an append stands."""

    position: int
    revision: int


class WrongRevision(Retriable):
    """The stream is not where the writer thought: load, decide again."""

    def __init__(self, stream: StreamId, expected: int, actual: int) -> None:
        super().__init__(f"{stream} is at revision {actual}, not {expected}")
        self.stream = stream
        self.expected = expected
        self.actual = actual


class EventExists(WattvendError):  # noqa: N818 - says what was found
    """An event of one of these ids is stored already."""


class NameTaken(WattvendError):  # noqa: N818 - says what was found
    """A name that must be unique in the store (a serial, a request) belongs to another stream."""

    def __init__(self, kind: str, name: str, owner: str) -> None:
        super().__init__(f"{kind} {name} belongs to {owner}")
        self.kind = kind
        self.name = name
        self.owner = owner


class StoreUnavailable(Retriable):
    """The store could not say whether it stored: read, then try again.

    Its message is for who runs the service: it may name the database, its host and user.
    """

    @property
    def told(self) -> str:
        """What a caller is told, which names none of these."""
        return "the event store does not answer; repeat with the same request_id"


class NotTheWriter(Retriable):
    """Another process has come to write this store: nothing is stored by this one any more."""


class StoreWentBack(WattvendError):  # noqa: N818 - says what was found
    """The store lost what it had told: it was restored, or a standby that was behind took over.

    Whoever follows the store ends with it: a start compares the store with what was published.
    """


class EventStore(Protocol):
    """Append-only streams with a total order."""

    def append(
        self, stream: StreamId, expected: int, events: Sequence[NewEvent]
    ) -> Awaitable[Appended]:
        """Append all of `events`, durably, if `stream` is at revision `expected`; else nothing.

        Raises WrongRevision; EventExists where an id is known; NameTaken; StoreUnavailable where
        the outcome is unknown; NotTheWriter; StoreWentBack.
        """
        ...

    async def check_writer(self) -> None:
        """Return where an append of this process could be stored now.

        Raises as an append: NotTheWriter; StoreWentBack; StoreUnavailable.
        """
        ...

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        """Return the events of `stream` above revision `after`, in order."""
        ...

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        """Return at most `limit` events above `after`, in the order of positions.

        `after` is the position of an event, or FROM_START: positions need not be dense, and what is
        one less than a position need not be one. Raises StoreWentBack.
        """
        ...

    async def event_at(self, position: int) -> StoredEvent | None:
        """Return the event at a position; None where none is."""
        ...

    async def head(self) -> int:
        """Return the position of the last event; FROM_START where there is none."""
        ...

    def count(self) -> int:
        """Return how many events are stored, as far as this process knows: for a measurement."""
        ...

    def subscribe_all(self, after: int) -> AsyncIterator[Sequence[StoredEvent]]:
        """Yield every event above position `after`, those to come too, and never end.

        What waits comes together, in order, nothing twice, nothing left out. Raises
        StoreUnavailable where the store is away: subscribe again from where you are.
        """
        ...
