"""Documents: drafts of a version of a tariff or a policy."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class DocumentDrafted(Event):
    SUBJECT: ClassVar[str] = "document-drafted"

    document_id: str
    kind: str
    target_id: str
    legal_entity: str
    base_version: int
    replaces: str | None
    content: str


@named_value_class
class DocumentSubmitted(Event):
    SUBJECT: ClassVar[str] = "document-submitted"

    document_id: str


@named_value_class
class DocumentWithdrawn(Event):
    SUBJECT: ClassVar[str] = "document-withdrawn"

    document_id: str
    reason: str
