"""Rule 3's tests: what a reading comes to. Nothing is changed here."""

from typing import Any

import numpy as np

from services.metering.domain.charging import Intervals
from services.metering.domain.facts import Array
from services.metering.domain.rows import FLAGS, HOLDS, NO_POWER

REGISTER_MILLI_MAX = 10**15
TIME_MS_FROM = 946_684_800_000
"""2000-01-01: a device whose clock says less has none."""
TIME_MS_TO = 4_102_444_800_000
"""2100-01-01."""
DURATION_MS_MAX = 2**31
"""Beyond it a longer silence allows no more energy."""
POWER_W_PLAIN_MAX = 2**31
"""Up to it power × duration fits int64."""
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
    "opens",
    "below-opening",
    "duplicate",
    "late",
    "late-conflict",
    "re-split",
    "negative",
    "implausible",
    "scale",
    "reset",
)
"""In the order in which they decide; `accepted` where no other does."""
CODES = {name: code for code, name in enumerate(OUTCOMES)}
CHARGED = np.isin(OUTCOMES, ["accepted", "opens"])
IS_HELD = np.isin(OUTCOMES, [*HOLDS, "other-serial", "absurd", "ratio-mismatch"])
BITS = np.array([1 << FLAGS.index(name) if name in FLAGS else 0 for name in OUTCOMES], np.uint32)
"""The flag of each outcome; 0: it has none."""


def outcomes_of(intervals: Intervals) -> Array:
    """Return the outcome of each reading, as an index into OUTCOMES.

    `late` may be something else still where the meter has windows, `negative` and `implausible`
    are what `jump_outcome` says.
    """
    readings, meters = intervals.readings, intervals.meters
    register, time_ms = readings["register_milli"], readings["device_time_ms"]
    last, accepted_before = meters["register_milli"], meters["sequence"] > 0
    outcomes = np.zeros(len(readings), np.uint8)
    decided = {
        "implausible": accepted_before & _is_implausible(intervals),
        "negative": register < last,
        "late": accepted_before & (time_ms <= meters["time_ms"]),
        "duplicate": accepted_before & (readings["reading_id"] == meters["reading_id"]),
        "below-opening": ~accepted_before & (register < last),
        "opens": ~meters["opened"],
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
    for name, where in decided.items():  # the last written stands: the first of the rule
        outcomes[where] = CODES[name]
    return outcomes


def _is_implausible(intervals: Intervals) -> Array:
    """Say where the register rose by more than the load behind the meter can take.

    Means nothing where an earlier outcome decides (the duration may be negative there).
    """
    readings, meters = intervals.readings, intervals.meters
    bounded = meters["max_power_w"] != NO_POWER
    power_w = np.where(bounded, meters["max_power_w"], 0)
    if power_w.max(initial=0) > POWER_W_PLAIN_MAX or power_w.min(initial=0) < 0:
        power_w = power_w.astype(object)  # integers without end: slow, exact, hardly ever
    durations_ms = np.minimum(readings["device_time_ms"] - meters["time_ms"], DURATION_MS_MAX)
    rises_milli = readings["register_milli"] - meters["register_milli"]
    ratio = meters["ratio"].astype(np.int64)
    allowed_milli = (power_w * durations_ms // 3_000_000 + 100 * ratio) // ratio
    return bounded & (rises_milli > allowed_milli).astype(np.bool_)


def bound_milli(meter: Any, time_ms: int) -> int | None:
    """Return by how much the register of a meter may have risen at a time; None: unknown."""
    duration_ms = min(time_ms - int(meter["time_ms"]), DURATION_MS_MAX)
    power_w, ratio = int(meter["max_power_w"]), int(meter["ratio"])
    if power_w == NO_POWER or not meter["sequence"] or duration_ms < 0:
        return None
    return (power_w * duration_ms // 3_000_000 + 100 * ratio) // ratio


def jump_outcome(meter: Any, reading: Any) -> str:
    """Return what a register that fell, or rose beyond its bound, comes to."""
    last, register = int(meter["register_milli"]), int(reading["register_milli"])
    rise_milli = bound_milli(meter, int(reading["device_time_ms"]))
    if rise_milli is not None:
        highest = last + rise_milli
        for scale in SCALES:
            is_multiple = last <= register // scale <= highest
            if is_multiple or last // scale <= register <= highest // scale:
                return "scale"
    if register >= last:
        return "implausible"
    return "reset" if 100 * register <= last else "negative"
