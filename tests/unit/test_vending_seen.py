"""Goal: what an approver saw is what is done; on another state nothing is.

Method: the office on a real SQLite file. A command is proposed, the state that it was judged on
becomes another one, and then it is approved: it fails with CHANGED_SINCE and the book says no more
than before. Where less changes hands than was approved, it is done.
"""

from collections.abc import AsyncIterator, Awaitable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.reasons import Reason
from services.vending.domain.approval import Status
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from services.vending.domain.closing import HOUR_MS
from services.vending.domain.corrections import AdjustCredit, RefundCredit, TransferCredit, WriteOff
from services.vending.domain.decisions import Request
from services.vending.domain.lending import SetDebt
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.orders import DAY_MS, KeepPower
from services.vending.domain.origin import Origin
from services.vending.domain.seen import changed_since
from tests.unit import vending_world
from tests.unit.test_vending_approvals import ALICE, approve, of_type, publish, stored
from tests.unit.test_vending_changes import let_to
from tests.unit.test_vending_closings import alone_but, close, giving, under_way, with_a_meter
from tests.unit.test_vending_office import refused
from tests.unit.vending_world import World


def asked(world: World, name: str, origin: Origin = ALICE) -> Request:
    return world.ask(name, caller="web", origin=origin)


async def proposed(world: World, asking: Awaitable[Any]) -> str:
    """Ask for what needs two; return its proposal's id."""
    assert await refused(asking) is Reason.APPROVAL_REQUIRED
    (*_, last) = await of_type(world, "command-proposed")
    approval_id: str = last.record()["approval_id"]
    return approval_id


async def has_changed(world: World, approval_id: str) -> str:
    """Approve what has become another thing: nothing is done; return why."""
    before = len(await stored(world))
    proposal = await approve(world, approval_id)
    assert proposal.status is Status.FAILED
    assert proposal.failure is not None
    assert proposal.failure.reason == Reason.CHANGED_SINCE
    approved = len(await stored(world)) - before
    assert approved == 2, "the approval and its failure, and nothing of what was asked for"
    return proposal.failure.message


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall whose A1 is t-old's, with 10.00, and that needs two but for tenants."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        await opened.account("A2")
        await publish(opened, transfer=None, authority=None, debt=None, move=None)
        await let_to(opened, "t-old")
        await opened.sell(1_000)
        await opened.owe(1_000, 200_000)
        yield opened


# --- another tenant ------------------------------------------------------------------------------


def _of_the_account(world: World) -> dict[str, Any]:
    until_ms = world.clock.now_ms() + 30 * DAY_MS
    return {
        "adjust": AdjustCredit(asked(world, "a"), "A1", 500, "t-old was overcharged"),
        "write-off": WriteOff(asked(world, "w"), "A1", "debt", 500, "t-old is poor"),
        "keep": KeepPower(asked(world, "k"), "A1", until_ms, "t-old is ill"),
        "terms": ChangeTerms(asked(world, "t"), "A1", "T2", None, "t-old opens longer"),
    }


@pytest.mark.parametrize("name", ["adjust", "write-off", "keep", "terms"])
async def test_what_was_approved_for_one_tenant_is_not_done_to_the_next(
    mall: World, name: str
) -> None:
    await mall.tariff("T2")
    command = _of_the_account(mall)[name]
    approval_id = await proposed(mall, mall.office.approvals.ask(command))
    await let_to(mall, "t-new", with_owed=True)
    assert "tenancy was 1 and is 2" in await has_changed(mall, approval_id)
    assert await refused(mall.office.approvals.ask(command)) is Reason.CHANGED_SINCE


async def test_a_refund_is_not_paid_out_of_the_next_tenants_credit(mall: World) -> None:
    await mall.owe(0, 0)
    refund = RefundCredit(asked(mall, "r"), "A1", 1_000, "cash", "t-old moves out")
    approval_id = await proposed(mall, mall.office.refund(refund, 0.0))
    await let_to(mall, "t-new")
    await has_changed(mall, approval_id)


