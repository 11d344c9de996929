"""Rule 5's fees as a scalar model: what an account owes for days and months that began.

Written from services/metering/README.md alone: the wall clock is read minute by minute, each
instant by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from tests.property.metering_tariff_model import (
    DAY_MS,
    MINUTE_MS,
    NO_RATE,
    Line,
    Tariff,
    Terms,
    half_up,
)

FEE_RATE = NO_RATE // 2 + 1
FORWARD_MS = 70 * DAY_MS
"""Longer than any period: what begins no fee within it never does."""


@dataclass(frozen=True, slots=True)
class Due:
    """One fee at one instant: `days` of `days_of` of it; `period`: the day's or month's number."""

    at_ms: int
    version: int
    fee: int
    amount_micro: int
    tax_micro: int
    period: int
    days: int
    days_of: int


@lru_cache(maxsize=100_000)
def begins_of_day(zone: str, from_ms: int) -> tuple[tuple[int, date], ...]:
    """Return (instant, date) of 24 hours at which the wall clock shows a new date."""
    found = []
    before = wall(zone, from_ms - MINUTE_MS)
    for at_ms in range(from_ms, from_ms + DAY_MS, MINUTE_MS):
        day = wall(zone, at_ms)
        if day > before:
            found.append((at_ms, day))
        before = day
    return tuple(found)


def wall(zone: str, at_ms: int) -> date:
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(ZoneInfo(zone)).date()


def instants(tariff: Tariff, since: int, until: int, to: int) -> Iterator[Due]:
    """Yield every fee whose instant lies in (until, to], in the order of time."""
    if until < since <= to:
        version = tariff.version_at(since)
        terms = tariff.terms(version)
        yield from fees_at(terms, version, since, wall(terms.plan.zone, since), begins=True)
    start = max(since, until)
    zones = {tariff.terms(version).plan.zone for version in tariff.facts}
    for day in range(start // DAY_MS, to // DAY_MS + 1):
        begun = {(at, date_, z) for z in zones for at, date_ in begins_of_day(z, day * DAY_MS)}
        for at_ms, local, zone in sorted(begun):
            version = tariff.version_at(at_ms)
            terms = tariff.terms(version)
            if start < at_ms <= to and terms.plan.zone == zone:
                yield from fees_at(terms, version, at_ms, local, begins=False)


def fees_at(terms: Terms, version: int, at_ms: int, local: date, *, begins: bool) -> Iterator[Due]:
    for number, fee in enumerate(terms.plan.fees):
        taxes = [tax.ppm for tax in terms.plan.taxes if "fees" in tax.base]
        tax_micro = sum(half_up(fee.amount_micro * ppm, 10**6) for ppm in taxes)
        priced = (at_ms, version, number, fee.amount_micro, tax_micro)
        if fee.period == "day":
            yield Due(*priced, (local - date(1970, 1, 1)).days, 1, 1)
        elif begins or local.day == 1:
            first = local.replace(day=1)
            days_of = ((first + timedelta(days=31)).replace(day=1) - first).days
            left = days_of - local.day + 1
            yield Due(*priced, 12 * local.year + local.month - 1, left, days_of)


def next_due(tariff: Tariff, since: int, until: int) -> int | None:
    """Return the first instant behind `until` at which a fee falls due."""
    if not any(tariff.terms(version).plan.fees for version in tariff.facts):
        return None
    newest = max(fact["effective_at_ms"] for fact in tariff.facts.values())
    to = max(since, until, newest) + FORWARD_MS
    return next((due.at_ms for due in instants(tariff, since, until, to)), None)


def lines_of(dues: list[Due]) -> list[Line]:
    """Return a line for the whole periods of each fee of a version, and one for each share."""
    groups: dict[tuple[int, int, bool], list[Due]] = {}
    for due in dues:
        groups.setdefault((due.version, due.fee, due.days == due.days_of), []).append(due)
    lines = []
    for (version, fee, whole), found in groups.items():
        days, days_of = (len(found), 1) if whole else (found[0].days, found[0].days_of)
        lines.append(
            {
                "version": version,
                "rate": FEE_RATE + fee,
                "basis": 0,
                "period": found[0].period,
                "energy_milli": 0,
                "total_milli": 0,
                "rate_nano": found[0].amount_micro * 1000 * days // days_of,
                "surcharge_nano": 0,
                "ladder_nano": 0,
                "tax_nano": found[0].tax_micro * 1000 * days // days_of,
                "base_milli": 0,
                "days": days,
                "days_of": days_of,
            }
        )
    return lines
