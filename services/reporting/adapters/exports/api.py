"""ExportService: what was charged of meters, written down once and read as often as one likes."""

# ruff: noqa: N802 - names are those of the generated servicer

import asyncio
from contextlib import aclosing
from typing import Any

import asyncpg

from services.common.kernel import names
from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.ids import column_key
from services.common.kernel.reasons import Reason
from services.reporting.adapters.commits import NOT_PROJECTING, Commits
from services.reporting.adapters.exports.lines import Gatherer, Lines
from services.reporting.adapters.exports.store import DAY_MS, Chunks, Written
from services.reporting.adapters.fleet import Fleet
from wattvend.reporting.v1 import exports_pb2 as pb
from wattvend.reporting.v1 import exports_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["ExportService"].full_name
AT_ONCE_MAX = 2
"""Chunks that are gathered at once, the others wait: each has a reader's connection for long."""
CLOCKS_APART_MS_MAX = 300_000
"""What the clock of who asks may be ahead of ours: only what is over is exported."""
CHUNK_BYTES_MAX = 3 << 20
"""Of a chunk, compressed: it travels in one message, of which clients take 4 MiB."""


class ExportServicer(exports_pb2_grpc.ExportServiceServicer):
    """The servicer. Errors are raised; services.common.runtime.grpc.Guard maps them."""

    def __init__(
        self, fleet: Fleet, commits: Commits, chunks: Chunks, clock: Clock, keep_days: int
    ) -> None:
        """Read of `fleet`, write to `chunks`; `commits` knows how new what is read is."""
        self._fleet = fleet
        self._chunks = chunks
        self._commits = commits
        self._clock = clock
        self._keep_days = keep_days
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)

    async def GetExport(self, request: pb.GetExportRequest, _: Any) -> pb.Export:
        """Return how much of an export is kept."""
        export_id = names.EXPORT.id("name", request.name)
        found = await self._chunks.export(export_id)
        if found is None:
            raise self._not_found(f"nothing is kept of export {export_id}")
        return pb.Export(
            name=request.name,
            chunks_count=found["chunks_count"],
            rows_count=found["rows_count"],
            size_bytes=found["size_bytes"],
            stored_bytes=found["stored_bytes"],
            expires_at_ms=found["written_at_ms"] + self._keep_days * DAY_MS,
        )

    async def GetExportChunk(self, request: pb.GetExportChunkRequest, _: Any) -> pb.ExportChunk:
        """Return the lines of a meter."""
        export_id, meter_id = names.EXPORT_CHUNK.ids("name", request.name)
        found = await self._chunks.whole(export_id, meter_id)
        if found is None:
            raise self._not_found(f"no lines of meter {meter_id} are kept of export {export_id}")
        return _message(request.name, found, found["content"])

    async def WriteExportChunk(self, request: pb.WriteExportChunkRequest, _: Any) -> pb.ExportChunk:
        """Write the lines of a meter down, once."""
        export_id, meter_id = names.EXPORT_CHUNK.ids("name", request.name)
        if not 0 <= request.from_ms < request.to_ms:
            text = "from_ms must lie before to_ms (ms UTC)"
            raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="from_ms")
        if request.to_ms > self._clock.now_ms() + CLOCKS_APART_MS_MAX:
            text = "to_ms lies in the future: export what is past"
            raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="to_ms")
        standing = await self._chunks.told(export_id, meter_id)
        if standing is None:
            as_of_ms = self._as_of_ms(request.to_ms)
            async with self._at_once:
                if request.validate_only:
                    return await self._tried(request, meter_id, as_of_ms)
                lines = await self._lines(meter_id, request.from_ms, request.to_ms)
            times_ms = (request.from_ms, request.to_ms, as_of_ms)
            written = Written(export_id, meter_id, *times_ms, lines)
            await self._chunks.write(written, self._clock.now_ms())
            standing = await self._chunks.told(export_id, meter_id)
            assert standing is not None, "it was written a moment ago"
        if (standing["from_ms"], standing["to_ms"]) != (request.from_ms, request.to_ms):
            text = f"{request.name} was written of another time: an export is of one"
            raise InvalidInput(Reason.ALREADY_EXISTS, text, field="name")
        return _message(request.name, standing)

    def _as_of_ms(self, to_ms: int) -> int:
        """Return how new what is read is. Raises Retriable where it does not reach to an end."""
        as_of_ms = self._commits.as_of_ms  # taken before the look: what is seen is at least so new
        if not as_of_ms:
            raise Retriable(NOT_PROJECTING)
        if as_of_ms < to_ms:
            raise Retriable(
                f"reporting is {-(-(to_ms - as_of_ms) // 1000)} s short of the end of the time: "
                "wait until it has read so far"
            )
        return as_of_ms

    async def _tried(
        self, request: pb.WriteExportChunkRequest, meter_id: str, as_of_ms: int
    ) -> pb.ExportChunk:
        key = column_key("meter", meter_id)
        count = await self._fleet.readings_count(key, request.from_ms, request.to_ms)
        await self._check_is_known(meter_id, count)
        return pb.ExportChunk(
            name=request.name,
            from_ms=request.from_ms,
            to_ms=request.to_ms,
            rows_count=count,
            as_of_ms=as_of_ms,
        )

    async def _lines(self, meter_id: str, from_ms: int, to_ms: int) -> Lines:
        gatherer, count = Gatherer(meter_id), 0
        readings = self._fleet.all_readings(column_key("meter", meter_id), from_ms, to_ms)
        async with aclosing(readings):
            async for charges in readings:
                gatherer.add(charges)
                count += len(charges)
                if gatherer.stored_bytes > CHUNK_BYTES_MAX:
                    text = (
                        f"meter {meter_id} has more than {count} readings in that time, which is "
                        "more than one piece of a file may be: export a shorter time of it"
                    )
                    raise InvalidInput(Reason.EXPORT_TOO_LARGE, text)
        await self._check_is_known(meter_id, count)
        return gatherer.gathered()

    async def _check_is_known(self, meter_id: str, count: int) -> None:
        if not count and not await self._fleet.meter_is_known(meter_id):
            text = f"reporting knows no meter {meter_id}"
            raise InvalidInput(Reason.METER_NOT_FOUND, text, field="name")

    def _not_found(self, what: str) -> InvalidInput:
        text = f"{what}: it was not written, or is older than {self._keep_days} days"
        return InvalidInput(Reason.EXPORT_NOT_FOUND, text, field="name")


def _message(name: str, chunk: asyncpg.Record, content: bytes = b"") -> pb.ExportChunk:
    return pb.ExportChunk(
        name=name,
        from_ms=chunk["from_ms"],
        to_ms=chunk["to_ms"],
        rows_count=chunk["rows_count"],
        size_bytes=chunk["size_bytes"],
        sha256=chunk["sha256"],
        as_of_ms=chunk["as_of_ms"],
        written_at_ms=chunk["written_at_ms"],
        content=content,
    )
