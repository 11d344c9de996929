"""`wattvend batch download` and `verify`: the file of an export, proven against the book.

The file is a header and the lines of each meter, in the order of the batch's results, which tell
how many bytes those are and their digest. So a file that was broken off tells itself how far it is:
the book knows each byte of it.
"""

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from services.common.kernel import names
from services.common.kernel.exported import GZIP_BITS, HEADER
from tools.cli import show
from tools.cli.asking import Answer, err, options, pages, run
from tools.cli.batches import BatchId, batch_of, results, shown
from tools.client import Clients, Refused
from wattvend.reporting.v1 import exports_pb2 as e
from wattvend.vending.v1 import batches_pb2 as b

PAGE_SIZE = 1000
TIMEOUT_S = 60.0
"""Of a chunk: 3 MiB at most."""
LEFT_OUT_SHOWN = 20
OVER = ("finished", "cancelled")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the file: what the book says of a meter's lines. The header is one too."""

    meter: str
    rows: int
    size: int
    sha256: bytes

    def check(self, lines: bytes, where: str) -> None:
        """Raise Refused where lines are not those that the book tells of."""
        if hashlib.sha256(lines).digest() != self.sha256:
            what = f"the lines of meter {self.meter}" if self.meter else "the first line"
            text = f"{what} are not those that the book tells of: {where}"
            raise Refused("DATA_LOSS", "", text)


FIRST = Piece("", 0, len(HEADER), hashlib.sha256(HEADER.encode()).digest())


@dataclass(frozen=True, slots=True)
class Export:
    """A batch that exported readings: its file, in pieces, and whose are not in it."""

    batch: b.Batch
    pieces: Sequence[Piece]
    left_out: b.ListBatchResultsResponse

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return sum(piece.size for piece in self.pieces)

    @property
    def told(self) -> Answer:
        """What `--json` prints."""
        return {"batch": self.batch, "left_out": self.left_out}


def batch_download(
    batch: BatchId,
    to: Annotated[Path, typer.Option("--out", help="the CSV file to write", dir_okay=False)],
) -> None:
    """Write the file of an export that is over; repeated, it goes on where it broke off."""

    async def work(clients: Clients) -> Answer:
        export = await _export(clients, batch)
        with to.open("a+b") as file:
            await _written(clients, export, file, str(to))
            file.flush()
            os.fsync(file.fileno())
        return export.told

    run(work, lambda told: _proven(told, to))


def batch_verify(
    batch: BatchId,
    file: Annotated[Path, typer.Option(help="the CSV file to check", exists=True)],
) -> None:
    """Check the file of an export, byte by byte, against what the book says of it."""

    async def work(clients: Clients) -> Answer:
        export = await _export(clients, batch)
        with file.open("rb") as opened:
            whole, tail = _standing(export.pieces, opened, str(file))
        if tail or whole < len(export.pieces):
            text = f"{file} ends too early: download it again, and it goes on there"
            raise Refused("DATA_LOSS", "", text)
        return export.told

    run(work, lambda told: _proven(told, file))


def batch_show(batch: BatchId) -> None:
    """Show a batch: who wants what of how many, and how far it is."""
    of_file = ""

    async def work(clients: Clients) -> b.Batch:
        nonlocal of_file
        found = await batch_of(clients, batch)
        if found.kind == "export" and found.summary.done_count and not options.as_json:
            of_file = await _kept(clients, found)
        return found

    run(work, lambda found: shown(found, of_file))


async def _kept(clients: Clients, batch: b.Batch) -> str:
    """Return until when the file of an export can be downloaded, in a person's words."""
    request = e.GetExportRequest(name=names.EXPORT.name(show.id_of(batch.name)))
    try:
        export: e.Export = await clients.exports("GetExport", request)
    except Refused as refused:
        if refused.reason != "EXPORT_NOT_FOUND":
            return f"nobody says now whether it is kept: {refused.message}"
        return "gone: reporting keeps it no more"
    size = f"{export.size_bytes:,} bytes, {export.stored_bytes:,} as they are kept"
    return f"{size}; until {show.moment(export.expires_at_ms)}"


