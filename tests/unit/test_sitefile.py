"""Goal: a site's file brings the book to what it says, and applied again changes nothing.

Method: the file is applied through the servicers over the office on a real SQLite file.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.runtime.grpc import Call
from services.vending.adapters.api import VendingApi
from services.vending.adapters.api.desk import Desk
from services.vending.application.stored import event_of
from services.vending.domain.decisions import Accepted
from services.vending.domain.events.event import Event
from services.vending.domain.events.prices import PolicyPublished, TariffPublished
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_tariff_plan import PLAN
from tests.unit.vending_world import World
from tools import sitefile
from tools.client import Clients, Refused
from tools.sitefile import SiteFile

FILE: dict[str, Any] = {
    "site": {
        "id": "floor-3",
        "name": "Floor 3",
        "zone": "Asia/Shanghai",
        "currency": "CNY",
        "legal_entity": "LE1",
    },
    "gateways": [{"id": "G1", "protocol": "modbus-tcp", "address": "127.0.0.1:502"}],
    "meters": [
        {"id": "M1", "serial": "1", "gateway": "G1", "unit": 1, "profile": "acrel-ddsy1352"}
    ],
    "tariffs": [{"id": "shops", "price_micro": 850_000}, {"id": "by-time", "plan": PLAN}],
    "policies": [
        {"id": "homes", "alarm_1_minor": 1000, "alarm_2_minor": 500, "restore_minor": 1},
        {
            "id": "offices",
            "alarm_1_minor": 1000,
            "alarm_2_minor": 500,
            "restore_minor": 1,
            "rules": {"zone": "Asia/Shanghai", "grace_minutes": 30, "qualities": "AVM"},
            "lease_ms": 60_000,
            "rounding": "up",
        },
    ],
}


class Calls:
    """Calls of a caller, without sockets."""

    def __init__(self, api: VendingApi, caller: str) -> None:
        self.api = api
        self.call = Call(caller, "", "10.0.0.7", 5.0)

    async def __call__(self, method: str, request: Any, **_: float) -> Any:
        try:
            return await getattr(self.api, method)(request, self.call)
        except InvalidInput as refused:
            raise Refused("", refused.reason.value, refused.message) from refused


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        for site_id in ("mall", "other-mall"):
            await opened.site(site_id)
        yield opened


async def apply(world: World, file: dict[str, Any], caller: str = "wattvend") -> list[str]:
    """Apply a file, and return what is told."""
    desk = Desk(world.office, world.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    calls: Any = Calls(VendingApi(desk), caller)
    told: list[str] = []
    clients = Clients(*[calls] * len(fields(Clients)))
    await sitefile.apply(clients, SiteFile.model_validate(file), told.append)
    return told


def with_(part: str, index: int, **changes: Any) -> dict[str, Any]:
    """Return the file with one of a part's items changed."""
    items = list(FILE[part])
    items[index] = {**items[index], **changes}
    return {**FILE, part: items}


def placed(parent: str) -> dict[str, Any]:
    return {**FILE, "site": {**FILE["site"], "parent": parent}}


async def events(world: World) -> Sequence[Event]:
    return [event_of(each) for each in await world.store.read_all(0, 1_000)]


@pytest.mark.parametrize("again", ["wattvend", "another"])
async def test_a_file_applied_again_changes_nothing_whoever_does(world: World, again: str) -> None:
    told = await apply(world, placed("mall"))
    assert told == [
        "site floor-3 with 1 gateway",
        "2 tariffs and 2 policies, 4 new versions",
        "1 meter",
    ]
    before = await events(world)
    told = await apply(world, placed("mall"), again)
    assert told[1] == "2 tariffs and 2 policies, 0 new versions"
    assert await events(world) == before


async def test_what_a_file_says_otherwise_is_published_also_if_it_once_was_so(
    world: World,
) -> None:
    dearer = with_("policies", 0, alarm_1_minor=2000)
    for file in (FILE, dearer, FILE, FILE):
        await apply(world, file)
    published = [each for each in await events(world) if isinstance(each, PolicyPublished)]
    of_homes = [each.alarm_1_nano // 10**7 for each in published if each.policy_id == "homes"]
    assert of_homes == [1000, 2000, 1000]
    await apply(world, with_("tariffs", 0, price_micro=900_000))
    tariffs = [each for each in await events(world) if isinstance(each, TariffPublished)]
    prices = [each.price_micro for each in tariffs if each.tariff_id == "shops"]
    assert prices == [850_000, 900_000]


async def test_a_version_that_a_person_published_gives_way_to_the_file(world: World) -> None:
    await apply(world, FILE)
    await world.policy("homes", legal_entity="LE1", lease_ms=30_000)
    await apply(world, FILE)
    now = await world.book.state_of(Policy, "homes")
    assert now is not None
    assert (now.version, now.lease_ms, now.legal_entity) == (3, 300_000, "LE1")


async def test_a_policy_of_an_earlier_release_stays_nobodys_until_two_change_it(
    world: World, tmp_path: Path
) -> None:
    async with vending_world.world(tmp_path / "other.sqlite") as other:
        await apply(other, FILE)
        published = [each for each in await events(other) if isinstance(each, PolicyPublished)]
    (of_homes,) = [each for each in published if each.policy_id == "homes"]
    of_nobody = replace(of_homes, legal_entity=None)
    await world.book.submit(Policy, "homes", lambda _: Accepted((of_nobody,)))
    await apply(world, FILE)
    now = await world.book.state_of(Policy, "homes")
    assert now is not None
    assert (now.version, now.legal_entity) == (1, "")
    with pytest.raises(Refused, match="gets its legal entity"):
        await apply(world, with_("policies", 0, alarm_1_minor=2000))


async def test_a_site_lies_where_the_file_says_and_stays_where_it_says_nothing(
    world: World,
) -> None:
    async def parent() -> str | None:
        site = await world.book.state_of(Site, "floor-3")
        assert site is not None
        return site.parent_site_id

    found = []
    for said in ("mall", "other-mall", "mall", None, ""):
        await apply(world, FILE if said is None else placed(said))
        found.append(await parent())
    assert found == ["mall", "other-mall", "mall", "mall", None]
    with pytest.raises(Refused, match="site floor-3: there is no site 'attic'; register it first"):
        await apply(world, placed("attic"))


async def test_a_file_registers_and_changes_nothing_that_is_registered(world: World) -> None:
    await apply(world, FILE)
    for file, why in (
        (with_("meters", 0, serial="2"), "meter M1: it is registered with another serial; "),
        (with_("gateways", 0, address="127.0.0.1:503"), "gateway G1: .* another address; "),
        ({**FILE, "site": {**FILE["site"], "zone": "UTC"}}, "site floor-3: .* another zone; "),
    ):
        with pytest.raises(Refused, match=f"{why}.*a file changes none") as refused:
            await apply(world, file)
        assert refused.value.reason == "ALREADY_EXISTS"
