"""Goal: money is counted once, and a request has one answer, whatever is retried or restarted.

Method: Hypothesis draws histories of commands on two accounts: sales, emergency credit, debts,
closings and echoes, sent one by one and many at once, with request ids that come again (with the
same content and with another), and restarts, after which everything is folded anew from the stored
Avro. A ledger as a clerk would keep it says what each answer must be; the book on a memory store
must give exactly that, and what it stored must add up by itself: after each event its postings sum
to zero, and what stands on the accounts of the chart is what the clerk would count.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import floor
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import name_uuid
from services.common.kernel.units import INT64_MAX
from services.vending.adapters.memory_store import MemoryEventStore
from services.vending.application.book import Book
from services.vending.application.stored import event_of
from services.vending.domain import account_commands, closings
from services.vending.domain.account import Account
from services.vending.domain.account_opening import OpenAccount
from services.vending.domain.checks import METHODS
from services.vending.domain.closings import CloseAccount
from services.vending.domain.decisions import Answers, Request, fingerprint
from services.vending.domain.event_store import FROM_START, StoredEvent
from services.vending.domain.events.closings import RemainderRounded
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.events.sales import CreditSold, DebtSet, EmergencyGranted
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.lending import GrantEmergencyCredit, SetDebt
from services.vending.domain.orders import PromisePayment
from services.vending.domain.owed import Owed
from services.vending.domain.policy import Policy
from services.vending.domain.postings import COMPONENTS, Usage
from services.vending.domain.sale import Sell
from services.vending.domain.settling import SettleClosing
from services.vending.domain.site import Site
from services.vending.domain.tariff import Tariff
from services.vending.domain.trial_balance import TrialBalance
from services.vending.domain.usage import PostUsage, Used
from services.vending.metrics import Metrics
from tests.unit.vending_chain import check_stream_chain

NANO = 10**7
SITE = Site(Answers(), "S1", "Mall", "UTC", "CNY", 9, 2, "LE1", 10)
TARIFF = Tariff(Answers(), "T1", 1, "flat", "electricity", "CNY", "LE1", 1, None, 0, 1)
EMERGENCY_MINOR = 300
POLICY = Policy(Answers(), "P1", 1, "CNY", 2, 1, 0, 1, 1, 1, 1, EMERGENCY_MINOR * NANO, None)

Key = tuple[str, int]
Content = tuple[str, str, int, int]
Said = tuple[str, int] | str
"""What an answer is judged by: (event, revision), or the reason of a refusal."""


@dataclass(frozen=True)
class Ask:
    """`what`: open, sell, grant, owe, promise, close. `number`: of the request id, of few."""

    what: str
    account: str
    caller: str = "till"
    number: int = 0
    amount_minor: int = 0
    share_ppm: int = 0

    @property
    def content(self) -> Content:
        return (self.what, self.account, self.amount_minor, self.share_ppm)


@dataclass(frozen=True)
class Echo:
    """Metering's answer to the hold that is open, if one is; `rest_nano`: what is not used up."""

    account: str
    rest_nano: int


ECHO_SEQUENCE = 5
"""The account sequence of every echo: one that knows less than the book closes nothing."""


@dataclass(frozen=True)
class Told:
    """Metering says what was used until an account sequence, the same as ever or corrected."""

    account: str
    account_sequence: int
    usage: Usage

    def command(self) -> PostUsage:
        request_id = str(name_uuid("usage", self.account, self.account_sequence))
        request = Request("~vending", request_id, fingerprint("usage", self.usage), 7)
        seed: tuple[Any, ...] = (0, 1, 1, [], b"row", 9, 7)
        return PostUsage(request, self.account, self.account_sequence, self.usage, *seed)


Step = list[Ask] | Echo | Told | None
"""None: a restart."""


