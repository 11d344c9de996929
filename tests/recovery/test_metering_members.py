"""Goal: workers come and go, share a name, or write where they must not, and no charge is wrong.

Method: as in test_metering_kills. Here the faults are those of a group: rebalances with records
and rows on their way, two processes of one name, rows that somebody else wrote.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from services.metering.adapters.exits import Exit
from tests.recovery import metering_world
from tests.recovery.faults import Fault, rounds
from tests.recovery.metering_history import SHARDS
from tests.recovery.metering_judge import LOG, end_offsets
from tests.recovery.metering_switches import QUEUE_FULL
from tests.recovery.metering_world import World, commit, lags
from tests.recovery.workers import Worker, until, until_async
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

STEPS = 60
FEEDS_MAX = 5
BACKLOG = 4 * QUEUE_FULL
"""More than faust's queue holds, of the shards that a worker keeps when another joins it."""
JOINS_MAX = 5
LOAD_INTERVAL_S = 0.1
HIT = 6
SHARD = 5
OUSTED = 3


@pytest.fixture
async def world(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[World]:
    async with metering_world.world(stack.kafka_bootstrap, tmp_path) as world:
        yield world


@asynccontextmanager
async def load(world: World) -> AsyncIterator[None]:
    """Let the history go on all the time."""

    async def go_on() -> None:
        while True:
            await world.feed(SHARDS)
            await asyncio.sleep(LOAD_INTERVAL_S)

    feeding = asyncio.create_task(go_on())
    try:
        yield
    finally:
        feeding.cancel()
        await asyncio.wait([feeding])


@pytest.mark.fault("metering-members-change")
async def test_workers_come_and_go_under_load_and_every_charge_is_right(
    world: World, fault: Fault
) -> None:
    """Rows are on their way at every moment: each takes its time."""
    one, two, three = (world.worker(f"metering-{number}") for number in range(3))
    slow = ["rows_late"]
    await world.open()
    for worker in (one, two):
        worker.start(switch=slow)
        await worker.wait_ready()
    for _ in rounds(1):
        async with load(world):
            three.start(switch=slow)
            await three.wait_ready()
            await one.kill()
            three.signal(signal.SIGTERM)
            await three.wait_ended()
            # Both stay away for longer than the session.
            await world.has_all(two)
            one.start(switch=slow)
            await one.wait_ready()
            fault.tried += 4
    await world.caught_up()
    assert (one.codes, three.codes) == (
        {-signal.SIGKILL: fault.tried // 4},
        {0: fault.tried // 4},
    ), three.log_end
    await world.judged(fault)
    assert not one.ended(), one.log_end
    assert not two.ended(), two.log_end


@pytest.mark.fault("metering-hole-provoked")
async def test_where_faust_would_skip_records_none_is_skipped(world: World, fault: Fault) -> None:
    """A member joins with a backlog in faust's queue, and recovery's seek comes late."""
    one, two = world.worker(RECORDS_PENDING_MAX="1"), world.worker("metering-1")
    await world.open()
    one.start(switch=["seeks_late"])
    await world.caught_up()
    for _ in rounds(1):
        if not two.ended():
            await two.kill()
            await world.has_all(one)
        await join_with_backlog(world, one, two)
        await world.caught_up()
        fault.tried += 1
    await world.judged(fault)
    assert not one.ended(), one.log_end


@pytest.mark.parametrize("unseen", [False, True])
async def test_without_the_steady_flow_records_are_skipped(world: World, unseen: bool) -> None:
    """The look at continuity stops the worker before one is acknowledged; without it they are."""
    one, two = world.worker(RECORDS_PENDING_MAX="1"), world.worker("metering-1")
    await world.open()
    switched = ["records_flow_before_the_seek", "seeks_late"]
    one.start(switch=[*switched, "holes_are_passed_over"] if unseen else switched)
    await world.caught_up()
    await join_with_backlog(world, one, two)
    if unseen:
        await world.absorbed()
        assert (await world.verdict()).missing
        return
    await one.wait_ended()
    assert one.codes == {Exit.HOLE: 1}, one.log_end
    one.start()
    await world.caught_up()
    await world.judged()


async def join_with_backlog(world: World, one: Worker, two: Worker) -> None:
    """Let `two` join, and the log grow while the rebalance is on."""
    for _ in range(JOINS_MAX):
        two.start()
        if await sees_a_rebalance(one, two):
            await world.feed(BACKLOG)
            return
        await two.kill()  # it was over before anybody could look
        await world.has_all(one)
    raise AssertionError(f"none of {JOINS_MAX} rebalances was seen")


async def sees_a_rebalance(one: Worker, two: Worker) -> bool:
    """Say whether `one` was seen to lose its partitions before `two` has some."""
    seen = False

    def begins_or_ends() -> bool:
        nonlocal seen
        seen = not one.is_ready()
        return seen or two.is_ready()

    await until(begins_or_ends, "a rebalance begins")
    return seen


@pytest.mark.fault("metering-joined-before-its-first-commit")
async def test_joined_before_its_first_commit_it_begins_again(world: World, fault: Fault) -> None:
    """What faust fetches while it rebalances it drops, and would never fetch again."""
    for _ in rounds(1):
        one, two = world.worker(), world.worker("metering-1")
        await world.open()
        one.start(switch=["rows_wait_for_a_rebalance"])
        await until_async(lambda: has_put_out(world), "it absorbs")
        two.start()
        fault.tried += 1
        await world.caught_up()
        await world.judged(fault)
        assert not one.ended(), one.log_end


async def test_without_its_seek_it_skips_what_came_before_its_first_commit(world: World) -> None:
    one, two = world.worker(), world.worker("metering-1")
    await world.open()
    one.start(switch=["rows_wait_for_a_rebalance", "only_what_is_committed_is_sought"])
    await until_async(lambda: has_put_out(world), "it absorbs")
    two.start()
    await two.wait_ready()
    await world.feed(STEPS)
    await one.wait_ended()
    assert one.codes == {Exit.HOLE: 1}, one.log_end


async def has_put_out(world: World) -> bool:
    return sum((await end_offsets(world.bootstrap, "balances")).values()) > 0


@pytest.mark.fault("metering-committed-ahead-of-its-rows")
async def test_committed_ahead_of_its_rows_it_goes_on_behind_the_rows(
    world: World, fault: Fault
) -> None:
    """Faust, or a person, may commit what was never absorbed."""
    worker = world.worker()
    await world.open()
    for _ in rounds(1):
        await commit_ahead(world, worker)
        fault.tried += 1
        worker.start()
        await world.absorbed()
        await worker.kill()
    await world.judged(fault)


async def test_where_only_the_committed_is_sought_a_commit_ahead_stops_it(world: World) -> None:
    worker = world.worker()
    await world.open()
    await commit_ahead(world, worker)
    worker.start(switch=["only_what_is_committed_is_sought"])
    await world.feed(STEPS)
    await worker.wait_ended()
    assert worker.codes == {-signal.SIGKILL: 1, Exit.HOLE: 1}, worker.log_end


async def commit_ahead(world: World, worker: Worker) -> None:
    """Kill a worker before its rows are durable; commit the log to its end."""
    await world.feed(STEPS)
    worker.start("account-rows-sent")
    await worker.wait_ended()
    await commit(world.bootstrap, await end_offsets(world.bootstrap, LOG))


@pytest.mark.fault("metering-name-taken")
async def test_of_two_processes_of_one_name_the_first_leaves(world: World, fault: Fault) -> None:
    """At first when nothing is to be done, then under load."""
    one, two = world.worker(name="one"), world.worker(name="two")
    await world.open()
    one.start()
    await world.caught_up()
    for number in rounds(2):
        async with load(world) if number % 2 else nullcontext():
            two.start()
            await one.wait_ended()
            fault.tried += 1
        # Where both have written, the second has noticed it too.
        await world.caught_up(two)
        one, two = two, one
    left = one.codes.keys() | two.codes.keys()
    assert left <= {Exit.FENCED, Exit.FOREIGN_WRITER}, (one.log_end, two.log_end)
    await world.judged(fault)


async def test_two_of_one_name_that_do_not_leave_oust_each_other_for_ever(world: World) -> None:
    one, two = world.worker(name="one"), world.worker(name="two")
    for worker in (one, two):
        worker.start(switch=["names_may_be_shared"])
        await worker.wait_ready()
    for worker in (one, two):
        await until(lambda: recoveries(worker) >= OUSTED, "it joins again and again")  # noqa: B023
    assert not one.ended(), one.log_end
    assert not two.ended(), two.log_end


def recoveries(worker: Worker) -> int:
    return worker.log_path.read_text().count("rows recovered")


@pytest.mark.fault("metering-woken-beside-its-namesake")
async def test_woken_beside_its_namesake_its_old_rows_are_noticed(
    world: World, fault: Fault
) -> None:
    """It is stopped for less than its session, so no clock tells it; another has its name."""
    one, two = world.worker(name="one"), world.worker(name="two")
    await world.open()
    for _ in rounds(1):
        await wake_beside_namesake(world, one, two)
        fault.tried += 1
        await world.feed(STEPS)
        await world.caught_up(two)
        await two.kill()
    assert one.codes.keys() <= {Exit.FENCED, Exit.FOREIGN_WRITER}, one.log_end
    assert two.codes.keys() <= {-signal.SIGKILL, Exit.FOREIGN_WRITER}, two.log_end
    two.start()
    await world.feed(STEPS)
    await world.caught_up()
    await world.judged(fault)


async def test_woken_beside_a_namesake_that_does_not_look_it_makes_charges_wrong(
    world: World,
) -> None:
    """Off are: the fence, the leaving, where rows land, and the join of rows."""
    one, two = world.worker(name="one"), world.worker(name="two")
    await world.open()
    await wake_beside_namesake(
        world,
        one,
        two,
        ones=["sessions_do_not_end", "names_may_be_shared"],
        twos=["rows_may_land_anywhere"],
    )
    await two.kill()
    # An old header row may be among the last, and is noticed where somebody looks for holes.
    two.start(switch=["last_row_wins", "holes_are_passed_over"])
    for _ in range(FEEDS_MAX):  # an old row shows when its account is charged again
        await world.feed(STEPS)
        await world.caught_up()
        verdict = await world.verdict()
        if verdict.wrong:
            break
    assert verdict.wrong, verdict


async def wake_beside_namesake(
    world: World, one: Worker, two: Worker, ones: Sequence[str] = (), twos: Sequence[str] = ()
) -> None:
    """Stop `one` with rows on their way; let it go on, and end, when `two` has gone further."""
    one.start("account-rows-sent", hit=HIT, by=signal.SIGSTOP, switch=ones)
    await until(lambda: one.is_stopped, "it is stopped")
    await world.feed(STEPS)
    two.start(switch=twos)
    await world.caught_up()
    one.signal(signal.SIGCONT)
    await one.wait_ended()


@pytest.mark.fault("metering-foreign-writer")
async def test_rows_of_somebody_else_are_noticed_before_an_acknowledgement(
    world: World, fault: Fault
) -> None:
    """Old rows come behind the newest ones, under load and when nothing is to be done."""
    worker = world.worker(HEADER_INTERVAL_S="1")
    await world.open()
    await world.feed(STEPS)
    worker.start()
    for number in rounds(2):
        await world.caught_up()
        await world.old_rows_come_last(SHARD)
        if number % 2 == 0:
            before = await end_offsets(world.bootstrap, LOG)
            await world.feed(STEPS)
            after = await end_offsets(world.bootstrap, LOG)
        await worker.wait_ended()
        fault.tried += 1
        if number % 2 == 0:
            at = TopicPartition(LOG, SHARD)
            assert (await lags(world.bootstrap))[SHARD] == after[at] - before[at]
        worker.start()
    assert worker.codes == {Exit.FOREIGN_WRITER: fault.tried}, worker.log_end
    await world.feed(STEPS)
    await world.caught_up()
    await worker.kill()
    await world.compact()
    worker.start()
    await world.feed(STEPS)
    await world.caught_up()
    await world.judged(fault)


async def test_where_nobody_looks_where_rows_land_compaction_keeps_old_ones(world: World) -> None:
    worker = world.worker()
    await world.open()
    await world.feed(STEPS)
    worker.start(switch=["rows_may_land_anywhere"])
    await world.caught_up()
    await world.old_rows_come_last(SHARD)
    await worker.kill()
    await world.compact()
    worker.start(switch=["rows_may_land_anywhere"])
    await world.feed(STEPS)
    await world.caught_up()
    verdict = await world.verdict()
    assert verdict.wrong, verdict


async def test_where_the_last_row_wins_an_old_one_makes_charges_wrong(world: World) -> None:
    worker = world.worker()
    await world.open()
    await world.feed(STEPS)
    worker.start()
    await world.caught_up()
    await world.old_rows_come_last(SHARD)
    await worker.kill()
    worker.start(switch=["last_row_wins"])
    await world.feed(STEPS)
    await world.caught_up()
    verdict = await world.verdict()
    assert verdict.wrong, verdict
