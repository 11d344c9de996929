"""Goal: the fake that tests use keeps the promises of the real stores. Method: the contract."""

import pytest

from services.vending.adapters.memory_store import MemoryEventStore
from tests.contract.event_store import EventStoreContract


class TestMemoryEventStore(EventStoreContract):
    """The contract, in memory."""

    @pytest.fixture
    def store(self) -> MemoryEventStore:
        return MemoryEventStore()
