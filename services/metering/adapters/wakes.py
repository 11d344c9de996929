"""Wakes: records the shell sends to its own log when a shard's deadline has come."""

import asyncio
from dataclasses import dataclass
from typing import Any

from services.common.kernel.envelope import Envelope
from services.common.kernel.ids import name_uuid
from services.common.runtime import codec
from services.metering.adapters.decoding import TOPIC
from services.metering.adapters.exits import Exit, leave
from services.metering.adapters.outputs import Sender

POLL_INTERVAL_S = 0.25
AGAIN_AFTER_MS = 1_000
SUBJECT = "wake"


@dataclass(slots=True)
class Wake:
    """The wakes of one shard: at most one on its way through the log at a time.

    A wake queues behind the backlog like everything else, so sending more would not help. When
    it was absorbed and the deadline still stands (the broker's clock may lag behind ours), the
    next one follows a second after it.
    """

    shard: int
    offset: int | None = None
    sent_at_ms: int | None = None

    def may_be_sent(self, monotonic_ms: int, *, absorbed_offset: int) -> bool:
        """Say whether none is on its way, and the last one was sent long enough ago."""
        if self.sent_at_ms is None:
            return True
        if self.offset is None or self.offset > absorbed_offset:
            return False
        return monotonic_ms - self.sent_at_ms >= AGAIN_AFTER_MS

    async def send(self, sender: Sender, due_ms: int, now_ms: int, monotonic_ms: int) -> None:
        """Send one to the shard's own partition."""
        self.offset, self.sent_at_ms = None, monotonic_ms
        flight = await sender.send(
            TOPIC,
            codec.encode(SUBJECT, {"shard": self.shard, "due_ms": due_ms}),
            key=str(self.shard).encode(),
            partition=self.shard,
            headers=Envelope(
                codec.schema_header(SUBJECT), name_uuid(SUBJECT, self.shard, due_ms), now_ms
            ).headers(),
        )
        flight.add_done_callback(self._landed)

    def _landed(self, flight: asyncio.Future[Any]) -> None:
        if flight.cancelled():
            return
        if (failed := flight.exception()) is not None:
            leave(Exit.FAILED, "a wake was not accepted", shard=self.shard, error=repr(failed))
        self.offset = flight.result().offset
