"""What the store keeps, as the events that they are."""

from services.common.runtime import codec
from services.vending.domain import chain
from services.vending.domain.event_store import StoredEvent
from services.vending.domain.events import event_from
from services.vending.domain.events.event import Event


def event_of(stored: StoredEvent) -> Event:
    """Return what a stored event says."""
    meta = chain.read_meta(stored.meta)
    return event_from(stored.type, codec.decode(meta.schema, stored.data), meta.origin)
