"""What is told of devices: online, offline, quarantined; at changes and now and then again."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from services.common.kernel.values import value_class
from services.ingest.domain.errors import Fault
from services.ingest.domain.registry import Gateway, Meter

UNKNOWN_DEVICES_MAX = 10_000
COUNT_INTERVAL_MS = 10_000
"""How often a count that grows is told."""
NO_LINE = "unknown"
UNKNOWN = "unknown"

ONLINE = "online"
OFFLINE = "offline"
QUARANTINED = "quarantined"

REASON_SILENT = "silent"
REASON_NO_ANSWER = "no-answer"
REASON_MISSING = "missing"
REASON_GATEWAY = "gateway-offline"
REASON_REGISTERED = "registered"


@value_class
class Device:
    """Whom a device-status is about. `kind`: gateway, meter, unknown."""

    device_id: str
    kind: str
    site_id: str | None
    line_id: str

    @classmethod
    def of_meter(cls, meter: Meter) -> "Device":
        """Return the device that a meter is."""
        return cls(meter.device_id, "meter", meter.site_id, meter.line_id)

    @classmethod
    def of_gateway(cls, gateway: Gateway) -> "Device":
        """Return the device that a gateway is."""
        return cls(gateway.device_id, "gateway", gateway.site_id, gateway.line_id)

    @classmethod
    def unknown(cls, protocol: str, serial: str, line_id: str = NO_LINE) -> "Device":
        """Return a device that the registry does not have."""
        return cls(f"{UNKNOWN}/{protocol}/{serial}", UNKNOWN, None, line_id)


@dataclass(slots=True)
class _State:
    device: Device
    status: str
    reason: str
    since_ms: int
    last_seen_ms: int | None
    silent_after_ms: int | None
    expected_from_ms: int
    set_aside_count: int = 0
    told_count: int = 0
    clock: tuple[int, str, int | None] | None = None
    """(when its clock was tended, what came of it, how far ahead it was)."""
    told_at_ms: int = -1
    """-1: never told. What is only expected is not told before it is heard, or silent too long."""


class Presence:
    """The devices this worker sees. Each method returns the status to tell, None where none is.

    Statuses are Avro records (subject device-status). At most UNKNOWN_DEVICES_MAX unknown devices
    are kept, the longest known go first; the counts of metrics have them all.
    """

    def __init__(self, worker: str, refresh_ms: int) -> None:
        self._worker = worker
        self._refresh_ms = refresh_ms
        self._states: dict[str, _State] = {}
        self._unknown: dict[str, None] = {}

    @property
    def unknown_count(self) -> int:
        """How many unknown devices are kept."""
        return len(self._unknown)

    def expect(self, device: Device, now_ms: int, silent_after_ms: int) -> None:
        """Wait for a device that pushes: it is offline when nothing is heard for so long."""
        state = self._state(device, now_ms)
        state.silent_after_ms = silent_after_ms

    def heard(self, device: Device, now_ms: int) -> dict[str, Any] | None:
        """Take in a sign of life."""
        state = self._state(device, now_ms)
        state.last_seen_ms = now_ms
        return self._become(state, ONLINE, "", now_ms)

    def lost(self, device: Device, reason: str, now_ms: int) -> dict[str, Any] | None:
        """Take in that a device does not answer."""
        return self._become(self._state(device, now_ms), OFFLINE, reason, now_ms)

    def set_aside(self, device: Device, fault: Fault, now_ms: int) -> dict[str, Any] | None:
        """Take in something of a device that cannot be used."""
        state = self._state(device, now_ms)
        state.last_seen_ms = now_ms
        state.set_aside_count += 1
        return self._become(state, QUARANTINED, fault.value, now_ms)

    def clock_tended(
        self, device: Device, result: str, ahead_ms: int | None, now_ms: int
    ) -> dict[str, Any]:
        """Take in what came of a device's wrong clock."""
        state = self._state(device, now_ms)
        state.clock = (now_ms, result, ahead_ms)
        return self._tell(state, state.status, state.reason, now_ms)

    def count_aside(self, device: Device, now_ms: int) -> None:
        """Count something unusable of a device that is well otherwise: it stays what it is."""
        self._state(device, now_ms).set_aside_count += 1

    def recall(self, told: Mapping[str, Any], now_ms: int) -> None:
        """Take in what an earlier run told last of an unknown device."""
        if told["status"] != QUARANTINED:
            return
        line_id = told["line_id"] or NO_LINE
        device = Device(told["device_id"], told["kind"], told["site_id"], line_id)
        state = self._state(device, now_ms)
        state.status, state.reason = told["status"], told["reason"]
        state.since_ms, state.last_seen_ms = told["since_ms"], told["last_seen_ms"]
        state.told_at_ms = now_ms

    def registered(self, device_id: str, now_ms: int) -> dict[str, Any] | None:
        """Take leave of an unknown device that the registry has now."""
        self._unknown.pop(device_id, None)
        state = self._states.pop(device_id, None)
        return None if state is None else self._become(state, OFFLINE, REASON_REGISTERED, now_ms)

    def forget(self, device_id: str) -> None:
        """Drop a device that is another worker's now; nothing is told."""
        self._states.pop(device_id, None)

    def refresh(self, now_ms: int) -> Iterator[dict[str, Any]]:
        """Yield what is due: devices gone silent, grown counts, and what was told long ago."""
        for state in list(self._states.values()):
            limit_ms = state.silent_after_ms
            heard_ms = state.last_seen_ms or state.expected_from_ms
            if limit_ms is not None and state.status != OFFLINE and now_ms - heard_ms > limit_ms:
                yield self._tell(state, OFFLINE, REASON_SILENT, now_ms)
            elif state.told_at_ms < 0:
                continue
            elif now_ms - state.told_at_ms >= self._refresh_ms or (
                state.set_aside_count > state.told_count
                and now_ms - state.told_at_ms >= COUNT_INTERVAL_MS
            ):
                yield self._tell(state, state.status, state.reason, now_ms)

    def _state(self, device: Device, now_ms: int) -> _State:
        state = self._states.get(device.device_id)
        if state is None:
            if device.kind == UNKNOWN:
                while len(self._unknown) >= UNKNOWN_DEVICES_MAX:
                    oldest = next(iter(self._unknown))
                    del self._unknown[oldest]
                    self._states.pop(oldest, None)
                self._unknown[device.device_id] = None
            state = _State(device, "", "", now_ms, None, None, now_ms)
            self._states[device.device_id] = state
        state.device = device
        return state

    def _become(
        self, state: _State, status: str, reason: str, now_ms: int
    ) -> dict[str, Any] | None:
        if (state.status, state.reason) == (status, reason):
            return None
        return self._tell(state, status, reason, now_ms)

    def _tell(self, state: _State, status: str, reason: str, now_ms: int) -> dict[str, Any]:
        if state.status != status:
            state.since_ms = now_ms
        state.status, state.reason = status, reason
        state.told_at_ms = now_ms
        state.told_count = state.set_aside_count
        tended_at_ms, result, ahead_ms = state.clock or (None, None, None)
        return {
            "device_id": state.device.device_id,
            "kind": state.device.kind,
            "site_id": state.device.site_id,
            "line_id": state.device.line_id,
            "status": status,
            "reason": reason,
            "since_ms": state.since_ms,
            "last_seen_ms": state.last_seen_ms,
            "quarantined_readings": state.set_aside_count,
            "worker": self._worker,
            "clock_tended_at_ms": tended_at_ms,
            "clock_result": result,
            "clock_ahead_ms": ahead_ms,
        }
