"""Rules 4 and 5: what an interval costs. On columns; of one account in the order of the frame."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from services.common.kernel.frames import (
    ABSENT_REGISTER,
    BASIS_CLOSED,
    CHARGE_KINDS,
    KIND_ROLLOVER,
    LINE,
    Entries,
    Table,
)
from services.common.kernel.units import INT64_MAX, fits_int64
from services.common.kernel.values import value_class
from services.metering.domain.causes import Cause
from services.metering.domain.facts import Array
from services.metering.domain.groups import Groups
from services.metering.domain.ladders import Ladder
from services.metering.domain.lines import PLAIN_MAX, Priced, Spans, priced, rises_between
from services.metering.domain.outbox import Outbox
from services.metering.domain.rows import ACCUMULATION
from services.metering.domain.shard import SILENCE_MS, ShardState

BALANCE_EVERY_MS = 60_000
_NOTHING = np.zeros(0, np.int64)
_NOWHERE = np.zeros(0, np.bool_)
_NONE_OPENED = (_NOTHING, np.zeros(0, ACCUMULATION))
_NO_LINES = Priced(
    np.zeros(0, LINE), _NOTHING, _NOWHERE, _NOWHERE, (_NOTHING, _NOTHING), _NONE_OPENED
)


@value_class
class Intervals:
    """The intervals to charge: a meter, its account and the reading that ends it, n entries each.

    Dtypes METER, ACCOUNT and READING; slots int64. No meter comes twice; where an account does, all
    its entries are the account as it was before. A meter that has no register yet opens at the
    reading.
    """

    meters: Array
    accounts: Array
    account_slots: Array
    meter_slots: Array
    readings: Entries

    def __len__(self) -> int:
        return len(self.meters)

    def take(self, which: Array) -> "Intervals":
        """Return those at the indexes `which`, ascending; all of them as they are."""
        if len(which) == len(self):
            return self
        return Intervals(
            self.meters.take(which),
            self.accounts.take(which),
            self.account_slots.take(which),
            self.meter_slots.take(which),
            self.readings.take(which),
        )


@value_class
class Bill:
    """What intervals cost: charges (dtype CHARGE), their names as groups, their lines.

    `lines`: dtype LINE, `charge` an index into `charges`. `cannot`: which cannot be charged, or not
    with others of their account; their entries mean nothing. `split`: indexes of those that were
    split by time, ascending. `accumulated`, `opened` and `ladders`, by account slot: what is to
    stand of what the lines counted (`stand`). `several`: an account may have more than one charge.
    """

    charges: Table
    names: Array
    cannot: Array
    split: Array
    lines: Array
    accumulated: tuple[Array, Array]
    opened: tuple[Array, Array]
    ladders: dict[int, Ladder]
    several: bool

    def take(self, which: Array) -> "Bill":
        """Return those at the ascending indexes `which`; what is to stand is all of it still."""
        kept = np.isin(self.lines["charge"], which)
        lines = self.lines[kept]
        lines["charge"] = np.searchsorted(which, lines["charge"])
        return Bill(
            self.charges.take(which),
            self.names[which],
            self.cannot[which],
            np.flatnonzero(np.isin(which, self.split)),
            lines,
            self.accumulated,
            self.opened,
            self.ladders,
            self.several,
        )


def bill_of(
    state: ShardState, intervals: Intervals, kind: int, of_accounts: Groups | None = None
) -> Bill:
    """Return what intervals cost. Changes nothing.

    `of_accounts`: the intervals by their accounts; None: no account comes twice.
    """
    meters, accounts, readings = intervals.meters, intervals.accounts, intervals.readings
    charges = Table(CHARGE_KINDS, len(intervals))
    _set_interval(charges, meters, readings)
    links = state.account_links.take(intervals.account_slots)
    bare = ~accounts["known"] | accounts["house"]
    ends_ms = charges["to_time_ms"]
    begins_ms = np.where(charges["from_time_ms"] == 0, ends_ms, charges["from_time_ms"])
    tariffs = np.where(bare, 0, links["tariff"]).astype(np.int64)
    first, last = state.tariffs.of(tariffs, begins_ms, ends_ms)
    segments, table = state.tariffs.segments.take(last), state.tariffs.table
    plain = (first == last) & table["plain"][segments["row"]]
    prices = np.where(plain, table["rate_micro"][segments["row"], segments["rate"]], 0)
    policies = state.policies.rows.take(np.where(bare, 0, links["policy"]))
    cannot = ~bare & ~(state.tariffs.priced(tariffs) & policies["present"])
    tops_milli = charges["to_register_milli"]
    if kind == KIND_ROLLOVER:
        tops_milli = tops_milli + state.spans_milli(meters["key"])
    bottoms_milli = charges["from_register_milli"]
    energies = (tops_milli - bottoms_milli) * meters["ratio"]
    bounds = (
        prices if plain.all() else np.where(plain, prices, state.tariffs.highest_micro(tariffs))
    )
    beyond, unsure = _beyond_int64((tops_milli, bottoms_milli), meters, accounts, bounds, plain)
    cannot |= beyond
    shared = np.zeros(len(intervals), np.bool_)
    if of_accounts is not None:
        shared = of_accounts.shared()
        if (beyond | unsure).any() or not _fit_together(accounts, energies, bounds):
            cannot |= shared
    amounts = energies * prices
    found = _NO_LINES
    split = _NOTHING
    lined = np.flatnonzero(~plain & ~cannot)
    if len(lined):
        rises_milli, told = rises_of_rates(meters.take(lined), readings.take(lined))
        spans = Spans(
            intervals.account_slots[lined],
            intervals.meter_slots[lined],
            first[lined],
            last[lined],
            begins_ms[lined],
            ends_ms[lined],
            energies[lined],
            unsure[lined],
            shared[lined],
            rises_milli,
            told & (kind != KIND_ROLLOVER),
            meters["ratio"][lined].astype(np.int64),
        )
        found = priced(state, spans)
        amounts[lined] = found.amounts_nano
        cannot[lined] |= found.cannot
        for i in lined[unsure[lined]].tolist():
            cannot[i] |= not _fits_with(accounts[i], int(amounts[i]))
        found.lines["charge"] = lined[found.lines["charge"]]
        split = lined[found.estimated]

    told_of = {
        "kind": kind,
        "energy_milli": energies,
        "price_micro": prices,
        "amount_nano": amounts,
        "tariff_version": table["version"][segments["row"]],
        "policy_version": policies["version"],
    }
    for name, column in told_of.items():
        charges[name] = column
    set_standing(charges, meters, accounts)
    if of_accounts is not None:
        _go_on(charges, of_accounts)
    names = _names(state, intervals, bare)
    slots = intervals.account_slots[lined]
    ladders = {int(slots[i]): each for i, each in found.ladders.items() if not cannot[lined[i]]}
    stands = found.accumulated, found.opened, ladders
    return Bill(charges, names, cannot, split, found.lines, *stands, of_accounts is not None)


def _names(state: ShardState, intervals: Intervals, bare: Array) -> Array:
    """Return the groups that name charges; those of `bare` accounts are their meters'."""
    names: Array = state.account_links["names"][intervals.account_slots]
    if bare.any():
        own = state.names_of_meters(intervals.meter_slots)
        names = np.where(bare, own, names)
    return names


