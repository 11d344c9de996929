"""Goal: the PostgreSQL store keeps the contract, and is durable, append-only and one process's.

Method: the contract, each test on a database of its own; what PostgreSQL does when a connection is
lost is provoked by a proxy between, by ending sessions and by restarting the server. A full disk is
played: a trigger raises the error that PostgreSQL raises then (SQLSTATE 53100).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg
import pytest

from services.common.kernel.errors import Bug, WattvendError
from services.vending.adapters import stores, tables
from services.vending.adapters.database import Change, Claim, Statement
from services.vending.adapters.postgres_database import (
    LOCK_WITHIN_S,
    SCHEMA,
    DatabaseInUse,
    PostgresDatabase,
)
from services.vending.adapters.postgres_store import PostgresEventStore
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    Appended,
    NameTaken,
    NewEvent,
    NotTheWriter,
    StoredEvent,
    StoreUnavailable,
    StoreWentBack,
    StreamId,
    WrongRevision,
)
from tests.contract.cut import Cut, cut
from tests.contract.databases import execute, fresh_database
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
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

EXCHANGES_OF_AN_APPEND = 4
"""BEGIN, the call, the changes, COMMIT; where the connection is new, more."""
EXCHANGES_MAX = 40
EVENT = f"{SCHEMA}.event"
APPEND = (
    "SELECT (append($1, ARRAY[$2::text], ARRAY[-1], ARRAY[1], ARRAY[0], ARRAY[$3::uuid], "
    "ARRAY['t'], ARRAY[''::bytea], ARRAY[''::bytea])).stored"
)


@pytest.fixture
async def address(stack: BackgroundStack) -> AsyncIterator[str]:
    async with fresh_database(stack.postgres_dsn) as made:
        yield made


@pytest.fixture
async def way(address: str) -> AsyncIterator[tuple[Cut, str]]:
    async with cut(address, b" reads\0") as made:
        yield made


@pytest.fixture
async def store(way: tuple[Cut, str]) -> AsyncIterator[PostgresEventStore]:
    async with opened(way[1]) as made:
        yield made


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresEventStore]:
    async with PostgresDatabase.opened(dsn, "test", tables.SCHEMA) as database:
        store = await PostgresEventStore.opened(database)
        yield store
        await store.drained()


@pytest.fixture
def unsure(way: tuple[Cut, str]) -> Unsure:
    @asynccontextmanager
    async def unsure(stored: bool) -> AsyncIterator[None]:
        way[0].cuts = stored
        yield
        assert way[0].cuts is None

    return unsure


@pytest.fixture
def full_disk(address: str) -> FullDisk:
    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        await execute(
            address,
            "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'could not extend file: No space left on device' "
            "USING ERRCODE = '53100'; END $$",
            f"CREATE TRIGGER full_disk BEFORE INSERT ON {EVENT} EXECUTE FUNCTION full_disk()",
        )
        yield
        await execute(address, f"DROP TRIGGER full_disk ON {EVENT}")

    return full


@pytest.fixture
async def outside(address: str) -> AsyncIterator[Outside]:
    connection = await asyncpg.connect(address)

    async def positions(after: int) -> list[int]:
        sql = f"SELECT position FROM {EVENT} WHERE position > $1 ORDER BY position"
        return [position for (position,) in await connection.fetch(sql, after)]

    yield positions
    await connection.close()


class TestPostgresEventStore(DenseEventStoreContract):
    """The contract, on PostgreSQL."""


# --- order ----------------------------------------------------------------------------------------


async def connected(address: str) -> asyncpg.Connection:
    return await asyncpg.connect(address, server_settings={"search_path": SCHEMA})


@pytest.mark.parametrize("first_commits", [True, False])
async def test_who_appends_beside_the_lock_waits_for_the_first_and_leaves_no_hole(
    address: str, *, first_commits: bool
) -> None:
    """Two connections append at once, the second would commit first: the key of `event` waits."""
    async with opened(address) as store:
        await store.append(A, NO_EVENTS, [new()])
        one, other = await connected(address), await connected(address)
        try:
            transaction = one.transaction()
            await transaction.start()
            assert await one.fetchval(APPEND, 1, "account-1", new().id)
            racing = asyncio.create_task(other.fetchval(APPEND, 1, "account-2", new().id))
            done, _ = await asyncio.wait([racing], timeout=0.3)
            assert not done
            assert await store.head() == 1
            if first_commits:
                await transaction.commit()
                with pytest.raises(asyncpg.UniqueViolationError):
                    await racing
            else:
                await transaction.rollback()
                assert await racing
            found = await take(store, FROM_START, 2)
            assert [event.position for event in found] == [1, 2]
            assert found[1].stream == ("account-1" if first_commits else "account-2")
            await store.append(B, NO_EVENTS, [new()])
            assert await store.head() == store.count() == 3
        finally:
            await one.close()
            await other.close()


async def test_what_somebody_else_wrote_is_found_by_who_follows(address: str) -> None:
    async with opened(address) as store:
        following = asyncio.create_task(take(store, FROM_START, 2))
        await store.append(A, NO_EVENTS, [new()])
        connection = await connected(address)
        await connection.fetchval(APPEND, 1, "account-2", new().id)
        await connection.close()
        assert [event.position for event in await following] == [1, 2]


@pytest.mark.parametrize(
    "sql",
    [
        f"UPDATE {EVENT} SET data = ''",
        f"DELETE FROM {EVENT}",
        f"TRUNCATE {EVENT}",
        f"DELETE FROM {SCHEMA}.stream",
    ],
)
async def test_no_event_can_be_changed_or_taken_away(address: str, sql: str) -> None:
    async with opened(address) as store:
        await store.append(A, NO_EVENTS, [new()])
        with pytest.raises(asyncpg.RestrictViolationError, match="append only"):
            await execute(address, sql)


async def test_bytes_of_any_value_are_kept_and_a_name_that_no_text_can_hold_fails_alone(
    address: str,
) -> None:
    async with opened(address) as store:
        whole = NewEvent(new().id, "t", bytes(range(256)), b"\x00" * 9)
        answers = await asyncio.gather(
            store.append(StreamId("account-\x00"), NO_EVENTS, [new()]),
            store.append(StreamId("account-\ud800"), NO_EVENTS, [new()]),
            store.append(StreamId("account-电'\"\\"), NO_EVENTS, [whole]),
            return_exceptions=True,
        )
        assert [isinstance(answer, Exception) for answer in answers] == [True, True, False]
        (event,) = await store.read_all(FROM_START, 10)
        assert (event.data, event.meta) == (whole.data, whole.meta)


async def test_an_append_whose_changes_cannot_be_made_fails_alone(address: str) -> None:
    def projection(event: StoredEvent) -> list[Change]:
        if event.data == b"raises":
            raise Bug("as told")
        if event.data == b"is wrong":
            return [Statement("INSERT INTO no_table VALUES($1)", [(1,)])]
        return [Claim("serial", event.data.decode(), event.stream)]

    async with PostgresDatabase.opened(address, "test", tables.SCHEMA) as database:
        store = await PostgresEventStore.opened(database, projection)
        said = [b"1", b"raises", b"2", b"1", b"3"]
        answers = await asyncio.gather(
            *(store.append(StreamId(f"s-{n}"), NO_EVENTS, [new(d)]) for n, d in enumerate(said)),
            return_exceptions=True,
        )
        kinds = [type(answer) for answer in answers]
        assert kinds == [Appended, Bug, Appended, NameTaken, Appended]
        with pytest.raises(StoreUnavailable, match="no_table"):
            await store.append(A, NO_EVENTS, [new(b"is wrong")])
        await store.append(A, NO_EVENTS, [new(b"4")])
        found = [event.data for event in await take(store, FROM_START, 4)]
        assert found == [b"1", b"2", b"3", b"4"]
        rows = await database.rows("SELECT name FROM unique_name ORDER BY name")
        assert rows == [("1",), ("2",), ("3",), ("4",)]


@pytest.mark.parametrize("heard", [True, False])
async def test_an_append_that_is_cut_off_at_any_exchange_is_there_with_its_changes_or_not_at_all(
    way: tuple[Cut, str], *, heard: bool
) -> None:
    """Also between COMMIT and its answer: the changes of tables are in a transaction with it."""

    def projection(event: StoredEvent) -> list[Change]:
        return [Claim("serial", event.data.decode(), event.stream)]

    found = []
    async with PostgresDatabase.opened(way[1], "test", tables.SCHEMA) as database:
        store = await PostgresEventStore.opened(database, projection)
        for nth in range(EXCHANGES_MAX):
            stream, events = StreamId(f"s-{nth}"), [new(b"%d-a" % nth), new(b"%d-b" % nth)]
            way[0].cuts, way[0].passes = heard, nth
            try:
                await store.append(stream, NO_EVENTS, events)
            except StoreUnavailable:
                with contextlib.suppress(WrongRevision):  # whoever tries again knows
                    await store.append(stream, NO_EVENTS, [new(b"%d-c" % nth)])
            else:
                break
            stored = [event.data.decode() for event in await store.read(stream)]
            owned = await database.rows(
                "SELECT name FROM unique_name WHERE owner = $1 ORDER BY name", stream
            )
            assert stored == [name for (name,) in owned]
            found.append(len(stored))
        assert way[0].cuts is not None, "the last append had no exchange left to be cut"
        everything = await take(store, FROM_START, sum(found) + 2)
    assert [event.position for event in everything] == list(range(1, sum(found) + 3))
    # With COMMIT heard, both are there; else one that was appended anew.
    assert set(found) == ({1, 2} if heard else {1})
    assert len(found) >= EXCHANGES_OF_AN_APPEND


# --- one writer, and a server that goes away ------------------------------------------------------


async def end_sessions(address: str) -> None:
    await execute(
        address,
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


async def test_sessions_that_the_server_ended_are_made_again(address: str) -> None:
    async with opened(address) as store:
        await store.append(A, NO_EVENTS, [new()])
        for revision in range(5):
            await end_sessions(address)
            try:
                await store.append(A, revision, [new()])
            except StoreUnavailable:
                assert len(await store.read(A)) == revision + 1
                await store.append(A, revision, [new()])
        assert len(await store.read(A)) == 6


async def test_whoever_reads_is_connected_anew_where_the_writer_is(address: str) -> None:
    """As where a standby took over: what led before may answer for a while, and knows less."""
    sql = "SELECT pg_backend_pid()"
    async with opened(address) as store:
        await store.append(A, NO_EVENTS, [new()])
        before = await store._database.rows(sql)
        await execute(
            address,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = 'test'",
        )
        assert await store._database.rows(sql) == before
        with contextlib.suppress(StoreUnavailable):
            await store.append(A, 0, [new()])
        await store.append(B, NO_EVENTS, [new()])
        assert await store._database.rows(sql) != before


@pytest.mark.parametrize("stored", [True, False])
async def test_a_session_of_ours_that_the_server_takes_for_alive_is_ended_by_us(
    way: tuple[Cut, str], store: PostgresEventStore, *, stored: bool
) -> None:
    """As where a router forgot the connection: the old session would hold the lock for long."""
    await store.append(A, NO_EVENTS, [new()])
    way[0].is_silent, way[0].cuts = True, stored
    with pytest.raises(StoreUnavailable):
        await store.append(A, 0, [new()])
    async with asyncio.timeout(LOCK_WITHIN_S):
        await store.append(B, NO_EVENTS, [new()])
    assert len(await store.read(A)) == 1 + stored


async def test_a_former_session_that_does_not_end_is_not_taken_for_another_process(
    way: tuple[Cut, str], store: PostgresEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk stalls: PostgreSQL hears of the end only after its write."""
    await store.append(A, NO_EVENTS, [new()])

    async def never(*_: object) -> bool:
        return True

    way[0].is_silent, way[0].cuts = True, False
    with pytest.raises(StoreUnavailable):
        await store.append(A, 0, [new()])
    with monkeypatch.context() as patched:
        patched.setattr(store._database, "_end_former_session", never)
        with pytest.raises(StoreUnavailable, match="has not ended our former session yet"):
            await store.append(A, 0, [new()])
    await store.append(A, 0, [new()])


