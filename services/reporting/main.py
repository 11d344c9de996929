"""The wiring of reporting: the service, and the command that rebuilds its tables."""

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from functools import partial

import grpc.aio
from aiokafka.errors import KafkaError

from services.common.kernel.errors import WattvendError
from services.common.runtime import grpc as product_grpc
from services.common.runtime import logs
from services.common.runtime.clock import SystemClock
from services.common.runtime.postgres import UNREACHABLE
from services.common.runtime.service import EXIT_FAILED, Runtime, run
from services.common.runtime.settings import load
from services.reporting.adapters import database, fleet_api, preview_api, queries
from services.reporting.adapters.api import ReportingServicer
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.exports import api as exports_api
from services.reporting.adapters.exports import store as exports_store
from services.reporting.adapters.exports.api import ExportServicer
from services.reporting.adapters.fleet import Fleet
from services.reporting.adapters.fleet_api import FleetServicer
from services.reporting.adapters.metrics import Metrics
from services.reporting.adapters.preview_api import PreviewServicer
from services.reporting.adapters.projector import Projector, Source
from services.reporting.adapters.rebuild import rebuild
from services.reporting.config import ReportingSettings
from wattvend.reporting.v1 import (
    exports_pb2_grpc,
    fleet_pb2_grpc,
    previews_pb2_grpc,
    reporting_pb2,
    reporting_pb2_grpc,
)

PROGRESS_EVERY_MS = 1_000
_SERVICES = [
    reporting_pb2.DESCRIPTOR.services_by_name["ReportingService"].full_name,
    fleet_api.SERVICE_NAME,
    preview_api.SERVICE_NAME,
    exports_api.SERVICE_NAME,
]


class RebuildSettings(ReportingSettings):
    """What the rebuild command needs: it listens nowhere, and no process has its name."""

    instance: str = "rebuild"
    http_port: int = 0
    grpc_port: int = 0


def source_of(settings: ReportingSettings) -> Source:
    """Return where the log and the tables are."""
    return Source(
        kafka_bootstrap=settings.kafka_bootstrap,
        postgres_dsn=settings.postgres_dsn.get_secret_value(),
        postgres_schema=settings.postgres_schema,
        instance=settings.instance,
        batch_records_max=settings.batch_records_max,
        skip=settings.skipped,
    )


async def wire(settings: ReportingSettings, runtime: Runtime, stack: AsyncExitStack) -> None:
    """Start projecting and answering; return when what stood in the log is in the tables."""
    source = source_of(settings)
    commits, metrics = Commits(), Metrics(runtime.metrics)
    runtime.health.not_ready("projection", "starting")
    projector = Projector(
        source,
        logger=runtime.log,
        clock=runtime.clock,
        health=runtime.health,
        metrics=metrics,
        commits=commits,
        stopping=runtime.stopping,
    )
    connections = await stack.enter_async_context(
        queries.pool(
            source.postgres_dsn,
            source.postgres_schema,
            name=f"wattvend-reporting-queries {settings.instance}",
            size_max=settings.readers_max,
        )
    )
    asked = queries.Queries(connections)
    servicer = ReportingServicer(asked, commits)
    fleet = FleetServicer(Fleet(asked), commits)
    exports = await _exports(settings, runtime, stack, metrics, (Fleet(asked), commits))
    previews = PreviewServicer(asked, runtime.clock)

    def register(server: grpc.aio.Server) -> None:
        reporting_pb2_grpc.add_ReportingServiceServicer_to_server(servicer, server)
        fleet_pb2_grpc.add_FleetServiceServicer_to_server(fleet, server)
        previews_pb2_grpc.add_PreviewServiceServicer_to_server(previews, server)
        exports_pb2_grpc.add_ExportServiceServicer_to_server(exports, server)

    await stack.enter_async_context(
        product_grpc.serving(settings, runtime.log, runtime.health, register, _SERVICES)
    )
    runtime.spawn(projector.run(), "projection")
    await projector.caught_up.wait()


async def _exports(
    settings: ReportingSettings,
    runtime: Runtime,
    stack: AsyncExitStack,
    metrics: Metrics,
    read: tuple[Fleet, Commits],
) -> ExportServicer:
    """Start keeping exports; return who writes and reads them. `read`: of what, and how new."""
    dsn = settings.postgres_dsn.get_secret_value()
    schema, name = exports_store.schema_of(settings.postgres_schema), settings.instance
    connections = await stack.enter_async_context(
        queries.pool(
            dsn,
            schema,
            name=f"wattvend-reporting-exports {name}",
            size_max=exports_api.AT_ONCE_MAX,
            writes=True,
        )
    )
    connected = partial(database.connected, dsn, schema, name=f"wattvend-reporting-keeper {name}")
    keeper = exports_store.Keeper(connected, schema, metrics)
    keep_days = settings.export_keep_days
    runtime.spawn(keeper.run(runtime.clock, keep_days, runtime.log), "exports")
    chunks = exports_store.Chunks(connections, metrics)
    return ExportServicer(*read, chunks, runtime.clock, keep_days)


async def rebuild_and_tell(settings: RebuildSettings, *, accept_loss: bool) -> int:
    """Rebuild with progress on standard error; return the exit code."""
    clock = SystemClock()
    shown_at_ms = 0
    began_at_ms = clock.monotonic_ms()

    def progress(done: int, total: int) -> None:
        nonlocal shown_at_ms
        if done < total and clock.monotonic_ms() - shown_at_ms < PROGRESS_EVERY_MS:
            return
        shown_at_ms = clock.monotonic_ms()
        percent = 100 * done // total if total else 100
        print(f"rebuild: {done} of {total} records ({percent} %)", file=sys.stderr)  # noqa: T201

    try:
        counts = await rebuild(source_of(settings), progress, accept_loss=accept_loss)
    except (WattvendError, KafkaError, *UNREACHABLE) as failed:
        print(  # noqa: T201
            f"rebuild failed, the tables are as they were: {failed or type(failed).__name__}",
            file=sys.stderr,
        )
        return EXIT_FAILED
    took_s = (clock.monotonic_ms() - began_at_ms) / 1000
    for table, rows in counts.items():
        print(f"{table:<18} {rows:>12} rows")  # noqa: T201
    print(f"rebuilt schema {settings.postgres_schema} in {took_s:.1f} s")  # noqa: T201
    return 0


def main() -> int:
    """Run the service, or rebuild its tables."""
    parser = argparse.ArgumentParser(prog="python -m services.reporting")
    commands = parser.add_subparsers(dest="command")
    again = commands.add_parser("rebuild", help="make every table anew from the log, and swap")
    again.add_argument(
        "--accept-loss",
        action="store_true",
        help="go on where retention removed records whose rows the tables still hold",
    )
    options = parser.parse_args()
    if options.command == "rebuild":
        rebuilding = load(RebuildSettings)
        logs.configure("reporting", rebuilding.instance, rebuilding.log_level)
        return asyncio.run(rebuild_and_tell(rebuilding, accept_loss=options.accept_loss))
    settings = load(ReportingSettings)
    return run("reporting", settings, lambda runtime, stack: wire(settings, runtime, stack))
