"""Goal: sites form a tree, whatever is placed where, also at the same time.

Method: the office on a real SQLite file.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.vending.domain.site import DEPTH_MAX, PlaceSite, Site
from tests.unit import vending_world
from tests.unit.test_vending_office import refused
from tests.unit.vending_world import World


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        for number in range(DEPTH_MAX + 3):
            await opened.site(f"S{number}")
        yield opened


async def place(world: World, site_id: str, parent: str | None) -> Site:
    command = PlaceSite(world.ask(site_id, parent), site_id, parent, "as built")
    return (await world.office.place_site(command)).state


async def test_a_site_lies_within_another_until_it_is_placed_anew(world: World) -> None:
    assert (await place(world, "S1", "S0")).parent_site_id == "S0"
    assert (await place(world, "S1", "S2")).parent_site_id == "S2"
    assert (await place(world, "S1", None)).parent_site_id is None
    assert await refused(place(world, "S1", None)) is Reason.NOTHING_CHANGES


async def test_no_site_lies_within_itself(world: World) -> None:
    await place(world, "S1", "S0")
    await place(world, "S2", "S1")
    for parent in ("S0", "S1", "S2"):
        assert await refused(place(world, "S0", parent)) is Reason.SITE_WITHIN_ITSELF


async def test_of_two_that_would_lie_in_each_other_one_is_refused(world: World) -> None:
    both = (place(world, "S1", "S2"), place(world, "S2", "S1"))
    found = await asyncio.gather(*both, return_exceptions=True)
    (no,) = [each for each in found if isinstance(each, InvalidInput)]
    assert no.reason is Reason.SITE_WITHIN_ITSELF


async def test_what_is_not_there_or_too_deep_is_refused(world: World) -> None:
    assert await refused(place(world, "S1", "S99")) is Reason.SITE_NOT_FOUND
    assert await refused(place(world, "S99", "S1")) is Reason.SITE_NOT_FOUND
    for number in range(1, DEPTH_MAX + 1):
        await place(world, f"S{number}", f"S{number - 1}")
    deep = place(world, f"S{DEPTH_MAX + 1}", f"S{DEPTH_MAX}")
    assert await refused(deep) is Reason.INVALID_ARGUMENT
