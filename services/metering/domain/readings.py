"""Rule 3: a frame of readings, absorbed as columns: at once what comes to the same one by one."""

from collections.abc import Callable, Iterator

import numpy as np

from services.common.kernel.frames import KIND_ROLLOVER, KIND_USAGE, Entries, Table
from services.common.policies.levels import CUT
from services.metering.domain.causes import Cause
from services.metering.domain.charging import (
    Bill,
    Intervals,
    advance,
    bill_of,
    post,
    post_to,
    stand,
    warn_of_closed,
)
from services.metering.domain.facts import Array, are_distinct
from services.metering.domain.fees import post_fees
from services.metering.domain.freezing import freeze
from services.metering.domain.groups import Groups
from services.metering.domain.habits import told_of
from services.metering.domain.holds import are_newly_held, changed_flags, count_flags, hold
from services.metering.domain.judging import judge, may_decide, relays_seen, renew
from services.metering.domain.outbox import Outbox
from services.metering.domain.resplit import late_outcome, leave_windows, resplit
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
REACH = 16
"""How many readings are looked at for each that went at once before."""


def absorb_readings(out: Outbox, readings: Entries, *, among: Array | None = None) -> None:
    """Absorb a frame's readings (dtype READING) in their order; only those `among` them."""
    state = out.state
    meter_slots = state.standing.find(readings["meter_key"])
    known = meter_slots >= 0
    out.count("unknown-meter", len(readings) - int(np.count_nonzero(known)))
    account_slots = state.accounts_of(meter_slots)
    # Accounts that absorbed this record before a restart (rule 1).
    behind = known & (state.accounts["offset"][account_slots] < out.offset)
    positions = np.flatnonzero(behind if among is None else behind & among)
    state.link_read(account_slots[positions])
    post_fees(out, account_slots[positions])
    for chosen in waves(account_slots[positions], meter_slots[positions]):
        _absorb_wave(out, readings, positions[chosen], meter_slots, account_slots)


def waves(account_slots: Array, meter_slots: Array) -> Iterator[Array]:
    """Yield indexes of readings, ascending: no meter twice, those of an account in their order."""
    count = len(meter_slots)
    if are_distinct(account_slots) or are_distinct(meter_slots):
        if count:
            yield np.arange(count)
        return
    numbers = np.zeros(count, np.int64)
    newest: dict[int, int] = {}  # of each account
    seen: dict[int, int] = {}  # in which wave each meter came last
    places = zip(account_slots.tolist(), meter_slots.tolist(), strict=True)
    for i, (account, meter) in enumerate(places):
        number = newest.get(account, 0)
        if seen.get(meter) == number:
            number += 1
        newest[account] = seen[meter] = numbers[i] = number
    for number in range(int(numbers.max()) + 1):
        yield np.flatnonzero(numbers == number)


def _absorb_wave(
    out: Outbox, frame: Entries, positions: Array, meter_slots: Array, account_slots: Array
) -> None:
    """Absorb the readings at `positions` of a frame, no meter twice, in rounds."""
    reach = len(positions)
    while len(positions):
        looked_at = positions[:reach]
        done = _absorb_round(out, frame, looked_at, meter_slots, account_slots)
        # Where little may go at once, little is looked at: or the last were looked at every time.
        reach = REACH * int(np.count_nonzero(done))
        positions = np.append(looked_at[~done], positions[len(looked_at) :])


def _absorb_round(
    out: Outbox, frame: Entries, positions: Array, meter_slots: Array, account_slots: Array
) -> Array:
    """Absorb what may go at once of the readings at `positions`; say which those were."""
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
    for i in np.flatnonzero(_REFINED[outcomes]).tolist():
        outcomes[i] = CODES[_refined(state, intervals, i, int(outcomes[i]))]
    go, bill = np.ones(len(positions), np.bool_), None
    if not are_distinct(account_slots):
        go, bill = at_once(state, intervals, outcomes)
        which = np.flatnonzero(go)
        intervals, outcomes, positions = intervals.take(which), outcomes[which], positions[which]
    _absorb_now(out, intervals, outcomes, positions, bill)
    return go