async def test_who_lost_the_lock_to_another_stores_nothing_until_that_one_leaves(
    address: str,
) -> None:
    async with opened(address) as store:
        await store.append(A, NO_EVENTS, [new()])
        held = asyncio.Event()
        release = asyncio.Event()

        async def take_over() -> None:
            while True:
                try:
                    async with opened(address) as other:
                        held.set()
                        await other.append(A, 0, [new()])
                        await release.wait()
                except DatabaseInUse:
                    await end_sessions(address)
                else:
                    return

        taking = asyncio.create_task(take_over())
        await held.wait()
        with pytest.raises(NotTheWriter, match=r"lost its connection: .* in use by test"):
            await store.check_writer()
        with pytest.raises(NotTheWriter, match=r"lost its connection: .* in use by test"):
            await store.append(B, NO_EVENTS, [new()])
        assert await store.read(B) == []
        release.set()
        await taking
        await store.append(A, 1, [new()])
        assert [event.revision for event in await store.read(A)] == [0, 1, 2]


@pytest.mark.parametrize("is_silent", [False, True])
async def test_who_looks_finds_a_lost_connection_and_holds_the_lock_again(
    way: tuple[Cut, str], store: PostgresEventStore, address: str, is_silent: bool
) -> None:
    """What is appended meanwhile waits for the look, and is stored."""
    await store.append(A, NO_EVENTS, [new()])
    way[0].is_silent, way[0].cuts = is_silent, False
    with pytest.raises(StoreUnavailable):
        await store.check_writer()
    looking = asyncio.create_task(store.check_writer())
    await asyncio.sleep(0)
    async with asyncio.timeout(LOCK_WITHIN_S):
        await asyncio.gather(looking, store.append(A, 0, [new()]))
    with pytest.raises(DatabaseInUse):
        async with opened(address):
            pass
    assert len(await store.read(A)) == 2


