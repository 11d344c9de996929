"""The rules of a policy: the document at its door, when nobody is cut, and the verdict.

Method: documents that are wrong in one thing each; windows about midnight, a holiday and two
changes of the clock, their instants written as a wall clock shows them; and the verdict with every
reason in its place, by grounds that hold all of them but those before it.
"""

import json
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.policies.rules import NONE, Rules, read
from services.common.policies.windows import first_no_cut_ms, why_nobody_is_cut
from services.metering.domain.verdict import REFUSALS, Grounds, Verdict, verdict

MINUTE_MS = 60_000
DAY_MS = 86_400_000
NIGHTS = {"days": ["weekday", "weekend"], "begins": "22:00", "ends": "08:00"}
SHANGHAI, ST_JOHNS = "Asia/Shanghai", "America/St_Johns"


def rules(*windows: dict[str, Any], zone: str = SHANGHAI, **more: Any) -> Rules:
    return Rules.model_validate({"zone": zone, "no_cut": windows, **more})


def at(text: str, zone: str = SHANGHAI, *, fold: int = 0) -> int:
    """Return the instant at which a zone's wall clock shows `text`."""
    shown = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)
    return int(shown.timestamp()) * 1000


def is_no_cut(held: Rules, at_ms: int) -> bool:
    return first_no_cut_ms(held, at_ms, at_ms + 1) is not None


def windowed(days: list[str], begins: str, ends: str) -> str:
    window = {"days": days, "begins": begins, "ends": ends}
    return json.dumps({"zone": "UTC", "no_cut": [window]})


# The document


def test_a_policy_without_a_document_has_the_rules_of_an_empty_one() -> None:
    assert read(None) == read("{}") == NONE
    assert (NONE.qualities, NONE.grace_ms, NONE.notice, NONE.no_cut) == ("AVM", 0, None, ())


