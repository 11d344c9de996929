"""Goal: reporting survives that PostgreSQL or Kafka goes away under load, and says so meanwhile.

Method: stories are told without end while PostgreSQL is killed or restarted beneath the real
service. The judge is the projection itself, told the whole log without a database; besides, what
was once seen in the tables must stay there.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from services.common.runtime.postgres import UNREACHABLE
from tests.recovery import reporting_judge as judge
from tests.recovery.faults import Fault, rounds
from tests.recovery.reporting_judge import Office, Teller
from tests.recovery.verdict import Verdict
from tests.recovery.workers import Worker

pytestmark = pytest.mark.stack

STORIES_BEFORE = 10
LOOK_S = 0.02


class Reader:
    """Somebody who looks at the receipts all the time and remembers each one."""

    def __init__(self) -> None:
        self.seen: dict[UUID, tuple[object, ...]] = {}
        self.away = 0

    async def look(self, office: Office) -> None:
        try:
            async with office.connected() as connection:
                while True:
                    for line in await connection.fetch("SELECT * FROM receipts"):
                        self.seen.setdefault(line["receipt_id"], tuple(line))
                    await asyncio.sleep(LOOK_S)
        except (*UNREACHABLE, asyncpg.PostgresError):
            self.away += 1

    @asynccontextmanager
    async def looking(self, office: Office) -> AsyncIterator[None]:
        async def look_on() -> None:
            while True:
                await self.look(office)
                await asyncio.sleep(LOOK_S)

        async with asyncio.TaskGroup() as group:
            task = group.create_task(look_on())
            yield
            task.cancel()

    async def judge(self, office: Office) -> Verdict:
        verdict = Verdict()
        async with office.connected() as connection:
            lines = await connection.fetch("SELECT * FROM receipts")
        there = {line["receipt_id"]: tuple(line) for line in lines}
        for receipt_id, line in self.seen.items():
            verdict.expect(there.get(receipt_id) == line, f"receipt {receipt_id} was there before")
        return verdict


@pytest.mark.fault("postgresql-killed-under-load")
async def test_postgresql_killed_under_load_the_tables_catch_up_and_are_right(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    reader = Reader()
    worker.start()
    await worker.wait_ready()
    async with teller.telling(), reader.looking(office):
        for _ in rounds(2):
            await judge.until_rows(office, "receipts", STORIES_BEFORE)
            await asyncio.to_thread(office.stack.kill9, "postgres")
            fault.tried += 1
            await judge.until_not_ready(worker)
            await asyncio.to_thread(office.stack.start, "postgres")
            await came_back(worker)
    await judge.everything_is_read(office)
    assert reader.away >= fault.tried
    (await judge.judged(office) + await reader.judge(office)).count(fault)


@pytest.mark.fault("postgresql-restarted-under-load")
async def test_postgresql_restarted_under_load_the_tables_catch_up_and_are_right(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    reader = Reader()
    worker.start()
    await worker.wait_ready()
    async with teller.telling(), reader.looking(office):
        for _ in rounds(1):
            await judge.until_rows(office, "receipts", STORIES_BEFORE)
            await asyncio.to_thread(office.stack.restart, "postgres")
            fault.tried += 1
            await judge.until_rows(office, "receipts", STORIES_BEFORE)
    await judge.everything_is_read(office)
    assert reader.away >= fault.tried
    (await judge.judged(office) + await reader.judge(office)).count(fault)
    assert not worker.ended(), worker.log_end


@pytest.mark.fault("reporting-loses-kafka")
async def test_while_kafka_is_away_it_is_not_ready_and_then_the_tables_catch_up(
    office: Office, teller: Teller, worker: Worker, fault: Fault
) -> None:
    worker.start()
    for _ in rounds(1):
        await teller.tell(STORIES_BEFORE)
        await judge.everything_is_read(office)
        await worker.wait_ready()
        await asyncio.to_thread(office.stack.kill9, "kafka")
        fault.tried += 1
        try:
            await judge.until_not_ready(worker)
        finally:
            await asyncio.to_thread(office.stack.start, "kafka")
        await came_back(worker)
        await teller.tell(STORIES_BEFORE)
        await judge.everything_is_read(office)
        (await judge.judged(office)).count(fault)


async def came_back(worker: Worker) -> None:
    began = time.monotonic()
    await worker.wait_ready()
    print(f"ready {time.monotonic() - began:.1f} s after what was away came back")
