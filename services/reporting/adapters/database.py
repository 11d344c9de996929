"""PostgreSQL: one schema that holds the read models and, with them, the position in the log.

Whoever writes holds the schema's writer lock and finds the positions where it left them, in the
transaction that writes; so rows and positions are never apart, whatever dies when.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, NamedTuple, get_type_hints
from uuid import UUID

import asyncpg

from services.common.runtime import points, postgres
from services.common.runtime.postgres import CONNECT_TIMEOUT_S, UNREACHABLE
from services.reporting.domain.rows import Json, Row, Table, newest
from services.reporting.errors import Moved

COMMAND_TIMEOUT_S = 60.0
SILENT_MAX_S = 5
"""A session that holds a lock and says nothing for so long belongs to a process that sleeps or is
cut off: PostgreSQL ends it, so that another can go on. A writer speaks each half second."""
MOVED = "the tables were changed by somebody else, as by a rebuild: reading the positions again"

_ARRAYS: Mapping[Any, str] = {
    int: "bigint[]",
    str: "text[]",
    bool: "boolean[]",
    UUID: "uuid[]",
    Json: "jsonb[]",
}


class Place(NamedTuple):
    """A partition."""

    topic: str
    partition: int


class Span(NamedTuple):
    """What the tables hold of a partition: first_offset <= offset < next_offset."""

    first_offset: int
    next_offset: int


@asynccontextmanager
async def connected(
    dsn: str, schema: str, *, name: str, speaks: bool = False
) -> AsyncIterator[asyncpg.Connection]:
    """Connect with `schema` as the place of unqualified names; `name` is shown to operators.

    `speaks`: whether silence, also outside of a transaction, shall end the session.
    """
    connection = await asyncpg.connect(
        dsn,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        server_settings={
            "search_path": schema,
            "application_name": name,
            "idle_in_transaction_session_timeout": f"{SILENT_MAX_S}s",
            "idle_session_timeout": f"{SILENT_MAX_S if speaks else 0}s",
        },
    )
    try:
        yield connection
    finally:
        # A server that is gone does not answer a polite goodbye, nor is one said amid a statement.
        try:
            await connection.close(timeout=1)
        except UNREACHABLE:
            connection.terminate()


async def migrate(connection: asyncpg.Connection, schema: str) -> None:
    """Bring the schema to the newest layout. Raises WattvendError where it is newer than known."""
    known = postgres.migrations("services.reporting.adapters")
    otherwise = ", or rebuild into another schema"
    await postgres.migrate(connection, schema, known, who="reporting", otherwise=otherwise)


async def positions(connection: asyncpg.Connection) -> dict[Place, Span]:
    """Return what the tables hold of each partition."""
    found = await connection.fetch(
        "SELECT topic, partition, first_offset, next_offset FROM positions"
    )
    return {
        Place(row["topic"], row["partition"]): Span(row["first_offset"], row["next_offset"])
        for row in found
    }


async def begin(connection: asyncpg.Connection, at: Mapping[Place, int]) -> None:
    """Store where partitions that were never read begin."""
    await connection.executemany(
        "INSERT INTO positions (topic, partition, first_offset, next_offset) "
        "VALUES ($1, $2, $3, $3)",
        [(place.topic, place.partition, offset) for place, offset in at.items()],
    )


class Writer:
    """Writes rows and positions. `opened` once, on a connection that holds a writer's lock."""

    def __init__(self, connection: asyncpg.Connection, tables_id: int) -> None:
        self._connection = connection
        self._tables_id = tables_id

    @classmethod
    async def opened(cls, connection: asyncpg.Connection) -> "Writer":
        """Return a writer of the tables that stand in the schema now, and of no later ones."""
        return cls(connection, await _tables_id(connection))

    async def check(self) -> None:
        """Raise Moved where other tables were swapped in."""
        if await _tables_id(self._connection) != self._tables_id:
            raise Moved(MOVED)

    async def write(
        self, rows: Iterable[Row], advanced: Mapping[Place, tuple[int, int]]
    ) -> dict[str, int]:
        """Write rows and positions in one transaction; return how many rows went to which table.

        `advanced`: partition → (next offset before, after). Raises Moved, with nothing written,
        where the stored positions are others: so nothing is written twice.
        """
        written = {}
        async with self._connection.transaction():
            await self._advance(advanced)
            points.point("positions-written")
            for table, standing in newest(rows).items():
                columns = (list(column) for column in zip(*standing, strict=True))
                await self._connection.execute(upsert(table), *columns)
                written[table.name] = len(standing)
            points.point("rows-written")
        points.point("committed")
        return written

    async def _advance(self, advanced: Mapping[Place, tuple[int, int]]) -> None:
        moves = sorted((*place, *offsets) for place, offsets in advanced.items())
        # The first statement of every writing transaction: it waits for a swap of the tables, and
        # a swap for it.
        moved = await self._connection.fetch(
            "UPDATE positions AS p SET next_offset = m.after "
            "FROM unnest($1::text[], $2::integer[], $3::bigint[], $4::bigint[]) "
            "AS m (topic, partition, before, after) "
            "WHERE p.topic = m.topic AND p.partition = m.partition AND p.next_offset = m.before "
            "AND p.tableoid = $5 RETURNING 1",
            *(list(column) for column in zip(*moves, strict=True)),
            self._tables_id,
        )
        if len(moved) != len(moves):
            raise Moved(MOVED)


async def _tables_id(connection: asyncpg.Connection) -> int:
    found: int = await connection.fetchval("SELECT to_regclass('positions')::oid::bigint")
    return found


@cache
def upsert(table: Table) -> str:
    """Return the statement that writes rows of a table, given as one array a column."""
    hints = get_type_hints(table.row)
    arrays = ", ".join(
        f"${number}::{_array(hints[column])}" for number, column in enumerate(table.columns, 1)
    )
    changed = [column for column in table.columns if column not in table.key]
    then = "NOTHING"
    if table.version:
        sets = ", ".join(f"{column} = excluded.{column}" for column in changed)
        old = ", ".join(f"t.{column}" for column in table.version)
        new = ", ".join(f"excluded.{column}" for column in table.version)
        then = f"UPDATE SET {sets} WHERE ROW({old}) < ROW({new})"
    return (
        f"INSERT INTO {table.name} AS t ({', '.join(table.columns)}) "  # noqa: S608 - our own names
        f"SELECT * FROM unnest({arrays}) ON CONFLICT ({', '.join(table.key)}) DO {then}"
    )


def _array(hint: Any) -> str:
    kinds = [kind for kind in getattr(hint, "__args__", (hint,)) if kind is not type(None)]
    assert len(kinds) == 1, f"{hint} is no type of a column"
    return _ARRAYS[kinds[0]]


async def pause(seconds: float, stopping: asyncio.Event) -> None:
    """Wait, but not beyond a stop."""
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return
