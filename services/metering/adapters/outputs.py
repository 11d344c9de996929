"""From what `absorb` returns to records on the bus."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from services.common.kernel.envelope import Envelope
from services.common.kernel.routing import partition_of
from services.common.runtime import codec
from services.common.runtime.topics import catalogue
from services.metering.adapters.decoding import TOPIC, Dead, Headers, Raw
from services.metering.domain.messages import Output

DEAD_LETTERS = f"{TOPIC}.dlq"


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


async def send_outputs(
    sender: Sender, outputs: Sequence[Output], cause: Raw, traceparent: str
) -> list[asyncio.Future[Any]]:
    """Send the outputs of one record, in order; return the futures of their acknowledgement."""
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
