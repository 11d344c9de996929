"""Assignments: a move is decided in the meter's stream, and then told to the accounts.

Each step derives its request from the one before, and what is half done is known from the store, so
it goes on where a crash has left it.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.ids import name_uuid
from services.common.runtime import points
from services.vending.application.book import Book
from services.vending.application.process import PROCESS, each, step
from services.vending.domain import account_commands, meter_commands, meter_epochs
from services.vending.domain.account import Account
from services.vending.domain.decisions import Request
from services.vending.domain.meter import Meter
from services.vending.domain.tables import Tables, Todo

STEPS_MAX = 8
ASSIGNMENT = "assignment"
T = TypeVar("T")


class Assignments:
    """Moves of meters, one at a time."""

    def __init__(self, book: Book, tables: Tables, clock: Clock) -> None:
        """Use `book`; `tables` know what is half done."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self.lock = asyncio.Lock()
        """While it is held, no meter goes from one account to another."""

    async def complete(self) -> int:
        """Tell accounts what they have not heard yet; return of how many meters."""
        todos = await self._tables.todos()
        if not todos:
            return 0
        meters = dict.fromkeys(todo.meter_id for todo in todos)
        async with self.lock:
            return await each(self._book.failing, ASSIGNMENT, meters, self._complete)

    async def moved(self, meter_id: str, decide: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Decide a move with nothing half done before it nor, if all goes well, after it."""
        async with self.lock:
            await self._complete(meter_id)
            outcome = await decide()
            await self._complete(meter_id)
            return outcome

    async def unmoved(self, _: str, begin: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Begin an account's closing, so that no meter joins between its check and that."""
        async with self.lock:
            return await begin()

    async def _complete(self, meter_id: str) -> int:
        done = 0
        while todos := await self._tables.todos(meter_id):
            for todo in todos:
                points.point("telling")
                await self._tell(todo)
                done += 1
            if done > STEPS_MAX:
                raise Bug(f"the assignment of {meter_id} does not come to an end: {todos}")
        return done

    async def _tell(self, todo: Todo) -> None:
        """Tell an account that a meter came or went; where it cannot come, release it again."""
        content = (todo.account_id, todo.meter_id, todo.epoch, todo.register_milli)
        request = await self._derived(todo.kind, todo, content)
        if todo.kind == "leave":
            leave = account_commands.LeaveMeter(request, *content)
            await self._told(todo.account_id, leave)
            return
        join = account_commands.JoinMeter(request, *content)
        try:
            await self._told(todo.account_id, join)
        except InvalidInput:
            now = await self._book.state_of(Meter, todo.meter_id)
            if now is None or now.epoch != todo.epoch:
                return  # released already: the leaving, which is next, settles both
            undo = meter_epochs.ReleaseMeter(
                await self._derived("undo", todo, content), todo.meter_id, todo.register_milli
            )
            await self._book.submit(
                Meter, todo.meter_id, lambda state: meter_commands.decide(state, undo)
            )

    async def _told(
        self, account_id: str, told: account_commands.JoinMeter | account_commands.LeaveMeter
    ) -> None:
        await self._book.submit(
            Account, account_id, lambda state: account_commands.decide(state, told)
        )

    async def _derived(self, name: str, todo: Todo, content: tuple[object, ...]) -> Request:
        """Return the request of a step, whose origin is that of the move."""
        origin = await self._book.origin_at(todo.position)
        now_ms = self._clock.now_ms()
        return step(now_ms, content, origin, name, todo.meter_id, todo.epoch)

    async def undone(self, assigned: Meter) -> bool:
        """Say whether an account could not take a meter in, which went home again."""
        now = await self._book.state_of(Meter, assigned.meter_id)
        undo = name_uuid("process", "undo", assigned.meter_id, assigned.epoch)
        return now is not None and now.answers.get((PROCESS, str(undo))) is not None
