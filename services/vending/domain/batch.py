"""A batch: one command for many meters or accounts, carried out in rounds, with a result for each.

draft → running ⇄ paused → finished; each but the last → cancelled. What it is for is chosen and
frozen when it is drafted. A round is written down before its first command is given and ended with
what came of each; each command's request derives from batch and target, so a round that was broken
off is given again and nothing happens twice.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from services.common.kernel.errors import Bug
from services.common.kernel.values import value_class
from services.vending.domain import checks, pacing
from services.vending.domain.authority import Action
from services.vending.domain.decisions import (
    Answers,
    changed,
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
from services.vending.domain.origin import NOBODY, Origin
from services.vending.domain.pacing import Asked

TARGETS_MAX = 10_000
TARGETS_PER_EVENT = 500
"""What keeps an event below 100 kB."""
TARGETS_PER_ROUND = 50
REASON_SIZE_MAX = 140
"""The commands say it with the batch's id behind it, within the bound of all texts."""
MESSAGE_SIZE_MAX = 500
EXPORT_LASTS_MS_MAX = 32 * 86_400_000
"""A month of any calendar in any zone: what makes the readings of a meter one piece of a file."""


class Kind(StrEnum):
    """What a batch does to each of its targets."""

    FORCE_OFF = "force-off"
    FORCE_ON = "force-on"
    RESTORE_PREPAID = "restore-prepaid"
    SALE = "sale"
    ADJUSTMENT = "adjustment"
    PRICE = "price"
    POLICY = "policy"
    EXPORT = "export"


class Of(StrEnum):
    """What a batch's targets are."""

    METERS = "meters"
    ACCOUNTS = "accounts"


@value_class
class Rule:
    """What holds for a kind. `action`: what each of its commands falls under besides BATCH.

    `position`: in which it wants the relays; such orders are paced. `has_amounts`: each target has
    one.
    """

    of: Of
    action: Action | None = None
    position: str = ""
    has_amounts: bool = False


RULES = {
    Kind.FORCE_OFF: Rule(Of.METERS, Action.FORCE_OFF, "off"),
    Kind.FORCE_ON: Rule(Of.METERS, Action.KEEP_POWER, "on"),
    Kind.RESTORE_PREPAID: Rule(Of.METERS, None, "prepaid"),
    Kind.SALE: Rule(Of.ACCOUNTS, has_amounts=True),
    Kind.ADJUSTMENT: Rule(Of.ACCOUNTS, Action.ADJUSTMENT, has_amounts=True),
    Kind.PRICE: Rule(Of.ACCOUNTS, Action.ACCOUNT_TERMS),
    Kind.POLICY: Rule(Of.ACCOUNTS, Action.ACCOUNT_TERMS),
    Kind.EXPORT: Rule(Of.METERS, Action.EXPORT),
}


class Status(StrEnum):
    """Where a batch is."""

    DRAFT = "draft"
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"


class Outcome(StrEnum):
    """What came of a target.

    SKIPPED: it was so already, it is another tenant's by now, or the batch was cancelled before it.
    """

    WAITING = "waiting"
    DONE = "done"
    REFUSED = "refused"
    SKIPPED = "skipped"


_CODES = (Outcome.WAITING, Outcome.DONE, Outcome.REFUSED, Outcome.SKIPPED)
"""Outcomes as a batch remembers them, a byte a target: a copy of 10,000 is then nothing."""


@value_class
class Target:
    """A meter or an account, where it stands, and its amount where the kind has amounts.

    `account_id`: who had the meter, None: it is an account itself; `tenancy`: how many tenants that
    account had before the one of then. For another one nothing is done.
    """

    target_id: str
    site_id: str
    amount_minor: int | None = None
    account_id: str | None = None
    tenancy: int | None = None

    @property
    def seen(self) -> dict[str, int | str | None]:
        """Return whose it was; of a batch of before that was kept, nothing."""
        of_meter = {} if self.account_id is None else {"account_id": self.account_id}
        return {} if self.tenancy is None else {**of_meter, "tenancy": self.tenancy}


@value_class
class Exported:
    """What was exported of a meter: lines of CSV, their size and the digest that proves them.

    `as_of_ms`: what was written to the log until then is in it.
    """

    rows: int
    size_bytes: int
    sha256: bytes
    as_of_ms: int


