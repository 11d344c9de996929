"""Rules 6 and 7: levels, alarms, and the position that relays should have."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from services.common.kernel.frames import RELAY_PHASES, RELAY_REPORTED
from services.common.policies.levels import ALARM_1, CUT, LEVEL_NAMES, asked
from services.common.policies.rules import Rules
from services.common.policies.windows import first_no_cut_ms
from services.metering.domain.causes import Cause
from services.metering.domain.charging import Intervals
from services.metering.domain.facts import Array
from services.metering.domain.outbox import Outbox, available_nano, notice_of
from services.metering.domain.rows import (
    FORCED,
    NEVER_MS,
    RELAY_CLOSED,
    RELAY_TRIPPED,
    RELAY_UNKNOWN,
)
from services.metering.domain.shard import ShardState
from services.metering.domain.verdict import (
    KEPT,
    NOTICE_PENDING,
    REFUSALS,
    Grounds,
    Verdict,
    kept_by,
    verdict,
)


def _relay_seen() -> Array:
    """Return what is known of a relay after relay bits, by (what was known, bits)."""
    bits = np.arange(256)
    seen = np.repeat(np.arange(3, dtype=np.uint8)[:, np.newaxis], 256, axis=1)
    reported, closed = bits & RELAY_REPORTED != 0, bits & RELAY_PHASES != 0
    seen[:, reported & closed] = RELAY_CLOSED
    seen[RELAY_CLOSED, reported & ~closed] = RELAY_TRIPPED
    return seen


_RELAY_SEEN = _relay_seen()


def relays_seen(intervals: Intervals) -> Array:
    """Return what is known of relays after readings; while a cut stands, what was known before."""
    known = intervals.meters["relay"]
    seen = _RELAY_SEEN[known, intervals.readings["relay_bits"]]
    cut = intervals.accounts["level"] == CUT
    return np.where(cut, known, seen) if cut.any() else seen


def judge(
    out: Outbox,
    slots: Array,
    cause_of: Callable[[int], Cause],
    *,
    by_reading: bool = False,
    accounts: Array | None = None,
) -> None:
    """Judge accounts after a change of each.

    `cause_of` gives the cause of the i-th. `by_reading`: each was charged by a reading. Else they
    changed by a fact or by a correction, and nobody is cut. `accounts`: as they stand, where that
    is at hand.
    """
    if accounts is None:
        accounts = out.state.accounts.take(slots)
    found = _moves(out.state, slots, accounts, accounts["charged_nano"], by_reading=by_reading)
    if found is None:
        return
    acts, counted, in_arrears = found
    levels = accounts["level"]
    for i in np.flatnonzero(acts).tolist():
        slot, target, cause = int(slots[i]), int(counted[i]), cause_of(i)
        if levels[i] == CUT:
            _restore(out, slot, target, cause, by_reading=by_reading)
        elif in_arrears[i] and by_reading:
            _judge_arrears(out, slot, target, cause)
        else:
            _move(out, slot, target, cause)
        if not in_arrears[i] and out.state.accounts["level"][slot] != CUT:
            _leave_arrears(out, slot, cause)


def may_decide(state: ShardState, intervals: Intervals, charged_nano: Array, now_ms: int) -> Array:
    """Say at which readings something may be decided, `charged_nano` after each on its account.

    `now_ms`: of the record, or of a later one.
    """
    slots, accounts = intervals.account_slots, intervals.accounts
    found = _moves(state, slots, accounts, charged_nano, by_reading=True)
    if found is None:
        return np.zeros(len(accounts), np.bool_)
    leases_ms = state.policies.rows["lease_ms"][state.account_links["policy"][slots]]
    ends_soon = _is_running_out(leases_ms, intervals.meters["send_before_ms"], now_ms)
    renewed: Array = (accounts["level"] == CUT) & _are_closed(intervals.readings["relay_bits"])
    return found[0] | (renewed & ends_soon)


def _moves(
    state: ShardState, slots: Array, accounts: Array, charged_nano: Array, *, by_reading: bool
) -> tuple[Array, Array, Array] | None:
    """Return (which accounts move, the level that counts for each, which are in arrears).

    `accounts`: dtype ACCOUNT, what stands at `slots`; `charged_nano`: what of it does, or is to.
    None: nobody moves.
    """
    slots_of_policies = state.account_links["policy"][slots]
    available = accounts["credited_nano"] - charged_nano - accounts["held_nano"]
    levels = accounts["level"]
    is_plenty = available > state.policies.rows["warned_nano"][slots_of_policies]
    if is_plenty.all() and not levels.any():  # normal, and they were
        return None
    policies = state.policies.rows.take(slots_of_policies)
    counted, in_arrears = asked(available, levels, policies)
    were_in_arrears = accounts["arrears_since_ms"] != NEVER_MS
    acts = np.where(
        levels == CUT,
        (available >= policies["restore_nano"]) | (not by_reading),
        (counted != levels) | np.where(in_arrears, by_reading, were_in_arrears),
    )
    acts &= accounts["known"] & ~accounts["house"] & ~accounts["closed"]
    acts &= accounts["meters"] > 0  # nobody is warned before there is something to cut
    return acts, counted, in_arrears


def _judge_arrears(out: Outbox, slot: int, target: int, cause: Cause) -> None:
    """Cut an account whose reading says that nothing is left, or say why not."""
    account = out.state.accounts[slot]
    if account["arrears_since_ms"] == NEVER_MS:
        account["arrears_since_ms"] = out.state.now_ms
    found = _verdict(out.state, slot, cause)
    if found.cut:
        _cut(out, slot, cause)
        return
    _move(out, slot, target, cause)
    _refuse(out, slot, found.reason, cause)


def _leave_arrears(out: Outbox, slot: int, cause: Cause) -> None:
    account = out.state.accounts[slot]
    if account["arrears_since_ms"] != NEVER_MS:
        end_refusal(out, slot, cause)
        account["arrears_since_ms"] = NEVER_MS
        account["notice_at_ms"] = NEVER_MS
        out.touch(np.array([slot]))


def end_refusal(out: Outbox, slot: int, cause: Cause) -> None:
    """Say that the reason why an account is not cut, or not again, is over, where one was told."""
    account = out.state.accounts[slot]
    reason = REFUSALS[account["refusal"]]
    if reason:
        account["refusal"] = 0
        out.alarm(slot, "not-cut-ended", reason, cause)


def _verdict(state: ShardState, slot: int, cause: Cause) -> Verdict:
    """Return whether arrears may cut an account by the reading of `cause`."""
    fact = state.account_fact(slot)
    assert fact is not None, "only accounts with an account-fact are judged"
    account, policy_slot = state.accounts[slot], int(state.account_links["policy"][slot])
    notice_at_ms = int(account["notice_at_ms"])
    # Most account-facts tell of no notice: then its id need not be made.
    notice_outcome = notice_of(state, slot)[1] if fact["notice_id"] else None
    reading = cause.reading
    received_at_ms, began_at_ms = int(reading["received_at_ms"]), int(reading["began_at_ms"])
    grounds = Grounds(
        now_ms=state.now_ms,
        received_at_ms=received_at_ms,
        pushed_from_ms=int(reading["device_time_ms"]) if began_at_ms >= received_at_ms else None,
        quality=chr(reading["quality"]),
        was_silent=cause.was_silent,
        max_evidence_age_ms=int(state.policies.rows["max_evidence_age_ms"][policy_slot]),
        arrears_since_ms=int(account["arrears_since_ms"]),
        keep_power_until_ms=fact["keep_power_until_ms"],
        promise_until_ms=fact["promise_until_ms"],
        is_no_cut=state.policies.is_no_cut(policy_slot, state.now_ms),
        is_forced=bool(state.meters["forced"][state.meters_of(slot)].all()),
        notice_at_ms=None if notice_at_ms == NEVER_MS else notice_at_ms,
        notice_outcome=notice_outcome,
    )
    return verdict(state.policies.rules[policy_slot], grounds)


def _refuse(out: Outbox, slot: int, reason: str, cause: Cause) -> None:
    """Say why an account in arrears is not cut, where that is not what was said last."""
    account, refusal = out.state.accounts[slot], REFUSALS.index(reason)
    if account["refusal"] != refusal:
        account["refusal"] = refusal
        out.touch(np.array([slot]))
        out.alarm(
            slot,
            "not-cut",
            reason,
            cause,
            threshold_nano=int(_policy(out.state, slot)["floor_nano"]),
            forced_orders=_forced_orders(out.state, slot) if reason == "forced" else None,
        )
    if reason in KEPT:
        account["notice_at_ms"] = NEVER_MS
    if reason == NOTICE_PENDING:
        _give_notice(out, slot, cause)


def _forced_orders(state: ShardState, slot: int) -> str:
    """Return a person's order for each relay of an account, as JSON."""
    keys = state.meters["key"][state.meters_of(slot)].tolist()
    orders = [
        {
            "meter_id": fact["meter_id"],
            "position": fact["forced"],
            "book_epoch": fact["book_epoch"],
            "revision": fact["revision"],
        }
        for fact in map(state.meter_fact, keys)
    ]
    return json.dumps(orders)


