"""The headers that every record on the bus carries."""

from collections.abc import Iterable, Sequence
from uuid import UUID

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class

Headers = Sequence[tuple[str, bytes]]


@value_class
class Envelope:
    """Who a record is and what caused it.

    `schema` is "subject/version" of the value; `event_id` the UUIDv5 of its natural identity;
    `occurred_at_ms` when it happened; `causation_id` the event_id, or topic-partition-offset, that
    caused it; `traceparent` as W3C Trace Context, "" where nothing is traced.
    """

    schema: str
    event_id: UUID
    occurred_at_ms: int
    causation_id: str = ""
    traceparent: str = ""

    @property
    def subject(self) -> str:
        """The subject without its version."""
        return self.schema.partition("/")[0]

    def headers(self) -> list[tuple[str, bytes]]:
        """Return Kafka headers."""
        return [
            ("schema", self.schema.encode()),
            ("event_id", self.event_id.bytes),
            ("occurred_at", str(self.occurred_at_ms).encode()),
            ("causation_id", self.causation_id.encode()),
            ("traceparent", self.traceparent.encode()),
        ]

    @classmethod
    def from_headers(cls, headers: Iterable[tuple[str, bytes]]) -> "Envelope":
        """Return the envelope of a record. Raises InvalidInput where a header is missing or odd."""
        found = dict(headers)
        try:
            return cls(
                found["schema"].decode(),
                UUID(bytes=bytes(found["event_id"])),
                int(found["occurred_at"]),
                found["causation_id"].decode(),
                found["traceparent"].decode(),
            )
        except (KeyError, ValueError, TypeError, AttributeError) as odd:  # Kafka knows null values
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"the record's headers are not an envelope ({odd!r}); "
                "schema, event_id, occurred_at, causation_id and traceparent must be there",
                field="headers",
            ) from odd
