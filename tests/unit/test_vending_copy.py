"""Goal: a book that moves to another store is the same book, and no other is ever mixed with it.

Method: a book with something of everything, copied from file to file by the command; interrupted at
every append and gone on; and targets that are not what the source begins with.
"""

import asyncio
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from services.common.runtime import service
from services.vending import commands
from services.vending.adapters import stores, table_copy, tables
from services.vending.adapters.memory_store import MemoryEventStore
from services.vending.application import copying
from services.vending.application.copying import NotTheSame, Progress, compared, copy_events
from services.vending.config import VendingSettings
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    NewEvent,
    StoredEvent,
    StoreUnavailable,
    StreamId,
)
from services.vending.domain.tables import Charged, Checkpoint, Link, Offset
from services.vending.main import main
from tests.contract.event_store import A, B, new
from tests.unit.vending_start import started
from tests.unit.vending_world import World, world

Copy = Callable[..., Awaitable[int]]
DEADLINE_S = 10.0


def quiet(done: int, total: int) -> None:
    assert done <= total


async def noted() -> None:
    """Note nothing: the stores have no tables."""


async def a_book(path: Path) -> None:
    async with world(path) as made:
        await made.mall()
        await made.meter("M2", unit=2)
        await made.assign()
        for amount in range(1, 8):
            await made.sell(amount)
        await beside(made)


async def beside(made: World) -> None:
    """Keep what is not derived from events."""
    events = await made.store.read_all(FROM_START, 100)
    await made.tables.keep_charged([Charged(7, 1, 2, 3000, 4)], [Offset("charges", 1, 9)])
    root = (await compared(made.store, made.store, quiet)).source
    await made.tables.keep_checkpoint(Checkpoint(3, root, 5))
    await made.tables.keep_links(
        Link(e.position, e.stream, e.revision, e.id, e.type, b"hash") for e in events
    )
    await made.tables.raise_book_epoch(3, 4)


