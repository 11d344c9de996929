"""The verifier: follows the whole book and names the first event that is not what was told.

Three kinds of evidence, each for what the one before cannot see:
1. Each event holds the hash of the one before it in its stream. That needs nothing beside the
   events, but says of two neighbours only that one of them is wrong, and nothing of the last one.
2. The relay keeps a link of every event it told (tables.Link). An event that differs from its link
   is named exactly: altered, deleted, inserted, or in another's place.
3. Checkpoints are signed. Whoever rewrites events, links and roots together cannot sign; then the
   events since the last checkpoint that holds are named, and the topic `ledger` names the first.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from services.common.kernel.values import value_class
from services.vending.application.ledger import Ledger, LedgerEvent
from services.vending.application.relay import (
    FIRST_BOOK_EPOCH,
    SCAN_EVENTS_MAX,
    START,
    link_of,
    root_with,
)
from services.vending.domain import chain
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    EventStore,
    StoredEvent,
    StreamId,
)
from services.vending.domain.tables import Checkpoint, Link, Root, Tables

BEFORE_ALL = -(2**62)
"""A position before any, also before those that no store gives."""


@value_class
class Fault:
    """The first event that is not what it was; where that is not known, the events among which.

    `until`: the last of those, else the same as `position`. `stream`, `revision`, `type`: as it
    was told, where it was.
    """

    position: int
    until: int
    stream: StreamId
    revision: int
    type: str
    what: str


@value_class
class Last:
    """The last event of a stream so far."""

    position: int
    revision: int
    type: str
    hash: bytes


class Lasts(Protocol):
    """The last event of every stream: more than may fit into memory."""

    def load(self, streams: Iterable[StreamId]) -> dict[StreamId, Last]:
        """Return those known of `streams`."""
        ...

    def save(self, lasts: dict[StreamId, Last]) -> None:
        """Keep them."""
        ...

    def count(self) -> int:
        """Return how many streams are known."""
        ...


class Witness(Protocol):
    """The keys whose signatures count; false without any."""

    def __bool__(self) -> bool: ...

    def vouch_for(self, checkpoint: Checkpoint) -> bool:
        """Say whether one of the keys signed the checkpoint as it is."""
        ...


@value_class
class Verdict:
    """What was found. `linked`: how many events have a link; `signed`: the last good signature."""

    fault: Fault | None
    root: Root
    streams: int
    linked: int
    checkpoints: int
    signed: Checkpoint | None


Progress = Callable[[int, int], None]
"""Told the position that was come to, and that of the end."""


async def verify(
    store: EventStore, tables: Tables, lasts: Lasts, keys: Witness, progress: Progress
) -> Verdict:
    """Follow the book up to its present end, in bounded memory. It may grow meanwhile."""
    # In this order: what is vouched for stands in the store before.
    checkpoints = await tables.checkpoints()
    linked_until = await tables.linked_until()
    walk = _Walk(store, tables, lasts, keys, checkpoints)
    fault = await walk.to_end(await store.head(), linked_until, progress)
    return Verdict(fault, walk.root, lasts.count(), walk.linked, walk.held, walk.signed)


async def compare(
    store: EventStore, ledger: Ledger, progress: Callable[[int], None]
) -> tuple[int, Fault | None]:
    """Return how many events stand in the book as they were told, and the first that does not."""
    count, events = 0, _all_of(store)
    event = await anext(events, None)
    async for told in ledger:
        if isinstance(told, Checkpoint):
            continue
        if not count:  # what stands before the first that ledger still has is not compared
            while event is not None and event.position < told.position:
                event = await anext(events, None)
        if event is None or event.position > told.position:
            return count, _told_fault(told, "it is gone")
        if event.position < told.position:
            return count, _fault_of(event, "it was inserted: ledger has nothing here")
        names = ("stream", "revision", "id", "type", "data", *(("meta",) if told.meta else ()))
        altered = [name for name in names if getattr(event, name) != getattr(told, name)]
        if altered:
            return count, _told_fault(told, f"its {' and '.join(altered)} differ from ledger's")
        count += 1
        if count % SCAN_EVENTS_MAX == 0:
            progress(told.position)
        event = await anext(events, None)
    return count, None


def first_of(here: Fault | None, differs: Fault | None) -> Fault | None:
    """Return the first of what the store says against itself and what ledger says against it.

    Events that were rewritten with their links are a span here, and perhaps not even that where
    another one behind them is named; ledger names each.
    """
    if here is None or differs is None:
        return here or differs
    is_before = here.until < differs.position
    is_the_same = here.position == here.until == differs.position
    return here if is_before or is_the_same else differs


async def _all_of(store: EventStore) -> AsyncIterator[StoredEvent]:
    position = FROM_START
    while events := await store.read_all(position, SCAN_EVENTS_MAX):
        position = events[-1].position
        for event in events:
            yield event


class _Walk:
    """The way through a book."""

    def __init__(
        self,
        store: EventStore,
        tables: Tables,
        lasts: Lasts,
        keys: Witness,
        checkpoints: Sequence[Checkpoint],
    ) -> None:
        self._store = store
        self._tables = tables
        self._lasts = lasts
        self._keys = keys
        self._checkpoints = iter(checkpoints)
        self._checkpoint = next(self._checkpoints, None)
        self._safe_until = FROM_START
        self._before_links: StoredEvent | None = None
        self._behind_links: StoredEvent | None = None
        """The first event, as long as the links have not begun; the first where they have ended."""
        self._unlinked: Fault | None = None
        """Said where nothing worse is found: events, not what tells of them, are what matters."""
        self.root = START
        self.linked = 0
        self.held = 0
        self.signed: Checkpoint | None = None

    async def to_end(self, head: int, linked_until: int, progress: Progress) -> Fault | None:
        """Return the first fault; None where there is none."""
        for hidden in await self._store.read_all(BEFORE_ALL, 1):
            if hidden.position <= FROM_START:
                return _fault_of(hidden, "it was inserted where nobody who follows the book looks")
        links = self._links(linked_until)
        link = await anext(links, None)
        async for events in self._batches(head):
            lasts = self._lasts.load({event.stream for event in events})
            for event in events:
                hash_ = chain.stored_hash(event)
                if link is not None and (self.linked or link.position <= event.position):
                    if link != link_of(event, hash_):
                        return await self._misfit(event, hash_, link)
                    self.linked += 1
                    self._before_links = None
                    link = await anext(links, None)
                elif link is None:
                    self._behind_links = self._behind_links or event
                else:
                    self._before_links = self._before_links or event
                fault = _stream_fault(event, lasts.get(event.stream)) or self._passed(event, hash_)
                if fault is not None:
                    return fault
                lasts[event.stream] = Last(event.position, event.revision, event.type, hash_)
            self._lasts.save(lasts)
            progress(self.root.position, head)
        if link is not None:
            return _gone(link, "it and all that came after it are gone: the end was cut off")
        return self._end_fault() or self._unlinked

    async def _batches(self, head: int) -> AsyncIterator[list[StoredEvent]]:
        position = FROM_START
        while position < head and (events := await self._store.read_all(position, SCAN_EVENTS_MAX)):
            position = events[-1].position
            yield [event for event in events if event.position <= head]

    async def _links(self, until: int) -> AsyncIterator[Link]:
        position = FROM_START
        while position < until and (links := await self._tables.links(position, SCAN_EVENTS_MAX)):
            position = links[-1].position
            for link in links:
                if link.position <= until:
                    yield link

    def _passed(self, event: StoredEvent, hash_: bytes) -> Fault | None:
        """Take an event into the root; return what a checkpoint there says against it."""
        before, self.root = self.root, root_with(self.root, event, hash_)
        while self._checkpoint is not None and self._checkpoint.root.position <= event.position:
            checkpoint = self._checkpoint
            there = self.root if checkpoint.root.position == event.position else before
            if wrong := self._against(checkpoint, there):
                return Fault(self._safe_until + 1, event.position, StreamId(""), -1, "", wrong)
            self._unlinked = self._unlinked or self._unlinked_before(checkpoint)
            self.held += 1
            if checkpoint.key_id or not self._keys:  # else who altered events wrote this one anew
                self._safe_until = event.position
            self._checkpoint = next(self._checkpoints, None)
        return None

    def _unlinked_before(self, checkpoint: Checkpoint) -> Fault | None:
        """Return the first event that must have a link, for a checkpoint tells of it.

        Releases that kept no links wrote no time; where links were lost with all that is beside the
        events (the index of a server's book) the checkpoints begin with them anew. In a raised book
        epoch the relay tells again what was told, and keeps no link where some stand behind it.
        """
        if not checkpoint.written_at_ms:
            self._before_links = self._behind_links = None
            return None
        unlinked = self._behind_links
        if unlinked is None and checkpoint.book_epoch == FIRST_BOOK_EPOCH:
            unlinked = self._before_links
        if unlinked is None:
            return None
        at = checkpoint.root.position
        return _fault_of(unlinked, f"its link is gone, though a checkpoint at {at} tells of it")

    def _against(self, checkpoint: Checkpoint, there: Root) -> str:
        """Return what a checkpoint proves to be wrong; "" where it holds."""
        at = f"the checkpoint at position {checkpoint.root.position}"
        if self._keys and (checkpoint.key_id or self.signed):
            if not checkpoint.key_id:
                return f"{at} is not signed, though earlier ones are: its signature was removed"
            if not self._keys.vouch_for(checkpoint):
                return (
                    f"{at} has no good signature of a known key ({checkpoint.key_id}): it was "
                    "altered, or WATTVEND_VENDING_PUBLIC_KEYS lacks its key"
                )
            self.signed = checkpoint
        if checkpoint.root != there:
            return (
                f"they do not come to the root that {at} has: one of them was altered together "
                "with all evidence of it in the store. `verify --ledger` says which"
            )
        return ""

    def _end_fault(self) -> Fault | None:
        if self._checkpoint is not None:
            until = self._checkpoint.root.position
            what = f"the end was cut off: a checkpoint at position {until} vouches for more"
            return Fault(self.root.position + 1, until, StreamId(""), -1, "", what)
        if self._keys and (self.held or self.linked) and self.signed is None:
            what = (
                "none of the checkpoints is signed, though keys are set: start vending once with "
                "its key, or signatures were removed"
            )
            if not self.held:
                what = (
                    "no checkpoint vouches for them, though they were told and keys are set: "
                    "checkpoints were removed, or vending never came to its first"
                )
            return Fault(FROM_START + 1, self.root.position, StreamId(""), -1, "", what)
        return None

    async def _misfit(self, event: StoredEvent, hash_: bytes, link: Link) -> Fault:
        """Say what became of the event that was told here."""
        if event.position > link.position:
            return _gone(link, "it is gone")
        if event.position < link.position:
            return _fault_of(event, "it was inserted: nothing was told here, or its link is gone")
        if event.id == link.id:
            names = ("stream", "revision", "type")
            altered = [name for name in names if getattr(event, name) != getattr(link, name)]
            what = " and ".join(altered) or "data or metadata"
            return _gone(link, f"its {what} was altered")
        told = await self._tables.link_of(event.id)
        if told is None:
            return await self._by_a_stranger(event, hash_, link)
        there = await self._store.event_at(told.position)
        if there is not None and there.id == link.id:
            return _gone(link, f"it was swapped with the event at position {told.position}")
        return _gone(link, "it is gone, and what came after it moved up")

    async def _by_a_stranger(self, event: StoredEvent, hash_: bytes, link: Link) -> Fault:
        """Say why an event of an id that was never told stands where one was told."""
        after = await self._store.read_all(event.position, 1)
        if after and after[0].id == link.id:
            return _fault_of(event, "it was inserted, and what came after it moved")
        if link == replace(link_of(event, hash_), id=link.id):
            return _gone(link, f"its id {link.id} was altered")
        return _gone(link, f"it is gone; in its place stands {event.id}, which was never told")


def _fault_of(event: StoredEvent, what: str) -> Fault:
    position = event.position
    return Fault(position, position, event.stream, event.revision, event.type, what)


def _told_fault(told: LedgerEvent, what: str) -> Fault:
    position = told.position
    return Fault(position, position, told.stream, told.revision, told.type, what)


def _gone(link: Link, what: str) -> Fault:
    return Fault(link.position, link.position, link.stream, link.revision, link.type, what)


def _stream_fault(event: StoredEvent, last: Last | None) -> Fault | None:
    """Return why an event does not continue its stream; None where it does."""
    try:
        prev = chain.prev_of(event.meta)
    except (ValueError, KeyError, TypeError):
        return _fault_of(event, "its metadata was altered: it cannot be read")
    if event.revision != (last.revision if last else NO_EVENTS) + 1:
        return _fault_of(event, "it does not come after the revision before it, which is gone")
    if prev == (last.hash if last else chain.GENESIS):
        return None
    if last is None:
        return _fault_of(event, "it does not begin its stream: its metadata was altered")
    return Fault(
        last.position,
        event.position,
        event.stream,
        last.revision,
        last.type,
        f"revision {event.revision}, at position {event.position}, does not continue it: "
        "one of the two was altered",
    )
