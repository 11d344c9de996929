"""Goal: whatever sellers, cashiers and approvers do, and repeat, the money is where a clerk says.

Method: Hypothesis plays them on the office over a real SQLite file: sales at the desk, and by
outside sellers that reserve, confirm, cancel or forget; grants, debts, refunds and transfers that
metering answers sooner or later, or never, and corrections of any size, by persons who may or may
not do them alone; others approve or decline. Metering tells what was used, late and twice. Requests
are repeated at any later time; tenants change. The process dies before or after any of its appends,
is started again, completes what is half done, and gets the request that had no answer once more.
A clerk with a ledger on paper says what each answer is (vending_paper.py); after each step every
account of the chart must stand, of each customer, as in that ledger, and all of them sum to zero.
On PostgreSQL too: tests/integration/test_vending_postgres.py.
"""

import asyncio
import os
import tempfile
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.ids import name_uuid
from services.vending.adapters.tables import event_of
from services.vending.domain.account import Sell, SetDebt
from services.vending.domain.approval import Approve, Decline, approval_id_of
from services.vending.domain.authority import PublishAuthority, rules_text
from services.vending.domain.changes import ChangeTenant
from services.vending.domain.corrections import (
    AdjustCredit,
    RefundCredit,
    ReverseSale,
    TransferCredit,
    WriteOff,
)
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.events import MoneyEvent
from services.vending.domain.payment import CancelSale, ConfirmSale, ReserveSale
from services.vending.domain.postings import Usage
from services.vending.domain.refund import LASTS_MS_DEFAULT
from services.vending.domain.settling import SettleClosing
from services.vending.domain.trial_balance import TrialBalance
from services.vending.domain.usage import PostUsage
from tests.property.vending_paper import (
    ALONE,
    CHART,
    FEE,
    FEE_PPM,
    HOLDS,
    LENT,
    SHARE_PPM,
    Ask,
    Clerk,
)
from tests.unit import vending_world
from tests.unit.vending_crashing import Died, MortalStore, mortal_in
from tests.unit.vending_world import T0_MS, World

NANO = 10**7
NEVER = "0b4d5ef4-6f0c-5d38-9a3c-7b1f8f6f2d10"
ACCOUNTS, PERSONS = ("A1", "A2"), ("u-alice", "u-bob", "u-carl")
OWING = ACCOUNTS[0]
"""The other one never owes, so that its credit may be paid out."""


