"""Profiles from documents: what schemas/profiles/<name>.yaml says, checked entry by entry.

Everything is checked here, so that codecs can trust what they are given. Each entry also says how
far it is believed (`confidence`), for a person.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from services.common.kernel.errors import InvalidInput
from services.common.kernel.profiles import (
    PLACEHOLDER,
    RATE_NAMES,
    WRITE_PRIVATE,
    WRITE_REGISTERS,
    ClockBytes,
    ClockRegisters,
    Dialect,
    JsonNumber,
    LiveBlock,
    ModbusProfile,
    MqttControl,
    MqttFields,
    MqttProfile,
    Profile,
    Rating,
    RegisterNumber,
    RelayBits,
    RelayCommand,
    RelayRegisters,
    SerialBlock,
)
from services.common.kernel.reasons import Reason

PHASES_MAX = 3
REGISTER_COUNT_MAX = 125
"""What one Modbus read may carry."""
FIGURE_MAX = 2**31
CLOCK_PARTS: Final = ("year", "month", "day", "weekday", "hour", "minute", "second")
CONFIDENCES: Final = ("2+", "1", "lab", "gk")
_CONTROL_VALUES = frozenset({"request_id", "gateway_serial", "meter_serial", "relay", "expire"})


def parse_profile(raw: object) -> Profile:
    """Return the profile that a YAML document says.

    Raises InvalidInput naming the entry (`live.register.at`) and what it must be.
    """
    top = _Node("profile", raw)
    name = top.text("name")
    top.path = name
    dialect = top.choice("dialect", tuple(Dialect))
    top.text("description")
    top.sequence("sources")
    phases = tuple(top.integers("phases", 1, PHASES_MAX))
    if list(phases) != sorted(set(phases)) or not phases:
        raise top.wrong("phases", "one to three different phases, ascending", list(phases))
    is_primary = top.boolean("register_is_primary")
    rated = None if top.get("rated", None) is None else _rating(top.child("rated"))
    profile: Profile
    if dialect == Dialect.MODBUS:
        live = _live(top.child("live"), len(phases))
        serial = _serial(top.child("serial"))
        relay = _relay_registers(top.child("relay_commands"))
        is_set = top.get("clock_command", None) is not None
        clock = _clock_registers(top.child("clock_command")) if is_set else None
        profile = ModbusProfile(name, phases, is_primary, rated, live, serial, relay, clock)
    else:
        topics = top.child("topics")
        up, down = (_topic(topics, key) for key in ("up", "down"))
        topics.done()
        fields = _mqtt_fields(top.child("fields"))
        control = _mqtt_control(top.child("control"))
        profile = MqttProfile(name, phases, is_primary, rated, up, down, fields, control)
    top.done()
    return profile


class _Node:
    """A mapping of the document that knows its path and which of its keys were read."""

    def __init__(self, path: str, raw: object) -> None:
        self.path = path
        if not isinstance(raw, Mapping):
            raise InvalidInput(
                Reason.INVALID_ARGUMENT, f"{path} must be a mapping, is {raw!r}", field=path
            )
        self._raw = raw
        self._read: set[str] = set()

    def wrong(self, key: str, must: str, value: object) -> InvalidInput:
        where = f"{self.path}.{key}"
        return InvalidInput(
            Reason.INVALID_ARGUMENT, f"{where} must be {must}, is {value!r}", field=where
        )

    def get(self, key: str, default: object = ...) -> Any:
        self._read.add(key)
        if key not in self._raw and default is ...:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"{self.path}.{key} is missing; add it to the profile",
                field=f"{self.path}.{key}",
            )
        return self._raw.get(key, default)

    def child(self, key: str) -> "_Node":
        return _Node(f"{self.path}.{key}", self.get(key))

    def text(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str) or not value:
            raise self.wrong(key, "a text", value)
        return value

    def choice(self, key: str, choices: Sequence[str]) -> str:
        # YAML reads `1` as a number; a confidence is a label.
        value = str(self.get(key))
        if value not in choices:
            raise self.wrong(key, f"one of {', '.join(choices)}", value)
        return value

    def confidence(self) -> None:
        """Read how far the entry is believed; nothing depends on it but a person."""
        self.choice("confidence", CONFIDENCES)

    def boolean(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false", value)
        return value

    def integer(self, key: str, least: int, most: int) -> int:
        return self._bounded(key, self.get(key), least, most)

    def _bounded(self, key: str, value: object, least: int, most: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.wrong(key, f"a whole number {least}..{most}", value)
        return value

    def sequence(self, key: str) -> Sequence[Any]:
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, "a list", value)
        return value

    def integers(self, key: str, least: int, most: int) -> list[int]:
        return [self._bounded(key, value, least, most) for value in self.sequence(key)]

    def texts(self, key: str) -> tuple[str, ...]:
        values = self.sequence(key)
        if not all(isinstance(value, str) and value for value in values):
            raise self.wrong(key, "a list of texts", values)
        return tuple(values)

    def done(self) -> None:
        if unknown := set(self._raw) - self._read:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"{self.path} has unknown entries {sorted(map(str, unknown))}; "
                "remove them or correct their spelling",
                field=self.path,
            )


def _rating(node: _Node) -> Rating:
    rated = Rating(
        node.integer("voltage_v", 1, 1_000_000), node.integer("current_max_a", 1, 100_000)
    )
    node.confidence()
    node.done()
    return rated


def _live(node: _Node, phases: int) -> LiveBlock:
    address = node.integer("address", 0, 0xFFFF)
    count = node.integer("count", 1, REGISTER_COUNT_MAX)

    def number(at: _Node) -> RegisterNumber:
        parsed = _register_number(at)
        if not address <= parsed.address <= address + count - parsed.size:
            raise at.wrong("at", f"inside the block {address:#x} x {count}", hex(parsed.address))
        return parsed

    def figure(at: _Node) -> RegisterNumber:
        """Return a number of which a frame's column holds 32 bits."""
        parsed = number(at)
        bits = 16 * parsed.size - parsed.kind.startswith("i")
        if parsed.multiplier << bits > FIGURE_MAX:
            must = f"small enough that 2^31 holds what {parsed.kind} can say"
            raise at.wrong("multiplier", must, parsed.multiplier)
        return parsed

    def numbers(key: str) -> tuple[RegisterNumber, ...]:
        entries = node.sequence(key)
        if not phases <= len(entries) <= PHASES_MAX:
            raise node.wrong(key, f"a list of {phases}..{PHASES_MAX}, L1 first", entries)
        parsed = [figure(_Node(f"{node.path}.{key}[{i}]", raw)) for i, raw in enumerate(entries)]
        return tuple(parsed)

    rates = node.child("rates")
    block = LiveBlock(
        address,
        count,
        number(node.child("register")),
        tuple(
            number(rates.child(name)) if rates.get(name, None) is not None else None
            for name in RATE_NAMES
        ),
        numbers("voltages"),
        numbers("currents"),
        number(node.child("power")),
        figure(node.child("power_factor")),
        number(node.child("ratio_pt")),
        number(node.child("ratio_ct")),
        _relay_bits(node.child("relay"), address, count, phases),
        _clock(node.child("clock"), count),
    )
    rates.done()
    node.done()
    return block


