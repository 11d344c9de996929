"""`pending`: holds, transfers and openings, of each account one thing at a time."""

from collections.abc import Iterator

from services.vending.adapters.database import NEVER_MS, Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.openings import (
    OpeningCancelled,
    OpeningCompleted,
    OpeningPrepared,
    OpeningRefused,
    OpeningStarted,
)
from services.vending.domain.events.refunds import (
    CreditRefunded,
    CreditTransferred,
    RefundHeld,
    RefundRefused,
    TransferArrived,
    TransferReturned,
)
from services.vending.domain.tables import HOLD, OPENING, OPENING_PREPARED, TRANSFER

SCHEMA = """
CREATE TABLE IF NOT EXISTS pending(
  id text PRIMARY KEY,
  kind text NOT NULL,
  due_ms bigint NOT NULL,
  position bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS pending_due ON pending(kind, due_ms);
"""

_OpeningEnded = OpeningCompleted | OpeningRefused | OpeningCancelled
_HoldEnded = CreditRefunded | RefundRefused | TransferArrived | TransferReturned


class Pending(Table):
    """What is pending: a hold by its account, an opening by its stream."""

    async def pending(self, kind: str, due_by_ms: int) -> list[str]:
        """Return the ids of what is pending and due by an instant, oldest first."""
        rows = await self._database.rows(
            "SELECT id FROM pending WHERE kind = $1 AND due_ms <= $2 ORDER BY position",
            kind,
            due_by_ms,
        )
        return [row[0] for row in rows]

    async def pending_page(
        self, kinds: tuple[str, str], after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of what is pending, oldest first: at most `limit` above one."""
        rows = await self._database.rows(
            "SELECT position, id FROM pending WHERE kind IN ($1, $2) AND position > $3 "
            "ORDER BY position LIMIT $4",
            *kinds,
            after,
            limit,
        )
        return [(position, id_) for position, id_ in rows]


def _prepared(event: OpeningPrepared, position: int) -> Iterator[Statement]:
    yield _is_pending(_opening(event.account_id), OPENING_PREPARED, 0, position)


def _started(event: OpeningStarted, position: int) -> Iterator[Statement]:
    yield _is_pending(_opening(event.account_id), OPENING, 0, position)


def _opening_ended(event: _OpeningEnded, _: int) -> Iterator[Statement]:
    yield _is_over(_opening(event.account_id))


def _opening(account_id: str) -> str:
    return f"opening-{account_id}"


def _held(event: RefundHeld, position: int) -> Iterator[Statement]:
    # A hold of an earlier release has no deadline.
    due_ms = NEVER_MS if event.deadline_ms is None else event.deadline_ms
    yield _is_pending(event.account_id, HOLD, due_ms, position)


def _sent(event: CreditTransferred, position: int) -> Iterator[Statement]:
    yield _is_pending(event.account_id, TRANSFER, 0, position)


def _hold_ended(event: _HoldEnded, _: int) -> Iterator[Statement]:
    yield _is_over(event.account_id)


def _is_pending(id_: str, kind: str, due_ms: int, position: int) -> Statement:
    return Statement(
        "INSERT INTO pending(id, kind, due_ms, position) VALUES($1, $2, $3, $4) "
        "ON CONFLICT(id) DO UPDATE SET kind = $2, due_ms = $3",
        [(id_, kind, due_ms, position)],
    )


def _is_over(id_: str) -> Statement:
    return Statement("DELETE FROM pending WHERE id = $1", [(id_,)])


CHANGES: Changes = {
    OpeningPrepared: _prepared,
    OpeningStarted: _started,
    OpeningCompleted: _opening_ended,
    OpeningRefused: _opening_ended,
    OpeningCancelled: _opening_ended,
    RefundHeld: _held,
    CreditRefunded: _hold_ended,
    RefundRefused: _hold_ended,
    CreditTransferred: _sent,
    TransferArrived: _hold_ended,
    TransferReturned: _hold_ended,
}
