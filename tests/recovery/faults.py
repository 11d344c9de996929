"""The table of docs/reliability.md, held against what the recovery tests did.

A row of the table is `| <fault id> | what happens | tried | lost | test |`. A test that bears
`@pytest.mark.fault("<id>")` takes the fixture `fault`, counts what it tried and what was lost, and
fails where the page says otherwise.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "build" / "reliability.json"
ROW = re.compile(
    r"^\| `([a-z0-9-]+)` \| (.+?) \| (\d+) \| (.+?) \| `(tests/[^`]+)` \|$", re.MULTILINE
)
SOAK = "WATTVEND_SOAK"


class Said(TypedDict):
    """What a test did, as a file has it."""

    fault: str
    tried: int
    judged: int
    lost: int


@dataclass(frozen=True, slots=True)
class Row:
    """One fault as the page tells it. `tried`: in `make test`; `lost` begins with a number."""

    fault: str
    what: str
    tried: int
    lost: str
    test: str

    @property
    def lost_max(self) -> int:
        """How much the page admits to lose."""
        return int(self.lost.split()[0])


@dataclass(slots=True)
class Fault:
    """What one test did. `judged`: how many outcomes were compared with the oracle."""

    row: Row
    tried: int = 0
    judged: int = 0
    lost: int = 0

    def check(self) -> None:
        """Fail where the page promises more than was tried or admits less than was lost."""
        times = soak_factor()
        assert self.tried == self.row.tried * times, f"{self.row.fault}: the page says otherwise"
        assert self.judged > 0, f"{self.row.fault}: nothing was judged"
        assert self.lost <= self.row.lost_max * times, f"{self.row.fault}: more was lost"

    def said(self) -> Said:
        """Return the counts, for a file."""
        name = self.row.fault
        return {"fault": name, "tried": self.tried, "judged": self.judged, "lost": self.lost}


def page() -> dict[str, Row]:
    """Return the rows of the page by fault."""
    rows = [
        Row(fault, what, int(tried), lost, test)
        for fault, what, tried, lost, test in ROW.findall(PAGE.read_text())
    ]
    assert len({row.fault for row in rows}) == len(rows), "a fault stands twice in the page"
    return {row.fault: row for row in rows}


def soak_factor() -> int:
    """Return how often each fault's rounds are repeated: 1, or more in `make soak`."""
    return int(os.environ.get(SOAK, "1"))


def rounds(count: int) -> range:
    """Return the rounds of a test, times what a soak asks for."""
    return range(count * soak_factor())


def keep(found: dict[str, Said]) -> None:
    """Write what was tried in this session, for a person and for the page."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([said for _, said in sorted(found.items())], indent=1) + "\n")
