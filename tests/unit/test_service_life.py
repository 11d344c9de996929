"""The life of a service: however it fails, it says why, closes what it opened, and leaves.

Method: `service.run` in this process with a body that misbehaves; Kafka is taken as there, and a
stop that takes too long raises instead of ending the process.
"""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import pytest

from services.common.kernel.errors import Retriable
from services.common.runtime import service, topics
from services.common.runtime.grpc import yielding_threads
from services.common.runtime.settings import ServiceSettings, WrongSettings

Body = Callable[[service.Runtime, AsyncExitStack], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _no_kafka(monkeypatch: pytest.MonkeyPatch) -> None:
    async def there(_: str) -> None:
        return

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(topics, "check", there)
    monkeypatch.setattr(os, "_exit", leave)


def run(body: Body, *, http_port: int = 0, http_host: str = "127.0.0.1") -> int:
    settings = ServiceSettings(
        instance="worker-0", http_port=http_port, http_host=http_host, stop_timeout_s=1
    )
    return service.run("worker", settings, body)


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def stop_soon() -> None:
    asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)


def test_a_service_that_is_told_to_stop_closes_what_it_opened_and_exits_0() -> None:
    closed: list[str] = []

    async def body(_: service.Runtime, stack: AsyncExitStack) -> None:
        stack.callback(closed.append, "first")
        stack.callback(closed.append, "second")
        stop_soon()

    assert run(body) == 0
    assert closed == ["second", "first"]


def test_a_stop_while_starting_does_not_wait_for_the_start() -> None:
    closed: list[str] = []

    async def body(_: service.Runtime, stack: AsyncExitStack) -> None:
        stack.callback(closed.append, "opened")
        stop_soon()
        await asyncio.Event().wait()  # something that never answers

    assert run(body) == 0
    assert closed == ["opened"]


@pytest.mark.parametrize(
    ("failure", "shown"),
    [(Retriable("the store is away"), "the store is away"), (ValueError("odd"), "ValueError")],
)
def test_a_start_that_fails_is_told_in_the_log_and_exits_70(
    failure: Exception, shown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def body(_: service.Runtime, __: AsyncExitStack) -> None:
        raise failure

    assert run(body) == service.EXIT_FAILED
    (line,) = [line for line in told(capsys) if line["level"] == "critical"]
    assert shown in line["why"]
    assert line["service"] == "worker"


def test_a_task_that_fails_stops_the_service_and_is_told_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def body(runtime: service.Runtime, _: AsyncExitStack) -> None:
        async def work() -> None:
            raise ValueError("odd")

        runtime.spawn(work(), "work")

    assert run(body) == service.EXIT_FAILED
    lines = told(capsys)
    (line,) = [line for line in lines if line["level"] == "critical"]
    assert line["part"] == "work"
    assert "ValueError" in line["why"]
    assert "Traceback" in line["exception"]
    assert lines.index(line) < next(
        n for n, some in enumerate(lines) if some["event"] == "stopping"
    )


@pytest.mark.parametrize("how", ["returns", "is cancelled"])
def test_a_task_that_ends_by_itself_stops_the_service(
    how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def body(runtime: service.Runtime, _: AsyncExitStack) -> None:
        async def work() -> None:
            if how == "is cancelled":
                raise asyncio.CancelledError

        runtime.spawn(work(), "work")

    assert run(body) == service.EXIT_FAILED
    assert any("ended by itself" in line.get("why", "") for line in told(capsys))


def test_a_start_that_fails_and_cannot_be_closed_leaves_in_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def body(_: service.Runtime, stack: AsyncExitStack) -> None:
        stack.push_async_callback(asyncio.Event().wait)
        raise Retriable("the store is away")

    with pytest.raises(SystemExit, match="70"):
        run(body)
    assert any("the store is away" in line.get("why", "") for line in told(capsys))


def test_a_port_in_use_is_told_with_what_to_do_and_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def body(_: service.Runtime, __: AsyncExitStack) -> None:
        pytest.fail("it must not start")

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert run(body, http_port=taken.getsockname()[1]) == service.EXIT_WRONG_SETTINGS
    (line,) = [line for line in told(capsys) if line["level"] == "critical"]
    assert "choose another port" in line["why"]


def test_a_setting_that_turns_out_wrong_while_starting_exits_2(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async def body(_: service.Runtime, __: AsyncExitStack) -> None:
        raise WrongSettings("cannot listen: correct GRPC_PORT")

    assert run(body) == service.EXIT_WRONG_SETTINGS
    (line,) = [line for line in told(capsys) if line["level"] == "critical"]
    assert line["why"] == "cannot listen: correct GRPC_PORT"


# --- the threads of gRPC --------------------------------------------------------------------------


def schedulers() -> tuple[int, int]:
    """Return the policy of a thread that begins inside, and of this one after it."""
    found: list[int] = []
    with yielding_threads():
        thread = threading.Thread(target=lambda: found.append(os.sched_getscheduler(0)))
        thread.start()
    thread.join()
    return found[0], os.sched_getscheduler(0)


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="this kernel has no such policy")
def test_threads_of_grpc_do_not_take_the_processor_from_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = os.sched_getscheduler(0)
    assert schedulers() == (os.SCHED_BATCH, before)

    def forbid(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", forbid)
    assert schedulers() == (before, before)
    monkeypatch.delattr(os, "SCHED_BATCH")
    assert schedulers() == (before, before)
