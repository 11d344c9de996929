"""Goal: no device can make a codec raise anything but InvalidInput, or change a figure.

Method: Hypothesis makes bytes, words and JSON; what decodes is compared with decimal arithmetic of
far more digits than any of it has.
"""

import json
from decimal import ROUND_DOWN, Context, Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.errors import InvalidInput
from services.common.kernel.profiles import ModbusProfile, MqttProfile
from services.common.runtime.profiles import profiles
from services.ingest.domain import acrel_mqtt
from services.ingest.domain.live_block import decode_live, decode_serial
from tests.unit.ingest_devices import LIVE_WORDS, data_message, data_topic, encoded

EXACT = Context(prec=100)


def _modbus() -> ModbusProfile:
    profile = profiles()["acrel-dtsy1352"]
    assert isinstance(profile, ModbusProfile)
    return profile


def _mqtt() -> MqttProfile:
    profile = profiles()["acrel-mqtt"]
    assert isinstance(profile, MqttProfile)
    return profile


WORDS = st.integers(0, 0xFFFF)


@given(st.lists(WORDS, max_size=60))
def test_any_words_are_a_reading_or_invalid(words: list[int]) -> None:
    for decode in (decode_live, decode_serial):
        try:
            decode(_modbus(), words)
        except InvalidInput:
            continue


@given(st.dictionaries(st.integers(0, 47), WORDS, max_size=6))
def test_a_live_block_with_some_words_changed_is_a_reading_or_invalid(
    changed: dict[int, int],
) -> None:
    words = [changed.get(at, word) for at, word in enumerate(LIVE_WORDS)]
    try:
        reading = decode_live(_modbus(), words)
    except InvalidInput:
        return
    assert reading.register_milli == (words[0x15] << 16 | words[0x16]) * 10
    assert 1 <= reading.ratio < 2**31
    assert reading.ratio == words[0x13] * words[0x14]


@given(st.text(max_size=60), st.binary(max_size=200))
def test_any_message_is_typed_or_invalid(topic: str, payload: bytes) -> None:
    for told in (topic, data_topic()):
        try:
            acrel_mqtt.parse_message(_mqtt(), told, payload)
        except InvalidInput:
            continue


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=True)
    | st.text(st.characters(codec=None), max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@given(st.sampled_from(sorted(data_message())), JSON)
def test_a_data_message_with_any_value_in_a_field_is_a_reading_or_invalid(
    field: str, value: Any
) -> None:
    body = json.dumps({**data_message(), field: value}).encode("utf-8", "surrogatepass")
    try:
        message = acrel_mqtt.parse_message(_mqtt(), data_topic(), body)
        assert isinstance(message, acrel_mqtt.Data)
        reading = acrel_mqtt.decode_data(_mqtt(), message.body)
    except InvalidInput:
        return
    assert 0 <= reading.register_milli <= 999_999_990
    assert message.meter_serial.isascii()


@given(st.decimals(-(10**10), 10**10, allow_nan=False, places=None))
def test_a_number_keeps_every_digit_it_has_and_no_more(number: Decimal) -> None:
    body = encoded(data_message(p=7)).replace(b'"p": 7', b'"p": ' + str(number).encode())
    message = acrel_mqtt.parse_message(_mqtt(), data_topic(), body)
    assert isinstance(message, acrel_mqtt.Data)
    expected = EXACT.multiply(number, Decimal(1000)).to_integral_value(ROUND_DOWN)
    assert acrel_mqtt.decode_data(_mqtt(), message.body).power_w == expected
