"""Published tariff sheets, worked by hand: the scalar model charges what the sheet says.

The judge of the engine is judged here. Each test states a sheet as it is published (prices in the
currency a kWh), what was used and when, and the figures as a reader finds them with pencil and
paper; nothing expected is computed by the product. Energy is in thousandths of a kWh, amounts are
compared in billionths of the currency: 1_000 milli at 1.00 is 1_000 × 1_000_000 nano.
"""

from collections import defaultdict
from datetime import datetime
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.property.metering_histories import SETTLED, SHARD, Book, Frame, Read
from tests.property.metering_model import ScalarShard
from tests.property.metering_plans import (
    EVERY_DAY,
    HOLIDAY,
    WEEKDAY,
    WEEKEND,
    document,
    steps,
    table,
)
from tests.property.metering_tariff_model import (
    NO_RATE,
    RATES,
    Accumulation,
    Line,
    Pricing,
    Tariff,
    amount_of,
)

SHANGHAI, BERLIN = "Asia/Shanghai", "Europe/Berlin"
METER, OTHER_METER = 7, 8
ACCOUNT = 0
TOTAL = -1
KWH = 1_000


def at(zone: str, wall: str, fold: int = 0) -> int:
    """Return the instant of a wall clock; `fold` 1: the second time that it shows this."""
    return (
        int(datetime.fromisoformat(wall).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp())
        * 1000
    )


def money(amount: str) -> int:
    """Return an amount of the currency, as written, in billionths."""
    nano = Fraction(amount) * 10**9
    assert nano.denominator == 1
    return int(nano)


def tariff(*versions: tuple[int, str | int]) -> Tariff:
    """Return a tariff: of each version its instant, and its document or its flat price."""
    facts: dict[int, dict[str, Any]] = {}
    for number, (effective_ms, price) in enumerate(versions, 1):
        is_plan = isinstance(price, str)
        facts[number] = {
            "effective_at_ms": effective_ms,
            "plan": price if is_plan else None,
            "price_micro": 0 if is_plan else price,
        }
    return Tariff(facts)


class Customer:
    """An account under a tariff, with what its ladders have added up."""

    def __init__(self, sheet: Tariff, since_ms: int = 0) -> None:
        self.sheet = sheet
        self.since_ms = since_ms
        self.accumulations: dict[tuple[int, int, int, int], Accumulation] = {}

    def uses(self, begins_ms: int, ends_ms: int, energy: int, meter: int = METER) -> list[Line]:
        """Return the lines of an interval."""
        return self.prices(self.sheet.split(begins_ms, ends_ms, energy), meter)

    def prices(self, parts: dict[tuple[int, int, int], int], meter: int = METER) -> list[Line]:
        pricing = Pricing(self.sheet, self.accumulations, meter, self.since_ms, self.since_ms)
        return pricing.lines(parts, 0)


def paid(lines: list[Line]) -> int:
    return sum(map(amount_of, lines))


def by_rate(lines: list[Line]) -> dict[str, int]:
    """Return the energy of each rate."""
    found: dict[str, int] = defaultdict(int)
    for line in lines:
        found[RATES[line["rate"]]] += line["energy_milli"]
    return dict(found)


# -- a ladder by the year ---------------------------------------------------------------------

BEIJING = document(
    SHANGHAI,
    {"flat": 488_300},
    ladder={
        "period": "year",
        # 0.5383 − 0.4883 = 0.05 above 2,880 kWh; 0.7883 − 0.4883 = 0.30 above 4,800 kWh
        "steps": steps((2_880 * KWH, 50_000), (4_800 * KWH, 300_000)),
    },
)
"""Beijing, households: 0.4883 up to 2,880 kWh a year, 0.5383 up to 4,800, 0.7883 above."""


def test_beijing_a_years_5000_kwh_pass_both_steps() -> None:
    # 2,880 × 0.4883 = 1,406.304
    # 1,920 × 0.5383 = 1,033.536
    #   200 × 0.7883 =   157.660     in all 2,597.500
    customer = Customer(tariff((0, BEIJING)))
    noon = at(SHANGHAI, "2027-06-01 12:00")
    (line,) = customer.uses(noon, noon + 3_600_000, 5_000 * KWH)
    assert amount_of(line) == money("2597.5")
    # As adders: 5,000 × 0.4883 = 2,441.50, and 2,120 × 0.05 + 200 × 0.25 = 106 + 50
    assert (line["rate_nano"], line["ladder_nano"]) == (money("2441.5"), money("156"))
    assert (line["period"], line["total_milli"]) == (2027, 5_000 * KWH)