async def _export(clients: Clients, batch_id: str) -> Export:
    """Return an export that is over. Raises Refused where a batch is none."""
    batch = await batch_of(clients, batch_id)
    if batch.kind != "export":
        text = f"batch {batch_id} is of kind {batch.kind}: only an export has a file"
        raise Refused("INVALID_ARGUMENT", "", text)
    if batch.status not in OVER or batch.summary.waiting_count:
        text = f"it is {batch.status}, and its file not whole: wattvend batch wait {batch_id}"
        raise Refused("FAILED_PRECONDITION", "BATCH_STATE", text)
    pieces = [FIRST]
    left_out = b.ListBatchResultsResponse(currency=batch.currency)
    request = b.ListBatchResultsRequest(parent=batch.name, page_size=PAGE_SIZE)
    async for page in pages(clients.batches, "ListBatchResults", request):
        for each in page.results:
            if each.HasField("rows_count"):
                meter = show.id_of(each.target)
                pieces.append(Piece(meter, each.rows_count, each.size_bytes, each.sha256))
            else:
                left_out.results.append(each)
    return Export(batch, pieces, left_out)


def _standing(pieces: Sequence[Piece], file: BinaryIO, path: str) -> tuple[int, bytes]:
    """Return how many pieces a file begins with, and what stands behind them of the next.

    Raises Refused where anything in it is not what the book tells of.
    """
    for number, piece in enumerate(pieces):
        lines = file.read(piece.size)
        if len(lines) < piece.size:
            return number, lines
        piece.check(lines, f"{path} is of another export, or was changed; choose another file")
    if file.read(1):
        text = f"{path} goes on behind the last meter: it is of another export, or was changed"
        raise Refused("DATA_LOSS", "", text)
    return len(pieces), b""


async def _written(clients: Clients, export: Export, file: BinaryIO, path: str) -> None:
    """Append what is not in a file yet."""
    file.seek(0)
    whole, tail = _standing(export.pieces, file, path)
    done = sum(piece.size for piece in export.pieces[:whole])
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(
        *columns, TimeRemainingColumn(), console=err, disable=options.as_json, transient=True
    ) as bar:
        task = bar.add_task("readings", total=export.size, completed=done)
        for piece in export.pieces[whole:]:
            lines = await _lines(clients, export.batch, piece)
            if not lines.startswith(tail):
                text = f"{path} is of another export, or was changed; choose another file"
                raise Refused("DATA_LOSS", "", text)
            file.write(lines[len(tail) :])
            tail = b""
            bar.advance(task, piece.size)


async def _lines(clients: Clients, batch: b.Batch, piece: Piece) -> bytes:
    """Return the lines of a piece, as the book tells of them."""
    if piece is FIRST:
        return HEADER.encode()
    if not piece.size:
        return b""
    name = names.EXPORT_CHUNK.name(show.id_of(batch.name), piece.meter)
    chunk: e.ExportChunk = await clients.exports(
        "GetExportChunk", e.GetExportChunkRequest(name=name), timeout_s=TIMEOUT_S
    )
    where = "what reporting keeps was changed; export it again"
    try:
        lines = zlib.decompress(chunk.content, wbits=GZIP_BITS)
    except zlib.error:
        lines = b"no lines"
    piece.check(lines, where)
    return lines


def _proven(told: dict[str, Any], path: Path) -> RenderableType:
    batch, left_out = told["batch"], told["left_out"]
    summary, size = batch.summary, path.stat().st_size
    text = (
        f"[green]{escape(str(path))}[/] is what the book tells of, byte by byte: "
        f"{summary.done_count:,} meters, {summary.rows_count:,} readings, {size:,} bytes"
    )
    if not left_out.results:
        return text
    first = b.ListBatchResultsResponse(
        results=left_out.results[:LEFT_OUT_SHOWN], currency=batch.currency
    )
    count, shown_count = len(left_out.results), len(first.results)
    told_of = "" if count == shown_count else f"; the first {shown_count} are shown"
    return Group(
        text, results(first), f"not in it: {count:,} of {summary.targets_count:,} meters{told_of}"
    )
