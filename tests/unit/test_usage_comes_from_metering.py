"""Goal: what metering charged is what the book posts, to the last unit, by component.

Method: office, relay, statements and metering's `absorb` in one process, without Kafka: what
vending would publish to `shard-log` is encoded, decoded and absorbed, and metering's echoes come
back as the bytes that vending would read.
"""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import Retriable
from services.common.kernel.frames import FEE_RATE, NO_RATE
from services.common.kernel.ids import name_uuid
from services.common.runtime import codec, kafka
from services.metering.domain.messages import Absorbed
from services.vending.adapters import bus
from services.vending.application.relay import Relay
from services.vending.application.statements import DAY_MS, Pace, Statements
from services.vending.application.stored import event_of
from services.vending.domain.events.closings import AccountCloseRefused
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.trial_balance import TrialBalance
from services.vending.metrics import Metrics
from tests.property.metering_plans import document
from tests.property.metering_runs import charges_of
from tests.unit import vending_world
from tests.unit.metering_log import Log, frame, reading
from tests.unit.test_orders_reach_metering import Shards
from tests.unit.test_vending_relay import relaying
from tests.unit.vending_world import World

HALF_HOUR_MS = 1_800_000
PLAN = document(
    "Asia/Shanghai",
    {"flat": 800_000},
    ladder={"period": "month", "steps": [{"above_milli": 500, "add_micro": 200_000}]},
    surcharges=[{"name": "fund", "price_micro": 30_000}],
    fees=[{"name": "line", "period": "day", "amount_micro": 1_000_000}],
    taxes=[{"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges", "fees"]}],
)
COMPONENTS = ("energy", "surcharge", "ladder", "fees", "tax")


class Platform:
    """Vending and metering: account A1 with meter M1 under a tariff of everything."""

    def __init__(self, world: World, shards: Shards, relay: Relay, statements: Statements) -> None:
        self.world = world
        self.relay = relay
        self.shards = shards
        self.statements = statements
        self.charged: Counter[str] = Counter()
        tables: Any = world.tables
        step_over = kafka.StepOver(frozenset(), "WATTVEND_VENDING_SKIP", structlog.get_logger())
        now_ms = world.clock.now_ms
        self.handle = bus.settler_of_echoes(world.office, statements, tables, now_ms, step_over)
        self.log: Log
        self.epoch = 2

    async def heard(self) -> None:
        """Let vending read what metering said since the last time."""
        done, self.shards.absorbed = self.shards.absorbed, []
        for absorbed in done:
            await self.keep(absorbed)

    async def keep(self, done: Absorbed) -> None:
        for output in done.outputs:
            if output.topic == "charges":
                self.count(output)
            elif output.topic == "echoes":
                header = codec.schema_header("echo")
                headers = Envelope(header, output.event_id, output.occurred_at_ms).headers()
                value = codec.encode("echo", output.record)
                place = {"topic": "echoes", "partition": 0, "offset": 1}
                record: Any = SimpleNamespace(headers=headers, value=value, **place)
                await self.handle([record])

    def count(self, output: Any) -> None:
        """Add up, as a clerk would, what the lines of charges are for."""
        for charge in charges_of(output):
            if charge["tariff_name"] != "T1":
                continue
            for line in charge["lines"]:
                is_fee = FEE_RATE <= line["rate"] < NO_RATE
                self.charged["fees" if is_fee else "energy"] += line["rate_nano"]
                for name in ("surcharge", "ladder", "tax"):
                    self.charged[name] += line[f"{name}_nano"]

    async def read(self, register_milli: int) -> None:
        serial = (await self.world.office.meter("M1")).serial.encode()
        at_ms = self.log.later(HALF_HOUR_MS).now_ms
        told = reading(register_milli, at_ms=at_ms, epoch=self.epoch, serial=serial)
        await self.keep(self.log.append("reading-frame", frame([told], self.log.state.shard)))

    async def posted(self) -> list[UsagePosted]:
        events = map(event_of, await self.world.store.read_all(0, 1000))
        return [event for event in events if isinstance(event, UsagePosted)]


