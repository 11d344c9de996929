"""Who waits for metering's echo of a hold: for a while, and then asks again."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from services.common.kernel.errors import Retriable
from services.vending.application.book import Outcome
from services.vending.domain.account import Account
from services.vending.domain.events.event import Event


class Echoes:
    """Wakes those who wait whenever an echo was taken in."""

    def __init__(self) -> None:
        self._settled = asyncio.Event()

    def wake(self) -> None:
        """Let those look again who wait."""
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    async def awaited(
        self,
        ask: Callable[[], Coroutine[Any, Any, Outcome[Account]]],
        waits: type[Event],
        wait_s: float,
        late: str,
    ) -> Outcome[Account]:
        """Ask until the answer is another event than `waits`. Raises Retriable with `late`."""
        outcome = await ask()
        try:
            async with asyncio.timeout(wait_s):
                while isinstance(outcome.event, waits):
                    settled = self._settled
                    outcome = await ask()
                    if isinstance(outcome.event, waits):
                        await settled.wait()
        except TimeoutError:
            raise Retriable(late) from None
        return outcome