@dataclass
class Ledger:
    """The model: what a clerk with a pencil would write down."""

    credited: dict[str, int] = field(default_factory=dict)
    emergency: Counter[str] = field(default_factory=Counter)
    debt: Counter[str] = field(default_factory=Counter)
    share: Counter[str] = field(default_factory=Counter)
    status: dict[str, str] = field(default_factory=dict)
    length: dict[str, int] = field(default_factory=lambda: {"A": 0, "B": 0})
    closing: dict[str, Key] = field(default_factory=dict)
    seen: dict[Key, tuple[Content, Said]] = field(default_factory=dict)
    used: dict[str, Used] = field(default_factory=lambda: {"A": Used(), "B": Used()})

    def write(self, name: str, key: Key, content: Content, event: str) -> Said:
        said = (event, self.length[name])
        self.length[name] += 1
        self.seen[key] = (content, said)
        return said

    def ask(self, ask: Ask) -> Said:
        name, key = ask.account, (ask.caller, ask.number)
        known = self.seen.get(key)
        if known and known[0][1] == name:
            return known[1] if known[0] == ask.content else "REQUEST_ID_REUSED"
        if ask.what == "open" and name in self.status:
            return "ALREADY_EXISTS"
        if ask.what != "open" and name not in self.status:
            return "ACCOUNT_NOT_FOUND"
        if ask.what in {"close", "owe", "promise"} and self.status[name] != "open":
            return "ACCOUNT_NOT_OPEN"
        if ask.what == "close" and self.emergency[name] + self.debt[name]:
            return "ACCOUNT_HAS_DEBT"
        if ask.what == "owe" and abs(ask.amount_minor - self.debt[name]) * NANO > INT64_MAX:
            return "AMOUNT_TOO_LARGE"
        if known:  # it would happen, but the request was another account's
            return "REQUEST_ID_REUSED"
        return self.write(name, key, ask.content, self.happen(ask, key))

    def happen(self, ask: Ask, key: Key) -> str:
        name = ask.account
        if ask.what == "open":
            self.status[name], self.credited[name] = "open", 0
            return "account-opened"
        if ask.what == "close":
            self.status[name], self.closing[name] = "closing", key
            return "account-closing"
        if ask.what == "owe":
            self.debt[name] = ask.amount_minor
            self.share[name] = ask.share_ppm if ask.amount_minor else 0
            return "debt-set"
        if ask.what == "promise":
            return "payment-promised"
        if ask.what == "grant":
            if self.emergency[name] or not self.credit(name, EMERGENCY_MINOR):
                return "emergency-refused"
            self.emergency[name] = EMERGENCY_MINOR
            return "emergency-granted"
        return "credit-sold" if self.sell(name, ask.amount_minor) else "sale-refused"

    def credit(self, name: str, amount_minor: int) -> bool:
        credited = self.credited[name] + amount_minor * NANO
        if self.status[name] != "open" or credited > INT64_MAX:
            return False
        self.credited[name] = credited
        return True

    def sell(self, name: str, amount_minor: int) -> bool:
        if amount_minor * NANO > INT64_MAX:
            return False
        emergency = min(amount_minor, self.emergency[name])
        share = floor(Fraction(amount_minor * self.share[name], 10**6) + Fraction(1, 2))
        debt = min(share, self.debt[name], amount_minor - emergency)
        if not self.credit(name, amount_minor - emergency - debt):
            return False
        self.emergency[name] -= emergency
        self.debt[name] -= debt
        return True

    def tell(self, told: Told) -> None:
        name = told.account
        if name in self.status and told.account_sequence > self.used[name].account_sequence:
            self.used[name] = Used(told.account_sequence, told.usage)
            self.length[name] += 1

    def echo(self, echo: Echo) -> None:
        name = echo.account
        if self.status.get(name) == "closing":
            self.tell(echoed(echo, self.credited[name]))
            key = self.closing.pop(name)
            is_whole = abs(echo.rest_nano) >= NANO  # less is rounded away
            refused = is_whole or self.used[name].account_sequence > ECHO_SEQUENCE
            if echo.rest_nano and not refused:
                self.credited[name] -= echo.rest_nano
                self.share[name] = 0  # nothing is owed
                self.length[name] += 2  # account-settled, remainder-rounded
            self.status[name] = "open" if refused else "closed"
            event = "account-close-refused" if refused else "account-closed"
            self.write(name, key, self.seen[key][0], event)


