"""A stack on an event loop of its own, in a thread: for callers without one, as test fixtures.

Every method blocks and may be called from any thread, also from inside another event loop.
"""

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

from tools.stack.ports import LOOPBACK, Ports
from tools.stack.process import PartStatus, ProcessSpec, Restart
from tools.stack.services import ROOT, Addresses, http_ready
from tools.stack.stack import LocalStack, Services, no_services

T = TypeVar("T")
CALL_TIMEOUT_S = 150.0


class BackgroundStack:
    """LocalStack with blocking methods; `start` first, `close` at the end."""

    def __init__(
        self,
        directory: Path,
        ports: Ports,
        *,
        services: Services = no_services,
        restart: Restart | None = None,
    ) -> None:
        self.stack = LocalStack(directory, ports, services=services, restart=restart)
        self._loop = asyncio.new_event_loop()
        # Children die with the thread that started them, so it lives until `close`.
        self._thread = threading.Thread(target=self._loop.run_forever, name="stack", daemon=True)

    def open(self) -> None:
        """Start the infrastructure; raise a StackError, with nothing left running."""
        self._thread.start()
        try:
            self._call(self.stack.__aenter__())
        except BaseException:
            self._end_loop()
            raise

    def close(self) -> None:
        try:
            self._call(self.stack.__aexit__(None, None, None))
        finally:
            self._end_loop()

    @property
    def addresses(self) -> Addresses:
        return self.stack.addresses

    @property
    def kafka_bootstrap(self) -> str:
        return self.addresses.kafka_bootstrap

    @property
    def postgres_dsn(self) -> str:
        return self.addresses.postgres_dsn

    @property
    def mqtt_host(self) -> str:
        return LOOPBACK

    @property
    def mqtt_port(self) -> int:
        return self.stack.ports.mqtt

    @property
    def directory(self) -> Path:
        return self.stack.directory

    @property
    def logs(self) -> Path:
        return self.stack.logs

    def start(self, name: str) -> None:
        """Start a part again that was stopped or killed; return when it is ready."""
        self._call(self.stack.start(name))

    def stop(self, name: str) -> None:
        self._call(self.stack.stop(name))

    def restart(self, name: str) -> None:
        self._call(self.stack.restart(name))

    def kill9(self, name: str) -> None:
        """Kill a part by SIGKILL; it stays dead until `start`."""
        self._call(self.stack.kill9(name))

    def status(self, name: str) -> PartStatus:
        return self.stack.status(name)

    def start_process(self, spec: ProcessSpec) -> None:
        self._call(self.stack.start_process(spec))

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(CALL_TIMEOUT_S)

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class RunningService:
    """One service under a test: `argv` with `env`, ready when its health endpoint says so."""

    def __init__(
        self,
        stack: BackgroundStack,
        *,
        name: str,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        http_port: int,
        start_within_s: float,
    ) -> None:
        self.name = name
        self._stack = stack
        stack.start_process(
            ProcessSpec(
                name=name,
                argv=argv,
                env=dict(env),
                ready=http_ready(http_port),
                cwd=ROOT,
                start_within_s=start_within_s,
            )
        )

    @property
    def log_path(self) -> Path:
        return self._stack.logs / f"{self.name}.log"

    @property
    def pid(self) -> int | None:
        return self._stack.status(self.name).pid

    def kill9(self) -> None:
        """Kill by SIGKILL; it stays dead until `start`."""
        self._stack.kill9(self.name)

    def stop(self) -> None:
        """Stop by SIGTERM within its bound, else by SIGKILL."""
        self._stack.stop(self.name)

    def start(self) -> None:
        """Start again with the same settings; return when ready."""
        self._stack.start(self.name)
