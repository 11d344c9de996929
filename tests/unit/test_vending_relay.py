"""Goal: what happened is published in an order nobody can misread, and the same after a crash.

Method: the relay on a real file, with a publisher that writes down what it acknowledges and can
fail between any two groups; a restart is a new relay that begins at the last checkpoint.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from uuid import uuid4

import pytest
import structlog
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import Retriable
from services.common.runtime import codec
from services.common.runtime.kafka import Outgoing
from services.common.runtime.topics import catalogue
from services.vending.application import relay as relay_module
from services.vending.application.relay import (
    START,
    BookMismatch,
    Publisher,
    Relay,
    ToldEvent,
    beginning,
    check_told,
    root_at,
)
from services.vending.domain import chain
from services.vending.domain.event_store import (
    NO_EVENTS,
    EventStore,
    StoredEvent,
    StoreWentBack,
    StreamId,
)
from services.vending.domain.tables import Checkpoint, Root
from services.vending.metrics import Metrics
from tests.unit import vending_world
from tests.unit.vending_world import World

SHARDS = 8
DEADLINE_S = 10.0


class Notebook:
    """A publisher that keeps what it acknowledged; `fail_at`: which publications are not."""

    def __init__(self, *fail_at: int) -> None:
        self.groups: list[list[Outgoing]] = []
        self.calls = 0
        self.fail_at = fail_at

    async def publish(self, records: Sequence[Outgoing]) -> None:
        self.calls += 1
        if self.calls in self.fail_at:
            raise Retriable("Kafka is away")
        for record in records:
            assert record.subject in catalogue().topics[record.topic].values
            codec.encode(record.subject, record.record)
        if records:
            self.groups.append(list(records))

    @property
    def records(self) -> list[Outgoing]:
        return [record for group in self.groups for record in group]

    @property
    def checkpoint(self) -> Checkpoint:
        said = [r.record for r in self.records if r.subject == "ledger-checkpoint"][-1]
        return Checkpoint(said["book_epoch"], Root(said["position"], said["count"], said["root"]))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sqlite"


@pytest.fixture
async def world(path: Path) -> AsyncIterator[World]:
    async with vending_world.world(path) as opened:
        await opened.mall()
        await opened.assign()
        await opened.sell(500)
        yield opened


@asynccontextmanager
async def relaying(
    world: World,
    notebook: Publisher,
    begin: Root = START,
    book_epoch: int = 1,
    signed: Callable[[Checkpoint], Checkpoint] = lambda unsigned: unsigned,
) -> AsyncIterator[Relay]:
    relay = Relay(
        world.store,
        world.tables,
        notebook,
        clock=world.clock,
        metrics=Metrics(CollectorRegistry()),
        log=structlog.get_logger("test"),
        begin=begin,
        book_epoch=book_epoch,
        shards=SHARDS,
        signed=signed,
    )
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def published(world: World, notebook: Notebook, **more: Any) -> Relay:
    async with relaying(world, notebook, **more) as relay, asyncio.timeout(DEADLINE_S):
        await relay.caught_up()
        await relay.checkpoint()
        return relay


def identity(record: Outgoing) -> tuple[Any, ...]:
    """Everything of a record but when a checkpoint was written."""
    said = {k: v for k, v in record.record.items() if k != "written_at_ms"}
    return (record.topic, record.key, record.partition, record.route, record.event_id, repr(said))


async def test_ledger_comes_before_shards_and_shards_before_routes(world: World) -> None:
    notebook = Notebook()
    await published(world, notebook)
    topics = [{record.topic for record in group} for group in notebook.groups]
    assert all(len(names) == 1 for names in topics)
    order = [names.pop() for names in topics]
    assert order == ["ledger", "shard-log", "registry", "ledger"]
    ledger = notebook.groups[0]
    assert [r.record["position"] for r in ledger] == list(range(1, len(ledger) + 1))
    assert ledger[0].record["previous_hash"] == chain.GENESIS


async def test_a_new_event_is_published_at_once_in_a_batch_of_its_own(world: World) -> None:
    notebook = Notebook()
    async with relaying(world, notebook) as relay, asyncio.timeout(DEADLINE_S):
        await relay.caught_up()
        before = len(notebook.groups)
        await world.sell(700)
        await relay.caught_up()
    ledger, shard_log, registry = notebook.groups[before:]
    assert [len(ledger), len(shard_log), len(registry)] == [1, 1, 1]
    fact = shard_log[0].record
    assert (fact["credited_nano"], fact["revision"], fact["book_epoch"]) == (12 * 10**9, 3, 1)
    assert shard_log[0].event_id == registry[0].event_id
    assert shard_log[0].causation_id == str(ledger[0].event_id)


async def test_terms_go_to_every_shard_and_a_meter_to_the_one_it_leaves_and_enters(
    world: World,
) -> None:
    notebook = Notebook()
    await published(world, notebook)
    meter, account = await world.office.meter("M1"), await world.office.account("A1")
    where: dict[tuple[str, int], list[int | None]] = {}
    for record in notebook.records:
        if record.topic == "shard-log":
            revision = record.record["revision"]
            where.setdefault((record.subject, revision), []).append(record.partition)
    assert where["site-fact", 0] == where["tariff-fact", 0] == list(range(SHARDS))
    assert where["policy-fact", 0] == list(range(SHARDS))
    assert where["account-fact", 0] == [account.shard]
    assert where["meter-fact", 0] == [meter.house_shard]
    both = {meter.house_shard, account.shard}
    assert set(where["meter-fact", 1]) == both
    assert len(where["meter-fact", 1]) == len(both), "once, where they are one"
    assert "gateway-fact" not in {subject for subject, _ in where}


async def test_a_restart_publishes_again_from_the_checkpoint_the_very_same_records(
    world: World,
) -> None:
    first = Notebook()
    async with relaying(world, first) as relay, asyncio.timeout(DEADLINE_S):
        await relay.caught_up()
        await relay.checkpoint()
        at = first.checkpoint
        await world.sell(700)
        await world.sell(800)
        await relay.caught_up()
    second = Notebook()
    begin = await beginning(world.store, world.tables, at, book_epoch=1)
    assert begin == at.root
    await published(world, second, begin=begin)
    again = {identity(record) for record in second.records}
    before = {identity(record) for record in first.records}
    assert len(again & before) == 6
    assert [one[0] for one in again - before] == ["ledger"], "only the new checkpoint is new"
    assert second.checkpoint.root == await root_at(world.store, world.store.count())


@pytest.mark.parametrize("fail_at", [1, 2, 3, 4])
async def test_a_failure_between_any_two_groups_only_repeats(
    world: World, fail_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "RETRY_S", 0.0)
    calm, troubled = Notebook(), Notebook(fail_at)
    await published(world, calm)
    if fail_at == 4:  # the checkpoint: whoever asks for it tries again
        with pytest.raises(Retriable):
            await published(world, troubled)
        return
    await published(world, troubled)
    assert {identity(r) for r in troubled.records} == {identity(r) for r in calm.records}


async def test_checkpoints_follow_while_it_moves_and_are_written_once(world: World) -> None:
    notebook = Notebook()
    async with relaying(world, notebook) as relay, asyncio.timeout(DEADLINE_S):
        keeping = asyncio.create_task(relay.keep_checkpoints(interval_ms=1))
        await world.sell(700)
        while not (said := [r for r in notebook.records if r.subject == "ledger-checkpoint"]) or (
            said[-1].record["position"] < world.store.count()
        ):
            await asyncio.sleep(0.001)
        count = len(said)
        await relay.checkpoint()
        keeping.cancel()
    assert count == len([r for r in notebook.records if r.subject == "ledger-checkpoint"])
    assert said[-1].partition == 0
    assert said[-1].key == "checkpoint"


async def test_a_store_behind_its_checkpoint_is_not_used(world: World) -> None:
    notebook = Notebook()
    await published(world, notebook)
    told = notebook.checkpoint
    ahead = Checkpoint(1, Root(told.root.position + 1, told.root.count + 1, told.root.root))
    with pytest.raises(BookMismatch, match="does not have"):
        await beginning(world.store, world.tables, ahead, book_epoch=1)
    with pytest.raises(BookMismatch, match="of book epoch 2"):
        await beginning(world.store, world.tables, Checkpoint(2, told.root), book_epoch=1)


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_store_that_ends_before_its_book_epoch_was_raised_is_not_used(
    world: World, is_known: bool
) -> None:
    """Its last events are gone, and ledger says so only of the present book epoch."""
    head = await world.store.head()
    await world.tables.raise_book_epoch(2, head)
    last = Checkpoint(1, Root(head, head, bytes(32))) if is_known else None
    assert await beginning(world.store, world.tables, last, book_epoch=2) == START
    await world.tables.raise_book_epoch(3, head + 1)
    with pytest.raises(BookMismatch, match=f"raised behind position {head + 1}, which"):
        await beginning(world.store, world.tables, last, book_epoch=3)


async def test_a_store_that_has_not_what_ledger_has_is_not_used(world: World) -> None:
    """Also where no checkpoint speaks of it: it was told within the last interval."""
    *_, last = events = await world.store.read_all(0, 100)
    told = [ToldEvent(1, event.position, event.id) for event in events]
    await check_told(world.store, told, book_epoch=1)
    lost = ToldEvent(1, last.position + 1, uuid4())
    replaced = ToldEvent(1, last.position, uuid4())
    raised = ToldEvent(2, last.position, last.id)
    for other in (lost, replaced, raised):
        with pytest.raises(BookMismatch, match="lost its last writes"):
            await check_told(world.store, [*told, other], book_epoch=1)
    await check_told(world.store, [lost, replaced], book_epoch=2)


async def test_a_store_that_lost_what_it_told_ends_the_relay_and_with_it_the_service(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands at its positions now was never compared with `ledger`: the next start does."""

    async def went_back(_: int, __: int) -> list[StoredEvent]:
        raise StoreWentBack("as told")

    notebook = Notebook()
    monkeypatch.setattr(world.store, "read_all", went_back)
    async with relaying(world, notebook) as relay, asyncio.timeout(DEADLINE_S):
        with pytest.raises(StoreWentBack):
            await relay.run()
    assert notebook.records == []


