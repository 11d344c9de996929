"""Goal: a virtual MQTT gateway speaks Acrel's JSON dialect and obeys only commands in time.

Method: the link to the broker is a fake that keeps what is sent, the clock and the delayed calls
are moved by hand, and messages are compared as the platform would read them.
"""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tools.fleet.config import GatewayConfig, LoadConfig, MeterConfig, Protocol
from tools.fleet.load import make_load
from tools.fleet.meter import EPOCH, Fault, FaultKind, Meter, Position, Presence
from tools.fleet.mqtt import MqttGateway, decimal, down_topics

# 2026-03-01 13:14:15 in Shanghai.
NOW_MS = 1_772_342_055_000
GATEWAY_SERIAL = "12308017890017"
SERIAL = "23010000000001"
UP = "/gw/acrelHW/AWT100/{}/12308017890017"
DOWN = "/server/acrelHW/AWT100/{}/12308017890017"


class FakeLink:
    """tools.fleet.mqtt.Link without a broker."""

    def __init__(self) -> None:
        self.is_connected = True
        self.sent: list[tuple[str, bytes]] = []

    def open(self, connected: Callable[[], None], received: Callable[[str, bytes], None]) -> None:
        raise AssertionError(f"tests call {connected} and {received} themselves")

    def publish(self, topic: str, payload: bytes) -> None:
        assert self.is_connected
        self.sent.append((topic, payload))

    def close(self) -> None:
        self.is_connected = False


