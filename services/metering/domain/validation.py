"""Rule 3's tests: what a reading comes to, and what stands out at it. Nothing is changed here."""

from typing import Any

import numpy as np

from services.common.kernel.frames import (
    ABSENT_POWER,
    ABSENT_REGISTER,
    RELAY_PHASES,
    RELAY_REPORTED,
    Entries,
)
from services.common.tariffs.shape import RATES_APART_MILLI_MAX, REGISTER_MILLI_MAX
from services.metering.domain.charging import Intervals
from services.metering.domain.facts import Array
from services.metering.domain.rows import FLAGS, HOLDS, NO_POWER, NOT_DUE_MS
from services.metering.domain.shard import SILENCE_MS

TIME_MS_FROM = 946_684_800_000
"""2000-01-01: a device whose clock says less has none."""
TIME_MS_TO = 4_102_444_800_000
"""2100-01-01."""
DURATION_MS_MAX = 2**31
"""Beyond it a longer silence allows no more energy."""
POWER_W_PLAIN_MAX = 2**31
"""Up to it power × duration fits int64."""
SAME_INSTANT_MS = 2_000
"""What a register may count within the resolution of a device's clock."""
AHEAD_MS_MAX = 300_000
"""A clock further ahead would make what comes after it late; ingest allows hours, for DST."""
DRIFT_MS_MAX = 120_000
NOISE_MILLI = 100
GAP_MS = 3_600_000
"""Twice what a meter is silent for at most, where it reports every half hour."""
SCALES = (10, 100)
"""By what a register is wrong where the profile has its decimals wrong."""

OUTCOMES = (
    "accepted",
    "other-epoch",
    "frozen",
    "meter-held",
    "other-serial",
    "absurd",
    "ratio-mismatch",
    "clock",
    "opens",
    "below-opening",
    "duplicate",
    "conflict",
    "late",
    "late-conflict",
    "re-split",
    "negative",
    "implausible",
    "rollover",
    "scale",
    "reset",
)
"""In the order in which they decide; `accepted` where no other does."""
CODES = {name: code for code, name in enumerate(OUTCOMES)}
CHARGED = np.isin(OUTCOMES, ["accepted", "opens"])
IS_HELD = np.isin(OUTCOMES, [*HOLDS, *FLAGS])
FLAG_OF = {name: name for name in OUTCOMES if name in FLAGS} | {"meter-held": "read-again"}
BITS = np.array(
    [1 << FLAGS.index(FLAG_OF[name]) if name in FLAG_OF else 0 for name in OUTCOMES], np.uint32
)
"""The flag of each outcome; 0: it has none."""
FOREIGN = np.isin(OUTCOMES, ["other-serial", "absurd", "ratio-mismatch", "clock"])
SILENT = np.uint32(1 << FLAGS.index("silent"))


def outcomes_of(intervals: Intervals) -> Array:
    """Return the outcome of each reading, as an index into OUTCOMES.

    `late` may be something else still, `negative` and `implausible` are what `jump_outcome` says.
    """
    readings, meters = intervals.readings, intervals.meters
    register, time_ms = readings["register_milli"], readings["device_time_ms"]
    last, accepted_before = meters["register_milli"], meters["sequence"] > 0
    outcomes = np.zeros(len(readings), np.uint8)
    decided = {
        "implausible": _is_implausible(intervals, accepted_before),
        "negative": register < last,
        "late": accepted_before & (time_ms <= meters["time_ms"]),
        "duplicate": accepted_before & (readings["reading_id"] == meters["reading_id"]),
        "below-opening": ~accepted_before & (register < last),
        "opens": ~meters["opened"],
        "clock": time_ms - readings["received_at_ms"] > AHEAD_MS_MAX,
        "ratio-mismatch": readings["ratio"] != meters["ratio"],
        "absurd": (register < 0)
        | (register > REGISTER_MILLI_MAX)
        | (time_ms < TIME_MS_FROM)
        | (time_ms >= TIME_MS_TO),
        "other-serial": readings["serial"] != meters["serial"],
        "meter-held": meters["hold"] > 0,
        "frozen": intervals.accounts["frozen"],
        "other-epoch": readings["epoch"] != meters["epoch"],
    }
    if np.logical_or.reduce(list(decided.values())).any():
        for name, where in decided.items():  # the last written stands: the first of the rule
            outcomes[where] = CODES[name]
    return outcomes


