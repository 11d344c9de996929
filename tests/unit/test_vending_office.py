"""Goal: the book takes in what is right, refuses the rest clearly, and survives crashes whole.

Method: the office on a real SQLite file; a crash is a step left out, a restart the file opened
again. No Kafka: what metering would say is put where it would arrive.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.reasons import Reason
from services.common.kernel.routing import partition_of
from services.common.kernel.units import INT64_MAX
from services.common.runtime import codec
from services.common.tariffs import plan as plans
from services.vending.domain import (
    account_commands,
    account_history,
    account_opening,
    checks,
    meter_commands,
)
from services.vending.domain.account import METERS_MAX, Account, Status
from services.vending.domain.account_commands import JoinMeter
from services.vending.domain.events import event_from
from services.vending.domain.events.sales import CreditSold, EmergencyGranted
from services.vending.domain.meter import Meter
from services.vending.domain.meter_epochs import AssignMeter
from services.vending.domain.owed import Owed
from services.vending.domain.settling import SettleClosing
from services.vending.domain.site import HoldCuts, RegisterSite, ReleaseCuts
from services.vending.domain.tables import Todo
from services.vending.domain.trial_balance import TrialBalance
from tests.unit import vending_world
from tests.unit.vending_world import LEAD_MS, T0_MS, World

NANO = 10**7
DEADLINE_S = 10.0
NEW_IN_2 = ("recovered_emergency_minor", "recovered_debt_minor", "left_minor")
NEW_IN_3 = ("postings", "fee_minor", "energy_milli", "price_micro")
"""How the fields are called that credit-sold/2 has and credit-sold/1 has not."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


@pytest.fixture
async def world(path: Path) -> AsyncIterator[World]:
    async with vending_world.world(path) as opened:
        yield opened


@pytest.fixture
async def mall(world: World) -> World:
    await world.mall()
    return world


async def refused(work: Awaitable[Any]) -> Reason:
    with pytest.raises(InvalidInput) as wrong:
        await work
    assert wrong.value.message
    return wrong.value.reason


async def join_by_hand(world: World, meter_id: str, account_id: str) -> None:
    request = world.ask(meter_id, account_id)
    join = JoinMeter(request, account_id, meter_id, 2, 0)
    await world.book.submit(Account, account_id, lambda state: account_commands.decide(state, join))


async def assign_and_crash(
    world: World, request: Any, account_id: str = "A1", meter_id: str = "M1"
) -> None:
    """Decide an assignment in the meter's stream, and tell nobody."""
    state = await world.book.state_of(Account, account_id)
    command = AssignMeter(request, meter_id, account_id, 1000, account=state)
    await world.book.submit(Meter, meter_id, lambda state: meter_commands.decide(state, command))


# --- registering ---------------------------------------------------------------------------------


async def test_a_meter_begins_in_its_own_house_at_epoch_1(mall: World) -> None:
    registered = (await mall.office.meter("M1")).answers.revision
    state = await mall.office.meter("M1")
    assert registered == 0
    assert (state.epoch, state.account_id) == (1, house_account_id("M1"))
    assert state.shard == partition_of(house_account_id("M1"), 8)
    assert state.opening_register_milli is None
    opened = await mall.office.account("A1")
    assert opened.shard == partition_of("A1", 8)
    assert opened.account_key == column_key("account", "A1")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"site_id": "no spaces"}, Reason.INVALID_ARGUMENT),
        ({"site_id": ""}, Reason.INVALID_ARGUMENT),
        ({"site_id": "a" * 64}, Reason.INVALID_ARGUMENT),
        ({"display_name": "\x07"}, Reason.INVALID_ARGUMENT),
        ({"zone": "Mars/Base"}, Reason.INVALID_ARGUMENT),
        ({"currency": "XXX"}, Reason.CURRENCY_UNKNOWN),
        ({"cuts_per_minute": 0}, Reason.INVALID_ARGUMENT),
    ],
)
def test_what_no_site_can_be_is_refused(changed: dict[str, Any], reason: Reason) -> None:
    content: dict[str, Any] = {
        "site_id": "S1",
        "display_name": "Mall",
        "zone": "Asia/Shanghai",
        "currency": "CNY",
        "legal_entity": "LE1",
        "cuts_per_minute": 10,
    }
    with pytest.raises(InvalidInput) as wrong:
        RegisterSite(None, **(content | changed))  # type: ignore[arg-type]
    assert wrong.value.reason is reason


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"serial": "serial-M1", "unit": 2}, Reason.SERIAL_TAKEN),
        ({"unit": 1}, Reason.ALREADY_EXISTS),
        ({"unit": 0}, Reason.INVALID_ARGUMENT),
        ({"unit": 248}, Reason.INVALID_ARGUMENT),
        ({"serial": "s" * 21}, Reason.INVALID_ARGUMENT),
        ({"serial": "zähler"}, Reason.INVALID_ARGUMENT),
        ({"gateway_id": "G9"}, Reason.GATEWAY_NOT_FOUND),
        ({"profile": "acrel-9"}, Reason.PROFILE_UNKNOWN),
        ({"profile": "acrel-mqtt"}, Reason.INVALID_ARGUMENT),
        ({"commodity": "steam"}, Reason.INVALID_ARGUMENT),
        ({"ratio": 0}, Reason.INVALID_ARGUMENT),
        ({"max_power_w": 0}, Reason.INVALID_ARGUMENT),
        ({"meter_id": "M1", "unit": 2}, Reason.ALREADY_EXISTS),
    ],
)
async def test_what_no_second_meter_can_be_is_refused(
    mall: World, changed: dict[str, Any], reason: Reason
) -> None:
    assert await refused(mall.meter(**({"meter_id": "M2"} | changed))) is reason
    if "meter_id" not in changed:
        assert await mall.book.state_of(Meter, "M2") is None
    await mall.meter("M3", unit=3)


