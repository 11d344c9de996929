"""One polled line: its connection, its polls, its requests; one transaction at a time."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Mapping
from zoneinfo import ZoneInfo

import structlog

from services.common.kernel.clock import Clock
from services.common.kernel.profiles import WRITE_PRIVATE, ModbusProfile, Profile
from services.common.kernel.values import value_class
from services.common.kernel.zones import utc_ms
from services.ingest.adapters.intake import POLLED, Intake, Reply, Source
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.clocks import (
    LEFT,
    NO_REGISTER,
    NOT_TAKEN,
    SET,
    TAKEN_MS_MAX,
    ClockCare,
    wall_clock,
)
from services.ingest.domain.errors import Fault, Unusable
from services.ingest.domain.exchange import (
    OPERATION_READ,
    Answer,
    Link,
    Request,
    Result,
    refusal,
)
from services.ingest.domain.live_block import decode_live, decode_serial, is_serial_of
from services.ingest.domain.presence import REASON_NO_ANSWER
from services.ingest.domain.reading import DeviceReading
from services.ingest.domain.registry import Line, Meter
from services.ingest.domain.relay import position
from services.ingest.domain.schedule import PollSchedule

RECONNECT_FIRST_MS = 100
IDLE_MAX_MS = 1_000
"""An idle line looks this often whether its connection still stands."""
SET_WITHIN_MS = 2_000
"""A clock that is written later than this after it was looked at would be set wrong."""
REST_MS = 100
"""A line that may be another worker's looks this often whether it is ours again."""


@value_class
class LineSettings:
    """The bounds of a line; config.py says what each means."""

    poll_interval_ms: int
    transaction_timeout_ms: int
    offline_after_failures: int
    probe_backoff_max_ms: int
    reconnect_backoff_max_ms: int
    serial_recheck_ms: int
    requests_max: int
    set_clocks: bool


