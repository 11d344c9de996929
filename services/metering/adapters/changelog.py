"""The rows of one shard in the changelog: read in bulk, written in batches, watched for others.

Rules 2, 4, 5 and 6 of the shell.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, Protocol

from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords

from services.common.kernel.errors import Bug
from services.common.runtime import kafka
from services.common.runtime.fence import wrap_method
from services.metering.adapters.batches import BATCH_BYTES_MAX, RowBatch
from services.metering.domain.messages import Row, Rows
from services.metering.domain.rows import joined

TOPIC = "metering-rows-changelog"
ROW_OVERHEAD_BYTES = 24
"""More than a record's own fields take beside key and value (lengths, deltas, header count)."""
BATCH_OVERHEAD_BYTES = 128
READ_WAIT_MS = 200
VERSIONS_FREE = 5_000
"""So many versions are kept as they come; beyond, never more than three times those needed."""

StoredRow = tuple[bytes, bytes]


class ForeignWriter(Bug):
    """Somebody else wrote to a partition that this worker owns."""


class Dropped(Exception):  # noqa: N818 - what happened to the rows, not an error
    """The shard was revoked before the rows were sent."""


class Batches(Protocol):
    """What the changelog needs of a producer; aiokafka's AIOKafkaProducer has it."""

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Queue a batch; the future's result has the offset of its first record."""
        ...


class ShardChangelog:
    """Writes the rows of one shard, in order, and proves that nobody else does.

    `end`: the partition's end when the rows were read. Every batch must land right behind the
    last one; any other offset means a foreign writer.
    """

    def __init__(self, producer: Batches, shard: int, end: int) -> None:
        self._producer = producer
        self._shard = shard
        self._next_offset = end
        self._pending: set[asyncio.Future[Any]] = set()
        self._closed = False

    async def append(self, records: Iterable[Sequence[Row]], sent: Callable[[], None]) -> None:
        """Write the rows of `records`, a sequence each; return when the broker has all of them.

        A record's rows share a batch where they fit into one, so that they become durable
        together. Calls `sent` when all are on their way. Raises ForeignWriter, Dropped.
        """
        flights = []
        for batched in packed(records):
            batch = RowBatch(batched)
            if self._closed:
                raise Dropped
            flight = await self._producer.send_batch(batch, TOPIC, partition=self._shard)
            self._pending.add(flight)
            flight.add_done_callback(self._pending.discard)
            flights.append((flight, batch.record_count()))
        sent()
        for flight, count in flights:
            self._landed((await flight).offset, count)

    def _landed(self, offset: int, count: int) -> None:
        if offset != self._next_offset:
            raise ForeignWriter(
                f"rows of shard {self._shard} landed at offset {offset} of {TOPIC}, not at "
                f"{self._next_offset}: another process writes them. Look for a second worker "
                "with this instance name, or one that was suspended"
            )
        self._next_offset += count

    async def close(self, timeout_s: float) -> None:
        """Send nothing more; wait a bounded time for what is on its way."""
        self._closed = True
        if self._pending:
            await asyncio.wait(self._pending, timeout=timeout_s)


def packed(records: Iterable[Sequence[Row]]) -> Iterable[list[Sequence[Row]]]:
    """Yield what goes into a batch each, in order; a record's rows are parted only if they must."""
    batch: list[Sequence[Row]] = []
    room = BATCH_BYTES_MAX - BATCH_OVERHEAD_BYTES
    left = room
    for rows in filter(len, records):
        fits = rows_bytes(rows) <= room
        for part in (rows,) if fits else ([row] for row in rows):
            size = rows_bytes(part)
            if batch and size > left:
                yield batch
                batch, left = [], room
            batch.append(part)
            left -= size
    if batch:
        yield batch


def rows_bytes(rows: Sequence[Row]) -> int:
    """Return how many bytes rows take in a batch, at most."""
    if isinstance(rows, Rows):
        sizes = sum(table.keys.size + table.values.size for table in rows.tables)
    else:
        sizes = sum(map(len, chain.from_iterable(rows)))
    return sizes + ROW_OVERHEAD_BYTES * len(rows)


async def read_rows(
    bootstrap: str, shards: Iterable[int], *, client_id: str
) -> dict[int, tuple[list[StoredRow], int]]:
    """Return shard → (versions of its rows in the changelog, in order; its end offset).

    Of each row at least the newest version, and the last. By a plain consumer without a group:
    faust's own recovery is forty times slower.
    """
    partitions = [TopicPartition(TOPIC, shard) for shard in shards]
    rows: dict[TopicPartition, list[StoredRow]] = {partition: [] for partition in partitions}
    bounds = dict.fromkeys(partitions, VERSIONS_FREE)
    if not partitions:
        return {}
    reader = kafka.consumer(bootstrap, client_id=client_id, value_deserializer=as_parsed)
    await reader.start()
    try:
        reader.assign(partitions)
        await reader.seek_to_beginning(*partitions)
        ends = await reader.end_offsets(partitions)
        unread = set(partitions)
        while True:
            unread = {part for part in unread if await reader.position(part) < ends[part]}
            if not unread:
                break
            for partition, records in (await reader.getmany(timeout_ms=READ_WAIT_MS)).items():
                end = ends[partition]
                rows[partition] += [
                    (record.key, record.value)
                    for record in records
                    if record.offset < end and record.key and record.value
                ]
                if len(rows[partition]) > bounds[partition]:
                    rows[partition] = thinned(rows[partition])
                    bounds[partition] = VERSIONS_FREE + 2 * len(rows[partition])
    finally:
        await kafka.stop(reader)
    return {part.partition: (rows[part], ends[part]) for part in partitions}


def thinned(versions: Iterable[StoredRow]) -> list[StoredRow]:
    """Return of each row the newest version, and behind all those the last, where it is older.

    The changelog is as long as its compaction lets it be, hours of versions: what is read must not
    take more memory than the rows. Raises BadRows as `joined` does.
    """
    kept = list(versions)
    newest = joined(kept)
    return [*newest.items(), *(row for row in dict(kept).items() if newest[row[0]] != row[1])]


def as_parsed(value: bytes) -> bytes:
    """Return a record's value as it is: the mark of the consumer that `read_parsed` is for."""
    return value


def read_parsed() -> None:
    """Let aiokafka hand out the records of `read_rows` as it has parsed them: in half the time.

    Of the ConsumerRecord that it makes of each we need what the parsed one has: offset, key and
    value. faust, which may fetch from the changelog too before it pauses it, needs all.
    Patches aiokafka, once a process.
    """

    def parsed(made: Callable[..., Any]) -> Callable[..., Any]:
        def of(records: Any, partition: TopicPartition, record: Any) -> Any:
            is_ours = records._value_deserializer is as_parsed  # noqa: SLF001 - no public hook
            return record if is_ours else made(records, partition, record)

        return of

    wrap_method(PartitionRecords, "_consumer_record", parsed)


def overtaken(versions: Iterable[StoredRow], newest: Mapping[bytes, bytes]) -> list[Row]:
    """Return the newest versions of rows behind which the changelog has an older one.

    A worker that was suspended past its session may have written those. The join heals that in
    memory; the newest versions, written again, are then what compaction keeps.
    """
    return [Row(key, newest[key]) for key, last in dict(versions).items() if newest[key] != last]
