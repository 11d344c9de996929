"""Transfers between accounts, and the end of holds that metering does not echo in time.

Three appends after the hold and its echo, which are those of a refund: the credit has left one
account, in whose stream that stands; the other receives it, by a request that derives from the
transfer; the first one hears of it, or, where the other cannot take it in, has it back. What is in
transit is known from the store, and so is each hold with its deadline.
"""

import asyncio
from dataclasses import replace

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.runtime import points
from services.vending.application.approvals import Guarded
from services.vending.application.book import Book
from services.vending.application.process import each, step
from services.vending.domain import corrections, transfer
from services.vending.domain.account import Account
from services.vending.domain.corrections import TransferCredit
from services.vending.domain.decisions import Rejection
from services.vending.domain.origin import NOBODY
from services.vending.domain.policy import Policy
from services.vending.domain.tables import HOLD, TRANSFER, Tables


class Transfers:
    """What is in transit, and what is held."""

    def __init__(self, book: Book, tables: Tables, clock: Clock, hold_lasts_ms: int) -> None:
        """Use `book`; `tables` know what is pending. A hold waits `hold_lasts_ms` for its echo."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._hold_lasts_ms = hold_lasts_ms
        self._carrying = asyncio.Lock()

    @property
    def commands(self) -> dict[str, Guarded]:
        """The command, by the name that stands in proposals for good."""
        return {
            "transfer-credit": Guarded(
                TransferCredit,
                Account,
                "account_id",
                corrections.decide,
                self._completed,
                corrections.named,
                said=("at_most_minor",),
            )
        }

    async def _completed(self, command: TransferCredit) -> TransferCredit:
        of = await self._book.state_of(Account, command.account_id)
        return replace(
            command,
            book_epoch=await self._tables.book_epoch(),
            lasts_ms=self._hold_lasts_ms,
            policy=await self._book.state_of(Policy, of.policy_id) if of else None,
            to=await self._book.state_of(Account, command.to_account_id),
        )

    async def complete(self) -> int:
        """Let holds go that are overdue, and bring what is in transit; return how many."""
        now_ms = self._clock.now_ms()
        failing = self._book.failing
        done = await each(failing, HOLD, await self._tables.pending(HOLD, now_ms), self._let_go)
        sent = await self._tables.pending(TRANSFER, now_ms)
        return done + await each(failing, TRANSFER, sent, self.carry)

    async def _let_go(self, account_id: str) -> None:
        request = step(self._clock.now_ms(), (), NOBODY, "let-go", account_id)
        command = transfer.LetGo(request, account_id)
        await self._submit(account_id, command)

    async def carry(self, account_id: str) -> None:
        """Bring what has left an account where it goes, or back.

        One at a time: what one finds refused another must not find possible.
        """
        async with self._carrying:
            of = await self._book.state_of(Account, account_id)
            sent = of.refunding if of else None
            if sent is None or not sent.sent_minor:
                return
            points.point("credit-left")
            content = (sent.to_account_id, account_id, sent.sent_as, sent.sent_minor)
            request = step(self._clock.now_ms(), content, sent.origin, "receive", sent.sent_as)
            receive = transfer.ReceiveTransfer(request, *content, sent.reason, sent.to_tenancy)
            failure: Rejection | None = None
            try:
                await self._submit(sent.to_account_id, receive)
            except InvalidInput as refused:
                failure = Rejection(refused.reason, refused.message)
            points.point("credit-received")
            ending = step(self._clock.now_ms(), (), sent.origin, "sent", sent.sent_as)
            await self._submit(account_id, transfer.EndTransfer(ending, account_id, failure))

    async def _submit(self, account_id: str, command: transfer.Step) -> None:
        await self._book.submit(Account, account_id, lambda state: transfer.decide(state, command))
