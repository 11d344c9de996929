"""absorb: the rules of metering, each by its name, on one account or two.

Method: a log of a few records (metering_log.py), and what each caused. That the rules hold on
every history is the property tests' affair; here stands what a reader of the rules looks for.
"""

import time
from typing import Any

import numpy as np
import pytest

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.units import INT64_MAX
from services.common.runtime.codec import decode, encode, schema_header
from services.metering.domain.absorb import absorb
from services.metering.domain.errors import BadRecord
from services.metering.domain.messages import LogRecord
from services.metering.domain.rows import METERS_MAX
from services.metering.domain.shard import SILENCE_MS, ShardState
from services.metering.domain.shard_rows import rows_of
from tests.unit.metering_log import (
    CREDIT_NANO,
    EVIDENCE_AGE_MS,
    KWH_MILLI,
    LEASE_MS,
    OPEN,
    SHARD,
    START_MS,
    Log,
    account,
    charges,
    frame,
    house,
    kinds,
    meter,
    moved,
    of,
    policy,
    reading,
    site,
    standing_log,
    tariff,
)


def balance(log: Log) -> int:
    """Return what is available to A1, in whole currency units."""
    first = log.state.accounts[log.state.account_slot(account()["account_key"])]
    nano = first["credited_nano"] - first["charged_nano"] - first["held_nano"]
    return int(nano) // CREDIT_NANO


# Rule 3: the outcomes of a reading


@pytest.mark.parametrize(
    ("outcome", "changes", "is_held"),
    [
        ("unknown-meter", {"meter_id": "M9"}, False),
        ("other-epoch", {"epoch": 2}, False),
        ("other-serial", {"serial": b"SN-OTHER"}, True),
        ("absurd", {"register_milli": -1}, True),
        ("absurd", {"register_milli": 10**15 + 1}, True),
        ("absurd", {"device_time_ms": 0}, True),
        ("ratio-mismatch", {"ratio": 40}, True),
        ("late", {"device_time_ms": START_MS + 1_000}, False),
        ("negative", {"register_milli": 4_999}, True),
        ("implausible", {"register_milli": 10**9}, True),
        ("accepted", {}, False),
    ],
)
def test_the_first_outcome_that_holds_decides(
    outcome: str, changes: dict[str, Any], is_held: bool
) -> None:
    log = standing_log(max_power_w=10_000)
    log.use(5_000)
    done = log.later(60_000).use(**{"register_milli": 5_100, **changes})
    assert dict(done.counts) == {outcome: 1}
    assert len(charges(done)) == (outcome == "accepted")
    held = [alarm["reason"] for alarm in of(done, "alarm") if alarm["kind"] == "reading-held"]
    assert held == ([outcome] if is_held else [])
    assert len(done.account_rows) == (is_held or outcome == "accepted")


def test_a_repeated_reading_is_a_duplicate_whatever_its_time() -> None:
    log = standing_log()
    first = reading(5_000, at_ms=log.now_ms)
    log.read(first)
    again = {**first, "device_time_ms": log.now_ms + 5}
    assert dict(log.read(again).counts) == {"duplicate": 1}


def test_a_reading_below_the_opening_register_is_counted_and_the_next_above_it_charged() -> None:
    log = standing_log(opening_register_milli=700)
    assert dict(log.use(699).counts) == {"below-opening": 1}
    (charge,) = charges(log.use(800))
    assert (charge["from_register_milli"], charge["energy_milli"]) == (700, 100)
    assert (charge["from_time_ms"], charge["from_reading_id"].int) == (0, 0)


def test_the_first_reading_opens_a_meter_that_has_no_register() -> None:
    log = standing_log(opening_register_milli=None)
    (charge,) = charges(log.use(800))
    assert (charge["sequence"], charge["energy_milli"], charge["amount_nano"]) == (1, 0, 0)
    assert charge["from_reading_id"] == charge["to_reading_id"]
    (charge,) = charges(log.later(1_000).use(900))
    assert (charge["sequence"], charge["energy_milli"]) == (2, 100)


