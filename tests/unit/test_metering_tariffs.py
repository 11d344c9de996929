"""Rules 4 and 5 by name: intervals split at rates, months and versions; ladders; late readings.

One meter at 1 milli a second, so that seconds are energy and every expected figure is worked out
in the head. Prices: valley 1, peak 3 (micro); so amounts are in nano.
"""

from collections import Counter
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from services.common.kernel.frames import (
    BASIS_CLOSED,
    BASIS_REGISTERS,
    BASIS_TIME,
    KIND_RESPLIT,
    NO_RATE,
)
from services.common.kernel.profiles import RATE_NAMES
from services.common.kernel.units import INT64_MAX
from services.common.tariffs.plan import SLOTS_MAX, Plan
from services.metering.domain.rows import ACCOUNT, WINDOWS_MAX, account_row_key
from services.metering.domain.shard_rows import rows_of, shard_of_rows
from tests.unit.metering_log import (
    SHARD,
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
    site,
    tariff,
)

HOUR_S = 3_600
PEAK, FLAT, VALLEY = 1, 2, 3
TWO_RATES: dict[str, Any] = {
    "zone": "Asia/Shanghai",
    "rates_micro": {"peak": 3, "valley": 1},
    "seasons": [
        {
            "name": "all",
            "begins": "01-01",
            "days": [
                {
                    "kinds": ["weekday", "weekend", "holiday"],
                    "slots": [
                        {"begins": "00:00", "rate": "valley"},
                        {"begins": "08:00", "rate": "peak"},
                        {"begins": "20:00", "rate": "valley"},
                    ],
                }
            ],
        }
    ],
}
MONTHLY: dict[str, Any] = {
    "zone": "Asia/Shanghai",
    "rates_micro": {"flat": 10},
    "ladder": {
        "period": "month",
        "steps": [{"above_milli": 1_000, "add_micro": 5}, {"above_milli": 2_000, "add_micro": 7}],
    },
}
MARCH, APRIL = 2026 * 12 + 2, 2026 * 12 + 3


def at(text: str) -> int:
    """Return a time of 2026 in Shanghai, MM-DDTHH:MM, as ms UTC."""
    local = datetime.fromisoformat(f"2026-{text}").replace(tzinfo=ZoneInfo("Asia/Shanghai"))
    return int(local.timestamp()) * 1000


