"""Follows the chain of each stream: what continues it, and what does not."""

from collections.abc import Iterable

from services.vending.domain.chain import GENESIS, prev_of, stored_hash
from services.vending.domain.event_store import StoredEvent, StreamId


class BrokenChain(Exception):  # noqa: N818 - says what was found
    """A stored event is not what was written."""


def check_stream_chain(events: Iterable[StoredEvent]) -> None:
    """Raise BrokenChain at the first event that does not continue its stream."""
    last: dict[StreamId, tuple[int, bytes]] = {}
    for event in events:
        revision, prev = last.get(event.stream, (-1, GENESIS))
        if event.revision != revision + 1 or prev_of(event.meta) != prev:
            raise BrokenChain(f"{event.stream} breaks at revision {event.revision}")
        last[event.stream] = (event.revision, stored_hash(event))
