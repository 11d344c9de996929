"""Accumulations (rule 4) in one array: those of an account are a chain, in its row's order."""

from itertools import chain

import numpy as np

from services.metering.domain.facts import Array, grown
from services.metering.domain.keys import NO_SLOT
from services.metering.domain.rows import ACCUMULATION

_STEPS_MAX = 8
"""Of chains walked side by side; a merged account's are longer, and there are few of those."""


class Accumulations:
    """The accumulations of accounts. `entries`: dtype ACCUMULATION, by slot.

    `next`: by slot, that of the next one of the same account; NO_SLOT behind its last. Falsy while
    none ever was.
    """

    def __init__(self) -> None:
        self.entries = np.zeros(16, ACCUMULATION)
        self.next = np.zeros(16, np.int32)
        self._free: list[int] = []
        self._used = 0

    def __bool__(self) -> bool:
        return self._used > 0

    @classmethod
    def of_all(cls, entries: Array, counts: Array) -> "Accumulations":
        """Return the chains of all accounts: of each so many `entries`, behind each other."""
        found = cls()
        found.entries = grown(found.entries, len(entries))
        found.entries[: len(entries)] = entries
        found._used = len(entries)
        found.next = np.arange(1, 1 + len(found.entries), dtype=np.int32)
        found.next[np.cumsum(counts)[counts > 0] - 1] = NO_SLOT
        return found

    def add(self) -> int:
        """Return the slot of one more, in no chain yet."""
        if self._free:
            return self._free.pop()
        self._used += 1
        self.entries = grown(self.entries, self._used)
        self.next = grown(self.next, self._used)
        return self._used - 1

    def release(self, slot: int) -> None:
        """Let one that is in no chain any more be used for another."""
        self._free.append(slot)

    def link(self, slots: list[int]) -> None:
        """Let a chain be these, in their order."""
        self.next[slots] = [*slots[1:], NO_SLOT][: len(slots)]

    def of(self, first: int) -> list[int]:
        """Return the slots of the chain that begins at a slot, in its order."""
        slots, at = [], first
        following = self.next.data
        while at != NO_SLOT:
            slots.append(at)
            at = following[at]
        return slots

    def of_each(self, firsts: Array, count: int) -> Array:
        """Return the slots of chains of `count` each, those of one behind those of the other."""
        if count > _STEPS_MAX:
            return np.fromiter(chain.from_iterable(map(self.of, firsts.tolist())), np.int64)
        steps = [firsts]
        while len(steps) < count:
            steps.append(self.next.take(steps[-1]))
        return np.stack(steps, axis=1).ravel()
