"""Goal: the demo's judge cannot be talked out of a difference, however small.

Method: a verdict in which everything agrees; then one figure is one unit off, or one relay differs.
"""

from dataclasses import replace
from typing import Any

import pytest

from tools.demo.judge import MeterVerdict
from tools.demo.plan import DemoMeter, cost_nano, steps_worth

METER = DemoMeter("meter-025", "230100000001", "gw-anchors", 1, "acrel-dtsy1352", 20, 3_000_000)
COST = cost_nano(157, METER)
PAID = 16_970_000_000

TRUE = MeterVerdict(
    meter=METER,
    true_steps=157,
    true_cost_nano=COST,
    charged_nano=COST,
    receipts_nano=PAID,
    credited_nano=PAID,
    book_credited_nano=PAID,
    available_nano=PAID - COST,
    relay_true="closed",
    relay_wanted="closed",
    relay_reported="closed",
)


def test_where_everything_agrees_there_is_no_fault() -> None:
    assert TRUE.faults == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"charged_nano": COST + 1}, "charged"),
        ({"credited_nano": PAID - 1}, "credited"),
        ({"book_credited_nano": PAID + 1}, "book"),
        ({"available_nano": PAID - COST - 1}, "balance"),
        ({"relay_true": "open"}, "relay"),
        ({"relay_wanted": "open"}, "relay"),
        ({"relay_reported": "unknown"}, "relay"),
    ],
)
def test_one_unit_or_one_position_off_is_a_fault_by_name(
    changed: dict[str, Any], fault: str
) -> None:
    assert replace(TRUE, **changed).faults == [fault]


def test_the_meter_that_vanishes_does_so_with_the_very_step_that_uses_up_the_credit() -> None:
    steps = steps_worth(PAID, METER)
    assert cost_nano(steps - 1, METER) < PAID <= cost_nano(steps, METER)
