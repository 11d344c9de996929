"""Goal: whatever sellers, cashiers and approvers do, and repeat, the money is where a clerk says.

Method: Hypothesis plays them on the office over a real SQLite file: sales at the desk, and by
outside sellers that reserve, confirm, cancel or forget; grants, debts, refunds that metering
answers sooner or later, and corrections of any size, by persons who may or may not do them
alone; others approve or decline. Metering tells what was used, late and twice. Requests are
repeated at any later time. The process dies before or after any of its appends, is started
again, completes what is half done, and gets the request that had no answer once more. A ledger
on paper says what each answer is; after each step accounts and trial balance must agree.
"""

import asyncio
import os
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.ids import name_uuid
from services.vending.adapters.tables import event_of
from services.vending.domain.account import Sell, SetDebt, SettleClosing
from services.vending.domain.approval import Approve, Decline, approval_id_of
from services.vending.domain.authority import PublishAuthority, rules_text
from services.vending.domain.corrections import AdjustCredit, RefundCredit, ReverseSale, WriteOff
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.events import MoneyEvent
from services.vending.domain.origin import Origin
from services.vending.domain.payment import (
    CancelSale,
    ConfirmSale,
    ReserveSale,
    payment_id_of,
)
from services.vending.domain.postings import Usage
from services.vending.domain.trial_balance import TrialBalance
from services.vending.domain.usage import PostUsage
from tests.unit.vending_crashing import Died, MortalStore, mortal
from tests.unit.vending_world import T0_MS, World

NANO = 10**7
LENT_MINOR = 300
SHARE_PPM = 200_000
FEE_PPM, FEE_MINOR = 15_000, 2
ALONE = {
    "reversal": 500,
    "refund": 800,
    "adjustment": 100,
    "debt": None,
    "emergency": None,
    "authority": None,
}
"""What one person may do; giving up what is owed always needs two."""
NEVER = "0b4d5ef4-6f0c-5d38-9a3c-7b1f8f6f2d10"
ACCOUNTS, PERSONS = ("A1", "A2"), ("u-alice", "u-bob", "u-carl")
OWING = ACCOUNTS[0]
"""The other one never owes, so that its credit may be paid out."""


@dataclass(frozen=True)
class Ask:
    """A request of a person. `about`: a receipt, what is given up, or an outside transaction."""

    what: str
    account: str
    person: str
    number: int
    amount: int = 0
    about: str = ""

    @property
    def request(self) -> Request:
        content = (self.what, self.account, self.amount, self.about)
        request_id, origin = str(UUID(int=self.number + 1)), Origin("desk", self.person)
        return Request("desk", request_id, fingerprint(*content), T0_MS, origin=origin)

    @property
    def approval_id(self) -> str:
        return approval_id_of(self.request)


