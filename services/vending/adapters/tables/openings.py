"""`opening`: openings that were started, also those that are over."""

from collections.abc import Iterator

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.openings import (
    OpeningCompleted,
    OpeningRefused,
    OpeningStarted,
)
from services.vending.domain.opening import opening_id_of
from services.vending.domain.tables import OpeningRow

SCHEMA = """
CREATE TABLE IF NOT EXISTS opening(
  opening_id text PRIMARY KEY,
  account_id text NOT NULL,
  is_open bigint NOT NULL CHECK(is_open IN (0, 1)),
  position bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS opening_is ON opening(is_open, position);
CREATE INDEX IF NOT EXISTS opening_of ON opening(account_id);
"""
_COLUMNS = "position, opening_id, account_id, is_open"


class Openings(Table):
    """Openings, in the order in which they were started."""

    async def opening(self, opening_id: str) -> OpeningRow | None:
        """Return an opening that was started, where there is one."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM opening WHERE opening_id = $1",  # noqa: S608 - constants
            opening_id,
        )
        return _row(*rows[0]) if rows else None

    async def openings(self, is_open: bool | None, after: int, limit: int) -> list[OpeningRow]:
        """Return at most `limit` that started above a position, oldest first; None: all."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM opening WHERE is_open IN ($1, $2) "  # noqa: S608 - constants
            "AND position > $3 ORDER BY position LIMIT $4",
            0 if is_open is None else int(is_open),
            1 if is_open is None else int(is_open),
            after,
            limit,
        )
        return [_row(*row) for row in rows]


def _row(position: int, opening_id: str, account_id: str, is_open: int) -> OpeningRow:
    return OpeningRow(int(position), opening_id, account_id, bool(is_open))


def _started(event: OpeningStarted, position: int) -> Iterator[Statement]:
    row = (opening_id_of(event.key), event.account_id, position)
    yield Statement(
        "INSERT INTO opening(opening_id, account_id, is_open, position) VALUES($1, $2, 1, $3)",
        [row],
    )


def _ended(event: OpeningCompleted | OpeningRefused, _: int) -> Iterator[Statement]:
    """Of an account one opening at a time is started and not over."""
    yield Statement("UPDATE opening SET is_open = 0 WHERE account_id = $1", [(event.account_id,)])


CHANGES: Changes = {
    OpeningStarted: _started,
    OpeningCompleted: _ended,
    OpeningRefused: _ended,
}
