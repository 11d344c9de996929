"""Child processes of the one-machine stack: start, wait until ready, watch, restart, stop.

Each child runs in its own session (a Ctrl-C in the terminal reaches the supervisor only, which
then stops the children in order), writes to one log file, has a pid file with its identity, and
dies with its supervisor (child.py).
"""

import asyncio
import contextlib
import enum
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.stack.errors import StackError, StartError
from tools.stack.identity import ProcessIdentity

CHILD_WRAPPER = Path(__file__).with_name("child.py")
POLL_S = 0.03
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES = 16_384
LOG_SIZE_MAX_BYTES = 32 * 1024 * 1024
KILL_WAIT_S = 5.0
READERS_NICENESS = 10
"""Of what tells the past (reporting and its database): charging and switching go first."""
# The supervisor's own lines in a child's log.
NOTE_MARK = "=== "
STARTING_MARK = ": starting: "


class State(enum.StrEnum):
    """Where a process is in its life."""

    NEW = "new"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Restart:
    """Restart a process that exits by itself: soon at first, then at growing intervals.

    A run of at least `steady_s` seconds starts the intervals anew. There is no last attempt;
    from `loud_after` exits in a row on each one is reported as failing.
    """

    initial_s: float = 0.1
    maximum_s: float = 5.0
    steady_s: float = 10.0
    loud_after: int = 3


@dataclass(frozen=True, slots=True)
class RunAs:
    """A user to become; `keep_access` passes directories that are closed to that user."""

    user: str
    keep_access: bool


async def always_ready() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run and when it counts as ready. `env` is added to the supervisor's own.

    `niceness`: how far it steps back (0 to 19) where the processor is short.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]] = always_ready
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    start_within_s: float = 30.0
    stop_within_s: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM
    restart: Restart | None = None
    run_as: RunAs | None = None
    niceness: int = 0
    address: str = ""


@dataclass(frozen=True, slots=True)
class PartStatus:
    """One line of the stack's status. `exits` counts exits that nobody had asked for."""

    name: str
    state: State
    pid: int | None
    exits: int
    address: str
    detail: str


Watch = Callable[[PartStatus], None]


