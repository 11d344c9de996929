"""Goal: every MQTT broker the product runs on keeps what ingest's session relies on.

Method: one class with every promise as a test; whoever has a broker inherits it and gives `broker`.
A subscriber is paho with a persistent session and manual acknowledgement, as ingest is.
"""

import asyncio
import queue
import time
from dataclasses import dataclass
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from tools.stack.mqtt import accepts

DEADLINE_S = 30.0


@dataclass(frozen=True)
class BrokerAddress:
    """Where a broker listens."""

    host: str
    port: int


class Subscriber:
    """A paho client with a persistent session that acknowledges only what it is told to."""

    def __init__(self, at: BrokerAddress) -> None:
        self.messages: queue.Queue[MQTTMessage] = queue.Queue()
        self.answers: queue.Queue[bool] = queue.Queue()
        self._at = at

    def connect(self) -> bool:
        """Connect as a new process would; return whether the broker had kept the session."""
        self.client = Client(
            CallbackAPIVersion.VERSION2, client_id="keeper", clean_session=False, manual_ack=True
        )
        self.client.on_message = lambda _client, _data, message: self.messages.put(message)
        self.client.on_connect = self._connected
        self.client.on_subscribe = lambda *_: self.answers.put(True)
        self.client.connect(self._at.host, self._at.port)
        self.client.loop_start()
        return self.answers.get(timeout=DEADLINE_S)

    def subscribe(self, topic: str) -> None:
        self.client.subscribe(topic, qos=1)
        assert self.answers.get(timeout=DEADLINE_S)

    def next(self, *, ack: bool) -> MQTTMessage:
        message = self.messages.get(timeout=DEADLINE_S)
        if ack:
            assert self.client.ack(message.mid, message.qos) == 0
        return message

    def leave(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def break_off(self) -> None:
        """Lose the connection without a DISCONNECT, as a killed process does."""
        self.client.loop_stop()
        connection: Any = self.client.socket()
        connection.close()
        self.client._sock = None

    def _connected(self, *arguments: Any) -> None:
        self.answers.put(bool(arguments[2].session_present))


def publish(at: BrokerAddress, *payloads: bytes, qos: int = 1) -> None:
    """Publish from a device that leaves as soon as everything is sent, or acknowledged."""
    client = Client(CallbackAPIVersion.VERSION2, client_id="device")
    client.connect(at.host, at.port)
    client.loop_start()
    sent = [client.publish("meters/1", payload, qos=qos) for payload in payloads]
    for information in sent:
        information.wait_for_publish(DEADLINE_S)
    client.disconnect()
    client.loop_stop()


def outlast_housekeeping(at: BrokerAddress) -> None:
    """Let pass what amqtt needs to look through its sessions (a second, not observable)."""
    deadline = time.monotonic() + 1.3
    while time.monotonic() < deadline:
        assert asyncio.run(accepts(at.host, at.port))


class MqttBrokerContract:
    """What a broker promises. `broker`: a fixture, the address of one that nobody else uses."""

    def test_messages_wait_for_an_absent_subscriber_in_order(self, broker: BrokerAddress) -> None:
        subscriber = Subscriber(broker)
        assert subscriber.connect() is False
        subscriber.subscribe("meters/#")
        subscriber.leave()
        payloads = [str(number).encode() for number in range(50)]
        publish(broker, *payloads)
        outlast_housekeeping(broker)
        assert subscriber.connect() is True
        received = [subscriber.next(ack=True) for _ in payloads]
        assert [message.payload for message in received] == payloads
        assert not any(message.retain for message in received)
        subscriber.leave()

    def test_what_was_published_with_qos_0_is_not_kept_for_an_absent_subscriber(
        self, broker: BrokerAddress
    ) -> None:
        subscriber = Subscriber(broker)
        subscriber.connect()
        subscriber.subscribe("meters/#")
        publish(broker, b"there", qos=0)
        there = subscriber.next(ack=False)
        assert (there.payload, there.qos) == (b"there", 0)
        subscriber.leave()
        publish(broker, b"away", qos=0)
        publish(broker, b"kept", qos=1)
        assert subscriber.connect() is True
        assert subscriber.next(ack=True).payload == b"kept"
        subscriber.leave()

    def test_what_was_not_acknowledged_comes_again_after_a_lost_connection(
        self, broker: BrokerAddress
    ) -> None:
        subscriber = Subscriber(broker)
        subscriber.connect()
        subscriber.subscribe("meters/#")
        publish(broker, b"acknowledged", b"not", b"neither")
        assert subscriber.next(ack=True).payload == b"acknowledged"
        assert subscriber.next(ack=False).payload == b"not"
        assert subscriber.next(ack=False).payload == b"neither"
        subscriber.break_off()
        assert subscriber.connect() is True
        again = [subscriber.next(ack=True) for _ in range(2)]
        assert [(message.payload, message.dup) for message in again] == [
            (b"not", True),
            (b"neither", True),
        ]
        publish(broker, b"after")
        assert subscriber.next(ack=True).payload == b"after"
        subscriber.leave()
        assert subscriber.connect() is True
        publish(broker, b"last")
        assert subscriber.next(ack=True).payload == b"last"
        subscriber.leave()

    def test_a_subscriber_that_comes_back_at_once_gets_what_is_published_next(
        self, broker: BrokerAddress
    ) -> None:
        subscriber = Subscriber(broker)
        subscriber.connect()
        subscriber.subscribe("meters/#")
        # How the end of the old connection meets the start of the new one is decided by chance.
        for payload in (str(number).encode() for number in range(100)):
            subscriber.leave()
            assert subscriber.connect() is True
            publish(broker, payload)
            assert subscriber.next(ack=True).payload == payload
        subscriber.leave()
