"""Goal: on the wire a virtual Modbus meter is a DDSY1352 or DTSY1352, byte for byte.

Method: requests and answers are written by hand from the register map, and fed to the framings as
bytes; no codec of the product, and no Modbus library, is involved.
"""

import asyncio
import struct
from zoneinfo import ZoneInfo

import pytest

from tools.fleet.config import LoadConfig, MeterConfig, Protocol
from tools.fleet.load import make_load
from tools.fleet.meter import Fault, FaultKind, Forced, Meter, Position
from tools.fleet.modbus import LostError, Request, RtuFraming, TcpFraming, crc16, execute

# 2026-03-01 (a Sunday) 13:14:15 in Shanghai.
NOW_MS = 1_772_342_055_000


def make_meter(profile: str = "acrel-ddsy1352", *, power_w: int = 2_254, **more: object) -> Meter:
    config = MeterConfig(
        id="meter-1",
        serial="230169757953",
        gateway="gw",
        unit=1,
        profile=profile,
        register_lsb=0x00012345,
        load=LoadConfig(power_w=power_w),
        **more,
    )
    return Meter(
        config,
        make_load(config.load),
        protocol=Protocol.MODBUS_RTU_OVER_TCP,
        zone=ZoneInfo("Asia/Shanghai"),
        now_ms=NOW_MS,
        load_on=True,
    )


def ask(meter: Meter, pdu: str, *, at_ms: int = NOW_MS) -> str:
    return execute(meter, bytes.fromhex(pdu), at_ms)[0].hex(" ")


async def receive(framing: RtuFraming | TcpFraming, *chunks: bytes) -> Request:
    reader = asyncio.StreamReader()
    for chunk in chunks:
        reader.feed_data(chunk)
    return await framing.receive(reader)


# --- the map -------------------------------------------------------------------------------------


def test_the_live_block_of_a_single_phase_meter_is_these_96_bytes() -> None:
    meter = make_meter()
    voltage = meter.snapshot(NOW_MS).voltage_dv
    current = 2_254 * 1_000_000 // (voltage * 980)  # 0.01 A
    expected = (
        bytes.fromhex("03 60  00 07")  # 96 bytes; DDSY1352
        + struct.pack(">HHH", voltage, 0, 0)
        + struct.pack(">HHH", current, 0, 0)
        + bytes.fromhex("08CE 0000 0000 08CE")  # 2254 W
        + bytes.fromhex("01C9 0000 0000 01C9")  # x 0.203 = 457 var
        + bytes.fromhex("03D4 0000 0000 03D4")  # power factor 0.980
        + bytes.fromhex("0001 0001")  # PT, CT
        + bytes.fromhex("00012345 00000000 00000000 00012345 00000000")  # total; all of it flat
        + bytes.fromhex("00000000 0000 0000 0000")  # remaining amount, purchases, trips
        + bytes.fromhex("20 00 00 00")  # relay of L1 closed
        + bytes.fromhex("00012345")  # base energy
        + bytes((26, 3, 1, 0, 13, 14, 15))  # Sunday is 0
        + bytes.fromhex("08CE 00 00 01 01 00 00 00")
    )
    assert ask(meter, "03 0200 0030") == expected.hex(" ")
    assert len(expected) == 98


def test_a_three_phase_meter_shows_secondary_power_on_all_phases_and_its_ratios() -> None:
    meter = make_meter("acrel-dtsy1352", power_w=600_000, ct=20)
    block = bytes.fromhex(ask(meter, "03 0200 0030"))[2:]
    assert struct.unpack_from(">H", block, 0) == (5,)
    assert struct.unpack_from(">4h", block, 14) == (10_000, 10_000, 10_000, 30_000)
    assert struct.unpack_from(">2H", block, 38) == (1, 20)
    assert block[72] == 0b1110_0000


def test_power_and_current_beyond_their_registers_stay_at_the_end_of_the_scale() -> None:
    block = bytes.fromhex(ask(make_meter(power_w=5_000_000), "03 0200 0030"))[2:]
    assert struct.unpack_from(">H", block, 8) == (0xFFFF,)
    assert struct.unpack_from(">4h", block, 14) == (0x7FFF, 0, 0, 0x7FFF)