def test_beijing_month_by_month_each_month_stands_where_the_last_one_ended() -> None:
    # April's 1,500 kWh after 2,000: 880 below the first step, 620 above it.
    #   880 × 0.4883 = 429.704;  620 × 0.5383 = 333.746;  in all 763.450
    # October's 2,000 kWh after 3,500: 1,300 below the second step, 700 above it.
    #   1,300 × 0.5383 = 699.790;  700 × 0.7883 = 551.810;  in all 1,251.600
    customer = Customer(tariff((0, BEIJING)))
    amounts = []
    for month, used in (("02", 2_000), ("04", 1_500), ("10", 2_000)):
        day = at(SHANGHAI, f"2027-{month}-10 00:00")
        amounts.append(paid(customer.uses(day, day + 3_600_000, used * KWH)))
    assert amounts == [money("976.6"), money("763.45"), money("1251.6")]


def test_beijing_the_year_begins_anew_at_midnight_in_beijing() -> None:
    # 48 hours about New Year, 96 kWh: 48 kWh each side. The old year stands at 4,800 kWh.
    # Old: 48 × 0.7883 = 37.8384. New: 48 × 0.4883 = 23.4384.
    customer = Customer(tariff((0, BEIJING)))
    before = at(SHANGHAI, "2027-12-01 00:00")
    customer.uses(before, before + 3_600_000, 4_800 * KWH)
    about = at(SHANGHAI, "2027-12-31 00:00"), at(SHANGHAI, "2028-01-02 00:00")
    old, new = customer.uses(*about, 96 * KWH)
    assert (old["period"], new["period"]) == (2027, 2028)
    assert (amount_of(old), amount_of(new)) == (money("37.8384"), money("23.4384"))
    assert new["total_milli"] == 48 * KWH


def test_a_register_handed_over_lower_gives_back_what_the_steps_took() -> None:
    # 3,000 kWh, then 200 kWh less: 120 of them had cost 0.5383, 80 cost 0.4883.
    # −(120 × 0.5383 + 80 × 0.4883) = −(64.596 + 39.064) = −103.66
    customer = Customer(tariff((0, BEIJING)))
    noon = at(SHANGHAI, "2027-06-01 12:00")
    customer.uses(noon, noon + 1, 3_000 * KWH)
    assert paid(customer.uses(noon, noon, -200 * KWH)) == money("-103.66")


# -- commercial time of use -------------------------------------------------------------------

_MILD = {"t0000": "valley", "t0800": "peak", "t1100": "valley"}
_MILD |= {"t1300": "flat", "t1700": "peak", "t2200": "flat"}
_SUMMER = {"t0000": "valley", "t0800": "flat", "t0900": "peak", "t1100": "valley"}
_SUMMER |= {"t1300": "sharp", "t1700": "peak", "t2200": "flat"}
_FEAST = {"t0000": "valley", "t1000": "deep_valley", "t1400": "flat"}
COMMERCIAL_PRICES = {
    "sharp": 1_268_500,
    "peak": 1_057_100,
    "flat": 634_200,
    "valley": 267_400,
    "deep_valley": 190_300,
}
COMMERCIAL = document(
    SHANGHAI,
    COMMERCIAL_PRICES,
    seasons=[
        {
            "name": "summer",
            "begins": "07-01",
            "days": [table(WEEKDAY, WEEKEND, **_SUMMER), table(HOLIDAY, **_FEAST)],
        },
        {
            "name": "other",
            "begins": "09-01",
            "days": [
                table(WEEKDAY, **_MILD),
                table(WEEKEND, t0000="valley", t0800="flat"),
                table(HOLIDAY, **_FEAST),
            ],
        },
    ],
    holidays=["2027-10-01"],
    workdays=["2027-10-09"],
)
"""As in Zhejiang: July and August have a sharp rate, holidays a deep valley at noon.

                     valley        peak           flat           sharp    deep valley
    July, August     0–8, 11–13    9–11, 17–22    8–9, 22–24     13–17
    else, weekdays   0–8, 11–13    8–11, 17–22    13–17, 22–24
    else, weekends   0–8                          8–24
    holidays         0–10                         14–24                   10–14
"""

