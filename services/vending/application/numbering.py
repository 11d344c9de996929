"""Numbers of receipts: without a gap for each legal entity, in the order of the store.

Sales run in many streams and know nothing of each other. The store has one order of all of them,
so a number is how many documents of the legal entity stand there up to a position: nothing is
handed out that could be lost, and whoever counts again, in this store or in a copy of it, comes to
the same.
"""

from collections.abc import Iterable

from services.common.kernel.errors import Retriable
from services.common.runtime import points
from services.vending.application.stored import event_of
from services.vending.domain.event_store import EventStore, StoredEvent
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.event import Event
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.tables import Document, Tables

DOCUMENTS = (CreditSold, SaleReversed, CreditRefunded)
"""Events that a person gets a paper of."""
SUBJECTS = frozenset(kind.SUBJECT for kind in DOCUMENTS)
SCAN_EVENTS_MAX = 5_000


class Numbering:
    """Gives numbers. One a book: whoever follows the order of the store uses it."""

    def __init__(self, store: EventStore, tables: Tables) -> None:
        """Go on where `tables` say that it stopped."""
        self._store = store
        self._tables = tables
        self._until: int | None = None
        self._last: dict[str, int] = {}

    async def catch_up(self, position: int) -> None:
        """Give numbers to what stands in the store up to a position and has none yet."""
        until = await self._known_until()
        while until < position:
            stored = await self._store.read_all(until, SCAN_EVENTS_MAX)
            batch = [event for event in stored if event.position <= position]
            if not batch:
                return
            papers = [(e, event_of(e)) for e in batch if e.type in SUBJECTS]
            until = batch[-1].position
            await self.give(papers, until)

    async def give(self, batch: Iterable[tuple[StoredEvent, Event]], until: int) -> None:
        """Give numbers to the documents of a batch, which ends at position `until`, in its order.

        What has its number keeps it: a batch may come again.
        """
        known_until = await self._known_until()
        if until <= known_until:
            return
        documents: list[Document] = []
        for stored, event in batch:
            if isinstance(event, DOCUMENTS) and stored.position > known_until:
                number = self._last.get(event.legal_entity, 0) + 1
                self._last[event.legal_entity] = number
                documents.append(
                    Document(
                        event.receipt_id,
                        event.legal_entity,
                        number,
                        stored.stream,
                        stored.revision,
                        stored.position,
                    )
                )
        try:
            await self._tables.keep_documents(documents, until)
        except Retriable:
            self._until = None  # perhaps they are kept: the tables will say
            raise
        self._until = until
        points.point("numbered")

    async def _known_until(self) -> int:
        if self._until is None:
            self._last = await self._tables.last_numbers()
            self._until = await self._tables.numbered_until()
        return self._until