def _give_notice(out: Outbox, slot: int, cause: Cause) -> None:
    state, account = out.state, out.state.accounts[slot]
    rules = _rules(state, slot)
    assert rules.notice is not None, "it is what it waits for"
    account["notice_at_ms"] = state.now_ms
    account["notice_sequence"] = account["sequence"]
    out.notice(
        slot,
        cause,
        threshold_nano=int(_policy(state, slot)["floor_nano"]),
        cut_not_before_ms=max(
            state.now_ms + rules.notice.lead_ms, int(account["arrears_since_ms"]) + rules.grace_ms
        ),
    )


def _move(out: Outbox, slot: int, target: int, cause: Cause) -> None:
    """Let an account warn, or warn less."""
    level, policy = int(out.state.accounts["level"][slot]), _policy(out.state, slot)
    if target > level:
        kind, reason, crossed = LEVEL_NAMES[target], "threshold-reached", target
    elif target < level:
        kind, reason, crossed = "cleared", "credit-above-threshold", level
    else:
        return
    _set_level(out, slot, target)
    out.alarm(
        slot,
        kind,
        reason,
        cause,
        levels=(level, target),
        threshold_nano=int(policy["alarm_1_nano" if crossed == ALARM_1 else "alarm_2_nano"]),
    )


def _set_level(out: Outbox, slot: int, level: int) -> None:
    """Change an account's level; its balance is published at once."""
    account = out.state.accounts[slot]
    account["level"] = level
    slots = np.array([slot])
    out.touch(slots)
    out.publish(slots)


