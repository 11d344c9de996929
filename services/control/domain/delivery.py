"""The delivery of one meter's newest intent: what is known, and what to do next.

Everything here is a pure function of values. `heard_*` take one input in; `advance` (turn.py) then
says what to do at an instant. The order of inputs of different topics does not matter for where a
delivery ends, only for how soon.
"""

from collections.abc import Mapping
from dataclasses import field, replace

from services.common.kernel.values import value_class
from services.control.domain.messages import (
    Action,
    Intent,
    Outcome,
    RelayState,
    Reply,
    Result,
)

BACKOFF_DOUBLINGS_MAX = 20
OK = "ok"


@value_class
class Limits:
    """The bounds of delivery; services/control/config.py says what each is for."""

    command_valid_ms: int = 5_000
    reply_timeout_ms: int = 8_000
    read_back_pause_ms: int = 500
    read_back_window_ms: int = 5_000
    attempts_per_burst: int = 6
    backoff_base_ms: int = 500
    backoff_max_ms: int = 60_000
    registry_grace_ms: int = 2_000
    contacts_ms: int = 1_000

    def backoff_ms(self, failures: int) -> int:
        """Return the pause after so many failures in a row (from 1)."""
        doublings = min(failures - 1, BACKOFF_DOUBLINGS_MAX)
        return min(self.backoff_base_ms << doublings, self.backoff_max_ms)


@value_class
class Flight:
    """The one command of a meter that is under way, from `sent` to its read-back.

    `completed_at_ms` null: the device has not answered yet. `next_read_ms`: when to read back
    (again); `give_up_ms`: when the step under way counts as failed.
    """

    intent: Intent
    attempt: int
    request_id: str
    commanded_at_ms: int
    give_up_ms: int
    completed_at_ms: int | None = None
    next_read_ms: int = 0
    read_id: str | None = None
    reads: int = 0


