"""PostgreSQL, as services use it: failures that may be over in a moment, locks, layouts."""

import zlib
from collections.abc import Sequence
from importlib.resources import files

import asyncpg

from services.common.kernel.errors import WattvendError

CONNECT_TIMEOUT_S = 5.0
MIGRATION_TIMEOUT_S = 3600.0
"""An index over a large table takes longer than any other statement may."""
LOCK_SPACE = 0x77617474
"""First half of our advisory locks' keys ("watt"), so that they are not somebody else's."""

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


def migrations(package: str) -> Sequence[tuple[int, str]]:
    """Return (number, SQL) of the migrations below `sql` in a package, in order, dense from 1."""
    found = sorted(
        (int(entry.name[:4]), entry.read_text("utf-8"))
        for entry in (files(package) / "sql").iterdir()
        if entry.name.endswith(".sql")
    )
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    return found


async def migrate(
    connection: asyncpg.Connection,
    schema: str,
    known: Sequence[tuple[int, str]],
    *,
    who: str,
    otherwise: str = "",
) -> None:
    """Bring the schema to the newest layout; each step is one transaction.

    Raises WattvendError where a newer version of `who` has already gone further.
    """
    async with connection.transaction():
        if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", f'"{schema}"'):
            await connection.execute(f'CREATE SCHEMA "{schema}"')  # who has one may make no other
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS migrations "
            "(number integer PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
    done = await connection.fetchval("SELECT coalesce(max(number), 0) FROM migrations")
    if done > len(known):
        raise WattvendError(
            f"schema {schema} has layout {done}; this program knows {len(known)}: "
            f"a newer {who} wrote it. Run that version{otherwise}"
        )
    for number, sql in known[done:]:
        async with connection.transaction():
            await connection.execute(sql, timeout=MIGRATION_TIMEOUT_S)
            await connection.execute("INSERT INTO migrations (number) VALUES ($1)", number)
