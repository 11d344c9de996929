"""Goal: each rule of the delivery of a relay command, one by one.

Method: control's desk in the simulated world of tests/simulation/control_world.py, which also
judges every promise on the way; each test is one short history. M0 is polled, M1 is over MQTT.
"""

from dataclasses import replace
from itertools import pairwise

import pytest

from services.control.domain.messages import (
    DeviceStatus,
    Gateway,
    LineRequest,
    MqttCommand,
    Outcome,
    Reply,
    Result,
)
from tests.simulation.control_world import LIMITS, PARTITION, POLLED, PUSHING, STEP_MS, World

MINUTE_MS = 60_000
CONFIRMED_FIRST = [("sent", 1), ("acknowledged", 1), ("confirmed", 1)]


@pytest.fixture
def world() -> World:
    return World((POLLED, PUSHING))


def of(world: World, meter: str, result: Result) -> list[Outcome]:
    return [o for o in world.outcomes if o.intent.meter_id == meter and o.result is result]


def writes(world: World, meter: str) -> list[LineRequest]:
    return [
        c
        for c in world.commands
        if isinstance(c, LineRequest) and c.meter.meter_id == meter and c.address is not None
    ]


def published(world: World, meter: str) -> list[MqttCommand]:
    return [c for c in world.commands if isinstance(c, MqttCommand) and c.meter.meter_id == meter]


def cut(world: World, meter: str = "M0") -> None:
    """Cut a meter and see it confirmed."""
    world.intend(meter, "open")
    world.run(1_000)
    assert world.told(meter)[-1] == ("confirmed", 1)


def test_a_cut_is_written_read_back_and_then_confirmed_within_a_second(world: World) -> None:
    world.intend("M0", "open")
    world.run(1_000)
    (write,) = writes(world, "M0")
    assert (write.address, write.values) == (0x0057, (1, 1))
    assert world.devices["M0"].position == "open"
    assert world.told("M0") == CONFIRMED_FIRST
    (done,) = of(world, "M0", Result.CONFIRMED)
    assert done.read_back_position == "open"
    assert done.completed_at_ms is not None
    assert done.read_back_began_at_ms is not None
    assert done.read_back_began_at_ms > done.completed_at_ms > write.requested_at_ms


@pytest.mark.parametrize(
    ("wanted", "mode", "values"),
    [("open", "prepaid", (1, 1)), ("closed", "prepaid", (0, 0)), ("closed", "forced-on", (1, 0))],
)
def test_each_wanted_position_has_the_register_pair_of_the_profile(
    world: World, wanted: str, mode: str, values: tuple[int, int]
) -> None:
    intent = world.intend("M0", wanted)
    world.undelivered["relay-intents"].clear()
    world.publish("relay-intents", replace(intent, mode=mode))
    world.run(1_000)
    assert [write.values for write in writes(world, "M0")] == [values]
    assert world.told("M0") == CONFIRMED_FIRST


def test_an_acknowledged_write_alone_is_never_done(world: World) -> None:
    world.devices["M0"].is_stuck = True
    world.intend("M0", "open")
    world.run(LIMITS.read_back_window_ms + 1_000)
    assert of(world, "M0", Result.CONFIRMED) == []
    failed = of(world, "M0", Result.FAILED)[0]
    assert failed.read_back_position == "closed"
    assert "read back closed" in failed.detail


def test_a_relay_with_one_phase_open_is_not_open(world: World) -> None:
    world.stalled.add("device-replies")
    world.intend("M0", "open")
    world.run(500)
    world.devices["M0"].position = "mixed"
    world.stalled.clear()
    world.run(2_000)
    assert of(world, "M0", Result.CONFIRMED) == []


def test_a_cut_is_not_sent_after_its_lease_and_that_is_told_once(world: World) -> None:
    world.stalled.add("relay-intents")
    world.intend("M0", "open", lease_ms=1_000)
    world.run(2_000)
    world.stalled.clear()
    world.run(MINUTE_MS, poll_every_ms=5_000)
    assert writes(world, "M0") == []
    assert world.told("M0") == [("expired", 0)]


