"""Schemas: generated code, and the gate that keeps every published version readable.

`python -m tools.schemas generate`  write schemas/gen from schemas/proto
`python -m tools.schemas check`     generated code fresh; Avro and protobuf compatible
`python -m tools.schemas record`    publish what changed: the next version into schemas/baseline
`python -m tools.schemas descriptors FILE`  write the API for clients that load it: grpcurl, Node
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import avro.schema
import google.rpc
import grpc_tools
from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "schemas" / "proto"
GEN = ROOT / "schemas" / "gen"
AVRO = ROOT / "schemas" / "avro"
BASELINE = ROOT / "schemas" / "baseline"
PROTO_BASELINE = BASELINE / "protobuf.json"
CLIENTS_NEED = ("google/rpc/status.proto", "google/rpc/error_details.proto")
"""Beside what schemas/proto imports: how errors carry their reasons."""
OURS = "wattvend"
"""Of what schemas/proto imports the packages of Google are not ours to judge."""
OPERATIONS = "google/longrunning/operations.proto"
OPERATIONS_SHIPPED = "google/longrunning/operations_proto.proto"
"""The package ships it under another name than the one that it is compiled by."""
BUF_FOUND = 100
"""Its exit code where it found something wrong with the schemas."""


def includes() -> list[Path]:
    """Return where protoc finds what schemas/proto says and what it imports.

    The annotations of google.api and google.longrunning are those of googleapis-common-protos.
    """
    common = Path(next(iter(google.rpc.__path__))).parent.parent
    return [PROTO, Path(grpc_tools.__file__).parent / "_proto", common]


class NotCompiledError(SystemExit):
    """What protoc finds wrong with schemas/proto, a line each."""


def _protoc(*outputs: str, more: Sequence[str] = ()) -> None:
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    # The plug-ins (mypy-protobuf) stand beside this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            *(f"-I{folder}" for folder in includes()),
            f"-I{OPERATIONS}={includes()[-1] / OPERATIONS_SHIPPED}",
            *outputs,
            *files,
            *more,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    if done.returncode:
        raise NotCompiledError(done.stderr)


def generate(into: Path) -> None:
    """Write the Python code of every .proto below schemas/proto into the folder `into`."""
    _protoc(
        f"--python_out={into}",
        f"--grpc_python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--mypy_grpc_out=quiet:{into}",
    )


def descriptors(file: Path) -> None:
    """Write a FileDescriptorSet of the API and of all that it imports."""
    _protoc("--include_imports", f"--descriptor_set_out={file.absolute()}", more=CLIENTS_NEED)


def stale_code() -> Iterator[str]:
    """Yield what of schemas/gen is not what schemas/proto generates."""
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        files = {p.relative_to(fresh) for p in Path(fresh).rglob("*.py*")}
        there = {p.relative_to(GEN) for p in GEN.rglob("*.py*") if "__pycache__" not in p.parts}
        for path in sorted(files ^ there):
            yield f"schemas/gen/{path} is {'missing' if path in files else 'left over'}"
        for path in sorted(files & there):
            if not filecmp.cmp(Path(fresh) / path, GEN / path, shallow=False):
                yield f"schemas/gen/{path} is stale"


# --- Avro: FULL_TRANSITIVE ---------------------------------------------------------------------


def published(subject: str) -> list[Path]:
    """Return the recorded versions of `subject`, oldest first."""
    return sorted((BASELINE / subject).glob("*.avsc"), key=lambda path: int(path.stem))


def incompatible(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Return why readers and writers of the two schemas do not understand each other, both ways.

    The library accepts a changed logical type (a decimal's scale); those are compared here.
    """
    checker = ReaderWriterCompatibilityChecker
    one, other = avro.schema.parse(json.dumps(new)), avro.schema.parse(json.dumps(old))
    found = []
    for direction, reader, writer in (
        ("today's reader, recorded writer", one, other),
        ("recorded reader, today's writer", other, one),
    ):
        result = checker().get_compatibility(reader, writer)
        if result.compatibility is not SchemaCompatibilityType.compatible:
            found.append(f"{direction}: {'; '.join(sorted(result.messages))}")
    logical_new, logical_old = dict(_logical(new)), dict(_logical(old))
    found += [
        f"logical type of {place} changed from {logical_old[place]} to {logical_new[place]}"
        for place in sorted(logical_new.keys() & logical_old.keys())
        if logical_new[place] != logical_old[place]
    ]
    return found


