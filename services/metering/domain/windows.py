"""Rule 5's windows: of each meter the intervals that were split by time, ascending.

In blocks of an array, WINDOWS_MAX windows a meter that has any; the few that have registers of
rates are kept as bytes.
"""

from collections.abc import Sequence

import numpy as np

from services.metering.domain.facts import Array, grown
from services.metering.domain.rows import (
    WINDOW,
    WINDOWS_MAX,
    WITH_RATES,
    packed_windows,
    windows_in,
)

Window = tuple[int, ...]
"""(from time, register, to time, register, registers of rates there, and there)."""

WINDOW_AGE_MS_MAX = 40 * 86_400_000
"""A window that ended longer before the newest one goes: nothing will come for it."""
_ENDS = WINDOW.size // 8
_NOBODY = 0
"""The block of a meter that has none."""


def kept_windows(windows: list[Window]) -> list[Window]:
    """Return those that stay of ascending windows: the widest, and none that is too old."""
    newest_ms = windows[-1][2]
    young = [window for window in windows if window[2] >= newest_ms - WINDOW_AGE_MS_MAX]
    while len(young) > WINDOWS_MAX:
        young.remove(min(young, key=lambda window: (window[2] - window[0], window[0])))
    return young


class Windows:
    """The windows of meters by their slots. `said`: what a METER says of its windows (u1)."""

    def __init__(self) -> None:
        self._block_of = np.zeros(16, np.int32)
        self._blocks = np.zeros((16, WINDOWS_MAX, _ENDS), np.int64)
        self._used = _NOBODY + 1
        self._free: list[int] = []
        self._with_rates: dict[int, bytes] = {}

    def __bool__(self) -> bool:
        return self._used > _NOBODY + 1 or bool(self._with_rates)

    def of(self, meter_slot: int, said: int) -> list[Window]:
        """Return a meter's windows, ascending."""
        return windows_in(said, self.packed(meter_slot, said)) if said else []

    def packed(self, meter_slot: int, said: int) -> bytes:
        """Return a meter's windows as its row has them."""
        if said & WITH_RATES:
            return self._with_rates[meter_slot]
        return self._blocks[self._block_of[meter_slot], :said].tobytes() if said else b""

    def put(self, meter_slot: int, windows: Sequence[Window]) -> int:
        """Let a meter's windows be `windows`, ascending; return what it says of them."""
        said, packed = packed_windows(windows)
        self._with_rates.pop(meter_slot, None)
        if said & WITH_RATES:
            self._with_rates[meter_slot] = packed
        if said & WITH_RATES or not said:
            self._release(meter_slot)
        else:
            (block,) = self._blocks_for(np.array([meter_slot]))
            self._blocks[block, :said] = np.frombuffer(packed, np.int64).reshape(said, _ENDS)
        return said

    @classmethod
    def of_all(cls, said: Array, packed: Sequence[bytes]) -> "Windows":
        """Return the windows of all meters. `packed`: of each, as its row has them."""
        windows = cls()
        with_rates = np.flatnonzero(said & WITH_RATES).tolist()
        windows._with_rates = {slot: packed[slot] for slot in with_rates}
        plain = np.flatnonzero((said != 0) & (said & WITH_RATES == 0))
        raw = b"".join([packed[slot] for slot in plain.tolist()])
        blocks = windows._blocks_for(plain)
        found = np.zeros((len(plain), WINDOWS_MAX, _ENDS), np.int64)
        found[_of_each(said[plain])] = np.frombuffer(raw, np.int64).reshape(-1, _ENDS)
        windows._blocks[blocks] = found
        return windows

    def append(self, meter_slots: Array, said: Array, newest: Array) -> Array:
        """Let each of some meters have one more window, its newest; return what they say then.

        No meter twice, none with registers of rates. `newest`: (n, 4), from time, register, to
        time, register.
        """
        count, blocks = len(meter_slots), self._blocks_for(meter_slots)
        found = np.empty((count, WINDOWS_MAX + 1, _ENDS), np.int64)
        found[:, :WINDOWS_MAX] = self._blocks[blocks]
        found[np.arange(count), said] = newest
        kept = np.arange(WINDOWS_MAX + 1) <= said[:, np.newaxis]
        kept &= found[:, :, 2] >= newest[:, 2:3] - WINDOW_AGE_MS_MAX
        over = np.flatnonzero(kept.all(axis=1))
        narrowest = (found[over, :, 2] - found[over, :, 0]).argmin(axis=1)
        kept[over, narrowest] = False
        order = np.argsort(~kept, axis=1, kind="stable")[:, :WINDOWS_MAX, np.newaxis]
        self._blocks[blocks] = np.take_along_axis(found, order, axis=1)
        now_said: Array = kept.sum(axis=1).astype(np.uint8)
        return now_said

    def flat(self, meter_slots: Array, said: Array) -> Array:
        """Return the windows of meters behind each other, (n, 4); none with registers of rates."""
        blocks = self._blocks.take(self._block_of.take(meter_slots, mode="clip"), axis=0)
        found: Array = blocks[_of_each(said)]
        return found

    def _blocks_for(self, meter_slots: Array) -> Array:
        """Return the blocks of meters, new ones where they have none."""
        self._block_of = grown(self._block_of, int(meter_slots.max(initial=-1)) + 1)
        blocks = self._block_of.take(meter_slots)
        without = np.flatnonzero(blocks == _NOBODY)
        blocks[without] = self._new_blocks(len(without))
        self._block_of[meter_slots] = blocks
        return blocks

    def _new_blocks(self, count: int) -> Array:
        freed, self._free = self._free[:count], self._free[count:]
        begin, self._used = self._used, self._used + count - len(freed)
        self._blocks = grown(self._blocks, self._used)
        return np.append(np.array(freed, np.int32), np.arange(begin, self._used))

    def _release(self, meter_slot: int) -> None:
        """Let a meter have no block."""
        if meter_slot < len(self._block_of) and self._block_of[meter_slot] != _NOBODY:
            self._free.append(int(self._block_of[meter_slot]))
            self._block_of[meter_slot] = _NOBODY


def _of_each(said: Array) -> Array:
    """Say which windows of blocks are there: (n, WINDOWS_MAX)."""
    there: Array = np.arange(WINDOWS_MAX) < said[:, np.newaxis]
    return there