def _register_number(node: _Node) -> RegisterNumber:
    kind = node.choice("type", ("u16", "i16", "u32", "i32"))
    parsed = RegisterNumber(
        node.integer("at", 0, 0xFFFF),
        kind,
        node.integer("multiplier", 1, 1_000_000),
        None if node.get("maximum_raw", None) is None else node.integer("maximum_raw", 1, 2**32),
    )
    node.confidence()
    node.done()
    return parsed


def _relay_bits(node: _Node, address: int, count: int, phases: int) -> RelayBits:
    at = node.integer("at", address, address + count - 1)
    bits = node.integers("closed_bits", 0, 15)
    if not phases <= len(bits) <= PHASES_MAX:
        raise node.wrong("closed_bits", f"a list of {phases}..{PHASES_MAX} bits, L1 first", bits)
    node.confidence()
    node.done()
    return RelayBits(at, tuple(bits))


def _clock_layout(node: _Node) -> tuple[str, ...]:
    layout = node.texts("layout")
    if set(layout) | {"weekday"} != set(CLOCK_PARTS) or len(layout) != len(set(layout)):
        raise node.wrong("layout", f"{', '.join(CLOCK_PARTS)} (weekday may be absent)", layout)
    return layout


def _clock_registers(node: _Node) -> ClockRegisters:
    layout = _clock_layout(node)
    function = node.integer("function", WRITE_REGISTERS, WRITE_PRIVATE)
    if function not in (WRITE_REGISTERS, WRITE_PRIVATE):
        raise node.wrong("function", f"{WRITE_REGISTERS:#x} or {WRITE_PRIVATE:#x}", hex(function))
    parsed = ClockRegisters(
        node.integer("address", 0, 0xFFFF),
        node.integer("count", (len(layout) + 1) // 2, REGISTER_COUNT_MAX),
        function,
        layout,
        node.integer("century", 1900, 2100),
    )
    node.confidence()
    node.done()
    return parsed


def _clock(node: _Node, count: int) -> ClockBytes:
    layout = _clock_layout(node)
    parsed = ClockBytes(
        node.integer("at_byte", 0, 2 * count - len(layout)),
        layout,
        node.integer("century", 1900, 2100),
    )
    node.confidence()
    node.done()
    return parsed


def _serial(node: _Node) -> SerialBlock:
    node.choice("encoding", ("bcd",))
    parsed = SerialBlock(node.integer("address", 0, 0xFFFF), node.integer("count", 1, 5))
    node.confidence()
    node.done()
    return parsed


def _relay_registers(node: _Node) -> RelayRegisters:
    values = {command: tuple(node.integers(command.value, 0, 0xFFFF)) for command in RelayCommand}
    if len({len(words) for words in values.values()}) != 1 or not values[RelayCommand.OPEN]:
        raise node.wrong("open", "as long as the other commands' values", values)
    if len(set(values.values())) != len(values):
        raise node.wrong("open", "different for each command", values)
    parsed = RelayRegisters(node.integer("address", 0, 0xFFFF), values)
    node.confidence()
    node.done()
    return parsed


def _topic(node: _Node, key: str) -> str:
    topic = node.text(key)
    if sorted(PLACEHOLDER.findall(topic)) != ["command", "product", "serial"]:
        raise node.wrong(key, "a topic with {product}, {command} and {serial} once each", topic)
    return topic


def _mqtt_fields(node: _Node) -> MqttFields:
    time, status, relay = (node.child(key) for key in ("time", "status", "relay"))
    register = node.child("register")
    parsed = MqttFields(
        node.text("gateway_serial"),
        node.text("meter_serial"),
        time.text("field"),
        time.text("format"),
        status.text("field"),
        status.text("missing"),
        JsonNumber(
            register.text("field"),
            register.integer("exponent", -9, 9),
            register.integer("maximum_milli", 1, 10**15),
            register.integer("step_milli", 1, 1_000_000),
        ),
        _json_numbers(node.child("voltages")),
        _json_numbers(node.child("currents")),
        _json_number(node.child("power")),
        _json_number(node.child("power_factor")),
        node.text("ratio_pt"),
        node.text("ratio_ct"),
        relay.text("field"),
        relay.integer("closed", 0, 0xFFFF),
        relay.integer("open", 0, 0xFFFF),
    )
    if parsed.relay_closed == parsed.relay_open:
        raise relay.wrong("open", "another value than closed", parsed.relay_open)
    for child in (time, status, relay, register):
        child.confidence()
        child.done()
    node.done()
    return parsed


def _json_number(node: _Node) -> JsonNumber:
    parsed = JsonNumber(node.text("field"), node.integer("exponent", -9, 9))
    node.confidence()
    node.done()
    return parsed


def _json_numbers(node: _Node) -> tuple[JsonNumber, ...]:
    names = node.texts("fields")
    exponent = node.integer("exponent", -9, 9)
    if not 1 <= len(names) <= PHASES_MAX:
        raise node.wrong("fields", f"1..{PHASES_MAX} names, L1 first", names)
    node.confidence()
    node.done()
    return tuple(JsonNumber(name, exponent) for name in names)


def _mqtt_control(node: _Node) -> MqttControl:
    payload, reply = node.child("payload"), node.child("reply")
    template = {str(key): payload.text(str(key)) for key in node.get("payload")}
    for field, value in template.items():
        placeholder = PLACEHOLDER.fullmatch(value)
        if "{" in value and (placeholder is None or placeholder[1] not in _CONTROL_VALUES):
            known = ", ".join(f"{{{name}}}" for name in sorted(_CONTROL_VALUES))
            raise payload.wrong(field, f"a text, or one of {known} alone", value)
    parsed = MqttControl(
        node.text("command"),
        template,
        {command: node.integer(command.value, 0, 0xFFFF) for command in RelayCommand},
        node.text("expire_format"),
        reply.text("id"),
        reply.text("result"),
        reply.integer("ok", 0, 0xFFFF),
    )
    node.confidence()
    for child in (payload, reply, node):
        child.done()
    return parsed