async def test_two_meters_that_claim_a_serial_at_once_do_not_both_get_it(mall: World) -> None:
    works = [mall.meter(f"N{n}", serial="one", unit=10 + n) for n in range(6)]
    answers = await asyncio.gather(*works, return_exceptions=True)
    reasons = [a.reason for a in answers if isinstance(a, InvalidInput)]
    assert reasons == [Reason.SERIAL_TAKEN] * 5


async def test_ids_that_would_share_a_column_key_do_not_both_exist(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_opening, "column_key", lambda *_: 77)
    await mall.account("A2")
    assert await refused(mall.account("A3")) is Reason.KEY_COLLISION
    assert await mall.book.state_of(Account, "A3") is None


@pytest.mark.parametrize(
    ("protocol", "address"),
    [
        ("modbus-tcp", "10.0.0.1"),
        ("modbus-tcp", "10.0.0.1:0"),
        ("modbus-tcp", "10.0.0.1:70000"),
        ("modbus-tcp", ":502"),
        ("mqtt-acrel", "ADW300"),
        ("mqtt-acrel", "ADW300/+"),
        ("carrier-pigeon", "10.0.0.1:502"),
    ],
)
async def test_an_address_that_nobody_can_reach_is_refused(
    mall: World, protocol: str, address: str
) -> None:
    assert await refused(mall.gateway("G2", protocol, address)) is Reason.INVALID_ARGUMENT


async def test_what_stands_on_something_unknown_is_refused(mall: World) -> None:
    assert await refused(mall.gateway("G2", site_id="S9")) is Reason.SITE_NOT_FOUND
    assert await refused(mall.account("A2", site_id="S9")) is Reason.SITE_NOT_FOUND
    assert await refused(mall.account("A2", tariff_id="T9")) is Reason.TARIFF_NOT_FOUND
    assert await refused(mall.account("A2", policy_id="P9")) is Reason.POLICY_NOT_FOUND
    assert await refused(mall.sell(1, "A9")) is Reason.ACCOUNT_NOT_FOUND
    assert await refused(mall.assign("M9")) is Reason.METER_NOT_FOUND
    assert await refused(mall.assign("M1", "A9")) is Reason.ACCOUNT_NOT_FOUND
    assert await refused(mall.release("M9")) is Reason.METER_NOT_FOUND
    assert await refused(mall.close("A9")) is Reason.ACCOUNT_NOT_FOUND
    assert await refused(mall.office.account("A9")) is Reason.ACCOUNT_NOT_FOUND
    assert await refused(mall.office.meter("M9")) is Reason.METER_NOT_FOUND


async def test_an_account_and_its_terms_agree_on_money_commodity_and_entity(mall: World) -> None:
    await mall.tariff("T-eur", currency="EUR")
    await mall.tariff("T-water", commodity="water")
    await mall.tariff("T-other", legal_entity="LE2")
    await mall.policy("P-eur", currency="EUR")
    open_account = partial(mall.account, "A2")
    assert await refused(open_account(tariff_id="T-eur")) is Reason.CURRENCY_MISMATCH
    assert await refused(open_account(tariff_id="T-water")) is Reason.COMMODITY_MISMATCH
    assert await refused(open_account(tariff_id="T-other")) is Reason.LEGAL_ENTITY_MISMATCH
    assert await refused(open_account(policy_id="P-eur")) is Reason.CURRENCY_MISMATCH
    fee = {"name": "line", "period": "month", "amount_micro": 1}
    document = {"zone": "Europe/Berlin", "rates_micro": {"flat": 0}, "fees": [fee]}
    text = plans.Plan.model_validate(document).text()
    await mall.tariff("T-berlin", plan=text, price_micro=0)
    assert await refused(open_account(tariff_id="T-berlin")) is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("commodity", ["water", "gas"])
