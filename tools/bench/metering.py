"""metering: readings a second, through faust, on one core, measured from outside.

The real service absorbs a shard log that was filled while it was stopped. Each reading is of
another account of its frame's shard, so each touches a row of its own. A run begins with the first
charge in the log of the broker and ends when the last row stands in the changelog; start-up is not
in it, every output and every row is. What was written is counted against what was charged.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from services.common.kernel.frames import KIND_USAGE, READING, RELAY_REPORTED, ReadingFrame
from services.common.kernel.ids import name_uuid
from services.common.runtime import kafka
from services.common.runtime.topics import catalogue
from tools.bench import site
from tools.bench.figures import Figure, median_of
from tools.bench.screen import Screen
from tools.bench.stand import Stand

LOG, CHARGES, CHANGELOG = "shard-log", "charges", "metering-rows-changelog"
GROUP = "metering"
FLAT = 500
"""Readings in a full frame."""
UNIT = "readings/s"
ABSORBED_WITHIN_S = 120.0
WATCH_S = 0.02
COMMIT_LOOK_S = 0.25
IN_FLIGHT_MAX = 500
STEP_MILLI = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. `frames`: readings a frame → frames a run."""

    accounts: int = 8_000
    runs: int = 5
    frames: Mapping[int, int] = field(
        default_factory=lambda: {1: 4_000, 10: 4_000, 50: 3_000, FLAT: 1_200}
    )


