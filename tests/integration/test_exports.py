"""An export holds what was charged, once and for good, and its file is what the book tells of.

Method: charges in PostgreSQL, in schemas of a test's own; then vending, reporting and the command
line as they are, of which the file is broken off, changed, and outlived by a rebuild.
"""

import asyncio
import csv
import gzip
import hashlib
import io
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import asyncpg
import grpc.aio
import pytest
from google.longrunning import operations_grpc_pb2
from google.longrunning import operations_proto_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from prometheus_client import CollectorRegistry

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.exported import COLUMNS, HEADER
from services.common.kernel.ids import column_key
from services.common.kernel.reasons import Reason
from services.common.runtime import postgres
from services.reporting.adapters import database, queries
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.exports import api as exports_api
from services.reporting.adapters.exports.api import ExportServicer
from services.reporting.adapters.exports.store import DAY_MS, KEEPER, Chunks, Keeper, schema_of
from services.reporting.adapters.fleet import Fleet
from services.reporting.adapters.fleet_api import FleetServicer
from services.reporting.adapters.metrics import Metrics
from services.reporting.domain.rows import ChargeRow, MeterRow, Row
from tests.integration.test_batches import OTHER
from tests.integration.test_reporting import (
    Reporting,
    Start,
    connected,
    migrated,
    rebuild,
    schema,
    start,
)
from tests.integration.test_reporting_fleet import blank, put
from tests.integration.test_vending import (
    ENERGY,
    Vending,
    _topics,
    call,
    eventually,
    refusal,
    site_with_account,
    stub_of,
    vending,
)
from tests.unit.vending_world import FakeClock
from tools.stack.background import BackgroundStack
from wattvend.reporting.v1 import exports_pb2 as e
from wattvend.reporting.v1 import fleet_pb2 as f
from wattvend.vending.v1 import batches_pb2 as b
from wattvend.vending.v1 import batches_pb2_grpc
from wattvend.vending.v1 import vending_pb2 as v

pytestmark = pytest.mark.stack
__all__ = ["_topics", "schema", "start", "vending"]  # fixtures
MINUTE_MS = 60_000
FROM_MS = 1_780_000_000_000
TO_MS = FROM_MS + 10 * DAY_MS
KEEP_DAYS = 30
READ_WITHIN_S = 20.0
READINGS = 2 * queries.RECORDED_AT_ONCE + 7


def charges(meter_id: str, count: int, from_ms: int = FROM_MS, **said: Any) -> list[Row]:
    """Return charges of a meter, a minute each, of which the first ends at `from_ms`."""
    every = blank(
        ChargeRow,
        meter_key=column_key("meter", meter_id),
        account_key=column_key("account", "A1"),
        epoch=1,
        to_quality="good",
        energy_milli=13,
        price_micro=800_000,
        amount_nano=10_400_000,
        currency="CNY",
        tariff_id="T1",
        tariff_version=3,
    )._replace(kind="usage")
    return [
        every._replace(
            sequence=number,
            to_time_ms=from_ms + number * MINUTE_MS,
            from_register_milli=1_000 + 13 * number,
            to_register_milli=1_013 + 13 * number,
            **said,
        )
        for number in range(count)
    ]


def meter(meter_id: str) -> Row:
    key = column_key("meter", meter_id)
    found: Row = blank(MeterRow, meter_id=meter_id, meter_key=key, site_id="mall", account_id="A1")
    return found


