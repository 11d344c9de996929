"""A policy for a person: what whoever approves it has to see, before it is published."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError
from rich.console import Group, RenderableType
from rich.table import Table

from services.common.kernel.units import Currency, format_nano, format_scaled
from services.common.policies.rules import Rules
from services.common.policies.rules import read as read_rules
from tools.cli.plans import document, refused
from tools.sitefile import Terms


def read(path: Path) -> Terms:
    """Return the terms of a YAML (or JSON) file. Raises Refused where it has none."""
    try:
        return Terms.model_validate_json(document(path))
    except ValidationError as wrong:
        first = wrong.errors()[0]
        place = ".".join(map(str, first["loc"])) or "document"
        raise refused(path, f"policy, {place}: {first['msg']}", "INVALID_ARGUMENT") from wrong


def show(terms: Terms, currency: Currency) -> RenderableType:
    """Show all that a policy says, in the order in which it comes to bear."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    amounts = [
        ("first warning at", terms.alarm_1_minor),
        ("second warning at", terms.alarm_2_minor),
        ("cut at", -terms.overdraft_minor),
        ("power again from", terms.restore_minor),
        ("emergency credit", terms.emergency_minor),
    ]
    if terms.ceiling_minor:
        amounts.append(("at hand at most", terms.ceiling_minor))
    for name, minor in amounts:
        table.add_row(name, f"{format_scaled(minor, currency.minor_decimals)} {currency.code}")
    if terms.fee_ppm or terms.fee_minor:
        table.add_row("service fee", fee(terms.fee_ppm or 0, terms.fee_minor or 0, currency))
    if terms.rounding:
        table.add_row("a closing is rounded", terms.rounding)
    for name, text in said(terms.rules or read_rules(None), currency):
        table.add_row(name, text)
    return Group(table)


def fee(fee_ppm: int, fee_minor: int, currency: Currency) -> str:
    """Return a service fee for a person."""
    fixed = f"{format_scaled(fee_minor, currency.minor_decimals)} {currency.code}"
    return f"{format_scaled(fee_ppm, 4)} % of a sale, and {fixed}"


def said(rules: Rules, currency: Currency) -> Iterator[tuple[str, str]]:
    """Yield what rules say, a line each."""
    yield "warnings cleared", f"{format_nano(rules.hysteresis_nano, currency)} above them"
    yield "readings that cut", f"of quality {', '.join(rules.qualities)}"
    if rules.notice is not None:
        required = ", and only once it is delivered" if rules.notice.required else ""
        yield "notice", f"{rules.notice.lead_minutes} min before a cut{required}"
    yield "grace", f"{rules.grace_minutes} min after nothing was left"
    for window in rules.no_cut:
        until = "next day's " if window.ends <= window.begins else ""
        yield "no cut", f"{', '.join(window.days)} {window.begins} to {until}{window.ends}"
    for name, days in (("holidays", rules.holidays), ("workdays", rules.workdays)):
        if days:
            yield name, ", ".join(map(str, days))
    if rules.zone is not None:
        yield "wall clock of", rules.zone
    if rules.unusual_factor is not None:
        usual = f"{rules.unusual_factor} times what it usually takes at that hour"
        yield "unusual", f"a meter that takes more than {usual} is told"
    if rules.idle_days is not None:
        yield (
            "idle",
            f"a meter that counts nothing for {rules.idle_days} days, relay closed, is told",
        )
