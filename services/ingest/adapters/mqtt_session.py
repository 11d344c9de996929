"""The MQTT session, on paho: persistent, acknowledged by hand, in order.

paho runs a thread of its own. Messages cross to the event loop; acknowledgements are given from
there. A message may be acknowledged only on the connection that delivered it: its number means
another message on the next one, where what is unacknowledged comes again.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

import paho.mqtt.client as paho
import structlog
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from services.common.kernel.values import value_class
from services.common.runtime import mqtt, points
from services.ingest.adapters.metrics import Metrics
from services.ingest.adapters.mqtt_intake import Durable
from services.ingest.config import IngestSettings

QOS = 1
ANSWERS_MAX = 1_000
"""Answers that may wait for a connection."""
GRANTED = ReasonCode(PacketTypes.SUBACK, "Granted QoS 1")

Handler = Callable[[str, bytes], Durable | None]


@value_class
class Delivery:
    """One message as a connection delivered it. `mid` means something on that connection only."""

    connection: int
    mid: int
    qos: int
    topic: str
    payload: bytes


class Acknowledgements:
    """Acknowledges deliveries in the order in which they came, each when it is durable."""

    def __init__(self, acknowledge: Callable[[Delivery], None]) -> None:
        self._acknowledge = acknowledge
        self._waiting: deque[tuple[Delivery, Durable | None]] = deque()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, delivery: Delivery, durable: Durable | None) -> None:
        """Acknowledge `delivery` when `durable` has ended, and all before it are acknowledged."""
        self._waiting.append((delivery, durable))
        self._empty.clear()
        if durable is not None and not durable.done():
            durable.add_done_callback(lambda _: self._advance())
        else:
            self._advance()

    async def emptied(self) -> None:
        """Wait until every delivery is acknowledged."""
        await self._empty.wait()

    def _advance(self) -> None:
        while self._waiting:
            delivery, durable = self._waiting[0]
            if durable is not None and not durable.done():
                return
            self._waiting.popleft()
            self._acknowledge(delivery)
        self._empty.set()


class MqttSession:
    """The worker's session at the broker. `handler` is called on the event loop."""

    def __init__(
        self,
        settings: IngestSettings,
        topic_filter: str,
        handler: Handler,
        *,
        on_connected: Callable[[bool, str], None],
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._settings = settings
        self._filter = topic_filter
        self._handler = handler
        self._on_connected = on_connected
        self._metrics = metrics
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._connection = 0
        self._is_taking = True
        self.acknowledgements = Acknowledgements(self._acknowledge)
        self._client = self._made(settings)

    def _made(self, settings: IngestSettings) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=settings.instance,
            clean_session=False,
            manual_ack=True,
        )
        mqtt.introduce(client, settings)
        client.reconnect_delay_set(1, settings.mqtt_reconnect_max_s)
        client.max_queued_messages_set(ANSWERS_MAX)
        client.on_pre_connect = self._next_connection
        client.on_connect = self._connected
        client.on_connect_fail = self._not_connected
        client.on_disconnect = self._disconnected
        client.on_subscribe = self._subscribed
        client.on_message = self._message
        return client

    def start(self) -> None:
        """Connect, and again whenever the connection is lost."""
        at = self._settings
        self._client.connect_async(at.mqtt_host, at.mqtt_port, at.mqtt_keepalive_s)
        self._client.loop_start()

    def publish(self, topic: str, payload: bytes) -> None:
        """Send an answer; it waits for a connection where there is none."""
        self._client.publish(topic, payload, QOS)

    def stop_taking(self) -> None:
        """Take no more messages; what comes is not acknowledged, and comes again."""
        self._is_taking = False

    async def disconnect(self) -> None:
        """Leave the broker, which keeps the session."""
        self._client.disconnect()
        await self._loop.run_in_executor(None, self._client.loop_stop)

    # On the event loop.

    def _deliver(self, delivery: Delivery) -> None:
        if not self._is_taking:
            return
        points.point("message-received")
        if delivery.qos == 0 and len(self.acknowledgements) >= self._settings.mqtt_inflight_max:
            self._metrics.mqtt_messages.labels("dropped").inc()
            return
        try:
            durable = self._handler(delivery.topic, delivery.payload)
        except Exception:  # noqa: BLE001 - a mistake of ours must not hold up all others
            self._metrics.mqtt_messages.labels("failed").inc()
            self._log.exception("message not handled", topic=delivery.topic)
            durable = None
        self.acknowledgements.add(delivery, durable)
        points.point("message-taken")
        self._metrics.mqtt_unacknowledged.set(len(self.acknowledgements))

    def _acknowledge(self, delivery: Delivery) -> None:
        if delivery.qos == 0:
            return
        with self._lock:
            # paho forgets what it had to send before it calls _next_connection, which waits here.
            if delivery.connection == self._connection:
                self._client.ack(delivery.mid, delivery.qos)
        points.point("message-acknowledged")
        self._metrics.mqtt_unacknowledged.set(len(self.acknowledgements))

    def _say(self, is_connected: bool, why: str) -> None:
        self._metrics.mqtt_connected.set(is_connected)
        if is_connected:
            self._log.info("MQTT session ready")
        else:
            self._log.warning("MQTT session not ready", why=why)
        self._on_connected(is_connected, why)

    # On paho's thread.

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended: so has the service
            self._loop.call_soon_threadsafe(function, *args)

    def _next_connection(self, *_: Any) -> None:
        with self._lock:
            self._connection += 1

    def _connected(
        self, client: paho.Client, _: Any, __: Any, reason: ReasonCode, *___: Any
    ) -> None:
        if reason.is_failure:
            why = f"the broker refused: {reason}; check MQTT_USERNAME and MQTT_PASSWORD"
            self._call(self._say, False, why)
            return
        client.subscribe(self._filter, QOS)

    def _subscribed(self, _: Any, __: Any, ___: int, reasons: list[ReasonCode], *____: Any) -> None:
        is_granted = bool(reasons) and reasons[0] == GRANTED
        self._call(self._say, is_granted, f"subscription to {self._filter}: {reasons}")

    def _not_connected(self, *_: Any) -> None:
        at = f"{self._settings.mqtt_host}:{self._settings.mqtt_port}"
        why = f"no broker at {at}; check MQTT_HOST and MQTT_PORT and that it runs"
        self._call(self._say, False, why)

    def _disconnected(self, _: Any, __: Any, ___: Any, reason: ReasonCode, *____: Any) -> None:
        self._next_connection()
        self._call(self._say, False, f"disconnected: {reason}")

    def _message(self, _: Any, __: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "?"  # no topic of the dialect: it is set aside like any other
        self._call(
            self._deliver,
            Delivery(self._connection, message.mid, message.qos, topic, bytes(message.payload)),
        )
