"""What ends an epoch of a meter, at a register: another owner, device, register or ratio."""

from typing import Any

from services.common.kernel.profiles import Profile
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account import (
    Account,
    account_not_found,
    closing_names,
    no_room,
    not_open,
)
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, stamp
from services.vending.domain.events.meters import MeterAssigned, MeterRatioChanged, MeterReplaced
from services.vending.domain.meter import COMMAND, Meter, nothing_changes
from services.vending.domain.meter_device import UNIT_MAX, bound, cannot_speak, check_power


@value_class
class AssignMeter:
    """The account shall own the meter's energy from a register on.

    `from_account_id`: who has it now, "": its house. `account`: what `account_id` stands for,
    `owner`: the account that has it, None: its house. `register_milli` as the caller said, else
    `charged_register_milli`: the last one charged in the meter's epoch, None where none is known;
    `most_milli`: where its load lets it stand at most, None: nobody knows. `authority`: what one
    person may do alone at the meter's legal entity.
    """

    request: Request
    meter_id: str
    account_id: str
    register_milli: int | None
    from_account_id: str = ""
    charged_register_milli: int | None = None
    most_milli: int | None = None
    account: Account | None = None
    owner: Account | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_id("account_id", self.account_id)
        if self.from_account_id:
            checks.check_id("from_account_id", self.from_account_id)
        checks.check_register(self.register_milli)


@value_class
class ReleaseMeter:
    """The meter goes back to its house account, as AssignMeter says of the register.

    `closing_id`: the closing that lets it go, "" where a person does.
    """

    request: Request
    meter_id: str
    register_milli: int | None
    closing_id: str = ""
    charged_register_milli: int | None = None
    most_milli: int | None = None
    owner: Account | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_register(self.register_milli)


@value_class
class ReplaceMeter:
    """Another device, or a register that began anew: closing and opening are exact.

    `serial`, `unit`, `profile`, `ratio`, `max_power_w`: None where they stay. `device`: the profile
    of what hangs there now. The others as AssignMeter says.
    """

    request: Request
    meter_id: str
    closing_register_milli: int
    opening_register_milli: int
    serial: str | None
    unit: int | None
    profile: str | None
    ratio: int | None
    max_power_w: int | None
    reason: str
    device: Profile | None = None
    charged_register_milli: int | None = None
    most_milli: int | None = None
    owner: Account | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what no device and no register can be."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_register(self.closing_register_milli, "closing_register_milli")
        checks.check_register(self.opening_register_milli, "opening_register_milli")
        if self.serial is not None:
            checks.check_serial(self.serial)
        if self.unit is not None:
            checks.check_between("unit", self.unit, 0, UNIT_MAX)
        if self.ratio is not None:
            checks.check_between("ratio", self.ratio, 1, checks.RATIO_MAX)
        check_power(self.max_power_w)
        checks.check_text("reason", self.reason)


@value_class
class ChangeRatio:
    """The register counts for another energy from here on, as AssignMeter says of the register.

    `device`: the meter's profile.
    """

    request: Request
    meter_id: str
    ratio: int
    register_milli: int | None
    reason: str
    device: Profile | None = None
    charged_register_milli: int | None = None
    most_milli: int | None = None
    owner: Account | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_between("ratio", self.ratio, 1, checks.RATIO_MAX)
        checks.check_register(self.register_milli)
        checks.check_text("reason", self.reason)


Ending = AssignMeter | ReleaseMeter | ReplaceMeter | ChangeRatio
"""What ends an epoch of a meter, at a register."""


def assign(state: Meter, command: AssignMeter) -> Decision:
    """Return that the account has the meter, or why it cannot."""
    account = command.account
    if account is None:
        return account_not_found(command.account_id)
    if problem := _not_there(state, command):
        return problem
    for reason, field, is_, wanted in (
        (Reason.SITE_MISMATCH, "site", state.site_id, account.site_id),
        (Reason.COMMODITY_MISMATCH, "commodity", state.commodity, account.commodity),
        (Reason.CURRENCY_MISMATCH, "currency", state.currency, account.currency),
        (Reason.LEGAL_ENTITY_MISMATCH, "legal entity", state.legal_entity, account.legal_entity),
    ):
        if is_ != wanted:
            text = (
                f"meter {state.meter_id} has {field} {is_}, account {account.account_id} "
                f"{wanted}: choose another account"
            )
            return Rejection(reason, text, "account_id")
    problem = not_open(account) or no_room(account) or closing_names(account, state.meter_id)
    return problem or _moved(state, command, account.account_id, account.shard)


def _not_there(state: Meter, command: AssignMeter) -> Rejection | None:
    """Return why a meter does not come from where the caller says; None where it does."""
    owner = "" if state.is_house else state.account_id
    if owner and owner == command.from_account_id == command.account_id:
        return nothing_changes(f"meter {state.meter_id} belongs to account {owner}", "account_id")
    if owner == command.from_account_id:
        return None
    if owner:
        text = f"belongs to account {owner}; release it first, or move it from there"
        return Rejection(
            Reason.METER_ALREADY_ASSIGNED, f"meter {state.meter_id} {text}", "meter_id"
        )
    text = f"meter {state.meter_id} belongs to no customer; assign it"
    return Rejection(Reason.METER_NOT_ASSIGNED, text, "meter_id")