@pytest.mark.parametrize("let", ["A1", "A2"])
async def test_a_transfer_is_between_the_tenants_that_were_seen(mall: World, let: str) -> None:
    await mall.owe(0, 0)
    await publish(mall, transfer=500, authority=None)
    move = TransferCredit(asked(mall, "t"), "A1", "A2", 1_000, "t-old moves next door")
    approval_id = await proposed(mall, mall.office.transfer(move, 0.0))
    await publish(mall, transfer=None, authority=None)
    await mall.office.change(ChangeTenant(mall.ask("let"), let, "t-new", False, "let anew"))
    await has_changed(mall, approval_id)


async def test_a_meter_is_not_forced_off_in_the_next_account_or_at_the_next_tenant(
    mall: World,
) -> None:
    await mall.assign("M1", "A1")
    off = ForceRelay(asked(mall, "off"), "M1", "off", "t-old does not pay")
    approval_id = await proposed(mall, mall.office.order(off))
    again = replace(off, request=asked(mall, "again"))
    of_next = await proposed(mall, mall.office.order(again))
    await let_to(mall, "t-new", with_owed=True)
    assert "tenancy was 1 and is 2" in await has_changed(mall, approval_id)
    await mall.release("M1")
    await mall.assign("M1", "A2", 2_000)
    assert "account_id was A1 and is A2" in await has_changed(mall, of_next)
    assert (await mall.office.meter("M1")).forced is None


async def test_an_order_that_somebody_has_given_since_is_not_undone(mall: World) -> None:
    off = ForceRelay(asked(mall, "off"), "M1", "off", "works")
    cut = await proposed(mall, mall.office.order(off))
    shorter, longer = [
        await proposed(
            mall,
            mall.office.order_for(
                KeepPower(asked(mall, f"{days}"), "A1", mall.clock.now_ms() + days * DAY_MS, "ill")
            ),
        )
        for days in (10, 20)
    ]
    on = ForceRelay(asked(mall, "on"), "M1", "on", "the pumps")
    await approve(mall, await proposed(mall, mall.office.order(on)))
    assert "forced was None and is on" in await has_changed(mall, cut)
    assert (await approve(mall, longer)).status is Status.EXECUTED
    assert "keep_power_until_ms" in await has_changed(mall, shorter)


# --- another amount ------------------------------------------------------------------------------


async def test_no_more_changes_hands_with_a_tenant_than_was_seen(mall: World) -> None:
    await publish(mall, transfer=500, authority=None, debt=None)
    to_friend = ChangeTenant(asked(mall, "f"), "A1", "t-friend", True, "takes over the 10.00")
    approval_id = await proposed(mall, mall.office.change(to_friend))
    less = ChangeTenant(asked(mall, "l"), "A1", "t-wife", True, "takes over what is left")
    of_less = await proposed(mall, mall.office.change(less))
    await mall.sell(500_000)
    assert "at_most_minor was 2000" in await has_changed(mall, approval_id)
    await mall.owe(0, 0)
    await publish(mall, transfer=500, authority=None, adjustment=None)
    await mall.office.correct(AdjustCredit(mall.ask(), "A1", -498_500, "a slip of the hand"))
    assert (await approve(mall, of_less)).status is Status.EXECUTED


async def test_a_debt_is_ended_that_was_seen_and_none_that_rose_since(mall: World) -> None:
    await publish(mall, debt=0, authority=None)
    for debt_minor, status in ((500_000, Status.FAILED), (800, Status.EXECUTED)):
        await publish(mall, debt=None, authority=None)
        await mall.owe(1_000, 200_000)
        await publish(mall, debt=0, authority=None)
        end = SetDebt(asked(mall, "e"), "A1", 0, 0, "10.00 is not worth a letter")
        approval_id = await proposed(mall, mall.office.set_debt(end))
        await publish(mall, debt=None, authority=None)
        await mall.owe(debt_minor, 200_000)
        assert (await approve(mall, approval_id)).status is status


