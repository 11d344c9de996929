"""A payment that an outside seller takes: reserved, then confirmed and sold, or let go.

reserved → confirmed → sold, or refused where the sale cannot be made any more; reserved →
cancelled; reserved → timed out, from where a late confirmation still sells: somebody has paid.
"""

from enum import StrEnum

from services.common.kernel.errors import Bug
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account import Account, account_not_found, of_what
from services.vending.domain.approval import Failure
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Rejection,
    Request,
    answered,
    changed,
    stamp,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.payments import (
    PaymentConfirmed,
    PaymentRefused,
    PaymentSold,
    ReservationCancelled,
    ReservationTimedOut,
    SaleReserved,
)
from services.vending.domain.origin import Origin
from services.vending.domain.policy import Policy
from services.vending.domain.sale import Sell, why_not_sold
from services.vending.domain.terms import fee_minor_of

MINUTE_MS = 60_000
LASTS_MS_DEFAULT = 15 * MINUTE_MS
LASTS_MS_MAX = 24 * 60 * MINUTE_MS


class Status(StrEnum):
    """What became of a payment."""

    RESERVED = "reserved"
    CONFIRMED = "confirmed"
    SOLD = "sold"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed-out"


REVERSED = "reversed"
"""What a payment is told to be whose sale was reversed, in its account's stream."""


@value_class
class Payment:
    """The folded stream of a payment. `receipt_id`: of its sale, "" before.

    `fee_minor`, `debt_share_ppm`: what the sale will go by; None: by what holds then.
    `account_revision`: of the account's stream, as it stood then.
    """

    answers: Answers
    payment_id: str
    transaction_id: str
    account_id: str
    amount_minor: int
    method: str
    currency: str
    legal_entity: str
    reserved_at_ms: int
    expires_at_ms: int
    seller: Origin
    fee_minor: int | None
    debt_share_ppm: int | None
    account_revision: int | None
    status: Status = Status.RESERVED
    receipt_id: str = ""
    failure: Failure | None = None


@value_class
class ReserveSale:
    """Ask for a sale that is confirmed within `lasts_ms` (0: a quarter of an hour).

    `transaction_id`: the seller's own; `account`: what `account_id` stands for; `policy`: its.
    """

    request: Request
    transaction_id: str
    account_id: str
    amount_minor: int
    method: str
    lasts_ms: int
    account: Account | None = None
    policy: Policy | None = None

    def __post_init__(self) -> None:
        """Refuse what no sale can be."""
        checks.check_text("transaction_id", self.transaction_id)
        checks.check_id("account_id", self.account_id)
        checks.check_amount("amount_minor", self.amount_minor)
        checks.check_choice("method", self.method, checks.METHODS)
        checks.check_between("lasts_ms", self.lasts_ms, 0, LASTS_MS_MAX)


@value_class
class ConfirmSale:
    """The seller has the money."""

    request: Request
    transaction_id: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_text("transaction_id", self.transaction_id)


@value_class
class CancelSale:
    """The seller wants no sale, and no money comes."""

    request: Request
    transaction_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_text("transaction_id", self.transaction_id)
        checks.check_text("reason", self.reason)


@value_class
class TimeOut:
    """Nobody confirmed in time."""

    request: Request


@value_class
class Conclude:
    """The sale was made, of `receipt_id` at `revision` of its account; or why `failure` says."""

    request: Request
    receipt_id: str
    revision: int
    failure: Failure | None


Command = ReserveSale | ConfirmSale | CancelSale | TimeOut | Conclude


def payment_id_of(caller: str, transaction_id: str) -> str:
    """Return the id of a seller's payment: transaction ids are unique to a caller."""
    return str(name_uuid("payment", caller, transaction_id))


def payment_not_found(transaction_id: str) -> Rejection:
    """Return the refusal of a command on a payment that was never reserved."""
    text = f"this caller reserved no sale of transaction {transaction_id!r}; reserve it first"
    return Rejection(Reason.PAYMENT_NOT_FOUND, text, "transaction_id")


