"""Goal: what a policy's rules say and what operators order decides who is cut, from door to door.

Method: office, relay and metering in one process, as in test_orders_reach_metering.
"""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput
from services.metering.domain.messages import Absorbed
from tests.unit import vending_world
from tests.unit.metering_log import kinds, of
from tests.unit.test_orders_reach_metering import MINUTE_MS, Platform, Shards
from tests.unit.test_vending_orders import DAY_MS, Desk
from tests.unit.test_vending_relay import relaying
from tests.unit.vending_world import T0_MS

NOTICE: dict[str, Any] = {"notice": {"lead_minutes": 10, "required": True}}


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """Return both where A1 has a meter and nothing left after its next kilowatt-hours."""
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await desk.policy(rules=json.dumps(NOTICE))
            await desk.assign(register_milli=0)
            log = shards.logs[(await desk.office.account("A1")).shard]
            log.now_ms = max(log.now_ms, T0_MS)
            made = Platform(desk, shards, relay, log, [])
            assert await made.told() == ["closed", "alarm-2"]
            yield made


def reasons(done: Absorbed) -> list[str]:
    return [alarm["reason"] for alarm in of(done, "alarm")]


async def test_a_delivered_notice_lets_the_next_reading_behind_its_lead_cut(
    platform: Platform,
) -> None:
    (notice,) = of(await platform.read(1_000), "notice")
    platform.log.later(10 * MINUTE_MS)
    assert reasons(await platform.read(1_001)) == ["notice-failed"]
    await platform.desk.notice("delivered", notice["notice_id"])
    assert await platform.told() == []
    done = await platform.read(1_002)
    assert kinds(done) == ["cut", "open"]
    (intent,) = of(done, "relay-intent")
    assert (intent["notice_id"], intent["notice_outcome"]) == (notice["notice_id"], "delivered")
    assert intent["policy_version"] == 2


async def test_keep_power_gives_power_again_and_its_end_alone_cuts_nobody(
    platform: Platform,
) -> None:
    await platform.desk.policy(rules=None)
    await platform.told()
    assert kinds(await platform.read(1_000)) == ["cut", "open"]
    await platform.desk.keep(platform.log.now_ms + DAY_MS)
    assert await platform.told() == ["restored", "closed"]
    assert reasons(await platform.read(1_001)) == ["keep-power"]
    await platform.desk.keep(None)
    assert await platform.told() == []
    assert kinds(await platform.read(1_002)) == ["cut", "open"]


async def test_a_forced_relay_goes_off_on_and_back_to_what_the_balance_says(
    platform: Platform,
) -> None:
    told = []
    for position in ("off", "on", "prepaid"):
        await platform.desk.force(position)
        told += await platform.told()
    assert told == ["open", "closed", "closed"]


async def test_a_policy_is_published_with_equal_rules_as_equal_texts(platform: Platform) -> None:
    state = (await platform.desk.policy(rules=f"  {json.dumps(NOTICE)} ")).state
    assert json.loads(state.rules) == NOTICE
    assert (state.rules, state.version) == (json.dumps(NOTICE, separators=(",", ":")), 3)


@pytest.mark.parametrize(
    ("rules", "place"),
    [("{", "document"), ('{"grace": 5}', "grace"), ('{"zone": "Mars/Base"}', "zone")],
)
async def test_rules_that_are_wrong_are_refused_with_their_place(
    platform: Platform, rules: str, place: str
) -> None:
    with pytest.raises(InvalidInput) as wrong:
        await platform.desk.policy(rules=rules)
    assert wrong.value.field == "rules"
    assert wrong.value.message.startswith(f"rules, {place}")
