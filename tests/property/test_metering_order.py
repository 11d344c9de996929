"""Histories that differ only in the order of readings within a period end in the same charges.

One meter under any plan; readings that straddle at most as many edges as a meter keeps windows.
The first to arrive is the earliest, the others come in any order. The engine and the scalar model
are judged alike: each must come to what the model comes to where they arrive as they were taken.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from hypothesis import given

from services.common.kernel.frames import KIND_RESPLIT
from services.common.kernel.ids import column_key
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import LogRecord
from services.metering.domain.shard import ShardState
from tests.property.metering_histories import ACCOUNTS, SHARD, Reordering, reorderings
from tests.property.metering_model import ScalarShard
from tests.property.metering_runs import charges_of, examples, totals
from tests.property.metering_tariff_model import RATES, TOTAL, Tariff

A0 = column_key("account", ACCOUNTS[0])
Charge = dict[str, Any]
Parts = dict[tuple[int, int, int], list[int]]
"""(version, rate, period) → energy, rate and surcharge amount, then ladder, then tax."""


@examples(600)
@given(reorderings())
def test_readings_of_a_period_come_to_the_same_charges_in_any_order(drawn: Reordering) -> None:
    in_order = drawn.log(range(len(drawn.readings)))
    as_drawn = drawn.log(drawn.order)
    expected = model_of(in_order, drawn.tariff)
    assert model_of(as_drawn, drawn.tariff) == expected
    assert engine_of(in_order, drawn.tariff) == expected
    assert engine_of(as_drawn, drawn.tariff) == expected


def engine_of(records: list[LogRecord], tariff: Tariff) -> tuple[int, Parts]:
    """Return the account's charged total, and what its lines come to."""
    state = ShardState.empty(SHARD)
    outputs = [output for record in records for output in absorb(state, record).outputs]
    frames = [charges_of(output) for output in outputs if output.subject == "charge-frame"]
    return totals(state)[A0]["charged_nano"], parts_of(frames, tariff)


def model_of(records: list[LogRecord], tariff: Tariff) -> tuple[int, Parts]:
    model = ScalarShard(SHARD)
    sent = [each for record in records for each in model.absorb(record)[0]]
    frames = [each.record["rows"] for each in sent if each.topic == "charges"]
    return model.accounts[A0].charged, parts_of(frames, tariff)


def parts_of(frames: Iterable[list[Charge]], tariff: Tariff) -> Parts:
    """Return the charges' lines, summed.

    Whose energy takes a ladder of the total over its steps depends on who came first; what it
    takes there in all does not. So ladder and tax are summed over the rates of a version.
    """
    found: Parts = defaultdict(lambda: [0] * 5)
    for charge in (each for frame in frames for each in frame):
        for line in charge["lines"] or plain_line(charge, tariff):
            version, period = line["version"], line["period"]
            own, all_rates = found[version, line["rate"], period], found[version, TOTAL, period]
            for at, name in enumerate(("energy_milli", "rate_nano", "surcharge_nano")):
                own[at] += line[name]
            all_rates[3] += line["ladder_nano"]
            all_rates[4] += line["tax_nano"]
    return {key: parts for key, parts in found.items() if any(parts)}


def plain_line(charge: Charge, tariff: Tariff) -> list[dict[str, int]]:
    """Return the line that a charge of a plain plan, which tells a price, stands for."""
    if charge["kind"] == KIND_RESPLIT:
        return []
    version = charge["tariff_version"]
    (rate,) = tariff.terms(version).plan.rates_micro
    return [
        {
            "version": version,
            "rate": RATES.index(rate),
            "period": 0,
            "energy_milli": charge["energy_milli"],
            "rate_nano": charge["amount_nano"],
            "surcharge_nano": 0,
            "ladder_nano": 0,
            "tax_nano": 0,
        }
    ]
