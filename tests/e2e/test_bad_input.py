"""Bad input of every kind gets one clear error; nothing crashes, nothing is lost or billed wrongly.

Method: one whole product whose parts nobody restarts, eight meters that draw power meanwhile, and
an attacker at each of its doors: the devices, gRPC, the bus, the settings, the local stack. After
each test every service is the process it was, and ready. The meters' true registers, which the
fleet tells beside the wire, judge what was charged.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import grpc
import numpy as np
import pytest
from google.api import field_behavior_pb2, resource_pb2
from google.protobuf.descriptor import FieldDescriptor
from paho.mqtt import publish

from services.common.kernel import names
from services.common.kernel.frames import READING, ReadingFrame
from services.common.kernel.reasons import Reason
from services.common.runtime import codec
from services.common.runtime.settings import ServiceSettings, load
from services.control.config import ControlSettings
from services.ingest.config import IngestSettings
from services.metering.config import Settings as MeteringSettings
from services.reporting.config import ReportingSettings
from services.vending.config import VendingSettings
from tests.e2e.bad_input_world import (
    METHODS,
    SERVICES,
    Refusal,
    World,
    account_of,
    message_of,
)
from tools import mall
from tools.stack.ports import Ports, setting
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import vending_pb2 as v

ROOT = Path(__file__).parents[2]
TCP_METER, RTU_METER, CT_METER = "meter-001", "meter-003", "meter-005"
MQTT_METER, OTHER_MQTT_METER = "meter-007", "meter-008"
INT32 = (0, -1, 2**31 - 1, -(2**31))
INT64 = (0, -1, 2**63 - 1, -(2**63), 253_402_300_800_000)
TEXTS = (
    "",
    " ",
    "a" * 64,
    "a" * 100_000,
    "\N{SNOWMAN}" * 5_000,
    "a\x00b",
    "line\nbreak",
    "../../etc/passwd",
    "America",
    "Asia/" + "x" * 300,
    "h:" + "9" * 5_000,
    "h:\N{ARABIC-INDIC DIGIT THREE}",
    "house:meter-001",
    "x'; DROP TABLE charges;--",
    "NaN",
    "00000000-0000-0000-0000-000000000000",
)
GARBAGE = (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x0f")
"""Broken tags, a text that is not UTF-8, a length beyond the end."""
FUZZ_AT_ONCE = 8
WAKE = codec.encode("wake", {"shard": 0, "due_ms": 1})
"""A record that is well formed, and belongs on the shard log only."""


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    directory = ROOT / "build" / f"test-bad-input-{os.getpid()}"
    one = World(directory)
    try:
        one.open()
        yield one
    finally:
        one.close()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(autouse=True)
def nothing_crashed(request: pytest.FixtureRequest) -> Iterator[None]:
    if "world" not in request.fixturenames:
        yield
        return
    world: World = request.getfixturevalue("world")
    yield
    alive = [name for name in SERVICES if world.pids[name] is not None]
    world.wait("all ready", lambda: all(world.is_ready(name) for name in alive))
    assert world.now_running() == world.pids


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meter", "fault"),
    [
        (RTU_METER, {"kind": "wrong_crc", "answers": 1}),
        (TCP_METER, {"kind": "malformed", "answers": 1}),
        (RTU_METER, {"kind": "malformed", "answers": 1}),
        (MQTT_METER, {"kind": "malformed", "answers": 1}),
    ],
    ids=["wrong CRC", "malformed TCP", "malformed RTU", "malformed JSON"],
)
def test_garbage_on_the_wire_is_counted_and_the_energy_is_charged_in_full_afterwards(
    world: World, meter: str, fault: dict[str, Any]
) -> None:
    def faults() -> float:
        name = "wattvend_ingest_line_transactions_total"
        set_aside = world.metric("ingest", "wattvend_ingest_set_aside_total")
        bad = sum(world.metric("ingest", name, result=one) for one in ("timeout", "malformed"))
        return set_aside + bad

    before = faults()
    world.fleet(f"/meters/{meter}/fault", fault)
    world.wait("counted faults", lambda: faults() >= before + 1)
    world.charged_in_full(meter)
    world.wait("the meter is well again", lambda: f"meters/{meter}" not in world.lost())


def test_a_register_beyond_the_scale_is_quarantined_and_never_charged(world: World) -> None:
    name, reason = f"meters/{CT_METER}", "register-above-maximum"
    absurd = {"kind": "absurd_register", "answers": 3, "register_lsb": 0xFFFF_FFFF}
    world.fleet(f"/meters/{CT_METER}/fault", absurd)
    world.wait("quarantine", lambda: name in world.lost())
    shown = world.lost()[name]
    assert (shown.status, shown.reason) == ("quarantined", reason)
    assert shown.quarantined_readings > 0
    assert world.metric("ingest", "wattvend_ingest_set_aside_total", fault=reason) > 0
    world.wait("release", lambda: name not in world.lost())
    world.charged_in_full(CT_METER)


@pytest.mark.parametrize("meter", [CT_METER, OTHER_MQTT_METER], ids=["Modbus", "MQTT"])
def test_a_jump_beyond_the_meters_power_is_held_until_a_person_rejects_it(
    world: World, meter: str
) -> None:
    world.charged_in_full(meter)  # only what was read before has a bound
    absurd = {"kind": "absurd_register", "answers": 2, "register_lsb": 99_999_998}
    world.fleet(f"/meters/{meter}/fault", absurd)

    def held() -> list[str]:
        request = r.ListAlarmsRequest(filter=f"account = {names.ACCOUNT.name(account_of(meter))}")
        alarms = world.call("ListAlarms", request).alarms
        jumps = ("reading-held", "implausible")
        return [a.to_reading_id for a in alarms if (a.kind, a.reason) == jumps]

    world.wait("the alarm", lambda: bool(held()))
    outcomes = "wattvend_metering_outcomes_total"
    assert world.metric("metering", outcomes, outcome="implausible") >= 1
    # Once the fleet tells the truth again, that waits too: until a person says that it may go on.
    waiting = world.metric("metering", outcomes, outcome="meter-held")
    world.wait(
        "readings that wait",
        lambda: world.metric("metering", outcomes, outcome="meter-held") >= waiting + 2,
    )
    [reading_id] = held()
    request = v.ResolveReadingRequest(
        request_id=str(uuid4()),
        name=names.METER.name(meter),
        reading_id=reading_id,
        resolution="reject",
        reason="the fleet was told to jump",
    )
    world.call("ResolveReading", request)
    world.charged_in_full(meter)


def test_another_meter_at_the_address_is_neither_billed_nor_forgotten(world: World) -> None:
    meter, gateway = TCP_METER, "gw-shops"
    world.fleet(
        f"/meters/{meter}/fault",
        {"kind": "wrong_serial", "answers": 2, "serial": "999999999999"},
    )
    for move in ("offline", "online"):  # each new connection asks for the number
        world.fleet(f"/gateways/{gateway}/{move}", {})
    name = f"meters/{meter}"

    def told() -> bool:
        lost = world.lost()
        return name in lost and lost[name].reason == "serial-mismatch"

    world.wait("quarantine", told)
    world.wait("release", lambda: name not in world.lost())
    world.charged_in_full(meter)


@pytest.mark.parametrize("gateway", ["gw-flats", "gw-market-1"])
def test_a_gateway_that_drops_its_connection_is_lost_and_its_meters_catch_up(
    world: World, gateway: str
) -> None:
    meters = [m.id for m in world.site.meters if m.gateway == gateway]
    wanted = {f"gateways/{gateway}", *(f"meters/{meter}" for meter in meters)}
    world.fleet(f"/gateways/{gateway}/offline", {})
    world.wait("all shown as lost", lambda: wanted <= set(world.lost()))
    world.fleet(f"/gateways/{gateway}/online", {})
    world.wait("none shown as lost", lambda: not wanted & set(world.lost()))
    for meter in meters:
        world.charged_in_full(meter)


def data(world: World, meter: str, at: datetime, **more: Any) -> dict[str, Any]:
    """Return what the meter's gateway would publish at an instant, with its true register."""
    shown = world.fleet(f"/meters/{meter}")
    gateway = next(g for g in world.fleet_config.gateways if g.id == shown["gateway"])
    return {
        "type": "data",
        "time": at.astimezone(ZoneInfo(world.fleet_config.zone)).strftime("%Y%m%d%H%M%S"),
        "gwSN": gateway.serial,
        "meterSN": shown["serial"],
        "meterStatus": "normal",
        "wh": shown["register_lsb"] / 100,
        "relay": 1,
        **more,
    }


