"""A plausible site for N meters, the same for the same seed: `python -m tools.fleet.site`.

Three Modbus gateways (DDSY1352 over Modbus TCP, DDSY1352 over RTU-over-TCP, three-phase DTSY1352
behind current transformers) and two MQTT gateways; of 44 meters that is 12 + 12 + 12 + 4 + 4.
"""

import argparse
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import yaml

from tools.fleet.config import (
    FleetConfig,
    GatewayConfig,
    LoadConfig,
    MeterConfig,
    MeterProfile,
    Protocol,
)
from tools.fleet.load import BEGIN, DAYS, QUARTER_MS, QUARTERS_PER_DAY

METERS_MIN = 5
METERS_MAX = 500
ANY_PORTS = (0, 0, 0)
# Of 44 meters 8 report by MQTT.
MQTT_SHARE, ALL_SHARE = 8, 44
CT_RATIO = 20


@dataclass(frozen=True, slots=True)
class Tenant:
    """A kind of customer: what its load looks like, and what it uses in a year."""

    name: str
    load: str
    yearly_kwh_min: int
    yearly_kwh_max: int


SHOP = Tenant("Shop", "g25", 3_000, 12_000)
FLAT = Tenant("Flat", "h25", 2_000, 6_000)
STALL = Tenant("Market stall", "l25", 2_000, 8_000)
ANCHOR = Tenant("Anchor store", "g25", 60_000, 200_000)

GATEWAYS: Sequence[tuple[str, Protocol, MeterProfile, Sequence[Tenant]]] = (
    ("gw-shops", Protocol.MODBUS_TCP, MeterProfile.DDSY1352, (SHOP, SHOP, FLAT)),
    ("gw-flats", Protocol.MODBUS_RTU_OVER_TCP, MeterProfile.DDSY1352, (FLAT,)),
    ("gw-anchors", Protocol.MODBUS_TCP, MeterProfile.DTSY1352, (ANCHOR,)),
    ("gw-market-1", Protocol.MQTT_ACREL, MeterProfile.MQTT, (STALL, SHOP)),
    ("gw-market-2", Protocol.MQTT_ACREL, MeterProfile.MQTT, (STALL, SHOP)),
)


def make_site(
    meters: int,
    *,
    seed: int,
    zone: str = "Asia/Shanghai",
    power_scale: int = 1_000,
    modbus_ports: Sequence[int] = ANY_PORTS,
) -> FleetConfig:
    """Return a site of so many meters (5 to 500), with its load off."""
    if not METERS_MIN <= meters <= METERS_MAX:
        raise ValueError(f"a site has {METERS_MIN} to {METERS_MAX} meters, not {meters}")
    chance = random.Random(seed)
    ports = iter(modbus_ports)
    gateways = []
    for gateway_id, protocol, _, _ in GATEWAYS:
        if protocol is Protocol.MQTT_ACREL:
            serial = digits(chance, "1230", 14)
            gateways.append(
                GatewayConfig(id=gateway_id, protocol=protocol, product="AWT100", serial=serial)
            )
        else:
            delay_ms = chance.randint(2, 5)
            gateways.append(
                GatewayConfig(
                    id=gateway_id,
                    protocol=protocol,
                    port=next(ports),
                    transaction_delay_ms=delay_ms,
                )
            )
    placed = tuple(make_meters(meters, chance, power_scale))
    return FleetConfig(zone=zone, gateways=tuple(gateways), meters=placed)


def make_meters(count: int, chance: random.Random, power_scale: int) -> Iterator[MeterConfig]:
    """Yield the meters, gateway by gateway."""
    number = 0
    for at, (gateway_id, protocol, profile, tenants) in enumerate(GATEWAYS):
        is_mqtt = protocol is Protocol.MQTT_ACREL
        for place in range(counts(count)[at]):
            number += 1
            tenant = tenants[place % len(tenants)]
            yield MeterConfig(
                id=f"meter-{number:03}",
                name=f"{tenant.name} {at + 1}{place + 1:02}",
                # The number in front keeps serials apart; the rest makes them look like serials.
                serial=digits(chance, f"{2300 + number}", 14 if is_mqtt else 12),
                gateway=gateway_id,
                unit=0 if is_mqtt else place + 1,
                profile=profile,
                ct=CT_RATIO if profile is MeterProfile.DTSY1352 else 1,
                register_lsb=chance.randint(0, 900_000),
                load=LoadConfig(
                    profile=tenant.load,
                    yearly_kwh=chance.randint(tenant.yearly_kwh_min, tenant.yearly_kwh_max),
                    start=BEGIN
                    + timedelta(milliseconds=QUARTER_MS)
                    * chance.randrange(DAYS * QUARTERS_PER_DAY),
                    power_scale=power_scale,
                ),
            )


def counts(meters: int) -> list[int]:
    """Return how many meters each gateway has: the same for the Modbus ones, and the MQTT ones."""
    by_mqtt = max(2, meters * MQTT_SHARE // ALL_SHARE)
    return [*shares(meters - by_mqtt, 3), *shares(by_mqtt, 2)]


def shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def digits(chance: random.Random, front: str, length: int) -> str:
    return front + "".join(chance.choices("0123456789", k=length - len(front)))


def as_yaml(config: FleetConfig) -> str:
    """Return the configuration's file."""
    content = config.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="write a virtual fleet's configuration")
    parser.add_argument("--meters", type=int, default=44)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--zone", default="Asia/Shanghai")
    parser.add_argument("--power-scale", type=int, default=1_000)
    wanted = parser.parse_args()
    try:
        site = make_site(
            wanted.meters, seed=wanted.seed, zone=wanted.zone, power_scale=wanted.power_scale
        )
    except ValueError as wrong:
        parser.error(str(wrong))
    sys.stdout.write(as_yaml(site))


if __name__ == "__main__":
    main()
