"""A book moves to another store: its events are copied, and both are then shown to be equal.

Every event keeps its id, its stream, its revision, its data and its metadata, and all keep their
order. What is in the target already must be what the source begins with: so a copy that was
interrupted goes on, and no other book is ever added to. Until both are shown to be equal the target
says of itself that it is an unfinished copy, and vending does not sell on it.
"""

from collections.abc import Awaitable, Callable, Sequence

from services.common.kernel.errors import WattvendError
from services.common.kernel.values import value_class
from services.vending.application.importing import APPENDS_AT_ONCE_MAX, stored_in_order
from services.vending.application.relay import START, root_with
from services.vending.domain import chain
from services.vending.domain.event_store import FROM_START, EventStore, StoredEvent
from services.vending.domain.tables import Root

EVENTS_AT_ONCE_MAX = 5_000
Progress = Callable[[int, int], None]


class NotTheSame(WattvendError):  # noqa: N818 - says what was found
    """The target holds what the source does not."""


@value_class
class Equal:
    """What both stores are, event by event. `streams`: how many, each at the same revision."""

    source: Root
    target: Root
    streams: int
    positions_are_same: bool


async def copy_events(
    source: EventStore,
    target: EventStore,
    begin: Callable[[], Awaitable[None]],
    progress: Progress,
    appends_at_once_max: int = APPENDS_AT_ONCE_MAX,
) -> int:
    """Append to the target what it lacks of what the source has now; return how many events.

    `begin` is asked before the first of them, when the target is known to be this book's.
    `appends_at_once_max` is 1 where the target does not keep the order of appends that go at once.
    Raises NotTheSame where the target is not what the source begins with.
    """
    after, at, done, copied = FROM_START, FROM_START, 0, 0
    target_has_more, head = True, await source.head()
    while after < head and (events := await _next(source, after)):
        there = await _next(target, at, len(events)) if target_has_more else []
        _check_same(events, there)
        target_has_more = len(there) == len(events)
        if there:
            at = there[-1].position
        if len(there) < len(events) and not copied:
            await begin()
        async for group, _ in stored_in_order(target, events[len(there) :], appends_at_once_max):
            copied += len(group)
            progress(done + copied, source.count())
        done += len(there)
        progress(done + copied, source.count())
        after = events[-1].position
    if target_has_more and (more := await target.read_all(at, 1)):
        raise NotTheSame(
            f"the target holds {more[0].id}, of {more[0].stream}, behind all that the source "
            "holds: it is another book, or has been written to since"
        )
    return copied


async def compared(source: EventStore, target: EventStore, progress: Progress) -> Equal:
    """Read both stores from their beginnings to their ends. Raises NotTheSame where they differ."""
    one, other, streams = START, START, 0
    positions_are_same = True
    while events := await _next(source, one.position):
        there = await _next(target, other.position, len(events))
        _check_same(events, there)
        if len(there) < len(events):
            raise NotTheSame(f"the target ends before {events[len(there)].id} of the source")
        for here, copy in zip(events, there, strict=True):
            one = root_with(one, here, chain.stored_hash(here))
            other = root_with(other, copy, chain.stored_hash(copy))
            streams += here.revision == 0
            positions_are_same &= here.position == copy.position
        progress(one.count, source.count())
    if more := await target.read_all(other.position, 1):
        raise NotTheSame(f"the target holds {more[0].id}, which the source does not")
    assert (one.count, one.root) == (other.count, other.root), "equal events have one root"
    return Equal(one, other, streams, positions_are_same)


async def _next(
    store: EventStore, after: int, count: int = EVENTS_AT_ONCE_MAX
) -> list[StoredEvent]:
    """Return the next `count` events of a store: fewer only where it ends."""
    events: list[StoredEvent] = []
    while len(events) < count:
        more = await store.read_all(events[-1].position if events else after, count - len(events))
        if not more:
            break
        events += more
    return events


def _check_same(events: Sequence[StoredEvent], there: Sequence[StoredEvent]) -> None:
    for here, copy in zip(events, there, strict=False):
        if _said(here) != _said(copy):
            raise NotTheSame(
                f"the target holds {copy.id} ({copy.stream} revision {copy.revision}) where the "
                f"source holds {here.id} ({here.stream} revision {here.revision}): it is another "
                "book. Name an empty store, or one that a copy of this book was begun in"
            )


def _said(event: StoredEvent) -> tuple[object, ...]:
    return event.stream, event.revision, event.id, event.type, event.data, event.meta