def decide(state: Payment | None, command: Command) -> Decision:  # noqa: PLR0911 - one a case
    """Return what a command does to a payment, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, ReserveSale):
        return _reserve(state, command)
    if state is None:
        assert isinstance(command, ConfirmSale | CancelSale), "processes know what they work on"
        return payment_not_found(command.transaction_id)
    match command:
        case ConfirmSale():
            return _confirm(state, command)
        case CancelSale():
            return _cancel(state, command)
        case TimeOut():
            return _time_out(state, command)
        case Conclude():
            return _conclude(state, command)


def _reserve(state: Payment | None, command: ReserveSale) -> Decision:
    if state:
        return Rejection(
            Reason.ALREADY_EXISTS,
            f"transaction {command.transaction_id!r} of this caller was reserved before; a new "
            "payment has a transaction id of its own",
            "transaction_id",
        )
    account = command.account
    if account is None:
        return account_not_found(command.account_id)
    sale = Sell(
        command.request,
        command.account_id,
        command.amount_minor,
        command.method,
        policy=command.policy,
    )
    if problem := why_not_sold(account, sale):
        return problem
    reserved = SaleReserved(
        **stamp(command.request),
        payment_id=payment_id_of(command.request.caller, command.transaction_id),
        transaction_id=command.transaction_id,
        account_id=command.account_id,
        amount_minor=command.amount_minor,
        method=command.method,
        expires_at_ms=command.request.at_ms + (command.lasts_ms or LASTS_MS_DEFAULT),
        **of_what(account),
        fee_minor=fee_minor_of(command.policy, command.amount_minor),
        debt_share_ppm=account.owed.debt_share_ppm,
        account_revision=account.answers.revision,
    )
    return Accepted((reserved,))


def _confirm(state: Payment, command: ConfirmSale) -> Decision:
    match state.status:
        case Status.RESERVED | Status.TIMED_OUT:
            confirmed = PaymentConfirmed(**stamp(command.request), payment_id=state.payment_id)
            return Accepted((confirmed,))
        case Status.CANCELLED:
            return to_return(state, "its reservation was cancelled")
    return Accepted(())  # a seller that confirms anew gets the one answer


def to_return(state: Payment, why: str) -> Rejection:
    """Return what a seller is told who has money that buys nothing."""
    return Rejection(
        Reason.PAYMENT_TO_RETURN,
        f"transaction {state.transaction_id!r} is not sold, and will not be: {why}. "
        "Pay the money back",
        "transaction_id",
    )


def _cancel(state: Payment, command: CancelSale) -> Decision:
    match state.status:
        case Status.RESERVED | Status.TIMED_OUT:
            cancelled = ReservationCancelled(
                **stamp(command.request), payment_id=state.payment_id, reason=command.reason
            )
            return Accepted((cancelled,))
        case Status.CONFIRMED | Status.SOLD:
            text = f"transaction {state.transaction_id!r} was paid; reverse its sale instead"
            return Rejection(Reason.PAYMENT_CONFIRMED, text, "transaction_id")
    return Accepted(())


def _time_out(state: Payment, command: TimeOut) -> Decision:
    if state.status is not Status.RESERVED or command.request.at_ms < state.expires_at_ms:
        return Accepted(())
    timed_out = ReservationTimedOut(**stamp(command.request), payment_id=state.payment_id)
    return Accepted((timed_out,))


def _conclude(state: Payment, command: Conclude) -> Decision:
    if state.status is not Status.CONFIRMED:
        raise Bug(f"payment {state.payment_id} is {state.status}, and was sold")
    if command.failure is None:
        sold = PaymentSold(
            **stamp(command.request),
            payment_id=state.payment_id,
            account_id=state.account_id,
            receipt_id=command.receipt_id,
            revision=command.revision,
        )
        return Accepted((sold,))
    refused = PaymentRefused(
        **stamp(command.request),
        payment_id=state.payment_id,
        reason=command.failure.reason,
        message=command.failure.message,
    )
    return Accepted((refused,))


def evolve(state: Payment | None, event: Event) -> Payment:
    """Return the payment after an event of its stream."""
    if isinstance(event, SaleReserved) and state is None:
        return Payment(
            Answers().after(event),
            event.payment_id,
            event.transaction_id,
            event.account_id,
            event.amount_minor,
            event.method,
            event.currency,
            event.legal_entity,
            event.occurred_at_ms,
            event.expires_at_ms,
            event.origin if event.origin.caller else Origin(event.caller),
            event.fee_minor,
            event.debt_share_ppm,
            event.account_revision,
        )
    if state is None:
        raise Bug(f"a payment's stream begins with {event.SUBJECT}")
    answers = state.answers.after(event)
    match event:
        case PaymentConfirmed():
            return changed(state, answers=answers, status=Status.CONFIRMED)
        case ReservationCancelled():
            return changed(state, answers=answers, status=Status.CANCELLED)
        case ReservationTimedOut():
            return changed(state, answers=answers, status=Status.TIMED_OUT)
        case PaymentSold():
            return changed(state, answers=answers, status=Status.SOLD, receipt_id=event.receipt_id)
        case PaymentRefused():
            failure = Failure(event.reason, event.message)
            return changed(state, answers=answers, status=Status.REFUSED, failure=failure)
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a payment's stream here")
