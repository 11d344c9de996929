"""What deploy/Dockerfile puts into each image, read from the file: for tests without Docker."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath

from docker.utils.build import exclude_paths
from dockerfile_parse.parser import DockerfileParser

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
IGNORED = ROOT / ".dockerignore"
SERVICES = ("ingest", "metering", "vending", "control", "reporting")
SLASH = PurePosixPath("/")


@dataclass(frozen=True)
class Image:
    """A stage of the Dockerfile. `copies`: path in the checkout → absolute path in the image."""

    name: str
    parent: str
    workdir: PurePosixPath = SLASH
    copies: tuple[tuple[str, PurePosixPath], ...] = ()
    from_stages: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    user: str = "root"
    stop_signal: str = ""
    ports: frozenset[int] = frozenset()
    entrypoint: tuple[str, ...] = ()


@cache
def images() -> dict[str, Image]:
    """Return every stage by its name. Raises ValueError for what this reader does not know."""
    stages: dict[str, Image] = {}
    now: Image | None = None
    with DOCKERFILE.open("rb+") as file:
        structure = DockerfileParser(fileobj=file).structure
    for line in structure:
        instruction, value = line["instruction"], line["value"]
        if instruction == "FROM":
            parent, name = re.fullmatch(r"(\S+) AS (\S+)", value).groups()  # type: ignore[union-attr]
            base = stages.get(parent, Image("", ""))
            now = stages[name] = replace(base, name=name, parent=parent)
        elif now is not None:
            now = stages[now.name] = after(now, instruction, value)
        elif instruction not in {"COMMENT", "ARG"}:
            raise ValueError(f"{instruction} before FROM")
    return stages


def after(image: Image, instruction: str, value: str) -> Image:
    """Return the stage as it is after an instruction."""
    match instruction:
        case "COPY":
            return copied(image, value)
        case "ENV":
            pairs = (pair.split("=", 1) for pair in shlex.split(value))
            return replace(image, environment=image.environment | dict(pairs))
        case "WORKDIR":
            return replace(image, workdir=image.workdir / value)
        case "USER":
            return replace(image, user=value)
        case "STOPSIGNAL":
            return replace(image, stop_signal=value)
        case "EXPOSE":
            return replace(image, ports=image.ports | {int(port) for port in value.split()})
        case "ENTRYPOINT":
            return replace(image, entrypoint=tuple(json.loads(value)))
        case "RUN" | "COMMENT":
            return image
    raise ValueError(f"{instruction} is not known here")


def copied(image: Image, value: str) -> Image:
    """Return the stage after a COPY of one source."""
    *options, source, target = value.split()
    if options:
        (option,) = options
        return replace(image, from_stages=(*image.from_stages, option.removeprefix("--from=")))
    return replace(image, copies=(*image.copies, (source, image.workdir / target)))


@cache
def context() -> frozenset[str]:
    """Return the files that Docker is sent: what .dockerignore leaves."""
    lines = IGNORED.read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    found = exclude_paths(str(ROOT), patterns)
    return frozenset(path for path in found if (ROOT / path).is_file())


def files_of(image: Image) -> dict[PurePosixPath, Path]:
    """Return path in the image → file of the checkout, as COPY puts them."""
    found = {}
    for source, target in image.copies:
        for path in context():
            if path == source:
                found[target] = ROOT / path
            elif path.startswith(f"{source}/"):
                found[target / path.removeprefix(f"{source}/")] = ROOT / path
    return found


def unpack(image: Image, directory: Path) -> None:
    """Write the image's files below a directory, which stands for its root."""
    for target, source in files_of(image).items():
        path = directory / target.relative_to("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)


def has_module(image: Image, module: str) -> bool:
    """Say whether `python -m <module>` finds something in the image."""
    at = image.workdir.joinpath(*module.split("."))
    return bool({at / "__main__.py", at.with_suffix(".py")} & files_of(image).keys())
