"""vending: how long a start takes with few accounts and with very many, and what it holds then.

Each book was told to `ledger` up to its end, as one that was stopped. Started is the service as it
is, with its real settings: until it says that it is ready, and until it has answered the first sale
to an account that it has not looked at. The file was written a moment ago: no disk is waited for.
"""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from services.vending.adapters import names
from services.vending.adapters.bus import KafkaPublisher
from services.vending.application.relay import checkpoint_record
from tools.bench import big_book
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
    written_within_s: float = 480.0


@dataclass(frozen=True, slots=True)
class Start:
    """One start: s until it was ready, ms that the first sale took then, MB that it held."""

    ready_s: float
    first_sale_ms: float
    memory_mb: float


async def measure(stand: Stand, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench."""
    figures: list[Figure] = []
    for wanted in plan.accounts:
        path = stand.directory / "restart" / f"{wanted}.sqlite"
        accounts, checkpoint = await asyncio.to_thread(
            big_book.write, path, wanted, plan.written_within_s, screen.say
        )
        publisher = KafkaPublisher(stand.at.kafka_bootstrap, "bench")
        await publisher.publish([checkpoint_record(checkpoint)])
        await publisher.close()
        book_mb = path.stat().st_size / MB
        starts = []
        for number in range(plan.starts):
            screen.say(f"restart: {accounts:,} accounts, start {number + 1} of {plan.starts}")
            account = number * accounts // plan.starts
            starts.append(await _start(stand, path, big_book.account_id(account)))
        at = f"accounts.{accounts}"
        figures += [
            median_of(f"restart.ready_s.{at}", "s", [start.ready_s for start in starts]),
            median_of(f"restart.first_sale_ms.{at}", "ms", [s.first_sale_ms for s in starts]),
            median_of(f"restart.memory_mb.{at}", "MB", [start.memory_mb for start in starts]),
            median_of(f"restart.book_mb.{at}", "MB", [book_mb]),
        ]
    return figures


async def _start(stand: Stand, path: Path, account_id: str) -> Start:
    (grpc_port,) = free_ports(1)
    address = f"{LOOPBACK}:{grpc_port}"
    given = {"GRPC_PORT": str(grpc_port), "STORE_PATH": str(path)}
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
