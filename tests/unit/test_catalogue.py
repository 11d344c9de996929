"""The topic catalogue and the schemas hold together, and with the services that exist.

Method: read schemas/ as data and compare it with the tree; decode the recorded example of every
subject, bytes that must stay readable for as long as the topics keep them.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.runtime import codec
from services.common.runtime.topics import Topic, catalogue
from tools import schemas as tool

ROOT = Path(__file__).parents[2]
SERVICES = {path.parent.name for path in ROOT.glob("services/*/main.py")}
SUBJECTS = sorted(path.stem for path in (ROOT / "schemas" / "avro").glob("*.avsc"))
TOPICS = [topic for topic in catalogue().topics.values() if not topic.name.endswith(".dlq")]


def test_the_five_services_exist() -> None:
    assert {"ingest", "metering", "vending", "control", "reporting"} == SERVICES


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_every_topic_has_owners_and_readers_that_exist(topic: Topic) -> None:
    assert set(topic.values.values()) <= SERVICES
    assert topic.readers
    assert set(topic.readers) <= SERVICES


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_the_code_of_every_owner_and_reader_names_the_topic(topic: Topic) -> None:
    for service in {*topic.values.values(), *topic.readers}:
        code = "".join(path.read_text() for path in (ROOT / "services" / service).rglob("*.py"))
        assert f'"{topic.name}"' in code, f"{service} never names {topic.name}"


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_what_is_read_whole_at_each_start_is_compacted_soon(topic: Topic) -> None:
    """Kafka compacts closed segments only; as it comes, one is closed at a gigabyte."""
    without_store = {"ingest", "control", "metering"}
    if topic.config["cleanup.policy"] == "compact" and without_store.intersection(topic.readers):
        assert int(topic.config.get("segment.bytes", 1 << 30)) <= 16 << 20


def test_every_subject_is_a_value_of_a_topic_or_an_event_and_the_other_way_round() -> None:
    used = {subject for topic in TOPICS for subject in topic.values} | set(catalogue().events)
    assert used == set(SUBJECTS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_recorded_example_decodes_to_its_record(subject: str) -> None:
    example = json.loads((ROOT / "schemas" / "examples" / f"{subject}.json").read_text())
    record = _written(example["record"])
    assert codec.decode(example["schema"], bytes.fromhex(example["value_hex"])) == record


def _written(value: Any) -> Any:
    """Return what stands in an example as it is in a record: {"hex": ...} is bytes."""
    if isinstance(value, list):
        return [_written(part) for part in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"hex"}:
        return bytes.fromhex(value["hex"])
    return {name: _written(part) for name, part in value.items()}


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_truncated_example_is_refused_and_never_half_read(subject: str) -> None:
    example = json.loads((ROOT / "schemas" / "examples" / f"{subject}.json").read_text())
    value = bytes.fromhex(example["value_hex"])
    for broken in (value[:-1], value + b"\x00"):
        with pytest.raises(InvalidInput):
            codec.decode(example["schema"], broken)


def test_an_unknown_schema_is_refused_with_its_name() -> None:
    with pytest.raises(InvalidInput, match="wake/99"):
        codec.decode("wake/99", b"")


BASE: dict[str, Any] = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "a", "type": "long"},
        {
            "name": "price",
            "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 4},
        },
    ],
}


def _with(**changes: object) -> dict[str, Any]:
    copy = json.loads(json.dumps(BASE))
    copy["fields"] = changes.get("fields", copy["fields"])
    return copy


def test_the_gate_accepts_a_new_field_with_a_default() -> None:
    wider = [*BASE["fields"], {"name": "b", "type": ["null", "string"], "default": None}]
    assert tool.incompatible(_with(fields=wider), BASE) == []


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ([*BASE["fields"], {"name": "b", "type": "string"}], "b"),
        (BASE["fields"][1:], "a"),
        ([{"name": "a", "type": "string"}, BASE["fields"][1]], "a"),
        (
            [
                BASE["fields"][0],
                {
                    "name": "price",
                    "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2},
                },
            ],
            "logical type",
        ),
    ],
    ids=["new field without default", "field removed", "type changed", "decimal scale changed"],
)
def test_the_gate_refuses_what_a_reader_would_miss(fields: list[Any], why: str) -> None:
    faults = tool.incompatible(_with(fields=fields), BASE)
    assert faults
    assert any(why in fault for fault in faults)


def test_generated_code_that_was_edited_by_hand_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.generate(tmp_path)
    victim = next(tmp_path.rglob("*_pb2.py"))
    victim.write_text(victim.read_text() + "# edited\n")
    monkeypatch.setattr(tool, "GEN", tmp_path)
    assert any("is stale" in fault for fault in tool.stale_code())


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        ("int64 credited_nano = 2;", "int64 total_nano = 2;", "changed name"),
        ("int64 credited_nano = 2;", "string credited_nano = 2;", "changed type"),
        ("  rpc Sell(SellRequest) returns (SellResponse);\n", "", 'deleted RPC "Sell"|RPC "Sell"'),
        ("string display_name = 2;", "string displayName = 31;", "lower_snake_case"),
        (
            "string display_name = 2;",
            "display_name",
            r"vending.proto:\d+:\d+: Missing field number",
        ),
        (
            "string display_name = 2;",
            "string display_name = 2;\n  bool added = 99;",
            "not recorded",
        ),
    ],
)
def test_what_a_client_would_miss_and_what_is_badly_named_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: str, becomes: str, fault: str
) -> None:
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "schemas" / "proto", tmp_path / "schemas" / "proto")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "PROTO", tmp_path / "schemas" / "proto")
    assert list(tool.proto_faults()) == []
    file = tmp_path / "schemas" / "proto" / "wattvend" / "vending" / "v1" / "vending.proto"
    assert was in file.read_text()
    file.write_text(file.read_text().replace(was, becomes, 1))
    faults = list(tool.proto_faults())
    assert any(re.search(fault, each) for each in faults), faults


def test_a_breaking_change_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "proto_breaks", lambda: ["a field is gone"])
    before = tool.PROTO_BASELINE.read_text()
    with pytest.raises(SystemExit, match="a field is gone"):
        tool.record()
    assert tool.PROTO_BASELINE.read_text() == before