@pytest.mark.parametrize(
    ("request_pdu", "answer"),
    [
        ("03 0000 0002", "03 04 00 01 23 45"),
        ("03 000A 0002", "03 04 00 01 23 45"),
        ("03 0037 0002", "03 04 00 01 00 01"),
        ("03 0043 0003", "03 06 23 01 69 75 79 53"),
        ("03 0057 0002", "03 04 00 00 00 00"),
        ("03 0215 0002", "03 04 00 01 23 45"),
    ],
)
def test_parts_of_the_map_read_alone_say_the_same(request_pdu: str, answer: str) -> None:
    assert ask(make_meter(), request_pdu) == answer


@pytest.mark.parametrize(
    ("request_pdu", "answer"),
    [
        ("03 000B 0002", "83 02"),  # runs out of the block
        ("03 0231 0001", "83 02"),
        ("03 0100 0001", "83 02"),
        ("03 0200 0000", "83 03"),
        ("03 0200 007E", "83 03"),
        ("03 0200", "83 03"),
        ("04 0200 0030", "84 01"),
        ("06 0057 0001", "86 01"),  # the relay is written with 0x10 only
        ("05 0000 FF00", "85 01"),
        ("10 0057 0001 02 0001", "90 02"),  # both registers or none
        ("10 0200 0002 04 0001 0001", "90 02"),
        ("10 0057 0002 04 0000 0001", "90 03"),  # no such state
        ("10 0057 0002 03 0001 0001", "90 03"),
        ("10 0057 0002 04 0001", "90 03"),
        ("10 0057", "90 03"),
    ],
)
def test_what_is_not_in_the_map_is_refused_and_moves_nothing(request_pdu: str, answer: str) -> None:
    meter = make_meter()
    assert ask(meter, request_pdu) == answer
    assert meter.commands_accepted == 0


# --- the relay -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "forced", "position"),
    [
        ("01 10 00 57 00 02 04 00 01 00 01 27 75", Forced.OPEN, Position.OPEN),
        ("01 10 00 57 00 02 04 00 01 00 00 E6 B5", Forced.CLOSED, Position.CLOSED),
        ("01 10 00 57 00 02 04 00 00 00 00 B7 75", Forced.PREPAID, Position.CLOSED),
    ],
)
async def test_the_published_relay_frames_are_understood(
    frame: str, forced: Forced, position: Position
) -> None:
    meter = make_meter()
    request = await receive(RtuFraming(), bytes.fromhex(frame))
    assert request.unit == 1
    answer, fault = execute(meter, request.pdu, NOW_MS)
    assert RtuFraming().frame(request, answer, fault).hex(" ") == "01 10 00 57 00 02 f0 18"
    assert meter.forced is forced
    assert meter.snapshot(NOW_MS + 100).position is position


def test_its_clock_is_set_by_the_private_function_and_goes_on_from_there() -> None:
    meter = make_meter()
    assert ask(meter, "20 03 54 00 05 0a 00 3c 0c 02 03 03 1a 00 00 00") == "a0 03"
    assert ask(meter, "20 01 00 00 04 08 00 00 00 00 00 00 00 00") == "a0 02"
    answer = ask(meter, "20 03 54 00 05 0a 00 00 0c 02 03 03 1a 00 00 00")
    assert answer == "20 03 54 00 05" + " 00" * 7
    shown = bytes.fromhex(ask(meter, "03 02 28 00 04", at_ms=NOW_MS + 61_000))[2:9]
    assert shown.hex(" ") == "1a 03 03 02 0c 01 01"  # 2026-03-03, a Tuesday, 12:01:01


def test_a_read_before_the_contacts_have_moved_shows_the_old_relay_and_the_new_command() -> None:
    meter = make_meter()
    assert ask(meter, "10 0057 0002 04 0001 0001") == "10 00 57 00 02"
    assert ask(meter, "03 0057 0002") == "03 04 00 01 00 01"
    assert ask(meter, "03 0224 0002") == "03 04 20 00 00 09"  # closed; forced: enabled and output
    moved_ms = NOW_MS + meter.actuation_ms
    assert ask(meter, "03 0224 0001", at_ms=moved_ms - 1) == "03 02 20 00"
    assert ask(meter, "03 0224 0001", at_ms=moved_ms) == "03 02 00 00"


# --- framing -------------------------------------------------------------------------------------


