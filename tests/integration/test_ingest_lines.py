"""Goal: a line is polled and commanded one transaction at a time, whatever its gateway does.

Method: the line's worker with its real Modbus client, against a gateway on a raw socket that
accepts one connection and misbehaves as told; what would go to Kafka is kept in lists.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from services.common.runtime.clock import SystemClock
from services.ingest.adapters.modbus_link import ModbusLink
from services.ingest.domain import clocks
from services.ingest.domain.exchange import Result
from tests.integration.ingest_line_world import (
    Asked,
    Gateway,
    LineWorld,
    Ours,
    line_world,
    set_clock,
    until,
)
from tests.unit.ingest_devices import SERIAL, meter_fact

SERIAL_2 = "230411000043"
SERIAL_2_WORDS = (0x2304, 0x1100, 0x0043)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture(params=["tcp", "rtu"])
def gateway(request: pytest.FixtureRequest) -> Gateway:
    made = Gateway(is_rtu=request.param == "rtu")
    made.add_meter(1)
    return made


def two_meters(gateway: Gateway) -> list[dict[str, Any]]:
    gateway.add_meter(2, SERIAL_2_WORDS)
    return [meter_fact(), meter_fact("M2", unit=2, serial=SERIAL_2)]


def faulty(world: LineWorld, fault: str, *, unit: int = 1, function: int = 0x03) -> None:
    def chosen(asked: Asked) -> str | None:
        return fault if (asked.unit, asked.function) == (unit, function) else None

    world.gateway.fault = chosen


async def test_a_meter_is_asked_for_its_serial_once_and_then_read(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        await until(lambda: len(world.kept.readings) >= 3, "three readings")
        serials = [asked for asked in gateway.asked if asked.address == 0x0043]
        assert len(serials) == 1
        reading = world.kept.readings[0]
        assert reading.meter.serial == SERIAL
        assert reading.device.register_milli == 1_234_560
        assert reading.began_at_ms <= reading.received_at_ms <= now_ms()
        assert world.kept.status("meters/M1") == ("online", "")
        assert world.kept.status("gateways/G1") == ("online", "")
        first = world.kept.records("relay-states")[0]
        assert (first["position"], first["by"]) == ("closed", "poll")
    assert gateway.connections == 1
    await until(lambda: gateway.open is None, "the connection is closed at the end")


async def test_there_are_never_two_transactions_in_flight(gateway: Gateway) -> None:
    gateway.answer_after_s = 0.01
    async with line_world(gateway, two_meters(gateway), requests_max=100) as world:
        asked = [world.ask(meter_id=f"M{1 + n % 2}") for n in range(20)]
        for request_id in asked:
            assert (await world.answered(request_id))["result"] == "ok"
    assert gateway.overlaps == 0
    assert gateway.refused == 0


async def test_a_cut_is_written_and_read_back_by_a_read_that_began_after_it(
    gateway: Gateway,
) -> None:
    async with line_world(gateway, poll_interval_ms=60_000) as world:
        wrote = await world.answered(world.ask("write-registers"))
        read_id = world.ask("read-live")
        read = await world.answered(read_id)
        assert (wrote["result"], wrote["requester"]) == ("ok", "control-0")
        assert (read["result"], read["position"], read["closed_mask"]) == ("ok", "open", 0)
        assert wrote["began_at_ms"] <= wrote["completed_at_ms"] <= read["began_at_ms"]
        [write] = gateway.writes()
        assert (write.address, write.values) == (0x0057, (1, 1))
        state = world.kept.records("relay-states")[-1]
        assert (state["by"], state["request_id"], state["position"]) == ("request", read_id, "open")
        assert any(r.began_at_ms == read["began_at_ms"] for r in world.kept.readings)


async def test_the_first_position_after_a_command_is_told_though_it_did_not_change(
    gateway: Gateway,
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: len(world.kept.readings) >= 3, "three readings")
        assert len(world.kept.records("relay-states")) == 1
        wrote = await world.answered(world.ask("write-registers", values=[0, 0]))
        await until(lambda: len(world.kept.records("relay-states")) == 2, "a state after it")
        state = world.kept.records("relay-states")[1]
        assert state["began_at_ms"] >= wrote["completed_at_ms"]
        assert (state["position"], state["by"]) == ("closed", "poll")


async def test_a_request_goes_before_the_polls_that_are_due(gateway: Gateway) -> None:
    gateway.answer_after_s = 0.02
    # The polls alone need four times the line's time: one is always due.
    async with line_world(gateway, two_meters(gateway), poll_interval_ms=10) as world:
        await until(lambda: len(world.kept.readings) >= 4, "polls")
        before = len(gateway.asked)
        await world.answered(world.ask("write-registers"))
        at = [asked.function for asked in gateway.asked[before:]].index(0x10)
        assert at <= 1, "behind the transaction under way at most"


async def test_an_expired_request_is_never_written(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        late = world.ask("write-registers", not_after_ms=now_ms() - 1)
        assert (await world.answered(late))["result"] == "expired"
        # It expires while another one holds the line.
        faulty(world, "silence")
        waiting = world.ask("read-live")
        expiring = world.ask("write-registers", not_after_ms=now_ms() + 50)
        assert (await world.answered(waiting))["result"] == "timeout"
        assert (await world.answered(expiring))["result"] == "expired"
    assert gateway.writes() == []


async def test_time_and_ownership_are_looked_at_when_the_bytes_leave(gateway: Gateway) -> None:
    await gateway.start()
    ours = Ours()
    link = ModbusLink(
        "127.0.0.1",
        gateway.port,
        is_rtu=gateway.is_rtu,
        timeout_ms=500,
        clock=SystemClock(),
        is_ours=ours,
    )
    assert await link.connect() == ""
    expired = await link.write(1, 0x0057, (1, 1), now_ms() - 1)
    assert expired.result is Result.EXPIRED
    assert (await link.read(1, 0x0200, 48, now_ms() - 1)).result is Result.EXPIRED
    ours.now = False
    assert (await link.write(1, 0x0057, (1, 1), None)).result is Result.NOT_CONNECTED
    assert gateway.asked == []
    ours.now = True
    in_time = await link.write(1, 0x0057, (1, 1), now_ms() + 5_000)
    assert in_time.result is Result.OK
    link.close()
    await gateway.stop()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"meter_id": "M9"}, "meter M9 is not on line line-G1"),
        ({"serial": "1"}, "not ('1', 1, 'acrel-ddsy1352')"),
        ({"unit": 9}, "(serial, unit, profile)"),
        ({"profile": "acrel-mqtt"}, "(serial, unit, profile)"),
        ({"operation": "reboot"}, "operation 'reboot' is not known"),
        ({"values": [7, 7]}, "is no relay command"),
        ({"address": 0x0100}, "is no relay command"),
        ({"values": []}, "is no relay command"),
    ],
)
async def test_what_may_not_be_written_is_refused(changed: dict[str, Any], why: str) -> None:
    gateway = Gateway()
    gateway.add_meter(1)
    async with line_world(gateway) as world:
        reply = await world.answered(world.ask(**{"operation": "write-registers", **changed}))
        assert reply["result"] == "refused"
        assert why in reply["detail"]
    assert gateway.writes() == []


async def test_more_requests_than_a_line_keeps_are_refused_at_once(gateway: Gateway) -> None:
    gateway.answer_after_s = 0.02
    async with line_world(gateway, requests_max=3) as world:
        asked = [world.ask() for _ in range(10)]
        results = [(await world.answered(request_id))["result"] for request_id in asked]
        assert results.count("ok") == 3
        assert results.count("refused") == 7


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        ("silence", "timeout"),
        ("exception", "exception"),
        ("truncated", "malformed"),
        ("garbage", "malformed"),
        ("drop", "timeout"),
    ],
)
async def test_a_faulty_answer_has_its_result_and_the_line_recovers(
    gateway: Gateway, fault: str, result: str
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        faulty(world, fault)
        assert (await world.answered(world.ask()))["result"] == result
        gateway.fault = lambda _: None
        before = len(world.kept.readings)
        await until(lambda: len(world.kept.readings) >= before + 2, "readings again")
        await until(lambda: world.kept.status("meters/M1") == ("online", ""), "online again")
    assert gateway.overlaps == 0


async def test_a_wrong_crc_is_malformed() -> None:
    gateway = Gateway(is_rtu=True)
    gateway.add_meter(1)
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        faulty(world, "bad-crc")
        assert (await world.answered(world.ask()))["result"] == "malformed"
        before = len(world.kept.readings)
        assert not [r for r in world.kept.readings[before:] if r.device.register_milli != 1_234_560]


async def test_an_answer_with_another_transaction_id_is_no_answer() -> None:
    gateway = Gateway()
    gateway.add_meter(1)
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        faulty(world, "wrong-tid")
        assert (await world.answered(world.ask()))["result"] == "malformed"


async def test_a_late_answer_never_passes_for_the_next_one(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        faulty(world, "late")
        assert (await world.answered(world.ask()))["result"] == "timeout"
        gateway.fault = lambda _: None
        gateway.registers[1][0x0224] = 0x0000
        # The next answer takes long enough for the late one to come before it.
        gateway.answer_after_s = 0.15
        began_ms = now_ms()
        read = await world.answered(world.ask())
        assert (read["result"], read["position"]) == ("ok", "open")
        assert read["began_at_ms"] >= began_ms


async def test_a_write_without_an_answer_is_a_timeout_though_it_was_executed(
    gateway: Gateway,
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        faulty(world, "silence", function=0x10)
        assert (await world.answered(world.ask("write-registers")))["result"] == "timeout"
        assert len(gateway.writes()) == 1, "a command is not repeated by the line"


async def test_a_dead_meter_does_not_starve_the_line(gateway: Gateway) -> None:
    meters = [
        meter_fact(),
        *(meter_fact(f"D{n}", unit=10 + n, serial=f"9{n}") for n in range(6)),
    ]
    async with line_world(gateway, meters, poll_interval_ms=50) as world:
        await until(lambda: world.kept.status("meters/D5") == ("offline", "no-answer"), "offline")
        before, began = len(world.kept.readings), time.monotonic()
        await until(lambda: len(world.kept.readings) >= before + 8, "readings of the living")
        # Three quarters of the line's time: six dead meters would take 1.2 s a round, 8 rounds.
        assert time.monotonic() - began < 4.0
        assert world.kept.status("meters/M1") == ("online", "")


async def test_the_return_of_a_meter_is_told_before_its_first_reading(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        faulty(world, "silence")
        await until(lambda: world.kept.status("meters/M1") == ("offline", "no-answer"), "offline")
        before = len(world.kept.readings)
        gateway.fault = lambda _: None
        await until(lambda: len(world.kept.readings) > before, "a reading")
        assert world.kept.status("meters/M1") == ("online", "")


async def test_a_meter_that_tells_another_serial_is_quarantined_until_it_tells_its_own(
    gateway: Gateway,
) -> None:
    gateway.registers[1][0x0045] = 0x0043
    async with line_world(gateway) as world:
        mismatch = ("quarantined", "serial-mismatch")
        await until(lambda: world.kept.status("meters/M1") == mismatch, "quarantined")
        refused = await world.answered(world.ask("write-registers"))
        assert refused["result"] == "refused"
        assert world.kept.readings == []
        gateway.registers[1][0x0045] = 0x0042
        await until(lambda: world.kept.readings, "a reading")
        assert world.kept.status("meters/M1") == ("online", "")
    assert gateway.writes() == []


async def test_an_absurd_reading_is_set_aside_and_the_next_one_counts(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        gateway.registers[1][0x0215] = 0xFFFF
        absurd = ("quarantined", "register-above-maximum")
        await until(lambda: world.kept.status("meters/M1") == absurd, "quarantined")
        assert world.count("wattvend_ingest_readings_total", protocol="modbus", outcome="set-aside")
        gateway.registers[1][0x0215] = 0x0001
        before = len(world.kept.readings)
        await until(lambda: len(world.kept.readings) > before, "a reading")
        assert {r.device.register_milli for r in world.kept.readings} == {1_234_560}
        assert world.kept.status("meters/M1") == ("online", "")


async def test_a_wrong_clock_is_quarantined_but_the_relay_is_told(gateway: Gateway) -> None:
    gateway.clocks_follow = False
    async with line_world(gateway) as world:
        gateway.registers[1][0x0228] = 0x0A01
        behind = ("quarantined", "clock-behind")
        await until(lambda: world.kept.status("meters/M1") == behind, "quarantined")
        gateway.registers[1][0x0224] = 0x0000
        await until(
            lambda: world.kept.records("relay-states")[-1]["position"] == "open", "the position"
        )
        assert world.kept.records("relay-states")[-1]["device_time_ms"] is None


async def test_a_gateway_that_is_away_is_told_with_its_meters_and_found_again(
    gateway: Gateway,
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        await gateway.stop()
        await until(lambda: world.kept.status("gateways/G1") == ("offline", "not-connected"), "off")
        assert world.kept.status("meters/M1") == ("offline", "gateway-offline")
        assert (await world.answered(world.ask()))["result"] == "not-connected"
        before = len(world.kept.readings)
        await gateway.start()
        await until(lambda: len(world.kept.readings) > before, "readings again")
        assert world.kept.status("gateways/G1") == ("online", "")
        assert world.kept.status("meters/M1") == ("online", "")


async def test_a_gateway_that_accepts_and_drops_is_away(gateway: Gateway) -> None:
    gateway.is_accepting = False
    async with line_world(gateway) as world:
        await until(lambda: world.kept.status("gateways/G1") == ("offline", "not-connected"), "off")
        gateway.is_accepting = True
        await until(lambda: world.kept.readings, "a reading")
        assert world.kept.status("gateways/G1") == ("online", "")


async def test_readings_are_dropped_and_counted_while_kafka_takes_none(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        world.kept.has_room = False
        name = "wattvend_ingest_readings_total"
        await until(lambda: world.count(name, protocol="modbus", outcome="dropped") >= 2, "drops")
        before = len(world.kept.readings)
        world.kept.has_room = True
        await until(lambda: len(world.kept.readings) > before, "readings again")


async def test_a_line_that_may_be_anothers_is_left_alone_and_nothing_is_said_of_it(
    gateway: Gateway,
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        world.ours.now = False
        await until(lambda: gateway.open is None, "the gateway is free for another owner")
        asked, told = len(gateway.asked), len(world.kept.sent)
        waiting = world.ask("write-registers")
        until_ms = now_ms() + 200
        expiring = world.ask("write-registers", not_after_ms=until_ms)
        await until(lambda: now_ms() > until_ms, "four polls would be due by now")
        assert (len(gateway.asked), len(world.kept.sent)) == (asked, told)
        world.ours.now = True
        assert (await world.answered(waiting))["result"] == "ok"
        assert (await world.answered(expiring))["result"] == "expired"
        assert len(gateway.writes()) == 1


async def test_what_waits_when_a_line_is_given_up_hears_of_it(gateway: Gateway) -> None:
    gateway.answer_after_s = 0.1
    async with line_world(gateway) as world:
        await until(lambda: gateway.asked, "a transaction under way")
        asked = [world.ask() for _ in range(3)]
        world.worker.close()
        for request_id in asked:
            assert (await world.answered(request_id))["result"] == "not-connected"
        late = world.ask()
        assert (await world.answered(late))["result"] == "not-connected"


async def test_a_meter_that_joins_the_line_is_polled_and_one_that_leaves_is_not(
    gateway: Gateway,
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        for fact in two_meters(gateway)[1:]:
            world.registry.absorb("meter-fact", fact)
        set_clock(gateway)
        world.registry.absorb("meter-fact", meter_fact(gateway_id="G2", revision=1))
        world.worker.update(world.registry.polled_lines()["line-G1"])
        before = len(world.kept.readings)
        await until(lambda: len(world.kept.readings) >= before + 3, "readings")
        assert {r.meter.meter_id for r in world.kept.readings[before + 1 :]} == {"M2"}


CLOCKS_SET = 0x20
HALF_AN_HOUR = timedelta(minutes=30)


@pytest.fixture
def any_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clocks be set about midnight too, when a test may run."""
    monkeypatch.setattr(clocks, "FROM_MIDNIGHT", timedelta())


