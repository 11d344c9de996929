"""Goal: settings, pinned jars, locks and environments are right, and refusals say what to do.

Method: the pure parts directly; the jar fetch with downloads replaced by local files.
"""

import fcntl
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import requests
from amqtt.adapters import BufferReader, BufferWriter
from amqtt.session import Session

from tools.stack import jars, kafka, mqtt
from tools.stack.amqtt_broker import Handler
from tools.stack.errors import DirectoryInUseError, FetchError, SettingError
from tools.stack.identity import ProcessIdentity
from tools.stack.ports import Ports, client_port_min, setting
from tools.stack.postgres import binaries, open_to
from tools.stack.process import PartStatus, State
from tools.stack.services import Addresses, Kind, fleet_spec, service_specs
from tools.stack.stack import DirectoryLock
from tools.stack.state import Phase, StackState


def test_ports_come_from_the_environment_and_default_to_the_documented_ones() -> None:
    ports = Ports.from_environment({"WATTVEND_STACK_KAFKA_PORT": "9092", "OTHER": "1"})
    assert ports.kafka == 9092
    assert ports.vending_grpc == 27001
    assert setting("vending_grpc") == "WATTVEND_STACK_VENDING_GRPC_PORT"


@pytest.mark.parametrize("text", ["", "0", "65536", "-1", "kafka", "1e3", "٣"])
def test_a_port_that_is_none_is_refused_by_its_settings_name(text: str) -> None:
    with pytest.raises(SettingError, match=r"WATTVEND_STACK_MQTT_PORT is .*must be a port"):
        Ports.from_environment({"WATTVEND_STACK_MQTT_PORT": text})


def test_two_settings_with_one_port_are_refused() -> None:
    with pytest.raises(SettingError, match=r"POSTGRES_PORT and .*KAFKA_PORT are both 29092"):
        Ports.from_environment({"WATTVEND_STACK_POSTGRES_PORT": "29092"})


def test_free_ports_differ_and_stay_out_of_the_range_given_to_clients() -> None:
    numbers = [port for _, port in Ports.free().items()]
    assert len(set(numbers)) == len(numbers)
    assert all(port < client_port_min() for port in numbers)


def test_the_lock_file_pins_the_whole_broker_once() -> None:
    locked = jars.locked_jars()
    names = [jar.artifact for jar in locked]
    assert len(names) == len(set(names)) == 45
    assert {jar.version for jar in locked if jar.group == "org.apache.kafka"} == {"4.4.0"}
    assert {"slf4j-api", "slf4j-simple"} <= set(names)
    assert all(len(jar.sha256) == 64 for jar in locked)


