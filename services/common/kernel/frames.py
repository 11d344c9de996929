"""Frames: readings and charges as columns.

A frame's Avro record holds each column as `bytes`, packed little-endian (schemas/avro). Here a
frame is a structured array of numpy, an entry a reading or a charge, or a `Table`, whose columns
are those bytes as they came: the same to whoever asks for columns by name and entries by number.
Layout is one table a kind: field, Avro column, dtype.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Union, overload

import numpy as np
import numpy.typing as npt

from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason
from services.common.kernel.values import value_class

READINGS_MAX = 500
ABSENT_REGISTER = -1
ABSENT_POWER = -(2**63)
ABSENT_POWER_FACTOR = -(2**31)
ABSENT_ELECTRICAL = -1
RELAY_REPORTED = 0x80
RELAY_PHASES = 0x07
"""Relay bits of the three phases: closed."""
RATES = 5

Columns = Sequence[tuple[str, str, Any]]

READING_COLUMNS: Columns = (
    ("meter_key", "meter_keys", "<i8"),
    ("epoch", "epochs", "<i4"),
    ("serial", "serials", "S20"),
    ("reading_id", "reading_ids", "V16"),
    ("device_time_ms", "device_times_ms", "<i8"),
    ("began_at_ms", "began_at_ms", "<i8"),
    ("received_at_ms", "received_at_ms", "<i8"),
    ("register_milli", "registers_milli", "<i8"),
    ("rate_registers_milli", "rate_registers_milli", ("<i8", (RATES,))),
    ("ratio", "ratios", "<i4"),
    ("quality", "qualities", "u1"),
    ("relay_bits", "relay_bits", "u1"),
    ("voltage_mv", "voltages_mv", ("<i4", (3,))),
    ("current_ma", "currents_ma", ("<i4", (3,))),
    ("power_w", "powers_w", "<i8"),
    ("power_factor_milli", "power_factors_milli", "<i4"),
)

CHARGE_COLUMNS: Columns = (
    ("meter_key", "meter_keys", "<i8"),
    ("epoch", "epochs", "<i4"),
    ("sequence", "sequences", "<i8"),
    ("account_key", "account_keys", "<i8"),
    ("account_sequence", "account_sequences", "<i8"),
    ("account_revision", "account_revisions", "<i8"),
    ("book_epoch", "book_epochs", "<i4"),
    ("kind", "kinds", "u1"),
    ("from_reading_id", "from_reading_ids", "V16"),
    ("from_time_ms", "from_times_ms", "<i8"),
    ("from_register_milli", "from_registers_milli", "<i8"),
    ("from_quality", "from_qualities", "u1"),
    ("to_reading_id", "to_reading_ids", "V16"),
    ("to_time_ms", "to_times_ms", "<i8"),
    ("to_received_at_ms", "to_received_at_ms", "<i8"),
    ("to_register_milli", "to_registers_milli", "<i8"),
    ("to_quality", "to_qualities", "u1"),
    ("ratio", "ratios", "<i4"),
    ("energy_milli", "energies_milli", "<i8"),
    ("price_micro", "prices_micro", "<i8"),
    ("amount_nano", "amounts_nano", "<i8"),
    ("meter_energy_total_milli", "meter_energy_totals_milli", "<i8"),
    ("account_charged_total_nano", "account_charged_totals_nano", "<i8"),
    ("account_credited_total_nano", "account_credited_totals_nano", "<i8"),
    ("tariff_name", "tariff_names", "<u2"),
    ("tariff_version", "tariff_versions", "<i4"),
    ("policy_name", "policy_names", "<u2"),
    ("policy_version", "policy_versions", "<i4"),
    ("legal_entity_name", "legal_entity_names", "<u2"),
    ("currency_name", "currency_names", "<u2"),
    ("commodity_name", "commodity_names", "<u2"),
    ("from_rates_milli", "from_rate_registers_milli", ("<i8", (RATES,))),
    ("to_rates_milli", "to_rate_registers_milli", ("<i8", (RATES,))),
)
MAY_BE_EMPTY = {"from_rate_registers_milli", "to_rate_registers_milli"}
"""Columns that are left empty where all of their registers are absent, as those of most meters."""

LINE_COLUMNS: Columns = (
    ("charge", "line_charges", "<u4"),
    ("version", "line_versions", "<i4"),
    ("rate", "line_rates", "u1"),
    ("basis", "line_bases", "u1"),
    ("period", "line_periods", "<i4"),
    ("energy_milli", "line_energies_milli", "<i8"),
    ("total_milli", "line_totals_milli", "<i8"),
    ("rate_nano", "line_rate_amounts_nano", "<i8"),
    ("surcharge_nano", "line_surcharge_amounts_nano", "<i8"),
    ("ladder_nano", "line_ladder_amounts_nano", "<i8"),
    ("tax_nano", "line_tax_amounts_nano", "<i8"),
    ("base_milli", "line_ladder_bases_milli", "<i8"),
    ("days", "line_days", "<u2"),
    ("days_of", "line_days_of", "<u2"),
)


def _dtype(columns: Columns) -> np.dtype[Any]:
    return np.dtype(
        [(field, *kind) if isinstance(kind, tuple) else (field, kind) for field, _, kind in columns]
    )


READING = _dtype(READING_COLUMNS)
CHARGE = _dtype(CHARGE_COLUMNS)
LINE = _dtype(LINE_COLUMNS)

Column = npt.NDArray[Any]
Kinds = Mapping[str, np.dtype[Any]]


def _kinds(dtype: np.dtype[Any]) -> Kinds:
    return {name: dtype[name] for name in dtype.names or ()}


READING_KINDS = _kinds(READING)
CHARGE_KINDS = _kinds(CHARGE)
LINE_KINDS = _kinds(LINE)


class Table:
    """Entries as columns, each by itself in memory.

    A structured array's columns lie apart, entry by entry: to go along one of five hundred takes
    numpy three times as long. `kinds`: name → dtype. A column that was not set is zeros.
    """

    __slots__ = ("_columns", "_count", "_kinds")

    def __init__(
        self, kinds: Kinds, count: int, columns: Mapping[str, Column] | None = None
    ) -> None:
        self._kinds = kinds
        self._count = count
        self._columns = dict(columns or {})

    @classmethod
    def joined(cls, kinds: Kinds, parts: Sequence["Entries"]) -> "Table":
        """Return entries of several tables, or structured arrays, behind each other."""
        columns = {name: np.concatenate([part[name] for part in parts]) for name in kinds}
        return cls(kinds, sum(map(len, parts)), columns)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, which: str) -> Column: ...
    @overload
    def __getitem__(self, which: int) -> "Entry": ...
    def __getitem__(self, which: str | int) -> "Column | Entry":
        if isinstance(which, str):
            if which not in self._columns:
                self[which] = np.zeros((), self._kinds[which].base)
            return self._columns[which]
        if not -self._count <= which < self._count:
            raise IndexError(f"entry {which} of {self._count}")
        return Entry(self, which)

    def __setitem__(self, name: str, values: Any) -> None:
        """Set a column to a copy of values, or to one value."""
        kind = self._kinds[name]
        column = np.empty((self._count, *kind.shape), kind.base)
        column[...] = values
        self._columns[name] = column

    def __iter__(self) -> "Iterator[Entry]":
        return (Entry(self, i) for i in range(self._count))

    def as_array(self, dtype: np.dtype[Any]) -> Column:
        """Return the same entries as a structured array."""
        array = np.empty(self._count, dtype)
        for name in self._kinds:
            array[name] = self[name]
        return array

    def take(self, which: Column) -> "Table":
        """Return the entries at the indexes `which`."""
        columns = {name: column.take(which, axis=0) for name, column in self._columns.items()}
        return Table(self._kinds, len(which), columns)


@value_class
class Entry:
    """One entry of a table: `entry["ratio"]` is a value of it."""

    table: Table
    at: int

    def __getitem__(self, name: str) -> Any:
        return self.table[name][self.at]


Entries = Union[Column, Table]  # noqa: UP007 - used before it is known
LINES_MAX = 2**24
"""Lines a frame may have: beyond it a count is damage."""

KIND_USAGE = 0
KIND_CLOSING = 1
KIND_RESPLIT = 2
KIND_ROLLOVER = 3
KIND_FEE = 4

FEE_RATE = 128
"""In place of a rate, and a number of a plan's fees added: the line of a fee."""
NO_RATE = 255
BASIS_TIME = 1
"""The interval was split by time at an edge inside: an estimate of its shape."""
BASIS_REGISTERS = 2
"""The meter's own registers of rates tell how much of each was used."""
BASIS_CLOSED = 4
"""The period that the energy belongs to was closed; it counts in the oldest open one."""


