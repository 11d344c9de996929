"""A policy: when to warn, when to cut and under what rules, when to give power again."""

from dataclasses import fields
from typing import Any

from services.common.kernel.errors import Bug
from services.common.kernel.reasons import Reason
from services.common.kernel.units import INT64_MAX, nano_from_minor
from services.common.kernel.values import value_class
from services.common.policies.rules import read
from services.common.policies.windows import why_nobody_is_cut
from services.vending.domain import checks
from services.vending.domain.authority import Action, Authority, another_needed, needs_another
from services.vending.domain.closing import Rounding
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
from services.vending.domain.events.prices import PolicyPublished, PolicyScheduled, PolicyVersion
from services.vending.domain.tariff import stale

LEASE_MS_MAX = 300_000
CUT_WITHIN_MS_MIN = 10_000
"""A cut that must be sent sooner after the reading than it takes to send it is never sent."""
EVIDENCE_AGE_MS_DEFAULT = 900_000
EVIDENCE_AGE_MS_MAX = 86_400_000
_VERSION = tuple(field.name for field in fields(PolicyPublished))
FEE_PPM_MAX = 500_000
"""Half of what is paid: a share beyond it is a slip of the hand."""


@value_class
class Policy:
    """The folded stream of a policy: its version in force.

    `legal_entity`: whose accounts may use it; "": of before policies had one, anybody's until a
    version gives it one.
    `scheduled`: versions that are to follow, in the order of their instants; `newest`: the highest
    number of any.
    """

    answers: Answers
    policy_id: str
    version: int
    currency: str
    alarm_1_nano: int
    alarm_2_nano: int
    overdraft_nano: int
    restore_nano: int
    lease_ms: int
    max_evidence_age_ms: int
    published_at_ms: int
    emergency_nano: int
    rules: str | None
    ceiling_nano: int | None = None
    fee_ppm: int = 0
    fee_minor: int = 0
    legal_entity: str = ""
    rounding: str = Rounding.DOWN.value
    newest: int = 1
    scheduled: tuple[PolicyScheduled, ...] = ()


@value_class
class BringIntoForce:
    """A scheduled version's instant has come."""

    request: Request
    policy_id: str
    version: int


@value_class
class PublishPolicy:
    """A policy, or its next version. Amounts in minor units of `currency`.

    `lease_ms` 0: five minutes, the most; `max_evidence_age_ms` 0: 15 minutes; `emergency_minor` 0:
    no emergency credit. `rules`: the JSON of services.common.policies.rules, what must hold besides
    before arrears cut; None: nothing. `ceiling_minor`: the most that a sale may let an account have
    at hand, 0: no limit; of a sale's amount, `fee_ppm` and `fee_minor` are the service fee.
    `legal_entity`: whose accounts may use it, "" is refused. `rounding`: how a closing comes to the
    minor unit, "": down. `authority`: what one person may do alone at the legal entity.
    `effective_at_ms`: from when on it is to apply, 0: at once. `document_id`: of the draft that it
    publishes, "": none, and the `base_version` that its drafter saw.
    """

    request: Request
    policy_id: str
    currency: str
    alarm_1_minor: int
    alarm_2_minor: int
    overdraft_minor: int
    restore_minor: int
    lease_ms: int
    max_evidence_age_ms: int
    emergency_minor: int
    rules: str | None
    ceiling_minor: int
    fee_ppm: int
    fee_minor: int
    legal_entity: str
    rounding: str
    authority: Authority | None = None
    effective_at_ms: int = 0
    document_id: str = ""
    base_version: int = 0

    def __post_init__(self) -> None:
        """Refuse what no policy can be."""
        checks.check_id("policy_id", self.policy_id)
        currency = checks.currency_named(self.currency)
        if self.legal_entity:
            checks.check_text("legal_entity", self.legal_entity)
        for field in ("alarm_1_minor", "alarm_2_minor", "overdraft_minor", "restore_minor"):
            nano_from_minor(getattr(self, field), currency)
        checks.check_between("effective_at_ms", self.effective_at_ms, 0, checks.TIME_MS_MAX)
        most_minor = INT64_MAX // currency.nano_per_minor
        for field in ("emergency_minor", "ceiling_minor", "fee_minor"):
            checks.check_between(field, getattr(self, field), 0, most_minor)
        checks.check_between("fee_ppm", self.fee_ppm, 0, FEE_PPM_MAX)
        _check_span("lease_ms", self.lease_ms, LEASE_MS_MAX)
        _check_span("max_evidence_age_ms", self.max_evidence_age_ms, EVIDENCE_AGE_MS_MAX)
        if self.rounding:
            checks.check_choice("rounding", self.rounding, tuple(Rounding))
        if never := why_nobody_is_cut(read(self.rules)):
            raise checks.invalid("rules", never)
        self._check_order()

    def _check_order(self) -> None:
        order = Reason.THRESHOLDS_OUT_OF_ORDER
        if self.overdraft_minor < 0:
            raise checks.invalid(
                "overdraft_minor", f"{self.overdraft_minor} is below 0; write 0 or more", order
            )
        cut_minor = -self.overdraft_minor
        if self.alarm_2_minor > self.alarm_1_minor:
            raise checks.invalid(
                "alarm_2_minor",
                f"{self.alarm_2_minor} is above alarm_1 ({self.alarm_1_minor}); the second "
                "warning comes at or below the first",
                order,
            )
        if self.alarm_2_minor < cut_minor:
            raise checks.invalid(
                "alarm_2_minor",
                f"{self.alarm_2_minor} is below the cut at {cut_minor}; nobody would be warned",
                order,
            )
        if self.restore_minor <= cut_minor:
            raise checks.invalid(
                "restore_minor",
                f"{self.restore_minor} is not above the cut at {cut_minor}; "
                "power would come and go at one balance",
                order,
            )


