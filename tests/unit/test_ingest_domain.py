"""Goal: the small decisions of ingest: whose turn, what is told, what is known.

Method: time is a number that the test moves.
"""

from typing import Any

import pytest

from services.common.kernel.errors import InvalidInput
from services.common.runtime.profiles import profiles
from services.ingest.domain.errors import Fault
from services.ingest.domain.presence import UNKNOWN_DEVICES_MAX, Device, Presence
from services.ingest.domain.registry import Registry
from services.ingest.domain.relay import RelayReports, position
from services.ingest.domain.schedule import PollSchedule
from tests.unit.ingest_devices import SERIAL, SITE, gateway_fact, meter_fact

# Whose turn.


def test_meters_take_turns_on_a_grid_and_never_in_a_burst() -> None:
    schedule = PollSchedule(1_000, 5_000)
    schedule.set_meters(["a", "b"], 0)
    assert schedule.turn(0) == "a"
    schedule.succeeded("a", 40)
    assert schedule.turn(40) == "b"
    schedule.succeeded("b", 80)
    assert schedule.turn(999) is None
    assert schedule.next() == ("a", 1_000)
    # The line was away for a minute: one reading each, not sixty.
    schedule.succeeded("a", 60_000)
    schedule.succeeded("b", 60_000)
    assert schedule.next() == ("a", 60_000)
    schedule.succeeded("a", 60_010)
    assert schedule.next() == ("b", 60_000)
    schedule.succeeded("b", 60_020)
    assert schedule.next() == ("a", 61_000)


def test_a_dead_meter_waits_behind_the_living_and_longer_each_time() -> None:
    schedule = PollSchedule(1_000, 5_000)
    schedule.set_meters(["dead", "living"], 0)
    assert schedule.failed("dead", 0, 300) == 1
    assert schedule.turn(600) == "living"
    schedule.succeeded("living", 610)
    assert schedule.turn(610) == "dead"
    waits = []
    now_ms = 610
    for _ in range(8):
        schedule.failed("dead", now_ms, now_ms)
        following = schedule._first(is_living=False)
        assert following is not None
        waits.append(following[1] - now_ms)
        now_ms = following[1]
    assert waits == [500, 1_000, 2_000, 4_000, 5_000, 5_000, 5_000, 5_000]


def test_dead_meters_get_a_quarter_of_the_line_however_many_they_are() -> None:
    schedule = PollSchedule(100, 1_000)
    schedule.set_meters(["living", *(f"dead{n}" for n in range(30))], 0)
    now_ms, probed_ms, read = 0, 0, 0
    probed = set()
    while now_ms < 120_000:
        turn = schedule.turn(now_ms)
        if turn is None:
            now_ms += 1
        elif turn == "living":
            now_ms += 20
            read += 1
            schedule.succeeded(turn, now_ms)
        else:
            schedule.failed(turn, now_ms, now_ms + 500)
            now_ms += 500
            probed_ms += 500
            probed.add(turn)
    assert len(probed) == 30
    assert probed_ms <= 0.25 * 120_000 + 2 * 30 * 500
    assert read >= 0.6 * 1_200


def test_a_line_too_busy_to_be_idle_still_notices_who_returns() -> None:
    schedule = PollSchedule(100, 1_000)
    schedule.set_meters(["dead", *(f"living{n}" for n in range(10))], 0)
    schedule.failed("dead", 0, 500)
    now_ms, probes = 500, 0
    while now_ms < 60_000:
        turn = schedule.turn(now_ms)
        assert turn is not None, "ten meters of 20 ms each need twice the line's time"
        if turn == "dead":
            schedule.failed(turn, now_ms, now_ms + 500)
            now_ms += 500
            probes += 1
        else:
            now_ms += 20
            schedule.succeeded(turn, now_ms)
    assert probes >= 15


# What is told.


DEVICE = Device("meters/M1", "meter", "S1", "line-G1")
UNKNOWN = Device.unknown("mqtt", "42")