@pytest.mark.parametrize(("lease_ms", "valid_ms"), [(MINUTE_MS, 5_000), (2_000, 2_000)])
def test_a_command_is_void_after_five_seconds_and_a_cut_after_its_lease(
    world: World, lease_ms: int, valid_ms: int
) -> None:
    world.intend("M0", "open", lease_ms=lease_ms)
    world.deliver()
    world.leave()
    (write,) = writes(world, "M0")
    assert write.not_after_ms == write.requested_at_ms + valid_ms


def test_a_restore_never_expires(world: World) -> None:
    cut(world)
    world.go("M0", is_online=False, is_told=True)
    world.run(100)
    world.intend("M0", "closed")
    world.run(120 * MINUTE_MS, step_ms=1_000)
    world.go("M0", is_online=True, is_told=True)
    world.run(1_000)
    assert world.devices["M0"].position == "closed"
    assert world.told("M0")[3:] == [("offline", 0), *CONFIRMED_FIRST]


def test_a_newer_intent_lets_the_command_in_flight_finish_and_then_wins(world: World) -> None:
    world.stalled.add("device-replies")
    world.intend("M0", "open")
    world.run(200)
    assert world.devices["M0"].position == "open"
    world.intend("M0", "closed")
    world.run(500)
    assert len(writes(world, "M0")) == 1, "the first is still under way"
    world.stalled.clear()
    world.run(1_000)
    assert world.devices["M0"].position == "closed"
    assert world.told("M0") == [
        ("sent", 1),
        ("superseded", 1),
        ("acknowledged", 1),
        *CONFIRMED_FIRST,
    ]


def test_a_payment_that_comes_before_the_cut_has_left_stops_it(world: World) -> None:
    world.intend("M0", "open")
    world.deliver()
    world.intend("M0", "closed")
    world.run(1_000)
    assert [write.values for write in writes(world, "M0")] == [(0, 0)]
    assert ("failed", 1) in world.told("M0")


def test_an_assignment_that_comes_before_the_cut_has_left_stops_it(world: World) -> None:
    world.intend("M0", "open")
    world.deliver()
    world.reassign("M0")
    world.run(20_000)
    assert writes(world, "M0") == []
    assert world.told("M0") == [("sent", 1), ("failed", 1), ("superseded", 1)]


def test_a_hold_that_comes_before_the_cut_has_left_stops_it(world: World) -> None:
    world.intend("M0", "open")
    world.deliver()
    world.hold(is_held=True)
    world.run(20_000)
    assert writes(world, "M0") == []
    assert ("held", 1) in world.told("M0")


def test_a_command_whose_time_has_gone_before_it_left_stays(world: World) -> None:
    world.intend("M0", "open")
    world.deliver()
    world.now_ms += LIMITS.command_valid_ms + 1
    world.leave()
    assert writes(world, "M0") == []
    assert world.told("M0") == [("sent", 1), ("failed", 1)]


def test_a_relay_state_that_comes_late_does_not_undo_a_newer_one(world: World) -> None:
    world.poll("M0")
    late = world.undelivered["relay-states"].popleft()
    world.run(100)
    cut(world)
    world.publish("relay-states", late)
    world.run(10_000)
    assert len(writes(world, "M0")) == 1


def test_a_read_back_that_says_to_have_begun_before_the_command_ended_is_none(
    world: World,
) -> None:
    # The line went to a worker whose clock is behind.
    world.stalled.add("device-replies")
    world.intend("M0", "open")
    world.run(300)
    world.stalled.clear()
    world.run(STEP_MS)
    read = world.desk.delivery(PARTITION, "M0").flight
    assert read is not None
    assert read.read_id is not None
    assert read.completed_at_ms is not None
    early_ms = read.completed_at_ms - 1
    world.undelivered["relay-states"].clear()
    world.undelivered["device-replies"].clear()
    world.hear(Reply(read.read_id, "ok", "", early_ms, early_ms, "open"))
    assert world.told("M0") == [("sent", 1), ("acknowledged", 1)]


