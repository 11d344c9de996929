"""metering: readings a second, through faust, on one core, measured from outside.

The real service absorbs a shard log that was filled while it was stopped. Each reading is of
another account of its frame's shard, so each touches a row of its own. A run begins with the first
charge in the log of the broker and ends when the last row stands in the changelog; start-up is not
in it, every output and every row is. What was written is counted against what was charged.

In turn with it a plain loop absorbs such a log, under the same judge, and a plain faust agent
charges single readings on topics of its own.

The log has a clock of its own, ahead of everybody's: it goes on by a minute before each run. So in
each run each account that is read publishes its balance, once; and none falls due by the wall
clock while another run is measured.

Last, full frames come evenly to the running service, at half of what it must take (of what it took,
where that is less): how long each was in the log before its charges were, by the broker's clock.
"""

import asyncio
import time
from collections import Counter
from collections.abc import (
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from typing import Any

import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.common.kernel.frames import KIND_USAGE
from services.common.kernel.ids import name_uuid
from services.common.runtime import kafka
from services.common.runtime.topics import catalogue
from services.metering.domain.charging import BALANCE_EVERY_MS
from tools.bench import per_record, plain_loop, site
from tools.bench.figures import P50, P99, Figure, median_of, quantile
from tools.bench.meters import Meters
from tools.bench.screen import Screen
from tools.bench.stand import Stand, until

LOG, CHARGES, BALANCES = "shard-log", "charges", "balances"
CHANGELOG = "metering-rows-changelog"
GROUP = "metering"
LOGS_CLOCK = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": str(24 * 60 * 60_000),
}
"""Of the shard log here: its records are stamped as they are written, up to a day ahead."""
FULL = 500
"""Readings in a full frame."""
ROOM_BYTES = 4 << 30
"""For all that a round writes to Kafka, and the memory that it takes besides."""
UNIT = "readings/s"
PROMISED = 300_000
"""Readings a second on the flat tariff: the load of which half is one."""
ABSORBED_WITHIN_S = 120.0
WATCH_S = 0.02
COMMIT_LOOK_S = 0.25
IN_FLIGHT_MAX = 500


Entry = tuple[int, str, dict[str, Any]]
"""Shard, subject and record of what is to be written to the log."""
Made = tuple[int, dict[str, Any]]
"""Shard, and key, value and headers, encoded."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: `accounts` of each tariff, `runs` of each load.

    `frames`: readings a frame, on the flat tariff → frames a run. `full`: readings in the frames
    that the other tariff and the plain loop have, as many a run. `single`: readings a run, of
    those that are messages. `half_loads`: runs at half of the load, and how long each lasts.
    """

    accounts: int = 16_000
    runs: int = 5
    full: int = FULL
    frames: Mapping[int, int] = field(
        default_factory=lambda: {FULL: 1_200, 50: 2_400, 10: 2_400, 1: 2_400}
    )
    single: int = 4_000
    half_loads: Sequence[float] = (10.0,) * 5


async def measure(
    stands: Callable[[], AbstractAsyncContextManager[Stand]], screen: Screen, plan: Plan
) -> list[Figure]:
    """Return the figures of this bench; `stands` gives each round of loads a stand of its own.

    And one to the frames that come evenly. So no run pays for what those before it wrote: a restart
    reads its changelog, and pages that a machine touches for the first time are slow.
    """
    rates: dict[str, list[float]] = {}

    async def told(stand: Stand) -> _Bench:
        screen.say(f"metering: {2 * plan.accounts:,} accounts are told")
        bench = _Bench(stand, plan)
        await bench.tell()
        return bench

    for run in range(plan.runs):
        async with stands() as stand:
            bench = await told(stand)
            for name, load in bench.loads().items():
                screen.say(f"metering: {name}, run {run + 1} of {plan.runs}")
                rates.setdefault(name, []).append(await load())
    half = min(median_of("", UNIT, rates[name_of(plan.full)]).value, PROMISED) / 2
    async with stands() as stand:
        bench = await told(stand)
        screen.say(f"metering: {half:,.0f} readings/s, evenly")
        took_ms = await bench.evenly(half)
    figures = [median_of(f"metering.{name}", UNIT, runs) for name, runs in rates.items()]
    figures += _ratios(rates[name_of(plan.full)], rates)
    figures.append(Figure("metering.half_load.readings_per_second", half, UNIT, 1, half, half))
    for percent in (P50, P99):
        name = f"metering.frame_to_charge_at_half_load_ms.p{percent}"
        runs = [quantile(run, percent) for run in took_ms]
        figures.append(median_of(name, "ms", runs))
    return figures