def tended(world: LineWorld, device_id: str = "meters/M1") -> tuple[str, int | None] | None:
    """Return what came of a meter's clock, and how far ahead it was."""
    told = [r for r in world.kept.records("device-status") if r["device_id"] == device_id]
    newest = told[-1] if told else None
    if newest is None or newest["clock_result"] is None:
        return None
    return newest["clock_result"], newest["clock_ahead_ms"]


def clocks_written(gateway: Gateway) -> list[Asked]:
    return [asked for asked in gateway.asked if asked.function == CLOCKS_SET]


@pytest.mark.usefixtures("any_hour")
@pytest.mark.parametrize("ahead", [HALF_AN_HOUR, -HALF_AN_HOUR, timedelta(days=-30)])
async def test_a_clock_that_is_wrong_is_set_once_and_read_back(
    gateway: Gateway, ahead: timedelta
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: len(world.kept.readings) >= 2, "two readings")
        assert tended(world) is None
        set_clock(gateway, ahead)
        await until(lambda: tended(world), "the clock is tended")
        result, ahead_ms = tended(world) or ("", None)
        assert result == "set"
        assert ahead_ms is not None
        assert abs(ahead_ms - ahead / timedelta(milliseconds=1)) < 5_000
        (write,) = clocks_written(gateway)
        assert (write.address, write.count) == (0x0354, 5)
        octets = b"".join(word.to_bytes(2, "big") for word in write.values)
        assert octets[7:] == bytes(3)
        second, minute, hour, _, day, month, year = octets[:7]
        told = datetime(2000 + year, month, day, hour, minute, second, tzinfo=UTC)
        assert abs(told.timestamp() - time.time()) < 60
        assert world.kept.status("meters/M1") == ("online", "")
        readings = len(world.kept.readings)
        set_clock(gateway, HALF_AN_HOUR)  # wrong again: not before tomorrow
        await until(lambda: len(world.kept.readings) >= readings + 3, "three more readings")
        assert len(clocks_written(gateway)) == 1
        assert world.count("wattvend_ingest_clocks_tended_total", result="set") == 1


