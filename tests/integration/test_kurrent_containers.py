"""Goal: EventStoreDB and KurrentDB from their images keep what the double promises for them.

Method: the contract of event stores on each image, with TLS and its default user, which only those
who have Docker can run; each test has a book of its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import structlog
import trustme
from kurrentdbclient.exceptions import ServiceUnavailableError
from testcontainers.core.container import DockerContainer

from services.vending.adapters.indexed_store import IndexedEventStore
from services.vending.adapters.kurrent import writing
from services.vending.adapters.kurrent_control import ControlledTables
from services.vending.adapters.tables import nothing
from services.vending.domain.event_store import (
    FROM_START,
    NO_EVENTS,
    StoreUnavailable,
    WrongRevision,
)
from tests.contract.event_store import A, EventStoreContract, Unsure, new
from tests.integration.test_containers import why_no_docker

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

IMAGES = ("eventstore/eventstore:24.2.0-jammy", "kurrentplatform/kurrentdb:25.1.0")
"""The last under BSD that is a public image of that name, and one that is source-available."""
PORT = 2113
USER = "admin:changeit"
START_TIMEOUT_S = 90
LOG = structlog.stdlib.get_logger()


@pytest.fixture(scope="module", params=IMAGES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a node that has a certificate for this machine; yield its address without a book."""
    if (why := why_no_docker()) is not None:
        pytest.skip(f"no Docker daemon answers: {why}")
    directory = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA(key_type=trustme.KeyType.RSA)
    node = authority.issue_cert("127.0.0.1", "localhost", key_type=trustme.KeyType.RSA)
    (directory / "ca").mkdir()
    authority.cert_pem.write_to_path(directory / "ca" / "ca.crt")
    node.private_key_pem.write_to_path(directory / "node.key")
    node.cert_chain_pems[0].write_to_path(directory / "node.crt")
    for file in (directory, *directory.rglob("*")):
        file.chmod(0o755)  # the server's user is not ours
    server = (
        DockerContainer(request.param)
        .with_exposed_ports(PORT)
        .with_volume_mapping(directory, "/certificates")
        .with_env("EVENTSTORE_CLUSTER_SIZE", "1")
        .with_env("EVENTSTORE_RUN_PROJECTIONS", "All")
        .with_env("EVENTSTORE_START_STANDARD_PROJECTIONS", "true")
        .with_env("EVENTSTORE_CERTIFICATE_FILE", "/certificates/node.crt")
        .with_env("EVENTSTORE_CERTIFICATE_PRIVATE_KEY_FILE", "/certificates/node.key")
        .with_env("EVENTSTORE_TRUSTED_ROOT_CERTIFICATES_PATH", "/certificates/ca")
    )
    with server:
        yield (
            f"esdb://{USER}@127.0.0.1:{server.get_exposed_port(PORT)}/%s"
            f"?tlsCaFile={directory / 'ca' / 'ca.crt'}"
        )


def opened(
    url: str, tmp_path: Path
) -> AbstractAsyncContextManager[tuple[IndexedEventStore, ControlledTables]]:
    """Open a new book."""
    book = url % f"book_{uuid4().hex[:12]}"
    return writing(f"{book}&index={tmp_path / 'index.sqlite'}", "test", LOG, nothing)


async def started(stack: AsyncExitStack, url: str, tmp_path: Path) -> IndexedEventStore:
    """Open a new book as soon as the server is ready."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            store, _ = await stack.enter_async_context(opened(url, tmp_path))
        except StoreUnavailable:
            assert time.monotonic() < deadline_s, "the server is not ready"
            await asyncio.sleep(1)
        else:
            return store


@pytest.fixture
async def store(url: str, tmp_path: Path) -> AsyncIterator[IndexedEventStore]:
    async with AsyncExitStack() as stack:
        yield await started(stack, url, tmp_path)


@pytest.fixture
def unsure(store: IndexedEventStore) -> Unsure:
    """Lose the answer to the next append, or the append, on our side of the wire."""
    client: Any = store._server._client
    real = client.append_to_stream

    @asynccontextmanager
    async def unsure(stored: bool) -> AsyncIterator[None]:
        async def lost(*appended: Any, **how: Any) -> int:
            client.append_to_stream = real
            if stored:
                await real(*appended, **how)
            raise ServiceUnavailableError("the answer was lost")

        client.append_to_stream = lost
        yield
        assert client.append_to_stream is real

    return unsure


class TestKurrentImages(EventStoreContract):
    """The contract, on each image."""


async def test_a_repeated_append_is_answered_as_the_first_time_and_stored_once(
    store: IndexedEventStore,
) -> None:
    server, event = store._server, new()
    first = await server.append(A, NO_EVENTS, [event])
    await server.append(A, 0, [new()])
    assert (await server.append(A, NO_EVENTS, [event])).position == first.position
    with pytest.raises(WrongRevision):
        await server.append(A, NO_EVENTS, [event, new()])
    assert len(await server.read(A)) == 2


async def test_a_position_at_which_no_event_is_holds_none(store: IndexedEventStore) -> None:
    await store.append(A, NO_EVENTS, [new(), new()])
    first, second = await store.read_all(FROM_START, 10)
    for position in (first.position + 1, second.position - 1, second.position + 10**6):
        assert await store.event_at(position) is None
