"""The story holds when its services are killed in the middle of it.

Goal: SIGKILL of metering, ingest, control and vending at the story's turns loses nothing, invents
nothing, and every check of the demo still passes. Method: the demo itself, as a person runs it,
with `--kills`; what it prints is judged, and that nothing of it is left running.
"""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.e2e.conftest import (
    DEMO,
    DEMO_DIRECTORY,
    ROOT,
    STORY_WITHIN_S,
    PlayedDemo,
    left_running,
)

CHAIN = (
    "├── readings",
    "├── charge meter-",
    "├── tariff shops version 1",
    "├── threshold",
    "├── policy shops version 1",
    "└── intent for meter-",
    "— read back open",
)


@pytest.mark.timeout(STORY_WITHIN_S + 30)
def test_the_story_ends_with_every_check_passed_though_four_services_are_killed(
    played_demo: PlayedDemo,
) -> None:
    done = played_demo
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.findall(r"SIGKILL for (\w+)", done.stdout)
    assert sorted(killed) == ["control", "ingest", "metering", "vending", "vending"]
    assert "✗" not in done.stdout
    for link in CHAIN:
        assert link in done.stdout, f"the explanation of the cut lacks {link!r}"
    assert "Every check holds" in done.stdout
    assert done.left_running == []


@pytest.mark.timeout(90)
def test_ctrl_c_in_the_middle_leaves_nothing_running() -> None:
    demo = subprocess.Popen(
        DEMO,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "accounts opened" in line:
                break
        demo.send_signal(signal.SIGINT)
        rest, _ = demo.communicate(timeout=40)
    finally:
        demo.kill()
    assert demo.returncode == 130, rest
    deadline = time.monotonic() + 5
    while (left := left_running(DEMO_DIRECTORY)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
