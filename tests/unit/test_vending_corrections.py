"""Goal: what was sold wrong is taken back whole and once, and what is owed is given up by two.

Method: the office on a real SQLite file; the story of a reversal dies at each of its appends. What
metering makes of credit that falls is absorbed by its own code, as in test_orders_reach_metering.
"""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.vending.application.book import Outcome
from services.vending.domain.account import Account
from services.vending.domain.approval import approval_id_of
from services.vending.domain.corrections import AdjustCredit, RefundCredit, ReverseSale, WriteOff
from services.vending.domain.decisions import Request
from services.vending.domain.events.corrections import OwedWrittenOff, SaleReversed
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.origin import Origin
from services.vending.domain.owed import Owed
from services.vending.domain.settling import SettleClosing
from tests.unit import vending_world
from tests.unit.metering_log import kinds
from tests.unit.test_orders_reach_metering import Platform, Shards
from tests.unit.test_vending_approvals import approve, ids, of_type, publish
from tests.unit.test_vending_office import closing, refused, settle
from tests.unit.test_vending_orders import Desk
from tests.unit.test_vending_relay import relaying
from tests.unit.test_vending_usage import Metering, told
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import T0_MS, World

NANO = 10**7
ALICE = Origin("web", "u-alice")
ALONE = dict.fromkeys(
    (
        "reversal",
        "refund",
        "adjustment",
        "write_off",
        "debt",
        "emergency",
        "policy_change",
        "authority",
    )
)


async def sold(world: World, amount_minor: int, request: Request | None = None) -> CreditSold:
    event = (await world.sell(amount_minor, request=request)).event
    assert isinstance(event, CreditSold)
    return event


async def reverse(
    world: World, receipt_id: str, request: Request | None = None, account_id: str = "A1"
) -> Outcome[Account]:
    asked = request or world.ask(receipt_id)
    return await world.office.correct(ReverseSale(asked, account_id, receipt_id, "wrong account"))


async def adjust(
    world: World, amount_minor: int, request: Request | None = None
) -> Outcome[Account]:
    asked = request or world.ask(amount_minor)
    return await world.office.correct(AdjustCredit(asked, "A1", amount_minor, "a wrong tariff"))


async def write_off(world: World, kind: str, amount_minor: int) -> Outcome[Account]:
    asked = world.ask(kind, amount_minor)
    return await world.office.correct(WriteOff(asked, "A1", kind, amount_minor, "tenant gone"))


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall whose operator is one person, and says so."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        await opened.policy(emergency_minor=300)
        await publish(opened, **ALONE)
        yield opened


# --- reversal ------------------------------------------------------------------------------------


async def test_a_reversal_takes_back_all_that_a_sale_came_to(mall: World) -> None:
    await mall.grant()
    await mall.owe(5_000, 200_000)
    before = await mall.office.account("A1")
    sale = await sold(mall, 10_000)
    assert (sale.recovered_emergency_minor, sale.recovered_debt_minor) == (300, 2_000)
    outcome = await reverse(mall, sale.receipt_id)
    event, after = outcome.event, outcome.state
    assert isinstance(event, SaleReversed)
    assert (event.amount_minor, event.method) == (10_000, "cash")
    assert (event.returned_emergency_minor, event.returned_debt_minor) == (300, 2_000)
    assert event.postings is not None
    assert sale.postings is not None
    taken = {posting.account: posting.amount_nano for posting in event.postings}
    assert taken == {posting.account: -posting.amount_nano for posting in sale.postings}
    assert (after.credited_nano, after.owed) == (before.credited_nano, before.owed)


async def test_a_sale_is_reversed_once_and_a_refusal_is_repeated(mall: World) -> None:
    sale = await sold(mall, 100)
    request = mall.ask(sale.receipt_id)
    first = await reverse(mall, sale.receipt_id, request)
    assert await reverse(mall, sale.receipt_id, request) == first
    late = mall.ask(sale.receipt_id, "again")
    for _ in range(2):
        assert await refused(reverse(mall, sale.receipt_id, late)) is Reason.ALREADY_REVERSED
    assert len(await of_type(mall, "correction-refused")) == 1
    assert (await mall.office.account("A1")).credited_nano == 0


async def test_a_sale_is_not_taken_back_when_credit_was_refunded_since(mall: World) -> None:
    wrong = await sold(mall, 1_000)
    request = mall.ask("refund")
    command = RefundCredit(request, "A1", 300, "cash", "moves out")
    with pytest.raises(Retriable):
        await mall.office.refund(command, 0.0)
    hold = (await mall.office.account("A1")).refunding
    assert hold is not None
    await mall.office.settle(SettleClosing("A1", hold.hold_id, 0, 0, 0, T0_MS))
    late = mall.ask("late")
    for _ in range(2):
        assert await refused(reverse(mall, wrong.receipt_id, late)) is Reason.REFUNDED_SINCE
    assert (await mall.office.account("A1")).credited_nano == 700 * NANO
    after = await sold(mall, 50)
    await reverse(mall, after.receipt_id)
    assert (await mall.office.account("A1")).credited_nano == 700 * NANO


