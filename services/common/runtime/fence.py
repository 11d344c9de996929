"""The clock fence: a worker that was stopped past its group session must not write any more.

The broker gives a member's partitions to another one when it has not heard from it for the
session's time. A worker that was suspended, or cut off, does not know; what it still holds would
land behind its successor's. So the time *before* each heartbeat that the broker answered well is
kept: while that is younger than the fence, the session cannot have ended. When it is older, the
process leaves at once, before another produce request is built; its supervisor starts it anew.

For one group consumer a process: faust's, or a plain aiokafka one.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import structlog
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance, GroupCoordinator
from aiokafka.producer.sender import SendProduceReqHandler

from services.common.kernel.clock import Clock

EXIT_FENCED = 73
AGE_MAX_MS = 5_000
"""Less than the session (6 s) by more than a produce request takes to reach the socket."""
OUSTED = {25, 82}
"""Kafka's UNKNOWN_MEMBER_ID and FENCED_INSTANCE_ID; aiokafka has no class for the latter."""


def _leave(why: str, age_ms: int) -> NoReturn:
    structlog.get_logger("fence").critical(
        f"{why}: another worker may own the partitions; leaving",
        age_ms=age_ms,
        age_max_ms=AGE_MAX_MS,
        exit_code=EXIT_FENCED,
    )
    os._exit(EXIT_FENCED)


class ClockFence:
    """Knows when the broker last proved that this process is a member of its group.

    Ages in ms of the monotonic clock, which counts on while the process is stopped. `leave` is
    called with why and the age; it must not return.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        age_max_ms: int = AGE_MAX_MS,
        leave: Callable[[str, int], NoReturn] = _leave,
    ) -> None:
        self._clock = clock
        self._age_max_ms = age_max_ms
        self._leave = leave
        self._proved_at_ms = clock.monotonic_ms()

    @property
    def age_ms(self) -> int:
        """How old the last proof of membership is."""
        return self._clock.monotonic_ms() - self._proved_at_ms

    @property
    def is_proved(self) -> bool:
        """Whether membership is proved recently enough."""
        return self.age_ms <= self._age_max_ms

    def check(self, where: str) -> None:
        """Leave the process (exit 73) if membership is not proved recently enough."""
        if not self.is_proved:
            self._leave(f"no heartbeat was answered in time ({where})", self.age_ms)

    def proving(
        self, ask: Callable[..., Awaitable[Any]], well: Callable[[Any], bool]
    ) -> Callable[..., Awaitable[Any]]:
        """Return `ask`, taking the time before it as proof where `well` likes its answer."""

        async def asked(*args: Any, **named: Any) -> Any:
            before_ms = self._clock.monotonic_ms()
            answer = await ask(*args, **named)
            if well(answer):
                self._proved_at_ms = max(self._proved_at_ms, before_ms)
            return answer

        return asked

    def watch(self) -> None:
        """Watch this process's group consumer: `is_proved` and `check` follow it from now on.

        Patches aiokafka's classes, once a process: heartbeats, and the SyncGroup that ends a join.
        Each restarts the session at the broker.
        """
        wrap_method(
            GroupCoordinator,
            "_do_heartbeat",
            lambda ask: self.proving(ask, lambda answered_well: answered_well is True),
        )
        wrap_method(
            CoordinatorGroupRebalance,
            "_send_sync_group_request",
            lambda ask: self.proving(ask, lambda assignment: assignment is not None),
        )

    def install(self) -> None:
        """Watch this process's group consumer and guard every produce request it makes.

        Building a produce request is the last step before the socket.
        """

        def fenced(create_request: Callable[[Any], Any]) -> Callable[[Any], Any]:
            def checked(handler: Any) -> Any:
                self.check("produce request")
                return create_request(handler)

            return checked

        self.watch()
        wrap_method(SendProduceReqHandler, "create_request", fenced)

    def heed_namesake(self) -> None:
        """Leave the process (exit 73) when another one joins the group with its instance name.

        Then the broker forgets this member within its session. aiokafka would join again and oust
        the other, which would do the same, for ever.
        """

        def heeding(ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            async def asked(coordinator: Any, request: Any) -> Any:
                answer = await ask(coordinator, request)
                if self.is_proved and not OUSTED.isdisjoint(error_codes(answer)):
                    self._leave("another process has this instance name", self.age_ms)
                return answer

            return asked

        wrap_method(GroupCoordinator, "_send_req", heeding)


def error_codes(answer: Any) -> set[int]:
    """Return the error codes of a group coordinator's answer: its own and its partitions'."""
    partitions = [part for _, parts in getattr(answer, "topics", ()) for part in parts]
    return {getattr(answer, "error_code", 0), *(part[-1] for part in partitions)}


def wrap_method(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Any]) -> None:
    """Replace a method of a library's class by what `wrap` makes of it, for this process.

    For what the library gives no hook for; fails at once where another version lacks the method.
    """
    setattr(owner, name, wrap(getattr(owner, name)))
