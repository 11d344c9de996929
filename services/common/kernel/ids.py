"""Identities. Everything derives from names by UUIDv5, so a repeat has the id of the first."""

from collections.abc import Iterable
from hashlib import sha1
from typing import NewType
from uuid import UUID, uuid5

import numpy as np
import numpy.typing as npt

SiteId = NewType("SiteId", str)
GatewayId = NewType("GatewayId", str)
LineId = NewType("LineId", str)
MeterId = NewType("MeterId", str)
AccountId = NewType("AccountId", str)
TariffId = NewType("TariffId", str)
PolicyId = NewType("PolicyId", str)
SubjectId = NewType("SubjectId", str)
Shard = NewType("Shard", int)

NAMESPACE = UUID("6f9619ff-8b86-5d01-b42d-00cf4fc964ff")
"""The root of every UUIDv5 of the product. Changing it changes every identity: never."""

READINGS = uuid5(NAMESPACE, "readings")
EVENTS = uuid5(NAMESPACE, "events")
KEYS = uuid5(NAMESPACE, "keys")

_EVENTS_BYTES = EVENTS.bytes
_UUID_MARKS_MASK = 0xF << 76 | 0x3 << 62
_UUID5_MARKS = 0x5 << 76 | 0x2 << 62

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
SERIAL_SIZE_MAX = 20
SHA1_SIZE = 20


def name_uuid(*parts: object) -> UUID:
    """Return the UUIDv5 of a natural identity, e.g. `name_uuid("alarm", account, offset, kind)`.

    Parts may hold any character but NUL, which parts them.
    """
    name = "\x00".join([str(part) for part in parts])
    digest = sha1(_EVENTS_BYTES + name.encode(), usedforsecurity=False).digest()
    bits = int.from_bytes(digest[:16], "big")
    return UUID(int=bits & ~_UUID_MARKS_MASK | _UUID5_MARKS)  # what uuid5 does, in half the time


def name_uuids(names: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Return the `name_uuid` of names, as bytes: (n, 16). Their parts are parted by NUL."""
    digests = [
        sha1(_EVENTS_BYTES + name.encode(), usedforsecurity=False).digest() for name in names
    ]
    found = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, SHA1_SIZE)[:, :16].copy()
    found[:, 6] = found[:, 6] & 0x0F | 0x50
    found[:, 8] = found[:, 8] & 0x3F | 0x80
    return found


def reading_id(serial: str, device_time_ms: int, registers_milli: tuple[int, ...]) -> UUID:
    """Return the identity of a reading: a repeated delivery has the same."""
    return uuid5(READINGS, f"{serial}\x00{device_time_ms}\x00{registers_milli}")


def column_key(kind: str, name: str) -> int:
    """Return the 63-bit key that stands for a meter or an account in columns (int64, > 0).

    `kind` is "meter" or "account". vending refuses a name whose key another name has.
    """
    return (uuid5(KEYS, f"{kind}\x00{name}").int >> 65) | 1


def house_account_id(meter_id: str) -> AccountId:
    """Return the account that owns a meter's energy while no customer does."""
    return AccountId(f"house:{meter_id}")
