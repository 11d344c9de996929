"""Goal: what the relay vouches for can be proved later, to somebody who trusts a public key alone.

Method: the relay with a key from a PEM file; what it publishes and what the store keeps are checked
with the key's public half, days and keys later.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from services.common.runtime.settings import WrongSettings
from services.vending.adapters import stores
from services.vending.adapters.keys import PublicKeys, SigningKey, public_keys_in
from services.vending.domain.event_store import StreamId
from services.vending.domain.tables import CHECKPOINTS_KEPT, Checkpoint, Link, Root
from tests.unit import vending_world
from tests.unit.test_vending_relay import Notebook, published
from tests.unit.vending_world import World
from tools.stack import keyfile

DAY_MS = 86_400_000


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with vending_world.world(tmp_path / "events.sqlite") as opened:
        await opened.mall()
        yield opened


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey(keyfile.made(tmp_path / "signing.pem"))


def pem_of(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


async def test_a_published_checkpoint_is_signed_and_kept_as_it_was_published(
    world: World, key: SigningKey
) -> None:
    notebook = Notebook()
    await published(world, notebook, signed=key.signed)
    said = notebook.records[-1].record
    (kept,) = await world.tables.checkpoints()
    assert kept == Checkpoint(
        said["book_epoch"],
        Root(said["position"], said["count"], said["root"]),
        said["written_at_ms"],
        said["key_id"],
        said["signature"],
    )
    # As the schema's page says it, so that others can check it without this code.
    message = (
        f"wattvend ledger checkpoint\n{said['book_epoch']}\n{said['position']}\n{said['count']}\n"
        f"{said['root'].hex()}\n{said['written_at_ms']}\n"
    ).encode()
    key.public.verify(said["signature"], message)
    assert said["key_id"] == sha256(key.public.public_bytes_raw()).hexdigest()[:16]


async def test_without_a_key_a_checkpoint_is_not_signed(world: World) -> None:
    notebook = Notebook()
    await published(world, notebook)
    said = notebook.records[-1].record
    assert (said["key_id"], said["signature"]) == (None, None)


def test_a_signature_is_of_one_key_and_one_checkpoint(tmp_path: Path, key: SigningKey) -> None:
    other = SigningKey(keyfile.made(tmp_path / "other.pem"))
    signed = key.signed(Checkpoint(1, Root(7, 7, bytes(32)), 5))
    keys = PublicKeys([other.public, key.public])
    assert keys.vouch_for(signed)
    for altered in (
        replace(signed, book_epoch=2),
        replace(signed, written_at_ms=6),
        replace(signed, root=Root(8, 7, bytes(32))),
        replace(signed, root=Root(7, 6, bytes(32))),
        replace(signed, root=Root(7, 7, b"\1" * 32)),
        replace(signed, key_id=other.key_id),
        replace(signed, signature=b""),
    ):
        assert not keys.vouch_for(altered)
    assert not PublicKeys([other.public]).vouch_for(signed)


def test_a_file_may_list_former_keys_and_only_such(tmp_path: Path, key: SigningKey) -> None:
    other = SigningKey(keyfile.made(tmp_path / "other.pem"))
    path = tmp_path / "public.pem"
    path.write_bytes(b"# till 2027\n" + pem_of(key.public) + pem_of(other.public))
    signed = [k.signed(Checkpoint(1, Root(7, 7, bytes(32)))) for k in (key, other)]
    assert all(map(PublicKeys(public_keys_in(path)).vouch_for, signed))
    for odd in (b"", b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----\n"):
        path.write_bytes(odd)
        with pytest.raises(WrongSettings, match="WATTVEND_VENDING_PUBLIC_KEYS"):
            public_keys_in(path)


def test_what_is_no_signing_key_is_refused_with_how_to_make_one(tmp_path: Path) -> None:
    path = tmp_path / "odd.pem"
    with pytest.raises(WrongSettings, match="openssl genpkey -algorithm ed25519"):
        SigningKey(path)
    other_kind = generate_private_key(SECP256R1())
    path.write_bytes(other_kind.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(WrongSettings, match="openssl genpkey -algorithm ed25519"):
        SigningKey(path)


async def test_the_newest_checkpoints_stay_and_of_older_ones_the_last_of_each_day(
    world: World,
) -> None:
    a_day = 3 * CHECKPOINTS_KEPT
    for number in range(3 * a_day):
        root = Root(number + 1, number + 1, bytes(32))
        at_ms = DAY_MS * (number // a_day) + number
        await world.tables.keep_checkpoint(Checkpoint(1, root, at_ms))
    positions = [checkpoint.root.position for checkpoint in await world.tables.checkpoints()]
    newest = list(range(3 * a_day - CHECKPOINTS_KEPT + 1, 3 * a_day + 1))
    assert positions == [a_day, 2 * a_day, *newest]


async def test_in_a_raised_book_epoch_nobody_vouches_for_what_the_store_lost(
    world: World,
) -> None:
    """As where the events are on a server that was put back, and the tables were not."""
    await published(world, Notebook())
    head = await world.store.head()
    (kept,) = await world.tables.checkpoints()
    gone = Root(head + 1, head + 1, bytes(32))
    await world.tables.keep_checkpoint(Checkpoint(1, gone, kept.written_at_ms))
    link = Link(head + 1, StreamId("account-A1"), 7, uuid4(), "credit-sold", bytes(32))
    await world.tables.keep_links([link])
    await world.tables.raise_book_epoch(2, head)
    assert await world.tables.checkpoints() == [kept]
    assert await world.tables.linked_until() == head


async def test_the_roots_that_an_earlier_release_kept_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    async with stores.opened(f"sqlite:{path}", "test") as stored:
        await stored.tables.raise_book_epoch(3, 0)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE checkpoint")
        connection.execute("INSERT INTO root VALUES(7, 7, ?)", (b"\1" * 32,))
        connection.commit()
    for _ in range(2):
        async with stores.opened(f"sqlite:{path}", "test") as stored:
            assert await stored.tables.root_at(7) == Root(7, 7, b"\1" * 32)
            assert await stored.tables.checkpoints() == [Checkpoint(3, Root(7, 7, b"\1" * 32))]
