"""Acrel's JSON over MQTT: topic and payload → typed messages, and the answers. Sans-IO."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Any

from services.common.kernel import frames
from services.common.kernel.ids import SERIAL_SIZE_MAX
from services.common.kernel.profiles import JsonNumber, MqttProfile
from services.common.kernel.values import value_class
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.reading import DeviceReading, Phases

PAYLOAD_SIZE_MAX = 16_384
"""A `data` message has some 600 bytes."""
MAGNITUDE_MAX = 18
"""Decimal digits before the point that a figure may have after scaling: what int64 holds."""
RATIO_MAX = 2**31 - 1
INT32_MAX = 2**31 - 1
TEXT_SIZE_MAX = 128

_SERIAL = re.compile(rf"[!-~]{{1,{SERIAL_SIZE_MAX}}}")
_TEXT = re.compile(rf"[ -~]{{1,{TEXT_SIZE_MAX}}}")


@value_class
class From:
    """Which session a message came from. `address` = product/serial, as gateway-fact has it."""

    product: str
    serial: str

    @property
    def address(self) -> str:
        """The gateway's address on the broker."""
        return f"{self.product}/{self.serial}"


@value_class
class Login:
    """A gateway says it is there; it waits for login_answer()."""

    source: From


@value_class
class TimeRequest:
    """A gateway asks for the time: time_answer()."""

    source: From


@value_class
class Heart:
    """A gateway is alive."""

    source: From


@value_class
class Data:
    """A meter behind a gateway. `body`: the JSON object, for decode_data with the meter's profile.

    `is_missing`: the gateway is alive but the meter does not answer it.
    """

    source: From
    meter_serial: str
    is_missing: bool
    body: Mapping[str, Any]


@value_class
class ControlReply:
    """A meter's answer to a control message of ours: `request_id` was its msgid."""

    source: From
    meter_serial: str
    request_id: str
    is_ok: bool


@value_class
class Other:
    """A command of the dialect that is not used here."""

    source: From
    command: str


Message = Login | TimeRequest | Heart | Data | ControlReply | Other


def parse_message(profile: MqttProfile, topic: str, payload: bytes) -> Message:
    """Return the message of an upward topic. Raises Unusable, and nothing else."""
    source, command = parse_topic(profile, topic)
    body = _parse_payload(payload)
    match command:
        case "login":
            return Login(source)
        case "time":
            return TimeRequest(source)
        case "heart":
            return Heart(source)
        case "data":
            _check_gateway(profile, source, body)
            meter_serial = _serial(body, profile.fields.meter_serial)
            status = body.get(profile.fields.status)
            return Data(source, meter_serial, status == profile.fields.status_missing, body)
        case profile.control.command:
            _check_gateway(profile, source, body)
            return ControlReply(
                source,
                _serial(body, profile.fields.meter_serial),
                _text(body, profile.control.reply_id),
                _value(body, profile.control.reply_result) == profile.control.reply_ok,
            )
        case _:
            return Other(source, command[:TEXT_SIZE_MAX])


def decode_data(profile: MqttProfile, body: Mapping[str, Any]) -> DeviceReading:
    """Return the reading of a `data` message that is not missing. Raises Unusable."""
    names = profile.fields
    register_milli = _scaled(body, names.register)
    if register_milli is None:
        raise _missing(names.register.field)
    if register_milli < 0:
        raise Unusable(
            Fault.REGISTER_NEGATIVE,
            f"{names.register.field} is {register_milli} thousandths",
            field=names.register.field,
        )
    if names.register.maximum is not None and register_milli > names.register.maximum:
        raise Unusable(
            Fault.REGISTER_ABOVE_MAXIMUM,
            f"{names.register.field} is {register_milli} thousandths, more than the meter counts",
            field=names.register.field,
        )
    power_w = _scaled(body, names.power)
    return DeviceReading(
        _clock(profile, body),
        register_milli,
        (frames.ABSENT_REGISTER,) * frames.RATES,
        _ratio(profile, body),
        _closed_mask(profile, body),
        _phases(body, names.voltages),
        _phases(body, names.currents),
        frames.ABSENT_POWER if power_w is None else power_w,
        _int32(body, names.power_factor, frames.ABSENT_POWER_FACTOR),
    )