def test_a_newer_intent_does_not_wait_for_the_read_back_of_the_other_way(world: World) -> None:
    world.devices["M0"].is_stuck = True
    world.intend("M0", "open")
    world.run(300)
    assert world.told("M0") == [("sent", 1), ("acknowledged", 1)]
    world.devices["M0"].is_stuck = False
    world.intend("M0", "closed")
    world.run(300)
    assert [write.values for write in writes(world, "M0")] == [(1, 1), (0, 0)]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("meter", ["M0", "M1"])
def test_a_payment_while_the_contacts_of_a_cut_still_move_is_commanded_not_taken_as_done(
    world: World, meter: str, *, is_restarted: bool
) -> None:
    world.actuation_ms = 300
    world.intend(meter, "open")
    world.run_until(lambda: ("acknowledged", 1) in world.told(meter), 1_000)
    world.intend(meter, "closed")
    world.deliver()
    world.poll(meter)
    if is_restarted:
        world.restart(is_crash=True)
    world.run(LIMITS.reply_timeout_ms + 4_000, poll_every_ms=500)
    assert [position for _, position in world.devices[meter].moves] == ["open", "closed"]
    assert world.told(meter)[-1] == ("confirmed", 2 if is_restarted else 1)


def test_a_restore_that_fails_does_not_hide_a_cut_whose_contacts_still_move(world: World) -> None:
    world.actuation_ms = 800
    world.intend("M0", "open")
    world.run_until(lambda: ("acknowledged", 1) in world.told("M0"), 1_000)
    world.devices["M0"].answer = "exception"
    world.intend("M0", "closed")
    world.run_until(lambda: ("failed", 1) in world.told("M0"), 1_000)
    world.poll("M0")
    world.deliver()
    assert world.told("M0")[-1] == ("failed", 1), "the poll shows where the contacts stood"
    world.devices["M0"].answer = "ok"
    world.run(4_000, poll_every_ms=500)
    assert world.devices["M0"].position == "closed"
    assert world.told("M0")[-1] == ("confirmed", 2)


def test_a_renewed_lease_is_confirmed_by_the_command_under_way(world: World) -> None:
    world.stalled.add("device-replies")
    world.intend("M0", "open")
    world.run(200)
    world.intend("M0", "open")
    world.run(200)
    world.stalled.clear()
    world.run(1_000)
    assert len(writes(world, "M0")) == 1
    assert world.told("M0")[-1] == ("confirmed", 0)


def test_an_older_intent_changes_nothing(world: World) -> None:
    old = world.intend("M0", "open")
    world.undelivered["relay-intents"].clear()
    world.intend("M0", "closed")
    world.run(1_000)
    world.publish("relay-intents", old)
    world.run(1_000)
    assert [write.values for write in writes(world, "M0")] == [(0, 0)]


def test_an_intent_of_an_earlier_epoch_is_superseded_and_never_sent(world: World) -> None:
    world.stalled.add("relay-intents")
    world.intend("M0", "open")
    world.reassign("M0")
    world.run(100)
    world.stalled.clear()
    world.run(10_000, poll_every_ms=1_000)
    assert world.told("M0") == [("superseded", 0)]
    assert writes(world, "M0") == []


def test_an_intent_ahead_of_the_registry_waits_for_it_without_a_word(world: World) -> None:
    world.stalled.add("registry")
    world.reassign("M0")
    world.intend("M0", "closed")
    world.run(500)
    assert world.told("M0") == []
    world.stalled.clear()
    world.run(500)
    assert world.told("M0") == CONFIRMED_FIRST


def test_a_registry_that_stays_behind_is_told_once(world: World) -> None:
    world.stalled.add("registry")
    world.reassign("M0")
    world.intend("M0", "closed")
    world.run(10_000, poll_every_ms=0)
    assert world.told("M0") == [("waiting-line", 0)]


