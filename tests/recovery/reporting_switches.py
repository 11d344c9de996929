"""Rules of reporting, switched off in a child process: see tests/recovery/crashing.py."""

import os
import signal
from collections.abc import Iterable, Mapping
from typing import Any

import asyncpg

from services.common.runtime import points, postgres
from services.reporting.adapters import database, rebuild
from services.reporting.adapters.database import Place, Writer
from services.reporting.adapters.log import Batch, Log
from services.reporting.adapters.rebuild import Progress
from services.reporting.domain.rows import Row, Table
from tests.recovery.crashing import armed
from tests.recovery.patching import patch

SCHEMA = os.environ["WATTVEND_REPORTING_POSTGRES_SCHEMA"]
RUN = SCHEMA.removeprefix("reporting_")
"""It is in the names of this test's stories."""
Advanced = Mapping[Place, tuple[int, int]]


def positions_apart_from_rows() -> None:
    """Commit how far the log is read, then the rows; between them: `positions-committed`."""
    write, advance = Writer.write, Writer._advance

    async def apart(self: Writer, rows: Iterable[Row], advanced: Advanced) -> dict[str, int]:
        async with self._connection.transaction():
            await advance(self, advanced)
        points.point("positions-committed")
        return await write(self, rows, {})

    async def nothing(*_: Any) -> None:
        return

    patch(Writer, write=apart, _advance=nothing)


def anybody_writes() -> None:
    """Let a second writer in."""

    async def taken(*_: Any) -> bool:
        return True

    patch(postgres, try_lock=taken)


def any_positions() -> None:
    """Write whatever the stored positions are."""

    async def advance(self: Writer, advanced: Advanced) -> None:
        moves = [(*place, after) for place, (_, after) in advanced.items()]
        await self._connection.executemany(
            "UPDATE positions SET next_offset = $3 WHERE topic = $1 AND partition = $2", moves
        )

    patch(Writer, _advance=advance)


def any_version() -> None:
    """Let what is written last stand."""
    upsert = database.upsert

    def blind(table: Table) -> str:
        return upsert(table).partition(" WHERE ROW")[0]

    patch(database, upsert=blind)


def any_silence() -> None:
    """Let a session last however long it says nothing."""
    patch(database, SILENT_MAX_S=0)


def sleep_on_a_batch() -> None:
    """Switch nothing off: be suspended with a story in hand; woken, write it and die."""
    batch = Log.batch

    async def stopping(self: Log) -> Batch | None:
        found = await batch(self)
        if found is not None and any(RUN in repr(row) for row in found.rows):
            os.kill(os.getpid(), signal.SIGSTOP)
            armed("committed", 1, signal.SIGKILL)
        return found

    patch(Log, batch=stopping)


def swap_before_filling() -> None:
    """Let readers have a rebuild's tables from its beginning."""
    swap, fill = rebuild._swap, rebuild._read_to_end

    async def nothing(*_: Any) -> None:
        return

    async def early(connection: asyncpg.Connection, reader: Log, progress: Progress) -> None:
        await swap(connection, SCHEMA, f"{SCHEMA}_next")
        await connection.execute(f'SET search_path TO "{SCHEMA}"')
        await fill(connection, reader, progress)

    patch(rebuild, _read_to_end=early, _swap=nothing)
