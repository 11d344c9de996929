"""MQTT gateways in Acrel's JSON dialect: several meters behind one session.

Everything is QoS 1 and never retained. The session is persistent, so the broker keeps commands for
a gateway that is away: whether one is too late when it arrives is told by its `expire`.
"""

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Protocol as Port
from zoneinfo import ZoneInfo

import structlog
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from tools.fleet.config import GatewayConfig
from tools.fleet.meter import EPOCH, FaultKind, Forced, Meter, Position, Presence, Snapshot
from tools.fleet.registers import POWER_FACTOR_MILLI

QOS = 1
KEEPALIVE_S = 15
RECONNECT_MIN_S, RECONNECT_MAX_S = 1, 5
LOGIN_AGAIN_MS = 5_000
TIME_FORMAT = "%Y%m%d%H%M%S"
ALL_FAULTS = frozenset(FaultKind)
# Commands the product sends that this gateway understands; others are logged.
DOWN_COMMANDS = ("login", "time", "control")

log = structlog.get_logger("fleet.mqtt")

Later = Callable[[int, Callable[[], None]], object]
"""Call something after so many ms."""


# --- messages ------------------------------------------------------------------------------------


def data_message(snapshot: Snapshot, gateway_serial: str) -> bytes:
    """Return a `data` message. Numbers are written as decimals by hand: no float is near them."""
    power_w = snapshot.power_uw // 1_000_000
    # I = P / (U x PF), in mA: W x 1000 / (dV / 10 x PF / 1000).
    current_ma = power_w * 10_000_000 // (snapshot.voltage_dv * POWER_FACTOR_MILLI)
    fields = {
        **identity(snapshot, gateway_serial, "normal"),
        "ua": decimal(snapshot.voltage_dv, 1),
        "ub": "0",
        "uc": "0",
        "ia": decimal(current_ma, 3),
        "ib": "0",
        "ic": "0",
        "pa": decimal(power_w, 3),
        "pb": "0",
        "pc": "0",
        "p": decimal(power_w, 3),
        "pf": decimal(POWER_FACTOR_MILLI, 3),
        "pt": str(snapshot.pt),
        "ct": str(snapshot.ct),
        "wh": decimal(snapshot.register_lsb, 2),
        "relay": "1" if snapshot.position is Position.CLOSED else "0",
    }
    return json_object(fields)


def missing_message(snapshot: Snapshot, gateway_serial: str) -> bytes:
    """Return what the gateway says of a meter that does not answer it."""
    return json_object(identity(snapshot, gateway_serial, "missing"))


def identity(snapshot: Snapshot, gateway_serial: str, status: str) -> dict[str, str]:
    texts = {
        "type": "data",
        "time": snapshot.local_time.strftime(TIME_FORMAT),
        "gwSN": gateway_serial,
        "meterSN": snapshot.serial,
        "meterName": snapshot.name,
        "meterStatus": status,
    }
    return {**{name: json.dumps(text) for name, text in texts.items()}, "ch": "1"}


def json_object(fields: Mapping[str, str]) -> bytes:
    """Return an object of values that are JSON already."""
    inside = ",".join(f"{json.dumps(name)}:{value}" for name, value in fields.items())
    return f"{{{inside}}}".encode()


def decimal(value: int, places: int) -> str:
    """Return value x 10^-places with all its places, e.g. (1234567, 2) as 12345.67."""
    assert value >= 0
    whole, rest = divmod(value, 10**places)
    return f"{whole}.{rest:0{places}}"


def is_in_time(expire: object, now_ms: int) -> bool:
    """Say whether a command with this `expire` (YYYYMMDDhhmmss UTC, or none) may be executed."""
    if expire is None:
        return True
    try:
        ends = datetime.strptime(str(expire), TIME_FORMAT).replace(tzinfo=UTC)
    except ValueError:
        return False
    return now_ms <= (ends - EPOCH) // timedelta(milliseconds=1)


# --- the link to the broker ----------------------------------------------------------------------


