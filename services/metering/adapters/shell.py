"""The metering shell: what stands between the shard log and `absorb`.

It knows nothing of faust; `app` connects the two. The nine rules it keeps are in the README.
"""

import asyncio
import gc
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.frames import ReadingFrame
from services.common.runtime import memory, points
from services.metering.adapters import changelog
from services.metering.adapters.changelog import Batches, ShardChangelog, StoredRow
from services.metering.adapters.decoding import (
    FRAME,
    Dead,
    DeadLetterBound,
    Opened,
    Raw,
    opened,
)
from services.metering.adapters.exits import Exit, leave
from services.metering.adapters.lane import Lane, Work
from services.metering.adapters.metrics import Metrics
from services.metering.adapters.outputs import (
    Balances,
    BatchSender,
    Sender,
    send_dead,
    send_outputs,
)
from services.metering.adapters.wakes import Wake
from services.metering.config import Settings
from services.metering.domain.messages import LogRecord, Row
from services.metering.domain.rows import joined
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import shard_of_newest
from services.metering.domain.together import absorb_all

HANDFUL_RECORDS_MAX = 32
HANDFUL_BYTES_MAX = 1 << 19
"""Of records that are absorbed together: a few full frames, some milliseconds' work."""
NEW_OBJECTS = 50_000
"""What some frames make and forget again; no sign of garbage."""
FACTS_PACKED_MAX = 200
"""Facts that are packed at a time: a millisecond or two, in which no record is absorbed."""


class Producer(Batches, BatchSender, Sender, Protocol):
    """The one producer of the worker."""


ReadRows = Callable[[Iterable[int]], Awaitable[dict[int, tuple[list[StoredRow], int]]]]
LogStart = Callable[[int], Awaitable[int]]
Taken = tuple[Raw, Callable[[], object]]
"""A record, and what acknowledges it."""


@dataclass(slots=True)
class OwnedShard:
    """One shard while it is this worker's: a new one for each assignment.

    `changelog_end`: the changelog's end when its rows were read. `last_offset`: the input offset
    seen last; at first the header's. `heal`: rows whose newest version is not the last one in
    the changelog. `waiting`: records that are taken and yet to be absorbed.
    """

    state: ShardState
    lane: Lane
    balances: Balances
    wake: Wake
    changelog_end: int
    last_offset: int
    heal: list[Row]
    waiting: deque[Taken] = field(default_factory=deque)

    @property
    def taken_offset(self) -> int:
        """The highest offset that is absorbed or waits for it."""
        return self.waiting[-1][0].offset if self.waiting else self.state.offset

    def handful(self, count_max: int) -> list[Taken]:
        """Take the first of what waits: one, and more while they are few and small."""
        taken = [self.waiting.popleft()]
        left = HANDFUL_BYTES_MAX - _size(taken[0][0])
        while self.waiting and len(taken) < min(count_max, HANDFUL_RECORDS_MAX):
            left -= _size(self.waiting[0][0])
            if left < 0:
                break
            taken.append(self.waiting.popleft())
        return taken


