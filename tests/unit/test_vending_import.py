"""Goal: a book that was restored to an earlier point gets back exactly what it lost, or nothing.

Method: a copy of the file is kept while the book is sold on and told; `ledger`, as the relay wrote
it, is imported into the copy. The event tables must be equal byte for byte, and the office on the
copy must go on where the other one was. Then every way in which a ledger may not fit.
"""

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from services.vending import commands
from services.vending.adapters import bus
from services.vending.adapters.keys import PublicKeys, SigningKey
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application.importing import Imported, NotContinued, import_ledger
from services.vending.application.ledger import Ledger, LedgerEvent
from services.vending.application.relay import START, BookMismatch, ToldEvent, beginning, root_at
from services.vending.application.verifying import verify
from services.vending.config import VendingSettings
from services.vending.domain import chain
from services.vending.domain.decisions import Request
from services.vending.domain.origin import Origin
from services.vending.domain.tables import Checkpoint
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook, published
from tests.unit.vending_ledger import above, as_ledger, told_in
from tools.stack import keyfile

TILL = Origin("till", "u-81", "10.0.3.7")
NO_KEYS = PublicKeys([])


@dataclass
class Restored:
    """A book, its copy of an earlier point, what was told since, and a request answered since."""

    path: Path
    copy: Path
    key: SigningKey
    lost_from: int = 0
    told: list[LedgerEvent | Checkpoint] = field(default_factory=list)
    repeated: Request | None = None

    @property
    def keys(self) -> PublicKeys:
        return PublicKeys([self.key.public])


@pytest.fixture
async def restored(tmp_path: Path) -> Restored:
    key = SigningKey(keyfile.made(tmp_path / "signing.pem"))
    made = Restored(tmp_path / "events.sqlite", tmp_path / "copy.sqlite", key)
    notebook = Notebook()
    async with vending_world.world(made.path) as world:
        await world.mall()
        await world.sell(500)
        first = await published(world, notebook, signed=key.signed)
        made.lost_from = first.position
    shutil.copy(made.path, made.copy)
    async with vending_world.world(made.path) as world:
        begin = (await world.tables.checkpoints())[-1].root
        made.repeated = world.ask("A1", 700, origin=TILL)
        await world.sell(700, request=made.repeated)
        await world.account("A2")
        await world.meter("M2", serial="two", unit=2)
        await world.assign()
        second = await published(world, notebook, begin=begin, signed=key.signed)
        await world.sell(800)
        begin = (await world.tables.checkpoints())[-1].root
        await published(world, notebook, begin=begin, signed=key.signed)
        assert second.position < await world.store.head()
    made.told = told_in(notebook.records)
    return made


async def imported(
    restored: Restored, told: list[LedgerEvent | Checkpoint], keys: PublicKeys = NO_KEYS
) -> Imported:
    async with vending_world.world(restored.copy) as world:
        ledger = as_ledger(above(told, await world.store.head()))
        return await import_ledger(world.store, world.tables, ledger, keys, lambda _: None)


