"""A gateway with meters on a raw socket, and an ingest around one line, without Kafka.

The gateway accepts one connection, answers one transaction at a time, and misbehaves as told.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from services.common.runtime.clock import SystemClock
from services.common.runtime.kafka import Outgoing
from services.common.runtime.profiles import profiles
from services.ingest.adapters.intake import Intake
from services.ingest.adapters.line_worker import LineSettings, LineWorker
from services.ingest.adapters.metrics import Metrics
from services.ingest.adapters.modbus_link import ModbusLink, silence_library
from services.ingest.domain.exchange import Request
from services.ingest.domain.presence import Presence
from services.ingest.domain.reading import MeterReading
from services.ingest.domain.registry import PROTOCOL_MODBUS_RTU, PROTOCOL_MODBUS_TCP, Registry
from services.ingest.domain.relay import RelayReports
from tests.unit.ingest_devices import LIVE_WORDS, SERIAL_WORDS, SITE, gateway_fact, meter_fact

DEADLINE_S = 10.0
RELAY = 0x0057
CLOCK = 0x0228


async def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, and say which one did not come true."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"never came true: {what}") from None


def crc16(data: bytes) -> bytes:
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0xA001 if crc & 1 else crc >> 1
    return crc.to_bytes(2, "little")


@dataclass
class Asked:
    """One transaction as the gateway saw it."""

    unit: int
    function: int
    address: int
    count: int
    values: tuple[int, ...] = ()


class Gateway:
    """A gateway with one connection.

    `fault(asked)` names how the next answer goes wrong: silence, exception, bad-crc, wrong-tid,
    truncated, garbage, drop, late; None: it goes well.
    """

    def __init__(self, *, is_rtu: bool = False) -> None:
        self.is_rtu = is_rtu
        self.registers: dict[int, dict[int, int]] = {}
        self.fault: Callable[[Asked], str | None] = lambda _: None
        self.answer_after_s = 0.0
        self.asked: list[Asked] = []
        self.overlaps = 0
        self.connections = 0
        self.refused = 0
        self.open: _Connection | None = None
        self.is_accepting = True
        self.clocks_follow = True
        self._server: asyncio.Server | None = None
        self.port = 0

    def add_meter(self, unit: int, serial: Iterable[int] = SERIAL_WORDS) -> None:
        there = self.registers[unit] = {}
        there.update({0x0200 + at: word for at, word in enumerate(LIVE_WORDS)})
        there.update({0x0043 + at: word for at, word in enumerate(serial)})

    def writes(self) -> list[Asked]:
        return [asked for asked in self.asked if asked.function == 0x10]

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is None:
            return
        self._server.close()
        if self.open is not None:
            self.open.transport.abort()
        await self._server.wait_closed()
        self._server = None


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.buffer = b""
        self.is_busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.gateway.open is not None or not self.gateway.is_accepting:
            self.gateway.refused += 1
            transport.abort()
            return
        self.gateway.connections += 1
        self.gateway.open = self

    def connection_lost(self, _: Exception | None) -> None:
        if self.gateway.open is self:
            self.gateway.open = None

    def data_received(self, data: bytes) -> None:
        if self.is_busy:
            self.gateway.overlaps += 1
        self.buffer += data
        frame, self.buffer = self.buffer, b""
        tid, body = (b"", frame[:-2]) if self.gateway.is_rtu else (frame[:2], frame[6:])
        if self.gateway.is_rtu:
            assert crc16(body) == frame[-2:]
        asked = Asked(
            body[0], body[1], int.from_bytes(body[2:4], "big"), int.from_bytes(body[4:6], "big")
        )
        if asked.function in (0x10, 0x20):
            words = body[7:]
            asked.values = tuple(
                int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2)
            )
        self.gateway.asked.append(asked)
        self.is_busy = True
        loop = asyncio.get_running_loop()
        loop.call_later(self.gateway.answer_after_s, self._answer, tid, asked)

    def _answer(self, tid: bytes, asked: Asked) -> None:
        self.is_busy = False
        fault = self.gateway.fault(asked)
        there = self.gateway.registers.get(asked.unit)
        if there is None or fault == "silence":
            return
        if fault == "drop":
            self.transport.abort()
            return
        head = bytes((asked.unit, asked.function))
        if fault == "exception":
            body = bytes((asked.unit, asked.function | 0x80, 0x04))
        elif asked.function == 0x10:
            for at, value in enumerate(asked.values):
                there[asked.address + at] = value
            if asked.address == RELAY:
                there[0x0224] = 0x0000 if asked.values == (1, 1) else 0x2000
            body = head + asked.address.to_bytes(2, "big") + asked.count.to_bytes(2, "big")
        elif asked.function == 0x20:
            if self.gateway.clocks_follow:
                set_clock(self.gateway)
            body = (head + asked.address.to_bytes(2, "big")).ljust(13, b"\0")
        else:
            words = [there.get(asked.address + at, 0) for at in range(asked.count)]
            data = b"".join(word.to_bytes(2, "big") for word in words)
            body = head + bytes((len(data),)) + data
        self._send(tid, body, fault)

    def _send(self, tid: bytes, body: bytes, fault: str | None) -> None:
        if fault == "wrong-tid":
            tid = (int.from_bytes(tid, "big") ^ 0x1111).to_bytes(2, "big")
        frame = (
            body + crc16(body)
            if self.gateway.is_rtu
            else tid + b"\x00\x00" + len(body).to_bytes(2, "big") + body
        )
        if fault == "bad-crc":
            frame = frame[:-1] + bytes((frame[-1] ^ 0xFF,))
        elif fault == "truncated":
            frame = frame[:-5]
        elif fault == "garbage":
            frame = b"\xde\xad\xbe\xef" * 4
        if fault == "late":
            asyncio.get_running_loop().call_later(0.25, self.transport.write, frame)
            return
        self.transport.write(frame)


@dataclass
class Kept:
    """What an ingest under test sent: in place of Kafka."""

    readings: list[MeterReading] = field(default_factory=list)
    sent: list[Outgoing] = field(default_factory=list)
    has_room: bool = True

    def offer(self, reading: MeterReading) -> asyncio.Future[None]:
        self.readings.append(reading)
        return asyncio.get_running_loop().create_future()

    def put(self, outgoing: Outgoing) -> asyncio.Future[bool]:
        self.sent.append(outgoing)
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        told.set_result(True)
        return told

    def records(self, topic: str) -> list[dict[str, Any]]:
        return [outgoing.record for outgoing in self.sent if outgoing.topic == topic]

    def status(self, device_id: str) -> tuple[str, str] | None:
        told = [r for r in self.records("device-status") if r["device_id"] == device_id]
        return (told[-1]["status"], told[-1]["reason"]) if told else None

    def reply(self, request_id: str) -> dict[str, Any] | None:
        told = [r for r in self.records("device-replies") if r["request_id"] == request_id]
        assert len(told) < 2, "one reply a request"
        return told[0] if told else None


@dataclass
class Ours:
    """What Kafka has confirmed of the line."""

    now: bool = True

    def __call__(self) -> bool:
        return self.now


@dataclass
class LineWorld:
    """One line of an ingest, at a gateway."""

    gateway: Gateway
    kept: Kept
    registry: Registry
    intake: Intake
    worker: LineWorker
    metrics: CollectorRegistry
    ours: Ours
    _requests: int = 0

    def ask(self, operation: str = "read-live", **changed: Any) -> str:
        """Submit a request and return its id."""
        self._requests += 1
        request_id = f"request-{self._requests}"
        meter = self.registry.meter(changed.get("meter_id", "M1"))
        record = {
            "request_id": request_id,
            "requester": "control-0",
            "line_id": "line-G1",
            "meter_id": "M1",
            "serial": "" if meter is None else meter.serial,
            "unit": 0 if meter is None else meter.unit,
            "profile": "" if meter is None else meter.profile,
            "operation": operation,
            "address": RELAY if operation == "write-registers" else None,
            "values": [1, 1] if operation == "write-registers" else [],
            "not_after_ms": None,
            **changed,
        }
        self.worker.submit(Request.from_record(record))
        return request_id

    async def answered(self, request_id: str) -> dict[str, Any]:
        await until(lambda: self.kept.reply(request_id), f"reply to {request_id}")
        reply = self.kept.reply(request_id)
        assert reply is not None
        return reply

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.get_sample_value(name, labels) or 0.0


def set_clock(gateway: Gateway, ahead: timedelta = timedelta()) -> None:
    """Set every meter's clock to now, as in UTC: the world's site lies there. `ahead`: of it."""
    now = datetime.now(UTC) + ahead
    parts = bytes((now.year - 2000, now.month, now.day, 0, now.hour, now.minute, now.second, 0))
    for there in gateway.registers.values():
        for at in range(4):
            there[CLOCK + at] = int.from_bytes(parts[2 * at : 2 * at + 2], "big")


@asynccontextmanager
async def line_world(
    gateway: Gateway, meters: list[dict[str, Any]] | None = None, **changed: int
) -> Any:
    """Run one line. `changed`: of LineSettings."""
    silence_library()
    if gateway.port == 0:
        await gateway.start()
    set_clock(gateway)
    registry = Registry()
    registry.absorb("site-fact", {**SITE, "zone": "UTC"})
    protocol = PROTOCOL_MODBUS_RTU if gateway.is_rtu else PROTOCOL_MODBUS_TCP
    registry.absorb(
        "gateway-fact", gateway_fact(protocol=protocol, address=f"127.0.0.1:{gateway.port}")
    )
    for fact in meters or [meter_fact()]:
        registry.absorb("meter-fact", fact)
    kept, clock, collected, ours = Kept(), SystemClock(), CollectorRegistry(), Ours()
    metrics = Metrics(collected)
    log = structlog.get_logger("test")
    intake = Intake(
        worker="ingest-0",
        registry=registry,
        profiles=profiles(),
        presence=Presence("ingest-0", 30_000),
        relays=RelayReports(10_000),
        frames=kept,
        outbox=kept,
        clock=clock,
        metrics=metrics,
        log=log,
    )
    settings: dict[str, Any] = {
        "poll_interval_ms": 50,
        "transaction_timeout_ms": 200,
        "offline_after_failures": 2,
        "probe_backoff_max_ms": 200,
        "reconnect_backoff_max_ms": 200,
        "serial_recheck_ms": 300,
        "requests_max": 8,
        "set_clocks": True,
        **changed,
    }
    worker = LineWorker(
        registry.polled_lines()["line-G1"],
        ModbusLink(
            "127.0.0.1",
            gateway.port,
            is_rtu=gateway.is_rtu,
            timeout_ms=settings["transaction_timeout_ms"],
            clock=clock,
            is_ours=ours,
        ),
        LineSettings(**settings),
        is_ours=ours,
        profiles=profiles(),
        intake=intake,
        clock=clock,
        metrics=metrics,
        log=log,
    )
    task = asyncio.create_task(worker.run())
    try:
        yield LineWorld(gateway, kept, registry, intake, worker, collected, ours)
    finally:
        worker.close()
        async with asyncio.timeout(DEADLINE_S):
            await task
        await gateway.stop()
