"""The last act: a tenant moves out. The operator closes the account, another pays what is left."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from google.longrunning import operations_pb2

from services.common.kernel import names
from services.common.kernel.units import format_nano, format_scaled
from tools.client import Clients, Refused
from tools.demo.judge import MeterVerdict
from tools.demo.plan import MINOR_NANO
from tools.demo.screen import CNY, Screen, money
from wattvend.vending.v1 import closings_pb2 as c
from wattvend.vending.v1 import vending_pb2 as v

SETTLED_WITHIN_S = 45.0
POLL_S = 0.2
UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Leaving:
    """A tenant who moves out. `operator` and `second`: two persons at vending, by their callers.

    `request_id`: of a step by its name. `kill` ends vending in the middle, where the story kills.
    """

    operator: Clients
    second: Clients
    request_id: Callable[[str], str]
    screen: Screen
    kill: Callable[[], Awaitable[None]]

    async def run(self, of: MeterVerdict) -> list[tuple[str, bool, str]]:
        """Play it for an account that was judged. Returns checks: name, whether it holds, found."""
        account = of.meter.account_id
        async with asyncio.timeout(SETTLED_WITHIN_S):
            closing = await self._begun(account)
            self.screen.say(f"{account}: the tenant moves out; its meter is read once more")
            await self.kill()
            while closing.step != "approval" and closing.state == "running":
                closing = await self._seen(closing.name)
            register = closing.meters[0].register_milli
            self.screen.say(
                f"{account}: the meter left at {format_scaled(register, 3)} kWh exactly"
            )
            await self._approve(account)
            while closing.state == "running":
                closing = await self._seen(closing.name)
        return await self._checks(of, closing)

    async def _begun(self, account_id: str) -> c.Closing:
        request = c.CreateClosingRequest(
            parent=names.ACCOUNT.name(account_id),
            request_id=self.request_id("close"),
            method="transfer",
            without_cut=True,  # the next tenant moves in
            reason="moves out",
        )
        begun: operations_pb2.Operation = await self.operator.closings("CreateClosing", request)
        closing = c.Closing()
        begun.metadata.Unpack(closing)
        return closing

    async def _seen(self, name: str) -> c.Closing:
        while True:
            await asyncio.sleep(POLL_S)
            try:
                found: c.Closing = await self.operator.closings(
                    "GetClosing", c.GetClosingRequest(name=name)
                )
            except Refused as refused:
                if refused.code != UNAVAILABLE:
                    raise
            else:
                return found

    async def _approve(self, account_id: str) -> None:
        """Let the second person approve what the operator may not pay out alone."""
        target = names.ACCOUNT.name(account_id)
        proposed: list[v.Approval] = []
        while not proposed:  # it is there a moment after the closing waits for it
            await asyncio.sleep(POLL_S)
            waiting: v.ListApprovalsResponse = await self.second.vending(
                "ListApprovals", v.ListApprovalsRequest()
            )
            proposed = [one for one in waiting.approvals if one.target == target]
        await self.second.vending(
            "Approve",
            v.ApproveRequest(
                request_id=self.request_id("approve"), name=proposed[0].name, reason="seen"
            ),
        )
        self.screen.say(f"{account_id}: a second person approved what is paid out", "green")

    async def _checks(self, of: MeterVerdict, closing: c.Closing) -> list[tuple[str, bool, str]]:
        account_id = of.meter.account_id
        account: v.Account = await self.operator.vending(
            "GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(account_id))
        )
        meter: v.Meter = await self.operator.vending(
            "GetMeter", v.GetMeterRequest(name=names.METER.name(of.meter.meter_id))
        )
        settled = closing.settlement
        refund_nano = settled.refund_minor * MINOR_NANO
        left_nano = of.receipts_nano - of.true_cost_nano
        is_nothing = account.credited_nano == settled.charged_nano == of.true_cost_nano
        return [
            (
                f"{account_id}: receipts − cost = paid out, and what rounding dropped",
                refund_nano + settled.dropped_nano == left_nano and refund_nano > 0,
                f"{money(refund_nano)} and {format_nano(settled.dropped_nano, CNY)}",
            ),
            (
                f"{account_id} is closed, at exactly nothing; its meter is the house's",
                (closing.state, account.status) == ("closed", "closed")
                and is_nothing
                and not meter.account,
                f"credited − used = {money(account.credited_nano - settled.charged_nano)}",
            ),
        ]
