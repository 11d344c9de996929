"""Corrections of an account: a sale taken back, credit paid out or set right, debts given up.

A correction is an event of its own, with its reason; nothing is edited. It may let the account fall
below zero: metering warns and cuts by its rules, on the next reading.
"""

from dataclasses import replace
from enum import StrEnum
from typing import Any, TypeVar

from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import (
    INT64_MAX,
    Currency,
    fits_int64,
    format_scaled,
    nano_from_minor,
)
from services.common.kernel.values import value_class
from services.vending.domain import checks, postings
from services.vending.domain.account import (
    Account,
    Status,
    account_not_found,
    closing_under_way,
    hold_id_of,
    in_transit_nano,
    not_open,
    of_what,
    refund_under_way,
)
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    answered,
    changed,
    stamp,
)
from services.vending.domain.events.corrections import (
    CorrectionRefused,
    CreditAdjusted,
    OwedWrittenOff,
    SaleReversed,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.refunds import RefundHeld
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.lending import at_most
from services.vending.domain.owed import Owed
from services.vending.domain.policy import Policy
from services.vending.domain.refund import LASTS_MS_DEFAULT, owes, too_little

NO_METHOD = ""
"""Of what nobody is paid."""


class Kind(StrEnum):
    """What may be owed and given up."""

    EMERGENCY = "emergency"
    DEBT = "debt"
    ARREARS = "arrears"


@value_class
class ReverseSale:
    """The sale of a receipt shall be taken back, whole: the money goes back as it came.

    `sale`: what the receipt stands for in the account, None where nothing; `authority`: what one
    person may do alone at the legal entity.
    """

    request: Request
    account_id: str
    receipt_id: str
    reason: str
    sale: CreditSold | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_uuid("receipt_id", self.receipt_id)
        checks.check_text("reason", self.reason)


@value_class
class AdjustCredit:
    """The credit shall be `amount_minor` more (negative: less); nobody pays."""

    request: Request
    account_id: str
    amount_minor: int
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what no adjustment can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_between("amount_minor", self.amount_minor, -INT64_MAX, INT64_MAX)
        if not self.amount_minor:
            raise checks.invalid("amount_minor", "0 adjusts nothing; write an amount")
        checks.check_text("reason", self.reason)


@value_class
class WriteOff:
    """`amount_minor` of what is owed shall be given up: emergency credit, debt, or arrears.

    Arrears are what was used beyond the credit, as the book knows it: they are credited.
    """

    request: Request
    account_id: str
    kind: str
    amount_minor: int
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be given up."""
        checks.check_id("account_id", self.account_id)
        checks.check_choice("kind", self.kind, tuple(Kind))
        checks.check_amount("amount_minor", self.amount_minor)
        checks.check_text("reason", self.reason)


@value_class
class RefundCredit:
    """`amount_minor` of the credit shall be paid out, 0: all that is left; metering is asked first.

    `at_most_minor`: of all, what a second person approved, None: it needed none; `policy`: the
    account's; `book_epoch`: under which metering is asked; `lasts_ms`: how long its echo is waited
    for.
    """

    request: Request
    account_id: str
    amount_minor: int
    method: str
    reason: str
    at_most_minor: int | None = None
    book_epoch: int = 1
    lasts_ms: int = LASTS_MS_DEFAULT
    policy: Policy | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what no refund can be."""
        checks.check_id("account_id", self.account_id)
        if self.amount_minor:
            checks.check_amount("amount_minor", self.amount_minor)
        checks.check_choice("method", self.method, checks.METHODS)
        checks.check_text("reason", self.reason)


@value_class
class TransferCredit:
    """`amount_minor` of the credit shall go to another account, as RefundCredit says besides.

    `to`: what `to_account_id` stands for, None where nothing.
    """

    request: Request
    account_id: str
    to_account_id: str
    amount_minor: int
    reason: str
    at_most_minor: int | None = None
    book_epoch: int = 1
    lasts_ms: int = LASTS_MS_DEFAULT
    policy: Policy | None = None
    to: Account | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what no transfer can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_id("to_account_id", self.to_account_id)
        if self.to_account_id == self.account_id:
            raise checks.invalid("to_account_id", "it is the account itself; name another one")
        if self.amount_minor:
            checks.check_amount("amount_minor", self.amount_minor)
        checks.check_text("reason", self.reason)


Correction = ReverseSale | AdjustCredit | WriteOff | RefundCredit | TransferCredit
NAMES: dict[type[Any], str] = {
    ReverseSale: "reverse-sale",
    AdjustCredit: "adjust-credit",
    WriteOff: "write-off",
    RefundCredit: "refund-credit",
    TransferCredit: "transfer-credit",
}


def decide(state: Account | None, command: Correction) -> Decision:
    """Return what a correction does, or why nothing may happen.

    What can never be done is an event too, so that its repeat is refused alike; what only waits for
    a second person is not.
    """
    if state is None:
        return account_not_found(command.account_id)
    if earlier := answered(state.answers, command.request):
        return earlier
    corrected = _not_corrected(state, command) or _corrected(state, command)
    if isinstance(corrected, Event):
        return Accepted((corrected,))
    if corrected.reason is Reason.APPROVAL_REQUIRED:
        return corrected
    refused = CorrectionRefused(
        **stamp(command.request),
        account_id=state.account_id,
        command=NAMES[type(command)],
        reason=corrected.reason.value,
        message=corrected.message,
        **of_what(state),
    )
    return Accepted((refused,))


def _not_corrected(state: Account, command: Correction) -> Rejection | None:
    """Return why nothing is corrected: of what is closed, only what it owed at its end is.

    That is given up, or a sale that has paid of it is taken back.
    """
    match command:
        case WriteOff():
            is_of_debt = command.kind == Kind.DEBT
        case ReverseSale():
            sale = command.sale
            is_of_debt = sale is not None and _revision_of(state, sale) > state.closed_at
        case _:
            is_of_debt = False
    return None if is_of_debt and state.status is Status.CLOSED else not_open(state)


def _corrected(state: Account, command: Correction) -> Event | Rejection:
    match command:
        case ReverseSale():
            return _reversed(state, command)
        case AdjustCredit():
            return _adjusted(state, command)
        case WriteOff():
            return _written_off(state, command)
        case RefundCredit():
            return _held(state, command, Action.REFUND, command.method, None)
        case TransferCredit():
            to_account_id = command.to_account_id
            return no_way(state, command) or _held(
                state, command, Action.TRANSFER, NO_METHOD, to_account_id
            )


def _reversed(state: Account, command: ReverseSale) -> SaleReversed | Rejection:
    sale = command.sale
    if sale is None:
        text = f"account {state.account_id} has no sale of receipt {command.receipt_id}"
        return Rejection(Reason.RECEIPT_NOT_FOUND, f"{text}; check both", "receipt_id")
    if command.receipt_id in dict(state.reversed_receipts):
        text = (
            f"the sale of receipt {command.receipt_id} was reversed before; a sale is reversed once"
        )
        return Rejection(Reason.ALREADY_REVERSED, text, "receipt_id")
    if problem := _paid_out_since(state, sale) or _sold_to_another(state, sale):
        return problem
    if problem := _lent_again(state, sale):
        return problem
    emergency_minor = sale.recovered_emergency_minor or 0
    recovered_minor = sale.recovered_debt_minor or 0
    # What a person has ended since stays ended, whatever debt was set after that.
    debt_minor = 0 if state.debt_ended_at > _revision_of(state, sale) else recovered_minor
    given_up_minor = recovered_minor - debt_minor
    owed = changed(
        state.owed,
        emergency_minor=state.owed.emergency_minor + emergency_minor,
        debt_minor=state.owed.debt_minor + debt_minor,
    )
    currency = checks.currency_named(state.currency)
    nano = currency.nano_per_minor
    fee_minor = sale.fee_minor or 0
    credit_nano = sale.amount_nano - (emergency_minor + recovered_minor + fee_minor) * nano
    problem = _no_room(state, -credit_nano, owed, currency) or needs_another(
        command.authority, Action.REVERSAL, sale.amount_minor, state.currency, command.request
    )
    return problem or SaleReversed(
        **stamp(command.request),
        account_id=state.account_id,
        amount_minor=sale.amount_minor,
        amount_nano=sale.amount_nano,
        credited_nano=state.credited_nano - credit_nano,
        method=sale.method,
        receipt_id=str(name_uuid("receipt", *command.request.key)),
        reversed_receipt_id=command.receipt_id,
        reason=command.reason,
        returned_emergency_minor=emergency_minor,
        returned_debt_minor=debt_minor,
        returned_fee_minor=fee_minor,
        emergency_left_minor=owed.emergency_minor,
        debt_left_minor=owed.debt_minor,
        given_up_debt_minor=given_up_minor,
        **of_what(state),
        postings=(
            *postings.reversed_of(
                postings.of_sale(
                    sale.method,
                    sale.amount_nano,
                    emergency_minor * nano,
                    recovered_minor * nano,
                    fee_minor * nano,
                )
            ),
            *postings.of_write_off(Kind.DEBT, given_up_minor * nano),
        ),
    )


def _revision_of(state: Account, sale: CreditSold) -> int:
    answer = state.answers.get(sale.key)
    if answer is None:
        raise Bug(f"account {state.account_id} knows nothing of the sale of {sale.receipt_id}")
    return answer.revisions[-1]


def _paid_out_since(state: Account, sale: CreditSold) -> Rejection | None:
    """Return why a sale is not taken back: its money may have been paid out already."""
    if state.refunded_at < _revision_of(state, sale):
        return None
    text = (
        f"credit of account {state.account_id} was refunded after the sale of receipt "
        f"{sale.receipt_id}; refund what is left instead"
    )
    return Rejection(Reason.REFUNDED_SINCE, text, "receipt_id")


def _sold_to_another(state: Account, sale: CreditSold) -> Rejection | None:
    """Return why a sale is not taken back: what it credited is another tenant's now."""
    if not state.tenancies or state.tenancies[-1].until_revision < _revision_of(state, sale):
        return None
    text = (
        f"the sale of receipt {sale.receipt_id} was to a tenant before: the credit of account "
        f"{state.account_id} has gone over to the one of now; adjust it, as the two agree"
    )
    return Rejection(Reason.TENANT_CHANGED_SINCE, text, "receipt_id")


def _lent_again(state: Account, sale: CreditSold) -> Rejection | None:
    """Return why a sale is not taken back: more would be lent than was ever granted at once.

    Else what a sale has recovered could be granted again, and the sale be reversed, without an end.
    """
    recovered_minor, owed_minor = sale.recovered_emergency_minor or 0, state.owed.emergency_minor
    if not recovered_minor or owed_minor + recovered_minor <= state.emergency_most_minor:
        return None
    decimals = checks.currency_named(state.currency).minor_decimals
    recovered, owed, most = (
        format_scaled(minor, decimals)
        for minor in (recovered_minor, owed_minor, state.emergency_most_minor)
    )
    text = (
        f"the sale of receipt {sale.receipt_id} recovered {recovered} of emergency credit, and "
        f"account {state.account_id} was lent {owed} again since: with both it would owe more than "
        f"the {most} that were ever granted at once; reverse it when that is recovered"
    )
    return Rejection(Reason.EMERGENCY_GRANTED_SINCE, text, "receipt_id")


def _adjusted(state: Account, command: AdjustCredit) -> CreditAdjusted | Rejection:
    currency = checks.currency_named(state.currency)
    try:
        amount_nano = nano_from_minor(command.amount_minor, currency)
    except InvalidInput as too_large:
        return Rejection(too_large.reason, too_large.message, too_large.field)
    problem = _no_room(state, amount_nano, state.owed, currency) or needs_another(
        command.authority,
        Action.ADJUSTMENT,
        abs(command.amount_minor),
        state.currency,
        command.request,
    )
    return problem or CreditAdjusted(
        **stamp(command.request),
        account_id=state.account_id,
        amount_minor=command.amount_minor,
        amount_nano=amount_nano,
        credited_nano=state.credited_nano + amount_nano,
        reason=command.reason,
        **of_what(state),
        postings=postings.of_adjustment(amount_nano),
    )


def _written_off(state: Account, command: WriteOff) -> OwedWrittenOff | Rejection:
    currency = checks.currency_named(state.currency)
    try:
        amount_nano = nano_from_minor(command.amount_minor, currency)
    except InvalidInput as too_large:
        return Rejection(too_large.reason, too_large.message, too_large.field)
    owed = state.owed
    match command.kind:
        case Kind.EMERGENCY:
            owed = changed(owed, emergency_minor=owed.emergency_minor - command.amount_minor)
        case Kind.DEBT:
            owed = changed(owed, debt_minor=owed.debt_minor - command.amount_minor)
    credit_nano = amount_nano if command.kind == Kind.ARREARS else 0
    problem = (
        _not_owed(state, command, currency)
        or _no_room(state, credit_nano, owed, currency)
        or needs_another(
            command.authority,
            Action.WRITE_OFF,
            command.amount_minor,
            state.currency,
            command.request,
        )
    )
    return problem or OwedWrittenOff(
        **stamp(command.request),
        account_id=state.account_id,
        kind=command.kind,
        amount_minor=command.amount_minor,
        amount_nano=amount_nano,
        credited_nano=state.credited_nano + credit_nano,
        emergency_left_minor=owed.emergency_minor,
        debt_left_minor=owed.debt_minor,
        reason=command.reason,
        **of_what(state),
        postings=postings.of_write_off(command.kind, amount_nano),
    )


def no_way(state: Account, command: TransferCredit) -> Rejection | None:
    """Return why credit cannot go to another account; None where it can."""
    to = command.to
    if to is None:
        text = f"there is no account {command.to_account_id!r}; open it first"
        return Rejection(Reason.ACCOUNT_NOT_FOUND, text, "to_account_id")
    for reason, what, theirs, ours in (
        (Reason.LEGAL_ENTITY_MISMATCH, "legal entity", to.legal_entity, state.legal_entity),
        (Reason.CURRENCY_MISMATCH, "currency", to.currency, state.currency),
    ):
        if theirs != ours:
            text = (
                f"account {to.account_id} has {what} {theirs}, account {state.account_id} {ours}: "
                "refund, and sell there"
            )
            return Rejection(reason, text, "to_account_id")
    return not_open(to)


def _held(
    state: Account,
    command: RefundCredit | TransferCredit,
    action: Action,
    method: str,
    to_account_id: str | None,
) -> RefundHeld | Rejection:
    if state.refunding:
        return refund_under_way(state)
    if closing := closing_under_way(state):
        return closing
    if command.policy is None:
        raise Bug(f"account {state.account_id} is open and its policy {state.policy_id} is not")
    currency = checks.currency_named(state.currency)
    most_minor = left_minor(state)
    amount_minor = command.amount_minor or at_most(most_minor, command.at_most_minor)
    problem = (
        owes(state.owed)
        or too_little(amount_minor, most_minor, currency)
        or needs_another(command.authority, action, amount_minor, state.currency, command.request)
    )
    return problem or RefundHeld(
        **stamp(command.request),
        account_id=state.account_id,
        hold_id=hold_id_of(state.account_id, command.request, command.book_epoch),
        amount_minor=command.amount_minor,
        held_nano=amount_minor * currency.nano_per_minor,
        method=method,
        reason=command.reason,
        max_evidence_age_ms=command.policy.max_evidence_age_ms,
        **of_what(state),
        deadline_ms=command.request.at_ms + command.lasts_ms,
        to_account_id=to_account_id,
        to_tenancy=_tenancy_of(command),
    )


def _tenancy_of(command: RefundCredit | TransferCredit) -> int | None:
    """Return how many tenants the receiver had before the one who is to have the credit."""
    to = command.to if isinstance(command, TransferCredit) else None
    return len(to.tenancies) if to else None


def left_minor(state: Account) -> int:
    """Return what is left as far as the book knows: what was used since, metering's echo tells."""
    left_nano = max(state.credited_nano - state.used.usage.charged_nano, 0)
    return left_nano // checks.currency_named(state.currency).nano_per_minor


def arrears_minor(state: Account) -> int:
    """Return what was used beyond the credit as far as the book knows, rounded up."""
    beyond_nano = max(state.used.usage.charged_nano - state.credited_nano, 0)
    return -(-beyond_nano // checks.currency_named(state.currency).nano_per_minor)


Paying = TypeVar("Paying", RefundCredit, TransferCredit)


def named(state: Account, command: Paying) -> Paying:
    """Return it as it is proposed: who approves "all" sees, and approves, how much it is."""
    if command.amount_minor:
        return command
    return replace(command, at_most_minor=left_minor(state))


def _not_owed(state: Account, command: WriteOff, currency: Currency) -> Rejection | None:
    """Return why so much cannot be given up: it is not owed."""
    before = state.owed
    owed_minor = {
        Kind.EMERGENCY: before.emergency_minor,
        Kind.DEBT: before.debt_minor,
        Kind.ARREARS: arrears_minor(state),
    }[Kind(command.kind)]
    if command.amount_minor <= owed_minor:
        return None
    owed = format_scaled(owed_minor, currency.minor_decimals)
    return Rejection(
        Reason.NOT_OWED,
        f"account {state.account_id} owes {owed} of {command.kind}; write off that at most",
        "amount_minor",
    )


def _no_room(state: Account, more_nano: int, owed: Owed, currency: Currency) -> Rejection | None:
    """Return why the ledger cannot hold what would come of it; None where it can."""
    after = (
        state.credited_nano + in_transit_nano(state) + more_nano,
        owed.emergency_minor * currency.nano_per_minor,
        owed.debt_minor * currency.nano_per_minor,
    )
    if all(map(fits_int64, after)):
        return None
    text = f"what account {state.account_id} would have then does not fit its ledger"
    return Rejection(Reason.AMOUNT_TOO_LARGE, f"{text}; correct less", "amount_minor")
