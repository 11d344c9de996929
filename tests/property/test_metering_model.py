"""The engine agrees with the scalar model, on every history.

Both absorb the same log, record by record. After each record everything that was sent is
compared, in order and to the last field, with the counts and the next deadline; at the end, what
each account and each meter stands at. Profiles and how to replay: metering_runs.py.
"""

from typing import Any

from hypothesis import currently_in_test_context, given, note

from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Absorbed, LogRecord
from services.metering.domain.rows import FORCED
from services.metering.domain.shard import ShardState
from services.metering.domain.verdict import REFUSALS
from tests.property.metering_histories import (
    SHARD,
    Reordering,
    arrears,
    histories,
    merged,
    oddities,
    reorderings,
    routines,
    shapes,
)
from tests.property.metering_model import Account, Meter, ScalarShard
from tests.property.metering_runs import examples, plain, totals

COUNTED = (
    *("unknown-meter", "other-epoch", "frozen", "other-serial", "absurd", "ratio-mismatch"),
    *("below-opening", "duplicate", "late", "negative", "implausible", "accepted"),
    *("fact-old", "fact-late", "late-conflict", "re-split", "period-closed"),
    *("meter-held", "scale", "reset", "hold-accepted", "hold-rejected", "resolution-refused"),
    *("rollover", "clock", "conflict", "stuck", "use-while-open", "rates-disagree", "reverse"),
    *("clock-drift", "gap", "silent", "closing", "unusual", "read-again", "idle"),
)
HELD_COLUMNS = ("reading_id", "register_milli", "device_time_ms", "received_at_ms")


@examples(500)
@given(histories())
def test_the_engine_and_the_scalar_model_agree_record_by_record(records: list[LogRecord]) -> None:
    check(records)


@examples(500)
@given(shapes())
def test_they_agree_on_calendars_ladders_and_late_readings(records: list[LogRecord]) -> None:
    check(records)


@examples(500)
@given(arrears())
def test_they_agree_on_who_may_be_cut_and_why_not(records: list[LogRecord]) -> None:
    check(records)


@examples(500)
@given(oddities())
def test_they_agree_on_what_is_held_and_what_people_say_of_it(records: list[LogRecord]) -> None:
    check(records)


@examples(150)
@given(routines())
def test_they_agree_on_what_is_usual_and_what_is_not(records: list[LogRecord]) -> None:
    check(records)


@examples(500)
@given(merged())
def test_they_agree_on_accounts_with_many_meters(records: list[LogRecord]) -> None:
    check(records)


@examples(500)
@given(reorderings())
def test_they_agree_on_readings_in_any_order(drawn: Reordering) -> None:
    check(drawn.log(drawn.order))


def check(records: list[LogRecord]) -> None:
    """Let both absorb `records`; fail at the first record where they differ."""
    engine, model = ShardState.empty(SHARD), ScalarShard(SHARD)
    for record in records:
        check_record(engine, model, record)
    check_standing(engine, model)


def check_record(engine: ShardState, model: ScalarShard, record: LogRecord) -> Absorbed:
    """Let both absorb a record; fail where they differ, else return what it caused."""
    done = absorb(engine, record)
    sent, counts = model.absorb(record)
    expected = [
        {"topic": s.topic, "key": s.key, "route": s.route, "record": s.record} for s in sent
    ]
    if currently_in_test_context():
        note(f"{record.offset}: {record.subject} -> {[s.topic for s in sent]}")
    assert differences([plain(output) for output in done.outputs], expected) == []
    assert {name: done.counts[name] for name in COUNTED} == {name: counts[name] for name in COUNTED}
    assert engine.next_deadline_ms() == model.next_deadline
    return done


def check_standing(engine: ShardState, model: ScalarShard) -> None:
    """Fail where accounts and meters stand otherwise."""
    standing = {
        key: {**_account(each), "fees_due_ms": model.fee_due(each)}
        for key, each in model.accounts.items()
    }
    assert differences(totals(engine), standing) == []


def differences(engine: Any, model: Any, where: str = "") -> list[str]:
    """Return what differs, path by path: short enough to read in a failure."""
    if isinstance(engine, dict) and isinstance(model, dict) and engine.keys() == model.keys():
        return [d for key in engine for d in differences(engine[key], model[key], f"{where}.{key}")]
    if isinstance(engine, list) and isinstance(model, list) and len(engine) == len(model):
        pairs = enumerate(zip(engine, model, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{where}[{i}]")]
    return [] if engine == model else [f"{where}: engine {engine!r}, model {model!r}"]


def _account(account: Account) -> dict[str, Any]:
    fact = account.fact
    return {
        "level": account.level,
        "house": account.house,
        "known": fact is not None,
        "frozen": account.frozen,
        "closed": fact is not None and fact["status"] == "closed",
        "refusal": REFUSALS.index(account.refusal),
        "arrears_since_ms": account.arrears_since,
        "notice_at_ms": account.notice and account.notice[0],
        "revision": account.revision,
        "book_epoch": account.book_epoch,
        "credited_nano": account.credited,
        "held_nano": account.held,
        "charged_nano": account.charged,
        "sequence": account.sequence,
        "components": tuple(account.divided.values()),
        "published_at_ms": account.published_at,
        "due_ms": account.due,
        "last_received_at_ms": account.last_received,
        "since_ms": account.since,
        "fees_until_ms": account.fees_until,
        "fees_sequence": account.fees_sequence,
        "accumulations": {
            key: (each.base, each.total, each.days, each.days_of)
            for key, each in account.accumulations.items()
        },
        "meters": {key: _meter(meter) for key, meter in account.meters.items()},
    }


def _meter(meter: Meter) -> dict[str, Any]:
    return {
        "epoch": meter.epoch,
        "ratio": meter.fact["ratio"],
        "serial": meter.fact["serial"].encode(),
        "quality": meter.quality,
        "time_ms": meter.time,
        "sequence": meter.sequence,
        "energy_total_milli": meter.energy_total,
        "register_milli": meter.register,
        "reading_id": meter.reading_id,
        "max_power_w": meter.fact["max_power_w"],
        "send_before_ms": meter.send_before,
        "forced": FORCED.index(meter.forced or ""),
        "relay": ("", "closed", "tripped").index(meter.relay),
        "since_ms": meter.since,
        "windows": meter.windows,
        "rates_milli": meter.rates,
        "hold": meter.hold,
        "held": [_held(meter.held)] if meter.held else [],
        "waiting": [
            (before.epoch, before.register, before.sequence, _held(held))
            for before, held in ([meter.waiting] if meter.waiting else [])
        ],
        "flags": meter.flags,
        "relay_bits": meter.relay_bits,
        "silent_at_ms": meter.silent_at,
        "stand": [meter.stand] if meter.stand else [],
        "habits": [(*meter.mark, *meter.levels, *meter.told)] if meter.mark else [],
    }


def _held(reading: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(reading[name] for name in HELD_COLUMNS)
