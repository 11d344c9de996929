"""Goal: a closing reads, releases and settles by itself, though vending is killed on the way.

Method: the real service beside a real Kafka; the test plays metering: it charges, and echoes.
"""

# ruff: noqa: F811 - fixtures of another module

import time
from contextlib import suppress
from typing import Any
from uuid import uuid4

import grpc
import numpy as np
import pytest
from google.longrunning import operations_grpc_pb2
from google.longrunning import operations_proto_pb2 as lro

from services.common.kernel import names
from services.common.kernel.frames import CHARGE, ChargeFrame
from services.common.kernel.ids import column_key
from tests.integration.test_policy_on_paper import ANOTHER
from tests.integration.test_vending import (  # noqa: F401 - fixtures
    CALLER,
    DEADLINE_S,
    Vending,
    _topics,
    call,
    echo,
    eventually,
    hold_of,
    publish,
    records_of,
    site_with_account,
    stub_of,
    vending,
)
from wattvend.vending.v1 import closings_pb2 as c
from wattvend.vending.v1 import closings_pb2_grpc
from wattvend.vending.v1 import vending_pb2 as pb

pytestmark = pytest.mark.stack

LATER_MS = 120_000
"""How much later than now the device reads: after the cut has had its time."""


async def closing_of(vending: Vending, name: str) -> c.Closing:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel:
        stub = closings_pb2_grpc.ClosingServiceStub(channel)
        found: c.Closing = await call(stub.GetClosing, c.GetClosingRequest(name=name))
        return found


async def begun(vending: Vending) -> c.Closing:
    """Let an account with a meter and 100.00 of credit be closed; return its closing."""
    name = vending.id
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending, first_sale_minor=10_000)
        rules = pb.PublishAuthorityRequest(
            name="legalEntities/LE1/authority",
            currency="CNY",
            rules='{"refund": null, "force-off": null, "authority": null, "closing": null}',
        )
        with suppress(grpc.aio.AioRpcError):  # the first one needs another person
            await call(stub.PublishAuthority, rules)
        for waits in (await call(stub.ListApprovals, pb.ListApprovalsRequest())).approvals:
            approve = pb.ApproveRequest(name=waits.name, reason="seen", request_id=str(uuid4()))
            await stub.Approve(approve, metadata=ANOTHER, timeout=DEADLINE_S)
        assign = pb.AssignMeterRequest(
            name=names.METER.name(name("M")),
            account=names.ACCOUNT.name(name("A")),
            register_milli=1_000,
        )
        await call(stub.AssignMeter, assign)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel:
        closings = closings_pb2_grpc.ClosingServiceStub(channel)
        request = c.CreateClosingRequest(
            parent=names.ACCOUNT.name(name("A")), method="cash", reason="moves out"
        )
        operation = await call(closings.CreateClosing, request)
    found = c.Closing()
    assert operation.metadata.Unpack(found)
    assert [meter.step for meter in found.meters] == ["reading"]
    return found


def charged(vending: Vending, shard: int, register_milli: int) -> dict[str, Any]:
    rows = np.zeros(1, CHARGE)
    rows["from_quality"] = rows["to_quality"] = ord("A")
    rows["meter_key"] = column_key("meter", vending.id("M"))
    rows["epoch"], rows["sequence"] = 2, 1
    rows["to_register_milli"] = register_milli
    rows["to_time_ms"] = time.time_ns() // 10**6 + LATER_MS
    return ChargeFrame(shard, 7, ("",), rows).to_record()


async def test_a_closing_ends_at_exactly_nothing_though_vending_is_killed_at_its_waits(
    vending: Vending,
) -> None:
    closing = await begun(vending)
    async with stub_of(vending) as stub:
        meter = await call(
            stub.GetMeter, pb.GetMeterRequest(name=names.METER.name(vending.id("M")))
        )
    assert meter.forced == "off"
    service = vending.service
    assert service is not None
    service.kill9()  # it waits for a reading
    frame = charged(vending, meter.shard, 4_321)
    await publish(vending, [("charges", "charge-frame", frame, meter.shard)])
    service.start()
    hold = await hold_of(vending)
    service.kill9()  # it waits for metering's answer
    used_nano = 10_000 * 10**7 - 5_037_000_001
    await publish(vending, [("echoes", "echo", echo(hold, used_nano), hold["shard"])])
    service.start()

    async def over() -> Any:
        found = await closing_of(vending, closing.name)
        return found if found.state == "closed" else None

    ended = await eventually(over)
    told = ended.settlement
    assert (told.left_nano, told.refund_minor, told.dropped_nano) == (5_037_000_001, 503, 7_000_001)
    assert [meter.register_milli for meter in ended.meters] == [4_321]
    operation = f"operations/closings/{closing.name.rpartition('/')[2]}"
    async with (
        stub_of(vending) as stub,
        grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel,
    ):
        account = await call(stub.GetAccount, pb.GetAccountRequest(name=closing.account))
        receipt = await call(stub.GetReceipt, pb.GetReceiptRequest(name=told.receipt))
        operations = operations_grpc_pb2.OperationsStub(channel)
        request = lro.GetOperationRequest(name=operation)
        known = await operations.GetOperation(request, metadata=CALLER)
    assert (account.status, account.credited_nano) == ("closed", used_nano)
    assert receipt.number > 0
    assert known.done
    balanced = vending.command("trial-balance")
    assert balanced.returncode == 0
    assert "liabilities:prepayment" in balanced.stdout
    (line,) = [
        line for line in balanced.stdout.splitlines() if line.startswith("liabilities:prepayment")
    ]
    assert line.split()[-1].strip("0.") == ""
    facts = [v for _, e, v in await records_of(vending, "shard-log") if e.subject == "account-fact"]
    assert facts[-1]["status"] == "closed"
