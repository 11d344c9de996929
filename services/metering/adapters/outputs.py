"""From what `absorb` returns to records on the bus."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol
from uuid import UUID

from services.common.kernel.envelope import Envelope
from services.common.kernel.routing import partition_of
from services.common.runtime import codec
from services.common.runtime.topics import catalogue
from services.metering.adapters.batches import EncodedBatch, record_batches
from services.metering.adapters.columns import beside, encoded, fixed, numbers, texts
from services.metering.adapters.decoding import TOPIC, Dead, Headers, Raw, place_of
from services.metering.domain.messages import BalanceTable, Output

DEAD_LETTERS = f"{TOPIC}.dlq"
BALANCES, BALANCE = "balances", "balance"
NO_ID = UUID(int=0)


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

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Queue a batch, behind what waits of its partition; the future is done when it landed."""
        ...


class Balances:
    """The balances of one shard, in batches: one by one each would cost four times as much.

    In their order: one batch at a time waits for the producer to take it.
    """

    def __init__(self, producer: Callable[[], BatchSender], shard: int) -> None:
        self._producer = producer
        self._shard = shard
        self._waiting: deque[tuple[EncodedBatch, asyncio.Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def send(self, published: Sequence[tuple[BalanceTable, str]]) -> list[asyncio.Future[Any]]:
        """Send (balances of a record, its traceparent); return the futures of their landing.

        None are sent once it is closed.
        """
        if self._closed or not published:
            return []
        create_future = asyncio.get_running_loop().create_future
        sent = [(batch, create_future()) for batch in balance_batches(published)]
        self._waiting += sent
        if self._task is None:
            self._task = asyncio.create_task(self._send(), name="balances")
        return [landed for _, landed in sent]

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
        """Send nothing more."""
        self._closed = True
        if self._task is not None:
            self._task.cancel()
        for _, landed in self._waiting:
            landed.cancel()
        self._waiting.clear()


def balance_batches(published: Sequence[tuple[BalanceTable, str]]) -> list[EncodedBatch]:
    """Return (balances of a record, its traceparent) as batches.

    Their records are those that `send_outputs` would send, made as columns: one by one, a balance
    would cost as much as the charges of ten readings.
    """
    counts = [len(table) for table, _ in published]
    envelopes = [
        Envelope(
            codec.schema_header(BALANCE),
            NO_ID,
            int(table.as_of_ms[0]),
            place_of(table.shard, int(table.log_offsets[0])),
            traceparent,
        ).headers()
        for table, traceparent in published
    ]
    headers = {
        same_of_each[0][0]: texts([value for _, value in same_of_each]).repeated(counts)
        for same_of_each in zip(*envelopes, strict=True)
    }
    table = BalanceTable.joined([table for table, _ in published])
    columns = table.columns()
    ids = table.event_ids
    headers["event_id"] = beside(numbers([ids.shape[1]]), fixed(ids))
    keys = texts([account_id.encode() for account_id in columns["account_id"]])
    return record_batches(keys, encoded(BALANCE, columns), headers)


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
    sender: Sender, outputs: Iterable[Output], cause: Raw, traceparent: str
) -> list[asyncio.Future[Any]]:
    """Send outputs of one record; return the futures of their acknowledgement, in their order."""
    return [
        await sender.send(
            output.topic,
            codec.encode(output.subject, output.record),
            key=output.key.encode(),
            partition=partition(output, cause.shard),
            headers=headers(output, cause.place, traceparent),
        )
        for output in outputs
    ]


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
