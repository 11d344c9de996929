"""The system's clock: the only place that asks it, beside the services' main modules."""

import time


class SystemClock:
    """services.common.kernel.clock.Clock on the machine's clocks."""

    def now_ms(self) -> int:
        """Return ms UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return ms that never go back."""
        return time.monotonic_ns() // 1_000_000
