"""Goal: an adjustment run compares what it should, and no account loses a part of a fen by it.

Method: the pure parts by themselves; that the sums are metering's is tests/property/test_whatif.py.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.tariffs import plan as plans
from services.common.tariffs.shape import End, Timeline
from services.reporting.domain.adjusting import amount_minor, run_of
from services.reporting.domain.rows import TariffVersionRow

FEN_NANO = 10**7


def version(number: int, effective_at_ms: int, price_micro: int = 1) -> TariffVersionRow:
    of_what = ("T1", number, "flat", "electricity", "CNY", "LE1", price_micro)
    return TariffVersionRow(*of_what, effective_at_ms, 5, 1, number - 1, None)


VERSIONS = [version(1, 0), version(2, 1_000, 2), version(3, 5_000, 3)]


def test_a_run_is_of_the_time_from_the_instant_until_the_version_began() -> None:
    run = run_of(VERSIONS, 3, 1_000)
    assert (run.was.from_ms, run.was.to_ms, run.was.cuts) == (1_000, 5_000, True)
    assert (run.would.from_ms, run.would.to_ms) == (1_000, 5_000)
    prices = [draft.plan.rates_micro for draft in (run.was, run.would)]
    assert prices == [{"flat": 2}, {"flat": 3}]


@pytest.mark.parametrize(
    ("number", "from_ms", "reason"),
    [
        (3, 999, Reason.INVALID_ARGUMENT),  # under the version before that one
        (3, 5_000, Reason.INVALID_ARGUMENT),  # it had begun
        (4, 1_000, Reason.TARIFF_NOT_FOUND),
        (1, 0, Reason.TARIFF_NOT_FOUND),  # nothing was before it
    ],
)
def test_a_run_that_compares_nothing_is_refused(number: int, from_ms: int, reason: Reason) -> None:
    with pytest.raises(InvalidInput) as refused:
        run_of(VERSIONS, number, from_ms)
    assert refused.value.reason is reason


@given(st.integers(-(10**12), 10**12))
def test_less_than_a_minor_unit_is_rounded_in_the_accounts_favour(dearer_nano: int) -> None:
    minor = amount_minor(0, dearer_nano, FEN_NANO)
    assert 0 <= minor * FEN_NANO + dearer_nano < FEN_NANO


EVENING = """{"zone": "UTC", "rates_micro": {"peak": 9, "valley": 1}, "seasons": [
{"name": "all", "begins": "01-01", "days": [{"kinds": ["weekday", "weekend", "holiday"], "slots": [
{"begins": "00:00", "rate": "peak"}, {"begins": "22:00", "rate": "valley"}]}]}]}"""
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("hour", "peak_milli", "valley_milli"),
    [(22, 4_000, 500), (21, 2_500, 500), (23, 4_000, 900)],  # 22: the edge of a rate
)
def test_registers_of_rates_tell_where_they_stood_at_an_instant(
    hour: int, peak_milli: int, valley_milli: int
) -> None:
    timeline = Timeline(plans.read(EVENING), 0, 24 * HOUR_MS)
    begin = End(20 * HOUR_MS, 1_500, (-1, 1_000, -1, 500, -1))
    end = End(24 * HOUR_MS - 1, 5_300, (-1, 4_000, -1, 1_300, -1))
    found = timeline.told_at(begin, end, 1, hour * HOUR_MS)
    rates_milli = (-1, peak_milli, -1, valley_milli, -1)
    assert found == End(hour * HOUR_MS, peak_milli + valley_milli, rates_milli)
    without = begin._replace(rates_milli=(-1,) * 5)
    assert timeline.told_at(without, end, 1, hour * HOUR_MS) is None
