"""Goal: whatever is read, sold, moved and closed in whatever order, nothing is made up or lost.

Method: Hypothesis plays a street of three meters and two shops against the office; on paper, a
metering of a few lines charges whoever the book says the meter was of, from register to register.
After each step each meter must be of one account at most, and begin where it ended; each account
that is closed must have been credited exactly what it was charged; and of all money that came in,
each minor unit must have been used, paid out, dropped, or be at hand.
"""

import asyncio
import os
import tempfile
from collections import Counter
from collections.abc import Awaitable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from services.common.kernel.errors import InvalidInput, Retriable
from services.vending.domain.account import Account, Status
from services.vending.domain.closing import HOUR_MS, READ_AFTER_CUT_MS, Closing, Rounding
from services.vending.domain.closings import (
    CancelClosing,
    CloseAccount,
    CloseMeters,
    GiveRegister,
)
from services.vending.domain.decisions import Request
from services.vending.domain.events.accounts import AccountMeterJoined, AccountMeterLeft
from services.vending.domain.events.closings import AccountSettled, RemainderRounded
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.events.meters import MeterAssigned
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.postings import Usage
from services.vending.domain.settling import SettleClosing
from services.vending.domain.tables import Charged
from services.vending.domain.trial_balance import TrialBalance
from services.vending.domain.usage import PostUsage
from tests.unit import vending_world
from tests.unit.test_vending_approvals import ids, publish, stored
from tests.unit.vending_world import T0_MS, World

NANO = 10**7
PRICE_NANO = 37_777_777
"""Of a thousandth of a unit: no number of them is whole minor units."""
METERS, SHOPS = ("M1", "M2", "M3"), ("A1", "A2")
ALONE: dict[str, Any] = dict.fromkeys(("refund", "force-off", "register", "authority", "closing"))


