"""vending: how long a start takes with few accounts and with very many, and what it holds then.

Each book was told to `ledger` up to its end, as one that was stopped; it is started on SQLite, then
copied to PostgreSQL and started there. Started is the service as it is, with its real settings:
until it says that it is ready, and until it has answered the first sale to an account that it has
not looked at. The files were written a moment ago: no disk is waited for.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from services.common.runtime.clock import SystemClock
from services.vending.adapters import names
from services.vending.adapters.bus import KafkaPublisher
from services.vending.application.relay import checkpoint_record
from tools.bench import big_book, copied_book
from tools.bench.figures import Figure, median_of
from tools.bench.screen import Screen
from tools.bench.stand import Stand
from tools.client import connect
from tools.stack.ports import LOOPBACK, free_ports
from wattvend.vending.v1 import vending_pb2 as v

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. The books in rising order: each is told to the same `ledger`."""

    accounts: tuple[int, ...] = (1_000, 1_000_000)
    starts: int = 5
    written_within_s: float = 240.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start: s until it was ready, ms that the first sale took then, MB that it held."""

    ready_s: float
    first_sale_ms: float
    memory_mb: float


@dataclass(frozen=True, slots=True)
class Book:
    """A book that is started: `name` begins its figures, `settings` say where it is."""

    name: str
    where: str
    accounts: int
    settings: Mapping[str, str]


async def measure(stand: Stand, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench."""
    figures: list[Figure] = []
    for wanted in plan.accounts:
        path = stand.directory / "restart" / f"{wanted}.sqlite"
        within_s, now_ms = plan.written_within_s, SystemClock().now_ms()
        accounts, checkpoint = await asyncio.to_thread(
            big_book.write, path, wanted, within_s, screen.say, now_ms
        )
        publisher = KafkaPublisher(stand.at.kafka_bootstrap, "bench")
        await publisher.publish([checkpoint_record(checkpoint)])
        await publisher.close()
        book = Book("vending.restart", "SQLite", accounts, {"STORE_PATH": str(path)})
        figures += await _measured(stand, screen, plan, book)
        figures.append(_book_mb(book, path.stat().st_size))
        # What was stopped is copied as it is, with what was sold: so it is what ledger knows.
        async with _database(stand.at.postgres_dsn, accounts) as dsn:
            size_bytes = await copied_book.copy(path, dsn, screen.say)
            path.unlink()
            book = Book("vending.restart.postgres", "PostgreSQL", accounts, {"STORE": dsn})
            figures += await _measured(stand, screen, plan, book)
            figures.append(_book_mb(book, size_bytes))
    return figures


def _book_mb(book: Book, size_bytes: int) -> Figure:
    """Return how large a book is."""
    return median_of(f"{book.name}.book_mb.accounts.{book.accounts}", "MB", [size_bytes / MB])


@asynccontextmanager
async def _database(server_dsn: str, accounts: int) -> AsyncIterator[str]:
    """Make a database for a book, and drop it afterwards: its files are large."""
    name = f"restart_{accounts}"
    server = await asyncpg.connect(server_dsn)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        yield urlsplit(server_dsn)._replace(path=f"/{name}").geturl()
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await server.close()


async def _measured(stand: Stand, screen: Screen, plan: Plan, book: Book) -> list[Figure]:
    """Start and stop again and again, each time with the first sale to another account."""
    starts = []
    for number in range(plan.starts):
        shown = f"{book.accounts:,} accounts on {book.where}"
        screen.say(f"restart: {shown}, start {number + 1} of {plan.starts}")
        account = number * book.accounts // plan.starts
        starts.append(await _start(stand, book.settings, big_book.account_id(account)))
    name, at = book.name, f"accounts.{book.accounts}"
    return [
        median_of(f"{name}.ready_s.{at}", "s", [start.ready_s for start in starts]),
        median_of(f"{name}.first_sale_ms.{at}", "ms", [start.first_sale_ms for start in starts]),
        median_of(f"{name}.memory_mb.{at}", "MB", [start.memory_mb for start in starts]),
    ]


async def _start(stand: Stand, settings: Mapping[str, str], account_id: str) -> Start:
    (grpc_port,) = free_ports(1)
    address = f"{LOOPBACK}:{grpc_port}"
    given = {"GRPC_PORT": str(grpc_port), **settings}
    begin_s = time.perf_counter()
    await stand.start_service("vending", given)
    ready_s = time.perf_counter() - begin_s
    sale = v.SellRequest(
        request_id=str(uuid4()),
        name=names.ACCOUNT.name(account_id),
        amount_minor=100,
        method="cash",
    )
    async with connect(address, address, big_book.NAME) as clients:
        begin_s = time.perf_counter()
        sold: v.SellResponse = await clients.vending("Sell", sale)
        first_sale_ms = (time.perf_counter() - begin_s) * 1000
    assert sold.credited_nano, "the first sale after a start is in the book"
    memory_mb = stand.memory_bytes("vending") / MB
    await stand.stop("vending")
    return Start(ready_s, first_sale_ms, memory_mb)