@pytest.mark.usefixtures("any_hour")
async def test_clocks_are_left_where_the_setting_says_so_and_told_all_the_same(
    gateway: Gateway,
) -> None:
    async with line_world(gateway, set_clocks=False) as world:
        await until(lambda: world.kept.readings, "a reading")
        set_clock(gateway, HALF_AN_HOUR)
        await until(lambda: tended(world), "the clock is seen to")
        assert (tended(world) or ("", None))[0] == "left"
        assert clocks_written(gateway) == []


@pytest.mark.usefixtures("any_hour")
async def test_a_clock_that_tells_no_time_is_set_and_its_meter_is_read_again(
    gateway: Gateway,
) -> None:
    async with line_world(gateway) as world:
        await until(lambda: world.kept.readings, "a reading")
        for at in range(4):
            gateway.registers[1][0x0228 + at] = 0
        await until(lambda: tended(world), "the clock is tended")
        assert tended(world) == ("set", None)
        await until(lambda: world.kept.status("meters/M1") == ("online", ""), "it is well again")
        reasons = [record["reason"] for record in world.kept.records("device-status")]
        assert "clock-impossible" in reasons


@pytest.mark.usefixtures("any_hour")
async def test_where_one_clock_does_not_follow_no_other_of_its_profile_is_written(
    gateway: Gateway,
) -> None:
    gateway.clocks_follow = False
    async with line_world(gateway, two_meters(gateway)) as world:
        await until(lambda: len(world.kept.readings) >= 4, "readings")
        set_clock(gateway, HALF_AN_HOUR)
        names = ("meters/M1", "meters/M2")
        await until(lambda: any(tended(world, name) for name in names), "one clock is tended")
        readings = len(world.kept.readings)
        await until(lambda: len(world.kept.readings) >= readings + 6, "more readings")
        assert [tended(world, name) is None for name in names].count(True) == 1
        assert {found[0] for name in names if (found := tended(world, name))} == {"not-taken"}
        assert len(clocks_written(gateway)) == 1


@pytest.mark.usefixtures("any_hour")
async def test_a_device_that_refuses_its_clock_is_read_on(gateway: Gateway) -> None:
    async with line_world(gateway) as world:
        faulty(world, "exception", function=CLOCKS_SET)
        await until(lambda: world.kept.readings, "a reading")
        set_clock(gateway, HALF_AN_HOUR)
        await until(lambda: tended(world), "the clock is tended")
        assert (tended(world) or ("",))[0] == "exception"
        readings = len(world.kept.readings)
        await until(lambda: len(world.kept.readings) > readings, "it is read on")
        assert len(clocks_written(gateway)) == 1
