"""A transfer 转账 between accounts: credit leaves one when metering says what is left, and arrives.

Three streams take part one after the other: the credit is held and leaves (credit-transferred), the
other account receives it (transfer-received), the first one hears of it (transfer-arrived); or the
other cannot take it in, and it comes back (transfer-returned). Until then it is in transit, and the
account that it left neither closes nor pays anything else out.
"""

from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks, postings
from services.vending.domain.account import Account, no_more, not_open, of_what
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    answered,
    stamp,
)
from services.vending.domain.events.refunds import (
    TransferArrived,
    TransferReceived,
    TransferReturned,
)


@value_class
class ReceiveTransfer:
    """Credit that has left another account shall be the account's.

    `tenancy`: how many tenants the account had before the one whom it is for, None: any's.
    """

    request: Request
    account_id: str
    from_account_id: str
    hold_id: str
    amount_minor: int
    reason: str
    tenancy: int | None


@value_class
class EndTransfer:
    """The other account has received what was sent; or it cannot, as `failure` says."""

    request: Request
    account_id: str
    failure: Rejection | None


@value_class
class LetGo:
    """The hold shall end if its deadline is over: metering has not echoed it."""

    request: Request
    account_id: str


Step = ReceiveTransfer | EndTransfer | LetGo


def decide(state: Account | None, command: Step) -> Decision:
    """Return what a step does to an account, or why it cannot be done."""
    assert state is not None, "transfers are between accounts that were there"
    match command:
        case ReceiveTransfer():
            return answered(state.answers, command.request) or _received(state, command)
        case EndTransfer():
            return _ended(state, command)
        case LetGo():
            return _let_go(state, command)


def _received(state: Account, command: ReceiveTransfer) -> Decision:
    currency = checks.currency_named(state.currency)
    amount_nano = command.amount_minor * currency.nano_per_minor
    problem = not_open(state) or _let_since(state, command) or no_more(state, amount_nano, currency)
    return problem or Accepted(
        (
            TransferReceived(
                **stamp(command.request),
                account_id=state.account_id,
                hold_id=command.hold_id,
                from_account_id=command.from_account_id,
                amount_minor=command.amount_minor,
                amount_nano=amount_nano,
                credited_nano=state.credited_nano + amount_nano,
                reason=command.reason,
                **of_what(state),
                postings=postings.of_transfer_in(amount_nano),
            ),
        )
    )


def _let_since(state: Account, command: ReceiveTransfer) -> Rejection | None:
    """Return why credit does not arrive: whom it is for has left the account."""
    if command.tenancy in (None, len(state.tenancies)):
        return None
    text = f"account {state.account_id} has got another tenant since the transfer was asked for"
    return Rejection(Reason.TENANT_CHANGED_SINCE, f"{text}; agree with that one, and ask anew")


def _ended(state: Account, command: EndTransfer) -> Decision:
    """End what is in transit. The event answers who asked for it."""
    sent, at_ms = state.refunding, command.request.at_ms
    if sent is None or not sent.sent_minor:
        return Accepted(())
    said = {
        **sent.said(at_ms),
        "account_id": state.account_id,
        "hold_id": sent.sent_as,
        "to_account_id": sent.to_account_id,
        "amount_minor": sent.sent_minor,
        **of_what(state),
    }
    if command.failure is None:
        return Accepted((TransferArrived(**said),))
    amount_nano = sent.sent_minor * checks.currency_named(state.currency).nano_per_minor
    returned = TransferReturned(
        **said,
        amount_nano=amount_nano,
        credited_nano=state.credited_nano + amount_nano,
        reason=command.failure.reason.value,
        message=command.failure.message,
        postings=postings.of_transfer_in(amount_nano),
    )
    return Accepted((returned,))


def _let_go(state: Account, command: LetGo) -> Decision:
    held, at_ms = state.refunding, command.request.at_ms
    if held is None or held.sent_minor or held.deadline_ms is None or at_ms < held.deadline_ms:
        return Accepted(())
    of_account = {"account_id": state.account_id, **of_what(state)}
    used = state.used
    return Accepted(
        (held.let_go(at_ms, used.account_sequence, used.usage.charged_nano, of_account),)
    )
