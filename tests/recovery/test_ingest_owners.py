"""Goal: one owner a line, whatever becomes of its owner, and no answer passes for another.

Method: bus lines of our own, each live answer with a register that no other shows, so that a
reading on shard-log names its exchange; ingest is killed with exchanges under way, or stopped
until its lines are another's. The judge is what the bus was asked, on which connection and when,
against the readings on shard-log and the replies.
"""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

import pytest

from services.common.kernel.routing import partition_of
from services.common.runtime import topics
from tests.recovery import ingest_line, ingest_world
from tests.recovery.faults import Fault, rounds
from tests.recovery.ingest_line import CONNECTIONS_MAX, WRITE, Bus, Exchange, now_ms
from tests.recovery.ingest_world import Log, Reading
from tests.recovery.workers import WAIT_S, Worker, until, until_async
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

REQUESTS = "device-requests"
SETTINGS = {
    "MQTT_ENABLED": "false",
    "POLL_INTERVAL_MS": "100",
    "TRANSACTION_TIMEOUT_MS": "1000",
    "LINGER_MS": "20",
}
SLOW_S = 0.4
"""A meter that takes longer to answer than the line takes to connect anew."""
EXCHANGES = 20
"""On all lines together, until a worker is killed by its own."""
OUTLASTS_THE_STOP_MS = "30000"
"""So that the answer that waits for the stopped owner is one when it wakes."""
AFTER = 5
"""Readings of each line that say that it works again."""
TAKEN_OVER_WITHIN_S = 10.0
ASKED_AT_MOST = 4
PATIENCE_S = 10.0
"""Longer than a rebalance takes, whoever began it."""


def is_live_read(exchange: Exchange) -> bool:
    return exchange.is_live_read


def is_write(exchange: Exchange) -> bool:
    return exchange.function == WRITE


def partition_of_line(line_id: str) -> int:
    return partition_of(line_id, topics.catalogue().partitions_of(REQUESTS))


def line_on(partition: int) -> str:
    """Return the id of a new line of this partition of device-requests."""
    while partition_of_line(line_id := f"line-{uuid4().hex[:10]}") != partition:
        pass
    return line_id


def bus(partition: int) -> Bus:
    """Return a line of this partition, RTU where it is odd."""
    name = uuid4().hex[:10]
    serial = f"{int(name, 16) % 10**12:012}"
    return Bus(name, serial, line_on(partition), is_rtu=partition % 2 == 1)


@dataclass
class World:
    """Lines, one on each partition, and what ingest makes of them."""

    bootstrap: str
    lines: list[Bus]
    log: Log

    async def has_readings(self, lines: list[Bus], more: int = AFTER) -> None:
        """Wait until each of the lines has so many more readings on the log."""
        before = await self._counts(lines)

        async def grown() -> bool:
            now = await self._counts(lines)
            return all(now[serial] >= before[serial] + more for serial in before)

        await until_async(grown, f"{more} readings more of each line")

    async def _counts(self, lines: list[Bus]) -> dict[str, int]:
        counted = Counter([row.serial for row in await self._rows(lines)])
        return {line.serial: counted[line.serial] for line in lines}

    async def _rows(self, lines: list[Bus]) -> list[Reading]:
        return await self.log.readings(line.serial for line in lines)

    async def judged(self) -> tuple[int, list[str]]:
        """Return how many readings there are, and those that the meter did not answer so."""
        count, wrong = 0, []
        for line in self.lines:
            readings = await self._rows([line])
            count += len(readings)
            wrong += ingest_line.untrue(line, readings)
        return count, wrong

    def shared(self) -> list[Exchange]:
        """Return what was asked on a connection beside that of a later owner."""
        return [exchange for line in self.lines for exchange in ingest_line.shared(line)]

    async def owned(self, worker: Worker, since_ms: int) -> list[Bus]:
        """Return the lines whose newest reading, if it came since then, this worker told."""
        rows = await self._rows(self.lines)
        teller = {row.serial: row.worker for row in rows if row.received_at_ms > since_ms}
        return [line for line in self.lines if teller.get(line.serial) == worker.instance]

    async def half_each(self, one: Worker, other: Worker) -> list[Bus]:
        """Wait until each of two workers owns half of the lines; return those of the first."""
        half = len(self.lines) // 2
        owned: list[Bus] = []

        # Seen twice: the first time, a reading from before the rebalance may speak for one that
        # is yet to have its partitions again, and never hears what it is asked until then.
        for _ in range(2):
            since_ms = now_ms()

            async def so() -> bool:
                nonlocal owned
                owned = await self.owned(one, since_ms)  # noqa: B023 - now
                return len(owned) == len(await self.owned(other, since_ms)) == half  # noqa: B023 - now

            await until_async(so, "each of two workers owns half of the lines")
        return owned

    async def ask(self, line: Bus, operation: str) -> str:
        return await ingest_world.ask(self.bootstrap, line.meter, operation)

    async def answered(self, *requests: str) -> None:
        async def so() -> bool:
            return all([await self.log.replies(request) for request in requests])

        await until_async(so, "each request has its reply")

    async def writes_under_way(self, lines: list[Bus]) -> list[str]:
        """Have a write of each of the lines held at its meter; return their requests.

        One that comes while its line changes hands gets no reply: so all are asked again, as
        control would.
        """
        for _ in range(ASKED_AT_MOST):
            for line in lines:
                line.hold(is_write)
            written = [len(line.writes) for line in lines]
            asked = await asyncio.gather(*(self.ask(line, "write-registers") for line in lines))
            asked_at = time.monotonic()
            while not all(line.held for line in lines):
                if time.monotonic() > asked_at + PATIENCE_S:
                    break
                await asyncio.sleep(WAIT_S)
            else:
                assert [len(line.writes) for line in lines] == [count + 1 for count in written]
                return asked
            for line in lines:
                line.release()
            await self.has_readings(lines, 1)
        raise AssertionError(f"asked {ASKED_AT_MOST} times, a write of each is not under way")

    async def ask_behind(self, line: Bus, operation: str) -> str:
        """Ask; return when the request waits in the owner's queue, behind what is under way."""
        request = await self.ask(line, operation)
        # A line that nobody has is refused at once; it stands behind the request in its partition.
        nobody = line_on(partition_of_line(line.line_id))
        refused = await ingest_world.ask(
            self.bootstrap, replace(line.meter, line_id=nobody), "read-live"
        )
        await self.answered(refused)
        return request

    async def is_read_back_open(self, line: Bus, *, writes: int) -> bool:
        """Ask for the position; say whether it is open, after so many writes."""
        request = await self.ask(line, "read-live")
        await self.answered(request)
        [reply] = await self.log.replies(request)
        return (reply["result"], reply["position"], len(line.writes)) == ("ok", "open", writes)


