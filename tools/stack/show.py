"""What a person sees while the stack starts: Kafka being fetched once, then the parts."""

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table

from tools.stack import jars
from tools.stack.process import PartStatus, State

COLOURS = {
    State.READY: "green",
    State.FAILED: "red",
    State.RESTARTING: "yellow",
    State.STARTING: "yellow",
}


def fetch_with_progress(console: Console) -> None:
    """Fetch Kafka in the foreground, where a person sees it; nothing where it is there."""
    if jars.installed_jars(jars.cache_directory()) is not None:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("fetching Apache Kafka", total=None)

        def show(status: jars.FetchStatus) -> None:
            bar.update(
                task,
                description=str(status),
                total=status.total_bytes,
                completed=status.fetched_bytes,
            )

        jars.fetch(show)


def parts_table(parts: Iterable[PartStatus]) -> Table:
    """Return the parts with their states and addresses."""
    table = Table("part", "state", "pid", "address", box=None, pad_edge=False)
    for part in parts:
        colour = COLOURS.get(part.state, "dim")
        exits = f"\n[red]exits nobody asked for: {part.exits}[/]" if part.exits else ""
        table.add_row(
            part.name,
            f"[{colour}]{part.state}[/]",
            str(part.pid or ""),
            part.address + exits,
        )
    return table
