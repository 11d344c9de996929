"""Meters of one shard, and the frames that they send: readings as in life, a quarter apart."""

import time
from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from services.common.kernel.frames import READING, RELAY_REPORTED, ReadingFrame
from tools.bench import site

QUARTER_MS = 15 * 60_000
DAY_MS = 24 * 60 * 60_000
BEGAN_AGO = timedelta(days=30)
_SCATTER = 2_654_435_761
"""Neighbouring numbers times this lie far apart (Knuth's multiplicative hash)."""
_QUARTER_MILLI_MIN, _QUARTER_MILLI_RANGE = 50, 400
"""What a meter counts in a quarter, Wh: a load of 0.2 to 1.8 kW, far below what it may take."""


class Meters:
    """The meters of `accounts`, and the frames they send in turn.

    Device time of each meter goes on by a quarter of an hour a reading. It begins at `begins_ms`
    (30 days ago), later by an offset of the meter's own below `spread_ms`: so intervals straddle
    the edges of rates as they do in life. `each`: meters an account. `apart`: a frame has readings
    of as many accounts as it can, not all meters of one account beside each other.
    """

    def __init__(
        self,
        shard: int,
        accounts: npt.NDArray[np.int64],
        *,
        tariff: str = site.FLAT,
        each: int = 1,
        apart: bool = False,
        begins_ms: int | None = None,
        spread_ms: int = QUARTER_MS,
    ) -> None:
        self.shard = shard
        self._accounts = accounts
        self._tariff = tariff
        self._each = each
        self._next = 0
        self._sent = 0
        of_accounts = accounts[:, np.newaxis] * each + np.arange(each)
        numbers = (of_accounts.T if apart else of_accounts).ravel()
        scattered = numbers * _SCATTER % 2**32
        self._steps_milli = _QUARTER_MILLI_MIN + scattered % _QUARTER_MILLI_RANGE
        rows = np.zeros(len(numbers), READING)
        rows["meter_key"] = [site.meter_key(number) for number in numbers.tolist()]
        rows["serial"] = [site.serial(number).encode() for number in numbers.tolist()]
        rows["epoch"] = rows["ratio"] = 1
        rows["rate_registers_milli"] = -1
        rows["quality"] = ord("A")
        rows["relay_bits"] = RELAY_REPORTED | 1
        if begins_ms is None:
            begins_ms = _now_ms() - BEGAN_AGO // timedelta(milliseconds=1)
        rows["device_time_ms"] = begins_ms // QUARTER_MS * QUARTER_MS + scattered % spread_ms
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def nbytes(self) -> int:
        """What they take, in bytes."""
        return self._rows.nbytes + self._steps_milli.nbytes + self._accounts.nbytes

    def facts(self) -> Iterator[site.Fact]:
        """Yield what metering must know of them."""
        for number in self._accounts.tolist():
            meters = range(number * self._each, (number + 1) * self._each)
            yield from site.of_account(number, self.shard, tariff=self._tariff, meters=meters)

    def frame(
        self, size: int, *, quarters: int = 1, received_at_ms: int | None = None
    ) -> ReadingFrame:
        """Return the next frame: `size` meters, each `quarters` later than its last reading."""
        chosen = (self._next + np.arange(size)) % len(self._rows)
        self._next = (self._next + size) % len(self._rows)
        self._sent += 1
        rows = self._rows[chosen]
        rows["register_milli"] += self._steps_milli[chosen] * quarters
        rows["device_time_ms"] += QUARTER_MS * quarters
        received_ms = _now_ms() if received_at_ms is None else received_at_ms
        rows["began_at_ms"] = rows["received_at_ms"] = received_ms
        ids = np.zeros((size, 2), "<u8")
        ids[:, 0], ids[:, 1] = rows["meter_key"], rows["register_milli"]
        rows["reading_id"] = ids.view("V16")[:, 0]
        self._rows[chosen] = rows
        return ReadingFrame(self.shard, "bench", "bench", self._sent, rows)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
