"""Rule 4: what intervals are priced by. All intervals of a frame at once, where they are alike."""

from dataclasses import field
from itertools import chain, pairwise

import numpy as np

from services.common.kernel.frames import BASIS_REGISTERS, BASIS_TIME, LINE
from services.common.kernel.units import INT64_MAX, fits_int64
from services.common.kernel.values import value_class
from services.common.tariffs.pricing import TOTAL
from services.common.tariffs.shape import RATES_APART_MILLI_MAX, REGISTER_MILLI_MAX, End
from services.metering.domain.facts import Array
from services.metering.domain.groups import Groups, firsts
from services.metering.domain.ladders import Ladder, Part, PricedLine
from services.metering.domain.rows import ACCUMULATION
from services.metering.domain.shard import ShardState
from services.metering.domain.tariffs import NO_REST

NO_LADDER = -2
"""In place of a rate: the line counts in no accumulation."""
PLAIN_MAX = 2**61
"""Below it, sums of a few fit int64."""


@value_class
class Spans:
    """Intervals that need lines, n of them: where they stand and what of time and energy.

    `first`, `last`: their segments. `exact`: figures are so large that int64 might not hold them.
    `shared`: others of the account stand beside it. `rises_milli` (n, 5): how much the registers of
    rates rose; `told`: where they count.
    """

    account_slots: Array
    meter_slots: Array
    first: Array
    last: Array
    begins_ms: Array
    ends_ms: Array
    energies_milli: Array
    exact: Array
    shared: Array
    rises_milli: Array
    told: Array
    ratios: Array


@value_class
class Priced:
    """The lines of intervals (dtype LINE; `charge` is the interval's index), and what they change.

    `amounts_nano`: of each interval. `cannot`: a figure does not fit int64, or it is one that must
    be priced by itself and is not; its lines mean nothing. `estimated`: where time alone said when
    inside the interval the energy was used. `accumulated`: slots of accumulations and their new
    totals, of which the last stands; `opened`: slots of accounts and the accumulation (dtype
    ACCUMULATION) that each begins; `ladders`: interval → its account's accumulations.
    """

    lines: Array
    amounts_nano: Array
    cannot: Array
    estimated: Array
    accumulated: tuple[Array, Array]
    opened: tuple[Array, Array]
    ladders: dict[int, Ladder] = field(default_factory=dict)


def priced(state: ShardState, spans: Spans) -> Priced:
    """Price intervals, those of one account in their order. Changes nothing."""
    count = len(spans.first)
    lines, rows = _split(state, spans)
    table = state.tariffs.table
    told = _told(state, spans)
    if told.any():
        lines, rows = _with_told(state, spans, (lines, rows), told)
    rates = lines["rate"].astype(np.int64)
    laddered = table["laddered"][rows]
    owners = lines["charge"]
    ladder_of = np.where(laddered[np.arange(len(rows)), rates], rates, NO_LADDER)
    ladder_of[laddered[:, TOTAL]] = TOTAL
    counted = np.flatnonzero(ladder_of != NO_LADDER)
    terms = rows[counted], ladder_of[counted]
    climbs = _climbs(state, spans, lines, counted, terms)
    slowly = spans.exact.copy()
    slowly[owners[counted[climbs.at < 0]]] = True
    _set_amounts(lines, rows, table, rates)
    fast = np.flatnonzero(~slowly[owners[counted]])
    accumulated, opened = _climb(state, lines, climbs.take(fast))
    done = Priced(
        lines,
        np.zeros(count, np.int64),
        slowly & spans.shared,
        (spans.first != spans.last) & ~told,
        accumulated,
        (spans.account_slots[climbs.openers], opened),
    )
    slowly &= ~spans.shared
    if slowly.any():
        done = _with_slow(state, spans, done, rows, np.flatnonzero(slowly))
    amounts = sum(done.lines[f"{name}_nano"] for name in ("rate", "surcharge", "ladder", "tax"))
    np.add.at(done.amounts_nano, done.lines["charge"], amounts)
    return done


def rises_between(
    before: Array, before_milli: Array, after: Array, after_milli: Array
) -> tuple[Array, Array]:
    """Return (how much each register of rates rose, where they tell what was used).

    `before`, `after`: those registers at both ends, (n, 5), -1 where absent; beside them the
    registers of all energy. They tell where the same ones are there, none fell, and their sum is
    the whole at both ends, give or take what each of them rounds.
    """
    there = before >= 0
    rises = np.where(there, after - before, 0)
    told = there.any(axis=1) & (there == (after >= 0)).all(axis=1) & (rises >= 0).all(axis=1)
    for registers, whole_milli in ((before, before_milli), (after, after_milli)):
        told &= (registers <= REGISTER_MILLI_MAX).all(axis=1)
        sums = np.clip(registers, 0, REGISTER_MILLI_MAX).sum(axis=1)
        told &= np.abs(whole_milli - sums) <= RATES_APART_MILLI_MAX
    return rises, told