async def test_each_commodity_has_tariffs_accounts_and_meters_of_its_own(
    mall: World, commodity: str
) -> None:
    await mall.tariff("T2", commodity=commodity)
    await mall.account("A2", commodity=commodity, tariff_id="T2")
    await mall.meter("M2", commodity=commodity, unit=2)
    assert (await mall.assign("M2", "A2")).state.account_id == "A2"
    assert await refused(mall.assign("M1", "A2")) is Reason.COMMODITY_MISMATCH
    assert await refused(mall.tariff("T2", commodity="electricity")) is Reason.COMMODITY_MISMATCH


# --- tariffs, policies, brakes -------------------------------------------------------------------


async def test_the_first_price_applies_at_once_and_later_ones_with_a_lead(world: World) -> None:
    first = await world.tariff()
    assert (first.state.version, first.state.effective_at_ms) == (1, 0)
    too_early = world.tariff(effective_at_ms=T0_MS + LEAD_MS - 1)
    assert await refused(too_early) is Reason.EFFECTIVE_TOO_EARLY
    second = await world.tariff(price_micro=900_000)
    assert (second.state.version, second.state.effective_at_ms) == (2, T0_MS + LEAD_MS)
    third = await world.tariff(effective_at_ms=T0_MS + 5 * LEAD_MS)
    assert (third.state.version, third.state.effective_at_ms) == (3, T0_MS + 5 * LEAD_MS)
    before_the_third = world.tariff(effective_at_ms=T0_MS + 4 * LEAD_MS)
    assert await refused(before_the_third) is Reason.EFFECTIVE_TOO_EARLY
    assert await refused(world.tariff("T2", effective_at_ms=T0_MS)) is Reason.INVALID_ARGUMENT
    assert await refused(world.tariff("T2", price_micro=-1)) is Reason.INVALID_ARGUMENT
    assert await refused(world.tariff(currency="EUR")) is Reason.CURRENCY_MISMATCH


async def test_a_repeated_price_keeps_its_instant_though_the_clock_went_on(world: World) -> None:
    await world.tariff()
    request = world.ask("next price")
    first = await world.tariff(price_micro=900_000, request=request)
    world.clock.at_ms += 10 * LEAD_MS
    assert await world.tariff(price_micro=900_000, request=request) == first


def plan(zone: str = "Asia/Shanghai", **ladder: Any) -> str:
    """Return the document of a plan: two rates, and a ladder where `ladder` says so."""
    slots = [{"begins": "00:00", "rate": "valley"}, {"begins": "08:00", "rate": "peak"}]
    days = [{"kinds": ["weekday", "weekend", "holiday"], "slots": slots}]
    document: dict[str, Any] = {
        "zone": zone,
        "rates_micro": {"peak": 900_000, "valley": 300_000},
        "seasons": [{"name": "all", "begins": "01-01", "days": days}],
    }
    if ladder:
        document["ladder"] = {"steps": [{"above_milli": 1, "add_micro": 1}], **ladder}
    return json.dumps(document)


async def test_a_plan_is_published_in_its_one_form_and_its_kind_is_told(world: World) -> None:
    loose = json.dumps(json.loads(plan(period="month")), indent=4)
    published = await world.tariff(plan=loose, price_micro=0)
    assert (published.state.kind, published.state.price_micro) == ("plan", 0)
    assert published.state.plan == plans.read(loose).text()
    flat = await world.tariff(price_micro=900_000)
    assert (flat.state.kind, flat.state.plan) == ("flat", None)


async def test_a_tariff_has_a_price_or_a_plan(world: World) -> None:
    assert await refused(world.tariff(plan=plan())) is Reason.INVALID_ARGUMENT
    assert await refused(world.tariff(plan="{}", price_micro=0)) is Reason.INVALID_ARGUMENT
    steps = [{"above_milli": 1, "multiply_ppm": 2}]
    dependent = plan(period="month", steps=steps)
    assert await refused(world.tariff(plan=dependent, price_micro=0)) is Reason.PATH_DEPENDENT


