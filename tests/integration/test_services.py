"""Goal: every service says truly whether it is ready, what it counts and what it does, and stops.

Method: each of the five is started with a bootstrap address behind which Kafka is not there yet,
asked, given Kafka, asked again and told to stop; what it answered and logged is judged.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.common.kernel.errors import Retriable
from services.common.runtime import topics
from services.common.runtime.settings import ServiceSettings
from tests.unit.test_docs import SERVICES, documented_metrics
from tools.stack.background import BackgroundStack
from tools.stack.ports import LOOPBACK, Ports, free_ports
from tools.stack.services import ROOT, service_specs

pytestmark = pytest.mark.stack

DEADLINE_S = 30.0
READY_WITHIN_S = 10.0
LISTENS = "0A"
LOOPBACK_ADDRESSES = {
    "0100007F": "127.0.0.1",
    "0000000000000000FFFF00000100007F": "::ffff:127.0.0.1",
    "00000000000000000000000001000000": "::1",
}
STOP_WITHIN_S: int = ServiceSettings.model_fields["stop_timeout_s"].default


@dataclass(frozen=True)
class Answer:
    """What a GET said; status 0 where nobody answered."""

    status: int
    text: str = ""


@dataclass(frozen=True)
class Life:
    """What one process of a service was seen to do."""

    service: str
    live_before: Answer
    ready_before: Answer
    ready_after_s: float
    listens_at: frozenset[str]
    metrics: str
    ready_while_stopping: Answer
    stopped_after_s: float
    code: int
    stdout: str
    stderr: str


@pytest.fixture(scope="module")
def quiet_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BackgroundStack]:
    """Run a stack whose topics are empty: what others left there would decide who gets ready."""
    stack = BackgroundStack(tmp_path_factory.mktemp("stack"), Ports.free())
    stack.open()
    try:
        asyncio.run(topics.create(stack.kafka_bootstrap))
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="module", params=SERVICES)
def life(
    request: pytest.FixtureRequest, quiet_stack: BackgroundStack, tmp_path_factory: Any
) -> Life:
    return asyncio.run(lived(request.param, quiet_stack, tmp_path_factory.mktemp(request.param)))


async def lived(service: str, stack: BackgroundStack, directory: Path) -> Life:
    """Start a service before Kafka, let Kafka come, and stop the service."""
    (gate,) = free_ports(1)
    spec = next(spec for spec in service_specs(stack.addresses) if spec.name == service)
    http_port: int = getattr(stack.addresses.ports, f"{service}_http")
    env = {**spec.env, f"WATTVEND_{service.upper()}_KAFKA_BOOTSTRAP": f"{LOOPBACK}:{gate}"}
    at = f"http://{LOOPBACK}:{http_port}"
    async with aiohttp.ClientSession(at) as http, started(spec.argv, env, directory) as process:
        live_before = await until(http, "/health/live", 200)
        ready_before = await get(http, "/health/ready")
        async with relayed(gate, stack.addresses.ports.kafka):
            opened_at = time.monotonic()
            await until(http, "/health/ready", 200)
            ready_after_s = time.monotonic() - opened_at
            listens_at = listening(http_port, getattr(stack.addresses.ports, f"{service}_grpc", 0))
            metrics = (await get(http, "/metrics")).text
            process.send_signal(signal.SIGTERM)
            told_at = time.monotonic()
            ready_while_stopping = await until_not(http, "/health/ready", 200)
            code = await asyncio.wait_for(process.wait(), DEADLINE_S)
            stopped_after_s = time.monotonic() - told_at
    return Life(
        service,
        live_before,
        ready_before,
        ready_after_s,
        listens_at,
        metrics,
        ready_while_stopping,
        stopped_after_s,
        code,
        (directory / "stdout").read_text(),
        (directory / "stderr").read_text(),
    )


def listening(*ports: int) -> frozenset[str]:
    """Return the addresses, as the kernel writes them, at which anybody listens on the ports."""
    rows = [
        line.split()
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text("ascii").splitlines()[1:]
    ]
    places = [row[1].split(":") for row in rows if row[3] == LISTENS]
    return frozenset(address for address, port in places if int(port, 16) in ports)


@asynccontextmanager
async def started(
    argv: tuple[str, ...], env: Mapping[str, str], directory: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    with (directory / "stdout").open("wb") as out, (directory / "stderr").open("wb") as err:
        process = await asyncio.create_subprocess_exec(
            *argv, cwd=ROOT, env={**os.environ, **env}, stdout=out, stderr=err
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


@asynccontextmanager
async def relayed(from_port: int, to_port: int) -> AsyncIterator[None]:
    """Let connections to one loopback port reach another."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(LOOPBACK, to_port)
        await asyncio.gather(copy(reader, back), copy(there, writer))

    server = await asyncio.start_server(connect, LOOPBACK, from_port)
    try:
        yield
    finally:
        server.close()


async def get(http: aiohttp.ClientSession, path: str) -> Answer:
    try:
        async with http.get(path) as answer:
            return Answer(answer.status, await answer.text())
    except aiohttp.ClientConnectionError:
        return Answer(0)


