"""What vending asks of itself: the steps of its processes, which anyone may repeat."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.ids import name_uuid
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.origin import Origin
from services.vending.domain.tables import Tables

PROCESS = "~vending"
"""The caller of what vending asks of itself; no caller from outside can have this name."""
LOG_AGAIN_MIN_S, LOG_AGAIN_MAX_S = 10.0, 3_600.0
"""What is stuck is logged again when it has been for twice as long; between these."""
FORGOTTEN_AFTER_S = 600.0

T = TypeVar("T")


def step(at_ms: int, content: tuple[object, ...], origin: Origin, *name: object) -> Request:
    """Return the request of a step of a process: the same whenever the step is repeated.

    `name`: which step of which process, and its number where it may happen again; `origin`: who is
    behind the process.
    """
    request_id = str(name_uuid("process", *name))
    of_step = fingerprint(str(name[0]), *content)
    return Request(PROCESS, request_id, of_step, at_ms, origin=origin)


class Failing:
    """What failed and is tried again: since when, and whether that is worth a line of the log.

    A step that is stuck is tried each second. It is logged when it begins to fail, and then ever
    more seldom; how many there are, and for how long, is measured.
    """

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], _Failure] = {}

    def failed(self, process: str, id_: str, now_s: float) -> bool:
        """Take note of a failure; say whether to log it."""
        failure = self._of.setdefault((process, id_), _Failure(now_s, now_s))
        failure.last_s = now_s
        if now_s < failure.log_at_s:
            return False
        failure.log_at_s = now_s + min(
            max(now_s - failure.since_s, LOG_AGAIN_MIN_S), LOG_AGAIN_MAX_S
        )
        return True

    def succeeded(self, process: str, id_: str) -> None:
        """Forget what has failed."""
        self._of.pop((process, id_), None)

    def stuck(self, now_s: float) -> dict[str, tuple[int, float]]:
        """Return process → how many fail, and for how long the oldest does, in seconds.

        What was not tried again for a while has come to its end in another way.
        """
        self._of = {
            key: each for key, each in self._of.items() if now_s - each.last_s < FORGOTTEN_AFTER_S
        }
        found: dict[str, tuple[int, float]] = {}
        for (process, _), failure in self._of.items():
            count, oldest_s = found.get(process, (0, 0.0))
            found[process] = count + 1, max(oldest_s, now_s - failure.since_s)
        return found


@dataclass
class _Failure:
    since_s: float
    log_at_s: float
    last_s: float = 0.0


async def each(
    failing: Failing, process: str, ids: Iterable[str], do: Callable[[str], Awaitable[object]]
) -> int:
    """Do a step of each process by its id; return how many came to their end.

    One that fails, in whatever way, keeps none behind it waiting and no service from starting: it
    is `failing`, and stays half done until the next round.
    """
    done = 0
    for id_ in ids:
        try:
            await do(id_)
        except Exception as failed:  # noqa: BLE001 - a Bug, too, is of this one alone
            if failing.failed(process, id_, asyncio.get_running_loop().time()):
                structlog.get_logger("vending").warning(
                    "it stays half done", process=process, id=id_, why=repr(failed)
                )
        else:
            failing.succeeded(process, id_)
            done += 1
    return done


async def decided_and_overdue(
    failing: Failing,
    tables: Tables,
    kind: str,
    clock: Clock,
    *,
    carry_out: Callable[[str], Awaitable[object]],
    end: Callable[[str, int], Awaitable[object]],
) -> int:
    """Carry out what is decided, and end what nobody decided in time; return how many.

    `kind`: of what waits in the tables; `end`: takes its id, and the time now in ms.
    """
    done = await each(failing, kind, await tables.decided(kind), carry_out)
    now_ms = clock.now_ms()
    overdue = await tables.overdue(kind, now_ms)
    return done + await each(failing, kind, overdue, lambda id_: end(id_, now_ms))


class Unbroken:
    """Steps that go to their end also where whoever asked for them waits no more."""

    def __init__(self) -> None:
        self._steps: set[asyncio.Task[Any]] = set()

    async def run(self, steps: Coroutine[Any, Any, T]) -> T:
        """Run steps, and return what they do."""
        task = asyncio.ensure_future(steps)
        self._steps.add(task)
        task.add_done_callback(self._steps.discard)
        return await asyncio.shield(task)

    async def drained(self) -> None:
        """Wait for those that are under way."""
        while self._steps:
            await asyncio.wait(set(self._steps))
