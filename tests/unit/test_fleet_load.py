"""Goal: customers draw what the BDEW profiles say, exactly.

Method: single quarter-hours are compared with cells read off the files by eye, and the year's sum
with the million kWh that the profiles are made for.
"""

import pytest

from tools.fleet.config import LoadConfig
from tools.fleet.load import QUARTER_MS, YEAR_MS, Load, make_load, year_wh


def profile(name: str, start: str, **more: int) -> Load:
    described = {"profile": name, "yearly_kwh": 1_000_000, "start": start, **more}
    return make_load(LoadConfig.model_validate(described))


@pytest.mark.parametrize("name", ["h25", "g25", "l25"])
def test_a_year_of_a_profile_is_a_million_kilowatt_hours_within_half_a_percent(name: str) -> None:
    total_wh = sum(year_wh(name))
    assert len(year_wh(name)) == 365 * 96
    assert abs(total_wh - 1_000_000_000) < 5_000_000


@pytest.mark.parametrize(
    ("start", "cell_wh"),
    [
        ("2025-01-02", 20_126),  # Thursday: January, WT
        ("2025-01-04", 22_152),  # Saturday: January, SA
        ("2025-01-05", 23_148),  # Sunday: January, FT
        ("2025-01-01", 23_148),  # New Year, a Wednesday: January, FT
        ("2025-04-18", 24_952),  # Good Friday: April, FT
        ("2025-12-31", 19_959),  # Wednesday: December, WT
    ],
)
def test_a_quarter_hour_draws_what_its_kind_of_day_says(start: str, cell_wh: int) -> None:
    # A million kWh a year: the cell's Wh in a quarter of an hour are four times as many watts.
    assert profile("h25", start).step(0).power_uw == cell_wh * 4 * 1_000_000


def test_power_scales_and_time_does_not() -> None:
    one = profile("g25", "2025-03-03T12:00:00").step(0)
    thousand = profile("g25", "2025-03-03T12:00:00", power_scale=1_000).step(0)
    assert thousand.power_uw == one.power_uw * 1_000
    assert thousand.lasts_ms == one.lasts_ms == QUARTER_MS


def test_a_life_that_begins_inside_a_quarter_hour_keeps_only_the_rest_of_it() -> None:
    load = profile("h25", "2025-01-02T00:14:59")
    assert load.step(0).lasts_ms == 1_000
    assert load.step(1_000).lasts_ms == QUARTER_MS


def test_after_a_year_the_profile_begins_again() -> None:
    load = profile("h25", "2025-06-01")
    assert load.step(YEAR_MS + 5) == load.step(5)
