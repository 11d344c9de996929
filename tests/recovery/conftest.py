"""The `fault` fixture: what a recovery test tried is held against docs/reliability.md."""

from collections.abc import Iterator

import pytest

from tests.recovery import faults
from tests.recovery.faults import Fault

PROPERTY = "fault"


@pytest.fixture
def fault(request: pytest.FixtureRequest) -> Iterator[Fault]:
    """Return the count of what this test tries; see `tests.recovery.faults`."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "this test bears no fault mark"
    (name,) = mark.args
    row = faults.page().get(name)
    assert row is not None, f"docs/reliability.md has no row for {name}"
    counted = Fault(row)
    yield counted
    counted.check()
    request.node.user_properties.append((PROPERTY, counted.said()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was tried and what was lost, whichever process tried it."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    properties = [pair for report in reports for pair in getattr(report, "user_properties", ())]
    done = {said["fault"]: said for key, said in properties if key == PROPERTY}
    if not done:
        return
    faults.keep(done)
    terminalreporter.section("faults")
    wide = max(map(len, done))
    terminalreporter.line(f"{'':{wide}}  tried   judged  lost")
    for name, said in sorted(done.items()):
        counts = f"{said['tried']:5d} {said['judged']:8,d} {said['lost']:5d}"
        terminalreporter.line(f"{name:{wide}}  {counts}")
