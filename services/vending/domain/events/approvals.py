"""Four eyes: who may do what alone, and what a second person said."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class AuthorityPublished(Event):
    SUBJECT: ClassVar[str] = "authority-published"

    legal_entity: str
    version: int
    currency: str
    rules: str
    proposals_last_ms: int


@named_value_class
class CommandProposed(Event):
    SUBJECT: ClassVar[str] = "command-proposed"

    approval_id: str
    legal_entity: str
    action: str
    target: str
    command: str
    content: str
    expires_at_ms: int


@named_value_class
class ProposalApproved(Event):
    SUBJECT: ClassVar[str] = "proposal-approved"

    approval_id: str
    reason: str


@named_value_class
class ProposalDeclined(Event):
    SUBJECT: ClassVar[str] = "proposal-declined"

    approval_id: str
    reason: str


@named_value_class
class ProposalExpired(Event):
    SUBJECT: ClassVar[str] = "proposal-expired"

    approval_id: str


@named_value_class
class ProposalExecuted(Event):
    SUBJECT: ClassVar[str] = "proposal-executed"

    approval_id: str
    target: str
    revision: int


@named_value_class
class ProposalFailed(Event):
    SUBJECT: ClassVar[str] = "proposal-failed"

    approval_id: str
    reason: str
    message: str
