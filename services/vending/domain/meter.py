"""A meter: what it is, where it hangs, whose it is. Assignment is decided here, in its stream.

A meter without a customer belongs to its own house account, so every interval of energy has exactly
one owner. Each change of owner raises the epoch and carries the register at which it happened.
"""

from services.common.kernel.errors import Bug
from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.account import Account, account_not_found, no_room, not_open
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
from services.vending.domain.events import Event, MeterAssigned, MeterRegistered
from services.vending.domain.gateway import MQTT, Gateway
from services.vending.domain.site import Site

FIRST_EPOCH = 1
UNIT_MAX = 247
POWER_W_MAX = 10**10


@value_class
class Previous:
    """Whose the meter was before, until its `epoch` ended."""

    account_id: str
    shard: int
    epoch: int


@value_class
class Meter:
    """The folded stream of a meter.

    `register_milli`: where the present account begins and the previous one ended; None at the first
    epoch, which the first reading opens.
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
    currency: str
    legal_entity: str
    house_account_id: str
    house_shard: int
    account_id: str
    shard: int
    epoch: int = FIRST_EPOCH
    register_milli: int | None = None
    previous: Previous | None = None

    @property
    def is_house(self) -> bool:
        """Whether no customer has the meter."""
        return self.account_id == self.house_account_id


@value_class
class RegisterMeter:
    """A meter shall exist, its house's at epoch 1.

    `gateway` and `site`: what they stand for, None where nothing. `profile_speaks_mqtt`: of the
    profile. `unit` 1..247 on a bus, 0 over MQTT; `ratio` CT x PT.
    """

    request: Request
    meter_id: str
    serial: str
    gateway_id: str
    unit: int
    profile: str
    commodity: str
    ratio: int
    max_power_w: int | None
    house_shard: int
    gateway: Gateway | None
    site: Site | None
    profile_speaks_mqtt: bool

    def __post_init__(self) -> None:
        """Refuse what no meter can be."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_serial(self.serial)
        checks.check_id("gateway_id", self.gateway_id)
        checks.check_choice("commodity", self.commodity, checks.COMMODITIES)
        checks.check_between("ratio", self.ratio, 1, checks.RATIO_MAX)
        checks.check_between("unit", self.unit, 0, UNIT_MAX)
        if self.max_power_w is not None:
            checks.check_between("max_power_w", self.max_power_w, 1, POWER_W_MAX)


@value_class
class AssignMeter:
    """The account shall own the meter's energy from a register on.

    `account`: what `account_id` stands for. `register_milli` as the caller said, else
    `charged_register_milli`: the last one charged in the meter's epoch, None where none is known.
    """

    request: Request
    meter_id: str
    account_id: str
    register_milli: int | None
    charged_register_milli: int | None
    account: Account | None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_id("account_id", self.account_id)
        checks.check_register(self.register_milli)


@value_class
class ReleaseMeter:
    """The meter goes back to its house account, as AssignMeter says of the register."""

    request: Request
    meter_id: str
    register_milli: int | None
    charged_register_milli: int | None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("meter_id", self.meter_id)
        checks.check_register(self.register_milli)


def meter_not_found(meter_id: str) -> Rejection:
    """Return the refusal of a command on a meter that is not there."""
    return Rejection(
        Reason.METER_NOT_FOUND, f"there is no meter {meter_id!r}; register it first", "meter_id"
    )


def decide(state: Meter | None, command: RegisterMeter | AssignMeter | ReleaseMeter) -> Decision:
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
    if isinstance(command, AssignMeter):
        return _assign(state, command)
    return _release(state, command)


def _register(command: RegisterMeter) -> Decision:
    gateway, site = command.gateway, command.site
    if gateway is None or site is None:
        return Rejection(
            Reason.GATEWAY_NOT_FOUND,
            f"there is no gateway {command.gateway_id!r}; register it first",
            "gateway_id",
        )
    over_mqtt = gateway.protocol == MQTT
    if over_mqtt != command.profile_speaks_mqtt:
        return Rejection(
            Reason.INVALID_ARGUMENT,
            f"profile {command.profile} does not speak {gateway.protocol}, which gateway "
            f"{gateway.gateway_id} does; choose another profile",
            "profile",
        )
    if over_mqtt != (command.unit == 0):
        wanted = "0: over MQTT there is no bus address" if over_mqtt else f"1 to {UNIT_MAX}"
        text = f"unit {command.unit} is no bus address here; write {wanted}"
        return Rejection(Reason.INVALID_ARGUMENT, text, "unit")
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
                profile=command.profile,
                commodity=command.commodity,
                ratio=command.ratio,
                max_power_w=command.max_power_w,
                house_account_id=house_account_id(command.meter_id),
                house_shard=command.house_shard,
                currency=site.currency,
                legal_entity=site.legal_entity,
            ),
        )
    )


def _assign(state: Meter, command: AssignMeter) -> Decision:
    account = command.account
    if account is None:
        return account_not_found(command.account_id)
    if not state.is_house:
        return Rejection(
            Reason.METER_ALREADY_ASSIGNED,
            f"meter {state.meter_id} belongs to account {state.account_id}; release it first",
            "meter_id",
        )
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
    if problem := not_open(account) or no_room(account):
        return problem
    return _moved(state, command, account.account_id, account.shard)


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
    from_command = command.register_milli is not None
    register_milli = command.register_milli if from_command else command.charged_register_milli
    if register_milli is None:
        return Rejection(
            Reason.NO_READING_YET,
            f"no reading of meter {state.meter_id} was charged in its epoch {state.epoch}; "
            "wait for one, or read the meter and give register_milli",
            "register_milli",
        )
    return Accepted(
        (
            MeterAssigned(
                **stamp(command.request),
                meter_id=state.meter_id,
                epoch=state.epoch + 1,
                account_id=account_id,
                is_house=account_id == state.house_account_id,
                shard=shard,
                register_milli=register_milli,
                register_source="command" if from_command else "last-charged",
                previous_account_id=state.account_id,
                previous_shard=state.shard,
            ),
        )
    )


def evolve(state: Meter | None, event: Event) -> Meter:
    """Return the meter after an event of its stream."""
    match state, event:
        case None, MeterRegistered():
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
                event.currency,
                event.legal_entity,
                event.house_account_id,
                event.house_shard,
                event.house_account_id,
                event.house_shard,
            )
        case Meter(), MeterAssigned():
            return changed(
                state,
                answers=state.answers.after(event),
                epoch=event.epoch,
                account_id=event.account_id,
                shard=event.shard,
                register_milli=event.register_milli,
                previous=Previous(event.previous_account_id, event.previous_shard, state.epoch),
            )
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into a meter's stream here")
