"""Documents say what the code says.

Method: read the pages as text and compare their tables and links with the tree and the catalogues.
"""

import importlib
import re
from pathlib import Path

import pytest

from services.common.kernel.reasons import Reason
from services.common.runtime.settings import ServiceSettings

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", "build", ".git", ".hypothesis"} & set(path.relative_to(ROOT).parts)
)
SERVICES = ("control", "ingest", "metering", "reporting", "vending")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)[^)]*\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_reason_is_documented_and_no_other() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    listed = re.findall(r"^\| `([A-Z_0-9]+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted(Reason)


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


def test_every_make_target_in_the_pages_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.DOTALL):
            for target in re.findall(r"^make ([a-z][a-z-]*)", block, re.MULTILINE):
                assert target in targets, f"{page.name}: make {target}"
