"""Goal: however control is killed or stopped, relays end where they are wanted, and it is true.

Method: real meters on their protocols, the real ingest, control as a process that is killed at
each step of a delivery, at random, or stopped and woken. Intents are written in metering's place.
The judge reads the meters' own record of their relays, and the topics: see `control_site`.
"""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

import pytest

from tests.recovery import control_site
from tests.recovery.control_site import (
    CLOSED,
    OPEN,
    REPLY_TIMEOUT_MS,
    VALID_MS,
    Desk,
    Intent,
    World,
    now_ms,
)
from tests.recovery.faults import Fault, rounds
from tests.recovery.workers import Worker, until
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

SEED = 20262
BOUNDARIES = {
    "decided-sent": 1,
    "told-sent": 4,
    "left-command": 4,
    "decided-acknowledged": 2,
    "told-acknowledged": 3,
    "left-read-back": 2,
    "decided-confirmed": 1,
    "told-confirmed": 4,
}
"""Which of four deliveries that are under way together passes it; two of them are on a line."""
CONFIRMED_WITHIN_MS = REPLY_TIMEOUT_MS + 2_000
"""After a restart: what may be under way has to be void first."""
EXIT_FENCED = 73
RANDOM_KILLS = 4
AT_ONCE = 6
LEASE_SHORT_MS = 4_000
ONE_RULE_OFF: Sequence[tuple[list[str], list[str]]] = (
    (["requests_do_not_expire"], []),
    ([], ["starts_at_the_beginning"]),
)
"""Switches of control and of ingest."""
VALID_LONG_MS = 30_000
LONG_VALID = {"COMMAND_VALID_MS": str(VALID_LONG_MS), "REPLY_TIMEOUT_MS": "40000"}
"""So that a command is not void by the time its sender's partitions are another's."""


