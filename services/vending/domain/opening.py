"""An opening 开户: an account with its meters and its first sale, at once or prepared before.

prepared → started → open, or refused; or cancelled. It is decided on all that it will meet, so that
what is wrong is told at once and whole; what changes between that and its steps ends it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import format_scaled
from services.common.kernel.values import value_class
from services.vending.domain import (
    account_commands,
    account_history,
    account_opening,
    checks,
    meter,
    meter_commands,
)
from services.vending.domain.account import METERS_MAX, Account
from services.vending.domain.account_opening import OpenAccount
from services.vending.domain.approval import Failure
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
from services.vending.domain.events.event import Event, RequestKey
from services.vending.domain.events.openings import (
    OpeningCancelled,
    OpeningCompleted,
    OpeningPrepared,
    OpeningRefused,
    OpeningStarted,
)
from services.vending.domain.meter import Meter
from services.vending.domain.meter_epochs import AssignMeter
from services.vending.domain.origin import Origin
from services.vending.domain.policy import Policy, policy_not_found
from services.vending.domain.site import Site, site_not_found
from services.vending.domain.tariff import Tariff, tariff_not_found


class Status(StrEnum):
    """Where an opening is."""

    PREPARED = "prepared"
    STARTED = "started"
    OPEN = "open"
    REFUSED = "refused"
    CANCELLED = "cancelled"


@value_class
class PlannedMeter:
    """A meter that shall join at a register; None: at the last one charged then."""

    meter_id: str
    register_milli: int | None


@value_class
class Plan:
    """What shall be opened."""

    account_id: str
    site_id: str
    subject_id: str | None
    commodity: str
    tariff_id: str
    policy_id: str
    meters: tuple[PlannedMeter, ...]


@value_class
class FirstSale:
    """What is sold when the account opens; `amount_minor` 0: nothing.

    `currency`: of the amount, as its payer was told; "": the site's.
    """

    amount_minor: int
    method: str
    currency: str = ""


NO_SALE = FirstSale(0, "")


@value_class
class Seen:
    """What a plan would meet, None where there is nothing.

    `meters`: each one's state, and the last register charged in its epoch.
    """

    account: Account | None
    site: Site | None
    tariff: Tariff | None
    policy: Policy | None
    meters: Mapping[str, tuple[Meter | None, int | None]]


@value_class
class LeftOut:
    """A meter that could not join after all, and why."""

    meter_id: str
    reason: str
    message: str


@value_class
class Opening:
    """The folded stream of the openings of an account: the newest one.

    `starter`, `started_by`: who started it, and by which request. `failure`: why it was refused.
    `prepared_at`: the stream's revision at which it began.
    """

    answers: Answers
    plan: Plan
    legal_entity: str
    status: Status = Status.PREPARED
    sale: FirstSale = NO_SALE
    starter: Origin = Origin("")
    started_by: RequestKey = ("", "")
    failure: Failure | None = None
    left_out: tuple[LeftOut, ...] = ()
    prepared_at: int = 0

    @property
    def opening_id(self) -> str:
        """The id of the opening that was started; "": it was not."""
        return opening_id_of(self.started_by) if self.started_by[0] else ""


@value_class
class Prepare:
    """An account shall be opened: now, with `sale`; None: when that is said."""

    request: Request
    plan: Plan
    sale: FirstSale | None
    seen: Seen


@value_class
class Start:
    """What is prepared shall be opened. `subject_id` None: as it was prepared."""

    request: Request
    account_id: str
    subject_id: str | None
    sale: FirstSale
    seen: Seen


@value_class
class Cancel:
    """What is prepared shall not be opened."""

    request: Request
    account_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_text("reason", self.reason)


@value_class
class Conclude:
    """The account is open, without the meters that could not join; or `failure` says why not."""

    request: Request
    account_id: str
    failure: Failure | None
    left_out: tuple[LeftOut, ...]


Command = Prepare | Start | Cancel | Conclude


def opening_id_of(started_by: RequestKey) -> str:
    """Return the id of the opening that a request starts: an account may have several."""
    return str(name_uuid("opening", *started_by))


def opening_not_found(account_id: str) -> Rejection:
    """Return the refusal of a command on an opening that is not there."""
    text = f"no opening of account {account_id!r} was ever prepared; prepare it, or check its id"
    return Rejection(Reason.OPENING_NOT_FOUND, text, "name")


def problems(plan: Plan, sale: FirstSale, seen: Seen, request: Request) -> list[Rejection]:
    """Return all that is wrong with a plan; nothing where it can be opened now."""
    return malformed(plan, sale) or unfit(plan, sale, seen, request)


def malformed(plan: Plan, sale: FirstSale) -> list[Rejection]:
    """Return what no account can be, whatever the plan would meet: nothing is read for it."""
    return too_many(len(plan.meters)) or list(_malformed(plan, sale))


def too_many(meters: int) -> list[Rejection]:
    """Return why no account has so many meters; nothing where it may."""
    return list(_wrong(checks.check_between, "meters", meters, 0, METERS_MAX))


def unfit(plan: Plan, sale: FirstSale, seen: Seen, request: Request) -> list[Rejection]:
    """Return why a plan that is well formed cannot be opened now."""
    return list(_unfit(plan, sale, seen, request))


def _malformed(plan: Plan, sale: FirstSale) -> Iterator[Rejection]:
    subject, meters = plan.subject_id, plan.meters
    yield from (_wrong(checks.check_id, "account_id", plan.account_id))
    yield from (_wrong(checks.check_id, "site_id", plan.site_id))
    yield from (_wrong(checks.check_id, "tariff_id", plan.tariff_id))
    yield from (_wrong(checks.check_id, "policy_id", plan.policy_id))
    yield from _wrong(checks.check_choice, "commodity", plan.commodity, checks.COMMODITIES)
    if subject is not None:
        yield from _wrong(checks.check_subject, subject)
    if sale.amount_minor:
        yield from _wrong(checks.check_amount, "first_sale_minor", sale.amount_minor)
        yield from _wrong(checks.check_choice, "method", sale.method, checks.METHODS)
    for planned in meters:
        yield from _wrong(checks.check_id, "meter_id", planned.meter_id)
        yield from _wrong(checks.check_register, planned.register_milli)
    if len({planned.meter_id for planned in meters}) < len(meters):
        yield Rejection(Reason.INVALID_ARGUMENT, "a meter is named twice; name it once", "meters")


def _wrong(check: Callable[..., None], *of: Any) -> Iterator[Rejection]:
    try:
        check(*of)
    except InvalidInput as wrong:
        yield Rejection(wrong.reason, wrong.message, wrong.field)


def _unfit(plan: Plan, sale: FirstSale, seen: Seen, request: Request) -> Iterator[Rejection]:
    site, tariff, policy = seen.site, seen.tariff, seen.policy
    opening = OpenAccount(
        request,
        plan.account_id,
        plan.site_id,
        plan.subject_id,
        plan.commodity,
        plan.tariff_id,
        plan.policy_id,
        sale.amount_minor,
        sale.method,
        0,
        site,
        tariff,
        policy,
    )
    if seen.account is not None:
        yield account_opening.account_exists(plan.account_id)
    if site is None:
        yield site_not_found(plan.site_id)
    elif sale.amount_minor and sale.currency not in {"", site.currency}:
        text = f"the site sells in {site.currency}, the first sale is in {sale.currency}"
        yield Rejection(Reason.CURRENCY_MISMATCH, text, "first_sale")
    if tariff is None:
        yield tariff_not_found(plan.tariff_id)
    if policy is None:
        yield policy_not_found(plan.policy_id)
    if site and tariff and policy:
        misfits = account_opening.misfits(site, plan.commodity, tariff, policy)
        yield from misfits
        if not misfits and isinstance(refused := account_commands.decide(None, opening), Rejection):
            yield refused
    would_be = account_history.evolve(None, account_opening.opened(opening, site)) if site else None
    for planned in plan.meters:
        yield from _cannot_join(planned, would_be, seen, request)


def _cannot_join(
    planned: PlannedMeter, would_be: Account | None, seen: Seen, request: Request
) -> Iterator[Rejection]:
    state, charged_milli = seen.meters[planned.meter_id]
    if state is None:
        yield meter.meter_not_found(planned.meter_id)
    elif would_be is not None:
        assign = AssignMeter(
            request,
            planned.meter_id,
            would_be.account_id,
            planned.register_milli,
            charged_register_milli=charged_milli,
            account=would_be,
        )
        if isinstance(refused := meter_commands.decide(state, assign), Rejection):
            yield refused


def _used_by_its_house(plan: Plan, seen: Seen) -> list[Rejection]:
    """Return which meters a plan lets begin below what their houses were charged since."""
    found = []
    for planned in plan.meters:
        _, charged_milli = seen.meters[planned.meter_id]
        if planned.register_milli is None or planned.register_milli >= (charged_milli or 0):
            continue
        text = (
            f"meter {planned.meter_id} would begin at {format_scaled(planned.register_milli, 3)}, "
            f"and was charged up to {format_scaled(charged_milli or 0, 3)} by now: prepare it anew "
            "without a register, or with the one of now"
        )
        found.append(Rejection(Reason.REGISTER_IMPLAUSIBLE, text, "meters"))
    return found


def decide(state: Opening | None, command: Command) -> Decision:
    """Return what a command does to an opening, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, Prepare):
        return _prepare(state, command)
    if state is None:
        return opening_not_found(command.account_id)
    match command:
        case Start():
            return _start(state, command)
        case Cancel():
            cancelled = OpeningCancelled(
                **stamp(command.request), account_id=command.account_id, reason=command.reason
            )
            return _not_prepared(state) or Accepted((cancelled,))
        case Conclude():
            return _conclude(state, command)


