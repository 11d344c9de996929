"""Modbus gateways: Modbus TCP, and RTU frames over TCP. Packed by hand; one connection each.

A gateway serves one master. A second connection is accepted by TCP and closed at once, as real
ones do. Transactions go one after the other, each taking `transaction_delay_ms`. A meter that is
away, or does not exist, or gets a frame with a wrong CRC answers nothing.
"""

import asyncio
import contextlib
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol as Port

import structlog

from tools.fleet import registers
from tools.fleet.config import GatewayConfig, Protocol
from tools.fleet.errors import ListenError
from tools.fleet.meter import FaultKind, Meter, Presence

LOOPBACK = "127.0.0.1"
READ_HOLDING = 0x03
WRITE_MULTIPLE = 0x10
WRITE_PRIVATE = 0x20
READ_COUNT_MAX = 125
ILLEGAL_FUNCTION, ILLEGAL_ADDRESS, ILLEGAL_VALUE = 1, 2, 3
PDU_SIZE_MAX = 253
PRIVATE_ANSWER_SIZE = 12
"""Function code and data; 15 bytes with unit and CRC."""
# Nobody sends the second half of a frame later than this: what follows is another frame.
SILENCE_S = 0.02

FRAME_FAULTS = frozenset({FaultKind.WRONG_CRC, FaultKind.MALFORMED})

log = structlog.get_logger("fleet.modbus")


# --- the protocol's data units -------------------------------------------------------------------


def execute(meter: Meter, pdu: bytes, now_ms: int) -> tuple[bytes, FaultKind | None]:
    """Return the answer to a request, and the fault that its frame must show, if any.

    `pdu` is function code and data, not empty; the answer is an exception (code | 0x80, reason)
    where the device refuses.
    """
    function = pdu[0]
    if function == READ_HOLDING:
        return read_holding(meter, pdu, now_ms)
    if function == WRITE_MULTIPLE:
        answer = write_multiple(meter, pdu, now_ms)
    elif function == WRITE_PRIVATE:
        answer = write_private(meter, pdu, now_ms)
    else:
        answer = refusal(function, ILLEGAL_FUNCTION)
    _, frame_fault = meter.shown(now_ms, FRAME_FAULTS)
    return answer, frame_fault


def read_holding(meter: Meter, pdu: bytes, now_ms: int) -> tuple[bytes, FaultKind | None]:
    if len(pdu) != 5:
        return refusal(READ_HOLDING, ILLEGAL_VALUE), None
    address, count = struct.unpack(">HH", pdu[1:])
    if not 1 <= count <= READ_COUNT_MAX:
        return refusal(READ_HOLDING, ILLEGAL_VALUE), None
    kinds = set(FRAME_FAULTS)
    is_reading = registers.shows_energy(address, count)
    if is_reading:
        kinds.add(FaultKind.ABSURD_REGISTER)
    if registers.shows_serial(address, count):
        kinds.add(FaultKind.WRONG_SERIAL)
    snapshot, fault = meter.shown(now_ms, frozenset(kinds))
    data = registers.read(snapshot, address, count)
    if data is None:
        return refusal(READ_HOLDING, ILLEGAL_ADDRESS), fault
    if is_reading and fault is None:
        meter.served(snapshot, now_ms)
    return bytes((READ_HOLDING, len(data))) + data, fault


def written(pdu: bytes) -> tuple[int, int, bytes] | None:
    """Return (address, count, values) of a write; None where it is malformed."""
    if len(pdu) < 6:
        return None
    address, count, size = struct.unpack(">HHB", pdu[1:6])
    values = pdu[6:]
    is_whole = size == count * 2 == len(values) and count > 0
    return (address, count, values) if is_whole else None


def write_private(meter: Meter, pdu: bytes, now_ms: int) -> bytes:
    """Set the clock: all that this meter knows of the private function."""
    found = written(pdu)
    if found is None:
        return refusal(WRITE_PRIVATE, ILLEGAL_VALUE)
    address, count, values = found
    if (address, count) != (registers.CLOCK_AT, registers.CLOCK_COUNT):
        return refusal(WRITE_PRIVATE, ILLEGAL_ADDRESS)
    local = registers.clock_of(values)
    if local is None:
        return refusal(WRITE_PRIVATE, ILLEGAL_VALUE)
    meter.set_clock(local, now_ms)
    return pdu[:5].ljust(PRIVATE_ANSWER_SIZE, b"\0")


def write_multiple(meter: Meter, pdu: bytes, now_ms: int) -> bytes:
    """Write the forced control: the only registers of the map that it writes."""
    found = written(pdu)
    if found is None:
        return refusal(WRITE_MULTIPLE, ILLEGAL_VALUE)
    address, count, values = found
    if (address, count) != (registers.FORCED_AT, registers.FORCED_COUNT):
        return refusal(WRITE_MULTIPLE, ILLEGAL_ADDRESS)
    forced = registers.FORCED_OF_PAIR.get(struct.unpack(">HH", values))
    if forced is None:
        return refusal(WRITE_MULTIPLE, ILLEGAL_VALUE)
    meter.command(forced, now_ms)
    return pdu[:5]


def refusal(function: int, reason: int) -> bytes:
    return bytes((function | 0x80, reason))


# --- framing -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came. `transaction` is 0 where the framing has none."""

    unit: int
    pdu: bytes
    transaction: int = 0


class LostError(Exception):
    """The stream makes no sense any more: the connection is closed."""


