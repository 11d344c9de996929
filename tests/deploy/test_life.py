"""A pod lives as Kubernetes and Prometheus expect, with its image's files and its pod's settings.

Goal: the paths that probes and scrapes ask exist, over TLS, on the port that is named; SIGTERM ends
the process within its grace. Method: what the image holds is unpacked; its entrypoint runs there
with the environment of the StatefulSet, moved to loopback, free ports and a directory of the test;
Kafka is away, as it may be when a pod starts.
"""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.deploy import manifests
from tests.deploy.deployed import here
from tests.deploy.images import ROOT, SERVICES, images, unpack
from tests.deploy.manifests import BASE, built, containers, pod_of
from tests.deploy.test_dockerfile import environment
from tests.deploy.test_kubernetes import SECRETS
from tools.stack import keyfile
from tools.stack.ports import LOOPBACK, free_ports

READY = ROOT / "deploy" / "compose" / "ready.py"
STARTED_WITHIN_S = 30


@dataclass(frozen=True)
class Pod:
    """A running service: what its manifest says of it, and where it listens here."""

    service: str
    container: dict[str, Any]
    grace_s: int
    process: subprocess.Popen[bytes]
    log: Path
    http_port: int

    def asked(self, tls: Path, path: str) -> tuple[int, str]:
        """Return status and text of a GET as somebody asks who trusts the authority only."""
        return asyncio.run(self._asked(tls, path))

    async def _asked(self, tls: Path, path: str) -> tuple[int, str]:
        trusted = ssl.create_default_context(cafile=tls / "ca.crt")
        deadline = time.monotonic() + STARTED_WITHIN_S
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    url = f"https://{LOOPBACK}:{self.http_port}{path}"
                    async with session.get(
                        url, ssl=trusted, server_hostname=self.service
                    ) as answer:
                        return answer.status, await answer.text()
                except aiohttp.ClientConnectorError:
                    assert self.process.poll() is None, self.log.read_text()
                    assert time.monotonic() < deadline, f"{self.service} does not listen"
                    await asyncio.sleep(0.1)


def start(service: str, root: Path, tls: Path) -> Pod:
    image = images()[service]
    unpack(image, root)
    everything = built(BASE)
    workload = everything["StatefulSet", service]
    (container,) = containers(workload)
    given = manifests.environment(f"{service}-0", container, everything, SECRETS)
    http_port, grpc_port, nobody = free_ports(3)
    prefix = f"WATTVEND_{service.upper()}_"
    moved = {
        "HTTP_HOST": LOOPBACK,
        "HTTP_PORT": str(http_port),
        "GRPC_HOST": LOOPBACK,
        "GRPC_PORT": str(grpc_port),
        "KAFKA_BOOTSTRAP": f"{LOOPBACK}:{nobody}",
        "STORE_PATH": str(root / "events.sqlite"),
        "SIGNING_KEY": str(keyfile.made(root / "signing.pem")),
    }
    moved = {prefix + name: value for name, value in moved.items()}
    log = root / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-S", *image.entrypoint[1:]],
            cwd=root / "app",
            env={
                **environment(image, root),
                **here(given, tls),
                **{name: value for name, value in moved.items() if name in given},
            },
            stdout=output,
            stderr=output,
        )
    pod = pod_of(workload) or {}
    grace_s = pod["terminationGracePeriodSeconds"]
    return Pod(service, container, grace_s, process, log, http_port)


@pytest.fixture(scope="module")
def pods(tls: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pod]]:
    running: dict[str, Pod] = {}
    try:
        for service in SERVICES:
            running[service] = start(service, tmp_path_factory.mktemp(service), tls)
        yield running
    finally:
        for pod in running.values():
            pod.process.kill()
            pod.process.wait()


@pytest.mark.parametrize("service", SERVICES)
def test_the_probes_are_answered(service: str, pods: dict[str, Pod], tls: Path) -> None:
    pod = pods[service]
    paths = {
        probe: pod.container[probe]["httpGet"]["path"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert pod.asked(tls, paths["startupProbe"])[0] == 200
    assert pod.asked(tls, paths["livenessProbe"])[0] == 200
    status, said = pod.asked(tls, paths["readinessProbe"])
    assert status == 503, "Kafka is away: it must not be ready"
    assert "start" in said
    assert pod.asked(tls, "/metrics")[0] == 200
    assert pod.asked(tls, "/health/other")[0] == 404


@pytest.mark.parametrize("service", SERVICES)
def test_the_health_check_of_compose_tells_ready_from_not_ready(
    service: str, pods: dict[str, Pod], tls: Path
) -> None:
    pod = pods[service]
    pod.asked(tls, "/health/live")
    for path, succeeds in (("/health/live", True), ("/health/ready", False)):
        url = f"https://localhost:{pod.http_port}{path}"
        done = subprocess.run(
            [sys.executable, READY, url, tls / "ca.crt"],
            capture_output=True,
            check=False,
            timeout=30,
        )
        assert (done.returncode == 0) == succeeds, done.stderr


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_that_is_told_to_end_ends_within_its_grace(
    service: str, pods: dict[str, Pod], tls: Path
) -> None:
    pod = pods[service]
    pod.asked(tls, "/health/live")
    os.kill(pod.process.pid, signal.SIGTERM)
    assert pod.process.wait(pod.grace_s) == 0