def command_of(ask: Ask) -> account_commands.Command | CloseAccount:
    request = Request(ask.caller, str(UUID(int=ask.number + 1)), fingerprint(*ask.content), 5)
    if ask.what == "open":
        return OpenAccount(
            request, ask.account, "S1", None, "electricity", "T1", "P1", 0, "", 0, SITE, TARIFF,
            POLICY,
        )  # fmt: skip
    if ask.what == "sell":
        return Sell(request, ask.account, ask.amount_minor, METHODS[ask.number % 4])
    if ask.what == "grant":
        return GrantEmergencyCredit(request, ask.account, POLICY)
    if ask.what == "owe":
        return SetDebt(request, ask.account, ask.amount_minor, ask.share_ppm, "old meter")
    if ask.what == "promise":
        return PromisePayment(request, ask.account, request.at_ms + 1, "half is paid")
    return CloseAccount(request, ask.account)


def decided(command: Any) -> Any:
    of_closings = isinstance(command, CloseAccount | SettleClosing)
    decide: Any = closings.decide if of_closings else account_commands.decide
    return lambda state: decide(state, command)


async def said_to(book: Book, ask: Ask) -> Said:
    try:
        outcome = await book.submit(Account, ask.account, decided(command_of(ask)))
    except InvalidInput as refused:
        return refused.reason.value
    assert outcome.event is not None
    assert outcome.state.answers.revision == outcome.revision
    return (outcome.event.SUBJECT, outcome.revision)


def echoed(echo: Echo, credited_nano: int) -> Told:
    usage = Usage(tax_nano=7, energy_nano=credited_nano - echo.rest_nano - 7)
    return Told(echo.account, ECHO_SEQUENCE, usage)


async def tell(book: Book, echo: Echo) -> None:
    state = await book.state_of(Account, echo.account)
    if state and state.closing:
        told = echoed(echo, state.credited_nano)
        hold = state.closing.hold_id
        charged_nano = told.usage.charged_nano
        settle = SettleClosing(
            echo.account, hold, charged_nano, ECHO_SEQUENCE, 0, 6, told.command()
        )
        await book.submit(Account, echo.account, decided(settle))


async def follow(history: list[Step]) -> None:
    store, ledger = MemoryEventStore(), Ledger()
    book = Book(store, Metrics(CollectorRegistry()))
    for step in history:
        if step is None:
            book = Book(store, Metrics(CollectorRegistry()), states_cached_max=1)
        elif isinstance(step, Echo):
            await tell(book, step)
            ledger.echo(step)
        elif isinstance(step, Told):
            await book.submit(Account, step.account, decided(step.command()))
            ledger.tell(step)
        else:
            expected = [ledger.ask(ask) for ask in step]
            assert await asyncio.gather(*(said_to(book, ask) for ask in step)) == expected
    for name, length in ledger.length.items():
        state = await book.state_of(Account, name)
        assert (state.answers.revision + 1 if state else 0) == length
        if state:
            assert state.credited_nano == ledger.credited[name]
            assert state.status.value == ledger.status[name]
            owed = Owed(ledger.emergency[name], ledger.debt[name], ledger.share[name])
            assert state.owed == owed
            assert state.used == ledger.used[name]
    stored = await store.read_all(FROM_START, 10**6)
    check_stream_chain(stored)
    add_up(stored)


