"""Where everything that devices say comes together, polled or pushed.

A reading becomes: a sign of life, a relay-state where one is due, an entry of its shard's frame.
"""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Protocol

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.ids import name_uuid
from services.common.kernel.profiles import Profile
from services.common.kernel.values import value_class
from services.common.runtime.kafka import Outgoing
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.exchange import OPERATION_READ, OPERATION_WRITE
from services.ingest.domain.presence import NO_LINE, REASON_GATEWAY, UNKNOWN, Device, Presence
from services.ingest.domain.reading import DeviceReading, MeterReading, device_time_ms
from services.ingest.domain.registry import Gateway, Line, Meter, Registry
from services.ingest.domain.relay import RelayReports, position

LOG_INTERVAL_MS = 10_000
"""Complaints of one kind are logged this often; between, they are counted."""
BACKFILL_MS = 900_000
"""What was pushed so long after it was taken tells where the relay was, not where it is."""
OPERATION_MQTT = "mqtt-control"
OPERATIONS = frozenset({OPERATION_READ, OPERATION_WRITE, OPERATION_MQTT})


class Frames(Protocol):
    """Where readings go: FrameWriter."""

    @property
    def has_room(self) -> bool:
        """Whether a reading that can be read again should be offered."""
        ...

    def offer(self, reading: MeterReading) -> asyncio.Future[None]:
        """Put a reading into a frame; the future ends at acks=all."""
        ...


class Out(Protocol):
    """Where records go: Outbox."""

    def put(self, outgoing: Outgoing) -> asyncio.Future[bool]:
        """Queue a record; the future says whether the broker has it."""
        ...


@value_class
class Source:
    """How a reading came. `by`: poll, request, push; `protocol` labels metrics."""

    protocol: str
    by: str
    request_id: str | None = None


POLLED = Source("modbus", "poll")
PUSHED = Source("mqtt", "push")


@value_class
class Reply:
    """What becomes a device-reply."""

    request_id: str
    requester: str
    line_id: str
    meter_id: str
    result: str
    detail: str
    began_at_ms: int
    completed_at_ms: int
    position: str | None = None
    closed_mask: int | None = None


