"""Rules 6 and 7 of metering under a policy with rules: who is cut, when, and why not.

Method: a log of one account that runs out (metering_log.py), a policy whose rules hold back its
cut, and what each reading or order told. When windows lie and in which order reasons are told is
test_policy_rules.py's affair.
"""

import json
from typing import Any

from services.metering.domain.messages import Absorbed
from tests.unit.metering_log import (
    CREDIT_NANO,
    KWH_MILLI,
    LEASE_MS,
    OPEN,
    Log,
    account,
    kinds,
    meter,
    of,
    policy,
    reading,
    standing_log,
)

MINUTE_MS = 60_000


def ruled_log(credit: int = 1, **rules: Any) -> Log:
    """Return a log whose account is cut at -1, under rules."""
    log = standing_log(credit=credit)
    log.fact(policy(version=2, rules=json.dumps(rules)))
    return log


def told(done: Absorbed) -> list[tuple[str, str]]:
    return [(alarm["kind"], alarm["reason"]) for alarm in of(done, "alarm")]


def test_an_alarm_is_cleared_only_above_its_threshold_and_the_hysteresis() -> None:
    log = ruled_log(credit=12, hysteresis_nano=2 * CREDIT_NANO)
    assert kinds(log.use(8 * KWH_MILLI)) == ["alarm-2"]
    for revision, (credit, alarms) in enumerate(
        ((15, []), (16, ["cleared"]), (20, []), (21, ["cleared"]), (18, ["alarm-1"]))
    ):
        done = log.fact(account(credit=credit, revision=revision + 1))
        assert (credit, kinds(done)) == (credit, alarms)


def test_grace_runs_from_the_reading_that_found_nothing_left_and_the_next_behind_it_cuts() -> None:
    log = ruled_log(grace_minutes=5)
    assert told(log.use(2 * KWH_MILLI)) == [("not-cut", "grace")]
    assert told(log.later(5 * MINUTE_MS - 1).use(3 * KWH_MILLI)) == []
    assert told(log.wake()) == []
    assert told(log.later(1).use(3 * KWH_MILLI + 1)) == [("cut", "threshold-reached")]


def test_who_pays_and_runs_out_again_has_grace_again() -> None:
    log = ruled_log(grace_minutes=5)
    log.use(2 * KWH_MILLI)
    log.later(4 * MINUTE_MS).fact(account(credit=2, revision=1))
    assert told(log.later(2 * MINUTE_MS).use(4 * KWH_MILLI)) == [("not-cut", "grace")]


def test_no_cut_falls_into_a_window_and_a_lease_ends_where_one_begins() -> None:
    # Readings come from 16:53:21 on the wall clock of Shanghai, a Thursday.
    window = {"days": ["weekday"], "begins": "17:00", "ends": "18:00"}
    log = ruled_log(zone="Asia/Shanghai", no_cut=[window])
    begins_ms = log.now_ms - log.now_ms % MINUTE_MS + 7 * MINUTE_MS
    log.now_ms = begins_ms - MINUTE_MS
    (intent,) = of(log.use(2 * KWH_MILLI), "relay-intent")
    assert intent["send_before_ms"] == begins_ms
    log.now_ms = begins_ms
    done = log.use(3 * KWH_MILLI)  # its relay is closed still, and its lease over
    assert (told(done), of(done, "relay-intent")) == ([("not-cut", "no-cut-window")], [])
    log.now_ms = begins_ms + 60 * MINUTE_MS
    (intent,) = of(log.use(4 * KWH_MILLI), "relay-intent")
    assert (intent["cause"], intent["send_before_ms"]) == ("lease-renewed", log.now_ms + LEASE_MS)


def test_an_estimate_cuts_nobody_and_the_first_actual_reading_does() -> None:
    log = ruled_log()
    done = log.use(2 * KWH_MILLI, quality=ord("E"))
    assert told(done) == [("not-cut", "evidence-quality")]
    assert told(log.later(1).use(2 * KWH_MILLI + 1)) == [("cut", "threshold-reached")]