class Town(RuleBasedStateMachine):
    """Three persons at a desk, two accounts, one book."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now_ms = T0_MS
        self.clerk = Clerk()
        self.deadlines: dict[str, int] = {}
        self.said: dict[Ask, str] = {}
        self.waiting: dict[Ask, str] = {}
        self.judged: list[tuple[Ask, str]] = []
        self.asks: list[Ask] = []

    # --- the process -------------------------------------------------------------------------

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def opened(self) -> AbstractAsyncContextManager[World]:
        """Open the book, where it stands."""
        return vending_world.world(Path(self.folder.name) / "events.sqlite")

    async def start(self) -> None:
        self.stack = AsyncExitStack()
        self.world: World
        self.store: MortalStore
        self.world, self.store = await self.stack.enter_async_context(mortal_in(self.opened()))
        self.world.clock.at_ms = self.now_ms

    async def restart(self) -> None:
        await self.stack.aclose()
        await self.start()
        await self.world.office.complete()

    async def until_answered(self, asked: Any) -> Any:
        """Ask as callers do: again after the process died, until there is an answer."""
        while True:
            try:
                answer = await asked()
            except Died:
                await self.restart()
                continue
            if self.store.dead:  # while it did what nobody waits for
                await self.restart()
            return answer

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    @initialize()
    def open(self) -> None:
        async def opened() -> None:
            await self.start()
            world = self.world
            await world.site()
            await world.tariff()
            await world.policy(emergency_minor=LENT, fee_ppm=FEE_PPM, fee_minor=FEE)
            for name in ACCOUNTS:
                await world.account(name)
            document = PublishAuthority(world.ask(), "LE1", "CNY", rules_text(ALONE), 0)
            await world.office.publish_authority(document)

        self.run(opened())
        self.ask(self.new("owe", OWING, PERSONS[0], 1_000))
        self.ask(self.new("grant", OWING, PERSONS[0]))
        for account in ACCOUNTS:
            self.ask(self.new("sell", account, PERSONS[0], 2_000))

    # --- the desk ----------------------------------------------------------------------------

    def ask(self, ask: Ask) -> None:
        """Ask the office, and hold its answer against the clerk's."""
        expected = self.said.get(ask) or self.waiting.get(ask) or self.by_clerk(ask)
        assert self.run(self.until_answered(lambda: self.office(ask))) == expected, ask

    def by_clerk(self, ask: Ask) -> str:
        self.asks.append(ask)
        refusal = self.clerk.refusal(ask)
        if not refusal and self.clerk.needs_two(ask):
            self.waiting[ask] = "APPROVAL_REQUIRED"
            self.clerk.seen[ask] = self.clerk.sight(ask)
            if ask.what in HOLDS:
                self.clerk.named[ask] = self.clerk.left(ask.account)
            return "APPROVAL_REQUIRED"
        return self.happens(ask, refusal, ask.request)

    def happens(self, ask: Ask, refusal: str, request: Request) -> str:
        if not refusal:
            self.clerk.write(ask, str(name_uuid("receipt", *request.key)))
        held = ask.what in HOLDS and not refusal
        if held:
            self.deadlines[ask.account] = self.now_ms + LASTS_MS_DEFAULT
        self.said[ask] = refusal or ("UNAVAILABLE" if held else "done")
        return self.said[ask]

    async def office(self, ask: Ask) -> str:  # noqa: C901 - one a case
        request = replace(ask.request, at_ms=self.now_ms)
        office, reason = self.world.office, "why not"
        try:
            match ask.what:
                case "sell":
                    await office.sell(Sell(request, ask.account, ask.amount, "cash"))
                case "grant":
                    await office.grant_emergency_credit(request, ask.account)
                case "owe":
                    await office.set_debt(
                        SetDebt(request, ask.account, ask.amount, SHARE_PPM, reason)
                    )
                case "reverse":
                    await office.correct(ReverseSale(request, ask.account, ask.about, reason))
                case "adjust":
                    await office.correct(AdjustCredit(request, ask.account, ask.amount, reason))
                case "refund":
                    await office.refund(
                        RefundCredit(request, ask.account, ask.amount, "cash", reason), 0.0
                    )
                case "transfer":
                    await office.transfer(
                        TransferCredit(request, ask.account, ask.about, ask.amount, reason), 0.0
                    )
                case "reserve":
                    await office.payments.reserve(
                        ReserveSale(request, ask.about, ask.account, ask.amount, "cash", 0)
                    )
                case "confirm":
                    await office.payments.confirm(ConfirmSale(request, ask.about))
                case "cancel":
                    await office.payments.cancel(CancelSale(request, ask.about, reason))
                case "move in":
                    tenant = f"tenant-{ask.number}"
                    await office.approvals.ask(
                        ChangeTenant(request, ask.account, tenant, ask.about == "owed too", reason)
                    )
                case "write-off":
                    await office.correct(
                        WriteOff(request, ask.account, ask.about, ask.amount, reason)
                    )
        except InvalidInput as refused:
            return refused.reason.value
        except Retriable:
            return "UNAVAILABLE"
        return "done"

    def new(self, what: str, account: str, person: str, amount: int = 0, about: str = "") -> Ask:
        return Ask(what, account, person, len(self.asks), amount, about)

    accounts, persons = st.sampled_from(ACCOUNTS), st.sampled_from(PERSONS)
    amounts = st.sampled_from([1, 99, 500, 501, 2_000])

    @rule(account=accounts, person=persons, amount=amounts)
    def sell(self, account: str, person: str, amount: int) -> None:
        self.ask(self.new("sell", account, person, amount))

    @rule(
        account=accounts,
        person=persons,
        what=st.sampled_from(
            [
                ("grant", 0, ""),
                ("owe", 0, ""),
                ("owe", 77, ""),
                ("adjust", -900, ""),
                ("adjust", -100, ""),
                ("adjust", 101, ""),
                ("write-off", 1, "emergency"),
                ("write-off", 300, "emergency"),
                ("write-off", 77, "debt"),
                ("write-off", 300, "arrears"),
                ("write-off", 1, "arrears"),
            ]
        ),
    )
    def set_right(self, account: str, person: str, what: tuple[str, int, str]) -> None:
        kind, amount, about = what
        name = OWING if kind in {"grant", "owe"} else account
        self.ask(self.new(kind, name, person, amount, about))

    @rule(account=accounts, person=persons, about=st.sampled_from(["owed too", "owing nothing"]))
    def move_in(self, account: str, person: str, about: str) -> None:
        """Another tenant takes the account over, with its credit."""
        self.ask(self.new("move in", account, person, about=about))

    @rule(account=accounts, person=persons, amount=amounts)
    def reserve(self, account: str, person: str, amount: int) -> None:
        self.ask(self.new("reserve", account, person, amount, f"paid-{len(self.asks)}"))

    @precondition(lambda self: self.clerk.reserved)
    @rule(what=st.sampled_from(["confirm", "confirm", "cancel"]), data=st.data())
    def settle_reserved(self, what: str, data: st.DataObject) -> None:
        about = data.draw(st.sampled_from([*sorted(self.clerk.reserved), "never reserved"]))
        self.ask(self.new(what, ACCOUNTS[0], PERSONS[0], about=about))

    @rule(minutes=st.sampled_from([1, 15]))
    def time_passes(self, minutes: int) -> None:
        """Reservations time out, which keeps nobody from buying who has paid; and so do holds."""
        self.now_ms += minutes * 60_000
        self.world.clock.at_ms = self.now_ms

        async def swept() -> None:
            await self.world.office.complete()

        self.run(self.until_answered(swept))
        for name in [n for n in self.clerk.holding if self.deadlines[n] <= self.now_ms]:
            ask = self.clerk.holding.pop(name)
            self.said[ask] = "NO_ECHO_IN_TIME"
            if ask in self.waiting:
                self.waiting[ask] = self.said[ask]

    @rule(
        account=st.sampled_from([*ACCOUNTS, ACCOUNTS[1]]),
        person=persons,
        amount=st.sampled_from([0, 60, 700, 900]),
        used=st.sampled_from([0, 1, 1_500]),
        what=st.sampled_from(HOLDS),
        again=st.booleans(),
    )
    def pay_out(
        self, account: str, person: str, amount: int, used: int, what: str, again: bool
    ) -> None:
        """To who asks, or to the other account; `used`: meanwhile, which the echo alone tells.

        `again`: it is not told yet.
        """
        (other,) = {*ACCOUNTS} - {account}
        about = other if what == "transfer" else ""
        self.ask(self.new(what, account, person, amount, about))
        self.clerk.unsaid[account] += used
        if account in self.clerk.holding and not again:
            self.answer_hold(account)

    @precondition(lambda self: self.clerk.holding)
    @rule(data=st.data())
    def refund_beside_another(self, data: st.DataObject) -> None:
        account = data.draw(st.sampled_from(sorted(self.clerk.holding)))
        self.ask(self.new("refund", account, PERSONS[0], 5))

    @precondition(lambda self: self.clerk.holding)
    @rule(data=st.data(), times=st.integers(1, 2), lost=st.sampled_from([0, 0, 1]))
    def echo(self, data: st.DataObject, times: int, lost: int) -> None:
        """Metering answers a hold, perhaps without what it `lost`; perhaps once more."""
        self.answer_hold(data.draw(st.sampled_from(sorted(self.clerk.holding))), times, lost)

    def answer_hold(self, name: str, times: int = 1, lost: int = 0) -> None:
        ask, stands = self.clerk.holding[name], self.clerk.ledger.stands
        used = self.clerk.unsaid[name] - stands["energy", name] - stands["tax", name]
        sequence = self.clerk.sequence[name]

        async def told() -> None:
            state = await self.world.office.account(name)
            hold_id = state.refunding.hold_id if state.refunding else "an old one"
            echo = SettleClosing(name, hold_id, used * NANO, sequence - lost, 0, self.now_ms)
            await self.world.office.settle(echo)
            await self.world.office.complete()  # what was sent arrives

        for _ in range(times):
            self.run(self.until_answered(told))
        self.said[ask] = self.clerk.echo(name, lost)
        if ask in self.waiting:
            self.waiting[ask] = self.said[ask]

    @precondition(lambda self: self.clerk.ledger.sales)
    @rule(person=persons, again=st.booleans(), data=st.data())
    def reverse(self, person: str, again: bool, data: st.DataObject) -> None:
        """Of what was sold; `again`: perhaps what was reversed before, or what is not there."""
        sales = self.clerk.ledger.sales
        choices = sorted(sales.keys() - self.clerk.back)
        if again or not choices:
            choices = [*sorted(sales), NEVER]
        receipt = data.draw(st.sampled_from(choices))
        account = sales[receipt][0] if receipt in sales else ACCOUNTS[0]
        self.ask(self.new("reverse", account, person, about=receipt))

    @precondition(lambda self: self.asks)
    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        self.ask(data.draw(st.sampled_from(self.asks)))

    @rule(
        account=accounts,
        later=st.sampled_from([-1, 0, 1, 1, 3]),
        energy=st.sampled_from([0, 0, 5, 700, 90_000]),
        tax=st.sampled_from([0, 1, 91]),
    )
    def metering_tells(self, account: str, later: int, energy: int, tax: int) -> None:
        """Totals at a sequence that is news, known or old; less than before where corrected."""
        sequence = self.clerk.sequence[account] + later
        content = (account, sequence, energy, tax)
        request = Request("~vending", str(name_uuid(*content)), fingerprint(*content), self.now_ms)
        usage = Usage(energy_nano=energy * NANO, tax_nano=tax * NANO)
        seed: tuple[Any, ...] = (0, 1, 1, [], b"row", 9, self.now_ms)
        told = PostUsage(request, account, sequence, usage, *seed)
        if later > 0:
            self.clerk.sequence[account] = sequence
            self.clerk.ledger.use(account, energy, tax)
        self.run(self.until_answered(lambda: self.world.office.post_usage(told)))

    # --- the second person -------------------------------------------------------------------

    @precondition(lambda self: self.waiting)
    @rule(person=persons, yes=st.booleans(), data=st.data())
    def judge(self, person: str, yes: bool, data: st.DataObject) -> None:
        ask = data.draw(st.sampled_from(list(self.waiting)))
        number = -1 - len(self.judged)
        self.judged.append((ask, person))
        request = Ask("judge", approval_id_of(ask.request), person, number).request

        async def asked() -> str:
            office = self.world.office.approvals
            try:
                if yes:
                    return (
                        await office.approve(Approve(request, approval_id_of(ask.request), "y"))
                    ).status
                return (
                    await office.decline(Decline(request, approval_id_of(ask.request), "n"))
                ).status
            except InvalidInput as refused:
                return refused.reason.value

        answer = self.run(self.until_answered(asked))
        if self.waiting[ask] != "APPROVAL_REQUIRED":
            assert answer == "APPROVAL_DECIDED"
        elif not yes:
            assert answer == "declined"
            self.waiting[ask] = "APPROVAL_DECLINED"
        elif person == ask.person:
            assert answer == "SAME_PERSON"
        else:
            refusal = self.clerk.refusal(ask)
            if not refusal or ask.what != "move in":  # whose refusals leave no trace
                refusal = self.clerk.has_changed(ask) or refusal
            self.waiting[ask] = self.happens(ask, refusal, ask.request)
            assert answer == ("failed" if refusal else "executed")

    # --- the machine -------------------------------------------------------------------------

    @rule(steps=st.integers(0, 7))
    def die_soon(self, steps: int) -> None:
        """Let the process die at one of the half steps to come."""
        self.store.arm(steps)

    @rule()
    def start_anew(self) -> None:
        self.run(self.restart())

    @invariant()
    def the_book_says_what_the_ledger_says(self) -> None:
        if not hasattr(self, "world"):
            return

        async def looked() -> tuple[list[Any], list[Any]]:
            states = [await self.world.office.account(name) for name in ACCOUNTS]
            return states, await self.world.store.read_all(0, 10_000)

        states, stored = self.run(looked())
        stands, all_events = self.clerk.ledger.stands, [event_of(each) for each in stored]
        events = [event for event in all_events if isinstance(event, MoneyEvent)]
        assert TrialBalance(events).off_nano() == {}
        assert sum(stands.values()) == 0
        for state in states:
            name = state.account_id
            of_account = TrialBalance(event for event in events if event.account_id == name)
            assert of_account.off_nano() == {}
            lines = of_account.books.get(("LE1", "CNY"), {})
            told = {account: line.balance_nano for account, line in lines.items()}
            wanted = {CHART[what]: at * NANO for (what, of), at in stands.items() if of == name}
            assert {**dict.fromkeys(wanted, 0), **told} == {**dict.fromkeys(told, 0), **wanted}
            used = -stands["energy", name] - stands["tax", name]
            assert state.credited_nano == (used - stands["prepaid", name]) * NANO
            assert state.owed.emergency_minor == stands["emergency", name]
            assert state.owed.debt_minor == stands["debt", name]
            assert state.used.account_sequence == self.clerk.sequence[name]


EXAMPLES = int(os.environ.get("WATTVEND_PROPERTY_EXAMPLES", "100"))
TestTown = Town.TestCase
TestTown.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
