"""Reads the topic `registry` to its end, then follows it."""

from collections.abc import Callable
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from services.common.kernel.errors import InvalidInput
from services.common.runtime import kafka
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.registry import Registry

TOPIC = "registry"
FETCH_TIMEOUT_MS = 500

OnFact = Callable[[str, dict[str, Any]], None]


class RegistryFollower:
    """Feeds a Registry; `on_fact(subject, record)` hears of each fact that changed it."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        registry: Registry,
        *,
        partitions: int,
        on_fact: OnFact,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._consumer = consumer
        self._registry = registry
        self._all = [TopicPartition(TOPIC, number) for number in range(partitions)]
        self._on_fact = on_fact
        self._metrics = metrics
        self._log = log

    async def read_to_end(self) -> None:
        """Take in everything that stands in the topic now."""
        self._consumer.assign(self._all)
        async for record in kafka.read_to_end(self._consumer, self._all):
            self._take(record)

    async def run(self) -> None:
        """Follow, for ever."""
        while True:
            batches = await self._consumer.getmany(timeout_ms=FETCH_TIMEOUT_MS)
            for records in batches.values():
                for record in records:
                    self._take(record)

    def _take(self, record: ConsumerRecord) -> None:
        if record.value is None:
            return  # a deletion; meters and gateways are never deleted
        try:
            envelope, value = kafka.opened(record)
            is_new = self._registry.absorb(envelope.subject, value)
        except InvalidInput as odd:
            # The newest fact that could be read stands; the entity's next one mends it.
            self._metrics.facts.labels("unreadable").inc()
            self._log.error(
                "fact not readable", key=record.key, offset=record.offset, why=odd.message
            )
            return
        self._metrics.facts.labels("taken" if is_new else "skipped").inc()
        if is_new:
            self._on_fact(envelope.subject, value)
