"""Every table anew from the beginning of the log, beside the running service, then swapped in.

The new tables are built in the schema <schema>_next. The swap is one transaction: it waits for
the service's running transaction; the service's next one finds positions that it did not leave,
and goes on from those. So neither can harm the other, and readers always see whole tables.
"""

from collections.abc import Callable, Mapping

import asyncpg

from services.common.kernel.errors import WattvendError
from services.common.runtime import points, postgres
from services.reporting.adapters import database, log
from services.reporting.adapters.database import Place, Span
from services.reporting.adapters.projector import Source, held_positions
from services.reporting.domain.rows import TABLES

REBUILD = "rebuild"

Progress = Callable[[int, int], None]
"""Called with records read and records there were, after each transaction."""


async def rebuild(source: Source, progress: Progress, *, accept_loss: bool) -> Mapping[str, int]:
    """Rebuild; return table → rows. Raises WattvendError where it must not, or a person decides.

    `accept_loss`: go on where retention has removed records that today's tables still hold.
    """
    schema, fresh = source.postgres_schema, f"{source.postgres_schema}_next"
    async with (
        database.connected(source.postgres_dsn, fresh, name="wattvend-reporting rebuild") as new,
        log.reading(
            source.kafka_bootstrap,
            client_id="reporting-rebuild",
            skip=source.skip,
            records_max=source.batch_records_max,
        ) as reader,
    ):
        if not await postgres.try_lock(new, REBUILD, schema):
            holder = await postgres.lock_holder(new, REBUILD, schema)
            raise WattvendError(
                f"schema {schema} is being rebuilt by {holder}: wait for it, or stop it"
            )
        if not accept_loss:
            _nothing_would_be_lost(await _held(new, schema), await reader.beginnings())
        await new.execute(f'DROP SCHEMA IF EXISTS "{fresh}" CASCADE')
        await database.migrate(new, fresh)
        reader.start(await held_positions(new, reader))
        await _read_to_end(new, reader, progress)
        counts = {
            table.name: await new.fetchval(f"SELECT count(*) FROM {table.name}")  # noqa: S608
            for table in TABLES.values()
        }
        points.point("filled")
        await _swap(new, schema, fresh)
        points.point("swapped")
        return counts


async def _held(connection: asyncpg.Connection, schema: str) -> Mapping[Place, Span]:
    async with connection.transaction():
        await connection.execute(f'SET LOCAL search_path TO "{schema}"')
        if await connection.fetchval("SELECT to_regclass('positions')") is None:
            return {}
        return await database.positions(connection)


def _nothing_would_be_lost(held: Mapping[Place, Span], beginnings: Mapping[Place, int]) -> None:
    gone = [
        f"{place.topic}-{place.partition} (tables: from {span.first_offset}, "
        f"log: from {beginnings[place]})"
        for place, span in sorted(held.items())
        if place in beginnings and span.first_offset < beginnings[place] and log.is_history(place)
    ]
    if gone:
        raise WattvendError(
            "retention has removed records whose rows the tables still hold, and a rebuild would "
            f"lose them: {', '.join(gone)}. Add --accept-loss if that is meant"
        )


async def _read_to_end(connection: asyncpg.Connection, reader: log.Log, progress: Progress) -> None:
    writer = await database.Writer.opened(connection)
    ends = await reader.ends()
    total = sum(max(0, end - reader.at[place]) for place, end in ends.items())
    while missing := sum(max(0, end - reader.at[place]) for place, end in ends.items()):
        progress(total - missing, total)
        batch = await reader.batch()
        if batch is not None:
            await writer.write(batch.rows, batch.advanced)
    progress(total, total)


async def _swap(connection: asyncpg.Connection, schema: str, fresh: str) -> None:
    async with connection.transaction():
        await connection.execute(f'SET LOCAL search_path TO "{schema}"')
        if await connection.fetchval("SELECT to_regclass('positions')") is not None:
            # Waits for the service's transaction, and lets no other begin.
            await connection.execute("LOCK TABLE positions IN ACCESS EXCLUSIVE MODE")
        await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        await connection.execute(f'ALTER SCHEMA "{fresh}" RENAME TO "{schema}"')
        points.point("swapping")
