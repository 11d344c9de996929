"""Goal: whatever goes wrong around control, relays end where they are wanted, no promise broken.

Method: Hypothesis writes histories of intents, persons' orders, faults, restarts, stalls, hands on
relays and brakes; control_world.World plays everything around control's desk and judges every
command, every move of a relay and every confirmation as it happens. When the faults have stopped,
each relay must come to stand as the newest intent wants it, if that may still be sent.
"""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.simulation.control_world import LIMITS, POLLED, PUSHING, TOPICS, World

KINDS = (POLLED, POLLED, PUSHING)
METERS = [f"M{number}" for number in range(len(KINDS))]
SETTLE_MS = 90_000
CALM_STEP_MS = 250
WINDOW_AND_REPLY_MS = 61_000 + LIMITS.reply_timeout_ms

meters = st.sampled_from(METERS)
topics = st.sampled_from(TOPICS)
positions = st.sampled_from(["open", "closed"])
runs = st.tuples(st.just("run"), st.sampled_from([50, 200, 1_000, 6_000, 20_000]))
intends = st.tuples(
    st.just("intend"), meters, positions, st.sampled_from([500, 6_000, 60_000, 300_000])
)
steps = st.one_of(
    # Several times, because nothing else matters without them.
    *(runs, runs, runs),
    *(intends, intends, intends),
    st.tuples(st.just("force"), meters, st.sampled_from(["off", "on", "released", "released-cut"])),
    st.tuples(st.just("poll"), meters),
    st.tuples(st.just("go"), meters, st.booleans(), st.booleans()),
    st.tuples(st.just("hand"), meters, positions),
    st.tuples(st.just("stall"), topics),
    st.tuples(st.just("flow"), topics),
    st.tuples(st.just("repeat"), topics),
    st.tuples(st.just("hold"), st.booleans()),
    st.tuples(st.just("reassign"), meters),
    st.tuples(st.just("lose"), st.integers(0, 2), st.integers(0, 3)),
    st.tuples(st.just("slow"), st.sampled_from([20, 1_000, 3_000])),
    st.tuples(st.just("contacts"), st.sampled_from([0, 80, 400])),
    st.tuples(st.just("lose-owner")),
    st.tuples(st.just("restart"), st.booleans()),
)


def do_intend(world: World, meter: str, wanted: str, lease_ms: int) -> None:
    world.intend(meter, wanted, lease_ms=lease_ms)
    world.deliver()


def do_force(world: World, meter: str, position: str) -> None:
    world.force(meter, position)
    world.deliver()


def do_lose(world: World, requests: int, replies: int) -> None:
    world.requests_to_lose += requests
    world.replies_to_lose += replies


PLAYED: dict[str, Callable[..., None]] = {
    "run": World.run,
    "intend": do_intend,
    "force": do_force,
    "poll": World.poll,
    "go": lambda world, meter, on, told: world.go(meter, is_online=on, is_told=told),
    "hand": World.move_by_hand,
    "stall": lambda world, topic: world.stalled.add(topic),
    "flow": lambda world, topic: world.stalled.discard(topic),
    "repeat": World.repeat_last,
    "hold": lambda world, is_held: world.hold(is_held=is_held),
    "reassign": World.reassign,
    "lose": do_lose,
    "slow": lambda world, exchange_ms: setattr(world, "exchange_ms", exchange_ms),
    "contacts": lambda world, actuation_ms: setattr(world, "actuation_ms", actuation_ms),
    "lose-owner": World.lose_line_owner,
    "restart": lambda world, is_crash: world.restart(is_crash=is_crash),
}


def calm(world: World) -> None:
    """Stop the faults, and let metering decide anew what it decides on every reading."""
    world.stalled.clear()
    world.requests_to_lose = world.replies_to_lose = 0
    world.exchange_ms = 20
    world.hold(is_held=False)
    for meter in METERS:
        world.go(meter, is_online=True, is_told=True)
    world.run(WINDOW_AND_REPLY_MS, step_ms=CALM_STEP_MS)


@pytest.mark.timeout(240)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=6, max_size=40), st.integers(1, 4))
def test_relays_end_where_they_are_wanted_and_no_promise_breaks(
    history: list[tuple[Any, ...]], budget_count: int
) -> None:
    world = World(KINDS, budget_count=budget_count)
    for kind, *details in history:
        PLAYED[kind](world, *details)
    calm(world)
    newest = dict(world.known_intent)
    for meter, intent in newest.items():
        is_lease = intent.send_before_ms is not None
        if is_lease or intent.epoch < world.devices[meter].meter.epoch:
            world.intend(meter, intent.wanted, lease_ms=300_000)
    # One cut a minute at the least budget, and each meter needs one.
    world.run(SETTLE_MS + len(METERS) * 60_000, poll_every_ms=2_000, step_ms=CALM_STEP_MS)
    for meter, intent in newest.items():
        assert world.devices[meter].position == intent.wanted, world.told(meter)
    # What stands is known to stand: nothing waits, and nothing more is sent.
    assert world.desk.waiting_count() == 0
    sent_count = len(world.commands)
    world.run(20_000, poll_every_ms=1_000, step_ms=CALM_STEP_MS)
    assert len(world.commands) == sent_count
