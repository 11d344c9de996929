"""What the demo measures from outside: it reads the bus like any newcomer, in no one's group."""

import asyncio
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiokafka import TopicPartition

from services.common.kernel.frames import KIND_USAGE, ChargeFrame
from services.common.runtime import kafka
from services.common.runtime.topics import catalogue

TOPICS = ("charges", "alarms", "command-outcomes")
GATHER_BYTES = 1 << 20
"""The broker holds a fetch for `kafka.FETCH_WAIT_MS` unless there is so much: who looks on should
not be in the way. Every duration comes from the records themselves.
"""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and worst of some durations, ms."""

    samples: int
    median_ms: int
    worst_ms: int

    @classmethod
    def of(cls, durations_ms: Sequence[int]) -> "Spread | None":
        """Return the spread, or None where nothing was measured."""
        if not durations_ms:
            return None
        return cls(len(durations_ms), round(statistics.median(durations_ms)), max(durations_ms))


@dataclass
class Observer:
    """Everything heard so far. `alarms` are the distinct decisions in order of arrival."""

    reading_to_charge_ms: list[int] = field(default_factory=list)
    alarms: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)
    heard: asyncio.Condition = field(default_factory=asyncio.Condition)
    failure: Exception | None = None

    async def follow(self, bootstrap: str) -> None:
        """Read on until cancelled. What fails is raised to whoever waits in `until`."""
        try:
            await self._read(bootstrap)
        except Exception as failed:  # noqa: BLE001 - told to the one who waits
            self.failure = failed
            async with self.heard:
                self.heard.notify_all()

    async def _read(self, bootstrap: str) -> None:
        reader = kafka.consumer(bootstrap, client_id="demo-observer", fetch_min_bytes=GATHER_BYTES)
        await reader.start()
        try:
            known = catalogue()
            partitions = [
                TopicPartition(topic, number)
                for topic in TOPICS
                for number in range(known.partitions_of(topic))
            ]
            reader.assign(partitions)
            await reader.seek_to_beginning(*partitions)
            async for record in reader:
                self._hear(record)
                async with self.heard:
                    self.heard.notify_all()
        finally:
            await reader.stop()

    def _hear(self, record: Any) -> None:
        _, value = kafka.opened(record)
        if record.topic == "charges":
            rows = ChargeFrame.from_record(value).rows
            usage = rows[rows["kind"] == KIND_USAGE]
            self.reading_to_charge_ms += (record.timestamp - usage["to_received_at_ms"]).tolist()
        elif record.topic == "alarms":
            self.alarms.setdefault(value["alarm_id"], value)
        else:
            self.outcomes[value["outcome_id"]] = value

    def alarms_of(self, account_id: str, kind: str) -> list[dict[str, Any]]:
        """Return the account's decisions of one kind, in order."""
        return [
            alarm
            for alarm in self.alarms.values()
            if alarm["account_id"] == account_id and alarm["kind"] == kind
        ]

    async def until(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until `condition` holds after something was heard. Raises TimeoutError."""
        try:
            async with asyncio.timeout(timeout_s), self.heard:
                await self.heard.wait_for(lambda: self.failure is not None or condition())
        except TimeoutError:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s") from None
        if self.failure is not None:
            raise self.failure