def test_a_status_is_told_at_changes_and_again_after_the_refresh() -> None:
    presence = Presence("w", 30_000)
    first = presence.heard(DEVICE, 1_000)
    assert first is not None
    assert (first["status"], first["since_ms"], first["last_seen_ms"]) == ("online", 1_000, 1_000)
    assert presence.heard(DEVICE, 2_000) is None
    assert list(presence.refresh(30_999)) == []
    [again] = presence.refresh(31_000)
    assert (again["since_ms"], again["last_seen_ms"]) == (1_000, 2_000)
    lost = presence.lost(DEVICE, "no-answer", 40_000)
    assert lost is not None
    assert (lost["status"], lost["since_ms"], lost["last_seen_ms"]) == ("offline", 40_000, 2_000)
    assert presence.lost(DEVICE, "no-answer", 41_000) is None


def test_a_device_that_pushes_is_offline_when_it_is_silent_too_long() -> None:
    presence = Presence("w", 30_000)
    presence.expect(DEVICE, 0, 5_000)
    assert list(presence.refresh(5_000)) == [], "not heard since the start is not yet offline"
    [silent] = presence.refresh(5_001)
    assert (silent["status"], silent["reason"], silent["last_seen_ms"]) == (
        "offline",
        "silent",
        None,
    )
    assert presence.heard(DEVICE, 6_000) is not None
    assert list(presence.refresh(11_000)) == []
    [silent] = presence.refresh(11_001)
    assert silent["last_seen_ms"] == 6_000


def test_a_growing_count_is_told_each_ten_seconds() -> None:
    presence = Presence("w", 30_000)
    first = presence.set_aside(UNKNOWN, Fault.UNKNOWN_DEVICE, 0)
    assert first is not None
    assert (first["status"], first["quarantined_readings"]) == ("quarantined", 1)
    for now_ms in range(1_000, 10_000, 1_000):
        assert presence.set_aside(UNKNOWN, Fault.UNKNOWN_DEVICE, now_ms) is None
    assert list(presence.refresh(9_999)) == []
    [told] = presence.refresh(10_000)
    assert (told["quarantined_readings"], told["since_ms"]) == (10, 0)
    assert list(presence.refresh(20_000)) == []


def test_an_unknown_device_that_is_registered_is_told_a_last_time() -> None:
    presence = Presence("w", 30_000)
    presence.set_aside(UNKNOWN, Fault.UNKNOWN_DEVICE, 0)
    last = presence.registered(UNKNOWN.device_id, 1_000)
    assert last is not None
    assert (last["status"], last["reason"]) == ("offline", "registered")
    assert presence.registered(UNKNOWN.device_id, 2_000) is None
    assert list(presence.refresh(99_000)) == []


def test_an_unknown_device_of_before_a_restart_is_taken_leave_of_all_the_same() -> None:
    before = Presence("w", 30_000)
    told = before.set_aside(UNKNOWN, Fault.UNKNOWN_DEVICE, 0)
    assert told is not None
    presence = Presence("w", 30_000)
    presence.recall(told, 50_000)
    assert presence.unknown_count == 1
    assert presence.set_aside(UNKNOWN, Fault.UNKNOWN_DEVICE, 51_000) is None, "it stands so"
    last = presence.registered(UNKNOWN.device_id, 52_000)
    assert last is not None
    assert (last["status"], last["reason"]) == ("offline", "registered")
    again = Presence("w", 30_000)
    again.recall(last, 60_000)
    assert again.unknown_count == 0


def test_unknown_devices_are_bounded() -> None:
    presence = Presence("w", 30_000)
    for number in range(UNKNOWN_DEVICES_MAX + 5):
        presence.set_aside(Device.unknown("mqtt", str(number)), Fault.UNKNOWN_DEVICE, number)
    assert presence.unknown_count == UNKNOWN_DEVICES_MAX
    assert presence.registered("unknown/mqtt/4", 1) is None
    assert presence.registered("unknown/mqtt/5", 1) is not None


def test_a_message_that_cannot_be_read_does_not_make_a_gateway_look_ill() -> None:
    presence = Presence("w", 30_000)
    presence.heard(DEVICE, 0)
    presence.count_aside(DEVICE, 1_000)
    [told] = presence.refresh(10_000)
    assert (told["status"], told["quarantined_readings"]) == ("online", 1)


