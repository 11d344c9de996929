"""What to do for one meter at one instant: the rules of delivery, in the order they decide."""

from dataclasses import replace
from datetime import UTC, datetime

from services.common.kernel.ids import name_uuid
from services.common.kernel.profiles import ModbusProfile, MqttProfile, Profile
from services.common.kernel.values import value_class
from services.control.domain.delivery import (
    Delivery,
    Flight,
    Limits,
    confirmed,
    failed,
    landed,
    outcome_of,
    read_back,
    shows,
)
from services.control.domain.messages import (
    OFFLINE,
    Action,
    DeviceStatus,
    Gateway,
    Intent,
    LineRequest,
    Meter,
    MqttCommand,
    Outcome,
    RelayState,
    Result,
    Site,
)

FORCED_ON = "forced-on"
RELEASED = "released"
"""Cause of the intent that ends a forced position."""


@value_class
class Scene:
    """What the registry, the statuses and the brake say around a meter.

    `cuts_free_at_ms`: when the site's budget allows the next cut.
    """

    limits: Limits
    meter: Meter | None
    gateway: Gateway | None
    site: Site | None
    profile: Profile | None
    meter_status: DeviceStatus | None
    gateway_status: DeviceStatus | None
    cuts_free_at_ms: int

    def is_reachable(self, reported: RelayState | None) -> bool:
        """Whether a command would reach the meter, as far as anybody knows.

        A relay state read after a device was said to be offline shows that it is back. A polled
        line may be tried without a status; over MQTT the device must have been heard, or the
        broker might keep the command for later. A device whose readings are set aside (a wrong
        clock) is commanded all the same, or a payment would not bring its power back.
        """
        if self.gateway is None:
            return False
        has_been_seen = False
        for status in (self.meter_status, self.gateway_status):
            if status is None:
                continue
            if status.is_doubtful:
                return False
            is_back = reported is not None and reported.began_at_ms > status.since_ms
            if status.status == OFFLINE and not is_back:
                return False
            has_been_seen = True
        return has_been_seen or isinstance(self.profile, ModbusProfile)


@value_class
class Advanced:
    """Do `actions` in their order; come again at `due_ms` (null: only when something is heard)."""

    delivery: Delivery
    actions: tuple[Action, ...]
    due_ms: int | None


def advance(delivery: Delivery, scene: Scene, now_ms: int) -> Advanced:
    """Return what to do for a meter at `now_ms`, and when to look again."""
    return _Turn(delivery, scene, now_ms).take()


