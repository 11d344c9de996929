"""A virtual meter: exact energy, a relay that takes its time, and faults on demand. Pure.

Nobody ticks it: whoever looks at it says what time it is, and it works out everything that has
happened since, at the millisecond at which it happened.
"""

import zlib
from collections import deque
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from tools.fleet.config import REGISTER_MAX_LSB, MeterConfig, MeterProfile, Protocol
from tools.fleet.errors import RefusedError
from tools.fleet.load import FixedLoad, Load

NANOJOULE_PER_LSB = 36_000_000_000_000
"""0.01 kWh, the unit of the registers, in microwatt x millisecond."""
REGISTER_MODULUS = REGISTER_MAX_LSB + 1
ACTUATION_MIN_MS = 30
ACTUATION_MAX_MS = 80
TRANSITIONS_KEPT_MAX = 100
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

SHARP, PEAK, FLAT, VALLEY = range(4)
# Rate of each local hour, as a commercial time-of-use calendar may have it.
RATE_OF_HOUR: tuple[int, ...] = (
    *(VALLEY,) * 7,
    *(FLAT,) * 3,
    *(PEAK,) * 2,
    *(FLAT,) * 6,
    *(SHARP,) * 2,
    *(PEAK,) * 2,
    *(VALLEY,) * 2,
)


class Position(StrEnum):
    """Where the relay's contacts are."""

    CLOSED = "closed"
    OPEN = "open"


class Forced(StrEnum):
    """What the forced control wants of the relay."""

    OPEN = "open"
    CLOSED = "closed-forced"
    PREPAID = "closed-prepaid"

    @property
    def position(self) -> Position:
        # In prepaid mode these meters are closed: the balance is kept by the platform.
        return Position.OPEN if self is Forced.OPEN else Position.CLOSED


class FaultKind(StrEnum):
    """What can be wrong with an answer."""

    WRONG_CRC = "wrong_crc"
    MALFORMED = "malformed"
    ABSURD_REGISTER = "absurd_register"
    WRONG_SERIAL = "wrong_serial"


@dataclass(frozen=True, slots=True)
class Fault:
    """The next `answers` answers are wrong. `register_lsb` or `serial` is told instead."""

    kind: FaultKind
    answers: int
    register_lsb: int = 0
    serial: str = ""


class Presence(StrEnum):
    """Whether the meter talks. Its energy flows in any case: the line is lost, not the power."""

    ONLINE = "online"
    SILENT = "silent"
    MISSING = "missing"  # MQTT only: the gateway says that the meter does not answer it


