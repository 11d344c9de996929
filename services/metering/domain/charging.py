"""Rules 4 and 5: what an interval costs. On columns, one charge an account at a time."""

from collections.abc import Sequence

import numpy as np

from services.common.kernel.frames import CHARGE
from services.common.kernel.units import INT64_MAX, fits_int64
from services.common.kernel.values import value_class
from services.metering.domain.facts import Array
from services.metering.domain.outbox import Outbox
from services.metering.domain.shard import ShardState

BALANCE_EVERY_MS = 60_000


@value_class
class Intervals:
    """The intervals to charge: a meter, its account and the reading that ends it, n entries each.

    Dtypes METER, ACCOUNT and READING; slots int64. No account comes twice. A meter that has no
    register yet opens at the reading.
    """

    meters: Array
    accounts: Array
    account_slots: Array
    meter_slots: Array
    readings: Array

    def __len__(self) -> int:
        return len(self.meters)

    def take(self, which: Array) -> "Intervals":
        """Return those at the indexes `which`."""
        return Intervals(
            self.meters.take(which),
            self.accounts.take(which),
            self.account_slots.take(which),
            self.meter_slots.take(which),
            self.readings.take(which),
        )


def charges_of(state: ShardState, intervals: Intervals, kind: int) -> tuple[Array, Array, Array]:
    """Return (charges of dtype CHARGE, their names as numbers (n, 5), which cannot be charged).

    Changes nothing. Where an account cannot be charged its entry means nothing.
    """
    meters, accounts, readings = intervals.meters, intervals.accounts, intervals.readings
    charges = np.zeros(len(intervals), CHARGE)
    _set_interval(charges, meters, readings)
    links = state.account_links.take(intervals.account_slots)
    bare = ~accounts["known"] | accounts["house"]
    begins = charges["from_time_ms"]
    instants = np.where(begins == 0, charges["to_time_ms"], begins)
    tariffs = np.where(bare, 0, links["tariff"])
    prices, versions, priced = state.tariffs.at(tariffs, instants)
    policies = state.policies.rows.take(np.where(bare, 0, links["policy"]))
    cannot = ~bare & ~(priced & policies["present"])
    cannot |= _beyond_int64(charges, meters, accounts, prices)

    charges["kind"] = kind
    charges["meter_key"] = meters["key"]
    charges["epoch"] = meters["epoch"]
    charges["sequence"] = meters["sequence"] + 1
    charges["account_key"] = accounts["key"]
    charges["account_sequence"] = accounts["sequence"] + 1
    charges["account_revision"] = accounts["revision"]
    charges["book_epoch"] = accounts["book_epoch"]
    charges["ratio"] = meters["ratio"]
    steps = charges["to_register_milli"] - charges["from_register_milli"]
    energies = steps * meters["ratio"]
    amounts = energies * prices
    charges["energy_milli"] = energies
    charges["price_micro"] = prices
    charges["amount_nano"] = amounts
    charges["meter_energy_total_milli"] = meters["energy_total_milli"] + energies
    charges["account_charged_total_nano"] = accounts["charged_nano"] + amounts
    charges["account_credited_total_nano"] = accounts["credited_nano"]
    charges["tariff_version"] = versions
    charges["policy_version"] = policies["version"]
    names = links["names"]
    if bare.any():
        own = state.names_of_meters(intervals.meter_slots)
        names = np.where(bare[:, np.newaxis], own, names)
    return charges, names, cannot


def _set_interval(charges: Array, meters: Array, readings: Array) -> None:
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
    charges["to_received_at_ms"] = readings["received_at_ms"]


def _beyond_int64(charges: Array, meters: Array, accounts: Array, prices: Array) -> Array:
    """Return which charges have a figure that int64 cannot hold. Exact.

    Products of the largest magnitudes prove a whole column in range, nearly always; where they
    do not, each charge is computed in integers that have no end.
    """
    figures = np.array(
        [
            charges["to_register_milli"],
            charges["from_register_milli"],
            meters["ratio"],
            prices,
            meters["energy_total_milli"],
            accounts["charged_nano"],
            accounts["credited_nano"],
            accounts["held_nano"],
        ]
    )
    highest, lowest = figures.max(axis=1).tolist(), figures.min(axis=1).tolist()
    to_milli, from_milli, ratio, price, energy_total, charged, credited, held = (
        max(high, -low) for high, low in zip(highest, lowest, strict=True)
    )
    energy = (to_milli + from_milli) * ratio
    if max(energy_total + energy, charged + energy * price + credited + held) <= INT64_MAX:
        return np.zeros(len(charges), np.bool_)
    return np.array([not _fits(figure) for figure in figures.T.tolist()], np.bool_)


def _fits(figures: Sequence[int]) -> bool:
    to_milli, from_milli, ratio, price_micro, energy_total, charged, credited, held = figures
    energy_milli = (to_milli - from_milli) * ratio
    amount_nano = energy_milli * price_micro
    charged_nano = charged + amount_nano
    available_nano = credited - charged_nano - held
    results = (energy_milli, amount_nano, energy_total + energy_milli, charged_nano, available_nano)
    return all(map(fits_int64, results))


def bill(out: Outbox, intervals: Intervals, charges: Array) -> None:
    """Let the accounts of `intervals` have their charges; publish or schedule balances (rule 8)."""
    accounts, slots, now_ms = intervals.accounts, intervals.account_slots, out.state.now_ms
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


def advance(state: ShardState, intervals: Intervals, charges: Array) -> None:
    """Let the meters stand at the readings that were charged, and their accounts have heard."""
    meters, readings = intervals.meters, intervals.readings
    meters["opened"] = True
    meters["held"] = False
    meters["quality"] = readings["quality"]
    meters["register_milli"] = readings["register_milli"]
    meters["time_ms"] = readings["device_time_ms"]
    meters["reading_id"] = readings["reading_id"]
    meters["sequence"] = charges["sequence"]
    meters["energy_total_milli"] = charges["meter_energy_total_milli"]
    state.put_meters(intervals.meter_slots, meters)
    intervals.accounts["last_received_at_ms"] = readings["received_at_ms"]
