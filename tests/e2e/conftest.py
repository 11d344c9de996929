"""The demo, played once a session for everyone who judges it, with its PostgreSQL kept."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEMO = (sys.executable, "-m", "tools.demo")
DEMO_DIRECTORY = ROOT / "build" / "demo"
STORY_WITHIN_S = 120
"""The promise to a newcomer, here with four services killed on the way."""
WIDE = {"COLUMNS": "160"}
"""So that no column of the demo's tables is shortened."""


@dataclass(frozen=True)
class PlayedDemo:
    """How the demo went: exit code, what it printed, what of it still ran when it was over.

    `directory` holds the files of its PostgreSQL, which is stopped; the times are ms UTC.
    """

    returncode: int
    stdout: str
    stderr: str
    left_running: list[str]
    directory: Path
    began_at_ms: int
    ended_at_ms: int


def left_running(directory: Path) -> list[str]:
    """Return the commands of the processes that have to do with a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (path.parent / "environ").read_bytes()
        except OSError:
            continue
        if str(directory).encode() in environment or str(directory) in command:
            found.append(command)
    return found


@pytest.fixture(scope="session")
def played_demo() -> Iterator[PlayedDemo]:
    """Play the demo, with `--kills`, as a person runs it. The first test that asks waits for it."""
    kept = ROOT / "build" / f"test-demo-{os.getpid()}"
    began_at_ms = time.time_ns() // 1_000_000
    done = subprocess.run(
        [*DEMO, "--kills"],
        cwd=ROOT,
        env={**os.environ, **WIDE},
        capture_output=True,
        text=True,
        timeout=STORY_WITHIN_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    ended_at_ms = time.time_ns() // 1_000_000
    left = left_running(DEMO_DIRECTORY)
    kept.mkdir(parents=True)
    if done.returncode == 0:
        # The next demo begins with an empty directory; this one's tables are for the tests.
        (DEMO_DIRECTORY / "postgres").rename(kept / "postgres")
    yield PlayedDemo(
        done.returncode, done.stdout, done.stderr, left, kept, began_at_ms, ended_at_ms
    )
    shutil.rmtree(kept)
