"""Goal: ingest as a process, on the real Kafka and MQTT broker: nothing acknowledged is lost.

Method: devices made here (a raw Modbus gateway, an MQTT client), facts written to `registry` as
vending does, and everything judged by what stands in Kafka and by what the broker still keeps.
Names are new in each test, because the stack outlives them.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import aiohttp
import paho.mqtt.client as paho
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client.parser import text_string_to_metric_families

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.ids import name_uuid
from services.common.runtime import kafka, topics
from tests.conftest import RunService
from tests.integration.ingest_line_world import Gateway, set_clock, until
from tests.unit.ingest_devices import SITE, data_message, gateway_fact, meter_fact
from tools.stack.background import BackgroundStack, RunningService
from tools.stack.ports import free_ports

pytestmark = pytest.mark.stack

OUTPUTS = ("shard-log", "relay-states", "device-status", "device-replies")
PRODUCT = "AWT100"
INSTANCE = "ingest-0"


class Bus:
    """Kafka from outside: writes facts and requests, keeps all that ingest writes meanwhile."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self.producer: AIOKafkaProducer = kafka.producer(bootstrap, client_id="test")
        self._reader = kafka.consumer(bootstrap, client_id="test")
        self._records: list[tuple[str, str, dict[str, Any]]] = []
        self._revision = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Bus"]:
        await topics.create(self._bootstrap)
        await self.producer.start()
        await self._reader.start()
        known = topics.catalogue()
        every = [TopicPartition(t, n) for t in OUTPUTS for n in range(known.partitions_of(t))]
        self._reader.assign(every)
        await self._reader.seek_to_end(*every)
        task = asyncio.create_task(self._read())
        try:
            yield self
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self._reader.stop()
            await self.producer.stop()

    async def _read(self) -> None:
        while True:
            for records in (await self._reader.getmany(timeout_ms=100)).values():
                for record in records:
                    envelope, value = kafka.opened(record)
                    self._records.append((record.topic, envelope.subject, value))

    async def fact(self, subject: str, record: dict[str, Any]) -> None:
        kind = subject.removesuffix("-fact")
        entity = f"{kind}s/{record[f'{kind}_id']}"
        self._revision += 1
        await (
            await kafka.send(
                self.producer,
                "registry",
                subject,
                {**record, "revision": self._revision},
                key=entity,
                route=entity,
                event_id=name_uuid(entity, self._revision),
                occurred_at_ms=0,
            )
        )

    async def request(self, line_id: str, meter: dict[str, Any], operation: str) -> str:
        request_id = str(uuid4())
        is_write = operation == "write-registers"
        record = {
            "request_id": request_id,
            "requester": "control-0",
            "line_id": line_id,
            "gateway_id": meter["gateway_id"],
            "meter_id": meter["meter_id"],
            "serial": meter["serial"],
            "unit": meter["unit"],
            "profile": meter["profile"],
            "operation": operation,
            "address": 0x0057 if is_write else None,
            "values": [1, 1] if is_write else [],
            "not_after_ms": None,
            "intent_epoch": None,
            "intent_offset": None,
            "attempt": 1,
            "requested_at_ms": 0,
        }
        await (
            await kafka.send(
                self.producer,
                "device-requests",
                "device-request",
                record,
                key=meter["meter_id"],
                route=line_id,
                event_id=name_uuid(request_id),
                occurred_at_ms=0,
            )
        )
        return request_id

    def of(self, subject: str, **wanted: Any) -> list[dict[str, Any]]:
        return [
            value
            for _, kind, value in self._records
            if kind == subject and all(value[name] == wanted[name] for name in wanted)
        ]

    def registers(self, serial: str) -> list[int]:
        """Return the registers of a meter in shard-log, in order, with repeats."""
        found = []
        for record in self.of("reading-frame"):
            rows = ReadingFrame.from_record(record).rows
            found += [
                int(row["register_milli"]) for row in rows if row["serial"] == serial.encode()
            ]
        return found

    def status(self, device_id: str) -> str | None:
        told = self.of("device-status", device_id=device_id)
        return told[-1]["status"] if told else None