# --- another version, another device -------------------------------------------------------------


async def test_what_was_approved_on_one_version_does_not_undo_a_later_one(mall: World) -> None:
    await mall.policy("P2", legal_entity="LE1")
    older = {
        "tariff": await proposed(mall, mall.tariff(price_micro=900_000)),
        "policy": await proposed(mall, mall.policy("P2", legal_entity="LE1", fee_minor=1)),
    }
    await publish(mall, price_change=None, policy_change=None, authority=None)
    await mall.tariff(price_micro=700_000)
    await mall.policy("P2", legal_entity="LE1", fee_minor=2)
    for approval_id in older.values():
        assert "version was 1 and is 2" in await has_changed(mall, approval_id)


async def test_an_older_document_of_what_one_person_may_is_not_brought_back(mall: World) -> None:
    await publish(mall)
    first = await proposed(mall, publish(mall, refund=None))
    second = await proposed(mall, publish(mall, refund=10_000))
    assert (await approve(mall, second)).status is Status.EXECUTED
    await has_changed(mall, first)


async def test_terms_are_changed_from_those_that_were_seen(mall: World) -> None:
    await mall.tariff("T2")
    await mall.tariff("T3")
    both = [ChangeTerms(asked(mall, to), "A1", to, None, "longer") for to in ("T2", "T3")]
    second, third = [await proposed(mall, mall.office.change(each)) for each in both]
    assert (await approve(mall, second)).status is Status.EXECUTED
    assert "tariff_id was T1 and is T2" in await has_changed(mall, third)


async def test_a_register_that_was_approved_of_one_device_is_none_of_the_next(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as mall:
        await with_a_meter(mall, alone_but("register"))
        await close(mall, lasts_ms=HOUR_MS)
        mall.clock.at_ms += HOUR_MS
        give = replace(giving(mall, await under_way(mall), 4_821_370), request=asked(mall, "g"))
        approval_id = await proposed(mall, mall.office.closings.give(give))
        proposal = await mall.office.approvals.proposal(approval_id)
        assert '"seen":{"epoch":2,"tenancy":0}' in proposal.content
        seen_by_bob = {"epoch": 2, "tenancy": 0}
        assert changed_since(seen_by_bob, {"epoch": 3, "tenancy": 0}) is not None


async def test_a_meter_goes_to_the_tenant_who_was_seen_and_not_to_the_next(mall: World) -> None:
    """From a register below what was charged: what the one used since, the other would pay."""
    await publish(mall, transfer=None, authority=None)
    await mall.assign("M1", "A2", 1_000)
    meter = await mall.office.meter("M1")
    await mall.charge(meter.meter_key, meter.epoch, 1, 1_500)
    move = mall.office.assign_meter(asked(mall, "m"), "M1", "A1", 1_200, "A2")
    approval_id = await proposed(mall, move)
    await let_to(mall, "t-new", with_owed=True)
    assert "to_tenancy was 1 and is 2" in await has_changed(mall, approval_id)
    assert (await mall.office.meter("M1")).account_id == "A2"


# --- what stays ----------------------------------------------------------------------------------


async def test_what_is_as_it_was_is_done_and_answered_once_more_afterwards(mall: World) -> None:
    adjust = AdjustCredit(asked(mall, "a"), "A1", 500, "t-old was overcharged")
    approval_id = await proposed(mall, mall.office.correct(adjust))
    assert (await approve(mall, approval_id)).status is Status.EXECUTED
    await let_to(mall, "t-new", with_owed=True)
    answer = await mall.office.correct(adjust)
    assert answer.event is not None, "a repeat is answered, whatever has changed since"
    assert answer.event.SUBJECT == "credit-adjusted"


async def test_a_proposal_of_an_earlier_release_says_nothing_and_is_done() -> None:
    assert changed_since({}, {"tenancy": 3}) is None
    assert changed_since({"at_most_minor": 5}, {"at_most_minor": 4}) is None
    assert changed_since({"at_most_minor": 5}, {"at_most_minor": 6}) is not None
