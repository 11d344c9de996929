"""The hash chain over the book: altering one stored event breaks every hash after it.

Two chains of sha256 over length-prefixed fields. In a stream each event's metadata holds the hash
of the event before it (`prev`), sealed by the writer, which knows the stream. Over the whole store
the relay, which alone sees the total order, folds the events' hashes into a root.
"""

from collections.abc import Iterable
from hashlib import sha256
from uuid import UUID

import orjson

from services.common.kernel.errors import Bug
from services.vending.domain.event_store import StoredEvent, StreamId

GENESIS = bytes(32)
"""The hash before the first event."""


def _digest(*fields: bytes) -> bytes:
    sized = [part for field in fields for part in (len(field).to_bytes(8, "big"), field)]
    return sha256(b"".join(sized)).digest()


def meta_of(schema: str, prev: bytes) -> bytes:
    """Return an event's metadata: the version of its data and the hash of the one before."""
    return f'{{"schema":"{schema}","prev":"{prev.hex()}"}}'.encode()


def schema_of(meta: bytes) -> str:
    """Return `subject/version` of an event's data."""
    return str(orjson.loads(meta)["schema"])


def prev_of(meta: bytes) -> bytes:
    """Return the hash of the event before, as the event's writer knew it."""
    return bytes.fromhex(orjson.loads(meta)["prev"])


def hash_of(stream: StreamId, revision: int, type_: str, data: bytes, meta: bytes) -> bytes:
    """Return an event's hash. `meta` holds `prev`, so it stands for all before it."""
    return _digest(stream.encode(), str(revision).encode(), type_.encode(), data, meta)


def stored_hash(event: StoredEvent) -> bytes:
    """Return the hash of a stored event."""
    return hash_of(event.stream, event.revision, event.type, event.data, event.meta)


def next_root(root: bytes, event_id: UUID, hash_: bytes) -> bytes:
    """Return the root of the chain over the store after an event of that id and hash."""
    return _digest(root, event_id.bytes, hash_)


class BrokenChain(Bug):
    """A stored event is not what was written."""


def check_stream_chain(
    last: dict[StreamId, tuple[int, bytes]], events: Iterable[StoredEvent]
) -> None:
    """Follow the chains of the streams through `events`; `last`: stream → (revision, hash).

    Raises BrokenChain at the first event that does not continue its stream.
    """
    for event in events:
        revision, prev = last.get(event.stream, (-1, GENESIS))
        if event.revision != revision + 1 or prev_of(event.meta) != prev:
            raise BrokenChain(
                f"{event.stream} at revision {event.revision} (position {event.position}) does "
                "not continue its chain: the store was altered or damaged. Restore a backup, or "
                "compare it with the topic `ledger`"
            )
        last[event.stream] = (event.revision, stored_hash(event))
