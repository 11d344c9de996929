"""`batch`: where each batch is."""

from collections.abc import Iterator

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Make, Table
from services.vending.domain.events.batches import (
    BatchCancelled,
    BatchCreated,
    BatchFinished,
    BatchPaused,
    BatchResumed,
    BatchRoundBegun,
    BatchRoundEnded,
    BatchSubmitted,
)
from services.vending.domain.tables import BatchRow

SCHEMA = """
CREATE TABLE IF NOT EXISTS batch(
  batch_id text PRIMARY KEY,
  kind text NOT NULL,
  legal_entity text NOT NULL,
  status text NOT NULL,
  round_is_open bigint NOT NULL CHECK(round_is_open IN (0, 1)),
  changed_at_ms bigint NOT NULL,
  position bigint NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS batch_position ON batch(position);
CREATE INDEX IF NOT EXISTS batch_changed ON batch(changed_at_ms);
CREATE INDEX IF NOT EXISTS batch_open ON batch(position)
  WHERE status = 'running' OR round_is_open = 1;
CREATE INDEX IF NOT EXISTS batch_paused ON batch(position) WHERE status = 'paused';
CREATE INDEX IF NOT EXISTS batch_draft ON batch(legal_entity) WHERE status = 'draft';
"""

_Moved = BatchSubmitted | BatchPaused | BatchResumed | BatchCancelled | BatchFinished


class Batches(Table):
    """Batches, as far as a list of them shows them."""

    async def open_batches(self, since_ms: int) -> list[str]:
        """Return the ids of batches that run, have an open round, or changed after an instant."""
        rows = await self._database.rows(
            "SELECT batch_id, position FROM batch WHERE status = 'running' OR round_is_open = 1 "
            "UNION SELECT batch_id, position FROM batch WHERE changed_at_ms > $1 "
            "ORDER BY position",
            since_ms,
        )
        return [batch_id for batch_id, _ in rows]

    async def paused_batches(self) -> list[str]:
        """Return the ids of batches that are paused, the oldest first."""
        rows = await self._database.rows(
            "SELECT batch_id FROM batch WHERE status = 'paused' ORDER BY position"
        )
        return [row[0] for row in rows]

    async def batch_drafts(self, legal_entity: str) -> int:
        """Return how many batches of a legal entity are drafted, and nothing else."""
        rows = await self._database.rows(
            "SELECT count(*) FROM batch WHERE legal_entity = $1 AND status = 'draft'", legal_entity
        )
        return int(rows[0][0])

    async def batches(self, after: int, limit: int) -> list[BatchRow]:
        """Return at most `limit` batches above a position, the oldest first."""
        rows = await self._database.rows(
            "SELECT position, batch_id, kind, legal_entity, status, round_is_open FROM batch "
            "WHERE position > $1 ORDER BY position LIMIT $2",
            after,
            limit,
        )
        return [
            BatchRow(position, batch_id, kind, legal_entity, status, bool(is_open))
            for position, batch_id, kind, legal_entity, status, is_open in rows
        ]


def _drafted(event: BatchCreated, position: int) -> Iterator[Statement]:
    row = (event.batch_id, event.kind, event.legal_entity, event.occurred_at_ms, position)
    yield Statement(
        "INSERT INTO batch"
        "(batch_id, kind, legal_entity, status, round_is_open, changed_at_ms, position) "
        "VALUES($1, $2, $3, 'draft', 0, $4, $5)",
        [row],
    )


def _is_now(status: str) -> Make:
    def make(event: _Moved, _: int) -> Iterator[Statement]:
        yield Statement(
            "UPDATE batch SET status = $2, changed_at_ms = $3 WHERE batch_id = $1",
            [(event.batch_id, status, event.occurred_at_ms)],
        )

    return make


def _round(event: BatchRoundBegun | BatchRoundEnded, _: int) -> Iterator[Statement]:
    is_open = int(isinstance(event, BatchRoundBegun))
    yield Statement(
        "UPDATE batch SET round_is_open = $2, changed_at_ms = $3 WHERE batch_id = $1",
        [(event.batch_id, is_open, event.occurred_at_ms)],
    )


CHANGES: Changes = {
    BatchCreated: _drafted,
    BatchSubmitted: _is_now("running"),
    BatchPaused: _is_now("paused"),
    BatchResumed: _is_now("running"),
    BatchCancelled: _is_now("cancelled"),
    BatchFinished: _is_now("finished"),
    BatchRoundBegun: _round,
    BatchRoundEnded: _round,
}
