"""Receipts, as messages and as paper."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

import asyncio
from typing import Any

from services.common.kernel import filters
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.units import INT64_MAX
from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.application.receipts import Documented, Paper
from services.vending.domain import checks
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold
from wattvend.vending.v1 import vending_pb2 as pb

TYPES = {CreditSold: "sale", SaleReversed: "reversal", CreditRefunded: "refund"}
FILTER_FIELDS = {
    "type": filters.choice(*TYPES.values()),
    "method": filters.choice(*checks.METHODS),
    "at_ms": filters.whole(),
}


class Receipts(Handlers):
    """Their methods of VendingService."""

    async def GetReceipt(self, request: pb.GetReceiptRequest, context: Any) -> pb.Receipt:
        """Return a receipt with its number."""
        paper = await self._office.receipts.paper(names.RECEIPT.id("name", request.name))
        return messages.receipt(paper.event, paper.number, paper.other_number or 0)

    async def ListReceipts(
        self, request: pb.ListReceiptsRequest, context: Any
    ) -> pb.ListReceiptsResponse:
        """Return a page of an account's receipts, the newest first."""
        account_id = names.ACCOUNT.id("parent", request.parent)
        size = page_size_of(request.page_size)
        of = filters.parse(request.filter, FILTER_FIELDS)
        listed = ("receipts", account_id, request.filter)
        cursor = cursor_of(listed, request.page_token, (int,))
        before = int(cursor[0]) if cursor else INT64_MAX
        state = await self._office.account(account_id)

        def wanted(event: Documented) -> bool:
            values = {"type": TYPES[type(event)], "method": event.method}
            return filters.holds(of, {**values, "at_ms": event.occurred_at_ms})

        found = await self._office.receipts.newest(state, wanted, before, size + 1)
        more = len(found) > size
        return pb.ListReceiptsResponse(
            receipts=[messages.receipt(r.event, r.number, r.other_number) for r in found[:size]],
            next_page_token=token_of(listed, (found[size - 1].revision,)) if more else "",
        )

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
