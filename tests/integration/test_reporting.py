"""Goal: what stands in the log stands in PostgreSQL, once, whatever dies or is rebuilt meanwhile.

Method: a true story of an account (tests/unit/reporting_records.py) sent to the real Kafka; the
real service reads it and is asked over gRPC; tables are compared whole, ordered by their keys.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from services.common.kernel import filters, names
from services.common.runtime import kafka, postgres, topics
from services.common.runtime.clock import SystemClock
from services.common.runtime.http import Health
from services.reporting.adapters import database, lists, log, queries
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.database import Place, Writer
from services.reporting.adapters.exports.store import schema_of
from services.reporting.adapters.metrics import Metrics
from services.reporting.adapters.projector import WRITER, Projector, Source
from services.reporting.adapters.rebuild import REBUILD
from services.reporting.domain.explain import credits_of
from services.reporting.domain.rows import TABLES, ChargeRow, Json, LedgerRow, Row, Table, newest
from services.reporting.errors import Moved
from tests.conftest import RunService
from tests.unit.reporting_records import (
    CREDIT_NANO,
    CUT_OFFSET,
    PRICE_MICRO,
    T0,
    TOP_UP_NANO,
    Sent,
    Story,
    consumed,
    record_of,
)
from tools.stack.background import BackgroundStack, RunningService
from tools.stack.errors import StackError
from tools.stack.ports import free_ports
from wattvend.reporting.v1 import previews_pb2, previews_pb2_grpc, reporting_pb2_grpc
from wattvend.reporting.v1 import reporting_pb2 as pb

pytestmark = pytest.mark.stack

DEADLINE_S = 20.0
CALLER = (("wattvend-caller", "test"),)
Dump = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(scope="module", autouse=True)
def all_topics(stack: BackgroundStack) -> None:
    asyncio.run(topics.create(stack.kafka_bootstrap))


@pytest.fixture
def story() -> Story:
    return Story(uuid4().hex[:10])


@pytest.fixture
def schema(stack: BackgroundStack) -> Iterator[str]:
    """Yield the name of a schema of this test's own, gone afterwards."""
    name = f"reporting_{uuid4().hex[:10]}"

    async def drop() -> None:
        async with connected(stack, name) as connection:
            for each in (name, schema_of(name)):
                await connection.execute(f'DROP SCHEMA IF EXISTS "{each}" CASCADE')

    yield name
    asyncio.run(drop())


def connected(stack: BackgroundStack, schema: str) -> Any:
    return database.connected(stack.postgres_dsn, schema, name="test")


@asynccontextmanager
async def migrated(stack: BackgroundStack, schema: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(stack, schema) as connection:
        await database.migrate(connection, schema)
        yield connection


class Reporting:
    """The running service of a test, and a client of it."""

    def __init__(self, process: RunningService, http_port: int, grpc_port: int) -> None:
        self.process = process
        self.http_port = http_port
        self.address = f"127.0.0.1:{grpc_port}"

    async def ask(self, method: str, request: Any, of: Any = None) -> Any:
        async with grpc.aio.insecure_channel(self.address) as channel:
            stub = (of or reporting_pb2_grpc.ReportingServiceStub)(channel)
            return await getattr(stub, method)(request, metadata=CALLER, timeout=DEADLINE_S)


Start = Callable[..., Reporting]


@pytest.fixture
def start(stack: BackgroundStack, schema: str, run_service: RunService) -> Start:
    def run(name: str = "reporting", **more: str) -> Reporting:
        http_port, grpc_port = free_ports(2)
        process = run_service(
            "reporting",
            {
                **environment(stack, schema),
                "HTTP_PORT": str(http_port),
                "GRPC_PORT": str(grpc_port),
                **more,
            },
            name=f"{name}-{schema[-6:]}",
        )
        return Reporting(process, http_port, grpc_port)

    return run


def environment(stack: BackgroundStack, schema: str) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
        "POSTGRES_DSN": stack.postgres_dsn,
        "POSTGRES_SCHEMA": schema,
    }


async def rebuild(
    stack: BackgroundStack, schema: str, *options: str
) -> subprocess.CompletedProcess[str]:
    settings = {
        f"WATTVEND_REPORTING_{name}": value for name, value in environment(stack, schema).items()
    }
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "services.reporting", "rebuild", *options],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def publish(stack: BackgroundStack, sent: Iterable[Sent]) -> None:
    producer = kafka.producer(stack.kafka_bootstrap, client_id="test")
    await producer.start()
    try:
        futures = [
            await producer.send(
                one.topic,
                one.payload(),
                key=one.key.encode(),
                partition=one.partition,
                headers=one.headers(),
            )
            for one in sent
        ]
        await asyncio.gather(*futures)
    finally:
        await producer.stop()


async def dump(stack: BackgroundStack, schema: str) -> Dump:
    async with connected(stack, schema) as connection:
        names = ["positions", *(table.name for table in TABLES.values())]
        return {
            name: sorted(map(tuple, await connection.fetch(f"SELECT * FROM {name}")), key=repr)
            for name in names
        }


async def eventually(what: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true answer; fail with the last one after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := await what()):
        assert time.monotonic() < deadline, f"still {answer!r} after {DEADLINE_S} s"
        await asyncio.sleep(0.02)
    return answer


async def everything_is_read(stack: BackgroundStack, schema: str) -> None:
    """Wait until the stored positions are the ends of the log."""
    async with log.reading(
        stack.kafka_bootstrap, client_id="test", skip=frozenset(), records_max=1
    ) as reader:
        ends = await reader.ends()

    async def reached() -> bool:
        async with connected(stack, schema) as connection:
            held = await database.positions(connection)
            return all(held[place].next_offset == end for place, end in ends.items())

    await eventually(reached)