def _check_span(field: str, span_ms: int, most_ms: int) -> None:
    """Refuse a span in which no cut can be sent; 0 stands for the default."""
    if span_ms != 0:
        checks.check_between(field, span_ms, CUT_WITHIN_MS_MIN, most_ms)


def policy_not_found(policy_id: str) -> Rejection:
    """Return the refusal of a command that names a policy that is not there."""
    text = f"there is no policy {policy_id!r}; publish it first"
    return Rejection(Reason.POLICY_NOT_FOUND, text, "policy_id")


def decide(state: Policy | None, command: PublishPolicy | BringIntoForce) -> Decision:
    """Return what publishing does, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, BringIntoForce):
        return _begun(state, command)
    newest = state.newest if state else 0
    problem = (
        _of_nobody(command)
        or stale(f"policy {command.policy_id}", newest, command)
        or _not_then(state, command)
        or (_not_its_next(state, command) if state else None)
    )
    if problem:
        return problem
    said = {**stamp(command.request), "version": newest + 1, **_said(command)}
    if not command.effective_at_ms:
        return Accepted((PolicyPublished(**said),))
    return Accepted((PolicyScheduled(**said, effective_at_ms=command.effective_at_ms),))


def _begun(state: Policy | None, command: BringIntoForce) -> Decision:
    """Let a scheduled version apply, where no later one has come before it."""
    waiting = state.scheduled if state else ()
    scheduled = next((each for each in waiting if each.version == command.version), None)
    if scheduled is None:
        return Accepted(())
    said = {name: getattr(scheduled, name) for name in _VERSION}
    return Accepted((PolicyPublished(**(said | stamp(command.request))),))


def _not_then(state: Policy | None, command: PublishPolicy) -> Rejection | None:
    """Return why a version cannot apply from its instant on; None where it can."""
    at_ms = command.effective_at_ms
    if at_ms and state is None:
        text = f"the first version of policy {command.policy_id} applies at once"
        return Rejection(
            Reason.INVALID_ARGUMENT, f"{text}; leave effective_at_ms 0", "effective_at_ms"
        )
    if 0 < at_ms < command.request.at_ms:
        return Rejection(
            Reason.EFFECTIVE_IN_PAST,
            f"{at_ms} is past, and whoever was warned or cut since was so by the version that "
            "stands; 0 lets it apply at once",
            "effective_at_ms",
        )
    return None


def _said(command: PublishPolicy) -> dict[str, Any]:
    """Return what a version says, as its event has it."""
    currency = checks.currency_named(command.currency)
    return {
        "policy_id": command.policy_id,
        "currency": currency.code,
        "alarm_1_nano": nano_from_minor(command.alarm_1_minor, currency),
        "alarm_2_nano": nano_from_minor(command.alarm_2_minor, currency),
        "overdraft_nano": nano_from_minor(command.overdraft_minor, currency),
        "restore_nano": nano_from_minor(command.restore_minor, currency),
        "lease_ms": command.lease_ms or LEASE_MS_MAX,
        "max_evidence_age_ms": command.max_evidence_age_ms or EVIDENCE_AGE_MS_DEFAULT,
        "emergency_nano": nano_from_minor(command.emergency_minor, currency),
        "rules": None if command.rules is None else read(command.rules).text(),
        "ceiling_nano": nano_from_minor(command.ceiling_minor, currency) or None,
        "fee_ppm": command.fee_ppm,
        "fee_minor": command.fee_minor,
        "legal_entity": command.legal_entity or None,
        "rounding": command.rounding or Rounding.DOWN.value,
        "document_id": command.document_id or None,
    }


def said_in_minor(event: PolicyVersion) -> dict[str, Any]:
    """Return what a version says, as a publication says it, but for policy and instant."""
    nano_per_minor = checks.currency_named(event.currency).nano_per_minor
    amounts = ("alarm_1", "alarm_2", "overdraft", "restore", "emergency", "ceiling")
    minor = {
        f"{name}_minor": (getattr(event, f"{name}_nano") or 0) // nano_per_minor for name in amounts
    }
    return minor | {
        "currency": event.currency,
        "lease_ms": event.lease_ms,
        "max_evidence_age_ms": event.max_evidence_age_ms,
        "rules": event.rules,
        "fee_ppm": event.fee_ppm or 0,
        "fee_minor": event.fee_minor or 0,
        "rounding": event.rounding or Rounding.DOWN.value,
        "legal_entity": event.legal_entity or "",
    }


def _of_nobody(command: PublishPolicy) -> Rejection | None:
    """Return why nobody would say who may change it: it names no legal entity."""
    if command.legal_entity:
        return None
    text = f"policy {command.policy_id} belongs to nobody: name the legal entity whose it is"
    return Rejection(Reason.INVALID_ARGUMENT, text, "legal_entity")


def _not_its_next(state: Policy, command: PublishPolicy) -> Rejection | None:
    """Return why a command publishes no next version of a policy; None where it may."""
    text = f"policy {state.policy_id} is"
    if state.currency != command.currency:
        return Rejection(
            Reason.CURRENCY_MISMATCH,
            f"{text} in {state.currency}, not {command.currency}: use a policy of its own",
            "currency",
        )
    if state.legal_entity and state.legal_entity != command.legal_entity:
        return Rejection(
            Reason.LEGAL_ENTITY_MISMATCH,
            f"{text} of {state.legal_entity}, not {command.legal_entity}: use a policy of its own",
            "legal_entity",
        )
    # Whose document counts, nobody has said before: one person does not choose it.
    if not state.legal_entity and not command.request.origin.approved_by:
        text = f"{text} of an earlier release and gets its legal entity: that needs a second person"
        return another_needed(Action.POLICY_CHANGE, text)
    return needs_another(
        command.authority, Action.POLICY_CHANGE, 1, state.currency, command.request
    )


def evolve(state: Policy | None, event: Event) -> Policy:
    """Return the policy after an event of its stream."""
    if isinstance(event, PolicyScheduled) and state is not None:
        before = (each for each in state.scheduled if each.effective_at_ms < event.effective_at_ms)
        return changed(
            state,
            answers=state.answers.after(event),
            newest=event.version,
            scheduled=(*before, event),
        )
    if not isinstance(event, PolicyPublished):
        raise Bug(f"{event.SUBJECT} does not belong into a policy's stream")
    scheduled = state.scheduled if state else ()
    return Policy(
        (state.answers if state else Answers()).after(event),
        event.policy_id,
        event.version,
        event.currency,
        event.alarm_1_nano,
        event.alarm_2_nano,
        event.overdraft_nano,
        event.restore_nano,
        event.lease_ms,
        event.max_evidence_age_ms,
        event.occurred_at_ms,
        event.emergency_nano or 0,
        event.rules,
        event.ceiling_nano,
        event.fee_ppm or 0,
        event.fee_minor or 0,
        event.legal_entity or "",
        event.rounding or Rounding.DOWN.value,
        max(event.version, state.newest if state else 0),
        tuple(each for each in scheduled if each.version > event.version),
    )
