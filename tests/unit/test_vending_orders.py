"""Goal: a person's order is in the book, in the fact that it makes known, and nowhere by half.

Method: the office on a real SQLite file, as in test_vending_office; what metering is told is read
off the fact of the state, and that of a restart off the same file opened again.
"""

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.common.kernel.ids import house_account_id
from services.common.kernel.reasons import Reason
from services.common.runtime.profiles import profiles
from services.vending.application.book import Outcome
from services.vending.domain.account import Account
from services.vending.domain.decisions import Request
from services.vending.domain.facts import fact_of
from services.vending.domain.meter import Meter
from services.vending.domain.meter_orders import ForceRelay, ResolveReading
from services.vending.domain.orders import KeepPower, PromisePayment, RecordNotice
from tests.unit import vending_world
from tests.unit.test_vending_office import assign_and_crash, closing, refused, settle
from tests.unit.vending_world import T0_MS, World

READING = "0b4d5ef4-6f0c-5d38-9a3c-7b1f8f6f2d10"
NOTICE = "7f0c2c6e-58a1-5b0e-8c53-1a2b3c4d5e6f"
DAY_MS = 86_400_000
RATED_W = 220 * 100
"""What the profile of these meters says."""


@dataclass
class Desk(World):
    """A world whose operators give orders."""

    async def replace(self, request: Request | None = None, **changed: Any) -> Outcome[Meter]:
        content: dict[str, Any] = {
            "meter_id": "M1",
            "closing_register_milli": 7_000,
            "opening_register_milli": 30,
            "serial": None,
            "unit": None,
            "profile": None,
            "ratio": None,
            "max_power_w": None,
            "reason": "display dead",
        }
        return await self.office.replace_meter(request or self.ask(), **(content | changed))

    async def ratio(
        self, ratio: int, register_milli: int | None = None, meter_id: str = "M1"
    ) -> Outcome[Meter]:
        request = self.ask(ratio, register_milli)
        return await self.office.change_ratio(request, meter_id, ratio, register_milli, "new CTs")

    async def resolve(self, resolution: str, reading_id: str = READING) -> Outcome[Meter]:
        order = ResolveReading(self.ask(), "M1", reading_id, resolution, "seen at the meter")
        return await self.office.order(order)

    async def force(self, position: str, meter_id: str = "M1") -> Outcome[Meter]:
        return await self.office.order(ForceRelay(self.ask(), meter_id, position, "works"))

    async def keep(self, until_ms: int | None, request: Request | None = None) -> Outcome[Account]:
        asked = request or self.ask(until_ms)
        return await self.office.order_for(KeepPower(asked, "A1", until_ms, "a lift"))

    async def promise(self, until_ms: int, request: Request | None = None) -> Outcome[Account]:
        asked = request or self.ask(until_ms)
        return await self.office.order_for(PromisePayment(asked, "A1", until_ms, "half is paid"))

    async def notice(self, outcome: str, notice_id: str = NOTICE) -> Outcome[Account]:
        order = RecordNotice(self.ask(), "A1", notice_id, outcome)
        return await self.office.order_for(order)

    async def told_of_account(self) -> dict[str, Any]:
        """Return what the newest fact of the account says."""
        return fact_of(await self.office.account("A1"), book_epoch=1, shards=8).record

    async def told(self, meter_id: str = "M1") -> dict[str, Any]:
        """Return what the newest fact of a meter says."""
        state = await self.office.meter(meter_id)
        return fact_of(state, book_epoch=1, shards=8).record


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


@pytest.fixture
async def desk(path: Path) -> AsyncIterator[Desk]:
    async with vending_world.world(path) as opened:
        desk = Desk(**vars(opened))
        await desk.mall()
        await desk.assign()
        yield desk


# --- another device, another register ------------------------------------------------------------


async def test_a_replaced_meter_counts_on_for_its_account_in_a_new_epoch(desk: Desk) -> None:
    before = (await desk.office.account("A1")).answers.revision
    state = (await desk.replace(serial="new-1", unit=9, ratio=20)).state
    assert (state.serial, state.unit, state.ratio, state.account_id) == ("new-1", 9, 20, "A1")
    told = await desk.told()
    assert (told["previous_epoch"], told["epoch"]) == (2, 3)
    assert (told["closing_register_milli"], told["opening_register_milli"]) == (7_000, 30)
    assert told["previous_account_id"] == told["account_id"] == "A1"
    assert told["previous_account_key"] == told["account_key"]
    assert told["previous_shard"] == told["shard"]
    account = await desk.office.account("A1")
    assert account.has("M1")
    assert account.answers.revision == before, "whose the meter is did not change"
    assert await desk.tables.todos() == []


