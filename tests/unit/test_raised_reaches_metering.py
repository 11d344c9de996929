"""Goal: after a book is restored and its epoch raised, each meter stands where the book has it.

Method: office, relay and every shard of metering in one process. A copy of the book is kept, the
book goes on and metering hears of it; then the copy is the truth, in a raised epoch, and metering
hears of that. Where a meter stands is asked of every shard.
"""

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.routing import partition_of
from services.vending.application.relay import START
from tests.unit import vending_world
from tests.unit.test_orders_reach_metering import Shards
from tests.unit.test_vending_relay import SHARDS, relaying
from tests.unit.vending_world import World

ACCOUNTS = {"A1": "A1", "B1": "B1"}


def standing(shards: Shards, meter_id: str) -> list[int]:
    """Return the shards in which a meter stands."""
    key = np.array([column_key("meter", meter_id)])
    return [n for n, log in enumerate(shards.logs) if log.state.standing.find(key)[0] >= 0]


async def told(world: World, shards: Shards) -> None:
    """Let metering hear of everything that the book has."""
    async with relaying(world, shards, START, await world.tables.book_epoch()) as relay:
        await relay.caught_up()


def elsewhere(*account_ids: str) -> str:
    """Return an account id whose shard is none of those of the accounts."""
    taken = {partition_of(account_id, SHARDS) for account_id in account_ids}
    return next(f"B{n}" for n in range(100) if partition_of(f"B{n}", SHARDS) not in taken)


async def moved(world: World) -> None:
    other = elsewhere("A1", house_account_id("M1"))
    await world.account(other)
    await world.release(register_milli=2_000)
    await world.assign("M1", other, register_milli=3_000)


async def registered(world: World) -> None:
    other = elsewhere(house_account_id("M2"))
    await world.account(other)
    await world.meter("M2", serial="two", unit=2)
    await world.assign("M2", other, register_milli=3_000)


async def restored(path: Path, lose: Callable[[World], Awaitable[None]], shards: Shards) -> None:
    """Keep a copy, let the book go on and be told, and put the copy in its place."""
    async with vending_world.world(path) as world:
        await world.mall()
        await world.assign(register_milli=1_000)
    copy = path.with_name("copy.sqlite")
    shutil.copy(path, copy)
    async with vending_world.world(path) as world:
        await lose(world)
        await told(world, shards)
    async with vending_world.world(copy) as world:
        await world.tables.raise_book_epoch(2, await world.store.head())


async def test_a_shard_to_which_a_lost_move_brought_a_meter_lets_it_go(tmp_path: Path) -> None:
    shards = Shards()
    await restored(tmp_path / "events.sqlite", moved, shards)
    other = partition_of(elsewhere("A1", house_account_id("M1")), SHARDS)
    assert standing(shards, "M1") == [other]
    async with vending_world.world(tmp_path / "copy.sqlite") as world:
        await told(world, shards)
        account = await world.office.account("A1")
    assert standing(shards, "M1") == [account.shard]


async def test_a_meter_that_is_registered_again_stands_where_it_is_now_alone(
    tmp_path: Path,
) -> None:
    shards = Shards()
    await restored(tmp_path / "events.sqlite", registered, shards)
    assert standing(shards, "M2") == [partition_of(elsewhere(house_account_id("M2")), SHARDS)]
    async with vending_world.world(tmp_path / "copy.sqlite") as world:
        await world.meter("M2", serial="two", unit=2)
        await told(world, shards)
        meter = await world.office.meter("M2")
    assert standing(shards, "M2") == [meter.shard]