def plan(document: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the fact of a tariff with a plan."""
    text = Plan.model_validate({**document, **changes.pop("also", {})}).text()
    return tariff(kind="plan", price_micro=0, plan=text, **changes)


def log_of(document: dict[str, Any], opens: str, **changes: Any) -> Log:
    """Return a log with an account under a plan whose meter was read as 0 at `opens`."""
    log = Log()
    log.now_ms = at(opens)
    facts = (site(), plan(document, **changes), policy(), account(credit=10**6), meter())
    for fact in facts:
        log.fact(fact)
    log.use(0)
    return log


def read_at(log: Log, text: str, register_milli: int) -> dict[str, Any]:
    """Let a reading come at its time; return its charge."""
    log.now_ms = at(text)
    (charge,) = charges(log.use(register_milli))
    return charge


def come_late(log: Log, text: str, register_milli: int) -> Any:
    """Let a reading of an earlier time come now; return what it did."""
    return log.read(reading(register_milli, at_ms=at(text), received_at_ms=log.now_ms))


def charged(log: Log) -> int:
    slot = log.state.account_slot(account()["account_key"])
    return int(log.state.accounts["charged_nano"][slot])


def shares(charge: dict[str, Any]) -> list[tuple[int, int]]:
    return [(line["rate"], line["energy_milli"]) for line in charge["lines"]]


# Time of use


def test_an_interval_within_one_rate_has_one_line_and_no_price() -> None:
    charge = read_at(log_of(TWO_RATES, "03-02T08:00"), "03-02T08:30", 1_000)
    assert (charge["price_micro"], charge["amount_nano"]) == (0, 3_000)
    assert shares(charge) == [(PEAK, 1_000)]
    assert charge["lines"][0]["basis"] == 0


def test_an_interval_is_split_at_the_edge_of_rates_to_the_last_unit() -> None:
    # 07:40 to 08:20: half of 1,001 rounds down before the edge.
    charge = read_at(log_of(TWO_RATES, "03-02T07:40"), "03-02T08:20", 1_001)
    assert shares(charge) == [(VALLEY, 500), (PEAK, 501)]
    assert charge["amount_nano"] == 500 + 3 * 501
    assert {line["basis"] for line in charge["lines"]} == {BASIS_TIME}


def test_parts_of_one_rate_are_one_line_in_the_order_of_their_first_instants() -> None:
    # 19:00 to 09:00: an hour of peak, twelve of valley, an hour of peak.
    charge = read_at(log_of(TWO_RATES, "03-02T19:00"), "03-03T09:00", 1_400)
    assert shares(charge) == [(PEAK, 200), (VALLEY, 1_200)]


def test_a_version_holds_from_its_instant_on_within_an_interval() -> None:
    log = log_of(TWO_RATES, "03-02T09:00")
    dearer = {"rates_micro": {"peak": 5, "valley": 1}}
    log.fact(plan(TWO_RATES, version=2, effective_at_ms=at("03-02T10:00"), also=dearer))
    charge = read_at(log, "03-02T11:00", 2_000)
    lines = [(line["version"], line["energy_milli"]) for line in charge["lines"]]
    assert lines == [(1, 1_000), (2, 1_000)]
    assert (charge["amount_nano"], charge["tariff_version"]) == (3_000 + 5_000, 2)


RATE_OF_SLOT = ("valley", "deep_valley", "flat", "peak", "sharp")
FULL_DAY = [
    {"begins": f"{hour:02}:30" if hour else "00:00", "rate": RATE_OF_SLOT[hour % 5]}
    for hour in range(SLOTS_MAX)
]
"""As many slots as a day may have, of all five rates: they change each hour, at half past."""


def test_a_day_of_as_many_slots_as_may_be_is_charged_slot_by_slot() -> None:
    days = [{"kinds": ["weekday", "weekend", "holiday"], "slots": FULL_DAY}]
    prices = dict(zip(RATE_OF_SLOT, (1, 10, 100, 1_000, 10_000), strict=True))
    seasons = [{"name": "all", "begins": "01-01", "days": days}]
    log = log_of({**TWO_RATES, "rates_micro": prices, "seasons": seasons}, "03-02T00:00")
    charge = read_at(log, "03-03T00:00", 24 * HOUR_S)
    # Valley until 01:30, and at 5 and 10; deep valley at 1, 6, 11; flat at 2, 7, 12; peak at 3
    # and 8, and from 13:30 on; sharp at 4 and 9. Each an hour, but for the first and the last.
    hours = {"valley": 3.5, "deep_valley": 3, "flat": 3, "peak": 12.5, "sharp": 2}
    expected = {RATE_NAMES.index(name): int(each * HOUR_S) for name, each in hours.items()}
    assert dict(shares(charge)) == expected
    assert charge["amount_nano"] == sum(
        int(each * HOUR_S) * prices[name] for name, each in hours.items()
    )


def test_an_interval_over_a_change_of_the_clock_and_a_version_is_split_at_both() -> None:
    """Berlin, 25 October 2026: 02:00 to 03:00 comes twice; from 03:00 on all costs tenfold."""
    slots = [{"begins": "00:00", "rate": "valley"}, {"begins": "02:30", "rate": "peak"}]
    days = [{"kinds": ["weekday", "weekend", "holiday"], "slots": slots}]
    document = {
        "zone": "Europe/Berlin",
        "rates_micro": {"valley": 1, "peak": 3},
        "seasons": [{"name": "all", "begins": "01-01", "days": days}],
    }
    dearer = {"rates_micro": {"valley": 10, "peak": 30}}
    three, midnight = at("10-25T10:00"), at("10-25T06:00")  # in Shanghai
    log = log_of(document, "10-24T12:00")
    log.fact(plan(document, also=dearer, version=2, effective_at_ms=three))
    log.now_ms = midnight
    log.use(0)
    charge = read_at(log, "10-25T12:00", 6 * HOUR_S)  # to 05:00, six hours later
    told = [(line["version"], line["rate"], line["energy_milli"]) for line in charge["lines"]]
    assert told == [
        (1, VALLEY, 3 * HOUR_S),  # to 02:30, and again from 02:00 to 02:30
        (1, PEAK, HOUR_S),  # the half hour before the clock goes back, and that before 03:00
        (2, PEAK, 2 * HOUR_S),
    ]
    assert charge["amount_nano"] == (3 * 1 + 1 * 3 + 2 * 30) * HOUR_S
    assert {line["basis"] for line in charge["lines"]} == {BASIS_TIME}


def test_surcharges_and_taxes_stand_apart() -> None:
    also = {
        "surcharges": [{"name": "fund", "price_micro": 200}],
        "taxes": [{"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges"]}],
        "rates_micro": {"peak": 300, "valley": 100},
    }
    charge = read_at(log_of({**TWO_RATES, **also}, "03-02T08:00"), "03-02T09:00", 10)
    (line,) = charge["lines"]
    # Taxes of a unit: 300 x 13 % = 39, 200 x 13 % = 26.
    assert (line["rate_nano"], line["surcharge_nano"], line["tax_nano"]) == (3_000, 2_000, 650)
    assert charge["amount_nano"] == 5_650


# Late readings


def test_a_late_reading_splits_its_window_again() -> None:
    log = log_of(TWO_RATES, "03-02T06:00")
    read_at(log, "03-02T10:00", 4_000)  # by time: 2,000 valley, 2,000 peak
    before = charged(log)
    done = come_late(log, "03-02T08:00", 3_000)  # in truth 3,000 valley, 1,000 peak
    (charge,) = charges(done)
    assert dict(done.counts) == {"re-split": 1}
    assert (charge["kind"], charge["energy_milli"]) == (KIND_RESPLIT, 0)
    assert shares(charge) == [(VALLEY, 1_000), (PEAK, -1_000)]
    assert charge["amount_nano"] == 1_000 - 3_000 == charged(log) - before
    assert charged(log) == 3_000 + 3 * 1_000


def test_a_late_reading_leaves_the_meter_where_it_stands() -> None:
    log = log_of(TWO_RATES, "03-02T06:00")
    read_at(log, "03-02T10:00", 4_000)
    come_late(log, "03-02T09:00", 3_500)
    charge = read_at(log, "03-02T11:00", 4_100)
    assert (charge["from_register_milli"], charge["energy_milli"]) == (4_000, 100)
    assert charge["meter_energy_total_milli"] == 4_100


def test_a_late_reading_outside_windows_and_one_that_does_not_fit_change_nothing() -> None:
    log = log_of(TWO_RATES, "03-02T06:00")
    read_at(log, "03-02T07:00", 1_000)
    read_at(log, "03-02T10:00", 4_000)
    assert dict(come_late(log, "03-02T06:30", 500).counts) == {"late": 1}
    for register_milli in (999, 4_001):
        done = come_late(log, "03-02T08:00", register_milli)
        assert dict(done.counts) == {"late-conflict": 1}
        assert (done.outputs, done.account_rows) == ((), ())


def test_the_widest_windows_are_kept() -> None:
    log = log_of(TWO_RATES, "03-02T06:00")
    read_at(log, "03-02T10:00", 40)  # four hours wide
    for day in range(2, 2 + WINDOWS_MAX):  # one or two hours wide, over 20:00 each
        read_at(log, f"03-{day:02}T19:00", 1_000 * day)
        read_at(log, f"03-{day:02}T{20 + (day > 2):02}:30", 1_000 * day + 10)
    slot = int(log.state.standing.find(np.array([meter()["meter_key"]]))[0])
    widths = [(end - begin) // 1000 for begin, _, end, *_ in log.state.windows_of(slot)]
    assert len(widths) == WINDOWS_MAX
    assert 5_400 not in widths


def test_a_correction_never_cuts_and_may_restore() -> None:
    log = log_of(TWO_RATES, "03-02T06:00")
    credit = {"credited_nano": 7_000, "revision": 1}
    log.fact(policy(alarm_1_nano=0, alarm_2_nano=0, overdraft_nano=0, restore_nano=1, version=2))
    log.fact({**account(), **credit})
    assert kinds(_read(log, "03-02T10:00", 4_000)) == ["cut", "open"]  # 2,000 + 6,000
    assert kinds(come_late(log, "03-02T08:00", 4_000)) == ["restored", "closed"]  # 4,000
    assert kinds(come_late(log, "03-02T07:00", 100)) == []


def _read(log: Log, text: str, register_milli: int) -> Any:
    log.now_ms = at(text)
    return log.use(register_milli)


# Registers of rates


def rated(register_milli: int, peak: int, valley: int, **more: Any) -> Any:
    """Return a reading with registers of peak and valley."""
    rates = [-1, peak, -1, valley, -1]
    return reading(register_milli, rate_registers_milli=rates, **more)


def rated_log(document: dict[str, Any], opens: str) -> Log:
    log = log_of(document, opens)
    log.now_ms = at(opens) + 60_000
    log.read(rated(0, 0, 0, at_ms=log.now_ms))
    return log


def test_registers_of_rates_decide_where_they_agree_and_leave_no_window() -> None:
    log = rated_log(TWO_RATES, "03-02T07:40")
    log.now_ms = at("03-02T08:20")
    (charge,) = charges(log.read(rated(1_001, 900, 100, at_ms=log.now_ms)))
    # By time it were half and half; the 1 that they leave over is of the last rate.
    assert shares(charge) == [(PEAK, 900), (VALLEY, 101)]
    assert {line["basis"] for line in charge["lines"]} == {BASIS_REGISTERS}
    assert charge["amount_nano"] == 3 * 900 + 101
    assert list(charge["to_rates_milli"]) == [-1, 900, -1, 100, -1]
    assert come_late(log, "03-02T07:50", 500).counts["late"] == 1


@pytest.mark.parametrize(
    ("peak", "valley"), [(900, 50), (900, 152), (1_001, -1)], ids=["less", "more", "one is gone"]
)
def test_registers_of_rates_that_do_not_agree_are_not_believed(peak: int, valley: int) -> None:
    log = rated_log(TWO_RATES, "03-02T07:40")
    log.now_ms = at("03-02T08:20")
    (charge,) = charges(log.read(rated(1_001, peak, valley, at_ms=log.now_ms)))
    assert {line["basis"] for line in charge["lines"]} == {BASIS_TIME}


def test_a_late_reading_with_registers_tells_its_side_of_the_end_of_a_month() -> None:
    plan = {**TWO_RATES, "ladder": MONTHLY["ladder"]}
    log = rated_log(plan, "03-31T06:00")
    log.now_ms = at("04-01T06:00")
    (charge,) = charges(log.read(rated(1_200, 700, 500, at_ms=log.now_ms)))
    assert {line["basis"] for line in charge["lines"]} == {BASIS_TIME}
    late = rated(900, 600, 300, at_ms=at("03-31T23:00"), received_at_ms=log.now_ms)
    (moved,) = charges(log.read(late))
    energy = Counter[tuple[int, int]]()
    for line in (*charge["lines"], *moved["lines"]):
        energy[line["period"], line["rate"]] += line["energy_milli"]
    # Until 23:00 as the registers say; of the 300 after it, an hour of seven is March's.
    assert energy[MARCH, PEAK] == 600
    assert energy[MARCH, VALLEY] == 300 + 300 // 7
    assert energy[APRIL, VALLEY] == 300 - 300 // 7


# Ladders


def test_a_delta_is_split_at_the_steps_of_the_ladder() -> None:
    charge = read_at(log_of(MONTHLY, "03-01T00:00"), "03-02T00:00", 2_500)
    (line,) = charge["lines"]
    # 1,000 at 10, 1,000 at 15, 500 at 17.
    assert (line["rate_nano"], line["ladder_nano"]) == (25_000, 5_000 + 3_500)
    assert (line["period"], line["total_milli"]) == (MARCH, 2_500)


def test_a_month_begins_anew_and_the_one_before_stays_open() -> None:
    log = log_of(MONTHLY, "03-01T00:00")
    read_at(log, "03-31T12:00", 1_500)
    charge = read_at(log, "04-01T12:00", 2_500)  # half of it in March
    lines = [(line["period"], line["total_milli"], line["ladder_nano"]) for line in charge["lines"]]
    assert lines == [(MARCH, 2_000, 2_500), (APRIL, 500, 0)]
    # In truth 300 of it were used in March: 200 go to April, below its first step.
    (late,) = charges(come_late(log, "04-01T00:00", 1_800))
    moved_lines = [
        (line["period"], line["energy_milli"], line["ladder_nano"]) for line in late["lines"]
    ]
    assert moved_lines == [(MARCH, -200, -1_000), (APRIL, 200, 0)]


def test_what_belongs_to_a_closed_month_counts_in_the_oldest_open_one() -> None:
    log = log_of(MONTHLY, "01-10T00:00")
    log.fact(meter("M2", revision=0))
    log.read(reading(0, meter_id="M2", at_ms=log.now_ms))
    read_at(log, "03-10T00:00", 590)  # M1 goes on; M2 is away since January
    done = log.read(reading(590, meter_id="M2", at_ms=at("03-10T00:00")))
    (charge,) = charges(done)
    assert done.counts["period-closed"] == 1
    (alarm,) = [each for each in of(done, "alarm") if each["kind"] == "period-closed"]
    assert (alarm["meter_id"], alarm["charge_sequence"]) == ("M2", charge["sequence"])
    lines = [(line["period"], line["energy_milli"], line["basis"]) for line in charge["lines"]]
    assert lines == [  # 22 days of January, 28 of February, 9 of March
        (MARCH - 1, 220, BASIS_TIME | BASIS_CLOSED),
        (MARCH - 1, 280, BASIS_TIME),
        (MARCH, 90, BASIS_TIME),
    ]


def test_a_month_that_began_before_the_account_counts_its_days() -> None:
    log = log_of(MONTHLY, "04-16T08:00")  # 15 of 30 days: steps above 500 and 1,000
    charge = read_at(log, "04-17T00:00", 1_100)
    assert charge["lines"][0]["ladder_nano"] == 500 * 5 + 100 * 7


def test_a_year_that_began_before_the_account_counts_its_days_and_the_next_one_is_whole() -> None:
    yearly = {"period": "year", "steps": [{"above_milli": 365_000, "add_micro": 5}]}
    log = log_of({**MONTHLY, "ladder": yearly}, "10-01T09:00")  # 92 of 365 days: above 92,000
    (line,) = read_at(log, "11-01T09:00", 93_000)["lines"]
    assert (line["days"], line["days_of"], line["period"]) == (92, 365, 2026)
    assert line["ladder_nano"] == 1_000 * 5
    log.now_ms = at("12-31T23:59") + 60_000
    log.use(93_000)
    log.now_ms += 31 * 86_400_000
    (charge,) = charges(log.use(93_000 + 366_000))
    assert sum(line["ladder_nano"] for line in charge["lines"]) == 1_000 * 5


def test_a_ladder_of_each_meter_counts_for_itself() -> None:
    ladder = {**MONTHLY["ladder"], "scope": "meter"}
    log = log_of({**MONTHLY, "ladder": ladder}, "03-01T00:00")
    log.fact(meter("M2"))
    log.read(reading(0, meter_id="M2", at_ms=log.now_ms))
    log.now_ms = at("03-02T00:00")
    done = log.read(*(reading(900, meter_id=m, at_ms=log.now_ms) for m in ("M1", "M2")))
    assert [c["lines"][0]["ladder_nano"] for c in charges(done)] == [0, 0]


def test_a_ladder_of_a_meter_goes_on_behind_another_device_and_begins_anew_elsewhere() -> None:
    ladder = {**MONTHLY["ladder"], "scope": "meter"}
    log = log_of({**MONTHLY, "ladder": ladder}, "03-01T00:00")
    read_at(log, "03-16T00:00", 800)
    replaced = moved(meter(), "A1", 900, serial="SN-NEW", opening_register_milli=50)
    (closing,) = charges(log.fact(replaced))
    assert closing["lines"][0]["total_milli"] == 900
    told = {"serial": b"SN-NEW", "epoch": 2}
    log.now_ms = at("03-17T00:00")
    (charge,) = charges(log.read(reading(350, at_ms=log.now_ms, **told)))
    (line,) = charge["lines"]
    # 300 of it from 900 on: 200 above the first step of 1,000, of a whole month.
    assert (line["total_milli"], line["ladder_nano"]) == (1_200, 200 * 5)
    assert line["days"] == line["days_of"] == 31
    home = moved(replaced, house("M1"), 350)
    log.fact(home)
    log.fact(moved(home, "A1", 350))
    log.now_ms = at("03-18T00:00")
    (charge,) = charges(log.read(reading(650, at_ms=log.now_ms, serial=b"SN-NEW", epoch=4)))
    assert (charge["lines"][0]["total_milli"], charge["lines"][0]["days"]) == (300, 15)


def test_a_ladder_of_each_rate_counts_for_itself() -> None:
    steps = {"peak": [{"above_milli": 100, "add_micro": 4}]}
    ladder = {"period": "month", "basis": "rate", "rate_steps": steps}
    log = log_of({**TWO_RATES, "ladder": ladder}, "03-01T07:00")
    charge = read_at(log, "03-01T09:00", 1_000)
    lines = [(line["rate"], line["ladder_nano"], line["total_milli"]) for line in charge["lines"]]
    assert lines == [(VALLEY, 0, 0), (PEAK, 400 * 4, 500)]


def test_energy_that_comes_late_to_a_lower_version_raises_what_the_higher_one_stands_on() -> None:
    log = log_of(MONTHLY, "03-01T00:00")
    log.fact(plan(MONTHLY, version=2, effective_at_ms=at("03-02T00:00")))
    read_at(log, "03-03T00:00", 2_000)  # 1,000 under each; the second one from the step on
    (late,) = charges(come_late(log, "03-02T00:00", 1_200))
    lines = [
        (line["version"], line["rate"], line["energy_milli"], line["ladder_nano"])
        for line in late["lines"]
    ]
    assert lines == [(1, FLAT, 200, 1_000), (2, NO_RATE, 0, 400), (2, FLAT, -200, -1_400)]
    assert charged(log) == 2_000 * 10 + 1_000 * 5


def test_another_tariff_begins_anew() -> None:
    log = log_of(MONTHLY, "03-01T00:00")
    read_at(log, "03-02T00:00", 1_500)
    log.fact(plan(MONTHLY, tariff_id="T2"))
    log.fact(account(credit=10**6, tariff_id="T2", revision=1))
    charge = read_at(log, "03-03T00:00", 2_500)
    assert charge["lines"][0]["total_milli"] == 1_000


def test_a_meter_that_leaves_takes_its_windows_with_it() -> None:
    log = log_of(TWO_RATES, "03-02T07:00")
    read_at(log, "03-02T09:00", 100)
    log.fact(moved(meter(), "house:M1", 100))
    key = account_row_key(account()["account_key"])
    (value,) = [row.value for row in rows_of(log.state)[1] if row.key == key]
    assert len(value) == ACCOUNT.itemsize


@pytest.mark.parametrize("commodity", ["water", "gas"])
def test_litres_are_charged_by_the_cubic_metre(commodity: str) -> None:
    log = Log()
    log.now_ms = at("03-01T00:00")
    priced = tariff(price_micro=3_450_000, commodity=commodity)  # 3.45 a cubic metre
    supplied = (account(commodity=commodity), meter(commodity=commodity))
    for fact in (site(), priced, policy(), *supplied):
        log.fact(fact)
    log.use(0)
    (charge,) = charges(log.later(60_000).use(1_234))
    assert (charge["energy_milli"], charge["commodity_name"]) == (1_234, commodity)
    assert charge["amount_nano"] == 4_257_300_000  # 1.234 x 3.45


# Bounds, and rows


def test_an_amount_beyond_int64_freezes_the_account_and_leaves_no_trace() -> None:
    steep = {"steps": [{"above_milli": 1, "add_micro": 10**13}], "period": "month"}
    log = log_of({**MONTHLY, "ladder": steep}, "03-01T00:00")
    log.now_ms = at("03-02T00:00")
    done = log.use(10**6)
    assert (kinds(done), charges(done)) == (["frozen"], [])
    assert log.state.accounts["accumulations"][0] == 1  # of the opening reading


def test_a_product_beyond_int64_within_the_split_is_exact() -> None:
    log = log_of(TWO_RATES, "03-02T07:00")
    charge = read_at(log, "03-02T09:00", 10**12 + 1)
    assert shares(charge) == [(VALLEY, 5 * 10**11), (PEAK, 5 * 10**11 + 1)]
    assert 10**12 * 7_200_000 < INT64_MAX < 10**15 * 7_200_000
    charge = read_at(log, "03-02T21:00", 10**15)
    assert sum(energy for _, energy in shares(charge)) == 10**15 - 10**12 - 1


def test_a_shard_read_from_its_rows_goes_on_as_one_that_never_stopped() -> None:
    log = log_of({**TWO_RATES, "ladder": MONTHLY["ladder"]}, "03-30T06:00")
    read_at(log, "04-01T10:00", 5_000)
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(SHARD, [*fact_rows, *account_rows, header]))
    again.now_ms = log.now_ms
    for one in (log, again):
        come_late(one, "04-01T00:00", 3_000)
        read_at(one, "04-01T12:00", 6_000)
    assert rows_of(log.state)[1] == rows_of(again.state)[1]
    assert charged(log) == charged(again)


@pytest.mark.parametrize("document", [TWO_RATES, MONTHLY])
def test_readings_of_a_period_come_to_the_same_in_any_order(document: dict[str, Any]) -> None:
    readings = [("03-30T12:00", 100), ("03-31T09:00", 900), ("04-01T10:00", 1_900)]
    totals = set()
    for order in ((0, 1, 2), (1, 0, 2), (2, 0, 1), (2, 1, 0), (0, 2, 1), (1, 2, 0)):
        log = log_of(document, "03-30T06:00")
        log.now_ms = at("04-02T00:00")
        for i in order:
            come_late(log, *readings[i])
        totals.add(charged(log))
    assert len(totals) == 1


def test_accounts_of_other_zones_under_a_flat_price_that_gets_a_plan_pay_in_full_by_its_clock() -> (
    None
):
    # The zone of a site stands in no charge: the plan's clock is the tariff's, as its prices are.
    log = Log()
    log.now_ms = at("03-02T06:00")
    names = {"A1": "M1", "A2": "M2"}
    zones = {"A1": ("S1", "Asia/Shanghai"), "A2": ("S2", "Europe/London")}
    for site_id, zone in zones.values():
        log.fact(site(site_id=site_id, zone=zone))
    log.fact(tariff(price_micro=2))
    log.fact(policy())
    for account_id, meter_id in names.items():
        site_id, _ = zones[account_id]
        log.fact(account(account_id, site_id=site_id))
        log.fact(meter(meter_id, account_id, site_id=site_id))
    log.fact(plan(TWO_RATES, version=2, effective_at_ms=at("03-02T07:00")))
    for text, register_milli in (("03-02T06:00", 0), ("03-02T09:00", 3 * HOUR_S)):
        log.now_ms = at(text)
        told = [
            reading(register_milli, meter_id=meter_id, at_ms=log.now_ms)
            for meter_id in names.values()
        ]
        done = log.read(*told)
    paid = {charge["account_key"]: charge for charge in charges(done)}
    assert len(paid) == len(names)
    for charge in paid.values():
        assert charge["energy_milli"] == 3 * HOUR_S
        assert charge["amount_nano"] == HOUR_S * (2 + 1 + 3), "flat, then valley, then peak at 8"
