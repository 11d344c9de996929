"""`closing`: closings of accounts, under way or over."""

from collections.abc import Iterator, Sequence
from typing import Any

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.closings import (
    AccountClosed,
    AccountCloseRefused,
    AccountClosing,
    ClosingUndone,
    MetersClosed,
    MetersClosing,
)
from services.vending.domain.tables import ClosingRow, ClosingsOpen

SCHEMA = """
CREATE TABLE IF NOT EXISTS closing(
  closing_id text PRIMARY KEY,
  account_id text NOT NULL,
  legal_entity text NOT NULL,
  position bigint NOT NULL,
  is_open bigint NOT NULL CHECK(is_open IN (0, 1)),
  began_at_ms bigint NOT NULL,
  deadline_ms bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS closing_of ON closing(account_id, position);
CREATE INDEX IF NOT EXISTS closing_open ON closing(is_open, position);
"""

_COLUMNS = "closing_id, account_id, legal_entity, position, is_open, began_at_ms, deadline_ms"
_Over = AccountClosed | AccountCloseRefused | MetersClosed | ClosingUndone


class Closings(Table):
    """Closings, in the order in which they began."""

    async def closing(self, closing_id: str) -> ClosingRow | None:
        """Return a closing, where there is one."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM closing WHERE closing_id = $1",  # noqa: S608 - constants
            closing_id,
        )
        return _closing(rows[0]) if rows else None

    async def closings(
        self, account_id: str, is_open: bool | None, after: int, limit: int
    ) -> list[ClosingRow]:
        """Return at most `limit` closings that began above a position, oldest first."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM closing WHERE $1 IN ('', account_id) "  # noqa: S608 - constants
            "AND is_open IN ($2, $3) AND position > $4 ORDER BY position LIMIT $5",
            account_id,
            0 if is_open is None else int(is_open),
            1 if is_open is None else int(is_open),
            after,
            limit,
        )
        return [_closing(row) for row in rows]

    async def closings_open(self, now_ms: int) -> ClosingsOpen:
        """Return what is under way."""
        rows = await self._database.rows(
            "SELECT count(*), coalesce(sum(CASE WHEN deadline_ms <= $1 THEN 1 ELSE 0 END), 0), "
            "coalesce(min(began_at_ms), 0) FROM closing WHERE is_open = 1",
            now_ms,
        )
        return ClosingsOpen(*map(int, rows[0]))


def _closing(row: Sequence[Any]) -> ClosingRow:
    closing_id, account_id, legal_entity, position, is_open, began_at_ms, deadline_ms = row
    return ClosingRow(
        closing_id, account_id, legal_entity, position, bool(is_open), began_at_ms, deadline_ms
    )


def _begun(event: AccountClosing | MetersClosing, position: int) -> Iterator[Statement]:
    """Keep a closing that begins; of those that an earlier release began nothing was kept."""
    said = (event.closing_id, event.account_id, event.legal_entity, position, 1)
    row = (*said, event.occurred_at_ms, event.deadline_ms)
    yield Statement(
        f"INSERT INTO closing({_COLUMNS}) VALUES($1, $2, $3, $4, $5, $6, $7)",
        [] if event.deadline_ms is None else [row],
    )


def _over(event: _Over, _: int) -> Iterator[Statement]:
    over = "UPDATE closing SET is_open = 0 WHERE account_id = $1 AND is_open = 1"
    yield Statement(over, [(event.account_id,)])


CHANGES: Changes = {
    AccountClosing: _begun,
    MetersClosing: _begun,
    AccountClosed: _over,
    AccountCloseRefused: _over,
    MetersClosed: _over,
    ClosingUndone: _over,
}