@value_class
class Delivery:
    """What control knows of one meter. `noted`: results told once an intent.

    `over_at_ms`: position → from when on the last command there can move the relay no more.
    """

    intent: Intent | None = None
    reported: RelayState | None = None
    flight: Flight | None = None
    attempt: int = 0
    failures: int = 0
    next_attempt_ms: int = 0
    confirmed_at_ms: int | None = None
    noted: frozenset[Result] = field(default_factory=frozenset)
    over_at_ms: Mapping[str, int] = field(default_factory=dict)
    was_reachable: bool = True

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do for the intent, as things stand."""
        return (
            self.intent is None
            or self.confirmed_at_ms is not None
            or Result.SUPERSEDED in self.noted
            or Result.EXPIRED in self.noted
        )


def heard_intent(
    delivery: Delivery, intent: Intent, now_ms: int
) -> tuple[Delivery, tuple[Action, ...]]:
    """Take an intent: the highest version stands, an older one or a repeat changes nothing."""
    old = delivery.intent
    if old is not None and intent.version <= old.version:
        return delivery, ()
    told: tuple[Action, ...] = ()
    if old is not None and not delivery.is_settled:
        detail = f"a newer intent ({intent.epoch}, {intent.offset}) wants {intent.wanted}"
        told = (Outcome(old, delivery.attempt, Result.SUPERSEDED, detail, now_ms),)
    fresh = Delivery(
        intent=intent,
        reported=delivery.reported,
        flight=delivery.flight,
        over_at_ms=delivery.over_at_ms,
        was_reachable=delivery.was_reachable,
    )
    return fresh, told


def heard_state(delivery: Delivery, state: RelayState) -> Delivery:
    """Take a relay state: the one whose read began last stands."""
    if delivery.reported is not None and state.began_at_ms < delivery.reported.began_at_ms:
        return delivery
    return replace(delivery, reported=state)


def heard_reply(
    delivery: Delivery, reply: Reply, limits: Limits, now_ms: int
) -> tuple[Delivery, tuple[Action, ...]]:
    """Take the answer to a command or to a read-back; any other changes nothing."""
    flight = delivery.flight
    if flight is None:
        return delivery, ()
    if reply.request_id == flight.read_id:
        read = replace(flight, read_id=None, next_read_ms=now_ms + limits.read_back_pause_ms)
        delivery = replace(delivery, flight=read)
        if reply.result != OK or reply.position is None:
            return delivery, ()
        state = RelayState(flight.intent.meter_id, reply.position, reply.began_at_ms)
        return read_back(heard_state(delivery, state), state, now_ms)
    if reply.request_id != flight.request_id or flight.completed_at_ms is not None:
        return delivery, ()
    if reply.result != OK:
        detail = f"{reply.result}: {reply.detail}" if reply.detail else reply.result
        return failed(delivery, detail, reply.completed_at_ms, limits, now_ms)
    acknowledged = replace(
        flight,
        completed_at_ms=reply.completed_at_ms,
        next_read_ms=now_ms,
        give_up_ms=now_ms + limits.read_back_window_ms,
    )
    told = outcome_of(acknowledged, Result.ACKNOWLEDGED, reply.detail, now_ms)
    return replace(delivery, flight=acknowledged), (told,)


def heard_past(delivery: Delivery, past: Outcome, limits: Limits) -> Delivery:
    """Take an outcome told before a restart, in the order of the log, after all intents.

    So attempts go on counting, a command under way is waited for instead of sent twice, and what
    was told once is not told again.
    """
    current = delivery.intent
    is_current = current is not None and past.intent.version == current.version
    if is_current:
        noted = delivery.noted | {past.result}
        delivery = replace(delivery, attempt=max(delivery.attempt, past.attempt), noted=noted)
    if past.result is Result.CONFIRMED and past.read_back_began_at_ms is not None:
        position = past.read_back_position or ""
        state = RelayState(past.intent.meter_id, position, past.read_back_began_at_ms)
        delivery = heard_state(delivery, state)
        if is_current:
            delivery = replace(delivery, confirmed_at_ms=past.decided_at_ms)
    if past.request_id is None or past.commanded_at_ms is None:
        return delivery
    flight = Flight(
        current if is_current and current is not None else past.intent,
        past.attempt,
        past.request_id,
        past.commanded_at_ms,
        past.commanded_at_ms + limits.reply_timeout_ms,
    )
    if past.result is Result.SENT:
        if (before := delivery.flight) is not None and before.request_id != past.request_id:
            # It landed without a word when this one was sent.
            over_at_ms = before.completed_at_ms or before.give_up_ms
            delivery = landed(delivery, over_at_ms + limits.contacts_ms)
        confirmed_at_ms = None if is_current else delivery.confirmed_at_ms
        return replace(delivery, flight=flight, confirmed_at_ms=confirmed_at_ms)
    if past.result is Result.ACKNOWLEDGED:
        return replace(delivery, flight=replace(flight, completed_at_ms=past.completed_at_ms))
    over_at_ms = past.completed_at_ms or flight.give_up_ms
    if past.result is not Result.CONFIRMED:
        over_at_ms += limits.contacts_ms
    delivery = landed(replace(delivery, flight=flight), over_at_ms)
    if is_current and past.result is Result.FAILED:
        failures = delivery.failures + 1
        again_ms = past.decided_at_ms + limits.backoff_ms(failures)
        delivery = replace(delivery, failures=failures, next_attempt_ms=again_ms)
    return delivery


def resumed(delivery: Delivery, limits: Limits, now_ms: int) -> Delivery:
    """Return what a worker goes on with that has taken in everything told before it.

    A command that was acknowledged gets its whole time to be read back: nobody has been reading.
    """
    flight = delivery.flight
    if flight is None or flight.completed_at_ms is None:
        return delivery
    give_up_ms = now_ms + limits.read_back_window_ms
    return replace(delivery, flight=replace(flight, give_up_ms=give_up_ms))


def outcome_of(
    flight: Flight, result: Result, detail: str, now_ms: int, read: RelayState | None = None
) -> Outcome:
    return Outcome(
        flight.intent,
        flight.attempt,
        result,
        detail,
        now_ms,
        flight.request_id,
        flight.commanded_at_ms,
        flight.completed_at_ms,
        read.position if read else None,
        read.began_at_ms if read else None,
    )


def landed(delivery: Delivery, over_at_ms: int) -> Delivery:
    """End the command under way: it can move the relay no more from `over_at_ms` on."""
    assert delivery.flight is not None
    over = {**delivery.over_at_ms, delivery.flight.intent.wanted: over_at_ms}
    return replace(delivery, flight=None, over_at_ms=over)


def shows(delivery: Delivery, wanted: str, state: RelayState) -> bool:
    """Whether a read proves a position: no earlier command to another one could still move it.

    Contacts move a while after an acknowledgement: until then a read shows where they stood.
    """
    return state.position == wanted and all(
        state.began_at_ms > over_at_ms
        for position, over_at_ms in delivery.over_at_ms.items()
        if position != wanted
    )


def _is_newest(delivery: Delivery) -> bool:
    """Whether the command under way is of the newest intent."""
    assert delivery.flight is not None
    assert delivery.intent is not None
    return delivery.flight.intent.version == delivery.intent.version


def failed(
    delivery: Delivery, detail: str, over_at_ms: int, limits: Limits, now_ms: int
) -> tuple[Delivery, tuple[Action, ...]]:
    flight = delivery.flight
    assert flight is not None
    read = delivery.reported
    if read and (flight.completed_at_ms is None or read.began_at_ms < flight.completed_at_ms):
        read = None
    told = outcome_of(flight, Result.FAILED, detail, now_ms, read)
    after = landed(delivery, over_at_ms + limits.contacts_ms)
    if _is_newest(delivery):
        failures = delivery.failures + 1
        again_ms = now_ms + limits.backoff_ms(failures)
        after = replace(after, failures=failures, next_attempt_ms=again_ms)
    return after, (told,)


def read_back(
    delivery: Delivery, state: RelayState, now_ms: int
) -> tuple[Delivery, tuple[Action, ...]]:
    """Judge a read that is known to have begun after the command was completed."""
    flight = delivery.flight
    assert flight is not None
    assert flight.completed_at_ms is not None
    is_after = state.began_at_ms >= flight.completed_at_ms
    if not is_after or not shows(delivery, flight.intent.wanted, state):
        return delivery, ()
    after = landed(delivery, flight.completed_at_ms)
    if not _is_newest(delivery):
        # The newer intent judges the state by itself; the older one has been told superseded.
        return after, ()
    told = outcome_of(flight, Result.CONFIRMED, "", now_ms, state)
    return confirmed(after, told)


def confirmed(delivery: Delivery, told: Outcome) -> tuple[Delivery, tuple[Action, ...]]:
    """Take the newest intent as delivered."""
    is_first = Result.CONFIRMED not in delivery.noted
    noted = delivery.noted | {Result.CONFIRMED}
    after = replace(delivery, confirmed_at_ms=told.decided_at_ms, noted=noted)
    return after, (replace(told, is_first=is_first),)
