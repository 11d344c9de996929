"""The shape of energy: how much of an interval belongs to which rate and period of a plan.

Meters count energy, not the hour in which it was used: an interval is split in proportion to time
(services/metering/README.md, rule 4).
"""

from bisect import bisect_right
from collections.abc import Iterator

from services.common.kernel.values import value_class
from services.common.tariffs.calendar import segments
from services.common.tariffs.plan import Plan


@value_class
class Share:
    """Energy of an interval in one rate (its number) and period."""

    rate: int
    period: int
    energy_milli: int


class Timeline:
    """The segments of a plan in a span of time, worked out once for many intervals."""

    def __init__(self, plan: Plan, from_ms: int, to_ms: int) -> None:
        """Work out [from_ms, to_ms]. What lies before or behind counts as its first or last."""
        self._segments = segments(plan, from_ms, to_ms + 1)
        self._begins_ms = [segment.begins_ms for segment in self._segments]

    def shares(self, begins_ms: int, ends_ms: int, energy_milli: int) -> Iterator[Share]:
        """Yield the shares of an interval in the order of time; two may be of one rate and period.

        Until an edge it has used ⌊energy × elapsed / duration⌋. begins_ms 0 counts as ends_ms.
        """
        begins_ms = begins_ms or ends_ms
        first = max(0, bisect_right(self._begins_ms, begins_ms) - 1)
        # The segment of its last instant; without a duration that of its instant.
        last = max(first, bisect_right(self._begins_ms, ends_ms - 1) - 1)
        used_milli = 0
        for at in range(first, last):
            segment, elapsed_ms = self._segments[at], self._begins_ms[at + 1] - begins_ms
            until_milli = energy_milli * elapsed_ms // (ends_ms - begins_ms)
            yield Share(segment.rate, segment.period, until_milli - used_milli)
            used_milli = until_milli
        segment = self._segments[last]
        yield Share(segment.rate, segment.period, energy_milli - used_milli)
