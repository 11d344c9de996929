"""Goal: a device profile is right or refused with the entry that is wrong; the shipped ones are.

Method: the shipped files are read as the services read them; a wrong one is a shipped one with one
entry changed.
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.kernel.errors import InvalidInput
from services.common.kernel.profile_documents import parse_profile
from services.common.kernel.profiles import (
    ModbusProfile,
    MqttProfile,
    RelayCommand,
    relay_command,
)
from services.common.runtime.profiles import DIRECTORY, load_profiles, profiles


def _document(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((DIRECTORY / f"{name}.yaml").read_text("utf-8"))
    return document


def _changed(name: str, path: str, value: object) -> dict[str, Any]:
    document = copy.deepcopy(_document(name))
    *parents, last = path.split(".")
    node: Any = document
    for key in parents:
        node = node[int(key)] if isinstance(node, list) else node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return document


def test_the_shipped_profiles_are_three() -> None:
    assert set(profiles()) == {"acrel-ddsy1352", "acrel-dtsy1352", "acrel-mqtt"}


def test_a_relay_is_commanded_in_three_states_by_the_register_pair_at_0x0057() -> None:
    for name in ("acrel-ddsy1352", "acrel-dtsy1352"):
        profile = profiles()[name]
        assert isinstance(profile, ModbusProfile)
        assert profile.relay.address == 0x0057
        assert profile.relay.values == {
            RelayCommand.OPEN: (1, 1),
            RelayCommand.CLOSED_PREPAID: (0, 0),
            RelayCommand.CLOSED_FORCED: (1, 0),
        }


@pytest.mark.parametrize(("name", "mask"), [("acrel-ddsy1352", 0b1), ("acrel-dtsy1352", 0b111)])
def test_a_relay_is_read_back_on_the_wired_phases(name: str, mask: int) -> None:
    profile = profiles()[name]
    assert isinstance(profile, ModbusProfile)
    assert profile.phase_mask == mask
    assert (profile.live.address, profile.live.count) == (0x0200, 48)


@pytest.mark.parametrize(
    ("wanted", "mode", "command"),
    [
        ("open", "prepaid", RelayCommand.OPEN),
        ("open", "forced-off", RelayCommand.OPEN),
        ("closed", "prepaid", RelayCommand.CLOSED_PREPAID),
        ("closed", "forced-on", RelayCommand.CLOSED_FORCED),
    ],
)
def test_an_intent_says_which_command_it_needs(
    wanted: str, mode: str, command: RelayCommand
) -> None:
    assert relay_command(wanted, mode) is command


def test_a_cut_over_mqtt_carries_its_expiry_and_a_restore_none() -> None:
    profile = profiles()["acrel-mqtt"]
    assert isinstance(profile, MqttProfile)
    names = {"request_id": "r-1", "gateway_serial": "123", "meter_serial": "456"}
    cut = profile.control_payload(RelayCommand.OPEN, **names, expire="20261123154021")
    assert cut == {
        "type": "control",
        "msgid": "r-1",
        "gwSN": "123",
        "meterSN": "456",
        "relay": 0,
        "expire": "20261123154021",
    }
    restore = profile.control_payload(RelayCommand.CLOSED_PREPAID, **names, expire=None)
    assert restore["relay"] == 1
    assert "expire" not in restore
    assert profile.down_topic("AWT100", "control", "123") == "/server/acrelHW/AWT100/control/123"
    assert profile.up_filter() == "/gw/acrelHW/+/+/+"


def test_a_profile_bounds_what_its_meters_carry_where_it_is_rated() -> None:
    assert profiles()["acrel-ddsy1352"].max_power_w == 220 * 100
    assert profiles()["acrel-dtsy1352"].max_power_w == 3 * 220 * 100
    assert profiles()["acrel-mqtt"].max_power_w is None, "it stands for many models"


def test_a_register_of_six_digits_and_two_decimals_begins_again_after_a_million_kwh() -> None:
    for name in profiles():
        assert profiles()[name].register_max_milli == 10**9 - 1
    endless = parse_profile(_changed("acrel-ddsy1352", "live.register.maximum_raw", ...))
    assert endless.register_max_milli is None


@pytest.mark.parametrize(
    ("name", "path", "value", "said"),
    [
        ("acrel-ddsy1352", "live.register.at", ..., "live.register.at is missing"),
        ("acrel-ddsy1352", "live.register.at", "0x0215", "live.register.at must be a whole number"),
        ("acrel-ddsy1352", "live.register.at", 0x022F, "inside the block"),
        ("acrel-ddsy1352", "live.register.type", "u64", "must be one of u16, i16, u32, i32"),
        ("acrel-ddsy1352", "live.register.multiplier", 0, "must be a whole number 1.."),
        ("acrel-ddsy1352", "live.power_factor.multiplier", 10**6, "small enough that 2^31"),
        ("acrel-ddsy1352", "live.register.scale", 10, "unknown entries ['scale']"),
        ("acrel-ddsy1352", "live.power.confidence", "sure", "must be one of 2+, 1, lab, gk"),
        ("acrel-ddsy1352", "live.count", 126, "1..125"),
        ("acrel-ddsy1352", "live.relay.closed_bits", [16], "whole number 0..15"),
        ("acrel-dtsy1352", "live.relay.closed_bits", [13], "a list of 3..3 bits"),
        ("acrel-dtsy1352", "live.voltages", [], "a list of 3..3"),
        ("acrel-ddsy1352", "live.clock.layout", ["year"], "weekday may be absent"),
        ("acrel-ddsy1352", "live.clock.at_byte", 90, "whole number 0..89"),
        ("acrel-ddsy1352", "phases", [3, 1], "ascending"),
        ("acrel-ddsy1352", "register_is_primary", "no", "true or false"),
        ("acrel-ddsy1352", "relay_commands.open", [0, 0], "different for each command"),
        ("acrel-ddsy1352", "relay_commands.open", [1], "as long as the other"),
        ("acrel-ddsy1352", "clock_command.function", 0x11, "0x10 or 0x20"),
        ("acrel-ddsy1352", "clock_command.count", 3, "a whole number 4..125"),
        ("acrel-ddsy1352", "rated.voltage_v", 0, "whole number 1.."),
        ("acrel-ddsy1352", "rated.confidence", ..., "rated.confidence is missing"),
        ("acrel-ddsy1352", "dialect", "telnet", "must be one of modbus, mqtt-acrel"),
        ("acrel-ddsy1352", "live", 7, "live must be a mapping"),
        ("acrel-mqtt", "topics.up", "/gw/{product}/{serial}", "{product}, {command} and {serial}"),
        ("acrel-mqtt", "control.payload.relay", "{position}", "or one of {expire}"),
        ("acrel-mqtt", "fields.relay.open", 1, "another value than closed"),
        ("acrel-mqtt", "fields.register.maximum_milli", ..., "maximum_milli is missing"),
        ("acrel-mqtt", "fields.voltages.fields", [], "1..3 names"),
    ],
)
def test_a_wrong_entry_is_named_with_what_it_must_be(
    name: str, path: str, value: object, said: str
) -> None:
    with pytest.raises(InvalidInput) as wrong:
        parse_profile(_changed(name, path, value))
    assert said in wrong.value.message
    assert wrong.value.message.startswith(name)


@pytest.mark.parametrize("document", [None, 7, "text", [], {}, {"name": 7}])
def test_what_is_no_profile_is_refused(document: object) -> None:
    with pytest.raises(InvalidInput):
        parse_profile(document)


@pytest.mark.parametrize("text", ["name: [", "name: acrel-mqtt", ""])
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InvalidInput, match=r"^mine\.yaml: "):
        load_profiles(tmp_path)


def test_file_and_profile_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text((DIRECTORY / "acrel-mqtt.yaml").read_text("utf-8"))
    with pytest.raises(InvalidInput, match="must have one name"):
        load_profiles(tmp_path)
