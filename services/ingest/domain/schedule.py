"""When each meter of a line is read next. Dead meters wait behind the living."""

from collections.abc import Iterable
from dataclasses import dataclass

BACKOFF_FIRST_MS = 250
PROBE_PAUSE = 3


@dataclass(slots=True)
class _Turn:
    due_ms: int
    failures: int = 0


class PollSchedule:
    """The turns of a line's meters. Times are monotonic ms, passed in.

    A meter that answers is due each interval. One that does not is probed again after a backoff,
    when no living meter is due, or when it has waited the longest backoff once more (a line too
    busy to be idle still notices who returns). After a probe in vain the line is kept from the dead
    for PROBE_PAUSE times as long as it took: they get at most a quarter of its time, however many.
    """

    def __init__(self, interval_ms: int, backoff_max_ms: int) -> None:
        self._interval_ms = interval_ms
        self._backoff_max_ms = backoff_max_ms
        self._turns: dict[str, _Turn] = {}
        self._probe_after_ms = 0

    def set_meters(self, meter_ids: Iterable[str], now_ms: int) -> None:
        """Have exactly these meters; new ones are due at once."""
        self._turns = {name: self._turns.get(name) or _Turn(now_ms) for name in meter_ids}

    def reset(self, now_ms: int) -> None:
        """Make every meter due at once, as after a reconnect."""
        for turn in self._turns.values():
            turn.due_ms = now_ms

    def next(self) -> tuple[str, int] | None:
        """Return whose turn is next and when, None where there are no meters."""
        living = self._first(is_living=True)
        dead = self._first(is_living=False)
        if dead is not None:
            dead = (dead[0], max(dead[1], self._probe_after_ms))
        both = [turn for turn in (living, dead) if turn is not None]
        return min(both, key=lambda turn: turn[1], default=None)

    def turn(self, now_ms: int) -> str | None:
        """Return the meter to read now, None where nothing is due."""
        dead = self._first(is_living=False)
        if dead is not None and dead[1] + self._backoff_max_ms <= now_ms >= self._probe_after_ms:
            return dead[0]
        living = self._first(is_living=True)
        if living is not None and living[1] <= now_ms:
            return living[0]
        following = self.next()
        return following[0] if following is not None and following[1] <= now_ms else None

    def _first(self, *, is_living: bool) -> tuple[str, int] | None:
        """Return who has waited longest, and since when it is due."""
        due = ((t.due_ms, name) for name, t in self._turns.items() if is_living != bool(t.failures))
        first = min(due, default=None)
        return None if first is None else (first[1], first[0])

    def succeeded(self, meter_id: str, now_ms: int) -> None:
        """Take in an answer: next turn an interval after this one was due, never in a burst."""
        if (turn := self._turns.get(meter_id)) is not None:
            start_ms = turn.due_ms if not turn.failures else now_ms
            turn.due_ms = max(start_ms + self._interval_ms, now_ms)
            turn.failures = 0

    def failed(self, meter_id: str, began_ms: int, now_ms: int) -> int:
        """Take in a silence; return how many followed one another."""
        turn = self._turns.get(meter_id)
        if turn is None:
            return 0
        turn.failures += 1
        backoff_ms = min(BACKOFF_FIRST_MS << min(turn.failures - 1, 16), self._backoff_max_ms)
        turn.due_ms = now_ms + backoff_ms
        if turn.failures > 1:  # one silence is not yet a dead meter
            self._probe_after_ms = now_ms + PROBE_PAUSE * (now_ms - began_ms)
        return turn.failures
