"""`unfinished_copy`: that this store is a copy of another, and not yet proven to be its equal."""

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Table

SCHEMA = """
CREATE TABLE IF NOT EXISTS unfinished_copy(
  one bigint PRIMARY KEY CHECK(one = 1), source text NOT NULL
);
"""


class Copies(Table):
    """Whether a copy that was begun has ended."""

    async def unfinished_copy_of(self) -> str:
        """Return which store this one is an unfinished copy of; "" where it is none."""
        rows = await self._database.rows("SELECT source FROM unfinished_copy")
        return rows[0][0] if rows else ""

    async def begin_copy(self, source: str) -> None:
        """Note that this store becomes a copy; `source` is shown to a person."""
        note = "INSERT INTO unfinished_copy(one, source) VALUES(1, $1) ON CONFLICT DO NOTHING"
        await self._database.run([Statement(note, [(source,)])])

    async def end_copy(self) -> None:
        """Note that this store is a book of its own."""
        await self._database.run([Statement("DELETE FROM unfinished_copy", [()])])
