"""Rule 5's fees: what accounts owe for days and months that began, whatever they used.

What is owed is a function of time alone; a posting is all that fell due since the last one.
"""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

from services.common.kernel.frames import (
    ABSENT_REGISTER,
    CHARGE_KINDS,
    FEE_RATE,
    KIND_FEE,
    LINE,
    Table,
)
from services.common.kernel.units import fits_int64
from services.common.kernel.values import value_class
from services.common.kernel.zones import zone_named
from services.common.tariffs.calendar import begin_ms, day_number, local_date, month_of
from services.common.tariffs.pricing import FeePrice
from services.metering.domain.causes import Cause
from services.metering.domain.charging import post_to, set_standing
from services.metering.domain.facts import Array
from services.metering.domain.freezing import freeze
from services.metering.domain.judging import judge
from services.metering.domain.outbox import Outbox, available_nano
from services.metering.domain.rows import METER, NOT_DUE_MS
from services.metering.domain.shard import ASSIGNED_QUALITY, ShardState
from services.metering.domain.tariffs import Reign

NANO_PER_MICRO = 1000
DAYS_MAX = 2**16 - 1
"""Periods that one line can count."""


class Settled(NamedTuple):
    """Until when an account's fees are posted, and since when it owes any."""

    since_ms: int
    until_ms: int


@value_class
class Posting:
    """What fell due of one account: lines (dtype LINE, their charge 0), and their sum.

    `first_ms`, `last_ms`: the first and the last instant at which something did; `version`: that of
    the last. `next_ms`: when something does next. `lines` is None where a figure has no room.
    """

    lines: Array | None
    amount_nano: int
    first_ms: int
    last_ms: int
    version: int
    next_ms: int


def post_fees(out: Outbox, slots: Array) -> None:
    """Post what fees are due, of some of the accounts at `slots`; in ascending account_key."""
    state = out.state
    if not state.tariffs.have_fees:
        return
    due = state.accounts["fees_due_ms"][slots] <= state.now_ms
    if not due.any():
        return
    slots = np.unique(slots[due])
    slots = slots[state.accounts["offset"][slots] < out.offset]
    state.link_read(slots)
    slots = slots[np.argsort(state.accounts["key"][slots])]
    # Behind each other, and before whatever a frame's readings cause.
    positions = np.arange(len(slots)) - len(slots) + 1
    postings = _postings(state, slots)
    can = np.zeros(len(slots), np.bool_)
    for i, (slot, posting) in enumerate(zip(slots.tolist(), postings, strict=True)):
        can[i] = posting.lines is not None and _fits(state, slot, posting.amount_nano)
        if not can[i]:
            freeze(out, slot, Cause(position=int(positions[i])))
    if can.any():
        posted = [posting for posting, fits in zip(postings, can.tolist(), strict=True) if fits]
        _post(out, slots[can], positions[can], posted)


def _postings(state: ShardState, slots: Array) -> list[Posting]:
    """Return what each account owes; it is mostly the same for many."""
    known: dict[tuple[int, int, int], Posting] = {}
    accounts = state.accounts.take(slots)
    found = []
    for tariff, since_ms, until_ms, due_ms in zip(
        state.account_links["tariff"][slots].tolist(),
        *(accounts[f"{name}_ms"].tolist() for name in ("since", "fees_until", "fees_due")),
        strict=True,
    ):
        begins = since_ms if until_ms < since_ms else -1
        posting = known.get((tariff, due_ms, begins))
        if posting is None:
            reigns = state.tariffs.fee_reigns(tariff)
            posting = _posting(reigns, Settled(since_ms, until_ms), state.now_ms)
            known[tariff, due_ms, begins] = posting
        found.append(posting)
    return found


def _fits(state: ShardState, slot: int, amount_nano: int) -> bool:
    account = state.accounts[slot]
    charged_nano = int(account["charged_nano"]) + amount_nano
    return fits_int64(charged_nano) and fits_int64(available_nano(account) - amount_nano)