@pytest.mark.parametrize(
    "changed",
    [
        {"period": "year"},
        {"period": "month", "scope": "meter"},
        {
            "period": "month",
            "basis": "rate",
            "steps": [],
            "rate_steps": {"peak": [{"above_milli": 1, "add_micro": 1}]},
        },
        {"period": "month", "zone": "Europe/Berlin"},
    ],
)
async def test_a_version_that_could_not_go_on_is_refused(
    world: World, changed: dict[str, Any]
) -> None:
    await world.tariff(plan=plan(period="month"), price_micro=0)
    after = world.tariff(plan=plan(**changed), price_micro=0)
    assert await refused(after) is Reason.INVALID_ARGUMENT
    steeper = plan(period="month", steps=[{"above_milli": 1, "add_micro": 7}])
    assert (await world.tariff(plan=steeper, price_micro=0)).state.version == 2
    assert (await world.tariff(plan=plan(), price_micro=0)).state.version == 3


@pytest.mark.parametrize(
    "changed", [{"period": "year"}, {"period": "month", "scope": "meter"}, {"zone": "UTC"}]
)
async def test_a_plan_must_go_on_also_behind_a_version_without_one(
    world: World, changed: dict[str, Any]
) -> None:
    await world.tariff(plan=plan(period="month"), price_micro=0)
    await world.tariff()
    after = world.tariff(plan=plan(**changed), price_micro=0)
    assert await refused(after) is Reason.INVALID_ARGUMENT
    assert (await world.tariff(plan=plan(period="month"), price_micro=0)).state.version == 3


@pytest.mark.parametrize(
    "newest", [{}, {"plan": '{"zone":"Europe/Berlin","rates_micro":{"flat":1}}'}]
)
async def test_an_account_has_the_zone_of_its_tariff_also_while_that_needs_no_clock(
    mall: World, newest: dict[str, Any]
) -> None:
    await mall.tariff("there", plan=plan("Europe/Berlin"), price_micro=0)
    await mall.tariff("there", price_micro=0, **newest)
    assert await refused(mall.account("A9", tariff_id="there")) is Reason.INVALID_ARGUMENT
    await mall.tariff("flat")
    assert (await mall.account("A9", tariff_id="flat")).state.tariff_id == "flat"


async def test_an_account_has_the_days_of_its_tariff(mall: World) -> None:
    await mall.tariff("there", plan=plan("Europe/Berlin"), price_micro=0)
    opening = mall.account("A9", tariff_id="there")
    assert await refused(opening) is Reason.INVALID_ARGUMENT
    await mall.tariff("here", plan=plan(), price_micro=0)
    assert (await mall.account("A9", tariff_id="here")).state.tariff_id == "here"


@pytest.mark.parametrize(
    "changed",
    [
        {"alarm_2_minor": 1001},
        {"overdraft_minor": -1},
        {"alarm_2_minor": -1},
        {"restore_minor": 0},
        {"overdraft_minor": 100, "restore_minor": -100},
    ],
)
async def test_thresholds_out_of_order_are_refused(world: World, changed: dict[str, Any]) -> None:
    assert await refused(world.policy(**changed)) is Reason.THRESHOLDS_OUT_OF_ORDER


async def test_a_policy_has_defaults_and_bounds(world: World) -> None:
    policy = (await world.policy(overdraft_minor=100, restore_minor=-99)).state
    assert (policy.lease_ms, policy.max_evidence_age_ms) == (300_000, 900_000)
    assert (policy.alarm_1_nano, policy.overdraft_nano) == (1000 * NANO, 100 * NANO)
    assert await refused(world.policy(lease_ms=300_001)) is Reason.INVALID_ARGUMENT
    assert await refused(world.policy(alarm_1_minor=INT64_MAX)) is Reason.AMOUNT_TOO_LARGE
    for span in ("lease_ms", "max_evidence_age_ms"):
        assert await refused(world.policy("P1", **{span: 9_999})) is Reason.INVALID_ARGUMENT
    assert (await world.policy(lease_ms=10_000, max_evidence_age_ms=10_000)).state.version == 2


async def test_a_policy_under_which_nobody_could_ever_be_cut_is_refused(world: World) -> None:
    whole = '{"days": ["weekday", "weekend"], "begins": "00:00", "ends": "00:00"}'
    for rules in (f'{{"zone": "UTC", "no_cut": [{whole}]}}', '{"qualities": "ES"}'):
        with pytest.raises(InvalidInput, match="nobody is ever cut") as never:
            await world.policy(rules=rules)
        assert (never.value.reason, never.value.field) == (Reason.INVALID_ARGUMENT, "rules")
    assert (await world.policy(rules='{"qualities": "A"}')).state.version == 1


