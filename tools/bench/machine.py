"""The machine a bench runs on: what it is, how busy it is, and which cores are whose."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PINNED = Path(__file__).with_name("pinned.py")
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of this user's is made in it
BUSY_SHARE = 0.5
"""Load average a core, above which a bench measures its neighbours too."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which core is the measured process's, and which are everybody else's.

    None: this system does not let a process choose (then nothing is pinned).
    """

    service: int | None
    others: frozenset[int] | None

    @classmethod
    def here(cls) -> "Cores":
        """Give the measured process the first core; the others get the rest, where there is one."""
        if not hasattr(os, "sched_getaffinity"):
            return cls(None, None)
        first, *rest = sorted(os.sched_getaffinity(0))
        return cls(first, frozenset(rest or [first]))

    def __str__(self) -> str:
        if self.service is None or self.others is None:
            return "no process is bound to a core"
        others = ", ".join(map(str, sorted(self.others)))
        return f"on core {self.service}, everything else on core {others}"

    @contextmanager
    def kept_off(self) -> Iterator[None]:
        """Let this process, and what it starts inside, keep off the measured core."""
        if self.others is None:
            yield
            return
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.others)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def measured(self, command: Sequence[str]) -> tuple[str, ...]:
        """Return the command line that runs `command` on the measured core."""
        if self.service is None:
            return tuple(command)
        return (sys.executable, "-I", "-S", str(PINNED), str(self.service), *command)


def in_memory(name: str, room_bytes: int) -> Path | None:
    """Return a folder of this user's that no disk is behind; None where there is no such room.

    What a run that was killed left there is removed: its room is needed, and it is memory.
    """
    folder = MEMORY / f"{name}-{os.getuid()}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        free_bytes = shutil.disk_usage(MEMORY).free
    except OSError:
        return None
    return folder if free_bytes >= room_bytes else None


def description() -> str:
    """Return what this machine is, in a line."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{os.cpu_count()} cores, {processor()}; {python}; {platform.system()}"


def processor() -> str:
    """Return the processor's name, as far as the system says it."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.machine()


def busy() -> str:
    """Return a warning where other work would be measured too; "" where the machine is free."""
    load = os.getloadavg()[0]
    if load <= BUSY_SHARE * (os.cpu_count() or 1):
        return ""
    return f"the machine is busy (load average {load:.1f}): the figures measure its other work too"


def memory_bytes(pid: int) -> int:
    """Return what a process holds in memory now (Linux)."""
    _, resident, *_ = Path(f"/proc/{pid}/statm").read_text("ascii").split()
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


def processor_s(pid: int) -> float:
    """Return the processor time that a process took so far, all its threads' (Linux)."""
    _, _, fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