async def test_a_house_meter_is_replaced_too(desk: Desk) -> None:
    await desk.release()
    state = (await desk.replace(serial="new-1")).state
    assert (state.account_id, state.epoch) == (house_account_id("M1"), 4)


async def test_a_register_that_began_anew_is_a_replacement_by_the_same_device(desk: Desk) -> None:
    most = (await desk.told())["register_max_milli"]
    assert most == 999_999_999, "six digits of kWh and two decimals"
    state = (await desk.replace(closing_register_milli=most + 1, opening_register_milli=0)).state
    assert (state.serial, state.unit, state.ratio) == ("serial-M1", 1, 1)
    assert (state.closing_register_milli, state.opening_register_milli) == (10**9, 0)


async def test_the_serial_and_address_of_before_are_free_and_those_of_now_are_taken(
    desk: Desk,
) -> None:
    await desk.replace(serial="new-1", unit=9)
    assert await refused(desk.meter("M2", serial="new-1", unit=2)) is Reason.SERIAL_TAKEN
    assert await refused(desk.meter("M2", unit=9)) is Reason.ALREADY_EXISTS
    await desk.meter("M2", serial="serial-M1", unit=1)
    assert await refused(desk.replace(serial="serial-M1")) is Reason.SERIAL_TAKEN
    assert await refused(desk.replace(serial="new-2", unit=1)) is Reason.ALREADY_EXISTS
    assert (await desk.office.meter("M1")).serial == "new-1", "a refusal changes nothing"
    await desk.replace(serial="new-2")
    await desk.meter("M3", serial="new-1", unit=3)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"closing_register_milli": -1}, Reason.REGISTER_NEGATIVE),
        ({"opening_register_milli": -1}, Reason.REGISTER_NEGATIVE),
        ({"opening_register_milli": 10**15 + 1}, Reason.INVALID_ARGUMENT),
        ({"serial": "zähler"}, Reason.INVALID_ARGUMENT),
        ({"serial": ""}, Reason.INVALID_ARGUMENT),
        ({"unit": 0}, Reason.INVALID_ARGUMENT),
        ({"unit": 248}, Reason.INVALID_ARGUMENT),
        ({"ratio": 0}, Reason.INVALID_ARGUMENT),
        ({"max_power_w": 0}, Reason.INVALID_ARGUMENT),
        ({"profile": "acrel-mqtt"}, Reason.INVALID_ARGUMENT),
        ({"profile": "acrel-9"}, Reason.PROFILE_UNKNOWN),
        ({"reason": " "}, Reason.INVALID_ARGUMENT),
        ({"meter_id": "M9"}, Reason.METER_NOT_FOUND),
    ],
)
async def test_what_no_replacement_can_be_is_refused(
    desk: Desk, changed: dict[str, Any], reason: Reason
) -> None:
    assert await refused(desk.replace(**changed)) is reason
    assert (await desk.office.meter("M1")).epoch == 2


async def test_a_replacement_waits_until_its_meter_has_arrived(path: Path) -> None:
    """An account that has yet to hear of its meter hears of it first, at the epoch of then."""
    async with vending_world.world(path) as first:
        await first.mall()
        await assign_and_crash(first, first.ask("M1", "A1", 1000))
    async with vending_world.world(path) as second:
        desk = Desk(**vars(second))
        await desk.replace()
        assert [m.epoch for m in (await desk.office.account("A1")).meters] == [2]
        await desk.release()
        assert (await desk.office.account("A1")).meters == ()
        assert (await desk.office.meter("M1")).epoch == 4


async def test_a_meter_that_must_go_home_again_does_so_before_it_is_replaced(path: Path) -> None:
    async with vending_world.world(path) as first:
        await first.mall()
        await assign_and_crash(first, first.ask("M1", "A1", 1000))
        await closing(first)
        await settle(first, charged_nano=0)
    async with vending_world.world(path) as second:
        desk = Desk(**vars(second))
        state = (await desk.replace()).state
        assert (state.account_id, state.epoch) == (house_account_id("M1"), 4)
        assert await desk.tables.todos() == []


