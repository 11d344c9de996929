"""The office beside the clerk: asks both, lets the process die, and compares what both have."""

import asyncio
import tempfile
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis.stateful import RuleBasedStateMachine, invariant

from services.common.kernel.ids import name_uuid
from services.vending.adapters.tables import event_of
from services.vending.domain.authority import (
    PROPOSALS_LAST_MS_DEFAULT,
    PublishAuthority,
    rules_text,
)
from services.vending.domain.events.event import Event, MoneyEvent
from services.vending.domain.refund import LASTS_MS_DEFAULT
from services.vending.domain.trial_balance import TrialBalance
from tests.property.vending_clerk import Clerk
from tests.property.vending_counter import MOVES, answered, said_of_policy
from tests.property.vending_ledger import CHART
from tests.property.vending_paper import ALONE, BATCHES, CLOSINGS, HOLDS, KEPT, VERSIONS, Ask
from tests.unit import vending_world
from tests.unit.vending_crashing import Died, MortalStore, mortal_in
from tests.unit.vending_world import World

NANO = 10**7
ACCOUNTS, PERSONS = ("A1", "A2"), ("u-alice", "u-bob", "u-carl")
METERS = ("M1", "M2")


class Beside(RuleBasedStateMachine):
    """An office on a real store, and a clerk who says what it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clerk = Clerk()
        self.registers = dict.fromkeys(METERS, 1_000)
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
        """Let all be completed that is half done, in as many processes as it needs."""

        async def looked() -> None:
            await self.world.office.complete()
            if self.store.dead:  # which each step keeps to itself
                raise Died

        self.run(self.until_answered(looked))

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
        await world.site()
        await world.gateway()
        for unit, meter_id in enumerate(METERS, 1):
            await world.meter(meter_id, unit=unit)
            self.clerk.meters[meter_id] = ""
        for name, said in VERSIONS.items():
            if name.startswith("T"):
                await world.tariff(name, price_micro=int(said))
            else:
                await world.policy(name, legal_entity="LE1", **said_of_policy(name, said))
        for name in ACCOUNTS:
            await world.account(name)
            self.clerk.status[name], self.clerk.terms[name] = "open", {"T": "T1", "P": "P1"}
        document = PublishAuthority(world.ask(), "LE1", "CNY", rules_text(ALONE), 0)
        await world.office.publish_authority(document)

    # --- the desk ----------------------------------------------------------------------------

    def new(
        self, what: str, account: str, person: str, amount: int = 0, about: str = "", **more: int
    ) -> Ask:
        return Ask(what, account, person, len(self.asks), amount, about, **more)

    def ask(self, ask: Ask) -> None:
        """Ask the office, and hold its answer against the clerk's."""
        clerk = self.clerk
        known = clerk.steps.get(ask) or self.said.get(ask) or self.waiting.get(ask)
        expected = known or self.by_clerk(ask)
        batch_id = clerk.batch(ask.about).batch_id if ask.what in MOVES else ""
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

        async def looked() -> tuple[list[Any], list[Any]]:
            states = [await self.world.office.account(name) for name in self.clerk.status]
            return states, await self.world.store.read_all(0, 10_000)

        states, stored = self.run(looked())
        stands = self.clerk.ledger.stands
        all_events: list[Event] = [event_of(each) for each in stored]
        events = [event for event in all_events if isinstance(event, MoneyEvent)]
        assert TrialBalance(events).off_nano() == {}
        assert sum(stands.values()) == 0
        for state in states:
            own = [event for event in events if event.account_id == state.account_id]
            self.stands_as_in_the_ledger(state, own)
            self.is_as_the_clerk_says(state)

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
        assert {meter.meter_id for meter in state.meters} == set(clerk.has(name))
        assert [state.tariff_id, state.policy_id] == list(clerk.terms[name].values())
