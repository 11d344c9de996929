"""Goal: a closing ends at exactly nothing, whatever is left, silent, or dies in between.

Method: the office on a real SQLite file; the test tells readings and echoes as metering would. Each
kind of closing dies at each of its appends, and is told again after a restart.
"""

from collections.abc import AsyncIterator, Awaitable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_proto_pb2 as lro
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES
from services.common.runtime.grpc import Call
from services.vending.adapters.api import OPERATIONS
from services.vending.adapters.api.closings import ClosingApi
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.api.operations import OperationsApi
from services.vending.application.book import Outcome
from services.vending.domain.account import Account, Status
from services.vending.domain.approval import approval_id_of
from services.vending.domain.closing import (
    ASK_AGAIN_MS,
    HOUR_MS,
    LASTS_MS_DEFAULT,
    READ_AFTER_CUT_MS,
    Closing,
    Rounding,
    rounded_minor,
    settlement,
)
from services.vending.domain.closings import (
    CancelClosing,
    CloseAccount,
    CloseMeters,
    GiveRegister,
    estimated_milli,
)
from services.vending.domain.corrections import RefundCredit, ReverseSale, WriteOff
from services.vending.domain.decisions import Request
from services.vending.domain.events.closings import AccountClosed, AccountSettled, MetersClosed
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.event import Event, MoneyEvent
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.orders import KeepPower
from services.vending.domain.origin import Origin
from services.vending.domain.owed import Owed
from services.vending.domain.payment import ConfirmSale, ReserveSale
from services.vending.domain.postings import Usage
from services.vending.domain.settling import SettleAccount, SettleClosing
from services.vending.domain.tables import Charged
from services.vending.domain.trial_balance import TrialBalance
from services.vending.domain.usage import PostUsage
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_approvals import approve, decline, ids, of_type, publish, stored
from tests.unit.test_vending_office import refused
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import T0_MS, World
from wattvend.vending.v1 import closings_pb2 as pb

NANO = 10**7
CNY = CURRENCIES["CNY"]
ALICE = Origin("web", "u-alice")
ALONE: dict[str, Any] = dict.fromkeys(
    (
        *("refund", "adjustment", "debt", "authority", "force-off", "register", "write-off"),
        "emergency",
        "policy-change",
        "closing",
        "move",
        "exchange",
    )
)
LATER_MS = T0_MS + READ_AFTER_CUT_MS


def alone_but(*needs_two: str) -> dict[str, Any]:
    return {name: above for name, above in ALONE.items() if name not in needs_two}


def by_alice(world: World, number: int = 7, at_ms: int = T0_MS) -> Request:
    asked = world.ask("closing", request_id=ids(number), caller="web", origin=ALICE)
    return replace(asked, at_ms=at_ms)


async def close(
    world: World, method: str = "cash", request: Request | None = None, **more: Any
) -> Outcome[Account]:
    asked = request or by_alice(world)
    return await world.office.closings.begin(
        CloseAccount(asked, "A1", method, reason="moves out" if method else "", **more)
    )


async def close_part(
    world: World, *meters: str, request: Request | None = None, **more: Any
) -> Outcome[Account]:
    said: dict[str, Any] = {
        "without_cut": False,
        "lasts_ms": 0,
        "reason": "the back room is let",
    } | more
    command = CloseMeters(request or by_alice(world), "A1", meters, **said)
    return await world.office.closings.begin(command)


async def under_way(world: World) -> Closing:
    closing = (await world.office.account("A1")).closing
    assert closing is not None
    return closing


async def read(
    world: World, register_milli: int, at_ms: int = LATER_MS, meter_id: str = "M1"
) -> None:
    """Let a reading be charged, and the process look at it."""
    meter = await world.office.meter(meter_id)
    if not meter.is_house:
        charged = Charged(meter.meter_key, meter.epoch, at_ms - T0_MS + 9, register_milli, at_ms)
        await world.tables.keep_charged([charged], [])
    await world.office.complete()


async def echo(
    world: World,
    charged_nano: int,
    sequence: int = 7,
    open_meters: int = 0,
    *,
    frozen: bool = False,
) -> None:
    """Answer the hold, where there is one, as metering would; with what it was charged."""
    closing = (await world.office.account("A1")).closing
    if closing is None or not closing.hold_id:
        return
    at_ms, usage = T0_MS, Usage(energy_nano=charged_nano)
    asked = Request(
        "~vending", str(ids(sequence)), charged_nano.to_bytes(32, "big", signed=True), at_ms
    )
    told = PostUsage(asked, "A1", sequence, usage, 0, 1, 1, [], b"row", 9, at_ms)
    await world.office.settle(
        SettleClosing(
            "A1", closing.hold_id, charged_nano, sequence, open_meters, at_ms, told, frozen=frozen
        )
    )
    await world.office.complete()


async def post(world: World, charged_nano: int, sequence: int) -> None:
    """Let metering have told before what was charged."""
    asked = world.ask("usage", charged_nano)
    usage = Usage(energy_nano=charged_nano)
    told = PostUsage(asked, "A1", sequence, usage, 0, 1, 1, [], b"row", 9, T0_MS)
    await world.office.post_usage(told)


