"""Payments through a provider: reserved, confirmed, sold."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class SaleReserved(Event):
    SUBJECT: ClassVar[str] = "sale-reserved"

    payment_id: str
    transaction_id: str
    account_id: str
    amount_minor: int
    method: str
    expires_at_ms: int
    currency: str
    legal_entity: str
    commodity: str
    fee_minor: int | None
    debt_share_ppm: int | None
    account_revision: int | None


@named_value_class
class PaymentConfirmed(Event):
    SUBJECT: ClassVar[str] = "payment-confirmed"

    payment_id: str


@named_value_class
class PaymentSold(Event):
    SUBJECT: ClassVar[str] = "payment-sold"

    payment_id: str
    account_id: str
    receipt_id: str
    revision: int


@named_value_class
class PaymentRefused(Event):
    SUBJECT: ClassVar[str] = "payment-refused"

    payment_id: str
    reason: str
    message: str


@named_value_class
class ReservationCancelled(Event):
    SUBJECT: ClassVar[str] = "reservation-cancelled"

    payment_id: str
    reason: str


@named_value_class
class ReservationTimedOut(Event):
    SUBJECT: ClassVar[str] = "reservation-timed-out"

    payment_id: str