def at_once(state: ShardState, intervals: Intervals, outcomes: Array) -> tuple[Array, Bill | None]:
    """Say which readings may go at once, with the bill of those that are charged (None: none is).

    Of each account the first one, whatever comes of it, and those behind it up to one of which
    something may come besides its charge: that tells what the others left. Changes nothing.
    """
    slots = intervals.account_slots
    go = _leading(slots, _may_be_told(state, intervals, outcomes))
    while True:
        charged = np.flatnonzero(go & CHARGED[outcomes])
        if not len(charged):
            return go, None
        chosen = intervals.take(charged)
        of_accounts = Groups(chosen.account_slots)
        several = None if of_accounts.are_single else of_accounts
        bill = bill_of(state, chosen, KIND_USAGE, several)
        odd = np.zeros(len(slots), np.bool_)
        totals_nano = bill.charges["account_charged_total_nano"]
        odd[charged] = bill.cannot | may_decide(state, chosen, totals_nano, state.now_ms)
        fewer = go & _leading(slots, odd)
        if (fewer == go).all():
            return go, bill
        go = fewer


def _may_be_told(state: ShardState, intervals: Intervals, outcomes: Array) -> Array:
    """Say of which readings something may come besides a charge and what the charge does."""
    told = told_of(state, intervals, KIND_USAGE)
    changed = (flags_of(intervals) | told.raised | told.kept) != intervals.meters["flags"]
    found: Array = (CHARGED[outcomes] & changed) | are_newly_held(state, intervals, outcomes)
    return found | (outcomes == _RESPLIT) | (outcomes == _ROLLOVER)


def _leading(slots: Array, odd: Array) -> Array:
    """Say which entries are the first of their slot, or stand before all odd ones of it."""
    if not odd.any():
        return np.ones(len(slots), np.bool_)
    of_slots = Groups(slots)
    return (of_slots.ranks() == 0) | (of_slots.sums_before(odd) + odd == 0)


def _absorb_now(
    out: Outbox, intervals: Intervals, outcomes: Array, positions: Array, bill: Bill | None
) -> None:
    """Absorb readings. `bill`: of those that are charged, where it is known."""
    charged = np.flatnonzero(CHARGED[outcomes])
    if len(charged) == len(outcomes):
        _charge(out, intervals, positions, KIND_USAGE, bill)
        return
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
            known = bill if kind == KIND_USAGE else None
            _charge(out, intervals.take(which), positions[which], kind, known)


def _refined(state: ShardState, intervals: Intervals, i: int, outcome: int) -> str:
    """Return what the i-th reading comes to, whose outcome the columns cannot tell."""
    meter, reading = intervals.meters[i], intervals.readings[i]
    if outcome != _LATE:
        register_max_milli = state.meter_fact(int(meter["key"]))["register_max_milli"]
        return jump_outcome(meter, reading, register_max_milli)
    return "conflict" if is_conflict(meter, reading) else late_outcome(state, intervals, i)


def _charge(
    out: Outbox, intervals: Intervals, positions: Array, kind: int, bill: Bill | None
) -> None:
    """Charge readings that were accepted; judge their accounts."""
    if bill is None:
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
    flags, told = flags_of(intervals), told_of(state, intervals, kind)
    flags |= told.raised
    count_flags(out, flags)
    flags |= told.kept
    changes = changed_flags(intervals, flags, told.found)
    were_silent = intervals.meters["flags"] & SILENT != 0
    intervals.meters["flags"] = flags
    intervals.meters["relay"] = relays_seen(intervals)
    advance(out, intervals, charges)
    for i, habits in told.habits.items():
        state.tails.put_habits(state.meters, int(intervals.meter_slots[i]), habits)
    for i, since in told.stands.items():
        state.tails.put_stand(state.meters, int(intervals.meter_slots[i]), since)
    intervals.accounts["last_received_at_ms"] = intervals.readings["received_at_ms"]
    if bill.several:
        ends = Groups(intervals.account_slots).ends()
        slots = intervals.account_slots.take(ends)
        post_to(out, intervals.accounts.take(ends), slots, charges.take(ends))
    else:
        post(out, intervals, charges)
    stand(state, bill, intervals.account_slots)
    if kind == KIND_USAGE and len(bill.split):
        leave_windows(state, intervals, bill)

    cause_of = _causes(out, intervals, positions, charges, were_silent)
    slots = intervals.account_slots
    for i, change, flag, evidence in changes:
        out.alarm(int(slots[i]), change, flag, cause_of(i), evidence=evidence)
    warn_of_closed(out, slots, bill.lines, cause_of)
    accounts = None if bill.several else intervals.accounts
    judge(out, slots, cause_of, by_reading=True, accounts=accounts)
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