def rises_of_rates(meters: Array, readings: Entries) -> tuple[Array, Array]:
    """Return (how much each register of rates rose, where they tell what was used), (n, 5), n."""
    after = readings["rate_registers_milli"]
    if (after < 0).all():
        return np.zeros(after.shape, np.int64), np.zeros(len(after), np.bool_)
    before = meters["rates_milli"]
    return rises_between(before, meters["register_milli"], after, readings["register_milli"])


def set_standing(charges: Table, meters: Array, accounts: Array) -> None:
    """Set what charges tell of their meters and accounts, and the totals after them."""
    charges["meter_key"] = meters["key"]
    charges["epoch"] = meters["epoch"]
    charges["sequence"] = meters["sequence"] + 1
    charges["account_key"] = accounts["key"]
    charges["account_sequence"] = accounts["sequence"] + 1
    charges["account_revision"] = accounts["revision"]
    charges["book_epoch"] = accounts["book_epoch"]
    charges["ratio"] = meters["ratio"]
    totals_milli = meters["energy_total_milli"] + charges["energy_milli"]
    charges["meter_energy_total_milli"] = totals_milli
    charges["account_charged_total_nano"] = accounts["charged_nano"] + charges["amount_nano"]
    charges["account_credited_total_nano"] = accounts["credited_nano"]