# One kWh an hour, from midnight to midnight.
COMMERCIAL_DAYS = [
    # Thursday in July: 10 × 0.2674 + 3 × 0.6342 + 7 × 1.0571 + 4 × 1.2685
    #                 = 2.674 + 1.9026 + 7.3997 + 5.074 = 17.0503
    ("2027-07-15", {"valley": 10, "flat": 3, "peak": 7, "sharp": 4}, "17.0503"),
    # Thursday in April: 10 × 0.2674 + 8 × 1.0571 + 6 × 0.6342 = 2.674 + 8.4568 + 3.8052 = 14.936
    ("2027-04-15", {"valley": 10, "peak": 8, "flat": 6}, "14.936"),
    # Saturday in April: 8 × 0.2674 + 16 × 0.6342 = 2.1392 + 10.1472 = 12.2864
    ("2027-04-17", {"valley": 8, "flat": 16}, "12.2864"),
    # Friday, the national holiday: 10 × 0.2674 + 4 × 0.1903 + 10 × 0.6342
    #                             = 2.674 + 0.7612 + 6.342 = 9.7772
    ("2027-10-01", {"valley": 10, "deep_valley": 4, "flat": 10}, "9.7772"),
    # Saturday, worked for the holiday: a weekday as in April, 14.936
    ("2027-10-09", {"valley": 10, "peak": 8, "flat": 6}, "14.936"),
    # January goes on with the season that began in September: a Friday, 14.936
    ("2027-01-15", {"valley": 10, "peak": 8, "flat": 6}, "14.936"),
]


@pytest.mark.parametrize(("day", "hours", "amount"), COMMERCIAL_DAYS)
def test_commercial_each_kind_of_day_has_its_hours(
    day: str, hours: dict[str, int], amount: str
) -> None:
    begins = at(SHANGHAI, f"{day} 00:00")
    lines = Customer(tariff((0, COMMERCIAL))).uses(begins, begins + 24 * 3_600_000, 24 * KWH)
    assert by_rate(lines) == {rate: count * KWH for rate, count in hours.items()}
    assert paid(lines) == money(amount)
    assert len(lines) == len(hours), "what belongs together is one line"


def test_commercial_lines_stand_in_the_order_of_their_first_instant() -> None:
    begins = at(SHANGHAI, "2027-07-15 07:00")
    lines = Customer(tariff((0, COMMERCIAL))).uses(begins, begins + 11 * 3_600_000, 11 * KWH)
    assert list(by_rate(lines)) == ["valley", "flat", "peak", "sharp"]


def test_commercial_the_season_changes_at_midnight_within_an_interval() -> None:
    # Wednesday 30 June from noon: valley 1, flat 4 + 2, peak 5.
    # Thursday 1 July to noon: valley 8, flat 1, peak 2, valley 1.
    # valley 10 × 0.2674 + flat 7 × 0.6342 + peak 7 × 1.0571 = 2.674 + 4.4394 + 7.3997 = 14.5131
    begins = at(SHANGHAI, "2027-06-30 12:00")
    lines = Customer(tariff((0, COMMERCIAL))).uses(begins, begins + 24 * 3_600_000, 24 * KWH)
    assert by_rate(lines) == {"valley": 10 * KWH, "flat": 7 * KWH, "peak": 7 * KWH}
    assert paid(lines) == money("14.5131")


def test_an_interval_is_split_in_integers_and_the_last_part_takes_what_is_left() -> None:
    # 1,000 milli from 07:00 to 10:00 in July: valley, flat, peak, an hour each.
    # Until 08:00 ⌊1000 / 3⌋ = 333, until 09:00 ⌊2000 / 3⌋ = 666: 333, 333 and 334.
    begins = at(SHANGHAI, "2027-07-15 07:00")
    lines = Customer(tariff((0, COMMERCIAL))).uses(begins, begins + 3 * 3_600_000, 1_000)
    assert [line["energy_milli"] for line in lines] == [333, 333, 334]
    # Less energy, as at a register handed over lower: ⌊−1000 / 3⌋ = −334, ⌊−2000 / 3⌋ = −667.
    lines = Customer(tariff((0, COMMERCIAL))).uses(begins, begins + 3 * 3_600_000, -1_000)
    assert [line["energy_milli"] for line in lines] == [-334, -333, -333]


def test_an_edge_at_either_end_of_an_interval_splits_nothing() -> None:
    begins = at(SHANGHAI, "2027-07-15 13:00")
    sheet = tariff((0, COMMERCIAL))
    (line,) = Customer(sheet).uses(begins, begins + 4 * 3_600_000, 4 * KWH)
    assert (RATES[line["rate"]], line["energy_milli"]) == ("sharp", 4 * KWH)


# -- two rates in Europe, on the days on which the clock changes ------------------------------

TWO_RATES = document(
    BERLIN,
    {"peak": 320_000, "valley": 240_000},
    table(*EVERY_DAY, t0000="valley", t0700="peak", t2100="valley"),
)
"""0.32 from 7 to 21, 0.24 at night."""


