"""Rule 6 of metering as a scalar model: what must hold before arrears cut.

Written from services/metering/README.md alone. It reads a policy's rules as plain JSON, and the
wall clock minute by minute.
"""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
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


def refusal(policy: Fact, account: Fact, reading: Fact, arrears_since: int, now: int) -> str:
    """Return the first reason in the rule's order not to cut, or nothing."""
    rules = rules_of(policy)
    if order := keeping_order(account, now):
        return order
    if now - reading["received_at_ms"] > policy["max_evidence_age_ms"]:
        return "evidence-old"
    if chr(reading["quality"]) not in rules.get("qualities", "AVM"):
        return "evidence-quality"
    if now - arrears_since < rules.get("grace_minutes", 0) * MINUTE_MS:
        return "grace"
    if is_no_cut(rules, now):
        return "no-cut-window"
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