def test_a_relay_position_is_told_at_changes_on_request_and_each_interval() -> None:
    reports = RelayReports(10_000)
    assert reports.is_due("M1", 0, 1, 0)
    assert not reports.is_due("M1", 0, 1, 9_999)
    assert reports.is_due("M1", 0, 0, 9_999), "changed"
    assert reports.is_due("M1", 1, 0, 9_999), "of another epoch"
    assert not reports.is_due("M1", 1, 0, 10_000)
    reports.commanded("M1")
    assert reports.is_due("M1", 1, 0, 10_000), "commanded"
    assert reports.is_due("M1", 1, 0, 20_000), "an interval later"
    assert reports.is_due("M1", 1, 0, 19_999), "the clock went back"


@pytest.mark.parametrize(
    ("profile", "mask", "expected"),
    [
        ("acrel-ddsy1352", 0b001, "closed"),
        ("acrel-ddsy1352", 0b110, "open"),
        ("acrel-dtsy1352", 0b111, "closed"),
        ("acrel-dtsy1352", 0b010, "mixed"),
        ("acrel-dtsy1352", 0b000, "open"),
        ("acrel-mqtt", 0b001, "closed"),
    ],
)
def test_a_position_is_judged_by_the_wired_phases(profile: str, mask: int, expected: str) -> None:
    assert position(profiles()[profile], mask) == expected


# What is known.


def registry(*facts: tuple[str, dict[str, Any]]) -> Registry:
    made = Registry()
    for subject, record in facts:
        made.absorb(subject, record)
    return made


def test_the_highest_version_of_a_fact_stands() -> None:
    known = registry(("meter-fact", meter_fact(epoch=2, revision=5)))
    assert not known.absorb("meter-fact", meter_fact(epoch=1, revision=4))
    assert not known.absorb("meter-fact", meter_fact(epoch=9, revision=5))
    assert known.absorb("meter-fact", meter_fact(epoch=3, book_epoch=2, revision=0))
    meter = known.meter("M1")
    assert meter is not None
    assert meter.epoch == 3


def test_a_replaced_meter_is_no_longer_known_by_its_old_serial() -> None:
    known = registry(("meter-fact", meter_fact()))
    known.absorb("meter-fact", meter_fact(serial="new", revision=1))
    assert known.meter_with_serial(SERIAL) is None
    meter = known.meter_with_serial("new")
    assert meter is not None
    assert meter.meter_id == "M1"


def test_a_serial_that_moved_to_another_meter_stays_with_it() -> None:
    known = registry(
        ("meter-fact", meter_fact("M1")),
        ("meter-fact", meter_fact("M2", serial=SERIAL)),
        ("meter-fact", meter_fact("M1", serial="other", revision=1)),
    )
    meter = known.meter_with_serial(SERIAL)
    assert meter is not None
    assert meter.meter_id == "M2"


def test_a_gateway_is_found_where_it_is_now() -> None:
    known = registry(("gateway-fact", gateway_fact(protocol="mqtt-acrel", address="A/1")))
    moved = {**gateway_fact(protocol="mqtt-acrel", address="A/2"), "revision": 1}
    known.absorb("gateway-fact", moved)
    assert known.gateway_at("mqtt-acrel", "A/1") is None
    assert known.gateway_at("mqtt-acrel", "A/2") is not None
    assert known.polled_lines() == {}


def test_a_polled_line_has_its_meters_by_bus_address() -> None:
    known = registry(
        ("meter-fact", meter_fact("M2", unit=2)),
        ("meter-fact", meter_fact("M1", unit=1)),
        ("meter-fact", meter_fact("M3", unit=3, gateway_id="G2")),
        ("gateway-fact", gateway_fact()),
    )
    line = known.polled_lines()["line-G1"]
    assert [meter.meter_id for meter in line.meters] == ["M1", "M2"]


def test_a_site_without_a_zone_of_this_world_is_refused() -> None:
    known = Registry()
    with pytest.raises(InvalidInput):
        known.absorb("site-fact", {**SITE, "zone": "Mars/Olympus"})
    assert known.zone("S1") is None
    assert known.absorb("site-fact", SITE), "a fact that failed is not a version that stands"
    assert not known.absorb("tariff-fact", {})
