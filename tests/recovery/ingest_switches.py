"""Rules of ingest, each switched off, so that a test can be shown to fail without it."""

from collections.abc import Callable
from typing import Any

from services.common.runtime import kafka
from services.common.runtime.fence import ClockFence, wrap_method
from services.ingest.adapters.line_owner import LineOwner
from services.ingest.adapters.modbus_link import ModbusLink
from services.ingest.adapters.mqtt_intake import Durable
from services.ingest.adapters.mqtt_session import Acknowledgements, Delivery

SHORT_SESSION_MS = 2_000
SHORT_HEARTBEAT_MS = 500


def acknowledges_before_kafka() -> None:
    """Acknowledge a message as soon as it is taken, whether or not Kafka has it."""

    def at_once(add: Callable[..., None]) -> Callable[..., None]:
        def added(self: Acknowledgements, delivery: Delivery, _: Durable | None) -> None:
            add(self, delivery, None)

        return added

    wrap_method(Acknowledgements, "add", at_once)


def lines_are_its_own_for_ever() -> None:
    """Take a line for its own whether or not Kafka confirms it."""
    wrap_method(ClockFence, "is_proved", lambda _: property(lambda _: True))


def sessions_are_short() -> None:
    """Have the group give a silent member's lines away soon: a test that need not wait 6 s."""
    vars(kafka).update(SESSION_MS=SHORT_SESSION_MS, HEARTBEAT_MS=SHORT_HEARTBEAT_MS)


def asks_again_at_once() -> None:
    """Ask again on an RTU line though what was asked before may still be answered."""

    async def at_once(*_: Any) -> None:
        return

    wrap_method(ModbusLink, "_outwait", lambda _: at_once)


def starts_at_the_beginning() -> None:
    """Execute also what stands in a line's partition already when this worker gets it."""

    def from_the_beginning(take_over: Callable[..., Any]) -> Callable[..., Any]:
        async def taken(owner: Any, assigned: Any) -> None:
            owner._consumer.end_offsets = owner._consumer.beginning_offsets
            await take_over(owner, assigned)

        return taken

    wrap_method(LineOwner, "_take_over", from_the_beginning)
