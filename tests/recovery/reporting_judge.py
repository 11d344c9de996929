"""What the recovery tests of reporting share: stories on the bus, processes, and a judge.

The judge is the projection itself, told the whole log once and in order, without a database: the
tables must hold its rows and no others, and the positions the ends of the log.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from aiokafka import AIOKafkaProducer

from services.common.runtime import kafka
from services.reporting.adapters import database, log
from services.reporting.adapters.database import Place
from services.reporting.domain.projections import TOPICS
from services.reporting.domain.rows import TABLES, Json, newest
from tests.recovery import bus
from tests.recovery.verdict import Verdict
from tests.recovery.workers import Worker, until, until_async
from tests.unit.reporting_records import Sent, Story
from tools.stack.background import BackgroundStack

BATCH_RECORDS = 20
"""So that a story is more than one transaction."""
BETWEEN_STORIES_S = 0.01

Rows = dict[tuple[Any, ...], tuple[Any, ...]]
"""Key → row."""
Tables = dict[str, Rows]


@dataclass
class Office:
    """The stack, one schema in its PostgreSQL, and stories told one after the other."""

    stack: BackgroundStack
    directory: Path
    run: str = field(default_factory=lambda: uuid4().hex[:10])
    told: int = 0

    @property
    def schema(self) -> str:
        return f"reporting_{self.run}"

    def worker(self, instance: str = "reporting-0", command: str = "") -> Worker:
        """Return a process that is not started."""
        settings = {
            "KAFKA_BOOTSTRAP": self.stack.kafka_bootstrap,
            "POSTGRES_DSN": self.stack.postgres_dsn,
            "POSTGRES_SCHEMA": self.schema,
            "BATCH_RECORDS_MAX": str(BATCH_RECORDS),
            "GRPC_PORT": "0",
        }
        return Worker(
            "reporting",
            settings,
            self.directory,
            instance,
            name=f"{instance}-{command}",
            command=[command] if command else (),
        )

    def stories(self, count: int) -> list[Sent]:
        """Return the records of that many stories, each of an account of its own."""
        return [sent for _ in range(count) for sent in self.story().all()]

    def story(self) -> Story:
        self.told += 1
        return Story(f"{self.run}-{self.told}")

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        dsn = self.stack.postgres_dsn
        async with database.connected(dsn, self.schema, name="judge") as connection:
            yield connection

    async def drop(self) -> None:
        async with self.connected() as connection:
            for name in (self.schema, f"{self.schema}_next"):
                await connection.execute(f'DROP SCHEMA IF EXISTS "{name}" CASCADE')


class Teller:
    """Writes stories to the bus."""

    def __init__(self, producer: AIOKafkaProducer, office: Office) -> None:
        self._producer = producer
        self._office = office

    async def tell(self, count: int) -> None:
        await self.send(self._office.stories(count))

    async def send(self, sent: Iterable[Sent]) -> None:
        """Write and wait for the acknowledgements."""
        flights = [
            await self._producer.send(
                one.topic,
                one.payload(),
                key=one.key.encode(),
                partition=one.partition,
                headers=one.headers(),
            )
            for one in sent
        ]
        await kafka.all_acknowledged(flights)

    @asynccontextmanager
    async def telling(self) -> AsyncIterator[None]:
        """Tell one story after the other."""
        ending = asyncio.Event()

        async def tell() -> None:
            while not ending.is_set():
                await self.tell(1)
                await asyncio.sleep(BETWEEN_STORIES_S)

        async with asyncio.TaskGroup() as group:
            group.create_task(tell())
            yield
            ending.set()


async def everything_is_read(office: Office) -> None:
    """Return when the stored positions are the ends of the log."""

    async def reached() -> bool:
        ends = await log_ends(office)
        async with office.connected() as connection:
            try:
                held = await database.positions(connection)
            except asyncpg.UndefinedTableError:
                return False
        return all(place in held and held[place].next_offset >= end for place, end in ends.items())

    await until_async(reached, "everything is in the tables")


async def log_ends(office: Office) -> dict[Place, int]:
    async with log.reading(
        office.stack.kafka_bootstrap, client_id="judge", skip=frozenset(), records_max=1
    ) as reader:
        return await reader.ends()


async def until_rows(office: Office, table: str, more: int) -> None:
    """Return when a table has that many more rows."""

    async def count() -> int:
        async with office.connected() as connection:
            found: int = await connection.fetchval(f"SELECT count(*) FROM {table}")
            return found

    enough = await count() + more

    async def reached() -> bool:
        return await count() >= enough

    await until_async(reached, f"{table} has {enough} rows")


async def until_not_ready(worker: Worker) -> None:
    await until(lambda: not worker.is_ready(), f"{worker.instance} says that it is not ready")


async def silent_for_s(office: Office, instance: str) -> int:
    """Return for how long an instance's writing session, which is there, has said nothing."""
    async with office.connected() as connection:
        found: int | None = await connection.fetchval(
            "SELECT extract(epoch FROM now() - state_change)::integer FROM pg_stat_activity "
            "WHERE application_name = $1",
            f"wattvend-reporting {instance}",
        )
    return found or 0


# --- the judge ------------------------------------------------------------------------------------


async def tables(office: Office) -> Tables:
    """Return what stands in PostgreSQL."""
    found: Tables = {}
    async with office.connected() as connection:
        for table in TABLES.values():
            columns = ", ".join(table.columns)
            lines = await connection.fetch(f"SELECT {columns} FROM {table.name}")
            rows = [table.row(*map(_plain, table.columns, line)) for line in lines]
            found[table.name] = {table.key_of(row): tuple(row) for row in rows}
        lines = await connection.fetch("SELECT topic, partition, next_offset FROM positions")
        found["positions"] = {(line[0], line[1]): tuple(line) for line in lines}
    return found


async def undisturbed(office: Office) -> Tables:
    """Return what a projection of the whole log, once and in order, leaves in the tables."""
    found: Tables = {table.name: {} for table in TABLES.values()}
    records = await bus.read(office.stack.kafka_bootstrap, *TOPICS)
    standing = newest(row for record in records for row in log.rows_of(record))
    for table, rows in standing.items():
        plain = [table.row(*map(_plain, table.columns, row)) for row in rows]
        found[table.name] = {table.key_of(row): tuple(row) for row in plain}
    ends = await log_ends(office)
    found["positions"] = {tuple(place): (*place, end) for place, end in ends.items()}
    return found


def _plain(column: str, value: Any) -> Any:
    """Return a value as it can be compared: PostgreSQL writes JSON its own way."""
    if column != "data":
        return value
    return Json(json.dumps(json.loads(value), sort_keys=True))


def judge_tables(wanted: Tables, found: Tables) -> Verdict:
    """Hold rows against rows, all of them."""
    verdict = Verdict()
    for name, rows in wanted.items():
        for key, row in rows.items():
            there = found[name].get(key)
            if there is None:
                verdict.expect(False, f"{name} {key} is missing")
            else:
                verdict.expect(there == row, f"{name} {key} is {there}, not {row}")
        verdict.wrong += [f"{name} {key} is nobody's" for key in found[name].keys() - rows.keys()]
    return verdict


async def judged(office: Office) -> Verdict:
    """Judge tables that are caught up with a log that stands still."""
    return judge_tables(await undisturbed(office), await tables(office))
