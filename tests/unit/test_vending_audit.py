"""Goal: an auditor finds who did what, when, from where and by whose approval, and misses nothing.

Method: a day of tills, persons and approvals on a real file. What the query yields, whole and in
pages, is compared with a filter over everything; the command is read as a person reads it.
"""

import argparse
import asyncio
import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.errors import WattvendError
from services.vending import audit, commands
from services.vending.adapters import stores
from services.vending.application import auditing
from services.vending.application.auditing import MARGIN_MS, Entry, Sought, entry_of, trail
from services.vending.application.relay import START
from services.vending.config import VendingSettings
from services.vending.domain.event_store import FROM_START, NO_EVENTS, StoredEvent
from services.vending.domain.origin import Origin
from services.vending.domain.tables import Checkpoint
from tests.contract.event_store import A, new
from tests.property.metering_runs import examples
from tests.unit import vending_world
from tests.unit.test_vending_copy import DEADLINE_S, Busy
from tests.unit.test_vending_relay import Notebook, published
from tests.unit.vending_world import T0_MS

STEP_MS = 600_000
DAY_MS = 86_400_000
ORIGINS = (
    Origin("till", "u-1", "10.0.3.7"),
    Origin("till", "u-2", "10.0.3.8"),
    Origin("office", "u-1", "10.0.4.1", "office u-3"),
)


async def _book(path: Path) -> None:
    """Sell every ten minutes for some hours; checkpoints are written all along."""
    async with vending_world.world(path) as world:
        await world.mall()
        await world.account("A2")
        begin = START
        for number in range(36):
            world.clock.at_ms += STEP_MS
            origin = ORIGINS[number % len(ORIGINS)]
            account = "A1" if number % 4 else "A2"
            request = world.ask(number, caller=origin.caller, origin=origin)
            await world.sell(100 + number, account, request=request)
            if number % 5 == 0:
                await published(world, Notebook(), begin=begin)
                begin = (await world.tables.checkpoints())[-1].root


@cache
def book() -> Path:
    path = vending_world.lasting_folder() / "events.sqlite"
    asyncio.run(_book(path))
    return path


async def _found(path: Path, sought: Sought, after: int, limit: int) -> list[Entry]:
    found: list[Entry] = []
    async with stores.reading(f"sqlite:{path}", "test") as stored:
        async for entry in trail(stored.store, stored.tables, sought, after):
            found.append(entry)
            if len(found) == limit:
                break
    return found


def found(sought: Sought, after: int = FROM_START, limit: int = 1000) -> list[Entry]:
    return asyncio.run(_found(book(), sought, after, limit))


async def _everything(path: Path) -> list[Entry]:
    async with stores.reading(f"sqlite:{path}", "test") as stored:
        return [entry_of(event) for event in await stored.store.read_all(FROM_START, 1000)]


@cache
def everything() -> list[Entry]:
    return asyncio.run(_everything(book()))


instants = st.none() | st.integers(-6, 42).map(lambda steps: T0_MS + steps * STEP_MS)
sought = st.builds(
    Sought,
    stream=st.sampled_from(["", "account-A1", "account-A2", "account-A9"]),
    caller=st.sampled_from(["", "till", "office"]),
    actor=st.sampled_from(["", "u-1", "u-2"]),
    approved_by=st.sampled_from(["", "office u-3"]),
    type=st.sampled_from(["", "credit-sold", "meter-registered"]),
    since_ms=instants,
    until_ms=instants,
)


@given(sought, st.integers(1, 5))
@examples(150)
def test_what_is_found_whole_and_in_pages_is_what_a_filter_over_everything_finds(
    wanted: Sought, page: int
) -> None:
    expected = [entry for entry in everything() if wanted.has(entry)]
    assert found(wanted) == expected
    paged: list[Entry] = []
    while entries := found(wanted, paged[-1].position if paged else FROM_START, page):
        paged += entries
    assert paged == expected


def test_a_span_of_time_is_not_sought_in_the_whole_book(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def noted(event: StoredEvent) -> Entry:
        seen.append(event.position)
        return entry_of(event)

    monkeypatch.setattr(auditing, "SCAN_EVENTS_MAX", 1)
    monkeypatch.setattr(auditing, "entry_of", noted)
    middle = T0_MS + 18 * STEP_MS
    assert len(found(Sought(since_ms=middle, until_ms=middle + STEP_MS))) == 1
    assert MARGIN_MS // STEP_MS < len(seen) < len(everything()) - 10


@pytest.mark.parametrize("wrong_ms", [3 * DAY_MS, -3 * DAY_MS])
async def test_a_clock_that_was_wrong_for_a_while_hides_nothing_from_an_auditor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong_ms: int
) -> None:
    """A checkpoint of then stands between events of the right time: before a span, and after it."""
    monkeypatch.setattr(auditing, "SCAN_EVENTS_MAX", 1)  # as if what follows lay 5,000 events on
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        begin = START
        for minute, clock_ms in enumerate((0, wrong_ms, 0)):  # e.g. no NTP after a power cut
            world.clock.at_ms = T0_MS + clock_ms + minute * 60_000
            await world.sell(100 + minute)
            await published(world, Notebook(), begin=begin)
            begin = (await world.tables.checkpoints())[-1].root
        events = [entry_of(event) for event in await world.store.read_all(FROM_START, 1000)]
        for wanted in (
            Sought(type="credit-sold", since_ms=T0_MS, until_ms=T0_MS + DAY_MS),
            Sought(type="credit-sold", since_ms=T0_MS),
            Sought(type="credit-sold", until_ms=T0_MS + DAY_MS),
        ):
            expected = [entry for entry in events if wanted.has(entry)]
            found = [entry async for entry in trail(world.store, world.tables, wanted, FROM_START)]
            assert found == expected
            assert len(found) >= 2


