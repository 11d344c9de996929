"""Readings → shard frames on shard-log, in order, acknowledged by all replicas."""

import asyncio
import contextlib
from collections import deque
from uuid import UUID

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError

from services.common.kernel.clock import Clock
from services.common.kernel.frames import READINGS_MAX, ReadingFrame
from services.common.kernel.ids import name_uuid
from services.common.runtime import kafka, points
from services.common.runtime.clock import next_instant_s
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.reading import MeterReading, frame_rows

SUBJECT = "reading-frame"
RETRY_MS = 200

Waiting = tuple[MeterReading, asyncio.Future[None]]


class _Shard:
    """The readings of one shard that are not in a frame yet."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.waiting: deque[Waiting] = deque()
        self.some = asyncio.Event()
        self.full = asyncio.Event()

    def add(self, entry: Waiting) -> None:
        self.waiting.append(entry)
        self.some.set()
        if len(self.waiting) >= READINGS_MAX:
            self.full.set()

    def take(self) -> list[Waiting]:
        taken = [self.waiting.popleft() for _ in range(min(READINGS_MAX, len(self.waiting)))]
        if not self.waiting:
            self.some.clear()
        if len(self.waiting) < READINGS_MAX:
            self.full.clear()
        return taken


class FrameWriter:
    """Gathers readings by shard. One frame of a shard is under way at a time.

    While one waits for its acknowledgement the next one fills, so frames grow denser by themselves
    as load grows; and a frame that has to be sent again cannot overtake another.

    The frames of all shards leave at the same instants, linger_ms apart: they share requests on
    their way to metering and within it, and each costs less than one that comes alone. One that
    missed the turn of the loop in which the first one leaves would wait for its acknowledgement.
    """

    def __init__(
        self,
        producer: AIOKafkaProducer,
        *,
        shards: int,
        worker: str,
        run_id: UUID,
        linger_ms: int,
        waiting_max: int,
        clock: Clock,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._producer = producer
        self._shards = [_Shard(number) for number in range(shards)]
        self._worker = worker
        self._run_id = run_id
        self._linger_s = linger_ms / 1000
        self._waiting_max = waiting_max
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._sequence = 0
        self._unacknowledged = 0
        self._is_flushing = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def has_room(self) -> bool:
        """Whether a reading that can be read again should be offered."""
        return self._unacknowledged < self._waiting_max

    def offer(self, reading: MeterReading) -> asyncio.Future[None]:
        """Put a reading into the next frame of its shard; the future ends at acks=all."""
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._unacknowledged += 1
        self._empty.clear()
        self._metrics.unacknowledged.set(self._unacknowledged)
        self._shards[reading.meter.shard].add((reading, acknowledged))
        return acknowledged

    async def run(self) -> None:
        """Write frames, for ever; raises what Kafka will never take."""
        async with asyncio.TaskGroup() as group:
            for shard in self._shards:
                group.create_task(self._write(shard), name=f"frames-{shard.shard}")

    async def flushed(self) -> None:
        """Wait until every reading offered is acknowledged, without lingering."""
        self._is_flushing = True
        for shard in self._shards:
            shard.full.set()
        await self._empty.wait()

    async def _write(self, shard: _Shard) -> None:
        while True:
            await shard.some.wait()
            if not self._is_flushing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(next_instant_s(self._linger_s)):
                        await shard.full.wait()
            taken = shard.take()
            points.point("frame-gathered")
            await self._send(shard.shard, [reading for reading, _ in taken])
            self._unacknowledged -= len(taken)
            self._metrics.unacknowledged.set(self._unacknowledged)
            for _, acknowledged in taken:
                if not acknowledged.done():
                    acknowledged.set_result(None)
            if self._unacknowledged == 0:
                self._empty.set()

    async def _send(self, shard: int, readings: list[MeterReading]) -> None:
        rows = frame_rows(readings)
        frame = ReadingFrame(shard, self._worker, str(self._run_id), self._sequence, rows)
        self._sequence += 1
        record = frame.to_record()
        while True:
            began_ms = self._clock.monotonic_ms()
            try:
                acknowledged = await kafka.send(
                    self._producer,
                    "shard-log",
                    SUBJECT,
                    record,
                    key=str(shard),
                    partition=shard,
                    event_id=name_uuid(SUBJECT, self._run_id, frame.sequence),
                    occurred_at_ms=readings[-1].received_at_ms,
                )
                points.point("frame-sent")
                await acknowledged
                points.point("frame-acknowledged")
            except KafkaError as failed:
                if not (failed.retriable or isinstance(failed, KafkaTimeoutError)):
                    raise
                # It may be there already: a repeat has the same identities.
                self._metrics.frame_retries.inc()
                self._log.warning("frame sent again", shard=shard, why=repr(failed))
                await asyncio.sleep(RETRY_MS / 1000)
            else:
                seconds = (self._clock.monotonic_ms() - began_ms) / 1000
                self._metrics.frame_seconds.observe(seconds)
                self._metrics.frame_readings.observe(len(readings))
                return