class Link(Port):
    """A session with a broker. Callbacks come in the gateway's event loop."""

    @property
    def is_connected(self) -> bool: ...

    def open(self, connected: Callable[[], None], received: Callable[[str, bytes], None]) -> None:
        """Connect, and again whenever the connection is lost."""
        ...

    def publish(self, topic: str, payload: bytes) -> None: ...

    def close(self) -> None: ...


class PahoLink:
    """A persistent session through paho, which works in a thread of its own."""

    def __init__(self, host: str, port: int, client_id: str, topics: Sequence[str]) -> None:
        self._host = host
        self._port = port
        self._client_id = client_id
        self._topics = topics
        self._client: paho.Client | None = None

    @property
    def is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected()

    def open(self, connected: Callable[[], None], received: Callable[[str, bytes], None]) -> None:
        if self._client is not None:
            return
        loop = asyncio.get_running_loop()
        client = paho.Client(CallbackAPIVersion.VERSION2, self._client_id, clean_session=False)
        client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)

        def on_connect(_c: object, _u: object, _f: object, reason: object, _p: object) -> None:
            if getattr(reason, "is_failure", False):
                log.warning("the broker refuses the gateway", client=self._client_id, why=reason)
                return
            client.subscribe([(topic, QOS) for topic in self._topics])
            loop.call_soon_threadsafe(connected)

        def on_message(_c: object, _u: object, message: paho.MQTTMessage) -> None:
            loop.call_soon_threadsafe(received, message.topic, bytes(message.payload))

        client.on_connect = on_connect
        client.on_message = on_message
        client.connect_async(self._host, self._port, KEEPALIVE_S)
        client.loop_start()
        self._client = client

    def publish(self, topic: str, payload: bytes) -> None:
        """Send at QoS 1; nothing where there is no connection: a device has no queue to keep it."""
        if self._client is not None and self._client.is_connected():
            self._client.publish(topic, payload, QOS)

    def close(self) -> None:
        """Leave the broker, which keeps the session. Paho's thread ends by itself."""
        client, self._client = self._client, None
        if client is not None:
            client.on_connect = client.on_message = None  # the loop may be gone before the thread
            client.disconnect()


# --- the gateway ---------------------------------------------------------------------------------


