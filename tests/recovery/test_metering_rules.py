"""Goal: each rule of metering's shell is needed: without it the same stories end badly.

Method: a function of `metering_switches` switches the rule off in the worker; the worker is killed
where that must show; the judge of the other tests then finds outputs missing, invented or wrong,
or the worker leaves where it would have gone on. Rules 5, 6, 8 and 9 are in test_metering_members,
beside the faults they stand. Nothing here is lost by chance: each test says where it dies. The
README of metering names these tests.
"""

import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.metering.adapters.exits import Exit
from tests.recovery import faults, metering_world
from tests.recovery.metering_judge import Verdict, end_offsets
from tests.recovery.metering_world import World
from tests.recovery.test_metering_kills import OUTPUT_AFTER_KILL_MAX_S
from tools.stack.background import BackgroundStack

STEPS = 60
HIT = 6


@pytest.fixture
async def world(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[World]:
    async with metering_world.world(stack.kafka_bootstrap, tmp_path) as world:
        yield world


def test_the_readme_of_metering_names_tests_that_are_there() -> None:
    readme = (faults.ROOT / "services" / "metering" / "README.md").read_text()
    here = "".join(path.read_text() for path in Path(__file__).parent.glob("test_metering_*.py"))
    named = set(re.findall(r"`(test_\w+)`", readme))
    assert named
    assert not {name for name in named if f"def {name}(" not in here}


async def killed(world: World, rule_off: str) -> Verdict:
    """Kill a worker where another order shows; let it go on in the right one; judge."""
    worker = world.worker()
    await world.open()
    await world.feed(STEPS)
    worker.start("between", switch=[rule_off])
    await worker.wait_ended()
    assert worker.codes == {-signal.SIGKILL: 1}, worker.log_end
    worker.start()
    await world.caught_up()
    return await world.verdict()


@pytest.mark.stack
async def test_rule_1_rows_before_outputs_lose_outputs(world: World) -> None:
    verdict = await killed(world, "rows_before_outputs")
    assert verdict.missing, verdict


@pytest.mark.stack
async def test_rule_1_account_rows_before_fact_rows_lose_facts(world: World) -> None:
    verdict = await killed(world, "accounts_before_facts")
    assert verdict.wrong_rows, verdict


@pytest.mark.stack
async def test_rule_1_the_header_row_before_account_rows_loses_what_they_hold(
    world: World,
) -> None:
    verdict = await killed(world, "header_before_accounts")
    assert verdict.wrong_rows, verdict


@pytest.mark.stack
async def test_rule_3_without_an_epoch_of_its_own_a_worker_takes_itself_for_another(
    world: World,
) -> None:
    """What it holds when another joins lands among the rows of the next owner."""
    one, two = world.worker(), world.worker("metering-1")
    await world.open()
    one.start(switch=["rows_late", "lanes_outlive_their_assignment"])
    await one.wait_ready()
    two.start()
    while not (one.ended() or two.ended()):
        await world.feed(1)
    assert (one.codes | two.codes).keys() == {Exit.FOREIGN_WRITER}, one.log_end


@pytest.mark.stack
async def test_rule_4_a_recovery_that_stops_short_skips_what_it_lacks(world: World) -> None:
    """Rule 8 goes on behind the rows that there are; where that is off too, charges are wrong.

    Rows are written twice, so that the first half of them has accounts, as they were.
    """
    worker = world.worker()
    await world.open()
    worker.start()
    for _ in range(2):
        await world.feed(STEPS)
        await world.caught_up()
    await worker.kill()
    worker.start(
        switch=[
            "recovery_stops_short",
            "only_what_is_committed_is_sought",
            "holes_are_passed_over",
            "rows_may_land_anywhere",
        ]
    )
    await world.feed(STEPS)
    await world.caught_up()
    verdict = await world.verdict()
    assert verdict.wrong, verdict


@pytest.mark.stack
async def test_rule_7_without_the_clock_a_woken_worker_makes_its_healthy_successor_leave(
    world: World,
) -> None:
    """It writes old rows behind its successor's, who leaves by rule 6 and mends them by rule 5."""
    worker, successor = world.worker(), world.worker("metering-1")
    short = "sessions_are_short"
    await world.open()
    successor.start(switch=[short])
    await world.caught_up()
    worker.start(
        "account-rows-sent",
        hit=HIT,
        by=signal.SIGSTOP,
        switch=[short, "sessions_do_not_end", "names_may_be_shared"],
    )
    await worker.wait_ready()
    while not worker.is_stopped:
        await world.feed(1)
    await world.caught_up()
    worker.signal(signal.SIGCONT)
    await worker.wait_ended()
    await world.feed(STEPS)
    await successor.wait_ended()
    assert successor.codes == {Exit.FOREIGN_WRITER: 1}, successor.log_end
    successor.start()
    await world.caught_up()
    await world.judged()


@pytest.mark.stack
async def test_rule_8_a_record_that_raises_is_lost_where_the_worker_goes_on(world: World) -> None:
    worker = world.worker()
    await world.open()
    await world.feed(STEPS)
    worker.start(switch=["fails_at_a_record", "failures_are_passed_over"])
    await world.caught_up()
    verdict = await world.verdict()
    assert verdict.lost, verdict


@pytest.mark.stack
async def test_rule_9_without_a_name_a_restarted_worker_waits_for_the_session(
    world: World,
) -> None:
    worker = world.worker()
    await world.open()
    worker.start(switch=["members_are_dynamic"])
    await world.caught_up()
    worker.signal(signal.SIGKILL)
    killed_at = time.monotonic()
    await worker.wait_ended()
    ends = await end_offsets(world.bootstrap, "charges")
    worker.start(switch=["members_are_dynamic"])
    await world.feed(STEPS)
    await world.grown("charges", ends)
    assert time.monotonic() - killed_at > OUTPUT_AFTER_KILL_MAX_S
