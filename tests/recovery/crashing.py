"""`python -m tests.recovery.crashing SERVICE [COMMAND]`: it dies, or stops, where it is told.

WATTVEND_TEST_AT names the step boundary, WATTVEND_TEST_HIT which passing of it (from 1),
WATTVEND_TEST_SIGNAL the signal it sends itself. WATTVEND_TEST_SWITCH names functions of
`tests/recovery/<service>_switches.py`, with commas: each changes the service before it starts,
mostly by switching a rule off, so that a test can be shown to fail without that rule.
"""

import importlib
import os
import signal
import sys

from services.common.runtime import points

AT = "WATTVEND_TEST_AT"
HIT = "WATTVEND_TEST_HIT"
SIGNAL = "WATTVEND_TEST_SIGNAL"
SWITCH = "WATTVEND_TEST_SWITCH"


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


def main(service: str) -> int:
    """Run the service, changed as the environment says; return its exit code."""
    if names := os.environ.get(SWITCH):
        switches = importlib.import_module(f"tests.recovery.{service}_switches")
        for name in names.split(","):
            getattr(switches, name)()
    if AT in os.environ:
        armed(os.environ[AT], int(os.environ[HIT]), signal.Signals[os.environ[SIGNAL]])
    code: int = importlib.import_module(f"services.{service}.main").main()
    return code


if __name__ == "__main__":
    del sys.argv[0]  # now it is the service's command line
    raise SystemExit(main(sys.argv[0]))
