"""What an account is after each event of its stream."""

from services.common.kernel.errors import Bug
from services.vending.domain.account import Account, JoinedMeter, Status, Tenancy
from services.vending.domain.closing import begun
from services.vending.domain.decisions import Answers, changed
from services.vending.domain.events.accounts import (
    AccountMeterJoined,
    AccountMeterLeft,
    AccountOpened,
    AccountTenantChanged,
    AccountTermsChanged,
    AccountThawed,
    NoticeRecorded,
    PaymentPromised,
    PowerKept,
)
from services.vending.domain.events.closings import (
    AccountClosed,
    AccountCloseRefused,
    AccountClosing,
    AccountSettled,
    ClosingAsked,
    ClosingCancelled,
    ClosingMetersTold,
    ClosingRegisterGiven,
    ClosingTold,
    ClosingUndone,
    MetersClosed,
    MetersClosing,
    RemainderRounded,
)
from services.vending.domain.events.corrections import (
    CorrectionRefused,
    CreditAdjusted,
    OwedWrittenOff,
    SaleReversed,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.refunds import (
    CreditRefunded,
    CreditTransferred,
    RefundHeld,
    RefundRefused,
    TransferArrived,
    TransferReceived,
    TransferReturned,
)
from services.vending.domain.events.sales import (
    CreditSold,
    DebtSet,
    EmergencyGranted,
    EmergencyRefused,
    SaleRefused,
)
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.owed import PPM, Owed
from services.vending.domain.refund import refunding
from services.vending.domain.usage import Used


def evolve(state: Account | None, event: Event) -> Account:  # noqa: C901, PLR0911, PLR0912
    """Return the account after an event of its stream."""
    if isinstance(event, AccountOpened) and state is None:
        return Account(
            Answers().after(event),
            event.account_id,
            event.account_key,
            event.shard,
            event.site_id,
            event.subject_id,
            event.currency,
            event.minor_decimals,
            event.ledger_decimals,
            event.legal_entity,
            event.commodity,
            event.tariff_id,
            event.policy_id,
        )
    if state is None:
        raise Bug(f"an account's stream begins with {event.SUBJECT}")
    if isinstance(event, UsagePosted):
        used = Used(event.account_sequence, event.usage)
        return changed(state, answers=state.answers.passed(), used=used)
    answers = state.answers.after(event)
    match event:
        case CreditSold():
            owed = changed(
                state.owed,
                emergency_minor=event.emergency_left_minor or 0,
                debt_minor=event.debt_left_minor or 0,
            )
            return changed(state, answers=answers, credited_nano=event.credited_nano, owed=owed)
        case EmergencyGranted():
            return changed(
                state,
                answers=answers,
                credited_nano=event.credited_nano,
                owed=changed(state.owed, emergency_minor=event.amount_minor),
                emergency_most_minor=max(state.emergency_most_minor, event.amount_minor),
            )
        case DebtSet():
            share_ppm = event.share_ppm if event.debt_minor else 0  # a debt of 0 is ended
            owed = changed(state.owed, debt_minor=event.debt_minor, debt_share_ppm=share_ppm)
            ended_at = state.debt_ended_at if event.debt_minor else answers.revision
            return changed(state, answers=answers, owed=owed, debt_ended_at=ended_at)
        case PowerKept() | PaymentPromised() | NoticeRecorded() | AccountThawed():
            return changed(state, answers=answers, orders=state.orders.after(event))
        case SaleReversed():
            pair = (event.reversed_receipt_id, event.receipt_id)
            reversed_receipts = (*state.reversed_receipts, pair)
            return changed(
                _corrected(state, event), answers=answers, reversed_receipts=reversed_receipts
            )
        case OwedWrittenOff():
            return changed(_corrected(state, event), answers=answers)
        case RefundHeld():
            return changed(
                state, answers=answers, held_nano=event.held_nano, refunding=refunding(event)
            )
        case CreditRefunded():
            return changed(
                state,
                answers=answers,
                credited_nano=event.credited_nano,
                held_nano=0,
                refunding=None,
                refunded_at=answers.revision,
            )
        case RefundRefused():
            return changed(state, answers=answers, held_nano=0, refunding=None)
        case CreditTransferred():
            assert state.refunding is not None, "what was sent was held"
            # Metering has said what it had to say; the transfer is under way until it arrives.
            sent = changed(
                state.refunding,
                hold_id="",
                sent_as=event.hold_id,
                sent_minor=event.amount_minor,
                refunded_before=state.refunded_at,
            )
            return changed(
                state,
                answers=answers,
                credited_nano=event.credited_nano,
                held_nano=0,
                refunding=sent,
                refunded_at=answers.revision,
            )
        case TransferArrived():
            return changed(state, answers=answers, refunding=None)
        case TransferReturned():
            assert state.refunding is not None, "what comes back was sent"
            return changed(
                state,
                answers=answers,
                credited_nano=event.credited_nano,
                refunding=None,
                refunded_at=state.refunding.refunded_before,  # nothing was paid out by it
            )
        case TransferReceived():
            return changed(state, answers=answers, credited_nano=event.credited_nano)
        case CreditAdjusted():
            return changed(state, answers=answers, credited_nano=event.credited_nano)
        case SaleRefused() | EmergencyRefused() | CorrectionRefused():
            return changed(state, answers=answers)
        case AccountTermsChanged():
            return changed(
                state, answers=answers, tariff_id=event.tariff_id, policy_id=event.policy_id
            )
        case AccountTenantChanged():
            before = Tenancy(state.subject_id, answers.revision, event.occurred_at_ms)
            tenancies = (*state.tenancies, before)
            return changed(state, answers=answers, subject_id=event.subject_id, tenancies=tenancies)
        case AccountMeterJoined() | AccountMeterLeft():
            return changed(state, answers=answers, meters=_meters_after(state, event))
        case AccountSettled():
            return changed(_settled(state, event), answers=answers)
        case RemainderRounded():
            return changed(state, answers=answers, credited_nano=event.credited_nano)
        case AccountClosing() | MetersClosing():
            status = state.status if isinstance(event, MetersClosing) else Status.CLOSING
            return changed(state, answers=answers, status=status, closing=begun(event))
        case (
            ClosingRegisterGiven()
            | ClosingAsked()
            | ClosingMetersTold()
            | ClosingTold()
            | ClosingCancelled()
        ):
            status = Status.OPEN if isinstance(event, ClosingCancelled) else state.status
            closing = state.closing.after(event) if state.closing else None
            return changed(state, answers=answers, status=status, closing=closing)
        case AccountClosed():
            return changed(
                state,
                answers=answers,
                status=Status.CLOSED,
                closing=None,
                closed_at=answers.revision,
            )
        case AccountCloseRefused() | MetersClosed() | ClosingUndone():
            return changed(state, answers=answers, status=Status.OPEN, closing=None)
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into an account's stream here")


def _settled(state: Account, event: AccountSettled) -> Account:
    debt_minor = event.debt_left_minor
    owed = Owed(debt_minor=debt_minor, debt_share_ppm=PPM if debt_minor else 0)
    return changed(state, credited_nano=event.credited_nano, owed=owed)


def _corrected(state: Account, event: SaleReversed | OwedWrittenOff) -> Account:
    owed = changed(
        state.owed,
        emergency_minor=event.emergency_left_minor,
        debt_minor=event.debt_left_minor,
    )
    return changed(state, credited_nano=event.credited_nano, owed=owed)


def _meters_after(
    state: Account, event: AccountMeterJoined | AccountMeterLeft
) -> tuple[JoinedMeter, ...]:
    others = tuple(meter for meter in state.meters if meter.meter_id != event.meter_id)
    if isinstance(event, AccountMeterLeft):
        return others
    return (*others, JoinedMeter(event.meter_id, event.epoch, event.register_milli))
