"""What control hears and what it does. Pure values; adapters/records.py leads from and to Avro."""

from enum import StrEnum

from services.common.kernel.profiles import RelayCommand, relay_command
from services.common.kernel.values import value_class

Version = tuple[int, int]
"""(meter epoch, shard-log offset) of an intent, (book epoch, revision) of a fact. Highest wins."""

OPEN = "open"
OFFLINE = "offline"
QUARANTINED = "quarantined"


class Result(StrEnum):
    """What a command-outcome can say."""

    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    CONFIRMED = "confirmed"
    FAILED = "failed"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    HELD = "held"
    OVER_BUDGET = "over-budget"
    WAITING_LINE = "waiting-line"
    OFFLINE = "offline"


@value_class
class Intent:
    """The position metering wants a relay in. `send_before_ms` null: it never expires."""

    meter_id: str
    account_id: str
    site_id: str
    line_id: str
    epoch: int
    offset: int
    wanted: str
    mode: str
    send_before_ms: int | None
    decided_at_ms: int
    cause: str
    event_id: str = ""

    @property
    def version(self) -> Version:
        return self.epoch, self.offset

    @property
    def is_cut(self) -> bool:
        return self.wanted == OPEN

    @property
    def command(self) -> RelayCommand:
        return relay_command(self.wanted, self.mode)


@value_class
class RelayState:
    """What the device reported: position open, closed or mixed, by a read that began then."""

    meter_id: str
    position: str
    began_at_ms: int


@value_class
class Reply:
    """What became of a request or an MQTT command. `position` only for read-live."""

    request_id: str
    result: str
    detail: str
    began_at_ms: int
    completed_at_ms: int
    position: str | None = None


@value_class
class Meter:
    meter_id: str
    serial: str
    site_id: str
    gateway_id: str
    line_id: str
    unit: int
    profile: str
    epoch: int
    version: Version


@value_class
class Gateway:
    """`address`: host:port of a polled line, product/serial on the broker."""

    gateway_id: str
    address: str
    version: Version


@value_class
class Site:
    site_id: str
    cuts_held: bool
    cuts_per_minute: int
    version: Version


DOUBTFUL_REASONS = frozenset({"serial-mismatch", "wrong-gateway", "unknown-device"})
"""A device set aside for anything else is itself: only what it says of energy cannot be used."""


@value_class
class DeviceStatus:
    """`device_id`: gateways/{id} or meters/{id}; `status`: online, offline or quarantined.

    `reason`: why, in ingest's words.
    """

    device_id: str
    status: str
    since_ms: int
    reason: str = ""

    @property
    def is_doubtful(self) -> bool:
        """Whether another device may be speaking: commands would reach the wrong relay."""
        return self.status == QUARANTINED and self.reason in DOUBTFUL_REASONS


Fact = Meter | Gateway | Site | DeviceStatus


@value_class
class Outcome:
    """One step of the delivery of `intent`; `attempt` 0 where nothing was sent.

    `is_first`: false where the same was told before, as of a relay driven back (for metrics only).
    """

    intent: Intent
    attempt: int
    result: Result
    detail: str
    decided_at_ms: int
    request_id: str | None = None
    commanded_at_ms: int | None = None
    completed_at_ms: int | None = None
    read_back_position: str | None = None
    read_back_began_at_ms: int | None = None
    is_first: bool = True


@value_class
class LineRequest:
    """One exchange for the owner of a polled line.

    A write of `values` at `address`, or, where `address` is null, a live read.
    """

    request_id: str
    meter: Meter
    intent: Intent
    attempt: int
    address: int | None
    values: tuple[int, ...]
    not_after_ms: int
    requested_at_ms: int


@value_class
class MqttCommand:
    """One message to a gateway on the broker: never retained, void after `not_after_ms`."""

    request_id: str
    meter: Meter
    intent: Intent
    attempt: int
    topic: str
    payload: tuple[tuple[str, str | int], ...]
    not_after_ms: int


Command = LineRequest | MqttCommand
Action = Outcome | Command
