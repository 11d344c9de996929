"""Goal: MQTT messages are judged, answered, and acknowledged in order and only when durable.

Method: the intake with lists in place of Kafka and the broker; futures that the test ends.
"""

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from services.common.runtime.kafka import Outgoing
from services.common.runtime.profiles import profiles
from services.ingest.adapters.intake import Intake
from services.ingest.adapters.metrics import Metrics
from services.ingest.adapters.mqtt_intake import MqttIntake
from services.ingest.adapters.mqtt_session import Acknowledgements, Delivery, Handler, MqttSession
from services.ingest.config import IngestSettings
from services.ingest.domain.presence import Presence
from services.ingest.domain.reading import MeterReading
from services.ingest.domain.registry import Registry
from services.ingest.domain.relay import RelayReports
from tests.unit.ingest_devices import (
    LIVE_TIME_MS,
    SITE,
    data_message,
    data_topic,
    encoded,
    gateway_fact,
    meter_fact,
)

GATEWAY = gateway_fact(protocol="mqtt-acrel", address="AWT100/12308017890017")
METER = meter_fact(serial="77001", profile="acrel-mqtt", unit=0, ratio=20)


@dataclass
class World:
    """Clock, frames, outbox and broker of an intake under test."""

    now: int = LIVE_TIME_MS + 500
    readings: list[MeterReading] = field(default_factory=list)
    durable: list[asyncio.Future[None]] = field(default_factory=list)
    sent: list[Outgoing] = field(default_factory=list)
    published: list[tuple[str, Any]] = field(default_factory=list)
    has_room: bool = True

    def __post_init__(self) -> None:
        self.registry = Registry()
        self.collected = CollectorRegistry()
        self.intake = Intake(
            worker="ingest-0",
            registry=self.registry,
            profiles=profiles(),
            presence=Presence("ingest-0", 30_000),
            relays=RelayReports(10_000),
            frames=self,
            outbox=self,
            clock=self,
            metrics=Metrics(self.collected),
            log=structlog.get_logger("test"),
        )
        mqtt = profiles()["acrel-mqtt"]
        self.mqtt = MqttIntake(mqtt, self.intake, self._publish)  # type: ignore[arg-type]

    def now_ms(self) -> int:
        return self.now

    def monotonic_ms(self) -> int:
        return self.now

    def offer(self, reading: MeterReading) -> asyncio.Future[None]:
        self.readings.append(reading)
        self.durable.append(asyncio.get_running_loop().create_future())
        return self.durable[-1]

    def put(self, outgoing: Outgoing) -> asyncio.Future[bool]:
        self.sent.append(outgoing)
        return asyncio.get_running_loop().create_future()

    def _publish(self, topic: str, payload: bytes) -> None:
        self.published.append((topic, json.loads(payload)))

    def register(self, *facts: tuple[str, dict[str, Any]]) -> None:
        for subject, record in facts:
            assert self.registry.absorb(subject, record)

    def data(self, **changed: Any) -> Any:
        return self.mqtt.handle(data_topic(), encoded(data_message(**changed)))

    def records(self, topic: str) -> list[dict[str, Any]]:
        return [outgoing.record for outgoing in self.sent if outgoing.topic == topic]

    def statuses(self, device_id: str) -> list[tuple[str, str]]:
        told = self.records("device-status")
        return [(r["status"], r["reason"]) for r in told if r["device_id"] == device_id]


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def known(world: World) -> World:
    world.register(("site-fact", SITE), ("gateway-fact", GATEWAY), ("meter-fact", METER))
    return world


async def test_a_reading_is_durable_when_its_frame_is(known: World) -> None:
    durable = known.data()
    assert durable is known.durable[0]
    [reading] = known.readings
    assert (reading.meter.meter_id, reading.device_time_ms) == ("M1", LIVE_TIME_MS)
    assert reading.began_at_ms == reading.received_at_ms == known.now
    assert known.statuses("meters/M1") == [("online", "")]
    assert known.statuses("gateways/G1") == [("online", "")]
    [state] = known.records("relay-states")
    assert (state["position"], state["by"], state["request_id"]) == ("closed", "push", None)


async def test_what_a_gateway_had_kept_is_a_reading_and_no_position_of_the_relay(
    known: World,
) -> None:
    for kept_ms, told in ((900_001, 0), (900_000, 1)):
        known.now = LIVE_TIME_MS + kept_ms
        known.data()
        assert len(known.records("relay-states")) == told
    assert len(known.readings) == 2


