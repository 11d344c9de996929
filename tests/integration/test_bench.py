"""Each bench, as small as it goes, on real parts: it ends well and says what it promises.

How fast anything is, is no matter here: `make bench` measures that.
"""

from pathlib import Path

import pytest
from rich.console import Console

from tools.bench import metering, pipeline, vending
from tools.bench.figures import Figure
from tools.bench.machine import Cores
from tools.bench.screen import Screen
from tools.bench.stand import running

FLAT = "metering.flat.readings_per_second"
WAYS = ("reading_to_charge", "threshold_to_open", "payment_to_closed")


@pytest.fixture
def screen() -> Screen:
    return Screen(Console(quiet=True))


def names_of(figures: list[Figure]) -> dict[str, str]:
    assert all(figure.value >= 0 and figure.samples > 0 for figure in figures)
    return {figure.name: figure.unit for figure in figures}


async def test_metering_says_how_many_readings_a_second(tmp_path: Path, screen: Screen) -> None:
    plan = metering.Plan(accounts=80, runs=1, frames={1: 16, 10: 16})
    async with running(tmp_path / "stack", Cores.here()) as stand:
        figures = await metering.measure(stand, screen, plan)
    assert names_of(figures) == {f"{FLAT}.at_10": "readings/s", f"{FLAT}.at_1": "readings/s"}


async def test_vending_says_how_many_sales_beside_empty_calls(
    tmp_path: Path, screen: Screen
) -> None:
    plan = vending.Plan(clients=4, accounts=8, runs=1, seconds=0.5)
    async with running(tmp_path / "stack", Cores.here()) as stand:
        names = names_of(await vending.measure(stand, screen, plan))
    for name in ("sale_ms.p50", "sale_ms.p99", "empty_call_ms.p50", "empty_call_ms.p99"):
        assert names[f"vending.{name}"] == "ms"
    assert names["vending.sales_per_second"] == "sales/s"
    assert names["vending.empty_call_per_second"] == "calls/s"


async def test_pipeline_says_how_long_each_way_takes(tmp_path: Path, screen: Screen) -> None:
    plan = pipeline.Plan(accounts=2, rounds=1)
    async with running(tmp_path / "stack", Cores.here(), pipeline.services) as stand:
        names = names_of(await pipeline.measure(stand, screen, plan))
    for way in WAYS:
        assert names[f"pipeline.{way}_ms.p50"] == names[f"pipeline.{way}_ms.p99"] == "ms"
    assert "pipeline.reading_to_charge_beyond_linger_ms.p99" in names