class World:
    """A gateway with one meter of 1 MW, its clock, and what it put off."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self.link = FakeLink()
        self.put_off: list[tuple[int, Callable[[], None]]] = []
        config = MeterConfig(
            id="meter-1",
            name="Shop 401",
            serial=SERIAL,
            gateway="gw",
            profile="acrel-mqtt",
            register_lsb=123_456,
            load=LoadConfig(power_w=1_000_000),
        )
        zone = ZoneInfo("Asia/Shanghai")
        self.meter = Meter(
            config,
            make_load(config.load),
            protocol=Protocol.MQTT_ACREL,
            zone=zone,
            now_ms=NOW_MS,
            load_on=True,
        )
        self.config = GatewayConfig(
            id="gw", protocol=Protocol.MQTT_ACREL, product="AWT100", serial=GATEWAY_SERIAL
        )
        self.gateway = MqttGateway(
            self.config,
            [self.meter],
            self.link,
            zone=zone,
            now_ms=lambda: self.now_ms,
            later=lambda delay_ms, action: self.put_off.append((delay_ms, action)),
        )

    def tell(self, command: str, message: object) -> None:
        self.gateway.received(DOWN.format(command), json.dumps(message).encode())

    def control(self, relay: object, *, expires_in_s: int | None = 5, **more: Any) -> None:
        message = {
            "type": "control",
            "msgid": "request-1",
            "gwSN": GATEWAY_SERIAL,
            "meterSN": SERIAL,
            "relay": relay,
            **more,
        }
        if expires_in_s is not None:
            ends = EPOCH + timedelta(milliseconds=self.now_ms) + timedelta(seconds=expires_in_s)
            message["expire"] = ends.strftime("%Y%m%d%H%M%S")
        self.tell("control", message)

    def taken(self) -> list[tuple[str, dict[str, object]]]:
        """Return (command, message) of what was sent since the last time."""
        sent, self.link.sent = self.link.sent, []
        for topic, _ in sent:
            assert topic == UP.format(topic.split("/")[4])
        return [
            (topic.split("/")[4], json.loads(payload, parse_float=Decimal))
            for topic, payload in sent
        ]


@pytest.fixture
def world() -> World:
    return World()


def test_data_is_the_dialects_flat_message_with_an_exact_register(world: World) -> None:
    world.gateway.publish_all()
    [(command, message)] = world.taken()
    assert command == "data"
    voltage = Decimal(world.meter.snapshot(NOW_MS).voltage_dv) / 10
    assert message.pop("ua") == voltage
    assert message.pop("ia") == (1_000_000_000 // (voltage * Decimal("0.98"))) / 1_000
    assert message == {
        "type": "data",
        "time": "20260301131415",
        "gwSN": GATEWAY_SERIAL,
        "meterSN": SERIAL,
        "meterName": "Shop 401",
        "meterStatus": "normal",
        "ch": 1,
        "ub": 0,
        "uc": 0,
        "ib": 0,
        "ic": 0,
        "pa": 1_000,
        "pb": 0,
        "pc": 0,
        "p": 1_000,
        "pf": Decimal("0.98"),
        "pt": 1,
        "ct": 1,
        "wh": Decimal("1234.56"),
        "relay": 1,
    }


@pytest.mark.parametrize(
    ("value", "places", "text"),
    [(0, 2, "0.00"), (5, 2, "0.05"), (123_450, 2, "1234.50"), (99_999_999, 2, "999999.99")],
)
def test_decimals_keep_every_place(value: int, places: int, text: str) -> None:
    assert decimal(value, places) == text


def test_a_login_is_repeated_until_it_is_answered_and_then_the_time_is_asked(world: World) -> None:
    world.gateway.connected()
    world.gateway.log_in_if_needed()
    login = {"type": "login", "gwSN": GATEWAY_SERIAL, "time": "20260301131415"}
    assert world.taken() == [("login", login), ("login", login)]
    for _ in range(2):
        world.tell("login", {"type": "login", "res": 1})
        world.gateway.log_in_if_needed()
    assert world.taken() == [("time", {"type": "time", "gwSN": GATEWAY_SERIAL})]


def test_it_listens_to_all_commands_for_itself_only(world: World) -> None:
    assert down_topics(world.config) == [f"/server/acrelHW/AWT100/+/{GATEWAY_SERIAL}"]


def test_a_command_is_answered_at_once_and_followed_by_data_when_the_contacts_moved(
    world: World,
) -> None:
    world.control(0)
    [(command, reply)] = world.taken()
    assert (command, reply["msgid"], reply["meterSN"], reply["res"]) == (
        "control",
        "request-1",
        SERIAL,
        1,
    )
    [(delay_ms, push)] = world.put_off
    assert 30 <= delay_ms <= 80
    assert world.meter.snapshot(world.now_ms).position is Position.CLOSED
    world.now_ms += delay_ms
    push()
    [(command, data)] = world.taken()
    assert (command, data["relay"]) == ("data", 0)
    assert world.meter.transitions[0].at_ms == NOW_MS + delay_ms


def test_a_command_for_where_the_relay_is_already_is_followed_by_data_at_once(
    world: World,
) -> None:
    world.control(1, expires_in_s=None)
    (first, reply), (second, data) = world.taken()
    assert (first, reply["res"], second, data["relay"]) == ("control", 1, "data", 1)
    assert not world.put_off


@pytest.mark.parametrize(
    ("relay", "more"),
    [
        (0, {"expires_in_s": -1}),
        (0, {"expires_in_s": None, "expire": "tomorrow"}),
        (2, {}),
        (True, {}),
        ("0", {}),
        (0, {"meterSN": "1"}),
        (0, {"gwSN": "1"}),
    ],
)
def test_what_is_late_or_makes_no_sense_is_refused_and_moves_nothing(
    world: World, relay: object, more: dict[str, Any]
) -> None:
    world.control(relay, **more)
    [(command, reply)] = world.taken()
    assert (command, reply["res"]) == ("control", 0)
    assert world.meter.commands_accepted == 0
    assert world.gateway.controls_refused_count == 1


def test_a_command_is_in_time_up_to_the_second_it_names(world: World) -> None:
    ends = datetime.fromtimestamp(NOW_MS // 1_000, UTC).strftime("%Y%m%d%H%M%S")
    world.control(0, expires_in_s=None, expire=ends)
    world.now_ms += 1
    world.control(1, expires_in_s=None, expire=ends)
    assert [reply["res"] for _, reply in world.taken()] == [1, 0]


def test_messages_that_are_no_objects_or_not_known_are_dropped(world: World) -> None:
    world.gateway.received(DOWN.format("control"), b"{")
    world.gateway.received(DOWN.format("control"), b"[1]")
    world.gateway.received("elsewhere", b"{}")
    world.tell("restart", {"type": "restart"})
    assert world.taken() == []


def test_a_missing_meter_is_reported_as_missing_and_refuses(world: World) -> None:
    world.meter.go_offline(Presence.MISSING, None)
    world.gateway.publish_all()
    world.control(0)
    (_, data), (_, reply) = world.taken()
    assert data["meterStatus"] == "missing"
    assert "wh" not in data
    assert reply["res"] == 0


def test_a_silent_meter_sends_nothing_and_returns_with_what_it_counted(world: World) -> None:
    world.meter.go_offline(Presence.SILENT, None)
    world.gateway.publish_all()
    world.control(0)
    assert world.taken() == []
    world.now_ms += 3_600
    world.meter.go_online()
    world.gateway.publish_all()
    [(_, data)] = world.taken()
    assert data["wh"] == Decimal("1235.56")


def test_it_falls_silent_with_the_reading_that_shows_so_much(world: World) -> None:
    world.meter.go_offline(Presence.SILENT, after_register_lsb=123_457)
    for _ in range(3):
        world.gateway.publish_all()
        world.now_ms += 1_000
    assert [data["wh"] for _, data in world.taken()] == [Decimal("1234.56"), Decimal("1234.83")]


def test_nothing_is_sent_or_kept_without_a_connection(world: World) -> None:
    world.link.is_connected = False
    world.gateway.publish_all()
    world.gateway.beat()
    world.link.is_connected = True
    assert world.taken() == []


def test_faults_spoil_as_many_messages_as_they_say(world: World) -> None:
    world.meter.set_fault(Fault(FaultKind.MALFORMED, 1))
    world.gateway.publish_all()
    with pytest.raises(json.JSONDecodeError):
        world.taken()
    world.meter.set_fault(Fault(FaultKind.WRONG_SERIAL, 1, serial="UNKNOWN1"))
    world.gateway.publish_all()
    world.gateway.publish_all()
    assert [data["meterSN"] for _, data in world.taken()] == ["UNKNOWN1", SERIAL]
    assert world.meter.reads_served == 1
