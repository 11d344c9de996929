"""Rule 5's fees by name: days and months that begin, whatever is used.

One account in Shanghai's year 2026 under a fee of 31 a month, so that a day of a month of 31 is one
currency unit; and one of 1 a day where days are what is counted.
"""

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from services.common.kernel.frames import FEE_RATE, KIND_FEE
from services.common.kernel.ids import name_uuid
from services.metering.domain import outbox
from services.metering.domain.shard_rows import rows_of, shard_of_rows
from tests.unit.metering_log import (
    CREDIT_NANO,
    SHARD,
    Log,
    account,
    charges,
    kinds,
    meter,
    of,
    policy,
    site,
)
from tests.unit.test_metering_tariffs import at, charged, plan

LINE = {"name": "line", "period": "month", "amount_micro": 31_000_000}
STAND = {"name": "stand", "period": "day", "amount_micro": 1_000_000}
FREE: dict[str, Any] = {"zone": "Asia/Shanghai", "rates_micro": {"flat": 0}}
MONTHLY_FEE = {**FREE, "fees": [LINE]}
DAILY_FEE = {**FREE, "fees": [STAND]}


def log_of(document: dict[str, Any], opens: str, credit: int = 1000, **changes: Any) -> Log:
    """Return a log with an account that begins at a time of 2026 in Shanghai."""
    log = Log()
    log.now_ms = at(opens)
    for fact in (site(), plan(document), policy(), account(credit=credit, **changes)):
        log.fact(fact)
    return log


def units(log: Log) -> int:
    whole, rest = divmod(charged(log), CREDIT_NANO)
    assert not rest
    return whole


def wake_at(log: Log, text: str) -> Any:
    log.now_ms = at(text)
    return log.wake()


def in_zone(zone: str, text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()) * 1000


def test_the_month_in_which_an_account_begins_counts_by_its_days() -> None:
    log = log_of(MONTHLY_FEE, "01-22T18:00")
    assert units(log) == 10  # the 22nd to the 31st
    (charge,) = charges_of_fees(log)
    (line,) = charge["lines"]
    assert (line["rate"], line["days"], line["days_of"]) == (FEE_RATE, 10, 31)
    assert (charge["meter_key"], charge["epoch"], charge["sequence"]) == (
        account()["account_key"],
        0,
        1,
    )
    assert charge["from_time_ms"] == charge["to_time_ms"] == at("01-22T18:00")


def charges_of_fees(log: Log) -> list[dict[str, Any]]:
    """Return the postings of a log, absorbed once more."""
    again = Log()
    found = []
    for record in log.records:
        again.now_ms = record.timestamp_ms
        done = again.append(record.subject, record.value)
        found += [charge for charge in charges(done) if charge["kind"] == KIND_FEE]
    return found


def test_a_month_falls_due_at_its_first_instant_and_once() -> None:
    log = log_of(MONTHLY_FEE, "01-31T00:00")
    assert units(log) == 1
    assert log.state.next_deadline_ms() == at("02-01T00:00")
    log.now_ms = at("02-01T00:00") - 1
    assert charges(log.wake()) == []
    assert len(charges(wake_at(log, "02-01T00:00"))) == 1
    assert units(log) == 1 + 31
    assert charges(wake_at(log, "02-01T00:00")) == []
    assert log.state.next_deadline_ms() == at("03-01T00:00")


def test_what_falls_due_while_nobody_looks_is_posted_together() -> None:
    log = log_of({**FREE, "fees": [STAND, LINE]}, "01-31T12:00")
    (charge,) = charges(wake_at(log, "03-02T08:00"))
    told = [(line["rate"] - FEE_RATE, line["days"], line["days_of"]) for line in charge["lines"]]
    assert told == [(0, 28 + 2, 1), (1, 2, 1)]
    assert (charge["from_time_ms"], charge["to_time_ms"]) == (
        at("02-01T00:00"),
        at("03-02T00:00"),
    )
    assert charge["amount_nano"] == (30 + 62) * CREDIT_NANO


def test_a_reading_finds_the_fees_before_it_posted() -> None:
    log = log_of({**DAILY_FEE, "rates_micro": {"flat": 10**6}}, "01-31T12:00")
    log.fact(meter())
    log.use(0)
    log.now_ms = at("02-01T06:00")
    fee, usage = charges(log.use(1_000))
    assert (fee["kind"], usage["kind"]) == (KIND_FEE, 0)
    assert usage["account_sequence"] == fee["account_sequence"] + 1
    assert usage["price_micro"] == 10**6  # a plan is plain, whatever its fees


def test_midnight_that_is_left_out_or_comes_twice_begins_one_day() -> None:
    document = {**DAILY_FEE, "zone": "America/Havana"}
    for opens, day in (("2026-03-06", "2026-03-08"), ("2026-10-30", "2026-11-01")):
        log = Log()
        log.now_ms = in_zone("America/Havana", f"{opens}T12:00")
        for fact in (site(), plan(document), policy(), account(credit=1000)):
            log.fact(fact)
        begins_ms = in_zone("America/Havana", f"{day}T00:00")
        log.now_ms = begins_ms - 1
        log.wake()
        assert units(log) == 2
        for _ in range(3):
            log.now_ms += 1 if units(log) == 2 else 3_600_000
            log.wake()
            assert units(log) == 3


