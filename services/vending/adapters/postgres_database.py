"""A book's schema in PostgreSQL: one connection that writes events, and a few for all else.

One process writes. The connection that stores events holds an advisory lock of its session: a
second process is refused at its start, and whoever lost the connection stores nothing until it has
the lock again, which PostgreSQL gives nobody before the session that held it is over, with whatever
it was about to commit. So an unknown outcome is known when the lock is held again.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from services.common.kernel.errors import Bug, WattvendError
from services.common.runtime.postgres import (
    CONNECT_TIMEOUT_S,
    MIGRATION_TIMEOUT_S,
    UNREACHABLE,
    lock_holder,
    migrate,
    migrations,
    try_lock,
)
from services.vending.adapters.database import Statement
from services.vending.domain.event_store import NotTheWriter, StoreUnavailable

SCHEMA = "vending"
WRITER = "writer"
MIGRATIONS = "services.vending.adapters"
READERS_MAX = 4
COMMAND_TIMEOUT_S = 30.0
LOCK_WITHIN_S = 3.0
"""How long the session of a process that was killed, or cut off, may take to end."""
LOCK_POLL_S = 0.05
CLOSE_TIMEOUT_S = 1.0
SESSION = {
    "search_path": SCHEMA,
    # A plan made while a table was empty must not read all of it later.
    "enable_seqscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
    # A session of a machine that vanished ends, with its lock, within 20 s.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}


class DatabaseInUse(WattvendError):  # noqa: N818 - says what was found
    """Another process writes this book."""


class PostgresDatabase:
    """One book's schema, open. Made by `opened`."""

    def __init__(self, dsn: str, name: str, *, writes: bool = True) -> None:
        """`name` is shown to whoever looks at PostgreSQL's sessions."""
        self._dsn = dsn
        self._name = name
        self._writes = writes
        self._readers: asyncpg.Pool | None = None
        self._writer: asyncpg.Connection | None = None
        self._session: tuple[Any, ...] | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, dsn: str, name: str, schema: str) -> AsyncIterator["PostgresDatabase"]:
        """Open or create a book. `schema`: further tables, as idempotent statements.

        Raises DatabaseInUse where another process has it, WattvendError where it cannot be used.
        """
        database = cls(dsn, name)
        try:
            with database._usable():
                await database._prepare(schema)
                await database._let_read()
            yield database
        finally:
            await database._close()

    @classmethod
    @asynccontextmanager
    async def reading(cls, dsn: str, name: str) -> AsyncIterator["PostgresDatabase"]:
        """Open a book to read it, beside who writes it. Raises WattvendError."""
        database = cls(dsn, name, writes=False)
        try:
            with database._usable():
                await database._let_read()
                done = await database.rows("SELECT coalesce(max(number), 0) FROM migrations")
                newest = await database.rows("SELECT to_regclass('made') IS NOT NULL")
            if done[0][0] != len(migrations(MIGRATIONS)) or not newest[0][0]:
                raise WattvendError(
                    f"{shown(dsn)} was never opened by this release: start vending on it"
                )
            yield database
        finally:
            await database._close()

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (*UNREACHABLE, asyncpg.PostgresError, ValueError) as failed:
            raise WattvendError(
                f"{shown(self._dsn)} cannot be used as the event store ({failed}): check the "
                "address, that PostgreSQL runs, and what its user may do"
            ) from failed

    async def _prepare(self, schema: str) -> None:
        """Become the writer, and make what tables are missing."""
        writer = self._writer = await self._locked()
        if await writer.fetchval("SHOW fsync") != "on":
            raise WattvendError(
                f"PostgreSQL at {shown(self._dsn)} has fsync off: what vending answered would not "
                "outlive a crash of the machine; set fsync = on"
            )
        await migrate(writer, SCHEMA, migrations(MIGRATIONS), who="vending")
        async with writer.transaction():
            await writer.execute(_in_order(schema), timeout=MIGRATION_TIMEOUT_S)

    async def _let_read(self) -> None:
        self._readers = await asyncpg.create_pool(
            self._dsn,
            min_size=1,
            max_size=READERS_MAX,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings=SESSION | {"application_name": f"{self._name} reads"},
        )

    @property
    def _pool(self) -> asyncpg.Pool:
        assert self._readers is not None, "the database is not open"
        return self._readers

    async def writer(self) -> asyncpg.Connection:
        """Return the connection that holds the lock; another one than before where that is lost.

        Raises StoreUnavailable; NotTheWriter where another process has it. One at a time may ask.
        """
        if not self._writes:
            raise Bug(f"{shown(self._dsn)} was opened to read it")
        if self._writer is None or self._writer.is_closed():
            self._writer = None
            try:
                self._writer = await self._locked()
            except DatabaseInUse as other:
                raise NotTheWriter(f"this vending lost its connection: {other}") from other
            except (*UNREACHABLE, asyncpg.PostgresError) as failed:
                raise self.explained(failed) from failed
            # What readers are connected to may lead no more, and know less than what leads now.
            await self._pool.expire_connections()
        return self._writer

    def let_go(self) -> None:
        """Give the writing connection up: what it was about is unknown, or it is of no use."""
        if self._writer is not None:
            self._writer.terminate()
            self._writer = None

    async def _locked(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(
            self._dsn,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            server_settings=SESSION | {"application_name": self._name},
        )
        try:
            await self._lock(connection)
            if await connection.fetchval("SHOW synchronous_commit") == "off":
                await connection.execute("SET synchronous_commit = on")
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _lock(self, connection: asyncpg.Connection) -> None:
        """Take the lock, at once or when a session that was cut off has ended."""
        is_there = await self._end_former_session(connection)
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + LOCK_WITHIN_S
        while not await try_lock(connection, WRITER, SCHEMA):
            if now_s() >= deadline_s and is_there:
                raise StoreUnavailable(
                    f"{shown(self._dsn)} has not ended our former session yet: its disk is slow"
                )
            if now_s() >= deadline_s:
                holder = await lock_holder(connection, WRITER, SCHEMA)
                raise DatabaseInUse(
                    f"{shown(self._dsn)} is in use by {holder}: stop it, or name another "
                    "database. An event store has one writer"
                )
            await asyncio.sleep(LOCK_POLL_S)
            is_there = await self._end_former_session(connection)
        session = await connection.fetchrow(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        )
        assert session is not None
        self._session = tuple(session)

    async def _end_former_session(self, connection: asyncpg.Connection) -> bool:
        """End the session that had the lock, and may not know that we left. Say if it was there."""
        if self._session is None:
            return False
        found = await connection.fetchval(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid = $1 AND backend_start = $2",
            *self._session,
        )
        return found is not None

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query on what is committed. Raises StoreUnavailable."""
        try:
            try:
                found = await self._pool.fetch(sql, *values)
            except UNREACHABLE:  # the connection may be from before the server was started anew
                found = await self._pool.fetch(sql, *values)
        except (*UNREACHABLE, asyncpg.PostgresError) as failed:
            raise self.explained(failed) from failed
        return [tuple(row) for row in found]

    async def run(self, statements: Sequence[Statement]) -> None:
        """Run statements in one transaction, beside the writer. Raises StoreUnavailable."""
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                for statement in statements:
                    await connection.executemany(statement.sql, statement.rows)
        except (*UNREACHABLE, asyncpg.PostgresError) as failed:
            raise self.explained(failed) from failed

    def explained(self, failed: BaseException) -> StoreUnavailable:
        """Return a failure of PostgreSQL as one that may be over in a moment."""
        why = str(failed) or type(failed).__name__
        return StoreUnavailable(
            f"the event store failed ({why}): check PostgreSQL at {shown(self._dsn)}, "
            "then try again"
        )

    async def _close(self) -> None:
        # A server that is gone does not answer a polite goodbye.
        if self._writer is not None:
            with suppress(*UNREACHABLE):
                await self._writer.close(timeout=CLOSE_TIMEOUT_S)
        if self._readers is not None:
            try:
                await asyncio.wait_for(self._readers.close(), CLOSE_TIMEOUT_S)
            except UNREACHABLE:
                self._readers.terminate()


def _in_order(schema: str) -> str:
    """Return a schema whose texts are ordered as bytes, as SQLite's are, in whatever database."""
    return re.sub(r" text(?=[ ,\n])", ' text COLLATE "C"', schema)


def shown(dsn: str) -> str:
    """Return an address without the password that may be in it."""
    parts = urlsplit(dsn)
    user, at, place = parts.netloc.rpartition("@")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{place}{parts.path}"
