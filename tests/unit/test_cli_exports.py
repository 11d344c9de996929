"""Goal: the file of an export is whole, and what the book tells of, wherever it broke off.

Method: that of test_cli; what vending and reporting answer of an export is in export_answers.
"""

from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.exported import HEADER
from tests.unit.export_answers import GONE, answers, zipped
from tests.unit.test_cli import Vending, wattvend
from tools.client import Refused
from wattvend.reporting.v1 import exports_pb2 as e
from wattvend.vending.v1 import batches_pb2 as b

M1, M3 = b"M1,1,1.000\nM1,2,2.000\n", b"M3,1,5.000\n"
METERS: tuple[tuple[str, bytes | str], ...] = (
    *(("M1", M1), ("M9", "METER_NOT_FOUND"), ("M2", b""), ("M3", M3)),
)
WHOLE = HEADER.encode() + M1 + M3
DOWNLOAD = ("batch", "download", "B1", "--out", "out.csv")
VERIFY = ("batch", "verify", "B1", "--file", "out.csv")


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "out.csv"


def chunks(vending: Vending) -> list[str]:
    """Return whose lines were asked for."""
    return [request.name for method, request in vending.asked if method == "GetExportChunk"]


def test_a_file_is_written_in_the_order_of_the_results_and_tells_who_is_not_in_it(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    vending = Vending(**answers(*METERS))
    result = wattvend(monkeypatch, vending, *DOWNLOAD)
    assert result.exit_code == 0, result.output
    assert file.read_bytes() == WHOLE
    assert chunks(vending) == ["exports/B1/chunks/M1", "exports/B1/chunks/M3"]
    told = " ".join(result.stdout.split())
    size = f"3 meters, 3 readings, {len(WHOLE)} bytes"
    for part in (size, "METER_NOT_FOUND", "not in it: 1 of 4 meters"):
        assert part in told


@pytest.mark.parametrize("size", range(len(WHOLE) + 1))
def test_a_file_that_broke_off_anywhere_goes_on_there(
    monkeypatch: pytest.MonkeyPatch, file: Path, size: int
) -> None:
    file.write_bytes(WHOLE[:size])
    vending = Vending(**answers(*METERS))
    verified = wattvend(monkeypatch, vending, *VERIFY)
    is_whole = size == len(WHOLE)
    assert (verified.exit_code, "ends too early" in verified.stderr) == (not is_whole, not is_whole)
    assert file.read_bytes() == WHOLE[:size]
    assert not chunks(vending), "to verify takes the book alone"
    assert wattvend(monkeypatch, vending, *DOWNLOAD).exit_code == 0
    assert file.read_bytes() == WHOLE
    behind = len(HEADER) + len(M1)
    assert len(chunks(vending)) == (0 if is_whole else 1 if size >= behind else 2)


@pytest.mark.parametrize("at", [0, len(HEADER), len(HEADER) + len(M1) - 1, len(WHOLE) - 1])
@pytest.mark.parametrize("cut", [False, True])
def test_a_file_that_is_not_of_this_export_is_told_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, file: Path, at: int, *, cut: bool
) -> None:
    """Also where it ends within a meter, whose digest nobody can know."""
    changed = WHOLE[:at] + b"!" + (b"" if cut else WHOLE[at + 1 :])
    file.write_bytes(changed)
    result = wattvend(monkeypatch, Vending(**answers(*METERS)), *DOWNLOAD)
    assert result.exit_code == 1
    assert "was changed" in " ".join(result.stderr.split())
    assert file.read_bytes() == changed


def test_a_file_that_goes_on_behind_its_end_is_no_export(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    file.write_bytes(WHOLE + b"M4,1,9.000\n")
    for command in (DOWNLOAD, VERIFY):
        result = wattvend(monkeypatch, Vending(**answers(*METERS)), *command)
        assert result.exit_code == 1
        assert "goes on behind the last meter" in " ".join(result.stderr.split())


@pytest.mark.parametrize("content", [zipped(M1[:-1]), zipped(M1 + b"x"), b"", b"no gzip"])
def test_what_reporting_keeps_is_checked_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch, file: Path, content: bytes
) -> None:
    changed = {**answers(*METERS), "GetExportChunk": e.ExportChunk(content=content)}
    result = wattvend(monkeypatch, Vending(**changed), *DOWNLOAD)
    assert result.exit_code == 1
    assert "lines of meter M1 are not those" in " ".join(result.stderr.split())
    assert file.read_text() == HEADER


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b.Batch(kind="force-off", status="finished"), "only an export has a file"),
        (b.Batch(kind="export", status="running"), "wattvend batch wait B1"),
        (
            b.Batch(kind="export", status="cancelled", summary=b.BatchSummary(waiting_count=1)),
            "its file not whole",
        ),
    ],
)
def test_a_batch_that_has_no_file_yet_makes_none(
    monkeypatch: pytest.MonkeyPatch, file: Path, answer: b.Batch, says: str
) -> None:
    result = wattvend(monkeypatch, Vending(GetBatch=answer), *DOWNLOAD)
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())
    assert not file.exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (e.Export(size_bytes=1_234_567, stored_bytes=8, expires_at_ms=1), "1,234,567 bytes"),
        (GONE, "gone: reporting keeps it no more"),
        (Refused("UNAVAILABLE", "", "nobody answers"), "nobody says now whether it is kept"),
    ],
)
def test_a_batch_says_whether_its_file_is_kept(
    monkeypatch: pytest.MonkeyPatch, answer: Any, says: str
) -> None:
    vending = Vending(**{**answers(*METERS), "GetExport": answer})
    result = wattvend(monkeypatch, vending, "batch", "show", "B1")
    assert result.exit_code == 0, result.output
    assert says in " ".join(result.stdout.split())


def test_an_export_says_what_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = b.Batch(kind="export", status="running", waits_for="reporting is 70 s short")
    result = wattvend(monkeypatch, Vending(GetBatch=waiting), "batch", "show", "B1")
    assert "reporting is 70 s short" in result.stdout
