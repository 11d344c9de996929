"""The life of a service process: start, ready, stop on SIGTERM or SIGINT within bounded time."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from services.common.kernel.errors import Bug, WattvendError
from services.common.runtime import http, logs, topics
from services.common.runtime.clock import SystemClock
from services.common.runtime.settings import ServiceSettings, WrongSettings

EXIT_WRONG_SETTINGS = 2
EXIT_FAILED = 70
START_TIMEOUT_S = 60
KAFKA_RETRY_S = 0.2


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
        """Run `work` beside the rest; if it ends before the service does, that is a failure.

        When the service stops, the task is cancelled before what was opened earlier is closed.
        """
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._done)
        self.stack.push_async_callback(_cancelled, task)
        return task

    def fail(self, part: str, failure: BaseException) -> None:
        """Say what failed, now, and stop: how the stop goes may hide it."""
        _tell(self.log, failure, part)
        self.failures.append(failure)
        self.stopping.set()

    def _done(self, task: asyncio.Task[Any]) -> None:
        failure = None if task.cancelled() else task.exception()
        if failure is None and not self.stopping.is_set():
            failure = Bug(f"the task {task.get_name()!r} ended by itself")
        if failure is not None:
            self.fail(task.get_name(), failure)


async def _cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


Body = Callable[[Runtime, AsyncExitStack], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _runtime(
    log: structlog.stdlib.BoundLogger, settings: ServiceSettings, stack: AsyncExitStack
) -> AsyncIterator[Runtime]:
    registry = CollectorRegistry()
    health = http.Health("start")
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


async def _kafka_is_there(settings: ServiceSettings) -> None:
    bootstrap = settings.kafka_bootstrap
    deadline = asyncio.get_running_loop().time() + START_TIMEOUT_S
    while True:
        try:
            await topics.check(bootstrap)
        except (KafkaError, WattvendError) as away:
            if asyncio.get_running_loop().time() > deadline:
                raise WattvendError(
                    f"Kafka at {bootstrap} is not usable after {START_TIMEOUT_S} s: {away}. "
                    f"Check {settings.env_name('kafka_bootstrap')} and that the broker runs"
                ) from away
            await asyncio.sleep(KAFKA_RETRY_S)
        else:
            return


async def _start(runtime: Runtime, settings: ServiceSettings, body: Body) -> None:
    """Start the service; where it is told to stop meanwhile, give the start up."""

    async def start() -> None:
        await _kafka_is_there(settings)
        await body(runtime, runtime.stack)

    starting = asyncio.create_task(start(), name="start")
    told_to_stop = asyncio.create_task(runtime.stopping.wait())
    await asyncio.wait((starting, told_to_stop), return_when=asyncio.FIRST_COMPLETED)
    told_to_stop.cancel()
    if not starting.done():
        await _cancelled(starting)
        return
    starting.result()
    if not runtime.stopping.is_set():
        runtime.health.ready("start")
        runtime.log.info("ready")


async def _live(
    log: structlog.stdlib.BoundLogger, settings: ServiceSettings, body: Body
) -> list[BaseException]:
    """Live until told to stop, or until something fails; return what failed."""
    stack = AsyncExitStack()
    async with _runtime(log, settings, stack) as runtime:
        loop = asyncio.get_running_loop()
        try:
            await _start(runtime, settings, body)
            await runtime.stopping.wait()
        except Exception as failed:  # noqa: BLE001 - whatever it is, it is told, and all is closed
            runtime.fail("start", failed)
        runtime.health.not_ready("stop", "stopping")
        log.info("stopping")
        timeout_s = settings.stop_timeout_s
        overdue = loop.call_later(timeout_s, _overdue, runtime, timeout_s)
        try:
            await stack.aclose()
        except Exception as failed:  # noqa: BLE001 - see above
            runtime.fail("stop", failed)
        overdue.cancel()
    return runtime.failures


def _overdue(runtime: Runtime, timeout_s: int) -> None:
    runtime.log.error("stop took too long; leaving", timeout_s=timeout_s)
    os._exit(EXIT_FAILED)


def _tell(log: structlog.stdlib.BoundLogger, failure: BaseException, part: str) -> None:
    if isinstance(failure, WattvendError) and not isinstance(failure, Bug):
        log.critical("failed", part=part, why=str(failure))
    else:
        log.critical("failed", part=part, why=repr(failure), exc_info=failure)


def run(name: str, settings: ServiceSettings, body: Body) -> int:
    """Run a service until it is told to stop; return its exit code.

    `body` wires the service: it enters what it opens into the exit stack (closed in reverse order
    when the service stops), spawns its tasks and returns when the service is ready. It is cancelled
    where the service is told to stop before. 0: told to stop; 2: a setting is wrong, a port is
    taken; 70: anything else, and the log's line `failed` says what.
    """
    log = logs.configure(name, settings.instance, settings.log_level)
    try:
        failures = asyncio.run(_live(log, settings, body))
    except WrongSettings as wrong:  # the port of health and metrics
        _tell(log, wrong, "http")
        failures = [wrong]
    if not failures:
        log.info("stopped")
        return 0
    return EXIT_WRONG_SETTINGS if isinstance(failures[0], WrongSettings) else EXIT_FAILED
