"""Modbus over TCP, plain or with RTU framing: the only module that knows pymodbus.

What pymodbus 3.16 does not do by itself: it lets a request wait for its whole timeout after the
connection broke; it calls garbage a timeout; it reconnects by itself, which a gateway that accepts
one connection does not survive. So each connection is a client of its own, without reconnects and
without retries, and its trace hooks see every byte.
"""

import asyncio
import contextlib
import logging
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from pymodbus import FramerType, ModbusException
from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ConnectionException
from pymodbus.pdu import ModbusPDU

from services.common.kernel.clock import Clock
from services.common.kernel.profiles import WRITE_PRIVATE
from services.common.runtime import points
from services.ingest.domain.exchange import Answer, Result

NEVER_GIVE_UP = 1 << 30
"""Silences after which pymodbus drops the connection by itself: that is the line's to decide."""


def silence_library() -> None:
    """Keep pymodbus from logging each silence of a meter as an error: the line says it once."""
    logging.getLogger("pymodbus").setLevel(logging.CRITICAL)


class _PrivateWrite(ModbusPDU):
    """Registers written with Acrel's own function, framed like 0x10."""

    function_code = WRITE_PRIVATE

    def encode(self) -> bytes:
        head = struct.pack(">HHB", self.address, self.count, 2 * self.count)
        return head + struct.pack(f">{self.count}H", *self.registers)


class _PrivateAnswer(ModbusPDU):
    """Its answer, 15 bytes as an RTU frame. What they say nobody tells."""

    function_code = WRITE_PRIVATE
    rtu_frame_size = 15


class _ExpiredError(Exception):
    """The time to write had passed; nothing was written."""


class _NotOursError(Exception):
    """The line may be another worker's; nothing was written."""


class _Connection:
    """One TCP connection and what is known of its transaction under way."""

    def __init__(
        self,
        host: str,
        port: int,
        framer: FramerType,
        *,
        timeout_s: float,
        clock: Clock,
        is_ours: Callable[[], bool],
    ) -> None:
        self._clock = clock
        self._is_ours = is_ours
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.began_at_ms: int | None = None
        self.heard_bytes = 0
        self.not_after_ms: int | None = None
        self.client = AsyncModbusTcpClient(
            host,
            port=port,
            framer=framer,
            timeout=timeout_s,
            retries=0,
            reconnect_delay=0,
            trace_packet=self._packet,
            trace_connect=self._connected,
        )
        self.client.set_max_no_responses(NEVER_GIVE_UP)
        self.client.register(_PrivateAnswer)

    def _connected(self, is_connected: bool) -> None:
        if not is_connected and not self.lost.done():
            self.lost.set_result(None)

    def _packet(self, is_sending: bool, data: bytes) -> bytes:
        if not is_sending:
            self.heard_bytes += len(data)
            return data
        # Nothing is awaited between here and the write to the socket.
        if not self._is_ours():
            raise _NotOursError
        now_ms = self._clock.now_ms()
        if self.not_after_ms is not None and now_ms > self.not_after_ms:
            raise _ExpiredError
        self.began_at_ms = now_ms
        return data


