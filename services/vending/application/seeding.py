"""What the book knows of a shard of metering, from which that can be seeded anew.

Of each account what was posted last, with metering's row in it, and the fact that metering had
then; of all that the shard is told of every version of its fact, so that whoever reads the shard
log finds the one that stood at any of its offsets.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any

from services.common.kernel.errors import WattvendError
from services.common.kernel.ids import house_account_id
from services.common.kernel.routing import partition_of
from services.common.kernel.values import value_class
from services.common.runtime import codec
from services.vending.application.relay import SCAN_EVENTS_MAX
from services.vending.application.stored import event_of
from services.vending.domain.account import Account
from services.vending.domain.event_store import FROM_START, EventStore, StoredEvent, StreamId
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.facts import Told, fact_of
from services.vending.domain.streams import State, entity_of, evolve_of
from services.vending.domain.tables import Tables

HOUSE = house_account_id("")
Line = dict[str, Any]
"""One of the file: what services/metering/adapters/seeding.py reads."""


@value_class
class Place:
    """Which shard, of how many; and the book's epoch, which began behind `raised_at`."""

    shard: int
    shards: int
    book_epoch: int
    raised_at: int


class Seeding:
    """Folds a book, event by event, into what one shard can be seeded from."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._states: dict[StreamId, State] = {}
        self._facts: dict[str, list[tuple[str, Line]]] = defaultdict(list)
        """By entity: (subject, fact), in the order of the book."""
        self._posted: dict[str, UsagePosted] = {}
        self._opened_at_ms: dict[str, int] = {}

    @property
    def accounts(self) -> int:
        """How many accounts of the shard are known, houses not among them."""
        return len(self._opened_at_ms)

    @property
    def posted(self) -> int:
        """Of how many of them something was posted."""
        return len(self._posted)

    def take(self, stored: StoredEvent) -> None:
        """Take the next event of the book."""
        stream, place = stored.stream, self._place
        kind, name = entity_of(stream)
        if kind == "account" and partition_of(name, place.shards) != place.shard:
            return
        event = event_of(stored)
        state = self._states[stream] = evolve_of(stream)(self._states.get(stream), event)
        if isinstance(state, Account) and not name.startswith(HOUSE):
            self._opened_at_ms.setdefault(name, event.occurred_at_ms)
        if isinstance(state, Told):
            self._keep_fact(stored, state)
        if isinstance(event, UsagePosted):
            self._keep_posted(event)

    def _keep_fact(self, stored: StoredEvent, state: Told) -> None:
        place = self._place
        epochs = [place.book_epoch]
        if stored.position <= place.raised_at:  # told in an earlier one, and the last again
            epochs.insert(0, place.book_epoch - 1)
        for epoch in epochs:
            fact = fact_of(state, book_epoch=epoch, shards=place.shards)
            if place.shard in fact.shards:
                told = codec.encode(fact.subject, fact.record)
                record = codec.decode(codec.schema_header(fact.subject), told)
                self._facts[fact.entity].append((fact.subject, record))

    def _keep_posted(self, event: UsagePosted) -> None:
        """Keep a posting; facts from before the one that metering had then are not needed."""
        facts = self._facts[f"accounts/{event.account_id}"]
        later = [each for each in facts if each[1]["revision"] >= event.account_revision]
        if (
            later and later[0][1]["revision"] == event.account_revision
        ):  # else a restored store lost it
            self._posted[event.account_id] = event
            facts[:] = later

    def lines(self) -> list[Line]:
        """Return what the shard can be seeded from."""
        found: list[Line] = [{"shard": self._place.shard}]
        for account_id, event in self._posted.items():
            found.append({"posted": self._posting(account_id, event)})
        for account_id in sorted(self._opened_at_ms.keys() - self._posted.keys()):
            (_, fact), *_ = self._facts[f"accounts/{account_id}"]
            at_ms = self._opened_at_ms[account_id]
            found.append({"opened": {"account_key": fact["account_key"], "at_ms": at_ms}})
        for facts in self._facts.values():
            found += [{"subject": subject, "fact": fact} for subject, fact in _of_each(facts)]
        return found

    def _posting(self, account_id: str, event: UsagePosted) -> Line:
        facts = self._facts[f"accounts/{account_id}"]
        (_, fact), *_ = facts
        return {
            "account_key": fact["account_key"],
            "log_offset": event.log_offset,
            "row": event.row.hex(),
            "fact": fact | {"book_epoch": event.book_epoch},
        }


def _of_each(facts: list[tuple[str, Line]]) -> list[tuple[str, Line]]:
    """Return facts of an entity; of those before the epoch was raised the last one again."""
    newest = max(fact["book_epoch"] for _, fact in facts)
    again = {fact["revision"] for _, fact in facts if fact["book_epoch"] < newest}
    last = max(again, default=0)
    return [
        (subject, fact)
        for subject, fact in facts
        if fact["book_epoch"] < newest or fact["revision"] >= last
    ]


async def seeding(
    store: EventStore,
    tables: Tables,
    shard: int,
    shards: int,
    progress: Callable[[int, int], None] = lambda _at, _of: None,
) -> Seeding:
    """Return what a book knows of a shard, up to the last checkpoint: what was told everywhere.

    Raises WattvendError where the book ends before that.
    """
    checkpoints = await tables.checkpoints()
    until = checkpoints[-1].root.position if checkpoints else FROM_START
    place = Place(shard, shards, await tables.book_epoch(), await tables.raised_at())
    found = Seeding(place)
    async for stored in _events(store, until):
        found.take(stored)
        progress(stored.position, until)
    return found


async def _events(store: EventStore, until: int) -> AsyncIterator[StoredEvent]:
    position = FROM_START
    while position < until:
        events = await store.read_all(position, SCAN_EVENTS_MAX)
        if not events:
            raise WattvendError(
                f"the event store ends at position {position}, and its last checkpoint vouches for "
                f"more, up to {until}: it was restored to an earlier point. Mend that first (start "
                "vending, which says how): metering knows what this store does not"
            )
        for stored in events:
            if stored.position > until:
                return
            yield stored
            position = stored.position
