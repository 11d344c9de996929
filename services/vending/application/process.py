"""What vending asks of itself: the steps of its processes, which anyone may repeat."""

from collections.abc import Awaitable, Callable, Iterable

import structlog

from services.common.kernel.ids import name_uuid
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.origin import Origin

PROCESS = "~vending"
"""The caller of what vending asks of itself; no caller from outside can have this name."""


def step(at_ms: int, content: tuple[object, ...], origin: Origin, *name: object) -> Request:
    """Return the request of a step of a process: the same whenever the step is repeated.

    `name`: which step of which process, and its number where it may happen again; `origin`: who is
    behind the process.
    """
    request_id = str(name_uuid("process", *name))
    of_step = fingerprint(str(name[0]), *content)
    return Request(PROCESS, request_id, of_step, at_ms, origin=origin)


async def each(process: str, ids: Iterable[str], do: Callable[[str], Awaitable[object]]) -> int:
    """Do a step of each process by its id; return how many came to their end.

    One that fails, in whatever way, keeps none behind it waiting and no service from starting: it
    is logged, and stays half done until the next round.
    """
    done = 0
    for id_ in ids:
        try:
            await do(id_)
        except Exception as failed:  # noqa: BLE001 - a Bug, too, is of this one alone
            structlog.get_logger("vending").warning(
                "it stays half done", process=process, id=id_, why=repr(failed)
            )
        else:
            done += 1
    return done
