"""Readings of one account in a frame are absorbed as one by one: outputs, rows, counts, all alike.

Method: one shard absorbs a history as the service does; in another of each account one reading
goes at a time. Rows of a record may come in any order, for each is of another account.
"""

from dataclasses import replace
from unittest.mock import patch

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from services.metering.domain import readings
from services.metering.domain.absorb import absorb
from services.metering.domain.charging import Bill, Intervals
from services.metering.domain.facts import Array
from services.metering.domain.groups import Groups
from services.metering.domain.messages import Absorbed, LogRecord
from services.metering.domain.readings import at_once, waves
from services.metering.domain.shard import ShardState
from tests.property.metering_histories import SHARD, arrears, histories, merged, oddities, shapes
from tests.property.metering_runs import examples
from tests.property.test_metering_laws import sorted_rows
from tests.unit.metering_log import (
    CREDIT_NANO,
    LEASE_MS,
    Log,
    account,
    charges,
    kinds,
    meter,
    policy,
    reading,
    site,
    tariff,
)


@examples(500)
@given(merged())
def test_at_once_is_as_one_by_one(records: list[LogRecord]) -> None:
    check(records)


@examples(200)
@given(st.one_of(histories(), shapes(), arrears(), oddities()))
def test_at_once_is_as_one_by_one_where_accounts_have_few_meters(records: list[LogRecord]) -> None:
    check(records)


def check(records: list[LogRecord]) -> None:
    """Fail where one by one and at once differ."""
    one, other, watched = ShardState.empty(SHARD), ShardState.empty(SHARD), Watched()
    for record in records:
        with patch.object(readings, "at_once", one_by_one):
            expected = absorb(one, record)
        with patch.object(readings, "at_once", watched):
            found = absorb(other, record)
        assert in_order(found) == in_order(expected), record.offset
        assert other.next_deadline_ms() == one.next_deadline_ms()
    assert sorted_rows(one) == sorted_rows(other)
    event(f"up to {max(watched.rounds, default=0)} readings at once")


def one_by_one(_: ShardState, intervals: Intervals, __: Array) -> tuple[Array, Bill | None]:
    """Let one reading of each account go."""
    return Groups(intervals.account_slots).ranks() == 0, None


def in_order(absorbed: Absorbed) -> Absorbed:
    return replace(absorbed, account_rows=tuple(sorted(absorbed.account_rows)))


class Watched:
    """`at_once`, and how many readings went in each round in which an account came twice."""

    def __init__(self) -> None:
        self.rounds: list[int] = []

    def __call__(
        self, state: ShardState, intervals: Intervals, outcomes: Array
    ) -> tuple[Array, Bill | None]:
        go, bill = at_once(state, intervals, outcomes)
        self.rounds.append(int(np.count_nonzero(go)))
        return go, bill


# -- cases ------------------------------------------------------------------------------------

METERS = 40


def merged_log(credit: int = 1_000) -> Log:
    """Return a log with an account of many meters, each opened at register 0."""
    log = Log()
    for fact in (site(), tariff(), policy(), account("A", credit=credit)):
        log.fact(fact)
    for number in range(METERS):
        log.fact(meter(f"M{number}", "A"))
    return log.later(1_000)


def rounds_of(log: Log, register_milli: int) -> tuple[Absorbed, list[int]]:
    """Let all meters be read in one frame; return what came of it, and how many went at once."""
    watched = Watched()
    with patch.object(readings, "at_once", watched):
        names = (f"M{number}" for number in range(METERS))
        found = [reading(register_milli, meter_id=name, at_ms=log.now_ms) for name in names]
        return log.read(*found), watched.rounds


def test_all_meters_of_an_account_go_at_once() -> None:
    done, rounds = rounds_of(merged_log(), 1_000)
    assert rounds == [METERS]
    told = [(one["account_sequence"], one["account_charged_total_nano"]) for one in charges(done)]
    assert told == [(2 + n, (1 + n) * CREDIT_NANO) for n in range(METERS)]


def test_who_makes_its_account_warn_goes_alone() -> None:
    done, rounds = rounds_of(merged_log(credit=24), 400)
    assert kinds(done) == ["alarm-1"]
    assert rounds == [34, 1, 5]


def test_meters_of_an_account_that_was_cut_go_at_once_while_nothing_is_to_be_renewed() -> None:
    log = merged_log(credit=5)
    cut, rounds = rounds_of(log, 1_000)
    assert kinds(cut) == ["cut", *["open"] * METERS]
    again, rounds = rounds_of(log.later(1_000), 2_000)
    assert (kinds(again), rounds) == ([], [METERS])
    renewed, rounds = rounds_of(log.later(LEASE_MS), 3_000)
    assert kinds(renewed) == ["open"] * METERS


def test_an_account_freezes_at_the_reading_whose_total_has_no_room() -> None:
    log = Log()
    for fact in (site(), tariff(price_micro=10**12), policy(), account("A", credit=10**9)):
        log.fact(fact)
    for number in range(METERS):
        log.fact(meter(f"M{number}", "A"))
    done, _ = rounds_of(log, 3_000_000)
    assert (done.counts["accepted"], done.counts["frozen"]) == (3, METERS - 4)
    assert kinds(done) == ["cut", *["open"] * METERS, "frozen"]


def test_a_meter_that_comes_again_waits_for_those_before_it() -> None:
    accounts, meters = np.array([5, 3, 5, 5, 2, 5]), np.array([1, 7, 1, 2, 4, 2])
    assert [list(wave) for wave in waves(accounts, meters)] == [[0, 1, 4], [2, 3], [5]]
    assert list(waves(accounts[:0], meters[:0])) == []


def test_groups_keep_the_order() -> None:
    groups = Groups(np.array([4, 2, 4, 9, 2]))
    assert not groups.are_single
    assert list(groups.ranks()) == [0, 0, 1, 0, 1]
    assert list(groups.sums_before(np.array([10, 20, 30, 40, 50]))) == [0, 0, 10, 0, 20]
    assert list(groups.shared()) == [True, True, True, False, True]
    assert list(groups.ends()) == [2, 3, 4]