@value_class
class Result:
    """What came of a target: at `revision` of its stream, or why it was not done.

    `export`: of an export, which changes no stream.
    """

    target: int
    outcome: Outcome
    revision: int | None = None
    reason: str = ""
    message: str = ""
    export: Exported | None = None


@value_class
class Terms:
    """What the commands of a batch say besides their targets; None: not of the kind.

    `from_ms`, `to_ms`: what ends in [from, to) is exported.
    """

    kind: Kind
    reason: str
    method: str | None = None
    tariff_id: str | None = None
    policy_id: str | None = None
    from_ms: int | None = None
    to_ms: int | None = None

    def __post_init__(self) -> None:
        """Refuse what the kind does not take, or lacks."""
        if len(self.reason) > REASON_SIZE_MAX:
            raise checks.invalid("reason", f"write at most {REASON_SIZE_MAX} characters")
        checks.check_text("reason", self.reason)
        for name, kind in (
            ("method", Kind.SALE),
            ("tariff_id", Kind.PRICE),
            ("policy_id", Kind.POLICY),
            ("from_ms", Kind.EXPORT),
            ("to_ms", Kind.EXPORT),
        ):
            value = getattr(self, name)
            if (value is not None) != (self.kind is kind):
                is_missing = self.kind is kind
                text = "is missing" if is_missing else f"is of a batch of kind {kind} alone"
                raise checks.invalid(name, f"{text}; this batch is of kind {self.kind}")
        if self.method is not None:
            checks.check_choice("method", self.method, checks.METHODS)
        for name in ("tariff_id", "policy_id"):
            if (id_ := getattr(self, name)) is not None:
                checks.check_id(name, id_)
        if self.from_ms is not None and self.to_ms is not None:
            checks.check_between("from_ms", self.from_ms, 0, checks.TIME_MS_MAX)
            last_ms = self.from_ms + EXPORT_LASTS_MS_MAX
            checks.check_between("to_ms", self.to_ms, self.from_ms + 1, last_ms)

    @property
    def rule(self) -> Rule:
        """What holds for the kind."""
        return RULES[self.kind]


@value_class
class Batch:
    """The folded stream of a batch.

    `total_minor`: sum of the amounts, each without its sign. `behind`: who submitted it, and who
    approved that. `outcomes`: a code of `_CODES` for each target. `round`: the number of the next;
    `open_round`: the numbers of the targets whose commands are being given. `asked`: which relays
    were asked in the minute before `changed_at_ms`. `rows`: how many were exported.
    """

    answers: Answers
    batch_id: str
    terms: Terms
    legal_entity: str
    currency: str
    filter: str
    as_of_ms: int | None
    targets_count: int
    total_minor: int
    creator: Origin
    created_at_ms: int
    changed_at_ms: int
    status: Status = Status.DRAFT
    targets: tuple[Target, ...] = ()
    behind: Origin = NOBODY
    submitted_at_ms: int | None = None
    outcomes: bytes = b""
    round: int = 0
    open_round: tuple[int, ...] = ()
    asked: tuple[Asked, ...] = ()
    said: str = ""
    rows: int = 0

    def outcome(self, target: int) -> Outcome:
        """Return what came of a target: of a cancelled batch nothing more comes."""
        found = _CODES[self.outcomes[target]]
        if found is Outcome.WAITING and self.is_over:
            return Outcome.SKIPPED
        return found

    @property
    def counts(self) -> dict[Outcome, int]:
        """How many targets have which outcome."""
        found = Counter(self.outcomes)
        counts = {outcome: found[code] for code, outcome in enumerate(_CODES)}
        if self.is_over:
            counts[Outcome.SKIPPED] += counts[Outcome.WAITING]
            counts[Outcome.WAITING] = 0
        return counts

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.status in (Status.FINISHED, Status.CANCELLED) and not self.open_round

    @property
    def reserved(self) -> Counter[str]:
        """Site → how many of its relays may be asked at any moment, for their round is open."""
        if not self.terms.rule.position:
            return Counter()
        return Counter(self.targets[number].site_id for number in self.open_round)

    def waiting(self) -> Iterator[tuple[int, Target]]:
        """Yield number and target of what no round had yet, in order."""
        under_way = set(self.open_round)
        for number, code in enumerate(self.outcomes):
            if not code and number not in under_way:
                yield number, self.targets[number]


