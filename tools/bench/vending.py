"""vending: sales a second beside empty calls, both on one core, asked by the same clients.

The real service with its real settings: durable before it answers, and publishing what it stored.
Runs of sales and of empty calls take turns, so that what else the machine does hits both. Every
sale that was answered must be in the book in the end.
"""

import asyncio
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from uuid import uuid4

import grpc.aio

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


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    clients: int = 64
    accounts: int = 1_024
    runs: int = 9
    seconds: float = 3.0


@dataclass(frozen=True, slots=True)
class Run:
    """One run of calls: answered in all, a second, and how long they took."""

    calls: int
    per_second: float
    p50_ms: float
    p99_ms: float


async def measure(stand: Stand, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench."""
    grpc_port, empty_port = free_ports(2)
    settings = {
        "GRPC_PORT": str(grpc_port),
        "STORE_PATH": str(stand.directory / "vending" / "events.sqlite"),
    }
    http_port = await stand.start_service("vending", settings)
    vending, nothing = f"{LOOPBACK}:{grpc_port}", f"{LOOPBACK}:{empty_port}"
    await stand.start("empty", "-m", "tools.bench.empty", str(empty_port))
    async with connect(vending, vending, CALLER) as clients:
        screen.say(f"vending: {plan.accounts:,} accounts are opened")
        await _open(clients, plan.accounts)
        sales, empties, behind = [], [], []
        for number in range(plan.runs):
            screen.say(f"vending: {plan.clients} clients, run {number + 1} of {plan.runs}")
            empties.append(await _called(nothing, empty.METHOD, plan))
            sales.append(await _called(vending, SELL, plan))
            behind.append(await _unpublished(http_port))
            await until(
                lambda: _is_published(http_port), PUBLISHED_WITHIN_S, "vending publishes its sales"
            )
        await _judge(clients, plan.accounts, sum(run.calls for run in sales))
    return _figures(sales, empties, behind)


def _figures(sales: list[Run], empties: list[Run], behind: list[float]) -> list[Figure]:
    pairs = list(zip(sales, empties, strict=True))
    return [
        median_of("vending.sales_per_second", "sales/s", [run.per_second for run in sales]),
        median_of("vending.sale_ms.p50", "ms", [run.p50_ms for run in sales]),
        median_of("vending.sale_ms.p99", "ms", [run.p99_ms for run in sales]),
        median_of("vending.empty_call_per_second", "calls/s", [run.per_second for run in empties]),
        median_of("vending.empty_call_ms.p50", "ms", [run.p50_ms for run in empties]),
        median_of("vending.empty_call_ms.p99", "ms", [run.p99_ms for run in empties]),
        median_of(
            "vending.sales_to_empty_call",
            "ratio",
            [sale.per_second / nothing.per_second for sale, nothing in pairs],
        ),
        median_of(
            "vending.sale_to_empty_call.p99",
            "ratio",
            [sale.p99_ms / nothing.p99_ms for sale, nothing in pairs],
        ),
        median_of("vending.unpublished_after_run", "events", behind),
    ]


async def _open(clients: Clients, accounts: int) -> None:
    await sitefile.apply(clients, SITE, lambda _: None)

    async def one(number: int) -> None:
        request = v.OpenAccountRequest(
            request_id=str(uuid4()),
            account_id=calls.account_id(number),
            site_id="bench",
            commodity="electricity",
            tariff_id="bench",
            policy_id="bench",
        )
        await clients.vending("OpenAccount", request)

    await sitefile.each(range(accounts), one)


async def _called(address: str, method: str, plan: Plan) -> Run:
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
    return Run(
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


async def _is_published(http_port: int) -> bool:
    return await _unpublished(http_port) == 0


async def _judge(clients: Clients, accounts: int, sold: int) -> None:
    """Fail unless the book has every sale that was answered, and no other."""
    credited_nano = 0
    for number in range(accounts):
        account: v.Account = await clients.vending(
            "GetAccount", v.GetAccountRequest(account_id=calls.account_id(number))
        )
        credited_nano += account.credited_nano
    found = credited_nano / (calls.AMOUNT_MINOR * NANO_PER_MINOR)
    assert found == sold, f"{sold} sales were answered, the book has {found:g}"
