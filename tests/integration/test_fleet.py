"""Goal: the virtual fleet holds on real sockets what its parts promise.

Method: a fleet runs in the test's loop, or as the process a person starts; pymodbus and bare
sockets are its masters, paho on the real broker is its platform. Silence is proven by the answer to
a request sent after the one that must stay unanswered.
"""

import asyncio
import contextlib
import json
import os
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from pymodbus import FramerType
from pymodbus.client import AsyncModbusTcpClient

from tools.fleet import http
from tools.fleet.config import FleetConfig, GatewayConfig
from tools.fleet.fleet import Fleet
from tools.fleet.main import SteadyClock
from tools.fleet.mqtt import Link, PahoLink, down_topics
from tools.fleet.site import as_yaml, make_site
from tools.stack.background import BackgroundStack

ROOT = Path(__file__).parents[2]
DEADLINE_S = 10.0
MQTT_ONLY = ("gw-market-1",)
MODBUS_ONLY = ("gw-shops", "gw-flats", "gw-anchors")
REGISTER_LSB = 10_000


def site_of(*gateways: str) -> FleetConfig:
    """Return a part of the generated site, every meter at the same register and 1 MW."""
    content = make_site(44, seed=1).model_dump(mode="json", exclude_defaults=True)
    content["gateways"] = [one for one in content["gateways"] if one["id"] in gateways]
    content["meters"] = [
        {**one, "register_lsb": REGISTER_LSB, "load": {"power_w": 1_000_000}}
        for one in content["meters"]
        if one["gateway"] in gateways
    ]
    return FleetConfig.model_validate(content)


class Running:
    """A fleet in this loop, seen through its control API."""

    def __init__(self, fleet: Fleet, session: aiohttp.ClientSession) -> None:
        self.fleet = fleet
        self._session = session

    async def get(self, path: str) -> Any:
        async with self._session.get(path) as response:
            assert response.status == 200
            return await response.json()

    async def post(self, path: str, body: object = None, *, status: int = 200) -> Any:
        async with self._session.post(path, json=body) as response:
            assert response.status == status, await response.text()
            return await response.json()

    async def address(self, gateway: str) -> tuple[str, int]:
        shown = (await self.get("/gateways"))["gateways"]
        [address] = [one["address"] for one in shown if one["id"] == gateway]
        host, _, port = address.partition(":")
        return host, int(port)

    def meter_id(self, gateway: str) -> str:
        """Return the first meter of a gateway: unit 1 on a bus."""
        meters = self.fleet.meters.values()
        return next(one.config.id for one in meters if one.config.gateway == gateway)


@contextlib.asynccontextmanager
async def running(
    config: FleetConfig, make_link: Callable[[GatewayConfig], Link] | None = None
) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()

    def no_broker(gateway: GatewayConfig) -> Link:
        raise AssertionError(f"{gateway.id} needs a broker")

    fleet = Fleet(
        config,
        SteadyClock().now_ms,
        make_link or no_broker,
        lambda delay_ms, action: loop.call_later(delay_ms / 1_000, action),
    )
    runner = await http.serve(fleet, 0)
    try:
        await fleet.open()
        host, port = runner.addresses[0]
        async with aiohttp.ClientSession(f"http://{host}:{port}") as session:
            yield Running(fleet, session)
    finally:
        await fleet.close()
        await runner.cleanup()


@pytest.fixture
async def fleet() -> AsyncIterator[Running]:
    async with running(site_of(*MODBUS_ONLY)) as one:
        yield one


@contextlib.asynccontextmanager
async def connection(
    address: tuple[str, int],
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*address)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def frame(transaction: int, unit: int, pdu: str) -> bytes:
    data = bytes.fromhex(pdu)
    return struct.pack(">HHHB", transaction, 0, len(data) + 1, unit) + data


