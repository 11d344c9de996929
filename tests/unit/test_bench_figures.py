"""A bench's figures say what was measured.

Method: durations and runs whose median and quantiles are known; the file and the table are read.
"""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tools.bench import machine, metering
from tools.bench.figures import (
    BARS,
    Bar,
    Figure,
    median_of,
    quantile,
    quantiles_of,
    write,
)
from tools.bench.machine import Cores
from tools.bench.screen import Screen, shown


def test_a_quantile_is_the_smallest_duration_that_so_many_do_not_exceed() -> None:
    hundred = [float(ms) for ms in range(100, 0, -1)]
    assert quantile(hundred, 50) == 50
    assert quantile(hundred, 99) == 99
    assert quantile([*hundred, 1000.0], 99) == 100
    assert quantile([7.0], 99) == 7


def test_of_a_few_durations_the_99th_percentile_is_the_worst() -> None:
    assert quantile([1.0, 2.0, 3.0], 99) == 3
    assert quantile([1.0, 2.0, 3.0], 50) == 2


def test_nothing_measured_is_no_figure() -> None:
    with pytest.raises(AssertionError, match="nothing was measured"):
        quantile([], 50)


def test_the_median_of_runs_keeps_how_far_they_spread() -> None:
    assert median_of("a", "x/s", [3.0, 9.0, 4.0]) == Figure("a", 4.0, "x/s", 3, 3.0, 9.0)


def test_quantiles_are_named_after_their_percent() -> None:
    p50, p99 = quantiles_of("pipeline.x_ms", "ms", [float(ms) for ms in range(1, 201)])
    assert (p50.name, p50.value) == ("pipeline.x_ms.p50", 100)
    assert (p99.name, p99.value, p99.samples) == ("pipeline.x_ms.p99", 198, 200)
    assert (p99.low, p99.high) == (1, 200)


def test_the_file_is_a_list_of_name_value_unit_and_samples(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bench.json"
    write(path, [Figure("a.b", 1.23456, "ms", 7, 1.0, 2.0)])
    assert json.loads(path.read_text()) == [
        {"name": "a.b", "value": 1.235, "unit": "ms", "samples": 7}
    ]


def test_a_bar_is_reached_on_its_own_side() -> None:
    assert Bar(25).holds(25)
    assert not Bar(25).holds(25.1)
    assert Bar(0.6, at_least=True).holds(0.6)
    assert not Bar(0.6, at_least=True).holds(0.59)


def table_of(figure: Figure) -> str:
    out = io.StringIO()
    Screen(Console(file=out, width=100)).table("vending", "here", [figure])
    return out.getvalue()


def test_the_table_shows_which_bar_was_missed() -> None:
    name = "vending.sales_to_empty_call"
    assert "≥ 0.6 ✓" in table_of(Figure(name, 0.7, "ratio", 9, 0.6, 0.8))
    assert "≥ 0.6 ✗" in table_of(Figure(name, 0.5, "ratio", 9, 0.4, 0.6))
    assert "≥" not in table_of(Figure("vending.sales_per_second", 0.5, "sales/s", 9, 0.4, 0.6))


def test_the_table_shows_value_unit_samples_and_spread() -> None:
    row = table_of(Figure("vending.sale_ms.p99", 12.34, "ms", 9, 9.876, 1234.5)).splitlines()[-1]
    assert row.split() == ["sale_ms.p99", "12.3", "ms", "9", "9.88", "…", "1,234"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123, "0.12"), (9.99, "9.99"), (12.34, "12.3"), (123.4, "123"), (650_123.4, "650,123")],
)
def test_a_figure_has_the_digits_that_mean_something(value: float, text: str) -> None:
    assert shown(value) == text


def test_the_promised_bars_are_held_against_figures_that_exist() -> None:
    assert {name: str(bar) for name, bar in BARS.items()} == {
        "metering.flat.readings_per_second": "≥ 300,000",
        "metering.flat.readings_per_second.at_10": "≥ 25,000",
        "metering.flat.readings_per_second.at_1": "≥ 3,000",
        "metering.tou_ladder.readings_per_second": "≥ 200,000",
        "metering.frame_to_charge_at_half_load_ms.p99": "≤ 25",
        "curves.memory_mb_per_million_meters.flat": "≤ 1,000",
        "curves.memory_mb_per_million_meters.tou_ladder": "≤ 1,000",
        "curves.memory_mb_per_million_meters.tou_ladder_full": "≤ 1,000",
        "pipeline.reading_to_charge_beyond_linger_ms.p99": "≤ 25",
        "pipeline.threshold_to_open_ms.p99": "≤ 1,000",
        "pipeline.payment_to_closed_ms.p99": "≤ 1,000",
        "vending.sales_to_empty_call": "≥ 0.6",
        "vending.sale_to_empty_call.p99": "≤ 2",
        "vending.postgres.sales_to_empty_call": "≥ 0.6",
        "vending.postgres.sale_to_empty_call.p99": "≤ 2",
    }


def test_metering_is_measured_at_full_and_at_thin_frames() -> None:
    sizes = metering.Plan().frames
    assert sorted(map(metering.name_of, sizes)) == [
        "flat.readings_per_second",
        "flat.readings_per_second.at_1",
        "flat.readings_per_second.at_10",
        "flat.readings_per_second.at_50",
    ]


def test_what_a_killed_run_left_in_memory_is_removed_before_room_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "MEMORY", tmp_path)
    folder = machine.in_memory("bench", 1)
    assert folder is not None
    (folder / "kafka").mkdir(parents=True)
    assert machine.in_memory("bench", 1) == folder
    assert not folder.exists()
    assert machine.in_memory("bench", 1 << 62) is None


def test_the_measured_process_has_a_core_of_its_own_where_there_are_two() -> None:
    cores = Cores(0, frozenset({1, 2}))
    assert cores.measured(["program", "argument"])[-3:] == ("0", "program", "argument")
    assert str(cores) == "on core 0, everything else on core 1, 2"
    assert Cores(None, None).measured(["program"]) == ("program",)


def test_the_machine_says_what_it_is() -> None:
    assert "cores, " in machine.description()
    assert machine.processor() in machine.description()
