"""The pipeline: how long a reading, a cut and a payment take through the whole product.

All services and the virtual meters, as in the demo, with little to do: meters on three Modbus lines
and over MQTT, each read once a second. Accounts run out one after the other; each is topped up when
its relay is open, runs out again, and so on. What a relay does is seen at the meter itself.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar
from uuid import uuid4

import aiohttp

from services.common.kernel.frames import KIND_USAGE, ChargeFrame
from services.common.runtime import kafka
from tools import mall, sitefile
from tools.bench.figures import Figure, quantiles_of
from tools.bench.screen import Screen
from tools.bench.stand import Stand, until
from tools.client import connect
from tools.demo.fleet import TIMEOUT_S, Fleet, TrueMeter
from tools.demo.observe import Observer
from tools.demo.plan import DemoMeter, lasting_minor, make_plan
from tools.demo.setup import Desk
from tools.fleet.config import FleetConfig, LoadConfig
from tools.fleet.site import as_yaml
from tools.stack.ports import Ports
from tools.stack.services import (
    READ_OFTEN,
    Addresses,
    ServiceSpec,
    fleet_spec,
    http_address,
    service_specs,
)

LINGER_MS = int(READ_OFTEN["LINGER_MS"])
POWER_W = 3_000_000
"""What each meter draws: enough that credit is used up in seconds. Time is never accelerated."""
CUTS_PER_MINUTE = 600
"""The brake on cuts is not what is measured."""
LASTS_S_MIN = 4.0
READ_WITHIN_S = 60.0
CUT_WITHIN_S = 180.0
MOVED_WITHIN_S = 30.0
REST_S = 0.5
"""Between a cut and its payment, so that the line is idle again."""
LOOK_S = 0.25
COMFORTABLE_MINOR = 5_000_000
Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: accounts of the fleet's, each cut and restored `rounds` times.

    The first runs out after `first_s`, the others `apart_s` after each other, s.
    """

    accounts: int = mall.METERS
    rounds: int = 2
    first_s: float = 8.0
    apart_s: float = 1.0


@dataclass
class Listener(Observer):
    """What is heard on the bus; of each frame of charges also how long its oldest reading took."""

    oldest_to_charge_ms: list[int] = field(default_factory=list)

    def _hear(self, record: Any) -> None:
        super()._hear(record)
        if record.topic == "charges":
            rows = ChargeFrame.from_record(kafka.opened(record)[1]).rows
            received_ms = rows["to_received_at_ms"][rows["kind"] == KIND_USAGE]
            if len(received_ms):
                self.oldest_to_charge_ms.append(int(record.timestamp - received_ms.min()))

    def forget_durations(self) -> None:
        """Begin to measure now."""
        self.reading_to_charge_ms.clear()
        self.oldest_to_charge_ms.clear()


def services(at: Addresses) -> Sequence[ServiceSpec]:
    """Return what runs: the five services, and the demo's meters with a steady load."""
    config = at.directory / "fleet.yaml"
    config.write_text(as_yaml(_fleet(at.ports)), "utf-8")
    return [*service_specs(at), fleet_spec(at, config)]


def _fleet(ports: Ports) -> FleetConfig:
    fleet = make_plan(ports.fleet_lines).fleet
    load = LoadConfig(power_w=POWER_W)
    meters = tuple(meter.model_copy(update={"load": load}) for meter in fleet.meters)
    return fleet.model_copy(update={"meters": meters})


def _site(ports: Ports) -> sitefile.SiteFile:
    file = mall.site_file(_fleet(ports))
    site = file.site.model_copy(update={"cuts_per_minute": CUTS_PER_MINUTE})
    return file.model_copy(update={"site": site})


def _cast(ports: Ports, count: int) -> list[DemoMeter]:
    """Return so many meters, from every line."""
    meters = make_plan(ports.fleet_lines).meters
    chosen = meters[:: len(meters) // count][:count]
    return [replace(meter, power_w=POWER_W) for meter in chosen]


async def measure(stand: Stand, screen: Screen, plan: Plan) -> list[Figure]:
    """Return the figures of this bench. `stand` runs `services`."""
    at = stand.at
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
        connect(at.vending, at.reporting, "bench") as clients,
        _beside(Listener(), lambda heard: heard.follow(at.kafka_bootstrap)) as heard,
    ):
        fleet = Fleet(session, http_address(at.ports.fleet_http))
        cast = _cast(at.ports, plan.accounts)
        screen.say(f"pipeline: a site with {mall.METERS} meters, {len(cast)} accounts")
        await sitefile.apply(clients, _site(at.ports), lambda _: None)
        story = _Story(plan, cast, Desk(clients, uuid4()), fleet, heard, await fleet.meters())
        await story.desk.open_accounts(story.first_sales_minor(), READ_WITHIN_S)
        async with _beside(story, lambda story: story.look()):
            await story.play(screen)
    return story.figures()