@pytest.fixture
async def world(stack: BackgroundStack) -> AsyncIterator[World]:
    async with AsyncExitStack() as running:
        log = Log(stack.kafka_bootstrap)
        await log.begin()
        lines = [
            await running.enter_async_context(bus(partition).running())
            for partition in range(topics.catalogue().partitions_of(REQUESTS))
        ]
        await ingest_world.register(stack.kafka_bootstrap, *(line.meter for line in lines))
        yield World(stack.kafka_bootstrap, lines, log)


@pytest.fixture
def worker(stack: BackgroundStack, tmp_path: Path) -> Iterator[Worker]:
    worker = ingest_world.ingest(stack.kafka_bootstrap, tmp_path, "ingest-0", **SETTINGS)
    yield worker
    worker.end()


@pytest.fixture
def successor(stack: BackgroundStack, tmp_path: Path) -> Iterator[Worker]:
    worker = ingest_world.ingest(stack.kafka_bootstrap, tmp_path, "ingest-1", **SETTINGS)
    yield worker
    worker.end()


# --- killed with an exchange under way ------------------------------------------------------------


@pytest.mark.fault("line-owner-killed-under-way")
async def test_killed_with_exchanges_under_way_no_answer_passes_for_another(
    world: World, worker: Worker, fault: Fault
) -> None:
    for _ in rounds(1):
        worker.start("exchange-ended", hit=EXCHANGES)
        await worker.wait_ended()
        worker.start()
        await world.has_readings(world.lines, 1)
        await killed_with_reads_under_way(world, worker)
        writes = await killed_with_writes_under_way(world, worker)
        await world.has_readings(world.lines)
        await worker.kill()
        fault.tried += 3
        for request in writes:
            assert await world.log.replies(request) == [], "whoever asked waits its own time"
    fault.judged, wrong = await world.judged()
    fault.lost = len(wrong)
    assert not wrong
    assert not world.shared()


async def test_without_its_patience_an_old_answer_passes_for_a_new_one(
    world: World, worker: Worker
) -> None:
    switch = ["asks_again_at_once"]
    worker.start(switch=switch)
    await world.has_readings(world.lines, 1)
    await killed_with_reads_under_way(world, worker, *switch)
    _, wrong = await world.judged()
    assert wrong
    assert all("is the answer of another exchange" in each for each in wrong)


