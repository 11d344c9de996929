"""vending: sales a second beside empty calls, both on one core, asked by the same clients.

The real service with its real settings: durable before it answers, and publishing what it stored;
one on SQLite, one on PostgreSQL, whose server is on the other cores. Runs of empty calls and of
sales on each take turns, so that what else the machine does hits all. Every sale that was answered
must be in its book in the end.
"""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

import grpc.aio

from services.common.kernel import names
from tools import sitefile
from tools.bench import calls, empty
from tools.bench.figures import P50, P99, Figure, median_of, quantile
from tools.bench.screen import Screen
from tools.bench.stand import Stand, fetched, until
from tools.client import Clients, connect
from tools.stack.ports import LOOPBACK, free_ports
from tools.stack.services import ROOT
from wattvend.vending.v1 import vending_pb2 as v

SELL = "/wattvend.vending.v1.VendingService/Sell"
SITE = sitefile.SiteFile(
    site=sitefile.Site(id="bench", name="bench", zone="UTC", currency="CNY", legal_entity="bench"),
    tariffs=[sitefile.Tariff(id="bench", price_micro=500_000)],
    policies=[sitefile.Policy(id="bench", alarm_1_minor=3, alarm_2_minor=2, restore_minor=1)],
)
NANO_PER_MINOR = 10_000_000
CALLER = "bench"
PUBLISHED_WITHIN_S = 60.0
ANSWERED_WITHIN_S = 60.0
ALONE_S = 0.5


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    clients: int = 64
    accounts: int = 1_024
    runs: int = 9
    seconds: float = 3.0


class Called(NamedTuple):
    """What the clients found: answered in all, a second, and how long they took."""

    calls: int
    per_second: float
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Run:
    """One run of calls: answered in all, a second, and how long they took.

    `cpu_us`: processor time that the server's process took for a call, what followed it included.
    """

    calls: int
    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Book:
    """A running vending: where it is, and what it was found to do, run by run.

    `name` begins its figures: "" on SQLite, which is what vending stands on by itself.
    """

    name: str
    process: str
    address: str
    http_port: int
    sales: list[Run] = field(default_factory=list)
    behind: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Alone:
    """How often a second something durable happens that is no sale."""

    fsyncs: list[float]
    inserts: dict[str, list[float]]