def _prepare(state: Opening | None, command: Prepare) -> Decision:
    plan, request = command.plan, command.request
    if state and state.status not in {Status.REFUSED, Status.CANCELLED}:
        text = f"the opening of account {plan.account_id} is {state.status} already"
        return Rejection(Reason.ALREADY_EXISTS, text, "opening_id")
    wrong = problems(plan, command.sale or NO_SALE, command.seen, request)
    if command.sale is None:
        wrong += _used_by_its_house(plan, command.seen)
    if wrong:
        return told(wrong)
    assert command.seen.site is not None, "else it were a problem"
    site = command.seen.site
    prepared = OpeningPrepared(
        **stamp(request),
        account_id=plan.account_id,
        site_id=plan.site_id,
        subject_id=plan.subject_id,
        commodity=plan.commodity,
        tariff_id=plan.tariff_id,
        policy_id=plan.policy_id,
        legal_entity=site.legal_entity,
        currency=site.currency,
        meters=[
            {"meter_id": each.meter_id, "register_milli": each.register_milli}
            for each in plan.meters
        ],
    )
    if command.sale is None:
        return Accepted((prepared,))
    return Accepted((prepared, _started(request, plan, site, command.sale)))


def _start(state: Opening, command: Start) -> Decision:
    if problem := _not_prepared(state):
        return problem
    subject_id = command.subject_id or state.plan.subject_id
    plan = changed(state.plan, subject_id=subject_id)
    wrong = problems(plan, command.sale, command.seen, command.request)
    wrong += _used_by_its_house(plan, command.seen)
    if wrong:
        return told(wrong)
    assert command.seen.site is not None, "else it were a problem"
    return Accepted((_started(command.request, plan, command.seen.site, command.sale),))


