"""Openings: what is prepared, and what is started, which opens the account and gives it its meters.

The start stands in the opening's stream; then the account opens with its first sale, in its own
stream, and each meter is assigned, in the meter's; then the opening is concluded. The request of
each step derives from that of the start; what is started and not concluded the store knows.
"""

import asyncio
from typing import Protocol

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.runtime import points
from services.vending.application.book import Book, Outcome
from services.vending.application.process import each, step
from services.vending.domain import checks, opening
from services.vending.domain.account import Account
from services.vending.domain.approval import Failure
from services.vending.domain.decisions import Rejection, Request
from services.vending.domain.meter import Meter
from services.vending.domain.opening import FirstSale, LeftOut, Opening, Plan, Seen, Status
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.domain.tables import OPENING, OPENING_PREPARED, OpeningRow, Tables
from services.vending.domain.tariff import Tariff


class Desk(Protocol):
    """Where an opening's steps are done: of the office, what they ask for."""

    async def open_account(
        self,
        request: Request,
        *,
        account_id: str,
        site_id: str,
        subject_id: str | None,
        commodity: str,
        tariff_id: str,
        policy_id: str,
        first_sale_minor: int,
        method: str,
    ) -> Outcome[Account]:
        """Let an account exist, with credit where a first sale is asked for."""
        ...

    async def assign_meter(
        self, request: Request, meter_id: str, account_id: str, register_milli: int | None
    ) -> Outcome[Meter]:
        """Give a house's meter to an account."""
        ...


