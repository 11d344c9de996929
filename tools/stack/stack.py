"""The one-machine stack: Kafka, PostgreSQL, an MQTT broker, and what runs on top of them."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.stack import jars
from tools.stack.errors import DirectoryInUseError
from tools.stack.kafka import kafka_spec
from tools.stack.mqtt import Broker, choose_broker, mqtt_spec
from tools.stack.ports import Ports, check_free
from tools.stack.postgres import Postgres, start_postgres
from tools.stack.process import (
    READERS_NICENESS,
    PartStatus,
    ProcessSpec,
    Restart,
    Supervisor,
    Watch,
    kill_leftovers,
)
from tools.stack.services import Addresses, Kind, ServiceSpec

INFRASTRUCTURE = ("kafka", "postgres", "mqtt")
INFRASTRUCTURE_PORTS = ("kafka", "kafka_controller", "postgres", "mqtt")
END_SIGNALS = (signal.SIGTERM, signal.SIGHUP)

Services = Callable[[Addresses], Sequence[ServiceSpec]]


def no_services(_: Addresses) -> Sequence[ServiceSpec]:
    return ()


class LocalStack:
    """Everything on one machine: `async with LocalStack(directory, ports) as stack: ...`.

    All files lie below `directory`, logs in `directory/logs`. Entering returns when every part
    is ready; it raises a StackError, with nothing left running, when one is not. Leaving stops
    the parts in order: services, then infrastructure, also on an exception, Ctrl-C and SIGTERM
    (which cancel the task that entered). Killed by SIGKILL it takes all parts with it. `fresh`
    removes what an earlier stack left in the directory.
    """

    def __init__(
        self,
        directory: Path,
        ports: Ports,
        *,
        services: Services = no_services,
        restart: Restart | None = None,
        broker: Broker | None = None,
        fresh: bool = False,
        watch: Watch = lambda _: None,
        fetch_progress: jars.Progress = lambda _: None,
        postgres_niceness: int = READERS_NICENESS,
    ) -> None:
        self.directory = directory.absolute()
        self.ports = ports
        self._services = services
        self._postgres_niceness = postgres_niceness
        self._restart = restart
        self._broker = broker
        self._fresh = fresh
        self._fetch_progress = fetch_progress
        self._lock = DirectoryLock(self.directory)
        self._supervisor = Supervisor(self.directory, watch)
        self._signals: list[signal.Signals] = []

    async def __aenter__(self) -> Self:
        self._lock.acquire()
        try:
            self._handle_signals()
            await self._start()
        except BaseException:
            await uninterrupted(self._close())
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await uninterrupted(self._close())

    @property
    def addresses(self) -> Addresses:
        dsn = Postgres(self.directory, self.ports.postgres).dsn
        return Addresses(self.directory, self.ports, dsn)

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def statuses(self) -> list[PartStatus]:
        return self._supervisor.statuses

    async def start_service(self, spec: ServiceSpec) -> None:
        """Start one more service (or run a one-shot to its end)."""
        process = spec.process(self._restart)
        if spec.kind is Kind.ONE_SHOT:
            await self._supervisor.run(process)
        else:
            await self._supervisor.start(process)

    async def start_process(self, spec: ProcessSpec) -> None:
        """Start any process under the stack's supervisor."""
        await self._supervisor.start(spec)

    async def start(self, name: str) -> None:
        """Start a part again that was stopped or killed."""
        await self._supervisor[name].start()

    async def stop(self, name: str) -> None:
        await self._supervisor.stop(name)

    async def restart(self, name: str) -> None:
        """Stop a part gracefully and start it again."""
        await self._supervisor.restart(name)

    async def kill9(self, name: str) -> None:
        """Kill a part by SIGKILL, as a crash would."""
        await self._supervisor.kill9(name)

    async def wait_ready(self, name: str, timeout_s: float) -> None:
        """Return when a part is ready again, after its restart."""
        await self._supervisor[name].wait_ready(timeout_s)

    def status(self, name: str) -> PartStatus:
        return self._supervisor[name].status

    async def _start(self) -> None:
        await kill_leftovers(self.directory)
        if self._fresh:
            self._lock.clear_directory()
        wanted = self._wanted_ports()
        check_free(self.ports, wanted)
        paths = await asyncio.to_thread(jars.fetch, self._fetch_progress)
        broker = self._broker or choose_broker()
        kafka = kafka_spec(self.directory, self.ports, paths, self._restart)
        mqtt = mqtt_spec(self.directory, self.ports, broker, self._restart)
        supervisor = self._supervisor
        await together(
            supervisor.start(kafka),
            start_postgres(
                supervisor, self.directory, self.ports, self._restart, self._postgres_niceness
            ),
            supervisor.start(mqtt),
        )
        specs = self._services(self.addresses)
        for spec in specs:
            if spec.kind is Kind.ONE_SHOT:
                await self.start_service(spec)
        await together(*(self.start_service(spec) for spec in specs if spec.kind is Kind.SERVICE))

    def _wanted_ports(self) -> list[str]:
        names = [name for name, _ in self.ports.items()]
        return list(INFRASTRUCTURE_PORTS) if self._services is no_services else names

    async def _close(self) -> None:
        services = tuple(
            status.name for status in self._supervisor.statuses if status.name not in INFRASTRUCTURE
        )
        await self._supervisor.stop_all(services)
        for number in self._signals:
            asyncio.get_running_loop().remove_signal_handler(number)
        self._signals.clear()
        self._lock.release()

    def _handle_signals(self) -> None:
        """Turn the first SIGTERM or SIGHUP into a cancellation; asyncio.run does so for SIGINT."""
        if threading.current_thread() is not threading.main_thread():
            return
        task = asyncio.current_task()
        assert task is not None
        told = False

        def tell() -> None:
            nonlocal told
            if not told:
                told = True
                task.cancel()

        for number in END_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, tell)
            self._signals.append(number)


async def together(*works: Coroutine[Any, Any, object]) -> None:
    """Run side by side; on the first failure cancel the others, wait for them, and raise it."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await uninterrupted(settle(tasks))
        raise


async def settle(tasks: Sequence[asyncio.Task[object]]) -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


async def uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Finish `work` even if this task is cancelled meanwhile; then be cancelled."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except Exception:  # noqa: BLE001  # raised below, from the task
            break
    task.result()
    if cancelled is not None:
        raise cancelled


class DirectoryLock:
    """Held by the one stack of a directory; freed by the kernel when its process ends."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "lock"
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise DirectoryInUseError with who holds it."""
        self._directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise DirectoryInUseError(
                f"another stack (pid {holder or 'unknown'}) runs in {self._directory}; stop it "
                "(make down, or end that process) or choose another directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        self._descriptor = descriptor

    def clear_directory(self) -> None:
        """Remove everything an earlier stack left in the directory, but the lock."""
        for path in self._directory.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path != self._path:
                path.unlink()

    def release(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            os.close(descriptor)