async def until(condition: Callable[[], Any], what: str) -> Any:
    """Return what `condition` (sync or async) returns once it is true."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        await asyncio.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


# --- Modbus --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gateway", "framer", "kind"),
    [
        ("gw-shops", FramerType.SOCKET, 7),
        ("gw-flats", FramerType.RTU, 7),
        ("gw-anchors", FramerType.SOCKET, 5),
    ],
)
async def test_a_modbus_master_reads_and_commands_every_kind_of_gateway(
    fleet: Running, gateway: str, framer: FramerType, kind: int
) -> None:
    host, port = await fleet.address(gateway)
    client = AsyncModbusTcpClient(host, port=port, framer=framer, timeout=2, retries=0)
    assert await client.connect()
    try:
        block = (await client.read_holding_registers(0x0200, count=48, device_id=1)).registers
        assert block[0] == kind
        assert block[0x15] << 16 | block[0x16] == REGISTER_LSB
        assert block[0x24] >> 13 != 0
        refused = await client.write_register(0x0057, 1, device_id=1)
        assert refused.isError()
        written = await client.write_registers(0x0057, [1, 1], device_id=1)
        assert not written.isError()

        async def is_open() -> bool:
            read = await client.read_holding_registers(0x0224, count=1, device_id=1)
            return read.registers[0] >> 13 == 0

        await until(is_open, "the relay opens")
    finally:
        client.close()
    shown = await fleet.get(f"/meters/{fleet.meter_id(gateway)}")
    assert (shown["relay"], shown["forced"]) == ("open", "open")
    assert [one["position"] for one in shown["transitions"]] == ["open"]


async def test_a_second_connection_is_accepted_and_closed_and_the_first_goes_on(
    fleet: Running,
) -> None:
    address = await fleet.address("gw-shops")
    async with connection(address) as (first, first_writer):
        first_writer.write(frame(1, 1, "03 0037 0002"))
        assert await first.readexactly(13) == bytes.fromhex("0001 0000 0007 01 03 04 0001 0001")
        async with connection(address) as (second, _):
            assert await second.read() == b""
        first_writer.write(frame(2, 1, "03 0037 0002"))
        assert (await first.readexactly(13))[:2] == b"\x00\x02"
        shown = (await fleet.get("/gateways"))["gateways"]
        assert [one["connections_refused"] for one in shown] == [1, 0, 0]
    await until(lambda: not fleet.fleet.gateways["gw-shops"].state()["connected"], "it is free")
    async with connection(address) as (third, third_writer):
        third_writer.write(frame(3, 1, "03 0037 0002"))
        assert (await third.readexactly(13))[:2] == b"\x00\x03"


async def test_requests_sent_at_once_are_answered_in_order_and_silence_stays_silence(
    fleet: Running,
) -> None:
    meter = fleet.meter_id("gw-shops")
    await fleet.post(f"/meters/{meter}/offline", {"after_register_lsb": REGISTER_LSB})
    async with connection(await fleet.address("gw-shops")) as (reader, writer):
        writer.write(frame(1, 1, "03 0037 0002"))  # no reading: the meter stays
        writer.write(frame(2, 1, "03 0215 0002"))  # the very reading
        writer.write(frame(3, 1, "03 0215 0002"))  # it is gone
        writer.write(frame(4, 99, "03 0215 0002"))  # it never was
        writer.write(frame(5, 2, "03 0215 0002"))  # a neighbour
        answers = [struct.unpack_from(">H", await reader.readexactly(13))[0] for _ in range(3)]
        assert answers == [1, 2, 5]
        shown = await fleet.get(f"/meters/{meter}")
        assert (shown["online"], shown["last_served_register_lsb"]) == (False, REGISTER_LSB)
        await fleet.post(f"/meters/{meter}/online")
        writer.write(frame(6, 1, "03 0215 0002"))
        assert (await reader.readexactly(13))[:2] == b"\x00\x06"


async def test_a_gateway_that_was_away_returns_at_its_port(fleet: Running) -> None:
    address = await fleet.address("gw-shops")
    async with connection(address) as (reader, _):
        await fleet.post("/gateways/gw-shops/offline")
        assert await reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    assert (await fleet.get("/health/ready"))["ready"]
    await fleet.post("/gateways/gw-shops/online")
    async with connection(address) as (reader, writer):
        writer.write(frame(7, 1, "03 0037 0002"))
        assert (await reader.readexactly(13))[:2] == b"\x00\x07"


# --- the control API -----------------------------------------------------------------------------


async def test_the_load_is_switched_for_all_meters_at_one_moment(fleet: Running) -> None:
    assert not (await fleet.get("/meters"))["load_on"]
    began = await fleet.post("/load", {"on": True})
    await until(lambda: fleet.fleet.now_ms() > began["at_ms"] + 40, "a unit is counted")
    ended = await fleet.post("/load", {"on": False})
    meters = (await fleet.get("/meters"))["meters"]
    assert len(meters) == 36
    nanojoule = 1_000_000 * 1_000_000 * (ended["at_ms"] - began["at_ms"])
    assert {one["energy_nanojoule"] for one in meters} == {nanojoule}
    for one in meters:
        lsb = 36_000_000_000_000 * one["ct"] * one["pt"]
        assert one["register_lsb"] == REGISTER_LSB + nanojoule // lsb


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/meters/nobody/online", None, 404, "there is no meter nobody"),
        ("/gateways/nowhere/online", None, 404, "there is no gateway nowhere"),
        ("/load", {"on": "perhaps"}, 400, "on: Input should be a valid boolean"),
        ("/load", {}, 400, "on: Field required"),
        ("/meters/{tcp}/offline", {}, 400, "give either"),
        ("/meters/{tcp}/offline", {"now": True, "mode": "missing"}, 400, "can only be silent"),
        ("/meters/{tcp}/fault", {"kind": "wrong_crc"}, 400, "has no CRC; use malformed"),
        ("/meters/{tcp}/fault", {"kind": "absurd_register"}, 400, "register_lsb belongs to"),
        ("/meters/{tcp}/power", {"power_w": -1}, 400, "greater than or equal to 0"),
        ("/gateways/gw-shops/stranger", {"serial": "1"}, 400, "through MQTT only"),
    ],
)
async def test_a_request_that_cannot_be_met_says_why(
    fleet: Running, path: str, body: object, status: int, says: str
) -> None:
    answer = await fleet.post(path.format(tcp=fleet.meter_id("gw-shops")), body, status=status)
    assert says in answer["error"]


# --- the process ---------------------------------------------------------------------------------


async def start(environment: dict[str, str]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tools.fleet"),
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=asyncio.subprocess.PIPE,
    )


async def error_of(environment: dict[str, str]) -> str:
    process = await start(environment)
    _, stderr = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    assert process.returncode == 2
    return stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_stops_within_two_seconds_though_a_master_is_connected(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(as_yaml(site_of(*MODBUS_ONLY)), "utf-8")
    process = await start({"WATTVEND_FLEET_CONFIG": str(path), "WATTVEND_FLEET_HTTP_PORT": "0"})
    assert process.stderr is not None
    gateways: dict[str, str] = {}
    while len(gateways) < 3:
        line = await asyncio.wait_for(process.stderr.readline(), DEADLINE_S)
        event = json.loads(line)
        if event["event"] == "gateway up":
            gateways[event["id"]] = event["address"]
    host, _, port = gateways["gw-shops"].partition(":")
    async with connection((host, int(port))) as (reader, writer):
        writer.write(frame(1, 1, "03 0037 0002"))
        await reader.readexactly(13)
        process.send_signal(number)
        began = time.monotonic()
        rest = await asyncio.wait_for(process.stderr.read(), DEADLINE_S)
        assert await process.wait() == 0
        assert time.monotonic() - began < 2
    assert b"Traceback" not in rest


async def test_what_keeps_the_process_from_starting_is_told(tmp_path: Path) -> None:
    assert "WATTVEND_FLEET_CONFIG: Field required" in await error_of({})
    missing = {"WATTVEND_FLEET_CONFIG": str(tmp_path / "none.yaml")}
    assert "cannot be read" in await error_of(missing)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    path = tmp_path / "fleet.yaml"
    content = site_of("gw-shops").model_dump(mode="json", exclude_defaults=True)
    content["gateways"][0]["port"] = port
    path.write_text(json.dumps(content), "utf-8")
    taken = {"WATTVEND_FLEET_CONFIG": str(path), "WATTVEND_FLEET_HTTP_PORT": "0"}
    told = await error_of(taken)
    assert f"gateway gw-shops cannot listen on 127.0.0.1:{port}" in told
    assert "Traceback" not in told
    server.close()
    await server.wait_closed()


# --- MQTT ----------------------------------------------------------------------------------------


class Platform:
    """What the platform would hear and say, on a real broker."""

    def __init__(self, stack: BackgroundStack, gateway: GatewayConfig) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self._gateway = gateway
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.connect(stack.mqtt_host, stack.mqtt_port)
        self._client.subscribe(f"/gw/acrelHW/{gateway.product}/+/{gateway.serial}", qos=1)
        self._client.loop_start()

    def _on_message(self, _client: object, _data: object, message: paho.MQTTMessage) -> None:
        self.heard.append((message.topic.split("/")[4], json.loads(message.payload)))

    def say(self, command: str, message: dict[str, Any]) -> None:
        topic = f"/server/acrelHW/{self._gateway.product}/{command}/{self._gateway.serial}"
        self._client.publish(topic, json.dumps(message), qos=1).wait_for_publish(DEADLINE_S)

    def control(self, meter_serial: str, relay: int, msgid: str, expire: str) -> None:
        message = {"type": "control", "msgid": msgid, "gwSN": self._gateway.serial}
        self.say("control", {**message, "meterSN": meter_serial, "relay": relay, "expire": expire})

    def count(self, command: str, **fields: object) -> int:
        return sum(
            name == command and fields.items() <= message.items() for name, message in self.heard
        )

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.mark.stack
async def test_a_gateway_on_a_real_broker_reports_obeys_and_refuses_what_waited_too_long(
    stack: BackgroundStack,
) -> None:
    config = site_of(*MQTT_ONLY)
    [gateway] = config.gateways
    platform = Platform(stack, gateway)

    def make_link(one: GatewayConfig) -> Link:
        return PahoLink(stack.mqtt_host, stack.mqtt_port, f"fleet-{one.serial}", down_topics(one))

    try:
        async with running(config, make_link) as fleet:
            serials = [meter.config.serial for meter in fleet.fleet.meters.values()]
            await until(lambda: platform.count("login"), "the gateway logs in")
            platform.say("login", {"type": "login", "res": 1})
            await until(lambda: platform.count("time"), "the gateway asks for the time")
            for serial in serials:
                await until(lambda: platform.count("data", meterSN=serial), f"{serial} reports")  # noqa: B023 - awaited here

            platform.control(serials[0], 0, "now", "20990101000000")
            await until(lambda: platform.count("control", msgid="now", res=1), "it obeys")
            await until(lambda: platform.count("data", meterSN=serials[0], relay=0), "it opens")

            await fleet.post(f"/gateways/{gateway.id}/offline")
            platform.control(serials[1], 0, "late", "20200101000000")
            await fleet.post(f"/gateways/{gateway.id}/online")
            await until(lambda: platform.count("control", msgid="late", res=0), "it refuses")
            assert (await fleet.get(f"/meters/{fleet.meter_id(gateway.id)}"))["relay"] == "open"
            assert len({one["relay"] for one in (await fleet.get("/meters"))["meters"]}) == 2

            await fleet.post(f"/gateways/{gateway.id}/stranger", {"serial": "STRANGER1"})
            await until(lambda: platform.count("data", meterSN="STRANGER1"), "the stranger talks")
    finally:
        platform.close()
