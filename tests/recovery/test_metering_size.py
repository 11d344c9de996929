"""Goal: with 100,000 accounts metering is back within 4 s of a SIGKILL, or another within 10 s.

Method: the log and the rows of a crowd are written as metering leaves them; a worker is killed; the
clock runs from SIGKILL until every shard has a new charge. The judge is that of the other tests.
"""

import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.metering.domain.absorb import absorb
from services.metering.domain.messages import LogRecord
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import rows_of
from tests.recovery import metering_crowd, metering_judge, metering_world
from tests.recovery.faults import Fault, rounds
from tests.recovery.metering_crowd import Crowd
from tests.recovery.metering_history import SHARDS
from tests.recovery.metering_judge import end_offsets
from tests.recovery.metering_world import World
from tests.recovery.workers import Worker, until_async
from tools.stack.background import BackgroundStack

ACCOUNTS = 100_000
FEW = 40
AGAIN_MAX_S = 4.0
TAKEN_OVER_MAX_S = 10.0


def test_the_rows_of_a_crowd_are_those_of_an_absorb_of_everything() -> None:
    crowd = Crowd(FEW, start_ms=1_000_000)
    for shard in range(SHARDS):
        entries = list(crowd.opening(shard))
        times_ms = 2_000_000 + 7 * np.arange(len(entries)) // 3
        wanted = ShardState.empty(shard)
        for offset, entry in enumerate(entries):
            value = metering_crowd.decoded(entry)
            absorb(wanted, LogRecord(offset, int(times_ms[offset]), entry.subject, value))
        facts, accounts, header = rows_of(wanted)
        _, rows = crowd.absorbed(entries, times_ms)
        assert sorted(rows) == sorted([*facts, *accounts, header])


@pytest.fixture
async def world(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[World]:
    async with metering_world.world(stack.kafka_bootstrap, tmp_path) as world:
        yield world


@pytest.mark.alone
@pytest.mark.stack
@pytest.mark.fault("metering-killed-with-100000-accounts")
async def test_with_100000_accounts_it_charges_again_within_4_s(world: World, fault: Fault) -> None:
    """And within 10 s where the killed worker stays away and another one is there."""
    crowd = Crowd(ACCOUNTS, world.history.start_ms)
    begin = await metering_crowd.settle(world.bootstrap, crowd)
    one, two = world.worker(), world.worker("metering-1")
    one.start()
    await one.wait_ready()
    again_s, taken_over_s = [], []
    turn = 1
    for _ in rounds(1):
        turn += 1
        again_s.append(await charged_after_kill(world, crowd, turn, one, back=True))
        two.start()
        await two.wait_ready()
        turn += 1
        taken_over_s.append(await charged_after_kill(world, crowd, turn, one, back=False))
        fault.tried += 2
        one, two = two, one
    print("100,000 accounts, from SIGKILL to a charge of every shard:", again_s, taken_over_s)
    await world.caught_up()
    verdict = await metering_judge.judge(world.bootstrap, begin)
    fault.judged, fault.lost = verdict.judged, verdict.lost
    assert not verdict.lost, verdict
    assert max(again_s) < AGAIN_MAX_S
    assert max(taken_over_s) < TAKEN_OVER_MAX_S


async def charged_after_kill(
    world: World, crowd: Crowd, turn: int, worker: Worker, *, back: bool
) -> float:
    """Kill a worker, start it again where it is to be `back`; return seconds to the charges."""
    worker.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    await worker.wait_ended()
    ends = await end_offsets(world.bootstrap, "charges")
    if back:
        worker.start()
    await world.feeder.write(
        crowd.frame(shard, turn, crowd.numbers(shard)[:FEW]) for shard in range(SHARDS)
    )

    async def all_grown() -> bool:
        now = await end_offsets(world.bootstrap, "charges")
        return all(now[tp] > end for tp, end in ends.items())

    await until_async(all_grown, "every shard has a new charge")
    return round(time.monotonic() - killed_at, 2)
