"""Goal: what a device saw acknowledged is on shard-log, whatever is killed on its way.

Method: devices of our own publish through the real broker; ingest is killed at each step of a
reading's way. "Acknowledged" is two hops: the broker acknowledges to the device, and keeps the
message in ingest's persistent session; ingest acknowledges to the broker when Kafka has the
reading. A tap between the two notes the moment of each acknowledgement of ingest's. The judge is
the log: a reading that the broker acknowledged is there in the end, and one that ingest
acknowledged was there at that moment, by Kafka's own time of the append. What a broker that is
killed itself has lost is counted; no energy may be among it.
"""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.recovery import ingest_mqtt, ingest_world
from tests.recovery.faults import Fault, rounds
from tests.recovery.ingest_mqtt import Device, Tap, Verdict
from tests.recovery.ingest_world import Log
from tests.recovery.workers import Worker, until, until_async
from tools.stack.background import BackgroundStack
from tools.stack.mqtt import Broker, mosquitto_path, mqtt_spec
from tools.stack.ports import LOOPBACK, Ports
from tools.stack.process import Supervisor

pytestmark = pytest.mark.stack

SEED = 20261
DEVICES = 3
EVERY_S = 0.02
MESSAGES = ("message-received", "message-taken", "message-acknowledged")
FRAMES = ("frame-gathered", "frame-sent", "frame-acknowledged")
MESSAGE_HIT_MAX = 60
FRAME_HIT_MAX = 10
RANDOM_KILLS = 3
ACKNOWLEDGED_A_LIFE_MAX = 200
BROKER_KILLS = 2
STEADY = 100
"""Acknowledgements between two kills of a broker."""
FLOWS_WITHIN_S = 6.0
"""From the broker's return to ingest's next acknowledgement: MQTT_RECONNECT_MAX_S and a second."""


@dataclass
class World:
    """A broker of its own, devices on it, an ingest behind the tap."""

    supervisor: Supervisor
    broker_port: int
    log: Log
    devices: list[Device]
    tap: Tap
    worker: Worker

    def publishing(self) -> ingest_mqtt.Publishing:
        return ingest_mqtt.publishing(self.devices, LOOPBACK, self.broker_port, EVERY_S)

    async def has_acknowledged(self, more: int) -> None:
        """Wait until ingest has acknowledged so many more messages."""
        wanted = len(self.tap.acknowledged) + more
        await until(lambda: len(self.tap.acknowledged) >= wanted, f"{more} more acknowledgements")

    async def settled(self) -> Verdict:
        """Judge when each device's newest reading is on the log and acknowledged."""
        newest = {device.newest for device in self.devices}

        async def all_there() -> bool:
            return newest <= {row.said for row in await self.readings()}

        await until_async(all_there, "the newest readings are on the log")
        await until(lambda: newest <= {m for m, _ in self.tap.acknowledged}, "and acknowledged")
        return await self.verdict()

    async def verdict(self) -> Verdict:
        return ingest_mqtt.judged(self.devices, await self.readings(), self.tap)

    async def readings(self) -> list[ingest_world.Reading]:
        return await self.log.readings(device.serial for device in self.devices)


@pytest.fixture
def kind() -> Broker:
    return Broker.AMQTT


@pytest.fixture
async def world(stack: BackgroundStack, tmp_path: Path, kind: Broker) -> AsyncIterator[World]:
    """Run the broker alone, and write the registry; ingest is not started."""
    if kind is Broker.MOSQUITTO and mosquitto_path() is None:
        pytest.skip("Mosquitto is not installed; amqtt is what this machine would use")
    ports, supervisor = Ports.free(), Supervisor(tmp_path)
    await supervisor.start(mqtt_spec(tmp_path, ports, kind, None))
    log = Log(stack.kafka_bootstrap)
    await log.begin()
    begins = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=12)
    devices = [Device(uuid4().hex[:10], shard, begins) for shard in range(DEVICES)]
    await ingest_world.register(stack.kafka_bootstrap, *(device.meter for device in devices))
    async with Tap(LOOPBACK, ports.mqtt).running() as tap:
        worker = ingest_world.ingest(
            stack.kafka_bootstrap,
            tmp_path,
            MQTT_HOST=LOOPBACK,
            MQTT_PORT=str(tap.listens_at),
            LINES_ENABLED="false",
            LINGER_MS="50",
        )
        yield World(supervisor, ports.mqtt, log, devices, tap, worker)
        worker.end()
    await supervisor.stop_all()