class ManagedProcess:
    """One child and its whole life.

    Use it from one event loop, whose thread outlives the child: the kernel kills a child when
    the thread that started it ends.
    """

    def __init__(self, spec: ProcessSpec, directory: Path, watch: Watch) -> None:
        self.spec = spec
        self.log_path = directory / "logs" / f"{spec.name}.log"
        self.state = State.NEW
        self.exits = 0
        self._pid_path = directory / "run" / f"{spec.name}.pid"
        self._watch = watch
        self._detail = ""
        self._child: subprocess.Popen[bytes] | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    @property
    def status(self) -> PartStatus:
        spec = self.spec
        return PartStatus(spec.name, self.state, self.pid, self.exits, spec.address, self._detail)

    async def start(self) -> None:
        """Start and return when ready; raise StartError, with nothing left running, if not."""
        if self._child is not None:
            raise StackError(f"{self.spec.name} is running already (pid {self._child.pid})")
        await self._end_watcher()
        try:
            self._launch(State.STARTING)
            await self._until_ready()
        except BaseException as error:
            await self._end_child()
            self._become(State.FAILED, str(error) if isinstance(error, StackError) else "")
            raise
        self._become(State.READY)
        self._watcher = asyncio.create_task(self._watch_child())

    async def stop(self) -> None:
        """Ask the child to end, wait its bound, then kill it and what is left of its group."""
        await self._end_watcher()
        child = self._child
        if child is not None and not exited(child):
            child.send_signal(self.spec.stop_signal)
            deadline = time.monotonic() + self.spec.stop_within_s
            while not exited(child) and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
            if not exited(child):
                self._note(f"did not end within {self.spec.stop_within_s:g} s: killed")
        await self._end_child()
        self._become(State.STOPPED)

    async def kill9(self) -> None:
        """Kill by SIGKILL, as a crash would, and return when the process is gone.

        With a restart policy the watcher then starts it again; else `start` does.
        """
        child = self._child
        if child is None:
            raise StackError(f"{self.spec.name} is not running")
        if self.spec.restart is None:
            await self._end_watcher()
            await self._end_child()
            self._become(State.STOPPED, "killed")
            return
        os.killpg(child.pid, signal.SIGKILL)
        while self._child is child:
            await asyncio.sleep(POLL_S)

    async def run(self) -> None:
        """Run a command to its end; raise StartError if it fails or takes too long."""
        try:
            self._launch(State.STARTING)
            await self._until_done()
        except BaseException as error:
            await self._end_child()
            self._become(State.FAILED, str(error) if isinstance(error, StackError) else "")
            raise
        await self._end_child()
        self._become(State.STOPPED)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the process is ready (again); raise StartError at the deadline."""
        deadline = time.monotonic() + timeout_s
        while self.state is not State.READY:
            if time.monotonic() > deadline:
                raise StartError(self._reason(f"is not ready after {timeout_s:g} s"))
            await asyncio.sleep(POLL_S)

    def _launch(self, state: State) -> None:
        spec = self.spec
        run_as = spec.run_as
        who = (run_as.user, str(int(run_as.keep_access))) if run_as else ("-", "0")
        wrapper = (sys.executable, "-I", "-S", str(CHILD_WRAPPER), str(os.getpid()))
        self._trim_log()
        self._note(f"starting: {' '.join(spec.argv)[:400]}")
        with self.log_path.open("ab") as log:
            self._child = subprocess.Popen(
                (*wrapper, str(spec.niceness), *who, *spec.argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=spec.cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **spec.env},
                start_new_session=True,
            )
        identity = ProcessIdentity.of(self._child.pid)
        if identity is not None:
            identity.write(self._pid_path)
        # While it restarts, the status keeps saying why.
        self._become(state, self._detail if state is State.RESTARTING else "")

    async def _until_ready(self) -> None:
        child = self._child_now()
        deadline = time.monotonic() + self.spec.start_within_s
        while True:
            if exited(child):
                code = exit_code(child)
                raise StartError(self._reason(f"ended before it was ready, {describe(code)}"))
            if time.monotonic() > deadline:
                bound_s = self.spec.start_within_s
                raise StartError(self._reason(f"is not ready after {bound_s:g} s"))
            if await self._answers():
                return
            await asyncio.sleep(POLL_S)

    async def _until_done(self) -> None:
        child = self._child_now()
        bound_s = self.spec.start_within_s
        deadline = time.monotonic() + bound_s
        while not exited(child):
            if time.monotonic() > deadline:
                raise StartError(self._reason(f"did not finish within {bound_s:g} s"))
            await asyncio.sleep(POLL_S)
        code = exit_code(child)
        if code != 0:
            raise StartError(self._reason(f"failed, {describe(code)}"))

    async def _answers(self) -> bool:
        """Ask whether it is ready, without waiting past the death of the child."""
        question = asyncio.ensure_future(self.spec.ready())
        try:
            while not question.done() and self._child is not None and not exited(self._child):
                await asyncio.wait((question,), timeout=POLL_S)
            return question.done() and question.result()
        finally:
            question.cancel()
            await asyncio.gather(question, return_exceptions=True)

    async def _watch_child(self) -> None:
        """Wait for an exit nobody asked for; restart as the policy says, report in any case."""
        in_a_row = 0
        while True:
            child = self._child_now()
            started_s = time.monotonic()
            while not exited(child):
                await asyncio.sleep(POLL_S)
            await self._end_child()
            self.exits += 1
            policy = self.spec.restart
            reason = self._reason(f"ended by itself, {describe(child.returncode)}")
            if policy is None:
                self._become(State.FAILED, reason)
                return
            steady = time.monotonic() - started_s >= policy.steady_s
            in_a_row = 1 if steady else in_a_row + 1
            loud = in_a_row >= policy.loud_after
            if loud:
                reason = f"FAILING: exit number {in_a_row} in a row; {reason}"
            self._become(State.FAILED if loud else State.RESTARTING, reason)
            await asyncio.sleep(min(policy.maximum_s, policy.initial_s * 2 ** (in_a_row - 1)))
            self._launch(State.RESTARTING)
            try:
                await self._until_ready()
            except StartError as error:
                # A child that hangs is ended here; the loop sees its exit and goes on.
                if not exited(self._child_now()):
                    os.killpg(self._child_now().pid, signal.SIGKILL)
                self._become(State.RESTARTING, str(error))
            else:
                self._become(State.READY)

    def _child_now(self) -> subprocess.Popen[bytes]:
        assert self._child is not None
        return self._child

    async def _end_watcher(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def _end_child(self) -> None:
        """Kill what is left of the child's group and reap it."""
        child, self._child = self._child, None
        if child is None:
            return
        if child.returncode is None:
            # The leader is not reaped yet, so that its number still means this group.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_WAIT_S
        while not exited(child) and time.monotonic() < deadline:
            time.sleep(POLL_S)  # noqa: ASYNC251  # not interruptible: the child must be reaped
        child.wait(KILL_WAIT_S)
        self._pid_path.unlink(missing_ok=True)

    def _become(self, state: State, detail: str = "") -> None:
        if detail and detail != self._detail:
            self._note(detail.splitlines()[0])
        self.state = state
        self._detail = detail
        self._watch(self.status)

    def _note(self, text: str) -> None:
        """Write a line of the supervisor's own into the child's log."""
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        moment = time.strftime("%Y-%m-%dT%H:%M:%S")
        with self.log_path.open("a", encoding="utf-8") as log:
            log.write(f"{NOTE_MARK}{moment} {self.spec.name}: {text}\n")

    def _trim_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > LOG_SIZE_MAX_BYTES:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def _reason(self, what: str) -> str:
        lines = "\n".join(f"    {line}" for line in log_tail(self.log_path))
        return f"{self.spec.name} {what}; the end of {self.log_path}:\n{lines}"


