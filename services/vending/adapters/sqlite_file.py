"""The one SQLite file of vending: one writer, group commit, durable when answered.

Writes gather while a commit runs and go into one transaction: statements on the loop's thread,
where they are fastest, only COMMIT, which waits for the disk, in a thread. A write that fails does
not fail its neighbours: the group is rolled back and its writes are tried one by one.
"""

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from services.common.kernel.errors import Bug, WattvendError
from services.common.runtime import points
from services.vending.adapters.database import Change, Claim, Statement
from services.vending.adapters.tables.unique_names import CLAIM, OWNER
from services.vending.domain.event_store import NameTaken, StoreUnavailable

WRITES_PER_COMMIT_MAX = 512
WRITES_WAITING_MAX = 20_000
WRITES_PER_MOVE = 1_000
"""After so many, what the log of SQLite holds is moved into the file, beside the commits."""
LOG_PAGES_MAX = 32_000
"""Pages of 4 KiB in the log at which a commit moves them itself, and all wait for it."""
_MOVE = "PRAGMA wal_checkpoint(PASSIVE)"
BUSY_TIMEOUT_MS = 5_000
SCHEMA = 1
"""PRAGMA user_version of the file: raised when a table changes."""

Work = Callable[[sqlite3.Connection], Any]


class FileInUse(WattvendError):  # noqa: N818 - says what was found
    """Another process has the file."""


@dataclass(slots=True)
class _Write:
    work: Work
    committed: Callable[[Any], Any] | None
    done: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Refused:
    """What a write raised that changed nothing."""

    why: Exception


