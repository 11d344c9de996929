"""One exchange with a device on a polled line: what was asked, what came of it."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Protocol

from services.common.kernel.profiles import ModbusProfile, Profile
from services.common.kernel.values import value_class
from services.ingest.domain.registry import Meter

OPERATION_WRITE = "write-registers"
OPERATION_READ = "read-live"


class Result(StrEnum):
    """The results of a device-reply."""

    OK = "ok"
    EXPIRED = "expired"
    TIMEOUT = "timeout"
    NOT_CONNECTED = "not-connected"
    EXCEPTION = "exception"
    MALFORMED = "malformed"
    REFUSED = "refused"


@value_class
class Answer:
    """What one transaction gave. `words` is empty unless it is the OK of a read.

    `began_at_ms`: just before the request was written. TIMEOUT: it was written, nothing is known.
    """

    result: Result
    detail: str
    began_at_ms: int
    completed_at_ms: int
    words: tuple[int, ...] = ()


class Link(Protocol):
    """One connection to a line. One transaction at a time: the caller sees to it."""

    @property
    def is_connected(self) -> bool:
        """Whether a transaction may be tried."""
        ...

    @property
    def is_resync(self) -> bool:
        """Whether the last connection was dropped on our side, to be rid of a late answer."""
        ...

    async def connect(self) -> str:
        """Connect, within the transaction timeout; return "", or why it failed."""
        ...

    def close(self) -> None:
        """Drop the connection. Nothing of it reaches a later one."""
        ...

    async def read(
        self, unit: int, address: int, count: int, not_after_ms: int | None = None
    ) -> Answer:
        """Read holding registers, unless `not_after_ms` has passed: EXPIRED."""
        ...

    async def write(
        self, unit: int, address: int, values: Sequence[int], not_after_ms: int | None
    ) -> Answer:
        """Write registers with function 0x10, unless `not_after_ms` has passed: EXPIRED."""
        ...

    async def write_privately(
        self, unit: int, address: int, values: Sequence[int], not_after_ms: int | None
    ) -> Answer:
        """Write registers with function 0x20; whether they were taken only a read can tell."""
        ...


@value_class
class Request:
    """A device-request, as the owner of a line sees it."""

    request_id: str
    requester: str
    line_id: str
    meter_id: str
    serial: str
    unit: int
    profile: str
    operation: str
    address: int | None
    values: tuple[int, ...]
    not_after_ms: int | None

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Request":
        """Return the request of an Avro record (subject device-request)."""
        return cls(
            record["request_id"],
            record["requester"],
            record["line_id"],
            record["meter_id"],
            record["serial"],
            record["unit"],
            record["profile"],
            record["operation"],
            record["address"],
            tuple(record["values"]),
            record["not_after_ms"],
        )


def refusal(request: Request, meter: Meter | None, profile: Profile | None) -> str:
    """Return why a request must not be executed, "" where it may.

    A write may only be one of the profile's relay commands: nothing else on a bus is ours to write.
    """
    if meter is None:
        return f"meter {request.meter_id} is not on line {request.line_id}"
    named = (request.serial, request.unit, request.profile)
    known = (meter.serial, meter.unit, meter.profile)
    if named != known:
        return f"meter {meter.meter_id} is (serial, unit, profile) {known}, not {named}"
    if not isinstance(profile, ModbusProfile):
        return f"profile {request.profile} is not polled"
    return _refused_operation(request, profile)


def _refused_operation(request: Request, profile: ModbusProfile) -> str:
    if request.operation == OPERATION_READ:
        return ""
    if request.operation != OPERATION_WRITE:
        return f"operation {request.operation!r} is not known"
    relay = profile.relay
    if request.address != relay.address or request.values not in relay.values.values():
        return f"{request.values} at {request.address} is no relay command of {profile.name}"
    return ""