def _restore(out: Outbox, slot: int, target: int, cause: Cause, *, by_reading: bool) -> None:
    """Give power again to who can pay for it, or whom an order keeps on it."""
    state, fact = out.state, out.state.account_fact(slot)
    assert fact is not None, "only accounts with an account-fact are judged"
    restore_nano = int(_policy(state, slot)["restore_nano"])
    reason, cause_name = "credit-restored", "paid"
    threshold_nano: int | None = restore_nano
    if available_nano(state.accounts[slot]) < restore_nano:
        kept = kept_by(state.now_ms, fact["keep_power_until_ms"], fact["promise_until_ms"])
        if by_reading or kept is None:
            return
        reason, cause_name, threshold_nano = kept, kept, None
        state.accounts["notice_at_ms"][slot] = NEVER_MS
    state.accounts["refusal"][slot] = 0
    free, meters = _free_meters(state, slot), state.meters
    closed = [each for each in free if meters["relay"][each] != RELAY_TRIPPED]
    _set_level(out, slot, target)
    out.alarm(
        slot,
        "restored",
        reason,
        cause,
        levels=(CUT, target),
        threshold_nano=threshold_nano,
        intent_epoch=int(meters["epoch"][closed[0]]) if closed else None,
    )
    for meter_slot in free:
        if meters["relay"][meter_slot] == RELAY_TRIPPED:
            meter = state.meter_fact(int(meters["key"][meter_slot]))
            out.alarm(slot, "not-restored", "tripped", Cause(meter=meter, position=cause.position))
        else:
            close(out, slot, meter_slot, cause_name, cause, threshold_nano=threshold_nano)


def _free_meters(state: ShardState, slot: int) -> list[int]:
    """Return the slots of meters whose relay no person's order holds, in ascending meter_key."""
    forced = state.meters["forced"]
    return [meter_slot for meter_slot in state.meters_of(slot) if not forced[meter_slot]]


def obey(out: Outbox, slot: int, meter_slot: int, cause: Cause) -> None:
    """Want a relay as a person ordered it; at the order's end as its account's level says."""
    forced = FORCED[out.state.meters["forced"][meter_slot]]
    if forced == "off":
        _forget_relay(out.state, meter_slot)
        out.intent(slot, meter_slot, "open", "forced", cause, mode="forced-off")
    elif forced == "on":
        close(out, slot, meter_slot, "forced", cause, mode="forced-on")
    elif out.state.accounts["level"][slot] != CUT:
        close(out, slot, meter_slot, "released", cause)
    else:
        _let_go(out, slot, meter_slot, cause)


