"""The service's own start, without Kafka and gRPC, up to the first sale and its publication."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog
from prometheus_client import CollectorRegistry

from services.common.kernel.ids import name_uuid
from services.common.runtime import http, service
from services.common.runtime.clock import SystemClock
from services.common.runtime.kafka import Outgoing
from services.vending import main
from services.vending.adapters import bus
from services.vending.config import VendingSettings
from services.vending.domain.decisions import Request
from services.vending.domain.sale import Sell
from services.vending.domain.tables import Checkpoint
from tools.bench import big_book

WITHIN_S = 20.0


class _Told:
    """A publisher to which everything is told at once, and nothing kept."""

    def __init__(self, *_: object) -> None:
        self.records = 0

    async def publish(self, records: Sequence[Outgoing]) -> None:
        self.records += len(records)

    async def close(self) -> None:
        """Let go of nothing."""


async def _nothing_comes(*_: object, **__: object) -> None:
    """Read a topic on which nothing comes."""
    await asyncio.Event().wait()


async def _nobody_asks(_: object) -> None:
    """Serve no gRPC."""


@asynccontextmanager
async def started(
    settings: VendingSettings, told: Checkpoint | None, patched: pytest.MonkeyPatch
) -> AsyncIterator[main._Vending]:
    """Start on a book that was told up to a checkpoint; stop at the end."""

    async def last_told(*_: object) -> tuple[Checkpoint | None, list[object]]:
        return told, []

    patched.setattr(bus, "last_told", last_told)
    patched.setattr(bus, "KafkaPublisher", _Told)
    patched.setattr(bus, "follow", _nothing_comes)
    patched.setattr(main._Vending, "_start_grpc", _nobody_asks)
    log = structlog.get_logger("test")
    async with AsyncExitStack() as stack, asyncio.timeout(WITHIN_S):
        health, stopping = http.Health("start"), asyncio.Event()
        registry = CollectorRegistry()
        runtime = service.Runtime(log, SystemClock(), health, registry, stopping, stack)
        vending = main._Vending(settings, runtime, stack)
        stack.callback(stopping.set)
        await vending.start()
        yield vending


async def start_and_sell(
    settings: VendingSettings,
    told: Checkpoint,
    patched: pytest.MonkeyPatch,
    is_started: Callable[[], None] = lambda: None,
) -> None:
    """Start on a book of tools.bench that was told up to its end; sell to the last account."""
    async with started(settings, told, patched) as vending:
        is_started()
        account_id = big_book.account_id(told.root.count // 2 - 2)
        request = Request("till", str(name_uuid("test", "first sale")), b"", 0)
        await vending.office.sell(Sell(request, account_id, 100, "cash"))
        assert vending.relay is not None
        await vending.relay.caught_up()
