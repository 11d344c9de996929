"""Goal: every event store keeps the same promises (services/vending/domain/event_store.py).

Method: one class with every promise as a test; an implementation inherits it and gives `store` and
what it takes to break it. A promise that an implementation cannot keep is overridden there as a
strict xfail, never left out. What only a store that lasts can promise is a class of its own: a
child process with 32 writers is killed with SIGKILL, and its acknowledgements are compared with
what is stored.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from uuid import UUID, uuid4

import pytest
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import WattvendError
from services.vending.adapters import stores
from services.vending.application.book import Book
from services.vending.domain import site
from services.vending.domain.decisions import Decision, Request, fingerprint
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    EventExists,
    EventStore,
    NewEvent,
    StoredEvent,
    StoreUnavailable,
    StreamId,
    WrongRevision,
)
from services.vending.metrics import Metrics

A = StreamId("account-A")
B = StreamId("account-B")
DEADLINE_S = 30.0
KILLS = 3
ACKNOWLEDGED_BEFORE_KILL = 300

Unsure = Callable[[bool], AbstractAsyncContextManager[None]]
"""Within it the outcome of the next append is unknown; it is stored (True) or not."""
FullDisk = Callable[[], AbstractAsyncContextManager[None]]
"""Within it nothing can be stored."""
Outside = Callable[[int], Awaitable[list[int]]]
"""Return the positions above one, as a reader with a connection of its own sees them."""


def new(data: bytes = b"data", event_id: UUID | None = None) -> NewEvent:
    return NewEvent(event_id or uuid4(), "credit-sold", data, b"meta of " + data)


async def take(store: EventStore, after: int, count: int) -> list[StoredEvent]:
    """Return the first `count` events that a subscription yields."""
    found: list[StoredEvent] = []
    async with asyncio.timeout(DEADLINE_S):
        async for events in store.subscribe_all(after):
            found += events
            if len(found) >= count:
                break
    return found


async def write(store: EventStore, stream: StreamId, sizes: Sequence[int]) -> None:
    """Append so many events after each other to a stream that is the writer's own."""
    revision = NO_EVENTS
    for size in sizes:
        revision = (await store.append(stream, revision, [new() for _ in range(size)])).revision


async def insist(store: EventStore, stream: StreamId, data: Sequence[bytes]) -> None:
    """Append events to a stream that others write too, each when the one before is stored."""
    for one in data:
        while True:
            try:
                await store.append(stream, len(await store.read(stream)) - 1, [new(one)])
                break
            except WrongRevision:
                await asyncio.sleep(0)