class Intake:
    """Judges what devices say by the registry, and tells the rest of the platform."""

    def __init__(
        self,
        *,
        worker: str,
        registry: Registry,
        profiles: Mapping[str, Profile],
        presence: Presence,
        relays: RelayReports,
        frames: Frames,
        outbox: Out,
        clock: Clock,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.worker = worker
        self.registry = registry
        self.profiles = profiles
        self.clock = clock
        self.metrics = metrics
        self.log = log
        self._presence = presence
        self._relays = relays
        self._frames = frames
        self._outbox = outbox
        self._logged_at_ms: dict[str, int] = {}

    def take(
        self, named: Meter, device: DeviceReading, source: Source, began_at_ms: int, now_ms: int
    ) -> asyncio.Future[None] | None:
        """Take in a reading; return the future of its frame, None where it was not kept.

        What its clock makes unusable is set aside, but its relay is told all the same.
        """
        meter = self.registry.meter(named.meter_id) or named
        try:
            time_ms = self._device_time_ms(meter, device, source, now_ms)
        except Unusable as unusable:
            self._tell_relay(
                meter, device, source, began_at_ms=began_at_ms, now_ms=now_ms, time_ms=None
            )
            self.set_aside(meter, unusable, source)
            return None
        self._tell(self._presence.heard(Device.of_meter(meter), now_ms))
        self._tell_relay(
            meter, device, source, began_at_ms=began_at_ms, now_ms=now_ms, time_ms=time_ms
        )
        if source is not PUSHED and not self._frames.has_room:
            self.metrics.readings.labels(source.protocol, "dropped").inc()
            self.complain("kafka-away", "readings dropped: too many wait for Kafka")
            return None
        self.metrics.readings.labels(source.protocol, "taken").inc()
        return self._frames.offer(MeterReading(meter, device, time_ms, began_at_ms, now_ms))

    def set_aside(self, meter: Meter, unusable: Unusable, source: Source) -> None:
        """Quarantine what a known meter said."""
        self.aside(Device.of_meter(meter), unusable, source)

    def aside(self, device: Device, unusable: Unusable, source: Source) -> None:
        """Quarantine what a device said: counted, told, logged, never billed."""
        self.metrics.readings.labels(source.protocol, "set-aside").inc()
        self.metrics.set_aside.labels(source.protocol, unusable.fault.value).inc()
        self._tell(self._presence.set_aside(device, unusable.fault, self.clock.now_ms()))
        self.complain(unusable.fault.value, unusable.message, device=device.device_id)

    def unreadable(self, gateway: Gateway | None, unusable: Unusable, topic: str) -> None:
        """Count a message that says nothing of a meter."""
        self.metrics.set_aside.labels(PUSHED.protocol, unusable.fault.value).inc()
        if gateway is not None:
            self._presence.count_aside(Device.of_gateway(gateway), self.clock.now_ms())
        self.complain(unusable.fault.value, unusable.message, topic=topic[:200])

    def known(self, unknown: Device) -> None:
        """Take an unknown device out of quarantine where it was in it."""
        self._tell(self._presence.registered(unknown.device_id, self.clock.now_ms()))

    def recall(self, told: Iterable[Mapping[str, Any]]) -> None:
        """Take in what an earlier run told last of unknown devices."""
        for record in told:
            self._presence.recall(record, self.clock.now_ms())

    def meter_lost(self, meter: Meter, reason: str) -> None:
        """Tell that a meter does not answer."""
        self._tell(self._presence.lost(Device.of_meter(meter), reason, self.clock.now_ms()))

    def gateway_heard(self, gateway: Gateway) -> None:
        """Tell that a gateway is there."""
        self._tell(self._presence.heard(Device.of_gateway(gateway), self.clock.now_ms()))

    def line_lost(self, line: Line, reason: str) -> None:
        """Tell that a gateway is away, and with it every meter behind it."""
        now_ms = self.clock.now_ms()
        self._tell(self._presence.lost(Device.of_gateway(line.gateway), reason, now_ms))
        for meter in line.meters:
            self._tell(self._presence.lost(Device.of_meter(meter), REASON_GATEWAY, now_ms))

    def line_left(self, line: Line) -> None:
        """Stop telling of a line's devices: another worker does."""
        self._presence.forget(line.gateway.device_id)
        for meter in line.meters:
            self._presence.forget(meter.device_id)

    def expect(self, device: Device, silent_after_ms: int) -> None:
        """Wait for a device that pushes."""
        self._presence.expect(device, self.clock.now_ms(), silent_after_ms)

    def clock_tended(self, meter: Meter, result: str, ahead_ms: int | None) -> None:
        """Tell what came of a meter's wrong clock; `ahead_ms` None: it told no time."""
        self.metrics.clocks.labels(result).inc()
        device = Device.of_meter(meter)
        self._tell(self._presence.clock_tended(device, result, ahead_ms, self.clock.now_ms()))
        self.log.info("tended a clock", meter=meter.meter_id, result=result, ahead_ms=ahead_ms)

    def commanded(self, meter_id: str) -> None:
        """Have the meter's next relay position told, whatever it is."""
        self._relays.commanded(meter_id)

    def reply(self, reply: Reply, operation: str) -> asyncio.Future[bool]:
        """Tell what became of a request; the future says whether Kafka has it."""
        known = operation if operation in OPERATIONS else "unknown"
        self.metrics.replies.labels(known, reply.result).inc()
        record = asdict(reply)
        identity = name_uuid("device-reply", self.worker, *record.values())
        return self._outbox.put(
            Outgoing(
                "device-replies",
                "device-reply",
                {**record, "worker": self.worker},
                key=reply.meter_id,
                route=reply.line_id,
                event_id=identity,
                occurred_at_ms=reply.completed_at_ms,
                causation_id=reply.request_id,
            )
        )

    def refresh(self) -> None:
        """Tell the statuses that are due; call it now and then."""
        for record in self._presence.refresh(self.clock.now_ms()):
            self._tell(record)
        self.metrics.unknown_devices.set(self._presence.unknown_count)

    def complain(self, kind: str, message: str, **more: str) -> None:
        """Log a complaint, those of one kind seldom."""
        now_ms = self.clock.monotonic_ms()
        if now_ms - self._logged_at_ms.get(kind, -LOG_INTERVAL_MS) >= LOG_INTERVAL_MS:
            self._logged_at_ms[kind] = now_ms
            self.log.warning("set aside", fault=kind, why=message[:500], **more)

    def _device_time_ms(
        self, meter: Meter, device: DeviceReading, source: Source, now_ms: int
    ) -> int:
        zone = self.registry.zone(meter.site_id)
        if zone is None:
            raise Unusable(Fault.SITE_UNKNOWN, f"site {meter.site_id} is not in the registry yet")
        is_live = source is not PUSHED
        return device_time_ms(device.clock, zone, received_at_ms=now_ms, is_live=is_live)

    def _tell_relay(
        self,
        meter: Meter,
        device: DeviceReading,
        source: Source,
        *,
        began_at_ms: int,
        now_ms: int,
        time_ms: int | None,
    ) -> None:
        mask = device.closed_mask
        was_kept = source is PUSHED and time_ms is not None and now_ms - time_ms > BACKFILL_MS
        if mask is None or was_kept:
            return
        if source.request_id is not None:
            self._relays.commanded(meter.meter_id)
        if not self._relays.is_due(meter.meter_id, meter.epoch, mask, now_ms):
            return
        record = {
            "meter_id": meter.meter_id,
            "meter_key": meter.meter_key,
            "site_id": meter.site_id,
            "line_id": meter.line_id,
            "epoch": meter.epoch,
            "position": position(self.profiles[meter.profile], mask),
            "closed_mask": mask,
            "began_at_ms": began_at_ms,
            "received_at_ms": now_ms,
            "device_time_ms": time_ms,
            "by": source.by,
            "request_id": source.request_id,
            "worker": self.worker,
        }
        self._outbox.put(
            Outgoing(
                "relay-states",
                "relay-state",
                record,
                key=meter.meter_id,
                route=meter.site_id,
                event_id=name_uuid("relay-state", *record.values()),
                occurred_at_ms=now_ms,
                causation_id=source.request_id or "",
            )
        )

    def _tell(self, record: dict[str, Any] | None) -> None:
        if record is None:
            return
        now_ms = self.clock.now_ms()
        self._outbox.put(
            Outgoing(
                "device-status",
                "device-status",
                record,
                key=record["device_id"],
                # A device that nobody registered may speak behind one gateway, then another: its
                # newest status is last only within one partition.
                route=NO_LINE if record["kind"] == UNKNOWN else record["line_id"],
                event_id=name_uuid("device-status", now_ms, *record.values()),
                occurred_at_ms=now_ms,
            )
        )
