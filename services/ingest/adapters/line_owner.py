"""Which lines are this worker's: those of its partitions of device-requests.

The members of the consumer group share the partitions; a line belongs to whoever has the partition
its id hashes to. Nothing is committed: a new owner starts at the partition's end, because a request
that nobody executed in time is asked again by whoever still wants it.
"""

import asyncio
from collections.abc import Callable, Iterable

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition

from services.common.kernel.errors import InvalidInput
from services.common.kernel.routing import partition_of
from services.common.runtime import kafka
from services.ingest.adapters.intake import Intake, Reply
from services.ingest.adapters.line_worker import LineWorker
from services.ingest.adapters.metrics import Metrics
from services.ingest.domain.exchange import Request, Result
from services.ingest.domain.registry import Line

TOPIC = "device-requests"
GROUP = "ingest-lines"
FETCH_TIMEOUT_MS = 500

MakeWorker = Callable[[Line], LineWorker]


class LineOwner(ConsumerRebalanceListener):
    """Starts, feeds and stops the workers of this process's lines."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        *,
        partitions: int,
        intake: Intake,
        make_worker: MakeWorker,
        is_ours: Callable[[], bool],
        close_within_s: float,
        on_joined: Callable[[], None],
        metrics: Metrics,
        log: structlog.stdlib.BoundLogger,
    ) -> None:
        self._consumer = consumer
        self._partitions = partitions
        self._intake = intake
        self._make_worker = make_worker
        self._is_ours = is_ours
        self._close_within_s = close_within_s
        self._on_joined = on_joined
        self._metrics = metrics
        self._log = log
        self._first_offsets: dict[int, int] = {}
        self._workers: dict[str, LineWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._unowned: Exception | None = None
        self._changing = asyncio.Lock()
        self._changed = asyncio.Event()

    def registry_changed(self) -> None:
        """Have the lines compared with the registry soon."""
        self._changed.set()

    async def run(self) -> None:
        """Join the group, then execute requests for ever.

        Raises what a line's task raised, or taking over an assignment: aiokafka would only log it.
        """
        self._consumer.subscribe([TOPIC], listener=self)
        while True:
            batches = await self._consumer.getmany(timeout_ms=FETCH_TIMEOUT_MS)
            if self._unowned is not None:
                raise self._unowned
            for records in batches.values():
                for record in records:
                    self._dispatch(record)
            for task in self._tasks.values():
                if task.done():
                    task.result()

    async def follow_registry(self) -> None:
        """Keep the lines as the registry says, for ever."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._reconcile()

    async def close(self) -> None:
        """Stop every line, in bounded time."""
        async with self._changing:
            self._first_offsets.clear()
            await self._stop(list(self._workers))

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Stop the lines of lost partitions; the rebalance waits for it."""
        lost = {tp.partition for tp in revoked}
        async with self._changing:
            for partition in lost:
                self._first_offsets.pop(partition, None)
            await self._stop([name for name in self._workers if self._partition(name) in lost])

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Go to the end of each partition, then own its lines."""
        try:
            await self._take_over(assigned)
        except Exception as failed:  # noqa: BLE001 - `run` raises it
            self._unowned = failed

    async def _take_over(self, assigned: Iterable[TopicPartition]) -> None:
        ends = await self._consumer.end_offsets(list(assigned))
        for tp, end in ends.items():
            self._consumer.seek(tp, end)
            self._first_offsets[tp.partition] = end
        self._log.info("partitions of lines assigned", partitions=sorted(self._first_offsets))
        await self._reconcile()
        self._on_joined()

    def _partition(self, line_id: str) -> int:
        return partition_of(line_id, self._partitions)

    async def _reconcile(self) -> None:
        async with self._changing:
            wanted = {
                name: line
                for name, line in self._intake.registry.polled_lines().items()
                if self._partition(name) in self._first_offsets
            }
            await self._stop(
                [
                    name
                    for name, worker in self._workers.items()
                    if name not in wanted or worker.line.gateway != wanted[name].gateway
                ]
            )
            for name, line in wanted.items():
                worker = self._workers.get(name)
                if worker is None:
                    self._start(line)
                elif worker.line != line:
                    worker.update(line)

    def _start(self, line: Line) -> None:
        name = line.line_id
        try:
            worker = self._make_worker(line)
        except InvalidInput as unfit:
            self._log.error("line not started", line=name, why=unfit.message)
            return
        self._workers[name] = worker
        self._tasks[name] = asyncio.create_task(worker.run(), name=f"line-{name}")
        self._metrics.lines.set(len(self._workers))

    async def _stop(self, names: list[str]) -> None:
        """Stop lines: each finishes the transaction under way and closes its connection."""
        workers = [self._workers.pop(name) for name in names]
        tasks = [self._tasks.pop(name) for name in names]
        self._metrics.lines.set(len(self._workers))
        if not tasks:
            return
        for worker in workers:
            worker.close()
        _, late = await asyncio.wait(tasks, timeout=self._close_within_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for worker in workers:  # only now: the transaction under way was a sign of life
            self._intake.line_left(worker.line)

    def _dispatch(self, record: ConsumerRecord) -> None:
        if record.offset < self._first_offsets.get(record.partition, record.offset + 1):
            return  # from before this worker owned the partition
        try:
            _, value = kafka.opened(record)
        except InvalidInput as odd:
            self._intake.complain("request-unreadable", f"offset {record.offset}: {odd.message}")
            return
        request = Request.from_record(value)
        worker = self._workers.get(request.line_id)
        if worker is not None:
            worker.submit(request)
            return
        if not self._is_ours():
            return  # whoever has the partition knows of the line
        now_ms = self._intake.clock.now_ms()
        self._intake.reply(
            Reply(
                request.request_id,
                request.requester,
                request.line_id,
                request.meter_id,
                Result.REFUSED.value,
                f"line {request.line_id} is no polled line of the registry",
                now_ms,
                now_ms,
            ),
            request.operation,
        )
