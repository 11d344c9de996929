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
from services.common.kernel.ids import name_uuids
from services.common.kernel.values import value_class
from services.common.policies.levels import LEVEL_NAMES

IDENTITY = ("account_id", "site_id", "currency", "legal_entity", "commodity")
"""What a balance has of its account's fact."""


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
    """The balances that one record publishes, as columns, in ascending account_key.

    `identities`: of each account its `IDENTITY`; `accounts`: dtype ACCOUNT, as they are at the
    record's end.
    """

    shard: int
    log_offset: int
    as_of_ms: int
    identities: Sequence[tuple[str, ...]]
    accounts: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.identities)

    def columns(self) -> dict[str, list[Any]]:
        """Return field of a balance → its value in each. Raises OverflowError beyond int64."""
        accounts, count = self.accounts, len(self)
        credited, charged, held = (
            accounts[f"{name}_nano"].tolist() for name in ("credited", "charged", "held")
        )
        sums = zip(credited, charged, held, strict=True)
        return {
            **dict(zip(IDENTITY, map(list, zip(*self.identities, strict=True)), strict=True)),
            "account_key": accounts["key"].tolist(),
            "shard": [self.shard] * count,
            "credited_nano": credited,
            "charged_nano": charged,
            "held_nano": held,
            "available_nano": [credit - charge - hold for credit, charge, hold in sums],
            "level": [LEVEL_NAMES[level] for level in accounts["level"].tolist()],
            "frozen": accounts["frozen"].tolist(),
            "account_sequence": accounts["sequence"].tolist(),
            "account_revision": accounts["revision"].tolist(),
            "book_epoch": accounts["book_epoch"].tolist(),
            "as_of_ms": [self.as_of_ms] * count,
            "log_offset": [self.log_offset] * count,
        }

    @property
    def event_ids(self) -> npt.NDArray[np.uint8]:
        """The identity of each, as bytes: (n, 16)."""
        account_ids = (identity[0] for identity in self.identities)
        return name_uuids("balance", self.shard, self.log_offset, of_each=account_ids)

    def outputs(self) -> Iterator[Output]:
        """Yield them one by one."""
        columns = self.columns()
        of_each = zip(*columns.values(), strict=True)
        for raw_id, values in zip(self.event_ids, of_each, strict=True):
            record = dict(zip(columns, values, strict=True))
            event_id = UUID(bytes=raw_id.tobytes())
            yield Output(
                "balances", "balance", record["account_id"], record, event_id, self.as_of_ms
            )


class Outputs(Sequence[Output]):
    """What a record puts out, in its order: first `singly`, then `balances`, if there are any.

    Balances are kept as a table until somebody asks for one: a full frame may have five hundred.
    """

    def __init__(self, singly: Sequence[Output], balances: BalanceTable | None) -> None:
        self.singly = tuple(singly)
        self.balances = balances

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
