"""Sales, and what energy costs."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from time import perf_counter
from typing import Any

from services.common.runtime import points
from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.domain.sale import Sell
from wattvend.vending.v1 import vending_pb2 as pb


class Sales(Handlers):
    """Their methods of VendingService."""

    async def Sell(self, request: pb.SellRequest, context: Any) -> pb.SellResponse:
        """Sell credit; the answer is durable."""
        began_s = perf_counter()
        try:
            command = Sell(
                await self._desk.request(request, context),
                names.ACCOUNT.id("name", request.name),
                request.amount_minor,
                request.method,
                request.energy_milli,
            )
            outcome = await self._office.sell(command)
        finally:
            self._desk.metrics.sale.observe(perf_counter() - began_s)
        points.point("answering")
        return messages.sold(outcome, self._desk.version(outcome.revision))

    async def QuoteSale(self, request: pb.QuoteSaleRequest, context: Any) -> pb.QuoteSaleResponse:
        """Return what energy costs an account now."""
        quoted, of = await self._office.quote(
            names.ACCOUNT.id("name", request.name), request.energy_milli
        )
        return pb.QuoteSaleResponse(
            energy_milli=quoted.energy_milli,
            price_micro=quoted.price_micro,
            amount_minor=quoted.amount_minor,
            fee_minor=quoted.fee_minor,
            currency=of.currency,
        )
