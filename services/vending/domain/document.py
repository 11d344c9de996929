"""A document: a version of a tariff or policy on paper, until two persons have let it happen.

Its stream says that it was drafted, submitted, or withdrawn. What became of it since is written
once, elsewhere: its submission is a proposal (or, where one person may, done at once), its
publication a version that names the document, and the clock says whether that one is in force. So
none of these can be told in two ways. A document is never edited; a change is a new one that names
it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import fields
from enum import StrEnum

import orjson

from services.common.kernel.errors import Bug
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import approval, checks, policy, tariff
from services.vending.domain.approval import Proposal
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
from services.vending.domain.events.documents import (
    DocumentDrafted,
    DocumentSubmitted,
    DocumentWithdrawn,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.prices import (
    PolicyPublished,
    PolicyScheduled,
    PolicyVersion,
    TariffPublished,
)
from services.vending.domain.origin import Origin
from services.vending.domain.policy import Policy, PublishPolicy
from services.vending.domain.tariff import PublishTariff, Tariff

BESIDE = ("request", "document_id", "base_version", "authority")
"""Fields of a publication that no draft says: the document's own, and the office's."""


class Kind(StrEnum):
    """Of what a document is a version."""

    TARIFF = "tariff"
    POLICY = "policy"


class State(StrEnum):
    """Where a document, or a version that had none, is in its life."""

    DRAFT = "draft"
    WITHDRAWN = "withdrawn"
    SUBMITTED = "submitted"
    APPROVED = "approved"
    DECLINED = "declined"
    EXPIRED = "expired"
    FAILED = "failed"
    SCHEDULED = "scheduled"
    IN_FORCE = "in-force"
    SUPERSEDED = "superseded"


@value_class
class Document:
    """The folded stream of a document.

    `target_id`: of the tariff or policy, `content`: the JSON of the publication's fields;
    `base_version`: the newest version of it that the drafter saw, 0: none; `replaces`: the document
    that it was made from, "" for none; `is_submitted`: somebody asked for its publication, whatever
    came of that; `withdrawn_by`: None: nobody did.
    """

    answers: Answers
    document_id: str
    kind: str
    target_id: str
    legal_entity: str
    base_version: int
    replaces: str
    content: str
    drafted_by: Origin
    drafted_at_ms: int
    is_submitted: bool = False
    withdrawn_by: Origin | None = None
    reason: str = ""


@value_class
class Draft:
    """A publication as it shall be once others have let it happen.

    `target`: what it would be a version of, as it is now, None: nothing; `lead_ms`: how far ahead a
    tariff's must lie; `replaced`: the document that `replaces` names, None: there is none.
    """

    request: Request
    publication: PublishTariff | PublishPolicy
    replaces: str
    target: Tariff | Policy | None
    lead_ms: int
    replaced: Document | None = None


@value_class
class Submit:
    """The publication of a draft is asked for."""

    request: Request
    document_id: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_uuid("document_id", self.document_id)


@value_class
class Withdraw:
    """A draft shall not be submitted any more."""

    request: Request
    document_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_uuid("document_id", self.document_id)
        checks.check_text("reason", self.reason)


def document_id_of(request: Request) -> str:
    """Return the id of the document that a request drafts."""
    return str(name_uuid("document", *request.key))


def document_not_found(document_id: str) -> Rejection:
    """Return the refusal of a command on a document that is not there."""
    text = f"there is no document {document_id!r}; list those that there are"
    return Rejection(Reason.DOCUMENT_NOT_FOUND, text, "document_id")


Command = Draft | Submit | Withdraw


def decide(state: Document | None, command: Command) -> Decision:
    """Return what a command does to a document, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, Draft):
        assert state is None, "a document's id derives from the request, which is known by now"
        return _draft(command)
    if state is None:
        return document_not_found(command.document_id)
    if state.withdrawn_by is not None:
        return withdrawn(state)
    if isinstance(command, Submit):
        submitted = DocumentSubmitted(**stamp(command.request), document_id=state.document_id)
        return Accepted(() if state.is_submitted else (submitted,))
    withdrawal = DocumentWithdrawn(
        **stamp(command.request), document_id=state.document_id, reason=command.reason
    )
    return Accepted((withdrawal,))


