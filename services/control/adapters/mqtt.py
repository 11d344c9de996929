"""Commands to MQTT devices: never retained, only while connected to the broker.

A cut is published with QoS 0: it reaches a device that is connected now, or none. With QoS 1 the
broker would keep it for a device that is away, and the client would send it again after a lost
connection, to be executed after somebody has paid. A restore may come late: QoS 1. Both carry
their expiry, for what a slow network keeps.
"""

import json

import structlog
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from services.common.runtime.mqtt import MqttSettings, introduce
from services.control.domain.messages import MqttCommand

QOS_OF_CUT, QOS_OF_RESTORE = 0, 1
KEEPALIVE_S = 15
RECONNECT_MIN_S = 1
RECONNECT_MAX_S = 10
QUEUED_MAX = 1_000
IN_FLIGHT_MAX = 1_000
"""Restores that the broker has not acknowledged."""


class Commander:
    """A publisher on the broker. Its session is clean: it wants nothing kept for it."""

    def __init__(self, client_id: str, log: structlog.stdlib.BoundLogger) -> None:
        self._log = log
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=client_id, clean_session=True)
        self._client.on_connect = self._connected
        self._client.on_disconnect = self._disconnected
        self._client.max_queued_messages_set(QUEUED_MAX)
        self._client.max_inflight_messages_set(IN_FLIGHT_MAX)
        self._client.reconnect_delay_set(RECONNECT_MIN_S, RECONNECT_MAX_S)

    def start(self, settings: MqttSettings) -> None:
        """Connect, and connect again for ever, in a thread of its own."""
        introduce(self._client, settings)
        self._client.connect_async(settings.mqtt_host, settings.mqtt_port, KEEPALIVE_S)
        self._client.loop_start()

    def stop(self) -> None:
        """Disconnect; what was published is flushed by the orderly end."""
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected()

    def publish(self, command: MqttCommand) -> str | None:
        """Hand a command to the broker; return why it could not be, else None.

        While the broker is away nothing is queued: the delivery tries again by itself.
        """
        if not self._client.is_connected():
            return "control is not connected to the MQTT broker"
        payload = json.dumps(dict(command.payload), separators=(",", ":"))
        qos = QOS_OF_CUT if command.intent.is_cut else QOS_OF_RESTORE
        sent = self._client.publish(command.topic, payload, qos=qos, retain=False)
        return None if sent.rc == 0 else f"the MQTT client refused the message ({sent.rc})"

    def _connected(
        self,
        _client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._log.error("the MQTT broker refuses the connection", reason=str(reason))
        else:
            self._log.info("connected to the MQTT broker")

    def _disconnected(
        self,
        _client: Client,
        _userdata: object,
        _flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            self._log.warning("lost the MQTT broker; connecting again", reason=str(reason))
