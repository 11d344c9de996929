"""Commands that come one by one are taken up together.

A busy loop reads its connections one call at a time. What is decided in between finds the
processor's caches full of something else, and would have a commit of its own: both cost more than
the decision. So a command waits a bounded time while more keep coming, and then all go on at once.
"""

import asyncio

STEP_S = 0.001
STEPS_MAX = 11
GATHERED_ENOUGH = 24
"""So many share what a commit costs; the next ones gather while it runs."""


class Gathering:
    """Where commands wait for each other, at most STEPS_MAX steps."""

    def __init__(self) -> None:
        """Begin with nobody waiting."""
        self._waiting: list[asyncio.Future[None]] = []
        self._ending: asyncio.Task[None] | None = None

    def turn(self) -> asyncio.Future[None]:
        """Return a future that is done when those who wait go on."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name="gathering")
        return turn

    async def _end(self) -> None:
        for _ in range(STEPS_MAX):
            seen = len(self._waiting)
            await asyncio.sleep(STEP_S)
            if len(self._waiting) == seen or seen >= GATHERED_ENOUGH:
                break
        waiting, self._waiting, self._ending = self._waiting, [], None
        for turn in waiting:
            if not turn.done():  # its caller may have gone
                turn.set_result(None)
