"""Goal: every event says who asked for it, from where and by whose approval, and cannot unsay it.

Method: requests of a known origin through the office on a real file; what is stored is read back,
also after a restart, and compared with what earlier releases wrote.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call, address_of, call_of
from services.vending.adapters.api import VendingApi
from services.vending.adapters.api.desk import Desk
from services.vending.domain import chain
from services.vending.domain.closings import CloseAccount
from services.vending.domain.event_store import FROM_START, StoredEvent, StreamId
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.settling import SettleClosing
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_office import assign_and_crash
from tests.unit.vending_world import World
from wattvend.vending.v1 import vending_pb2 as pb

TILL = Origin("till", "u-81", "10.0.3.7", "office u-2")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        yield opened


async def newest(world: World, stream: str) -> StoredEvent:
    return (await world.store.read(StreamId(stream)))[-1]


def origin_of(stored: StoredEvent) -> Origin:
    return chain.read_meta(stored.meta).origin


async def test_an_event_says_who_asked_from_where_and_by_whose_approval(world: World) -> None:
    await world.sell(500, request=world.ask("A1", 500, origin=TILL))
    sold = await newest(world, "account-A1")
    assert origin_of(sold) == TILL
    altered = sold.meta.replace(b"u-81", b"u-18")
    assert chain.stored_hash(replace(sold, meta=altered)) != chain.stored_hash(sold)


async def test_a_retry_from_elsewhere_is_the_same_request(world: World) -> None:
    request = world.ask("A1", 500, origin=TILL)
    first = await world.sell(500, request=request)
    elsewhere = replace(request, origin=Origin("till", "u-9", "10.0.3.8"))
    assert await world.sell(500, request=elsewhere) == first
    assert origin_of(await newest(world, "account-A1")) == TILL


def test_metadata_without_an_origin_is_what_earlier_releases_wrote() -> None:
    written = b'{"schema":"credit-sold/2","prev":"' + b"00" * 32 + b'"}'
    assert chain.meta_of("credit-sold/2", chain.GENESIS) == written
    assert chain.read_meta(written) == chain.Meta("credit-sold/2", chain.GENESIS, NOBODY)


async def test_what_a_move_asks_of_accounts_has_its_origin_also_after_a_crash(
    tmp_path: Path,
) -> None:
    path = tmp_path / "other.sqlite"
    async with vending_world.world(path) as first:
        await first.mall()
        await assign_and_crash(first, first.ask("M1", "A1", 1000, origin=TILL))
    async with vending_world.world(path) as second:
        await second.office.complete()
        joined = await newest(second, "account-A1")
    assert (joined.type, origin_of(joined)) == ("account-meter-joined", TILL)


async def test_a_closing_that_metering_settles_is_still_the_one_who_asked_for_it(
    world: World,
) -> None:
    asked = CloseAccount(world.ask("close", origin=TILL), "A1")
    with pytest.raises(Exception, match="metering has not yet said"):
        await world.office.close_account(asked, 0.0)
    state = await world.office.account("A1")
    assert state.closing is not None
    await world.office.settle(SettleClosing("A1", state.closing.hold_id, 0, 0, 0, 5))
    closed = await newest(world, "account-A1")
    assert (closed.type, origin_of(closed)) == ("account-closed", TILL)


# --- what a call says of itself -----------------------------------------------------------------


@dataclass
class Context:
    """A call's context, with what it was sent."""

    metadata: tuple[tuple[str, str], ...]
    from_: str = "ipv4:10.0.3.7:41234"

    def invocation_metadata(self) -> Any:
        return self.metadata

    def peer(self) -> str:
        return self.from_

    def time_remaining(self) -> float | None:
        return None


def test_a_call_says_its_caller_the_person_behind_it_and_where_it_came_from() -> None:
    sent = (("user-agent", "x"), ("wattvend-caller", "till"), ("wattvend-actor", "u-81"))
    assert call_of(Context(sent)) == Call("till", "u-81", "10.0.3.7", None)
    assert call_of(Context(sent[:2])) == Call("till", "", "10.0.3.7", None)
    with pytest.raises(InvalidInput, match="must name who calls"):
        call_of(Context(sent[2:]))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.3.7:41234", "10.0.3.7"),
        ("ipv6:%5B::1%5D:41234", "::1"),
        ("ipv6:[fe80::1%25eth0]:41234", "fe80::1%eth0"),
        ("unix:/run/vending.sock", "unix:/run/vending.sock"),
        ("unix:", "unix:"),
    ],
)
def test_the_address_of_a_peer_is_without_its_port(peer: str, address: str) -> None:
    assert address_of(peer) == address


async def test_a_call_is_sealed_with_its_origin_and_names_no_person(world: World) -> None:
    desk = Desk(world.office, world.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api = VendingApi(desk)
    sale = pb.SellRequest(
        request_id="6f9619ff-8b86-4d01-b42d-00cf4fc964ff",
        name="accounts/A1",
        amount_minor=500,
        method="cash",
    )
    for name in ("Zhang Wei", "13800138000", "张伟"):
        with pytest.raises(InvalidInput) as refused:
            await api.Sell(sale, Call("till", name, "10.0.3.7", None))
        assert refused.value.reason is Reason.INVALID_ARGUMENT
        assert name not in str(refused.value)
    await api.Sell(sale, Call("till", "u-81", "10.0.3.7", None))
    sold = await newest(world, "account-A1")
    assert origin_of(sold) == Origin("till", "u-81", "10.0.3.7")
    assert {origin_of(e) for e in await world.store.read_all(FROM_START, 100) if e != sold} == {
        NOBODY
    }
