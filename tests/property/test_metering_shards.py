"""Meters that move between two shards: what is true of both shards together.

Each shard reads its own log and knows nothing of the other. So what is judged here is that two
engines agree with two scalar models whatever the order in which they absorb, and that energy is
charged once, by one of them, wherever its readings went. Profiles and how to replay:
metering_runs.py.
"""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
from hypothesis import given

from services.common.kernel.frames import KIND_CLOSING, KIND_FEE, KIND_RESPLIT, ReadingFrame
from services.metering.domain.absorb import absorb
from services.metering.domain.shard import ShardState
from tests.property.metering_model import ScalarShard
from tests.property.metering_runs import examples, outputs_of
from tests.property.metering_shards import SHARDS, Logs, Moved, exact_moves, moves
from tests.property.test_metering_laws import stands_of
from tests.property.test_metering_model import check_record, check_standing


@examples(250)
@given(moves())
def test_two_engines_and_two_scalar_models_agree_in_whatever_order_they_absorb(logs: Logs) -> None:
    models = {shard: ScalarShard(shard) for shard in SHARDS}
    engines = {shard: ShardState.empty(shard) for shard in SHARDS}
    for shard, record in logs.merged():
        check_record(engines[shard], models[shard], record)
    for shard in SHARDS:
        check_standing(engines[shard], models[shard])


@examples(250)
@given(exact_moves())
def test_what_a_register_rose_is_charged_once_whichever_shards_its_meter_moved_through(
    moved: Moved,
) -> None:
    engines = {shard: ShardState.empty(shard) for shard in SHARDS}
    done = [absorb(engines[shard], record) for shard, record in moved.logs.merged()]
    charges: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for stand in stands_of(outputs_of(done)).values():
        for charge in stand:
            if charge["kind"] not in (KIND_FEE, KIND_RESPLIT):
                charges[charge["meter_key"]].append(charge)
    assert charges.keys() == moved.newest.keys()
    for meter_key, mine in charges.items():
        mine.sort(key=lambda charge: (charge["epoch"], charge["sequence"]))
        for before, after in pairwise(mine):
            assert before["to_register_milli"] == after["from_register_milli"]
            assert (before["epoch"] == after["epoch"]) == (before["kind"] != KIND_CLOSING)
        assert mine[-1]["to_register_milli"] == moved.registers_milli[meter_key]
        rise_milli = moved.registers_milli[meter_key] - mine[0]["from_register_milli"]
        assert sum(charge["energy_milli"] for charge in mine) == rise_milli


@examples(150)
@given(exact_moves())
def test_a_meter_stands_at_an_epoch_in_one_shard_and_is_heard_there_alone(moved: Moved) -> None:
    engines = {shard: ShardState.empty(shard) for shard in SHARDS}
    keys = np.array(list(moved.newest))
    for shard, record in moved.logs.merged():
        before = stands(engines[shard], keys)
        done = absorb(engines[shard], record)
        if isinstance(record.value, ReadingFrame):
            rows = record.value.rows
            told = zip(rows["meter_key"].tolist(), rows["epoch"].tolist(), strict=True)
            unheard = done.counts["other-epoch"] + done.counts["unknown-meter"]
            assert unheard == sum(reading not in before for reading in told)
        here, there = (stands(engine, keys) for engine in engines.values())
        assert not here & there
    for shard in SHARDS:
        expected = {
            (key, fact["epoch"]) for key, fact in moved.newest.items() if fact["shard"] == shard
        }
        assert stands(engines[shard], keys) == expected


def stands(engine: ShardState, meter_keys: Any) -> set[tuple[int, int]]:
    """Return (meter_key, epoch) of those of the meters that stand in a shard."""
    slots = engine.standing.find(meter_keys)
    rows = engine.meters[slots[slots >= 0]]
    return set(zip(rows["key"].tolist(), rows["epoch"].tolist(), strict=True))
