"""Goal: what a device says becomes the right integers, or is refused with its fault.

Method: golden frames, laid out by hand from the protocol's tables, and each of them broken once.
"""

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from services.common.kernel import frames
from services.common.kernel.ids import reading_id
from services.common.kernel.profiles import ModbusProfile, MqttProfile
from services.common.runtime.profiles import profiles
from services.ingest.domain import acrel_mqtt
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.live_block import decode_live, decode_serial, is_serial_of
from services.ingest.domain.reading import MeterReading, device_time_ms, frame_rows
from services.ingest.domain.registry import Registry
from tests.unit.ingest_devices import (
    LIVE_TIME_MS,
    LIVE_WORDS,
    SERIAL,
    SERIAL_WORDS,
    data_message,
    data_topic,
    encoded,
    meter_fact,
)

SHANGHAI = ZoneInfo("Asia/Shanghai")


@pytest.fixture
def ddsy() -> ModbusProfile:
    profile = profiles()["acrel-ddsy1352"]
    assert isinstance(profile, ModbusProfile)
    return profile


@pytest.fixture
def dtsy() -> ModbusProfile:
    profile = profiles()["acrel-dtsy1352"]
    assert isinstance(profile, ModbusProfile)
    return profile


@pytest.fixture
def mqtt() -> MqttProfile:
    profile = profiles()["acrel-mqtt"]
    assert isinstance(profile, MqttProfile)
    return profile


def _with(words: Sequence[int], at: int, *values: int) -> list[int]:
    changed = list(words)
    changed[at - 0x0200 : at - 0x0200 + len(values)] = values
    return changed


def test_the_golden_live_block_is_read(ddsy: ModbusProfile) -> None:
    reading = decode_live(ddsy, LIVE_WORDS)
    assert reading.register_milli == 1_234_560
    assert reading.rate_registers_milli == (1_000, 2_000, 3_000, 4_000, frames.ABSENT_REGISTER)
    assert reading.ratio == 10
    assert reading.closed_mask == 0b001
    assert reading.voltages_mv == (230_000, -1, -1)
    assert reading.currents_ma == (5_000, -1, -1)
    assert reading.power_w == 1_150
    assert reading.power_factor_milli == 990
    assert reading.clock == datetime(2026, 11, 23, 15, 40, 21)  # noqa: DTZ001


def test_three_phases_have_three_relays_and_power_may_be_negative(dtsy: ModbusProfile) -> None:
    words = _with(_with(LIVE_WORDS, 0x0224, 0xA000), 0x020A, 0xFB82)
    reading = decode_live(dtsy, words)
    assert reading.closed_mask == 0b101
    assert reading.power_w == -1_150
    assert reading.voltages_mv == (230_000, 0, 0)


def test_a_register_that_holds_the_ratio_already_has_ratio_one(ddsy: ModbusProfile) -> None:
    primary = dataclasses.replace(ddsy, register_is_primary=True)
    assert decode_live(primary, LIVE_WORDS).ratio == 1


@pytest.mark.parametrize(
    ("at", "values", "fault"),
    [
        (0x0215, (0x05F5, 0xE100), Fault.REGISTER_ABOVE_MAXIMUM),
        (0x0215, (0xFFFF, 0xFFFF), Fault.REGISTER_ABOVE_MAXIMUM),
        (0x0213, (0,), Fault.RATIO_IMPOSSIBLE),
        (0x0214, (0,), Fault.RATIO_IMPOSSIBLE),
        (0x0213, (0xFFFF, 0xFFFF), Fault.RATIO_IMPOSSIBLE),
        (0x0228, (0x1A0D,), Fault.CLOCK_IMPOSSIBLE),
        (0x0228, (0x1A00,), Fault.CLOCK_IMPOSSIBLE),
        (0x0229, (0x2001,), Fault.CLOCK_IMPOSSIBLE),
        (0x022A, (0x183C,), Fault.CLOCK_IMPOSSIBLE),
        (0x0229, (0xFFFF,), Fault.CLOCK_IMPOSSIBLE),
    ],
)
def test_an_absurd_figure_is_refused(
    ddsy: ModbusProfile, at: int, values: tuple[int, ...], fault: Fault
) -> None:
    with pytest.raises(Unusable) as refused:
        decode_live(ddsy, _with(LIVE_WORDS, at, *values))
    assert refused.value.fault is fault


@pytest.mark.parametrize("words", [(), LIVE_WORDS[:47], (*LIVE_WORDS, 0), (65536,) * 48])
def test_a_block_of_another_size_is_refused(ddsy: ModbusProfile, words: Sequence[int]) -> None:
    with pytest.raises(Unusable) as refused:
        decode_live(ddsy, words)
    assert refused.value.fault is Fault.MALFORMED