def add_up(stored: list[StoredEvent]) -> None:  # noqa: C901 - one a kind of event
    """Hold each event's totals against the one before: nothing is made up, nothing lost."""
    credited: Counter[str] = Counter()
    lent: Counter[str] = Counter()
    debts: Counter[str] = Counter()
    used = {"A": Usage(), "B": Usage()}
    stands: Counter[tuple[str, str]] = Counter()
    today, before = TrialBalance(), TrialBalance()
    for event in map(event_of, stored):
        if isinstance(event, MoneyEvent):
            # Postings are what an event of before there were any is read as.
            had_none = isinstance(event, CreditSold | EmergencyGranted | DebtSet)
            old = replace(event, postings=None) if had_none else event
            assert before.postings_of(old) == today.postings_of(event) == event.postings
            before.add(old)
            today.add(event)
            for posting in event.postings or ():
                stands[event.account_id, posting.account] += posting.amount_nano
            assert sum(line.balance_nano for line in today.books["LE1", "CNY"].values()) == 0
        if isinstance(event, UsagePosted):
            used[event.account_id] = event.usage
        if isinstance(event, DebtSet):
            debts[event.account_id] = event.debt_minor
        if isinstance(event, CreditSold):
            debts[event.account_id] -= event.recovered_debt_minor or 0
            emergency_minor = event.recovered_emergency_minor or 0
            recovered_minor = emergency_minor + (event.recovered_debt_minor or 0)
            credit_nano = event.credited_nano - credited[event.account_id]
            assert event.amount_minor * NANO == recovered_minor * NANO + credit_nano
            lent[event.account_id] -= emergency_minor
            assert 0 <= lent[event.account_id] == event.emergency_left_minor
        elif isinstance(event, EmergencyGranted):
            assert event.credited_nano == credited[event.account_id] + event.amount_nano
            assert event.amount_nano == event.amount_minor * NANO
            lent[event.account_id] += event.amount_minor
            assert lent[event.account_id] == EMERGENCY_MINOR
        elif isinstance(event, RemainderRounded):
            left_nano = credited[event.account_id] - used[event.account_id].charged_nano
            assert 0 < abs(event.amount_nano) < NANO
            assert left_nano == event.amount_nano
            assert event.credited_nano == used[event.account_id].charged_nano
        if isinstance(event, CreditSold | EmergencyGranted | RemainderRounded):
            credited[event.account_id] = event.credited_nano
        for name in ("A", "B"):
            assert (
                stands[name, "liabilities:prepayment"] == used[name].charged_nano - credited[name]
            )
            assert stands[name, "liabilities:tax"] == -used[name].tax_nano
            assert stands[name, "income:electricity:energy"] == -used[name].energy_nano
            assert stands[name, "assets:emergency-credit"] == lent[name] * NANO
            assert stands[name, "assets:receivable"] == debts[name] * NANO
    assert today.books == before.books


AMOUNTS = st.sampled_from([1, 250, 10**6, INT64_MAX // NANO // 2, INT64_MAX // NANO, INT64_MAX])
DEBTS = st.sampled_from([0, 1, 77, 10**6, INT64_MAX // NANO, INT64_MAX])
SHARES = st.sampled_from([1, 2000, 333_333, 500_000, 10**6])


def asks_of(name: str) -> st.SearchStrategy[Ask]:
    callers, numbers = st.sampled_from(["till", "web"]), st.integers(0, 9)
    sell = st.builds(Ask, st.just("sell"), st.just(name), callers, numbers, AMOUNTS)
    owe = st.builds(Ask, st.just("owe"), st.just(name), callers, numbers, DEBTS, SHARES)
    plain = st.sampled_from(["open", "grant", "grant", "promise", "close"])
    rest = st.builds(Ask, plain, st.just(name), callers, numbers)
    return st.one_of(sell, sell, sell, owe, rest, rest)


USAGE = st.builds(Usage, *[st.sampled_from([0, 3, 10**9, 2 * 10**9, -5])] * len(COMPONENTS))


def steps_of(name: str) -> st.SearchStrategy[Step]:
    return st.one_of(
        st.lists(asks_of(name), min_size=1, max_size=8),
        st.lists(asks_of(name), min_size=1, max_size=8),
        st.builds(Echo, st.just(name), st.sampled_from([0, 0, 5, -5, NANO])),
        st.builds(Told, st.just(name), st.integers(0, 9), USAGE),
        st.none(),
    )


OPENED: list[Step] = [
    [Ask("open", "A", "opener", 100)],
    [Ask("open", "B", "opener", 101)],
]


@given(st.booleans(), st.lists(st.one_of(steps_of("A"), steps_of("B")), max_size=20))
@settings(max_examples=150, deadline=None)
def test_every_answer_is_the_one_that_a_ledger_on_paper_gives(
    opened: bool, history: list[Step]
) -> None:
    asyncio.run(follow([*(OPENED if opened else []), *history]))