async def test_a_server_that_was_away_is_used_again_and_its_absence_is_said(
    stack: BackgroundStack, address: str
) -> None:
    async with opened(address) as store:
        await store.append(A, NO_EVENTS, [new()])
        await asyncio.to_thread(stack.kill9, "postgres")
        try:
            with pytest.raises(
                StoreUnavailable, match="check PostgreSQL at postgresql://wattvend@"
            ):
                await store.append(A, 0, [new()])
            with pytest.raises(StoreUnavailable):
                await store.read(A)
        finally:
            await asyncio.to_thread(stack.start, "postgres")
        assert len(await store.read(A)) == 1
        await store.append(A, 0, [new()])
        assert len(await take(store, FROM_START, 2)) == 2


@pytest.mark.parametrize("how", ["acknowledged", "there at the start", "only read"])
async def test_a_server_that_lost_what_it_told_is_not_written_to(address: str, how: str) -> None:
    if how == "there at the start":
        async with opened(address) as before:
            await before.append(A, NO_EVENTS, [new(), new()])
    async with opened(address) as store:
        if how == "acknowledged":
            await store.append(A, NO_EVENTS, [new(), new()])
        if how == "only read":  # as what was stored without an answer
            connection = await connected(address)
            for base, name in enumerate(("account-1", "account-2")):
                await connection.fetchval(APPEND, base, name, new().id)
            await connection.close()
            assert len(await take(store, FROM_START, 2)) == 2
        await execute(
            address,
            f"ALTER TABLE {EVENT} DISABLE TRIGGER event_append_only",
            f"DELETE FROM {EVENT} WHERE position = 2",
        )
        await end_sessions(address)
        for _ in range(2):
            with pytest.raises((StoreWentBack, StoreUnavailable)):
                await store.append(B, NO_EVENTS, [new()])
        with pytest.raises(StoreWentBack, match=r"lost event .* at position 2"):
            await take(store, FROM_START, 1)
        assert await store.read(B) == []


