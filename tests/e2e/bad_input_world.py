"""A whole product with eight virtual meters, for the tests that break it.

Nothing is restarted when it dies, so that a crash shows.
"""

import asyncio
import importlib
import json
import pkgutil
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
from aiokafka import ConsumerRecord, TopicPartition
from google.longrunning import operations_proto_pb2
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_status import rpc_status

import wattvend.reporting.v1
import wattvend.vending.v1
from services.common.kernel import names
from services.common.kernel.envelope import Envelope
from services.common.runtime import kafka
from tools import mall, sitefile
from tools.client import connect
from tools.fleet.config import FleetConfig
from tools.fleet.site import as_yaml, make_site
from tools.stack.background import BackgroundStack
from tools.stack.ports import Ports
from tools.stack.services import Addresses, ServiceSpec, fleet_spec, service_specs
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import vending_pb2 as v

METERS = 8
SERVICES = ("ingest", "metering", "vending", "control", "reporting")
WITHIN_S = 20.0
CALL_TIMEOUT_S = 10.0
MAX_POWER_W = 200_000_000
SERIAL_RECHECK_MS = "1000"


def _called() -> dict[str, MethodDescriptor]:
    """Return method name → method of every service of vending and reporting, and operations."""
    modules = [
        importlib.import_module(module.name)
        for package in (wattvend.vending.v1, wattvend.reporting.v1)
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if module.name.endswith("_pb2")
    ]
    files = [module.DESCRIPTOR for module in (operations_proto_pb2, *modules)]
    services = [service for file in files for service in file.services_by_name.values()]
    methods = [method for service in services for method in service.methods]
    assert len({method.name for method in methods}) == len(methods)
    return {method.name: method for method in methods}


METHODS = _called()
"""Called by their names alone: no two services have one alike."""


def message_of(described: Descriptor, /, **fields: Any) -> Message:
    """Return a message of a kind."""
    return GetMessageClass(described)(**fields)


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of the test
    """What a refused call said: gRPC code, reason of the catalogue, message."""

    def __init__(self, error: Any) -> None:
        super().__init__(f"{error.code().name}: {error.details()}")
        self.code = error.code()
        self.message = error.details() or ""
        self.reason = ""
        status = rpc_status.from_call(error)
        for detail in status.details if status is not None else ():
            info = error_details_pb2.ErrorInfo()
            if detail.Unpack(info):
                self.reason = info.reason


