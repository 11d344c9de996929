"""Kafka, the way every service uses it: acks=all, no auto-commit, headers from the envelope."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any
from uuid import UUID

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition

from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.routing import partition_of
from services.common.kernel.values import value_class
from services.common.runtime import codec
from services.common.runtime.topics import catalogue

FETCH_WAIT_MS = 100
"""How long the broker may hold a fetch that has nothing: an upper bound on an idle consumer's lag
is not this (it answers at once when a record comes), but on how long a stop waits."""
FETCH_BYTES_MAX = 4 << 20
COMPRESSION = "snappy"
"""Of what comes in bulk: frames of readings, and all that metering writes (docs/decisions/0048)."""
SESSION_MS = 6_000
HEARTBEAT_MS = 1_000


def producer(
    bootstrap: str, *, client_id: str, linger_ms: int = 0, compression: str | None = None
) -> AIOKafkaProducer:
    """Return a producer (not started): acks=all, idempotent, so retries keep the order.

    `compression`: of its batches, COMPRESSION or none.
    """
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        client_id=client_id,
        acks="all",
        enable_idempotence=True,
        linger_ms=linger_ms,
        max_batch_size=1 << 20,
        compression_type=compression,
        request_timeout_ms=20_000,
    )


def consumer(
    bootstrap: str,
    *topics: str,
    client_id: str,
    group: str | None = None,
    fetch_wait_ms: int = FETCH_WAIT_MS,
    **more: Any,
) -> AIOKafkaConsumer:
    """Return a consumer (not started). Offsets are committed by hand, after the work."""
    return AIOKafkaConsumer(
        *topics,
        bootstrap_servers=bootstrap,
        client_id=client_id,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        fetch_max_wait_ms=fetch_wait_ms,
        max_partition_fetch_bytes=FETCH_BYTES_MAX,
        session_timeout_ms=SESSION_MS,
        heartbeat_interval_ms=HEARTBEAT_MS,
        **more,
    )


async def stop(reader: AIOKafkaConsumer) -> None:
    """Stop a consumer, also while its broker is away.

    aiokafka cancels its fetches then and lets that out of its own stop, half done: it would pass
    for a cancellation of the caller.
    """
    stopping = asyncio.ensure_future(reader.stop())
    await asyncio.wait([stopping])
    if stopping.cancelled():
        await reader._client.close()  # noqa: SLF001 - what is left of it
    else:
        stopping.result()


async def send(
    to: AIOKafkaProducer,
    topic: str,
    subject: str,
    record: dict[str, Any],
    *,
    key: str,
    partition: int | None = None,
    route: str | None = None,
    event_id: UUID,
    occurred_at_ms: int,
    causation_id: str = "",
) -> Awaitable[Any]:
    """Queue one record and return the future of its acknowledgement.

    Give `partition`, or `route`: the site, line, account or entity that the topic's partition_by
    names. `subject` must be among the topic's values in the catalogue.
    """
    outgoing = Outgoing(
        topic,
        subject,
        record,
        key,
        event_id,
        occurred_at_ms,
        causation_id,
        partition,
        route,
    )
    return await send_outgoing(to, outgoing)


@value_class
class Outgoing:
    """One record to send; `partition` or `route` says where, as `send` wants it.

    `encoded`: what `record` encodes to, where that is known already.
    """

    topic: str
    subject: str
    record: dict[str, Any]
    key: str
    event_id: UUID
    occurred_at_ms: int
    causation_id: str = ""
    partition: int | None = None
    route: str | None = None
    encoded: bytes | None = None

    def place(self) -> tuple[str, int]:
        """Return topic and partition."""
        known = catalogue().topics[self.topic]
        assert self.subject in known.values, f"{self.subject} is no value of {self.topic}"
        if self.partition is not None:
            return self.topic, self.partition
        assert self.route is not None, "a partition or a route is needed"
        return self.topic, partition_of(self.route, known.partitions)

    def content(self) -> dict[str, Any]:
        """Return key, value and headers, as aiokafka wants them."""
        schema = codec.schema_header(self.subject)
        envelope = Envelope(schema, self.event_id, self.occurred_at_ms, self.causation_id)
        encoded = self.encoded
        return {
            "key": self.key.encode(),
            "value": codec.encode(self.subject, self.record) if encoded is None else encoded,
            "headers": envelope.headers(),
        }


async def send_outgoing(to: AIOKafkaProducer, outgoing: Outgoing) -> Awaitable[Any]:
    """Queue one record and return the future of its acknowledgement."""
    topic, partition = outgoing.place()
    future: Awaitable[Any] = await to.send(topic, partition=partition, **outgoing.content())
    return future


async def send_all(to: AIOKafkaProducer, records: Iterable[Outgoing]) -> None:
    """Send records, those of a partition in order; return when the broker has all of them.

    In batches made here: many records cost less than when each has a future of its own.
    """
    batches: dict[tuple[str, int], Any] = {}
    flights = []

    async def depart(place: tuple[str, int]) -> None:
        batch = batches.pop(place)
        batch.close()
        flights.append(await to.send_batch(batch, place[0], partition=place[1]))

    for record in records:
        place, content = record.place(), record.content()
        if place in batches and batches[place].append(timestamp=None, **content) is None:
            await depart(place)
        if place not in batches:
            batches[place] = to.create_batch()
            batches[place].append(timestamp=None, **content)
    for place in list(batches):
        await depart(place)
    await all_acknowledged(flights)


def opened(record: ConsumerRecord) -> tuple[Envelope, dict[str, Any]]:
    """Return envelope and value of a record.

    Raises InvalidInput where either cannot be read, or the topic has no place for the subject.
    """
    envelope = Envelope.from_headers(record.headers)
    if envelope.subject not in catalogue().topics[record.topic].values:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT, f"{record.topic} has no place for {envelope.schema[:80]}"
        )
    if record.value is None:
        raise InvalidInput(Reason.INVALID_ARGUMENT, f"a {envelope.schema} without a value")
    return envelope, codec.decode(envelope.schema, record.value)


async def read_to_end(
    reader: AIOKafkaConsumer, partitions: Iterable[TopicPartition]
) -> AsyncIterator[ConsumerRecord]:
    """Yield what stands in the assigned partitions now, from where `reader` stands, to their end.

    Records of other assigned partitions that arrive meanwhile are yielded too.
    """
    wanted = list(partitions)
    ends = await reader.end_offsets(wanted)
    while [tp for tp in wanted if await reader.position(tp) < ends[tp]]:
        batches = await reader.getmany(timeout_ms=200)
        for records in batches.values():
            for record in records:
                yield record


async def all_acknowledged(futures: Iterable[Awaitable[Any]]) -> None:
    """Wait until the broker has all of them; raises the first failure."""
    await asyncio.gather(*futures)


@value_class
class StepOver:
    """What to do with a record that must not be passed over and cannot be read.

    `skipped`: the records (topic, partition, offset) that a person said to step over, in `setting`.
    """

    skipped: frozenset[tuple[str, int, int]]
    setting: str
    log: structlog.stdlib.BoundLogger

    def __call__(self, record: ConsumerRecord, why: Exception) -> None:
        """Return (logged) where a person said so; else raise Bug with what to do."""
        place = f"{record.topic}:{record.partition}:{record.offset}"
        if (record.topic, record.partition, record.offset) not in self.skipped:
            raise Bug(
                f"{record.topic}-{record.partition} at offset {record.offset} cannot be decoded: "
                f"{why}. Run the release that knows its schema, or step over it: "
                f"{self.setting}={place}"
            ) from why
        self.log.error("stepped over a record as told", record=place, why=str(why))