async def test_an_unknown_meter_is_quarantined_and_counts_from_its_registration(
    world: World,
) -> None:
    world.register(("site-fact", SITE), ("gateway-fact", GATEWAY))
    for _ in range(3):
        assert world.data() is None, "acknowledged at once: it is not billed"
    assert world.readings == []
    assert world.statuses("unknown/mqtt/77001") == [("quarantined", "unknown-device")]
    [record] = [r for r in world.records("device-status") if r["kind"] == "unknown"]
    assert record["line_id"] == "line-G1"
    world.register(("meter-fact", METER))
    assert world.data() is not None
    assert len(world.readings) == 1
    assert world.statuses("unknown/mqtt/77001")[-1] == ("offline", "registered")
    assert world.statuses("meters/M1") == [("online", "")]


async def test_what_is_told_of_an_unknown_device_is_in_one_order_wherever_it_speaks(
    world: World,
) -> None:
    """A partition has an order, several have none: the newest word would not be known."""
    world.register(("site-fact", SITE), ("gateway-fact", GATEWAY))
    world.data()
    world.mqtt.handle(data_topic("999"), encoded(data_message(gwSN="999")))
    world.now += 60_000
    world.intake.refresh()
    world.register(("meter-fact", METER))
    world.data()
    told = [each for each in world.sent if each.key == "unknown/mqtt/77001"]
    assert len(told) == 3
    assert {each.route for each in told} == {"unknown"}


async def test_a_known_meter_behind_another_gateway_is_quarantined(known: World) -> None:
    topic = data_topic("999")
    assert known.mqtt.handle(topic, encoded(data_message(gwSN="999"))) is None
    assert known.readings == []
    assert known.statuses("unknown/mqtt/77001") == [("quarantined", "wrong-gateway")]
    assert known.statuses("meters/M1") == []


async def test_an_absurd_reading_is_set_aside_and_the_next_one_counts(known: World) -> None:
    assert known.data(wh=10**9) is None
    assert known.data(ct=0) is None
    assert known.data(time="20991123154021") is None
    assert known.readings == []
    assert [reason for _, reason in known.statuses("meters/M1")] == [
        "register-above-maximum",
        "ratio-impossible",
        "clock-ahead",
    ]
    assert known.data() is not None
    assert known.statuses("meters/M1")[-1] == ("online", "")


async def test_a_meter_that_its_gateway_misses_is_offline(known: World) -> None:
    known.data()
    assert known.data(meterStatus="missing", wh=...) is None
    assert known.statuses("meters/M1")[-1] == ("offline", "missing")
    assert known.statuses("gateways/G1") == [("online", "")]
    known.data()
    assert known.statuses("meters/M1")[-1] == ("online", "")


async def test_a_meter_whose_site_is_not_known_yet_is_set_aside(world: World) -> None:
    world.register(("gateway-fact", GATEWAY), ("meter-fact", METER))
    assert world.data() is None
    assert world.statuses("meters/M1") == [("quarantined", "site-unknown")]
    world.register(("site-fact", SITE))
    assert world.data() is not None


async def test_a_meter_registered_with_a_polled_profile_is_set_aside(known: World) -> None:
    known.register(("meter-fact", {**METER, "profile": "acrel-ddsy1352", "revision": 1}))
    assert known.data() is None
    assert known.statuses("meters/M1") == [("quarantined", "profile-unfit")]


async def test_a_login_is_answered_and_the_time_is_the_sites(known: World) -> None:
    for command in ("login", "time", "heart"):
        topic = f"/gw/acrelHW/AWT100/{command}/12308017890017"
        assert known.mqtt.handle(topic, encoded({"type": command})) is None
    assert known.published == [
        ("/server/acrelHW/AWT100/login/12308017890017", {"type": "login", "res": 1}),
        (
            "/server/acrelHW/AWT100/time/12308017890017",
            {"type": "time", "time": "20261123154021"},
        ),
    ]


async def test_an_unknown_gateway_is_answered_and_told_but_not_set_to_a_time(world: World) -> None:
    for command in ("login", "time"):
        topic = f"/gw/acrelHW/AWT100/{command}/12308017890017"
        world.mqtt.handle(topic, encoded({"type": command}))
    assert [topic for topic, _ in world.published] == [
        "/server/acrelHW/AWT100/login/12308017890017"
    ]
    unknown = "unknown/mqtt/AWT100/12308017890017"
    assert world.statuses(unknown) == [("quarantined", "unknown-device")]
    world.register(("site-fact", SITE), ("gateway-fact", GATEWAY))
    world.mqtt.handle("/gw/acrelHW/AWT100/heart/12308017890017", b"{}")
    assert world.statuses(unknown)[-1] == ("offline", "registered")
    assert world.statuses("gateways/G1") == [("online", "")]