class Framing(Port):
    """How requests and answers stand in a byte stream."""

    async def receive(self, reader: asyncio.StreamReader) -> Request:
        """Return the next request; raise LostError, or IncompleteReadError at the stream's end."""
        ...

    def frame(self, request: Request, answer: bytes, fault: FaultKind | None) -> bytes:
        """Return the answer's bytes, wrong where there is a fault."""
        ...


class TcpFraming:
    """MBAP: transaction, protocol 0, length of what follows, unit."""

    async def receive(self, reader: asyncio.StreamReader) -> Request:
        header = await reader.readexactly(7)
        transaction, protocol, length, unit = struct.unpack(">HHHB", header)
        if protocol != 0 or not 2 <= length <= PDU_SIZE_MAX + 1:
            raise LostError(f"no Modbus TCP header: {header.hex(' ')}")
        return Request(unit, await reader.readexactly(length - 1), transaction)

    def frame(self, request: Request, answer: bytes, fault: FaultKind | None) -> bytes:
        protocol = 0xDEAD if fault is FaultKind.MALFORMED else 0
        length = len(answer) + 1
        return struct.pack(">HHHB", request.transaction, protocol, length, request.unit) + answer


class RtuFraming:
    """Unit, PDU, CRC (low byte first); frames are known by their function, else by silence."""

    async def receive(self, reader: asyncio.StreamReader) -> Request:
        while True:
            frame = await self._frame(reader)
            if len(frame) >= 4 and crc16(frame[:-2]) == frame[-2:]:
                return Request(frame[0], frame[1:-2])
            log.warning("frame dropped: its CRC is wrong", frame=frame.hex(" "))
            await self._until_silence(reader)

    async def _frame(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readexactly(2)
        function = head[1]
        if 0x01 <= function <= 0x06:
            return head + await reader.readexactly(6)
        if function in (0x0F, WRITE_MULTIPLE, WRITE_PRIVATE):
            head += await reader.readexactly(5)
            return head + await reader.readexactly(head[6] + 2)
        return head + await self._until_silence(reader)

    async def _until_silence(self, reader: asyncio.StreamReader) -> bytes:
        received = b""
        with contextlib.suppress(TimeoutError):
            while len(received) <= PDU_SIZE_MAX:
                async with asyncio.timeout(SILENCE_S):
                    chunk = await reader.read(256)
                if not chunk:
                    break
                received += chunk
        return received

    def frame(self, request: Request, answer: bytes, fault: FaultKind | None) -> bytes:
        body = bytes((request.unit,)) + answer
        if fault is FaultKind.MALFORMED:
            return body[: len(body) // 2]
        crc = crc16(body)
        if fault is FaultKind.WRONG_CRC:
            crc = bytes(byte ^ 0xFF for byte in crc)
        return body + crc


FRAMINGS: Mapping[Protocol, type[Framing]] = {
    Protocol.MODBUS_TCP: TcpFraming,
    Protocol.MODBUS_RTU_OVER_TCP: RtuFraming,
}


def crc16(data: bytes) -> bytes:
    """Return the CRC-16/MODBUS of `data` as it is sent: low byte first."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ 0xA001 if crc & 1 else crc >> 1
    return crc.to_bytes(2, "little")


# --- the gateway ---------------------------------------------------------------------------------


class ModbusGateway:
    """A serial server with meters behind it."""

    def __init__(
        self,
        config: GatewayConfig,
        meters: Mapping[int, Meter],
        now_ms: Callable[[], int],
    ) -> None:
        self.config = config
        self.refused_count = 0
        self._meters = meters
        self._now_ms = now_ms
        self._framing = FRAMINGS[config.protocol]()
        self._port = config.port
        self._server: asyncio.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"{LOOPBACK}:{self._port}"

    @property
    def is_online(self) -> bool:
        return self._server is not None

    @property
    def missing(self) -> str | None:
        """Nothing: a gateway that was opened listens."""
        return None

    def state(self) -> dict[str, object]:
        connected = self._serving is not None
        return {"connected": connected, "connections_refused": self.refused_count}

    async def open(self) -> None:
        """Listen; from the first time on, at the same port. Raises ListenError."""
        if self._server is not None:
            return
        try:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, self._port)
        except OSError as taken:
            raise ListenError(
                f"gateway {self.config.id} cannot listen on {self.address} ({taken.strerror}); "
                "free the port or write another one (0: any) into the fleet's configuration"
            ) from taken
        self._port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Drop the connection and refuse new ones."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        if self._serving is not None:
            serving = self._serving
            serving.cancel()
            await asyncio.wait([serving])
            self._serving = None
        await server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._serving is not None or self._server is None:
            self.refused_count += 1
            log.info("second connection refused", gateway=self.config.id)
            writer.close()
            return
        self._serving = asyncio.create_task(self._serve_until_lost(reader, writer))

    async def _serve_until_lost(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            await self._serve(reader, writer)
        except LostError as lost:
            log.warning("connection dropped", gateway=self.config.id, reason=str(lost))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the master left
        finally:
            self._serving = None
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await self._framing.receive(reader)
            await asyncio.sleep(self.config.transaction_delay_ms / 1_000)
            meter = self._meters.get(request.unit)
            if meter is None or meter.presence is not Presence.ONLINE:
                continue
            answer, fault = execute(meter, request.pdu, self._now_ms())
            writer.write(self._framing.frame(request, answer, fault))
            await writer.drain()
