"""Relay positions, and when one is worth a relay-state."""

from services.common.kernel.profiles import Profile
from services.common.kernel.values import value_class


def position(profile: Profile, closed_mask: int) -> str:
    """Return open, closed, or mixed: of the phases that the profile says are wired."""
    wired = closed_mask & profile.phase_mask
    if wired == 0:
        return "open"
    return "closed" if wired == profile.phase_mask else "mixed"


@value_class
class _Told:
    epoch: int
    closed_mask: int
    at_ms: int


class RelayReports:
    """Which of the many positions read is told: changes, answers, and one each interval.

    Also the first one after a command: whoever sent it waits for a read that began after it.
    """

    def __init__(self, interval_ms: int) -> None:
        self._interval_ms = interval_ms
        self._told: dict[str, _Told] = {}

    def commanded(self, meter_id: str) -> None:
        """Have the next position told, whatever it is."""
        self._told.pop(meter_id, None)

    def is_due(self, meter_id: str, epoch: int, closed_mask: int, now_ms: int) -> bool:
        """Say whether this position is to be told, and remember that it was."""
        told = self._told.get(meter_id)
        if (
            told is not None
            and (told.epoch, told.closed_mask) == (epoch, closed_mask)
            and 0 <= now_ms - told.at_ms < self._interval_ms
        ):
            return False
        self._told[meter_id] = _Told(epoch, closed_mask, now_ms)
        return True
