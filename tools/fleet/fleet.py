"""The fleet: every meter and gateway of a configuration, and what can be done to them."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol as Port
from zoneinfo import ZoneInfo

from tools.fleet.config import FleetConfig, GatewayConfig, LoadConfig, MeterConfig, MeterProfile
from tools.fleet.config import Protocol as Wire
from tools.fleet.errors import RefusedError
from tools.fleet.load import make_load
from tools.fleet.meter import Meter
from tools.fleet.modbus import ModbusGateway
from tools.fleet.mqtt import Later, Link, MqttGateway

STRANGERS_MAX = 100

MakeLink = Callable[[GatewayConfig], Link]


class Gateway(Port):
    """What the two kinds of gateway have in common."""

    config: GatewayConfig

    @property
    def address(self) -> str: ...

    @property
    def is_online(self) -> bool: ...

    @property
    def missing(self) -> str | None: ...

    def state(self) -> dict[str, object]: ...

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class Fleet:
    """A site's devices. `now_ms` (UTC) never goes back; `make_link` connects MQTT gateways."""

    def __init__(
        self, config: FleetConfig, now_ms: Callable[[], int], make_link: MakeLink, later: Later
    ) -> None:
        self.now_ms = now_ms
        self.load_on = config.load_on
        self.meters: dict[str, Meter] = {}
        self.gateways: dict[str, Gateway] = {}
        self._zone = ZoneInfo(config.zone)
        self._is_open = False
        wires = {gateway.id: gateway.protocol for gateway in config.gateways}
        for meter in config.meters:
            self.meters[meter.id] = self._make_meter(meter, wires[meter.gateway])
        for gateway in config.gateways:
            self.gateways[gateway.id] = self._make_gateway(gateway, make_link, later)

    def _make_meter(self, config: MeterConfig, wire: Wire) -> Meter:
        return Meter(
            config,
            make_load(config.load),
            protocol=wire,
            zone=self._zone,
            now_ms=self.now_ms(),
            load_on=self.load_on,
        )

    def _make_gateway(self, config: GatewayConfig, make_link: MakeLink, later: Later) -> Gateway:
        meters = [meter for meter in self.meters.values() if meter.config.gateway == config.id]
        if config.protocol is Wire.MQTT_ACREL:
            link = make_link(config)
            return MqttGateway(
                config, meters, link, zone=self._zone, now_ms=self.now_ms, later=later
            )
        return ModbusGateway(config, {meter.config.unit: meter for meter in meters}, self.now_ms)

    async def open(self) -> None:
        """Start all gateways. Raises ListenError."""
        for gateway in self.gateways.values():
            await gateway.open()
        self._is_open = True

    async def close(self) -> None:
        await asyncio.gather(*(gateway.close() for gateway in self.gateways.values()))

    @property
    def missing(self) -> Mapping[str, str]:
        """Gateway → why it is not ready. One that was told to be offline is not missed."""
        if not self._is_open:
            return {"gateways": "starting"}
        return {name: why for name, one in self.gateways.items() if (why := one.missing)}

    def switch_load(self, *, on: bool) -> int:
        """Let all customers draw, or none; return the moment, the same for every meter."""
        now_ms = self.now_ms()
        self.load_on = on
        for meter in self.meters.values():
            meter.switch_load(on, now_ms)
        return now_ms

    def add_stranger(self, gateway_id: str, serial: str) -> Meter:
        """Let a meter that nobody registered report through an MQTT gateway."""
        gateway = self.gateways[gateway_id]
        if not isinstance(gateway, MqttGateway):
            raise RefusedError(f"{gateway_id} polls its bus: strangers report through MQTT only")
        strangers = [name for name in self.meters if name.startswith("stranger-")]
        if len(strangers) >= STRANGERS_MAX:
            raise RefusedError(f"there are {STRANGERS_MAX} strangers already")
        if any(meter.config.serial == serial for meter in self.meters.values()):
            raise RefusedError(f"a meter of this fleet has the serial {serial}; choose another")
        config = MeterConfig(
            id=f"stranger-{serial}",
            name="Stranger",
            serial=serial,
            gateway=gateway_id,
            profile=MeterProfile.MQTT,
            load=LoadConfig(power_w=100_000),
        )
        meter = self._make_meter(config, gateway.config.protocol)
        self.meters[config.id] = meter
        gateway.meters.append(meter)
        return meter
