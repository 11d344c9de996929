"""Goal: metering obeys what the book orders, and every watt-hour of a held meter has its owner.

Method: office, relay and metering's `absorb` in one process, without Kafka: what the relay would
publish to `shard-log` is encoded, decoded and absorbed by its shard; what metering charges is kept
where vending would read it; the held reading's id is taken off the alarm, as an operator would.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.common.kernel.ids import name_uuid
from services.common.runtime import codec
from services.common.runtime.kafka import Outgoing
from services.metering.domain.messages import Absorbed
from services.metering.domain.shard import ShardState
from services.vending.application.relay import Relay
from tests.unit import vending_world
from tests.unit.metering_log import Log, charges, frame, kinds, of, reading
from tests.unit.test_vending_orders import READING, Desk
from tests.unit.test_vending_relay import SHARDS, relaying

PRICE_MICRO = 800_000
OPENED_MILLI, LAST_MILLI, JUMPED_MILLI = 1_000, 1_200, 900_000
MINUTE_MS = 60_000


class Shards:
    """A publisher that hands each shard's records to metering, as the bus would."""

    def __init__(self) -> None:
        self.logs = [Log(ShardState.empty(shard)) for shard in range(SHARDS)]
        self.absorbed: list[Absorbed] = []

    async def publish(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            if record.topic == "shard-log":
                assert record.partition is not None
                value = codec.encode(record.subject, record.record)
                fact = codec.decode(codec.schema_header(record.subject), value)
                done = self.logs[record.partition].append(record.subject, fact)
                self.absorbed.append(done)


@dataclass
class Platform:
    """Vending and metering. `charged_milli`: what the account was charged for, in order.

    `held_id`: the reading at which the meter is held.
    """

    desk: Desk
    shards: Shards
    relay: Relay
    log: Log
    charged_milli: list[int]
    held_id: str = ""

    async def told(self) -> list[str]:
        """Let metering absorb what vending decided; return what it decided in turn."""
        await self.relay.caught_up()
        done, self.shards.absorbed = self.shards.absorbed, []
        for absorbed in done:
            await self.keep(absorbed)
        return [kind for absorbed in done for kind in kinds(absorbed)]

    async def read(self, register_milli: int, ratio: int = 1) -> Absorbed:
        """Let the device that hangs there tell its register, a minute later."""
        meter = await self.desk.office.meter("M1")
        told = reading(
            register_milli,
            at_ms=self.log.later(MINUTE_MS).now_ms,
            epoch=meter.epoch,
            serial=meter.serial.encode(),
            ratio=ratio,
        )
        done = self.log.append("reading-frame", frame([told], self.log.state.shard))
        await self.keep(done)
        return done

    async def keep(self, done: Absorbed) -> None:
        for one in charges(done):
            if one["account_key"] != (await self.desk.office.account("A1")).account_key:
                continue
            assert one["amount_nano"] == one["energy_milli"] * PRICE_MICRO
            self.charged_milli.append(int(one["energy_milli"]))
            key, epoch, sequence = (int(one[n]) for n in ("meter_key", "epoch", "sequence"))
            await self.desk.charge(key, epoch, sequence, int(one["to_register_milli"]))


def reasons(done: Absorbed) -> list[tuple[str, str]]:
    """Return kind and reason of each alarm that a record raised."""
    return [(alarm["kind"], alarm["reason"]) for alarm in of(done, "alarm")]


@pytest.fixture
async def platform(tmp_path: Path) -> AsyncIterator[Platform]:
    """Return both where A1's meter was read once, and is held at a jump."""
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await desk.sell(1_000_000)
            await desk.assign(register_milli=OPENED_MILLI)
            log = shards.logs[(await desk.office.account("A1")).shard]
            made = Platform(desk, shards, relay, log, [])
            assert await made.told() == ["closed"]
            await made.read(LAST_MILLI)
            held = await made.read(JUMPED_MILLI)
            assert kinds(held) == ["reading-held"]
            made.held_id = of(held, "alarm")[0]["to_reading_id"]
            assert made.charged_milli == [LAST_MILLI - OPENED_MILLI]
            yield made


async def test_an_accepted_reading_is_charged_and_the_next_one_counts_from_it(
    platform: Platform,
) -> None:
    await platform.desk.resolve("accept", platform.held_id)
    assert "hold-resolved" in await platform.told()
    await platform.read(JUMPED_MILLI + 50)
    assert platform.charged_milli == [200, JUMPED_MILLI - LAST_MILLI, 50]


async def test_a_rejected_reading_is_charged_to_nobody_and_the_next_one_counts_from_before_it(
    platform: Platform,
) -> None:
    await platform.desk.resolve("reject", platform.held_id)
    assert await platform.told() == ["hold-resolved"]
    await platform.read(LAST_MILLI + 50)
    assert platform.charged_milli == [200, 50]


async def test_a_judgement_of_another_reading_resolves_nothing(platform: Platform) -> None:
    await platform.desk.resolve("accept", READING)
    assert await platform.told() == []
    await platform.read(LAST_MILLI + 50)
    assert platform.charged_milli == [200]


async def test_a_replaced_device_ends_at_its_closing_register_and_the_next_begins_at_its_own(
    platform: Platform,
) -> None:
    await platform.desk.replace(
        serial="new-1",
        closing_register_milli=LAST_MILLI + 70,
        opening_register_milli=30,
        ratio=10,
    )
    assert await platform.told() == ["meter-left", "closed"]
    await platform.read(35, ratio=10)
    assert platform.charged_milli == [200, 70, 5 * 10]
    assert (await platform.desk.office.account("A1")).has("M1")


async def test_a_register_that_ran_over_counts_on_from_nothing(platform: Platform) -> None:
    await platform.desk.replace(closing_register_milli=LAST_MILLI + 70, opening_register_milli=0)
    await platform.told()
    await platform.read(5)
    assert platform.charged_milli == [200, 70, 5]


async def test_a_mistyped_closing_register_waits_for_the_person_and_the_new_device_does_not(
    platform: Platform,
) -> None:
    await platform.desk.may_alone('{"exchange": null, "register": null}')
    await platform.desk.replace(closing_register_milli=JUMPED_MILLI, opening_register_milli=0)
    assert await platform.told() == ["meter-left", "reading-held", "closed"]
    await platform.read(5)
    assert platform.charged_milli == [200, 5]
    closing_id = str(name_uuid("closing", "M1", (await platform.desk.office.meter("M1")).epoch))
    await platform.desk.resolve("accept", closing_id)
    assert "hold-resolved" in await platform.told()
    assert platform.charged_milli == [200, 5, JUMPED_MILLI - LAST_MILLI]


async def test_a_new_ratio_counts_from_the_register_that_was_charged_last(
    platform: Platform,
) -> None:
    await platform.desk.ratio(10)
    assert await platform.told() == ["meter-left", "closed"]
    await platform.read(LAST_MILLI + 4, ratio=10)
    assert platform.charged_milli == [200, 0, 4 * 10]


async def test_an_order_of_an_account_that_is_told_twice_is_obeyed_once(
    platform: Platform,
) -> None:
    """A restart of vending publishes again from its last checkpoint."""
    await platform.desk.replace(closing_register_milli=LAST_MILLI + 70, opening_register_milli=30)
    await platform.told()
    await platform.read(40)
    async with relaying(platform.desk, platform.shards) as again:
        await again.caught_up()
    assert await platform.told() == []
    await platform.read(45)
    assert platform.charged_milli == [200, 70, 10, 5]


@pytest.fixture
async def arrears(tmp_path: Path) -> AsyncIterator[Platform]:
    """Return both where A1 has a meter and no credit. Both clocks are one: the log's."""
    async with vending_world.world(tmp_path / "events.sqlite") as world:
        desk, shards = Desk(**vars(world)), Shards()
        async with relaying(world, shards) as relay:
            await desk.mall()
            await desk.assign(register_milli=0)
            log = shards.logs[(await desk.office.account("A1")).shard]
            log.now_ms = desk.clock.at_ms
            yield Platform(desk, shards, relay, log, [])


async def test_arrears_cut_nobody_before_the_end_of_an_order_and_somebody_after_it(
    arrears: Platform,
) -> None:
    desk, log = arrears.desk, arrears.log
    await desk.keep(log.now_ms + 2 * MINUTE_MS)
    await desk.promise(log.now_ms + 3 * MINUTE_MS)
    await arrears.told()
    assert reasons(await arrears.read(10)) == [("not-cut", "keep-power")]
    assert reasons(await arrears.read(20)) == [("not-cut", "promised")]
    assert kinds(await arrears.read(30)) == ["cut", "open"]
    desk.clock.at_ms = log.now_ms
    await desk.keep(log.now_ms + MINUTE_MS)
    assert await arrears.told() == ["restored", "closed"]


async def test_a_cut_waits_for_its_notice_and_cites_it(arrears: Platform) -> None:
    await arrears.desk.policy(rules='{"notice": {"lead_minutes": 1, "required": true}}')
    await arrears.told()
    pending = await arrears.read(10)
    assert reasons(pending) == [("not-cut", "notice-pending")]
    (notice,) = of(pending, "notice")
    assert reasons(await arrears.read(20)) == [("not-cut", "notice-failed")]
    await arrears.desk.notice("delivered", notice["notice_id"])
    assert await arrears.told() == []
    cut = await arrears.read(30)
    assert kinds(cut) == ["cut", "open"]
    cited = {(one["notice_id"], one["notice_outcome"]) for one in of(cut, "alarm")}
    assert cited == {(notice["notice_id"], "delivered")}


async def test_a_forced_relay_is_told_again_in_each_epoch_and_no_arrears_touch_it(
    arrears: Platform,
) -> None:
    async def wanted() -> list[tuple[str, str]]:
        await arrears.relay.caught_up()
        done, arrears.shards.absorbed = arrears.shards.absorbed, []
        intents = [intent for one in done for intent in of(one, "relay-intent")]
        return [(intent["wanted"], intent["mode"]) for intent in intents]

    await wanted()
    await arrears.desk.force("on")
    assert await wanted() == [("closed", "forced-on")]
    assert reasons(await arrears.read(10)) == [("not-cut", "forced")]
    await arrears.desk.replace(closing_register_milli=10, opening_register_milli=0)
    assert await wanted() == [("closed", "forced-on")]
    await arrears.desk.force("off")
    assert await wanted() == [("open", "forced-off")]
    await arrears.desk.force("prepaid")
    assert await wanted() == [("closed", "prepaid")]
    assert kinds(await arrears.read(20)) == ["cut", "open"]
