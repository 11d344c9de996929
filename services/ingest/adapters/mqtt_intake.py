"""What MQTT messages do: typed by the codec, judged by the registry, answered."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

from services.common.kernel.profiles import MqttProfile
from services.ingest.adapters.intake import OPERATION_MQTT, PUSHED, Intake, Reply
from services.ingest.domain import acrel_mqtt as dialect
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.exchange import Result
from services.ingest.domain.presence import NO_LINE, REASON_MISSING, Device
from services.ingest.domain.registry import PROTOCOL_MQTT, Gateway, Meter

Durable = asyncio.Future[None] | asyncio.Future[bool]
Publish = Callable[[str, bytes], None]


class MqttIntake:
    """Handles the messages of one dialect. `publish(topic, payload)` sends an answer."""

    def __init__(self, profile: MqttProfile, intake: Intake, publish: Publish) -> None:
        self._profile = profile
        self._intake = intake
        self._publish = publish
        self._replied_at_ms: dict[str, int] = {}

    def handle(self, topic: str, payload: bytes) -> Durable | None:
        """Take in a message; return what must end before it is acknowledged, None: at once."""
        intake = self._intake
        now_ms = intake.clock.now_ms()
        try:
            message = dialect.parse_message(self._profile, topic, payload)
        except Unusable as unusable:
            intake.metrics.mqtt_messages.labels("unreadable").inc()
            intake.unreadable(self._speaker(topic), unusable, topic)
            return None
        intake.metrics.mqtt_messages.labels(type(message).__name__.lower()).inc()
        gateway = intake.registry.gateway_at(PROTOCOL_MQTT, message.source.address)
        if gateway is not None:
            intake.gateway_heard(gateway)
            intake.known(_unknown_gateway(message.source))
        match message:
            case dialect.Login():
                self._login(message, gateway)
            case dialect.TimeRequest():
                self._tell_time(message, gateway, now_ms)
            case dialect.Data():
                return self._data(message, gateway, now_ms)
            case dialect.ControlReply():
                return self._control_reply(message, gateway, now_ms)
        return None

    def _speaker(self, topic: str) -> Gateway | None:
        try:
            source, _ = dialect.parse_topic(self._profile, topic)
        except Unusable:
            return None
        return self._intake.registry.gateway_at(PROTOCOL_MQTT, source.address)

    def _answer(self, source: dialect.From, command: str, payload: bytes) -> None:
        topic = self._profile.down_topic(source.product, command, source.serial)
        self._publish(topic, payload)

    def _login(self, message: dialect.Login, gateway: Gateway | None) -> None:
        if gateway is None:
            # It is answered all the same: it goes on sending, and counts once it is registered.
            self._intake.aside(
                _unknown_gateway(message.source),
                Unusable(
                    Fault.UNKNOWN_DEVICE,
                    f"gateway {message.source.address} logged in; register it to use it",
                ),
                PUSHED,
            )
        self._answer(message.source, "login", dialect.login_answer())

    def _tell_time(
        self, message: dialect.TimeRequest, gateway: Gateway | None, now_ms: int
    ) -> None:
        zone = None if gateway is None else self._intake.registry.zone(gateway.site_id)
        if zone is not None:
            local = datetime.fromtimestamp(now_ms // 1000, UTC).astimezone(zone)
            self._answer(message.source, "time", dialect.time_answer(self._profile, local))

    def _meter(self, serial: str, gateway: Gateway | None) -> Meter | None:
        """Return the meter, None (and set aside) where it is unknown or speaks elsewhere."""
        intake = self._intake
        meter = intake.registry.meter_with_serial(serial)
        line_id = NO_LINE if gateway is None else gateway.line_id
        unknown = Device.unknown("mqtt", serial, line_id)
        if meter is None:
            fault = Unusable(
                Fault.UNKNOWN_DEVICE, f"meter {serial} is in no registry; register it to bill it"
            )
        elif gateway is None or gateway.gateway_id != meter.gateway_id:
            fault = Unusable(
                Fault.WRONG_GATEWAY,
                f"meter {serial} belongs behind gateway {meter.gateway_id}; correct its "
                "registration, or find out who speaks for it",
            )
        else:
            intake.known(unknown)
            return meter
        intake.aside(unknown, fault, PUSHED)
        return None

    def _data(self, message: dialect.Data, gateway: Gateway | None, now_ms: int) -> Durable | None:
        intake = self._intake
        meter = self._meter(message.meter_serial, gateway)
        if meter is None:
            return None
        if message.is_missing:
            intake.meter_lost(meter, REASON_MISSING)
            return None
        try:
            reading = dialect.decode_data(self._profile_of(meter), message.body)
        except Unusable as unusable:
            intake.set_aside(meter, unusable, PUSHED)
            return None
        # What comes after a reply on the same connection was sent after it, also within one ms.
        began_at_ms = max(now_ms, self._replied_at_ms.get(meter.meter_id, -1) + 1)
        return intake.take(meter, reading, PUSHED, began_at_ms, now_ms)

    def _profile_of(self, meter: Meter) -> MqttProfile:
        profile = self._intake.profiles.get(meter.profile)
        if not isinstance(profile, MqttProfile):
            raise Unusable(
                Fault.PROFILE_UNFIT,
                f"profile {meter.profile} of meter {meter.meter_id} is not spoken over MQTT; "
                "correct its registration",
            )
        return profile

    def _control_reply(
        self, message: dialect.ControlReply, gateway: Gateway | None, now_ms: int
    ) -> Durable | None:
        meter = self._meter(message.meter_serial, gateway)
        if meter is None:
            return None
        self._intake.commanded(meter.meter_id)
        self._replied_at_ms[meter.meter_id] = now_ms
        reply = Reply(
            request_id=message.request_id,
            requester="",
            line_id=meter.line_id,
            meter_id=meter.meter_id,
            result=(Result.OK if message.is_ok else Result.REFUSED).value,
            detail="" if message.is_ok else "the device refused",
            began_at_ms=now_ms,
            completed_at_ms=now_ms,
        )
        return self._intake.reply(reply, OPERATION_MQTT)


def _unknown_gateway(source: dialect.From) -> Device:
    return Device.unknown("mqtt", source.address)