class SqliteFile:
    """A file with an exclusive owner. Open it on the loop that uses it."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open or create the file. `schema`: its tables, as idempotent statements.

        Raises FileInUse where another process has it, WattvendError where it cannot be used.
        """
        self._path = path
        self._waiting: deque[_Write] = deque()
        self._running: asyncio.Task[None] | None = None
        self.after_commit: list[Callable[[], None]] = []
        self._lock = _locked(path.resolve())  # one file, whatever leads to it
        with ExitStack() as opened:
            opened.callback(os.close, self._lock)
            try:
                self._writer = opened.enter_context(closing(_connect(path)))
                _prepare(self._writer, schema, path)
                # Short reads on the loop's thread, long ones in a thread.
                self._looker = opened.enter_context(closing(_connect(path)))
                self._reader = opened.enter_context(closing(_connect(path)))
                self._mover = opened.enter_context(closing(_connect(path)))
            except sqlite3.Error as failed:
                what_to_do = "name another file in store_path, or restore this one from a backup"
                if isinstance(failed, sqlite3.OperationalError):  # the file may be in order
                    what_to_do = "check the room on its disk and who may write it, then start again"
                raise WattvendError(
                    f"{path} cannot be used as the event store ({failed}): {what_to_do}"
                ) from failed
            opened.pop_all()
        self._commits = ThreadPoolExecutor(1, "vending-commit")
        self._moves = ThreadPoolExecutor(1, "vending-move")
        self._moving: asyncio.Future[None] | None = None
        self._unmoved = 0
        self._is_almost_moved = False
        self._reads = ThreadPoolExecutor(1, "vending-read")

    def write(
        self, work: Work, committed: Callable[[Any], Any] | None = None
    ) -> asyncio.Future[Any]:
        """Run `work` in a transaction of its group; the result comes when that is durable.

        What `work` raises comes in its place, and nothing of it stays. It may run more than once;
        `committed` makes the result of what `work` returned, once, in the order of the writes.
        StoreUnavailable where the commit failed: the outcome is unknown.
        """
        done = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= WRITES_WAITING_MAX:
            done.set_exception(
                StoreUnavailable(
                    f"{WRITES_WAITING_MAX} writes wait for the disk already; try again in a moment"
                )
            )
            return done
        self._waiting.append(_Write(work, committed, done))
        if self._running is None:
            self._running = asyncio.create_task(self._work(), name="sqlite-writer")
        return done

    async def read(self, work: Work) -> Any:
        """Run a long read in a thread of its own, beside the writer; it sees what is committed."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._reads, work, self._reader)
        except sqlite3.OperationalError as failed:
            raise self._explained(failed) from failed

    def look(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a short read. It sees what is committed."""
        try:
            return self._looker.execute(sql, values).fetchall()
        except sqlite3.OperationalError as failed:
            raise self._explained(failed) from failed

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a short query with the parameters `$1`, `$2`, ... (a Database)."""
        return self.look(_numbered(sql), *values)

    def run(self, statements: Sequence[Statement]) -> asyncio.Future[None]:
        """Run statements in a transaction of their group (a Database)."""

        def work(connection: sqlite3.Connection) -> None:
            make(connection, statements)

        return self.write(work)

    async def _work(self) -> None:
        try:
            while self._waiting:
                count = min(len(self._waiting), WRITES_PER_COMMIT_MAX)
                await self._commit([self._waiting.popleft() for _ in range(count)])
        finally:
            self._running = None

    async def _commit(self, group: list[_Write]) -> None:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as failed:  # another has the file: so it is for each of them
            self._give_up(group, failed)
            return
        try:
            results = self._execute(group)
        except Exception as failed:  # noqa: BLE001 - it is handed to whoever asked
            if len(group) == 1:
                self._give_up(group, failed)
            else:
                self._roll_back()
                for write in group:
                    await self._commit([write])
            return
        points.point("written")
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._commits, self._make_durable)
        except sqlite3.Error as failed:
            self._give_up(group, failed)
            self._tell()  # perhaps it is there all the same
            return
        points.point("committed")
        self._unmoved += len(group)
        if self._unmoved >= WRITES_PER_MOVE and self._moving is None:
            self._unmoved = 0
            self._moving = loop.run_in_executor(self._moves, self._move)
            self._moving.add_done_callback(self._moved)
        for write, returned in results:
            if isinstance(returned, _Refused):
                _fail([write], self._explained(returned.why))
                continue
            result = write.committed(returned) if write.committed else returned
            if not write.done.done():
                write.done.set_result(result)
        self._tell()

    def _make_durable(self) -> None:
        self._writer.execute("COMMIT")
        if self._is_almost_moved:
            # The little that came meanwhile; between two commits, so that the log begins anew.
            self._is_almost_moved = False
            with contextlib.suppress(sqlite3.Error):  # what was committed is durable all the same
                self._writer.execute(_MOVE).fetchall()

    def _move(self) -> None:
        """Move what the log holds into the file, while commits go on."""
        self._mover.execute(_MOVE).fetchall()
        self._is_almost_moved = True

    def _moved(self, moving: asyncio.Future[None]) -> None:
        self._moving = None
        # Where it failed the log grows until a commit moves it, or fails of the same.
        moving.exception()

    def _execute(self, group: list[_Write]) -> list[tuple[_Write, Any]]:
        """Run the group's statements; return what each returned, or _Refused.

        A write that raises before it changed anything fails alone, and when the group is stored:
        it may have been refused for what stands before it there. One that raises later takes the
        group's transaction with it; so does a full disk, for which SQLite has rolled back already:
        what came next would be stored statement by statement.
        """
        results: list[tuple[_Write, Any]] = []
        for write in group:
            changes = self._writer.total_changes
            try:
                results.append((write, write.work(self._writer)))
            except Exception as failed:
                if self._writer.total_changes != changes or not self._writer.in_transaction:
                    raise
                results.append((write, _Refused(failed)))
        return results

    def _tell(self) -> None:
        for listener in self.after_commit:
            listener()

    def _give_up(self, group: list[_Write], failed: Exception) -> None:
        self._roll_back()
        _fail(group, self._explained(failed))

    def _explained(self, failed: Exception) -> Exception:
        if not isinstance(failed, sqlite3.OperationalError):
            return failed
        return StoreUnavailable(
            f"the event store failed ({failed}): check the disk of {self._path}, then try again"
        )

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):  # SQLite may have rolled back by itself
            self._writer.execute("ROLLBACK")

    async def close(self) -> None:
        """Wait for what was begun and let go of the file."""
        while self._running is not None:
            await asyncio.wait([self._running])
        self._commits.shutdown()
        self._reads.shutdown()
        self._moves.shutdown()
        for connection in (self._mover, self._reader, self._looker, self._writer):
            connection.close()
        os.close(self._lock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class SqliteReader:
    """The file beside the process that writes it: each read sees what is committed then.

    It holds no transaction between reads, so the writer's log is not kept from being moved.
    """

    def __init__(self, path: Path) -> None:
        """Open the file. Raises WattvendError where it is no book, or not of this release."""
        self._path = path
        self.after_commit: list[Callable[[], None]] = []
        try:
            self._connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode=ro",
                uri=True,
                isolation_level=None,
                check_same_thread=False,
            )
            self._connection.text_factory = _text
            self._connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            tables = self._connection.execute("SELECT name FROM sqlite_master").fetchall()
        except sqlite3.Error as failed:
            raise WattvendError(
                f"{path} cannot be read ({failed}): store_path must name the file of the book, and "
                "this process may have to write beside it, as all readers of SQLite's log do"
            ) from failed
        if ("made",) not in tables:
            self._connection.close()
            raise WattvendError(f"{path} was never opened by this release: start vending on it")

    async def read(self, work: Work) -> Any:
        """Return what a read returns."""
        return self._done(work)

    def look(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a read."""
        rows: list[tuple[Any, ...]] = self._done(lambda c: c.execute(sql, values).fetchall())
        return rows

    def _done(self, work: Work) -> Any:
        try:
            return work(self._connection)
        except sqlite3.DatabaseError as failed:
            raise StoreUnavailable(
                f"{self._path} cannot be read ({failed}): try again, or stop vending and try again"
            ) from failed

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a query with the parameters `$1`, `$2`, ... (a Database)."""
        return self.look(_numbered(sql), *values)

    def write(self, *_: object) -> asyncio.Future[Any]:
        """Refuse: whoever reads beside the writer must not write."""
        raise Bug(f"{self._path} was opened to read it")

    run = write

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def make(connection: sqlite3.Connection, changes: Iterable[Change]) -> None:
    """Make changes in the transaction that is open. Raises NameTaken."""
    for change in changes:
        if isinstance(change, Claim):
            _claim(connection, change)
        else:
            connection.executemany(_numbered(change.sql), change.rows)


def _claim(connection: sqlite3.Connection, claim: Claim) -> None:
    """Let a name have an owner; where it has one, nothing has changed."""
    values = (claim.kind, claim.name, claim.owner)
    if not connection.execute(_numbered(CLAIM), values).rowcount:
        (owner,) = connection.execute(_numbered(OWNER), values[:2]).fetchone()
        raise NameTaken(claim.kind, claim.name, owner)


def in_sqlite(schema: str) -> str:
    """Return a schema in SQLite's words: strict types, and tables that are their primary key."""
    for name, here in (
        ("bigint", "INTEGER"),
        ("bytea", "BLOB"),
        ("\n);", "\n) STRICT, WITHOUT ROWID;"),
    ):
        schema = schema.replace(name, here)
    return schema


