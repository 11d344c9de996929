"""An image has what its process needs, and nothing else; nothing that its file names is missing.

Method: the Dockerfile is read (`images.py`), the files that it copies are put into a directory of
their own, and processes run there that see neither the checkout nor anything but site-packages.
"""

import re
import subprocess
import sys
import sysconfig
from importlib.metadata import packages_distributions
from pathlib import Path, PurePosixPath

import pytest

from tests.deploy.images import ROOT, SERVICES, Image, context, images, unpack
from tools.stack.ports import Ports

TARGETS = (*SERVICES, "tools")
SITE_PACKAGES = sysconfig.get_path("purelib")
IMPORT_WITHOUT = """
import importlib, sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in without:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

without, wanted = (argument.split(",") for argument in sys.argv[1:])
sys.meta_path.insert(0, NotInstalled())
for name in wanted:
    importlib.import_module(name)
"""
MODULES = {
    **{name: [f"services.{name}.main", "services.common.runtime.topics"] for name in SERVICES},
    "tools": ["tools.cli.main", "tools.fleet.main", "tools.mall"],
}
"""Target → what runs there."""


def environment(image: Image, root: Path) -> dict[str, str]:
    """Return the image's environment, with its paths below `root` and this Python's packages."""
    paths = image.environment["PYTHONPATH"].split(":")
    below = [str(root / PurePosixPath(path).relative_to("/")) for path in paths]
    return {**image.environment, "PYTHONPATH": ":".join([*below, SITE_PACKAGES])}


def run(image: Image, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the image's files; -S: no site, so the checkout is not on its path."""
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=root / image.workdir.relative_to("/"),
        env=environment(image, root),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module", params=TARGETS)
def unpacked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Image, Path]:
    image = images()[request.param]
    root = tmp_path_factory.mktemp(image.name)
    unpack(image, root)
    return image, root


def test_there_is_an_image_for_each_service_and_one_for_the_tools() -> None:
    roots = {image.parent for image in images().values()}
    leaves = images().keys() - roots
    assert leaves - {"packages"} == set(TARGETS)
    for image in images().values():
        assert set(image.from_stages) <= images().keys()


@pytest.mark.parametrize("name", TARGETS)
def test_an_image_runs_its_own_module_on_its_own_ports_as_nobody_special(name: str) -> None:
    image = images()[name]
    module = "tools.cli" if name == "tools" else f"services.{name}"
    assert image.entrypoint == ("python", "-m", module)
    uid, gid = image.user.split(":")
    assert int(uid) >= 10_000
    assert int(gid) >= 10_000
    assert image.stop_signal == "SIGTERM"
    ports = dict(Ports().items())
    kinds = (f"{name}_http", f"{name}_grpc")
    assert image.ports == {ports[kind] for kind in kinds if kind in ports}


def test_every_file_that_is_copied_exists_and_is_sent_to_docker() -> None:
    for image in images().values():
        for source, _ in image.copies:
            assert any(path == source or path.startswith(f"{source}/") for path in context()), (
                f"{image.name} copies {source}, which is not there or ignored"
            )


def test_nothing_is_sent_to_docker_that_no_image_holds() -> None:
    sources = {source for image in images().values() for source, _ in image.copies}
    sent = {path.split("/")[0] for path in context()} - {".dockerignore"}
    assert sent == {source.split("/")[0] for source in sources}
    assert not [path for path in context() if "__pycache__" in path]


def test_no_service_is_in_the_image_of_another(unpacked: tuple[Image, Path]) -> None:
    image, root = unpacked
    held = {path.name for path in (root / "app/services").iterdir()} - {"__init__.py", "common"}
    assert held == ({image.name} - {"tools"})


def test_its_files_and_the_locked_packages_are_all_that_an_image_needs(
    unpacked: tuple[Image, Path], not_locked: set[str]
) -> None:
    image, root = unpacked
    names = ",".join(sorted(not_locked)), ",".join(MODULES[image.name])
    done = run(image, root, "-c", IMPORT_WITHOUT, *names)
    assert done.returncode == 0, done.stderr


def test_a_package_that_is_not_locked_would_be_missed(tmp_path: Path) -> None:
    image = images()["metering"]
    unpack(image, tmp_path)
    done = run(image, tmp_path, "-c", IMPORT_WITHOUT, "numpy", "services.metering.main")
    assert done.returncode == 1
    assert "numpy is not installed here" in done.stderr


@pytest.fixture(scope="module")
def not_locked() -> set[str]:
    """Return the top-level modules of this environment that no image has."""
    lock = (ROOT / "requirements" / "run.lock").read_text("utf-8")
    locked = {normal(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)}
    return {
        module
        for module, owners in packages_distributions().items()
        if not locked & {normal(owner) for owner in owners} and module.isidentifier()
    }


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_tools_image_is_the_command_line_and_writes_the_site_of_the_virtual_meters(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image, root = images()["tools"], tmp_path_factory.mktemp("tools")
    unpack(image, root)
    helped = run(image, root, *image.entrypoint[1:], "--help")
    assert helped.returncode == 0, helped.stderr
    assert "site" in helped.stdout
    written = run(image, root, "-m", "tools.mall", str(tmp_path))
    assert written.returncode == 0, written.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.yaml", "site.yaml"]
