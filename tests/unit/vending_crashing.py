"""A store that dies: before or after any of its appends, as a process does at any of its steps.

What a process decides stands in the store alone, so these are all the moments at which its death
can be told apart: an append is there, or it is not, and its writer never learns which.
"""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from services.vending.application.stored import event_of
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    NewEvent,
    StoredEvent,
    StreamId,
)
from tests.unit import vending_world
from tests.unit.vending_world import World


class Died(Exception):  # noqa: N818 - says what happened
    """The process is gone: nothing is stored or read any more."""


class MortalStore:
    """An event store that dies at the half step `dies_at`, counted from when it is `armed`.

    Each append is two: before it is stored, and after, before anybody is told.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._left: int | None = None
        self.dead = False

    def arm(self, dies_at: int) -> None:
        self._left = dies_at

    def step(self) -> None:
        """Live through a half step, or die."""
        if self._left is not None:
            self.dead = self.dead or self._left == 0
            self._left -= 1
        if self.dead:
            raise Died

    def append(
        self, stream: StreamId, expected: int, events: Sequence[NewEvent]
    ) -> Awaitable[Appended]:
        return asyncio.ensure_future(self._append(stream, expected, events))

    async def _append(
        self, stream: StreamId, expected: int, events: Sequence[NewEvent]
    ) -> Appended:
        self.step()
        appended: Appended = await self._store.append(stream, expected, events)
        self.step()
        return appended

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        if self.dead:
            raise Died
        stored: list[StoredEvent] = await self._store.read(stream, after)
        return stored

    async def event_at(self, position: int) -> StoredEvent | None:
        if self.dead:
            raise Died
        stored: StoredEvent | None = await self._store.event_at(position)
        return stored

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        if self.dead:
            raise Died
        stored: list[StoredEvent] = await self._store.read_all(after, limit)
        return stored


class Mortal:
    """Something beside a store that dies with it: each call of what writes is two half steps."""

    def __init__(self, part: Any, store: MortalStore, *writes: str) -> None:
        self.part = part
        self._store = store
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.part, name)

        async def lived_through(*given: Any, **more: Any) -> Any:
            if name in self._writes or self._store.dead:
                self._store.step()
            found = await method(*given, **more)
            if name in self._writes:
                self._store.step()
            return found

        return lived_through


@asynccontextmanager
async def mortal_in(
    world: AbstractAsyncContextManager[World],
) -> AsyncIterator[tuple[World, MortalStore]]:
    """Open a book on a store that dies when it is told to."""
    async with world as opened:
        store = MortalStore(opened.store)
        opened.book._store = store  # type: ignore[assignment]
        exporting = opened.office.batches.exporting
        exporting.exports = Mortal(exporting.exports, store, "write")
        yield opened, store


def mortal(path: Path) -> AbstractAsyncContextManager[tuple[World, MortalStore]]:
    """Open the book at `path` on such a store."""
    return mortal_in(vending_world.world(path))


OF_A_RUN = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-")
"""What looks like an id: of requests that differ from run to run, or derives from one."""
Said = dict[str, Any]


async def told_by(world: World) -> dict[StreamId, list[tuple[str, Said]]]:
    """Return what each stream says: its events, and what they say besides ids and hashes."""
    told: defaultdict[StreamId, list[tuple[str, Said]]] = defaultdict(list)
    for stored in await world.store.read_all(FROM_START, 10_000):
        record = event_of(stored).record()
        said = {
            name: value
            for name, value in record.items()
            if type(value) is not bytes and not OF_A_RUN.search(str(value))
        }
        told[stored.stream].append((stored.type, said))
    return dict(told)


async def at_every_step(
    folder: Path,
    setting: Callable[[World], Awaitable[None]],
    story: Callable[[World], Awaitable[Any]],
    judge: Callable[[World], Awaitable[None]],
    *,
    same: bool = True,
) -> int:
    """Let a story die at each of its half steps; return how many those are.

    After each death the book is opened again, what is half done is completed, and the story is told
    again, as callers repeat what had no answer; `judge` looks at what came of it. Each book must
    say then what that of the story says that nobody disturbs, which comes last; not `same`: how far
    the story comes may hang on when it died, and `judge` alone says what is right.
    """
    books = []
    for dies_at in range(1000):
        path = folder / f"{dies_at}.sqlite"
        async with mortal(path) as (world, store):
            await setting(world)
            store.arm(dies_at)
            with suppress(Died):
                await story(world)
            dead = store.dead
        async with vending_world.world(path) as again:
            await again.office.complete()
            await story(again)
            await judge(again)
            books.append(await told_by(again))
        if not dead:
            for book in books if same else ():
                assert book == books[-1]
            return dies_at
    raise AssertionError("the story does not come to an end")
