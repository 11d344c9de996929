"""vending: the wiring of the service."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path

from services.common.kernel.errors import InvalidInput, Retriable, WattvendError
from services.common.runtime import grpc, kafka, service
from services.common.runtime.profiles import profiles
from services.common.runtime.settings import load
from services.common.runtime.topics import catalogue
from services.vending import commands
from services.vending.adapters import api, bus, reporting, stores
from services.vending.adapters.api.desk import Desk
from services.vending.adapters.keys import SigningKey
from services.vending.application.batches import COMMANDS, EXPORTS
from services.vending.application.book import Book
from services.vending.application.office import Office, Terms
from services.vending.application.relay import (
    BookMismatch,
    Relay,
    beginning,
    check_told,
)
from services.vending.application.statements import Pace, Statements
from services.vending.config import VendingSettings
from services.vending.domain.tables import Checkpoint
from services.vending.metrics import Metrics

COMPLETE_INTERVAL_S = 1.0
WRITER_INTERVAL_S = 1.0
DRAIN_S = 3.0


class _Vending:
    """The parts of a running service, in the order in which they start."""

    def __init__(
        self, settings: VendingSettings, runtime: service.Runtime, stack: AsyncExitStack
    ) -> None:
        self.settings = settings
        self.runtime = runtime
        self.stack = stack
        self.metrics = Metrics(runtime.metrics)
        self.relay: Relay | None = None

    async def start(self) -> None:
        settings, runtime = self.settings, self.runtime
        self.signed = self._signed_by(settings.signing_key)
        stored = await self.stack.enter_async_context(
            stores.opened(settings.store_address, settings.instance)
        )
        self.store, self.tables = stored.store, stored.tables
        self.book = Book(self.store, self.metrics, states_cached_max=settings.states_cached_max)
        terms = Terms(
            catalogue().shards,
            settings.tariff_lead_ms,
            profiles(),
            settings.hold_lasts_ms,
        )
        self.office = Office(self.book, self.tables, runtime.clock, terms)
        if settings.reporting:
            asked = await self.stack.enter_async_context(
                reporting.opened(settings.reporting, settings.reporting_ca)
            )
            self.office.batches.drafting.selection = asked.selection
            self.office.batches.exporting.exports = asked.exports
        self.book_epoch = await self.tables.book_epoch()
        if mismatch := await self._start_relay():
            self.book.refusing = mismatch
            runtime.health.not_ready("book", mismatch)
            runtime.log.error("commands are refused", why=mismatch)
        else:
            await self.office.complete()
            step_over = kafka.StepOver(self.settings.skipped, "WATTVEND_VENDING_SKIP", runtime.log)
            keep = bus.keeper_of_charges(self.tables, step_over)
            runtime.spawn(self._follow("charges", keep), "charges")
            settle = bus.settler_of_echoes(
                self.office, self.statements, self.tables, runtime.clock.now_ms, step_over
            )
            runtime.spawn(self._follow("echoes", settle), "echoes")
            runtime.spawn(self.statements.run(runtime.log), "usage")
            runtime.spawn(self._look_who_writes(), "writer")
            runtime.spawn(self._complete(), "half-done")
            batches = self.office.batches
            runtime.spawn(batches.run(runtime.log, COMMANDS), "batches")
            runtime.spawn(batches.run(runtime.log, EXPORTS), "exports")
        self.stack.push_async_callback(self._drain)
        await self._start_grpc()

    async def _start_relay(self) -> str:
        """Start publishing; or return why the store must not be used."""
        settings, runtime = self.settings, self.runtime
        if source := await self.tables.unfinished_copy_of():
            return (
                f"this event store is a copy of {source} that was not finished, and lacks what is "
                "beside the events: stop vending and run `copy-book` again, from that store. Where "
                "that is lost, run `raise-book-epoch`: this store becomes the truth"
            )
        last, told = await bus.last_told(settings.kafka_bootstrap, f"{settings.instance}-relay")
        try:
            begin = await beginning(self.store, self.tables, last, self.book_epoch)
            await check_told(self.store, told, self.book_epoch)
        except BookMismatch as mismatch:
            return str(mismatch)
        to_kafka = bus.KafkaPublisher(settings.kafka_bootstrap, f"{settings.instance}-relay")
        self.stack.push_async_callback(to_kafka.close)
        publisher = bus.WhileWriting(to_kafka, lambda: self.book.is_superseded)
        relay = Relay(
            self.store,
            self.tables,
            publisher,
            clock=runtime.clock,
            metrics=self.metrics,
            log=runtime.log,
            begin=begin,
            book_epoch=self.book_epoch,
            shards=catalogue().shards,
            decided=self.book.decided,
            signed=self.signed,
        )
        self.metrics.relay_lag.set_function(lambda: self.store.count() - relay.count)
        runtime.spawn(relay.run(), "relay")
        runtime.spawn(relay.keep_checkpoints(settings.checkpoint_interval_ms), "checkpoints")
        self.relay = relay
        self.statements = Statements(
            self.office,
            self.store,
            self.tables,
            publisher,
            relay,
            clock=runtime.clock,
            metrics=self.metrics,
            pace=Pace(settings.usage_at_minute, settings.usage_asks_per_s),
        )
        runtime.log.info("the relay begins", position=begin.position, book_epoch=self.book_epoch)
        return ""

    def _signed_by(self, path: Path | None) -> Callable[[Checkpoint], Checkpoint]:
        if path is None:
            self.runtime.log.warning(
                "checkpoints are not signed", setting="WATTVEND_VENDING_SIGNING_KEY"
            )
            return lambda unsigned: unsigned
        key = SigningKey(path)
        self.runtime.log.info("checkpoints are signed", key_id=key.key_id)
        return key.signed

    async def _follow(self, topic: str, handle: bus.Handle) -> None:
        settings = self.settings
        await bus.follow(
            settings.kafka_bootstrap,
            topic,
            await self.tables.offsets(topic),
            handle,
            client_id=f"{settings.instance}-{topic}",
            log=self.runtime.log,
        )

    async def _look_who_writes(self) -> None:
        """Refuse commands, and tell no more, soon after another process came to write the store."""
        while True:
            with suppress(Retriable):  # one that is away is looked at again
                await self.book.check_writer()
            if self.book.refusing:
                self.runtime.health.not_ready("book", self.book.refusing)
            await asyncio.sleep(WRITER_INTERVAL_S)

    async def _complete(self) -> None:
        """Do what of assignments is half done, also after a failure of the store."""
        while True:
            try:
                self.metrics.half_done.set(len(await self.tables.todos()))
                await self._measure_closings()
                await self.office.complete()
                await self._measure_waiting()
                self._measure_stuck()
            except (InvalidInput, Retriable) as failed:
                self.runtime.log.warning("assignments stay half done", why=str(failed))
            await asyncio.sleep(COMPLETE_INTERVAL_S)

    def _measure_stuck(self) -> None:
        self.metrics.stuck.clear()
        self.metrics.stuck_oldest.clear()
        now_s = asyncio.get_running_loop().time()
        for process, (count, oldest_s) in self.book.failing.stuck(now_s).items():
            self.metrics.stuck.labels(process).set(count)
            self.metrics.stuck_oldest.labels(process).set(oldest_s)

    async def _measure_closings(self) -> None:
        now_ms = self.runtime.clock.now_ms()
        open_ = await self.tables.closings_open(now_ms)
        self.metrics.closings_open.set(open_.count)
        self.metrics.closings_overdue.set(open_.overdue)
        began_ms = open_.oldest_began_at_ms or now_ms
        self.metrics.closings_oldest.set((now_ms - began_ms) / 1000)

    async def _measure_waiting(self) -> None:
        now_ms, metrics = self.runtime.clock.now_ms(), self.metrics
        batches = await self.office.batches.under_way()
        metrics.batches_running.set(batches.running)
        metrics.batches_paused.set(batches.paused)
        metrics.batches_oldest.set((now_ms - (batches.submitted_at_ms or now_ms)) / 1000)
        metrics.batches_stand.set((now_ms - (batches.moved_at_ms or now_ms)) / 1000)
        metrics.batch_targets_paced.set(batches.paced)
        undecided = await self.tables.undecided()
        metrics.approvals_waiting.set(undecided.proposals)
        metrics.policies_scheduled.set(undecided.scheduled)
        due_ms = undecided.scheduled_next_ms or now_ms
        metrics.policies_late.set(max(0, now_ms - due_ms) / 1000)

    async def _start_grpc(self) -> None:
        desk = Desk(
            self.office,
            self.runtime.clock,
            self.metrics,
            lambda: self.book_epoch,
            self.settings.grpc_timeout_s,
        )
        register = partial(api.register, desk)
        await self.stack.enter_async_context(
            grpc.serving(self.settings, self.runtime.log, self.runtime.health, register, api.NAMES)
        )

    async def _drain(self) -> None:
        """Answer what was taken in and publish what was stored, within bounded time."""
        with suppress(TimeoutError, WattvendError):
            async with asyncio.timeout(DRAIN_S):
                await self.office.drained()
                await self.book.drained()
                if self.relay is not None:
                    await self.relay.caught_up()
                    await self.relay.checkpoint()


async def _body(settings: VendingSettings, runtime: service.Runtime, stack: AsyncExitStack) -> None:
    await _Vending(settings, runtime, stack).start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service, or a command for a person at the book."""
    chosen = commands.parsed(arguments)
    settings = load(VendingSettings)
    if chosen.command == commands.RUN:
        return service.run("vending", settings, partial(_body, settings))
    return commands.carried_out(chosen, settings)
