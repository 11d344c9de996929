"""absorb: rule 3, what is held, what stands out, and what a person says of it.

Method: a meter with a bound of 10 kW that was read at 5 kWh, one reading more or two, and what it
caused. The rows V1 to V17 of docs/validation.md name the test that shows them.
"""

import json
from typing import Any
from uuid import UUID

import pytest

from services.common.kernel.frames import KIND_ROLLOVER
from services.common.kernel.units import INT64_MAX
from services.metering.domain.messages import Absorbed
from services.metering.domain.shard import SILENCE_MS
from services.metering.domain.shard_rows import rows_of, shard_of_rows
from tests.unit.metering_log import (
    KWH_MILLI,
    OPEN,
    PRICE_MICRO,
    START_MS,
    Log,
    account,
    charges,
    house,
    kinds,
    meter,
    moved,
    of,
    policy,
    reading,
    standing_log,
    tariff,
)

POWER_W = 10_000
QUARTER_MS = 900_000
LAST_MILLI = 5 * KWH_MILLI


def read_log(credit: int = 100, **meter_changes: Any) -> Log:
    """Return a log whose meter was read at LAST_MILLI, a quarter of an hour ago."""
    log = standing_log(credit, **{"max_power_w": POWER_W, **meter_changes})
    log.use(LAST_MILLI)
    return log.later(QUARTER_MS)


def told(done: Absorbed) -> list[tuple[str, str]]:
    return [(alarm["kind"], alarm["reason"]) for alarm in of(done, "alarm")]


def judged(log: Log, done: Absorbed, said: str | None, **changes: Any) -> Absorbed:
    """Let a person judge the reading that was held when `done` was absorbed."""
    (alarm,) = of(done, "alarm")
    fact = meter(
        max_power_w=POWER_W,
        resolves_reading_id=alarm["to_reading_id"],
        resolution=said,
        revision=1,
    )
    return log.fact({**fact, **changes})


# What holds a meter


