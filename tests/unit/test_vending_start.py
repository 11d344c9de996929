"""Goal: what a start reads does not grow with the book.

Method: the service's own start, without Kafka and gRPC, on a book of few accounts and on one of
twenty times as many, up to the first sale and its publication. SQLite counts the steps of its
virtual machine: of every statement, on every connection.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
from prometheus_client import CollectorRegistry

from services.common.kernel.values import value_class
from services.common.runtime import grpc, http, service
from services.common.runtime.clock import SystemClock
from services.common.runtime.kafka import Outgoing
from services.vending import main
from services.vending.adapters import bus, sqlite_file
from services.vending.application import statements
from services.vending.config import VendingSettings
from services.vending.domain.account import Sell
from services.vending.domain.decisions import Request
from services.vending.domain.tables import Checkpoint
from tools.bench import big_book

FEW, MANY = 150, 3_000
DEEPER = 1.1
"""Trees of more rows are a level deeper: a step or two more in each search."""
WITHIN_S = 20.0


class Told:
    """A publisher to which everything is told at once, and nothing kept."""

    def __init__(self, *_: object) -> None:
        self.records = 0

    async def publish(self, records: Sequence[Outgoing]) -> None:
        self.records += len(records)

    async def close(self) -> None:
        """Let go of nothing."""


@value_class
class Steps:
    """What was counted: until the start was over, and until the first sale was published."""

    to_start: int
    to_first_sale: int


async def nothing_comes(*_: object, **__: object) -> None:
    """Read a topic on which nothing comes."""
    await asyncio.Event().wait()


async def nobody_asks(_: object) -> None:
    """Serve no gRPC."""


async def steps_of(path: Path, told: Checkpoint, patched: pytest.MonkeyPatch) -> Steps:
    """Start on a book that was told up to its end, and sell to the last account."""
    counted = 0

    def count() -> int:
        nonlocal counted
        counted += 1
        return 0

    def connected(at: Path) -> sqlite3.Connection:
        connection = connect(at)
        connection.set_progress_handler(count, 1)
        return connection

    async def last_told(*_: object) -> tuple[Checkpoint, list[object]]:
        return told, []

    connect = sqlite_file._connect
    patched.setattr(sqlite_file, "_connect", connected)
    patched.setattr(bus, "last_told", last_told)
    patched.setattr(bus, "KafkaPublisher", Told)
    patched.setattr(bus, "follow", nothing_comes)
    patched.setattr(main._Vending, "_start_grpc", nobody_asks)
    patched.setattr(grpc, "spare_the_collector", lambda: None)
    settings = VendingSettings(store_path=path)
    log = structlog.get_logger("test")
    async with AsyncExitStack() as stack, asyncio.timeout(WITHIN_S):
        health, stopping = http.Health("start"), asyncio.Event()
        registry = CollectorRegistry()
        runtime = service.Runtime(log, SystemClock(), health, registry, stopping, stack)
        vending = main._Vending(settings, runtime, stack)
        stack.callback(stopping.set)
        await vending.start()
        to_start = counted
        account_id = big_book.account_id(told.root.count // 2 - 2)
        request = Request("till", str(uuid4()), b"", 0)
        await vending.office.sell(Sell(request, account_id, 100, "cash"))
        assert vending.relay is not None
        await vending.relay.caught_up()
        return Steps(to_start, counted)


async def test_a_start_reads_as_much_of_a_large_book_as_of_a_small_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The daily round about usage goes on where it was: so many accounts a second, never all.
    monkeypatch.setattr(statements, "PAGE_ACCOUNTS", 10)
    monkeypatch.setattr(statements, "PAGES_PER_STEP_MAX", 1)
    found = {}
    for accounts in (FEW, MANY):
        path = tmp_path / f"{accounts}.sqlite"
        written, told = await asyncio.to_thread(
            big_book.write, path, accounts, WITHIN_S, lambda _: None
        )
        assert written == accounts
        with monkeypatch.context() as patched:
            found[accounts] = await steps_of(path, told, patched)
    few, many = found[FEW], found[MANY]
    assert many.to_start <= few.to_start * DEEPER, found
    assert many.to_first_sale <= few.to_first_sale * DEEPER, found
    assert few.to_first_sale < FEW * 100, "and it is no scan that is quick"