def _is_implausible(intervals: Intervals, accepted_before: Array) -> Array:
    """Say where the register rose by more than the load behind the meter can take.

    Means nothing where an earlier outcome decides (the duration may be negative there).
    """
    readings, meters = intervals.readings, intervals.meters
    bounded = meters["max_power_w"] != NO_POWER
    power_w = np.where(bounded, meters["max_power_w"], 0)
    if power_w.max(initial=0) > POWER_W_PLAIN_MAX or power_w.min(initial=0) < 0:
        power_w = power_w.astype(object)  # integers without end: slow, exact, hardly ever
    durations_ms = readings["device_time_ms"] - meters["time_ms"]
    if not accepted_before.all():
        first_ms = _first_durations_ms(meters["silent_at_ms"], readings["device_time_ms"])
        durations_ms = np.where(accepted_before, durations_ms, first_ms)
    durations_ms = np.minimum(durations_ms, DURATION_MS_MAX)
    rises_milli = readings["register_milli"] - meters["register_milli"]
    ratio = meters["ratio"].astype(np.int64)
    allowed_milli = (power_w * durations_ms // 3_000_000 + NOISE_MILLI * ratio) // ratio
    return bounded & (rises_milli > allowed_milli).astype(np.bool_)


def _first_durations_ms(silent_at_ms: Any, times_ms: Any) -> Any:
    """Return how long meters may have counted that were not read in their epoch yet.

    Nobody knows how old the register is that came with an assignment. Older than a silence that
    is told it hardly is: so it counts from that much before the meter entered.
    """
    entered_ms = silent_at_ms - SILENCE_MS
    durations_ms = np.maximum(times_ms - entered_ms, 0) + SILENCE_MS
    return np.where(silent_at_ms == NOT_DUE_MS, DURATION_MS_MAX, durations_ms)


def bound_milli(meter: Any, time_ms: int) -> int | None:
    """Return by how much the register of a meter may have risen at a time; None: unknown."""
    duration_ms = time_ms - int(meter["time_ms"]) or SAME_INSTANT_MS
    if not meter["sequence"]:
        duration_ms = int(_first_durations_ms(meter["silent_at_ms"], np.int64(time_ms)))
    duration_ms = min(duration_ms, DURATION_MS_MAX)
    power_w, ratio = int(meter["max_power_w"]), int(meter["ratio"])
    if power_w == NO_POWER or not meter["opened"] or duration_ms < 0:
        return None
    return (power_w * duration_ms // 3_000_000 + NOISE_MILLI * ratio) // ratio


def is_conflict(meter: Any, reading: Any) -> bool:
    """Say whether a late reading denies the last accepted one: of its time, of another register."""
    if reading["device_time_ms"] != meter["time_ms"]:
        return False
    rise_milli = int(reading["register_milli"]) - int(meter["register_milli"])
    highest_milli = bound_milli(meter, int(reading["device_time_ms"]))
    return rise_milli < 0 or (highest_milli is not None and rise_milli > highest_milli)


def jump_outcome(meter: Any, reading: Any, register_max_milli: int | None) -> str:
    """Return what a register that fell, or rose beyond its bound, comes to."""
    last, register = int(meter["register_milli"]), int(reading["register_milli"])
    rise_milli = bound_milli(meter, int(reading["device_time_ms"]))
    if rise_milli is not None:
        if register_max_milli is not None and 9 * register_max_milli < 10 * last:
            counted_milli = (register - last) % (register_max_milli + 1)
            ended = register < last <= register_max_milli
            if ended and counted_milli <= rise_milli <= register_max_milli:
                return "rollover"
        highest = last + rise_milli
        for scale in SCALES:
            is_multiple = last <= register // scale <= highest
            if is_multiple or last // scale <= register <= highest // scale:
                return "scale"
    if register >= last:
        return "implausible"
    return "reset" if 100 * register <= last else "negative"


def flags_of(intervals: Intervals) -> Array:
    """Return the flags (bits, uint32) that readings raise which are charged."""
    readings, meters = intervals.readings, intervals.meters
    power_w, rates = readings["power_w"], readings["rate_registers_milli"]
    ahead_ms = readings["device_time_ms"] - readings["received_at_ms"]
    # What was pushed may be late by design; what was read just now has no reason to.
    is_live = readings["began_at_ms"] < readings["received_at_ms"]
    was_open, is_open = _is_open(meters["relay_bits"]), _is_open(readings["relay_bits"])
    rises_milli = readings["register_milli"] - meters["register_milli"]
    found = {
        "use-while-open": was_open & is_open & (rises_milli > NOISE_MILLI),
        "reverse": (power_w < 0) & (power_w != ABSENT_POWER),
        "clock-drift": (ahead_ms > DRIFT_MS_MAX) | (is_live & (ahead_ms < -DRIFT_MS_MAX)),
    }
    if rates.max(initial=ABSENT_REGISTER) > ABSENT_REGISTER:
        found["rates-disagree"] = _do_rates_disagree(readings)
    loaded = (power_w > 0) & (rises_milli == 0) & (meters["sequence"] > 0)
    if loaded.any():
        found["stuck"] = loaded & _is_stuck(intervals, loaded)
    flags = np.zeros(len(intervals), np.uint32)
    for name, where in found.items():
        flags |= where.astype(np.uint32) << FLAGS.index(name)
    return flags


def are_gaps(intervals: Intervals) -> Array:
    """Say which of these intervals are so long that their shape is an estimate."""
    meters = intervals.meters
    durations_ms = intervals.readings["device_time_ms"] - meters["time_ms"]
    found: Array = (durations_ms > GAP_MS) & (meters["sequence"] > 0)
    return found


def _is_open(relay_bits: Array) -> Array:
    """Say where a relay was reported, with no phase closed."""
    return relay_bits & (RELAY_REPORTED | RELAY_PHASES) == RELAY_REPORTED


def _do_rates_disagree(readings: Entries) -> Array:
    """Say where the total is not the sum of the rates that a meter has registers of."""
    total, rates = readings["register_milli"], readings["rate_registers_milli"]
    present = rates > ABSENT_REGISTER
    capped = np.where(present, np.minimum(rates, 2 * REGISTER_MILLI_MAX), 0)
    apart_milli = np.abs(capped.sum(axis=1) - total)
    return present.any(axis=1) & (apart_milli > RATES_APART_MILLI_MAX)


def _is_stuck(intervals: Intervals, loaded: Array) -> Array:
    """Say where a load would have been counted had the register moved. Of `loaded` ones only."""
    stuck = np.zeros(len(loaded), np.bool_)
    for i in np.flatnonzero(loaded).tolist():
        meter, reading = intervals.meters[i], intervals.readings[i]
        duration_ms = int(reading["device_time_ms"]) - int(meter["time_ms"])
        used_milli = int(reading["power_w"]) * duration_ms // 3_600_000
        stuck[i] = used_milli > NOISE_MILLI * int(meter["ratio"])
    return stuck