async def stands(world: World) -> dict[str, int]:
    """Return what stands on each account of the chart, that of 0 left out; it sums to zero."""
    balance = TrialBalance(e for e in await stored(world) if isinstance(e, MoneyEvent))
    assert balance.off_nano() == {}
    lines = balance.books.get(("LE1", "CNY"), {})
    return {name: line.balance_nano for name, line in lines.items() if line.balance_nano}


async def of_closing(world: World) -> list[Event]:
    names = ("account-settled", "remainder-rounded", "credit-refunded", "account-closed")
    return [event for event in await stored(world) if event.SUBJECT in names]


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall of one person whose account has a meter and was sold 10.00."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await with_a_meter(opened)
        yield opened


async def with_a_meter(world: World, rules: dict[str, Any] | None = None) -> None:
    await world.mall()
    await publish(world, **(ALONE if rules is None else rules))
    await world.sell(1_000)
    await world.assign(register_milli=1_000)


async def with_two(world: World) -> None:
    await with_a_meter(world)
    await world.meter("M2", unit=2)
    await world.assign("M2", register_milli=50)


# --- what is left --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nano", "down", "up", "half_even"),
    [
        (0, 0, 0, 0),
        (1, 0, 1, 0),
        (NANO // 2, 0, 1, 0),
        (NANO + NANO // 2, 1, 2, 2),
        (NANO // 2 + 1, 0, 1, 1),
        (5 * NANO, 5, 5, 5),
        (-1, 0, -1, 0),
        (-NANO - NANO // 2, -1, -2, -2),
        (-2 * NANO - NANO // 2, -2, -3, -2),
    ],
)
def test_the_size_of_what_is_left_is_rounded_whoever_owes_it(
    nano: int, down: int, up: int, half_even: int
) -> None:
    assert rounded_minor(nano, NANO, Rounding.DOWN) == down
    assert rounded_minor(nano, NANO, Rounding.UP) == up
    assert rounded_minor(nano, NANO, Rounding.HALF_EVEN) == half_even


def test_what_is_left_recovers_emergency_credit_then_the_debt_and_the_rest_is_paid_out() -> None:
    comes_to = settlement(800 * NANO + 3, Owed(300, 200, 1), CNY, Rounding.DOWN)
    assert comes_to is not None
    assert (comes_to.recovered, comes_to.refund_minor) == (Owed(300, 200), 300)
    assert (comes_to.due_minor, comes_to.debt_left_minor, comes_to.dropped_nano) == (0, 0, 3)


def test_what_is_not_recovered_and_what_is_lacking_is_one_debt() -> None:
    short = settlement(100 * NANO, Owed(300, 200, 1), CNY, Rounding.DOWN)
    assert short is not None
    assert (short.recovered, short.debt_left_minor) == (Owed(100, 0), 400)
    lacking = settlement(-100 * NANO - 1, Owed(300, 200, 1), CNY, Rounding.DOWN)
    assert lacking is not None
    assert (lacking.due_minor, lacking.debt_left_minor, lacking.dropped_nano) == (100, 600, -1)


@pytest.mark.parametrize("rounding", sorted(Rounding))
async def test_an_account_with_a_remainder_is_closed_and_the_remainder_is_an_event(
    tmp_path: Path, rounding: str
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        await publish(world, **ALONE)
        await world.policy(rounding=rounding)
        await world.sell(100)
        await close(world, "")
        await echo(world, 100 * NANO - 1)
        state = await world.office.account("A1")
        assert (state.status, state.credited_nano) == (Status.CLOSED, 100 * NANO - 1)
        settled, rounded, closed = await of_closing(world)
        assert isinstance(settled, AccountSettled)
        assert (settled.left_nano, settled.dropped_nano, settled.refund_minor) == (1, 1, 0)
        assert isinstance(closed, AccountClosed)
        assert rounded.record()["amount_nano"] == 1
        assert await stands(world) == {
            "assets:cash": 100 * NANO,
            "income:electricity:energy": -(100 * NANO - 1),
            "income:rounding": -1,
        }


@pytest.mark.parametrize(
    ("rounding", "refund_minor", "income_nano"), [("down", 699, -9), ("up", 700, NANO - 9)]
)
async def test_the_policy_says_in_whose_favour_a_refund_is_rounded(
    tmp_path: Path, rounding: str, refund_minor: int, income_nano: int
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        await publish(world, **ALONE)
        await world.policy(rounding=rounding)
        await world.sell(1_000)
        await close(world)
        used_nano = 301 * NANO - 9
        await echo(world, used_nano)
        assert await stands(world) == {
            "assets:cash": (1_000 - refund_minor) * NANO,
            "income:electricity:energy": -used_nano,
            "income:rounding": income_nano,
        }


# --- a full closing ------------------------------------------------------------------------------


async def test_a_meter_is_cut_read_given_back_and_what_is_left_is_paid_out(mall: World) -> None:
    await close(mall, "transfer")
    assert (await mall.office.meter("M1")).forced == "off"
    assert await refused(mall.sell(5)) is Reason.ACCOUNT_NOT_OPEN
    assert await refused(mall.grant()) is Reason.ACCOUNT_NOT_OPEN
    await read(mall, 1_300, T0_MS - 1)
    await read(mall, 1_400, LATER_MS - 1)
    assert (await mall.office.account("A1")).has("M1"), "the relay had not the time to open"
    await read(mall, 1_500)
    meter = await mall.office.meter("M1")
    assert (meter.is_house, meter.closing_register_milli, meter.forced) == (True, 1_500, "off")
    await echo(mall, 400 * NANO + 1)
    state = await mall.office.account("A1")
    assert (state.status, state.credited_nano) == (Status.CLOSED, 400 * NANO + 1)
    assert await stands(mall) == {
        "assets:cash": 1_000 * NANO,
        "assets:clearing:transfer": -599 * NANO,
        "income:electricity:energy": -400 * NANO - 1,
        "income:rounding": -(NANO - 1),
    }
    again = await close(mall, "transfer")
    assert isinstance(again.event, AccountClosed), "a repeat gets the answer"


async def test_power_that_is_not_to_be_cut_stays_and_any_reading_since_is_the_last(
    mall: World,
) -> None:
    await close(mall, without_cut=True)
    await read(mall, 1_500, T0_MS)
    meter = await mall.office.meter("M1")
    assert (meter.is_house, meter.forced) == (True, None)


async def test_whose_power_a_person_keeps_is_not_cut(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        await publish(world, world.ask("document"), **(ALONE | {"keep-power": None}))
        on = ForceRelay(world.ask("on"), "M2", "on", "fire brigade")
        await world.office.order(on)
        await close(world)
        await world.office.complete()
        forced = [(await world.office.meter(meter_id)).forced for meter_id in ("M1", "M2")]
        assert forced == ["off", "on"]
        await world.office.closings.cancel(cancelling(world, await under_way(world)))
        kept = KeepPower(world.ask("keep"), "A1", T0_MS + HOUR_MS, "a lift")
        await world.office.order_for(kept)
        await close(world, request=by_alice(world, 44))
        assert (await world.office.meter("M1")).forced is None
        assert (await under_way(world)).without_cut


async def test_who_has_used_more_than_he_paid_owes_it_and_pays_it_when_all_is_closed(
    mall: World,
) -> None:
    await close(mall)
    await read(mall, 9_000)
    await echo(mall, 1_250 * NANO + 5)
    state = await mall.office.account("A1")
    assert (state.status, state.owed) == (Status.CLOSED, Owed(0, 250, 1_000_000))
    assert (await stands(mall))["assets:receivable"] == 250 * NANO
    assert "liabilities:prepayment" not in await stands(mall)
    assert await refused(mall.sell(251)) is Reason.ACCOUNT_NOT_OPEN
    await mall.sell(200)
    given_up = WriteOff(mall.ask("w"), "A1", "debt", 50, "the tenant is gone")
    await mall.office.correct(given_up)
    state = await mall.office.account("A1")
    assert (state.status, state.owed.debt_minor) == (Status.CLOSED, 0)
    assert await refused(mall.sell(1)) is Reason.ACCOUNT_NOT_OPEN
    told = await stands(mall)
    assert told["assets:cash"] == 1_200 * NANO
    assert not {"assets:receivable", "liabilities:prepayment"} & told.keys()


async def test_what_was_paid_of_a_closed_account_s_debt_is_taken_back_and_owed_again(
    mall: World,
) -> None:
    """A nought too many, or a transfer that bounced; what came before the end stays settled."""
    before = (await mall.sell(100)).event
    await mall.policy(fee_minor=10)
    await close(mall)
    await read(mall, 9_000)
    await echo(mall, 1_350 * NANO)
    paid = (await mall.sell(200)).event
    assert isinstance(before, CreditSold)
    assert isinstance(paid, CreditSold)
    owes_less = (await mall.office.account("A1")).owed.debt_minor

    async def reverse(sale: CreditSold) -> Outcome[Account]:
        by_two = Origin("web", "u-alice", approved_by="web u-chief")
        asked = mall.ask(sale.receipt_id, origin=by_two)
        return await mall.office.correct(ReverseSale(asked, "A1", sale.receipt_id, "bounced"))

    back = await reverse(paid)
    assert isinstance(back.event, SaleReversed)
    assert (back.event.amount_minor, back.event.returned_debt_minor) == (200, 200)
    assert (paid.fee_minor, owes_less, back.state.status) == (0, 50, Status.CLOSED)
    assert back.state.owed == Owed(0, 250, 1_000_000)
    told = await stands(mall)
    assert (told["assets:cash"], told["assets:receivable"]) == (1_100 * NANO, 250 * NANO)
    assert "liabilities:prepayment" not in told
    assert await refused(reverse(paid)) is Reason.ALREADY_REVERSED
    assert await refused(reverse(before)) is Reason.ACCOUNT_NOT_OPEN
    await mall.sell(250)
    assert not (await mall.office.account("A1")).owed


async def test_what_was_reserved_before_an_account_closed_is_paid_back_and_after_it_recovers(
    mall: World,
) -> None:
    payments = mall.office.payments
    for number, name in ((41, "before"), (43, "after")):
        await payments.reserve(ReserveSale(mall.ask(number), name, "A1", 200, "qr", 0))
        if name == "before":
            await close(mall)
            await read(mall, 9_000)
            await echo(mall, 1_250 * NANO)
            confirm = ConfirmSale(mall.ask("c"), name)
            assert await refused(payments.confirm(confirm)) is Reason.PAYMENT_TO_RETURN
    await payments.confirm(ConfirmSale(mall.ask("d"), "after"))
    assert (await mall.office.account("A1")).owed.debt_minor == 50


async def test_what_is_owed_is_netted_before_anything_is_paid_out(mall: World) -> None:
    await mall.policy(emergency_minor=300)
    await mall.grant()
    await mall.owe(200, 500_000)
    await close(mall)
    await read(mall, 1_500)
    await echo(mall, 100 * NANO)
    (settled, refund, _) = await of_closing(mall)
    said = settled.record() | {"paid": refund.record()["amount_minor"]}
    assert (said["recovered_emergency_minor"], said["recovered_debt_minor"]) == (300, 200)
    assert said["paid"] == 1_000 + 300 - 100 - 500
    assert (
        not {"assets:receivable", "assets:emergency-credit", "liabilities:prepayment"}
        & (await stands(mall)).keys()
    )


async def test_a_refund_above_what_one_may_pay_waits_for_a_second_person(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("refund") | {"refund": 500})
        await close(world)
        await read(world, 1_500)
        await echo(world, 400 * NANO)
        look = await world.office.closings.look((await under_way(world)).closing_id)
        assert look.step == "approval"
        assert await of_type(world, "credit-refunded") == []
        (proposed,) = await of_type(world, "command-proposed")
        approval_id = proposed.record()["approval_id"]
        await decline(world, approval_id)
        await world.office.complete()
        closing = await under_way(world)
        again = SettleAccount(by_alice(world, 8), "A1", closing.closing_id, 600)
        assert await refused(world.office.closings.settle(again)) is Reason.APPROVAL_REQUIRED
        other = replace(again, request=by_alice(world, 9), refund_minor=1)
        assert await refused(world.office.closings.settle(other)) is Reason.CLOSING_NOT_WAITING
        await approve(world, approval_id_of(again.request))
        assert (await world.office.account("A1")).status is Status.CLOSED
        (paid,) = await of_type(world, "credit-refunded")
        assert (paid.record()["amount_minor"], paid.origin.approved_by) == (600, "web u-bob")


async def test_a_cut_that_needs_a_second_person_waits_and_declined_cuts_nobody(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("force-off"))
        await close(world)
        await read(world, 1_500, LATER_MS)
        (step,) = (await world.office.closings.look((await under_way(world)).closing_id)).meters
        assert step.step == "cut-approval"
        (proposed,) = await of_type(world, "command-proposed")
        await decline(world, proposed.record()["approval_id"])
        await world.office.complete()
        meter = await world.office.meter("M1")
        assert (meter.is_house, meter.forced) == (True, None)


async def test_an_account_in_a_refund_is_not_closed_and_one_in_a_closing_not_refunded(
    mall: World,
) -> None:
    with suppress(Exception):
        refund = RefundCredit(mall.ask("r"), "A1", 5, "cash", "a mistake")
        await mall.office.refund(refund, 0.0)
    assert await refused(close(mall)) is Reason.REFUND_UNDER_WAY
    assert await refused(close_part(mall, "M1")) is Reason.REFUND_UNDER_WAY


async def test_a_hold_that_nobody_echoes_is_made_anew_and_the_old_echo_settles_nothing(
    mall: World,
) -> None:
    await close(mall)
    await read(mall, 1_500)
    first = await under_way(mall)
    await mall.office.complete()
    assert (await under_way(mall)).hold_id == first.hold_id
    mall.clock.at_ms += ASK_AGAIN_MS
    await mall.office.complete()
    assert (await under_way(mall)).hold_id != first.hold_id
    await mall.office.settle(SettleClosing("A1", first.hold_id, 400 * NANO, 7, 0, T0_MS))
    assert (await under_way(mall)).told is None
    await echo(mall, 400 * NANO)
    assert (await mall.office.account("A1")).status is Status.CLOSED


async def test_an_account_that_cannot_be_charged_is_not_settled(mall: World) -> None:
    await close(mall)
    closing_id = (await under_way(mall)).closing_id
    await read(mall, 1_500)
    await echo(mall, 400 * NANO, frozen=True)
    state = await mall.office.account("A1")
    assert (state.status, state.closing) == (Status.OPEN, None)
    (ended,) = await of_type(mall, "account-close-refused")
    assert ended.record()["reason"] == Reason.ACCOUNT_FROZEN
    assert (await mall.office.closings.look(closing_id)).step == ""


async def test_an_echo_that_knows_less_than_the_book_settles_no_closing(mall: World) -> None:
    """Metering has lost what it had told: by its echo more would be paid out than is left."""
    await post(mall, 600 * NANO, 9)
    await close(mall)
    await read(mall, 1_500)
    await echo(mall, 400 * NANO, 8)
    state = await mall.office.account("A1")
    assert (state.status, state.closing) == (Status.OPEN, None)
    (ended,) = await of_type(mall, "account-close-refused")
    assert ended.record()["reason"] == Reason.EVIDENCE_TOO_OLD
    assert await of_type(mall, "credit-refunded") == []
    assert state.used.usage.charged_nano == 600 * NANO


# --- in part -------------------------------------------------------------------------------------


async def test_a_part_waits_for_an_echo_that_knows_what_the_book_has_posted(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        await post(world, 60 * NANO, 9)
        await close_part(world, "M2")
        await read(world, 90, meter_id="M2")
        await echo(world, 40 * NANO, 8, open_meters=1)
        assert (await under_way(world)).hold_id
        assert await of_type(world, "meters-closed") == []
        await echo(world, 70 * NANO, 10, open_meters=1)
        assert (await world.office.account("A1")).closing is None
        (ended,) = await of_type(world, "meters-closed")
        assert isinstance(ended, MetersClosed)
        assert ended.charged_nano == 70 * NANO


async def test_a_part_of_an_account_that_cannot_be_charged_says_so(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        await close_part(world, "M2")
        await read(world, 90, meter_id="M2")
        await echo(world, 40 * NANO, open_meters=1, frozen=True)
        assert (await world.office.account("A1")).closing is None
        assert await of_type(world, "meters-closed") == []
        (ended,) = await of_type(world, "account-close-refused")
        assert ended.record()["reason"] == Reason.ACCOUNT_FROZEN


async def test_some_meters_leave_and_the_account_goes_on_with_the_others(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        assert await refused(close_part(world, "M3")) is Reason.METER_NOT_ASSIGNED
        await close_part(world, "M2")
        await world.sell(100)
        assert await refused(close(world, request=world.ask("x"))) is Reason.CLOSING_UNDER_WAY
        again = close_part(world, "M1", request=world.ask("y"))
        assert await refused(again) is Reason.CLOSING_UNDER_WAY
        refund = RefundCredit(world.ask("r"), "A1", 5, "cash", "a mistake")
        assert await refused(world.office.refund(refund, 0.0)) is Reason.CLOSING_UNDER_WAY
        await read(world, 90, meter_id="M2")
        state = await world.office.account("A1")
        assert [meter.meter_id for meter in state.meters] == ["M1"]
        await echo(world, 40 * NANO, open_meters=1)
        state = await world.office.account("A1")
        assert (state.status, state.closing, state.used.usage.charged_nano) == (
            Status.OPEN, None, 40 * NANO,
        )  # fmt: skip
        (ended,) = await of_type(world, "meters-closed")
        assert isinstance(ended, MetersClosed)
        assert (ended.charged_nano, ended.account_sequence) == (40 * NANO, 7)


# --- the deadline --------------------------------------------------------------------------------


def giving(world: World, closing: Closing, register_milli: int = 1_700) -> GiveRegister:
    return GiveRegister(
        by_alice(world, 8, world.clock.now_ms()), "A1", closing.closing_id, "M1", register_milli,
        "manual", "read at the meter",
    )  # fmt: skip


async def test_a_register_that_cannot_be_is_not_taken_whoever_gives_it(mall: World) -> None:
    await close(mall, lasts_ms=HOUR_MS)
    closing, give = await under_way(mall), mall.office.closings.give
    mall.clock.at_ms += HOUR_MS
    assert await refused(give(giving(mall, closing, 999))) is Reason.REGISTER_IMPLAUSIBLE
    await read(mall, 9_000, T0_MS - HOUR_MS)
    meter = await mall.office.meter("M1")
    assert meter.max_power_w is not None
    most_milli = 9_000 + meter.max_power_w * 2 * HOUR_MS // 3_000_000 + 100
    for register_milli in (8_999, most_milli + 1, 10**15):
        given = giving(mall, closing, register_milli)
        assert await refused(give(given)) is Reason.REGISTER_IMPLAUSIBLE
    await give(giving(mall, closing, most_milli))
    assert (await mall.office.meter("M1")).closing_register_milli == most_milli


async def test_a_register_counts_for_its_ratio_where_the_load_bounds_it(mall: World) -> None:
    await mall.meter("M3", unit=3, ratio=40)
    meter = (await mall.assign("M3", register_milli=50)).state
    await mall.charge(meter.meter_key, meter.epoch, 1, 9_000)
    closing = (await close(mall, lasts_ms=HOUR_MS)).state.closing
    assert closing is not None
    mall.clock.at_ms += HOUR_MS
    assert meter.max_power_w is not None
    used_milli = meter.max_power_w * HOUR_MS // 3_000_000 + 100 * 40
    most_milli = 9_000 + used_milli // 40
    by = giving(mall, closing, most_milli + 1)
    give = mall.office.closings.give
    assert await refused(give(replace(by, meter_id="M3"))) is Reason.REGISTER_IMPLAUSIBLE
    await give(replace(giving(mall, closing, most_milli), meter_id="M3"))
    assert (await mall.office.meter("M3")).closing_register_milli == most_milli


async def test_after_the_deadline_a_register_that_two_give_decides(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("register"))
        await close(world, lasts_ms=HOUR_MS)
        closing = await under_way(world)
        assert await refused(world.office.closings.give(giving(world, closing))) is (
            Reason.CLOSING_NOT_WAITING
        )
        world.clock.at_ms += HOUR_MS
        (step,) = (await world.office.closings.look(closing.closing_id)).meters
        assert (step.step, step.since_ms) == ("register", T0_MS + HOUR_MS)
        give = replace(giving(world, closing), request=by_alice(world, 9, world.clock.now_ms()))
        assert await refused(world.office.closings.give(give)) is Reason.APPROVAL_REQUIRED
        await approve(world, approval_id_of(give.request))
        await world.office.complete()
        meter = await world.office.meter("M1")
        assert (meter.is_house, meter.closing_register_milli) == (True, 1_700)


async def test_an_estimate_goes_on_from_the_last_charged_register_as_it_was_used(
    mall: World,
) -> None:
    day_ms = 24 * HOUR_MS
    meter = await mall.office.meter("M1")
    charged = Charged(meter.meter_key, meter.epoch, 1, 3_000, T0_MS + 4 * day_ms)
    await mall.tables.keep_charged([charged], [])
    mall.clock.at_ms = T0_MS + 6 * day_ms
    await close(mall, request=by_alice(mall, at_ms=mall.clock.at_ms))
    closing = await under_way(mall)
    asked = "A1", closing.closing_id, "M1"
    assert await mall.office.closings.estimate(mall.ask("e"), *asked) == 4_000
    assert estimated_milli(3_000, 5, 1_000, 5, 9) == 3_000, "no habit in no time"
    assert estimated_milli(3_000, 9, 1_000, 5, 7) == 3_000, "never below what was charged"


async def test_an_estimate_is_proposed_as_the_figure_it_came_to(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("register"))
        meter = await world.office.meter("M1")
        charged = Charged(meter.meter_key, meter.epoch, 1, 1_600, T0_MS + HOUR_MS)
        await world.tables.keep_charged([charged], [])
        began_ms = world.clock.at_ms = T0_MS + 2 * HOUR_MS
        await close(world, request=by_alice(world, at_ms=began_ms))
        closing = await under_way(world)
        world.clock.at_ms += LASTS_MS_DEFAULT
        desk = Desk(
            world.office, world.clock, Metrics(CollectorRegistry()), lambda: 1, timeout_s=1.0
        )
        give = pb.GiveRegisterRequest(
            name=f"accounts/A1/closings/{closing.closing_id}",
            request_id=str(ids(8)),
            meter="meters/M1",
            reason="the cellar is flooded",
        )
        call: Any = Call("desk-1", "u-alice", "10.0.0.7", None)
        api = ClosingApi(desk)
        assert await refused(api.GiveRegister(give, call)) is Reason.APPROVAL_REQUIRED
        (proposed,) = await of_type(world, "command-proposed")
        assert '"register_milli":2200' in proposed.record()["content"]
        assert '"source":"estimated"' in proposed.record()["content"]
        await approve(world, proposed.record()["approval_id"])
        await world.office.complete()
        left = await world.office.meter("M1")
        assert (left.is_house, left.closing_register_milli) == (True, 2_200)
        again = await api.GiveRegister(give, call)
        assert again.meters[0].register_milli == 2_200, "a repeat gets the answer"
        give.reason = "it is dry again"
        assert await refused(api.GiveRegister(give, call)) is Reason.REQUEST_ID_REUSED


async def test_an_estimate_that_one_person_gives_is_answered_once_more(mall: World) -> None:
    """Also when its meter has left, and nobody could estimate it any more."""
    await mall.charge((await mall.office.meter("M1")).meter_key, 2, 1, 1_600)
    await close(mall, lasts_ms=HOUR_MS)
    closing = await under_way(mall)
    mall.clock.at_ms += HOUR_MS
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, timeout_s=1.0)
    give = pb.GiveRegisterRequest(
        name=f"accounts/A1/closings/{closing.closing_id}",
        request_id=str(ids(8)),
        meter="meters/M1",
        reason="the cellar is flooded",
    )
    call: Any = Call("desk-1", "u-alice", "10.0.0.7", None)
    first = await ClosingApi(desk).GiveRegister(give, call)
    assert first.meters[0].register_milli == 1_600
    assert await ClosingApi(desk).GiveRegister(give, call) == first


# --- cancelled -----------------------------------------------------------------------------------


def cancelling(world: World, closing: Closing, number: int = 8) -> CancelClosing:
    return CancelClosing(by_alice(world, number), "A1", closing.closing_id, "they stay")


async def test_a_cancelled_closing_opens_the_account_and_gives_its_relays_back(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        await world.office.order(ForceRelay(world.ask("works"), "M2", "off", "works on the riser"))
        await close(world)
        closing = await under_way(world)
        await world.office.closings.cancel(cancelling(world, closing))
        state = await world.office.account("A1")
        assert (state.status, state.closing) == (Status.OPEN, None)
        assert (await world.office.meter("M1")).forced is None
        assert (await world.office.meter("M2")).forced == "off", "that was another's order"
        await world.sell(5)
        late = SettleAccount(by_alice(world, 9), "A1", closing.closing_id, 1)
        assert await refused(world.office.closings.settle(late)) is Reason.CLOSING_NOT_FOUND


async def test_a_closing_is_not_cancelled_when_a_meter_has_left(mall: World) -> None:
    await close(mall)
    closing = await under_way(mall)
    await read(mall, 1_500)
    asked = mall.office.closings.cancel(cancelling(mall, closing))
    assert await refused(asked) is Reason.CLOSING_NOT_CANCELLABLE


async def test_a_cut_that_waited_for_approval_is_withdrawn_with_its_closing(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("force-off"))
        await close(world)
        await world.office.closings.cancel(cancelling(world, await under_way(world)))
        (proposed,) = await of_type(world, "command-proposed")
        approval_id = proposed.record()["approval_id"]
        assert (await world.office.approvals.proposal(approval_id)).status == "declined"


# --- looking at it -------------------------------------------------------------------------------


async def test_a_closing_is_watched_from_its_begin_to_long_after_its_end(mall: World) -> None:
    await close(mall)
    closing_id = (await under_way(mall)).closing_id
    closings = mall.office.closings
    look = await closings.look(closing_id)
    assert (look.step, [meter.step for meter in look.meters]) == ("meters", ["reading"])
    assert look.meters[0].since_ms == LATER_MS
    opened = await mall.tables.closings_open(T0_MS + LASTS_MS_DEFAULT)
    assert (opened.count, opened.overdue, opened.oldest_began_at_ms) == (1, 1, T0_MS)
    await read(mall, 1_500)
    look = await closings.look(closing_id)
    assert (look.step, look.meters[0].step, look.meters[0].register_milli) == ("echo", "left", 1500)
    await echo(mall, 400 * NANO)
    look = await closings.look(closing_id)
    assert (look.row.is_open, look.step) == (False, "")
    assert [event.SUBJECT for event in look.events][-3:] == [
        "account-settled", "credit-refunded", "account-closed",
    ]  # fmt: skip
    assert (look.meters[0].step, look.meters[0].register_milli) == ("left", 1_500)
    assert await mall.tables.closings("A1", True, 0, 10) == []
    (row,) = await mall.tables.closings("", None, 0, 10)
    assert row == look.row
    assert await refused(closings.look(str(ids(99)))) is Reason.CLOSING_NOT_FOUND


# --- a process that dies -------------------------------------------------------------------------


async def done(asked: Awaitable[Any]) -> None:
    """Ask, whatever the answer: the judge looks at what came of it."""
    with suppress(InvalidInput):
        await asked


async def closed(world: World) -> None:
    """Judge: nothing is left, and nobody's meter is two accounts' or none's."""
    state = await world.office.account("A1")
    assert (state.status, state.closing, state.meters) == (Status.CLOSED, None, ())
    assert state.credited_nano == state.used.usage.charged_nano
    told = await stands(world)
    assert "liabilities:prepayment" not in told
    assert told.get("assets:receivable", 0) == state.owed.debt_minor * NANO


@pytest.mark.parametrize(
    ("used_nano", "steps"),
    [(400 * NANO + 1, 14), (1_250 * NANO + 1, 14), (1_000 * NANO, 14), (1_000 * NANO - 1, 14)],
    ids=["refund", "due", "zero", "remainder"],
)
async def test_a_full_closing_that_dies_anywhere_comes_to_the_same(
    tmp_path: Path, used_nano: int, steps: int
) -> None:
    async def story(world: World) -> None:
        await close(world)
        await read(world, 1_500)
        await world.office.complete()
        await echo(world, used_nano)

    # account-closing, relay-forced, meter-assigned, account-meter-left, closing-asked, the end
    assert await at_every_step(tmp_path, with_a_meter, story, closed) == steps - 2


async def test_a_closing_of_several_meters_that_dies_anywhere_comes_to_the_same(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        await close(world)
        await read(world, 1_500)
        await read(world, 90, meter_id="M2")
        await world.office.complete()
        await echo(world, 300 * NANO)

    # two cuts and two leavings
    assert await at_every_step(tmp_path, with_two, story, closed) == 18


async def test_a_closing_whose_refund_needs_two_dies_anywhere_and_pays_once(
    tmp_path: Path,
) -> None:
    async def setting(world: World) -> None:
        await with_a_meter(world, alone_but("refund"))

    async def story(world: World) -> None:
        await close(world)
        await read(world, 1_500)
        await world.office.complete()
        await echo(world, 400 * NANO)
        proposals = await world.tables.waiting("approval", "", 0, 9)
        for _, approval_id in proposals:
            await approve(world, approval_id, 33)
        await world.office.complete()

    async def judge(world: World) -> None:
        await closed(world)
        (paid,) = await of_type(world, "credit-refunded")
        assert paid.origin == Origin("web", "u-alice", "", "web u-bob")

    # ..., closing-told, command-proposed, proposal-approved, the end, proposal-executed
    assert await at_every_step(tmp_path, setting, story, judge) == 20


async def test_a_part_that_dies_anywhere_leaves_the_rest_alone(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await close_part(world, "M2")
        await read(world, 90, meter_id="M2")
        await world.office.complete()
        await echo(world, 40 * NANO, open_meters=1)

    async def judge(world: World) -> None:
        state = await world.office.account("A1")
        assert (state.status, state.closing) == (Status.OPEN, None)
        assert [meter.meter_id for meter in state.meters] == ["M1"]

    # meters-closing, relay-forced, meter-assigned, account-meter-left, closing-asked, its end
    assert await at_every_step(tmp_path, with_two, story, judge) == 12


async def test_a_closing_that_two_give_a_register_dies_anywhere_and_takes_it_once(
    tmp_path: Path,
) -> None:
    async def setting(world: World) -> None:
        await with_a_meter(world, alone_but("register"))

    async def story(world: World) -> None:
        began_ms = T0_MS - LASTS_MS_DEFAULT
        await close(world, request=by_alice(world, at_ms=began_ms))
        closing = (await world.office.account("A1")).closing
        if closing:
            give = giving(world, closing)
            await done(world.office.closings.give(give))
            await done(approve(world, approval_id_of(give.request), 33))
        await world.office.complete()
        await world.office.complete()
        await echo(world, 700 * NANO)

    async def judge(world: World) -> None:
        await closed(world)
        assert (await world.office.meter("M1")).closing_register_milli == 1_700

    # ..., command-proposed, proposal-approved, closing-register-given, proposal-executed, ...
    assert await at_every_step(tmp_path, setting, story, judge) == 20


async def test_a_cancelled_closing_that_dies_anywhere_is_as_if_it_had_never_been(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        await close(world)
        closing = (await world.office.account("A1")).closing
        if closing:
            await done(world.office.closings.cancel(cancelling(world, closing)))
        await world.office.complete()

    async def judge(world: World) -> None:
        state = await world.office.account("A1")
        assert (state.status, state.closing) == (Status.OPEN, None)
        assert state.has("M1")
        assert (await world.office.meter("M1")).forced is None

    # account-closing, relay-forced, closing-cancelled, relay-forced, closing-undone
    assert await at_every_step(tmp_path, with_a_meter, story, judge) == 10


# --- as a service --------------------------------------------------------------------------------


async def test_a_closing_is_asked_for_and_watched_as_a_resource_and_as_an_operation(
    mall: World,
) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, timeout_s=1.0)
    api, operations = ClosingApi(desk), OperationsApi(OPERATIONS, desk)
    call: Any = Call("desk-1", "u-alice", "10.0.0.7", None)
    ask = pb.CreateClosingRequest(
        parent="accounts/A1", request_id=str(ids(7)), method="cash", reason="moves out"
    )
    begun = await api.CreateClosing(ask, call)
    assert begun == await api.CreateClosing(ask, call), "a repeat is told the same"
    closing = pb.Closing()
    assert begun.metadata.Unpack(closing)
    assert (closing.state, closing.step, closing.meters[0].step) == ("running", "meters", "reading")
    assert not begun.done

    await read(mall, 1_500)
    listed = await api.ListClosings(
        pb.ListClosingsRequest(parent="accounts/-", filter="running = true"), call
    )
    assert [each.step for each in listed.closings] == ["echo"]
    late = pb.CancelClosingRequest(name=closing.name, request_id=str(ids(8)), reason="they stay")
    assert await refused(api.CancelClosing(late, call)) is Reason.CLOSING_NOT_CANCELLABLE

    await echo(mall, 400 * NANO + 1)
    ended = await api.GetClosing(pb.GetClosingRequest(name=closing.name), call)
    told = ended.settlement
    assert (ended.state, told.refund_minor, told.dropped_nano) == ("closed", 599, NANO - 1)
    assert ended.meters[0].register_milli == 1_500
    over = await operations.GetOperation(begun, call)
    assert over.done
    assert over.response.Unpack(closing)
    assert closing == ended
    (kept,) = (await operations.ListOperations(lro.ListOperationsRequest(), call)).operations
    assert kept == over
    anybodys = closing.name.replace("A1", "-")  # as a log has it, without the account
    assert await api.GetClosing(pb.GetClosingRequest(name=anybodys), call) == ended
    nobodys = pb.GetClosingRequest(name=closing.name.replace("A1", "A2"))
    assert await refused(api.GetClosing(nobodys, call)) is Reason.CLOSING_NOT_FOUND


async def test_a_cancelled_closing_is_a_cancelled_operation(mall: World) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, timeout_s=1.0)
    operations = OperationsApi(OPERATIONS, desk)
    call: Any = Call("desk-1", "u-alice", "10.0.0.7", None)
    await close(mall)
    name = f"operations/closings/{(await under_way(mall)).closing_id}"
    await operations.CancelOperation(lro.CancelOperationRequest(name=name), call)
    over = await operations.GetOperation(lro.GetOperationRequest(name=name), call)
    assert (over.done, over.error.code) == (True, 1)
    assert (await mall.office.account("A1")).status is Status.OPEN


async def test_a_closing_that_is_refused_is_a_failed_operation(mall: World) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, timeout_s=1.0)
    operations = OperationsApi(OPERATIONS, desk)
    call: Any = Call("desk-1", "u-alice", "10.0.0.7", None)
    await close(mall)
    name = f"operations/closings/{(await under_way(mall)).closing_id}"
    await read(mall, 1_500)
    await echo(mall, 400 * NANO, open_meters=1)
    over = await operations.GetOperation(lro.GetOperationRequest(name=name), call)
    assert over.done
    assert "metering still counts one" in over.error.message
