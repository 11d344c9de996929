"""The system's clock: the only place that asks it, beside the services' main modules."""

import asyncio
import time


class SystemClock:
    """services.common.kernel.clock.Clock on the machine's clocks."""

    def now_ms(self) -> int:
        """Return ms UTC."""
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        """Return ms that never go back."""
        return time.monotonic_ns() // 1_000_000


def next_instant_s(apart_s: float) -> float:
    """Return the next of instants so far apart, in the running loop's time; now, where that is 0.

    Whoever asks for the same distance before it gets the same number, to the last bit: so timers
    set to it end in one turn of the loop, and what they send goes in one request.
    """
    now_s = asyncio.get_running_loop().time()
    return (now_s // apart_s + 1) * apart_s if apart_s else now_s