def test_zeros_are_no_reading(ddsy: ModbusProfile) -> None:
    with pytest.raises(Unusable):
        decode_live(ddsy, (0,) * 48)


def test_a_serial_is_twelve_digits_and_may_be_registered_without_leading_zeros(
    ddsy: ModbusProfile,
) -> None:
    assert decode_serial(ddsy, SERIAL_WORDS) == SERIAL
    assert is_serial_of(ddsy, "000000000042", "42")
    assert not is_serial_of(ddsy, "000000000042", "43")


@pytest.mark.parametrize("words", [(0x2304, 0x1100), (0x2304, 0x1100, 0x00A2), (0, 0, 70000)])
def test_what_is_no_serial_is_refused(ddsy: ModbusProfile, words: Sequence[int]) -> None:
    with pytest.raises(Unusable):
        decode_serial(ddsy, words)


def test_a_device_clock_is_made_absolute_by_the_sites_zone() -> None:
    clock = datetime(2026, 11, 23, 15, 40, 21)  # noqa: DTZ001
    received = LIVE_TIME_MS + 900
    time_ms = device_time_ms(clock, SHANGHAI, received_at_ms=received, is_live=True)
    assert time_ms == LIVE_TIME_MS


@pytest.mark.parametrize(
    ("received_at_ms", "is_live", "fault"),
    [
        (LIVE_TIME_MS - 2 * 3_600_000 - 1, False, Fault.CLOCK_AHEAD),
        (LIVE_TIME_MS + 24 * 3_600_000 + 1, True, Fault.CLOCK_BEHIND),
        (LIVE_TIME_MS + 24 * 3_600_000 + 1, False, None),
        (LIVE_TIME_MS - 2 * 3_600_000, True, None),
        (LIVE_TIME_MS + 24 * 3_600_000, True, None),
    ],
)
def test_a_clock_far_off_is_refused_but_a_pushed_reading_may_be_late(
    received_at_ms: int, is_live: bool, fault: Fault | None
) -> None:
    clock = datetime(2026, 11, 23, 15, 40, 21)  # noqa: DTZ001
    if fault is None:
        device_time_ms(clock, SHANGHAI, received_at_ms=received_at_ms, is_live=is_live)
        return
    with pytest.raises(Unusable) as refused:
        device_time_ms(clock, SHANGHAI, received_at_ms=received_at_ms, is_live=is_live)
    assert refused.value.fault is fault


def test_the_hour_that_winter_time_repeats_is_the_one_nearest_to_the_receive_time() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    clock = datetime(2026, 10, 25, 2, 30)  # noqa: DTZ001
    first = 1_792_888_200_000
    for expected in (first, first + 3_600_000):
        got = device_time_ms(clock, berlin, received_at_ms=expected + 500, is_live=True)
        assert got == expected


def test_a_reading_keeps_every_figure_in_its_frame(ddsy: ModbusProfile) -> None:
    registry = Registry()
    registry.absorb("meter-fact", meter_fact(epoch=4))
    meter = registry.meter("M1")
    assert meter is not None
    device = decode_live(ddsy, LIVE_WORDS)
    reading = MeterReading(meter, device, LIVE_TIME_MS, LIVE_TIME_MS + 10, LIVE_TIME_MS + 60)
    frame = frames.ReadingFrame(3, "ingest-0", "run", 0, frame_rows([reading]))
    row = frames.ReadingFrame.from_record(frame.to_record()).rows[0]
    registers = (1_234_560, 1_000, 2_000, 3_000, 4_000, -1)
    assert row["meter_key"] == meter.meter_key
    assert row["epoch"] == 4
    assert row["serial"] == SERIAL.encode()
    assert bytes(row["reading_id"]) == reading_id(SERIAL, LIVE_TIME_MS, registers).bytes
    assert (row["device_time_ms"], row["began_at_ms"], row["received_at_ms"]) == (
        LIVE_TIME_MS,
        LIVE_TIME_MS + 10,
        LIVE_TIME_MS + 60,
    )
    assert (row["register_milli"], *row["rate_registers_milli"]) == registers
    assert (row["ratio"], row["quality"], row["relay_bits"]) == (10, ord("A"), 0x81)
    assert list(row["voltage_mv"]) == [230_000, -1, -1]


