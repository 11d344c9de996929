"""What sets money right: reversals, refunds, adjustments, write-offs."""

# ruff: noqa: N802 - names and parameters are those of the generated servicer

from typing import Any

from services.common.kernel.errors import Bug
from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.domain.corrections import AdjustCredit, RefundCredit, ReverseSale, WriteOff
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.refunds import CreditRefunded
from wattvend.vending.v1 import vending_pb2 as pb


class Corrections(Handlers):
    """Their methods of VendingService."""

    async def ReverseSale(
        self, request: pb.ReverseSaleRequest, context: Any
    ) -> pb.ReverseSaleResponse:
        """Take a sale back."""
        command = ReverseSale(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            names.RECEIPT.id("receipt", request.receipt),
            request.reason,
        )
        outcome = await self._office.correct(command)
        taken_back = outcome.event
        if not isinstance(taken_back, SaleReversed):
            raise Bug(f"a reversal came to {taken_back}")
        return pb.ReverseSaleResponse(
            reversal=messages.reversal(taken_back),
            credited_nano=taken_back.credited_nano,
            version=self._desk.version(outcome.revision),
        )

    async def RefundCredit(
        self, request: pb.RefundCreditRequest, context: Any
    ) -> pb.RefundCreditResponse:
        """Pay credit out when metering's echo says what is left."""
        wait_s = self._desk.wait_s(context)
        command = RefundCredit(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.amount_minor,
            request.method,
            request.reason,
        )
        outcome = await self._office.refund(command, wait_s)
        paid = outcome.event
        if not isinstance(paid, CreditRefunded):
            raise Bug(f"a refund came to {paid}")
        return pb.RefundCreditResponse(
            refund=messages.refund(paid),
            credited_nano=paid.credited_nano,
            version=self._desk.version(outcome.revision),
        )

    async def AdjustCredit(self, request: pb.AdjustCreditRequest, context: Any) -> pb.Account:
        """Set the credit of an account right."""
        command = AdjustCredit(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.amount_minor,
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.correct(command)).state)

    async def WriteOff(self, request: pb.WriteOffRequest, context: Any) -> pb.Account:
        """Give up what an account owes."""
        command = WriteOff(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.kind,
            request.amount_minor,
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.correct(command)).state)