@dataclass
class Books:
    """Reporting's tables of a test, and who answers from them."""

    connection: asyncpg.Connection
    fleet: FleetServicer
    exports: ExportServicer
    keeper: Keeper
    commits: Commits
    clock: FakeClock
    registry: CollectorRegistry

    def measured(self) -> tuple[float | None, float | None]:
        """Return how many rows were exported, and how many bytes are kept."""
        return (
            self.registry.get_sample_value("wattvend_reporting_exported_rows_total"),
            self.registry.get_sample_value("wattvend_reporting_exports_kept_bytes"),
        )

    async def write(self, meter_id: str, export_id: str = "B1", **said: Any) -> e.ExportChunk:
        name = names.EXPORT_CHUNK.name(export_id, meter_id)
        asked = {"from_ms": FROM_MS, "to_ms": TO_MS, **said}
        return await self.exports.WriteExportChunk(
            e.WriteExportChunkRequest(name=name, **asked), None
        )

    async def read(self, meter_id: str, export_id: str = "B1") -> e.ExportChunk:
        name = names.EXPORT_CHUNK.name(export_id, meter_id)
        return await self.exports.GetExportChunk(e.GetExportChunkRequest(name=name), None)

    async def told(self, export_id: str = "B1") -> e.Export:
        request = e.GetExportRequest(name=names.EXPORT.name(export_id))
        return await self.exports.GetExport(request, None)


@pytest.fixture
async def books(stack: BackgroundStack, schema: str) -> AsyncIterator[Books]:
    dsn, beside = stack.postgres_dsn, schema_of(schema)
    commits, clock, registry = Commits(), FakeClock(), CollectorRegistry()
    metrics = Metrics(registry)
    commits.as_of_ms = TO_MS
    async with (
        migrated(stack, schema) as connection,
        queries.pool(dsn, schema, name="test", size_max=2) as readers,
        queries.pool(dsn, beside, name="test", size_max=2, writes=True) as writers,
    ):
        await put(connection, [meter("M1"), meter("M2"), *charges("M1", READINGS)])
        fleet = Fleet(queries.Queries(readers))
        exports = ExportServicer(fleet, commits, Chunks(writers, metrics), clock, KEEP_DAYS)
        keeper = Keeper(partial(database.connected, dsn, beside, name="test"), beside, metrics)
        yield Books(
            connection, FleetServicer(fleet, commits), exports, keeper, commits, clock, registry
        )


async def refused(work: Any) -> Reason:
    with pytest.raises(InvalidInput) as caught:
        await work
    return caught.value.reason


async def test_a_chunk_holds_each_charge_of_its_time_and_no_other(books: Books) -> None:
    await books.keeper.keep(0)
    outside = charges("M1", 1, FROM_MS - 1, epoch=9) + charges("M1", 1, TO_MS, epoch=8)
    others = charges("M2", 3, currency="JPY", amount_nano=-1)
    await put(books.connection, [*outside, *others])
    written = await books.write("M1")
    read = await books.read("M1")
    assert not written.content
    lines = gzip.decompress(read.content)
    assert (len(lines), hashlib.sha256(lines).digest()) == (written.size_bytes, written.sha256)
    rows = list(csv.DictReader(io.StringIO(HEADER + lines.decode())))
    assert len(rows) == written.rows_count == READINGS
    charged: list[f.ChargedReading] = []
    token = ""
    while True:
        request = f.ListReadingsRequest(
            parent="meters/M1", from_ms=FROM_MS, to_ms=TO_MS, page_size=1000, page_token=token
        )
        page = await books.fleet.ListReadings(request, None)
        charged += page.readings
        if not (token := page.next_page_token):
            break
    assert [(int(row["time_ms"]), int(row["sequence"])) for row in rows] == [
        (each.time_ms, each.sequence) for each in charged
    ]
    assert {each: rows[1][each] for each in COLUMNS} == {
        "meter": "M1",
        "time_ms": str(FROM_MS + MINUTE_MS),
        "register": "1.026",
        "quality": "good",
        "from_register": "1.013",
        "energy": "0.013",
        "price_micro": "800000",
        "amount": "0.010400000",
        "currency": "CNY",
        "account": charged[1].account.partition("/")[2],
        "tariff": "T1",
        "tariff_version": "3",
        "kind": "usage",
        "epoch": "1",
        "sequence": "1",
    }
    await books.write("M2")
    yen = gzip.decompress((await books.read("M2")).content).decode().splitlines()
    assert len(yen) == 3
    assert ",-0.000000001,JPY," in yen[0]
    told = await books.told()
    assert (told.chunks_count, told.rows_count) == (2, READINGS + 3)
    assert told.expires_at_ms == books.clock.at_ms + KEEP_DAYS * DAY_MS
    assert told.size_bytes > 5 * told.stored_bytes > 0
    await books.write("M1")  # it stands: nothing is written
    assert books.measured() == (READINGS + 3, told.stored_bytes)
    await books.keeper.keep(0)  # as after a start
    assert books.measured() == (READINGS + 3, told.stored_bytes)
    assert await books.keeper.keep(books.clock.at_ms + 1) == 1
    assert books.measured() == (READINGS + 3, 0)


