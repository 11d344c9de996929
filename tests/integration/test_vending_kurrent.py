"""Goal: a book on EventStoreDB or KurrentDB answers once, whatever befalls the connection.

Method: the real service on the real Kafka, its book on the double of the server (TLS, a wire that
can be cut); sales, restarts and repeats; the connection lost and the server gone in mid-sale.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.common.kernel import names
from services.common.runtime import topics
from tests.conftest import RunService
from tests.contract.kurrent_server import PASSWORD, Fault, KurrentServer
from tests.integration.test_vending import (
    Vending,
    all_published,
    answered,
    call,
    eventually,
    refusal,
    site_with_account,
    stray_process,
    stub_of,
)
from tools.stack.background import BackgroundStack
from tools.stack.ports import free_ports
from wattvend.vending.v1 import vending_pb2 as pb

pytestmark = pytest.mark.stack

ATTEMPTS = 4
"""So often the client makes an append that finds the server unavailable."""
OPENS_WITHIN_S = 30.0
"""After a kill a new process waits for what the old one may have sent."""


@dataclass
class OnKurrent(Vending):
    """A vending process whose book is on the double."""

    url: str = ""
    server: KurrentServer = field(default_factory=KurrentServer)

    @property
    def settings(self) -> dict[str, str]:
        """As for a file, but for the store."""
        settings = {k: v for k, v in super().settings.items() if k != "STORE_PATH"}
        return settings | {"STORE": f"{self.url}&index={self.store}"}

    def start(self, name: str = "vending-0") -> None:
        """Run it, and return when it is ready."""
        self.service = self.run("vending", self.settings, name=name, start_within_s=OPENS_WITHIN_S)

    async def killed_and_started(self) -> None:
        assert self.service is not None
        await asyncio.to_thread(self.service.kill9)
        await asyncio.to_thread(self.service.start)


@pytest.fixture
async def vending(
    stack: BackgroundStack, run_service: RunService, tmp_path: Path
) -> AsyncIterator[OnKurrent]:
    """Return a running vending; its book is empty, its word above that of earlier tests."""
    await topics.create(stack.kafka_bootstrap)
    (port,) = free_ports(1)
    server = KurrentServer()
    async with server.running(tmp_path) as url:
        index = tmp_path / "index.sqlite"
        suffix = uuid4().hex[:8]
        made = OnKurrent(stack, run_service, index, port, suffix, url=url, server=server)
        raised = await asyncio.to_thread(made.command, "raise-book-epoch")
        assert raised.returncode == 0, raised.stderr
        assert PASSWORD not in raised.stdout + raised.stderr
        await asyncio.to_thread(made.start)
        yield made
        assert made.service is not None
        await asyncio.to_thread(made.service.stop)
        assert PASSWORD not in made.service.log_path.read_text()


def sale(vending: Vending) -> Any:
    return pb.SellRequest(name=names.ACCOUNT.name(vending.id("A")), amount_minor=500, method="qr")


async def test_a_sale_is_made_once_through_lost_connections_restarts_and_repeats(
    vending: OnKurrent,
) -> None:
    server, ids = vending.server, [str(uuid4()) for _ in range(4)]
    answers = []
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        for request_id, faults in zip(
            ids,
            (
                [],
                [Fault.LOST_AFTER],
                [Fault.LOST_AFTER] * ATTEMPTS,
                [Fault.LOST_BEFORE] * ATTEMPTS,
            ),
            strict=True,
        ):
            server.next_faults = list(faults)
            answers.append(await call(stub.Sell, sale(vending), request_id))
            assert server.next_faults == []
    assert len({answer.sale.receipt for answer in answers}) == 4

    await vending.killed_and_started()
    async with stub_of(vending) as stub:
        repeated = [await call(stub.Sell, sale(vending), request_id) for request_id in ids]
        account = await call(
            stub.GetAccount, pb.GetAccountRequest(name=names.ACCOUNT.name(vending.id("A")))
        )
    assert repeated == answers
    assert account.credited_nano == 4 * 500 * 10**7

    ledger = await all_published(vending, events=10)
    positions = sorted({value["position"] for _, _, value in ledger})
    assert len(positions) == 10
    assert positions != list(range(positions[0], positions[0] + 10)), "positions are the server's"


async def test_a_server_that_goes_in_mid_sale_is_waited_for_and_the_sale_is_made_when_repeated(
    vending: OnKurrent,
) -> None:
    server, request_id = vending.server, str(uuid4())
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        server.next_faults = [Fault.DISK_FULL]
        code, reason, message = await refusal(call(stub.Sell, sale(vending), request_id))
        assert (code, reason) == (grpc.StatusCode.UNAVAILABLE, "UNAVAILABLE"), message
        server.restart()
        first = await call(stub.Sell, sale(vending), request_id)
        assert await call(stub.Sell, sale(vending), request_id) == first
    await all_published(vending, events=7)


async def test_of_two_machines_the_one_that_started_first_stores_nothing_more_and_is_not_ready(
    vending: OnKurrent, tmp_path: Path
) -> None:
    (port,) = free_ports(1)
    elsewhere = tmp_path / "elsewhere.sqlite"
    second = replace(vending, store=elsewhere, port=port, service=None)
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        await asyncio.to_thread(second.start, "vending-1")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{vending.port}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="wattvend.vending.v1.VendingService")

        async def not_serving() -> bool:
            answer = await health.Check(request)
            return bool(answer.status == health_pb2.HealthCheckResponse.NOT_SERVING)

        assert await eventually(not_serving), "also where nobody asks anything of it"
    async with stub_of(second) as stub:
        await call(stub.Sell, sale(vending))
    async with stub_of(vending) as stub:
        code, _, message = await refusal(call(stub.Sell, sale(vending)))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "vending-1 has become the writer" in message
    ledger = await all_published(vending, events=7)
    told = [value["position"] for _, _, value in ledger]
    assert told.count(max(told)) == 1, "the first, which has heard of the second, tells no more"
    assert second.service is not None
    await asyncio.to_thread(second.service.stop)


async def test_names_stay_unique_and_the_book_verifies_also_where_the_index_is_gone(
    vending: OnKurrent,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        await all_published(vending, events=6)
    verified = await asyncio.to_thread(vending.command, "verify")
    assert verified.returncode == 0, verified.stderr
    assert "6 events in 6 streams are unaltered" in verified.stdout
    assert "6 have a link of their own" in verified.stdout
    assert vending.service is not None
    await asyncio.to_thread(vending.service.stop)
    for file in vending.store.parent.glob("index.sqlite*"):
        file.unlink()
    await asyncio.to_thread(vending.service.start)
    async with stub_of(vending) as stub:
        another = pb.RegisterMeterRequest(
            meter_id=vending.id("M2"),
            serial=vending.suffix,
            gateway=names.GATEWAY.name(vending.id("G")),
            unit=2,
            profile="acrel-ddsy1352",
            commodity="electricity",
            ratio=1,
        )
        _, reason, _ = await refusal(call(stub.RegisterMeter, another))
        assert reason == "SERIAL_TAKEN"
        another.serial += "-2"
        await call(stub.RegisterMeter, another)
    await all_published(vending, events=7)


async def test_a_server_restored_to_an_earlier_point_is_noticed_until_a_person_raises_the_epoch(
    vending: OnKurrent,
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
        log = vending.server.log
        earlier = list(log.records), log.end
        await call(stub.Sell, sale(vending))
        await all_published(vending, events=7)
    assert vending.service is not None
    await asyncio.to_thread(vending.service.kill9)
    log.restore(*earlier)
    stray = stray_process(vending)
    await asyncio.to_thread(stray.__enter__)
    try:
        async with stub_of(vending) as stub:
            code, _, message = await eventually(lambda: answered(stub, sale(vending)))
    finally:
        await asyncio.to_thread(stray.__exit__, None, None, None)
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "raise-book-epoch" in message

    refused = await asyncio.to_thread(vending.command, "import-ledger")
    assert refused.returncode == 70
    assert "this server gives out positions itself" in refused.stderr
    raised = await asyncio.to_thread(vending.command, "raise-book-epoch")
    assert raised.returncode == 0, raised.stderr
    await asyncio.to_thread(vending.service.start)
    async with stub_of(vending) as stub:
        await call(stub.Sell, sale(vending))
    await all_published(vending, events=8)
    verified = await asyncio.to_thread(vending.command, "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "7 events in 6 streams are unaltered" in verified.stdout
    assert "7 have a link of their own" in verified.stdout
