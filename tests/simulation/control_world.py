"""A world for control without sockets: meters with relays, lines that lose things, logs, a clock.

The world plays Kafka (records in order per topic, but each topic may stall while others go on;
records may come twice), ingest (executes requests in order, one at a time, not after their time),
the devices, and control's own shell with crashes at its worst point: after `sent` is told, before
the command leaves. It judges every promise from outside, when commands are sent and when relays
move; a broken promise raises AssertionError at that moment.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from services.common.runtime.profiles import profiles
from services.control.domain.brake import WINDOW_MS
from services.control.domain.delivery import Limits
from services.control.domain.desk import Act, Desk
from services.control.domain.messages import (
    DeviceStatus,
    Gateway,
    Intent,
    LineRequest,
    Meter,
    MqttCommand,
    Outcome,
    RelayState,
    Reply,
    Result,
    Site,
)

START_MS = 1_800_000_000_000
STEP_MS = 50
EXCHANGE_MS = 20
PARTITION = 1
SITE = "S1"
POLLED, PUSHING = "polled", "pushing"
TOPICS = ("registry", "device-status", "relay-intents", "relay-states", "device-replies")
LIMITS = Limits(backoff_max_ms=4_000)
RECOVER_MS = 600_000
REPLIES_SINCE_MS = 2 * LIMITS.reply_timeout_ms
OPEN_VALUES = (1, 1)


@dataclass
class Device:
    """A meter as it truly is. `moves`: (when, position) since the start; `commanded`: by control.

    `moving`: those of them whose contacts are still on their way.

    `is_stuck`: it acknowledges commands and does not move; `answer`: what it replies to a write.
    """

    meter: Meter
    kind: str
    position: str = "closed"
    is_online: bool = True
    is_stuck: bool = False
    answer: str = "ok"
    moves: list[tuple[int, str]] = field(default_factory=list)
    commanded: list[tuple[int, str]] = field(default_factory=list)
    moving: list[tuple[int, str]] = field(default_factory=list)

    def position_at(self, at_ms: int) -> set[str]:
        """Return where the relay stood at, or within, that millisecond."""
        stood = {position for moved_ms, position in self.moves if moved_ms == at_ms}
        before = [position for moved_ms, position in self.moves if moved_ms < at_ms]
        return stood | {before[-1] if before else "closed"}


@dataclass
class Pending:
    """A command on its way to a device."""

    command: LineRequest | MqttCommand
    arrives_ms: int


class World:
    """Meters M0 (polled), M1 (polled), M2 (over MQTT), … of one site, and control."""

    def __init__(self, kinds: tuple[str, ...], *, budget_count: int = 3) -> None:
        self.now_ms = START_MS
        self.budget_count = budget_count
        self.devices: dict[str, Device] = {}
        self.log: dict[str, list[tuple[int, object]]] = {topic: [] for topic in TOPICS}
        self.undelivered: dict[str, deque[object]] = {topic: deque() for topic in TOPICS}
        self.stalled: set[str] = set()
        self.outcomes: list[Outcome] = []
        self.leaving: list[Act] = []
        self.pending: list[Pending] = []
        self.pending_pushes: list[tuple[int, Device]] = []
        self.sent_cuts_ms: list[int] = []
        self.commands: list[LineRequest | MqttCommand] = []
        self.known_intent: dict[str, Intent] = {}
        self.close_known_ms: dict[str, int] = {}
        self.known_epoch: dict[str, int] = {}
        self.is_held_known = False
        self.status_known: dict[str, str] = {}
        self.exchange_ms = EXCHANGE_MS
        self.actuation_ms = 0
        self.requests_to_lose = 0
        self.replies_to_lose = 0
        self.offsets = 0
        self.site = Site(SITE, cuts_held=False, cuts_per_minute=budget_count, version=(1, 0))
        self.desk = Desk(profiles(), LIMITS)
        self.publish("registry", self.site)
        for number, kind in enumerate(kinds):
            self._add(f"M{number}", kind)
        self.restart(is_crash=False)

    def _add(self, meter_id: str, kind: str) -> None:
        gateway_id = f"G-{meter_id}"
        profile = "acrel-ddsy1352" if kind == POLLED else "acrel-mqtt"
        address = "127.0.0.1:1502" if kind == POLLED else f"AWT100/{gateway_id}"
        line_id = f"L-{meter_id}"
        meter = Meter(
            meter_id, f"SN{meter_id}", SITE, gateway_id, line_id, 1, profile, 1, version=(1, 0)
        )
        self.devices[meter_id] = Device(meter, kind)
        self.publish("registry", Gateway(gateway_id, address, (1, 0)))
        self.publish("registry", meter)
        self.publish("device-status", DeviceStatus(f"meters/{meter_id}", "online", self.now_ms))

    # -- Kafka

    def publish(self, topic: str, value: object) -> None:
        self.log[topic].append((self.now_ms, value))
        self.undelivered[topic].append(value)

    def deliver(self) -> None:
        """Give control what has arrived on the topics that do not stall."""
        for topic in TOPICS:
            while self.undelivered[topic] and topic not in self.stalled:
                self.hear(self.undelivered[topic].popleft())

    def hear(self, value: object) -> None:
        self._note_known(value)
        match value:
            case Intent() | RelayState():
                acts = self.desk.hear(PARTITION, value, self.now_ms)
            case Reply():
                acts = self.desk.answer(value, self.now_ms)
            case Meter() | Gateway() | Site() | DeviceStatus():
                acts = self.desk.learn(value, self.now_ms)
            case _:
                raise AssertionError(value)
        self.do(acts)

    def _note_known(self, value: object) -> None:
        match value:
            case Intent():
                known = self.known_intent.get(value.meter_id)
                if known is None or value.version > known.version:
                    self.known_intent[value.meter_id] = value
                    if not value.is_cut:
                        self.close_known_ms[value.meter_id] = self.now_ms
            case Site():
                self.is_held_known = value.cuts_held
            case Meter():
                self.known_epoch[value.meter_id] = value.epoch
            case DeviceStatus():
                self.status_known[value.device_id] = value.status

    def repeat_last(self, topic: str) -> None:
        """Deliver the last delivered record once more, as a consumer that lost its place does."""
        delivered = self.log[topic][: len(self.log[topic]) - len(self.undelivered[topic])]
        if delivered:
            self.hear(delivered[-1][1])

    # -- control's shell

    def do(self, acts: list[Act]) -> None:
        """Tell outcomes at once; commands leave a moment later, or never, if control dies."""
        for act in acts:
            if isinstance(act.action, Outcome):
                self.outcomes.append(act.action)
                self._judge_outcome(act.action)
            else:
                self.leaving.append(act)

    def leave(self) -> None:
        """Let the decided commands go."""
        leaving, self.leaving = self.leaving, []
        commands, more = self.desk.leaving(leaving, self.now_ms)
        self.do(more)
        for command in commands:
            self._judge_command(command)
            self.commands.append(command)
            if self.requests_to_lose:
                self.requests_to_lose -= 1
            else:
                self.pending.append(Pending(command, self.now_ms + self.exchange_ms))

    def restart(self, *, is_crash: bool) -> None:
        """Kill control, with what had not left yet, and start it on the logs."""
        if not is_crash:
            self.leave()
        self.leaving = []
        self.stalled.clear()
        self.known_intent, self.close_known_ms, self.status_known = {}, {}, {}
        self.desk = Desk(profiles(), LIMITS)
        self.desk.open(PARTITION)
        for topic in TOPICS:
            self.undelivered[topic].clear()
            for at_ms, value in self.log[topic]:
                if topic != "device-replies" or at_ms >= self.now_ms - REPLIES_SINCE_MS:
                    self.hear(value)
        assert not self.leaving, "control acted before it had read its partitions"
        for outcome in self.outcomes:
            if outcome.decided_at_ms >= self.now_ms - RECOVER_MS:
                # What an outcome keeps of its intent: no lease, no instant of decision.
                kept = replace(
                    outcome.intent, send_before_ms=None, decided_at_ms=outcome.decided_at_ms
                )
                self.desk.hear(PARTITION, replace(outcome, intent=kept), self.now_ms)
        self.do(self.desk.begin(PARTITION, self.now_ms))

    # -- lines and devices

    def work(self) -> None:
        """Execute what has arrived: one exchange a device, in order."""
        for device in self.devices.values():
            self._actuate(device)
            of = device.meter.meter_id
            arrived = [p for p in self.pending if p.command.meter.meter_id == of]
            for pending in arrived:
                if pending.arrives_ms <= self.now_ms:
                    self.pending.remove(pending)
                    self._exchange(device, pending.command)

    def _exchange(self, device: Device, command: LineRequest | MqttCommand) -> None:
        is_read = isinstance(command, LineRequest) and command.address is None
        if self.now_ms > command.not_after_ms:
            self._reply(command, "expired")
        elif not device.is_online:
            self._reply(command, "timeout")
        elif is_read:
            self.publish_state(device)
            self._reply(command, "ok", device.position)
        else:
            self._judge_move(device, command)
            if device.answer == "ok" and not device.is_stuck:
                moves_ms = self.now_ms + self.actuation_ms
                device.commanded.append((moves_ms, _position_of(command)))
                device.moving.append((moves_ms, _position_of(command)))
                self._actuate(device)
            self._reply(command, device.answer)
            if isinstance(command, MqttCommand):
                self.pending_pushes.append((self.now_ms + self.actuation_ms + 1, device))

    def _reply(
        self, command: LineRequest | MqttCommand, result: str, position: str | None = None
    ) -> None:
        if self.replies_to_lose:
            self.replies_to_lose -= 1
            return
        reply = Reply(command.request_id, result, "", self.now_ms, self.now_ms, position)
        self.publish("device-replies", reply)

    def _actuate(self, device: Device) -> None:
        """Let the contacts move whose time has come."""
        while device.moving and device.moving[0][0] <= self.now_ms:
            self._move(device, device.moving.pop(0)[1])

    def _move(self, device: Device, position: str) -> None:
        device.position = position
        device.moves.append((self.now_ms, position))

    def publish_state(self, device: Device) -> None:
        state = RelayState(device.meter.meter_id, device.position, self.now_ms)
        self.publish("relay-states", state)

    # -- what can happen

    def intend(self, meter_id: str, wanted: str, *, lease_ms: int = 60_000) -> Intent:
        """Let metering decide: a new intent of the meter's epoch."""
        self.offsets += 1
        meter = self.devices[meter_id].meter
        send_before_ms = self.now_ms + lease_ms if wanted == "open" else None
        intent = Intent(
            meter_id,
            "A1",
            SITE,
            meter.line_id,
            meter.epoch,
            self.offsets,
            wanted,
            "prepaid",
            send_before_ms,
            self.now_ms,
            "arrears" if wanted == "open" else "paid",
        )
        self.publish("relay-intents", intent)
        return intent

    def force(self, meter_id: str, position: str) -> Intent:
        """Let a person order a position: off, on, or released; of a cut account, to wait."""
        wanted, mode, cause, send_before_ms = {
            "off": ("open", "forced-off", "forced", None),
            "on": ("closed", "forced-on", "forced", None),
            "released": ("closed", "prepaid", "released", None),
            "released-cut": ("open", "prepaid", "released", self.now_ms),
        }[position]
        self.offsets += 1
        meter = self.devices[meter_id].meter
        line_id, version = meter.line_id, (meter.epoch, self.offsets)
        intent = Intent(
            *(meter_id, "A1", SITE, line_id, *version, wanted, mode),
            *(send_before_ms, self.now_ms, cause),
        )
        self.publish("relay-intents", intent)
        return intent

    def hold(self, *, is_held: bool) -> None:
        version = (1, self.site.version[1] + 1)
        self.site = replace(self.site, cuts_held=is_held, version=version)
        self.publish("registry", self.site)

    def reassign(self, meter_id: str) -> None:
        """Give the meter to another account: its epoch rises."""
        device = self.devices[meter_id]
        version = (1, device.meter.version[1] + 1)
        device.meter = replace(device.meter, epoch=device.meter.epoch + 1, version=version)
        self.publish("registry", device.meter)

    def go(self, meter_id: str, *, is_online: bool, is_told: bool) -> None:
        device = self.devices[meter_id]
        device.is_online = is_online
        if is_told:
            status = "online" if is_online else "offline"
            self.publish("device-status", DeviceStatus(f"meters/{meter_id}", status, self.now_ms))

    def poll(self, meter_id: str) -> None:
        device = self.devices[meter_id]
        if device.is_online:
            self.publish_state(device)

    def move_by_hand(self, meter_id: str, position: str) -> None:
        self._move(self.devices[meter_id], position)

    def lose_line_owner(self) -> None:
        """Lose every request on its way: the next owner starts at the partition's end."""
        self.pending = [p for p in self.pending if isinstance(p.command, MqttCommand)]

    def run(self, for_ms: int, *, poll_every_ms: int = 0, step_ms: int = STEP_MS) -> None:
        """Let time pass in steps."""
        for step in range(max(1, for_ms // step_ms)):
            self.now_ms += step_ms
            if poll_every_ms and (step * step_ms) % poll_every_ms == 0:
                for meter_id in self.devices:
                    self.poll(meter_id)
            for push in [p for p in self.pending_pushes if p[0] <= self.now_ms]:
                self.pending_pushes.remove(push)
                if push[1].is_online:
                    self.publish_state(push[1])
            self.work()
            self.deliver()
            self.do(self.desk.tick(self.now_ms))
            self.leave()

    def run_until(self, is_so: Callable[[], bool], within_ms: int) -> None:
        until_ms = self.now_ms + within_ms
        while not is_so():
            assert self.now_ms < until_ms, "it did not come to pass"
            self.run(STEP_MS)

    def told(self, meter_id: str) -> list[tuple[str, int]]:
        """Return (result, attempt) of each outcome of a meter."""
        return [(o.result.value, o.attempt) for o in self.outcomes if o.intent.meter_id == meter_id]

    # -- the judge

    def _judge_command(self, command: LineRequest | MqttCommand) -> None:
        if isinstance(command, LineRequest) and command.address is None:
            return
        meter_id, now_ms = command.meter.meter_id, self.now_ms
        alive = [
            p
            for p in self.pending
            if p.command.meter.meter_id == meter_id
            and now_ms <= p.command.not_after_ms
            and not (isinstance(p.command, LineRequest) and p.command.address is None)
        ]
        assert not alive, f"{meter_id} has a second command in flight"
        known = self.known_intent[meter_id]
        assert known.wanted == ("open" if _position_of(command) == "open" else "closed")
        assert command.intent.epoch == self.known_epoch[meter_id], "the meter is another's now"
        assert command.not_after_ms <= now_ms + LIMITS.command_valid_ms
        if isinstance(command, MqttCommand):
            online = self.status_known.get(f"meters/{meter_id}") is not None
            assert online, "an MQTT command went to a device that was never seen"
        if _position_of(command) == "open":
            if command.intent.mode != "forced-off":  # what a person orders does not expire
                assert command.intent.send_before_ms is not None
                assert command.intent.send_before_ms > command.intent.decided_at_ms
                assert now_ms <= command.intent.send_before_ms + STEP_MS
                assert command.not_after_ms <= command.intent.send_before_ms
            assert not self.is_held_known, "a cut was sent while cuts were held"

    def _judge_move(self, device: Device, command: LineRequest | MqttCommand) -> None:
        if _position_of(command) != "open":
            return
        close_known_ms = self.close_known_ms.get(device.meter.meter_id)
        known = self.known_intent.get(device.meter.meter_id)
        if close_known_ms is None or known is None or known.is_cut:
            return
        assert self.now_ms - close_known_ms <= LIMITS.command_valid_ms
        assert command.intent.version < known.version

    def _judge_outcome(self, outcome: Outcome) -> None:
        if outcome.result is Result.SENT and outcome.intent.is_cut:
            assert outcome.commanded_at_ms is not None
            self.sent_cuts_ms.append(outcome.commanded_at_ms)
            since_ms = outcome.commanded_at_ms - WINDOW_MS
            lately = [at_ms for at_ms in self.sent_cuts_ms if at_ms > since_ms]
            assert len(lately) <= self.budget_count, "the site's budget was passed"
        if outcome.result is not Result.CONFIRMED:
            return
        began_ms = outcome.read_back_began_at_ms
        assert began_ms is not None
        assert outcome.read_back_position == outcome.intent.wanted
        if outcome.completed_at_ms is not None:
            assert began_ms >= outcome.completed_at_ms
        device = self.devices[outcome.intent.meter_id]
        assert began_ms > outcome.intent.decided_at_ms, "confirmed by a read before the decision"
        assert outcome.intent.wanted in device.position_at(began_ms), "confirmed what never was"
        later = {position for at_ms, position in device.commanded if at_ms > began_ms}
        assert later <= {outcome.intent.wanted}, "confirmed what control itself had changed since"


def _position_of(command: LineRequest | MqttCommand) -> str:
    if isinstance(command, LineRequest):
        return "open" if command.values == OPEN_VALUES else "closed"
    return "closed" if dict(command.payload)["relay"] else "open"