@pytest.mark.parametrize(
    ("outcome", "register_milli"),
    [
        ("implausible", 10**9),
        ("implausible", LAST_MILLI + 3_101),  # 10 kW by 1.2 for a quarter are 3,000 Wh, and 100
        ("negative", 4_999),
        ("negative", 82),
        ("reset", 0),
        ("reset", 49),
        ("scale", 10 * (LAST_MILLI + 300)),
        ("scale", 100 * (LAST_MILLI + 300) + 99),
        ("scale", (LAST_MILLI + 300) // 10),
        ("scale", (LAST_MILLI + 300) // 100),
    ],
)
def test_a_jump_is_held_under_its_name(outcome: str, register_milli: int) -> None:
    log = read_log()
    done = log.use(register_milli)
    assert (dict(done.counts), told(done)) == ({outcome: 1}, [("reading-held", outcome)])
    assert charges(done) == []
    assert len(done.account_rows) == 1


def test_time_alone_makes_no_jump_plausible() -> None:
    log = read_log()
    log.use(LAST_MILLI + 9_000)
    for days in range(3):
        done = log.later(86_400_000).use(LAST_MILLI + 9_000 + days)
        assert (done.counts["meter-held"], charges(done)) == (1, [])


def test_what_is_held_is_told_with_its_evidence() -> None:
    log = read_log()
    last_ms = log.now_ms - QUARTER_MS
    jump = reading(10**9, at_ms=log.now_ms)
    (alarm,) = of(log.read(jump), "alarm")
    assert alarm["to_reading_id"] == str(UUID(bytes=jump["reading_id"]))
    assert (alarm["register_milli"], alarm["device_time_ms"]) == (10**9, log.now_ms)
    assert (alarm["last_register_milli"], alarm["last_time_ms"]) == (LAST_MILLI, last_ms)
    assert (alarm["bound_milli"], alarm["reading_received_at_ms"]) == (3_100, log.now_ms)


def test_what_a_held_meter_tells_next_is_told_once_for_the_person() -> None:
    log = read_log()
    jump = reading(10**9, at_ms=log.now_ms)
    held = log.read(jump)
    assert dict(log.read(jump).counts) == {"meter-held": 1}  # sent twice, not read again
    for foreign in ({"serial": b"SN-OTHER"}, {"ratio": 40}, {"device_time_ms": 0}):
        assert told(log.later(1_000).use(LAST_MILLI, **foreign)) == []
    again = log.later(59_000).use(LAST_MILLI + 250)
    assert dict(again.counts) == {"meter-held": 1, "read-again": 1}
    assert told(again) == [("meter-flagged", "read-again")]
    (alarm,) = of(again, "alarm")
    assert (alarm["register_milli"], alarm["device_time_ms"]) == (LAST_MILLI + 250, log.now_ms)
    assert (alarm["last_register_milli"], alarm["bound_milli"]) == (LAST_MILLI, 3_206 + 100)
    assert told(log.later(60_000).use(LAST_MILLI + 400)) == []
    assert told(judged(log, held, "reject")) == [
        ("hold-resolved", "reject"),
        ("meter-cleared", "read-again"),
    ]
    assert told(log.later(60_000).use(10**9)) == [("reading-held", "implausible")]
    assert told(log.later(60_000).use(10**9)) == [("meter-flagged", "read-again")]


def test_a_hold_outlives_a_restart() -> None:
    log = read_log()
    done = log.use(10**9)
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(log.state.shard, [*fact_rows, *account_rows, header]))
    again.later(log.now_ms - START_MS + 1_000)
    assert again.use(LAST_MILLI).counts["meter-held"] == 1
    (charge,) = charges(judged(again, done, "accept"))
    assert (charge["to_register_milli"], charge["to_time_ms"]) == (10**9, log.now_ms)


# What holds a meter at the first reading of its epoch

OPENED_MILLI = 1_234_560
WEEK_MILLI = 604_801_000 * POWER_W // 3_000_000 + 100
"""What a load of 10 kW by 1.2 uses in a week and the second since the meter entered, and 100."""


@pytest.mark.parametrize(
    ("outcome", "register_milli"),
    [
        ("accepted", OPENED_MILLI + WEEK_MILLI),
        ("implausible", OPENED_MILLI + WEEK_MILLI + 1),
        ("scale", 10 * OPENED_MILLI),  # a profile says the decimals wrong: it shows at once
        ("below-opening", OPENED_MILLI - 1),
    ],
)
def test_the_first_reading_is_held_against_the_load_of_a_week(
    outcome: str, register_milli: int
) -> None:
    log = standing_log(max_power_w=POWER_W, opening_register_milli=OPENED_MILLI)
    done = log.use(register_milli)
    assert dict(done.counts) == {outcome: 1}
    if outcome in {"implausible", "scale"}:
        (alarm,) = of(done, "alarm")
        assert (alarm["kind"], alarm["reason"]) == ("reading-held", outcome)
        assert (alarm["last_register_milli"], alarm["last_time_ms"]) == (OPENED_MILLI, None)
        assert (alarm["bound_milli"], charges(done)) == (WEEK_MILLI, [])
        (charge,) = charges(judged(log, done, "accept", opening_register_milli=OPENED_MILLI))
        assert charge["energy_milli"] == register_milli - OPENED_MILLI


def test_a_meter_that_was_told_silent_before_its_first_reading_may_have_counted_longer() -> None:
    for more_milli, outcome in ((0, "accepted"), (1, "implausible")):
        log = standing_log(10**6, max_power_w=POWER_W, opening_register_milli=DEEPEST_MILLI)
        log.later(SILENCE_MS).wake()
        assert dict(log.use(2 * DEEPEST_MILLI + more_milli).counts) == {outcome: 1}


def test_the_jump_that_held_a_house_meter_is_not_charged_to_the_account_it_goes_to() -> None:
    log = standing_log()
    at_home = meter("M2", house("M2"), max_power_w=POWER_W)
    log.fact(at_home)
    for register_milli in (LAST_MILLI, 10**9):
        log.read(reading(register_milli, meter_id="M2", at_ms=log.later(1_000).now_ms))
    log.fact(moved(at_home, "A1", LAST_MILLI))
    jump = reading(10**9 + 1, meter_id="M2", at_ms=log.later(1_000).now_ms, epoch=2)
    done = log.read(jump)
    assert (told(done), charges(done)) == ([("reading-held", "implausible")], [])


# What a person says of it


def test_an_accepted_jump_is_charged_at_its_own_time_and_cuts_nobody() -> None:
    log = read_log(credit=100)
    done = log.use(LAST_MILLI + 200 * KWH_MILLI)
    held_at_ms = log.now_ms
    done = judged(log.later(3_600_000), done, "accept")
    (charge,) = charges(done)
    assert (charge["kind"], charge["energy_milli"]) == (0, 200 * KWH_MILLI)
    assert (charge["to_time_ms"], charge["to_received_at_ms"]) == (held_at_ms, held_at_ms)
    assert (charge["from_quality"], charge["to_quality"]) == (ord("A"), ord("M"))
    assert dict(done.counts) == {"hold-accepted": 1}
    assert told(done) == [("hold-resolved", "accept"), ("alarm-2", "threshold-reached")]
    assert of(done, "relay-intent") == []
    assert kinds(log.later(1_000).use(LAST_MILLI + 200 * KWH_MILLI)) == ["cut", "open"]


def test_after_a_rejected_jump_the_meter_goes_on_from_where_it_stood() -> None:
    log = read_log()
    done = log.use(10**9)
    done = judged(log, done, "reject")
    assert (dict(done.counts), told(done)) == ({"hold-rejected": 1}, [("hold-resolved", "reject")])
    (charge,) = charges(log.later(1_000).use(LAST_MILLI + 300))
    assert (charge["from_register_milli"], charge["energy_milli"]) == (LAST_MILLI, 300)


@pytest.mark.parametrize("register_milli", [4_000, 0])
def test_a_register_that_fell_cannot_be_accepted_only_replaced(register_milli: int) -> None:
    log = read_log()
    held = log.use(register_milli)
    (outcome,) = held.counts
    done = judged(log, held, "accept")
    assert (dict(done.counts), charges(done)) == ({"resolution-refused": 1}, [])
    assert told(done) == [("resolution-refused", outcome)]
    assert log.later(1_000).use(register_milli).counts["meter-held"] == 1


@pytest.mark.parametrize(
    ("said", "changes"), [("accept", {"resolves_reading_id": str(UUID(int=1))}), (None, {})]
)
def test_a_judgement_of_another_reading_is_no_judgement(
    said: str | None, changes: dict[str, Any]
) -> None:
    log = read_log()
    done = judged(log, log.use(10**9), said, **changes)
    assert (dict(done.counts), tuple(done.outputs)) == ({}, ())
    assert log.later(1_000).use(LAST_MILLI).counts["meter-held"] == 1


def test_an_accepted_jump_that_cannot_be_charged_freezes_its_account() -> None:
    log = read_log()
    log.fact(tariff(version=2, price_micro=INT64_MAX, effective_at_ms=START_MS))
    done = judged(log, log.use(10**9), "accept")
    assert (told(done), charges(done)) == ([("frozen", "cannot-charge")], [])


def test_a_replaced_meter_closes_and_opens_within_its_account() -> None:
    """The same holds of a reset register: its meter is replaced by itself."""
    log = read_log()
    log.use(0)
    new = moved(meter(), "A1", 0, serial="SN-NEW", closing_register_milli=5_250)
    done = log.fact(new)
    (closing,) = charges(done)
    assert (closing["kind"], closing["energy_milli"], closing["epoch"]) == (1, 250, 1)
    (intent,) = of(done, "relay-intent")
    assert (intent["wanted"], intent["cause"], intent["epoch"]) == ("closed", "assigned", 2)
    log.later(QUARTER_MS)
    assert dict(log.use(5_500).counts) == {"other-epoch": 1}
    assert dict(log.use(60, epoch=2).counts) == {"other-serial": 1}
    (charge,) = charges(log.use(60, epoch=2, serial=b"SN-NEW"))
    assert (charge["sequence"], charge["energy_milli"]) == (1, 60)
    assert charge["meter_energy_total_milli"] == 60
    assert charge["account_charged_total_nano"] == (5_250 + 60) * 10**6


def replaced(closing_milli: int, **changes: Any) -> dict[str, Any]:
    """Return the fact that replaces the meter of read_log: another device begins at 0."""
    before = meter(max_power_w=POWER_W)
    return moved(before, "A1", 0, closing_register_milli=closing_milli, **changes)


DEEPEST_MILLI = 2**31 * POWER_W // 3_000_000 + 100
"""What a load of 10 kW by 1.2 uses in 2^31 ms, and 100."""


@pytest.mark.parametrize("rise_milli", [0, 3_100, -DEEPEST_MILLI])
def test_a_closing_register_that_the_load_explains_is_charged(rise_milli: int) -> None:
    log = read_log()
    log.use(LAST_MILLI, epoch=1)
    log.state.meters["register_milli"][0] = last_milli = LAST_MILLI + DEEPEST_MILLI
    done = log.later(QUARTER_MS).fact(replaced(last_milli + rise_milli))
    assert [charge["energy_milli"] for charge in charges(done)] == [rise_milli]
    assert "reading-held" not in kinds(done)


@pytest.mark.parametrize("rise_milli", [3_101, 10**9, -DEEPEST_MILLI - 1])
def test_a_mistyped_closing_register_is_not_charged_until_a_person_confirms_it(
    rise_milli: int,
) -> None:
    log = read_log()
    log.use(LAST_MILLI)
    log.state.meters["register_milli"][0] = last_milli = LAST_MILLI + DEEPEST_MILLI
    done = log.later(QUARTER_MS).fact(replaced(last_milli + rise_milli))
    assert (dict(done.counts), charges(done)) == ({"closing": 1}, [])
    (alarm,) = of(done, "alarm")
    assert (alarm["kind"], alarm["reason"], alarm["meter_id"]) == ("reading-held", "closing", "M1")
    assert (alarm["register_milli"], alarm["device_time_ms"]) == (
        last_milli + rise_milli,
        log.now_ms,
    )
    assert (alarm["last_register_milli"], alarm["bound_milli"]) == (last_milli, 3_100)
    (charge,) = charges(log.later(QUARTER_MS).use(60, epoch=2))  # the new device goes on
    assert charge["energy_milli"] == 60
    said = {"resolves_reading_id": alarm["to_reading_id"], "resolution": "accept"}
    done = log.fact(replaced(last_milli + rise_milli, **said, revision=2))
    (charge,) = charges(done)
    assert (charge["kind"], charge["epoch"], charge["sequence"]) == (1, 1, 3)
    assert (charge["energy_milli"], charge["to_quality"]) == (rise_milli, ord("M"))
    assert dict(done.counts) == {"hold-accepted": 1}
    assert ("hold-resolved", "accept") in told(done)
    assert of(done, "relay-intent") == []
    assert dict(log.fact(replaced(0, **said, revision=3)).counts) == {}


@pytest.mark.parametrize("rise_milli", [2 * WEEK_MILLI, -DEEPEST_MILLI - 1])
def test_a_mistyped_closing_register_of_a_meter_that_was_never_read_waits_too(
    rise_milli: int,
) -> None:
    log = standing_log(max_power_w=POWER_W, opening_register_milli=2 * DEEPEST_MILLI)
    done = log.fact(replaced(2 * DEEPEST_MILLI + rise_milli))
    assert (dict(done.counts), charges(done)) == ({"closing": 1}, [])
    assert told(done) == [("reading-held", "closing")]


def closing_held() -> tuple[Log, dict[str, Any]]:
    """Return a log whose meter was replaced at a mistyped register, and what resolves that."""
    log = read_log()
    (alarm,) = of(log.fact(replaced(LAST_MILLI * 10)), "alarm")
    return log, {"resolves_reading_id": alarm["to_reading_id"]}


@pytest.mark.parametrize("resolution", ["accept", "reject"])
def test_an_echo_names_the_meters_whose_closing_register_waits(resolution: str) -> None:
    log, said = closing_held()
    (echo,) = of(log.fact(account(hold_id="H1", revision=1)), "echo")
    assert echo["waiting"] == [{"meter_id": "M1", "reading_id": said["resolves_reading_id"]}]
    log.fact(replaced(0, **said, resolution=resolution, revision=2))
    (echo,) = of(log.fact(account(hold_id="H2", revision=2)), "echo")
    assert echo["waiting"] == []


def test_a_closing_register_that_is_rejected_charges_nothing_beyond_the_last_reading() -> None:
    log, said = closing_held()
    done = log.fact(replaced(0, **said, resolution="reject", revision=2))
    assert (dict(done.counts), charges(done)) == ({"hold-rejected": 1}, [])
    assert told(done) == [("hold-resolved", "reject")]
    done = log.fact(replaced(0, **said, resolution="accept", revision=3))
    assert (dict(done.counts), tuple(done.outputs)) == ({}, ())


def test_a_closing_register_waits_over_a_restart_and_not_beyond_its_epoch() -> None:
    log, said = closing_held()
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(log.state.shard, [*fact_rows, *account_rows, header]))
    again.later(log.now_ms - START_MS)
    (charge,) = charges(again.fact(replaced(0, **said, resolution="accept", revision=2)))
    assert charge["energy_milli"] == 9 * LAST_MILLI
    log.fact(moved(replaced(0), "A1", 0))
    done = log.fact(moved(replaced(0), "A1", 0, **said, resolution="accept", revision=3))
    assert (dict(done.counts), tuple(done.outputs)) == ({}, ())


