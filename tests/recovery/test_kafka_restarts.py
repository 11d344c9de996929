"""Goal: the product comes through a Kafka, or an MQTT broker, that dies under load.

Method: the whole product on a stack of its own, 17 virtual meters that draw power, tills that sell
all the while. The broker is killed or restarted in the middle. The judge is outside: what the
meters' own registers say x price = charged, what the receipts say = credited, in the book and in
reporting, and each relay stands where the platform wants it.
"""

import asyncio
import contextlib
import os
import random
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from uuid import uuid4

import aiohttp
import pytest

from services.common.kernel import names
from tests.conftest import BUILD
from tests.recovery.faults import Fault, rounds
from tests.recovery.workers import until, until_async
from tools import mall as site
from tools import sitefile
from tools.client import Clients, connect
from tools.demo import judge, plan
from tools.demo.fleet import Fleet, TrueMeter
from tools.demo.plan import DemoMeter, Plan
from tools.demo.setup import Desk
from tools.fleet.site import as_yaml
from tools.stack.background import BackgroundStack
from tools.stack.ports import Ports
from tools.stack.process import Restart, State
from tools.stack.services import Addresses, ServiceSpec, fleet_spec, service_specs
from wattvend.vending.v1 import vending_pb2 as v

pytestmark = pytest.mark.stack

SERVICES = ("ingest", "metering", "vending", "control", "reporting")
SURVIVORS = ("ingest", "vending", "reporting")
"""They wait for Kafka. metering and control leave when they may not be members any more."""
SEED = 20262
KEPT = 3
"""Of the demo's 44 meters every third plays, and those with a part."""
TILLS = 2
BETWEEN_SALES_S = 0.1
SALE_MINOR = 100
READ_WITHIN_S = 30.0
READINGS = 2
"""Of each meter, before a fault, after it, and at the end."""
SALES = 10
"""Before a fault."""
RUNS_OUT_AFTER_S = 6
OPENED, CLOSED = "open", "closed"


@dataclass
class Mall:
    """The running product, and all that was ever paid and read in it."""

    stack: BackgroundStack
    plan: Plan
    before: dict[str, TrueMeter] = field(default_factory=dict)
    receipts: list[v.Sale] = field(default_factory=list)

    @property
    def actors(self) -> tuple[DemoMeter, ...]:
        """The meters whose credit runs out: the first hangs on a line, the others on MQTT."""
        cast = self.plan.cast
        return cast.runner, cast.absent, cast.standins[-1]

    def exits(self) -> dict[str, int]:
        return {name: self.stack.status(name).exits for name in SERVICES}

    async def are_ready(self) -> None:
        await until(
            lambda: all(self.stack.status(n).state is State.READY for n in (*SERVICES, "kafka")),
            "every part is ready",
        )


@dataclass
class Visit:
    """One test's connections to the product."""

    mall: Mall
    clients: Clients
    fleet: Fleet
    desk: Desk
    chance: random.Random

    async def read_more(self) -> None:
        """Wait until each meter was read so many times more."""
        before = await self.fleet.meters()

        async def so() -> bool:
            now = await self.fleet.meters()
            return all(now[m].reads_served >= before[m].reads_served + READINGS for m in now)

        await until_async(so, f"{READINGS} readings more of each meter")

    async def sold_more(self) -> None:
        wanted = len(self.desk.receipts) + SALES
        await until(lambda: len(self.desk.receipts) >= wanted, f"{SALES} sales more")

    async def bill_minor(self, actor: DemoMeter) -> int:
        """Return what a meter that is cut owes in truth, and what lasts until it is cut again."""
        before = self.mall.before[actor.meter_id].register_lsb
        steps = (await self.fleet.meter(actor.meter_id)).register_lsb - before
        paid = [
            sale.amount_minor
            for sale in self.receipts
            if sale.account == names.ACCOUNT.name(actor.account_id)
        ]
        owed_minor = -(-plan.cost_nano(steps, actor) // plan.MINOR_NANO) - sum(paid)
        return owed_minor + plan.lasting_minor(RUNS_OUT_AFTER_S, actor.power_w)

    @property
    def receipts(self) -> list[v.Sale]:
        return [*self.mall.receipts, *self.desk.receipts]

    @contextlib.asynccontextmanager
    async def busy(self) -> AsyncIterator[None]:
        """Let the meters draw power and the tills sell meanwhile."""
        await self.fleet.load(on=True)
        closing = asyncio.Event()
        tills = [asyncio.create_task(self._till(closing)) for _ in range(TILLS)]
        try:
            await self.read_more()
            await self.sold_more()
            yield
            closing.set()
            await asyncio.gather(*tills)
            await self.fleet.load(on=False)
        finally:
            for till in tills:
                till.cancel()
            await asyncio.gather(*tills, return_exceptions=True)

    async def _till(self, closing: asyncio.Event) -> None:
        while not closing.is_set():
            meter = self.chance.choice(self.mall.plan.meters)
            if meter not in self.mall.actors:
                await self.desk.sell(meter.account_id, SALE_MINOR, str(uuid4()))
            await asyncio.sleep(BETWEEN_SALES_S)

    async def stands(self, meter: DemoMeter, position: str) -> None:
        async def so() -> bool:
            return (await self.fleet.meter(meter.meter_id)).position == position

        await until_async(so, f"the relay of {meter.meter_id} is {position}")

    async def judged(self) -> list[judge.MeterVerdict]:
        """Return the verdict of each meter when all adds up, or when it does not in time."""
        await self.read_more()
        rows: list[judge.MeterVerdict] = []
        after = await self.fleet.meters()

        async def adds_up() -> bool:
            nonlocal rows
            mall = self.mall
            rows = await judge.verdicts(
                self.clients, mall.plan.meters, mall.before, after, self.receipts
            )
            return not any(row.faults for row in rows)

        with contextlib.suppress(AssertionError):  # the rows say what does not
            await until_async(adds_up, "everything adds up")
        return rows


@contextlib.asynccontextmanager
async def visit(mall: Mall) -> AsyncIterator[Visit]:
    at = mall.stack.addresses
    timeout = aiohttp.ClientTimeout(total=5)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        connect(at.vending, at.reporting, "operator") as clients,
    ):
        fleet = Fleet(session, f"http://127.0.0.1:{at.ports.fleet_http}")
        desk = Desk(clients, uuid4())
        yield Visit(mall, clients, fleet, desk, random.Random(SEED))
        mall.receipts += desk.receipts