async def test_only_a_sale_of_the_account_is_reversed(mall: World) -> None:
    await mall.account("A2")
    sale = await sold(mall, 100)
    asked = reverse(mall, sale.receipt_id, account_id="A2")
    assert await refused(asked) is Reason.RECEIPT_NOT_FOUND
    taken_back = (await reverse(mall, sale.receipt_id)).event
    assert isinstance(taken_back, SaleReversed)
    assert await refused(reverse(mall, taken_back.receipt_id)) is Reason.RECEIPT_NOT_FOUND
    unknown = reverse(mall, sale.receipt_id, account_id="nobody")
    assert await refused(unknown) is Reason.ACCOUNT_NOT_FOUND


async def test_no_reversal_lets_more_be_lent_than_was_ever_granted_at_once(mall: World) -> None:
    await mall.grant()
    first = await sold(mall, 300)
    await mall.grant()
    assert await refused(reverse(mall, first.receipt_id)) is Reason.EMERGENCY_GRANTED_SINCE
    assert (await mall.office.account("A1")).owed == Owed(300)
    second = await sold(mall, 300)
    assert (await reverse(mall, first.receipt_id)).state.owed == Owed(300)  # lent once now
    assert await refused(reverse(mall, second.receipt_id)) is Reason.EMERGENCY_GRANTED_SINCE
    await sold(mall, 300)
    assert (await reverse(mall, second.receipt_id)).state.owed == Owed(300)


@pytest.mark.parametrize("share_ppm", [0, 500_000])
async def test_a_debt_that_was_ended_stays_ended_after_a_reversal(
    mall: World, share_ppm: int
) -> None:
    await mall.owe(1_000, 500_000)
    sale = await sold(mall, 1_000)
    await mall.owe(0, share_ppm)
    outcome = await reverse(mall, sale.receipt_id)
    event = outcome.event
    assert isinstance(event, SaleReversed)
    assert (event.returned_debt_minor, event.given_up_debt_minor) == (0, 500)
    assert event.postings is not None
    taken: Counter[str] = Counter()
    for posting in event.postings:
        taken[posting.account] += posting.amount_nano // NANO
    assert taken == {
        "assets:cash": -1_000,
        "assets:receivable": 0,
        "expenses:write-off": 500,
        "liabilities:prepayment": 500,
    }
    assert not outcome.state.owed
    assert outcome.state.credited_nano == 0
    assert (await sold(mall, 10_000)).recovered_debt_minor == 0


async def test_a_debt_that_was_ended_stays_ended_where_another_one_was_set_after_it(
    mall: World,
) -> None:
    await mall.owe(5_000, 200_000)
    sale = await sold(mall, 10_000)  # 20.00 go to the debt
    await mall.owe(0, 0)
    await mall.owe(100, 200_000)
    later = await sold(mall, 500)  # 1.00 goes to the other one
    event = (await reverse(mall, sale.receipt_id)).event
    assert isinstance(event, SaleReversed)
    assert (event.returned_debt_minor, event.given_up_debt_minor) == (0, 2_000)
    assert (await reverse(mall, later.receipt_id)).state.owed == Owed(0, 100, 200_000)


async def test_a_debt_that_sales_have_paid_is_owed_again_with_its_share(mall: World) -> None:
    await mall.owe(500, 500_000)
    sale = await sold(mall, 1_000)
    assert (await mall.office.account("A1")).owed.debt_minor == 0
    assert (await reverse(mall, sale.receipt_id)).state.owed == Owed(0, 500, 500_000)
    assert (await sold(mall, 10_000)).recovered_debt_minor == 500


async def test_an_account_that_is_closed_takes_no_correction(mall: World) -> None:
    sale = await sold(mall, 100)
    await closing(mall)
    assert await refused(reverse(mall, sale.receipt_id)) is Reason.ACCOUNT_NOT_OPEN
    await settle(mall, charged_nano=100 * NANO)
    assert await refused(reverse(mall, sale.receipt_id)) is Reason.ACCOUNT_NOT_OPEN
    assert await refused(adjust(mall, 1)) is Reason.ACCOUNT_NOT_OPEN


