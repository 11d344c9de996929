"""MQTT 3.1.1 by hand: devices that know what was acknowledged to them, and a tap on ingest's line.

Nothing here is shared with the product or its library: what a packet number stands for is this
module's own bookkeeping.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.recovery.ingest_world import Meter, Reading, Said
from tests.recovery.workers import until
from tests.unit.ingest_devices import data_message

PRODUCT = "AWT100"
PUBLISH, PUBACK = 3, 4
CONNACK_ACCEPTED = b"\x00\x00"
KEEPALIVE_S = 60
RECONNECT_S = 0.05
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Publishing = AbstractAsyncContextManager[None]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


# --- packets --------------------------------------------------------------------------------------


def packet(first: int, body: bytes) -> bytes:
    """Return a control packet; `first` is its type and flags."""
    left, size = len(body), bytearray()
    while True:
        left, seven = left >> 7, left & 0x7F
        size.append(seven | (0x80 if left else 0))
        if not left:
            return bytes((first, *size)) + body


def text(value: str) -> bytes:
    return len(value).to_bytes(2, "big") + value.encode()


async def next_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Return first byte and body of the next packet; IncompleteReadError at the end."""
    first = (await reader.readexactly(1))[0]
    size = shift = 0
    while True:
        seven = (await reader.readexactly(1))[0]
        size |= (seven & 0x7F) << shift
        shift += 7
        if not seven & 0x80:
            return first, await reader.readexactly(size)


def published(first: int, body: bytes) -> tuple[int, bytes]:
    """Return packet number (0 at QoS 0) and payload of a PUBLISH."""
    end = 2 + int.from_bytes(body[:2], "big")
    if not first & 0x06:
        return 0, body[end:]
    return int.from_bytes(body[end : end + 2], "big"), body[end + 2 :]


# --- devices --------------------------------------------------------------------------------------


@dataclass
class Device:
    """An MQTT gateway with one meter. Each message is a reading, one second and 10 Wh on.

    `acknowledged`: what the broker sent a PUBACK for. What has none is sent again, with its number
    and DUP, on the next connection, as MQTT 4.4 wants it.
    """

    name: str
    shard: int
    begins: datetime
    sent: dict[int, bytes] = field(default_factory=dict)
    waiting: dict[int, None] = field(default_factory=dict)
    acknowledged: set[Said] = field(default_factory=set)
    is_quiet: bool = False

    @property
    def serial(self) -> str:
        return f"m{self.name}"

    @property
    def meter(self) -> Meter:
        return Meter(
            self.name,
            self.serial,
            "acrel-mqtt",
            "mqtt-acrel",
            f"{PRODUCT}/g{self.name}",
            self.shard,
            unit=0,
            line_id=f"line-{self.name}",
        )

    @property
    def registers_milli(self) -> tuple[int, int]:
        """The first register it told, and the last."""
        return said(self.sent[1])[2], self.newest[2]

    @property
    def newest(self) -> Said:
        """What it said last."""
        return said(self.sent[len(self.sent)])

    def _next(self) -> int:
        number = len(self.sent) + 1
        assert number < 1 << 16, "packet numbers are used once"
        told = self.begins + timedelta(seconds=number)
        register_milli = 1_000_000 + 10 * number
        message = data_message(
            time=told.strftime("%Y%m%d%H%M%S"),
            gwSN=f"g{self.name}",
            meterSN=self.serial,
            wh="KWH",
        )
        kwh = f"{register_milli // 1000}.{register_milli % 1000:03}"
        self.sent[number] = json.dumps(message).replace('"KWH"', kwh).encode()
        self.waiting[number] = None
        return number

    def _publish(self, writer: asyncio.StreamWriter, number: int, *, again: bool) -> None:
        topic = f"/gw/acrelHW/{PRODUCT}/data/g{self.name}"
        body = text(topic) + number.to_bytes(2, "big") + self.sent[number]
        writer.write(packet(PUBLISH << 4 | 0x02 | (0x08 if again else 0), body))

    async def run(self, host: str, port: int, every_s: float) -> None:
        """Publish a reading each `every_s`, connecting anew whenever the broker is away."""
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._connected(host, port, every_s)
            await asyncio.sleep(RECONNECT_S)

    async def _connected(self, host: str, port: int, every_s: float) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        reading: asyncio.Task[None] | None = None
        try:
            hello = text("MQTT") + bytes((4, 0x02)) + KEEPALIVE_S.to_bytes(2, "big")
            writer.write(packet(0x10, hello + text(f"device-{self.name}")))
            _, answer = await next_packet(reader)
            assert answer == CONNACK_ACCEPTED
            reading = asyncio.create_task(self._read(reader))
            for number in self.waiting:
                self._publish(writer, number, again=True)
            while not reading.done():
                if not self.is_quiet:
                    self._publish(writer, self._next(), again=False)
                await writer.drain()
                await asyncio.wait((reading,), timeout=every_s)
            reading.result()
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while True:
            first, body = await next_packet(reader)
            if first >> 4 == PUBACK:
                number = int.from_bytes(body, "big")
                if number in self.waiting:
                    del self.waiting[number]
                    self.acknowledged.add(said(self.sent[number]))


