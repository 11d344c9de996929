"""The import of `ledger`: a book that was restored to an earlier point gets back what it lost.

Every event is checked before it is stored: it must continue the chain over the store, and that of
its stream; nothing is stored that no checkpoint vouches for, but the last second's, which none
has come to. What is stored has the id, the data, the metadata, the revision and the position that
it had, so the book is what it was, byte for byte.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from services.common.kernel.errors import WattvendError
from services.common.kernel.values import value_class
from services.vending.application.ledger import Ledger, LedgerEvent, new_event
from services.vending.application.relay import link_of, root_at, root_with
from services.vending.application.verifying import Witness
from services.vending.domain import chain
from services.vending.domain.event_store import (
    NO_EVENTS,
    Appended,
    EventStore,
    StoredEvent,
    StreamId,
)
from services.vending.domain.tables import Checkpoint, Root, Tables

APPENDS_AT_ONCE_MAX = 256
EVENTS_PER_APPEND_MAX = 256


class NotContinued(WattvendError):  # noqa: N818 - says what was found
    """The ledger does not continue the book, or is not what the relay wrote: nothing is stored."""


@value_class
class Imported:
    """What came of it: the book's root now, how many events came, the checkpoint that holds.

    `beyond`: how many events of them no checkpoint vouches for.
    """

    root: Root
    count: int
    checkpoint: Checkpoint | None
    beyond: int


async def root_of(store: EventStore, tables: Tables) -> Root:
    """Return the root at the end of the book, by reading on from the last kept checkpoint."""
    head = await store.head()
    kept = [c.root for c in await tables.checkpoints() if c.root.position <= head]
    return await root_at(store, head, kept[-1]) if kept else await root_at(store, head)


async def import_ledger(
    store: EventStore,
    tables: Tables,
    ledger: Ledger,
    keys: Witness,
    progress: Callable[[int], None],
) -> Imported:
    """Append what `ledger` has above the book's end. Nobody else may write.

    `progress` is told the position that was come to. Raises NotContinued; what was stored until
    then stays, and is right.
    """
    begin = await root_of(store, tables)
    importer = _Importer(store, tables, begin, keys)
    async for told in ledger:
        if isinstance(told, Checkpoint):
            await importer.vouched(told)
            progress(importer.root.position)
        else:
            await importer.take(told)
    beyond = importer.held
    await importer.store_all()
    again = await root_at(store, importer.root.position, begin)
    if again != importer.root:
        raise NotContinued(f"the book reads as {again} after the import, not as {importer.root}")
    return Imported(again, again.count - begin.count, importer.checkpoint, beyond)


class _Importer:
    """What is on its way into the book."""

    def __init__(self, store: EventStore, tables: Tables, begin: Root, keys: Witness) -> None:
        self._store = store
        self._tables = tables
        self._keys = keys
        self._roots = [begin]
        self._held: list[StoredEvent] = []
        self._lasts: dict[StreamId, tuple[int, bytes]] = {}
        self.checkpoint: Checkpoint | None = None

    @property
    def root(self) -> Root:
        """The root after everything that was taken."""
        return self._roots[-1]

    @property
    def held(self) -> int:
        """How many events are taken and not stored."""
        return len(self._held)

    async def take(self, told: LedgerEvent) -> None:
        """Hold the next event. Raises NotContinued where it does not come next."""
        at = f"{told.stream} revision {told.revision}, at position {told.position} of ledger,"
        if told.before != self.root.root:
            raise NotContinued(
                f"{at} does not continue this book, which ends at position {self.root.position}: "
                "ledger is another book's, lacks events, or this store was altered (`verify`)"
            )
        revision, prev = await self._last_of(told.stream)
        event = told.stored(prev)
        if event.revision != revision + 1 or chain.prev_of(event.meta) != prev:
            raise NotContinued(f"{at} does not continue its stream, which is at {revision}")
        hash_ = chain.stored_hash(event)
        self._lasts[event.stream] = event.revision, hash_
        self._held.append(event)
        self._roots.append(root_with(self.root, event, hash_))

    async def vouched(self, checkpoint: Checkpoint) -> None:
        """Store what a checkpoint vouches for. Raises NotContinued where it does not hold."""
        position = checkpoint.root.position
        if position < self._roots[0].position:
            return
        at = f"the checkpoint at position {position} of ledger"
        if checkpoint.root not in self._roots:
            raise NotContinued(f"{at} is not of this book: events before it are not what they were")
        if self._keys and not checkpoint.key_id:
            return  # of a time without a key, perhaps: a later one vouches for its events too
        if self._keys and not self._keys.vouch_for(checkpoint):
            raise NotContinued(
                f"{at} has no good signature of a known key ({checkpoint.key_id}): name its key in "
                "WATTVEND_VENDING_PUBLIC_KEYS, or look into who wrote it"
            )
        await self._store_next(self._roots.index(checkpoint.root))
        await self._tables.keep_checkpoint(checkpoint)
        self.checkpoint = checkpoint

    async def store_all(self) -> None:
        """Store also what no checkpoint has come to. Raises NotContinued where that is all."""
        if self._held and self._keys and self.checkpoint is None:
            raise NotContinued(
                "none of the checkpoints in ledger that vouch for what the book lacks is signed, "
                "though keys are set: without WATTVEND_VENDING_SIGNING_KEY and "
                "WATTVEND_VENDING_PUBLIC_KEYS they count as they are"
            )
        await self._store_next(len(self._held))

    async def _store_next(self, count: int) -> None:
        events, self._held = self._held[:count], self._held[count:]
        self._roots = self._roots[count:]
        async for group, appended in stored_in_order(self._store, events):
            if appended.position != group[-1].position:
                raise NotContinued(
                    f"the store gave position {appended.position} to an event that had "
                    f"{group[-1].position}: it cannot be made what it was"
                )
        linked_until = await self._tables.linked_until()
        links = [link_of(e, chain.stored_hash(e)) for e in events if e.position > linked_until]
        if links:
            await self._tables.keep_links(links)

    async def _last_of(self, stream: StreamId) -> tuple[int, bytes]:
        if stream not in self._lasts:
            events = await self._store.read(stream)
            last = (events[-1].revision, chain.stored_hash(events[-1])) if events else None
            self._lasts[stream] = last or (NO_EVENTS, chain.GENESIS)
        return self._lasts[stream]


async def stored_in_order(
    store: EventStore, events: Sequence[StoredEvent], appends_at_once_max: int = APPENDS_AT_ONCE_MAX
) -> AsyncIterator[tuple[Sequence[StoredEvent], Appended]]:
    """Append events of another store to this one, in their order; yield what became of them."""
    for appends in _batches(events, appends_at_once_max):
        done = await asyncio.gather(
            *(
                asyncio.ensure_future(
                    store.append(
                        group[0].stream, group[0].revision - 1, [new_event(e) for e in group]
                    )
                )
                for group in appends
            )
        )
        for group, appended in zip(appends, done, strict=True):
            yield group, appended


def _batches(
    events: Sequence[StoredEvent], appends_at_once_max: int
) -> Iterator[list[list[StoredEvent]]]:
    """Yield appends that may go at once and still be stored in this order.

    A store keeps the order of appends to different streams that it takes into one commit.
    """
    batch: list[list[StoredEvent]] = []
    streams: set[StreamId] = set()
    for event in events:
        goes_with_last = batch and batch[-1][0].stream == event.stream
        if goes_with_last and len(batch[-1]) < EVENTS_PER_APPEND_MAX:
            batch[-1].append(event)
            continue
        if event.stream in streams or len(batch) == appends_at_once_max:
            yield batch
            batch, streams = [], set()
        batch.append([event])
        streams.add(event.stream)
    if batch:
        yield batch