async def test_cuts_are_held_and_released_once(mall: World) -> None:
    hold = partial(HoldCuts, site_id="S1", reason="wrong price")
    release = partial(ReleaseCuts, site_id="S1", reason="mended")
    not_held = mall.office.release_cuts(release(mall.ask()))
    assert await refused(not_held) is Reason.CUTS_NOT_HELD
    assert (await mall.office.hold_cuts(hold(mall.ask()))).state.cuts_held
    assert await refused(mall.office.hold_cuts(hold(mall.ask()))) is Reason.CUTS_ALREADY_HELD
    assert not (await mall.office.release_cuts(release(mall.ask()))).state.cuts_held


# --- money ---------------------------------------------------------------------------------------


async def test_a_sale_is_answered_once_and_the_answer_survives_restarts(path: Path) -> None:
    async with vending_world.world(path) as first:
        await first.mall()
        request = first.ask("sale")
        sold = await first.sell(500, request=request)
        await first.sell(700)
        assert await first.sell(500, request=request) == sold
    async with vending_world.world(path) as second:
        assert await second.sell(500, request=request) == sold
        assert (await second.office.account("A1")).credited_nano == 1200 * NANO


async def test_a_request_id_belongs_to_its_caller_and_its_content(mall: World) -> None:
    await mall.account("A2")
    request_id = uuid4()
    ours = mall.ask("500", request_id=request_id)
    await mall.sell(500, request=ours)
    await mall.sell(500, request=mall.ask("500", request_id=request_id, caller="web"))
    other_amount = mall.ask("600", request_id=request_id)
    assert await refused(mall.sell(600, request=other_amount)) is Reason.REQUEST_ID_REUSED
    other_account = mall.ask("A2", request_id=request_id)
    assert await refused(mall.sell(500, "A2", other_account)) is Reason.REQUEST_ID_REUSED
    assert await refused(mall.tariff("T2", request=other_account)) is Reason.REQUEST_ID_REUSED
    assert (await mall.office.account("A1")).credited_nano == 1000 * NANO
    assert (await mall.office.account("A2")).credited_nano == 0


@pytest.mark.parametrize("amount_minor", [0, -1, -(2**63)])
async def test_nothing_and_less_cannot_be_sold(mall: World, amount_minor: int) -> None:
    assert await refused(mall.sell(amount_minor)) is Reason.AMOUNT_NOT_POSITIVE
    if amount_minor:
        opening = mall.account("A2", first_sale_minor=amount_minor, method="cash")
        assert await refused(opening) is Reason.AMOUNT_NOT_POSITIVE


async def test_what_the_ledger_cannot_hold_is_refused_for_good(mall: World) -> None:
    most_minor = INT64_MAX // NANO
    assert await refused(mall.sell(most_minor + 1)) is Reason.AMOUNT_TOO_LARGE
    await mall.sell(most_minor - 5)
    request = mall.ask("six more")
    assert await refused(mall.sell(6, request=request)) is Reason.AMOUNT_TOO_LARGE
    before = (await mall.office.account("A1")).answers.revision
    assert await refused(mall.sell(6, request=request)) is Reason.AMOUNT_TOO_LARGE
    await mall.sell(5)
    state = await mall.office.account("A1")
    assert (state.credited_nano, state.answers.revision) == (most_minor * NANO, before + 1)
    too_much = mall.account("A2", first_sale_minor=most_minor + 1, method="cash")
    assert await refused(too_much) is Reason.AMOUNT_TOO_LARGE
    assert await mall.book.state_of(Account, "A2") is None


async def test_an_account_opens_with_its_first_sale_in_one_append(mall: World) -> None:
    request = mall.ask("open")
    opened = await mall.account("A2", first_sale_minor=300, method="pos", request=request)
    assert (opened.revision, opened.state.credited_nano) == (1, 300 * NANO)
    await mall.sell(100, "A2")
    again = await mall.account("A2", first_sale_minor=300, method="pos", request=request)
    assert again == opened


# --- emergency credit, debt ----------------------------------------------------------------------


