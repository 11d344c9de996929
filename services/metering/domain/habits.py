"""Rule 3: what a meter usually takes at an hour of the day, what is far beyond it, and nothing.

Only of meters whose policy asks. Nothing here changes a charge: a person is told.
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from services.common.kernel.frames import KIND_ROLLOVER, RELAY_PHASES, RELAY_REPORTED
from services.common.kernel.zones import zone_named
from services.metering.domain.causes import Evidence
from services.metering.domain.charging import Intervals
from services.metering.domain.facts import Array
from services.metering.domain.rows import FLAGS, HOURS, TAIL_HABITS, TAIL_STAND
from services.metering.domain.shard import ShardState
from services.metering.domain.tails import Habits, Stand
from services.metering.domain.validation import NOISE_MILLI

SPAN_MS_MIN, SPAN_MS_MAX = 900_000, 7_200_000
"""Power is told over a quarter of an hour at least, two hours at most."""
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
TOLD_MIN = 20
"""One in twenty lies above: before that nobody knows it."""
TOLD_MAX = 255
STEPS_UP, STEPS_DOWN = 19, 1
"""A level that rises by 19 where power is above and falls by 1 where it is below rests where one in
twenty is above."""
STEPS_OF_CODE = 8
CODE_MAX = 255
UNUSUAL, IDLE = (np.uint32(1 << FLAGS.index(name)) for name in ("unusual", "idle"))


class Told(NamedTuple):
    """What readings say of habits: flags that go up and that stay (bits, uint32).

    By the number of the reading: by what it was found so, by flag; habits and stands that change
    (None: they go).
    """

    raised: Array
    kept: Array
    found: dict[tuple[int, str], Evidence]
    habits: dict[int, Habits | None]
    stands: dict[int, Stand | None]


def concerned(state: ShardState, intervals: Intervals) -> Array:
    """Return the indexes of the meters whose policy asks for habits or stands, or did."""
    if not (state.policies.ask_habits or state.tails.have_habits):
        return np.zeros(0, np.int64)
    has_tail = intervals.meters["tails"] & (TAIL_HABITS | TAIL_STAND) != 0
    asks = _asks(state, intervals, "unusual_factor") | _asks(state, intervals, "idle_days")
    return np.flatnonzero(asks | has_tail)


def _asks(state: ShardState, intervals: Intervals, rule: str) -> Array:
    policies = state.account_links["policy"].take(intervals.account_slots)
    asks = state.policies.rows[rule].take(policies) > 0
    billed: Array = asks & intervals.accounts["known"] & ~intervals.accounts["house"]
    return billed


def told_of(state: ShardState, intervals: Intervals, kind: int) -> Told:
    """Return what readings say that are charged. Changes nothing."""
    count = len(intervals)
    told = Told(np.zeros(count, np.uint32), np.zeros(count, np.uint32), {}, {}, {})
    which = concerned(state, intervals)
    if len(which):
        ask_habits = _asks(state, intervals, "unusual_factor")
        ask_stands = _asks(state, intervals, "idle_days")
        for i in which.tolist():
            if ask_habits[i]:
                _tell(state, intervals, i, kind, told)
            else:
                told.habits[i] = None
            if ask_stands[i]:
                _tell_stand(state, intervals, i, kind, told)
            else:
                told.stands[i] = None
    return told


def _tell(state: ShardState, intervals: Intervals, i: int, kind: int, told: Told) -> None:
    """Add to `told` what the i-th reading says."""
    reading = intervals.readings[i]
    time_ms, register_milli = int(reading["device_time_ms"]), int(reading["register_milli"])
    before = state.tails.habits_of(int(intervals.meter_slots[i]))
    told.kept[i] = intervals.meters["flags"][i] & UNUSUAL
    if before is None:
        told.habits[i] = Habits(time_ms, register_milli, (0,) * HOURS, (0,) * HOURS)
        return
    span_ms = time_ms - before.time_ms
    if span_ms > SPAN_MS_MAX or kind == KIND_ROLLOVER:
        told.habits[i] = before._replace(time_ms=time_ms, register_milli=register_milli)
    elif span_ms >= SPAN_MS_MIN:
        rules = state.policies.rules[state.account_links["policy"][intervals.account_slots[i]]]
        hour, ratio = _hour(before.time_ms, rules.zone), int(intervals.meters["ratio"][i])
        rise_milli = register_milli - before.register_milli
        usual_milli = _usual_milli(before.levels[hour], rules.unusual_factor or 0, ratio, span_ms)
        told.kept[i] = 0
        if before.told[hour] >= TOLD_MIN and rise_milli > usual_milli:
            told.raised[i] |= UNUSUAL
            mark = before.register_milli, before.time_ms
            told.found[i, "unusual"] = Evidence(register_milli, time_ms, *mark, usual_milli)
        seen = STEPS_OF_CODE * code_of(rise_milli * ratio * HOUR_MS // span_ms)
        level = _moved(before.levels[hour], before.told[hour], seen)
        told.habits[i] = Habits(
            time_ms,
            register_milli,
            _set(before.levels, hour, level),
            _set(before.told, hour, min(before.told[hour] + 1, TOLD_MAX)),
        )


def _tell_stand(state: ShardState, intervals: Intervals, i: int, kind: int, told: Told) -> None:
    """Add to `told` whether the register stands at the i-th reading, and for too long."""
    reading, stand = intervals.readings[i], state.tails.stand_of(int(intervals.meter_slots[i]))
    time_ms, register_milli = int(reading["device_time_ms"]), int(reading["register_milli"])
    bits = (int(intervals.meters["relay_bits"][i]), int(reading["relay_bits"]))
    are_closed = all(each & RELAY_REPORTED and each & RELAY_PHASES for each in bits)
    has_risen = stand is not None and register_milli - stand.register_milli > NOISE_MILLI
    if stand is None or has_risen or kind == KIND_ROLLOVER or not are_closed:
        told.stands[i] = Stand(time_ms, register_milli)
        return
    rules = state.policies.rules[state.account_links["policy"][intervals.account_slots[i]]]
    if time_ms - stand.time_ms >= (rules.idle_days or 0) * DAY_MS:
        told.raised[i] |= IDLE
        since = stand.register_milli, stand.time_ms
        told.found[i, "idle"] = Evidence(register_milli, time_ms, *since, None)


def _usual_milli(level: int, factor: int, ratio: int, span_ms: int) -> int:
    """Return by how much a register may rise in a while without being unusual."""
    highest_milli = factor * _lowest(level // STEPS_OF_CODE + 1)
    return max(NOISE_MILLI, ((highest_milli + 1) * span_ms - 1) // (ratio * HOUR_MS))


def code_of(power_milli: int) -> int:
    """Return the eighth of an octave in which a power (≥ 0) lies; 0 is a code of its own."""
    if power_milli <= 0:
        return 0
    octave = power_milli.bit_length() - 1
    return min(8 * octave + (8 * power_milli >> octave) - 7, CODE_MAX)


def _lowest(code: int) -> int:
    """Return the lowest power that has a code, or one above it."""
    octave, eighth = divmod(code - 1, 8)
    return -(-((8 + eighth) << octave) // 8)


def _moved(level: int, told: int, seen: int) -> int:
    if not told:
        return seen
    return min(level + STEPS_UP, seen) if seen > level else max(level - STEPS_DOWN, seen)


def _set(values: tuple[int, ...], at: int, value: int) -> tuple[int, ...]:
    return (*values[:at], value, *values[at + 1 :])


def _hour(at_ms: int, zone: str | None) -> int:
    """Return the hour that the wall clock of a zone shows."""
    tz: Any = UTC if zone is None else zone_named(zone)
    return datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(tz).hour