def say(world: World, meter: str, *payloads: bytes) -> None:
    """Publish as the gateway of a meter does."""
    gateway_id = world.fleet(f"/meters/{meter}")["gateway"]
    gateway = next(g for g in world.fleet_config.gateways if g.id == gateway_id)
    topic = f"/gw/acrelHW/{gateway.product}/data/{gateway.serial}"
    publish.multiple(
        [(topic, payload, 1, False) for payload in payloads],
        hostname="127.0.0.1",
        port=world.ports.mqtt,
    )


def test_a_reading_from_the_past_or_the_future_charges_nothing(world: World) -> None:
    meter, now = MQTT_METER, datetime.now(UTC)
    counted = "wattvend_ingest_set_aside_total"
    late = world.metric("metering", "wattvend_metering_outcomes_total", outcome="late")
    future = data(world, meter, now + timedelta(hours=3), wh=900_000.0)
    past = data(world, meter, now - timedelta(days=3), wh=900_000.0)
    say(world, meter, json.dumps(future).encode(), json.dumps(past).encode())
    world.wait("the future", lambda: world.metric("ingest", counted, fault="clock-ahead") >= 1)
    world.wait(
        "the past",
        lambda: world.metric("metering", "wattvend_metering_outcomes_total", outcome="late") > late,
    )
    world.charged_in_full(meter)


