"""Receipts: a sale, its reversal or a refund on paper, with its number, as often as it is asked."""

import asyncio
from collections.abc import Callable
from zoneinfo import ZoneInfo

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.kernel.zones import zone_named
from services.vending.application.book import Book
from services.vending.application.numbering import DOCUMENTS
from services.vending.domain import checks
from services.vending.domain.account import Account
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.site import Site
from services.vending.domain.tables import Document, Tables

LOOKS_MAX = 40
LOOK_S = 0.05
"""A number comes a moment after its sale: it is waited for, two seconds at most."""


Documented = CreditSold | SaleReversed | CreditRefunded


@value_class
class Listed:
    """A receipt in a list: 0 where there is no number yet, or no other one."""

    revision: int
    event: Documented
    number: int
    other_number: int


@value_class
class Paper:
    """A receipt: its number, its event, where its account stands, and whose it was then.

    `other_number`: of a sale, that of its reversal, of a reversal, that of its sale; None: there is
    none.
    """

    number: int
    event: Documented
    site_id: str
    zone: ZoneInfo
    other_number: int | None
    subject_id: str | None


class Receipts:
    """The papers of a book."""

    def __init__(self, book: Book, tables: Tables) -> None:
        """Use `book`; `tables` know the numbers."""
        self._book = book
        self._tables = tables

    async def paper(self, receipt_id: str) -> Paper:
        """Return a receipt. Raises InvalidInput(RECEIPT_NOT_FOUND), Retriable without a number."""
        checks.check_uuid("receipt_id", receipt_id)
        document = await self._numbered(receipt_id)
        event = await self._book.event_at(document.stream, document.revision)
        assert isinstance(event, DOCUMENTS), "documents are of these"
        of = await self._book.state_of(Account, event.account_id)
        assert of is not None, "its stream has this event"
        site = await self._book.state_of(Site, of.site_id)
        assert site is not None, "an account stands at a site"
        other_id = _other(event, of)
        other = await self._numbered(other_id) if other_id else None
        return Paper(
            document.number,
            event,
            of.site_id,
            zone_named(site.zone),
            other.number if other else None,
            of.subject_at(document.revision),
        )

    async def newest(
        self, of: Account, wanted: Callable[[Documented], bool], before: int, limit: int
    ) -> list[Listed]:
        """Return what receipts an account was given below a revision, the newest first.

        It reads the account's stream.
        """
        found: list[Listed] = []
        history = await self._book.history(Account, of.account_id)
        for revision, event in reversed(list(enumerate(history[: max(before, 0)]))):
            if isinstance(event, DOCUMENTS) and wanted(event):
                numbers = [await self._number(id_) for id_ in (event.receipt_id, _other(event, of))]
                found.append(Listed(revision, event, *numbers))
                if len(found) == limit:
                    break
        return found

    async def _number(self, receipt_id: str | None) -> int:
        document = await self._tables.document(receipt_id) if receipt_id else None
        return document.number if document else 0

    async def _numbered(self, receipt_id: str) -> Document:
        head = await self._book.head()
        for _ in range(LOOKS_MAX):
            until = await self._tables.numbered_until()
            document = await self._tables.document(receipt_id)
            if document is not None:
                return document
            if until >= head:
                text = f"there is no receipt {receipt_id}; check its id"
                raise InvalidInput(Reason.RECEIPT_NOT_FOUND, text, field="receipt_id")
            await asyncio.sleep(LOOK_S)
        raise Retriable(f"receipt {receipt_id} has no number yet, if there is one: ask again")


def _other(event: Documented, of: Account) -> str | None:
    """Return the receipt of a sale's reversal, or of a reversal's sale; None: there is none."""
    if isinstance(event, SaleReversed):
        return event.reversed_receipt_id
    return dict(of.reversed_receipts).get(event.receipt_id)
