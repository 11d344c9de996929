"""Fixtures that tests of several rooms share: the real infrastructure, and services on it."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import pytest

from tools.stack.background import BackgroundStack, RunningService
from tools.stack.ports import Ports, free_ports

BUILD = Path(__file__).parents[1] / "build"


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
    that stops or kills a part starts it again. The logs are kept if a test of the session fails.
    """
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
