"""`draft`: documents, also those long published."""

from collections.abc import Iterator

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.documents import DocumentDrafted

SCHEMA = """
CREATE TABLE IF NOT EXISTS draft(
  document_id text PRIMARY KEY, position bigint NOT NULL UNIQUE
);
"""


class Papers(Table):
    """Documents, the oldest first."""

    async def documents(self, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, id) of documents, oldest first: at most `limit` above a position."""
        rows = await self._database.rows(
            "SELECT position, document_id FROM draft WHERE position > $1 "
            "ORDER BY position LIMIT $2",
            after,
            limit,
        )
        return [(position, id_) for position, id_ in rows]


def _drafted(event: DocumentDrafted, position: int) -> Iterator[Statement]:
    yield Statement(
        "INSERT INTO draft(document_id, position) VALUES($1, $2)", [(event.document_id, position)]
    )


CHANGES: Changes = {DocumentDrafted: _drafted}