class EventStoreContract:
    """Inherit it and give the fixtures `store` and `unsure`."""

    async def test_what_was_appended_is_read_back_in_order_and_whole(
        self, store: EventStore
    ) -> None:
        first, second, third = new(b""), new(b"\x00\xff" * 9), new(b"3")
        await store.append(A, NO_EVENTS, [first, second])
        appended = await store.append(A, 1, [third])
        found = await store.read(A)
        assert [NewEvent(e.id, e.type, e.data, e.meta) for e in found] == [first, second, third]
        assert [e.revision for e in found] == [0, 1, 2]
        assert {e.stream for e in found} == {A}
        assert (appended.revision, appended.position) == (2, found[-1].position)

    async def test_a_stream_is_read_from_after_a_revision(self, store: EventStore) -> None:
        await store.append(A, NO_EVENTS, [new(), new(), new()])
        assert [e.revision for e in await store.read(A, 0)] == [1, 2]
        assert await store.read(A, 2) == []
        assert await store.read(B) == []

    @pytest.mark.parametrize("expected", [NO_EVENTS, 0, 2, 7])
    async def test_another_revision_than_expected_is_refused_and_named(
        self, store: EventStore, expected: int
    ) -> None:
        await store.append(A, NO_EVENTS, [new(), new()])
        with pytest.raises(WrongRevision) as wrong:
            await store.append(A, expected, [new()])
        assert (wrong.value.expected, wrong.value.actual) == (expected, 1)
        assert len(await store.read(A)) == 2

    async def test_a_stream_that_is_not_there_is_not_at_revision_0(self, store: EventStore) -> None:
        with pytest.raises(WrongRevision) as wrong:
            await store.append(A, 0, [new()])
        assert wrong.value.actual == NO_EVENTS
        assert await store.read_all(FROM_START, 10) == []

    async def test_a_known_event_id_is_refused_whatever_its_stream(self, store: EventStore) -> None:
        known = new()
        await store.append(A, NO_EVENTS, [known])
        with pytest.raises(EventExists):
            await store.append(A, 0, [new(), known])
        with pytest.raises(EventExists):
            await store.append(B, NO_EVENTS, [known])
        with pytest.raises(EventExists):
            await store.append(B, NO_EVENTS, [twice := new(), twice])
        assert len(await store.read_all(FROM_START, 10)) == 1
        await store.append(B, NO_EVENTS, [new()])

    async def test_all_is_read_in_the_order_of_positions_from_any_of_them(
        self, store: EventStore
    ) -> None:
        await store.append(A, NO_EVENTS, [new(b"1"), new(b"2")])
        await store.append(B, NO_EVENTS, [new(b"3")])
        await store.append(A, 1, [new(b"4")])
        everything = await store.read_all(FROM_START, 10)
        assert [e.data for e in everything] == [b"1", b"2", b"3", b"4"]
        positions = [e.position for e in everything]
        assert positions == sorted(set(positions))
        assert positions[0] > FROM_START
        assert await store.read_all(positions[1], 1) == [everything[2]]
        assert await store.read_all(positions[-1], 10) == []

    async def test_an_event_is_found_at_its_position_and_none_beside_it(
        self, store: EventStore
    ) -> None:
        assert await store.event_at(1) is None
        await store.append(A, NO_EVENTS, [new(b"1"), new(b"2")])
        first, second = await store.read_all(FROM_START, 10)
        assert [await store.event_at(e.position) for e in (first, second)] == [first, second]
        assert await store.event_at(second.position + 1) is None
        assert await store.event_at(first.position - 1) is None

    async def test_the_head_is_the_last_position_and_the_count_how_many_there_are(
        self, store: EventStore
    ) -> None:
        assert (await store.head(), store.count()) == (FROM_START, 0)
        await store.append(A, NO_EVENTS, [new(), new()])
        last = await store.append(B, NO_EVENTS, [new()])
        assert (await store.head(), store.count()) == (last.position, 3)

    async def test_its_writer_may_look_at_any_time_whether_it_still_is(
        self, store: EventStore
    ) -> None:
        await store.check_writer()
        appends = [write(store, StreamId(f"account-{n}"), [1, 1]) for n in range(3)]
        await asyncio.gather(store.check_writer(), *appends, store.check_writer())
        assert store.count() == 6

    async def test_of_many_who_append_at_one_revision_exactly_one_succeeds(
        self, store: EventStore
    ) -> None:
        answers = await asyncio.gather(
            *(store.append(A, NO_EVENTS, [new()]) for _ in range(20)), return_exceptions=True
        )
        assert sum(not isinstance(answer, BaseException) for answer in answers) == 1
        assert sum(isinstance(answer, WrongRevision) for answer in answers) == 19
        assert len(await store.read(A)) == 1

    async def test_a_poisoned_append_does_not_fail_its_neighbours(self, store: EventStore) -> None:
        known = new()
        await store.append(A, NO_EVENTS, [known])
        streams = [StreamId(f"account-{n}") for n in range(9)]
        works: list[tuple[StreamId, int, Sequence[NewEvent]]] = [
            (stream, NO_EVENTS, [new()]) for stream in streams
        ]
        works.insert(2, (B, NO_EVENTS, [new(), known]))
        works.insert(5, (A, 5, [new()]))
        answers = await asyncio.gather(
            *(store.append(*work) for work in works), return_exceptions=True
        )
        failed = [n for n, answer in enumerate(answers) if isinstance(answer, BaseException)]
        assert failed == [2, 5]
        assert await store.read(B) == []
        for stream in streams:
            assert len(await store.read(stream)) == 1

    async def test_a_subscription_yields_what_was_and_what_comes_once_and_in_order(
        self, store: EventStore
    ) -> None:
        await store.append(A, NO_EVENTS, [new(b"1"), new(b"2"), new(b"3")])
        (first, *_) = await store.read_all(FROM_START, 1)
        taking = asyncio.create_task(take(store, first.position, 42))
        for revision in range(2, 42):
            await store.append(A, revision, [new(str(revision + 2).encode())])
        assert [int(e.data) for e in await taking] == list(range(2, 44))

    async def test_two_subscriptions_see_the_same(self, store: EventStore) -> None:
        taking = [asyncio.create_task(take(store, FROM_START, 5)) for _ in range(2)]
        for revision in range(-1, 4):
            await store.append(A, revision, [new()])
        first, second = await asyncio.gather(*taking)
        assert first == second

    async def test_a_subscription_that_ends_leaves_the_store_usable(
        self, store: EventStore
    ) -> None:
        waiting = asyncio.create_task(take(store, FROM_START, 1))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await store.append(A, NO_EVENTS, [new()])
        assert len(await take(store, FROM_START, 1)) == 1

    async def test_several_events_of_an_append_are_seen_all_or_not_at_all(
        self, store: EventStore
    ) -> None:
        writing = asyncio.create_task(write(store, A, [3] * 60))
        seen = set()
        while not writing.done():
            seen.add(len(await store.read(A)))
            await asyncio.sleep(0)
        await writing
        assert {count % 3 for count in seen} == {0}
        assert len(await store.read(A)) == 180

    async def test_of_writers_beside_each_other_no_reader_sees_a_hole_that_is_filled_later(
        self, store: EventStore
    ) -> None:
        streams = [StreamId(f"account-{n}") for n in range(16)]
        total = 16 * 60
        following = asyncio.create_task(take(store, FROM_START, total))
        writing = [asyncio.create_task(write(store, s, [1, 2, 1, 2] * 10)) for s in streams]
        polled: list[StoredEvent] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(polled) < total:
                after = polled[-1].position if polled else FROM_START
                polled += await store.read_all(after, 7)
                await asyncio.sleep(0)
        await asyncio.gather(*writing)
        everything = await store.read_all(FROM_START, 10 * total)
        assert polled == everything
        assert await following == everything
        for stream in streams:
            mine = [event.revision for event in everything if event.stream == stream]
            assert mine == list(range(60))

    async def test_writers_of_one_stream_get_each_event_in_once_and_in_their_order(
        self, store: EventStore
    ) -> None:
        said = [[b"%d %d" % (writer, number) for number in range(12)] for writer in range(8)]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(insist(store, A, mine) for mine in said))
        found = await store.read(A)
        assert [event.revision for event in found] == list(range(8 * 12))
        for mine in said:
            assert [event.data for event in found if event.data in mine] == mine

    async def test_a_stream_of_10_000_events_is_read_whole_and_in_part(
        self, store: EventStore
    ) -> None:
        await write(store, A, [500] * 20)
        found = await store.read(A)
        assert [event.revision for event in found] == list(range(10_000))
        assert await store.read(A, 9_989) == found[-10:]
        assert await take(store, FROM_START, 10_000) == found
        assert (await store.append(A, 9_999, [new()])).revision == 10_000

    @pytest.mark.parametrize("stored", [True, False])
    async def test_an_unknown_outcome_is_known_when_the_stream_is_read_again(
        self, store: EventStore, unsure: Unsure, *, stored: bool
    ) -> None:
        await store.append(B, NO_EVENTS, [before := new()])
        following = asyncio.create_task(take(store, FROM_START, 3 if stored else 2))
        event = new()
        async with unsure(stored):
            with pytest.raises(StoreUnavailable):
                await store.append(A, NO_EVENTS, [event])
            found = [known.id for known in await store.read(A)]
        assert found == ([event.id] if stored else [])
        await store.append(A, len(found) - 1, [after := new()])
        assert [known.id for known in await following] == [before.id, *found, after.id]

    @pytest.mark.parametrize("stored", [True, False])
    async def test_a_command_whose_append_has_an_unknown_outcome_is_answered_and_done_once(
        self, store: EventStore, unsure: Unsure, *, stored: bool
    ) -> None:
        book = Book(store, Metrics(CollectorRegistry()))
        request = Request("till", str(uuid4()), fingerprint("site"), 1)
        command = site.RegisterSite(request, "S1", "Mall", "UTC", "CNY", "LE1", 10)

        def decide(state: site.Site | None) -> Decision:
            return site.decide(state, command)

        async with unsure(stored):
            first = await book.submit(site.Site, "S1", decide)
        again = await book.submit(site.Site, "S1", decide)
        assert first.revision == again.revision == 0
        assert len(await store.read_all(FROM_START, 10)) == 1


