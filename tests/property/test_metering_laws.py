"""Laws of metering that hold on every history, judged from what it sends and writes.

The scalar model is not asked here: determinism, restarts at any step with any mixture of rows,
conservation of energy and money, and independence of the order of facts. Profiles and how to
replay: metering_runs.py.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any, NamedTuple
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.frames import (
    KIND_CLOSING,
    KIND_FEE,
    KIND_RESPLIT,
    KIND_ROLLOVER,
    ReadingFrame,
)
from services.common.policies.rules import read
from services.common.policies.windows import first_no_cut_ms
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import LogRecord, Output, Row
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import rows_of, shard_of_rows
from tests.property.metering_histories import (
    REGISTER_MAXES_MILLI,
    SETTLED,
    SHARD,
    Book,
    Frame,
    Op,
    Read,
    arrears,
    histories,
)
from tests.property.metering_runs import (
    charges_of,
    examples,
    fresh_run,
    outputs_of,
    plain,
    totals,
)

SPANS_MILLI = [highest + 1 for highest in REGISTER_MAXES_MILLI if highest is not None]


@examples(50)
@given(histories())
def test_the_same_log_gives_the_same_outputs_rows_and_ids(records: list[LogRecord]) -> None:
    one, first = fresh_run(records)
    other, second = fresh_run(records)
    assert first == second
    assert rows_of(one) == rows_of(other)
    ids = [output.event_id for output in outputs_of(first)]
    assert len(ids) == len(set(ids))


@examples(30)
@given(histories())
def test_a_record_at_or_below_the_header_changes_and_causes_nothing(
    records: list[LogRecord],
) -> None:
    state, _ = fresh_run(records)
    rows = rows_of(state)
    for record in records:
        again = absorb(state, record)
        assert not [*again.outputs, *again.fact_rows, *again.account_rows]
    assert rows_of(state) == rows


# -- restarts ---------------------------------------------------------------------------------


class Crash(NamedTuple):
    """A worker dies after `records` more; `in_flight` of them have no header yet.

    `seed` decides which of their rows were written, and the order in which rows are read back.
    """

    records: int
    in_flight: int
    seed: int


_crashes = st.lists(
    st.builds(Crash, st.integers(1, 40), st.integers(0, 12), st.integers(0, 2**16)),
    min_size=1,
    max_size=3,
)


@examples(150)
@given(histories(), _crashes)
def test_a_restart_at_any_step_loses_nothing_and_repeats_only_the_same(
    records: list[LogRecord], crashes: list[Crash]
) -> None:
    undisturbed, done = fresh_run(records)
    expected = identified(outputs_of(done))
    changelog: list[Row] = []
    seen: dict[Any, Any] = {}
    for crash in crashes:
        state = restarted(changelog, crash.seed)
        pending = [record for record in records if record.offset > state.offset]
        outputs = work_and_die(state, pending[: crash.records], crash, changelog)
        check_repeats(seen, identified(outputs), expected)
    state = restarted(changelog, seed=0)
    rest = [absorb(state, record) for record in records if record.offset > state.offset]
    check_repeats(seen, identified(outputs_of(rest)), expected)
    assert seen == expected
    assert sorted_rows(state) == sorted_rows(undisturbed)
    assert totals(state) == totals(undisturbed)


def restarted(changelog: list[Row], seed: int) -> ShardState:
    """Return the state of the rows written so far, by whomever, read in any order."""
    rows = list(changelog)
    Random(seed).shuffle(rows)
    return shard_of_rows(SHARD, rows)


def work_and_die(
    state: ShardState, records: list[LogRecord], crash: Crash, changelog: list[Row]
) -> list[Output]:
    """Absorb `records`; return what was sent, and write what was written, before the end."""
    random = Random(crash.seed + 1)
    done = [absorb(state, record) for record in records]
    settled = max(0, len(done) - crash.in_flight)
    for absorbed in done[:settled]:
        changelog += [*absorbed.fact_rows, *absorbed.account_rows, absorbed.header]
    outputs = outputs_of(done[:settled])
    for absorbed in done[settled:]:
        step = random.choice(("sending", "facts", "some-accounts", "all-but-header"))
        if step == "sending":
            sent = random.randint(0, len(absorbed.outputs))
            outputs += absorbed.outputs[:sent]
            break
        outputs += absorbed.outputs
        changelog += absorbed.fact_rows
        if step == "some-accounts":
            changelog += [row for row in absorbed.account_rows if random.random() < 0.5]
        elif step == "all-but-header":
            changelog += absorbed.account_rows
    return outputs


def identified(outputs: list[Output]) -> dict[Any, Any]:
    """Return identity → content: of charges their own identity, of all else the event id.

    A frame that repeats because one of its accounts had no row yet holds the charges of that
    account alone, so frames have no identity here; their charges have.
    """
    found: dict[Any, Any] = {}
    for output in outputs:
        if output.subject == "charge-frame":
            for charge in charges_of(output):
                identity = (charge["meter_key"], charge["epoch"], charge["sequence"])
                assert identity not in found, f"charged twice: {identity}"
                found[identity] = (output.record["log_offset"], charge)
        else:
            assert output.event_id not in found
            row = output.record.get("row")
            found[output.event_id] = (plain(output), row, output.occurred_at_ms)
    return found


def check_repeats(seen: dict[Any, Any], sent: dict[Any, Any], expected: dict[Any, Any]) -> None:
    """Everything sent must be what the undisturbed run sends, field by field."""
    for identity, content in sent.items():
        assert expected.get(identity) == content
        seen[identity] = content


def sorted_rows(state: ShardState) -> tuple[list[Row], list[Row], Row]:
    facts, accounts, header = rows_of(state)
    return sorted(facts), sorted(accounts), header


# -- conservation -----------------------------------------------------------------------------


@examples(80)
@given(histories())
def test_energy_and_money_are_conserved_to_the_last_unit(records: list[LogRecord]) -> None:
    _, done = fresh_run(records)
    check_handovers(records, stands_of(outputs_of(done)))


def stands_of(outputs: list[Output]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the charges of each meter and epoch; fail where they, or balances, do not add up."""
    charged: dict[int, int] = defaultdict(int)
    sequences: dict[int, int] = defaultdict(int)
    stands: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for output in outputs:
        if output.subject == "charge-frame":
            for charge in charges_of(output):
                check_charge(charge, charged, sequences)
                stands[charge["meter_key"], charge["epoch"]].append(charge)
        elif output.subject == "balance":
            check_balance(output.record, charged, sequences)
    for stand in stands.values():
        check_stand(stand)
    return stands


