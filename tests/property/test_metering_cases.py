"""Single histories that stay: limits that chance does not reach, and what once went wrong.

Each is a short log; engine and scalar model must agree on it (check), and what a person would
look at is said in the test as well.
"""

from collections import Counter
from typing import Any

from services.common.kernel.ids import column_key
from services.metering.domain.messages import LogRecord, Output
from services.metering.domain.rows import account_row_key
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import shard_of_rows
from tests.property.metering_histories import (
    CALENDARED,
    SETTLED,
    SHARD,
    START_MS,
    Book,
    Device,
    Frame,
    Op,
    Read,
)
from tests.property.metering_runs import charges_of, fresh_run, outputs_of, run, totals
from tests.property.test_metering_model import check

A0 = column_key("account", "A0")
A1 = column_key("account", "A1")
A2 = column_key("account", "A2")
M0 = column_key("meter", "M0")


def outcome(records: list[LogRecord]) -> tuple[ShardState, list[Output]]:
    """Return where the engine ends and what it sent; fail where the model sees it otherwise."""
    check(records)
    state, done = fresh_run(records)
    return state, outputs_of(done)


def of(outputs: list[Output], topic: str) -> list[dict[str, Any]]:
    return [output.record for output in outputs if output.topic == topic]


def test_an_empty_shard_starts_from_no_rows() -> None:
    state = shard_of_rows(SHARD, [])
    assert state.offset == -1
    assert state.next_deadline_ms() is None


def test_the_257th_meter_freezes_the_account_and_stands_nowhere() -> None:
    book = Book()
    records = book.play(SETTLED[:4])
    for number in range(257):
        meter_id = f"W{number}"
        device = book.devices[meter_id] = Device(meter_id, 1, None)
        book._hand_over(device, "A0", SHARD, None, 0)
    state, outputs = outcome(records)
    account = totals(state)[A0]
    assert len(account["meters"]) == 256
    assert account["frozen"]
    assert column_key("meter", "W256") not in account["meters"]
    assert [alarm["meter_id"] for alarm in of(outputs, "alarms")] == ["W256"]


def test_an_account_that_cannot_be_charged_freezes_and_its_neighbours_are_charged() -> None:
    huge = Frame(1_000, (Read(1, "huge"), Read(0), Read(2)))
    state, outputs = outcome(Book().play([*SETTLED, huge, Op("sell", 0, 3)]))
    standing = totals(state)
    assert standing[A0]["frozen"]
    assert not standing[A1]["frozen"]
    assert standing[A1]["charged_nano"] > 0
    assert standing[A0]["charged_nano"] == 0, "nothing of the huge reading, nothing after it"
    assert standing[A0]["credited_nano"] == 20 * 10**9, "a frozen account's credit still counts"
    assert [alarm["kind"] for alarm in of(outputs, "alarms")].count("frozen") == 1


def test_a_meter_that_leaves_an_account_which_cannot_be_charged_is_gone_uncharged() -> None:
    dear = Op("tariff", 0, 4, 3)
    frames = (Frame(60_001, (Read(0),)), dear, Frame(60_001, (Read(0),)))
    leaves = Op("assign", 0, 1, 5)  # its closing register is 10^12 kWh further on
    state, _ = outcome(Book().play([*SETTLED, *frames, leaves]))
    standing = totals(state)
    assert standing[A0]["frozen"]
    assert M0 not in standing[A0]["meters"]
    assert standing[A1]["meters"][M0]["sequence"] == 0


def test_a_stale_reading_warns_and_never_cuts_and_a_fresh_one_cuts() -> None:
    stale = Frame(1_000_000, (Read(1, use_milli=15_000, age_ms=900_001),))
    _, outputs = outcome(Book().play([*SETTLED, stale, stale, Frame(1_000, (Read(1),))]))
    kinds = [alarm["kind"] for alarm in of(outputs, "alarms") if alarm["account_id"] == "A0"]
    assert kinds == ["alarm-2", "not-cut", "cut"]


def test_every_threshold_counts_at_exactly_its_value() -> None:
    frames = [Frame(60_001, (Read(1, use_milli=use),)) for use in (4_999, 1, 2_999, 1, 1_999, 1)]
    one_nano = Op("sell", 0, 1)
    _, outputs = outcome(Book().play([*SETTLED, *frames, one_nano]))
    alarms = [alarm for alarm in of(outputs, "alarms") if alarm["account_id"] == "A0"]
    assert [(alarm["kind"], alarm["available_nano"]) for alarm in alarms] == [
        ("alarm-1", 5 * 10**9),
        ("alarm-2", 2 * 10**9),
        ("cut", 0),
        ("restored", 1),
    ]


def test_a_cut_is_renewed_as_soon_as_less_than_half_its_lease_is_left() -> None:
    cut = Frame(60_001, (Read(1, use_milli=10_000),))
    steps_ms = (150_000, 1, 150_000, 1)
    later = [Frame(step_ms, (Read(1, use_milli=0),)) for step_ms in steps_ms]
    records = Book().play([*SETTLED, cut, *later])
    _, outputs = outcome(records)
    renewed = [i for i in of(outputs, "relay-intents") if i["cause"] == "lease-renewed"]
    cut_at_ms = records[len(SETTLED)].timestamp_ms
    instants_ms = [intent["decided_at_ms"] - cut_at_ms for intent in renewed]
    assert instants_ms == [150_001, 300_002]