class DurableEventStoreContract(EventStoreContract):
    """Inherit it where a store outlives its process. Give also `address`, `full_disk`, `outside`.

    Nobody has the book at `address` open before `store` is asked for.
    """

    async def test_what_was_answered_is_there_when_the_store_is_opened_again(
        self, address: str
    ) -> None:
        async with stores.opened(address, "test") as first:
            await first.store.append(A, NO_EVENTS, [new(b"kept")])
        async with stores.opened(address, "test") as second:
            assert [event.data for event in await second.store.read(A)] == [b"kept"]
            assert second.store.count() == 1
            await second.store.append(A, 0, [new(b"more")])
            assert [event.data for event in await take(second.store, FROM_START, 2)] == [
                b"kept",
                b"more",
            ]

    async def test_a_second_owner_is_refused_also_in_another_process(self, address: str) -> None:
        async with stores.opened(address, "first") as first:
            with pytest.raises(WattvendError, match=r"is in use by .*: stop it"):
                async with stores.opened(address, "second"):
                    pass
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-c", SECOND_OWNER, address
            )
            assert await child.wait() == REFUSED
            await first.store.append(A, NO_EVENTS, [new()])

    async def test_a_reader_outside_sees_no_hole_that_is_filled_later(
        self, store: EventStore, outside: Outside
    ) -> None:
        writing = [
            asyncio.create_task(write(store, StreamId(f"account-{n}"), [1, 2] * 20))
            for n in range(16)
        ]
        seen: list[int] = []
        async with asyncio.timeout(DEADLINE_S):
            while len(seen) < 16 * 60:
                seen += await outside(seen[-1] if seen else FROM_START)
                await asyncio.sleep(0)
        await asyncio.gather(*writing)
        assert seen == [event.position for event in await store.read_all(FROM_START, 10**6)]

    async def test_a_full_disk_refuses_what_comes_and_takes_nothing_away(
        self, store: EventStore, full_disk: FullDisk
    ) -> None:
        await store.append(A, NO_EVENTS, [kept := new()])
        async with full_disk():
            large = [new(bytes(100_000)) for _ in range(9)]
            answers = await asyncio.gather(
                *(
                    store.append(StreamId(f"account-{n}"), NO_EVENTS, [event])
                    for n, event in enumerate(large)
                ),
                return_exceptions=True,
            )
            assert [type(answer) for answer in answers] == [StoreUnavailable] * 9
            assert [event.id for event in await store.read(A)] == [kept.id]
        await store.append(A, 0, [later := new()])
        found = await store.read_all(FROM_START, 10)
        assert [event.id for event in found] == [kept.id, later.id]

    @pytest.mark.parametrize("run", range(KILLS))
    async def test_nothing_acknowledged_is_lost_by_a_kill_among_32_writers(
        self, address: str, run: int
    ) -> None:
        acknowledged = await asyncio.to_thread(acknowledged_before_a_kill, address, run)
        assert len(acknowledged) >= ACKNOWLEDGED_BEFORE_KILL
        async with stores.opened(address, "after the kill") as opened:
            events = await opened.store.read_all(FROM_START, 10**6)
            assert opened.store.count() == len(events)
        stored = {(event.stream, event.revision): event.id for event in events}
        for name, revision, event_id in acknowledged:
            assert stored[StreamId(name), int(revision)] == UUID(event_id)
        positions = [event.position for event in events]
        assert positions == sorted(set(positions))
        for stream in {event.stream for event in events}:
            revisions = [event.revision for event in events if event.stream == stream]
            assert revisions == list(range(len(revisions)))
            assert len(revisions) % EVENTS_AN_APPEND == 0, "of an append all is stored, or nothing"


