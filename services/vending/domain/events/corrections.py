"""Corrections: sales reversed, credit set right, what is owed written off."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event, MoneyEvent


@named_value_class
class SaleReversed(MoneyEvent):
    SUBJECT: ClassVar[str] = "sale-reversed"

    amount_minor: int
    amount_nano: int
    credited_nano: int
    method: str
    receipt_id: str
    reversed_receipt_id: str
    reason: str
    returned_emergency_minor: int
    returned_debt_minor: int
    returned_fee_minor: int
    emergency_left_minor: int
    debt_left_minor: int
    given_up_debt_minor: int | None


@named_value_class
class CreditAdjusted(MoneyEvent):
    SUBJECT: ClassVar[str] = "credit-adjusted"

    amount_minor: int
    amount_nano: int
    credited_nano: int
    reason: str


@named_value_class
class OwedWrittenOff(MoneyEvent):
    SUBJECT: ClassVar[str] = "owed-written-off"

    kind: str
    amount_minor: int
    amount_nano: int
    credited_nano: int
    emergency_left_minor: int
    debt_left_minor: int
    reason: str


@named_value_class
class CorrectionRefused(Event):
    SUBJECT: ClassVar[str] = "correction-refused"

    account_id: str
    command: str
    reason: str
    message: str
    currency: str
    legal_entity: str
    commodity: str
