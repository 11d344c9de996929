"""An account's life: its terms, its tenants, its meters, and what a person ordered for it."""

from typing import ClassVar

from services.common.kernel.values import named_value_class
from services.vending.domain.events.event import Event


@named_value_class
class AccountOpened(Event):
    SUBJECT: ClassVar[str] = "account-opened"

    account_id: str
    account_key: int
    shard: int
    site_id: str
    subject_id: str | None
    currency: str
    minor_decimals: int
    ledger_decimals: int
    legal_entity: str
    commodity: str
    tariff_id: str
    policy_id: str


@named_value_class
class AccountTermsChanged(Event):
    SUBJECT: ClassVar[str] = "account-terms-changed"

    account_id: str
    tariff_id: str
    policy_id: str
    previous_tariff_id: str
    previous_policy_id: str
    reason: str


@named_value_class
class AccountTenantChanged(Event):
    SUBJECT: ClassVar[str] = "account-tenant-changed"

    account_id: str
    subject_id: str | None
    previous_subject_id: str | None
    credited_nano: int
    charged_nano: int
    emergency_minor: int
    debt_minor: int
    reason: str
    currency: str
    legal_entity: str
    commodity: str


@named_value_class
class AccountMeterJoined(Event):
    SUBJECT: ClassVar[str] = "account-meter-joined"

    account_id: str
    meter_id: str
    epoch: int
    register_milli: int


@named_value_class
class AccountMeterLeft(Event):
    SUBJECT: ClassVar[str] = "account-meter-left"

    account_id: str
    meter_id: str
    epoch: int
    register_milli: int


@named_value_class
class PowerKept(Event):
    SUBJECT: ClassVar[str] = "power-kept"

    account_id: str
    until_ms: int | None
    reason: str


@named_value_class
class PaymentPromised(Event):
    SUBJECT: ClassVar[str] = "payment-promised"

    account_id: str
    until_ms: int
    reason: str


@named_value_class
class AccountThawed(Event):
    SUBJECT: ClassVar[str] = "account-thawed"

    account_id: str
    thaw_id: str
    reason: str


@named_value_class
class NoticeRecorded(Event):
    SUBJECT: ClassVar[str] = "notice-recorded"

    account_id: str
    notice_id: str
    outcome: str
