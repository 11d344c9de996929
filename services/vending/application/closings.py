"""Closings: meters are cut, read and given back to their houses; then metering is asked, and told.

Every step is an append of its own: the order to cut and the leaving in the meter's stream, by
requests that derive from the closing; the hold, the registers that persons give, and the end in the
account's. What is under way stands in the table `closing`; each second it is looked at what it
waits for, so a process that dies at any step goes on where it was.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.vending.application.approvals import Approvals
from services.vending.application.book import Book, Outcome
from services.vending.application.process import each, step
from services.vending.domain import closings, settling
from services.vending.domain.account import Account
from services.vending.domain.approval import Decline, Proposal, Status, approval_id_of
from services.vending.domain.authority import Authority
from services.vending.domain.closing import ASK_AGAIN_MS, READ_AFTER_CUT_MS, Closing, closing_id_of
from services.vending.domain.decisions import Request
from services.vending.domain.event_store import FROM_START
from services.vending.domain.events.accounts import AccountMeterLeft
from services.vending.domain.events.event import Event
from services.vending.domain.events.meters import MeterAssigned, MeterHoldResolved, RelayForced
from services.vending.domain.meter import OFF, PREPAID, Meter
from services.vending.domain.meter_orders import ForceRelay
from services.vending.domain.origin import Origin
from services.vending.domain.policy import Policy
from services.vending.domain.streams import evolve_of, stream_of
from services.vending.domain.tables import ClosingRow, Tables

CLOSING = "closing"
PER_STEP_MAX = 200
"""Closings that are looked at in a second: sales are answered on this loop too."""
Release = Callable[[Request, str, int, str], Awaitable[object]]
"""Gives a meter back to its house at a register, for a closing."""


@value_class
class MeterStep:
    """Where a meter of a closing is: `step` says what it waits for, `since_ms` since when.

    cut-approval: a second person for the cut; reading: one that was taken after `since_ms`;
    register: that two persons give one; former-register: that a person accepts or rejects the one
    at which the device before ended; leaving: told to its account; left, at `register_milli`.
    """

    meter_id: str
    step: str
    since_ms: int
    register_milli: int | None = None


@value_class
class Look:
    """A closing as somebody looks at it. `step`: what it waits for, "" where it is over.

    meters; echo: metering's answer; approval: of what is paid out; undoing: relays go back.
    `events`: of one that is over, all that happened between its begin and its end.
    """

    row: ClosingRow
    closing: Closing
    account: Account
    step: str
    since_ms: int
    meters: tuple[MeterStep, ...]
    events: tuple[Event, ...] = ()


class Closings:
    """The closings of a book."""

    def __init__(
        self,
        book: Book,
        tables: Tables,
        clock: Clock,
        *,
        approvals: Approvals,
        release: Release,
        assigning: asyncio.Lock,
    ) -> None:
        """Use `book`; while `assigning` is held, no meter goes from one account to another."""
        self._book = book
        self._tables = tables
        self._clock = clock
        self._approvals = approvals
        self._release = release
        self._assigning = assigning
        self._going_on = asyncio.Lock()
        self._after = FROM_START

    # --- what persons ask for -----------------------------------------------------------------

    async def begin(
        self, command: closings.CloseAccount | closings.CloseMeters
    ) -> Outcome[Account]:
        """Let a closing begin, which may need a second person, and do what can be done at once."""
        async with self._assigning:  # no meter joins between the check and the closing
            outcome: Outcome[Account] = await self._approvals.ask(command)
        if closing := outcome.state.closing:
            await each(self._book.failing, CLOSING, [closing.closing_id], self.go_on)
        return outcome

    async def begin_and_look(self, command: closings.CloseAccount | closings.CloseMeters) -> Look:
        """Let a closing begin; return how far it is. A repeat returns how far it is by then."""
        began = (await self.begin(command)).event
        assert began is not None, "a closing begins with an event"
        return await self.look(closing_id_of(*began.key))  # of a proposal, by a request of its own

    async def give(self, command: closings.GiveRegister) -> Outcome[Account]:
        """Let a meter leave at a register, with a second person."""
        outcome: Outcome[Account] = await self._approvals.ask(command)
        await each(self._book.failing, CLOSING, [command.closing_id], self.go_on)
        return outcome

    async def settle(self, command: settling.SettleAccount) -> Outcome[Account]:
        """Pay out what is left, with a second person."""
        return await self._approvals.ask(command)

    async def cancel(self, command: closings.CancelClosing) -> Outcome[Account]:
        """Let a closing not go on, and give relays back."""
        async with self._going_on:  # no meter leaves meanwhile
            outcome = await self._submit(command)
        await each(self._book.failing, CLOSING, [command.closing_id], self.go_on)
        return outcome

    async def answer(self, echo: settling.SettleClosing) -> Outcome[Account]:
        """Take in metering's echo of a hold, by what holds for the account now."""
        of = await self._book.state_of(Account, echo.account_id)
        if of is not None:
            by = await self._book.state_of(Policy, of.policy_id)
            may = await self._book.state_of(Authority, of.legal_entity)
            rounding = by.rounding if by else echo.rounding
            echo = replace(echo, authority=may, rounding=rounding)
        return await self._submit(echo)

    # --- the process --------------------------------------------------------------------------

    async def complete(self) -> int:
        """Go on with the next of what is under way; return how many were looked at."""
        rows = await self._tables.closings("", True, self._after, PER_STEP_MAX)
        self._after = rows[-1].position if len(rows) == PER_STEP_MAX else FROM_START
        return await each(self._book.failing, CLOSING, [row.closing_id for row in rows], self.go_on)

    async def go_on(self, closing_id: str) -> None:
        """Do what a closing does not have to wait for. One at a time."""
        async with self._going_on:
            row = await self._tables.closing(closing_id)
            if row is None:
                return
            if closing := await self._closing(row):
                if closing.cancelled:
                    await self._undo(row.account_id, closing)
                    return
                for meter_id in closing.meters:
                    await self._let_go(row.account_id, closing, meter_id)
            if closing := await self._closing(row):
                await self._ask(row.account_id, closing)

    async def _closing(self, row: ClosingRow) -> Closing | None:
        state = await self._book.state_of(Account, row.account_id)
        closing = state.closing if state else None
        return closing if closing and closing.closing_id == row.closing_id else None

    async def _let_go(self, account_id: str, closing: Closing, meter_id: str) -> None:
        """Give a meter back to its house, where its last register is known."""
        meter = await self._meter(meter_id)
        if meter.account_id != account_id:
            await self._end_cut(closing, meter_id)
            return
        register_milli = closing.given_milli(meter_id)
        if register_milli is None:
            register_milli = await self._read_milli(closing, meter)
        if register_milli is None or await self._waits(account_id, closing, meter):
            return
        points.point("meter-leaves")
        await self._end_cut(closing, meter_id)
        request = self._step(closing, "closing-leave", meter_id)
        await self._release(request, meter_id, register_milli, closing.closing_id)

    async def _waits(self, account_id: str, closing: Closing, meter: Meter) -> bool:
        """Say whether the register at which the device before ended waits for a person.

        It would be forgotten if the meter left. Metering knows, and is asked where that can be.
        """
        if meter.previous is None or meter.previous.account_id != account_id:
            return False
        told = closing.told_of(meter.meter_id, meter.epoch)
        if told is None:
            await self._ask_metering(account_id, closing, before_leaving=True)
            return True
        return told.waits_for is not None and not await self._is_resolved(meter, told.waits_for)

    async def _is_resolved(self, meter: Meter, reading_id: str) -> bool:
        said = await self._book.events_of(Meter, meter.meter_id, MeterHoldResolved)
        return any(event.reading_id == reading_id for event in said)

    async def _read_milli(self, closing: Closing, meter: Meter) -> int | None:
        """Return the register of a reading that was taken after the cut, where one was charged."""
        since_ms = await self._cut(closing, meter)
        if since_ms is None:
            return None
        charged = await self._tables.charged(meter.meter_key, meter.epoch)
        if charged is None or charged.to_time_ms < since_ms:
            return None
        return charged.register_milli

    async def _cut(self, closing: Closing, meter: Meter) -> int | None:
        """Order the cut, where it is asked for; return since when a reading is the last one.

        None: the cut waits for a second person. Where he declines it, nobody is cut; nor where a
        person keeps power, or has given an order of his own about the relay.
        """
        if await self._is_as_ordered(closing, meter):
            await self._end_cut(closing, meter.meter_id)
        else:
            try:
                await self._approvals.ask(self._force_off(closing, meter.meter_id))
            except InvalidInput as refused:
                if refused.reason is Reason.APPROVAL_REQUIRED:
                    return None
        return await self._read_since_ms(closing, meter.meter_id)

    async def _is_as_ordered(self, closing: Closing, meter: Meter) -> bool:
        """Say whether the relay is, or stays, as a person or the closing has ordered."""
        if closing.without_cut or meter.forced is not None:
            return True
        forced = await self._book.events_of(Meter, meter.meter_id, RelayForced)
        if forced and forced[-1].occurred_at_ms > closing.began_at_ms:
            return True
        account = await self._book.state_of(Account, meter.account_id)
        return account is not None and closings.is_power_kept(account, self._clock.now_ms())

    async def _read_since_ms(self, closing: Closing, meter_id: str) -> int:
        cut_at_ms = None
        for forced in reversed(await self._book.events_of(Meter, meter_id, RelayForced)):
            if forced.position != OFF:
                break
            cut_at_ms = forced.occurred_at_ms
        if closing.without_cut or cut_at_ms is None:
            return closing.began_at_ms
        since_ms = cut_at_ms + READ_AFTER_CUT_MS if cut_at_ms >= closing.began_at_ms else 0
        return max(closing.began_at_ms, since_ms)

    async def _ask(self, account_id: str, closing: Closing) -> None:
        """Ask metering, or the second person, where all meters have left."""
        state = await self._book.state_of(Account, account_id)
        if state is None or closings.still_in(state, closing):
            return
        if closing.told is not None:
            request = self._step(closing, "closing-settle")
            refund_minor = closing.told.refund_minor
            command = settling.SettleAccount(request, account_id, closing.closing_id, refund_minor)
            try:
                await self._approvals.ask(command)
            except InvalidInput as waits:
                if not waits.reason.startswith("APPROVAL_"):
                    raise
            return
        await self._ask_metering(account_id, closing, before_leaving=False)

    async def _ask_metering(
        self, account_id: str, closing: Closing, *, before_leaving: bool
    ) -> None:
        if closing.hold_id and self._clock.now_ms() < closing.asked_at_ms + ASK_AGAIN_MS:
            return
        points.point("metering-asked")
        request = self._step(closing, "closing-ask", closing.asked)
        epoch = await self._tables.book_epoch()
        await self._submit(
            closings.AskMetering(request, account_id, closing.closing_id, epoch, before_leaving)
        )

    async def _undo(self, account_id: str, closing: Closing) -> None:
        """Let relays that a cancelled closing has cut be as the balance says."""
        for meter_id in closing.meters:
            await self._end_cut(closing, meter_id)
            if (await self._meter(meter_id)).closing_id == closing.closing_id:
                request = self._step(closing, "closing-uncut", meter_id)
                await self._approvals.ask(self._force(closing, request, meter_id, PREPAID))
        request = self._step(closing, "closing-undone")
        await self._submit(closings.EndCancelled(request, account_id, closing.closing_id))

    async def _end_cut(self, closing: Closing, meter_id: str) -> None:
        """Let nobody approve a cut any more; one that is approved happens, before what follows."""
        approval_id = approval_id_of(self._force_off(closing, meter_id).request)
        proposal = await self._book.state_of(Proposal, approval_id)
        if proposal is not None and proposal.status is Status.PENDING:
            request = self._step(closing, "closing-withdraw", meter_id)
            why = "the closing needs it no more"
            await self._approvals.decline(Decline(request, approval_id, why))
        elif proposal is not None:
            await self._approvals.carry_out(approval_id)

    def _force_off(self, closing: Closing, meter_id: str) -> ForceRelay:
        request = self._step(closing, "closing-cut", meter_id)
        return self._force(closing, request, meter_id, OFF)

    def _force(
        self, closing: Closing, request: Request, meter_id: str, position: str
    ) -> ForceRelay:
        why = f"closing {closing.closing_id}"
        return ForceRelay(request, meter_id, position, why, closing_id=closing.closing_id)

    def _step(self, closing: Closing, name: str, *more: object) -> Request:
        origin = closing.origin if closing.origin.caller else Origin(closing.caller)
        return step(self._clock.now_ms(), more, origin, name, closing.closing_id, *more)

    async def _meter(self, meter_id: str) -> Meter:
        meter = await self._book.state_of(Meter, meter_id)
        assert meter is not None, "an account has meters that exist"
        return meter

    async def _submit(self, command: closings.Command) -> Outcome[Account]:
        return await self._book.submit(
            Account, command.account_id, lambda state: closings.decide(state, command)
        )

    # --- queries ------------------------------------------------------------------------------

    async def page(
        self, account_id: str, is_open: bool | None, after: int, limit: int
    ) -> list[ClosingRow]:
        """Return at most `limit` closings that began above a position, as Tables.closings says."""
        return await self._tables.closings(account_id, is_open, after, limit)

    async def look(self, closing_id: str) -> Look:
        """Return a closing. Raises InvalidInput(CLOSING_NOT_FOUND)."""
        row = await self._tables.closing(closing_id)
        if row is None:
            raise settling.closing_not_found("", closing_id).as_error()
        return await self.looked(row)

    async def looked(self, row: ClosingRow) -> Look:
        """Return a closing of the table."""
        closing = await self._closing(row)
        if closing is None:
            return await self._look_back(row)
        state = await self._book.state_of(Account, row.account_id)
        assert state is not None, "an account is closed that exists"
        meters = [await self._meter_step(state, closing, meter_id) for meter_id in closing.meters]
        step_, since_ms = "meters", closing.began_at_ms
        if closing.cancelled:
            step_ = "undoing"
        elif closing.told is not None:
            step_, since_ms = "approval", closing.asked_at_ms
        elif closing.hold_id and not closing.before_leaving:
            step_, since_ms = "echo", closing.asked_at_ms
        return Look(row, closing, state, step_, since_ms, tuple(meters))

    async def _meter_step(self, state: Account, closing: Closing, meter_id: str) -> MeterStep:
        meter = await self._meter(meter_id)
        given_milli = closing.given_milli(meter_id)
        if meter.account_id != state.account_id:
            is_told = not state.has(meter_id)
            return MeterStep(
                meter_id,
                "left" if is_told else "leaving",
                closing.began_at_ms,
                meter.closing_register_milli,
            )
        told = closing.told_of(meter_id, meter.epoch)
        if told and told.waits_for and not await self._is_resolved(meter, told.waits_for):
            return MeterStep(meter_id, "former-register", closing.asked_at_ms)
        if given_milli is not None:
            return MeterStep(meter_id, "leaving", closing.began_at_ms, given_milli)
        proposal_id = approval_id_of(self._force_off(closing, meter_id).request)
        proposal = await self._book.state_of(Proposal, proposal_id)
        if proposal is not None and proposal.status is Status.PENDING:
            return MeterStep(meter_id, "cut-approval", proposal.proposed_at_ms)
        is_late = self._clock.now_ms() >= closing.deadline_ms
        since_ms = closing.deadline_ms if is_late else await self._read_since_ms(closing, meter_id)
        return MeterStep(meter_id, "register" if is_late else "reading", since_ms)

    async def _look_back(self, row: ClosingRow) -> Look:
        """Return a closing that is over: it stands in the account's stream alone."""
        evolve = evolve_of(stream_of(Account, row.account_id))
        state, closing = None, None
        events: list[Event] = []
        for event in await self._book.history(Account, row.account_id):
            state = evolve(state, event)
            assert isinstance(state, Account)
            if state.closing and state.closing.closing_id == row.closing_id:
                closing = state.closing
                events.append(event)
            elif closing is not None:
                events.append(event)
                break
        assert isinstance(state, Account)
        assert closing is not None, "its begin has made the table's row"
        meters = {
            event.meter_id: MeterStep(
                event.meter_id, "left", event.occurred_at_ms, event.register_milli
            )
            for event in events
            if isinstance(event, AccountMeterLeft) and event.meter_id in closing.meters
        }
        stayed = {m: MeterStep(m, "stayed", row.began_at_ms) for m in closing.meters}
        found = (stayed | meters).values()
        return Look(row, closing, state, "", 0, tuple(found), tuple(events))

    async def estimate(
        self, request: Request, account_id: str, closing_id: str, meter_id: str
    ) -> int:
        """Return the register of a meter at the begin of a closing, by its habit.

        What it was charged a day since it came into its epoch, from its last charged register on;
        0 where the request was decided before: then the figure of then stands, and the meter may
        have left. Raises InvalidInput(NO_READING_YET) where it never was charged.
        """
        state = await self._book.state_of(Account, account_id)
        proposal = await self._book.state_of(Proposal, approval_id_of(request))
        if proposal or (state and state.answers.get(request.key)):
            return 0
        closing = (await self.look(closing_id)).closing
        meter = await self._book.state_of(Meter, meter_id)
        charged = await self._tables.charged(meter.meter_key, meter.epoch) if meter else None
        if meter is None or charged is None:
            text = f"no reading of meter {meter_id} was charged in account {account_id}: read it"
            raise InvalidInput(Reason.NO_READING_YET, text, field="register_milli")
        came = await self._book.events_of(Meter, meter_id, MeterAssigned)
        if meter.opening_register_milli is None or not came or came[-1].epoch != meter.epoch:
            return charged.register_milli
        return closings.estimated_milli(
            charged.register_milli,
            charged.to_time_ms,
            meter.opening_register_milli,
            came[-1].occurred_at_ms,
            closing.began_at_ms,
        )
