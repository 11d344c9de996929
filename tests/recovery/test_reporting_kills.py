"""Goal: the tables are those of the whole log, read once and in order, whatever dies or sleeps.

Method: the real service on the real Kafka and PostgreSQL is killed at each boundary of a batch and
at random under load, suspended until its session is another's, and its rebuild is killed at each
step beside it. The judge is the projection itself, told the whole log without a database: every row
of every table must be its row. Each guard that this rests on is then switched off, and the same
judge must find what is lost.
"""

import random
import signal
from itertools import product

import pytest

from services.reporting.adapters.database import SILENT_MAX_S
from tests.recovery import reporting_judge as judge
from tests.recovery.faults import Fault, rounds
from tests.recovery.reporting_judge import Office, Teller
from tests.recovery.workers import Worker, until, until_async
from tests.unit.reporting_records import CREDIT_NANO, TOP_UP_NANO

pytestmark = pytest.mark.stack

SEED = 20263
BOUNDARIES = ("read", "positions-written", "rows-written", "committed")
REBUILD_BOUNDARIES = ("rows-written", "filled", "swapping", "swapped")
HIT_MAX = 8
STORIES_A_LIFE = 10
RANDOM_KILLS = 3


@pytest.mark.fault("reporting-killed-at-each-boundary")
async def test_killed_at_each_boundary_of_a_batch_its_tables_are_right(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    chance = random.Random(SEED)
    for _ in rounds(1):
        for boundary in BOUNDARIES:
            await teller.tell(STORIES_A_LIFE)
            worker.start(boundary, hit=chance.randint(1, HIT_MAX))
            await worker.wait_ended()
            fault.tried += 1
    assert worker.codes == {-signal.SIGKILL: fault.tried}, worker.log_end
    worker.start()
    await judge.everything_is_read(office)
    (await judge.judged(office)).count(fault)


@pytest.mark.fault("reporting-killed-at-random")
async def test_killed_at_random_under_load_its_tables_are_right(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    chance = random.Random(SEED)
    worker.start()
    await worker.wait_ready()
    async with teller.telling():
        for _ in rounds(RANDOM_KILLS):
            await judge.until_rows(office, "receipts", chance.randint(1, 4 * STORIES_A_LIFE))
            await worker.kill()
            fault.tried += 1
            worker.start()
    await judge.everything_is_read(office)
    (await judge.judged(office)).count(fault)


@pytest.mark.fault("reporting-stopped-past-its-session")
async def test_stopped_past_its_session_another_goes_on_and_the_tables_are_right(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    """It is suspended within a transaction, then between two; it wakes behind its successor."""
    successor = office.worker("reporting-1")
    try:
        for _, boundary in product(rounds(1), ("rows-written", "committed")):
            await teller.tell(STORIES_A_LIFE)
            worker.start(boundary, hit=HIT_MAX, by=signal.SIGSTOP)
            await until(lambda: worker.is_stopped, "it is suspended")
            successor.start()
            await successor.wait_ready()
            await teller.tell(STORIES_A_LIFE)
            await judge.everything_is_read(office)
            worker.signal(signal.SIGCONT)
            fault.tried += 1
            await teller.tell(STORIES_A_LIFE)
            await judge.everything_is_read(office)
            await judge.until_not_ready(worker)
            (await judge.judged(office)).count(fault)
            await successor.kill()
            await worker.wait_ready()
            await worker.kill()
    finally:
        successor.end()


@pytest.mark.fault("reporting-rebuild-killed-at-each-step")
async def test_a_rebuild_killed_at_each_step_leaves_whole_tables_and_is_repeated(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    chance = random.Random(SEED)
    again = office.worker(command="rebuild")
    worker.start()
    try:
        for _, boundary in product(rounds(1), REBUILD_BOUNDARIES):
            await teller.tell(STORIES_A_LIFE)
            await judge.everything_is_read(office)
            hit = chance.randint(1, HIT_MAX) if boundary == "rows-written" else 1
            again.start(boundary, hit=hit)
            await again.wait_ended()
            fault.tried += 1
            (await judge.judged(office)).count(fault)
        assert again.codes == {-signal.SIGKILL: fault.tried}, again.log_end
        again.start()
        await again.wait_ended()
        assert again.codes[0] == 1, again.log_end
        (await judge.judged(office)).count(fault)
        await teller.tell(1)
        await judge.everything_is_read(office)
        (await judge.judged(office)).count(fault)
    finally:
        again.end()
    assert not worker.ended(), worker.log_end


# --- shown to fail --------------------------------------------------------------------------------


async def test_with_positions_apart_from_rows_a_kill_loses_rows(
    office: Office, teller: Teller, worker: Worker
) -> None:
    await teller.tell(1)
    worker.start("positions-committed", switch=["positions_apart_from_rows"])
    await worker.wait_ended()
    worker.start()
    await judge.everything_is_read(office)
    with pytest.raises(AssertionError, match="is missing"):
        (await judge.judged(office)).check()


async def test_without_lock_positions_and_versions_one_that_wakes_undoes_rows(
    office: Office, teller: Teller, worker: Worker
) -> None:
    """Each of the three is enough by itself; with none of them what it held stands last."""
    off = ["anybody_writes", "any_positions", "any_version"]
    successor = office.worker("reporting-1")
    story = office.story()
    try:
        await teller.send([story.account_fact(1, CREDIT_NANO)])
        worker.start(switch=[*off, "sleep_on_a_batch"])
        await until(lambda: worker.is_stopped, "it is suspended")
        await teller.send([story.account_fact(2, CREDIT_NANO + TOP_UP_NANO)])
        successor.start(switch=off)
        await judge.everything_is_read(office)
        worker.signal(signal.SIGCONT)
        await worker.wait_ended()
    finally:
        successor.end()
    with pytest.raises(AssertionError, match=rf"accounts \('{story.account}',\) is"):
        (await judge.judged(office)).check()


async def test_without_an_end_of_its_silence_a_sleeping_writer_keeps_all_others_out(
    office: Office, teller: Teller, worker: Worker
) -> None:
    successor = office.worker("reporting-1")
    try:
        await teller.tell(1)
        worker.start("rows-written", by=signal.SIGSTOP, switch=["any_silence"])
        await until(lambda: worker.is_stopped, "it is suspended")
        successor.start()

        async def long_enough() -> bool:
            return await judge.silent_for_s(office, worker.instance) > SILENT_MAX_S + 1

        await until_async(long_enough, "its session lasts longer than it may")
        assert not successor.is_ready()
    finally:
        successor.end()


async def test_a_rebuild_in_the_tables_themselves_shows_half_of_them_when_killed(
    office: Office, teller: Teller, worker: Worker
) -> None:
    again = office.worker(command="rebuild")
    await teller.tell(1)
    worker.start()
    await judge.everything_is_read(office)
    await worker.kill()
    again.start("rows-written", switch=["swap_before_filling"])
    await again.wait_ended()
    with pytest.raises(AssertionError, match="is missing"):
        (await judge.judged(office)).check()
