"""A book on EventStoreDB or KurrentDB, opened: the server, its control stream, the index here."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import structlog
from kurrentdbclient import AsyncKurrentDBClient

from services.common.kernel.errors import WattvendError
from services.vending.adapters import indexed_store, tables
from services.vending.adapters.indexed_store import IndexedEventStore
from services.vending.adapters.kurrent_address import KurrentAddress
from services.vending.adapters.kurrent_control import CONFIRM_S, Control, ControlledTables
from services.vending.adapters.kurrent_store import Bounds, KurrentEventStore
from services.vending.adapters.sqlite_file import SqliteFile, in_sqlite
from services.vending.adapters.tables import Projection

INDEX_SCHEMA = indexed_store.SCHEMA + in_sqlite(tables.SCHEMA)


@asynccontextmanager
async def kurrent(
    url: str,
    index_path: Path,
    *,
    instance: str,
    log: structlog.stdlib.BoundLogger,
    bounds: Bounds = Bounds(),  # noqa: B008 - it is frozen
    confirm_s: float = CONFIRM_S,
    projection: Projection = tables.changes,
) -> AsyncIterator[tuple[IndexedEventStore, ControlledTables]]:
    """Open or create a book on a server, as its writer; `index_path`: the index, a file here.

    Raises WattvendError where it cannot be used, StoreUnavailable where the server cannot be asked.
    """
    address = KurrentAddress.parse(url, instance)
    async with AsyncExitStack() as stack:
        file = await stack.enter_async_context(SqliteFile(index_path, INDEX_SCHEMA))
        client = _client(address)
        stack.push_async_callback(client.close)
        server = KurrentEventStore(client, f"{address.book}.", log, bounds)
        beside = KurrentEventStore(client, f"{address.book}-", log, bounds)
        control = Control(beside, instance, log, confirm_s)
        await control.come()
        store = IndexedEventStore(server, file, projection, control.may_write)
        await store.open()
        try:
            yield store, ControlledTables(file, control)
        finally:
            if store.is_settled:
                await control.leave()


def _client(address: KurrentAddress) -> AsyncKurrentDBClient:
    try:
        return AsyncKurrentDBClient(address.uri)
    except OSError as failed:
        raise WattvendError(
            f"{address.shown}: {failed.filename} cannot be read ({failed.strerror})"
        ) from None