async def test_a_chunk_is_written_once_whatever_comes_later(books: Books) -> None:
    await books.keeper.keep(0)
    first, again = await asyncio.gather(books.write("M1"), books.write("M1"))
    assert first == again
    kept = await books.read("M1")
    await put(books.connection, charges("M1", 1, FROM_MS + 1, epoch=2))
    books.commits.as_of_ms = 0  # nor does it matter who projects: it stands
    books.clock.at_ms += DAY_MS
    assert await books.write("M1") == first
    assert await books.read("M1") == kept
    assert await refused(books.write("M1", to_ms=TO_MS - 1)) is Reason.ALREADY_EXISTS
    books.commits.as_of_ms = TO_MS
    assert (await books.write("M1", "B2")).rows_count == READINGS + 1


async def test_what_is_only_tried_is_counted_and_not_written(books: Books) -> None:
    await books.keeper.keep(0)
    tried = await books.write("M1", validate_only=True)
    assert (tried.rows_count, tried.sha256, tried.written_at_ms) == (READINGS, b"", 0)
    assert await refused(books.read("M1")) is Reason.EXPORT_NOT_FOUND
    assert await refused(books.told()) is Reason.EXPORT_NOT_FOUND


async def test_a_meter_without_readings_has_none_and_one_that_nobody_knows_is_refused(
    books: Books,
) -> None:
    await books.keeper.keep(0)
    for dry in (True, False):
        assert (await books.write("M2", validate_only=dry)).rows_count == 0
        assert await refused(books.write("M9", validate_only=dry)) is Reason.METER_NOT_FOUND
    nothing = await books.read("M2")
    assert gzip.decompress(nothing.content) == b""
    assert nothing.sha256 == hashlib.sha256(b"").digest()
    assert await refused(books.write("M1", from_ms=TO_MS)) is Reason.INVALID_ARGUMENT


async def test_an_export_waits_until_all_of_its_time_is_read(books: Books) -> None:
    await books.keeper.keep(0)
    for as_of_ms, says in ((0, "does not project"), (TO_MS - 5_000, "5 s short of the end")):
        books.commits.as_of_ms = as_of_ms
        with pytest.raises(Retriable, match=says):
            await books.write("M1")
    books.commits.as_of_ms = TO_MS + 1
    assert (await books.write("M1")).as_of_ms == TO_MS + 1
    assert await refused(books.write("M1", to_ms=253_402_300_800_000)) is Reason.INVALID_ARGUMENT