class Street(RuleBasedStateMachine):
    """The machine: what happens in a street, and what metering makes of it, on paper."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.shows = dict.fromkeys(METERS, 1_000)  # what each display shows
        self.stands = dict.fromkeys(METERS, 1_000)  # up to where it is charged
        self.of: dict[str, tuple[int, str]] = {}  # its epoch and account, as charged last
        self.charged: Counter[str] = Counter()
        self.sequence: Counter[str] = Counter()
        self.number = 0
        self.closings: dict[str, Closing] = {}  # that are under way

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    async def start(self) -> None:
        self.stack = AsyncExitStack()
        path = Path(self.folder.name) / "events.sqlite"
        self.world: World = await self.stack.enter_async_context(vending_world.world(path))

    @initialize(rounding=st.sampled_from(sorted(Rounding)))
    def open(self, rounding: str) -> None:
        async def opened() -> None:
            await self.start()
            world = self.world
            await world.site()
            await world.gateway()
            await world.tariff()
            await world.policy(rounding=rounding)
            await publish(world, **ALONE)
            for unit, meter_id in enumerate(METERS, 1):
                await world.meter(meter_id, unit=unit)
            for account_id in SHOPS:
                await world.account(account_id)

        self.run(opened())
        self.at_ms = T0_MS
        for meter_id, account_id in zip(METERS, ("A1", "A1", "A2"), strict=True):
            self.joins(meter_id, account_id)
        for account_id in SHOPS:
            self.buys(account_id, 2_000)

    def ask(self) -> Request:
        self.number += 1
        return self.world.ask(self.number, request_id=ids(self.number))

    def does(self, *asked: Awaitable[Any]) -> None:
        """Ask, whatever the answer is; let the process go on, and metering hear of it."""

        async def done() -> None:
            for one in asked:
                with suppress(InvalidInput, Retriable):
                    await one
            await self.world.office.complete()
            for meter_id in METERS:
                await self.moved(meter_id)
            states = [await self.world.office.account(name) for name in SHOPS]
            self.closings = {of.account_id: of.closing for of in states if of.closing}

        self.run(done())

    async def moved(self, meter_id: str) -> None:
        """Charge whom a meter has left to the register at which it did."""
        meter = await self.world.office.meter(meter_id)
        epoch, account_id = self.of.get(meter_id, (1, meter.house_account_id))
        if meter.epoch == epoch:
            return
        assert meter.epoch == epoch + 1, "one move at a time"
        assert meter.closing_register_milli == meter.opening_register_milli is not None
        self.charge(meter_id, account_id, meter.closing_register_milli or 0)
        self.of[meter_id] = (meter.epoch, meter.account_id)

    def charge(self, meter_id: str, account_id: str, register_milli: int) -> None:
        self.charged[account_id] += (register_milli - self.stands[meter_id]) * PRICE_NANO
        self.stands[meter_id] = register_milli
        self.sequence[account_id] += 1

    # --- the street --------------------------------------------------------------------------

    meters, shops = st.sampled_from(METERS), st.sampled_from(SHOPS)

    @rule(
        meter_id=meters,
        used_milli=st.integers(0, 900),
        is_read=st.sampled_from([True] * 3 + [False]),
    )
    def uses(self, meter_id: str, used_milli: int, is_read: bool) -> None:
        self.shows[meter_id] += used_milli
        self.at_ms += READ_AFTER_CUT_MS
        self.world.clock.at_ms = self.at_ms
        if not is_read:
            return
        epoch, account_id = self.of.get(meter_id, (1, ""))
        if self.shows[meter_id] < self.stands[meter_id]:
            return  # it has left at a register that was given too high
        self.charge(meter_id, account_id, self.shows[meter_id])
        meter = self.run(self.world.office.meter(meter_id))
        told = Charged(meter.meter_key, epoch, self.number, self.stands[meter_id], self.at_ms)
        self.number += 1
        self.run(self.world.tables.keep_charged([told], []))
        self.does()

    @rule(account_id=shops, amount=st.integers(1, 3_000))
    def buys(self, account_id: str, amount: int) -> None:
        self.does(self.world.sell(amount, account_id, self.ask()))

    @rule(meter_id=meters, account_id=shops)
    def joins(self, meter_id: str, account_id: str) -> None:
        register_milli = max(self.shows[meter_id], self.stands[meter_id])
        self.shows[meter_id] = register_milli
        self.does(self.world.assign(meter_id, account_id, register_milli, self.ask()))

    @rule(account_id=shops, without_cut=st.booleans())
    def closes(self, account_id: str, without_cut: bool) -> None:
        command = CloseAccount(self.ask(), account_id, "cash", without_cut, HOUR_MS, "moves out")
        self.does(self.world.office.closings.begin(command))

    @rule(account_id=shops, chosen=st.sets(meters, min_size=1))
    def closes_in_part(self, account_id: str, chosen: set[str]) -> None:
        meters = tuple(sorted(chosen))
        command = CloseMeters(self.ask(), account_id, meters, False, HOUR_MS, "is let")
        self.does(self.world.office.closings.begin(command))

    @precondition(lambda self: self.closings)
    @rule(data=st.data(), seldom=st.integers(0, 3))
    def cancels(self, data: st.DataObject, seldom: int) -> None:
        if seldom:
            return
        account_id = data.draw(st.sampled_from(sorted(self.closings)))
        closing_id = self.closings[account_id].closing_id
        command = CancelClosing(self.ask(), account_id, closing_id, "they stay")
        self.does(self.world.office.closings.cancel(command))

    @precondition(lambda self: self.closings)
    @rule(data=st.data(), hours=st.sampled_from([1, 25]), wrong_milli=st.sampled_from([0, 0, 70]))
    def is_late(self, data: st.DataObject, hours: int, wrong_milli: int) -> None:
        """Give registers as the displays show them, or misread them."""
        self.at_ms += hours * HOUR_MS
        self.world.clock.at_ms = self.at_ms
        account_id = data.draw(st.sampled_from(sorted(self.closings)))
        closing = self.closings[account_id]
        for meter_id in closing.meters:
            shown_milli = max(self.shows[meter_id], self.stands[meter_id]) + wrong_milli
            give = GiveRegister(
                self.ask(), account_id, closing.closing_id, meter_id, shown_milli, "manual", "read"
            )
            self.does(self.world.office.closings.give(give))

    @precondition(lambda self: any(closing.hold_id for closing in self.closings.values()))
    @rule(data=st.data(), times=st.integers(1, 2))
    def metering_answers(self, data: st.DataObject, times: int) -> None:
        self.answer(data, times)

    @precondition(lambda self: any(closing.hold_id for closing in self.closings.values()))
    @rule(data=st.data())
    def metering_answers_soon(self, data: st.DataObject) -> None:
        self.answer(data, 1)

    def answer(self, data: st.DataObject, times: int) -> None:
        holding = sorted(name for name, closing in self.closings.items() if closing.hold_id)
        account_id = data.draw(st.sampled_from(holding))
        hold_id = self.closings[account_id].hold_id
        charged_nano, sequence = self.charged[account_id], self.sequence[account_id]
        request = Request("~vending", str(ids(sequence)), bytes(32), self.at_ms)
        seed: tuple[Any, ...] = (0, 1, 1, [], b"row", 9, self.at_ms)
        told = PostUsage(request, account_id, sequence, Usage(energy_nano=charged_nano), *seed)
        open_meters = sum(whose == account_id for _, whose in self.of.values())
        echo = SettleClosing(
            account_id, hold_id, charged_nano, sequence, open_meters, self.at_ms, told
        )
        self.does(*(self.world.office.settle(echo) for _ in range(times)))

    @rule()
    def starts_anew(self) -> None:
        async def again() -> None:
            await self.stack.aclose()
            await self.start()
            self.world.clock.at_ms = self.at_ms

        self.run(again())
        self.does()

    # --- the laws ----------------------------------------------------------------------------

    @invariant()
    def a_meter_is_of_one_account_and_begins_where_it_ended(self) -> None:
        if not hasattr(self, "at_ms"):
            return
        states: list[Account] = [self.run(self.world.office.account(name)) for name in SHOPS]
        for meter_id in METERS:
            holders = [state.account_id for state in states if state.has(meter_id)]
            whose = self.run(self.world.office.meter(meter_id))
            assert holders == ([] if whose.is_house else [whose.account_id])
        moves: dict[tuple[str, int], int] = {}
        for event in self.run(stored(self.world)):
            if isinstance(event, MeterAssigned):
                moves[event.meter_id, event.epoch] = event.register_milli
            if isinstance(event, AccountMeterJoined):
                assert moves[event.meter_id, event.epoch] == event.register_milli
            if isinstance(event, AccountMeterLeft):
                assert moves[event.meter_id, event.epoch + 1] == event.register_milli

    @invariant()
    def nothing_is_made_up_or_lost(self) -> None:
        if not hasattr(self, "at_ms"):
            return
        events = [e for e in self.run(stored(self.world)) if isinstance(e, MoneyEvent)]
        assert TrialBalance(events).off_nano() == {}
        for name in SHOPS:
            state: Account = self.run(self.world.office.account(name))
            own = [event for event in events if event.account_id == name]
            sold = sum(event.amount_nano for event in own if isinstance(event, CreditSold))
            paid = sum(event.amount_nano for event in own if isinstance(event, CreditRefunded))
            dropped = sum(e.amount_nano for e in own if isinstance(e, RemainderRounded))
            owed = state.owed.debt_minor * NANO
            due = sum(e.due_minor * NANO for e in own if isinstance(e, AccountSettled))
            assert 0 <= owed <= due
            assert abs(dropped) < NANO
            assert sold + owed == state.credited_nano + paid + dropped
            if state.status is Status.CLOSED:
                assert state.credited_nano == self.charged[name] == state.used.usage.charged_nano
                assert not state.meters
            stands = Counter[str]()
            used_nano = 0
            for event in own:
                for posting in event.postings or ():
                    stands[posting.account] += posting.amount_nano
                if isinstance(event, UsagePosted):
                    used_nano = event.charged_nano
                    continue  # it says what metering knew
                said_nano = getattr(event, "credited_nano", None)
                if said_nano is not None:  # the total after it, also where others follow at once
                    assert said_nano == used_nano - stands["liabilities:prepayment"]
            assert stands["liabilities:prepayment"] == (
                state.used.usage.charged_nano - state.credited_nano
            )
            assert stands["assets:receivable"] == owed
            assert stands["assets:cash"] == sold - paid


EXAMPLES = int(os.environ.get("WATTVEND_PROPERTY_EXAMPLES", "100"))
TestStreet = Street.TestCase
TestStreet.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
