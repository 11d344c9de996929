"""Frames: readings and charges as columns.

A frame's Avro record holds each column as `bytes`, packed little-endian (schemas/avro). Here a
frame is one numpy structured array, an entry a reading or a charge, so that a service works on
columns without copying and tests can build a frame from rows. Layout is one table a kind: field,
Avro column, dtype.
"""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

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
    """Readings of one shard. `rows`: structured array of dtype READING, 1..500 entries."""

    shard: int
    worker: str
    run_id: str
    sequence: int
    rows: npt.NDArray[Any]

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
            _unpacked(record, READING_COLUMNS, READING, record["count"], count_max=READINGS_MAX),
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
        return {
            "shard": self.shard,
            "log_offset": self.log_offset,
            "count": len(self.rows),
            "names": list(self.names),
            **_packed(self.rows, CHARGE_COLUMNS),
            "line_count": len(self.lines),
            **_packed(self.lines, LINE_COLUMNS),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ChargeFrame":
        """Return the frame of an Avro record. Raises InvalidInput where columns do not fit."""
        rows = _unpacked(record, CHARGE_COLUMNS, CHARGE, record["count"], count_max=2**31 - 1)
        lines = np.zeros(0, LINE)
        if record["line_count"]:
            lines = _unpacked(record, LINE_COLUMNS, LINE, record["line_count"], count_max=LINES_MAX)
            if lines["charge"].max() >= len(rows):
                raise InvalidInput(
                    Reason.INVALID_ARGUMENT,
                    f"a line of charge {lines['charge'].max()} in a frame of {len(rows)} charges",
                    field="line_charges",
                )
        return cls(record["shard"], record["log_offset"], tuple(record["names"]), rows, lines)


def packed_frames(
    rows: npt.NDArray[Any], columns: Columns, ends: Sequence[int]
) -> list[dict[str, bytes]]:
    """Return the columns of frames that stand behind each other in `rows` and end at `ends`."""
    frames: list[dict[str, bytes]] = [{} for _ in ends]
    for name, column, _ in columns:
        values, start = rows[name], 0
        packed, size = values.tobytes(), rows.dtype[name].itemsize
        may_be_empty = column in MAY_BE_EMPTY
        if may_be_empty and (values < 0).all():
            packed, may_be_empty = b"", False
        for frame, end in zip(frames, ends, strict=True):
            is_empty = may_be_empty and (values[start:end] < 0).all()
            frame[column] = b"" if is_empty else packed[start * size : end * size]
            start = end
    return frames


def _packed(rows: npt.NDArray[Any], columns: Columns) -> dict[str, bytes]:
    return {
        column: b"" if column in MAY_BE_EMPTY and (rows[field] < 0).all() else rows[field].tobytes()
        for field, column, _ in columns
    }


def _unpacked(
    record: Mapping[str, Any],
    columns: Columns,
    dtype: np.dtype[Any],
    count: int,
    *,
    count_max: int,
) -> npt.NDArray[Any]:
    if not 0 < count <= count_max:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"a frame of {count} entries; 1..{count_max} may be",
            field="count",
        )
    rows = np.zeros(count, dtype)
    for name, column, _ in columns:
        kind = dtype[name]
        data = record[column]
        if column in MAY_BE_EMPTY and not data:
            rows[name] = ABSENT_REGISTER
            continue
        if len(data) != count * kind.itemsize:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"column {column} has {len(data)} bytes; {count} entries of "
                f"{kind.itemsize} bytes need {count * kind.itemsize}",
                field=column,
            )
        rows[name] = np.frombuffer(data, kind.base).reshape((count, *kind.shape))
    return rows
