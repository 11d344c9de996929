"""Goal: a virtual meter counts every nanojoule once, and none while its relay is open.

Method: the meter is pure, so tests move its clock by hand. Histories of looks, commands and power
changes are drawn by Hypothesis and judged by an integral computed apart from the meter.
"""

from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.fleet.config import LoadConfig, MeterConfig, Protocol
from tools.fleet.errors import RefusedError
from tools.fleet.load import make_load
from tools.fleet.meter import (
    NANOJOULE_PER_LSB,
    REGISTER_MODULUS,
    Fault,
    FaultKind,
    Forced,
    Meter,
    Position,
    Presence,
)

BORN_MS = 1_772_000_000_000
NO_FAULTS: frozenset[FaultKind] = frozenset()


def make_meter(
    power_w: int = 1_000_000,
    *,
    protocol: Protocol = Protocol.MODBUS_TCP,
    load_on: bool = True,
    **more: int,
) -> Meter:
    config = MeterConfig(
        id="meter-1",
        serial="230100000001",
        gateway="gw",
        unit=0 if protocol is Protocol.MQTT_ACREL else 1,
        profile="acrel-mqtt" if protocol is Protocol.MQTT_ACREL else "acrel-dtsy1352",
        load=LoadConfig(power_w=power_w),
        **more,
    )
    return Meter(
        config,
        make_load(config.load),
        protocol=protocol,
        zone=ZoneInfo("Asia/Shanghai"),
        now_ms=BORN_MS,
        load_on=load_on,
    )


def test_a_megawatt_counts_a_hundredth_of_a_kilowatt_hour_every_36_ms() -> None:
    meter = make_meter(register_lsb=500)
    assert meter.snapshot(BORN_MS + 35).register_lsb == 500
    assert meter.snapshot(BORN_MS + 36).register_lsb == 501
    assert meter.snapshot(BORN_MS + 3_600).register_lsb == 600


def test_behind_transformers_the_register_counts_secondary_energy() -> None:
    meter = make_meter(ct=20, pt=2)
    assert meter.snapshot(BORN_MS + 36 * 40 - 1).register_lsb == 0
    assert meter.snapshot(BORN_MS + 36 * 40).register_lsb == 1


def test_nothing_is_counted_while_the_load_is_off() -> None:
    meter = make_meter(load_on=False)
    assert meter.snapshot(BORN_MS + 10_000).register_lsb == 0
    meter.switch_load(True, BORN_MS + 10_000)
    assert meter.snapshot(BORN_MS + 10_036).register_lsb == 1
    meter.switch_load(False, BORN_MS + 10_036)
    assert meter.snapshot(BORN_MS + 20_000).register_lsb == 1


def test_the_register_stops_at_the_very_millisecond_the_contacts_open() -> None:
    meter = make_meter()
    opened_ms = meter.command(Forced.OPEN, BORN_MS + 1_000)
    assert 30 <= opened_ms - (BORN_MS + 1_000) <= 80
    before = meter.snapshot(opened_ms - 1)
    assert (before.position, before.forced) == (Position.CLOSED, Forced.OPEN)
    # Nobody looks until much later: the energy is still that of the opening.
    after = meter.snapshot(opened_ms + 3_600_000)
    assert after.position is Position.OPEN
    assert meter.energy_nanojoule == 1_000_000 * 1_000_000 * (opened_ms - BORN_MS)
    [transition] = meter.transitions
    assert (transition.position, transition.at_ms) == (Position.OPEN, opened_ms)


@pytest.mark.parametrize("forced", [Forced.CLOSED, Forced.PREPAID])
def test_both_ways_of_closing_close(forced: Forced) -> None:
    meter = make_meter()
    opened_ms = meter.command(Forced.OPEN, BORN_MS)
    closed_ms = meter.command(forced, opened_ms + 5_000)
    assert meter.snapshot(closed_ms).position is Position.CLOSED
    assert [one.position for one in meter.transitions] == [Position.OPEN, Position.CLOSED]


def test_a_command_that_changes_nothing_moves_nothing() -> None:
    meter = make_meter()
    assert meter.command(Forced.PREPAID, BORN_MS + 5) == BORN_MS + 5
    first_ms = meter.command(Forced.OPEN, BORN_MS + 10)
    assert meter.command(Forced.OPEN, BORN_MS + 20) == first_ms
    meter.advance(BORN_MS + 10_000)
    assert len(meter.transitions) == 1
    assert meter.commands_accepted == 3


