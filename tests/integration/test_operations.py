"""google.longrunning.Operations on a server of the product's: guarded, and told by reflection.

Method: the server on loopback, over processes that a test makes; calls through the public stub.
"""

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import pytest
import structlog
from google.longrunning import operations_grpc_pb2
from google.longrunning import operations_proto_pb2 as lro
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from services.common.runtime import grpc as product_grpc
from services.common.runtime.clock import SystemClock
from services.common.runtime.http import Health
from services.vending.adapters.api import operations
from services.vending.config import VendingSettings
from tests.unit.test_vending_operations import Counting, desk

CALLER = (("wattvend-caller", "desk"),)


@pytest.fixture
async def channel() -> AsyncIterator[grpc.aio.Channel]:
    some = Counting(3)
    api = operations.OperationsApi({"some": lambda _: some}, desk(SystemClock()))
    serving = product_grpc.serving(
        VendingSettings(grpc_port=0),
        structlog.stdlib.get_logger(),
        Health(),
        partial(operations.add_to_server, api),
        [operations.SERVICE_NAME],
    )
    async with (
        serving as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened,
    ):
        yield opened


async def reason_of(asked: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asked
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type] # it quacks alike
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def test_a_stock_client_lists_and_looks(channel: grpc.aio.Channel) -> None:
    stub = operations_grpc_pb2.OperationsStub(channel)
    page = await stub.ListOperations(lro.ListOperationsRequest(page_size=2), metadata=CALLER)
    assert [each.name for each in page.operations] == ["operations/some/1", "operations/some/2"]
    one = await stub.GetOperation(
        lro.GetOperationRequest(name="operations/some/2"), metadata=CALLER
    )
    assert not one.done


async def test_what_is_wrong_has_a_reason(channel: grpc.aio.Channel) -> None:
    stub = operations_grpc_pb2.OperationsStub(channel)
    nobody = stub.GetOperation(lro.GetOperationRequest(name="operations/some/2"))
    assert await reason_of(nobody) == "CALLER_MISSING"
    none = stub.GetOperation(lro.GetOperationRequest(name="operations/some/9"), metadata=CALLER)
    assert await reason_of(none) == "OPERATION_NOT_FOUND"
    kept = stub.DeleteOperation(
        lro.DeleteOperationRequest(name="operations/some/1"), metadata=CALLER
    )
    assert await reason_of(kept) == "OPERATION_IS_KEPT"


async def test_reflection_describes_it(channel: grpc.aio.Channel) -> None:
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol=operations.SERVICE_NAME)
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    async for answer in stub.ServerReflectionInfo(iter([asked])):
        assert answer.file_descriptor_response.file_descriptor_proto
        return
    raise AssertionError("reflection says nothing")
