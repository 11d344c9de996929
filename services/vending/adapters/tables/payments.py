"""`payment`: what outside sellers have reserved, and what became of it."""

from collections.abc import Iterator
from typing import Any

from services.common.kernel import filters
from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Make, Table
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.payments import (
    PaymentConfirmed,
    PaymentRefused,
    PaymentSold,
    ReservationCancelled,
    ReservationTimedOut,
    SaleReserved,
)
from services.vending.domain.payment import REVERSED, Status

SCHEMA = """
CREATE TABLE IF NOT EXISTS payment(
  payment_id text PRIMARY KEY,
  position bigint NOT NULL UNIQUE,
  seller text NOT NULL,
  account_id text NOT NULL,
  legal_entity text NOT NULL,
  status text NOT NULL,
  receipt_id text NOT NULL
);
CREATE INDEX IF NOT EXISTS payment_by ON payment(seller, position);
CREATE INDEX IF NOT EXISTS payment_for ON payment(account_id, position);
CREATE INDEX IF NOT EXISTS payment_is ON payment(status, position);
CREATE INDEX IF NOT EXISTS payment_sale ON payment(receipt_id) WHERE receipt_id != '';
"""
_COLUMNS = {"account": "account_id", "status": "status", "legal_entity": "legal_entity"}


class Payments(Table):
    """Payments of outside sellers, the newest first."""

    async def payments(
        self, seller: str, wanted: filters.Filter, before: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of payments of which a filter holds, newest first."""
        values: list[Any] = [before, limit]

        def is_equal(value: Any, column: str, sign: str = "=") -> str:
            values.append(value)
            return f"{column} {sign} ${len(values)}"

        of = filters.joined(wanted, lambda m: is_equal(m.value, _COLUMNS[m.field], m.operator))
        by = is_equal(seller, "seller") if seller else "true"
        rows = await self._database.rows(
            "SELECT position, payment_id FROM payment "  # noqa: S608 - constants
            f"WHERE position < $1 AND {by} AND ({of}) ORDER BY position DESC LIMIT $2",
            *values,
        )
        return [(int(position), payment_id) for position, payment_id in rows]


def _reserved(event: SaleReserved, position: int) -> Iterator[Statement]:
    seller = event.origin.caller or event.caller
    said = (event.payment_id, position, seller, event.account_id, event.legal_entity)
    yield Statement(
        "INSERT INTO payment"
        "(payment_id, position, seller, account_id, legal_entity, status, receipt_id) "
        f"VALUES($1, $2, $3, $4, $5, '{Status.RESERVED}', '')",
        [said],
    )


_Moved = PaymentConfirmed | PaymentRefused | ReservationCancelled | ReservationTimedOut


def _is_now(status: Status) -> Make:
    def make(event: _Moved, _: int) -> Iterator[Statement]:
        moved = "UPDATE payment SET status = $2 WHERE payment_id = $1"
        yield Statement(moved, [(event.payment_id, status.value)])

    return make


def _sold(event: PaymentSold, _: int) -> Iterator[Statement]:
    yield Statement(
        "UPDATE payment SET status = $2, receipt_id = $3 WHERE payment_id = $1",
        [(event.payment_id, Status.SOLD.value, event.receipt_id)],
    )


def _reversed(event: SaleReversed, _: int) -> Iterator[Statement]:
    yield Statement(
        "UPDATE payment SET status = $2 WHERE receipt_id = $1 AND receipt_id != ''",
        [(event.reversed_receipt_id, REVERSED)],
    )


CHANGES: Changes = {
    SaleReserved: _reserved,
    PaymentConfirmed: _is_now(Status.CONFIRMED),
    PaymentSold: _sold,
    PaymentRefused: _is_now(Status.REFUSED),
    ReservationCancelled: _is_now(Status.CANCELLED),
    ReservationTimedOut: _is_now(Status.TIMED_OUT),
    SaleReversed: _reversed,
}