def check_charge(
    charge: dict[str, Any], charged: dict[int, int], sequences: dict[int, int]
) -> None:
    """Fail where the charge is not what it covers, or the account's totals rise by else."""
    account = charge["account_key"]
    used = charge["to_register_milli"] - charge["from_register_milli"]
    resplit, lines = charge["kind"] == KIND_RESPLIT, charge["lines"]
    if charge["kind"] == KIND_ROLLOVER:
        assert used < 0
        assert charge["energy_milli"] >= 0
        used = charge["energy_milli"] // charge["ratio"]
        assert used - charge["to_register_milli"] + charge["from_register_milli"] in SPANS_MILLI
    assert charge["energy_milli"] == (0 if resplit else used * charge["ratio"])
    amounts = ("rate_nano", "surcharge_nano", "ladder_nano", "tax_nano")
    if lines or resplit:
        assert charge["price_micro"] == 0
        assert charge["energy_milli"] == sum(line["energy_milli"] for line in lines)
        assert charge["amount_nano"] == sum(line[name] for line in lines for name in amounts)
    else:
        assert charge["amount_nano"] == charge["energy_milli"] * charge["price_micro"]
    charged[account] += charge["amount_nano"]
    assert charge["account_charged_total_nano"] == charged[account]
    assert charge["account_sequence"] > sequences[account]
    sequences[account] = charge["account_sequence"]
    if charge["tariff_name"] == "":
        assert charge["amount_nano"] == 0
    if charge["kind"] == 0:
        assert used >= 0


