"""faust, configured as measured, with the hooks that the rules of the shell need."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

import faust
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from faust.tables.manager import TableManager
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, EventT
from mode.utils.queues import FlowControlEvent

from services.common.runtime import kafka
from services.common.runtime.fence import wrap_method
from services.common.runtime.http import Health
from services.common.runtime.topics import catalogue
from services.metering.adapters import changelog
from services.metering.adapters.batches import BATCH_BYTES_MAX
from services.metering.adapters.decoding import TOPIC, Raw
from services.metering.adapters.exits import Exit, leave
from services.metering.adapters.shell import Shell
from services.metering.config import Settings

APP_ID = "metering"
TABLE = "rows"
PARTITIONS = "partitions"
SESSION_S = 6
HEARTBEAT_S = 1
REBALANCE_S = 10
REQUEST_S = 20
COMMIT_S = 1.0
FETCH_BYTES_MAX = 4 << 20
FETCH_WAIT_MS = 100
"""While a fetch waits the broker answers nothing else on its connection: offsets are looked up, and
fetched from anew, several times in a rebalance. With faust's 1.5 s that takes seconds.
"""
BUFFERED_EVENTS_MAX = 256
TOGETHER_MAX = 128
"""Records that are handed over without a pause of FULL_S. Those of a shard are absorbed together;
more must fit into the buffer: where it is full, faust sleeps for a second.
"""
FULL_S = 0.001
DRAIN_S = 4.0


class SteadyFlow(FlowControlEvent):
    """Flow control that loses nothing (rule 8).

    faust's recovery resumes the flow once more after the seek; that empties the queues, and the
    records in them would be skipped. Here a resume while active does nothing.
    """

    def resume(self) -> None:
        """Let events flow, and forget stale ones, unless they flow already."""
        if not self.is_active():
            super().resume()

    @property
    def waiting(self) -> int:
        """How many events wait to be absorbed."""
        return sum(queue.qsize() for queue in self._queues)


class PromptThread(driver.AIOKafkaConsumerThread):
    """faust's consumer thread. Its fetches wait for records a short time only."""

    def _create_worker_consumer(self, transport: driver.Transport) -> AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001 - faust has no setting for it
        return consumer

    async def on_thread_stop(self) -> None:
        """Stop also while Kafka is away: faust would wait for the rest of its own stop."""
        await super(driver.AIOKafkaConsumerThread, self).on_thread_stop()
        if self._consumer is not None:
            await kafka.stop(self._consumer)


class SteadyConsumer(driver.Consumer):
    """faust's consumer, which leaves out nothing that the rows lack (rule 8).

    faust lets records flow while it recovers, takes what lies between those and its seek for
    compacted, and commits over it. And aiokafka seeks nothing where nothing is committed, so that
    what faust drops in a rebalance would not come again.
    """

    def _new_consumer_thread(self) -> PromptThread:
        return PromptThread(self, loop=self.loop, beacon=self.beacon)

    def resume_flow(self) -> None:
        """Let records flow; not while every partition is paused, which is so until the seek."""
        if self._get_active_partitions():
            super().resume_flow()

    async def wait_first(self, *waits: Any, **more: Any) -> Any:
        """Hand a record to its stream at once; faust makes four tasks of each.

        What it guards against, a flow that stops while a record is handed over, cannot come
        between: while records flow the queue takes each of them without waiting. So records of
        one poll are absorbed, and their outputs sent, together. But no more of them than that:
        where its buffer is full, faust sleeps for a second.
        """
        if len(waits) != 2:
            return await super().wait_first(*waits, **more)
        hand_over, stopped = waits
        flow = cast("SteadyFlow", self.app.flow_control)
        while flow.waiting >= TOGETHER_MAX and self.flow_active and not self.should_stop:
            await asyncio.sleep(FULL_S)
        if self.flow_active and flow.is_active():
            stopped.close()
            return await hand_over
        return await super().wait_first(hand_over, stopped)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Seek each shard to what is committed (nothing: its beginning), or to what its rows lack.

        The earlier of the two: what was absorbed already is passed by, and committed.
        """
        assert isinstance(self.app, App)
        committed: dict[TP, int] = dict(await super().seek_to_committed())
        lacking = {TP(TOPIC, shard): at for shard, at in self.app.shell.next_offsets().items()}
        offsets = {tp: min(at, committed.get(tp) or 0) for tp, at in lacking.items()}
        if offsets:
            await self.seek_wait(offsets)
        return committed | offsets


class IdempotentProducer(driver.Producer):
    """faust's producer with acks=all and idempotence: a retry neither doubles nor reorders."""

    def _settings_extra(self) -> dict[str, Any]:
        return {"acks": "all", "enable_idempotence": True}

    def client(self) -> AIOKafkaProducer:
        """Return the aiokafka producer that does the work."""
        return self._ensure_producer()


class Transport(driver.Transport):
    """aiokafka with the consumer and the producer above."""

    Consumer = SteadyConsumer
    Producer = IdempotentProducer


