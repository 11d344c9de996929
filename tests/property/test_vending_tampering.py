"""Goal: whatever is done to a stored book, the verifier names the first event it was done to.

Method: a book is told by the relay with signed checkpoints. Hypothesis picks an event and a way to
tamper with the SQLite file behind the service's back, from one altered byte to a chain that is
rewritten whole with all evidence but the signatures. What the verifier names is compared with what
was done; the book itself, and a book that grows meanwhile, are found to be in order.
"""

import asyncio
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.vending import commands
from services.vending.adapters import stores
from services.vending.adapters.keys import PublicKeys, SigningKey
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application.ledger import LedgerEvent
from services.vending.application.relay import START, link_of, root_with
from services.vending.application.verifying import Fault, Verdict, compare, verify
from services.vending.config import VendingSettings
from services.vending.domain import chain
from services.vending.domain.event_store import FROM_START, NewEvent, StoredEvent, StreamId
from services.vending.domain.tables import Checkpoint, Root
from tests.property.metering_runs import examples
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook, published
from tests.unit.vending_ledger import as_ledger, told_in
from tests.unit.vending_world import World
from tools.stack import keyfile

ROUNDS, SALES_A_ROUND = 6, 5
DEADLINE_S = 30.0
UNTOLD = 3
"""Sales that the relay has not come to."""


def signing_key(directory: Path, name: str = "key.pem") -> SigningKey:
    return SigningKey(keyfile.made(directory / name))


async def told_in_rounds(world: World, signed: Callable[[Checkpoint], Checkpoint]) -> Notebook:
    """Sell and tell, again and again; each round ends with a checkpoint. Return what was told."""
    begin, notebook = START, Notebook()
    for number in range(ROUNDS):
        if number == 0:
            await world.mall()
            await world.account("A2")
        for sale in range(SALES_A_ROUND):
            await world.sell(100 + sale, "A1" if sale % 2 else "A2")
        relay = await published(world, notebook, begin=begin, signed=signed)
        begin = Root(relay.position, relay.count, (await world.tables.checkpoints())[-1].root.root)
    for _ in range(UNTOLD):
        await world.sell(700)
    return notebook


class Book:
    """A told book, of which each example tampers with a copy."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "events.sqlite"
        self.key = signing_key(directory)
        self.ledger = asyncio.run(self._make())
        with closing(sqlite3.connect(self.path)) as connection:
            self.events = events_in(connection)
            rows = connection.execute("SELECT position FROM checkpoint ORDER BY position")
            self.checkpoints = [row[0] for row in rows]

    async def _make(self) -> list[LedgerEvent | Checkpoint]:
        async with vending_world.world(self.path) as world:
            return told_in((await told_in_rounds(world, self.key.signed)).records)

    @property
    def told(self) -> int:
        """The position up to which everything was told."""
        return self.checkpoints[-1]

    def keys(self) -> PublicKeys:
        return PublicKeys([self.key.public])


@cache
def book() -> Book:
    return Book(vending_world.lasting_folder())


@contextmanager
def tampered() -> Iterator[tuple[Path, sqlite3.Connection]]:
    """Yield a copy of the book without what keeps honest writers from a mistake."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "events.sqlite"
        shutil.copy(book().path, path)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for name in ("event_update", "event_delete"):
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute("DROP INDEX event_rev")
            yield path, connection


def events_in(connection: sqlite3.Connection) -> list[StoredEvent]:
    rows = connection.execute(
        "SELECT e.position, s.name, e.revision, e.id, e.type, e.data, e.meta "
        "FROM event e JOIN stream s ON s.id = e.stream ORDER BY e.position"
    )
    return [StoredEvent(p, s, r, UUID(bytes=i), t, d, m) for p, s, r, i, t, d, m in rows]


async def _verified(path: Path, keys: PublicKeys) -> Verdict:
    async with stores.reading(f"sqlite:{path}", "test") as stored:
        with ScratchLasts() as lasts:
            return await verify(stored.store, stored.tables, lasts, keys, lambda *_: None)


async def _compared(path: Path, told: list[LedgerEvent | Checkpoint]) -> tuple[int, Fault | None]:
    async with stores.reading(f"sqlite:{path}", "test") as stored:
        return await compare(stored.store, as_ledger(told), lambda _: None)


