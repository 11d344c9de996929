"""Goal: a wrong configuration is told in words, and a generated site is plausible and repeatable.

Method: each case breaks a good configuration in one place and expects the sentence a person sees.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tools.fleet.config import Protocol, read_config
from tools.fleet.errors import ConfigError
from tools.fleet.memory import remember, remembered
from tools.fleet.site import as_yaml, make_site


def good() -> dict[str, Any]:
    load = {"profile": "h25", "yearly_kwh": 3_000, "start": "2025-03-12T18:00:00"}
    return {
        "zone": "Asia/Shanghai",
        "gateways": [
            {"id": "g1", "protocol": "modbus-tcp"},
            {"id": "g2", "protocol": "mqtt-acrel", "product": "AWT100", "serial": "123"},
        ],
        "meters": [
            {
                "id": "m1",
                "serial": "230100000001",
                "gateway": "g1",
                "unit": 1,
                "profile": "acrel-ddsy1352",
                "load": load,
            },
            {
                "id": "m2",
                "serial": "23010000000002",
                "gateway": "g2",
                "profile": "acrel-mqtt",
                "load": {"power_w": 100},
            },
        ],
    }


def read(directory: Path, text: str) -> object:
    path = directory / "fleet.yaml"
    path.write_text(text, "utf-8")
    return read_config(path)


def test_a_good_configuration_is_read(tmp_path: Path) -> None:
    read(tmp_path, yaml.safe_dump(good()))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("zone",), "Moon/Base", "there is no zone 'Moon/Base'"),
        (("colour",), "red", "Extra inputs are not permitted"),
        (("meters", 0, "unit"), 0, "unit must be 1..247"),
        (("meters", 0, "serial"), "123", "serial must be 12 digits"),
        (("meters", 0, "gateway"), "g9", "meter m1 names gateway g9, which is not"),
        (("meters", 0, "gateway"), "g2", "acrel-ddsy1352 does not speak mqtt-acrel"),
        (("meters", 1, "unit"), 3, "MQTT meters have no bus address"),
        (("meters", 1, "id"), "m1", "meter id used more than once: m1"),
        (("meters", 0, "load", "power_w"), 5, "give either profile"),
        (("meters", 0, "load", "yearly_kwh"), 0, "yearly_kwh is missing"),
        (("meters", 0, "load", "start"), "2024-01-01", "a date-time of 2025"),
        (("gateways", 1, "serial"), "", "product and serial belong to mqtt-acrel"),
        (("gateways", 1, "serial"), "a/b", "parts of a topic"),
    ],
)
def test_what_is_wrong_is_told(
    tmp_path: Path, path: tuple[str | int, ...], value: object, says: str
) -> None:
    wrong = good()
    inside: Any = wrong
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    with pytest.raises(ConfigError, match=says):
        read(tmp_path, yaml.safe_dump(wrong))


def test_a_file_that_is_not_there_or_no_yaml_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write one with `python -m tools\.fleet\.site`"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="is not YAML"):
        read(tmp_path, "zone: [")


def test_the_site_of_44_has_three_modbus_gateways_of_12_and_two_of_mqtt_with_4() -> None:
    site = make_site(44, seed=1)
    sizes = Counter(meter.gateway for meter in site.meters)
    kinds = [gateway.protocol for gateway in site.gateways]
    assert list(sizes.values()) == [12, 12, 12, 4, 4]
    assert kinds.count(Protocol.MODBUS_RTU_OVER_TCP) == 1
    assert {meter.ct for meter in site.meters if meter.profile == "acrel-dtsy1352"} == {20}
    assert not site.load_on


@pytest.mark.parametrize("meters", [5, 44, 500])
def test_a_site_is_the_same_for_the_same_seed_and_survives_its_file(
    tmp_path: Path, meters: int
) -> None:
    site = make_site(meters, seed=7)
    assert len(site.meters) == meters
    assert site == make_site(meters, seed=7)
    assert site != make_site(meters, seed=8)
    assert read(tmp_path, as_yaml(site)) == site


def test_a_meter_counts_on_where_it_stood_when_the_fleet_last_ran(tmp_path: Path) -> None:
    site = make_site(5, seed=1)
    path = tmp_path / "data" / "registers.json"
    assert remembered(site, path) == site
    first, *others = site.meters
    remember({first.id: 123_456, "stranger-99": 1}, path)
    again = remembered(site, path)
    assert again.meters[0] == first.model_copy(update={"register_lsb": 123_456})
    assert list(again.meters[1:]) == others


@pytest.mark.parametrize("content", ["", "[]", '{"meter-001": "many"}', "\xff"])
def test_registers_that_cannot_be_read_are_told_with_what_to_do(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "registers.json"
    path.write_text(content, "latin-1")
    with pytest.raises(ConfigError, match="delete it"):
        remembered(make_site(5, seed=1), path)