def _started(request: Request, plan: Plan, site: Site, sale: FirstSale) -> OpeningStarted:
    return OpeningStarted(
        **stamp(request),
        account_id=plan.account_id,
        subject_id=plan.subject_id,
        first_sale_minor=sale.amount_minor,
        method=sale.method,
        currency=site.currency,
        legal_entity=site.legal_entity,
        commodity=plan.commodity,
    )


def told(wrong: list[Rejection]) -> Rejection:
    """Return one refusal that tells all that is wrong, by the first one's reason."""
    return Rejection(wrong[0].reason, "; ".join(each.message for each in wrong), wrong[0].field)


def _not_prepared(state: Opening) -> Rejection | None:
    if state.status is Status.PREPARED:
        return None
    text = f"the opening of account {state.plan.account_id} is {state.status}, not prepared"
    return Rejection(Reason.OPENING_NOT_PREPARED, text, "name")


def _conclude(state: Opening, command: Conclude) -> Decision:
    if state.status is not Status.STARTED:
        raise Bug(f"the opening of {command.account_id} is {state.status}, and was carried out")
    if command.failure is not None:
        refused = OpeningRefused(
            **stamp(command.request),
            account_id=command.account_id,
            reason=command.failure.reason,
            message=command.failure.message,
        )
        return Accepted((refused,))
    completed = OpeningCompleted(
        **stamp(command.request),
        account_id=command.account_id,
        left_out=[
            {"meter_id": each.meter_id, "reason": each.reason, "message": each.message}
            for each in command.left_out
        ],
    )
    return Accepted((completed,))


def evolve(state: Opening | None, event: Event) -> Opening:
    """Return the opening after an event of its stream."""
    answers = (state.answers if state else Answers()).after(event)
    if isinstance(event, OpeningPrepared):
        meters = tuple(PlannedMeter(**planned) for planned in event.meters)
        plan = Plan(
            event.account_id,
            event.site_id,
            event.subject_id,
            event.commodity,
            event.tariff_id,
            event.policy_id,
            meters,
        )
        return Opening(answers, plan, event.legal_entity, prepared_at=answers.revision)
    if state is None:
        raise Bug(f"the stream of an opening begins with {event.SUBJECT}")
    match event:
        case OpeningStarted():
            return changed(
                state,
                answers=answers,
                plan=changed(state.plan, subject_id=event.subject_id),
                status=Status.STARTED,
                sale=FirstSale(event.first_sale_minor, event.method, event.currency),
                starter=event.origin,
                started_by=event.key,
            )
        case OpeningCompleted():
            left_out = tuple(LeftOut(**each) for each in event.left_out)
            return changed(state, answers=answers, status=Status.OPEN, left_out=left_out)
        case OpeningRefused():
            failure = Failure(event.reason, event.message)
            return changed(state, answers=answers, status=Status.REFUSED, failure=failure)
        case OpeningCancelled():
            return changed(state, answers=answers, status=Status.CANCELLED)
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into the stream of an opening here")


def called(events: Iterable[Event], opening_id: str) -> Opening:
    """Return the opening that was started under an id, as far as it ever came."""
    state: Opening | None = None
    found: Opening | None = None
    for event in events:
        state = evolve(state, event)
        found = state if state.opening_id == opening_id else found
    assert found is not None, "its start has made the table's row"
    return found


def as_of(events: Iterable[Event], revision: int) -> Opening:
    """Return the opening that stood at a revision of the stream, as far as it ever came."""
    state: Opening | None = None
    for number, event in enumerate(events):
        if number > revision and isinstance(event, OpeningPrepared):
            break
        state = evolve(state, event)
    assert state is not None, "a revision is one of the stream's"
    return state
