"""Goal: the one-machine stack starts, keeps its data over crashes, and never leaves a process.

Method: the session's own stack for what a part promises; further stacks, in processes of their
own where they are to be killed or interrupted, for how a stack starts and ends.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.contract.mqtt_broker import BrokerAddress, MqttBrokerContract
from tools.stack.background import BackgroundStack
from tools.stack.errors import DirectoryInUseError, PortTakenError, StartError
from tools.stack.identity import ProcessIdentity
from tools.stack.mqtt import Broker, accepts, mosquitto_path, mqtt_spec
from tools.stack.ports import Ports, setting
from tools.stack.process import Supervisor
from tools.stack.services import ROOT, Addresses, ServiceSpec
from tools.stack.stack import LocalStack

pytestmark = pytest.mark.stack
DEADLINE_S = 30.0
HOST = "127.0.0.1"


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def recorded(directory: Path) -> dict[str, ProcessIdentity]:
    """Return the processes whose pid files lie in a stack's directory."""
    found = {path.stem: ProcessIdentity.read(path) for path in (directory / "run").glob("*.pid")}
    return {name: identity for name, identity in found.items() if identity is not None}


# --- what the parts promise -------------------------------------------------------------------


async def test_every_part_answers(stack: BackgroundStack) -> None:
    connection = await asyncpg.connect(stack.postgres_dsn)
    assert await connection.fetchval("show fsync") == "on"
    await connection.close()
    assert await accepts(stack.mqtt_host, stack.mqtt_port)
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap) as producer:
        assert producer.client.cluster.brokers()


async def test_postgres_wants_its_password(stack: BackgroundStack) -> None:
    dsn = stack.postgres_dsn
    password = dsn.partition("wattvend:")[2].partition("@")[0]
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(dsn.replace(password, "guess"))


async def test_a_record_survives_kill_9_of_kafka(stack: BackgroundStack) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    await admin.create_topics([NewTopic("test-stack-crash", 1, 1)])
    await admin.close()
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap, acks="all") as producer:
        await producer.send_and_wait("test-stack-crash", b"kept")
    await asyncio.to_thread(stack.kill9, "kafka")
    await asyncio.to_thread(stack.start, "kafka")
    async with AIOKafkaConsumer(
        "test-stack-crash",
        bootstrap_servers=stack.kafka_bootstrap,
        auto_offset_reset="earliest",
    ) as consumer:
        record = await asyncio.wait_for(consumer.getone(), DEADLINE_S)
    assert record.value == b"kept"


async def test_kafka_makes_no_topic_by_itself(stack: BackgroundStack) -> None:
    async with AIOKafkaProducer(bootstrap_servers=stack.kafka_bootstrap) as producer:
        await producer.client.fetch_all_metadata()
        assert "test-stack-nobody-made-it" not in producer.client.cluster.topics()
        assert await producer.client.force_metadata_update()
    admin = AIOKafkaAdminClient(bootstrap_servers=stack.kafka_bootstrap)
    await admin.start()
    (topic,) = await admin.describe_topics(["test-stack-nobody-made-it"])
    assert topic["error_code"] != 0
    assert "test-stack-nobody-made-it" not in await admin.list_topics()
    await admin.close()


async def test_a_row_survives_kill_9_of_postgres(stack: BackgroundStack) -> None:
    connection = await asyncpg.connect(stack.postgres_dsn)
    await connection.execute("create table test_stack_crash as select 7 as kept")
    stack.kill9("postgres")
    with contextlib.suppress(OSError, asyncpg.PostgresError):
        await connection.close(timeout=1)
    stack.start("postgres")
    connection = await asyncpg.connect(stack.postgres_dsn)
    assert await connection.fetchval("select kept from test_stack_crash") == 7
    await connection.execute("drop table test_stack_crash")
    await connection.close()


# --- MQTT: persistent sessions, on both brokers -----------------------------------------------


@pytest.fixture(params=list(Broker))
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerAddress]:
    """Run each broker alone."""
    if request.param is Broker.MOSQUITTO and mosquitto_path() is None:
        pytest.skip("Mosquitto is not installed; amqtt is what this machine would use")
    ports = Ports.free()
    with asyncio.Runner() as runner:
        supervisor = Supervisor(tmp_path)
        runner.run(supervisor.start(mqtt_spec(tmp_path, ports, request.param, None)))
        yield BrokerAddress(HOST, ports.mqtt)
        runner.run(supervisor.stop_all())


class TestLocalBrokers(MqttBrokerContract):
    """The contract, on the brokers that the one-machine stack runs."""


# --- how a stack starts and ends --------------------------------------------------------------


async def test_a_port_in_use_is_one_clear_error(tmp_path: Path) -> None:
    ports = Ports.free()
    with socket.create_server((HOST, ports.postgres)), pytest.raises(PortTakenError) as caught:
        async with LocalStack(tmp_path, ports):
            pass
    text = str(caught.value)
    assert f"port {ports.postgres} (postgres) cannot be used: pid {os.getpid()} listens" in text
    assert f"{setting('postgres')}=<port>" in text
    assert not recorded(tmp_path)


