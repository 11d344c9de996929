"""aiokafka's requests, put together once.

As it comes, each level of a request joins the bytes of the level below: what a service produces is
copied six times before it reaches the socket. Here all parts are gathered and joined at the end.
"""

from collections.abc import Callable
from typing import Any

from aiokafka.protocol.struct import Struct
from aiokafka.protocol.types import Array, Bytes, Int32, Schema

from services.common.runtime.fence import wrap_method


def join_once() -> None:
    """Let every request of this process be encoded so. Patches aiokafka, once a process."""

    def flat(_: Callable[..., bytes]) -> Callable[..., bytes]:
        return encoded

    wrap_method(Struct, "encode", flat)


def encoded(request: Struct) -> bytes:
    """Return the bytes of a request, or of a part of one: what aiokafka's `encode` returns."""
    parts: list[bytes] = []
    _gather(request.SCHEMA, [request.__dict__[name] for name in request.SCHEMA.names], parts)
    return b"".join(parts)


def _gather(kind: Any, value: Any, parts: list[bytes]) -> None:
    if kind is Bytes and value is not None:
        parts += (Int32.encode(len(value)), value)
    elif type(kind) is Schema:
        for field, each in zip(kind.fields, value, strict=True):
            _gather(field, each, parts)
    elif type(kind) is Array and value is not None:
        parts.append(Int32.encode(len(value)))
        for each in value:
            _gather(kind.array_of, each, parts)
    else:
        parts.append(kind.encode(value))
