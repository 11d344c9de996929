"""Each bench measures what it says it does.

Method: a tiny run of each on real parts. Its figures are compared by name and unit, not by value:
how fast this machine is, is nobody's promise. The benches themselves fail where readings were not
charged, sales are not in the book, or a relay did not move.
"""

import asyncio
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tools.bench import curves, metering, pipeline, restart, vending
from tools.bench.figures import Figure, write
from tools.bench.machine import Cores
from tools.bench.screen import Screen
from tools.bench.stand import running
from tools.stack.services import ROOT

pytestmark = pytest.mark.timeout(180)

UNPINNED = Cores(None, None)
"""Other tests run beside these."""


def quiet() -> Screen:
    return Screen(Console(file=io.StringIO()))


def kept(path: Path, figures: list[Figure]) -> dict[str, str]:
    """Return name → unit of what the bench wrote; each figure has a value and samples."""
    write(path, figures)
    rows = json.loads(path.read_text())
    assert all(row["value"] >= 0 or "beyond" in row["name"] for row in rows)
    assert all(row["samples"] >= 1 for row in rows)
    return {row["name"]: row["unit"] for row in rows}


def test_metering_and_vending_are_measured(tmp_path: Path) -> None:
    thin = metering.Plan(
        accounts=80,
        runs=2,
        full=10,
        frames={10: 16, 1: 16},
        single=40,
        half_loads=(0.3, 0.1),
    )
    few = vending.Plan(clients=4, accounts=8, runs=1, seconds=0.5)

    async def both() -> tuple[list[Figure], list[Figure]]:
        of_metering = await metering.measure(
            lambda: running(tmp_path / "stack", UNPINNED), quiet(), thin
        )
        async with running(tmp_path / "stack", UNPINNED) as stand:
            return of_metering, await vending.measure(stand, quiet(), few)

    of_metering, of_vending = asyncio.run(both())
    assert not list(ROOT.glob("bench-*")), "what a bench writes lies below its stand"
    assert kept(tmp_path / "metering.json", of_metering) == {
        "metering.flat.readings_per_second.at_10": "readings/s",
        "metering.flat.readings_per_second.at_1": "readings/s",
        "metering.tou_ladder.readings_per_second": "readings/s",
        "metering.plain_loop.readings_per_second": "readings/s",
        "metering.per_record.readings_per_second": "readings/s",
        "metering.flat_to_plain_loop": "ratio",
        "metering.flat_to_per_record": "ratio",
        "metering.half_load.readings_per_second": "readings/s",
        "metering.frame_to_charge_at_half_load_ms.p50": "ms",
        "metering.frame_to_charge_at_half_load_ms.p99": "ms",
    }
    of_a_store = {
        "sales_per_second": "sales/s",
        "sale_ms.p50": "ms",
        "sale_ms.p99": "ms",
        "sales_to_empty_call": "ratio",
        "sale_to_empty_call.p99": "ratio",
        "sale_cpu_us": "µs",
        "empty_call_to_sale_cpu": "ratio",
        "sales_to_fsyncs": "ratio",
        "inserts_per_second": "inserts/s",
        "sales_to_inserts": "ratio",
        "unpublished_after_run": "events",
    }
    assert kept(tmp_path / "vending.json", of_vending) == {
        "vending.empty_call_per_second": "calls/s",
        "vending.empty_call_ms.p50": "ms",
        "vending.empty_call_ms.p99": "ms",
        "vending.empty_call_cpu_us": "µs",
        "vending.fsyncs_per_second": "fsyncs/s",
        **{f"vending.{name}": unit for name, unit in of_a_store.items()},
        **{f"vending.postgres.{name}": unit for name, unit in of_a_store.items()},
    }


def test_a_bench_that_fails_keeps_its_logs_and_not_what_kafka_wrote(tmp_path: Path) -> None:
    """Its files may be in memory."""

    async def fails() -> None:
        async with running(tmp_path / "stack", UNPINNED):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(fails())
    assert (tmp_path / "stack" / "logs" / "kafka.log").exists()
    assert not (tmp_path / "stack" / "kafka" / "data").exists()


def test_restarts_are_measured(tmp_path: Path) -> None:
    few = restart.Plan(accounts=(20, 40), starts=1)

    async def all_of_it() -> list[Figure]:
        async with running(tmp_path / "stack", UNPINNED) as stand:
            return await restart.measure(stand, quiet(), few)

    kinds = {"ready_s": "s", "first_sale_ms": "ms", "memory_mb": "MB", "book_mb": "MB"}
    assert kept(tmp_path / "restart.json", asyncio.run(all_of_it())) == {
        f"vending.restart.{store}{kind}.accounts.{accounts}": unit
        for accounts in few.accounts
        for store in ("", "postgres.")
        for kind, unit in kinds.items()
    }


def test_curves_and_memory_are_measured(tmp_path: Path) -> None:
    steps = (
        curves.Step("accounts_per_shard", 600, accounts=600),
        curves.Step("meters_per_account", 4, accounts=150, meters=4),
        curves.Step("weeks_of_history", 1, accounts=500, weeks=1, tariff="tou_ladder"),
    )
    plan = curves.Plan(steps, remembered=1_000)
    assert kept(tmp_path / "curves.json", asyncio.run(curves.measure(UNPINNED, quiet(), plan))) == {
        "curves.reading_us.accounts_per_shard.600": "µs",
        "curves.reading_us.meters_per_account.4": "µs",
        "curves.reading_us.weeks_of_history.1": "µs",
        "curves.memory_mb_per_million_meters.flat": "MB",
        "curves.memory_mb_per_million_meters.tou_ladder": "MB",
        "curves.memory_mb_per_million_meters.tou_ladder_full": "MB",
    }


def test_the_pipeline_is_measured(tmp_path: Path) -> None:
    few = pipeline.Plan(accounts=4, rounds=1, first_s=3.0, apart_s=0.5)

    async def all_of_it() -> list[Figure]:
        async with running(tmp_path / "stack", UNPINNED, pipeline.services) as stand:
            return await pipeline.measure(stand, quiet(), few)

    figures = asyncio.run(all_of_it())
    durations = (
        "reading_to_charge_ms",
        "reading_to_charge_beyond_linger_ms",
        "threshold_to_open_ms",
        "payment_to_closed_ms",
    )
    assert kept(tmp_path / "pipeline.json", figures) == {
        "pipeline.linger_ms": "ms",
        **{f"pipeline.{name}.p{percent}": "ms" for name in durations for percent in (50, 99)},
    }
    moved = {figure.name: figure.samples for figure in figures}
    assert moved["pipeline.threshold_to_open_ms.p99"] == 4
    assert moved["pipeline.payment_to_closed_ms.p99"] == 4
