"""Goal: what an account used while it was frozen is charged once, when two persons have thawed it.

Method: office, relay and metering's `absorb` in one process, as in test_closings_reach_metering.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api.changes import AccountApi
from services.vending.adapters.api.desk import Desk
from services.vending.domain.approval import Status
from services.vending.domain.facts import fact_of
from services.vending.domain.orders import ThawAccount
from services.vending.metrics import Metrics
from tests.unit.test_closings_reach_metering import ALONE, Shop, close
from tests.unit.test_usage_comes_from_metering import platform
from tests.unit.test_vending_approvals import approve, asked_by_alice, of_type, publish
from tests.unit.test_vending_office import refused
from wattvend.vending.v1 import accounts_pb2 as pb


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with platform(tmp_path / "events.sqlite") as made:
        shop = Shop(made.world, made.shards, made.relay, made.statements)
        shop.log, shop.charged = made.log, made.charged
        await shop.begin()
        await shop.reads(1_200)
        yield shop


async def energy_milli(shop: Shop) -> int:
    """Return what was charged of the meter's energy in its epoch."""
    meter = await shop.world.office.meter("M1")
    state = shop.shards.logs[meter.shard].state
    (slot,) = state.standing.find(np.array([meter.meter_key]))
    return int(state.meters["energy_total_milli"][slot])


async def row_of(shop: Shop) -> Any:
    account = await shop.world.office.account("A1")
    log = shop.shards.logs[account.shard]
    return log.state.accounts[log.state.account_slot(account.account_key)]


async def test_what_was_used_while_frozen_is_charged_once_when_two_persons_have_thawed_it(
    shop: Shop,
) -> None:
    (await row_of(shop))["frozen"] = True
    before = shop.charged_nano, await energy_milli(shop)
    await shop.reads(3_200)
    assert (shop.charged_nano, await energy_milli(shop)) == before
    world = shop.world
    order = ThawAccount(asked_by_alice(world), "A1", "tariff published")
    assert await refused(world.office.order_for(order)) is Reason.APPROVAL_REQUIRED
    await shop.told()
    assert (await row_of(shop))["frozen"], "one person alone thaws nothing"
    (waiting,), _ = await world.office.approvals.pending("LE1", 0, 10)
    assert (waiting.command, waiting.action) == ("thaw-account", "thaw")
    assert (await approve(world, waiting.approval_id)).status is Status.EXECUTED
    await shop.told()
    assert not (await row_of(shop))["frozen"]
    await shop.reads(4_200)
    assert await energy_milli(shop) == before[1] + 3_000
    await shop.reads(4_300)
    assert await energy_milli(shop) == before[1] + 3_100

    await close(shop)
    await shop.reads(4_400)
    state = await world.office.account("A1")
    assert state.credited_nano == shop.charged_nano > before[0]


async def test_each_order_is_told_under_an_id_of_its_own_and_a_repeated_one_under_its_own(
    shop: Shop,
) -> None:
    world = shop.world
    await publish(world, **ALONE, thaw=None)

    async def told_after(request: Any) -> str:
        state = (await world.office.order_for(ThawAccount(request, "A1", "mended"))).state
        thaw_id = fact_of(state, book_epoch=1, shards=8).record["thaw_id"]
        assert isinstance(thaw_id, str)
        return thaw_id

    first = world.ask("thaw")
    ids = [await told_after(first), await told_after(first), await told_after(world.ask("anew"))]
    assert ids[0] == ids[1] != ids[2]
    assert len(await of_type(world, "account-thawed")) == 2
    desk = Desk(world.office, world.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    asked = pb.ThawRequest(request_id=str(uuid4()), name="accounts/A1", reason="mended")
    told = await AccountApi(desk).Thaw(asked, Call("desk", "u-1", "10.0.0.7", 5.0))
    assert told.name == "accounts/A1"
    assert len(await of_type(world, "account-thawed")) == 3
    nobody = ThawAccount(world.ask("nobody"), "A9", "mended")
    assert await refused(world.office.order_for(nobody)) is Reason.ACCOUNT_NOT_FOUND