def test_a_closing_register_of_a_frozen_account_goes_on_waiting() -> None:
    log, said = closing_held()
    log.state.accounts["frozen"] = True
    done = log.fact(replaced(0, **said, resolution="accept", revision=2))
    assert (told(done), charges(done)) == ([("resolution-refused", "closing")], [])
    log.state.accounts["frozen"] = False
    assert len(charges(log.fact(replaced(0, **said, resolution="accept", revision=3)))) == 1


def test_a_closing_register_that_cannot_be_charged_freezes_its_account() -> None:
    log, said = closing_held()
    log.fact(tariff(version=2, price_micro=INT64_MAX, effective_at_ms=0))
    done = log.fact(replaced(0, **said, resolution="accept", revision=2))
    assert (told(done), charges(done)) == ([("frozen", "cannot-charge")], [])


@pytest.mark.parametrize(("power_w", "owner"), [(None, "A1"), (POWER_W, "A2")])
def test_a_closing_register_is_as_given_without_a_bound_and_where_another_account_begins_there(
    power_w: int | None, owner: str
) -> None:
    log = read_log(max_power_w=power_w)
    done = log.fact(moved(meter(max_power_w=power_w), owner, 10 * LAST_MILLI))
    assert [charge["energy_milli"] for charge in charges(done)] == [9 * LAST_MILLI]