async def test_a_control_reply_becomes_a_device_reply_and_the_next_position_is_told(
    known: World,
) -> None:
    known.data()
    topic = "/gw/acrelHW/AWT100/control/12308017890017"
    body = {"msgid": "r-1", "gwSN": "12308017890017", "meterSN": "77001", "res": 1}
    known.now += 100
    durable = known.mqtt.handle(topic, encoded(body))
    assert durable is not None
    assert not durable.done(), "acknowledged when Kafka has the reply"
    known.mqtt.handle(topic, encoded({**body, "msgid": "r-2", "res": 0}))
    replies = known.records("device-replies")
    assert [(r["request_id"], r["result"], r["requester"]) for r in replies] == [
        ("r-1", "ok", ""),
        ("r-2", "refused", ""),
    ]
    assert replies[0]["completed_at_ms"] == known.now
    known.now += 1
    known.data()
    states = known.records("relay-states")
    assert len(states) == 2, "told though it did not change"
    assert states[1]["began_at_ms"] > replies[1]["completed_at_ms"]


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[" * 100_000, b"{}"])
async def test_what_cannot_be_read_is_counted_and_never_blocks(
    known: World, payload: bytes
) -> None:
    assert known.mqtt.handle(data_topic(), payload) is None
    faults = known.collected.collect()
    counted = [s for m in faults for s in m.samples if s.name == "wattvend_ingest_set_aside_total"]
    assert sum(sample.value for sample in counted) == 1
    assert known.readings == []


# Acknowledgements.


def deliveries(count: int) -> list[Delivery]:
    return [Delivery(1, mid, 1, "t", b"") for mid in range(count)]


async def turn_of_the_loop() -> None:
    await asyncio.sleep(0)


async def test_messages_are_acknowledged_in_order_each_when_it_is_durable() -> None:
    acknowledged: list[int] = []
    acks = Acknowledgements(lambda delivery: acknowledged.append(delivery.mid))
    futures: list[asyncio.Future[None]] = [asyncio.Future() for _ in range(3)]
    first, second, third, fourth = deliveries(4)
    acks.add(first, futures[0])
    acks.add(second, None)
    acks.add(third, futures[1])
    acks.add(fourth, futures[2])
    assert acknowledged == []
    futures[2].set_result(None)
    await turn_of_the_loop()
    assert acknowledged == [], "nothing overtakes the first"
    futures[0].set_result(None)
    await turn_of_the_loop()
    assert acknowledged == [0, 1]
    futures[1].set_result(None)
    await turn_of_the_loop()
    assert acknowledged == [0, 1, 2, 3]
    assert len(acks) == 0
    await acks.emptied()


class FakePaho:
    """In place of paho's client: keeps what it is told to acknowledge."""

    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    def ack(self, mid: int, qos: int) -> None:
        assert qos == 1
        self.acknowledged.append(mid)


def session_on(handler: Handler) -> tuple[MqttSession, FakePaho]:
    session = MqttSession(
        IngestSettings(mqtt_inflight_max=100),
        "/gw/acrelHW/+/+/+",
        handler,
        on_connected=lambda *_: None,
        metrics=Metrics(CollectorRegistry()),
        log=structlog.get_logger("test"),
    )
    fake = FakePaho()
    session._client = fake  # type: ignore[assignment]
    session._next_connection()
    return session, fake


def message(mid: int, qos: int = 1) -> Any:
    return SimpleNamespace(mid=mid, qos=qos, topic=data_topic(), payload=b"{}")


async def test_a_message_is_acknowledged_only_on_the_connection_that_delivered_it() -> None:
    durable: list[asyncio.Future[None]] = []

    def handler(_: str, __: bytes) -> asyncio.Future[None]:
        durable.append(asyncio.get_running_loop().create_future())
        return durable[-1]

    session, fake = session_on(handler)
    session._message(None, None, message(7))
    await turn_of_the_loop()
    session._next_connection()
    session._message(None, None, message(7))  # the same number, perhaps another message
    await turn_of_the_loop()
    durable[0].set_result(None)
    await turn_of_the_loop()
    assert fake.acknowledged == []
    durable[1].set_result(None)
    await turn_of_the_loop()
    assert fake.acknowledged == [7]


async def test_a_mistake_of_ours_does_not_hold_up_the_messages_behind() -> None:
    def handler(_: str, __: bytes) -> None:
        raise ZeroDivisionError

    session, fake = session_on(handler)
    session._message(None, None, message(1))
    session._message(None, None, message(2))
    await turn_of_the_loop()
    assert fake.acknowledged == [1, 2]


async def test_messages_without_acknowledgement_cannot_fill_the_memory() -> None:
    waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    session, _ = session_on(lambda *_: waiting)
    for number in range(150):
        session._message(None, None, message(number, qos=0))
    await turn_of_the_loop()
    assert len(session.acknowledgements) == 100


async def test_what_comes_while_stopping_is_not_acknowledged() -> None:
    session, fake = session_on(lambda *_: None)
    session.stop_taking()
    session._message(None, None, message(1))
    await turn_of_the_loop()
    assert fake.acknowledged == []
