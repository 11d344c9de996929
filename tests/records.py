"""Records of the bus, as complete as the codec wants them, from what a test says of them."""

import json
from functools import cache
from pathlib import Path
from typing import Any

AVRO = Path(__file__).parents[1] / "schemas" / "avro"


@cache
def _defaults(subject: str) -> dict[str, Any]:
    schema = json.loads((AVRO / f"{subject}.avsc").read_text())
    return {field["name"]: field["default"] for field in schema["fields"] if "default" in field}


def unsaid(subject: str) -> dict[str, Any]:
    """Return the fields of a subject that need not be said, with what holds then.

    So a field that a schema gains is no change of every test that has such a record.
    """
    return dict(_defaults(subject))
