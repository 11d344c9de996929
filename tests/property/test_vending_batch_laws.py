"""Batches under any order of pauses, resumptions, cancellations, minutes and deaths of the process.

Laws: no target gets its command twice; in the end every target has a result, or its batch was
cancelled; no sliding minute has more orders of a site than its budget, whichever batch asked; what
the results call done is what stands in the meters' streams or, of an export, what was written of
each meter first.

Method: Hypothesis chooses what happens, to two batches that share a site, and an export; a real
SQLite file is opened again after each death, at any half step of any append.
"""

import asyncio
import os
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.kernel.errors import InvalidInput, Retriable
from services.vending.application.stored import event_of
from services.vending.domain.batch import Kind, Outcome
from services.vending.domain.batching import CancelBatch, PauseBatch, ResumeBatch
from services.vending.domain.events.event import Event
from services.vending.domain.pacing import MINUTE_MS
from tests.unit import vending_world
from tests.unit.test_vending_batches import (
    EVERYTHING,
    alone,
    assert_paced,
    assert_proven,
    created,
    many,
    moved,
    submitted,
)
from tests.unit.vending_crashing import Died, MortalStore, mortal
from tests.unit.vending_world import T0_MS, World

EXAMPLES = int(os.environ.get("WATTVEND_PROPERTY_EXAMPLES", "100"))
TARGETS = 13
"""Of each batch: more than the site's budget of a minute."""
MOVES = {"pause": PauseBatch, "resume": ResumeBatch, "cancel": CancelBatch}
STEPS = st.lists(
    st.one_of(
        st.just(("turn", 0)),
        st.tuples(st.sampled_from(["pause", "resume", "cancel"]), st.integers(0, 2)),
        st.tuples(st.just("wait"), st.integers(1, 70_000)),
        st.tuples(st.just("die"), st.integers(0, 24)),
    ),
    max_size=14,
)


@cache
def template() -> Path:
    """Return a book with three batches that run, of the same meters."""
    path = vending_world.lasting_folder() / "events.sqlite"

    async def made() -> None:
        async with vending_world.world(path) as world:
            await many(world, TARGETS)
            await alone(world, **EVERYTHING)
            for number, kind in enumerate((Kind.FORCE_ON, Kind.FORCE_OFF, Kind.EXPORT)):
                drafted = await created(world, kind, TARGETS, number)
                await submitted(world, drafted.batch_id, 50 + number)

    asyncio.run(made())
    return path


class Life:
    """A book whose process dies and comes again, with the clock that goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at_ms = T0_MS
        self.number = 100

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[tuple[World, MortalStore]]:
        async with mortal(self.path) as (world, store):
            world.clock.at_ms = self.at_ms
            yield world, store

    async def live(self, steps: list[tuple[str, int]]) -> None:
        """Take the steps, in as many processes as it needs."""
        left = list(steps)
        while True:
            async with self.opened() as (world, store):
                while left and not store.dead:
                    await self.step(world, store, *left.pop(0))
            if not left:
                return

    async def step(self, world: World, store: MortalStore, what: str, how: int) -> None:
        if what == "die":
            store.arm(how)
        elif what == "wait":
            self.at_ms += how
            world.clock.at_ms = self.at_ms
        elif what == "turn":
            await world.office.batches.turn()
        else:
            self.number += 1
            batch_id = (await batch_ids(world))[how]
            with suppress(InvalidInput, Died, Retriable):
                await moved(world, MOVES[what], batch_id, self.number)

    async def end(self) -> None:
        """Resume what is paused and give every round that is left."""
        async with self.opened() as (world, _):
            for batch_id in await batch_ids(world):
                self.number += 1
                with suppress(InvalidInput):
                    await moved(world, ResumeBatch, batch_id, self.number)
            for _ in range(40):
                if not await world.office.batches.turn():
                    self.at_ms += MINUTE_MS // 2
                    world.clock.at_ms = self.at_ms


async def stored(world: World, subject: str) -> list[Event]:
    every = [event_of(each) for each in await world.store.read_all(0, 100_000)]
    return [event for event in every if subject == event.SUBJECT]


async def batch_ids(world: World) -> list[str]:
    return [str(event.record()["batch_id"]) for event in await stored(world, "batch-created")]


async def judge(world: World) -> None:
    forced = await stored(world, "relay-forced")
    assert_paced(forced)
    for batch_id in await batch_ids(world):
        of_batch = [event.record() for event in forced if batch_id in event.record()["reason"]]
        each = Counter(event["meter_id"] for event in of_batch)
        assert max(each.values(), default=0) <= 1
        state, results = await world.office.batches.results(batch_id)
        assert state.is_over
        outcomes = [state.outcome(number) for number in range(TARGETS)]
        assert Outcome.WAITING not in outcomes
        if state.status != "cancelled":
            assert len(results) == TARGETS
        done = {state.targets[n].target_id for n, o in enumerate(outcomes) if o is Outcome.DONE}
        if state.terms.kind is Kind.EXPORT:
            assert not each
            await assert_proven(world, batch_id)
        else:
            assert done == set(each)


async def judged(path: Path, steps: list[tuple[str, int]]) -> None:
    life = Life(path)
    await life.live(steps)
    await life.end()
    async with vending_world.world(path) as world:
        await judge(world)


@settings(max_examples=EXAMPLES, deadline=None)
@given(STEPS)
def test_each_target_has_its_command_at_most_once_and_the_budget_is_kept(
    steps: list[tuple[str, int]],
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "events.sqlite"
        shutil.copy(template(), path)
        asyncio.run(judged(path, steps))
