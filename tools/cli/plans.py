"""A tariff's plan for a person: what whoever approves it has to see, before it is published."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import yaml
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from services.common.kernel.errors import InvalidInput
from services.common.kernel.frames import RATES
from services.common.kernel.profiles import RATE_NAMES
from services.common.kernel.units import format_scaled
from services.common.tariffs import plan as plans
from services.common.tariffs.plan import PPM, Ladder, Plan, Season, Step
from services.common.tariffs.pricing import Terms, foldings, terms_of
from tools import yamlfile
from tools.client import Refused

MILLI_DECIMALS = 3
PPM_DECIMALS = 6


def read(path: Path) -> Plan:
    """Return the plan of a YAML (or JSON) file. Raises Refused where it is none."""
    try:
        return plans.read(document(path))
    except InvalidInput as wrong:
        raise refused(path, wrong.message, wrong.reason) from wrong


def document(path: Path) -> str:
    """Return a YAML (or JSON) file as JSON. Raises Refused where it cannot be read."""
    try:
        # Dates of holidays may be written without quotes; YAML then makes dates of them.
        return orjson.dumps(yamlfile.read(path)).decode()
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as unreadable:
        message = f"{path} cannot be read: {unreadable}"
        raise Refused("INVALID_ARGUMENT", "INVALID_ARGUMENT", message) from unreadable


def refused(path: Path, message: str, reason: str) -> Refused:
    """Return what to raise where a document says something wrong."""
    quotes = "; put times and days in quotes" if "valid string" in message else ""
    return Refused("INVALID_ARGUMENT", reason, f"{path}: {message}{quotes}")


def show(plan: Plan, price_decimals: int) -> RenderableType:
    """Show all that a plan charges; prices in the currency, a billing unit."""
    terms = terms_of(plan)
    parts: list[RenderableType] = [f"zone [bold]{plan.zone}[/]"]
    parts.append(_prices(plan, terms, price_decimals))
    parts += [_season(season) for season in plan.seasons]
    for name, days in (("holidays", plan.holidays), ("workdays", plan.workdays)):
        if days:
            parts.append(f"{name}: {', '.join(map(str, days))}")
    for surcharge in plan.surcharges:
        parts.append(
            f"surcharge {surcharge.name}: {_price(surcharge.price_micro, price_decimals)} a unit"
        )
    for fee, price in zip(plan.fees, terms.fees, strict=True):
        amount = _price(price.amount_micro + price.tax_micro, price_decimals)
        all_in = ", all in" if price.tax_micro else ""
        parts.append(f"fee {fee.name}: {amount} a {fee.period}{all_in}")
    for tax in plan.taxes:
        share = format_scaled(tax.ppm, PPM_DECIMALS - 2).rstrip("0").rstrip(".")
        parts.append(f"tax {tax.name}: {share} % on {' and '.join(tax.base)}")
    rounded = [each for each in foldings(plan) if each.exact_ppm % PPM]
    if rounded:
        parts.append(_folded(rounded, price_decimals))
    return Group(*parts)


def _price(micro: int, decimals: int) -> str:
    return format_scaled(micro, decimals)


def _prices(plan: Plan, terms: Terms, decimals: int) -> Table:
    """Show what a unit costs in all, by rate and by step of the ladder."""
    title = "a unit, all in" if plan.taxes or plan.surcharges else "a unit"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title, title_justify="left")
    table.add_column("rate")
    table.add_column("price", justify="right")
    steps = list(_steps(plan.ladder))
    for above_milli in sorted({step.above_milli for _, step in steps}):
        period = plan.ladder.period if plan.ladder else ""
        above = f"above {format_scaled(above_milli, MILLI_DECIMALS)} a {period}"
        table.add_column(above, justify="right")
    for rate in range(RATES):
        name = RATE_NAMES[rate]
        if name in plan.rates_micro:
            first = terms.rate_micro[rate] + terms.surcharge_micro + terms.tax_micro[rate]
            table.add_row(name, *_by_step(plan, terms, rate, first, decimals))
    return table


def _by_step(plan: Plan, terms: Terms, rate: int, first: int, decimals: int) -> Iterator[str]:
    """Yield the all-in price of a rate below the first step, and above each step of the plan."""
    yield _price(first, decimals)
    rises = [rise for key, ladder in terms.ladders.items() if key in {-1, rate} for rise in ladder]
    for above_milli in sorted({step.above_milli for _, step in _steps(plan.ladder)}):
        here = [rise for rise in rises if rise.above_milli <= above_milli]
        if any(rise.above_milli == above_milli for rise in here):
            yield _price(first + sum(r.price_micro + r.tax_micro for r in here), decimals)
        else:
            yield ""


def _steps(ladder: Ladder | None) -> Iterator[tuple[str, Step]]:
    if ladder is not None:
        for name, steps in (("", ladder.steps), *ladder.rate_steps.items()):
            yield from ((name, step) for step in steps)


def _season(season: Season) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = f"season {season.name}, from {season.begins} on"
    table.add_column("days")
    table.add_column("rates")
    for day in season.days:
        slots = "  ".join(f"[dim]{slot.begins}[/] {slot.rate}" for slot in day.slots)
        table.add_row(", ".join(day.kinds), slots)
    return table


def _folded(rounded: list[Any], decimals: int) -> Table:
    """Show taxes a unit that have more decimals than prices: what is charged is rounded."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
    table.title = "taxes a unit that are rounded"
    for name in ("tax", "on"):
        table.add_column(name)
    for name in ("exact", "charged"):
        table.add_column(name, justify="right")
    for each in rounded:
        exact = format_scaled(each.exact_ppm, decimals + PPM_DECIMALS).rstrip("0")
        table.add_row(each.tax, each.on, exact, _price(each.folded_micro, decimals))
    return table