def _post(out: Outbox, slots: Array, positions: Array, postings: Sequence[Posting]) -> None:
    """Charge accounts (ascending) what fell due, and judge them: a fee never cuts."""
    state = out.state
    accounts = state.accounts.take(slots)
    policies = state.policies.rows.take(state.account_links["policy"][slots])
    meters = np.zeros(len(slots), METER)  # where a charge tells of a meter, a fee tells of none
    meters["key"] = accounts["key"]
    meters["sequence"] = accounts["fees_sequence"]
    meters["ratio"] = 1
    charges = Table(CHARGE_KINDS, len(slots))
    charges["kind"] = KIND_FEE
    charges["from_time_ms"] = [posting.first_ms for posting in postings]
    charges["to_time_ms"] = [posting.last_ms for posting in postings]
    charges["from_quality"] = charges["to_quality"] = ASSIGNED_QUALITY
    charges["from_rates_milli"] = charges["to_rates_milli"] = ABSENT_REGISTER
    charges["amount_nano"] = [posting.amount_nano for posting in postings]
    charges["tariff_version"] = [posting.version for posting in postings]
    charges["policy_version"] = policies["version"]
    set_standing(charges, meters, accounts)
    lines = _lines_of(postings)
    out.charge(positions, charges, state.account_links["names"][slots], lines)
    accounts["fees_sequence"] += 1
    accounts["fees_until_ms"] = state.now_ms
    accounts["fees_due_ms"] = [posting.next_ms for posting in postings]
    post_to(out, accounts, slots, charges)
    state.components.divide(slots[lines["charge"]], lines, state.accounts)
    judge(out, slots, lambda i: Cause(charge=charges[i], position=int(positions[i])))


def _lines_of(postings: Sequence[Posting]) -> Array:
    """Return the lines of postings, one behind the other. Most are one and the same."""
    tables = {id(posting): posting.lines for posting in postings if posting.lines is not None}
    ends = np.cumsum([len(table) for table in tables.values()]).tolist()
    places = {key: range(*span) for key, span in zip(tables, pairwise([0, *ends]), strict=True)}
    mine = [places[id(posting)] for posting in postings]
    lines = np.concatenate(list(tables.values()))[[place for span in mine for place in span]]
    lines["charge"] = np.repeat(np.arange(len(postings)), list(map(len, mine)))
    return lines


def set_due(out: Outbox, slots: Array) -> None:
    """Set when fees of accounts fall due next, by what is known now."""
    state = out.state
    for slot in slots.tolist():
        account, due_ms = state.accounts[slot], NOT_DUE_MS
        reigns = state.tariffs.fee_reigns(int(state.account_links["tariff"][slot]))
        if reigns and _owes(state, slot):
            settled = Settled(int(account["since_ms"]), int(account["fees_until_ms"]))
            due_ms = _next_ms(reigns, settled)
        if account["fees_due_ms"] != due_ms:
            account["fees_due_ms"] = due_ms
            out.touch(np.array([slot]))


def _owes(state: ShardState, slot: int) -> bool:
    account, fact = state.accounts[slot], state.account_fact(slot)
    is_open = fact is not None and fact["status"] == "open"
    return is_open and not (account["house"] or account["frozen"])