async def test_emergency_credit_is_granted_once_until_sales_have_recovered_it(mall: World) -> None:
    assert await refused(mall.grant()) is Reason.NO_EMERGENCY_CREDIT
    await mall.policy(emergency_minor=500)
    granted = await mall.grant()
    assert (granted.state.credited_nano, granted.state.owed) == (500 * NANO, Owed(500))
    assert isinstance(granted.event, EmergencyGranted)
    assert (granted.event.policy_id, granted.event.policy_version) == ("P1", 2)
    assert await refused(mall.grant()) is Reason.EMERGENCY_ALREADY_GRANTED
    part = await mall.sell(300)
    assert (part.state.credited_nano, part.state.owed) == (500 * NANO, Owed(200))
    assert await refused(mall.grant()) is Reason.EMERGENCY_ALREADY_GRANTED
    rest = await mall.sell(300)
    assert (rest.state.credited_nano, rest.state.owed) == (600 * NANO, Owed())
    assert (await mall.grant()).state.credited_nano == 1100 * NANO


async def test_a_refused_grant_stays_refused_when_its_request_comes_again(mall: World) -> None:
    await mall.policy(emergency_minor=500)
    await mall.grant()
    request = mall.ask("again")
    assert await refused(mall.grant(request=request)) is Reason.EMERGENCY_ALREADY_GRANTED
    await mall.sell(500)
    assert await refused(mall.grant(request=request)) is Reason.EMERGENCY_ALREADY_GRANTED
    assert await refused(mall.grant("nobody")) is Reason.ACCOUNT_NOT_FOUND


async def test_a_debt_takes_its_share_of_each_sale_half_up_and_no_more_than_it_is(
    mall: World,
) -> None:
    await mall.owe(100, 200_000)
    sold = (await mall.sell(203)).event  # 20 % are 40.6
    assert isinstance(sold, CreditSold)
    assert (sold.recovered_debt_minor, sold.debt_left_minor) == (41, 59)
    assert sold.credited_nano == 162 * NANO
    sold = (await mall.sell(1000)).event
    assert isinstance(sold, CreditSold)
    assert (sold.recovered_debt_minor, sold.debt_left_minor) == (59, 0)
    assert (await mall.sell(10)).state.credited_nano == (162 + 941 + 10) * NANO


async def test_emergency_credit_comes_before_a_debt_and_a_debt_is_replaced(mall: World) -> None:
    await mall.policy(emergency_minor=500)
    await mall.grant()
    await mall.owe(100, 1)
    await mall.owe(1000, 500_000)
    sold = (await mall.sell(600)).event  # the share is of the whole sale, of what is left at most
    assert isinstance(sold, CreditSold)
    assert (sold.recovered_emergency_minor, sold.recovered_debt_minor) == (500, 100)
    assert sold.credited_nano == 500 * NANO
    assert (await mall.owe(0, 0)).state.owed == Owed()
    assert (await mall.sell(600)).state.credited_nano == 1100 * NANO


@pytest.mark.parametrize(("debt_minor", "share_ppm"), [(-1, 1), (1, 0), (1, 1_000_001), (0, -1)])
async def test_what_no_debt_can_be_is_refused(mall: World, debt_minor: int, share_ppm: int) -> None:
    assert await refused(mall.owe(debt_minor, share_ppm)) is Reason.INVALID_ARGUMENT


async def test_an_account_that_owes_is_not_closed(mall: World) -> None:
    await mall.policy(emergency_minor=500)
    await mall.grant()
    assert await refused(mall.close()) is Reason.ACCOUNT_HAS_DEBT
    await mall.sell(500)
    await mall.owe(1, 1)
    assert await refused(mall.close()) is Reason.ACCOUNT_HAS_DEBT
    await mall.owe(0, 0)
    with pytest.raises(Retriable, match="metering has not yet said"):
        await mall.close()
    assert await refused(mall.grant()) is Reason.ACCOUNT_NOT_OPEN
    assert await refused(mall.owe(1, 1)) is Reason.ACCOUNT_NOT_OPEN


async def test_a_sale_of_before_there_were_debts_is_read_as_one_without(mall: World) -> None:
    known = await mall.office.account("A1")
    sold = (await mall.sell(5)).event
    assert isinstance(sold, CreditSold)
    new = [name for name in sold.record() if name.endswith(NEW_IN_2) or name in NEW_IN_3]
    value = codec.encode("credit-sold", sold.record() | dict.fromkeys(new))
    old = event_from("credit-sold", codec.decode("credit-sold/1", value[: -len(new)]))
    assert isinstance(old, CreditSold)  # a null is one byte
    assert TrialBalance().postings_of(old) == sold.postings
    after = account_history.evolve(known, old)
    assert (after.credited_nano, after.owed) == (5 * NANO, Owed())


# --- assignment ----------------------------------------------------------------------------------


