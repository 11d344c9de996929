"""Goal: Kafka, PostgreSQL and Mosquitto from their images keep the promises of the local stack.

Method: each part in a container of its own, which only those who have Docker can run; what the
services do with it is done by their own code (catalogue, frames, migrations, a projection).
"""

import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from docker.errors import DockerException
from testcontainers.community.kafka import KafkaContainer
from testcontainers.community.postgres import PostgresContainer
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from services.common.kernel.frames import READING, ReadingFrame
from services.common.runtime import kafka, topics
from services.reporting.adapters import database, log
from services.reporting.adapters.database import Writer
from services.reporting.errors import Moved
from tests.contract.mqtt_broker import BrokerAddress, MqttBrokerContract
from tests.unit.reporting_records import CREDIT_NANO, TOP_UP_NANO, Story, consumed
from tools.stack.mqtt import MOSQUITTO_CONF

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

KAFKA_IMAGE = "confluentinc/cp-kafka:7.6.0"
POSTGRES_IMAGE = "postgres:18-alpine"
MOSQUITTO_IMAGE = "eclipse-mosquitto:2.0.20"
MOSQUITTO_PORT = 1883
START_TIMEOUT_S = 60
SHARD = 3
T0 = 1_800_000_000_000


def why_no_docker() -> str | None:
    """Return why no Docker daemon can be used; None where one answers."""
    with warnings.catch_warnings():
        # Docker's client leaves the socket of a failed connection to the garbage collector.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = DockerClient().client
            try:
                client.ping()
            finally:
                client.close()
        except DockerException as away:
            return str(away)
        finally:
            gc.collect()
    return None


@pytest.fixture(scope="module", autouse=True)
def _docker() -> None:
    if (why := why_no_docker()) is not None:
        pytest.skip(f"no Docker daemon answers: {why}")


# --- Kafka ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bootstrap(_docker: None) -> Iterator[str]:
    """Run one KRaft node that makes no topic by itself."""
    node = KafkaContainer(KAFKA_IMAGE).with_kraft()
    node.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
    node.start(timeout=START_TIMEOUT_S)
    try:
        yield node.get_bootstrap_server()
    finally:
        node.stop()


async def test_topics_are_made_as_the_catalogue_says_and_once(bootstrap: str) -> None:
    await topics.create(bootstrap)
    await topics.check(bootstrap)
    assert await topics.create(bootstrap) == []
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        described = await admin.describe_topics(["shard-log", "registry", "nobody-made-it"])
    finally:
        await admin.close()
    shard_log, registry, unknown = described
    assert len(shard_log["partitions"]) == topics.catalogue().shards
    assert len(registry["partitions"]) == topics.catalogue().partitions
    assert unknown["error_code"] != 0


def frame_of_one() -> ReadingFrame:
    rows = np.zeros(1, READING)
    rows["meter_key"] = 7
    rows["epoch"] = 1
    rows["serial"] = b"23060123450001"
    rows["register_milli"] = 2**62
    rows["ratio"] = 1
    return ReadingFrame(SHARD, "ingest-0", str(UUID(int=1)), 1, rows)


async def test_a_frame_comes_out_of_its_shard_as_it_went_in_with_the_brokers_time(
    bootstrap: str,
) -> None:
    await topics.create(bootstrap)
    sent = frame_of_one()
    place = TopicPartition("shard-log", SHARD)
    async with kafka.producer(bootstrap, client_id="test") as producer:
        acknowledged = await kafka.send(
            producer,
            place.topic,
            "reading-frame",
            sent.to_record(),
            key=str(SHARD),
            partition=SHARD,
            event_id=UUID(int=2),
            occurred_at_ms=T0,
        )
        at = await acknowledged
    async with kafka.consumer(bootstrap, client_id="test") as reader:
        reader.assign([place])
        reader.seek(place, at.offset)
        (record,) = [found async for found in kafka.read_to_end(reader, [place])]
    envelope, value = kafka.opened(record)
    received = ReadingFrame.from_record(value)
    assert (envelope.event_id, envelope.occurred_at_ms) == (UUID(int=2), T0)
    assert (received.shard, received.to_record()) == (SHARD, sent.to_record())
    assert record.timestamp_type == 1, "a shard's time is the broker's"
    assert record.timestamp != T0


# --- PostgreSQL -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgres_dsn(_docker: None) -> Iterator[str]:
    with PostgresContainer(POSTGRES_IMAGE) as server:
        yield server.get_connection_url(driver=None)


async def test_the_read_models_are_laid_out_and_a_story_is_projected_once(
    postgres_dsn: str,
) -> None:
    story = Story("image")
    batch = log.batch_of(consumed(story.all()), dict.fromkeys(log.places(), 0), frozenset())
    async with database.connected(postgres_dsn, "reporting_image", name="test") as connection:
        await database.migrate(connection, "reporting_image")
        await database.migrate(connection, "reporting_image")
        await database.begin(connection, dict.fromkeys(log.places(), 0))
        writer = await Writer.opened(connection)
        await writer.write(batch.rows, batch.advanced)
        with pytest.raises(Moved):
            await writer.write(batch.rows, batch.advanced)
        assert await connection.fetchval("SELECT count(*) FROM charges") == 3
        credited = await connection.fetchval(
            "SELECT credited_nano FROM accounts WHERE account_id = $1", story.account
        )
        assert credited == CREDIT_NANO + TOP_UP_NANO
        held = await database.positions(connection)
        for place, (_, after) in batch.advanced.items():
            assert held[place].next_offset == after


# --- MQTT -------------------------------------------------------------------------------------


@pytest.fixture
def broker(_docker: None, tmp_path: Path) -> Iterator[BrokerAddress]:
    """Run Mosquitto with the local stack's configuration."""
    configuration = tmp_path / "mosquitto.conf"
    text = MOSQUITTO_CONF.format(port=MOSQUITTO_PORT, host="0.0.0.0", data="/mosquitto/data")
    # The line that says it is ready is of the level `information`.
    configuration.write_text(f"{text}log_type information\n")
    configuration.chmod(0o644)
    server = (
        DockerContainer(MOSQUITTO_IMAGE)
        .with_exposed_ports(MOSQUITTO_PORT)
        .with_volume_mapping(configuration, "/mosquitto/config/mosquitto.conf")
        .waiting_for(LogMessageWaitStrategy(r"mosquitto version \S+ running"))
    )
    with server:
        yield BrokerAddress(server.get_container_host_ip(), server.get_exposed_port(MOSQUITTO_PORT))


class TestMosquittoImage(MqttBrokerContract):
    """The contract, on Mosquitto's image."""
