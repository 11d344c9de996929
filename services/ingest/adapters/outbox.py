"""Relay states, device statuses and replies on their way to Kafka: in order, without linger."""

import asyncio
from collections import deque
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.common.runtime.kafka import Outgoing, send_outgoing
from services.ingest.adapters.metrics import Metrics

WAITING_MAX = 20_000


class Outbox:
    """A bounded queue in front of a producer, so that nobody who reports has to wait.

    What Kafka does not take is counted and logged: states and statuses are told again by
    themselves, and whoever waits for a reply has a deadline.
    """

    def __init__(
        self, producer: AIOKafkaProducer, metrics: Metrics, log: structlog.stdlib.BoundLogger
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._log = log
        self._waiting: deque[tuple[Outgoing, asyncio.Future[bool]]] = deque()
        self._under_way: set[asyncio.Future[bool]] = set()
        self._some = asyncio.Event()

    def put(self, outgoing: Outgoing) -> asyncio.Future[bool]:
        """Queue a record; the future says whether the broker has it, and never raises."""
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if len(self._waiting) >= WAITING_MAX:
            self._failed(outgoing, told, f"{WAITING_MAX} records wait already")
            return told
        self._waiting.append((outgoing, told))
        self._under_way.add(told)
        told.add_done_callback(self._under_way.discard)
        self._some.set()
        return told

    async def run(self) -> None:
        """Send what is queued, for ever."""
        while True:
            await self._some.wait()
            self._some.clear()
            while self._waiting:
                await self._send(*self._waiting.popleft())

    async def flushed(self) -> None:
        """Wait until nothing is under way."""
        while self._under_way:
            await asyncio.wait(set(self._under_way))

    async def _send(self, outgoing: Outgoing, told: asyncio.Future[bool]) -> None:
        try:
            acknowledged = await send_outgoing(self._producer, outgoing)
        except KafkaError as failed:
            self._failed(outgoing, told, repr(failed))
            return

        def done(future: asyncio.Future[Any]) -> None:
            if future.cancelled() or future.exception() is not None:
                self._failed(outgoing, told, "cancelled" if future.cancelled() else repr(future))
            elif not told.done():
                told.set_result(True)

        asyncio.ensure_future(acknowledged).add_done_callback(done)

    def _failed(self, outgoing: Outgoing, told: asyncio.Future[bool], why: str) -> None:
        self._metrics.not_sent.labels(outgoing.topic).inc()
        self._log.error("record not sent", topic=outgoing.topic, key=outgoing.key, why=why)
        if not told.done():
            told.set_result(False)
