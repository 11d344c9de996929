"""The dashboard that Grafana reads is the one that its code makes, and the page tells the truth.

What its queries answer is judged in tests/e2e/test_dashboard.py, on the tables the demo filled.
"""

import json
import re

from deploy.grafana import site
from tests.deploy.images import ROOT

PAGE = ROOT / "docs" / "operations" / "dashboard.md"


def test_the_committed_dashboard_is_what_the_code_makes() -> None:
    assert site.PATH.read_text("utf-8") == site.text(), "mend it: make gen"


def test_panels_neither_overlap_nor_leave_the_width() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(site.text())["panels"]:
        at = panel["gridPos"]
        cells = {
            (at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < site.FULL
        taken |= cells


def test_the_page_names_every_panel_and_no_other() -> None:
    titles = {each["title"].partition(",")[0] for each in json.loads(site.text())["panels"]}
    rows = re.findall(r"^\| \*\*(.+?)\*\* \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(title.partition(":")[0] for title in titles)
