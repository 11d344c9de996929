"""Rules of vending, switched off in a child process: see tests/recovery/crashing.py."""

import asyncio
import fcntl
from collections.abc import Iterable, Sequence
from typing import Any

from services.common.runtime import kafka, points
from services.common.runtime.kafka import Outgoing
from services.vending import main
from services.vending.adapters.bus import KafkaPublisher
from services.vending.adapters.postgres_store import PostgresEventStore
from services.vending.adapters.sqlite_file import SqliteFile
from services.vending.application import relay
from services.vending.application.office import Office
from services.vending.application.relay import Relay
from services.vending.domain import account_commands
from tests.recovery.patching import patch


def forget_requests() -> None:
    """Take a command that was answered before for a new one."""
    patch(account_commands, answered=lambda *_: None)


def answer_before_the_commit() -> None:
    """Answer whoever appends before COMMIT, for which the disk takes its time."""
    commit = SqliteFile._commit

    async def early(self: SqliteFile, group: list[Any]) -> None:
        if not any("append" in write.work.__qualname__ for write in group):
            await commit(self, group)
            return
        self._writer.execute("BEGIN IMMEDIATE")
        for write, result in self._execute(group):
            write.done.set_result(result)
        await asyncio.Event().wait()

    patch(SqliteFile, _commit=early)


def answer_before_postgresql() -> None:
    """Answer whoever appends before PostgreSQL has heard of it."""

    async def early(self: PostgresEventStore, group: list[Any]) -> None:
        self._answer(group, self._placed(group))

    patch(PostgresEventStore, _commit=early)


def leave_moves_half_done() -> None:
    """Leave what of a move is half done."""

    async def complete(_: Office) -> int:
        return 0

    patch(Office, complete=complete)


def take_any_store() -> None:
    """Take a store that another process has."""
    patch(fcntl, flock=lambda *_: None)


def believe_the_store() -> None:
    """Take the store for the book, whatever `ledger` has."""

    async def believed(*_: Any) -> None:
        return

    patch(main, check_told=believed)


def checkpoint_before_publishing() -> None:
    """Let the relay say that it is done with a batch, then do it."""
    publish = Relay._publish

    async def late(self: Relay, batch: Sequence[Any]) -> None:
        before, self._root = self._root, relay._root_after(self._root, batch)
        await self.checkpoint()
        self._root = before
        await publish(self, batch)

    patch(Relay, _publish=late)


def routes_before_facts() -> None:
    """Tell the registry before the shards; between them is the boundary `routes-published`."""
    publish = KafkaPublisher.publish
    held: list[Outgoing] = []

    async def turned(self: KafkaPublisher, records: Sequence[Outgoing]) -> None:
        if records and records[0].topic == "shard-log":
            held.extend(records)
            return
        await publish(self, records)
        if records and records[0].topic == "registry":
            points.point("routes-published")
            await publish(self, held)
            held.clear()

    patch(KafkaPublisher, publish=turned)


def record_by_record() -> None:
    """Switch nothing off: let each record be acknowledged before the next, and be a boundary."""

    async def one_by_one(to: Any, records: Iterable[Outgoing]) -> None:
        for record in records:
            await (await kafka.send_outgoing(to, record))
            points.point("record-acknowledged")

    patch(kafka, send_all=one_by_one)
