"""Rule 3: what holds a meter, what stands out at it, and what a person says of it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np

from services.common.kernel.frames import ABSENT_REGISTER, KIND_USAGE, READING
from services.metering.domain.causes import Cause, Evidence
from services.metering.domain.charging import Bill, Intervals, advance, charge_one, warn_of_closed
from services.metering.domain.facts import Array
from services.metering.domain.freezing import freeze
from services.metering.domain.judging import judge
from services.metering.domain.outbox import Outbox
from services.metering.domain.resplit import leave_windows
from services.metering.domain.rows import FLAGS, HOLDS, READ_AGAIN, TAIL_WAITING, Fact
from services.metering.domain.shard import SILENCE_MS, ShardState
from services.metering.domain.tails import Held
from services.metering.domain.validation import (
    BITS,
    CODES,
    FLAG_OF,
    FOREIGN,
    IS_HELD,
    OUTCOMES,
    bound_milli,
    outcomes_of,
)

QUALITY_MANUAL = ord("M")

Change = tuple[int, str, str, Evidence]
"""(index, kind of alarm, flag, evidence)."""


def hold(
    out: Outbox, intervals: Intervals, outcomes: Array, cause_of: Callable[[int], Cause]
) -> None:
    """Hold the meters of readings whose outcome says so, with an alarm where that is new."""
    state = out.state
    for i in np.flatnonzero(are_newly_held(state, intervals, outcomes)).tolist():
        slot, meter_slot = int(intervals.account_slots[i]), int(intervals.meter_slots[i])
        outcome, reading = OUTCOMES[outcomes[i]], intervals.readings[i]
        if outcome in HOLDS:
            state.tails.put_hold(state.meters, meter_slot, HOLDS.index(outcome), _held(reading))
        else:
            state.meters["flags"][meter_slot] |= BITS[outcomes[i]]
        kind, reason = "reading-held", outcome
        if outcome == "meter-held":
            kind, reason = "meter-flagged", FLAG_OF[outcome]
            out.count(reason)
        out.touch(np.array([slot]))
        if not intervals.accounts["house"][i]:
            evidence = evidence_of(intervals.meters[i], reading)
            out.alarm(slot, kind, reason, cause_of(i), evidence=evidence)


def are_newly_held(state: ShardState, intervals: Intervals, outcomes: Array) -> Array:
    """Say which readings hold their meters, or are the first that are refused as they are.

    And which are the first that tell where a meter stands that is held.
    """
    newly: Array = IS_HELD[outcomes] & (intervals.meters["flags"] & BITS[outcomes] == 0)
    if intervals.meters["hold"].any():
        newly |= _read_again(state, intervals, outcomes)
    return newly


def _read_again(state: ShardState, intervals: Intervals, outcomes: Array) -> Array:
    """Say which readings are the first of a meter that is held, taken after the one it is for."""
    found: Array = (outcomes == CODES["meter-held"]) & (intervals.meters["flags"] & READ_AGAIN == 0)
    which = np.flatnonzero(found)
    if len(which):
        some = intervals.take(which)
        free = replace(some, meters=some.meters.copy())
        free.meters["hold"] = 0
        held_ms = [state.tails.held_of(each).time_ms for each in some.meter_slots.tolist()]
        found[which] = ~FOREIGN[outcomes_of(free)] & (some.readings["device_time_ms"] > held_ms)
    return found


def count_flags(out: Outbox, flags: Array) -> None:
    """Count the flags that readings raise."""
    if flags.any():
        for number, name in enumerate(FLAGS):
            out.count(name, int(np.count_nonzero(flags >> number & 1)))


def changed_flags(
    intervals: Intervals, flags: Array, found: Mapping[tuple[int, str], Evidence]
) -> list[Change]:
    """Return which flags go up or down where meters get `flags`, before they do.

    `found`: by what a flag of the i-th was, where not by where the meter stood.
    """
    before = intervals.meters["flags"]
    changed = np.flatnonzero((before != flags) & ~intervals.accounts["house"])
    return [
        change for i in changed.tolist() for change in _changes(intervals, i, int(flags[i]), found)
    ]


def _changes(
    intervals: Intervals, i: int, flags: int, found: Mapping[tuple[int, str], Evidence]
) -> Iterator[Change]:
    before = int(intervals.meters["flags"][i])
    evidence = evidence_of(intervals.meters[i], intervals.readings[i])
    for number, name in enumerate(FLAGS):
        is_up, was_up = flags >> number & 1, before >> number & 1
        own = found.get((i, name)) if is_up else None
        if is_up != was_up:
            yield i, "meter-flagged" if is_up else "meter-cleared", name, own or evidence


def tell_leaving(out: Outbox, slot: int, meter_slot: int, meter: Fact) -> None:
    """Say that what is told of a meter is over, where something is: it leaves its account."""
    state, meter_row = out.state, out.state.meters[meter_slot]
    is_told = meter_row["hold"] or meter_row["flags"] or meter_row["tails"] & TAIL_WAITING
    if is_told and not state.accounts["house"][slot]:
        state.link_read(np.array([slot]))
        out.alarm(slot, "meter-left", "meter-left", Cause(meter=meter))


def tell_silence(out: Outbox, meter_slot: int) -> None:
    """Say that no reading of a meter was accepted for too long."""
    state = out.state
    meter, slot = state.meters[meter_slot], int(state.meter_links["account"][meter_slot])
    since_ms = int(meter["silent_at_ms"]) - SILENCE_MS
    state.link_read(np.array([slot]))
    state.tell_silence(meter_slot)
    out.count("silent")
    out.touch(np.array([slot]))
    if not state.accounts["house"][slot]:
        cause = Cause(meter=state.meter_fact(int(meter["key"])))
        evidence = Evidence(None, None, *_stood(meter), None, since_ms)
        out.alarm(slot, "meter-silent", "silent", cause, evidence=evidence)


def resolve(out: Outbox, slot: int, meter_slot: int, fact: Fact) -> bool:
    """Do what a meter-fact says of the reading that the meter is held for.

    Returns False where that could not be charged: the account froze.
    """
    state = out.state
    meter, resolution = state.meters[meter_slot].copy(), fact["resolution"]
    if not meter["hold"] or resolution not in ("accept", "reject"):
        return True
    reading = _held_reading(state, meter_slot)
    if fact["resolves_reading_id"] != str(UUID(bytes=reading["reading_id"].tobytes())):
        return True
    cause = Cause(meter=fact, reading=reading)
    kind, reason, bill = "hold-resolved", resolution, None
    if resolution == "reject":
        state.tails.put_hold(state.meters, meter_slot, 0)
        out.count("hold-rejected")
    elif reading["register_milli"] < meter["register_milli"] or state.accounts["frozen"][slot]:
        kind, reason = "resolution-refused", HOLDS[meter["hold"]]
        out.count("resolution-refused")
    else:
        bill = _charge_held(out, slot, meter_slot, reading)
        if bill is None:
            freeze(out, slot, Cause(meter=fact))
            return False
        cause = replace(cause, charge=bill.charges[0])
        out.count("hold-accepted")
    if not state.accounts["house"][slot]:
        evidence = evidence_of(meter, reading)
        out.alarm(slot, kind, reason, cause, evidence=evidence)
        if meter["flags"] & READ_AGAIN and kind == "hold-resolved":
            out.alarm(slot, "meter-cleared", "read-again", cause, evidence=evidence)
    if bill is not None:
        correction, slots = replace(cause, reading=None), np.array([slot])
        warn_of_closed(out, slots, bill.lines, lambda _: correction)
        judge(out, slots, lambda _: correction)
    return True


def _charge_held(out: Outbox, slot: int, meter_slot: int, reading: Any) -> Bill | None:
    """Charge to the reading that a meter is held for, at its own time; None where it cannot be."""
    state = out.state
    slots, meter_slots = np.array([slot]), np.array([meter_slot])
    meters = state.meters[meter_slots]
    interval = Intervals(meters, state.accounts[slots], slots, meter_slots, reading.reshape(1))
    bill = charge_one(out, interval, KIND_USAGE)
    if bill is None:
        return None
    meters["hold"] = 0
    advance(out, interval, bill.charges)
    state.tails.put_hold(state.meters, meter_slot, 0)
    leave_windows(state, interval, bill)
    return bill


def _held(reading: Any) -> Held:
    return Held(
        reading["reading_id"].tobytes(),
        int(reading["register_milli"]),
        int(reading["device_time_ms"]),
        int(reading["received_at_ms"]),
    )


def _held_reading(state: ShardState, meter_slot: int) -> Any:
    """Return the reading that a meter is held for, as a person has judged it (dtype READING)."""
    reading = reading_of(state.tails.held_of(meter_slot))
    reading["relay_bits"] = state.meters["relay_bits"][meter_slot]
    return reading


def reading_of(held: Held) -> Any:
    """Return what waits for a person as a reading of quality manual (dtype READING)."""
    reading = np.zeros((), READING)
    reading["reading_id"] = np.void(held.reading_id)
    reading["register_milli"] = held.register_milli
    reading["device_time_ms"] = held.time_ms
    reading["received_at_ms"] = held.received_at_ms
    reading["rate_registers_milli"] = ABSENT_REGISTER
    reading["quality"] = QUALITY_MANUAL
    return reading


def evidence_of(meter: Any, reading: Any) -> Evidence:
    """Return by what a reading of a meter (dtypes READING and METER) is judged."""
    time_ms = int(reading["device_time_ms"])
    bound = bound_milli(meter, time_ms)
    return Evidence(int(reading["register_milli"]), time_ms, *_stood(meter), bound)


def _stood(meter: Any) -> tuple[int | None, int | None]:
    """Return where a meter stands, and since when."""
    register_milli = int(meter["register_milli"]) if meter["opened"] else None
    return register_milli, int(meter["time_ms"]) or None
