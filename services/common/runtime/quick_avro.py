"""Avro records written by what their schema says, faster than fastavro writes them.

fastavro asks of each value again which of a schema's types it is. Here a schema becomes, once, a
function for each field. They write what is surely right and raise Doubt at anything else: a type
that is not known here, a value that is not exactly of its field's type, a field too few or too
many. Then fastavro decides, as it always did, what becomes of the record.
"""

from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

Write = Callable[[Any], bytes]

_NONE, _SOME, _END = b"\x00", b"\x02", b"\x00"
_INT, _LONG = 1 << 31, 1 << 63
_PAIR, _MASK = 1 << 14, (1 << 14) - 1
_MORE = [bytes((bits & 0x7F | 0x80, bits >> 7 | 0x80)) for bits in range(_PAIR)]
_LAST = [
    bytes((bits,)) if bits < 1 << 7 else bytes((bits & 0x7F | 0x80, bits >> 7))
    for bits in range(_PAIR)
]
"""The two bytes of 14 bits where more follow, and the one or two at the end."""
_SIZE = _PAIR >> 1


class Doubt(Exception):  # noqa: N818 - no error: somebody else decides
    """What came is written by fastavro, or refused by it."""


def writer(schema: Any) -> Write:
    """Return what writes the values of a schema that fastavro has parsed. Raises Doubt."""
    match schema:
        case str() if schema in _PLAIN:
            return _PLAIN[schema]
        case ["null", other]:
            return _optional(writer(other))
        case {"type": "array", "items": items}:
            return _array(writer(items))
        case {"type": "record", "fields": fields} if len(fields) > 1:
            return _record({field["name"]: writer(field["type"]) for field in fields})
    raise Doubt(schema)


def _varint(number: int) -> bytes:
    """Return a number >= 0, seven bits a byte, the lowest first."""
    if number < _PAIR:
        return _LAST[number]
    if number < 1 << 28:
        return _MORE[number & _MASK] + _LAST[number >> 14]
    return _MORE[number & _MASK] + _MORE[number >> 14 & _MASK] + _varint(number >> 28)


def _long(value: Any) -> bytes:
    if type(value) is not int or not -_LONG <= value < _LONG:
        raise Doubt
    return _varint(value << 1 ^ value >> 63)


def _int(value: Any) -> bytes:
    if type(value) is not int or not -_INT <= value < _INT:
        raise Doubt
    return _varint(value << 1 ^ value >> 63)


def _boolean(value: Any) -> bytes:
    if type(value) is not bool:
        raise Doubt
    return b"\x01" if value else b"\x00"


def _bytes(value: Any) -> bytes:
    if type(value) is not bytes:
        raise Doubt
    size = len(value)
    return (_LAST[size << 1] if size < _SIZE else _varint(size << 1)) + value


def _string(value: Any) -> bytes:
    if type(value) is not str:
        raise Doubt
    encoded = value.encode()
    size = len(encoded)
    return (_LAST[size << 1] if size < _SIZE else _varint(size << 1)) + encoded


def _optional(write: Write) -> Write:
    def optional(value: Any) -> bytes:
        return _NONE if value is None else _SOME + write(value)

    return optional


def _array(write: Write) -> Write:
    def array(values: Any) -> bytes:
        if type(values) is not list:
            raise Doubt
        return b"".join((_varint(len(values) << 1), *map(write, values), _END)) if values else _END

    return array


def _record(writes: Mapping[str, Write]) -> Write:
    count, values_of = len(writes), itemgetter(*writes)
    in_order = list(writes.values())

    def record(values: Any) -> bytes:
        if type(values) is not dict or len(values) != count:
            raise Doubt
        try:
            parts = [write(value) for write, value in zip(in_order, values_of(values), strict=True)]
        except (KeyError, UnicodeEncodeError):
            raise Doubt from None
        return b"".join(parts)

    return record


_PLAIN: dict[str, Write] = {
    "string": _string,
    "bytes": _bytes,
    "long": _long,
    "int": _int,
    "boolean": _boolean,
}
