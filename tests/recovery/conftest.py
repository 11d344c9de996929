"""What a recovery test tried is held against docs/reliability.md; reporting and who tells it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from services.common.runtime import kafka
from services.reporting.domain.projections import TOPICS
from tests.recovery import bus, faults
from tests.recovery.faults import Fault
from tests.recovery.reporting_judge import Office, Teller
from tests.recovery.workers import Worker
from tools.stack.background import BackgroundStack

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


@pytest.fixture
async def office(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[Office]:
    """Return reporting's database, empty, on empty topics."""
    await bus.fresh(stack.kafka_bootstrap, TOPICS)
    office = Office(stack, tmp_path)
    yield office
    await office.drop()


@pytest.fixture
async def teller(office: Office) -> AsyncIterator[Teller]:
    """Return who tells stories on the bus."""
    async with kafka.producer(office.stack.kafka_bootstrap, client_id="stories") as producer:
        yield Teller(producer, office)


@pytest.fixture
def worker(office: Office) -> Iterator[Worker]:
    """Return a reporting service that is not started."""
    worker = office.worker()
    yield worker
    worker.end()


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
