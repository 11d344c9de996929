"""What an operator does: opens accounts, sells, gives each its meter. gRPC only."""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid5

from google.protobuf.message import Message

from services.common.kernel import names
from tools import mall, sitefile
from tools.client import Clients, Refused
from tools.demo.plan import DemoMeter
from wattvend.vending.v1 import vending_pb2 as v

NO_READING_YET = "NO_READING_YET"
UNAVAILABLE = "UNAVAILABLE"
ANSWER_WITHIN_S = 20.0
RETRY_S = 0.2


class Desk:
    """The operator at the desk. Every request has its own id, derived from the run and a name."""

    def __init__(self, clients: Clients, run_id: UUID) -> None:
        self._clients = clients
        self._run_id = run_id
        self.receipts: list[v.Sale] = []

    def request_id(self, *name: str) -> str:
        """Return the request id of a step by its name: in one run always the same."""
        return str(uuid5(self._run_id, "/".join(name)))

    async def open_accounts(self, sales_minor: dict[DemoMeter, int], timeout_s: float) -> None:
        """Open an account a meter, with its first sale, and give it the meter."""

        async def one(meter: DemoMeter) -> None:
            account = meter.account_id
            await self._clients.vending(
                "OpenAccount",
                v.OpenAccountRequest(
                    request_id=self.request_id("open", account),
                    account_id=account,
                    site=names.SITE.name(mall.SITE),
                    subject_id=f"subject-{account}",
                    commodity="electricity",
                    tariff=names.TARIFF.name(mall.TARIFF),
                    policy=names.POLICY.name(mall.POLICY),
                ),
            )
            await self.sell(account, sales_minor[meter], "first")
            await self._assign(meter, timeout_s)

        await sitefile.each(list(sales_minor), one)

    async def _assign(self, meter: DemoMeter, timeout_s: float) -> None:
        """Assign; ask again while the book says that the first reading is still on its way."""
        request = v.AssignMeterRequest(
            request_id=self.request_id("assign", meter.meter_id),
            name=names.METER.name(meter.meter_id),
            account=names.ACCOUNT.name(meter.account_id),
        )
        await self._asked("AssignMeter", request, lambda r: r.reason == NO_READING_YET, timeout_s)

    async def sell(self, account_id: str, amount_minor: int, name: str) -> v.SellResponse:
        """Sell credit; keep the receipt.

        While nobody answers it is asked again with the same request id: sold once all the same.
        """
        request = v.SellRequest(
            request_id=self.request_id("sale", account_id, name),
            name=names.ACCOUNT.name(account_id),
            amount_minor=amount_minor,
            method="qr",
        )
        answer: v.SellResponse = await self._asked(
            "Sell", request, lambda r: r.code == UNAVAILABLE, ANSWER_WITHIN_S
        )
        self.receipts.append(answer.sale)
        return answer

    async def _asked(
        self, method: str, request: Message, again: Callable[[Refused], bool], timeout_s: float
    ) -> Any:
        """Return vending's answer; the same request is repeated while `again` says so, in time."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                return await self._clients.vending(method, request)
            except Refused as refused:
                if not again(refused) or asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(RETRY_S)
