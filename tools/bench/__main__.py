"""`python -m tools.bench [NAME]`: measure all, or one of Bench; show a table, keep it."""

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from aiokafka.errors import KafkaError

from services.common.kernel.errors import WattvendError
from tools.bench import curves, machine, metering, pipeline, restart, vending
from tools.bench.figures import Figure, write
from tools.bench.machine import Cores
from tools.bench.screen import Screen, console
from tools.bench.stand import BUILD, running
from tools.client import Refused
from tools.stack.errors import StackError
from tools.stack.services import ROOT
from tools.stack.show import fetch_with_progress


class Bench(StrEnum):
    """What can be measured."""

    METERING = "metering"
    CURVES = "curves"
    PIPELINE = "pipeline"
    VENDING = "vending"
    RESTART = "restart"


async def _metering(screen: Screen, cores: Cores) -> list[Figure]:
    place = _place(screen)
    return await metering.measure(lambda: running(place, cores), screen, metering.Plan())


async def _curves(screen: Screen, cores: Cores) -> list[Figure]:
    return await curves.measure(cores, screen, curves.Plan())


async def _pipeline(screen: Screen, cores: Cores) -> list[Figure]:
    async with running(STACK, cores, pipeline.services) as stand:
        return await pipeline.measure(stand, screen, pipeline.Plan())


async def _vending(screen: Screen, cores: Cores) -> list[Figure]:
    # A book stands on PostgreSQL here: it is no reader that may wait.
    async with running(STACK, cores, postgres_niceness=0) as stand:
        return await vending.measure(stand, screen, vending.Plan())


async def _restart(screen: Screen, cores: Cores) -> list[Figure]:
    # On PostgreSQL a book is started too: it is no reader that may wait.
    async with running(STACK, cores, postgres_niceness=0) as stand:
        return await restart.measure(stand, screen, restart.Plan())


def _place(screen: Screen) -> Path:
    """Return where Kafka keeps what metering writes: where a disk that is busy holds nobody up."""
    place = machine.in_memory("wattvend-bench", metering.ROOM_BYTES)
    if place:
        screen.note(f"Kafka's files are in memory, in {place}")
    return place or STACK


STACK = BUILD / "stack"
EXPECTED = (StackError, WattvendError, Refused, TimeoutError, OSError, KafkaError)
ABOUT = {
    Bench.METERING: "the service: {cores}",
    Bench.CURVES: "metering's work alone: {cores}",
    Bench.PIPELINE: "the whole product; no process is bound to a core",
    Bench.VENDING: "the service and the empty server: {cores}",
    Bench.RESTART: "the service: {cores}",
}
MEASURES = {
    Bench.METERING: _metering,
    Bench.CURVES: _curves,
    Bench.PIPELINE: _pipeline,
    Bench.VENDING: _vending,
    Bench.RESTART: _restart,
}


def main(
    only: Annotated[Bench | None, typer.Argument(help="only this one; else all of them")] = None,
) -> None:
    """Measure how fast the product is on this machine. A missed bar is shown, no failure."""
    terminal = console()
    screen = Screen(terminal)
    cores = Cores.here()
    try:
        fetch_with_progress(terminal)
        screen.note(machine.description())
        for bench in [only] if only else list(Bench):
            if warning := machine.busy():
                screen.note(warning, "yellow")
            with screen.working():
                figures = asyncio.run(MEASURES[bench](screen, cores))
            write(BUILD / f"{bench}.json", figures)
            screen.table(bench, ABOUT[bench].format(cores=cores), figures)
    except (KeyboardInterrupt, asyncio.CancelledError):
        screen.note("stopped; everything it started is gone", "yellow")
        raise SystemExit(130) from None
    except EXPECTED as failed:
        screen.note(f"The bench failed: {failed}", "bold red")
        screen.note(f"The logs of each part are in {STACK / 'logs'}, or where Kafka's files are")
        raise SystemExit(1) from None
    screen.note(f"kept in {BUILD.relative_to(ROOT)}/")


if __name__ == "__main__":
    typer.run(main)
