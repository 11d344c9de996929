"""Goal: vending writes what a shard of metering can be seeded from, and metering reads it.

Method: the command over a real SQLite file, its file read by metering's own reader.
"""

import asyncio
from pathlib import Path

import orjson
import pytest

from services.common.kernel.errors import WattvendError
from services.common.kernel.ids import column_key
from services.common.kernel.routing import partition_of
from services.common.runtime.service import EXIT_FAILED
from services.metering.adapters.seeding import read
from services.metering.domain.rows import account_entity
from services.metering.domain.seeding import Seeds
from services.vending.adapters import bus
from services.vending.application.seeding import seeding
from services.vending.domain import chain
from services.vending.domain.tables import Checkpoint, Root
from services.vending.main import main
from tests.unit import vending_world
from tests.unit.test_vending_usage import Metering
from tests.unit.vending_world import T0_MS, World

SHARD = partition_of("A1", 8)
KEY = column_key("account", "A1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


async def posted(world: World, metering: Metering, revision: int, row: bytes) -> None:
    metering.uses(energy=7)
    told = {"account_revision": revision, "row": row, "log_offset": 40 + revision}
    await world.office.post_usage(bus.usage_told({**metering.echo("A1"), **told}, T0_MS))


async def vouched(world: World) -> None:
    root = Root(await world.store.head(), 1, chain.GENESIS)
    await world.tables.keep_checkpoint(Checkpoint(await world.tables.book_epoch(), root))


async def seeds_of(world: World, shard: int = SHARD) -> Seeds:
    found = await seeding(world.store, world.tables, shard, 8)
    return read(map(orjson.dumps, found.lines()))


async def test_a_posting_of_a_fact_that_a_restored_store_lost_is_passed_over(path: Path) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        await posted(world, metering, 0, b"first")
        await posted(world, metering, 99, b"of what was lost")
        await vouched(world)
        seeds = await seeds_of(world)
    (seed,) = seeds.posted
    assert seed.row == b"first"


async def test_a_book_that_ends_before_its_checkpoint_seeds_nobody(path: Path) -> None:
    """As the index of a server's book, where the server was restored."""
    async with vending_world.world(path) as world:
        await world.mall()
        root = Root(await world.store.head() + 9, 1, chain.GENESIS)
        await world.tables.keep_checkpoint(Checkpoint(1, root))
        with pytest.raises(WattvendError, match="restored to an earlier point"):
            await seeds_of(world)


async def test_of_an_account_it_tells_the_last_posting_and_the_fact_that_metering_had(
    path: Path,
) -> None:
    async with vending_world.world(path) as world:
        metering = Metering()
        await world.mall()
        await world.sell(500)  # revision 1
        await posted(world, metering, 0, b"first")
        await world.sell(600)
        await posted(world, metering, 3, b"last")
        await world.sell(700)
        await vouched(world)
        await world.sell(800)  # not told everywhere yet
        seeds = await seeds_of(world)
        elsewhere = await seeds_of(world, (SHARD + 1) % 8)
    (found,) = seeds.posted
    assert (found.account_key, found.row, found.log_offset) == (KEY, b"last", 43)
    assert (found.fact["revision"], found.fact["credited_nano"]) == (3, 1100 * 10**7)
    versions = seeds.facts[account_entity(KEY)]
    assert [fact["revision"] for fact in versions] == [3, 4, 5]
    assert {name.partition("/")[0] for name in elsewhere.facts} >= {"sites", "tariffs", "policies"}
    assert elsewhere.posted == []
    assert account_entity(KEY) not in elsewhere.facts


async def test_an_account_that_was_never_posted_says_when_it_was_opened(path: Path) -> None:
    async with vending_world.world(path) as world:
        await world.mall()
        await vouched(world)
        seeds = await seeds_of(world)
    assert seeds.opened_at_ms == {KEY: T0_MS}


async def test_facts_from_before_the_book_epoch_was_raised_are_told_as_they_were_and_as_they_are(
    path: Path,
) -> None:
    async with vending_world.world(path) as world:
        await world.mall()
        await world.sell(500)
        await world.tables.raise_book_epoch(2, await world.store.head())
        await world.sell(600)
        await vouched(world)
        seeds = await seeds_of(world)
    versions = seeds.facts[account_entity(KEY)]
    told = [(fact["book_epoch"], fact["revision"]) for fact in versions]
    assert told == [(1, 0), (1, 1), (2, 1), (2, 2)]


async def test_the_command_writes_a_file_beside_the_service(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with vending_world.world(path) as world:
        await world.mall()
        await posted(world, Metering(), 0, b"row")
        await vouched(world)
        monkeypatch.setenv("WATTVEND_VENDING_STORE_PATH", str(path))
        to = path.with_name("seeds.jsonl")
        asked = ["seeds", "--to", str(to), "--shard"]
        assert await asyncio.to_thread(main, [*asked, str(SHARD)]) == 0
        assert await asyncio.to_thread(main, [*asked, "8"]) == EXIT_FAILED
    told = capsys.readouterr()
    assert f"of 1 accounts in shard {SHARD} 1 were posted" in told.out
    assert "there is no shard 8" in told.err
    (found,) = read(to.read_bytes().splitlines()).posted
    assert found.row == b"row"
