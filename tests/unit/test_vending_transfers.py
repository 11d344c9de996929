"""Goal: credit goes from one account to another once, all of it or none, and nothing is lost.

Method: the office on a real SQLite file; the test echoes holds as metering would. The stories of a
transfer, of one that cannot arrive, and of a hold that nobody echoes die at each of their appends.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_proto_pb2 as lro
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import OPERATIONS
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.api.operations import OperationsApi
from services.vending.application.book import Outcome
from services.vending.application.stored import event_of
from services.vending.domain.account import Account
from services.vending.domain.approval import approval_id_of
from services.vending.domain.changes import ChangeTenant
from services.vending.domain.corrections import TransferCredit
from services.vending.domain.decisions import Request
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.events.refunds import (
    CreditTransferred,
    TransferArrived,
    TransferReceived,
    TransferReturned,
)
from services.vending.domain.facts import fact_of
from services.vending.domain.origin import Origin
from services.vending.domain.refund import LASTS_MS_DEFAULT
from services.vending.domain.settling import SettleClosing
from services.vending.domain.tables import HOLD, TRANSFER
from services.vending.domain.trial_balance import TrialBalance
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_approvals import approve, ids, of_type, publish, stored
from tests.unit.test_vending_corrections import adjust, reverse, sold
from tests.unit.test_vending_office import refused
from tests.unit.test_vending_refunds import echo, refund
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import World
from wattvend.vending.v1 import accounts_pb2 as a
from wattvend.vending.v1 import vending_pb2 as v

NANO = 10**7
ALICE = Origin("web", "u-alice")
ALONE = dict.fromkeys(("transfer", "refund", "reversal", "debt", "adjustment", "authority"))
TRANSIT = "liabilities:transit"


async def transfer(
    world: World, amount_minor: int = 0, request: Request | None = None, to: str = "A2"
) -> Outcome[Account]:
    asked = request or world.ask(amount_minor, to)
    return await world.office.transfer(TransferCredit(asked, "A1", to, amount_minor, "moves"), 0.0)


async def credited(world: World) -> tuple[int, int]:
    """Return what both accounts were credited, in minor units."""
    one, other = [(await world.office.account(name)).credited_nano for name in ("A1", "A2")]
    return one // NANO, other // NANO


async def in_transit(world: World) -> int:
    """Return what the trial balance has on the clearing account."""
    money = [event for event in await stored(world) if isinstance(event, MoneyEvent)]
    balance = TrialBalance(money)
    assert balance.off_nano() == {}
    return balance.books["LE1", "CNY"][TRANSIT].balance_nano


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall of one person with two accounts, of which one was sold 10.00."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await set_up(opened)
        await publish(opened, **ALONE)
        yield opened


async def set_up(world: World) -> None:
    await world.mall()
    await world.account("A2")
    await world.sell(1_000)


async def test_all_that_is_left_goes_over_when_metering_has_said_what_that_is(mall: World) -> None:
    request = mall.ask("all")
    with pytest.raises(Retriable, match="same request_id"):
        await transfer(mall, request=request)
    held = await mall.office.account("A1")
    assert held.held_nano == 1_000 * NANO
    await echo(mall, 300 * NANO + 1)
    outcome = await transfer(mall, request=request)
    assert isinstance(outcome.event, TransferArrived)
    assert await credited(mall) == (301, 699)
    (sent,) = await of_type(mall, "credit-transferred")
    (received,) = await of_type(mall, "transfer-received")
    assert isinstance(sent, CreditTransferred)
    assert isinstance(received, TransferReceived)
    assert (sent.amount_minor, sent.to_account_id) == (699, "A2")
    assert (received.from_account_id, received.hold_id) == ("A1", sent.hold_id)
    assert await in_transit(mall) == 0
    assert await transfer(mall, request=request) == outcome
    after = await mall.office.account("A1")
    assert (after.held_nano, after.refunding) == (0, None)
    assert fact_of(after, book_epoch=1, shards=8).record["hold_id"] is None


async def test_a_refund_and_a_transfer_are_operations_while_they_wait_and_for_good(
    mall: World,
) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api = OperationsApi(OPERATIONS, desk)
    call = Call("desk", "u-1", "10.0.0.7", 5.0)

    async def listed(name: str, filter_: str = "") -> list[Any]:
        asked = lro.ListOperationsRequest(name=f"operations/{name}", filter=filter_)
        return list((await api.ListOperations(asked, call)).operations)

    with suppress(Retriable):
        await refund(mall, 200)
    (waits,) = await listed("refunds", "done = false")
    asked = v.Refund()
    assert waits.metadata.Unpack(asked)
    assert (asked.account, asked.amount_minor, asked.receipt) == ("accounts/A1", 200, "")
    assert await listed("transfers") == []
    cancel = lro.CancelOperationRequest(name=waits.name)
    assert await refused(api.CancelOperation(cancel, call)) is Reason.REFUND_UNDER_WAY
    await echo(mall, 0)
    assert await listed("refunds", "done = false") == []
    (done,) = await listed("refunds")
    paid = v.Refund()
    assert (done.name, done.done, done.response.Unpack(paid)) == (waits.name, True, True)
    assert (paid.amount_minor, paid.receipt[:9]) == (200, "receipts/")

    with suppress(Retriable):
        await transfer(mall, 300)
    (waits,) = await listed("transfers", "done = false")
    await echo(mall, 0)
    assert not (await listed("transfers"))[0].done, "it is in transit"
    await mall.office.complete()
    (arrived,) = await listed("transfers")
    sent = a.TransferCreditResponse()
    assert (arrived.name, arrived.response.Unpack(sent)) == (waits.name, True)
    assert (sent.to_account, sent.amount_minor) == ("accounts/A2", 300)
    with suppress(Retriable):
        await transfer(mall, 400)
    await echo(mall, 900 * NANO)
    (failed,) = (each for each in await listed("transfers") if each.HasField("error"))
    assert failed.done
    other = lro.GetOperationRequest(name=f"operations/refunds/{failed.name.rpartition('/')[2]}")
    assert await refused(api.GetOperation(other, call)) is Reason.OPERATION_NOT_FOUND


async def test_an_echo_that_comes_by_itself_is_carried_within_the_next_round(mall: World) -> None:
    with suppress(Retriable):
        await transfer(mall, 400)
    await echo(mall, 0)
    assert await credited(mall) == (600, 0)
    assert await in_transit(mall) == -400 * NANO
    assert await mall.office.complete() == 1
    assert await credited(mall) == (600, 400)
    assert await in_transit(mall) == 0


async def test_nothing_goes_over_that_is_not_there_or_owed(mall: World) -> None:
    request = mall.ask(1_000)
    with pytest.raises(Retriable):
        await transfer(mall, 1_000, request)
    await echo(mall, 1)
    assert await refused(transfer(mall, 1_000, request)) is Reason.BALANCE_TOO_LOW
    await mall.owe(1, 200_000)
    assert await refused(transfer(mall, 5)) is Reason.ACCOUNT_HAS_DEBT
    assert await credited(mall) == (1_000, 0)


async def test_where_credit_cannot_go_is_said_before_it_is_held(mall: World) -> None:
    await mall.site("S2", entity="LE2")
    await mall.tariff("T2", legal_entity="LE2")
    await mall.policy("P2", legal_entity="LE2")
    await mall.account("B1", site_id="S2", tariff_id="T2", policy_id="P2")
    await mall.account("A3")
    await close(mall, "A3")
    for to, reason in (
        ("A9", Reason.ACCOUNT_NOT_FOUND),
        ("B1", Reason.LEGAL_ENTITY_MISMATCH),
        ("A3", Reason.ACCOUNT_NOT_OPEN),
    ):
        assert await refused(transfer(mall, 5, to=to)) is reason
    with pytest.raises(InvalidInput, match="the account itself"):
        await transfer(mall, 5, to="A1")
    assert await of_type(mall, "refund-held") == []


async def close(world: World, account_id: str) -> None:
    with suppress(Retriable):
        await world.close(account_id)
    await echo(world, 0, account_id=account_id)
    assert (await world.office.account(account_id)).status == "closed"


async def test_what_cannot_arrive_any_more_comes_back_and_the_answer_says_why(mall: World) -> None:
    request = mall.ask("late")
    with suppress(Retriable):
        await transfer(mall, 400, request)
    await close(mall, "A2")
    await echo(mall, 0)
    assert await refused(transfer(mall, 400, request)) is Reason.ACCOUNT_NOT_OPEN
    assert await credited(mall) == (1_000, 0)
    (back,) = await of_type(mall, "transfer-returned")
    assert isinstance(back, TransferReturned)
    assert back.amount_minor == 400
    assert await in_transit(mall) == 0
    assert (await mall.office.account("A1")).refunding is None


async def test_what_came_back_keeps_no_sale_from_its_reversal_and_a_refund_before_it_does(
    mall: World,
) -> None:
    refunded = await sold(mall, 100)
    with suppress(Retriable):
        await refund(mall, 100)
    await echo(mall, 0)
    sale = await sold(mall, 500)
    with suppress(Retriable):
        await transfer(mall, 400)
    await close(mall, "A2")
    await echo(mall, 0)
    await mall.office.complete()
    assert len(await of_type(mall, "transfer-returned")) == 1
    assert await refused(reverse(mall, refunded.receipt_id)) is Reason.REFUNDED_SINCE
    await reverse(mall, sale.receipt_id)
    assert await credited(mall) == (1_000, 0)


async def test_what_is_sent_to_a_tenant_who_has_left_meanwhile_comes_back(mall: World) -> None:
    request = mall.ask("late")
    with suppress(Retriable):
        await transfer(mall, 400, request)
    await mall.office.change(ChangeTenant(mall.ask(), "A2", "t-new", False, "let anew"))
    await echo(mall, 0)
    assert await refused(transfer(mall, 400, request)) is Reason.TENANT_CHANGED_SINCE
    assert await credited(mall) == (1_000, 0)
    assert await in_transit(mall) == 0


async def test_what_is_in_transit_has_room_to_come_back(mall: World) -> None:
    most = (2**63 - 1) // NANO - 1_000
    await mall.sell(most)
    with suppress(Retriable):
        await transfer(mall, 400)
    await close(mall, "A2")
    await echo(mall, 0)
    for too_much in (mall.sell(1), adjust(mall, 1)):
        assert await refused(too_much) is Reason.AMOUNT_TOO_LARGE
    await mall.office.complete()
    assert await in_transit(mall) == 0
    assert (await mall.office.account("A1")).credited_nano == (most + 1_000) * NANO


async def test_while_credit_is_in_transit_nothing_else_is_paid_out_and_nothing_closes(
    mall: World,
) -> None:
    with suppress(Retriable):
        await transfer(mall, 1_000)
    await echo(mall, 0)
    assert (await mall.office.account("A1")).credited_nano == 0
    assert await refused(mall.close()) is Reason.REFUND_UNDER_WAY
    assert await refused(transfer(mall, 1)) is Reason.REFUND_UNDER_WAY
    await echo(mall, 0)  # metering says it again: it is of no hold that is open
    await mall.office.complete()
    assert await credited(mall) == (0, 1_000)


async def test_a_sale_is_not_taken_back_after_its_credit_has_gone_over(mall: World) -> None:
    sale = await sold(mall, 100)
    with suppress(Retriable):
        await transfer(mall, 100)
    await echo(mall, 0)
    await mall.office.complete()
    assert await refused(reverse(mall, sale.receipt_id)) is Reason.REFUNDED_SINCE


async def test_a_transfer_needs_two_unless_a_document_says_how_much_one_may(mall: World) -> None:
    await publish(mall, transfer=400)
    request = mall.ask("much", origin=ALICE)
    assert await refused(transfer(mall, 401, request)) is Reason.APPROVAL_REQUIRED
    assert (await mall.office.account("A1")).held_nano == 0
    await approve(mall, approval_id_of(request))
    await echo(mall, 0)
    assert isinstance((await transfer(mall, 401, request)).event, TransferArrived)
    assert await credited(mall) == (599, 401)


# --- holds that nobody echoes --------------------------------------------------------------------


@pytest.mark.parametrize("ask", [refund, transfer])
async def test_a_hold_that_nobody_echoes_is_let_go_at_its_deadline_and_a_late_echo_is_nothing(
    mall: World, ask: Any
) -> None:
    request = mall.ask("never echoed")
    with suppress(Retriable):
        await ask(mall, 700, request)
    state = await mall.office.account("A1")
    mall.clock.at_ms += LASTS_MS_DEFAULT - 1
    assert await mall.office.complete() == 0
    mall.clock.at_ms += 1
    assert await mall.office.complete() == 1
    assert await mall.office.complete() == 0
    assert await refused(ask(mall, 700, request)) is Reason.NO_ECHO_IN_TIME
    free = await mall.office.account("A1")
    assert (free.held_nano, free.refunding) == (0, None)
    assert state.refunding is not None
    late = SettleClosing("A1", state.refunding.hold_id, 0, 7, 0, mall.clock.at_ms)
    await mall.office.settle(late)
    assert await credited(mall) == (1_000, 0)
    assert await mall.tables.pending(HOLD, mall.clock.at_ms) == []
    with suppress(Retriable):
        await ask(mall, 700)
    assert (await mall.office.account("A1")).held_nano == 700 * NANO


async def test_what_has_left_in_the_moment_of_its_deadline_is_not_let_go(mall: World) -> None:
    """The echo comes between the look at what is overdue and its end: the credit is in transit."""
    with suppress(Retriable):
        await transfer(mall, 700)
    mall.clock.at_ms += LASTS_MS_DEFAULT
    await echo(mall, 0)
    await mall.office.transfers._let_go("A1")
    assert await in_transit(mall) == -700 * NANO
    await mall.office.complete()
    assert (await credited(mall), await in_transit(mall)) == ((300, 700), 0)


# --- crashes -------------------------------------------------------------------------------------


async def started(world: World) -> None:
    await set_up(world)
    await publish(world, **ALONE)


async def test_a_process_that_dies_anywhere_brings_credit_over_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        request = world.ask("all", request_id=ids(1))
        with suppress(Retriable):
            await transfer(world, request=request)
        await echo(world, 300 * NANO)
        outcome = await transfer(world, request=request)
        assert isinstance(outcome.event, TransferArrived)

    async def judge(world: World) -> None:
        assert await credited(world) == (300, 700)
        assert await in_transit(world) == 0
        assert await world.tables.pending(HOLD, 2**60) == []
        assert await world.tables.pending(TRANSFER, 2**60) == []

    # refund-held, credit-transferred, transfer-received, transfer-arrived: before and after each
    assert await at_every_step(tmp_path, started, story, judge) == 8


async def test_a_process_that_dies_anywhere_brings_credit_back_once(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await started(world)
        with suppress(Retriable):
            await transfer(world, 400, world.ask("late", request_id=ids(1)))
        await close(world, "A2")

    async def story(world: World) -> None:
        await echo(world, 0)
        late = transfer(world, 400, world.ask("late", request_id=ids(1)))
        assert await refused(late) is Reason.ACCOUNT_NOT_OPEN

    async def judge(world: World) -> None:
        assert await credited(world) == (1_000, 0)
        assert await in_transit(world) == 0
        assert await world.tables.pending(TRANSFER, 2**60) == []

    # when the credit has left, and when it is back
    assert await at_every_step(tmp_path, setting, story, judge) == 4


async def test_a_process_that_dies_anywhere_lets_a_hold_go_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        request = world.ask("never echoed", request_id=ids(1))
        with suppress(Retriable, InvalidInput):
            await refund(world, 700, request)
        world.clock.at_ms = vending_world.T0_MS + LASTS_MS_DEFAULT
        await world.office.complete()
        assert await refused(refund(world, 700, request)) is Reason.NO_ECHO_IN_TIME

    async def judge(world: World) -> None:
        assert (await world.office.account("A1")).held_nano == 0
        assert [event_of(e).SUBJECT for e in await world.store.read_all(0, 999)][-2:] == [
            "refund-held",
            "refund-refused",
        ]

    # refund-held, refund-refused
    assert await at_every_step(tmp_path, started, story, judge) == 4
