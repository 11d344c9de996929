"""Goal: a record has the bytes that fastavro gives it, and what does not fit is refused as there.

Method: records made from every schema of the product, and the same with one value that is odd,
written by `codec.encode` and by fastavro alone.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import schemas
from services.common.kernel.errors import InvalidInput
from services.common.runtime import codec, quick_avro

AVRO = Path(schemas.__file__).parent / "avro"
EXAMPLES = AVRO.with_name("examples")
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in AVRO.glob("*.avsc")}
SUBJECTS = st.sampled_from(sorted(SCHEMAS))
ALWAYS_QUICK = ("credit-sold", "ledger-event", "account-fact")
EDGES = [0, 63, 64, 8191, 8192, (1 << 27) - 1, 1 << 27, 1 << 41, (1 << 63) - 1]
LONGS = st.integers(-(1 << 63), (1 << 63) - 1)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, 0, 1.5, "text", "\ud800", b"bytes", 1 << 31, 1 << 63, -(1 << 63) - 1, [], {}, ()]
)
PLAIN: dict[str, st.SearchStrategy[Any]] = {
    "long": LONGS | st.sampled_from(EDGES).flatmap(lambda edge: st.sampled_from([edge, -edge - 1])),
    "int": st.integers(-(1 << 31), (1 << 31) - 1),
    "boolean": st.booleans(),
    "string": st.text(),
    "bytes": st.binary(),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    match kind:
        case str():
            return PLAIN[kind]
        case ["null", other]:
            return st.none() | values_of(other)
        case {"type": "array", "items": items}:
            return st.lists(values_of(items), max_size=3)
        case {"type": "record", "fields": fields}:
            return st.fixed_dictionaries({f["name"]: values_of(f["type"]) for f in fields})
        case {"type": str(named)}:
            return PLAIN[named]
    raise AssertionError(f"this test does not know {kind}")


def written(write: Any, subject: str, record: dict[str, Any]) -> bytes | str:
    try:
        done: bytes = write(subject, record)
    except InvalidInput as refused:
        return str(refused)
    return done


@given(subject=SUBJECTS, data=st.data())
def test_a_record_has_the_bytes_that_fastavro_gives_it(subject: str, data: st.DataObject) -> None:
    record = data.draw(values_of(SCHEMAS[subject]))
    expected = codec.by_fastavro(subject, record)
    assert codec.encode(subject, record) == expected
    if subject in ALWAYS_QUICK:
        assert quick_avro.writer(SCHEMAS[subject])(record) == expected


@given(subject=SUBJECTS, data=st.data())
def test_what_is_odd_is_written_or_refused_as_fastavro_does(
    subject: str, data: st.DataObject
) -> None:
    record = data.draw(values_of(SCHEMAS[subject]))
    name = data.draw(st.sampled_from([*record, "unknown"]))
    odd = record | {name: data.draw(ODD)}
    if data.draw(st.booleans()):
        del odd[name]
    assert written(codec.encode, subject, odd) == written(codec.by_fastavro, subject, odd)


@pytest.mark.parametrize("subject", sorted(SCHEMAS))
def test_an_example_of_each_subject_is_written_like_it(subject: str) -> None:
    example = json.loads((EXAMPLES / f"{subject}.json").read_text())
    record = codec.decode(example["schema"], bytes.fromhex(example["value_hex"]))
    assert codec.encode(subject, record) == codec.by_fastavro(subject, record)


def test_what_is_not_known_is_left_to_fastavro() -> None:
    with pytest.raises(quick_avro.Doubt):
        quick_avro.writer({"type": "fixed", "name": "F", "size": 2})
