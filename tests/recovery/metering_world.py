"""Where the recovery tests of metering take place: its topics, emptied; a history; workers."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import time_ns
from typing import Any
from urllib.request import urlopen

from aiokafka import AIOKafkaProducer, OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.group import LeaveGroupRequest

from services.common.runtime import kafka, topics
from services.metering.domain.rows import ACCOUNT_PREFIX, HEADER_KEY, header_of
from tests.recovery import metering_judge
from tests.recovery.faults import Fault
from tests.recovery.metering_history import SHARDS, Entry, History
from tests.recovery.metering_judge import CHANGELOG, LOG, OUTPUTS, Said, Verdict, end_offsets
from tests.recovery.workers import Worker, until, until_async

GROUP = "metering"
SEED = 20260
PENDING = re.compile(r'^wattvend_metering_pending_records{shard="(\d+)"}', re.MULTILINE)


class Feeder:
    """Writes entries to the shard log."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def write(self, entries: Iterable[Entry]) -> None:
        """Write and wait for the acknowledgements."""
        flights = [
            await kafka.send(
                self._producer,
                LOG,
                entry.subject,
                entry.value,
                key=str(entry.shard),
                partition=entry.shard,
                event_id=entry.event_id,
                occurred_at_ms=0,
            )
            for entry in entries
        ]
        await kafka.all_acknowledged(flights)

    async def write_rows(self, shard: int, rows: Iterable[Said]) -> None:
        """Write rows to the changelog, as a worker does."""
        flights = [
            await self._producer.send(CHANGELOG, value, key=key, partition=shard)
            for key, value in rows
        ]
        await kafka.all_acknowledged(flights)


@dataclass
class World:
    """The topics, what is written to them, and who reads it."""

    bootstrap: str
    directory: Path
    feeder: Feeder
    history: History
    workers: list[Worker] = field(default_factory=list)

    def worker(self, instance: str = "metering-0", *, name: str = "", **settings: str) -> Worker:
        """Return a worker that is not started; it is ended with the world."""
        given = {"KAFKA_BOOTSTRAP": self.bootstrap, **settings}
        worker = Worker("metering", given, self.directory, instance, name)
        self.workers.append(worker)
        return worker

    async def open(self) -> None:
        """Write the facts that every account needs."""
        await self.feeder.write(self.history.opening())

    async def feed(self, steps: int) -> None:
        """Let the history go on."""
        await self.feeder.write(self.history.steps(steps))

    async def caught_up(self, *supervised: Worker) -> None:
        """Wait until the group has committed the log to its end; start `supervised` anew."""

        async def is_caught_up() -> bool:
            for worker in supervised:
                if worker.ended():
                    worker.start()
            return not await lags(self.bootstrap)

        await until_async(is_caught_up, "the log is absorbed")

    async def absorbed(self) -> None:
        """Wait until the last record of each shard is, by its header row; committed or not."""

        async def is_absorbed() -> bool:
            ends = await end_offsets(self.bootstrap, LOG)
            rows = await metering_judge.actual_rows(self.bootstrap)
            headers = {shard: row for (shard, key), row in rows.items() if key == HEADER_KEY}
            return all(
                tp.partition in headers and header_of(headers[tp.partition])[0] == end - 1
                for tp, end in ends.items()
            )

        await until_async(is_absorbed, "the last record is absorbed")

    async def has_all(self, worker: Worker) -> None:
        """Wait until every shard is this worker's."""
        await until(lambda: len(shards_of(worker)) == SHARDS, f"{worker.instance} has every shard")

    async def grown(self, topic: str, ends: dict[TopicPartition, int]) -> None:
        """Wait until the topic has grown beyond `ends`."""
        await until_async(partial(has_grown, self.bootstrap, topic, ends), f"{topic} grows")

    async def old_rows_come_last(self, shard: int) -> None:
        """Write old versions of account rows behind the newest, as a worker may that slept."""
        versions = (await metering_judge.stored_rows(self.bootstrap))[shard]
        versions = [row for row in versions if row[0].startswith(ACCOUNT_PREFIX)]
        first, last = dict(reversed(versions)), dict(versions)
        old = [row for row in first.items() if row not in last.items()]
        assert old, "no account of the shard has two versions"
        await self.feeder.write_rows(shard, old)

    async def compact(self) -> None:
        """Do what the broker's log cleaner does when its time has come: the last rows stay."""
        versions = await metering_judge.stored_rows(self.bootstrap)
        await without_topics(self.bootstrap, {CHANGELOG})
        for shard, rows in versions.items():
            await self.feeder.write_rows(shard, dict(rows).items())

    async def judged(self, fault: Fault | None = None) -> Verdict:
        """Judge everything; count it to the fault, and fail where anything is lost."""
        verdict = await self.verdict()
        if fault is not None:
            fault.judged += verdict.judged
            fault.lost += verdict.lost
        assert not verdict.lost, verdict
        return verdict

    async def verdict(self) -> Verdict:
        """Judge everything; again where the log grew meanwhile: balances are due by the clock."""
        while True:
            ends = await end_offsets(self.bootstrap, LOG)
            verdict = await metering_judge.judge(self.bootstrap)
            if ends == await end_offsets(self.bootstrap, LOG):
                return verdict
            await self.absorbed()


