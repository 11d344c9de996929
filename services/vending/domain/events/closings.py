"""Closings: an account ends at exactly nothing, or some of its meters leave."""

from typing import Any, ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event, MoneyEvent


@named_value_class
class AccountClosing(Event):
    SUBJECT: ClassVar[str] = "account-closing"

    account_id: str
    hold_id: str
    closing_id: str | None
    meters: list[str] | None
    without_cut: bool | None
    deadline_ms: int | None
    method: str | None
    reason: str | None
    legal_entity: str | None


@named_value_class
class MetersClosing(Event):
    SUBJECT: ClassVar[str] = "meters-closing"

    account_id: str
    closing_id: str
    meters: list[str]
    without_cut: bool
    deadline_ms: int
    reason: str
    legal_entity: str


@named_value_class
class ClosingRegisterGiven(Event):
    SUBJECT: ClassVar[str] = "closing-register-given"

    account_id: str
    closing_id: str
    meter_id: str
    register_milli: int
    source: str
    reason: str


@named_value_class
class ClosingAsked(Event):
    SUBJECT: ClassVar[str] = "closing-asked"

    account_id: str
    closing_id: str
    hold_id: str
    before_leaving: bool


@named_value_class
class ClosingMetersTold(Event):
    SUBJECT: ClassVar[str] = "closing-meters-told"

    account_id: str
    closing_id: str
    hold_id: str
    meters: list[dict[str, Any]]


@named_value_class
class ClosingTold(Event):
    SUBJECT: ClassVar[str] = "closing-told"

    account_id: str
    closing_id: str
    hold_id: str
    charged_nano: int
    account_sequence: int
    rounding: str
    refund_minor: int
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class AccountSettled(MoneyEvent):
    SUBJECT: ClassVar[str] = "account-settled"

    closing_id: str
    hold_id: str
    charged_nano: int
    account_sequence: int
    left_nano: int
    refund_minor: int
    due_minor: int
    rounding: str
    dropped_nano: int
    recovered_emergency_minor: int
    recovered_debt_minor: int
    debt_left_minor: int
    credited_nano: int


@named_value_class
class RemainderRounded(MoneyEvent):
    SUBJECT: ClassVar[str] = "remainder-rounded"

    closing_id: str
    amount_nano: int
    credited_nano: int


@named_value_class
class MetersClosed(Event):
    SUBJECT: ClassVar[str] = "meters-closed"

    account_id: str
    closing_id: str
    hold_id: str
    charged_nano: int
    account_sequence: int
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class ClosingCancelled(Event):
    SUBJECT: ClassVar[str] = "closing-cancelled"

    account_id: str
    closing_id: str
    reason: str


@named_value_class
class ClosingUndone(Event):
    SUBJECT: ClassVar[str] = "closing-undone"

    account_id: str
    closing_id: str


@named_value_class
class AccountClosed(Event):
    SUBJECT: ClassVar[str] = "account-closed"

    account_id: str
    hold_id: str
    charged_nano: int
    account_sequence: int
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class AccountCloseRefused(Event):
    SUBJECT: ClassVar[str] = "account-close-refused"

    account_id: str
    hold_id: str
    reason: str
    charged_nano: int
    account_sequence: int
    currency: str
    legal_entity: str
    commodity: str
