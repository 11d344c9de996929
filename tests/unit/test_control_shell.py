"""Goal: what surrounds the rules: settings, records, co-assignment of topics, bad input.

Method: values in, values out; the group's assignor is asked directly; no broker.
"""

import asyncio
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock
from uuid import UUID, uuid4

import pytest
import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import Bug
from services.common.runtime import codec, kafka
from services.common.runtime.clock import SystemClock
from services.common.runtime.fence import ClockFence
from services.common.runtime.profiles import profiles
from services.common.runtime.topics import catalogue
from services.control.adapters import records
from services.control.adapters.bus import INTENTS, OUTCOMES, STATES, STATUSES, Ears
from services.control.adapters.metrics import Metrics
from services.control.adapters.mqtt import Commander
from services.control.adapters.outbox import Outbox
from services.control.config import ControlSettings
from services.control.domain.delivery import Limits
from services.control.domain.desk import Act, Desk
from services.control.domain.messages import (
    Command,
    DeviceStatus,
    LineRequest,
    MqttCommand,
    Outcome,
    Result,
)
from tests.simulation.control_world import POLLED, RECOVER_MS, World

LOG = structlog.get_logger("test")


@pytest.fixture
def delivered() -> World:
    world = World((POLLED,))
    world.intend("M0", "open")
    world.run(1_000)
    return world


def settings(**more: Any) -> ControlSettings:
    return ControlSettings(instance="control-0", http_port=0, **more)


