"""Goal: whatever kills a metering worker, and wherever, its charges and decisions are the same.

Method: workers on real Kafka are killed at every boundary of the order of work, and at random
moments, while the log grows. The judge is an undisturbed absorb over the very log they read: the
union of what the workers put out, one of each event id, must be equal to it byte for byte, and so
must the rows that are recovered from the changelog.
"""

import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.metering.adapters.exits import Exit
from tests.recovery import metering_world
from tests.recovery.faults import Fault, rounds
from tests.recovery.metering_history import SHARDS
from tests.recovery.metering_judge import end_offsets
from tests.recovery.metering_world import SEED, World
from tests.recovery.workers import until
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

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
async def world(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[World]:
    async with metering_world.world(stack.kafka_bootstrap, tmp_path) as world:
        yield world


@pytest.mark.fault("metering-killed-at-each-boundary")
async def test_killed_at_each_boundary_it_charges_the_same(world: World, fault: Fault) -> None:
    chance = random.Random(SEED)
    worker = world.worker()
    await world.open()
    for _ in rounds(1):
        for boundary in BOUNDARIES:
            await world.feed(STEPS_A_LIFE)
            worker.start(boundary, hit=chance.randint(1, HIT_MAX))
            await worker.wait_ended()
            fault.tried += 1
    assert worker.codes == {-signal.SIGKILL: fault.tried}, worker.log_end

    worker.start()
    await world.caught_up()
    verdict = await world.judged(fault)
    assert verdict.repeats, "no kill made anything be done twice"


@pytest.mark.alone
@pytest.mark.fault("metering-killed-at-random")
async def test_killed_at_random_it_puts_out_again_within_3_s(world: World, fault: Fault) -> None:
    """From SIGKILL to the first new output, with a static member."""
    chance = random.Random(SEED)
    worker = world.worker()
    await world.open()
    worker.start()
    await worker.wait_ready()
    took_s = []
    for _ in rounds(RANDOM_KILLS):
        await world.feed(chance.randint(1, STEPS_A_LIFE))
        worker.signal(signal.SIGKILL)
        killed_at = time.monotonic()
        await worker.wait_ended()
        fault.tried += 1
        ends = await end_offsets(world.bootstrap, "charges")
        worker.start()
        await world.feed(STEPS_A_LIFE)
        await world.grown("charges", ends)
        took_s.append(time.monotonic() - killed_at)
    print("from SIGKILL to a new charge:", [f"{each:.2f} s" for each in took_s])
    await world.caught_up()
    await world.judged(fault)
    assert max(took_s) < OUTPUT_AFTER_KILL_MAX_S


@pytest.mark.fault("metering-stopped-past-its-session")
async def test_stopped_past_its_session_it_leaves_and_its_successor_charges_right(
    world: World, fault: Fault
) -> None:
    """It is suspended with rows on their way and goes on when its shards are another's."""
    worker, successor = world.worker(), world.worker("metering-1")
    await world.open()
    successor.start()
    await world.caught_up()
    for _ in rounds(1):
        worker.start("account-rows-sent", hit=HIT_MAX, by=signal.SIGSTOP)
        await worker.wait_ready()
        while not worker.is_stopped:
            await world.feed(SHARDS)
        await world.caught_up()
        await world.feed(STEPS_A_LIFE)
        worker.signal(signal.SIGCONT)
        await worker.wait_ended()
        fault.tried += 1
    assert worker.codes == {Exit.FENCED: fault.tried}, worker.log_end
    await world.caught_up()
    await world.judged(fault)
    assert not successor.ended(), successor.log_end


@pytest.mark.fault("metering-told-to-stop")
async def test_told_to_stop_it_leaves_nothing_to_do_again(world: World, fault: Fault) -> None:
    worker = world.worker()
    await world.open()
    worker.start()
    for _ in rounds(1):
        await worker.wait_ready()
        await world.feed(STEPS_A_LIFE)
        worker.signal(signal.SIGTERM)
        await worker.wait_ended()
        fault.tried += 1
        worker.start()
    assert worker.codes == {0: fault.tried}, worker.log_end
    await world.caught_up()
    verdict = await world.judged(fault)
    assert not verdict.repeats


@pytest.mark.fault("metering-fails-at-a-record")
async def test_failing_at_a_record_it_leaves_before_the_record_is_acknowledged(
    world: World, fault: Fault
) -> None:
    """By itself faust acknowledges such a record and goes on."""
    worker = world.worker()
    await world.open()
    for _ in rounds(1):
        await world.feed(STEPS_A_LIFE)
        worker.start(switch=["fails_at_a_record"])
        await worker.wait_ended()
        fault.tried += 1
    assert worker.codes == {Exit.FAILED: fault.tried}, worker.log_end
    worker.start()
    await world.caught_up()
    await world.judged(fault)
    await until(worker.is_ready, "it goes on")
