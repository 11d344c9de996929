"""Goal: an account opens with its meters and its first sale, once, and what is wrong is told whole.

Method: the office on a real SQLite file. The stories of an opening, of one that was prepared, and
of one whose meter is taken meanwhile die at each of their appends, and are told again.
"""

from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_proto_pb2 as lro
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import OPERATIONS
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.api.openings import OpeningApi
from services.vending.adapters.api.operations import OperationsApi
from services.vending.adapters.database import Statement
from services.vending.domain.account import METERS_MAX
from services.vending.domain.decisions import Request
from services.vending.domain.events.meters import MeterAssigned
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.opening import (
    NO_SALE,
    Cancel,
    FirstSale,
    Opening,
    Plan,
    PlannedMeter,
    Status,
)
from services.vending.domain.origin import Origin
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_approvals import ids, of_type
from tests.unit.test_vending_office import refused
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import World
from wattvend.vending.v1 import openings_pb2 as pb

NANO = 10**7
ALICE = Origin("web", "u-alice")
SALE = FirstSale(1_000, "qr")


def plan(*meters: tuple[str, int | None], **changed: Any) -> Plan:
    content: dict[str, Any] = {
        "account_id": "B1",
        "site_id": "S1",
        "subject_id": "tenant-7",
        "commodity": "electricity",
        "tariff_id": "T1",
        "policy_id": "P1",
        "meters": tuple(PlannedMeter(*each) for each in meters),
    }
    return Plan(**(content | changed))


async def prepare(
    world: World, what: Plan, sale: FirstSale | None = SALE, request: Request | None = None
) -> Opening:
    return await world.office.openings.prepare(request or world.ask(what, sale), what, sale)


async def start(
    world: World, sale: FirstSale = SALE, request: Request | None = None, subject: str | None = None
) -> Opening:
    asked = request or world.ask(sale, subject)
    return await world.office.openings.start(asked, "B1", subject, sale)


async def wrong_with(world: World, what: Plan, sale: FirstSale = SALE) -> list[Reason]:
    found = await world.office.openings.problems(world.ask(what), what, sale)
    return [each.reason for each in found]


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    """Return a mall with two meters that nobody has."""
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await set_up(opened)
        yield opened


async def set_up(world: World) -> None:
    await world.mall()
    await world.meter("M2", unit=2)


BOTH = plan(("M1", 7_000), ("M2", 0))


async def test_an_account_opens_with_its_meters_and_its_first_sale(mall: World) -> None:
    request = mall.ask("open", origin=ALICE)
    done = await prepare(mall, BOTH, request=request)
    assert (done.status, done.left_out) == (Status.OPEN, ())
    state = await mall.office.account("B1")
    assert (state.credited_nano, state.subject_id) == (1_000 * NANO, "tenant-7")
    joined = [(each.meter_id, each.opening_register_milli) for each in state.meters]
    assert joined == [("M1", 7_000), ("M2", 0)]
    (sale,) = await of_type(mall, "credit-sold")
    assert isinstance(sale, CreditSold)
    assert (sale.method, sale.origin) == ("qr", ALICE)
    assert await prepare(mall, BOTH, request=request) == done
    assert len(await of_type(mall, "account-opened")) == 2, "A1 and B1"


async def test_what_was_prepared_opens_with_one_click_at_the_registers_of_then(mall: World) -> None:
    meter = await mall.office.meter("M2")
    await mall.charge(meter.meter_key, 1, 1, 40_000)
    prepared = await prepare(mall, plan(("M1", 7_000), ("M2", None), subject_id=None), None)
    assert prepared.status is Status.PREPARED
    assert await refused(mall.office.account("B1")) is Reason.ACCOUNT_NOT_FOUND
    assert (await mall.office.meter("M1")).is_house
    await mall.charge(meter.meter_key, 1, 2, 41_000)
    assert (await start(mall, subject="tenant-8")).status is Status.OPEN
    state = await mall.office.account("B1")
    assert (state.subject_id, state.credited_nano) == ("tenant-8", 1_000 * NANO)
    assert [each.opening_register_milli for each in state.meters] == [7_000, 41_000]


