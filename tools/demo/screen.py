"""How the story looks. Lines with a clock; a live line while something runs down; tables."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from services.common.kernel.units import CURRENCIES, format_nano, format_scaled
from tools.cli import explained, show
from tools.demo.judge import MeterVerdict
from tools.demo.observe import Spread
from wattvend.reporting.v1 import reporting_pb2 as r

CNY = CURRENCIES["CNY"]
BAR_WIDTH = 30


def money(nano: int) -> str:
    """Return an amount as a person reads it, two decimals."""
    return format_nano(nano, CNY, decimals=2)


def _hanging() -> Table:
    """Return lines of two parts; what is long goes on below the second."""
    lines = Table.grid()
    lines.add_column(no_wrap=True)
    lines.add_column(overflow="fold")
    return lines


class Screen:
    """The terminal. `console` may be a file or a pipe: then there is nothing live, only lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._began = time.monotonic()

    def title(self) -> None:
        """Say what is about to be seen."""
        self.console.print(
            Panel(
                "A meter runs out, is cut off, is topped up, and has power again.\n"
                "[dim]Real Kafka, PostgreSQL and MQTT; five services; virtual meters on real "
                "protocols. Time is never accelerated.[/]",
                title="[bold]Wattvend[/]",
                border_style="cyan",
            )
        )

    def chapter(self, text: str) -> None:
        """Begin a part of the story."""
        self.console.print()
        self.console.print(f"[bold cyan]{escape(text)}[/]")

    def say(self, text: str, style: str = "") -> None:
        """One line, with the seconds since the start."""
        since = time.monotonic() - self._began
        line = _hanging()
        line.add_row(Text(f"{since:6.1f} s  ", "dim"), Text(text, style))
        self.console.print(line)

    @contextmanager
    def live(self) -> Iterator["LiveLine"]:
        """Show a line that changes in place; silent where the output is no terminal."""
        if not self.console.is_terminal:
            yield LiveLine(None)
            return
        with Live(Text(""), console=self.console, transient=True, refresh_per_second=8) as live:
            yield LiveLine(live)

    def explanation(self, chain: r.CutoffExplanation) -> None:
        """Show the chain of a cut-off, as the command line shows it."""
        self.console.print(explained.cutoff(chain))

    def verdicts(self, rows: Sequence[MeterVerdict]) -> None:
        """Show the judgement of every meter: amounts in CNY, kWh from the fleet's own registers."""
        table = Table(
            title="Judged from outside, meter by meter (CNY)", header_style="bold", box=None
        )
        names = ("true kWh", "cost", "charged", "receipts", "credited", "balance", "relay")
        table.add_column("account", no_wrap=True)
        for name in names:
            table.add_column(name, justify="left" if name == "relay" else "right", no_wrap=True)
        for row in rows:
            energy_milli = row.true_steps * row.meter.lsb_milli * row.meter.ratio
            table.add_row(
                row.meter.account_id,
                format_scaled(energy_milli, 3, 2),
                format_scaled(row.true_cost_nano, 9, 4),
                format_scaled(row.charged_nano, 9, 4),
                format_scaled(row.receipts_nano, 9, 2),
                format_scaled(row.credited_nano, 9, 2),
                format_scaled(row.available_nano, 9, 4),
                row.relay_true,
                style="bold red" if row.faults else "",
            )
        self.console.print(table)
        for row in rows:
            if row.faults:
                self.console.print(
                    f"[bold red]{row.meter.account_id}[/] {', '.join(row.faults)}: {row}"
                )

    def spreads(self, rows: Sequence[tuple[str, Spread | None]]) -> None:
        """Show how long things took."""
        table = Table(title="How long it took", header_style="bold", box=None)
        for name in ("", "samples", "median", "worst"):
            table.add_column(name, justify="left" if not name else "right")
        for name, spread in rows:
            if spread is None:
                table.add_row(name, "0", "-", "-")
            else:
                table.add_row(
                    name, str(spread.samples), f"{spread.median_ms} ms", f"{spread.worst_ms} ms"
                )
        self.console.print(table)

    def checks(self, rows: Sequence[tuple[str, bool, str]]) -> None:
        """Show each check: name, whether it holds, what was found."""
        lines = _hanging()
        for name, holds, found in rows:
            mark = Text(" ✓ ", "green") if holds else Text(" ✗ ", "bold red")
            lines.add_row(mark, Text.assemble(f"{name}  ", (found, "dim")))
        self.console.print(lines)


class LiveLine:
    """A line that changes in place."""

    def __init__(self, live: Live | None) -> None:
        self._live = live

    def balance(self, account_id: str, balance: r.Balance, full_nano: int) -> None:
        """Show a balance running down."""
        if self._live is None:
            return
        style = show.LEVELS.get(balance.level, "")
        filled = max(0, min(BAR_WIDTH, balance.available_nano * BAR_WIDTH // max(full_nano, 1)))
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        self._live.update(
            Text.assemble(
                f"          {account_id}  ",
                (bar, style),
                f"  {money(balance.available_nano)}  ",
                (balance.level, style),
            )
        )
