"""The wiring of control."""

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from services.common.runtime import kafka, service
from services.common.runtime.fence import ClockFence
from services.common.runtime.profiles import profiles
from services.common.runtime.service import Runtime
from services.common.runtime.settings import load
from services.control.adapters.bus import Ears, FactsReader, SitesReader
from services.control.adapters.metrics import Metrics
from services.control.adapters.mqtt import Commander
from services.control.adapters.outbox import Outbox
from services.control.config import ControlSettings
from services.control.domain.desk import Desk

NAME = "control"
WATCH_EVERY_TICKS = 10
BROKER = "mqtt"
FLUSH_S = 3.0


async def _tick(
    runtime: Runtime,
    *,
    tick_ms: int,
    is_mqtt_enabled: bool,
    desk: Desk,
    outbox: Outbox,
    commander: Commander,
    metrics: Metrics,
) -> None:
    """Look at deadlines; now and then at gauges and at the broker's connection."""
    ticks = 0
    while True:
        outbox.put(desk.tick(runtime.clock.now_ms()))
        if ticks % WATCH_EVERY_TICKS == 0:
            metrics.watch(desk, runtime.clock.now_ms())
        if commander.is_connected or not is_mqtt_enabled:
            runtime.health.ready(BROKER)
        else:
            runtime.health.not_ready(BROKER, "not connected to the MQTT broker; check MQTT_HOST")
        ticks += 1
        await asyncio.sleep(tick_ms / 1000)


async def _stop(
    deciding: list[asyncio.Task[Any]], outbox: Outbox, sending: asyncio.Task[Any]
) -> None:
    """Decide nothing more, then send what was decided."""
    for task in deciding:
        task.cancel()
    if not sending.done():
        await outbox.emptied(FLUSH_S)
    sending.cancel()
    await asyncio.wait([*deciding, sending])


async def _body(settings: ControlSettings, runtime: Runtime, stack: AsyncExitStack) -> None:
    fence = ClockFence(runtime.clock)
    fence.install()
    fence.heed_namesake()
    metrics = Metrics(runtime.metrics)
    desk = Desk(profiles(), settings.limits)
    runtime.health.not_ready(BROKER, "connecting to the MQTT broker")
    commander = Commander(f"wattvend-{settings.instance}", runtime.log)
    if settings.mqtt_enabled:
        commander.start(settings)
        stack.callback(commander.stop)
    producer = kafka.producer(settings.kafka_bootstrap, client_id=f"control-{settings.instance}")
    await producer.start()
    stack.push_async_callback(producer.stop)
    outbox = Outbox(
        desk=desk,
        producer=producer,
        commander=commander,
        fence=fence,
        clock=runtime.clock,
        metrics=metrics,
        worker=settings.instance,
    )
    step_over = kafka.StepOver(settings.skipped, "WATTVEND_CONTROL_SKIP", runtime.log)
    ears = Ears(desk, outbox, runtime.clock, metrics, runtime.log, step_over=step_over)
    facts = FactsReader(settings.kafka_bootstrap, settings.instance, ears)
    stack.push_async_callback(facts.stop)
    await facts.start(replies_since_ms=runtime.clock.now_ms() - 2 * settings.reply_timeout_ms)
    sites = SitesReader(
        settings.kafka_bootstrap,
        settings.instance,
        desk=desk,
        outbox=outbox,
        ears=ears,
        clock=runtime.clock,
        metrics=metrics,
        health=runtime.health,
        log=runtime.log,
        recover_window_ms=settings.recover_window_s * 1000,
    )
    stack.push_async_callback(sites.stop)
    await sites.start()
    sending = runtime.spawn(outbox.run(), "outbox")
    ticks = _tick(
        runtime,
        tick_ms=settings.tick_ms,
        is_mqtt_enabled=settings.mqtt_enabled,
        desk=desk,
        outbox=outbox,
        commander=commander,
        metrics=metrics,
    )
    deciding = [
        runtime.spawn(facts.run(), "facts"),
        runtime.spawn(sites.run(), "sites"),
        runtime.spawn(ticks, "ticks"),
    ]
    stack.push_async_callback(_stop, deciding, outbox, sending)


def main() -> int:
    """Run control until it is told to stop; return the exit code."""
    settings = load(ControlSettings)

    async def body(runtime: Runtime, stack: AsyncExitStack) -> None:
        await _body(settings, runtime, stack)

    return service.run(NAME, settings, body)
