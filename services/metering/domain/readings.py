"""Rule 3: a frame of readings, absorbed as columns, in rounds that touch each account once."""

from collections.abc import Callable, Iterator

import numpy as np

from services.common.kernel.frames import KIND_ROLLOVER, KIND_USAGE, Entries, Table
from services.metering.domain.charging import Bill, Intervals, advance, bill_of, post, stand
from services.metering.domain.facts import Array
from services.metering.domain.fees import post_fees
from services.metering.domain.holds import changed_flags, count_flags, hold
from services.metering.domain.judging import judge, relays_seen, renew
from services.metering.domain.outbox import Cause, Outbox, freeze, warn_of_closed
from services.metering.domain.resplit import late_outcome, leave_windows, resplit
from services.metering.domain.rows import CUT
from services.metering.domain.shard import ShardState
from services.metering.domain.validation import (
    CHARGED,
    CODES,
    OUTCOMES,
    SILENT,
    are_gaps,
    flags_of,
    is_conflict,
    jump_outcome,
    outcomes_of,
)

_LATE, _RESPLIT, _ROLLOVER = CODES["late"], CODES["re-split"], CODES["rollover"]
_REFINED = np.isin(OUTCOMES, ["late", "negative", "implausible"])


def absorb_readings(out: Outbox, readings: Entries) -> None:
    """Absorb a frame's readings (dtype READING) in their order."""
    state = out.state
    meter_slots = state.find_meters(readings["meter_key"])
    known = meter_slots >= 0
    out.count("unknown-meter", len(readings) - int(np.count_nonzero(known)))
    account_slots = np.where(known, state.meter_links["account"][meter_slots], -1)
    # Accounts that absorbed this record before a restart (rule 1).
    behind = known & (state.accounts["offset"][account_slots] < out.offset)
    positions = np.flatnonzero(behind)
    state.link_read(account_slots[positions])
    post_fees(out, account_slots[positions])
    for chosen in rounds(account_slots[positions]):
        _absorb_round(out, readings, positions[chosen], meter_slots, account_slots)


def rounds(account_slots: Array) -> Iterator[Array]:
    """Yield indexes into `account_slots`: ascending, no account twice, first mentions first."""
    count = len(account_slots)
    if len(set(account_slots.tolist())) == count:
        if count:
            yield np.arange(count)
        return
    order = np.argsort(account_slots, kind="stable")
    ordered = account_slots[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    ranks = np.arange(count) - np.repeat(starts, np.diff(starts, append=count))
    for rank in range(int(ranks.max()) + 1):
        yield np.sort(order[ranks == rank])


def _absorb_round(
    out: Outbox, frame: Entries, positions: Array, meter_slots: Array, account_slots: Array
) -> None:
    state = out.state
    if len(positions) < len(frame):
        frame, meter_slots = frame.take(positions), meter_slots[positions]
        account_slots = account_slots[positions]
    intervals = Intervals(
        state.meters.take(meter_slots),
        state.accounts.take(account_slots),
        account_slots,
        meter_slots,
        frame,
    )
    outcomes = outcomes_of(intervals)
    charged = np.flatnonzero(CHARGED[outcomes])
    if len(charged) == len(frame):
        _charge(out, intervals, positions, KIND_USAGE)
        return
    for i in np.flatnonzero(_REFINED[outcomes]).tolist():
        outcomes[i] = CODES[_refined(state, intervals, i, int(outcomes[i]))]
    for code, how_many in enumerate(np.bincount(outcomes, minlength=len(OUTCOMES)).tolist()):
        if not (CHARGED[code] or code in (_RESPLIT, _ROLLOVER)):
            out.count(OUTCOMES[code], how_many)
    hold(out, intervals, outcomes, _causes(out, intervals, positions))
    for i in np.flatnonzero(outcomes == _RESPLIT).tolist():
        resplit(out, intervals.take(np.array([i])), int(positions[i]))
    for kind, which in (
        (KIND_USAGE, charged),
        (KIND_ROLLOVER, np.flatnonzero(outcomes == _ROLLOVER)),
    ):
        if len(which):
            _charge(out, intervals.take(which), positions[which], kind)


def _refined(state: ShardState, intervals: Intervals, i: int, outcome: int) -> str:
    """Return what the i-th reading comes to, whose outcome the columns cannot tell."""
    meter, reading = intervals.meters[i], intervals.readings[i]
    if outcome != _LATE:
        register_max_milli = state.meter_fact(int(meter["key"]))["register_max_milli"]
        return jump_outcome(meter, reading, register_max_milli)
    return "conflict" if is_conflict(meter, reading) else late_outcome(state, intervals, i)


def _charge(out: Outbox, intervals: Intervals, positions: Array, kind: int) -> None:
    """Charge readings that were accepted; judge their accounts."""
    bill = bill_of(out.state, intervals, kind)
    if bill.cannot.any():
        cause_of = _causes(out, intervals, positions)
        for i in np.flatnonzero(bill.cannot).tolist():
            freeze(out, int(intervals.account_slots[i]), cause_of(i))
        can = np.flatnonzero(~bill.cannot)
        intervals, positions, bill = intervals.take(can), positions[can], bill.take(can)
        if not len(intervals):
            return
    charge(out, intervals, positions, bill, kind)


def charge(out: Outbox, intervals: Intervals, positions: Array, bill: Bill, kind: int) -> None:
    """Let a bill of accepted readings stand, all of which can be charged; judge their accounts."""
    state, charges = out.state, bill.charges
    out.count("rollover" if kind == KIND_ROLLOVER else "accepted", len(intervals))
    out.count("gap", int(np.count_nonzero(are_gaps(intervals))))
    out.charge(positions, charges, bill.names, bill.lines)
    flags = flags_of(intervals)
    count_flags(out, flags)
    changes = changed_flags(intervals, flags)
    were_silent = intervals.meters["flags"] & SILENT != 0
    intervals.meters["flags"] = flags
    intervals.meters["relay"] = relays_seen(intervals)
    advance(out, intervals, charges)
    intervals.accounts["last_received_at_ms"] = intervals.readings["received_at_ms"]
    post(out, intervals, charges)
    stand(state, bill)
    if kind == KIND_USAGE and bill.windows:
        leave_windows(state, intervals, bill)

    cause_of = _causes(out, intervals, positions, charges, were_silent)
    slots = intervals.account_slots
    for i, change, flag, evidence in changes:
        out.alarm(int(slots[i]), change, flag, cause_of(i), evidence=evidence)
    warn_of_closed(out, slots, bill.lines, cause_of)
    judge(out, slots, cause_of, by_reading=True, accounts=intervals.accounts)
    was_cut = intervals.accounts["level"] == CUT
    if was_cut.any():
        renew(out, intervals, cause_of, was_cut)


def _causes(
    out: Outbox,
    intervals: Intervals,
    positions: Array,
    charges: Table | None = None,
    were_silent: Array | None = None,
) -> Callable[[int], Cause]:
    state = out.state

    def cause_of(i: int) -> Cause:
        return Cause(
            meter=state.meter_fact(int(intervals.meters["key"][i])),
            charge=None if charges is None else charges[i],
            reading=intervals.readings[i],
            position=int(positions[i]),
            was_silent=were_silent is not None and bool(were_silent[i]),
        )

    return cause_of
