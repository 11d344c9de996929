"""Where a bench runs: infrastructure of its own on free ports, thrown away before and after."""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from tools.bench import machine
from tools.bench.machine import Cores
from tools.stack.ports import LOOPBACK, Ports, free_ports
from tools.stack.process import READERS_NICENESS, ProcessSpec, always_ready
from tools.stack.services import ROOT, Addresses, environment, http_ready, topics_spec
from tools.stack.stack import LocalStack, Services, no_services

BUILD = ROOT / "build" / "bench"
START_WITHIN_S = 60.0
STOP_WITHIN_S = 15.0
POLL_S = 0.05
HTTP_WITHIN_S = 10.0


class Stand:
    """A running stack, and processes to be measured on it, on a core of their own."""

    def __init__(self, local: LocalStack, cores: Cores) -> None:
        self._local = local
        self._cores = cores

    @property
    def at(self) -> Addresses:
        """Where its parts are."""
        return self._local.addresses

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self._local.directory

    async def start(
        self,
        name: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        ready: Callable[[], Awaitable[bool]] = always_ready,
    ) -> None:
        """Start `python ARGUMENTS` on the measured core; return when it is ready."""
        await self._local.start_process(
            ProcessSpec(
                name,
                self._cores.measured((sys.executable, *arguments)),
                ready,
                env or {},
                cwd=ROOT,
                start_within_s=START_WITHIN_S,
                stop_within_s=STOP_WITHIN_S,
            )
        )

    async def said(self, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Run `python ARGUMENTS` on the measured core to its end; return what it printed."""
        process = await asyncio.create_subprocess_exec(
            *self._cores.measured((sys.executable, *arguments)),
            env={**os.environ, **(env or {})},
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        try:
            said, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        assert process.returncode == 0, f"{' '.join(arguments[:3])} failed"
        return said.decode()

    async def start_service(
        self, service: str, settings: Mapping[str, str], *, instance: int = 0
    ) -> int:
        """Start a service on the measured core; return its HTTP port when it is ready."""
        (http_port,) = free_ports(1)
        name = f"{service}-{instance}"
        given = {
            "KAFKA_BOOTSTRAP": self.at.kafka_bootstrap,
            "INSTANCE": name,
            "HTTP_PORT": str(http_port),
        }
        await self.start(
            service if instance == 0 else name,
            "-m",
            f"services.{service}",
            env=environment(service, {**given, **settings}),
            ready=http_ready(http_port),
        )
        return http_port

    def memory_bytes(self, name: str) -> int:
        """Return what a process holds in memory now."""
        return machine.memory_bytes(self._pid(name))

    def processor_s(self, name: str) -> float:
        """Return the processor time that a process took so far, all its threads'."""
        return machine.processor_s(self._pid(name))

    def _pid(self, name: str) -> int:
        pid = self._local.status(name).pid
        assert pid is not None, f"{name} runs"
        return pid

    async def stop(self, name: str) -> None:
        """Stop a process by SIGTERM."""
        await self._local.stop(name)


@asynccontextmanager
async def running(
    directory: Path,
    cores: Cores,
    services: Services = no_services,
    *,
    postgres_niceness: int = READERS_NICENESS,
) -> AsyncIterator[Stand]:
    """Start Kafka, PostgreSQL and an MQTT broker with empty topics; remove everything at the end.

    With `services` the whole product runs on them and nothing is bound to a core; else this
    process and the infrastructure keep off the core of what is measured. Logs stay where it fails.
    """
    async with AsyncExitStack() as stack:
        if services is no_services:
            stack.enter_context(cores.kept_off())
        # Gigabytes, perhaps in memory, and nobody looks at them: they go also where it fails.
        stack.callback(shutil.rmtree, directory / "kafka" / "data", ignore_errors=True)
        local = LocalStack(
            directory,
            Ports.free(),
            services=services,
            fresh=True,
            postgres_niceness=postgres_niceness,
        )
        await stack.enter_async_context(local)
        if services is no_services:
            await local.start_service(topics_spec(local.addresses.kafka_bootstrap))
        yield Stand(local, cores)
    shutil.rmtree(directory, ignore_errors=True)


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
    """Ask again and again. Raises TimeoutError with what was awaited."""
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        await asyncio.sleep(POLL_S)


async def fetched(http_port: int, path: str) -> str:
    """Return what a service of this machine says at an address of its HTTP port."""
    timeout = aiohttp.ClientTimeout(total=HTTP_WITHIN_S)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.get(f"http://{LOOPBACK}:{http_port}{path}") as answer,
    ):
        answer.raise_for_status()
        return await answer.text()