class App(faust.App):
    """The faust app. `shell` and `health` are set before it starts."""

    shell: Shell
    health: Health

    @property
    def flow_control(self) -> SteadyFlow:
        if not hasattr(self, "_steady_flow"):
            self._steady_flow = SteadyFlow(loop=self.loop)
        return self._steady_flow

    def _new_transport(self) -> Transport:
        return Transport(self.conf.broker_consumer, self)

    def client(self) -> AIOKafkaProducer:
        """Return the one aiokafka producer; it is there once faust has started it."""
        producer = self.producer
        assert isinstance(producer, IdempotentProducer)
        return producer.client()

    def _create_directories(self) -> None:
        """Create nothing: the rows live in memory and in the changelog."""

    async def on_stop(self) -> None:
        """Stop fetching, let what is absorbed become durable, then let faust stop."""
        self.consumer.stop_flow()
        self.flow_control.suspend()
        self.flow_control.clear()
        await self.shell.drained(DRAIN_S)
        await super().on_stop()


class PromptTables(TableManager):
    """faust's table manager without its second of sleep for tables that are declared late."""

    async def on_start(self) -> None:
        """Register the table and start recovery."""
        await self._update_channels()
        await self.recovery.start()


class RowsTable(faust.Table):
    """The table whose changelog holds the rows. Recovery is the shell's, not faust's (rule 4)."""

    app: App

    async def on_rebalance(
        self,
        assigned: set[TP],
        revoked: set[TP],
        newly_assigned: set[TP],
        generation_id: int = 0,
    ) -> None:
        """Recover the rows of the assigned shards; faust awaits this before anything else."""
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)
        try:
            await self.app.shell.assigned(shards(assigned))
        except Exception as failed:  # noqa: BLE001 - nothing may go on without its rows
            leave(Exit.FAILED, f"the rows cannot be recovered: {failed}", error=repr(failed))

    def persisted_offset(self, tp: TP) -> int | None:
        """Say that everything was read, so that faust reads nothing."""
        return self.app.shell.recovered_offset(tp.partition)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        """Begin: everything is recovered, faust is about to let records flow."""
        await super().on_recovery_completed(active_tps, standby_tps)
        self.app.shell.begin()
        if self.app.shell.owned:
            self.app.health.ready(PARTITIONS)
        else:
            self.app.health.not_ready(PARTITIONS, "no partition is assigned")


def shards(partitions: Iterable[TP]) -> set[int]:
    """Return the shards whose changelog is among the partitions."""
    return {tp.partition for tp in partitions if tp.topic == changelog.TOPIC}


def build(settings: Settings) -> App:
    """Return the app (not started) without shell and health."""
    count = catalogue().shards
    app = App(
        APP_ID,
        broker=[f"kafka://{server}" for server in settings.kafka_bootstrap.split(",")],
        store="memory://",
        Table=RowsTable,
        TableManager=PromptTables,
        topic_partitions=count,
        topic_allow_declare=False,
        topic_disable_leader=True,
        key_serializer="raw",
        value_serializer="raw",
        web_enabled=False,
        stream_wait_empty=False,
        stream_buffer_maxsize=BUFFERED_EVENTS_MAX,
        table_standby_replicas=0,
        broker_session_timeout=SESSION_S,
        broker_heartbeat_interval=HEARTBEAT_S,
        broker_rebalance_timeout=REBALANCE_S,
        broker_request_timeout=REQUEST_S,
        broker_commit_interval=COMMIT_S,
        consumer_group_instance_id=settings.instance,
        consumer_max_fetch_size=FETCH_BYTES_MAX,
        producer_compression_type=kafka.COMPRESSION,
        producer_max_batch_size=BATCH_BYTES_MAX,
        producer_request_timeout=REQUEST_S,
    )
    app.Table(TABLE, key_type=bytes, value_type=bytes, partitions=count)

    async def absorb(stream: Any) -> None:
        async for event in stream.noack().events():
            await _take(app.shell, event, more=app.flow_control.waiting > 0)

    log = app.topic(TOPIC, key_type=bytes, value_type=bytes, partitions=count)
    app.agent(log, name="absorb")(absorb)

    async def revoked(*_sender_and_partitions: Any, **_signal: Any) -> None:
        app.health.not_ready(PARTITIONS, "rebalancing")
        await app.shell.revoked()

    app.on_partitions_revoked.connect(revoked, weak=False)
    return app


async def _take(shell: Shell, event: EventT[bytes], *, more: bool) -> None:
    """Take an event; leave on any failure, for faust would acknowledge it and go on."""
    message = event.message
    raw = Raw(
        message.partition,
        message.offset,
        round(message.timestamp * 1000),
        message.key,
        message.value,
        list(dict(message.headers or ()).items()),
    )
    try:
        await shell.take(raw, event.ack, more=more)
    except asyncio.CancelledError:
        raise
    except Exception as failed:  # noqa: BLE001 - see above
        leave(Exit.FAILED, str(failed), at=raw.place, error=repr(failed))


def heartbeat_while_recovering() -> None:
    """Let a member send heartbeats already while its assignment is being handled.

    aiokafka begins them only afterwards, so a recovery longer than the session would lose the
    partitions it has just been given, for ever. Patches aiokafka, once a process.
    """

    def early(on_join_complete: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        async def joined(coordinator: Any, *arguments: Any) -> None:
            coordinator._start_heartbeat_task()  # noqa: SLF001 - no public hook
            await on_join_complete(coordinator, *arguments)

        return joined

    wrap_method(GroupCoordinator, "_on_join_complete", early)
