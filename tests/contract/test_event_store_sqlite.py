"""Goal: the SQLite store keeps the contract, and is durable, append-only and one process's.

Method: the contract; the file reopened or looked at from outside; a child process that is killed
with SIGKILL while 32 writers append, whose acknowledgements are compared with what is stored.
"""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from services.common.kernel.errors import WattvendError
from services.vending.adapters.sqlite_file import FileInUse, SqliteFile
from services.vending.adapters.sqlite_store import SCHEMA, SqliteEventStore
from services.vending.domain.event_store import FROM_START, NO_EVENTS, StoreUnavailable, StreamId
from tests.contract.event_store import A, B, EventStoreContract, new

KILLS = 3
ACKNOWLEDGED_BEFORE_KILL = 300


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    async with SqliteFile(tmp_path / "events.sqlite", SCHEMA) as opened:
        yield opened


@pytest.fixture
def store(file: SqliteFile) -> SqliteEventStore:
    return SqliteEventStore(file)


class TestSqliteEventStore(EventStoreContract):
    """The contract, on a file."""


async def test_what_was_answered_is_there_when_the_file_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.sqlite"
    async with SqliteFile(path, SCHEMA) as first:
        await SqliteEventStore(first).append(A, NO_EVENTS, [new(b"kept")])
    async with SqliteFile(path, SCHEMA) as second:
        again = SqliteEventStore(second)
        assert [e.data for e in await again.read(A)] == [b"kept"]
        await again.append(A, 0, [new(b"more")])
        assert again.count() == 2


async def test_the_commits_wait_for_the_disk(file: SqliteFile) -> None:
    assert file.look("PRAGMA journal_mode") == [("wal",)]
    assert file.look("PRAGMA synchronous") == [(2,)]
    assert file.look("PRAGMA foreign_keys") == [(1,)]


@pytest.mark.parametrize("sql", ["UPDATE event SET data = x'00'", "DELETE FROM event"])
async def test_no_event_can_be_changed_or_taken_away(
    tmp_path: Path, store: SqliteEventStore, sql: str
) -> None:
    await store.append(A, NO_EVENTS, [new()])
    connection = sqlite3.connect(tmp_path / "events.sqlite")
    try:
        with pytest.raises(sqlite3.IntegrityError, match="append only"):
            connection.execute(sql)
    finally:
        connection.close()


async def test_a_second_owner_is_refused_also_in_another_process(
    tmp_path: Path, file: SqliteFile
) -> None:
    path = tmp_path / "events.sqlite"
    with pytest.raises(FileInUse, match="in use by another vending process: stop it"):
        SqliteFile(path, SCHEMA)
    code = (
        "import sys, pathlib\n"
        "from services.vending.adapters.sqlite_file import FileInUse, SqliteFile\n"
        "try:\n    SqliteFile(pathlib.Path(sys.argv[1]), '')\n"
        "except FileInUse:\n    sys.exit(7)\n"
    )
    answer = await asyncio.create_subprocess_exec(sys.executable, "-c", code, str(path))
    assert await answer.wait() == 7
    assert file.look("SELECT 1") == [(1,)]


def test_a_file_that_is_no_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"something else altogether" * 100)
    with pytest.raises(WattvendError, match="cannot be used as the event store"):
        SqliteFile(path, SCHEMA)
    with pytest.raises(WattvendError, match="a directory that this process may write"):
        SqliteFile(path / "below" / "a file", SCHEMA)


async def test_an_unknown_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(WattvendError, match="layout 99"):
        SqliteFile(path, SCHEMA)


class BadDisk:
    """A connection whose COMMIT fails, before or after it has happened."""

    def __init__(self, inner: sqlite3.Connection, *, commits: bool) -> None:
        self.inner = inner
        self.commits = commits

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def execute(self, sql: str, *values: Any) -> object:
        if sql != "COMMIT" or self.commits:
            done = self.inner.execute(sql, *values)
        if sql == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return done


