"""What is done with an account's closing until it is settled: it begins, waits, is cancelled."""

from services.common.kernel.reasons import Reason
from services.common.kernel.units import format_scaled
from services.common.kernel.values import value_class
from services.vending.domain import checks, settling
from services.vending.domain.account import (
    Account,
    account_not_found,
    closing_under_way,
    hold_id_of,
    not_open,
    refund_under_way,
)
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.closing import (
    ASK_AGAIN_MS,
    LASTS_MS_DEFAULT,
    LASTS_MS_MAX,
    Closing,
    Source,
    closing_id_of,
)
from services.vending.domain.decisions import (
    Accepted,
    Decision,
    Rejection,
    Request,
    answered,
    first_problem,
    stamp,
)
from services.vending.domain.events.closings import (
    AccountClosing,
    ClosingAsked,
    ClosingCancelled,
    ClosingRegisterGiven,
    ClosingUndone,
    MetersClosing,
)
from services.vending.domain.meter import Meter
from services.vending.domain.settling import (
    METERS_TOLD_MAX,
    SettleAccount,
    SettleClosing,
    closing_of,
    not_now,
)
from services.vending.domain.tables import Charged

NOISE_MILLI = 100
W_MS_PER_MILLI = 3_000_000
"""A thousandth for each 3,600,000 W·ms, and a fifth more: as metering judges readings."""


@value_class
class CloseAccount:
    """The account shall end; metering is asked what was used, under the epoch of the book.

    `method`: how what is left is paid out; its meters leave before. "": it must have no meters, owe
    nothing, and have nothing left. `lasts_ms` 0: three days, then an approved register decides.
    """

    request: Request
    account_id: str
    method: str = ""
    without_cut: bool = False
    lasts_ms: int = 0
    reason: str = ""
    book_epoch: int = 1
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_between("lasts_ms", self.lasts_ms, 0, LASTS_MS_MAX)
        if self.method:
            checks.check_choice("method", self.method, checks.METHODS)
            checks.check_text("reason", self.reason)


@value_class
class CloseMeters:
    """Some meters shall leave the account, as in CloseAccount, which stays open."""

    request: Request
    account_id: str
    meters: tuple[str, ...]
    without_cut: bool
    lasts_ms: int
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        for meter_id in self.meters:
            checks.check_id("meters", meter_id)
        if not self.meters or len(set(self.meters)) < len(self.meters):
            raise checks.invalid("meters", "name the meters that leave, each once")
        checks.check_between("lasts_ms", self.lasts_ms, 0, LASTS_MS_MAX)
        checks.check_text("reason", self.reason)


@value_class
class Bounds:
    """Between which registers a meter stands; `most_milli` None: nobody knows its load."""

    least_milli: int
    most_milli: int | None


@value_class
class GiveRegister:
    """A meter shall leave at a register: the deadline has passed without a reading.

    `source`: read by a person at the meter, or estimated; `bounds`: what it may be, None: anything;
    `epoch`: which one of the meter's it is a register of; `authority`: what one person may do alone
    at the legal entity.
    """

    request: Request
    account_id: str
    closing_id: str
    meter_id: str
    register_milli: int
    source: str
    reason: str
    bounds: Bounds | None = None
    epoch: int | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_uuid("closing_id", self.closing_id)
        checks.check_id("meter_id", self.meter_id)
        checks.check_register(self.register_milli)
        checks.check_choice("source", self.source, tuple(Source))
        checks.check_text("reason", self.reason)


@value_class
class CancelClosing:
    """The closing shall not go on: no meter has left yet."""

    request: Request
    account_id: str
    closing_id: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)
        checks.check_uuid("closing_id", self.closing_id)
        checks.check_text("reason", self.reason)


@value_class
class AskMetering:
    """A step: no meter is to leave any more, so metering is asked, under the epoch of the book.

    `before_leaving`: one is, and metering is asked whether something waits for a person with it.
    """

    request: Request
    account_id: str
    closing_id: str
    book_epoch: int
    before_leaving: bool


@value_class
class EndCancelled:
    """A step: the relays of a cancelled closing are as the balance says again."""

    request: Request
    account_id: str
    closing_id: str


Asked = CloseAccount | CloseMeters | GiveRegister | SettleAccount | CancelClosing
Command = Asked | AskMetering | EndCancelled | SettleClosing