@pytest.mark.parametrize(
    ("day", "next_day", "hours", "peak", "valley", "amount"),
    [
        # 7 + 3 hours of night: 14 × 0.32 + 10 × 0.24 = 4.48 + 2.40
        ("2027-03-27", "2027-03-28", 24, 14, 10, "6.88"),
        # 2:00 to 3:00 is left out: 14 × 0.32 + 9 × 0.24 = 4.48 + 2.16
        ("2027-03-28", "2027-03-29", 23, 14, 9, "6.64"),
        # 2:00 to 3:00 comes twice: 14 × 0.32 + 11 × 0.24 = 4.48 + 2.64
        ("2027-10-31", "2027-11-01", 25, 14, 11, "7.12"),
    ],
)
def test_europe_a_day_has_the_hours_that_the_clock_shows(
    day: str, next_day: str, hours: int, peak: int, valley: int, amount: str
) -> None:
    begins, ends = at(BERLIN, f"{day} 00:00"), at(BERLIN, f"{next_day} 00:00")
    assert ends - begins == hours * 3_600_000
    lines = Customer(tariff((0, TWO_RATES))).uses(begins, ends, hours * KWH)
    assert by_rate(lines) == {"valley": valley * KWH, "peak": peak * KWH}
    assert paid(lines) == money(amount)


HALF_PAST_TWO = document(
    BERLIN,
    {"flat": 100_000, "sharp": 500_000},
    table(*EVERY_DAY, t0000="flat", t0230="sharp", t0300="flat"),
)
"""A rate of its own from 2:30 to 3:00: never on the day of 23 hours, twice on that of 25."""


@pytest.mark.parametrize(
    ("day", "hours", "sharp"),
    [("2027-03-27", 24, 500), ("2027-03-28", 23, 0), ("2027-10-31", 25, 1_000)],
)
def test_a_slot_within_the_hour_that_the_clock_changes(day: str, hours: int, sharp: int) -> None:
    begins = at(BERLIN, f"{day} 00:00")
    lines = Customer(tariff((0, HALF_PAST_TWO))).uses(
        begins, begins + hours * 3_600_000, hours * KWH
    )
    assert by_rate(lines).get("sharp", 0) == sharp
    # 0.1 every kWh, and 0.4 more at half past two: 25 × 0.1 + 1 × 0.4 = 2.9 in October.
    expected = {0: "2.3", 500: "2.6", 1_000: "2.9"}[sharp]
    assert paid(lines) == money(expected)


def test_the_rate_follows_the_clock_back_and_on_again() -> None:
    # 31 October: sharp at 2:30 summer time, flat when the clock shows 2:00 again, sharp at 2:30.
    terms = tariff((0, HALF_PAST_TWO)).terms(1)
    seen = [
        RATES[terms.rate(at(BERLIN, f"2027-10-31 {wall}", fold))]
        for wall, fold in (("02:29", 0), ("02:30", 0), ("02:00", 1), ("02:30", 1), ("03:00", 0))
    ]
    assert seen == ["flat", "sharp", "flat", "sharp", "flat"]


def test_lord_howe_repeats_half_an_hour() -> None:
    # 4 April 2027: at 2:00 the clock goes back to 1:30. A slot 1:30–2:00 lasts an hour, the day
    # 24.5 hours: 23.5 at 0.20 and 1 at 0.60 = 4.70 + 0.60.
    zone = "Australia/Lord_Howe"
    slots = table(*EVERY_DAY, t0000="valley", t0130="peak", t0200="valley")
    sheet = tariff((0, document(zone, {"valley": 200_000, "peak": 600_000}, slots)))
    begins, ends = at(zone, "2027-04-04 00:00"), at(zone, "2027-04-05 00:00")
    assert ends - begins == 49 * 1_800_000
    lines = Customer(sheet).uses(begins, ends, 24_500)
    assert by_rate(lines) == {"valley": 23_500, "peak": 1_000}
    assert paid(lines) == money("5.3")


def test_havana_a_day_that_begins_at_one_begins_with_the_slot_of_midnight() -> None:
    # 14 March 2027: midnight is left out. The slot 0:00–1:30 has half an hour left.
    zone = "America/Havana"
    slots = table(*EVERY_DAY, t0000="valley", t0130="peak")
    sheet = tariff((0, document(zone, {"valley": 200_000, "peak": 600_000}, slots)))
    begins = at(zone, "2027-03-13 23:00")
    # 23:00 to 24:00 peak, half an hour valley (1:00 to 1:30), half an hour peak: 1 kWh an hour.
    lines = Customer(sheet).uses(begins, begins + 2 * 3_600_000, 2 * KWH)
    assert by_rate(lines) == {"peak": 1_500, "valley": 500}
    assert paid(lines) == money("1")  # 1.5 × 0.60 + 0.5 × 0.20


