"""A tariff: dense versions, never edited. The first applies at once, later ones with a lead."""

from typing import Protocol

from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.common.tariffs import plan as plans
from services.common.tariffs.plan import PRICE_MICRO_MAX, Plan
from services.vending.domain import checks
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Rejection,
    Request,
    answered,
    first_problem,
    stamp,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.prices import TariffPublished

FLAT, PLAN = "flat", "plan"


class Publication(Protocol):
    """What the publications of tariffs and policies have in common: the draft behind them."""

    @property
    def document_id(self) -> str:
        """The draft, "": none."""
        ...

    @property
    def base_version(self) -> int:
        """The version that its drafter saw."""
        ...


@value_class
class Tariff:
    """The folded stream of a tariff: its newest version.

    `last_plan`, `last_ladder`: the newest plan of any version, and the newest that has a ladder:
    what those added up stands, whatever has come between.
    """

    answers: Answers
    tariff_id: str
    version: int
    kind: str
    commodity: str
    currency: str
    legal_entity: str
    price_micro: int
    plan: str | None
    effective_at_ms: int
    published_at_ms: int
    last_plan: str | None = None
    last_ladder: str | None = None

    @property
    def charged_by(self) -> Plan:
        """What it charges."""
        return plans.flat(self.price_micro) if self.plan is None else plans.read(self.plan)

    @property
    def zone(self) -> str | None:
        """The zone of all its plans, also when a flat price has come behind; None: had no plan."""
        return None if self.last_plan is None else plans.read(self.last_plan).zone


@value_class
class PublishTariff:
    """A tariff, or its next version.

    `price_micro` per billing unit, >= 0; or a `plan` (the JSON of services.common.tariffs.plan) and
    no price. `effective_at_ms` 0: the earliest instant. `lead_ms`: how far ahead a later version
    must lie. `authority`: what one person may do alone at the legal entity. `document_id`: of the
    draft that it publishes, "": none, and the `base_version` that its drafter saw.
    """

    request: Request
    tariff_id: str
    commodity: str
    currency: str
    legal_entity: str
    price_micro: int
    plan: str | None
    effective_at_ms: int
    lead_ms: int
    authority: Authority | None = None
    document_id: str = ""
    base_version: int = 0

    def __post_init__(self) -> None:
        """Refuse what no tariff can be."""
        checks.check_id("tariff_id", self.tariff_id)
        checks.check_choice("commodity", self.commodity, checks.COMMODITIES)
        checks.currency_named(self.currency)
        checks.check_text("legal_entity", self.legal_entity)
        checks.check_between("price_micro", self.price_micro, 0, PRICE_MICRO_MAX)
        checks.check_between("effective_at_ms", self.effective_at_ms, 0, checks.TIME_MS_MAX)
        if self.plan is not None:
            plans.read(self.plan)
            if self.price_micro:
                raise InvalidInput(
                    Reason.INVALID_ARGUMENT,
                    "a tariff has a price or a plan; leave price_micro 0 beside a plan",
                    field="price_micro",
                )

    @property
    def charged_by(self) -> Plan:
        """What it would charge."""
        return plans.flat(self.price_micro) if self.plan is None else plans.read(self.plan)


def tariff_not_found(tariff_id: str) -> Rejection:
    """Return the refusal of a command that names a tariff that is not there."""
    text = f"there is no tariff {tariff_id!r}; publish it first"
    return Rejection(Reason.TARIFF_NOT_FOUND, text, "tariff_id")


