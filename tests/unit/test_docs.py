"""Documents say what the code says.

Method: read the pages as text and compare their tables and links with the tree and the catalogues.
"""

import importlib
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common.kernel.reasons import Reason
from services.common.runtime.settings import ServiceSettings
from services.common.runtime.topics import catalogue
from services.metering.domain.rows import FLAGS
from services.metering.domain.validation import OUTCOMES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "build", ".git", ".hypothesis"} & set(path.relative_to(ROOT).parts)
)
SERVICES = ("control", "ingest", "metering", "reporting", "vending")
METRICS = {
    "control": "services.control.adapters.metrics",
    "ingest": "services.ingest.adapters.metrics",
    "metering": "services.metering.adapters.metrics",
    "reporting": "services.reporting.adapters.metrics",
    "vending": "services.vending.metrics",
}
"""Service → the module of its Metrics."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_reason_is_documented_and_no_other() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    listed = re.findall(r"^\| `([A-Z_0-9]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(Reason)


def test_every_outcome_of_a_reading_is_documented_and_its_test_is_there() -> None:
    text = (ROOT / "docs/validation.md").read_text()
    assert {*OUTCOMES, *FLAGS} - {"opens"} <= set(re.findall(r"`([a-z-]+)`", text))
    tests = "".join(path.read_text() for path in (ROOT / "tests/unit").glob("test_metering_*.py"))
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in tests, f"docs/validation.md names {name}"


@pytest.mark.parametrize("service", SERVICES)
def test_the_settings_table_of_a_service_is_its_settings(service: str) -> None:
    config = importlib.import_module(f"services.{service}.config")
    kinds = [
        kind
        for kind in vars(config).values()
        if isinstance(kind, type)
        and issubclass(kind, ServiceSettings)
        and kind.model_config.get("env_prefix")
    ]
    assert len(kinds) == 1
    prefix = kinds[0].model_config["env_prefix"]
    wanted = {f"{prefix}{name.upper()}" for name in kinds[0].model_fields}
    text = (ROOT / "services" / service / "README.md").read_text()
    listed = re.findall(r"^\| `(WATTVEND_[A-Z0-9_]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(wanted)


@pytest.mark.parametrize("service", SERVICES)
def test_the_topics_of_a_services_page_are_those_of_the_catalogue(service: str) -> None:
    """What only the service itself reads back (metering's rows) is told under what it owns."""
    text = (ROOT / "services" / service / "README.md").read_text()
    known = {t.name: t for t in catalogue().topics.values() if not t.name.endswith(".dlq")}
    own = {t.name for t in known.values() if not t.values and t.readers == (service,)}

    def named(row: str) -> set[str]:
        (cell,) = re.findall(rf"^\| {row} \| (.*) \|$", text, re.MULTILINE)
        return set(re.findall(r"`([a-z-]+)`", cell)) & known.keys()

    assert named("Reads") == {t.name for t in known.values() if service in t.readers} - own
    assert named("Writes") == {t.name for t in known.values() if service in t.values.values()}
    assert own <= named("Owns")


def documented_metrics(service: str) -> set[str]:
    """Return the metrics that a service's page names."""
    text = (ROOT / "services" / service / "README.md").read_text()
    return set(re.findall(rf"`(wattvend_{service}_[a-z0-9_]+)", text))


@pytest.mark.parametrize("service", SERVICES)
def test_the_metrics_of_a_services_page_are_those_of_its_code(service: str) -> None:
    registry = CollectorRegistry()
    importlib.import_module(METRICS[service]).Metrics(registry)
    kept = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in registry.collect()
    }
    assert documented_metrics(service) == kept


def test_the_methods_of_reportings_page_are_those_of_its_api() -> None:
    page = (ROOT / "services" / "reporting" / "README.md").read_text()
    (served,) = re.findall(r"^\| Serves \|(.+)\|$", page, re.MULTILINE)
    proto = (ROOT / "schemas" / "proto" / "wattvend" / "reporting").rglob("*.proto")
    methods = re.findall(r"^  rpc (\w+)", "".join(map(Path.read_text, proto)), re.MULTILINE)
    named = re.findall(r"`(\w+)`", served)
    assert sorted(each for each in named if not each.endswith("Service")) == sorted(methods)


def test_make_help_lists_every_target_with_what_it_does() -> None:
    makefile = (ROOT / "Makefile").read_text()
    told = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = set(re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE))
    listed = re.findall(r"^  make ([a-z-]+) +\S", told, re.MULTILINE)
    assert sorted(listed) == sorted(targets)
    assert targets == set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))


def test_every_make_target_in_the_pages_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for target in re.findall(r"^make ([a-z][a-z-]*)", block, re.MULTILINE):
                assert target in targets, f"{page.name}: make {target}"


def test_ci_runs_what_the_readme_tells_a_newcomer_to_type() -> None:
    block = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    typed = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    script = (ROOT / ".ci" / "run").read_text()
    assert re.findall(r"^make .*$", script, re.MULTILINE) == typed == ["make demo", "make test"]


@pytest.mark.parametrize(
    "lock", sorted((ROOT / "requirements").glob("*.lock")), ids=lambda p: p.name
)
def test_a_lock_file_pins_with_hashes_and_names_no_address(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"https?:|--(extra-)?index-url|--find-links", text)
    entries = re.split(r"\n(?=\S)", text.strip())
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9._-]+(\[[a-z,-]+\])?==\S+", entry), entry
        assert "--hash=sha256:" in entry, entry
