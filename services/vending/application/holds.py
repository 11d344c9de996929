"""Holds: refunds and transfers as they are now, from the call to long after their end."""

from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.application.book import Book
from services.vending.domain.account import Account
from services.vending.domain.decisions import Rejection
from services.vending.domain.events.refunds import (
    CreditRefunded,
    RefundHeld,
    RefundRefused,
    TransferArrived,
    TransferReturned,
)
from services.vending.domain.tables import HoldRow, Tables

Ended = CreditRefunded | RefundRefused | TransferArrived | TransferReturned
_ENDED: tuple[type[Ended], ...] = (CreditRefunded, RefundRefused, TransferArrived, TransferReturned)


@value_class
class Look:
    """A hold, and what it came to; None: it waits for metering, or its credit is in transit."""

    row: HoldRow
    held: RefundHeld
    ended: Ended | None


class Holds:
    """What is held, and was."""

    def __init__(self, book: Book, tables: Tables) -> None:
        """Use `book`; `tables` know whose each hold is."""
        self._book = book
        self._tables = tables

    async def look(self, hold_id: str) -> Look:
        """Return a hold. Raises InvalidInput(OPERATION_NOT_FOUND)."""
        row = await self._tables.hold(hold_id)
        if row is None:
            text = f"there is no hold {hold_id!r}; list those that there are"
            raise Rejection(Reason.OPERATION_NOT_FOUND, text, "name").as_error()
        return await self._looked(row)

    async def page(
        self, is_transfer: bool, is_open: bool | None, after: int, limit: int
    ) -> list[Look]:
        """Return at most `limit` holds above a position, oldest first; `is_open` None: all."""
        rows = await self._tables.holds(is_transfer, is_open, after, limit)
        return [await self._looked(row) for row in rows]

    async def _looked(self, row: HoldRow) -> Look:
        held = await self._book.events_of(Account, row.account_id, RefundHeld)
        (mine,) = (event for event in held if event.hold_id == row.hold_id)
        ended: list[Ended] = []
        for kind in () if row.is_open else _ENDED:
            found = await self._book.events_of(Account, row.account_id, kind)
            ended += [event for event in found if event.hold_id == row.hold_id]
        return Look(row, mine, ended[-1] if ended else None)