async def opened(mall: Mall) -> None:
    """Register the site; open and assign an account a meter; actors have credit for seconds."""
    async with visit(mall) as guest:
        await sitefile.apply(guest.clients, site.site_file(mall.plan.fleet), lambda _: None)
        sales = plan.first_sales_minor(mall.plan, dict.fromkeys(mall.actors, RUNS_OUT_AFTER_S))
        await guest.desk.open_accounts(sales, READ_WITHIN_S)
        mall.before = await guest.fleet.meters()


def small(whole: Plan) -> Plan:
    """Return a plan with fewer meters: the machine is to be busy with faults, not with polls."""
    cast = {whole.cast.runner, whole.cast.absent, *whole.cast.standins}
    kept = [m for at, m in enumerate(whole.meters) if m in cast or at % KEPT == 0]
    names = {meter.meter_id for meter in kept}
    meters = tuple(meter for meter in whole.fleet.meters if meter.id in names)
    fleet = whole.fleet.model_copy(update={"meters": meters})
    return replace(whole, fleet=fleet, meters=tuple(kept))


@pytest.fixture(scope="module")
def mall(request: pytest.FixtureRequest) -> Iterator[Mall]:
    """Run the whole product, as `make up` does, on free ports, once for this module."""
    ports = Ports.free()
    shown = small(plan.make_plan(ports.fleet_lines))

    def services(at: Addresses) -> list[ServiceSpec]:
        config = at.directory / "fleet.yaml"
        config.write_text(as_yaml(shown.fleet))
        return [*service_specs(at), fleet_spec(at, config)]

    directory = BUILD / f"test-mall-{os.getpid()}"
    running = BackgroundStack(directory, ports, services=services, restart=Restart())
    running.open()
    failed_before = request.session.testsfailed
    try:
        made = Mall(running, shown)
        asyncio.run(opened(made))
        yield made
    finally:
        running.close()
        if request.session.testsfailed == failed_before:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"\nthe logs of the whole product are in {running.logs}", file=sys.stderr)


@pytest.fixture
async def guest(mall: Mall) -> AsyncIterator[Visit]:
    async with visit(mall) as guest:
        yield guest


@pytest.mark.fault("kafka-killed-under-load")
async def test_kafka_killed_under_load_everything_adds_up(guest: Visit, fault: Fault) -> None:
    await broken(guest, fault, guest.mall.stack.kill9, "kafka", guest.mall.actors[0])


@pytest.mark.fault("kafka-restarted-under-load")
async def test_kafka_restarted_under_load_everything_adds_up(guest: Visit, fault: Fault) -> None:
    await broken(guest, fault, guest.mall.stack.restart, "kafka", guest.mall.actors[1])


@pytest.mark.fault("mqtt-broker-killed-in-the-whole-product")
async def test_the_mqtt_broker_killed_under_load_everything_adds_up_and_commands_arrive(
    guest: Visit, fault: Fault
) -> None:
    await broken(guest, fault, guest.mall.stack.kill9, "mqtt", guest.mall.actors[2])


async def broken(
    guest: Visit, fault: Fault, provoke: Callable[[str], None], part: str, actor: DemoMeter
) -> None:
    """Provoke the fault under load; then pay for a meter that was cut, and judge everything."""
    mall, took_s = guest.mall, []
    for _ in rounds(1):
        exits = mall.exits()
        async with guest.busy():
            await guest.stands(actor, OPENED)
            began = time.monotonic()
            await asyncio.to_thread(provoke, part)
            fault.tried += 1
            await mall.are_ready()
            await guest.read_more()
            took_s.append(time.monotonic() - began)
            await guest.desk.sell(actor.account_id, await guest.bill_minor(actor), str(uuid4()))
            await guest.stands(actor, CLOSED)
        left = {name: now - exits[name] for name, now in mall.exits().items()}
        assert not any(left[name] for name in SURVIVORS), left
    rows = await guest.judged()
    wrong = [row for row in rows if row.faults]
    print(f"from the fault to {READINGS} readings of each meter: {took_s} s; exits: {left}")
    fault.judged = len(rows)
    fault.lost = len(wrong)
    assert not wrong, [(row.faults, row) for row in wrong]
