"""Kafka, as vending uses it: the relay's way out, metering's answers, the last checkpoint."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from services.common.kernel.errors import Bug, InvalidInput, Retriable
from services.common.kernel.frames import KIND_FEE, KIND_RESPLIT, ChargeFrame
from services.common.runtime import kafka
from services.common.runtime.kafka import Outgoing
from services.common.runtime.topics import catalogue
from services.vending.application.office import Office
from services.vending.application.process import PROCESS, step
from services.vending.application.relay import CHECKPOINT_PARTITION, Publisher, ToldEvent
from services.vending.application.statements import Statements
from services.vending.domain.origin import Origin
from services.vending.domain.postings import COMPONENTS, Usage
from services.vending.domain.settling import SettleClosing
from services.vending.domain.tables import Charged, Checkpoint, Offset, Root, Tables
from services.vending.domain.usage import PostUsage

RECORDS_PER_POLL_MAX = 50
"""A frame holds up to 500 charges, and their rows are written on the loop that answers sales."""
POLL_MS = 1_000
FETCH_WAIT_MS = 500
"""What comes is answered at once all the same; asking often costs the loop that answers sales."""
RETRY_S = 1.0
WINDOW_RECORDS_FIRST = 1_000


class KafkaPublisher:
    """services.vending.application.relay.Publisher on Kafka. A producer that failed is replaced."""

    def __init__(self, bootstrap: str, client_id: str) -> None:
        """Publish to the cluster at `bootstrap`."""
        self._bootstrap = bootstrap
        self._client_id = client_id
        self._producer: AIOKafkaProducer | None = None
        self._one_at_a_time = asyncio.Lock()

    async def publish(self, records: Sequence[Outgoing]) -> None:
        """Return when all records are acknowledged. Raises Retriable where that failed."""
        if not records:
            return
        try:
            await kafka.send_all(await self._started(), records)
        except KafkaError as failed:
            await self.close()
            raise Retriable(
                f"Kafka at {self._bootstrap} did not acknowledge: {failed!r}"
            ) from failed

    async def _started(self) -> AIOKafkaProducer:
        async with self._one_at_a_time:
            if self._producer is None:
                producer = kafka.producer(self._bootstrap, client_id=self._client_id)
                try:
                    await producer.start()
                except BaseException:
                    await producer.stop()
                    raise
                self._producer = producer
            return self._producer

    async def close(self) -> None:
        """Let go of the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await producer.stop()


class WhileWriting:
    """A Publisher that tells nothing more when another process has come to write the book.

    That one tells all of it. Of two that tell what becomes of one thing an older fact could come
    last, and be what `registry` keeps of it.
    """

    def __init__(self, publisher: Publisher, is_over: Callable[[], object]) -> None:
        """Tell by `publisher`, until `is_over` is true: then whoever publishes waits for good."""
        self._publisher = publisher
        self._is_over = is_over

    async def publish(self, records: Sequence[Outgoing]) -> None:
        """Return when all records are acknowledged. Raises Retriable where that failed."""
        if self._is_over():
            await asyncio.Event().wait()
        await self._publisher.publish(records)


async def last_told(bootstrap: str, client_id: str) -> tuple[Checkpoint | None, list[ToldEvent]]:
    """Return the last checkpoint in `ledger`, where there is one, and the events told above it.

    Each partition is searched backwards in growing windows: while the relay moves there is a
    checkpoint each second.
    """
    first, *others = (
        TopicPartition("ledger", number) for number in range(catalogue().partitions_of("ledger"))
    )
    assert first.partition == CHECKPOINT_PARTITION
    checkpoint: Checkpoint | None = None
    told: list[ToldEvent] = []
    reader = kafka.consumer(bootstrap, client_id=client_id)
    await reader.start()
    try:
        async for window in _backwards(reader, first):
            found = [value for subject, value in window if subject == "ledger-checkpoint"]
            if found:
                checkpoint = checkpoint_of(found[-1])
                break
        for place in (first, *others):
            async for window in _backwards(reader, place):
                events = [
                    ToldEvent(value["book_epoch"], value["position"], UUID(value["event_id"]))
                    for subject, value in window
                    if subject == "ledger-event"
                ]
                above = [event for event in events if event.is_above(checkpoint)]
                if len(above) < len(window):  # what comes before was told before
                    break
            told += above
        return checkpoint, told
    finally:
        await kafka.stop(reader)


