"""Who waits for something to become visible is woken by the commit that may have made it so."""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

NOT_PROJECTING = (
    "this reporting does not project, or only begins to: ask the one that does, or wait"
)


class Commits:
    """Wakes those who wait for an account; lives in one event loop.

    `as_of_ms`: up to when what was written to the log is in the tables; 0: nobody here projects,
    or it has only begun to.
    """

    def __init__(self) -> None:
        self.as_of_ms = 0
        self._waiting: dict[str, set[asyncio.Event]] = {}

    @contextmanager
    def watching(self, account_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that every commit of the account's level sets.

        Look after entering, so that nothing falls between the look and the wait.
        """
        woken = asyncio.Event()
        waiting = self._waiting.setdefault(account_id, set())
        waiting.add(woken)
        try:
            yield woken
        finally:
            waiting.discard(woken)
            if not waiting:
                self._waiting.pop(account_id, None)

    def tell(self, account_ids: Iterable[str]) -> None:
        """Wake who waits for one of these accounts."""
        if not self._waiting:
            return
        for account_id in account_ids:
            for woken in self._waiting.get(account_id, ()):
                woken.set()
