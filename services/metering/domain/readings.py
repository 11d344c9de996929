"""Rule 3: a frame of readings, absorbed as columns, in rounds that touch each account once."""

from collections.abc import Callable, Iterator

import numpy as np

from services.common.kernel.frames import KIND_USAGE
from services.metering.domain.charging import Intervals, advance, bill_of, post, stand
from services.metering.domain.facts import Array
from services.metering.domain.judging import judge, renew
from services.metering.domain.outbox import Cause, Outbox, freeze, warn_of_closed
from services.metering.domain.resplit import kept_windows, late_outcome, resplit
from services.metering.domain.rows import CUT, NO_POWER
from services.metering.domain.shard import ShardState

REGISTER_MILLI_MAX = 10**15
TIME_MS_FROM = 946_684_800_000
"""2000-01-01: a device whose clock says less has none."""
TIME_MS_TO = 4_102_444_800_000
"""2100-01-01."""
DURATION_MS_MAX = 2**31
"""Beyond it a longer silence allows no more energy."""
POWER_W_PLAIN_MAX = 2**31
"""Up to it power × duration fits int64."""

OUTCOMES = (
    "accepted",
    "other-epoch",
    "frozen",
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
)
"""In the order in which they decide; `accepted` where no other does."""
_CODE = {name: code for code, name in enumerate(OUTCOMES)}
_CHARGED = np.isin(OUTCOMES, ["accepted", "opens"])
_LATE, _RESPLIT = _CODE["late"], _CODE["re-split"]
_HELD = np.isin(OUTCOMES, ["other-serial", "absurd", "ratio-mismatch", "negative", "implausible"])


def absorb_readings(out: Outbox, readings: Array) -> None:
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
    out: Outbox, frame: Array, positions: Array, meter_slots: Array, account_slots: Array
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
    charged = np.flatnonzero(_CHARGED[outcomes])
    if len(charged) == len(frame):
        _charge(out, intervals, positions)
        return
    for i in np.flatnonzero(outcomes == _LATE).tolist():
        outcomes[i] = _CODE[late_outcome(state, intervals, i)]
    for code, how_many in enumerate(np.bincount(outcomes, minlength=len(OUTCOMES)).tolist()):
        if not (_CHARGED[code] or code == _RESPLIT):
            out.count(OUTCOMES[code], how_many)
    _hold(out, intervals, positions, outcomes)
    for i in np.flatnonzero(outcomes == _RESPLIT).tolist():
        resplit(out, intervals.take(np.array([i])), int(positions[i]))
    if len(charged):
        _charge(out, intervals.take(charged), positions[charged])


def outcomes_of(intervals: Intervals) -> Array:
    """Return the outcome of each reading, as an index into OUTCOMES."""
    readings, meters = intervals.readings, intervals.meters
    register, time_ms = readings["register_milli"], readings["device_time_ms"]
    last, accepted_before = meters["register_milli"], meters["sequence"] > 0
    outcomes = np.zeros(len(readings), np.uint8)
    holds = {
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
        "frozen": intervals.accounts["frozen"],
        "other-epoch": readings["epoch"] != meters["epoch"],
    }
    for name, where in holds.items():  # the last written stands: the first of the rule
        outcomes[where] = _CODE[name]
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


def _hold(out: Outbox, intervals: Intervals, positions: Array, outcomes: Array) -> None:
    """Raise the flag of meters whose reading is held, with an alarm where it was down."""
    state = out.state
    newly = _HELD[outcomes] & ~intervals.meters["held"]
    if not newly.any():
        return
    state.meters["held"][intervals.meter_slots[newly]] = True
    out.touch(intervals.account_slots[newly])
    cause_of = _causes(out, intervals, positions)
    for i in np.flatnonzero(newly & ~intervals.accounts["house"]).tolist():
        slot = int(intervals.account_slots[i])
        out.alarm(slot, "reading-held", OUTCOMES[outcomes[i]], cause_of(i))


def _charge(out: Outbox, intervals: Intervals, positions: Array) -> None:
    """Charge readings that were accepted; judge their accounts."""
    state = out.state
    bill = bill_of(state, intervals, KIND_USAGE)
    if bill.cannot.any():
        cause_of = _causes(out, intervals, positions)
        for i in np.flatnonzero(bill.cannot).tolist():
            freeze(out, int(intervals.account_slots[i]), cause_of(i))
        can = np.flatnonzero(~bill.cannot)
        intervals, positions, bill = intervals.take(can), positions[can], bill.take(can)
        if not len(intervals):
            return
    charges = bill.charges
    out.count("accepted", len(intervals))
    out.charge(positions, charges, bill.names, bill.lines)
    advance(state, intervals, charges)
    post(out, intervals, charges)
    stand(state, bill)
    if bill.straddles.any():
        _leave_windows(state, intervals, charges, np.flatnonzero(bill.straddles))

    cause_of = _causes(out, intervals, positions, charges)
    slots = intervals.account_slots
    warn_of_closed(out, slots, bill.lines, cause_of)
    judge(out, slots, cause_of, by_reading=True)
    was_cut = intervals.accounts["level"] == CUT
    if was_cut.any():
        renew(out, intervals, cause_of, was_cut)


def _leave_windows(state: ShardState, intervals: Intervals, charges: Array, which: Array) -> None:
    """Keep the intervals that were split by time, for a late reading to split them again."""
    ends = ("from_time_ms", "from_register_milli", "to_time_ms", "to_register_milli")
    meter_slots = intervals.meter_slots[which].tolist()
    windows = zip(*(charges[name][which].tolist() for name in ends), strict=True)
    for meter_slot, window in zip(meter_slots, windows, strict=True):
        state.put_windows(meter_slot, kept_windows([*state.windows_of(meter_slot), window]))


def _causes(
    out: Outbox, intervals: Intervals, positions: Array, charges: Array | None = None
) -> Callable[[int], Cause]:
    state = out.state

    def cause_of(i: int) -> Cause:
        return Cause(
            meter=state.meter_fact(int(intervals.meters["key"][i])),
            charge=None if charges is None else charges[i],
            reading=intervals.readings[i],
            position=int(positions[i]),
        )

    return cause_of
