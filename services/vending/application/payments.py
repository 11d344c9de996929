"""Payments of outside sellers: what is confirmed is sold once, or the seller is told to pay back.

Three appends: the confirmation, in the payment's stream; the sale, in the account's, by a request
that derives from the payment; how it ended, in the payment's stream again. What is confirmed and
not ended is known from the store.
"""

import asyncio
from dataclasses import replace

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.kernel.filters import Filter
from services.common.runtime import points
from services.vending.application.book import Book, Outcome, accepted
from services.vending.application.process import decided_and_overdue, step
from services.vending.domain import account_commands, payment
from services.vending.domain.account import Account
from services.vending.domain.approval import Failure
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.origin import NOBODY
from services.vending.domain.payment import Payment, Status, payment_id_of
from services.vending.domain.policy import Policy
from services.vending.domain.sale import Sell
from services.vending.domain.tables import PAYMENT, Tables


class Payments:
    """Reservations, and the sales that come of them."""

    def __init__(self, book: Book, tables: Tables, clock: Clock) -> None:
        """Use `book`; `tables` know what waits."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._selling = asyncio.Lock()

    async def reserve(self, command: payment.ReserveSale) -> Payment:
        """Ask for a sale. Raises InvalidInput where it could not be made."""
        of = await self._book.state_of(Account, command.account_id)
        payment_id = payment_id_of(command.request.caller, command.transaction_id)
        by = await self._book.state_of(Policy, of.policy_id) if of else None
        return (await self._submit(payment_id, replace(command, account=of, policy=by))).state

    async def confirm(self, command: payment.ConfirmSale) -> Outcome[Account]:
        """Sell what is paid. The outcome's event is the CreditSold.

        Raises InvalidInput(PAYMENT_TO_RETURN) where the money must go back.
        """
        payment_id = payment_id_of(command.request.caller, command.transaction_id)
        await self._submit(payment_id, command)
        state = await self.sell(payment_id)
        if state.failure is not None:
            raise payment.to_return(state, state.failure.message).as_error()
        return await self._sold(state)  # a repeat

    async def cancel(self, command: payment.CancelSale) -> Payment:
        """Let a reservation go."""
        payment_id = payment_id_of(command.request.caller, command.transaction_id)
        await self._submit(payment_id, command)
        return await self.of(command.request.caller, command.transaction_id)

    async def of(self, caller: str, transaction_id: str) -> Payment:
        """Return a caller's payment. Raises InvalidInput(PAYMENT_NOT_FOUND)."""
        found = await self._book.state_of(Payment, payment_id_of(caller, transaction_id))
        if found is None:
            raise payment.payment_not_found(transaction_id).as_error()
        return found

    async def page(
        self, seller: str, wanted: Filter, before: int, limit: int
    ) -> tuple[list[Payment], int | None]:
        """Return payments of which a filter holds, newest first, and where to go on if more do.

        Of a seller or, "", of all; the filter's fields: see Tables.payments.
        """
        rows = await self._tables.payments(seller, wanted, before, limit + 1)
        last = rows[limit - 1][0] if len(rows) > limit else None
        states = [await self._book.state_of(Payment, payment_id) for _, payment_id in rows[:limit]]
        return [state for state in states if state is not None], last

    async def reversal_of(self, state: Payment) -> str:
        """Return the receipt by which the sale of a payment was reversed; "": it was not."""
        of = await self._book.state_of(Account, state.account_id) if state.receipt_id else None
        return dict(of.reversed_receipts).get(state.receipt_id, "") if of else ""

    async def complete(self) -> int:
        """Sell what is confirmed, time out what nobody confirmed; return how many."""
        return await decided_and_overdue(
            self._book.failing,
            self._tables,
            PAYMENT,
            self._clock,
            carry_out=self.sell,
            end=self._time_out,
        )

    async def _time_out(self, payment_id: str, now_ms: int) -> None:
        request = step(now_ms, (), NOBODY, "time-out", payment_id)
        await self._submit(payment_id, payment.TimeOut(request))

    async def sell(self, payment_id: str) -> Payment:
        """Sell a payment that is confirmed and not sold yet; return it after that.

        One at a time: what one finds refused another must not find possible.
        """
        async with self._selling:
            state = await self._book.state_of(Payment, payment_id)
            assert state is not None, "what is confirmed was reserved"
            if state.status is not Status.CONFIRMED:
                return state
            points.point("payment-confirmed")
            receipt_id, revision, failure = "", -1, None
            try:
                outcome = await self._sold(state)
                assert isinstance(outcome.event, CreditSold)
                receipt_id, revision = outcome.event.receipt_id, outcome.revision
            except InvalidInput as refused:
                failure = Failure(refused.reason.value, refused.message)
            points.point("payment-sold")
            request = step(self._clock.now_ms(), (), state.seller, "concluded", payment_id)
            concluded = payment.Conclude(request, receipt_id, revision, failure)
            return (await self._submit(payment_id, concluded)).state

    async def _sold(self, state: Payment) -> Outcome[Account]:
        content = (state.account_id, state.amount_minor, state.method)
        request = step(self._clock.now_ms(), content, state.seller, "sell", state.payment_id)
        of = await self._book.state_of(Account, state.account_id)
        by = await self._book.state_of(Policy, of.policy_id) if of else None
        command = Sell(
            request,
            *content,
            policy=by,
            is_paid=True,
            fee_minor=state.fee_minor,
            debt_share_ppm=state.debt_share_ppm,
            reserved_at=state.account_revision,
        )
        return accepted(
            await self._book.submit(
                Account, state.account_id, lambda before: account_commands.decide(before, command)
            )
        )

    async def _submit(self, payment_id: str, command: payment.Command) -> Outcome[Payment]:
        return await self._book.submit(
            Payment, payment_id, lambda state: payment.decide(state, command)
        )
