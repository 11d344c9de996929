"""deploy/k8s builds, is valid, and names nothing that does not exist.

Method: base and overlay are built (`manifests.py`; by kubectl too, where it is) and each manifest
is validated strictly against Kubernetes' own schemas. What a pod would be given is then handed to
what it is for: its environment to the service's settings, its command to the image.
"""

import copy
import re
import shlex
import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest
import yaml
from kubernetes_validate.utils import ValidationError, latest_version, validate

from services.common.runtime import topics
from services.common.runtime.settings import ServiceSettings
from services.vending import commands as vending_commands
from tests.deploy import manifests
from tests.deploy.deployed import accepted
from tests.deploy.images import ROOT, SERVICES, has_module, images
from tests.deploy.manifests import (
    BASE,
    EXAMPLE,
    IMPORT_LEDGER,
    Manifest,
    Secrets,
    built,
    containers,
    pod_of,
)
from tools.stack.ports import Ports

PAGE = ROOT / "docs" / "operations" / "kubernetes.md"
VERSIONS = ("1.30", latest_version())
"""The oldest Kubernetes that the page promises, and the newest that the validator knows."""
SECRETS: Secrets = {
    "wattvend-reporting": {"postgres-dsn": "postgresql://reporting:secret@postgres:5432/wattvend"},
    "wattvend-mqtt": {"username": "wattvend", "password": "secret"},
    "wattvend-signing": {"signing.pem": "a private key"},
}
TLS_SECRET = "wattvend-tls"
TLS_KEYS = {"tls.crt", "tls.key", "ca.crt"}
"""As cert-manager names them."""
CLIENT = {"wattvend-client": "true"}
STOP_MARGIN_S = 5


@pytest.fixture(params=[BASE, EXAMPLE], ids=["base", "example"])
def everything(request: pytest.FixtureRequest) -> dict[manifests.Key, Manifest]:
    return built(request.param)


def stateful(service: str, everything: dict[manifests.Key, Manifest]) -> Manifest:
    return everything["StatefulSet", service]


def container_of(service: str, everything: dict[manifests.Key, Manifest]) -> Manifest:
    (container,) = containers(stateful(service, everything))
    return container


def settings_of(
    service: str,
    everything: dict[manifests.Key, Manifest],
    tls: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ServiceSettings:
    container = container_of(service, everything)
    environment = manifests.environment(f"{service}-0", container, everything, SECRETS)
    return accepted(service, environment, tls, monkeypatch)


# --- it builds, and is valid --------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid_for_kubernetes(
    everything: dict[manifests.Key, Manifest], version: str
) -> None:
    for manifest in everything.values():
        validate(manifest, version, strict=True)


def test_the_validator_is_strict() -> None:
    wrong = copy.deepcopy(built(BASE)["StatefulSet", "metering"])
    wrong["spec"]["template"]["spec"]["containers"][0]["readyProbe"] = {}
    with pytest.raises(ValidationError, match="readyProbe"):
        validate(wrong, VERSIONS[0], strict=True)