@value_class
class ReadingFrame:
    """Readings of one shard. `rows`: dtype READING, 1..500 entries."""

    shard: int
    worker: str
    run_id: str
    sequence: int
    rows: Entries

    def to_record(self) -> dict[str, Any]:
        """Return the Avro record (subject reading-frame)."""
        return {
            "shard": self.shard,
            "worker": self.worker,
            "run_id": self.run_id,
            "sequence": self.sequence,
            "count": len(self.rows),
            **_packed(self.rows, READING_COLUMNS),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ReadingFrame":
        """Return the frame of an Avro record. Raises InvalidInput where columns do not fit."""
        return cls(
            record["shard"],
            record["worker"],
            record["run_id"],
            record["sequence"],
            _unpacked(
                record, READING_COLUMNS, READING_KINDS, record["count"], count_max=READINGS_MAX
            ),
        )


@value_class
class ChargeFrame:
    """The charges of one shard-log record. `rows`: dtype CHARGE; `names`: its dictionary.

    `lines`: dtype LINE, in the order of their charges; `charge` is the index of theirs.
    """

    shard: int
    log_offset: int
    names: tuple[str, ...]
    rows: npt.NDArray[Any]
    lines: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, LINE))

    def to_record(self) -> dict[str, Any]:
        """Return the Avro record (subject charge-frame)."""
        columns = columns_of_charges(self.names, self.rows, self.lines)
        return {"shard": self.shard, "log_offset": self.log_offset, **columns}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ChargeFrame":
        """Return the frame of an Avro record. Raises InvalidInput where columns do not fit."""
        count, line_count = record["count"], record["line_count"]
        charges = _unpacked(record, CHARGE_COLUMNS, CHARGE_KINDS, count, count_max=2**31 - 1)
        rows, lines = charges.as_array(CHARGE), np.zeros(0, LINE)
        if line_count:
            found = _unpacked(record, LINE_COLUMNS, LINE_KINDS, line_count, count_max=LINES_MAX)
            lines = found.as_array(LINE)
            if lines["charge"].max() >= len(rows):
                raise InvalidInput(
                    Reason.INVALID_ARGUMENT,
                    f"a line of charge {lines['charge'].max()} in a frame of {len(rows)} charges",
                    field="line_charges",
                )
        return cls(record["shard"], record["log_offset"], tuple(record["names"]), rows, lines)