def name_of(size: int) -> str:
    """Return the figure of frames of `size` readings."""
    flat = "flat.readings_per_second"
    return flat if size == FULL else f"{flat}.at_{size}"


def _ratios(flat: Sequence[float], rates: Mapping[str, Sequence[float]]) -> list[Figure]:
    figures = []
    for peer in ("plain_loop", "per_record"):
        pairs = zip(flat, rates[f"{peer}.readings_per_second"], strict=True)
        # A tiny run is over within its first millisecond, and has no rate.
        ratios = [mine / max(theirs, 1.0) for mine, theirs in pairs]
        figures.append(median_of(f"metering.flat_to_{peer}", "ratio", ratios))
    return figures


class _Bench:
    """A shard log that grows from load to load."""

    def __init__(self, stand: Stand, plan: Plan) -> None:
        self._stand = stand
        self._plan = plan
        self._bootstrap = stand.at.kafka_bootstrap
        self._written = 0
        self._ahead_ms = 0
        self._singles = 0
        shards = catalogue().shards
        assert plan.accounts >= shards * max(plan.frames), "a frame needs so many accounts"
        self._meters: dict[str, list[Meters]] = {}
        for number, tariff in enumerate((site.FLAT, site.TOU_LADDER)):
            accounts = number * plan.accounts + np.arange(plan.accounts)
            self._meters[tariff] = [
                Meters(shard, accounts[shard::shards], tariff=tariff) for shard in range(shards)
            ]

    def loads(self) -> dict[str, Callable[[], Coroutine[Any, Any, float]]]:
        """Return figure → what measures it once; small frames first, while the broker is new."""
        return {
            **{
                name_of(size): partial(self.framed, site.FLAT, size)
                for size in sorted(self._plan.frames)
            },
            "tou_ladder.readings_per_second": partial(
                self.framed, site.TOU_LADDER, self._plan.full
            ),
            "plain_loop.readings_per_second": self.looped,
            "per_record.readings_per_second": self.single,
        }

    async def tell(self) -> None:
        """Let the log have its own clock, and metering know the accounts."""
        await self._alter(LOG, {**catalogue().topics[LOG].config, **LOGS_CLOCK})
        shards = range(catalogue().shards)
        facts = [(shard, *fact) for shard in shards for fact in site.of_every_shard()]
        for of_shards in self._meters.values():
            facts += [(meters.shard, *fact) for meters in of_shards for fact in meters.facts()]
        await self._write(facts)
        await self._absorbed()

    async def framed(self, tariff: str, size: int) -> float:
        """Return the readings a second of the service."""
        before = await self._fill(tariff, size)
        ended_s = await self._absorbed()
        return await self._judged(before, size, ended_s)

    async def looped(self) -> float:
        """Return those of the plain loop."""
        before = await self._fill(site.FLAT, self._plan.full)
        starting = self._stand.start("plain-loop", "-m", plain_loop.__name__, self._bootstrap)
        ended_s = await self._done(starting, "plain-loop")
        return await self._judged(before, self._plan.full, ended_s)

    async def single(self) -> float:
        """Return those of the agent that is handed single readings."""
        self._singles += 1
        run, count = str(self._singles), self._plan.single
        readings, charges = per_record.topics_of(run)
        await self._create(readings, charges)
        await self._write_single(readings, count)
        places = _partitions(charges, per_record.PARTITIONS)
        async with kafka.consumer(self._bootstrap, client_id="bench-watch") as reader:
            before = await reader.end_offsets(places)
            wanted = sum(before.values()) + count

            async def charged() -> bool:
                return sum((await reader.end_offsets(places)).values()) >= wanted

            folder = str(self._stand.directory / "per-record")
            module = per_record.__name__
            await self._stand.start("per-record", "-m", module, self._bootstrap, run, folder)
            try:
                await until(charged, ABSORBED_WITHIN_S, "the agent charges every reading")
            finally:
                await self._stand.stop("per-record")
        times_ms = [at async for at, _ in _behind(self._bootstrap, before)]
        return _rate(Counter(times_ms), max(times_ms) / 1000)

    async def evenly(self, rate: float) -> list[list[int]]:
        """Return how long frames waited for their charges, ms, of each run of `half_loads`.

        `rate`: readings/s.
        """
        size, frames = self._plan.full, self._frames(site.FLAT, self._plan.full)
        each_once = self._plan.accounts // size + catalogue().shards
        apart_s = size / max(rate, 1.0)
        # All are due a balance at their first reading, and none is for what comes behind it.
        self._ahead_ms += BALANCE_EVERY_MS
        await self._stand.start_service("metering", {})
        try:
            await self._write(islice(frames, each_once))
            await self._is_absorbed("each account is read once")
            await self._alter(LOG, catalogue().topics[LOG].config)  # the broker's clock, as in life
            return [
                await self._waited(islice(frames, int(lasts_s / apart_s) + 1), apart_s)
                for lasts_s in self._plan.half_loads
            ]
        finally:
            await self._stand.stop("metering")

    async def _waited(self, frames: Iterable[Entry], apart_s: float) -> list[int]:
        """Write frames evenly, all encoded before; return how long each waited."""
        made = [self._made(entry) for entry in frames]
        async with kafka.consumer(self._bootstrap, client_id="bench") as reader:
            places = [*_partitions(LOG), *_partitions(CHARGES)]
            before: dict[TopicPartition, int] = await reader.end_offsets(places)
        await self._send(made, apart_s=apart_s)
        await self._is_absorbed("half of the load is absorbed")
        came_ms: dict[tuple[int, int], int] = {}
        took_ms = []
        of_log = {place: at for place, at in before.items() if place.topic == LOG}
        of_charges = {place: at for place, at in before.items() if place.topic == CHARGES}
        async for at_ms, record in _behind(self._bootstrap, of_log):
            came_ms[record.partition, record.offset] = at_ms
        async for at_ms, record in _behind(self._bootstrap, of_charges):
            _, value = kafka.opened(record)
            took_ms.append(at_ms - came_ms[record.partition, value["log_offset"]])
        assert len(took_ms) == len(made), f"{len(took_ms)} of {len(made)} frames were charged"
        return took_ms

    async def _is_absorbed(self, what: str) -> None:
        async with _watching(self._bootstrap) as (reader, admin):
            await until(lambda: _is_committed(reader, admin), ABSORBED_WITHIN_S, what)

    def _frames(self, tariff: str, size: int) -> Iterator[Entry]:
        """Yield frames without end, of each shard in turn."""
        for meters in cycle(self._meters[tariff]):
            frame = meters.frame(size, received_at_ms=self._now_ms())
            yield meters.shard, "reading-frame", frame.to_record()

    async def _fill(self, tariff: str, size: int) -> dict[TopicPartition, int]:
        """Write frames while nobody absorbs; return where charges and balances end."""
        self._ahead_ms += BALANCE_EVERY_MS
        await self._write(islice(self._frames(tariff, size), self._plan.frames[size]))
        async with kafka.consumer(self._bootstrap, client_id="bench") as reader:
            places = [*_partitions(CHARGES), *_partitions(BALANCES)]
            ends: dict[TopicPartition, int] = await reader.end_offsets(places)
            return ends

    async def _judged(
        self, before: Mapping[TopicPartition, int], size: int, ended_s: float
    ) -> float:
        """Return readings a second.

        Fail where not every reading was charged, or not every account read told its balance once.
        """
        charged: Counter[int] = Counter()
        balances = 0
        async for at_ms, record in _behind(self._bootstrap, before):
            if record.topic == BALANCES:
                balances += 1
                continue
            _, value = kafka.opened(record)
            charged[at_ms] += value["kinds"].count(KIND_USAGE)
        wanted = size * self._plan.frames[size]
        assert charged.total() == wanted, f"{charged.total()} of {wanted} readings were charged"
        told = min(wanted, self._plan.accounts)
        assert balances == told, f"{balances} balances of {told} accounts were published"
        return _rate(charged, ended_s)

    async def _write(self, entries: Iterable[Entry]) -> None:
        await self._send(map(self._made, entries))

    def _made(self, entry: Entry) -> Made:
        shard, subject, record = entry
        self._written += 1
        outgoing = kafka.Outgoing(
            LOG,
            subject,
            record,
            key=str(shard),
            partition=shard,
            event_id=name_uuid("bench", self._written),
            occurred_at_ms=0,
        )
        return shard, outgoing.content()

    async def _send(self, made: Iterable[Made], *, apart_s: float = 0.0) -> None:
        """Send what is made to the log, compressed as ingest does."""
        flights = []
        async with kafka.producer(
            self._bootstrap, client_id="bench", compression=kafka.COMPRESSION
        ) as producer:
            await producer.partitions_for(LOG)  # else the first would wait, and others with it
            began_s = time.monotonic()
            for number, (shard, content) in enumerate(made):
                if (early_s := began_s + number * apart_s - time.monotonic()) > 0:
                    await asyncio.sleep(early_s)
                flight = await producer.send(
                    LOG, partition=shard, timestamp_ms=self._now_ms(), **content
                )
                flights.append(flight)
                if len(flights) >= IN_FLIGHT_MAX:
                    await kafka.all_acknowledged(flights)
                    flights.clear()
            await kafka.all_acknowledged(flights)

    def _now_ms(self) -> int:
        """Return what time it is by the log's clock."""
        return time.time_ns() // 1_000_000 + self._ahead_ms

    async def _create(self, *names: str) -> None:
        """Create the agent's topics; its table's it creates itself."""
        stamped = {"message.timestamp.type": "LogAppendTime"}
        topics = [NewTopic(name, per_record.PARTITIONS, 1, topic_configs=stamped) for name in names]
        async with _administering(self._bootstrap) as admin:
            await admin.create_topics(topics)

    async def _alter(self, topic: str, configs: dict[str, str]) -> None:
        async with _administering(self._bootstrap) as admin:
            await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])

    async def _write_single(self, topic: str, count: int) -> None:
        """Write single readings, as the agent reads them."""
        flights = []
        async with kafka.producer(self._bootstrap, client_id="bench") as producer:
            for turn in range(count):
                rounds, meter = divmod(turn, self._plan.accounts)
                serial = site.serial(meter)
                reading = {"meter": serial, "register_milli": 100 * (rounds + 1)}
                flight = await producer.send(
                    topic,
                    orjson.dumps(reading),
                    key=serial.encode(),
                    partition=meter % per_record.PARTITIONS,
                )
                flights.append(flight)
            await kafka.all_acknowledged(flights)

    async def _absorbed(self) -> float:
        """Let metering absorb all of the log; return when its last row came, s since 1970."""
        return await self._done(self._stand.start_service("metering", {}), "metering")

    async def _done(self, start: Coroutine[Any, Any, Any], name: str) -> float:
        """Let a process absorb all of the log, and stop it; return when the last row came."""
        starting = asyncio.create_task(start)
        rows = _partitions(CHANGELOG)
        try:
            async with _watching(self._bootstrap) as (reader, admin):
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
            await starting
            await self._stand.stop(name)
        raise TimeoutError(f"{name} absorbs the log: not within {ABSORBED_WITHIN_S:.0f} s")