@asynccontextmanager
async def platform(path: Path) -> AsyncIterator[Platform]:
    async with vending_world.world(path) as world:
        shards = Shards()
        async with relaying(world, shards) as relay:
            statements = Statements(
                world.office,
                world.store,
                world.tables,
                shards,
                relay,
                clock=world.clock,
                metrics=Metrics(CollectorRegistry()),
                pace=Pace(960, 20),
            )
            made = Platform(world, shards, relay, statements)
            await world.site()
            await world.gateway()
            await world.meter()
            await world.tariff(price_micro=0, plan=PLAN)
            await world.policy()
            await world.account(first_sale_minor=100_000, method="qr")
            await world.assign(register_milli=1_000)
            made.log = shards.logs[(await world.office.account("A1")).shard]
            await relay.caught_up()
            await made.heard()
            yield made


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Platform]:
    async with platform(tmp_path / "events.sqlite") as made:
        yield made


def told(event: UsagePosted) -> dict[str, int]:
    record = event.record()
    return {name: record[f"{name}_nano"] for name in COMPONENTS}


async def test_a_day_s_usage_is_posted_by_component_as_metering_charged_it(both: Platform) -> None:
    await both.read(1_200)
    await both.read(2_400)  # into the ladder's step
    assert await both.statements.step() == 1
    await both.heard()
    (first,) = await both.posted()
    assert told(first) == {name: both.charged[name] for name in COMPONENTS}
    assert all(told(first).values())
    (stand,) = first.meters
    assert (stand["meter_id"], stand["epoch"]) == ("M1", 2)
    assert (stand["register_milli"], stand["energy_total_milli"]) == (2_400, 1_400)

    both.world.clock.at_ms += DAY_MS
    await both.statements.step()
    await both.heard()
    assert len(await both.posted()) == 1, "nothing was used since"

    await both.read(2_500)
    both.world.clock.at_ms += DAY_MS
    await both.statements.step()
    await both.heard()
    _, second = await both.posted()
    assert told(second) == {name: both.charged[name] for name in COMPONENTS}
    posted = {posting.account: posting.amount_nano for posting in second.postings or ()}
    assert posted["liabilities:prepayment"] == second.charged_nano - first.charged_nano
    assert posted["income:electricity:ladder"] == first.ladder_nano - second.ladder_nano


async def test_a_closing_posts_what_its_echo_tells_also_where_it_is_refused(both: Platform) -> None:
    await both.read(3_000)
    await both.world.release("M1", 3_500)
    with pytest.raises(Retriable):
        await both.world.close()
    await both.relay.caught_up()
    await both.heard()
    *_, used, refused = map(event_of, await both.world.store.read_all(0, 1000))
    assert isinstance(used, UsagePosted)
    assert isinstance(refused, AccountCloseRefused)
    assert told(used) == {name: both.charged[name] for name in COMPONENTS}
    assert (used.charged_nano, used.meters) == (refused.charged_nano, [])
    events = map(event_of, await both.world.store.read_all(0, 1000))
    balance = TrialBalance(event for event in events if isinstance(event, MoneyEvent))
    state = await both.world.office.account("A1")
    left = balance.books["LE1", "CNY"]["liabilities:prepayment"].balance_nano
    assert left == used.charged_nano - state.credited_nano


async def test_the_same_ask_twice_in_the_log_is_answered_alike(both: Platform) -> None:
    await both.read(1_700)
    account_key = (await both.world.office.account("A1")).account_key
    ask = {"account_id": "A1", "account_key": account_key, "asked_at_ms": 1}
    ask["ask_id"] = str(name_uuid("ask"))
    first, second = (both.log.append("usage-ask", ask) for _ in range(2))
    rows = [done.outputs[0].record["row"] for done in (first, second)]
    assert rows[0] == rows[1]
    assert (first.account_rows, second.account_rows) == ((), ())
    for done in (first, second):
        await both.keep(done)
    assert len(await both.posted()) == 1
