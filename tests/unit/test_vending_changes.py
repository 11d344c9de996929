"""Goal: an account gets another tariff, policy or tenant, from a known register on, once, by two.

Method: the office on a real SQLite file; what a change means for what is used is absorbed by
metering's own code, as in test_orders_reach_metering. The story of a change that needs a second
person dies at each of its appends.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from uuid import UUID

import pytest

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.vending.application.book import Outcome
from services.vending.domain.account import Account
from services.vending.domain.approval import approval_id_of
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from services.vending.domain.corrections import RefundCredit
from services.vending.domain.decisions import Request
from services.vending.domain.events.accounts import AccountTenantChanged, AccountTermsChanged
from services.vending.domain.facts import fact_of
from services.vending.domain.origin import Origin
from tests.unit import vending_world
from tests.unit.metering_log import charges, frame, reading
from tests.unit.test_orders_reach_metering import MINUTE_MS, Shards
from tests.unit.test_vending_approvals import approve, of_type, publish
from tests.unit.test_vending_corrections import reverse
from tests.unit.test_vending_office import refused
from tests.unit.test_vending_orders import Desk
from tests.unit.test_vending_receipts import number, sold
from tests.unit.test_vending_relay import relaying
from tests.unit.test_vending_usage import Metering, told
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import World

NANO = 10**7
ALICE = Origin("web", "u-alice")
ALONE = dict.fromkeys(("account_terms", "emergency", "transfer", "debt", "reversal", "authority"))


async def change(
    world: World,
    tariff_id: str | None = None,
    policy_id: str | None = None,
    request: Request | None = None,
) -> Outcome[Account]:
    asked = request or world.ask(tariff_id, policy_id)
    return await world.office.change(ChangeTerms(asked, "A1", tariff_id, policy_id, "longer hours"))


async def let_to(
    world: World, subject_id: str | None, *, with_owed: bool = False, request: Request | None = None
) -> Outcome[Account]:
    asked = request or world.ask(subject_id, with_owed)
    return await world.office.change(ChangeTenant(asked, "A1", subject_id, with_owed, "let anew"))


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall of one person with two tariffs and two policies."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        await opened.tariff("T2", price_micro=500_000)
        await opened.policy("P2", emergency_minor=300)
        await publish(opened, **ALONE)
        yield opened


# --- tariff and policy ---------------------------------------------------------------------------


async def test_an_account_gets_another_tariff_and_policy_and_metering_is_told(mall: World) -> None:
    outcome = await change(mall, "T2", "P2")
    event = outcome.event
    assert isinstance(event, AccountTermsChanged)
    assert (event.tariff_id, event.previous_tariff_id) == ("T2", "T1")
    assert (event.policy_id, event.previous_policy_id) == ("P2", "P1")
    told = fact_of(outcome.state, book_epoch=1, shards=8).record
    assert (told["tariff_id"], told["policy_id"]) == ("T2", "P2")
    assert told["revision"] == outcome.revision
    assert (await mall.grant()).state.owed.emergency_minor == 300, "by the policy of now"


async def test_what_is_not_named_stays(mall: World) -> None:
    assert (await change(mall, "T2")).state.policy_id == "P1"
    assert (await change(mall, None, "P2")).state.tariff_id == "T2"


async def test_a_change_is_made_once_and_another_one_of_its_id_is_refused(mall: World) -> None:
    request = mall.ask("T2")
    first = await change(mall, "T2", request=request)
    await change(mall, "T1")
    assert await change(mall, "T2", request=request) == first
    other = mall.ask("other", request_id=UUID(request.request_id))
    assert await refused(change(mall, None, "P2", other)) is Reason.REQUEST_ID_REUSED
    assert (await mall.office.account("A1")).tariff_id == "T1"


async def test_what_does_not_fit_the_account_is_refused(mall: World) -> None:
    await mall.tariff("water", commodity="water")
    await mall.tariff("other", legal_entity="LE2")
    await mall.tariff("dear", currency="USD")
    await mall.policy("usd", currency="USD")
    for tariff_id, policy_id, reason in (
        ("T9", None, Reason.TARIFF_NOT_FOUND),
        (None, "P9", Reason.POLICY_NOT_FOUND),
        ("T1", "P1", Reason.NOTHING_CHANGES),
        ("water", None, Reason.COMMODITY_MISMATCH),
        ("other", None, Reason.LEGAL_ENTITY_MISMATCH),
        ("dear", None, Reason.CURRENCY_MISMATCH),
        (None, "usd", Reason.CURRENCY_MISMATCH),
        (None, None, Reason.INVALID_ARGUMENT),
        ("no spaces", None, Reason.INVALID_ARGUMENT),
    ):
        with pytest.raises(InvalidInput) as wrong:
            await change(mall, tariff_id, policy_id)
        assert wrong.value.reason is reason
    gone = ChangeTerms(mall.ask(), "A9", "T2", None, "longer hours")
    assert await refused(mall.office.change(gone)) is Reason.ACCOUNT_NOT_FOUND
    assert await of_type(mall, "account-terms-changed") == []


async def test_an_account_that_is_closing_keeps_its_terms(mall: World) -> None:
    with pytest.raises(Exception, match="not yet said"):
        await mall.close()
    assert await refused(change(mall, "T2")) is Reason.ACCOUNT_NOT_OPEN
    assert await refused(let_to(mall, "u-new")) is Reason.ACCOUNT_NOT_OPEN


async def test_what_was_used_since_the_last_register_has_the_new_price(tmp_path: Path) -> None:
    """The fact's place in the log decides; no interval is split at it, so none is guessed."""
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await desk.tariff("T2", price_micro=500_000)
            await desk.sell(1_000_000)
            await desk.assign(register_milli=0)
            await relay.caught_up()
            log = shards.logs[(await desk.office.account("A1")).shard]

            async def price(register_milli: int) -> list[tuple[int, int]]:
                """Read the meter a minute later; return energy and price of what was charged."""
                meter = await desk.office.meter("M1")
                at_ms, serial = log.later(MINUTE_MS).now_ms, meter.serial.encode()
                told = reading(register_milli, at_ms=at_ms, epoch=meter.epoch, serial=serial)
                done = log.append("reading-frame", frame([told], log.state.shard))
                return [
                    (int(one["energy_milli"]), int(one["amount_nano"] // one["energy_milli"]))
                    for one in charges(done)
                ]

            assert await price(1_000) == [(1_000, 800_000)]
            await change(desk, "T2")
            await relay.caught_up()
            assert await price(1_500) == [(500, 500_000)]
            await change(desk, "T1")
            await relay.caught_up()
            assert await price(1_600) == [(100, 800_000)]


async def test_another_tariff_may_need_a_second_person(mall: World) -> None:
    await publish(mall, transfer=None)
    request = mall.ask("T2", origin=ALICE)
    assert await refused(change(mall, "T2", request=request)) is Reason.APPROVAL_REQUIRED
    assert (await mall.office.account("A1")).tariff_id == "T1"
    await approve(mall, approval_id_of(request))
    assert (await change(mall, "T2", request=request)).state.tariff_id == "T2"


async def test_a_change_that_two_make_survives_a_crash_at_every_step(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.mall()
        await world.tariff("T2", price_micro=500_000)
        await publish(world, authority=None)

    async def story(world: World) -> None:
        request = world.ask("T2", request_id=UUID(int=1), origin=ALICE)
        with suppress(InvalidInput):  # it waits for another person
            await change(world, "T2", request=request)
        await approve(world, approval_id_of(request), 2)

    async def judge(world: World) -> None:
        assert (await world.office.account("A1")).tariff_id == "T2"
        assert len(await of_type(world, "account-terms-changed")) == 1

    assert await at_every_step(tmp_path, setting, story, judge) == 8


# --- tenant --------------------------------------------------------------------------------------


async def test_a_new_tenant_takes_over_what_is_there_and_it_can_be_told_whose_it_was(
    mall: World,
) -> None:
    await let_to(mall, "u-first")
    await mall.sell(1_000)
    outcome = await let_to(mall, "u-second")
    event, state = outcome.event, outcome.state
    assert isinstance(event, AccountTenantChanged)
    assert (event.previous_subject_id, event.subject_id) == ("u-first", "u-second")
    assert (event.credited_nano, event.debt_minor) == (1_000 * NANO, 0)
    assert (state.subject_id, state.credited_nano) == ("u-second", 1_000 * NANO)
    assert fact_of(state, book_epoch=1, shards=8).record["subject_id"] == "u-second"
    whose = [state.subject_at(revision) for revision in range(outcome.revision + 1)]
    assert whose == [None, "u-first", "u-first", "u-second"]
    assert await refused(let_to(mall, "u-second")) is Reason.NOTHING_CHANGES
    assert (await let_to(mall, None)).state.subject_id is None


async def test_what_is_owed_stays_with_nobody_unless_it_goes_along(mall: World) -> None:
    await mall.owe(5_000, 200_000)
    assert await refused(let_to(mall, "u-new")) is Reason.ACCOUNT_HAS_DEBT
    event = (await let_to(mall, "u-new", with_owed=True)).event
    assert isinstance(event, AccountTenantChanged)
    assert event.debt_minor == 5_000
    assert (await mall.office.account("A1")).owed.debt_minor == 5_000


async def test_nobody_moves_in_while_credit_is_held_for_the_one_before(mall: World) -> None:
    await mall.sell(1_000)
    by_two = Origin("web", "u-alice", approved_by="web u-chief")
    held = RefundCredit(mall.ask("r", origin=by_two), "A1", 300, "cash", "moves out")
    with pytest.raises(Retriable):
        await mall.office.refund(held, 0.0)
    assert await refused(let_to(mall, "u-new")) is Reason.REFUND_UNDER_WAY


async def test_arrears_go_along_with_what_is_owed_and_are_as_much_as_they_are(mall: World) -> None:
    await mall.sell(1_000)
    metering = Metering()
    metering.uses(energy=1_500 * NANO)
    await told(mall, metering)
    assert await refused(let_to(mall, "u-new")) is Reason.ACCOUNT_HAS_DEBT
    await publish(mall, transfer=499, authority=None)
    assert await refused(let_to(mall, "u-new", with_owed=True)) is Reason.APPROVAL_REQUIRED
    await publish(mall, transfer=500, authority=None)
    await let_to(mall, "u-new", with_owed=True)


async def test_a_receipt_names_whom_it_was_sold_to_and_is_not_taken_back_from_another(
    mall: World,
) -> None:
    await let_to(mall, "u-first")
    first = await sold(mall, 100)
    await let_to(mall, "u-second")
    second = await sold(mall, 200)
    await number(mall)
    papers = [await mall.office.receipts.paper(each.receipt_id) for each in (first, second)]
    assert [paper.subject_id for paper in papers] == ["u-first", "u-second"]
    assert await refused(reverse(mall, first.receipt_id)) is Reason.TENANT_CHANGED_SINCE
    assert (await reverse(mall, second.receipt_id)).state.credited_nano == 100 * NANO


async def test_credit_changes_hands_as_a_transfer_does_and_nothing_as_nothing(mall: World) -> None:
    await publish(mall, transfer=500)
    assert (await let_to(mall, "u-first")).state.subject_id == "u-first"
    await mall.sell(501)
    request = mall.ask("u-second", origin=ALICE)
    assert await refused(let_to(mall, "u-second", request=request)) is Reason.APPROVAL_REQUIRED
    await approve(mall, approval_id_of(request))
    assert (await mall.office.account("A1")).subject_id == "u-second"
