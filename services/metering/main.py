"""The wiring of metering, and its command line."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from faust.types import TP

from services.common.runtime import encoding, service
from services.common.runtime.fence import ClockFence
from services.common.runtime.settings import load
from services.metering.adapters import app as faust_app
from services.metering.adapters import changelog, decoding, seeding
from services.metering.adapters.exits import Exit, leave
from services.metering.adapters.metrics import Metrics
from services.metering.adapters.shell import Shell
from services.metering.adapters.wakes import POLL_INTERVAL_S
from services.metering.config import Settings

NAME = "metering"
SWITCH_S = 0.0005
"""How long faust's thread, which fetches, waits for the one that absorbs; CPython's 5 ms are what
several readings take.
"""
NOISY_LOGGERS = ("faust", "mode", faust_app.__name__)


async def wire(settings: Settings, runtime: service.Runtime, stack: AsyncExitStack) -> None:
    """Start faust around the shell; return when it is ready."""
    for noisy in NOISY_LOGGERS:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    fence = ClockFence(runtime.clock)
    fence.install()
    fence.heed_namesake()
    faust_app.heartbeat_while_recovering()
    changelog.read_parsed()
    encoding.join_once()
    app = faust_app.build(settings)
    app.health = runtime.health
    app.health.not_ready(faust_app.PARTITIONS, "recovering")
    app.shell = Shell(
        settings,
        clock=runtime.clock,
        metrics=Metrics(runtime.metrics),
        producer=app.client,
        read_rows=partial(
            changelog.read_rows,
            settings.kafka_bootstrap,
            client_id=f"{settings.instance}-recovery",
        ),
        log_start=partial(_log_start, app),
    )
    stack.push_async_callback(app.stop)
    ready = asyncio.Event()
    runtime.spawn(_live(app, ready), "faust")
    await ready.wait()
    runtime.spawn(_look_after(app), "wakes and gauges")


async def _live(app: faust_app.App, ready: asyncio.Event) -> None:
    """Run faust; what crashes it ends the process before it can commit anything more."""
    try:
        await app.start()
    except Exception as failed:  # noqa: BLE001 - faust raises what its parts raise
        leave(Exit.FAILED, "faust did not start", error=repr(failed))
    if not app.crashed:
        ready.set()
    await app.wait_until_stopped()
    if app.crashed:
        leave(Exit.FAILED, "faust crashed", error=repr(app.crash_reason))


async def _log_start(app: faust_app.App, shard: int) -> int:
    partition = TP(decoding.TOPIC, shard)
    return int((await app.consumer.earliest_offsets(partition))[partition])


async def _look_after(app: faust_app.App) -> None:
    """Send wakes that are due, pack facts, and keep the gauges."""

    def log_end(shard: int) -> int | None:
        end: int | None = app.consumer.highwater(TP(decoding.TOPIC, shard))
        return end

    while True:
        await app.shell.wake_due_shards()
        app.shell.pack_facts()
        app.shell.measure(log_end)
        await asyncio.sleep(POLL_INTERVAL_S)


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what the command line asks for; without a command that is to run the service."""
    parser = argparse.ArgumentParser(
        prog="python -m services.metering",
        description="Charges, balances, alarms. All settings are environment variables.",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    seed = commands.add_parser(
        "seed",
        help="write the rows of a shard anew from what the book posted; stop metering first",
    )
    seed.add_argument(
        "--from",
        dest="file",
        type=Path,
        required=True,
        metavar="FILE",
        help="as `python -m services.vending seeds` wrote it",
    )
    seed.add_argument("--dry-run", action="store_true", help="say what would be written")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run metering until it is told to stop, or do what is asked for; return the exit code."""
    chosen = parsed(arguments)
    settings = load(Settings)
    if chosen.command == "seed":
        return asyncio.run(seeding.seed(settings, chosen.file, is_dry=chosen.dry_run))
    sys.setswitchinterval(SWITCH_S)
    return service.run(NAME, settings, partial(wire, settings))
