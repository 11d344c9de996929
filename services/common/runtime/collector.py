"""Python's garbage collector, kept from stopping a service that many wait for.

It looks for cycles among what is new; what stays is looked through again, with more that stays, and
then again with all there is. What calls leave behind (folded states, answers) is much, spread over
memory, and has no cycles: 50,000 such objects stop every call for 45 ms. So a few new ones are
looked through at a time, and what is older when nobody waits.
"""

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NEW_OBJECTS = 5_000
"""What a thousand sales leave behind: some ms."""
NEVER = 1_000_000
"""So many collections of what is new before one of what is older: that comes by hand before."""
EACH_S = 60.0
WAIT_S = 600.0
"""So long a moment in which nobody waits is waited for."""
LOOK_S = 0.05


@contextmanager
def spared() -> Iterator[None]:
    """Leave alone what was made up to now, and what grew old inside."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, NEVER, NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def collect_at_leisure(
    waiting: Callable[[], int],
    *,
    each_s: float = EACH_S,
    wait_s: float = WAIT_S,
    look_s: float = LOOK_S,
) -> None:
    """Look through what grew old each `each_s` of seconds, until cancelled.

    When nobody is `waiting`; where that does not come within `wait_s`, all the same.
    """
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(each_s)
        until_s = loop.time() + wait_s
        while waiting() and loop.time() < until_s:
            await asyncio.sleep(look_s)
        gc.collect()