def check_balance(
    balance: dict[str, Any], charged: dict[int, int], sequences: dict[int, int]
) -> None:
    account = balance["account_key"]
    assert balance["charged_nano"] == charged[account]
    spoken_for = balance["charged_nano"] + balance["available_nano"] + balance["held_nano"]
    assert spoken_for == balance["credited_nano"]
    assert balance["account_sequence"] >= sequences[account]


def check_stand(stand: list[dict[str, Any]]) -> None:
    """Fail where charges of a meter and epoch do not follow each other without gap or overlap."""
    assert [charge["sequence"] for charge in stand] == list(range(1, len(stand) + 1))
    assert len({charge["account_key"] for charge in stand}) == 1
    energy_milli = 0
    for charge in stand:
        energy_milli += charge["energy_milli"]
        assert charge["meter_energy_total_milli"] == energy_milli
    for before, after in pairwise(c for c in stand if c["kind"] not in (KIND_RESPLIT, KIND_FEE)):
        assert before["kind"] != KIND_CLOSING, "a charge after the closing one"
        for what in ("register_milli", "time_ms", "reading_id", "quality"):
            assert after[f"from_{what}"] == before[f"to_{what}"]


def check_handovers(
    records: list[LogRecord], stands: dict[tuple[int, int], list[dict[str, Any]]]
) -> None:
    """Fail where a stand does not end, or begin, at the register that the book handed over."""
    for record in records:
        if record.subject != "meter-fact" or not isinstance(record.value, dict):
            continue
        fact = record.value
        left = stands.get((fact["meter_key"], fact["previous_epoch"]))
        entered = stands.get((fact["meter_key"], fact["epoch"]))
        if left and left[-1]["kind"] == 1 and fact["previous_shard"] == SHARD:
            assert left[-1]["to_register_milli"] == fact["closing_register_milli"]
        if entered and fact["opening_register_milli"] is not None:
            assert entered[0]["from_register_milli"] == fact["opening_register_milli"]


# -- who may be cut --------------------------------------------------------------------------


@examples(200)
@given(arrears())
def test_no_cut_is_sent_against_an_order_a_window_a_notice_or_without_evidence(
    records: list[LogRecord],
) -> None:
    _, done = fresh_run(records)
    facts: dict[tuple[str, str], dict[str, Any]] = {}
    noticed_at_ms: dict[str, int] = {}
    kept: set[str] = set()
    for record, absorbed in zip(records, done, strict=True):
        kept |= {str(UUID(bytes=each)) for each in kept_readings(record)}
        kind = record.subject.removesuffix("-fact")
        if kind in {"policy", "account", "meter"} and isinstance(record.value, dict):
            keep_newest(facts, kind, record.value)
        for output in absorbed.outputs:
            if output.subject == "notice":
                noticed_at_ms[output.record["notice_id"]] = output.record["decided_at_ms"]
            if output.subject == "relay-intent" and output.record["mode"] == "prepaid":
                assert facts["meter", output.record["meter_id"]]["forced"] is None
                if output.record["cause"] == "released" and output.record["wanted"] == "open":
                    over_ms = output.record["decided_at_ms"]
                    assert output.record["send_before_ms"] == over_ms, "nothing is sent of it"
                elif output.record["wanted"] == "open":
                    assert record.subject == "reading-frame", "a fact, or a wake, never cuts"
                    check_cut(output.record, facts, noticed_at_ms)
                    assert output.record["to_reading_id"] not in kept, "backfill is no evidence"


def kept_readings(record: LogRecord) -> Iterable[bytes]:
    """Yield the ids of readings that were pushed later than any policy here takes for fresh."""
    if isinstance(record.value, ReadingFrame):
        for row in record.value.rows:
            waited_ms = row["received_at_ms"] - row["device_time_ms"]
            if row["began_at_ms"] == row["received_at_ms"] and waited_ms > 1_020_000:
                yield row["reading_id"].tobytes()


