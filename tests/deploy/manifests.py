"""Builds deploy/k8s where there is no kustomize: the few fields that its files use.

Where kubectl is, a test holds this against the real one.
"""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.images import ROOT

K8S = ROOT / "deploy" / "k8s"
BASE = K8S / "base"
EXAMPLE = K8S / "overlays" / "example"
IMPORT_LEDGER = K8S / "overlays" / "example-import-ledger"
WITHOUT_NAMESPACE = {"Namespace"}

Manifest = dict[str, Any]
Key = tuple[str, str]
"""Kind and name."""


def key_of(manifest: Manifest) -> Key:
    return manifest["kind"], manifest["metadata"]["name"]


def built(directory: Path) -> dict[Key, Manifest]:
    """Return what `kubectl kustomize <directory>` prints, by kind and name.

    Raises ValueError for a field of kustomization.yaml that is not known here.
    """
    steps = yaml.safe_load((directory / "kustomization.yaml").read_text("utf-8"))
    found: dict[Key, Manifest] = {}
    for name in steps.pop("resources"):
        path = directory / name
        some = built(path) if path.is_dir() else {key_of(each): each for each in documents(path)}
        if again := found.keys() & some.keys():
            raise ValueError(f"{path} has {again} once more")
        found |= some
    for patch in steps.pop("patches", []):
        for change in documents(directory / patch["path"]):
            found[key_of(change)] = merged(found[key_of(change)], change)
    rename(found, {image["name"]: image for image in steps.pop("images", [])})
    if namespace := steps.pop("namespace", None):
        for manifest in found.values():
            if manifest["kind"] not in WITHOUT_NAMESPACE:
                manifest["metadata"]["namespace"] = namespace
    if unknown := steps.keys() - {"apiVersion", "kind"}:
        raise ValueError(f"{directory}: {unknown}")
    return found


def rename(found: dict[Key, Manifest], images: dict[str, dict[str, str]]) -> None:
    """Put the images' names of an installation in place of those of the base."""
    for manifest in found.values():
        for container in containers(manifest):
            if image := images.get(container["image"]):
                container["image"] = f"{image['newName']}:{image['newTag']}"


def documents(path: Path) -> list[Manifest]:
    return copy.deepcopy(parsed(path))


@cache
def parsed(path: Path) -> list[Manifest]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def merged(old: Any, new: Any) -> Any:
    """Return a strategic merge of maps. Lists have merge keys, which nothing here needs."""
    if isinstance(new, list):
        raise TypeError("a patch of a list is not known here")
    if not isinstance(new, dict):
        return new
    done = copy.copy(old)
    for name, value in new.items():
        done[name] = merged(old[name], value) if name in old else value
    return done


def pod_of(manifest: Manifest) -> Manifest | None:
    """Return the pod's spec of a workload, None for anything else."""
    template: Manifest = manifest.get("spec", {}).get("template", {})
    return template.get("spec")


def containers(manifest: Manifest) -> list[Manifest]:
    pod = pod_of(manifest)
    return [] if pod is None else [*pod.get("initContainers", []), *pod["containers"]]


Secrets = dict[str, dict[str, str]]


def environment(
    pod_name: str, container: Manifest, around: dict[Key, Manifest], secrets: Secrets
) -> dict[str, str]:
    """Return a container's environment. Raises KeyError for a reference that leads nowhere."""
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        found |= around["ConfigMap", source["configMapRef"]["name"]]["data"]
    for variable in container.get("env", []):
        origin = variable.get("valueFrom", {})
        if "value" in variable:
            value = variable["value"]
        elif "fieldRef" in origin:
            value = {"metadata.name": pod_name}[origin["fieldRef"]["fieldPath"]]
        elif "configMapKeyRef" in origin:
            ref = origin["configMapKeyRef"]
            value = around["ConfigMap", ref["name"]]["data"][ref["key"]]
        else:
            ref = origin["secretKeyRef"]
            value = secrets[ref["name"]][ref["key"]]
        found[variable["name"]] = value
    return found