def _go_on(charges: Table, of_accounts: Groups) -> None:
    """Let each charge begin where the one before it on its account ended."""
    charges["account_sequence"] += of_accounts.ranks()
    charges["account_charged_total_nano"] += of_accounts.sums_before(charges["amount_nano"])


def _set_interval(charges: Table, meters: Array, readings: Entries) -> None:
    """From the meter's last register to the reading; from the reading itself where it opens."""
    ends = ("register_milli", "device_time_ms", "reading_id", "quality")
    begins = ("register_milli", "time_ms", "reading_id", "quality")
    columns = ("register_milli", "time_ms", "reading_id", "quality")
    opens = ~meters["opened"]
    any_opens = bool(opens.any())
    for column, begin, end in zip(columns, begins, ends, strict=True):
        start = meters[begin]
        if any_opens:
            start = np.where(opens, readings[end], start)
        charges[f"from_{column}"] = start
        charges[f"to_{column}"] = readings[end]
    for name, rates in (("from", meters["rates_milli"]), ("to", readings["rate_registers_milli"])):
        charges[f"{name}_rates_milli"] = ABSENT_REGISTER if (rates < 0).all() else rates
    charges["to_received_at_ms"] = readings["received_at_ms"]


def _beyond_int64(
    registers: tuple[Array, Array], meters: Array, accounts: Array, prices: Array, plain: Array
) -> tuple[Array, Array]:
    """Return (which charges have a figure that int64 cannot hold, which might have). Exact.

    Products of the largest magnitudes prove a whole column in range, nearly always; where they
    do not, each charge is computed in integers that have no end. `registers`: (to, from), as if
    none had begun anew. `prices`: of those that are not `plain` the most that a unit may cost: they
    may have such a figure, and their lines tell.
    """
    figures = np.array(
        [
            *registers,
            meters["ratio"],
            prices,
            meters["energy_total_milli"],
            accounts["charged_nano"],
            accounts["credited_nano"],
            accounts["held_nano"],
        ]
    )
    nothing = np.zeros(len(meters), np.bool_)
    highest, lowest = figures.max(axis=1).tolist(), figures.min(axis=1).tolist()
    to_milli, from_milli, ratio, price, energy_total, charged, credited, held = (
        max(high, -low) for high, low in zip(highest, lowest, strict=True)
    )
    energy = (to_milli + from_milli) * ratio
    if max(energy_total + energy, charged + energy * price + credited + held) <= INT64_MAX:
        return nothing, nothing
    rows = figures.T.tolist()
    beyond = [
        not (_fits(row) if is_plain else _energy_fits(row))
        for row, is_plain in zip(rows, plain.tolist(), strict=True)
    ]
    return np.array(beyond, np.bool_), ~plain


def _fit_together(accounts: Array, energies_milli: Array, prices_micro: Array) -> bool:
    """Say whether all of these charges are sure to fit, if they were of one account and ladder.

    `prices_micro`: the most that a unit may cost. Each by itself fits.
    """
    columns = (accounts[f"{name}_nano"] for name in ("charged", "credited", "held"))
    energy_milli = len(accounts) * _magnitude(energies_milli)
    amount_nano = energy_milli * _magnitude(prices_micro)
    return energy_milli <= PLAIN_MAX and amount_nano + sum(map(_magnitude, columns)) <= INT64_MAX


def _magnitude(figures: Array) -> int:
    return max(int(figures.max()), -int(figures.min()))


def _energy_fits(figures: Sequence[int]) -> bool:
    to_milli, from_milli, ratio, _, energy_total, *_ = figures
    energy_milli = (to_milli - from_milli) * ratio
    return fits_int64(energy_milli) and fits_int64(energy_total + energy_milli)


