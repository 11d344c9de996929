"""Does what the desk decided, in the order that makes a crash at any point harmless.

`sent` is in command-outcomes, acknowledged, before the command leaves: a restart finds every
command that may be under way there, and every cut that used a site's budget.

Each step passes a point (`services/common/runtime/points.py`): an outcome is decided, then told; a
command or a read-back has left.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable
from typing import Any
from uuid import UUID

from aiokafka import AIOKafkaProducer

from services.common.kernel.clock import Clock
from services.common.runtime import kafka, points
from services.common.runtime.fence import ClockFence
from services.control.adapters import records
from services.control.adapters.metrics import Metrics
from services.control.adapters.mqtt import Commander
from services.control.domain.desk import UNSENT, Act, Desk
from services.control.domain.messages import Action, LineRequest, MqttCommand, Outcome, Reply

WAITING_MAX = 20_000
"""Actions that may wait before no more intents are read."""


class Outbox:
    """Sends actions in batches: outcomes first, and when they are acknowledged, the commands."""

    def __init__(
        self,
        *,
        desk: Desk,
        producer: AIOKafkaProducer,
        commander: Commander,
        fence: ClockFence,
        clock: Clock,
        metrics: Metrics,
        worker: str,
    ) -> None:
        self._desk = desk
        self._producer = producer
        self._commander = commander
        self._fence = fence
        self._clock = clock
        self._metrics = metrics
        self._worker = worker
        self._waiting: deque[Act] = deque()
        self._filled = asyncio.Event()
        self._emptied = asyncio.Event()
        self._emptied.set()

    def put(self, acts: Iterable[Act]) -> None:
        """Queue actions."""
        queued = list(acts)
        self._waiting.extend(queued)
        _passed("decided", (act.action for act in queued))
        if self._waiting:
            self._emptied.clear()
            self._filled.set()

    async def has_room(self) -> None:
        """Wait while too much waits."""
        if len(self._waiting) >= WAITING_MAX:
            await self._emptied.wait()

    async def emptied(self, within_s: float) -> None:
        """Wait until everything queued is done, or dropped, but not for ever."""
        try:
            await asyncio.wait_for(self._emptied.wait(), within_s)
        except TimeoutError:
            # The caller gives its partitions up now; the fence stops what comes too late.
            return

    async def run(self) -> None:
        """Send for ever; raises what the producer raises."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            batch = [act for act in self._waiting if self._desk.acts_for(act)]
            self._waiting.clear()
            await self._send(batch)
            if not self._waiting:
                self._emptied.set()

    async def _send(self, batch: list[Act]) -> None:
        outcomes = [act.action for act in batch if isinstance(act.action, Outcome)]
        told = [await self._tell(outcome) for outcome in outcomes]
        await kafka.all_acknowledged(told)
        _passed("told", outcomes)
        for outcome in outcomes:
            self._metrics.told(outcome)
        self._fence.check("command")
        commands, more = self._desk.leaving(batch, self._clock.now_ms())
        self.put(more)
        # Those over MQTT first: nothing may happen between the last look and their publishing.
        for command in commands:
            if isinstance(command, MqttCommand):
                self._publish(command)
        requests = [command for command in commands if isinstance(command, LineRequest)]
        await kafka.all_acknowledged([await self._request(request) for request in requests])
        _passed("left", requests)

    async def _tell(self, outcome: Outcome) -> Awaitable[Any]:
        record = records.outcome_record(outcome, self._worker)
        return await kafka.send(
            self._producer,
            "command-outcomes",
            "command-outcome",
            record,
            key=outcome.intent.meter_id,
            route=outcome.intent.site_id,
            event_id=UUID(record["outcome_id"]),
            occurred_at_ms=outcome.decided_at_ms,
            causation_id=outcome.intent.event_id,
        )

    async def _request(self, request: LineRequest) -> Awaitable[Any]:
        return await kafka.send(
            self._producer,
            "device-requests",
            "device-request",
            records.request_record(request),
            key=request.meter.meter_id,
            route=request.meter.line_id,
            event_id=UUID(request.request_id),
            occurred_at_ms=request.requested_at_ms,
            causation_id=request.intent.event_id,
        )

    def _publish(self, command: MqttCommand) -> None:
        self._fence.check("MQTT command")
        if (why := self._commander.publish(command)) is not None:
            now_ms = self._clock.now_ms()
            unsent = Reply(command.request_id, UNSENT, why, now_ms, now_ms)
            self.put(self._desk.answer(unsent, now_ms))
        _passed("left", (command,))


def _passed(step: str, actions: Iterable[Action]) -> None:
    """Pass a step boundary with each of the actions."""
    for action in actions:
        points.point(f"{step}-{_kind(action)}")


def _kind(action: Action) -> str:
    match action:
        case Outcome():
            return action.result.value
        case LineRequest(address=None):
            return "read-back"
    return "command"
