"""Tariffs as the shard knows them: which version, rate and period holds at every instant.

All timelines lie behind each other in one array of segments, sorted by (tariff, instant), so that
the segments of all intervals of a frame are found in one search. What a calendar says is worked out
a span of some weeks at a time, when it is first asked for.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from services.common.kernel.frames import RATES
from services.common.kernel.values import value_class
from services.common.tariffs import plan as plans
from services.common.tariffs.calendar import (
    DAY_MS,
    NO_PERIOD,
    day_number,
    days_left,
    is_constant,
    period_days,
    segments,
)
from services.common.tariffs.plan import STEPS_MAX, Plan, rate_index
from services.common.tariffs.pricing import TOTAL, Terms, terms_of
from services.metering.domain.facts import Array
from services.metering.domain.rows import Fact

TIME_MS_END = 2**42
"""No instant of an interval lies behind it: the year 2109."""
_TIME_BITS = 42
_SPAN_MS = 2**32
"""Fifty days."""

NO_REST = -1

TERMS = np.dtype(
    [
        ("version", "<i8"),
        ("plain", "?"),  # a rate's price is all it asks, at every instant
        ("by_meter", "?"),
        ("has_rate", "?", (RATES,)),
        ("rest", "<i8"),  # rate of what registers of rates leave over; NO_REST: they do not count
        ("surcharge_micro", "<i8"),
        ("rate_micro", "<i8", (RATES,)),
        ("tax_micro", "<i8", (RATES,)),
        # By rate number; the last one is the ladder on all rates together.
        ("laddered", "?", (RATES + 1,)),
        ("above_milli", "<i8", (RATES + 1, STEPS_MAX)),
        ("rise_micro", "<i8", (RATES + 1, STEPS_MAX)),
        ("rise_tax_micro", "<i8", (RATES + 1, STEPS_MAX)),
    ]
)
_SEGMENT = np.dtype(
    [("begins_ms", "<i8"), ("row", "<i8"), ("rate", "<i8"), ("period", "<i8"), ("group", "<i8")]
)
"""row: of its version in the table of terms. group: equal where all but `begins_ms` is equal."""

_Part = tuple[int, int, int, int]
"""(begins_ms, row, rate, period)"""


@value_class
class Version:
    """One version of a tariff; `row`: its place in the table of terms."""

    number: int
    effective_at_ms: int
    row: int
    plan: Plan
    terms: Terms


@value_class
class Reign:
    """A version from the instant at which it begins to hold until the next one does."""

    begins_ms: int
    ends_ms: int
    version: Version


class Tariffs:
    """Versions of tariffs, by slot. Slot 0 is no tariff: price 0, version 0.

    `table`: dtype TERMS, a row a version. `segments`: dtype _SEGMENT. `have_fees`: any of them may.
    """

    def __init__(self) -> None:
        self._slots = {"": 0}
        self._versions: list[dict[int, Version]] = [{}]
        self._spans: list[set[int]] = [set()]
        self._timelines: list[list[_Part] | None] = [None]
        self._plans: list[Plan] = [plans.flat(0)]
        self._fee_reigns: dict[int, list[Reign]] = {}
        self.have_fees = False
        self._is_stale = True
        self.table = np.zeros(1, TERMS)
        self.table["plain"] = True

    def slot(self, tariff_id: str) -> int:
        """Return the slot of a tariff, known or yet to come."""
        slot = self._slots.setdefault(tariff_id, len(self._versions))
        if slot == len(self._versions):
            self._versions.append({})
            self._spans.append(set())
            self._timelines.append(None)
            self._is_stale = True
        return slot

    def put(self, fact: Fact) -> int:
        """Keep a version; return the tariff's slot."""
        slot, number = self.slot(fact["tariff_id"]), fact["version"]
        text = fact["plan"]
        plan = plans.flat(fact["price_micro"]) if text is None else plans.read(text)
        terms = terms_of(plan)
        self.have_fees |= bool(terms.fees)
        versions = self._versions[slot]
        row = versions[number].row if number in versions else len(self.table)
        versions[number] = Version(number, fact["effective_at_ms"], row, plan, terms)
        if row == len(self.table):
            self.table = np.append(self.table, np.zeros(1, TERMS))
            self._plans.append(plan)
        self._plans[row] = plan
        self.table[row] = _numbers(number, plan, terms)
        self._timelines[slot] = None
        self._fee_reigns.pop(slot, None)
        self._is_stale = True
        return slot

    def version(self, slot: int, number: int) -> Version:
        """Return a version of the tariff at `slot`."""
        return self._versions[slot][number]

    def days_left(self, rows: Array, periods: Array, since_ms: Array) -> tuple[Array, Array]:
        """Return (days, days of the period) as calendar.days_left of each.

        `rows`: of ladders' versions in the table of terms.
        """
        days, days_of = np.zeros((2, len(rows)), np.int64)
        for row, period in set(zip(rows.tolist(), periods.tolist(), strict=True)):
            which = np.flatnonzero((rows == row) & (periods == period))
            begins, ends = period_days(self._plans[row], period)
            days[which] = days_of[which] = (ends - begins).days
            # No clock is more than a day away from UTC's.
            late = which[since_ms[which] >= (day_number(begins) - 1) * DAY_MS]
            days[late] = [
                days_left(self._plans[row], period, each)[0] for each in since_ms[late].tolist()
            ]
        return days, days_of

    def fee_reigns(self, slot: int) -> list[Reign]:
        """Return the reigns of a tariff's versions with fees, in the order of time."""
        found = self._fee_reigns.get(slot)
        if found is None:
            found = [reign for reign in self._reigns(slot) if reign.version.terms.fees]
            self._fee_reigns[slot] = found
        return found

    def _reigns(self, slot: int) -> Iterator[Reign]:
        versions = self._versions[slot]
        effective = {version.effective_at_ms for version in versions.values()}
        instants = sorted({0, *(at for at in effective if at < TIME_MS_END)})
        for begins_ms, ends_ms in pairwise([*instants, TIME_MS_END] if versions else []):
            begun = [n for n, v in versions.items() if v.effective_at_ms <= begins_ms]
            yield Reign(begins_ms, ends_ms, versions[max(begun) if begun else min(versions)])

    def priced(self, slots: Array) -> Array:
        """Say which tariffs have a version."""
        self._refresh()
        return self._is_priced[slots]

    def highest_micro(self, slots: Array) -> Array:
        """Return the most a unit costs under any version; the least is not below its negative."""
        self._refresh()
        return self._highest_micro[slots]

    def of(self, slots: Array, begins_ms: Array, ends_ms: Array) -> tuple[Array, Array]:
        """Return (first, last) segments of intervals: that of the begin, that of the last instant.

        An interval without duration lies in the segment of its instant.
        """
        self._refresh()
        self._cover(slots, begins_ms, ends_ms)
        bases = slots << _TIME_BITS
        first = self._keys.searchsorted(bases + begins_ms, "right") - 1
        last = self._keys.searchsorted(bases + ends_ms, "left") - 1
        return first, np.maximum(first, last)

    def _cover(self, slots: Array, begins_ms: Array, ends_ms: Array) -> None:
        """Work out the spans in which intervals lie, where no calendar was asked for them yet."""
        outside = begins_ms < self._from_ms[slots]
        outside |= np.maximum(ends_ms, begins_ms + 1) > self._to_ms[slots]
        for i in np.flatnonzero(outside).tolist():
            begins = int(begins_ms[i])
            last = max(begins, int(ends_ms[i]) - 1)
            self._need(int(slots[i]), range(begins // _SPAN_MS, last // _SPAN_MS + 1))
        self._refresh()

    def _need(self, slot: int, spans: Iterable[int]) -> None:
        if not self._spans[slot].issuperset(spans):
            self._spans[slot].update(spans)
            self._timelines[slot] = None
            self._is_stale = True

    def _refresh(self) -> None:
        if self._is_stale:
            self._build()
            self._is_stale = False

    def _build(self) -> None:
        for slot, timeline in enumerate(self._timelines):
            if timeline is None:
                self._timelines[slot] = list(self._timeline(slot))
        parts: list[list[Any]] = [timeline or [] for timeline in self._timelines]
        self.segments = np.zeros(sum(map(len, parts)) + 1, _SEGMENT)
        for name, column in zip(
            ("begins_ms", "row", "rate", "period"),
            zip(*(part for timeline in parts for part in timeline), strict=True),
            strict=True,
        ):
            self.segments[name][:-1] = column
        self.segments["begins_ms"][-1] = TIME_MS_END  # the edge behind the last one
        _, groups = np.unique(self.segments[["row", "rate", "period"]], return_inverse=True)
        self.segments["group"] = groups
        slots = np.repeat(np.arange(len(parts)), [len(timeline) for timeline in parts])
        self._keys = (slots << _TIME_BITS) + self.segments["begins_ms"][:-1]
        blocks = [self._block(slot) for slot in range(len(parts))]
        self._from_ms, self._to_ms = np.array(blocks, np.int64).T
        self._is_priced = np.array([bool(versions) for versions in self._versions])
        self._highest_micro = np.array(
            [
                max((v.terms.highest_micro for v in versions.values()), default=0)
                for versions in self._versions
            ],
            np.int64,
        )

    def _block(self, slot: int) -> tuple[int, int]:
        """Return the newest time that is worked out without a gap; all time without a calendar."""
        if all(is_constant(version.plan) for version in self._versions[slot].values()):
            return 0, TIME_MS_END
        blocks = list(_blocks(self._spans[slot]))
        return blocks[-1] if blocks else (0, 0)

    def _timeline(self, slot: int) -> Iterator[_Part]:
        before: tuple[int, _Part] | None = None
        for part, ends_ms in self._parts(slot):
            # Spans that were never asked for may lie in between: then it is no neighbour.
            if before is None or before[0] != part[0] or before[1][1:] != part[1:]:
                yield part
            before = ends_ms, part

    def _parts(self, slot: int) -> Iterator[tuple[_Part, int]]:
        """Yield (part, end) of a tariff in the order of time."""
        if not self._versions[slot]:
            yield (0, 0, 0, NO_PERIOD), TIME_MS_END
            return
        for reign in self._reigns(slot):
            version = reign.version
            blocks = [(0, TIME_MS_END)]
            if not is_constant(version.plan):
                blocks = list(_blocks(self._spans[slot]))
            for from_ms, to_ms in blocks:
                low, high = max(reign.begins_ms, from_ms), min(reign.ends_ms, to_ms)
                if low < high:
                    found = segments(version.plan, low, high)
                    ends = [*(segment.begins_ms for segment in found[1:]), high]
                    for segment, end_ms in zip(found, ends, strict=True):
                        part = (segment.begins_ms, version.row, segment.rate, segment.period)
                        yield part, end_ms


def _numbers(number: int, plan: Plan, terms: Terms) -> Any:
    row = np.zeros((), TERMS)
    row["version"] = number
    row["plain"] = is_constant(plan) and terms.is_bare
    row["by_meter"] = terms.by_meter
    rates = [rate_index(name) for name in plan.rates_micro]
    row["has_rate"][rates] = True
    row["rest"] = max(rates) if plan.seasons else NO_REST
    row["surcharge_micro"] = terms.surcharge_micro
    row["rate_micro"] = terms.rate_micro
    row["tax_micro"] = terms.tax_micro
    for rate, rises in terms.ladders.items():
        assert TOTAL == -1, "the last one"
        row["laddered"][rate] = True
        for step, rise in enumerate(rises):
            row["above_milli"][rate, step] = rise.above_milli
            row["rise_micro"][rate, step] = rise.price_micro
            row["rise_tax_micro"][rate, step] = rise.tax_micro
    return row


def _blocks(spans: set[int]) -> Iterator[tuple[int, int]]:
    """Yield (from, to) of spans without a gap between them."""
    for _, run in groupby(enumerate(sorted(spans)), lambda pair: pair[1] - pair[0]):
        block = [span for _, span in run]
        yield block[0] * _SPAN_MS, (block[-1] + 1) * _SPAN_MS
