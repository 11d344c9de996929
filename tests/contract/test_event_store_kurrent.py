"""Goal: the store on EventStoreDB or KurrentDB keeps the contract, and what only it must.

Method: the contract on a double that speaks the client's protocol (tests/contract/kurrent_server);
the double's faults at each step of an append; a second writer; an index that is gone.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest
import structlog
import trustme
from kurrentdbclient import AsyncKurrentDBClient
from pydantic import SecretStr

from services.common.kernel.errors import WattvendError
from services.vending.adapters import kurrent, stores
from services.vending.adapters.database import Change, Claim, Statement
from services.vending.adapters.indexed_store import IndexBroken, IndexedEventStore
from services.vending.adapters.kurrent import writing
from services.vending.adapters.kurrent_address import KurrentAddress
from services.vending.adapters.kurrent_control import ControlledTables
from services.vending.adapters.kurrent_store import Bounds, KurrentEventStore
from services.vending.adapters.tables.unique_names import FREE
from services.vending.commands import copy_book, verify
from services.vending.config import VendingSettings
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    EventExists,
    EventStore,
    NameTaken,
    NewEvent,
    NotTheWriter,
    StoredEvent,
    StoreUnavailable,
    StoreWentBack,
    StreamId,
    WrongRevision,
)
from tests.contract.event_store import (
    A,
    B,
    DurableEventStoreContract,
    FullDisk,
    Outside,
    Unsure,
    new,
    take,
)
from tests.contract.kurrent_server import (
    LATE_S,
    MAX_APPEND_BYTES,
    PASSWORD,
    USER,
    Fault,
    KurrentServer,
)
from tests.unit.test_vending_copy import a_book, dump

LOG = structlog.stdlib.get_logger()
BOUNDS = Bounds(attempt_s=0.5, append_s=1.5, read_s=30.0, poll_s=0.3)


CONFIRM_S = 0.2
ATTEMPTS = 4
"""So often the client makes an append that finds the server unavailable."""
ATTEMPTS_MAX = 6
"""More than the client makes of one append."""
LATER = [Fault.LOST_BEFORE, Fault.LOST_BEFORE, Fault.LATE, Fault.LATE, Fault.LATE, Fault.LATE]
"""It is stored when the client has given up already."""


def named(event: StoredEvent) -> Iterable[Change]:
    """Let an event claim a serial, or free it."""
    if event.type == "claiming":
        yield Claim("serial", event.data.decode(), event.stream)
    if event.type == "freeing":
        yield Statement(FREE, [("serial", event.data.decode())])


def claiming(serial: str) -> NewEvent:
    return NewEvent(uuid4(), "claiming", serial.encode(), b"")


def freeing(serial: str) -> NewEvent:
    return NewEvent(uuid4(), "freeing", serial.encode(), b"")


def opened(
    url: str, index: Path, instance: str = "test"
) -> AbstractAsyncContextManager[tuple[IndexedEventStore, ControlledTables]]:
    return writing(f"{url}&index={index}", instance, LOG, named)


@pytest.fixture(autouse=True)
def _in_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for less than a real server may take."""
    monkeypatch.setattr(kurrent, "BOUNDS", BOUNDS)
    monkeypatch.setattr(kurrent, "CONFIRM_S", CONFIRM_S)


@pytest.fixture
def server() -> KurrentServer:
    return KurrentServer()


@pytest.fixture
async def url(server: KurrentServer, tmp_path: Path) -> AsyncIterator[str]:
    async with server.running(tmp_path) as url:
        yield url


@pytest.fixture
def address(url: str, tmp_path: Path) -> str:
    return f"{url}&index={tmp_path / 'index.sqlite'}"


@pytest.fixture
async def store(address: str) -> AsyncIterator[EventStore]:
    async with stores.opened(address, "test") as opened:
        yield opened.store


@pytest.fixture
def unsure(server: KurrentServer) -> Unsure:
    @asynccontextmanager
    async def unsure(stored: bool) -> AsyncIterator[None]:
        server.next_faults = [Fault.LOST_AFTER if stored else Fault.LOST_BEFORE] * ATTEMPTS
        yield
        # One attempt may have ended in a connection that the fault before it broke.
        assert len(server.next_faults) < ATTEMPTS - 1
        server.next_faults = []

    return unsure


@pytest.fixture
def full_disk(server: KurrentServer) -> FullDisk:
    @asynccontextmanager
    async def full() -> AsyncIterator[None]:
        server.next_faults = [Fault.DISK_FULL]
        yield
        server.restart()

    return full


