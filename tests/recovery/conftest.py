"""The `fault` fixture: what a recovery test tried is held against docs/reliability.md."""

from collections.abc import Iterator

import pytest

from tests.recovery import faults
from tests.recovery.faults import Fault

DONE = pytest.StashKey[dict[str, Fault]]()


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
    request.config.stash.setdefault(DONE, {})[name] = counted


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print what was tried and what was lost."""
    done = config.stash.get(DONE, {})
    if not done:
        return
    faults.keep(done)
    terminalreporter.section("faults")
    wide = max(map(len, done))
    terminalreporter.line(f"{'':{wide}}  tried   judged  lost")
    for name, each in sorted(done.items()):
        counts = f"{each.tried:5d} {each.judged:8,d} {each.lost:5d}"
        terminalreporter.line(f"{name:{wide}}  {counts}")
