"""ingest: the only place that wires its parts."""

import asyncio
import contextlib
import re
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

from services.common.kernel.errors import InvalidInput
from services.common.kernel.profiles import MqttProfile, Profile
from services.common.kernel.reasons import Reason
from services.common.runtime import kafka, settings
from services.common.runtime.fence import ClockFence
from services.common.runtime.profiles import profiles
from services.common.runtime.service import Runtime, run
from services.common.runtime.topics import catalogue
from services.ingest.adapters import line_owner, modbus_link, unknown_devices
from services.ingest.adapters.frame_writer import FrameWriter
from services.ingest.adapters.intake import Intake
from services.ingest.adapters.line_worker import LineSettings, LineWorker
from services.ingest.adapters.metrics import Metrics
from services.ingest.adapters.mqtt_intake import MqttIntake
from services.ingest.adapters.mqtt_session import MqttSession
from services.ingest.adapters.outbox import Outbox
from services.ingest.adapters.registry_follower import RegistryFollower
from services.ingest.config import IngestSettings
from services.ingest.domain.presence import Device, Presence
from services.ingest.domain.registry import (
    PROTOCOL_MODBUS_RTU,
    PROTOCOL_MQTT,
    Line,
    Registry,
)
from services.ingest.domain.relay import RelayReports

NAME = "ingest"
MQTT_DIALECT = "acrel-mqtt"
"""The profile whose topics are subscribed to. A meter's own profile reads its `data`."""
REFRESH_S = 0.5
PORT_MAX = 65_535


