"""What stands in the book, as the messages of wattvend.vending.v1. No rules."""

from services.vending.domain.approval import Proposal
from services.vending.domain.authority import Action, Authority, limit_of, rules_text
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
