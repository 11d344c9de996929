"""Keys by number: a table of a fifth of a dict's memory that looks up whole columns.

And by them where something stands, now here, now there.
"""

import numpy as np

from services.metering.domain.facts import Array, grown

SPREAD = 0x9E37_79B9_7F4A_7C15
"""2^64 over the golden ratio: the product's highest bits scatter keys however they lie (Knuth)."""
NO_SLOT = -1
"""Where nothing stands."""
_WORD = (1 << 64) - 1
_CELLS_MIN = 16
_FREE = -1
_FEW = 8
"""So few keys are looked up one by one: steps over columns have a price of their own."""


class Keys:
    """Distinct int64 keys, numbered from 0 in the order in which they came; none ever goes.

    An open-addressing table: a cell holds the number of a key whose home it is, or that found
    all cells from its home on taken. At least half of the cells are free. Keys that share a home,
    be they made to, cost time and are told apart all the same.
    """

    def __init__(self) -> None:
        self._keys = np.zeros(_CELLS_MIN, np.int64)
        self._count = 0
        self._place(_CELLS_MIN)

    def __len__(self) -> int:
        return self._count

    def all(self) -> Array:
        """Return the keys by number (int64)."""
        return self._keys[: self._count]

    def number(self, key: int) -> int:
        """Return the number of a key; -1 where it is not known."""
        at = (key * SPREAD & _WORD) >> self._shift
        while (number := self._cell[at]) != _FREE and self._key[number] != key:
            at = at + 1 & self._mask
        return number

    def numbers(self, keys: Array) -> Array:
        """Return the number of each key (int64), -1 where it is not known."""
        if len(keys) <= _FEW:
            return np.fromiter(map(self.number, keys.tolist()), np.int64, len(keys))
        at = self._homes(keys)
        numbers = self._cells.take(at)
        others = np.flatnonzero(self._are_others(numbers, keys))
        while len(others):
            at[others] = at[others] + 1 & self._mask
            numbers[others] = self._cells.take(at[others])
            others = others[self._are_others(numbers[others], keys[others])]
        return numbers.astype(np.int64)

    def add(self, key: int) -> int:
        """Give a key that is not known its number, and return it."""
        number = self._count
        self._keys = grown(self._keys, number + 1)
        self._keys[number] = key
        self._count += 1
        if 2 * self._count > len(self._cells):
            self._place(2 * len(self._cells))
            return number
        self._key = self._keys.data
        at = (key * SPREAD & _WORD) >> self._shift
        while self._cell[at] != _FREE:
            at = at + 1 & self._mask
        self._cell[at] = number
        return number

    def extend(self, keys: Array) -> None:
        """Give keys (int64), all distinct and not known, their numbers."""
        count = self._count + len(keys)
        self._keys = grown(self._keys, count)
        self._keys[self._count : count] = keys
        self._count = count
        self._place(max(_CELLS_MIN, 1 << (2 * count - 1).bit_length()))

    def _place(self, cells: int) -> None:
        """Give every key its cell among `cells`, a power of two."""
        self._mask = cells - 1
        self._shift = 64 - self._mask.bit_length()
        self._cells = np.full(cells, _FREE, np.int32)
        self._key, self._cell = self._keys.data, self._cells.data
        at = self._homes(self.all())
        waiting = np.arange(self._count)
        while len(waiting):
            wanted = at[waiting]
            free = self._cells[wanted] == _FREE
            self._cells[wanted[free]] = waiting[free]  # of several the last written stands
            left = self._cells[wanted] != waiting
            waiting = waiting[left]
            at[waiting] = wanted[left] + 1 & self._mask

    def _homes(self, keys: Array) -> Array:
        spread = keys.view(np.uint64) * np.uint64(SPREAD)
        return (spread >> np.uint64(self._shift)).view(np.int64)

    def _are_others(self, numbers: Array, keys: Array) -> Array:
        """Say which cells, that hold `numbers`, are taken by other keys than these."""
        return (numbers != _FREE) & (self._keys.take(numbers, mode="clip") != keys)


class Standing:
    """Slots by key: where each stands that comes and goes."""

    def __init__(self) -> None:
        self._keys = Keys()
        self._slots = np.zeros(16, np.int32)

    @classmethod
    def of_all(cls, keys: Array, slots: Array) -> "Standing":
        """Return where keys (int64) stand; of a key that comes twice the last one stands."""
        standing = cls()
        standing._keys.extend(np.unique(keys))
        standing._slots = grown(standing._slots, len(keys))
        standing._slots[standing._keys.numbers(keys)] = slots
        return standing

    def count(self) -> int:
        """Return how many stand somewhere."""
        return int(np.count_nonzero(self._slots[: len(self._keys)] != NO_SLOT))

    def find(self, keys: Array) -> Array:
        """Return the slot of each key, NO_SLOT where it stands nowhere."""
        numbers = self._keys.numbers(keys)
        slots = self._slots.take(numbers, mode="clip").astype(np.int64)
        slots[numbers < 0] = NO_SLOT
        return slots

    def put(self, key: int, slot: int) -> None:
        """Let a key stand at a slot; NO_SLOT: nowhere."""
        number = self._keys.number(key)
        if number < 0:
            number = self._keys.add(key)
            self._slots = grown(self._slots, number + 1)
        self._slots[number] = slot
