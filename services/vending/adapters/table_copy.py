"""The tables of a book that moves to another store: copied, and compared row by row.

What is derived from events the target's own appends have made. What came from Kafka moves. What
names positions moves where the target has the same ones; else it begins anew, with the relay.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from services.vending.adapters.database import Database, Statement

ROWS_AT_ONCE_MAX = 5_000
KEYS = {
    "unique_name": ("kind", "name"),
    "todo": ("meter_id", "epoch", "kind"),
    "waiting": ("kind", "id"),
    "batch": ("batch_id",),
    "paper": ("document_id",),
    "payment": ("payment_id",),
    "hold": ("hold_id",),
    "opening": ("opening_id",),
    "scheduled": ("policy_id", "version"),
    "closing": ("closing_id",),
    "pending": ("id",),
    "charged": ("meter_key",),
    "consumer_offset": ("topic", "partition"),
    "usage_ask": ("account_id",),
    "raised": ("book_epoch",),
    "checkpoint": ("position",),
    "link": ("position",),
    "document": ("receipt_id",),
    "series": ("legal_entity",),
    "numbered": ("one",),
}
"""Each table that is compared → its primary key."""
FROM_KAFKA = ("charged", "consumer_offset", "usage_ask")
OF_POSITIONS = ("raised", "checkpoint", "link", "document", "series", "numbered")
"""Those that no append makes. Where positions differ, the relay counts receipts anew."""
NAMING_POSITIONS = (
    *("todo", "waiting", "pending", "paper", "payment", "hold", "opening", "batch", "closing"),
    *OF_POSITIONS,
)
NOT_COPIED = ("book", "root", "unfinished_copy", "made")
"""The book epoch is raised through its port; `root` is empty since its release; the others are of
the copy itself, and of the tables of a store."""

Row = tuple[Any, ...]


async def copy_tables(source: Database, target: Database, *, positions_are_same: bool) -> None:
    """Make the target's tables what the source's are, but for those that its events made."""
    for table in FROM_KAFKA + (OF_POSITIONS if positions_are_same else ()):
        after: Row | None = None
        if table == "link":  # one an event, never altered: go on where an earlier run ended
            last = await target.rows("SELECT max(position) FROM link")
            after = last[0] if last[0][0] is not None else None
        else:
            await target.run([Statement(f"DELETE FROM {table}", [()])])  # noqa: S608 - constants
        async for rows in _pages(source, table, after):
            marks = ", ".join(f"${number}" for number in range(1, len(rows[0]) + 1))
            into = f"INSERT INTO {table} VALUES({marks})"
            await target.run([Statement(into, rows)])


async def differing_table(
    source: Database, target: Database, *, positions_are_same: bool
) -> str | None:
    """Return the first table whose rows differ; None where all are the same."""
    for table in KEYS:
        if table in NAMING_POSITIONS and not positions_are_same:
            continue
        theirs = _pages(target, table, None)
        async for rows in _pages(source, table, None):
            if await anext(theirs, []) != rows:
                return table
        if await anext(theirs, []):
            return table
    return None


async def _pages(database: Database, table: str, after: Row | None) -> AsyncIterator[Sequence[Row]]:
    """Yield a table's rows above a key, in the order of keys."""
    keys = KEYS[table]
    columns = ", ".join(keys)
    marks = ", ".join(f"${number}" for number in range(1, len(keys) + 1))
    while True:
        where = "" if after is None else f"WHERE ({columns}) > ({marks})"
        rows = await database.rows(
            f"SELECT {columns}, t.* FROM {table} t {where} "  # noqa: S608 - constants
            f"ORDER BY {columns} LIMIT {ROWS_AT_ONCE_MAX}",
            *(after or ()),
        )
        if not rows:
            return
        after = tuple(rows[-1][: len(keys)])
        yield [tuple(row[len(keys) :]) for row in rows]