async def test_a_meter_moves_at_an_exact_register_and_a_new_epoch(mall: World) -> None:
    assert await refused(mall.assign(register_milli=None)) is Reason.NO_READING_YET
    assert await refused(mall.assign(register_milli=-1)) is Reason.REGISTER_NEGATIVE
    assert await refused(mall.assign(register_milli=10**15 + 1)) is Reason.INVALID_ARGUMENT
    assert await refused(mall.release()) is Reason.METER_NOT_ASSIGNED
    key = column_key("meter", "M1")
    await mall.charge(key, epoch=1, sequence=8, register_milli=5_000)
    await mall.charge(key, epoch=1, sequence=7, register_milli=4_000)  # delivered again
    moved = await mall.assign(register_milli=None)
    assert (moved.state.epoch, moved.state.opening_register_milli) == (2, 5_000)
    assert moved.state.previous is not None
    assert moved.state.previous.epoch == 1
    assert [m.meter_id for m in (await mall.office.account("A1")).meters] == ["M1"]
    assert await refused(mall.release(register_milli=None)) is Reason.NO_READING_YET
    released = await mall.release(register_milli=6_000)
    assert released.state.is_house
    assert (released.state.epoch, released.state.opening_register_milli) == (3, 6_000)
    assert (await mall.office.account("A1")).meters == ()
    assert await mall.tables.todos() == []


async def test_of_accounts_that_want_a_meter_at_once_exactly_one_gets_it(mall: World) -> None:
    names = [f"B{n}" for n in range(8)]
    for name in names:
        await mall.account(name)
    answers = await asyncio.gather(
        *(mall.assign("M1", name) for name in names), return_exceptions=True
    )
    reasons = [a.reason for a in answers if isinstance(a, InvalidInput)]
    assert reasons == [Reason.METER_ALREADY_ASSIGNED] * 7
    owners = [name for name in names if (await mall.office.account(name)).meters]
    assert owners == [(await mall.office.meter("M1")).account_id]


async def test_two_decisions_on_a_meter_at_once_are_one_also_without_the_office(
    mall: World,
) -> None:
    await mall.account("A2")
    answers = await asyncio.gather(
        assign_and_crash(mall, mall.ask(1), "A1"),
        assign_and_crash(mall, mall.ask(2), "A2"),
        return_exceptions=True,
    )
    reasons = [a.reason for a in answers if isinstance(a, InvalidInput)]
    assert reasons == [Reason.METER_ALREADY_ASSIGNED]
    assert len(await mall.tables.todos()) == 1


async def test_a_meter_goes_only_to_an_account_like_itself(mall: World) -> None:
    await mall.site("S2")
    await mall.account("far", site_id="S2")
    await mall.tariff("T-water", commodity="water")
    await mall.account("wet", commodity="water", tariff_id="T-water")
    assert await refused(mall.assign("M1", "far")) is Reason.SITE_MISMATCH
    assert await refused(mall.assign("M1", "wet")) is Reason.COMMODITY_MISMATCH


async def test_an_account_has_room_for_256_meters(mall: World) -> None:
    for number in range(METERS_MAX):
        await join_by_hand(mall, f"X{number}", "A1")
    assert await refused(mall.assign()) is Reason.TOO_MANY_METERS
    assert (await mall.office.meter("M1")).is_house


async def test_an_assignment_cut_off_by_a_crash_is_completed_after_it(path: Path) -> None:
    async with vending_world.world(path) as first:
        await first.mall()
        request = first.ask("M1", "A1", 1000)
        await assign_and_crash(first, request)
        decided_at = await first.store.head()
        assert await first.tables.todos() == [Todo("join", "A1", "M1", 2, 1000, decided_at)]
        assert (await first.office.account("A1")).meters == ()
    async with vending_world.world(path) as second:
        assert await second.office.complete() == 1
        assert [m.epoch for m in (await second.office.account("A1")).meters] == [2]
        assert await second.tables.todos() == []
        assert await second.office.complete() == 0
        again = await second.assign(request=request)
        assert again.state.epoch == 2
        assert (await second.office.account("A1")).answers.revision == 1


async def test_a_meter_of_an_account_that_closed_meanwhile_goes_home_again(path: Path) -> None:
    async with vending_world.world(path) as first:
        await first.mall()
        request = first.ask("M1", "A1", 1000)
        await assign_and_crash(first, request)
        await closing(first)
        await settle(first, charged_nano=0)
        assert (await first.office.account("A1")).status is Status.CLOSED
    async with vending_world.world(path) as second:
        assert await refused(second.assign(request=request)) is Reason.ACCOUNT_NOT_OPEN
        home = await second.office.meter("M1")
        assert home.is_house
        assert (home.epoch, home.opening_register_milli) == (3, 1000)
        assert await second.tables.todos() == []
        assert await refused(second.assign(request=request)) is Reason.ACCOUNT_NOT_OPEN
        await second.account("A2")
        await second.assign("M1", "A2", 3000)