def _posting(reigns: Sequence[Reign], settled: Settled, now_ms: int) -> Posting:
    """Return what fell due until `now_ms`: at least one fee did."""
    instants: list[tuple[int, int]] = []
    counted: dict[tuple[int, int, bool], tuple[FeePrice, int, int, int]] = {}
    for at_ms, number, fees, day in _begun(reigns, settled, now_ms):
        begins = at_ms == settled.since_ms and settled.until_ms < at_ms
        for fee, price in enumerate(fees):
            if begins or day.day == 1 or not price.monthly:
                days, days_of = _share(day) if price.monthly and begins else (1, 1)
                whole = days == days_of
                period = month_of(day) if price.monthly else day_number(day)
                if whole:
                    _, period, days, _ = counted.get((number, fee, True), (price, period, 0, 1))
                    days, days_of = days + 1, 1
                counted[number, fee, whole] = (price, period, days, days_of)
                instants.append((at_ms, number))
    figures = [
        (number, FEE_RATE + fee, period, *_amounts(price, days, days_of), days, days_of)
        for (number, fee, _), (price, period, days, days_of) in counted.items()
    ]
    amount_nano = sum(figure[3] + figure[4] for figure in figures)
    (first_ms, _), (last_ms, version) = instants[0], instants[-1]
    next_ms = _next_ms(reigns, Settled(settled.since_ms, now_ms))
    return Posting(_as_lines(figures), amount_nano, first_ms, last_ms, version, next_ms)


def _begun(
    reigns: Sequence[Reign], settled: Settled, now_ms: int
) -> Iterator[tuple[int, int, tuple[FeePrice, ...], date]]:
    """Yield (instant, version, its fees, local date) of the account's begin and of days after it.

    Of months, where no fee is of a day.
    """
    since_ms, until_ms = settled
    for reign in reigns:
        zone, fees = zone_named(reign.version.plan.zone), reign.version.terms.fees
        number = reign.version.number
        if until_ms < since_ms and reign.begins_ms <= since_ms < reign.ends_ms:
            yield since_ms, number, fees, local_date(zone, since_ms)
        after_ms = max(since_ms, until_ms, reign.begins_ms - 1)
        for at_ms, day in _days(zone, fees, after_ms, min(now_ms, reign.ends_ms - 1)):
            yield at_ms, number, fees, day


def _next_ms(reigns: Sequence[Reign], settled: Settled) -> int:
    """Return when the first fee falls due that is not settled; NOT_DUE_MS where none does."""
    return next(
        (at_ms for at_ms, *_ in _begun(reigns, settled, NOT_DUE_MS)),
        NOT_DUE_MS,
    )


def _days(
    zone: ZoneInfo, fees: tuple[FeePrice, ...], after_ms: int, until_ms: int
) -> Iterator[tuple[int, date]]:
    """Yield (instant, date) of days, or months, that begin in (after, until]."""
    monthly = all(fee.monthly for fee in fees)
    day = local_date(zone, after_ms) if after_ms < until_ms else date.max
    while after_ms < until_ms:
        day = _next_month(day) if monthly else day + timedelta(days=1)
        after_ms = begin_ms(zone, day)
        # A date that the zone leaves out never begins.
        if after_ms <= until_ms and local_date(zone, after_ms) == day:
            yield after_ms, day


def _next_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def _share(day: date) -> tuple[int, int]:
    """Return (days, days of the month): how much of a month is left at the begin of its `day`."""
    ends = _next_month(day)
    return (ends - day).days, (ends - day.replace(day=1)).days


def _amounts(price: FeePrice, days: int, days_of: int) -> tuple[int, int]:
    """Return (amount, its tax), rounded down to the ledger's unit."""
    amount_nano, tax_nano = price.amount_micro * NANO_PER_MICRO, price.tax_micro * NANO_PER_MICRO
    return amount_nano * days // days_of, tax_nano * days // days_of


def _as_lines(figures: Sequence[tuple[int, ...]]) -> Array | None:
    """Return fees as dtype LINE; None where a figure has no room."""
    lines = np.zeros(len(figures), LINE)
    for line, (version, rate, period, amount_nano, tax_nano, days, days_of) in zip(
        lines, figures, strict=True
    ):
        if not fits_int64(amount_nano + tax_nano) or days > DAYS_MAX:
            return None
        line["version"], line["rate"], line["period"] = version, rate, period
        line["rate_nano"], line["tax_nano"] = amount_nano, tax_nano
        line["days"], line["days_of"] = days, days_of
    return lines
