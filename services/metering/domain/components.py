"""What accounts were charged, parted by component (rule 5): lifetime totals by slot."""

import numpy as np

from services.common.kernel.frames import FEE_RATE, NO_RATE
from services.common.kernel.units import INT64_MAX, fits_int64
from services.metering.domain.facts import Array, are_distinct, grown
from services.metering.domain.groups import firsts
from services.metering.domain.rows import COMPONENTS, UNDIVIDED


class Components:
    """What each account was charged by component. `nano`: int64, (accounts, COMPONENTS), by slot.

    Falsy while nothing was divided.
    """

    def __init__(self) -> None:
        self.nano = np.zeros((16, len(COMPONENTS)), np.int64)
        self._any = False
        self._most_nano = 0
        """No component is larger."""

    def __bool__(self) -> bool:
        return self._any

    @classmethod
    def of_all(cls, nano: Array) -> "Components":
        """Return those of all accounts, as their rows have them."""
        components = cls()
        components.make_room(len(nano))
        components.nano[: len(nano)] = nano
        components._any = bool(nano.any())
        components._most_nano = _magnitude(components.nano)
        return components

    def make_room(self, count: int) -> None:
        """Have room for so many accounts."""
        self.nano = grown(self.nano, count)

    def divide(self, slots: Array, lines: Array, accounts: Array) -> None:
        """Count what lines (dtype LINE, which are charged) come to by component (rule 5).

        `slots`: of each line its account's. `accounts`: dtype ACCOUNT, by slot.
        """
        if not len(lines):
            return
        self._any = True
        rates = lines["rate"]
        fees_nano = lines["rate_nano"] * ((rates >= FEE_RATE) & (rates != NO_RATE))
        parts = (lines["surcharge_nano"], lines["ladder_nano"], fees_nano, lines["tax_nano"])
        amounts = np.stack(parts)
        if not self._have_room(slots, len(lines) * _magnitude(amounts)):
            self._divide_exactly(slots, amounts, accounts)
            return
        heads = firsts(slots)
        sums, slots = np.add.reduceat(amounts, heads, axis=1), slots[heads]
        if are_distinct(slots):
            stood = self.nano.take(slots, axis=0)
            stood[:, :UNDIVIDED] += sums.T
            self.nano[slots] = stood
            return
        for number in np.flatnonzero(sums.any(axis=1)).tolist():
            np.add.at(self.nano[:, number], slots, sums[number])

    def _have_room(self, slots: Array, more_nano: int) -> bool:
        """Say whether the components of accounts are sure to take so much more."""
        self._most_nano += more_nano
        if self._most_nano <= INT64_MAX:
            return True
        return _magnitude(self.nano[slots]) + more_nano <= INT64_MAX

    def _divide_exactly(self, slots: Array, amounts: Array, accounts: Array) -> None:
        """Do the same in integers that have no end: where a total has none, nothing is divided."""
        for slot in set(slots.tolist()):
            more = map(sum, amounts[:, slots == slot].tolist())
            stood = self.nano[slot].tolist()
            totals = [*map(sum, zip(stood, more, strict=False)), stood[UNDIVIDED]]
            if not all(map(fits_int64, totals)):
                totals = [0] * UNDIVIDED + [int(accounts["charged_nano"][slot])]
            self.nano[slot] = totals

    def of(self, slot: int, charged_nano: int) -> dict[str, int]:
        """Return what an account was charged by component, that of its rates as `energy`.

        `charged_nano`: all that it was charged.
        """
        parts = dict(zip(COMPONENTS, self.nano[slot].tolist(), strict=True))
        energy_nano = charged_nano - sum(parts.values())
        if not fits_int64(energy_nano):
            return {"energy": 0, **dict.fromkeys(COMPONENTS, 0), "undivided": charged_nano}
        return {"energy": energy_nano, **parts}


def _magnitude(figures: Array) -> int:
    return max(int(figures.max()), -int(figures.min()))