@asynccontextmanager
async def _beside(
    part: Part, work: Callable[[Part], Coroutine[Any, Any, None]]
) -> AsyncIterator[Part]:
    """Let `part` work while the context lasts."""
    task = asyncio.create_task(work(part))
    try:
        yield part
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class _Story:
    """Accounts that run out and are topped up. `meters`: as they stood at the last look."""

    plan: Plan
    cast: Sequence[DemoMeter]
    desk: Desk
    fleet: Fleet
    heard: Listener
    meters: Mapping[str, TrueMeter]
    paid_at_ms: dict[str, list[int]] = field(default_factory=dict)
    cuts: int = 0

    def first_sales_minor(self) -> dict[DemoMeter, int]:
        """Return each account's first credit: they run out one after the other."""
        return {
            meter: _lasting_minor(self.plan.first_s + number * self.plan.apart_s)
            for number, meter in enumerate(self.cast)
        }

    async def play(self, screen: Screen) -> None:
        """Let every account run out and be topped up as often as planned."""
        total = len(self.cast) * self.plan.rounds
        self.heard.forget_durations()
        await self.fleet.load(on=True)
        accounts = (self._account(meter, lambda: self._count(screen, total)) for meter in self.cast)
        await asyncio.gather(*accounts)
        await self.fleet.load(on=False)

    def _count(self, screen: Screen, total: int) -> None:
        self.cuts += 1
        screen.say(f"pipeline: {self.cuts} of {total} cuts and restores")

    async def look(self) -> None:
        """Look at the meters again and again, until cancelled."""
        while True:
            self.meters = await self.fleet.meters()
            await asyncio.sleep(LOOK_S)

    async def _account(self, meter: DemoMeter, done: Callable[[], None]) -> None:
        account = meter.account_id
        for number in range(1, self.plan.rounds + 1):
            await self._cut(account, number)
            await self._moved(meter, "open", number)
            await asyncio.sleep(REST_S)
            lasts_s = max(LASTS_S_MIN, len(self.cast) * self.plan.apart_s)
            amount = _lasting_minor(lasts_s) if number < self.plan.rounds else COMFORTABLE_MINOR
            self.paid_at_ms.setdefault(account, []).append(time.time_ns() // 1_000_000)
            await self.desk.sell(account, amount, f"top-up {number}")
            await self._moved(meter, "closed", number)
            done()

    async def _cut(self, account: str, times: int) -> None:
        def decided() -> bool:
            return len(self.heard.alarms_of(account, "cut")) >= times

        await self.heard.until(decided, CUT_WITHIN_S, f"{account} is cut")

    async def _moved(self, meter: DemoMeter, position: str, times: int) -> None:
        async def there() -> bool:
            return len(self._moves_ms(meter, position)) >= times

        await until(there, MOVED_WITHIN_S, f"relay of {meter.meter_id} {position}")

    def _moves_ms(self, meter: DemoMeter, position: str) -> list[int]:
        """Return when the relay came into a position, ms UTC, in order."""
        moves = self.meters[meter.meter_id].transitions
        return [move.at_ms for move in moves if move.position == position]

    def figures(self) -> list[Figure]:
        """Return what was measured. Fails unless each relay moved as often as planned."""
        opened, closed = [], []
        for meter in self.cast:
            cuts = self.heard.alarms_of(meter.account_id, "cut")
            crossed_ms = [alarm["reading_received_at_ms"] for alarm in cuts]
            opened += _between(crossed_ms, self._moves_ms(meter, "open"))
            closed += _between(self.paid_at_ms[meter.account_id], self._moves_ms(meter, "closed"))
        assert len(opened) == len(closed) == len(self.cast) * self.plan.rounds, (
            "a relay moved twice"
        )
        charged, oldest = self.heard.reading_to_charge_ms, self.heard.oldest_to_charge_ms
        beyond = [duration - LINGER_MS for duration in oldest]
        return [
            Figure("pipeline.linger_ms", LINGER_MS, "ms", 1, LINGER_MS, LINGER_MS),
            *quantiles_of("pipeline.reading_to_charge_ms", "ms", charged),
            *quantiles_of("pipeline.reading_to_charge_beyond_linger_ms", "ms", beyond),
            *quantiles_of("pipeline.threshold_to_open_ms", "ms", opened),
            *quantiles_of("pipeline.payment_to_closed_ms", "ms", closed),
        ]


def _between(begins_ms: Sequence[int], ends_ms: Sequence[int]) -> list[int]:
    return [end - begin for begin, end in zip(begins_ms, ends_ms, strict=True)]


def _lasting_minor(seconds: float) -> int:
    return lasting_minor(round(seconds), POWER_W)
