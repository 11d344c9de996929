"""amqtt as a broker that keeps its word on QoS 1: `python -m tools.stack.amqtt_broker HOST PORT`.

What amqtt 0.12.1 does by itself, seen with paho and manual acknowledgements, and what is changed
here (tests/integration/test_stack.py holds each against this broker):
- sessions of clients without a password are thrown away a second after they disconnect, because
  its anonymous plugin marks them: a plugin of our own accepts everybody and does not;
- a message that is not acknowledged within 5 s is forgotten, and so is every unacknowledged one
  when its subscriber disconnects: here it stays until its PUBACK, and is sent again, with DUP, at
  the next connection, oldest first;
- messages that waited for a subscriber come with the retain flag set, and the broker waits for
  their PUBACKs before it reads on: here they come as they were sent, and nothing waits;
- messages a publisher sent, and had acknowledged, just before it left may never be delivered:
  here they are routed before its session ends;
- the end of a connection marks the session as away even where the client is back on a new one,
  which then gets nothing more: here the session belongs to the newest connection, also where the
  old one ended while the new one waited for just that;
- messages published with QoS 0 are delivered with the subscription's QoS, and kept for a
  subscriber who is away: here they stay QoS 0, and nothing is kept of them.
What stays: sessions and queues live in memory and are lost when the broker ends; at most 65,535
unacknowledged messages a client; a message that arrives while a subscriber is just connecting may
overtake those that waited for it. Mosquitto has none of these.
"""

import asyncio
import contextlib
import logging
import signal
import sys
from contextvars import ContextVar
from typing import Any

import amqtt.broker
from amqtt.adapters import ReaderAdapter, WriterAdapter
from amqtt.mqtt.constants import QOS_0
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.mqtt.puback import PubackPacket
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import (
    ApplicationMessage,
    IncomingApplicationMessage,
    OutgoingApplicationMessage,
    Session,
)

PUBLISHED_QOS: ContextVar[int | None] = ContextVar("published_qos", default=None)
"""The QoS of the message that is being routed; amqtt does not pass it on."""


class AcceptAll(BaseAuthPlugin):
    """Accept every client; the broker listens on loopback only."""

    async def authenticate(self, *, session: Session) -> bool:
        return session is not None


class Handler(BrokerProtocolHandler):
    """A connection that forgets a QoS 1 message at its PUBACK and not before."""

    def attach(self, session: Session, reader: ReaderAdapter, writer: WriterAdapter) -> None:
        super().attach(session, reader, writer)
        # A connection that takes over finds the session connected, waits until its predecessor has
        # stopped, and the predecessor's last act may be to mark the session as away.
        if not session.transitions.is_connected():
            session.transitions.connect()

    async def _handle_qos1_message_flow(
        self, app_message: OutgoingApplicationMessage | IncomingApplicationMessage
    ) -> None:
        if isinstance(app_message, IncomingApplicationMessage):
            await super()._handle_qos1_message_flow(app_message)
            return
        assert self.session is not None
        assert app_message.packet_id is not None
        self.session.inflight_out[app_message.packet_id] = app_message
        repeated = app_message.publish_packet is not None
        app_message.publish_packet = app_message.build_publish_packet(dup=repeated)
        await self._send_packet(app_message.publish_packet)

    async def handle_puback(self, puback: PubackPacket) -> None:
        assert self.session is not None
        assert puback.variable_header is not None
        self.session.inflight_out.pop(puback.variable_header.packet_id, None)


class Broker(amqtt.broker.Broker):
    """amqtt's broker with the changes above."""

    async def _publish_session_retained_messages(self, session: Session) -> None:
        handler = self._get_handler(session)
        while handler and not session.retained_messages.empty():
            message = session.retained_messages.get_nowait()
            await handler.mqtt_publish(message.topic, message.data, message.qos, retain=False)

    async def _handle_message_delivery(
        self,
        client_session: Session,
        handler: BrokerProtocolHandler,
        wait_deliver: asyncio.Future[Any],
    ) -> bool:
        message: ApplicationMessage | None = wait_deliver.result()
        PUBLISHED_QOS.set(None if message is None else message.qos)
        return await super()._handle_message_delivery(client_session, handler, wait_deliver)

    async def _broadcast_message(
        self,
        session: Session | None,
        topic: str | None,
        data: bytes | bytearray | None,
        force_qos: int | None = None,
    ) -> None:
        if PUBLISHED_QOS.get() == QOS_0:
            force_qos = QOS_0
        await super()._broadcast_message(session, topic, data, force_qos)

    async def _handle_disconnect(
        self,
        client_session: Session,
        handler: BrokerProtocolHandler,
        disconnect_waiter: asyncio.Future[Any],
    ) -> None:
        queue = client_session.delivered_message_queue
        while not queue.empty():
            taken: asyncio.Future[ApplicationMessage] = asyncio.Future()
            taken.set_result(queue.get_nowait())
            await self._handle_message_delivery(client_session, handler, taken)
        await super()._handle_disconnect(client_session, handler, disconnect_waiter)
        successor = self._get_handler(client_session)
        if successor is None or successor is handler:
            return
        # The client has come back before its old connection had ended.
        reader: asyncio.Task[None] | None = successor._reader_task  # noqa: SLF001
        if reader is not None and reader.done():
            return
        if not client_session.transitions.is_connected():
            client_session.transitions.connect()
        if reader is not None:
            # Past its CONNACK; one that is not yet sends what waits by itself.
            await self._publish_session_retained_messages(client_session)


async def serve(host: str, port: int) -> None:
    """Run the broker until SIGTERM or SIGINT."""
    # The broker names its handler's class by this attribute of its module only.
    vars(amqtt.broker)["BrokerProtocolHandler"] = Handler
    broker = Broker(
        {
            "listeners": {"default": {"type": "tcp", "bind": f"{host}:{port}"}},
            "plugins": {"tools.stack.amqtt_broker.AcceptAll": {}},
        }
    )
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await broker.start()
    print(f"amqtt listens on {host}:{port}", flush=True)
    await ended.wait()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(3):
            await broker.shutdown()


def main() -> None:
    host, port = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(serve(host, int(port)))


if __name__ == "__main__":
    main()