def test_a_power_bound_beyond_int64_products_is_exact() -> None:
    log = standing_log(max_power_w=2**62)
    log.use(0)
    assert dict(log.later(1_000).use(10**12).counts) == {"accepted": 1}
    log = standing_log(max_power_w=-(2**62))
    assert dict(log.later(1_000).use(1).counts) == {"implausible": 1}


# Rules 4 and 5: price and charge


def test_a_charge_names_both_readings_the_versions_and_the_totals_after() -> None:
    log = standing_log(credit=100, ratio=40)
    first = reading(1_000, at_ms=log.now_ms, ratio=40)
    log.read(first)
    second = reading(1_250, at_ms=log.later(900_000).now_ms, ratio=40)
    done = log.read(second)
    (charge,) = charges(done)
    assert charge["from_reading_id"].bytes == first["reading_id"]
    assert charge["to_reading_id"].bytes == second["reading_id"]
    assert charge["energy_milli"] == 250 * 40
    assert charge["amount_nano"] == 250 * 40 * 10**6
    assert charge["meter_energy_total_milli"] == 1_250 * 40
    assert charge["account_charged_total_nano"] == 1_250 * 40 * 10**6
    assert charge["account_credited_total_nano"] == 100 * CREDIT_NANO
    assert (charge["sequence"], charge["account_sequence"]) == (2, 3)
    assert (charge["tariff_name"], charge["tariff_version"]) == ("T1", 1)
    assert (charge["policy_name"], charge["policy_version"]) == ("P1", 1)
    assert of(done, "charge-frame")[0]["names"] == ["T1", "P1", "prop-co", "CNY", "electricity"]


