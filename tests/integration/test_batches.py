"""A batch over the real stack: chosen by a filter, approved, killed in its midst, finished.

Method: vending and reporting on the real Kafka and PostgreSQL, asked over gRPC; metering is not
needed, for what the book says of accounts is enough to choose them by.
"""

import asyncio
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from google.longrunning import operations_grpc_pb2
from google.longrunning import operations_proto_pb2 as lro
from google.protobuf.duration_pb2 import Duration

from services.common.kernel import names
from tests.integration.test_reporting import Start, schema, start
from tests.integration.test_vending import (
    ENERGY,
    Vending,
    _topics,
    call,
    eventually,
    records_of,
    refusal,
    site_with_account,
    stub_of,
    vending,
)
from tools.stack.ports import free_ports
from wattvend.vending.v1 import batches_pb2 as b
from wattvend.vending.v1 import batches_pb2_grpc
from wattvend.vending.v1 import vending_pb2 as pb

pytestmark = pytest.mark.stack
__all__ = ["_topics", "schema", "start", "vending"]  # fixtures
ACCOUNTS = 120
"""More than a round, so that a batch of them has a midst."""
OTHER = (("wattvend-caller", "test"), ("wattvend-actor", "u-82"))


async def open_accounts(stub: Any, world: Vending) -> None:
    async def one(number: int) -> None:
        request = pb.OpenAccountRequest(
            account_id=world.id(f"B{number}"),
            site=names.SITE.name(world.id("S")),
            commodity=ENERGY,
            tariff=names.TARIFF.name(world.id("T")),
            policy=names.POLICY.name(world.id("P")),
        )
        await call(stub.OpenAccount, request)

    for first in range(0, ACCOUNTS, 20):
        await asyncio.gather(*(one(number) for number in range(first, first + 20)))


async def test_a_batch_by_a_filter_is_approved_and_finished_though_vending_is_killed(
    vending: Vending,
    start: Start,
) -> None:
    (port,) = free_ports(1)
    start(GRPC_PORT=str(port))
    assert vending.service is not None
    vending.service.stop()
    settings = {**vending.settings, "REPORTING": f"127.0.0.1:{port}"}
    service = vending.run("vending", settings)
    filter_ = f"site_tree = sites/{vending.id('S')} AND available = 0 AND status = open"
    async with (
        stub_of(vending) as stub,
        grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel,
    ):
        batches = batches_pb2_grpc.BatchServiceStub(channel)
        operations = operations_grpc_pb2.OperationsStub(channel)
        await site_with_account(stub, vending, first_sale_minor=100)  # which the filter leaves out
        await open_accounts(stub, vending)

        async def seen() -> Any:
            request = b.CreateBatchRequest(
                kind="sale", reason="subsidy", method="transfer", amount_minor=250, filter=filter_
            )
            request.validate_only = True
            try:
                found = await call(batches.CreateBatch, request)
            except grpc.aio.AioRpcError:
                return None  # reporting does not project yet, or has seen none
            if found.summary.targets_count < ACCOUNTS:
                return None
            request.validate_only = False
            return await call(batches.CreateBatch, request)

        drafted = await eventually(seen)
        assert drafted.summary.targets_count == ACCOUNTS
        assert drafted.as_of_ms > 0
        submit = b.SubmitBatchRequest(name=drafted.name)
        request_id = str(uuid4())
        code, reason, message = await refusal(call(batches.SubmitBatch, submit, request_id))
        assert (code, reason) == (grpc.StatusCode.FAILED_PRECONDITION, "APPROVAL_REQUIRED")
        approval = message.split("proposal ")[1].split(";")[0]
        await stub.Approve(
            pb.ApproveRequest(
                request_id=str(uuid4()), name=f"approvals/{approval}", reason="list checked"
            ),
            metadata=OTHER,
            timeout=10,
        )
        service.kill9()  # before, in, or after a round: whichever it was, none is sold twice
        service.start()
        operation = await call(batches.SubmitBatch, submit, request_id)
        while not operation.done:
            wait = lro.WaitOperationRequest(name=operation.name, timeout=Duration(seconds=2))
            operation = await call(operations.WaitOperation, wait)
        summary = b.BatchSummary()
        assert operation.response.Unpack(summary)
        assert summary.done_count == ACCOUNTS

    async def sold() -> Any:
        ledger = {v["event_id"]: v for _, _, v in await records_of(vending, "ledger")}
        sales = [v["stream"] for v in ledger.values() if v["type"] == "credit-sold"]
        return sales if len(sales) > ACCOUNTS else None

    sales = await eventually(sold)
    assert len(sales) == len(set(sales)) == ACCOUNTS + 1
