"""Goal: a shard whose changelog is lost is seeded from what the book posted, and charges on right.

Method: metering on real Kafka is asked what its accounts were charged; its answers, and the facts
it was told, are what vending's command `seeds` writes. Then the rows of one shard are removed as
the runbook says, the shard is seeded, and metering goes on. The judge is an undisturbed absorb over
the very log: what was put out before and after, one of each event id, must be equal to it byte for
byte, and so must the rows of accounts. A frame of charges that is put out again has no charges of
accounts whose posting is later: of frames all charges together must be equal.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from services.common.kernel.ids import name_uuid
from services.common.runtime import codec, kafka, service
from services.common.runtime.topics import catalogue
from services.metering.adapters import seeding
from services.metering.config import Settings
from services.metering.domain.messages import Output
from services.metering.domain.rows import ACCOUNT_PREFIX
from tests.property.metering_runs import charges_of
from tests.recovery import metering_judge, metering_world
from tests.recovery.faults import Fault
from tests.recovery.metering_history import ACCOUNTS, SHARDS, Entry, account_key
from tests.recovery.metering_judge import CHANGELOG, LOG, OutputId, Said, at_nothing
from tests.recovery.metering_world import World, admin_of
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

SHARD = 3
POLICY = "cleanup.policy"


@pytest.fixture
async def world(stack: BackgroundStack, tmp_path: Path) -> AsyncIterator[World]:
    async with metering_world.world(stack.kafka_bootstrap, tmp_path) as world:
        yield world


def asks(of: range) -> Iterator[Entry]:
    for number in of:
        name = f"A{number}"
        ask_id = name_uuid("ask", name)
        ask = {"ask_id": str(ask_id), "account_id": name, "asked_at_ms": 0}
        ask["account_key"] = account_key(number)
        yield Entry(number % SHARDS, "usage-ask", ask, ask_id)


async def lines_of(bootstrap: str) -> list[dict[str, Any]]:
    """Return what vending would know of the shard: facts that were told, echoes that came."""
    facts: list[tuple[str, dict[str, Any]]] = []
    for record in await metering_judge.read(bootstrap, LOG, begin=at_nothing()):
        if record.partition == SHARD:
            envelope, value = kafka.opened(record)
            facts += [(envelope.subject, value)] * envelope.subject.endswith("-fact")
    lines: list[dict[str, Any]] = [{"shard": SHARD}]
    lines += [{"subject": subject, "fact": fact} for subject, fact in facts]
    for record in await metering_judge.read(bootstrap, "echoes", begin=at_nothing()):
        _, echo = kafka.opened(record)
        if record.partition == SHARD and echo["ask_id"]:
            (fact,) = [
                fact
                for subject, fact in facts
                if subject == "account-fact" and fact["account_id"] == echo["account_id"]
                if fact["revision"] == echo["account_revision"]
            ]
            posted = {"account_key": fact["account_key"], "log_offset": echo["log_offset"]}
            lines.append({"posted": posted | {"row": echo["row"].hex(), "fact": fact}})
    return lines


def parts(outputs: Mapping[OutputId, set[Said]], name: OutputId) -> set[Any]:
    """Return in which ways an output was put out; of a frame of charges each charge."""
    if name[0] != "charges":
        return {*outputs.get(name, ())}
    schema, found = codec.schema_header("charge-frame"), set()
    for _, value in outputs.get(name, ()):
        record = codec.decode(schema, value)
        output = Output("charges", "charge-frame", "", record, name[2], 0)
        found |= {orjson.dumps(charge, default=bytes.hex) for charge in charges_of(output)}
    return found


async def lose_rows(bootstrap: str) -> None:
    """Remove the rows of the shard, as docs/operations/seeding.md says."""
    config = catalogue().topics[CHANGELOG].config
    deleting = {**config, POLICY: "compact,delete", "retention.ms": "-1"}
    async with admin_of(bootstrap) as admin:
        for changed in (deleting, config):
            topic = ConfigResource(ConfigResourceType.TOPIC, CHANGELOG, changed)
            await admin.alter_configs([topic])
            if changed is deleting:
                place = TopicPartition(CHANGELOG, SHARD)
                await admin.delete_records({place: RecordsToDelete(before_offset=-1)})


@pytest.mark.fault("metering-shard-seeded")
async def test_a_shard_that_lost_its_rows_is_seeded_and_charges_on(
    world: World, fault: Fault, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bootstrap, file = world.bootstrap, tmp_path / "seeds.jsonl"
    settings = Settings(kafka_bootstrap=bootstrap, instance="seed", http_port=1)
    worker = world.worker()
    await world.open()
    await world.feed(200)
    await world.feeder.write(asks(range(ACCOUNTS // 2)))
    await world.feed(100)
    await world.feeder.write(asks(range(ACCOUNTS // 2, ACCOUNTS)))
    await world.feed(200)
    worker.start()
    await world.caught_up()
    lines = await lines_of(bootstrap)
    file.write_bytes(b"\n".join(map(orjson.dumps, lines)))

    assert await seeding.seed(settings, file, is_dry=False) == service.EXIT_FAILED
    assert "stop all of them first" in capsys.readouterr().err
    worker.end()
    await metering_world.forget_members(bootstrap)
    assert await seeding.seed(settings, file, is_dry=False) == service.EXIT_FAILED
    assert "remove them first" in capsys.readouterr().err
    await lose_rows(bootstrap)
    assert await seeding.seed(settings, file, is_dry=True) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (await metering_judge.stored_rows(bootstrap))[SHARD]
    assert await seeding.seed(settings, file, is_dry=False) == 0
    fault.tried += 1

    worker.start()
    await world.feed(200)
    await world.caught_up()
    expected = await metering_judge.expected(bootstrap, at_nothing())
    outputs, count = await metering_judge.actual_outputs(bootstrap, at_nothing())
    rows = await metering_judge.actual_rows(bootstrap)
    accounts = {name: row for name, row in expected.rows.items() if name[1][:2] == ACCOUNT_PREFIX}
    told = {name: {said} for name, said in expected.outputs.items()}
    wrong: list[Any] = [each for each in accounts if rows.get(each) != accounts[each]]
    wrong += [each for each in told | outputs if parts(outputs, each) != parts(told, each)]
    fault.judged += len(accounts) + len(told)
    fault.lost += len(wrong)
    assert not wrong
    assert count > len(outputs), "nothing was absorbed again"
