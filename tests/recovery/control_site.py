"""A site of virtual meters with a real ingest, and the judge of what control did to its relays.

The meters are a process of their own, on Modbus TCP and on the MQTT broker. What their control
API says of a relay (where it stands, when its contacts moved, how many commands it accepted) is
the truth. Intents are written here, in metering's place.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from services.common.kernel.ids import column_key, name_uuid
from services.common.runtime import kafka, topics
from tests.recovery.workers import Worker, until
from tests.unit.ingest_devices import SITE, gateway_fact, meter_fact
from tools.fleet.config import (
    FleetConfig,
    GatewayConfig,
    LoadConfig,
    MeterConfig,
    MeterProfile,
    Protocol,
)
from tools.fleet.site import as_yaml
from tools.stack.background import BackgroundStack
from tools.stack.ports import LOOPBACK, free_ports
from tools.stack.services import ROOT

OPEN, CLOSED = "open", "closed"
PRODUCT = "AWT100"
LINES = 2
METERS_PER_LINE = 9
MQTT_METERS = 16
VALID_MS = 2_000
REPLY_TIMEOUT_MS = 2_500
LEASE_MS = 120_000
QUICK = {
    "COMMAND_VALID_MS": str(VALID_MS),
    "REPLY_TIMEOUT_MS": str(REPLY_TIMEOUT_MS),
    "READ_BACK_PAUSE_MS": "100",
    "BACKOFF_BASE_MS": "200",
}
"""Of control: so that a test does not wait long for a command to be void."""
LATE_MAX_MS = VALID_MS + 1_000
"""A command may still act so long after its intent was replaced: until it is void, and what
control, ingest and the contacts take."""
WRITES = ("command-outcomes", "device-requests")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class Move:
    """A relay's contacts moved."""

    position: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Truth:
    """What a meter says of its relay, which was closed at birth: its last hundred moves."""

    moves: tuple[Move, ...]
    commands_accepted: int

    @property
    def position(self) -> str:
        return self.moves[-1].position if self.moves else CLOSED

    def position_at(self, at_ms: int) -> str:
        """Return where the relay stood at an instant."""
        return Truth(tuple(m for m in self.moves if m.at_ms <= at_ms), 0).position

    def since(self, earlier: "Truth") -> list[Move]:
        """Return the moves since an earlier look."""
        if not earlier.moves:
            return list(self.moves)
        assert earlier.moves[-1] in self.moves, "more moves than a meter tells of"
        return [move for move in self.moves if move.at_ms > earlier.moves[-1].at_ms]

    def positions(self, since: "Truth") -> list[str]:
        """Return where the relay has moved to since an earlier look."""
        return [move.position for move in self.since(since)]


@dataclass(frozen=True, slots=True)
class Intent:
    """What was wanted of a meter, and its true state when it was written."""

    meter_id: str
    wanted: str
    offset: int
    decided_at_ms: int
    before: Truth


