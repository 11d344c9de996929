"""The only wiring: settings, clock, broker, gateways, control API, signals."""

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import Literal

import structlog
from aiohttp import web
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.common.runtime import logs
from tools.fleet import http
from tools.fleet.config import FleetConfig, GatewayConfig, read_config
from tools.fleet.errors import ConfigError, FleetError
from tools.fleet.fleet import Fleet
from tools.fleet.memory import remember, remembered
from tools.fleet.mqtt import PahoLink, down_topics

STOP_TIMEOUT_S = 1.5
REMEMBER_EVERY_S = 1.0
PREFIX = "WATTVEND_FLEET_"

log = structlog.get_logger("fleet")


class FleetSettings(BaseSettings):
    """Read from the environment once."""

    model_config = SettingsConfigDict(env_prefix=PREFIX)

    config: Path = Field(description="the fleet's configuration, YAML or JSON")
    registers: Path | None = Field(
        None, description="file in which the meters' registers outlast this process"
    )
    http_port: int = Field(27_110, ge=0, le=65_535, description="port of the control API")
    mqtt_host: str = Field("127.0.0.1", description="the MQTT broker's host")
    mqtt_port: int = Field(21_883, ge=1, le=65_535, description="the MQTT broker's port")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="log level")


def read_settings() -> FleetSettings:
    """Return the settings. Raises ConfigError, which names what to change."""
    try:
        return FleetSettings()
    except ValidationError as wrong:
        lines = (
            f"  {PREFIX}{'_'.join(map(str, error['loc'])).upper()}: {error['msg']}"
            for error in wrong.errors()
        )
        raise ConfigError("\n".join(("the settings are wrong:", *lines))) from wrong


class SteadyClock:
    """UTC as it was at the start, carried on by the monotonic clock: it never goes back."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_ms(self) -> int:
        return (time.monotonic_ns() + self._offset_ns) // 1_000_000


async def run(settings: FleetSettings, config: FleetConfig) -> None:
    """Run the fleet until SIGTERM or SIGINT. Raises ListenError."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)

    def make_link(gateway: GatewayConfig) -> PahoLink:
        client_id = f"{gateway.product}-{gateway.serial}"
        return PahoLink(settings.mqtt_host, settings.mqtt_port, client_id, down_topics(gateway))

    fleet = Fleet(
        config,
        SteadyClock().now_ms,
        make_link,
        lambda delay_ms, action: loop.call_later(delay_ms / 1_000, action),
    )
    runner = await http.serve(fleet, settings.http_port)
    try:
        await fleet.open()
        for gateway in fleet.gateways.values():
            log.info("gateway up", id=gateway.config.id, address=gateway.address)
        await remembering(fleet, settings.registers, ended)
    finally:
        await stop(fleet, runner)


async def remembering(fleet: Fleet, path: Path | None, ended: asyncio.Event) -> None:
    """Keep the registers in a file, if there is one, until the end."""
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), REMEMBER_EVERY_S if path else None)
        if path is not None:
            now_ms = fleet.now_ms()
            remember({m.config.id: m.register_lsb(now_ms) for m in fleet.meters.values()}, path)


async def stop(fleet: Fleet, runner: web.AppRunner) -> None:
    """Close everything, or leave it to the end of the process: nothing of it would be lost."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await asyncio.gather(fleet.close(), runner.cleanup())
    except TimeoutError:
        log.warning("stopped without waiting any longer", waited_s=STOP_TIMEOUT_S)
    else:
        log.info("stopped")


def main() -> None:
    """Run the fleet; exit code 2 where the configuration or a port cannot be used."""
    try:
        settings = read_settings()
        config = read_config(settings.config)
        if settings.registers is not None:
            config = remembered(config, settings.registers)
        logs.configure("fleet", "fleet-0", settings.log_level)
        asyncio.run(run(settings, config))
    except FleetError as wrong:
        print(f"fleet: {wrong}", file=sys.stderr)
        raise SystemExit(2) from None
