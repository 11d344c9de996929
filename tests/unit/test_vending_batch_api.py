"""Goal: a client sees of a batch, and of the operation that it is, what the book says.

Method: the servicers over the office on a real SQLite file; no sockets.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from google.longrunning import operations_proto_pb2 as lro
from prometheus_client import CollectorRegistry

from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import OPERATIONS
from services.vending.adapters.api.batches import BatchApi
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.api.operations import OperationsApi
from services.vending.domain.batch import TARGETS_MAX
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_batches import EVERYTHING, alone, many, to_its_end
from tests.unit.test_vending_office import refused
from tests.unit.vending_world import World
from tools.cli import asking
from tools.cli.batches import results
from wattvend.vending.v1 import batches_pb2 as pb

CALL = Call("web", "u-alice", "10.0.0.7", 5.0)


@pytest.fixture
async def mall(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await many(opened, 12)
        await alone(opened, **EVERYTHING)
        yield opened


@pytest.fixture
def desk(mall: World) -> Desk:
    return Desk(mall.office, mall.clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)


@pytest.fixture
def api(desk: Desk) -> BatchApi:
    return BatchApi(desk)


@pytest.fixture
def operations(desk: Desk) -> OperationsApi:
    return OperationsApi(OPERATIONS, desk)


def creating(count: int, **changed: Any) -> pb.CreateBatchRequest:
    targets = [pb.BatchTarget(name=f"meters/M{number}") for number in range(1, count + 1)]
    content: dict[str, Any] = {"list": pb.BatchTargets(targets=targets), "kind": "force-off"}
    return pb.CreateBatchRequest(request_id=str(uuid4()), reason="works", **{**content, **changed})


async def submit(api: BatchApi, batch: pb.Batch) -> lro.Operation:
    request = pb.SubmitBatchRequest(request_id=str(uuid4()), name=batch.name)
    return await api.SubmitBatch(request, CALL)


async def get(operations: OperationsApi, name: str) -> lro.Operation:
    return await operations.GetOperation(lro.GetOperationRequest(name=name), CALL)


async def test_a_batch_is_an_operation_from_its_submission_to_its_summary(
    mall: World, api: BatchApi, operations: OperationsApi
) -> None:
    drafted = await api.CreateBatch(creating(12), CALL)
    assert (drafted.status, drafted.operation) == ("draft", "")
    lost = get(operations, f"operations/{drafted.name}")
    assert await refused(lost) is Reason.OPERATION_NOT_FOUND
    running = await submit(api, drafted)
    assert running.name == f"operations/{drafted.name}"
    await mall.office.batches.turn()
    halfway = pb.Batch()
    assert (await get(operations, running.name)).metadata.Unpack(halfway)
    assert (halfway.summary.done_count, halfway.summary.waiting_count) == (10, 2)
    assert [(pace.site, pace.waiting_count) for pace in halfway.paces] == [("sites/S1", 2)]
    found = await operations.ListOperations(lro.ListOperationsRequest(filter="done = false"), CALL)
    assert [each.name for each in found.operations] == [running.name]
    await to_its_end(mall, drafted.name.partition("/")[2])
    done = await get(operations, running.name)
    summary = pb.BatchSummary()
    assert done.done
    assert done.response.Unpack(summary)
    assert summary.done_count == 12
    found = await operations.ListOperations(lro.ListOperationsRequest(filter="done = false"), CALL)
    assert not found.operations


async def test_an_operation_that_is_cancelled_cancels_its_batch(
    mall: World, api: BatchApi, operations: OperationsApi
) -> None:
    drafted = await api.CreateBatch(creating(12), CALL)
    running = await submit(api, drafted)
    await mall.office.batches.turn()
    for _ in range(2):
        await operations.CancelOperation(lro.CancelOperationRequest(name=running.name), CALL)
    ended = await get(operations, running.name)
    assert ended.error.code == 1  # CANCELLED
    batch = await api.GetBatch(pb.GetBatchRequest(name=drafted.name), CALL)
    assert batch.status == "cancelled"
    assert (batch.summary.done_count, batch.summary.skipped_count) == (10, 2)


async def test_results_are_paged_and_filtered(mall: World, api: BatchApi) -> None:
    drafted = await api.CreateBatch(creating(12), CALL)
    found, token = [], ""
    while True:
        request = pb.ListBatchResultsRequest(parent=drafted.name, page_size=5, page_token=token)
        page = await api.ListBatchResults(request, CALL)
        found += [each.target for each in page.results]
        if not (token := page.next_page_token):
            break
    assert found == [f"meters/M{number}" for number in range(1, 13)]
    await submit(api, drafted)
    await mall.office.batches.turn()
    request = pb.ListBatchResultsRequest(parent=drafted.name, filter='outcome = "waiting"')
    waiting = (await api.ListBatchResults(request, CALL)).results
    assert [each.target for each in waiting] == ["meters/M11", "meters/M12"]


async def test_results_tell_amounts_with_their_currency(
    mall: World, api: BatchApi, capsys: pytest.CaptureFixture[str]
) -> None:
    await mall.site("S9", currency="JPY")
    await mall.tariff("T9", currency="JPY")
    await mall.policy("P9", currency="JPY")
    await mall.account("A99", site_id="S9", tariff_id="T9", policy_id="P9")
    target = pb.BatchTarget(name="accounts/A99", amount_minor=500)
    listed = pb.BatchTargets(targets=[target])
    drafted = await api.CreateBatch(creating(0, kind="sale", method="cash", list=listed), CALL)
    found = await api.ListBatchResults(pb.ListBatchResultsRequest(parent=drafted.name), CALL)
    assert found.currency == "JPY"
    asking.out.print(results(found))
    assert "500 JPY" in capsys.readouterr().out


async def test_batches_are_listed_by_what_a_filter_says(api: BatchApi) -> None:
    first, second, third = [await api.CreateBatch(creating(1), CALL) for _ in range(3)]
    await submit(api, second)
    for filter_, names in (
        ("", [first.name, second.name, third.name]),
        ('status = "draft"', [first.name, third.name]),
        ("NOT status = draft AND kind = force-off", [second.name]),
        ("legal_entity = legalEntities/other", []),
    ):
        page = await api.ListBatches(pb.ListBatchesRequest(filter=filter_), CALL)
        assert [each.name for each in page.batches] == names
    request = pb.ListBatchesRequest(page_size=2)
    page = await api.ListBatches(request, CALL)
    request.page_token = page.next_page_token
    assert [each.name for each in (await api.ListBatches(request, CALL)).batches] == [third.name]


async def test_a_preview_counts_and_shows_the_first(api: BatchApi) -> None:
    drafted = await api.CreateBatch(creating(12), CALL)
    preview = await api.PreviewBatch(pb.PreviewBatchRequest(name=drafted.name), CALL)
    assert [(each.value, each.count) for each in preview.outcomes] == [("done", 12)]
    assert [(each.value, each.count) for each in preview.sites] == [("sites/S1", 12)]
    assert len(preview.first) == 10


async def test_validate_only_names_no_batch(api: BatchApi) -> None:
    answer = await api.CreateBatch(creating(3, validate_only=True), CALL)
    assert (answer.name, answer.summary.targets_count) == ("", 3)
    assert not (await api.ListBatches(pb.ListBatchesRequest(), CALL)).batches


async def test_what_is_of_another_kind_is_refused(api: BatchApi) -> None:
    for request in (
        creating(1, kind="explode"),
        creating(1, method="cash"),
        creating(1, kind="price"),
        creating(1, amount_minor=5),
        creating(0),
        creating(TARGETS_MAX + 1),
        creating(1, kind="sale", method="cash", amount_minor=5),  # of meters
    ):
        assert await refused(api.CreateBatch(request, CALL)) is Reason.INVALID_ARGUMENT