# -- ladder × time of use ---------------------------------------------------------------------

DAY_AND_NIGHT = table(*EVERY_DAY, t0000="valley", t0600="peak", t2200="valley")
LADDER_AND_TIME = document(
    SHANGHAI,
    {"peak": 617_000, "valley": 307_000},
    DAY_AND_NIGHT,
    ladder={"period": "month", "steps": steps((260 * KWH, 50_000), (400 * KWH, 300_000))},
)
"""0.617 from 6 to 22, 0.307 at night; above 260 kWh a month 0.05 more, above 400 kWh 0.30 more."""


def test_the_steps_add_the_same_to_each_rate_whatever_came_first() -> None:
    # May: 300 kWh by day, 150 by night. 300 × 0.617 + 150 × 0.307 = 185.10 + 46.05 = 231.15
    # 450 in all: 190 × 0.05 + 50 × (0.30 − 0.05) = 9.50 + 12.50 = 22.00;  together 253.15
    day, night = at(SHANGHAI, "2027-05-10 12:00"), at(SHANGHAI, "2027-05-10 23:00")
    for uses in ([(day, 300), (night, 150)], [(night, 150), (day, 300)]):
        customer = Customer(tariff((0, LADDER_AND_TIME)))
        lines = [
            line
            for begins, used in uses
            for line in customer.uses(begins, begins + 60_000, used * KWH)
        ]
        assert sum(line["rate_nano"] for line in lines) == money("231.15")
        assert sum(line["ladder_nano"] for line in lines) == money("22")
        assert paid(lines) == money("253.15")


def test_steps_by_rate_count_each_rate_alone_and_a_rate_without_steps_not_at_all() -> None:
    # Steps of the day rate alone: above 200 kWh 0.10 more. 300 by day, 500 by night.
    # 300 × 0.617 + 100 × 0.10 = 185.10 + 10.00;  500 × 0.307 = 153.50
    ladder = {"period": "month", "basis": "rate", "rate_steps": {"peak": steps((200 * KWH, 10**5))}}
    rates = {"peak": 617_000, "valley": 307_000}
    customer = Customer(tariff((0, document(SHANGHAI, rates, DAY_AND_NIGHT, ladder=ladder))))
    day, night = at(SHANGHAI, "2027-05-10 12:00"), at(SHANGHAI, "2027-05-10 23:00")
    (by_night,) = customer.uses(night, night + 60_000, 500 * KWH)
    (by_day,) = customer.uses(day, day + 60_000, 300 * KWH)
    assert (amount_of(by_night), amount_of(by_day)) == (money("153.5"), money("195.1"))
    assert (by_night["total_milli"], by_day["total_milli"]) == (0, 300 * KWH)
    assert list(customer.accumulations) == [(ACCOUNT, 12 * 2027 + 4, 1, RATES.index("peak"))]


@pytest.mark.parametrize(("scope", "amount"), [("account", "24"), ("meter", "20")])
def test_two_meters_share_the_steps_of_an_account_or_have_their_own(
    scope: str, amount: str
) -> None:
    # 0.95, above 10 kWh a month 0.50 more. Two meters, 8 and 12 kWh: 20 × 0.95 = 19.00.
    # Of the account 20 − 10 = 10 are above: 5.00. Of the second meter 12 − 10 = 2 are: 1.00.
    ladder = {"period": "month", "scope": scope, "steps": steps((10 * KWH, 500_000))}
    customer = Customer(tariff((0, document("UTC", {"flat": 950_000}, ladder=ladder))))
    noon = at("UTC", "2027-05-10 12:00")
    first = customer.uses(noon, noon + 1, 8 * KWH)
    assert paid(first + customer.uses(noon, noon + 1, 12 * KWH, OTHER_METER)) == money(amount)


# -- a version within the month ---------------------------------------------------------------

APRIL = 12 * 2027 + 3
OLD_PRICES = document(
    SHANGHAI,
    {"flat": 500_000},
    ladder={"period": "month", "steps": steps((200 * KWH, 100_000))},
)
NEW_PRICES = document(
    SHANGHAI,
    {"flat": 550_000},
    ladder={"period": "month", "steps": steps((240 * KWH, 200_000))},
)
"""0.50 and above 200 kWh 0.60; from 16 April on 0.55 and above 240 kWh 0.75."""


def april() -> tuple[Customer, list[Line]]:
    """Return a customer of both versions, and April's 300 kWh: half of its 30 days each."""
    changes = at(SHANGHAI, "2027-04-16 00:00")
    customer = Customer(tariff((0, OLD_PRICES), (changes, NEW_PRICES)))
    ends = at(SHANGHAI, "2027-05-01 00:00")
    return customer, customer.uses(at(SHANGHAI, "2027-04-01 00:00"), ends, 300 * KWH)


