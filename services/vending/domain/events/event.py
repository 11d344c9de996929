"""What every event of the book says."""

from dataclasses import fields
from functools import cache
from typing import Any, ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.postings import Postings, check_balanced

RequestKey = tuple[str, str]
"""(caller, request_id): ids are unique to a caller."""


@named_value_class
class Event:
    """What every event says: who asked for what, and when it was decided.

    `origin` stands in the metadata, not in the record.
    """

    SUBJECT: ClassVar[str]

    caller: str
    request_id: str
    fingerprint: bytes
    occurred_at_ms: int
    origin: Origin = NOBODY

    @property
    def key(self) -> RequestKey:
        """The request that caused it."""
        return (self.caller, self.request_id)

    def record(self) -> dict[str, Any]:
        """Return the Avro record."""
        names = _recorded(type(self))  # type: ignore[arg-type] # a class is hashable
        return {name: getattr(self, name) for name in names}


@named_value_class
class MoneyEvent(Event):
    """An event that moves money: its postings sum to zero. None: of before there were any."""

    account_id: str
    currency: str
    legal_entity: str
    commodity: str
    postings: Postings | None

    def __post_init__(self) -> None:
        """Raise Bug where the postings do not sum to zero."""
        if self.postings is not None:
            check_balanced(self.postings)

    def record(self) -> dict[str, Any]:
        """Return the Avro record."""
        record = Event.record(self)
        if self.postings is not None:
            record["postings"] = [
                {"account": posting.account, "amount_nano": posting.amount_nano}
                for posting in self.postings
            ]
        return record


@cache
def _recorded(kind: type[Event]) -> tuple[str, ...]:
    """Return the fields of a kind that stand in its record."""
    return tuple(field.name for field in fields(kind) if field.name != "origin")
