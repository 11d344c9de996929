"""What is sold, and what is lent: credit, emergency credit, debts."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event, MoneyEvent


@named_value_class
class CreditSold(MoneyEvent):
    SUBJECT: ClassVar[str] = "credit-sold"

    amount_minor: int
    amount_nano: int
    credited_nano: int
    method: str
    receipt_id: str
    recovered_emergency_minor: int | None
    recovered_debt_minor: int | None
    emergency_left_minor: int | None
    debt_left_minor: int | None
    fee_minor: int | None
    energy_milli: int | None
    price_micro: int | None


@named_value_class
class SaleRefused(Event):
    SUBJECT: ClassVar[str] = "sale-refused"

    account_id: str
    amount_minor: int
    reason: str
    message: str
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class EmergencyGranted(MoneyEvent):
    SUBJECT: ClassVar[str] = "emergency-granted"

    amount_minor: int
    amount_nano: int
    credited_nano: int
    policy_id: str
    policy_version: int


@named_value_class
class EmergencyRefused(Event):
    SUBJECT: ClassVar[str] = "emergency-refused"

    account_id: str
    reason: str
    message: str


@named_value_class
class DebtSet(MoneyEvent):
    SUBJECT: ClassVar[str] = "debt-set"

    debt_minor: int
    share_ppm: int
    reason: str