def test_a_version_within_the_month_goes_on_at_the_step_that_the_month_has_reached() -> None:
    # Old: 150 × 0.50 = 75.00, no step.
    # New: 150 × 0.55 = 82.50; the month stands at 150, ends at 300: 60 above 240 × 0.20 = 12.00
    _, (old, new) = april()
    assert (old["version"], amount_of(old)) == (1, money("75"))
    assert (new["version"], new["rate_nano"], new["ladder_nano"]) == (
        2,
        money("82.5"),
        money("12"),
    )
    assert (new["base_milli"], new["total_milli"]) == (150 * KWH, 300 * KWH)


def test_a_late_reading_moves_energy_to_the_old_version_and_the_new_one_follows() -> None:
    # On 16 April the register was at 220, not 150: 70 kWh more under the old version.
    # Old line:  70 × 0.50 = 35.00; at 220 it is 20 above 200, 20 × 0.10 = 2.00.
    # Follows:   the new version's 150 now lie on 220 to 370: 130 above 240, 26.00, not 12.00:
    #            14.00 more.
    # New line:  −70 × 0.55 = −38.50; 220 to 300 again: 60 above 240, 12.00, not 26.00: −14.00.
    # In all 35 + 2 + 14 − 38.5 − 14 = −1.50: from 169.50 to 168.00, which is what it comes to
    # where the readings came in order: 220 × 0.50 + 2 + 80 × 0.55 + 12 = 110 + 2 + 44 + 12.
    customer, first = april()
    lines = customer.prices({(1, 2, APRIL): 70 * KWH, (2, 2, APRIL): -70 * KWH})
    told = [(ln["version"], ln["rate"], ln["rate_nano"], ln["ladder_nano"]) for ln in lines]
    assert told == [
        (1, 2, money("35"), money("2")),
        (2, NO_RATE, 0, money("14")),
        (2, 2, money("-38.5"), money("-14")),
    ]
    assert (paid(first), paid(first) + paid(lines)) == (money("169.5"), money("168"))
    stands = {key: (each.base, each.total) for key, each in customer.accumulations.items()}
    assert stands == {
        (ACCOUNT, APRIL, 1, TOTAL): (0, 220 * KWH),
        (ACCOUNT, APRIL, 2, TOTAL): (220 * KWH, 80 * KWH),
    }


def test_a_flat_price_becomes_a_plan_and_nothing_of_before_counts_in_its_steps() -> None:
    # 0.40 flat until 16 April, 100 kWh of each half month: 40.00. Then BEIJING's 100 × 0.4883.
    changes = at(SHANGHAI, "2027-04-16 00:00")
    customer = Customer(tariff((0, 400_000), (changes, BEIJING)))
    begins, ends = at(SHANGHAI, "2027-04-01 00:00"), at(SHANGHAI, "2027-05-01 00:00")
    flat, plan = customer.uses(begins, ends, 200 * KWH)
    assert (flat["period"], amount_of(flat)) == (0, money("40"))
    assert (plan["period"], amount_of(plan)) == (2027, money("48.83"))
    assert (plan["base_milli"], plan["total_milli"]) == (0, 100 * KWH)


# -- moving in within a period ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("since", "days", "ladder_amount", "amount"),
    [
        # From 1 April or before: all 30 days, the step at 240 kWh; 200 × 0.50 = 100.00
        ("2027-03-02 12:00", 30, "0", "100"),
        # From 11 April: 20 of 30 days, the step at 160 kWh; 40 × 0.10 = 4.00 more
        ("2027-04-11 23:59", 20, "4", "104"),
        # On the last day: 1 of 30, the step at 8 kWh; 192 × 0.10 = 19.20 more
        ("2027-04-30 00:00", 1, "19.2", "119.2"),
        # Behind the period (a late figure of it): no day, all of it above; 20.00 more
        ("2027-05-01 00:00", 0, "20", "120"),
    ],
)
def test_who_moves_in_within_the_month_has_steps_as_high_as_days_are_left(
    since: str, days: int, ladder_amount: str, amount: str
) -> None:
    ladder = {"period": "month", "steps": steps((240 * KWH, 100_000))}
    sheet = tariff((0, document(SHANGHAI, {"flat": 500_000}, ladder=ladder)))
    customer = Customer(sheet, at(SHANGHAI, since))
    noon = at(SHANGHAI, "2027-04-30 12:00")
    (line,) = customer.uses(noon, noon + 1, 200 * KWH)
    assert (line["days"], line["days_of"]) == (days, 30)
    assert line["ladder_nano"] == money(ladder_amount)
    assert paid([line]) == money(amount)


