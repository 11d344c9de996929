"""`python -m tools.bench.calls ADDRESS METHOD CLIENTS SECONDS ACCOUNTS`: clients that sell.

Each client has a connection of its own and calls again as soon as it was answered; the accounts
are its own. Prints a JSON object: `calls` that were answered, and the `durations_ms` of those that
began after the warm-up and ended within SECONDS. Ends with an error where a call fails.
"""

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from itertools import count
from uuid import uuid4

import grpc.aio

from services.common.kernel import names
from wattvend.vending.v1 import vending_pb2 as v

CALLER = (("wattvend-caller", "bench"),)
WARM_UP_S = 1.0
TIMEOUT_S = 20.0
AMOUNT_MINOR = 100


@dataclass
class Load:
    """What is called, for how long; and what came of it. Times in s of the monotonic clock."""

    address: str
    method: str
    clients: int
    seconds: float
    accounts: int
    calls: int = 0
    durations_ms: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Let every client call."""
        begin_s = time.perf_counter() + WARM_UP_S
        clients = (self._client(number, begin_s) for number in range(self.clients))
        await asyncio.gather(*clients)

    async def _client(self, number: int, begin_s: float) -> None:
        end_s = begin_s + self.seconds
        own_connection = [("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.insecure_channel(self.address, options=own_connection) as channel:
            call = channel.unary_unary(self.method, None, None)  # bytes: the same work for each
            for turn in count():
                account = (number + turn * self.clients) % self.accounts
                request = v.SellRequest(
                    request_id=str(uuid4()),
                    name=names.ACCOUNT.name(account_id(account)),
                    amount_minor=AMOUNT_MINOR,
                    method="qr",
                ).SerializeToString()
                began_s = time.perf_counter()
                if began_s >= end_s:
                    return
                await call(request, metadata=CALLER, timeout=TIMEOUT_S)
                answered_s = time.perf_counter()
                self.calls += 1
                if began_s >= begin_s and answered_s <= end_s:
                    self.durations_ms.append((answered_s - began_s) * 1000)


def account_id(number: int) -> str:
    """Return the account of a number."""
    return f"bench-{number}"


def main() -> None:
    """Call, and print what came of it."""
    address, method, clients, seconds, accounts = sys.argv[1:]
    load = Load(address, method, int(clients), float(seconds), int(accounts))
    asyncio.run(load.run())
    print(json.dumps({"calls": load.calls, "durations_ms": load.durations_ms}))


if __name__ == "__main__":
    main()