class MqttGateway:
    """Logs in, reports its meters, and executes what it is told."""

    def __init__(
        self,
        config: GatewayConfig,
        meters: list[Meter],
        link: Link,
        *,
        zone: ZoneInfo,
        now_ms: Callable[[], int],
        later: Later,
    ) -> None:
        self.config = config
        self.meters = meters
        self.refused_count = 0
        self.controls_refused_count = 0
        self._link = link
        self._zone = zone
        self._now_ms = now_ms
        self._later = later
        self._logged_in = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        return f"{self.config.product}/{self.config.serial}"

    @property
    def is_online(self) -> bool:
        return bool(self._tasks)

    @property
    def missing(self) -> str | None:
        """Why the gateway is not ready, or None."""
        if self.is_online and not self._link.is_connected:
            return "no connection to the MQTT broker"
        return None

    def state(self) -> dict[str, object]:
        return {
            "connected": self._link.is_connected,
            "connections_refused": self.refused_count,
            "logged_in": self._logged_in,
            "controls_refused": self.controls_refused_count,
        }

    async def open(self) -> None:
        """Connect, and report from now on."""
        if self._tasks:
            return
        self._link.open(self.connected, self.received)
        config = self.config
        self._tasks = [
            asyncio.create_task(every(config.data_interval_ms, self.publish_all)),
            asyncio.create_task(every(config.heart_interval_ms, self.beat)),
            asyncio.create_task(every(LOGIN_AGAIN_MS, self.log_in_if_needed)),
        ]

    async def close(self) -> None:
        """Leave the broker; nothing is sent, and nothing kept to be sent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._link.close()
        self._logged_in = False

    # --- up ------------------------------------------------------------------------------------

    def connected(self) -> None:
        self._logged_in = False
        self.log_in_if_needed()

    def log_in_if_needed(self) -> None:
        # A login that nobody answered is sent again: the platform may just be starting.
        if not self._logged_in:
            time = self._local_time().strftime(TIME_FORMAT)
            self._send("login", {"type": "login", "gwSN": self.config.serial, "time": time})

    def beat(self) -> None:
        self._send("heart", {"type": "heart", "gwSN": self.config.serial})

    def publish_all(self) -> None:
        for meter in self.meters:
            self.publish_data(meter)

    def publish_data(self, meter: Meter) -> None:
        """Send a meter's reading, or that it does not answer, or nothing if it is silent."""
        if not self._link.is_connected or meter.presence is Presence.SILENT:
            return
        now_ms = self._now_ms()
        if meter.presence is Presence.MISSING:
            payload = missing_message(meter.snapshot(now_ms), self.config.serial)
            self._link.publish(self._topic("data"), payload)
            return
        snapshot, fault = meter.shown(now_ms, ALL_FAULTS)
        payload = data_message(snapshot, self.config.serial)
        if fault is FaultKind.MALFORMED:
            payload = payload[: len(payload) // 2]
        self._link.publish(self._topic("data"), payload)
        if fault is None:
            meter.served(snapshot, now_ms)

    # --- down ----------------------------------------------------------------------------------

    def received(self, topic: str, payload: bytes) -> None:
        """Handle a message of the platform's; what makes no sense is logged and dropped."""
        try:
            message = json.loads(payload)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            log.warning("no JSON object", gateway=self.config.id, topic=topic)
            return
        command = topic.split("/")[4] if topic.count("/") == 5 else ""
        if command == "login" and message.get("res") == 1:
            if not self._logged_in:
                self._logged_in = True
                self._send("time", {"type": "time", "gwSN": self.config.serial})
        elif command == "control":
            self._control(message)
        elif command not in DOWN_COMMANDS:
            log.warning("command not known", gateway=self.config.id, topic=topic)

    def _control(self, message: Mapping[str, object]) -> None:
        meter = next(
            (one for one in self.meters if one.config.serial == message.get("meterSN")), None
        )
        if meter is not None and meter.presence is Presence.SILENT:
            return  # as if the answer had been lost
        now_ms = self._now_ms()
        refusal = self._why_not(message, meter, now_ms)
        self._send(
            "control",
            {
                "type": "control",
                "msgid": message.get("msgid"),
                "gwSN": self.config.serial,
                "meterSN": message.get("meterSN"),
                "res": 0 if refusal else 1,
            },
        )
        if refusal or meter is None:
            self.controls_refused_count += 1
            log.info("control refused", gateway=self.config.id, why=refusal, message=message)
            return
        forced = Forced.PREPAID if message["relay"] == 1 else Forced.OPEN
        settled_ms = meter.command(forced, now_ms)
        if settled_ms <= now_ms:
            self.publish_data(meter)
        else:
            self._later(settled_ms - now_ms, lambda: self.publish_data(meter))

    def _why_not(
        self, message: Mapping[str, object], meter: Meter | None, now_ms: int
    ) -> str | None:
        if meter is None:
            return "no such meter"
        if meter.presence is Presence.MISSING:
            return "the meter does not answer"
        if type(message.get("relay")) is not int or message["relay"] not in (0, 1):
            return "relay must be 0 or 1"
        if message.get("gwSN") != self.config.serial:
            return "another gateway's"
        return None if is_in_time(message.get("expire"), now_ms) else "expired, or not a time"

    def _local_time(self) -> datetime:
        return (EPOCH + timedelta(milliseconds=self._now_ms())).astimezone(self._zone)

    def _topic(self, command: str) -> str:
        return f"/gw/acrelHW/{self.config.product}/{command}/{self.config.serial}"

    def _send(self, command: str, message: Mapping[str, object]) -> None:
        if self._link.is_connected:
            self._link.publish(self._topic(command), json.dumps(message).encode())


def down_topics(config: GatewayConfig) -> list[str]:
    """Return what a gateway subscribes to."""
    return [f"/server/acrelHW/{config.product}/+/{config.serial}"]


def every(interval_ms: int, action: Callable[[], None]) -> Coroutine[object, object, None]:
    """Return a coroutine that acts once an interval, without drifting."""

    async def act() -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + interval_ms / 1_000, loop.time())
            await asyncio.sleep(due - loop.time())
            action()

    return act()
