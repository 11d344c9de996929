"""The events of the book. Each is the Avro record of its subject (schemas/avro/<SUBJECT>.avsc).

Fields carry their units in their names; their meaning is documented in the schemas. Persons appear
only as `subject_id`.
"""

from dataclasses import fields
from typing import Any, ClassVar

from services.common.kernel.errors import Bug
from services.common.kernel.values import named_value_class
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.postings import Posting, Postings, Usage, check_balanced

RequestKey = tuple[str, str]
"""(caller, request_id): ids are unique to a caller."""


@named_value_class
class Event:
    """What every event says: who asked for what, and when it was decided.

    `origin` stands in the metadata, not in the record.
    """

    SUBJECT: ClassVar[str]

    caller: str
    request_id: str
    fingerprint: bytes
    occurred_at_ms: int
    origin: Origin = NOBODY

    @property
    def key(self) -> RequestKey:
        """The request that caused it."""
        return (self.caller, self.request_id)

    def record(self) -> dict[str, Any]:
        """Return the Avro record."""
        return {name: getattr(self, name) for name in _FIELDS[self.SUBJECT]}


@named_value_class
class MoneyEvent(Event):
    """An event that moves money: its postings sum to zero. None: of before there were any."""

    account_id: str
    currency: str
    legal_entity: str
    commodity: str
    postings: Postings | None

    def __post_init__(self) -> None:
        """Raise Bug where the postings do not sum to zero."""
        if self.postings is not None:
            check_balanced(self.postings)

    def record(self) -> dict[str, Any]:
        """Return the Avro record."""
        record = Event.record(self)
        if self.postings is not None:
            record["postings"] = [
                {"account": posting.account, "amount_nano": posting.amount_nano}
                for posting in self.postings
            ]
        return record


@named_value_class
class SiteRegistered(Event):
    SUBJECT: ClassVar[str] = "site-registered"

    site_id: str
    display_name: str
    zone: str
    currency: str
    ledger_decimals: int
    minor_decimals: int
    legal_entity: str
    cuts_per_minute: int


@named_value_class
class CutsHeld(Event):
    SUBJECT: ClassVar[str] = "cuts-held"

    site_id: str
    reason: str


@named_value_class
class CutsReleased(Event):
    SUBJECT: ClassVar[str] = "cuts-released"

    site_id: str
    reason: str


@named_value_class
class SitePlaced(Event):
    SUBJECT: ClassVar[str] = "site-placed"

    site_id: str
    parent_site_id: str | None
    reason: str


@named_value_class
class GatewayRegistered(Event):
    SUBJECT: ClassVar[str] = "gateway-registered"

    gateway_id: str
    site_id: str
    line_id: str
    protocol: str
    address: str


@named_value_class
class MeterRegistered(Event):
    SUBJECT: ClassVar[str] = "meter-registered"

    meter_id: str
    meter_key: int
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    commodity: str
    ratio: int
    max_power_w: int | None
    house_account_id: str
    house_shard: int
    currency: str
    legal_entity: str
    max_power_source: str | None
    register_max_milli: int | None


@named_value_class
class MeterAssigned(Event):
    SUBJECT: ClassVar[str] = "meter-assigned"

    meter_id: str
    epoch: int
    account_id: str
    is_house: bool
    shard: int
    register_milli: int
    register_source: str
    previous_account_id: str
    previous_shard: int


@named_value_class
class MeterReplaced(Event):
    SUBJECT: ClassVar[str] = "meter-replaced"

    meter_id: str
    epoch: int
    serial: str
    previous_serial: str
    line_id: str
    unit: int
    previous_unit: int
    profile: str
    ratio: int
    max_power_w: int | None
    max_power_source: str | None
    register_max_milli: int | None
    closing_register_milli: int
    opening_register_milli: int
    reason: str


@named_value_class
class MeterRatioChanged(Event):
    SUBJECT: ClassVar[str] = "meter-ratio-changed"

    meter_id: str
    epoch: int
    ratio: int
    previous_ratio: int
    max_power_w: int | None
    max_power_source: str | None
    register_milli: int
    register_source: str
    reason: str


@named_value_class
class MeterHoldResolved(Event):
    SUBJECT: ClassVar[str] = "meter-hold-resolved"

    meter_id: str
    epoch: int
    reading_id: str
    resolution: str
    reason: str