class Ingest:
    """The service, and what it says of itself."""

    def __init__(self, run_service: RunService, stack: BackgroundStack, **settings: str) -> None:
        self.http_port = free_ports(1)[0]
        chosen = {
            "KAFKA_BOOTSTRAP": stack.kafka_bootstrap,
            "MQTT_HOST": stack.mqtt_host,
            "MQTT_PORT": str(stack.mqtt_port),
            "HTTP_PORT": str(self.http_port),
            "POLL_INTERVAL_MS": "100",
            "TRANSACTION_TIMEOUT_MS": "300",
            "LINGER_MS": "20",
            "INSTANCE": INSTANCE,
            **settings,
        }
        name = chosen["INSTANCE"]
        self.process: RunningService = run_service("ingest", chosen, name=name)

    async def metric(self, name: str) -> float:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.http_port}/metrics") as answer,
        ):
            text = await answer.text()
        samples = (s for f in text_string_to_metric_families(text) for s in f.samples)
        return sum(sample.value for sample in samples if sample.name == name)


class Device:
    """An MQTT gateway with one meter behind it."""

    def __init__(self, stack: BackgroundStack) -> None:
        name = uuid4().hex[:10]
        self.gateway_serial, self.serial = f"g{name}", f"m{name}"
        self.gateway = {
            **gateway_fact(f"G-{name}", protocol="mqtt-acrel"),
            "address": f"{PRODUCT}/{self.gateway_serial}",
            "site_id": f"S-{name}",
        }
        self.meter = meter_fact(
            f"M-{name}",
            serial=self.serial,
            gateway_id=self.gateway["gateway_id"],
            site_id=self.gateway["site_id"],
            profile="acrel-mqtt",
            unit=0,
        )
        self.site = {**SITE, "site_id": self.gateway["site_id"], "zone": "UTC"}
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=f"device-{name}")
        self.client.connect(stack.mqtt_host, stack.mqtt_port)
        self.client.loop_start()
        self.sent: list[int] = []
        self._clock = datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1)

    async def register(self, bus: Bus, *, meter: bool = True) -> None:
        await bus.fact("site-fact", self.site)
        await bus.fact("gateway-fact", self.gateway)
        if meter:
            await bus.fact("meter-fact", self.meter)

    async def publish(self, count: int) -> None:
        """Publish readings, each a second and 10 Wh after the last, and wait for their PUBACK."""
        for _ in range(count):
            self._clock += timedelta(seconds=1)
            self.sent.append(1_000 + 10 * len(self.sent))
            message = data_message(
                time=self._clock.strftime("%Y%m%d%H%M%S"),
                gwSN=self.gateway_serial,
                meterSN=self.serial,
                wh=0,
            )
            milli = f"{self.sent[-1] // 1000}.{self.sent[-1] % 1000:03d}"
            payload = json.dumps(message).replace('"wh": 0', f'"wh": {milli}')
            topic = f"/gw/acrelHW/{PRODUCT}/data/{self.gateway_serial}"
            info = self.client.publish(topic, payload, qos=1)
            await asyncio.get_running_loop().run_in_executor(None, info.wait_for_publish, 10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
async def bus(stack: BackgroundStack) -> AsyncIterator[Bus]:
    made = Bus(stack.kafka_bootstrap)
    async with made.running():
        yield made


@pytest.fixture
async def device(stack: BackgroundStack) -> AsyncIterator[Device]:
    made = Device(stack)
    yield made
    made.close()


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made = Gateway()
    made.add_meter(1, (0x0000, 0x0000, int(f"{int(time.time()) % 10_000:04d}", 16)))
    await made.start()
    set_clock(made)
    yield made
    await made.stop()


def polled(gateway: Gateway) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return site, gateway and meter facts with new names."""
    name = uuid4().hex[:10]
    address = f"127.0.0.1:{gateway.port}"
    serial = "".join(f"{gateway.registers[1][0x0043 + at]:04x}" for at in range(3))
    there = {**gateway_fact(f"G-{name}", address=address), "site_id": f"S-{name}"}
    meter = meter_fact(
        f"M-{name}", serial=serial, gateway_id=there["gateway_id"], site_id=there["site_id"]
    )
    return {**SITE, "site_id": there["site_id"], "zone": "UTC"}, there, meter


async def until_metric(ingest: Ingest, name: str, is_right: Callable[[float], bool]) -> None:
    async with asyncio.timeout(15):
        while not is_right(await ingest.metric(name)):
            await asyncio.sleep(0.02)


async def left_at_the_broker(stack: BackgroundStack) -> int:
    """Return how many messages the broker still keeps for ingest's session, which is taken over."""
    loop = asyncio.get_running_loop()
    came: list[bytes] = []
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=INSTANCE, clean_session=False, manual_ack=True
    )

    def received(client: paho.Client, _: Any, message: paho.MQTTMessage) -> None:
        if message.topic == "/end":
            client.ack(message.mid, message.qos)
        came.append(bytes(message.payload))

    def connected(client: paho.Client, *_: Any) -> None:
        client.subscribe("/end", 1)

    def subscribed(client: paho.Client, *_: Any) -> None:
        # What the broker keeps for the session comes before anything published from now on.
        client.publish("/end", b"end", 1)

    client.on_message, client.on_connect, client.on_subscribe = received, connected, subscribed
    client.connect(stack.mqtt_host, stack.mqtt_port)
    client.loop_start()
    try:
        async with asyncio.timeout(10):
            while b"end" not in came:
                await asyncio.sleep(0.01)
    finally:
        client.unsubscribe("/end")
        client.disconnect()
        await loop.run_in_executor(None, client.loop_stop)
    return len([payload for payload in came if payload != b"end"])


