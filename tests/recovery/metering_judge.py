"""What the recovery tests of metering share: topics, a feeder, and a judge."""

from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from aiokafka import AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from services.common.kernel import routing
from services.common.kernel.envelope import Envelope
from services.common.runtime import codec, kafka, topics
from services.metering.adapters.decoding import Opened, Raw, opened
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Output
from services.metering.domain.rows import joined
from services.metering.domain.shard import ShardState
from tests.recovery.metering_history import SHARDS, Entry
from tests.recovery.workers import Worker, until_async

LOG = "shard-log"
CHANGELOG = "metering-rows-changelog"
OUTPUTS = ("charges", "balances", "alarms", "echoes", "relay-intents")
GROUP = "metering"

Found = dict[tuple[str, int, UUID], tuple[bytes, bytes]]
"""(topic, partition, event id) → (key, value)."""


async def fresh_topics(bootstrap: str) -> None:
    """Let metering's topics be empty; their committed offsets go with them."""
    wanted = {LOG, f"{LOG}.dlq", CHANGELOG, *OUTPUTS}
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        there = wanted & set(await admin.list_topics())
        if there:
            await admin.delete_topics(sorted(there))
            await until_async(lambda: _gone(admin, there), "the topics are deleted")
    finally:
        await admin.close()
    await topics.create(bootstrap)


async def _gone(admin: AIOKafkaAdminClient, names: set[str]) -> bool:
    return not names & set(await admin.list_topics())


class Feeder:
    """Writes entries to the shard log."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer

    async def write(self, entries: Iterable[Entry]) -> None:
        """Write and wait for the acknowledgements."""
        flights = [
            await kafka.send(
                self._producer,
                LOG,
                entry.subject,
                entry.value,
                key=str(entry.shard),
                partition=entry.shard,
                event_id=entry.event_id,
                occurred_at_ms=0,
            )
            for entry in entries
        ]
        await kafka.all_acknowledged(flights)


def metering(bootstrap: str, directory: Path, instance: str = "metering-0") -> Worker:
    """Return a worker that is not started."""
    return Worker("metering", {"KAFKA_BOOTSTRAP": bootstrap}, directory, instance)


async def caught_up(bootstrap: str) -> bool:
    """Say whether the group has committed the shard log to its end."""
    return not await lags(bootstrap)


async def lags(bootstrap: str) -> dict[int, int]:
    """Return shard → records that are not committed, where there are any."""
    ends = await end_offsets(bootstrap, LOG)
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        committed = await admin.list_consumer_group_offsets(GROUP)
    except GroupCoordinatorNotAvailableError:
        committed = {}  # the first group of a young broker
    finally:
        await admin.close()
    found = {tp.partition: at.offset for tp, at in committed.items() if tp.topic == LOG}
    return {
        shard: end - max(0, found.get(shard, 0))
        for shard, end in ends.items()
        if end > max(0, found.get(shard, 0))
    }


async def end_offsets(bootstrap: str, topic: str) -> dict[int, int]:
    partitions = [TopicPartition(topic, number) for number in range(partitions_of(topic))]
    async with kafka.consumer(bootstrap, client_id="ends") as reader:
        ends = await reader.end_offsets(partitions)
    return {tp.partition: end for tp, end in ends.items()}


async def has_grown(bootstrap: str, topic: str, ends: dict[int, int]) -> bool:
    """Say whether a topic has records beyond `ends`."""
    return await end_offsets(bootstrap, topic) != ends


def partitions_of(topic: str) -> int:
    return topics.catalogue().partitions_of(topic)


async def read(bootstrap: str, *names: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Return everything that stands in the topics now, partition by partition."""
    partitions = [
        TopicPartition(name, number) for name in names for number in range(partitions_of(name))
    ]
    async with kafka.consumer(bootstrap, client_id="judge") as reader:
        reader.assign(partitions)
        await reader.seek_to_beginning(*partitions)
        return [record async for record in kafka.read_to_end(reader, partitions)]


# --- the judge ----------------------------------------------------------------------------------


async def expected(bootstrap: str) -> tuple[Found, dict[int, ShardState]]:
    """Return what an undisturbed absorb over the same log puts out, and the shards it leaves."""
    found: Found = {}
    states = {shard: ShardState.empty(shard) for shard in range(SHARDS)}
    for record in await read(bootstrap, LOG):
        raw = Raw(
            record.partition,
            record.offset,
            record.timestamp,
            record.key,
            record.value,
            list(record.headers),
        )
        decoded = opened(raw)
        assert isinstance(decoded, Opened)
        for output in absorb(states[raw.shard], decoded.record).outputs:
            found[(output.topic, partition_of_output(output, raw.shard), output.event_id)] = (
                output.key.encode(),
                codec.encode(output.subject, output.record),
            )
    return found, states


def partition_of_output(output: Output, shard: int) -> int:
    if output.route is None:
        return shard
    return routing.partition_of(output.route, partitions_of(output.topic))


async def actual(bootstrap: str) -> tuple[Found, int]:
    """Return what the workers put out, once each, and how many records repeat another.

    A repeat must be the same byte for byte.
    """
    found: Found = {}
    repeats = 0
    for record in await read(bootstrap, *OUTPUTS):
        assert record.key is not None
        assert record.value is not None
        name = (
            record.topic,
            record.partition,
            Envelope.from_headers(record.headers).event_id,
        )
        said = (record.key, record.value)
        assert found.setdefault(name, said) == said, f"{name} was put out in two ways"
        repeats += 1
    return found, repeats - len(found)


async def judge(bootstrap: str) -> int:
    """Fail unless outputs and rows are those of an undisturbed absorb; return the repeats."""
    wanted, states = await expected(bootstrap)
    found, repeats = await actual(bootstrap)
    assert not wanted.keys() - found.keys(), "outputs are missing"
    assert not found.keys() - wanted.keys(), "there are outputs that nothing caused"
    assert [name for name in wanted if wanted[name] != found[name]] == [], "outputs are wrong"
    rows: dict[int, list[tuple[bytes, bytes]]] = {shard: [] for shard in range(SHARDS)}
    for record in await read(bootstrap, CHANGELOG):
        assert record.key is not None
        assert record.value is not None
        rows[record.partition].append((record.key, record.value))
    for shard, state in states.items():
        _, account_rows, header = state.rows()
        newest = joined(rows[shard])
        for row in (*account_rows, header):
            assert newest[row.key] == row.value, f"row {row.key!r} of shard {shard} is wrong"
    return repeats