async def test_a_second_stack_in_one_directory_is_refused(stack: BackgroundStack) -> None:
    with pytest.raises(DirectoryInUseError, match="choose another directory"):
        async with LocalStack(stack.directory, Ports.free()):
            pass


async def test_a_service_that_dies_at_start_ends_the_stack_with_its_reason(tmp_path: Path) -> None:
    def services(at: Addresses) -> list[ServiceSpec]:
        async def never() -> bool:
            return False

        script = f"import sys; sys.exit('no setting named X for {at.kafka_bootstrap}')"
        return [ServiceSpec("broken", (sys.executable, "-c", script), ready=never)]

    pids: set[int] = set()
    with pytest.raises(StartError, match=r"broken ended before .*exit code 1(.|\n)*no setting na"):
        async with LocalStack(
            tmp_path,
            Ports.free(),
            services=services,
            watch=lambda status: pids.add(status.pid or 0),
        ):
            pass
    assert len(pids - {0}) >= 4
    assert not [pid for pid in pids - {0} if ProcessIdentity.of(pid)]


STACK_SCRIPT = """
import asyncio, sys
from pathlib import Path
from tools.stack.ports import Ports
from tools.stack.stack import LocalStack

async def main():
    async with LocalStack(Path(sys.argv[1]), Ports.free()):
        print("up", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def stack_process(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    argv = (sys.executable, "-c", STACK_SCRIPT, str(directory))
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_stack_leaves_no_orphan_and_starts_again(tmp_path: Path) -> None:
    with stack_process(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        parts = recorded(tmp_path)
        assert set(parts) == {"kafka", "postgres", "mqtt"}
        first.kill()
        wait_until(lambda: not any(part.alive() for part in parts.values()), f"orphans of {parts}")
    with stack_process(tmp_path) as second:
        assert second.stdout is not None
        assert second.stdout.readline() == b"up\n"
        parts = recorded(tmp_path)
        second.send_signal(signal.SIGTERM)
        second.wait(DEADLINE_S)
    assert not any(part.alive() for part in parts.values())


def test_ctrl_c_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    with stack_process(tmp_path) as process:
        wait_until(lambda: "kafka" in recorded(tmp_path), "Kafka was never started")
        parts = recorded(tmp_path)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_S) != 0
        assert process.stdout is not None
        assert process.stdout.read() == b""
    assert not any(part.alive() for part in parts.values())
    assert not recorded(tmp_path)


def command(directory: Path, ports: Ports, *arguments: str) -> subprocess.CompletedProcess[str]:
    chosen = {setting(name): str(port) for name, port in ports.items()}
    return subprocess.run(
        (sys.executable, "-m", "tools.stack", *arguments, "--directory", str(directory)),
        cwd=ROOT,
        env={**os.environ, **chosen},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S * 2,
        check=False,
    )


def parts_of(directory: Path, ports: Ports) -> list[dict[str, Any]]:
    status = json.loads(command(directory, ports, "status", "--json").stdout)
    assert status["phase"] == "ready"
    parts: list[dict[str, Any]] = status["parts"]
    return parts


def test_up_status_and_down_by_command(tmp_path: Path) -> None:
    ports = Ports.free()
    up = command(tmp_path, ports, "up", "--only-infrastructure")
    try:
        assert up.returncode == 0, up.stderr
        assert f"127.0.0.1:{ports.kafka}" in up.stdout
        assert f"export WATTVEND_VENDING_ADDR=127.0.0.1:{ports.vending_grpc}" in up.stdout
        again = command(tmp_path, ports, "up", "--only-infrastructure")
        assert "up already" in again.stdout
        assert {part["name"]: part["state"] for part in parts_of(tmp_path, ports)} == {
            "kafka": "ready",
            "postgres": "ready",
            "mqtt": "ready",
        }
        recorded(tmp_path)["mqtt"].kill(signal.SIGKILL)
        wait_until(
            lambda: sum(part["exits"] for part in parts_of(tmp_path, ports)) == 1,
            "the exit was not reported",
        )
        wait_until(
            lambda: command(tmp_path, ports, "status").returncode == 0,
            "the killed part did not come back",
        )
    finally:
        down = command(tmp_path, ports, "down", "--wipe")
    assert down.returncode == 0, down.stderr
    assert not tmp_path.exists()
    assert command(tmp_path, ports, "status").returncode == 3


def test_up_in_a_directory_of_another_stack_says_who_holds_it(stack: BackgroundStack) -> None:
    up = command(stack.directory, Ports.free(), "up", "--only-infrastructure")
    assert up.returncode == 1
    assert f"another stack (pid {os.getpid()}) runs in" in up.stderr
    assert "Traceback" not in up.stderr


def test_up_with_a_port_in_use_names_it_and_its_setting(tmp_path: Path) -> None:
    ports = Ports.free()
    with socket.create_server((HOST, ports.mqtt)):
        up = command(tmp_path, ports, "up", "--only-infrastructure")
    assert up.returncode == 1
    assert f"port {ports.mqtt} (mqtt) cannot be used" in up.stderr
    assert setting("mqtt") in up.stderr
    assert command(tmp_path, ports, "status").returncode == 3
