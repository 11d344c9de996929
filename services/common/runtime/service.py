"""The life of a service process: start, ready, stop on SIGTERM or SIGINT within bounded time."""

import asyncio
import errno
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import WattvendError
from services.common.runtime import http, logs, topics
from services.common.runtime.clock import SystemClock
from services.common.runtime.settings import ServiceSettings

EXIT_WRONG_SETTINGS = 2
EXIT_FAILED = 70
START_TIMEOUT_S = 60


@dataclass
class Runtime:
    """What a service's `run` is handed: settings' surroundings, and the stop signal."""

    log: structlog.stdlib.BoundLogger
    clock: SystemClock
    health: http.Health
    metrics: CollectorRegistry
    stopping: asyncio.Event
    stack: AsyncExitStack
    failures: list[BaseException] = field(default_factory=list)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run `work` beside the rest; if it fails, the service stops with that failure.

        When the service stops, the task is cancelled before what was opened earlier is closed.
        """
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._done)
        self.stack.push_async_callback(_cancelled, task)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (failure := task.exception()) is not None:
            self.failures.append(failure)
            self.stopping.set()


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


Body = Callable[[Runtime, AsyncExitStack], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _runtime(
    name: str, settings: ServiceSettings, stack: AsyncExitStack
) -> AsyncIterator[Runtime]:
    registry = CollectorRegistry()
    health = http.Health("start")
    log = logs.configure(name, settings.instance, settings.log_level)
    runtime = Runtime(log, SystemClock(), health, registry, asyncio.Event(), stack)
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, runtime.stopping.set)
    stop_http = await http.serve(settings, health, registry)
    try:
        yield runtime
    finally:
        result = stop_http()
        if asyncio.iscoroutine(result):
            await result


async def _kafka_is_there(bootstrap: str, stopping: asyncio.Event) -> None:
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while not stopping.is_set():
        try:
            await topics.check(bootstrap)
        except (KafkaConnectionError, WattvendError) as away:
            if asyncio.get_running_loop().time() > deadline:
                raise WattvendError(
                    f"Kafka at {bootstrap} is not usable after {START_TIMEOUT_S} s: {away}. "
                    "Check KAFKA_BOOTSTRAP and that the broker runs"
                ) from away
            await asyncio.sleep(0.2)
        else:
            return


async def _live(name: str, settings: ServiceSettings, body: Body) -> None:
    stack = AsyncExitStack()
    async with _runtime(name, settings, stack) as runtime:
        async with stack:
            await _kafka_is_there(settings.kafka_bootstrap, runtime.stopping)
            if not runtime.stopping.is_set():
                await body(runtime, stack)
                runtime.health.ready("start")
                runtime.log.info("ready")
                await runtime.stopping.wait()
            runtime.health.not_ready("stop", "stopping")
            runtime.log.info("stopping")
            overdue = asyncio.get_running_loop().call_later(
                settings.stop_timeout_s, _overdue, runtime, settings.stop_timeout_s
            )
        overdue.cancel()
        if runtime.failures:
            raise runtime.failures[0]
        runtime.log.info("stopped")


def _overdue(runtime: Runtime, timeout_s: int) -> None:
    runtime.log.error("stop took too long; leaving", timeout_s=timeout_s)
    os._exit(EXIT_FAILED)


def run(name: str, settings: ServiceSettings, body: Body) -> int:
    """Run a service until it is told to stop; return its exit code.

    `body` wires the service: it enters what it opens into the exit stack (closed in reverse order
    when the service stops), spawns its tasks and returns when the service is ready.
    """
    try:
        asyncio.run(_live(name, settings, body))
    except OSError as failed:
        if failed.errno != errno.EADDRINUSE:
            raise
        print(  # noqa: T201
            f"{name}: {failed.strerror}. Another process listens there: "
            f"choose another port in its _PORT setting, or stop the other process",
            file=sys.stderr,
        )
        return EXIT_WRONG_SETTINGS
    except WattvendError as failed:
        print(f"{name}: {failed}", file=sys.stderr)  # noqa: T201
        return EXIT_FAILED
    return 0
