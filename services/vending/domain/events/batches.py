"""Batches: what is done to many accounts, round by round."""

from typing import Any, ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class BatchCreated(Event):
    SUBJECT: ClassVar[str] = "batch-created"

    batch_id: str
    kind: str
    legal_entity: str
    currency: str
    reason: str
    method: str | None
    tariff_id: str | None
    policy_id: str | None
    filter: str
    as_of_ms: int | None
    targets_count: int
    total_minor: int
    from_ms: int | None
    to_ms: int | None


@named_value_class
class BatchTargets(Event):
    SUBJECT: ClassVar[str] = "batch-targets"

    batch_id: str
    first: int
    targets: list[dict[str, Any]]


@named_value_class
class BatchSubmitted(Event):
    SUBJECT: ClassVar[str] = "batch-submitted"

    batch_id: str


@named_value_class
class BatchPaused(Event):
    SUBJECT: ClassVar[str] = "batch-paused"

    batch_id: str
    reason: str


@named_value_class
class BatchResumed(Event):
    SUBJECT: ClassVar[str] = "batch-resumed"

    batch_id: str
    reason: str


@named_value_class
class BatchCancelled(Event):
    SUBJECT: ClassVar[str] = "batch-cancelled"

    batch_id: str
    reason: str


@named_value_class
class BatchRoundBegun(Event):
    SUBJECT: ClassVar[str] = "batch-round-begun"

    batch_id: str
    round: int
    targets: list[int]


@named_value_class
class BatchRoundEnded(Event):
    SUBJECT: ClassVar[str] = "batch-round-ended"

    batch_id: str
    round: int
    results: list[dict[str, Any]]


@named_value_class
class BatchFinished(Event):
    SUBJECT: ClassVar[str] = "batch-finished"

    batch_id: str
    done_count: int
    refused_count: int
    skipped_count: int