async def until(http: aiohttp.ClientSession, path: str, status: int) -> Answer:
    deadline = time.monotonic() + DEADLINE_S
    while (answer := await get(http, path)).status != status:
        assert time.monotonic() < deadline, f"{path} still says {answer}"
        await asyncio.sleep(0.02)
    return answer


async def until_not(http: aiohttp.ClientSession, path: str, status: int) -> Answer:
    deadline = time.monotonic() + DEADLINE_S
    while (answer := await get(http, path)).status == status:
        assert time.monotonic() < deadline, f"{path} still says {answer}"
    return answer


def test_while_kafka_is_away_it_lives_and_is_not_ready_and_says_why(life: Life) -> None:
    assert json.loads(life.live_before.text) == {"live": True}
    assert life.ready_before.status == 503
    assert json.loads(life.ready_before.text)["missing"]


def test_it_is_ready_within_seconds_and_no_more_once_it_stops(life: Life) -> None:
    assert life.ready_after_s < READY_WITHIN_S
    assert life.ready_while_stopping.status in {0, 503}


def test_it_serves_the_metrics_of_its_page_and_no_other(life: Life) -> None:
    kinds = dict(re.findall(r"^# TYPE (wattvend_\w+) (\w+)$", life.metrics, re.MULTILINE))
    served = {name for name in kinds if not name.endswith("_created")}
    assert served == documented_metrics(life.service)


def test_its_log_is_one_json_object_a_line(life: Life) -> None:
    assert life.stdout == ""
    entries = [json.loads(line) for line in life.stderr.splitlines()]
    for entry in entries:
        assert {"event", "level", "timestamp"} <= entry.keys(), entry
    own = [entry for entry in entries if entry.get("service") == life.service]
    assert {entry["instance"] for entry in own} == {f"{life.service}-0"}
    events = [entry["event"] for entry in own]
    assert events.index("ready") < events.index("stopping") < events.index("stopped")


def test_it_stops_on_sigterm_within_its_bound_and_calls_that_success(life: Life) -> None:
    assert life.code == 0, life.stderr[-2000:]
    assert life.stopped_after_s < STOP_WITHIN_S


def test_by_default_it_listens_on_loopback_only(life: Life) -> None:
    assert life.listens_at
    assert life.listens_at <= LOOPBACK_ADDRESSES.keys()


def test_kafka_postgresql_and_the_mqtt_broker_listen_on_loopback_only(
    quiet_stack: BackgroundStack,
) -> None:
    ports = quiet_stack.addresses.ports
    for port in (ports.kafka, ports.kafka_controller, ports.postgres, ports.mqtt):
        assert listening(port)
        assert listening(port) <= LOOPBACK_ADDRESSES.keys(), port


async def test_topics_that_kafka_will_not_make_are_told_with_its_reason(
    quiet_stack: BackgroundStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = topics.Topic("wanted", "site", "site", 1, {}, (), {})
    monkeypatch.setattr(topics, "catalogue", lambda: topics.Catalogue(1, 1, {"wanted": wanted}, ()))
    with pytest.raises(Retriable, match=r"topic wanted cannot be created at .*replication factor"):
        await asyncio.wait_for(
            topics.create(quiet_stack.kafka_bootstrap, replication=3), DEADLINE_S
        )
    assert await topics.create(quiet_stack.kafka_bootstrap) == ["wanted"]


async def test_told_to_stop_before_it_was_ever_ready_it_stops(
    quiet_stack: BackgroundStack, tmp_path: Path
) -> None:
    (nobody,) = free_ports(1)
    spec = next(spec for spec in service_specs(quiet_stack.addresses) if spec.name == "vending")
    env = {**spec.env, "WATTVEND_VENDING_KAFKA_BOOTSTRAP": f"{LOOPBACK}:{nobody}"}
    at = f"http://{LOOPBACK}:{quiet_stack.addresses.ports.vending_http}"
    async with aiohttp.ClientSession(at) as http, started(spec.argv, env, tmp_path) as process:
        await until(http, "/health/live", 200)
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), STOP_WITHIN_S) == 0


@pytest.mark.parametrize("service", sorted(SERVICES))
async def test_told_to_stop_while_kafka_is_away_it_stops_and_calls_that_success(
    quiet_stack: BackgroundStack, tmp_path: Path, service: str
) -> None:
    spec = next(spec for spec in service_specs(quiet_stack.addresses) if spec.name == service)
    port: int = getattr(quiet_stack.addresses.ports, f"{service}_http")
    at = f"http://{LOOPBACK}:{port}"
    async with aiohttp.ClientSession(at) as http, started(spec.argv, spec.env, tmp_path) as process:
        await until(http, "/health/ready", 200)
        await asyncio.to_thread(quiet_stack.kill9, "kafka")
        try:
            process.send_signal(signal.SIGTERM)
            code = await asyncio.wait_for(process.wait(), STOP_WITHIN_S + 1)
        finally:
            await asyncio.to_thread(quiet_stack.start, "kafka")
    said = (tmp_path / "stderr").read_text()
    assert code == 0, said
    assert "Traceback" not in said