def test_a_price_applies_to_the_interval_that_begins_at_its_very_instant() -> None:
    begins = Frame(1_000, (Read(0),))  # its device time is 700 ms before it is received
    waits = Frame(60_000 - 700, (Read(2),))
    other = Op("tariff", 0, 8, 3, 1)  # flat, in force since 60 s
    _, outputs = outcome(Book().play([*SETTLED, begins, waits, other, Frame(1_000, (Read(0),))]))
    last = charges_of([output for output in outputs if output.topic == "charges"][-1])[0]
    assert (last["tariff_version"], last["price_micro"]) == (2, 777_777)


def test_an_energy_near_the_limit_is_priced_beside_an_interval_of_many_parts() -> None:
    # The last part's segment ended years later: until there, 10^16 Wh were out of any integer.
    house, huge = Read(0, use_milli=0), Read(2, kind="huge")
    frames = (Frame(0, (house,)), Op("calendar"), Frame(0, (house, house, huge)))
    outcome(Book().play([*CALENDARED[0], *frames]))


def test_a_wake_publishes_what_is_due_at_that_very_instant_and_nothing_before() -> None:
    records = Book().play([*SETTLED, Frame(1_000, (Read(0),))])
    due_ms = START_MS + 60_000
    for timestamp_ms in (due_ms - 1, due_ms, due_ms):
        offset = records[-1].offset + 1
        wake = {"shard": SHARD, "due_ms": due_ms}
        records.append(LogRecord(offset, timestamp_ms, "wake", wake))
    _, outputs = outcome(records)
    woken = [b for b in of(outputs, "balances") if b["log_offset"] >= records[-3].offset]
    assert [(b["account_id"], b["as_of_ms"]) for b in woken] == [("A0", due_ms)]


def test_the_most_that_a_load_can_take_is_charged_and_a_thousandth_more_is_held() -> None:
    bounded = Op("register", 3, 0, 1)  # 9 kW
    frames = [Frame(600_000, (Read(3, kind),)) for kind in ("next", "brink", "beyond")]
    state, outputs = outcome(Book().play([*SETTLED, bounded, *frames]))
    house = totals(state)[column_key("account", "house:M3")]
    meter = house["meters"][column_key("meter", "M3")]
    assert meter["energy_total_milli"] == 9_000 * 600_000 // 3_000_000 + 100
    assert meter["held"]
    assert [a for a in of(outputs, "alarms") if a["meter_id"] == "M3"] == [], "a house account"


def test_credit_that_comes_before_the_meter_returns_means_that_nothing_is_cut() -> None:
    late = Read(1, use_milli=15_000, age_ms=900_001)
    back = Frame(1_000, (Read(1, use_milli=0),))
    _, outputs = outcome(Book().play([*SETTLED, Frame(0, (late,)), Op("sell", 0, 5), back]))
    assert Counter(intent["wanted"] for intent in of(outputs, "relay-intents"))["open"] == 0


def test_a_meter_of_an_account_that_is_not_known_yet_is_charged_at_no_price_until_it_is() -> None:
    assigned = Op("assign", 0, 2)  # A2 has not been opened
    frame = Frame(1_000, (Read(0),))
    state, outputs = outcome(
        Book().play([*SETTLED, assigned, frame, Op("open", 2, 0, 0, 3), frame])
    )
    charges = [
        charge
        for output in outputs
        if output.topic == "charges"
        for charge in charges_of(output)
        if charge["account_key"] == A2
    ]
    assert [charge["tariff_version"] for charge in charges] == [0, 1]
    assert totals(state)[A2]["charged_nano"] == 300 * 10**6


def test_a_book_that_was_restored_tells_again_and_no_register_is_opened_twice() -> None:
    frame = Frame(1_000, (Read(0), Read(1), Read(2)))
    told = [*SETTLED, frame, Op("restored_book"), frame]
    state, _ = outcome(Book().play(told))
    assert totals(state)[A0]["meters"][M0]["sequence"] == 2


def test_a_closed_account_is_neither_judged_nor_cut_again() -> None:
    cut = Frame(1_000, (Read(1, use_milli=15_000),))
    closed = Op("status", 0, 2)
    later = Frame(3_600_000, (Read(1),))
    _, outputs = outcome(Book().play([*SETTLED, cut, closed, later]))
    causes = [intent["cause"] for intent in of(outputs, "relay-intents")]
    assert causes.count("arrears") == 2
    assert "lease-renewed" not in causes


def test_a_restart_between_the_rows_of_a_missed_leaving_leaves_the_meter_in_one_account() -> None:
    """The earlier fact comes after the later one; the later one's accounts are torn by a crash."""
    records = Book().play([*SETTLED, Op("open", 2, 0, 0, 3), Op("overtake", 0, 1)])
    undisturbed, done = fresh_run(records)
    entering = len(records) - 2
    written = [row for each in done[:entering] for row in (*each.fact_rows, *each.account_rows)]
    written.append(done[entering - 1].header)
    torn = done[entering]
    entered = next(row for row in torn.account_rows if row.key == account_row_key(A2))
    state = shard_of_rows(SHARD, [*written, *torn.fact_rows, entered])
    run(state, records[entering:])
    assert M0 not in totals(state)[A0]["meters"]
    assert totals(state) == totals(undisturbed)
