"""What a supervisor in the background tells the commands about itself: `<directory>/stack.json`."""

import json
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from tools.stack.identity import ProcessIdentity, write_atomically
from tools.stack.ports import Ports
from tools.stack.process import PartStatus, State


class Phase(StrEnum):
    """Where the whole stack is."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class StackState:
    """One snapshot. `error` says why the stack failed."""

    supervisor: ProcessIdentity
    phase: Phase
    ports: Ports
    parts: tuple[PartStatus, ...] = ()
    error: str = ""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Return the last snapshot; None where no readable one is."""
        try:
            data = json.loads(path_in(directory).read_text("utf-8"))
            parts = tuple(
                PartStatus(**{**part, "state": State(part["state"])}) for part in data["parts"]
            )
            identity = ProcessIdentity(**data["supervisor"])
            ports = Ports(**data["ports"])
            return cls(identity, Phase(data["phase"]), ports, parts, data["error"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, directory: Path) -> None:
        write_atomically(path_in(directory), json.dumps(asdict(self), indent=1))

    @property
    def all_ready(self) -> bool:
        return all(part.state is State.READY for part in self.parts)

    @property
    def running(self) -> bool:
        """Say whether the supervisor that wrote it still lives."""
        return self.supervisor.alive()


def path_in(directory: Path) -> Path:
    return directory / "stack.json"