def test_any_payload_on_a_gateways_topic_is_survived(world: World) -> None:
    meter = OTHER_MQTT_METER
    true = data(world, meter, datetime.now(UTC))
    wrong: list[Any] = [None, [], {}, True, -1, 10**30, "x" * 500, "\x00", "99999999999999"]
    fields = ("time", "gwSN", "meterSN", "meterStatus", "wh", "relay", "pt", "ct", "p")
    payloads = [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b'{"type":',
        b"[" * 16_000,
        b'{"wh": 1e999999999}',
        b" " * 20_000,
        *(json.dumps({**true, field: one}).encode() for field, one in product(fields, wrong)),
    ]
    before = world.metric("ingest", "wattvend_ingest_set_aside_total")
    say(world, meter, *payloads)
    world.wait(
        "most of it set aside",
        lambda: world.metric("ingest", "wattvend_ingest_set_aside_total") >= before + 40,
    )
    world.charged_in_full(meter)


def test_a_stranger_is_quarantined_and_counts_from_its_next_reading_once_registered(
    world: World,
) -> None:
    serial, meter = "77000000000001", "stranger"
    world.fleet("/gateways/gw-market-2/stranger", {"serial": serial})
    name = f"unknown/mqtt/{serial}"
    world.wait("quarantine", lambda: name in world.lost())
    assert world.lost()[name].reason == "unknown-device"
    counted = "wattvend_ingest_unknown_devices"
    world.wait("the count", lambda: world.metric("ingest", counted) >= 1)
    request = v.RegisterMeterRequest(
        request_id=str(uuid4()),
        meter_id=meter,
        serial=serial,
        gateway="gateways/gw-market-2",
        profile="acrel-mqtt",
        commodity="electricity",
        ratio=1,
    )
    world.call("RegisterMeter", request)
    world.wait("its first reading", lambda: world.charged_milli(meter) is not None)
    world.wait("no quarantine", lambda: name not in world.lost())


# --- gRPC -----------------------------------------------------------------------------------------


def a_request(method: str) -> dict[str, Any]:
    """Return the fields of a request that is well formed, and harmless where it is accepted."""
    fresh = str(uuid4())
    meter = {"serial": fresh[:13], "profile": "acrel-mqtt", "gateway": "gateways/gw-market-2"}
    kind = {
        "commodity": "electricity",
        "currency": "CNY",
        "legal_entity": "legalEntities/property-co",
        "reason": "x",
        "site": names.SITE.name(mall.SITE),
        "tariff": names.TARIFF.name(mall.TARIFF),
        "policy": names.POLICY.name(mall.POLICY),
    }
    tcp_account = names.ACCOUNT.name(account_of(TCP_METER))
    fields: dict[str, dict[str, Any]] = {
        "RegisterSite": {
            "site_id": fresh,
            "display_name": "x",
            "zone": "UTC",
            "cuts_per_minute": 1,
        },
        "RegisterGateway": {
            "gateway_id": fresh,
            "protocol": "mqtt-acrel",
            "address": f"AWT100/{fresh}",
        },
        "RegisterMeter": {"meter_id": fresh, "ratio": 1, **meter},
        "PublishTariff": {"name": names.TARIFF.name(fresh), "price_micro": 1},
        "PublishPolicy": {
            "name": names.POLICY.name(fresh),
            "legal_entity": "legalEntities/LE1",
            "alarm_1_minor": 2,
            "restore_minor": 1,
        },
        "OpenAccount": {"account_id": fresh, "method": "cash"},
        "AssignMeter": {"name": names.METER.name(TCP_METER), "account": "accounts/nobody"},
        "Sell": {"name": tcp_account, "amount_minor": 1, "method": "cash"},
        "GrantEmergencyCredit": {"name": tcp_account},
        "SetDebt": {"share_ppm": 1},
        "PublishAuthority": {"name": names.AUTHORITY.name(fresh), "rules": "{}"},
        "GetBalance": {"name": names.BALANCE.name(account_of(TCP_METER))},
        "GetConsumption": {"account": tcp_account, "to_ms": 1},
    }
    return {"request_id": fresh, "name": nobody_of(method), **kind, **fields.get(method, {})}


