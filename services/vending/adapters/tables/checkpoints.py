"""`checkpoint`: what the relay vouched for. `root` is of earlier releases."""

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Table
from services.vending.domain.tables import CHECKPOINTS_KEPT, Checkpoint, Root

SCHEMA = """
CREATE TABLE IF NOT EXISTS root(
  position bigint PRIMARY KEY, count bigint NOT NULL, root bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS checkpoint(
  position bigint PRIMARY KEY,
  book_epoch bigint NOT NULL,
  count bigint NOT NULL,
  root bytea NOT NULL,
  written_at_ms bigint NOT NULL,
  key_id text NOT NULL,
  signature bytea NOT NULL
);
INSERT INTO checkpoint
  SELECT position, (SELECT book_epoch FROM book), count, root, 0, '', CAST('' AS bytea)
  FROM root WHERE true ON CONFLICT DO NOTHING;
DELETE FROM root;
"""
_DROP_CHECKPOINTS = """
DELETE FROM checkpoint WHERE position IN (
  SELECT old.position FROM (
    SELECT position, written_at_ms FROM checkpoint ORDER BY position DESC LIMIT 20 OFFSET $1
  ) AS old WHERE EXISTS (
    SELECT 1 FROM checkpoint AS later WHERE later.position > old.position
      AND later.written_at_ms / 86400000 = old.written_at_ms / 86400000))
"""
"""Only those that just came to be old are looked at."""


class Checkpoints(Table):
    """Roots that were vouched for."""

    async def root_at(self, position: int) -> Root | None:
        """Return the kept root at a position, where there is one."""
        rows = await self._database.rows(
            "SELECT position, count, root FROM checkpoint WHERE position = $1", position
        )
        return Root(*rows[0]) if rows else None

    async def checkpoints(self) -> list[Checkpoint]:
        """Return the kept checkpoints in the order of positions."""
        rows = await self._database.rows(
            "SELECT book_epoch, position, count, root, written_at_ms, key_id, signature "
            "FROM checkpoint ORDER BY position"
        )
        return [
            Checkpoint(epoch, Root(position, count, root), *signed)
            for epoch, position, count, root, *signed in rows
        ]

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, and drop old ones that are not the last of their day."""
        root = checkpoint.root
        keep = Statement(
            "INSERT INTO checkpoint"
            "(book_epoch, position, count, root, written_at_ms, key_id, signature) "
            "VALUES($1, $2, $3, $4, $5, $6, $7) ON CONFLICT(position) DO UPDATE SET "
            "book_epoch = excluded.book_epoch, count = excluded.count, root = excluded.root, "
            "written_at_ms = excluded.written_at_ms, key_id = excluded.key_id, "
            "signature = excluded.signature",
            [
                (
                    checkpoint.book_epoch,
                    root.position,
                    root.count,
                    root.root,
                    checkpoint.written_at_ms,
                    checkpoint.key_id,
                    checkpoint.signature,
                )
            ],
        )
        drop = Statement(_DROP_CHECKPOINTS, [(CHECKPOINTS_KEPT,)])
        await self._database.run([keep, drop])