class _Turn:
    """One look at one meter. Collects actions and the next instant; lives for one call."""

    def __init__(self, delivery: Delivery, scene: Scene, now_ms: int) -> None:
        self.delivery = delivery
        self.scene = scene
        self.now_ms = now_ms
        self.actions: list[Action] = []
        self.due_ms: int | None = None

    def take(self) -> Advanced:
        if self.delivery.flight is not None:
            self._follow(self.delivery.flight)
        if self.delivery.flight is None and self.delivery.intent is not None:
            self._pursue(self.delivery.intent)
        return Advanced(self.delivery, tuple(self.actions), self.due_ms)

    # -- a command under way

    def _follow(self, flight: Flight) -> None:
        if flight.completed_at_ms is None:
            if self.now_ms < flight.give_up_ms:
                self._come_again(flight.give_up_ms)
            else:
                self._take(
                    failed(
                        self.delivery,
                        "no reply in time; the command can act no more",
                        flight.give_up_ms,
                        self.scene.limits,
                        self.now_ms,
                    )
                )
            return
        newest = self.delivery.intent
        assert newest is not None
        if newest.command is not flight.intent.command:
            # Acknowledged, and no longer wanted: what it did is the next command's to change.
            over_at_ms = flight.completed_at_ms + self.scene.limits.contacts_ms
            self.delivery = landed(self.delivery, over_at_ms)
            return
        self._seek_read_back(flight, flight.completed_at_ms)

    def _seek_read_back(self, flight: Flight, completed_at_ms: int) -> None:
        reported = self.delivery.reported
        if reported is not None and reported.began_at_ms > completed_at_ms:
            self._take(read_back(self.delivery, reported, self.now_ms))
            if self.delivery.flight is None:
                return
        if self.now_ms >= flight.give_up_ms:
            has_read = reported is not None and reported.began_at_ms >= completed_at_ms
            seen = f"read back {reported.position}" if has_read and reported else "no read-back"
            detail = f"acknowledged, but {seen} in time"
            self._take(
                failed(self.delivery, detail, completed_at_ms, self.scene.limits, self.now_ms)
            )
            return
        self._come_again(flight.give_up_ms)
        if flight.read_id is not None or self.scene.meter is None:
            return
        if not isinstance(self.scene.profile, ModbusProfile):
            return  # an MQTT device pushes its state; there is nothing to ask it
        if self.now_ms < flight.next_read_ms:
            self._come_again(flight.next_read_ms)
            return
        self._read(flight, self.scene.meter)

    def _read(self, flight: Flight, meter: Meter) -> None:
        reads = flight.reads + 1
        read_id = str(name_uuid("control-read-back", flight.request_id, reads, self.now_ms))
        self.actions.append(
            LineRequest(
                read_id,
                meter,
                flight.intent,
                flight.attempt,
                address=None,
                values=(),
                not_after_ms=flight.give_up_ms,
                requested_at_ms=self.now_ms,
            )
        )
        self.delivery = replace(self.delivery, flight=replace(flight, read_id=read_id, reads=reads))

    # -- an intent without a command under way

    def _pursue(self, intent: Intent) -> None:
        is_reachable = self._notice_return()
        if self._is_confirmed(intent):
            return
        meter = self.scene.meter
        if meter is not None and intent.epoch < meter.epoch:
            self._note(
                Result.SUPERSEDED,
                f"the meter is at epoch {meter.epoch}: it was assigned or replaced since",
            )
            return
        if self._is_proven(intent):
            self._confirm(intent)
            return
        if self._has_expired(intent) or not self._is_in_place(intent):
            return
        assert meter is not None
        if not is_reachable:
            self._note(Result.OFFLINE, "the device is offline; commanded at once when it is back")
            return
        if self._must_pause(intent) or (intent.is_cut and self._is_braked(intent)):
            return
        self._send(intent, meter)

    def _notice_return(self) -> bool:
        """Say whether the meter can be reached. On its return nothing of the past counts."""
        is_reachable = self.scene.is_reachable(self.delivery.reported)
        if is_reachable and not self.delivery.was_reachable:
            self.delivery = replace(self.delivery, failures=0, next_attempt_ms=0)
        self.delivery = replace(self.delivery, was_reachable=is_reachable)
        return is_reachable

    def _is_confirmed(self, intent: Intent) -> bool:
        """Whether the intent stands confirmed. A later read that contradicts it reopens it."""
        confirmed_at_ms = self.delivery.confirmed_at_ms
        if confirmed_at_ms is None:
            return False
        reported = self.delivery.reported
        if reported is None or reported.position == intent.wanted:
            return True
        # Somebody moved the relay. The first time it is driven back at once; whoever moves it
        # again and again meets the backoff, until it has stood for as long as that may get.
        limits = self.scene.limits
        was_calm = self.now_ms - confirmed_at_ms >= limits.backoff_max_ms
        failures = 0 if was_calm else self.delivery.failures
        pause_ms = limits.backoff_ms(failures) if failures else 0
        self.delivery = replace(
            self.delivery,
            confirmed_at_ms=None,
            failures=failures + 1,
            next_attempt_ms=self.now_ms + pause_ms,
        )
        return False

    def _is_proven(self, intent: Intent) -> bool:
        """Whether the relay already stands as wanted, by a live read after the decision.

        Closed by force also needs the device's mode, which no read tells, and so does closed at
        the end of that. An earlier command the other way must have been over when the read began.
        """
        reported = self.delivery.reported
        needs_mode = intent.mode == FORCED_ON or (intent.cause == RELEASED and not intent.is_cut)
        if reported is None or needs_mode:
            return False
        is_after = reported.began_at_ms > intent.decided_at_ms
        return is_after and shows(self.delivery, intent.wanted, reported)

    def _confirm(self, intent: Intent) -> None:
        reported = self.delivery.reported
        assert reported is not None
        told = Outcome(
            intent,
            self.delivery.attempt,
            Result.CONFIRMED,
            "a live read shows it in position",
            self.now_ms,
            read_back_position=reported.position,
            read_back_began_at_ms=reported.began_at_ms,
        )
        self._take(confirmed(self.delivery, told))

    def _has_expired(self, intent: Intent) -> bool:
        if not intent.is_cut or intent.send_before_ms is None:
            return False
        # One that ends where it begins only ends a person's order: no clock behind may send it.
        if intent.decided_at_ms < intent.send_before_ms and self.now_ms <= intent.send_before_ms:
            self._come_again(intent.send_before_ms + 1)
            return False
        self._note(Result.EXPIRED, "the lease of the cut ended; a fresh reading may renew it")
        return True

    def _is_in_place(self, intent: Intent) -> bool:
        """Whether the registry knows the meter where the intent says it is."""
        meter, profile = self.scene.meter, self.scene.profile
        if meter is None or meter.epoch < intent.epoch:
            # The registry's reader may be a moment behind; that is not worth a word.
            told_at_ms = intent.decided_at_ms + self.scene.limits.registry_grace_ms
            if self.now_ms < told_at_ms:
                self._come_again(told_at_ms)
            else:
                known = "is not there" if meter is None else f"has it at epoch {meter.epoch}"
                self._note(Result.WAITING_LINE, f"the registry {known}; waiting for the meter")
            return False
        if (meter.line_id, meter.site_id) != (intent.line_id, intent.site_id):
            where = f"line {meter.line_id} of site {meter.site_id}"
            self._note(Result.WAITING_LINE, f"the meter is on {where}; waiting for a newer intent")
            return False
        if profile is None:
            self._note(Result.WAITING_LINE, f"this release has no profile {meter.profile}")
            return False
        return True

    def _must_pause(self, intent: Intent) -> bool:
        """Whether the backoff lasts, or a cut has used up its burst of attempts.

        What a person forced off has no lease that could be renewed: it is tried for ever.
        """
        is_lease = intent.is_cut and intent.send_before_ms is not None
        if is_lease and self.delivery.failures >= self.scene.limits.attempts_per_burst:
            return True  # until the lease is renewed or the meter returns
        if self.now_ms < self.delivery.next_attempt_ms:
            self._come_again(self.delivery.next_attempt_ms)
            return True
        return False

    def _is_braked(self, intent: Intent) -> bool:
        site = self.scene.site
        if site is None:
            self._note(Result.HELD, f"site {intent.site_id} is not in the registry")
            return True
        if site.cuts_held:
            self._note(Result.HELD, "all cuts of the site are held")
            return True
        if self.scene.cuts_free_at_ms > self.now_ms:
            budget = f"{site.cuts_per_minute} cuts per minute"
            self._note(Result.OVER_BUDGET, f"the site's budget of {budget} is used up")
            self._come_again(self.scene.cuts_free_at_ms)
            return True
        return False

    def _send(self, intent: Intent, meter: Meter) -> None:
        limits, now_ms = self.scene.limits, self.now_ms
        attempt = self.delivery.attempt + 1
        not_after_ms = now_ms + limits.command_valid_ms
        if intent.is_cut and intent.send_before_ms is not None:
            not_after_ms = min(not_after_ms, intent.send_before_ms)
        # The instant is part of the name: after a restart that lost count the id is still new.
        named = ("control-command", intent.meter_id, *intent.version, attempt, now_ms)
        request_id = str(name_uuid(*named))
        flight = Flight(intent, attempt, request_id, now_ms, now_ms + limits.reply_timeout_ms)
        self.actions.append(outcome_of(flight, Result.SENT, "", now_ms))
        self.actions.append(self._command(intent, meter, flight, not_after_ms))
        self.delivery = replace(self.delivery, flight=flight, attempt=attempt)
        self._come_again(flight.give_up_ms)

    def _command(
        self, intent: Intent, meter: Meter, flight: Flight, not_after_ms: int
    ) -> LineRequest | MqttCommand:
        profile = self.scene.profile
        if isinstance(profile, MqttProfile):
            assert self.scene.gateway is not None
            return _mqtt_command(profile, self.scene.gateway, meter, flight, not_after_ms)
        assert profile is not None
        return LineRequest(
            flight.request_id,
            meter,
            intent,
            flight.attempt,
            profile.relay.address,
            tuple(profile.relay.values[intent.command]),
            not_after_ms,
            flight.commanded_at_ms,
        )

    # -- small helpers

    def _note(self, result: Result, detail: str) -> None:
        """Tell a result once an intent."""
        intent = self.delivery.intent
        assert intent is not None
        if result not in self.delivery.noted:
            self.actions.append(Outcome(intent, self.delivery.attempt, result, detail, self.now_ms))
            self.delivery = replace(self.delivery, noted=self.delivery.noted | {result})

    def _take(self, taken: tuple[Delivery, tuple[Action, ...]]) -> None:
        self.delivery, actions = taken
        self.actions.extend(actions)

    def _come_again(self, at_ms: int) -> None:
        self.due_ms = at_ms if self.due_ms is None else min(self.due_ms, at_ms)


def _mqtt_command(
    profile: MqttProfile, gateway: Gateway, meter: Meter, flight: Flight, not_after_ms: int
) -> MqttCommand:
    product, _, gateway_serial = gateway.address.partition("/")
    payload = profile.control_payload(
        flight.intent.command,
        request_id=flight.request_id,
        gateway_serial=gateway_serial,
        meter_serial=meter.serial,
        expire=_formatted_utc(not_after_ms, profile.control.expire_format),
    )
    return MqttCommand(
        flight.request_id,
        meter,
        flight.intent,
        flight.attempt,
        profile.down_topic(product, profile.control.command, gateway_serial),
        tuple(payload.items()),
        not_after_ms,
    )


def _formatted_utc(at_ms: int, layout: str) -> str:
    # Whole seconds, rounded down: never later than the lease allows.
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime(layout)
