"""The local stack from a terminal: `python -m tools.stack up | down | status`."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live

from tools.stack.errors import StackError, StartError
from tools.stack.ports import Ports
from tools.stack.process import State, kill_leftovers, log_tail
from tools.stack.services import ROOT
from tools.stack.show import fetch_with_progress, parts_table
from tools.stack.stack import DirectoryLock
from tools.stack.state import Phase, StackState
from tools.stack.supervise import supervise

UP_WITHIN_S = 180.0
DOWN_WITHIN_S = 60.0
KILLED_WITHIN_S = 5.0
POLL_S = 0.1
EXIT_NOT_RUNNING = 3

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Kafka, PostgreSQL, an MQTT broker and the services on this machine.",
)
console = Console()
errors = Console(stderr=True)

Directory = Annotated[
    Path, typer.Option(help="Where the stack keeps its data and logs.", file_okay=False)
]
OnlyInfrastructure = Annotated[
    bool,
    typer.Option("--only-infrastructure", help="Without the services, for working on them."),
]
DEFAULT_DIRECTORY = ROOT / "build" / "local"


@app.command()
def up(
    directory: Directory = DEFAULT_DIRECTORY, only_infrastructure: OnlyInfrastructure = False
) -> None:
    """Start everything, wait until it is ready, and leave it running."""
    directory = directory.absolute()
    state = running_state(directory)
    if state is not None and state.phase is Phase.READY:
        console.print("the stack is up already")
        print_summary(directory, state)
        return
    Ports.from_environment(os.environ)
    if state is None:
        fetch_with_progress(console)
        child = spawn_supervisor(directory, only_infrastructure=only_infrastructure)
    else:
        console.print("the stack is being started by another command: waiting for it")
        child = None
    try:
        state = wait_until_up(directory, child)
    except KeyboardInterrupt:
        if child is not None:
            console.print("interrupted: stopping what was started")
            child.send_signal(signal.SIGTERM)
            child.wait(DOWN_WITHIN_S)
        raise typer.Exit(130) from None
    print_summary(directory, state)


@app.command()
def down(
    directory: Directory = DEFAULT_DIRECTORY,
    wipe: Annotated[bool, typer.Option("--wipe", help="Remove all data and logs too.")] = False,
) -> None:
    """Stop everything; the data stays."""
    directory = directory.absolute()
    state = running_state(directory)
    if state is None:
        console.print("the stack is not running")
    else:
        stop_supervisor(state)
        console.print("the stack is down")
    if directory.exists():
        lock = DirectoryLock(directory)
        lock.acquire()
        try:
            asyncio.run(kill_leftovers(directory))
            if wipe:
                shutil.rmtree(directory)
                console.print(f"removed {directory}")
        finally:
            lock.release()


@app.command()
def status(
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show what runs, where, and where its logs are; exit code 3 unless all is ready."""
    directory = directory.absolute()
    state = StackState.read(directory)
    phase = Phase.DOWN
    if state is not None and (state.running or state.phase is Phase.FAILED):
        phase = state.phase
    if as_json:
        parts = [asdict(part) for part in state.parts] if state and state.running else []
        error = state.error if state and phase is Phase.FAILED else ""
        report = {"phase": phase, "parts": parts, "error": error, "logs": str(directory / "logs")}
        print(json.dumps(report, indent=2))
    elif state is not None and state.running:
        console.print(parts_table(state.parts))
        print_failures(state)
        console.print(f"logs: {directory / 'logs'}")
    elif phase is Phase.FAILED and state is not None:
        errors.print(state.error, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print("the stack is not running; make up starts it")
    if phase is not Phase.READY or not (state and state.all_ready):
        raise typer.Exit(EXIT_NOT_RUNNING)


@app.command("supervise", hidden=True)
def supervise_command(
    directory: Directory = DEFAULT_DIRECTORY, only_infrastructure: OnlyInfrastructure = False
) -> None:
    """Run the stack in the foreground until SIGTERM (what `up` starts in the background)."""
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(supervise(directory.absolute(), only_infrastructure=only_infrastructure))


def running_state(directory: Path) -> StackState | None:
    state = StackState.read(directory)
    return state if state is not None and state.running else None


def spawn_supervisor(directory: Path, *, only_infrastructure: bool) -> subprocess.Popen[bytes]:
    logs = directory / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "tools.stack", "supervise", "--directory", str(directory)]
    if only_infrastructure:
        argv.append("--only-infrastructure")
    with (logs / "supervisor.log").open("ab") as log:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,
        )


def wait_until_up(directory: Path, child: subprocess.Popen[bytes] | None) -> StackState:
    """Show each part's progress until the stack is ready; raise StartError if it fails."""
    deadline = time.monotonic() + UP_WITHIN_S
    log = directory / "logs" / "supervisor.log"
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while time.monotonic() < deadline:
            state = StackState.read(directory)
            if child is not None and state is not None and state.supervisor.pid != child.pid:
                state = None  # An earlier stack's last word.
            if state is not None:
                live.update(Group(parts_table(state.parts)))
                if state.phase is Phase.READY and state.running:
                    return state
                if state.phase is Phase.FAILED:
                    raise StartError(state.error)
            ended = child.poll() is not None if child else state is None or not state.running
            if ended:
                raise StartError("\n".join((f"the supervisor ended; see {log}:", *log_tail(log))))
            time.sleep(POLL_S)
    if child is not None:
        child.send_signal(signal.SIGTERM)
        child.wait(DOWN_WITHIN_S)
    raise StartError(f"the stack is not up after {UP_WITHIN_S:g} s; see {directory / 'logs'}")


def stop_supervisor(state: StackState) -> None:
    """End the supervisor, which stops its parts in order; by SIGKILL at the deadline."""
    supervisor = state.supervisor
    with console.status("stopping the stack"):
        supervisor.kill(signal.SIGTERM)
        if wait_for(lambda: not supervisor.alive(), DOWN_WITHIN_S):
            return
        # Its parts die with it.
        supervisor.kill(signal.SIGKILL)
        if not wait_for(lambda: not supervisor.alive(), KILLED_WITHIN_S):
            raise StackError(f"the supervisor (pid {supervisor.pid}) cannot be killed")


def wait_for(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def print_failures(state: StackState) -> None:
    for part in state.parts:
        if part.detail and part.state in {State.FAILED, State.RESTARTING}:
            errors.print(part.detail, markup=False, highlight=False, soft_wrap=True)


def print_summary(directory: Path, state: StackState) -> None:
    console.print(parts_table(state.parts))
    console.print(f"logs: {directory / 'logs'}", soft_wrap=True)
    console.print(f"password of PostgreSQL: {directory / 'postgres' / 'password'}", soft_wrap=True)
    usual = Ports()
    for service in ("vending", "reporting"):
        port = getattr(state.ports, f"{service}_grpc")
        if port != getattr(usual, f"{service}_grpc"):
            console.print(f"export WATTVEND_{service.upper()}_ADDR=127.0.0.1:{port}")
    if any(part.name == "vending" for part in state.parts):
        site = os.path.relpath(directory / "site.yaml")
        console.print(f"next: .venv/bin/wattvend site apply {site}", soft_wrap=True)
        console.print("then: docs/operations/first-steps.md; make status, make down")
    else:
        console.print("next: make status, make down")


def main() -> None:
    try:
        app()
    except StackError as error:
        errors.print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
