"""What a bench finds: figures, the bars they are held against, and the files they are kept in.

Floats are for measurements only.
"""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

P50 = 50
P99 = 99


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: `value` of so many `samples`, which lie between `low` and `high`.

    Samples are runs where the value is their median, and single durations where it is a quantile.
    """

    name: str
    value: float
    unit: str
    samples: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bar:
    """What a figure must reach: at most, or at least, so much."""

    bound: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        """Say whether the value reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:,g}"


BARS = {
    "metering.flat.readings_per_second": Bar(300_000, at_least=True),
    "metering.flat.readings_per_second.at_10": Bar(25_000, at_least=True),
    "metering.flat.readings_per_second.at_1": Bar(3_000, at_least=True),
    "metering.tou_ladder.readings_per_second": Bar(200_000, at_least=True),
    "metering.frame_to_charge_at_half_load_ms.p99": Bar(25),
    "curves.memory_mb_per_million_meters.flat": Bar(1_000),
    "curves.memory_mb_per_million_meters.tou_ladder": Bar(1_000),
    "curves.memory_mb_per_million_meters.tou_ladder_full": Bar(1_000),
    "pipeline.reading_to_charge_beyond_linger_ms.p99": Bar(25),
    "pipeline.threshold_to_open_ms.p99": Bar(1000),
    "pipeline.payment_to_closed_ms.p99": Bar(1000),
    "vending.sales_to_empty_call": Bar(0.6, at_least=True),
    "vending.sale_to_empty_call.p99": Bar(2),
    "vending.postgres.sales_to_empty_call": Bar(0.6, at_least=True),
    "vending.postgres.sale_to_empty_call.p99": Bar(2),
}
"""Figures that something was promised of. A bench shows what it missed; it fails nobody."""


def median_of(name: str, unit: str, runs: Sequence[float]) -> Figure:
    """Return the median of several runs of one measurement."""
    return Figure(name, statistics.median(runs), unit, len(runs), min(runs), max(runs))


def quantile(durations: Sequence[float], percent: int) -> float:
    """Return the smallest duration that `percent` % of them do not exceed."""
    assert durations, "nothing was measured"
    ordered = sorted(durations)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def quantiles_of(name: str, unit: str, durations: Sequence[float]) -> list[Figure]:
    """Return `name.p50` and `name.p99` of single durations."""
    return [
        Figure(
            f"{name}.p{percent}",
            quantile(durations, percent),
            unit,
            len(durations),
            min(durations),
            max(durations),
        )
        for percent in (P50, P99)
    ]


def write(path: Path, figures: Iterable[Figure]) -> None:
    """Keep figures as a JSON list of {name, value, unit, samples}."""
    rows = [
        {"name": f.name, "value": round(f.value, 3), "unit": f.unit, "samples": f.samples}
        for f in figures
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=2) + "\n", "utf-8")