@pytest.fixture(scope="module")
def world(stack: BackgroundStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(stack, tmp_path_factory.mktemp("control"))
    try:
        asyncio.run(world.start())
        yield world
    finally:
        world.end()


@pytest.fixture
async def desk(world: World) -> AsyncIterator[Desk]:
    async with control_site.desk_of(world) as desk:
        yield desk


@pytest.fixture
def control(world: World) -> Iterator[Worker]:
    control = world.control()
    yield control
    control.end()


async def delivered(desk: Desk, wanted: dict[str, str]) -> list[Intent]:
    """Write intents and wait until they are confirmed."""
    intents = await desk.intend(wanted)
    await desk.are_told(intents, "confirmed")
    return intents


# --- killed ---------------------------------------------------------------------------------------


async def killed_at(desk: Desk, control: Worker, at: str, hit: int, wanted: dict[str, str]) -> int:
    """Kill control at a boundary of the delivery, start it again, judge; return how many."""
    control.start(at, hit=hit)
    await control.wait_ready()
    intents = await desk.intend(wanted)
    await control.wait_ended()
    control.start()
    await control.wait_ready()
    ready_at_ms = now_ms()
    await desk.are_told(intents, "confirmed")
    assert now_ms() - ready_at_ms < CONFIRMED_WITHIN_MS
    judged = desk.judge(intents)
    await control.kill()
    return judged


@pytest.mark.fault("control-killed-at-each-boundary")
async def test_killed_at_each_boundary_it_delivers_once_and_tells_the_truth(
    world: World, desk: Desk, control: Worker, fault: Fault
) -> None:
    """Four deliveries are under way each time: cut and restore, on a line and over MQTT."""
    cut = [*world.line_meters(1), *world.mqtt_meters(1)]
    restored = [*world.line_meters(1), *world.mqtt_meters(1)]
    control.start()
    await control.wait_ready()
    await delivered(desk, dict.fromkeys(restored, OPEN))
    await control.kill()
    for _ in rounds(1):
        for boundary, hit in BOUNDARIES.items():
            wanted = {**dict.fromkeys(cut, OPEN), **dict.fromkeys(restored, CLOSED)}
            fault.judged += await killed_at(desk, control, boundary, hit, wanted)
            fault.tried += 1
            cut, restored = restored, cut


@pytest.mark.parametrize(
    ("rule_off", "at", "said"),
    [
        ("sent_comes_last", "left-command", "a command left that nothing tells"),
        ("forgets_what_it_told", "told-sent", "attempts are told wrong"),
    ],
)
async def test_without_what_is_told_before_a_command_leaves_a_kill_is_not_survived(
    world: World, desk: Desk, control: Worker, rule_off: str, at: str, said: str
) -> None:
    (meter,) = world.line_meters(1)
    control.start(at, switch=[rule_off])
    await control.wait_ready()
    intents = await desk.intend({meter: OPEN})
    await control.wait_ended()
    control.start(switch=[rule_off])
    await desk.are_told(intents, "confirmed")
    with pytest.raises(AssertionError, match=said):
        desk.judge(intents)


@pytest.mark.fault("control-killed-at-random")
async def test_killed_at_random_under_a_stream_of_intents_every_relay_ends_as_wanted(
    world: World, desk: Desk, control: Worker, fault: Fault
) -> None:
    chance = random.Random(SEED)
    meters = [*world.line_meters(4), *world.mqtt_meters(4)]
    control.start()
    await control.wait_ready()
    for _ in rounds(1):
        written: list[Intent] = []
        for _ in range(RANDOM_KILLS):
            written += await stream(desk, meters, chance)
            await control.kill()
            fault.tried += 1
            control.start()
        newest = {intent.meter_id: intent for intent in written}
        await desk.are_told(newest.values(), "confirmed")
        fault.judged += desk.judge(written)


async def stream(desk: Desk, meters: Sequence[str], chance: random.Random) -> list[Intent]:
    """Write intents; some replace others before they are delivered, some find control away."""
    written: list[Intent] = []
    for _ in range(3):
        heard = len(desk.outcomes) + chance.randint(1, AT_ONCE)
        some = chance.sample(meters, AT_ONCE)
        written += await desk.intend({meter: chance.choice((OPEN, CLOSED)) for meter in some})
        await until(
            lambda heard=heard: len(desk.outcomes) >= heard,  # type: ignore[misc]
            "control tells what it does",
        )
    return written


# --- stopped and woken ----------------------------------------------------------------------------


async def woken_after_a_payment(
    desk: Desk, zombie: Worker, successor: Worker, meters: list[str], switch: Sequence[str]
) -> list[list[Intent]]:
    """Stop a worker with two cuts decided; let its successor cut and restore; wake it.

    Return what was written, for each meter.
    """
    truth = desk.world.meters.truth
    switch = ["news_come_late", *switch]
    zombie.start("decided-sent", hit=len(meters), by=signal.SIGSTOP, switch=switch)
    await zombie.wait_ready()
    cuts = await desk.intend(dict.fromkeys(meters, OPEN))
    await until(lambda: zombie.is_stopped, "it is stopped")
    successor.start()
    await desk.are_told(cuts, "confirmed")
    restores = await delivered(desk, dict.fromkeys(meters, CLOSED))
    before = [truth(meter) for meter in meters]
    assert now_ms() < cuts[0].decided_at_ms + VALID_LONG_MS, "the test is too slow: it is void"

    def has_acted() -> bool:
        looks = zip(meters, before, strict=True)
        return all(truth(meter).positions(since) for meter, since in looks)

    zombie.signal(signal.SIGCONT)
    await until(lambda: zombie.ended() or has_acted(), "it leaves, or cuts")
    # What it sent is before these on its way to the meters.
    last = await desk.intend(dict.fromkeys(meters, CLOSED), mode="forced-on")
    await desk.are_told(last, "confirmed")
    return [list(of_meter) for of_meter in zip(cuts, restores, last, strict=True)]


@pytest.mark.fault("control-woken-inside-the-lease")
async def test_woken_inside_the_lease_after_a_payment_it_does_not_cut_again(
    world: World, desk: Desk, fault: Fault
) -> None:
    zombie, successor = world.control("control-0", **LONG_VALID), world.control("control-1")
    meters = [*world.line_meters(1), *world.mqtt_meters(1)]
    try:
        for _ in rounds(1):
            written = await woken_after_a_payment(desk, zombie, successor, meters, [])
            assert zombie.codes == {EXIT_FENCED: fault.tried + 1}, zombie.log_end
            fault.judged += sum(map(desk.judge, written))
            fault.tried += 1
            successor.end()
    finally:
        zombie.end()
        successor.end()


async def test_without_the_fence_a_woken_worker_cuts_after_the_payment(
    world: World, desk: Desk, control: Worker
) -> None:
    zombie = world.control("control-1", **LONG_VALID)
    meters = [*world.line_meters(1), *world.mqtt_meters(1)]
    try:
        written = await woken_after_a_payment(desk, zombie, control, meters, ["no_fence"])
        for of_meter in written:
            with pytest.raises(AssertionError, match="moved without need"):
                desk.judge(of_meter)
    finally:
        zombie.end()


async def beside_a_namesake(
    desk: Desk, workers: tuple[Worker, Worker], meters: list[str], switch: Sequence[str]
) -> list[Intent]:
    """Start a second process of one name between a cut and its restore; fail unless one leaves."""
    first, second = workers
    first.start(switch=switch)
    await first.wait_ready()
    cuts = await delivered(desk, dict.fromkeys(meters, OPEN))
    begun = times_begun(first)
    second.start(switch=switch)
    await until(lambda: first.ended() or times_begun(first) > begun, "it leaves, or begins again")
    assert first.ended(), "both act"
    restores = await delivered(desk, dict.fromkeys(meters, CLOSED))
    return [*cuts, *restores]


def times_begun(worker: Worker) -> int:
    """Return how often a worker has begun to act, by its log."""
    return worker.log_path.read_text().count('"event": "acting"')


@pytest.mark.fault("control-name-taken")
async def test_of_two_processes_of_one_name_the_first_leaves(
    world: World, desk: Desk, fault: Fault
) -> None:
    workers = world.control(name="one"), world.control(name="two")
    meters = [*world.line_meters(1), *world.mqtt_meters(1)]
    try:
        for _ in rounds(1):
            fault.judged += desk.judge(await beside_a_namesake(desk, workers, meters, []))
            fault.tried += 1
            await workers[1].kill()
        assert workers[0].codes == {EXIT_FENCED: fault.tried}
    finally:
        for worker in workers:
            worker.end()


async def test_two_processes_of_one_name_that_do_not_heed_each_other_both_act(
    world: World, desk: Desk
) -> None:
    workers = world.control(name="three"), world.control(name="four")
    try:
        with pytest.raises(AssertionError, match="both act"):
            await beside_a_namesake(
                desk, workers, world.line_meters(1), ["namesakes_are_not_heeded"]
            )
    finally:
        for worker in workers:
            worker.end()


async def late_on_the_line(
    desk: Desk, control: Worker, meter: str, switch: Sequence[str]
) -> list[Intent]:
    """Let a cut's request reach its line when it is void and the payment is known."""
    control.start(switch=["stops_behind_its_last_look", *switch])
    await control.wait_ready()
    cuts = await desk.intend({meter: OPEN})
    await until(lambda: control.is_stopped, "it is stopped")
    restores = await desk.intend({meter: CLOSED})
    await desk.are_told(cuts, "sent")
    void_at_ms = desk.told(cuts[0], "sent")[0]["commanded_at_ms"] + VALID_MS
    await until(lambda: now_ms() > void_at_ms, "the cut is void")
    control.signal(signal.SIGCONT)
    await desk.are_told(cuts, "failed", "acknowledged")
    await desk.are_told(restores, "confirmed")
    return [*cuts, *restores]


@pytest.mark.fault("control-stopped-behind-its-last-look")
async def test_a_request_that_reaches_the_line_late_is_not_executed(
    world: World, desk: Desk, control: Worker, fault: Fault
) -> None:
    (meter,) = world.line_meters(1)
    for _ in rounds(1):
        written = await late_on_the_line(desk, control, meter, [])
        desk.judge_never_moved(written)
        fault.judged += desk.judge(written)
        fault.tried += 1
        await control.kill()


async def test_a_request_without_a_time_is_executed_after_the_payment(
    world: World, desk: Desk, control: Worker
) -> None:
    (meter,) = world.line_meters(1)
    written = await late_on_the_line(desk, control, meter, ["requests_do_not_expire"])
    with pytest.raises(AssertionError, match="was moved"):
        desk.judge_never_moved(written)


# --- the owner of the line ------------------------------------------------------------------------


async def with_both_unread(
    desk: Desk, control: Worker, meter: str, control_off: Sequence[str], ingest_off: Sequence[str]
) -> list[Intent]:
    """Kill ingest with a cut and its restore in device-requests, neither taken; start it again."""
    world = desk.world
    control.start(switch=control_off)
    await control.wait_ready()
    world.ingest.signal(signal.SIGSTOP)
    cuts = await desk.intend({meter: OPEN})
    await desk.are_told(cuts, "sent")
    restores = await desk.intend({meter: CLOSED})
    await desk.are_told(restores, "sent")
    await until(lambda: all(map(desk.commanded, (*cuts, *restores))), "both are in the topic")
    await world.restart_ingest(ingest_off)
    await desk.are_told(restores, "confirmed")
    last = await desk.intend({meter: CLOSED}, mode="forced-on")
    await desk.are_told(last, "confirmed")
    await control.kill()
    return [*cuts, *restores, *last]


@pytest.mark.fault("line-owner-killed-with-cut-and-restore-unread")
async def test_a_cut_that_a_killed_line_owner_left_is_not_executed_after_its_restore(
    world: World, desk: Desk, control: Worker, fault: Fault
) -> None:
    """One rule is enough: a new owner starts at the end; a request is void after its time."""
    meters = world.line_meters(len(ONE_RULE_OFF))
    for _ in rounds(1):
        for meter, (control_off, ingest_off) in zip(meters, ONE_RULE_OFF, strict=True):
            written = await with_both_unread(desk, control, meter, control_off, ingest_off)
            desk.judge_never_moved(written)
            fault.judged += desk.judge(written)
            fault.tried += 1


async def test_without_both_rules_a_killed_line_owner_cuts_after_the_payment(
    world: World, desk: Desk, control: Worker
) -> None:
    (meter,) = world.line_meters(1)
    written = await with_both_unread(
        desk, control, meter, ["requests_do_not_expire"], ["starts_at_the_beginning"]
    )
    await world.restart_ingest()
    with pytest.raises(AssertionError, match="was moved"):
        desk.judge_never_moved(written)


# --- an MQTT meter that is away -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Away:
    """What was written for meters that lose the broker before they are cut, unknown to control.

    One returns within the lease, one after it, one after a payment.
    """

    back: list[Intent]
    late: list[Intent]
    paid: list[Intent]


async def cut_while_away(
    desk: Desk, control: Worker, meters: list[str], switch: Sequence[str]
) -> Away:
    """Cut three meters that lost the broker, which keeps their sessions, unknown to control."""
    world = desk.world
    control.start(switch=switch)
    await control.wait_ready()
    back, late, paid = meters
    for meter in meters:
        world.meters.let_go(world.gateway_of(meter))
    lasting = await desk.intend(dict.fromkeys((back, paid), OPEN))
    short = await desk.intend({late: OPEN}, lease_ms=LEASE_SHORT_MS)
    await desk.are_told([*lasting, *short], "sent")
    restores = await desk.intend({paid: CLOSED})
    world.meters.let_return(world.gateway_of(back))
    await desk.are_told(short, "expired")
    await desk.are_told(restores, "sent")
    for meter in (late, paid):
        world.meters.let_return(world.gateway_of(meter))
    await desk.are_told([lasting[0], *restores], "confirmed")
    last = await desk.intend(dict.fromkeys(meters, CLOSED), mode="forced-on")
    await desk.are_told(last, "confirmed")
    await control.kill()
    return Away(
        [lasting[0], last[0]],
        [*short, last[1]],
        [lasting[1], *restores, last[2]],
    )


@pytest.mark.fault("mqtt-meter-away-when-the-cut-is-sent")
async def test_an_mqtt_meter_that_was_away_is_cut_within_the_lease_and_never_after_it(
    world: World, desk: Desk, control: Worker, fault: Fault
) -> None:
    """One rule is enough: the broker keeps nothing of a cut; the meter looks at its expiry."""
    meters = world.mqtt_meters(3)
    for _ in rounds(1):
        for rule_off in ("mqtt_commands_do_not_expire", "the_broker_keeps_cuts"):
            away = await cut_while_away(desk, control, meters, [rule_off])
            desk.judge_never_moved([*away.late, *away.paid])
            for written in (away.back, away.late, away.paid):
                fault.judged += desk.judge(written)
                fault.tried += 1


async def test_without_both_rules_the_broker_hands_out_a_cut_after_the_payment(
    world: World, desk: Desk, control: Worker
) -> None:
    switch = ["mqtt_commands_do_not_expire", "the_broker_keeps_cuts"]
    away = await cut_while_away(desk, control, world.mqtt_meters(3), switch)
    for written in (away.late, away.paid):
        with pytest.raises(AssertionError, match="was moved"):
            desk.judge_never_moved(written)
