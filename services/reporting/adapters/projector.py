"""The running projection: log → rows, for as long as the service lives."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import structlog
from aiokafka.errors import KafkaError

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Retriable, WattvendError
from services.common.kernel.values import value_class
from services.common.runtime import points, postgres
from services.common.runtime.http import Health
from services.common.runtime.postgres import UNREACHABLE
from services.reporting.adapters import database, log
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.database import Place, Span
from services.reporting.adapters.metrics import Metrics
from services.reporting.domain.rows import AccountLevelRow

WRITER = "writer"
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 5.0


@value_class
class Source:
    """Where the log and the tables are, and how much goes into one transaction."""

    kafka_bootstrap: str
    postgres_dsn: str
    postgres_schema: str
    instance: str
    batch_records_max: int
    skip: log.Skip


class Projector:
    """Reads the log and writes the tables until it is cancelled.

    Whatever is away, it starts again from the stored positions, so nothing is lost and nothing is
    written twice. Raises Poison and LogDisagrees: those need a person.
    """

    def __init__(
        self,
        source: Source,
        *,
        logger: structlog.stdlib.BoundLogger,
        clock: Clock,
        health: Health,
        metrics: Metrics,
        commits: Commits,
        stopping: asyncio.Event,
    ) -> None:
        self._source = source
        self._logger = logger
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._commits = commits
        self._stopping = stopping
        self._backoff_s = BACKOFF_FIRST_S
        self.migrated = asyncio.Event()
        self.caught_up = asyncio.Event()

    async def run(self) -> None:
        """Project until the service stops; a stop ends between two transactions."""
        while not self._stopping.is_set():
            try:
                async with self._opened() as (writer, reader):
                    await self._project(writer, reader)
            except asyncpg.DataError:
                raise  # asyncpg counts it among the interface's errors, but it will not mend itself
            except (*UNREACHABLE, KafkaError, Retriable) as away:
                self._metrics.restarts.inc()
                why = str(away) or type(away).__name__
                self._commits.as_of_ms = 0
                self._health.not_ready("projection", why)
                self._logger.warning(
                    "the projection starts again", why=why, after_s=self._backoff_s
                )
                await database.pause(self._backoff_s, self._stopping)
                self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)
            except asyncpg.PostgresError as refused:
                raise WattvendError(
                    f"PostgreSQL refuses: {refused} ({type(refused).__name__}). Check "
                    "WATTVEND_REPORTING_POSTGRES_DSN and what its user may do"
                ) from refused

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[tuple[database.Writer, log.Log]]:
        source = self._source
        async with (
            database.connected(
                source.postgres_dsn,
                source.postgres_schema,
                name=f"wattvend-reporting {source.instance}",
                speaks=True,
            ) as connection,
            log.reading(
                source.kafka_bootstrap,
                client_id=f"reporting-{source.instance}",
                skip=source.skip,
                records_max=source.batch_records_max,
            ) as reader,
        ):
            if not await postgres.try_lock(connection, WRITER, source.postgres_schema):
                holder = await postgres.lock_holder(connection, WRITER, source.postgres_schema)
                raise Retriable(
                    f"{holder} writes schema {source.postgres_schema}; "
                    "waiting until it stops (one instance writes, others stand by)"
                )
            await database.migrate(connection, source.postgres_schema)
            self.migrated.set()
            # First the writer: were the tables swapped after this, it could not write.
            writer = await database.Writer.opened(connection)
            reader.start(await held_positions(connection, reader))
            yield writer, reader

    async def _project(self, writer: database.Writer, reader: log.Log) -> None:
        targets = await reader.ends()
        while not self._stopping.is_set():
            if targets and all(reader.at[place] >= end for place, end in targets.items()):
                targets = {}
                self.caught_up.set()
                self._health.ready("projection")
                self._backoff_s = BACKOFF_FIRST_S
                self._logger.info("caught up with the log")
            elif targets:
                behind = sum(end - reader.at[place] for place, end in targets.items())
                self._health.not_ready("projection", f"{behind} records behind")
            asked_at_ms = self._clock.now_ms()
            batch = await reader.batch()
            if batch is None:
                await writer.check()
                await reader.check()
            else:
                await self._commit(writer, batch)
            for topic, records in reader.lag().items():
                self._metrics.lag.labels(topic).set(records)
            as_of_ms = reader.as_of_ms(asked_at_ms)
            self._commits.as_of_ms = max(self._commits.as_of_ms, as_of_ms)

    async def _commit(self, writer: database.Writer, batch: log.Batch) -> None:
        points.point("read")
        with self._metrics.commit.time():
            written = await writer.write(batch.rows, batch.advanced)
        for table, rows in written.items():
            self._metrics.rows.labels(table).inc(rows)
        self._metrics.records.inc(batch.records)
        self._metrics.delay.observe(max(0, self._clock.now_ms() - batch.newest_ms) / 1000)
        for topic, partition, offset, why in batch.skipped:
            self._metrics.skipped.inc()
            self._logger.error(
                "stepped over a record, as WATTVEND_REPORTING_SKIP says",
                topic=topic,
                partition=partition,
                offset=offset,
                why=why,
            )
        self._commits.tell(row.account_id for row in batch.rows if isinstance(row, AccountLevelRow))


async def held_positions(connection: asyncpg.Connection, reader: log.Log) -> dict[Place, Span]:
    """Return the stored positions, begun where a partition was never read.

    Raises LogDisagrees where the log cannot be the one the tables were read from.
    """
    held = await database.positions(connection)
    beginnings = await reader.beginnings()
    log.check(held, beginnings, await reader.ends())
    fresh = {place: offset for place, offset in beginnings.items() if place not in held}
    await database.begin(connection, fresh)
    return held | {place: Span(offset, offset) for place, offset in fresh.items()}
