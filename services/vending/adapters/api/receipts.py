"""Receipts, as messages and as paper."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

import asyncio
from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.application.receipts import Paper
from services.vending.domain.events import CreditRefunded, CreditSold, SaleReversed
from wattvend.vending.v1 import vending_pb2 as pb


class Receipts(Handlers):
    """Their methods of VendingService."""

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.Receipt:
        """Return a receipt with its number."""
        paper = await self._office.receipts.paper(names.RECEIPT.id("name", request.name))
        event = paper.event
        answer = pb.Receipt(
            name=request.name, number=paper.number, other_number=paper.other_number or 0
        )
        match event:
            case CreditSold():
                answer.sale.CopyFrom(messages.sale(event))
            case SaleReversed():
                answer.reversal.CopyFrom(messages.reversal(event))
            case CreditRefunded():
                answer.refund.CopyFrom(messages.refund(event))
        return answer

    async def PrintReceipt(
        self, request: pb.PrintReceiptRequest, context: Any
    ) -> pb.PrintReceiptResponse:
        """Return a receipt as PDF."""
        paper = await self._office.receipts.paper(names.RECEIPT.id("name", request.name))
        pdf = await asyncio.to_thread(_printed, paper)
        return pb.PrintReceiptResponse(number=paper.number, pdf=pdf)


def _printed(paper: Paper) -> bytes:
    # What it takes would cost every start a second and 28 MB, for what is asked now and then.
    from services.vending.adapters import receipt_pdf  # noqa: PLC0415

    return receipt_pdf.printed(paper)