def said(payload: bytes) -> Said:
    """Return what a `data` payload of a Device says."""
    body = json.loads(payload, parse_float=Decimal)
    told = datetime.strptime(body["time"], "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    at_ms = (told - EPOCH) // timedelta(milliseconds=1)
    return (body["meterSN"], at_ms, int(body["wh"] * 1000))


@asynccontextmanager
async def publishing(
    devices: Sequence[Device], host: str, port: int, every_s: float
) -> AsyncIterator[None]:
    """Let the devices publish meanwhile; they leave when all they said is acknowledged."""
    tasks = [asyncio.create_task(device.run(host, port, every_s)) for device in devices]
    try:
        yield
        for device in devices:
            device.is_quiet = True
        await until(lambda: not any(device.waiting for device in devices), "all is acknowledged")
        for task in tasks:
            assert not task.done(), task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# --- the tap --------------------------------------------------------------------------------------


@dataclass
class Tap:
    """Stands between ingest and its broker, changes nothing, and keeps what ingest acknowledged.

    `acknowledged`: each message, at the moment of its PUBACK, ms UTC.
    """

    host: str
    port: int
    acknowledged: list[tuple[Said, int]] = field(default_factory=list)
    listens_at: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Tap"]:
        connections: set[asyncio.Task[None]] = set()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        server = await asyncio.start_server(accepted, self.host, 0)
        self.listens_at = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in list(connections):
                task.cancel()
            await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        delivered: dict[int, bytes] = {}
        to_broker: asyncio.StreamWriter | None = None
        ways: list[asyncio.Task[None]] = []
        try:
            from_broker, to_broker = await asyncio.open_connection(self.host, self.port)
            ways = [
                asyncio.create_task(self._deliveries(from_broker, to_client, delivered)),
                asyncio.create_task(self._answers(from_client, to_broker, delivered)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            pass  # the broker is away: the client sees its connection end
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in (to_client, to_broker):
                if end is not None:
                    end.close()

    @staticmethod
    async def _deliveries(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delivered: dict[int, bytes]
    ) -> None:
        while True:
            first, body = await next_packet(reader)
            if first >> 4 == PUBLISH:
                number, payload = published(first, body)
                delivered[number] = payload
            writer.write(packet(first, body))
            await writer.drain()

    async def _answers(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        delivered: dict[int, bytes],
    ) -> None:
        while True:
            first, body = await next_packet(reader)
            if first >> 4 == PUBACK:
                payload = delivered.pop(int.from_bytes(body[:2], "big"))
                self.acknowledged.append((said(payload), now_ms()))
            writer.write(packet(first, body))
            await writer.drain()


# --- the judge ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """Two hops, judged by the log.

    `lost`: what the broker acknowledged to a device and is not on the log. `early`: what ingest
    acknowledged to the broker when it was not on the log. `judged`: how many acknowledgements of
    both kinds there were. `repeats`: rows that repeat another.
    """

    judged: int
    lost: frozenset[Said]
    early: frozenset[Said]
    repeats: int


def judged(devices: Sequence[Device], readings: Sequence[Reading], tap: Tap) -> Verdict:
    """Compare; fail where one reading has two ids, an id two readings, or nobody said it."""
    ever_said = {said(payload) for device in devices for payload in device.sent.values()}
    first_at_ms: dict[Said, int] = {}
    ids: dict[Said, bytes] = {}
    for row in readings:
        key = row.said
        assert key in ever_said, f"{key} is on the log, and no device said it"
        assert ids.setdefault(key, row.reading_id) == row.reading_id, f"{key} has two ids"
        first_at_ms[key] = min(row.appended_at_ms, first_at_ms.get(key, row.appended_at_ms))
    assert len(set(ids.values())) == len(ids), "two readings have one id"
    told = set().union(*(device.acknowledged for device in devices))
    early = {key for key, at_ms in tap.acknowledged if first_at_ms.get(key, 1 << 62) > at_ms}
    return Verdict(
        judged=len(told) + len(tap.acknowledged),
        lost=frozenset(told - ids.keys()),
        early=frozenset(early),
        repeats=len(readings) - len(ids),
    )
