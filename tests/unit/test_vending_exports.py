"""Goal: an export of readings is a batch like any other: approved, held, broken off, proven.

Method: the office on a real SQLite file, and a reporting on paper; that each death at any step
leaves the same book stands in test_vending_batches, for every kind.
"""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import grpc
import grpc.aio
import pytest
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call, status_of
from services.vending.adapters.api.batches import BatchApi
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.exports import ReportingExports
from services.vending.application import exporting
from services.vending.application.batches import COMMANDS, EXPORTS
from services.vending.domain import batch as batches
from services.vending.domain.approval import Approve
from services.vending.domain.authority import rules_text
from services.vending.domain.batch import EXPORT_LASTS_MS_MAX, Batch, Kind, Outcome, Status, Terms
from services.vending.domain.batching import CancelBatch, PauseBatch, ResumeBatch
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_batches import (
    ALICE,
    BOB,
    EVERYTHING,
    FROM_MS,
    TO_MS,
    all_proposals,
    alone,
    assert_proven,
    created,
    draft,
    many,
    moved,
    outcomes,
    stored,
    submitted,
    to_its_end,
)
from tests.unit.test_vending_office import refused
from tests.unit.vending_exports import AS_OF_MS, PaperReporting
from tests.unit.vending_world import T0_MS, World
from wattvend.reporting.v1 import exports_pb2
from wattvend.vending.v1 import batches_pb2 as pb

CALL = Call("web", "u-alice", "10.0.0.7", 5.0)
MINUTE_MS = 60_000


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await many(opened, 12)
        yield opened


@pytest.fixture
def api(mall: World) -> BatchApi:
    return BatchApi(Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0))


def paper(world: World) -> PaperReporting:
    return cast("PaperReporting", world.office.batches.exporting.exports)


async def exported(world: World, count: int) -> str:
    """Let an export be drafted and submitted; return its id."""
    drafted = await created(world, Kind.EXPORT, count)
    await submitted(world, drafted.batch_id)
    return drafted.batch_id