def nobody_of(method: str) -> str:
    """Return the name of something that is not there, of the kind that a method acts on."""
    field = METHODS[method].input_type.fields_by_name.get("name")
    refers: Any = resource_pb2.resource_reference
    kind = field.GetOptions().Extensions[refers].type if field else ""
    declared: Any = resource_pb2.resource
    patterns: dict[str, str] = {
        resource.type: resource.pattern[0]
        for message in (called.output_type for called in METHODS.values())
        if (resource := message.GetOptions().Extensions[declared]).type
    }
    return re.sub(r"\{\w+\}", "nobody", patterns.get(kind, "accounts/{account}"))


def built(name: str, /, **wrong: Any) -> Any:
    """Return a request of a method, with something wrong."""
    kind = METHODS[name].input_type
    fields = {**a_request(name), **wrong}
    return message_of(kind, **{n: value for n, value in fields.items() if n in kind.fields_by_name})


def values_of(field: FieldDescriptor, usual: object = "") -> Iterator[object]:
    """Yield values that a field can be sent with; `usual`: what is well formed."""
    if field.message_type is not None:
        for part in field.message_type.fields:
            if part.message_type is None:
                for value in values_of(part):
                    message = message_of(field.message_type, **{part.name: value})
                    yield [message] if field.is_repeated else message
        return
    if field.type == FieldDescriptor.TYPE_STRING:
        collection = str(usual).rpartition("/")[0]
        values: list[Any] = [*TEXTS, *(f"{collection}/{text}" for text in TEXTS if collection)]
    elif field.type == FieldDescriptor.TYPE_BYTES:
        values = [*GARBAGE]
    elif field.type == FieldDescriptor.TYPE_BOOL:
        values = [True, False]
    elif field.type == FieldDescriptor.TYPE_INT64:
        values = [*INT64]
    else:
        values = [*INT32]
    for value in values:
        yield [value] if field.is_repeated else value


def fuzzed() -> Iterator[tuple[str, str, bytes]]:
    """Yield (method, what is wrong, request) for every field of every method."""
    for name, method in METHODS.items():
        for garbage in GARBAGE:
            yield name, "garbage", garbage
        for field in method.input_type.fields:
            for value in values_of(field, a_request(name).get(field.name, "")):
                request = built(name, **{field.name: value})
                yield name, f"{field.name}={str(value)[:30]!r}", request.SerializeToString()


def test_no_value_of_any_field_of_any_method_is_answered_without_a_reason(world: World) -> None:
    def judged(case: tuple[str, str, bytes]) -> str:
        method, what, request = case
        try:
            world.call_raw(method, request)
        except Refusal as refusal:
            reasons = {*Reason} - {Reason.INTERNAL, Reason.UNAVAILABLE}
            if refusal.reason not in reasons or not refusal.message.strip():
                return f"{method} {what}: {refusal.reason or 'no reason'}: {refusal}"
        return ""

    with ThreadPoolExecutor(FUZZ_AT_ONCE) as pool:
        wrong = [answer for answer in pool.map(judged, fuzzed()) if answer]
    assert wrong == []


def test_what_a_method_says_is_required_is_required(world: World) -> None:
    behavior: Any = field_behavior_pb2.field_behavior
    taken = []
    for name, method in METHODS.items():
        for field in method.input_type.fields:
            if field_behavior_pb2.REQUIRED not in field.GetOptions().Extensions[behavior]:
                continue
            request = built(name)
            request.ClearField(field.name)
            try:
                world.call(name, request)
            except Refusal as refusal:
                if refusal.code is grpc.StatusCode.INVALID_ARGUMENT:
                    continue
                taken.append(f"{name} without {field.name}: {refusal}")
            else:
                taken.append(f"{name} without {field.name}")
    assert taken == []


