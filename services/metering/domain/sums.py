"""What runs through a frame's readings, account by account, or accumulation by accumulation."""

import numpy as np

from services.metering.domain.facts import Array


def sums_before(groups: Array, amounts: Array) -> Array:
    """Return of each entry the sum of the amounts before it in its group (int64).

    `groups`: numbers from 0 on. Right wherever the sums of a group fit int64, whatever all come to.
    """
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sums = np.zeros(len(groups), np.int64)
    if len(starts) < len(groups):
        ordered = amounts[order]
        before = np.cumsum(ordered, dtype=np.int64) - ordered
        sums[order] = before - np.repeat(before[starts], np.diff(starts, append=len(groups)))
    return sums


def shared_of(groups: Array) -> Array | None:
    """Say which entries are not alone in their group; None where all are."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return (counts > 1)[inverse] if len(counts) < len(groups) else None


def last_of_each(groups: Array) -> Array:
    """Return the indexes of the last entry of each group, ascending."""
    _, from_the_end = np.unique(groups[::-1], return_index=True)
    return np.sort(len(groups) - 1 - from_the_end)
