"""Goal: a meter has one owner, whatever is ordered, refused, crashed and repeated.

Method: Hypothesis draws histories of two meters and two accounts: assignments (some cut off by a
crash after the meter's stream has decided), moves from account to account, releases, replacements,
new ratios, orders, restarts; and two accounts that ask for one meter at once.
A clerk's card of each meter says what every answer must be; the office on a real file must give it,
and after each step no account has what the card does not say.
"""

import asyncio
import tempfile
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.errors import InvalidInput
from services.vending.application.stored import event_of
from services.vending.domain.account import Account
from services.vending.domain.events.accounts import AccountMeterJoined, AccountMeterLeft
from services.vending.domain.events.meters import MeterAssigned, MeterRatioChanged, MeterReplaced
from services.vending.domain.facts import fact_of
from services.vending.domain.meter import Meter
from services.vending.domain.streams import evolve_of, stream_of
from tests.property.metering_runs import examples
from tests.unit import vending_world
from tests.unit.test_vending_office import assign_and_crash
from tests.unit.test_vending_orders import Desk

METERS, ACCOUNTS = ("M1", "M2"), ("A1", "A2")
REGISTERS = {"assign": 1_000, "crash": 1_000, "both": 1_000, "move": 3_000, "release": 2_000}
REGISTERS |= {"ratio": 5_000, "replace": 30}
"""At what an epoch begins that a step begins; all but a replacement end the one before there."""
SERIALS = ("one", "two")
NEXT_EPOCH = (MeterAssigned, MeterReplaced, MeterRatioChanged)


@dataclass(frozen=True)
class Step:
    """`what` happens to a meter.

    assign, crash (after deciding to assign), move (from `account`), both (accounts ask at once),
    release, replace, ratio, force, restart.
    """

    what: str
    meter: str = "M1"
    account: str = "A1"
    serial: str = "one"
    ratio: int = 1
    position: str = "off"


@dataclass
class Card:
    """What a clerk writes on a meter's card. `owner`: "" for the house."""

    serial: str
    owner: str = ""
    epoch: int = 1
    ratio: int = 1
    forced: str = "prepaid"
    register_milli: int = 0

    def is_below(self, what: str) -> bool:
        """Say whether it ends where less was used than nothing: a second person must want it."""
        return bool(self.owner) and REGISTERS[what] < self.register_milli

    def answer(self, step: Step, others: list["Card"]) -> str:  # noqa: C901 - one a case
        """Say what is wrong with a step, or do it and say nothing."""
        match step.what:
            case "assign" | "crash":
                if self.owner:
                    return "METER_ALREADY_ASSIGNED"
                self.owner = step.account
            case "move":
                if self.owner != step.account:
                    return "METER_ALREADY_ASSIGNED" if self.owner else "METER_NOT_ASSIGNED"
                if self.is_below("move"):
                    return "APPROVAL_REQUIRED"
                self.owner = other_than(step.account)
            case "both":
                if self.owner:
                    return "METER_ALREADY_ASSIGNED METER_ALREADY_ASSIGNED"
                self.owner, self.epoch = step.account, self.epoch + 1
                self.register_milli = REGISTERS["both"]
                return " METER_ALREADY_ASSIGNED"
            case "release":
                if not self.owner:
                    return "METER_NOT_ASSIGNED"
                if self.is_below("release"):
                    return "APPROVAL_REQUIRED"
                self.owner = ""
            case "replace":
                if any(other.serial == step.serial for other in others):
                    return "SERIAL_TAKEN"
                self.serial = step.serial
            case "ratio":
                if self.ratio == step.ratio:
                    return "NOTHING_CHANGES"
                self.ratio = step.ratio
            case _:
                if self.forced == step.position:
                    return "NOTHING_CHANGES"
                self.forced = step.position
                return ""
        self.epoch, self.register_milli = self.epoch + 1, REGISTERS[step.what]
        return ""


def other_than(account: str) -> str:
    return next(name for name in ACCOUNTS if name != account)


async def said_to(desk: Desk, step: Step) -> str:
    try:
        match step.what:
            case "assign":
                await desk.assign(step.meter, step.account)
            case "move":
                to, request = other_than(step.account), desk.ask(step)
                await desk.office.assign_meter(
                    request, step.meter, to, REGISTERS["move"], step.account
                )
            case "both":
                first = Step("assign", step.meter, step.account)
                second = Step("assign", step.meter, other_than(step.account))
                return " ".join(await asyncio.gather(said_to(desk, first), said_to(desk, second)))
            case "crash":
                await assign_and_crash(desk, desk.ask(), step.account, step.meter)
            case "release":
                await desk.release(step.meter)
            case "replace":
                await desk.replace(meter_id=step.meter, serial=step.serial)
            case "ratio":
                await desk.ratio(step.ratio, REGISTERS["ratio"], step.meter)
            case _:
                await desk.force(step.position, step.meter)
    except InvalidInput as refused:
        return refused.reason.value
    return ""


