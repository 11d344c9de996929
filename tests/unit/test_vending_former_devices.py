"""Goal: a meter whose device was replaced leaves no register behind that waits for a person.

Method: the office on a real SQLite file; the test tells readings and echoes as metering would, and
the story dies at each of its appends. Metering's own code is in test_closings_reach_metering.
"""

from pathlib import Path

from services.vending.domain.account import Status
from services.vending.domain.closing import LASTS_MS_DEFAULT
from services.vending.domain.decisions import Request
from services.vending.domain.meter_orders import ResolveReading
from services.vending.domain.postings import Usage
from services.vending.domain.settling import SettleClosing
from services.vending.domain.usage import PostUsage
from tests.unit import vending_world
from tests.unit.test_vending_approvals import ids, of_type
from tests.unit.test_vending_closings import (
    by_alice,
    close,
    echo,
    giving,
    read,
    under_way,
    with_a_meter,
)
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import T0_MS, World

NANO = 10**7
READING_ID = str(ids(77))


async def replaced(world: World) -> None:
    await with_a_meter(world)
    await world.office.replace_meter(
        world.ask("new"), meter_id="M1", closing_register_milli=900_000, opening_register_milli=0,
        serial="serial-2", unit=None, profile=None, ratio=None, max_power_w=None, reason="burnt",
    )  # fmt: skip


async def told(world: World, waits_for: str = "") -> None:
    """Answer what is asked before a meter leaves, as metering would."""
    closing = (await world.office.account("A1")).closing
    if closing is None or not (closing.hold_id and closing.before_leaving):
        return
    epoch = (await world.office.meter("M1")).epoch
    stand = {
        "meter_id": "M1", "epoch": epoch, "ratio": 1, "register_milli": 10, "time_ms": T0_MS,
        "energy_total_milli": 10,
    }  # fmt: skip
    asked = Request("~vending", str(ids(66)), b"x" * 32, T0_MS)
    usage = PostUsage(asked, "A1", 5, Usage(energy_nano=NANO), 0, 1, 1, [stand], b"r", 9, T0_MS)
    waiting = (("M1", waits_for),) if waits_for else ()
    await world.office.settle(
        SettleClosing("A1", closing.hold_id, NANO, 5, 1, T0_MS, usage, waiting=waiting)
    )
    await world.office.complete()


async def resolve(world: World, resolution: str = "reject") -> None:
    request = world.ask("resolve", request_id=ids(99))
    await world.office.order(ResolveReading(request, "M1", READING_ID, resolution, "mistyped"))
    await world.office.complete()


async def step_of(world: World) -> str:
    (meter,) = (await world.office.closings.look((await under_way(world)).closing_id)).meters
    return meter.step


async def test_a_meter_leaves_when_a_person_has_judged_the_register_of_the_device_before(
    tmp_path: Path,
) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await replaced(world)
        await close(world)
        await read(world, 10)
        assert (await under_way(world)).before_leaving
        await told(world, READING_ID)
        await read(world, 12, T0_MS + LASTS_MS_DEFAULT)
        assert await step_of(world) == "former-register"
        assert (await world.office.account("A1")).has("M1")
        assert len(await of_type(world, "closing-asked")) == 1, "a person is waited for"
        await resolve(world)
        assert not (await world.office.account("A1")).has("M1")
        await echo(world, 400 * NANO)
        assert (await world.office.account("A1")).status is Status.CLOSED


async def test_nor_does_it_leave_before_at_a_register_that_persons_give(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await replaced(world)
        await close(world, request=by_alice(world, at_ms=T0_MS - LASTS_MS_DEFAULT))
        await world.office.closings.give(giving(world, await under_way(world)))
        await told(world, READING_ID)
        assert await step_of(world) == "former-register"
        await resolve(world, "accept")
        assert (await world.office.meter("M1")).closing_register_milli == 1_700


async def test_a_closing_of_a_replaced_device_dies_anywhere_and_ends_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await close(world)
        await read(world, 10)
        await told(world, READING_ID)
        await resolve(world)
        await world.office.complete()
        await echo(world, 400 * NANO)

    async def judge(world: World) -> None:
        state = await world.office.account("A1")
        assert (state.status, state.credited_nano) == (Status.CLOSED, 400 * NANO)
        (asked, again) = await of_type(world, "closing-asked")
        assert (asked.record()["before_leaving"], again.record()["before_leaving"]) == (True, False)

    # account-closing, relay-forced, closing-asked, closing-meters-told, meter-hold-resolved,
    # meter-assigned, account-meter-left, closing-asked, its end
    assert await at_every_step(tmp_path, replaced, story, judge) == 18