def _let_go(out: Outbox, slot: int, meter_slot: int, cause: Cause) -> None:
    """End a person's order of a relay whose account is cut: by a cut whose lease is over at once.

    Without it the order would be the newest intent still, and be obeyed for ever.
    """
    _forget_relay(out.state, meter_slot)
    now_ms = out.state.meters["send_before_ms"][meter_slot] = out.state.now_ms
    out.intent(slot, meter_slot, "open", "released", cause, send_before_ms=now_ms)


def _forget_relay(state: ShardState, meter_slot: int) -> None:
    """Let nothing be known of a relay that is to move, and no cut of it stand."""
    state.meters["send_before_ms"][meter_slot] = NEVER_MS
    state.meters["relay"][meter_slot] = RELAY_UNKNOWN


def close(
    out: Outbox,
    slot: int,
    meter_slot: int,
    cause_name: str,
    cause: Cause,
    *,
    mode: str = "prepaid",
    threshold_nano: int | None = None,
) -> None:
    """Want a relay closed."""
    _forget_relay(out.state, meter_slot)
    out.intent(
        slot, meter_slot, "closed", cause_name, cause, mode=mode, threshold_nano=threshold_nano
    )


def _policy(state: ShardState, slot: int) -> Any:
    return state.policies.rows[state.account_links["policy"][slot]]


def _rules(state: ShardState, slot: int) -> Rules:
    return state.policies.rules[state.account_links["policy"][slot]]


def _cut(out: Outbox, slot: int, cause: Cause) -> None:
    state = out.state
    level, free = int(state.accounts["level"][slot]), _free_meters(state, slot)
    is_free = bool((state.meters["key"][free] == cause.charge["meter_key"]).any())
    state.accounts["refusal"][slot] = 0
    _set_level(out, slot, CUT)
    out.alarm(
        slot,
        "cut",
        "threshold-reached",
        cause,
        levels=(level, CUT),
        threshold_nano=int(_policy(state, slot)["floor_nano"]),
        # That of the meter that is named, where there is one: a person's order may hold its relay.
        intent_epoch=int(cause.charge["epoch"]) if is_free else None,
    )
    for meter_slot in free:
        _open(out, slot, meter_slot, "arrears", cause)


def _open(out: Outbox, slot: int, meter_slot: int, cause_name: str, cause: Cause) -> None:
    """Want a relay open, as a lease: what cannot be sent in time is not sent at all."""
    state, policy = out.state, _policy(out.state, slot)
    evidence_until_ms = int(cause.reading["received_at_ms"]) + int(policy["max_evidence_age_ms"])
    until_ms = min(state.now_ms + int(policy["lease_ms"]), evidence_until_ms)
    window_ms = first_no_cut_ms(_rules(state, slot), state.now_ms, until_ms)
    send_before_ms = until_ms if window_ms is None else window_ms
    if cause_name == "lease-renewed" or state.meters["relay"][meter_slot] != RELAY_TRIPPED:
        _forget_relay(state, meter_slot)
    state.meters["send_before_ms"][meter_slot] = send_before_ms
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

    `candidates`: charged by a reading, and cut before it.
    """
    state, accounts = out.state, out.state.accounts.take(intervals.account_slots)
    candidates = candidates & _are_closed(intervals.readings["relay_bits"])
    candidates &= (accounts["level"] == CUT) & ~accounts["closed"]
    candidates &= intervals.meters["forced"] == 0
    for i in np.flatnonzero(candidates).tolist():
        slot, meter_slot = int(intervals.account_slots[i]), int(intervals.meter_slots[i])
        lease_ms = _policy(state, slot)["lease_ms"]
        if not _is_running_out(lease_ms, state.meters["send_before_ms"][meter_slot], state.now_ms):
            continue
        cause = cause_of(i)
        found = _verdict(state, slot, cause)
        if found.cut:
            end_refusal(out, slot, cause)
            _open(out, slot, meter_slot, "lease-renewed", cause)
        else:
            _refuse(out, slot, found.reason, cause)


def _is_running_out(lease_ms: Any, send_before_ms: Any, now_ms: int) -> Any:
    """Say of which leases less than half is left, or none was given (NEVER_MS: before any time)."""
    return now_ms + lease_ms // 2 > send_before_ms


def _are_closed(relay_bits: Array) -> Array:
    """Say which relays were reported with a phase closed."""
    closed: Array = (relay_bits & RELAY_REPORTED != 0) & (relay_bits & RELAY_PHASES != 0)
    return closed
