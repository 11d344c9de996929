"""Texts and numbers of many records, encoded as columns and put side by side.

Avro and Kafka agree on both: a number is a zigzag varint, a text its length and its bytes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from services.common.kernel.values import value_class
from services.common.runtime import codec

Octets = npt.NDArray[np.uint8]

_GROUP_BITS, _GROUP_MASK = 7, np.uint8(0x7F)
_SHIFTS = np.arange(0, 64, _GROUP_BITS).astype(np.uint64)


@value_class
class Column:
    """Bytes of each record: of `octets`, (n, width), those that `taken`, (n, width), says.

    n may be 1: the same for each.
    """

    octets: Octets
    taken: npt.NDArray[np.bool_]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """How many bytes each record has here."""
        return self.taken.sum(axis=1, dtype=np.int64)

    def of(self, records: slice) -> "Column":
        """Return the bytes of some records."""
        return Column(self.octets[records], self.taken[records])

    def repeated(self, counts: Sequence[int]) -> "Column":
        """Return the bytes of each record as often as `counts` says."""
        return Column(np.repeat(self.octets, counts, axis=0), np.repeat(self.taken, counts, axis=0))

    def packed(self) -> Octets:
        """Return the bytes of all records, behind each other."""
        return self.octets[self.taken]


def same(octets: bytes) -> Column:
    """Return bytes that each record has."""
    return fixed(np.frombuffer(octets, np.uint8)[np.newaxis])


def fixed(octets: Octets) -> Column:
    """Return bytes, (n, width), of which each record has as many."""
    return Column(octets, np.ones(octets.shape, np.bool_))


def numbers(values: Sequence[int] | npt.NDArray[np.int64]) -> Column:
    """Return int64 as zigzag varints. Raises OverflowError where one is beyond that."""
    signed = np.asarray(values, np.int64)
    zigzag = (signed << 1 ^ signed >> 63).view(np.uint64)
    width = max(1, -(-int(zigzag.max(initial=0)).bit_length() // _GROUP_BITS))
    groups = zigzag[:, np.newaxis] >> _SHIFTS[:width]
    octets, taken = groups.astype(np.uint8) & _GROUP_MASK, np.ones(groups.shape, np.bool_)
    if width > 1:
        taken[:, 1:] = groups[:, 1:] != 0
        octets[:, :-1] |= taken[:, 1:].view(np.uint8) << _GROUP_BITS  # more follow
    return Column(octets, taken)


def texts(values: Sequence[bytes]) -> Column:
    """Return texts, with their sizes before them."""
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    width = int(sizes.max(initial=0))
    octets = np.array(values, f"S{max(width, 1)}").view(np.uint8).reshape(len(values), -1)
    return beside(numbers(sizes), Column(octets, np.arange(octets.shape[1]) < sizes[:, np.newaxis]))


def beside(*columns: Column) -> Column:
    """Return each record's bytes of one column behind those of the column before it."""
    count = max(len(column.octets) for column in columns)
    width = sum(column.octets.shape[1] for column in columns)
    octets, taken = np.empty((count, width), np.uint8), np.empty((count, width), np.bool_)
    at = 0
    for column in columns:
        within = slice(at, at + column.octets.shape[1])
        octets[:, within], taken[:, within] = column.octets, column.taken
        at = within.stop
    return Column(octets, taken)


def _strings(values: Sequence[str]) -> Column:
    return texts([value.encode() for value in values])


def _booleans(values: Sequence[bool]) -> Column:
    return fixed(np.asarray(values, np.bool_).view(np.uint8)[:, np.newaxis])


_KINDS: Mapping[str, Callable[[Any], Column]] = {
    "string": _strings,
    "long": numbers,
    "int": numbers,
    "boolean": _booleans,
}


def encoded(subject: str, columns: Mapping[str, Sequence[Any]]) -> Column:
    """Return the Avro values of records, given by field: what `codec.encode` makes of each.

    Of subjects whose fields are texts, numbers and booleans. Raises KeyError where a field is
    missing.
    """
    kinds = codec.kinds_of(subject)
    return beside(*(_KINDS[kind](columns[name]) for name, kind in kinds.items()))