class LineWorker:
    """The owner of one line. `run` it in a task; `submit` requests; `close` it.

    While `is_ours` says no, the line may be another worker's: nothing is written, the connection is
    given up, and nothing is said but the reply to a request that was executed before.
    """

    def __init__(
        self,
        line: Line,
        link: Link,
        settings: LineSettings,
        *,
        is_ours: Callable[[], bool],
        profiles: Mapping[str, Profile],
        intake: Intake,
        clock: Clock,
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self.line = line
        self._link = link
        self._settings = settings
        self._is_ours = is_ours
        self._profiles = profiles
        self._intake = intake
        self._clock = clock
        self._metrics = metrics
        self._log = log.bind(line=line.line_id, gateway=line.gateway.gateway_id)
        self._requests: deque[Request] = deque()
        self._wake = asyncio.Event()
        self._is_stopping = False
        self._is_lost = False
        self._was_alive = False
        self._schedule = PollSchedule(settings.poll_interval_ms, settings.probe_backoff_max_ms)
        self._meters: dict[str, Meter] = {}
        self._verified: dict[str, Meter] = {}
        self._mismatched_until_ms: dict[str, int] = {}
        self._clocks = ClockCare()
        self.update(line)

    def update(self, line: Line) -> None:
        """Take in which meters the line has now; its gateway stays."""
        self.line = line
        polled = [m for m in line.meters if isinstance(self._profile(m), ModbusProfile)]
        for meter in set(line.meters) - set(polled):
            unfit = f"profile {meter.profile} of meter {meter.meter_id} is not a polled one"
            self._intake.set_aside(meter, Unusable(Fault.PROFILE_UNFIT, unfit), POLLED)
        self._meters = {meter.meter_id: meter for meter in polled}
        self._schedule.set_meters(self._meters, self._clock.monotonic_ms())
        self._mismatched_until_ms = {
            name: until for name, until in self._mismatched_until_ms.items() if name in self._meters
        }
        self._wake.set()

    def submit(self, request: Request) -> None:
        """Queue a request; every request gets a reply, also one there is no room for."""
        if self._is_stopping:
            self._reply_at_once(request, Result.NOT_CONNECTED, "the line goes to another worker")
        elif len(self._requests) >= self._settings.requests_max:
            waiting = f"{len(self._requests)} requests wait for this line already; ask later"
            self._reply_at_once(request, Result.REFUSED, waiting)
        else:
            self._requests.append(request)
            self._wake.set()

    def close(self) -> None:
        """Begin no further transaction; `run` ends when the one under way has."""
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Own the line until closed."""
        backoff_ms = RECONNECT_FIRST_MS
        try:
            while not self._is_stopping:
                if not self._is_ours():
                    await self._rest()
                    continue
                is_resync = self._link.is_resync
                problem = await self._link.connect()
                if problem:
                    self._lost(problem)
                else:
                    self._connected(is_resync=is_resync)
                    await self._serve()
                    if not (self._is_stopping or self._was_alive):
                        self._lost("it accepts connections and drops them")
                if self._was_alive:
                    backoff_ms = RECONNECT_FIRST_MS
                await self._pause(backoff_ms)
                backoff_ms = min(backoff_ms * 2, self._settings.reconnect_backoff_max_ms)
        finally:
            self._link.close()
            self._refuse_waiting("the line goes to another worker")
            # The transport closes its socket on the next turn of the loop: only then is the
            # gateway's one connection free for the line's next owner.
            await asyncio.sleep(0)

    async def _rest(self) -> None:
        """Leave the line alone until it is ours again, or given up."""
        self._log.warning("line left alone: Kafka has not confirmed in time that it is ours")
        self._link.close()  # its next owner may need the gateway's one connection
        self._verified.clear()
        while not (self._is_stopping or self._is_ours()):
            await self._sleep(REST_MS)

    def _profile(self, meter: Meter) -> Profile | None:
        return self._profiles.get(meter.profile)

    def _connected(self, *, is_resync: bool) -> None:
        self._was_alive = False
        if not is_resync:
            # Whatever was wired differently meanwhile tells another number now.
            self._verified.clear()
            self._mismatched_until_ms.clear()
        if self._is_lost:
            self._schedule.reset(self._clock.monotonic_ms())

    def _alive(self) -> None:
        """Take in that the gateway keeps the connection: after an exchange, or idle."""
        if self._is_lost:
            self._log.info("line connected again")
        self._is_lost = False
        self._was_alive = True
        self._intake.gateway_heard(self.line.gateway)

    def _lost(self, why: str) -> None:
        self._was_alive = False
        if not self._is_ours():
            return
        if not self._is_lost:
            self._log.warning("line not connected", why=why)
        self._is_lost = True
        self._intake.line_lost(self.line, "not-connected")

    def _refuse_waiting(self, why: str) -> None:
        while self._requests:
            self._reply_at_once(self._requests.popleft(), Result.NOT_CONNECTED, why)

    async def _pause(self, pause_ms: int) -> None:
        """Wait before connecting again; who asks meanwhile hears at once that there is no line."""
        until_ms = self._clock.monotonic_ms() + pause_ms
        while self._is_ours() and not self._is_stopping and self._clock.monotonic_ms() < until_ms:
            if self._is_lost:
                self._refuse_waiting("the gateway accepts no connection")
            await self._sleep(until_ms - self._clock.monotonic_ms())

    async def _sleep(self, sleep_ms: int) -> None:
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(sleep_ms, 0) / 1000):
                await self._wake.wait()

    async def _serve(self) -> None:
        """Do what is due while the connection stands: requests first, then polls."""
        while self._link.is_connected and self._is_ours() and not self._is_stopping:
            if self._requests:
                await self._execute(self._requests.popleft())
                continue
            now_ms = self._clock.monotonic_ms()
            if (meter_id := self._schedule.turn(now_ms)) is not None:
                await self._poll(self._meters[meter_id])
                continue
            self._alive()
            following = self._schedule.next()
            wait_ms = IDLE_MAX_MS if following is None else following[1] - now_ms
            await self._sleep(min(wait_ms, IDLE_MAX_MS))

    async def _poll(self, meter: Meter) -> None:
        profile = self._profile(meter)
        assert isinstance(profile, ModbusProfile), "update() keeps only polled meters"
        began_ms = self._clock.monotonic_ms()
        answer = await self._verify(meter, profile)
        if answer is None:
            answer = await self._read(meter, profile, None)
            if answer.result is Result.OK:
                self._schedule.succeeded(meter.meter_id, self._clock.monotonic_ms())
                told = self._decoded(meter, profile, answer, POLLED)
                await self._tend_clock(meter, profile, told)
                return
        self._failed(meter, answer, began_ms)

    async def _tend_clock(
        self, meter: Meter, profile: ModbusProfile, told: DeviceReading | Unusable
    ) -> None:
        """Set the clock of a meter that was just read, where it is wrong; at most once a day."""
        zone, now_ms = self._intake.registry.zone(meter.site_id), self._clock.now_ms()
        is_other = isinstance(told, Unusable) and told.fault is not Fault.CLOCK_IMPOSSIBLE
        if zone is None or is_other or not self._is_ours():
            return
        ahead_ms = _ahead_ms(told, zone, now_ms)
        if not self._clocks.is_due(
            meter.meter_id, profile.name, ahead_ms=ahead_ms, now_ms=now_ms, zone=zone
        ):
            return
        result = NO_REGISTER if self._settings.set_clocks else LEFT
        registers = profile.clock if self._settings.set_clocks else None
        if registers is not None:
            words = registers.words(wall_clock(now_ms, zone))
            is_private = registers.function == WRITE_PRIVATE
            write = self._link.write_privately if is_private else self._link.write
            answer = await write(meter.unit, registers.address, words, now_ms + SET_WITHIN_MS)
            self._count("set-clock", answer)
            result = answer.result.value
            if answer.result is Result.OK:
                result = await self._read_clock_back(meter, profile, zone)
        now_ms = self._clock.now_ms()
        self._clocks.tried(meter.meter_id, profile.name, result, now_ms)
        if self._is_ours():
            self._intake.clock_tended(meter, result, ahead_ms)

    async def _read_clock_back(self, meter: Meter, profile: ModbusProfile, zone: ZoneInfo) -> str:
        answer = await self._read(meter, profile, None)
        if answer.result is not Result.OK:
            return answer.result.value
        told = self._decoded(meter, profile, answer, POLLED)
        ahead_ms = _ahead_ms(told, zone, self._clock.now_ms())
        return SET if ahead_ms is not None and abs(ahead_ms) <= TAKEN_MS_MAX else NOT_TAKEN

    def _failed(self, meter: Meter, answer: Answer, began_ms: int) -> None:
        if answer.result is Result.NOT_CONNECTED or not self._is_ours():
            return  # the line's failure, not the meter's
        failures = self._schedule.failed(meter.meter_id, began_ms, self._clock.monotonic_ms())
        if answer.result is not Result.REFUSED and failures >= (
            self._settings.offline_after_failures
        ):
            is_silent = answer.result is Result.TIMEOUT
            self._intake.meter_lost(meter, REASON_NO_ANSWER if is_silent else answer.result.value)

    async def _verify(self, meter: Meter, profile: ModbusProfile) -> Answer | None:
        """Ask a meter for its number, once a connection; return None where it is the registered.

        Else the answer that says why not: REFUSED where another meter hangs at this address.
        """
        if self._verified.get(meter.meter_id) == meter:
            return None
        now_ms = self._clock.now_ms()
        if self._clock.monotonic_ms() < self._mismatched_until_ms.get(meter.meter_id, 0):
            return Answer(Result.REFUSED, "serial-mismatch", now_ms, now_ms)
        block = profile.serial
        answer = await self._link.read(meter.unit, block.address, block.count)
        self._count("verify", answer)
        if answer.result is not Result.OK:
            return answer
        try:
            told = decode_serial(profile, answer.words)
            if is_serial_of(profile, told, meter.serial):
                self._verified[meter.meter_id] = meter
                return None
            wrong = Unusable(
                Fault.SERIAL_MISMATCH,
                f"unit {meter.unit} of line {meter.line_id} says it is {told}; meter "
                f"{meter.meter_id} is {meter.serial}: correct the wiring or the registration",
            )
        except Unusable as unusable:
            wrong = unusable
        until_ms = self._clock.monotonic_ms() + self._settings.serial_recheck_ms
        self._mismatched_until_ms[meter.meter_id] = until_ms
        self._intake.set_aside(meter, wrong, POLLED)
        return Answer(Result.REFUSED, wrong.message, answer.began_at_ms, answer.completed_at_ms)

    async def _read(self, meter: Meter, profile: ModbusProfile, not_after_ms: int | None) -> Answer:
        live = profile.live
        answer = await self._link.read(meter.unit, live.address, live.count, not_after_ms)
        self._count("read", answer)
        return answer

    def _count(self, operation: str, answer: Answer) -> None:
        self._metrics.transactions.labels(operation, answer.result.value).inc()
        seconds = (answer.completed_at_ms - answer.began_at_ms) / 1000
        self._metrics.transaction_seconds.labels(operation).observe(max(seconds, 0.0))
        if self._is_ours() and (self._link.is_connected or self._link.is_resync):
            self._alive()

    def _decoded(
        self, meter: Meter, profile: ModbusProfile, answer: Answer, source: Source
    ) -> DeviceReading | Unusable:
        is_ours = self._is_ours()  # else its successor may have told something newer
        try:
            reading = decode_live(profile, answer.words)
        except Unusable as unusable:
            if is_ours:
                self._intake.set_aside(meter, unusable, source)
            return unusable
        if is_ours:
            self._intake.take(meter, reading, source, answer.began_at_ms, answer.completed_at_ms)
        return reading

    async def _execute(self, request: Request) -> None:
        meter = self._meters.get(request.meter_id)
        profile = None if meter is None else self._profile(meter)
        if why := refusal(request, meter, profile):
            self._reply_at_once(request, Result.REFUSED, why)
            return
        assert meter is not None
        assert isinstance(profile, ModbusProfile)
        if request.not_after_ms is not None and self._clock.now_ms() > request.not_after_ms:
            self._reply_at_once(request, Result.EXPIRED, "its time had passed in the queue")
            return
        began_ms = self._clock.monotonic_ms()
        answer = await self._verify(meter, profile)
        if answer is not None:
            self._failed(meter, answer, began_ms)
            self._reply(request, answer)
        elif request.operation == OPERATION_READ:
            await self._read_live(request, meter, profile)
        else:
            assert request.address is not None
            answer = await self._link.write(
                meter.unit, request.address, request.values, request.not_after_ms
            )
            self._count("write", answer)
            self._intake.commanded(meter.meter_id)
            if answer.result in (Result.TIMEOUT, Result.MALFORMED):
                self._failed(meter, answer, began_ms)
            self._reply(request, answer)

    async def _read_live(self, request: Request, meter: Meter, profile: ModbusProfile) -> None:
        began_ms = self._clock.monotonic_ms()
        answer = await self._read(meter, profile, request.not_after_ms)
        if answer.result is not Result.OK:
            if answer.result is not Result.EXPIRED:
                self._failed(meter, answer, began_ms)
            self._reply(request, answer)
            return
        self._schedule.succeeded(meter.meter_id, self._clock.monotonic_ms())
        source = Source(POLLED.protocol, "request", request.request_id)
        reading = self._decoded(meter, profile, answer, source)
        if isinstance(reading, Unusable):
            self._reply(request, answer, Result.MALFORMED, reading.message)
            return
        mask = reading.closed_mask
        where = None if mask is None else position(profile, mask)
        self._reply(request, answer, position=where, closed_mask=mask)

    def _reply_at_once(self, request: Request, result: Result, detail: str) -> None:
        if not self._is_ours():
            return  # another worker may be executing it
        now_ms = self._clock.now_ms()
        self._reply(request, Answer(result, detail, now_ms, now_ms))

    def _reply(
        self,
        request: Request,
        answer: Answer,
        result: Result | None = None,
        detail: str | None = None,
        *,
        position: str | None = None,
        closed_mask: int | None = None,
    ) -> None:
        reply = Reply(
            request.request_id,
            request.requester,
            request.line_id,
            request.meter_id,
            (result or answer.result).value,
            answer.detail if detail is None else detail,
            answer.began_at_ms,
            answer.completed_at_ms,
            position,
            closed_mask,
        )
        self._intake.reply(reply, request.operation)


def _ahead_ms(told: DeviceReading | Unusable, zone: ZoneInfo, now_ms: int) -> int | None:
    """Return how far a meter's clock is ahead; None where it tells no time."""
    if isinstance(told, Unusable):
        return None
    return utc_ms(told.clock, zone, near_ms=now_ms) - now_ms
