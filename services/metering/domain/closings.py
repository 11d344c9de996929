"""Rule 2: the register at which a meter leaves, and the one that a person must confirm."""

from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np

from services.common.kernel.frames import ABSENT_REGISTER, KIND_CLOSING, READING
from services.common.kernel.ids import name_uuid
from services.metering.domain.causes import Cause
from services.metering.domain.charging import Intervals, charge_one, warn_of_closed
from services.metering.domain.facts import Array
from services.metering.domain.freezing import freeze
from services.metering.domain.holds import QUALITY_MANUAL, evidence_of, reading_of
from services.metering.domain.judging import judge
from services.metering.domain.outbox import Outbox
from services.metering.domain.rows import Fact
from services.metering.domain.shard import ASSIGNED_QUALITY, ShardState
from services.metering.domain.tails import Held, Waiting
from services.metering.domain.validation import DURATION_MS_MAX, bound_milli

CLOSING = "closing"
"""The reason of its alarm, and what is counted."""


def must_wait(meter: Any, fact: Fact, now_ms: int) -> bool:
    """Say whether a person must confirm the register at which a meter-fact ends an epoch.

    Only where the meter stays in its account: another account begins at what ended there.
    """
    closing_milli, last_ms = fact["closing_register_milli"], int(meter["time_ms"]) or now_ms
    highest_milli = bound_milli(meter, max(now_ms, last_ms))
    deepest_milli = bound_milli(meter, last_ms + DURATION_MS_MAX)
    stays = fact["account_key"] == fact["previous_account_key"]
    if not stays or closing_milli is None or highest_milli is None or deepest_milli is None:
        return False
    rise_milli = closing_milli - int(meter["register_milli"])
    return not -deepest_milli <= rise_milli <= highest_milli


def let_wait(out: Outbox, slot: int, meters: Array, fact: Fact, cause: Cause) -> Waiting:
    """Return a meter (dtype METER, the only one) with the register at which a meter-fact ends it.

    A person is told of it.
    """
    time_ms = max(out.now_ms, int(meters["time_ms"][0]))
    closing_id = name_uuid("closing", fact["meter_id"], fact["epoch"]).bytes
    held = Held(closing_id, fact["closing_register_milli"], time_ms, out.now_ms)
    out.count(CLOSING)
    if not out.state.accounts["house"][slot]:
        reading = reading_of(held)
        evidence = evidence_of(meters[0], reading)
        told = replace(cause, reading=reading)
        out.alarm(slot, "reading-held", CLOSING, told, evidence=evidence)
    return Waiting(meters, held)


def close_meter(
    out: Outbox, slot: int, meter_slot: int, closing_milli: int | None, cause: Cause
) -> Any:
    """Charge to a closing register as if it had been read.

    Return the charge; None where that cannot be.
    """
    if closing_milli is None:
        return None
    meters = out.state.meters[[meter_slot]]
    end = _end_of(meters, closing_milli, ASSIGNED_QUALITY)
    return _charge_to(out, _interval(out.state, slot, meter_slot, meters, end), cause)


def _interval(
    state: ShardState, slot: int, meter_slot: int, meters: Array, end: Array
) -> Intervals:
    slots = np.array([slot])
    return Intervals(meters, state.accounts[slots], slots, np.array([meter_slot]), end)


def _end_of(meters: Array, register_milli: int, quality: int) -> Array:
    """Return a closing register as if it had been read when the meter was last (dtype READING)."""
    end = np.zeros(1, READING)
    end["register_milli"] = register_milli
    end["device_time_ms"] = meters["time_ms"]
    end["rate_registers_milli"] = ABSENT_REGISTER
    end["quality"] = quality
    return end


def _charge_to(out: Outbox, interval: Intervals, cause: Cause) -> Any:
    bill = charge_one(out, interval, KIND_CLOSING)
    if bill is None:
        return None
    cause = replace(cause, charge=bill.charges[0])
    warn_of_closed(out, interval.account_slots, bill.lines, lambda _: cause)
    return bill.charges[0]


def resolve_closing(out: Outbox, slot: int, meter_slot: int, fact: Fact) -> bool:
    """Do what a meter-fact says of the closing register that waits with the meter.

    Returns False where that could not be charged: the account froze.
    """
    state, resolution = out.state, fact["resolution"]
    waiting = state.tails.waiting_of(meter_slot)
    if waiting is None or resolution not in ("accept", "reject"):
        return True
    meters, held = waiting
    if fact["resolves_reading_id"] != str(UUID(bytes=held.reading_id)):
        return True
    reading = reading_of(held)
    cause, evidence = Cause(meter=fact, reading=reading), evidence_of(meters[0], reading)
    correction, kind, reason = Cause(meter=fact), "hold-resolved", resolution
    if resolution == "accept" and state.accounts["frozen"][slot]:
        kind, reason = "resolution-refused", CLOSING
        out.count("resolution-refused")
    elif resolution == "accept":
        end = _end_of(meters, held.register_milli, QUALITY_MANUAL)
        interval = _interval(state, slot, meter_slot, meters, end)
        charge = _charge_to(out, interval, correction)
        if charge is None:
            freeze(out, slot, correction)
            return False
        correction, cause = replace(correction, charge=charge), replace(cause, charge=charge)
        state.tails.put_waiting(state.meters, meter_slot, None)
        out.count("hold-accepted")
    else:
        state.tails.put_waiting(state.meters, meter_slot, None)
        out.count("hold-rejected")
    if not state.accounts["house"][slot]:
        out.alarm(slot, kind, reason, cause, evidence=evidence)
    if correction.charge is not None:
        judge(out, np.array([slot]), lambda _: correction)
    return True
