"""`wattvend batch export-readings`: what was charged of many meters, into one CSV file.

It changes nothing, so it is no batch of the book. Beside the file stands `FILE.progress`, a line of
JSON for each meter that is in it: how many readings, and where the file ended then. An export that
was broken off cuts the file to there and goes on with the next meter.
"""

import csv
import io
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from services.common.kernel import names
from services.common.kernel.units import format_scaled
from tools.cli import show
from tools.cli.asking import err, instant_ms, options, pages, run
from tools.cli.batches import listed_in
from tools.client import Clients, Refused
from wattvend.reporting.v1 import fleet_pb2 as f

PAGE_SIZE = 1000
HEADER = (
    *("meter", "time_ms", "register", "quality", "from_register", "energy", "price_micro"),
    *("amount", "currency", "account", "tariff", "tariff_version", "kind", "epoch", "sequence"),
)


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported, and into which file."""

    meters: tuple[str, ...]
    from_ms: int
    to_ms: int
    path: Path

    @property
    def progress(self) -> Path:
        """Where it stands how far the file is."""
        return self.path.with_name(self.path.name + ".progress")

    @property
    def what(self) -> dict[str, Any]:
        """The first line of the progress: another export does not go on with this file."""
        return {"from_ms": self.from_ms, "to_ms": self.to_ms}


def batch_export_readings(  # noqa: PLR0917 - a command line is parsed by name
    begin: Annotated[str, typer.Option("--from", help="this terminal's clock, '2027-01-01 00:00'")],
    end: Annotated[str, typer.Option("--to", help="that of the end, which is not in it")],
    to: Annotated[Path, typer.Option("--out", help="the CSV file to write", dir_okay=False)],
    target: Annotated[list[str], typer.Option(help="a meter; may be repeated")] = [],  # noqa: B006
    file: Annotated[Path | None, typer.Option(help="CSV: a meter a line", exists=True)] = None,
    filter_: Annotated[
        str, typer.Option("--filter", help="""e.g. 'site_tree = sites/mall-1'""")
    ] = "",
) -> None:
    """Write what was charged of meters, by their registers; repeated, it goes on."""
    listed = tuple(listed_in(target, file))
    if bool(listed) == bool(filter_):
        raise typer.BadParameter("choose the meters by --filter, or list them")
    from_ms, to_ms = instant_ms(begin), instant_ms(end)

    async def work(clients: Clients) -> f.ListFleetMetersResponse:
        meters = listed or tuple([each async for each in _found(clients, filter_)])
        return await _written(clients, Export(meters, from_ms, to_ms, to))

    run(work, lambda answer: _shown(answer, to))


async def _found(clients: Clients, filter_: str) -> AsyncIterator[str]:
    request = f.ListFleetMetersRequest(filter=filter_, page_size=PAGE_SIZE)
    async for page in pages(clients.fleet, "ListFleetMeters", request):
        for meter in page.meters:
            yield show.id_of(meter.name)


async def _written(clients: Clients, export: Export) -> f.ListFleetMetersResponse:
    """Write what is not in the file yet; return each meter, with its result as its status."""
    done = _resumed(export)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results = f.ListFleetMetersResponse()
    with (
        export.path.open("a", newline="", encoding="utf-8") as file,
        export.progress.open("a", encoding="utf-8") as progress,
        Progress(*columns, TimeElapsedColumn(), console=err, disable=options.as_json) as bar,
    ):
        for meter in bar.track(export.meters, description="readings"):
            if meter not in done:
                done[meter] = await _meter(clients, export, meter, file)
                _durable(file)
                line = {"meter": meter, "result": done[meter], "size": file.tell()}
                progress.write(json.dumps(line) + "\n")
                _durable(progress)
            results.meters.add(name=names.METER.name(meter), status=done[meter])
    return results


def _durable(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _resumed(export: Export) -> dict[str, str]:
    """Return meter → result of those in the file, which is cut to where the last of them ends.

    Raises Refused where the file is of another export.
    """
    try:
        text = export.progress.read_text(encoding="utf-8") if export.progress.exists() else None
        whole = (text or "").rpartition("\n")[0]
        said, *lines = [json.loads(line) for line in whole.splitlines()] or [None]
    except ValueError:
        message = f"{export.progress} is no progress of an export: choose another file"
        raise Refused("INVALID_ARGUMENT", "", message) from None
    if said is None:
        begun_max = -1 if text is None else len(_row(HEADER))  # power was cut at its begin
        if export.path.exists() and export.path.stat().st_size > begun_max:
            message = f"{export.path} exists and is no export that was broken off: choose another"
            raise Refused("INVALID_ARGUMENT", "", message)
        return _begun(export)
    if said != export.what:
        message = f"{export.path} is of other instants: choose another file, or remove both"
        raise Refused("INVALID_ARGUMENT", "", message)
    size = lines[-1]["size"] if lines else len(_row(HEADER))
    if export.path.stat().st_size < size:
        message = f"{export.path} is shorter than it was: choose another file, or remove both"
        raise Refused("INVALID_ARGUMENT", "", message)
    export.progress.write_text(whole + "\n", encoding="utf-8")  # a line may have been cut short
    os.truncate(export.path, size)
    return {line["meter"]: line["result"] for line in lines}


def _begun(export: Export) -> dict[str, str]:
    """Write the heads of both files, that of the progress when that of the file is durable."""
    for path, head in (
        (export.path, _row(HEADER)),
        (export.progress, json.dumps(export.what) + "\n"),
    ):
        with path.open("w", newline="", encoding="utf-8") as file:
            file.write(head)
            _durable(file)
    return {}


async def _meter(clients: Clients, export: Export, meter: str, file: Any) -> str:
    """Write the readings of a meter; return how many they are, or why there are none."""
    request = f.ListReadingsRequest(
        parent=names.METER.name(meter),
        from_ms=export.from_ms,
        to_ms=export.to_ms,
        page_size=PAGE_SIZE,
    )
    count = 0
    try:
        async for page in pages(clients.fleet, "ListReadings", request):
            for reading in page.readings:
                file.write(_row((meter, *_cells(reading))))
            count += len(page.readings)
    except Refused as refused:
        if refused.reason != "METER_NOT_FOUND":
            raise
        return refused.reason
    return f"{count} readings"


def _cells(reading: f.ChargedReading) -> tuple[object, ...]:
    currency = show.currency_of(reading.currency)
    return (
        reading.time_ms,
        format_scaled(reading.register_milli, 3),
        reading.quality,
        format_scaled(reading.from_register_milli, 3),
        format_scaled(reading.energy_milli, 3),
        reading.price_micro,
        format_scaled(reading.amount_nano, currency.ledger_decimals),
        reading.currency,
        show.id_of(reading.account),
        show.id_of(reading.tariff),
        reading.tariff_version,
        reading.kind,
        reading.epoch,
        reading.sequence,
    )


def _row(cells: tuple[object, ...]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def _shown(answer: f.ListFleetMetersResponse, path: Path) -> RenderableType:
    table = Table(header_style="bold")
    table.add_column("meter")
    table.add_column("result")
    for each in answer.meters:
        table.add_row(escape(show.id_of(each.name)), escape(each.status))
    return Group(table, f"{len(answer.meters)} meters are in {escape(str(path))}")