async def test_what_was_prepared_does_not_begin_below_what_the_house_has_used_since(
    mall: World,
) -> None:
    meter = await mall.office.meter("M1")
    await mall.charge(meter.meter_key, 1, 1, 7_000)
    below = plan(("M1", 6_999))
    assert await refused(prepare(mall, below, None)) is Reason.REGISTER_IMPLAUSIBLE
    await prepare(mall, plan(("M1", 7_000)), None)
    await mall.charge(meter.meter_key, 1, 2, 900_000)
    assert await refused(start(mall)) is Reason.REGISTER_IMPLAUSIBLE
    assert (await mall.office.meter("M1")).is_house
    await mall.office.openings.cancel(Cancel(mall.ask("cancel"), "B1", "stood empty"))
    await prepare(mall, plan(("M1", None)), None)
    assert (await start(mall)).status is Status.OPEN
    (joined,) = (await mall.office.account("B1")).meters
    assert joined.opening_register_milli == 900_000


async def test_what_is_prepared_or_started_is_listed_until_it_is_over(mall: World) -> None:
    async def listed() -> list[tuple[str, Status]]:
        found, more = await mall.office.openings.page(0, 10)
        assert more is None
        return [(each.plan.account_id, each.status) for each in found]

    for name in ("B1", "B2", "B3"):
        await prepare(mall, plan(account_id=name), None)
    assert await listed() == [(name, Status.PREPARED) for name in ("B1", "B2", "B3")]
    page, last = await mall.office.openings.page(0, 2)
    assert last is not None
    rest, _ = await mall.office.openings.page(last, 2)
    assert [each.plan.account_id for each in (*page, *rest)] == ["B1", "B2", "B3"]
    await start(mall, NO_SALE)
    cancelled = await mall.office.openings.cancel(Cancel(mall.ask("B2"), "B2", "does not come"))
    assert cancelled.status is Status.CANCELLED
    assert await listed() == [("B3", Status.PREPARED)]


async def test_all_that_is_wrong_is_told_and_nothing_happens(mall: World) -> None:
    await mall.assign("M1", "A1")
    await mall.tariff("water", commodity="water")
    await mall.policy("dear", currency="USD")
    what = plan(
        ("M1", 1), ("M2", None), ("M9", 1), tariff_id="water", policy_id="dear", account_id="A1"
    )
    before = await mall.store.head()
    wrong = await wrong_with(mall, what)
    assert wrong == [
        Reason.ALREADY_EXISTS,
        Reason.CURRENCY_MISMATCH,
        Reason.COMMODITY_MISMATCH,
        Reason.METER_ALREADY_ASSIGNED,
        Reason.NO_READING_YET,
        Reason.METER_NOT_FOUND,
    ]
    with pytest.raises(InvalidInput) as caught:
        await prepare(mall, what)
    assert caught.value.reason is Reason.ALREADY_EXISTS
    assert caught.value.message.count("; ") >= len(wrong) - 1
    assert await mall.store.head() == before
    nowhere = plan(site_id="S9", tariff_id="T9", policy_id="P9")
    assert await wrong_with(mall, nowhere) == [
        Reason.SITE_NOT_FOUND,
        Reason.TARIFF_NOT_FOUND,
        Reason.POLICY_NOT_FOUND,
    ]


@pytest.mark.parametrize(
    ("what", "sale", "times"),
    [
        (plan(account_id="no spaces", site_id=""), SALE, 2),
        (plan(("M1", 1), ("M1", 2)), SALE, 1),
        (plan(("M1", -1), ("?", 2)), SALE, 2),
        (plan(*((f"M{i}", 0) for i in range(METERS_MAX + 1))), SALE, 1),
        (plan(commodity="steam", subject_id="13800138000"), FirstSale(-1, "beads"), 4),
    ],
)
async def test_what_no_opening_can_be_is_told_field_by_field(
    mall: World, what: Plan, sale: FirstSale, times: int
) -> None:
    assert len(await wrong_with(mall, what, sale)) == times


@pytest.mark.parametrize("what", [plan(account_id="a\0b"), plan(("M\0", 1))])
@pytest.mark.parametrize("sale", [None, SALE])
async def test_what_no_opening_can_be_is_refused_before_the_store_is_asked(
    mall: World, monkeypatch: pytest.MonkeyPatch, what: Plan, sale: FirstSale | None
) -> None:
    """PostgreSQL takes no NUL, and nobody is told of its address for it."""
    monkeypatch.setattr(mall.book, "state_of", None)
    with pytest.raises(InvalidInput, match="is no id"):
        await prepare(mall, what, sale)
    assert await wrong_with(mall, what)