def _logical(schema: Any, place: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    if isinstance(schema, list):
        for index, branch in enumerate(schema):
            yield from _logical(branch, f"{place}[{index}]")
    elif isinstance(schema, dict):
        keys = ("type", "logicalType", "precision", "scale")
        if not isinstance(schema["type"], dict | list):
            yield place or "/", tuple(schema.get(key) for key in keys)
        for field in schema.get("fields", ()):
            yield from _logical(field["type"], f"{place}/{field['name']}")
        for inner in ("type", "items", "values"):
            if isinstance(schema.get(inner), dict | list):
                yield from _logical(schema[inner], f"{place}/{inner}")


def avro_faults() -> Iterator[str]:
    """Yield every breach of the compatibility promise, and every unrecorded change."""
    subjects = {path.stem for path in AVRO.glob("*.avsc")}
    for gone in sorted({path.name for path in BASELINE.iterdir() if path.is_dir()} - subjects):
        yield f"schemas/avro/{gone}.avsc is gone, but records of it are on the bus"
    for subject in sorted(subjects):
        today = json.loads((AVRO / f"{subject}.avsc").read_text())
        versions = published(subject)
        for version in versions:
            for why in incompatible(today, json.loads(version.read_text())):
                yield f"{subject} breaks with its version {version.stem}: {why}"
        if not versions or today != json.loads(versions[-1].read_text()):
            yield f"schemas/avro/{subject}.avsc changed and is not recorded: make schemas-record"


# --- protobuf: buf.yaml says what is asked of names, and of changes ------------------------------


@contextmanager
def _compiled() -> Iterator[Path]:
    """Yield what protoc makes of schemas/proto: buf alone would ask its registry for imports."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "image.binpb"
        _protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={image}")
        yield image


def buf(*arguments: str | Path) -> list[str]:
    """Run buf; return what it finds wrong, a line each."""
    done = subprocess.run(
        [Path(sys.executable).parent / "buf", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, BUF_FOUND):
        raise SystemExit(f"buf {arguments[0]} failed: {done.stderr}")
    return f"{done.stdout}{done.stderr}".splitlines()


def proto_image() -> str:
    """Return all that a client can depend on: buf's image of schemas/proto, as JSON."""
    with _compiled() as compiled:
        image = compiled.with_suffix(".json")
        buf("build", compiled, "--exclude-source-info", "--output", image)
        return json.dumps(json.loads(image.read_text()), indent=1, sort_keys=True) + "\n"


def proto_breaks() -> list[str]:
    """Return what a client of a recorded version would miss."""
    if not PROTO_BASELINE.exists():
        return []
    with _compiled() as compiled:
        return buf("breaking", compiled, "--path", OURS, "--against", PROTO_BASELINE)


def proto_faults() -> Iterator[str]:
    """Yield what is badly named, what a client would miss, and whether anything is unrecorded."""
    try:
        with _compiled() as compiled:
            yield from buf("lint", compiled, "--path", OURS)
    except NotCompiledError as failed:
        yield from str(failed).splitlines()
        return
    yield from proto_breaks()
    if not PROTO_BASELINE.exists() or PROTO_BASELINE.read_text() != proto_image():
        yield "schemas/proto has what is not recorded: make schemas-record"


def record() -> None:
    """Publish what changed. Refuses what is not compatible."""
    for path in sorted(AVRO.glob("*.avsc")):
        versions = published(path.stem)
        today = json.loads(path.read_text())
        if versions and today == json.loads(versions[-1].read_text()):
            continue
        faults = [f for old in versions for f in incompatible(today, json.loads(old.read_text()))]
        if faults:
            raise SystemExit(f"{path.stem} cannot be published: " + "; ".join(faults))
        (BASELINE / path.stem).mkdir(parents=True, exist_ok=True)
        target = BASELINE / path.stem / f"{len(versions) + 1}.avsc"
        shutil.copyfile(path, target)
        print(f"recorded {target.relative_to(ROOT)}")
    if faults := proto_breaks():
        raise SystemExit(
            "schemas/proto cannot be published: " + "; ".join(faults) + ". What no release has may "
            f"be taken back: check {PROTO_BASELINE.relative_to(ROOT)} out as it was released first"
        )
    PROTO_BASELINE.write_text(proto_image())


def main() -> int:
    """Run one action; return an exit code."""
    action = sys.argv[1] if len(sys.argv) == 2 else ""
    if sys.argv[1:2] == ["descriptors"] and len(sys.argv) == 3:
        descriptors(Path(sys.argv[2]))
    elif action == "generate":
        GEN.mkdir(exist_ok=True)
        generate(GEN)
    elif action == "record":
        record()
    elif action == "check":
        faults = [*avro_faults(), *proto_faults()]
        if stale := list(stale_code()):
            faults += [*stale, "mend it: make gen"]
        for fault in faults:
            print(fault, file=sys.stderr)
        if faults:
            return 1
        print(f"schemas: {len(list(AVRO.glob('*.avsc')))} Avro subjects and the protobuf API hold")
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
