"""Goal: what goes on after its call was answered is found, waited for and ended as the AIPs say.

Method: the servicer over two kinds of processes that a test makes; no sockets.
"""

from dataclasses import replace
from typing import Any, cast

import pytest
from google.longrunning import operations_proto_pb2 as lro
from google.protobuf.duration_pb2 import Duration
from google.protobuf.wrappers_pb2 import Int64Value, StringValue
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.runtime.grpc import Call
from services.vending.adapters.api import operations
from services.vending.adapters.api.desk import WAIT_MAX_S, Desk
from services.vending.adapters.api.operations import OperationsApi, View
from services.vending.application.office import Office
from services.vending.domain.approval import Failure
from services.vending.domain.decisions import Request
from services.vending.metrics import Metrics
from tests.unit.vending_world import FakeClock

CALL = Call("desk", "u-1", "10.0.0.7", 5.0)


class Counting:
    """Processes with the ids 1, 2, ...: each is done when `done` says so."""

    def __init__(self, count: int) -> None:
        self.views = {
            str(n): View(str(n), Int64Value(value=n), done=False) for n in range(1, count + 1)
        }
        self.cancelled: list[tuple[str, Request]] = []
        self.looked = 0

    async def view(self, id_: str) -> View:
        self.looked += 1
        if id_ not in self.views:
            raise InvalidInput(Reason.BATCH_NOT_FOUND, "there is no such batch")
        return self.views[id_]

    async def page(self, done: bool | None, after: int, limit: int) -> list[tuple[int, View]]:
        return [
            (int(id_), view)
            for id_, view in self.views.items()
            if int(id_) > after and done in (None, view.done)
        ][:limit]

    async def cancel(self, id_: str, request: Request) -> None:
        self.cancelled.append((id_, request))

    def end(self, id_: str, **how: Any) -> None:
        self.views[id_] = replace(self.views[id_], done=True, **how)


class LateClock(FakeClock):
    """A clock that goes on by a tenth of a second whenever somebody looks at it."""

    def monotonic_ms(self) -> int:
        self.at_ms += 100
        return self.at_ms


@pytest.fixture
def some() -> Counting:
    return Counting(3)


@pytest.fixture
def more() -> Counting:
    return Counting(4)


@pytest.fixture
def api(some: Counting, more: Counting) -> OperationsApi:
    kinds = {"some": lambda _: some, "more": lambda _: more}
    return OperationsApi(kinds, desk(LateClock()))


def desk(clock: Any) -> Desk:
    """Return a desk of no office: these processes ask none."""
    return Desk(cast("Office", None), clock, Metrics(CollectorRegistry()), lambda: 1, 1.0)


async def reason_of(asked: Any) -> Reason:
    with pytest.raises(InvalidInput) as caught:
        await asked
    return caught.value.reason


async def names(api: OperationsApi, size: int, filter_: str = "", name: str = "") -> list[str]:
    found, token = [], ""
    while True:
        request = lro.ListOperationsRequest(
            name=name, filter=filter_, page_size=size, page_token=token
        )
        page = await api.ListOperations(request, CALL)
        assert len(page.operations) <= size
        found += [operation.name for operation in page.operations]
        if not (token := page.next_page_token):
            return found


async def test_an_operation_says_how_far_it_is_and_then_what_came_of_it(
    api: OperationsApi, some: Counting
) -> None:
    request = lro.GetOperationRequest(name="operations/some/2")
    running = await api.GetOperation(request, CALL)
    assert running.WhichOneof("result") is None
    count = Int64Value()
    assert running.metadata.Unpack(count)
    assert count.value == 2
    some.end("2", response=StringValue(value="well"))
    done = await api.GetOperation(request, CALL)
    said = StringValue()
    assert done.done
    assert done.response.Unpack(said)
    assert said.value == "well"