async def test_an_order_is_obeyed_once_and_its_answer_survives_a_restart(path: Path) -> None:
    async with vending_world.world(path) as opened:
        desk = Desk(**vars(opened))
        await desk.mall()
        request = desk.ask("replace")
        done = await desk.replace(request, serial="new-1")
        await desk.force("off")
        assert await desk.replace(request, serial="new-1") == done
    async with vending_world.world(path) as opened:
        desk = Desk(**vars(opened))
        assert await desk.replace(request, serial="new-1") == done
        told = await desk.told()
        assert (told["epoch"], told["forced"]) == (2, "off")


# --- ratio ---------------------------------------------------------------------------------------


async def test_a_new_ratio_holds_from_the_register_that_was_charged_last(desk: Desk) -> None:
    assert await refused(desk.ratio(80)) is Reason.NO_READING_YET
    state = await desk.office.meter("M1")
    await desk.charge(state.meter_key, epoch=2, sequence=4, register_milli=5_000)
    state = (await desk.ratio(80)).state
    assert (state.ratio, state.epoch, state.account_id) == (80, 3, "A1")
    assert state.closing_register_milli == state.opening_register_milli == 5_000
    state = (await desk.ratio(100, register_milli=6_000)).state
    assert (state.closing_register_milli, state.epoch) == (6_000, 4)
    assert await refused(desk.ratio(100, register_milli=6_000)) is Reason.NOTHING_CHANGES
    assert await refused(desk.ratio(0, register_milli=6_000)) is Reason.INVALID_ARGUMENT
    assert await refused(desk.ratio(2, register_milli=1, meter_id="M9")) is Reason.METER_NOT_FOUND


async def test_the_bound_of_a_profile_follows_the_ratio_and_that_of_a_person_stays(
    desk: Desk,
) -> None:
    assert (await desk.told())["max_power_w"] == RATED_W
    assert (await desk.ratio(80, register_milli=7_000)).state.max_power_w == 80 * RATED_W
    assert (await desk.replace(max_power_w=5_000)).state.max_power_w == 5_000
    assert (await desk.ratio(100, register_milli=30)).state.max_power_w == 5_000
    assert (await desk.replace(ratio=1, profile="acrel-dtsy1352")).state.max_power_w == 5_000


async def test_three_phases_carry_three_times_as_much(desk: Desk) -> None:
    state = (await desk.replace(profile="acrel-dtsy1352", ratio=2)).state
    assert state.max_power_w == 3 * 2 * RATED_W
    assert state.profile == "acrel-dtsy1352"


async def test_what_a_profile_says_of_power_is_said_of_electricity_only(desk: Desk) -> None:
    registered = await desk.meter("W1", unit=5, commodity="water")
    assert registered.state.max_power_w is None


async def test_transformers_that_nobody_knows_bound_nothing(path: Path) -> None:
    primary = dataclasses.replace(profiles()["acrel-ddsy1352"], register_is_primary=True)
    terms = dataclasses.replace(vending_world.TERMS, profiles={primary.name: primary})
    async with vending_world.world(path, terms) as opened:
        await opened.site()
        await opened.gateway()
        assert (await opened.meter()).state.max_power_w is None


# --- held readings, forced relays ----------------------------------------------------------------


async def test_a_judgement_is_told_with_its_reading_until_the_epoch_ends(desk: Desk) -> None:
    told = await desk.told()
    assert told["resolves_reading_id"] is told["resolution"] is None
    for resolution in ("accept", "reject"):
        await desk.resolve(resolution)
        told = await desk.told()
        assert (told["resolves_reading_id"], told["resolution"]) == (READING, resolution)
        assert told["epoch"] == 2
    await desk.replace()
    told = await desk.told()
    assert told["resolves_reading_id"] is told["resolution"] is None
    assert await refused_resolution(desk, "maybe") is Reason.INVALID_ARGUMENT
    assert await refused_resolution(desk, "accept", READING[:-1]) is Reason.INVALID_ARGUMENT


async def refused_resolution(desk: Desk, resolution: str, reading_id: str = READING) -> Reason:
    return await refused(desk.resolve(resolution, reading_id))


