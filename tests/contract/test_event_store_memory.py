"""Goal: the fake that tests use keeps the promises of the real stores. Method: the contract."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from services.vending.adapters.memory_store import MemoryEventStore
from services.vending.domain.event_store import Appended, NewEvent, StoreUnavailable, StreamId
from tests.contract.event_store import EventStoreContract, Unsure


@pytest.fixture
def unsure(store: MemoryEventStore, monkeypatch: pytest.MonkeyPatch) -> Unsure:
    @asynccontextmanager
    async def unsure(stored: bool) -> AsyncIterator[None]:
        append = store.append

        async def fails(stream: StreamId, expected: int, events: Sequence[NewEvent]) -> Appended:
            monkeypatch.setattr(store, "append", append)
            if stored:
                await append(stream, expected, events)
            raise StoreUnavailable("as told")

        monkeypatch.setattr(store, "append", fails)
        yield

    return unsure


class TestMemoryEventStore(EventStoreContract):
    """The contract, in memory."""

    @pytest.fixture
    def store(self) -> MemoryEventStore:
        return MemoryEventStore()
