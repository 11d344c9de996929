"""Device profiles: registers, fields, scales and relay commands of a meter type, as data.

schemas/profiles/<name>.yaml is the only place that knows an address or a field name;
services.common.runtime.profiles reads the files, profile_documents.py what they say. A multiplier,
or an exponent of ten, leads from the device's number to the platform's integer: Wh (thousandths of
the billing unit), mV, mA, W, thousandths.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final

from services.common.kernel.frames import RATES
from services.common.kernel.values import value_class

RATE_NAMES: Final = ("sharp", "peak", "flat", "valley", "deep_valley")
PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")

assert len(RATE_NAMES) == RATES


class Dialect(StrEnum):
    """Which codec speaks with the device."""

    MODBUS = "modbus"
    MQTT_ACREL = "mqtt-acrel"


class RelayCommand(StrEnum):
    """What a relay is commanded to be; "forced" overrides the meter's own arrears logic."""

    OPEN = "open"
    CLOSED_PREPAID = "closed_prepaid"
    CLOSED_FORCED = "closed_forced"


def relay_command(wanted: str, mode: str) -> RelayCommand:
    """Return the command of an intent: `wanted` open or closed, `mode` as relay-intent has it."""
    if wanted == "open":
        return RelayCommand.OPEN
    assert wanted == "closed", wanted
    return RelayCommand.CLOSED_FORCED if mode == "forced-on" else RelayCommand.CLOSED_PREPAID


@value_class
class RegisterNumber:
    """A number in Modbus registers, big-endian, high word first.

    `kind`: u16, i16, u32 or i32. The platform's integer is raw x `multiplier`.
    """

    address: int
    kind: str
    multiplier: int
    maximum_raw: int | None = None

    @property
    def size(self) -> int:
        """How many registers it takes."""
        return 2 if self.kind.endswith("32") else 1


@value_class
class RelayBits:
    """Where relays are read back: bit numbers (0 = lowest) of one register, L1 first."""

    address: int
    closed_bits: tuple[int, ...]


@value_class
class ClockBytes:
    """The device's naive local clock: one binary byte a part, from `at_byte` of the block."""

    at_byte: int
    layout: tuple[str, ...]
    century: int


@value_class
class LiveBlock:
    """The registers that one read turns into a whole reading."""

    address: int
    count: int
    register: RegisterNumber
    rates: tuple[RegisterNumber | None, ...]
    voltages: tuple[RegisterNumber, ...]
    currents: tuple[RegisterNumber, ...]
    power: RegisterNumber
    power_factor: RegisterNumber
    ratio_pt: RegisterNumber
    ratio_ct: RegisterNumber
    relay: RelayBits
    clock: ClockBytes


@value_class
class SerialBlock:
    """Where a meter tells its number: `count` registers of packed BCD, two digits a byte."""

    address: int
    count: int


@value_class
class RelayRegisters:
    """How a relay is commanded: the values written at `address` with function 0x10."""

    address: int
    values: Mapping[RelayCommand, tuple[int, ...]]


WRITE_REGISTERS: Final = 0x10
WRITE_PRIVATE: Final = 0x20
"""Acrel's own function, framed like the other."""


@value_class
class ClockRegisters:
    """How a clock is set: `count` registers written at `address`, with a `function` of WRITE_*.

    One binary byte a part of the naive local time, as of `century`; the bytes behind them are 0.
    """

    address: int
    count: int
    function: int
    layout: tuple[str, ...]
    century: int

    def words(self, local: datetime) -> tuple[int, ...]:
        """Return the registers that set the clock to `local`."""
        parts = {
            "year": local.year - self.century,
            "month": local.month,
            "day": local.day,
            "weekday": local.isoweekday() % 7,  # Sunday is 0
            "hour": local.hour,
            "minute": local.minute,
            "second": local.second,
        }
        octets = bytes(parts[name] for name in self.layout).ljust(2 * self.count, b"\0")
        return tuple(octets[at] << 8 | octets[at + 1] for at in range(0, len(octets), 2))


@value_class
class Rating:
    """What a meter is built for: the voltage of a phase, the highest current of each."""

    voltage_v: int
    current_max_a: int