class World:
    """The product, its operator, its fleet and its attacker. Every method blocks."""

    def __init__(self, directory: Path) -> None:
        self.ports = Ports.free()
        self.stack = BackgroundStack(directory, self.ports, services=self._specs)
        lines = self.ports.fleet_lines
        self.fleet_config: FleetConfig = make_site(METERS, seed=5, modbus_ports=lines)
        self.site = self._site()
        self._channels: dict[str, grpc.Channel] = {}
        self.pids: dict[str, int | None] = {}

    def open(self) -> None:
        """Start everything, register the site, give each meter an account."""
        self.stack.open()
        self._channels = {
            "vending": grpc.insecure_channel(self.stack.addresses.vending),
            "reporting": grpc.insecure_channel(self.stack.addresses.reporting),
        }
        asyncio.run(self._register())
        for meter in self.site.meters:
            self.open_account(meter.id)
        self.pids = self.now_running()

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()
        self.stack.close()

    def _specs(self, at: Addresses) -> list[ServiceSpec]:
        config = at.directory / "fleet.yaml"
        config.write_text(as_yaml(self.fleet_config.model_copy(update={"load_on": True})))
        specs = []
        for spec in service_specs(at):
            env = {**spec.env}
            if spec.name == "ingest":
                env["WATTVEND_INGEST_SERIAL_RECHECK_MS"] = SERIAL_RECHECK_MS
            specs.append(replace(spec, env=env))
        return [*specs, fleet_spec(at, config)]

    def _site(self) -> sitefile.SiteFile:
        site = mall.site_file(self.fleet_config)
        meters = [m.model_copy(update={"max_power_w": MAX_POWER_W}) for m in site.meters]
        return site.model_copy(update={"meters": meters})

    async def _register(self) -> None:
        at = self.stack.addresses
        async with connect(at.vending, at.reporting, "installer") as clients:
            await sitefile.apply(clients, self.site, lambda _: None)

    def now_running(self) -> dict[str, int | None]:
        return {name: self.stack.status(name).pid for name in SERVICES}

    # --- the operator -----------------------------------------------------------------------------

    def call(self, method: str, request: Message, *, caller: str = "desk-1") -> Any:
        """Call a method of any service. Raises Refusal."""
        return self.call_raw(method, request.SerializeToString(), caller=caller)

    def call_raw(self, method: str, sent: bytes, **more: Any) -> Any:
        """Send bytes as a request; `caller`, `timeout_s`. Raises Refusal."""
        caller = more.get("caller", "desk-1")
        called = METHODS[method]
        of = called.containing_service.full_name
        channel = self._channels["reporting" if ".reporting." in of else "vending"]
        answer = GetMessageClass(called.output_type)
        stub = channel.unary_unary(
            f"/{of}/{method}", bytes, response_deserializer=answer.FromString
        )
        try:
            return stub(
                sent,
                timeout=more.get("timeout_s", CALL_TIMEOUT_S),
                metadata=(("wattvend-caller", caller),) if caller else (),
            )
        except grpc.RpcError as error:
            raise Refusal(error) from error

    def open_account(self, meter_id: str) -> None:
        account = account_of(meter_id)
        self.call(
            "OpenAccount",
            v.OpenAccountRequest(
                request_id=str(uuid4()),
                account_id=account,
                site=names.SITE.name(mall.SITE),
                commodity="electricity",
                tariff=names.TARIFF.name(mall.TARIFF),
                policy=names.POLICY.name(mall.POLICY),
                first_sale_minor=900_000_000,
                method="cash",
            ),
        )
        self.wait("the first reading", lambda: self.charged_milli(meter_id) is not None)
        request = v.AssignMeterRequest(
            request_id=str(uuid4()),
            name=names.METER.name(meter_id),
            account=names.ACCOUNT.name(account),
        )
        self.wait("vending's copy of it", lambda: self._assigned(request))

    def _assigned(self, request: v.AssignMeterRequest) -> bool:
        try:
            self.call("AssignMeter", request)
        except Refusal as refusal:
            if refusal.reason != "NO_READING_YET":
                raise
            return False
        return True

    def charged_milli(self, meter_id: str) -> int | None:
        """Return the register up to which a meter is charged, None where it never was."""
        for meter in self.call("ListMeters", r.ListMetersRequest()).meters:
            if meter.meter == names.METER.name(meter_id) and meter.HasField("register_milli"):
                return int(meter.register_milli)
        return None

    def lost(self) -> dict[str, r.LostDevice]:
        """Return what `wattvend fleet --lost` lists, by device."""
        found = self.call("ListLostMeters", r.ListLostMetersRequest(page_size=1000)).devices
        return {device.name: device for device in found}

    # --- the fleet, and what is true --------------------------------------------------------------

    def fleet(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST a body, at the fleet's control API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports.fleet_http}{path}",
            None if body is None else json.dumps(body).encode(),
        )
        with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_S) as answer:
            return json.load(answer)

    def true_milli(self, meter_id: str) -> int:
        """Return the register that stands in the device now, in Wh."""
        return int(self.fleet(f"/meters/{meter_id}")["register_lsb"]) * 10

    def charged_in_full(self, meter_id: str) -> None:
        """Wait until all that the meter counted so far is charged; judge each figure."""
        true_milli = self.true_milli(meter_id)

        def is_there() -> bool:
            return (self.charged_milli(meter_id) or 0) >= true_milli

        self.wait(f"{meter_id} charged up to {true_milli}", is_there)
        account = self.call(
            "GetAccount", v.GetAccountRequest(name=names.ACCOUNT.name(account_of(meter_id)))
        )
        used = self.call(
            "GetConsumption",
            r.GetConsumptionRequest(
                account=names.ACCOUNT.name(account_of(meter_id)), from_ms=0, to_ms=2**62
            ),
        )
        [line] = used.meters
        [joined] = account.meters
        ratio = next(m.ratio for m in self.site.meters if m.id == meter_id)
        assert line.from_register_milli == joined.opening_register_milli
        assert line.to_register_milli <= self.true_milli(meter_id)
        registers_milli = line.to_register_milli - line.from_register_milli
        assert used.energy_milli == registers_milli * ratio
        assert used.amount_nano == used.energy_milli * mall.PRICE_MICRO

    # --- what is seen of services -----------------------------------------------------------------

    def metric(self, service: str, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        port = getattr(self.ports, f"{service}_http")
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        lines = [line for line in text.splitlines() if re.match(rf"{name}[{{ ]", line)]
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if all(label in line for label in wanted)
        )

    def is_ready(self, service: str) -> bool:
        port = getattr(self.ports, f"{service}_http")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=5) as a:
                return bool(a.status == 200)
        except OSError:
            return False

    def last_words(self, service: str) -> str:
        """Return the log line in which a service says why it stops."""
        lines = (self.stack.logs / f"{service}.log").read_text().splitlines()
        [said] = [line for line in lines if '"level": "critical"' in line]
        return said

    def wait(self, what: str, condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
            time.sleep(0.1)

    # --- the attacker on the bus ------------------------------------------------------------------

    def put(self, topic: str, value: bytes | None, schema: str | None, partition: int = 0) -> int:
        """Write a record that no service would; return its offset."""
        headers = Envelope(schema, uuid4(), 1).headers() if schema is not None else []

        async def send() -> int:
            producer = kafka.producer(self.stack.kafka_bootstrap, client_id="attacker")
            await producer.start()
            try:
                told = await producer.send_and_wait(
                    topic, value, key=b"attacker", partition=partition, headers=headers
                )
            finally:
                await producer.stop()
            return int(told.offset)

        return asyncio.run(send())

    def read(self, topic: str, partition: int = 0) -> list[ConsumerRecord]:
        """Return all records of a partition."""

        async def records() -> list[ConsumerRecord]:
            here = TopicPartition(topic, partition)
            reader = kafka.consumer(self.stack.kafka_bootstrap, client_id="observer")
            await reader.start()
            try:
                reader.assign([here])
                return [record async for record in kafka.read_to_end(reader, [here])]
            finally:
                await reader.stop()

        return asyncio.run(records())


def account_of(meter_id: str) -> str:
    return f"shop-{meter_id}"
