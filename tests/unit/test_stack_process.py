"""Goal: children start, fail, stop and come back as promised, and only our own are ever killed.

Method: real, tiny child processes under a ManagedProcess or Supervisor in a temporary directory;
every wait is for a condition with a deadline.
"""

import asyncio
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tools.stack.errors import StackError, StartError
from tools.stack.identity import ProcessIdentity
from tools.stack.process import (
    ManagedProcess,
    PartStatus,
    ProcessSpec,
    Restart,
    State,
    Supervisor,
    kill_leftovers,
    log_tail,
)

FOREVER = ("sh", "-c", "echo up; exec sleep 600")
DEADLINE_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.01)


def alive(pid: int | None) -> bool:
    return pid is not None and ProcessIdentity.of(pid) is not None


def shell(name: str, script: str, **options: object) -> ProcessSpec:
    return ProcessSpec(name, ("sh", "-c", script), **options)  # type: ignore[arg-type]


async def test_a_process_is_ready_when_its_question_says_yes(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "part.log"

    async def ready() -> bool:
        return "up" in log_tail(log)

    supervisor = Supervisor(tmp_path)
    process = await supervisor.start(ProcessSpec("part", FOREVER, ready))
    assert process.state is State.READY
    assert ProcessIdentity.read(tmp_path / "run" / "part.pid") == ProcessIdentity.of(
        process.pid or 0
    )
    pid = process.pid
    await supervisor.stop_all()
    assert not alive(pid)
    assert list((tmp_path / "run").iterdir()) == []


async def test_a_child_that_dies_at_start_is_reported_with_code_log_and_its_last_words(
    tmp_path: Path,
) -> None:
    supervisor = Supervisor(tmp_path)

    async def never() -> bool:
        return False

    script = "echo 'the disk is full'; exit 7"
    with pytest.raises(StartError) as caught:
        await supervisor.start(shell("part", script, ready=never))
    text = str(caught.value)
    assert text.startswith("part ended before it was ready, exit code 7")
    assert "the disk is full" in text
    assert str(tmp_path / "logs" / "part.log") in text


async def test_a_child_steps_back_as_far_as_it_is_told(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    for name, niceness in (("first", 0), ("behind", 7)):
        process = await supervisor.start(ProcessSpec(name, FOREVER, niceness=niceness))
        assert process.pid is not None
        stands_at = functools.partial(os.getpriority, os.PRIO_PROCESS, process.pid)
        await until(functools.partial(lambda at, wanted: at() == wanted, stands_at, own + niceness))
    await supervisor.stop_all()


async def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    with pytest.raises(StartError, match="cannot run no-such-program"):
        await Supervisor(tmp_path).start(ProcessSpec("part", ("no-such-program",), never))


async def test_a_child_that_never_gets_ready_is_killed_at_its_bound(tmp_path: Path) -> None:
    seen: list[PartStatus] = []

    async def never() -> bool:
        return False

    spec = ProcessSpec("part", FOREVER, never, start_within_s=0.2)
    with pytest.raises(StartError, match=r"part is not ready after 0\.2 s"):
        await Supervisor(tmp_path, seen.append).start(spec)
    assert [status.state for status in seen] == [State.STARTING, State.FAILED]
    assert not alive(seen[0].pid)


async def test_stop_asks_first_and_kills_a_child_that_does_not_listen(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    polite = await supervisor.start(
        shell("polite", "trap 'echo bye; exit 0' TERM; echo polite; sleep 600 & wait")
    )
    script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"
    deaf = await supervisor.start(shell("deaf", script, stop_within_s=0.2))
    await until(lambda: "polite" in log_tail(polite.log_path))
    await until(lambda: "deaf" in log_tail(deaf.log_path))
    pid = deaf.pid
    await supervisor.stop_all()
    assert not alive(pid)
    assert "bye" in log_tail(polite.log_path)
    assert "did not end within 0.2 s: killed" in deaf.log_path.read_text()


async def test_stop_takes_what_is_left_of_the_childs_group(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    process = await supervisor.start(shell("part", "sleep 600 & echo $!; wait"))
    await until(lambda: log_tail(process.log_path) != ["(the log is empty)"])
    grandchild = int(log_tail(process.log_path)[-1])
    assert alive(grandchild)
    await supervisor.stop_all()
    await until(lambda: not alive(grandchild))


async def test_a_killed_process_with_a_restart_policy_comes_back(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    spec = ProcessSpec("part", FOREVER, restart=Restart(initial_s=0.01))
    process = await supervisor.start(spec)
    pid = process.pid
    await supervisor.kill9("part")
    await process.wait_ready(DEADLINE_S)
    assert process.pid != pid
    assert process.exits == 1
    await supervisor.stop_all()


async def test_exits_in_a_row_are_reported_as_failing_with_their_reason(tmp_path: Path) -> None:
    seen: list[PartStatus] = []
    supervisor = Supervisor(tmp_path, seen.append)
    policy = Restart(initial_s=0.01, maximum_s=0.05, loud_after=3)
    await supervisor.start(shell("part", "sleep 0.1; echo 'no luck'; exit 3", restart=policy))
    await until(lambda: any("FAILING" in status.detail for status in seen))
    loud = next(status for status in seen if "FAILING" in status.detail)
    assert loud.state is State.FAILED
    assert loud.exits == 3
    assert "exit number 3 in a row; part ended by itself, exit code 3" in loud.detail
    assert "no luck" in loud.detail
    await supervisor.stop_all()


async def test_without_a_policy_an_exit_is_reported_and_final(tmp_path: Path) -> None:
    seen: list[PartStatus] = []
    supervisor = Supervisor(tmp_path, seen.append)
    process = await supervisor.start(shell("part", "sleep 0.1; exit 3"))
    await until(lambda: process.state is State.FAILED)
    assert "ended by itself, exit code 3" in seen[-1].detail
    await process.start()
    assert process.state is State.READY
    await supervisor.stop_all()


async def test_a_command_that_fails_is_reported_with_its_output(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.run(shell("works", "exit 0"))
    with pytest.raises(StartError, match=r"breaks failed, exit code 2(.|\n)*bad option"):
        await supervisor.run(shell("breaks", "echo bad option; exit 2"))
    with pytest.raises(StartError, match=r"hangs did not finish within 0\.1 s"):
        await supervisor.run(shell("hangs", "sleep 600", start_within_s=0.1))


async def test_cancelling_a_start_leaves_nothing(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    process = ManagedProcess(ProcessSpec("part", FOREVER, never), tmp_path, lambda _: None)
    start = asyncio.create_task(process.start())
    await until(lambda: process.pid is not None)
    pid = process.pid
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not alive(pid)


async def test_an_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="no part called 'kafak'"):
        await Supervisor(tmp_path).stop("kafak")


def spawn(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)


async def test_leftovers_are_killed_but_never_a_process_that_got_their_pid(tmp_path: Path) -> None:
    children = [spawn("sleep", "600") for _ in range(2)]
    try:
        leftover, stranger = (ProcessIdentity.of(child.pid) for child in children)
        assert leftover is not None
        assert stranger is not None
        leftover.write(tmp_path / "run" / "leftover.pid")
        recycled = ProcessIdentity(stranger.pid, stranger.start_ticks - 1, stranger.boot_id)
        recycled.write(tmp_path / "run" / "recycled.pid")
        rebooted = ProcessIdentity(stranger.pid, stranger.start_ticks, "another boot")
        rebooted.write(tmp_path / "run" / "rebooted.pid")
        assert await kill_leftovers(tmp_path) == ["leftover"]
        assert children[0].wait(DEADLINE_S) == -signal.SIGKILL
        assert children[1].poll() is None
        assert list((tmp_path / "run").iterdir()) == []
    finally:
        for child in children:
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()


SUPERVISOR_SCRIPT = """
import asyncio, sys
from pathlib import Path
from tools.stack.process import ProcessSpec, Supervisor

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    for name in ("one", "two"):
        await supervisor.start(ProcessSpec(name, ("sleep", "600")))
    print("started", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    with spawn(sys.executable, "-c", SUPERVISOR_SCRIPT, str(tmp_path)) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == b"started\n"
        children = [
            ProcessIdentity.read(tmp_path / "run" / f"{name}.pid") for name in ("one", "two")
        ]
        assert all(child is not None and child.alive() for child in children)
        os.kill(supervisor.pid, signal.SIGKILL)
    await until(lambda: not any(child is not None and child.alive() for child in children))


async def test_the_reason_shows_only_what_was_written_since_the_last_start(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    await supervisor.run(shell("part", "echo an old complaint"))
    with pytest.raises(StartError) as caught:
        await supervisor.run(shell("part", "echo the new one; exit 1"))
    assert "the new one" in str(caught.value)
    assert "an old complaint" not in str(caught.value)
