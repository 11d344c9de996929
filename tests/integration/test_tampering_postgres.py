"""Goal: on PostgreSQL too the verifier names the first event that somebody tampered with.

Method: a told book, whose database each case tampers with a copy of, as one who owns it: triggers
off, constraints gone. (Of SQLite, with histories: tests/property/test_vending_tampering.py.)
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from services.common.kernel.values import value_class
from services.vending.adapters import stores
from services.vending.adapters.keys import PublicKeys, SigningKey
from services.vending.adapters.postgres_database import SCHEMA
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application.relay import START
from services.vending.application.verifying import Fault, verify
from services.vending.domain.event_store import FROM_START, StoredEvent
from tests.contract.databases import execute, fresh_database
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook, published
from tools.bench import copied_book
from tools.stack import keyfile
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

ROUNDS, SALES = 4, 5
OPEN = (
    f"ALTER TABLE {SCHEMA}.event DISABLE TRIGGER ALL",
    f"ALTER TABLE {SCHEMA}.stream DISABLE TRIGGER ALL",
    f"ALTER TABLE {SCHEMA}.event DROP CONSTRAINT event_stream_revision_key",
    f"SET search_path = {SCHEMA}",
)
ONE, OTHER = 14, 19
"""Positions that are tampered with."""
EVENT = "position, stream, revision, id, type, meta, data"


@value_class
class Case:
    """What somebody does, and between which positions the event is that must be named."""

    does: tuple[str, ...]
    position: int
    until: int = 0


def one(*does: str, position: int = ONE) -> Case:
    return Case(does, position, position)


CASES = {
    "data altered": one(f"UPDATE event SET data = data || 'x'::bytea WHERE position = {ONE}"),
    "metadata altered": one(f"UPDATE event SET meta = ' '::bytea || meta WHERE position = {ONE}"),
    "metadata that are none": one(f"UPDATE event SET meta = '' WHERE position = {ONE}"),
    "type altered": one(f"UPDATE event SET type = 'cuts-held' WHERE position = {ONE}"),
    "id altered": one(f"UPDATE event SET id = gen_random_uuid() WHERE position = {ONE}"),
    "stream altered": one(f"UPDATE event SET stream = 1 WHERE position = {ONE}"),
    "revision altered": one(f"UPDATE event SET revision = revision + 9 WHERE position = {ONE}"),
    "deleted in the middle": one(f"DELETE FROM event WHERE position = {ONE}"),
    "deleted, and the hole closed": one(
        f"DELETE FROM event WHERE position = {ONE}",
        f"UPDATE event SET position = -position WHERE position > {ONE}",
        "UPDATE event SET position = -position - 1 WHERE position < 0",
    ),
    "the end cut off": one(f"DELETE FROM event WHERE position >= {OTHER}", position=OTHER),
    "the end cut off with its links": Case(
        tuple(f"DELETE FROM {table} WHERE position >= {OTHER}" for table in ("event", "link")),
        OTHER,
        10**9,
    ),
    "two swapped": one(
        f"UPDATE event SET position = -1 WHERE position = {ONE}",
        f"UPDATE event SET position = {ONE} WHERE position = {OTHER}",
        f"UPDATE event SET position = {OTHER} WHERE position = -1",
    ),
    "inserted": one(
        f"UPDATE event SET position = -position WHERE position >= {ONE}",
        "UPDATE event SET position = -position + 1 WHERE position < 0",
        f"INSERT INTO event({EVENT}) SELECT {ONE}, stream, revision, gen_random_uuid(), type, "
        f"meta, data FROM event WHERE position = {ONE + 1}",
    ),
    "hidden": one(
        f"INSERT INTO event({EVENT}) SELECT -3, stream, revision + 99, gen_random_uuid(), type, "
        f"meta, data FROM event WHERE position = {ONE}",
        position=-3,
    ),
    "a stream deleted": one(
        "DELETE FROM stream WHERE name = 'site-S1'",
        position=1,
    ),
    "a stream named anew": one(
        "UPDATE stream SET name = 'site-S9' WHERE name = 'site-S1'",
        position=1,
    ),
    "the link altered": one(f"UPDATE link SET hash = '' WHERE position = {ONE}"),
    "links removed": one(f"DELETE FROM link WHERE position >= {ONE}"),
    "all links removed": one("DELETE FROM link", position=1),
    "a checkpoint altered": Case(("UPDATE checkpoint SET root = sha256('')",), 1, 10**9),
    "signatures removed": Case(("UPDATE checkpoint SET key_id = '', signature = ''",), 1, 10**9),
    "checkpoints removed": Case(("DELETE FROM checkpoint",), 1, 10**9),
}


@asynccontextmanager
async def copy_of(dsn: str) -> AsyncIterator[str]:
    """Make a copy of a database, and drop it."""
    parts = urlsplit(dsn)
    name = f"{parts.path[1:]}_copy"
    server = parts._replace(path="/postgres").geturl()
    await execute(server, f"CREATE DATABASE {name} TEMPLATE {parts.path[1:]}")
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def told_book(path: Path, key: SigningKey) -> list[StoredEvent]:
    """Write a book in which the relay came to a signed checkpoint again and again."""
    async with vending_world.world(path) as world:
        begin = START
        await world.mall()
        await world.account("A2")
        for _ in range(ROUNDS):
            for sale in range(SALES):
                await world.sell(100 + sale, "A1" if sale % 2 else "A2")
            await published(world, Notebook(), begin=begin, signed=key.signed)
            begin = (await world.tables.checkpoints())[-1].root
        assert begin.position > OTHER
        return await world.store.read_all(FROM_START, 1_000)


async def fault_in(dsn: str, keys: PublicKeys) -> Fault | None:
    async with stores.reading(dsn, "test") as stored:
        with ScratchLasts() as lasts:
            verdict = await verify(stored.store, stored.tables, lasts, keys, lambda *_: None)
    return verdict.fault


async def tampered(book: str, does: Sequence[str], keys: PublicKeys) -> Fault | None:
    async with copy_of(book) as dsn:
        await execute(dsn, "; ".join((*OPEN, *does)))
        return await fault_in(dsn, keys)


async def test_whatever_is_done_to_the_database_the_first_event_is_named(
    stack: BackgroundStack, tmp_path: Path
) -> None:
    key = SigningKey(keyfile.made(tmp_path / "signing.pem"))
    keys = PublicKeys([key.public])
    path = tmp_path / "events.sqlite"
    events = await told_book(path, key)
    assert all(event.position == number for number, event in enumerate(events, 1))
    found: dict[str, Fault | None] = {}
    async with fresh_database(stack.postgres_dsn) as book:
        await copied_book.copy(path, book, lambda _: None)
        assert await fault_in(book, keys) is None
        for name, case in CASES.items():
            found[name] = await tampered(book, case.does, keys)
    missed = {name for name, fault in found.items() if fault is None}
    assert not missed
    wrong = {
        name: fault
        for name, fault in found.items()
        if fault and not CASES[name].position == fault.position <= fault.until <= CASES[name].until
    }
    assert not wrong