def release(state: Meter, command: ReleaseMeter) -> Decision:
    """Return that the house has the meter, or why not."""
    if state.is_house:
        return Rejection(
            Reason.METER_NOT_ASSIGNED,
            f"meter {state.meter_id} belongs to no customer; nothing is to be released",
            "meter_id",
        )
    return _moved(state, command, state.house_account_id, state.house_shard)


def _moved(
    state: Meter, command: AssignMeter | ReleaseMeter, account_id: str, shard: int
) -> Decision:
    register = _register_of(state, command)
    if isinstance(register, Rejection):
        return register
    if problem := _not_alone(state, command, register["register_milli"]):
        return problem
    return Accepted(
        (
            MeterAssigned(
                **stamp(command.request),
                meter_id=state.meter_id,
                epoch=state.epoch + 1,
                account_id=account_id,
                is_house=account_id == state.house_account_id,
                shard=shard,
                previous_account_id=state.account_id,
                previous_shard=state.shard,
                **register,
            ),
        )
    )


def _register_of(
    state: Meter, command: AssignMeter | ReleaseMeter | ChangeRatio
) -> dict[str, Any] | Rejection:
    """Return the register at which an epoch ends, and who says so."""
    if command.register_milli is not None:
        return {"register_milli": command.register_milli, "register_source": COMMAND}
    if command.charged_register_milli is not None:
        charged_milli = command.charged_register_milli
        return {"register_milli": charged_milli, "register_source": "last-charged"}
    return Rejection(
        Reason.NO_READING_YET,
        f"no reading of meter {state.meter_id} was charged in its epoch {state.epoch}; "
        "wait for one, or read the meter and give register_milli",
        "register_milli",
    )


def _not_alone(state: Meter, command: Ending, register_milli: int) -> Rejection | None:
    """Return why one person may not end an epoch at a register; None where he may.

    Of what is its house's, or where a closing goes on and decides, he may. Of a customer's meter
    another owner, device or ratio is another price, or none, or a cut by another's balance.
    """
    if state.is_house or (isinstance(command, ReleaseMeter) and command.closing_id):
        return None
    if command.owner and (problem := closing_names(command.owner, state.meter_id)):
        return problem
    action = Action.MOVE if isinstance(command, AssignMeter | ReleaseMeter) else Action.EXCHANGE
    if not _may_stand_at(state, command, register_milli):
        action = Action.REGISTER
    return needs_another(command.authority, action, 1, state.currency, command.request)


def _may_stand_at(state: Meter, command: Ending, register_milli: int) -> bool:
    """Say whether a customer's meter may stand at a register, by what was charged last.

    Below that, or where nothing was, below where the epoch began, he would get back what he has
    used; above what its load lets through since, he would pay what he has not.
    """
    least_milli, most_milli = command.charged_register_milli, command.most_milli
    if least_milli is None:
        least_milli = state.opening_register_milli
    is_below = least_milli is not None and register_milli < least_milli
    return not is_below and (most_milli is None or register_milli <= most_milli)


def replace(state: Meter, command: ReplaceMeter) -> Decision:
    """Return that another device or register counts on, or why it cannot."""
    assert command.device is not None, "a meter has a profile"
    unit = state.unit if command.unit is None else command.unit
    problem = cannot_speak(command.device, state.unit == 0, unit)
    if problem := problem or _not_alone(state, command, command.closing_register_milli):
        return problem
    ratio = command.ratio or state.ratio
    said_w = state.said_power_w if command.max_power_w is None else command.max_power_w
    return Accepted(
        (
            MeterReplaced(
                **stamp(command.request),
                meter_id=state.meter_id,
                epoch=state.epoch + 1,
                serial=command.serial or state.serial,
                previous_serial=state.serial,
                line_id=state.line_id,
                unit=unit,
                previous_unit=state.unit,
                profile=command.device.name,
                ratio=ratio,
                register_max_milli=command.device.register_max_milli,
                closing_register_milli=command.closing_register_milli,
                opening_register_milli=command.opening_register_milli,
                reason=command.reason,
                **bound(said_w, command.device, state.commodity, ratio),
            ),
        )
    )


def change_ratio(state: Meter, command: ChangeRatio) -> Decision:
    """Return that the register counts for another energy, or why it cannot."""
    if command.ratio == state.ratio:
        return nothing_changes(f"meter {state.meter_id} has ratio {state.ratio}", "ratio")
    register = _register_of(state, command)
    if isinstance(register, Rejection):
        return register
    if problem := _not_alone(state, command, register["register_milli"]):
        return problem
    assert command.device is not None, "a meter has a profile"
    return Accepted(
        (
            MeterRatioChanged(
                **stamp(command.request),
                meter_id=state.meter_id,
                epoch=state.epoch + 1,
                ratio=command.ratio,
                previous_ratio=state.ratio,
                reason=command.reason,
                **register,
                **bound(state.said_power_w, command.device, state.commodity, command.ratio),
            ),
        )
    )
