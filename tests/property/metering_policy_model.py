"""Rule 6 of metering as a scalar model: what must hold before arrears cut.

Written from services/metering/README.md alone. It reads a policy's rules as plain JSON, and the
wall clock minute by minute.
"""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

MINUTE_MS = 60_000

Fact = dict[str, Any]
Rules = dict[str, Any]


def rules_of(policy: Fact) -> Rules:
    return json.loads(policy["rules"] or "{}")


def hysteresis(policy: Fact) -> int:
    return int(rules_of(policy).get("hysteresis_nano", 0))


def keeping_order(account: Fact, now: int) -> str:
    """Return the order of an operator that keeps an account on power, or nothing."""
    for reason, until in (("keep-power", "keep_power_until_ms"), ("promised", "promise_until_ms")):
        if account[until] is not None and account[until] > now:
            return reason
    return ""


class Standing(NamedTuple):
    """Since when an account is in arrears; whether a person's order holds all its relays.

    When its notice went out, and what became of it; whether the meter was silent until it was read.
    """

    arrears_since: int
    is_forced: bool
    notice_at: int | None
    notice_outcome: str | None
    was_silent: bool = False


def cut_not_before(policy: Fact, arrears_since: int, now: int) -> int:
    """Return until when lead and grace last of a notice that goes out now."""
    rules = rules_of(policy)
    lead, grace = rules["notice"]["lead_minutes"], rules.get("grace_minutes", 0)
    return int(max(now + lead * MINUTE_MS, arrears_since + grace * MINUTE_MS))


def refusal(policy: Fact, account: Fact, reading: Fact, standing: Standing, now: int) -> str:
    """Return the first reason in the rule's order not to cut, or nothing."""
    rules = rules_of(policy)
    if order := keeping_order(account, now):
        return order
    if standing.is_forced:
        return "forced"
    if now - reading["received_at_ms"] > policy["max_evidence_age_ms"]:
        return "evidence-old"
    if is_backfill(policy, reading):
        return "evidence-backfill"
    if standing.was_silent:
        return "evidence-silent"
    if chr(reading["quality"]) not in rules.get("qualities", "AVM"):
        return "evidence-quality"
    if reason := notice_refusal(rules, standing, now):
        return reason
    if now - standing.arrears_since < rules.get("grace_minutes", 0) * MINUTE_MS:
        return "grace"
    if is_no_cut(rules, now):
        return "no-cut-window"
    return ""


def is_backfill(policy: Fact, reading: Fact) -> bool:
    """Say whether a device kept a reading before it pushed it: its clock may be 2 min off."""
    waited = reading["received_at_ms"] - reading["device_time_ms"]
    was_pushed = reading["began_at_ms"] >= reading["received_at_ms"]
    return bool(was_pushed and waited > policy["max_evidence_age_ms"] + 2 * MINUTE_MS)


def notice_refusal(rules: Rules, standing: Standing, now: int) -> str:
    notice = rules.get("notice")
    if not notice:
        return ""
    if standing.notice_at is None:
        return "notice-pending"
    if now - standing.notice_at < notice["lead_minutes"] * MINUTE_MS:
        return "notice-running"
    if notice.get("required") and standing.notice_outcome != "delivered":
        return "notice-failed"
    return ""


def kind_of_day(rules: Rules, day: str, weekday: int) -> str:
    if day in rules.get("holidays", ()):
        return "holiday"
    if day in rules.get("workdays", ()):
        return "weekday"
    return "weekday" if weekday < 5 else "weekend"


def is_no_cut(rules: Rules, at: int) -> bool:
    """Say whether the wall clock stands in a window: across midnight where it ends first."""
    if not rules.get("no_cut"):
        return False
    wall = datetime.fromtimestamp(at // 1000, UTC).astimezone(ZoneInfo(rules["zone"]))
    yesterday = wall.date() - timedelta(days=1)
    time = f"{wall:%H:%M}"
    today = kind_of_day(rules, str(wall.date()), wall.weekday())
    before = kind_of_day(rules, str(yesterday), yesterday.weekday())
    for window in rules["no_cut"]:
        begins, ends = window["begins"], window["ends"]
        if begins < ends:
            if today in window["days"] and begins <= time < ends:
                return True
        elif (today in window["days"] and time >= begins) or (
            before in window["days"] and time < ends
        ):
            return True
    return False


def first_no_cut(policy: Fact, now: int, until: int) -> int:
    """Return the first instant behind now, before `until`, in a window; `until` if there is none.

    Windows begin when a minute does.
    """
    rules = rules_of(policy)
    minute = (now // MINUTE_MS + 1) * MINUTE_MS
    while minute < until:
        if is_no_cut(rules, minute):
            return minute
        minute += MINUTE_MS
    return until


def hour_of(rules: Rules, at: int) -> int:
    """Return the hour that the wall clock of the rules' zone shows."""
    zone = ZoneInfo(rules.get("zone") or "UTC")
    return datetime.fromtimestamp(at // 1000, UTC).astimezone(zone).hour


def code_of(power: int) -> int:
    """Return 0 for no power; else 1 + 8 a doubling + the eighth of it in which a power lies."""
    if power == 0:
        return 0
    doublings = 0
    while 2 ** (doublings + 1) <= power:
        doublings += 1
    return 8 * doublings + (power - 2**doublings) * 8 // 2**doublings + 1


def powers() -> Iterator[int]:
    """Yield powers, ascending: the lowest of each code is among them."""
    yield from range(1, 16)
    for doublings in range(4, 64):
        for eighth in range(8):
            yield 2**doublings + eighth * 2**doublings // 8
