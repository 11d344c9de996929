"""Orders about a meter that stays what and whose it is: its relay, a held reading."""

from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account import Account
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, stamp
from services.vending.domain.events.meters import MeterHoldResolved, RelayForced
from services.vending.domain.meter import OFF, ON, PREPAID, Meter, nothing_changes

RESOLUTIONS = ("accept", "reject")
POSITIONS = (OFF, ON, PREPAID)


@value_class
class ResolveReading:
    """A person says what a held reading is: accept, it is true; reject, it is not."""

    request: Request
    meter_id: str
    reading_id: str
    resolution: str
    reason: str

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_uuid("reading_id", self.reading_id)
        checks.check_choice("resolution", self.resolution, RESOLUTIONS)
        checks.check_text("reason", self.reason)


@value_class
class ForceRelay:
    """The relay shall be off or on whatever the balance, or prepaid: as the balance says.

    `of`: the account that has the meter, None: its house; `authority`: what one person may do alone
    at the meter's legal entity. `closing_id`: the closing that wants it, "" where a person does;
    `is_one_of_many`: whether it is of a batch.
    """

    request: Request
    meter_id: str
    position: str
    reason: str
    of: Account | None = None
    authority: Authority | None = None
    closing_id: str = ""
    is_one_of_many: bool = False

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_choice("position", self.position, POSITIONS)
        checks.check_text("reason", self.reason)


def resolve(state: Meter, command: ResolveReading) -> MeterHoldResolved:
    """Return what a person said of a held reading."""
    # The book does not know what is held: metering ignores a reading that is not.
    return MeterHoldResolved(
        **stamp(command.request),
        meter_id=state.meter_id,
        epoch=state.epoch,
        reading_id=command.reading_id,
        resolution=command.resolution,
        reason=command.reason,
    )


def force(state: Meter, command: ForceRelay) -> Decision:
    """Return where the relay shall be by order, or why not."""
    # A person's OFF outlives a closing that has cut before him, so it is an order of its own.
    is_above_closing = state.closing_id and not command.closing_id
    if command.position == (state.forced or PREPAID) and not is_above_closing:
        what = f"the relay of meter {state.meter_id} is {command.position} by order"
        return nothing_changes(what, "position")
    if command.position != OFF and (problem := _not_to_be_powered(state, command)):
        return problem
    if problem := _not_alone(state, command):
        return problem
    forced = RelayForced(
        **stamp(command.request),
        meter_id=state.meter_id,
        position=command.position,
        reason=command.reason,
        closing_id=command.closing_id or None,
    )
    return Accepted((forced,))


def _not_alone(state: Meter, command: ForceRelay) -> Rejection | None:
    """Return why one person may not order it; None where he may. ON keeps power without an end."""
    size_of = {OFF: (Action.FORCE_OFF, 1), ON: (Action.KEEP_POWER, None)}
    if command.position not in size_of:
        return None
    action, size = size_of[command.position]
    return needs_another(command.authority, action, size, state.currency, command.request)


def _not_to_be_powered(state: Meter, command: ForceRelay) -> Rejection | None:
    """Return why power does not come back: another has ordered it off, or a closing has cut."""
    if command.closing_id and command.closing_id != state.closing_id:
        what = f"meter {state.meter_id} is as somebody has ordered since"
        return nothing_changes(what, "position")
    if command.is_one_of_many and state.closing_id:
        text = (
            f"closing {state.closing_id} has cut meter {state.meter_id}, and nobody has moved in "
            "since: order it by itself"
        )
        return Rejection(Reason.CUT_BY_CLOSING, text, "meter_id")
    return None
