"""Who a process is, beyond its number: a recycled pid must never be killed or believed."""

import json
import os
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A pid with the start time (clock ticks since boot) and the boot it belongs to."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Return the identity of the process that has `pid` now; None where none lives."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
            boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        except OSError:
            return None
        # The name in parentheses may hold anything; what follows the last one is regular.
        state, *fields = stat.rpartition(")")[2].split()
        if state in {"Z", "X"}:
            return None
        return cls(pid, int(fields[18]), boot_id)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """Return what `write` left at `path`; None where nothing readable is."""
        try:
            return cls(**json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        write_atomically(path, json.dumps(asdict(self)))

    def alive(self) -> bool:
        """Say whether this very process, and not a successor of its pid, still runs."""
        return ProcessIdentity.of(self.pid) == self

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still this one."""
        if self.alive():
            os.kill(self.pid, number)


def write_atomically(path: Path, text: str) -> None:
    """Replace `path` so that a reader sees the old text or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(text, "utf-8")
    draft.replace(path)
