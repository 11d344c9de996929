"""When rates hold: days of 23 and 25 hours, seasons, holidays, months; and what a unit costs then.

Expected figures are worked out by hand from the wall clock, not from the code.
"""

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from services.common.tariffs.calendar import days_left, is_constant, segments
from services.common.tariffs.plan import DayTable, Ladder, Plan, Season, Slot, Step, Surcharge, Tax
from services.common.tariffs.plan import flat as flat_plan
from services.common.tariffs.pricing import TOTAL, Rise, folded, foldings, terms_of

HOUR_MS = 3_600_000
SHARP, PEAK, FLAT, VALLEY, DEEP_VALLEY = range(5)
VALLEY_UNTIL_8 = (Slot(begins="00:00", rate="valley"), Slot(begins="08:00", rate="peak"))
ALL_VALLEY = (Slot(begins="00:00", rate="valley"),)


def at(text: str, zone: str = "UTC") -> int:
    """Return a wall clock's time as ms UTC."""
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def local(ms: int, zone: str) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).astimezone(ZoneInfo(zone)).strftime("%d %H:%M")


def season(name: str = "all", begins: str = "01-01", **slots: tuple[Slot, ...]) -> Season:
    """Return a season whose days are VALLEY_UNTIL_8 but where `slots` says otherwise."""
    tables = tuple(
        DayTable(kinds=(kind,), slots=slots.get(kind, VALLEY_UNTIL_8))
        for kind in ("weekday", "weekend", "holiday")
    )
    return Season(name=name, begins=begins, days=tables)


def plan(zone: str = "Europe/Berlin", **changes: object) -> Plan:
    fields = {"rates_micro": {"peak": 300_000, "valley": 100_000}, "seasons": (season(),)}
    return Plan.model_validate({"zone": zone, **fields, **changes})


def hours(of: Plan, day: str, until: str) -> dict[int, float]:
    """Return the hours of each rate between two local midnights."""
    begins, ends = at(day, of.zone), at(until, of.zone)
    found: Counter[int] = Counter()
    parts = segments(of, begins, ends)
    stops = [*(part.begins_ms for part in parts[1:]), ends]
    for part, stop in zip(parts, stops, strict=True):
        found[part.rate] += stop - part.begins_ms
    return {rate: ms / HOUR_MS for rate, ms in found.items()}


@pytest.mark.parametrize(
    ("day", "until", "valley"),
    [
        ("2026-03-28", "2026-03-29", 8),
        ("2026-03-29", "2026-03-30", 7),  # the clock jumps from 02:00 to 03:00
        ("2026-10-25", "2026-10-26", 9),  # 02:00 to 03:00 comes twice
    ],
)
def test_a_day_of_23_or_25_hours_has_its_hours_where_the_wall_clock_shows_them(
    day: str, until: str, valley: int
) -> None:
    assert hours(plan(), day, until) == {VALLEY: valley, PEAK: 16}


def test_a_slot_that_begins_in_the_hour_that_comes_twice_begins_twice() -> None:
    slots = (Slot(begins="00:00", rate="valley"), Slot(begins="02:30", rate="peak"))
    of = plan(seasons=(season(weekend=slots),))
    parts = segments(of, at("2026-10-25", of.zone), at("2026-10-25T04:00", of.zone))
    # 02:30 summer time peak, back to 02:00 winter time: valley again, 02:30 winter time peak.
    assert [(local(part.begins_ms, of.zone), part.rate) for part in parts] == [
        ("25 00:00", VALLEY),
        ("25 02:30", PEAK),
        ("25 02:00", VALLEY),
        ("25 02:30", PEAK),
    ]


def test_a_slot_that_begins_in_the_hour_that_is_left_out_begins_when_the_clock_has_jumped() -> None:
    slots = (Slot(begins="00:00", rate="valley"), Slot(begins="02:30", rate="peak"))
    of = plan(seasons=(season(weekend=slots),))
    parts = segments(of, at("2026-03-29", of.zone), at("2026-03-30", of.zone))
    assert [(part.begins_ms, part.rate) for part in parts] == [
        (at("2026-03-28T23:00"), VALLEY),
        (at("2026-03-29T01:00"), PEAK),
    ]


