"""deploy/compose.yaml is valid and names nothing that does not exist.

Method: the file is validated against the Compose Specification's own schema and then read: each
service's environment is handed to the service's settings, each path, port, target, module, volume
and variable is looked up where it must be. Nothing of it is run here: test_docker.py does, where
Docker is.
"""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import jsonschema
import pytest
import typer.main
import yaml

from services.vending.adapters.keys import SigningKey
from tests.deploy.deployed import accepted
from tests.deploy.images import ROOT, SERVICES, has_module, images
from tests.integration.test_containers import MOSQUITTO_IMAGE, POSTGRES_IMAGE
from tools.cli.main import app as command_line
from tools.fleet.main import FleetSettings
from tools.stack.jars import LOCK_FILE
from tools.stack.kafka import SERVER_PROPERTIES
from tools.stack.mqtt import MOSQUITTO_CONF
from tools.stack.ports import Ports

DEPLOY = ROOT / "deploy"
PATH = DEPLOY / "compose.yaml"
SCHEMA = Path(__file__).parent / "schemas" / "compose-spec.json"
PAGE = ROOT / "docs" / "operations" / "compose.md"
GRAFANA = DEPLOY / "grafana"
REQUIRED = re.compile(r"\$\{([A-Z_]+):\?[^}]+\}")
ANY_VARIABLE = re.compile(r"(?<!\$)\$(?:\{[^}]*\}|[A-Za-z_]\w*)")
SECRET = "letters-and-digits"
TOOLS = {"certificates", "signing", "topics", "fleet", "cli"}
ONCE = {"certificates", "signing", "topics"}


@cache
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(PATH.read_text("utf-8"))
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def environment(name: str) -> dict[str, str]:
    """Return a service's environment, with a password in place of each required variable."""
    given = services()[name].get("environment", {})
    return {key: REQUIRED.sub(SECRET, value) for key, value in given.items()}


def mounts(name: str) -> dict[PurePosixPath, tuple[str, bool]]:
    """Return path in the container → (what is mounted there, whether it may only be read)."""
    found = {}
    for mount in services()[name].get("volumes", []):
        source, target, *options = mount.split(":")
        found[PurePosixPath(target)] = (source, "ro" in options)
    return found


# --- the file -----------------------------------------------------------------------------------


def test_it_is_valid_by_the_compose_specification() -> None:
    schema = json.loads(SCHEMA.read_text("utf-8"))
    jsonschema.Draft7Validator(schema).validate(compose())
    wrong = {"services": {"kafka": {"image": "k", "health_check": {}}}}
    with pytest.raises(jsonschema.ValidationError, match="health_check"):
        jsonschema.Draft7Validator(schema).validate(wrong)


def test_its_parts_are_the_stack_and_what_shows_it() -> None:
    infrastructure = {"kafka", "postgres", "mosquitto", "prometheus", "grafana"}
    assert services().keys() == {*SERVICES, *TOOLS, *infrastructure}
    profiles = {name: each["profiles"] for name, each in services().items() if "profiles" in each}
    assert profiles == {"fleet": ["fleet"], "cli": ["tools"]}


def test_every_port_is_published_on_this_machine_only_and_once() -> None:
    published = [port for each in services().values() for port in each.get("ports", [])]
    assert published
    ports = [re.fullmatch(r"127\.0\.0\.1:(\d+):(\d+)", port) for port in published]
    assert all(ports)
    outside = [port[1] for port in ports if port]
    assert len(set(outside)) == len(outside)


def test_no_password_has_a_default() -> None:
    text = PATH.read_text("utf-8")
    assert ANY_VARIABLE.findall(text) == [found[0] for found in REQUIRED.finditer(text)]
    for name, each in services().items():
        for key, value in each.get("environment", {}).items():
            if re.search("PASSWORD|DSN|SECRET|TOKEN", key):
                assert REQUIRED.search(value), f"{name}: {key} has a value in the file"