async def test_a_commit_that_fails_leaves_nothing_behind_and_says_that_it_may_be_repeated(
    file: SqliteFile, store: SqliteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(file, "_writer", BadDisk(file._writer, commits=False))
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await store.append(A, NO_EVENTS, [new()])
    assert await store.read(A) == []
    await store.append(A, NO_EVENTS, [new()])
    await store.append(B, NO_EVENTS, [new()])


async def test_a_commit_that_fails_and_is_there_all_the_same_is_no_hole_for_who_follows(
    file: SqliteFile, store: SqliteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.append(A, NO_EVENTS, [new()])
    with monkeypatch.context() as patched:
        patched.setattr(file, "_writer", BadDisk(file._writer, commits=True))
        with pytest.raises(StoreUnavailable, match="disk is full"):
            await store.append(A, 0, [new()])
    assert [event.position for event in await store.read_all(1, 10)] == [2]
    await store.append(A, 1, [new()])
    seen, after = [], FROM_START
    while events := await store.read_all(after, 10):
        seen += [(event.position, event.revision) for event in events]
        after = events[-1].position
    assert seen == [(1, 0), (2, 1), (3, 2)]


async def test_who_follows_gets_from_memory_what_the_file_has(
    file: SqliteFile, store: SqliteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (A, B):
        await store.append(stream, NO_EVENTS, [new(), new()])
    remembered = [await store.read_all(after, limit) for after in range(5) for limit in (1, 3, 10)]
    asked = SqliteEventStore(file)  # it has stored nothing itself
    assert remembered == [
        await asked.read_all(after, limit) for after in range(5) for limit in (1, 3, 10)
    ]
    monkeypatch.setattr(file, "look", lambda *_: [])
    assert len(await store.read_all(FROM_START, 10)) == 4


CHILD = """
import asyncio, sys, uuid
from pathlib import Path
from services.vending.adapters.sqlite_file import SqliteFile
from services.vending.adapters.sqlite_store import SCHEMA, SqliteEventStore
from services.vending.domain.event_store import NewEvent

async def write(store, name):
    for revision in range(10**9):
        event = NewEvent(uuid.uuid4(), "t", b"x" * 100, b"")
        await store.append(name, revision - 1, [event])
        sys.stdout.write(f"{name} {revision} {event.id}\\n")
        sys.stdout.flush()

async def main():
    async with SqliteFile(Path(sys.argv[1]), SCHEMA) as file:
        store = SqliteEventStore(file)
        run = sys.argv[2]
        await asyncio.gather(*(write(store, f"account-{run}-{n}") for n in range(32)))

asyncio.run(main())
"""


def acknowledged_before_a_kill(path: Path, run: int) -> list[list[str]]:
    """Run a child with 32 writers, kill it, return what it acknowledged: stream, revision, id."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(run)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(ACKNOWLEDGED_BEFORE_KILL)]
    os.kill(child.pid, signal.SIGKILL)
    lines += child.stdout.readlines()
    child.stdout.close()
    child.wait()
    return [line.split() for line in lines if line.endswith("\n")]


@pytest.mark.parametrize("run", range(KILLS))
async def test_nothing_acknowledged_is_lost_by_a_kill_among_32_writers(
    tmp_path: Path, run: int
) -> None:
    path = tmp_path / "events.sqlite"
    acknowledged = acknowledged_before_a_kill(path, run)
    assert len(acknowledged) >= ACKNOWLEDGED_BEFORE_KILL
    async with SqliteFile(path, SCHEMA) as file:
        events = await SqliteEventStore(file).read_all(FROM_START, 10**6)
    stored = {(e.stream, e.revision): e.id for e in events}
    for name, revision, event_id in acknowledged:
        assert stored[StreamId(name), int(revision)] == UUID(event_id)
    assert [e.position for e in events] == list(range(1, len(events) + 1))