@pytest.fixture
async def outside(url: str) -> AsyncIterator[Outside]:
    async with AsyncKurrentDBClient(KurrentAddress.parse(url, "outside").uri) as client:
        reader = KurrentEventStore(client, "wattvend.", LOG, BOUNDS)

        async def positions(after: int) -> list[int]:
            return [event.position for event in await reader.read_all(after, 1_000)]

        yield positions


class TestKurrentEventStore(DurableEventStoreContract):
    """The contract, on the double."""

    @pytest.mark.xfail(strict=True, reason="a server whose disk is full ends: it is not read")
    async def test_a_full_disk_refuses_what_comes_and_takes_nothing_away(
        self, store: EventStore, full_disk: FullDisk
    ) -> None:
        await super().test_a_full_disk_refuses_what_comes_and_takes_nothing_away(store, full_disk)


async def test_system_streams_and_those_of_others_are_never_seen(
    server: KurrentServer, store: EventStore
) -> None:
    server.log.write("account-of-another", [(UUID(int=7), "t", "application/json", b"", b"")])
    for revision in range(-1, 20):
        await store.append(A, revision, [new()])
    assert sum(record.stream.startswith("$") for record in server.log.records) > 4
    assert {event.stream for event in await store.read_all(FROM_START, 100)} == {A}
    assert {event.stream for event in await take(store, FROM_START, 21)} == {A}
    assert await store.event_at(server.log.records[0].position) is None


@pytest.mark.parametrize(
    "fault",
    [Fault.LOST_BEFORE, Fault.LOST_AFTER, Fault.LATE, Fault.SILENT, Fault.NOT_READY],
)
async def test_an_append_that_meets_a_fault_once_is_stored_once(
    server: KurrentServer, store: EventStore, fault: Fault
) -> None:
    await store.append(A, NO_EVENTS, [new(b"1")])
    server.next_faults = [fault]
    assert (await store.append(A, 0, [new(b"2"), new(b"3")])).revision == 2
    await asyncio.sleep(2 * LATE_S if fault is Fault.LATE else 0)
    assert [event.data for event in await store.read(A)] == [b"1", b"2", b"3"]
    assert (await store.append(A, 2, [new(b"4")])).revision == 3
    assert [e.data for e in await store.read_all(FROM_START, 9)] == [b"1", b"2", b"3", b"4"]


@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.TIMEOUT, Fault.NOT_LEADER])
async def test_a_server_that_does_not_take_it_up_says_so_and_nothing_is_stored(
    server: KurrentServer, store: EventStore, fault: Fault
) -> None:
    server.next_faults = [fault]
    event = new()
    with pytest.raises(StoreUnavailable):
        await store.append(A, NO_EVENTS, [event])
    assert await store.read(A) == []
    await store.append(A, NO_EVENTS, [event])
    assert len(await store.read(A)) == 1


@pytest.mark.parametrize(("fault", "stored"), [(Fault.LOST_AFTER, 1), (Fault.LOST_BEFORE, 0)])
async def test_where_no_attempt_is_answered_the_outcome_is_unknown_and_read_from_the_stream(
    server: KurrentServer, store: EventStore, fault: Fault, stored: int
) -> None:
    server.next_faults = [fault] * ATTEMPTS_MAX
    event = new()
    with pytest.raises(StoreUnavailable, match="did not answer"):
        await store.append(A, NO_EVENTS, [event])
    server.next_faults = []
    assert len(await store.read(A)) == stored
    # The book, which knows now, goes on; one that did not look would be told.
    if stored:
        with pytest.raises(WrongRevision):
            await store.append(A, NO_EVENTS, [new()])
        with pytest.raises(EventExists):
            await store.append(A, 0, [event])
    else:
        await store.append(A, NO_EVENTS, [event])


async def test_of_appends_under_way_when_the_connection_breaks_each_is_stored_once_or_unknown(
    server: KurrentServer, store: EventStore
) -> None:
    events = {StreamId(f"account-{n}"): new() for n in range(16)}
    server.next_faults = [Fault.LOST_BEFORE, Fault.SILENT, Fault.LOST_AFTER, Fault.LATE] * 3
    answers = await asyncio.gather(
        *(store.append(stream, NO_EVENTS, [event]) for stream, event in events.items()),
        return_exceptions=True,
    )
    unknown = [
        stream
        for stream, answer in zip(events, answers, strict=True)
        if isinstance(answer, BaseException)
    ]
    assert {type(a) for a in answers if isinstance(a, BaseException)} <= {StoreUnavailable}
    server.next_faults = []
    for stream in unknown:
        if not await store.read(stream):
            with contextlib.suppress(WrongRevision):  # it came late
                await store.append(stream, NO_EVENTS, [events[stream]])
    for stream, event in events.items():
        assert [known.id for known in await store.read(stream)] == [event.id]


