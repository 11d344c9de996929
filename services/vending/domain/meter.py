"""A meter: what it is, where it hangs, whose it is. Assignment is decided here, in its stream.

A meter without a customer belongs to its own house account, so every interval of energy has exactly
one owner. Each change of owner, device, register or ratio raises the epoch and carries the register
at which it happened.
"""

from typing import Any

from services.common.kernel.errors import Bug
from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.profiles import MqttProfile, Profile
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
from services.vending.domain.events.meters import (
    MeterAssigned,
    MeterHoldResolved,
    MeterRatioChanged,
    MeterRegistered,
    MeterReplaced,
    RelayForced,
)
from services.vending.domain.gateway import MQTT, Gateway, gateway_not_found
from services.vending.domain.site import Site

FIRST_EPOCH = 1
UNIT_MAX = 247
POWER_W_MAX = 10**10
RESOLUTIONS = ("accept", "reject")
OFF = "off"
PREPAID = "prepaid"
POSITIONS = (OFF, "on", PREPAID)
ELECTRICITY = "electricity"
COMMAND = "command"
"""Source of what the caller said himself."""


@value_class
class Previous:
    """Whose the meter was before, until its `epoch` ended."""

    account_id: str
    shard: int
    epoch: int


@value_class
class Meter:
    """The folded stream of a meter.

    The present epoch begins at `opening_register_milli`, the one before ended at
    `closing_register_milli`: both None at the first epoch, which the first reading opens. Of a
    present epoch are also the last judgement of a held reading, `resolves_reading_id` and
    `resolution`. `forced`: off or on by order; None: as the balance says. `closing_id`: the closing
    that forced it off, "" where a person did, or where somebody has moved in since.
    """

    answers: Answers
    meter_id: str
    meter_key: int
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    commodity: str
    ratio: int
    max_power_w: int | None
    max_power_source: str | None
    register_max_milli: int | None
    currency: str
    legal_entity: str
    house_account_id: str
    house_shard: int
    account_id: str
    shard: int
    epoch: int = FIRST_EPOCH
    opening_register_milli: int | None = None
    closing_register_milli: int | None = None
    previous: Previous | None = None
    resolves_reading_id: str | None = None
    resolution: str | None = None
    forced: str | None = None
    closing_id: str = ""

    @property
    def is_house(self) -> bool:
        """Whether no customer has the meter."""
        return self.account_id == self.house_account_id

    @property
    def said_power_w(self) -> int | None:
        """What a caller said of the load behind the meter: it stays whatever hangs before it."""
        return self.max_power_w if self.max_power_source == COMMAND else None


