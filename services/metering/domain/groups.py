"""What runs through a frame's readings, account by account, or accumulation by accumulation."""

import numpy as np

from services.metering.domain.facts import Array


def firsts(ordered: Array) -> Array:
    """Return the index at which each of ordered numbers comes first."""
    begins = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=begins[1:])
    return np.flatnonzero(begins)


class Groups:
    """Entries by the number of what they belong to; those of one group in their order."""

    def __init__(self, numbers: Array) -> None:
        self._order = np.argsort(numbers, kind="stable")
        self._starts = firsts(numbers[self._order])
        self._sizes = np.diff(self._starts, append=len(numbers))

    @property
    def are_single(self) -> bool:
        """No group has two entries."""
        return len(self._starts) == len(self._order)

    def shared(self) -> Array:
        """Say which entries are not alone in their group."""
        return self._placed(np.repeat(self._sizes > 1, self._sizes))

    def ranks(self) -> Array:
        """Return how many entries of its group are before each."""
        return self._placed(np.arange(len(self._order)) - np.repeat(self._starts, self._sizes))

    def sums_before(self, amounts: Array) -> Array:
        """Return the sum of the amounts before each entry in its group (int64).

        Right wherever the sums of a group fit int64, whatever all come to.
        """
        added = amounts[self._order]
        before = np.cumsum(added, dtype=np.int64) - added
        return self._placed(before - np.repeat(before[self._starts], self._sizes))

    def ends(self) -> Array:
        """Return the indexes of the last entry of each group, ascending."""
        return np.sort(self._order[self._starts + self._sizes - 1])

    def _placed(self, ordered: Array) -> Array:
        """Return entries that are ordered by group at their places."""
        found = np.empty_like(ordered)
        found[self._order] = ordered
        return found