def test_no_interval_is_charged_a_price_before_its_instant() -> None:
    log = standing_log()
    instant_ms = log.now_ms + 3_600_000
    log.fact(tariff(version=2, price_micro=2 * 10**6, effective_at_ms=instant_ms))
    prices = []
    for at_ms in (instant_ms - 900_000, instant_ms, instant_ms + 900_000):
        log.later(at_ms - log.now_ms)
        prices += [charge["tariff_version"] for charge in charges(log.use(at_ms // 900_000 % 1000))]
    assert prices == [1, 1, 2]


def test_an_interval_that_begins_at_an_assignment_is_priced_by_its_end() -> None:
    log = Log()
    for fact in (tariff(), policy(), account()):
        log.fact(fact)
    log.fact(tariff(version=2, price_micro=7, effective_at_ms=START_MS + 500))
    log.fact(meter())
    (charge,) = charges(log.later(1_000).use(10))
    assert charge["price_micro"] == 7


def test_a_tariff_that_comes_after_its_instant_is_told_and_applies_to_what_begins_later() -> None:
    log = standing_log()
    log.use(1_000)
    done = log.later(1_000).fact(tariff(version=2, price_micro=3, effective_at_ms=START_MS + 1))
    assert dict(done.counts) == {"fact-late": 1}
    (alarm,) = of(done, "alarm")
    assert (alarm["kind"], alarm["reason"]) == ("fact-late", "after-its-instant")
    assert (alarm["tariff_id"], alarm["tariff_version"], alarm["account_id"]) == ("T1", 2, "")
    (charge,) = charges(log.use(2_000))
    assert charge["price_micro"] == 3


def test_a_late_tariff_is_told_to_each_site_that_was_charged_without_it() -> None:
    log = standing_log()
    for account_id, site_id in (("A2", "S3"), ("A3", "S2"), ("A4", "S3")):
        log.fact(account(account_id, site_id=site_id))
    log.fact(account("A5", site_id="S4", tariff_id="T2"))
    done = log.fact(tariff(version=2, effective_at_ms=1))
    assert dict(done.counts) == {"fact-late": 1}
    assert [alarm["site_id"] for alarm in of(done, "alarm")] == ["S1", "S2", "S3"]
    assert len({alarm["alarm_id"] for alarm in of(done, "alarm")}) == 3
    nobody = log.fact(tariff(tariff_id="T3", version=2, effective_at_ms=1))
    assert (dict(nobody.counts), of(nobody, "alarm")) == ({"fact-late": 1}, [])


def test_house_energy_is_charged_at_price_zero_without_alarms_or_balances() -> None:
    log = Log()
    log.fact(meter("M1", house("M1"), legal_entity="grid-co"))
    done = log.later(1_000).use(10**9)
    (charge,) = charges(done)
    assert (charge["amount_nano"], charge["energy_milli"]) == (0, 10**9)
    assert (charge["account_revision"], charge["tariff_version"]) == (-1, 0)
    assert (charge["tariff_name"], charge["legal_entity_name"]) == ("", "grid-co")
    assert [output.subject for output in done.outputs] == ["charge-frame"]
    assert log.state.next_deadline_ms() == log.now_ms + SILENCE_MS
    assert log.later(1_000).use(1).outputs == ()


def test_charges_stand_in_the_frames_order_also_where_accounts_come_twice() -> None:
    log = standing_log()
    log.fact(account("A2"))
    log.fact(meter("M2", "A2"))
    at_ms = log.now_ms
    done = log.read(
        reading(100, at_ms=at_ms),
        reading(10, meter_id="M2", at_ms=at_ms),
        reading(150, at_ms=at_ms + 1),
        reading(7, meter_id="M7"),
        reading(150, at_ms=at_ms + 2),
        reading(30, meter_id="M2", at_ms=at_ms + 1),
    )
    assert [charge["energy_milli"] for charge in charges(done)] == [100, 10, 50, 0, 20]
    assert [charge["account_sequence"] for charge in charges(done)] == [2, 2, 3, 4, 3]
    assert len(done.account_rows) == 2


# Rule 6: levels and alarms. Alarms at 10 and 5, cut at -1, restored at 2


def test_a_balance_that_runs_down_warns_twice_cuts_and_is_restored() -> None:
    log = standing_log(credit=12)
    told = []
    for kwh in (1, 2, 7, 10, 13):
        done = log.later(1_000).use(kwh * KWH_MILLI)
        told.append((balance(log), kinds(done), [one["level"] for one in of(done, "balance")]))
    assert told == [
        (11, [], []),
        (10, ["alarm-1"], ["alarm-1"]),
        (5, ["alarm-2"], ["alarm-2"]),
        (2, [], []),
        (-1, ["cut", "open"], ["cut"]),
    ]
    done = log.fact(account(credit=14, revision=1))
    assert (kinds(done), of(done, "balance")[0]["level"]) == ([], "cut")
    done = log.fact(account(credit=15, revision=2))
    assert (kinds(done), of(done, "balance")[0]["level"]) == (["restored", "closed"], "alarm-2")
    done = log.fact(account(credit=50, revision=3))
    assert (kinds(done), of(done, "alarm")[0]["threshold_nano"]) == (["cleared"], 5 * CREDIT_NANO)


def test_a_cut_cites_what_caused_it() -> None:
    log = standing_log(credit=12)
    log.use(KWH_MILLI)
    last = reading(14 * KWH_MILLI, at_ms=log.later(5_000).now_ms)
    done = log.read(last)
    (alarm,), (intent,) = of(done, "alarm"), of(done, "relay-intent")
    (charge,) = charges(done)
    for cited in (alarm, intent):
        assert cited["available_nano"] == -2 * CREDIT_NANO
        assert cited["threshold_nano"] == -CREDIT_NANO
        assert (cited["tariff_id"], cited["tariff_version"]) == ("T1", 1)
        assert (cited["policy_id"], cited["policy_version"]) == ("P1", 1)
        assert cited["to_reading_id"] == str(charge["to_reading_id"])
        assert cited["from_reading_id"] == str(charge["from_reading_id"])
        assert (cited["charge_epoch"], cited["charge_sequence"]) == (1, 2)
        assert cited["reading_received_at_ms"] == log.now_ms
    assert (alarm["level_before"], alarm["level_after"]) == ("normal", "cut")
    assert (alarm["intent_epoch"], alarm["intent_offset"]) == (1, done.header and log.state.offset)
    assert (intent["epoch"], intent["version_offset"]) == (1, log.state.offset)
    assert intent["cause_meter_id"] == alarm["meter_id"] == "M1"


def test_old_evidence_never_cuts_and_says_so_once() -> None:
    log = standing_log(credit=1)
    log.fact(policy(version=2, alarm_1_nano=-CREDIT_NANO, alarm_2_nano=-CREDIT_NANO))
    aged_ms = log.later(10**7).now_ms - EVIDENCE_AGE_MS - 1
    done = log.use(2 * KWH_MILLI, device_time_ms=aged_ms, received_at_ms=aged_ms)
    assert kinds(done) == ["alarm-2", "not-cut"]
    assert of(done, "alarm")[1]["reason"] == "evidence-old"
    again = {"device_time_ms": aged_ms + 1, "received_at_ms": aged_ms}
    assert kinds(log.later(1).use(3 * KWH_MILLI, **again)) == []
    fresh_ms = log.later(1).now_ms - EVIDENCE_AGE_MS
    fresh = {"device_time_ms": fresh_ms + 2, "received_at_ms": fresh_ms}
    assert kinds(log.use(4 * KWH_MILLI, **fresh)) == ["cut", "open"]


def test_a_fact_cuts_nobody() -> None:
    log = standing_log(credit=100)
    log.use(50 * KWH_MILLI)
    done = log.fact(account(credit=100, held_nano=90 * CREDIT_NANO, revision=1))
    assert (balance(log), kinds(done)) == (-40, ["alarm-2"])
    assert kinds(log.later(1).use(50 * KWH_MILLI)) == ["cut", "open"]


def test_a_policy_judges_its_accounts_in_the_order_of_their_keys() -> None:
    log = standing_log(credit=12)
    for name in ("A2", "A3"):
        log.fact(account(name, credit=12))
        log.fact(meter(f"M-{name}", name))
    log.fact(account("A4", policy_id="P0"))
    log.fact(account("A5-without-a-meter", credit=12))
    done = log.fact(policy(version=2, alarm_1_nano=12 * CREDIT_NANO))
    told = [alarm["account_id"] for alarm in of(done, "alarm")]
    assert told == sorted(["A1", "A2", "A3"], key=lambda name: account(name)["account_key"])
    assert [one["account_id"] for one in of(done, "balance")] == told


def test_closed_accounts_are_not_judged() -> None:
    log = standing_log(credit=12)
    done = log.fact(account(credit=0, status="closed", revision=1))
    assert (kinds(done), len(of(done, "balance"))) == ([], 1)
    assert kinds(log.use(5 * KWH_MILLI)) == []


# Rule 7: intents and leases


def test_a_cut_is_a_lease_that_no_evidence_outlives() -> None:
    log = standing_log(credit=1)
    done = log.use(2 * KWH_MILLI)
    assert of(done, "relay-intent")[0]["send_before_ms"] == log.now_ms + LEASE_MS
    log = standing_log(credit=1)
    received_at_ms = log.later(10**6).now_ms - EVIDENCE_AGE_MS + 5
    aged = {"device_time_ms": received_at_ms, "received_at_ms": received_at_ms}
    done = log.use(2 * KWH_MILLI, **aged)
    assert of(done, "relay-intent")[0]["send_before_ms"] == log.now_ms + 5


def test_a_lease_is_renewed_by_a_fresh_reading_that_reports_a_closed_phase() -> None:
    log = standing_log(credit=1)
    log.use(2 * KWH_MILLI)
    register_milli = 2 * KWH_MILLI
    told = {}
    for what, duration_ms, changes in (
        ("too early", LEASE_MS // 2, {}),
        ("open", 1, {"relay_bits": OPEN}),
        ("not reported", 1, {"relay_bits": 0x07}),
        ("not fresh", 1, {"received_at_ms": START_MS - EVIDENCE_AGE_MS}),
        ("running out", 1, {"relay_bits": OPEN | 0x02}),
        ("just renewed", 1, {}),
    ):
        register_milli += 1
        done = log.later(duration_ms).use(register_milli, **changes)
        told[what] = [intent["cause"] for intent in of(done, "relay-intent")]
    assert told.pop("running out") == ["lease-renewed"]
    assert not any(told.values())


def test_every_meter_of_the_account_is_cut_and_restored_in_the_order_of_their_keys() -> None:
    log = standing_log(credit=1)
    for name in ("M2", "M3"):
        log.fact(meter(name))
    expected = sorted(["M1", "M2", "M3"], key=lambda name: meter(name)["meter_key"])
    done = log.use(2 * KWH_MILLI)
    assert [intent["meter_id"] for intent in of(done, "relay-intent")] == expected
    done = log.fact(account(credit=10, revision=1))
    intents = of(done, "relay-intent")
    assert [intent["meter_id"] for intent in intents] == expected
    assert {(one["wanted"], one["cause"], one["send_before_ms"]) for one in intents} == {
        ("closed", "paid", None)
    }


def test_a_meter_that_enters_gets_power_unless_its_account_is_cut() -> None:
    log = Log()
    for fact in (tariff(), policy(), account(credit=1)):
        log.fact(fact)
    (intent,) = of(log.fact(meter()), "relay-intent")
    assert (intent["wanted"], intent["cause"]) == ("closed", "assigned")
    log.later(1_000).use(2 * KWH_MILLI)
    assert kinds(log.fact(meter("M2"))) == []
    # Only a reading may cut: the first one of the new meter does.
    done = log.later(1_000).use(0, meter_id="M2")
    assert [intent["cause"] for intent in of(done, "relay-intent")] == ["lease-renewed"]


# Rule 8: balances


def test_a_balance_follows_at_most_once_a_minute_and_the_last_change_always() -> None:
    log = standing_log()
    published_at_ms = START_MS
    assert log.use(100).outputs[1:] == ()
    assert log.state.next_deadline_ms() == published_at_ms + 60_000
    assert log.later(10_000).wake().outputs == ()
    log.later(49_000)
    (one,) = of(log.wake(), "balance")
    assert one["charged_nano"] == 100 * 10**6
    assert log.state.next_deadline_ms() == log.now_ms - 59_000 + SILENCE_MS
    assert log.wake().outputs == ()
    assert len(of(log.later(60_000).use(200), "balance")) == 1
    assert log.state.next_deadline_ms() == log.now_ms + SILENCE_MS


def test_a_hold_is_echoed_once() -> None:
    log = standing_log()
    log.use(1_000)
    held = account(held_nano=CREDIT_NANO, hold_id="H1", revision=1)
    (echo,) = of(log.fact(held), "echo")
    assert (echo["hold_id"], echo["account_sequence"], echo["open_meters"]) == ("H1", 2, 1)
    assert echo["last_reading_received_at_ms"] == log.now_ms
    assert of(log.fact({**held, "revision": 2}), "echo") == []
    assert len(of(log.fact({**held, "hold_id": "H2", "revision": 3}), "echo")) == 1
    assert (echo["frozen"], echo["waiting"]) == (False, [])


def test_an_echo_says_that_its_account_is_frozen() -> None:
    log = standing_log()
    log.fact(tariff(version=2, price_micro=INT64_MAX, effective_at_ms=START_MS))
    log.later(1_000).use(10**12)
    (echo,) = of(log.fact(account(hold_id="H1", revision=1)), "echo")
    assert echo["frozen"]


# Rule 2: facts, and meters that move


def test_older_and_equal_facts_are_counted_and_ignored() -> None:
    log = standing_log()
    for old in (site(), tariff(), policy(), account(credit=7), meter()):
        assert dict(log.fact(old).counts) == {"fact-old": 1}
    assert balance(log) == 100
    log.fact(account(credit=7, book_epoch=1, revision=0))
    assert balance(log) == 7


def test_the_account_sequence_rises_with_credit_only() -> None:
    log = standing_log()
    (one,) = of(log.fact(account(held_nano=5, revision=1)), "balance")
    assert one["account_sequence"] == 1
    (one,) = of(log.fact(account(credit=101, revision=2)), "balance")
    assert one["account_sequence"] == 2


def test_a_move_within_the_shard_charges_the_old_account_to_the_register_of_the_new() -> None:
    log = standing_log()
    log.fact(account("A2"))
    log.use(1_000)
    done = log.fact(moved(meter(), "A2", 1_400))
    (closing,) = charges(done)
    assert (closing["kind"], closing["energy_milli"], closing["to_time_ms"]) == (
        1,
        400,
        log.now_ms,
    )
    assert kinds(done) == ["closed"]
    assert dict(log.later(1_000).use(1_500).counts) == {"other-epoch": 1}
    (charge,) = charges(log.use(1_500, epoch=2))
    assert (charge["energy_milli"], charge["sequence"]) == (100, 1)
    assert charge["account_key"] == account("A2")["account_key"]


def test_a_closing_charge_compensates_where_the_register_was_read_too_high() -> None:
    log = standing_log(credit=1)
    log.use(2 * KWH_MILLI)
    done = log.fact(moved(meter(), house("M1"), 0))
    (closing,) = charges(done)
    assert closing["amount_nano"] == -2 * CREDIT_NANO
    assert balance(log) == 1
    log.fact(account(credit=2, revision=1))
    assert log.state.account_count == 2


def test_a_meter_that_leaves_for_another_shard_is_unknown_here() -> None:
    log = standing_log()
    log.use(1_000)
    done = log.fact(moved(meter(), "A9", 1_000, shard=SHARD + 1))
    assert [charge["kind"] for charge in charges(done)] == [1]
    assert log.state.meter_count == 0
    assert dict(log.use(1_100).counts) == {"unknown-meter": 1}


def test_a_meter_that_was_never_read_leaves_without_a_charge() -> None:
    log = standing_log(opening_register_milli=None)
    assert charges(log.fact(moved(meter(), house("M1"), 5_000))) == []


def test_facts_of_another_shard_change_nothing() -> None:
    log = standing_log()
    for foreign in (account("A8", shard=5), meter("M8", "A8", shard=5)):
        done = log.fact(foreign)
        assert not [*done.outputs, *done.fact_rows, *done.account_rows]


# Rule 9: frozen


def test_an_account_without_its_tariff_freezes_and_the_shard_goes_on() -> None:
    log = standing_log()
    log.fact(account("A2", tariff_id="T9"))
    log.fact(meter("M2", "A2"))
    at_ms = log.now_ms
    done = log.read(
        reading(100, meter_id="M2", at_ms=at_ms),
        reading(100, at_ms=at_ms),
        reading(200, meter_id="M2", at_ms=at_ms + 1),
    )
    assert [charge["energy_milli"] for charge in charges(done)] == [100]
    assert kinds(done) == ["frozen"]
    assert dict(done.counts) == {"accepted": 1, "frozen": 1}
    assert kinds(log.read(reading(300, meter_id="M2", at_ms=at_ms + 2))) == []
    (one,) = of(log.fact(account("A2", credit=200, tariff_id="T9", revision=1)), "balance")
    assert (one["frozen"], one["credited_nano"]) == (True, 200 * CREDIT_NANO)


def test_what_came_before_the_reading_that_overflows_stays_charged() -> None:
    log = standing_log()
    log.fact(tariff(version=2, price_micro=INT64_MAX, effective_at_ms=START_MS))
    at_ms = log.now_ms
    done = log.read(
        reading(1, at_ms=at_ms),
        reading(3, at_ms=at_ms + 1),
        reading(4, at_ms=at_ms + 2),
    )
    # One Wh at the highest price fits int64, credited - charged too; two do not.
    assert [charge["energy_milli"] for charge in charges(done)] == [1]
    assert charges(done)[0]["amount_nano"] == INT64_MAX
    assert kinds(done) == ["cut", "open", "frozen"]
    assert dict(done.counts) == {"accepted": 1, "frozen": 1}


def test_a_fact_whose_policy_is_not_there_freezes_its_account() -> None:
    log = Log()
    done = log.fact(account(policy_id="P7"))
    assert (kinds(done), of(done, "balance")) == (["frozen"], [])
    assert kinds(log.fact(account(policy_id="P7", revision=1))) == []


def test_one_meter_too_many_freezes_its_account() -> None:
    log = Log()
    for fact in (tariff(), policy(), account()):
        log.fact(fact)
    for number in range(METERS_MAX):
        log.fact(meter(f"N{number}"))
    assert kinds(log.fact(meter("N-last"))) == ["frozen"]
    assert log.state.meter_count == METERS_MAX


def test_a_frozen_account_is_restored_by_a_fact_but_never_cut() -> None:
    log = standing_log(credit=1)
    log.use(2 * KWH_MILLI)
    log.fact(tariff(version=2, price_micro=INT64_MAX, effective_at_ms=START_MS))
    log.later(1_000)
    assert kinds(log.use(10**12)) == ["frozen"]
    assert kinds(log.fact(account(credit=50, revision=1))) == ["restored", "closed"]
    assert kinds(log.later(1_000).use(10**12 + 1)) == []


def thaw(number: int = 1, **changes: Any) -> dict[str, Any]:
    return account(revision=number, thaw_id=f"00000000-0000-5000-8000-{number:012}", **changes)


def frozen_log() -> Log:
    """Return a log whose account has used 5 kWh, is frozen, and has used 10^12 + 1 Wh since."""
    log = standing_log(credit=50)
    log.use(5 * KWH_MILLI)
    log.fact(tariff(version=2, price_micro=INT64_MAX, effective_at_ms=log.now_ms + 1))
    log.later(1_000)
    assert kinds(log.use(10**12)) == ["frozen"]
    assert kinds(log.later(1_000).use(10**12 + 1)) == []
    return log


def test_what_was_used_while_frozen_is_charged_once_when_a_person_has_thawed_it() -> None:
    log = frozen_log()
    log.fact(tariff(tariff_id="T3", price_micro=1))
    done = log.fact(thaw(credit=50, tariff_id="T3"))
    assert kinds(done) == ["thawed"]
    (balance,) = of(done, "balance")
    assert not balance["frozen"]
    (charge,) = charges(log.later(1_000).use(10**12 + 2))
    assert (charge["from_register_milli"], charge["sequence"]) == (5 * KWH_MILLI, 2)
    assert charge["energy_milli"] == 10**12 + 2 - 5 * KWH_MILLI
    assert charge["amount_nano"] == charge["energy_milli"]


def test_a_thaw_is_obeyed_once_and_freezes_again_where_the_cause_lasts() -> None:
    log = frozen_log()
    assert kinds(log.fact(thaw(1))) == ["thawed"]
    assert kinds(log.later(1_000).use(10**12 + 2)) == ["frozen"]
    assert kinds(log.fact(account(revision=2, thaw_id=thaw(1)["thaw_id"]))) == [], "the same order"
    assert kinds(log.fact(account(revision=3))) == [], "a book that has lost it"
    assert kinds(log.fact(thaw(4))) == ["thawed"]
    assert kinds(log.fact(thaw(5))) == [], "it is not frozen"


@pytest.mark.parametrize("way", ["replaced", "gone and come back"])
def test_a_house_is_charged_again_when_its_meter_enters_it_at_a_register_of_a_person(
    way: str,
) -> None:
    """Its readings overflow by a ratio that nobody meant; no account-fact could thaw it."""
    log = Log()
    log.fact(at_home := meter("M1", house("M1"), ratio=10**6))
    assert charges(log.use(1, ratio=10**6))
    assert charges(log.later(1_000).use(10**13, ratio=10**6)) == []
    assert log.state.accounts["frozen"].any()
    at_home = {**at_home, "ratio": 1}
    if way == "replaced":
        came = moved(at_home, house("M1"), 5_000)
    else:
        for fact in (site(), tariff(), policy(), account(), let := moved(at_home, "A1", 3_000)):
            log.fact(fact)
        came = moved(let, house("M1"), 5_000)
    assert kinds(log.later(1_000).fact(came)) in ([], ["opened"])
    assert not log.state.accounts["frozen"].any()
    (charge,) = charges(log.later(1_000).use(7_000, epoch=came["epoch"]))
    assert (charge["from_register_milli"], charge["energy_milli"]) == (5_000, 2_000)


# Rule 1, and what cannot be of this log


def test_a_record_at_or_below_the_header_does_nothing() -> None:
    log = standing_log()
    log.use(1_000)
    before = rows_of(log.state)
    for record in log.records:
        done = absorb(log.state, record)
        assert not [*done.outputs, *done.fact_rows, *done.account_rows]
        assert done.header == before[2]
    assert rows_of(log.state) == before


@pytest.mark.parametrize(
    ("subject", "value"),
    [
        ("reading-frame", frame([reading(1)], shard=SHARD + 1)),
        ("reading-frame", {"shard": SHARD}),
        ("wake", frame([reading(1)])),
        ("gateway-fact", {}),
    ],
)
def test_a_record_that_cannot_be_of_this_log_stops_the_shard_and_changes_nothing(
    subject: str, value: Any
) -> None:
    log = standing_log()
    before = rows_of(log.state)
    with pytest.raises(BadRecord):
        log.append(subject, value)
    assert rows_of(log.state) == before


def test_now_never_runs_back() -> None:
    log = standing_log()
    log.later(-500_000)
    (one,) = of(log.fact(account(credit=101, revision=1)), "balance")
    assert one["as_of_ms"] == START_MS


# Outputs


def test_outputs_come_in_their_order_and_fit_their_schemas() -> None:
    log = standing_log(credit=12)
    log.fact(account("A2", credit=1))
    log.fact(meter("M2", "A2"))
    at_ms = log.now_ms
    done = log.read(
        reading(2 * KWH_MILLI, meter_id="M2", at_ms=at_ms), reading(14 * KWH_MILLI, at_ms=at_ms)
    )
    subjects = [output.subject for output in done.outputs]
    assert subjects == [
        "charge-frame",
        *("alarm", "relay-intent") * 2,
        *("balance",) * 2,
    ]
    done_2 = log.fact(account("A2", credit=9, hold_id="H1", revision=1))
    subjects = [output.subject for output in done_2.outputs]
    assert subjects == ["alarm", "relay-intent", "echo", "balance"]
    for output in (*done.outputs, *done_2.outputs):
        value = encode(output.subject, output.record)
        assert decode(schema_header(output.subject), value) == output.record


def test_event_ids_are_distinct_and_the_same_in_a_second_run() -> None:
    log = standing_log(credit=12)
    for kwh in range(1, 16):
        log.later(20_000).use(kwh * KWH_MILLI)
    runs = []
    for _ in range(2):
        state = ShardState.empty(SHARD)
        runs.append([output for record in log.records for output in absorb(state, record).outputs])
    assert runs[0] == runs[1]
    ids = [output.event_id for output in runs[0]]
    assert len(ids) == len(set(ids))


# Speed


def test_absorb_keeps_far_ahead_of_the_readings() -> None:
    """Print the figure; fail only where the columns have become a loop."""
    accounts, size = 4_000, 500
    log = Log()
    log.fact(tariff())
    log.fact(policy())
    for number in range(accounts):
        log.fact(account(f"A{number}", credit=10**6))
        log.fact(meter(f"M{number}", f"A{number}"))
    rows = frame(reading(0, meter_id=f"M{number}") for number in range(accounts)).rows
    best = 0.0
    for ordinal in range(1, 9):
        rows["register_milli"] += 100
        rows["device_time_ms"] += 1_000
        rows["reading_id"] = np.frombuffer(np.arange(2 * accounts) + ordinal, "V16")
        began = time.process_time()
        for start in range(0, accounts, size):
            some = rows.take(np.arange(start, start + size))
            value = ReadingFrame(SHARD, "w1", "run-1", 1, some)
            record = LogRecord(log.state.offset + 1, START_MS + 1_000, "reading-frame", value)
            assert absorb(log.state, record).counts["accepted"] == size
        best = max(best, accounts / (time.process_time() - began))
    print(f"absorb: {best:,.0f} readings/s of CPU time, {size} a frame, one core")
    assert best > 100_000
