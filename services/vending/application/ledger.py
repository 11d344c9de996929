"""What `ledger` tells of the book, read back: each event whole, in the order of the store."""

from collections.abc import AsyncIterator
from uuid import UUID

from services.common.kernel.values import value_class
from services.vending.domain import chain
from services.vending.domain.event_store import NewEvent, StoredEvent, StreamId
from services.vending.domain.tables import Checkpoint


@value_class
class LedgerEvent:
    """An event as it was told. `before`: the root of the chain over the store up to it.

    `meta`: None in records of releases that told only the version of the data.
    """

    position: int
    stream: StreamId
    revision: int
    id: UUID
    type: str
    data: bytes
    data_version: int
    meta: bytes | None
    before: bytes

    def stored(self, prev: bytes) -> StoredEvent:
        """Return the event as it was stored; `prev`: the hash of the one before it in its stream.

        Releases that told no metadata stored nothing in it but the version of the data and `prev`.
        """
        schema = f"{self.type}/{self.data_version}"
        meta = chain.meta_of(schema, prev) if self.meta is None else self.meta
        return StoredEvent(
            self.position, self.stream, self.revision, self.id, self.type, self.data, meta
        )


Ledger = AsyncIterator[LedgerEvent | Checkpoint]
"""Events in the order of positions, each once. A checkpoint comes after the events that it vouches
for, and perhaps after some more."""


def new_event(stored: StoredEvent) -> NewEvent:
    """Return an event to append as it was stored elsewhere."""
    return NewEvent(stored.id, stored.type, stored.data, stored.meta)
