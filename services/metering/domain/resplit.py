"""Rule 5's windows: a late reading tells the shape of an interval that was charged before."""

from typing import Any

import numpy as np

from services.common.kernel.frames import (
    ABSENT_REGISTER,
    BASIS_TIME,
    CHARGE_KINDS,
    KIND_RESPLIT,
    RATES,
    Table,
)
from services.common.kernel.units import fits_int64
from services.common.tariffs.shape import End
from services.metering.domain.causes import Cause
from services.metering.domain.charging import Bill, Intervals, post, set_standing, warn_of_closed
from services.metering.domain.freezing import freeze
from services.metering.domain.judging import judge
from services.metering.domain.ladders import Part
from services.metering.domain.lines import are_within, as_lines, climbed, parts_of
from services.metering.domain.outbox import Outbox
from services.metering.domain.rows import WITH_RATES
from services.metering.domain.shard import ASSIGNED_QUALITY, ShardState
from services.metering.domain.windows import Window, kept_windows


def leave_windows(state: ShardState, intervals: Intervals, bill: Bill) -> None:
    """Keep the intervals that were split by time, for a late reading to split them again."""
    which, charges = bill.split, bill.charges
    meter_slots = intervals.meter_slots[which]
    names = ("from_time_ms", "from_register_milli", "to_time_ms", "to_register_milli")
    rates = [charges[name][which] for name in ("from_rates_milli", "to_rates_milli")]
    plain = np.logical_and(*((of_end == ABSENT_REGISTER).all(axis=1) for of_end in rates))
    plain &= state.meters["windows"][meter_slots] & WITH_RATES == 0
    windows = np.stack([charges[name][which] for name in names], axis=1)
    state.append_windows(meter_slots[plain], windows[plain])
    if not plain.all():
        windows = np.concatenate([windows, *rates], axis=1)
        for i in np.flatnonzero(~plain).tolist():
            meter_slot, window = int(meter_slots[i]), tuple(windows[i].tolist())
            state.put_windows(meter_slot, kept_windows([*state.windows_of(meter_slot), window]))


def late_outcome(state: ShardState, intervals: Intervals, i: int) -> str:
    """Return what a late reading comes to."""
    reading = intervals.readings[i]
    window = _window_of(state, int(intervals.meter_slots[i]), reading)
    if window is None:
        return "late"
    within = window[1] <= int(reading["register_milli"]) <= window[3]
    return "re-split" if within else "late-conflict"


def _window_of(state: ShardState, meter_slot: int, reading: Any) -> Window | None:
    at_ms = int(reading["device_time_ms"])
    windows = state.windows_of(meter_slot)
    return next((window for window in windows if window[0] < at_ms < window[2]), None)


def resplit(out: Outbox, interval: Intervals, position: int) -> None:
    """Charge the difference that a late reading (the only one of `interval`) makes."""
    state = out.state
    slot, meter_slot = int(interval.account_slots[0]), int(interval.meter_slots[0])
    reading = interval.readings[0]
    window = _window_of(state, meter_slot, reading)
    assert window is not None, "it is its outcome"
    meter = state.meter_fact(int(interval.meters["key"][0]))
    tariff = int(state.account_links["tariff"][slot])
    middle = End(
        int(reading["device_time_ms"]),
        int(reading["register_milli"]),
        tuple(reading["rate_registers_milli"].tolist()),
    )
    ratio = int(interval.meters["ratio"][0])
    moved, halves = _moved(state, tariff, ratio, window, middle)
    ladder, lines = climbed(state, slot, meter_slot, moved, BASIS_TIME)
    amount_nano = sum(line.amount_nano for line in lines)
    account = interval.accounts[0]
    charged_nano = int(account["charged_nano"]) + amount_nano
    available_nano = int(account["credited_nano"]) - charged_nano - int(account["held_nano"])
    policy = state.policies.rows[state.account_links["policy"][slot]]
    if (
        not policy["present"]
        or not are_within(lines)
        or not all(map(fits_int64, (charged_nano, available_nano)))
    ):
        freeze(out, slot, Cause(meter=meter, reading=reading, position=position))
        return
    charges = _charge_of(state, interval, tariff, window, amount_nano)
    names = state.account_links["names"][[slot]]
    out.count("re-split")
    table, slots = as_lines(0, lines), np.array([slot])
    out.charge(np.array([position]), charges, names, table)
    state.meters["sequence"][meter_slot] += 1
    post(out, interval, charges)
    state.components.divide(np.full(len(table), slot), table, state.accounts)
    state.put_ladder(slot, ladder)
    _replace(state, meter_slot, window, halves)
    cause = Cause(meter=meter, charge=charges[0], position=position)
    warn_of_closed(out, slots, table, lambda _: cause)
    judge(out, slots, lambda _: cause)


