"""Kafka: every partition of every topic that has a projection, read from stored positions on."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import codec, kafka
from services.common.runtime.topics import catalogue
from services.reporting.adapters.database import Place, Span
from services.reporting.domain.projections import TOPICS, Record, project
from services.reporting.domain.rows import Row
from services.reporting.errors import LogDisagrees, Poison

POLL_TIMEOUT_MS = 500
"""How long a poll waits for a first record; one that comes ends the wait at once."""

GATHER_BYTES = 1 << 18
"""The broker holds a fetch for `kafka.FETCH_WAIT_MS` unless there is so much: ten transactions a
second hold what comes, not one a record.
"""
ANSWER_WITHIN_S = 3.0
ROWS_MAX = 5_000
"""Rows after which a batch takes no further record, so that neither a transaction nor the work
between two answers grows long when frames are full."""

Skip = frozenset[tuple[str, int, int]]


@value_class
class Batch:
    """Some records as rows. `advanced`: partition → (next offset before, after).

    `newest_ms`: the newest record's timestamp; `skipped`: records that an operator stepped over.
    """

    rows: Sequence[Row]
    advanced: Mapping[Place, tuple[int, int]]
    records: int
    newest_ms: int
    skipped: Sequence[tuple[str, int, int, str]]


def places() -> list[Place]:
    """Return every partition that is read."""
    return [
        Place(topic, partition)
        for topic in TOPICS
        for partition in range(catalogue().partitions_of(topic))
    ]


def is_history(place: Place) -> bool:
    """Say whether a partition's records are history, so that none may be missed."""
    return catalogue().topics[place.topic].config["cleanup.policy"] == "delete"


class Log:
    """The log from stored positions on. `start` once; `batch` hands out each record once."""

    def __init__(self, consumer: AIOKafkaConsumer, skip: Skip, records_max: int) -> None:
        self._consumer = consumer
        self._skip = skip
        self._records_max = records_max
        self._next: dict[Place, int] = {}
        self._newest_ms: dict[Place, int] = {}
        self._fetched: Sequence[ConsumerRecord] = ()

    async def beginnings(self) -> dict[Place, int]:
        """Return the first offset that each partition still has."""
        found = await self._consumer.beginning_offsets([TopicPartition(*p) for p in places()])
        return {Place(*partition): offset for partition, offset in found.items()}

    async def ends(self) -> dict[Place, int]:
        """Return the offset after the last record of each partition."""
        found = await self._consumer.end_offsets([TopicPartition(*p) for p in places()])
        return {Place(*partition): offset for partition, offset in found.items()}

    async def check(self) -> None:
        """Raise TimeoutError where Kafka does not answer; a poll says nothing of that."""
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await self.ends()

    def start(self, held: Mapping[Place, Span]) -> None:
        """Go to the stored positions."""
        self._next = {place: span.next_offset for place, span in held.items()}
        for place, offset in self._next.items():
            self._consumer.seek(TopicPartition(*place), offset)

    @property
    def at(self) -> Mapping[Place, int]:
        """The next offset of each partition that `batch` will hand out."""
        return self._next

    def lag(self) -> dict[str, int]:
        """Return topic → records that stand in the log and were not handed out, as last seen."""
        lag: dict[str, int] = {}
        for place, offset in self._next.items():
            end = self._consumer.highwater(TopicPartition(*place)) or offset
            lag[place.topic] = lag.get(place.topic, 0) + max(0, end - offset)
        return lag

    def as_of_ms(self, asked_at_ms: int) -> int:
        """Return up to when all that was written was handed out; 0: nobody knows that yet.

        `asked_at_ms`: when the last batch was asked for. The partition that is furthest behind
        decides: after an absence one is read long before another.
        """
        return min(
            asked_at_ms if self._is_at_its_end(place) else self._newest_ms.get(place, 0)
            for place in self._next
        )

    def _is_at_its_end(self, place: Place) -> bool:
        end = self._consumer.highwater(TopicPartition(*place))
        return end is not None and self._next[place] >= end

    async def batch(self) -> Batch | None:
        """Return the next records as rows; None where none came. Raises Poison."""
        if not self._fetched:
            found = await self._consumer.getmany(
                timeout_ms=POLL_TIMEOUT_MS, max_records=self._records_max
            )
            self._fetched = [record for of_partition in found.values() for record in of_partition]
        if not self._fetched:
            return None
        batch = batch_of(self._fetched, self._next, self._skip)
        for record in self._fetched[: batch.records]:
            self._newest_ms[Place(record.topic, record.partition)] = record.timestamp
        self._fetched = self._fetched[batch.records :]
        self._next.update({place: after for place, (_, after) in batch.advanced.items()})
        return batch