def test_an_intent_of_another_line_waits_and_is_judged_at_each_registry_change(
    world: World,
) -> None:
    meter = world.devices["M0"].meter
    world.publish("registry", replace(meter, line_id="L-new", version=(1, 1)))
    world.run(100)
    world.intend("M0", "closed")
    world.run(5_000)
    world.publish("registry", replace(meter, line_id="L-newer", version=(1, 2)))
    world.run(5_000)
    assert world.told("M0") == [("waiting-line", 0)]
    world.publish("registry", replace(meter, version=(1, 3)))
    world.run(1_000)
    assert world.told("M0")[1:] == CONFIRMED_FIRST


def test_an_offline_meter_is_not_commanded_and_that_is_told_once(world: World) -> None:
    world.go("M0", is_online=False, is_told=True)
    world.run(100)
    world.intend("M0", "open")
    world.run(10_000)
    assert world.told("M0") == [("offline", 0)]
    assert writes(world, "M0") == []


def test_a_returned_meter_is_driven_at_once_by_its_status(world: World) -> None:
    world.go("M0", is_online=False, is_told=True)
    world.run(100)
    world.intend("M0", "closed")
    world.run(10_000)
    world.go("M0", is_online=True, is_told=True)
    world.deliver()
    world.leave()
    assert len(writes(world, "M0")) == 1


def test_a_return_ends_the_pause_between_attempts(world: World) -> None:
    world.devices["M0"].answer = "timeout"
    world.intend("M0", "closed")
    world.run(MINUTE_MS)
    world.go("M0", is_online=False, is_told=True)
    world.run(100)
    world.devices["M0"].answer = "ok"
    before_count = len(writes(world, "M0"))
    world.go("M0", is_online=True, is_told=True)
    world.deliver()
    world.leave()
    assert len(writes(world, "M0")) == before_count + 1


def test_a_returned_meter_is_driven_at_once_by_a_fresh_relay_state(world: World) -> None:
    cut(world)
    world.go("M0", is_online=False, is_told=True)
    world.run(100)
    world.intend("M0", "closed")
    world.run(10_000)
    world.go("M0", is_online=True, is_told=False)
    world.poll("M0")
    world.deliver()
    world.leave()
    assert [write.values for write in writes(world, "M0")] == [(1, 1), (0, 0)]


def test_a_meter_behind_an_offline_gateway_is_offline(world: World) -> None:
    gateway_id = world.devices["M0"].meter.gateway_id
    world.publish(
        "device-status",
        replace(_status(world, "M0"), device_id=f"gateways/{gateway_id}", status="offline"),
    )
    world.run(100)
    world.intend("M0", "closed")
    world.run(1_000)
    assert world.told("M0") == [("offline", 0)]


def _status(world: World, meter: str) -> DeviceStatus:
    found = [value for _, value in world.log["device-status"] if isinstance(value, DeviceStatus)]
    return next(status for status in found if status.device_id == f"meters/{meter}")


@pytest.mark.parametrize("reason", ["serial-mismatch", "wrong-gateway"])
def test_a_meter_that_may_be_another_is_not_commanded_even_if_it_reports(
    world: World, reason: str
) -> None:
    quarantined = replace(_status(world, "M0"), status="quarantined", reason=reason)
    world.publish("device-status", quarantined)
    world.run(100)
    world.intend("M0", "open")
    world.run(5_000, poll_every_ms=1_000)
    assert writes(world, "M0") == []


def test_a_meter_whose_clock_is_wrong_gets_its_power_back(world: World) -> None:
    world.intend("M0", "open")
    world.run(5_000, poll_every_ms=1_000)
    quarantined = replace(_status(world, "M0"), status="quarantined", reason="clock-ahead")
    world.publish("device-status", quarantined)
    world.run(100)
    world.intend("M0", "closed")
    world.run(5_000, poll_every_ms=1_000)
    assert [write.values for write in writes(world, "M0")] == [(1, 1), (0, 0)]


