"""Avro values: schemaless, the schema named by the record's `schema` header.

schemas/avro/<subject>.avsc is what is written today; schemas/baseline/<subject>/<n>.avsc every
version ever published. A value is decoded with the version it names and resolved into today's.
"""

import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import fastavro

import schemas
from services.common.kernel.errors import InvalidInput
from services.common.kernel.reasons import Reason

_ROOT = Path(schemas.__file__).parent


@cache
def version_of(subject: str) -> int:
    """Return the number of the subject's newest published version."""
    numbers = [int(path.stem) for path in (_ROOT / "baseline" / subject).glob("*.avsc")]
    if not numbers:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT, f"there is no schema {subject!r} in schemas/baseline"
        )
    return max(numbers)


@cache
def _today(subject: str) -> Any:
    return fastavro.parse_schema(json.loads((_ROOT / "avro" / f"{subject}.avsc").read_text()))


@cache
def _arrays(subject: str) -> tuple[str, ...]:
    """Return the fields of a subject that are an array or null."""
    return tuple(
        field["name"]
        for field in _today(subject)["fields"]
        if isinstance(field["type"], list)
        and any(isinstance(kind, dict) and kind["type"] == "array" for kind in field["type"])
    )


@cache
def _published(subject: str, version: int) -> Any:
    path = _ROOT / "baseline" / subject / f"{version}.avsc"
    if not path.exists():
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"schema {subject}/{version} is not known here; a newer writer is running",
        )
    return fastavro.parse_schema(json.loads(path.read_text()))


@cache
def schema_header(subject: str) -> str:
    """Return the `schema` header of a value written today, e.g. `wake/1`."""
    return f"{subject}/{version_of(subject)}"


@cache
def kinds_of(subject: str) -> dict[str, Any]:
    """Return field of a subject → its Avro type, in the order in which they are written."""
    return {field["name"]: field["type"] for field in _today(subject)["fields"]}


def encode(subject: str, record: dict[str, Any]) -> bytes:
    """Return the value of `record`. Raises InvalidInput where it does not fit the schema."""
    out = io.BytesIO()
    for name in _arrays(subject):
        if isinstance(items := record.get(name), list):
            # Named, or fastavro would try all of it to find out that it is the array.
            record = record | {name: ("array", items)}
    try:
        fastavro.schemaless_writer(out, _today(subject), record, strict=True)
    except (ValueError, TypeError, KeyError, OverflowError) as odd:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT, f"a {subject} does not fit its schema: {odd}"
        ) from odd
    return out.getvalue()


def decode(schema: str, value: bytes) -> dict[str, Any]:
    """Return the record of a value whose header says `schema`. Raises InvalidInput if it cannot."""
    subject, _, number = schema.partition("/")
    try:
        version = int(number)
        writer = _published(subject, version)
        reader = _today(subject) if version != version_of(subject) else None
        stream = io.BytesIO(value)
        record = fastavro.schemaless_reader(stream, writer, reader)
    except InvalidInput:
        raise
    except Exception as odd:  # fastavro raises many kinds for foreign bytes
        raise InvalidInput(
            Reason.INVALID_ARGUMENT, f"{len(value)} bytes are not a {schema}: {odd!r}"
        ) from odd
    if stream.read(1) or not isinstance(record, dict):
        raise InvalidInput(Reason.INVALID_ARGUMENT, f"bytes left over after a {schema}")
    return record
