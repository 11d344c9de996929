"""Corrections and emergency credit: what their deciders need beside the account's stream."""

from dataclasses import replace
from typing import TypeVar

from services.vending.application.approvals import Guarded
from services.vending.application.book import Book
from services.vending.domain import account_commands, corrections, lending
from services.vending.domain.account import Account
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.policy import Policy
from services.vending.domain.tables import Tables

OfPolicy = TypeVar("OfPolicy", corrections.RefundCredit, lending.GrantEmergencyCredit)


class Correcting:
    """Commands about an account's credit that need its sale, its policy, or the book's epoch."""

    def __init__(self, book: Book, tables: Tables, hold_lasts_ms: int) -> None:
        """Use `book` and `tables`. A hold waits `hold_lasts_ms` for metering's echo."""
        self._book = book
        self._tables = tables
        self._hold_lasts_ms = hold_lasts_ms

    @property
    def commands(self) -> dict[str, Guarded]:
        """The commands, by the names that stand in proposals for good."""
        return {
            "reverse-sale": Guarded(
                corrections.ReverseSale,
                Account,
                "account_id",
                corrections.decide,
                self._with_sale,
            ),
            "refund-credit": Guarded(
                corrections.RefundCredit,
                Account,
                "account_id",
                corrections.decide,
                self._with_book_epoch,
                corrections.named,
                said=("at_most_minor",),
            ),
            "grant-emergency": Guarded(
                lending.GrantEmergencyCredit,
                Account,
                "account_id",
                account_commands.decide,
                self._with_policy,
                lending.grant_named,
                said=("at_most_minor",),
            ),
        }

    async def _with_policy(self, command: OfPolicy) -> OfPolicy:
        of = await self._book.state_of(Account, command.account_id)
        by = await self._book.state_of(Policy, of.policy_id) if of else None
        return replace(command, policy=by)

    async def _with_book_epoch(self, command: corrections.RefundCredit) -> corrections.RefundCredit:
        command = await self._with_policy(command)
        return replace(
            command,
            book_epoch=await self._tables.book_epoch(),
            lasts_ms=self._hold_lasts_ms,
        )

    async def _with_sale(self, command: corrections.ReverseSale) -> corrections.ReverseSale:
        sales = await self._book.events_of(Account, command.account_id, CreditSold)
        of_receipt = (sale for sale in sales if sale.receipt_id == command.receipt_id)
        return replace(command, sale=next(of_receipt, None))
