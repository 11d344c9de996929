"""Who follows a store that this process alone writes: woken by it, and served from memory."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from itertools import islice

from services.vending.domain.event_store import StoredEvent

BATCH_EVENTS_MAX = 500
"""The most that a subscription yields at once."""
NEWEST_KEPT = 10_000
"""Events that were stored last: who follows the store need not read them from it."""

ReadAll = Callable[[int, int], Awaitable[Sequence[StoredEvent]]]


class Following:
    """The newest events of a store with dense positions, and who waits for more."""

    def __init__(self) -> None:
        """Begin with nothing in memory: the store alone knows."""
        self._newest: deque[StoredEvent] = deque(maxlen=NEWEST_KEPT)
        self._moved: set[asyncio.Event] = set()

    def stored(self, events: Sequence[StoredEvent]) -> None:
        """Remember events that were just stored, in the order of their positions."""
        if self._newest and self._newest[-1].position + 1 != events[0].position:
            self._newest.clear()  # a commit between them is there although it had failed
        self._newest.extend(events)

    def newest(self, after: int, limit: int) -> list[StoredEvent] | None:
        """Return at most `limit` events above a position; None where only the store knows."""
        if self._newest and self._newest[0].position <= after + 1 <= self._newest[-1].position:
            above = self._newest[-1].position - after
            # From the end: who follows is near it, and a deque is walked to its middle.
            return list(islice(reversed(self._newest), max(0, above - limit), above))[::-1]
        return None

    def wake(self) -> None:
        """Let who follows look again."""
        for moved in self._moved:
            moved.set()

    async def follow(
        self, read_all: ReadAll, after: int, *, poll_s: float | None = None
    ) -> AsyncGenerator[Sequence[StoredEvent], None]:
        """Yield what `read_all` has above a position, when woken and each `poll_s`; never end."""
        moved = asyncio.Event()
        self._moved.add(moved)
        try:
            while True:
                moved.clear()
                events = await read_all(after, BATCH_EVENTS_MAX)
                if events:
                    after = events[-1].position
                    yield events
                    continue
                try:
                    await asyncio.wait_for(moved.wait(), poll_s)
                except TimeoutError:
                    continue
        finally:
            self._moved.discard(moved)
