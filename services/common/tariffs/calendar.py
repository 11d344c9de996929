"""When each rate of a plan holds, and where its periods begin, in UTC milliseconds.

The wall clock of the plan's zone decides: the rate of an instant is that of the slot that the wall
clock shows then, on a day of 23 or 25 hours too, and its period that of the local date.
"""

from bisect import bisect_right
from collections.abc import Container, Iterator
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from services.common.kernel.values import value_class
from services.common.kernel.zones import zone_named
from services.common.tariffs.plan import DayKind, Plan, Season, rate_index

DAY_MS = 86_400_000
NO_PERIOD = 0
_EPOCH = date(1970, 1, 1)
_SATURDAY = 5


@value_class
class Segment:
    """From `begins_ms` until the next segment: one rate (its number) in one period."""

    begins_ms: int
    rate: int
    period: int


def month_of(day: date) -> int:
    """Return the number of a month: 12 x year + month - 1."""
    return day.year * 12 + day.month - 1


def period_of(plan: Plan, day: date) -> int:
    """Return the number of the ladder's period that holds a local date; NO_PERIOD without one."""
    if plan.ladder is None:
        return NO_PERIOD
    return month_of(day) if plan.ladder.period == "month" else day.year


def period_days(plan: Plan, period: int) -> tuple[date, date]:
    """Return the first day of a period of the plan's ladder, and that of the next."""
    assert plan.ladder is not None, "only a ladder has periods"
    if plan.ladder.period == "year":
        return date(period, 1, 1), date(period + 1, 1, 1)
    return tuple(date(number // 12, number % 12 + 1, 1) for number in (period, period + 1))  # type: ignore[return-value]


def days_left(plan: Plan, period: int, since_ms: int) -> tuple[int, int]:
    """Return (days, days of the period): how much of a period lies at or after an instant's day."""
    begins, ends = period_days(plan, period)
    since = local_date(zone_named(plan.zone), since_ms)
    return (ends - min(max(since, begins), ends)).days, (ends - begins).days


def local_date(zone: ZoneInfo, at_ms: int) -> date:
    """Return the date that the wall clock of a zone shows."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone).date()


@lru_cache(maxsize=4096)
def begin_ms(zone: ZoneInfo, day: date) -> int:
    """Return the first instant at which the wall clock of a zone shows a date, or a later one."""
    midnight_s = day_number(day) * DAY_MS // 1000
    low_s, high_s = midnight_s - DAY_MS // 1000, midnight_s + DAY_MS // 1000
    while high_s - low_s > 1:
        middle_s = (low_s + high_s) // 2
        if local_date(zone, middle_s * 1000) < day:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s * 1000


def date_of(number: int) -> date:
    """Return the date that lies so many days after 1970-01-01."""
    return _EPOCH + timedelta(days=number)


def day_number(day: date) -> int:
    """Return how many days after 1970-01-01 a date lies."""
    return (day - _EPOCH).days


def kind_of(day: date, holidays: Container[date], workdays: Container[date]) -> DayKind:
    """Return the kind of a local date."""
    if day in holidays:
        return "holiday"
    if day in workdays or day.weekday() < _SATURDAY:
        return "weekday"
    return "weekend"


def segments(plan: Plan, from_ms: int, to_ms: int) -> list[Segment]:
    """Return the segments that cover [from_ms, to_ms): the first begins at from_ms.

    Neighbours differ in rate or period.
    """
    found: list[Segment] = []
    for segment in _pieces(plan, from_ms, to_ms):
        if not found or (found[-1].rate, found[-1].period) != (segment.rate, segment.period):
            found.append(segment)
    return found


def is_constant(plan: Plan) -> bool:
    """Say whether there is one rate and no period: a segment without end."""
    return not plan.seasons and plan.ladder is None


def _pieces(plan: Plan, from_ms: int, to_ms: int) -> Iterator[Segment]:
    if is_constant(plan):
        yield Segment(from_ms, rate_index(next(iter(plan.rates_micro))), NO_PERIOD)
        return
    zone = zone_named(plan.zone)
    days = _Days(plan)
    for begins_ms, ends_ms, offset_ms in offsets(zone, from_ms, to_ms):
        # Within a span of one offset the wall clock runs evenly.
        local_ms, local_end_ms = begins_ms + offset_ms, ends_ms + offset_ms
        for number in range(local_ms // DAY_MS, (local_end_ms - 1) // DAY_MS + 1):
            day = date_of(number)
            period = period_of(plan, day)
            for slot_ms, next_ms, rate in days.slots(day):
                start_ms = max(number * DAY_MS + slot_ms, local_ms)
                if start_ms < min(number * DAY_MS + next_ms, local_end_ms):
                    yield Segment(start_ms - offset_ms, rate, period)


def offsets(zone: ZoneInfo, from_ms: int, to_ms: int) -> Iterator[tuple[int, int, int]]:
    """Yield (from, to, offset from UTC) of spans in which the zone keeps one offset."""
    start_ms, offset_ms = from_ms, _offset_ms(zone, from_ms)
    at_ms = from_ms
    while at_ms < to_ms:
        next_ms = min(at_ms + DAY_MS, to_ms)
        next_offset_ms = _offset_ms(zone, next_ms)
        if next_offset_ms != offset_ms:
            change_ms = _change_ms(zone, at_ms, next_ms, offset_ms)
            yield start_ms, change_ms, offset_ms
            start_ms, offset_ms = change_ms, _offset_ms(zone, change_ms)
            next_ms = change_ms
        at_ms = next_ms
    if start_ms < to_ms:
        yield start_ms, to_ms, offset_ms


def _change_ms(zone: ZoneInfo, low_ms: int, high_ms: int, offset_ms: int) -> int:
    """Return the first instant in (low, high] at which the offset is another one; to a second."""
    low_s, high_s = low_ms // 1000, -(-high_ms // 1000)
    while high_s - low_s > 1:
        middle_s = (low_s + high_s) // 2
        if _offset_ms(zone, middle_s * 1000) == offset_ms:
            low_s = middle_s
        else:
            high_s = middle_s
    return high_s * 1000


def _offset_ms(zone: ZoneInfo, at_ms: int) -> int:
    offset = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(zone).utcoffset()
    assert offset is not None, "a zone has an offset at every instant"
    return offset // timedelta(milliseconds=1)


class _Days:
    """The slots of local days, each table made once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._begins = [season.begins for season in plan.seasons]
        self._tables: dict[tuple[int, DayKind], list[tuple[int, int, int]]] = {}
        self._holidays, self._workdays = frozenset(plan.holidays), frozenset(plan.workdays)

    def slots(self, day: date) -> list[tuple[int, int, int]]:
        """Return (from, to, rate) of a day's slots, ms after its midnight."""
        if not self._begins:
            return [(0, DAY_MS, rate_index(next(iter(self._plan.rates_micro))))]
        # Before the first season begins the last one goes on: index -1.
        season = bisect_right(self._begins, f"{day:%m-%d}") - 1
        kind = kind_of(day, self._holidays, self._workdays)
        table = self._tables.get((season, kind))
        if table is None:
            table = self._tables[season, kind] = _table(self._plan.seasons[season], kind)
        return table


def _table(season: Season, kind: DayKind) -> list[tuple[int, int, int]]:
    slots = next(table.slots for table in season.days if kind in table.kinds)
    begins = [ms_of(slot.begins) for slot in slots]
    rates = [rate_index(slot.rate) for slot in slots]
    return list(zip(begins, [*begins[1:], DAY_MS], rates, strict=True))


def ms_of(hour_minute: str) -> int:
    """Return how long after midnight the wall clock shows HH:MM."""
    hours, minutes = hour_minute.split(":")
    return (int(hours) * 60 + int(minutes)) * 60_000