def test_a_month_begins_at_local_midnight_also_where_the_clock_jumps_over_it() -> None:
    # Havana: at midnight on 2026-03-08 the clock goes to 01:00, so that day begins then.
    of = plan("America/Havana", ladder=Ladder(period="month", steps=(_step(100, 1),)))
    march = 2026 * 12 + 2
    (before, after) = (
        segments(of, at("2026-02-28", of.zone), at("2026-03-02", of.zone))[i].period
        for i in (0, -1)
    )
    assert (before, after) == (march - 1, march)
    parts = segments(of, at("2026-03-07T22:00", of.zone), at("2026-03-08T03:00", of.zone))
    assert [local(part.begins_ms, of.zone) for part in parts] == ["07 22:00", "08 01:00"]


def test_holidays_and_workdays_stand_above_the_week() -> None:
    of = plan(
        "Asia/Shanghai",
        seasons=(season(weekend=ALL_VALLEY, holiday=ALL_VALLEY),),
        holidays=("2026-10-01",),  # a Thursday
        workdays=("2026-10-10",),  # a Saturday
    )
    valleys = [
        hours(of, f"2026-10-{day:02}", f"2026-10-{day + 1:02}")[VALLEY] for day in (1, 2, 10, 11)
    ]
    assert valleys == [24, 8, 8, 24]


def test_the_last_season_of_the_year_goes_on_until_the_first_of_the_next() -> None:
    summer, winter = season("summer", "06-01"), season("winter", "10-01", weekday=ALL_VALLEY)
    of = plan("Asia/Shanghai", seasons=(summer, winter))
    # 2026-05-29 and -30: winter still, Friday and Saturday; 2026-06-01: Monday, summer.
    assert hours(of, "2026-05-29", "2026-05-30") == {VALLEY: 24}
    assert hours(of, "2026-06-01", "2026-06-02") == {VALLEY: 8, PEAK: 16}
    assert hours(of, "2026-10-01", "2026-10-02") == {VALLEY: 24}


def test_neighbours_differ_and_a_year_is_whole() -> None:
    of = plan("Australia/Lord_Howe")
    parts = segments(of, at("2026-01-01"), at("2027-01-01"))
    assert parts[0].begins_ms == at("2026-01-01")
    assert all(a.begins_ms < b.begins_ms and a.rate != b.rate for a, b in pairwise(parts))


def test_a_plan_without_calendar_is_one_segment_for_ever() -> None:
    of = flat_plan(528_300)
    assert is_constant(of)
    assert not is_constant(plan())
    (part,) = segments(of, 0, 2**42)
    assert (part.begins_ms, part.rate, part.period) == (0, FLAT, 0)


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-01-31T23:59", (28, 28)),  # before the month
        ("2026-02-01T00:00", (28, 28)),
        ("2026-02-15T12:00", (14, 28)),
        ("2026-02-28T23:59", (1, 28)),
        ("2026-03-01T00:00", (0, 28)),  # behind it
    ],
)
def test_a_period_counts_from_the_local_day_of_the_start(
    since: str, expected: tuple[int, int]
) -> None:
    of = plan("Asia/Shanghai", ladder=Ladder(period="month", steps=(_step(100, 1),)))
    assert days_left(of, 2026 * 12 + 1, at(since, of.zone)) == expected


def test_taxes_are_folded_half_up_into_prices_of_a_unit() -> None:
    vat = Tax(name="VAT", ppm=130_000, base=("energy", "surcharges"))
    of = plan(
        rates_micro={"peak": 528_350, "valley": 100_000},
        surcharges=(Surcharge(name="fund", price_micro=19_100),),
        taxes=(vat,),
        ladder=Ladder(period="month", steps=(_step(240_000, 50_005), _step(400_000, -3))),
    )
    terms = terms_of(of)
    # 528350 x 0.13 = 68685.5 → 68686; 100000 x 0.13 = 13000; 19100 x 0.13 = 2483
    assert terms.tax_micro == (0, 68_686 + 2_483, 0, 13_000 + 2_483, 0)
    # 50005 x 0.13 = 6500.65 → 6501; -3 x 0.13 = -0.39 → 0; the second step takes the first back.
    rises = (Rise(240_000, 50_005, 6_501), Rise(400_000, -50_008, -6_501))
    assert terms.ladders == {TOTAL: rises}
    rounded = {(f.on, f.folded_micro) for f in foldings(of) if f.exact_ppm % 10**6}
    assert rounded == {("rate peak", 68_686), ("above 240000", 6_501), ("above 400000", 0)}
    half = Tax(name="half", ppm=500_000, base=("energy",))
    assert (folded(1, half), folded(-1, half)) == (1, 0)


def _step(above_milli: int, add_micro: int) -> Step:
    return Step(above_milli=above_milli, add_micro=add_micro)
