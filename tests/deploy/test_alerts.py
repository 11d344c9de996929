"""deploy/prometheus/alerts.yml asks for metrics that there are, and its pages say what to do."""

import importlib
import re
import shutil
import subprocess
from pathlib import PurePosixPath
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from tests.deploy.images import ROOT, SERVICES
from tests.unit.test_docs import METRICS

RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
COMPOSE = ROOT / "deploy" / "compose.yaml"
PAGE = ROOT / "docs" / "operations" / "stuck.md"
DURATION = re.compile(r"\d+[smhd]")


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return list(group["rules"])


def samples() -> set[str]:
    """Return the names under which the services show their metrics."""
    found = set()
    for service in SERVICES:
        registry = CollectorRegistry()
        importlib.import_module(METRICS[service]).Metrics(registry)
        for family in registry.collect():
            found.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return found


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_asks_for_metrics_that_a_service_has_and_says_where_to_read_on(
    rule: dict[str, Any],
) -> None:
    asked = set(re.findall(r"wattvend_\w+", rule["expr"]))
    assert asked
    assert asked <= samples()
    assert DURATION.fullmatch(rule.get("for", "0s"))
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"].keys() == {"summary", "runbook"}
    page = ROOT / rule["annotations"]["runbook"]
    assert rule["alert"] in page.read_text("utf-8")


def test_the_page_has_a_row_for_each_alert() -> None:
    rows = re.findall(r"^\| `(Vending\w+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert rows == [rule["alert"] for rule in alerts()]


def test_prometheus_of_the_compose_file_reads_the_alerts() -> None:
    config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text("utf-8"))
    (read,) = config["rule_files"]
    mounts = yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]["prometheus"]["volumes"]
    (source,) = [mount.split(":")[0] for mount in mounts if mount.split(":")[1] == read]
    assert (COMPOSE.parent / PurePosixPath(source)).resolve() == RULES


def test_promtool_accepts_the_alerts() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; the rules are read instead")
    done = subprocess.run(
        ["promtool", "check", "rules", RULES],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stdout + done.stderr
