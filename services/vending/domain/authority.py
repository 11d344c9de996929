"""What one person may do alone: a document of each legal entity, and what holds without one."""

from enum import StrEnum

import orjson

from services.common.kernel.errors import Bug
from services.common.kernel.reasons import Reason
from services.common.kernel.units import INT64_MAX, fits_int64, format_scaled
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Rejection,
    Request,
    answered,
    stamp,
)
from services.vending.domain.events.approvals import AuthorityPublished
from services.vending.domain.events.event import Event
from services.vending.domain.origin import Origin

HOUR_MS = 3_600_000
PROPOSALS_LAST_MS_DEFAULT = 72 * HOUR_MS
PROPOSALS_LAST_MS_MAX = 31 * 24 * HOUR_MS

Rules = dict[str, int | None]
"""Action → above so much it needs a second person; None: never. What is not there: always."""


class Action(StrEnum):
    """What may need a second person."""

    ACCOUNT_TERMS = "account-terms"
    ADJUSTMENT = "adjustment"
    AUTHORITY = "authority"
    BATCH = "batch"
    CLOSING = "closing"
    DEBT = "debt"
    EMERGENCY = "emergency"
    EXCHANGE = "exchange"
    EXPORT = "export"
    FORCE_OFF = "force-off"
    KEEP_POWER = "keep-power"
    MOVE = "move"
    POLICY_CHANGE = "policy-change"
    PRICE_CHANGE = "price-change"
    REFUND = "refund"
    REGISTER = "register"
    REVERSAL = "reversal"
    THAW = "thaw"
    TRANSFER = "transfer"
    WRITE_OFF = "write-off"


ACTION = "action"
"""Where in a refusal it stands what a second person is needed for."""
MINOR = "minor"
DAYS = "days"
TARGETS = "targets"
METERS = "meters"
UNITS = {
    Action.ADJUSTMENT: MINOR,
    Action.BATCH: TARGETS,
    Action.DEBT: MINOR,
    Action.EMERGENCY: MINOR,
    Action.EXPORT: METERS,
    Action.KEEP_POWER: DAYS,
    Action.REFUND: MINOR,
    Action.REVERSAL: MINOR,
    Action.TRANSFER: MINOR,
    Action.WRITE_OFF: MINOR,
}
"""In what the size of an action is told; an action without a size is there or not."""
ONE_PERSON_AT_FIRST = frozenset(
    (
        Action.ACCOUNT_TERMS,
        Action.AUTHORITY,
        Action.CLOSING,
        Action.DEBT,
        Action.EMERGENCY,
        Action.EXCHANGE,
        Action.FORCE_OFF,
        Action.KEEP_POWER,
        Action.MOVE,
        Action.POLICY_CHANGE,
        Action.PRICE_CHANGE,
    )
)
"""What one person may do at a legal entity that has published no document."""


def are_two(one: Origin, other: Origin) -> bool:
    """Say whether it is certain that two persons stand behind two requests.

    Persons are told apart by the actors that callers name, in whatever case; a caller that names
    none may be anybody, also the actor whom another names.
    """
    if one.actor and other.actor:
        return one.actor.casefold() != other.actor.casefold()
    return not (one.actor or other.actor) and one.caller.casefold() != other.caller.casefold()


@value_class
class Authority:
    """The folded stream of a legal entity's document: its newest version."""

    answers: Answers
    legal_entity: str
    version: int
    currency: str
    rules: str
    proposals_last_ms: int
    published_at_ms: int


@value_class
class PublishAuthority:
    """What one person may do alone, or its next version. `rules`: the JSON text of Rules.

    `currency`: of the amounts. `proposals_last_ms` 0: three days.
    """

    request: Request
    legal_entity: str
    currency: str
    rules: str
    proposals_last_ms: int

    def __post_init__(self) -> None:
        """Refuse what no document can say."""
        checks.check_legal_entity(self.legal_entity)
        checks.currency_named(self.currency)
        checks.check_between("proposals_last_ms", self.proposals_last_ms, 0, PROPOSALS_LAST_MS_MAX)
        for action, above in read_rules(self.rules).items():
            checks.check_choice("action", action, tuple(Action))
            if above is not None:
                most = INT64_MAX if Action(action) in UNITS else 0
                checks.check_between(action, above, 0, most)