async def measure(stand: Stand, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench."""
    sqlite = {"STORE_PATH": str(stand.directory / "vending" / "events.sqlite")}
    # Both start before either has told anything: ledger is each one's own then.
    books = [
        await _started(stand, number, name, settings)
        for number, (name, settings) in enumerate(
            {"": sqlite, "postgres.": {"STORE": stand.at.postgres_dsn}}.items()
        )
    ]
    (empty_port,) = free_ports(1)
    await stand.start("empty", "-m", "tools.bench.empty", str(empty_port))
    nothing = f"{LOOPBACK}:{empty_port}"
    screen.say(f"vending: {plan.accounts:,} accounts are opened on each store")
    for book in books:
        async with connect(book.address, book.address, CALLER) as clients:
            await _open(clients, plan.accounts)
        await _published(book)
    empties: list[Run] = []
    alone = Alone([], {book.name: [] for book in books})
    for number in range(plan.runs):
        screen.say(f"vending: {plan.clients} clients, run {number + 1} of {plan.runs}")
        empties.append(await _run_of(stand, "empty", _called(nothing, empty.METHOD, plan)))
        for book in books:
            book.sales.append(await _run_of(stand, book.process, _sold(book, plan)))
        await _measure_alone(stand, alone, number)
    for book in books:
        async with connect(book.address, book.address, CALLER) as clients:
            await _judge(clients, plan.accounts, sum(run.calls for run in book.sales))
    return _figures(books, empties, alone)


async def _started(stand: Stand, number: int, name: str, settings: dict[str, str]) -> Book:
    (grpc_port,) = free_ports(1)
    given = {"GRPC_PORT": str(grpc_port), **settings}
    http_port = await stand.start_service("vending", given, instance=number)
    process = f"vending-{number}" if number else "vending"
    return Book(name, process, f"{LOOPBACK}:{grpc_port}", http_port)


async def _run_of(stand: Stand, process: str, calls: Awaitable[Called]) -> Run:
    """Return a run with what it took of a process."""
    before_s = stand.processor_s(process)
    called = await calls
    cpu_us = (stand.processor_s(process) - before_s) * 1e6 / called.calls
    return Run(*called, cpu_us)


async def _sold(book: Book, plan: Plan) -> Called:
    """Let the clients buy; return when all of it is published."""
    called = await _called(book.address, SELL, plan)
    book.behind.append(await _unpublished(book.http_port))
    await _published(book)
    return called


async def _published(book: Book) -> None:
    async def is_published() -> bool:
        return await _unpublished(book.http_port) == 0

    await until(is_published, PUBLISHED_WITHIN_S, "vending publishes its sales")


async def _measure_alone(stand: Stand, alone: Alone, number: int) -> None:
    durable = ("-m", "tools.bench.durable")
    scratch = stand.directory / "durable"
    scratch.mkdir(exist_ok=True)
    file = str(scratch / f"{number}.sqlite")
    alone.fsyncs.append(
        float(await stand.said(*durable, "fsync", str(scratch / "fsync"), str(ALONE_S)))
    )
    alone.inserts[""].append(float(await stand.said(*durable, "sqlite", file, str(ALONE_S))))
    env = {"BENCH_DSN": stand.at.postgres_dsn}  # a command line is everybody's to read
    inserts = await stand.said(*durable, "postgres", "BENCH_DSN", str(ALONE_S), env=env)
    alone.inserts["postgres."].append(float(inserts))


def _figures(books: list[Book], empties: list[Run], alone: Alone) -> list[Figure]:
    figures = [
        median_of("vending.empty_call_per_second", "calls/s", [run.per_second for run in empties]),
        median_of("vending.empty_call_ms.p50", "ms", [run.p50_ms for run in empties]),
        median_of("vending.empty_call_ms.p99", "ms", [run.p99_ms for run in empties]),
        median_of("vending.empty_call_cpu_us", "µs", [run.cpu_us for run in empties]),
        median_of("vending.fsyncs_per_second", "fsyncs/s", alone.fsyncs),
    ]
    for book in books:
        figures += _figures_of(book, empties, alone.fsyncs, alone.inserts[book.name])
    return figures


def _figures_of(
    book: Book, empties: list[Run], fsyncs: list[float], inserts: list[float]
) -> list[Figure]:
    name = f"vending.{book.name}"
    rates = [run.per_second for run in book.sales]

    def to(others: list[float]) -> list[float]:
        return [rate / other for rate, other in zip(rates, others, strict=True)]

    pairs = list(zip(book.sales, empties, strict=True))
    return [
        median_of(f"{name}sales_per_second", "sales/s", rates),
        median_of(f"{name}sale_ms.p50", "ms", [run.p50_ms for run in book.sales]),
        median_of(f"{name}sale_ms.p99", "ms", [run.p99_ms for run in book.sales]),
        median_of(f"{name}sales_to_empty_call", "ratio", to([run.per_second for run in empties])),
        median_of(
            f"{name}sale_to_empty_call.p99",
            "ratio",
            [sale.p99_ms / nothing.p99_ms for sale, nothing in pairs],
        ),
        median_of(f"{name}sale_cpu_us", "µs", [run.cpu_us for run in book.sales]),
        median_of(
            f"{name}empty_call_to_sale_cpu",
            "ratio",
            [nothing.cpu_us / sale.cpu_us for sale, nothing in pairs],
        ),
        median_of(f"{name}sales_to_fsyncs", "ratio", to(fsyncs)),
        median_of(f"{name}inserts_per_second", "inserts/s", inserts),
        median_of(f"{name}sales_to_inserts", "ratio", to(inserts)),
        median_of(f"{name}unpublished_after_run", "events", book.behind),
    ]


async def _open(clients: Clients, accounts: int) -> None:
    await sitefile.apply(clients, SITE, lambda _: None)

    async def one(number: int) -> None:
        request = v.OpenAccountRequest(
            request_id=str(uuid4()),
            account_id=calls.account_id(number),
            site="sites/bench",
            commodity="electricity",
            tariff="tariffs/bench",
            policy="policies/bench",
        )
        await clients.vending("OpenAccount", request)

    await sitefile.each(range(accounts), one)


async def _called(address: str, method: str, plan: Plan) -> Called:
    """Let the clients call, from a process of their own."""
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), ANSWERED_WITHIN_S)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools.bench.calls",
        address,
        method,
        str(plan.clients),
        str(plan.seconds),
        str(plan.accounts),
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, "the clients failed"
    found = json.loads(said)
    durations_ms = found["durations_ms"]
    return Called(
        found["calls"],
        len(durations_ms) / plan.seconds,
        quantile(durations_ms, P50),
        quantile(durations_ms, P99),
    )


async def _unpublished(http_port: int) -> float:
    """Return how many events are stored and not yet on every topic."""
    text = await fetched(http_port, "/metrics")
    found = re.search(r"^wattvend_vending_relay_lag_events (\S+)$", text, re.MULTILINE)
    assert found is not None, "vending says nothing of its relay"
    return float(found[1])


async def _judge(clients: Clients, accounts: int, sold: int) -> None:
    """Fail unless the book has every sale that was answered, and no other."""
    credited_nano = 0
    for number in range(accounts):
        account: v.Account = await clients.vending(
            "GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(calls.account_id(number)))
        )
        credited_nano += account.credited_nano
    found = credited_nano / (calls.AMOUNT_MINOR * NANO_PER_MINOR)
    assert found == sold, f"{sold} sales were answered, the book has {found:g}"