# --- opening --------------------------------------------------------------------------------------


async def test_opening_again_changes_nothing_and_a_newer_layout_is_refused(address: str) -> None:
    for revision in range(NO_EVENTS, 2):
        async with opened(address) as store:
            await store.append(A, revision, [new()])
    await execute(address, f"INSERT INTO {SCHEMA}.migrations VALUES (99)")
    with pytest.raises(WattvendError, match="schema vending has layout 99"):
        async with opened(address):
            pass


async def test_a_role_that_owns_the_schema_and_nothing_else_is_enough(address: str) -> None:
    role = f"vending_{uuid4().hex[:8]}"
    await execute(
        address,
        "REVOKE ALL ON SCHEMA public FROM public",
        f"CREATE ROLE {role} LOGIN PASSWORD 'of this test'",
        f"CREATE SCHEMA {SCHEMA} AUTHORIZATION {role}",
    )
    theirs = urlsplit(address)
    netloc = f"{role}:{quote('of this test')}@{theirs.hostname}:{theirs.port}"
    try:
        for revision in (NO_EVENTS, 0):
            async with opened(theirs._replace(netloc=netloc).geturl()) as store:
                await store.append(A, revision, [new()])
                await store._database.run([Statement("SELECT 1", [()])])
    finally:
        await execute(address, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_what_cannot_be_used_is_refused_without_the_password(stack: BackgroundStack) -> None:
    for place in ("127.0.0.1:1/book", stack.postgres_dsn.rpartition("@")[2]):
        with pytest.raises(WattvendError, match="cannot be used as the event store") as refused:
            async with stores.opened(f"postgresql://nobody:secret@{place}", "test"):
                pass
        assert "secret" not in str(refused.value)