def _rate(charged: Counter[int], ended_s: float) -> float:
    """Return readings a second. `charged`: broker's time, ms → readings charged then.

    What stands in the log with the first charge was worked on before the run began.
    """
    began_ms = min(charged)
    lasted_s = max(ended_s - began_ms / 1000, 0.001)  # the broker's clock knows no less
    return (charged.total() - charged[began_ms]) / lasted_s


def _partitions(topic: str, count: int | None = None) -> list[TopicPartition]:
    """Return the partitions of a topic; `count` of them where it is not in the catalogue."""
    numbers = range(catalogue().partitions_of(topic) if count is None else count)
    return [TopicPartition(topic, number) for number in numbers]


@asynccontextmanager
async def _watching(bootstrap: str) -> AsyncIterator[tuple[AIOKafkaConsumer, AIOKafkaAdminClient]]:
    """Look at where topics end, and what is committed."""
    async with (
        _administering(bootstrap) as admin,
        kafka.consumer(bootstrap, client_id="bench-watch") as reader,
    ):
        yield reader, admin


@asynccontextmanager
async def _administering(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def _is_committed(reader: AIOKafkaConsumer, admin: AIOKafkaAdminClient) -> bool:
    """Say whether metering has committed the log to its end."""
    ends = await reader.end_offsets(_partitions(LOG))
    done = await admin.list_consumer_group_offsets(GROUP)
    return all(
        partition in done and done[partition].offset == end for partition, end in ends.items()
    )


async def _behind(
    bootstrap: str, after: Mapping[TopicPartition, int]
) -> AsyncIterator[tuple[int, ConsumerRecord]]:
    """Yield (broker's time in ms, record) of all that stands behind `after`."""
    async with kafka.consumer(bootstrap, client_id="bench-judge") as reader:
        reader.assign(list(after))
        for partition, offset in after.items():
            reader.seek(partition, offset)
        async for record in kafka.read_to_end(reader, after):
            yield record.timestamp, record
