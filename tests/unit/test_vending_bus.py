"""What vending reads from the bus: nothing that carries money or a register is passed over.

Method: the handlers of `charges` and `echoes` with records that cannot be read, and a person who
did, or did not, say to step over them.
"""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import structlog

from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import Bug
from services.common.kernel.frames import CHARGE, KIND_FEE, KIND_RESPLIT, KIND_USAGE, ChargeFrame
from services.common.runtime import codec, kafka
from services.vending.adapters import bus

LOG = structlog.get_logger()


class Kept:
    """Takes what the handlers keep."""

    def __init__(self) -> None:
        self.charged: list[Any] = []
        self.offsets: list[Any] = []

    async def keep_charged(self, charged: Any, offsets: list[Any]) -> None:
        self.charged += charged
        self.offsets += offsets


def garbage(topic: str, subject: str) -> Any:
    headers = Envelope(f"{subject}/1", uuid4(), 0).headers()
    return SimpleNamespace(topic=topic, partition=2, offset=9, headers=headers, value=b"garbage")


def handlers(kept: Any, *told: tuple[str, int, int]) -> dict[str, bus.Handle]:
    step_over = kafka.StepOver(frozenset(told), "WATTVEND_VENDING_SKIP", LOG)
    nobody: Any = None
    return {
        "charges": bus.keeper_of_charges(kept, step_over),
        "echoes": bus.settler_of_echoes(nobody, nobody, kept, lambda: 0, step_over),
    }


async def test_a_vending_that_another_has_superseded_tells_nothing_more() -> None:
    told: list[Any] = []
    refusing = ""

    class Wire:
        async def publish(self, records: Any) -> None:
            told.extend(records)

    publisher = bus.WhileWriting(Wire(), lambda: refusing)
    records: Any = ["first"]
    await publisher.publish(records)
    refusing = "another vending has become the writer"
    later = asyncio.create_task(publisher.publish(records))
    done, _ = await asyncio.wait([later], timeout=0.05)
    later.cancel()
    assert (told, done) == (["first"], set())


UNREADABLE = [("charges", "charge-frame"), ("echoes", "echo")]


@pytest.mark.parametrize(("topic", "subject"), UNREADABLE)
async def test_what_cannot_be_read_stops_vending_and_says_what_to_do(
    topic: str, subject: str
) -> None:
    kept = Kept()
    with pytest.raises(Bug, match=rf"WATTVEND_VENDING_SKIP={topic}:2:9"):
        await handlers(kept)[topic]([garbage(topic, subject)])
    assert kept.offsets == []


@pytest.mark.parametrize(("topic", "subject"), UNREADABLE)
async def test_what_a_person_told_to_step_over_is_passed_and_its_offset_kept(
    topic: str, subject: str
) -> None:
    kept = Kept()
    await handlers(kept, (topic, 2, 9))[topic]([garbage(topic, subject)])
    assert [(offset.topic, offset.partition) for offset in kept.offsets] == [(topic, 2)]


async def test_neither_a_late_reading_that_changed_a_shape_nor_a_fee_moves_a_register() -> None:
    rows = np.zeros(4, CHARGE)
    rows["meter_key"], rows["sequence"] = [7, 7, 8, 9], [4, 5, 1, 2]
    rows["kind"] = [KIND_USAGE, KIND_RESPLIT, KIND_RESPLIT, KIND_FEE]
    rows["to_register_milli"] = [900, 450, 10, 0]
    kept = Kept()
    await handlers(kept)["charges"]([frame_of(rows)])
    assert [(c.meter_key, c.sequence, c.register_milli) for c in kept.charged] == [(7, 4, 900)]
    assert [offset.next_offset for offset in kept.offsets] == [10]


def frame_of(rows: Any) -> Any:
    frame = ChargeFrame(2, 5, ("",), rows).to_record()
    record = garbage("charges", "charge-frame")
    record.headers = Envelope(codec.schema_header("charge-frame"), uuid4(), 0).headers()
    record.value = codec.encode("charge-frame", frame)
    return record