@value_class
class ModbusProfile:
    """A meter that is polled. `phases`: the wired ones, 1..3. `rated`: None where nobody says.

    `clock`: None where nobody knows how it is set.
    """

    name: str
    phases: tuple[int, ...]
    register_is_primary: bool
    rated: Rating | None
    live: LiveBlock
    serial: SerialBlock
    relay: RelayRegisters
    clock: ClockRegisters | None

    @property
    def phase_mask(self) -> int:
        """Bits 0..2 = L1..L3 are wired."""
        return _mask(self.phases)

    @property
    def max_power_w(self) -> int | None:
        """The most that flows through the meter, secondary side; None where nobody says."""
        return _max_power_w(self.rated, self.phases)

    @property
    def register_max_milli(self) -> int | None:
        """The last thousandth that the register can count: one more, and it shows 0 again."""
        register = self.live.register
        if register.maximum_raw is None:
            return None
        return (register.maximum_raw + 1) * register.multiplier - 1


@value_class
class JsonNumber:
    """A JSON number. The platform's integer is the number x 10^`exponent`, decimals beyond cut.

    `maximum` and `step` in the platform's integers: its highest value, and what its last digit is.
    """

    field: str
    exponent: int
    maximum: int | None = None
    step: int = 1


@value_class
class MqttFields:
    """What the fields of a `data` message are called."""

    gateway_serial: str
    meter_serial: str
    time: str
    time_format: str
    status: str
    status_missing: str
    register: JsonNumber
    voltages: tuple[JsonNumber, ...]
    currents: tuple[JsonNumber, ...]
    power: JsonNumber
    power_factor: JsonNumber
    ratio_pt: str
    ratio_ct: str
    relay: str
    relay_closed: int
    relay_open: int


@value_class
class MqttControl:
    """How a relay is commanded over MQTT, and how the device answers.

    `payload`: JSON fields; "{name}" stands for a value: see MqttProfile.control_payload.
    """

    command: str
    payload: Mapping[str, str]
    values: Mapping[RelayCommand, int]
    expire_format: str
    reply_id: str
    reply_result: str
    reply_ok: int


@value_class
class MqttProfile:
    """A meter that pushes JSON over MQTT. Topics hold {product}, {command} and {serial}."""

    name: str
    phases: tuple[int, ...]
    register_is_primary: bool
    rated: Rating | None
    topic_up: str
    topic_down: str
    fields: MqttFields
    control: MqttControl

    @property
    def phase_mask(self) -> int:
        """Bits 0..2 = L1..L3 are wired."""
        return _mask(self.phases)

    @property
    def max_power_w(self) -> int | None:
        """The most that flows through the meter, secondary side; None where nobody says."""
        return _max_power_w(self.rated, self.phases)

    @property
    def register_max_milli(self) -> int | None:
        """The last thousandth that the register can count: one more, and it shows 0 again."""
        register = self.fields.register
        return None if register.maximum is None else register.maximum + register.step - 1

    def down_topic(self, product: str, command: str, serial: str) -> str:
        """Return the topic of a message to a gateway."""
        return self.topic_down.format(product=product, command=command, serial=serial)

    def up_filter(self) -> str:
        """Return the subscription that matches every message of every gateway."""
        return self.topic_up.format(product="+", command="+", serial="+")

    def control_payload(
        self,
        command: RelayCommand,
        *,
        request_id: str,
        gateway_serial: str,
        meter_serial: str,
        expire: str | None,
    ) -> dict[str, str | int]:
        """Return the JSON object that commands the relay.

        `expire`: UTC in `control.expire_format`; None leaves the field out: it never expires.
        """
        values: dict[str, str | int | None] = {
            "request_id": request_id,
            "gateway_serial": gateway_serial,
            "meter_serial": meter_serial,
            "relay": self.control.values[command],
            "expire": expire,
        }
        filled: dict[str, str | int] = {}
        for field, template in self.control.payload.items():
            placeholder = PLACEHOLDER.fullmatch(template)
            value = values[placeholder[1]] if placeholder else template
            if value is not None:
                filled[field] = value
        return filled


Profile = ModbusProfile | MqttProfile


def _mask(phases: Sequence[int]) -> int:
    return sum(1 << (phase - 1) for phase in phases)


def _max_power_w(rated: Rating | None, phases: Sequence[int]) -> int | None:
    """Three phases at their own voltage are the square root of three times that between them."""
    return None if rated is None else rated.voltage_v * rated.current_max_a * len(phases)
