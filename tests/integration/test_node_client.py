"""A client in another language is understood: examples/node opens, sells, repeats and is refused.

Method: the example as it stands, in Node, against a running vending; its packages come from the
registry as its README says. Skipped where Node is not installed or the packages cannot be had.
"""

import asyncio
import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.common.kernel import names
from tests.integration.test_vending import (
    Vending,
    _topics,
    site_with_account,
    stub_of,
    vending,
)
from tools import schemas

__all__ = ["_topics", "vending"]

pytestmark = pytest.mark.stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "node"
INSTALL_WITHIN_S = 120
RUN_WITHIN_S = 60


def ran(command: Sequence[str | Path], folder: Path, within_s: float) -> tuple[int, str, str]:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=within_s, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the example with its packages."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node is not installed: node and npm are not on the PATH")
    folder = tmp_path_factory.mktemp("node") / "example"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ("npm", "install", "--no-audit", "--no-fund", "--ignore-scripts")
    try:
        code, _, told = ran(install, folder, INSTALL_WITHIN_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not get the example's packages within {INSTALL_WITHIN_S} s")
    if code:
        pytest.skip(f"npm cannot get the example's packages: {told.strip()[-300:]}")
    return folder


async def test_the_example_opens_sells_once_and_tells_refusals_apart(
    vending: Vending, example: Path
) -> None:
    async with stub_of(vending) as stub:
        await site_with_account(stub, vending)
    api = example / "wattvend.binpb"
    schemas.descriptors(api)
    name = vending.id
    at = ("node", "client.js", api, f"127.0.0.1:{vending.port}")
    what = (name("N"), name("S"), name("T"), name("P"))
    code, told, said = await asyncio.to_thread(ran, (*at, *what), example, RUN_WITHIN_S)
    assert code == 0, said
    answer = json.loads(told)
    assert names.RECEIPT.id("receipt", answer.pop("receipt"))
    assert int(answer.pop("number")) > 0
    assert answer == {
        "account": names.ACCOUNT.name(name("N")),
        "amount_minor": "10000",
        "credited_nano": "100000000000",
        "is_sold_once": True,
        "refused": [
            {"reason": "REQUEST_ID_REUSED", "field": "request_id"},
            {"reason": "AMOUNT_NOT_POSITIVE", "field": "amount_minor"},
            {"reason": "ACCOUNT_NOT_FOUND", "field": "name"},
            {"reason": "INVALID_ARGUMENT", "field": "name"},
        ],
    }
    code, told, said = await asyncio.to_thread(ran, (*at, *what), example, RUN_WITHIN_S)
    assert (code, told) == (1, "")
    assert said.startswith("ALREADY_EXISTS: ")
