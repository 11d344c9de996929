"""Goal: of 64 clients that sell to one account at once each is answered truly, and in its turn.

Method: the real service, a connection for each client, on each store. Now and then a client sends
what it asks twice at once, as one does that lost patience. What was answered is compared with the
book, sale by sale.
"""

import asyncio
import os
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import pytest

from services.common.kernel import names
from services.common.runtime import topics
from tests.conftest import RunService
from tests.contract.databases import fresh_database
from tests.unit.vending_world import world_at
from tools.stack.background import BackgroundStack
from tools.stack.ports import free_ports
from wattvend.vending.v1 import vending_pb2 as pb
from wattvend.vending.v1 import vending_pb2_grpc

pytestmark = pytest.mark.stack

CLIENTS = 64
SALES = 1_280
TWICE_EACH = 5
AMOUNT_MINOR = 100
NANO_PER_SALE = AMOUNT_MINOR * 10_000_000
ANSWERED_WITHIN_S = 10.0
CALLER = (("wattvend-caller", "test"),)


@pytest.fixture(params=["sqlite", "postgresql"])
async def address(
    request: pytest.FixtureRequest, stack: BackgroundStack, tmp_path: Path
) -> AsyncIterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path / 'events.sqlite'}"
        return
    async with fresh_database(stack.postgres_dsn) as made:
        yield made


@pytest.fixture
async def port(stack: BackgroundStack, run_service: RunService, address: str) -> int:
    """Return where a vending is asked whose book has one account."""
    await topics.create(stack.kafka_bootstrap)
    (free,) = free_ports(1)
    settings = {
        "KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
        "STORE": address,
        "GRPC_PORT": str(free),
    }
    environment = {f"WATTVEND_VENDING_{key}": value for key, value in settings.items()}
    await asyncio.to_thread(  # the cluster remembers the books of others
        subprocess.run,
        [sys.executable, "-m", "services.vending", "raise-book-epoch"],
        env=os.environ | environment,
        check=True,
        timeout=60,
    )
    async with world_at(address) as world:
        await world.mall()
    await asyncio.to_thread(run_service, "vending", settings)
    return free


class Crowd:
    """Clients that sell until so many sales are made, and what they were answered."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._left = SALES
        self.answers: dict[str, list[pb.SellResponse]] = {}
        self.sales_of: Counter[int] = Counter()

    async def sell(self) -> None:
        async with asyncio.TaskGroup() as clients:
            for number in range(CLIENTS):
                clients.create_task(self._client(number))

    async def _client(self, number: int) -> None:
        own = [("grpc.use_local_subchannel_pool", 1)]
        at = f"127.0.0.1:{self._port}"
        async with grpc.aio.insecure_channel(at, options=own) as channel:
            stub: Any = vending_pb2_grpc.VendingServiceStub(channel)
            while self._left > 0:
                self._left -= 1
                request_id = str(uuid4())
                sale = pb.SellRequest(
                    request_id=request_id,
                    name=names.ACCOUNT.name("A1"),
                    amount_minor=AMOUNT_MINOR,
                    method="cash",
                )
                times = 2 if self._left % TWICE_EACH == 0 else 1
                calls = (
                    stub.Sell(sale, metadata=CALLER, timeout=ANSWERED_WITHIN_S)
                    for _ in range(times)
                )
                self.answers[request_id] = list(await asyncio.gather(*calls))
                self.sales_of[number] += 1


async def test_64_clients_on_one_account_are_answered_truly_and_in_turn(
    port: int,
) -> None:
    crowd = Crowd(port)
    await crowd.sell()

    for answers in crowd.answers.values():
        assert all(answer == answers[0] for answer in answers), "the same request, the same answer"
    first = [answers[0] for answers in crowd.answers.values()]
    first.sort(key=lambda answer: answer.version.revision)
    opened = first[0].version.revision
    for number, answer in enumerate(first):
        assert answer.version.revision == opened + number, "one revision a sale, and no gap"
        assert answer.credited_nano == (number + 1) * NANO_PER_SALE, "the sum up to there"
    assert len({answer.sale.receipt for answer in first}) == SALES

    # Who was answered comes behind those who wait: nobody is passed over again and again.
    assert min(crowd.sales_of.values()) >= SALES // CLIENTS // 2
    assert max(crowd.sales_of.values()) <= SALES // CLIENTS * 2

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = vending_pb2_grpc.VendingServiceStub(channel)
        asked = pb.GetAccountRequest(name=names.ACCOUNT.name("A1"))
        account = await stub.GetAccount(asked, metadata=CALLER, timeout=ANSWERED_WITHIN_S)
    assert account.credited_nano == SALES * NANO_PER_SALE