async def test_a_server_whose_disk_is_full_ends_and_after_it_is_mended_all_goes_on(
    server: KurrentServer, store: EventStore
) -> None:
    await store.append(A, NO_EVENTS, [new(b"1")])
    server.next_faults = [Fault.DISK_FULL]
    with pytest.raises(StoreUnavailable):
        await store.append(A, 0, [new(b"2")])
    with pytest.raises(StoreUnavailable):
        await store.read(A)
    server.restart()
    assert [event.data for event in await store.read(A)] == [b"1"]
    await store.append(A, 0, [new(b"3")])


async def test_an_append_larger_than_the_server_takes_is_refused_for_good(
    store: EventStore,
) -> None:
    with pytest.raises(WattvendError, match="raise its setting MaxAppendSize"):
        await store.append(A, NO_EVENTS, [new(b"x" * MAX_APPEND_BYTES)])
    assert await store.read(A) == []


async def test_a_node_that_is_not_the_leader_leads_to_it_where_a_cluster_is_named(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    cluster = url.replace("kurrentdb://", "kurrentdb+discover://")
    async with opened(cluster, tmp_path / "cluster.sqlite") as (store, _):
        server.next_faults = [Fault.NOT_LEADER]
        await store.append(A, NO_EVENTS, [new()])
        assert len(await store.read(A)) == 1


async def test_a_cluster_that_does_not_answer_at_start_is_named_as_what_is_wrong(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    server.die()
    cluster = url.replace("kurrentdb://", "kurrentdb+discover://") + "&maxDiscoverAttempts=2"
    with pytest.raises(StoreUnavailable, match="Failed to obtain cluster info") as away:
        async with opened(cluster, tmp_path / "cluster.sqlite"):
            pass
    assert PASSWORD not in str(away.value)


# --- names ----------------------------------------------------------------------------------------


async def test_a_name_belongs_to_one_stream_also_where_two_ask_at_once(
    url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path / "index.sqlite") as (store, _):
        answers = await asyncio.gather(
            *(store.append(StreamId(f"meter-{n}"), NO_EVENTS, [claiming("S1")]) for n in range(9)),
            return_exceptions=True,
        )
        assert sum(isinstance(answer, NameTaken) for answer in answers) == 8
        assert len(await store.read_all(FROM_START, 10)) == 1
        with pytest.raises(NameTaken, match="serial S1 belongs to meter-"):
            await store.append(A, NO_EVENTS, [new(), claiming("S1")])
        await store.append(A, NO_EVENTS, [claiming("S2"), freeing("S2"), claiming("S2")])
        await store.append(A, 2, [freeing("S2")])
        await store.append(B, NO_EVENTS, [claiming("S2")])


@pytest.mark.parametrize("lands", [True, False])
async def test_what_an_append_of_unknown_outcome_claims_is_nobody_elses_until_that_is_known(
    server: KurrentServer, url: str, tmp_path: Path, *, lands: bool
) -> None:
    async with opened(url, tmp_path / "index.sqlite") as (store, _):
        server.next_faults = list(LATER) if lands else [Fault.LOST_BEFORE] * ATTEMPTS_MAX
        with pytest.raises(StoreUnavailable):
            await store.append(A, NO_EVENTS, [claiming("S1")])
        server.next_faults = []
        assert not store.is_settled
        await store.append(StreamId("account-C"), NO_EVENTS, [new()])  # others need not wait
        try:
            await store.append(B, NO_EVENTS, [claiming("S1")])
            assert not lands
        except NameTaken:
            assert lands
        assert (len(await store.read(A)), len(await store.read(B))) == (lands, not lands)
        assert store.is_settled


async def test_what_is_held_for_a_stream_stays_held_where_its_next_append_is_refused(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path / "index.sqlite") as (store, _):
        await store.append(StreamId("account-C"), NO_EVENTS, [claiming("S0")])
        server.next_faults = list(LATER)
        unknown = claiming("S1")
        with pytest.raises(StoreUnavailable):
            await store.append(A, NO_EVENTS, [unknown])
        server.next_faults = []
        with pytest.raises(NameTaken, match="S0"):
            await store.append(A, NO_EVENTS, [NewEvent(unknown.id, "t", b"", b""), claiming("S0")])
        with pytest.raises(NameTaken, match="S1 belongs to account-A"):
            await store.append(B, NO_EVENTS, [claiming("S1")])
        assert store.is_settled


async def test_an_index_that_is_gone_or_of_another_store_is_made_anew(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    index, known = tmp_path / "index.sqlite", claiming("S1")
    async with opened(url, index) as (store, _):
        await store.append(A, NO_EVENTS, [known])
        await store.append(A, 0, [new()])
    for change in ("none", "gone", "another"):
        told = server.told
        if change == "gone":
            index.unlink()
        if change == "another":
            server.log.__init__()  # type: ignore[misc]
        async with opened(url, index) as (store, _):
            if change == "none":
                assert server.told - told < 6, "what is indexed is not read again"
            if change == "another":
                assert store.count() == 0
                await store.append(B, NO_EVENTS, [known])
                continue
            assert store.count() == 2
            with pytest.raises(NameTaken):
                await store.append(B, NO_EVENTS, [claiming("S1")])
            with pytest.raises(EventExists):
                await store.append(B, NO_EVENTS, [known])


async def test_a_store_that_holds_something_twice_is_not_used(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    event = new()
    told = (event.id, event.type, "application/octet-stream", event.data, event.meta)
    for stream in ("wattvend.account-A", "wattvend.account-B"):
        server.log.write(stream, [told])
    with pytest.raises(IndexBroken, match="two processes wrote it"):
        async with opened(url, tmp_path / "index.sqlite"):
            pass


# --- the writer -----------------------------------------------------------------------------------


async def test_who_opens_a_book_last_is_its_writer_and_waits_for_the_one_before(
    url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path / "1.sqlite", "first") as (first, _):
        await first.append(A, NO_EVENTS, [claiming("S1")])
        began = time.monotonic()
        async with opened(url, tmp_path / "2.sqlite", "second") as (second, _):
            assert time.monotonic() - began >= CONFIRM_S + BOUNDS.settled_s
            with pytest.raises(NotTheWriter, match="second has become the writer"):
                await first.check_writer()
            with pytest.raises(NotTheWriter, match="second has become the writer"):
                await first.append(A, 0, [new()])
            with pytest.raises(NameTaken):
                await second.append(B, NO_EVENTS, [claiming("S1")])
            await second.append(A, 0, [new()])
        with pytest.raises(NotTheWriter, match="has become the writer"):
            await first.append(A, 1, [new()])


async def test_an_append_of_a_writer_that_died_is_seen_by_the_next(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path / "1.sqlite") as (first, _):
        server.next_faults = [Fault.LATE] * ATTEMPTS_MAX
        with pytest.raises(StoreUnavailable):
            await first.append(A, NO_EVENTS, [claiming("S1")])
    server.next_faults = []
    async with opened(url, tmp_path / "2.sqlite") as (second, _):
        with pytest.raises(NameTaken):
            await second.append(B, NO_EVENTS, [claiming("S1")])


async def test_a_book_that_was_left_is_opened_at_once_and_knows_its_epoch(
    url: str, tmp_path: Path
) -> None:
    async with opened(url, tmp_path / "1.sqlite") as (store, tables):
        await store.append(A, NO_EVENTS, [new()])
        assert (await tables.book_epoch(), await tables.raised_at()) == (1, 0)
        await tables.raise_book_epoch(3, await store.head())
        await tables.raise_book_epoch(2, 7)
    began = time.monotonic()
    async with opened(url, tmp_path / "elsewhere.sqlite") as (store, tables):
        assert time.monotonic() - began < BOUNDS.settled_s
        assert (await tables.book_epoch(), await tables.raised_at()) == (3, await store.head())


async def test_a_book_moves_to_the_server_and_back(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, back = tmp_path / "source.sqlite", tmp_path / "back.sqlite"
    address = f"{url}&index={tmp_path / 'index.sqlite'}"
    await a_book(source)
    for here, there, book_epoch in (
        (f"sqlite:{source}", address, 4),
        (address, f"sqlite:{back}", 5),
    ):
        settings = VendingSettings(store=SecretStr(here))
        assert await copy_book(settings, there, is_ahead=False) == 0
        said = capsys.readouterr().out
        assert "16 events in 7 streams are the same in both" in said
        assert f"it is book epoch {book_epoch}" in said
        assert PASSWORD not in said
        there_too = VendingSettings(store=SecretStr(there))
        assert await verify(there_too, with_ledger=False) == 0
        assert "16 events in 7 streams are unaltered" in capsys.readouterr().out
    first, last = dump(source), dump(back)
    for table in ("stream", "event", "unique_name", "todo", "waiting", "charged"):
        assert first[table] == last[table], table


# --- the connection -------------------------------------------------------------------------------


async def test_a_book_is_kept_over_tls_with_credentials_and_not_in_plain(
    server: KurrentServer, url: str, tmp_path: Path
) -> None:
    """The double takes no call without its user's password, and none without TLS."""
    assert f"//{USER}:{PASSWORD}@" in url
    assert "tlsCaFile=" in url
    async with opened(url, tmp_path / "index.sqlite") as (store, _):
        await store.append(A, NO_EVENTS, [new(b"1")])
        assert [event.data for event in await store.read(A)] == [b"1"]
        assert [event.data for event in await take(store, FROM_START, 1)] == [b"1"]
    asked = server.appends
    with pytest.raises(StoreUnavailable):
        async with opened(f"{plain(url)}?tls=false", tmp_path / "plain.sqlite"):
            pass
    assert server.appends == asked


def plain(url: str) -> str:
    """Return an address without what TLS needs."""
    return url.partition("?")[0]


async def test_a_subscription_that_is_lost_goes_on_where_it_was(
    server: KurrentServer, store: EventStore
) -> None:
    taking = asyncio.create_task(take(store, FROM_START, 30))
    for revision in range(-1, 29):
        if revision % 10 == 5:
            server.wire.cut()
        if revision == 17:
            server.die()
            await asyncio.sleep(0.3)
            server.restart()
        await store.append(A, revision, [new(str(revision).encode())])
    assert [int(event.data) for event in await taking] == list(range(-1, 29))


async def test_what_a_subscription_skips_is_read_all_the_same(
    server: KurrentServer, store: EventStore
) -> None:
    server.muted = True
    taking = asyncio.create_task(take(store, FROM_START, 2))
    await store.append(A, NO_EVENTS, [new(b"1")])
    await asyncio.sleep(2 * BOUNDS.poll_s)
    await store.append(A, 0, [new(b"2")])
    assert [event.data for event in await taking] == [b"1", b"2"]


@pytest.mark.parametrize("comes_next", [b"as long", b"of another size"])
async def test_a_server_that_is_restored_under_a_writer_is_neither_written_nor_followed_further(
    server: KurrentServer, store: EventStore, comes_next: bytes
) -> None:
    """Its positions begin again where events stood that were told; one may be the very same."""
    await store.append(A, NO_EVENTS, [new()])
    earlier = list(server.log.records), server.log.end
    last = await store.append(A, 0, [new(b"is lost")])
    following = asyncio.create_task(take(store, last.position, 1))
    await asyncio.sleep(0)
    server.die()
    server.log.restore(*earlier)
    server.restart()
    with pytest.raises(StoreWentBack, match="restored to an earlier point"):
        await store.append(A, 0, [new(comes_next)])
    with pytest.raises(StoreWentBack):
        await following
    with pytest.raises(StoreWentBack):
        await store.append(B, NO_EVENTS, [new()])
    with pytest.raises(StoreWentBack):
        await store.read_all(FROM_START, 10)


async def test_who_follows_a_server_that_is_restored_is_told_though_nobody_writes(
    server: KurrentServer, store: EventStore
) -> None:
    await store.append(A, NO_EVENTS, [new()])
    earlier = list(server.log.records), server.log.end
    last = await store.append(A, 0, [new()])
    following = asyncio.create_task(take(store, last.position, 1))
    server.log.restore(*earlier)
    with pytest.raises(StoreWentBack, match=f"no event at position {last.position} any more"):
        await following


@pytest.mark.parametrize("wrong", ["password", "authority", "certificate"])
async def test_a_server_that_is_not_ours_or_does_not_know_us_is_not_used(
    url: str, tmp_path: Path, wrong: str, capfd: pytest.CaptureFixture[str]
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "another.pem")
    given = {
        "password": url.replace(PASSWORD, "guessed-password"),
        "authority": url.replace("kurrent-ca.pem", "another.pem"),
        "certificate": url.replace("127.0.0.1", "localhost"),
    }[wrong]
    with pytest.raises(StoreUnavailable) as refused:
        async with opened(given, tmp_path / "index.sqlite"):
            pass
    shown = str(refused.value) + repr(refused.value.__cause__) + "".join(capfd.readouterr())
    assert "password" not in shown
    assert PASSWORD not in shown
