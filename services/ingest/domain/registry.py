"""What ingest knows of sites, gateways and meters: the newest fact of each, and look-ups."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

from services.common.kernel.values import value_class
from services.common.kernel.zones import zone_named

Version = tuple[int, int]

PROTOCOL_MODBUS_TCP = "modbus-tcp"
PROTOCOL_MODBUS_RTU = "modbus-rtu-over-tcp"
PROTOCOL_MQTT = "mqtt-acrel"
POLLED_PROTOCOLS = frozenset({PROTOCOL_MODBUS_TCP, PROTOCOL_MODBUS_RTU})


@value_class
class Meter:
    """A meter: what it is, where it hangs, which shard its readings go to."""

    meter_id: str
    meter_key: int
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    ratio: int
    epoch: int
    shard: int

    @property
    def device_id(self) -> str:
        """Its name in device-status."""
        return f"meters/{self.meter_id}"


@value_class
class Gateway:
    """A gateway: `address` is host:port, or product/serial on the broker."""

    gateway_id: str
    site_id: str
    line_id: str
    protocol: str
    address: str

    @property
    def device_id(self) -> str:
        """Its name in device-status."""
        return f"gateways/{self.gateway_id}"


@value_class
class Line:
    """A polled line: its gateway and the meters on it, by bus address."""

    gateway: Gateway
    meters: tuple[Meter, ...]

    @property
    def line_id(self) -> str:
        """The name that decides its owner."""
        return self.gateway.line_id


Fact = TypeVar("Fact", Gateway, Meter)


class Registry:
    """The facts that ingest routes by. Of one stream the highest version stands."""

    def __init__(self) -> None:
        self._versions: dict[str, Version] = {}
        self._zones: dict[str, ZoneInfo] = {}
        self._gateways: dict[str, Gateway] = {}
        self._meters: dict[str, Meter] = {}
        self._by_serial: dict[str, str] = {}
        self._by_address: dict[tuple[str, str], str] = {}

    def absorb(self, subject: str, record: Mapping[str, Any]) -> bool:
        """Take in a fact; say whether anything changed. Other subjects change nothing.

        Raises InvalidInput where a site's zone does not exist.
        """
        match subject:
            case "site-fact":
                stream = f"sites/{record['site_id']}"
            case "gateway-fact":
                stream = f"gateways/{record['gateway_id']}"
            case "meter-fact":
                stream = f"meters/{record['meter_id']}"
            case _:
                return False
        version = (record["book_epoch"], record["revision"])
        if version <= self._versions.get(stream, (-1, -1)):
            return False
        match subject:
            case "site-fact":
                self._zones[record["site_id"]] = zone_named(record["zone"])
            case "gateway-fact":
                self._take_gateway(_made(Gateway, record))
            case _:
                self._take_meter(_made(Meter, record))
        self._versions[stream] = version
        return True

    def _take_gateway(self, gateway: Gateway) -> None:
        before = self._gateways.get(gateway.gateway_id)
        if before is not None and self.gateway_at(before.protocol, before.address) == before:
            del self._by_address[before.protocol, before.address]
        self._gateways[gateway.gateway_id] = gateway
        self._by_address[gateway.protocol, gateway.address] = gateway.gateway_id

    def _take_meter(self, meter: Meter) -> None:
        before = self._meters.get(meter.meter_id)
        if before is not None and self._by_serial.get(before.serial) == meter.meter_id:
            del self._by_serial[before.serial]
        self._meters[meter.meter_id] = meter
        self._by_serial[meter.serial] = meter.meter_id

    def zone(self, site_id: str) -> ZoneInfo | None:
        """Return a site's zone, None while the site is unknown."""
        return self._zones.get(site_id)

    def gateway(self, gateway_id: str) -> Gateway | None:
        """Return a gateway by its id."""
        return self._gateways.get(gateway_id)

    def gateway_at(self, protocol: str, address: str) -> Gateway | None:
        """Return the gateway at an address."""
        gateway_id = self._by_address.get((protocol, address))
        return None if gateway_id is None else self._gateways[gateway_id]

    def meter(self, meter_id: str) -> Meter | None:
        """Return a meter by its id, as it is now."""
        return self._meters.get(meter_id)

    def meter_with_serial(self, serial: str) -> Meter | None:
        """Return the meter that has a serial."""
        meter_id = self._by_serial.get(serial)
        return None if meter_id is None else self._meters[meter_id]

    def meters_of(self, gateway_id: str) -> tuple[Meter, ...]:
        """Return a gateway's meters by bus address."""
        found = (meter for meter in self._meters.values() if meter.gateway_id == gateway_id)
        return tuple(sorted(found, key=lambda meter: (meter.unit, meter.meter_id)))

    def polled_lines(self) -> dict[str, Line]:
        """Return line id → line of every polled gateway. Two gateways of one line: the first."""
        meters: dict[str, list[Meter]] = {}
        for meter in self._meters.values():
            meters.setdefault(meter.gateway_id, []).append(meter)
        lines: dict[str, Line] = {}
        for gateway_id in sorted(self._gateways):
            gateway = self._gateways[gateway_id]
            if gateway.protocol in POLLED_PROTOCOLS and gateway.line_id not in lines:
                there = meters.get(gateway_id, [])
                there.sort(key=lambda meter: (meter.unit, meter.meter_id))
                lines[gateway.line_id] = Line(gateway, tuple(there))
        return lines


def _made(kind: type[Fact], record: Mapping[str, Any]) -> Fact:
    return kind(**{field.name: record[field.name] for field in fields(kind)})
