"""`link`: what the hash chain over the store is made of."""

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from services.vending.adapters.database import Statement, uuid_of
from services.vending.adapters.tables.table import Table
from services.vending.domain.event_store import StreamId
from services.vending.domain.tables import Link

SCHEMA = """
CREATE TABLE IF NOT EXISTS link(
  position bigint PRIMARY KEY,
  stream text NOT NULL,
  revision bigint NOT NULL,
  event_id bytea NOT NULL,
  type text NOT NULL,
  hash bytea NOT NULL
);
"""
_COLUMNS = "position, stream, revision, event_id, type, hash"


class Links(Table):
    """Events as they were told."""

    async def linked_until(self) -> int:
        """Return the position of the last link; FROM_START where there is none."""
        rows = await self._database.rows("SELECT coalesce(max(position), 0) FROM link")
        return int(rows[0][0])

    async def links(self, after: int, limit: int) -> list[Link]:
        """Return at most `limit` links above a position, in the order of positions."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM link WHERE position > $1 ORDER BY position LIMIT $2",  # noqa: S608 - constants
            after,
            limit,
        )
        return [_link(row) for row in rows]

    async def link_of(self, event_id: UUID) -> Link | None:
        """Return where an event was told. Slow: it looks through all of them."""
        rows = await self._database.rows(
            f"SELECT {_COLUMNS} FROM link WHERE event_id = $1",  # noqa: S608 - constants
            event_id.bytes,
        )
        return _link(rows[0]) if rows else None

    async def keep_links(self, links: Iterable[Link]) -> None:
        """Keep links; one that is kept already stays as it is."""
        keep = Statement(
            f"INSERT INTO link({_COLUMNS}) VALUES($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            [(k.position, k.stream, k.revision, k.id.bytes, k.type, k.hash) for k in links],
        )
        await self._database.run([keep])


def _link(row: Sequence[Any]) -> Link:
    position, stream, revision, event_id, type_, hash_ = row
    return Link(position, StreamId(stream), revision, uuid_of(event_id), type_, hash_)