@pytest.mark.parametrize("when", ["at once", "when the meter has moved"])
async def test_a_caller_that_stops_waiting_leaves_nothing_half_done(mall: World, when: str) -> None:
    asked = asyncio.create_task(mall.assign())
    await asyncio.sleep(0)
    if when == "when the meter has moved":
        async with asyncio.timeout(DEADLINE_S):
            while (await mall.office.meter("M1")).is_house:
                await asyncio.sleep(0)
        assert not asked.done()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    await mall.office.drained()
    assert await mall.tables.todos() == []
    has = (await mall.office.account("A1")).has("M1")
    assert has == (not (await mall.office.meter("M1")).is_house)


# --- closing -------------------------------------------------------------------------------------


async def closing(world: World) -> None:
    with pytest.raises(Retriable, match="repeat with the same request_id"):
        await world.close()


async def settle(world: World, charged_nano: int, open_meters: int = 0) -> None:
    hold = (await world.office.account("A1")).closing
    assert hold is not None
    command = SettleClosing("A1", hold.hold_id, charged_nano, 9, open_meters, T0_MS)
    await world.office.settle(command)


async def test_an_account_with_meters_is_not_closed(mall: World) -> None:
    await mall.assign()
    assert await refused(mall.close()) is Reason.ACCOUNT_HAS_METERS
    assert (await mall.office.account("A1")).status is Status.OPEN


async def test_a_closing_waits_for_the_echo_and_gets_its_answer(mall: World) -> None:
    await mall.sell(100)
    asked = asyncio.create_task(mall.close(wait_s=10.0))
    while (await mall.office.account("A1")).closing is None:
        await asyncio.sleep(0)
    assert await refused(mall.sell(5)) is Reason.ACCOUNT_NOT_OPEN
    assert await refused(mall.close()) is Reason.ACCOUNT_NOT_OPEN
    assert await refused(mall.assign()) is Reason.ACCOUNT_NOT_OPEN
    await settle(mall, charged_nano=100 * NANO)
    closed = await asked
    assert closed.state.status is Status.CLOSED
    assert await refused(mall.sell(5)) is Reason.ACCOUNT_NOT_OPEN


@pytest.mark.parametrize(
    ("charged_nano", "open_meters", "reason"),
    [
        (99 * NANO, 0, Reason.ACCOUNT_HAS_BALANCE),
        (101 * NANO, 0, Reason.ACCOUNT_HAS_BALANCE),
        (100 * NANO, 1, Reason.ACCOUNT_HAS_METERS),
    ],
)
async def test_an_echo_that_shows_something_left_opens_the_account_again(
    mall: World, charged_nano: int, open_meters: int, reason: Reason
) -> None:
    await mall.sell(100)
    asked = asyncio.create_task(mall.close(wait_s=10.0))
    while (await mall.office.account("A1")).closing is None:
        await asyncio.sleep(0)
    old = (await mall.office.account("A1")).closing
    await settle(mall, charged_nano, open_meters)
    assert await refused(asked) is reason
    await mall.sell(5)
    assert old is not None
    late = SettleClosing("A1", old.hold_id, 105 * NANO, 9, 0, T0_MS)
    await mall.office.settle(late)
    assert (await mall.office.account("A1")).status is Status.OPEN


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "7", "not-a-uuid", "00000000-0000-0000-0000-000000000000"])
def test_a_request_id_must_be_a_uuid(text: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        checks.request_id_of(text)
    assert wrong.value.reason is Reason.REQUEST_ID_INVALID


@pytest.mark.parametrize(
    "text",
    [
        "0a1b2c3d-0000-4000-8000-00000000000f",
        "0A1B2C3D-0000-4000-8000-00000000000F",
        "{0a1b2c3d00004000800000000000000f}",
        "urn:uuid:0a1b2c3d-0000-4000-8000-00000000000f",
    ],
)
def test_a_request_id_is_the_same_however_it_is_written(text: str) -> None:
    assert checks.request_id_of(text) == "0a1b2c3d-0000-4000-8000-00000000000f"


async def test_a_book_that_must_not_be_used_refuses_commands_and_still_answers_queries(
    mall: World,
) -> None:
    mall.book.refusing = "the store is behind; run raise-book-epoch"
    with pytest.raises(Retriable, match="raise-book-epoch"):
        await mall.sell(5)
    assert (await mall.office.account("A1")).credited_nano == 0
