"""What goes into `absorb` and what comes out of it. Pure values; the shell does the I/O."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import field
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, overload
from uuid import UUID

import numpy as np
import numpy.typing as npt

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.ids import name_uuids
from services.common.kernel.values import value_class
from services.common.policies.levels import LEVEL_NAMES

IDENTITY = ("account_id", "site_id", "currency", "legal_entity", "commodity")
"""What a balance has of its account's fact."""
FIGURES = (
    *("key", "credited_nano", "charged_nano", "held_nano"),
    *("level", "frozen", "sequence", "revision", "book_epoch"),
)
"""And of its account's row."""


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


@value_class
class BalanceTable:
    """Balances of one shard as columns: those of each record in ascending account_key.

    `log_offsets`, `as_of_ms`: of the record that publishes each, int64; `identities`: of its
    account the `IDENTITY`; `figures`: int64, (n, FIGURES), as they are at the record's end.
    """

    shard: int
    log_offsets: npt.NDArray[np.int64]
    as_of_ms: npt.NDArray[np.int64]
    identities: Sequence[tuple[str, ...]]
    figures: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.identities)

    def between(self, start: int, stop: int) -> "BalanceTable":
        """Return those at the places start..stop - 1."""
        within = slice(start, stop)
        return BalanceTable(
            self.shard,
            self.log_offsets[within],
            self.as_of_ms[within],
            self.identities[within],
            self.figures[within],
        )

    @staticmethod
    def joined(tables: Sequence["BalanceTable"]) -> "BalanceTable":
        """Return the balances of tables, of one shard, behind each other."""
        if len(tables) == 1:
            return tables[0]
        return BalanceTable(
            tables[0].shard,
            np.concatenate([table.log_offsets for table in tables]),
            np.concatenate([table.as_of_ms for table in tables]),
            list(chain.from_iterable(table.identities for table in tables)),
            np.concatenate([table.figures for table in tables]),
        )

    def columns(self) -> dict[str, Sequence[Any]]:
        """Return field of a balance → its value in each. Raises OverflowError beyond int64."""
        figures = dict(zip(FIGURES, self.figures.T, strict=True))
        sums = zip(
            *(figures[f"{name}_nano"].tolist() for name in ("credited", "charged", "held")),
            strict=True,
        )
        available_nano = [credited - charged - held for credited, charged, held in sums]
        return {
            **dict(zip(IDENTITY, zip(*self.identities, strict=True), strict=True)),
            "account_key": figures["key"],
            "shard": np.full(len(self), self.shard),
            "credited_nano": figures["credited_nano"],
            "charged_nano": figures["charged_nano"],
            "held_nano": figures["held_nano"],
            "available_nano": np.array(available_nano, np.int64),
            "level": [LEVEL_NAMES[level] for level in figures["level"].tolist()],
            "frozen": figures["frozen"] != 0,
            "account_sequence": figures["sequence"],
            "account_revision": figures["revision"],
            "book_epoch": figures["book_epoch"],
            "as_of_ms": self.as_of_ms,
            "log_offset": self.log_offsets,
        }

    @property
    def event_ids(self) -> npt.NDArray[np.uint8]:
        """The identity of each, as bytes: (n, 16)."""
        offsets = self.log_offsets.tolist()
        return name_uuids(
            f"balance\x00{self.shard}\x00{offset}\x00{identity[0]}"
            for offset, identity in zip(offsets, self.identities, strict=True)
        )

    def outputs(self) -> Iterator[Output]:
        """Yield them one by one."""
        columns = {name: _as_list(column) for name, column in self.columns().items()}
        of_each = zip(*columns.values(), strict=True)
        for raw_id, values in zip(self.event_ids, of_each, strict=True):
            record = dict(zip(columns, values, strict=True))
            event_id = UUID(bytes=raw_id.tobytes())
            key, as_of_ms = record["account_id"], record["as_of_ms"]
            yield Output("balances", "balance", key, record, event_id, as_of_ms)


def _as_list(column: Sequence[Any]) -> Sequence[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else column


class Outputs(Sequence[Output]):
    """What a record puts out, in its order: first `singly`, then `balances`, if there are any.

    Balances are kept as a table until somebody asks for one: a full frame may have five hundred.
    """

    def __init__(self, singly: Sequence[Output], balances: BalanceTable | None) -> None:
        self.singly = tuple(singly)
        self.balances = balances or None

    def __len__(self) -> int:
        return len(self.singly) + (0 if self.balances is None else len(self.balances))

    @overload
    def __getitem__(self, at: int) -> Output: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Output]: ...
    def __getitem__(self, at: int | slice) -> Output | Sequence[Output]:
        return self._one_by_one[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._one_by_one == tuple(other)

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def _one_by_one(self) -> tuple[Output, ...]:
        balances = () if self.balances is None else self.balances.outputs()
        return (*self.singly, *balances)


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

    outputs: Outputs
    fact_rows: tuple[Row, ...]
    account_rows: Sequence[Row]
    header: Row
    counts: Counter[str] = field(default_factory=Counter)