@pytest.mark.parametrize(
    ("method", "wrong", "reason", "says"),
    [
        ("Sell", {"amount_minor": 0}, "AMOUNT_NOT_POSITIVE", "above 0"),
        ("Sell", {"amount_minor": -1}, "AMOUNT_NOT_POSITIVE", "above 0"),
        ("Sell", {"amount_minor": 2**63 - 1}, "AMOUNT_TOO_LARGE", "the most is 922337203685"),
        ("Sell", {"method": "CASH"}, "INVALID_ARGUMENT", "cash, pos, transfer, qr"),
        ("Sell", {"request_id": "1234"}, "REQUEST_ID_INVALID", "make a new one"),
        ("Sell", {"name": "accounts/nobody"}, "ACCOUNT_NOT_FOUND", "open it first"),
        ("GrantEmergencyCredit", {}, "NO_EMERGENCY_CREDIT", "publish a version"),
        ("SetDebt", {"debt_minor": 1, "share_ppm": 0}, "INVALID_ARGUMENT", "1 to 1000000"),
        ("OpenAccount", {"commodity": "steam"}, "INVALID_ARGUMENT", "electricity, water, gas"),
        ("OpenAccount", {"first_sale_minor": -5}, "AMOUNT_NOT_POSITIVE", "above 0"),
        ("RegisterGateway", {"protocol": "rs485"}, "INVALID_ARGUMENT", "modbus-tcp"),
        ("RegisterGateway", {"address": "AWT100"}, "INVALID_ARGUMENT", "product/serial"),
        ("RegisterSite", {"zone": "Mars/Olympus"}, "INVALID_ARGUMENT", "e.g. Asia/Shanghai"),
        ("RegisterSite", {"zone": "America"}, "INVALID_ARGUMENT", "e.g. Asia/Shanghai"),
        ("RegisterSite", {"currency": "cny"}, "CURRENCY_UNKNOWN", "CNY"),
        ("RegisterSite", {"cuts_per_minute": 0}, "INVALID_ARGUMENT", "1 to"),
        ("RegisterMeter", {"profile": "acrel"}, "PROFILE_UNKNOWN", "acrel-mqtt"),
        ("RegisterMeter", {"unit": 3}, "INVALID_ARGUMENT", "write 0"),
        ("PublishTariff", {"price_micro": -1}, "INVALID_ARGUMENT", "0 to"),
        ("PublishPolicy", {"restore_minor": 0}, "THRESHOLDS_OUT_OF_ORDER", "come and go"),
        ("PublishAuthority", {"rules": "[]"}, "INVALID_ARGUMENT", "write a JSON object"),
        ("Approve", {"name": "approvals/1"}, "INVALID_ARGUMENT", "in full"),
        ("GetConsumption", {"to_ms": -1}, "INVALID_ARGUMENT", "before to_ms"),
        ("ListMeters", {"page_size": 1001}, "INVALID_ARGUMENT", "1..1000"),
        ("ListMeters", {"page_token": "next"}, "INVALID_ARGUMENT", "next_page_token"),
    ],
)
def test_a_refusal_says_what_to_change(
    world: World, method: str, wrong: dict[str, Any], reason: str, says: str
) -> None:
    with pytest.raises(Refusal) as refused:
        world.call(method, built(method, **wrong))
    assert refused.value.reason == reason
    assert says in refused.value.message


def test_what_the_transport_refuses_is_refused_by_the_transport_alone(world: World) -> None:
    with pytest.raises(Refusal) as large:
        world.call("Sell", v.SellRequest(method="x" * 5_000_000))
    assert large.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    for caller in ("", "~vending", "a" * 200):
        with pytest.raises(Refusal) as nameless:
            world.call(
                "GetMeter", v.GetMeterRequest(name=names.METER.name(TCP_METER)), caller=caller
            )
        assert nameless.value.reason == "CALLER_MISSING"


