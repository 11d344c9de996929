"""What stands in the book, as the messages of wattvend.vending.v1. No rules."""

from services.vending.domain.approval import Proposal
from services.vending.domain.authority import Action, Authority, limit_of, rules_text
from services.vending.domain.events import CreditRefunded, SaleReversed
from services.vending.domain.payment import Payment
from wattvend.vending.v1 import vending_pb2 as pb


def authority(state: Authority, version: pb.BookVersion) -> pb.Authority:
    """Return what one person may do alone, of every action."""
    return pb.Authority(
        legal_entity=state.legal_entity,
        authority_version=state.version,
        currency=state.currency,
        rules=rules_text({action.value: limit_of(state, action) for action in Action}),
        proposals_last_ms=state.proposals_last_ms,
        version=version,
    )


def approval(state: Proposal, version: pb.BookVersion) -> pb.Approval:
    """Return a proposal."""
    return pb.Approval(
        approval_id=state.approval_id,
        status=state.status.value,
        legal_entity=state.legal_entity,
        action=state.action,
        target=state.target,
        command=state.command,
        content=state.content,
        proposed_by=state.proposer.who,
        proposed_at_ms=state.proposed_at_ms,
        expires_at_ms=state.expires_at_ms,
        decided_by=state.decider.who if state.decider else "",
        reason=state.reason,
        failure_reason=state.failure.reason if state.failure else "",
        failure_message=state.failure.message if state.failure else "",
        version=version,
    )


def reversal(event: SaleReversed) -> pb.Reversal:
    """Return the document of a sale that was taken back."""
    given_up_minor = event.given_up_debt_minor or 0
    owed_minor = event.returned_emergency_minor + event.returned_debt_minor + given_up_minor
    fee_minor = event.returned_fee_minor
    return pb.Reversal(
        receipt_id=event.receipt_id,
        reversed_receipt_id=event.reversed_receipt_id,
        account_id=event.account_id,
        amount_minor=event.amount_minor,
        currency=event.currency,
        legal_entity=event.legal_entity,
        method=event.method,
        reversed_at_ms=event.occurred_at_ms,
        reason=event.reason,
        returned_emergency_minor=event.returned_emergency_minor,
        returned_debt_minor=event.returned_debt_minor,
        credit_minor=event.amount_minor - fee_minor - owed_minor,
        fee_minor=fee_minor,
        emergency_left_minor=event.emergency_left_minor,
        debt_left_minor=event.debt_left_minor,
        given_up_debt_minor=given_up_minor,
    )


def payment(state: Payment, version: pb.BookVersion) -> pb.Payment:
    """Return a payment of an outside seller."""
    return pb.Payment(
        payment_id=state.payment_id,
        transaction_id=state.transaction_id,
        account_id=state.account_id,
        amount_minor=state.amount_minor,
        currency=state.currency,
        method=state.method,
        status=state.status.value,
        reserved_at_ms=state.reserved_at_ms,
        expires_at_ms=state.expires_at_ms,
        receipt_id=state.receipt_id,
        refusal_reason=state.failure.reason if state.failure else "",
        refusal_message=state.failure.message if state.failure else "",
        version=version,
    )


def refund(event: CreditRefunded) -> pb.Refund:
    """Return the document of credit that was paid out."""
    return pb.Refund(
        receipt_id=event.receipt_id,
        account_id=event.account_id,
        amount_minor=event.amount_minor,
        currency=event.currency,
        legal_entity=event.legal_entity,
        method=event.method,
        refunded_at_ms=event.occurred_at_ms,
        reason=event.reason,
        charged_nano=event.charged_nano,
        account_sequence=event.account_sequence,
    )