def columns_of_charges(
    names: Sequence[str], charges: Entries, lines: npt.NDArray[Any]
) -> dict[str, Any]:
    """Return the Avro record of a charge frame, but for where it belongs."""
    return {
        "count": len(charges),
        "names": list(names),
        **_packed(charges, CHARGE_COLUMNS),
        "line_count": len(lines),
        **_packed(lines, LINE_COLUMNS),
    }


def packed_frames(rows: Entries, columns: Columns, ends: Sequence[int]) -> list[dict[str, bytes]]:
    """Return the columns of frames that stand behind each other in `rows` and end at `ends`."""
    frames: list[dict[str, bytes]] = [{} for _ in ends]
    for name, column, _ in columns:
        values, start = rows[name], 0
        packed, size = values.tobytes(), values.nbytes // max(len(values), 1)
        may_be_empty = column in MAY_BE_EMPTY
        if may_be_empty and (values < 0).all():
            packed, may_be_empty = b"", False
        for frame, end in zip(frames, ends, strict=True):
            is_empty = may_be_empty and (values[start:end] < 0).all()
            frame[column] = b"" if is_empty else packed[start * size : end * size]
            start = end
    return frames


def _packed(rows: Entries, columns: Columns) -> dict[str, bytes]:
    return {
        column: b"" if column in MAY_BE_EMPTY and (rows[field] < 0).all() else rows[field].tobytes()
        for field, column, _ in columns
    }


def _unpacked(
    record: Mapping[str, Any],
    columns: Columns,
    kinds: Kinds,
    count: int,
    *,
    count_max: int,
) -> Table:
    if not 0 < count <= count_max:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"a frame of {count} entries; 1..{count_max} may be",
            field="count",
        )
    found = {}
    for name, column, _ in columns:
        kind = kinds[name]
        data = record[column]
        if column in MAY_BE_EMPTY and not data:
            found[name] = np.full((count, *kind.shape), ABSENT_REGISTER, kind.base)
            continue
        if len(data) != count * kind.itemsize:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"column {column} has {len(data)} bytes; {count} entries of "
                f"{kind.itemsize} bytes need {count * kind.itemsize}",
                field=column,
            )
        found[name] = np.frombuffer(data, kind.base).reshape((count, *kind.shape))
    return Table(kinds, count, found)
