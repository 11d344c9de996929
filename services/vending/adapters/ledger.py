"""The topic `ledger`, read from a position on: its partitions merged into the store's order."""

from collections import deque
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.common.runtime import kafka
from services.common.runtime.topics import catalogue
from services.vending.adapters.bus import checkpoint_of
from services.vending.application.ledger import LedgerEvent
from services.vending.domain.event_store import StreamId
from services.vending.domain.tables import Checkpoint

WINDOW_RECORDS_FIRST = 1_000
"""More than a relay tells between two checkpoints, which it may tell again."""
WINDOWS_GROW = 8
RECORDS_PER_POLL_MAX = 1_000
POLL_MS = 1_000


async def ledger_above(
    bootstrap: str, position: int, book_epoch: int, client_id: str
) -> AsyncIterator[LedgerEvent | Checkpoint]:
    """Yield what the relay told in a book epoch of what stands above a position, up to now.

    A relay that starts again tells again what it told: each event comes once. A checkpoint is
    written while the relay goes on, so it may come after a few events more than it vouches for.
    """
    reader = kafka.consumer(bootstrap, client_id=client_id)
    await reader.start()
    try:
        places = [
            TopicPartition("ledger", number)
            for number in range(catalogue().partitions_of("ledger"))
        ]
        reader.assign(places)
        ends = await reader.end_offsets(places)
        parts = [_Partition(reader, place, ends[place], book_epoch) for place in places]
        for part in parts:
            await part.seek(position)
        async for told in _merged(parts, position):
            yield told
    finally:
        await kafka.stop(reader)


async def _merged(
    parts: list["_Partition"], position: int
) -> AsyncIterator[LedgerEvent | Checkpoint]:
    while True:
        heads = [(head, part) for part in parts if (head := await part.head(position)) is not None]
        if not heads:
            return
        head, part = min(heads, key=lambda found: _place_of(found[0]))
        part.take()
        if isinstance(head, LedgerEvent):
            position = head.position
        yield head


def _place_of(told: LedgerEvent | Checkpoint) -> tuple[int, bool]:
    """Return what records are ordered by: a checkpoint stands behind its last event."""
    if isinstance(told, Checkpoint):
        return told.root.position, True
    return told.position, False


class _Partition:
    """One partition, of which the next record is known."""

    def __init__(
        self, reader: AIOKafkaConsumer, place: TopicPartition, end: int, book_epoch: int
    ) -> None:
        self._reader = reader
        self._place = place
        self._end = end
        self._book_epoch = book_epoch
        self._waiting: deque[LedgerEvent | Checkpoint] = deque()

    async def seek(self, position: int) -> None:
        """Go to where everything above a position is still to come.

        One window further back than where it seems so: a relay that was killed while it told again
        stands behind what it had told before.
        """
        place = self._place
        first = (await self._reader.beginning_offsets([place]))[place]
        begin, window, is_before = self._end, WINDOW_RECORDS_FIRST, False
        while begin > first:
            begin = max(first, self._end - window)
            if is_before:
                break
            window *= WINDOWS_GROW
            self._reader.seek(place, begin)
            _, value = kafka.opened(await self._reader.getone(place))
            told = (value["book_epoch"], value["position"])
            is_before = told <= (self._book_epoch, position)
        self._reader.seek(place, begin)

    async def head(self, position: int) -> LedgerEvent | Checkpoint | None:
        """Return the next record that is of the epoch, of events one above a position."""
        while True:
            while self._waiting:
                told = self._waiting[0]
                if isinstance(told, Checkpoint) or told.position > position:
                    return told
                self._waiting.popleft()
            if await self._reader.position(self._place) >= self._end:
                return None
            batches = await self._reader.getmany(
                self._place, timeout_ms=POLL_MS, max_records=RECORDS_PER_POLL_MAX
            )
            for record in batches.get(self._place, ()):
                envelope, value = kafka.opened(record)
                if value["book_epoch"] == self._book_epoch:
                    read = _event if envelope.subject == "ledger-event" else checkpoint_of
                    self._waiting.append(read(value))

    def take(self) -> None:
        """Go on behind the next record."""
        self._waiting.popleft()


def _event(value: Mapping[str, Any]) -> LedgerEvent:
    return LedgerEvent(
        value["position"],
        StreamId(value["stream"]),
        value["revision"],
        UUID(value["event_id"]),
        value["type"],
        value["data"],
        value["data_version"],
        value["meta"],
        value["previous_hash"],
    )
