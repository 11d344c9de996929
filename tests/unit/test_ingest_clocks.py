"""Goal: a wrong clock is set, seldom, and never where that could do harm.

Method: the rule alone, at instants chosen by hand; what is written, byte by byte. The exchange
itself: tests/integration/test_ingest_lines.py.
"""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from services.common.kernel.profiles import ModbusProfile
from services.common.runtime.profiles import profiles
from services.ingest.domain.clocks import AGAIN_MS, NOT_TAKEN, SET, ClockCare, wall_clock

SHANGHAI = ZoneInfo("Asia/Shanghai")
NOON_MS = int(datetime(2026, 3, 1, 12, 0, tzinfo=SHANGHAI).timestamp()) * 1_000
MINUTE_MS = 60_000


def is_due(
    care: ClockCare, ahead_ms: int | None, *, meter: str = "M1", at_ms: int = NOON_MS
) -> bool:
    return care.is_due(meter, "p", ahead_ms=ahead_ms, now_ms=at_ms, zone=SHANGHAI)


@pytest.mark.parametrize(
    ("ahead_ms", "due"),
    [(0, False), (120_000, False), (-120_000, False), (120_001, True), (-120_001, True)],
)
def test_a_clock_is_set_where_metering_would_flag_it(ahead_ms: int, due: bool) -> None:
    assert is_due(ClockCare(), ahead_ms) is due


def test_a_clock_that_tells_no_time_is_set() -> None:
    assert is_due(ClockCare(), None)


def test_a_clock_is_tried_once_a_day_whatever_came_of_it() -> None:
    care = ClockCare()
    care.tried("M1", "p", SET, NOON_MS)
    assert not is_due(care, 10**6, at_ms=NOON_MS + AGAIN_MS - 1)
    assert is_due(care, 10**6, at_ms=NOON_MS + AGAIN_MS)
    assert is_due(care, 10**6, meter="M2")


def test_after_one_clock_that_did_not_follow_none_of_its_profile_is_set() -> None:
    care = ClockCare()
    care.tried("M1", "p", NOT_TAKEN, NOON_MS)
    assert not is_due(care, 10**6, meter="M2", at_ms=NOON_MS + 2 * AGAIN_MS)


@pytest.mark.parametrize(
    ("minutes", "due"), [(-11, True), (-10, False), (0, False), (9, False), (10, True)]
)
def test_no_clock_jumps_about_the_sites_midnight(minutes: int, due: bool) -> None:
    midnight_ms = NOON_MS + 12 * 60 * MINUTE_MS
    assert is_due(ClockCare(), 10**6, at_ms=midnight_ms + minutes * MINUTE_MS) is due


def test_a_clock_is_set_to_what_the_wall_of_its_site_shows() -> None:
    """2026-03-01, a Sunday, 13:14:15 in Shanghai: ss mm hh WW DD MM YY, three bytes of nothing."""
    profile = profiles()["acrel-dtsy1352"]
    assert isinstance(profile, ModbusProfile)
    assert profile.clock is not None
    at_ms = int(datetime(2026, 3, 1, 5, 14, 15, tzinfo=UTC).timestamp()) * 1_000
    words = profile.clock.words(wall_clock(at_ms, SHANGHAI))
    octets = b"".join(word.to_bytes(2, "big") for word in words)
    assert octets.hex(" ") == "0f 0e 0d 00 01 03 1a 00 00 00"
    assert (profile.clock.function, profile.clock.address) == (0x20, 0x0354)