def test_every_volume_is_declared_and_used_and_every_file_is_there() -> None:
    named, paths = set(), set()
    for name in services():
        for source, is_read_only in mounts(name).values():
            if source.startswith("."):
                paths.add(source)
                assert is_read_only, f"{name} could write {source}"
            else:
                named.add(source)
    assert named == compose()["volumes"].keys()
    for path in paths:
        assert (DEPLOY / path).exists(), path


def test_what_a_part_waits_for_exists_and_ends_or_is_checked() -> None:
    for name, each in services().items():
        for other, how in each.get("depends_on", {}).items():
            assert other in services(), f"{name} waits for {other}"
            ends = how["condition"] == "service_completed_successfully"
            assert ends == (other in ONCE)
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services()[other]
        if shared := each.get("network_mode"):
            assert shared.removeprefix("service:") in services()


# --- the services -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SERVICES, *sorted(TOOLS)])
def test_a_part_of_ours_is_built_from_its_target_and_starts_what_is_in_it(name: str) -> None:
    part = services()[name]
    target = name if name in SERVICES else "tools"
    assert part["image"] == f"wattvend-{target}"
    assert (DEPLOY / part["build"]["context"]).resolve() == ROOT
    assert (ROOT / part["build"]["dockerfile"]) == DEPLOY / "Dockerfile"
    assert part["build"]["target"] == target
    assert part["platform"] == "linux/amd64"
    assert part["read_only"]
    assert part["cap_drop"] == ["ALL"]
    for module in re.findall(r"python -m ([a-z_.]+)", " ".join(part.get("entrypoint", []))):
        assert has_module(images()[target], module), module


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_accepts_the_settings_that_its_container_has(
    service: str, tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = environment(service)
    settings = accepted(service, given, tls, monkeypatch)
    assert settings.has_tls
    assert set(settings.listeners().values()) == {"0.0.0.0"}
    usual = dict(Ports().items())
    assert settings.http_port == usual[f"{service}_http"]
    assert settings.kafka_bootstrap == "kafka:9092"
    grpc_port = getattr(settings, "grpc_port", None)
    assert grpc_port == usual.get(f"{service}_grpc")
    ports = [f"127.0.0.1:{grpc_port}:{grpc_port}"] if grpc_port else []
    assert services()[service].get("ports", []) == ports
    held = mounts(service)
    for name, value in settings:
        if isinstance(value, Path):
            path = PurePosixPath(given[settings.env_name(name)])
            source, is_read_only = held[path.parent]
            assert (source in {"signing", "tls"}) == is_read_only == (name != "store_path")
    stop_s = int(services()[service]["stop_grace_period"].removesuffix("s"))
    assert stop_s >= settings.stop_timeout_s + 5


def test_the_key_that_signs_is_made_once_and_vending_alone_reads_it(tmp_path: Path) -> None:
    shell, flags, script = services()["signing"]["entrypoint"]
    script = script.replace("/signing", str(tmp_path))
    made = set()
    for _ in range(2):
        subprocess.run([shell, flags, script], check=True)
        made.add(SigningKey(tmp_path / "signing.pem").key_id)
    assert len(made) == 1
    assert (tmp_path / "signing.pem").stat().st_mode & 0o077 == 0
    holders = {
        name for name in services() for source, _ in mounts(name).values() if source == "signing"
    }
    assert holders == {"signing", "vending"}
    path = environment("vending")["WATTVEND_VENDING_SIGNING_KEY"]
    assert mounts("vending")[PurePosixPath(path).parent] == ("signing", True)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_is_asked_for_its_health_where_it_listens(service: str) -> None:
    cmd, python, script, url, authority = services()[service]["healthcheck"]["test"]
    port = environment(service)[f"WATTVEND_{service.upper()}_HTTP_PORT"]
    assert (cmd, python, url) == ("CMD", "python", f"https://localhost:{port}/health/ready")
    held = mounts(service)
    assert held[PurePosixPath(script)] == ("./compose/ready.py", True)
    assert PurePosixPath(authority).parent in held


def test_hosts_that_settings_name_are_parts_of_the_stack() -> None:
    for name in (*SERVICES, "fleet", "cli"):
        for key, value in environment(name).items():
            if key.endswith(("_BOOTSTRAP", "_MQTT_HOST", "_ADDR")):
                assert value.partition(":")[0] in services(), f"{name}: {key}={value}"
            if key.endswith("_DSN"):
                assert "@postgres:5432/wattvend" in value
    usual = dict(Ports().items())
    for service in ("vending", "reporting"):
        address = environment("cli")[f"WATTVEND_{service.upper()}_ADDR"]
        assert address == f"{service}:{usual[f'{service}_grpc']}"


def test_the_virtual_meters_and_the_command_line_know_what_they_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = environment("fleet")
    assert given.keys() <= {f"WATTVEND_FLEET_{name.upper()}" for name in FleetSettings.model_fields}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert FleetSettings().mqtt_host == "mosquitto"
    assert services()["fleet"]["network_mode"] == "service:ingest"
    options = typer.main.get_command(command_line).params
    known = {option.envvar for option in options if option.envvar}
    assert environment("cli").keys() <= known
    authority = PurePosixPath(environment("cli")["WATTVEND_CA"])
    assert authority.parent in mounts("cli")


# --- what others made -----------------------------------------------------------------------------


def test_kafka_is_told_what_the_local_stack_tells_it() -> None:
    local = dict(
        line.split("=", 1) for line in SERVER_PROPERTIES.splitlines() if line[:1].isalpha()
    )
    given = {
        name.removeprefix("KAFKA_").replace("_", ".").lower(): value
        for name, value in environment("kafka").items()
    }
    assert given.keys() <= local.keys()
    same = {name: value for name, value in given.items() if "{" not in local[name]}
    assert same == {name: local[name] for name in same}
    assert given["auto.create.topics.enable"] == "false"
    assert given["advertised.listeners"] == "PLAINTEXT://kafka:9092"
    assert PurePosixPath(given["log.dirs"]) in mounts("kafka")


def test_images_are_those_that_the_local_stack_and_the_container_tests_use() -> None:
    assert services()["postgres"]["image"] == POSTGRES_IMAGE
    assert services()["mosquitto"]["image"] == MOSQUITTO_IMAGE
    (version,) = re.findall(r"kafka-server:([\d.]+) ", LOCK_FILE.read_text("utf-8"))
    assert services()["kafka"]["image"] == f"apache/kafka:{version}"
    for name, each in services().items():
        if "build" not in each:
            assert re.fullmatch(r"[a-z/-]+:v?[\d.]+(-alpine)?", each["image"]), name


def test_mosquitto_is_configured_as_in_the_local_stack() -> None:
    text = (DEPLOY / "compose" / "mosquitto.conf").read_text("utf-8")
    assert text == MOSQUITTO_CONF.format(port=1883, host="0.0.0.0", data="/mosquitto/data")
    assert PurePosixPath("/mosquitto/data") in mounts("mosquitto")
    for service in ("ingest", "control"):
        assert environment(service)[f"WATTVEND_{service.upper()}_MQTT_PORT"] == "1883"


def test_postgres_makes_the_roles_with_the_passwords_that_are_used() -> None:
    scripts = [path for path in mounts("postgres") if "initdb.d" in str(path)]
    assert [path.name for path in scripts] == ["1-reporting.sql", "2-grafana.sql"]
    for path in scripts:
        text = (DEPLOY / mounts("postgres")[path][0]).read_text("utf-8")
        (wanted,) = re.findall(r"\\getenv password (\w+)", text)
        raw = services()["postgres"]["environment"][wanted]
        assert REQUIRED.findall(raw) == [wanted]
    dsn = services()["reporting"]["environment"]["WATTVEND_REPORTING_POSTGRES_DSN"]
    assert REQUIRED.findall(dsn) == ["REPORTING_POSTGRES_PASSWORD"]
    assert dsn.startswith("postgresql://reporting:")
    assert environment("postgres")["POSTGRES_DB"] == "wattvend"


def test_prometheus_scrapes_the_metrics_of_every_service() -> None:
    config = yaml.safe_load((DEPLOY / "compose" / "prometheus.yml").read_text("utf-8"))
    (job,) = config["scrape_configs"]
    (static,) = job["static_configs"]
    assert sorted(static["targets"]) == sorted(
        f"{service}:{environment(service)[f'WATTVEND_{service.upper()}_HTTP_PORT']}"
        for service in SERVICES
    )
    assert (job["scheme"], job["metrics_path"]) == ("https", "/metrics")
    assert PurePosixPath(job["tls_config"]["ca_file"]).parent in mounts("prometheus")


def test_promtool_accepts_the_configuration_of_prometheus() -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; the configuration is read instead")
    done = subprocess.run(
        ["promtool", "check", "config", "--syntax-only", DEPLOY / "compose" / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_its_data_sources_and_the_dashboard() -> None:
    held = {str(path): source for path, (source, _) in mounts("grafana").items()}
    assert held["/etc/grafana/provisioning"] == "./grafana/provisioning"
    (provider,) = provisioned("dashboards")["providers"]
    assert held[provider["options"]["path"]] == "./grafana/dashboards"
    reporting, metrics = provisioned("datasources")["datasources"]
    assert (reporting["url"], reporting["user"]) == ("postgres:5432", "grafana")
    assert reporting["jsonData"]["database"] == environment("postgres")["POSTGRES_DB"]
    assert metrics["url"] == "http://prometheus:9090"
    (board,) = (GRAFANA / "dashboards").glob("*.json")
    used = re.findall(r'"type": "([a-z-]+)",\s+"uid": "([a-z-]+)"', board.read_text("utf-8"))
    assert set(used) == {(reporting["type"], reporting["uid"])}


def test_grafana_is_given_every_variable_that_its_files_use() -> None:
    used = {
        name
        for path in (GRAFANA / "provisioning").rglob("*.yaml")
        for name in re.findall(r"\$\{?([A-Za-z_]+)", path.read_text("utf-8"))
    }
    assert used == {"GRAFANA_POSTGRES_PASSWORD"}
    assert used <= environment("grafana").keys()


def provisioned(what: str) -> dict[str, Any]:
    (path,) = (GRAFANA / "provisioning" / what).glob("*.yaml")
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found


# --- the page -------------------------------------------------------------------------------------


def test_the_page_makes_every_password_that_the_file_wants(tmp_path: Path) -> None:
    """Its first command is run as it stands there, in a directory of its own."""
    (tmp_path / "deploy").mkdir()
    first = blocks()[0]
    subprocess.run(["sh", "-euc", first], cwd=tmp_path, check=True, timeout=30)
    path = tmp_path / "deploy" / ".env"
    assert path.stat().st_mode & 0o077 == 0, "nobody else may read it"
    made = dict(line.split("=", 1) for line in path.read_text("utf-8").splitlines())
    assert made.keys() == set(REQUIRED.findall(PATH.read_text("utf-8")))
    assert len(set(made.values())) == len(made)
    assert all(re.fullmatch("[0-9a-f]{32,}", value) for value in made.values())
    assert "deploy/.env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_the_commands_of_the_page_name_parts_that_there_are() -> None:
    named = set()
    for command in (line for block in blocks()[1:] for line in block.splitlines()):
        words = command.partition("#")[0].split()
        assert words[:4] == ["docker", "compose", "-f", "deploy/compose.yaml"], command
        named |= set(words) & {"run", "up", "down", "ps", "logs"}
        if "run" in words:
            assert words[words.index("--rm") + 1] == "cli"
        if "--profile" in words:
            assert words[words.index("--profile") + 1] == "fleet"
    assert named == {"run", "up", "down", "ps", "logs"}


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
