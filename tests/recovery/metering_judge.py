"""The judge of metering's recovery tests: an undisturbed absorb over the very log the workers read.

What it says is computed from the topics alone: the union of what all workers put out, one of each
event id, and the rows that a recovery would build must be equal to the oracle's byte for byte.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from aiokafka import ConsumerRecord, TopicPartition

from services.common.kernel import routing
from services.common.kernel.envelope import Envelope
from services.common.runtime import codec, kafka, topics
from services.metering.adapters import changelog, decoding
from services.metering.adapters.decoding import Opened, Raw, opened
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Output
from services.metering.domain.rows import joined
from services.metering.domain.shard import ShardState
from tests.recovery.metering_history import SHARDS

LOG = decoding.TOPIC
CHANGELOG = changelog.TOPIC
OUTPUTS = ("charges", "balances", "alarms", "echoes", "notices", "relay-intents")

Said = tuple[bytes, bytes]
"""Key and value of a record."""
OutputId = tuple[str, int, UUID]
"""Topic, partition, event id."""
RowId = tuple[int, bytes]
"""Shard, key."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How what the workers left behind differs from what they should have.

    judged: outputs and rows that the oracle has. missing: those outputs that nobody put out.
    extra: outputs that nothing caused. wrong: outputs of other bytes, or put out in two ways.
    wrong_rows: rows that a recovery would build otherwise, or not at all, or that should not be.
    repeats: outputs put out again, the same; nothing is lost by those.
    """

    judged: int
    missing: int
    extra: int
    wrong: int
    wrong_rows: int
    repeats: int

    @property
    def lost(self) -> int:
        """How much is not as it should be."""
        return self.missing + self.extra + self.wrong + self.wrong_rows


@dataclass(frozen=True, slots=True)
class Expected:
    """What an undisturbed worker puts out and keeps."""

    outputs: Mapping[OutputId, Said]
    rows: Mapping[RowId, bytes]


@dataclass(frozen=True, slots=True)
class Begin:
    """Where judging begins: `states` of the shards (they are changed), ends of the topics."""

    states: Mapping[int, ShardState]
    ends: Mapping[TopicPartition, int]


def at_nothing() -> Begin:
    """Judge everything."""
    return Begin({shard: ShardState.empty(shard) for shard in range(SHARDS)}, {})


async def judge(bootstrap: str, begin: Begin | None = None) -> Verdict:
    """Compare what stands in the topics with what should."""
    begin = begin or at_nothing()
    wanted = await expected(bootstrap, begin)
    found, count = await actual_outputs(bootstrap, begin)
    rows = await actual_rows(bootstrap, begin)
    wrong = [
        name
        for name, ways in found.items()
        if len(ways) > 1 or wanted.outputs.get(name, next(iter(ways))) not in ways
    ]
    named = wanted.rows.keys() | rows.keys()
    return Verdict(
        judged=len(wanted.outputs) + len(wanted.rows),
        missing=len(wanted.outputs.keys() - found.keys()),
        extra=len(found.keys() - wanted.outputs.keys()),
        wrong=len(wrong),
        wrong_rows=sum(wanted.rows.get(name) != rows.get(name) for name in named),
        repeats=count - len(found),
    )


async def expected(bootstrap: str, begin: Begin) -> Expected:
    """Absorb the log."""
    outputs: dict[OutputId, Said] = {}
    rows: dict[RowId, bytes] = {}
    for record in await read(bootstrap, LOG, begin=begin):
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
        absorbed = absorb(begin.states[raw.shard], decoded.record)
        for output in absorbed.outputs:
            name = (output.topic, partition_of(output, raw.shard), output.event_id)
            outputs[name] = (output.key.encode(), codec.encode(output.subject, output.record))
        for row in (*absorbed.fact_rows, *absorbed.account_rows, absorbed.header):
            rows[raw.shard, row.key] = row.value
    return Expected(outputs, rows)


def partition_of(output: Output, shard: int) -> int:
    if output.route is None:
        return shard
    return routing.partition_of(output.route, partitions_of(output.topic))


async def actual_outputs(bootstrap: str, begin: Begin) -> tuple[dict[OutputId, set[Said]], int]:
    """Return the ways in which each output was put out, and how many records there are."""
    found: defaultdict[OutputId, set[Said]] = defaultdict(set)
    records = await read(bootstrap, *OUTPUTS, begin=begin)
    for record in records:
        assert record.key is not None
        assert record.value is not None
        event_id = Envelope.from_headers(record.headers).event_id
        found[record.topic, record.partition, event_id].add((record.key, record.value))
    return found, len(records)


async def actual_rows(bootstrap: str, begin: Begin | None = None) -> dict[RowId, bytes]:
    """Return the rows that a recovery builds from the changelog."""
    return {
        (shard, key): value
        for shard, versions in (await stored_rows(bootstrap, begin)).items()
        for key, value in joined(versions).items()
    }


async def stored_rows(bootstrap: str, begin: Begin | None = None) -> dict[int, list[Said]]:
    """Return shard → every version of every row in the changelog, in order."""
    versions: defaultdict[int, list[Said]] = defaultdict(list)
    for record in await read(bootstrap, CHANGELOG, begin=begin):
        assert record.key is not None
        assert record.value is not None
        versions[record.partition].append((record.key, record.value))
    return versions


async def read(
    bootstrap: str, *names: str, begin: Begin | None = None
) -> list[ConsumerRecord[bytes, bytes]]:
    """Return what stands in the topics now, partition by partition."""
    ends = begin.ends if begin else {}
    partitions = [
        TopicPartition(name, number) for name in names for number in range(partitions_of(name))
    ]
    async with kafka.consumer(bootstrap, client_id="judge") as reader:
        reader.assign(partitions)
        for partition in partitions:
            reader.seek(partition, ends.get(partition, 0))
        return [record async for record in kafka.read_to_end(reader, partitions)]


async def end_offsets(bootstrap: str, *names: str) -> dict[TopicPartition, int]:
    """Return the ends of the topics' partitions."""
    partitions = [
        TopicPartition(name, number) for name in names for number in range(partitions_of(name))
    ]
    async with kafka.consumer(bootstrap, client_id="ends") as reader:
        ends: dict[TopicPartition, int] = await reader.end_offsets(partitions)
    return ends


def partitions_of(topic: str) -> int:
    return topics.catalogue().partitions_of(topic)
