"""Goal: every event store keeps the same promises (services/vending/domain/event_store.py).

Method: one class with every promise as a test; an implementation inherits it and gives `store`. A
promise that an implementation cannot keep is overridden there as a strict xfail, never left out.
"""

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    EventExists,
    EventStore,
    NewEvent,
    StoredEvent,
    StreamId,
    WrongRevision,
)

A = StreamId("account-A")
B = StreamId("account-B")
DEADLINE_S = 10.0


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


class EventStoreContract:
    """Inherit it and give the fixture `store`."""

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
