"""The topic catalogue (schemas/topics.yaml): read, create, check.

`python -m services.common.runtime.topics create --bootstrap HOST:PORT`
"""

import argparse
import asyncio
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, NoError, TopicAlreadyExistsError, for_code

import schemas
from services.common.kernel.errors import Retriable
from services.common.kernel.values import value_class

_DAY_MS = 86_400_000
_LEADER_WAIT_S = 0.2
_LEADERS_WITHIN_S = 30.0
_MADE = {NoError.errno, TopicAlreadyExistsError.errno}
"""Another creator may be faster; check() tells whether it agrees."""


@value_class
class Topic:
    """One entry of the catalogue. `values`: subject → the service that writes it."""

    name: str
    partition_by: str
    key: str
    partitions: int
    values: dict[str, str]
    readers: tuple[str, ...]
    config: dict[str, str]


@value_class
class Catalogue:
    """All topics, the shard count and the subjects that a ledger-event's data may have."""

    shards: int
    partitions: int
    topics: dict[str, Topic]
    events: tuple[str, ...]

    def partitions_of(self, topic: str) -> int:
        """Return how many partitions `topic` has."""
        return self.topics[topic].partitions


@cache
def catalogue() -> Catalogue:
    """Return the catalogue."""
    path = Path(schemas.__file__).parent / "topics.yaml"
    raw = yaml.safe_load(path.read_text())
    topics: dict[str, Topic] = {}
    for entry in raw["topics"]:
        topic = _topic(entry, raw)
        topics[topic.name] = topic
        if entry.get("dlq"):
            topics[f"{topic.name}.dlq"] = Topic(
                f"{topic.name}.dlq",
                topic.partition_by,
                topic.key,
                topic.partitions,
                {},
                (),
                {"cleanup.policy": "delete", "retention.ms": str(90 * _DAY_MS)},
            )
    return Catalogue(raw["shards"], raw["partitions"], topics, tuple(raw["events"]))


def _topic(entry: dict[str, Any], raw: dict[str, Any]) -> Topic:
    config = {"cleanup.policy": entry["cleanup"]}
    if (days := entry.get("days")) is not None:
        config["retention.ms"] = "-1" if days == "forever" else str(days * _DAY_MS)
    for name, setting in (
        ("timestamp", "message.timestamp.type"),
        ("min_compaction_lag_ms", "min.compaction.lag.ms"),
        ("segment_bytes", "segment.bytes"),
    ):
        if name in entry:
            config[setting] = str(entry[name])
    return Topic(
        entry["name"],
        entry["partition_by"],
        entry["key"],
        raw["shards"] if entry["partition_by"] == "shard" else raw["partitions"],
        dict(entry["values"]),
        tuple(entry["readers"]),
        config,
    )


async def create(bootstrap: str, *, replication: int = 1) -> list[str]:
    """Create the topics that are missing; return their names.

    Raises Retriable where Kafka will not make one, with its reason, or does not list it in time.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        there = set(await admin.list_topics())
        missing = [topic for topic in catalogue().topics.values() if topic.name not in there]
        wanted = [
            NewTopic(t.name, t.partitions, replication, topic_configs=t.config) for t in missing
        ]
        answer: Any = await admin.create_topics(wanted)
        for name, code, why in answer.topic_errors:
            if code not in _MADE:
                raise Retriable(
                    f"topic {name} cannot be created at {bootstrap}: {why or for_code(code)()}"
                )
        names = [topic.name for topic in missing]
        await _until_listed(admin, set(names), bootstrap)
        return names
    finally:
        await admin.close()


async def _until_listed(admin: AIOKafkaAdminClient, names: set[str], bootstrap: str) -> None:
    """Wait until topics that were just made have leaders, a moment after Kafka's answer."""
    deadline_s = asyncio.get_running_loop().time() + _LEADERS_WITHIN_S
    while late := names - set(await admin.list_topics()):
        if asyncio.get_running_loop().time() > deadline_s:
            raise Retriable(
                f"topic {min(late)} was created at {bootstrap} and is not there "
                f"{_LEADERS_WITHIN_S:g} s later: look whether all of its brokers run"
            )
        await asyncio.sleep(_LEADER_WAIT_S)
    await asyncio.sleep(_LEADER_WAIT_S)


async def check(bootstrap: str) -> None:
    """Raise Retriable where a topic is missing or has another number of partitions."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    try:
        await admin.start()
        there = {
            entry["topic"]: len(entry["partitions"])
            for entry in await admin.describe_topics(list(await admin.list_topics()))
        }
    finally:
        await admin.close()
    for topic in catalogue().topics.values():
        if topic.name not in there:
            raise Retriable(
                f"topic {topic.name} does not exist at {bootstrap}: run "
                f"python -m services.common.runtime.topics create --bootstrap {bootstrap}"
            )
        if there[topic.name] != topic.partitions:
            raise Retriable(
                f"topic {topic.name} has {there[topic.name]} partitions at {bootstrap}, "
                f"schemas/topics.yaml says {topic.partitions}: the shard count is for life"
            )


def main() -> int:
    """Create or check the topics of a cluster."""
    parser = argparse.ArgumentParser(prog="python -m services.common.runtime.topics")
    parser.add_argument("action", choices=["create", "check"])
    parser.add_argument("--bootstrap", required=True)
    parser.add_argument("--replication", type=int, default=1)
    options = parser.parse_args()
    try:
        if options.action == "create":
            made = asyncio.run(create(options.bootstrap, replication=options.replication))
            print(f"{len(made)} topics created at {options.bootstrap}")  # noqa: T201
        asyncio.run(check(options.bootstrap))
    except (KafkaError, Retriable) as failed:
        print(f"{options.action} failed: {failed}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
