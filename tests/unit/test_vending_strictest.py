"""Goal: where nobody may do anything alone, no way round about leads to another price or a cut.

Method: the office on a real SQLite file; one person tries each step of each way.
"""

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.vending.domain.approval import approval_id_of
from services.vending.domain.authority import PublishAuthority
from services.vending.domain.closings import CloseAccount, CloseMeters
from services.vending.domain.decisions import Request
from services.vending.domain.origin import Origin
from tests.unit import vending_world
from tests.unit.test_vending_approvals import approve, publish
from tests.unit.test_vending_corrections import reverse, sold
from tests.unit.test_vending_moves import moved, of_ratio, released, replaced
from tests.unit.test_vending_office import refused
from tests.unit.vending_world import World

EVE = Origin("till", "u-eve")
CHARGED_MILLI = 3_000


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        await opened.account("A2")
        await opened.sell(10_000)
        await opened.assign()
        await publish(opened)
        yield opened


def by_eve(world: World, *content: object) -> Request:
    return world.ask(*content, origin=EVE)


async def alone(asked: Awaitable[Any]) -> bool:
    """Say whether one person could."""
    try:
        await asked
    except InvalidInput as refusal:
        if refusal.reason is not Reason.APPROVAL_REQUIRED:
            raise
        return False
    return True


async def test_nobody_gets_another_price_by_a_new_tariff_and_an_account_of_it(mall: World) -> None:
    assert not await alone(mall.tariff(price_micro=0, request=by_eve(mall, 1)))
    assert await alone(mall.tariff("T9", price_micro=0, request=by_eve(mall, 2)))
    assert await alone(mall.account("A9", tariff_id="T9", request=by_eve(mall, 3)))
    move = mall.office.assign_meter(by_eve(mall, 4), "M1", "A9", 1_000, "A1")
    assert not await alone(move)
    assert (await mall.office.meter("M1")).account_id == "A1"


@pytest.mark.parametrize("end", [moved, released, replaced, of_ratio])
async def test_what_ends_a_customers_epoch_takes_two_and_then_happens(
    mall: World, end: Any
) -> None:
    request = by_eve(mall, end)
    assert not await alone(end(mall, CHARGED_MILLI, request))
    proposal = await approve(mall, approval_id_of(request))
    assert proposal.action == ("move" if end in (moved, released) else "exchange")
    await mall.office.complete()
    assert (await mall.office.meter("M1")).epoch == 3
    await end(mall, CHARGED_MILLI, request)  # its answer


@pytest.mark.parametrize("whole", [True, False])
async def test_no_meter_leaves_by_one_persons_closing(mall: World, whole: bool) -> None:
    request = by_eve(mall, "close")
    command = (
        CloseAccount(request, "A1", "cash", True, 0, "moves out")
        if whole
        else CloseMeters(request, "A1", ("M1",), True, 0, "moves out")
    )
    assert await refused(mall.office.closings.begin_and_look(command)) is Reason.APPROVAL_REQUIRED
    assert (await mall.office.account("A1")).closing is None
    proposal = await approve(mall, approval_id_of(request))
    assert proposal.action == "closing"
    look = await mall.office.closings.begin_and_look(command)
    assert [meter.meter_id for meter in look.meters] == ["M1"]
    assert look.closing.without_cut


async def test_of_a_whole_closing_the_approver_saw_which_meters_leave(mall: World) -> None:
    request = by_eve(mall, "close")
    command = CloseAccount(request, "A1", "cash", True, 0, "moves out")
    assert not await alone(mall.office.closings.begin(command))
    await mall.meter("M2", unit=2)
    await mall.assign("M2")
    proposal = await approve(mall, approval_id_of(request))
    assert proposal.failure is not None
    assert proposal.failure.reason == Reason.CHANGED_SINCE


async def test_a_move_is_to_the_tenant_whom_the_approver_saw(mall: World) -> None:
    request = by_eve(mall, "move")
    assert not await alone(moved(mall, CHARGED_MILLI, request))
    content = (await mall.office.approvals.proposal(approval_id_of(request))).content
    assert '"to_tenancy":0' in content


async def test_one_person_gives_himself_no_authority(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        sale = await sold(world, 10_000)
        assert not await alone(reverse(world, sale.receipt_id, by_eve(world, 1)))
        assert await alone(publish_first(world, '{"force-off":null,"reversal":0}', "LE2"))
        said = '{"authority":null,"reversal":null}'
        request = by_eve(world, said)
        document = PublishAuthority(request, "LE1", "CNY", said, 0)
        assert not await alone(world.office.publish_authority(document))
        assert not await alone(reverse(world, sale.receipt_id, by_eve(world, 2)))
        proposal = await approve(world, approval_id_of(request))
        assert (proposal.action, proposal.legal_entity) == ("authority", "LE1")
        assert (await world.office.publish_authority(document)).state.version == 1
        assert await alone(reverse(world, sale.receipt_id, by_eve(world, 3)))


async def test_a_first_document_that_another_was_before_is_not_published(tmp_path: Path) -> None:
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        said = '{"reversal":null}'
        request = by_eve(world, said)
        document = PublishAuthority(request, "LE1", "CNY", said, 0)
        assert not await alone(world.office.publish_authority(document))
        await publish(world)
        failure = (await approve(world, approval_id_of(request))).failure
        assert failure is not None
        assert failure.reason == Reason.CHANGED_SINCE


async def publish_first(world: World, said: str, entity: str) -> None:
    await world.office.publish_authority(
        PublishAuthority(by_eve(world, said), entity, "CNY", said, 0)
    )


@pytest.mark.parametrize("entity", ["LE1 ", " LE1"])
async def test_a_document_of_what_looks_like_the_legal_entity_is_refused(
    mall: World, entity: str
) -> None:
    with pytest.raises(InvalidInput, match="blank"):
        await publish_first(mall, "{}", entity)
    with pytest.raises(InvalidInput, match="blank"):
        await mall.site("S2", entity=entity)


async def test_an_empty_house_is_one_persons(mall: World) -> None:
    await mall.meter("M2", unit=2)
    await mall.assign("M2")  # somebody moves in
    await mall.meter("M3", unit=3)
    assert await alone(mall.office.change_ratio(by_eve(mall, 1), "M3", 40, 0, "new CTs"))
    nothing = CloseAccount(by_eve(mall, 2), "A2")  # there is nothing in it
    await mall.office.closings.begin(nothing)