def decide(state: Tariff | None, command: PublishTariff) -> Decision:
    """Return what publishing does, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if problem := stale(f"tariff {command.tariff_id}", state.version if state else 0, command):
        return problem
    if state is None:
        return _first(command)
    earliest_ms = max(command.request.at_ms + command.lead_ms, state.effective_at_ms)
    effective_at_ms = command.effective_at_ms or earliest_ms
    problem = (
        _other_kind(state, command)
        or _other_shape(state, command)
        or _past(command, earliest_ms)
        or _too_early(state, command, earliest_ms)
        or needs_another(command.authority, Action.PRICE_CHANGE, 1, state.currency, command.request)
    )
    return problem or Accepted((_published(command, state.version + 1, effective_at_ms),))


def _first(command: PublishTariff) -> Decision:
    if command.effective_at_ms:
        return Rejection(
            Reason.INVALID_ARGUMENT,
            f"the first version of tariff {command.tariff_id} applies at once; "
            "leave effective_at_ms 0",
            "effective_at_ms",
        )
    return Accepted((_published(command, 1, 0),))


def stale(name: str, version: int, command: Publication) -> Rejection | None:
    """Return why a draft cannot be published on a version; None where its drafter saw that one."""
    if not command.document_id or command.base_version == version:
        return None
    return Rejection(
        Reason.DOCUMENT_STALE,
        f"document {command.document_id} was drafted on version {command.base_version} of {name}, "
        f"which is at version {version} now; look at that one, and draft it anew",
        "document_id",
    )


def _too_early(state: Tariff, command: PublishTariff, earliest_ms: int) -> Rejection | None:
    if not 0 < command.effective_at_ms < earliest_ms:
        return None
    return Rejection(
        Reason.EFFECTIVE_TOO_EARLY,
        f"version {state.version + 1} of tariff {state.tariff_id} cannot apply at "
        f"{command.effective_at_ms}; the earliest is {earliest_ms} (lead time "
        f"{command.lead_ms} ms, and not before the version that stands); 0 chooses it",
        "effective_at_ms",
    )


def _past(command: PublishTariff, earliest_ms: int) -> Rejection | None:
    """Return why nothing is charged anew from a past instant on, and what can be done instead."""
    if not 0 < command.effective_at_ms < command.request.at_ms:
        return None
    return Rejection(
        Reason.EFFECTIVE_IN_PAST,
        f"{command.effective_at_ms} is past, and what was charged since stands: let the version of "
        f"tariff {command.tariff_id} apply as early as may be (effective_at_ms 0), and set right "
        f"what lies between by an adjustment run from {command.effective_at_ms} on "
        "(wattvend tariff adjust)",
        "effective_at_ms",
        (("earliest_ms", str(earliest_ms)), ("adjust_from_ms", str(command.effective_at_ms))),
    )


def _other_kind(state: Tariff, command: PublishTariff) -> Rejection | None:
    def must_be(reason: Reason, field: str, is_: str, wanted: str) -> Rejection | None:
        if is_ == wanted:
            return None
        text = f"tariff {state.tariff_id} has {field} {is_}, not {wanted}: use a tariff of its own"
        return Rejection(reason, text, field)

    return first_problem(
        must_be(Reason.COMMODITY_MISMATCH, "commodity", state.commodity, command.commodity),
        must_be(Reason.CURRENCY_MISMATCH, "currency", state.currency, command.currency),
        must_be(
            Reason.LEGAL_ENTITY_MISMATCH, "legal_entity", state.legal_entity, command.legal_entity
        ),
    )


def _other_shape(state: Tariff, command: PublishTariff) -> Rejection | None:
    """Refuse a version that could not go on where earlier ones stop."""
    after = command.charged_by
    if after.ladder is not None and state.last_ladder is not None:
        before = plans.read(state.last_ladder)
        for name in ("period", "scope", "basis"):
            is_, wanted = getattr(before.ladder, name), getattr(after.ladder, name)
            if is_ != wanted:
                text = (
                    f"the ladder of tariff {state.tariff_id} has {name} {is_}, not {wanted}; what "
                    "was added up could not go on: use a tariff of its own"
                )
                return Rejection(Reason.INVALID_ARGUMENT, text, "plan")
    if command.plan is not None and state.last_plan is not None:
        zone = plans.read(state.last_plan).zone
        if zone != after.zone:
            text = (
                f"tariff {state.tariff_id} has the zone {zone}, not {after.zone}: its accounts "
                "are there; use a tariff of its own"
            )
            return Rejection(Reason.INVALID_ARGUMENT, text, "plan")
    return None


def _published(command: PublishTariff, version: int, effective_at_ms: int) -> TariffPublished:
    return TariffPublished(
        **stamp(command.request),
        tariff_id=command.tariff_id,
        version=version,
        kind=FLAT if command.plan is None else PLAN,
        commodity=command.commodity,
        currency=command.currency,
        legal_entity=command.legal_entity,
        price_micro=command.price_micro,
        effective_at_ms=effective_at_ms,
        plan=None if command.plan is None else command.charged_by.text(),
        document_id=command.document_id or None,
    )


def evolve(state: Tariff | None, event: Event) -> Tariff:
    """Return the tariff after an event of its stream."""
    if not isinstance(event, TariffPublished):
        raise Bug(f"{event.SUBJECT} does not belong into a tariff's stream")
    has_ladder = event.plan is not None and plans.read(event.plan).ladder is not None
    return Tariff(
        (state.answers if state else Answers()).after(event),
        event.tariff_id,
        event.version,
        event.kind,
        event.commodity,
        event.currency,
        event.legal_entity,
        event.price_micro,
        event.plan,
        event.effective_at_ms,
        event.occurred_at_ms,
        event.plan or (state.last_plan if state else None),
        event.plan if has_ladder else (state.last_ladder if state else None),
    )
