"""Where a book stands: its event store and its tables, opened by an address."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path

import structlog

from services.common.kernel.values import value_class
from services.vending.adapters import postgres_database, sqlite_store, tables
from services.vending.adapters.database import Database
from services.vending.adapters.filling import fill
from services.vending.adapters.postgres_database import PostgresDatabase
from services.vending.adapters.postgres_store import PostgresEventStore
from services.vending.adapters.sqlite_file import SqliteFile, SqliteReader, in_sqlite
from services.vending.adapters.sqlite_store import SqliteEventStore
from services.vending.adapters.tables import SqlTables
from services.vending.domain.event_store import EventStore
from services.vending.domain.tables import Tables

SQLITE = "sqlite:"
KURRENT = ("esdb://", "esdb+discover://", "kurrentdb://", "kurrentdb+discover://")
SQLITE_SCHEMA = sqlite_store.SCHEMA + in_sqlite(tables.SCHEMA)


@value_class
class Stored:
    """The parts of a book that last."""

    store: EventStore
    tables: Tables
    database: Database
    """Where the tables are."""


def opened(address: str, name: str) -> AbstractAsyncContextManager[Stored]:
    """Open or create a book, as the only one who writes.

    `address`: `sqlite:PATH`, `postgresql://...`, `kurrentdb://...`; `name` is shown to whoever
    looks at the server. Raises WattvendError where it cannot be used.
    """
    if address.startswith(SQLITE):
        return _sqlite(Path(address.removeprefix(SQLITE)))
    if address.startswith(KURRENT):
        return _kurrent(address, name, reads_only=False)
    return _postgres(address, name)


def gives_positions(address: str) -> bool:
    """Say whether the server gives out positions as it likes: not the next number."""
    return address.startswith(KURRENT)


def reading(address: str, name: str) -> AbstractAsyncContextManager[Stored]:
    """Open a book to read it, also while vending writes it. Raises WattvendError."""
    if address.startswith(SQLITE):
        return _reading_sqlite(Path(address.removeprefix(SQLITE)))
    if address.startswith(KURRENT):
        return _kurrent(address, name, reads_only=True)
    return _reading_postgres(address, name)


def shown(address: str) -> str:
    """Return an address as a person may see it, without a password."""
    if address.startswith(SQLITE):
        return address.removeprefix(SQLITE)
    return postgres_database.shown(address)


@asynccontextmanager
async def _sqlite(path: Path) -> AsyncIterator[Stored]:
    async with SqliteFile(path, SQLITE_SCHEMA) as file:
        store = SqliteEventStore(file, tables.changes)
        await fill(store, file)
        yield Stored(store, SqlTables(file), file)


@asynccontextmanager
async def _reading_sqlite(path: Path) -> AsyncIterator[Stored]:
    with closing(SqliteReader(path)) as file:
        yield Stored(SqliteEventStore(file), SqlTables(file), file)


@asynccontextmanager
async def _postgres(dsn: str, name: str) -> AsyncIterator[Stored]:
    async with PostgresDatabase.opened(dsn, f"wattvend-vending {name}", tables.SCHEMA) as database:
        store = await PostgresEventStore.opened(database, tables.changes)
        try:
            await fill(store, database)
            yield Stored(store, SqlTables(database), database)
        finally:
            await store.drained()


@asynccontextmanager
async def _reading_postgres(dsn: str, name: str) -> AsyncIterator[Stored]:
    async with PostgresDatabase.reading(dsn, f"wattvend-vending {name}") as database:
        yield Stored(await PostgresEventStore.opened(database), SqlTables(database), database)


@asynccontextmanager
async def _kurrent(address: str, name: str, *, reads_only: bool) -> AsyncIterator[Stored]:
    # Its client takes a moment and memory, which only they should pay who have such a server.
    from services.vending.adapters import kurrent  # noqa: PLC0415

    open_it = kurrent.reading if reads_only else kurrent.writing
    async with open_it(address, name, structlog.stdlib.get_logger()) as (store, kept):
        yield Stored(store, kept, kept.database)