def decide(state: Account | None, command: Command) -> Decision:  # noqa: C901, PLR0911 - one a case
    """Return what a command does to an account's closing, or why nothing may happen."""
    if isinstance(command, SettleClosing):
        return settling.answer(state, command)
    if state is None:
        return account_not_found(command.account_id)
    if earlier := answered(state.answers, command.request):
        return earlier
    match command:
        case CloseAccount():
            return _close(state, command)
        case CloseMeters():
            return _close_meters(state, command)
        case GiveRegister():
            return _give(state, command)
        case SettleAccount():
            return settling.settle(state, command)
        case CancelClosing():
            return _cancel(state, command)
        case AskMetering():
            return _ask(state, command)
        case EndCancelled():
            return _end_cancelled(state, command)


# --- its begin --------------------------------------------------------------------------------


def _close(state: Account, command: CloseAccount) -> Decision:
    busy = first_problem(
        not_open(state),
        closing_under_way(state),
        refund_under_way(state) if state.refunding else None,
    )
    if busy:
        return busy
    if not command.method and state.meters:
        return settling.close_refusal(state, Reason.ACCOUNT_HAS_METERS, 0)
    if not command.method and state.owed:
        return settling.close_refusal(state, Reason.ACCOUNT_HAS_DEBT, 0)
    if state.meters and (problem := _not_alone(state, command)):
        return problem
    request = command.request
    hold_id = hold_id_of(state.account_id, request, command.book_epoch)
    closing = AccountClosing(
        **stamp(request),
        account_id=state.account_id,
        hold_id="" if state.meters else hold_id,
        closing_id=closing_id_of(*request.key),
        meters=[meter.meter_id for meter in state.meters],
        without_cut=_cuts_nobody(state, command),
        deadline_ms=request.at_ms + (command.lasts_ms or LASTS_MS_DEFAULT),
        method=command.method,
        reason=command.reason,
        legal_entity=state.legal_entity,
    )
    return Accepted((closing,))


def _close_meters(state: Account, command: CloseMeters) -> Decision:
    strange = [meter_id for meter_id in command.meters if not state.has(meter_id)]
    text = (
        f"{', '.join(strange[:METERS_TOLD_MAX])}: not of account {state.account_id}; name its own"
    )
    busy = first_problem(
        not_open(state),
        closing_under_way(state),
        refund_under_way(state) if state.refunding else None,
        Rejection(Reason.METER_NOT_ASSIGNED, text, "meters") if strange else None,
    )
    if problem := busy or _not_alone(state, command):
        return problem
    closing = MetersClosing(
        **stamp(command.request),
        account_id=state.account_id,
        closing_id=closing_id_of(*command.request.key),
        meters=list(command.meters),
        without_cut=_cuts_nobody(state, command),
        deadline_ms=command.request.at_ms + (command.lasts_ms or LASTS_MS_DEFAULT),
        reason=command.reason,
        legal_entity=state.legal_entity,
    )
    return Accepted((closing,))


def _not_alone(state: Account, command: CloseAccount | CloseMeters) -> Rejection | None:
    """Return why one person may not let meters leave by a closing; None where he may."""
    return needs_another(command.authority, Action.CLOSING, 1, state.currency, command.request)


def _cuts_nobody(state: Account, command: CloseAccount | CloseMeters) -> bool:
    """Say whether power stays on: as is asked, or because a person keeps it for the account."""
    return command.without_cut or is_power_kept(state, command.request.at_ms)


def is_power_kept(state: Account, at_ms: int) -> bool:
    """Say whether a person keeps power for the account."""
    return (state.orders.keep_power_until_ms or 0) > at_ms


# --- on the way -------------------------------------------------------------------------------


def _give(state: Account, command: GiveRegister) -> Decision:
    closing = closing_of(state, command.closing_id)
    if isinstance(closing, Rejection):
        return closing
    meter_id = command.meter_id
    if meter_id not in closing.meters or not state.has(meter_id):
        text = f"meter {meter_id} has left account {state.account_id}, or is none of the closing's"
        return not_now(f"{text}; nothing is to be given", "meter")
    if closing.given_milli(meter_id) is not None:
        return not_now(f"meter {meter_id} leaves at a register that was given before", "meter")
    if command.request.at_ms < closing.deadline_ms:
        text = "a reading decides until the deadline of the closing; read the meter"
        return not_now(f"{text}, or wait for that", "meter")
    problem = _implausible(command) or needs_another(
        command.authority, Action.REGISTER, 1, state.currency, command.request
    )
    if problem:
        return problem
    given = ClosingRegisterGiven(
        **stamp(command.request),
        account_id=state.account_id,
        closing_id=closing.closing_id,
        meter_id=meter_id,
        register_milli=command.register_milli,
        source=command.source,
        reason=command.reason,
    )
    return Accepted((given,))