def distinct(registers: Iterable[int]) -> list[int]:
    return sorted(set(registers))


async def test_a_polled_meter_is_read_commanded_and_read_back(
    stack: BackgroundStack, run_service: RunService, bus: Bus, gateway: Gateway
) -> None:
    ingest = Ingest(run_service, stack)
    site, there, meter = polled(gateway)
    for subject, fact in (("site-fact", site), ("gateway-fact", there), ("meter-fact", meter)):
        await bus.fact(subject, fact)
    await until(lambda: len(bus.registers(meter["serial"])) >= 2, "readings in shard-log")
    frame = next(r for r in bus.of("reading-frame") if r["worker"] == INSTANCE)
    assert frame["shard"] == meter["shard"]
    assert bus.status(f"meters/{meter['meter_id']}") == "online"
    assert bus.status(f"gateways/{there['gateway_id']}") == "online"

    began = time.monotonic()
    wrote = await bus.request(there["line_id"], meter, "write-registers")
    await until(lambda: bus.of("device-reply", request_id=wrote), "a reply")
    assert time.monotonic() - began < 1.0
    read = await bus.request(there["line_id"], meter, "read-live")
    await until(lambda: bus.of("device-reply", request_id=read), "a reply")
    [first], [second] = (bus.of("device-reply", request_id=i) for i in (wrote, read))
    assert (first["result"], second["result"], second["position"]) == ("ok", "ok", "open")
    assert first["completed_at_ms"] <= second["began_at_ms"]
    await until(lambda: bus.of("relay-state", request_id=read), "a relay state")
    assert gateway.overlaps == 0

    seconds = []
    for _ in range(20):
        began = time.monotonic()
        asked = await bus.request(there["line_id"], meter, "read-live")
        await until(lambda: bus.of("device-reply", request_id=asked), "a reply")  # noqa: B023 - now
        seconds.append(time.monotonic() - began)
    print(f"request to reply: median {sorted(seconds)[10]:.3f} s, worst {max(seconds):.3f} s")
    assert max(seconds) < 1.0

    unknown = await bus.request("line-of-nobody", meter, "read-live")
    await until(lambda: bus.of("device-reply", request_id=unknown), "a reply")
    assert bus.of("device-reply", request_id=unknown)[0]["result"] == "refused"
    assert await ingest.metric("wattvend_ingest_lines_owned") >= 1