async def refusal(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call
    status = rpc_status.from_call(error.value)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return error.value.code(), info.reason


# --- tables -------------------------------------------------------------------------------------


async def test_tables_are_what_the_row_types_say_and_tell_their_source(
    stack: BackgroundStack, schema: str
) -> None:
    async with migrated(stack, schema) as connection:
        for table in TABLES.values():
            columns = await connection.fetch(
                "SELECT column_name FROM information_schema.columns "
                "WHERE table_schema = $1 AND table_name = $2 ORDER BY ordinal_position",
                schema,
                table.name,
            )
            assert tuple(column[0] for column in columns) == table.columns, table.name
            comment = await connection.fetchval("SELECT obj_description($1::regclass)", table.name)
            assert "Source: " in comment, table.name


async def test_migrating_twice_changes_nothing_and_a_newer_layout_is_left_alone(
    stack: BackgroundStack, schema: str
) -> None:
    async with migrated(stack, schema) as connection:
        await database.migrate(connection, schema)
        await connection.execute("INSERT INTO migrations (number) VALUES (999)")
        with pytest.raises(Exception, match="a newer reporting wrote it"):
            await database.migrate(connection, schema)


def batch_of_story(story: Story) -> log.Batch:
    at = dict.fromkeys(log.places(), 0)
    return log.batch_of(consumed(story.all()), at, frozenset())


def dying(dies_at: Table) -> Callable[[Table], str]:
    """Return `database.upsert`, but for one table it raises."""
    honest = database.upsert
    return lambda table: honest(table) if table is not dies_at else str(1 // 0)


async def test_a_batch_that_fails_between_rows_and_commit_leaves_nothing_behind(
    stack: BackgroundStack, schema: str, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of_story(story)
    async with migrated(stack, schema) as connection:
        await database.begin(connection, dict.fromkeys(log.places(), 0))
        writer = await Writer.opened(connection)
        untouched = await dump(stack, schema)
        for dies_at in TABLES.values():
            with monkeypatch.context() as patch:
                patch.setattr(database, "upsert", dying(dies_at))
                with pytest.raises(ZeroDivisionError):
                    await writer.write(batch.rows, batch.advanced)
            assert await dump(stack, schema) == untouched, dies_at.name
        await writer.write(batch.rows, batch.advanced)
        written = await dump(stack, schema)
        assert len(written["charges"]) == 3
        with pytest.raises(Moved):
            await writer.write(batch.rows, batch.advanced)
        assert await dump(stack, schema) == written


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_the_database_keeps_what_the_rule_keeps_in_any_order_of_transactions(
    stack: BackgroundStack, schema: str, story: Story, seed: int
) -> None:
    batch = batch_of_story(story)
    shuffled = [*batch.rows, *batch.rows]
    random.Random(seed).shuffle(shuffled)
    dumps = []
    for transactions in ([batch.rows], [[row] for row in shuffled]):
        async with migrated(stack, schema) as connection:
            place = Place("alarms", 0)
            await database.begin(connection, {place: 0})
            writer = await Writer.opened(connection)
            for at, rows in enumerate(transactions):
                await writer.write(rows, {place: (at, at + 1)})
            dumps.append({**await dump(stack, schema), "positions": []})
            await connection.execute(f'DROP SCHEMA "{schema}" CASCADE')
    assert dumps[0] == dumps[1]


async def test_whoever_wrote_other_tables_writes_no_more_after_a_swap(
    stack: BackgroundStack, schema: str, story: Story
) -> None:
    batch = batch_of_story(story)
    async with migrated(stack, schema) as connection:
        await database.begin(connection, dict.fromkeys(log.places(), 0))
        writer = await Writer.opened(connection)
        async with connected(stack, schema) as other:
            await other.execute(f'DROP SCHEMA "{schema}" CASCADE')
            await database.migrate(other, schema)
            await database.begin(other, dict.fromkeys(log.places(), 0))
        with pytest.raises(Moved):
            await writer.check()
        with pytest.raises(Moved):
            await writer.write(batch.rows, batch.advanced)
        fresh = await Writer.opened(connection)
        await fresh.write(batch.rows, batch.advanced)


async def test_an_exception_stays_until_something_ends_it(
    stack: BackgroundStack, schema: str, story: Story
) -> None:
    """Let alarms come as metering tells them; ask after each which of them are still so."""
    reading, other = str(uuid4()), str(uuid4())
    held: dict[str, Any] = {"threshold": None, "meter_id": story.meter, "to_reading_id": reading}
    negative = {**held, "reason": "negative", "register_milli": 7, "bound_milli": 3}
    told: list[tuple[Sent, set[str]]] = [
        (story.registry()[2], set()),
        (story.registry()[3], set()),
        (story.alarm("reading-held", 120, **negative), {"negative"}),
        (story.alarm("meter-cleared", 121, **held, reason="absurd"), {"negative"}),
        (story.alarm("hold-resolved", 122, **{**held, "to_reading_id": other}), {"negative"}),
        (story.alarm("hold-resolved", 123, **held), set()),
        (story.alarm("meter-flagged", 124, **held, reason="reverse"), {"reverse"}),
        # One record: the flag goes down and up again.
        (story.alarm("meter-cleared", 125, **held, reason="reverse", account_sequence=8), set()),
        (
            story.alarm("meter-flagged", 125, **held, reason="reverse", account_sequence=9),
            {"reverse"},
        ),
        (story.alarm("not-cut", 126, threshold=0, reason="grace"), {"reverse", "grace"}),
        (
            story.alarm("not-cut", 127, threshold=0, reason="evidence-old"),
            {"reverse", "evidence-old"},
        ),
        (story.alarm("cut", 128, threshold=0), {"reverse"}),
        (story.alarm("fact-late", 129, threshold=0, reason="late"), {"reverse", "late"}),
    ]
    async with migrated(stack, schema) as connection:
        for sent, still in told:
            await put(connection, log.rows_of(record_of(sent, 0)))
            found = await connection.fetch("SELECT * FROM exceptions")
            assert {line["reason"] for line in found if line["ended_at_ms"] is None} == still, sent
    async with queries.pool(stack.postgres_dsn, schema, name="test", size_max=1) as connections:
        asked = queries.Queries(connections)
        everything = filters.All(
            (
                filters.Match("site", "=", story.site),
                filters.Match("account", "=", story.account),
            )
        )
        cut = await asked.cut(story.account, None)
        assert cut is not None
        assert [each.reason for each in await asked.refusals(cut)] == ["grace", "evidence-old"]
        newest_first = await lists.exceptions(asked, everything, None, 2, ended=True)
        assert [line["reason"] for line in newest_first] == ["late", "evidence-old"]
        after = (newest_first[0]["since_ms"], newest_first[0]["exception_id"])
        of_meter = filters.All((everything, filters.Match("meter", "=", story.meter)))
        (reverse,) = await lists.exceptions(asked, of_meter, after, 9, ended=False)
        assert (reverse["kind"], reverse["ended_by"]) == ("meter-flagged", None)
        charge, *_ = log.rows_of(record_of(story.charge(3), 0))
        assert isinstance(charge, ChargeRow)
        async with connected(stack, schema) as connection:
            closing = charge._replace(kind="closing", log_offset=130)
            await put(connection, [closing])
        (reverse,) = await lists.exceptions(asked, of_meter, after, 1, ended=True)
        assert (reverse["ended_by"], reverse["ended_at_ms"]) == ("meter-left", closing.to_time_ms)


async def test_what_the_ledger_tells_of_a_meter_holds_for_its_epochs(
    stack: BackgroundStack, schema: str, story: Story
) -> None:
    """Ask for the highest register of an epoch, and when the meter came to an account."""
    told = [
        ("meter-registered", {"register_max_milli": 999}),
        ("meter-assigned", {"epoch": 2}),
        ("meter-replaced", {"epoch": 3, "register_max_milli": None}),
    ]
    rows: list[Row] = [*log.rows_of(record_of(story.meter_fact(), 0))]
    for revision, (kind, data) in enumerate(told):
        event = uuid4(), kind, Json(json.dumps(data)), T0 + revision, "test", "request"
        rows.append(LedgerRow(f"meter-{story.meter}", 0, revision, revision, *event))
    charge, *_ = log.rows_of(record_of(story.charge(1), 0))
    assert isinstance(charge, ChargeRow)
    rows += [charge, charge._replace(epoch=3)]
    async with migrated(stack, schema) as connection:
        await put(connection, rows)
    async with queries.pool(stack.postgres_dsn, schema, name="test", size_max=1) as connections:
        asked = queries.Queries(connections)
        most = [await asked.register_max_milli(story.meter, epoch) for epoch in (1, 2, 3)]
        assert most == [999, 999, None]
        stays = await asked.stays(story.account_key)
        assert stays == {(story.meter_key, epoch): (2, T0 + 1) for epoch in (2, 3)}
        assert await asked.lived_ms(story.account) == (0, 0)


async def test_what_an_account_owes_is_what_the_standing_events_of_its_book_say(
    stack: BackgroundStack, schema: str, story: Story
) -> None:
    granted = {"account_id": story.account, "amount_minor": 300, "policy_version": 2}
    told: list[tuple[tuple[int, int], str, dict[str, Any], tuple[int, int, int]]] = [
        ((0, 1), "debt-set", {"debt_minor": 5_000, "share_ppm": 200_000}, (0, 5_000, 200_000)),
        ((0, 2), "emergency-granted", granted, (300, 5_000, 200_000)),
        (
            (0, 3),
            "credit-sold",
            {"emergency_left_minor": 0, "debt_left_minor": 4_800},
            (0, 4_800, 200_000),
        ),
        (
            (0, 4),
            "sale-reversed",
            {
                "account_id": story.account,
                "amount_minor": 1_000,
                "emergency_left_minor": 300,
                "debt_left_minor": 5_000,
            },
            (300, 5_000, 200_000),
        ),
        (
            (0, 5),
            "owed-written-off",
            {"amount_minor": 300, "emergency_left_minor": 0, "debt_left_minor": 5_000},
            (0, 5_000, 200_000),
        ),
        ((0, 6), "debt-set", {"debt_minor": 0, "share_ppm": 0}, (0, 0, 0)),
        ((0, 7), "account-settled", {"due_minor": 70, "debt_left_minor": 70}, (0, 70, 10**6)),
        # The store was restored to revision 2: what it had told beyond is forgotten.
        ((1, 3), "power-kept", {}, (300, 5_000, 200_000)),
        ((1, 4), "credit-sold", {"emergency_left_minor": None}, (0, 0, 200_000)),
    ]
    async with migrated(stack, schema) as connection:
        for sent in story.registry():
            await put(connection, log.rows_of(record_of(sent, 0)))
        for (book_epoch, revision), kind, data, owed in told:
            event = uuid4(), kind, Json(json.dumps(data)), T0, "test", "request"
            stream = f"account-{story.account}"
            await put(connection, [LedgerRow(stream, book_epoch, revision, revision, *event)])
            (line,) = await connection.fetch("SELECT * FROM account_debts")
            assert tuple(line)[3:] == owed, kind
            if kind == "sale-reversed":
                (corrected,) = await connection.fetch("SELECT * FROM corrections")
                assert (corrected["kind"], corrected["amount_minor"]) == (kind, 1_000)
            if kind == "account-settled":
                (settled,) = await connection.fetch("SELECT * FROM settlements")
                assert (settled["due_minor"], settled["debt_left_minor"]) == (70, 70)
            assert (line["account_id"], line["site_id"]) == (story.account, story.site)
        (grant,) = await connection.fetch("SELECT * FROM grants")
        assert (grant["amount_minor"], grant["policy_version"]) == (300, 2)


async def test_the_credit_of_an_account_is_what_its_book_added_and_took(
    stack: BackgroundStack, schema: str, story: Story
) -> None:
    told = [
        ("credit-sold", 100),
        ("usage-posted", 40),  # what metering knew of it: not the book's
        ("sale-reversed", 0),
        ("credit-adjusted", 30),
        ("refund-held", None),
        ("credit-refunded", 5),
    ]
    rows = [
        LedgerRow(
            f"account-{story.account}", 0, revision, revision, uuid4(), kind,
            Json(json.dumps({"credited_nano": nano})), T0, "test", "request",
        )
        for revision, (kind, nano) in enumerate(told)
    ]  # fmt: skip
    async with migrated(stack, schema) as connection:
        await put(connection, rows)
    async with queries.pool(stack.postgres_dsn, schema, name="test", size_max=1) as connections:
        asked = queries.Queries(connections)
        events = await asked.book_events(f"account-{story.account}")
    added = [(each.event.type, each.added_nano) for each in credits_of(events, (0, 99))]
    assert added == [
        ("credit-sold", 100),
        ("sale-reversed", -100),
        ("credit-adjusted", 30),
        ("credit-refunded", -25),
    ]


async def test_what_an_account_was_under_and_whose_and_what_it_gave_stands_in_views(
    stack: BackgroundStack, schema: str, story: Story
) -> None:
    told: list[tuple[str, dict[str, Any]]] = [
        ("account-opened", {"tariff_id": "T1", "policy_id": "P1", "subject_id": None}),
        ("account-terms-changed", {"tariff_id": "T2", "policy_id": "P1", "reason": "night"}),
        ("account-tenant-changed", {"subject_id": "tenant-7", "reason": "let anew"}),
        ("credit-transferred", {"to_account_id": "A2", "amount_minor": 40, "hold_id": "h"}),
        ("transfer-returned", {"to_account_id": "A2", "amount_minor": 40, "hold_id": "h"}),
    ]
    rows = [
        LedgerRow(
            f"account-{story.account}", 0, revision, revision, uuid4(), kind,
            Json(json.dumps({"account_id": story.account} | data)), T0 + revision, "test", "r",
        )
        for revision, (kind, data) in enumerate(told)
    ]  # fmt: skip
    async with migrated(stack, schema) as connection:
        await put(connection, rows)
        terms = await connection.fetch("SELECT * FROM account_terms ORDER BY since_ms")
        tenants = await connection.fetch("SELECT * FROM account_tenants ORDER BY since_ms")
        moved = await connection.fetch("SELECT * FROM transfers ORDER BY moved_at_ms")
    assert [(each["tariff_id"], each["since_ms"], each["until_ms"]) for each in terms] == [
        ("T1", T0, T0 + 1),
        ("T2", T0 + 1, None),
    ]
    assert [(each["subject_id"], each["until_ms"]) for each in tenants] == [
        (None, T0 + 2),
        ("tenant-7", None),
    ]
    assert [(each["kind"], each["other_account_id"], each["amount_minor"]) for each in moved] == [
        ("credit-transferred", "A2", 40),
        ("transfer-returned", "A2", 40),
    ]


async def put(connection: asyncpg.Connection, rows: Iterable[Row]) -> None:
    for table, standing in newest(rows).items():
        columns = (list(column) for column in zip(*standing, strict=True))
        await connection.execute(database.upsert(table), *columns)


async def test_a_lock_names_who_holds_it(stack: BackgroundStack, schema: str) -> None:
    async with connected(stack, schema) as first, connected(stack, schema) as second:
        assert await postgres.try_lock(first, "writer", schema)
        assert not await postgres.try_lock(second, "writer", schema)
        assert await postgres.try_lock(second, "writer", "another_schema")
        assert "test (PostgreSQL backend" in await postgres.lock_holder(second, "writer", schema)


# --- the service --------------------------------------------------------------------------------


async def test_the_story_can_be_asked_for_and_every_figure_computed_again(
    stack: BackgroundStack, start: Start, story: Story
) -> None:
    reporting = start()
    waiting = asyncio.create_task(
        reporting.ask(
            "GetBalance",
            pb.GetBalanceRequest(name=names.BALANCE.name(story.account), min_revision=2),
        )
    )
    await publish(stack, story.all())
    balance = await waiting
    assert (balance.credited_nano, balance.level) == (CREDIT_NANO + TOP_UP_NANO, "normal")
    assert balance.available_nano == balance.credited_nano - balance.charged_nano
    assert (balance.account_sequence, balance.minor_decimals) == (5, 2)

    async def cut_is_confirmed() -> Any:
        found = await reporting.ask(
            "ExplainCutoff", pb.ExplainCutoffRequest(account=names.ACCOUNT.name(story.account))
        )
        steps = [step.result for intent in found.intents for step in intent.attempts]
        return found if steps == ["sent", "acknowledged", "confirmed"] else None

    # Before the cut is in the tables there is nothing to explain.
    async def cut_is_known() -> bool:
        request = pb.ListAlarmsRequest(filter=f"account = accounts/{story.account}")
        return len((await reporting.ask("ListAlarms", request)).alarms) == 2

    await eventually(cut_is_known)
    why = await eventually(cut_is_confirmed)
    assert_recomputable(story, why)
    await assert_explained(reporting, story, why)
    await assert_previewed(reporting, story)
    await assert_lists(reporting, story)
    await assert_who_is_affected(stack, reporting, story)


def assert_recomputable(story: Story, why: Any) -> None:
    charge = why.charge
    delivered = charge.to_reading.register_milli - charge.from_reading.register_milli
    assert delivered * charge.ratio == charge.energy_milli == 10_000
    assert charge.energy_milli * why.tariff.price_micro == charge.amount_nano
    assert (why.tariff.price_micro, charge.price_micro) == (PRICE_MICRO, PRICE_MICRO)
    left = charge.account_credited_total_nano - charge.account_charged_total_nano
    assert left == why.available_nano == why.decision.available_nano
    assert left <= why.threshold_nano == -why.policy.overdraft_nano
    assert charge.to_reading.reading_id == str(story.reading(3))
    assert charge.from_reading.received_at_ms == T0 + 2_100
    (intent,) = why.intents
    assert (intent.meter, intent.version_offset, intent.cause) == (
        names.METER.name(story.meter),
        CUT_OFFSET,
        "arrears",
    )
    read_back = intent.attempts[-1]
    assert read_back.read_back_position == intent.wanted == "open"
    assert read_back.read_back_began_at_ms > read_back.completed_at_ms


async def assert_explained(reporting: Reporting, story: Story, why: Any) -> None:
    """Ask for a charge and a balance: the same rows explain them as the cut."""
    newest = await reporting.ask(
        "ExplainCharge", pb.ExplainChargeRequest(meter=names.METER.name(story.meter))
    )
    assert (newest.charge, list(newest.tariffs)) == (why.charge, list(why.tariffs))
    assert (newest.charge.account, newest.charge.kind) == (
        names.ACCOUNT.name(story.account),
        "usage",
    )
    assert newest.policy == why.policy
    first = await reporting.ask(
        "ExplainCharge",
        pb.ExplainChargeRequest(meter=names.METER.name(story.meter), epoch=2, sequence=1),
    )
    assert [(line.rate, line.version) for line in first.charge.lines] == [("flat", 1)]
    request = pb.ExplainBalanceRequest(account=names.ACCOUNT.name(story.account))
    balance = await reporting.ask("ExplainBalance", request)
    assert [credit.added_nano for credit in balance.credits] == [CREDIT_NANO, TOP_UP_NANO]
    assert all(credit.receipt for credit in balance.credits)
    (span,) = balance.charged
    assert (span.first_sequence, span.last_sequence, span.charges) == (1, 3, 3)
    assert span.amount_nano == balance.charged_nano
    assert balance.credited_nano - balance.charged_nano == balance.available_nano
    request.account_sequence = 3
    before = await reporting.ask("ExplainBalance", request)
    assert (before.account_sequence, before.charged_nano) == (3, 2_500 * PRICE_MICRO)
    assert [credit.revision for credit in before.credits] == [1]


async def assert_previewed(reporting: Reporting, story: Story) -> None:
    """Ask what the story's energy would have cost: at its own price, and up a ladder."""
    period: dict[str, Any] = {"from_ms": T0 + 1_000, "to_ms": T0 + 3_001}
    mine: dict[str, Any] = {
        "accounts": [names.ACCOUNT.name(story.account)],
        "site": names.SITE.name(story.site),
        "tariff": names.TARIFF.name(story.tariff),
    }
    same = await reporting.ask(
        "PreviewTariff", pb.PreviewTariffRequest(price_micro=PRICE_MICRO, **period, **mine)
    )
    (line,) = same.accounts
    assert line.charged_nano == line.draft_nano == str(12_500 * PRICE_MICRO)
    assert (line.account, line.energy_milli, same.charges) == (
        names.ACCOUNT.name(story.account),
        "12500",
        3,
    )
    ladder: dict[str, Any] = {"period": "month", "steps": [{"above_milli": 10_000, "add_micro": 7}]}
    plan = json.dumps({"zone": "Asia/Shanghai", "rates_micro": {"flat": 10}, "ladder": ladder})
    period["from_ms"] += 1
    dearer = await reporting.ask(
        "PreviewTariff",
        pb.PreviewTariffRequest(plan=plan, **period, site=names.SITE.name(story.site)),
    )
    # The first 1 000 are not asked for, but they have climbed.
    assert (dearer.total.rate_nano, dearer.total.ladder_nano) == ("115000", str(2_500 * 7))
    ladder["scope"] = "meter"
    plan = json.dumps({"zone": "Asia/Shanghai", "rates_micro": {"flat": 10}, "ladder": ladder})
    by_meter = await reporting.ask(
        "PreviewTariff",
        pb.PreviewTariffRequest(plan=plan, **period, tariff=names.TARIFF.name(story.tariff)),
    )
    assert by_meter == dearer
    fees = [{"name": "stand", "period": "month", "amount_micro": 9}]
    plan = json.dumps({"zone": "Asia/Shanghai", "rates_micro": {"flat": 10}, "fees": fees})
    period["from_ms"] -= 40 * 86_400_000
    with_fee = await reporting.ask(
        "PreviewTariff",
        pb.PreviewTariffRequest(plan=plan, **period, site=names.SITE.name(story.site)),
    )
    assert with_fee.total.fee_nano == str(9_000)  # of January: when it was opened is not told
    assert with_fee.total.draft_nano == str(125_000 + 9_000)


async def assert_who_is_affected(
    stack: BackgroundStack, reporting: Reporting, story: Story
) -> None:
    """Ask who another policy moves, and what a version that began too late comes to."""
    previews = previews_pb2_grpc.PreviewServiceStub
    policy = previews_pb2.PreviewPolicyRequest(
        policy=f"policies/{story.policy}",
        alarm_1_minor=10**6,
        alarm_2_minor=10**6,
        overdraft_minor=0,
        restore_minor=1,
        rules='{"grace_minutes":5}',
    )
    warned = await reporting.ask("PreviewPolicy", policy, previews)
    (state,) = warned.accounts
    assert (warned.accounts_count, state.account) == (1, f"accounts/{story.account}")
    assert (state.level_now, state.level_then, state.due_then) == ("normal", "alarm-2", False)
    assert list(warned.also_asked) == ["grace", "qualities"]
    policy.alarm_1_minor = policy.alarm_2_minor = 0
    assert list((await reporting.ask("PreviewPolicy", policy, previews)).accounts) == []

    await publish(stack, [story.tariff_published(2, PRICE_MICRO + 100_000, T0 + 2_500)])
    run = previews_pb2.PreviewAdjustmentRequest(
        tariff=f"tariffs/{story.tariff}", version=2, from_ms=T0 + 1_500, site=f"sites/{story.site}"
    )

    async def told() -> Any:
        try:
            return await reporting.ask("PreviewAdjustment", run, previews)
        except grpc.aio.AioRpcError:
            return None  # the version is not read yet

    comes_to = await eventually(told)
    (line,) = comes_to.accounts
    # Half of 1.5 and half of 10 kWh lie between the two instants.
    assert (line.energy_milli, line.charged_nano) == ("5750", str(5_750 * PRICE_MICRO))
    assert int(line.would_nano) - int(line.charged_nano) == 5_750 * 100_000
    assert (line.amount_minor, line.left_out) == (-57, "")
    assert (comes_to.credit_minor, comes_to.debit_minor) == (0, 57)
    await publish(stack, [story.tariff_published(3, PRICE_MICRO, T0 + 3_500)])
    run.version, run.from_ms = 3, T0 + 2_500
    (unread,) = (await eventually(told)).accounts
    assert (unread.energy_milli, unread.left_out) == ("5000", "not-read")
    run.version = 2
    code, reason = await refusal(reporting.ask("PreviewAdjustment", run, previews))
    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def all_pages(reporting: Reporting, method: str, request: Any) -> list[Any]:
    pages = [await reporting.ask(method, request)]
    while pages[-1].next_page_token:
        request.page_token = pages[-1].next_page_token
        pages.append(await reporting.ask(method, request))
    return pages


async def assert_lists(reporting: Reporting, story: Story) -> None:
    requests = [
        pb.GetConsumptionRequest(
            account=names.ACCOUNT.name(story.account), from_ms=T0, to_ms=T0 + 3_000
        ),
        pb.GetConsumptionRequest(meter=names.METER.name(story.meter), from_ms=T0, to_ms=T0 + 3_000),
    ]
    by_account, by_meter = [await reporting.ask("GetConsumption", one) for one in requests]
    assert by_account == by_meter
    assert (by_account.energy_milli, by_account.amount_nano) == (2_500, 2_500 * PRICE_MICRO)
    (line,) = by_account.meters
    assert (line.meter, line.account) == (
        names.METER.name(story.meter),
        names.ACCOUNT.name(story.account),
    )
    assert (line.from_register_milli, line.to_register_milli, line.charges) == (0, 2_500, 2)
    assert (line.first_ms, line.last_ms) == (T0 + 1_000, T0 + 2_000)

    of_site = f"site = {names.SITE.name(story.site)}"
    pages = await all_pages(
        reporting, "ListAlarms", pb.ListAlarmsRequest(filter=of_site, page_size=1)
    )
    assert [[alarm.kind for alarm in page.alarms] for page in pages] == [["restored"], ["cut"]]

    meters = await reporting.ask("ListMeters", pb.ListMetersRequest(filter=of_site))
    (meter,) = meters.meters
    assert (meter.status, meter.wanted, meter.reported) == ("online", "closed", "closed")
    assert (meter.register_milli, meter.level, meter.account) == (
        12_500,
        "normal",
        names.ACCOUNT.name(story.account),
    )
    lost = await reporting.ask("ListLostMeters", pb.ListLostMetersRequest(filter=of_site))
    assert [device.name for device in lost.devices] == [f"gateways/{story.gateway}"]
    pages = await all_pages(reporting, "ListLostMeters", pb.ListLostMetersRequest(page_size=2))
    everywhere = [device.name for page in pages for device in page.devices]
    assert f"unknown/modbus/{story.serial}X" in everywhere
    assert everywhere == sorted(everywhere, key=str.encode)
    await assert_filtered(reporting, story)


async def assert_filtered(reporting: Reporting, story: Story) -> None:
    """Ask for what a filter lets through, and for what it does not."""
    account, tariff = names.ACCOUNT.name(story.account), names.TARIFF.name(story.tariff)
    mine = f"site = {names.SITE.name(story.site)}"
    for method, request, field, among, not_among in (
        (
            "ListAccounts",
            pb.ListAccountsRequest,
            "accounts",
            f"{mine} tariff = {tariff} status = open level = normal available_nano > 0",
            f"{mine} AND (NOT level = normal OR frozen = true OR available_nano <= 0)",
        ),
        (
            "ListMeters",
            pb.ListMetersRequest,
            "meters",
            f"{mine} status = online",
            f"{mine} level = cut",
        ),
        (
            "ListAlarms",
            pb.ListAlarmsRequest,
            "alarms",
            f"{mine} kind != cut",
            f"{mine} kind = other",
        ),
        (
            "ListExceptions",
            pb.ListExceptionsRequest,
            "exceptions",
            "",
            f"account = {account} -account = {account}",
        ),
    ):
        found = getattr(await reporting.ask(method, request(filter=among)), field)
        assert found or method == "ListExceptions", method
        assert not getattr(await reporting.ask(method, request(filter=not_among)), field), method
    of_site = pb.ListAccountsRequest(filter=mine)
    (listed,) = (await reporting.ask("ListAccounts", of_site)).accounts
    balance = await reporting.ask(
        "GetBalance", pb.GetBalanceRequest(name=names.BALANCE.name(story.account))
    )
    assert (listed.account, listed.available_nano) == (account, balance.available_nano)
    sites = await all_pages(reporting, "ListSites", pb.ListSitesRequest(page_size=1))
    assert names.SITE.name(story.site) in [site.site for page in sites for site in page.sites]
    tariffs = await all_pages(reporting, "ListTariffs", pb.ListTariffsRequest(page_size=1))
    (newest,) = [t for page in tariffs for t in page.tariffs if t.tariff == tariff]
    assert newest.legal_entity == "legalEntities/LE1"
    policies = (await reporting.ask("ListPolicies", pb.ListPoliciesRequest())).policies
    assert names.POLICY.name(story.policy) in [policy.policy for policy in policies]


async def test_what_cannot_be_answered_says_why(start: Start, story: Story) -> None:
    reporting = start()
    unknown = pb.GetBalanceRequest(name=names.BALANCE.name(story.account))
    not_found = (grpc.StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")
    assert await refusal(reporting.ask("GetBalance", unknown)) == not_found
    explain = pb.ExplainCutoffRequest(account=names.ACCOUNT.name(story.account))
    assert await refusal(reporting.ask("ExplainCutoff", explain)) == not_found
    no_cut = pb.ExplainCutoffRequest(alarm=names.ALARM.name(str(uuid4())))
    assert await refusal(reporting.ask("ExplainCutoff", no_cut)) == (
        grpc.StatusCode.NOT_FOUND,
        "NO_CUTOFF",
    )
    bad_page = pb.ListAlarmsRequest(page_token="bm9uZQ")
    assert await refusal(reporting.ask("ListAlarms", bad_page)) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_ARGUMENT",
    )
    began = time.monotonic()
    early = pb.GetBalanceRequest(name=names.BALANCE.name(story.account), min_revision=1)
    assert await refusal(reporting.ask("GetBalance", early)) == (
        grpc.StatusCode.UNAVAILABLE,
        "NOT_YET_VISIBLE",
    )
    assert 1.9 < time.monotonic() - began < 4


async def test_a_rebuild_beside_the_running_service_gives_identical_rows(
    stack: BackgroundStack, schema: str, start: Start, story: Story
) -> None:
    start()
    await publish(stack, story.all())
    await everything_is_read(stack, schema)
    before = await dump(stack, schema)
    rebuilt = await rebuild(stack, schema)
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert "100 %" in rebuilt.stderr
    assert await dump(stack, schema) == before
    # The service goes on in the new tables.
    await publish(stack, Story(f"{story.run}-next").all())
    await everything_is_read(stack, schema)
    after = await dump(stack, schema)
    assert len(after["charges"]) == len(before["charges"]) + 3
    assert (await rebuild(stack, schema)).returncode == 0
    assert await dump(stack, schema) == after


async def test_kill_9_loses_nothing_and_writes_nothing_twice(
    stack: BackgroundStack, schema: str, start: Start, story: Story
) -> None:
    reporting = start()
    sent = [one for n in range(20) for one in Story(f"{story.run}-{n}").all()]
    sending = asyncio.create_task(publish(stack, sent))

    async def some_rows() -> bool:
        return len((await dump(stack, schema))["receipts"]) > 0

    await eventually(some_rows)
    await asyncio.to_thread(reporting.process.kill9)
    await sending
    await asyncio.to_thread(reporting.process.start)
    await everything_is_read(stack, schema)
    after = await dump(stack, schema)
    assert (await rebuild(stack, schema)).returncode == 0
    assert await dump(stack, schema) == after


async def test_postgresql_may_go_and_come_back(
    stack: BackgroundStack, schema: str, start: Start, story: Story
) -> None:
    reporting = start()
    await asyncio.to_thread(stack.stop, "postgres")
    try:
        await publish(stack, story.all())
        away = pb.GetBalanceRequest(name=names.BALANCE.name(story.account))
        assert await refusal(reporting.ask("GetBalance", away)) == (
            grpc.StatusCode.UNAVAILABLE,
            "UNAVAILABLE",
        )
        await eventually(lambda: not_ready(reporting))
    finally:
        await asyncio.to_thread(stack.start, "postgres")
    await everything_is_read(stack, schema)
    balance = await reporting.ask(
        "GetBalance", pb.GetBalanceRequest(name=names.BALANCE.name(story.account))
    )
    assert balance.charged_nano == CREDIT_NANO


async def not_ready(reporting: Reporting) -> bool:
    return "503" in await http_get(reporting.http_port, "/health/ready")


async def http_get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer.decode()


@pytest.mark.alone
async def test_a_charge_is_visible_a_moment_after_it_was_written(
    stack: BackgroundStack, schema: str, start: Start, story: Story
) -> None:
    start()
    *rest, last = [story.charge(n) for n in (1, 2, 3)]
    await publish(stack, rest)
    await everything_is_read(stack, schema)
    producer = kafka.producer(stack.kafka_bootstrap, client_id="test")
    await producer.start()
    try:
        async with connected(stack, schema) as connection:
            began = time.monotonic()
            await producer.send_and_wait(
                last.topic, last.payload(), partition=last.partition, headers=last.headers()
            )

            async def visible() -> bool:
                query = "SELECT count(*) FROM charges WHERE meter_key = $1"
                return bool(await connection.fetchval(query, story.meter_key) == 3)

            await eventually(visible)
            took_ms = 1000 * (time.monotonic() - began)
    finally:
        await producer.stop()
    print(f"charge visible after {took_ms:.0f} ms")
    assert took_ms < 1_000


async def test_partitions_of_the_catalogue_are_all_read(stack: BackgroundStack) -> None:
    async with log.reading(
        stack.kafka_bootstrap, client_id="test", skip=frozenset(), records_max=1
    ) as reader:
        assert set(await reader.ends()) == {
            Place(name, partition)
            for name in {topic.topic for topic in log.places()}
            for partition in range(topics.catalogue().partitions_of(name))
        }


# --- what needs a person --------------------------------------------------------------------------


async def remove_records(stack: BackgroundStack, place: Place) -> None:
    """Remove what a partition holds, as retention does; also how a test cleans up after itself."""
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(*place): RecordsToDelete(before_offset=-1)})
    finally:
        await admin.close()


async def test_a_record_that_cannot_be_read_stops_the_service_until_it_is_stepped_over(
    stack: BackgroundStack, schema: str, start: Start, story: Story
) -> None:
    reporting = start()
    outcome = story.outcome(CUT_OFFSET, "open", 1, "sent")
    place = Place(outcome.topic, outcome.partition)
    producer = kafka.producer(stack.kafka_bootstrap, client_id="test")
    await producer.start()
    try:
        odd = await producer.send_and_wait(
            place.topic, b"\xff", partition=place.partition, headers=outcome.headers()
        )
        await publish(stack, [outcome])
        identity = f"{place.topic}:{place.partition}:{odd.offset}"

        async def has_ended() -> bool:
            return reporting.process.pid is None

        await eventually(has_ended)
        assert f"WATTVEND_REPORTING_SKIP={identity}" in reporting.process.log_path.read_text()
        again = start("skipping", SKIP=identity)
        await everything_is_read(stack, schema)
        assert len((await dump(stack, schema))["command_outcomes"]) >= 1
        metrics = await http_get(again.http_port, "/metrics")
        assert "wattvend_reporting_skipped_records_total 1.0" in metrics
        assert "stepped over a record" in again.process.log_path.read_text()
    finally:
        await producer.stop()
        await remove_records(stack, place)


async def test_history_that_retention_took_is_lost_only_if_somebody_accepts_it(
    stack: BackgroundStack, schema: str, start: Start, story: Story
) -> None:
    first, second = (story.outcome(CUT_OFFSET, "open", n, "sent") for n in (1, 2))
    place = Place(first.topic, first.partition)
    await publish(stack, [first])
    reporting = start()
    await everything_is_read(stack, schema)
    await asyncio.to_thread(reporting.process.stop)
    await publish(stack, [second])
    await remove_records(stack, place)
    with pytest.raises(StackError):
        start("late")
    log_path = stack.logs / f"late-{schema[-6:]}.log"
    assert "removed by retention" in log_path.read_text()
    before = await dump(stack, schema)
    refused = await rebuild(stack, schema)
    assert refused.returncode != 0
    assert f"{place.topic}-{place.partition}" in refused.stderr
    assert "--accept-loss" in refused.stderr
    assert await dump(stack, schema) == before
    accepted = await rebuild(stack, schema, "--accept-loss")
    assert accepted.returncode == 0, accepted.stderr
    assert first.value["outcome_id"] not in str((await dump(stack, schema))["command_outcomes"])
    start("after")


async def test_a_second_writer_stands_by_and_a_second_rebuild_is_refused(
    stack: BackgroundStack, schema: str
) -> None:
    health, stopping = Health(), asyncio.Event()
    projector = Projector(
        Source(stack.kafka_bootstrap, stack.postgres_dsn, schema, "second", 100, frozenset()),
        logger=structlog.get_logger(),
        clock=SystemClock(),
        health=health,
        metrics=Metrics(CollectorRegistry()),
        commits=Commits(),
        stopping=stopping,
    )
    async with connected(stack, schema) as holder:
        assert await postgres.try_lock(holder, WRITER, schema)
        assert await postgres.try_lock(holder, REBUILD, schema)
        refused = await rebuild(stack, schema)
        assert refused.returncode != 0
        assert "is being rebuilt by test (PostgreSQL backend" in refused.stderr
        running = asyncio.create_task(projector.run())

        async def stands_by() -> bool:
            return "others stand by" in health.missing.get("projection", "")

        await eventually(stands_by)
        assert not projector.caught_up.is_set()
    async with asyncio.timeout(DEADLINE_S):
        await projector.caught_up.wait()
    assert health.missing == {}
    stopping.set()
    await running
