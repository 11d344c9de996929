"""Goal: a book on PostgreSQL is the same book, and the service on it keeps its promises.

Method: the same commands on a SQLite file and on a database of the test's own, everything that is
stored compared; then the real service, killed, started again, and asked as a person would.
"""

import asyncio
import itertools
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any, TypeGuard
from uuid import UUID, uuid4

import asyncpg
import grpc.aio
import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from services.common.kernel import filters, names
from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.units import INT64_MAX
from services.common.runtime import topics
from services.vending.adapters import postgres_database, tables
from services.vending.adapters.api.documents import FILTER_FIELDS
from services.vending.adapters.api.payments import FILTER_FIELDS as PAYMENT_FIELDS
from services.vending.application.drafting import Draft
from services.vending.application.numbering import Numbering
from services.vending.application.stored import event_of
from services.vending.domain.approval import Approve, approval_id_of
from services.vending.domain.batch import Batch, Kind, Terms
from services.vending.domain.batching import BeginRound, CancelBatch, SubmitBatch, decide
from services.vending.domain.closing import LASTS_MS_DEFAULT, closing_id_of
from services.vending.domain.closings import CloseAccount, CloseMeters
from services.vending.domain.event_store import FROM_START, StoredEvent, StreamId
from services.vending.domain.events.event import Event
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.orders import DAY_MS
from services.vending.domain.payment import ConfirmSale, ReserveSale
from services.vending.domain.tables import Ask, Charged, Checkpoint, Link, Offset, Root
from services.vending.domain.tariff import PublishTariff
from services.vending.main import main
from tests.conftest import RunService
from tests.contract.databases import fresh_database
from tests.property.test_vending_ledger import Town
from tests.unit import vending_world
from tests.unit.vending_world import LEAD_MS, T0_MS, World, world_at
from tools.stack.background import BackgroundStack
from tools.stack.ports import free_ports
from wattvend.vending.v1 import vending_pb2 as pb
from wattvend.vending.v1 import vending_pb2_grpc

pytestmark = pytest.mark.stack

CALLER = (("wattvend-caller", "test"),)
OPEN_OR_NOT = (None, True, False)
DEADLINE_S = 20.0
SCHEMA = postgres_database.SCHEMA
OPENED = 60
LEDGER_EXAMPLES = 6
TILLS = 6
NANO_PER_SALE = 100 * 10_000_000
Dump = dict[str, list[tuple[object, ...]]]


@pytest.fixture
async def address(stack: BackgroundStack) -> AsyncIterator[str]:
    async with fresh_database(stack.postgres_dsn) as made:
        yield made


async def a_day(world: World) -> None:
    """Give commands of every kind that changes a table, and keep what is not an event."""
    await world.mall()
    await world.meter("M2", unit=2)
    await world.account("A2")
    await world.assign()
    await world.assign("M2", "A2")
    await world.sell(500)
    await world.release()
    await world.assign("M1", "A2", register_milli=3000)
    with pytest.raises(InvalidInput) as taken:
        await world.meter("M3", serial="serial-M1")
    assert taken.value.reason is Reason.SERIAL_TAKEN
    for days in (3, 2, 4):  # the second comes before the first, and takes its place
        await world.policy(alarm_1_minor=2_000 + days, effective_at_ms=T0_MS + days * DAY_MS)
    await batches(world)
    await proposals_and_payments(world)
    drafted = PublishTariff(world.ask(), "T9", "water", "CNY", "LE1", 5, None, 0, LEAD_MS)
    await world.office.documents.draft(drafted.request, drafted, "")
    await world.account("A3")
    await world.office.closings.begin(CloseAccount(world.ask("A3"), "A3"))
    await world.office.closings.begin(CloseMeters(world.ask(), "A2", ("M1",), True, 0, "is let"))
    kept = world.tables
    meter = await world.office.meter("M1")
    for sequence in (5, 3):
        await kept.keep_charged(
            [Charged(meter.meter_key, meter.epoch, sequence, sequence * 1000, 7)],
            [Offset("charges", 0, sequence), Offset("charges", 1, 9)],
        )
    for day in range(130):
        root = Root(day + 1, day + 1, bytes([day]) * 32)
        await kept.keep_checkpoint(Checkpoint(1, root, day * 3_600_000, "key", b"signed"))
    events = await world.store.read_all(FROM_START, 1000)
    await kept.keep_links(
        Link(e.position, e.stream, e.revision, e.id, e.type, e.data) for e in events
    )
    asks = await kept.asks(None, 10)
    await kept.keep_asks(
        Ask(ask.account_id, ask.account_key, n, f"ask-{n}") for n, ask in enumerate(asks)
    )
    await kept.keep_answer(asks[0].account_id, "ask-0", is_last=True)
    await kept.raise_book_epoch(4, await world.store.head())


