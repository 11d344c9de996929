"""Goal: what reporting says is in its tables, is: an export is written once, and never mended.

Method: the projection over a consumer that has some partitions far behind others.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from prometheus_client import CollectorRegistry

from services.common.runtime.http import Health
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.database import Place, Span
from services.reporting.adapters.log import Log, places
from services.reporting.adapters.metrics import Metrics
from services.reporting.adapters.projector import Projector, Source
from tests.unit.reporting_records import T0, Story, consumed

STORY = Story()
NOW_MS = T0 + 86_400_000
CHARGES = Place("charges", 3)


class Clock:
    def now_ms(self) -> int:
        return NOW_MS


class Consumer:
    """Has fetches, each then handed out once, and ends of partitions; None: never fetched."""

    def __init__(self, fetches: list[list[Any]], ends: Mapping[Place, int | None]) -> None:
        self.fetches = fetches
        self._ends = ends

    def seek(self, partition: TopicPartition, offset: int) -> None:
        pass

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: self.highwater(each) or 0 for each in partitions}

    def highwater(self, partition: TopicPartition) -> int | None:
        return self._ends.get(Place(*partition), 0)

    async def getmany(self, **_: Any) -> dict[int, list[Any]]:
        return {0: self.fetches.pop(0)}


class Writer:
    """Stops the projection with its last batch."""

    def __init__(self, consumer: Consumer, stopping: asyncio.Event) -> None:
        self._consumer = consumer
        self._stopping = stopping

    async def write(self, *_: object) -> dict[str, int]:
        if not self._consumer.fetches:
            self._stopping.set()
        return {}


async def as_of_ms(
    fetches: list[list[Any]], ends: Mapping[Place, int | None], *, has_caught_up: bool = False
) -> int:
    """Return what is said when all fetches are in the tables."""
    stopping, commits, clock = asyncio.Event(), Commits(), cast("Any", Clock())
    projector = Projector(
        cast("Source", None),
        logger=cast("Any", Quiet()),
        clock=clock,
        health=Health(),
        metrics=Metrics(CollectorRegistry()),
        commits=commits,
        stopping=stopping,
    )
    if has_caught_up:
        projector.caught_up.set()
    consumer = Consumer(fetches, ends)
    reader = Log(cast("Any", consumer), frozenset(), 1_000)
    reader.start({place: Span(0, 0) for place in places()})
    await projector._project(cast("Any", Writer(consumer, stopping)), reader)
    return commits.as_of_ms


class Quiet:
    def info(self, *_: object, **__: object) -> None:
        pass


async def test_one_partition_that_is_behind_holds_back_what_is_said_of_all() -> None:
    status = STORY.device_status(f"meters/{STORY.meter}", "online")
    (new,) = consumed([status])
    place = Place(new.topic, new.partition)
    assert new.timestamp == T0
    nothing_yet: dict[Place, int | None] = {CHARGES: 500, place: 1}
    assert await as_of_ms([[new]], nothing_yet) == 0
    charges = consumed(STORY.charge(n) for n in (1, 2))
    assert await as_of_ms([[new], charges], nothing_yet) == charges[-1].timestamp


async def test_after_a_new_connection_nothing_is_said_before_each_partition_was_heard() -> None:
    (new,) = consumed([STORY.device_status(f"meters/{STORY.meter}", "online")])
    place = Place(new.topic, new.partition)
    assert await as_of_ms([[new]], {CHARGES: None, place: 1}, has_caught_up=True) == 0


@pytest.mark.parametrize("has_caught_up", [False, True])
async def test_whoever_has_read_all_knows_all_until_now(*, has_caught_up: bool) -> None:
    sent = consumed(STORY.all())
    ends: dict[Place, int | None] = {}
    for record in sent:
        ends[Place(record.topic, record.partition)] = record.offset + 1
    assert await as_of_ms([sent], ends, has_caught_up=has_caught_up) == NOW_MS
