"""Modbus registers of a profile → a device's reading. Sans-IO: words in, values out."""

from collections.abc import Sequence
from datetime import datetime

from services.common.kernel import frames
from services.common.kernel.profiles import ModbusProfile, RegisterNumber
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.reading import DeviceReading, Phases

RATIO_MAX = 2**31 - 1


def decode_live(profile: ModbusProfile, words: Sequence[int]) -> DeviceReading:
    """Return the reading of a live block: `live.count` words, 0..0xFFFF each.

    Raises Unusable where the block has another size or says something impossible.
    """
    live = profile.live
    if len(words) != live.count or not all(0 <= word <= 0xFFFF for word in words):
        raise Unusable(Fault.MALFORMED, f"a live block of {len(words)} words, not {live.count}")

    def number(at: RegisterNumber) -> int:
        return _raw(at, words, live.address) * at.multiplier

    def phases(numbers: Sequence[RegisterNumber]) -> Phases:
        values = [frames.ABSENT_ELECTRICAL] * 3
        for phase in profile.phases:
            values[phase - 1] = number(numbers[phase - 1])
        return values[0], values[1], values[2]

    raw = _raw(live.register, words, live.address)
    if raw < 0:
        raise Unusable(Fault.REGISTER_NEGATIVE, f"the register says {raw}", field="register")
    if live.register.maximum_raw is not None and raw > live.register.maximum_raw:
        raise Unusable(
            Fault.REGISTER_ABOVE_MAXIMUM,
            f"the register says {raw}, the meter counts to {live.register.maximum_raw}",
            field="register",
        )
    return DeviceReading(
        _clock(profile, words),
        number(live.register),
        tuple(frames.ABSENT_REGISTER if rate is None else number(rate) for rate in live.rates),
        _ratio(profile, number(live.ratio_pt), number(live.ratio_ct)),
        _closed_mask(profile, words),
        phases(live.voltages),
        phases(live.currents),
        number(live.power),
        number(live.power_factor),
    )


def decode_serial(profile: ModbusProfile, words: Sequence[int]) -> str:
    """Return a meter's number: four BCD digits a word. Raises Unusable where it is none."""
    if len(words) != profile.serial.count or not all(0 <= word <= 0xFFFF for word in words):
        raise Unusable(
            Fault.MALFORMED, f"a serial of {len(words)} words, not {profile.serial.count}"
        )
    digits = "".join(f"{word:04x}" for word in words)
    if not digits.isdecimal():
        raise Unusable(
            Fault.MALFORMED, f"the serial's bytes {digits} are not BCD digits", field="serial"
        )
    return digits


def is_serial_of(profile: ModbusProfile, told: str, registered: str) -> bool:
    """Say whether the number a meter tells is the registered one, which may lack leading zeros."""
    return told == registered.zfill(profile.serial.count * 4)


def _raw(at: RegisterNumber, words: Sequence[int], base: int) -> int:
    index = at.address - base
    value = words[index]
    if at.size == 2:
        value = value << 16 | words[index + 1]
    bits = 16 * at.size
    is_negative = at.kind.startswith("i") and value >> (bits - 1)
    return value - (1 << bits) if is_negative else value


def _ratio(profile: ModbusProfile, pt: int, ct: int) -> int:
    if profile.register_is_primary:
        return 1
    if not 1 <= pt * ct <= RATIO_MAX or pt < 1:
        raise Unusable(
            Fault.RATIO_IMPOSSIBLE, f"PT {pt} x CT {ct} is no ratio; set the meter's", field="ratio"
        )
    return pt * ct


def _closed_mask(profile: ModbusProfile, words: Sequence[int]) -> int:
    relay = profile.live.relay
    word = words[relay.address - profile.live.address]
    return sum(1 << (p - 1) for p in profile.phases if word >> relay.closed_bits[p - 1] & 1)


def _clock(profile: ModbusProfile, words: Sequence[int]) -> datetime:
    clock = profile.live.clock
    octets = b"".join(word.to_bytes(2, "big") for word in words)
    parts = dict(zip(clock.layout, octets[clock.at_byte :], strict=False))
    parts.pop("weekday", None)
    try:
        return datetime(  # noqa: DTZ001 - the device's clock has no zone; the site's comes later
            clock.century + parts["year"],
            parts["month"],
            parts["day"],
            parts["hour"],
            parts["minute"],
            parts["second"],
        )
    except ValueError as odd:
        raise Unusable(
            Fault.CLOCK_IMPOSSIBLE, f"the clock says {parts}: {odd}; set it", field="clock"
        ) from odd
