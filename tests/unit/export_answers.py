"""What vending and reporting answer of an export whose meters have these lines."""

import hashlib
import zlib
from collections.abc import Callable
from typing import Any

from services.common.kernel.exported import GZIP_BITS
from tools.client import Refused
from wattvend.reporting.v1 import exports_pb2 as e
from wattvend.vending.v1 import batches_pb2 as b

Answers = dict[str, Callable[[Any], Any]]
GONE = Refused("NOT_FOUND", "EXPORT_NOT_FOUND", "nothing is kept of it")


def zipped(lines: bytes) -> bytes:
    gzip = zlib.compressobj(wbits=GZIP_BITS)
    return gzip.compress(lines) + gzip.flush()


def answers(*meters: tuple[str, bytes | str], status: str = "finished") -> Answers:
    """Return answers by method; a meter has lines, or the reason for which it has none."""
    kept = {meter: lines for meter, lines in meters if isinstance(lines, bytes)}
    rows = sum(lines.count(b"\n") for lines in kept.values())
    batch = b.Batch(kind="export", status=status, currency="CNY", from_ms=1, to_ms=2)
    batch.summary.targets_count, batch.summary.done_count = len(meters), len(kept)
    batch.summary.rows_count = rows

    def get_batch(request: b.GetBatchRequest) -> b.Batch:
        batch.name = request.name
        return batch

    def results(request: b.ListBatchResultsRequest) -> b.ListBatchResultsResponse:
        """Tell one a page."""
        number = int(request.page_token or 0)
        meter, lines = meters[number]
        result = b.BatchResult(target=f"meters/{meter}", outcome="refused")
        if isinstance(lines, str):
            result.reason = lines
        else:
            result.outcome = "done"
            result.rows_count, result.size_bytes = lines.count(b"\n"), len(lines)
            result.sha256 = hashlib.sha256(lines).digest()
        token = str(number + 1) if number + 1 < len(meters) else ""
        return b.ListBatchResultsResponse(results=[result], next_page_token=token)

    def chunk(request: e.GetExportChunkRequest) -> e.ExportChunk:
        return e.ExportChunk(content=zipped(kept[request.name.rpartition("/")[2]]))

    return {
        "GetBatch": get_batch,
        "ListBatchResults": results,
        "GetExport": lambda _: e.Export(size_bytes=1_234_567, expires_at_ms=1_800_000_000_000),
        "GetExportChunk": chunk,
    }
