"""A meter begins: what hangs there, how it is reached, and how much can flow behind it."""

from typing import Any

from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.profiles import MqttProfile, Profile
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, stamp
from services.vending.domain.events.meters import MeterRegistered
from services.vending.domain.gateway import MQTT, Gateway, gateway_not_found
from services.vending.domain.meter import COMMAND
from services.vending.domain.site import Site

UNIT_MAX = 247
POWER_W_MAX = 10**10
ELECTRICITY = "electricity"


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
        check_power(self.max_power_w)


def register(command: RegisterMeter) -> Decision:
    """Return the meter, its house's, or why it cannot be."""
    gateway, site = command.gateway, command.site
    if gateway is None or site is None:
        return gateway_not_found(command.gateway_id)
    if problem := cannot_speak(command.profile, gateway.protocol == MQTT, command.unit):
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
                **bound(command.max_power_w, command.profile, command.commodity, command.ratio),
            ),
        )
    )


def cannot_speak(profile: Profile, over_mqtt: bool, unit: int) -> Rejection | None:
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


def bound(said_w: int | None, profile: Profile, commodity: str, ratio: int) -> dict[str, Any]:
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


def check_power(max_power_w: int | None) -> None:
    """Raise InvalidInput where so much flows behind no meter."""
    if max_power_w is not None:
        checks.check_between("max_power_w", max_power_w, 1, POWER_W_MAX)
