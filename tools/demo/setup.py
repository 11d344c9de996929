"""What an operator does: opens accounts, sells, gives each its meter. gRPC only."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID, uuid5

from tools import mall
from tools.client import Clients, Refused
from tools.demo.plan import DemoMeter
from wattvend.vending.v1 import vending_pb2 as v

AT_ONCE_MAX = 16
NO_READING_YET = "NO_READING_YET"
UNAVAILABLE = "UNAVAILABLE"
ANSWER_WITHIN_S = 20.0
RETRY_S = 0.2


class Desk:
    """The operator at the desk. Every request has its own id, derived from the run and a name."""

    def __init__(self, clients: Clients, run_id: UUID) -> None:
        self._clients = clients
        self._run_id = run_id
        self.receipts: list[v.Receipt] = []

    def _id(self, *name: str) -> str:
        return str(uuid5(self._run_id, "/".join(name)))

    async def open_accounts(self, sales_minor: dict[DemoMeter, int], timeout_s: float) -> None:
        """Open an account a meter, with its first sale, and give it the meter."""

        async def one(meter: DemoMeter) -> None:
            account = meter.account_id
            await self._clients.vending(
                "OpenAccount",
                v.OpenAccountRequest(
                    request_id=self._id("open", account),
                    account_id=account,
                    site_id=mall.SITE,
                    subject_id=f"subject-{account}",
                    commodity="electricity",
                    tariff_id=mall.TARIFF,
                    policy_id=mall.POLICY,
                ),
            )
            await self.sell(account, sales_minor[meter], "first")
            await self._assign(meter, timeout_s)

        await self._each(list(sales_minor), one)

    async def _assign(self, meter: DemoMeter, timeout_s: float) -> None:
        """Assign; ask again while the book says that the first reading is still on its way."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                await self._clients.vending(
                    "AssignMeter",
                    v.AssignMeterRequest(
                        request_id=self._id("assign", meter.meter_id),
                        meter_id=meter.meter_id,
                        account_id=meter.account_id,
                    ),
                )
            except Refused as refused:
                late = asyncio.get_running_loop().time() > deadline
                if refused.reason != NO_READING_YET or late:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def sell(self, account_id: str, amount_minor: int, name: str) -> v.SellResponse:
        """Sell credit; keep the receipt.

        While nobody answers it is asked again with the same request id: sold once all the same.
        """
        request = v.SellRequest(
            request_id=self._id("sale", account_id, name),
            account_id=account_id,
            amount_minor=amount_minor,
            method="qr",
        )
        deadline = asyncio.get_running_loop().time() + ANSWER_WITHIN_S
        while True:
            try:
                answer: v.SellResponse = await self._clients.vending("Sell", request)
            except Refused as refused:
                late = asyncio.get_running_loop().time() > deadline
                if refused.code != UNAVAILABLE or late:
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                self.receipts.append(answer.receipt)
                return answer

    async def _each(
        self, meters: Sequence[DemoMeter], work: Callable[[DemoMeter], Awaitable[None]]
    ) -> None:
        bound = asyncio.Semaphore(AT_ONCE_MAX)

        async def one(meter: DemoMeter) -> None:
            async with bound:
                await work(meter)

        await asyncio.gather(*(one(meter) for meter in meters))
