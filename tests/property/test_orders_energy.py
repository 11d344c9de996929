"""Goal: whatever is ordered about a meter, its energy is charged once, to whoever had it.

Method: Hypothesis draws a device's life: it is read, jumps, is judged, replaced, given another
ratio, assigned and released, while facts arrive at once or late and vending publishes again. The
office decides, `absorb` charges. Then the book alone says what must have been charged: of each
epoch, from its opening to its closing register, times its ratio, to its account; of the present
one, to the last reading that was charged.
"""

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import column_key
from services.common.runtime.kafka import Outgoing
from services.metering.domain.messages import Absorbed
from services.vending.application.relay import Relay
from services.vending.application.stored import event_of
from services.vending.domain.meter import Meter
from services.vending.domain.streams import evolve_of, stream_of
from tests.property.metering_runs import examples
from tests.unit import vending_world
from tests.unit.metering_log import charges, frame, of, reading
from tests.unit.test_orders_reach_metering import MINUTE_MS, Shards
from tests.unit.test_vending_orders import Desk
from tests.unit.test_vending_relay import relaying

KEY = column_key("meter", "M1")
JUMP_MILLI = 10**7
PLAUSIBLE_MILLI = 300
"""In a minute: less than what the profile's rating lets through."""


@dataclass(frozen=True)
class Step:
    """`what` happens; `milli`: used since, or a register to be given; `number`: of few."""

    what: str
    milli: int = 0
    number: int = 1


BEGINNING = [Step("use"), Step("assign"), Step("tell"), Step("use", PLAUSIBLE_MILLI)]