def test_a_new_ratio_counts_from_the_register_at_which_it_was_set() -> None:
    log = read_log()
    assert told(log.use(5_100, ratio=40)) == [("reading-held", "ratio-mismatch")]
    done = log.fact(moved(meter(), "A1", 5_100, ratio=40))
    assert [charge["energy_milli"] for charge in charges(done)] == [100]
    (charge,) = charges(log.later(QUARTER_MS).use(5_110, epoch=2, ratio=40))
    assert (charge["ratio"], charge["energy_milli"]) == (40, 400)
    assert charge["account_charged_total_nano"] == (5_100 + 400) * 10**6


def test_a_meter_replaced_while_its_account_is_cut_gets_no_power_and_is_cut_anew() -> None:
    log = read_log(credit=4)
    done = log.fact(moved(meter(), "A1", 0, closing_register_milli=LAST_MILLI))
    assert of(done, "relay-intent") == []
    (intent,) = of(log.later(1_000).use(0, epoch=2), "relay-intent")
    assert (intent["wanted"], intent["cause"], intent["epoch"]) == ("open", "lease-renewed", 2)


# What holds a reading while it lasts


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("other-serial", {"serial": b"SN-OTHER"}),
        ("ratio-mismatch", {"ratio": 40}),
        ("absurd", {"device_time_ms": 0}),
        ("clock", {"received_at_ms": START_MS}),
    ],
)
def test_a_reading_that_is_not_the_meters_is_told_once_and_cleared_by_the_next_that_is(
    flag: str, changes: dict[str, Any]
) -> None:
    log = read_log()
    assert told(log.use(5_100, **changes)) == [("reading-held", flag)]
    assert told(log.later(1_000).use(5_200, **changes)) == []
    done = log.later(1_000).use(5_300)
    assert told(done) == [("meter-cleared", flag)]
    assert [charge["energy_milli"] for charge in charges(done)] == [300]
    assert told(log.later(1_000).use(5_400, **changes)) == [("reading-held", flag)]