def _fits(figures: Sequence[int]) -> bool:
    to_milli, from_milli, ratio, price_micro, _, charged, credited, held = figures
    energy_milli = (to_milli - from_milli) * ratio
    amount_nano = energy_milli * price_micro
    charged_nano = charged + amount_nano
    available_nano = credited - charged_nano - held
    amounts = (amount_nano, charged_nano, available_nano)
    return _energy_fits(figures) and all(map(fits_int64, amounts))


def _fits_with(account: Any, amount_nano: int) -> bool:
    """Say whether an account can have an amount more on its bill."""
    charged_nano = int(account["charged_nano"]) + amount_nano
    available_nano = int(account["credited_nano"]) - charged_nano - int(account["held_nano"])
    return fits_int64(charged_nano) and fits_int64(available_nano)


def charge_one(out: Outbox, interval: Intervals, kind: int) -> Bill | None:
    """Charge an interval (only one) that a fact ends; None where it cannot be charged."""
    bill = bill_of(out.state, interval, kind)
    if bill.cannot[0]:
        return None
    out.charge(np.array([0]), bill.charges, bill.names, bill.lines)
    post(out, interval, bill.charges)
    stand(out.state, bill, interval.account_slots)
    return bill


def stand(state: ShardState, bill: Bill, account_slots: Array) -> None:
    """Let what the lines counted stand, once their charges, of these accounts, are posted."""
    state.components.divide(account_slots[bill.lines["charge"]], bill.lines, state.accounts)
    slots, totals_milli = bill.accumulated
    state.accumulations.entries["total_milli"][slots] = totals_milli
    state.open(*bill.opened)
    for slot, ladder in bill.ladders.items():
        state.put_ladder(slot, ladder)


def post(out: Outbox, intervals: Intervals, charges: Table) -> None:
    """Let the accounts of `intervals` have their charges; publish or schedule balances (rule 8)."""
    post_to(out, intervals.accounts, intervals.account_slots, charges)


def post_to(out: Outbox, accounts: Array, slots: Array, charges: Table) -> None:
    """Let accounts (dtype ACCOUNT, no slot twice) have their charges."""
    now_ms = out.now_ms
    accounts["charged_nano"] = charges["account_charged_total_nano"]
    accounts["sequence"] = charges["account_sequence"]
    reported = accounts["known"] & ~accounts["house"]
    next_ms = accounts["published_at_ms"] + BALANCE_EVERY_MS
    overdue = reported & (next_ms <= now_ms)
    accounts["due_ms"] = np.where(reported & ~overdue, next_ms, accounts["due_ms"])
    out.state.put_accounts(slots, accounts)
    out.touch(slots)
    if overdue.any():
        out.publish(slots[overdue])


def advance(out: Outbox, intervals: Intervals, charges: Table) -> None:
    """Let the meters stand at the readings that were charged."""
    meters, readings = intervals.meters, intervals.readings
    meters["opened"] = True
    meters["quality"] = readings["quality"]
    meters["register_milli"] = readings["register_milli"]
    meters["time_ms"] = readings["device_time_ms"]
    meters["reading_id"] = readings["reading_id"]
    meters["rates_milli"] = readings["rate_registers_milli"]
    meters["relay_bits"] = readings["relay_bits"]
    meters["silent_at_ms"] = out.now_ms + SILENCE_MS
    meters["sequence"] = charges["sequence"]
    meters["energy_total_milli"] = charges["meter_energy_total_milli"]
    out.state.put_meters(intervals.meter_slots, meters)


def warn_of_closed(
    out: Outbox, slots: Array, lines: Array, cause_of: Callable[[int], Cause]
) -> None:
    """Tell a person of charges whose energy belongs to a period that is closed (rule 4).

    `lines`: dtype LINE, `charge` an index into `slots`, whose charges are posted.
    """
    if not len(lines):
        return
    closed = np.unique(lines["charge"][lines["basis"] & BASIS_CLOSED != 0]).tolist()
    out.count("period-closed", len(closed))
    for i in closed:
        out.alarm(int(slots[i]), "period-closed", "period-closed", cause_of(i))
