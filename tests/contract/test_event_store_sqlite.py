"""Goal: the SQLite store keeps the contract, and is durable, append-only and one process's.

Method: the contract; the file looked at from outside; a connection whose COMMIT fails.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import WattvendError
from services.vending.adapters.sqlite_file import FileInUse, SqliteFile
from services.vending.adapters.sqlite_store import SCHEMA, SqliteEventStore
from services.vending.domain.event_store import FROM_START, NO_EVENTS, StoreUnavailable
from tests.contract.event_store import (
    A,
    B,
    DenseEventStoreContract,
    FullDisk,
    Outside,
    Unsure,
    new,
)


class BadDisk:
    """A connection whose next COMMIT fails, before or after it has happened."""

    def __init__(self, inner: sqlite3.Connection, *, commits: bool) -> None:
        self.inner = inner
        self.commits = commits
        self.fails = True

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def execute(self, sql: str, *values: Any) -> object:
        fails = sql == "COMMIT" and self.fails
        if not fails or self.commits:
            done = self.inner.execute(sql, *values)
        if fails:
            self.fails = False
            raise sqlite3.OperationalError("database or disk is full")
        return done


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'deep' / 'events.sqlite'}"


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SqliteFile]:
    async with SqliteFile(tmp_path / "events.sqlite", SCHEMA) as opened:
        yield opened


@pytest.fixture
def store(file: SqliteFile) -> SqliteEventStore:
    return SqliteEventStore(file)


@pytest.fixture
def unsure(file: SqliteFile, monkeypatch: pytest.MonkeyPatch) -> Unsure:
    @asynccontextmanager
    async def unsure(stored: bool) -> AsyncIterator[None]:
        with monkeypatch.context() as patched:
            patched.setattr(file, "_writer", BadDisk(file._writer, commits=stored))
            yield

    return unsure


@pytest.fixture
def full_disk(file: SqliteFile) -> FullDisk:
    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        pages = file._writer.execute("PRAGMA page_count").fetchone()[0]
        file._writer.execute(f"PRAGMA max_page_count={pages}")
        yield
        file._writer.execute("PRAGMA max_page_count=1073741823")

    return full


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    async def positions(after: int) -> list[int]:
        with closing(sqlite3.connect(tmp_path / "events.sqlite")) as connection:
            sql = "SELECT position FROM event WHERE position > ? ORDER BY position"
            return [position for (position,) in connection.execute(sql, (after,))]

    return positions


class TestSqliteEventStore(DenseEventStoreContract):
    """The contract, on a file."""


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


def test_a_file_that_another_has_is_refused_with_what_to_do(
    tmp_path: Path, file: SqliteFile
) -> None:
    with pytest.raises(FileInUse, match="in use by another vending process: stop it"):
        SqliteFile(tmp_path / "events.sqlite", SCHEMA)
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
