"""Goal: each rule of the metering shell does what it says, without Kafka.

Method: the parts of the shell on a producer that records what it is given and acknowledges when
the test says so, on a clock that the test moves. Leaving the process is replaced by an exception.
What needs real brokers and real kills is in tests/recovery.
"""

import asyncio
import contextlib
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, pairwise
from random import Random
from types import SimpleNamespace
from typing import Any, NoReturn
from uuid import UUID

import numpy as np
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaTimeoutError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.commit import OffsetCommitRequest_v2
from aiokafka.protocol.metadata import MetadataRequest_v1
from aiokafka.protocol.produce import ProduceRequest_v7
from aiokafka.protocol.struct import Struct
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from services.common.kernel.envelope import Envelope
from services.common.kernel.errors import Bug
from services.common.kernel.routing import partition_of
from services.common.runtime import codec, encoding, memory
from services.common.runtime.fence import EXIT_FENCED, ClockFence
from services.metering.adapters import app, batches, changelog, lane, shell
from services.metering.adapters.batches import BATCH_BYTES_MAX, SNAPPY, UNCOMPRESSED, RowBatch
from services.metering.adapters.changelog import (
    ForeignWriter,
    ShardChangelog,
    StoredRow,
    overtaken,
    packed,
    thinned,
)
from services.metering.adapters.decoding import (
    DEAD_FREE,
    DEAD_SHARE_MAX_PERCENT,
    DEAD_WINDOW,
    Dead,
    DeadLetterBound,
    Opened,
    Raw,
    TooManyDead,
    Undecodable,
    opened,
)
from services.metering.adapters.exits import Exit
from services.metering.adapters.lane import Lane, Work
from services.metering.adapters.metrics import Metrics
from services.metering.adapters.outputs import Balances, partition, send_outputs
from services.metering.adapters.shell import Shell
from services.metering.adapters.wakes import AGAIN_AFTER_MS, Wake
from services.metering.config import Settings
from services.metering.domain.messages import (
    FIGURES,
    Absorbed,
    BalanceTable,
    LogRecord,
    Output,
    Row,
    Rows,
    RowTable,
)
from services.metering.domain.rows import header_row, joined
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import rows_of
from services.metering.domain.together import absorb_all
from tests.unit.metering_log import Log, account, meter, policy

SOON_S = 2.0
EVENT_ID = UUID(int=7)


class Left(Exception):  # noqa: N818 - what happened, in place of the end of the process
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class FakeClock:
    at_ms: int = 1_000_000

    def now_ms(self) -> int:
        return self.at_ms

    def monotonic_ms(self) -> int:
        return self.at_ms


@dataclass
class Landing:
    offset: int


def read(batch: BatchBuilder) -> list[Any]:
    """Return the records of a batch as aiokafka reads them from its bytes."""
    records = MemoryRecords(bytes(batch._build()))
    found = records.next_batch()
    assert found is not None
    assert found.validate_crc()
    assert not records.has_next()
    return list(found)


def rows_in(batch: BatchBuilder) -> list[tuple[bytes, bytes]]:
    """Return the rows of a batch."""
    return [(record.key or b"", record.value or b"") for record in read(batch)]


@dataclass
class FakeProducer:
    """Acknowledges at once, or, while `holding`, when `release` is called."""

    holding: bool = False
    next_offset: int = 0
    next_log_offset: int = 0
    batches: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    sent: list[tuple[str, int, bytes | None, dict[str, bytes]]] = field(default_factory=list)
    held: list[Callable[[], None]] = field(default_factory=list)

    async def send_batch(
        self, batch: BatchBuilder, topic: str, *, partition: int
    ) -> asyncio.Future[Any]:
        assert partition == 3
        if topic == "balances":
            self.sent += [
                (topic, partition, record.value, dict(record.headers)) for record in read(batch)
            ]
            self.next_log_offset += batch.record_count()
            return self._flight(self.next_log_offset - batch.record_count())
        assert topic == "metering-rows-changelog"
        self.batches.append(rows_in(batch))
        self.next_offset += batch.record_count()
        return self._flight(self.next_offset - batch.record_count())

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None,
        partition: int,
        headers: Sequence[tuple[str, bytes]],
    ) -> asyncio.Future[Any]:
        assert key is not None
        self.sent.append((topic, partition, value, dict(headers)))
        self.next_log_offset += 1
        return self._flight(self.next_log_offset - 1)

    def _flight(self, offset: int) -> asyncio.Future[Any]:
        flight: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        landing = Landing(offset)
        if self.holding:
            self.held.append(lambda: flight.set_result(landing))
        else:
            flight.set_result(landing)
        return flight

    def release(self) -> None:
        """Acknowledge what is held now."""
        held, self.held = self.held, []
        for land in held:
            land()

    @property
    def keys(self) -> list[bytes]:
        """The keys of the rows written, in order."""
        return [key for batch in self.batches for key, _ in batch]