# What is the last reading's own time


@pytest.mark.parametrize("register_milli", [LAST_MILLI - 1, LAST_MILLI + 107])
def test_another_register_at_the_same_instant_is_a_conflict_and_the_meter_goes_on(
    register_milli: int,
) -> None:
    log = read_log()
    same = {"device_time_ms": log.now_ms - QUARTER_MS}
    done = log.use(register_milli, **same)
    assert (dict(done.counts), told(done)) == ({"conflict": 1}, [("reading-held", "conflict")])
    assert of(done, "alarm")[0]["bound_milli"] == 106  # of two seconds
    assert told(log.later(1_000).use(register_milli, **same)) == []
    done = log.later(1_000).use(LAST_MILLI + 300)
    assert (len(charges(done)), told(done)) == (1, [("meter-cleared", "conflict")])


def test_a_register_that_rose_within_the_clocks_second_is_late_and_no_conflict() -> None:
    log = read_log()
    done = log.use(LAST_MILLI + 106, device_time_ms=log.now_ms - QUARTER_MS)
    assert (dict(done.counts), tuple(done.outputs)) == ({"late": 1}, ())


# What begins anew

HIGHEST_MILLI = 999_999


def brimful_log(**meter_changes: Any) -> Log:
    """Return a log whose meter was read 499 Wh before its register begins anew."""
    log = standing_log(2_000, **{"max_power_w": POWER_W, **meter_changes})
    log.use(HIGHEST_MILLI - 499)
    return log.later(QUARTER_MS)


def test_a_register_that_ran_over_is_charged_across_its_highest_value() -> None:
    log = brimful_log(register_max_milli=HIGHEST_MILLI, ratio=1)
    done = log.use(700)
    (charge,) = charges(done)
    assert dict(done.counts) == {"rollover": 1}
    assert (charge["kind"], charge["energy_milli"], charge["amount_nano"]) == (
        KIND_ROLLOVER,
        1_200,
        1_200 * PRICE_MICRO,
    )
    assert charge["meter_energy_total_milli"] == HIGHEST_MILLI + 1 + 700
    (charge,) = charges(log.later(QUARTER_MS).use(900))
    assert (charge["kind"], charge["from_register_milli"], charge["energy_milli"]) == (0, 700, 200)