def _draft(command: Draft) -> Decision:
    """Refuse now whatever would be refused when it is published, but for the second person."""
    target, publication = command.target, command.publication
    kind, target_id = named(publication)
    base_version = newest_version_of(target)
    if command.replaces:
        if command.replaced is None:
            return document_not_found(command.replaces)
        if (command.replaced.kind, command.replaced.target_id) != (kind, target_id):
            replaced = command.replaced
            text = (
                f"document {replaced.document_id} is of {replaced.kind} {replaced.target_id}, not "
                f"of {kind} {target_id}"
            )
            return Rejection(Reason.INVALID_ARGUMENT, f"{text}: it replaces another", "replaces")
    drafted = DocumentDrafted(
        **stamp(command.request),
        document_id=document_id_of(command.request),
        kind=kind,
        target_id=target_id,
        legal_entity=publication.legal_entity,
        base_version=base_version,
        replaces=command.replaces or None,
        content=_content_of(publication),
    )
    tried = published(evolve(None, drafted), _as_by_two(command.request), command.lead_ms)
    refused = _decided(target, tried)
    return refused if isinstance(refused, Rejection) else Accepted((drafted,))


def named(publication: PublishTariff | PublishPolicy) -> tuple[Kind, str]:
    """Return of what something is a publication: its kind and id."""
    if isinstance(publication, PublishTariff):
        return Kind.TARIFF, publication.tariff_id
    return Kind.POLICY, publication.policy_id


def newest_version_of(target: Tariff | Policy | None) -> int:
    """Return the newest version of a tariff or policy, scheduled or in force; 0: none."""
    if target is None:
        return 0
    return target.version if isinstance(target, Tariff) else target.newest


def _as_by_two(request: Request) -> Request:
    return changed(request, origin=changed(request.origin, approved_by="whoever it will be"))


def _decided(
    target: Tariff | Policy | None, publication: PublishTariff | PublishPolicy
) -> Decision:
    if isinstance(publication, PublishTariff):
        assert target is None or isinstance(target, Tariff)
        return tariff.decide(target, publication)
    assert target is None or isinstance(target, Policy)
    return policy.decide(target, publication)


def _content_of(publication: PublishTariff | PublishPolicy) -> str:
    names = [field.name for field in fields(publication)]
    said = {name: getattr(publication, name) for name in names if name not in BESIDE}
    return orjson.dumps(said, option=orjson.OPT_SORT_KEYS).decode()


def published(state: Document, request: Request, lead_ms: int) -> PublishTariff | PublishPolicy:
    """Return the publication of a document. `lead_ms`: how far ahead a tariff's must lie now."""
    said = orjson.loads(state.content)
    paper = {"document_id": state.document_id, "base_version": state.base_version}
    if state.kind == Kind.TARIFF:
        return PublishTariff(request, **(said | paper | {"lead_ms": lead_ms}))
    return PublishPolicy(request, **(said | paper))


def withdrawn(state: Document) -> Rejection:
    """Return the refusal of a command on a document that was withdrawn."""
    by = state.withdrawn_by.who if state.withdrawn_by else ""
    text = f"{by} withdrew document {state.document_id}: {state.reason}"
    return Rejection(Reason.DOCUMENT_DECIDED, f"{text}; draft another", "document_id")


def evolve(state: Document | None, event: Event) -> Document:
    """Return the document after an event of its stream."""
    match state, event:
        case None, DocumentDrafted():
            return Document(
                Answers().after(event),
                event.document_id,
                event.kind,
                event.target_id,
                event.legal_entity,
                event.base_version,
                event.replaces or "",
                event.content,
                approval.behind(event),
                event.occurred_at_ms,
            )
        case Document(), DocumentSubmitted():
            return changed(state, answers=state.answers.after(event), is_submitted=True)
        case Document(), DocumentWithdrawn():
            return changed(
                state,
                answers=state.answers.after(event),
                withdrawn_by=approval.behind(event),
                reason=event.reason,
            )
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a document's stream here")


# --- versions, and the life of a document ---------------------------------------------------------


@value_class
class Version:
    """A version of a tariff or policy. `begins_ms`: from when on it applies, or is to apply."""

    number: int
    begins_ms: int
    has_begun: bool
    document_id: str
    published_by: Origin
    published_at_ms: int
    content: TariffPublished | PolicyVersion


@value_class
class Life:
    """Where a document is: what `version` it became, None: none; else why not.

    `by`: who submitted it; `decided_by`: who approved, declined or withdrew it, and his `reason`;
    `failure`: why it could not be published when it was approved; `is_stale`: a version came after
    the draft was made, so it cannot be published.
    """

    state: State
    version: Version | None = None
    by: Origin | None = None
    decided_by: Origin | None = None
    reason: str = ""
    failure: approval.Failure | None = None
    is_stale: bool = False


def versions_of_tariff(events: Sequence[TariffPublished], now_ms: int) -> list[Version]:
    """Return the versions of a tariff, in order of their numbers."""
    begins_ms = {event.version: event.effective_at_ms or event.occurred_at_ms for event in events}
    return [
        _version(event, begins_ms[event.version], has_begun=begins_ms[event.version] <= now_ms)
        for event in events
    ]


