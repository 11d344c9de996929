"""What control hears from Kafka, and when it may act on it.

relay-intents and relay-states are both partitioned by site, alike, and are read by one consumer
of the group with the range assignor: it gives partition p of every topic to the same member, so a
site's intents, states and budget are in one place. Nothing is committed: a partition is read from
its beginning whenever it is assigned (both topics are compacted: one record a meter, in time), and
nothing acts in it before both topics are read to their ends and the recent outcomes are known.

The registry, device statuses and replies are few and concern every site, so every worker reads all
of them, outside the group.
"""

from collections.abc import AsyncIterator, Callable, Iterable

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import IllegalStateError

from services.common.kernel.clock import Clock
from services.common.kernel.errors import InvalidInput
from services.common.runtime import kafka
from services.common.runtime.http import Health
from services.common.runtime.topics import catalogue
from services.control.adapters import records
from services.control.adapters.metrics import Metrics
from services.control.adapters.outbox import Outbox
from services.control.domain.desk import Act, Desk
from services.control.domain.messages import Outcome

GROUP = "control"
INTENTS, STATES = "relay-intents", "relay-states"
REGISTRY, STATUSES, REPLIES = "registry", "device-status", "device-replies"
OUTCOMES = "command-outcomes"
WAIT_MS = 500
WAIT_WHILE_READING_MS = 20
HAND_OVER_S = 3.0
PART = "partitions"


class FactsReader:
    """Reads registry, statuses and replies, all partitions, without a group."""

    def __init__(self, bootstrap: str, instance: str, hears: "Ears") -> None:
        client_id = f"control-facts-{instance}"
        self._consumer = kafka.consumer(bootstrap, client_id=client_id)
        self._hears = hears

    async def start(self, *, replies_since_ms: int) -> None:
        """Read all there is: every fact and status, and the replies since then."""
        await self._consumer.start()
        partitions = [tp for topic in (REGISTRY, STATUSES, REPLIES) for tp in _all_of(topic)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*_all_of(REGISTRY), *_all_of(STATUSES))
        await _seek_to_time(self._consumer, _all_of(REPLIES), replies_since_ms)
        async for record in kafka.read_to_end(self._consumer, partitions):
            self._hears.fact(record)

    async def run(self) -> None:
        async for record in self._consumer:
            self._hears.fact(record)

    async def stop(self) -> None:
        await kafka.stop(self._consumer)


class Ears:
    """Decodes records and gives them to the desk; what it decides goes to the outbox."""

    def __init__(
        self,
        desk: Desk,
        outbox: Outbox,
        clock: Clock,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
        *,
        step_over: kafka.StepOver,
    ) -> None:
        self._desk = desk
        self._outbox = outbox
        self._clock = clock
        self._metrics = metrics
        self._log = log
        self._step_over = step_over

    def fact(self, record: ConsumerRecord) -> None:
        """Hear a record of registry, device-status or device-replies."""
        self._hear(record, self._fact, is_vital=record.topic == REGISTRY)

    def of_site(self, record: ConsumerRecord) -> None:
        """Hear a record of relay-intents or relay-states."""
        self._hear(record, self._of_site, is_vital=record.topic == INTENTS)

    def _hear(
        self,
        record: ConsumerRecord,
        hear: Callable[[ConsumerRecord], list[Act]],
        *,
        is_vital: bool,
    ) -> None:
        try:
            acts = hear(record)
        except InvalidInput as odd:
            if is_vital:
                # To skip an intent or a fact could mean to cut somebody who has paid.
                self._step_over(record, odd)
            self._skip(record, odd)
            return
        self._outbox.put(acts)

    def _skip(self, record: ConsumerRecord, odd: Exception) -> None:
        self._metrics.undecodable(record.topic)
        self._log.error(
            "skipped a record that cannot be decoded", where=_where(record), why=str(odd)
        )

    def past_outcome(self, record: ConsumerRecord) -> Outcome | None:
        """Return a step told before a restart; None where it cannot be decoded."""
        try:
            _, value = kafka.opened(record)
            return records.past_outcome(value)
        except (InvalidInput, ValueError) as odd:  # ValueError: a result of a newer release
            self._skip(record, odd)
            return None

    def _fact(self, record: ConsumerRecord) -> list[Act]:
        if record.value is None:
            return []  # the tombstone of a compacted topic
        envelope, value = kafka.opened(record)
        now_ms = self._clock.now_ms()
        if record.topic == REPLIES:
            return self._desk.answer(records.reply(value), now_ms)
        if record.topic == STATUSES:
            return self._desk.learn(records.status(value), now_ms)
        fact = records.fact(envelope.subject, value)
        return self._desk.learn(fact, now_ms) if fact is not None else []

    def _of_site(self, record: ConsumerRecord) -> list[Act]:
        if record.value is None:
            return []
        envelope, value = kafka.opened(record)
        heard = (
            records.intent(value, str(envelope.event_id))
            if record.topic == INTENTS
            else records.relay_state(value)
        )
        return self._desk.hear(record.partition, heard, self._clock.now_ms())


