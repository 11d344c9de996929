"""Goal: an outside seller's payment is sold once, or its seller is told to pay it back; never both.

Method: the office on a real SQLite file; the stories of a payment die at each of their appends and
are told again after a restart.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters import filling, stores
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.api.payments import Payments
from services.vending.adapters.database import Statement
from services.vending.adapters.sqlite_store import SqliteEventStore
from services.vending.application.book import Outcome
from services.vending.domain.account import Account
from services.vending.domain.authority import rules_text
from services.vending.domain.changes import ChangeTenant
from services.vending.domain.corrections import ReverseSale
from services.vending.domain.decisions import Request
from services.vending.domain.event_store import StoredEvent, StoreUnavailable
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.origin import Origin
from services.vending.domain.payment import (
    LASTS_MS_DEFAULT,
    CancelSale,
    ConfirmSale,
    Payment,
    ReserveSale,
    Status,
)
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_approvals import ids, of_type
from tests.unit.test_vending_office import closing, refused, settle
from tests.unit.vending_crashing import at_every_step
from tests.unit.vending_world import T0_MS, World
from wattvend.vending.v1 import vending_pb2 as pb

NANO = 10**7
PORTAL = Origin("portal", "u-77", "10.0.0.9")
PAID = "4200001234"
CALL = Call("portal", "u-77", "10.0.0.9", 9.0)


def asked(world: World, number: int, *content: object, caller: str = "portal") -> Request:
    return world.ask(*content, request_id=ids(number), caller=caller, origin=PORTAL)


async def reserve(
    world: World, number: int = 1, amount_minor: int = 100, transaction_id: str = PAID
) -> Payment:
    request = asked(world, number, transaction_id, amount_minor)
    command = ReserveSale(request, transaction_id, "A1", amount_minor, "qr", 0)
    return await world.office.payments.reserve(command)


async def confirm(world: World, number: int = 2, transaction_id: str = PAID) -> Outcome[Account]:
    request = asked(world, number, "confirm", transaction_id)
    return await world.office.payments.confirm(ConfirmSale(request, transaction_id))


async def cancel(world: World, number: int = 3) -> Payment:
    request = asked(world, number, "cancel")
    return await world.office.payments.cancel(CancelSale(request, PAID, "went away"))


async def credited(world: World) -> int:
    return (await world.office.account("A1")).credited_nano // NANO


async def status(world: World) -> Status:
    return (await world.office.payments.of("portal", PAID)).status


async def time_out(world: World) -> None:
    world.clock.at_ms = T0_MS + LASTS_MS_DEFAULT
    await world.office.complete()


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        yield opened


async def test_what_is_reserved_is_sold_when_it_is_confirmed_and_not_before(mall: World) -> None:
    assert (await reserve(mall)).status is Status.RESERVED
    assert await credited(mall) == 0
    first = await confirm(mall)
    assert isinstance(first.event, CreditSold)
    assert first.event.method == "qr"
    assert first.event.origin == PORTAL
    sold = await mall.office.payments.of("portal", PAID)
    assert (sold.status, sold.receipt_id) == (Status.SOLD, first.event.receipt_id)
    assert await confirm(mall) == first, "the same request"
    assert await confirm(mall, 9) == first, "another request of a seller that forgot its id"
    assert await credited(mall) == 100


# --- lists ---------------------------------------------------------------------------------------


async def test_payments_are_listed_by_what_became_of_them_and_by_pages(mall: World) -> None:
    await mall.account("A2")
    for number, (account_id, seller) in enumerate(
        [("A1", "portal"), ("A2", "portal"), ("A1", "kiosk"), ("A1", "portal"), ("A1", "portal")]
    ):
        request = mall.ask(number, caller=seller, origin=Origin(seller))
        reserved = ReserveSale(request, f"T{number}", account_id, 100, "qr", 0)
        await mall.office.payments.reserve(reserved)
    sold = (await confirm(mall, 20, "T0")).event
    assert isinstance(sold, CreditSold)
    await confirm(mall, 21, "T1")
    request = asked(mall, 22, "cancel")
    await mall.office.payments.cancel(CancelSale(request, "T3", "went away"))
    alone = rules_text({"reversal": None, "authority": None})
    await mall.may_alone(alone)
    reverse = ReverseSale(asked(mall, 24, "reverse"), "A1", sold.receipt_id, "paid twice")
    await mall.office.correct(reverse)
    api = Payments(Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0))

    async def listed(filter_: str = "", parent: str = "sellers/-", **more: Any) -> list[str]:
        asked_for = pb.ListPaymentsRequest(parent=parent, filter=filter_, **more)
        page = await api.ListPayments(asked_for, CALL)
        token.append(page.next_page_token)
        return [payment.name.rpartition("/")[2] for payment in page.payments]

    token: list[str] = []
    assert await listed() == ["T4", "T3", "T2", "T1", "T0"]
    assert token == [""]
    assert await listed(page_size=3) == ["T4", "T3", "T2"]
    assert await listed(page_size=3, page_token=token[-1]) == ["T1", "T0"]
    assert await listed("account = accounts/A2") == ["T1"]
    assert await listed("", "sellers/kiosk") == ["T2"]
    assert await listed("status = reserved", "sellers/portal") == ["T4"]
    for said, names in {
        "status = sold": ["T1"],
        "status = cancelled": ["T3"],
        "status = reversed": ["T0"],
        "status = confirmed OR status = refused": [],
        "NOT status = reserved": ["T3", "T1", "T0"],
        'legal_entity = "legalEntities/LE2"': [],
    }.items():
        assert await listed(said) == names, said
    await time_out(mall)
    assert await listed("status = timed-out") == ["T4", "T2"]
    (told,) = (
        await api.ListPayments(
            pb.ListPaymentsRequest(parent="sellers/portal", filter="status = reversed"), CALL
        )
    ).payments
    assert told == await api.GetPayment(pb.GetPaymentRequest(name=told.name), CALL)
    for wrong in (
        pb.ListPaymentsRequest(parent="sellers/-", filter="state = open"),
        pb.ListPaymentsRequest(parent="accounts/A1"),
        pb.ListPaymentsRequest(parent="sellers/-", page_token="x"),
    ):
        assert await refused(api.ListPayments(wrong, CALL)) is Reason.INVALID_ARGUMENT


async def test_payments_of_an_earlier_release_are_listed_also_if_their_table_was_half_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as before:
        await before.mall()
        await reserve(before)
        await confirm(before)
        await reserve(before, 5, transaction_id="4200001235")
        kept = await before.file.rows("SELECT * FROM payment ORDER BY position")
        assert [row[5] for row in kept] == ["sold", "reserved"]
        count = before.store.count()
        await before.file.run([Statement("DELETE FROM payment", [()])])
        await before.file.run([Statement("DELETE FROM made", [()])])

    async def dies_later(store: SqliteEventStore, after: int, limit: int) -> list[StoredEvent]:
        if after:
            raise StoreUnavailable("the disk is away")
        return await read_all(store, after, limit)

    read_all = SqliteEventStore.read_all
    monkeypatch.setattr(filling, "EVENTS_AT_ONCE_MAX", count - 2)
    monkeypatch.setattr(SqliteEventStore, "read_all", dies_later)
    with pytest.raises(StoreUnavailable):
        async with stores.opened(f"sqlite:{path}", "test"):
            pass
    monkeypatch.setattr(SqliteEventStore, "read_all", read_all)
    monkeypatch.setattr(filling, "EVENTS_BETWEEN_WORDS", count - 2)
    with capture_logs() as log:
        async with stores.opened(f"sqlite:{path}", "test"):
            pass
        assert [said["done"] for said in log] == [0, count - 2, count]
        async with stores.opened(f"sqlite:{path}", "test"):
            assert len(log) == 3, "it is done once"
    async with stores.opened(f"sqlite:{path}", "test") as stored:
        assert await stored.database.rows("SELECT * FROM payment ORDER BY position") == kept
        made = await stored.database.rows("SELECT name FROM made ORDER BY name")
        assert made == [("hold",), ("opening",), ("paper",), ("payment",)]


async def test_a_payment_whose_sale_was_reversed_says_so(mall: World) -> None:
    await reserve(mall)
    sold = await mall.office.payments.of("portal", PAID)
    assert await mall.office.payments.reversal_of(sold) == ""
    event = (await confirm(mall)).event
    assert isinstance(event, CreditSold)
    alone = rules_text({"reversal": None, "authority": None})
    await mall.may_alone(alone)
    reverse = ReverseSale(asked(mall, 8, "reverse"), "A1", event.receipt_id, "paid twice")
    reversed_ = (await mall.office.correct(reverse)).event
    assert isinstance(reversed_, SaleReversed)
    state = await mall.office.payments.of("portal", PAID)
    reversal_id = await mall.office.payments.reversal_of(state)
    told = messages.payment(state, pb.BookVersion(), reversal_id)
    assert told.status == "reversed"
    assert told.receipt == f"receipts/{event.receipt_id}"
    assert told.reversal == f"receipts/{reversed_.receipt_id}"


async def test_a_transaction_is_its_callers_and_one_payment(mall: World) -> None:
    first = await reserve(mall)
    assert await reserve(mall) == first
    assert await refused(reserve(mall, 9)) is Reason.ALREADY_EXISTS
    other = ConfirmSale(asked(mall, 2, caller="kiosk"), PAID)
    assert await refused(mall.office.payments.confirm(other)) is Reason.PAYMENT_NOT_FOUND
    mine = ReserveSale(asked(mall, 4, caller="kiosk"), PAID, "A1", 7, "cash", 0)
    assert (await mall.office.payments.reserve(mine)).payment_id != first.payment_id


async def test_what_could_not_be_sold_is_not_reserved(mall: World) -> None:
    assert await refused(reserve(mall, amount_minor=2**62)) is Reason.AMOUNT_TOO_LARGE
    await closing(mall)
    assert await refused(reserve(mall, 2)) is Reason.ACCOUNT_NOT_OPEN
    nobody = ReserveSale(asked(mall, 5), PAID, "nobody", 7, "cash", 0)
    assert await refused(mall.office.payments.reserve(nobody)) is Reason.ACCOUNT_NOT_FOUND
    assert await of_type(mall, "sale-reserved") == []


async def test_what_was_promised_to_the_tenant_before_is_paid_back(mall: World) -> None:
    await reserve(mall)
    change = ChangeTenant(mall.ask("in"), "A1", "t-new", False, "let anew")
    await mall.office.change(change)
    assert await refused(confirm(mall)) is Reason.PAYMENT_TO_RETURN
    assert await credited(mall) == 0
    await reserve(mall, 5, transaction_id="another")
    await confirm(mall, 6, "another")
    assert await credited(mall) == 100


async def test_who_has_paid_late_is_sold_to_all_the_same(mall: World) -> None:
    await reserve(mall)
    await time_out(mall)
    assert await status(mall) is Status.TIMED_OUT
    assert await mall.office.complete() == 0
    await confirm(mall)
    assert await status(mall) is Status.SOLD
    assert await credited(mall) == 100


async def test_money_for_an_account_that_closed_meanwhile_goes_back(mall: World) -> None:
    await reserve(mall)
    await closing(mall)
    await settle(mall, charged_nano=0)
    with pytest.raises(InvalidInput, match="Pay the money back") as caught:
        await confirm(mall)
    assert caught.value.reason is Reason.PAYMENT_TO_RETURN
    assert await status(mall) is Status.REFUSED
    for number in (2, 9):
        assert await refused(confirm(mall, number)) is Reason.PAYMENT_TO_RETURN
    (refusal,) = await of_type(mall, "sale-refused")
    assert refusal.origin == PORTAL


async def test_a_cancelled_reservation_sells_nothing_and_a_paid_one_is_not_cancelled(
    mall: World,
) -> None:
    await reserve(mall)
    await time_out(mall)
    assert (await cancel(mall)).status is Status.CANCELLED
    assert (await cancel(mall, 4)).status is Status.CANCELLED
    assert await refused(confirm(mall)) is Reason.PAYMENT_TO_RETURN
    await reserve(mall, 5, 70, "another")
    await confirm(mall, 6, "another")
    late = CancelSale(asked(mall, 7), "another", "too late")
    assert await refused(mall.office.payments.cancel(late)) is Reason.PAYMENT_CONFIRMED
    assert await credited(mall) == 70


async def test_a_process_that_dies_anywhere_sells_a_payment_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await reserve(world)
        outcome = await confirm(world)
        assert isinstance(outcome.event, CreditSold)
        assert UUID(outcome.event.receipt_id)

    async def judge(world: World) -> None:
        assert await credited(world) == 100
        assert len(await of_type(world, "credit-sold")) == 1
        assert await status(world) is Status.SOLD
        assert await world.office.complete() == 0

    # sale-reserved, payment-confirmed, credit-sold, payment-sold: before and after each
    assert await at_every_step(tmp_path, World.mall, story, judge) == 8


async def test_a_process_that_dies_anywhere_tells_once_that_money_goes_back(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.mall()
        await reserve(world)
        await closing(world)
        await settle(world, charged_nano=0)

    async def story(world: World) -> None:
        assert await refused(confirm(world)) is Reason.PAYMENT_TO_RETURN

    async def judge(world: World) -> None:
        assert len(await of_type(world, "payment-refused")) == 1
        assert await status(world) is Status.REFUSED

    # payment-confirmed, sale-refused, payment-refused
    assert await at_every_step(tmp_path, setting, story, judge) == 6


async def test_a_process_that_dies_anywhere_lets_a_reservation_go_once(tmp_path: Path) -> None:
    async def story(world: World) -> None:
        await reserve(world)
        await time_out(world)
        await cancel(world)

    async def judge(world: World) -> None:
        assert await status(world) is Status.CANCELLED
        assert await credited(world) == 0

    # sale-reserved, reservation-timed-out, reservation-cancelled
    assert await at_every_step(tmp_path, World.mall, story, judge) == 6


async def test_confirmed_and_not_sold_is_sold_by_the_next_process(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as first:
        await first.mall()
        state = await reserve(first)
        command = ConfirmSale(asked(first, 2, "confirm", PAID), PAID)
        await first.office.payments._submit(state.payment_id, command)
        assert await credited(first) == 0
    async with vending_world.world(path) as second:
        assert await second.office.complete() == 1
        assert await credited(second) == 100
        assert isinstance((await confirm(second)).event, CreditSold)


async def test_a_payment_that_cannot_be_sold_keeps_none_behind_it_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as first:
        await first.mall()
        stuck, other = [await reserve(first, n, 100, f"tx-{n}") for n in (1, 2)]
        for number, state in ((3, stuck), (4, other)):
            command = ConfirmSale(asked(first, number, "confirm"), state.transaction_id)
            await first.office.payments._submit(state.payment_id, command)
    async with vending_world.world(path) as second:
        sold = second.office.payments._sold

        async def failing(state: Payment) -> Outcome[Account]:
            if state.payment_id == stuck.payment_id:
                raise Bug("this one cannot be told")
            return await sold(state)

        with monkeypatch.context() as broken:
            broken.setattr(second.office.payments, "_sold", failing)
            assert await second.office.complete() == 1
        assert await credited(second) == 100
        assert await second.office.complete() == 1, "and is tried again"
        assert await credited(second) == 200
