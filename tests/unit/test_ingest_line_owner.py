"""Who owns a line: what the group says, and what is told of the devices of a line that was left.

Method: a LineOwner with a consumer and line workers of the test's own; no sockets.
"""

import asyncio
from typing import Any

import pytest
import structlog
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError
from prometheus_client import CollectorRegistry

from services.common.kernel.routing import partition_of
from services.common.runtime.kafka import Outgoing
from services.common.runtime.profiles import profiles
from services.ingest.adapters.intake import Intake
from services.ingest.adapters.line_owner import TOPIC, LineOwner
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.presence import Presence
from services.ingest.domain.registry import Line, Registry
from services.ingest.domain.relay import RelayReports
from tests.unit.ingest_devices import gateway_fact, meter_fact

PARTITIONS = 4
REFRESH_MS = 30_000


class FakeClock:
    at_ms = 1_000_000

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic_ms(self) -> int:
        return self.at_ms


class Consumer:
    """What the owner needs of a consumer; `away`: Kafka does not answer."""

    def __init__(self) -> None:
        self.away = False

    def subscribe(self, _: list[str], *, listener: Any) -> None:
        self.listener = listener

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        if self.away:
            raise KafkaConnectionError
        return dict.fromkeys(partitions, 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        pass

    async def getmany(self, **_: int) -> dict[TopicPartition, Any]:
        await asyncio.sleep(0)
        return {}


class Worker:
    """A line worker whose transaction under way ends after it was told to close."""

    def __init__(self, line: Line, intake: Intake) -> None:
        self.line = line
        self._intake = intake
        self._closing = asyncio.Event()

    def close(self) -> None:
        self._closing.set()

    async def run(self) -> None:
        self._intake.gateway_heard(self.line.gateway)
        await self._closing.wait()
        await asyncio.sleep(0)
        self._intake.gateway_heard(self.line.gateway)


class Out:
    def __init__(self) -> None:
        self.sent: list[Outgoing] = []

    def put(self, outgoing: Outgoing) -> asyncio.Future[bool]:
        self.sent.append(outgoing)
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        future.set_result(True)
        return future


class World:
    def __init__(self) -> None:
        self.clock, self.consumer, self.out = FakeClock(), Consumer(), Out()
        registry, metrics = Registry(), Metrics(CollectorRegistry())
        registry.absorb("gateway-fact", gateway_fact())
        registry.absorb("meter-fact", meter_fact())
        (self.line,) = registry.polled_lines().values()
        self.intake = Intake(
            worker="ingest-0",
            registry=registry,
            profiles=profiles(),
            presence=Presence("ingest-0", REFRESH_MS),
            relays=RelayReports(60_000),
            frames=None,  # type: ignore[arg-type] # no reading comes
            outbox=self.out,
            clock=self.clock,
            metrics=metrics,
            log=structlog.get_logger(),
        )
        self.joined = 0

        def joined() -> None:
            self.joined += 1

        self.owner = LineOwner(
            self.consumer,  # type: ignore[arg-type]
            partitions=PARTITIONS,
            intake=self.intake,
            make_worker=lambda line: Worker(line, self.intake),  # type: ignore[arg-type,return-value]
            is_ours=lambda: True,
            close_within_s=1.0,
            on_joined=joined,
            metrics=metrics,
            log=structlog.get_logger(),
        )
        self.partition = TopicPartition(TOPIC, partition_of(self.line.line_id, PARTITIONS))


async def test_nothing_more_is_told_of_a_line_that_another_worker_has_now() -> None:
    world = World()
    await world.owner.on_partitions_assigned([world.partition])
    await asyncio.sleep(0)
    assert [out.record["status"] for out in world.out.sent] == ["online"]
    await world.owner.on_partitions_revoked([world.partition])
    told = len(world.out.sent)
    world.clock.at_ms += 2 * REFRESH_MS
    world.intake.refresh()
    assert world.out.sent[told:] == []


async def test_an_assignment_that_cannot_be_taken_over_fails_the_worker() -> None:
    """A listener that raises is logged by aiokafka, no more: the lines would have no owner."""
    world = World()
    world.consumer.away = True
    await world.owner.on_partitions_assigned([world.partition])
    assert not world.joined
    with pytest.raises(KafkaConnectionError):
        await asyncio.wait_for(world.owner.run(), 5)