@dataclass
class Paper:
    """The model, in minor units: what a clerk with a pencil would write down."""

    credited: Counter[str] = field(default_factory=Counter)
    lent: Counter[str] = field(default_factory=Counter)
    debt: Counter[str] = field(default_factory=Counter)
    share: Counter[str] = field(default_factory=Counter)
    """Of a sale, what goes to the debt, in ppm; 0: there is none, or a person has ended it."""
    money: int = 0
    given: int = 0
    lost: int = 0
    fees: int = 0
    used: dict[str, tuple[int, int, int]] = field(
        default_factory=lambda: dict.fromkeys(ACCOUNTS, (0, 0, 0))
    )
    """(account sequence, energy, tax) as metering told last."""
    sales: dict[str, tuple[str, int, int, int, int]] = field(default_factory=dict)
    back: set[str] = field(default_factory=set)
    before_refund: set[str] = field(default_factory=set)
    unsaid: Counter[str] = field(default_factory=Counter)
    """What metering has charged since, and told nobody."""
    holding: dict[str, Ask] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    named: dict[Ask, int] = field(default_factory=dict)
    """What a refund of all came to when it was proposed."""
    reserved: dict[str, Ask] = field(default_factory=dict)
    promised: Counter[str] = field(default_factory=Counter)
    """The share when a payment was reserved."""
    cancelled: set[str] = field(default_factory=set)
    paid: set[str] = field(default_factory=set)

    def needs_two(self, ask: Ask) -> bool:
        if ask.what == "reverse":
            return self.sales[ask.about][1] > 500
        if ask.what == "refund":
            return (ask.amount or self.left(ask.account)) > 800
        return ask.what == "write-off" or (ask.what == "adjust" and abs(ask.amount) > 100)

    def refusal(self, ask: Ask) -> str:
        if ask.what in {"sell", "reserve"} and fee_of(ask.amount) >= ask.amount:
            return "AMOUNT_BELOW_FEE"
        if ask.what == "grant" and self.lent[ask.account]:
            return "EMERGENCY_ALREADY_GRANTED"
        if ask.what == "reverse":
            return self.no_reversal(ask)
        if ask.what == "refund":
            return self.no_refund(ask)
        if ask.what in {"confirm", "cancel"} and ask.about not in self.reserved:
            return "PAYMENT_NOT_FOUND"
        if ask.what == "confirm" and ask.about in self.cancelled:
            return "PAYMENT_TO_RETURN"
        if ask.what == "cancel" and ask.about in self.paid:
            return "PAYMENT_CONFIRMED"
        owed = {"emergency": self.lent, "debt": self.debt}.get(ask.about)
        if ask.what == "write-off" and owed is not None and owed[ask.account] < ask.amount:
            return "NOT_OWED"
        return ""

    def no_reversal(self, ask: Ask) -> str:
        if self.sales.get(ask.about, "?")[0] != ask.account:
            return "RECEIPT_NOT_FOUND"
        if ask.about in self.back:
            return "ALREADY_REVERSED"
        return "REFUNDED_SINCE" if ask.about in self.before_refund else ""

    def left(self, name: str) -> int:
        """Return what the book knows to be left: less than nothing is nothing."""
        return max(self.credited[name] - sum(self.used[name][1:]), 0)

    def no_refund(self, ask: Ask) -> str:
        name, most = ask.account, self.left(ask.account)
        if name in self.holding:
            return "REFUND_UNDER_WAY"
        if self.lent[name] or self.debt[name]:
            return "ACCOUNT_HAS_DEBT"
        return "" if 0 < self.to_hold(ask) <= most else "BALANCE_TOO_LOW"

    def to_hold(self, ask: Ask) -> int:
        left = self.left(ask.account)
        return ask.amount or min(left, self.named.get(ask, left))

    def echo(self, name: str, lost: int) -> str:
        """Settle the refund that waits: the book has learnt what was used from the echo alone."""
        left = max(self.left(name) - self.unsaid[name], 0)
        amount = self.holding.pop(name).amount or min(left, self.held[name])
        if lost:
            return "EVIDENCE_TOO_OLD"
        if self.lent[name] or self.debt[name]:
            return "ACCOUNT_HAS_DEBT"
        if not 0 < amount <= left:
            return "BALANCE_TOO_LOW"
        self.credited[name] -= amount
        self.money -= amount
        self.before_refund |= {receipt for receipt, sale in self.sales.items() if sale[0] == name}
        return "done"

    def write(self, ask: Ask, receipt: str, promised: int | None = None) -> None:  # noqa: C901 - one a case
        name, amount = ask.account, ask.amount
        match ask.what:
            case "refund":
                self.holding[name] = ask
                self.held[name] = self.to_hold(ask)
            case "reserve":
                self.reserved[ask.about] = ask
                self.promised[ask.about] = self.share[name]
            case "cancel":
                self.cancelled.add(ask.about)
            case "confirm" if ask.about not in self.paid:
                self.paid.add(ask.about)
                asked = self.reserved[ask.about]
                receipt = receipt_of_payment(asked.about)
                self.write(replace(asked, what="sell"), receipt, self.promised[asked.about])
            case "sell":
                fee = fee_of(amount)
                rest = amount - fee
                lent = min(rest, self.lent[name])
                share = self.share[name] if promised is None else promised
                debt = min((rest * share + 500_000) // 10**6, self.debt[name], rest - lent)
                self.sales[receipt] = (name, amount, fee, lent, debt)
                self.move(name, amount, fee, lent, debt)
            case "reverse":
                self.back.add(ask.about)
                self.move(name, *(-part for part in self.sales[ask.about][1:]))
                if not self.share[name]:  # what comes back was ended
                    self.lost += self.debt.pop(name, 0)
            case "grant":
                self.lent[name] += LENT_MINOR
                self.credited[name] += LENT_MINOR
            case "owe":
                self.lost += max(self.debt[name] - amount, 0)
                self.debt[name] = amount
                self.share[name] = SHARE_PPM if amount else 0
            case "adjust":
                self.given += amount
                self.credited[name] += amount
            case "write-off":
                self.lost += amount
                self.lent[name] -= amount * (ask.about == "emergency")
                self.debt[name] -= amount * (ask.about == "debt")
                self.credited[name] += amount * (ask.about == "arrears")

    def move(self, name: str, amount: int, fee: int, lent: int, debt: int) -> None:
        self.money += amount
        self.fees += fee
        self.lent[name] -= lent
        self.debt[name] -= debt
        self.credited[name] += amount - fee - lent - debt


def fee_of(amount: int) -> int:
    return (amount * FEE_PPM + 500_000) // 10**6 + FEE_MINOR


def receipt_of_payment(transaction_id: str) -> str:
    request_id = name_uuid("process", "sell", payment_id_of("desk", transaction_id))
    return str(name_uuid("receipt", "~vending", str(request_id)))


class Town(RuleBasedStateMachine):
    """Three persons at a desk, two accounts, one book."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.now_ms = T0_MS
        self.paper = Paper()
        self.said: dict[Ask, str] = {}
        self.waiting: dict[Ask, str] = {}
        self.judged: list[tuple[Ask, str]] = []
        self.asks: list[Ask] = []

    # --- the process -------------------------------------------------------------------------

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    async def start(self) -> None:
        self.stack = AsyncExitStack()
        path = Path(self.folder.name) / "events.sqlite"
        self.world: World
        self.store: MortalStore
        self.world, self.store = await self.stack.enter_async_context(mortal(path))
        self.world.clock.at_ms = self.now_ms

    async def restart(self) -> None:
        await self.stack.aclose()
        await self.start()
        await self.world.office.complete()

    async def until_answered(self, asked: Any) -> Any:
        """Ask as callers do: again after the process died, until there is an answer."""
        while True:
            try:
                return await asked()
            except Died:
                await self.restart()

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
            await world.policy(emergency_minor=LENT_MINOR, fee_ppm=FEE_PPM, fee_minor=FEE_MINOR)
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
        """Ask the office, and hold its answer against the paper's."""
        expected = self.said.get(ask) or self.waiting.get(ask) or self.on_paper(ask)
        assert self.run(self.until_answered(lambda: self.office(ask))) == expected, ask

    def on_paper(self, ask: Ask) -> str:
        self.asks.append(ask)
        refusal = self.paper.refusal(ask)
        if not refusal and self.paper.needs_two(ask):
            self.waiting[ask] = "APPROVAL_REQUIRED"
            if ask.what == "refund":
                self.paper.named[ask] = self.paper.left(ask.account)
            return "APPROVAL_REQUIRED"
        return self.happens(ask, refusal, ask.request)

    def happens(self, ask: Ask, refusal: str, request: Request) -> str:
        if not refusal:
            self.paper.write(ask, str(name_uuid("receipt", *request.key)))
        held = ask.what == "refund" and not refusal
        self.said[ask] = refusal or ("UNAVAILABLE" if held else "done")
        return self.said[ask]

    async def office(self, ask: Ask) -> str:  # noqa: C901 - one a case
        office, request, reason = self.world.office, ask.request, "why not"
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
                case "reserve":
                    await office.payments.reserve(
                        ReserveSale(request, ask.about, ask.account, ask.amount, "cash", 0)
                    )
                case "confirm":
                    await office.payments.confirm(ConfirmSale(request, ask.about))
                case "cancel":
                    await office.payments.cancel(CancelSale(request, ask.about, reason))
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
            ]
        ),
    )
    def set_right(self, account: str, person: str, what: tuple[str, int, str]) -> None:
        kind, amount, about = what
        name = OWING if kind in {"grant", "owe"} else account
        self.ask(self.new(kind, name, person, amount, about))

    @rule(account=accounts, person=persons, amount=amounts)
    def reserve(self, account: str, person: str, amount: int) -> None:
        self.ask(self.new("reserve", account, person, amount, f"paid-{len(self.asks)}"))

    @precondition(lambda self: self.paper.reserved)
    @rule(what=st.sampled_from(["confirm", "confirm", "cancel"]), data=st.data())
    def settle_reserved(self, what: str, data: st.DataObject) -> None:
        about = data.draw(st.sampled_from([*sorted(self.paper.reserved), "never reserved"]))
        self.ask(self.new(what, ACCOUNTS[0], PERSONS[0], about=about))

    @rule(minutes=st.sampled_from([1, 15]))
    def time_passes(self, minutes: int) -> None:
        """Reservations time out, which keeps nobody from buying who has paid."""
        self.now_ms += minutes * 60_000
        self.world.clock.at_ms = self.now_ms

        async def swept() -> None:
            await self.world.office.complete()

        self.run(self.until_answered(swept))

    @rule(
        account=st.sampled_from([*ACCOUNTS, ACCOUNTS[1]]),
        person=persons,
        amount=st.sampled_from([0, 60, 700, 900]),
        used=st.sampled_from([0, 1, 1_500]),
        again=st.booleans(),
    )
    def refund(self, account: str, person: str, amount: int, used: int, again: bool) -> None:
        """Pay out; `used`: meanwhile, which the echo alone tells; `again`: it is not told yet."""
        self.ask(self.new("refund", account, person, amount))
        self.paper.unsaid[account] += used
        if account in self.paper.holding and not again:
            self.answer_hold(account)

    @precondition(lambda self: self.paper.holding)
    @rule(data=st.data())
    def refund_beside_another(self, data: st.DataObject) -> None:
        account = data.draw(st.sampled_from(sorted(self.paper.holding)))
        self.ask(self.new("refund", account, PERSONS[0], 5))

    @precondition(lambda self: self.paper.holding)
    @rule(data=st.data(), times=st.integers(1, 2), lost=st.sampled_from([0, 0, 1]))
    def echo(self, data: st.DataObject, times: int, lost: int) -> None:
        """Metering answers a hold, perhaps without what it `lost`; perhaps once more."""
        self.answer_hold(data.draw(st.sampled_from(sorted(self.paper.holding))), times, lost)

    def answer_hold(self, name: str, times: int = 1, lost: int = 0) -> None:
        ask, paper = self.paper.holding[name], self.paper
        used, sequence = sum(paper.used[name][1:]) + paper.unsaid[name], paper.used[name][0]

        async def told() -> None:
            state = await self.world.office.account(name)
            hold_id = state.refunding.hold_id if state.refunding else "an old one"
            echo = SettleClosing(name, hold_id, used * NANO, sequence - lost, 0, self.now_ms)
            await self.world.office.settle(echo)

        for _ in range(times):
            self.run(self.until_answered(told))
        self.said[ask] = self.paper.echo(name, lost)
        if ask in self.waiting:
            self.waiting[ask] = self.said[ask]

    @precondition(lambda self: self.paper.sales)
    @rule(person=persons, again=st.booleans(), data=st.data())
    def reverse(self, person: str, again: bool, data: st.DataObject) -> None:
        """Of what was sold; `again`: perhaps what was reversed before, or what is not there."""
        sales = self.paper.sales
        choices = sorted(sales.keys() - self.paper.back)
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
        sequence = self.paper.used[account][0] + later
        content = (account, sequence, energy, tax)
        request = Request("~vending", str(name_uuid(*content)), fingerprint(*content), self.now_ms)
        usage = Usage(energy_nano=energy * NANO, tax_nano=tax * NANO)
        seed: tuple[Any, ...] = (0, 1, 1, [], b"row", 9, self.now_ms)
        told = PostUsage(request, account, sequence, usage, *seed)
        if later > 0:
            self.paper.used[account] = (sequence, energy, tax)
        self.run(self.until_answered(lambda: self.world.office.post_usage(told)))

    # --- the second person -------------------------------------------------------------------

    @precondition(lambda self: self.waiting)
    @rule(person=persons, yes=st.booleans(), data=st.data())
    def judge(self, person: str, yes: bool, data: st.DataObject) -> None:
        ask = data.draw(st.sampled_from(list(self.waiting)))
        number = 1000 + len(self.judged)
        self.judged.append((ask, person))
        request = Ask("judge", ask.approval_id, person, number).request

        async def asked() -> str:
            office = self.world.office.approvals
            try:
                if yes:
                    return (await office.approve(Approve(request, ask.approval_id, "y"))).status
                return (await office.decline(Decline(request, ask.approval_id, "n"))).status
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
            refusal = self.paper.refusal(ask)
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
    def the_book_says_what_the_paper_says(self) -> None:
        if not hasattr(self, "world"):
            return
        paper = self.paper

        async def looked() -> tuple[list[Any], list[Any]]:
            states = [await self.world.office.account(name) for name in ACCOUNTS]
            return states, await self.world.store.read_all(0, 10_000)

        states, stored = self.run(looked())
        for state in states:
            name = state.account_id
            assert state.credited_nano == paper.credited[name] * NANO
            assert state.owed.emergency_minor == paper.lent[name]
            assert state.owed.debt_minor == paper.debt[name]
            assert state.used.account_sequence == paper.used[name][0]
        events = [event_of(each) for each in stored]
        balance = TrialBalance(event for event in events if isinstance(event, MoneyEvent))
        assert balance.off_nano() == {}
        lines = balance.books.get(("LE1", "CNY"), {})
        stands = {account: line.balance_nano // NANO for account, line in lines.items()}
        assert sum(stands.values()) == 0
        assert stands.get("assets:cash", 0) == paper.money
        energy, tax = (sum(told[part] for told in paper.used.values()) for part in (1, 2))
        assert stands.get("liabilities:prepayment", 0) == energy + tax - sum(
            paper.credited.values()
        )
        assert stands.get("income:electricity:energy", 0) == -energy
        assert stands.get("liabilities:tax", 0) == -tax
        assert stands.get("assets:emergency-credit", 0) == sum(paper.lent.values())
        assert stands.get("assets:receivable", 0) == sum(paper.debt.values())
        assert stands.get("income:adjustment", 0) == paper.given
        assert stands.get("income:service-fee", 0) == -paper.fees
        assert stands.get("expenses:write-off", 0) == paper.lost


EXAMPLES = int(os.environ.get("WATTVEND_PROPERTY_EXAMPLES", "100"))
TestTown = Town.TestCase
TestTown.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)