class Openings:
    """Accounts that are to be opened."""

    def __init__(self, book: Book, tables: Tables, clock: Clock, desk: Desk) -> None:
        """Use `book`; `tables` know what is pending, `desk` does the steps."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._desk = desk
        self._carrying_out = asyncio.Lock()

    async def problems(self, request: Request, plan: Plan, sale: FirstSale) -> list[Rejection]:
        """Return all that would be wrong with an opening now."""
        if wrong := opening.malformed(plan, sale):
            return wrong
        return opening.unfit(plan, sale, await self._seen(plan), request)

    async def prepare(self, request: Request, plan: Plan, sale: FirstSale | None) -> Opening:
        """Prepare an opening; with `sale`, start it too, and return it when it is carried out.

        A repeat gets what came of its own opening, also where a later one was prepared since.
        """
        if wrong := opening.malformed(plan, sale or opening.NO_SALE):
            raise opening.told(wrong).as_error()
        command = opening.Prepare(request, plan, sale, await self._seen(plan))
        prepared = await self._submit(plan.account_id, command)
        return await self._came_of(plan.account_id, prepared)

    async def start(
        self, request: Request, account_id: str, subject_id: str | None, sale: FirstSale
    ) -> Opening:
        """Start what is prepared, and return it when it is carried out; a repeat, its own."""
        seen = await self._seen((await self.of(account_id)).plan)
        command = opening.Start(request, account_id, subject_id, sale, seen)
        return await self._came_of(account_id, await self._submit(account_id, command))

    async def cancel(self, command: opening.Cancel) -> Opening:
        """Let what is prepared not be opened."""
        return (await self._submit(command.account_id, command)).state

    async def of(self, account_id: str) -> Opening:
        """Return the newest opening of an account. Raises InvalidInput(OPENING_NOT_FOUND)."""
        checks.check_id("name", account_id)
        found = await self._book.state_of(Opening, account_id)
        if found is None:
            raise opening.opening_not_found(account_id).as_error()
        return found

    async def page(self, after: int, limit: int) -> tuple[list[Opening], int | None]:
        """Return what is prepared or started, oldest first, and where to go on if there is more."""
        found = await self._tables.pending_page((OPENING_PREPARED, OPENING), after, limit + 1)
        last = found[limit - 1][0] if len(found) > limit else None
        return [await self.of(_account_of(id_)) for _, id_ in found[:limit]], last

    async def look(self, opening_id: str) -> tuple[OpeningRow, Opening]:
        """Return an opening that was started. Raises InvalidInput(OPENING_NOT_FOUND)."""
        row = await self._tables.opening(opening_id)
        if row is None:
            raise opening.opening_not_found(opening_id).as_error()
        return row, await self._called(row)

    async def started(
        self, is_open: bool | None, after: int, limit: int
    ) -> list[tuple[OpeningRow, Opening]]:
        """Return at most `limit` that were started above a position, oldest first; None: all."""
        rows = await self._tables.openings(is_open, after, limit)
        return [(row, await self._called(row)) for row in rows]

    async def _called(self, row: OpeningRow) -> Opening:
        return opening.called(await self._book.history(Opening, row.account_id), row.opening_id)

    async def complete(self) -> int:
        """Carry out what is started; return how many."""
        started = await self._tables.pending(OPENING, self._clock.now_ms())
        ids = map(_account_of, started)
        return await each(self._book.failing, OPENING, ids, self.carry_out)

    async def carry_out(self, account_id: str) -> Opening:
        """Do what is started, where it is not done yet; return the opening after it.

        One at a time: what one finds refused another must not find possible.
        """
        async with self._carrying_out:
            state = await self.of(account_id)
            if state.status is not Status.STARTED:
                return state
            points.point("opening-started")
            failure = await self._open(state)
            left_out = () if failure else await self._assign(state)
            points.point("opening-carried-out")
            request = self._step(state, (), "opened")
            concluded = opening.Conclude(request, account_id, failure, left_out)
            return (await self._submit(account_id, concluded)).state

    async def _came_of(self, account_id: str, asked: Outcome[Opening]) -> Opening:
        """Return the opening that a request was about, as far as it has come."""
        newest = await self.carry_out(account_id)
        if newest.prepared_at <= asked.revision:
            return newest
        return opening.as_of(await self._book.history(Opening, account_id), asked.revision)

    async def _open(self, state: Opening) -> Failure | None:
        plan, sale = state.plan, state.sale
        content = (*_content_of(plan), sale.amount_minor, sale.method)
        try:
            await self._desk.open_account(
                self._step(state, content, "open"),
                account_id=plan.account_id,
                site_id=plan.site_id,
                subject_id=plan.subject_id,
                commodity=plan.commodity,
                tariff_id=plan.tariff_id,
                policy_id=plan.policy_id,
                first_sale_minor=sale.amount_minor,
                method=sale.method,
            )
        except InvalidInput as refused:
            return Failure(refused.reason.value, refused.message)
        return None

    async def _assign(self, state: Opening) -> tuple[LeftOut, ...]:
        left_out = []
        for planned in state.plan.meters:
            content = (planned.meter_id, state.plan.account_id, planned.register_milli)
            request = self._step(state, content, "give", planned.meter_id)
            try:
                await self._desk.assign_meter(request, *content)
            except InvalidInput as refused:
                left = LeftOut(planned.meter_id, refused.reason.value, refused.message)
                left_out.append(left)
        return tuple(left_out)

    def _step(self, state: Opening, content: tuple[object, ...], *name: object) -> Request:
        """Return the request of a step of this opening, as its start names it."""
        now_ms = self._clock.now_ms()
        return step(now_ms, content, state.starter, *name, state.plan.account_id, *state.started_by)

    async def _seen(self, plan: Plan) -> Seen:
        """Return what a plan would meet."""
        meters: dict[str, tuple[Meter | None, int | None]] = {}
        for planned in plan.meters:
            state = await self._book.state_of(Meter, planned.meter_id)
            charged_milli = None
            if state is not None:
                charged_milli = await self._tables.charged_register_milli(
                    state.meter_key, state.epoch
                )
            meters[planned.meter_id] = state, charged_milli
        return Seen(
            await self._book.state_of(Account, plan.account_id),
            await self._book.state_of(Site, plan.site_id),
            await self._book.state_of(Tariff, plan.tariff_id),
            await self._book.state_of(Policy, plan.policy_id),
            meters,
        )

    async def _submit(self, account_id: str, command: opening.Command) -> Outcome[Opening]:
        return await self._book.submit(
            Opening, account_id, lambda state: opening.decide(state, command)
        )


def _content_of(plan: Plan) -> tuple[object, ...]:
    return (plan.site_id, plan.subject_id, plan.commodity, plan.tariff_id, plan.policy_id)


def _account_of(pending_id: str) -> str:
    return pending_id.partition("-")[2]
