"""Rule 4 of metering as a scalar model: what an interval is priced by, and its ladders.

Written from services/metering/README.md alone: one instant, one line after the other, Python
integers and dicts. It reads the plan document and nothing else of the product's tariffs; the rate
of an instant is looked up on the wall clock, minute by minute.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import cached_property, lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from services.common.kernel.units import fits_int64
from services.common.tariffs import plan as plans
from services.common.tariffs.plan import Plan, Step

RATES = ("sharp", "peak", "flat", "valley", "deep_valley")
TOTAL = -1
NO_RATE = 255
BY_TIME, BY_REGISTERS, PERIOD_CLOSED = 1, 2, 4
MINUTE_MS = 60_000
DAY_MS = 86_400_000

Line = dict[str, int]
RATES_APART_MILLI = 50
REGISTER_MAX_MILLI = 10**15
End = tuple[int, int, tuple[int, ...]]
"""(time, register, registers of rates): an end of an interval."""
Where = tuple[int, int, int]
"""(version, rate, period)."""
Key = tuple[int, int, int, int]
"""(owner, period, version, rate or TOTAL)."""


def half_up(numerator: int, denominator: int) -> int:
    """Return numerator / denominator, rounded to the next integer, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)


@dataclass(slots=True)
class Accumulation:
    """Energy of one owner in one period under one version."""

    base: int
    total: int
    days: int
    days_of: int


