"""Who plays what in the demo: the meters come from the fleet's site, the money from here."""

from collections.abc import Sequence
from dataclasses import dataclass

from tools.fleet.config import FleetConfig, MeterConfig, Protocol
from tools.fleet.load import make_load
from tools.fleet.site import make_site
from tools.mall import METERS, PRICE_MICRO, SEED

COMFORTABLE_SALE_MINOR = 5_000_000
TOP_UP_MINOR = 200_000

CAST_POWER_W = 3_000_000
"""What the meters with a part draw, about: their loads are scaled up to it, time is not."""

MINOR_NANO = 10_000_000


@dataclass(frozen=True, slots=True)
class DemoMeter:
    """A meter of the site. `lsb_milli`: Wh of one step of the register, before the ratio."""

    meter_id: str
    serial: str
    gateway_id: str
    unit: int
    profile: str
    ratio: int
    power_w: int
    lsb_milli: int = 10

    @property
    def account_id(self) -> str:
        """The account of the shop behind the meter."""
        return f"shop-{self.meter_id.rpartition('-')[2]}"


@dataclass(frozen=True, slots=True)
class Cast:
    """The meters with a part. Everybody else just uses energy.

    The runner and two stand-ins hang on Modbus lines, the absent one and a stand-in on MQTT.
    """

    runner: DemoMeter
    absent: DemoMeter
    standins: tuple[DemoMeter, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The demo's site: what the fleet plays, and the cast."""

    fleet: FleetConfig
    meters: tuple[DemoMeter, ...]
    cast: Cast


def make_plan(line_ports: Sequence[int]) -> Plan:
    """Return the demo's site: the same each time, but for the ports of its Modbus gateways."""
    site = make_site(METERS, seed=SEED, modbus_ports=line_ports)
    wireless = {g.id for g in site.gateways if g.protocol is Protocol.MQTT_ACREL}
    on_lines = [m for m in site.meters if m.gateway not in wireless]
    on_mqtt = [m for m in site.meters if m.gateway in wireless]
    # The three-phase meters behind current transformers, and the first of another line.
    with_ct = [m for m in on_lines if m.ct > 1]
    actors = [with_ct[0], on_mqtt[0], with_ct[1], on_lines[0], on_mqtt[1]]
    meters = [_scaled(m) if m in actors else m for m in site.meters]
    shown = {m.id: _demo_meter(m) for m in meters}
    runner, absent, *standins = (shown[m.id] for m in actors)
    return Plan(
        site.model_copy(update={"meters": tuple(meters)}),
        tuple(shown.values()),
        Cast(runner, absent, tuple(standins)),
    )


def _power_w(meter: MeterConfig) -> int:
    return make_load(meter.load).step(0).power_uw // 1_000_000


def _scaled(meter: MeterConfig) -> MeterConfig:
    scale = max(1, meter.load.power_scale * CAST_POWER_W // max(1, _power_w(meter)))
    load = meter.load.model_copy(update={"power_scale": scale})
    return meter.model_copy(update={"load": load})


def _demo_meter(meter: MeterConfig) -> DemoMeter:
    return DemoMeter(
        meter.id,
        meter.serial,
        meter.gateway,
        meter.unit,
        meter.profile,
        meter.ct * meter.pt,
        _power_w(meter),
    )


def first_sales_minor(plan: Plan, lasts_s: dict[DemoMeter, int]) -> dict[DemoMeter, int]:
    """Return each account's first sale: enough for all but the cast, whose credit lasts so long."""
    return {
        meter: lasting_minor(lasts_s[meter], meter.power_w)
        if meter in lasts_s
        else COMFORTABLE_SALE_MINOR
        for meter in plan.meters
    }


def cost_nano(register_steps: int, meter: DemoMeter) -> int:
    """Return what so many steps of the meter's register cost, exact."""
    return register_steps * meter.lsb_milli * meter.ratio * PRICE_MICRO


def steps_worth(amount_nano: int, meter: DemoMeter) -> int:
    """Return the fewest register steps that use up `amount_nano`."""
    return -(-amount_nano // cost_nano(1, meter))


def lasting_minor(seconds: int, power_w: int) -> int:
    """Return the credit, minor units, that `power_w` uses up in about `seconds`."""
    return power_w * seconds * 1000 * PRICE_MICRO // 3_600_000 // MINOR_NANO
