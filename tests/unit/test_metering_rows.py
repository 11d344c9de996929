"""The rows of metering: whatever a worker left behind, another one goes on from it, identically.

Method: one history in which everything happens that leaves a trace (charges, moves, cuts,
restores, holds, a freeze, price changes). It is absorbed once without interruption; then it is
interrupted after every record, in every way the order of writing allows, recovered from the rows
that were written until then, and absorbed to its end.
"""

import random
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.frames import LINE
from services.common.kernel.units import INT64_MAX
from services.common.tariffs.plan import Plan
from services.metering.domain import factlog
from services.metering.domain.absorb import ABSORB_VERSION, LAYOUT_VERSION, absorb
from services.metering.domain.errors import BadRows
from services.metering.domain.messages import Absorbed, LogRecord, Output, Outputs, Row
from services.metering.domain.rows import (
    ACCOUNT,
    ACCUMULATION,
    COMPONENTS,
    COMPONENTS_SIZE,
    FORMER_LAYOUT_VERSION,
    METER,
    UNDIVIDED,
    WINDOW,
    WINDOW_WITH_RATES,
    account_row_key,
    header_of,
    joined,
    packed_windows,
    parsed_accounts,
    sizes_of_tails,
    versions_of,
    windows_in,
)
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import account_rows, rows_of, shard_of_rows
from tests.unit.metering_log import (
    CREDIT_NANO,
    KWH_MILLI,
    PRICE_MICRO,
    SHARD,
    START_MS,
    Log,
    account,
    charges,
    house,
    meter,
    moved,
    policy,
    reading,
    site,
    standing_log,
    tariff,
)

Stored = list[Row]


def eventful_log() -> Log:
    """Return a log after which every field of every row has been used."""
    log = Log()
    for fact in (site(), by_the_minute(), policy(), account("A1", 12), account("A2", 200)):
        log.fact(fact)
    meters: dict[str, dict[str, Any]] = {}
    for name in ("M1", "M2", "M3"):
        meters[name] = meter(name, house(name), opening_register_milli=None)
        log.fact(meters[name])
    registers = dict.fromkeys(meters, 0)

    def move(name: str, account_id: str, **changes: Any) -> None:
        meters[name] = moved(meters[name], account_id, registers[name], **changes)
        log.fact(meters[name])

    def use(**kwh: int) -> None:
        log.later(20_000)
        readings = []
        for name, used in kwh.items():
            registers[name] += used * KWH_MILLI
            epoch = meters[name]["epoch"]
            readings.append(reading(registers[name], meter_id=name, at_ms=log.now_ms, epoch=epoch))
        log.read(*readings)

    use(M1=1, M2=1)
    move("M1", "A1")
    move("M2", "A1")
    move("M3", "A2")
    use(M1=1, M2=2, M3=1)
    log.read(reading(-1, at_ms=log.now_ms, epoch=2))  # held, until the next one
    log.later(60_000)
    use(M1=5, M3=30)
    between = {"at_ms": log.now_ms - 20_000, "received_at_ms": log.now_ms, "epoch": 2}
    log.read(reading(registers["M3"] - 29_000, meter_id="M3", **between))  # late: split again
    log.fact(tariff(version=2, price_micro=2 * 10**6, effective_at_ms=log.now_ms + 30_000))
    use(M1=6)  # cut
    use(M1=0, M2=0, M3=10)
    log.fact(policy(version=2, lease_ms=250_000))
    log.later(200_000)
    use(M2=0)  # lease renewed
    log.fact(account("A1", 60, hold_id="H1", revision=1))  # restored, echoed
    move("M2", "A2")
    use(M1=1, M2=4, M3=4)
    move("M2", "A1")
    move("M1", "A2")
    use(M1=1, M2=1, M3=1)
    move("M3", "A9", shard=SHARD + 1)
    log.fact(account("A1", 60, tariff_id="T9", revision=2))
    use(M1=1, M2=1)  # A1 freezes
    log.fact(account("A5"))
    log.fact(account("A5", 7, policy_id="P9", revision=1))  # cannot stand: A5 freezes
    log.fact(account("A5", 8, revision=2))
    log.later(60_000).wake()
    move("M2", house("M2"))
    log.fact(policy(version=3, alarm_1_nano=500 * CREDIT_NANO))
    use(M1=3, M2=2)
    log.fact(account("A2", 2_000, revision=1))  # cleared
    log.later(60_000).wake()
    return log