@dataclass(eq=False)
class Terms:
    """One version: its plan, read off the clock."""

    plan: Plan

    @cached_property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.plan.zone)

    @property
    def is_plain(self) -> bool:
        """Rule 5: a unit costs its rate's price, and nothing else."""
        if self.plan.seasons or self.plan.ladder:
            return False
        return not (self.surcharge or self.tax(self.rate(0)))

    # What a unit costs

    def price(self, rate: int) -> int:
        return self.plan.rates_micro[RATES[rate]]  # type: ignore[index]

    @property
    def surcharge(self) -> int:
        return sum(part.price_micro for part in self.plan.surcharges)

    def tax(self, rate: int) -> int:
        total = 0
        for tax in self.plan.taxes:
            if "energy" in tax.base:
                total += half_up(self.price(rate) * tax.ppm, 10**6)
            if "surcharges" in tax.base:
                for part in self.plan.surcharges:
                    total += half_up(part.price_micro * tax.ppm, 10**6)
        return total

    def adder_tax(self, add_micro: int) -> int:
        on_energy = [tax.ppm for tax in self.plan.taxes if "energy" in tax.base]
        return sum(half_up(add_micro * ppm, 10**6) for ppm in on_energy)

    # What holds at an instant

    def wall(self, at_ms: int) -> datetime:
        return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(self.zone)

    def rate(self, at_ms: int) -> int:
        if not self.plan.seasons:
            return RATES.index(next(iter(self.plan.rates_micro)))
        wall = self.wall(at_ms)
        day, time = f"{wall:%m-%d}", f"{wall:%H:%M}"
        begun = [s for s in self.plan.seasons if s.begins <= day]
        season = begun[-1] if begun else self.plan.seasons[-1]
        kind = "weekday" if wall.weekday() < 5 else "weekend"
        if wall.date() in self.plan.workdays:
            kind = "weekday"
        if wall.date() in self.plan.holidays:
            kind = "holiday"
        (table,) = (table for table in season.days if kind in table.kinds)
        return RATES.index([s.rate for s in table.slots if s.begins <= time][-1])

    def period(self, at_ms: int) -> int:
        if self.plan.ladder is None:
            return 0
        wall = self.wall(at_ms)
        month = 12 * wall.year + wall.month - 1
        return month if self.plan.ladder.period == "month" else wall.year

    def days(self, period: int, since_ms: int) -> tuple[int, int]:
        """Return (days, days_of) of a period for what began at `since_ms`."""
        assert self.plan.ladder is not None
        if self.plan.ladder.period == "month":
            begins = date(period // 12, period % 12 + 1, 1)
            ends = (begins + timedelta(days=31)).replace(day=1)
        else:
            begins, ends = date(period, 1, 1), date(period + 1, 1, 1)
        counted = [begins + timedelta(days=n) for n in range((ends - begins).days)]
        since = self.wall(since_ms).date()
        return sum(day >= since for day in counted), len(counted)

    # Ladders

    def steps(self, rate: int) -> tuple[int, tuple[Step, ...]] | None:
        """Return (rate or TOTAL, steps) of the accumulation that a rate's energy counts in."""
        ladder = self.plan.ladder
        if ladder is None:
            return None
        if ladder.steps:
            return TOTAL, ladder.steps
        steps = ladder.rate_steps.get(RATES[rate])  # type: ignore[call-overload]
        return (rate, steps) if steps else None

    def ladder_at(self, rate: int, x: int, share: Accumulation) -> tuple[int, int]:
        """Return (L(x), its tax) of the ladder that a rate (or TOTAL) counts in."""
        found = self.steps(rate if rate != TOTAL else 0)
        steps = found[1] if found and found[0] == rate else ()
        total = tax_total = before = tax_before = 0
        for step in steps:
            add = step.add_micro or 0
            tax = self.adder_tax(add)
            passed = max(0, x - step.above_milli * share.days // share.days_of)
            total += (add - before) * passed
            tax_total += (tax - tax_before) * passed
            before, tax_before = add, tax
        return total, tax_total


@lru_cache(maxsize=512)
def terms_of(text: str) -> Terms:
    return Terms(plans.read(text))


@lru_cache(maxsize=512)
def flat_terms(price_micro: int) -> Terms:
    return Terms(plans.flat(price_micro))


@lru_cache(maxsize=100_000)
def edges_of_day(terms: Terms, begins_ms: int) -> tuple[int, ...]:
    """Return the instants of 24 hours at which rate or period changes, minute by minute."""
    found = []
    before = (terms.rate(begins_ms - 1), terms.period(begins_ms - 1))
    for at_ms in range(begins_ms, begins_ms + DAY_MS, MINUTE_MS):
        now = (terms.rate(at_ms), terms.period(at_ms))
        if now != before:
            found.append(at_ms)
        before = now
    return tuple(found)


@dataclass
class Tariff:
    """All versions of a tariff."""

    facts: dict[int, dict[str, Any]] = field(default_factory=dict)

    def terms(self, version: int) -> Terms:
        fact = self.facts[version]
        return flat_terms(fact["price_micro"]) if fact["plan"] is None else terms_of(fact["plan"])

    def version_at(self, at_ms: int) -> int:
        begun = [v for v, fact in self.facts.items() if fact["effective_at_ms"] <= at_ms]
        return max(begun) if begun else min(self.facts)

    def where(self, at_ms: int) -> Where:
        version = self.version_at(at_ms)
        terms = self.terms(version)
        return version, terms.rate(at_ms), terms.period(at_ms)

    def edges(self, begins_ms: int, ends_ms: int) -> list[int]:
        """Return the edges strictly inside an interval."""
        found = {fact["effective_at_ms"] for fact in self.facts.values()}
        for version in self.facts:
            terms = self.terms(version)
            if terms.plan.seasons or terms.plan.ladder:
                for day in range(begins_ms // DAY_MS, ends_ms // DAY_MS + 1):
                    found.update(edges_of_day(terms, day * DAY_MS))
        inside = sorted(at for at in found if begins_ms < at < ends_ms)
        return [at for at in inside if self.where(at) != self.where(at - 1)]

    def shape(self, begin: End, end: End, ratio: int) -> tuple[dict[Where, int], int]:
        """Return the energy of each line of an interval, in their order, and their basis."""
        told = self.told(begin, end, ratio)
        if told is not None:
            return told, BY_REGISTERS
        lines = self.split(begin[0], end[0], (end[1] - begin[1]) * ratio)
        return lines, BY_TIME if self.edges(begin[0], end[0]) else 0

    def told(self, begin: End, end: End, ratio: int) -> dict[Where, int] | None:
        """Return the lines that the registers of rates tell; None where they do not."""
        there = [rate for rate, register in enumerate(begin[2]) if register >= 0]
        if not there or there != [rate for rate, register in enumerate(end[2]) if register >= 0]:
            return None
        for _, whole, registers in (begin, end):
            apart = whole - sum(registers[rate] for rate in there)
            if max(registers) > REGISTER_MAX_MILLI or abs(apart) > RATES_APART_MILLI:
                return None
        rises = {rate: end[2][rate] - begin[2][rate] for rate in there}
        if min(rises.values()) < 0 or not fits_int64(sum(rises.values()) * ratio):
            return None
        version, rate_at_first, period = self.where(begin[0])
        at_last = self.where(max(begin[0], end[0] - 1))
        if (version, period) != (at_last[0], at_last[2]):
            return None
        plan = self.terms(version).plan
        if not plan.seasons:
            return None
        *others, rest = sorted(RATES.index(name) for name in plan.rates_micro)
        energies = {rate: rises.get(rate, 0) * ratio for rate in others}
        energies[rest] = (end[1] - begin[1]) * ratio - sum(energies.values())
        lines = {(version, rate, period): energy for rate, energy in energies.items() if energy}
        return lines or {(version, rate_at_first, period): 0}

    def split(self, begins_ms: int, ends_ms: int, energy: int) -> dict[Where, int]:
        """Return the energy of each line of an interval, in their order."""
        edges = self.edges(begins_ms, ends_ms)
        lines: dict[Where, int] = {}
        used = 0
        for at_ms, until_ms in zip([begins_ms, *edges], [*edges, ends_ms], strict=True):
            until = energy
            if until_ms != ends_ms:
                until = energy * (until_ms - begins_ms) // (ends_ms - begins_ms)
            where = self.where(at_ms)
            lines[where] = lines.get(where, 0) + until - used
            used = until
        return lines


@dataclass
class Pricing:
    """Prices lines against the accumulations of one account, changing them."""

    tariff: Tariff
    accumulations: dict[Key, Accumulation]
    meter_key: int
    account_since: int
    meter_since: int

    def lines(self, parts: dict[Where, int], basis: int) -> list[Line]:
        return [
            line for where, energy in parts.items() for line in self._price(*where, energy, basis)
        ]

    def _price(
        self, version: int, rate: int, period: int, energy: int, basis: int
    ) -> Iterator[Line]:
        terms = self.tariff.terms(version)
        counted = terms.steps(rate)
        ladder = tax = total = 0
        key: Key | None = None
        if counted is not None:
            assert terms.plan.ladder is not None
            owner = self.meter_key if terms.plan.ladder.scope == "meter" else 0
            newest = max((k[1] for k in self.accumulations if k[0] == owner), default=period)
            if period < newest - 1:
                period, basis = newest - 1, basis | PERIOD_CLOSED
            key = (owner, period, version, counted[0])
            accumulation = self._accumulation(key, terms)
            ladder, tax = self._difference(terms, key, accumulation, 0, energy)
            total = accumulation.base + accumulation.total
        yield {
            "version": version,
            "rate": rate,
            "basis": basis,
            "period": period,
            "energy_milli": energy,
            "total_milli": total,
            "rate_nano": energy * terms.price(rate),
            "surcharge_nano": energy * terms.surcharge,
            "ladder_nano": ladder,
            "tax_nano": energy * terms.tax(rate) + tax,
            **share_of(self.accumulations.get(key) if key else None),
        }
        if key is not None:
            yield from self._followers(key, energy, basis)

    def _accumulation(self, key: Key, terms: Terms) -> Accumulation:
        owner, period, version, rate = key
        if key not in self.accumulations:
            assert terms.plan.ladder is not None
            by_meter = terms.plan.ladder.scope == "meter"
            since = self.meter_since if by_meter else self.account_since
            base = sum(
                each.total
                for other, each in self.accumulations.items()
                if (other[0], other[1], other[3]) == (owner, period, rate) and other[2] < version
            )
            newest = max((k[1] for k in self.accumulations if k[0] == owner), default=period)
            self.accumulations[key] = Accumulation(base, 0, *terms.days(period, since))
            if period >= newest:
                for other in [k for k in self.accumulations if k[0] == owner and k[1] < period - 1]:
                    del self.accumulations[other]
        return self.accumulations[key]

    def _difference(
        self, terms: Terms, key: Key, each: Accumulation, base: int, energy: int
    ) -> tuple[int, int]:
        """Raise base or total; return what L(base + total) - L(base) and its tax rise by."""
        before = self._standing(terms, key, each)
        each.base += base
        each.total += energy
        after = self._standing(terms, key, each)
        return after[0] - before[0], after[1] - before[1]

    def _standing(self, terms: Terms, key: Key, each: Accumulation) -> tuple[int, int]:
        upper = terms.ladder_at(key[3], each.base + each.total, each)
        lower = terms.ladder_at(key[3], each.base, each)
        return upper[0] - lower[0], upper[1] - lower[1]

    def _followers(self, key: Key, energy: int, basis: int) -> Iterator[Line]:
        owner, period, version, rate = key
        for other in sorted(self.accumulations):
            if (other[0], other[1], other[3]) != (owner, period, rate) or other[2] <= version:
                continue
            each = self.accumulations[other]
            ladder, tax = self._difference(self.tariff.terms(other[2]), other, each, energy, 0)
            if ladder or tax:
                yield {
                    "version": other[2],
                    "rate": NO_RATE,
                    "basis": basis,
                    "period": period,
                    "energy_milli": 0,
                    "total_milli": each.base + each.total,
                    "rate_nano": 0,
                    "surcharge_nano": 0,
                    "ladder_nano": ladder,
                    "tax_nano": tax,
                    **share_of(each),
                }


def share_of(each: Accumulation | None) -> dict[str, int]:
    """Return what a line tells of its accumulation beside its total."""
    if each is None:
        return {"base_milli": 0, "days": 0, "days_of": 0}
    return {"base_milli": each.base, "days": each.days, "days_of": each.days_of}


def amount_of(line: Line) -> int:
    """Return all that a line comes to."""
    return line["rate_nano"] + line["surcharge_nano"] + line["ladder_nano"] + line["tax_nano"]