def _implausible(command: GiveRegister) -> Rejection | None:
    """Return why a meter does not stand at a register; None where it may."""
    bounds = command.bounds
    if bounds is None:
        return None
    least_milli, most_milli = bounds.least_milli, bounds.most_milli
    if least_milli <= command.register_milli <= (most_milli or command.register_milli):
        return None
    text = f"meter {command.meter_id} was charged up to {format_scaled(least_milli, 3)}"
    if most_milli is not None:
        text += f", and its load lets it stand at {format_scaled(most_milli, 3)} at most"
    register = format_scaled(command.register_milli, 3)
    text += f"; {register} cannot be: read it again, or give what was charged"
    return Rejection(Reason.REGISTER_IMPLAUSIBLE, text, "register_milli")


def bounds_of(meter: Meter, charged: Charged | None, at_ms: int) -> Bounds:
    """Return between which registers a meter stands, charged as it was told last.

    Not below that: where its register fell it is another device, or is replaced. Not above what its
    load uses until then, metering's rule for a reading, however long nobody read it.
    """
    if charged is None:
        return Bounds(meter.opening_register_milli or 0, None)
    least_milli = charged.register_milli
    if meter.max_power_w is None or charged.to_time_ms <= 0:
        return Bounds(least_milli, None)
    lasted_ms = max(at_ms - charged.to_time_ms, 0)
    used_milli = meter.max_power_w * lasted_ms // W_MS_PER_MILLI + NOISE_MILLI * meter.ratio
    return Bounds(least_milli, least_milli + used_milli // meter.ratio)


def _cancel(state: Account, command: CancelClosing) -> Decision:
    closing = closing_of(state, command.closing_id)
    if isinstance(closing, Rejection):
        return closing
    left = [meter_id for meter_id in closing.meters if not state.has(meter_id)]
    if left:
        text = f"{', '.join(left[:METERS_TOLD_MAX])} left account {state.account_id} already"
        return Rejection(
            Reason.CLOSING_NOT_CANCELLABLE,
            f"{text}: let the closing end, and open or join anew",
            "closing",
        )
    cancelled = ClosingCancelled(
        **stamp(command.request),
        account_id=state.account_id,
        closing_id=closing.closing_id,
        reason=command.reason,
    )
    return Accepted((cancelled,))


def _ask(state: Account, command: AskMetering) -> Decision:
    """Hold; where it was done since, or need not be any more, nothing."""
    closing = closing_of(state, command.closing_id)
    if isinstance(closing, Rejection) or closing.told:
        return Accepted(())
    if command.before_leaving != bool(still_in(state, closing)):
        return Accepted(())
    if closing.hold_id and command.request.at_ms < closing.asked_at_ms + ASK_AGAIN_MS:
        return Accepted(())
    asked = ClosingAsked(
        **stamp(command.request),
        account_id=state.account_id,
        closing_id=closing.closing_id,
        hold_id=hold_id_of(state.account_id, command.request, command.book_epoch),
        before_leaving=command.before_leaving,
    )
    return Accepted((asked,))


def _end_cancelled(state: Account, command: EndCancelled) -> Decision:
    closing = state.closing
    if closing is None or closing.closing_id != command.closing_id or not closing.cancelled:
        return Accepted(())
    said = ClosingUndone(
        **stamp(command.request), account_id=state.account_id, closing_id=closing.closing_id
    )
    return Accepted((said,))


def still_in(state: Account, closing: Closing) -> tuple[str, ...]:
    """Return the closing's meters that have not left the account yet."""
    return tuple(meter_id for meter_id in closing.meters if state.has(meter_id))


def estimated_milli(
    charged_milli: int, charged_at_ms: int, opened_milli: int, opened_at_ms: int, at_ms: int
) -> int:
    """Return the register at an instant: what was charged goes on as it was used on average.

    From the opening of the meter's epoch to what was charged last; never below that.
    """
    lasted_ms, missing_ms = charged_at_ms - opened_at_ms, at_ms - charged_at_ms
    if lasted_ms <= 0 or missing_ms <= 0:
        return charged_milli
    return charged_milli + max(charged_milli - opened_milli, 0) * missing_ms // lasted_ms