def compared(path: Path) -> tuple[int, Fault | None]:
    return asyncio.run(_compared(path, book().ledger))


def verified(path: Path, keys: PublicKeys | None = None) -> Verdict:
    return asyncio.run(_verified(path, book().keys() if keys is None else keys))


def move(connection: sqlite3.Connection, above: int, by: int) -> None:
    """Give every event above a position another one, and the one after it its place."""
    connection.execute("UPDATE event SET position = -position WHERE position > ?", (above,))
    connection.execute("UPDATE event SET position = ? - position WHERE position < 0", (by,))


def test_a_book_that_nobody_touched_is_in_order_and_says_how_far_it_is_vouched_for() -> None:
    verdict = verified(book().path)
    assert verdict.fault is None
    assert compared(book().path) == (book().told, None)
    assert verdict.root.count == len(book().events)
    assert verdict.linked == book().told == len(book().events) - UNTOLD
    assert verdict.checkpoints == ROUNDS
    assert verdict.signed is not None
    assert verdict.signed.root.position == book().told
    assert verdict.streams == len({event.stream for event in book().events})
    assert verified(book().path, PublicKeys([])).signed is None


ALTERED = {
    "data": "UPDATE event SET data = CAST(data || 'x' AS BLOB) WHERE position = ?",
    "meta": "UPDATE event SET meta = CAST(' ' || CAST(meta AS TEXT) AS BLOB) WHERE position = ?",
    "type": "UPDATE event SET type = 'cuts-held' WHERE position = ?",
    "stream": "UPDATE event SET stream = 1 + stream % 7 WHERE position = ?",
    "revision": "UPDATE event SET revision = revision + 1 WHERE position = ?",
    "id": "UPDATE event SET id = randomblob(16) WHERE position = ?",
}
picked = st.integers(0, 10**6)


def told_event(pick: int) -> StoredEvent:
    return book().events[pick % book().told]


def named(verdict: Verdict) -> tuple[int, str, int, str]:
    """Return which one event is named; fail where none is, or several are."""
    assert verdict.fault is not None
    fault = verdict.fault
    assert fault.until == fault.position, fault
    return fault.position, fault.stream, fault.revision, fault.type


def identity(event: StoredEvent) -> tuple[int, str, int, str]:
    return event.position, event.stream, event.revision, event.type


@given(picked, st.sampled_from(sorted(ALTERED)))
@examples(200)
def test_an_altered_event_is_named_with_what_was_altered(pick: int, what: str) -> None:
    event = told_event(pick)
    with tampered() as (path, connection):
        connection.execute(ALTERED[what], (event.position,))
        verdict = verified(path)
    assert named(verdict) == identity(event)
    assert verdict.fault is not None
    assert what in verdict.fault.what


@given(picked, st.booleans())
@examples(100)
def test_a_deleted_event_is_named_though_it_is_gone(pick: int, close_up: bool) -> None:
    event = told_event(pick)
    with tampered() as (path, connection):
        connection.execute("DELETE FROM event WHERE position = ?", (event.position,))
        if close_up:
            move(connection, event.position, -1)
        verdict = verified(path)
    assert named(verdict) == identity(event)
    assert verdict.fault is not None
    assert "gone" in verdict.fault.what


@given(picked)
@examples(60)
def test_an_inserted_event_is_named(pick: int) -> None:
    at = told_event(pick)
    forged = uuid4()
    with tampered() as (path, connection):
        move(connection, at.position - 1, 1)
        connection.execute(
            "INSERT INTO event SELECT ?, stream, revision, ?, type, meta, data "
            "FROM event WHERE position = ?",
            (at.position, forged.bytes, at.position + 1),
        )
        verdict = verified(path)
    assert named(verdict) == identity(at)  # it copies all that is shown of the one it precedes
    assert verdict.fault is not None
    assert "inserted" in verdict.fault.what


@given(picked, picked)
@examples(100)
def test_of_two_swapped_events_the_first_is_named(one: int, other: int) -> None:
    first, second = sorted((told_event(one), told_event(other)), key=lambda e: e.position)
    if first == second:
        return
    with tampered() as (path, connection):
        for was, now in ((first, -1), (second, first.position), (replace(first, position=-1), 0)):
            position = now or second.position
            connection.execute(
                "UPDATE event SET position = ? WHERE position = ?", (position, was.position)
            )
        verdict = verified(path)
    assert named(verdict) == identity(first)
    assert verdict.fault is not None
    assert f"swapped with the event at position {second.position}" in verdict.fault.what