def login_answer() -> bytes:
    """Return the payload that answers a login."""
    return json.dumps({"type": "login", "res": 1}).encode()


def time_answer(profile: MqttProfile, local: datetime) -> bytes:
    """Return the payload that sets a gateway's clock to `local`, the time of its site."""
    shown = local.strftime(profile.fields.time_format)
    return json.dumps({"type": "time", profile.fields.time: shown}).encode()


@cache
def _topic_pattern(topic_up: str) -> re.Pattern[str]:
    pattern = re.escape(topic_up)
    for name in ("product", "command", "serial"):
        pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>[^/]+)")
    return re.compile(pattern)


def parse_topic(profile: MqttProfile, topic: str) -> tuple[From, str]:
    """Return whose topic it is and its command. Raises Unusable."""
    found = _topic_pattern(profile.topic_up).fullmatch(topic)
    if found is None:
        raise Unusable(Fault.MALFORMED, f"topic {topic[:TEXT_SIZE_MAX]!r} is not of this dialect")
    serial, product = found["serial"], found["product"]
    if not _SERIAL.fullmatch(serial) or not _TEXT.fullmatch(product):
        raise Unusable(Fault.MALFORMED, f"topic {topic[:TEXT_SIZE_MAX]!r} names no gateway")
    return From(product, serial), found["command"]


def _parse_payload(payload: bytes) -> Mapping[str, Any]:
    if len(payload) > PAYLOAD_SIZE_MAX:
        raise Unusable(
            Fault.TOO_LARGE, f"a payload of {len(payload)} bytes; {PAYLOAD_SIZE_MAX} may be"
        )
    try:
        body = json.loads(payload.decode("utf-8"), parse_float=Decimal, parse_constant=_no_constant)
    except (ValueError, ArithmeticError, RecursionError) as odd:
        raise Unusable(Fault.MALFORMED, f"the payload is not JSON: {str(odd)[:200]}") from odd
    if not isinstance(body, dict):
        raise Unusable(Fault.MALFORMED, f"the payload is a JSON {type(body).__name__}, no object")
    return body


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _missing(field: str) -> Unusable:
    return Unusable(Fault.FIELD_MISSING, f"{field} is missing", field=field)


def _wrong(field: str, value: object, must: str) -> Unusable:
    # The text of a deeply nested value, or of a huge integer, may itself fail.
    is_short = isinstance(value, str | Decimal)
    shown = repr(value)[:TEXT_SIZE_MAX] if is_short else f"a JSON {type(value).__name__}"
    return Unusable(Fault.FIELD_WRONG, f"{field} is {shown}; it must be {must}", field=field)


def _value(body: Mapping[str, Any], field: str) -> Any:
    value = body.get(field)
    if value is None:
        raise _missing(field)
    return value


def _text(body: Mapping[str, Any], field: str) -> str:
    value = _value(body, field)
    if not isinstance(value, str) or not _TEXT.fullmatch(value):
        raise _wrong(field, value, f"a text of 1..{TEXT_SIZE_MAX} visible ASCII characters")
    return value


def _serial(body: Mapping[str, Any], field: str) -> str:
    value = _value(body, field)
    if not isinstance(value, str) or not _SERIAL.fullmatch(value):
        raise _wrong(field, value, f"1..{SERIAL_SIZE_MAX} visible ASCII characters")
    return value


def _check_gateway(profile: MqttProfile, source: From, body: Mapping[str, Any]) -> None:
    told = _serial(body, profile.fields.gateway_serial)
    if told != source.serial:
        raise Unusable(
            Fault.WRONG_GATEWAY,
            f"gateway {told} speaks on the topic of {source.serial}",
            field=profile.fields.gateway_serial,
        )


