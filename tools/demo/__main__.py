"""`python -m tools.demo`: start everything, play the story, judge it, clean up."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated, Self
from uuid import uuid4

import aiohttp
import typer
from aiokafka.errors import KafkaError
from rich.console import Console
from rich.live import Live

from services.common.kernel.errors import WattvendError
from tools.client import Refused, connect
from tools.demo.fleet import TIMEOUT_S, Fleet
from tools.demo.observe import Observer
from tools.demo.plan import make_plan
from tools.demo.screen import Screen
from tools.demo.story import Story
from tools.fleet.site import as_yaml
from tools.stack.errors import StackError
from tools.stack.ports import Ports
from tools.stack.process import PartStatus, Restart
from tools.stack.services import Addresses, ServiceSpec, fleet_spec, service_specs
from tools.stack.show import fetch_with_progress, parts_table
from tools.stack.stack import LocalStack

DIRECTORY = Path("build/demo").absolute()
CALLER = "demo-operator"
SECOND_CALLER = "demo-manager"

EXPECTED = (StackError, WattvendError, Refused, TimeoutError, OSError, KafkaError)


class StartUp:
    """The parts as they come up: a table that changes in place, or a line each in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._parts: dict[str, PartStatus] = {}
        self._live = Live(console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def watch(self, status: PartStatus) -> None:
        """Take note of a part's new state."""
        self._parts[status.name] = status
        if self._live.is_started:
            self._live.update(parts_table(self._parts.values()))


async def _play(console: Console, *, kills: bool) -> bool:
    screen = Screen(console)
    screen.title()
    fetch_with_progress(console)
    ports = Ports.free()
    plan = make_plan(ports.fleet_lines)

    def services(at: Addresses) -> list[ServiceSpec]:
        config = at.directory / "fleet.yaml"
        config.write_text(as_yaml(plan.fleet))
        return [*service_specs(at), fleet_spec(at, config)]

    async with AsyncExitStack() as stack:
        with StartUp(console) as start:
            local = await stack.enter_async_context(
                LocalStack(
                    DIRECTORY,
                    ports,
                    services=services,
                    restart=Restart(),
                    fresh=True,
                    watch=start.watch,
                )
            )
        at = local.addresses
        screen.say(f"Kafka, PostgreSQL, MQTT, five services and a fleet run; logs: {local.logs}")
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        )
        clients = await stack.enter_async_context(connect(at.vending, at.reporting, CALLER))
        second = await stack.enter_async_context(connect(at.vending, at.reporting, SECOND_CALLER))
        observer = Observer()
        following = asyncio.create_task(observer.follow(at.kafka_bootstrap))
        stack.callback(following.cancel)
        fleet = Fleet(session, f"http://127.0.0.1:{at.ports.fleet_http}")
        kill = local.kill9 if kills else None
        return await Story(clients, second, fleet, observer, screen, plan, uuid4(), kill).run()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield what really failed, out of the groups of tasks it failed in."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


def main(
    kills: Annotated[
        bool, typer.Option("--kills", help="SIGKILL four services at the story's turns")
    ] = False,
) -> None:
    """Show the whole product at work on this machine, in less than two minutes."""
    console = Console()
    logs = f"The logs of each part are in {DIRECTORY / 'logs'}"
    try:
        held = asyncio.run(_play(console, kills=kills))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("[yellow]stopped; everything it started is gone[/]")
        raise SystemExit(130) from None
    except BaseException as failed:
        causes = list(_causes(failed))
        if not all(isinstance(cause, EXPECTED) for cause in causes):
            raise
        for cause in causes:
            console.print(f"[bold red]The demo failed:[/] {cause}", highlight=False)
        console.print(logs)
        raise SystemExit(1) from None
    if not held:
        console.print(f"[bold red]A check failed.[/] {logs}")
        raise SystemExit(1)
    console.print("[bold green]Every check holds.[/] Next: make up, then .venv/bin/wattvend --help")


if __name__ == "__main__":
    typer.run(main)
