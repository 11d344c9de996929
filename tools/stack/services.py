"""How the five services and the virtual fleet are run on one machine.

Services are configured by their environment only: `WATTVEND_<SERVICE>_<SETTING>`.
"""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from tools.stack import keyfile
from tools.stack.ports import LOOPBACK, Ports
from tools.stack.process import READERS_NICENESS, ProcessSpec, Restart, always_ready

ROOT = Path(__file__).parents[2]
PROBE_TIMEOUT_S = 2.0
SERVICE_START_WITHIN_S = 30.0
SERVICE_STOP_WITHIN_S = 15.0
TOPICS_WITHIN_S = 60.0


# Meters are read each second here, each quarter of an hour in life; time is never accelerated.
READ_OFTEN = {
    "POLL_INTERVAL_MS": "1000",
    "MQTT_OFFLINE_AFTER_MS": "4000",
    "LINGER_MS": "50",
}


class Kind(StrEnum):
    """A one-shot runs to its end before the next spec starts; services run side by side."""

    SERVICE = "service"
    ONE_SHOT = "one-shot"


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A part on top of the infrastructure. `env` is all of its configuration."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], Awaitable[bool]] = always_ready
    kind: Kind = Kind.SERVICE
    niceness: int = 0
    address: str = ""

    def process(self, restart: Restart | None) -> ProcessSpec:
        one_shot = self.kind is Kind.ONE_SHOT
        return ProcessSpec(
            name=self.name,
            argv=self.argv,
            ready=self.ready,
            env=self.env,
            cwd=ROOT,
            start_within_s=TOPICS_WITHIN_S if one_shot else SERVICE_START_WITHIN_S,
            stop_within_s=SERVICE_STOP_WITHIN_S,
            restart=restart,
            niceness=self.niceness,
            address=self.address,
        )


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the parts of a running stack are. `postgres_dsn` holds the password."""

    directory: Path
    ports: Ports
    postgres_dsn: str

    @property
    def kafka_bootstrap(self) -> str:
        return f"{LOOPBACK}:{self.ports.kafka}"

    @property
    def mqtt_host(self) -> str:
        return LOOPBACK

    @property
    def mqtt_port(self) -> int:
        return self.ports.mqtt

    @property
    def vending(self) -> str:
        return f"{LOOPBACK}:{self.ports.vending_grpc}"

    @property
    def reporting(self) -> str:
        return f"{LOOPBACK}:{self.ports.reporting_grpc}"


def topics_spec(kafka_bootstrap: str) -> ServiceSpec:
    """Create the topics of the catalogue."""
    module = "services.common.runtime.topics"
    argv = (sys.executable, "-m", module, "create", "--bootstrap", kafka_bootstrap)
    return ServiceSpec("topics", argv, kind=Kind.ONE_SHOT)


def service_specs(at: Addresses, *, log_level: str = "INFO") -> list[ServiceSpec]:
    """Return the topics' creation and the five services."""
    ports = at.ports
    data = at.directory / "data"
    mqtt = {"MQTT_HOST": at.mqtt_host, "MQTT_PORT": str(at.mqtt_port)}
    own: dict[str, dict[str, str]] = {
        "vending": {
            "STORE_PATH": str(data / "vending" / "events.sqlite"),
            "SIGNING_KEY": str(keyfile.made(data / "vending" / "signing.pem")),
            "GRPC_PORT": str(ports.vending_grpc),
            "REPORTING": f"{LOOPBACK}:{ports.reporting_grpc}",
        },
        "ingest": {**mqtt, **READ_OFTEN},
        "metering": {},
        "control": mqtt,
        "reporting": {
            "POSTGRES_DSN": at.postgres_dsn,
            "GRPC_PORT": str(ports.reporting_grpc),
        },
    }
    specs = [topics_spec(at.kafka_bootstrap)]
    for name, settings in own.items():
        http_port: int = getattr(ports, f"{name}_http")
        common = {
            "KAFKA_BOOTSTRAP": at.kafka_bootstrap,
            "INSTANCE": f"{name}-0",
            "HTTP_PORT": str(http_port),
            "LOG_LEVEL": log_level,
        }
        grpc_port = settings.get("GRPC_PORT")
        specs.append(
            ServiceSpec(
                name=name,
                argv=(sys.executable, "-m", f"services.{name}"),
                env=environment(name, {**common, **settings}),
                ready=http_ready(http_port),
                niceness=READERS_NICENESS if name == "reporting" else 0,
                address=f"{LOOPBACK}:{grpc_port} (gRPC)" if grpc_port else http_address(http_port),
            )
        )
    return specs


def fleet_spec(at: Addresses, config: Path) -> ServiceSpec:
    """Run the virtual fleet that `config` describes."""
    http_port = at.ports.fleet_http
    settings = {
        "HTTP_PORT": str(http_port),
        "CONFIG": str(config),
        "REGISTERS": str(at.directory / "data" / "fleet-registers.json"),
        "MQTT_HOST": at.mqtt_host,
        "MQTT_PORT": str(at.mqtt_port),
    }
    return ServiceSpec(
        name="fleet",
        argv=(sys.executable, "-m", "tools.fleet"),
        env=environment("fleet", settings),
        ready=http_ready(http_port),
        address=http_address(http_port),
    )


def environment(service: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Return a service's settings as environment variables."""
    return {f"WATTVEND_{service.upper()}_{name}": value for name, value in settings.items()}


def http_address(port: int) -> str:
    return f"http://{LOOPBACK}:{port}"


def http_ready(port: int) -> Callable[[], Awaitable[bool]]:
    """Return a question that asks a service's GET /health/ready on a loopback port."""

    async def ready() -> bool:
        return await http_status(port, "/health/ready") == 200

    return ready


async def http_status(port: int, path: str) -> int | None:
    """Return the status code of a GET on loopback; None where nobody answers in time."""
    writer = None
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\n".encode())
            writer.write(b"Connection: close\r\n\r\n")
            line = await reader.readline()
        return int(line.split()[1])
    except (OSError, TimeoutError, ValueError, IndexError):
        return None
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