def by_the_minute() -> dict[str, Any]:
    """Return a tariff that changes its rate with the minutes in which the log begins."""
    slots = [{"begins": "00:00", "rate": "peak"}]
    slots += [
        {"begins": f"08:{minute}", "rate": ("valley", "peak")[minute % 2]}
        for minute in range(54, 60)
    ]
    days = [{"kinds": ["weekday", "weekend", "holiday"], "slots": slots}]
    ladder = {"period": "month", "steps": [{"above_milli": 2_000, "add_micro": 1}]}
    document = {
        "zone": "UTC",
        "rates_micro": {"peak": PRICE_MICRO, "valley": PRICE_MICRO - 1},
        "seasons": [{"name": "all", "begins": "01-01", "days": days}],
        "ladder": ladder,
    }
    return tariff(kind="plan", price_micro=0, plan=Plan.model_validate(document).text())


def run(state: ShardState, records: list[LogRecord]) -> list[Absorbed]:
    return [absorb(state, record) for record in records]


def written(done: Absorbed) -> list[Row]:
    return [*done.fact_rows, *done.account_rows, done.header]


def identities(outputs: list[Output]) -> dict[Any, Any]:
    """Return identity → content of outputs. Charges are taken out of their frames."""
    found: dict[Any, Any] = {}
    for output in outputs:
        if output.subject != "charge-frame":
            found[output.event_id] = output
            continue
        for one in charges(Absorbed(Outputs([output], None), (), (), Row(b"", b""))):
            plain = {name: _plain(value) for name, value in one.items()}
            found[plain["meter_key"], plain["epoch"], plain["sequence"]] = plain
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(tuple(line.items()) for line in value)
    return value if isinstance(value, str | UUID) else value.tolist()


LOG = eventful_log()
RUN = run(ShardState.empty(SHARD), LOG.records)
OUTPUTS = identities([output for done in RUN for output in done.outputs])
ROWS = joined([row for done in RUN for row in written(done)])


def test_the_history_is_as_eventful_as_it_says() -> None:
    decided = [
        output.record.get("kind") or output.record.get("cause")
        for done in RUN
        for output in done.outputs
        if output.subject in {"alarm", "relay-intent"}
    ]
    assert {
        *("alarm-1", "alarm-2", "cut", "arrears", "lease-renewed", "restored", "paid"),
        *("assigned", "reading-held", "frozen", "cleared"),
    } <= set(decided)
    assert {output.subject for done in RUN for output in done.outputs} >= {"echo", "balance"}
    assert sum(done.counts["re-split"] for done in RUN) == 1


def test_after_any_record_the_rows_give_the_same_rest_and_the_same_rows() -> None:
    shuffle = random.Random(1).shuffle
    stored: Stored = []
    for count, done in enumerate(RUN, start=1):
        stored += written(done)
        mixed = list(stored)  # every version ever written, in any order
        shuffle(mixed)
        state = shard_of_rows(SHARD, mixed)
        rest = run(state, LOG.records[count:])
        assert [one.outputs for one in rest] == [one.outputs for one in RUN[count:]]
        assert [written(one) for one in rest] == [written(one) for one in RUN[count:]]


@pytest.mark.parametrize("in_flight", [1, 3, 8])
def test_rows_ahead_of_the_header_are_skipped_exactly(in_flight: int) -> None:
    """Rows of records in flight may have been written or not, one by one; the header was not."""
    chance = random.Random(in_flight)
    stored: Stored = []
    for count, done in enumerate(RUN):
        flight = RUN[count : count + in_flight]
        ahead: Stored = [row for one in flight for row in one.fact_rows]
        for one in flight:
            ahead += [row for row in one.account_rows if chance.random() < 0.6]
        state = shard_of_rows(SHARD, stored + ahead)
        rest = run(state, LOG.records[count:])

        again = identities([output for one in rest for output in one.outputs])
        assert again.items() <= OUTPUTS.items()
        skipped = identities([output for one in flight for output in one.outputs])
        before = identities([output for one in RUN[:count] for output in one.outputs])
        assert again.keys() | skipped.keys() | before.keys() == OUTPUTS.keys()
        rewritten = [row for one in rest for row in written(one)]
        assert joined(stored + ahead + rewritten) == ROWS
        stored += written(done)


