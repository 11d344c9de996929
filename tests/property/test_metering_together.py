"""Records absorbed together are absorbed as one by one: outputs, rows, counts, byte for byte.

Method: one shard absorbs a history record by record, another in random handfuls; both may begin
from the rows of a worker that died. Frames are also cut into frames of one reading, as in life,
where most passes hold several.
"""

from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from services.common.kernel.frames import ReadingFrame
from services.metering.domain import together
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Absorbed, LogRecord, Row
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import shard_of_rows
from services.metering.domain.together import absorb_all
from tests.property.metering_histories import SHARD, arrears, histories, shapes
from tests.property.metering_runs import examples
from tests.property.test_metering_laws import sorted_rows
from tests.unit.metering_log import (
    Log,
    account,
    frame,
    kinds,
    meter,
    policy,
    reading,
    site,
    tariff,
)

_any_history = st.one_of(histories(), shapes(), arrears())


@examples(200)
@given(_any_history, st.booleans(), st.integers(0, 2**16))
def test_together_is_as_one_by_one(records: list[LogRecord], thin: bool, seed: int) -> None:
    records = thinned(records) if thin else records
    check(ShardState.empty(SHARD), ShardState.empty(SHARD), records, Random(seed))


@examples(100)
@given(_any_history, st.integers(1, 60), st.integers(0, 2**16))
def test_together_is_as_one_by_one_after_a_death(
    records: list[LogRecord], alive: int, seed: int
) -> None:
    records, random = thinned(records), Random(seed)
    rows = left_by(records[:alive], random)
    one, other = shard_of_rows(SHARD, rows), shard_of_rows(SHARD, rows)
    check(one, other, records, random)


def check(one: ShardState, other: ShardState, records: list[LogRecord], random: Random) -> None:
    """Fail where `other`, which absorbs handfuls, differs from `one`, which absorbs records."""
    passes = 0
    while records:
        handful, records = records[: (count := random.randint(1, 12))], records[count:]
        done = absorb_all(other, handful)
        for record, mine in zip(handful, done, strict=True):
            assert same_rows(mine) == same_rows(absorb(one, record)), record.offset
        assert (other.offset, other.now_ms) == (one.offset, one.now_ms)
        assert other.next_deadline_ms() == one.next_deadline_ms()
        passes += count > 1
    assert sorted_rows(one) == sorted_rows(other)
    event(f"{min(passes, 5)} handfuls")


def same_rows(done: Absorbed) -> Absorbed:
    """Return it with its account rows sorted: in which order they are written says nothing."""
    return replace(done, account_rows=tuple(sorted(done.account_rows)))


def thinned(records: list[LogRecord]) -> list[LogRecord]:
    """Return the same readings in frames of one each."""
    thin: list[LogRecord] = []
    for record in records:
        if isinstance(record.value, ReadingFrame):
            rows = record.value.rows
            ones = (rows.take(np.array([i])) for i in range(len(rows)))
            values = [replace(record.value, rows=one) for one in ones]
            thin += [replace(record, value=value) for value in values]
        else:
            thin.append(record)
    return [replace(record, offset=offset) for offset, record in enumerate(thin)]


def left_by(records: list[LogRecord], random: Random) -> list[Row]:
    """Return the rows of a worker that died while those of the last records were written."""
    state = ShardState.empty(SHARD)
    done = [absorb(state, record) for record in records]
    settled = random.randint(0, len(done))
    rows: list[Row] = []
    for each in done[:settled]:
        rows += [*each.fact_rows, *each.account_rows, each.header]
    for each in done[settled:]:
        rows += each.fact_rows
        rows += [row for row in each.account_rows if random.random() < 0.5]
    return rows


# -- cases ------------------------------------------------------------------------------------


class Counted:
    """Counts the records that went through absorb by themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alone = 0
        monkeypatch.setattr(together, "absorb", self)

    def __call__(self, state: ShardState, record: LogRecord) -> Absorbed:
        self.alone += 1
        return absorb(state, record)


def crowd(count: int, credit: int = 100) -> Log:
    """Return a log with accounts of a meter each, opened at register 0."""
    log = Log()
    for fact in (site(), tariff(), policy()):
        log.fact(fact)
    for number in range(count):
        log.fact(account(f"A{number}", credit=credit))
        log.fact(meter(f"M{number}", f"A{number}"))
    return log.later(1_000)


def frames(log: Log, *registers: tuple[int, int]) -> list[LogRecord]:
    """Return a frame of one reading for each (meter's number, register), a ms apart."""
    found = []
    for turn, (number, register) in enumerate(registers, 1):
        at_ms = log.now_ms + turn
        one = reading(register, meter_id=f"M{number}", at_ms=at_ms)
        found.append(LogRecord(log.state.offset + turn, at_ms, "reading-frame", frame([one])))
    return found


def test_frames_of_different_accounts_go_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    log, counted = crowd(8), Counted(monkeypatch)
    done = absorb_all(log.state, frames(log, *((number, 1_000) for number in range(8))))
    assert counted.alone == 0
    assert [len(each.outputs) for each in done] == [1] * 8


def test_a_second_frame_of_an_account_waits_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    log, counted = crowd(3), Counted(monkeypatch)
    records = frames(log, (0, 1_000), (1, 1_000), (0, 2_000), (2, 1_000))
    done = absorb_all(log.state, records)
    assert counted.alone == 0
    sequences = [each.outputs[0].record["account_sequences"] for each in done]
    assert sequences[2] > sequences[0]


def test_who_is_warned_is_absorbed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    log, counted = crowd(4), Counted(monkeypatch)
    done = absorb_all(log.state, frames(log, (0, 1_000), (1, 95_500), (2, 1_000), (3, 0)))
    assert counted.alone == 1
    assert [kinds(each) for each in done] == [[], ["alarm-2"], [], []]


def test_of_a_frame_in_which_one_is_warned_the_others_go_in_the_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log, counted = crowd(6), Counted(monkeypatch)
    at_ms = log.now_ms + 1
    frames_of = [
        frame([reading(register, meter_id=f"M{number}", at_ms=at_ms) for number, register in some])
        for some in ([(0, 1_000), (1, 95_500), (2, 1_000)], [(3, 1_000), (4, 95_500), (5, 1_000)])
    ]
    records = [
        LogRecord(log.state.offset + turn, at_ms, "reading-frame", value)
        for turn, value in enumerate(frames_of, 1)
    ]
    done = absorb_all(log.state, records)
    assert counted.alone == 0
    assert [kinds(each) for each in done] == [["alarm-2"], ["alarm-2"]]
    assert [each.counts["accepted"] for each in done] == [3, 3]
    assert [each.outputs[0].record["count"] for each in done] == [3, 3]
