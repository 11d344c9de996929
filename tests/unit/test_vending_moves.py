"""Goal: a meter moves from account to account in one step, and every watt-hour has one owner.

Method: the office on a real SQLite file; the story of a move dies at each of its appends. Whose
energy it is, metering's own code says, as in test_orders_reach_metering.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.vending.application.book import Outcome
from services.vending.domain.approval import Status, approval_id_of
from services.vending.domain.closings import CloseAccount
from services.vending.domain.decisions import Request
from services.vending.domain.event_store import FROM_START
from services.vending.domain.meter import Meter
from services.vending.domain.tables import Charged
from tests.unit import vending_world
from tests.unit.metering_log import charges, frame, reading
from tests.unit.test_orders_reach_metering import MINUTE_MS, Shards
from tests.unit.test_vending_approvals import ALICE, approve, ids, of_type
from tests.unit.test_vending_office import refused
from tests.unit.test_vending_orders import Desk
from tests.unit.test_vending_relay import relaying
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import World


async def move(
    world: World,
    register_milli: int | None = 5_000,
    to: str = "A2",
    of: str = "A1",
    request: Request | None = None,
) -> Outcome[Meter]:
    asked = request or world.ask(register_milli, to, of)
    return await world.office.assign_meter(asked, "M1", to, register_milli, of)


async def set_up(world: World) -> None:
    await world.mall()
    await world.account("A2")
    await world.assign()


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await set_up(opened)
        yield opened


async def test_a_move_is_one_epoch_of_one_register_and_both_accounts_hear_of_it(
    mall: World,
) -> None:
    request = mall.ask("move")
    outcome = await move(mall, request=request)
    state = outcome.state
    assert (state.account_id, state.epoch) == ("A2", 3)
    assert (state.closing_register_milli, state.opening_register_milli) == (5_000, 5_000)
    assert state.previous is not None
    assert state.previous.account_id == "A1"
    assert not (await mall.office.account("A1")).has("M1")
    (joined,) = (await mall.office.account("A2")).meters
    assert (joined.epoch, joined.opening_register_milli) == (3, 5_000)
    assert await move(mall, request=request) == outcome
    assert len(await of_type(mall, "account-meter-left")) == 1


async def test_a_move_names_who_has_the_meter(mall: World) -> None:
    await mall.account("A3")
    assert await refused(move(mall, of="A3")) is Reason.METER_ALREADY_ASSIGNED
    assert await refused(move(mall, to="A1")) is Reason.NOTHING_CHANGES
    assert await refused(move(mall, to="A9")) is Reason.ACCOUNT_NOT_FOUND
    assert await refused(mall.assign(account_id="A2")) is Reason.METER_ALREADY_ASSIGNED
    assert await refused(move(mall, None)) is Reason.NO_READING_YET
    await mall.release()
    assert await refused(move(mall)) is Reason.METER_NOT_ASSIGNED


async def moved(world: World, register_milli: int, request: Request) -> Outcome[Meter]:
    return await move(world, register_milli, request=request)


async def replaced(world: World, register_milli: int, request: Request) -> Outcome[Meter]:
    return await world.office.replace_meter(
        request,
        meter_id="M1",
        closing_register_milli=register_milli,
        opening_register_milli=0,
        serial=None,
        unit=None,
        profile=None,
        ratio=None,
        max_power_w=None,
        reason="display dead",
    )


async def of_ratio(world: World, register_milli: int, request: Request) -> Outcome[Meter]:
    return await world.office.change_ratio(request, "M1", 40, register_milli, "new CTs")


async def released(world: World, register_milli: int, request: Request) -> Outcome[Meter]:
    return await world.office.release_meter(request, "M1", register_milli)


End = Callable[[World, int, Request], Awaitable[Any]]


@pytest.mark.parametrize("end", [moved, released, replaced, of_ratio])
@pytest.mark.parametrize(("charged_milli", "least_milli"), [(None, 1_000), (3_200, 3_200)])
async def test_a_register_below_what_was_charged_takes_two_and_then_ends_the_epoch(
    mall: World,
    end: End,
    charged_milli: int | None,
    least_milli: int,
) -> None:
    if charged_milli is not None:
        meter = await mall.office.meter("M1")
        await mall.charge(meter.meter_key, meter.epoch, 1, charged_milli)
    request = mall.ask("end", request_id=ids(1))
    assert await refused(end(mall, least_milli - 1, request)) is Reason.APPROVAL_REQUIRED
    assert (await mall.office.account("A1")).meters[0].opening_register_milli == 1_000
    (proposed,) = await of_type(mall, "command-proposed")
    assert proposed.record()["action"] == "register"
    await approve(mall, proposed.record()["approval_id"])
    await mall.office.complete()
    after = await mall.office.meter("M1")
    assert (after.epoch, after.closing_register_milli) == (3, least_milli - 1)
    assert (await mall.office.account("A1")).has("M1") == (end in (replaced, of_ratio))
    assert (await end(mall, least_milli - 1, request)).state == after, "a repeat gets the answer"


@pytest.mark.parametrize("end", [moved, released, replaced, of_ratio])
async def test_no_closing_begins_while_an_end_that_two_let_happen_is_decided(
    mall: World, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await refused(end(mall, 999, mall.ask("end"))) is Reason.APPROVAL_REQUIRED
    (proposed,) = await of_type(mall, "command-proposed")
    closings: list[asyncio.Task[Any]] = []
    charged = mall.tables.charged

    async def while_a_closing_is_asked_for(meter_key: int, epoch: int) -> Charged | None:
        if not closings:  # who has the meter was looked up just before
            asked = CloseAccount(mall.ask("close"), "A1", "cash", without_cut=True, reason="gone")
            closings.append(asyncio.create_task(mall.office.closings.begin(asked)))
            await asyncio.wait(closings, timeout=0.3)
        return await charged(meter_key, epoch)

    monkeypatch.setattr(mall.tables, "charged", while_a_closing_is_asked_for)
    proposal = await approve(mall, proposed.record()["approval_id"])
    assert proposal.status is Status.EXECUTED
    await closings[0]
    order = [event.type for event in await mall.store.read_all(FROM_START, 100)]
    ended = max(i for i, type_ in enumerate(order) if type_.startswith("meter-"))
    assert ended < order.index("account-closing"), "the closing knows how the epoch ended"
    assert await mall.tables.todos() == [], "and both accounts had heard of it"


@pytest.mark.parametrize("end", [moved, released, replaced, of_ratio])
async def test_a_register_that_was_charged_ends_the_epoch_by_one_person(
    mall: World, end: End
) -> None:
    meter = await mall.office.meter("M1")
    await mall.charge(meter.meter_key, meter.epoch, 1, 3_200)
    await end(mall, 3_200, mall.ask("end"))
    assert (await mall.office.meter("M1")).closing_register_milli == 3_200


@pytest.mark.parametrize("end", [moved, released, replaced, of_ratio])
async def test_a_register_above_what_the_load_lets_through_takes_two(mall: World, end: End) -> None:
    meter = await mall.office.meter("M1")
    assert meter.max_power_w is not None
    await mall.charge(meter.meter_key, meter.epoch, 1, 3_200)
    mall.clock.at_ms += 3_600_000
    most_milli = 3_200 + meter.max_power_w * 6 // 5 + 100  # in an hour, with a fifth, and noise
    request = mall.ask("end", request_id=ids(1))
    assert await refused(end(mall, most_milli + 1, request)) is Reason.APPROVAL_REQUIRED
    (proposed,) = await of_type(mall, "command-proposed")
    assert proposed.record()["action"] == "register"
    await end(mall, most_milli, mall.ask("most"))


async def test_what_a_house_has_used_one_person_gives_back(mall: World) -> None:
    await mall.release("M1", 5_000)
    await mall.assign("M1", "A2", 4_000)
    assert (await mall.office.meter("M1")).opening_register_milli == 4_000


async def test_what_is_used_before_the_register_is_the_one_s_and_after_it_the_other_s(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await desk.account("A2")
            for name in ("A1", "A2"):
                await desk.sell(1_000_000, name)
            await desk.assign(register_milli=0)
            await relay.caught_up()
            keys = {(await desk.office.account(name)).account_key: name for name in ("A1", "A2")}
            used: dict[str, int] = dict.fromkeys(keys.values(), 0)

            async def read(register_milli: int) -> None:
                meter = await desk.office.meter("M1")
                log = shards.logs[meter.shard]
                at_ms, serial = log.later(MINUTE_MS).now_ms, meter.serial.encode()
                told = reading(register_milli, at_ms=at_ms, epoch=meter.epoch, serial=serial)
                shards.absorbed.append(log.append("reading-frame", frame([told], meter.shard)))

            await read(1_000)
            await move(desk, 1_300)  # read by hand, above what was charged
            await relay.caught_up()
            await read(2_000)
            await move(desk, 2_000, to="A1", of="A2")
            await relay.caught_up()
            await read(2_100)
            for done in shards.absorbed:
                for one in charges(done):
                    used[keys[int(one["account_key"])]] += int(one["energy_milli"])
            assert used == {"A1": 1_300 + 100, "A2": 700}


async def test_a_move_that_dies_anywhere_is_whole_and_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await move(world, request=world.ask("move", request_id=ids(1)))

    async def judge(world: World) -> None:
        has = [n for n in ("A1", "A2") if (await world.office.account(n)).has("M1")]
        assert has == ["A2"]
        meter = await world.office.meter("M1")
        assert (meter.account_id, meter.epoch, meter.opening_register_milli) == ("A2", 3, 5_000)
        assert await world.tables.todos() == []
        assert await world.office.complete() == 0

    # meter-assigned, account-meter-left, account-meter-joined: before and after each
    assert await at_every_step(tmp_path, set_up, story, judge) == 6


async def test_a_move_that_two_make_dies_anywhere_and_both_accounts_hear_of_it(
    tmp_path: Path,
) -> None:
    """At a register below what was charged: proposed, approved, moved, told to both, concluded."""

    async def setting(world: World) -> None:
        await set_up(world)
        meter = await world.office.meter("M1")
        await world.charge(meter.meter_key, meter.epoch, 1, 6_000)

    async def story(world: World) -> None:
        request = world.ask("move", request_id=ids(1), caller="web", origin=ALICE)
        with suppress(InvalidInput):  # it waits for the second person
            await move(world, request=request)
        await approve(world, approval_id_of(request), number=2)
        await world.office.complete()

    async def judge(world: World) -> None:
        has = [n for n in ("A1", "A2") if (await world.office.account(n)).has("M1")]
        assert has == ["A2"]
        meter = await world.office.meter("M1")
        assert (meter.account_id, meter.epoch, meter.opening_register_milli) == ("A2", 3, 5_000)
        assert await world.tables.todos() == []
        assert await world.office.complete() == 0

    # command-proposed, proposal-approved, meter-assigned, account-meter-left,
    # account-meter-joined, proposal-executed: before and after each
    assert await at_every_step(tmp_path, setting, story, judge) == 12