def test_an_account_whose_row_was_not_written_sends_again_what_it_sent() -> None:
    """The outputs are sent before the rows: without rows of a record nothing of it is skipped."""
    stored: Stored = []
    for count, done in enumerate(RUN):
        state = shard_of_rows(SHARD, [*stored, *done.fact_rows])
        assert absorb(state, LOG.records[count]).outputs == done.outputs
        stored += written(done)


def test_rewriting_all_rows_loses_nothing() -> None:
    state = shard_of_rows(SHARD, ROWS.items())
    fact_rows, account_rows, header = rows_of(state)
    assert dict([*fact_rows, *account_rows, header]) == ROWS
    assert header == state.header_row()


def test_a_meter_that_left_is_gone_after_recovery_although_its_fact_is_kept() -> None:
    log = standing_log()
    fact_rows, account_rows, header = rows_of(log.state)
    stored = [*fact_rows, *account_rows, header]
    done = log.fact(moved(meter(), "A9", 500, shard=SHARD + 1))
    state = shard_of_rows(SHARD, [*stored, *written(done)])
    assert (state.meter_count, state.account_count) == (0, 1)
    again = Log(state)
    again.later(10_000)
    assert dict(again.use(600, epoch=2).counts) == {"unknown-meter": 1}
    # Its fact still tells old from new.
    assert dict(again.fact(meter()).counts) == {"fact-old": 1}


def test_a_record_replayed_at_or_below_the_header_does_nothing() -> None:
    state = shard_of_rows(SHARD, ROWS.items())
    before = rows_of(state)
    for record in LOG.records:
        done = absorb(state, record)
        assert not [*done.outputs, *done.fact_rows, *done.account_rows]
    assert rows_of(state) == before


def test_no_rows_are_an_empty_shard() -> None:
    state = shard_of_rows(SHARD, [])
    assert (state.offset, state.account_count, state.meter_count) == (-1, 0, 0)
    assert state.next_deadline_ms() is None


def test_deadlines_survive() -> None:
    log = standing_log()
    log.use(1)
    fact_rows, account_rows, header = rows_of(log.state)
    state = shard_of_rows(SHARD, [*fact_rows, *account_rows, header])
    assert state.next_deadline_ms() == log.state.next_deadline_ms() == START_MS + 60_000


def test_a_fact_row_keeps_the_versions_a_restart_may_need_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(factlog, "PIPELINE_RECORDS_MAX", 10)
    log = factlog.FactLog()
    for offset in (0, 5, 20, 25):
        row = log.put("policies/P1", offset, policy(version=offset + 1))
    assert [offset for offset, _ in versions_of(row.value)] == [5, 20, 25]


def test_rows_are_fixed_size_numbers_that_begin_with_their_versions() -> None:
    assert (ACCOUNT.itemsize, METER.itemsize, ACCUMULATION.itemsize) == (176, 176, 40)
    assert (WINDOW.size, WINDOW_WITH_RATES.size) == (32, 112)
    key = account_row_key(account("A2")["account_key"])
    value = ROWS[key]
    parsed = parsed_accounts([value])
    accounts, meters = parsed.accounts, parsed.meters
    accumulated = len(parsed.accumulations) * ACCUMULATION.itemsize
    assert parsed.components.any()
    sizes = (ACCOUNT.itemsize, len(meters) * METER.itemsize, accumulated, COMPONENTS_SIZE)
    assert len(value) == sum(sizes) + sum(map(len, parsed.windows))
    assert (accounts["layout"][0], accounts["absorb"][0]) == (LAYOUT_VERSION, ABSORB_VERSION)
    assert header_of(ROWS[b"h"]) == (LOG.records[-1].offset, LOG.now_ms)