async def test_each_meter_has_its_rows_and_digest_and_nothing_else_happens(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    before = await mall.book.head()
    batch_id = await exported(mall, 4)
    assert (await to_its_end(mall, batch_id)).rows == 1 + 2 + 3 + 4
    _, results = await mall.office.batches.results(batch_id)
    assert [result.export.rows for _, result in sorted(results.items()) if result.export] == [
        *(1, 2, 3, 4),
    ]
    await assert_proven(mall, batch_id)
    after = [each.type for each in await mall.store.read_all(before, 1_000)]
    assert set(after) == {
        *("batch-created", "batch-targets", "batch-submitted"),
        *("batch-round-begun", "batch-round-ended", "batch-finished"),
    }


async def test_an_export_is_of_a_time_that_is_over_and_no_longer_than_a_month(mall: World) -> None:
    async def drafted_of(from_ms: int | None, to_ms: int | None) -> Batch:
        terms = Terms(Kind.EXPORT, "why", from_ms=from_ms, to_ms=to_ms)
        asked = replace(draft(mall, Kind.EXPORT, ["M1"]), terms=terms)
        return await mall.office.batches.create(asked)

    for from_ms, to_ms, field in (
        (None, TO_MS, "from_ms"),
        (FROM_MS, None, "to_ms"),
        (FROM_MS, FROM_MS, "to_ms"),
        (TO_MS, FROM_MS, "to_ms"),
        (-1, TO_MS, "from_ms"),
        (TO_MS - EXPORT_LASTS_MS_MAX - 1, TO_MS, "to_ms"),
        (FROM_MS, T0_MS + 1, "to_ms"),
    ):
        with pytest.raises(InvalidInput) as caught:
            await drafted_of(from_ms, to_ms)
        assert (caught.value.reason, caught.value.field) == (Reason.INVALID_ARGUMENT, field)
    with pytest.raises(InvalidInput, match="of kind export alone"):
        Terms(Kind.FORCE_OFF, "why", from_ms=FROM_MS)
    month = await drafted_of(TO_MS - EXPORT_LASTS_MS_MAX, TO_MS)
    assert (month.terms.from_ms, month.terms.to_ms) == (TO_MS - EXPORT_LASTS_MS_MAX, TO_MS)


async def test_more_meters_than_one_person_may_export_need_another(mall: World) -> None:
    await alone(mall, batch=None, export=2)
    small, large = [await created(mall, Kind.EXPORT, n, n) for n in (2, 3)]
    assert (await submitted(mall, small.batch_id)).status is Status.RUNNING
    with pytest.raises(InvalidInput, match="export of 3 meters needs a second person, above 2"):
        await submitted(mall, large.batch_id, 51)
    ((_, approval_id),) = await all_proposals(mall)
    own = mall.ask(approval_id, caller="web", origin=ALICE)
    assert await refused(mall.office.approvals.approve(Approve(own, approval_id, "mine"))) is (
        Reason.SAME_PERSON
    )
    other = mall.ask(approval_id, caller="web", origin=BOB)
    await mall.office.approvals.approve(Approve(other, approval_id, "for the tax office"))
    await to_its_end(mall, large.batch_id)
    assert await outcomes(mall, large.batch_id) == {Outcome.DONE: 3}
    *_, event = await stored(mall, "batch-submitted")
    assert (event.origin.who, event.origin.approved_by) == ("web u-alice", "web u-bob")


@pytest.mark.parametrize("rules", [None, {"batch": None}])
async def test_who_is_not_let_exports_nothing_alone(
    mall: World, rules: dict[str, int | None] | None
) -> None:
    """Neither without a document, nor under one of a release that knew no exports."""
    if rules is not None:
        await alone(mall, **rules)
    drafted = await created(mall, Kind.EXPORT, 1)
    assert await refused(submitted(mall, drafted.batch_id)) is Reason.APPROVAL_REQUIRED
    assert not await mall.office.batches.turn()
    assert not paper(mall).asked


async def test_a_document_that_grew_stricter_stops_what_nobody_approved(mall: World) -> None:
    await alone(mall, **EVERYTHING, authority=None)
    batch_id = await exported(mall, 2)
    said = rules_text({"batch": None, "export": 1})
    await mall.may_alone(said, mall.ask(said, caller="web", origin=ALICE))
    await to_its_end(mall, batch_id)
    _, results = await mall.office.batches.results(batch_id)
    assert {result.reason for result in results.values()} == {Reason.APPROVAL_REQUIRED.value}
    assert not paper(mall).kept


@pytest.mark.parametrize(("failing", "outcome"), [(2, Outcome.DONE), (3, Outcome.REFUSED)])
async def test_a_failure_of_reporting_is_tried_again_before_it_is_a_result_for_good(
    mall: World, monkeypatch: pytest.MonkeyPatch, failing: int, outcome: Outcome
) -> None:
    monkeypatch.setattr(exporting, "PAUSES_S", (0.0, 0.0))
    await alone(mall, **EVERYTHING)
    batch_id = await exported(mall, 1)
    paper(mall).failing = failing
    await to_its_end(mall, batch_id)
    assert await outcomes(mall, batch_id) == {outcome: 1}
    assert paper(mall).asked == ["M1"] * 3
    _, results = await mall.office.batches.results(batch_id)
    assert results[0].reason == ("" if outcome is Outcome.DONE else Reason.INTERNAL.value)


async def test_what_reporting_refuses_otherwise_is_asked_once_and_a_preview_is_too(
    mall: World,
) -> None:
    await alone(mall, **EVERYTHING)
    drafted = await created(mall, Kind.EXPORT, 1)
    paper(mall).failing = 1
    preview = await mall.office.batches.preview(drafted.batch_id)
    assert preview.reasons == {Reason.INTERNAL.value: 1}
    paper(mall).unknown.add("M1")
    await submitted(mall, drafted.batch_id)
    await to_its_end(mall, drafted.batch_id)
    assert await outcomes(mall, drafted.batch_id) == {Outcome.REFUSED: 1}
    assert paper(mall).asked == ["M1"] * 2


async def test_a_meter_that_reporting_does_not_know_is_refused_and_one_without_readings_is_done(
    mall: World,
) -> None:
    await alone(mall, **EVERYTHING)
    await mall.meter("M0", unit=99)
    paper(mall).unknown.add("M2")
    drafted = await mall.office.batches.create(draft(mall, Kind.EXPORT, ["M1", "M2", "M0"]))
    preview = await mall.office.batches.preview(drafted.batch_id)
    assert preview.outcomes == {Outcome.DONE: 2, Outcome.REFUSED: 1}
    assert preview.reasons == {Reason.METER_NOT_FOUND.value: 1}
    assert preview.rows == 1
    assert not paper(mall).kept, "a preview writes nothing"
    await submitted(mall, drafted.batch_id)
    await to_its_end(mall, drafted.batch_id)
    _, results = await mall.office.batches.results(drafted.batch_id)
    assert results[1].reason == Reason.METER_NOT_FOUND.value
    assert results[2].export
    assert results[2].export.rows == 0
    await assert_proven(mall, drafted.batch_id)


async def test_an_export_waits_for_reporting_says_so_and_keeps_no_other_batch_waiting(
    mall: World, api: BatchApi
) -> None:
    await alone(mall, **EVERYTHING)
    batch_id = await exported(mall, 3)
    paper(mall).away = "reporting at reporting:27002 does not write the export now"
    assert not await mall.office.batches.turn()
    found = await api.GetBatch(pb.GetBatchRequest(name=f"batches/{batch_id}"), CALL)
    assert (found.status, found.waits_for) == ("running", paper(mall).away)
    assert paper(mall).asked == ["M1", "M2"], "the first that fail are enough"
    with pytest.raises(Retriable, match="does not write"):
        await mall.office.batches.preview(batch_id)
    forcing = await created(mall, Kind.FORCE_OFF, 2, 7)
    await submitted(mall, forcing.batch_id, 57)
    asked = len(paper(mall).asked)
    assert await mall.office.batches.turn(COMMANDS)
    assert await outcomes(mall, forcing.batch_id) == {Outcome.DONE: 2}
    assert len(paper(mall).asked) == asked
    paper(mall).away = ""
    assert await mall.office.batches.turn(EXPORTS)
    found = await api.GetBatch(pb.GetBatchRequest(name=f"batches/{batch_id}"), CALL)
    assert (found.status, found.waits_for) == ("finished", "")
    assert found.summary.rows_count == 6


async def test_an_export_that_waits_for_reporting_is_cancelled_without_it(mall: World) -> None:
    await alone(mall, **EVERYTHING)
    batch_id = await exported(mall, 3)
    paper(mall).away = "for good"
    assert not await mall.office.batches.turn()
    await moved(mall, CancelBatch, batch_id, 70)
    assert await mall.office.batches.turn()
    assert (await mall.office.batches.of(batch_id)).is_over
    assert mall.office.batches.waits_for(batch_id) == ""
    _, results = await mall.office.batches.results(batch_id)
    assert {(each.outcome, each.reason) for each in results.values()} == {
        (Outcome.SKIPPED, Reason.CANCELLED.value)
    }


async def test_a_vending_that_was_told_no_reporting_drafts_no_export(mall: World) -> None:
    exporting = mall.office.batches.exporting
    batch_id = ""
    await alone(mall, **EVERYTHING)
    batch_id = await exported(mall, 1)
    was, exporting.exports = exporting.exports, None
    refusal = mall.office.batches.create(draft(mall, Kind.EXPORT, ["M2"], 9))
    assert await refused(refusal) is Reason.EXPORT_UNAVAILABLE
    assert not await mall.office.batches.turn(), "one that runs waits"
    assert "WATTVEND_VENDING_REPORTING" in mall.office.batches.waits_for(batch_id)
    exporting.exports = was
    await to_its_end(mall, batch_id)
    assert await outcomes(mall, batch_id) == {Outcome.DONE: 1}


async def test_an_export_is_paused_goes_on_and_is_cancelled(
    mall: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "TARGETS_PER_ROUND", 4)
    await alone(mall, **EVERYTHING)
    batch_id = await exported(mall, 12)
    assert await mall.office.batches.turn()
    await moved(mall, PauseBatch, batch_id, 70)
    assert not await mall.office.batches.turn()
    assert await outcomes(mall, batch_id) == {Outcome.DONE: 4, Outcome.WAITING: 8}
    await moved(mall, ResumeBatch, batch_id, 71)
    assert await mall.office.batches.turn()
    await moved(mall, CancelBatch, batch_id, 72)
    await to_its_end(mall, batch_id)
    assert await outcomes(mall, batch_id) == {Outcome.DONE: 8, Outcome.SKIPPED: 4}
    assert (await mall.office.batches.of(batch_id)).rows == sum(range(1, 9))
    await assert_proven(mall, batch_id)


async def test_a_client_sees_the_time_the_rows_and_the_digests(mall: World, api: BatchApi) -> None:
    await alone(mall, **EVERYTHING)
    targets = [pb.BatchTarget(name=f"meters/M{number}") for number in (3, 1)]
    request = pb.CreateBatchRequest(
        request_id=str(uuid4()),
        kind="export",
        reason="tax office",
        list=pb.BatchTargets(targets=targets),
        from_ms=FROM_MS,
        to_ms=TO_MS,
    )
    drafted = await api.CreateBatch(request, CALL)
    assert (drafted.from_ms, drafted.to_ms) == (FROM_MS, TO_MS)
    preview = await api.PreviewBatch(pb.PreviewBatchRequest(name=drafted.name), CALL)
    assert preview.rows_count == 4
    assert [(each.rows_count, each.sha256) for each in preview.first] == [(3, b""), (1, b"")]
    submit = pb.SubmitBatchRequest(request_id=str(uuid4()), name=drafted.name)
    await api.SubmitBatch(submit, CALL)
    await mall.office.batches.turn()
    page = await api.ListBatchResults(
        pb.ListBatchResultsRequest(parent=drafted.name, page_size=1), CALL
    )
    (result,) = page.results
    batch_id = drafted.name.partition("/")[2]
    kept = paper(mall).kept[batch_id, "M3"]
    assert (result.rows_count, result.size_bytes, result.sha256) == (
        *(3, kept.size_bytes, kept.sha256),
    )
    assert result.as_of_ms > AS_OF_MS
    found = await api.ListBatches(pb.ListBatchesRequest(filter="kind = export"), CALL)
    assert [(each.name, each.summary.rows_count) for each in found.batches] == [(drafted.name, 4)]


class Failed(grpc.aio.AioRpcError):
    """A call that failed as reporting's guard has it fail; `reason` None: before it came there."""

    def __init__(self, code: grpc.StatusCode, reason: Reason | None) -> None:
        said = rpc_status.to_status(status_of(reason, "so it is")) if reason else None
        trailing = grpc.aio.Metadata(*(said.trailing_metadata if said else ()))
        super().__init__(code, grpc.aio.Metadata(), trailing, "so it is", "")


@pytest.mark.parametrize(
    ("code", "reason", "becomes"),
    [
        (grpc.StatusCode.NOT_FOUND, Reason.METER_NOT_FOUND, Reason.METER_NOT_FOUND),
        (grpc.StatusCode.FAILED_PRECONDITION, Reason.EXPORT_TOO_LARGE, Reason.EXPORT_TOO_LARGE),
        (grpc.StatusCode.INTERNAL, Reason.INTERNAL, Reason.INTERNAL),
        (grpc.StatusCode.INTERNAL, None, None),
        (grpc.StatusCode.UNAVAILABLE, Reason.UNAVAILABLE, None),
        (grpc.StatusCode.UNAVAILABLE, None, None),
        (grpc.StatusCode.DEADLINE_EXCEEDED, None, None),
        (grpc.StatusCode.UNIMPLEMENTED, None, None),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, None, None),
    ],
)
async def test_what_reporting_refuses_is_a_result_and_all_else_is_tried_again(
    code: grpc.StatusCode, reason: Reason | None, becomes: Reason | None
) -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        exports = ReportingExports(channel, "reporting:27002")

        async def fails(_: exports_pb2.WriteExportChunkRequest, **more: Any) -> Any:
            assert more["timeout"] > 0
            raise Failed(code, reason)

        exports._stub = SimpleNamespace(WriteExportChunk=fails)  # type: ignore[assignment]
        writing = exports.write("B1", "M1", FROM_MS, TO_MS, validate_only=False)
        if becomes is None:
            with pytest.raises(Retriable, match=r"reporting at reporting:27002 .*so it is"):
                await writing
        else:
            assert await refused(writing) is becomes