def checkpoint_of(value: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint that a record of `ledger` is."""
    return Checkpoint(
        value["book_epoch"],
        Root(value["position"], value["count"], value["root"]),
        value["written_at_ms"],
        value["key_id"] or "",
        value["signature"] or b"",
    )


async def _backwards(
    reader: AIOKafkaConsumer, place: TopicPartition
) -> AsyncIterator[list[tuple[str, dict[str, Any]]]]:
    """Yield (subject, value) of a partition's last records, each time of more, up to all."""
    reader.assign([place])
    first = (await reader.beginning_offsets([place]))[place]
    begin = end = (await reader.end_offsets([place]))[place]
    window = WINDOW_RECORDS_FIRST
    while True:
        begin = max(first, end - window)
        reader.seek(place, begin)
        opened = [kafka.opened(record) async for record in kafka.read_to_end(reader, [place])]
        yield [(envelope.subject, value) for envelope, value in opened]
        if begin == first:
            return
        window *= 8


Handle = Callable[[Sequence[ConsumerRecord]], Awaitable[None]]


async def follow(
    bootstrap: str,
    topic: str,
    offsets: Mapping[int, int],
    handle: Handle,
    *,
    client_id: str,
    log: structlog.stdlib.BoundLogger,
) -> None:
    """Hand every record of `topic` to `handle`, from `offsets` on, until cancelled.

    `offsets`: partition → the next offset, the beginning where there is none. A partition's records
    come in order; `handle` keeps the offsets. What it raises as Retriable is tried again; anything
    else ends the service: a record that carries money is never skipped.
    """
    partitions = [TopicPartition(topic, n) for n in range(catalogue().partitions_of(topic))]
    reader: AIOKafkaConsumer = kafka.consumer(
        bootstrap, client_id=client_id, fetch_wait_ms=FETCH_WAIT_MS
    )
    await reader.start()
    try:
        reader.assign(partitions)
        for partition in partitions:
            if (offset := offsets.get(partition.partition)) is not None:
                reader.seek(partition, offset)
            else:
                await reader.seek_to_beginning(partition)
        while True:
            batches = await reader.getmany(timeout_ms=POLL_MS, max_records=RECORDS_PER_POLL_MAX)
            records = [record for batch in batches.values() for record in batch]
            while records:
                try:
                    await handle(records)
                    break
                except Retriable as later:
                    log.warning("tried again", topic=topic, why=str(later), after_s=RETRY_S)
                    await asyncio.sleep(RETRY_S)
    finally:
        await kafka.stop(reader)


def _offsets(records: Sequence[ConsumerRecord]) -> list[Offset]:
    newest = {record.partition: record for record in records}
    return [Offset(r.topic, r.partition, r.offset + 1) for r in newest.values()]


def keeper_of_charges(tables: Tables, step_over: kafka.StepOver) -> Handle:
    """Return what keeps the last charged register of every meter."""

    async def handle(records: Sequence[ConsumerRecord]) -> None:
        newest: dict[tuple[int, int], Charged] = {}
        for record in records:
            try:
                rows = ChargeFrame.from_record(kafka.opened(record)[1]).rows
            except InvalidInput as odd:
                step_over(record, odd)
                continue
            # No register is moved by a late reading that changes a shape, nor by a fee.
            rows = rows[~np.isin(rows["kind"], (KIND_RESPLIT, KIND_FEE))]
            columns = zip(
                rows["meter_key"].tolist(),
                rows["epoch"].tolist(),
                rows["sequence"].tolist(),
                rows["to_register_milli"].tolist(),
                rows["to_time_ms"].tolist(),
                strict=True,
            )
            newest |= {(row[0], row[1]): Charged(*row) for row in columns}
        await tables.keep_charged(newest.values(), _offsets(records))

    return handle


def settler_of_echoes(
    office: Office,
    statements: Statements,
    tables: Tables,
    now_ms: Callable[[], int],
    step_over: kafka.StepOver,
) -> Handle:
    """Return what settles holds on metering's echoes, and posts what they tell was used."""

    async def handle(records: Sequence[ConsumerRecord]) -> None:
        for record in records:
            try:
                _, value = kafka.opened(record)
            except InvalidInput as odd:
                step_over(record, odd)
                continue
            if value["ask_id"] is None:
                await office.settle(_settlement(value, now_ms()))
            else:
                await statements.answered(value["ask_id"], usage_told(value, now_ms()))
        await tables.keep_charged((), _offsets(records))

    return handle


def _settlement(echo: Mapping[str, Any], at_ms: int) -> SettleClosing:
    return SettleClosing(
        echo["account_id"],
        echo["hold_id"],
        echo["charged_nano"],
        echo["account_sequence"],
        echo["open_meters"],
        at_ms,
        None if echo["row"] is None else usage_told(echo, at_ms),
        echo["last_reading_received_at_ms"],
        echo["decided_at_ms"],
        bool(echo["frozen"]),
        tuple((each["meter_id"], each["reading_id"]) for each in echo["waiting"] or ()),
    )


def usage_told(echo: Mapping[str, Any], at_ms: int) -> PostUsage:
    """Return what an echo says was used. Raises Bug where its figures do not add up."""
    account_id, sequence = echo["account_id"], echo["account_sequence"]
    usage = Usage(**{f"{name}_nano": echo[f"{name}_nano"] for name in COMPONENTS})
    if usage.charged_nano != echo["charged_nano"]:
        raise Bug(
            f"metering told at sequence {sequence} of account {account_id} that "
            f"{echo['charged_nano']} was charged, by component {usage}: they do not add up"
        )
    content = (account_id, sequence, usage.charged_nano)
    return PostUsage(
        step(at_ms, content, Origin(PROCESS), "usage", account_id, sequence),
        account_id,
        sequence,
        usage,
        echo["credited_nano"],
        echo["account_revision"],
        echo["book_epoch"],
        echo["meters"],
        echo["row"],
        echo["log_offset"],
        echo["decided_at_ms"],
    )
