"""`hold`: refunds and transfers, also those that are over."""

from collections.abc import Iterator

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.refunds import (
    CreditRefunded,
    RefundHeld,
    RefundRefused,
    TransferArrived,
    TransferReturned,
)
from services.vending.domain.tables import HoldRow

SCHEMA = """
CREATE TABLE IF NOT EXISTS hold(
  hold_id text PRIMARY KEY,
  account_id text NOT NULL,
  is_transfer bigint NOT NULL CHECK(is_transfer IN (0, 1)),
  is_open bigint NOT NULL CHECK(is_open IN (0, 1)),
  position bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS hold_is ON hold(is_transfer, is_open, position);
"""
_COLUMNS = "position, hold_id, account_id, is_transfer, is_open"
_Ended = CreditRefunded | RefundRefused | TransferArrived | TransferReturned


class Holds(Table):
    """Holds of refunds and transfers."""

    async def hold(self, hold_id: str) -> HoldRow | None:
        """Return a hold, where there is one."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM hold WHERE hold_id = $1",  # noqa: S608 - constants
            hold_id,
        )
        return _row(*rows[0]) if rows else None

    async def holds(
        self, is_transfer: bool, is_open: bool | None, after: int, limit: int
    ) -> list[HoldRow]:
        """Return at most `limit` holds above a position, oldest first."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM hold WHERE is_transfer = $1 AND is_open IN ($2, $3) "  # noqa: S608 - constants
            "AND position > $4 ORDER BY position LIMIT $5",
            int(is_transfer),
            0 if is_open is None else int(is_open),
            1 if is_open is None else int(is_open),
            after,
            limit,
        )
        return [_row(*row) for row in rows]


def _row(position: int, hold_id: str, account_id: str, is_transfer: int, is_open: int) -> HoldRow:
    return HoldRow(int(position), hold_id, account_id, bool(is_transfer), bool(is_open))


def _held(event: RefundHeld, position: int) -> Iterator[Statement]:
    row = (event.hold_id, event.account_id, int(bool(event.to_account_id)), position)
    yield Statement(
        "INSERT INTO hold(hold_id, account_id, is_transfer, is_open, position) "
        "VALUES($1, $2, $3, 1, $4)",
        [row],
    )


def _ended(event: _Ended, _: int) -> Iterator[Statement]:
    yield Statement("UPDATE hold SET is_open = 0 WHERE hold_id = $1", [(event.hold_id,)])


CHANGES: Changes = {
    RefundHeld: _held,
    CreditRefunded: _ended,
    RefundRefused: _ended,
    TransferArrived: _ended,
    TransferReturned: _ended,
}
