"""Rows and balances as batches of Kafka records, written as columns.

aiokafka's builder takes records one by one. Rows of one size lie the same distance apart, so that
their records can be written all at once: a third of the time, and the rows of a full frame are
most of what metering writes. Format: Kafka's record batch, version 2, as aiokafka builds it.
"""

import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby

import numpy as np
from aiokafka.codec import snappy_encode
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBase
from aiokafka.record.util import encode_varint
from google_crc32c import value as crc32c

from services.metering.adapters.columns import Column, Octets, beside, numbers, same
from services.metering.domain.messages import Row, Rows, RowTable

HEADER = DefaultRecordBase.HEADER_STRUCT
UNTIL_CRC, AFTER_CRC = ">qiibI", ">hiqqqhii"
"""Its parts: the checksum is of what comes behind it."""
MAGIC = 2
NO_LEADER_EPOCH = -1
UNCOMPRESSED, SNAPPY = DefaultRecordBase.CODEC_NONE, DefaultRecordBase.CODEC_SNAPPY
BATCH_BYTES_MAX = 1 << 20
RECORD_OVERHEAD_BYTES = 16
"""More than length, attributes and deltas of a record take."""
ONE_BYTE_MAX, TWO_BYTES_MAX = 1 << 6, 1 << 13
"""Numbers below them take one byte, two bytes, as a zigzag varint."""


class EncodedBatch(BatchBuilder):
    """A batch for `AIOKafkaProducer.send_batch`, complete: `count` records, encoded in `parts`.

    Compressed as aiokafka compresses what is sent one by one; not where that gains nothing, so that
    no batch is larger than its records.
    """

    def __init__(self, parts: Iterable[Octets], count: int) -> None:
        super().__init__(0, SNAPPY)
        records = b"".join([part.data for part in parts])
        packed = snappy_encode(records)
        is_smaller = len(packed) < len(records)
        self._codec, self._records = (SNAPPY, packed) if is_smaller else (UNCOMPRESSED, records)
        self._relative_offset = count
        self._size = HEADER.size + len(self._records)
        self._written_at_ms = time.time_ns() // 1_000_000
        self._producer_state = (-1, -1, 0)
        self.close()

    def size(self) -> int:
        return self._size

    def _set_producer_state(self, producer_id: int, producer_epoch: int, sequence: int) -> None:
        self._producer_state = (producer_id, producer_epoch, sequence)

    def _build(self) -> bytes:
        if self._buffer is None:
            count = self._relative_offset
            times_ms = (self._written_at_ms, self._written_at_ms)
            after_crc = struct.pack(
                AFTER_CRC, self._codec, count - 1, *times_ms, *self._producer_state, count
            )
            data = after_crc + self._records
            length = self._size - DefaultRecordBase.AFTER_LEN_OFFSET
            self._buffer = (
                struct.pack(UNTIL_CRC, 0, length, NO_LEADER_EPOCH, MAGIC, crc32c(data)) + data
            )
            self._records = b""
        return self._buffer


class RowBatch(EncodedBatch):
    """A batch of rows, a sequence a record of the shard log."""

    def __init__(self, records: Iterable[Sequence[Row]]) -> None:
        parts = list(_encoded(records))
        super().__init__(parts, sum(map(len, parts)))


def record_batches(
    keys: Column, values: Column, headers: Mapping[str, Column]
) -> list[EncodedBatch]:
    """Return records in their order, in as many batches as they need.

    `keys` and `headers` with their sizes before them, as `columns.texts` gives them.
    """
    of_headers = [part for name, of in headers.items() for part in (same(_sized(name)), of)]
    rest = beside(keys, numbers(values.sizes), values, same(_varint(len(headers))), *of_headers)
    sizes = rest.sizes
    ends = np.cumsum(sizes + RECORD_OVERHEAD_BYTES)
    batches, start, left_of = [], 0, 0
    while start < len(sizes):
        end = int(np.searchsorted(ends, left_of + BATCH_BYTES_MAX - HEADER.size, side="right"))
        end = max(end, start + 1)  # one that is too large is the producer's to refuse
        within = slice(start, end)
        begins = beside(same(b"\0\0"), numbers(np.arange(end - start)))  # attributes, time delta
        lengths = numbers(begins.sizes + sizes[within])
        records = beside(lengths, begins, rest.of(within))
        batches.append(EncodedBatch([records.packed()], end - start))
        start, left_of = end, int(ends[end - 1])
    return batches


def _sized(text: str) -> bytes:
    return _varint(len(text)) + text.encode()


def _encoded(records: Iterable[Sequence[Row]]) -> Iterator[Octets]:
    """Yield rows as records, a line each, in their order."""
    tables = chain.from_iterable(map(_tables, records))
    at = 0
    for _, alike in groupby(tables, lambda table: (table.keys.shape[1], table.values.shape[1])):
        found = list(alike)
        keys, values = found[0].keys, found[0].values
        if len(found) > 1:
            keys = np.concatenate([table.keys for table in found])
            values = np.concatenate([table.values for table in found])
        for start, end in _of_one_width(at, at + len(keys)):
            within = slice(start - at, end - at)
            yield _records(start, keys[within], values[within])
        at += len(keys)


def _tables(rows: Sequence[Row]) -> Iterable[RowTable]:
    if isinstance(rows, Rows):
        return rows.tables
    return (_table(list(alike)) for _, alike in groupby(rows, lambda row: tuple(map(len, row))))


def _table(rows: Sequence[Row]) -> RowTable:
    """Return rows of the same sizes as a table."""
    parts = (np.frombuffer(b"".join(of_each), np.uint8) for of_each in zip(*rows, strict=True))
    keys, values = (part.reshape(len(rows), -1) for part in parts)
    return RowTable(np.arange(len(rows)), keys, values)


def _of_one_width(start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a range of numbers in which a varint of each takes as many bytes."""
    for edge in (ONE_BYTE_MAX, TWO_BYTES_MAX):
        if start < min(edge, end):
            yield start, min(edge, end)
            start = min(edge, end)
    if start < end:
        yield start, end


def _records(start: int, keys: Octets, values: Octets) -> Octets:
    """Return rows as records whose offsets begin at `start`; offset deltas of one width."""
    count = len(keys)
    deltas = np.arange(start, start + count) << 1
    width = len(_varint(start))
    parts = [
        _octets(b"\0\0"),  # attributes, time delta
        *(
            (deltas >> 7 * i & 0x7F | (0x80 if i < width - 1 else 0))[:, np.newaxis]
            for i in range(width)
        ),
        _octets(_varint(keys.shape[1])),
        keys,
        _octets(_varint(values.shape[1])),
        values,
        _octets(b"\0"),  # headers
    ]
    parts.insert(0, _octets(_varint(sum(part.shape[1] for part in parts))))
    table = np.empty((count, sum(part.shape[1] for part in parts)), np.uint8)
    at = 0
    for part in parts:
        table[:, at : at + part.shape[1]] = part
        at += part.shape[1]
    return table


def _octets(of_each: bytes) -> Octets:
    return np.frombuffer(of_each, np.uint8)[np.newaxis]


def _varint(number: int) -> bytes:
    out = bytearray()
    encode_varint(number, out.append)
    return bytes(out)