async def measure(stand: Stand, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench."""
    bench = _Bench(stand, plan)
    screen.say(f"metering: {plan.accounts:,} accounts are told")
    await bench.tell()
    figures = []
    for size, frames in sorted(plan.frames.items()):
        rates = []
        for run in range(plan.runs):
            screen.say(f"metering: {frames:,} frames of {size}, run {run + 1} of {plan.runs}")
            rates.append(await bench.run(size, frames))
        figures.append(median_of(name_of(size), UNIT, rates))
    return figures[::-1]


def name_of(size: int) -> str:
    """Return the figure of frames of `size` readings."""
    flat = "metering.flat.readings_per_second"
    return flat if size == FLAT else f"{flat}.at_{size}"


class _Bench:
    """A shard log that grows from run to run."""

    def __init__(self, stand: Stand, plan: Plan) -> None:
        self._stand = stand
        self._bootstrap = stand.at.kafka_bootstrap
        self._written = 0
        shards = catalogue().shards
        assert plan.accounts >= shards * max(plan.frames), "a frame needs so many accounts"
        numbers = np.arange(plan.accounts)
        self._shards = [_Meters(shard, numbers[shard::shards]) for shard in range(shards)]

    async def tell(self) -> None:
        """Let metering know the accounts."""
        facts = (
            (meters.shard, subject, record)
            for meters in self._shards
            for subject, record in meters.facts()
        )
        await self._write(facts)
        await self._absorbed()

    async def run(self, size: int, frames: int) -> float:
        """Return the readings a second of one run."""
        of_frame = (self._shards[number % len(self._shards)] for number in range(frames))
        await self._write(
            (meters.shard, "reading-frame", meters.frame(size).to_record()) for meters in of_frame
        )
        async with kafka.consumer(self._bootstrap, client_id="bench") as reader:
            before = await reader.end_offsets(_partitions(CHARGES))
        ended_s = await self._absorbed()
        charged = await _charged(self._bootstrap, before)
        total = sum(charged.values())
        assert total == size * frames, f"{total} of {size * frames} readings were charged"
        began_ms = min(charged)
        # What stands in the log with the first charge was worked on before the run began.
        return (total - charged[began_ms]) / (ended_s - began_ms / 1000)

    async def _write(self, entries: Iterable[tuple[int, str, dict[str, Any]]]) -> None:
        flights = []
        async with kafka.producer(self._bootstrap, client_id="bench") as producer:
            for shard, subject, record in entries:
                self._written += 1
                flight = await kafka.send(
                    producer,
                    LOG,
                    subject,
                    record,
                    key=str(shard),
                    partition=shard,
                    event_id=name_uuid("bench", self._written),
                    occurred_at_ms=0,
                )
                flights.append(flight)
                if len(flights) >= IN_FLIGHT_MAX:
                    await kafka.all_acknowledged(flights)
                    flights.clear()
            await kafka.all_acknowledged(flights)

    async def _absorbed(self) -> float:
        """Let metering absorb all of the log; return when its last row came, s since 1970."""
        starting = asyncio.create_task(self._stand.start_service("metering", {}))
        rows = _partitions(CHANGELOG)
        admin = AIOKafkaAdminClient(bootstrap_servers=self._bootstrap)
        await admin.start()
        try:
            async with kafka.consumer(self._bootstrap, client_id="bench-watch") as reader:
                deadline_s = time.monotonic() + ABSORBED_WITHIN_S
                ends, grew_s, looked_s = await reader.end_offsets(rows), time.time(), 0.0
                while time.monotonic() < deadline_s:
                    if (now := await reader.end_offsets(rows)) != ends:
                        ends, grew_s = now, time.time()
                    elif time.monotonic() - looked_s > COMMIT_LOOK_S:
                        looked_s = time.monotonic()
                        if starting.done() and await _is_committed(reader, admin):
                            return grew_s
                    await asyncio.sleep(WATCH_S)
        finally:
            await admin.close()
            await starting
            await self._stand.stop("metering")
        raise TimeoutError(f"metering absorbs the log: not within {ABSORBED_WITHIN_S:.0f} s")


class _Meters:
    """The meters of one shard, one an account, and the frames they send in turn."""

    def __init__(self, shard: int, numbers: npt.NDArray[np.int64]) -> None:
        self.shard = shard
        self._numbers = numbers
        self._next = 0
        self._sent = 0
        rows = np.zeros(len(numbers), READING)
        rows["meter_key"] = [site.meter_key(number) for number in numbers.tolist()]
        rows["serial"] = [site.serial(number).encode() for number in numbers.tolist()]
        rows["epoch"] = rows["ratio"] = 1
        rows["rate_registers_milli"] = -1
        rows["quality"] = ord("A")
        rows["relay_bits"] = RELAY_REPORTED | 1
        self._rows = rows

    def facts(self) -> Iterator[site.Fact]:
        """Yield what metering must know of them."""
        yield from site.of_every_shard()
        for number in self._numbers.tolist():
            yield from site.of_account(number, self.shard)

    def frame(self, size: int) -> ReadingFrame:
        """Return the next frame: `size` meters, each with a higher register than before."""
        chosen = (self._next + np.arange(size)) % len(self._rows)
        self._next = (self._next + size) % len(self._rows)
        self._sent += 1
        now_ms = time.time_ns() // 1_000_000
        rows = self._rows[chosen]
        rows["register_milli"] += STEP_MILLI
        # Later than any before it, however fast frames are made.
        rows["device_time_ms"] = np.maximum(rows["device_time_ms"] + 1, now_ms)
        rows["began_at_ms"] = rows["received_at_ms"] = now_ms
        ids = np.zeros((size, 2), "<u8")
        ids[:, 0], ids[:, 1] = rows["meter_key"], rows["register_milli"]
        rows["reading_id"] = ids.view("V16")[:, 0]
        self._rows[chosen] = rows
        return ReadingFrame(self.shard, "bench", "bench", self._sent, rows)


def _partitions(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(catalogue().partitions_of(topic))]


async def _is_committed(reader: AIOKafkaConsumer, admin: AIOKafkaAdminClient) -> bool:
    """Say whether metering has committed the log to its end."""
    ends = await reader.end_offsets(_partitions(LOG))
    done = await admin.list_consumer_group_offsets(GROUP)
    return all(
        partition in done and done[partition].offset == end for partition, end in ends.items()
    )


async def _charged(bootstrap: str, after: Mapping[TopicPartition, int]) -> Counter[int]:
    """Return broker's time, ms → readings charged then, of the charges behind `after`."""
    found: Counter[int] = Counter()
    async with kafka.consumer(bootstrap, client_id="bench-judge") as reader:
        reader.assign(list(after))
        for partition, offset in after.items():
            reader.seek(partition, offset)
        async for record in kafka.read_to_end(reader, after):
            _, value = kafka.opened(record)
            found[record.timestamp] += value["kinds"].count(KIND_USAGE)
    return found
