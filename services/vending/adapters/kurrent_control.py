"""Who writes a book on a server, and which epoch it is: a stream of its own beside the book's.

A server holds a stream to its revision, but not one stream to another: two processes that write one
book could give one serial to two meters. So whoever opens a book says so here (`writer-came`, at
the exact revision), and is its writer from then on. The writer before may append for a while yet:
it asks who is the writer at most `confirm_s` before it sends anything, and what it has sent is
stored, or never will be, within the store's `settled_s`. Whoever comes waits for both, unless the
one before has said that it is done (`writer-left`), and only then reads the names that are taken.
"""

import asyncio
import contextlib
import json
from typing import Any
from uuid import uuid4

import structlog

from services.common.kernel.errors import Bug
from services.vending.adapters.database import Database, Statement
from services.vending.adapters.kurrent_store import KurrentEventStore
from services.vending.adapters.tables import SqlTables
from services.vending.domain.event_store import (
    NO_EVENTS,
    NewEvent,
    NotTheWriter,
    StoreUnavailable,
    StreamId,
    WrongRevision,
)

CONTROL = StreamId("control")
CAME = "writer-came"
LEFT = "writer-left"
RAISED = "book-epoch-raised"
CONFIRM_TRIES = 3


class Control:
    """The control stream of a book, and this process as its writer."""

    def __init__(
        self,
        server: KurrentEventStore,
        instance: str,
        log: structlog.stdlib.BoundLogger,
        confirm_s: float,
    ) -> None:
        """Use `server`, whose prefix is not that of the book's streams."""
        self._server = server
        self._instance = instance
        self._log = log
        self._confirm_s = confirm_s
        self._revision = NO_EVENTS
        self._writer: str | None = None
        self._is_mine = False
        self._confirmed_until_s = 0.0
        self._asking = asyncio.Lock()
        self.book_epoch = 1
        self.raised_at = 0

    async def look(self) -> None:
        """Learn the epoch, and who is the writer."""
        await self._read()

    async def come(self) -> None:
        """Become the writer of the book; wait until nobody else can be.

        Raises StoreUnavailable, also where another comes at the same moment.
        """
        await self._read()
        before = self._writer
        try:
            await self._say(CAME, {"instance": self._instance})
        except WrongRevision as other:
            raise StoreUnavailable("another process opens this book at this moment") from other
        self._is_mine = True
        if before is not None:
            wait_s = self._confirm_s + self._server.bounds.settled_s
            self._log.info("waiting for the last writer of the book", writer=before, wait_s=wait_s)
            await asyncio.sleep(wait_s)
            await self.may_write()

    async def leave(self) -> None:
        """Say that nothing of this process is under way any more."""
        if self._is_mine:
            with contextlib.suppress(StoreUnavailable, WrongRevision):
                await self._say(LEFT, {"instance": self._instance})

    async def may_write(self) -> None:
        """Return where this process is the writer. Raises NotTheWriter; StoreUnavailable."""
        for _ in range(CONFIRM_TRIES):
            async with self._asking:
                await self._confirm()
            if self._now_s() < self._confirmed_until_s:
                break  # else the answer came too late to stand for now
        if not self._is_mine:
            raise NotTheWriter(
                f"{self._writer or 'another process'} has become the writer of this book: this "
                "vending takes no more commands. Stop it, or stop the other and start this anew"
            )
        if self._now_s() >= self._confirmed_until_s:
            raise StoreUnavailable(f"who writes the book was not to be had in {self._confirm_s} s")

    async def raise_book_epoch(self, book_epoch: int, position: int) -> None:
        """Raise the epoch of the book, which begins after `position`."""
        if book_epoch > self.book_epoch:
            await self.may_write()
            await self._say(RAISED, {"book_epoch": book_epoch, "position": position})

    async def _confirm(self) -> None:
        asked_at_s = self._now_s()
        if self._is_mine and asked_at_s >= self._confirmed_until_s:
            await self._read()
            self._confirmed_until_s = asked_at_s + self._confirm_s

    async def _say(self, type_: str, said: dict[str, Any]) -> None:
        event = NewEvent(uuid4(), type_, json.dumps(said).encode(), b"")
        await self._server.append(CONTROL, self._revision, [event])
        self._take_in(type_, said)
        self._revision += 1

    async def _read(self) -> None:
        was_mine = self._is_mine
        for event in await self._server.read(CONTROL, self._revision):
            self._is_mine = False  # it is not we who said it
            self._take_in(event.type, json.loads(event.data))
            self._revision = event.revision
        if was_mine and not self._is_mine:
            self._log.error("another process writes this book: commands are refused")

    def _take_in(self, type_: str, said: dict[str, Any]) -> None:
        if type_ == CAME:
            self._writer = said["instance"]
        elif type_ == LEFT:
            self._writer = None
        elif type_ == RAISED:
            self.book_epoch = max(self.book_epoch, said["book_epoch"])
            self.raised_at = max(self.raised_at, said["position"])
        else:
            raise Bug(f"{type_} in the control stream: a newer vending wrote it")

    @staticmethod
    def _now_s() -> float:
        return asyncio.get_running_loop().time()


class ControlledTables(SqlTables):
    """The tables beside a book on a server: its epoch is there, all else is in a database here."""

    def __init__(self, database: Database, control: Control) -> None:
        """Use `database`, and ask `control` for the epoch."""
        super().__init__(database)
        self.database = database
        self._control = control

    async def book_epoch(self) -> int:
        """Return the epoch of the book."""
        return self._control.book_epoch

    async def raise_book_epoch(self, book_epoch: int, position: int) -> None:
        """Raise the epoch of the book, which begins after `position`."""
        await self._control.raise_book_epoch(book_epoch, position)
        # Of a store that was restored to an earlier point, what it no longer has was never told.
        await self._database.run(
            [
                Statement(f"DELETE FROM {table} WHERE position > $1", [(position,)])  # noqa: S608 - ours
                for table in ("link", "checkpoint")
            ]
        )

    async def raised_at(self) -> int:
        """Return the position of the last event before the present book epoch; 0 in the first."""
        return self._control.raised_at
