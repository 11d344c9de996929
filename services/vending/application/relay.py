"""The relay: the event store is the outbox; everything that happened is published from it.

Of each batch `ledger` comes first, then the facts on `shard-log`, then the `registry`, each
acknowledged before the next: what the registry routes never comes before its fact in the shard.
A checkpoint in `ledger` says up to where everything is acknowledged; after a restart the relay
publishes again from there. Facts are absolute and every record's identity derives from its event,
so twice is once.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Retriable, WattvendError
from services.common.kernel.ids import name_uuid
from services.common.kernel.values import value_class
from services.common.runtime import codec, points
from services.common.runtime.kafka import Outgoing
from services.vending.application.book import Decided
from services.vending.application.numbering import Numbering
from services.vending.application.stored import event_of
from services.vending.domain import chain
from services.vending.domain.event_store import FROM_START, EventStore, StoredEvent, StreamId
from services.vending.domain.events.event import Event
from services.vending.domain.facts import Fact, Told, fact_of
from services.vending.domain.streams import State, entity_of, evolve_of
from services.vending.domain.tables import Checkpoint, Link, Root, Tables
from services.vending.domain.tariff import Tariff
from services.vending.metrics import Metrics

STATES_MAX = 20_000
SCAN_EVENTS_MAX = 5_000
RETRY_S = 1.0
PACE_S = 0.050
"""Batches begin at least so far apart: under load they are large, and cost less an event."""
EVENTS_IN_A_ROW = 16
FIRST_BOOK_EPOCH = 1
WHAT_TO_DO = (
    "Commands are refused, so that nothing is sold twice or lost. Give vending the event "
    "store that wrote it; or, on a copy of it, run `python -m services.vending import-ledger`, "
    "which brings back what it lacks. If ledger is lost too, run `raise-book-epoch` and start "
    "again: this store becomes the truth"
)
CHECKPOINT_KEY = "checkpoint"
CHECKPOINT_PARTITION = 0
START = Root(FROM_START, 0, chain.GENESIS)


class Publisher(Protocol):
    """Where records go."""

    async def publish(self, records: Sequence[Outgoing]) -> None:
        """Return when every record is acknowledged. Raises Retriable where that failed."""
        ...


@value_class
class ToldEvent:
    """An event that `ledger` has."""

    book_epoch: int
    position: int
    event_id: UUID

    def is_above(self, checkpoint: Checkpoint | None) -> bool:
        """Say whether it was told after a checkpoint; where there is none every event was."""
        if checkpoint is None:
            return True
        said = (checkpoint.book_epoch, checkpoint.root.position)
        return (self.book_epoch, self.position) > said


class BookMismatch(WattvendError):  # noqa: N818 - says what was found
    """`ledger` and the store tell different stories: a person must decide."""


async def beginning(
    store: EventStore, tables: Tables, checkpoint: Checkpoint | None, book_epoch: int
) -> Root:
    """Return where the relay begins. Raises BookMismatch where the store is not what it was.

    Under a raised book epoch everything is published anew, from the start.
    """
    raised_at = await tables.raised_at()
    if raised_at != FROM_START and await store.event_at(raised_at) is None:
        raise BookMismatch(
            f"the book epoch was raised behind position {raised_at}, which this event store does "
            f"not have any more: it lost its last events. {WHAT_TO_DO}"
        )
    if checkpoint is None or checkpoint.book_epoch < book_epoch:
        return START
    if checkpoint.book_epoch > book_epoch:
        raise BookMismatch(
            f"ledger's last checkpoint is of book epoch {checkpoint.book_epoch}, this event store "
            f"is of {book_epoch}. {WHAT_TO_DO}"
        )
    told = checkpoint.root
    if await store.event_at(told.position) is None:
        raise BookMismatch(
            f"ledger's last checkpoint is at position {told.position}, which this event store does "
            f"not have: it was restored to an earlier point, or is another one. {WHAT_TO_DO}"
        )
    if (await tables.root_at(told.position) or await _read_on(store, tables, told)) != told:
        raise BookMismatch(
            f"the hash chain at position {told.position} is not the one that ledger's last "
            f"checkpoint has: this is another event store, or it was altered. {WHAT_TO_DO}"
        )
    return told


async def check_told(store: EventStore, told: Iterable[ToldEvent], book_epoch: int) -> None:
    """Raise BookMismatch where `ledger` has what the store does not: it lost its last events.

    Without this a restart within a checkpoint's interval, on a copy of a moment ago or on a disk
    that lied, would give other events the positions and revisions that consumers have seen.
    """
    for event in told:
        if event.book_epoch < book_epoch:
            continue
        there = await store.event_at(event.position)
        if event.book_epoch > book_epoch or there is None or there.id != event.event_id:
            raise BookMismatch(
                f"ledger has event {event.event_id} of book epoch {event.book_epoch} at position "
                f"{event.position}, and this event store (of book epoch {book_epoch}) has not: it "
                f"was restored to an earlier point, or lost its last writes. {WHAT_TO_DO}"
            )


async def root_at(store: EventStore, position: int, root: Root = START) -> Root:
    """Return the root of the chain over the store up to `position`, by reading on from `root`."""
    while root.position < position:
        events = await store.read_all(root.position, SCAN_EVENTS_MAX)
        root = _root_after(root, [event for event in events if event.position <= position])
        if not events or events[-1].position >= position:
            break
    return root


async def _read_on(store: EventStore, tables: Tables, told: Root) -> Root:
    """Return the root where one was told of and none is kept, from the last kept one before it."""
    kept = [c.root for c in await tables.checkpoints() if c.root.position < told.position]
    return await root_at(store, told.position, kept[-1] if kept else START)


def _root_after(root: Root, events: Iterable[StoredEvent]) -> Root:
    for event in events:
        root = root_with(root, event, chain.stored_hash(event))
    return root


def link_of(event: StoredEvent, hash_: bytes) -> Link:
    """Return the link of an event in the chain over the store; `hash_`: its stored_hash."""
    return Link(event.position, event.stream, event.revision, event.id, event.type, hash_)


def root_with(root: Root, event: StoredEvent, hash_: bytes) -> Root:
    """Return the root after one more event; `hash_`: its stored_hash."""
    return Root(event.position, root.count + 1, chain.next_root(root.root, event.id, hash_))


class Relay:
    """Publishes the store. One a book; `run` and `keep_checkpoints` run beside each other."""

    def __init__(
        self,
        store: EventStore,
        tables: Tables,
        publisher: Publisher,
        *,
        clock: Clock,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
        begin: Root,
        book_epoch: int,
        shards: int,
        decided: Callable[[UUID], Decided | None] = lambda _: None,
        signed: Callable[[Checkpoint], Checkpoint] = lambda unsigned: unsigned,
    ) -> None:
        """Begin after `begin`. `decided`: what the book knows of an event that is new."""
        self._store = store
        self._tables = tables
        self._publisher = publisher
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._root = begin
        self._book_epoch = book_epoch
        self._shards = shards
        self._decided = decided
        self._signed = signed
        self._states: OrderedDict[StreamId, State] = OrderedDict()
        self._told = begin if begin.position else None
        self._newest: dict[StreamId, int] = {}
        self._raised_at = FROM_START
        self._linked_until = FROM_START
        self._numbering = Numbering(store, tables)
        self._moved = asyncio.Event()

    @property
    def position(self) -> int:
        """Up to where everything is acknowledged on all topics."""
        return self._root.position

    @property
    def count(self) -> int:
        """How many events that is."""
        return self._root.count

    async def run(self) -> None:
        """Publish what was and what comes, until cancelled. What fails is tried again."""
        while True:
            try:
                self._raised_at = await self._tables.raised_at()
                await self._find_newest(self._raised_at)
                self._linked_until = await self._tables.linked_until()
                await self._numbering.catch_up(self._root.position)
                async for events in self._store.subscribe_all(self._root.position):
                    next_s = asyncio.get_running_loop().time() + PACE_S
                    await self._publish(events)
                    await asyncio.sleep(next_s - asyncio.get_running_loop().time())
            except Retriable as failed:
                self._log.warning("the relay tries again", why=str(failed), after_s=RETRY_S)
                await asyncio.sleep(RETRY_S)

    async def _find_newest(self, raised_at: int) -> None:
        """Of what happened before the book epoch was raised only the newest fact is published.

        Older ones would come with a version above what consumers know, and undo it for a while:
        also where the relay was interrupted on its way through them.
        """
        position = self._root.position
        while position < raised_at:
            events = await self._store.read_all(position, SCAN_EVENTS_MAX)
            position = events[-1].position
            self._newest |= {e.stream: e.revision for e in events if e.position <= raised_at}

    def _is_told_everywhere(self, stored: StoredEvent) -> bool:
        """Say whether shards may know of the stream what the book does not: it was restored."""
        is_of_before = stored.position <= self._raised_at
        return self._book_epoch > FIRST_BOOK_EPOCH and (is_of_before or stored.revision == 0)

    async def _publish(self, batch: Sequence[StoredEvent]) -> None:
        ledger: list[Outgoing] = []
        facts: list[tuple[Outgoing, Fact, bytes]] = []
        links: list[Link] = []
        papers: list[tuple[StoredEvent, Event]] = []
        root = self._root
        for number, stored in enumerate(batch):
            if number % EVENTS_IN_A_ROW == 0:
                await asyncio.sleep(0)  # sales are answered on this loop too
            event, state, hash_ = await self._decided_of(stored)
            ledger.append(self._ledger_event(stored, event, root))
            newest = stored.revision >= self._newest.get(stored.stream, 0)
            if isinstance(state, Told) and (newest or isinstance(state, Tariff)):
                fact = fact_of(
                    state,
                    book_epoch=self._book_epoch,
                    shards=self._shards,
                    everywhere=self._is_told_everywhere(stored),
                )
                facts.append((ledger[-1], fact, codec.encode(fact.subject, fact.record)))
            if stored.position > self._linked_until:  # else it was told before
                links.append(link_of(stored, hash_))
            papers.append((stored, event))
            root = root_with(root, stored, hash_)
        kept = await asyncio.gather(  # beside each other: one commit has both
            self._numbering.give(papers, root.position),
            self._keep(links),
            return_exceptions=True,  # neither goes on when the other failed and is tried again
        )
        for failed in kept:
            if failed is not None:
                raise failed
        points.point("linked")
        await self._publisher.publish(ledger)
        points.point("ledger-published")
        await self._publisher.publish([out for told in facts for out in _to_shards(*told)])
        points.point("shards-published")
        await self._publisher.publish([_to_registry(*told) for told in facts])
        points.point("registry-published")
        self._root = root
        self._metrics.relay_position.set(root.position)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def _keep(self, links: Sequence[Link]) -> None:
        if links:
            await self._tables.keep_links(links)
            self._linked_until = links[-1].position

    async def _decided_of(self, stored: StoredEvent) -> Decided:
        decided = self._decided(stored.id)
        if decided is None:
            event = event_of(stored)
            state = await self._state_after(stored, event)
            decided = event, state, chain.stored_hash(stored)
        stream = stored.stream
        self._states[stream] = decided[1]
        self._states.move_to_end(stream)
        if len(self._states) > STATES_MAX:
            self._states.popitem(last=False)
        return decided

    async def _state_after(self, stored: StoredEvent, event: Event) -> State:
        stream = stored.stream
        evolve = evolve_of(stream)
        before = self._states.get(stream)
        if before is not None and before.answers.revision >= stored.revision:
            before = None  # published before, and now again after a failure
        if before is None:
            for earlier in await self._store.read(stream):
                if earlier.revision == stored.revision:
                    break
                before = evolve(before, event_of(earlier))
        after = evolve(before, event)
        assert after.answers.revision == stored.revision, f"{stream}: a revision is missing"
        return after

    def _ledger_event(self, stored: StoredEvent, event: Event, before: Root) -> Outgoing:
        kind, entity_id = entity_of(stored.stream)
        _, _, data_version = chain.schema_of(stored.meta).partition("/")
        return Outgoing(
            "ledger",
            "ledger-event",
            {
                "position": stored.position,
                "stream": stored.stream,
                "revision": stored.revision,
                "book_epoch": self._book_epoch,
                "event_id": str(stored.id),
                "type": stored.type,
                "data_version": int(data_version),
                "data": stored.data,
                "occurred_at_ms": event.occurred_at_ms,
                "caller": event.caller,
                "request_id": event.request_id,
                "previous_hash": before.root,
                "meta": stored.meta,
            },
            key=stored.stream,
            event_id=stored.id,
            occurred_at_ms=event.occurred_at_ms,
            causation_id=event.request_id,
            route=entity_id if kind == "account" else stored.stream,
        )

    async def keep_checkpoints(self, interval_ms: int) -> None:
        """Write a checkpoint each interval while the relay moves, until cancelled."""
        while True:
            moved = self._moved
            try:
                await self.checkpoint()
                await moved.wait()
            except Retriable as failed:
                self._log.warning("the checkpoint is tried again", why=str(failed))
            await asyncio.sleep(interval_ms / 1000)

    async def checkpoint(self) -> None:
        """Write how far everything is acknowledged, unless that was written already."""
        root = self._root
        if root in (self._told, START):
            return
        written_at_ms = self._clock.now_ms()
        checkpoint = self._signed(Checkpoint(self._book_epoch, root, written_at_ms))
        await self._tables.keep_checkpoint(checkpoint)
        points.point("root-kept")
        await self._publisher.publish([checkpoint_record(checkpoint)])
        points.point("checkpointed")
        self._told = root

    async def reached(self, position: int) -> None:
        """Wait until everything up to a position is acknowledged."""
        while self.position < position:
            moved = self._moved
            await moved.wait()

    async def caught_up(self) -> None:
        """Wait until everything that is stored now is acknowledged."""
        while await self._store.read_all(self.position, 1):
            moved = self._moved
            await moved.wait()


def checkpoint_record(checkpoint: Checkpoint) -> Outgoing:
    """Return what `ledger` is told of a checkpoint."""
    root = checkpoint.root
    record = {
        "book_epoch": checkpoint.book_epoch,
        "position": root.position,
        "count": root.count,
        "root": root.root,
        "written_at_ms": checkpoint.written_at_ms,
        "key_id": checkpoint.key_id or None,
        "signature": checkpoint.signature or None,
    }
    return Outgoing(
        "ledger",
        "ledger-checkpoint",
        record,
        key=CHECKPOINT_KEY,
        event_id=name_uuid("checkpoint", checkpoint.book_epoch, root.position, root.root.hex()),
        occurred_at_ms=checkpoint.written_at_ms,
        partition=CHECKPOINT_PARTITION,
    )


def _to_shards(cause: Outgoing, fact: Fact, encoded: bytes) -> Iterable[Outgoing]:
    for shard in fact.shards:
        yield Outgoing(
            "shard-log",
            fact.subject,
            fact.record,
            key=fact.log_key or str(shard),
            event_id=fact.event_id,
            occurred_at_ms=cause.occurred_at_ms,
            causation_id=cause.record["event_id"],
            partition=shard,
            encoded=encoded,
        )


def _to_registry(cause: Outgoing, fact: Fact, encoded: bytes) -> Outgoing:
    return Outgoing(
        "registry",
        fact.subject,
        fact.record,
        key=fact.entity,
        event_id=fact.event_id,
        occurred_at_ms=cause.occurred_at_ms,
        causation_id=cause.record["event_id"],
        route=fact.entity,
        encoded=encoded,
    )