def result_from(said: dict[str, Any]) -> Result:
    """Return a result as a round's end tells it."""
    export = Exported(**said["export"]) if said["export"] else None
    return Result(**{**said, "outcome": Outcome(said["outcome"]), "export": export})


def next_round(
    state: Batch, budgets: Mapping[str, int], asked: Iterable[Asked], now_ms: int
) -> tuple[int, ...]:
    """Return the numbers of the targets that are next: of no site more than it may now.

    `budgets`: site → relays a minute; `asked`: which were asked lately, by any batch. Both count
    only where the batch is of relays.
    """
    if not state.terms.rule.position:
        found = (number for number, _ in state.waiting())
        return tuple(number for number, _ in zip(found, range(TARGETS_PER_ROUND), strict=False))
    asked = tuple(asked)
    left = {
        site_id: pacing.left(asked, site_id, budget, now_ms) for site_id, budget in budgets.items()
    }
    chosen: list[int] = []
    for number, target in state.waiting():
        if len(chosen) == TARGETS_PER_ROUND:
            break
        if left.get(target.site_id, 0) > 0:
            left[target.site_id] -= 1
            chosen.append(number)
    return tuple(chosen)


def _behind(event: Event) -> Origin:
    return event.origin if event.origin.caller else Origin(event.caller)


def evolve(state: Batch | None, event: Event) -> Batch:  # noqa: PLR0911 - one a case
    """Return the batch after an event of its stream."""
    if isinstance(event, BatchCreated) and state is None:
        return _drafted(event)
    if state is None:
        raise Bug(f"a batch's stream begins with {event.SUBJECT}")
    state = changed(state, answers=state.answers.after(event), changed_at_ms=event.occurred_at_ms)
    match event:
        case BatchTargets():
            more = tuple(Target(**target) for target in event.targets)
            outcomes = state.outcomes + bytes(len(more))
            return changed(state, targets=state.targets + more, outcomes=outcomes)
        case BatchSubmitted():
            behind, at_ms = _behind(event), event.occurred_at_ms
            return changed(state, status=Status.RUNNING, behind=behind, submitted_at_ms=at_ms)
        case BatchPaused() | BatchResumed() | BatchCancelled():
            return changed(state, status=_STATUS_AFTER[type(event)], said=event.reason)
        case BatchRoundBegun():
            return changed(state, round=event.round + 1, open_round=tuple(event.targets))
        case BatchRoundEnded():
            return _ended(state, event)
        case BatchFinished():
            return changed(state, status=Status.FINISHED)
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a batch's stream here")


_STATUS_AFTER = {
    BatchPaused: Status.PAUSED,
    BatchResumed: Status.RUNNING,
    BatchCancelled: Status.CANCELLED,
}


def _drafted(event: BatchCreated) -> Batch:
    kind = Kind(event.kind)
    return Batch(
        Answers().after(event),
        event.batch_id,
        Terms(
            kind,
            event.reason,
            event.method,
            event.tariff_id,
            event.policy_id,
            event.from_ms,
            event.to_ms,
        ),
        event.legal_entity,
        event.currency,
        event.filter,
        event.as_of_ms,
        event.targets_count,
        event.total_minor,
        _behind(event),
        event.occurred_at_ms,
        event.occurred_at_ms,
    )


def _ended(state: Batch, event: BatchRoundEnded) -> Batch:
    """Take a round's results in. Its relays count from its end: each was asked before that."""
    outcomes = bytearray(state.outcomes)
    rows = state.rows
    for result in map(result_from, event.results):
        outcomes[result.target] = _CODES.index(result.outcome)
        rows += result.export.rows if result.export else 0
    at_ms = event.occurred_at_ms
    asked = tuple(Asked(site_id, at_ms, count) for site_id, count in state.reserved.items())
    return changed(
        state,
        outcomes=bytes(outcomes),
        open_round=(),
        asked=(*pacing.lately(state.asked, at_ms), *asked),
        rows=rows,
    )
