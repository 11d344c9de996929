"""What a reading costs metering as its surroundings grow, and what memory its meters take.

`python -m tools.bench.curves reading TARIFF SHARDS ACCOUNTS METERS WEEKS` prints µs a reading,
`python -m tools.bench.curves memory TARIFF METERS WEEKS` MB a million meters. Each step has a
process of its own on the measured core, without Kafka, which sees frames, not accounts: a frame's
bytes are decoded and absorbed, its outputs encoded, its rows packed. Times are the process's own,
the least of some runs: what else the machine does is not in them.
"""

import asyncio
import gc
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from services.common.kernel.envelope import Envelope
from services.common.kernel.frames import READINGS_MAX
from services.common.kernel.ids import name_uuid
from services.common.runtime import codec, memory
from services.metering.adapters.batches import RowBatch
from services.metering.adapters.changelog import packed
from services.metering.adapters.decoding import FRAME, Opened, Raw, opened
from services.metering.domain.absorb import absorb
from services.metering.domain.charging import BALANCE_EVERY_MS
from services.metering.domain.messages import LogRecord, Row
from services.metering.domain.rows import WINDOWS_MAX
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import rows_of, shard_of_rows
from tools.bench import site
from tools.bench.figures import Figure
from tools.bench.machine import Cores
from tools.bench.meters import Meters
from tools.bench.screen import Screen
from tools.stack.services import ROOT

BEGAN_MS = 1_760_000_000_000
YEAR_MS = 365 * 86_400_000
"""Readings are received a year after their meters began: no clock is ahead of its receipt."""
FRAME_MS = 5
WEEK_QUARTERS = 7 * 96
RUNS = 5
FRAMES = 60
"""A run."""
STATM = Path("/proc/self/statm")
PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a curve: how large it is there, and what is measured.

    `accounts` of a shard, with so many `meters` each, that were read `weeks` times before, a week
    apart: full of windows and ladders.
    """

    curve: str
    size: int
    shards: int = 1
    accounts: int = 8_000
    meters: int = 1
    weeks: int = 0
    tariff: str = site.FLAT

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the process that measures it."""
        numbers = (self.shards, self.accounts, self.meters, self.weeks)
        return ("reading", self.tariff, *map(str, numbers))

    @property
    def name(self) -> str:
        """Of its figure."""
        return f"curves.reading_us.{self.curve}.{self.size}"


