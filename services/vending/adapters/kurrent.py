"""A book on EventStoreDB or KurrentDB, opened: the server, its control stream, the index here."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress

import structlog
from kurrentdbclient import AsyncKurrentDBClient
from kurrentdbclient.exceptions import ProgrammingError

from services.common.kernel.errors import WattvendError
from services.vending.adapters import indexed_store, tables
from services.vending.adapters.filling import fill
from services.vending.adapters.indexed_store import IndexedEventStore
from services.vending.adapters.kurrent_address import KurrentAddress
from services.vending.adapters.kurrent_control import Control, ControlledTables
from services.vending.adapters.kurrent_store import Bounds, KurrentEventStore
from services.vending.adapters.sqlite_file import SqliteFile, SqliteReader, in_sqlite
from services.vending.adapters.tables import Projection

BOUNDS = Bounds()
CONFIRM_S = 2.0
"""So long a writer takes itself for the writer without asking the server."""
INDEX_SCHEMA = indexed_store.SCHEMA + in_sqlite(tables.SCHEMA)


@asynccontextmanager
async def writing(
    url: str,
    instance: str,
    log: structlog.stdlib.BoundLogger,
    projection: Projection = tables.changes,
) -> AsyncIterator[tuple[IndexedEventStore, ControlledTables]]:
    """Open or create a book on a server, as its writer; its index is a file here.

    Raises WattvendError where it cannot be used, StoreUnavailable where the server cannot be asked.
    """
    address = KurrentAddress.parse(url, instance)
    async with AsyncExitStack() as stack:
        file = await stack.enter_async_context(SqliteFile(address.index, INDEX_SCHEMA))
        server, beside = await _connected(stack, address, log)
        control = Control(beside, instance, log, CONFIRM_S)
        await control.come()
        store = IndexedEventStore(server, file, projection, control.may_write)
        await store.open()
        await fill(store, file)
        try:
            yield store, ControlledTables(file, control)
        finally:
            if store.is_settled:
                await control.leave()


@asynccontextmanager
async def reading(
    url: str, instance: str, log: structlog.stdlib.BoundLogger
) -> AsyncIterator[tuple[IndexedEventStore, ControlledTables]]:
    """Open a book on a server to read it, beside its writer, with the index that this one keeps.

    Raises WattvendError.
    """
    address = KurrentAddress.parse(url, instance)
    async with AsyncExitStack() as stack:
        file = stack.enter_context(closing(SqliteReader(address.index)))
        server, beside = await _connected(stack, address, log)
        control = Control(beside, instance, log, CONFIRM_S)
        await control.look()
        yield IndexedEventStore(server, file), ControlledTables(file, control)


async def _connected(
    stack: AsyncExitStack, address: KurrentAddress, log: structlog.stdlib.BoundLogger
) -> tuple[KurrentEventStore, KurrentEventStore]:
    """Return the streams of the book and those beside it."""
    try:
        client = AsyncKurrentDBClient(address.uri)
    except OSError as failed:
        raise WattvendError(
            f"{address.shown}: {failed.filename} cannot be read ({failed.strerror})"
        ) from None
    stack.push_async_callback(_closed, client)
    book, beside = (f"{address.book}{mark}" for mark in ".-")
    return (
        KurrentEventStore(client, book, log, BOUNDS),
        KurrentEventStore(client, beside, log, BOUNDS),
    )


async def _closed(client: AsyncKurrentDBClient) -> None:
    with suppress(ProgrammingError):  # where it never had a connection
        await client.close()