@pytest.fixture
def two_jars(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Pin two small jars; returns what the (replaced) download brings for each."""
    content = {"a": b"jar a", "b": b"jar b"}
    pinned = [
        jars.Jar("g", name, "1", len(text), hashlib.sha256(text).hexdigest())
        for name, text in content.items()
    ]

    def download(jar: jars.Jar, scratch: Path, meter: jars.Meter) -> Path:
        path = scratch / jar.file_name
        path.write_bytes(content[jar.artifact])
        meter.add(size_bytes=path.stat().st_size)
        return path

    monkeypatch.setattr(jars, "locked_jars", lambda: pinned)
    monkeypatch.setattr(jars, "download", download)
    return content


def test_jars_are_fetched_once_with_progress(
    two_jars: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[jars.FetchStatus] = []
    paths = jars.fetch(seen.append, tmp_path)
    assert [path.read_bytes() for path in paths] == list(two_jars.values())
    assert (seen[0].jars, seen[-1].jars, seen[-1].fetched_bytes) == (0, 2, 10)
    monkeypatch.setattr(jars, "download", None)
    assert jars.fetch(cache=tmp_path) == paths


def test_a_damaged_jar_is_fetched_again(two_jars: dict[str, bytes], tmp_path: Path) -> None:
    path = jars.fetch(cache=tmp_path)[0]
    path.write_bytes(b"half")
    assert jars.fetch(cache=tmp_path)[0].read_bytes() == two_jars["a"]


def test_a_jar_that_is_not_the_pinned_one_is_refused_and_not_kept(
    two_jars: dict[str, bytes], tmp_path: Path
) -> None:
    two_jars["b"] = b"jar?!"
    with pytest.raises(FetchError, match=r"b-1\.jar is not the pinned one"):
        jars.fetch(cache=tmp_path)
    assert jars.installed_jars(tmp_path) is None
    assert not list(tmp_path.glob("fetching-*"))


@pytest.mark.usefixtures("two_jars")
def test_a_fetch_without_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> Path:
        raise requests.ConnectionError("no route to host")

    monkeypatch.setattr(jars, "download", unreachable)
    with pytest.raises(FetchError) as caught:
        jars.fetch(cache=tmp_path)
    text = str(caught.value)
    assert "no route to host" in text
    assert "HTTPS_PROXY" in text
    assert jars.REPOSITORY_SETTING in text


@pytest.mark.usefixtures("two_jars")
def test_a_second_fetch_waits_for_the_first_and_says_so(tmp_path: Path) -> None:
    waits = threading.Event()

    def progress(status: jars.FetchStatus) -> None:
        if status.waiting:
            waits.set()

    with (tmp_path / "fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=jars.fetch, args=(progress, tmp_path))
        second.start()
        assert waits.wait(10)
        assert jars.installed_jars(tmp_path) is None
    second.join(10)
    assert jars.installed_jars(tmp_path) is not None


def test_kafkas_log_directory_is_formatted_once(tmp_path: Path) -> None:
    kafka.write_meta_properties(tmp_path)
    first = (tmp_path / "meta.properties").read_text()
    kafka.write_meta_properties(tmp_path)
    assert (tmp_path / "meta.properties").read_text() == first
    assert len(kafka.new_uuid()) == 22


def test_postgres_programs_are_found_without_importing_their_package() -> None:
    assert (binaries() / "postgres").is_file()
    assert (binaries() / "initdb").is_file()


def test_a_directory_closed_to_others_is_seen_as_closed(tmp_path: Path) -> None:
    stranger = os.getuid() + 1
    tmp_path.chmod(0o700)
    assert not open_to(tmp_path, stranger, os.getgid() + 1)
    assert open_to(tmp_path, os.getuid(), os.getgid())
    tmp_path.chmod(0o701)
    assert open_to(tmp_path, stranger, os.getgid() + 1)


def test_an_unknown_or_missing_mqtt_broker_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "mosquitto_path", lambda: None)
    monkeypatch.delenv(mqtt.BROKER_SETTING, raising=False)
    assert mqtt.choose_broker() is mqtt.Broker.AMQTT
    monkeypatch.setenv(mqtt.BROKER_SETTING, "mosquitto")
    with pytest.raises(SettingError, match="which is not installed"):
        mqtt.choose_broker()
    monkeypatch.setenv(mqtt.BROKER_SETTING, "rabbit")
    with pytest.raises(SettingError, match="must be mosquitto or amqtt"):
        mqtt.choose_broker()


async def test_a_session_is_there_although_its_last_connection_ended_while_this_one_waited() -> (
    None
):
    session = Session()
    session.client_id = "keeper"
    session.transitions.connect()
    session.transitions.disconnect()
    plugins: Any = None
    connection = Handler(plugins)
    connection.attach(session, BufferReader(b""), BufferWriter())
    assert session.transitions.is_connected()


def test_a_directory_has_one_stack_at_a_time(tmp_path: Path) -> None:
    first, second = DirectoryLock(tmp_path), DirectoryLock(tmp_path)
    first.acquire()
    with pytest.raises(DirectoryInUseError, match=rf"another stack \(pid {os.getpid()}\) runs in"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()


def test_services_are_told_everything_by_their_environment(tmp_path: Path) -> None:
    at = Addresses(tmp_path, Ports(), "postgresql://somewhere")
    topics, *services = service_specs(at)
    assert topics.kind is Kind.ONE_SHOT
    by_name = {spec.name: spec.env for spec in services}
    assert set(by_name) == {"ingest", "metering", "vending", "control", "reporting"}
    for name, env in by_name.items():
        prefix = f"WATTVEND_{name.upper()}_"
        assert all(key.startswith(prefix) for key in env)
        assert env[prefix + "KAFKA_BOOTSTRAP"] == "127.0.0.1:29092"
        assert env[prefix + "INSTANCE"] == f"{name}-0"
    http_ports = [env[f"WATTVEND_{name.upper()}_HTTP_PORT"] for name, env in by_name.items()]
    assert sorted(http_ports) == [str(port) for port in range(27101, 27106)]
    assert by_name["reporting"]["WATTVEND_REPORTING_POSTGRES_DSN"] == "postgresql://somewhere"
    assert fleet_spec(at, tmp_path / "f.yaml").env["WATTVEND_FLEET_HTTP_PORT"] == "27110"


def test_the_state_file_reads_back_and_a_dead_supervisor_is_not_running(tmp_path: Path) -> None:
    me = ProcessIdentity.of(os.getpid())
    assert me is not None
    part = PartStatus("kafka", State.READY, 1, 0, "127.0.0.1:1", "")
    state = StackState(me, Phase.READY, Ports(), (part,))
    state.write(tmp_path)
    assert StackState.read(tmp_path) == state
    assert state.running
    gone = ProcessIdentity(me.pid, me.start_ticks - 1, me.boot_id)
    assert not StackState(gone, Phase.READY, Ports()).running
    (tmp_path / "stack.json").write_text("{half")
    assert StackState.read(tmp_path) is None