async def test_one_that_failed_carries_the_reason_of_its_refusal(
    api: OperationsApi, some: Counting
) -> None:
    some.end("1", failure=Failure(Reason.ACCOUNT_HAS_DEBT.value, "it owes"))
    failed = await api.GetOperation(lro.GetOperationRequest(name="operations/some/1"), CALL)
    assert failed.error.message == "it owes"
    assert failed.error.code == 9  # FAILED_PRECONDITION


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 100])
async def test_pages_of_any_size_have_each_operation_once(
    api: OperationsApi, some: Counting, size: int
) -> None:
    every = [f"operations/more/{n}" for n in (1, 2, 3, 4)]
    every += [f"operations/some/{n}" for n in (1, 2, 3)]
    assert await names(api, size) == every
    assert await names(api, size, name="operations/some") == every[4:]
    some.end("2")
    assert await names(api, size, "done = true") == ["operations/some/2"]
    assert len(await names(api, size, "done=false")) == 6


async def test_a_list_that_is_none_and_a_filter_that_says_nothing_are_refused(
    api: OperationsApi,
) -> None:
    wrong = lro.ListOperationsRequest(name="operations/others")
    assert await reason_of(api.ListOperations(wrong, CALL)) is Reason.INVALID_ARGUMENT
    wrong = lro.ListOperationsRequest(filter="state = 7")
    assert await reason_of(api.ListOperations(wrong, CALL)) is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "name",
    [
        "",
        "operations",
        "operations/some",
        "some/1",
        "operations/x/1",
        "operations/some/9",
        "operations/some/1/2",
        "operations/some/\0",
    ],
)
async def test_a_name_that_no_operation_has_is_not_found(api: OperationsApi, name: str) -> None:
    asked = api.GetOperation(lro.GetOperationRequest(name=name), CALL)
    assert await reason_of(asked) is Reason.OPERATION_NOT_FOUND


async def test_who_waits_gets_the_end_or_what_there_is_when_the_time_is_over(
    api: OperationsApi, some: Counting
) -> None:
    request = lro.WaitOperationRequest(
        name="operations/some/1", timeout=Duration(nanos=500_000_000)
    )
    assert not (await api.WaitOperation(request, CALL)).done
    assert some.looked > 1
    some.end("1")
    assert (await api.WaitOperation(request, CALL)).done


@pytest.mark.parametrize("timeout_s", [0, 60, 31_000_000])
async def test_nobody_waits_longer_than_a_call_may_last(
    api: OperationsApi, monkeypatch: pytest.MonkeyPatch, timeout_s: int
) -> None:
    """Where the client set no deadline that is a second here; for a year, it holds no place."""
    monkeypatch.setattr(operations, "LOOK_AGAIN_S", 0)
    waiting = lro.WaitOperationRequest(
        name="operations/some/1", timeout=Duration(seconds=timeout_s)
    )
    clock = api._clock
    for remaining_s, at_most_s in ((None, 1.0), (1e9, WAIT_MAX_S)):
        began_ms = clock.monotonic_ms()
        answer = await api.WaitOperation(waiting, Call("desk", "", "10.0.0.7", remaining_s))
        assert not answer.done
        assert clock.monotonic_ms() - began_ms <= at_most_s * 1000 + 300


async def test_a_cancellation_is_asked_once_a_caller_and_never_of_what_is_done(
    api: OperationsApi, some: Counting
) -> None:
    request = lro.CancelOperationRequest(name="operations/some/1")
    for _ in range(2):
        await api.CancelOperation(request, CALL)
    (one, first), (_, second) = some.cancelled
    assert one == "1"
    assert first.key == second.key
    assert first.origin.actor == "u-1"
    some.end("1")
    await api.CancelOperation(request, CALL)
    assert len(some.cancelled) == 2


async def test_nothing_is_deleted(api: OperationsApi) -> None:
    asked = api.DeleteOperation(lro.DeleteOperationRequest(name="operations/some/1"), CALL)
    assert await reason_of(asked) is Reason.OPERATION_IS_KEPT
