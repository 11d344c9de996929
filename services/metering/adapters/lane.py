"""From absorbed to acknowledged: the order of work of one shard (rule 1).

For each record: outputs acknowledged, then fact rows, then account rows, then the header row,
then the event. Records that wait together go together, in groups: their steps are the same, in
the same order, and the last one's header speaks for all of them, since it is written when every
row before it is durable. Groups grow by themselves as load grows.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from services.common.kernel.errors import Bug
from services.common.kernel.values import value_class
from services.common.runtime import points
from services.common.runtime.clock import next_instant_s
from services.metering.adapters.changelog import Dropped, ForeignWriter, ShardChangelog
from services.metering.adapters.exits import Exit, leave
from services.metering.domain.messages import Row

GROUP_RECORDS_MAX = 64
GROUPS_APART_S = 0.02
"""Lanes write at the same instants, this far apart: the rows of all shards go in one request, and
the outputs of the next records, which somebody waits for, need not wait for many small ones.
"""
CLOSE_TIMEOUT_S = 3.0
"""How long a revoke waits for rows on their way: half of the session."""


@value_class
class Work:
    """One record that is absorbed. `sent`: the futures of its outputs' acknowledgements.

    `durable` is called when everything is acknowledged: it acknowledges the input.
    """

    offset: int
    sent: Sequence[Awaitable[Any]]
    fact_rows: Sequence[Row]
    account_rows: Sequence[Row]
    header: Row
    durable: Callable[[], object]


Wrote = Callable[[str, int], None]


class Lane:
    """Takes one shard's records through their steps, in order, while the shard is this worker's.

    A lane lives for one assignment: it is the shell's epoch (rule 3). `header` is the last one
    known durable, `offset` its offset. `wrote` is told kind and number of rows written.
    """

    def __init__(
        self,
        changelog: ShardChangelog,
        *,
        header: Row,
        offset: int,
        pending_max: int,
        header_interval_s: float,
        wrote: Wrote,
    ) -> None:
        self.durable_offset = offset
        self._changelog = changelog
        self._header = header
        self._pending_max = pending_max
        self._header_interval_s = header_interval_s
        self._wrote = wrote
        self._waiting: deque[Work] = deque()
        self._in_hand = 0
        self._changed = asyncio.Condition()
        self._closed = False
        self._task: asyncio.Task[None] | None = None

    def start(self, heal: Sequence[Row]) -> None:
        """Begin, once faust's recovery is over; first write `heal` (rows to write again)."""
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._guarded(heal), name="lane")

    @property
    def pending(self) -> int:
        """Records that are absorbed and not yet acknowledged."""
        return len(self._waiting) + self._in_hand

    @property
    def free(self) -> int:
        """How many more records may be absorbed."""
        return max(0, self._pending_max - self.pending)

    async def room(self) -> int:
        """Wait until another record may be absorbed, or the lane is closed; return how many."""
        if self.pending >= self._pending_max:
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._closed or self.pending < self._pending_max
                )
        return max(1, self.free)

    async def put(self, work: Work) -> None:
        """Queue a record; dropped where the lane is closed."""
        if not self._closed:
            self._waiting.append(work)
            await self._notify()

    async def drained(self) -> None:
        """Wait until nothing is pending, or the lane is closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or not self.pending)

    async def close(self) -> None:
        """Send and acknowledge nothing more; wait a bounded time for rows on their way."""
        self._closed = True
        await self._changelog.close(CLOSE_TIMEOUT_S)
        if self._task is not None:
            self._task.cancel()
        self._waiting.clear()
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _guarded(self, heal: Sequence[Row]) -> None:
        try:
            if heal:
                await self._write("account", [heal])
                await self._write("header", [[self._header]])
            while not self._closed:
                await self._commit(await self._group())
                await self._notify()
        except Dropped:
            return
        except ForeignWriter as found:
            leave(Exit.FOREIGN_WRITER, str(found))
        except Exception as failed:  # noqa: BLE001 - whatever it is, nothing may be acknowledged
            leave(Exit.FAILED, "writing failed", error=repr(failed))

    async def _group(self) -> list[Work]:
        """Return what goes together next; nothing, when only the header is due again."""
        if not self._waiting:
            try:
                async with asyncio.timeout(self._header_interval_s), self._changed:
                    await self._changed.wait_for(lambda: self._waiting)
            except TimeoutError:
                return []
        if len(self._waiting) < GROUP_RECORDS_MAX:
            now_s = asyncio.get_running_loop().time()
            await asyncio.sleep(next_instant_s(GROUPS_APART_S) - now_s)
        group: list[Work] = []
        while self._waiting and len(group) < GROUP_RECORDS_MAX:
            group.append(self._waiting.popleft())
        self._in_hand = len(group)
        return group

    async def _commit(self, group: Sequence[Work]) -> None:
        for work in group:
            for acknowledgement in work.sent:
                await acknowledgement
        if group:
            points.point("outputs-acknowledged")
            self._header = group[-1].header
        await self._write("fact", [work.fact_rows for work in group])
        await self._write("account", [work.account_rows for work in group])
        await self._write("header", [[self._header]])
        if self._closed:
            raise Dropped
        for work in group:
            if work.offset <= self.durable_offset:
                raise Bug(f"record {work.offset} after {self.durable_offset}")
            self.durable_offset = work.offset
            work.durable()
        self._in_hand = 0
        points.point("acknowledged")

    async def _write(self, kind: str, records: Sequence[Sequence[Row]]) -> None:
        count = sum(map(len, records))
        if count:
            await self._changelog.append(records, lambda: points.point(f"{kind}-rows-sent"))
            points.point(f"{kind}-rows-acknowledged")
            self._wrote(kind, count)