class Shell:
    """Owns shards, absorbs their records in order, and hands them to their lanes."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock,
        metrics: Metrics,
        producer: Callable[[], Producer],
        read_rows: ReadRows,
        log_start: LogStart,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._producer = producer
        self._read_rows = read_rows
        self._log_start = log_start
        self._bound = DeadLetterBound()
        self._log = structlog.get_logger("metering")
        self.owned: dict[int, OwnedShard] = {}

    async def assigned(self, shards: Iterable[int]) -> None:
        """Take over shards: read their rows and build their arrays anew (rule 4)."""
        await self.revoked()
        began_ms = self._clock.monotonic_ms()
        # What is recovered lives as long as the assignment: collections that walk all of it would
        # take half of a recovery, and stop the world again and again after it, for nothing.
        gc.disable()
        try:
            found = await self._read_rows(shards)
            for shard, (versions, end) in sorted(found.items()):
                self.owned[shard] = self._owned(shard, versions, end)
        finally:
            gc.enable()
        gc.freeze()
        # A frame makes thousands of objects and forgets them: by itself Python would look for
        # cycles among them dozens of times a second.
        gc.set_threshold(NEW_OBJECTS)
        self._log.info(
            "rows recovered",
            shards=sorted(self.owned),
            rows=sum(len(versions) for versions, _ in found.values()),
            rewritten=sum(len(shard.heal) for shard in self.owned.values()),
            took_ms=self._clock.monotonic_ms() - began_ms,
        )

    def _owned(self, shard: int, versions: list[StoredRow], end: int) -> OwnedShard:
        newest = joined(versions)
        state = shard_of_newest(shard, newest)
        lane = Lane(
            ShardChangelog(self._producer(), shard, end),
            header=state.header_row(),
            offset=state.offset,
            pending_max=self._settings.records_pending_max,
            header_interval_s=self._settings.header_interval_s,
            wrote=self._metrics.wrote,
        )
        heal = changelog.overtaken(versions, newest)
        balances = Balances(self._producer, shard)
        return OwnedShard(state, lane, balances, Wake(shard), end, state.offset, heal)

    def recovered_offset(self, shard: int) -> int | None:
        """Return the last offset of the changelog that was read; -1 where it was empty."""
        owned = self.owned.get(shard)
        return None if owned is None else owned.changelog_end - 1

    def next_offsets(self) -> dict[int, int]:
        """Return shard → offset of the first record that is not durably absorbed."""
        return {number: shard.lane.durable_offset + 1 for number, shard in self.owned.items()}

    def begin(self) -> None:
        """Start the lanes: faust's own recovery is over and records may come."""
        for shard in self.owned.values():
            shard.lane.start(shard.heal)
            shard.heal = []

    async def revoked(self) -> None:
        """Let go of every shard: nothing more is sent for them or acknowledged (rule 3)."""
        owned, self.owned = self.owned, {}
        self._metrics.forget_shards()
        for shard in owned.values():
            shard.balances.close()
        await asyncio.gather(*(shard.lane.close() for shard in owned.values()))

    async def drained(self, timeout_s: float) -> None:
        """Wait a bounded time until every absorbed record is acknowledged."""
        try:
            async with asyncio.timeout(timeout_s):
                for shard in self.owned.values():
                    await shard.lane.drained()
        except TimeoutError:
            self._log.warning("records were pending at the stop; they are absorbed again")

    async def take(
        self, raw: Raw, acknowledge: Callable[[], object], *, more: bool = False
    ) -> None:
        """Take one record of the shard log. `acknowledge` is called when it is durable.

        It is absorbed now, or, where `more` records wait right behind it, together with those of
        its shard, as many as may be pending.
        """
        await self._take(raw, acknowledge)
        if not more:
            for shard in list(self.owned.values()):
                await self._absorb_waiting(shard)
        elif (owned := self.owned.get(raw.shard)) and len(owned.waiting) >= owned.lane.free:
            await self._absorb_waiting(owned)

    async def _take(self, raw: Raw, acknowledge: Callable[[], object]) -> None:
        shard = self.owned.get(raw.shard)
        if shard is None:
            leave(Exit.NO_ARRAYS, "a record of a shard that is not recovered", at=raw.place)
        await self._check_continuity(shard, raw)
        shard.last_offset = raw.offset
        if raw.offset <= shard.taken_offset:
            # Absorbed before, or soon. What is still on its way acknowledges itself.
            if raw.offset <= shard.lane.durable_offset:
                acknowledge()
            return
        shard.waiting.append((raw, acknowledge))

    async def _absorb_waiting(self, shard: OwnedShard) -> None:
        while shard.waiting:
            room = await shard.lane.room()
            if self.owned.get(shard.state.shard) is not shard:
                return
            await self._absorb(shard, shard.handful(room))

    async def _check_continuity(self, shard: OwnedShard, raw: Raw) -> None:
        """Leave if records were skipped (rule 8): faust can commit over a hole."""
        expected = shard.last_offset + 1
        if raw.offset <= expected:
            return
        start = await self._log_start(raw.shard)
        if start <= expected:
            leave(
                Exit.HOLE,
                "records of the shard log were skipped; they come again after a restart",
                at=raw.place,
                expected_offset=expected,
            )
        if self._settings.accept_lost_records and raw.offset == start:
            self._log.warning(
                "records that retention deleted before they were absorbed are given up",
                at=raw.place,
                lost=start - expected,
            )
            return
        leave(
            Exit.HOLE,
            "retention deleted records of the shard log before they were absorbed. Their readings "
            "come again with later registers, but facts may be missing: have vending publish "
            "again first; then start once with WATTVEND_METERING_ACCEPT_LOST_RECORDS=true",
            at=raw.place,
            expected_offset=expected,
            log_begins_at=start,
        )

    async def _absorb(self, shard: OwnedShard, taken: Sequence[Taken]) -> None:
        found = [await self._opened(raw) for raw, _ in taken]
        done = absorb_all(shard.state, [each.record for each, _ in found])
        balances = shard.balances.send(
            [
                (absorbed.outputs.balances, each.traceparent)
                for (each, _), absorbed in zip(found, done, strict=True)
                if absorbed.outputs.balances is not None
            ]
        )
        for (raw, acknowledge), (each, dead), absorbed in zip(taken, found, done, strict=True):
            if self.owned.get(raw.shard) is not shard:
                return  # revoked meanwhile: nothing more is sent for it
            self._metrics.count(each.record.subject, absorbed.counts)
            points.point("absorbed")
            sent = await send_outputs(
                self._producer(), absorbed.outputs.singly, raw, each.traceparent
            )
            points.point("outputs-sent")
            if isinstance(each.record.value, ReadingFrame) and sent:
                oldest_ms = int(each.record.value.rows["received_at_ms"].min())
                sent[0].add_done_callback(partial(self._charged, oldest_ms))
            await shard.lane.put(
                Work(
                    raw.offset,
                    [*dead, *sent, *balances],
                    absorbed.fact_rows,
                    absorbed.account_rows,
                    absorbed.header,
                    acknowledge,
                )
            )

    async def _opened(self, raw: Raw) -> tuple[Opened, list[asyncio.Future[Any]]]:
        """Return a record, or what is absorbed in its place, and the flight of its dead letter."""
        found = opened(raw)
        if isinstance(found, Dead):
            self._bound.dead(found.why)
            self._metrics.dead_letters.inc()
            self._log.error("a reading frame cannot be decoded", at=raw.place, why=found.why)
            return Opened(stand_in(raw), ""), [await send_dead(self._producer(), raw, found)]
        if found.record.subject == FRAME:
            self._bound.alive()
        return found, []

    def _charged(self, oldest_ms: int, charged: asyncio.Future[Any]) -> None:
        if charged.cancelled() or charged.exception():
            return  # the lane leaves
        self._metrics.charge_latency.observe((self._clock.now_ms() - oldest_ms) / 1000)

    async def wake_due_shards(self) -> None:
        """Send a wake to each shard whose next deadline the wall clock has reached."""
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        for shard in list(self.owned.values()):
            due_ms = shard.state.next_deadline_ms()
            if (
                due_ms is not None
                and due_ms <= now_ms
                and shard.wake.may_be_sent(monotonic_ms, absorbed_offset=shard.state.offset)
            ):
                await shard.wake.send(self._producer(), due_ms, now_ms, monotonic_ms)

    def pack_facts(self) -> None:
        """Pack some of the facts that were read at the start, until none is left."""
        left = FACTS_PACKED_MAX
        for shard in self.owned.values():
            left -= shard.state.facts.pack(left)
        if 0 < left < FACTS_PACKED_MAX:
            memory.give_back()

    def measure(self, end_of: Callable[[int], int | None]) -> None:
        """Set the gauges. `end_of`: shard → end offset of its log, if known."""
        states = [shard.state for shard in self.owned.values()]
        self._metrics.accounts.set(sum(state.account_count for state in states))
        self._metrics.meters.set(sum(state.meter_count for state in states))
        for number, shard in self.owned.items():
            self._metrics.pending.labels(number).set(shard.lane.pending)
            if (end := end_of(number)) is not None:
                lag = max(0, end - 1 - shard.lane.durable_offset)
                self._metrics.shard_lag.labels(number).set(lag)


def stand_in(raw: Raw) -> LogRecord:
    """Return what is absorbed in place of a frame that cannot be decoded: a wake.

    The shard moves past the record, by the same rules at every replay, and its rows and header
    carry the offset.
    """
    wake: dict[str, Any] = {"shard": raw.shard, "due_ms": raw.timestamp_ms}
    return LogRecord(raw.offset, raw.timestamp_ms, "wake", wake)


def _size(raw: Raw) -> int:
    return len(raw.value or b"")