def test_a_step_that_days_do_not_divide_begins_a_thousandth_early() -> None:
    # 22 May: 10 of 31 days. 240,000 × 10 / 31 = 77,419.35…: 77,419. Of 100 kWh are above
    # 22.581: × 0.10 = 2.2581
    ladder = {"period": "month", "steps": steps((240 * KWH, 100_000))}
    sheet = tariff((0, document(SHANGHAI, {"flat": 500_000}, ladder=ladder)))
    customer = Customer(sheet, at(SHANGHAI, "2027-05-22 08:00"))
    noon = at(SHANGHAI, "2027-05-30 12:00")
    (line,) = customer.uses(noon, noon + 1, 100 * KWH)
    assert line["ladder_nano"] == money("2.2581")


def test_the_day_of_moving_in_is_that_of_the_plans_zone() -> None:
    # 10 April 16:30 UTC is 11 April in Shanghai: 20 days. A leap year has 366.
    ladder = {"period": "year", "steps": steps((366 * KWH, 100_000))}
    monthly = {"period": "month", "steps": steps((240 * KWH, 100_000))}
    since = at("UTC", "2028-04-10 16:30")
    for zone, days in ((SHANGHAI, 20), ("UTC", 21)):
        terms = tariff((0, document(zone, {"flat": 1}, ladder=monthly))).terms(1)
        assert terms.days(12 * 2028 + 3, since) == (days, 30)
    # January to March 2028 have 31 + 29 + 31 = 91 days, and ten of April: 265 of 366 are left.
    terms = tariff((0, document(SHANGHAI, {"flat": 1}, ladder=ladder))).terms(1)
    assert terms.days(2028, since) == (265, 366)


# -- months that are over ---------------------------------------------------------------------


def test_what_belongs_to_a_closed_month_counts_in_the_oldest_open_one() -> None:
    # Steps at 100 kWh, 0.10 more. June is the newest, 90 kWh in May. 30 kWh of March come now:
    # they count in May, which then stands at 120: 20 × 0.10 = 2.00 beside 30 × 0.50.
    ladder = {"period": "month", "steps": steps((100 * KWH, 100_000))}
    customer = Customer(tariff((0, document(SHANGHAI, {"flat": 500_000}, ladder=ladder))))
    for day, used in (("05-10", 90), ("06-10", 10)):
        noon = at(SHANGHAI, f"2027-{day} 12:00")
        customer.uses(noon, noon + 1, used * KWH)
    march = at(SHANGHAI, "2027-03-10 12:00")
    (line,) = customer.uses(march, march + 1, 30 * KWH)
    may = 12 * 2027 + 4
    assert (line["period"], line["basis"], line["total_milli"]) == (may, 4, 120 * KWH)
    assert amount_of(line) == money("17")
    # With July's first energy May is forgotten too.
    july = at(SHANGHAI, "2027-07-10 12:00")
    customer.uses(july, july + 1, KWH)
    assert sorted(key[1] for key in customer.accumulations) == [may + 1, may + 2]


# -- surcharges and taxes ---------------------------------------------------------------------


def test_a_surcharge_and_vat_are_folded_to_six_decimals() -> None:
    # Energy 0.528300, funds 0.019101 and 0.000004, VAT 13% on each:
    #   0.528300 × 0.13 = 0.06867900
    #   0.019101 × 0.13 = 0.00248313     0.002483
    #   0.000004 × 0.13 = 0.00000052     0.000001
    # A kWh: 0.5283 + 0.019105 + 0.071163 = 0.618568; 1,234 kWh: 763.312912
    sheet = document(
        SHANGHAI,
        {"flat": 528_300},
        surcharges=[
            {"name": "fund", "price_micro": 19_101},
            {"name": "reserve", "price_micro": 4},
        ],
        taxes=[{"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges"]}],
    )
    noon = at(SHANGHAI, "2027-05-10 12:00")
    (line,) = Customer(tariff((0, sheet))).uses(noon, noon + 1, 1_234 * KWH)
    assert line["rate_nano"] == money("651.9222")  # 1,234 × 0.5283
    assert line["surcharge_nano"] == money("23.57557")  # 1,234 × 0.019105
    assert line["tax_nano"] == money("87.815142")  # 1,234 × 0.071163
    assert amount_of(line) == money("763.312912")