@asynccontextmanager
async def reading(
    bootstrap: str, *, client_id: str, skip: Skip, records_max: int
) -> AsyncIterator[Log]:
    """Connect to Kafka; no group: the positions are ours."""
    consumer = kafka.consumer(bootstrap, client_id=client_id, fetch_min_bytes=GATHER_BYTES)
    try:
        await consumer.start()
        consumer.assign([TopicPartition(*place) for place in places()])
        yield Log(consumer, skip, records_max)
    finally:
        await kafka.stop(consumer)


def batch_of(records: Iterable[ConsumerRecord], at: Mapping[Place, int], skip: Skip) -> Batch:
    """Return records, the first ROWS_MAX rows' worth, as rows.

    Raises Poison for one that cannot be, LogDisagrees for a hole.
    `at`: the next offset of each partition before. Records of a partition are in its order.
    """
    rows: list[Row] = []
    skipped = []
    advanced: dict[Place, tuple[int, int]] = {}
    count, newest_ms = 0, 0
    for record in records:
        place = Place(record.topic, record.partition)
        before, expected = advanced.get(place, (at[place], at[place]))
        if record.offset < expected or (record.offset > expected and is_history(place)):
            raise LogDisagrees(
                f"{place.topic}-{place.partition} goes on with offset {record.offset} where "
                f"{expected} was expected: records are gone. Find out what removed them; "
                "python -m services.reporting rebuild then starts from what is left"
            )
        try:
            rows.extend(rows_of(record))
        except InvalidInput as poison:
            identity = (record.topic, record.partition, record.offset)
            if identity not in skip:
                raise Poison(*identity, poison.message) from poison
            skipped.append((*identity, poison.message))
        advanced[place] = (before, record.offset + 1)
        count += 1
        newest_ms = max(newest_ms, record.timestamp)
        if len(rows) >= ROWS_MAX:
            break
    return Batch(rows, advanced, count, newest_ms, skipped)


def rows_of(record: ConsumerRecord) -> Iterable[Row]:
    """Return the rows of one record of the bus. Raises InvalidInput where it cannot be read."""
    envelope, value = kafka.opened(record)
    event = None
    if envelope.subject == "ledger-event":
        if value["type"] not in catalogue().events:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"an event of type {value['type']!r}, which schemas/topics.yaml does not list",
                field="type",
            )
        event = codec.decode(f"{value['type']}/{value['data_version']}", value["data"])
    return project(Record(record.topic, record.offset, envelope.subject, value, event))


def check(
    held: Mapping[Place, Span], beginnings: Mapping[Place, int], ends: Mapping[Place, int]
) -> None:
    """Raise LogDisagrees where the log cannot be the one that the tables were read from."""
    for place, span in held.items():
        name = f"{place.topic}-{place.partition}"
        if place not in ends:
            raise LogDisagrees(f"the tables hold {name}, which schemas/topics.yaml does not name")
        if span.next_offset > ends[place]:
            raise LogDisagrees(
                f"the tables hold {name} up to offset {span.next_offset}, but it ends at "
                f"{ends[place]}: this is another Kafka, or it lost records. Point "
                "WATTVEND_REPORTING_KAFKA_BOOTSTRAP to the right one, or run "
                "python -m services.reporting rebuild"
            )
        if span.next_offset < beginnings[place] and is_history(place):
            raise LogDisagrees(
                f"the tables hold {name} up to offset {span.next_offset}, but it begins at "
                f"{beginnings[place]}: what lies between was removed by retention while "
                "reporting was away. Run python -m services.reporting rebuild "
                "--accept-loss to go on with what is left"
            )
