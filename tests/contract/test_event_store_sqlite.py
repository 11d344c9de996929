"""Goal: the SQLite store keeps the contract, and is durable, append-only and one process's.

Method: the contract; the file looked at from outside; a connection whose COMMIT fails.
"""

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import Bug, WattvendError
from services.vending.adapters import sqlite_file
from services.vending.adapters.sqlite_file import FileInUse, SqliteFile, Work
from services.vending.adapters.sqlite_store import SCHEMA, SqliteEventStore
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    NameTaken,
    StoreUnavailable,
    StreamId,
)
from tests.contract.event_store import (
    A,
    B,
    DenseEventStoreContract,
    FullDisk,
    Outside,
    Unsure,
    new,
    take,
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


def test_a_file_has_one_owner_under_whatever_name(tmp_path: Path, file: SqliteFile) -> None:
    (tmp_path / "there").mkdir()
    other = tmp_path / "there" / "other.sqlite"
    other.symlink_to(tmp_path / "events.sqlite")
    with pytest.raises(FileInUse):
        SqliteFile(other, SCHEMA)
    assert file.look("SELECT 1") == [(1,)]


def test_a_file_that_is_no_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    path.write_bytes(b"something else altogether" * 100)
    with pytest.raises(WattvendError, match=r"event store .*: name another file"):
        SqliteFile(path, SCHEMA)
    with pytest.raises(WattvendError, match="a directory that this process may write"):
        SqliteFile(path / "below" / "a file", SCHEMA)


def test_nobody_is_told_to_restore_a_file_whose_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(sqlite_file, "_prepare", prepare)
    with pytest.raises(WattvendError, match=r"disk is full\): check the room on its disk"):
        SqliteFile(tmp_path / "events.sqlite", SCHEMA)


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


# --- what of a group is answered, and when -------------------------------------------------------


def put(name: str) -> Work:
    """Return a write that takes a name, and is refused where another has it."""

    def work(connection: sqlite3.Connection) -> str:
        if connection.execute("SELECT 1 FROM stream WHERE name = ?", (name,)).fetchone():
            raise NameTaken("stream", name, "another")
        connection.execute("INSERT INTO stream(name, revision) VALUES(?, 0)", (name,))
        return name

    return work


async def test_nothing_is_refused_for_what_was_not_stored_in_the_end(
    file: SqliteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first takes the name, the second is refused for it; then the commit fails."""
    with monkeypatch.context() as patched:
        patched.setattr(file, "_writer", BadDisk(file._writer, commits=False))
        answers = await asyncio.gather(
            file.write(put("a")), file.write(put("a")), return_exceptions=True
        )
    assert [type(answer) for answer in answers] == [StoreUnavailable, StoreUnavailable]
    assert await file.write(put("a")) == "a"


async def test_what_was_refused_is_not_stored_when_the_group_is_tried_one_by_one(
    file: SqliteFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third fails late, so the group begins anew; alone the first meets a full disk."""

    def fails_late(connection: sqlite3.Connection) -> None:
        put("b")(connection)
        raise Bug("as told")

    with monkeypatch.context() as patched:
        patched.setattr(file, "_writer", BadDisk(file._writer, commits=False))
        works = (put("a"), put("a"), fails_late)
        answers = await asyncio.gather(*map(file.write, works), return_exceptions=True)
    stored = [answer for answer in answers if answer == "a"]
    assert len(file.look("SELECT name FROM stream")) == len(stored)
    assert isinstance(answers[2], Bug)


async def test_a_disk_that_fills_up_within_a_group_tears_no_append_of_it(
    store: SqliteEventStore, full_disk: FullDisk
) -> None:
    """The second fails before it changed anything, and with it SQLite rolls all of them back."""
    for stream in (A, B):
        await store.append(stream, NO_EVENTS, [new()])
    async with full_disk():
        works = (
            store.append(A, 0, [new(b"1")]),
            store.append(StreamId("account-" + "x" * 20_000), NO_EVENTS, [new()]),
            store.append(B, 0, [new(b"2"), new(b"3"), new(bytes(100_000))]),
        )
        answers = await asyncio.gather(*works, return_exceptions=True)
    assert [type(answer) for answer in answers] == [Appended, StoreUnavailable, StoreUnavailable]
    await store.append(A, 1, [new()])
    await store.append(B, 0, [new()])
    found = await store.read_all(FROM_START, 10)
    places = [(A, 0), (B, 0), (A, 1), (A, 2), (B, 1)]
    assert [(event.stream, event.revision) for event in found] == places


async def test_where_another_holds_the_file_a_whole_group_fails_at_once(
    file: SqliteFile, tmp_path: Path
) -> None:
    """As a person with a transaction open in another program."""
    file._writer.execute("PRAGMA busy_timeout=300")
    with closing(sqlite3.connect(tmp_path / "events.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        begin_s = time.monotonic()
        works = (file.write(put(str(number))) for number in range(100))
        answers = await asyncio.gather(*works, return_exceptions=True)
        took_s = time.monotonic() - begin_s
        other.execute("ROLLBACK")
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert took_s < 5, "and nobody waits for each of them"
    assert await file.write(put("0")) == "0"


async def test_who_follows_is_told_also_of_a_commit_that_only_seemed_to_fail(
    file: SqliteFile, store: SqliteEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = asyncio.create_task(take(store, FROM_START, 1))
    await asyncio.sleep(0)
    with monkeypatch.context() as patched:
        patched.setattr(file, "_writer", BadDisk(file._writer, commits=True))
        with pytest.raises(StoreUnavailable):
            await store.append(A, NO_EVENTS, [event := new()])
    async with asyncio.timeout(5):
        assert [seen.id for seen in await following] == [event.id]


async def insert(file: SqliteFile, begin: int, end: int) -> None:
    def work(number: int) -> Work:
        return lambda connection: connection.execute(
            "INSERT INTO stream(name, revision) VALUES(?, 0)", (f"stream-{number}" + "x" * 400,)
        )

    await asyncio.gather(*(file.write(work(number)) for number in range(begin, end)))


async def written(file: SqliteFile, pages: int) -> Path:
    """Write in small commits until so many pages were written; return the log."""
    log = Path(str(file._path) + "-wal")
    number = commits = 0
    while commits < pages:  # each commit writes a page at least
        await insert(file, number, number + 8)
        number, commits = number + 8, commits + 1
    assert file.look("SELECT count(*) FROM stream") == [(number,)]
    return log


async def test_what_the_log_holds_is_moved_beside_the_commits_and_the_log_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_file, "WRITES_PER_MOVE", 200)
    async with SqliteFile(path := tmp_path / "events.sqlite", SCHEMA) as file:
        log = await written(file, 1_000)
        assert log.stat().st_size < 1_000 * 4_120
    with closing(sqlite3.connect(path)) as after:
        assert after.execute("SELECT count(*) FROM stream").fetchone() == (8_000,)
        assert after.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("connection", ["_mover", "_writer"])
async def test_where_the_log_cannot_be_moved_commits_go_on_and_are_durable(
    file: SqliteFile, monkeypatch: pytest.MonkeyPatch, connection: str
) -> None:
    class Stuck:
        def __init__(self, inner: sqlite3.Connection) -> None:
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def execute(self, sql: str, *values: Any) -> object:
            if "wal_checkpoint" in sql:
                raise sqlite3.OperationalError("disk I/O error")
            return self.inner.execute(sql, *values)

    monkeypatch.setattr(sqlite_file, "WRITES_PER_MOVE", 50)
    monkeypatch.setattr(file, connection, Stuck(getattr(file, connection)))
    log = await written(file, 300)  # which looks whether all of it is there
    if connection == "_mover":
        assert log.stat().st_size > 300 * 4_120
