"""Goal: the fee, the ceiling and the price of energy are what the policy and the tariff say.

Method: the office on a real SQLite file; Hypothesis for the amount that a quote comes to.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.reasons import Reason
from services.common.kernel.units import CURRENCIES
from services.vending.application.book import Outcome
from services.vending.domain import account_commands, terms
from services.vending.domain.account import Account
from services.vending.domain.decisions import Answers, Request
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.payment import ConfirmSale, ReserveSale
from services.vending.domain.policy import FEE_PPM_MAX, Policy
from services.vending.domain.postings import Usage
from services.vending.domain.sale import Sell
from services.vending.domain.usage import PostUsage
from tests.unit import vending_world
from tests.unit.test_vending_approvals import publish
from tests.unit.test_vending_corrections import ALONE, reverse
from tests.unit.test_vending_office import refused
from tests.unit.vending_world import LEAD_MS, World

NANO = 10**7
KWH = 1000
TAXED = (
    '{"zone":"Asia/Shanghai","rates_micro":{"flat":800000},'
    '"surcharges":[{"name":"grid","price_micro":50000}],'
    '"taxes":[{"name":"vat","ppm":130000,"base":["energy","surcharges"]}]}'
)
BY_HOUR = (
    '{"zone":"Asia/Shanghai","rates_micro":{"peak":900000,"valley":300000},"seasons":'
    '[{"name":"all","begins":"01-01","days":[{"kinds":["weekday","weekend","holiday"],'
    '"slots":[{"begins":"00:00","rate":"valley"},{"begins":"08:00","rate":"peak"}]}]}]}'
)


BY_STEPS = (
    '{"zone":"Asia/Shanghai","rates_micro":{"flat":800000},"ladder":{"period":"month",'
    '"scope":"account","steps":[{"above_milli":200000,"add_micro":50000}]}}'
)


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        yield opened


async def sold(world: World, amount_minor: int, energy_milli: int = 0) -> CreditSold:
    request = world.ask(amount_minor, energy_milli)
    command = Sell(request, "A1", amount_minor, "cash", energy_milli)
    event = (await world.office.sell(command)).event
    assert isinstance(event, CreditSold)
    return event


async def use(world: World, charged_nano: int) -> Outcome[Account]:
    """Let metering tell what was charged."""
    told = PostUsage(
        world.ask(charged_nano), "A1", 1, Usage(undivided_nano=charged_nano), 0, 0, 1,
        [], b"", 1, 1,
    )  # fmt: skip
    return await world.book.submit(
        Account, "A1", lambda state: account_commands.decide(state, told)
    )


# --- the fee -------------------------------------------------------------------------------------


async def test_the_fee_is_of_the_amount_and_goes_before_what_is_owed(mall: World) -> None:
    await mall.policy(fee_ppm=15_000, fee_minor=10, emergency_minor=300)
    await mall.grant()
    await mall.owe(5_000, 100_000)
    sale = await sold(mall, 1_000)
    parts = (sale.fee_minor, sale.recovered_emergency_minor, sale.recovered_debt_minor)
    assert parts == (25, 300, 98)
    assert sale.credited_nano == (300 + 1_000 - 25 - 300 - 98) * NANO
    assert sale.postings is not None
    assert ("income:service-fee", -25 * NANO) in [(p.account, p.amount_nano) for p in sale.postings]
    assert (await sold(mall, 1_100)).fee_minor == 27, "half of a minor unit is one"
    assert await refused(sold(mall, 10)) is Reason.AMOUNT_BELOW_FEE


async def test_a_reversal_gives_the_fee_back_too(mall: World) -> None:
    await publish(mall, **ALONE)
    await mall.policy(fee_ppm=15_000)
    sale = await sold(mall, 1_000)
    await mall.policy(fee_ppm=0)
    outcome = await reverse(mall, sale.receipt_id)
    assert outcome.state.credited_nano == 0
    assert outcome.event is not None
    assert outcome.event.record()["returned_fee_minor"] == 15


async def test_the_first_sale_of_an_account_has_its_fee_and_its_ceiling(mall: World) -> None:
    await mall.policy(fee_minor=10, ceiling_minor=500)
    opened = await mall.account("A2", first_sale_minor=510, method="cash")
    assert opened.state.credited_nano == 500 * NANO
    asked = mall.account("A3", first_sale_minor=511, method="cash")
    assert await refused(asked) is Reason.ABOVE_CEILING


# --- the ceiling ---------------------------------------------------------------------------------


async def test_a_sale_fills_an_account_up_to_the_ceiling_and_says_how_much_that_is(
    mall: World,
) -> None:
    await mall.policy(ceiling_minor=1_000)
    await sold(mall, 900)
    assert await refused(sold(mall, 101)) is Reason.ABOVE_CEILING
    with pytest.raises(Exception, match=r"may have 10\.00 CNY at hand: at most 1\.00"):
        await sold(mall, 200)
    await sold(mall, 100)
    await use(mall, 300 * NANO)
    await sold(mall, 300)
    assert await refused(sold(mall, 1)) is Reason.ABOVE_CEILING
    await mall.policy(ceiling_minor=0)
    await sold(mall, 10**9)


async def test_a_ceiling_keeps_out_what_is_asked_for_and_not_what_is_paid(mall: World) -> None:
    async def reserve(number: str, amount_minor: int) -> None:
        command = ReserveSale(mall.ask(number), number, "A1", amount_minor, "qr", 0)
        await mall.office.payments.reserve(command)

    await mall.policy(ceiling_minor=1_000)
    await reserve("first", 800)
    await reserve("second", 800)
    for number in ("first", "second"):
        await mall.office.payments.confirm(ConfirmSale(mall.ask("confirm", number), number))
    assert (await mall.office.account("A1")).credited_nano == 1_600 * NANO
    assert await refused(reserve("third", 1)) is Reason.ABOVE_CEILING


async def test_who_has_paid_gets_what_was_reserved_whatever_fee_or_debt_came_since(
    mall: World,
) -> None:
    async def reserve(number: str) -> None:
        command = ReserveSale(mall.ask(number), number, "A1", 1_000, "qr", 0)
        await mall.office.payments.reserve(command)

    async def confirm(number: str) -> CreditSold:
        command = ConfirmSale(mall.ask("confirm", number), number)
        event = (await mall.office.payments.confirm(command)).event
        assert isinstance(event, CreditSold)
        return event

    await mall.policy(fee_minor=20)
    await reserve("before")
    await mall.policy(fee_ppm=500_000)
    await mall.owe(900, 1_000_000)
    first = await confirm("before")
    assert (first.fee_minor, first.recovered_debt_minor) == (20, 0)
    assert (await mall.office.account("A1")).credited_nano == 980 * NANO
    await reserve("after")
    await mall.owe(0, 0)
    await mall.policy()
    last = await confirm("after")
    assert (last.fee_minor, last.recovered_debt_minor) == (500, 0), "and no debt that is none"


# --- energy --------------------------------------------------------------------------------------


async def test_energy_is_sold_at_the_price_in_force_and_the_quote_is_what_it_costs(
    mall: World,
) -> None:
    quoted, _ = await mall.office.quote("A1", 100 * KWH)
    assert (quoted.amount_minor, quoted.price_micro) == (8_000, 800_000)
    sale = await sold(mall, 0, 100 * KWH)
    assert (sale.amount_minor, sale.energy_milli, sale.price_micro) == (8_000, 100_000, 800_000)
    assert (await sold(mall, 8_000, 100 * KWH)).amount_minor == 8_000
    assert await refused(sold(mall, 7_999, 100 * KWH)) is Reason.QUOTE_CHANGED
    await mall.tariff(price_micro=900_000)
    assert (await mall.office.quote("A1", KWH))[0].amount_minor == 80, "it is not in force yet"
    mall.clock.at_ms += LEAD_MS
    assert (await mall.office.quote("A1", KWH))[0].amount_minor == 90
    assert await refused(sold(mall, 8_000, 100 * KWH)) is Reason.QUOTE_CHANGED


async def test_a_sale_of_energy_is_repeated_whatever_it_costs_by_then(mall: World) -> None:
    request = mall.ask("energy")
    command = Sell(request, "A1", 0, "cash", 100 * KWH)
    first = await mall.office.sell(command)
    await mall.owe(10, 1_000)
    mall.clock.at_ms += 10 * LEAD_MS
    assert await mall.office.sell(command) == first


async def test_the_price_of_energy_is_all_that_a_unit_costs(mall: World) -> None:
    await mall.tariff("T2", price_micro=0, plan=TAXED)
    await mall.account("A2", tariff_id="T2")
    quoted, _ = await mall.office.quote("A2", 1_500)
    assert quoted.price_micro == 850_000 + 104_000 + 6_500
    assert quoted.amount_minor == 145  # 1.44075, upwards


async def test_what_cannot_be_said_beforehand_is_not_quoted(mall: World) -> None:
    await mall.tariff("T2", price_micro=0, plan=BY_HOUR)
    await mall.account("A2", tariff_id="T2")
    assert await refused(mall.office.quote("A2", KWH)) is Reason.CANNOT_QUOTE
    await mall.tariff("T4", price_micro=0, plan=BY_STEPS)
    await mall.account("A4", tariff_id="T4")
    assert await refused(mall.office.quote("A4", KWH)) is Reason.CANNOT_QUOTE
    command = Sell(mall.ask("A2"), "A2", 0, "cash", KWH)
    for _ in range(2):
        assert await refused(mall.office.sell(command)) is Reason.CANNOT_QUOTE
    await mall.tariff("T3", price_micro=0)
    await mall.account("A3", tariff_id="T3")
    assert await refused(mall.office.quote("A3", KWH)) is Reason.CANNOT_QUOTE
    await mall.owe(100, 1_000)
    assert await refused(mall.office.quote("A1", KWH)) is Reason.CANNOT_QUOTE
    assert await refused(mall.office.quote("A1", 0)) is Reason.INVALID_ARGUMENT
    assert await refused(mall.office.quote("nobody", 1)) is Reason.ACCOUNT_NOT_FOUND


@given(
    st.integers(1, 10**9),
    st.integers(1, 10**8),
    st.integers(0, FEE_PPM_MAX),
    st.integers(0, 10**4),
    st.sampled_from(["CNY", "JPY", "IDR"]),
)
def test_a_quote_is_the_least_that_leaves_enough_after_its_fee(
    energy_milli: int, price_micro: int, fee_ppm: int, fee_minor: int, code: str
) -> None:
    policy = Policy(
        Answers(), "P1", 1, code, 2, 1, 0, 1, 1, 1, 1, 0, None, None, fee_ppm, fee_minor
    )
    currency = CURRENCIES[code]
    quoted = terms.quote(policy, price_micro, energy_milli, currency)

    def credited_nano(amount_minor: int) -> int:
        left_minor = amount_minor - terms.fee_minor_of(policy, amount_minor)
        return left_minor * currency.nano_per_minor

    assert credited_nano(quoted.amount_minor) >= energy_milli * price_micro
    assert credited_nano(quoted.amount_minor - 1) < energy_milli * price_micro
    assert quoted.fee_minor == terms.fee_minor_of(policy, quoted.amount_minor)


def test_neither_amount_nor_energy_is_no_sale() -> None:
    with pytest.raises(Exception, match="above 0"):
        Sell(Request("till", "r", b"", 1), "A1", 0, "cash")