async def test_more_than_a_message_takes_is_refused_before_it_is_all_read(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    await books.keeper.keep(0)
    monkeypatch.setattr(exports_api, "CHUNK_BYTES_MAX", 1_000)
    assert await refused(books.write("M1")) is Reason.EXPORT_TOO_LARGE
    monkeypatch.undo()
    assert (await books.write("M1")).rows_count == READINGS


async def test_whole_exports_are_removed_when_their_last_chunk_is_old(
    books: Books, stack: BackgroundStack, schema: str
) -> None:
    with pytest.raises(Retriable, match="exports are neither written nor read"):
        await books.write("M1")  # nobody has made the table yet
    beside = schema_of(schema)
    async with connected(stack, beside) as other:
        assert await postgres.try_lock(other, KEEPER, beside)
        assert await books.keeper.keep(0) == 0, "another instance is at it"
        with pytest.raises(Retriable):
            await books.told()
    assert await books.keeper.keep(0) == 0
    began_ms = books.clock.at_ms
    await books.write("M1", "old")
    await books.write("M1", "long")
    books.clock.at_ms += DAY_MS
    await books.write("M2", "long")
    assert await books.keeper.keep(began_ms) == 0
    assert await books.keeper.keep(began_ms + 1) == 1
    assert await refused(books.told("old")) is Reason.EXPORT_NOT_FOUND
    assert (await books.told("long")).chunks_count == 2
    assert await books.keeper.keep(began_ms + DAY_MS + 1) == 1
    assert await refused(books.read("M1", "long")) is Reason.EXPORT_NOT_FOUND


async def test_a_role_that_may_make_no_schema_costs_exports_alone(
    stack: BackgroundStack, schema: str
) -> None:
    beside, role = schema_of(schema), f"poor_{uuid4().hex[:8]}"
    async with connected(stack, schema) as owner:
        await owner.execute(f"CREATE ROLE {role}")
        try:

            @asynccontextmanager
            async def poor() -> AsyncIterator[asyncpg.Connection]:
                async with connected(stack, beside) as connection:
                    await connection.execute(f"SET ROLE {role}")
                    yield connection

            keeper, tried = Keeper(poor, beside, Metrics(CollectorRegistry())), asyncio.Event()

            class Log:
                def warning(self, said: str, **why: str) -> None:
                    assert (said, "permission denied" in why["why"]) == (
                        *("exports cannot be kept", True),
                    )
                    tried.set()

            keeping = asyncio.create_task(keeper.run(FakeClock(), KEEP_DAYS, cast("Any", Log())))
            await asyncio.wait_for(tried.wait(), 10)
            await asyncio.sleep(0)
            assert not keeping.done(), "it tries again, and the service goes on"
            keeping.cancel()
        finally:
            await owner.execute(f"DROP ROLE {role}")


# --- the whole way --------------------------------------------------------------------------------


async def more_meters(stub: Any, world: Vending, count: int) -> None:
    for number in range(1, count + 1):
        request = v.RegisterMeterRequest(
            meter_id=world.id(f"M{number}"),
            serial=f"{world.suffix}-{number}",
            gateway=names.GATEWAY.name(world.id("G")),
            unit=number + 1,
            profile="acrel-ddsy1352",
            commodity=ENERGY,
            ratio=1,
        )
        await call(stub.RegisterMeter, request)


def with_reporting(world: Vending, start: Start) -> Reporting:
    """Start reporting, and vending anew, told of it."""
    reporting = start()
    assert world.service is not None
    world.service.stop()
    world.service = world.run("vending", {**world.settings, "REPORTING": reporting.address})
    return reporting


async def charged(
    stub: Any, world: Vending, connection: asyncpg.Connection, counts: dict[str, int], from_ms: int
) -> None:
    """Let there be so many charges of each meter: M, M1 and so on."""
    await site_with_account(stub, world)
    await more_meters(stub, world, len(counts) - 1)

    async def are_known() -> bool:
        known = await connection.fetch("SELECT meter_id FROM meters")
        return {row[0] for row in known} >= counts.keys()

    await eventually(are_known)
    for meter_id, count in counts.items():
        await put(connection, charges(meter_id, count, from_ms))


async def drafted_of(channel: Any, counts: dict[str, int], from_ms: int, to_ms: int) -> b.Batch:
    targets = [b.BatchTarget(name=names.METER.name(meter_id)) for meter_id in counts]
    create = b.CreateBatchRequest(
        kind="export",
        reason="tax office",
        list=b.BatchTargets(targets=targets),
        from_ms=from_ms,
        to_ms=to_ms,
    )
    drafted: b.Batch = await call(batches_pb2_grpc.BatchServiceStub(channel).CreateBatch, create)
    return drafted


async def previewed(channel: Any, drafted: b.Batch) -> b.BatchPreview:
    """Return the preview, once reporting has read up to the end of the time."""
    batches = batches_pb2_grpc.BatchServiceStub(channel)
    async with asyncio.timeout(READ_WITHIN_S):
        while True:
            try:
                found: b.BatchPreview = await call(
                    batches.PreviewBatch, b.PreviewBatchRequest(name=drafted.name)
                )
            except grpc.aio.AioRpcError as early:
                if early.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.1)
            else:
                return found