def test_a_cut_is_tried_a_bounded_number_of_times_until_its_lease_is_renewed(
    world: World,
) -> None:
    world.budget_count = 100
    world.site = replace(world.site, cuts_per_minute=100)
    world.hold(is_held=False)
    world.devices["M0"].answer = "exception"
    world.intend("M0", "open", lease_ms=5 * MINUTE_MS)
    world.run(3 * MINUTE_MS)
    assert len(writes(world, "M0")) == LIMITS.attempts_per_burst
    at_ms = [write.requested_at_ms for write in writes(world, "M0")]
    pauses_ms = [after - before for before, after in pairwise(at_ms)]
    assert all(later > earlier for earlier, later in pairwise(pauses_ms[:4]))
    world.intend("M0", "open")
    world.run(1_000)
    assert len(writes(world, "M0")) > LIMITS.attempts_per_burst


def test_a_restore_is_tried_for_ever_with_capped_pauses(world: World) -> None:
    world.devices["M0"].answer = "exception"
    world.intend("M0", "closed")
    world.run(2 * MINUTE_MS)
    at_ms = [write.requested_at_ms for write in writes(world, "M0")]
    pauses_ms = [after - before for before, after in pairwise(at_ms)]
    assert len(at_ms) > 20
    assert max(pauses_ms) <= LIMITS.backoff_max_ms + 500
    world.devices["M0"].answer = "ok"
    world.run(LIMITS.backoff_max_ms + 1_000)
    assert of(world, "M0", Result.CONFIRMED)


def test_a_command_without_a_reply_is_sent_again_after_the_timeout(world: World) -> None:
    world.replies_to_lose = 1
    world.intend("M0", "open")
    world.run(LIMITS.reply_timeout_ms - 200)
    assert len(writes(world, "M0")) == 1
    world.run(2_000)
    assert world.told("M0") == [("sent", 1), ("failed", 1), ("sent", 2), *_rest(2)]


def _rest(attempt: int) -> list[tuple[str, int]]:
    return [("acknowledged", attempt), ("confirmed", attempt)]


def test_cuts_beyond_the_budget_wait_for_it_and_restores_do_not() -> None:
    world = World((POLLED,) * 4, budget_count=2)
    for meter in ("M0", "M1", "M2"):
        world.intend(meter, "open", lease_ms=3 * MINUTE_MS)
    world.intend("M3", "closed")
    world.run(50_000)
    assert world.told("M2") == [("over-budget", 0)]
    assert world.told("M3") == CONFIRMED_FIRST
    world.run(12_000)
    assert world.told("M2")[1:] == CONFIRMED_FIRST


def test_a_cut_beyond_the_budget_expires_with_its_lease() -> None:
    world = World((POLLED, POLLED), budget_count=1)
    world.intend("M0", "open")
    world.intend("M1", "open", lease_ms=30_000)
    world.run(2 * MINUTE_MS)
    assert world.told("M1") == [("over-budget", 0), ("expired", 0)]


def test_held_cuts_are_sent_after_the_release_while_their_lease_holds(world: World) -> None:
    world.hold(is_held=True)
    world.run(100)
    world.intend("M0", "open", lease_ms=30_000)
    world.intend("M1", "open", lease_ms=5_000)
    world.run(10_000)
    assert world.told("M0") == [("held", 0)]
    assert world.told("M1") == [("held", 0), ("expired", 0)]
    world.hold(is_held=False)
    world.run(1_000)
    assert world.told("M0") == [("held", 0), *CONFIRMED_FIRST]
    assert published(world, "M1") == []


def test_a_held_site_still_restores(world: World) -> None:
    cut(world)
    world.hold(is_held=True)
    world.intend("M0", "closed")
    world.run(1_000)
    assert world.devices["M0"].position == "closed"