@pytest.mark.parametrize("directory", [BASE, EXAMPLE], ids=["base", "example"])
def test_kubectl_builds_the_same(directory: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; what it would build is built by manifests.py")
    done = subprocess.run(
        ["kubectl", "kustomize", directory], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    real = {manifests.key_of(each): each for each in yaml.safe_load_all(done.stdout)}
    assert real == built(directory)


def test_each_service_has_a_workload_a_service_and_its_settings() -> None:
    kinds = {"StatefulSet", "Service", "ConfigMap"}
    named = {kind: {name for k, name in built(BASE) if k == kind} for kind in kinds}
    assert all(names == set(SERVICES) for names in named.values())


# --- what the pods are given --------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_accepts_the_settings_that_its_pod_has(
    service: str,
    everything: dict[manifests.Key, Manifest],
    tls: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(service, everything, tls, monkeypatch)
    assert settings.has_tls
    assert settings.instance == f"{service}-0", "the pod's own name: no two processes with one"
    pod = pod_of(stateful(service, everything)) or {}
    assert pod["terminationGracePeriodSeconds"] >= settings.stop_timeout_s + STOP_MARGIN_S


@pytest.mark.parametrize("service", SERVICES)
def test_ports_are_those_the_service_listens_on(
    service: str,
    everything: dict[manifests.Key, Manifest],
    tls: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_of(service, everything, tls, monkeypatch)
    listens = {"http": settings.http_port}
    if (grpc_port := getattr(settings, "grpc_port", None)) is not None:
        listens["grpc"] = grpc_port
    container = container_of(service, everything)
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == listens
    ports = everything["Service", service]["spec"]["ports"]
    assert {port["name"]: port["port"] for port in ports} == listens
    assert all(port["targetPort"] == port["name"] for port in ports)
    assert set(listens.values()) == images()[service].ports
    usual = dict(Ports().items())
    assert listens == {kind: usual[f"{service}_{kind}"] for kind in listens}
    assert set(settings.listeners().values()) == {"0.0.0.0"}


@pytest.mark.parametrize("service", SERVICES)
def test_every_file_that_a_setting_names_lies_on_a_volume(
    service: str,
    everything: dict[manifests.Key, Manifest],
    tls: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    container = container_of(service, everything)
    settings = settings_of(service, everything, tls, monkeypatch)
    paths = {name for name, value in settings if isinstance(value, Path)}
    environment = manifests.environment(f"{service}-0", container, everything, SECRETS)
    mounts = {PurePosixPath(mount["mountPath"]): mount for mount in container["volumeMounts"]}
    for name in paths:
        path = PurePosixPath(environment[type(settings).env_name(name)])
        assert path.parent in mounts, f"{service}: {name} is {path}, which is on no volume"
        assert mounts[path.parent].get("readOnly", False) == (name != "store_path")
    assert paths == {"tls_certificate", "tls_key"} | (
        {"store_path", "signing_key", "reporting_ca"} if service == "vending" else set()
    )


def test_the_book_is_on_a_volume_that_outlives_its_pod_and_one_process_has_it() -> None:
    vending = stateful("vending", built(BASE))["spec"]
    (claim,) = vending["volumeClaimTemplates"]
    mounts = vending["template"]["spec"]["containers"][0]["volumeMounts"]
    (mount,) = [mount for mount in mounts if mount["mountPath"] == "/data"]
    assert mount["name"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert set(vending["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    assert vending["replicas"] == 1


def test_volumes_and_their_mounts_belong_together(
    everything: dict[manifests.Key, Manifest],
) -> None:
    for manifest in everything.values():
        if (pod := pod_of(manifest)) is None:
            continue
        claims = manifest["spec"].get("volumeClaimTemplates", [])
        there = {volume["name"] for volume in pod.get("volumes", [])}
        there |= {claim["metadata"]["name"] for claim in claims}
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        assert there == mounted


# --- how they run ---------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_starts_what_its_image_has_and_is_asked_how_it_is(
    service: str, everything: dict[manifests.Key, Manifest]
) -> None:
    """The paths themselves are asked of a running service in test_life.py."""
    container = container_of(service, everything)
    assert "command" not in container, "the image's own entrypoint"
    assert target_of(container["image"]) == service
    ports = {port["name"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["port"] in ports
        assert asked["scheme"] == "HTTPS"
    assert container["livenessProbe"]["httpGet"]["path"] == "/health/live"
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/ready"


def target_of(image: str) -> str:
    """Return the Dockerfile's target that an image is of: base and overlay name it last."""
    return re.split(r"[-/]", image.partition(":")[0])[-1]


def test_the_topics_are_created_by_what_the_image_has(
    everything: dict[manifests.Key, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    (container,) = containers(everything["Job", "topics"])
    environment = manifests.environment("topics", container, everything, SECRETS)
    arguments = [
        re.sub(r"\$\((\w+)\)", lambda found: environment[found[1]], argument)
        for argument in container["args"]
    ]
    python, dash_m, module = container["command"]
    assert (python, dash_m) == ("python", "-m")
    assert has_module(images()[target_of(container["image"])], module)
    asked: list[tuple[str, int]] = []

    async def create(bootstrap: str, *, replication: int = 1) -> list[str]:
        asked.append((bootstrap, replication))
        return []

    async def check(bootstrap: str) -> None:
        asked.append((bootstrap, 0))

    monkeypatch.setattr(topics, "create", create)
    monkeypatch.setattr(topics, "check", check)
    monkeypatch.setattr("sys.argv", [module, *arguments])
    assert topics.main() == 0
    bootstrap = everything["ConfigMap", "metering"]["data"]["WATTVEND_METERING_KAFKA_BOOTSTRAP"]
    assert asked == [(bootstrap, 3), (bootstrap, 0)]


def test_a_job_brings_back_what_ledger_has_on_the_volume_and_with_the_settings_of_vending(
    tls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,), installed = built(IMPORT_LEDGER).values(), built(EXAMPLE)
    for version in VERSIONS:
        validate(job, version, strict=True)
    pod, vending = pod_of(job), pod_of(stateful("vending", installed))
    assert pod is not None
    assert vending is not None
    (container,), (serving,) = containers(job), containers(stateful("vending", installed))
    assert container["image"] == serving["image"]
    assert container["envFrom"] == serving["envFrom"]
    for same in ("volumeMounts", "securityContext", "resources"):
        assert container[same] == serving[same], same
    assert pod["securityContext"] == vending["securityContext"]
    (claimed,) = stateful("vending", installed)["spec"]["volumeClaimTemplates"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes.pop("book")["persistentVolumeClaim"]["claimName"]
    assert claim == f"{claimed['metadata']['name']}-vending-0"
    assert list(volumes.values()) == vending["volumes"]
    assert vending_commands.parsed(container["args"]).command == "import-ledger"
    environment = manifests.environment("import-ledger", container, installed, SECRETS)
    assert accepted("vending", environment, tls, monkeypatch)


def test_every_service_uses_one_kafka(everything: dict[manifests.Key, Manifest]) -> None:
    found = {
        everything["ConfigMap", service]["data"][f"WATTVEND_{service.upper()}_KAFKA_BOOTSTRAP"]
        for service in SERVICES
    }
    assert len(found) == 1


def test_every_pod_satisfies_the_restricted_standard_and_has_bounds(
    everything: dict[manifests.Key, Manifest],
) -> None:
    for manifest in everything.values():
        if (pod := pod_of(manifest)) is None:
            continue
        context = pod["securityContext"]
        assert context["runAsNonRoot"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["nodeSelector"] == {"kubernetes.io/arch": "amd64"}
        for container in pod["containers"]:
            user = images()[target_of(container["image"])].user
            assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            resources = container["resources"]
            assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}


# --- what refers to what --------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_selectors_find_the_pods_of_their_service(
    service: str, everything: dict[manifests.Key, Manifest]
) -> None:
    workload = stateful(service, everything)["spec"]
    labels = workload["template"]["metadata"]["labels"].items()
    assert workload["selector"]["matchLabels"].items() <= labels
    assert everything["Service", workload["serviceName"]]["spec"]["selector"].items() <= labels
    assert ("Service", service) in everything
    policy = everything["NetworkPolicy", "wattvend"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels
    for other in SERVICES:
        if other != service:
            selector = everything["Service", other]["spec"]["selector"].items()
            assert not selector <= labels


def test_only_workloads_with_more_than_one_pod_have_a_disruption_budget(
    everything: dict[manifests.Key, Manifest],
) -> None:
    many = {
        service for service in SERVICES if stateful(service, everything)["spec"]["replicas"] > 1
    }
    assert many == {"metering", "control"}
    assert {name for kind, name in everything if kind == "PodDisruptionBudget"} == many
    for name in many:
        labels = stateful(name, everything)["spec"]["template"]["metadata"]["labels"].items()
        budget = everything["PodDisruptionBudget", name]["spec"]
        assert budget["selector"]["matchLabels"].items() <= labels
        assert budget["maxUnavailable"] == 1


def test_the_network_policy_opens_ports_that_pods_have() -> None:
    rules = built(BASE)["NetworkPolicy", "wattvend"]["spec"]["ingress"]
    opened = {port["port"]: rule.get("from") for rule in rules for port in rule["ports"]}
    named = {
        port["name"] for service in SERVICES for port in container_of(service, built(BASE))["ports"]
    }
    assert opened.keys() == named
    assert opened["http"] is None
    assert opened["grpc"], "callers are not authenticated: not everyone reaches gRPC"


def test_vending_may_ask_reporting_where_it_is_by_a_name_of_its_certificate(
    everything: dict[manifests.Key, Manifest],
) -> None:
    said = everything["ConfigMap", "vending"]["data"]
    name, _, port = said["WATTVEND_VENDING_REPORTING"].partition(":")
    ports = everything["Service", name]["spec"]["ports"]
    assert port == str({each["name"]: each["port"] for each in ports}["grpc"])
    allowed = everything["NetworkPolicy", "wattvend"]["spec"]["ingress"][-1]["from"]
    assert allowed == [{"podSelector": {"matchLabels": CLIENT}}]
    template = stateful("vending", everything)["spec"]["template"]
    assert CLIENT.items() <= template["metadata"]["labels"].items()
    assert name in SERVICES, "deploy/certificates.sh makes one for these names"


def test_a_cluster_holds_no_secret_that_stands_in_these_files() -> None:
    assert not [kind for kind, _ in built(EXAMPLE) if kind == "Secret"]


def test_the_page_makes_every_secret_that_a_pod_needs_with_its_keys() -> None:
    wanted: dict[str, set[str]] = {}
    for manifest in built(BASE).values():
        for container in containers(manifest):
            for variable in container.get("env", []):
                if ref := variable.get("valueFrom", {}).get("secretKeyRef"):
                    wanted.setdefault(ref["name"], set()).add(ref["key"])
        for volume in (pod_of(manifest) or {}).get("volumes", []):
            if secret := volume.get("secret"):
                keys = {item["key"] for item in secret.get("items", [])} or TLS_KEYS
                wanted.setdefault(secret["secretName"], set()).update(keys)
    known = {name: set(keys) for name, keys in SECRETS.items()}
    assert wanted == known | {TLS_SECRET: TLS_KEYS}
    made: dict[str, set[str]] = {}
    for command in commands():
        words = shlex.split(command)
        if words[:1] == ["kubectl"] and "secret" in words:
            name, *options = words[words.index("generic") + 1 :]
            made[name] = {o.split("=")[0] for o in options if "=" in o}
    assert made == wanted


def commands() -> list[str]:
    text = PAGE.read_text("utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip()]


def test_the_commands_of_the_page_name_what_is_there() -> None:
    for command in commands():
        words = shlex.split(command, comments=True)
        for word in words:
            if word.startswith(("deploy/", "docs/")):
                assert (ROOT / word).exists(), command
        if words[:2] == ["docker", "build"]:
            target = words[words.index("--target") + 1]
            image = words[words.index("-t") + 1]
            assert target in SERVICES
            assert image == containers(built(EXAMPLE)["StatefulSet", target])[0]["image"]
    built_by_the_page = [c for c in commands() if c.startswith("docker build")]
    assert len(built_by_the_page) == len(SERVICES)


def test_kubectl_takes_the_commands_that_make_the_secrets(tmp_path: Path, tls: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed; the commands are read instead")
    (tls / "signing.pem").write_text("a private key")
    for command in commands():
        words = shlex.split(command, comments=True)
        if words[0] == "kubectl" and "create" in words:
            words = [word.replace("build/tls", str(tls)) for word in words]
            done = subprocess.run(
                [*words, "--dry-run=client", "--output=yaml"],
                cwd=tmp_path,
                env={"PATH": "/usr/bin:/bin:/usr/local/bin", "KUBECONFIG": "/dev/null"},
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            assert done.returncode == 0, done.stderr
            for manifest in yaml.safe_load_all(done.stdout):
                validate(manifest, VERSIONS[-1])
