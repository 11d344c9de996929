"""What goes into `absorb` and what comes out of it. Pure values; the shell does the I/O."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property
from typing import Any, NamedTuple, overload
from uuid import UUID

import numpy as np
import numpy.typing as npt

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.values import value_class


@value_class
class LogRecord:
    """One record of a shard's log, decoded.

    `subject` names the kind: reading-frame (value: ReadingFrame), account-fact, meter-fact,
    site-fact, tariff-fact, policy-fact, usage-ask, wake (value: the Avro record). `timestamp_ms` is
    the broker's LogAppendTime.
    """

    offset: int
    timestamp_ms: int
    subject: str
    value: ReadingFrame | dict[str, Any]


@value_class
class Output:
    """One record to send.

    Topics partitioned by shard go to the shard's own partition; `route` (a site) decides it where
    the catalogue says so.
    """

    topic: str
    subject: str
    key: str
    record: dict[str, Any]
    event_id: UUID
    occurred_at_ms: int
    route: str | None = None


class Row(NamedTuple):
    """One row of the table: its key and its bytes, both for the changelog."""

    key: bytes
    value: bytes


@value_class
class RowTable:
    """Rows whose keys are of one size, and whose values are, as bytes in columns: uint8, (n, size).

    `places`: where each stands among the rows that it belongs to, ascending.
    """

    places: npt.NDArray[np.int64]
    keys: npt.NDArray[np.uint8]
    values: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.places)

    def between(self, start: int, stop: int) -> "RowTable":
        """Return the rows at the places start..stop - 1, as places of their own."""
        first, last = np.searchsorted(self.places, (start, stop)).tolist()
        places = self.places[first:last] - start
        return RowTable(places, self.keys[first:last], self.values[first:last])

    def rows(self) -> Iterator[Row]:
        """Yield them one by one."""
        keys, values = (_lines_of_bytes(table) for table in (self.keys, self.values))
        return map(Row, keys, values)


class Rows(Sequence[Row]):
    """Rows in their order, kept as tables until somebody asks for one: a frame has five hundred."""

    def __init__(self, tables: Sequence[RowTable]) -> None:
        self.tables = tables
        self._count = sum(map(len, tables))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | Sequence[Row]:
        if isinstance(at, slice) and at.step is None:
            start, stop, _ = at.indices(len(self))
            parts = (table.between(start, stop) for table in self.tables)
            return Rows([part for part in parts if len(part)])
        return self._one_by_one[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._one_by_one == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _one_by_one(self) -> tuple[Row, ...]:
        found: dict[int, Row] = {}
        for table in self.tables:
            found.update(zip(table.places.tolist(), table.rows(), strict=True))
        return tuple(found[place] for place in range(len(self)))


def _lines_of_bytes(table: npt.NDArray[np.uint8]) -> list[bytes]:
    raw, size = table.tobytes(), table.shape[1]
    return [raw[start : start + size] for start in range(0, len(raw), size)]


@value_class
class Absorbed:
    """What one record did.

    Write `outputs` first; when they are acknowledged `fact_rows`, then `account_rows`, then
    `header`, each acknowledged before the next; records may be pipelined, at most
    `rows.PIPELINE_RECORDS_MAX` offsets beyond the last header that was acknowledged.
    `counts`: outcome → how many (for metrics only).
    """

    outputs: tuple[Output, ...]
    fact_rows: tuple[Row, ...]
    account_rows: Sequence[Row]
    header: Row
    counts: Counter[str] = field(default_factory=Counter)