def rules_text(rules: Rules) -> str:
    """Return rules as their one text."""
    return orjson.dumps(rules, option=orjson.OPT_SORT_KEYS).decode()


def read_rules(text: str) -> Rules:
    """Return the rules of a text. Raises InvalidInput where it is none."""
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not all(
        above is None or (type(above) is int and fits_int64(above)) for above in found.values()
    ):
        raise checks.invalid(
            "rules",
            'write a JSON object of actions and whole numbers or null, e.g. {"keep-power": 7}',
        )
    return found


def limit_of(authority: Authority | None, action: Action) -> int | None:
    """Return above what size an action needs a second person; None: never."""
    if authority is None:
        return None if action in ONE_PERSON_AT_FIRST else 0
    return read_rules(authority.rules).get(action, 0)


def needs_another(
    authority: Authority | None, action: Action, size: int | None, currency: str, request: Request
) -> Rejection | None:
    """Return why a request may not be carried out as one person's; None where it may.

    `size` > 0, in the action's unit: of an amount in minor units of `currency`; None: it has no
    end, and is above every limit. Amounts in another currency than the document's always need a
    second person.
    """
    if request.origin.approved_by:
        return None
    limit = limit_of(authority, action)
    if limit and UNITS.get(action) == MINOR and authority and currency != authority.currency:
        limit = 0
    if limit is None or (size is not None and size <= limit):
        return None
    of = " without end" if size is None else _told(action, " of", size, currency)
    above = f",{_told(action, ' above', limit, currency)}" if limit else ""
    return another_needed(action, f"{action}{of} needs a second person{above}")


def another_needed(action: Action, why: str) -> Rejection:
    """Return the refusal of what waits for a second person, with what it falls under."""
    return Rejection(Reason.APPROVAL_REQUIRED, why, offers=((ACTION, action.value),))


def _told(action: Action, how: str, size: int, currency: str) -> str:
    unit = UNITS.get(action)
    if unit == MINOR:
        known = checks.currency_named(currency)
        return f"{how} {format_scaled(size, known.minor_decimals)} {currency}"
    return f"{how} {size} {unit}" if unit else ""


def decide(state: Authority | None, command: PublishAuthority) -> Decision:
    """Return what publishing does, or why nothing may happen.

    The document that stands says whether one person may replace it; the first one is one person's
    where it lets one person do no more than he may without it.
    """
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if problem := (
        needs_another(state, Action.AUTHORITY, 1, command.currency, command.request)
        if state
        else _lets_more(command)
    ):
        return problem
    published = AuthorityPublished(
        **stamp(command.request),
        legal_entity=command.legal_entity,
        version=state.version + 1 if state else 1,
        currency=command.currency,
        rules=rules_text(read_rules(command.rules)),
        proposals_last_ms=command.proposals_last_ms or PROPOSALS_LAST_MS_DEFAULT,
    )
    return Accepted((published,))


def _lets_more(command: PublishAuthority) -> Rejection | None:
    """Return why a first document needs a second person; None where it does not."""
    more = [
        action
        for action, above in sorted(read_rules(command.rules).items())
        if action not in ONE_PERSON_AT_FIRST and above != 0
    ]
    if not more or command.request.origin.approved_by:
        return None
    text = (
        f"without a document {', '.join(more)} always needs a second person at "
        f"{command.legal_entity}: so does the first one that lets one person do it"
    )
    return another_needed(Action.AUTHORITY, text)


def evolve(state: Authority | None, event: Event) -> Authority:
    """Return the document after an event of its stream."""
    if not isinstance(event, AuthorityPublished):
        raise Bug(f"{event.SUBJECT} does not belong into the stream of a legal entity's document")
    return Authority(
        (state.answers if state else Answers()).after(event),
        event.legal_entity,
        event.version,
        event.currency,
        event.rules,
        event.proposals_last_ms,
        event.occurred_at_ms,
    )