async def test_a_forced_relay_stays_forced_through_epochs_until_it_is_prepaid_again(
    desk: Desk,
) -> None:
    assert await refused(desk.force("prepaid")) is Reason.NOTHING_CHANGES
    await desk.force("off")
    assert await refused(desk.force("off")) is Reason.NOTHING_CHANGES
    await desk.replace()
    await desk.release()
    assert (await desk.told())["forced"] == "off"
    await desk.force("on")
    assert (await desk.told())["forced"] == "on"
    await desk.force("prepaid")
    told = await desk.told()
    assert (told["forced"], told["epoch"]) == (None, 4)
    assert await refused(desk.force("half")) is Reason.INVALID_ARGUMENT
    assert await refused(desk.force("off", "M9")) is Reason.METER_NOT_FOUND


async def test_the_newest_fact_of_a_meter_reaches_also_the_shard_that_it_left(desk: Desk) -> None:
    await desk.force("off")
    state = await desk.office.meter("M1")
    shards = fact_of(state, book_epoch=1, shards=8).shards
    assert set(shards) == {state.house_shard, state.shard}


# --- accounts that must not be cut ---------------------------------------------------------------


async def test_keep_power_lasts_to_its_end_and_no_order_is_for_good(desk: Desk) -> None:
    assert (await desk.told_of_account())["keep_power_until_ms"] is None
    assert await refused(desk.keep(None)) is Reason.NOTHING_CHANGES
    for until_ms in (T0_MS, T0_MS + 400 * DAY_MS + 1, 0, -1):
        assert await refused(desk.keep(until_ms)) is Reason.UNTIL_OUT_OF_RANGE
    for until_ms in (T0_MS + 1, T0_MS + 400 * DAY_MS):
        await desk.keep(until_ms)
        assert (await desk.told_of_account())["keep_power_until_ms"] == until_ms
    await desk.keep(None)
    assert (await desk.told_of_account())["keep_power_until_ms"] is None


async def test_a_promise_lasts_a_month_at_most_and_a_new_one_replaces_it(desk: Desk) -> None:
    for until_ms in (T0_MS, T0_MS + 31 * DAY_MS + 1):
        assert await refused(desk.promise(until_ms)) is Reason.UNTIL_OUT_OF_RANGE
    for until_ms in (T0_MS + 31 * DAY_MS, T0_MS + DAY_MS):
        await desk.promise(until_ms)
        assert (await desk.told_of_account())["promise_until_ms"] == until_ms


async def test_an_order_that_is_repeated_after_its_end_gets_its_answer(desk: Desk) -> None:
    keep, promise = desk.ask("keep"), desk.ask("promise")
    kept = await desk.keep(T0_MS + 1, keep)
    promised = await desk.promise(T0_MS + 1, promise)
    desk.clock.at_ms += DAY_MS
    assert await desk.keep(T0_MS + 1, desk.ask("keep", request_id=UUID(keep.request_id))) == kept
    again = desk.ask("promise", request_id=UUID(promise.request_id))
    assert await desk.promise(T0_MS + 1, again) == promised


async def test_the_outcome_of_a_notice_is_told_with_its_id_the_last_one_stands(desk: Desk) -> None:
    for outcome in ("failed", "delivered"):
        await desk.notice(outcome)
        told = await desk.told_of_account()
        assert (told["notice_id"], told["notice_outcome"]) == (NOTICE, outcome)
    assert await refused(desk.notice("read")) is Reason.INVALID_ARGUMENT
    assert await refused(desk.notice("failed", "no-uuid")) is Reason.INVALID_ARGUMENT


async def test_a_closed_account_takes_no_orders_and_hears_of_its_notices(desk: Desk) -> None:
    await desk.release()
    await closing(desk)
    assert await refused(desk.keep(T0_MS + 1)) is Reason.ACCOUNT_NOT_OPEN
    await settle(desk, charged_nano=0)
    assert await refused(desk.promise(T0_MS + 1)) is Reason.ACCOUNT_NOT_OPEN
    assert (await desk.notice("failed")).state.orders.notice_outcome == "failed"
    elsewhere = RecordNotice(desk.ask(), "A9", NOTICE, "failed")
    assert await refused(desk.office.order_for(elsewhere)) is Reason.ACCOUNT_NOT_FOUND
