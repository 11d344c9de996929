"""What stands behind a meter's windows in its account's row: what few meters have.

The reading that a hold waits for, a closing register that waits for a person, habits and a stand.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from services.metering.domain.facts import Array
from services.metering.domain.rows import (
    HABITS,
    HELD,
    HOURS,
    METER,
    READ_AGAIN,
    STAND,
    TAIL_HABITS,
    TAIL_STAND,
    TAIL_WAITING,
)


class Held(NamedTuple):
    """The reading that a hold waits for."""

    reading_id: bytes
    register_milli: int
    time_ms: int
    received_at_ms: int


class Habits(NamedTuple):
    """What a meter usually takes: since when and from which register its power is told next.

    Of each hour of the day its level, and how often it was told.
    """

    time_ms: int
    register_milli: int
    levels: tuple[int, ...]
    told: tuple[int, ...]


class Stand(NamedTuple):
    """Since when, by its device's clock, a register stands, and at what."""

    time_ms: int
    register_milli: int


class Waiting(NamedTuple):
    """A closing register that waits for a person, with the meter (dtype METER) it would close."""

    meters: Array
    held: Held


class Tails:
    """The tails of meters by their slots, packed as their rows have them.

    A METER says what its tail holds: what puts something there is given `meters` (by slot), and
    lets it say so. Falsy while no meter has any.
    """

    def __init__(self) -> None:
        self._held: dict[int, bytes] = {}
        self._waiting: dict[int, bytes] = {}
        self._habits: dict[int, bytes] = {}
        self._stands: dict[int, bytes] = {}
        self._each = self._held, self._waiting, self._habits, self._stands
        """In the order of a row."""

    def __bool__(self) -> bool:
        return any(self._each)

    @classmethod
    def of_all(cls, *packed: Sequence[bytes]) -> "Tails":
        """Return the tails of all meters. `packed`: each kind's, of each meter, b"": none."""
        tails = cls()
        for kind, of_meters in zip(tails._each, packed, strict=True):
            kind.update((slot, each) for slot, each in enumerate(of_meters) if each)
        return tails

    def packed(self, meter_slot: int) -> list[bytes]:
        """Return a meter's tail as its row has it."""
        return [kind.get(meter_slot, b"") for kind in self._each]

    def clear(self, meters: Array, meter_slot: int) -> None:
        """Let a meter have none."""
        self.put_hold(meters, meter_slot, 0)
        self.put_waiting(meters, meter_slot, None)
        self.put_habits(meters, meter_slot, None)
        self.put_stand(meters, meter_slot, None)

    def held_of(self, meter_slot: int) -> Held:
        """Return the reading that a meter's hold waits for."""
        return Held(*HELD.unpack(self._held[meter_slot]))

    def put_hold(self, meters: Array, meter_slot: int, hold: int, held: Held | None = None) -> None:
        """Let a meter be held for a reading; hold 0: for none."""
        meters["hold"][meter_slot] = hold
        if held is not None:
            self._held[meter_slot] = HELD.pack(*held)
        else:
            self._held.pop(meter_slot, None)
            meters["flags"][meter_slot] &= ~np.uint32(READ_AGAIN)

    def waiting_of(self, meter_slot: int) -> Waiting | None:
        """Return the closing register of the epoch before that waits with a meter."""
        packed = self._waiting.get(meter_slot)
        if packed is None:
            return None
        meters = np.frombuffer(packed[: METER.itemsize], METER).copy()
        return Waiting(meters, Held(*HELD.unpack(packed[METER.itemsize :])))

    def put_waiting(self, meters: Array, meter_slot: int, waiting: Waiting | None) -> None:
        """Let a closing register wait with a meter; None: none."""
        packed = b"" if waiting is None else waiting.meters.tobytes() + HELD.pack(*waiting.held)
        _put(self._waiting, TAIL_WAITING, meters, meter_slot, packed)

    @property
    def have_habits(self) -> bool:
        """Whether any meter has some, or a stand."""
        return bool(self._habits or self._stands)

    def habits_of(self, meter_slot: int) -> Habits | None:
        """Return what a meter usually takes."""
        packed = self._habits.get(meter_slot)
        if packed is None:
            return None
        time_ms, register_milli, *hours = HABITS.unpack(packed)
        return Habits(time_ms, register_milli, tuple(hours[:HOURS]), tuple(hours[HOURS:]))

    def put_habits(self, meters: Array, meter_slot: int, habits: Habits | None) -> None:
        """Let a meter have habits; None: none."""
        packed = b""
        if habits is not None:
            mark = habits.time_ms, habits.register_milli
            packed = HABITS.pack(*mark, *habits.levels, *habits.told)
        _put(self._habits, TAIL_HABITS, meters, meter_slot, packed)

    def stand_of(self, meter_slot: int) -> Stand | None:
        """Return since when a meter's register stands; None: nobody asked."""
        packed = self._stands.get(meter_slot)
        return None if packed is None else Stand(*STAND.unpack(packed))

    def put_stand(self, meters: Array, meter_slot: int, stand: Stand | None) -> None:
        """Let a meter have a stand; None: none."""
        packed = b"" if stand is None else STAND.pack(*stand)
        _put(self._stands, TAIL_STAND, meters, meter_slot, packed)


def _put(kind: dict[int, bytes], bit: int, meters: Array, meter_slot: int, packed: bytes) -> None:
    if packed:
        meters["tails"][meter_slot] |= bit
        kind[meter_slot] = packed
    else:
        meters["tails"][meter_slot] &= ~np.uint8(bit)
        kind.pop(meter_slot, None)
