"""The office beside the clerk: asks both, lets the process die, and compares what both have."""

import asyncio
import tempfile
from collections import Counter
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant

from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import name_uuid
from services.vending.application.stored import event_of
from services.vending.domain.approval import Approve, Decline
from services.vending.domain.authority import (
    PROPOSALS_LAST_MS_DEFAULT,
    rules_text,
)
from services.vending.domain.batch import Exported
from services.vending.domain.decisions import Request
from services.vending.domain.events.accounts import AccountMeterJoined, AccountMeterLeft
from services.vending.domain.events.event import Event, MoneyEvent
from services.vending.domain.events.meters import MeterAssigned, MeterReplaced
from services.vending.domain.postings import Usage
from services.vending.domain.refund import LASTS_MS_DEFAULT
from services.vending.domain.settling import SettleClosing
from services.vending.domain.site import RegisterSite
from services.vending.domain.trial_balance import TrialBalance
from services.vending.domain.usage import PostUsage
from tests.property.vending_cards import PREPAID, Card
from tests.property.vending_clerk import Clerk
from tests.property.vending_counter import HOLDING, answered, said_of_policy
from tests.property.vending_ledger import CHART
from tests.property.vending_paper import (
    ALONE,
    BATCHES,
    CLOSINGS,
    HOLDS,
    KEPT,
    MOVES,
    VERSIONS,
    Ask,
)
from tests.unit import vending_world
from tests.unit.vending_crashing import Died, MortalStore, mortal_in
from tests.unit.vending_world import World

NANO, MINUTE_MS = 10**7, 60_000
ACCOUNTS, PERSONS = ("A1", "A2"), ("u-alice", "u-bob", "u-carl")
METERS = ("M1", "M2")
RELAYS_A_MINUTE = 1_000
"""No batch waits for the site here: its budget is test_vending_batch_laws.py's."""


def of_town(names: Any) -> st.SearchStrategy[Any]:
    """Return a choice of what there is in the town by then."""
    return st.runner().flatmap(lambda town: st.sampled_from(names(town)))


def another_than(person: str) -> str:
    return min({*PERSONS} - {person})


