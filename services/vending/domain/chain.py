"""The hash chain over the book: altering one stored event breaks every hash after it.

Two chains of sha256 over length-prefixed fields. In a stream each event's metadata holds the hash
of the event before it (`prev`), sealed by the writer, which knows the stream. Over the whole store
the relay, which alone sees the total order, folds the events' hashes into a root.
"""

from hashlib import sha256
from uuid import UUID

import orjson

from services.common.kernel.values import value_class
from services.vending.domain.event_store import StoredEvent, StreamId
from services.vending.domain.origin import NOBODY, Origin

GENESIS = bytes(32)
"""The hash before the first event."""


def _digest(*fields: bytes) -> bytes:
    sized: list[bytes] = []
    for field in fields:
        sized += (len(field).to_bytes(8, "big"), field)
    return sha256(b"".join(sized)).digest()


@value_class
class Meta:
    """What an event's metadata says.

    `schema`: subject/version of its data; `prev`: the hash of the event before it in its stream;
    `origin`: who asked for it.
    """

    schema: str
    prev: bytes
    origin: Origin


def meta_of(schema: str, prev: bytes, origin: Origin = NOBODY) -> bytes:
    """Return an event's metadata: JSON. What is not known of the origin is left out."""
    said: dict[str, object] = {"schema": schema, "prev": prev.hex()}
    if origin != NOBODY:
        known = {
            "caller": origin.caller,
            "actor": origin.actor,
            "peer": origin.peer,
            "approved_by": origin.approved_by,
        }
        said["origin"] = {name: text for name, text in known.items() if text}
    return orjson.dumps(said)


def read_meta(meta: bytes) -> Meta:
    """Return what the metadata of a stored event says."""
    said = orjson.loads(meta)
    return Meta(said["schema"], bytes.fromhex(said["prev"]), Origin(**said.get("origin", {})))


def schema_of(meta: bytes) -> str:
    """Return `subject/version` of an event's data."""
    schema: str = orjson.loads(meta)["schema"]
    return schema


def prev_of(meta: bytes) -> bytes:
    """Return the hash of the event before, as the event's writer knew it."""
    return read_meta(meta).prev


def hash_of(stream: StreamId, revision: int, type_: str, data: bytes, meta: bytes) -> bytes:
    """Return an event's hash. `meta` holds `prev`, so it stands for all before it."""
    return _digest(stream.encode(), str(revision).encode(), type_.encode(), data, meta)


def stored_hash(event: StoredEvent) -> bytes:
    """Return the hash of a stored event."""
    return hash_of(event.stream, event.revision, event.type, event.data, event.meta)


def next_root(root: bytes, event_id: UUID, hash_: bytes) -> bytes:
    """Return the root of the chain over the store after an event of that id and hash."""
    return _digest(root, event_id.bytes, hash_)
