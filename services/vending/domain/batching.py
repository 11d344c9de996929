"""What may be done to a batch: drafting, submitting, holding and ending it, and its rounds."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

from services.common.kernel.errors import Bug
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import INT64_MAX, fits_int64
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.batch import (
    MESSAGE_SIZE_MAX,
    TARGETS_MAX,
    TARGETS_PER_EVENT,
    Batch,
    Kind,
    Outcome,
    Result,
    Status,
    Target,
    Terms,
    evolve,
)
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    answered,
    stamp,
)
from services.vending.domain.events.batches import (
    BatchCancelled,
    BatchCreated,
    BatchFinished,
    BatchPaused,
    BatchResumed,
    BatchRoundBegun,
    BatchRoundEnded,
    BatchSubmitted,
    BatchTargets,
)
from services.vending.domain.events.event import Event


@value_class
class CreateBatch:
    """A batch shall be drafted; `targets` are of one legal entity and one currency."""

    request: Request
    terms: Terms
    legal_entity: str
    currency: str
    filter: str
    as_of_ms: int | None
    targets: tuple[Target, ...]

    def __post_init__(self) -> None:
        """Refuse what no batch can be."""
        checks.check_between("targets", len(self.targets), 1, TARGETS_MAX)
        ids = Counter(target.target_id for target in self.targets)
        (often, count), *_ = ids.most_common(1)
        if count > 1:
            raise checks.invalid("targets", f"{often} is in it {count} times; name each once")
        for target in self.targets:
            _check_amount(self.terms, target)
        if not fits_int64(self.total_minor):
            raise checks.invalid("amount_minor", "the amounts together do not fit the ledger")
        if (self.terms.to_ms or 0) > self.request.at_ms:
            text = "it is not over yet; what is exported is whole and stays so: export what is past"
            raise checks.invalid("to_ms", text)

    @property
    def total_minor(self) -> int:
        """Sum of the amounts, each without its sign."""
        return sum(abs(target.amount_minor or 0) for target in self.targets)


def _check_amount(terms: Terms, target: Target) -> None:
    amount_minor = target.amount_minor
    if (amount_minor is not None) != terms.rule.has_amounts:
        said = "give each target an amount" if terms.rule.has_amounts else "it takes no amounts"
        raise checks.invalid("amount_minor", f"a batch of kind {terms.kind}: {said}")
    if amount_minor is None:
        return
    if terms.kind is Kind.SALE:
        checks.check_amount("amount_minor", amount_minor)
    checks.check_between("amount_minor", amount_minor, -INT64_MAX, INT64_MAX)
    if not amount_minor:
        raise checks.invalid("amount_minor", f"0 for {target.target_id} changes nothing")


@value_class
class SubmitBatch:
    """The batch shall be carried out.

    `authority`: what one person may do alone at the legal entity.
    """

    request: Request
    batch_id: str
    authority: Authority | None = None


@value_class
class _Order:
    """What a person says of a batch that was drafted."""

    request: Request
    batch_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_text("reason", self.reason)


@value_class
class PauseBatch(_Order):
    """No further round shall begin until it is resumed."""


@value_class
class ResumeBatch(_Order):
    """A paused batch shall go on."""


@value_class
class CancelBatch(_Order):
    """No further round shall begin, ever."""


@value_class
class BeginRound:
    """The commands of these targets shall be given."""

    request: Request
    targets: tuple[int, ...]


@value_class
class EndRound:
    """What came of the open round."""

    request: Request
    results: tuple[Result, ...]


Command = CreateBatch | SubmitBatch | PauseBatch | ResumeBatch | CancelBatch | BeginRound | EndRound


def batch_id_of(request: Request) -> str:
    """Return the id of the batch that a request drafts."""
    return str(name_uuid("batch", *request.key))


def batch_not_found(batch_id: str) -> Rejection:
    """Return the refusal of a command on a batch that is not there."""
    text = f"there is no batch {batch_id!r}; list those that there are"
    return Rejection(Reason.BATCH_NOT_FOUND, text, "name")


def too_many_drafts(legal_entity: str, drafts_max: int) -> Rejection:
    """Return the refusal of one draft more."""
    text = f"{legal_entity} has {drafts_max} drafts of batches, the most: submit or cancel some"
    return Rejection(Reason.TOO_MANY_DRAFTS, text, "kind")


def why_two(state: Batch, authority: Authority | None, request: Request) -> Rejection | None:
    """Return why a batch needs a second person: for its size, or for what its commands do.

    The amounts count together, so that a batch is no way around the limit of each.
    """
    if problem := needs_another(
        authority, Action.BATCH, state.targets_count, state.currency, request
    ):
        return problem
    if (action := state.terms.rule.action) is None:
        return None
    size: int | None = state.total_minor or 1
    if action is Action.KEEP_POWER:
        size = None  # relays that are forced on are so without an end
    elif action is Action.EXPORT:
        size = state.targets_count
    return needs_another(authority, action, size, state.currency, request)


def decide(state: Batch | None, command: Command) -> Decision:  # noqa: PLR0911 - one a case
    """Return what a command does to a batch, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, CreateBatch):
        assert state is None, "a batch's id derives from the request, which is known by now"
        return Accepted(tuple(_created(command)))
    if state is None:
        assert not isinstance(command, BeginRound | EndRound), "rounds know what they are of"
        return batch_not_found(command.batch_id)
    match command:
        case SubmitBatch():
            return _submit(state, command)
        case PauseBatch():
            return _move(state, command, BatchPaused, Status.RUNNING)
        case ResumeBatch():
            return _move(state, command, BatchResumed, Status.PAUSED)
        case CancelBatch():
            able = (Status.DRAFT, Status.RUNNING, Status.PAUSED)
            return _move(state, command, BatchCancelled, *able)
        case BeginRound():
            return _begin(state, command)
        case EndRound():
            return _end(state, command)


