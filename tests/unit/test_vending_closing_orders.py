"""Goal: a closing and the persons who work meanwhile do not undo each other's orders.

Method: the office on a real SQLite file, as in test_vending_closings; while a closing is under way
persons and batches order relays off and on, keep power, approve late, and give meters away.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import Retriable
from services.common.kernel.reasons import Reason
from services.vending.application.drafting import Draft
from services.vending.domain import closings
from services.vending.domain.account import Status
from services.vending.domain.approval import Proposal
from services.vending.domain.batch import Kind, Result, Terms
from services.vending.domain.batching import SubmitBatch
from services.vending.domain.changes import ChangeTenant
from services.vending.domain.closing import ASK_AGAIN_MS, HOUR_MS
from services.vending.domain.closings import AskMetering, Command, EndCancelled
from services.vending.domain.decisions import Accepted
from services.vending.domain.events.event import Event
from services.vending.domain.meter import Meter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.orders import KeepPower
from tests.unit import vending_world
from tests.unit.test_vending_approvals import approve, of_type, publish
from tests.unit.test_vending_closings import (
    ALONE,
    LATER_MS,
    NANO,
    alone_but,
    cancelling,
    close,
    close_part,
    echo,
    read,
    under_way,
    with_a_meter,
    with_two,
)
from tests.unit.test_vending_office import refused
from tests.unit.vending_world import T0_MS, World


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall of one person whose account has a meter and was sold 10.00."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await with_a_meter(opened)
        yield opened


async def force(world: World, name: str, position: str) -> None:
    await world.office.order(ForceRelay(world.ask(name), "M1", position, name))


async def cancelled(world: World) -> Meter:
    """Cancel what is under way; return what its meter is then."""
    await world.office.closings.cancel(cancelling(world, await under_way(world)))
    assert (await world.office.account("A1")).closing is None
    return await world.office.meter("M1")


async def test_an_off_of_a_person_after_the_cut_is_not_undone_by_a_cancel(mall: World) -> None:
    await close(mall)
    await force(mall, "light to pack", "prepaid")
    await force(mall, "fire on the riser", "off")
    assert (await cancelled(mall)).forced == "off"


async def test_an_off_of_a_person_over_the_cut_is_an_order_of_its_own(mall: World) -> None:
    await close(mall)
    mall.clock.at_ms += HOUR_MS
    await force(mall, "fire on the riser", "off")
    look = await mall.office.closings.look((await under_way(mall)).closing_id)
    assert look.meters[0].since_ms == LATER_MS, "since the first order a reading is the last one"
    again = force(mall, "works besides", "off")
    assert await refused(again) is Reason.NOTHING_CHANGES
    assert (await cancelled(mall)).forced == "off"


async def test_an_off_of_a_batch_over_the_cut_outlives_the_closing(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, ALONE | {"batch": None})
        await close(world)
        assert [each.outcome for each in await batch(world, Kind.FORCE_OFF)] == ["done"]
        assert (await cancelled(world)).forced == "off"


async def test_no_batch_powers_what_a_closing_has_cut_until_somebody_moves_in(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, ALONE | {"batch": None})
        await world.account("A2")
        await close(world)
        await read(world, 1_500)
        await echo(world, 400 * NANO)
        assert (await world.office.account("A1")).status is Status.CLOSED
        (result,) = await batch(world, Kind.RESTORE_PREPAID)
        assert (result.outcome, result.reason) == ("refused", Reason.CUT_BY_CLOSING)
        await world.assign("M1", "A2", 1_500)
        assert [each.outcome for each in await batch(world, Kind.RESTORE_PREPAID, "2")] == ["done"]


async def test_a_batch_powers_what_a_cancelled_closing_has_given_back(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, ALONE | {"batch": None, "keep-power": None})
        await close(world)
        meter = await cancelled(world)
        assert (meter.forced, meter.closing_id) == (None, "")
        assert await refused(force(world, "works", "prepaid")) is Reason.NOTHING_CHANGES
        assert [each.outcome for each in await batch(world, Kind.FORCE_ON)] == ["done"]


async def batch(world: World, kind: Kind, name: str = "") -> tuple[Result, ...]:
    terms, batches = Terms(kind, f"works {name}"), world.office.batches
    listed = (("M1", None),)
    drafted = await batches.create(Draft(world.ask(kind, name), terms, "", listed, None))
    await batches.submit(SubmitBatch(world.ask("submit", kind, name), drafted.batch_id))
    while await batches.turn():
        pass
    _, results = await batches.results(drafted.batch_id)
    return tuple(results.values())


@pytest.mark.parametrize("before", [None, "off"], ids=["cut by the closing", "off before it"])
async def test_a_cut_is_ordered_once_whatever_the_relay_was_before(
    mall: World, before: str | None
) -> None:
    if before:
        await force(mall, "works", before)
    await close(mall)
    mall.clock.at_ms += 1
    await force(mall, "light to pack", "prepaid")
    await mall.office.complete()
    assert (await mall.office.meter("M1")).forced is None


@pytest.mark.parametrize("order", ["keep power", "on"])
async def test_power_that_a_person_keeps_meanwhile_withdraws_a_cut_that_waits(
    tmp_path: Path, order: str
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("force-off") | {"keep-power": None})
        await close_part(world, "M1")
        if order == "on":
            await force(world, "a lift", "on")
        else:
            kept = KeepPower(world.ask("keep"), "A1", T0_MS + HOUR_MS, "a lift")
            await world.office.order_for(kept)
        await world.office.complete()
        (proposed,) = await of_type(world, "command-proposed")
        proposal = await world.office.approvals.proposal(proposed.record()["approval_id"])
        assert proposal.status == "declined"
        await read(world, 1_500, T0_MS)
        meter = await world.office.meter("M1")
        assert (meter.is_house, meter.forced) == (True, None if order == "keep power" else "on")


async def test_a_cut_that_is_approved_while_its_closing_is_cancelled_is_undone(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_a_meter(world, alone_but("force-off"))
        await close(world)
        (proposed,) = await of_type(world, "command-proposed")
        approval_id = proposed.record()["approval_id"]

        async def dies(_: str) -> Proposal:
            raise Retriable("vending died")

        approvals = world.office.approvals
        carry_out, approvals.carry_out = approvals.carry_out, dies  # type: ignore[method-assign, assignment]
        with suppress(Retriable):
            await approve(world, approval_id)
        approvals.carry_out = carry_out  # type: ignore[method-assign]
        assert (await approvals.proposal(approval_id)).status == "approved"
        assert (await cancelled(world)).forced is None
        await world.office.complete()
        assert (await world.office.meter("M1")).forced is None
        assert (await approvals.proposal(approval_id)).status == "executed"


async def test_no_person_ends_a_closing_by_a_register_of_his_own(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        await world.account("A2")
        await close_part(world, "M1")
        device: dict[str, Any] = dict.fromkeys(
            ("serial", "unit", "profile", "ratio", "max_power_w")
        ) | {"closing_register_milli": 1_200, "opening_register_milli": 0, "reason": "dead"}
        office = world.office
        for asked in (
            office.release_meter(world.ask("release"), "M1", 9_000),
            office.assign_meter(world.ask("move"), "M1", "A2", 9_000, "A1"),
            office.change_ratio(world.ask("ratio"), "M1", 40, 9_000, "new CTs"),
            office.replace_meter(world.ask("replace"), meter_id="M1", **device),
        ):
            assert await refused(asked) is Reason.CLOSING_UNDER_WAY
        await office.release_meter(world.ask("the other"), "M2", 60)
        await read(world, 1_500)
        assert (await world.office.meter("M1")).closing_register_milli == 1_500


async def test_an_account_in_a_closing_in_part_keeps_its_tenant_and_takes_no_meter_of_it(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await with_two(world)
        await publish(world, **(ALONE | {"transfer": None}))
        await close_part(world, "M1", "M2")
        await read(world, 1_500)
        assert (await world.office.meter("M1")).is_house
        assert await refused(world.assign("M1", "A1", 1_500)) is Reason.CLOSING_UNDER_WAY
        change = ChangeTenant(world.ask("t"), "A1", "t-new", False, "let anew")
        assert await refused(world.office.change(change)) is Reason.CLOSING_UNDER_WAY
        await read(world, 90, meter_id="M2")
        await echo(world, 5 * NANO)
        assert (await world.office.account("A1")).closing is None
        await world.assign("M1", "A1", 1_500)
        await world.office.change(change)


# --- what the process takes care of, the account's own rules do too ------------------------------


async def decided(world: World, command: Command) -> tuple[Event, ...]:
    decision = closings.decide(await world.office.account("A1"), command)
    assert isinstance(decision, Accepted)
    return decision.events


async def test_metering_is_not_asked_before_all_have_left_nor_again_before_a_day(
    mall: World,
) -> None:
    await close(mall)
    closing_id = (await under_way(mall)).closing_id
    ask = AskMetering(mall.ask("ask"), "A1", closing_id, 1, before_leaving=False)
    assert await decided(mall, ask) == ()
    assert await decided(mall, EndCancelled(mall.ask("undone"), "A1", closing_id)) == ()
    await read(mall, 1_500)
    assert (await under_way(mall)).asked == 1
    assert await decided(mall, ask) == ()
    later = replace(ask, request=replace(ask.request, at_ms=T0_MS + ASK_AGAIN_MS))
    assert [event.SUBJECT for event in await decided(mall, later)] == ["closing-asked"]


async def test_a_closing_gives_power_back_only_where_its_own_cut_stands(mall: World) -> None:
    await close(mall)
    closing_id = (await under_way(mall)).closing_id
    await force(mall, "fire on the riser", "off")
    undo = ForceRelay(mall.ask("undo"), "M1", "prepaid", "they stay", closing_id=closing_id)
    assert await refused(mall.office.order(undo)) is Reason.NOTHING_CHANGES
