"""Many accounts: a shard log with their facts and a first reading each, and the rows they leave.

The log is written in batches. The rows are what metering leaves after compaction, made without
absorbing each fact: one account of a shard is absorbed, the rows of the others differ from it in
what the facts name, and the readings are absorbed for all. `test_metering_size` holds that against
an absorb of everything.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from uuid import UUID

import numpy as np
import numpy.typing as npt
from aiokafka import AIOKafkaProducer

from services.common.kernel.envelope import Envelope
from services.common.kernel.frames import READING, RELAY_REPORTED, ReadingFrame
from services.common.runtime import codec, kafka
from services.metering.adapters.changelog import ShardChangelog
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import LogRecord, Row
from services.metering.domain.rows import (
    ACCOUNT,
    METER,
    account_entity,
    account_row_key,
    fact_row,
    meter_entity,
)
from services.metering.domain.shard import SILENCE_MS, ShardState
from services.metering.domain.shard_rows import account_rows, rows_of, shard_of_rows
from tests.recovery.metering_history import (
    NANO,
    SHARDS,
    Entry,
    account,
    account_key,
    meter,
    meter_key,
    policy,
    serial,
    site,
    tariff,
)
from tests.recovery.metering_judge import CHANGELOG, LOG, OUTPUTS, Begin, end_offsets
from tests.recovery.metering_world import commit

FRAME_READINGS = 500
STEP_MILLI = 100
STEP_MS = 60_000
PAIR = np.dtype([("account", ACCOUNT), ("meter", METER)])


@dataclass(frozen=True, slots=True)
class Crowd:
    """`count` accounts with a meter each; evidence is received from `start_ms` on."""

    count: int
    start_ms: int

    def numbers(self, shard: int) -> range:
        """Return the accounts of a shard."""
        return range(shard, self.count, SHARDS)

    def opening(self, shard: int) -> Iterator[Entry]:
        """Yield what a shard is told: facts of all, of each account, then a reading of each."""
        told = [
            ("site-fact", site()),
            ("tariff-fact", tariff(version=1, price_micro=500_000, at_ms=0)),
            ("policy-fact", policy(version=1, alarm_1_nano=NANO)),
        ]
        for number in self.numbers(shard):
            told.append(("account-fact", account(number, revision=1, credited_nano=99 * NANO)))
            told.append(("meter-fact", meter(number, owner=number)))
        for subject, value in told:
            yield Entry(shard, subject, value, UUID(int=0))
        yield from self.readings(shard, 1)

    def readings(self, shard: int, turn: int) -> Iterator[Entry]:
        """Yield frames with a reading of each account; `turn` from 1."""
        numbers = self.numbers(shard)
        for first in range(0, len(numbers), FRAME_READINGS):
            some = numbers[first : first + FRAME_READINGS]
            yield self.frame(shard, turn, some)

    def frame(self, shard: int, turn: int, numbers: Iterable[int]) -> Entry:
        """Return a frame with a reading of each of `numbers`."""
        some = list(numbers)
        rows = np.zeros(len(some), READING)
        rows["meter_key"] = [meter_key(number) for number in some]
        rows["epoch"] = 1
        rows["serial"] = [serial(number).encode() for number in some]
        for when in ("device_time_ms", "began_at_ms", "received_at_ms"):
            rows[when] = self.start_ms + turn * STEP_MS
        rows["register_milli"] = turn * STEP_MILLI
        rows["reading_id"] = [np.void(UUID(int=turn << 64 | number).bytes) for number in some]
        rows["rate_registers_milli"] = -1
        rows["ratio"] = 1
        rows["quality"] = ord("A")
        rows["relay_bits"] = RELAY_REPORTED | 1
        record = ReadingFrame(shard, "crowd", "1", turn, rows).to_record()
        return Entry(shard, "reading-frame", record, UUID(int=0))

    def absorbed(
        self, entries: Sequence[Entry], times_ms: npt.NDArray[np.int64]
    ) -> tuple[ShardState, list[Row]]:
        """Return the shard that has absorbed `entries`, an opening, and all its rows.

        `times_ms`: of each record, by offset.
        """
        records = [
            LogRecord(offset, int(time_ms), entry.subject, decoded(entry))
            for offset, (entry, time_ms) in enumerate(zip(entries, times_ms, strict=True))
        ]
        told = next(record.offset for record in records if record.subject == "reading-frame")
        first = ShardState.empty(entries[0].shard)
        for record in records[:5]:
            absorb(first, record)
        facts, (first_row,), _ = rows_of(first)
        first.offset, first.now_ms = told - 1, int(times_ms[:told].max())
        facts += map(_fact_row, records[5:told])
        accounts = self._account_rows(first.shard, first_row, times_ms)
        state = shard_of_rows(first.shard, [*facts, *accounts, first.header_row()])
        for record in records[told:]:
            absorb(state, record)
        slots = np.arange(state.account_count)
        return state, [*facts, *account_rows(state, slots), state.header_row()]

    def _account_rows(
        self, shard: int, first: Row, times_ms: npt.NDArray[np.int64]
    ) -> Iterator[Row]:
        """Yield account rows as the facts leave them; `first` is that of the first account."""
        numbers = self.numbers(shard)
        offsets = 4 + 2 * np.arange(len(numbers))
        rows = np.repeat(np.frombuffer(first.value, PAIR), len(numbers))
        rows["account"]["key"] = [account_key(number) for number in numbers]
        rows["account"]["offset"] = rows["meter"]["entered_offset"] = offsets
        told_at_ms = np.maximum.accumulate(times_ms)
        rows["account"]["published_at_ms"] = told_at_ms[offsets - 1]
        rows["account"]["since_ms"] = told_at_ms[offsets - 1]
        rows["account"]["fees_until_ms"] = told_at_ms[offsets - 1] - 1
        rows["meter"]["since_ms"] = told_at_ms[offsets]
        rows["meter"]["silent_at_ms"] = told_at_ms[offsets] + SILENCE_MS
        rows["meter"]["key"] = [meter_key(number) for number in numbers]
        rows["meter"]["serial"] = [serial(number).encode() for number in numbers]
        for row in rows:
            yield Row(account_row_key(int(row["account"]["key"])), row.tobytes())


def _fact_row(record: LogRecord) -> Row:
    assert isinstance(record.value, dict)
    entity = (
        account_entity(record.value["account_key"])
        if record.subject == "account-fact"
        else meter_entity(record.value["meter_key"])
    )
    return fact_row(entity, ((record.offset, record.value),))


def decoded(entry: Entry) -> ReadingFrame | dict[str, object]:
    if entry.subject == "reading-frame":
        return ReadingFrame.from_record(entry.value)
    return entry.value


async def settle(bootstrap: str, crowd: Crowd) -> Begin:
    """Write log and rows of a crowd that metering has absorbed; return where to judge from."""
    states = {}
    async with kafka.producer(bootstrap, client_id="crowd") as producer:
        for shard in range(SHARDS):
            entries = list(crowd.opening(shard))
            times_ms = await write_log(producer, shard, entries)
            states[shard], rows = crowd.absorbed(entries, times_ms)
            await ShardChangelog(producer, shard, 0).append([[row] for row in rows], lambda: None)
    await commit(bootstrap, await end_offsets(bootstrap, LOG))
    return Begin(states, await end_offsets(bootstrap, LOG, CHANGELOG, *OUTPUTS))


async def write_log(
    producer: AIOKafkaProducer, shard: int, entries: Iterable[Entry]
) -> npt.NDArray[np.int64]:
    """Write to a shard's empty log; return the broker's time of each record, ms, by offset."""
    times_ms: list[int] = []
    batch, count = producer.create_batch(), 0

    async def send() -> None:
        batch.close()
        landed = await (await producer.send_batch(batch, LOG, partition=shard))
        assert landed.offset == len(times_ms)
        times_ms.extend([landed.timestamp] * count)

    for entry in entries:
        record = {
            "key": str(shard).encode(),
            "value": codec.encode(entry.subject, entry.value),
            "timestamp": None,
            "headers": _headers(entry.subject),
        }
        if batch.append(**record) is None:
            await send()
            batch, count = producer.create_batch(), 0
            assert batch.append(**record) is not None
        count += 1
    await send()
    return np.array(times_ms, np.int64)


@cache
def _headers(subject: str) -> list[tuple[str, bytes]]:
    return Envelope(codec.schema_header(subject), UUID(int=0), 0).headers()