async def test_a_sale_that_could_not_be_made_opens_nothing(mall: World) -> None:
    await mall.policy("P2", fee_minor=500)
    what = plan(policy_id="P2")
    assert await wrong_with(mall, what, FirstSale(500, "cash")) == [Reason.AMOUNT_BELOW_FEE]
    assert await wrong_with(mall, what, NO_SALE) == []


async def test_an_opening_is_started_once_and_only_when_it_is_prepared(mall: World) -> None:
    assert await refused(start(mall)) is Reason.OPENING_NOT_FOUND
    await prepare(mall, BOTH, None)
    assert await refused(prepare(mall, BOTH, None)) is Reason.ALREADY_EXISTS
    request = mall.ask("go")
    first = await start(mall, request=request)
    assert await start(mall, request=request) == first
    assert await refused(start(mall)) is Reason.OPENING_NOT_PREPARED
    cancel = Cancel(mall.ask("late"), "B1", "too late")
    assert await refused(mall.office.openings.cancel(cancel)) is Reason.OPENING_NOT_PREPARED


async def test_what_was_cancelled_may_be_prepared_anew(mall: World) -> None:
    await prepare(mall, BOTH, None)
    await mall.office.openings.cancel(Cancel(mall.ask("no"), "B1", "does not come"))
    assert (await prepare(mall, plan(("M2", 5)))).status is Status.OPEN
    assert [each.meter_id for each in (await mall.office.account("B1")).meters] == ["M2"]


async def test_a_repeat_gets_its_own_opening_also_when_a_later_one_was_prepared(
    mall: World,
) -> None:
    await mall.tariff("T2")
    first, go = mall.ask("first"), mall.ask("go")
    prepared = await prepare(mall, plan(), None, first)
    cancelled = await mall.office.openings.cancel(Cancel(mall.ask("no"), "B1", "does not come"))
    assert (await prepare(mall, plan(tariff_id="T2"), None)).plan.tariff_id == "T2"
    again = await prepare(mall, plan(), None, first)
    assert again == cancelled, "what came of it: not prepared any more, and not of T2"
    assert again.plan == prepared.plan
    opened = await start(mall, request=go)
    assert (opened.plan.tariff_id, opened.status) == ("T2", Status.OPEN)
    assert await prepare(mall, plan(), None, first) == cancelled
    assert await start(mall, request=go) == opened