class Beside(RuleBasedStateMachine):
    """An office on a real store, and a clerk who says what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clerk = Clerk()
        self.deadlines: dict[str, int] = {}
        self.said: dict[Ask, str] = {}
        self.waiting: dict[Ask, str] = {}
        self.expires: dict[Ask, int] = {}
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
        self.world.clock.at_ms = self.clerk.now_ms

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

    def goes_on(self) -> None:
        """Let all be completed that is half done, in as many processes as it needs.

        Before a meter leaves whose device was replaced, metering is asked, and knows of nothing
        that waits.
        """

        async def looked() -> bool:
            await self.world.office.complete()
            if self.store.dead:  # which each step keeps to itself
                raise Died
            told = [await self.told_of_devices(name) for name in self.clerk.shut]
            return any(told)

        while self.run(self.until_answered(looked)):
            pass

    async def told_of_devices(self, name: str) -> bool:
        """Answer what metering is asked of an account before a meter leaves; say whether it was."""
        closing = (await self.world.office.account(name)).closing
        if closing is None or not (closing.hold_id and closing.before_leaving):
            return False
        meters = [await self.world.office.meter(meter_id) for meter_id in closing.meters]
        stands = [{"meter_id": meter.meter_id, "epoch": meter.epoch} for meter in meters]
        known, at_ms = self.clerk.sequence[name], self.clerk.now_ms
        asked = Request("~vending", closing.hold_id, b"", at_ms)
        used = PostUsage(asked, name, known, Usage(), 0, 1, 1, stands, b"row", 9, at_ms)
        echo = SettleClosing(name, closing.hold_id, 0, known, len(stands), at_ms, used)
        await self.world.office.settle(echo)
        return True

    def later(self) -> None:
        """Let the clock go on: what comes is not at the instant of what was."""
        self.clerk.now_ms += 1
        self.world.clock.at_ms = self.clerk.now_ms

    def passes(self, minutes: int) -> None:
        """Let time pass, and what is due by then happen."""
        self.clerk.now_ms += minutes * MINUTE_MS
        self.world.clock.at_ms = self.clerk.now_ms
        self.goes_on()
        for name in [n for n in self.clerk.holding if self.deadlines[n] <= self.clerk.now_ms]:
            self.ends(self.clerk.holding.pop(name), "NO_ECHO_IN_TIME")
        for ask, answer in self.waiting.items():
            if answer == "APPROVAL_REQUIRED" and self.expires[ask] <= self.clerk.now_ms:
                self.waiting[ask] = "APPROVAL_EXPIRED"

    def gives_rounds(self, dies_at: int | None = None) -> None:
        """Let batches go on, and look at what came of each target."""
        self.later()
        if dies_at is not None:
            self.store.arm(dies_at)
        self.clerk.turn()
        self.takes_turns()
        for batch, wanted in self.clerk.results.items():
            _, results = self.run(self.world.office.batches.results(batch.batch_id))
            assert [results[n].reason or "done" for n in range(len(wanted))] == wanted, batch
            told = {n: result.export for n, result in results.items() if result.export}
            assert told == (self.exported(batch) if batch.what == "batch export" else {})

    def exported(self, batch: Ask) -> dict[int, Exported]:
        """Return what was written of each meter of an export, by its number."""
        exports: Any = self.world.office.batches.exporting.exports
        kept = exports.part.kept
        meters = enumerate(batch.about.split())
        return {number: kept[batch.batch_id, meter_id] for number, meter_id in meters}

    def takes_turns(self) -> None:
        """Let batches go on until nothing is to do."""

        async def turned() -> None:
            while await self.world.office.batches.turn():
                pass
            if self.store.dead:
                raise Died

        self.run(self.until_answered(turned))

    def teardown(self) -> None:
        self.run(self.stack.aclose())
        self.loop.close()
        self.folder.cleanup()

    async def begin(self) -> None:
        """Open a book of two accounts, whose legal entity says what one person may do."""
        await self.start()
        world = self.world
        site = ("S1", "Mall", "Asia/Shanghai", "CNY", "LE1", RELAYS_A_MINUTE)
        await world.office.register_site(RegisterSite(world.ask(), *site))
        await world.gateway()
        for unit, meter_id in enumerate(METERS, 1):
            await world.meter(meter_id, unit=unit)
            self.clerk.cards[meter_id] = Card(f"serial-{meter_id}")
        for name, said in VERSIONS.items():
            if name.startswith("T"):
                await world.tariff(name, price_micro=int(said))
            else:
                await world.policy(name, legal_entity="LE1", **said_of_policy(name, said))
        for name in ACCOUNTS:
            await world.account(name)
            self.clerk.status[name], self.clerk.terms[name] = "open", {"T": "T1", "P": "P1"}
        await world.may_alone(rules_text(ALONE))

    # --- the desk ----------------------------------------------------------------------------

    def new(
        self, what: str, account: str, person: str, amount: int = 0, about: str = "", **more: int
    ) -> Ask:
        return Ask(what, account, person, len(self.asks), amount, about, **more)

    def ask_two(self, ask: Ask, soon: bool) -> None:
        """Ask; `soon`: another person approves it at once, where that is needed."""
        self.ask(ask)
        if soon and self.waiting.get(ask) == "APPROVAL_REQUIRED":
            self.judges(ask, another_than(ask.person), yes=True)

    def ask(self, ask: Ask) -> None:
        """Ask the office, and hold its answer against the clerk's."""
        clerk = self.clerk
        known = clerk.steps.get(ask) or self.said.get(ask) or self.waiting.get(ask)
        expected = known or self.by_clerk(ask)
        batch_id = clerk.batch(ask.about).batch_id if ask.what in HOLDING else ""
        got = self.run(self.until_answered(lambda: answered(self.world, ask, batch_id)))
        assert got == expected, ask

    def by_clerk(self, ask: Ask) -> str:
        if ask not in self.asks:
            self.asks.append(ask)
        refusal = self.clerk.refusal(ask)
        if not refusal and self.clerk.needs_two(ask):
            self.waits(ask)
            return "APPROVAL_REQUIRED"
        return self.happens(ask, refusal)

    def waits(self, ask: Ask) -> None:
        """Let a proposal wait for a second person."""
        self.waiting[ask] = "APPROVAL_REQUIRED"
        self.expires[ask] = self.clerk.now_ms + PROPOSALS_LAST_MS_DEFAULT
        self.clerk.name(ask)
        if ask.what in BATCHES:
            self.clerk.draft(ask)

    def happens(self, ask: Ask, refusal: str) -> str:
        clerk = self.clerk
        if ask.what in BATCHES:
            clerk.draft(ask)
        if not refusal:
            clerk.write(ask, str(name_uuid("receipt", *ask.request.key)))
        held = ask.what in HOLDS and not refusal
        if held:
            self.deadlines[ask.account] = clerk.now_ms + LASTS_MS_DEFAULT
        if ask.what in CLOSINGS and not refusal:
            return clerk.steps[ask]
        answer = refusal or ("UNAVAILABLE" if held else "done")
        if not refusal or ask.what in KEPT:
            self.said[ask] = answer
        return answer

    def judges(self, ask: Ask, person: str, yes: bool) -> None:
        number = -1 - len(self.judged)
        self.judged.append((ask, person))
        request = Ask("judge", ask.proposal_id, person, number).request

        async def asked() -> str:
            office = self.world.office.approvals
            try:
                if yes:
                    return (await office.approve(Approve(request, ask.proposal_id, "y"))).status
                return (await office.decline(Decline(request, ask.proposal_id, "n"))).status
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
            refusal = self.clerk.refusal_by_two(ask)
            self.waiting[ask] = self.happens(ask, refusal)
            assert answer == ("failed" if refusal else "executed"), ask
            if ask.what in {"give", "policy", *MOVES}:  # what comes of it is due
                self.goes_on()

    def ends(self, ask: Ask, answer: str) -> None:
        """Let what waited for metering come to its answer."""
        self.said[ask] = answer
        if ask in self.waiting:
            self.waiting[ask] = answer

    # --- the laws ----------------------------------------------------------------------------

    @invariant()
    def the_book_says_what_the_ledger_says(self) -> None:
        if not hasattr(self, "world"):
            return

        async def looked() -> tuple[list[Any], list[Any], list[Any]]:
            office = self.world.office
            states = [await office.account(name) for name in self.clerk.status]
            meters = [await office.meter(meter_id) for meter_id in METERS]
            return states, meters, await self.world.store.read_all(0, 10_000)

        states, meters, stored = self.run(looked())
        stands = self.clerk.ledger.stands
        all_events: list[Event] = [event_of(each) for each in stored]
        events = [event for event in all_events if isinstance(event, MoneyEvent)]
        assert TrialBalance(events).off_nano() == {}
        assert sum(stands.values()) == 0
        for state in states:
            own = [event for event in events if event.account_id == state.account_id]
            self.stands_as_in_the_ledger(state, own)
            self.is_as_the_clerk_says(state)
        for meter in meters:
            self.is_as_on_its_card(meter, all_events)

    def stands_as_in_the_ledger(self, state: Any, events: list[Any]) -> None:
        name, stands = state.account_id, self.clerk.ledger.stands
        of_account = TrialBalance(events)
        assert of_account.off_nano() == {}
        lines = of_account.books.get(("LE1", "CNY"), {})
        told = {account: line.balance_nano for account, line in lines.items()}
        wanted = {CHART[what]: at * NANO for (what, of), at in stands.items() if of == name}
        assert {**dict.fromkeys(wanted, 0), **told} == {**dict.fromkeys(told, 0), **wanted}
        used = -stands["energy", name] - stands["tax", name]
        assert state.credited_nano == (used - stands["prepaid", name]) * NANO

    def is_as_the_clerk_says(self, state: Any) -> None:
        name, clerk = state.account_id, self.clerk
        assert state.owed.emergency_minor == clerk.owed(name, "emergency")
        assert state.owed.debt_minor == clerk.owed(name, "debt")
        assert state.used.account_sequence == clerk.sequence[name]
        assert state.status.value == clerk.status[name]
        joined = {each.meter_id: (each.epoch, each.opening_register_milli) for each in state.meters}
        assert joined == {meter_id: clerk.cards[meter_id].joined for meter_id in clerk.has(name)}
        assert [state.tariff_id, state.policy_id] == list(clerk.terms[name].values())

    def is_as_on_its_card(self, meter: Any, events: list[Event]) -> None:
        """Compare a meter, and what its accounts were told of it: one has it, and none a jump."""
        card = self.clerk.cards[meter.meter_id]
        registers = meter.opening_register_milli, meter.closing_register_milli
        forced = meter.forced or PREPAID
        said = meter.account_id, meter.epoch, meter.serial, *registers, forced, meter.closing_id
        assert said == card.says(meter.meter_id)
        owner, used = "", Counter[str]()
        for event in events:
            match event:
                case MeterAssigned(meter_id=meter.meter_id):
                    owner = "" if event.is_house else event.account_id
                case MeterReplaced(meter_id=meter.meter_id):
                    used[owner] += event.closing_register_milli - event.opening_register_milli
                case AccountMeterJoined(meter_id=meter.meter_id):
                    used[event.account_id] -= event.register_milli
                case AccountMeterLeft(meter_id=meter.meter_id):
                    used[event.account_id] += event.register_milli
        of_accounts = {name: milli for name, milli in card.used.items() if name}
        assert {name: milli for name, milli in used.items() if name} == of_accounts