@dataclass(frozen=True, slots=True)
class Transition:
    """The contacts moved."""

    position: Position
    at_ms: int
    by: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a meter shows at a moment. Energy in 0.01 kWh secondary, power in uW secondary."""

    serial: str
    name: str
    profile: MeterProfile
    local_time: datetime
    ct: int
    pt: int
    register_lsb: int
    rates_lsb: tuple[int, ...]
    base_lsb: int
    power_uw: int
    voltage_dv: int
    position: Position
    forced: Forced

    @property
    def phases(self) -> int:
        return 3 if self.profile is MeterProfile.DTSY1352 else 1


class Meter:
    """One meter's true state. Every method takes `now_ms` (UTC), which must never go back."""

    def __init__(
        self,
        config: MeterConfig,
        load: Load,
        *,
        protocol: Protocol,
        zone: ZoneInfo,
        now_ms: int,
        load_on: bool,
    ) -> None:
        self.config = config
        self.protocol = protocol
        self.presence = Presence.ONLINE
        self.offline_after: tuple[int, Presence] | None = None
        self.forced = Forced.PREPAID
        self.transitions: deque[Transition] = deque(maxlen=TRANSITIONS_KEPT_MAX)
        self.commands_accepted = 0
        self.reads_served = 0
        self.last_served_register_lsb: int | None = None
        self.last_served_at_ms: int | None = None
        self.energy_nanojoule = 0
        self.clock_ahead_ms = 0
        self.position = Position.CLOSED
        self.fault: Fault | None = None
        self._profile_load = load
        self._load = load
        self._load_on = load_on
        self._zone = zone
        self._born_ms = now_ms
        self._at_ms = now_ms
        self._moving: deque[Transition] = deque()
        self._rates_lsb = [0, 0, config.register_lsb, 0]
        # Every meter has its own contactor and its own place on the cable, always the same.
        signature = zlib.crc32(config.id.encode())
        spread_ms = ACTUATION_MAX_MS - ACTUATION_MIN_MS + 1
        self.actuation_ms = ACTUATION_MIN_MS + signature % spread_ms
        self._voltage_dv = 2_250 + signature % 100

    # --- time and energy ---------------------------------------------------------------------

    def advance(self, now_ms: int) -> None:
        """Let everything happen that has happened up to `now_ms`."""
        assert now_ms >= self._at_ms, "a meter's time does not go back"
        while self._moving and self._moving[0].at_ms <= now_ms:
            moved = self._moving.popleft()
            self._consume(moved.at_ms)
            self.position = moved.position
            self.transitions.append(moved)
        self._consume(now_ms)
        # Each unit that the register counts belongs to the rate in whose hour it was counted.
        counted_lsb = self._total_lsb() - sum(self._rates_lsb)
        if counted_lsb:
            self._rates_lsb[RATE_OF_HOUR[self._local(now_ms).hour]] += counted_lsb

    def _consume(self, until_ms: int) -> None:
        while self._at_ms < until_ms:
            step = self._load.step(self._at_ms - self._born_ms)
            lasts_ms = min(step.lasts_ms, until_ms - self._at_ms)
            if self._draws():
                self.energy_nanojoule += step.power_uw * lasts_ms
            self._at_ms += lasts_ms

    def _draws(self) -> bool:
        return self._load_on and self.position is Position.CLOSED

    def _total_lsb(self) -> int:
        ratio = self.config.ct * self.config.pt
        return self.config.register_lsb + self.energy_nanojoule // (NANOJOULE_PER_LSB * ratio)

    def register_lsb(self, now_ms: int) -> int:
        """Return the register, 0.01 kWh secondary."""
        self.advance(now_ms)
        return self._total_lsb() % REGISTER_MODULUS

    def _local(self, now_ms: int) -> datetime:
        return (EPOCH + timedelta(milliseconds=now_ms)).astimezone(self._zone)

    def power_uw(self, now_ms: int) -> int:
        """Return the power that flows, in microwatts primary."""
        self.advance(now_ms)
        return self._load.step(now_ms - self._born_ms).power_uw if self._draws() else 0

    def switch_load(self, on: bool, now_ms: int) -> None:
        """Let the customers draw, or not."""
        self.advance(now_ms)
        self._load_on = on

    def set_power(self, power_w: int | None, now_ms: int) -> None:
        """Fix the power from now on; None gives the configured load back."""
        self.advance(now_ms)
        self._load = self._profile_load if power_w is None else FixedLoad(power_w)

    # --- the relay ---------------------------------------------------------------------------

    def command(self, forced: Forced, now_ms: int) -> int:
        """Accept a forced-control command; return when the contacts are where it wants them.

        The commanded value can be read at once; the contacts follow after `actuation_ms`.
        """
        self.advance(now_ms)
        self.commands_accepted += 1
        self.forced = forced
        last = self._moving[-1].position if self._moving else self.position
        if last is not forced.position:
            at_ms = now_ms + self.actuation_ms
            self._moving.append(Transition(forced.position, at_ms, by="command"))
        return self._moving[-1].at_ms if self._moving else now_ms

    # --- the clock ---------------------------------------------------------------------------

    def set_clock(self, local: datetime, now_ms: int) -> None:
        """Let its clock show a naive local time; it goes on from there."""
        self.advance(now_ms)
        shown_ms = int(local.replace(tzinfo=self._zone).timestamp()) * 1_000
        self.clock_ahead_ms = shown_ms - now_ms

    # --- what it shows -----------------------------------------------------------------------

    def snapshot(self, now_ms: int) -> Snapshot:
        """Return the truth, as the device shows it when nothing is wrong with it."""
        self.advance(now_ms)
        config = self.config
        return Snapshot(
            serial=config.serial,
            name=config.name,
            profile=config.profile,
            local_time=self._local(now_ms + self.clock_ahead_ms),
            ct=config.ct,
            pt=config.pt,
            register_lsb=self._total_lsb() % REGISTER_MODULUS,
            rates_lsb=tuple(rate % REGISTER_MODULUS for rate in self._rates_lsb),
            base_lsb=config.register_lsb,
            power_uw=self.power_uw(now_ms) // (config.ct * config.pt),
            voltage_dv=self._voltage_dv,
            position=self.position,
            forced=self.forced,
        )

    def shown(self, now_ms: int, kinds: frozenset[FaultKind]) -> tuple[Snapshot, FaultKind | None]:
        """Return what the next answer tells, and the fault it spends, if `kinds` has it."""
        snapshot = self.snapshot(now_ms)
        fault = self.fault
        if fault is None or fault.kind not in kinds:
            return snapshot, None
        left = fault.answers - 1
        self.fault = replace(fault, answers=left) if left else None
        if fault.kind is FaultKind.ABSURD_REGISTER:
            snapshot = replace(snapshot, register_lsb=fault.register_lsb)
        if fault.kind is FaultKind.WRONG_SERIAL:
            snapshot = replace(snapshot, serial=fault.serial)
        return snapshot, fault.kind

    def served(self, snapshot: Snapshot, now_ms: int) -> None:
        """Note that a reading left the meter; it may be the one after which it falls silent.

        Device clocks show whole seconds: of two readings in one second a platform may take the
        second for a repetition. So the last one before the silence is in a second of its own.
        """
        last_at_ms = self.last_served_at_ms
        is_new_second = last_at_ms is None or now_ms // 1_000 > last_at_ms // 1_000
        self.reads_served += 1
        self.last_served_register_lsb = snapshot.register_lsb
        self.last_served_at_ms = now_ms
        after = self.offline_after
        if after is not None and snapshot.register_lsb >= after[0] and is_new_second:
            self.presence = after[1]
            self.offline_after = None

    # --- what can be done to it --------------------------------------------------------------

    def set_fault(self, fault: Fault) -> None:
        """Let the next answers be wrong. Raises RefusedError where the protocol cannot be so."""
        if fault.kind is FaultKind.WRONG_CRC and self.protocol is not Protocol.MODBUS_RTU_OVER_TCP:
            raise RefusedError(
                f"{self.config.id} speaks {self.protocol}, which has no CRC; use malformed"
            )
        serial_is_bcd = len(fault.serial) == 12 and fault.serial.isdecimal()
        if self.protocol is not Protocol.MQTT_ACREL and fault.serial and not serial_is_bcd:
            raise RefusedError(f"the serial of {self.config.id} must be 12 digits (6 BCD bytes)")
        self.fault = fault

    def go_offline(self, presence: Presence, after_register_lsb: int | None) -> None:
        """Fall silent now, or with the first reading that shows `after_register_lsb` or more."""
        assert presence is not Presence.ONLINE
        if presence is Presence.MISSING and self.protocol is not Protocol.MQTT_ACREL:
            raise RefusedError(f"{self.config.id} speaks {self.protocol}: it can only be silent")
        if after_register_lsb is None:
            self.presence = presence
        else:
            self.offline_after = (after_register_lsb, presence)

    def go_online(self) -> None:
        """Talk again, with the register that has gone on."""
        self.presence = Presence.ONLINE
        self.offline_after = None