def rows_of(path: Path, table: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()


async def test_a_restored_book_is_refused_and_after_the_import_equal_byte_for_byte(
    restored: Restored,
) -> None:
    last = [told for told in restored.told if isinstance(told, Checkpoint)][-1]
    async with vending_world.world(restored.copy) as world:
        with pytest.raises(BookMismatch, match="import-ledger"):
            await beginning(world.store, world.tables, last, 1)
    done = await imported(restored, restored.told, restored.keys)
    assert (done.checkpoint, done.beyond, done.root) == (last, 0, last.root)
    assert done.count == len(above(restored.told, restored.lost_from)) - 3  # less checkpoints
    for table in ("event", "stream", "unique_name", "todo", "link", "checkpoint"):
        assert rows_of(restored.copy, table) == rows_of(restored.path, table), table
    async with vending_world.world(restored.copy) as world:
        assert await beginning(world.store, world.tables, last, 1) == last.root
        with ScratchLasts() as lasts:
            keys = restored.keys
            verdict = await verify(world.store, world.tables, lasts, keys, lambda *_: None)
        assert verdict.fault is None
        head = await world.store.head()
        again = await world.sell(700, request=restored.repeated)
        assert again.revision < (await world.sell(900)).revision
        assert await world.store.head() == head + 1, "a repeat of what was lost appends nothing"


async def test_what_no_checkpoint_has_come_to_is_imported_too(restored: Restored) -> None:
    *told, last = restored.told
    assert isinstance(last, Checkpoint)
    done = await imported(restored, told, restored.keys)
    assert (done.beyond, done.root) == (1, last.root)
    assert rows_of(restored.copy, "event") == rows_of(restored.path, "event")


async def test_an_import_that_was_cut_off_goes_on(restored: Restored) -> None:
    middle = len(restored.told) - 4
    await imported(restored, restored.told[:middle])
    await imported(restored, restored.told)
    again = await imported(restored, restored.told)
    assert again.count == 0
    for table in ("event", "link"):
        assert rows_of(restored.copy, table) == rows_of(restored.path, table)


async def test_checkpoints_may_come_behind_events_that_they_do_not_vouch_for(
    restored: Restored,
) -> None:
    told = sorted(restored.told, key=lambda t: isinstance(t, Checkpoint))
    done = await imported(restored, told, restored.keys)
    assert done.checkpoint == told[-1]
    assert rows_of(restored.copy, "event") == rows_of(restored.path, "event")


async def test_what_earlier_releases_told_without_metadata_is_had_again_as_it_was(
    tmp_path: Path,
) -> None:
    path, copy = tmp_path / "old.sqlite", tmp_path / "copy.sqlite"
    notebook = Notebook()
    async with vending_world.world(path) as world:
        await world.site()
    shutil.copy(path, copy)
    async with vending_world.world(path) as world:
        await world.gateway()
        await published(world, notebook)
    told = [
        replace(t, meta=None) if isinstance(t, LedgerEvent) else t
        for t in told_in(notebook.records)
    ]
    async with vending_world.world(copy) as world:
        ledger = as_ledger(above(told, await world.store.head()))
        await import_ledger(world.store, world.tables, ledger, NO_KEYS, lambda _: None)
    assert rows_of(copy, "event") == rows_of(path, "event")


async def test_a_copy_from_before_the_book_epoch_was_raised_is_brought_into_it(
    restored: Restored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raised = [replace(t, book_epoch=2) if isinstance(t, Checkpoint) else t for t in restored.told]
    last = raised[-1]

    async def last_told(*_: object) -> tuple[object, list[ToldEvent]]:
        return last, []

    def ledger_above(_: str, position: int, book_epoch: int, __: str) -> Ledger:
        assert (position, book_epoch) == (restored.lost_from, 2)
        return as_ledger(above(raised, position))

    monkeypatch.setattr(bus, "last_told", last_told)
    monkeypatch.setattr(commands, "ledger_above", ledger_above)
    settings = VendingSettings(store_path=restored.copy)
    assert await commands.import_ledger(settings) == 0
    assert "It is what the checkpoint at position" in capsys.readouterr().out
    async with vending_world.world(restored.copy) as world:
        assert await world.tables.book_epoch() == 2
        assert isinstance(last, Checkpoint)
        assert await beginning(world.store, world.tables, last, 2) == last.root


# --- what does not fit ----------------------------------------------------------------------------


def event_altered(told: list[Any], at: int, **changed: Any) -> list[Any]:
    return [*told[:at], replace(told[at], **changed), *told[at + 1 :]]


Bend = Callable[[list[Any], int], list[Any]]
BENT: dict[str, tuple[Bend, str]] = {
    "an event is missing": (lambda told, at: [*told[:at], *told[at + 1 :]], "does not continue"),
    "two are swapped": (
        lambda told, at: [*told[:at], told[at + 1], told[at], *told[at + 2 :]],
        "does not continue this book",
    ),
    "data is altered": (
        lambda told, at: event_altered(told, at, data=told[at].data + b"x"),
        "does not continue this book",
    ),
    "the id is altered": (
        lambda told, at: event_altered(told, at, id=told[at + 1].id),
        "does not continue this book",
    ),
    "the stream is altered": (
        lambda told, at: event_altered(told, at, stream="account-A9"),
        "does not continue its stream",
    ),
    "a revision is left out": (
        lambda told, at: event_altered(told, at, revision=told[at].revision + 1),
        "does not continue its stream",
    ),
}


@pytest.mark.parametrize("how", sorted(BENT))
async def test_a_ledger_that_does_not_fit_is_refused_and_nothing_of_it_is_stored(
    restored: Restored, how: str
) -> None:
    bend, why = BENT[how]
    first_lost = next(
        number
        for number, told in enumerate(restored.told)
        if isinstance(told, LedgerEvent) and told.position > restored.lost_from
    )
    before = rows_of(restored.copy, "event")
    with pytest.raises(NotContinued, match=why):
        await imported(restored, bend(restored.told, first_lost))
    assert rows_of(restored.copy, "event") == before


async def test_the_ledger_of_another_book_is_refused(restored: Restored, tmp_path: Path) -> None:
    notebook = Notebook()
    async with vending_world.world(tmp_path / "other.sqlite") as world:
        await world.mall()
        for _ in range(4):
            await world.sell(501)
        await published(world, notebook)
    before = rows_of(restored.copy, "event")
    with pytest.raises(NotContinued, match="another book's"):
        await imported(restored, told_in(notebook.records))
    assert rows_of(restored.copy, "event") == before


async def test_a_last_event_that_is_not_what_its_checkpoint_vouches_for_is_not_stored(
    restored: Restored,
) -> None:
    at = len(restored.told) - 2
    told = event_altered(restored.told, at, data=restored.told[at].data + b"x")  # type: ignore[union-attr]
    with pytest.raises(NotContinued, match="is not of this book"):
        await imported(restored, told)
    assert len(rows_of(restored.copy, "event")) == len(rows_of(restored.path, "event")) - 1


async def test_with_keys_only_what_is_signed_is_believed(
    restored: Restored, tmp_path: Path
) -> None:
    other = SigningKey(keyfile.made(tmp_path / "other.pem"))
    with pytest.raises(NotContinued, match="no good signature"):
        await imported(restored, restored.told, PublicKeys([other.public]))
    unsigned = [
        replace(told, key_id="", signature=b"") if isinstance(told, Checkpoint) else told
        for told in restored.told
    ]
    with pytest.raises(NotContinued, match="is signed, though keys are set"):
        await imported(restored, unsigned, restored.keys)
    assert len(rows_of(restored.copy, "event")) == restored.lost_from


async def test_the_origin_of_what_was_lost_is_had_again(restored: Restored) -> None:
    await imported(restored, restored.told)
    async with vending_world.world(restored.copy) as world:
        sold = await world.store.event_at(restored.lost_from + 1)
        assert sold is not None
        assert chain.read_meta(sold.meta).origin == TILL
        root = await root_at(world.store, await world.store.head())
        assert root != START
