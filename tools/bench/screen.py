"""How a bench looks: a line while it works, a table when it is done."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.bench.figures import BARS, Figure


class Screen:
    """The terminal. In a pipe there is nothing live: a line for each step."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began_s = time.monotonic()
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
        since_s = time.monotonic() - self._began_s
        if self._console.is_terminal:
            self._status.update(Text(text))
        else:
            self._console.print(f"{since_s:6.1f} s  {text}", highlight=False, markup=False)

    def note(self, text: str, style: str = "dim") -> None:
        """Print a line that stays."""
        self._console.print(Text(text, style))

    def table(self, title: str, figures: Iterable[Figure]) -> None:
        """Show figures, and which bars they missed."""
        table = Table(title=title, title_justify="left", header_style="bold", box=None)
        table.add_column("figure", no_wrap=True)
        for name in ("value", "unit", "samples", "from", "to", "bar"):
            table.add_column(name, justify="left" if name in ("unit", "bar") else "right")
        for figure in figures:
            table.add_row(
                figure.name,
                shown(figure.value),
                figure.unit,
                f"{figure.samples:,}",
                shown(figure.low),
                shown(figure.high),
                verdict(figure),
            )
        self._console.print(table)


def shown(value: float) -> str:
    """Return a figure with three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def verdict(figure: Figure) -> Text:
    """Return the figure's bar and whether it holds; nothing where there is none."""
    bar = BARS.get(figure.name)
    if bar is None:
        return Text("")
    if bar.holds(figure.value):
        return Text(f"{bar} ✓", "green")
    return Text(f"{bar} ✗ missed", "bold red")