def test_a_version_asks_from_the_first_period_that_begins_under_it() -> None:
    log = log_of(MONTHLY_FEE, "01-01T00:00")
    log.fact(plan(DAILY_FEE, version=2, effective_at_ms=at("01-15T00:00")))
    log.fact(plan(FREE, version=3, effective_at_ms=at("01-20T12:00")))
    (charge,) = charges(wake_at(log, "02-10T00:00"))
    assert [(line["version"], line["days"]) for line in charge["lines"]] == [(2, 6)]
    assert charge["tariff_version"] == 2
    assert log.state.next_deadline_ms() is None


def test_a_fact_of_another_tariff_ends_the_old_fees_at_its_record() -> None:
    log = log_of(MONTHLY_FEE, "01-01T00:00")
    log.fact(plan(DAILY_FEE, tariff_id="T2"))
    log.now_ms = at("02-01T09:00")
    done = log.fact(account(credit=1000, tariff_id="T2", revision=1))
    assert [charge["amount_nano"] for charge in charges(done)] == [31 * CREDIT_NANO]
    (charge,) = charges(wake_at(log, "02-03T00:00"))
    assert charge["amount_nano"] == 2 * CREDIT_NANO


def test_taxes_on_fees_are_folded_into_them() -> None:
    fee = {"name": "line", "period": "month", "amount_micro": 3}
    tax = {"name": "VAT", "ppm": 500_000, "base": ["fees"]}
    log = log_of({**FREE, "fees": [fee], "taxes": [tax]}, "01-22T18:00")
    (charge,) = charges_of_fees(log)
    (line,) = charge["lines"]
    assert (line["rate_nano"], line["tax_nano"]) == (3000 * 10 // 31, 2000 * 10 // 31)


def test_a_fee_warns_and_never_cuts() -> None:
    log = log_of(DAILY_FEE, "01-01T12:00", credit=12)
    log.fact(meter())
    log.use(0)
    done = wake_at(log, "01-30T00:00")
    assert kinds(done) == ["alarm-2", "meter-silent"]
    alarm = of(done, "alarm")[0]
    assert (alarm["charge_epoch"], alarm["charge_sequence"], alarm["meter_id"]) == (0, 2, None)
    log.use(1)  # after so long a silence it cuts nobody
    assert "cut" in kinds(log.later(1).use(1))


def test_an_account_that_is_not_open_owes_nothing_more() -> None:
    log = log_of(DAILY_FEE, "01-01T12:00")
    log.now_ms = at("01-03T12:00")
    done = log.fact(account(credit=1000, status="closing", revision=1))
    assert [charge["amount_nano"] for charge in charges(done)] == [2 * CREDIT_NANO]
    assert charges(wake_at(log, "01-09T12:00")) == []
    log.fact(account(credit=1000, status="closed", revision=2))
    assert charges(wake_at(log, "02-09T12:00")) == []
    assert log.state.next_deadline_ms() is None


def test_a_fee_that_does_not_fit_freezes_the_account_and_is_asked_no_more() -> None:
    dear = [{**STAND, "name": str(number), "amount_micro": 10**13} for number in range(8)]
    log = log_of({**FREE, "fees": dear}, "01-01T12:00")
    assert charges(wake_at(log, "01-02T12:00"))
    before = charged(log)
    done = wake_at(log, "12-31T12:00")
    assert (kinds(done), charges(done)) == (["frozen"], [])
    assert (charged(log), log.state.next_deadline_ms()) == (before, None)


def test_fees_that_fell_due_while_frozen_are_charged_once_when_a_person_has_thawed_it() -> None:
    log = log_of(DAILY_FEE, "01-01T12:00")
    assert kinds(log.fact(account(credit=1000, policy_id="P7", revision=1))) == ["frozen"]
    assert charges(wake_at(log, "01-09T12:00")) == []
    done = log.fact(account(credit=1000, thaw_id=str(name_uuid("thaw")), revision=2))
    assert kinds(done) == ["thawed"]
    assert [charge["amount_nano"] for charge in charges(done)] == [8 * CREDIT_NANO]
    (charge,) = charges(wake_at(log, "01-10T12:00"))
    assert charge["amount_nano"] == CREDIT_NANO


def test_fees_of_a_whole_shard_go_in_frames_that_a_broker_takes(monkeypatch: Any) -> None:
    monkeypatch.setattr(outbox, "CHARGES_MAX", 3)
    log = log_of({**FREE, "fees": [STAND, LINE]}, "01-01T12:00")
    names = [f"A{number}" for number in range(2, 9)]
    for name in names:
        log.fact(account(name, credit=1000))
    done = wake_at(log, "02-01T00:00")
    frames = [output for output in done.outputs if output.topic == "charges"]
    assert [output.record["count"] for output in frames] == [3, 3, 2]
    assert len({output.event_id for output in frames}) == 3
    found = charges(done)
    assert all(
        [(line["rate"], line["days"]) for line in charge["lines"]]
        == [(FEE_RATE, 31), (FEE_RATE + 1, 1)]
        for charge in found
    )
    keys = [charge["account_key"] for charge in found]
    assert keys == sorted(account(name)["account_key"] for name in ["A1", *names])


def test_a_shard_read_from_its_rows_asks_for_no_fee_twice_and_for_none_less() -> None:
    log = log_of(DAILY_FEE, "01-01T12:00")
    wake_at(log, "01-03T12:00")
    fact_rows, account_rows, header = rows_of(log.state)
    again = Log(shard_of_rows(SHARD, [*fact_rows, *account_rows, header]))
    assert again.state.next_deadline_ms() == log.state.next_deadline_ms()
    for one in (log, again):
        wake_at(one, "01-09T12:00")
    assert rows_of(log.state)[1] == rows_of(again.state)[1]
    assert units(again) == 9
