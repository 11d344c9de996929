"""What the recovery tests of ingest share: facts in the registry, and the readings on shard-log."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from aiokafka import TopicPartition

from services.common.kernel.frames import ReadingFrame
from services.common.kernel.ids import name_uuid
from services.common.runtime import kafka, topics
from tests.recovery.workers import Worker
from tests.unit.ingest_devices import SITE, gateway_fact, meter_fact

LOG, REPLIES = "shard-log", "device-replies"
FRAME = "reading-frame"
SITE_ZONE = "UTC"

Said = tuple[str, int, int]
"""What a device says: serial, device time in ms UTC, register in thousandths."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A row of a frame as it stands on shard-log. `appended_at_ms`: when Kafka took the frame."""

    serial: str
    device_time_ms: int
    register_milli: int
    reading_id: bytes
    began_at_ms: int
    received_at_ms: int
    appended_at_ms: int
    worker: str

    @property
    def said(self) -> Said:
        return self.serial, self.device_time_ms, self.register_milli


class Log:
    """What ingest writes, from the moment of `begin`."""

    def __init__(self, bootstrap: str) -> None:
        self._bootstrap = bootstrap
        self._begin: dict[TopicPartition, int] = {}

    async def begin(self) -> None:
        """Forget what stands there now."""
        await topics.create(self._bootstrap)
        known = topics.catalogue()
        every = [
            TopicPartition(topic, number)
            for topic in (LOG, REPLIES)
            for number in range(known.partitions_of(topic))
        ]
        async with kafka.consumer(self._bootstrap, client_id="judge") as reader:
            self._begin = await reader.end_offsets(every)

    async def readings(self, serials: Iterable[str]) -> list[Reading]:
        """Return every reading of these devices, in order of each shard, with repeats."""
        wanted = set(serials)
        return [
            row
            for subject, frame, at_ms in await self._read(LOG)
            if subject == FRAME
            for row in _rows(frame, at_ms)
            if row.serial in wanted
        ]

    async def replies(self, request_id: str) -> list[dict[str, Any]]:
        """Return what ingest answered to a request."""
        found = [reply for _, reply, _ in await self._read(REPLIES)]
        return [reply for reply in found if reply["request_id"] == request_id]

    async def _read(self, topic: str) -> list[tuple[str, dict[str, Any], int]]:
        partitions = [each for each in self._begin if each.topic == topic]
        found = []
        async with kafka.consumer(self._bootstrap, client_id="judge") as reader:
            reader.assign(partitions)
            for each in partitions:
                reader.seek(each, self._begin[each])
            async for record in kafka.read_to_end(reader, partitions):
                envelope, value = kafka.opened(record)
                found.append((envelope.subject, value, record.timestamp))
        return found


def _rows(frame: dict[str, Any], appended_at_ms: int) -> list[Reading]:
    return [
        Reading(
            row["serial"].decode("ascii"),
            int(row["device_time_ms"]),
            int(row["register_milli"]),
            bytes(row["reading_id"]),
            int(row["began_at_ms"]),
            int(row["received_at_ms"]),
            appended_at_ms,
            frame["worker"],
        )
        for row in ReadingFrame.from_record(frame).rows
    ]


@dataclass(frozen=True, slots=True)
class Meter:
    """A meter with a site and a gateway of its own. `address`: the gateway's, as registered."""

    name: str
    serial: str
    profile: str
    protocol: str
    address: str
    shard: int
    unit: int
    line_id: str

    def facts(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Return what vending tells of it: subject, entity, record."""
        site, gateway, meter = f"S-{self.name}", f"G-{self.name}", f"M-{self.name}"
        there = {
            **gateway_fact(gateway, protocol=self.protocol, address=self.address),
            "site_id": site,
            "line_id": self.line_id,
        }
        known = meter_fact(
            meter,
            serial=self.serial,
            gateway_id=gateway,
            line_id=self.line_id,
            site_id=site,
            profile=self.profile,
            shard=self.shard,
            unit=self.unit,
        )
        return [
            ("site-fact", f"sites/{site}", {**SITE, "site_id": site, "zone": SITE_ZONE}),
            ("gateway-fact", f"gateways/{gateway}", there),
            ("meter-fact", f"meters/{meter}", known),
        ]


async def register(bootstrap: str, *meters: Meter) -> None:
    """Write the meters' facts to the registry, as vending does."""
    async with kafka.producer(bootstrap, client_id="vending") as producer:
        for meter in meters:
            for subject, entity, record in meter.facts():
                await (
                    await kafka.send(
                        producer,
                        "registry",
                        subject,
                        record,
                        key=entity,
                        route=entity,
                        event_id=name_uuid(entity),
                        occurred_at_ms=0,
                    )
                )


async def ask(bootstrap: str, meter: Meter, operation: str) -> str:
    """Ask the owner of a meter's line as control does; return the request's id."""
    request_id = str(uuid4())
    is_write = operation == "write-registers"
    record = {
        "request_id": request_id,
        "requester": "control-0",
        "line_id": meter.line_id,
        "gateway_id": f"G-{meter.name}",
        "meter_id": f"M-{meter.name}",
        "serial": meter.serial,
        "unit": meter.unit,
        "profile": meter.profile,
        "operation": operation,
        "address": 0x0057 if is_write else None,
        "values": [1, 1] if is_write else [],
        "not_after_ms": None,
        "intent_epoch": None,
        "intent_offset": None,
        "attempt": 1,
        "requested_at_ms": 0,
    }
    async with kafka.producer(bootstrap, client_id="control") as producer:
        await (
            await kafka.send(
                producer,
                "device-requests",
                "device-request",
                record,
                key=f"M-{meter.name}",
                route=meter.line_id,
                event_id=name_uuid(request_id),
                occurred_at_ms=0,
            )
        )
    return request_id


def ingest(bootstrap: str, directory: Path, instance: str = "ingest-0", **settings: str) -> Worker:
    """Return a worker that is not started."""
    return Worker("ingest", {"KAFKA_BOOTSTRAP": bootstrap, **settings}, directory, instance)