def _text(written: bytes) -> str:
    """Return a text, also one that was altered into none: the verifier shall come to say so."""
    return written.decode(errors="replace")


def _numbered(sql: str) -> str:
    return sql.replace("$", "?")


def _fail(group: list[_Write], failed: Exception) -> None:
    for write in group:
        if not write.done.done():
            write.done.set_exception(failed)


def _locked(path: Path) -> int:
    """Take the file's lock for this process. The kernel lets go of it when the process dies."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as failed:
        raise WattvendError(
            f"{path} cannot be used as the event store ({failed.strerror}): store_path must name "
            "a file in a directory that this process may write"
        ) from failed
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as held:
        os.close(lock)
        raise FileInUse(
            f"{path} is in use by another vending process: stop it, or name another file in "
            "store_path. An event store has one writer"
        ) from held
    return lock


def _prepare(connection: sqlite3.Connection, schema: str, path: Path) -> None:
    found = connection.execute("PRAGMA user_version").fetchone()[0]
    if found not in (0, SCHEMA):
        raise WattvendError(
            f"{path} has layout {found}, this vending knows {SCHEMA}: run the version that wrote it"
        )
    connection.executescript(schema)
    connection.execute(f"PRAGMA user_version={SCHEMA}")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            f"wal_autocheckpoint={LOG_PAGES_MAX}",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection
