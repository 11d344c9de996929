"""Frames: readings and charges as columns.

A frame's Avro record holds each column as `bytes`, packed little-endian (schemas/avro). Here a
frame is one numpy structured array, an entry a reading or a charge, so that a service works on
columns without copying and tests can build a frame from rows. Layout is one table a kind: field,
Avro column, dtype.
"""

from collections.abc import Mapping, Sequence
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
)


def _dtype(columns: Columns) -> np.dtype[Any]:
    return np.dtype(
        [(field, *kind) if isinstance(kind, tuple) else (field, kind) for field, _, kind in columns]
    )


READING = _dtype(READING_COLUMNS)
CHARGE = _dtype(CHARGE_COLUMNS)

KIND_USAGE = 0
KIND_CLOSING = 1


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
            _unpacked(record, READING_COLUMNS, READING, count_max=READINGS_MAX),
        )


@value_class
class ChargeFrame:
    """The charges of one shard-log record. `rows`: dtype CHARGE; `names`: its dictionary."""

    shard: int
    log_offset: int
    names: tuple[str, ...]
    rows: npt.NDArray[Any]

    def to_record(self) -> dict[str, Any]:
        """Return the Avro record (subject charge-frame)."""
        return {
            "shard": self.shard,
            "log_offset": self.log_offset,
            "count": len(self.rows),
            "names": list(self.names),
            **_packed(self.rows, CHARGE_COLUMNS),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ChargeFrame":
        """Return the frame of an Avro record. Raises InvalidInput where columns do not fit."""
        return cls(
            record["shard"],
            record["log_offset"],
            tuple(record["names"]),
            _unpacked(record, CHARGE_COLUMNS, CHARGE, count_max=2**31 - 1),
        )


def _packed(rows: npt.NDArray[Any], columns: Columns) -> dict[str, bytes]:
    return {column: rows[field].tobytes() for field, column, _ in columns}


def _unpacked(
    record: Mapping[str, Any], columns: Columns, dtype: np.dtype[Any], *, count_max: int
) -> npt.NDArray[Any]:
    count = record["count"]
    if not 0 < count <= count_max:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"a frame of {count} entries; 1..{count_max} may be",
            field="count",
        )
    rows = np.zeros(count, dtype)
    for field, column, _ in columns:
        kind = dtype[field]
        data = record[column]
        if len(data) != count * kind.itemsize:
            raise InvalidInput(
                Reason.INVALID_ARGUMENT,
                f"column {column} has {len(data)} bytes; {count} entries of "
                f"{kind.itemsize} bytes need {count * kind.itemsize}",
                field=column,
            )
        rows[field] = np.frombuffer(data, kind.base).reshape((count, *kind.shape))
    return rows
