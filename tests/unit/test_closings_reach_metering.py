"""Goal: a closing through metering's own code ends at exactly what metering charged, to the nano.

Method: office, relay and metering's `absorb` in one process, as in test_usage_comes_from_metering;
what metering charges is kept by the handler that reads `charges`, so readings have their times.
"""

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from services.common.kernel.envelope import Envelope
from services.common.runtime import codec, kafka
from services.vending.adapters import bus
from services.vending.domain.account import Status
from services.vending.domain.closing import HOUR_MS
from services.vending.domain.closings import CloseAccount, CloseMeters, GiveRegister
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.meter_orders import ResolveReading
from services.vending.domain.trial_balance import TrialBalance
from tests.unit.metering_log import frame, of, reading
from tests.unit.test_usage_comes_from_metering import HALF_HOUR_MS, Platform, platform
from tests.unit.test_vending_approvals import of_type, publish, stored

ALONE: dict[str, Any] = dict.fromkeys(
    ("refund", "force-off", "register", "authority", "closing", "exchange")
)


class Shop(Platform):
    """The platform, whose charges vending reads too. One clock is everybody's."""

    async def begin(self) -> None:
        tables: Any = self.world.tables
        step_over = kafka.StepOver(frozenset(), "WATTVEND_VENDING_SKIP", structlog.get_logger())
        self.keeper = bus.keeper_of_charges(tables, step_over)
        self.intents: list[Any] = []
        await publish(self.world, **ALONE)
        for log in self.shards.logs:
            log.now_ms = self.world.clock.at_ms

    async def keep(self, done: Any) -> None:
        self.intents += of(done, "relay-intent")
        await super().keep(done)
        for output in done.outputs:
            if output.topic == "charges":
                header = codec.schema_header(output.subject)
                headers = Envelope(header, output.event_id, output.occurred_at_ms).headers()
                value = codec.encode(output.subject, output.record)
                record: Any = SimpleNamespace(
                    headers=headers, value=value, topic="charges", partition=0, offset=1
                )
                await self.keeper([record])

    async def told(self) -> None:
        """Let each hear what the other said, until nobody says anything."""
        while True:
            await self.world.office.complete()
            await self.relay.caught_up()
            if not self.shards.absorbed:
                return
            await self.heard()

    async def reads(self, register_milli: int, meter_id: str = "M1") -> None:
        """Let a meter tell its register half an hour later, in its epoch and its shard."""
        meter = await self.world.office.meter(meter_id)
        log = self.shards.logs[meter.shard]
        self.world.clock.at_ms += HALF_HOUR_MS
        for each in self.shards.logs:
            each.now_ms = self.world.clock.at_ms
        told = reading(
            register_milli, at_ms=log.now_ms, epoch=meter.epoch, serial=meter.serial.encode(),
            meter_key=meter.meter_key,
        )  # fmt: skip
        await self.keep(log.append("reading-frame", frame([told], log.state.shard)))
        await self.told()

    @property
    def charged_nano(self) -> int:
        return sum(self.charged.values())

    async def prepayment_nano(self) -> int:
        balance = TrialBalance(e for e in await stored(self.world) if isinstance(e, MoneyEvent))
        assert balance.off_nano() == {}
        return balance.books["LE1", "CNY"]["liabilities:prepayment"].balance_nano


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with platform(tmp_path / "events.sqlite") as made:
        shop = Shop(made.world, made.shards, made.relay, made.statements)
        shop.log, shop.charged = made.log, made.charged
        await shop.begin()
        await shop.reads(1_200)
        yield shop


async def close(shop: Shop, **more: Any) -> str:
    command = CloseAccount(shop.world.ask("close"), "A1", "transfer", reason="moves out", **more)
    closing = (await shop.world.office.closings.begin(command)).state.closing
    assert closing is not None
    await shop.told()
    return closing.closing_id