@pytest.mark.fault("ingest-killed-at-each-step")
async def test_killed_at_each_step_of_a_readings_way_it_loses_nothing_acknowledged(
    world: World, fault: Fault
) -> None:
    chance, worker = random.Random(SEED), world.worker
    worker.start()
    await worker.wait_ready()  # the broker has the session and its subscription
    await worker.kill()
    async with world.publishing():
        for _ in rounds(1):
            for step in (*MESSAGES, *FRAMES):
                most = MESSAGE_HIT_MAX if step in MESSAGES else FRAME_HIT_MAX
                worker.start(step, hit=chance.randint(1, most))
                await worker.wait_ended()
                fault.tried += 1
        assert worker.codes == {-signal.SIGKILL: 1 + fault.tried}, worker.log_end
        worker.start()
        await worker.wait_ready()
    found = await world.settled()
    fault.judged, fault.lost = found.judged, len(found.lost) + len(found.early)
    assert found.repeats > 0, "no kill made anything be done twice"


@pytest.mark.fault("ingest-killed-at-random")
async def test_killed_at_random_under_load_it_loses_nothing_acknowledged(
    world: World, fault: Fault
) -> None:
    chance, worker = random.Random(SEED), world.worker
    worker.start()
    await worker.wait_ready()
    async with world.publishing():
        for _ in rounds(RANDOM_KILLS):
            await world.has_acknowledged(chance.randint(1, ACKNOWLEDGED_A_LIFE_MAX))
            await worker.kill()
            fault.tried += 1
            worker.start()
        await worker.wait_ready()
    found = await world.settled()
    fault.judged, fault.lost = found.judged, len(found.lost) + len(found.early)


async def test_without_its_order_the_judge_finds_what_was_lost(world: World) -> None:
    """It acknowledges what is not on the log yet; killed then, it never will be."""
    off, worker = ["acknowledges_before_kafka"], world.worker
    worker.start("frame-gathered", hit=FRAME_HIT_MAX, switch=off)
    await worker.wait_ready()
    async with world.publishing():
        await worker.wait_ended()
        worker.start(switch=off)
        await worker.wait_ready()
    newest = {device.newest for device in world.devices}
    await until(lambda: newest <= {m for m, _ in world.tap.acknowledged}, "all is taken")
    await worker.kill()
    found = await world.verdict()
    assert found.lost, "the judge does not see what is missing"
    assert found.early > found.lost, "nor that it was acknowledged too soon"


@pytest.mark.fault("kafka-killed-while-ingest-writes")
async def test_kafka_killed_under_load_nothing_is_lost_or_acknowledged_too_soon(
    stack: BackgroundStack, world: World, fault: Fault
) -> None:
    world.worker.start()
    await world.worker.wait_ready()
    async with world.publishing():
        for _ in rounds(1):
            await world.has_acknowledged(STEADY)
            await asyncio.to_thread(stack.kill9, "kafka")
            fault.tried += 1
            await asyncio.to_thread(stack.start, "kafka")
            await world.has_acknowledged(STEADY)
    found = await world.settled()
    fault.judged, fault.lost = found.judged, len(found.lost) + len(found.early)
    assert world.worker.codes == {}, "ingest outlives Kafka"


@pytest.mark.alone
@pytest.mark.fault("amqtt-killed-under-load")
async def test_amqtt_killed_under_load_loses_what_it_held_and_no_energy(
    world: World, fault: Fault
) -> None:
    await broker_killed(world, fault)


@pytest.mark.alone
@pytest.mark.parametrize("kind", [Broker.MOSQUITTO])
@pytest.mark.fault("mosquitto-killed-under-load")
async def test_mosquitto_killed_under_load_loses_its_last_second_and_no_energy(
    world: World, fault: Fault
) -> None:
    await broker_killed(world, fault)


async def broker_killed(world: World, fault: Fault) -> None:
    """Kill the broker, start it again; ingest and the devices come back by themselves."""
    world.worker.start()
    await world.worker.wait_ready()
    took_s = []
    async with world.publishing():
        for _ in rounds(BROKER_KILLS):
            await world.has_acknowledged(STEADY)
            await world.supervisor.kill9("mqtt")
            fault.tried += 1
            await world.supervisor["mqtt"].start()
            returned_at = time.monotonic()
            await world.has_acknowledged(1)
            took_s.append(time.monotonic() - returned_at)
        await world.has_acknowledged(STEADY)
    found = await world.settled()
    print("from the broker's return to a reading:", [f"{each:.2f} s" for each in took_s])
    fault.judged, fault.lost = found.judged, len(found.lost)
    assert not found.early, "ingest acknowledged what is not on the log"
    assert max(took_s) < FLOWS_WITHIN_S
    assert world.worker.codes == {}, "ingest outlives its broker"
    readings = await world.readings()
    for device in world.devices:
        registers = [row.register_milli for row in readings if row.serial == device.serial]
        # What was lost lies between two readings that are there: their difference is its energy.
        assert (min(registers), max(registers)) == device.registers_milli, "energy was lost"
