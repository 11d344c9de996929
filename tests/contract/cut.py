"""A way to a server that can be cut in the middle of an exchange: a TCP proxy for tests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
CHUNK_SIZE_BYTES = 1 << 16
CLOSE_WITHIN_S = 5


class Cut:
    """Passes bytes on, until told that the next exchange ends without an answer.

    A connection over which `spared` was ever sent is not cut.
    """

    def __init__(self, host: str, port: int, spared: bytes) -> None:
        self._to = host, port
        self._spared = spared
        self._ways: set[asyncio.Task[None]] = set()
        self.cuts: bool | None = None
        """The next exchange is cut: after the server did it (True), before it heard of it."""
        self.passes = 0
        """So many exchanges pass before the one that is cut."""
        self.is_silent = False
        """The server does not learn of a cut: to it the connection is idle."""
        self._left: list[asyncio.StreamWriter] = []

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        way = asyncio.create_task(self._pass_on(reader, writer))
        self._ways.add(way)
        way.add_done_callback(self._ways.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, asks = await asyncio.open_connection(*self._to)
        is_spared = False

        async def ask() -> None:
            nonlocal is_spared
            while chunk := await reader.read(CHUNK_SIZE_BYTES):
                is_spared = is_spared or self._spared in chunk
                if self.cuts is False and not is_spared and self._is_next():
                    return
                asks.write(chunk)

        async def answer() -> None:
            while chunk := await answers.read(CHUNK_SIZE_BYTES):
                if self.cuts and not is_spared and self._is_next():
                    return
                writer.write(chunk)

        pumps = [asyncio.create_task(ask()), asyncio.create_task(answer())]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        writer.close()
        if self.is_silent:
            self._left.append(asks)
        else:
            asks.close()

    def _is_next(self) -> bool:
        """Say whether this exchange is the one that is cut."""
        self.passes -= 1
        if self.passes >= 0:
            return False
        self.cuts, self.passes = None, 0
        return True

    async def close(self) -> None:
        for left in self._left:
            left.close()
        for way in self._ways:
            way.cancel()
        if self._ways:
            await asyncio.wait(self._ways, timeout=CLOSE_WITHIN_S)


@asynccontextmanager
async def cut(dsn: str, spared: bytes) -> AsyncIterator[tuple[Cut, str]]:
    """Give a way to the server of an address, and the address that leads there over it."""
    parts = urlsplit(dsn)
    assert parts.hostname
    assert parts.port
    way = Cut(parts.hostname, parts.port, spared)
    server = await asyncio.start_server(way.accept, LOOPBACK, 0)
    port = server.sockets[0].getsockname()[1]
    there = f"{parts.netloc.rpartition('@')[0]}@{LOOPBACK}:{port}"
    try:
        yield way, parts._replace(netloc=there).geturl()
    finally:
        server.close()
        await way.close()