def test_what_was_charged_by_the_layout_before_is_undivided_and_goes_on() -> None:
    key = account_row_key(account("A2")["account_key"])
    former = FORMER_LAYOUT_VERSION.to_bytes(2, "little") + ROWS[key][2:-COMPONENTS_SIZE]
    state = shard_of_rows(SHARD, {**ROWS, key: former}.items())
    slot = state.account_slot(account("A2")["account_key"])
    assert slot is not None
    charged_nano = int(state.accounts["charged_nano"][slot])
    assert charged_nano
    assert state.components.nano[slot].tolist() == [0] * UNDIVIDED + [charged_nano]
    assert state.components.of(slot, charged_nano)["energy"] == 0
    (row,) = account_rows(state, np.array([slot]))
    assert row.value[:2] == LAYOUT_VERSION.to_bytes(2, "little")
    again = parsed_accounts([row.value])
    assert again.components.tolist() == state.components.nano[[slot]].tolist()


def test_a_component_that_has_no_room_left_begins_anew_and_nothing_is_lost() -> None:
    state = shard_of_rows(SHARD, ROWS.items())
    slot = state.account_slot(account("A2")["account_key"])
    assert slot is not None
    slots, lines = np.array([slot, slot]), np.zeros(2, LINE)
    lines["ladder_nano"], lines["tax_nano"] = (2, 3), (1, 0)
    large = np.zeros(1, LINE)
    large["ladder_nano"] = INT64_MAX - 5 - state.components.nano[slot, COMPONENTS.index("ladder")]
    state.components.divide(slots[:1], large, state.accounts)
    state.components.divide(slots, lines, state.accounts)
    assert state.components.nano[slot].tolist() == [0, INT64_MAX, 0, 1, 0]
    state.components.divide(slots, lines, state.accounts)
    charged_nano = int(state.accounts["charged_nano"][slot])
    assert state.components.nano[slot].tolist() == [0, 0, 0, 0, charged_nano]
    state.accounts["charged_nano"][slot] = -(2**63)
    state.components.nano[slot] = (1, 0, 0, 0, 0)
    divided_nano = state.components.of(slot, -(2**63))
    assert divided_nano["undivided"] == sum(divided_nano.values()) == -(2**63)


def test_rows_of_another_layout_are_refused() -> None:
    value = (LAYOUT_VERSION + 1).to_bytes(2, "little") + ROWS[b"h"][2:]
    with pytest.raises(BadRows, match="layout"):
        shard_of_rows(SHARD, [(b"h", value)])


def test_another_version_of_absorb_must_have_drained() -> None:
    stored = dict(ROWS)
    key = next(key for key in stored if key.startswith(b"a/"))
    other = stored[key][:2] + (ABSORB_VERSION + 1).to_bytes(2, "little") + stored[key][4:]
    shard_of_rows(SHARD, [*stored.items(), (key, other)])
    ahead = other[:8] + (LOG.records[-1].offset + 1).to_bytes(8, "little") + other[16:]
    with pytest.raises(BadRows, match="drained"):
        shard_of_rows(SHARD, [*stored.items(), (key, ahead)])


def test_a_torn_row_is_refused() -> None:
    key = account_row_key(account("A2")["account_key"])
    with pytest.raises(BadRows, match="length"):
        shard_of_rows(SHARD, [(key, ROWS[key] + bytes(METER.itemsize))])


@given(
    st.lists(
        st.one_of(
            st.tuples(*[st.integers(-1, 3)] * 4, *[st.just(-1)] * 10),
            st.tuples(*[st.integers(-1, 3)] * 4, *[st.sampled_from([-1, 0, 7])] * 10),
        ),
        max_size=4,
    )
)
def test_windows_come_back_as_they_were_and_registers_of_rates_cost_room_only_where_they_are(
    windows: list[tuple[int, ...]],
) -> None:
    said, packed = packed_windows(windows)
    assert windows_in(said, packed) == windows
    have_rates = any(register >= 0 for window in windows for register in window[4:])
    assert len(packed) == len(windows) * (112 if have_rates else 32)
    meters = np.zeros(1, METER)
    meters["windows"] = said
    assert sizes_of_tails(meters)[0] == len(packed)