class SitesReader(ConsumerRebalanceListener):
    """Reads relay-intents and relay-states in the group, and begins and drops partitions."""

    def __init__(
        self,
        bootstrap: str,
        instance: str,
        *,
        desk: Desk,
        outbox: Outbox,
        ears: Ears,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        log: structlog.stdlib.BoundLogger,
        recover_window_ms: int,
    ) -> None:
        self._bootstrap = bootstrap
        self._instance = instance
        self._desk = desk
        self._outbox = outbox
        self._ears = ears
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._log = log
        self._recover_window_ms = recover_window_ms
        # A static member: after a kill it has its partitions back at once, not after the session.
        self._consumer = kafka.consumer(
            bootstrap,
            client_id=f"control-sites-{instance}",
            group=GROUP,
            group_instance_id=instance,
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        self._held: set[int] = set()
        self._assignment = 0
        self._is_new = False
        self._ends: dict[TopicPartition, int] | None = None
        health.not_ready(PART, "joining the group")

    async def start(self) -> None:
        self._consumer.subscribe([INTENTS, STATES], listener=self)
        await self._consumer.start()

    async def stop(self) -> None:
        await kafka.stop(self._consumer)

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._health.not_ready(PART, "partitions are being assigned")
        self._assignment += 1
        for partition in self._held:
            self._desk.drop(partition)
        self._held = set()
        if list(revoked):
            await self._outbox.emptied(HAND_OVER_S)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._assignment += 1
        self._held = {tp.partition for tp in assigned}
        self._ends = None
        for partition in self._held:
            self._desk.open(partition)
        self._health.not_ready(PART, f"reading partitions {sorted(self._held)} to their ends")
        self._is_new = True

    async def run(self) -> None:
        """Hear for ever."""
        while True:
            await self._outbox.has_room()
            if self._is_new and await self._has_read_to_the_end():
                await self._begin()
            wait_ms = WAIT_WHILE_READING_MS if self._is_new else WAIT_MS
            batches = await self._consumer.getmany(timeout_ms=wait_ms)
            for found in batches.values():
                for record in found:
                    self._ears.of_site(record)

    async def _has_read_to_the_end(self) -> bool:
        partitions = [
            TopicPartition(topic, partition)
            for topic in (INTENTS, STATES)
            for partition in self._held
        ]
        assignment = self._assignment
        try:
            if self._ends is None:
                ends = await self._consumer.end_offsets(partitions) if partitions else {}
                if assignment != self._assignment:
                    return False
                self._ends = ends
            for tp, end in self._ends.items():
                if await self._consumer.position(tp) < end:
                    return False
        except IllegalStateError:
            return False  # the group was balanced anew meanwhile
        return assignment == self._assignment

    async def _begin(self) -> None:
        """Act from now on in the partitions that were read."""
        assignment, partitions = self._assignment, sorted(self._held)
        past = [found async for found in self._past_outcomes(partitions)]
        if assignment != self._assignment:
            return
        now_ms = self._clock.now_ms()
        for partition, outcome in past:
            self._desk.hear(partition, outcome, now_ms)
        for partition in partitions:
            self._outbox.put(self._desk.begin(partition, now_ms))
        self._is_new = False
        self._metrics.partitions_read(len(partitions))
        self._health.ready(PART)
        self._log.info("acting", partitions=partitions, recent_outcomes=len(past))

    async def _past_outcomes(self, partitions: list[int]) -> AsyncIterator[tuple[int, Outcome]]:
        """Yield what was told lately of these partitions' sites: outcomes are routed alike."""
        if not partitions:
            return
        wanted = [TopicPartition(OUTCOMES, partition) for partition in partitions]
        reader = kafka.consumer(self._bootstrap, client_id=f"control-outcomes-{self._instance}")
        await reader.start()
        try:
            reader.assign(wanted)
            since_ms = self._clock.now_ms() - self._recover_window_ms
            await _seek_to_time(reader, wanted, since_ms)
            async for record in kafka.read_to_end(reader, wanted):
                if (outcome := self._ears.past_outcome(record)) is not None:
                    yield record.partition, outcome
        finally:
            await kafka.stop(reader)


def _where(record: ConsumerRecord) -> str:
    return f"{record.topic}-{record.partition} at offset {record.offset}"


def _all_of(topic: str) -> list[TopicPartition]:
    return [TopicPartition(topic, p) for p in range(catalogue().partitions_of(topic))]


async def _seek_to_time(
    consumer: AIOKafkaConsumer, partitions: list[TopicPartition], since_ms: int
) -> None:
    """Seek to the first record at or after an instant, or to the end where there is none."""
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
    ends = await consumer.end_offsets(partitions)
    for tp in partitions:
        at = found.get(tp)
        consumer.seek(tp, at.offset if at is not None else ends[tp])
