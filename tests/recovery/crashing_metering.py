"""`python -m tests.recovery.crashing_metering`: metering that dies, or stops, at a step boundary.

WATTVEND_TEST_AT names the boundary, WATTVEND_TEST_HIT which passing of it (from 1),
WATTVEND_TEST_SIGNAL the signal it sends itself.
"""

import os
import signal

from services.metering.adapters import points
from services.metering.main import main

AT = "WATTVEND_TEST_AT"
HIT = "WATTVEND_TEST_HIT"
SIGNAL = "WATTVEND_TEST_SIGNAL"


def armed(where: str, hit: int, number: signal.Signals) -> None:
    """Let the `hit`-th passing of the boundary end or stop this process."""
    passed = 0

    def point(name: str) -> None:
        nonlocal passed
        if name == where:
            passed += 1
            if passed == hit:
                os.kill(os.getpid(), number)

    points.point = point


if __name__ == "__main__":
    if AT in os.environ:
        armed(os.environ[AT], int(os.environ[HIT]), signal.Signals[os.environ[SIGNAL]])
    raise SystemExit(main())
