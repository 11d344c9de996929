"""PostgreSQL: one schema that holds the read models and, with them, the position in the log.

Whoever writes holds the schema's writer lock and finds the positions where it left them, in the
transaction that writes; so rows and positions are never apart, whatever dies when.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple, get_type_hints
from uuid import UUID

import asyncpg

from services.common.kernel.errors import WattvendError
from services.common.runtime import points
from services.reporting.domain.rows import Json, Row, Table, newest
from services.reporting.errors import Moved

CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 60.0
SILENT_MAX_S = 5
"""A session that holds a lock and says nothing for so long belongs to a process that sleeps or is
cut off: PostgreSQL ends it, so that another can go on. A writer speaks each half second."""
LOCK_SPACE = 0x77617474
"""First half of our advisory locks' keys ("watt"), so that they are not somebody else's."""

MOVED = "the tables were changed by somebody else, as by a rebuild: reading the positions again"

UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.InsufficientResourcesError,
    asyncpg.DeadlockDetectedError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InternalClientError,
)
"""What may be over in a moment: the same transaction can succeed later, on a new connection.

InternalClientError ("another operation is in progress"): the server's last word came in between two
statements of ours, and asyncpg's connection is of no use after it.
"""

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


async def try_lock(connection: asyncpg.Connection, purpose: str, schema: str) -> bool:
    """Take the session's lock for a purpose on a schema; it ends with the connection."""
    taken: bool = await connection.fetchval(
        "SELECT pg_try_advisory_lock($1, $2)", LOCK_SPACE, _lock_key(purpose, schema)
    )
    return taken


async def lock_holder(connection: asyncpg.Connection, purpose: str, schema: str) -> str:
    """Return who holds a lock, for a person."""
    found = await connection.fetchrow(
        "SELECT a.application_name, a.pid, a.backend_start FROM pg_locks l "
        "JOIN pg_stat_activity a ON a.pid = l.pid "
        "WHERE l.locktype = 'advisory' AND l.granted "
        "AND l.classid::bigint = $1 AND l.objid::bigint = $2 "
        "AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        LOCK_SPACE,
        _lock_key(purpose, schema) & 0xFFFFFFFF,
    )
    if found is None:
        return "somebody who just left"
    since = f"{found['backend_start']:%Y-%m-%d %H:%M:%S} UTC"
    return f"{found['application_name']} (PostgreSQL backend {found['pid']}, since {since})"


def _lock_key(purpose: str, schema: str) -> int:
    """Return a signed 32-bit key."""
    key = zlib.crc32(f"{purpose}\x00{schema}".encode())
    return key - (1 << 32) if key >= 1 << 31 else key


def migrations() -> Sequence[tuple[int, str]]:
    """Return (number, SQL) of every migration, in order; numbers are dense from 1."""
    found = sorted(
        (int(entry.name[:4]), entry.read_text("utf-8"))
        for entry in (files("services.reporting.adapters") / "sql").iterdir()
        if entry.name.endswith(".sql")
    )
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return found


async def migrate(connection: asyncpg.Connection, schema: str) -> None:
    """Bring the schema to the newest layout; each step is one transaction.

    Raises WattvendError where a newer program has already gone further.
    """
    async with connection.transaction():
        await connection.execute(f'CREATE SCHEMA IF NOT EXISTS "{schema}"')
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations "
            "(number integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    known = migrations()
    done = await connection.fetchval("SELECT coalesce(max(number), 0) FROM migrations")
    if done > len(known):
        raise WattvendError(
            f"schema {schema} has layout {done}; this program knows {len(known)}: "
            "a newer reporting wrote it. Run that version, or rebuild into another schema"
        )
    for number, sql in known[done:]:
        async with connection.transaction():
            await connection.execute(sql)
            await connection.execute("INSERT INTO migrations (number) VALUES ($1)", number)


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