@asynccontextmanager
async def world(bootstrap: str, directory: Path) -> AsyncIterator[World]:
    """Yield a world in which nothing has happened yet."""
    await fresh_topics(bootstrap)
    async with kafka.producer(bootstrap, client_id="history") as producer:
        made = World(bootstrap, directory, Feeder(producer), History(SEED, time_ns() // 1_000_000))
        try:
            yield made
        finally:
            for worker in made.workers:
                worker.end()


async def fresh_topics(bootstrap: str) -> None:
    """Let metering's topics be empty; their committed offsets go with them."""
    await forget_members(bootstrap)
    await without_topics(bootstrap, {LOG, f"{LOG}.dlq", CHANGELOG, *OUTPUTS})


async def without_topics(bootstrap: str, names: set[str]) -> None:
    """Delete what stands in the topics."""
    async with admin_of(bootstrap) as admin:
        there = names & set(await admin.list_topics())
        if there:
            await admin.delete_topics(sorted(there))
            await until_async(lambda: _gone(admin, there), "the topics are deleted")
    await topics.create(bootstrap)


async def _gone(admin: AIOKafkaAdminClient, names: set[str]) -> bool:
    return not names & set(await admin.list_topics())


async def forget_members(bootstrap: str) -> None:
    """Let the group forget the workers of an earlier test: it waits a session for dead ones."""
    answer: Any
    async with admin_of(bootstrap) as admin:
        try:
            node = await admin.find_coordinator(GROUP)
            (answer,) = await admin.describe_consumer_groups([GROUP], node)
        except GroupCoordinatorNotAvailableError:
            return  # the first group of a young broker
        ((*_, members),) = [group[:6] for group in answer.groups]
        for member_id in [member[0] for member in members]:
            await admin._send_request(LeaveGroupRequest(GROUP, member_id), node)


def shards_of(worker: Worker) -> set[int]:
    """Return the shards that a worker says it has."""
    with urlopen(f"http://127.0.0.1:{worker.http_port}/metrics", timeout=1) as answer:
        return {int(shard) for shard in PENDING.findall(answer.read().decode())}


async def commit(bootstrap: str, offsets: Mapping[TopicPartition, int]) -> None:
    """Let the group, which nobody is in, stand at the offsets."""
    await forget_members(bootstrap)
    async with kafka.consumer(bootstrap, client_id="commit", group=GROUP) as reader:
        reader.assign(list(offsets))
        await reader.commit({tp: OffsetAndMetadata(end, "") for tp, end in offsets.items()})


async def lags(bootstrap: str) -> dict[int, int]:
    """Return shard → records that are not committed, where there are any."""
    ends = await end_offsets(bootstrap, LOG)
    async with admin_of(bootstrap) as admin:
        try:
            committed = await admin.list_consumer_group_offsets(GROUP)
        except GroupCoordinatorNotAvailableError:
            committed = {}  # the first group of a young broker
    found = {tp: max(0, at.offset) for tp, at in committed.items()}
    return {
        tp.partition: end - found.get(tp, 0) for tp, end in ends.items() if end > found.get(tp, 0)
    }


@asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def has_grown(bootstrap: str, topic: str, ends: dict[TopicPartition, int]) -> bool:
    """Say whether a topic has records beyond `ends`."""
    return await end_offsets(bootstrap, topic) != ends
