"""Frames that wait together, absorbed in one pass: as one by one, in a part of the time.

Absorbing a frame takes some hundred steps over its columns, however short they are. Frames of
different accounts know nothing of each other, so their columns may stand behind each other. A pass
takes the readings of which nothing but charges and balances comes; the others are absorbed behind
them, with their own record. What each record caused is kept apart: outputs, rows and header are
those of `absorb`, byte for byte, so that neither a restart nor a reader can tell.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import numpy as np

from services.common.kernel.frames import (
    BASIS_CLOSED,
    CHARGE_COLUMNS,
    KIND_USAGE,
    LINE_COLUMNS,
    READING_KINDS,
    Entries,
    ReadingFrame,
    Table,
    packed_frames,
)
from services.common.kernel.values import value_class
from services.metering.domain.absorb import absorb, check
from services.metering.domain.charging import Bill, Intervals, bill_of
from services.metering.domain.facts import GROUP_NAMES, Array, are_distinct
from services.metering.domain.habits import concerned
from services.metering.domain.judging import may_decide
from services.metering.domain.messages import Absorbed, LogRecord, Outputs
from services.metering.domain.outbox import Outbox, balances_of, set_names
from services.metering.domain.readings import absorb_readings, charge
from services.metering.domain.rows import header_row
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import account_rows
from services.metering.domain.validation import CHARGED, are_gaps, flags_of, outcomes_of

TOGETHER_READINGS_MAX = 2_000
"""Readings in a pass of several frames: of more each gains little, and the first waits longer."""


def absorb_all(state: ShardState, records: Sequence[LogRecord]) -> list[Absorbed]:
    """Absorb records in their order; return what each caused, as `absorb` of each would.

    Raises BadRecord as it does; records before it are absorbed then.
    """
    done: list[Absorbed] = []
    for are_frames, alike in groupby(records, lambda record: _is_new_frame(state, record)):
        some = list(alike)
        if are_frames and len(some) > 1:
            for run in _runs(state, some):
                done += _absorb_run(state, run)
        else:
            done += [absorb(state, record) for record in some]
    return done


def _is_new_frame(state: ShardState, record: LogRecord) -> bool:
    return isinstance(record.value, ReadingFrame) and record.offset > state.offset


@value_class
class _Run:
    """Frames that go together: none of their meters is unknown, no account in two of them.

    `meter_slots`: of all their readings; `counts`: of each.
    """

    records: Sequence[LogRecord]
    meter_slots: Array
    counts: Sequence[int]

    @property
    def frames(self) -> list[Entries]:
        """Their readings, dtype READING."""
        return [_rows(record) for record in self.records]


def _rows(record: LogRecord) -> Entries:
    assert isinstance(record.value, ReadingFrame), "only frames go together"
    return record.value.rows


def _runs(state: ShardState, records: Sequence[LogRecord]) -> Iterator[_Run]:
    """Yield frames that go together, in their order; those that cannot, alone."""
    keys = [_rows(record)["meter_key"] for record in records]
    counts = list(map(len, keys))
    meter_slots = state.standing.find(np.concatenate(keys))
    slots = state.accounts_of(meter_slots)
    first = begin = end = 0
    for number, count in enumerate(counts):
        fits = end + count - begin <= TOGETHER_READINGS_MAX
        if not (fits and _may_go_together(slots[begin : end + count])) and number > first:
            yield _Run(records[first:number], meter_slots[begin:end], counts[first:number])
            first, begin = number, end
        end += count
    yield _Run(records[first:], meter_slots[begin:], counts[first:])


def _may_go_together(slots: Array) -> bool:
    """Say whether accounts (-1: an unknown meter's) are all known, and none comes twice."""
    return are_distinct(slots) and not (slots < 0).any()


def _absorb_run(state: ShardState, run: _Run) -> list[Absorbed]:
    for record in run.records:
        check(state, record)
    times_ms = (record.timestamp_ms for record in run.records)
    nows_ms = list(accumulate(times_ms, max, initial=state.now_ms))[1:]
    calm = _calm(state, run, nows_ms) if len(run.records) > 1 else None
    if calm is None:
        return [absorb(state, record) for record in run.records]
    return _Gathered(state, run, nows_ms, calm).absorbed_each()


@value_class
class _Calm:
    """Readings of which nothing but charges and balances comes.

    `places`: among all readings of the run; `owners`: of which record each.
    """

    places: Array
    owners: Array
    intervals: Intervals
    bill: Bill


def _calm(state: ShardState, run: _Run, nows_ms: Sequence[int]) -> _Calm | None:
    """Return what may be absorbed in one pass. Changes nothing."""
    readings, meter_slots = Table.joined(READING_KINDS, run.frames), run.meter_slots
    places = np.arange(len(readings))
    owners = np.repeat(np.arange(len(run.records)), run.counts)
    slots = state.accounts_of(meter_slots)
    state.link_read(slots)
    accounts, meters = state.accounts.take(slots), state.meters.take(meter_slots)
    intervals = Intervals(meters, accounts, slots, meter_slots, readings)
    offsets = np.array([record.offset for record in run.records])
    odd = ~CHARGED[outcomes_of(intervals)] | (accounts["offset"] >= offsets[owners])
    odd |= (flags_of(intervals) | meters["flags"]) != 0
    odd |= are_gaps(intervals)
    odd[concerned(state, intervals)] = True
    odd |= accounts["fees_due_ms"] <= np.array(nows_ms)[owners]
    while True:
        if odd.any():
            kept = np.flatnonzero(~odd)
            places, owners, intervals = places[kept], owners[kept], intervals.take(kept)
        if not len(places):
            return None
        bill = bill_of(state, intervals, KIND_USAGE)
        totals_nano = bill.charges["account_charged_total_nano"]
        odd = bill.cannot | may_decide(state, intervals, totals_nano, nows_ms[-1])
        odd[bill.lines["charge"][bill.lines["basis"] & BASIS_CLOSED != 0]] = True
        if not odd.any():
            return _Calm(places, owners, intervals, bill)


class _Gathered(Outbox):
    """What readings of several records cause; `now_ms`: of each calm reading's record."""

    def __init__(self, state: ShardState, run: _Run, nows_ms: Sequence[int], calm: _Calm) -> None:
        super().__init__(state, run.records[-1].offset)
        self._run = run
        self._nows_ms = nows_ms
        self._calm = calm
        self.now_ms = np.array(nows_ms)[calm.owners]

    def absorbed_each(self) -> list[Absorbed]:
        """Let the calm charges stand, absorb what is left of each record; return what it caused."""
        state, calm = self.state, self._calm
        charge(self, calm.intervals, np.arange(len(calm.owners)), calm.bill, KIND_USAGE)
        assert not self._decisions, "a calm reading decides nothing"
        slots = calm.intervals.account_slots
        published = np.isin(slots, np.concatenate([slots[:0], *self._publish]))
        self._set_published(slots[published], self.now_ms[published])
        offsets = np.array([record.offset for record in self._run.records])
        state.accounts["offset"][slots] = offsets[calm.owners]
        rows = account_rows(state, slots)
        numbers = np.arange(len(self._run.records) + 1)
        edges = np.searchsorted(calm.owners, numbers).tolist()
        told_edges = np.searchsorted(calm.owners[published], numbers).tolist()
        balances = balances_of(
            state, slots[published], offsets[calm.owners][published], self.now_ms[published]
        )
        found = []
        for number, (rest, frame) in enumerate(
            zip(self._rests(), self._frames(edges), strict=True)
        ):
            record, now_ms = self._run.records[number], self._nows_ms[number]
            of_record = slice(edges[number], edges[number + 1])
            if rest.all():
                found.append(absorb(state, record))
            elif rest.any():
                state.now_ms = now_ms
                told = slots[of_record][published[of_record]]
                found.append(self._absorbed_with(rest, record, of_record, told))
            else:
                out = Outbox(state, record.offset, now_ms)
                told_here = balances.between(told_edges[number], told_edges[number + 1])
                outputs = Outputs([out.charge_frame(frame)], told_here)
                header, counts = header_row(record.offset, now_ms), Counter(accepted=len(rest))
                found.append(Absorbed(outputs, (), rows[of_record], header, counts))
            state.offset, state.now_ms = record.offset, now_ms
        return found

    def _absorbed_with(
        self, rest: Array, record: LogRecord, calm: slice, published: Array
    ) -> Absorbed:
        """Absorb what is left of a record's readings; return it with what the calm ones caused."""
        ((_, charges, numbers, lines),) = self._charges
        of_record = np.arange(calm.start, calm.stop)
        mine = lines[np.isin(lines["charge"], of_record)]
        mine["charge"] -= calm.start
        out = Outbox(self.state, record.offset)
        out.count("accepted", len(of_record))
        out.charge(np.flatnonzero(~rest), charges.take(of_record), numbers[calm], mine)
        out.touch(self._calm.intervals.account_slots[calm])
        out.publish(published)
        absorb_readings(out, _rows(record), among=rest)
        self.state.offset = record.offset
        return out.absorbed()

    def _rests(self) -> list[Array]:
        """Say of each record's readings which are not calm."""
        rest = np.ones(len(self._run.meter_slots), np.bool_)
        rest[self._calm.places] = False
        return np.split(rest, np.cumsum(self._run.counts[:-1]))

    def _frames(self, edges: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield the columns of the records whose charges lie between neighbouring `edges`."""
        ((_, charges, numbers, lines),) = self._charges
        names: list[tuple[str, ...]] = []
        indexes = np.empty((len(numbers), GROUP_NAMES), np.uint16)
        known: dict[bytes, tuple[tuple[str, ...], Array]] = {b"": ((), indexes[:0])}
        for start, end in pairwise(edges):
            mine = numbers[start:end]
            together = mine.tobytes()
            if together not in known:
                known[together] = self.state.names.dictionary(mine)
            found, indexes[start:end] = known[together]
            names.append(found)
        set_names(charges, indexes)
        line_edges = np.searchsorted(lines["charge"], edges)
        counts, lines = np.diff(line_edges), lines.copy()
        lines["charge"] -= np.repeat(np.array(edges[:-1], np.uint32), counts)
        of_charges = packed_frames(charges, CHARGE_COLUMNS, edges[1:])
        of_lines = packed_frames(lines, LINE_COLUMNS, line_edges[1:].tolist())
        for (start, end), of, columns, count, of_line in zip(
            pairwise(edges), names, of_charges, counts.tolist(), of_lines, strict=True
        ):
            counted = {"count": end - start, "line_count": count, "names": list(of)}
            yield counted | columns | of_line
