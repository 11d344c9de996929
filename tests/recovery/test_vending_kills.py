"""Goal: a receipt that a customer holds is in the book, once, however vending was killed.

Method: tills sell over gRPC while the real vending on the real Kafka is killed at each boundary,
and at random; a till that got no answer asks again with the same request. The judge compares the
receipts that the tills hold with the SQLite file and with what vending says of the accounts. Each
guard that this rests on is then switched off, and the same judge must find what is lost.
"""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.common.kernel import names
from services.common.runtime.service import EXIT_FAILED
from tests.recovery import bus
from tests.recovery.faults import Fault, rounds
from tests.recovery.vending_judge import (
    TOPICS,
    book,
    heard,
    judge_moves,
    judge_sales,
    judge_topics,
    must_be_told,
    requests_in,
)
from tests.recovery.vending_shop import CLERK, Shop, Till, called_by, request_id, until_sold
from tests.recovery.verdict import Verdict
from tests.recovery.workers import until, until_async
from tools.stack.background import BackgroundStack
from tools.stack.ports import free_ports
from wattvend.vending.v1 import vending_pb2 as pb

pytestmark = pytest.mark.stack

SEED = 20261
BOUNDARIES = ("decided", "written", "committed", "answering")
HIT_MAX = 20
TILLS = 8
WRITERS = 32
ACCOUNTS = 40
SHARED = "A-shared"
RANDOM_KILLS = 5
SALES_A_LIFE_MAX = 400
METER = "M1"


