"""One process of a service that a recovery test kills, stops, wakes and starts anew."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from urllib.request import urlopen

from tests.recovery import crashing
from tools.stack.ports import free_ports
from tools.stack.services import ROOT, environment

DEADLINE_S = 40.0
WAIT_S = 0.05


@dataclass
class Worker:
    """One process of `service`, started anew as often as the test likes; `end` it at the end.

    `settings` are named without their prefix; INSTANCE and HTTP_PORT are given. `name` tells
    the log from others of one instance; `command` is for a process that is not the service
    itself. `codes` counts how the process ended: an exit code, or minus a signal.
    """

    service: str
    settings: Mapping[str, str]
    directory: Path
    instance: str
    name: str = ""
    command: Sequence[str] = ()
    http_port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None
    codes: Counter[int] = field(default_factory=Counter)

    def start(
        self,
        at: str = "",
        *,
        hit: int = 1,
        by: signal.Signals = signal.SIGKILL,
        switch: Sequence[str] = (),
    ) -> None:
        """Start it; `at`: the boundary at which it sends itself a signal; see `crashing`."""
        assert self.process is None
        given = {"INSTANCE": self.instance, "HTTP_PORT": str(self.http_port)}
        settings = environment(self.service, {**given, **self.settings})
        test = {crashing.SWITCH: ",".join(switch)}
        if at:
            test |= {crashing.AT: at, crashing.HIT: str(hit), crashing.SIGNAL: by.name}
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.recovery.crashing", self.service, *self.command],
                cwd=ROOT,
                env={**os.environ, **settings, **test},
                stdout=log,
                stderr=log,
            )

    @property
    def log_path(self) -> Path:
        return self.directory / f"{self.name or self.instance}.log"

    @property
    def log_end(self) -> str:
        """The last it said, for a failing test to show."""
        return self.log_path.read_text()[-4000:]

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    @property
    def is_stopped(self) -> bool:
        """Whether it is suspended by SIGSTOP."""
        assert self.process is not None
        stat = Path(f"/proc/{self.process.pid}/stat").read_text("ascii")
        return stat.rpartition(")")[2].split()[0] == "T"

    def ended(self) -> bool:
        """Whether it has ended; its code is counted then."""
        if self.process is not None and (code := self.process.poll()) is not None:
            self.codes[code] += 1
            self.process = None
        return self.process is None

    async def wait_ended(self) -> None:
        await until(self.ended, f"{self.instance} ends")

    async def wait_ready(self) -> None:
        await until(lambda: self.is_ready() or self.ended(), f"{self.instance} is ready")
        assert self.process is not None, f"it ended: {self.log_end}"

    def is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.http_port}/health/ready", timeout=1) as answer:
                return bool(answer.status == HTTPStatus.OK)
        except OSError:
            return False

    async def kill(self) -> None:
        """SIGKILL; return when it is gone."""
        self.signal(signal.SIGKILL)
        await self.wait_ended()

    def end(self) -> None:
        """End it, however it stands."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.ended()


async def until_async(condition: Callable[[], Awaitable[object]], what: str) -> None:
    """Return when the awaited condition holds; fail after the deadline."""
    deadline = time.monotonic() + DEADLINE_S
    while not await condition():
        assert time.monotonic() < deadline, f"in {DEADLINE_S} s it did not come about that {what}"
        await asyncio.sleep(WAIT_S)


async def until(condition: Callable[[], bool], what: str) -> None:
    """Return when the condition holds; fail after the deadline."""

    async def holds() -> bool:
        return condition()

    await until_async(holds, what)
