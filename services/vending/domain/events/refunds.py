"""Credit that leaves an account, after metering has said what it used: paid out, or sent."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event, MoneyEvent


@named_value_class
class RefundHeld(Event):
    SUBJECT: ClassVar[str] = "refund-held"

    account_id: str
    hold_id: str
    amount_minor: int
    held_nano: int
    method: str
    reason: str
    max_evidence_age_ms: int
    currency: str
    legal_entity: str
    commodity: str
    deadline_ms: int | None
    to_account_id: str | None
    to_tenancy: int | None


@named_value_class
class CreditRefunded(MoneyEvent):
    SUBJECT: ClassVar[str] = "credit-refunded"

    hold_id: str
    amount_minor: int
    amount_nano: int
    credited_nano: int
    charged_nano: int
    account_sequence: int
    method: str
    receipt_id: str
    reason: str


@named_value_class
class RefundRefused(Event):
    SUBJECT: ClassVar[str] = "refund-refused"

    account_id: str
    hold_id: str
    charged_nano: int
    account_sequence: int
    reason: str
    message: str
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class CreditTransferred(MoneyEvent):
    SUBJECT: ClassVar[str] = "credit-transferred"

    hold_id: str
    to_account_id: str
    amount_minor: int
    amount_nano: int
    credited_nano: int
    charged_nano: int
    account_sequence: int
    reason: str


@named_value_class
class TransferReceived(MoneyEvent):
    SUBJECT: ClassVar[str] = "transfer-received"

    hold_id: str
    from_account_id: str
    amount_minor: int
    amount_nano: int
    credited_nano: int
    reason: str


@named_value_class
class TransferArrived(Event):
    SUBJECT: ClassVar[str] = "transfer-arrived"

    account_id: str
    hold_id: str
    to_account_id: str
    amount_minor: int
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class TransferReturned(MoneyEvent):
    SUBJECT: ClassVar[str] = "transfer-returned"

    hold_id: str
    to_account_id: str
    amount_minor: int
    amount_nano: int
    credited_nano: int
    reason: str
    message: str