def dump(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {n: sorted(connection.execute(f"SELECT * FROM {n}")) for (n,) in names}


@pytest.fixture
def copy(monkeypatch: pytest.MonkeyPatch) -> Copy:
    async def copy(source: Path, target: Path, *more: str) -> int:
        monkeypatch.setenv("WATTVEND_VENDING_STORE_PATH", str(source))
        return await asyncio.to_thread(main, ["copy-book", "--to", f"sqlite:{target}", *more])

    return copy


async def test_a_copied_book_is_the_same_down_to_its_tables_and_the_proof_is_printed(
    tmp_path: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source.sqlite", tmp_path / "target.sqlite"
    await a_book(source)
    assert await copy(source, target) == 0
    said = capsys.readouterr().out
    assert dump(source) == dump(target)
    roots = re.findall(r"^  ([0-9a-f]{64})  ", said, re.MULTILINE)
    assert len(roots) == 2
    assert roots[0] == roots[1]
    assert "16 events in 7 streams are the same in both" in said
    assert await copy(source, target) == 0
    assert "0 events were copied" in capsys.readouterr().out
    async with world(target) as moved:
        assert (await moved.sell(9)).state.account_id == "A1"


async def test_what_was_copied_ahead_is_not_copied_again_and_what_came_since_is(
    tmp_path: Path, copy: Copy, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source.sqlite", tmp_path / "target.sqlite"
    await a_book(source)
    async with world(source) as running:
        assert await copy(source, target, "--ahead") == 0
        assert await copy(source, target) == service.EXIT_FAILED
        await running.sell(9)
        await running.tables.keep_charged([Charged(7, 1, 3, 9000, 4)], [])
    assert "in use by another vending process" in capsys.readouterr().err
    assert await copy(source, target) == 0
    assert "1 events were copied" in capsys.readouterr().out
    assert dump(source) == dump(target)


async def refusal(path: Path, patched: pytest.MonkeyPatch) -> str:
    """Start vending on a store; return why it refuses commands, or "" where it sells."""
    with patched.context() as patch:
        async with started(VendingSettings(store_path=path), None, patch) as vending:
            return vending.book.refusing


@pytest.mark.parametrize("interrupted", ["ahead alone", "among the events", "at the tables"])
async def test_nothing_is_sold_on_a_copy_that_was_not_finished(
    tmp_path: Path, copy: Copy, monkeypatch: pytest.MonkeyPatch, interrupted: str
) -> None:
    source, target = tmp_path / "source.sqlite", tmp_path / "target.sqlite"
    await a_book(source)
    with monkeypatch.context() as patched:
        match interrupted:
            case "among the events":
                patched.setattr(copying, "EVENTS_AT_ONCE_MAX", 4)
                patched.setattr(commands, "_shown", breaks_at(9))
            case "at the tables":
                patched.setattr(commands, "differing_table", fails)
        more = ["--ahead"] if interrupted == "ahead alone" else []
        assert await copy(source, target, *more) == (0 if more else service.EXIT_FAILED)
    assert f"a copy of {source} that was not finished" in await refusal(target, monkeypatch)
    assert await copy(source, target) == 0
    assert dump(source) == dump(target)
    assert not await refusal(target, monkeypatch)


async def fails(*_: object, **__: object) -> None:
    raise StoreUnavailable("away")


def breaks_at(events: int) -> Callable[[str], AbstractContextManager[Progress]]:
    @contextmanager
    def shown(_: str) -> Iterator[Progress]:
        def progress(done: int, _: int) -> None:
            if done >= events:
                raise StoreUnavailable("away")

        yield progress

    return shown


@pytest.mark.parametrize("differs", ["another book", "one more", "another event"])
async def test_a_target_that_is_not_what_the_source_begins_with_is_left_alone(
    tmp_path: Path, copy: Copy, differs: str
) -> None:
    source, target = tmp_path / "source.sqlite", tmp_path / "target.sqlite"
    await a_book(source)
    if differs == "another book":
        await a_book(target)
    else:
        assert await copy(source, target) == 0
        into = source if differs == "another event" else target
        async with world(target) as more:
            await more.sell(8)
        if into is source:
            async with world(source) as other:
                await other.sell(8)
    before = dump(target)
    assert await copy(source, target) == service.EXIT_FAILED
    assert dump(target) == before


class Interrupted(MemoryEventStore):
    """A store that takes so many appends, and then is away."""

    left = 0

    async def append(self, stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
        if self.left == 0:
            raise StoreUnavailable("away")
        self.left -= 1
        return await super().append(stream, expected, events)


async def test_a_copy_that_is_interrupted_at_any_append_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "EVENTS_AT_ONCE_MAX", 3)
    source = MemoryEventStore()
    for number in range(10):
        stream = (A, B)[number % 2]
        await source.append(stream, number // 2 * 2 - 1, [new(), new()])
    target = Interrupted()
    copied = 0
    for _ in range(30):
        target.left = 1
        try:
            await copy_events(source, target, noted, quiet)
        except StoreUnavailable:
            assert target.count() > copied
            copied = target.count()
        else:
            break
    equal = await compared(source, target, quiet)
    assert (equal.source.count, equal.streams, equal.positions_are_same) == (20, 2, True)


class Busy(MemoryEventStore):
    """A store that gets another event whenever it is read."""

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        found = await super().read_all(after, limit)
        await asyncio.sleep(0)
        await self.append(StreamId(f"account-{self.count()}"), NO_EVENTS, [new()])
        return found


async def test_a_copy_ahead_of_a_book_that_is_sold_on_comes_to_its_end() -> None:
    source, target = Busy(), MemoryEventStore()
    await source.append(A, NO_EVENTS, [new() for _ in range(9)])
    for _ in range(2):  # the second run goes on where the first ended
        async with asyncio.timeout(DEADLINE_S):
            await copy_events(source, target, noted, quiet)
        assert 9 <= target.count() <= source.count()


async def test_what_differs_in_one_byte_is_not_called_equal() -> None:
    for change in (b"data", b"other"):
        source, target = MemoryEventStore(), MemoryEventStore()
        event = new(b"data")
        await source.append(A, NO_EVENTS, [event])
        await target.append(A, NO_EVENTS, [NewEvent(event.id, event.type, change, event.meta)])
        if change == b"data":
            await compared(source, target, quiet)
            continue
        with pytest.raises(NotTheSame):
            await compared(source, target, quiet)
        with pytest.raises(NotTheSame):
            await copy_events(source, target, noted, quiet)
    with pytest.raises(NotTheSame, match="the target ends before"):
        await compared(source, MemoryEventStore(), quiet)


async def test_where_a_row_beside_the_events_differs_the_table_is_named(tmp_path: Path) -> None:
    paths = tmp_path / "one.sqlite", tmp_path / "other.sqlite"
    for path in paths:
        async with stores.opened(f"sqlite:{path}", "test") as stored:
            charged = [
                Charged(n, 1, 1, n * (path == paths[0] or n < 6_000), 1) for n in range(7_000)
            ]
            await stored.tables.keep_charged(charged, [])
    async with (
        stores.reading(f"sqlite:{paths[0]}", "test") as one,
        stores.reading(f"sqlite:{paths[1]}", "test") as other,
    ):
        differing = table_copy.differing_table
        same = {"positions_are_same": True}
        assert await differing(one.database, other.database, **same) == "charged"
        assert await differing(one.database, one.database, **same) is None


def test_of_every_table_it_is_decided_what_becomes_of_it() -> None:
    there = set(re.findall(r"CREATE TABLE IF NOT EXISTS (\w+)", tables.SCHEMA))
    assert there == set(table_copy.KEYS) | set(table_copy.NOT_COPIED)
