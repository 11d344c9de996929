"""What customers draw: BDEW standard load profiles, or a fixed power. Integers only.

Power is in microwatts and time in milliseconds, so energy is in nanojoules, exactly.
"""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from importlib import resources
from typing import Protocol

from tools.fleet.config import PROFILE_YEAR, LoadConfig

MICRO = 1_000_000
QUARTER_MS = 15 * 60 * 1_000
QUARTERS_PER_DAY = 96
DAYS = 365
YEAR_MS = DAYS * QUARTERS_PER_DAY * QUARTER_MS
BEGIN = datetime(PROFILE_YEAR, 1, 1)  # noqa: DTZ001 - the profile's local time
KINDS_OF_DAY = ("SA", "FT", "WT")
# The holidays of 2025 in all of Germany: the profiles take them as Sundays.
HOLIDAYS = frozenset(
    date(PROFILE_YEAR, month, day)
    for month, day in (
        (1, 1),
        (4, 18),
        (4, 21),
        (5, 1),
        (5, 29),
        (6, 9),
        (10, 3),
        (12, 25),
        (12, 26),
    )
)


@dataclass(frozen=True, slots=True)
class Step:
    """`power_uw` (microwatts, primary) holds for the next `lasts_ms`."""

    power_uw: int
    lasts_ms: int


class Load(Protocol):
    """What is drawn at a moment of a meter's life."""

    def step(self, age_ms: int) -> Step:
        """Return the power from `age_ms` on, and for how long it stays."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLoad:
    """The same power at all times."""

    power_w: int

    def step(self, age_ms: int) -> Step:
        assert age_ms >= 0
        return Step(self.power_w * MICRO, YEAR_MS)


@dataclass(frozen=True, slots=True)
class ProfileLoad:
    """A standard load profile from a moment of its year on; after a year it begins again.

    `year_wh` holds the Wh of each quarter-hour for a million kWh a year. Scaled to `yearly_kwh`
    that is Wh x yearly_kwh / 10^6, and as power x 4 W: in microwatts the 10^6 cancel out.
    """

    year_wh: tuple[int, ...]
    yearly_kwh: int
    power_scale: int
    start_ms: int

    def step(self, age_ms: int) -> Step:
        assert age_ms >= 0
        quarter, into_ms = divmod((self.start_ms + age_ms) % YEAR_MS, QUARTER_MS)
        power_uw = self.year_wh[quarter] * 4 * self.yearly_kwh * self.power_scale
        return Step(power_uw, QUARTER_MS - into_ms)


def make_load(config: LoadConfig) -> Load:
    """Return the load that a meter's configuration describes."""
    if config.power_w is not None:
        return FixedLoad(config.power_w)
    assert config.profile is not None
    return ProfileLoad(
        year_wh=year_wh(config.profile),
        yearly_kwh=config.yearly_kwh,
        power_scale=config.power_scale,
        start_ms=(config.start - BEGIN) // timedelta(milliseconds=1),
    )


@cache
def year_wh(profile: str) -> tuple[int, ...]:
    """Return the Wh of all 35,040 quarter-hours of the year for a million kWh a year.

    The household profile's dynamic factor (a polynomial over the year) is left out: the months'
    columns carry the seasons.
    """
    text = resources.files("tools.fleet").joinpath("profiles", f"{profile}.csv").read_text("utf-8")
    rows = [line.split(",")[1:] for line in text.splitlines()[2:]]
    assert len(rows) == QUARTERS_PER_DAY
    columns = [tuple(milli(cell) for cell in column) for column in zip(*rows, strict=True)]
    assert len(columns) == 12 * len(KINDS_OF_DAY)
    days = (BEGIN.date() + timedelta(days=number) for number in range(DAYS))
    return tuple(wh for day in days for wh in columns[column_index(day)])


def column_index(day: date) -> int:
    """Return which of the 36 columns (12 months x 3 kinds of day) describes a day."""
    if day.weekday() == 6 or day in HOLIDAYS:
        kind = "FT"
    elif day.weekday() == 5:
        kind = "SA"
    else:
        kind = "WT"
    return (day.month - 1) * len(KINDS_OF_DAY) + KINDS_OF_DAY.index(kind)


def milli(text: str) -> int:
    """Return a decimal with three places, e.g. "20.126", as thousandths."""
    whole, _, places = text.partition(".")
    assert len(places) == 3
    return int(whole) * 1_000 + int(places)