def credited(world: World, account: str) -> int:
    found = world.call("GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(account)))
    return int(found.credited_nano)


def test_a_request_id_counts_once_a_caller_and_never_with_another_content(world: World) -> None:
    account = account_of(RTU_METER)
    before = credited(world, account)
    request = v.SellRequest(
        request_id=str(uuid4()), name=names.ACCOUNT.name(account), amount_minor=7, method="cash"
    )
    first = world.call("Sell", request, caller="desk-1")
    other = world.call("Sell", request, caller="desk-2")
    assert world.call("Sell", request, caller="desk-1") == first
    assert first.sale.receipt != other.sale.receipt
    for wrong in (
        v.SellRequest(amount_minor=8),
        v.SellRequest(method="qr"),
        v.SellRequest(name=names.ACCOUNT.name(account_of(CT_METER))),
    ):
        changed = v.SellRequest()
        changed.CopyFrom(request)
        changed.MergeFrom(wrong)
        with pytest.raises(Refusal) as refused:
            world.call("Sell", changed, caller="desk-1")
        assert refused.value.reason == "REQUEST_ID_REUSED"
    release = v.ReleaseMeterRequest(request_id=request.request_id, name=names.METER.name(RTU_METER))
    with pytest.raises(Refusal) as elsewhere:
        world.call("ReleaseMeter", release, caller="desk-1")
    assert elsewhere.value.reason == "REQUEST_ID_REUSED"
    assert credited(world, account) - before == 2 * 7 * 10_000_000


def test_a_sale_whose_caller_stopped_waiting_is_sold_once_when_it_is_repeated(world: World) -> None:
    account = account_of(CT_METER)
    before = credited(world, account)
    sales = [
        v.SellRequest(
            request_id=str(uuid4()), name=names.ACCOUNT.name(account), amount_minor=3, method="pos"
        )
        for _ in range(20)
    ]
    codes = set()
    for index, sale in enumerate(sales):
        try:
            world.call_raw("Sell", sale.SerializeToString(), timeout_s=0.0002 * (index + 1))
        except Refusal as late:
            codes.add(late.code)
    assert codes == {grpc.StatusCode.DEADLINE_EXCEEDED}
    receipts = {world.call("Sell", sale).sale.receipt for sale in sales}
    assert len(receipts) == len(sales)
    assert credited(world, account) - before == 20 * 3 * 10_000_000


def opened(world: World, **more: Any) -> str:
    request = built("OpenAccount", **more)
    return names.ACCOUNT.id("name", world.call("OpenAccount", request).name)


def test_a_closed_account_takes_no_money_and_no_meter(world: World) -> None:
    account = opened(world)
    request_id = str(uuid4())
    closing = v.CloseAccountRequest(request_id=request_id, name=names.ACCOUNT.name(account))
    assert world.call("CloseAccount", closing).status == "closed"
    house = "stranger-to-all"
    meter = {**a_request("RegisterMeter"), "meter_id": house}
    world.call("RegisterMeter", built("RegisterMeter", **meter))
    refused = []
    for method, request in {
        "Sell": v.SellRequest(
            request_id=str(uuid4()), name=names.ACCOUNT.name(account), amount_minor=1, method="qr"
        ),
        "AssignMeter": v.AssignMeterRequest(
            request_id=str(uuid4()),
            name=names.METER.name(house),
            account=names.ACCOUNT.name(account),
            register_milli=0,
        ),
        "CloseAccount": v.CloseAccountRequest(
            request_id=str(uuid4()), name=names.ACCOUNT.name(account)
        ),
    }.items():
        with pytest.raises(Refusal) as refusal:
            world.call(method, request)
        refused.append(refusal.value.reason)
    assert refused == ["ACCOUNT_NOT_OPEN"] * 3


def test_of_sixteen_assignments_of_one_meter_at_once_one_stands(world: World) -> None:
    house = f"contested-{uuid4()}"
    meter = {**a_request("RegisterMeter"), "meter_id": house}
    world.call("RegisterMeter", built("RegisterMeter", **meter))
    accounts = [opened(world) for _ in range(16)]

    def assign(account: str) -> str:
        request = v.AssignMeterRequest(
            request_id=str(uuid4()),
            name=names.METER.name(house),
            account=names.ACCOUNT.name(account),
            register_milli=0,
        )
        try:
            world.call("AssignMeter", request)
        except Refusal as refusal:
            return refusal.reason
        return account

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(assign, accounts))
    won = [answer for answer in answers if answer in accounts]
    assert len(won) == 1
    assert answers.count("METER_ALREADY_ASSIGNED") == 15
    has = [
        account
        for account in accounts
        if world.call("GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(account))).meters
    ]
    assert has == won


def test_one_address_is_one_gateway_so_that_no_second_one_takes_over_its_meters(
    world: World,
) -> None:
    for gateway in world.site.gateways:
        twice = built(
            "RegisterGateway",
            protocol=gateway.protocol,
            address=gateway.address,
        )
        with pytest.raises(Refusal) as refused:
            world.call("RegisterGateway", twice)
        assert refused.value.reason == "ALREADY_EXISTS"
        assert gateway.id in refused.value.message


# --- the bus --------------------------------------------------------------------------------------


def a_request_record(**wrong: Any) -> bytes:
    record = {
        "request_id": str(uuid4()),
        "requester": "attacker",
        "line_id": "gw-shops",
        "gateway_id": "gw-shops",
        "meter_id": TCP_METER,
        "serial": "1",
        "unit": 1,
        "profile": "acrel-ddsy1352",
        "operation": "write-registers",
        "address": 0x57,
        "values": [0, 1],
        "not_after_ms": None,
        "intent_epoch": 1,
        "intent_offset": 1,
        "attempt": 1,
        "requested_at_ms": 1,
    }
    return codec.encode("device-request", {**record, **wrong})


def test_ingest_survives_any_device_request_and_moves_no_relay(world: World) -> None:
    name = "wattvend_ingest_replies_total"
    refused = world.metric("ingest", name, result="refused")
    before = [meter["relay"] for meter in world.fleet("/meters")["meters"]]
    for partition in range(4):
        for value, schema in (
            (b"\xff\xfe", None),
            (b"\xff\xfe", "device-request/1"),
            (b"\x00", "device-request/99"),
            (b"\x00", "no such/thing"),
            (None, "device-request/1"),
            (WAKE, "wake/1"),
        ):
            world.put("device-requests", value, schema, partition)
    wrong: list[dict[str, Any]] = [
        {"line_id": "nowhere"},
        {"meter_id": "nobody"},
        {"serial": "999999999999"},
        {"operation": "format"},
        {"address": 0},
        {"values": [65535] * 100},
        {"unit": 300},
    ]
    for partition in range(4):
        for fields in wrong:
            world.put("device-requests", a_request_record(**fields), "device-request/1", partition)
    world.wait(
        "a reply to each",
        lambda: world.metric("ingest", name, result="refused") >= refused + 4 * len(wrong),
    )
    assert [meter["relay"] for meter in world.fleet("/meters")["meters"]] == before
    world.charged_in_full(TCP_METER)


def test_control_passes_over_device_replies_that_it_cannot_read(world: World) -> None:
    name, topic = "wattvend_control_undecodable_records_total", "device-replies"
    before = world.metric("control", name, topic=topic)
    world.put(topic, WAKE, "wake/1")
    world.put(topic, b"\xff", "device-reply/1")
    world.put(topic, b"\xff", None)
    world.wait("all", lambda: world.metric("control", name, topic=topic) == before + 3)


def test_a_frame_that_cannot_be_read_goes_to_the_dead_letters_and_its_shard_goes_on(
    world: World,
) -> None:
    name = "wattvend_metering_dead_letters_total"
    frame = ReadingFrame(0, "attacker", str(uuid4()), 0, np.zeros(3, READING)).to_record()
    whole = codec.encode("reading-frame", frame)
    cut = codec.encode("reading-frame", {**frame, "registers_milli": b"123"})
    none = codec.encode("reading-frame", {**frame, "count": 0})
    before = world.metric("metering", name)
    values = (b"garbage", whole[:-5], whole + b"x", cut, none)
    for value in values:
        world.put("shard-log", value, "reading-frame/1")
    world.wait("all", lambda: world.metric("metering", name) == before + len(values))
    letters = world.read("shard-log.dlq")
    assert [letter.value for letter in letters] == list(values)
    assert all(dict(letter.headers)["dlq_reason"] for letter in letters)
    world.put("shard-log", whole, "reading-frame/1")  # readable, but of meters nobody has
    unknown = "wattvend_metering_outcomes_total"
    world.wait("it", lambda: world.metric("metering", unknown, outcome="unknown-meter") >= 3)
    for meter in world.site.meters:
        world.charged_in_full(meter.id)


# --- settings -------------------------------------------------------------------------------------

LOADED: dict[str, type[ServiceSettings]] = {
    "ingest": IngestSettings,
    "metering": MeteringSettings,
    "vending": VendingSettings,
    "control": ControlSettings,
    "reporting": ReportingSettings,
}
NEEDED = {
    "INSTANCE": "probe",
    "HTTP_PORT": "0",
    "GRPC_PORT": "0",
    "POSTGRES_DSN": "postgresql://a:b@127.0.0.1:1/c",
}
WRONG = [
    *((service, "HTTP_PORT", "eighty") for service in SERVICES),
    *((service, "HTTP_PORT", "70000") for service in SERVICES),
    *((service, "INSTANCE", "Two Words") for service in SERVICES),
    *((service, "LOG_LEVEL", "LOUD") for service in SERVICES),
    *((service, "HTTP_HOST", "0.0.0.0") for service in SERVICES),
    *((service, "KAFKA_BOOTSTRAP", "") for service in SERVICES),
    *((service, "KAFKA_BOOTSTRAP", "kafka:port") for service in SERVICES),
    *((service, "TLS_KEY", __file__) for service in SERVICES),
    *((service, "GRPC_HOST", "::") for service in ("vending", "reporting")),
    *((service, "GRPC_PORT", "-1") for service in ("vending", "reporting")),
    *((service, "MQTT_CA", "/no/such/file.pem") for service in ("ingest", "control")),
    *((service, "MQTT_CA", __file__) for service in ("ingest", "control")),
    *((service, "MQTT_PORT", "0") for service in ("ingest", "control")),
    ("ingest", "POLL_INTERVAL_MS", "0"),
    ("reporting", "POSTGRES_DSN", "localhost"),
    ("reporting", "POSTGRES_DSN", "postgresql://a:b@localhost:port/c"),
    ("reporting", "POSTGRES_SCHEMA", "a;b"),
    ("reporting", "SKIP", "all"),
    *((service, "HTTP_PORT", None) for service in ("metering", "control", "reporting")),
    *((service, "INSTANCE", None) for service in ("metering", "control", "reporting")),
    ("reporting", "POSTGRES_DSN", None),
]


@pytest.mark.parametrize(("service", "name", "value"), WRONG)
def test_a_wrong_or_missing_setting_is_named_and_ends_with_code_2(
    service: str,
    name: str,
    value: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prefix = f"WATTVEND_{service.upper()}_"
    for needed, fitting in NEEDED.items():
        monkeypatch.setenv(prefix + needed, fitting)
    if value is None:
        monkeypatch.delenv(prefix + name)
    else:
        monkeypatch.setenv(prefix + name, value)
    with pytest.raises(SystemExit) as left:
        load(LOADED[service])
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert prefix + name in said[1]


def ended(service: str, settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a service, which waits one second for Kafka instead of a minute, to its end."""
    code = (
        "import sys; from services.common.runtime import service; service.START_TIMEOUT_S = 1; "
        f"from services.{service}.main import main; sys.argv = [{service!r}]; sys.exit(main())"
    )
    own = {f"WATTVEND_{service.upper()}_{name}": value for name, value in settings.items()}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_port_in_use_and_an_unreachable_kafka_end_with_one_message_that_names_the_setting(
    tmp_path: Path,
) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = str(holder.getsockname()[1])
        nowhere = {**NEEDED, "KAFKA_BOOTSTRAP": "127.0.0.1:1", "STORE_PATH": str(tmp_path / "e")}
        # What serves HTTP and waits for Kafka is the same code in all of them.
        cases = [
            *((one, {**nowhere, "HTTP_PORT": taken}, 2, "HTTP_PORT") for one in SERVICES[:2]),
            *((one, nowhere, 70, "KAFKA_BOOTSTRAP") for one in SERVICES[2:]),
        ]
        with ThreadPoolExecutor(2) as pool:
            for (one, _, code, name), done in zip(
                cases, pool.map(lambda case: ended(case[0], case[1]), cases), strict=True
            ):
                assert done.returncode == code, done.stderr
                assert done.stderr.count(f"WATTVEND_{one.upper()}_{name}") == 1, done.stderr
                assert "Traceback" not in done.stderr


# --- the local stack ------------------------------------------------------------------------------


def stack_up(directory: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.stack", "up", "--directory", str(directory)],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_local_stack_that_cannot_start_says_in_one_error_what_to_do(
    world: World, tmp_path: Path
) -> None:
    free = {setting(name): str(port) for name, port in Ports.free().items()}
    cache = "WATTVEND_STACK_CACHE_DIR"
    file = tmp_path / "file"
    file.write_text("")
    taken = {**free, setting("mqtt"): str(world.ports.mqtt)}
    cases: list[tuple[dict[str, str], Path, tuple[str, ...]]] = [
        (taken, tmp_path / "a", (setting("mqtt"), "choose another port", "pid")),
        ({**free, setting("mqtt"): "many"}, tmp_path / "b", (setting("mqtt"), "'many'")),
        (free, world.stack.directory, ("another stack", "choose another directory")),
        (
            {
                **free,
                cache: str(tmp_path / "none"),
                "WATTVEND_STACK_MAVEN_URL": "http://127.0.0.1:1",
            },
            tmp_path / "c",
            ("WATTVEND_STACK_MAVEN_URL", "Check the network"),
        ),
        ({**free, cache: str(file)}, tmp_path / "d", (cache, "can be written")),
    ]
    for wrong, directory, says in cases:
        done = stack_up(directory, **wrong)
        assert done.returncode == 1, done.stdout + done.stderr
        assert done.stderr.startswith("error: "), done.stderr
        assert "Traceback" not in done.stderr
        for part in says:
            assert part in done.stderr


# --- the bus again: what services must not pass over. The last test: it stops some of them. -------


def test_what_must_not_be_passed_over_stops_its_reader_with_the_place_and_nobody_else(
    world: World,
) -> None:
    world.put("registry", b"\xff", "payment-fact/1")
    world.put("relay-intents", WAKE, "wake/1")
    places = {"registry-0", "relay-intents-0"}
    stopped = ("control", "reporting")
    world.wait("both stopped", lambda: all(world.now_running()[one] is None for one in stopped))
    for one in stopped:
        said = world.last_words(one)
        assert places & set(re.findall(r"[a-z-]+-0(?= (?:at )?offset)", said)), said
        assert f"WATTVEND_{one.upper()}_SKIP=" in said
    # The others go on, and the money with them.
    assert world.call("Sell", built("Sell")).sale.receipt
    world.pids |= dict.fromkeys(stopped)
