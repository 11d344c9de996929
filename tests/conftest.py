"""Fixtures that tests of several rooms share: the real infrastructure, and services on it."""

import contextlib
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from tools.stack.background import BackgroundStack, RunningService
from tools.stack.ports import Ports, free_ports

BUILD = Path(__file__).parents[1] / "build"


RUN = "PYTEST_XDIST_TESTRUNUID"
PLAYED_DEMO = ("tests/e2e/test_demo.py", "tests/e2e/test_dashboard.py")
"""They judge one run of the demo."""


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Hold one's turn among the processes of a run in parallel; alone: nobody else has one.

    Whoever would be alone waits in the gate and lets nobody pass until the others are done.
    """
    run = os.environ.get(RUN)
    if run is None:
        yield
        return
    BUILD.mkdir(exist_ok=True)
    with (BUILD / f"gate-{run}").open("w") as gate, (BUILD / f"turn-{run}").open("w") as held:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(held, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test that measures time without another one beside it."""
    with turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


class ByFile(LoadFileScheduling):
    """Keep the tests of a file in one process, and those of files that share a session's work."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "the demo" if file in PLAYED_DEMO else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFile:
    """Let xdist hand out tests as above."""
    return ByFile(config, log)


def pytest_sessionfinish() -> None:
    """Leave no lock behind."""
    if run := os.environ.get(RUN):
        for name in ("gate", "turn"):
            (BUILD / f"{name}-{run}").unlink(missing_ok=True)


class RunService(Protocol):
    """Start `python -m services.<service>` and return when it is ready; stopped after the test.

    `settings` are named without their prefix (KAFKA_BOOTSTRAP, not
    WATTVEND_METERING_KAFKA_BOOTSTRAP). HTTP_PORT is chosen where it is not given. `name` is for
    a second instance of a service; its log is `<stack>/logs/<name>.log`.
    """

    def __call__(
        self,
        service: str,
        settings: Mapping[str, str],
        *,
        name: str | None = None,
        start_within_s: float = 20.0,
    ) -> RunningService: ...


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Let what tests start hear SIGINT: a shell starts its background jobs deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[BackgroundStack]:
    """Kafka, PostgreSQL and an MQTT broker on free ports, started once a session when first used.

    It has an event loop of its own in a thread, so that tests with any loop can use it. A test
    that stops or kills a part starts it again. If a test of the session fails the logs are kept,
    until the next session with a stack.
    """
    for left in BUILD.glob("test-stack-*"):
        if not Path("/proc", left.name.rpartition("-")[2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    running = BackgroundStack(BUILD / f"test-stack-{os.getpid()}", Ports.free())
    running.open()
    failed_before = request.session.testsfailed
    try:
        yield running
    finally:
        running.close()
        if request.session.testsfailed == failed_before:
            shutil.rmtree(running.directory, ignore_errors=True)
        else:
            for part in running.directory.iterdir():
                if part.is_dir() and part != running.logs:
                    shutil.rmtree(part, ignore_errors=True)
            print(f"\nthe logs of the local stack are in {running.logs}", file=sys.stderr)


@pytest.fixture
def run_service(stack: BackgroundStack) -> Iterator[RunService]:
    """Return a function that starts a service on the stack; see RunService."""
    started: list[RunningService] = []

    def run(
        service: str,
        settings: Mapping[str, str],
        *,
        name: str | None = None,
        start_within_s: float = 20.0,
    ) -> RunningService:
        prefix = f"WATTVEND_{service.upper()}_"
        chosen = {"HTTP_PORT": "", "INSTANCE": name or f"{service}-0", **settings}
        http_port = chosen["HTTP_PORT"] = chosen["HTTP_PORT"] or str(free_ports(1)[0])
        running = RunningService(
            stack,
            name=name or service,
            argv=(sys.executable, "-m", f"services.{service}"),
            env={prefix + key: value for key, value in chosen.items()},
            http_port=int(http_port),
            start_within_s=start_within_s,
        )
        started.append(running)
        return running

    yield run
    for running in reversed(started):
        running.stop()
