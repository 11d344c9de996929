"""Goal: whatever kills a metering worker, and wherever, its charges and decisions are the same.

Method: workers on real Kafka are killed at every boundary of the order of work, and at random
moments, while the log grows. The judge is an undisturbed absorb over the very log they read: the
union of what the workers put out, one of each event id, must be equal to it byte for byte, and so
must the rows that are recovered from the changelog.
"""

import random
import signal
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import pytest

from services.common.runtime import kafka
from services.metering.adapters.exits import Exit
from tests.recovery import metering_judge as judge
from tests.recovery.metering_history import SHARDS, History
from tests.recovery.metering_judge import Feeder
from tests.recovery.workers import Worker, until_async
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

SEED = 20260
BOUNDARIES = (
    "absorbed",
    "outputs-sent",
    "outputs-acknowledged",
    "fact-rows-sent",
    "fact-rows-acknowledged",
    "account-rows-sent",
    "account-rows-acknowledged",
    "header-rows-sent",
    "header-rows-acknowledged",
    "acknowledged",
)
HIT_MAX = 6
STEPS_A_LIFE = 60
RANDOM_KILLS = 3
OUTPUT_AFTER_KILL_MAX_S = 3.0


@pytest.fixture
async def bootstrap(stack: BackgroundStack) -> str:
    await judge.fresh_topics(stack.kafka_bootstrap)
    return stack.kafka_bootstrap


@pytest.fixture
async def feeder(bootstrap: str) -> AsyncIterator[Feeder]:
    async with kafka.producer(bootstrap, client_id="history") as producer:
        yield Feeder(producer)


@pytest.fixture
def history() -> History:
    return History(SEED, time.time_ns() // 1_000_000)


@pytest.fixture
def worker(bootstrap: str, tmp_path: Path) -> Iterator[Worker]:
    worker = judge.metering(bootstrap, tmp_path)
    yield worker
    worker.end()


@pytest.mark.fault("metering-killed-at-each-boundary")
async def test_killed_at_each_boundary_it_charges_the_same(
    bootstrap: str, feeder: Feeder, history: History, worker: Worker
) -> None:
    chance = random.Random(SEED)
    await feeder.write(history.opening())
    for boundary in BOUNDARIES:
        await feeder.write(history.steps(STEPS_A_LIFE))
        worker.start(boundary, hit=chance.randint(1, HIT_MAX))
        await worker.wait_ended()
    assert worker.codes == {-signal.SIGKILL: len(BOUNDARIES)}, worker.log_end

    worker.start()
    await until_async(lambda: judge.caught_up(bootstrap), "the log is absorbed")
    assert await judge.judge(bootstrap) > 0, "no kill made anything be done twice"


@pytest.mark.fault("metering-killed-at-random")
async def test_killed_at_random_it_puts_out_again_within_3_s(
    bootstrap: str, feeder: Feeder, history: History, worker: Worker
) -> None:
    """From SIGKILL to the first new output, with a static member."""
    chance = random.Random(SEED)
    await feeder.write(history.opening())
    worker.start()
    await worker.wait_ready()
    took_s = []
    for _ in range(RANDOM_KILLS):
        await feeder.write(history.steps(chance.randint(1, STEPS_A_LIFE)))
        worker.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        await worker.wait_ended()
        ends = await judge.end_offsets(bootstrap, "charges")
        worker.start()
        await feeder.write(history.steps(STEPS_A_LIFE))
        grown = partial(judge.has_grown, bootstrap, "charges", ends)
        await until_async(grown, "there is a new charge")
        took_s.append(time.monotonic() - killed_at)
    print("from SIGKILL to a new charge:", [f"{each:.2f} s" for each in took_s])
    await until_async(lambda: judge.caught_up(bootstrap), "the log is absorbed")
    await judge.judge(bootstrap)
    assert max(took_s) < OUTPUT_AFTER_KILL_MAX_S


@pytest.mark.fault("metering-stopped-past-its-session")
async def test_stopped_past_its_session_it_leaves_and_its_successor_charges_right(
    bootstrap: str, feeder: Feeder, history: History, worker: Worker, tmp_path: Path
) -> None:
    """It is suspended with rows on their way and goes on when its shards are another's."""
    successor = judge.metering(bootstrap, tmp_path, "metering-1")
    try:
        await feeder.write(history.opening())
        successor.start()
        await until_async(lambda: judge.caught_up(bootstrap), "the facts are absorbed")
        worker.start("account-rows-sent", hit=HIT_MAX, by=signal.SIGSTOP)
        await worker.wait_ready()
        while not worker.is_stopped:
            await feeder.write(history.steps(SHARDS))
        await until_async(lambda: judge.caught_up(bootstrap), "the successor has it all")
        await feeder.write(history.steps(STEPS_A_LIFE))
        worker.signal(signal.SIGCONT)
        await worker.wait_ended()
        assert worker.codes == {Exit.FENCED: 1}, worker.log_end
        await until_async(lambda: judge.caught_up(bootstrap), "the log is absorbed")
        await judge.judge(bootstrap)
    finally:
        successor.end()


@pytest.mark.fault("metering-told-to-stop")
async def test_told_to_stop_it_leaves_nothing_to_do_again(
    bootstrap: str, feeder: Feeder, history: History, worker: Worker
) -> None:
    await feeder.write(history.opening())
    worker.start()
    await worker.wait_ready()
    await feeder.write(history.steps(STEPS_A_LIFE))
    worker.signal(signal.SIGTERM)
    await worker.wait_ended()
    assert worker.codes == {0: 1}, worker.log_end
    worker.start()
    await until_async(lambda: judge.caught_up(bootstrap), "the log is absorbed")
    assert await judge.judge(bootstrap) == 0
