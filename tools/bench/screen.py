"""How a bench looks: a line while it works, a table when it is done."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.bench.figures import BARS, Figure

PIPE_WIDTH = 100
SAY_AGAIN_S = 5.0
"""In a pipe, progress is told this often at most."""


def console() -> Console:
    """Return the terminal; in a pipe a width at which the tables are readable."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = PIPE_WIDTH
    return found


class Screen:
    """The terminal. In a pipe there is nothing live: a line now and then."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
        self._said_s = -SAY_AGAIN_S
        self._status = console.status("")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Show what is being done, while the context lasts."""
        if self._console.is_terminal:
            with self._status:
                yield
        else:
            yield

    def say(self, text: str) -> None:
        """Say what is being done now."""
        if self._console.is_terminal:
            self._status.update(Text(text))
            return
        since_s = time.monotonic() - self._began_s
        if since_s - self._said_s >= SAY_AGAIN_S:
            self._said_s = since_s
            self._console.print(f"{since_s:6.1f} s  {text}", markup=False)

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line that stays."""
        self._console.print(Text(text, style))

    def table(self, bench: str, about: str, figures: Iterable[Figure]) -> None:
        """Show the figures of a bench, and which bars they missed."""
        table = Table(title=f"[bold]{bench}[/] [dim]{about}[/]", title_justify="left", box=None)
        table.add_column(bench, overflow="fold")
        for name in ("value", "samples", "spread"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("bar", no_wrap=True)
        for figure in figures:
            table.add_row(
                figure.name.removeprefix(f"{bench}."),
                f"{shown(figure.value)} {figure.unit}",
                f"{figure.samples:,}",
                f"{shown(figure.low)} … {shown(figure.high)}",
                verdict(figure),
            )
        self._console.print(table)


def shown(value: float) -> str:
    """Return a figure with the digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def verdict(figure: Figure) -> Text:
    """Return the figure's bar and whether it holds; nothing where there is none."""
    bar = BARS.get(figure.name)
    if bar is None:
        return Text("")
    return Text(f"{bar} ✓", "green") if bar.holds(figure.value) else Text(f"{bar} ✗", "bold red")