def test_the_defaults_are_the_bounds_that_the_rules_were_tested_with() -> None:
    assert settings().limits == Limits()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reply_timeout_ms": 5_000}, "must be above command_valid_ms"),
        ({"backoff_max_ms": 100}, "must not be below backoff_base_ms"),
        ({"contacts_ms": 5_000}, "must be above contacts_ms"),
        ({"mqtt_ca": "/nowhere/ca.pem"}, "name a PEM file"),
        ({"attempts_per_burst": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_what_to_change(
    wrong: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        settings(**wrong)


def test_every_outcome_fits_its_schema_and_comes_back_as_it_was(delivered: World) -> None:
    assert len(delivered.outcomes) == 3
    for outcome in delivered.outcomes:
        record = records.outcome_record(outcome, "control-0")
        value = codec.encode("command-outcome", record)
        past = records.past_outcome(codec.decode(codec.schema_header("command-outcome"), value))
        assert replace(past.intent, event_id=outcome.intent.event_id) == outcome.intent
        for name in (known.name for known in fields(Outcome)):
            if name != "intent":
                assert getattr(past, name) == getattr(outcome, name), name


def test_an_outcome_told_again_has_the_id_of_the_first_and_each_result_its_own(
    delivered: World,
) -> None:
    first = [records.outcome_record(o, "control-0") for o in delivered.outcomes]
    again = [records.outcome_record(o, "control-1") for o in delivered.outcomes]
    ids = [UUID(record["outcome_id"]) for record in first]
    assert ids == [UUID(record["outcome_id"]) for record in again]
    assert len(set(ids)) == len(ids)


def test_a_worker_that_has_lost_count_of_attempts_tells_of_each_command_all_the_same(
    delivered: World,
) -> None:
    """After a restart outcomes are read some minutes back, and a device may be away for longer."""
    delivered.go("M0", is_online=False, is_told=False)
    delivered.intend("M0", "closed")
    delivered.run(20_000)
    delivered.go("M0", is_online=False, is_told=True)
    delivered.run(RECOVER_MS + 60_000, step_ms=10_000)
    delivered.restart(is_crash=False)
    delivered.go("M0", is_online=True, is_told=True)
    delivered.run(20_000)
    sent = [o for o in delivered.outcomes if o.result is Result.SENT and not o.intent.is_cut]
    assert [outcome.attempt for outcome in sent].count(1) == 2
    assert len({records.outcome_record(o, "control-0")["outcome_id"] for o in sent}) == len(sent)


def test_requests_fit_their_schema(delivered: World) -> None:
    write, read = delivered.commands
    for command, operation in ((write, "write-registers"), (read, "read-live")):
        assert isinstance(command, LineRequest)
        record = records.request_record(command)
        value = codec.encode("device-request", record)
        assert codec.decode(codec.schema_header("device-request"), value) == record
        assert (record["operation"], record["requester"]) == (operation, "control")


@pytest.mark.parametrize("member_count", [1, 2, 3, 5])
def test_a_sites_intents_states_and_outcomes_come_to_one_worker(member_count: int) -> None:
    by_site = [catalogue().topics[name] for name in (INTENTS, STATES, "command-outcomes")]
    assert {topic.partition_by for topic in by_site} == {"site"}
    assert len({topic.partitions for topic in by_site}) == 1
    cluster = SimpleNamespace(
        partitions_for_topic=lambda topic: set(range(catalogue().partitions_of(topic)))
    )
    metadata = RangePartitionAssignor.metadata([INTENTS, STATES])
    members = {f"member-{number}": metadata for number in range(member_count)}
    assert hasattr(ClusterMetadata, "partitions_for_topic")
    for assigned in RangePartitionAssignor.assign(cluster, members).values():  # type: ignore[arg-type]
        of_topic = dict(assigned.partitions())
        assert of_topic.get(INTENTS, []) == of_topic.get(STATES, [])


def record_of(topic: str, schema: str, value: bytes) -> Any:
    headers = Envelope(schema, uuid4(), 0).headers()
    return SimpleNamespace(topic=topic, partition=0, offset=7, headers=headers, value=value)


def ears(skipped: list[str], *told: tuple[str, int, int]) -> Ears:
    desk = Desk(profiles(), Limits())
    outbox: Any = SimpleNamespace(put=list)
    metrics: Any = SimpleNamespace(undecodable=skipped.append)
    step_over = kafka.StepOver(frozenset(told), "WATTVEND_CONTROL_SKIP", LOG)
    return Ears(desk, outbox, SystemClock(), metrics, LOG, step_over=step_over)


def test_an_intent_that_cannot_be_decoded_stops_the_service_and_says_what_to_do() -> None:
    with pytest.raises(
        Bug,
        match=r"relay-intents-0 at offset 7 cannot be decoded.*CONTROL_SKIP=relay-intents:0:7",
    ):
        ears([]).of_site(record_of(INTENTS, "relay-intent/1", b"garbage"))


def test_an_intent_that_a_person_told_to_step_over_is_counted_and_passed() -> None:
    skipped: list[str] = []
    told = ears(skipped, (INTENTS, 0, 7))
    told.of_site(record_of(INTENTS, "relay-intent/1", b"garbage"))
    assert skipped == [INTENTS]
    with pytest.raises(Bug):
        ears(skipped, (INTENTS, 0, 8)).of_site(record_of(INTENTS, "relay-intent/1", b"garbage"))


def test_a_status_that_cannot_be_decoded_is_skipped_and_counted() -> None:
    skipped: list[str] = []
    ears(skipped).fact(record_of(STATUSES, "device-status/99", b"garbage"))
    assert skipped == [STATUSES]


def test_a_past_outcome_that_cannot_be_decoded_does_not_hinder_a_start() -> None:
    skipped: list[str] = []
    garbage = record_of(OUTCOMES, "command-outcome/1", b"garbage")
    assert ears(skipped).past_outcome(garbage) is None
    assert skipped == [OUTCOMES]


def test_statuses_of_devices_nobody_registered_are_not_kept() -> None:
    desk = Desk(profiles(), Limits())
    for number in range(3):
        status = DeviceStatus(f"unknown/mqtt/{number}", "quarantined", 0)
        assert desk.learn(status, 0) == []
    assert desk._statuses == {}


def mqtt_command(delivered: World, wanted: str = "open") -> MqttCommand:
    intent = replace(delivered.outcomes[0].intent, wanted=wanted)
    meter = delivered.devices["M0"].meter
    return MqttCommand("id", meter, intent, 1, "topic", (("relay", 0),), delivered.now_ms + 5_000)


def test_an_mqtt_command_is_not_kept_while_the_broker_is_away(delivered: World) -> None:
    command = mqtt_command(delivered)
    assert "not connected" in (Commander("test", LOG).publish(command) or "")


@pytest.mark.parametrize(("wanted", "qos"), [("open", 0), ("closed", 1)])
def test_a_cut_is_published_so_that_nobody_keeps_it_and_a_restore_so_that_it_arrives(
    delivered: World, wanted: str, qos: int
) -> None:
    published: list[dict[str, Any]] = []

    def publish(_topic: str, _payload: str, **how: Any) -> Any:
        published.append(how)
        return SimpleNamespace(rc=0)

    commander = Commander("test", LOG)
    client: Any = SimpleNamespace(is_connected=lambda: True, publish=publish)
    commander._client = client
    assert commander.publish(mqtt_command(delivered, wanted)) is None
    assert published == [{"qos": qos, "retain": False}]


async def test_an_mqtt_command_does_not_wait_for_kafka_behind_the_last_look(
    delivered: World,
) -> None:
    """A request to a line that Kafka never takes must not let a cut over MQTT grow old."""
    published: list[MqttCommand] = []
    (write, _) = delivered.commands
    assert isinstance(write, LineRequest)
    both: list[Command] = [write, mqtt_command(delivered)]
    never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    outbox = Outbox(
        desk=cast("Desk", SimpleNamespace(leaving=lambda *_: (both, []), acts_for=lambda _: True)),
        producer=cast("AIOKafkaProducer", SimpleNamespace(send=AsyncMock(return_value=never))),
        commander=cast("Commander", SimpleNamespace(publish=published.append)),
        fence=cast("ClockFence", SimpleNamespace(check=lambda _: None)),
        clock=SystemClock(),
        metrics=Metrics(CollectorRegistry()),
        worker="control-0",
    )
    outbox.put([Act(0, 1, command) for command in both])
    sending = asyncio.create_task(outbox.run())
    try:
        async with asyncio.timeout(1):
            while not published:
                await asyncio.sleep(0)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


def test_a_position_that_needed_no_command_tells_nothing_of_the_time_a_command_takes(
    delivered: World,
) -> None:
    collected = CollectorRegistry()
    metrics = Metrics(collected)
    (done,) = [o for o in delivered.outcomes if o.result is Result.CONFIRMED]
    for outcome in (done, replace(done, attempt=0), replace(done, is_first=False)):
        metrics.told(outcome)
    name = "wattvend_control_intent_to_confirmed_seconds_count"
    assert collected.get_sample_value(name, {"wanted": "open"}) == 1