async def test_after_kill_9_the_line_is_owned_again_and_old_requests_are_not_executed(
    stack: BackgroundStack, run_service: RunService, bus: Bus, gateway: Gateway
) -> None:
    ingest = Ingest(run_service, stack, MQTT_ENABLED="false")
    site, there, meter = polled(gateway)
    for subject, fact in (("site-fact", site), ("gateway-fact", there), ("meter-fact", meter)):
        await bus.fact(subject, fact)
    await until(lambda: bus.registers(meter["serial"]), "a reading")
    ingest.process.kill9()
    old = await bus.request(there["line_id"], meter, "write-registers")
    began = time.monotonic()
    ingest.process.start()
    before = len(bus.registers(meter["serial"]))
    await until(lambda: len(bus.registers(meter["serial"])) > before, "readings again")
    assert time.monotonic() - began < 6.0, "a static member does not wait for its old session"
    new = await bus.request(there["line_id"], meter, "read-live")
    await until(lambda: bus.of("device-reply", request_id=new), "a reply")
    assert bus.of("device-reply", request_id=old) == []
    assert gateway.writes() == []


async def test_lines_are_shared_and_move_when_a_worker_leaves(
    stack: BackgroundStack, run_service: RunService, bus: Bus
) -> None:
    Ingest(run_service, stack, MQTT_ENABLED="false")
    gateways = [Gateway() for _ in range(6)]
    meters = []
    for gateway in gateways:
        gateway.add_meter(1)
        await gateway.start()
        set_clock(gateway)
        site, there, meter = polled(gateway)
        meters.append(meter)
        for subject, fact in (("site-fact", site), ("gateway-fact", there), ("meter-fact", meter)):
            await bus.fact(subject, fact)

    def workers() -> dict[str, str]:
        return {
            meter["meter_id"]: told[-1]["worker"]
            for meter in meters
            if (told := bus.of("relay-state", meter_id=meter["meter_id"]))
        }

    await until(lambda: len(workers()) == len(meters), "all lines polled by the first")
    second = Ingest(
        run_service,
        stack,
        MQTT_ENABLED="false",
        INSTANCE="ingest-1",
        RELAY_STATE_INTERVAL_MS="200",
    )
    await until(lambda: "ingest-1" in workers().values(), "a line polled by the second")
    for gateway, meter in zip(gateways, meters, strict=True):
        if workers()[meter["meter_id"]] == "ingest-1":
            assert gateway.open is not None
    second.process.kill9()
    moved = [meter for meter in meters if workers()[meter["meter_id"]] == "ingest-1"]
    assert moved
    await until(lambda: set(workers().values()) == {INSTANCE}, "the first has them all again")
    assert sum(gateway.overlaps for gateway in gateways) == 0
    for gateway in gateways:
        await gateway.stop()


async def test_an_unknown_mqtt_meter_is_quarantined_over_a_restart_and_counts_once_registered(
    stack: BackgroundStack, run_service: RunService, bus: Bus, device: Device
) -> None:
    ingest = Ingest(run_service, stack, LINES_ENABLED="false")
    await device.register(bus, meter=False)
    await device.publish(3)
    unknown = f"unknown/mqtt/{device.serial}"
    await until(lambda: bus.status(unknown) == "quarantined", "quarantined")
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 0)
    assert bus.registers(device.serial) == []
    ingest.process.kill9()
    ingest.process.start()
    facts = await ingest.metric("wattvend_ingest_registry_facts_total")
    await bus.fact("meter-fact", device.meter)
    await until_metric(ingest, "wattvend_ingest_registry_facts_total", lambda n: n > facts)
    await device.publish(1)
    await until(lambda: bus.registers(device.serial) == device.sent[3:], "the next one counts")
    await until(lambda: bus.status(unknown) == "offline", "no longer quarantined")
    assert bus.status(f"meters/{device.meter['meter_id']}") == "online"