class Meters:
    """The virtual meters: a process, and its control API."""

    def __init__(self, stack: BackgroundStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._http_port = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None
        self.run = uuid4().hex[:6]
        self.config = fleet_config(self.run)

    def start(self) -> None:
        path = self._directory / "fleet.yaml"
        path.write_text(as_yaml(self.config))
        settings = {
            "CONFIG": str(path),
            "HTTP_PORT": str(self._http_port),
            "MQTT_HOST": self._stack.mqtt_host,
            "MQTT_PORT": str(self._stack.mqtt_port),
        }
        with (self._directory / "fleet.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tools.fleet"],
                cwd=ROOT,
                env={**os.environ, **{f"WATTVEND_FLEET_{k}": v for k, v in settings.items()}},
                stdout=log,
                stderr=log,
            )

    def end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def truth(self, meter_id: str) -> Truth:
        told = self._ask(f"/meters/{meter_id}")
        moves = (Move(each["position"], each["at_ms"]) for each in told["transitions"])
        truth = Truth(tuple(moves), told["commands_accepted"])
        assert truth.position == told["relay"]
        return truth

    def addresses(self) -> dict[str, str]:
        """Return gateway → address."""
        return {one["id"]: one["address"] for one in self._ask("/gateways")["gateways"]}

    def let_go(self, gateway_id: str) -> None:
        """Let a gateway lose its connection; an MQTT one leaves its session at the broker."""
        self._ask(f"/gateways/{gateway_id}/offline", {})

    def let_return(self, gateway_id: str) -> None:
        self._ask(f"/gateways/{gateway_id}/online", {})

    def is_ready(self) -> bool:
        try:
            self._ask("/health/ready")
        except OSError:
            return False
        return True

    def _ask(self, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://{LOOPBACK}:{self._http_port}{path}", data)
        with urlopen(request, timeout=10) as answer:
            assert answer.status == HTTPStatus.OK
            return json.load(answer)


def fleet_config(run: str) -> FleetConfig:
    """Return lines with polled meters, and MQTT gateways with one meter each."""
    load = LoadConfig(power_w=1_000)
    gateways, meters = [], []
    for line in range(LINES):
        gateway_id = f"G-{run}-line-{line}"
        gateways.append(GatewayConfig(id=gateway_id, protocol=Protocol.MODBUS_TCP))
        meters += [
            MeterConfig(
                id=f"M-{run}-line-{line}-{unit}",
                serial=f"{int(run, 16) % 10**8:08}{line:02}{unit:02}",
                gateway=gateway_id,
                unit=unit,
                profile=MeterProfile.DDSY1352,
                load=load,
            )
            for unit in range(1, METERS_PER_LINE + 1)
        ]
    for number in range(MQTT_METERS):
        gateway_id = f"G-{run}-mqtt-{number}"
        gateways.append(
            GatewayConfig(
                id=gateway_id,
                protocol=Protocol.MQTT_ACREL,
                product=PRODUCT,
                serial=f"g{run}{number}",
            )
        )
        meters.append(
            MeterConfig(
                id=f"M-{run}-mqtt-{number}",
                serial=f"m{run}{number}",
                gateway=gateway_id,
                profile=MeterProfile.MQTT,
                load=load,
            )
        )
    return FleetConfig(zone="UTC", gateways=tuple(gateways), meters=tuple(meters))


class World:
    """The site, for all tests of a module: meters, their registration, ingest."""

    def __init__(self, stack: BackgroundStack, directory: Path) -> None:
        self.bootstrap = stack.kafka_bootstrap
        self.mqtt = {"MQTT_HOST": stack.mqtt_host, "MQTT_PORT": str(stack.mqtt_port)}
        self.directory = directory
        self.meters = Meters(stack, directory)
        self.site_id = f"S-{self.meters.run}"
        self.ingest = Worker(
            "ingest",
            {
                "KAFKA_BOOTSTRAP": self.bootstrap,
                **self.mqtt,
                "POLL_INTERVAL_MS": "1000",
                "LINGER_MS": "50",
            },
            directory,
            f"ingest-{self.meters.run}",
        )
        self.offsets = 0
        self._unused = list(self.meters.config.meters)

    async def start(self) -> None:
        await topics.create(self.bootstrap)
        self.meters.start()
        await until(self.meters.is_ready, "the virtual meters are ready")
        async with kafka.producer(self.bootstrap, client_id="vending") as producer:
            for subject, entity, record in self._facts():
                await send(producer, "registry", subject, record, key=entity, route=entity)
        self.ingest.start()
        await self.ingest.wait_ready()
        await self._all_online()

    def end(self) -> None:
        self.ingest.end()
        self.meters.end()

    def line_meters(self, count: int) -> list[str]:
        """Return polled meters that no test has had."""
        return self._take(count, "-line-")

    def mqtt_meters(self, count: int) -> list[str]:
        """Return MQTT meters that no test has had, each behind a gateway of its own."""
        return self._take(count, "-mqtt-")

    def _take(self, count: int, kind: str) -> list[str]:
        taken = [meter for meter in self._unused if kind in meter.id][:count]
        assert len(taken) == count, f"the site needs more meters: {kind}"
        self._unused = [meter for meter in self._unused if meter not in taken]
        return [meter.id for meter in taken]

    def gateway_of(self, meter_id: str) -> str:
        (gateway_id,) = (m.gateway for m in self.meters.config.meters if m.id == meter_id)
        return gateway_id

    def line_of(self, meter_id: str) -> str:
        return f"line-{self.gateway_of(meter_id)}"

    def control(self, instance: str = "control-0", *, name: str = "", **settings: str) -> Worker:
        """Return a worker that is not started; `name` of its log, where its instance has two."""
        chosen = {"KAFKA_BOOTSTRAP": self.bootstrap, **self.mqtt, **QUICK, **settings}
        return Worker("control", chosen, self.directory, instance, name)

    async def restart_ingest(self, switch: Sequence[str] = ()) -> None:
        """Kill ingest, however it stands, and start it again."""
        await self.ingest.kill()
        self.ingest.start(switch=switch)
        await self.ingest.wait_ready()

    def _facts(self) -> Iterable[tuple[str, str, dict[str, Any]]]:
        site = {**SITE, "site_id": self.site_id, "zone": "UTC", "cuts_per_minute": 10_000}
        yield "site-fact", f"sites/{self.site_id}", site
        addresses = self.meters.addresses()
        for gateway in self.meters.config.gateways:
            fact = gateway_fact(
                gateway.id, protocol=gateway.protocol.value, address=addresses[gateway.id]
            )
            fact["site_id"] = self.site_id
            yield "gateway-fact", f"gateways/{gateway.id}", fact
        for meter in self.meters.config.meters:
            fact = meter_fact(
                meter.id,
                serial=meter.serial,
                gateway_id=meter.gateway,
                site_id=self.site_id,
                profile=meter.profile.value,
                unit=meter.unit,
                ratio=1,
                epoch=1,
            )
            yield "meter-fact", f"meters/{meter.id}", fact

    async def _all_online(self) -> None:
        missing = {f"meters/{meter.id}" for meter in self.meters.config.meters}
        async with kafka.consumer(
            self.bootstrap, "device-status", client_id="test-status"
        ) as reader:
            async with asyncio.timeout(30):
                async for record in reader:
                    _, status = kafka.opened(record)
                    if status["status"] == "online":
                        missing.discard(status["device_id"])
                    if not missing:
                        return


async def send(
    producer: AIOKafkaProducer,
    topic: str,
    subject: str,
    record: dict[str, Any],
    *,
    key: str,
    route: str,
) -> None:
    await (
        await kafka.send(
            producer,
            topic,
            subject,
            record,
            key=key,
            route=route,
            event_id=uuid4(),
            occurred_at_ms=now_ms(),
        )
    )


@dataclass
class Desk:
    """Writes intents, in metering's place, and keeps everything that control writes."""

    world: World
    _producer: AIOKafkaProducer
    outcomes: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)

    async def intend(
        self, wanted: Mapping[str, str], *, lease_ms: int = LEASE_MS, mode: str = "prepaid"
    ) -> list[Intent]:
        """Write an intent for each meter, all in one batch."""
        intents = [self._intent(meter_id, position) for meter_id, position in wanted.items()]
        flights = [
            await kafka.send(
                self._producer,
                "relay-intents",
                "relay-intent",
                self._record(intent, lease_ms, mode),
                key=intent.meter_id,
                route=self.world.site_id,
                event_id=name_uuid("intent", intent.meter_id, intent.offset),
                occurred_at_ms=intent.decided_at_ms,
            )
            for intent in intents
        ]
        await kafka.all_acknowledged(flights)
        return intents

    def _intent(self, meter_id: str, wanted: str) -> Intent:
        self.world.offsets += 1
        before = self.world.meters.truth(meter_id)
        return Intent(meter_id, wanted, self.world.offsets, now_ms(), before)

    def _record(self, intent: Intent, lease_ms: int, mode: str) -> dict[str, Any]:
        is_cut = intent.wanted == OPEN
        unknown = dict.fromkeys(
            (
                "cause_meter_id",
                "threshold_nano",
                "policy_id",
                "policy_version",
                "tariff_id",
                "tariff_version",
                "charge_epoch",
                "charge_sequence",
                "from_reading_id",
                "to_reading_id",
                "reading_received_at_ms",
                "arrears_since_ms",
                "notice_id",
                "notice_outcome",
            )
        )
        return {
            **unknown,
            "meter_id": intent.meter_id,
            "meter_key": column_key("meter", intent.meter_id),
            "line_id": self.world.line_of(intent.meter_id),
            "epoch": 1,
            "version_offset": intent.offset,
            "shard": 0,
            "wanted": intent.wanted,
            "mode": mode,
            "cause": "arrears" if is_cut else "paid",
            "send_before_ms": intent.decided_at_ms + lease_ms if is_cut else None,
            "account_id": "A1",
            "site_id": self.world.site_id,
            "available_nano": 0,
            "account_sequence": 1,
            "account_revision": 1,
            "book_epoch": 1,
            "currency": "CNY",
            "legal_entity": "E1",
            "commodity": "electricity",
            "decided_at_ms": intent.decided_at_ms,
        }

    def told(self, intent: Intent, *results: str) -> list[dict[str, Any]]:
        """Return the outcomes of an intent, each once, in their order; all, or these results."""
        found = {
            (outcome["outcome_id"], outcome["request_id"]): outcome
            for outcome in self.outcomes
            if (outcome["meter_id"], outcome["intent_offset"]) == (intent.meter_id, intent.offset)
            and (not results or outcome["result"] in results)
        }
        return list(found.values())

    async def are_told(self, intents: Iterable[Intent], *results: str) -> None:
        """Wait until one of these results is told for each of the intents."""
        for intent in intents:
            await until(
                lambda it=intent: bool(self.told(it, *results)),  # type: ignore[misc]
                f"{intent.meter_id} is told {results}: {self._story(intent)}",
            )

    def _story(self, intent: Intent) -> list[tuple[str, int, str]]:
        return [(o["result"], o["attempt"], o["detail"]) for o in self.told(intent)]

    # -- the judge

    def judge(self, intents: Iterable[Intent]) -> int:
        """Fail unless each relay stands as its newest intent wants, and everything told is true.

        `intents`: all that were written for these meters since a moment. Returns how many.
        """
        histories: dict[str, list[Intent]] = {}
        for intent in intents:
            histories.setdefault(intent.meter_id, []).append(intent)
        for meter_id, history in histories.items():
            truth = self.world.meters.truth(meter_id)
            newest = history[-1]
            story = f"{meter_id}, wanted {newest.wanted}: {self._story(newest)}"
            assert truth.position == newest.wanted, f"stands wrong: {story}"
            assert self.told(newest, "confirmed"), f"not confirmed: {story}"
            self._judge_moves(history, truth, story)
            sent_count = sum(self._judge_attempts(intent, story) for intent in history)
            accepted = truth.commands_accepted - history[0].before.commands_accepted
            assert accepted <= sent_count, f"the meter got more commands than were told: {story}"
            for intent in history:
                self._judge_confirmed(intent, truth, story)
        return sum(map(len, histories.values()))

    def judge_never_moved(self, intents: Iterable[Intent]) -> int:
        """Fail where a relay has moved since the intent was written; return how many."""
        count = 0
        for intent in intents:
            moved = self.world.meters.truth(intent.meter_id).positions(intent.before)
            assert not moved, f"{intent.meter_id} was moved: {moved}"
            count += 1
        return count

    def _judge_moves(self, history: list[Intent], truth: Truth, story: str) -> None:
        """No move but to where an intent wanted it, and none for one that was replaced long ago."""
        moves = truth.since(history[0].before)
        if all(self.told(intent, "confirmed") for intent in history):
            stood, needed = history[0].before.position, []
            for intent in history:
                needed += [intent.wanted] if intent.wanted != stood else []
                stood = intent.wanted
            assert [move.position for move in moves] == needed, f"moved without need: {story}"
            return
        replaced_at_ms = [later.decided_at_ms for later in history[1:]] + [now_ms()]
        for move in moves:
            wanted = {
                intent.wanted
                for intent, until_ms in zip(history, replaced_at_ms, strict=True)
                if intent.decided_at_ms <= move.at_ms <= until_ms + LATE_MAX_MS
            }
            assert move.position in wanted, f"moved as nobody wanted: {move}: {story}"

    def _judge_attempts(self, intent: Intent, story: str) -> int:
        """Return how many commands were told: each before it left, one after the other."""
        sent = self.told(intent, "sent")
        numbers = [outcome["attempt"] for outcome in sent]
        assert numbers == list(range(1, len(sent) + 1)), f"attempts are told wrong: {story}"
        untold = self.commanded(intent) - {outcome["request_id"] for outcome in sent}
        assert not untold, f"a command left that nothing tells: {story}"
        over = {outcome["attempt"] for outcome in self.told(intent, "failed")}
        assert set(numbers[:-1]) <= over, f"repeated before the first was over: {story}"
        return len(sent)

    def commanded(self, intent: Intent) -> set[str]:
        """Return the writes that were requested of the line's owner."""
        return {
            request["request_id"]
            for request in self.requests
            if request["operation"] == "write-registers"
            and (request["meter_id"], request["intent_offset"]) == (intent.meter_id, intent.offset)
        }

    def _judge_confirmed(self, intent: Intent, truth: Truth, story: str) -> None:
        """Each rests on a read that began after the command was completed, and is true."""
        told = self.told(intent, "confirmed")
        commanded = [outcome["commanded_at_ms"] for outcome in self.told(intent, "sent")]
        for outcome in told:
            began_at_ms = outcome["read_back_began_at_ms"]
            assert outcome["read_back_position"] == intent.wanted, story
            assert began_at_ms > intent.decided_at_ms, f"an old read confirms: {story}"
            assert all(began_at_ms > at_ms for at_ms in commanded), f"an old read: {story}"
            if outcome["completed_at_ms"] is not None:
                assert began_at_ms >= outcome["completed_at_ms"], f"an early read: {story}"
            stood = truth.position_at(outcome["decided_at_ms"])
            assert stood == intent.wanted, f"confirmed what was not: {story}"


@asynccontextmanager
async def desk_of(world: World) -> AsyncIterator[Desk]:
    """Open a desk for one test."""
    places = [
        TopicPartition(name, number)
        for name in WRITES
        for number in range(topics.catalogue().partitions_of(name))
    ]
    # The linger puts the intents of one moment into one batch: a worker hears them together.
    async with (
        kafka.producer(world.bootstrap, client_id="metering", linger_ms=50) as producer,
        kafka.consumer(world.bootstrap, client_id="judge") as reader,
    ):
        reader.assign(places)
        await reader.seek_to_end(*places)
        desk = Desk(world, producer)
        listening = asyncio.create_task(_listen(reader, desk))
        try:
            yield desk
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)


async def _listen(reader: AIOKafkaConsumer, desk: Desk) -> None:
    async for record in reader:
        _, value = kafka.opened(record)
        if record.topic == "command-outcomes":
            desk.outcomes.append(value)
        else:
            desk.requests.append(value)