def test_cuts_of_an_unknown_site_are_held(world: World) -> None:
    world.desk._sites.clear()
    world.intend("M0", "open")
    world.run(1_000)
    assert world.told("M0") == [("held", 0)]


def test_a_relay_that_stands_as_wanted_needs_no_command(world: World) -> None:
    world.stalled.add("relay-intents")
    world.intend("M0", "closed")
    world.run(100)
    world.poll("M0")
    world.run(100)
    world.stalled.clear()
    world.run(1_000)
    assert writes(world, "M0") == []
    assert world.told("M0") == [("confirmed", 0)]


def test_a_state_read_before_the_decision_is_no_evidence(world: World) -> None:
    world.poll("M0")
    world.run(100)
    world.intend("M0", "closed")
    world.run(1_000)
    assert world.told("M0") == CONFIRMED_FIRST


def test_a_state_read_before_an_earlier_command_was_over_is_no_evidence(world: World) -> None:
    world.exchange_ms = 1_000
    world.intend("M0", "open")
    world.run(200)
    world.intend("M0", "closed")
    world.run(200)
    world.poll("M0")  # closed, and after the decision; but the cut is still on its way
    world.run(5_000)
    assert [write.values for write in writes(world, "M0")] == [(1, 1), (0, 0)]
    assert world.told("M0")[-1] == ("confirmed", 1)
    assert world.devices["M0"].position == "closed"


@pytest.mark.parametrize(("position", "values"), [("on", (1, 0)), ("released", (0, 0))])
def test_a_forced_position_and_its_end_are_commanded_even_if_the_relay_stands_there(
    world: World, position: str, values: tuple[int, int]
) -> None:
    world.stalled.add("relay-intents")
    world.force("M0", position)
    world.run(100)
    world.poll("M0")
    world.run(100)
    world.stalled.clear()
    world.run(1_000)
    assert [write.values for write in writes(world, "M0")] == [values]


def test_what_a_person_forced_off_has_no_lease_and_is_tried_for_ever(world: World) -> None:
    world.devices["M0"].answer = "exception"
    world.force("M0", "off")
    world.run(10 * MINUTE_MS)
    assert len(writes(world, "M0")) > LIMITS.attempts_per_burst
    world.devices["M0"].answer = "ok"
    world.run(2 * MINUTE_MS)
    assert world.told("M0")[-1][0] == "confirmed"


@pytest.mark.parametrize("order", ["off", "on"])
def test_an_order_that_ends_while_the_account_is_cut_is_obeyed_no_longer(
    world: World, order: str
) -> None:
    world.go("M0", is_online=False, is_told=True)
    world.force("M0", order)
    world.run(MINUTE_MS)
    world.force("M0", "released-cut")
    world.run(100)
    world.go("M0", is_online=True, is_told=True)
    world.run(MINUTE_MS, poll_every_ms=1_000)
    assert writes(world, "M0") == []  # it is closed, and only a reading may cut
    assert world.told("M0")[-1] == ("expired", 0)
    world.intend("M0", "open")
    world.run(1_000)
    assert world.devices["M0"].position == "open"


def test_a_relay_that_is_open_when_its_order_ends_is_seen_to_be(world: World) -> None:
    world.force("M0", "off")
    world.run(1_000)
    world.force("M0", "released-cut")
    world.run(5_000, poll_every_ms=500)
    assert world.told("M0")[-1] == ("confirmed", 0)
    world.move_by_hand("M0", "closed")
    world.run(MINUTE_MS, poll_every_ms=500)
    assert [write.values for write in writes(world, "M0")] == [(1, 1)]


def test_a_restored_relay_that_somebody_opens_is_closed_again(world: World) -> None:
    world.intend("M0", "closed")
    world.run(1_000)
    world.move_by_hand("M0", "open")
    world.run(1_000, poll_every_ms=500)
    assert world.devices["M0"].position == "closed"
    assert world.told("M0") == [*CONFIRMED_FIRST, ("sent", 2), *_rest(2)]
    # How long a delivery took is measured once, not from the decision to the last repair.
    assert [told.is_first for told in of(world, "M0", Result.CONFIRMED)] == [True, False]


