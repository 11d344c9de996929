"""What an earlier run told of devices that nobody had registered: they may be registered since."""

from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from services.common.kernel.errors import InvalidInput
from services.common.kernel.routing import partition_of
from services.common.runtime import kafka
from services.ingest.domain.presence import NO_LINE, UNKNOWN

TOPIC = "device-status"


async def told_of_unknown(consumer: AIOKafkaConsumer, partitions: int) -> list[dict[str, Any]]:
    """Return the newest status of each unknown device, by a consumer that was started.

    What cannot be read is left out: a device that speaks again is told of again.
    """
    place = TopicPartition(TOPIC, partition_of(NO_LINE, partitions))
    consumer.assign([place])
    newest: dict[bytes, dict[str, Any]] = {}
    async for record in kafka.read_to_end(consumer, [place]):
        if record.key is None or not record.key.startswith(f"{UNKNOWN}/".encode()):
            continue
        newest.pop(record.key, None)
        try:
            _, newest[record.key] = kafka.opened(record)
        except InvalidInput:
            continue
    return list(newest.values())