class Ingest:
    """The parts of the service, and the order in which they start and stop."""

    def __init__(self, runtime: Runtime, chosen: IngestSettings) -> None:
        self._runtime = runtime
        self._settings = chosen
        self._metrics = Metrics(runtime.metrics)
        self._registry = Registry()
        self._profiles = profiles()
        at, name = chosen.kafka_bootstrap, chosen.instance
        self._frame_producer = kafka.producer(
            at, client_id=f"{name}-frames", compression=kafka.COMPRESSION
        )
        self._out_producer = kafka.producer(at, client_id=f"{name}-out")
        self._registry_consumer = kafka.consumer(at, client_id=f"{name}-registry")
        self._frames = FrameWriter(
            self._frame_producer,
            shards=catalogue().shards,
            worker=name,
            run_id=uuid4(),
            linger_ms=chosen.linger_ms,
            waiting_max=chosen.unacknowledged_readings_max,
            clock=runtime.clock,
            metrics=self._metrics,
            log=runtime.log,
        )
        self._outbox = Outbox(self._out_producer, self._metrics, runtime.log)
        self._intake = Intake(
            worker=name,
            registry=self._registry,
            profiles=self._profiles,
            presence=Presence(name, chosen.status_refresh_ms),
            relays=RelayReports(chosen.relay_state_interval_ms),
            frames=self._frames,
            outbox=self._outbox,
            clock=runtime.clock,
            metrics=self._metrics,
            log=runtime.log,
        )
        self._follower = RegistryFollower(
            self._registry_consumer,
            self._registry,
            partitions=catalogue().partitions_of("registry"),
            on_fact=self._fact,
            metrics=self._metrics,
            log=runtime.log,
        )
        self._fence = ClockFence(runtime.clock)
        self._owner: line_owner.LineOwner | None = None
        self._mqtt: MqttSession | None = None

    async def start(self, stack: AsyncExitStack) -> None:
        """Start everything; the registry is read before any device is heard."""
        for producer in (self._frame_producer, self._out_producer):
            await producer.start()
            stack.push_async_callback(producer.stop)
        await self._registry_consumer.start()
        stack.push_async_callback(kafka.stop, self._registry_consumer)
        self._runtime.health.not_ready("registry", "reading")
        await self._follower.read_to_end()
        self._runtime.health.ready("registry")
        spawn = self._runtime.spawn
        spawn(self._follower.run(), "registry")
        spawn(self._frames.run(), "frames")
        spawn(self._outbox.run(), "outbox")
        spawn(self._refresh(), "refresh")
        if self._settings.lines_enabled:
            await self._start_lines(stack)
        if self._settings.mqtt_enabled:
            await self._recall_unknown()
            self._start_mqtt()
        stack.push_async_callback(self._stop)

    async def _start_lines(self, stack: AsyncExitStack) -> None:
        modbus_link.silence_library()
        self._fence.watch()
        name = self._settings.instance
        close_within_ms = 2 * self._settings.transaction_timeout_ms
        # A static member: restarted within the session, it has its partitions back at once.
        consumer = kafka.consumer(
            self._settings.kafka_bootstrap,
            client_id=f"{name}-lines",
            group=line_owner.GROUP,
            group_instance_id=name,
            # A rebalance waits for the transactions under way.
            rebalance_timeout_ms=kafka.SESSION_MS + close_within_ms,
        )
        await consumer.start()
        stack.push_async_callback(kafka.stop, consumer)
        self._runtime.health.not_ready("lines", "joining the group of line owners")
        self._owner = line_owner.LineOwner(
            consumer,
            partitions=catalogue().partitions_of(line_owner.TOPIC),
            intake=self._intake,
            make_worker=self._line_worker,
            is_ours=self._is_ours,
            close_within_s=close_within_ms / 1000,
            on_joined=lambda: self._runtime.health.ready("lines"),
            metrics=self._metrics,
            log=self._runtime.log,
        )
        self._runtime.spawn(self._owner.run(), "lines")
        self._runtime.spawn(self._owner.follow_registry(), "lines-registry")

    async def _recall_unknown(self) -> None:
        """Know which devices are in quarantine: one may be registered since."""
        name = self._settings.instance
        reader = kafka.consumer(self._settings.kafka_bootstrap, client_id=f"{name}-unknown")
        await reader.start()
        try:
            partitions = catalogue().partitions_of(unknown_devices.TOPIC)
            self._intake.recall(await unknown_devices.told_of_unknown(reader, partitions))
        finally:
            await kafka.stop(reader)

    def _start_mqtt(self) -> None:
        profile: Profile = self._profiles[MQTT_DIALECT]
        assert isinstance(profile, MqttProfile)
        self._runtime.health.not_ready("mqtt", "connecting")

        def on_connected(is_connected: bool, why: str) -> None:
            if is_connected:
                self._runtime.health.ready("mqtt")
            else:
                self._runtime.health.not_ready("mqtt", why)

        def publish(topic: str, payload: bytes) -> None:
            session.publish(topic, payload)

        handler = MqttIntake(profile, self._intake, publish)
        session = self._mqtt = MqttSession(
            self._settings,
            profile.up_filter(),
            handler.handle,
            on_connected=on_connected,
            metrics=self._metrics,
            log=self._runtime.log,
        )
        session.start()

    def _is_ours(self) -> bool:
        """Say whether Kafka has confirmed lately that this worker's lines are its."""
        return self._fence.is_proved

    def _line_worker(self, line: Line) -> LineWorker:
        host, port = _host_and_port(line.gateway.address)
        chosen = self._settings
        link = modbus_link.ModbusLink(
            host,
            port,
            is_rtu=line.gateway.protocol == PROTOCOL_MODBUS_RTU,
            timeout_ms=chosen.transaction_timeout_ms,
            clock=self._runtime.clock,
            is_ours=self._is_ours,
        )
        return LineWorker(
            line,
            link,
            LineSettings(
                chosen.poll_interval_ms,
                chosen.transaction_timeout_ms,
                chosen.offline_after_failures,
                chosen.probe_backoff_max_ms,
                chosen.reconnect_backoff_max_ms,
                chosen.serial_recheck_ms,
                chosen.line_requests_max,
                chosen.set_clocks,
            ),
            is_ours=self._is_ours,
            profiles=self._profiles,
            intake=self._intake,
            clock=self._runtime.clock,
            metrics=self._metrics,
            log=self._runtime.log,
        )

    def _fact(self, subject: str, record: dict[str, Any]) -> None:
        if self._owner is not None:
            self._owner.registry_changed()
        if not self._settings.mqtt_enabled:
            return
        device = None
        if subject == "meter-fact":
            meter = self._registry.meter(record["meter_id"])
            if meter is not None and isinstance(self._profiles.get(meter.profile), MqttProfile):
                device = Device.of_meter(meter)
        elif subject == "gateway-fact" and record["protocol"] == PROTOCOL_MQTT:
            gateway = self._registry.gateway(record["gateway_id"])
            device = None if gateway is None else Device.of_gateway(gateway)
        if device is not None:
            self._intake.expect(device, self._settings.mqtt_offline_after_ms)

    async def _refresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            self._intake.refresh()

    async def _stop(self) -> None:
        """Take nothing new, finish what is under way, acknowledge it, and leave; bounded."""
        flush_within_s = max(1.0, self._settings.stop_timeout_s / 3)
        if self._mqtt is not None:
            self._mqtt.stop_taking()
        if self._owner is not None:
            await self._owner.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(flush_within_s):
                await self._frames.flushed()
                await self._outbox.flushed()
                if self._mqtt is not None:
                    await self._mqtt.acknowledgements.emptied()
        if self._mqtt is not None:
            await self._mqtt.disconnect()


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) <= PORT_MAX:
        raise InvalidInput(
            Reason.INVALID_ARGUMENT,
            f"address {address!r} of a polled gateway must be host:port; correct its registration",
            field="address",
        )
    return host.strip("[]"), int(port)


def main() -> int:
    """Run ingest until it is told to stop."""
    chosen = settings.load(IngestSettings)

    async def body(runtime: Runtime, stack: AsyncExitStack) -> None:
        await Ingest(runtime, chosen).start(stack)

    return run(NAME, chosen, body)
