"""When the clock of a polled meter is set. Pure: values in, a verdict out."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

DRIFT_MS_MAX = 120_000
"""What metering flags as `clock-drift`."""
AGAIN_MS = 86_400_000
"""A meter's clock is tried at most this often: what does not help is not repeated at each poll."""
FROM_MIDNIGHT = timedelta(minutes=10)
"""Days and months begin at midnight: a clock that jumps there would tell two readings of one."""
TAKEN_MS_MAX = 10_000
"""A clock that was set and then tells this much else was not set."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SET = "set"
NOT_TAKEN = "not-taken"
NO_REGISTER = "no-register"
LEFT = "left"
"""The setting says that clocks are left as they are."""


@dataclass(slots=True)
class ClockCare:
    """What was tried at the clocks of a line's meters. Mutable; gone with the line's owner."""

    _tried_at_ms: dict[str, int] = field(default_factory=dict)
    _distrusted: set[str] = field(default_factory=set)
    """Profiles by which a clock was written and did not follow: their registers may be wrong."""

    def is_due(
        self, meter_id: str, profile: str, *, ahead_ms: int | None, now_ms: int, zone: ZoneInfo
    ) -> bool:
        """Say whether something is to be done about a clock that is so far ahead.

        `ahead_ms` below 0: behind; None: it tells no time at all.
        """
        if ahead_ms is not None and abs(ahead_ms) <= DRIFT_MS_MAX:
            return False
        tried_at_ms = self._tried_at_ms.get(meter_id)
        was_tried = tried_at_ms is not None and now_ms - tried_at_ms < AGAIN_MS
        return not (was_tried or profile in self._distrusted or _is_near_midnight(now_ms, zone))

    def tried(self, meter_id: str, profile: str, result: str, now_ms: int) -> None:
        """Take in what came of it."""
        self._tried_at_ms[meter_id] = now_ms
        if result == NOT_TAKEN:
            self._distrusted.add(profile)


def wall_clock(now_ms: int, zone: ZoneInfo) -> datetime:
    """Return what a clock on the wall of a site shows, naive, as its devices tell time."""
    return (EPOCH + timedelta(milliseconds=now_ms)).astimezone(zone).replace(tzinfo=None)


def _is_near_midnight(now_ms: int, zone: ZoneInfo) -> bool:
    shown = wall_clock(now_ms, zone)
    return (shown - FROM_MIDNIGHT).date() != (shown + FROM_MIDNIGHT).date()
