"""Tariffs and policies: the versions that apply, or are to."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class TariffPublished(Event):
    SUBJECT: ClassVar[str] = "tariff-published"

    tariff_id: str
    version: int
    kind: str
    commodity: str
    currency: str
    legal_entity: str
    price_micro: int
    effective_at_ms: int
    plan: str | None
    document_id: str | None


@named_value_class
class PolicyVersion(Event):
    """What a version of a policy says, in force or yet to come."""

    policy_id: str
    version: int
    currency: str
    alarm_1_nano: int
    alarm_2_nano: int
    overdraft_nano: int
    restore_nano: int
    lease_ms: int
    max_evidence_age_ms: int
    emergency_nano: int | None
    rules: str | None
    ceiling_nano: int | None
    fee_ppm: int | None
    fee_minor: int | None
    legal_entity: str | None
    rounding: str | None
    document_id: str | None


@named_value_class
class PolicyPublished(PolicyVersion):
    SUBJECT: ClassVar[str] = "policy-published"


@named_value_class
class PolicyScheduled(PolicyVersion):
    SUBJECT: ClassVar[str] = "policy-scheduled"

    effective_at_ms: int
