"""Goal: readings become frames: dense, in order, one under way a shard, sent until they are there.

Method: the writer with a producer that acknowledges, waits or fails as the test says.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
import structlog
from aiokafka.errors import InvalidTopicError, KafkaError, KafkaTimeoutError
from prometheus_client import CollectorRegistry

from services.common.kernel.envelope import Envelope
from services.common.kernel.frames import ReadingFrame
from services.common.runtime import codec
from services.common.runtime.clock import SystemClock
from services.ingest.adapters.frame_writer import FrameWriter
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.reading import DeviceReading, MeterReading
from services.ingest.domain.registry import Registry
from tests.unit.ingest_devices import LIVE_TIME_MS, meter_fact

DEVICE = DeviceReading(
    datetime(2026, 11, 23),  # noqa: DTZ001 - a device's clock
    0,
    (-1, -1, -1, -1, -1),
    1,
    None,
    (-1, -1, -1),
    (-1, -1, -1),
    0,
    0,
)


class FakeProducer:
    """Keeps what it is sent; a record is acknowledged when `let` does."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, Envelope, ReadingFrame]] = []
        self.futures: list[asyncio.Future[None]] = []
        self.is_holding = False
        self.failures: list[KafkaError] = []
        self.sent_in_first_turn = 0

    def _turn_ends(self) -> None:
        self.sent_in_first_turn = len(self.sent)

    async def send(
        self, topic: str, value: bytes, *, partition: int, headers: Any, **_: Any
    ) -> asyncio.Future[None]:
        assert topic == "shard-log"
        if not self.sent:
            asyncio.get_running_loop().call_soon(self._turn_ends)
        envelope = Envelope.from_headers(headers)
        frame = ReadingFrame.from_record(codec.decode(envelope.schema, value))
        self.sent.append((partition, envelope, frame))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        if self.failures:
            future.set_exception(self.failures.pop(0))
        elif not self.is_holding:
            future.set_result(None)
        return future

    def registers(self, shard: int) -> list[int]:
        return [
            int(register)
            for partition, _, frame in self.sent
            if partition == shard
            for register in frame.rows["register_milli"]
        ]


def reading(register: int, shard: int = 3) -> MeterReading:
    known = Registry()
    known.absorb("meter-fact", meter_fact(shard=shard))
    meter = known.meter("M1")
    assert meter is not None
    device = replace(DEVICE, register_milli=register)
    return MeterReading(meter, device, LIVE_TIME_MS, LIVE_TIME_MS, LIVE_TIME_MS)


@asynccontextmanager
async def writing(producer: FakeProducer, linger_ms: int = 5) -> AsyncIterator[FrameWriter]:
    writer = FrameWriter(
        producer,  # type: ignore[arg-type]
        shards=8,
        worker="ingest-0",
        run_id=UUID(int=7),
        linger_ms=linger_ms,
        waiting_max=1_000,
        clock=SystemClock(),
        metrics=Metrics(CollectorRegistry()),
        log=structlog.get_logger("test"),
    )
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_readings_of_a_shard_share_a_frame_and_end_with_its_acknowledgement() -> None:
    producer = FakeProducer()
    producer.is_holding = True
    async with writing(producer) as writer:
        futures = [writer.offer(reading(n)) for n in range(10)]
        other = writer.offer(reading(99, shard=5))
        await until(lambda: len(producer.sent) == 2)
        assert producer.registers(3) == list(range(10))
        assert producer.registers(5) == [99]
        assert not any(future.done() for future in (*futures, other))
        partitions = (partition for partition, _, _ in producer.sent)
        answers = dict(zip(partitions, producer.futures, strict=True))
        answers[3].set_result(None)
        await asyncio.gather(*futures)
        assert not other.done()
        answers[5].set_result(None)
        await other
    assert len({envelope.event_id for _, envelope, _ in producer.sent}) == 2
    assert [frame.sequence for _, _, frame in producer.sent] == [0, 1]


async def test_a_full_frame_does_not_linger_and_the_next_one_fills_while_it_is_under_way() -> None:
    producer = FakeProducer()
    async with writing(producer, linger_ms=600_000) as writer:
        producer.is_holding = True
        for n in range(1_250):
            writer.offer(reading(n))
        await until(lambda: len(producer.sent) == 1)
        for number in range(2):
            producer.futures[number].set_result(None)
            if number == 0:
                await until(lambda: len(producer.sent) == 2)
        assert [len(frame.rows) for _, _, frame in producer.sent] == [500, 500]
        producer.is_holding = False
        async with asyncio.timeout(5):
            await writer.flushed()
    assert producer.registers(3) == list(range(1_250))


async def test_a_frame_that_failed_is_sent_again_before_anything_after_it() -> None:
    producer = FakeProducer()
    producer.failures = [KafkaTimeoutError(), KafkaTimeoutError()]
    async with writing(producer) as writer:
        first = writer.offer(reading(1))
        await until(lambda: producer.sent)
        second = writer.offer(reading(2))
        async with asyncio.timeout(5):
            await asyncio.gather(first, second)
    assert producer.registers(3) == [1, 1, 1, 2]
    assert len({envelope.event_id for _, envelope, _ in producer.sent}) == 2


async def test_what_kafka_will_never_take_stops_the_service() -> None:
    producer = FakeProducer()
    producer.failures = [InvalidTopicError()]

    async def offer_one() -> None:
        async with writing(producer) as writer:
            future = writer.offer(reading(1))
            await until(lambda: producer.sent)
            await asyncio.wait([future], timeout=0.05)
            assert not future.done(), "and nothing is acknowledged"

    with pytest.raises(ExceptionGroup) as failed:
        await offer_one()
    assert failed.group_contains(InvalidTopicError)


async def test_there_is_no_room_while_too_many_wait() -> None:
    producer = FakeProducer()
    producer.is_holding = True
    async with writing(producer) as writer:
        for n in range(1_000):
            assert writer.has_room
            writer.offer(reading(n))
        assert not writer.has_room


async def test_frames_of_all_shards_leave_at_the_same_instants() -> None:
    """Readings come apart: if each frame waited its own time, they would leave apart."""
    linger_ms, producer = 400, FakeProducer()
    left: list[float] = []

    async def leaves(writer: FrameWriter, shard: int) -> None:
        await writer.offer(reading(1, shard=shard))
        left.append(time.monotonic())

    async with writing(producer, linger_ms) as writer, asyncio.TaskGroup() as group:
        # Just after an instant, so that all of them come before the next one.
        await asyncio.sleep((linger_ms - SystemClock().monotonic_ms() % linger_ms) / 1000 + 0.01)
        for shard in range(8):
            group.create_task(leaves(writer, shard))
            await asyncio.sleep(0.02)
    assert len(left) == 8
    assert max(left) - min(left) < 0.1
    assert producer.sent_in_first_turn == 8, "the first would have a request of its own"