def _told(state: ShardState, spans: Spans) -> Array:
    """Say which intervals the registers of rates tell: within one version and one period."""
    if not spans.told.any():
        return spans.told
    segments, table = state.tariffs.segments, state.tariffs.table
    row = segments["row"][spans.first]
    told = spans.told & (table["rest"][row] != NO_REST)
    told &= spans.rises_milli.sum(axis=1) <= INT64_MAX // spans.ratios
    for name in ("row", "period"):
        told &= segments[name][spans.first] == segments[name][spans.last]
    return told


def _with_told(
    state: ShardState, spans: Spans, split: tuple[Array, Array], told: Array
) -> tuple[Array, Array]:
    """Return the lines of `split` with those that registers tell instead, and rows of terms.

    What the registers leave over, or count in a rate that the plan has not, is of one rate of the
    plan, always the same: so all of it comes to the same whatever the readings in between.
    """
    segments, table = state.tariffs.segments, state.tariffs.table
    which = np.flatnonzero(told)
    first = spans.first[which]
    row, rest = segments["row"][first], table["rest"][segments["row"][first]]
    ordinals = np.arange(len(which))
    energies = spans.rises_milli[which] * spans.ratios[which, np.newaxis]
    energies[~table["has_rate"][row]] = 0
    energies[ordinals, rest] = 0
    energies[ordinals, rest] = spans.energies_milli[which] - energies.sum(axis=1)
    used = energies != 0
    used[ordinals, segments["rate"][first]] |= ~used.any(axis=1)  # nothing: one line says so
    owners, rates = np.nonzero(used)
    lines = np.zeros(len(owners), LINE)
    lines["charge"] = which[owners]
    lines["version"] = table["version"][row[owners]]
    lines["rate"] = rates
    lines["period"] = segments["period"][first[owners]]
    lines["energy_milli"] = energies[owners, rates]
    lines["basis"] = BASIS_REGISTERS
    kept = ~told[split[0]["charge"]]
    lines, rows = np.append(split[0][kept], lines), np.append(split[1][kept], row[owners])
    order = np.argsort(lines["charge"], kind="stable")
    return lines[order], rows[order]


