"""A bus line with one meter behind a gateway, which knows what was asked on which connection.

Every live answer shows another register, so that a reading on shard-log names the very exchange it
came from. Nothing here is shared with the product or its library.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tests.integration.ingest_line_world import CLOCK, RELAY, crc16
from tests.recovery.ingest_world import Meter, Reading
from tests.unit.ingest_devices import LIVE_WORDS
from tools.stack.ports import LOOPBACK

LIVE, SERIAL = 0x0200, 0x0043
REGISTER, RELAY_BITS = 0x0215, 0x0224
READ, WRITE = 0x03, 0x10
FIRST_REGISTER_LSB = 100_000
LSB_MILLI = 10
OPEN = (1, 1)
CONNECTIONS_MAX = 100


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True)
class Exchange:
    """One request and what became of it, ms UTC. `number` counts from 0, as `connection` does."""

    number: int
    connection: int
    function: int
    address: int
    count: int
    values: tuple[int, ...]
    arrived_at_ms: int
    answered_at_ms: int | None = None

    @property
    def is_live_read(self) -> bool:
        return (self.function, self.address) == (READ, LIVE)

    @property
    def register_lsb(self) -> int:
        """The register that its answer shows."""
        return FIRST_REGISTER_LSB + self.number


@dataclass
class Bus:
    """The gateway, in Modbus TCP, or RTU frames over TCP.

    `connections_max`: more are closed at once. An RTU gateway passes on what the meter says to the
    newest connection, whoever had asked. The meter takes `answers_after_s` and answers one request
    after the other; an answer for which `holds` says so waits for `release`.
    """

    name: str
    serial: str
    line_id: str
    is_rtu: bool = False
    connections_max: int = CONNECTIONS_MAX
    answers_after_s: float = 0.0
    holds: Callable[[Exchange], bool] = lambda _: False
    exchanges: list[Exchange] = field(default_factory=list)
    refused: int = 0
    is_open: bool = False
    port: int = 0
    _connections: list["_Connection"] = field(default_factory=list)
    _waiting: asyncio.Queue[tuple[Exchange, bytes]] = field(default_factory=asyncio.Queue)
    _released: asyncio.Event = field(default_factory=asyncio.Event)
    held: Exchange | None = None

    @property
    def meter(self) -> Meter:
        return Meter(
            self.name,
            self.serial,
            "acrel-ddsy1352",
            "modbus-rtu-over-tcp" if self.is_rtu else "modbus-tcp",
            f"{LOOPBACK}:{self.port}",
            shard=0,
            unit=1,
            line_id=self.line_id,
        )

    @property
    def writes(self) -> list[Exchange]:
        return [exchange for exchange in self.exchanges if exchange.function == WRITE]

    @property
    def has_waiting(self) -> bool:
        """Whether a request waits behind the one that is under way."""
        return not self._waiting.empty()

    def is_connected(self, connection: int) -> bool:
        return self._connections[connection].is_up

    def release(self) -> None:
        """Let the meter answer what it was held at, and hold nothing more."""
        self.holds = lambda _: False
        self._released.set()

    def hold(self, holds: Callable[[Exchange], bool]) -> None:
        self.holds, self.held = holds, None
        self._released.clear()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Bus"]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: _Connection(self), LOOPBACK, 0)
        self.port = server.sockets[0].getsockname()[1]
        meter = asyncio.create_task(self._answer())
        try:
            yield self
        finally:
            meter.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await meter
            server.close()
            for connection in self._connections:
                connection.transport.abort()

    def accepted(self, connection: "_Connection") -> int | None:
        """Return the connection's number; None where there are enough."""
        if sum(each.is_up for each in self._connections) >= self.connections_max:
            self.refused += 1
            return None
        self._connections.append(connection)
        return len(self._connections) - 1

    def asked(self, exchange: Exchange, tid: bytes) -> None:
        self.exchanges.append(exchange)
        self._waiting.put_nowait((exchange, tid))

    async def _answer(self) -> None:
        while True:
            exchange, tid = await self._waiting.get()
            await asyncio.sleep(self.answers_after_s)
            body = self._executed(exchange)
            if self.holds(exchange):
                self.held = exchange
                await self._released.wait()
            exchange.answered_at_ms = now_ms()
            if self.is_rtu:
                self._connections[-1].say(body + crc16(body))
            else:
                head = tid + b"\x00\x00" + len(body).to_bytes(2, "big")
                self._connections[exchange.connection].say(head + body)

    def _executed(self, exchange: Exchange) -> bytes:
        head = bytes((1, exchange.function))
        if exchange.function == WRITE:
            self.is_open = exchange.values == OPEN
            return head + exchange.address.to_bytes(2, "big") + exchange.count.to_bytes(2, "big")
        words = self._words(exchange)
        return head + bytes((2 * len(words),)) + b"".join(word.to_bytes(2, "big") for word in words)

    def _words(self, exchange: Exchange) -> list[int]:
        if exchange.address == SERIAL:
            return [int(self.serial[at : at + 4], 16) for at in (0, 4, 8)]
        assert exchange.is_live_read
        words = list(LIVE_WORDS)
        now = datetime.now(UTC)
        clock = bytes((now.year - 2000, now.month, now.day, 0, now.hour, now.minute, now.second, 0))
        for at in range(4):
            words[CLOCK - LIVE + at] = int.from_bytes(clock[2 * at : 2 * at + 2], "big")
        words[REGISTER - LIVE] = exchange.register_lsb >> 16
        words[REGISTER - LIVE + 1] = exchange.register_lsb & 0xFFFF
        words[RELAY_BITS - LIVE] = 0x0000 if self.is_open else 0x2000
        return words


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._number: int | None = None
        self.is_up = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._number = self._bus.accepted(self)
        self.is_up = self._number is not None
        if not self.is_up:
            transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.is_up = False

    def say(self, frame: bytes) -> None:
        if self.is_up:
            self.transport.write(frame)

    def data_received(self, frame: bytes) -> None:
        """Take one request: the product writes each at once."""
        assert self._number is not None
        tid, body = (b"", frame[:-2]) if self._bus.is_rtu else (frame[:2], frame[6:])
        assert not self._bus.is_rtu or crc16(body) == frame[-2:]
        words = [int.from_bytes(body[at : at + 2], "big") for at in range(7, len(body), 2)]
        exchange = Exchange(
            len(self._bus.exchanges),
            self._number,
            body[1],
            int.from_bytes(body[2:4], "big"),
            int.from_bytes(body[4:6], "big"),
            tuple(words) if body[1] == WRITE else (),
            now_ms(),
        )
        assert body[1] == READ or exchange.address == RELAY
        self._bus.asked(exchange, tid)


# --- the judge ------------------------------------------------------------------------------------


def untrue(bus: Bus, readings: Sequence[Reading]) -> list[str]:
    """Return the readings that are not what the meter answered to the request they stand for.

    The request was written after `began_at_ms`, and answered before `received_at_ms`.
    """
    wrong = []
    live = {each.register_lsb * LSB_MILLI: each for each in bus.exchanges if each.is_live_read}
    for row in readings:
        exchange = live.get(row.register_milli)
        if exchange is None or exchange.answered_at_ms is None:
            wrong.append(f"{row}: the meter never said so")
        elif not (
            row.began_at_ms <= exchange.arrived_at_ms
            and exchange.answered_at_ms <= row.received_at_ms
        ):
            wrong.append(f"{row} is the answer of another exchange: {exchange}")
    return wrong


def shared(bus: Bus) -> list[Exchange]:
    """Return the exchanges on a connection that had been left for another one.

    Each owner of a line has connections of its own: once a later one is used, no earlier may be.
    """
    newest, found = 0, []
    for exchange in bus.exchanges:
        if exchange.connection < newest:
            found.append(exchange)
        newest = max(newest, exchange.connection)
    return found
