"""Rules 6 and 7: levels, alarms, and the position that relays should have."""

from collections.abc import Callable
from typing import Any

import numpy as np

from services.common.kernel.frames import RELAY_REPORTED
from services.metering.domain.charging import Intervals
from services.metering.domain.facts import Array
from services.metering.domain.outbox import Cause, Outbox, set_level
from services.metering.domain.rows import ALARM_1, ALARM_2, CUT, LEVEL_NAMES, NEVER_MS, NORMAL
from services.metering.domain.shard import ShardState

_RELAY_CLOSED = 0x07
"""Relay bits of the three phases: closed."""


def judge(
    out: Outbox, slots: Array, cause_of: Callable[[int], Cause], fresh: Array | None = None
) -> None:
    """Judge accounts after a change of each.

    `cause_of` gives the cause of the i-th. `fresh` says which were charged by a reading that is
    fresh; None: they changed by a fact or by a closing charge, and nobody is cut.
    """
    state = out.state
    accounts = state.accounts.take(slots)
    policies = state.policies.rows.take(state.account_links["policy"][slots])
    available = accounts["credited_nano"] - accounts["charged_nano"] - accounts["held_nano"]
    targets = np.where(available <= policies["alarm_1_nano"], ALARM_1, NORMAL)
    targets[available <= policies["alarm_2_nano"]] = ALARM_2
    targets[available <= policies["floor_nano"]] = CUT
    levels = accounts["level"]
    if not (targets.any() or levels.any()):  # normal, and they were
        return
    may_cut = np.zeros(len(slots), np.bool_) if fresh is None else fresh
    counted = np.where((targets == CUT) & ~may_cut, ALARM_2, targets)
    moves = counted != levels
    if fresh is not None:
        moves |= (targets == CUT) & ~fresh & ~accounts["not_cut"]
    acts = np.where(levels == CUT, available >= policies["restore_nano"], moves)
    acts &= accounts["known"] & ~accounts["house"] & ~accounts["closed"]
    acts &= accounts["meters"] > 0  # nobody is warned before there is something to cut
    for i in np.flatnonzero(acts).tolist():
        evidence = None if fresh is None else bool(fresh[i])
        _act(out, int(slots[i]), int(targets[i]), cause_of(i), evidence)


def _act(out: Outbox, slot: int, target: int, cause: Cause, fresh: bool | None) -> None:
    account = out.state.accounts[slot]
    policy = _policy(out.state, slot)
    level = int(account["level"])
    floor_nano = int(policy["floor_nano"])
    if level == CUT:
        _restore(out, slot, target, cause, int(policy["restore_nano"]))
        return
    if target == CUT and fresh:
        _cut(out, slot, cause, floor_nano)
        return
    if target == CUT:
        target = ALARM_2
        if fresh is not None and not account["not_cut"]:
            out.alarm(slot, "not-cut", "evidence-old", cause, threshold_nano=floor_nano)
            account["not_cut"] = True
            out.touch(np.array([slot]))
    thresholds_nano = {
        ALARM_1: int(policy["alarm_1_nano"]),
        ALARM_2: int(policy["alarm_2_nano"]),
    }
    if target > level:
        kind, reason, crossed = LEVEL_NAMES[target], "threshold-reached", target
    elif target < level:
        kind, reason, crossed = "cleared", "credit-above-threshold", level
    else:
        return
    set_level(out, slot, target)
    out.alarm(
        slot,
        kind,
        reason,
        cause,
        levels=(level, target),
        threshold_nano=thresholds_nano[crossed],
    )


def _restore(out: Outbox, slot: int, target: int, cause: Cause, restore_nano: int) -> None:
    state = out.state
    meter_slots = state.meters_of(slot)
    set_level(out, slot, target)
    out.alarm(
        slot,
        "restored",
        "credit-restored",
        cause,
        levels=(CUT, target),
        threshold_nano=restore_nano,
        intent_epoch=int(state.meters["epoch"][meter_slots[0]]) if meter_slots else None,
    )
    for meter_slot in meter_slots:
        close(out, slot, meter_slot, "paid", cause, threshold_nano=restore_nano)


def close(
    out: Outbox,
    slot: int,
    meter_slot: int,
    cause_name: str,
    cause: Cause,
    *,
    threshold_nano: int | None = None,
) -> None:
    """Want a relay closed; no cut of the meter stands any more."""
    out.state.meters["send_before_ms"][meter_slot] = NEVER_MS
    out.intent(slot, meter_slot, "closed", cause_name, cause, threshold_nano=threshold_nano)


def _policy(state: ShardState, slot: int) -> Any:
    return state.policies.rows[state.account_links["policy"][slot]]


def _cut(out: Outbox, slot: int, cause: Cause, floor_nano: int) -> None:
    state = out.state
    level = int(state.accounts["level"][slot])
    set_level(out, slot, CUT)
    out.alarm(
        slot,
        "cut",
        "threshold-reached",
        cause,
        levels=(level, CUT),
        threshold_nano=floor_nano,
        intent_epoch=int(cause.charge["epoch"]),
    )
    for meter_slot in state.meters_of(slot):
        _open(out, slot, meter_slot, "arrears", cause)


def _open(out: Outbox, slot: int, meter_slot: int, cause_name: str, cause: Cause) -> None:
    """Want a relay open, as a lease: what cannot be sent in time is not sent at all."""
    policy = _policy(out.state, slot)
    evidence_until_ms = int(cause.reading["received_at_ms"]) + int(policy["max_evidence_age_ms"])
    send_before_ms = min(out.state.now_ms + int(policy["lease_ms"]), evidence_until_ms)
    out.state.meters["send_before_ms"][meter_slot] = send_before_ms
    out.intent(
        slot,
        meter_slot,
        "open",
        cause_name,
        cause,
        send_before_ms=send_before_ms,
        threshold_nano=int(policy["floor_nano"]),
    )


def renew(
    out: Outbox, intervals: Intervals, cause_of: Callable[[int], Cause], candidates: Array
) -> None:
    """Want relays open again that report a closed phase although their account is cut.

    `candidates`: charged by a fresh reading, and cut before it.
    """
    state, relay_bits = out.state, intervals.readings["relay_bits"]
    closed = (relay_bits & RELAY_REPORTED != 0) & (relay_bits & _RELAY_CLOSED != 0)
    accounts = state.accounts.take(intervals.account_slots)
    candidates = candidates & closed & (accounts["level"] == CUT) & ~accounts["closed"]
    for i in np.flatnonzero(candidates).tolist():
        slot, meter_slot = int(intervals.account_slots[i]), int(intervals.meter_slots[i])
        if _is_running_out(state, meter_slot, int(_policy(state, slot)["lease_ms"])):
            _open(out, slot, meter_slot, "lease-renewed", cause_of(i))


def _is_running_out(state: ShardState, meter_slot: int, lease_ms: int) -> bool:
    send_before_ms = int(state.meters["send_before_ms"][meter_slot])
    return send_before_ms == NEVER_MS or state.now_ms > send_before_ms - lease_ms // 2
