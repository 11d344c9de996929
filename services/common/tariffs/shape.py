"""The shape of energy: how much of an interval belongs to which rate and period of a plan.

Meters count energy, not the hour in which it was used: an interval is split in proportion to time,
where the meter's registers of rates do not tell it (services/metering/README.md, rule 4).
"""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import NamedTuple

from services.common.kernel.units import fits_int64
from services.common.kernel.values import value_class
from services.common.tariffs.calendar import Segment, segments
from services.common.tariffs.plan import Plan, rate_index

RATES_APART_MILLI_MAX = 50
"""Five registers, each rounded to a hundredth of a unit, are that far from their whole at most."""
REGISTER_MILLI_MAX = 10**15


class End(NamedTuple):
    """An end of an interval: when, and what the registers showed; rates -1 where absent."""

    time_ms: int
    register_milli: int
    rates_milli: tuple[int, ...]

    @property
    def agrees(self) -> bool:
        """Whether its registers of rates are its register, but for what each of them rounds."""
        apart = abs(self.apart_milli) <= RATES_APART_MILLI_MAX
        return apart and max(self.rates_milli) <= REGISTER_MILLI_MAX

    @property
    def apart_milli(self) -> int:
        """By how much its register is more than its registers of rates together."""
        return self.register_milli - sum(max(milli, 0) for milli in self.rates_milli)


@value_class
class Share:
    """Energy of an interval in one rate (its number) and period; `part`: behind so many edges."""

    rate: int
    period: int
    energy_milli: int
    part: int = 0


class Timeline:
    """The segments of a plan in a span of time, worked out once for many intervals."""

    def __init__(self, plan: Plan, from_ms: int, to_ms: int, edges_ms: Sequence[int] = ()) -> None:
        """Work out [from_ms, to_ms]. What lies before or behind counts as its first or last.

        `edges_ms`: instants in it, ascending, at which intervals are split too, as where a version
        begins.
        """
        self._rates = sorted(map(rate_index, plan.rates_micro)) if plan.seasons else []
        self._segments = segments(plan, from_ms, to_ms + 1)
        begins_ms = [segment.begins_ms for segment in self._segments]
        for edge_ms in edges_ms:
            at = bisect_right(begins_ms, edge_ms)
            if at and begins_ms[at - 1] != edge_ms:
                before = self._segments[at - 1]
                self._segments.insert(at, Segment(edge_ms, before.rate, before.period))
                begins_ms.insert(at, edge_ms)
        self._begins_ms = begins_ms
        self._parts = [bisect_right(edges_ms, at_ms) for at_ms in begins_ms]

    def shares(self, begin: End, end: End, energy_milli: int, ratio: int) -> Iterator[Share]:
        """Yield the shares of an interval; two may be of one rate and period.

        By registers of rates where they tell it. Else by time: until an edge it has used
        ⌊energy × elapsed / duration⌋. A begin at 0 counts as the end's time.
        """
        first, last = self._span(begin, end)
        period, part = self._segments[first].period, self._parts[first]
        if self._are_one(first, last) and _tell(begin, end, self._rates, ratio):
            for share in self._told(begin, end, energy_milli, ratio, period):
                yield Share(share.rate, period, share.energy_milli, part)
            return
        begins_ms, ends_ms, used_milli = begin.time_ms or end.time_ms, end.time_ms, 0
        for at in range(first, last):
            segment, elapsed_ms = self._segments[at], self._begins_ms[at + 1] - begins_ms
            until_milli = energy_milli * elapsed_ms // (ends_ms - begins_ms)
            part = self._parts[at]
            yield Share(segment.rate, segment.period, until_milli - used_milli, part)
            used_milli = until_milli
        segment = self._segments[last]
        left_milli = energy_milli - used_milli
        yield Share(segment.rate, segment.period, left_milli, self._parts[last])

    def told_at(self, begin: End, end: End, ratio: int, at_ms: int) -> End | None:
        """Return where the registers of an interval stood at an instant inside it.

        None where they do not tell its rates, or it does not lie inside. Each register of a rate
        has risen in proportion to the time that the plan gives its rate until then.
        """
        first, last = self._span(begin, end)
        lies_inside = begin.time_ms < at_ms < end.time_ms and self._are_one(first, last)
        if not lies_inside or not _tell(begin, end, self._rates, ratio):
            return None
        lasts_ms, until_ms = Counter[int](), Counter[int]()
        for at in range(first, last + 1):
            begins_ms = begin.time_ms if at == first else self._begins_ms[at]
            ends_ms = end.time_ms if at == last else self._begins_ms[at + 1]
            rate = self._segments[at].rate
            lasts_ms[rate] += ends_ms - begins_ms
            until_ms[rate] += max(0, min(ends_ms, at_ms) - begins_ms)
        whole = Fraction(at_ms - begin.time_ms, end.time_ms - begin.time_ms)
        parts = {rate: Fraction(until_ms[rate], lasts_ms[rate]) for rate in lasts_ms}
        # By all of the time: a rate that rose without having any, and what else the register shows.
        pairs = enumerate(zip(begin.rates_milli, end.rates_milli, strict=True))
        rates_milli = tuple(_between(*pair, parts.get(rate, whole)) for rate, pair in pairs)
        register_milli = _between(begin.apart_milli, end.apart_milli, whole)
        register_milli += sum(max(milli, 0) for milli in rates_milli)
        return End(at_ms, register_milli, rates_milli)

    def _span(self, begin: End, end: End) -> tuple[int, int]:
        """Return the segments of its first and last instant; of its only one without a duration."""
        first = max(0, bisect_right(self._begins_ms, begin.time_ms or end.time_ms) - 1)
        return first, max(first, bisect_right(self._begins_ms, end.time_ms - 1) - 1)

    def _are_one(self, first: int, last: int) -> bool:
        """Say whether segments lie in one period, and no edge between them."""
        ends = [(self._segments[at].period, self._parts[at]) for at in (first, last)]
        return ends[0] == ends[1]

    def _told(
        self, begin: End, end: End, energy_milli: int, ratio: int, period: int
    ) -> Iterator[Share]:
        """Yield what registers tell; what they leave over is of the plan's last rate."""
        *others, rest = self._rates
        for rate in others:
            used_milli = (end.rates_milli[rate] - begin.rates_milli[rate]) * ratio
            yield Share(rate, period, used_milli)
            energy_milli -= used_milli
        yield Share(rest, period, energy_milli)


def _between(begin_milli: int, end_milli: int, part: Fraction) -> int:
    return begin_milli + math.floor((end_milli - begin_milli) * part)


def _tell(begin: End, end: End, rates: list[int], ratio: int) -> bool:
    """Say whether registers tell the rates of what was used between two ends."""
    there = [rate for rate, milli in enumerate(begin.rates_milli) if milli >= 0]
    if not (rates and there):
        return False
    if there != [rate for rate, milli in enumerate(end.rates_milli) if milli >= 0]:
        return False
    rises = [end.rates_milli[rate] - begin.rates_milli[rate] for rate in there]
    fits = min(rises) >= 0 and fits_int64(sum(rises) * ratio)
    return fits and begin.agrees and end.agrees
