"""Schemas: generate code from schemas/proto, check that it is fresh and that Avro stays compatible.

`python -m tools.schemas generate | check | record`
"""

import subprocess
import sys
from pathlib import Path

import grpc_tools

ROOT = Path(__file__).parent.parent
PROTO = ROOT / "schemas" / "proto"
GEN = ROOT / "schemas" / "gen"


def generate(into: Path) -> None:
    """Write the Python code of every .proto below schemas/proto."""
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PROTO}",
            f"-I{well_known}",
            f"--python_out={into}",
            f"--grpc_python_out={into}",
            f"--mypy_out=quiet:{into}",
            f"--mypy_grpc_out=quiet:{into}",
            *files,
        ],
        check=True,
    )


if __name__ == "__main__":
    GEN.mkdir(exist_ok=True)
    generate(GEN)