@named_value_class
class RelayForced(Event):
    SUBJECT: ClassVar[str] = "relay-forced"

    meter_id: str
    position: str
    reason: str
    closing_id: str | None


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


@named_value_class
class DocumentDrafted(Event):
    SUBJECT: ClassVar[str] = "document-drafted"

    document_id: str
    kind: str
    target_id: str
    legal_entity: str
    base_version: int
    replaces: str | None
    content: str


@named_value_class
class DocumentWithdrawn(Event):
    SUBJECT: ClassVar[str] = "document-withdrawn"

    document_id: str
    reason: str


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


@named_value_class
class UsagePosted(MoneyEvent):
    SUBJECT: ClassVar[str] = "usage-posted"

    account_sequence: int
    charged_nano: int
    energy_nano: int
    surcharge_nano: int
    ladder_nano: int
    fees_nano: int
    tax_nano: int
    undivided_nano: int
    credited_nano: int
    account_revision: int
    book_epoch: int
    meters: list[dict[str, Any]]
    row: bytes
    shard: int
    log_offset: int
    decided_at_ms: int

    @property
    def usage(self) -> Usage:
        """The totals."""
        return Usage(
            self.energy_nano,
            self.surcharge_nano,
            self.ladder_nano,
            self.fees_nano,
            self.tax_nano,
            self.undivided_nano,
        )


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
class NoticeRecorded(Event):
    SUBJECT: ClassVar[str] = "notice-recorded"

    account_id: str
    notice_id: str
    outcome: str


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


EVENTS: dict[str, type[Event]] = {
    kind.SUBJECT: kind
    for kind in (
        SiteRegistered,
        CutsHeld,
        CutsReleased,
        SitePlaced,
        GatewayRegistered,
        MeterRegistered,
        MeterAssigned,
        MeterReplaced,
        MeterRatioChanged,
        MeterHoldResolved,
        RelayForced,
        TariffPublished,
        PolicyPublished,
        PolicyScheduled,
        DocumentDrafted,
        DocumentWithdrawn,
        AccountOpened,
        OpeningPrepared,
        OpeningStarted,
        OpeningCompleted,
        OpeningRefused,
        OpeningCancelled,
        AccountTermsChanged,
        AccountTenantChanged,
        CreditSold,
        SaleRefused,
        EmergencyGranted,
        EmergencyRefused,
        DebtSet,
        SaleReversed,
        CreditAdjusted,
        OwedWrittenOff,
        RefundHeld,
        CreditRefunded,
        RefundRefused,
        CreditTransferred,
        TransferReceived,
        TransferArrived,
        TransferReturned,
        CorrectionRefused,
        UsagePosted,
        AccountMeterJoined,
        AccountMeterLeft,
        AccountClosing,
        AccountClosed,
        AccountCloseRefused,
        MetersClosing,
        ClosingRegisterGiven,
        ClosingAsked,
        ClosingMetersTold,
        ClosingTold,
        AccountSettled,
        RemainderRounded,
        MetersClosed,
        ClosingCancelled,
        ClosingUndone,
        PowerKept,
        PaymentPromised,
        NoticeRecorded,
        SaleReserved,
        PaymentConfirmed,
        PaymentSold,
        PaymentRefused,
        ReservationCancelled,
        ReservationTimedOut,
        AuthorityPublished,
        CommandProposed,
        ProposalApproved,
        ProposalDeclined,
        ProposalExpired,
        ProposalExecuted,
        ProposalFailed,
        BatchCreated,
        BatchTargets,
        BatchSubmitted,
        BatchPaused,
        BatchResumed,
        BatchCancelled,
        BatchRoundBegun,
        BatchRoundEnded,
        BatchFinished,
    )
}
_FIELDS = {
    subject: tuple(field.name for field in fields(kind) if field.name != "origin")
    for subject, kind in EVENTS.items()
}


def event_from(subject: str, record: dict[str, Any], origin: Origin = NOBODY) -> Event:
    """Return the event of an Avro record. Raises Bug for a subject that is no event."""
    kind = EVENTS.get(subject)
    if kind is None:
        raise Bug(f"{subject} is no event of the book; a newer vending wrote it: run that one")
    if (listed := record.get("postings")) is not None:
        record = {**record, "postings": tuple([Posting(**posting) for posting in listed])}
    return kind(**record, origin=origin)
