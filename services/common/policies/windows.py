"""When nobody is cut, in UTC milliseconds; and rules under which nobody ever is.

The wall clock of the rules' zone decides, on a day of 23 or 25 hours too: an hour that a change of
the clock repeats lies in a window both times, one that it skips never comes.
"""

from collections.abc import Iterator
from itertools import product

from services.common.kernel.zones import zone_named
from services.common.policies.rules import Rules, Window
from services.common.tariffs.calendar import DAY_MS, date_of, kind_of, ms_of, offsets
from services.common.tariffs.plan import DayKind

READ_QUALITY = "A"
"""What devices tell is actual. Else are only corrections, which cut nobody, and estimates."""


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


def why_nobody_is_cut(rules: Rules) -> str | None:
    """Return why under these rules nobody could ever be cut; None where somebody could."""
    if READ_QUALITY not in rules.qualities:
        return f"readings of meters are of quality {READ_QUALITY}: without it nobody is ever cut"
    if _is_always_no_cut(rules):
        return "the windows of no_cut leave no minute of any day: nobody is ever cut"
    return None


def _is_always_no_cut(rules: Rules) -> bool:
    """Say whether windows hold every day, of whatever kinds it and the day before are.

    A minute that none holds would be midnight, or follow a window's end.
    """
    kinds: tuple[DayKind, ...] = ("weekday", "weekend", "holiday")
    starts_ms = {0, *(ms_of(window.ends) for window in rules.no_cut)}
    return all(
        any(_holds(window, before, day, at_ms) for window in rules.no_cut)
        for before, day in product(kinds if rules.holidays else kinds[:-1], repeat=2)
        for at_ms in starts_ms
    )


def _holds(window: Window, before: DayKind, day: DayKind, at_ms: int) -> bool:
    """Say whether a time of a day lies in a window of that day or of the day before."""
    begins_ms, ends_ms = ms_of(window.begins), ms_of(window.ends)
    if ends_ms > begins_ms:
        return day in window.days and begins_ms <= at_ms < ends_ms
    return (day in window.days and at_ms >= begins_ms) or (
        before in window.days and at_ms < ends_ms
    )