class DenseEventStoreContract(DurableEventStoreContract):
    """Inherit it where positions are dense and in the order of appends: a book keeps them."""

    async def test_appends_that_wait_together_are_stored_in_the_order_in_which_they_came(
        self, store: EventStore
    ) -> None:
        streams = [A, B, A, A, StreamId("account-C"), B, A]
        works = [
            store.append(stream, streams[:number].count(stream) - 1, [new(b"%d" % number)])
            for number, stream in enumerate(streams)
        ]
        await asyncio.gather(*works)
        everything = await store.read_all(FROM_START, 10)
        assert [int(event.data) for event in everything] == list(range(7))
        assert [event.position for event in everything] == list(range(1, 8))
        assert [event.stream for event in everything] == streams


REFUSED = 7
SECOND_OWNER = f"""
import asyncio, sys
from services.common.kernel.errors import WattvendError
from services.vending.adapters import stores

async def main():
    try:
        async with stores.opened(sys.argv[1], "second"):
            pass
    except WattvendError:
        sys.exit({REFUSED})

asyncio.run(main())
"""
EVENTS_AN_APPEND = 3
WRITERS = """
import asyncio, sys, uuid
from services.vending.adapters import stores
from services.vending.domain.event_store import NewEvent

async def write(store, name):
    size = int(sys.argv[3])
    for revision in range(0, 10**9, size):
        events = [NewEvent(uuid.uuid4(), "t", b"x" * 100, b"") for _ in range(size)]
        await store.append(name, revision - 1, events)
        for number, event in enumerate(events, revision):
            sys.stdout.write(f"{name} {number} {event.id}\\n")
        sys.stdout.flush()

async def main():
    async with stores.opened(sys.argv[1], "to be killed") as opened:
        run = sys.argv[2]
        writers = (write(opened.store, f"account-{run}-{n}") for n in range(32))
        await asyncio.gather(*writers)

asyncio.run(main())
"""


def acknowledged_before_a_kill(address: str, run: int) -> list[list[str]]:
    """Run a child with 32 writers, kill it, return what it acknowledged: stream, revision, id."""
    child = subprocess.Popen(
        [sys.executable, "-c", WRITERS, address, str(run), str(EVENTS_AN_APPEND)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(ACKNOWLEDGED_BEFORE_KILL)]
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    child.wait()
    return [line.split() for line in lines if line.endswith("\n")]