async def killed_with_reads_under_way(world: World, worker: Worker, *switch: str) -> None:
    """Kill it; the old answers come when the new owner has asked, and somebody asks on demand."""
    for line in world.lines:
        line.hold(is_live_read)
    await until(lambda: all(line.held for line in world.lines), "a read of each line is under way")
    await worker.kill()
    worker.start(switch=switch)
    for line in world.lines:
        line.answers_after_s = SLOW_S
        await until(lambda: line.has_waiting, "the new owner asks")  # noqa: B023 - now
    asked = [await world.ask(line, "read-live") for line in 2 * world.lines]
    for line in world.lines:
        line.release()
    await world.answered(*asked)
    for line in world.lines:
        line.answers_after_s = 0.0


async def killed_with_writes_under_way(world: World, worker: Worker) -> list[str]:
    """Kill it; the relay has moved, and nobody was told. Return the requests."""
    asked = await world.writes_under_way(world.lines)
    written = [len(line.writes) for line in world.lines]
    await worker.kill()
    worker.start()
    for line in world.lines:
        await until(lambda: line.has_waiting, "the new owner asks")  # noqa: B023 - now
        line.release()
    for line, until_then in zip(world.lines, written, strict=True):
        assert await world.is_read_back_open(line, writes=until_then)
    return asked


# --- owners that go, and come again ---------------------------------------------------------------


@pytest.mark.alone
@pytest.mark.fault("line-owner-killed-for-good")
async def test_the_lines_of_an_owner_that_stays_away_move_to_another_within_10_s(
    world: World, worker: Worker, successor: Worker, fault: Fault
) -> None:
    took_s = []
    for _ in rounds(1):
        worker.start()
        if successor.process is None:
            successor.start()
        lost = await world.half_each(worker, successor)
        asked = await world.writes_under_way(lost)
        written = [len(line.writes) for line in lost]
        await worker.kill()
        killed_at = time.monotonic()
        fault.tried += 1
        for line in lost:
            line.release()
        await world.has_readings(lost, 1)
        took_s.append(time.monotonic() - killed_at)
        for line, until_then in zip(lost, written, strict=True):
            assert await world.is_read_back_open(line, writes=until_then)
        for request in asked:
            assert await world.log.replies(request) == [], "whoever asked waits its own time"
    print("from SIGKILL to another owner's reading:", [f"{each:.2f} s" for each in took_s])
    fault.judged, wrong = await world.judged()
    fault.lost = len(wrong)
    assert not wrong
    assert not world.shared()
    assert max(took_s) < TAKEN_OVER_WITHIN_S


@pytest.mark.fault("line-owner-stopped-past-its-session")
async def test_an_owner_stopped_past_its_session_wakes_and_leaves_the_line_to_its_successor(
    world: World, worker: Worker, successor: Worker, fault: Fault
) -> None:
    for _ in rounds(1):
        request = await stopped_and_woken(world, worker, successor)
        assert await world.log.replies(request) == [], "whoever asked waits its own time"
        fault.tried += 1
        await world.half_each(worker, successor)  # it has joined again
        worker.end()
        successor.end()
        for line in world.lines:
            line.connections_max = CONNECTIONS_MAX
    fault.judged, wrong = await world.judged()
    fault.lost = len(wrong) + len(world.shared())
    assert fault.lost == 0, (wrong, world.shared())
    assert not any(line.writes for line in world.lines), "a command of the past was executed"


async def test_without_its_fence_an_owner_that_wakes_speaks_beside_its_successor(
    world: World, worker: Worker, successor: Worker
) -> None:
    switch = ["lines_are_its_own_for_ever", "sessions_are_short"]
    await stopped_and_woken(world, worker, successor, *switch)
    assert WRITE in [exchange.function for exchange in world.shared()]


async def stopped_and_woken(world: World, worker: Worker, successor: Worker, *switch: str) -> str:
    """Stop an owner until its lines are another's; it wakes with a command yet to be written.

    One of its gateways accepts a single connection: that line is free when it wakes. Return the
    request of the command.
    """
    for each in (worker, successor):
        each.settings = {**each.settings, "TRANSACTION_TIMEOUT_MS": OUTLASTS_THE_STOP_MS}
        each.start(switch=switch)
    single, other = lost = await world.half_each(worker, successor)
    for line in lost:
        line.hold(is_live_read)
    await until(lambda: all(line.held for line in lost), "a read of each line is under way")
    single.connections_max = 1
    request = await world.ask_behind(other, "write-registers")
    refused, stopped_at_ms = single.refused, now_ms()
    worker.signal(signal.SIGSTOP)
    for line in lost:
        line.release()  # into the socket of the stopped one
    await until(lambda: single.refused > refused, "the successor tries the gateway that is taken")
    await world.has_readings([other])
    assert single not in await world.owned(successor, stopped_at_ms)
    worker.signal(signal.SIGCONT)
    await world.has_readings(lost)
    return request