async def batches(world: World) -> None:
    """Leave a batch that is finished, one with an open round, one cancelled, one a draft."""
    alone = '{"authority": null, "batch": null, "closing": null}'
    await world.may_alone(alone)
    terms = Terms(Kind.SALE, "subsidy", "cash")
    made = []
    for number in range(4):
        draft = Draft(world.ask(number), terms, "", (("A1", None), ("A2", None)), 100 + number)
        made.append((await world.office.batches.create(draft)).batch_id)
    for batch_id in made[:3]:
        await world.office.batches.submit(SubmitBatch(world.ask(batch_id), batch_id))
    await world.office.batches.move(CancelBatch(world.ask("no"), made[2], "wrong list"))
    assert await world.office.batches.turn()
    begin = BeginRound(world.ask("begin"), (0,))
    draft = Draft(world.ask("open"), terms, "", (("A1", None),), 7)
    open_id = (await world.office.batches.create(draft)).batch_id
    await world.office.batches.submit(SubmitBatch(world.ask(open_id), open_id))
    await world.book.submit(Batch, open_id, lambda state: decide(state, begin))


async def proposals_and_payments(world: World) -> None:
    """Leave one of each that waits, one that is carried out, and number the receipts."""
    await world.may_alone('{"closing": null}')
    for position in ("off", "off"):
        asked = world.ask(position)
        with pytest.raises(InvalidInput) as waits:
            await world.office.order(ForceRelay(asked, "M2", position, "works"))
        assert waits.value.reason is Reason.APPROVAL_REQUIRED
    yes = Approve(world.ask(caller="other"), approval_id_of(asked), "seen")
    await world.office.approvals.approve(yes)
    for number in ("paid", "waits"):
        reserve = ReserveSale(world.ask(number), number, "A2", 70, "qr", 0)
        await world.office.payments.reserve(reserve)
    await world.office.payments.confirm(ConfirmSale(world.ask("confirm"), "paid"))
    numbering = Numbering(world.store, world.tables)
    await numbering.catch_up(3)
    await numbering.catch_up(await world.store.head())


async def said(world: World) -> list[object]:
    """Return what the tables answer."""
    kept = world.tables
    meter = await world.office.meter("M1")
    events = await world.store.read_all(FROM_START, 1000)
    asks = await kept.asks(None, 10)
    return [
        await kept.todos(),
        await kept.todos("M1"),
        await kept.decided("approval"),
        await kept.overdue("approval", 2**60),
        await kept.waiting("approval", "", 0, 10),
        await kept.waiting("approval", "LE2", 0, 10),
        await kept.waiting("payment", "LE1", 0, 1),
        await kept.overdue("payment", 2**60),
        await kept.open_batches(0),
        await kept.open_batches(2**60),
        await kept.paused_batches(),
        await kept.undecided(),
        await kept.batches(0, 10),
        await kept.batches((await kept.batches(0, 10))[1].position, 1),
        await kept.numbered_until(),
        await kept.last_numbers(),
        [await kept.document(e.receipt_id) for e in map(event_of, events) if is_sale(e)],
        await kept.document("none"),
        asks,
        await kept.asks(asks[1], 2),
        await kept.asks_waiting(0),
        await kept.asked_last(0),
        await kept.asked_last(2**60),
        await kept.charged_register_milli(meter.meter_key, meter.epoch),
        await kept.charged_register_milli(meter.meter_key, 77),
        await kept.charged(meter.meter_key, meter.epoch),
        await kept.closings("", None, 0, 10),
        await kept.closings("A2", True, 0, 1),
        await kept.closings("A2", False, 0, 1),
        await kept.closing(closing_id_of("till", "none")),
        await kept.closings_open(T0_MS + LASTS_MS_DEFAULT),
        [id_ for _, id_ in await kept.documents(filters.All(()), T0_MS, 0, 10)],
        [
            await kept.documents(filters.parse(said, FILTER_FIELDS), T0_MS, 0, 10)
            for said in (
                "state = scheduled OR state = draft",
                "NOT kind = policy",
                "state != draft",
            )
        ],
        [
            [id_ for _, id_ in await kept.payments(*asked, INT64_MAX, 10)]
            for asked in (
                ("", filters.All(())),
                ("till", filters.parse("NOT status = reserved", PAYMENT_FIELDS)),
                ("nobody", filters.parse("account = accounts/A1", PAYMENT_FIELDS)),
            )
        ],
        await kept.batch_drafts("LE1"),
        [await kept.holds(is_transfer=False, is_open=is_, after=0, limit=9) for is_ in OPEN_OR_NOT],
        await kept.hold("none"),
        [await kept.openings(is_open=is_, after=0, limit=9) for is_ in OPEN_OR_NOT],
        await kept.opening("none"),
        await kept.scheduled_until(T0_MS + 3 * DAY_MS),
        await kept.scheduled_until(T0_MS + 4 * DAY_MS),
        await kept.offsets("charges"),
        await kept.book_epoch(),
        await kept.raised_at(),
        await kept.root_at(130),
        await kept.root_at(131),
        await kept.checkpoints(),
        await kept.linked_until(),
        await kept.links(3, 5),
        await kept.link_of(events[2].id),
        await kept.link_of(UUID(int=0)),
        events,
    ]