def test_the_golden_data_message_is_read(mqtt: MqttProfile) -> None:
    message = acrel_mqtt.parse_message(mqtt, data_topic(), encoded(data_message()))
    assert isinstance(message, acrel_mqtt.Data)
    assert message.source.address == "AWT100/12308017890017"
    assert (message.meter_serial, message.is_missing) == ("77001", False)
    reading = acrel_mqtt.decode_data(mqtt, message.body)
    assert reading.register_milli == 1_234_560
    assert reading.ratio == 20
    assert reading.closed_mask == 1
    assert reading.voltages_mv == (230_100, 0, 0)
    assert reading.currents_ma == (5_250, 0, 0)
    assert (reading.power_w, reading.power_factor_milli) == (1_207, 999)
    assert reading.clock == datetime(2026, 11, 23, 15, 40, 21)  # noqa: DTZ001


def test_what_a_data_message_does_not_say_is_absent(mqtt: MqttProfile) -> None:
    absent = dict.fromkeys(
        ("ua", "ub", "uc", "ia", "ib", "ic", "p", "pf", "pt", "ct", "relay"), ...
    )
    message = acrel_mqtt.parse_message(mqtt, data_topic(), encoded(data_message(**absent)))
    assert isinstance(message, acrel_mqtt.Data)
    reading = acrel_mqtt.decode_data(mqtt, message.body)
    assert reading.closed_mask is None
    assert reading.ratio == 1
    assert reading.voltages_mv == (-1, -1, -1)
    assert reading.power_w == frames.ABSENT_POWER
    assert reading.power_factor_milli == frames.ABSENT_POWER_FACTOR


def test_a_kwh_keeps_its_last_digit_whatever_floats_make_of_it(mqtt: MqttProfile) -> None:
    # 0.29 * 1000 is 290 only in decimal, and 99999999.99 has more digits than a float keeps apart.
    for text, milli in [(b"0.29", 290), (b"999999.99", 999_999_990), (b"1e2", 100_000)]:
        body = encoded(data_message(wh=7)).replace(b'"wh": 7', b'"wh": ' + text)
        message = acrel_mqtt.parse_message(mqtt, data_topic(), body)
        assert isinstance(message, acrel_mqtt.Data)
        assert acrel_mqtt.decode_data(mqtt, message.body).register_milli == milli


@pytest.mark.parametrize(
    ("command", "body", "kind"),
    [
        ("login", {"type": "login", "gwSN": "123"}, acrel_mqtt.Login),
        ("time", {"type": "time", "gwSN": "123"}, acrel_mqtt.TimeRequest),
        ("heart", {"type": "heart", "gwSN": "123"}, acrel_mqtt.Heart),
        ("event", {"type": "event"}, acrel_mqtt.Other),
    ],
)
def test_the_other_messages_are_told_apart(
    mqtt: MqttProfile, command: str, body: dict[str, str], kind: type
) -> None:
    topic = f"/gw/acrelHW/null/{command}/123"
    message = acrel_mqtt.parse_message(mqtt, topic, encoded(body))
    assert isinstance(message, kind)
    assert message.source.address == "null/123"


@pytest.mark.parametrize(("res", "is_ok"), [(1, True), (0, False)])
def test_a_control_reply_names_the_request(mqtt: MqttProfile, res: int, is_ok: bool) -> None:
    body = {"type": "control", "msgid": "r-1", "gwSN": "123", "meterSN": "77001", "res": res}
    message = acrel_mqtt.parse_message(mqtt, "/gw/acrelHW/A/control/123", encoded(body))
    assert isinstance(message, acrel_mqtt.ControlReply)
    assert (message.request_id, message.meter_serial, message.is_ok) == ("r-1", "77001", is_ok)


BROKEN_PAYLOADS = {
    "empty": b"",
    "text": b"hello",
    "half": encoded(data_message())[:100],
    "no object": b"[1, 2]",
    "invalid UTF-8": b'{"gwSN": "\xff\xfe"}',
    "NaN": encoded(data_message()).replace(b"1234.56", b"NaN"),
    "Infinity": encoded(data_message()).replace(b"1234.56", b"-Infinity"),
    "deep": b"[" * 5_000 + b"]" * 5_000,
    "digits beyond reason": encoded(data_message()).replace(b"1234.56", b"9" * 5_000),
}


@pytest.mark.parametrize("payload", BROKEN_PAYLOADS.values(), ids=BROKEN_PAYLOADS)
def test_what_is_no_json_object_is_malformed(mqtt: MqttProfile, payload: bytes) -> None:
    with pytest.raises(Unusable) as refused:
        acrel_mqtt.parse_message(mqtt, data_topic(), payload)
    assert refused.value.fault is Fault.MALFORMED