async def approved(stub: Any, channel: Any, drafted: b.Batch) -> str:
    """Submit a batch, and have another person approve it; return the id of the request."""
    batches = batches_pb2_grpc.BatchServiceStub(channel)
    submit, request_id = b.SubmitBatchRequest(name=drafted.name), str(uuid4())
    code, reason, message = await refusal(call(batches.SubmitBatch, submit, request_id))
    assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_REQUIRED")
    approval = message.split("proposal ")[1].split(";")[0]
    approve = v.ApproveRequest(
        request_id=str(uuid4()), name=f"approvals/{approval}", reason="for the tax office"
    )
    await stub.Approve(approve, metadata=OTHER, timeout=10)
    return request_id


async def ended(channel: Any, drafted: b.Batch, request_id: str) -> b.BatchSummary:
    """Wait for the end of a batch."""
    batches = batches_pb2_grpc.BatchServiceStub(channel)
    operations = operations_grpc_pb2.OperationsStub(channel)
    submit = b.SubmitBatchRequest(name=drafted.name)
    operation = await call(batches.SubmitBatch, submit, request_id)
    while not operation.done:
        wait = lro.WaitOperationRequest(name=operation.name, timeout=Duration(seconds=2))
        operation = await call(operations.WaitOperation, wait)
    summary = b.BatchSummary()
    assert operation.response.Unpack(summary)
    return summary


async def test_the_file_of_an_export_is_what_was_charged_and_what_the_book_tells_of(
    vending: Vending, start: Start, stack: BackgroundStack, schema: str, tmp_path: Path
) -> None:
    reporting = with_reporting(vending, start)
    to_ms = int(time.time() * 1000) - 1
    from_ms = to_ms - DAY_MS
    counts = {vending.id("M3"): 5, vending.id("M"): 2_500, vending.id("M1"): 0, vending.id("M2"): 1}
    file = tmp_path / "january.csv"

    async def wattvend(*arguments: str) -> subprocess.CompletedProcess[str]:
        at = ("--vending", f"127.0.0.1:{vending.port}", "--reporting", reporting.address)
        return await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "tools.cli", *at, "--caller", "test", *arguments],
            env=os.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    async with (
        stub_of(vending) as stub,
        grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel,
    ):
        async with connected(stack, schema) as connection:
            await charged(stub, vending, connection, counts, from_ms)
        drafted = await drafted_of(channel, counts, from_ms, to_ms)
        preview = await previewed(channel, drafted)
        assert preview.rows_count == sum(counts.values()) - 2_500 + DAY_MS // MINUTE_MS
        early = await wattvend("batch", "download", show(drafted), "--out", str(file))
        assert (early.returncode, file.exists()) == (1, False)
        request_id = await approved(stub, channel, drafted)
        assert vending.service is not None
        vending.service.kill9()
        vending.service.start()
        summary = await ended(channel, drafted, request_id)
        assert (summary.done_count, summary.rows_count) == (4, preview.rows_count)
    batch_id = show(drafted)
    done = await wattvend("batch", "download", batch_id, "--out", str(file))
    assert done.returncode == 0, done.stderr
    whole = file.read_bytes()
    rows = list(csv.DictReader(io.StringIO(whole.decode())))
    assert len(rows) == preview.rows_count
    assert list(dict.fromkeys(row["meter"] for row in rows)) == [m for m, n in counts.items() if n]
    remade = await rebuild(stack, schema, "--accept-loss")  # of read models: no charge is in a log
    assert remade.returncode == 0, remade.stderr
    for size in (0, 10, len(HEADER), len(HEADER) + 300, len(whole) - 1):
        file.write_bytes(whole[:size])
        cut = await wattvend("batch", "verify", batch_id, "--file", str(file))
        assert (cut.returncode, "ends too early" in " ".join(cut.stderr.split())) == (1, True)
        again = await wattvend("batch", "download", batch_id, "--out", str(file))
        assert (again.returncode, file.read_bytes()) == (0, whole), again.stderr
    proven = await wattvend("batch", "verify", batch_id, "--file", str(file))
    assert proven.returncode == 0, proven.stderr
    for changed in (whole[:500] + b"9" + whole[501:], whole + b"x"):
        file.write_bytes(changed)
        for command in (("verify", batch_id, "--file"), ("download", batch_id, "--out")):
            found = await wattvend("batch", *command, str(file))
            assert found.returncode == 1
            assert "was changed" in " ".join(found.stderr.split())
        assert file.read_bytes() == changed