@pytest.fixture
async def shop(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[Shop]:
    await bus.fresh(stack.kafka_bootstrap, TOPICS)
    shop = Shop(stack.kafka_bootstrap, tmp_path)
    yield shop
    shop.worker.end()


def tills_of(count: int) -> list[Till]:
    """Return tills: every second one sells to one shared account, the others to all of them."""
    accounts = [f"A{number}" for number in range(ACCOUNTS)]
    return [Till(f"till-{number}", accounts if number % 2 else [SHARED]) for number in range(count)]


async def furnished(shop: Shop, tills: Sequence[Till], **life: Any) -> None:
    shop.worker.start(**life)
    await shop.furnish({name for till in tills for name in till.accounts})


async def judged(shop: Shop, tills: Sequence[Till]) -> Verdict:
    """Ask the running vending, kill it, and judge what it said and left."""
    credited = await shop.credited(tills)
    await shop.worker.kill()
    return judge_sales(book(shop.path), tills, credited)


@pytest.mark.fault("vending-killed-at-each-boundary")
async def test_killed_at_each_boundary_each_receipt_is_in_the_book_once(
    shop: Shop, fault: Fault
) -> None:
    chance = random.Random(SEED)
    tills = tills_of(TILLS)
    await furnished(shop, tills)
    async with shop.selling(tills):
        for _ in rounds(1):
            await until_sold(tills, more=10 * TILLS)
            await shop.worker.kill()  # after a reply
            fault.tried += 1
            for boundary in BOUNDARIES:
                shop.worker.start(boundary, hit=chance.randint(1, HIT_MAX))
                await shop.worker.wait_ended()
                fault.tried += 1
            unanswered = {key for till in tills for key in till.unanswered}
            assert unanswered & requests_in(book(shop.path)), "no reply was lost"
            shop.worker.start()
    assert shop.worker.codes == {-signal.SIGKILL: fault.tried}, shop.worker.log_end
    (await judged(shop, tills)).count(fault)


@pytest.mark.fault("vending-killed-among-32-writers")
async def test_killed_at_random_among_32_writers_each_receipt_is_in_the_book_once(
    shop: Shop, fault: Fault
) -> None:
    chance = random.Random(SEED)
    tills = tills_of(WRITERS)
    await furnished(shop, tills)
    async with shop.selling(tills):
        for _ in rounds(RANDOM_KILLS):
            await until_sold(tills, more=chance.randint(1, SALES_A_LIFE_MAX))
            await shop.worker.kill()
            fault.tried += 1
            shop.worker.start()
    (await judged(shop, tills)).count(fault)


@pytest.mark.fault("vending-told-to-stop")
async def test_told_to_stop_it_answers_and_publishes_what_it_took_in(
    shop: Shop, fault: Fault
) -> None:
    tills = tills_of(TILLS)
    await furnished(shop, tills)
    async with shop.selling(tills):
        for _ in rounds(1):
            await until_sold(tills, more=10 * TILLS)
            shop.worker.signal(signal.SIGTERM)
            await shop.worker.wait_ended()
            fault.tried += 1
            found = await heard(shop.bootstrap)
            judge_topics(must_be_told(book(shop.path)), found).count(fault)
            assert found.repeats == 0, "a stop left something to be told again"
            shop.worker.start()
    assert shop.worker.codes == {0: fault.tried}, shop.worker.log_end
    (await judged(shop, tills)).count(fault)


# --- a store has one process ----------------------------------------------------------------------


@pytest.mark.fault("vending-stopped-and-another-started")
async def test_stopped_it_keeps_its_store_and_another_on_it_ends(shop: Shop, fault: Fault) -> None:
    """A second vending on the store ends, at once and saying why, also while the first sleeps."""
    tills = tills_of(TILLS)
    await furnished(shop, tills)
    other = shop.process("other", grpc_port=free_ports(1)[0])
    async with shop.selling(tills):
        for _ in rounds(1):
            for number in (signal.SIGSTOP, signal.SIGCONT):
                await until_sold(tills, more=10 * TILLS)
                shop.worker.signal(number)
                other.start()
                await other.wait_ended()
                assert "in use by another vending process" in other.log_end
                fault.tried += 1
                shop.worker.signal(signal.SIGCONT)
    assert other.codes == {EXIT_FAILED: fault.tried}, other.log_end
    assert not shop.worker.codes, shop.worker.log_end
    shop.worker.signal(signal.SIGTERM)
    await shop.worker.wait_ended()
    judge_topics(must_be_told(book(shop.path)), await heard(shop.bootstrap)).count(fault)
    shop.worker.start()
    (await judged(shop, tills)).count(fault)


async def test_without_the_lock_one_that_wakes_tells_less_than_was_paid(shop: Shop) -> None:
    """Its successor sold meanwhile; it answers from what it remembers."""
    till = Till("till-0", ["A0"])
    await furnished(shop, [till], switch=["take_any_store"])
    (port,) = free_ports(1)
    successor = shop.process("successor", grpc_port=port)
    try:
        async with shop.stub() as stub:
            await till.sell(stub, till.next_sale())
        # It must not fall asleep while it writes: its successor would wait for the file's lock.
        await until(shop.is_checkpointed, "the sale is told, and a checkpoint is kept of it")
        shop.worker.signal(signal.SIGSTOP)
        successor.start(switch=["take_any_store"])
        async with shop.stub(port) as stub:
            await till.sell(stub, till.next_sale())
        shop.worker.signal(signal.SIGCONT)
        verdict = await judged(shop, [till])
    finally:
        successor.end()
    with pytest.raises(AssertionError, match=r"A0: credited \d+ nano, receipts \d+"):
        verdict.check()


# --- a move of a meter ----------------------------------------------------------------------------


@pytest.mark.fault("vending-killed-amid-a-move")
async def test_killed_amid_a_move_of_a_meter_both_accounts_hear_of_it(
    shop: Shop, fault: Fault
) -> None:
    """The meter's stream has the move, the account's does not: nobody needs to ask again."""
    shop.worker.start("telling")
    await shop.furnish(["A0"], METER)
    for number in rounds(1):
        assign, release = moves(number)
        await killed_by(shop, "AssignMeter", assign)
        fault.tried += 1
        shop.worker.start("telling", hit=2)
        await shop.worker.wait_ready()
        (joined,) = await meters_of(shop, "A0")
        assert joined.opening_register_milli == assign.register_milli
        assert (await shop.ask("AssignMeter", assign)).epoch == joined.epoch
        await killed_by(shop, "ReleaseMeter", release)
        fault.tried += 1
        shop.worker.start("telling", hit=2)
        await shop.worker.wait_ready()
        assert not await meters_of(shop, "A0")
        assert not (await shop.ask("ReleaseMeter", release)).account
    await shop.worker.kill()
    judge_moves(book(shop.path)).count(fault)


def moves(number: int) -> tuple[pb.AssignMeterRequest, pb.ReleaseMeterRequest]:
    """Return the requests that give the meter to an account and back to its house."""
    register_milli = 1_000 * number
    return (
        pb.AssignMeterRequest(
            request_id=request_id("assign", number),
            name=names.METER.name(METER),
            account="accounts/A0",
            register_milli=register_milli,
        ),
        pb.ReleaseMeterRequest(
            request_id=request_id("release", number),
            name=names.METER.name(METER),
            register_milli=register_milli + 500,
        ),
    )


async def meters_of(shop: Shop, account_id: str) -> list[pb.AccountMeter]:
    account = await shop.ask(
        "GetAccount", pb.GetAccountRequest(name=names.ACCOUNT.name(account_id))
    )
    return list(account.meters)


async def killed_by(shop: Shop, method: str, message: Any) -> None:
    """Ask for what kills vending; whoever asked gets no answer and does not ask again."""
    async with shop.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await getattr(stub, method)(message, metadata=called_by(CLERK))
    await shop.worker.wait_ended()


async def test_without_completion_a_killed_move_stays_half_done(shop: Shop) -> None:
    shop.worker.start("telling")
    await shop.furnish(["A0"], METER)
    await killed_by(shop, "AssignMeter", moves(0)[0])
    shop.worker.start(switch=["leave_moves_half_done"])
    await shop.worker.wait_ready()
    await shop.worker.kill()
    with pytest.raises(AssertionError, match="account-A0 was told 0 times of M1"):
        judge_moves(book(shop.path)).check()


# --- a store that lost its last events ------------------------------------------------------------


@pytest.mark.fault("vending-store-put-back")
async def test_a_store_of_a_moment_ago_is_noticed_and_nothing_is_sold_on_it(
    shop: Shop, fault: Fault
) -> None:
    """As after a restore, or on a disk that lied: no checkpoint speaks of what is missing."""
    till = Till("till-0", ["A0"])
    shop.without_checkpoints()
    await furnished(shop, [till])
    for _ in rounds(1):
        moment_ago = await copied_before_a_sale(shop, till)
        newest = files_of(shop)
        put(shop, moment_ago)
        events = book(shop.path)
        shop.worker.start()
        async with shop.stub() as stub:
            sale = till.next_sale().message()
            with pytest.raises(grpc.aio.AioRpcError, match="lost its last writes"):
                await stub.Sell(sale, metadata=called_by(CLERK), wait_for_ready=True)
        assert not shop.worker.is_ready()
        fault.tried += 1
        await shop.worker.kill()
        assert book(shop.path) == events
        put(shop, newest)
        shop.worker.start()
    verdict = await judged(shop, [till])
    (verdict + judge_topics(must_be_told(book(shop.path)), await heard(shop.bootstrap))).count(
        fault
    )


async def copied_before_a_sale(shop: Shop, till: Till) -> dict[str, bytes]:
    """Return the store as it was before a sale that is acknowledged and told; vending is dead."""
    shop.worker.signal(signal.SIGTERM)
    await shop.worker.wait_ended()
    copied = files_of(shop)
    shop.worker.start()
    async with shop.stub() as stub:
        await till.sell(stub, till.next_sale())
    await until_async(lambda: is_told(shop), "the sale is told")
    await shop.worker.kill()
    return copied


def files_of(shop: Shop) -> dict[str, bytes]:
    """Return the store's files, name → content."""
    return {path.name: path.read_bytes() for path in shop.path.parent.glob("events.sqlite*")}


def put(shop: Shop, files: Mapping[str, bytes]) -> None:
    """Let these be the store's files, and no others."""
    for path in shop.path.parent.glob("events.sqlite*"):
        path.unlink()
    for name, content in files.items():
        shop.path.with_name(name).write_bytes(content)


async def is_told(shop: Shop) -> bool:
    """Whether everything that the book must tell is there."""
    found = await heard(shop.bootstrap)
    return not must_be_told(book(shop.path)).records.keys() - found.records.keys()


async def test_on_a_store_of_a_moment_ago_two_facts_would_have_one_version(shop: Shop) -> None:
    till = Till("till-0", ["A0"])
    shop.without_checkpoints()
    await furnished(shop, [till])
    put(shop, await copied_before_a_sale(shop, till))
    shop.worker.start(switch=["believe_the_store"])
    async with shop.stub() as stub:
        await till.sell(stub, till.next_sale())
    await until_async(lambda: is_told(shop), "the sale is told")
    await shop.worker.kill()
    verdict = judge_topics(must_be_told(book(shop.path)), await heard(shop.bootstrap))
    assert any("was told in two ways" in wrong for wrong in verdict.wrong), verdict.wrong


# --- shown to fail --------------------------------------------------------------------------------


async def test_without_remembered_requests_a_lost_reply_is_credited_twice(shop: Shop) -> None:
    till = Till("till-0", ["A0"])
    await furnished(shop, [till], at="answering", switch=["forget_requests"])
    async with shop.stub() as stub:
        selling = asyncio.create_task(till.sell(stub, till.next_sale()))
        await shop.worker.wait_ended()
        shop.worker.start(switch=["forget_requests"])
        await selling
    with pytest.raises(AssertionError, match="credited 2 times"):
        (await judged(shop, [till])).check()


async def test_answered_before_its_commit_a_receipt_is_lost(shop: Shop) -> None:
    till = Till("till-0", ["A0"])
    await furnished(shop, [till])
    await shop.worker.kill()
    shop.worker.start(switch=["answer_before_the_commit"])
    async with shop.stub() as stub:
        await till.sell(stub, till.next_sale())
    await shop.worker.kill()
    shop.worker.start()
    with pytest.raises(AssertionError, match="acknowledged, and missing"):
        (await judged(shop, [till])).check()