def _created(command: CreateBatch) -> Iterator[Event]:
    stamped = {**stamp(command.request), "batch_id": batch_id_of(command.request)}
    terms, targets = command.terms, command.targets
    yield BatchCreated(
        **stamped,
        kind=terms.kind.value,
        legal_entity=command.legal_entity,
        currency=command.currency,
        reason=terms.reason,
        method=terms.method,
        tariff_id=terms.tariff_id,
        policy_id=terms.policy_id,
        filter=command.filter,
        as_of_ms=command.as_of_ms,
        targets_count=len(targets),
        total_minor=command.total_minor,
        from_ms=terms.from_ms,
        to_ms=terms.to_ms,
    )
    for first in range(0, len(targets), TARGETS_PER_EVENT):
        some = targets[first : first + TARGETS_PER_EVENT]
        listed = [
            {
                "target_id": target.target_id,
                "site_id": target.site_id,
                "amount_minor": target.amount_minor,
                "account_id": target.account_id,
                "tenancy": target.tenancy,
            }
            for target in some
        ]
        yield BatchTargets(**stamped, first=first, targets=listed)


def _submit(state: Batch, command: SubmitBatch) -> Decision:
    if state.status is not Status.DRAFT:
        return _wrong_status(state, Status.DRAFT)
    if problem := why_two(state, command.authority, command.request):
        return problem
    return Accepted((BatchSubmitted(**stamp(command.request), batch_id=state.batch_id),))


def _move(
    state: Batch,
    command: PauseBatch | ResumeBatch | CancelBatch,
    event: type[BatchPaused | BatchResumed | BatchCancelled],
    *able: Status,
) -> Decision:
    if state.status not in able:
        return _wrong_status(state, *able)
    said = event(**stamp(command.request), batch_id=state.batch_id, reason=command.reason)
    return Accepted((said,))


def _wrong_status(state: Batch, *able: Status) -> Rejection:
    text = f"batch {state.batch_id} is {state.status}; this is for one that is {' or '.join(able)}"
    return Rejection(Reason.BATCH_STATE, text, "name")


def _begin(state: Batch, command: BeginRound) -> Decision:
    if state.status is not Status.RUNNING:
        return Accepted(())  # somebody paused or cancelled it a moment ago
    if state.open_round:
        raise Bug(f"batch {state.batch_id} has an open round, and another one begins")
    begun = BatchRoundBegun(
        **stamp(command.request),
        batch_id=state.batch_id,
        round=state.round,
        targets=list(command.targets),
    )
    return Accepted((begun,))


def _end(state: Batch, command: EndRound) -> Decision:
    if tuple(result.target for result in command.results) != state.open_round:
        raise Bug(f"batch {state.batch_id}: results are of another round than the open one")
    listed = [
        {
            "target": result.target,
            "outcome": result.outcome.value,
            "revision": result.revision,
            "reason": result.reason,
            "message": result.message[:MESSAGE_SIZE_MAX],
            "export": asdict(result.export) if result.export else None,
        }
        for result in command.results
    ]
    stamped = {**stamp(command.request), "batch_id": state.batch_id}
    ended = BatchRoundEnded(**stamped, round=state.round - 1, results=listed)
    after = evolve(state, ended)
    if state.status is Status.CANCELLED or after.counts[Outcome.WAITING]:
        return Accepted((ended,))
    counts = after.counts
    finished = BatchFinished(
        **stamped,
        done_count=counts[Outcome.DONE],
        refused_count=counts[Outcome.REFUSED],
        skipped_count=counts[Outcome.SKIPPED],
    )
    return Accepted((ended, finished))
