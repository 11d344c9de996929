"""`book`, `raised`: the epoch of the book, and the position after which each began."""

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Table

SCHEMA = """
CREATE TABLE IF NOT EXISTS book(
  one bigint PRIMARY KEY CHECK(one = 1), book_epoch bigint NOT NULL CHECK(book_epoch >= 1)
);
INSERT INTO book(one, book_epoch) VALUES(1, 1) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS raised(
  book_epoch bigint PRIMARY KEY, position bigint NOT NULL
);
"""


class Epochs(Table):
    """The epoch of the book."""

    async def book_epoch(self) -> int:
        """Return the epoch of the book."""
        return int((await self._database.rows("SELECT book_epoch FROM book"))[0][0])

    async def raise_book_epoch(self, book_epoch: int, position: int) -> None:
        """Raise the epoch of the book; it begins after `position`."""
        raise_it = Statement(
            "UPDATE book SET book_epoch = $1 WHERE book_epoch < $1", [(book_epoch,)]
        )
        note = Statement(
            "INSERT INTO raised(book_epoch, position) VALUES($1, $2) ON CONFLICT DO NOTHING",
            [(book_epoch, position)],
        )
        lost = [
            Statement(f"DELETE FROM {table} WHERE position > $1", [(position,)])  # noqa: S608 - constants
            for table in ("link", "checkpoint", "document")
        ]
        count_on = [
            Statement("DELETE FROM series", [()]),
            Statement(
                "INSERT INTO series(legal_entity, last_number) "
                "SELECT legal_entity, max(number) FROM document GROUP BY legal_entity",
                [()],
            ),
            Statement("UPDATE numbered SET position = $1 WHERE position > $1", [(position,)]),
        ]
        await self._database.run([raise_it, note, *lost, *count_on])

    async def raised_at(self) -> int:
        """Return the position of the last event before the present book epoch; 0 in the first."""
        rows = await self._database.rows("SELECT coalesce(max(position), 0) FROM raised")
        return int(rows[0][0])
