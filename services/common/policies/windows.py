"""When nobody is cut, in UTC milliseconds.

The wall clock of the rules' zone decides, on a day of 23 or 25 hours too: an hour that a change of
the clock repeats lies in a window both times, one that it skips never comes.
"""

from collections.abc import Iterator

from services.common.kernel.zones import zone_named
from services.common.policies.rules import Rules
from services.common.tariffs.calendar import DAY_MS, date_of, kind_of, ms_of, offsets


def first_no_cut_ms(rules: Rules, from_ms: int, to_ms: int) -> int | None:
    """Return the first instant of [from, to) that lies in a no-cut window; None where none does."""
    if not rules.no_cut:
        return None
    assert rules.zone is not None, "windows have a zone"
    for begins_ms, ends_ms, offset_ms in offsets(zone_named(rules.zone), from_ms, to_ms):
        # Within a span of one offset the wall clock runs evenly.
        local_ms, local_end_ms = begins_ms + offset_ms, ends_ms + offset_ms
        starts_ms = [
            max(window_ms, local_ms)
            for window_ms, window_end_ms in _windows(rules, local_ms, local_end_ms)
            if window_ms < local_end_ms and window_end_ms > local_ms
        ]
        if starts_ms:
            return min(starts_ms) - offset_ms
    return None


def _windows(rules: Rules, local_ms: int, local_end_ms: int) -> Iterator[tuple[int, int]]:
    """Yield (from, to) on the wall clock of windows that may reach into a span."""
    for day_number in range(local_ms // DAY_MS - 1, (local_end_ms - 1) // DAY_MS + 1):
        kind = kind_of(date_of(day_number), rules.holidays, rules.workdays)
        for window in rules.no_cut:
            if kind in window.days:
                begins_ms, ends_ms = ms_of(window.begins), ms_of(window.ends)
                ends_ms += DAY_MS * (ends_ms <= begins_ms)
                yield day_number * DAY_MS + begins_ms, day_number * DAY_MS + ends_ms