def _split(state: ShardState, spans: Spans) -> tuple[Array, Array]:
    """Return (lines with their energy, the rows of their versions in the table of terms)."""
    counts = spans.last - spans.first + 1
    owners = np.repeat(np.arange(len(counts)), counts)
    ordinals = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    segments = state.tariffs.segments
    at = spans.first[owners] + ordinals
    energies = spans.energies_milli
    parts = energies[owners]
    many = len(owners) > len(counts)
    if many:
        durations = np.maximum(spans.ends_ms - spans.begins_ms, 1)
        elapsed = segments["begins_ms"][at + 1] - spans.begins_ms[owners]
        is_last = ordinals == counts[owners] - 1
        elapsed = np.where(is_last, durations[owners], elapsed)  # its segment goes on behind it
        if int(np.abs(energies).max()) * int(durations.max()) > INT64_MAX:
            energies, elapsed = energies.astype(object), elapsed.astype(object)
        until = (energies[owners] * elapsed // durations[owners]).astype(np.int64)
        parts = until - np.where(ordinals == 0, 0, np.roll(until, 1))
    if many and counts.max() > 2:  # neighbours differ: only then may two belong together
        owners, at, parts = _joined(owners, at, parts, segments["group"])
    lines = np.zeros(len(owners), LINE)
    rows = segments["row"][at]
    lines["charge"] = owners
    lines["version"] = state.tariffs.table["version"][rows]
    lines["rate"] = segments["rate"][at]
    lines["period"] = segments["period"][at]
    lines["energy_milli"] = parts
    lines["basis"] = np.where(counts > 1, BASIS_TIME, 0)[owners]
    return lines, rows


def _joined(owners: Array, at: Array, energies: Array, groups: Array) -> tuple[Array, Array, Array]:
    """Join the parts of an interval that belong together, in the order of their first instants."""
    codes = owners * (int(groups.max()) + 1) + groups[at]
    _, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
    sums = np.zeros(len(firsts), np.int64)
    np.add.at(sums, inverse, energies)
    order = np.argsort(firsts)
    firsts = firsts[order]
    return owners[firsts], at[firsts], sums[order]


def _set_amounts(lines: Array, rows: Array, table: Array, rates: Array) -> None:
    """Set what is the energy's alone; a product beyond int64 means nothing (`exact`)."""
    energies = lines["energy_milli"]
    lines["rate_nano"] = energies * table["rate_micro"][rows, rates]
    lines["surcharge_nano"] = energies * table["surcharge_micro"][rows]
    lines["tax_nano"] = energies * table["tax_micro"][rows, rates]


@value_class
class _Climbs:
    """Where lines that count in accumulations climb, n of them.

    `lines`: their indexes; `rows` and `ladders`: of each its row in the table of terms, and which
    ladder there. `at`: of each the index of its accumulation, -1 where that is not at hand, among
    `accumulations` (dtype ACCUMULATION, as they were): of each interval that at `slots`, and behind
    those the ones that the intervals `openers` begin.
    """

    lines: Array
    rows: Array
    ladders: Array
    at: Array
    slots: Array
    accumulations: Array
    openers: Array

    def take(self, which: Array) -> "_Climbs":
        """Return those at the indexes `which`."""
        lines, rows, ladders, at = (
            column[which] for column in (self.lines, self.rows, self.ladders, self.at)
        )
        return _Climbs(lines, rows, ladders, at, self.slots, self.accumulations, self.openers)


def _climbs(
    state: ShardState, spans: Spans, lines: Array, counted: Array, terms: tuple[Array, Array]
) -> _Climbs:
    """Find the accumulations in which the lines at `counted` climb. `terms`: rows, ladders."""
    (rows, ladders), owners = terms, lines["charge"][counted].astype(np.int64)
    by_meter = np.zeros(len(spans.first), np.bool_)
    by_meter[owners] = state.tariffs.table["by_meter"][rows]
    slots = np.where(
        by_meter,
        state.meter_links["accumulation"][spans.meter_slots],
        state.account_links["accumulation"][spans.account_slots],
    )
    found = state.accumulations.entries.take(slots)
    is_plain = slots >= 0
    for name in ("base_milli", "total_milli"):
        is_plain &= np.abs(found[name]) < PLAIN_MAX
    known = is_plain[owners] & (found["rate"][owners] == ladders)
    for name in ("period", "version"):
        known &= found[name][owners] == lines[name][counted]
    at, openers = np.where(known, owners, -1), owners[:0]
    if not known.all():
        missing = np.flatnonzero(~known)
        of_missing = rows[missing], ladders[missing]
        openers, opened = _openings(state, spans, lines[counted[missing]], of_missing)
        places = np.full(len(slots), -1)
        places[openers] = len(slots) + np.arange(len(openers))
        at[missing] = places[owners[missing]]
        found = np.append(found, opened)
    return _Climbs(counted, rows, ladders, at, slots, found, openers)


def _openings(
    state: ShardState, spans: Spans, lines: Array, terms: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Return (intervals that begin an accumulation, those as they begin, dtype ACCUMULATION).

    `lines`: those whose accumulations are not at hand, `terms` their rows and ladders. An interval
    is one where its account's next period, or its first, is all that it asks for.
    """
    rows, ladders = terms
    heads = firsts(lines["charge"])
    counts = np.diff(heads, append=len(lines))
    openers, periods = lines["charge"][heads].astype(np.int64), lines["period"][heads]
    may = ~(spans.shared | spans.exact)[openers] & ~state.tariffs.table["by_meter"][rows[heads]]
    for column in (lines["period"], rows, ladders):
        may &= np.logical_and.reduceat(column == np.repeat(column[heads], counts), heads)
    account_slots = spans.account_slots[openers]
    may &= state.may_open(account_slots, periods)
    heads, periods, account_slots = heads[may], periods[may], account_slots[may]
    opened = np.zeros(len(heads), ACCUMULATION)
    opened["period"] = periods
    opened["version"] = lines["version"][heads]
    opened["rate"] = ladders[heads]
    since_ms = state.accounts["since_ms"][account_slots]
    days = state.tariffs.days_left(rows[heads], periods, since_ms)
    opened["days"], opened["days_of"] = days
    return openers[may], opened


def _climb(state: ShardState, lines: Array, climbs: _Climbs) -> tuple[tuple[Array, Array], Array]:
    """Let lines climb their ladders, one after the other where they share an accumulation.

    Return (slots of accumulations and their new totals, of which the last stands; those that are
    opened as they stand then).
    """
    where, at, found, count = climbs.lines, climbs.at, climbs.accumulations, len(climbs.slots)
    if not len(where):
        return (climbs.slots[:0], climbs.slots[:0]), found[count:]
    energies, stood = lines["energy_milli"][where], found.take(at)
    behind = len(state.accumulations.entries)
    slots = np.append(climbs.slots, behind + np.arange(len(found) - count))
    before = stood["base_milli"] + stood["total_milli"]
    before += Groups(slots[at]).sums_before(energies)
    after = before + energies
    found["total_milli"][at] = after - stood["base_milli"]
    lines["total_milli"][where] = after
    for name in ("base_milli", "days", "days_of"):
        lines[name][where] = stood[name]
    row, ladder, table = climbs.rows, climbs.ladders, state.tariffs.table
    above = table["above_milli"][row, ladder]
    if (stood["days"] != stood["days_of"]).any():
        above = above * stood["days"][:, np.newaxis].astype(np.int64)
        above //= np.maximum(stood["days_of"], 1)[:, np.newaxis]
    steps = np.maximum(after[:, np.newaxis] - above, 0)
    steps -= np.maximum(before[:, np.newaxis] - above, 0)
    lines["ladder_nano"][where] = (steps * table["rise_micro"][row, ladder]).sum(axis=1)
    lines["tax_nano"][where] += (steps * table["rise_tax_micro"][row, ladder]).sum(axis=1)
    touched = at[at < count]
    touched = touched[firsts(touched)]
    return (climbs.slots[touched], found["total_milli"][touched]), found[count:]


def _with_slow(state: ShardState, spans: Spans, done: Priced, rows: Array, slow: Array) -> Priced:
    """Price the intervals at the indexes `slow` one by one, in integers without end."""
    is_slow = np.isin(done.lines["charge"], slow)
    mine = done.lines[is_slow]
    columns = [rows[is_slow].tolist()]
    columns += [mine[name].tolist() for name in ("rate", "period", "energy_milli", "basis")]
    edges = [*firsts(mine["charge"]).tolist(), len(mine)]
    account_slots, meter_slots = spans.account_slots[slow], spans.meter_slots[slow]
    each = zip(
        slow.tolist(), account_slots.tolist(), meter_slots.tolist(), pairwise(edges), strict=True
    )
    found: list[tuple[int, ...]] = []
    ladders, cannot = dict(done.ladders), done.cannot.copy()
    for i, slot, meter_slot, (start, end) in each:
        *of_parts, bases = (column[start:end] for column in columns)
        parts = [Part(*values) for values in zip(*of_parts, strict=True)]
        ladders[i], priced_lines = climbed(state, slot, meter_slot, parts, bases[0])
        if are_within(priced_lines):
            found += _rows_of(i, priced_lines)
        else:
            cannot[i] = True
    lines = np.append(done.lines[~is_slow], np.array(found, LINE))
    lines = lines[np.argsort(lines["charge"], kind="stable")]
    stands = done.estimated, done.accumulated, done.opened
    return Priced(lines, done.amounts_nano, cannot, *stands, ladders)


def climbed(
    state: ShardState, slot: int, meter_slot: int, parts: list[Part], basis: int
) -> tuple[Ladder, list[PricedLine]]:
    """Return (the account's accumulations afterwards, the lines) of parts in their order."""
    ladder = state.ladder_of(slot)
    meter = state.meters[meter_slot]
    since_ms = (int(state.accounts["since_ms"][slot]), int(meter["since_ms"]))
    key = int(meter["key"])
    return ladder, [line for part in parts for line in ladder.price(part, basis, key, since_ms)]


def are_within(lines: list[PricedLine]) -> bool:
    """Say whether every figure of the lines, and their sum, fits int64."""
    amounts_nano = [line.amount_nano for line in lines]
    figures = chain(*(line.figures for line in lines), amounts_nano, [sum(amounts_nano)])
    return all(map(fits_int64, figures))


def as_lines(charge: int, lines: list[PricedLine]) -> Array:
    """Return lines as dtype LINE."""
    return np.array(_rows_of(charge, lines), LINE)


def _rows_of(charge: int, lines: list[PricedLine]) -> list[tuple[int, ...]]:
    """Return lines as entries of dtype LINE."""
    return [
        (charge, line.version, line.rate, line.basis, line.period, *line.figures) for line in lines
    ]


def parts_of(
    state: ShardState, tariff: int, begin: End, end: End, ratio: int
) -> tuple[list[Part], bool]:
    """Return (the parts of one interval, joined, in their order; whether time alone told them)."""
    begins, ends = np.array([begin.time_ms]), np.array([end.time_ms])
    first, last = state.tariffs.of(np.array([tariff]), begins, ends)
    none, exact = np.zeros(1, np.int64), np.zeros(1, np.bool_)
    energies = np.array([(end.register_milli - begin.register_milli) * ratio])
    before, after = np.array([begin.rates_milli]), np.array([end.rates_milli])
    registers = np.array([begin.register_milli]), np.array([end.register_milli])
    rises_milli, told = rises_between(before, registers[0], after, registers[1])
    ratios = np.array([ratio])
    span = Spans(
        *(none, none, first, last, begins, ends, energies, exact, exact, rises_milli, told, ratios)
    )
    lines, rows = _split(state, span)
    told = _told(state, span)
    if told.any():
        lines, rows = _with_told(state, span, (lines, rows), told)
    columns = (lines[name].tolist() for name in ("rate", "period", "energy_milli"))
    parts = [Part(*values) for values in zip(rows.tolist(), *columns, strict=True)]
    return parts, bool(first[0] != last[0] and not told[0])