_MERGED = [Step("meters_per_account", n, accounts=12_800 // n, meters=n) for n in (1, 16, 256)]
STEPS = (
    *(Step("accounts_per_shard", n, accounts=n) for n in (1_000, 10_000, 100_000)),
    *(Step("shards_per_worker", n, shards=n) for n in (1, 2, 4, 8)),
    *_MERGED,
    *(replace(s, curve=f"{s.curve}_on_ladders", tariff=site.TOU_LADDER) for s in _MERGED),
    *(Step("weeks_of_history", n, tariff=site.TOU_LADDER, weeks=n) for n in (0, 1, 26)),
)
MEMORIES = (
    (site.FLAT, site.FLAT, 0),
    (site.TOU_LADDER, site.TOU_LADDER, 0),
    (f"{site.TOU_LADDER}_full", site.TOU_LADDER, WINDOWS_MAX + 1),
)
"""(name, tariff, weeks of history): with as many as there may be windows all of them are taken."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: the steps of the curves, and the memory of so many meters."""

    steps: tuple[Step, ...] = STEPS
    remembered: int = 100_000


async def measure(cores: Cores, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench."""
    figures = []
    for step in plan.steps:
        screen.say(f"curves: {step.curve} {step.size:,}")
        figures.append(_figure(step.name, "µs", await _said(cores, *step.arguments)))
    for name, tariff, weeks in MEMORIES:
        screen.say(f"curves: memory, {name}")
        found = await _said(cores, "memory", tariff, str(plan.remembered), str(weeks))
        figures.append(_figure(f"curves.memory_mb_per_million_meters.{name}", "MB", found))
    return figures


def _figure(name: str, unit: str, value: float) -> Figure:
    return Figure(name, value, unit, 1, value, value)


async def _said(cores: Cores, *arguments: str) -> float:
    command = cores.measured((sys.executable, "-m", "tools.bench.curves", *arguments))
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, cwd=ROOT)
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, f"{' '.join(arguments)} failed"
    return float(said)


class Worker:
    """The shards of one process, and the frames that come to them in turn."""

    def __init__(self, tariff: str, shards: int, accounts: int, meters: int) -> None:
        self.states = [ShardState.empty(shard) for shard in range(shards)]
        self._meters = []
        self._now_ms = BEGAN_MS + YEAR_MS
        for state in self.states:
            numbers = state.shard * accounts + np.arange(accounts)
            self._meters.append(
                Meters(state.shard, numbers, tariff=tariff, each=meters, begins_ms=BEGAN_MS)
            )
            for subject, fact in (*site.of_every_shard(), *self._meters[-1].facts()):
                absorb(state, LogRecord(state.offset + 1, self._now_ms, subject, fact))

    @property
    def meters_bytes(self) -> int:
        """What the meters take that send the readings: they are the bench's own."""
        return sum(meters.nbytes for meters in self._meters)

    def read_all(self, quarters: int = 1) -> None:
        """Let each meter be read, and each balance be due."""
        self._now_ms += BALANCE_EVERY_MS
        for meters in self._meters:
            for _ in range(-(-len(meters) // READINGS_MAX)):
                self._work(self._frame(meters, quarters))

    def reading_us(self) -> float:
        """Return what a reading costs."""
        least_s = float("inf")
        for _ in range(RUNS):
            turns = [self._meters[turn % len(self._meters)] for turn in range(FRAMES)]
            frames = [self._frame(meters) for meters in turns]
            began_s = time.process_time()
            for raw in frames:
                self._work(raw)
            least_s = min(least_s, time.process_time() - began_s)
        return least_s / FRAMES / READINGS_MAX * 1e6

    def _frame(self, meters: Meters, quarters: int = 1) -> Raw:
        self._now_ms += FRAME_MS
        frame = meters.frame(READINGS_MAX, quarters=quarters, received_at_ms=self._now_ms)
        schema = codec.schema_header(FRAME)
        headers = Envelope(schema, name_uuid(FRAME, self._now_ms), self._now_ms).headers()
        value = codec.encode(FRAME, frame.to_record())
        return Raw(meters.shard, 0, self._now_ms, None, value, headers)

    def _work(self, raw: Raw) -> None:
        state, found = self.states[raw.shard], opened(raw)
        assert isinstance(found, Opened), "a bench writes what can be read"
        done = absorb(state, replace(found.record, offset=state.offset + 1))
        assert done.counts["accepted"] == READINGS_MAX, done.counts
        for output in done.outputs:
            codec.encode(output.subject, output.record)
        for records in packed([done.account_rows]):
            RowBatch(records)


def memory_mb(tariff: str, meters: int, weeks: int) -> float:
    """Return MB a million meters take: read from the changelog, and each read and told of since.

    They were read `weeks` times before, a week apart.
    As metering has it at rest: what was read is packed, and the room it took given back.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # its memory goes with it
        before = _resident_bytes()
        worker, rows = apart.submit(_remembered, tariff, meters, weeks).result()
        state = shard_of_rows(0, rows)
        del rows
        state.facts.pack(2 * meters)
        worker.states = [state]
        worker.read_all()
        gc.collect()
        memory.give_back()
        return (_resident_bytes() - before - worker.meters_bytes) / meters


def _remembered(tariff: str, meters: int, weeks: int) -> tuple[Worker, list[Row]]:
    worker = Worker(tariff, 1, meters, 1)
    worker.read_all()
    for _ in range(weeks):
        worker.read_all(WEEK_QUARTERS)
    facts, accounts, header = rows_of(worker.states[0])
    worker.states = []
    return worker, [*facts, *accounts, header]


def _resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * PAGE_BYTES


def main() -> None:
    """Measure one thing, and print it."""
    what, tariff, *numbers = sys.argv[1:]
    if what == "memory":
        print(memory_mb(tariff, *map(int, numbers)))
        return
    shards, accounts, meters, weeks = map(int, numbers)
    worker = Worker(tariff, shards, accounts, meters)
    worker.read_all()
    for _ in range(weeks):
        worker.read_all(WEEK_QUARTERS)
    print(worker.reading_us())


if __name__ == "__main__":
    main()