@value_class
class RegisterMeter:
    """A meter shall exist, its house's at epoch 1.

    `gateway` and `site`: what they stand for, None where nothing. `unit` 1..247 on a bus, 0 over
    MQTT; `ratio` CT x PT. `max_power_w` None: what the profile says, if it does.
    """

    request: Request
    meter_id: str
    serial: str
    gateway_id: str
    unit: int
    profile: Profile
    commodity: str
    ratio: int
    max_power_w: int | None
    house_shard: int
    gateway: Gateway | None
    site: Site | None

    def __post_init__(self) -> None:
        """Refuse what no meter can be."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_serial(self.serial)
        checks.check_id("gateway_id", self.gateway_id)
        checks.check_choice("commodity", self.commodity, checks.COMMODITIES)
        checks.check_between("ratio", self.ratio, 1, checks.RATIO_MAX)
        checks.check_between("unit", self.unit, 0, UNIT_MAX)
        _check_power(self.max_power_w)


@value_class
class AssignMeter:
    """The account shall own the meter's energy from a register on.

    `from_account_id`: who has it now, "": its house. `account`: what `account_id` stands for,
    `owner`: the account that has it, None: its house. `register_milli` as the caller said, else
    `charged_register_milli`: the last one charged in the meter's epoch, None where none is known.
    `authority`: what one person may do alone at the meter's legal entity.
    """

    request: Request
    meter_id: str
    account_id: str
    register_milli: int | None
    from_account_id: str = ""
    charged_register_milli: int | None = None
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
        _check_power(self.max_power_w)
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
    owner: Account | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_between("ratio", self.ratio, 1, checks.RATIO_MAX)
        checks.check_register(self.register_milli)
        checks.check_text("reason", self.reason)


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


Ending = AssignMeter | ReleaseMeter | ReplaceMeter | ChangeRatio
"""What ends an epoch of a meter, at a register."""
Order = AssignMeter | ReleaseMeter | ReplaceMeter | ChangeRatio | ResolveReading | ForceRelay
"""What may happen to a meter that exists."""


def _check_power(max_power_w: int | None) -> None:
    if max_power_w is not None:
        checks.check_between("max_power_w", max_power_w, 1, POWER_W_MAX)


def meter_not_found(meter_id: str) -> Rejection:
    """Return the refusal of a command on a meter that is not there."""
    return Rejection(
        Reason.METER_NOT_FOUND, f"there is no meter {meter_id!r}; register it first", "meter_id"
    )


def decide(state: Meter | None, command: RegisterMeter | Order) -> Decision:
    """Return what a command does to a meter, or why nothing may happen."""
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, RegisterMeter):
        if state:
            return Rejection(
                Reason.ALREADY_EXISTS,
                f"meter {command.meter_id} is registered already; choose another meter_id",
                "meter_id",
            )
        return _register(command)
    if state is None:
        return meter_not_found(command.meter_id)
    return _obey(state, command)


def _obey(state: Meter, order: Order) -> Decision:
    match order:
        case AssignMeter():
            return _assign(state, order)
        case ReleaseMeter():
            return _release(state, order)
        case ReplaceMeter():
            return _replace(state, order)
        case ChangeRatio():
            return _change_ratio(state, order)
        case ResolveReading():
            return Accepted((_resolved(state, order),))
        case ForceRelay():
            return _force(state, order)


def _register(command: RegisterMeter) -> Decision:
    gateway, site = command.gateway, command.site
    if gateway is None or site is None:
        return gateway_not_found(command.gateway_id)
    if problem := _cannot_speak(command.profile, gateway.protocol == MQTT, command.unit):
        return problem
    return Accepted(
        (
            MeterRegistered(
                **stamp(command.request),
                meter_id=command.meter_id,
                meter_key=column_key("meter", command.meter_id),
                serial=command.serial,
                site_id=gateway.site_id,
                gateway_id=gateway.gateway_id,
                line_id=gateway.line_id,
                unit=command.unit,
                profile=command.profile.name,
                commodity=command.commodity,
                ratio=command.ratio,
                house_account_id=house_account_id(command.meter_id),
                house_shard=command.house_shard,
                currency=site.currency,
                legal_entity=site.legal_entity,
                register_max_milli=command.profile.register_max_milli,
                **_bound(command.max_power_w, command.profile, command.commodity, command.ratio),
            ),
        )
    )


def _cannot_speak(profile: Profile, over_mqtt: bool, unit: int) -> Rejection | None:
    """Return why a device cannot be reached at a gateway; None where it can."""
    if over_mqtt != isinstance(profile, MqttProfile):
        text = (
            f"profile {profile.name} does not speak what the gateway does; choose another profile"
        )
        return Rejection(Reason.INVALID_ARGUMENT, text, "profile")
    if over_mqtt != (unit == 0):
        wanted = "0: over MQTT there is no bus address" if over_mqtt else f"1 to {UNIT_MAX}"
        text = f"unit {unit} is no bus address here; write {wanted}"
        return Rejection(Reason.INVALID_ARGUMENT, text, "unit")
    return None


def _bound(said_w: int | None, profile: Profile, commodity: str, ratio: int) -> dict[str, Any]:
    """Return the most that flows behind the meter, primary side, and who says so.

    What the caller said, else what the profile states, times the ratio; None where nobody does. A
    register that is primary has ratio 1, whatever the transformers before it.
    """
    if said_w is not None:
        return {"max_power_w": said_w, "max_power_source": COMMAND}
    states = commodity == ELECTRICITY and not profile.register_is_primary
    if profile.max_power_w is None or not states:
        return {"max_power_w": None, "max_power_source": None}
    most_w = min(profile.max_power_w * ratio, POWER_W_MAX)
    return {"max_power_w": most_w, "max_power_source": "profile"}


def _assign(state: Meter, command: AssignMeter) -> Decision:
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
        return _nothing_changes(f"meter {state.meter_id} belongs to account {owner}", "account_id")
    if owner == command.from_account_id:
        return None
    if owner:
        text = f"belongs to account {owner}; release it first, or move it from there"
        return Rejection(
            Reason.METER_ALREADY_ASSIGNED, f"meter {state.meter_id} {text}", "meter_id"
        )
    text = f"meter {state.meter_id} belongs to no customer; assign it"
    return Rejection(Reason.METER_NOT_ASSIGNED, text, "meter_id")


def _release(state: Meter, command: ReleaseMeter) -> Decision:
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
    if problem := _not_at(state, command, register["register_milli"]):
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


def _not_at(state: Meter, command: Ending, register_milli: int) -> Rejection | None:
    """Return why one person may not end an epoch at a register; None where he may.

    Where a closing goes on it decides. Below what was charged, or where nothing was, below where
    the epoch began, a customer would get back what he has used.
    """
    if state.is_house or (isinstance(command, ReleaseMeter) and command.closing_id):
        return None
    if command.owner and (problem := closing_names(command.owner, state.meter_id)):
        return problem
    floor_milli = command.charged_register_milli
    if floor_milli is None:
        floor_milli = state.opening_register_milli
    if floor_milli is None or register_milli >= floor_milli:
        return None
    return needs_another(command.authority, Action.REGISTER, 1, state.currency, command.request)


def _replace(state: Meter, command: ReplaceMeter) -> Decision:
    assert command.device is not None, "a meter has a profile"
    unit = state.unit if command.unit is None else command.unit
    problem = _cannot_speak(command.device, state.unit == 0, unit)
    if problem := problem or _not_at(state, command, command.closing_register_milli):
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
                **_bound(said_w, command.device, state.commodity, ratio),
            ),
        )
    )


def _change_ratio(state: Meter, command: ChangeRatio) -> Decision:
    if command.ratio == state.ratio:
        return _nothing_changes(f"meter {state.meter_id} has ratio {state.ratio}", "ratio")
    register = _register_of(state, command)
    if isinstance(register, Rejection):
        return register
    if problem := _not_at(state, command, register["register_milli"]):
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
                **_bound(state.said_power_w, command.device, state.commodity, command.ratio),
            ),
        )
    )


def _resolved(state: Meter, command: ResolveReading) -> MeterHoldResolved:
    # The book does not know what is held: metering ignores a reading that is not.
    return MeterHoldResolved(
        **stamp(command.request),
        meter_id=state.meter_id,
        epoch=state.epoch,
        reading_id=command.reading_id,
        resolution=command.resolution,
        reason=command.reason,
    )


def _force(state: Meter, command: ForceRelay) -> Decision:
    # A person's OFF outlives a closing that has cut before him, so it is an order of its own.
    is_above_closing = state.closing_id and not command.closing_id
    if command.position == (state.forced or PREPAID) and not is_above_closing:
        what = f"the relay of meter {state.meter_id} is {command.position} by order"
        return _nothing_changes(what, "position")
    if command.position != OFF and (problem := _not_to_be_powered(state, command)):
        return problem
    if command.position == OFF and (
        problem := needs_another(
            command.authority, Action.FORCE_OFF, 1, state.currency, command.request
        )
    ):
        return problem
    forced = RelayForced(
        **stamp(command.request),
        meter_id=state.meter_id,
        position=command.position,
        reason=command.reason,
        closing_id=command.closing_id or None,
    )
    return Accepted((forced,))


def _not_to_be_powered(state: Meter, command: ForceRelay) -> Rejection | None:
    """Return why power does not come back: another has ordered it off, or a closing has cut."""
    if command.closing_id and command.closing_id != state.closing_id:
        what = f"meter {state.meter_id} is as somebody has ordered since"
        return _nothing_changes(what, "position")
    if command.is_one_of_many and state.closing_id:
        text = (
            f"closing {state.closing_id} has cut meter {state.meter_id}, and nobody has moved in "
            "since: order it by itself"
        )
        return Rejection(Reason.CUT_BY_CLOSING, text, "meter_id")
    return None


def _nothing_changes(what: str, field: str) -> Rejection:
    return Rejection(Reason.NOTHING_CHANGES, f"{what} already; nothing is to do", field)


def evolve(state: Meter | None, event: Event) -> Meter:
    """Return the meter after an event of its stream."""
    match state, event:
        case None, MeterRegistered():
            return _first(event)
        case Meter(), MeterAssigned():
            return _next_epoch(
                state,
                event,
                event.register_milli,
                event.register_milli,
                account_id=event.account_id,
                shard=event.shard,
                closing_id=state.closing_id if event.is_house else "",
            )
        case Meter(), MeterReplaced():
            return _next_epoch(
                state,
                event,
                event.closing_register_milli,
                event.opening_register_milli,
                serial=event.serial,
                unit=event.unit,
                profile=event.profile,
                ratio=event.ratio,
                max_power_w=event.max_power_w,
                max_power_source=event.max_power_source,
                register_max_milli=event.register_max_milli,
            )
        case Meter(), MeterRatioChanged():
            return _next_epoch(
                state,
                event,
                event.register_milli,
                event.register_milli,
                ratio=event.ratio,
                max_power_w=event.max_power_w,
                max_power_source=event.max_power_source,
            )
        case Meter(), MeterHoldResolved():
            return changed(
                state,
                answers=state.answers.after(event),
                resolves_reading_id=event.reading_id,
                resolution=event.resolution,
            )
        case Meter(), RelayForced():
            forced = None if event.position == PREPAID else event.position
            return changed(
                state,
                answers=state.answers.after(event),
                forced=forced,
                closing_id=event.closing_id or "",
            )
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a meter's stream here")


def _first(event: MeterRegistered) -> Meter:
    said = event.max_power_w is not None and event.max_power_source is None
    return Meter(
        Answers().after(event),
        event.meter_id,
        event.meter_key,
        event.serial,
        event.site_id,
        event.gateway_id,
        event.line_id,
        event.unit,
        event.profile,
        event.commodity,
        event.ratio,
        event.max_power_w,
        COMMAND if said else event.max_power_source,  # events of before say a bound, and no source
        event.register_max_milli,
        event.currency,
        event.legal_entity,
        event.house_account_id,
        event.house_shard,
        event.house_account_id,
        event.house_shard,
    )


def _next_epoch(
    state: Meter,
    event: MeterAssigned | MeterReplaced | MeterRatioChanged,
    closing_milli: int,
    opening_milli: int,
    **changes: Any,
) -> Meter:
    """Return the meter in its next epoch: what was held in the one before is settled by it."""
    return changed(
        state,
        answers=state.answers.after(event),
        epoch=event.epoch,
        closing_register_milli=closing_milli,
        opening_register_milli=opening_milli,
        previous=Previous(state.account_id, state.shard, state.epoch),
        resolves_reading_id=None,
        resolution=None,
        **changes,
    )