STEPS = st.lists(
    st.tuples(
        st.integers(0, 400_000),
        st.sampled_from(["look", "open", "close", "on", "off", "power"]),
        st.integers(0, 5_000_000),
    ),
    max_size=30,
)


@given(STEPS, st.integers(1, 50))
@settings(deadline=None)  # a busy machine is no failure
def test_energy_is_conserved_over_every_history(steps: list[tuple[int, str, int]], ct: int) -> None:
    meter = make_meter(7_777, ct=ct, register_lsb=123)
    power_w, load_on, now_ms = 7_777, True, BORN_MS
    position = Position.CLOSED  # the judge's own relay
    moves: list[tuple[int, Position]] = []
    expected_nanojoule = 0
    for wait_ms, what, figure in [*steps, (100, "look", 0)]:
        until_ms = now_ms + wait_ms
        while now_ms < until_ms:
            edge_ms = min([until_ms, *(at_ms for at_ms, _ in moves if at_ms > now_ms)])
            if load_on and position is Position.CLOSED:
                expected_nanojoule += power_w * 1_000_000 * (edge_ms - now_ms)
            now_ms = edge_ms
            for at_ms, to in moves:
                position = to if at_ms == now_ms else position
        if what in ("open", "close"):
            forced = Forced.OPEN if what == "open" else Forced.PREPAID
            wanted = moves[-1][1] if moves else Position.CLOSED
            meter.command(forced, now_ms)
            if wanted is not forced.position:
                moves.append((now_ms + meter.actuation_ms, forced.position))
        elif what in ("on", "off"):
            load_on = what == "on"
            meter.switch_load(load_on, now_ms)
        elif what == "power":
            power_w = figure
            meter.set_power(figure, now_ms)
        shown = meter.snapshot(now_ms)
        assert meter.energy_nanojoule == expected_nanojoule
        remainder = expected_nanojoule - (shown.register_lsb - 123) * NANOJOULE_PER_LSB * ct
        assert 0 <= remainder < NANOJOULE_PER_LSB * ct
        assert sum(shown.rates_lsb) == shown.register_lsb
        assert shown.position is position


def test_the_register_rolls_over_after_its_eight_digits() -> None:
    meter = make_meter(register_lsb=REGISTER_MODULUS - 1)
    assert meter.snapshot(BORN_MS + 36).register_lsb == 0


def test_it_falls_silent_with_the_very_reading_that_shows_so_much() -> None:
    meter = make_meter(10_000)
    meter.go_offline(Presence.SILENT, after_register_lsb=2)
    # The third shows enough, but in the same second of the device's clock as the second.
    for at_ms in (3_600, 7_199, 7_200):
        meter.served(meter.snapshot(BORN_MS + at_ms), BORN_MS + at_ms)
        assert meter.presence is Presence.ONLINE
    meter.served(meter.snapshot(BORN_MS + 8_000), BORN_MS + 8_000)
    assert meter.presence is Presence.SILENT
    assert meter.last_served_register_lsb == 2
    meter.go_online()
    # The line was lost, not the power.
    assert meter.snapshot(BORN_MS + 36_000).register_lsb == 10


def test_a_fault_lasts_as_many_answers_as_it_says() -> None:
    meter = make_meter()
    meter.set_fault(Fault(FaultKind.ABSURD_REGISTER, 2, register_lsb=99))
    kinds = frozenset({FaultKind.ABSURD_REGISTER})
    assert meter.shown(BORN_MS, NO_FAULTS)[1] is None  # another kind of answer spends nothing
    told = [meter.shown(BORN_MS, kinds)[0].register_lsb for _ in range(3)]
    assert told == [99, 99, 0]


def test_faults_that_the_protocol_cannot_show_are_refused() -> None:
    with pytest.raises(RefusedError, match="which has no CRC; use malformed"):
        make_meter().set_fault(Fault(FaultKind.WRONG_CRC, 1))
    with pytest.raises(RefusedError, match="12 digits"):
        make_meter().set_fault(Fault(FaultKind.WRONG_SERIAL, 1, serial="12AB"))
    with pytest.raises(RefusedError, match="it can only be silent"):
        make_meter().go_offline(Presence.MISSING, None)
    make_meter(protocol=Protocol.MQTT_ACREL).go_offline(Presence.MISSING, None)