@pytest.mark.parametrize(
    ("last_milli", "register_milli", "changes"),
    [
        (HIGHEST_MILLI - 499, 700, {"max_power_w": None}),  # no bound says that it can be
        (HIGHEST_MILLI - 499, 700, {"register_max_milli": None}),
        (HIGHEST_MILLI - 499, 2_601, {}),  # one more than the load can take
        (HIGHEST_MILLI - 499, HIGHEST_MILLI - 500, {}),
        (899_999, 0, {"max_power_w": 10**6}),  # not near enough
    ],
)
def test_a_register_that_fell_is_no_rollover_where_nothing_shows_it(
    last_milli: int, register_milli: int, changes: dict[str, Any]
) -> None:
    known = {"max_power_w": POWER_W, "register_max_milli": HIGHEST_MILLI, **changes}
    log = standing_log(2_000, **known)
    log.use(last_milli)
    done = log.later(QUARTER_MS).use(register_milli)
    assert set(done.counts) <= {"negative", "reset"}
    assert charges(done) == []


# What stands out at a reading that is charged


@pytest.mark.parametrize(
    ("flag", "register_milli", "changes"),
    [
        ("stuck", LAST_MILLI, {"power_w": 404}),
        ("rates-disagree", 5_200, {"rate_registers_milli": [5_000, 251, -1, -1, 0]}),
        ("reverse", 5_200, {"power_w": -1}),
        ("clock-drift", 5_200, {"received_at_ms": "ahead"}),
        ("clock-drift", 5_200, {"received_at_ms": "behind", "began_at_ms": 0}),
    ],
)
def test_what_stands_out_is_charged_and_told_when_it_begins_and_ends(
    flag: str, register_milli: int, changes: dict[str, Any]
) -> None:
    log = read_log()
    apart_ms = {"ahead": -120_001, "behind": 120_001}
    for expected in ([("meter-flagged", flag)], []):  # the second time nothing more is told
        received_at_ms = log.now_ms + apart_ms.get(changes.get("received_at_ms", ""), 0)
        done = log.use(register_milli, **{**changes, "received_at_ms": received_at_ms})
        assert (done.counts[flag], len(charges(done)), told(done)) == (1, 1, expected)
        log.later(QUARTER_MS)
    assert told(log.use(register_milli + 300)) == [("meter-cleared", flag)]


@pytest.mark.parametrize(
    ("register_milli", "changes"),
    [
        (LAST_MILLI, {"power_w": 403}),  # 100 Wh in a quarter: what a register may not show yet
        (LAST_MILLI, {"power_w": 0}),
        (5_200, {"rate_registers_milli": [5_000, 250, -1, -1, 0]}),
        (5_200, {"rate_registers_milli": [-1] * 5}),
        (5_200, {"relay_bits": OPEN}),  # it was closed until now
    ],
)
def test_what_a_sound_meter_may_tell_does_not_stand_out(
    register_milli: int, changes: dict[str, Any]
) -> None:
    log = read_log()
    assert dict(log.use(register_milli, **changes).counts) == {"accepted": 1}


def test_what_was_pushed_late_is_no_drift() -> None:
    log = read_log()
    at_ms = log.now_ms
    log.later(3_600_000)
    done = log.read(reading(5_200, at_ms=at_ms, received_at_ms=log.now_ms, began_at_ms=log.now_ms))
    assert dict(done.counts) == {"accepted": 1}


def test_use_while_the_relay_is_open_is_charged_and_an_alarm_of_tampering() -> None:
    log = read_log()
    assert told(log.use(LAST_MILLI + 300, relay_bits=OPEN)) == []
    assert told(log.later(QUARTER_MS).use(LAST_MILLI + 400, relay_bits=OPEN)) == []
    done = log.later(QUARTER_MS).use(LAST_MILLI + 501, relay_bits=OPEN)
    assert told(done) == [("meter-flagged", "use-while-open")]
    (charge,) = charges(done)
    assert charge["energy_milli"] == 101
    (alarm,) = of(done, "alarm")
    assert (alarm["last_register_milli"], alarm["register_milli"]) == (5_400, 5_501)
    assert told(log.later(QUARTER_MS).use(LAST_MILLI + 501, relay_bits=OPEN)) == [
        ("meter-cleared", "use-while-open")
    ]


def test_energy_that_flows_back_is_never_netted() -> None:
    log = read_log()
    done = log.use(LAST_MILLI + 300, power_w=-5_000)
    assert [charge["energy_milli"] for charge in charges(done)] == [300]


def test_a_gap_is_charged_whole_by_the_register_that_ends_it() -> None:
    log = read_log(max_power_w=None)
    done = log.later(3_600_000).use(LAST_MILLI + 9_000)
    assert dict(done.counts) == {"accepted": 1, "gap": 1}
    assert [charge["energy_milli"] for charge in charges(done)] == [9_000]


# Silence


