"""Goal: a book on PostgreSQL is imported, verified and asked like one in a SQLite file.

Method: what a relay told of a book in a file is imported into an empty database, in the order of
the book; then somebody with the database's own rights tampers with it.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.vending.adapters import stores
from services.vending.adapters.keys import PublicKeys, SigningKey
from services.vending.adapters.postgres_database import SCHEMA
from services.vending.adapters.scratch import ScratchLasts
from services.vending.application.auditing import Sought, trail
from services.vending.application.importing import import_ledger
from services.vending.application.relay import START
from services.vending.application.verifying import Verdict, compare, verify
from services.vending.domain.event_store import FROM_START, StoredEvent
from services.vending.domain.origin import Origin
from tests.contract.databases import execute, fresh_database
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook, published
from tests.unit.vending_ledger import as_ledger, told_in
from tools.stack import keyfile
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

TILL = Origin("till", "u-81", "10.0.3.7", "office u-2")


@pytest.fixture
async def address(stack: BackgroundStack) -> AsyncIterator[str]:
    async with fresh_database(stack.postgres_dsn) as made:
        yield made


async def verified(address: str, keys: PublicKeys) -> Verdict:
    async with stores.reading(address, "test") as stored:
        with ScratchLasts() as lasts:
            return await verify(stored.store, stored.tables, lasts, keys, lambda *_: None)


async def test_a_book_is_brought_into_postgresql_verified_and_tampered_with(
    address: str, tmp_path: Path
) -> None:
    key, notebook = SigningKey(keyfile.made(tmp_path / "signing.pem")), Notebook()
    keys, whole = PublicKeys([key.public]), list[StoredEvent]()
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        await world.mall()
        await world.account("A2")
        for amount_minor in range(100, 130):  # now the one, now the other, now one twice
            request = world.ask(amount_minor, origin=TILL)
            await world.sell(amount_minor, "A2" if amount_minor % 3 else "A1", request=request)
        await world.assign()
        await published(world, notebook, begin=START, signed=key.signed)
        whole += await world.store.read_all(FROM_START, 1000)
    told = told_in(notebook.records)
    async with stores.opened(address, "test") as stored:
        done = await import_ledger(
            stored.store, stored.tables, as_ledger(told), keys, lambda _: None
        )
        assert (done.count, done.checkpoint) == (len(whole), told[-1])
        assert await stored.store.read_all(FROM_START, 1000) == whole
        sought = Sought(actor="u-81", type="credit-sold")
        found = [e async for e in trail(stored.store, stored.tables, sought, FROM_START)]
        assert {entry.origin for entry in found} == {TILL}
        assert len(found) == 30
        good = await verified(address, keys)
    assert (good.fault, good.linked) == (None, len(whole))
    sold = whole[20]
    await execute(
        address,
        f"ALTER TABLE {SCHEMA}.event DISABLE TRIGGER ALL",
        f"UPDATE {SCHEMA}.event SET data = data || 'x'::bytea WHERE position = {sold.position}",
    )
    fault = (await verified(address, keys)).fault
    assert fault is not None
    named = (fault.position, fault.until, fault.stream, fault.revision, fault.type)
    assert named == (sold.position, sold.position, sold.stream, sold.revision, sold.type)
    async with stores.reading(address, "test") as stored:
        _, differs = await compare(stored.store, as_ledger(told), lambda _: None)
    assert differs is not None
    assert differs.position == sold.position
