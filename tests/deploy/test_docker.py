"""The images build and run, and the stack in containers shows what happens in it.

Method: where a Docker daemon answers, the commands of docs/operations are typed as they stand
there; then Prometheus and Grafana are asked what they see. Elsewhere this skips.
"""

import base64
import json
import os
import re
import secrets
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.deploy.images import ROOT, SERVICES, images
from tests.deploy.test_compose import PATH, REQUIRED, blocks
from tests.e2e.test_dashboard import View, panels
from tests.integration.test_containers import why_no_docker
from tools import mall

pytestmark = [pytest.mark.docker, pytest.mark.timeout(3600)]

TARGETS = (*SERVICES, "tools")
BUILD_WITHIN_S = 1800
SEEN_WITHIN_S = 180
PROJECT = f"wattvend-test-{os.getpid()}"
HOUR_MS = 3_600_000


@pytest.fixture(scope="module", autouse=True)
def _docker() -> None:
    if (why := why_no_docker()) is not None:
        pytest.skip(f"no Docker daemon answers: {why}")


def typed(
    command: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-euc", command],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_WITHIN_S,
    )


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + SEEN_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {SEEN_WITHIN_S} s: {what}"
        time.sleep(1)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_builds_and_its_process_is_nobody_special(target: str) -> None:
    image = f"{PROJECT}-{target}"
    build = f"docker build --platform linux/amd64 -f deploy/Dockerfile --target {target}"
    try:
        built = typed(f"{build} -t {image} .")
        assert built.returncode == 0, built.stderr
        run = f"docker run --rm --read-only --platform linux/amd64 {image}"
        asked = typed(f"{run} --help" if target == "tools" else run)
        if target in {"metering", "control", "reporting"}:
            assert asked.returncode == 2, asked.stderr
            assert "The settings are wrong" in asked.stderr
        elif target == "tools":
            assert asked.returncode == 0, asked.stderr
        who = typed(f"docker run --rm --platform linux/amd64 --entrypoint id {image}")
        assert f"uid={images()[target].user.partition(':')[0]}(" in who.stdout
    finally:
        typed(f"docker rmi --force {image}")


@pytest.fixture(scope="module")
def running(_docker: None) -> Iterator[dict[str, str]]:
    """Run the stack as the page says; yield the environment of its commands."""
    if (found := typed("docker compose version")).returncode != 0:
        pytest.skip(f"Docker has no compose here: {found.stderr}")
    names = set(REQUIRED.findall(PATH.read_text("utf-8")))
    environment = {name: secrets.token_hex(16) for name in names}
    environment["COMPOSE_PROJECT_NAME"] = PROJECT
    up, *_ = blocks()[1].splitlines()
    compose = f"docker compose -f {PATH.relative_to(ROOT)} --profile fleet --profile tools"
    try:
        checked = typed(f"{compose} config --quiet", environment)
        assert checked.returncode == 0, checked.stderr
        started = typed(up, environment)
        logs = "" if started.returncode == 0 else typed(f"{compose} logs", environment).stdout
        assert started.returncode == 0, started.stderr + logs
        yield environment
    finally:
        typed(f"{compose} down --volumes", environment)


@pytest.mark.usefixtures("running")
def test_prometheus_scrapes_the_five_services() -> None:
    def all_up() -> bool:
        url = "http://127.0.0.1:9090/api/v1/query?query=up"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)["data"]["result"]
        return {each["metric"]["service"]: each["value"][1] for each in found} == dict.fromkeys(
            SERVICES, "1"
        )

    until(all_up, "five targets are up")


def test_the_commands_of_the_page_work_in_their_order(running: dict[str, str]) -> None:
    lines = [line for block in blocks()[1:-1] for line in block.splitlines()]
    for command in lines:
        if "account open" in command:
            (meter,) = re.findall(r"--meter (\S+)", command)
            until(partial(is_read, meter, running), f"{meter} is read")
        done = typed(command, running)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def is_read(meter: str, environment: dict[str, str]) -> bool:
    cli = "docker compose -f deploy/compose.yaml run --rm cli --json fleet --site mall-1"
    done = typed(cli, environment)
    meters = json.loads(done.stdout)["meters"] if done.returncode == 0 else []
    return any(each["meter"] == f"meters/{meter}" and "register_milli" in each for each in meters)


def test_grafana_answers_every_query_of_the_dashboard(running: dict[str, str]) -> None:
    now_ms = time.time_ns() // 1_000_000
    view = View(mall.SITE, now_ms - HOUR_MS, now_ms)
    queries = [
        {
            "refId": f"Q{number}",
            "datasource": {"uid": "wattvend-reporting"},
            "format": panel.shape,
            "rawSql": view.interpolated(panel.sql),
        }
        for number, panel in enumerate(panels())
    ]
    asked: dict[str, Any] = {"queries": queries, "from": str(view.from_ms), "to": str(view.to_ms)}
    answers = grafana(running, "/api/ds/query", asked)["results"]
    assert answers.keys() == {query["refId"] for query in queries}
    assert not [answer["error"] for answer in answers.values() if "error" in answer]
    board = grafana(running, "/api/dashboards/uid/wattvend-site")
    assert len(board["dashboard"]["panels"]) == len(queries)


def grafana(environment: dict[str, str], path: str, body: Any = None) -> dict[str, Any]:
    password = environment["GRAFANA_ADMIN_PASSWORD"]
    who = base64.b64encode(f"admin:{password}".encode()).decode("ascii")
    request = urllib.request.Request(
        f"http://127.0.0.1:3000{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Basic {who}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_the_images_of_the_kubernetes_page_build() -> None:
    text = (ROOT / "docs" / "operations" / "kubernetes.md").read_text("utf-8")
    for command in re.findall(r"^docker build .*$", text, re.MULTILINE):
        done = typed(command)
        assert done.returncode == 0, done.stderr
        image = shlex.split(command)[shlex.split(command).index("-t") + 1]
        typed(f"docker rmi {image}")