def _moved(
    state: ShardState, tariff: int, ratio: int, window: Window, middle: End
) -> tuple[list[Part], list[Window]]:
    """Return what moves between lines, in their order, and the windows that are left."""
    begin, end = _ends(window)
    before, _ = parts_of(state, tariff, begin, end, ratio)
    changes = {_where(part): -part.energy_milli for part in before}
    halves = []
    for half in ((begin, middle), (middle, end)):
        parts, estimated = parts_of(state, tariff, *half, ratio)
        for part in parts:
            changes[_where(part)] = changes.get(_where(part), 0) + part.energy_milli
        if estimated:
            halves.append(_window(*half))
    moved = [Part(*where, energy_milli) for where, energy_milli in changes.items() if energy_milli]
    return moved, halves


def _where(part: Part) -> tuple[int, int, int]:
    return part.row, part.rate, part.period


def _ends(window: Window) -> tuple[End, End]:
    begin = End(window[0], window[1], window[4 : 4 + RATES])
    return begin, End(window[2], window[3], window[4 + RATES :])


def _window(begin: End, end: End) -> Window:
    times = (begin.time_ms, begin.register_milli, end.time_ms, end.register_milli)
    return (*times, *begin.rates_milli, *end.rates_milli)


def _charge_of(
    state: ShardState, interval: Intervals, tariff: int, window: Window, amount_nano: int
) -> Table:
    meters, accounts, readings = interval.meters, interval.accounts, interval.readings
    slots = np.array([tariff])
    _, last = state.tariffs.of(slots, np.array([window[0]]), np.array([window[2]]))
    policy = state.policies.rows[state.account_links["policy"][interval.account_slots]]
    charge = Table(CHARGE_KINDS, 1)
    charge["kind"] = KIND_RESPLIT
    charge["from_time_ms"] = window[0]
    charge["from_register_milli"] = window[1]
    charge["from_quality"] = ASSIGNED_QUALITY
    charge["from_rates_milli"] = window[4 : 4 + RATES]
    charge["to_rates_milli"] = readings["rate_registers_milli"]
    charge["to_reading_id"] = readings["reading_id"]
    charge["to_time_ms"] = readings["device_time_ms"]
    charge["to_received_at_ms"] = readings["received_at_ms"]
    charge["to_register_milli"] = readings["register_milli"]
    charge["to_quality"] = readings["quality"]
    charge["amount_nano"] = amount_nano
    charge["tariff_version"] = state.tariffs.table["version"][state.tariffs.segments["row"][last]]
    charge["policy_version"] = policy["version"]
    set_standing(charge, meters, accounts)
    return charge


def _replace(state: ShardState, meter_slot: int, window: Window, halves: list[Window]) -> None:
    """Let what is left of a window stand instead of it."""
    windows = state.windows_of(meter_slot)
    at = windows.index(window)
    found = [*windows[:at], *halves, *windows[at + 1 :]]
    state.put_windows(meter_slot, kept_windows(found) if found else [])
