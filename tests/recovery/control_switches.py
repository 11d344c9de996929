"""Rules of control, each switched off, so that a test can be shown to fail without it.

The first two switch nothing off: they bring about the worst order of events.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.producer.sender import SendProduceReqHandler

from services.common.runtime.fence import ClockFence, wrap_method
from services.control.adapters import mqtt, records
from services.control.adapters.bus import SitesReader
from services.control.adapters.outbox import Outbox
from services.control.domain import turn
from services.control.domain.desk import Act
from services.control.domain.messages import LineRequest, MqttCommand, Outcome

Ask = Callable[..., Awaitable[Any]]


def news_come_late() -> None:
    """From the first cut decided on, the group's consumer is told nothing more.

    So a worker that was stopped then goes on with what it knew: nothing but the fence stops it.
    """
    is_cut_decided = False

    def noting(put: Callable[[Outbox, Iterable[Act]], None]) -> Callable[..., None]:
        def noted(outbox: Outbox, acts: Iterable[Act]) -> None:
            nonlocal is_cut_decided
            queued = list(acts)
            told = [act.action for act in queued if isinstance(act.action, Outcome)]
            is_cut_decided = is_cut_decided or any(outcome.intent.is_cut for outcome in told)
            put(outbox, queued)

        return noted

    def late(ask: Ask) -> Ask:
        async def asked(*args: Any, **named: Any) -> Any:
            if is_cut_decided:
                await asyncio.Event().wait()
            return await ask(*args, **named)

        return asked

    wrap_method(Outbox, "put", noting)
    wrap_method(AIOKafkaConsumer, "getmany", late)
    wrap_method(GroupCoordinator, "_do_heartbeat", late)


def stops_behind_its_last_look() -> None:
    """Stop the process, once, when a line's request has only the socket before it."""
    is_stopped = False

    def stopping(create: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def created(handler: Any) -> Any:
            nonlocal is_stopped
            request = create(handler)
            if not is_stopped and any(to.topic == "device-requests" for to in handler._batches):
                is_stopped = True
                os.kill(os.getpid(), signal.SIGSTOP)
            return request

        return created

    def behind(install: Callable[[ClockFence], None]) -> Callable[[ClockFence], None]:
        def installed(fence: ClockFence) -> None:
            install(fence)
            wrap_method(SendProduceReqHandler, "create_request", stopping)

        return installed

    wrap_method(ClockFence, "install", behind)


def no_fence() -> None:
    """Go on, however long ago membership was proved."""
    wrap_method(ClockFence, "check", lambda _: lambda _fence, _where: None)


def namesakes_are_not_heeded() -> None:
    """Join the group again when another process has taken the instance name."""
    wrap_method(ClockFence, "heed_namesake", lambda _: lambda _fence: None)


def forgets_what_it_told() -> None:
    """Act after a restart without the recent outcomes."""
    none: tuple[tuple[int, Outcome], ...] = ()

    async def nothing(*_: Any) -> AsyncIterator[tuple[int, Outcome]]:
        for outcome in none:
            yield outcome

    wrap_method(SitesReader, "_past_outcomes", lambda _: nothing)


def sent_comes_last() -> None:
    """Let commands leave before their `sent` is told."""

    def last(send: Callable[[Outbox, list[Act]], Awaitable[None]]) -> Ask:
        async def sent(outbox: Outbox, batch: list[Act]) -> None:
            await send(outbox, [act for act in batch if not isinstance(act.action, Outcome)])
            await send(outbox, [act for act in batch if isinstance(act.action, Outcome)])

        return sent

    wrap_method(Outbox, "_send", last)


def requests_do_not_expire() -> None:
    """Leave out of the requests to lines when they are void: ingest executes them at any age."""
    of = records.request_record

    def without(request: LineRequest) -> dict[str, Any]:
        return {**of(request), "not_after_ms": None}

    vars(records)["request_record"] = without


def mqtt_commands_do_not_expire() -> None:
    """Leave out of the commands over MQTT when they are void: the meter executes them always."""
    of = turn._mqtt_command

    def without(*args: Any) -> MqttCommand:
        command = of(*args)
        kept = tuple(field for field in command.payload if field[0] != "expire")
        return replace(command, payload=kept)

    vars(turn)["_mqtt_command"] = without


def the_broker_keeps_cuts() -> None:
    """Publish cuts with QoS 1."""
    vars(mqtt)["QOS_OF_CUT"] = 1