async def test_another_history_is_not_used_though_it_is_as_long(
    tmp_path: Path, world: World
) -> None:
    notebook = Notebook()
    await published(world, notebook)
    async with vending_world.world(tmp_path / "other.sqlite") as other:
        await other.mall()
        await other.assign()
        await other.sell(501)
        await other.sell(502)
        with pytest.raises(BookMismatch, match="hash chain"):
            await beginning(other.store, other.tables, notebook.checkpoint, book_epoch=1)
        assert (
            await beginning(other.store, other.tables, notebook.checkpoint, book_epoch=2) == START
        )
        assert await beginning(other.store, other.tables, None, book_epoch=1) == START


async def test_a_raised_epoch_publishes_every_event_and_only_newest_facts(world: World) -> None:
    await world.tariff(price_micro=900_000)
    first, second = Notebook(), Notebook()
    await published(world, first)
    assert await world.tables.book_epoch() == 1
    await world.tables.raise_book_epoch(2, world.store.count())
    await published(world, second, book_epoch=await world.tables.book_epoch())
    facts = [r for r in second.records if r.topic == "registry"]
    entities = [record.key for record in facts]
    assert len(entities) == len(set(entities)), "an older fact would undo a newer one for a while"
    assert {"tariffs/T1/1", "tariffs/T1/2"} <= set(entities)
    assert {record.record["book_epoch"] for record in facts} == {2}
    ledgers = [[r for r in n.records if r.subject == "ledger-event"] for n in (first, second)]
    assert [r.event_id for r in ledgers[0]] == [r.event_id for r in ledgers[1]]