def test_a_meter_that_is_silent_for_a_week_is_told_once_and_its_next_reading_cuts_nobody() -> None:
    log = read_log(credit=10, max_power_w=None)
    read_at_ms = log.now_ms - QUARTER_MS
    log.later(SILENCE_MS - QUARTER_MS - 1)
    assert log.state.next_deadline_ms() == log.now_ms + 1
    assert told(log.wake()) == []
    done = log.later(1).wake()
    assert (dict(done.counts), told(done)) == ({"silent": 1}, [("meter-silent", "silent")])
    (alarm,) = of(done, "alarm")
    assert (alarm["last_register_milli"], alarm["register_milli"]) == (LAST_MILLI, None)
    assert alarm["silent_since_ms"] == read_at_ms
    assert log.state.next_deadline_ms() is None
    assert log.later(SILENCE_MS).wake().outputs == ()
    done = log.use(LAST_MILLI + 20 * KWH_MILLI)
    assert told(done) == [
        ("meter-cleared", "silent"),
        ("not-cut", "evidence-silent"),
    ]
    assert kinds(log.later(QUARTER_MS).use(LAST_MILLI + 20 * KWH_MILLI)) == ["cut", "open"]


def test_a_meter_that_is_read_may_cut_the_account_of_one_that_is_silent() -> None:
    log = standing_log(credit=1)
    log.fact(meter("M2"))
    log.use(0)
    log.later(SILENCE_MS).wake()
    done = log.read(reading(2 * KWH_MILLI, meter_id="M2", at_ms=log.now_ms))
    assert kinds(done) == ["meter-cleared", "not-cut"]  # it was silent itself
    log.later(QUARTER_MS)
    done = log.read(reading(2 * KWH_MILLI + 1, meter_id="M2", at_ms=log.now_ms))
    assert kinds(done) == ["cut", "open", "open"]
    log.later(QUARTER_MS)
    done = log.use(KWH_MILLI)  # its first one after the silence renews no cut
    assert told(done) == [("meter-cleared", "silent"), ("not-cut", "evidence-silent")]


def test_silence_outlives_a_restart() -> None:
    log = read_log()
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(log.state.shard, [*fact_rows, *account_rows, header]))
    assert again.state.next_deadline_ms() == log.state.next_deadline_ms()
    again.later(log.now_ms - START_MS + SILENCE_MS)
    assert ("meter-silent", "silent") in told(again.wake())


# What is told is over


@pytest.mark.parametrize(
    ("odd", "is_told"),
    [
        ({}, False),
        ({"register_milli": LAST_MILLI + 10**6}, True),
        ({"serial": b"SN-M2"}, True),
        ({"power_w": -1}, True),
    ],
)
def test_what_is_told_of_a_meter_is_over_when_it_leaves(odd: dict[str, Any], is_told: bool) -> None:
    log = read_log()
    register_milli = odd.pop("register_milli", LAST_MILLI)
    log.use(register_milli, **odd)
    log.fact(account("A2"))
    before = meter(max_power_w=POWER_W)
    done = log.fact(moved(before, "A2", LAST_MILLI))
    assert told(done) == [("meter-left", "meter-left")] * is_told
    assert [alarm["meter_epoch"] for alarm in of(done, "alarm")] == [1] * is_told


def test_a_meter_of_which_a_later_fact_came_first_is_gone_and_what_is_told_of_it_over() -> None:
    """It went on to another shard before its coming to A2 was told: that fact is old then."""
    log = read_log()
    log.use(LAST_MILLI, power_w=-1)
    log.fact(account("A2"))
    second = moved(meter(max_power_w=POWER_W), "A2", LAST_MILLI)
    third = moved(second, "A9", LAST_MILLI, shard=log.state.shard + 1)
    done = log.fact(third)
    assert (told(done), charges(done)) == ([("meter-left", "meter-left")], [])
    assert dict(log.fact(second).counts) == {"fact-old": 1}
    assert log.use(LAST_MILLI).counts["unknown-meter"] == 1


def test_a_house_meter_is_held_without_alarms() -> None:
    log = Log()
    log.fact(meter("M1", house("M1"), max_power_w=POWER_W))
    log.later(1_000).use(LAST_MILLI)
    done = log.later(QUARTER_MS).use(10**9)
    assert (dict(done.counts), tuple(done.outputs)) == ({"implausible": 1}, ())
    assert log.later(1_000).use(LAST_MILLI).counts["meter-held"] == 1


# What counts nothing


