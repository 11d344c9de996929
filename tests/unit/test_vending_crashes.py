"""Goal: wherever a process dies, what it was about is done once, and as if nothing had happened.

Method: the moves of meters, the numbers of receipts and the round of usage, each told again with a
death at every one of its half steps: before and after each append, each write to the tables and
each batch that is published. Other processes have such a test beside their own; docs/reliability.md
lists all of them.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.common.kernel.errors import InvalidInput
from services.vending.application import numbering as numbering_module
from services.vending.application.numbering import Numbering
from services.vending.application.stored import event_of
from services.vending.domain.decisions import Request
from tests.unit import vending_world
from tests.unit.test_vending_office import assign_and_crash, closing
from tests.unit.test_vending_usage import Round, posted
from tests.unit.vending_crashing import Died, Mortal, MortalStore, at_every_step, mortal, told_by
from tests.unit.vending_world import World

SALES = 4


def asked(world: World, number: int, *content: object) -> Request:
    """Return a request that a caller repeats."""
    return world.ask(*content, request_id=UUID(int=number))


async def two_accounts(world: World) -> None:
    await world.mall()
    await world.account("A2")


async def nothing_half_done(world: World) -> None:
    assert await world.tables.todos() == []
    assert await world.office.complete() == 0


async def test_a_meter_that_is_assigned_and_released_again_is_whole_wherever_it_dies(
    tmp_path: Path,
) -> None:
    async def story(world: World) -> None:
        await world.office.assign_meter(asked(world, 1, "A1"), "M1", "A1", 1000)
        await world.office.release_meter(asked(world, 2), "M1", 2000)
        await world.office.assign_meter(asked(world, 3, "A2"), "M1", "A2", 2500)

    async def judge(world: World) -> None:
        await nothing_half_done(world)
        states = [await world.office.account(name) for name in ("A1", "A2")]
        assert [[m.meter_id for m in state.meters] for state in states] == [[], ["M1"]]
        meter = await world.office.meter("M1")
        assert (meter.epoch, meter.account_id, meter.opening_register_milli) == (4, "A2", 2500)

    # Three moves of the meter; three accounts that hear of one: an append each.
    assert await at_every_step(tmp_path, two_accounts, story, judge) == 12


async def test_a_meter_that_its_account_cannot_take_is_home_again_wherever_it_dies(
    tmp_path: Path,
) -> None:
    async def setting(world: World) -> None:
        """Give the meter to an account, which is being closed before it hears of it."""
        await world.mall()
        await assign_and_crash(world, asked(world, 1, "A1"))
        await closing(world)

    async def story(world: World) -> None:
        with pytest.raises(InvalidInput, match="could not take meter M1"):
            await world.office.assign_meter(asked(world, 1, "A1"), "M1", "A1", 1000)

    async def judge(world: World) -> None:
        assert await world.tables.todos() == []
        meter = await world.office.meter("M1")
        assert (meter.is_house, meter.epoch) == (True, 3)
        assert not (await world.office.account("A1")).meters

    # The account's refusal is an append of nothing; the undoing, and the leaving that it causes.
    assert await at_every_step(tmp_path, setting, story, judge) >= 2


async def test_a_meter_that_is_replaced_goes_on_once_wherever_it_dies(tmp_path: Path) -> None:
    async def setting(world: World) -> None:
        await world.mall()
        await world.assign()

    async def story(world: World) -> None:
        await world.office.replace_meter(
            asked(world, 1),
            meter_id="M1",
            closing_register_milli=5000,
            opening_register_milli=7,
            serial="serial-new",
            unit=None,
            profile=None,
            ratio=None,
            max_power_w=None,
            reason="burnt",
        )
        await world.office.change_ratio(asked(world, 2), "M1", 40, 9, "new transformers")

    async def judge(world: World) -> None:
        await nothing_half_done(world)
        meter = await world.office.meter("M1")
        assert (meter.epoch, meter.serial, meter.ratio) == (4, "serial-new", 40)
        assert meter.opening_register_milli == 9
        assert [m.epoch for m in (await world.office.account("A1")).meters] == [2]

    assert await at_every_step(tmp_path, setting, story, judge) == 4


async def test_receipts_have_their_numbers_without_a_gap_wherever_it_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches of two events, each of which gives the numbers of both and where it stopped."""
    monkeypatch.setattr(numbering_module, "SCAN_EVENTS_MAX", 2)

    async def numbers(world: World) -> list[int]:
        receipts = [getattr(e, "receipt_id", "") for e in await events_of(world)]
        found = [await world.tables.document(receipt) for receipt in receipts if receipt]
        return [each.number for each in found if each]

    for dies_at in range(100):
        path = tmp_path / f"{dies_at}.sqlite"
        async with mortal(path) as (world, store):
            await world.mall()
            for _ in range(SALES):
                await world.sell(100)
            tables: Any = Mortal(world.tables, store, "keep_documents")
            store.arm(dies_at)
            with suppress(Died):
                await Numbering(world.store, tables).catch_up(await world.store.head())
        async with vending_world.world(path) as again:
            await Numbering(again.store, again.tables).catch_up(await again.store.head())
            assert await numbers(again) == list(range(1, SALES + 1))
            assert await again.tables.last_numbers() == {"LE1": SALES}
        if not store.dead:
            assert dies_at >= SALES, "nothing was given"
            return
    raise AssertionError("the numbering does not come to an end")


async def events_of(world: World) -> list[Any]:
    return [event_of(each) for each in await world.store.read_all(0, 1000)]


@asynccontextmanager
async def asking(path: Path, dies_at: int) -> AsyncIterator[tuple[Round, MortalStore]]:
    """Open a vending whose round of usage dies at a half step."""
    async with mortal(path) as (world, store):
        if not await world.store.head():
            await two_accounts(world)
        vending = Round(world)
        vending.relay._publisher = vending.notebook
        statements: Any = vending.statements
        statements._relay = Reached()
        statements._tables = Mortal(world.tables, store, "keep_asks", "keep_answer")
        statements._publisher = Mortal(vending.notebook, store, "publish")
        store.arm(dies_at)
        yield vending, store


class Reached:
    """A relay that has told everything."""

    async def reached(self, position: int) -> None:
        assert position


async def test_usage_is_asked_and_posted_once_wherever_it_dies(tmp_path: Path) -> None:
    """What was published is answered in the end, also what nobody remembers to have asked."""
    books = []
    for dies_at in range(100):
        path, records = tmp_path / f"{dies_at}.sqlite", []
        for life in (dies_at, 1000):
            async with asking(path, life) as (vending, store):
                for name in ("A1", "A2"):
                    vending.metering.uses(name, energy=5)
                with suppress(Died):
                    await vending.statements.step()
                records += [each for each in vending.notebook.records if each not in records]
                with suppress(Died):
                    for record in records:
                        await vending.answer(record)
                if life == dies_at:
                    is_over = not store.dead
        async with vending_world.world(path) as again:
            events = await posted(again)
            assert sorted(event.account_id for event in events) == ["A1", "A2"]
            assert await again.tables.asks_waiting(0) == 0
            books.append(await told_by(again))
        if is_over:
            assert all(book == books[-1] for book in books)
            # Published, kept; of each account an append and an answer.
            assert dies_at == 12
            return
    raise AssertionError("the round does not come to an end")