class LateShards(Shards):
    """Records are acknowledged at once, and absorbed when they are delivered."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[Outgoing] = []

    async def publish(self, records: Sequence[Outgoing]) -> None:
        self.waiting += records

    async def deliver(self) -> None:
        waiting, self.waiting = self.waiting, []
        await super().publish(waiting)


@dataclass
class Life:
    """A device that hangs at M1, and what metering charged for it, in order of the log.

    `known`: the meter as ingest knows it; `held_id`: of the last reading that was held.
    """

    desk: Desk
    shards: LateShards
    relay: Relay
    known: Meter
    register_milli: int = 0
    held_id: str = ""
    now_ms: int = vending_world.T0_MS
    charged: list[dict[str, Any]] = field(default_factory=list)

    async def live(self, step: Step) -> None:
        """Do a step; what is refused does nothing."""
        with suppress(InvalidInput):
            await self._do(step)

    async def _do(self, step: Step) -> None:
        match step.what:
            case "use":
                self.register_milli += step.milli
                await self.read(self.register_milli)
            case "jump":
                await self.read(self.register_milli + JUMP_MILLI + step.milli)
            case "fall":
                await self.read(max(self.register_milli - 1 - step.milli, 0))
            case "tell":
                await self.tell()
            case "tell again":
                await self.relay.caught_up()  # of two only one keeps the links of what is new
                async with relaying(self.desk, self.shards) as again:
                    await again.caught_up()
            case _:
                await self.order(step)

    async def order(self, step: Step) -> None:
        """Give an order; a register is given, or left to what was charged last."""
        desk, given = self.desk, self.register_milli if step.milli % 2 else None
        match step.what:
            case "accept" | "reject":  # where nothing is held yet, something is now
                await self.read(self.register_milli + JUMP_MILLI)
                await desk.resolve(step.what, self.held_id)
            case "replace":
                closing_milli, self.register_milli = self.register_milli, step.milli
                await desk.replace(
                    serial=f"serial-{step.number}",
                    closing_register_milli=closing_milli,
                    opening_register_milli=step.milli,
                    ratio=step.number,
                )
            case "ratio":
                await desk.ratio(step.number, given)
            case "assign":
                await desk.assign("M1", f"A{step.number}", given)
            case "release":
                await desk.release("M1", given)

    async def read(self, register_milli: int) -> None:
        """Let the device be read as ingest knows it, by the shard that ingest knows."""
        self.now_ms += MINUTE_MS
        known, log = self.known, self.shards.logs[self.known.shard]
        log.now_ms = max(log.now_ms, self.now_ms)
        told = reading(
            register_milli,
            at_ms=self.now_ms,
            epoch=known.epoch,
            serial=known.serial.encode(),
            ratio=known.ratio,
        )
        done = log.append("reading-frame", frame([told], known.shard))
        for alarm in of(done, "alarm"):
            if alarm["kind"] == "reading-held":
                self.held_id = alarm["to_reading_id"]
        await self.keep(done)

    async def tell(self) -> None:
        """Let the facts of what was decided arrive, at metering and at ingest."""
        await self.relay.caught_up()
        await self.shards.deliver()
        done, self.shards.absorbed = self.shards.absorbed, []
        for absorbed in done:
            await self.keep(absorbed)
        self.known = await self.desk.office.meter("M1")

    async def keep(self, done: Absorbed) -> None:
        for one in charges(done):
            self.charged.append(one)
            epoch, sequence = int(one["epoch"]), int(one["sequence"])
            await self.desk.charge(KEY, epoch, sequence, int(one["to_register_milli"]))


async def epochs(desk: Desk) -> list[Meter]:
    """Return the meter as it was at the end of each of its epochs, the present one last."""
    stream, state = stream_of(Meter, "M1"), None
    found: dict[int, Meter] = {}
    for stored in await desk.store.read(stream):
        state = evolve_of(stream)(state, event_of(stored))
        assert isinstance(state, Meter)
        found[state.epoch] = state
    assert list(found) == list(range(1, len(found) + 1))
    return list(found.values())


def judge(meters: Sequence[Meter], charged: Sequence[dict[str, Any]]) -> None:
    """Hold what was charged against the registers in the book."""
    for meter, after in zip(meters, [*meters[1:], None], strict=True):
        ours = [one for one in charged if one["epoch"] == meter.epoch]
        owners = {int(one["account_key"]) for one in ours}
        assert owners <= {column_key("account", meter.account_id)}
        sequences = [int(one["sequence"]) for one in ours]
        assert sequences == list(range(1, len(ours) + 1))
        opening_milli = meter.opening_register_milli
        if opening_milli is None and ours:  # the first reading opened it
            opening_milli = int(ours[0]["from_register_milli"])
        if opening_milli is None:
            continue
        if after is not None:
            ending_milli = after.closing_register_milli
            assert ending_milli is not None
        else:
            ending_milli = int(ours[-1]["to_register_milli"]) if ours else opening_milli
        energy_milli = sum(int(one["energy_milli"]) for one in ours)
        assert energy_milli == (ending_milli - opening_milli) * meter.ratio


async def follow(history: Sequence[Step], path: Path) -> None:
    async with vending_world.world(path) as world:
        desk, shards = Desk(**vars(world)), LateShards()
        await desk.mall()
        await desk.account("A2")
        async with relaying(world, shards) as relay:
            life = Life(desk, shards, relay, await desk.office.meter("M1"))
            await life.tell()
            for step in [*BEGINNING, *history]:
                await life.live(step)
            await life.tell()
        judge(await epochs(desk), life.charged)


def any_step() -> st.SearchStrategy[Step]:
    readings = ["use", "use", "use", "jump", "fall", "accept", "reject"]
    orders = ["replace", "ratio", "assign", "release", "tell", "tell", "tell again"]
    whats, used_milli = st.sampled_from(readings + orders), st.integers(0, PLAUSIBLE_MILLI)
    return st.builds(Step, whats, used_milli, st.integers(1, 2))


@given(st.lists(any_step(), min_size=5, max_size=25))
@examples(50)
def test_each_watt_hour_is_charged_once_to_whoever_had_the_meter(history: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(follow(history, Path(directory) / "events.sqlite"))