def is_sale(event: Event) -> TypeGuard[CreditSold]:
    return isinstance(event, CreditSold)


def dump_of_file(path: Path) -> Dump:
    with closing(sqlite3.connect(path)) as connection:
        names = [n for (n,) in connection.execute("SELECT name FROM sqlite_master")]
        return {
            name: sorted(connection.execute(f"SELECT * FROM {name}"), key=repr)
            for name in names
            if name in TABLES
        }


async def dump_of_database(address: str) -> Dump:
    connection = await asyncpg.connect(address)
    try:
        return {
            name: sorted(
                (tuple(row) for row in await connection.fetch(f"SELECT * FROM {SCHEMA}.{name}")),
                key=repr,
            )
            for name in TABLES
        }
    finally:
        await connection.close()


TABLES = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", tables.SCHEMA))


async def test_the_same_commands_leave_the_same_events_and_tables_as_in_a_file(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "events.sqlite"
    found: list[list[object]] = []
    for at in (f"sqlite:{path}", address):
        numbers = itertools.count(1)
        monkeypatch.setattr(vending_world, "uuid4", lambda numbers=numbers: UUID(int=next(numbers)))
        async with world_at(at) as world:
            await a_day(world)
            found.append(await said(world))
    assert found[0] == found[1]
    assert dump_of_file(path) == await dump_of_database(address)


async def test_of_accounts_that_open_together_those_whose_name_is_taken_fail_alone(
    address: str,
) -> None:
    async with world_at(address) as world:
        await world.mall()
        answers = await asyncio.gather(
            *(world.meter(f"N{n}", unit=n + 2, serial=f"s{n // 2}") for n in range(OPENED)),
            *(world.account(f"B{n}") for n in range(OPENED)),
            return_exceptions=True,
        )
        meters, accounts = answers[:OPENED], answers[OPENED:]
        refused = [answer for answer in meters if isinstance(answer, InvalidInput)]
        assert {answer.reason for answer in refused} == {Reason.SERIAL_TAKEN}
        assert len(refused) == OPENED // 2
        assert not [answer for answer in accounts if isinstance(answer, BaseException)]
        events: list[StoredEvent] = await world.store.read_all(FROM_START, 10_000)
        assert [event.position for event in events] == list(range(1, len(events) + 1))


async def test_a_book_moves_from_a_file_to_postgresql_and_back_and_is_the_same(
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, last = (tmp_path / f"{name}.sqlite" for name in ("first", "last"))
    async with world_at(f"sqlite:{first}") as world:
        await a_day(world)
    for source, target in ((f"sqlite:{first}", address), (address, f"sqlite:{last}")):
        monkeypatch.setenv("WATTVEND_VENDING_STORE", source)
        assert await asyncio.to_thread(main, ["copy-book", "--to", target]) == 0
    said = capsys.readouterr().out
    assert len(set(re.findall(r"^  ([0-9a-f]{64})  ", said, re.MULTILINE))) == 1
    assert said.count("The positions and the tables beside the events are the same too.") == 2
    assert dump_of_file(first) == await dump_of_database(address) == dump_of_file(last)
    assert ":".join(address.split(":")[2:]).partition("@")[0] not in said


# --- the service ----------------------------------------------------------------------------------


class Service:
    """A vending on a database of the test's own."""

    def __init__(self, stack: BackgroundStack, address: str) -> None:
        (self.port,) = free_ports(1)
        self.settings = {
            "KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
            "STORE": address,
            "GRPC_PORT": str(self.port),
            "CHECKPOINT_INTERVAL_MS": "100",
        }

    async def command(self, name: str) -> subprocess.CompletedProcess[str]:
        environment = {f"WATTVEND_VENDING_{key}": value for key, value in self.settings.items()}
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "services.vending", name],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
async def service(stack: BackgroundStack, address: str) -> Service:
    """Return a vending to be started, whose book has one of each."""
    await topics.create(stack.kafka_bootstrap)
    made = Service(stack, address)
    raised = await made.command("raise-book-epoch")  # the cluster remembers the books of others
    assert raised.returncode == 0, raised.stderr
    async with world_at(address) as world:
        await world.mall()
        for till in range(TILLS):
            await world.account(f"T{till}")
    return made


async def sold(stub: Any, account_id: str, request_id: str) -> Any:
    request = pb.SellRequest(
        request_id=request_id, name=names.ACCOUNT.name(account_id), amount_minor=100, method="cash"
    )
    return await stub.Sell(request, metadata=CALLER, timeout=DEADLINE_S)


async def test_the_service_answers_a_sale_again_after_a_kill_and_its_commands_know_the_store(
    stack: BackgroundStack, run_service: RunService, service: Service
) -> None:
    running = await asyncio.to_thread(run_service, "vending", service.settings)
    request_id = str(uuid4())
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        stub = vending_pb2_grpc.VendingServiceStub(channel)
        first = await sold(stub, "A1", request_id)
        second = await service.command("raise-book-epoch")
        assert second.returncode != 0
        assert "is in use by wattvend-vending" in second.stderr
        beside = await service.command("verify")
        assert beside.returncode == 0, beside.stderr
        await asyncio.to_thread(running.kill9)
        await asyncio.to_thread(running.start)
        assert await sold(stub, "A1", request_id) == first
    password = service.settings["STORE"].split(":")[2].partition("@")[0]
    logs = (path.read_text() for path in stack.logs.glob("vending*"))
    for text in (beside.stdout, second.stderr, *logs):
        assert password not in text


async def till(stub: Any, account_id: str, receipts: list[Any], enough: asyncio.Event) -> None:
    """Sell until it is enough; what was not answered is sent again until it is."""
    while not enough.is_set():
        request_id = str(uuid4())
        while True:
            try:
                receipts.append(await sold(stub, account_id, request_id))
                break
            except grpc.aio.AioRpcError as refused:
                if refused.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


async def test_a_postgresql_that_is_killed_under_sales_loses_none_and_doubles_none(
    stack: BackgroundStack, run_service: RunService, service: Service, address: str
) -> None:
    running = await asyncio.to_thread(run_service, "vending", service.settings)
    pid = running.pid
    receipts: list[list[Any]] = [[] for _ in range(TILLS)]
    enough = asyncio.Event()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{service.port}") as channel:
        stub = vending_pb2_grpc.VendingServiceStub(channel)
        selling = [
            asyncio.create_task(till(stub, f"T{n}", receipts[n], enough)) for n in range(TILLS)
        ]
        for kill in range(1, 3):
            async with asyncio.timeout(DEADLINE_S):
                while min(map(len, receipts)) < kill * 20:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(stack.kill9, "postgres")
            await asyncio.sleep(0.5)
            await asyncio.to_thread(stack.start, "postgres")
        async with asyncio.timeout(DEADLINE_S):
            while min(map(len, receipts)) < 60:
                await asyncio.sleep(0.01)
            enough.set()
            await asyncio.gather(*selling)
    assert running.pid == pid, "it went on by itself"
    await asyncio.to_thread(running.stop)
    async with world_at(address) as world:
        for number, of_till in enumerate(receipts):
            events = await world.store.read(StreamId(f"account-T{number}"))
            sales = [event for event in events if event.type == "credit-sold"]
            assert len(sales) == len(of_till)
            assert len({sale.version.revision for sale in of_till}) == len(of_till)
            last = max(of_till, key=lambda sale: sale.version.revision)
            assert last.credited_nano == len(of_till) * NANO_PER_SALE


def test_sellers_cashiers_and_approvers_find_the_ledger_of_the_clerk_on_postgresql(
    stack: BackgroundStack,
) -> None:
    """The machine of tests/property/test_vending_ledger.py, a database each time."""

    class OnPostgreSQL(Town):
        def __init__(self) -> None:
            super().__init__()
            self.made = fresh_database(stack.postgres_dsn)
            self.address = self.run(self.made.__aenter__())

        def opened(self) -> AbstractAsyncContextManager[World]:
            return world_at(self.address)

        def teardown(self) -> None:
            self.run(self.stack.aclose())
            self.run(self.made.__aexit__(None, None, None))
            self.loop.close()
            self.folder.cleanup()

    played = settings(max_examples=LEDGER_EXAMPLES, stateful_step_count=30, deadline=None)
    run_state_machine_as_test(OnPostgreSQL, settings=played)
