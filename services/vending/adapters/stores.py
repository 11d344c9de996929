"""Where a book stands: its event store and its tables, opened by an address."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

from services.common.kernel.values import value_class
from services.vending.adapters import sqlite_store, tables
from services.vending.adapters.sqlite_file import SqliteFile, SqliteReader, in_sqlite
from services.vending.adapters.sqlite_store import SqliteEventStore
from services.vending.adapters.tables import SqlTables
from services.vending.domain.event_store import EventStore
from services.vending.domain.tables import Tables

SQLITE_SCHEMA = sqlite_store.SCHEMA + in_sqlite(tables.SCHEMA)


@value_class
class Stored:
    """The parts of a book that last. Whoever opened them is the only one who writes."""

    store: EventStore
    tables: Tables


@asynccontextmanager
async def sqlite(path: Path) -> AsyncIterator[Stored]:
    """Open or create a book in a SQLite file. Raises WattvendError where it cannot be used."""
    async with SqliteFile(path, SQLITE_SCHEMA) as file:
        yield Stored(SqliteEventStore(file, tables.changes), SqlTables(file))


@asynccontextmanager
async def reading_sqlite(path: Path) -> AsyncIterator[Stored]:
    """Open a book to read it, also while vending writes it. Raises WattvendError."""
    with closing(SqliteReader(path)) as file:
        yield Stored(SqliteEventStore(file), SqlTables(file))
