"""The events of the book. Each is the Avro record of its subject (schemas/avro/<SUBJECT>.avsc).

Fields carry their units in their names; their meaning is documented in the schemas. Persons appear
only as `subject_id`. An event stands in the module of its area, and is imported from there
(docs/decisions/0041); a new one needs no other line than its class.
"""

from typing import Any

from services.common.kernel.errors import Bug
from services.vending.domain.events import (
    accounts,
    approvals,
    batches,
    closings,
    corrections,
    documents,
    meters,
    openings,
    payments,
    prices,
    refunds,
    sales,
    sites,
    usage,
)
from services.vending.domain.events.event import Event
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.postings import Posting

_AREAS = (
    accounts,
    approvals,
    batches,
    closings,
    corrections,
    documents,
    meters,
    openings,
    payments,
    prices,
    refunds,
    sales,
    sites,
    usage,
)
EVENTS: dict[str, type[Event]] = {
    kind.SUBJECT: kind
    for area in _AREAS
    for kind in vars(area).values()
    if isinstance(kind, type) and issubclass(kind, Event) and hasattr(kind, "SUBJECT")
}


def event_from(subject: str, record: dict[str, Any], origin: Origin = NOBODY) -> Event:
    """Return the event of an Avro record. Raises Bug for a subject that is no event."""
    kind = EVENTS.get(subject)
    if kind is None:
        raise Bug(f"{subject} is no event of the book; a newer vending wrote it: run that one")
    if (listed := record.get("postings")) is not None:
        record = {**record, "postings": tuple([Posting(**posting) for posting in listed])}
    return kind(**record, origin=origin)
