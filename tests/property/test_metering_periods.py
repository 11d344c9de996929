"""Accounts that begin a period go with all others, on columns, and nobody can tell.

Method: a shard that may begin no accumulation on columns prices each such interval by itself, in
integers without end, as the model has it. Outputs and rows of both are the same bytes.
"""

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from services.metering.domain.facts import Array
from services.metering.domain.shard import ShardState
from tests.property.metering_runs import examples
from tests.unit.metering_log import SHARD, Log, account, meter, policy, reading, site
from tests.unit.test_metering_tariffs import MONTHLY, at, plan

HOUR_MS = 3_600_000
STEEP: dict[str, Any] = {
    **MONTHLY,
    "ladder": {"period": "month", "steps": [{"above_milli": 300, "add_micro": 9}]},
}
BY_RATE: dict[str, Any] = {
    **MONTHLY,
    "ladder": {
        "period": "year",
        "basis": "rate",
        "rate_steps": {"flat": [{"above_milli": 500, "add_micro": 3}]},
    },
}
YEARLY: dict[str, Any] = {**MONTHLY, "ladder": {**MONTHLY["ladder"], "period": "year"}}
NONE: dict[str, Any] = {"zone": "Asia/Shanghai", "rates_micro": {"flat": 2}}
PLANS = ((MONTHLY, STEEP, NONE), (YEARLY,), (BY_RATE, NONE))
"""Versions that one tariff may have."""


class OneByOne(ShardState):
    """A shard that begins no accumulation on columns."""

    def may_open(self, slots: Array, periods: Array) -> Array:
        """No account may."""
        return super().may_open(slots, periods) & False


class Counting(ShardState):
    """A shard that tells how many accumulations were begun on columns."""

    opened = 0

    def open(self, slots: Array, opened: Array) -> None:
        """Count them."""
        self.opened += len(slots)
        super().open(slots, opened)


_READ = st.tuples(
    st.sampled_from([("M1",), ("M2",), ("M1", "M2"), ("M1", "M3"), ("M1", "M2", "M3")]),
    st.one_of(st.integers(1, 48), st.integers(200, 1_600)),  # hours since the record before
    st.integers(0, 900),
)
_VERSION = st.tuples(st.just(()), st.integers(2, 900), st.integers(0, 2))


def _use(hours: int) -> tuple[tuple[str, ...], int, int]:
    return ("M1",), hours, 500


@examples(150)
@given(
    st.integers(0, 40 * 24),
    st.sampled_from(PLANS),
    st.lists(st.one_of(_READ, _READ, _READ, _VERSION), min_size=2, max_size=12),
)
@example(0, PLANS[0], [_use(24), ((), 2, 1), _use(24), _use(24), _use(720), _use(24)])
@example(0, PLANS[0], [_use(24), ((), 2, 2), _use(1_600), ((), 2, 0), _use(24), _use(24)])
def test_a_period_begins_on_columns_as_one_by_one(
    opens_h: int, plans: tuple[dict[str, Any], ...], steps: list[tuple[Any, int, int]]
) -> None:
    logs = Log(ShardState.empty(SHARD)), Log(OneByOne.empty(SHARD))
    registers, versions = {"M1": 0, "M2": 0, "M3": 0}, 1
    facts = (
        *(site(), plan(plans[0]), policy(), account(credit=10**6), account("A2", credit=10**6)),
        *(meter(), meter("M2", revision=0), meter("M3", "A2", revision=0)),
    )
    for log in logs:
        log.now_ms = at("01-03T00:00") + opens_h * HOUR_MS
        for fact in facts:
            log.fact(fact)
    for meters, hours, what in [(tuple(registers), 0, 0), *steps]:
        if not meters:
            versions += 1
            effective_at_ms = logs[0].now_ms + hours * HOUR_MS
            fact = plan(plans[what % len(plans)], version=versions, effective_at_ms=effective_at_ms)
            done = [log.fact(fact) for log in logs]
        else:
            for meter_id in meters:
                registers[meter_id] += what
            done = []
            for log in logs:
                log.later(hours * HOUR_MS)
                times = {"at_ms": log.now_ms}
                read = [reading(registers[each], meter_id=each, **times) for each in meters]
                done.append(log.read(*read))
        assert done[0] == done[1]


def test_a_first_period_the_next_one_and_one_after_a_pause_begin_on_columns() -> None:
    state = Counting(SHARD)
    log = Log(state)
    log.now_ms = at("01-03T00:00")
    for fact in (site(), plan(MONTHLY), policy(), account(credit=10**6), meter()):
        log.fact(fact)
    opened = []
    for text, register_milli in (
        ("01-03T00:00", 0),
        ("01-04T00:00", 700),  # the first
        ("02-01T12:00", 1_500),  # the next, from within the one before
        ("03-01T00:00", 2_000),  # it ends at the edge: nothing of March yet
        ("03-01T00:15", 2_100),  # the next, at its edge
        ("05-01T12:00", 2_400),  # March, April and May: by itself
        ("06-01T12:00", 2_500),
    ):
        log.now_ms = at(text)
        log.use(register_milli)
        opened.append(state.opened)
    assert opened == [1, 1, 2, 2, 3, 3, 4]
