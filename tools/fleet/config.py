"""What a fleet consists of: one YAML (or JSON) file, read once and validated."""

from collections import Counter
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tools.fleet.errors import ConfigError

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
PROFILE_YEAR = 2025
REGISTER_MAX_LSB = 99_999_999
METERS_MAX = 10_000


class Protocol(StrEnum):
    """How a gateway speaks."""

    MODBUS_TCP = "modbus-tcp"
    MODBUS_RTU_OVER_TCP = "modbus-rtu-over-tcp"
    MQTT_ACREL = "mqtt-acrel"


class MeterProfile(StrEnum):
    """What a meter is."""

    DDSY1352 = "acrel-ddsy1352"
    DTSY1352 = "acrel-dtsy1352"
    MQTT = "acrel-mqtt"


class Strict(BaseModel):
    """Values are frozen, and a name that is not known is an error, not a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoadConfig(Strict):
    """What a meter's customers draw: a standard load profile, or `power_w` all the time.

    `start` is the moment of the profile's year (2025, local time) at which the meter's life begins;
    from there it goes on at real speed. Power is multiplied by `power_scale`; time never is.
    """

    profile: Literal["h25", "g25", "l25"] | None = None
    yearly_kwh: int = Field(0, ge=0, le=10_000_000)
    start: datetime = datetime(PROFILE_YEAR, 1, 1)  # noqa: DTZ001 - the profile's local time
    power_scale: int = Field(1, ge=1, le=1_000_000)
    power_w: int | None = Field(None, ge=0, le=10_000_000_000)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.profile is None) == (self.power_w is None):
            raise ValueError("give either profile (with yearly_kwh) or power_w")
        if self.profile is not None and self.yearly_kwh == 0:
            raise ValueError("yearly_kwh is missing: a profile is scaled to a year's energy")
        if self.start.tzinfo is not None or self.start.year != PROFILE_YEAR:
            raise ValueError(f"start must be a date-time of {PROFILE_YEAR} without a zone")
        return self


class MeterConfig(Strict):
    """A meter. `register_lsb` is its register at birth, in 0.01 kWh secondary."""

    id: str = Field(pattern=ID_PATTERN)
    name: str = ""
    serial: str = Field(pattern=r"^[0-9A-Za-z]{1,20}$")
    gateway: str
    unit: int = Field(0, ge=0, le=247)
    profile: MeterProfile
    ct: int = Field(1, ge=1, le=65_535)
    pt: int = Field(1, ge=1, le=65_535)
    register_lsb: int = Field(0, ge=0, le=REGISTER_MAX_LSB)
    load: LoadConfig

    @model_validator(mode="after")
    def _addressable(self) -> Self:
        if self.profile is MeterProfile.MQTT:
            if self.unit != 0:
                raise ValueError("unit must be 0: MQTT meters have no bus address")
            return self
        if self.unit == 0:
            raise ValueError("unit must be 1..247, the meter's bus address")
        if len(self.serial) != 12 or not self.serial.isdecimal():
            raise ValueError("serial must be 12 digits: a Modbus meter's number is 6 BCD bytes")
        return self


class GatewayConfig(Strict):
    """A gateway. Modbus ones listen on `port` (0: any free one); MQTT ones are `product/serial`."""

    id: str = Field(pattern=ID_PATTERN)
    protocol: Protocol
    port: int = Field(0, ge=0, le=65_535)
    transaction_delay_ms: int = Field(3, ge=0, le=10_000)
    product: str = ""
    serial: str = ""
    data_interval_ms: int = Field(1_000, ge=100, le=3_600_000)
    heart_interval_ms: int = Field(5_000, ge=100, le=3_600_000)

    @model_validator(mode="after")
    def _named_on_the_broker(self) -> Self:
        is_mqtt = self.protocol is Protocol.MQTT_ACREL
        for part in (self.product, self.serial):
            if is_mqtt != bool(part):
                raise ValueError("product and serial belong to mqtt-acrel gateways, both of them")
            if any(character in part for character in "/+#"):
                raise ValueError("product and serial are parts of a topic: no /, + or #")
        return self


class FleetConfig(Strict):
    """A site's devices. `zone` is the IANA zone of their naive local clocks."""

    zone: str
    load_on: bool = False
    gateways: tuple[GatewayConfig, ...] = Field(min_length=1)
    meters: tuple[MeterConfig, ...] = Field(min_length=1, max_length=METERS_MAX)

    @field_validator("zone")
    @classmethod
    def _zone_exists(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"there is no zone {zone!r}; write e.g. Asia/Shanghai") from None
        return zone

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse_repeats("gateway id", [gateway.id for gateway in self.gateways])
        refuse_repeats("meter id", [meter.id for meter in self.meters])
        refuse_repeats("meter serial", [meter.serial for meter in self.meters])
        protocols = {gateway.id: gateway.protocol for gateway in self.gateways}
        for meter in self.meters:
            if meter.gateway not in protocols:
                raise ValueError(f"meter {meter.id} names gateway {meter.gateway}, which is not")
            is_mqtt = meter.profile is MeterProfile.MQTT
            if is_mqtt != (protocols[meter.gateway] is Protocol.MQTT_ACREL):
                protocol = protocols[meter.gateway]
                raise ValueError(f"meter {meter.id}: {meter.profile} does not speak {protocol}")
        buses = [f"{meter.gateway}/{meter.unit}" for meter in self.meters if meter.unit != 0]
        refuse_repeats("bus address", buses)
        return self


def refuse_repeats(what: str, values: list[str]) -> None:
    """Raise ValueError where a value stands twice."""
    repeated = sorted(value for value, count in Counter(values).items() if count > 1)
    if repeated:
        raise ValueError(f"{what} used more than once: {', '.join(repeated)}")


def read_config(path: Path) -> FleetConfig:
    """Return the fleet that a file describes. Raises ConfigError."""
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
        return FleetConfig.model_validate(content)
    except OSError as unreadable:
        raise ConfigError(
            f"the fleet's configuration {path} cannot be read ({unreadable.strerror}); write one "
            "with `python -m tools.fleet.site` and name it in WATTVEND_FLEET_CONFIG"
        ) from unreadable
    except (yaml.YAMLError, UnicodeDecodeError) as broken:
        raise ConfigError(f"{path} is not YAML: {broken}") from broken
    except ValidationError as wrong:
        raise ConfigError(f"{path} is wrong:\n{explain(wrong)}") from wrong


def explain(wrong: ValidationError) -> str:
    """Return one line for each thing that is wrong, with where it stands."""
    return "\n".join(
        f"  {'.'.join(str(part) for part in error['loc']) or 'fleet'}: {error['msg']}"
        for error in wrong.errors()
    )