@given(picked)
@examples(60)
def test_an_end_that_was_cut_off_is_named(pick: int) -> None:
    event = told_event(pick)
    with tampered() as (path, connection):
        connection.execute("DELETE FROM event WHERE position >= ?", (event.position,))
        verdict = verified(path)
        assert named(verdict) == identity(event)
        connection.execute("DELETE FROM link WHERE position >= ?", (event.position,))
        unlinked = verified(path).fault
    assert unlinked is not None
    assert "cut off" in unlinked.what
    assert unlinked.position == event.position


# --- all evidence in the store is rewritten too -------------------------------------------------


def rewrite(connection: sqlite3.Connection, at: int) -> None:
    """Alter an event and make all links and roots after it agree with what stands there then."""
    root, lasts = START, dict[StreamId, bytes]()
    checkpoints = {row[0] for row in connection.execute("SELECT position FROM checkpoint")}
    for stored in events_in(connection):
        schema, origin = chain.read_meta(stored.meta).schema, chain.read_meta(stored.meta).origin
        meta = chain.meta_of(schema, lasts.get(stored.stream, chain.GENESIS), origin)
        data = stored.data + b"x" if stored.position == at else stored.data
        event = replace(stored, meta=meta, data=data)
        hash_ = lasts[event.stream] = chain.stored_hash(event)
        root = root_with(root, event, hash_)
        connection.execute(
            "UPDATE event SET meta = ?, data = ? WHERE position = ?", (meta, data, event.position)
        )
        connection.execute(
            "UPDATE link SET hash = ? WHERE position = ?",
            (link_of(event, hash_).hash, event.position),
        )
        if event.position in checkpoints:
            connection.execute(
                "UPDATE checkpoint SET root = ? WHERE position = ?", (root.root, event.position)
            )


@given(picked, st.sampled_from(["kept", "stripped", "another key's"]))
@examples(60)
def test_a_chain_that_was_rewritten_whole_is_found_by_its_signatures(
    pick: int, signatures: str
) -> None:
    event = told_event(pick)
    before = [position for position in book().checkpoints if position < event.position]
    with tampered() as (path, connection):
        rewrite(connection, event.position)
        if signatures == "stripped":
            connection.execute(
                "UPDATE checkpoint SET key_id = '', signature = x'' WHERE position >= ?",
                (event.position,),
            )
        if signatures == "another key's":
            sign_anew(connection, signing_key(path.parent), event.position)
        verdict = verified(path)
        assert verified(path, PublicKeys([])).fault is None, "nothing else can tell"
        _, differs = compared(path)
    assert differs is not None
    assert (differs.position, differs.until) == (event.position, event.position), "ledger knows"
    fault = verdict.fault
    assert fault is not None
    safe = before[-1] if before else 0
    if signatures == "stripped" and not before:
        assert "none of the checkpoints is signed" in fault.what
    else:
        assert (fault.position, fault.until) == (
            safe + 1,
            next(p for p in book().checkpoints if p >= event.position),
        )
    assert fault.position <= event.position <= fault.until


def sign_anew(connection: sqlite3.Connection, key: SigningKey, since: int) -> None:
    rows = connection.execute(
        "SELECT book_epoch, position, count, root, written_at_ms FROM checkpoint "
        "WHERE position >= ?",
        (since,),
    ).fetchall()
    for epoch, position, count, root, at_ms in rows:
        signed = key.signed(Checkpoint(epoch, Root(position, count, root), at_ms))
        connection.execute(
            "UPDATE checkpoint SET key_id = ?, signature = ? WHERE position = ?",
            (signed.key_id, signed.signature, position),
        )


# --- less evidence ------------------------------------------------------------------------------


@given(picked)
@examples(60)
def test_of_events_without_a_link_two_neighbours_or_a_span_are_named(pick: int) -> None:
    """Earlier releases kept no links: the chain of the stream, or the next root, says less."""
    event = told_event(pick)
    with tampered() as (path, connection):
        connection.execute("DELETE FROM link")
        connection.execute(ALTERED["data"], (event.position,))
        fault = verified(path).fault
    assert fault is not None
    assert fault.position <= event.position <= fault.until


