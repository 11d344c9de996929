"""Balances made as columns are those made one by one: key, value and headers, byte for byte.

Method: tables of any balances, as a handful of records publishes them, against the outputs that
they stand for, each encoded by fastavro and read back by aiokafka from the bytes of the batch.
"""

from typing import Any
from uuid import UUID

import numpy as np
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import example, given
from hypothesis import strategies as st

from services.common.kernel.ids import name_uuid, name_uuids
from services.common.runtime import codec
from services.metering.adapters import batches
from services.metering.adapters.batches import BATCH_BYTES_MAX, SNAPPY, EncodedBatch
from services.metering.adapters.columns import numbers, texts
from services.metering.adapters.decoding import place_of
from services.metering.adapters.outputs import balance_batches, headers
from services.metering.domain.messages import IDENTITY, BalanceTable
from tests.property.metering_runs import examples

INT64 = st.integers(-(2**63), 2**63 - 1)
SMALL = st.integers(0, 2**31 - 1)
NANO = st.integers(-(2**61), 2**61)
NAMES = st.text(max_size=70)


@st.composite
def tables(draw: st.DrawFn) -> BalanceTable:
    """Draw what one record of shard 3 publishes."""
    count = draw(st.integers(1, 5))
    figures = [
        (
            *(draw(INT64), draw(NANO), draw(NANO), draw(NANO)),
            *(draw(st.integers(0, 3)), draw(st.integers(0, 1))),
            *(draw(INT64), draw(INT64), draw(SMALL)),
        )
        for _ in range(count)
    ]
    identities = [tuple(draw(NAMES) for _ in IDENTITY) for _ in range(count)]
    offset, as_of_ms = draw(st.integers(0, 2**50)), draw(st.integers(0, 2**50))
    return BalanceTable(
        3, np.full(count, offset), np.full(count, as_of_ms), identities, np.array(figures)
    )


@examples(200)
@given(st.lists(st.tuples(tables(), NAMES), min_size=1, max_size=4), st.integers(200, 3_000))
def test_balances_as_columns_are_balances_one_by_one(
    published: list[tuple[BalanceTable, str]], room: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "BATCH_BYTES_MAX", room)
        found = [record for batch in balance_batches(published) for record in read(batch)]
    expected = [
        (
            output.key.encode(),
            codec.encode(output.subject, output.record),
            headers(output, place_of(3, int(table.log_offsets[0])), traceparent),
        )
        for table, traceparent in published
        for output in table.outputs()
    ]
    assert found == expected


def read(batch: EncodedBatch) -> list[tuple[Any, Any, list[tuple[str, Any]]]]:
    """Return (key, value, headers) of the records of a batch, as aiokafka reads them."""
    records = MemoryRecords(bytes(batch._build()))
    found = records.next_batch()
    assert found is not None
    assert found.validate_crc()
    assert not records.has_next()
    read: list[Any] = list(found)
    assert [record.offset for record in read] == list(range(batch.record_count()))
    return [(record.key, record.value, list(record.headers)) for record in read]


def test_a_batch_of_balances_is_byte_for_byte_what_aiokafka_would_build() -> None:
    """Of thousands, so that offsets take one byte and two; and no batch is too large."""
    published = [(many(5_000), "00-trace"), (many(5_000, offset=8), "")]
    built = balance_batches(published)
    outputs = [output for table, _ in published for output in table.outputs()]
    assert sum(batch.record_count() for batch in built) == len(outputs)
    assert len(built) > 1
    begin = 0
    for batch in built:
        end = begin + batch.record_count()
        batch._set_producer_state(5, 1, 7)
        size, encoded = batch.size(), bytes(batch._build())
        assert size == len(encoded) <= BATCH_BYTES_MAX
        expected = DefaultRecordBatchBuilder(2, SNAPPY, 0, 5, 1, 7, 1 << 30)
        at_ms = int.from_bytes(encoded[27:35], "big")
        for number, output in enumerate(outputs[begin:end]):
            first = begin + number < 5_000
            place = place_of(3, 7 if first else 8)
            expected.append(
                number,
                at_ms,
                output.key.encode(),
                codec.encode(output.subject, output.record),
                [*headers(output, place, "00-trace" if first else "")],
            )
        assert bytes(expected.build()) == encoded
        begin = end


def many(count: int, offset: int = 7) -> BalanceTable:
    identities = [(f"A{number}", "S1", "ZAR", "E1", "electricity") for number in range(count)]
    figures = np.arange(count * 9).reshape(count, 9) * 12_345
    figures[:, 4], figures[:, 5] = 2, 0
    return BalanceTable(3, np.full(count, offset), np.full(count, 99), identities, figures)


def test_a_balance_beyond_int64_is_refused_not_wrapped() -> None:
    table = many(2)
    table.figures[1, 1:4] = (2**63 - 1, -1, 0)
    with pytest.raises(OverflowError):
        balance_batches([(table, "")])


@examples(200)
@given(st.lists(INT64, min_size=1, max_size=20))
@example([-(2**63), 2**63 - 1, 0, -1, 1, 63, 64, -64, -65])
def test_numbers_are_avros_longs(values: list[int]) -> None:
    assert numbers(values).sizes.tolist() == [len(one(value)) for value in values]
    assert numbers(values).packed().tobytes() == b"".join(map(one, values))


@examples(200)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8))
@example([b"", b"\x00", b"a\x00\x00"])
def test_texts_keep_every_byte(values: list[bytes]) -> None:
    assert texts(values).packed().tobytes() == b"".join(one(len(v)) + v for v in values)


def one(value: int) -> bytes:
    """Return a number as fastavro writes it: it stands alone in a wake, behind shard 0."""
    return codec.encode("wake", {"shard": 0, "due_ms": value})[1:]


@examples(100)
@given(st.lists(st.tuples(NAMES, INT64, NAMES), max_size=5))
def test_identities_of_many_are_those_of_each(names: list[tuple[str, int, str]]) -> None:
    joined = ("\x00".join(map(str, name)) for name in names)
    found = [UUID(bytes=each.tobytes()) for each in name_uuids(joined)]
    assert found == [name_uuid(*name) for name in names]
