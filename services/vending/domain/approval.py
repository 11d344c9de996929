"""A proposal: a command that one person may not give alone, until another approves or declines.

pending → approved → executed or failed; or pending → declined or expired. What was proposed is
kept word for word with what it depended on, and that is what is carried out, or nothing is.
"""

from enum import StrEnum

from services.common.kernel.errors import Bug
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.authority import are_two
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
from services.vending.domain.events.approvals import (
    CommandProposed,
    ProposalApproved,
    ProposalDeclined,
    ProposalExecuted,
    ProposalExpired,
    ProposalFailed,
)
from services.vending.domain.events.event import Event
from services.vending.domain.origin import Origin


class Status(StrEnum):
    """What became of a proposal."""

    PENDING = "pending"
    APPROVED = "approved"
    DECLINED = "declined"
    EXPIRED = "expired"
    EXECUTED = "executed"
    FAILED = "failed"


@value_class
class Failure:
    """Why an approved command was refused when it was carried out."""

    reason: str
    message: str


@value_class
class Proposal:
    """The folded stream of a proposal.

    `content`: the JSON of the command's fields, and under `seen` of what it depended on. `decider`
    and `reason`: who approved or declined, and why. `revision`: of the command's last event in
    `target`, None before.
    """

    answers: Answers
    approval_id: str
    legal_entity: str
    action: str
    target: str
    command: str
    content: str
    proposer: Origin
    proposed_at_ms: int
    expires_at_ms: int
    status: Status = Status.PENDING
    decider: Origin | None = None
    reason: str = ""
    revision: int | None = None
    failure: Failure | None = None


@value_class
class Propose:
    """A command waits for a second person for `lasts_ms`."""

    request: Request
    legal_entity: str
    action: str
    target: str
    command: str
    content: str
    lasts_ms: int


@value_class
class _Verdict:
    """What a person says of a proposal."""

    request: Request
    approval_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_uuid("approval_id", self.approval_id)
        checks.check_text("reason", self.reason)


@value_class
class Approve(_Verdict):
    """A second person lets it happen."""


@value_class
class Decline(_Verdict):
    """A person, also the one who proposed it, lets it not happen."""


@value_class
class Expire:
    """Its time is over."""

    request: Request
    approval_id: str


@value_class
class Conclude:
    """It was carried out: up to `revision` of its target; or refused, why `failure` says."""

    request: Request
    approval_id: str
    revision: int
    failure: Failure | None


Command = Propose | Approve | Decline | Expire | Conclude


def approval_id_of(request: Request) -> str:
    """Return the id of the proposal that a request becomes, where it becomes one."""
    return str(name_uuid("approval", *request.key))


def approval_not_found(approval_id: str) -> Rejection:
    """Return the refusal of a command on a proposal that is not there."""
    text = f"there is no proposal {approval_id!r}; list those that wait"
    return Rejection(Reason.APPROVAL_NOT_FOUND, text, "approval_id")


def decide(state: Proposal | None, command: Command) -> Decision:
    """Return what a command does to a proposal, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, Propose):
        assert state is None, "a proposal's id derives from the request, which is known by now"
        return Accepted((_proposed(command),))
    if state is None:
        return approval_not_found(command.approval_id)
    match command:
        case Approve() | Decline():
            return _judge(state, command)
        case Expire():
            return _expire(state, command)
        case Conclude():
            return _conclude(state, command)


def _judge(state: Proposal, command: Approve | Decline) -> Decision:
    judged = ProposalApproved if isinstance(command, Approve) else ProposalDeclined
    problem = _not_pending(state, command.request) or _same_person(state, command)
    return problem or Accepted(
        (
            judged(
                **stamp(command.request),
                approval_id=state.approval_id,
                reason=command.reason,
            ),
        )
    )


def _proposed(command: Propose) -> CommandProposed:
    return CommandProposed(
        **stamp(command.request),
        approval_id=approval_id_of(command.request),
        legal_entity=command.legal_entity,
        action=command.action,
        target=command.target,
        command=command.command,
        content=command.content,
        expires_at_ms=command.request.at_ms + command.lasts_ms,
    )


def _not_pending(state: Proposal, request: Request) -> Rejection | None:
    if state.status is not Status.PENDING:
        text = f"proposal {state.approval_id} is {state.status} already"
        return Rejection(Reason.APPROVAL_DECIDED, text, "approval_id")
    return None if request.at_ms < state.expires_at_ms else expired(state)


def expired(state: Proposal) -> Rejection:
    """Return the refusal of what nobody approved in time."""
    text = f"nobody approved proposal {state.approval_id} in time; propose it anew"
    return Rejection(Reason.APPROVAL_EXPIRED, text, "approval_id")


def _same_person(state: Proposal, command: Approve | Decline) -> Rejection | None:
    if isinstance(command, Decline) or are_two(behind(command.request), state.proposer):
        return None
    text = (
        f"{state.proposer.who} proposed {state.approval_id}: another person approves it, "
        "by an actor of another name where one was named"
    )
    return Rejection(Reason.SAME_PERSON, text, "approval_id")


def behind(asked: Request | Event) -> Origin:
    """Return who is behind a request or an event: of before origins were kept, its caller."""
    return asked.origin if asked.origin.caller else Origin(asked.caller)


def _expire(state: Proposal, command: Expire) -> Decision:
    if state.status is not Status.PENDING or command.request.at_ms < state.expires_at_ms:
        return Accepted(())
    expiry = ProposalExpired(**stamp(command.request), approval_id=state.approval_id)
    return Accepted((expiry,))


def _conclude(state: Proposal, command: Conclude) -> Decision:
    if state.status is not Status.APPROVED:
        raise Bug(f"proposal {state.approval_id} is {state.status}, and was carried out")
    if command.failure is None:
        executed = ProposalExecuted(
            **stamp(command.request),
            approval_id=state.approval_id,
            target=state.target,
            revision=command.revision,
        )
        return Accepted((executed,))
    failed = ProposalFailed(
        **stamp(command.request),
        approval_id=state.approval_id,
        reason=command.failure.reason,
        message=command.failure.message,
    )
    return Accepted((failed,))


def evolve(state: Proposal | None, event: Event) -> Proposal:
    """Return the proposal after an event of its stream."""
    match state, event:
        case None, CommandProposed():
            return Proposal(
                Answers().after(event),
                event.approval_id,
                event.legal_entity,
                event.action,
                event.target,
                event.command,
                event.content,
                behind(event),
                event.occurred_at_ms,
                event.expires_at_ms,
            )
        case Proposal(), ProposalApproved() | ProposalDeclined():
            approved = isinstance(event, ProposalApproved)
            return changed(
                state,
                answers=state.answers.after(event),
                status=Status.APPROVED if approved else Status.DECLINED,
                decider=behind(event),
                reason=event.reason,
            )
        case Proposal(), ProposalExpired():
            return changed(state, answers=state.answers.after(event), status=Status.EXPIRED)
        case Proposal(), ProposalExecuted():
            return changed(
                state,
                answers=state.answers.after(event),
                status=Status.EXECUTED,
                revision=event.revision,
            )
        case Proposal(), ProposalFailed():
            return changed(
                state,
                answers=state.answers.after(event),
                status=Status.FAILED,
                failure=Failure(event.reason, event.message),
            )
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a proposal's stream here")
