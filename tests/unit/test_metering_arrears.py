"""Rules 6 and 7 of metering under a policy with rules: who is cut, when, and why not.

Method: a log of one account that runs out (metering_log.py), a policy whose rules hold back its
cut, and what each reading or order told. When windows lie and in which order reasons are told is
test_policy_rules.py's affair.
"""

import json
from typing import Any

import pytest

from services.common.runtime.codec import decode, encode, schema_header
from services.metering.domain.messages import Absorbed
from tests.unit.metering_log import (
    CREDIT_NANO,
    EVIDENCE_AGE_MS,
    KWH_MILLI,
    LEASE_MS,
    OPEN,
    Log,
    account,
    house,
    kinds,
    meter,
    moved,
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


def test_what_is_decided_cites_when_the_arrears_began() -> None:
    log = ruled_log(grace_minutes=5)
    began_ms = log.now_ms
    refused = log.use(2 * KWH_MILLI)
    cut = log.later(5 * MINUTE_MS).use(3 * KWH_MILLI)
    for cited in (*of(refused, "alarm"), *of(cut, "alarm"), *of(cut, "relay-intent")):
        assert cited["arrears_since_ms"] == began_ms
    assert kinds(log.fact(account(credit=9, revision=1))) == ["restored", "closed"]
    (alarm,) = of(log.later(1).use(9 * KWH_MILLI), "alarm")
    assert (alarm["kind"], alarm["arrears_since_ms"]) == ("alarm-2", None)


def test_who_pays_and_runs_out_again_has_grace_again() -> None:
    log = ruled_log(grace_minutes=5)
    log.use(2 * KWH_MILLI)
    done = log.later(4 * MINUTE_MS).fact(account(credit=2, revision=1))
    assert told(done) == [("not-cut-ended", "grace")]
    assert told(log.later(2 * MINUTE_MS).use(4 * KWH_MILLI)) == [("not-cut", "grace")]


def test_an_account_that_is_closed_in_arrears_leaves_no_reason_behind() -> None:
    log = ruled_log(grace_minutes=5)
    log.use(2 * KWH_MILLI)
    done = log.fact(account(credit=1, revision=1, status="closed"))
    assert told(done) == [("not-cut-ended", "grace")]
    assert told(log.fact(account(credit=1, revision=2, status="closed"))) == []


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
    done = log.later(1).use(3 * KWH_MILLI + 1, quality=ord("V"))
    assert kinds(done) == ["not-cut-ended", "open"]
    assert kinds(log.later(LEASE_MS).use(4 * KWH_MILLI, relay_bits=OPEN)) == []


def test_a_notice_goes_out_and_the_cut_after_its_lead_cites_it() -> None:
    log = ruled_log(notice={"lead_minutes": 30}, grace_minutes=45)
    done = log.use(2 * KWH_MILLI)
    (notice,) = of(done, "notice")
    assert told(done) == [("not-cut", "notice-pending")]
    assert (notice["kind"], notice["threshold_nano"]) == ("cut-off", -CREDIT_NANO)
    assert notice["cut_not_before_ms"] == log.now_ms + 45 * MINUTE_MS
    assert decode(schema_header("notice"), encode("notice", notice)) == notice
    done = log.later(1).use(3 * KWH_MILLI)
    assert (told(done), of(done, "notice")) == ([("not-cut", "notice-running")], [])
    assert told(log.later(30 * MINUTE_MS - 1).use(4 * KWH_MILLI)) == [("not-cut", "grace")]
    done = log.later(15 * MINUTE_MS).use(5 * KWH_MILLI)
    for cited in (*of(done, "alarm"), *of(done, "relay-intent")):
        assert (cited["notice_id"], cited["notice_outcome"]) == (notice["notice_id"], None)
    assert kinds(done) == ["cut", "open"]


def test_a_required_notice_that_failed_or_is_not_known_cuts_nobody() -> None:
    log = ruled_log(notice={"lead_minutes": 1, "required": True})
    (notice,) = of(log.use(2 * KWH_MILLI), "notice")
    assert told(log.later(MINUTE_MS).use(3 * KWH_MILLI)) == [("not-cut", "notice-failed")]
    outcome = {"notice_id": notice["notice_id"], "notice_outcome": "failed"}
    log.fact(account(credit=1, revision=1, **outcome))
    assert told(log.later(1).use(4 * KWH_MILLI)) == []
    outcome["notice_outcome"] = "delivered"
    assert kinds(log.fact(account(credit=1, revision=2, **outcome))) == []
    done = log.later(1).use(5 * KWH_MILLI)
    assert kinds(done) == ["cut", "open"]
    assert of(done, "relay-intent")[0]["notice_outcome"] == "delivered"


def test_who_leaves_arrears_gets_a_new_notice_the_next_time() -> None:
    log = ruled_log(notice={"lead_minutes": 1})
    (first,) = of(log.use(2 * KWH_MILLI), "notice")
    log.fact(account(credit=2, revision=1))
    (second,) = of(log.later(MINUTE_MS).use(4 * KWH_MILLI), "notice")
    assert first["notice_id"] != second["notice_id"]


def test_a_notice_is_void_once_an_order_keeps_the_account_on_power() -> None:
    log = ruled_log(notice={"lead_minutes": 1})
    log.use(2 * KWH_MILLI)
    log.fact(account(credit=1, revision=1, keep_power_until_ms=log.now_ms + 60 * MINUTE_MS))
    log.later(MINUTE_MS).use(3 * KWH_MILLI)
    done = log.later(60 * MINUTE_MS).use(4 * KWH_MILLI)
    assert (told(done), len(of(done, "notice"))) == ([("not-cut", "notice-pending")], 1)


def test_old_evidence_gives_no_notice() -> None:
    log = ruled_log(notice={"lead_minutes": 1})
    received_at_ms = log.later(EVIDENCE_AGE_MS + 1).now_ms - EVIDENCE_AGE_MS - 1
    aged = {"device_time_ms": received_at_ms, "received_at_ms": received_at_ms}
    done = log.use(2 * KWH_MILLI, **aged)
    assert (told(done), of(done, "notice")) == ([("not-cut", "evidence-old")], [])


@pytest.mark.parametrize(
    ("waited_ms", "changes", "cuts"),
    [
        (EVIDENCE_AGE_MS + 120_001, {}, False),
        (EVIDENCE_AGE_MS + 120_000, {}, True),  # its clock may be 2 min off
        (
            EVIDENCE_AGE_MS + 120_001,
            {"began_at_ms": "before"},
            True,
        ),  # read by us: a clock is wrong
    ],
)
def test_what_a_gateway_had_kept_is_charged_and_cuts_nobody(
    waited_ms: int, changes: dict[str, Any], cuts: bool
) -> None:
    log = standing_log(credit=1)
    now_ms = log.later(6 * 60 * MINUTE_MS).now_ms
    began_ms = now_ms - 50 if changes else now_ms
    kept = {"device_time_ms": now_ms - waited_ms, "began_at_ms": began_ms}
    done = log.use(2 * KWH_MILLI, **kept)
    expected = ("cut", "threshold-reached") if cuts else ("not-cut", "evidence-backfill")
    decisions = [alarm for alarm in of(done, "alarm") if alarm["kind"] in {"cut", "not-cut"}]
    assert [(alarm["kind"], alarm["reason"]) for alarm in decisions] == [expected]
    assert decisions[0]["reading_began_at_ms"] == began_ms
    assert decode(schema_header("alarm"), encode("alarm", decisions[0])) == decisions[0]
    if not cuts:
        assert told(log.later(1).use(2 * KWH_MILLI + 1))[-1] == ("cut", "threshold-reached")


# Forced positions


def positions(done: Absorbed) -> list[tuple[str, str, str]]:
    intents = of(done, "relay-intent")
    assert all(one["send_before_ms"] is None for one in intents)
    return [(one["wanted"], one["mode"], one["cause"]) for one in intents]


def test_a_person_forces_a_relay_off_and_on_and_ends_it_without_a_lease() -> None:
    log = standing_log()
    told_of = [
        positions(log.fact(meter(revision=revision, forced=forced)))
        for revision, forced in enumerate(("off", "off", "on", None), 1)
    ]
    assert told_of == [
        [("open", "forced-off", "forced")],
        [],
        [("closed", "forced-on", "forced")],
        [("closed", "prepaid", "released")],
    ]


def test_a_meter_that_moves_is_forced_in_its_new_place_too_and_at_home() -> None:
    log = standing_log()
    log.fact(account("A2"))
    forced = meter(revision=1, forced="on")
    log.fact(forced)
    second = moved(forced, "A2", 0)
    assert positions(log.fact(second)) == [("closed", "forced-on", "forced")]
    third = moved(second, house("M1"), 0)
    assert positions(log.fact(third)) == [("closed", "forced-on", "forced")]


def test_arrears_never_touch_a_forced_meter() -> None:
    log = standing_log(credit=1)
    log.fact(meter("M2", forced="on"))
    done = log.use(2 * KWH_MILLI)
    assert [one["meter_id"] for one in of(done, "relay-intent")] == ["M1"]
    used = reading(1, at_ms=log.later(LEASE_MS).now_ms, meter_id="M2")
    assert kinds(log.read(used)) == []
    done = log.fact(account(credit=9, revision=1))
    assert [one["meter_id"] for one in of(done, "relay-intent")] == ["M1"]


def test_an_account_whose_relays_a_person_holds_is_not_cut_and_the_end_of_it_cuts_nobody() -> None:
    log = standing_log(credit=1)
    log.fact(meter(revision=1, forced="on"))
    done = log.use(2 * KWH_MILLI)
    assert told(done) == [("not-cut", "forced")]
    assert json.loads(of(done, "alarm")[0]["forced_orders"]) == [
        {"meter_id": "M1", "position": "on", "book_epoch": 0, "revision": 1}
    ]
    assert positions(log.fact(meter(revision=2))) == [("closed", "prepaid", "released")]
    assert kinds(log.later(1).use(3 * KWH_MILLI)) == ["cut", "open"]


@pytest.mark.parametrize("forced", ["on", "off"])
def test_a_meter_that_is_released_while_its_account_is_cut_waits_for_a_reading(forced: str) -> None:
    log = standing_log(credit=1)
    log.fact(meter("M2", forced=forced))
    log.use(2 * KWH_MILLI)
    # The order ends, or control would go on obeying it; nothing may be sent in its stead.
    (intent,) = of(log.fact(meter("M2", revision=1)), "relay-intent")
    assert (intent["wanted"], intent["mode"], intent["cause"]) == ("open", "prepaid", "released")
    assert intent["send_before_ms"] == intent["decided_at_ms"] == log.now_ms
    done = log.read(reading(1, at_ms=log.now_ms, meter_id="M2"))
    (intent,) = of(done, "relay-intent")
    assert (intent["wanted"], intent["cause"]) == ("open", "lease-renewed")


# Restoring is symmetrical


def test_money_closes_no_relay_that_the_arrears_did_not_open() -> None:
    log = standing_log(credit=2)
    log.fact(meter("M2"))
    at_ms = log.now_ms
    log.read(reading(1, at_ms=at_ms), reading(1, at_ms=at_ms, meter_id="M2"))
    log.later(1_000).read(reading(2, at_ms=log.now_ms, meter_id="M2", relay_bits=OPEN))  # a trip
    assert kinds(log.later(1_000).use(4 * KWH_MILLI)) == ["cut", "open", "open"]
    done = log.fact(account(credit=20, revision=1))
    assert sorted(told(done)) == [
        ("not-restored", "tripped"),
        ("restored", "credit-restored"),
    ]
    assert [one["meter_id"] for one in of(done, "relay-intent")] == ["M1"]
    assert next(one for one in of(done, "alarm") if one["reason"] == "tripped")["meter_id"] == "M2"


def test_a_relay_that_was_not_seen_closed_since_it_was_restored_is_no_trip() -> None:
    log = standing_log(credit=2)
    log.use(4 * KWH_MILLI)
    log.fact(account(credit=5, revision=1))
    log.later(1).use(4 * KWH_MILLI + 1, relay_bits=OPEN)  # the command is still on its way
    log.later(1).use(9 * KWH_MILLI, relay_bits=OPEN)
    assert kinds(log.fact(account(credit=50, revision=2))) == ["restored", "closed"]


def test_a_relay_that_closed_while_its_account_was_cut_and_was_cut_again_is_restored() -> None:
    log = standing_log(credit=2)
    log.use(KWH_MILLI)
    log.later(1).use(KWH_MILLI + 1, relay_bits=OPEN)
    log.later(1).use(9 * KWH_MILLI, relay_bits=OPEN)
    assert kinds(log.later(1).use(10 * KWH_MILLI, relay_bits=OPEN)) == []
    assert kinds(log.later(LEASE_MS).use(11 * KWH_MILLI)) == ["meter-cleared", "open"]
    assert kinds(log.fact(account(credit=50, revision=2))) == ["restored", "closed"]


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