async def check(desk: Desk, cards: dict[str, Card], *, told: bool) -> None:
    """Compare the book with the cards; `told`: no account has anything left to hear."""
    for name, card in cards.items():
        state = await desk.office.meter(name)
        assert (state.epoch, state.serial, state.ratio) == (card.epoch, card.serial, card.ratio)
        assert (state.forced or "prepaid") == card.forced
        assert ("" if state.is_house else state.account_id) == card.owner
        has = [a for a in ACCOUNTS if (await desk.office.account(a)).has(name)]
        assert len(has) <= 1
        if told:
            assert has == ([card.owner] if card.owner else [])


async def check_stream(desk: Desk, name: str) -> None:
    """Follow a meter's stream: epochs are dense, owners change by assignment alone."""
    stream, before = stream_of(Meter, name), None
    for stored in await desk.store.read(stream):
        event = event_of(stored)
        after = evolve_of(stream)(before, event)
        assert isinstance(after, Meter)
        if isinstance(before, Meter):
            raised = isinstance(event, NEXT_EPOCH)
            assert after.epoch == before.epoch + raised
            if not isinstance(event, MeterAssigned):
                assert (after.account_id, after.shard) == (before.account_id, before.shard)
            record = fact_of(after, book_epoch=1, shards=8).record
            if raised:
                assert record["previous_epoch"] == before.epoch
                assert record["previous_account_id"] == before.account_id
                assert record["previous_shard"] == before.shard
        before = after


async def check_registers(desk: Desk, name: str) -> None:
    """Follow a meter's moves: one register ends it in one account and begins it in the other."""
    told = [
        event
        for account in ACCOUNTS
        for event in map(event_of, await desk.store.read(stream_of(Account, account)))
        if isinstance(event, AccountMeterJoined | AccountMeterLeft) and event.meter_id == name
    ]
    before: Meter | None = None
    for event in map(event_of, await desk.store.read(stream_of(Meter, name))):
        after = evolve_of(stream_of(Meter, name))(before, event)
        assert isinstance(after, Meter)
        if isinstance(event, MeterAssigned):
            register = event.register_milli
            assert (after.closing_register_milli, after.opening_register_milli) == (register,) * 2
            left = (event.previous_account_id, event.epoch - 1)
            came = (event.account_id, event.epoch)
            heard = {
                (each.account_id, each.epoch): each.register_milli
                for each in told
                if isinstance(each, AccountMeterJoined) == ((each.account_id, each.epoch) == came)
            }
            for who in (left, came):
                assert who[0] not in ACCOUNTS or heard[who] == register, "what is told is the same"
        before = after


async def follow(history: list[Step], path: Path) -> None:
    cards = {name: Card(f"serial-{name}") for name in METERS}
    async with vending_world.world(path) as opened:
        await opened.mall()
        await opened.meter("M2", unit=2)
        await opened.account("A2")
    for is_restart, steps in groupby(history, lambda step: step.what == "restart"):
        if is_restart:
            continue
        async with vending_world.world(path) as opened:
            desk = Desk(**vars(opened))
            await desk.office.complete()
            for step in steps:
                others = [card for name, card in cards.items() if name != step.meter]
                assert await said_to(desk, step) == cards[step.meter].answer(step, others)
                await check(desk, cards, told=not await desk.tables.todos())
            await desk.office.complete()
            await check(desk, cards, told=True)
            for name in METERS:
                await check_stream(desk, name)
                await check_registers(desk, name)


def any_step() -> st.SearchStrategy[Step]:
    moves = ["assign", "assign", "crash", "move", "move", "both", "release", "restart"]
    orders = ["replace", "replace", "replace", "ratio", "force"]
    return st.builds(
        Step,
        st.sampled_from(moves + orders),
        st.sampled_from(METERS),
        st.sampled_from(ACCOUNTS),
        st.sampled_from(SERIALS),
        st.integers(1, 2),
        st.sampled_from(["off", "on", "prepaid"]),
    )


@given(st.lists(any_step(), min_size=1, max_size=12))
@examples(60)
def test_a_meter_has_one_owner_dense_epochs_and_registers_that_meet_whatever_is_ordered(
    history: list[Step],
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(follow(history, Path(directory) / "events.sqlite"))