@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_export_ends_as_any_other_where_reporting_was_killed_amid_a_chunk(
    vending: Vending, start: Start, stack: BackgroundStack, schema: str, is_stored: bool
) -> None:
    """Whether PostgreSQL stored what reporting had sent, or nothing of it, when it died."""
    reporting = with_reporting(vending, start)
    to_ms = int(time.time() * 1000) - 1
    from_ms = to_ms - DAY_MS
    counts = {vending.id("M"): 300, vending.id("M1"): 7, vending.id("M2"): 0}
    table = f"{schema_of(schema)}.chunks"
    async with (
        stub_of(vending) as stub,
        grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel,
        connected(stack, schema) as connection,
    ):

        async def chunks(drafted: b.Batch) -> dict[str, int]:
            rows = await connection.fetch(
                f"SELECT meter_id, written_at_ms FROM {table} WHERE export_id = $1",
                show(drafted),
            )
            return dict(rows)

        async def digests(drafted: b.Batch) -> list[tuple[str, int, bytes]]:
            batches = batches_pb2_grpc.BatchServiceStub(channel)
            said = await call(
                batches.ListBatchResults, b.ListBatchResultsRequest(parent=drafted.name)
            )
            return [(each.target, each.rows_count, each.sha256) for each in said.results]

        await charged(stub, vending, connection, counts, from_ms)
        quiet = await drafted_of(channel, counts, from_ms, to_ms)
        await ended(channel, quiet, await approved(stub, channel, quiet))
        drafted = await drafted_of(channel, counts, from_ms, to_ms)
        async with holding(stack, table) as waiting:
            request_id = await approved(stub, channel, drafted)
            writing = await eventually(waiting)
            await asyncio.to_thread(reporting.process.kill9)
            for pid in () if is_stored else writing:
                await connection.execute("SELECT pg_terminate_backend($1)", pid)
        if is_stored:
            await eventually(partial(chunks, drafted))
        before = await chunks(drafted)
        assert bool(before) == is_stored
        await asyncio.to_thread(reporting.process.start)
        summary = await ended(channel, drafted, request_id)
        assert (summary.done_count, summary.rows_count) == (3, 307)
        assert await digests(drafted) == await digests(quiet)
        after = await chunks(drafted)
        assert after.keys() == counts.keys()
        assert before.items() <= after.items(), "what was stored stands"


@asynccontextmanager
async def holding(stack: BackgroundStack, table: str) -> AsyncIterator[Callable[[], Any]]:
    """Let nobody write a table; give what returns the sessions that wait to do so."""
    holder = await asyncpg.connect(stack.postgres_dsn)

    async def waiting() -> list[int]:
        rows = await holder.fetch(
            "SELECT pid FROM pg_locks WHERE relation = $1::text::regclass AND NOT granted", table
        )
        return [pid for (pid,) in rows]

    try:
        async with holder.transaction():
            await holder.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
            yield waiting
    finally:
        await holder.close()


def show(drafted: b.Batch) -> str:
    return drafted.name.partition("/")[2]