def _scaled(body: Mapping[str, Any], number: JsonNumber) -> int | None:
    """Return a number x 10^exponent, decimals beyond cut; None where it is absent.

    By whole digits, not by decimal arithmetic, which would round at its context's precision, and
    would build a number of a billion digits for `1e999999999`.
    """
    value = body.get(number.field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise _wrong(number.field, value, "a number")
    exact = Decimal(value)
    if not exact:
        return 0
    if exact.adjusted() + number.exponent >= MAGNITUDE_MAX:
        raise _wrong(number.field, value, f"below 10^{MAGNITUDE_MAX - number.exponent}")
    sign, digits, exponent = exact.as_tuple()
    assert isinstance(exponent, int), "infinities are no JSON"
    shift = exponent + number.exponent
    # What lies after the point goes: cut the text of the digits rather than divide by a power.
    kept = "".join(map(str, digits)) + "0" * max(shift, 0)
    kept = kept[: len(digits) + shift] if -len(digits) < shift < 0 else kept
    magnitude = 0 if shift <= -len(digits) else int(kept)
    return -magnitude if sign else magnitude


def _int32(body: Mapping[str, Any], number: JsonNumber, absent: int) -> int:
    value = _scaled(body, number)
    if value is None:
        return absent
    if not -INT32_MAX <= value <= INT32_MAX:
        raise _wrong(number.field, body[number.field], "a figure that a meter can show")
    return value


def _phases(body: Mapping[str, Any], numbers: tuple[JsonNumber, ...]) -> Phases:
    values = [frames.ABSENT_ELECTRICAL] * 3
    for index, number in enumerate(numbers):
        values[index] = _int32(body, number, frames.ABSENT_ELECTRICAL)
        if values[index] < frames.ABSENT_ELECTRICAL:
            raise _wrong(number.field, body[number.field], "zero or more")
    return values[0], values[1], values[2]


def _ratio(profile: MqttProfile, body: Mapping[str, Any]) -> int:
    """Return PT x CT; a ratio that is not told is 1."""
    if profile.register_is_primary:
        return 1
    ratio = 1
    for field in (profile.fields.ratio_pt, profile.fields.ratio_ct):
        value = body.get(field, 1)
        exact = Decimal(value) if isinstance(value, int | Decimal) else Decimal(0)
        if isinstance(value, bool) or not 1 <= exact <= RATIO_MAX or exact != int(exact):
            raise Unusable(Fault.RATIO_IMPOSSIBLE, f"{field} is no ratio", field=field)
        ratio *= int(exact)
    if ratio > RATIO_MAX:
        raise Unusable(Fault.RATIO_IMPOSSIBLE, f"PT x CT is {ratio}", field="ratio")
    return ratio


def _closed_mask(profile: MqttProfile, body: Mapping[str, Any]) -> int | None:
    names = profile.fields
    value = body.get(names.relay)
    if value is None:
        return None
    if not isinstance(value, bool) and value == names.relay_closed:
        return profile.phase_mask
    if not isinstance(value, bool) and value == names.relay_open:
        return 0
    raise _wrong(names.relay, value, f"{names.relay_closed} (closed) or {names.relay_open} (open)")


def _clock(profile: MqttProfile, body: Mapping[str, Any]) -> datetime:
    text = _text(body, profile.fields.time)
    try:
        clock = datetime.strptime(text, profile.fields.time_format)  # noqa: DTZ007 - naive by nature
        is_exact = clock.strftime(profile.fields.time_format) == text
    except ValueError:
        is_exact = False
    if not is_exact:
        raise Unusable(
            Fault.CLOCK_IMPOSSIBLE,
            f"{profile.fields.time} is {text!r}, no {profile.fields.time_format}; set the clock",
            field=profile.fields.time,
        )
    return clock
