"""Time is passed in. Implementations: services.common.runtime.clock, fakes in tests."""

from typing import Protocol


class Clock(Protocol):
    """A wall clock and a monotonic one."""

    def now_ms(self) -> int:
        """Return ms UTC."""
        ...

    def monotonic_ms(self) -> int:
        """Return ms that never go back; comparable within one process."""
        ...