async def soon(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0)


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def leaving(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let leaving raise instead, and return the codes."""
    codes: list[int] = []

    def leave(code: Exit, _why: str, **_facts: object) -> NoReturn:
        codes.append(code)
        raise Left(code)

    for module in (lane, shell, app):
        monkeypatch.setattr(module, "leave", leave)
    return codes


# --- the clock fence ----------------------------------------------------------------------------


def fence_of(clock: FakeClock) -> ClockFence:
    def leave(_where: str, _age_ms: int) -> NoReturn:
        raise Left(EXIT_FENCED)

    return ClockFence(clock, age_max_ms=5_000, leave=leave)


def asking(clock: FakeClock, took_ms: int, answer: object) -> Callable[[], Awaitable[object]]:
    async def ask() -> object:
        clock.at_ms += took_ms
        return answer

    return ask


def answered(answer: object) -> bool:
    return answer is True


async def test_the_fence_counts_from_before_a_heartbeat_that_was_answered_well() -> None:
    clock = FakeClock()
    fence = fence_of(clock)
    clock.at_ms += 4_000
    await fence.proving(asking(clock, 900, answer=True), answered)()
    assert fence.age_ms == 900
    clock.at_ms += 4_100
    fence.check("here")
    clock.at_ms += 1
    with pytest.raises(Left) as left:
        fence.check("here")
    assert left.value.code == 73


async def test_a_heartbeat_that_was_refused_proves_nothing() -> None:
    clock = FakeClock()
    fence = fence_of(clock)
    clock.at_ms += 5_000
    await fence.proving(asking(clock, 1, answer=False), answered)()
    with pytest.raises(Left):
        fence.check("here")


async def test_a_late_answer_to_an_early_heartbeat_does_not_turn_the_fence_back() -> None:
    clock = FakeClock()
    fence = fence_of(clock)
    slow = fence.proving(asking(clock, 0, answer=True), answered)
    clock.at_ms += 3_000
    await slow()
    assert fence.age_ms == 0
    clock.at_ms -= 2_000
    await slow()
    clock.at_ms += 2_000
    assert fence.age_ms == 0


@pytest.mark.parametrize(
    ("answer", "age_ms", "leaves"),
    [
        (SimpleNamespace(error_code=25), 5_000, True),
        (SimpleNamespace(error_code=82), 0, True),
        (SimpleNamespace(topics=[("shard-log", [(0, 0), (1, 25)])]), 0, True),
        (SimpleNamespace(error_code=25), 5_001, False),  # its session has ended, perhaps
        (SimpleNamespace(error_code=27), 0, False),  # a rebalance
        (SimpleNamespace(topics=[("shard-log", [(0, 0)])], error_code=0), 0, False),
    ],
)
async def test_a_member_that_the_broker_forgets_within_its_session_leaves(
    monkeypatch: pytest.MonkeyPatch, answer: object, age_ms: int, leaves: bool
) -> None:
    async def answering(_coordinator: object, _request: object) -> object:
        return answer

    monkeypatch.setattr(GroupCoordinator, "_send_req", answering)
    clock = FakeClock()
    fence_of(clock).heed_namesake()
    clock.at_ms += age_ms
    ask: Any = GroupCoordinator._send_req
    with pytest.raises(Left) if leaves else contextlib.nullcontext():
        assert await ask(None, None) is answer


# --- the changelog ------------------------------------------------------------------------------


@pytest.mark.parametrize("ours", [True, False])
def test_only_the_reader_of_rows_gets_records_as_they_were_parsed(
    monkeypatch: pytest.MonkeyPatch, *, ours: bool
) -> None:
    """Faust fetches from the changelog too, where its pause comes late: it crashed on them."""
    monkeypatch.setattr(PartitionRecords, "_consumer_record", lambda *_: "made")  # to be restored
    changelog.read_parsed()
    reader = SimpleNamespace(_value_deserializer=changelog.as_parsed if ours else None)
    make: Any = PartitionRecords._consumer_record
    place = TopicPartition(changelog.TOPIC, 0)
    assert make(reader, place, "parsed") == ("parsed" if ours else "made")


@pytest.mark.parametrize(
    "request_of",
    [
        ProduceRequest_v7(None, -1, 1_000, [("a", [(0, b"abc"), (3, bytes(300))]), ("b", [])]),
        ProduceRequest_v7("t", 1, 5, []),
        MetadataRequest_v1(None),
        MetadataRequest_v1(["a", "b"]),
        OffsetCommitRequest_v2("g", 3, "m", -1, [("a", [(0, 7, "")])]),
    ],
)
def test_requests_are_joined_once_to_the_bytes_that_aiokafka_makes(request_of: Struct) -> None:
    assert encoding.encoded(request_of) == request_of.encode()


def row(key: str, size: int = 10) -> Row:
    return Row(key.encode(), bytes(size))


def test_a_records_rows_share_a_batch_where_they_fit() -> None:
    third = BATCH_BYTES_MAX // 3
    records = [[row("a", third)], [row("b", third)], [row("c", third // 2), row("d", third // 2)]]
    batches = [[r.key for rows in batch for r in rows] for batch in packed(records)]
    assert batches == [[b"a", b"b"], [b"c", b"d"]]


def test_records_without_rows_are_no_batch() -> None:
    assert list(packed([[], Rows([]), ()])) == []
    assert list(packed([[], [row("a")], Rows([])])) == [[[row("a")]]]


def test_rows_that_do_not_fit_into_one_batch_keep_their_order() -> None:
    rows = [row(f"{number:03}", BATCH_BYTES_MAX // 4) for number in range(11)]
    batches = list(packed([rows[:1], rows[1:]]))
    assert [r for batch in batches for part in batch for r in part] == rows
    assert all(RowBatch(batch).size() < BATCH_BYTES_MAX for batch in batches)


@given(
    sizes=st.lists(st.sampled_from([1, 7, 352, 392]), min_size=1, max_size=40),
    repeated=st.sampled_from([1, 5, 300]),
    edges=st.lists(st.integers(0, 40), max_size=3).map(sorted),
    as_tables=st.booleans(),
)
@settings(deadline=None, max_examples=50)
@example(sizes=[1], repeated=8200, edges=[], as_tables=True)
def test_a_batch_is_byte_for_byte_what_aiokafka_would_build(
    sizes: list[int], repeated: int, edges: list[int], as_tables: bool
) -> None:
    rows = [row(f"{number:05}", size) for number, size in enumerate(sizes * repeated)]
    ends = [0, *(min(edge, len(rows)) for edge in edges), len(rows)]
    records: list[Sequence[Row]] = [rows[start:end] for start, end in pairwise(ends)]
    if as_tables:
        records = [as_rows(record) for record in records]
        assert [each for record in records for each in record] == rows
    batch = RowBatch(records)
    batch._set_producer_state(5, 1, 7)
    size = batch.size()
    found = batch._build()
    (found_at_ms,) = struct.unpack_from(">q", found, 27)
    in_order = [row for record in records for row in in_tables(record)]
    built = []
    for compression in (UNCOMPRESSED, SNAPPY):
        expected = DefaultRecordBatchBuilder(2, compression, 0, 5, 1, 7, 1 << 30)
        for number, (key, value) in enumerate(in_order):
            assert expected.append(number, found_at_ms, key, value, []) is not None
        built.append(bytes(expected.build()))
    assert (batch.record_count(), size) == (len(rows), len(found))
    assert bytes(found) == min(built, key=len)


def test_a_batch_that_does_not_compress_is_no_larger_than_its_records() -> None:
    noise = Random(7).randbytes(BATCH_BYTES_MAX - 1_000)
    batch = RowBatch([[Row(b"a", noise)]])
    assert batch.size() < BATCH_BYTES_MAX
    assert rows_in(batch) == [(b"a", noise)]


def as_rows(rows: Sequence[Row]) -> Rows:
    """Return rows as the tables that a shard makes of them: one a size."""
    by_size: dict[int, list[int]] = {}
    for place, (_, value) in enumerate(rows):
        by_size.setdefault(len(value), []).append(place)
    tables = []
    for places in by_size.values():
        keys = [np.frombuffer(rows[place].key, np.uint8) for place in places]
        values = [np.frombuffer(rows[place].value, np.uint8) for place in places]
        tables.append(RowTable(np.array(places), np.array(keys), np.array(values)))
    return Rows(tables)


def in_tables(rows: Sequence[Row]) -> list[Row]:
    """Return rows in the order in which they are written: table by table."""
    if not isinstance(rows, Rows):
        return list(rows)
    return [row for table in rows.tables for row in table.rows()]


async def test_rows_that_land_elsewhere_than_expected_betray_a_foreign_writer() -> None:
    producer = FakeProducer(next_offset=100)
    changelog = ShardChangelog(producer, 3, 100)
    await changelog.append([[row("a"), row("b")]], lambda: None)
    await changelog.append([[row("c")]], lambda: None)
    producer.next_offset += 1
    with pytest.raises(ForeignWriter):
        await changelog.append([[row("d")]], lambda: None)


def stored(offset: int, now_ms: int) -> StoredRow:
    key, value = header_row(offset, now_ms)
    return key, value


def test_rows_that_an_old_writer_overtook_are_written_again() -> None:
    versions = [stored(1, 10), stored(9, 90), stored(4, 40)]
    assert overtaken(versions, joined(versions)) == [header_row(9, 90)]
    assert overtaken(versions[:2], joined(versions[:2])) == []


def version(number: int, offset: int) -> StoredRow:
    """Return a version of a row: of one key and one offset there is but one."""
    _, value = header_row(offset, 7 * number + offset)
    return f"row{number}".encode(), value


@given(st.lists(st.builds(version, st.integers(0, 3), st.integers(0, 9)), max_size=30))
def test_versions_that_are_not_needed_are_forgotten_as_they_are_read(
    versions: list[StoredRow],
) -> None:
    kept = thinned(versions)
    assert joined(kept) == joined(versions)
    assert dict(kept) == dict(versions)
    assert sorted(overtaken(kept, joined(kept))) == sorted(overtaken(versions, joined(versions)))
    assert len(kept) <= 2 * len(dict(versions))
    assert sorted(thinned(kept)) == sorted(kept)


# --- the lane -----------------------------------------------------------------------------------


@dataclass
class LaneBench:
    producer: FakeProducer
    lane: Lane
    done: list[int] = field(default_factory=list)

    async def put(self, offset: int, sent: Sequence[Awaitable[Any]] = ()) -> None:
        await self.lane.put(
            Work(
                offset,
                sent,
                [row(f"fact{offset}")],
                [row(f"account{offset}")],
                row(f"header{offset}"),
                lambda: self.done.append(offset),
            )
        )


def lane_on(changelog: ShardChangelog) -> Lane:
    return Lane(
        changelog,
        header=row("header-1"),
        offset=-1,
        pending_max=3,
        header_interval_s=3600,
        wrote=lambda _kind, _count: None,
    )


@pytest.fixture
async def bench() -> Any:
    producer = FakeProducer(holding=True)
    made = LaneBench(producer, lane_on(ShardChangelog(producer, 3, 0)))
    yield made
    await made.lane.close()


async def test_each_step_waits_for_the_acknowledgement_of_the_one_before(bench: LaneBench) -> None:
    output: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    bench.lane.start([])
    await bench.put(0, [output])
    await settle()
    assert bench.producer.keys == []
    output.set_result(None)
    for steps in ([b"fact0"], [b"fact0", b"account0"], [b"fact0", b"account0", b"header0"]):
        await soon(partial(lambda wanted: bench.producer.keys == wanted, steps))
        await settle()
        assert bench.producer.keys == steps
        assert bench.done == []
        bench.producer.release()
    await soon(lambda: bench.done == [0])
    assert bench.lane.durable_offset == 0


async def test_records_that_wait_go_together_and_the_last_header_speaks_for_them(
    bench: LaneBench,
) -> None:
    bench.producer.holding = False
    for offset in range(3):
        await bench.put(offset)
    bench.lane.start([])
    await soon(lambda: bench.done == [0, 1, 2])
    assert bench.producer.keys == [
        *(b"fact%d" % offset for offset in range(3)),
        *(b"account%d" % offset for offset in range(3)),
        b"header2",
    ]


async def test_lanes_write_at_the_same_instants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records of two shards come apart; what follows from them goes together."""
    loop, wrote_s = asyncio.get_running_loop(), []
    apart_s = 0.6  # far more than a busy machine lets a test wait
    monkeypatch.setattr(lane, "GROUPS_APART_S", apart_s)

    class Watched(FakeProducer):
        async def send_batch(self, *arguments: Any, **more: Any) -> Any:
            if not self.batches:
                wrote_s.append(loop.time())
            return await super().send_batch(*arguments, **more)

    benches = []
    for producer in (Watched(), Watched()):
        benches.append(LaneBench(producer, lane_on(ShardChangelog(producer, 3, 0))))
        benches[-1].lane.start([])
    # Just after an instant, so that both come before the next one.
    await asyncio.sleep(apart_s - loop.time() % apart_s)
    for one in benches:
        await asyncio.sleep(apart_s / 4)
        await one.put(0)
    await soon(lambda: all(one.done for one in benches))
    assert wrote_s[1] - wrote_s[0] < apart_s / 5
    for one in benches:
        await one.lane.close()


async def test_a_full_lane_takes_no_more_until_something_is_durable(bench: LaneBench) -> None:
    for offset in range(3):
        await bench.put(offset)
    waiting = asyncio.create_task(bench.lane.room())
    await settle()
    assert not waiting.done()
    bench.producer.holding = False
    bench.lane.start([])
    await asyncio.wait_for(waiting, SOON_S)


async def test_a_closed_lane_neither_writes_nor_acknowledges(bench: LaneBench) -> None:
    bench.lane.start([])
    await bench.put(0)
    await soon(lambda: bench.producer.keys == [b"fact0"])
    closing = asyncio.create_task(bench.lane.close())
    await settle()
    assert not closing.done(), "rows on their way are waited for"
    bench.producer.release()
    await asyncio.wait_for(closing, SOON_S)
    await bench.put(1)
    await settle()
    assert bench.producer.keys == [b"fact0"]
    assert bench.done == []


async def test_overtaken_rows_are_written_first_and_then_the_header(bench: LaneBench) -> None:
    bench.producer.holding = False
    await bench.put(0)
    bench.lane.start([row("healed")])
    await soon(lambda: bench.done)
    assert bench.producer.keys[:2] == [b"healed", b"header-1"]


async def test_an_idle_lane_writes_its_header_row_now_and_then() -> None:
    producer = FakeProducer()
    idle = Lane(
        ShardChangelog(producer, 3, 0),
        header=row("header5"),
        offset=5,
        pending_max=3,
        header_interval_s=0.01,
        wrote=lambda _kind, _count: None,
    )
    idle.start([])
    await soon(lambda: len(producer.batches) > 1)
    assert set(producer.keys) == {b"header5"}
    await idle.close()


async def test_a_foreign_writer_ends_the_worker_before_anything_is_acknowledged(
    bench: LaneBench, leaving: list[int]
) -> None:
    bench.producer.holding = False
    bench.producer.next_offset = 50
    bench.lane.start([])
    await bench.put(0)
    await soon(lambda: leaving)
    assert leaving == [Exit.FOREIGN_WRITER]
    assert bench.done == []


# --- decoding -----------------------------------------------------------------------------------


def raw(subject: str, value: bytes | None, *, offset: int = 0, shard: int = 3) -> Raw:
    headers = Envelope(f"{subject}/1", EVENT_ID, 5).headers()
    return Raw(shard, offset, 1_000, b"3", value, headers)


def wake(offset: int = 0) -> Raw:
    return raw("wake", codec.encode("wake", {"shard": 3, "due_ms": 9}), offset=offset)


def test_a_record_is_opened_with_its_offset_and_the_brokers_time() -> None:
    found = opened(wake(offset=8))
    assert isinstance(found, Opened)
    assert (found.record.offset, found.record.timestamp_ms) == (8, 1_000)
    assert found.record.value == {"shard": 3, "due_ms": 9}


@pytest.mark.parametrize("value", [None, b"", b"\x00garbage", bytes(500)])
def test_a_frame_that_cannot_be_decoded_is_dead_with_its_bytes_kept(value: bytes | None) -> None:
    record = raw("reading-frame", value, offset=12)
    found = opened(record)
    assert isinstance(found, Dead)
    letter = dict(found.headers(record))
    assert letter["dlq_offset"] == b"12"
    assert letter["dlq_reason"]
    assert letter["event_id"] == EVENT_ID.bytes


@pytest.mark.parametrize("subject", ["account-fact", "wake", "balance", "unheard-of"])
def test_anything_else_that_cannot_be_decoded_stops_the_shard(subject: str) -> None:
    with pytest.raises(Undecodable, match="shard-log-3-4 "):
        opened(raw(subject, b"\x01", offset=4))


def test_a_record_without_headers_stops_the_shard() -> None:
    with pytest.raises(Undecodable):
        opened(Raw(3, 4, 1_000, None, b"x", []))


def count_frames(bound: DeadLetterBound, frames: int, *, dead_every: int) -> None:
    for number in range(frames):
        if number % dead_every == 0:
            bound.dead("odd")
        else:
            bound.alive()


def test_a_few_dead_frames_are_borne_but_not_from_a_bad_deploy() -> None:
    bound = DeadLetterBound()
    count_frames(bound, DEAD_FREE, dead_every=1)
    with pytest.raises(TooManyDead):
        count_frames(bound, DEAD_FREE, dead_every=1)


def test_dead_frames_are_borne_up_to_their_share() -> None:
    bound = DeadLetterBound()
    count_frames(bound, 3 * DEAD_WINDOW, dead_every=100 // DEAD_SHARE_MAX_PERCENT)
    with pytest.raises(TooManyDead):
        count_frames(bound, DEAD_WINDOW, dead_every=100 // DEAD_SHARE_MAX_PERCENT // 2)


# --- outputs and wakes --------------------------------------------------------------------------


def output(**changed: Any) -> Output:
    record = {"shard": 3, "due_ms": 9}
    given = {"topic": "balances", "subject": "wake", "key": "A1", "record": record}
    return Output(**{**given, "event_id": EVENT_ID, "occurred_at_ms": 77, **changed})


def test_an_output_goes_to_its_shards_partition_or_where_its_route_says() -> None:
    assert partition(output(), 3) == 3
    assert partition(output(topic="relay-intents", route="S1"), 3) == partition_of("S1", 4)


async def test_outputs_say_what_caused_them() -> None:
    producer = FakeProducer()
    sent = await send_outputs(producer, [output()], wake(offset=41), "00-trace")
    await asyncio.gather(*sent)
    [(topic, to, _, headers)] = producer.sent
    assert (topic, to) == ("balances", 3)
    envelope = Envelope.from_headers(headers.items())
    assert envelope == Envelope("wake/1", EVENT_ID, 77, "shard-log-3-41", "00-trace")


def balances_at(offset: int, count: int = 5) -> BalanceTable:
    """Return balances that the record at an offset publishes; they say that offset, too."""
    identities = [(f"A{number}", "S1", "ZAR", "E1", "water") for number in range(count)]
    figures = np.zeros((count, len(FIGURES)), np.int64)
    return BalanceTable(3, np.full(count, offset), np.full(count, 77), identities, figures)


class Slow(FakeProducer):
    """It takes no batch before it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.takes = asyncio.Event()

    async def send_batch(self, *arguments: Any, **more: Any) -> Any:
        await self.takes.wait()
        return await super().send_batch(*arguments, **more)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch hold two balances or three."""
    monkeypatch.setattr(batches, "BATCH_BYTES_MAX", 600)


@pytest.mark.usefixtures("small_batches")
async def test_balances_go_in_their_order_in_as_many_batches_as_they_need() -> None:
    producer = Slow()
    balances = Balances(lambda: producer, 3)
    landed = []
    for first in (0, 2):
        landed.append(balances.send([(balances_at(first), ""), (balances_at(first + 1), "")]))
        await settle()
    assert not producer.sent
    assert not any(future.done() for futures in landed for future in futures)
    producer.takes.set()
    await asyncio.gather(*chain.from_iterable(landed))
    causes = [headers["causation_id"].decode() for _, _, _, headers in producer.sent]
    assert causes == [f"shard-log-3-{offset}" for offset in range(4) for _ in range(5)]
    assert all(len(futures) > 1 for futures in landed)


async def test_no_balances_are_no_batch() -> None:
    assert Balances(FakeProducer, 3).send([]) == []


@pytest.mark.usefixtures("small_batches")
async def test_balances_of_a_shard_that_is_revoked_are_not_sent() -> None:
    producer = Slow()
    balances = Balances(lambda: producer, 3)
    landed = balances.send([(balances_at(0), "")])
    await settle()
    balances.close()
    producer.takes.set()
    await settle()
    assert not producer.sent
    assert len(landed) > 1
    assert all(future.cancelled() for future in landed[1:]), "the first was on its way"


async def test_balances_that_come_after_a_revoke_are_not_sent() -> None:
    """A handful's are sent at once, and the shard may be gone while a dead letter is sent."""
    producer = FakeProducer()
    balances = Balances(lambda: producer, 3)
    balances.close()
    assert balances.send([(balances_at(0), "")]) == []
    await settle()
    assert not producer.sent


@pytest.mark.usefixtures("small_batches")
async def test_who_waits_for_balances_is_told_that_they_failed() -> None:
    class Broken(FakeProducer):
        async def send_batch(self, *_: Any, **__: Any) -> Any:
            raise KafkaTimeoutError

    for future in Balances(Broken, 3).send([(balances_at(0), "")]):
        with pytest.raises(KafkaTimeoutError):
            await future


async def test_one_wake_is_on_its_way_at_a_time_and_the_next_follows_a_second_later() -> None:
    producer = FakeProducer(next_log_offset=20)
    due = Wake(3)
    assert due.may_be_sent(0, absorbed_offset=10)
    await due.send(producer, 500, 600, 1_000)
    await settle()
    assert not due.may_be_sent(9_000, absorbed_offset=19), "it waits in the backlog"
    assert not due.may_be_sent(1_000 + AGAIN_AFTER_MS - 1, absorbed_offset=20)
    assert due.may_be_sent(1_000 + AGAIN_AFTER_MS, absorbed_offset=20)


# --- the shell ----------------------------------------------------------------------------------


@dataclass
class ShellBench:
    producer: FakeProducer = field(default_factory=FakeProducer)
    clock: FakeClock = field(default_factory=FakeClock)
    settings: Settings = field(default_factory=lambda: Settings(instance="metering-0", http_port=0))
    rows: list[StoredRow] = field(default_factory=list)
    log_start: int = 0
    acknowledged: list[int] = field(default_factory=list)

    async def start(self) -> "ShellBench":
        async def read_rows(_shards: object) -> dict[int, tuple[list[StoredRow], int]]:
            return {3: (self.rows, self.producer.next_offset)}

        async def log_start(_shard: int) -> int:
            return self.log_start

        self.shell = Shell(
            self.settings,
            clock=self.clock,
            metrics=Metrics(CollectorRegistry()),
            producer=lambda: self.producer,
            read_rows=read_rows,
            log_start=log_start,
        )
        await self.shell.assigned({3})
        self.shell.begin()
        return self

    async def take(self, record: Raw, *, more: bool = False) -> None:
        acknowledge = partial(self.acknowledged.append, record.offset)
        await self.shell.take(record, acknowledge, more=more)

    async def take_all(self, records: Sequence[Raw]) -> None:
        for record in records:
            await self.take(record)


async def test_records_are_acknowledged_in_order_when_they_are_durable() -> None:
    bench = await ShellBench().start()
    for offset in range(5):
        await bench.take(wake(offset))
    await bench.shell.drained(SOON_S)
    assert bench.acknowledged == [0, 1, 2, 3, 4]
    await bench.shell.revoked()


async def test_what_the_header_covers_is_acknowledged_unabsorbed() -> None:
    bench = await ShellBench(rows=[stored(7, 1)]).start()
    for offset in (6, 7):
        await bench.take(wake(offset))
    assert bench.acknowledged == [6, 7]
    assert bench.producer.batches == []
    await bench.shell.revoked()


async def test_facts_that_were_read_at_the_start_are_packed_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And once all of them are, the memory that they took goes back to the system."""
    given_back: list[int] = []
    log = Log()
    for fact in (policy(), account("A1"), account("A2"), meter("M1", "A1")):
        log.fact(fact)
    facts, accounts, header = rows_of(log.state)
    bench = await ShellBench(rows=[*facts, *accounts, header]).start()
    loaded = bench.shell.owned[3].state.facts
    monkeypatch.setattr(shell, "FACTS_PACKED_MAX", 2)
    monkeypatch.setattr(memory, "give_back", lambda: given_back.append(loaded.unpacked_count))
    for left in (3, 1, 0, 0):
        assert loaded.unpacked_count == left
        bench.shell.pack_facts()
    assert given_back == [0]
    assert sorted(loaded.rows()) == sorted(facts)
    await bench.shell.revoked()


async def test_records_that_wait_behind_each_other_are_absorbed_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handfuls: list[int] = []

    def counting(state: ShardState, records: Sequence[LogRecord]) -> list[Absorbed]:
        handfuls.append(len(records))
        return absorb_all(state, records)

    monkeypatch.setattr(shell, "absorb_all", counting)
    bench = await ShellBench().start()
    last = shell.HANDFUL_RECORDS_MAX + 5
    for offset in range(last):
        await bench.take(wake(offset), more=True)
    assert handfuls == []
    await bench.take(wake(last))
    await bench.shell.drained(SOON_S)
    assert handfuls == [shell.HANDFUL_RECORDS_MAX, 6]
    assert bench.acknowledged == list(range(last + 1))
    await bench.shell.revoked()


async def test_no_more_records_wait_than_may_be_pending() -> None:
    bench = ShellBench()
    bench.settings = bench.settings.model_copy(update={"records_pending_max": 2})
    await bench.start()
    owned = bench.shell.owned[3]
    for offset in range(20):
        await asyncio.wait_for(bench.take(wake(offset), more=True), SOON_S)
        assert len(owned.waiting) + owned.lane.pending <= 2
    await bench.shell.revoked()


async def test_a_large_record_is_absorbed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shell, "HANDFUL_BYTES_MAX", 2 * len(wake(0).value or b""))
    bench = await ShellBench().start()
    owned = bench.shell.owned[3]
    owned.waiting.extend((wake(offset), lambda: None) for offset in range(5))
    assert [len(owned.handful(9)) for _ in range(3)] == [2, 2, 1]
    owned.waiting.extend((wake(offset), lambda: None) for offset in range(5))
    assert len(owned.handful(1)) == 1
    await bench.shell.revoked()


async def test_a_record_that_comes_again_while_it_waits_is_absorbed_once() -> None:
    bench = await ShellBench().start()
    await bench.take(wake(0), more=True)
    await bench.take(wake(0), more=True)
    await bench.take(wake(1))
    await bench.shell.drained(SOON_S)
    assert bench.acknowledged == [0, 1]
    await bench.shell.revoked()


async def test_what_waits_is_forgotten_with_its_assignment() -> None:
    bench = await ShellBench().start()
    await bench.take(wake(0), more=True)
    await bench.shell.assigned({3})
    bench.shell.begin()
    await bench.take(wake(0))
    await bench.shell.drained(SOON_S)
    assert bench.acknowledged == [0]
    await bench.shell.revoked()


async def test_a_record_that_comes_again_while_it_is_on_its_way_is_acknowledged_once() -> None:
    bench = await ShellBench().start()
    bench.producer.holding = True
    await bench.take(wake(0))
    await bench.take(wake(0))
    assert bench.acknowledged == []
    bench.producer.holding = False
    await settle()
    bench.producer.release()
    await bench.shell.drained(SOON_S)
    assert bench.acknowledged == [0]
    await bench.shell.revoked()


async def test_a_skipped_record_ends_the_worker(leaving: list[int]) -> None:
    bench = await ShellBench(rows=[stored(7, 1)]).start()
    with pytest.raises(Left):
        await bench.take(wake(9))
    assert leaving == [Exit.HOLE]
    await bench.shell.revoked()


async def test_a_hole_behind_records_that_are_known_ends_the_worker_too(
    leaving: list[int],
) -> None:
    bench = await ShellBench(rows=[stored(7, 1)]).start()
    await bench.take(wake(3))
    with pytest.raises(Left):
        await bench.take(wake(5))
    assert leaving == [Exit.HOLE]
    await bench.shell.revoked()


async def test_loss_by_retention_needs_a_persons_word(leaving: list[int]) -> None:
    bench = await ShellBench(rows=[stored(7, 1)], log_start=20).start()
    with pytest.raises(Left):
        await bench.take(wake(20))
    assert leaving == [Exit.HOLE]
    await bench.shell.revoked()

    accepting = Settings(instance="metering-0", http_port=0, accept_lost_records=True)
    bench = await ShellBench(settings=accepting, rows=[stored(7, 1)], log_start=20).start()
    await bench.take(wake(20))
    await bench.shell.drained(SOON_S)
    assert bench.acknowledged == [20]
    await bench.shell.revoked()


async def test_a_record_of_a_shard_without_arrays_ends_the_worker(leaving: list[int]) -> None:
    bench = await ShellBench().start()
    await bench.shell.revoked()
    with pytest.raises(Left):
        await bench.take(wake(0))
    assert leaving == [Exit.NO_ARRAYS]


async def test_a_dead_frame_goes_to_the_dead_letters_and_the_shard_moves_on() -> None:
    bench = await ShellBench().start()
    await bench.take(raw("reading-frame", b"garbage"))
    await bench.take(wake(1))
    await bench.shell.drained(SOON_S)
    [(topic, to, value, headers)] = bench.producer.sent
    assert (topic, to, value) == ("shard-log.dlq", 3, b"garbage")
    assert headers["dlq_topic"] == b"shard-log"
    assert bench.acknowledged == [0, 1]
    await bench.shell.revoked()


async def test_dead_frames_without_end_stop_the_worker() -> None:
    bench = await ShellBench().start()
    frames = [raw("reading-frame", b"garbage", offset=offset) for offset in range(DEAD_FREE * 2)]
    with pytest.raises(TooManyDead):
        await bench.take_all(frames)
    await bench.shell.revoked()


async def test_a_fact_that_cannot_be_decoded_is_not_acknowledged() -> None:
    bench = await ShellBench().start()
    with pytest.raises(Bug, match="the shard stops"):
        await bench.take(raw("account-fact", b"garbage"))
    await settle()
    assert bench.acknowledged == []
    assert bench.producer.batches == []
    await bench.shell.revoked()


# --- the hooks into faust -----------------------------------------------------------------------


async def test_resuming_a_flow_that_is_active_keeps_what_is_queued() -> None:
    flow = app.SteadyFlow()
    cleared: list[bool] = []
    flow.clear = lambda: cleared.append(True)  # type: ignore[method-assign]
    flow.resume()
    flow.resume()
    assert cleared == [True]
    flow.suspend()
    flow.resume()
    assert cleared == [True, True]


class Handing:
    """What the consumer needs to hand records over: a flow in which `waiting` records wait."""

    flow_active = True
    should_stop = False

    def __init__(self, waiting: int) -> None:
        flow = SimpleNamespace(waiting=waiting, is_active=lambda: True)
        self.app = SimpleNamespace(flow_control=flow)
        self.handed: list[asyncio.Task[Any] | None] = []

    async def hand_over(self) -> None:
        async def taken() -> None:
            self.handed.append(asyncio.current_task())

        consumer: Any = self
        await app.SteadyConsumer.wait_first(consumer, taken(), asyncio.Event().wait())


async def test_records_of_one_poll_are_handed_over_without_a_task_for_each() -> None:
    consumer = Handing(waiting=app.TOGETHER_MAX - 1)
    await consumer.hand_over()
    assert consumer.handed == [asyncio.current_task()]


async def test_no_record_is_handed_over_while_many_wait() -> None:
    consumer = Handing(waiting=app.TOGETHER_MAX)
    handing = asyncio.create_task(consumer.hand_over())
    await asyncio.sleep(app.FULL_S * 5)
    assert consumer.handed == []
    consumer.app.flow_control.waiting -= 1
    await asyncio.wait_for(handing, SOON_S)
    assert consumer.handed == [handing]


async def test_the_faust_app_has_the_settings_that_were_measured() -> None:
    conf = app.build(Settings(instance="metering-7", http_port=0, kafka_bootstrap="a:1,b:2")).conf
    assert [str(url) for url in conf.broker] == ["kafka://a:1", "kafka://b:2"]
    assert conf.consumer_group_instance_id == "metering-7"
    assert conf.broker_session_timeout == 6
    assert conf.broker_heartbeat_interval == 1
    assert not conf.stream_wait_empty
    assert not conf.topic_allow_declare
    assert not conf.web_enabled