def test_what_came_after_the_last_telling_is_followed_by_its_stream() -> None:
    untold = book().events[-2]
    with tampered() as (path, connection):
        connection.execute(ALTERED["data"], (untold.position,))
        fault = verified(path).fault
    assert fault is not None
    assert (fault.position, fault.until) == (untold.position, untold.position + 1)
    assert "one of the two was altered" in fault.what


# --- what a person reads ------------------------------------------------------------------------


def said_by_verify(
    path: Path, capsys: pytest.CaptureFixture[str], *, key: Path | None
) -> tuple[int, str]:
    settings = VendingSettings(store_path=path, signing_key=key)
    code = commands.carried_out(commands.parsed(["verify"]), settings)
    return code, capsys.readouterr().out


def test_a_person_reads_which_event_it_was_or_among_which_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, key = book(), book().path.with_name("key.pem")
    code, said = said_by_verify(made.path, capsys, key=key)
    assert code == 0
    assert f"{len(made.events)} events in 7 streams are unaltered" in said
    assert f"signed up to position {made.told} by key {made.key.key_id}" in said
    assert "no key is set" in said_by_verify(made.path, capsys, key=None)[1]
    event = told_event(20)
    with tampered() as (path, connection):
        connection.execute(ALTERED["data"], (event.position,))
        code, said = said_by_verify(path, capsys, key=key)
        assert code == commands.FAULT_FOUND
        assert f"position {event.position}: {event.stream} revision {event.revision}" in said
    with tampered() as (path, connection):
        rewrite(connection, event.position)
        code, said = said_by_verify(path, capsys, key=key)
        assert code == commands.FAULT_FOUND
        safe = max(p for p in made.checkpoints if p < event.position)
        until = min(p for p in made.checkpoints if p >= event.position)
        assert f"one of the events at positions {safe + 1} to {until}" in said
        assert "no good signature of a known key" in said


# --- keys, and books that live ------------------------------------------------------------------


def test_checkpoints_of_a_former_key_hold_while_it_is_listed(tmp_path: Path) -> None:
    former, present = signing_key(tmp_path), signing_key(tmp_path, "next.pem")

    async def signed_by_both() -> tuple[Verdict, Verdict]:
        path = tmp_path / "events.sqlite"
        async with vending_world.world(path) as world:
            await world.mall()
            first = await published(world, Notebook(), signed=former.signed)
            begin = Root(
                first.position, first.count, (await world.tables.checkpoints())[-1].root.root
            )
            await world.sell(100)
            await published(world, Notebook(), begin=begin, signed=present.signed)
        both = await _verified(path, PublicKeys([former.public, present.public]))
        return both, await _verified(path, PublicKeys([present.public]))

    both, one = asyncio.run(signed_by_both())
    assert both.fault is None
    assert both.signed is not None
    assert both.signed.key_id == present.key_id
    assert one.fault is not None
    assert "lacks its key" in one.fault.what


async def test_a_book_is_verified_while_it_is_sold_on(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    async with vending_world.world(path) as world:
        await told_in_rounds(world, lambda unsigned: unsigned)
        selling = asyncio.create_task(sell_on(world))
        verdicts: list[Verdict] = []
        async with asyncio.timeout(DEADLINE_S):
            while len({verdict.root.count for verdict in verdicts}) < 3:
                verdicts.append(await asyncio.to_thread(verified, path, PublicKeys([])))
        selling.cancel()
        await asyncio.gather(selling, return_exceptions=True)
    assert not any(verdict.fault for verdict in verdicts)


async def sell_on(world: World) -> None:
    while True:
        await world.sell(5)


def test_a_reader_does_not_write() -> None:
    first = book().events[0]

    async def reads_and_writes(path: Path) -> None:
        async with stores.reading(f"sqlite:{path}", "test") as stored:
            assert await stored.store.read_all(FROM_START, 1) == [first]
            with pytest.raises(Exception, match="opened to read it"):
                await stored.store.append(
                    first.stream, 5, [NewEvent(uuid4(), "cuts-held", b"", b"{}")]
                )

    asyncio.run(reads_and_writes(book().path))
