"""A reading as a device gave it, and what makes it one of a meter: time, route, identity."""

from datetime import datetime
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from services.common.kernel import frames, ids
from services.common.kernel.values import value_class
from services.common.kernel.zones import utc_ms
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.registry import Meter

CLOCK_AHEAD_MAX_MS = 2 * 3_600_000
"""A clock further ahead would make every later reading late. A device that ignores the end of
summer time is one hour ahead for half a year; two are not explained by anything good."""
CLOCK_BEHIND_MAX_MS = 24 * 3_600_000
"""Of a device that is read live. A pushed reading may have waited anywhere."""
QUALITY_ACTUAL = ord("A")

Phases = tuple[int, int, int]


@value_class
class DeviceReading:
    """What one live block or one `data` message says.

    `clock` is the device's naive local time. `closed_mask` has bits 0..2 = L1..L3 closed, None
    where no relay is reported. Absent figures are the ABSENT_* of services.common.kernel.frames.
    """

    clock: datetime
    register_milli: int
    rate_registers_milli: tuple[int, ...]
    ratio: int
    closed_mask: int | None
    voltages_mv: Phases
    currents_ma: Phases
    power_w: int
    power_factor_milli: int


@value_class
class MeterReading:
    """A device's reading as one of a meter: routed, with absolute times."""

    meter: Meter
    device: DeviceReading
    device_time_ms: int
    began_at_ms: int
    received_at_ms: int

    @property
    def reading_id(self) -> UUID:
        """The identity: a repeated delivery has the same."""
        registers = (self.device.register_milli, *self.device.rate_registers_milli)
        return ids.reading_id(self.meter.serial, self.device_time_ms, registers)


def device_time_ms(clock: datetime, zone: ZoneInfo, *, received_at_ms: int, is_live: bool) -> int:
    """Return a device's naive local time as ms UTC.

    Raises Unusable where the clock is further off than any good reason explains.
    """
    try:
        absolute_ms = utc_ms(clock, zone, near_ms=received_at_ms)
    except (OverflowError, ValueError) as odd:
        raise Unusable(
            Fault.CLOCK_IMPOSSIBLE, f"the clock says {clock}: no such time; set it", field="clock"
        ) from odd
    ahead_ms = absolute_ms - received_at_ms
    if absolute_ms <= 0:
        raise Unusable(
            Fault.CLOCK_IMPOSSIBLE, f"the clock says {clock}, before 1970; set it", field="clock"
        )
    if ahead_ms > CLOCK_AHEAD_MAX_MS:
        raise Unusable(
            Fault.CLOCK_AHEAD,
            f"the clock is {ahead_ms // 1000} s ahead in {zone}; set the device's clock",
            field="clock",
        )
    if is_live and -ahead_ms > CLOCK_BEHIND_MAX_MS:
        raise Unusable(
            Fault.CLOCK_BEHIND,
            f"the clock is {-ahead_ms // 1000} s behind in {zone}; set the device's clock",
            field="clock",
        )
    return absolute_ms


def frame_rows(readings: list[MeterReading]) -> npt.NDArray[Any]:
    """Return the readings as an array of dtype frames.READING, in their order."""
    rows = np.zeros(len(readings), frames.READING)
    for row, reading in zip(rows, readings, strict=True):
        device, meter = reading.device, reading.meter
        relay = 0 if device.closed_mask is None else frames.RELAY_REPORTED | device.closed_mask
        row["meter_key"] = meter.meter_key
        row["epoch"] = meter.epoch
        row["serial"] = meter.serial.encode("ascii")
        row["reading_id"] = np.void(reading.reading_id.bytes)
        row["device_time_ms"] = reading.device_time_ms
        row["began_at_ms"] = reading.began_at_ms
        row["received_at_ms"] = reading.received_at_ms
        row["register_milli"] = device.register_milli
        row["rate_registers_milli"] = device.rate_registers_milli
        row["ratio"] = device.ratio
        row["quality"] = QUALITY_ACTUAL
        row["relay_bits"] = relay
        row["voltage_mv"] = device.voltages_mv
        row["current_ma"] = device.currents_ma
        row["power_w"] = device.power_w
        row["power_factor_milli"] = device.power_factor_milli
    return rows