def test_keep_power_gives_power_again_and_when_it_is_over_the_next_reading_cuts() -> None:
    log = standing_log(credit=1)
    log.fact(meter("M2"))
    assert kinds(log.use(2 * KWH_MILLI)) == ["cut", "open", "open"]
    until_ms = log.now_ms + MINUTE_MS
    done = log.fact(account(credit=1, revision=1, keep_power_until_ms=until_ms))
    (alarm,), intents = of(done, "alarm"), of(done, "relay-intent")
    assert (alarm["kind"], alarm["reason"], alarm["level_after"]) == (
        "restored",
        "keep-power",
        "alarm-2",
    )
    assert [(one["wanted"], one["cause"]) for one in intents] == [("closed", "keep-power")] * 2
    assert told(log.later(MINUTE_MS - 1).use(9 * KWH_MILLI)) == [("not-cut", "keep-power")]
    assert kinds(log.later(1).fact(account(credit=1, revision=2))) == []
    assert kinds(log.use(9 * KWH_MILLI + 1)) == ["cut", "open", "open"]


def test_a_promise_is_kept_until_its_instant_and_an_older_one_gives_no_power() -> None:
    log = standing_log(credit=1)
    log.use(2 * KWH_MILLI)
    assert kinds(log.fact(account(credit=1, revision=1, promise_until_ms=log.now_ms))) == []
    done = log.fact(account(credit=1, revision=2, promise_until_ms=log.now_ms + 1))
    assert (told(done), kinds(done)) == ([("restored", "promised")], ["restored", "closed"])
    assert told(log.use(2 * KWH_MILLI + 1, device_time_ms=log.now_ms + 1)) == [
        ("not-cut", "promised")
    ]


def test_a_reason_is_told_again_only_when_another_was_told_between() -> None:
    log = ruled_log(qualities="A", grace_minutes=1)
    reasons = []
    for quality, duration_ms in (("E", 1), ("E", 1), ("A", 1), ("E", 1), ("A", MINUTE_MS)):
        log.later(duration_ms)
        done = log.use(2 * KWH_MILLI + log.now_ms % 1_000, quality=ord(quality))
        reasons += [reason for kind, reason in told(done) if kind in {"cut", "not-cut"}]
    assert reasons == [
        "evidence-quality",
        "grace",
        "evidence-quality",
        "threshold-reached",
    ]


def test_a_lease_is_not_renewed_while_a_rule_forbids_the_cut() -> None:
    log = standing_log(credit=1)
    log.use(2 * KWH_MILLI)
    log.later(LEASE_MS).fact(policy(version=2, rules='{"qualities": "V"}'))
    done = log.use(3 * KWH_MILLI)
    assert (told(done), kinds(done)) == ([("not-cut", "evidence-quality")], ["not-cut"])
    assert kinds(log.later(1).use(3 * KWH_MILLI + 1, quality=ord("V"))) == ["open"]
    assert kinds(log.later(LEASE_MS).use(4 * KWH_MILLI, relay_bits=OPEN)) == []


def test_a_correction_alone_cuts_nobody() -> None:
    log = standing_log(credit=3)
    log.fact(meter("M2"))
    log.read(
        reading(KWH_MILLI, at_ms=log.now_ms), reading(KWH_MILLI, at_ms=log.now_ms, meter_id="M2")
    )
    left = {
        **meter("M2", "A2"),
        "previous_account_id": "A1",
        "previous_account_key": account()["account_key"],
        "previous_shard": account()["shard"],
        "previous_epoch": 1,
        "closing_register_milli": 9 * KWH_MILLI,
        "opening_register_milli": 9 * KWH_MILLI,
        "epoch": 2,
        "revision": 1,
    }
    log.fact(account("A2"))
    assert "cut" not in kinds(log.later(1).fact(left))
    assert "cut" in kinds(log.later(1).use(KWH_MILLI + 1))
