"""Charges as lines of CSV: registers and energy in units, amounts in the currency."""

import csv
import hashlib
import io
import zlib
from collections.abc import Iterable, Sequence

import asyncpg

from services.common.kernel.exported import GZIP_BITS
from services.common.kernel.units import CURRENCIES, format_scaled
from services.common.kernel.values import value_class

LEDGER_DECIMALS_DEFAULT = 9


def lines_of(cells: Iterable[Sequence[object]]) -> str:
    """Return lines of CSV, each with its line feed."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(cells)
    return text.getvalue()


@value_class
class Lines:
    """Lines of a meter in gzip; size and digest are those of the lines."""

    rows: int
    size_bytes: int
    sha256: bytes
    content: bytes


class Gatherer:
    """Takes charges of a meter, some at a time, and compresses their lines."""

    def __init__(self, meter_id: str) -> None:
        self._meter_id = meter_id
        self._digest = hashlib.sha256()
        self._gzip = zlib.compressobj(wbits=GZIP_BITS)
        self._parts: list[bytes] = []
        self._rows = self._size_bytes = self.stored_bytes = 0

    def add(self, charges: Sequence[asyncpg.Record]) -> None:
        """Take charges, which come in order."""
        text = lines_of(_cells(self._meter_id, charge) for charge in charges).encode()
        self._rows += len(charges)
        self._size_bytes += len(text)
        self._digest.update(text)
        self._keep(self._gzip.compress(text))

    def gathered(self) -> Lines:
        """Return what was taken; nothing can be added after."""
        self._keep(self._gzip.flush())
        content = b"".join(self._parts)
        return Lines(self._rows, self._size_bytes, self._digest.digest(), content)

    def _keep(self, part: bytes) -> None:
        self._parts.append(part)
        self.stored_bytes += len(part)


def _cells(meter_id: str, charge: asyncpg.Record) -> Sequence[object]:
    known = CURRENCIES.get(charge["currency"])
    decimals = known.ledger_decimals if known else LEDGER_DECIMALS_DEFAULT
    return (
        meter_id,
        charge["to_time_ms"],
        format_scaled(charge["to_register_milli"], 3),
        charge["to_quality"],
        format_scaled(charge["from_register_milli"], 3),
        format_scaled(charge["energy_milli"], 3),
        charge["price_micro"],
        format_scaled(charge["amount_nano"], decimals),
        charge["currency"],
        charge["account_id"],
        charge["tariff_id"],
        charge["tariff_version"],
        charge["kind"],
        charge["epoch"],
        charge["sequence"],
    )