def test_a_megabyte_is_refused_before_it_is_parsed(mqtt: MqttProfile) -> None:
    with pytest.raises(Unusable) as refused:
        acrel_mqtt.parse_message(mqtt, data_topic(), b"[" * 1_000_000)
    assert refused.value.fault is Fault.TOO_LARGE


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"wh": ...}, Fault.FIELD_MISSING),
        ({"wh": "1234.56"}, Fault.FIELD_WRONG),
        ({"wh": True}, Fault.FIELD_WRONG),
        ({"wh": [1]}, Fault.FIELD_WRONG),
        ({"wh": {"v": 1}}, Fault.FIELD_WRONG),
        ({"wh": 10**17}, Fault.FIELD_WRONG),
        ({"wh": -0.01}, Fault.REGISTER_NEGATIVE),
        ({"wh": 100_000_000}, Fault.REGISTER_ABOVE_MAXIMUM),
        ({"ct": 0}, Fault.RATIO_IMPOSSIBLE),
        ({"ct": -1}, Fault.RATIO_IMPOSSIBLE),
        ({"ct": 1.5}, Fault.RATIO_IMPOSSIBLE),
        ({"pt": "1"}, Fault.RATIO_IMPOSSIBLE),
        ({"pt": 2**31 - 1}, Fault.RATIO_IMPOSSIBLE),
        ({"time": "20261323154021"}, Fault.CLOCK_IMPOSSIBLE),
        ({"time": "2026-11-23 15:40:21"}, Fault.CLOCK_IMPOSSIBLE),
        ({"time": "202611231540"}, Fault.CLOCK_IMPOSSIBLE),
        ({"time": "00001123154021"}, Fault.CLOCK_IMPOSSIBLE),
        ({"time": 20261123154021}, Fault.FIELD_WRONG),
        ({"time": ...}, Fault.FIELD_MISSING),
        ({"relay": 2}, Fault.FIELD_WRONG),
        ({"relay": True}, Fault.FIELD_WRONG),
        ({"ua": -230}, Fault.FIELD_WRONG),
        ({"ia": 10**9}, Fault.FIELD_WRONG),
    ],
)
def test_an_absurd_field_is_refused(
    mqtt: MqttProfile, changed: dict[str, object], fault: Fault
) -> None:
    message = acrel_mqtt.parse_message(mqtt, data_topic(), encoded(data_message(**changed)))
    assert isinstance(message, acrel_mqtt.Data)
    with pytest.raises(Unusable) as refused:
        acrel_mqtt.decode_data(mqtt, message.body)
    assert refused.value.fault is fault
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "number", [b"1e999999999", b"1e-999999999", b"-1e999999999", b"1e400", b"0e999999999"]
)
def test_an_exponent_beyond_reason_neither_hangs_nor_fills_the_memory(
    mqtt: MqttProfile, number: bytes
) -> None:
    body = encoded(data_message()).replace(b"1234.56", number)
    try:
        message = acrel_mqtt.parse_message(mqtt, data_topic(), body)
        assert isinstance(message, acrel_mqtt.Data)
        register = acrel_mqtt.decode_data(mqtt, message.body).register_milli
    except Unusable:
        return
    assert register == 0


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"meterSN": ...}, Fault.FIELD_MISSING),
        ({"meterSN": 77001}, Fault.FIELD_WRONG),
        ({"meterSN": "7" * 21}, Fault.FIELD_WRONG),
        ({"meterSN": "77\u0000"}, Fault.FIELD_WRONG),
        ({"meterSN": "\ud800"}, Fault.FIELD_WRONG),
        ({"gwSN": "another"}, Fault.WRONG_GATEWAY),
    ],
)
def test_a_message_without_a_usable_name_is_refused(
    mqtt: MqttProfile, changed: dict[str, object], fault: Fault
) -> None:
    with pytest.raises(Unusable) as refused:
        acrel_mqtt.parse_message(mqtt, data_topic(), encoded(data_message(**changed)))
    assert refused.value.fault is fault


@pytest.mark.parametrize("topic", ["", "/gw/acrelHW/A/data", "/gw/acrelHW/A/data/1/2", "/x/y/z"])
def test_a_topic_of_another_dialect_is_refused(mqtt: MqttProfile, topic: str) -> None:
    with pytest.raises(Unusable) as refused:
        acrel_mqtt.parse_message(mqtt, topic, b"{}")
    assert refused.value.fault is Fault.MALFORMED


def test_a_gateway_is_told_its_sites_local_time(mqtt: MqttProfile) -> None:
    local = datetime(2026, 11, 23, 15, 40, 21, tzinfo=SHANGHAI)
    assert acrel_mqtt.time_answer(mqtt, local) == b'{"type": "time", "time": "20261123154021"}'
    assert acrel_mqtt.login_answer() == b'{"type": "login", "res": 1}'