def test_a_cut_relay_that_somebody_closes_is_cut_again_only_within_the_lease(
    world: World,
) -> None:
    world.intend("M0", "open", lease_ms=30_000)
    world.run(1_000)
    world.move_by_hand("M0", "closed")
    world.run(5_000, poll_every_ms=500)
    assert world.devices["M0"].position == "open"
    world.run(30_000)
    world.move_by_hand("M0", "closed")
    world.run(5_000, poll_every_ms=500)
    assert world.devices["M0"].position == "closed"
    assert world.told("M0")[-1] == ("expired", 2)
    world.intend("M0", "open")
    world.run(1_000)
    assert world.devices["M0"].position == "open"


def test_who_moves_the_relay_again_and_again_meets_the_backoff(world: World) -> None:
    world.intend("M0", "closed")
    for _ in range(40):
        world.run(1_000)
        world.move_by_hand("M0", "open")
        world.poll("M0")
    assert len(writes(world, "M0")) < 20


def test_a_contradicted_position_waits_again(world: World) -> None:
    world.intend("M0", "closed")
    world.run(1_000)
    assert world.desk.waiting_count() == 0
    world.move_by_hand("M0", "open")
    world.poll("M0")
    world.run(50)
    world.devices["M0"].answer = "exception"
    world.run(1_000)
    assert world.desk.waiting_count() == 1


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("meter", ["M0", "M1"])
def test_a_meter_that_was_away_and_is_topped_up_before_it_returns_is_never_cut(
    world: World, meter: str, *, is_restarted: bool
) -> None:
    world.poll(meter)
    world.go(meter, is_online=False, is_told=True)
    world.run(100)
    world.intend(meter, "open", lease_ms=5 * MINUTE_MS)
    world.run(20_000)
    world.intend(meter, "closed")
    if is_restarted:
        world.restart(is_crash=True)
    world.run(20_000)
    world.go(meter, is_online=True, is_told=True)
    world.run(MINUTE_MS, poll_every_ms=1_000)
    assert all(position == "closed" for _, position in world.devices[meter].moves)
    assert not any(command.intent.is_cut for command in world.commands)
    assert world.told(meter)[-1][0] == "confirmed"


def test_an_mqtt_cut_carries_its_expiry_and_is_confirmed_by_what_the_meter_pushes(
    world: World,
) -> None:
    world.intend("M1", "open", lease_ms=3_000)
    world.run(1_000)
    (command,) = published(world, "M1")
    gateway_id = world.devices["M1"].meter.gateway_id
    assert command.topic == f"/server/acrelHW/AWT100/control/{gateway_id}"
    assert dict(command.payload) == {
        "type": "control",
        "msgid": command.request_id,
        "gwSN": gateway_id,
        "meterSN": "SNM1",
        "relay": 0,
        "expire": "20270115080003",
    }
    assert world.told("M1") == CONFIRMED_FIRST


def test_an_mqtt_device_that_was_never_seen_online_is_not_commanded() -> None:
    world = World((PUSHING,))
    world.desk._statuses.clear()
    world.intend("M0", "open")
    world.run(1_000)
    assert published(world, "M0") == []
    assert world.told("M0") == [("offline", 0)]


def test_a_push_of_the_very_millisecond_of_the_acknowledgement_is_no_read_back(
    world: World,
) -> None:
    world.intend("M1", "open")
    world.run(100)
    world.pending_pushes.clear()
    world.undelivered["relay-states"].clear()
    (reply,) = (value for _, value in world.log["device-replies"])
    world.now_ms = reply.completed_at_ms  # type: ignore[attr-defined]
    world.publish_state(world.devices["M1"])
    world.run(1_000)
    assert world.told("M1") == [("sent", 1), ("acknowledged", 1)]
    world.poll("M1")
    world.run(100)
    assert world.told("M1") == CONFIRMED_FIRST