async def test_a_crash_amid_a_raised_epoch_does_not_undo_facts_after_the_restart(
    world: World,
) -> None:
    """What came before the raise was published once; what comes after it never was."""
    middle = world.store.count()
    await world.sell(700)
    await world.sell(800)
    await published(world, Notebook())
    await world.tables.raise_book_epoch(2, world.store.count())
    await world.sell(900)
    await world.sell(1000)
    notebook = Notebook()
    begin = await root_at(world.store, middle)
    await published(world, notebook, begin=begin, book_epoch=2)
    facts = [r.record for r in notebook.records if r.topic == "registry"]
    newest = facts[-1]["credited_nano"]
    sold = [newest - fact["credited_nano"] for fact in facts]
    assert sold == [19 * 10**9, 10 * 10**9, 0], "the sale of 7.00 is not told without that of 8.00"


# --- how much of a book a start reads -------------------------------------------------------------


class Counting:
    """A store that counts the events that are read of it."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self.read_events = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read(self, stream: StreamId, after: int = NO_EVENTS) -> list[StoredEvent]:
        events = await self._store.read(stream, after)
        self.read_events += len(events)
        return events

    async def read_all(self, after: int, limit: int) -> list[StoredEvent]:
        events = await self._store.read_all(after, limit)
        self.read_events += len(events)
        return events


@pytest.mark.parametrize("since", [0, 3])
async def test_a_start_reads_what_came_after_the_checkpoint_and_not_the_book(
    world: World, since: int
) -> None:
    for number in range(100):
        await world.account(f"B{number}")
    notebook = Notebook()
    await published(world, notebook)
    for number in range(since):
        await world.sell(100, f"B{number}")
    told, until = notebook.checkpoint, world.store.count()
    store = Counting(world.store)
    restarted = cast("World", SimpleNamespace(store=store, tables=world.tables, clock=world.clock))
    begin = await beginning(store, world.tables, told, 1)
    async with relaying(restarted, Notebook(), begin=begin) as relay:
        await relay.caught_up()
        assert relay.position == until
    assert await world.office.complete() == 0
    # Each event since, and of its stream those before it.
    assert store.read_events <= 4 * since


async def test_a_root_that_is_kept_no_more_is_read_on_from_the_last_one_before(
    world: World,
) -> None:
    notebook = Notebook()
    await published(world, notebook)
    await world.sell(100)
    await world.sell(100)
    root = await root_at(world.store, world.store.count())
    store = Counting(world.store)
    assert await beginning(store, world.tables, Checkpoint(1, root), 1) == root
    assert store.read_events == 2
    with pytest.raises(BookMismatch, match="hash chain"):
        await beginning(
            store, world.tables, Checkpoint(1, Root(root.position, root.count, bytes(32))), 1
        )