def test_a_register_that_stands_for_days_behind_a_closed_relay_is_told() -> None:
    log = read_log()
    log.fact(policy(version=2, rules='{"idle_days": 2}'))
    log.use(LAST_MILLI)
    since_ms = log.now_ms
    assert told(log.later(2 * DAY_MS - 1).use(LAST_MILLI + 100)) == []
    done = log.later(1).use(LAST_MILLI + 100)
    assert told(done) == [("meter-flagged", "idle")]
    assert (done.counts["accepted"], done.counts["idle"]) == (1, 1)
    (alarm,) = of(done, "alarm")
    assert (alarm["last_register_milli"], alarm["last_time_ms"]) == (LAST_MILLI, since_ms)
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(log.state.shard, [*fact_rows, *account_rows, header]))
    again.later(log.now_ms - START_MS + QUARTER_MS)
    assert told(again.use(LAST_MILLI + 101)) == [("meter-cleared", "idle")]
    assert told(again.later(2 * DAY_MS).use(LAST_MILLI + 101)) == [("meter-flagged", "idle")]
    again.later(QUARTER_MS).fact(policy(version=3))
    assert told(again.use(LAST_MILLI + 101)) == [("meter-cleared", "idle")]
    assert not again.state.tails.have_habits


def test_a_register_that_stands_behind_an_open_relay_is_not_told() -> None:
    log = read_log()
    log.fact(policy(version=2, rules='{"idle_days": 1}'))
    for relay_bits in (OPEN, 0, OPEN):
        assert told(log.use(LAST_MILLI, relay_bits=relay_bits)) == []
        log.later(DAY_MS)
    assert told(log.use(LAST_MILLI)) == []  # it stands since it was closed again


# What is usual


DAY_MS = 86_400_000


def learned(days: int = 20, use_milli: int = 500, **rules: Any) -> Log:
    """Return a log whose meter took `use_milli` in the same quarter of an hour of some days.

    It was read last at the beginning of that quarter; its policy asks for thrice the usual.
    """
    log = standing_log(10_000)
    asked = {"unusual_factor": 3, "zone": "Asia/Shanghai", **rules}
    log.fact(policy(version=2, rules=json.dumps(asked)))
    for day in range(days):
        log.use(day * use_milli)
        log.later(QUARTER_MS).use((day + 1) * use_milli)
        log.later(DAY_MS - QUARTER_MS)
    log.use(days * use_milli)
    return log.later(QUARTER_MS)


def test_what_is_far_beyond_the_habits_of_its_hour_is_charged_and_told() -> None:
    """500 Wh a quarter are 2 kW, of the code that ends at 2,048 W: thrice that are 1,536 Wh."""
    log = learned()
    done = log.use(10_000 + 1_537)
    assert told(done) == [("meter-flagged", "unusual")]
    (alarm,) = of(done, "alarm")
    assert (alarm["register_milli"], alarm["device_time_ms"]) == (11_537, log.now_ms)
    mark = (10_000, log.now_ms - QUARTER_MS, 1_536)
    assert (alarm["last_register_milli"], alarm["last_time_ms"], alarm["bound_milli"]) == mark
    assert (done.counts["accepted"], done.counts["unusual"]) == (1, 1)
    assert [charge["energy_milli"] for charge in charges(done)] == [1_537]
    log.later(60_000)
    assert told(log.use(12_000)) == []  # too soon to tell: it stays as it is
    assert told(log.later(QUARTER_MS).use(12_100)) == [("meter-cleared", "unusual")]


def test_what_is_within_its_habits_is_not_told() -> None:
    assert told(learned().use(10_000 + 1_536)) == []


def test_nobody_knows_an_hour_that_was_told_too_seldom() -> None:
    assert told(learned(days=19).use(19 * 500 + 9_000)) == []


def test_an_hour_that_nothing_was_used_in_is_not_disturbed_by_noise() -> None:
    assert told(learned(use_milli=0).use(100)) == []
    assert told(learned(use_milli=0).use(101)) == [("meter-flagged", "unusual")]


def test_a_load_that_stays_becomes_usual() -> None:
    log, register_milli = learned(), 10_000
    flagged = []
    for _ in range(30):
        register_milli += 5_000
        flagged.append(log.use(register_milli).counts["unusual"])
        log.later(DAY_MS - QUARTER_MS).use(register_milli)
        log.later(QUARTER_MS)
    assert flagged[0] == 1
    assert flagged[-1] == 0
    assert sum(flagged) < 12


def test_habits_outlive_a_restart_and_go_with_the_policy_that_asked() -> None:
    log = learned()
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(log.state.shard, [*fact_rows, *account_rows, header]))
    again.later(log.now_ms - START_MS)
    assert told(again.use(12_000)) == [("meter-flagged", "unusual")]
    again.later(QUARTER_MS).fact(policy(version=3))
    assert told(again.use(12_100)) == [("meter-cleared", "unusual")]
    assert not again.state.tails.have_habits


def test_without_a_policy_that_asks_no_meter_has_habits() -> None:
    log = read_log()
    log.use(LAST_MILLI + 100)
    assert not log.state.tails.have_habits
