"""Rules of metering's shell, each switched off, and faults, each provoked, in the process itself.

Run by `tests.recovery.crashing` before the service starts. The first part makes the world worse,
and the worker must stand it. The second part switches off what makes it stand it: a rule of
services/metering/README.md each, as faust and aiokafka come without it.
"""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from faust.transport.drivers import aiokafka as driver
from mode.utils.queues import FlowControlEvent

from services.common.runtime import points
from services.common.runtime.fence import ClockFence, wrap_method
from services.metering.adapters import app, changelog, shell
from services.metering.adapters.app import SteadyConsumer, SteadyFlow
from services.metering.adapters.changelog import ShardChangelog, StoredRow
from services.metering.adapters.decoding import Raw
from services.metering.adapters.lane import Lane, Work
from services.metering.adapters.shell import Shell

QUEUE_FULL = 64
LOOK_S = 0.01
SEEK_DELAY_MAX_S = 3.0
"""faust's fetcher sleeps for a second when it has nothing to fetch from."""
ROWS_DELAY_S = 0.3
FAILING_RECORD = 30

# --- faults -------------------------------------------------------------------------------------


def seeks_late() -> None:
    """Give faust's queue time to fill up, in each rebalance but the first, before recovery seeks.

    It is a short one here. Rows wait too, so that the shell takes no more records meanwhile. Only
    recovery's seek is late: faust seeks at other times as well, while every partition is paused.
    """
    patch(app, BUFFERED_EVENTS_MAX=QUEUE_FULL)
    sought, lates = asyncio.Event(), itertools.count()
    sought.set()

    async def filled(consumer: Any) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEEK_DELAY_MAX_S):
                while (
                    max(queue.qsize() for queue in consumer.app.flow_control._queues) < QUEUE_FULL
                ):
                    await asyncio.sleep(LOOK_S)

    def late(seek: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        async def seeking(consumer: Any) -> None:
            if not consumer._get_active_partitions() or not next(lates):
                await seek(consumer)
                return
            sought.clear()
            try:
                await filled(consumer)
                await seek(consumer)
            finally:
                sought.set()

        return seeking

    wrap_method(SteadyConsumer, "perform_seek", late)
    _before_rows(sought.wait)


def rows_late() -> None:
    """Let rows take their time, so that some are on their way whenever something happens."""
    _before_rows(lambda: asyncio.sleep(ROWS_DELAY_S))


def rows_wait_for_a_rebalance() -> None:
    """Write no row in the first assignment that has records."""
    rebalanced = asyncio.Event()

    def noticed(revoke: Callable[[Shell], Awaitable[None]]) -> Callable[[Shell], Awaitable[None]]:
        async def revoked(owner: Shell) -> None:
            if any(shard.lane.pending for shard in owner.owned.values()):
                rebalanced.set()
            await revoke(owner)

        return revoked

    wrap_method(Shell, "revoked", noticed)
    _before_rows(rebalanced.wait)


def fails_at_a_record() -> None:
    """Raise, once in this process, where a record is absorbed."""
    absorb, left = vars(shell)["absorb_all"], iter(range(FAILING_RECORD))

    def failing(state: Any, records: Sequence[Any]) -> Any:
        if FAILING_RECORD - 1 in [next(left, None) for _ in records]:
            raise RuntimeError("provoked")
        return absorb(state, records)

    patch(shell, absorb_all=failing)


def sessions_are_short() -> None:
    """Let the group's session be 3 s: the story is the same, and sooner told."""
    patch(app, SESSION_S=3)


def _before_rows(wait: Callable[[], Awaitable[object]]) -> None:
    def late(append: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def appended(*given: Any) -> None:
            await wait()
            await append(*given)

        return appended

    wrap_method(ShardChangelog, "append", late)


# --- rule 1: the order of work ------------------------------------------------------------------
# Each has a boundary `between`, where what should come first is yet to come: outputs and rows.


def rows_before_outputs() -> None:
    """Send outputs when all rows are durable."""
    send = vars(shell)["send_outputs"]

    class Later:
        def __init__(self, *given: Any) -> None:
            self._given = given

        def __await__(self) -> Any:
            return self._sent().__await__()

        def add_done_callback(self, _: Any) -> None:
            """Tell nobody: how long a charge took is not judged here."""

        async def _sent(self) -> None:
            for flight in await send(*self._given):
                await flight

    async def later(*given: Any) -> list[Any]:
        return [Later(*given)]

    patch(shell, send_outputs=later)
    _order("fact", "account", "header", "between", "outputs", "acknowledge")


def accounts_before_facts() -> None:
    """Write account rows before fact rows."""
    _order("outputs", "account", "between", "fact", "header", "acknowledge")


def header_before_accounts() -> None:
    """Write the header row before the account rows."""
    _order("outputs", "fact", "header", "between", "account", "acknowledge")


def _order(*steps: str) -> None:
    async def commit(lane: Any, group: Sequence[Work]) -> None:
        for step in steps:
            await _step(lane, group, step)
        lane._in_hand = 0

    patch(Lane, _commit=commit)


async def _step(lane: Any, group: Sequence[Work], step: str) -> None:
    match step:
        case "outputs":
            for work in group:
                for acknowledgement in work.sent:
                    await acknowledgement
        case "header":
            lane._header = group[-1].header if group else lane._header
            await lane._write("header", [[lane._header]])
        case "acknowledge":
            for work in group:
                lane.durable_offset = work.offset
                work.durable()
        case "between":
            if any(work.sent and work.fact_rows and work.account_rows for work in group):
                points.point(step)
        case kind:
            await lane._write(kind, [getattr(work, f"{kind}_rows") for work in group])


# --- the other rules ----------------------------------------------------------------------------


def lanes_outlive_their_assignment() -> None:
    """Rule 3: what was absorbed in an assignment is written after it, too."""
    patch(Lane, close=unheeded)


def recovery_stops_short() -> None:
    """Rule 4: begin with a part of the rows, as faust may."""
    read = changelog.read_rows

    async def part(*given: Any, **named: Any) -> dict[int, tuple[list[StoredRow], int]]:
        found = await read(*given, **named)
        return {shard: (rows[: len(rows) // 2], end) for shard, (rows, end) in found.items()}

    patch(changelog, read_rows=part)


def last_row_wins() -> None:
    """Rule 5: of two versions of a row take the last."""

    def last(rows: Iterable[StoredRow]) -> dict[bytes, bytes]:
        return dict(rows)

    patch(shell, joined=last)


def rows_may_land_anywhere() -> None:
    """Rule 6: do not look where rows land."""
    patch(ShardChangelog, _landed=unseen)


def sessions_do_not_end() -> None:
    """Rule 7: write however old the last heartbeat is."""
    patch(ClockFence, check=unseen)


def records_flow_before_the_seek() -> None:
    """Rule 8: let records flow while recovery is on, and let its last resume empty the queues."""
    patch(SteadyConsumer, resume_flow=driver.Consumer.resume_flow)
    patch(SteadyFlow, resume=FlowControlEvent.resume)


def only_what_is_committed_is_sought() -> None:
    """Rule 8: go on at the committed offset, be it ahead of the rows; seek nothing without one."""
    patch(SteadyConsumer, seek_to_committed=driver.Consumer.seek_to_committed)


def holes_are_passed_over() -> None:
    """Rule 8: do not look whether records were skipped."""
    patch(Shell, _check_continuity=unheeded)


def failures_are_passed_over() -> None:
    """Rule 8: acknowledge a record that raised, as faust does; each is absorbed by itself."""

    async def take(owner: Shell, event: Any, **_: Any) -> None:
        message = event.message
        raw = Raw(
            message.partition,
            message.offset,
            round(message.timestamp * 1000),
            message.key,
            message.value,
            list(dict(message.headers or ()).items()),
        )
        try:
            await owner.take(raw, event.ack)
        except RuntimeError:
            event.ack()

    patch(app, _take=take)


def names_may_be_shared() -> None:
    """Rule 9: join again when another process has joined with this name, as aiokafka does."""
    patch(ClockFence, heed_namesake=unseen)


def members_are_dynamic() -> None:
    """Rule 9: have no name in the group."""

    def unnamed(init: Callable[..., None]) -> Callable[..., None]:
        def made(*given: Any, **named: Any) -> None:
            init(*given, **{**named, "consumer_group_instance_id": None})

        return made

    wrap_method(app.App, "__init__", unnamed)


# --- how ----------------------------------------------------------------------------------------


def patch(owner: object, **members: Any) -> None:
    """Replace members of a class or a module of the service, in this process."""
    for name, member in members.items():
        assert hasattr(owner, name), f"{owner} has no {name}"
        setattr(owner, name, member)


def unseen(*_: Any) -> None:
    """In place of a look at something."""


async def unheeded(*_: Any) -> None:
    """In place of waiting for something."""
