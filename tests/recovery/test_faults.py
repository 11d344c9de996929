"""docs/reliability.md names each fault that is tried, and the test that tries it; no other."""

import re
from pathlib import Path

import pytest

from tests.recovery import faults
from tests.recovery.faults import Fault, Row

MARK = re.compile(r'@pytest\.mark\.fault\("([a-z0-9-]+)"\)\n(?:@.*\n)*(?:async )?def (test_\w+)')


def test_every_fault_of_the_page_has_its_test_and_no_other() -> None:
    tried = {
        name: f"{path.relative_to(faults.ROOT)}::{test}"
        for path in sorted(Path(__file__).parent.glob("test_*.py"))
        for name, test in MARK.findall(path.read_text())
    }
    assert tried == {row.fault: row.test for row in faults.page().values()}


def test_a_count_that_the_page_does_not_promise_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(faults.SOAK, raising=False)
    row = Row("a", "b", tried=2, lost="0", test="c")
    Fault(row, tried=2, judged=1).check()
    for wrong in (
        Fault(row, tried=1, judged=1),
        Fault(row, tried=2, judged=0),
        Fault(row, tried=2, judged=1, lost=1),
    ):
        with pytest.raises(AssertionError):
            wrong.check()