def test_equal_rules_have_equal_texts_and_are_read_back() -> None:
    held = rules(NIGHTS, grace_minutes=5, holidays=["2026-10-01"])
    assert read(held.text()) == held
    assert held.text() == read(f" {held.text()} ").text()


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{", "document"),
        ('{"zone": "Asia/Atlantis"}', "zone"),
        ('{"no_cut": [{"days": ["weekday"], "begins": "22:00", "ends": "08:00"}]}', "zone"),
        (windowed([], "22:00", "08:00"), "no_cut"),
        (windowed(["monday"], "22:00", "08:00"), "no_cut"),
        (windowed(["weekday"], "22:00", "24:00"), "no_cut"),
        ('{"holidays": ["2026-10-01"], "workdays": ["2026-10-01"]}', "workdays"),
        ('{"qualities": "AQ"}', "qualities"),
        ('{"qualities": ""}', "qualities"),
        ('{"qualities": "AA"}', "qualities"),
        ('{"grace_minutes": -1}', "grace_minutes"),
        ('{"grace_minutes": 1.5}', "grace_minutes"),
        ('{"hysteresis_nano": 1e9}', "hysteresis_nano"),
        ('{"unusual_factor": 1}', "unusual_factor"),
        ('{"unusual_factor": 2.5}', "unusual_factor"),
        ('{"idle_days": 0}', "idle_days"),
        ('{"notice": {"required": true}}', "notice"),
        ('{"grace": 5}', "grace"),
    ],
)
def test_a_document_that_is_wrong_is_refused_with_its_place(text: str, place: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(text)
    assert (refused.value.reason, refused.value.field) == (Reason.INVALID_ARGUMENT, "rules")
    assert refused.value.message.startswith(f"rules, {place}")


# Windows


@pytest.mark.parametrize(
    ("wall", "expected"),
    [
        ("2026-09-22 21:59:59", False),
        ("2026-09-22 22:00:00", True),
        ("2026-09-23 00:00:00", True),
        ("2026-09-23 07:59:59", True),
        ("2026-09-23 08:00:00", False),
        ("2026-09-30 23:00:00", True),
        ("2026-10-01 07:00:00", True),  # of the night before, though today is a holiday
        ("2026-10-01 22:00:00", False),  # a holiday's night is no window
        ("2026-10-02 07:00:00", False),
    ],
)
def test_a_night_begins_on_its_day_and_ends_on_the_next(wall: str, expected: bool) -> None:
    assert is_no_cut(rules(NIGHTS, holidays=["2026-10-01"]), at(wall)) is expected


def test_a_window_of_equal_times_is_a_whole_day() -> None:
    held = rules({"days": ["weekend"], "begins": "00:00", "ends": "00:00"}, workdays=["2026-09-26"])
    sunday = at("2026-09-27 00:00:00")
    assert [is_no_cut(held, sunday + ms) for ms in (-1, 0, DAY_MS - 1, DAY_MS)] == [
        False,
        True,
        True,
        False,
    ]
    assert not is_no_cut(held, at("2026-09-26 12:00:00"))  # a Saturday that is worked


def test_the_hour_that_a_change_of_the_clock_repeats_lies_in_a_window_twice() -> None:
    held = rules({"days": ["weekend"], "begins": "01:15", "ends": "01:45"}, zone="America/New_York")
    first, second = (at("2026-11-01 01:30:00", "America/New_York", fold=f) for f in (0, 1))
    assert second - first == 60 * MINUTE_MS
    assert is_no_cut(held, first)
    assert is_no_cut(held, second)
    assert not is_no_cut(held, first + 30 * MINUTE_MS)
    assert first_no_cut_ms(held, first + 20 * MINUTE_MS, second) == second - 15 * MINUTE_MS


def test_an_hour_that_a_change_of_the_clock_skips_never_comes() -> None:
    held = rules({"days": ["weekend"], "begins": "02:15", "ends": "02:45"}, zone="America/New_York")
    before = at("2026-03-08 01:59:00", "America/New_York")
    assert first_no_cut_ms(held, before, before + 60 * MINUTE_MS) is None


def test_the_first_instant_of_a_window_is_found_in_a_span_and_not_at_its_end() -> None:
    held, begins_ms = rules(NIGHTS), at("2026-09-22 22:00:00")
    assert first_no_cut_ms(held, begins_ms - 5 * MINUTE_MS, begins_ms + 1) == begins_ms
    assert first_no_cut_ms(held, begins_ms - 5 * MINUTE_MS, begins_ms) is None
    assert first_no_cut_ms(held, begins_ms + 7, begins_ms + 9) == begins_ms + 7
    assert first_no_cut_ms(NONE, 0, DAY_MS) is None


# Rules under which nobody is ever cut

ALL_DAYS, ORDINARY = ["weekday", "weekend", "holiday"], ["weekday", "weekend"]
FESTIVAL = ["2026-10-01", "2026-10-02", "2026-10-03", "2026-10-06", "2026-10-12"]
"""Dates behind and before days of each kind."""


@pytest.mark.parametrize(
    ("windows", "holidays", "always"),
    [
        ([(ALL_DAYS, "00:00", "00:00")], FESTIVAL, True),
        ([(ALL_DAYS, "00:00", "23:30")], FESTIVAL, False),
        ([(ORDINARY, "06:00", "06:00")], [], True),
        ([(ORDINARY, "06:00", "06:00")], FESTIVAL, False),
        ([(["weekday"], "00:00", "00:00")], [], False),
        ([(ORDINARY, "22:00", "08:00"), (ORDINARY, "07:30", "22:00")], [], True),
        ([(ORDINARY, "22:00", "08:00"), (ORDINARY, "08:30", "22:00")], [], False),
        ([(ORDINARY, "22:00", "08:00"), (ALL_DAYS, "00:00", "22:00")], FESTIVAL, False),
        ([(ALL_DAYS, "12:00", "00:00"), (ALL_DAYS, "00:00", "12:00")], FESTIVAL, True),
        ([(["weekday"], "18:00", "18:00"), (["weekend"], "08:00", "08:00")], [], False),
        ([], [], False),
    ],
)
def test_windows_that_leave_no_minute_of_any_day_are_found(
    windows: list[tuple[list[str], str, str]], holidays: list[str], always: bool
) -> None:
    named = [dict(zip(("days", "begins", "ends"), window, strict=True)) for window in windows]
    held = rules(*named, holidays=holidays)
    first_ms = at("2026-09-21 00:00:00")
    half_hours = range(first_ms, first_ms + 28 * DAY_MS, 30 * MINUTE_MS)
    assert all(is_no_cut(held, at_ms) for at_ms in half_hours) is always
    assert (why_nobody_is_cut(held) is not None) is always


def test_qualities_that_no_device_tells_are_found() -> None:
    assert "quality A" in str(why_nobody_is_cut(rules(qualities="ESM")))
    assert why_nobody_is_cut(NONE) is why_nobody_is_cut(rules(NIGHTS, qualities="A")) is None


# The verdict

NOW_MS = at("2026-09-22 23:00:00")
NOTICE = {"lead_minutes": 30, "required": True}
STRICT = rules(grace_minutes=10, notice=NOTICE)
ALL_AGAINST: dict[str, Any] = {
    "now_ms": NOW_MS,
    "keep_power_until_ms": NOW_MS + 1,
    "promise_until_ms": NOW_MS + 1,
    "is_forced": True,
    "is_no_cut": True,
    "received_at_ms": NOW_MS - 900_001,
    "max_evidence_age_ms": 900_000,
    "pushed_from_ms": NOW_MS - 900_000 - 1_020_001,
    "was_silent": True,
    "quality": "E",
    "arrears_since_ms": NOW_MS - 10 * MINUTE_MS + 1,
}
MENDED: list[tuple[str, dict[str, Any]]] = [
    ("keep-power", {"keep_power_until_ms": NOW_MS}),
    ("promised", {"promise_until_ms": NOW_MS}),
    ("forced", {"is_forced": False}),
    ("evidence-old", {"received_at_ms": NOW_MS - 900_000}),
    ("evidence-backfill", {"pushed_from_ms": NOW_MS - 900_000 - 1_020_000}),
    ("evidence-silent", {"was_silent": False}),
    ("evidence-quality", {"quality": "V"}),
    ("notice-pending", {"notice_at_ms": NOW_MS - 30 * MINUTE_MS + 1}),
    ("notice-running", {"notice_at_ms": NOW_MS - 30 * MINUTE_MS, "notice_outcome": "failed"}),
    ("notice-failed", {"notice_outcome": "delivered"}),
    ("grace", {"arrears_since_ms": NOW_MS - 10 * MINUTE_MS}),
]


def test_of_all_reasons_against_a_cut_the_first_is_told_and_the_last_to_go_lets_it_happen() -> None:
    grounds, told = dict(ALL_AGAINST), []
    for reason, mended in MENDED:
        told.append(verdict(STRICT, Grounds(**grounds)))
        assert told[-1] == Verdict(cut=False, reason=reason)
        grounds |= mended
    assert verdict(STRICT, Grounds(**grounds)) == Verdict(cut=False, reason="no-cut-window")
    grounds["is_no_cut"] = False
    assert verdict(STRICT, Grounds(**grounds)) == Verdict(cut=True, reason="threshold-reached")
    assert {one.reason for one in told} | {"no-cut-window"} == set(REFUSALS) - {""}


def test_a_notice_whose_delivery_is_not_required_needs_its_lead_alone() -> None:
    held = rules(notice={"lead_minutes": 30})
    free = {**ALL_AGAINST, "keep_power_until_ms": None, "promise_until_ms": None}
    free |= {"is_forced": False, "is_no_cut": False, "was_silent": False, "pushed_from_ms": None}
    free |= {"received_at_ms": NOW_MS, "quality": "A", "notice_at_ms": NOW_MS - 30 * MINUTE_MS}
    for outcome in (None, "failed", "delivered"):
        assert verdict(held, Grounds(**free, notice_outcome=outcome)).cut