async def test_a_closed_account_was_charged_to_the_last_reading_and_has_exactly_nothing(
    shop: Shop,
) -> None:
    await close(shop)
    assert [(intent["mode"], intent["wanted"]) for intent in shop.intents[-1:]] == [
        ("forced-off", "open")
    ]
    await shop.reads(2_417)
    meter = await shop.world.office.meter("M1")
    assert (meter.is_house, meter.closing_register_milli) == (True, 2_417)
    state = await shop.world.office.account("A1")
    assert state.status is Status.CLOSED
    assert state.credited_nano == shop.charged_nano > 0
    assert await shop.prepayment_nano() == 0
    (settled,) = await of_type(shop.world, "account-settled")
    (paid,) = await of_type(shop.world, "credit-refunded")
    said = settled.record()
    assert said["dropped_nano"] == said["left_nano"] - paid.record()["amount_nano"]
    assert said["left_nano"] == 100_000 * 10**7 - shop.charged_nano

    before = shop.charged_nano
    await shop.reads(2_450)
    assert shop.charged_nano == before, "what comes later is the house's"
    assert (shop.intents[-1]["mode"], shop.intents[-1]["wanted"]) == ("forced-off", "open")


async def test_a_silent_meter_leaves_at_the_register_that_is_given_and_pays_to_it(
    shop: Shop,
) -> None:
    closing_id = await close(shop, lasts_ms=HOUR_MS)
    shop.world.clock.at_ms += 2 * HOUR_MS
    given = GiveRegister(
        shop.world.ask("give"), "A1", closing_id, "M1", 1_333, "manual", "read at the meter"
    )
    await shop.world.office.closings.give(given)
    await shop.told()
    (used, *_) = reversed(await shop.posted())
    state = await shop.world.office.account("A1")
    assert (state.status, state.credited_nano) == (Status.CLOSED, shop.charged_nano)
    assert used.charged_nano == shop.charged_nano
    before = shop.charged_nano
    await shop.reads(1_320)  # it stood lower than that
    assert (shop.charged_nano, await shop.prepayment_nano()) == (before, 0)


async def test_what_a_frozen_account_used_is_not_known_so_it_is_not_closed(shop: Shop) -> None:
    account = await shop.world.office.account("A1")
    log = shop.shards.logs[account.shard]
    log.state.accounts["frozen"][log.state.account_slot(account.account_key)] = True
    closing_id = await close(shop, lasts_ms=HOUR_MS)
    await shop.reads(50_000)
    shop.world.clock.at_ms += 2 * HOUR_MS
    given = GiveRegister(shop.world.ask("give"), "A1", closing_id, "M1", 2_000, "manual", "read")
    await shop.world.office.closings.give(given)
    await shop.told()
    state = await shop.world.office.account("A1")
    assert (state.status, state.meters) == (Status.OPEN, ())
    assert await of_type(shop.world, "credit-refunded") == []


@pytest.mark.parametrize(("resolution", "energy_milli"), [("accept", 898_800), ("reject", 0)])
async def test_what_waits_of_a_device_before_is_judged_before_the_meter_leaves(
    shop: Shop, resolution: str, energy_milli: int
) -> None:
    world = shop.world
    await world.office.replace_meter(
        world.ask("new"), meter_id="M1", closing_register_milli=900_000, opening_register_milli=0,
        serial="serial-2", unit=None, profile=None, ratio=None, max_power_w=None, reason="burnt",
    )  # fmt: skip
    await shop.told()
    await close(shop)
    await shop.reads(10)
    await shop.reads(20)
    closing = (await world.office.account("A1")).closing
    assert closing is not None
    (told,) = closing.told_meters
    assert told.waits_for is not None
    before = shop.charged["energy"]
    request = world.ask(resolution)
    await world.office.order(ResolveReading(request, "M1", told.waits_for, resolution, "seen"))
    await shop.told()
    state = await world.office.account("A1")
    assert (state.status, state.credited_nano) == (Status.CLOSED, shop.charged_nano)
    assert shop.charged["energy"] - before == energy_milli * 800_000
    assert await shop.prepayment_nano() == 0


async def test_a_part_is_charged_to_its_registers_and_the_rest_goes_on(shop: Shop) -> None:
    await shop.world.meter("M2", unit=2)
    await shop.world.assign("M2", register_milli=50)
    await shop.told()
    await shop.reads(60, "M2")
    part = CloseMeters(shop.world.ask("part"), "A1", ("M2",), True, 0, "let to another")
    await shop.world.office.closings.begin(part)
    await shop.reads(75, "M2")
    state = await shop.world.office.account("A1")
    assert (state.status, [meter.meter_id for meter in state.meters]) == (Status.OPEN, ["M1"])
    (ended,) = await of_type(shop.world, "meters-closed")
    assert ended.record()["charged_nano"] == shop.charged_nano
    before = shop.charged_nano
    await shop.reads(99, "M2")
    assert shop.charged_nano == before
    await shop.reads(1_500)
    assert shop.charged_nano > before
