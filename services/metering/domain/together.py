"""Frames that wait together, absorbed in one pass: as one by one, in a part of the time.

Absorbing a frame takes some hundred steps over its columns, however short they are. Frames of
different accounts know nothing of each other, so their columns may stand behind each other. A pass
takes those of which nothing but charges and balances comes; the others are absorbed by themselves.
What each record caused is kept apart: outputs, rows and header are those of `absorb`, byte for
byte, so that neither a restart nor a reader can tell.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from services.common.kernel.frames import (
    BASIS_CLOSED,
    CHARGE_COLUMNS,
    KIND_USAGE,
    LINE_COLUMNS,
    READING_KINDS,
    ReadingFrame,
    Table,
    packed_frames,
)
from services.common.kernel.values import value_class
from services.metering.domain.absorb import absorb, check
from services.metering.domain.charging import Bill, Intervals, bill_of
from services.metering.domain.facts import Array
from services.metering.domain.habits import concerned
from services.metering.domain.judging import may_decide
from services.metering.domain.messages import Absorbed, LogRecord
from services.metering.domain.outbox import Outbox, set_names
from services.metering.domain.readings import charge
from services.metering.domain.rows import header_row
from services.metering.domain.shard import ShardState
from services.metering.domain.validation import CHARGED, are_gaps, flags_of, outcomes_of

TOGETHER_READINGS_MAX = 500
"""Readings in a pass of several frames: more of them cost as much as one by one."""


def absorb_all(state: ShardState, records: Sequence[LogRecord]) -> list[Absorbed]:
    """Absorb records in their order; return what each caused, as `absorb` of each would.

    Raises BadRecord as it does; records before it are absorbed then.
    """
    done: list[Absorbed] = []
    for run in _runs(state, records):
        done += _absorb_run(state, run) if len(run) > 1 else [absorb(state, run[0])]
    return done


def _runs(state: ShardState, records: Sequence[LogRecord]) -> Iterator[list[LogRecord]]:
    """Yield records that go together: frames that follow each other, no account in two of them.

    A run must be absorbed before the next is asked for.
    """
    run: list[LogRecord] = []
    mentioned: set[int] = set()
    for record in records:
        accounts = _accounts_of(state, record)
        together = accounts is not None and mentioned.isdisjoint(accounts)
        if run and not (together and len(mentioned) + len(accounts or ()) <= TOGETHER_READINGS_MAX):
            yield run
            run, mentioned = [], set()
        if accounts is None:
            yield [record]
        else:
            run.append(record)
            mentioned |= accounts
    if run:
        yield run


def _accounts_of(state: ShardState, record: LogRecord) -> set[int] | None:
    """Return the slots of the accounts of a frame; None where it must go alone."""
    if not isinstance(record.value, ReadingFrame) or record.offset <= state.offset:
        return None
    rows = record.value.rows
    if len(rows) >= TOGETHER_READINGS_MAX:
        return None
    meter_slots = state.find_meters(rows["meter_key"])
    if (meter_slots < 0).any():
        return None
    accounts = set(state.meter_links["account"][meter_slots].tolist())
    return accounts if len(accounts) == len(rows) else None


def _absorb_run(state: ShardState, run: Sequence[LogRecord]) -> list[Absorbed]:
    for record in run:
        check(state, record)
    times_ms = (record.timestamp_ms for record in run)
    nows_ms = list(accumulate(times_ms, max, initial=state.now_ms))[1:]
    found: dict[int, Absorbed] = {}
    calm = _calm(state, run, nows_ms)
    if calm is not None:
        found = _Gathered(state, run, nows_ms, calm).absorbed_each()
    for number, record in enumerate(run):
        if number not in found:
            state.now_ms = nows_ms[number]
            found[number] = absorb(state, record)
    state.offset, state.now_ms = run[-1].offset, nows_ms[-1]
    return [found[number] for number in range(len(run))]


@value_class
class _Calm:
    """Readings of which nothing but charges and balances comes; `owners`: of which record each."""

    owners: Array
    intervals: Intervals
    bill: Bill


def _calm(state: ShardState, run: Sequence[LogRecord], nows_ms: Sequence[int]) -> _Calm | None:
    """Return what may be absorbed in one pass. Changes nothing."""
    frames = [record.value.rows for record in run if isinstance(record.value, ReadingFrame)]
    readings = Table.joined(READING_KINDS, frames)
    owners = np.repeat(np.arange(len(run)), [len(frame) for frame in frames])
    meter_slots = state.find_meters(readings["meter_key"])
    slots = state.meter_links["account"][meter_slots]
    state.link_read(slots)
    accounts, meters = state.accounts.take(slots), state.meters.take(meter_slots)
    intervals = Intervals(meters, accounts, slots, meter_slots, readings)
    offsets = np.array([record.offset for record in run])
    odd = ~CHARGED[outcomes_of(intervals)] | (accounts["offset"] >= offsets[owners])
    odd |= (flags_of(intervals) | meters["flags"]) != 0
    odd |= are_gaps(intervals)
    odd[concerned(state, intervals)] = True
    odd |= accounts["fees_due_ms"] <= np.array(nows_ms)[owners]
    while True:
        if odd.any():
            kept = np.flatnonzero(~np.isin(owners, owners[odd]))
            owners, intervals = owners[kept], intervals.take(kept)
        if not len(owners):
            return None
        bill = bill_of(state, intervals, KIND_USAGE)
        totals_nano = bill.charges["account_charged_total_nano"]
        odd = bill.cannot | may_decide(state, intervals, totals_nano, nows_ms[-1])
        odd[bill.lines["charge"][bill.lines["basis"] & BASIS_CLOSED != 0]] = True
        if not odd.any():
            return _Calm(owners, intervals, bill)


class _Gathered(Outbox):
    """What calm readings of several records cause; `now_ms`: of each reading's record."""

    def __init__(
        self, state: ShardState, run: Sequence[LogRecord], nows_ms: Sequence[int], calm: _Calm
    ) -> None:
        super().__init__(state, run[-1].offset)
        self._run = run
        self._nows_ms = nows_ms
        self._calm = calm
        self.now_ms = np.array(nows_ms)[calm.owners]

    def absorbed_each(self) -> dict[int, Absorbed]:
        """Let the charges stand; return what each record caused, by its number in the run."""
        state, calm = self.state, self._calm
        charge(self, calm.intervals, np.arange(len(calm.owners)), calm.bill, KIND_USAGE)
        assert not self._decisions, "a calm reading decides nothing"
        slots = calm.intervals.account_slots
        published = np.isin(slots, np.concatenate([slots[:0], *self._publish]))
        self._set_published(slots[published], self.now_ms[published])
        offsets = np.array([record.offset for record in self._run])
        state.accounts["offset"][slots] = offsets[calm.owners]
        rows = state.account_rows(slots)
        numbers, starts = np.unique(calm.owners, return_index=True)
        edges = [*starts.tolist(), len(slots)]
        found = {}
        for number, frame, (start, end) in zip(
            numbers.tolist(), self._frames(edges), pairwise(edges), strict=True
        ):
            told = slots[start:end][published[start:end]]
            record, now_ms = self._run[number], self._nows_ms[number]
            out = Outbox(state, record.offset, now_ms)
            found[number] = Absorbed(
                (out.charge_frame(frame), *out.balances(told)),
                (),
                rows[start:end],
                header_row(record.offset, now_ms),
                Counter(accepted=end - start),
            )
        return found

    def _frames(self, edges: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the columns of the records whose charges lie between neighbouring `edges`."""
        ((_, charges, numbers, lines),) = self._charges
        names: list[tuple[str, ...]] = []
        known: dict[bytes, tuple[tuple[str, ...], Array]] = {}
        indexes = np.empty(numbers.shape, np.uint16)
        for start, end in pairwise(edges):
            mine = numbers[start:end]
            together = mine.tobytes()
            if together not in known:
                known[together] = self.state.names.dictionary(mine)
            found, indexes[start:end] = known[together]
            names.append(found)
        set_names(charges, indexes)
        line_edges = np.searchsorted(lines["charge"], edges)
        counts = np.diff(line_edges)
        lines["charge"] -= np.repeat(np.array(edges[:-1], np.uint32), counts)
        of_charges = packed_frames(charges, CHARGE_COLUMNS, edges[1:])
        of_lines = packed_frames(lines, LINE_COLUMNS, line_edges[1:].tolist())
        for (start, end), of, columns, count, of_line in zip(
            pairwise(edges), names, of_charges, counts.tolist(), of_lines, strict=True
        ):
            counted = {"count": end - start, "line_count": count, "names": list(of)}
            yield counted | columns | of_line
