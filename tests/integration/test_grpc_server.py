"""Every service of vending is served the same way: health, reflection, deadlines, reasons.

Method: a server of the product's with all of vending's services over an office that never answers;
calls through a stub, as any client's.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from services.common.runtime import grpc as product_grpc
from services.common.runtime.clock import SystemClock
from services.common.runtime.http import Health
from services.common.runtime.settings import WrongSettings
from services.vending.adapters import api
from services.vending.adapters.api.desk import Desk
from services.vending.config import VendingSettings
from services.vending.metrics import Metrics
from wattvend.vending.v1 import vending_pb2 as pb
from wattvend.vending.v1 import vending_pb2_grpc

CALLER = (("wattvend-caller", "desk"),)
DEFAULT_S = 1
"""Deadline of a call whose client set none: the least that the setting takes."""
LONG_S = 20.0


@dataclass
class Asleep:
    """An office that never answers, and tells whether it was asked and let go."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def __getattr__(self, _: str) -> Any:
        return self

    async def account(self, _: str) -> Any:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.let_go.set()


@pytest.fixture
def office() -> Asleep:
    return Asleep()


@pytest.fixture
async def channel(office: Asleep) -> AsyncIterator[grpc.aio.Channel]:
    desk = Desk(cast("Any", office), SystemClock(), Metrics(CollectorRegistry()), lambda: 1, 1.0)
    serving = product_grpc.serving(
        VendingSettings(grpc_port=0, grpc_timeout_s=DEFAULT_S),
        structlog.stdlib.get_logger(),
        Health(),
        partial(api.register, desk),
        api.NAMES,
    )
    async with (
        serving as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as opened,
    ):
        yield opened


@pytest.mark.parametrize("timeout_s", [None, 0.2])
async def test_the_service_lets_a_call_go_at_its_deadline_or_at_the_default(
    channel: grpc.aio.Channel, office: Asleep, timeout_s: float | None
) -> None:
    stub = vending_pb2_grpc.VendingServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await stub.GetAccount(
            pb.GetAccountRequest(name="accounts/A1"), metadata=CALLER, timeout=timeout_s
        )
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert office.asked.is_set()
    async with asyncio.timeout(LONG_S):
        await office.let_go.wait()
    if timeout_s is None:
        assert reason_of(late.value) == "NO_ANSWER_IN_TIME"
        assert "repeat with the same request_id" in (late.value.details() or "")


def reason_of(refused: grpc.aio.AioRpcError) -> str:
    """Return the reason in the ErrorInfo of a refusal; "" where it has none."""
    status = rpc_status.from_call(refused)  # type: ignore[arg-type] # it quacks alike
    info = error_details_pb2.ErrorInfo()
    return info.reason if status and status.details[0].Unpack(info) else ""


async def test_the_field_at_fault_is_told_by_its_name_in_the_request(
    channel: grpc.aio.Channel,
) -> None:
    stub = vending_pb2_grpc.VendingServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetAccount(pb.GetAccountRequest(name="A1"), metadata=CALLER)
    status = rpc_status.from_call(refused.value)  # type: ignore[arg-type] # it quacks alike
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.domain, info.reason, dict(info.metadata)) == (
        "wattvend",
        "INVALID_ARGUMENT",
        {"field": "name"},
    )
    of_account = product_grpc.field_of(pb.AssignMeterRequest(), "account_id")
    of_meter = product_grpc.field_of(pb.AssignMeterRequest(), "meter_id")
    assert (of_account, of_meter) == ("account", "name")
    assert product_grpc.field_of(pb.OpenAccountRequest(), "account_id") == "account_id"
    assert product_grpc.field_of(pb.GetAuthorityRequest(), "legal_entity") == "name"
    assert product_grpc.field_of(None, "wattvend-caller") == "wattvend-caller"


async def test_health_and_reflection_know_every_service(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for name in ("", *api.NAMES):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)
            for name in api.NAMES
        ),
    ]
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    first, *files = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    assert set(api.NAMES) < {service.name for service in first.list_services_response.service}
    assert all(answer.file_descriptor_response.file_descriptor_proto for answer in files)


async def test_a_port_that_another_listens_on_is_not_shared_with_him() -> None:
    def serving(port: int) -> Any:
        settings = VendingSettings(grpc_port=port)
        return product_grpc.serving(settings, structlog.get_logger(), Health(), lambda _: None, [])

    async with serving(0) as port:
        with pytest.raises(WrongSettings, match=f"{port}"):
            async with serving(port):
                raise AssertionError("two would share the calls of one port")


async def test_one_call_more_than_the_setting_allows_is_told_to_come_again(
    office: Asleep,
) -> None:
    desk = Desk(cast("Any", office), SystemClock(), Metrics(CollectorRegistry()), lambda: 1, 1.0)
    settings = VendingSettings(grpc_port=0, grpc_concurrent_max=3)
    serving = product_grpc.serving(
        settings, structlog.get_logger(), Health(), partial(api.register, desk), api.NAMES
    )
    async with serving as port, AsyncExitStack() as stack:
        stubs = [  # connections of their own: the servers of the port share them
            vending_pb2_grpc.VendingServiceStub(
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(
                        f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]
                    )
                )
            )
            for _ in range(8)
        ]
        request = pb.GetAccountRequest(name="accounts/A1")
        calls = [
            asyncio.ensure_future(stub.GetAccount(request, metadata=CALLER, timeout=DEFAULT_S))
            for stub in stubs
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
    refused = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    codes = [answer.code() for answer in refused]
    assert [reason_of(answer) for answer in refused].count("TOO_MANY_CALLS") == 5
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 5
    assert codes.count(grpc.StatusCode.DEADLINE_EXCEEDED) == 3
