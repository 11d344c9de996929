"""Goal: each record of the bus becomes the right rows, and none is passed over in silence.

Method: records of a small true story, projected without any database.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import schemas
from services.common.kernel.errors import InvalidInput
from services.common.kernel.frames import (
    CHARGE,
    KIND_RESPLIT,
    KIND_USAGE,
    LINE,
    NO_RATE,
    ChargeFrame,
)
from services.common.runtime import codec
from services.common.runtime.topics import catalogue
from services.reporting.adapters.database import Place, Span
from services.reporting.adapters.log import ROWS_MAX, batch_of, check, is_history, places, rows_of
from services.reporting.domain.projections import PROJECTIONS, TOPICS, Record, project
from services.reporting.domain.rows import (
    TABLES,
    AccountLevelRow,
    AccountTotalsRow,
    AlarmRow,
    ChargeRow,
    DeviceStatusRow,
    LedgerRow,
    PriceLineRow,
    ReceiptRow,
    RelayIntentRow,
    TariffVersionRow,
    newest,
)
from services.reporting.errors import LogDisagrees, Poison
from tests.unit.reporting_records import (
    CREDIT_NANO,
    PRICE_MICRO,
    T0,
    Sent,
    Story,
    consumed,
    record_of,
)

STORY = Story()
NOWHERE: frozenset[tuple[str, int, int]] = frozenset()


def rows(sent: Sent, offset: int = 0) -> list[Any]:
    return list(rows_of(record_of(sent, offset)))


def test_every_subject_of_every_topic_that_is_read_has_a_projection() -> None:
    for topic in TOPICS:
        projected = {subject for name, subject in PROJECTIONS if name == topic}
        assert projected == set(catalogue().topics[topic].values), topic


def test_reporting_is_a_reader_of_every_topic_it_reads() -> None:
    assert all("reporting" in catalogue().topics[topic].readers for topic in TOPICS)


def test_a_charge_frame_becomes_one_row_a_charge_with_its_names() -> None:
    charge, totals = rows(STORY.charge(2))
    assert isinstance(charge, ChargeRow)
    assert (charge.meter_key, charge.epoch, charge.sequence) == (STORY.meter_key, 2, 2)
    assert charge.energy_milli * charge.price_micro == charge.amount_nano == 1_500 * PRICE_MICRO
    assert (charge.tariff_id, charge.policy_id) == (STORY.tariff, STORY.policy)
    assert (charge.currency, charge.commodity, charge.legal_entity) == ("CNY", "electricity", "LE1")
    assert (charge.from_reading_id, charge.to_reading_id) == (STORY.reading(1), STORY.reading(2))
    assert (charge.kind, charge.to_quality, charge.log_offset) == ("usage", "A", 102)
    assert totals == AccountTotalsRow(
        STORY.account_key, CREDIT_NANO, 2_500 * PRICE_MICRO, 3, 102, T0 + 2_100
    )
    assert all(type(value) is not float for value in charge)


def test_a_charge_from_an_assigned_register_has_no_first_reading() -> None:
    charge, *_ = rows(STORY.charge(1))
    assert charge.from_reading_id is None


def test_lines_become_rows_of_their_charges_in_their_order() -> None:
    rows_of = np.zeros(2, CHARGE)
    rows_of["meter_key"], rows_of["sequence"] = [5, 6], [1, 2]
    rows_of["kind"] = [KIND_USAGE, KIND_RESPLIT]
    rows_of["account_revision"] = -1
    rows_of["from_quality"] = rows_of["to_quality"] = ord("A")
    lines = np.zeros(3, LINE)
    lines["charge"], lines["rate"] = [0, 1, 1], [1, 3, NO_RATE]
    lines["energy_milli"], lines["tax_nano"] = [10, 20, 0], [1, 2, 3]
    frame = ChargeFrame(0, 5, ("", "LE1", "CNY", "electricity"), rows_of, lines)
    found = list(project(Record("charges", 0, "charge-frame", frame.to_record())))
    charges = [row for row in found if isinstance(row, ChargeRow)]
    assert [charge.kind for charge in charges] == ["usage", "re-split"]
    told = [
        (row.meter_key, row.sequence, row.line, row.rate, row.energy_milli, row.tax_nano)
        for row in found
        if isinstance(row, PriceLineRow)
    ]
    assert told == [(5, 1, 0, "peak", 10, 1), (6, 2, 0, "valley", 20, 2), (6, 2, 1, "none", 0, 3)]


def test_a_line_of_no_charge_is_refused() -> None:
    lines = np.zeros(1, LINE)
    lines["charge"] = 1
    record = ChargeFrame(0, 5, ("",), np.zeros(1, CHARGE), lines).to_record()
    with pytest.raises(InvalidInput, match="a line of charge 1 in a frame of 1"):
        ChargeFrame.from_record(record)


def test_a_house_account_is_charged_but_has_no_totals() -> None:
    row = np.zeros(1, CHARGE)
    row["account_revision"] = -1
    row["from_quality"] = row["to_quality"] = ord("A")
    frame = ChargeFrame(0, 5, ("", "LE1", "CNY", "electricity"), row)
    found = list(project(Record("charges", 0, "charge-frame", frame.to_record())))
    assert [type(one) for one in found] == [ChargeRow]


def test_a_frame_whose_name_is_not_in_its_dictionary_is_refused() -> None:
    row = np.zeros(1, CHARGE)
    row["tariff_name"] = 9
    record = ChargeFrame(0, 5, ("only",), row).to_record()
    with pytest.raises(InvalidInput, match="makes no row"):
        project(Record("charges", 0, "charge-frame", record))


def test_a_text_that_postgresql_cannot_hold_is_refused_with_its_record() -> None:
    cut = STORY.cut()
    odd = replace(cut, value={**cut.value, "reason": "a\x00b"})
    with pytest.raises(Poison, match=r"alarms-3 offset 0 .*NUL"):
        batch_of([record_of(odd, 0)], at_zero(), NOWHERE)
    frame = STORY.charge(1)
    odd = replace(frame, value={**frame.value, "names": [*frame.value["names"], "a\x00"]})
    with pytest.raises(Poison, match="NUL"):
        batch_of([record_of(odd, 0)], at_zero(), NOWHERE)
    nothing = ChargeFrame(0, 5, ("only",), np.zeros(1, CHARGE)).to_record()
    with pytest.raises(InvalidInput, match="a quality of NUL"):
        project(Record("charges", 0, "charge-frame", nothing))


def test_a_sale_becomes_a_ledger_line_and_a_receipt() -> None:
    line, receipt = rows(STORY.credit_sold(1, CREDIT_NANO))
    assert isinstance(line, LedgerRow)
    assert '"fingerprint": "01ff"' in line.data
    assert isinstance(receipt, ReceiptRow)
    assert receipt.amount_nano == receipt.credited_nano == CREDIT_NANO
    assert receipt.recovered_emergency_minor == receipt.recovered_debt_minor == 0


def test_a_receipt_is_its_sellers_also_where_vending_made_the_sale_for_him() -> None:
    sold = STORY.credit_sold(1, CREDIT_NANO)
    meta = b'{"schema":"credit-sold/3","prev":"00","origin":{"caller":"portal","actor":"u-7"}}'
    of_vending = replace(sold, value={**sold.value, "caller": "~vending", "meta": meta})
    line, receipt = rows(of_vending)
    assert isinstance(line, LedgerRow)
    assert isinstance(receipt, ReceiptRow)
    assert (line.caller, receipt.caller) == ("~vending", "portal")
    earlier = replace(sold, value={**sold.value, "meta": b'{"schema":"credit-sold/1","prev":"00"}'})
    assert [getattr(row, "caller", "") for row in rows(earlier)] == ["test", "test"]


def test_posted_usage_becomes_a_ledger_line_without_metering_s_row() -> None:
    example = json.loads((Path(schemas.__file__).parent / "examples/usage-posted.json").read_text())
    own = ("caller", "request_id", "fingerprint", "occurred_at_ms")
    data = {name: value for name, value in example["record"].items() if name not in own}
    (line,) = rows(STORY.event("account-A1", 3, "usage-posted", {**data, "row": b"row"}))
    assert isinstance(line, LedgerRow)
    told = json.loads(line.data)
    assert "row" not in told
    assert (told["meters"], told["postings"]) == (data["meters"], data["postings"])
    assert told["charged_nano"] == data["charged_nano"]


def test_versions_come_from_the_ledger_and_not_from_the_compacted_registry() -> None:
    line, tariff = rows(STORY.book()[0])
    assert isinstance(line, LedgerRow)
    assert isinstance(tariff, TariffVersionRow)
    assert tariff.price_micro == PRICE_MICRO
    assert PROJECTIONS["registry", "tariff-fact"](Record("registry", 0, "tariff-fact", {})) == ()


def test_a_balance_tells_the_level_and_the_totals() -> None:
    level, totals = rows(STORY.restored_balance())
    assert isinstance(level, AccountLevelRow)
    assert isinstance(totals, AccountTotalsRow)
    assert (totals.account_sequence, level.level) == (5, "normal")


def test_the_newest_total_stands_whether_a_charge_or_a_balance_told_it() -> None:
    told = [*rows(STORY.charge(3)), *rows(STORY.restored_balance()), *rows(STORY.charge(2))]
    (standing,) = newest(told)[TABLES[AccountTotalsRow]]
    assert isinstance(standing, AccountTotalsRow)
    assert standing.account_sequence == 5


def test_the_newest_intent_stands_also_when_an_older_one_comes_again() -> None:
    told = [*rows(STORY.intent("closed", 110, "paid")), *rows(STORY.intent("open", 103, "arrears"))]
    (standing,) = newest(told)[TABLES[RelayIntentRow]]
    assert isinstance(standing, RelayIntentRow)
    assert standing.wanted == "closed"


def test_history_keeps_the_first_of_repeats() -> None:
    cut = rows(STORY.cut())
    assert newest([*cut, *cut]) == {TABLES[AlarmRow]: cut}


def at_zero() -> dict[Place, int]:
    return dict.fromkeys(places(), 0)


def garbage(sent: Sent, offset: int) -> Any:
    good = record_of(sent, offset)
    return replace(good, value=good.value[:-1])


def test_a_record_that_cannot_be_read_stops_with_its_place_and_what_to_do() -> None:
    charge = STORY.charge(1)
    with pytest.raises(Poison) as stopped:
        batch_of([garbage(charge, 0)], at_zero(), NOWHERE)
    assert "charges-3 offset 0" in str(stopped.value)
    assert "WATTVEND_REPORTING_SKIP=charges:3:0" in str(stopped.value)


def test_an_operator_can_step_over_one_record_and_the_next_still_counts() -> None:
    records = [garbage(STORY.charge(1), 0), record_of(STORY.charge(2), 1)]
    batch = batch_of(records, at_zero(), frozenset({("charges", 3, 0)}))
    assert [(topic, partition, offset) for topic, partition, offset, _ in batch.skipped] == [
        ("charges", 3, 0)
    ]
    assert batch.advanced == {Place("charges", 3): (0, 2)}
    assert [type(row) for row in batch.rows] == [ChargeRow, AccountTotalsRow]


def test_a_record_without_a_value_is_not_passed_over() -> None:
    empty = record_of(STORY.cut(), 0)
    with pytest.raises(Poison, match="without a value"):
        batch_of([replace(empty, value=None)], at_zero(), NOWHERE)


def test_a_subject_that_its_topic_must_not_hold_is_refused() -> None:
    cut = STORY.cut()
    with pytest.raises(Poison, match="balances has no place for alarm/"):
        batch_of(
            [record_of(Sent("balances", 0, cut.key, cut.subject, cut.value), 0)],
            at_zero(),
            NOWHERE,
        )


def test_an_event_of_a_type_nobody_listed_is_refused() -> None:
    sold = STORY.credit_sold(1, CREDIT_NANO)
    odd = Sent("ledger", sold.partition, sold.key, "ledger-event", {**sold.value, "type": "alarm"})
    with pytest.raises(InvalidInput, match="does not list"):
        rows_of(record_of(odd, 0))


def test_a_hole_in_history_stops_but_compaction_leaves_holes() -> None:
    cut, status = STORY.cut(), STORY.device_status("meters/M", "online")
    with pytest.raises(LogDisagrees, match="offset 7 where 0 was expected"):
        batch_of([record_of(cut, 7)], at_zero(), NOWHERE)
    batch = batch_of([record_of(status, 7)], at_zero(), NOWHERE)
    assert list(batch.advanced.values()) == [(0, 8)]


def test_a_device_that_speaks_on_another_line_is_what_it_is_there() -> None:
    lost, heard = (STORY.device_status("meters/M", status) for status in ("offline", "online"))
    there = {**heard.value, "line_id": "L-2", "since_ms": T0 + 1}
    moved = replace(heard, partition=lost.partition ^ 1, value=there)
    long_told = rows_of(record_of(lost, 70_000))
    (standing,) = newest([*long_told, *rows_of(record_of(moved, 3))]).values()
    assert [row.status for row in standing if isinstance(row, DeviceStatusRow)] == ["online"]


def test_a_batch_tells_where_each_partition_was_and_is() -> None:
    batch = batch_of(consumed(STORY.all()), at_zero(), NOWHERE)
    assert batch.advanced[Place("charges", 3)] == (0, 3)
    assert batch.records == len(STORY.all())
    assert batch.newest_ms == STORY.charge(3).at_ms


def test_a_batch_ends_early_when_its_frames_are_full_and_loses_nothing() -> None:
    records = consumed(STORY.all() * 400)
    at, taken = at_zero(), 0
    while taken < len(records):
        batch = batch_of(records[taken:], at, NOWHERE)
        assert 0 < len(batch.rows) <= ROWS_MAX + 2
        assert all(at[place] == before for place, (before, _) in batch.advanced.items())
        at |= {place: after for place, (_, after) in batch.advanced.items()}
        taken += batch.records
    assert sum(at.values()) == len(records)


CHARGES, STATUS = Place("charges", 0), Place("device-status", 0)


def test_a_log_that_ends_before_the_tables_is_another_log() -> None:
    with pytest.raises(LogDisagrees, match="another Kafka"):
        check({CHARGES: Span(0, 9)}, {CHARGES: 0}, {CHARGES: 8})


def test_history_that_retention_took_before_it_was_read_is_not_passed_over() -> None:
    assert is_history(CHARGES)
    assert not is_history(STATUS)
    with pytest.raises(LogDisagrees, match="removed by retention"):
        check({CHARGES: Span(0, 5)}, {CHARGES: 6}, {CHARGES: 9})
    check(
        {CHARGES: Span(0, 6), STATUS: Span(0, 5)}, {CHARGES: 6, STATUS: 6}, {CHARGES: 9, STATUS: 9}
    )


def test_the_rows_of_a_fact_are_the_fields_of_its_schema() -> None:
    """A field that the schema gains is either a column or left out on purpose."""
    left_out = {
        "meters": {
            "previous_account_id",
            "previous_account_key",
            "previous_shard",
            "previous_epoch",
            "closing_register_milli",
        },
        "accounts": {"hold_id", "thaw_id"},
    }
    facts = {"sites": "site-fact", "meters": "meter-fact", "accounts": "account-fact"}
    for table in TABLES.values():
        if table.name in facts:
            schema = codec._today(facts[table.name])
            fields = {field["name"] for field in schema["fields"]}
            assert set(table.columns) == fields - left_out.get(table.name, set())