async def test_a_modbus_tcp_request_and_its_answer_carry_the_same_transaction() -> None:
    request = await receive(TcpFraming(), bytes.fromhex("BEEF 0000 0006 01 03 0043 0003"))
    assert request == Request(1, bytes.fromhex("03 0043 0003"), 0xBEEF)
    answer, fault = execute(make_meter(), request.pdu, NOW_MS)
    framed = TcpFraming().frame(request, answer, fault)
    assert framed == bytes.fromhex("BEEF 0000 0009 01 03 06 230169757953")


@pytest.mark.parametrize("header", ["0001 0001 0006 01", "0001 0000 0001 01", "0001 0000 00FF 01"])
async def test_a_stream_that_is_not_modbus_tcp_is_given_up(header: str) -> None:
    with pytest.raises(LostError):
        await receive(TcpFraming(), bytes.fromhex(header))


async def test_an_rtu_request_that_comes_in_pieces_is_one_request() -> None:
    frame = bytes.fromhex("01 10 00 57 00 02 04 00 01 00 01 27 75")
    reader = asyncio.StreamReader()
    received = asyncio.ensure_future(RtuFraming().receive(reader))
    for byte in frame:
        reader.feed_data(bytes((byte,)))
        await asyncio.sleep(0)
    assert (await received).pdu == frame[1:-2]


class Line(asyncio.StreamReader):
    """A line on which `later` comes only after a silence: when waiting for more was given up."""

    def __init__(self, now: bytes, later: bytes) -> None:
        super().__init__()
        self.feed_data(now)
        self._later = later

    async def read(self, n: int = -1) -> bytes:
        try:
            return await super().read(n)
        except asyncio.CancelledError:
            self.feed_data(self._later)
            raise


async def test_an_rtu_request_with_a_wrong_crc_is_dropped_and_the_next_one_served() -> None:
    good = bytes.fromhex("01 03 02 00 00 30")
    broken = good + bytes.fromhex("00 00 11 22 33")
    request = await RtuFraming().receive(Line(broken, good + crc16(good)))
    assert request.pdu == good[1:]


async def test_an_rtu_request_of_an_unknown_function_is_refused_not_misread() -> None:
    body = bytes.fromhex("01 2B 0E 01 00")
    request = await receive(RtuFraming(), body + crc16(body))
    assert ask(make_meter(), request.pdu.hex()) == "ab 01"


# --- faults --------------------------------------------------------------------------------------


def test_a_wrong_crc_is_wrong_for_one_answer_and_is_no_reading() -> None:
    meter = make_meter()
    meter.set_fault(Fault(FaultKind.WRONG_CRC, 1))
    request = Request(1, bytes.fromhex("03 0200 0030"))
    frames = []
    for _ in range(2):
        answer, fault = execute(meter, request.pdu, NOW_MS)
        frames.append(RtuFraming().frame(request, answer, fault))
    wrong, right = frames
    assert wrong[:-2] == right[:-2]
    assert crc16(wrong[:-2]) != wrong[-2:]
    assert crc16(right[:-2]) == right[-2:]
    assert meter.reads_served == 1


@pytest.mark.parametrize("framing", [TcpFraming(), RtuFraming()])
def test_a_malformed_answer_cannot_be_taken_for_a_good_one(
    framing: TcpFraming | RtuFraming,
) -> None:
    request = Request(1, bytes.fromhex("03 0043 0003"))
    answer, _ = execute(make_meter(), request.pdu, NOW_MS)
    good = framing.frame(request, answer, None)
    assert framing.frame(request, answer, FaultKind.MALFORMED)[: len(good)] != good


def test_an_absurd_register_is_told_but_never_true() -> None:
    meter = make_meter()
    meter.set_fault(Fault(FaultKind.ABSURD_REGISTER, 1, register_lsb=0xFFFFFFFF))
    assert ask(meter, "03 0043 0003") == "03 06 23 01 69 75 79 53"  # no reading: spends nothing
    assert ask(meter, "03 0215 0002") == "03 04 ff ff ff ff"
    assert ask(meter, "03 0215 0002") == "03 04 00 01 23 45"
    assert meter.last_served_register_lsb == 0x00012345


def test_a_wrong_serial_is_told_where_the_serial_is_asked_for() -> None:
    meter = make_meter()
    meter.set_fault(Fault(FaultKind.WRONG_SERIAL, 1, serial="999999999999"))
    assert ask(meter, "03 0043 0003") == "03 06 99 99 99 99 99 99"
    assert ask(meter, "03 0043 0003") == "03 06 23 01 69 75 79 53"