@pytest.mark.parametrize("sought", [Sought(), Sought(stream="account-A1")])
def test_a_page_behind_a_position_that_is_none_is_refused_by_every_store_alike(
    sought: Sought,
) -> None:
    """A KurrentDB was said to have been restored to an earlier point."""
    with pytest.raises(WattvendError, match="no event stands at position 1000000000"):
        found(sought, 1_000_000_000)


async def test_a_trail_through_a_book_that_is_sold_on_comes_to_its_end() -> None:
    class Tables:
        async def checkpoints(self) -> list[Checkpoint]:
            return []

    store = Busy()
    await store.append(A, NO_EVENTS, [new()])
    async with asyncio.timeout(DEADLINE_S):
        sought = trail(store, cast("Any", Tables()), Sought(type="of-nobody"), FROM_START)
        assert [entry async for entry in sought] == []


def test_an_event_of_an_earlier_release_has_its_caller() -> None:
    assert everything()[0].origin == Origin("till")


# --- the command ----------------------------------------------------------------------------------


def audited(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    chosen = commands.parsed(["audit", *arguments])
    assert commands.carried_out(chosen, VendingSettings(store_path=book())) == 0
    said = capsys.readouterr()
    return said.out.splitlines(), said.err


def test_a_person_reads_who_did_what_when_from_where_and_by_whose_approval(
    capsys: pytest.CaptureFixture[str],
) -> None:
    head, *rows = audited(capsys, "--actor", "u-1", "--caller", "office")[0]
    assert " ".join(head.split()) == "position at stream type by from approved by what it says"
    assert len(rows) == 12
    first = " ".join(rows[0].split())
    assert "Z account-A1 credit-sold office u-1 10.0.4.1 office u-3" in first
    assert "amount_minor 102" in first
    assert "method cash" in first


def test_a_terminal_obeys_nothing_that_stands_in_the_book() -> None:
    """E.g. the filter of a batch of a release before."""
    entry = everything()[0]
    escaping = replace(entry, said={"filter": "\x1b[2K\x1b[1A", "reason": "物业 ok"})
    assert audit.as_row(escaping).endswith(r"filter '\x1b[2K\x1b[1A', reason 物业 ok")


def test_a_program_reads_all_that_an_event_says(capsys: pytest.CaptureFixture[str]) -> None:
    (line,), _ = audited(
        capsys, "--json", "--stream", "account-A1", "--type", "credit-sold", "--limit", "1"
    )
    said = json.loads(line)
    assert said["said"]["amount_minor"] == 101
    assert said["said"]["postings"]
    assert (said["caller"], said["actor"], said["peer"]) == ("till", "u-2", "10.0.3.8")
    assert len(said["request_id"]) == 36


def test_a_page_ends_with_where_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    rows, hint = audited(capsys, "--type", "credit-sold", "--limit", "3")
    last = rows[-1].split()[0]
    assert f"--after {last}" in hint
    more, hint = audited(capsys, "--type", "credit-sold", "--after", last)
    assert len(more) - 1 == 36 - 3
    assert not hint


def test_an_instant_is_utc_where_it_names_no_zone(capsys: pytest.CaptureFixture[str]) -> None:
    utc, _ = audited(capsys, "--since", "2026-09-21T17:00:00")
    shanghai, _ = audited(capsys, "--since", "2026-09-22T01:00:00+08:00")
    assert utc == shanghai
    assert 1 < len(utc) < len(everything())
    with pytest.raises(SystemExit):
        commands.parsed(["audit", "--since", "yesterday"])
    assert "is no instant" in capsys.readouterr().err


def test_without_a_command_the_service_is_run() -> None:
    assert commands.parsed([]) == argparse.Namespace(command=commands.RUN)


def test_a_book_that_is_not_there_is_said_to_be_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = VendingSettings(store_path=tmp_path / "none.sqlite")
    assert commands.carried_out(commands.parsed(["audit"]), settings) == 70
    assert "store_path must name the file of the book" in capsys.readouterr().err
    shutil.copy(book(), settings.store_path)
    assert commands.carried_out(commands.parsed(["audit"]), settings) == 0