def versions_of_policy(
    scheduled: Iterable[PolicyScheduled], begun: Iterable[PolicyPublished]
) -> list[Version]:
    """Return the versions of a policy, in order of their numbers.

    One that was scheduled has begun when it was brought into force, not when its instant came.
    """
    found = {
        event.version: _version(event, event.effective_at_ms, has_begun=False)
        for event in scheduled
    }
    for event in begun:
        waited = found.get(event.version) or _version(event, event.occurred_at_ms, has_begun=True)
        found[event.version] = changed(waited, begins_ms=event.occurred_at_ms, has_begun=True)
    return [found[number] for number in sorted(found)]


def _version(event: TariffPublished | PolicyVersion, begins_ms: int, *, has_begun: bool) -> Version:
    return Version(
        event.version,
        begins_ms,
        has_begun,
        event.document_id or "",
        approval.behind(event),
        event.occurred_at_ms,
        event,
    )


def state_of(version: Version, versions: Sequence[Version]) -> State:
    """Return where a version is in its life, among all of its tariff or policy.

    In force is the highest number of those that have begun. One that is still to begin when a
    later one does, or has, never is.
    """
    for later in (other for other in versions if other.number > version.number):
        comes_first = not version.has_begun and later.begins_ms <= version.begins_ms
        if later.has_begun or comes_first:
            return State.SUPERSEDED
    return State.IN_FORCE if version.has_begun else State.SCHEDULED


def why_not_taken_back(version: Version, versions: Sequence[Version]) -> Rejection | None:
    """Return why a version stands; None where it can be taken back: it is the last, and to come."""
    where = state_of(version, versions)
    text = f"document {version.document_id} is {where} already"
    if where is State.SCHEDULED and version.number < versions[-1].number:
        text = f"version {versions[-1].number} was published behind it"
    elif where is State.SCHEDULED:
        return None
    text = f"{text}; publish what shall apply instead"
    return Rejection(Reason.DOCUMENT_DECIDED, text, "document_id")


def before(version: Version, versions: Sequence[Version]) -> Version:
    """Return what would apply at the instant of a scheduled version if that were not there.

    What was to begin later, and gave way to it, does not come back.
    """
    earlier = [
        other
        for other in versions
        if other.number < version.number and other.begins_ms <= version.begins_ms
    ]
    assert earlier, "the first version of all applies at once"
    return earlier[-1]


def instead(
    of: Version, by: Version, legal_entity: str, request: Request, lead_ms: int
) -> PublishTariff | PublishPolicy:
    """Return the publication of what one version says `by` the instant of another."""
    event = by.content
    if isinstance(event, TariffPublished):
        return PublishTariff(
            request,
            event.tariff_id,
            event.commodity,
            event.currency,
            event.legal_entity,
            event.price_micro,
            event.plan,
            of.begins_ms,
            lead_ms,
        )
    said = policy.said_in_minor(event)
    return PublishPolicy(
        request,
        event.policy_id,
        **(said | {"legal_entity": said["legal_entity"] or legal_entity}),
        effective_at_ms=of.begins_ms,
    )


_BY_PROPOSAL = {
    approval.Status.PENDING: State.SUBMITTED,
    approval.Status.APPROVED: State.APPROVED,
    approval.Status.DECLINED: State.DECLINED,
    approval.Status.EXPIRED: State.EXPIRED,
    approval.Status.FAILED: State.FAILED,
}


def life_of(
    state: Document, proposal: Proposal | None, versions: Sequence[Version], now_ms: int
) -> Life:
    """Return where a document is. `proposal`: that of its submission, None: it has none."""
    by = proposal.proposer if proposal else None
    decided_by, reason = (proposal.decider, proposal.reason) if proposal else (None, "")
    for version in versions:
        if version.document_id == state.document_id:
            if state.withdrawn_by is not None:
                return Life(State.WITHDRAWN, version, by, state.withdrawn_by, state.reason)
            where = state_of(version, versions)
            return Life(where, version, by or version.published_by, decided_by, reason)
    if state.withdrawn_by is not None:
        return Life(State.WITHDRAWN, None, None, state.withdrawn_by, state.reason)
    newest = versions[-1].number if versions else 0
    is_stale = newest != state.base_version
    if proposal is None:
        return Life(State.DRAFT, is_stale=is_stale)
    where = _BY_PROPOSAL[proposal.status]
    if where is State.SUBMITTED and now_ms >= proposal.expires_at_ms:
        where = State.EXPIRED
    is_stale = is_stale and where in (State.SUBMITTED, State.APPROVED)
    return Life(where, None, by, decided_by, reason, proposal.failure, is_stale)
