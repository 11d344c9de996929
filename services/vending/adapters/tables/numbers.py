"""`document`, `series`, `numbered`: the numbers of receipts. The relay counts them."""

from collections.abc import Sequence

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Table
from services.vending.domain.event_store import FROM_START
from services.vending.domain.tables import Document

SCHEMA = """
CREATE TABLE IF NOT EXISTS document(
  receipt_id text PRIMARY KEY,
  legal_entity text NOT NULL,
  number bigint NOT NULL,
  stream text NOT NULL,
  revision bigint NOT NULL,
  position bigint NOT NULL,
  UNIQUE(legal_entity, number)
);
CREATE TABLE IF NOT EXISTS series(
  legal_entity text PRIMARY KEY, last_number bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS numbered(
  one bigint PRIMARY KEY CHECK(one = 1), position bigint NOT NULL
);
"""


class Numbers(Table):
    """Receipts and their numbers."""

    async def numbered_until(self) -> int:
        """Return the position up to which receipts have their numbers."""
        rows = await self._database.rows("SELECT position FROM numbered")
        return int(rows[0][0]) if rows else FROM_START

    async def last_numbers(self) -> dict[str, int]:
        """Return legal entity → the last number of its series."""
        return dict(await self._database.rows("SELECT legal_entity, last_number FROM series"))

    async def keep_documents(self, documents: Sequence[Document], until: int) -> None:
        """Keep numbers, and that all up to a position have theirs, in one transaction.

        It never goes back: a writer that was superseded counts on for a while, and behind.
        """
        keep = Statement(
            "INSERT INTO document(receipt_id, legal_entity, number, stream, revision, position) "
            "VALUES($1, $2, $3, $4, $5, $6)",
            [
                (d.receipt_id, d.legal_entity, d.number, d.stream, d.revision, d.position)
                for d in documents
            ],
        )
        last = {document.legal_entity: document.number for document in documents}
        count = Statement(
            "INSERT INTO series(legal_entity, last_number) VALUES($1, $2) "
            "ON CONFLICT(legal_entity) DO UPDATE SET last_number = excluded.last_number",
            list(last.items()),
        )
        move = Statement(
            "INSERT INTO numbered(one, position) VALUES(1, $1) "
            "ON CONFLICT(one) DO UPDATE SET position = excluded.position "
            "WHERE excluded.position > numbered.position",
            [(until,)],
        )
        await self._database.run([keep, count, move])

    async def document(self, receipt_id: str) -> Document | None:
        """Return the number of a receipt, where it has one."""
        rows = await self._database.rows(
            "SELECT receipt_id, legal_entity, number, stream, revision, position FROM document "
            "WHERE receipt_id = $1",
            receipt_id,
        )
        return Document(*rows[0]) if rows else None