async def test_what_was_not_acknowledged_comes_again_after_kill_9(
    stack: BackgroundStack, run_service: RunService, bus: Bus, device: Device
) -> None:
    await device.register(bus)
    ingest = Ingest(run_service, stack, LINES_ENABLED="false", LINGER_MS="2000")
    await device.publish(20)
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 20)
    assert bus.registers(device.serial) == [], "the frame has not been sent"
    ingest.process.kill9()
    await device.publish(5)
    ingest.process.start()
    await until(lambda: distinct(bus.registers(device.serial)) == device.sent, "all of them")
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 0)


async def test_a_message_of_an_older_connection_is_not_acknowledged_on_a_newer_one(
    stack: BackgroundStack, run_service: RunService, bus: Bus, device: Device
) -> None:
    await device.register(bus)
    ingest = Ingest(run_service, stack, LINES_ENABLED="false", LINGER_MS="3000")
    await device.publish(10)
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 10)
    # Another client with its name takes the session over, and the broker drops ingest.
    assert await left_at_the_broker(stack) == 10
    await until_metric(ingest, "wattvend_ingest_mqtt_messages_total", lambda n: n >= 20)
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 0)
    await until(lambda: distinct(bus.registers(device.serial)) == device.sent, "all of them")
    ingest.process.stop()
    assert await left_at_the_broker(stack) == 0


async def test_a_graceful_stop_flushes_and_acknowledges_in_bounded_time(
    stack: BackgroundStack, run_service: RunService, bus: Bus, device: Device
) -> None:
    await device.register(bus)
    ingest = Ingest(run_service, stack, LINES_ENABLED="false", LINGER_MS="10000")
    await device.publish(7)
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 7)
    began = time.monotonic()
    ingest.process.stop()
    assert time.monotonic() - began < 5.0
    await until(lambda: bus.registers(device.serial) == device.sent, "all of them, once")
    assert await left_at_the_broker(stack) == 0
    await device.publish(2)
    assert await left_at_the_broker(stack) == 2, "the broker keeps what comes meanwhile"
    ingest.process.start()
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 2)
    ingest.process.stop()
    await until(lambda: distinct(bus.registers(device.serial)) == device.sent, "the rest")
    assert await left_at_the_broker(stack) == 0


async def test_nothing_is_acknowledged_while_kafka_is_away_and_nothing_lost(
    stack: BackgroundStack, run_service: RunService, bus: Bus, device: Device, gateway: Gateway
) -> None:
    site, there, meter = polled(gateway)
    for subject, fact in (("site-fact", site), ("gateway-fact", there), ("meter-fact", meter)):
        await bus.fact(subject, fact)
    await device.register(bus)
    ingest = Ingest(run_service, stack)
    await device.publish(3)
    await until(lambda: bus.registers(device.serial) == device.sent, "readings before")
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, stack.kill9, "kafka")
    await device.publish(4)
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 4)
    await loop.run_in_executor(None, stack.start, "kafka")
    await until(lambda: distinct(bus.registers(device.serial)) == device.sent, "all of them")
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 0)
    before = len(bus.registers(meter["serial"]))
    await until(lambda: len(bus.registers(meter["serial"])) > before, "the line is polled")
    read = await bus.request(there["line_id"], meter, "read-live")
    await until(lambda: bus.of("device-reply", request_id=read), "a reply")


async def test_rubbish_never_holds_up_a_reading(
    stack: BackgroundStack, run_service: RunService, bus: Bus, device: Device
) -> None:
    await device.register(bus)
    ingest = Ingest(run_service, stack, LINES_ENABLED="false")
    topic = f"/gw/acrelHW/{PRODUCT}/data/{device.gateway_serial}"
    for rubbish in (b"", b"\xff\xfe", b"[" * 200_000, b'{"wh": NaN}', b'{"gwSN": "\\ud800"}'):
        device.client.publish(topic, rubbish, qos=1)
    device.client.publish("/gw/acrelHW/a/b/c", b"{}", qos=1)
    await device.publish(1)
    await until(lambda: bus.registers(device.serial) == device.sent, "the reading")
    await until_metric(ingest, "wattvend_ingest_mqtt_unacknowledged_messages", lambda n: n == 0)
    assert await ingest.metric("wattvend_ingest_set_aside_total") == 5