def test_a_gateway_that_is_not_in_the_registry_makes_its_meters_offline(world: World) -> None:
    world.desk._gateways.clear()
    world.intend("M0", "closed")
    world.run(1_000)
    assert world.told("M0") == [("offline", 0)]
    gateway_id = world.devices["M0"].meter.gateway_id
    world.publish("registry", Gateway(gateway_id, "127.0.0.1:1502", (1, 9)))
    world.run(1_000)
    assert world.told("M0")[1:] == CONFIRMED_FIRST


def test_after_a_restart_nothing_is_commanded_again_that_stands(world: World) -> None:
    cut(world, "M0")
    cut(world, "M1")
    world.restart(is_crash=True)
    world.run(10_000, poll_every_ms=1_000)
    assert len(writes(world, "M0")) == len(published(world, "M1")) == 1
    assert world.told("M0") == world.told("M1") == CONFIRMED_FIRST


def test_a_reply_that_came_while_control_was_down_is_found(world: World) -> None:
    world.stalled.add("device-replies")
    world.intend("M0", "open")
    world.run(300)
    assert world.told("M0") == [("sent", 1)]
    world.restart(is_crash=True)
    assert world.told("M0") == [("sent", 1), ("acknowledged", 1)]
    world.run(300)
    assert world.told("M0") == CONFIRMED_FIRST


def test_a_command_under_way_at_a_crash_is_waited_for_and_counted_on(world: World) -> None:
    world.exchange_ms = 500
    world.intend("M0", "open")
    world.run(200)
    assert world.told("M0") == [("sent", 1)]
    world.restart(is_crash=True)
    world.run(2_000)
    assert world.told("M0") == CONFIRMED_FIRST
    assert len(writes(world, "M0")) == 1


@pytest.mark.parametrize("down_ms", [100, 10 * LIMITS.read_back_window_ms])
def test_what_was_acknowledged_before_a_crash_is_read_back_at_once_and_not_commanded_again(
    world: World, down_ms: int
) -> None:
    world.intend("M0", "open")
    world.run_until(lambda: ("acknowledged", 1) in world.told("M0"), 1_000)
    world.lose_line_owner()
    world.now_ms += down_ms
    world.restart(is_crash=True)
    world.run(300)
    assert world.told("M0") == CONFIRMED_FIRST
    assert len(writes(world, "M0")) == 1


def test_a_command_that_died_with_control_is_sent_again_as_the_next_attempt(
    world: World,
) -> None:
    world.intend("M0", "closed")
    world.deliver()
    assert world.told("M0") == [("sent", 1)]
    world.restart(is_crash=True)
    world.run(LIMITS.reply_timeout_ms + 2_000)
    assert world.told("M0") == [("sent", 1), ("failed", 1), ("sent", 2), *_rest(2)]


def test_a_restart_does_not_refill_the_budget() -> None:
    world = World((POLLED, POLLED), budget_count=1)
    world.intend("M0", "open")
    world.run(1_000)
    world.restart(is_crash=True)
    world.intend("M1", "open", lease_ms=5 * MINUTE_MS)
    world.run(50_000)
    assert world.told("M1") == [("over-budget", 0)]


def test_a_past_cut_that_names_no_command_is_no_reason_to_stop(world: World) -> None:
    world.intend("M0", "open")
    world.deliver()
    nameless = replace(world.outcomes[0], request_id=None, commanded_at_ms=None)
    assert nameless.result is Result.SENT
    world.outcomes = [nameless]
    world.restart(is_crash=True)
    world.run(1_000)
    assert world.told("M0")[-1][0] == "confirmed"


def test_actions_of_a_dropped_partition_are_void(world: World) -> None:
    world.intend("M0", "open")
    world.deliver()
    world.desk.drop(PARTITION)
    world.leave()
    assert writes(world, "M0") == []
    world.desk.open(PARTITION)
    assert world.desk.waiting_count() == 0