async def test_without_a_document_money_goes_back_by_two(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        sale = await sold(world, 1)
        assert await refused(reverse(world, sale.receipt_id)) is Reason.APPROVAL_REQUIRED
        assert await refused(adjust(world, -1)) is Reason.APPROVAL_REQUIRED
        metering = Metering()
        metering.uses(energy=2 * NANO)
        await told(world, metering)
        assert await refused(write_off(world, "arrears", 1)) is Reason.APPROVAL_REQUIRED
        await world.owe(500, 1_000)  # as in releases before


async def test_a_limit_in_money_holds_in_its_currency_alone(mall: World) -> None:
    await publish(mall, reversal=100, authority=None)
    small, large = await sold(mall, 100), await sold(mall, 101)
    await reverse(mall, small.receipt_id)
    with pytest.raises(InvalidInput, match=r"reversal of 1\.01 CNY .*, above 1\.00 CNY"):
        await reverse(mall, large.receipt_id)
    await mall.site("S9", currency="EUR")
    await mall.tariff("T9", currency="EUR")
    await mall.policy("P9", currency="EUR")
    await mall.account("A9", site_id="S9", tariff_id="T9", policy_id="P9")
    event = (await mall.sell(1, "A9")).event
    assert isinstance(event, CreditSold)
    asked = reverse(mall, event.receipt_id, account_id="A9")
    assert await refused(asked) is Reason.APPROVAL_REQUIRED


# --- adjustments and what is given up ------------------------------------------------------------


async def test_an_adjustment_moves_credit_and_no_money(mall: World) -> None:
    await mall.grant()
    await adjust(mall, 250)
    state = (await adjust(mall, -1_000)).state
    assert state.credited_nano == (300 + 250 - 1_000) * NANO
    assert state.owed == Owed(300), "nobody paid, so nothing is recovered"
    assert await refused(adjust(mall, 2**63 - 1)) is Reason.AMOUNT_TOO_LARGE
    with pytest.raises(InvalidInput, match="0 adjusts nothing"):
        await adjust(mall, 0)


async def test_no_more_is_given_up_than_is_owed(mall: World) -> None:
    await mall.grant()
    await mall.owe(500, 1_000)
    assert await refused(write_off(mall, "emergency", 301)) is Reason.NOT_OWED
    assert await refused(write_off(mall, "debt", 501)) is Reason.NOT_OWED
    outcome = await write_off(mall, "emergency", 300)
    assert isinstance(outcome.event, OwedWrittenOff)
    assert outcome.state.owed == Owed(0, 500, 1_000)
    assert (await write_off(mall, "debt", 200)).state.owed == Owed(0, 300, 1_000)
    assert await refused(write_off(mall, "arrears", 1)) is Reason.NOT_OWED, "it has 3.00"
    metering = Metering()
    metering.uses(energy=370 * NANO)
    await told(mall, metering)
    assert await refused(write_off(mall, "arrears", 71)) is Reason.NOT_OWED
    assert (await write_off(mall, "arrears", 70)).state.credited_nano == 370 * NANO


async def test_a_debt_is_set_by_two_where_the_document_says_so(mall: World) -> None:
    await publish(mall, debt=400)
    await mall.owe(400, 1_000)
    assert await refused(mall.owe(801, 1_000)) is Reason.APPROVAL_REQUIRED
    await mall.owe(400, 5_000)


# --- crashes and the meter -----------------------------------------------------------------------


async def test_a_process_that_dies_anywhere_reverses_once(tmp_path: Path) -> None:
    def asked(world: World, number: int, *content: Any) -> Request:
        return world.ask(*content, request_id=ids(number), caller="web", origin=ALICE)

    async def setting(world: World) -> None:
        await world.mall()
        await sold(world, 900)

    async def story(world: World) -> None:
        sale = await sold(world, 100, asked(world, 1, 100))
        request = asked(world, 2, "reverse")
        try:
            await reverse(world, sale.receipt_id, request)
        except InvalidInput as waits:
            if waits.reason is not Reason.APPROVAL_REQUIRED:
                raise
            await approve(world, approval_id_of(request), number=8)
        outcome = await reverse(world, sale.receipt_id, request)
        assert isinstance(outcome.event, SaleReversed)
        assert UUID(outcome.event.receipt_id)

    async def judge(world: World) -> None:
        assert (await world.office.account("A1")).credited_nano == 900 * NANO
        (event,) = await of_type(world, "sale-reversed")
        assert event.origin == Origin("web", "u-alice", "", "web u-bob")

    # credit-sold, command-proposed, proposal-approved, sale-reversed, proposal-executed
    assert await at_every_step(tmp_path, setting, story, judge) == 10


async def test_credit_that_falls_warns_at_once_and_cuts_on_the_next_reading_alone(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await publish(desk, reversal=None)
            wrong = await sold(desk, 100_000)
            await desk.assign(register_milli=0)
            log = shards.logs[(await desk.office.account("A1")).shard]
            log.now_ms = desk.clock.at_ms
            platform = Platform(desk, shards, relay, log, [])
            assert await platform.told() == ["closed"]
            assert kinds(await platform.read(2_000)) == []
            await reverse(desk, wrong.receipt_id)
            assert await platform.told() == ["alarm-2"], "a correction never cuts by itself"
            assert kinds(await platform.read(2_001)) == ["cut", "open"]
