"""The audit trail: who did what, when, from where, by whose approval, read from the book itself."""

from collections.abc import AsyncIterator
from typing import Any

from services.common.kernel.errors import WattvendError
from services.common.kernel.values import value_class
from services.vending.application.relay import SCAN_EVENTS_MAX
from services.vending.application.stored import event_of
from services.vending.domain.event_store import FROM_START, EventStore, StoredEvent, StreamId
from services.vending.domain.origin import Origin
from services.vending.domain.tables import Tables

MARGIN_MS = 3_600_000
"""Events and checkpoints are timed by one clock, which may be set back by so much."""
_OF_THE_REQUEST = ("caller", "request_id", "fingerprint", "occurred_at_ms")


@value_class
class Sought:
    """What an auditor looks for; "" and None: whatever it is.

    `caller` is that of the origin or, of events that have none, of the event. `since_ms` and
    `until_ms`: of `occurred_at_ms`, the first included, the last not.
    """

    stream: str = ""
    caller: str = ""
    actor: str = ""
    approved_by: str = ""
    type: str = ""
    since_ms: int | None = None
    until_ms: int | None = None

    def has(self, entry: "Entry") -> bool:
        """Say whether an entry is one of those."""
        return (
            self.stream in ("", entry.stream)
            and self.caller in ("", entry.origin.caller)
            and self.actor in ("", entry.origin.actor)
            and self.approved_by in ("", entry.origin.approved_by)
            and self.type in ("", entry.type)
            and (self.since_ms is None or entry.at_ms >= self.since_ms)
            and (self.until_ms is None or entry.at_ms < self.until_ms)
        )


@value_class
class Entry:
    """An event, as an auditor reads it. `said`: what it says beside who asked for it and when."""

    position: int
    at_ms: int
    stream: StreamId
    revision: int
    type: str
    request_id: str
    origin: Origin
    said: dict[str, Any]


def entry_of(stored: StoredEvent) -> Entry:
    """Return the entry of an event. Events without an origin have their caller."""
    event = event_of(stored)
    origin = event.origin if event.origin.caller else Origin(event.caller)
    said = {name: value for name, value in event.record().items() if name not in _OF_THE_REQUEST}
    return Entry(
        stored.position,
        event.occurred_at_ms,
        stored.stream,
        stored.revision,
        stored.type,
        event.request_id,
        origin,
        said,
    )


async def trail(
    store: EventStore, tables: Tables, sought: Sought, after: int
) -> AsyncIterator[Entry]:
    """Yield the entries above a position that are sought, in the order of the book, up to now.

    Raises WattvendError where nothing stands at that position: stores differ in what they say then.
    """
    if after > FROM_START and await store.event_at(after) is None:
        raise WattvendError(f"no event stands at position {after}: give one that the trail has")
    async for stored in _candidates(store, tables, sought, after):
        if sought.type in ("", stored.type) and sought.has(entry := entry_of(stored)):
            yield entry


async def _candidates(
    store: EventStore, tables: Tables, sought: Sought, after: int
) -> AsyncIterator[StoredEvent]:
    """Yield events among which are all that are sought: of the stream, or about of the time."""
    if sought.stream:
        for stored in await store.read(StreamId(sought.stream)):
            if stored.position > after:
                yield stored
        return
    begin, end = await _bounds(tables, sought)
    position, head = max(after, begin), await store.head()
    while position < head and (events := await store.read_all(position, SCAN_EVENTS_MAX)):
        position = events[-1].position
        for stored in events:
            yield stored
        if end is not None and position >= end:
            return


async def _bounds(tables: Tables, sought: Sought) -> tuple[int, int | None]:
    """Return above which position the time that is sought begins, and by which it is over.

    What came after a checkpoint was decided after it, and what came before it before: so all
    before the first must be earlier, and all from the last on later. One alone says nothing, for
    the clock may have been wrong for a while.
    """
    kept = await tables.checkpoints()
    begin, end = FROM_START, None
    since_ms, until_ms = sought.since_ms, sought.until_ms
    for checkpoint in kept:
        if since_ms is None or checkpoint.written_at_ms + MARGIN_MS >= since_ms:
            break
        begin = checkpoint.root.position
    for checkpoint in reversed(kept):
        if until_ms is None or checkpoint.written_at_ms - MARGIN_MS <= until_ms:
            break
        end = checkpoint.root.position
    return begin, end