async def test_a_repeat_of_what_was_refused_says_so_when_another_has_opened_since(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_away(*_: object, **__: object) -> None:
        raise InvalidInput(Reason.SITE_NOT_FOUND, "the site is gone")

    first = mall.ask("first")
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(mall.office.openings._desk, "open_account", is_away)
        refusal = await prepare(mall, BOTH, request=first)
    assert refusal.status is Status.REFUSED
    assert (await prepare(mall, plan(("M2", 5)))).status is Status.OPEN
    assert await prepare(mall, BOTH, request=first) == refusal


async def test_what_another_takes_meanwhile_is_told_and_the_rest_is_open(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and the step another one was faster: the office is asked as it does."""
    openings = mall.office.openings
    seen = openings._seen

    async def and_then_taken(what: Plan) -> Any:
        found = await seen(what)
        await mall.assign("M1", "A1")
        return found

    monkeypatch.setattr(openings, "_seen", and_then_taken)
    done = await prepare(mall, BOTH)
    assert done.status is Status.OPEN
    assert [(each.meter_id, each.reason) for each in done.left_out] == [
        ("M1", "METER_ALREADY_ASSIGNED")
    ]
    assert [each.meter_id for each in (await mall.office.account("B1")).meters] == ["M2"]


async def test_an_account_that_another_opens_meanwhile_is_not_opened_nor_sold_to(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    openings = mall.office.openings
    seen = openings._seen

    async def and_then_opened(what: Plan) -> Any:
        found = await seen(what)
        await mall.account("B1")
        return found

    monkeypatch.setattr(openings, "_seen", and_then_opened)
    done = await prepare(mall, BOTH)
    assert done.status is Status.REFUSED
    assert done.failure is not None
    assert done.failure.reason == "ALREADY_EXISTS"
    assert await of_type(mall, "credit-sold") == []
    assert (await mall.office.meter("M1")).is_house


# --- crashes -------------------------------------------------------------------------------------


async def opened_whole(world: World) -> None:
    state = await world.office.account("B1")
    assert state.credited_nano == 1_000 * NANO
    joined = [(each.meter_id, each.opening_register_milli) for each in state.meters]
    assert joined == [("M1", 7_000), ("M2", 0)]
    for name in ("M1", "M2"):
        assert (await world.office.meter(name)).account_id == "B1"
    assert (await world.office.openings.of("B1")).status is Status.OPEN
    assert (await world.office.openings.page(0, 9))[0] == []
    assigned = [e for e in await of_type(world, "meter-assigned") if isinstance(e, MeterAssigned)]
    assert len(assigned) == 2
    assert await world.office.complete() == 0


async def test_a_process_that_dies_anywhere_opens_an_account_whole_and_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await prepare(world, BOTH, request=world.ask("open", request_id=ids(1)))

    # prepared and started at once; account-opened with credit-sold; assigned and joined, of two
    # meters; completed: before and after each
    assert await at_every_step(tmp_path, set_up, story, opened_whole) == 14


async def test_a_process_that_dies_anywhere_opens_what_was_prepared_whole_and_once(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        await prepare(world, BOTH, None, world.ask("prepare", request_id=ids(1)))
        await start(world, request=world.ask("start", request_id=ids(2)))

    assert await at_every_step(tmp_path, set_up, story, opened_whole) == 16


async def test_a_process_that_dies_anywhere_leaves_a_meter_with_whom_it_is(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await set_up(world)
        await prepare(world, BOTH, None)

    async def story(world: World) -> None:
        with suppress(InvalidInput):
            await start(world, request=world.ask("start", request_id=ids(2)))
        asked = world.ask("M1", request_id=ids(3))
        with suppress(InvalidInput):  # it is B1's by now, unless the start died before
            await world.assign("M1", "A1", request=asked)

    async def judge(world: World) -> None:
        state = await world.office.openings.of("B1")
        assert state.status is Status.OPEN
        owner = (await world.office.meter("M1")).account_id
        held_by = [name for name in ("A1", "B1") if (await world.office.account(name)).has("M1")]
        assert held_by == [owner]

    await at_every_step(tmp_path, setting, story, judge)


# --- the API -------------------------------------------------------------------------------------


async def test_the_api_tells_all_that_is_wrong_and_opens_what_is_right(mall: World) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api, call = OpeningApi(desk), Call("desk", "u-alice", "10.0.0.7", 9.0)
    asked = pb.CreateOpeningRequest(
        request_id=str(ids(1)),
        opening_id="B1",
        opening=pb.Opening(
            site="sites/S1",
            commodity="electricity",
            tariff="tariffs/T1",
            policy="P1",
            meters=[pb.OpeningMeter(meter="meters/M1", register_milli=7)],
            first_sale=pb.FirstSale(amount_minor=1_000, method="cash", currency="USD"),
        ),
        validate_only=True,
    )
    assert [each.field for each in (await api.CreateOpening(asked, call)).problems] == ["policy"]
    asked.opening.policy = "policies/P1"
    (problem,) = (await api.CreateOpening(asked, call)).problems
    assert problem.reason == "CURRENCY_MISMATCH"
    asked.opening.first_sale.currency = "CNY"
    assert not (await api.CreateOpening(asked, call)).problems
    assert await refused(mall.office.account("B1")) is Reason.ACCOUNT_NOT_FOUND
    asked.validate_only = False
    opened = await api.CreateOpening(asked, call)
    assert (opened.status, opened.name, opened.first_sale.currency) == (
        "open",
        "openings/B1",
        "CNY",
    )
    assert await api.GetOpening(pb.GetOpeningRequest(name="openings/B1"), call) == opened
    asked.opening.site = "sites/S9"
    asked.request_id = str(ids(2))
    with pytest.raises(InvalidInput, match="open already"):
        await api.CreateOpening(asked, call)


async def test_a_first_sale_of_what_is_only_prepared_is_refused_and_not_forgotten(
    mall: World,
) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api, call = OpeningApi(desk), Call("desk", "u-alice", "10.0.0.7", 9.0)
    asked = pb.CreateOpeningRequest(
        request_id=str(ids(1)),
        opening_id="B1",
        opening=pb.Opening(
            site="sites/S1",
            commodity="electricity",
            tariff="tariffs/T1",
            policy="policies/P1",
            first_sale=pb.FirstSale(amount_minor=1_000, method="cash"),
        ),
        prepare_only=True,
        validate_only=True,
    )
    (wrong,) = (await api.CreateOpening(asked, call)).problems
    assert wrong.field == "first_sale"
    asked.validate_only = False
    with pytest.raises(InvalidInput, match="when it is started"):
        await api.CreateOpening(asked, call)
    assert await refused(mall.office.openings.of("B1")) is Reason.OPENING_NOT_FOUND
    asked.opening.ClearField("first_sale")
    assert (await api.CreateOpening(asked, call)).status == "prepared"


async def test_an_opening_is_an_operation_from_its_start_for_good(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that dies at its start, one that is refused, and one of the same account that opens."""
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    api, call = OperationsApi(OPERATIONS, desk), Call("desk", "u-alice", "10.0.0.7", 9.0)

    async def listed(filter_: str = "") -> list[Any]:
        asked = lro.ListOperationsRequest(name="operations/openings", filter=filter_)
        return list((await api.ListOperations(asked, call)).operations)

    async def shown() -> pb.Opening:
        return await OpeningApi(desk).GetOpening(pb.GetOpeningRequest(name="openings/B1"), call)

    async def dies(*_: object, **__: object) -> None:
        raise RuntimeError("it dies")

    async def is_away(*_: object, **__: object) -> None:
        raise InvalidInput(Reason.SITE_NOT_FOUND, "the site is gone")

    await prepare(mall, BOTH, None)
    assert (await listed(), (await shown()).operation) == ([], ""), "nothing goes on"
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(mall.office.openings._desk, "open_account", dies)
        with pytest.raises(RuntimeError):
            await start(mall)
        (goes_on,) = await listed("done = false")
        cancel = lro.CancelOperationRequest(name=goes_on.name)
        assert await refused(api.CancelOperation(cancel, call)) is Reason.OPENING_NOT_PREPARED
        meanwhile.setattr(mall.office.openings._desk, "open_account", is_away)
        await mall.office.complete()
    (failed,) = await listed()
    assert (failed.name, failed.error.message) == (goes_on.name, "the site is gone")
    assert await listed("done = false") == []
    await prepare(mall, plan(("M2", 5)), None)
    assert (await listed(), (await shown()).operation) == ([failed], ""), "it is the one before"
    await start(mall)
    (_, done) = await listed("done = true")
    opened = pb.Opening()
    assert done.response.Unpack(opened)
    assert (opened, opened.operation, opened.status) == (await shown(), done.name, "open")
    assert await listed("done = false") == []
    await api.CancelOperation(lro.CancelOperationRequest(name=done.name), call)
    unknown = lro.GetOperationRequest(name="operations/openings/B1")
    assert await refused(api.GetOperation(unknown, call)) is Reason.OPERATION_NOT_FOUND


async def test_openings_of_an_earlier_release_are_operations_as_if_the_table_had_been_there(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as opened:
        await set_up(opened)
        await prepare(opened, BOTH)
        await prepare(opened, plan(account_id="B2"), None)
        kept = await opened.file.rows("SELECT * FROM opening")
        assert len(kept) == 1
        await opened.file.run(
            [Statement("DELETE FROM opening", [()]), Statement("DELETE FROM made", [()])]
        )
    async with vending_world.world(path) as again:
        assert await again.file.rows("SELECT * FROM opening") == kept
        ((row, state),) = await again.office.openings.started(None, 0, 9)
        assert (row.is_open, state.status, state.opening_id) == (False, Status.OPEN, row.opening_id)


async def test_an_opening_of_far_too_many_meters_is_refused_before_they_are_looked_at(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)
    monkeypatch.setattr(desk, "request", None)  # it takes the fingerprint of them all
    meters = [pb.OpeningMeter(meter=f"meters/M{n}") for n in range(METERS_MAX + 1)]
    asked = pb.CreateOpeningRequest(opening_id="B1", opening=pb.Opening(meters=meters))
    for asked.validate_only in (True, False):
        with pytest.raises(InvalidInput, match="write 0 to 256"):
            await OpeningApi(desk).CreateOpening(asked, Call("desk", "", "10.0.0.7", 9.0))