def keep_newest(
    facts: dict[tuple[str, str], dict[str, Any]], kind: str, fact: dict[str, Any]
) -> None:
    key = (kind, fact[f"{kind}_id"])
    version = (fact["book_epoch"], fact["revision"])
    if key not in facts or version > (facts[key]["book_epoch"], facts[key]["revision"]):
        facts[key] = fact


def check_cut(
    intent: dict[str, Any],
    facts: dict[tuple[str, str], dict[str, Any]],
    noticed_at_ms: dict[str, int],
) -> None:
    """Fail where something stands against a cut, now or at any instant that it may be sent at."""
    now_ms, until_ms = intent["decided_at_ms"], intent["send_before_ms"]
    account = facts["account", intent["account_id"]]
    policy = facts["policy", account["policy_id"]]
    rules = read(policy["rules"])
    for order in ("keep_power_until_ms", "promise_until_ms"):
        assert account[order] is None or account[order] <= now_ms
    received_at_ms = intent["reading_received_at_ms"]
    assert until_ms <= received_at_ms + policy["max_evidence_age_ms"]
    assert now_ms <= until_ms <= now_ms + policy["lease_ms"]
    assert first_no_cut_ms(rules, now_ms, max(until_ms, now_ms + 1)) is None
    if rules.notice is not None:
        assert noticed_at_ms[intent["notice_id"]] + rules.notice.lead_ms <= now_ms
        assert intent["notice_outcome"] == "delivered" or not rules.notice.required


# -- order of facts ---------------------------------------------------------------------------

_facts = st.lists(
    st.one_of(
        st.builds(Op, st.sampled_from(("sell", "hold")), st.integers(0, 1), st.integers(0, 4)),
        st.builds(Op, st.just("assign"), st.integers(0, 2), st.integers(0, 5), st.integers(0, 4)),
        st.builds(Op, st.just("policy"), st.just(0), st.integers(0, 4)),
        st.builds(Op, st.just("tariff"), st.just(0), st.integers(0, 3), st.just(1)),
        st.just(Op("site")),
    ),
    min_size=2,
    max_size=8,
    unique_by=lambda op: op if op.kind != "assign" else (op.kind, op.a),
)
_uses = st.lists(st.sampled_from((0, 300, 2_500, 9_000)), min_size=3, max_size=3)


@examples(60)
@given(_uses, _facts, st.integers(0, 2**16))
def test_facts_of_different_streams_in_any_order_leave_the_same_totals(
    uses: list[int], facts: list[Op], seed: int
) -> None:
    reads = tuple(Read(meter, use_milli=use) for meter, use in enumerate(uses))
    use = Frame(60_000, reads)
    records = Book().play([*SETTLED, Op("open", 2, 0, 0, 3), use, use, *facts])
    first = len(records) - len(facts)
    block = shuffled(records[first:], Random(seed))
    moved = [
        replace(record, offset=offset) for offset, record in enumerate(block, records[first].offset)
    ]
    straight, _ = fresh_run(records)
    otherwise, _ = fresh_run([*records[:first], *moved])
    assert money(straight) == money(otherwise)


def shuffled(records: list[LogRecord], random: Random) -> list[LogRecord]:
    """Return them in another order, those of one stream in theirs."""
    streams: dict[Any, list[LogRecord]] = defaultdict(list)
    for record in records:
        streams[stream_of(record)].append(record)
    order = [stream_of(record) for record in records]
    random.shuffle(order)
    return [streams[stream].pop(0) for stream in order]


def stream_of(record: LogRecord) -> tuple[str, str]:
    assert isinstance(record.value, dict)
    kind = record.subject.removesuffix("-fact")
    return kind, record.value[f"{kind}_id"]


def money(state: ShardState) -> dict[int, Any]:
    """Return the totals that facts may not change by their order (levels have a memory)."""
    kept = ("credited_nano", "held_nano", "charged_nano", "sequence", "revision", "frozen")
    return {
        key: {name: account[name] for name in kept}
        | {
            "meters": {
                meter_key: (meter["epoch"], meter["register_milli"], meter["energy_total_milli"])
                for meter_key, meter in account["meters"].items()
            }
        }
        for key, account in totals(state).items()
    }
