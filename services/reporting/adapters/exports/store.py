"""PostgreSQL: a schema of its own, for a rebuild swaps that of the read models away.

What an export holds cannot be made anew as it was, so its chunks are written once and never
changed; whole exports are removed when their last chunk is old.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import asyncpg
import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.values import value_class
from services.common.runtime import postgres
from services.common.runtime.postgres import UNREACHABLE
from services.reporting.adapters.exports.lines import Lines
from services.reporting.adapters.metrics import Metrics
from services.reporting.adapters.queries import lent

KEEPER = "exports"
"""The purpose of the lock of who makes the table, and removes from it."""
DAY_MS = 86_400_000
REMOVED_AT_ONCE = 500
LOOK_AGAIN_S = 600.0
TRY_AGAIN_S = 5.0
INSERTED = "INSERT 0 1"
Connected = Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
AWAY = (
    "exports are neither written nor read right now: try again in a moment; if it "
    "lasts, look at PostgreSQL and into the log of reporting"
)
_TOLD = "rows_count, size_bytes, sha256, as_of_ms, from_ms, to_ms, written_at_ms"


def schema_of(schema: str) -> str:
    """Return the schema of exports beside that of the read models."""
    return f"{schema}_exports"


@value_class
class Written:
    """A chunk to be written: what ends in [from, to), by what was known at `as_of_ms`."""

    export_id: str
    meter_id: str
    from_ms: int
    to_ms: int
    as_of_ms: int
    lines: Lines


class Chunks:
    """The table of chunks. Raises Retriable while PostgreSQL, or the table in it, is not there."""

    def __init__(self, connections: asyncpg.Pool, metrics: Metrics) -> None:
        self._connections = connections
        self._metrics = metrics

    async def told(self, export_id: str, meter_id: str) -> asyncpg.Record | None:
        """Return what a chunk is, without its content; None where there is none."""
        return await self._one(_TOLD, export_id, meter_id)

    async def whole(self, export_id: str, meter_id: str) -> asyncpg.Record | None:
        """Return a chunk with its content; None where there is none."""
        return await self._one(f"{_TOLD}, content", export_id, meter_id)

    async def _one(self, columns: str, export_id: str, meter_id: str) -> asyncpg.Record | None:
        async with self._connection() as connection:
            return await connection.fetchrow(
                f"SELECT {columns} FROM chunks WHERE export_id = $1 AND meter_id = $2",  # noqa: S608 - our own names
                export_id,
                meter_id,
            )

    async def export(self, export_id: str) -> asyncpg.Record | None:
        """Return what an export comes to; None where nothing of it is kept."""
        async with self._connection() as connection:
            found = await connection.fetchrow(
                "SELECT count(*) AS chunks_count, sum(rows_count)::bigint AS rows_count, "
                "sum(size_bytes)::bigint AS size_bytes, "
                "sum(octet_length(content))::bigint AS stored_bytes, "
                "max(written_at_ms) AS written_at_ms FROM chunks WHERE export_id = $1",
                export_id,
            )
        assert found is not None, "a line of aggregates"
        return found if found["chunks_count"] else None

    async def write(self, chunk: Written, now_ms: int) -> None:
        """Write a chunk, where there is none yet."""
        lines = chunk.lines
        async with self._connection() as connection:
            done = await connection.execute(
                "INSERT INTO chunks (export_id, meter_id, from_ms, to_ms, rows_count, size_bytes, "
                "sha256, as_of_ms, written_at_ms, content) "
                "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT DO NOTHING",
                chunk.export_id,
                chunk.meter_id,
                chunk.from_ms,
                chunk.to_ms,
                lines.rows,
                lines.size_bytes,
                lines.sha256,
                chunk.as_of_ms,
                now_ms,
                lines.content,
            )
        if done == INSERTED:
            self._metrics.exported.inc(lines.rows)
            self._metrics.exports_kept.inc(len(lines.content))

    def _connection(self) -> AbstractAsyncContextManager[Any]:
        return lent(self._connections, AWAY)


class Keeper:
    """Makes the table, and removes exports whose last chunk is older than `keep_days`."""

    def __init__(self, connected: Connected, schema: str, metrics: Metrics) -> None:
        """Use what opens a connection whose unqualified names are of `schema`."""
        self._metrics = metrics
        self._connected = connected
        self._schema = schema

    async def run(self, clock: Clock, keep_days: int, log: structlog.stdlib.BoundLogger) -> None:
        """Keep for as long as the service runs. Whoever else keeps them meanwhile is let do so."""
        while True:
            pause_s = LOOK_AGAIN_S
            try:
                if removed := await self.keep(clock.now_ms() - keep_days * DAY_MS):
                    log.info("exports were removed by their age", exports=removed)
            except UNREACHABLE as away:
                pause_s = TRY_AGAIN_S
                why = str(away) or type(away).__name__
                log.warning("exports are not kept now", schema=self._schema, why=why)
            except asyncpg.PostgresError as refused:  # its role may not make the schema, say
                log.warning("exports cannot be kept", schema=self._schema, why=str(refused))
            await asyncio.sleep(pause_s)

    async def keep(self, before_ms: int) -> int:
        """Make the table where it is not, and remove what ended before; return how many exports.

        Raises WattvendError where a newer version made the table.
        """
        async with self._connected() as connection:
            if not await postgres.try_lock(connection, KEEPER, self._schema):
                return 0
            known = postgres.migrations("services.reporting.adapters.exports")
            await postgres.migrate(connection, self._schema, known, who="reporting")
            old = await connection.fetch(
                "SELECT export_id FROM chunks GROUP BY export_id HAVING max(written_at_ms) < $1",
                before_ms,
            )
            for (export_id,) in old:
                while await self._remove_some(connection, export_id):
                    pass
            kept = await connection.fetchval("SELECT sum(octet_length(content)) FROM chunks")
            self._metrics.exports_kept.set(kept or 0)
            return len(old)

    async def _remove_some(self, connection: asyncpg.Connection, export_id: str) -> bool:
        found = await connection.fetch(
            "DELETE FROM chunks WHERE export_id = $1 AND meter_id IN "
            "(SELECT meter_id FROM chunks WHERE export_id = $1 LIMIT $2) RETURNING 1",
            export_id,
            REMOVED_AT_ONCE,
        )
        return bool(found)
