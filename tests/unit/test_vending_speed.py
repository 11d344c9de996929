"""Goal: what makes vending fast changes nothing of what it stores and says.

Method: the same sales with and without each shortcut, compared record by record; commits counted.
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from prometheus_client import CollectorRegistry

from services.common.runtime import codec, kafka
from services.common.runtime.kafka import Outgoing
from services.vending.adapters.sqlite_file import SqliteFile
from services.vending.application import book as book_module
from services.vending.application.book import Book
from services.vending.application.gathering import GATHERED_ENOUGH, STEP_S, Gathering
from services.vending.application.relay import START, Relay
from services.vending.domain.account import Account
from services.vending.domain.event_store import StoredEvent
from services.vending.domain.streams import stream_of
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook, identity
from tests.unit.vending_world import World

SALES = 40
TURNS = 400


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        yield opened


# --- commands gather, and share commits ---------------------------------------------------------


def counted(file: SqliteFile) -> list[None]:
    """Return a list that grows with each commit."""
    commits: list[None] = []
    file.after_commit.append(lambda: commits.append(None))
    return commits


class AtOnce(Executor):
    """Runs what it is given before it returns."""

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments, **named))
        return done


async def write_after(file: SqliteFile, turns: int, gathering: Gathering | None) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    if gathering:
        await gathering.turn()
    await file.write(lambda connection: connection.execute("SELECT 1").fetchone())


@pytest.mark.parametrize("gathers", [True, False])
async def test_writes_that_come_one_by_one_share_commits(
    world: World, monkeypatch: pytest.MonkeyPatch, *, gathers: bool
) -> None:
    gathering = Gathering() if gathers else None
    monkeypatch.setattr(world.file, "_commits", AtOnce())  # a slow disk gathers by itself
    commits = counted(world.file)
    await asyncio.gather(*(write_after(world.file, turns, gathering) for turns in range(TURNS)))
    assert (len(commits) < TURNS // 20) is gathers, len(commits)


async def test_who_stops_waiting_for_the_others_holds_nobody_up() -> None:
    gathering = Gathering()
    first, second = gathering.turn(), gathering.turn()
    first.cancel()
    await second
    await gathering.turn()


async def test_a_gathering_ends_while_more_keep_coming() -> None:
    gathering = Gathering()
    first = gathering.turn()
    came = 1
    while not first.done():
        gathering.turn()
        came += 1
        await asyncio.sleep(STEP_S / 4)
    assert came < GATHERED_ENOUGH * 4


async def test_a_write_alone_has_its_commit_without_others(world: World) -> None:
    commits = counted(world.file)
    for number in range(3):
        await write_after(world.file, 0, Gathering())
        assert len(commits) == number + 1


# --- the relay is handed what was just decided ----------------------------------------------------


async def published(world: World, *, from_store: bool) -> list[Outgoing]:
    notebook = Notebook()
    relay = Relay(
        world.store,
        world.tables,
        notebook,
        clock=world.clock,
        metrics=Metrics(CollectorRegistry()),
        log=structlog.get_logger("test"),
        begin=START,
        book_epoch=1,
        shards=8,
        decided=(lambda _: None) if from_store else world.book.decided,
    )
    running = asyncio.create_task(relay.run())
    await relay.caught_up()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return notebook.records


async def a_day(world: World) -> None:
    await world.mall()
    await world.assign()
    for _ in range(SALES):
        await world.sell(100)
    await world.release()


async def test_what_the_book_hands_over_is_published_like_what_the_store_has(world: World) -> None:
    await a_day(world)
    handed = await published(world, from_store=False)
    read = await published(world, from_store=True)
    assert len(handed) > 2 * SALES
    assert list(map(identity, handed)) == list(map(identity, read))


async def test_what_was_encoded_before_is_what_the_record_encodes_to(world: World) -> None:
    await a_day(world)
    for record in await published(world, from_store=False):
        if record.encoded is not None:
            assert record.encoded == codec.encode(record.subject, record.record)


async def test_the_book_hands_over_once_and_keeps_a_bounded_number(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "DECIDED_KEPT_MAX", 5)
    await a_day(world)
    stored = await world.store.read_all(0, 1000)
    handed = [world.book.decided(event.id) for event in stored]
    assert [decided is not None for decided in handed[-5:]] == [True] * 5
    assert not any(handed[:-5])
    assert world.book.decided(stored[-1].id) is None


async def test_an_append_that_failed_is_not_handed_over(world: World) -> None:
    await world.mall()
    known = {event.id for event in await world.store.read_all(0, 1000)}
    request = world.ask(100)
    await world.sell(100, request=request)
    (event,) = [e for e in await world.store.read_all(0, 1000) if e.id not in known]
    world.book.decided(event.id)
    await world.sell(100, request=request)
    assert world.book.decided(event.id) is None, "a repeat appends nothing"


# --- records go in batches ------------------------------------------------------------------------


class Batch:
    """Room for three records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.closed = False

    def append(self, **record: Any) -> object | None:
        assert not self.closed
        if len(self.records) == 3:
            return None
        self.records.append(record)
        return self

    def close(self) -> None:
        self.closed = True


class Producer:
    """Acknowledges at once, or fails; keeps what it was sent, in order."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.sent: list[tuple[str, int, Batch]] = []
        self.fails = fails

    def create_batch(self) -> Batch:
        return Batch()

    async def send_batch(
        self, batch: Batch, topic: str, *, partition: int
    ) -> asyncio.Future[object]:
        self.sent.append((topic, partition, batch))
        done: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self.fails:
            done.set_exception(self.fails)
        else:
            done.set_result(None)
        return done


def wake(shard: int, due_ms: int) -> Outgoing:
    record = {"shard": shard, "due_ms": due_ms}
    return Outgoing("shard-log", "wake", record, str(shard), uuid4(), due_ms, partition=shard)


async def test_batches_keep_the_order_of_each_partition_and_lose_nothing() -> None:
    producer = Producer()
    records = [wake(number % 2, number) for number in range(20)]
    await kafka.send_all(cast("AIOKafkaProducer", producer), records)
    for shard in range(2):
        mine = [batch for _, partition, batch in producer.sent if partition == shard]
        values = [record["value"] for batch in mine for record in batch.records]
        wanted = [r for r in records if r.partition == shard]
        assert values == [codec.encode("wake", r.record) for r in wanted]
        assert all(batch.closed for batch in mine)
        headers = [dict(record["headers"])["event_id"] for b in mine for record in b.records]
        assert headers == [r.event_id.bytes for r in wanted]


async def test_a_batch_that_is_not_acknowledged_fails_all() -> None:
    producer = cast("AIOKafkaProducer", Producer(ConnectionError("away")))
    with pytest.raises(ConnectionError):
        await kafka.send_all(producer, [wake(0, 1)])


# --- a long stream holds nobody up ----------------------------------------------------------------


async def test_others_have_their_turn_while_a_long_stream_is_folded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "FOLDED_IN_A_ROW", 10)
    await world.mall()
    for _ in range(SALES):
        await world.sell(100)
    stored = await world.store.read(stream_of(Account, "A1"))
    turns = 0

    async def read(*_: object) -> list[StoredEvent]:
        return stored  # at once: what is counted is the fold

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(world.store, "read", read)
    book = Book(world.store, Metrics(CollectorRegistry()))
    others = asyncio.create_task(take_turns())
    folded = await book.state_of(Account, "A1")
    others.cancel()
    assert folded is not None
    assert folded.answers.revision == SALES
    assert turns >= SALES // 10