def exited(child: subprocess.Popen[bytes]) -> bool:
    """Say whether the child has ended, without reaping it: its pid stays its own."""
    if child.returncode is not None:
        return True
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_PID, child.pid, flags) is not None
    except ChildProcessError:
        return True


def exit_code(child: subprocess.Popen[bytes]) -> int:
    """Return an ended child's code (negative: the signal), without reaping it."""
    if child.returncode is not None:
        return child.returncode
    result = os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert result is not None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def describe(code: int) -> str:
    """Say how a process ended: `exit code 1` or `killed by SIGKILL`."""
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def log_tail(path: Path) -> list[str]:
    """Return the last lines the child wrote since its last start, however large the log is."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
            text = log.read().decode("utf-8", "replace")
    except OSError as error:
        return [f"(no log: {error})"]
    lines: list[str] = []
    for line in text.splitlines():
        if not line.startswith(NOTE_MARK):
            lines.append(line)
        elif STARTING_MARK in line:
            lines.clear()
    return lines[-LOG_TAIL_LINES:] or ["(the log is empty)"]


class Supervisor:
    """The processes of one directory, by name, stopped in the reverse order of their start."""

    def __init__(self, directory: Path, watch: Watch = lambda _: None) -> None:
        self._directory = directory
        self._watch = watch
        self._processes: dict[str, ManagedProcess] = {}

    def __getitem__(self, name: str) -> ManagedProcess:
        try:
            return self._processes[name]
        except KeyError:
            known = ", ".join(self._processes) or "none"
            raise StackError(f"there is no part called {name!r}; there are: {known}") from None

    async def start(self, spec: ProcessSpec) -> ManagedProcess:
        """Start a process under its name and return when it is ready."""
        earlier = self._processes.pop(spec.name, None)
        if earlier is not None:
            await earlier.stop()
        process = ManagedProcess(spec, self._directory, self._watch)
        self._processes[spec.name] = process
        await process.start()
        return process

    async def run(self, spec: ProcessSpec) -> None:
        """Run a command to its end; raise StartError with the end of its log if it fails."""
        process = ManagedProcess(spec, self._directory, self._watch)
        await process.run()

    async def restart(self, name: str) -> None:
        """Stop gracefully and start again."""
        await self[name].stop()
        await self[name].start()

    async def kill9(self, name: str) -> None:
        await self[name].kill9()

    async def stop(self, name: str) -> None:
        await self[name].stop()

    async def stop_all(self, *waves: tuple[str, ...]) -> None:
        """Stop the named parts wave by wave, then all others at once."""
        for names in (*waves, tuple(self._processes)):
            present = [self._processes[name] for name in names if name in self._processes]
            await asyncio.gather(*(process.stop() for process in present))

    @property
    def statuses(self) -> list[PartStatus]:
        return [process.status for process in self._processes.values()]


async def kill_leftovers(directory: Path) -> list[str]:
    """Kill what an earlier supervisor of this directory left running; return the names."""
    killed = []
    for path in sorted((directory / "run").glob("*.pid")):
        identity = ProcessIdentity.read(path)
        if identity is not None and identity.alive():
            killed.append(path.stem)
            identity.kill(signal.SIGKILL)
            deadline = time.monotonic() + KILL_WAIT_S
            while identity.alive() and time.monotonic() < deadline:
                await asyncio.sleep(POLL_S)
        path.unlink(missing_ok=True)
    return killed
