"""Payments of outside sellers: reserved, then confirmed or cancelled."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput, shown
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.kernel.reasons import Reason
from services.common.kernel.units import INT64_MAX
from services.common.runtime.grpc import Call
from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.domain import checks
from services.vending.domain.payment import REVERSED, CancelSale, ConfirmSale, ReserveSale, Status
from wattvend.vending.v1 import vending_pb2 as pb

ALL = "sellers/-"
FILTER_FIELDS = {
    "account": filters.name(names.ACCOUNT),
    "status": filters.choice(*Status, REVERSED),
    "legal_entity": filters.name(names.LEGAL_ENTITY),
}


class Payments(Handlers):
    """Their methods of VendingService."""

    async def ReserveSale(self, request: pb.ReserveSaleRequest, context: Any) -> pb.Payment:
        """Ask whether a sale could be made."""
        command = ReserveSale(
            await self._desk.request(request, context),
            request.transaction_id,
            names.ACCOUNT.id("account", request.account),
            request.amount_minor,
            request.method,
            request.lasts_ms,
        )
        return self._desk.told(messages.payment, await self._office.payments.reserve(command))

    async def ConfirmSale(self, request: pb.ConfirmSaleRequest, context: Any) -> pb.SellResponse:
        """Sell what is paid; the answer is durable."""
        command = ConfirmSale(
            await self._desk.request(request, context), _transaction_id(request, context)
        )
        outcome = await self._office.payments.confirm(command)
        return messages.sold(outcome, self._desk.version(outcome.revision))

    async def CancelSale(self, request: pb.CancelSaleRequest, context: Any) -> pb.Payment:
        """Let a reservation go."""
        command = CancelSale(
            await self._desk.request(request, context),
            _transaction_id(request, context),
            request.reason,
        )
        return self._desk.told(messages.payment, await self._office.payments.cancel(command))

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Any) -> pb.Payment:
        """Return a payment of the caller."""
        payments = self._office.payments
        state = await payments.of(context.caller, _transaction_id(request, context))
        reversal_id = await payments.reversal_of(state)
        return messages.payment(state, self._desk.version(state.answers.revision), reversal_id)

    async def ListPayments(
        self, request: pb.ListPaymentsRequest, context: Any
    ) -> pb.ListPaymentsResponse:
        """Return a page of payments, the newest first."""
        seller = "" if request.parent == ALL else names.SELLER.id("parent", request.parent)
        size = page_size_of(request.page_size)
        of = filters.parse(request.filter, FILTER_FIELDS)
        listed = ("payments", request.parent, request.filter)
        cursor = cursor_of(listed, request.page_token, (int,))
        before = int(cursor[0]) if cursor else INT64_MAX
        payments = self._office.payments
        found, last = await payments.page(seller, of, before, size)
        reversals = [await payments.reversal_of(state) for state in found]
        told = [
            messages.payment(state, self._desk.version(state.answers.revision), reversal_id)
            for state, reversal_id in zip(found, reversals, strict=True)
        ]
        return pb.ListPaymentsResponse(
            payments=told, next_page_token=token_of(listed, (last,)) if last else ""
        )


def _transaction_id(request: Any, call: Call) -> str:
    """Return the caller's transaction in a payment's name. Raises InvalidInput."""
    seller, transaction_id = names.PAYMENT.ids("name", request.name)
    if seller != call.caller:
        yours = names.SELLER.name(call.caller)
        text = f"{shown(request.name)} is not yours; yours begin with {yours}/"
        raise InvalidInput(Reason.PAYMENT_NOT_FOUND, text, field="name")
    checks.check_text("name", transaction_id)
    return transaction_id
