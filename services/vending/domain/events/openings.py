"""Openings of accounts: prepared, begun, and how they ended."""

from typing import Any, ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class OpeningPrepared(Event):
    SUBJECT: ClassVar[str] = "opening-prepared"

    account_id: str
    site_id: str
    subject_id: str | None
    commodity: str
    tariff_id: str
    policy_id: str
    legal_entity: str
    currency: str
    meters: list[dict[str, Any]]


@named_value_class
class OpeningStarted(Event):
    SUBJECT: ClassVar[str] = "opening-started"

    account_id: str
    subject_id: str | None
    first_sale_minor: int
    method: str
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class OpeningCompleted(Event):
    SUBJECT: ClassVar[str] = "opening-completed"

    account_id: str
    left_out: list[dict[str, Any]]


@named_value_class
class OpeningRefused(Event):
    SUBJECT: ClassVar[str] = "opening-refused"

    account_id: str
    reason: str
    message: str


@named_value_class
class OpeningCancelled(Event):
    SUBJECT: ClassVar[str] = "opening-cancelled"

    account_id: str
    reason: str
