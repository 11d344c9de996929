"""The register map of DDSY1352 and DTSY1352 (docs/protocols.md), packed by hand. Pure.

Big-endian words, the high word first. Blocks that can be read:
0x0000 quick energies; 0x0037 PT and CT; 0x0043 meter number and, behind it, the factory block with
the forced control at 0x0057; 0x0200 the live block.
"""

import struct
from datetime import datetime

from tools.fleet.config import MeterProfile
from tools.fleet.meter import Forced, Position, Snapshot

ENERGIES_AT, ENERGIES_COUNT = 0x0000, 12
RATIOS_AT, RATIOS_COUNT = 0x0037, 2
NUMBER_AT, NUMBER_COUNT = 0x0043, 3
FACTORY_AT, FACTORY_END = 0x0043, 0x0062
FORCED_AT, FORCED_COUNT = 0x0057, 2
LIVE_AT, LIVE_COUNT = 0x0200, 48
LIVE_TOTAL_AT = 0x0215
CLOCK_AT, CLOCK_COUNT = 0x0354, 5

DEVICE_TYPES = {MeterProfile.DDSY1352: 7, MeterProfile.DTSY1352: 5}
FORCED_PAIRS = {Forced.OPEN: (1, 1), Forced.CLOSED: (1, 0), Forced.PREPAID: (0, 0)}
FORCED_OF_PAIR = {pair: forced for forced, pair in FORCED_PAIRS.items()}
POWER_FACTOR_MILLI = 980
REACTIVE_MILLI = 203  # tan(arccos 0.98)


def read(snapshot: Snapshot, address: int, count: int) -> bytes | None:
    """Return `count` registers from `address`, or None where a register is not in the map."""
    end = address + count
    blocks = (
        (ENERGIES_AT, ENERGIES_AT + ENERGIES_COUNT, energies),
        (RATIOS_AT, RATIOS_AT + RATIOS_COUNT, ratios),
        (FACTORY_AT, FACTORY_END, factory),
        (LIVE_AT, LIVE_AT + LIVE_COUNT, live),
    )
    for block_at, block_end, pack in blocks:
        if block_at <= address and end <= block_end:
            block = pack(snapshot)
            assert len(block) == (block_end - block_at) * 2
            return block[(address - block_at) * 2 : (end - block_at) * 2]
    return None


def shows_energy(address: int, count: int) -> bool:
    """Say whether these registers hold the total energy: whether reading them is a reading."""
    return address == ENERGIES_AT or address <= LIVE_TOTAL_AT < address + count


def shows_serial(address: int, count: int) -> bool:
    """Say whether these registers hold the meter number."""
    return address <= NUMBER_AT < address + count


def energies(meter: Snapshot) -> bytes:
    # Total, sharp, peak, flat, valley, forward total.
    return struct.pack(">6I", meter.register_lsb, *meter.rates_lsb, meter.register_lsb)


def ratios(meter: Snapshot) -> bytes:
    return struct.pack(">2H", meter.pt, meter.ct)


def factory(meter: Snapshot) -> bytes:
    block = bytearray((FACTORY_END - FACTORY_AT) * 2)
    block[: NUMBER_COUNT * 2] = bytes.fromhex(meter.serial)
    struct.pack_into(">2H", block, (FORCED_AT - FACTORY_AT) * 2, *FORCED_PAIRS[meter.forced])
    return bytes(block)


def live(meter: Snapshot) -> bytes:
    """Return the 96 bytes that the meter also uploads by itself."""
    wired = [phase < meter.phases for phase in range(3)]
    power_w = meter.power_uw // 1_000_000
    phase_w = power_w // meter.phases
    # P = U x I x PF, for I in 0.01 A: W x 100 / (dV / 10 x PF / 1000).
    phase_ca = phase_w * 1_000_000 // (meter.voltage_dv * POWER_FACTOR_MILLI)
    relay, fee, power_control, forced_time = status(meter)
    block = struct.pack(
        ">H 3H 3H 4h 4h 4h 2H 5I i 3H 4B I",
        DEVICE_TYPES[meter.profile],
        *(meter.voltage_dv * on for on in wired),
        *(u16(phase_ca) * on for on in wired),
        *(i16(phase_w) * on for on in wired),
        i16(power_w),
        *(i16(phase_w * REACTIVE_MILLI // 1_000) * on for on in wired),
        i16(power_w * REACTIVE_MILLI // 1_000),
        *(POWER_FACTOR_MILLI * on for on in wired),
        POWER_FACTOR_MILLI,
        meter.pt,
        meter.ct,
        meter.register_lsb,
        *meter.rates_lsb,
        0,  # remaining amount: the platform keeps the balance
        0,  # purchase counter
        0,  # load-limit trips
        0,  # load-limit trips allowed
        relay,
        fee,
        power_control,
        forced_time,
        meter.base_lsb,
    )
    assert len(block) == 80
    demand = struct.pack(">H4B", u16(power_w), 0, 0, 1, 1)  # max demand, mm hh DD MM
    return (block + clock(meter.local_time) + demand).ljust(LIVE_COUNT * 2, b"\x00")


def status(meter: Snapshot) -> tuple[int, int, int, int]:
    """Return the four status bytes of 0x0224 and 0x0225."""
    phases = (1 << meter.phases) - 1
    relay = phases << 5 if meter.position is Position.CLOSED else 0
    forced_enabled, forced_output = FORCED_PAIRS[meter.forced]
    forced = (phases if forced_output else 0) | forced_enabled << 3
    return relay, 0, 0, forced


def clock(local: datetime) -> bytes:
    """Return YY MM DD WW hh mm ss, binary; Sunday is 0."""
    day = (local.year % 100, local.month, local.day, local.isoweekday() % 7)
    return bytes((*day, local.hour, local.minute, local.second))


def clock_of(values: bytes) -> datetime | None:
    """Return what ss mm hh WW DD MM YY say; None where that is no time."""
    second, minute, hour, _, day, month, year = values[:7]
    try:
        return datetime(2000 + year, month, day, hour, minute, second)  # noqa: DTZ001 - naive
    except ValueError:
        return None


def u16(value: int) -> int:
    return min(value, 0xFFFF)


def i16(value: int) -> int:
    return max(-0x8000, min(value, 0x7FFF))
