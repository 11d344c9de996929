"""From what `absorb` returns to records on the bus."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from services.common.kernel.envelope import Envelope
from services.common.kernel.routing import partition_of
from services.common.runtime import codec
from services.common.runtime.topics import catalogue
from services.metering.adapters.decoding import TOPIC, Dead, Headers, Raw
from services.metering.domain.messages import Output

DEAD_LETTERS = f"{TOPIC}.dlq"
BALANCES = "balances"


class Sender(Protocol):
    """What outputs need of a producer; aiokafka's AIOKafkaProducer has it."""

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int,
        headers: Sequence[tuple[str, bytes]],
    ) -> asyncio.Future[Any]:
        """Queue a record; the future is done when the broker has it."""
        ...


class BatchSender(Protocol):
    """What balances need of a producer; aiokafka's AIOKafkaProducer has it."""

    def create_batch(self) -> Any:
        """Return an empty batch."""
        ...

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Queue a batch, behind what waits of its partition; the future is done when it landed."""
        ...


class Balances:
    """The balances of one shard, in batches: alone each would cost three times as much.

    In their order: one batch at a time waits for the producer to take it, and what comes meanwhile
    goes with the next.
    """

    def __init__(self, producer: Callable[[], BatchSender], shard: int) -> None:
        self._producer = producer
        self._shard = shard
        self._waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def send(
        self, balances: Iterable[Output], cause: Raw, traceparent: str
    ) -> list[asyncio.Future[Any]]:
        """Send balances that a record caused; return the futures of their acknowledgement."""
        landed: list[asyncio.Future[Any]] = []
        for balance in balances:
            record = {
                "timestamp": None,
                "key": balance.key.encode(),
                "value": codec.encode(balance.subject, balance.record),
                "headers": headers(balance, cause.place, traceparent),
            }
            if not self._waiting or self._waiting[-1][0].append(**record) is None:
                future = asyncio.get_running_loop().create_future()
                self._waiting.append((self._producer().create_batch(), future))
                self._waiting[-1][0].append(**record)
            if not landed or landed[-1] is not self._waiting[-1][1]:
                landed.append(self._waiting[-1][1])
        if landed and self._task is None:
            self._task = asyncio.create_task(self._send(), name="balances")
        return landed

    async def _send(self) -> None:
        while self._waiting:
            batch, landed = self._waiting.popleft()
            try:
                flight = await self._producer().send_batch(batch, BALANCES, partition=self._shard)
            except Exception as failed:  # noqa: BLE001 - whoever waits for them is told
                landed.set_exception(failed)
            else:
                flight.add_done_callback(partial(_tell, landed))
        self._task = None

    def close(self) -> None:
        """Send nothing more of what waits."""
        if self._task is not None:
            self._task.cancel()
        for _, landed in self._waiting:
            landed.cancel()
        self._waiting.clear()


def _tell(landed: asyncio.Future[Any], flight: asyncio.Future[Any]) -> None:
    if landed.cancelled():
        return
    if flight.cancelled():
        landed.cancel()
    elif (failed := flight.exception()) is not None:
        landed.set_exception(failed)
    else:
        landed.set_result(None)


async def send_outputs(
    sender: Sender, balances: Balances, outputs: Sequence[Output], cause: Raw, traceparent: str
) -> list[asyncio.Future[Any]]:
    """Send the outputs of one record; return the futures of their acknowledgement, in their order.

    Each topic's in their order.
    """
    sent = [
        await sender.send(
            output.topic,
            codec.encode(output.subject, output.record),
            key=output.key.encode(),
            partition=partition(output, cause.shard),
            headers=headers(output, cause.place, traceparent),
        )
        for output in outputs
        if output.topic != BALANCES
    ]
    in_batches = (output for output in outputs if output.topic == BALANCES)
    return sent + balances.send(in_batches, cause, traceparent)


async def send_dead(sender: Sender, raw: Raw, dead: Dead) -> asyncio.Future[Any]:
    """Send a frame's original bytes, with the reason, to the dead letters."""
    return await sender.send(
        DEAD_LETTERS,
        raw.value,
        key=raw.key,
        partition=raw.shard,
        headers=dead.headers(raw),
    )


def partition(output: Output, shard: int) -> int:
    """Return where an output goes: by its route, else to the shard's own partition."""
    if output.route is None:
        return shard
    return partition_of(output.route, catalogue().partitions_of(output.topic))


def headers(output: Output, causation_id: str, traceparent: str) -> Headers:
    return Envelope(
        codec.schema_header(output.subject),
        output.event_id,
        output.occurred_at_ms,
        causation_id,
        traceparent,
    ).headers()
