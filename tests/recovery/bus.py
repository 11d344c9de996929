"""Topics made anew for a test, and everything that stands in them."""

from collections.abc import Iterable

from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from services.common.runtime import kafka, topics
from tests.recovery.workers import until_async


async def fresh(bootstrap: str, names: Iterable[str]) -> None:
    """Let these topics be empty; all others of the catalogue are there afterwards."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        there = set(names) & set(await admin.list_topics())
        if there:
            await admin.delete_topics(sorted(there))
            await until_async(lambda: _gone(admin, there), "the topics are deleted")
    finally:
        await admin.close()
    await topics.create(bootstrap)


async def _gone(admin: AIOKafkaAdminClient, names: set[str]) -> bool:
    return not names & set(await admin.list_topics())


async def read(bootstrap: str, *names: str) -> list[ConsumerRecord[bytes, bytes]]:
    """Return everything that stands in the topics now, partition by partition in their order."""
    places = [
        TopicPartition(name, number)
        for name in names
        for number in range(topics.catalogue().partitions_of(name))
    ]
    async with kafka.consumer(bootstrap, client_id="judge") as reader:
        reader.assign(places)
        await reader.seek_to_beginning(*places)
        return [record async for record in kafka.read_to_end(reader, places)]