class ModbusLink:
    """services.ingest.domain.exchange.Link on pymodbus.

    `is_ours` is asked when the bytes of a request leave for the socket, as its time is.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        is_rtu: bool,
        timeout_ms: int,
        clock: Clock,
        is_ours: Callable[[], bool],
    ) -> None:
        self._host = host
        self._port = port
        self._is_rtu = is_rtu
        self._timeout_ms = timeout_ms
        self._clock = clock
        self._is_ours = is_ours
        self._connection: _Connection | None = None
        self._is_resync = False

    @property
    def is_resync(self) -> bool:
        """Whether the last connection was dropped on our side, to be rid of a late answer."""
        return self._is_resync

    @property
    def is_connected(self) -> bool:
        """Whether a transaction may be tried."""
        return self._connection is not None and self._connection.client.connected

    async def connect(self) -> str:
        """Connect anew; return "", or why it failed."""
        self.close()
        self._is_resync = False
        framer = FramerType.RTU if self._is_rtu else FramerType.SOCKET
        connection = _Connection(
            self._host,
            self._port,
            framer,
            timeout_s=self._timeout_ms / 1000,
            clock=self._clock,
            is_ours=self._is_ours,
        )
        try:
            is_there = await connection.client.connect()
        except BaseException:
            connection.client.close()
            raise
        if not is_there:
            connection.client.close()
            return f"nobody accepts a connection at {self._host}:{self._port}"
        self._connection = connection
        return ""

    def close(self) -> None:
        """Drop the connection."""
        if self._connection is not None:
            self._connection.client.close()
            self._connection = None

    async def read(
        self, unit: int, address: int, count: int, not_after_ms: int | None = None
    ) -> Answer:
        """Read `count` holding registers (function 0x03)."""

        def fits(pdu: Any) -> bool:
            return len(pdu.registers) == count

        return await self._transaction(
            lambda client: client.read_holding_registers(address, count=count, device_id=unit),
            fits,
            not_after_ms,
        )

    async def write(
        self, unit: int, address: int, values: Sequence[int], not_after_ms: int | None
    ) -> Answer:
        """Write registers (function 0x10)."""

        def fits(pdu: Any) -> bool:
            return bool(pdu.address == address and pdu.count == len(values))

        return await self._transaction(
            lambda client: client.write_registers(address, list(values), device_id=unit),
            fits,
            not_after_ms,
        )

    async def write_privately(
        self, unit: int, address: int, values: Sequence[int], not_after_ms: int | None
    ) -> Answer:
        """Write registers (function 0x20)."""
        request = _PrivateWrite(dev_id=unit, address=address, registers=list(values))
        return await self._transaction(
            lambda client: client.execute(False, request), lambda _: True, not_after_ms
        )

    async def _transaction(
        self,
        start: Callable[[AsyncModbusTcpClient], Awaitable[Any]],
        fits: Callable[[Any], bool],
        not_after_ms: int | None,
    ) -> Answer:
        connection = self._connection
        if connection is None or not connection.client.connected:
            now_ms = self._clock.now_ms()
            return Answer(Result.NOT_CONNECTED, "the line is not connected", now_ms, now_ms)
        connection.began_at_ms = None
        connection.heard_bytes = 0
        connection.not_after_ms = not_after_ms
        result, detail, words = await self._answered(connection, start, fits)
        points.point("exchange-ended")
        is_unanswered = result in (Result.MALFORMED, Result.TIMEOUT)
        if is_unanswered and self._is_rtu:
            await self._outwait(connection)
        completed_at_ms = self._clock.now_ms()
        began_at_ms = connection.began_at_ms
        if is_unanswered and (self._is_rtu or connection.heard_bytes or connection.lost.done()):
            # What may still come must not pass for the answer to a later request. A TCP frame has
            # a number for that; an RTU frame has none, and garbage has no frame.
            self._is_resync = not connection.lost.done()
            self.close()
        return Answer(
            result,
            detail,
            completed_at_ms if began_at_ms is None else began_at_ms,
            completed_at_ms,
            words,
        )

    async def _outwait(self, connection: _Connection) -> None:
        """Wait until the time of a request is over that got another's answer, or none.

        Its own answer may still come. An RTU gateway passes on what it hears to whoever is
        connected then, and nothing in the frame tells which request it answers.
        """
        if connection.began_at_ms is not None:
            waited_ms = self._clock.now_ms() - connection.began_at_ms
            left_ms = min(max(self._timeout_ms - waited_ms, 0), self._timeout_ms)
            await asyncio.sleep(left_ms / 1000)

    async def _answered(
        self,
        connection: _Connection,
        start: Callable[[AsyncModbusTcpClient], Awaitable[Any]],
        fits: Callable[[Any], bool],
    ) -> tuple[Result, str, tuple[int, ...]]:
        exchange = asyncio.ensure_future(start(connection.client))
        try:
            await asyncio.wait((exchange, connection.lost), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not exchange.done():
                exchange.cancel()
                with contextlib.suppress(asyncio.CancelledError, ModbusException):
                    await exchange
        if exchange.cancelled():
            return *self._silence(connection, "the connection broke"), ()
        try:
            pdu: Any = exchange.result()
        except _ExpiredError:
            return Result.EXPIRED, "its time had passed before it could be written", ()
        except _NotOursError:
            return Result.NOT_CONNECTED, "the line may be another worker's by now", ()
        except ConnectionException as away:
            return Result.NOT_CONNECTED, str(away), ()
        except ModbusException:
            return *self._silence(connection, f"nothing within {self._timeout_ms} ms"), ()
        return self._judged(pdu, fits)

    @staticmethod
    def _judged(pdu: Any, fits: Callable[[Any], bool]) -> tuple[Result, str, tuple[int, ...]]:
        if pdu.isError():
            return Result.EXCEPTION, f"the device refused: exception {pdu.exception_code}", ()
        if not fits(pdu):
            return Result.MALFORMED, f"the answer does not fit the request: {pdu}", ()
        return Result.OK, "", tuple(pdu.registers)

    @staticmethod
    def _silence(connection: _Connection, how: str) -> tuple[Result, str]:
        if connection.heard_bytes:
            return Result.MALFORMED, f"{how}; {connection.heard_bytes} bytes came, no answer"
        return Result.TIMEOUT, f"{how}; no byte came"