@pytest.mark.parametrize(
    ("price_micro", "ppm", "tax_micro"),
    [
        (50, 130_000, 7),  # 6.5: half up
        (49, 130_000, 6),  # 6.37
        (1, 499_999, 0),  # 0.499999
        (1, 500_000, 1),  # 0.5
        (0, 130_000, 0),
    ],
)
def test_a_tax_is_rounded_half_up_once_a_price(price_micro: int, ppm: int, tax_micro: int) -> None:
    taxes = [{"name": "tax", "ppm": ppm, "base": ["energy"]}]
    sheet = tariff((0, document("UTC", {"flat": price_micro}, taxes=taxes)))
    noon = at("UTC", "2027-05-10 12:00")
    (line,) = Customer(sheet).uses(noon, noon + 1, 1_000)
    assert line["tax_nano"] == 1_000 * tax_micro


def test_each_tax_is_rounded_for_itself_and_only_on_its_base() -> None:
    # Energy 0.000050: VAT 13% 6.5 → 7, duty 1% 0.5 → 1. Surcharge 0.000150: VAT 19.5 → 20.
    # 28 millionths a kWh; on 2 kWh 0.000056
    sheet = document(
        "UTC",
        {"flat": 50},
        surcharges=[{"name": "fund", "price_micro": 150}],
        taxes=[
            {"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges"]},
            {"name": "duty", "ppm": 10_000, "base": ["energy"]},
        ],
    )
    noon = at("UTC", "2027-05-10 12:00")
    (line,) = Customer(tariff((0, sheet))).uses(noon, noon + 1, 2 * KWH)
    assert line["tax_nano"] == money("0.000056")


def test_a_step_down_is_taxed_as_a_step_up_is() -> None:
    # 0.60; above 100 kWh 0.05 less, above 300 kWh 0.000050 less. VAT 13% on energy.
    # Taxes of the steps: −0.05 × 0.13 = −0.0065; −0.0000065, half up: −0.000006.
    # 400 kWh: 400 × 0.60 = 240; 200 × −0.05 + 100 × −0.00005 = −10.005
    # tax: 400 × 0.078 = 31.20; 200 × −0.0065 + 100 × −0.000006 = −1.3006; 29.8994
    sheet = document(
        SHANGHAI,
        {"flat": 600_000},
        ladder={"period": "month", "steps": steps((100 * KWH, -50_000), (300 * KWH, -50))},
        taxes=[{"name": "VAT", "ppm": 130_000, "base": ["energy"]}],
    )
    noon = at(SHANGHAI, "2027-05-10 12:00")
    (line,) = Customer(tariff((0, sheet))).uses(noon, noon + 1, 400 * KWH)
    assert line["rate_nano"] == money("240")
    assert line["ladder_nano"] == money("-10.005")
    assert line["tax_nano"] == money("29.8994")


# -- charges of a whole history ---------------------------------------------------------------


def charges_under(document_text: str) -> list[dict[str, Any]]:
    """Return A0's charges where all tariffs are this document: one, of 500 milli, without edge."""
    records = Book().play([*SETTLED, Frame(3_600_000, (Read(0, use_milli=500),))])
    model = ScalarShard(SHARD)
    found = []
    for record in records:
        if record.subject == "tariff-fact" and isinstance(record.value, dict):
            record.value.update(kind="plan", plan=document_text, price_micro=0)
        for sent in model.absorb(record)[0]:
            if sent.topic == "charges":
                found += [row for row in sent.record["rows"] if row["tariff_name"] == "T0"]
    return found


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"surcharges": [{"name": "fund", "price_micro": 0}]},
        {"taxes": [{"name": "VAT", "ppm": 0, "base": ["energy"]}]},
    ],
)
def test_a_plain_plan_tells_a_price_whatever_its_rate_is_called(more: dict[str, Any]) -> None:
    (charge,) = charges_under(document(BERLIN, {"peak": 700_000}, **more))
    assert (charge["price_micro"], charge["amount_nano"]) == (700_000, 500 * 700_000)
    assert charge["lines"] == []


@pytest.mark.parametrize(
    "more",
    [
        {"ladder": {"period": "month", "steps": steps((10**12, 1))}},
        {
            "seasons": [
                {"name": "all", "begins": "01-01", "days": [table(*EVERY_DAY, t0000="flat")]}
            ]
        },
    ],
)
def test_a_plan_with_a_ladder_or_seasons_tells_lines_also_where_they_come_to_nothing(
    more: dict[str, Any],
) -> None:
    (charge,) = charges_under(document("UTC", {"flat": 700_000}, **more))
    assert (charge["price_micro"], charge["amount_nano"]) == (0, 500 * 700_000)
    (line,) = charge["lines"]
    assert (line["energy_milli"], line["rate_nano"]) == (500, 500 * 700_000)
