"""`python -m tools.bench.plain_loop BOOTSTRAP`: metering's work in a plain aiokafka loop.

What metering's shell is held against: the same log, the same `absorb`, the same outputs and rows on
the same topics, every one acknowledged before the offsets are committed. No faust, and of the nine
rules only the order of work: one poll after the other, nothing pipelined, nobody looks who else is
there. It goes on where metering's rows end, and metering goes on behind it.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, UnknownMemberIdError

from services.common.runtime import kafka
from services.common.runtime.topics import catalogue
from services.metering.adapters.app import APP_ID
from services.metering.adapters.changelog import ShardChangelog, read_rows
from services.metering.adapters.decoding import TOPIC, Opened, Raw, opened
from services.metering.adapters.outputs import Balances, send_outputs
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Absorbed, Row
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import shard_of_rows

NAME = "plain-loop"
RECORDS_MAX = 64
"""Records a poll."""
POLL_MS = 100
GROUP_FREE_POLL_S = 0.2


class PlainLoop:
    """All shards: their states, and where their rows go."""

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._producer = producer
        self._states: dict[int, ShardState] = {}
        self._changelogs: dict[int, ShardChangelog] = {}
        self._balances: dict[int, Balances] = {}

    async def recover(self, bootstrap: str) -> dict[TopicPartition, int]:
        """Read all rows; return where each partition of the log goes on."""
        found = await read_rows(bootstrap, range(catalogue().shards), client_id=NAME)
        for shard, (rows, end) in found.items():
            self._states[shard] = shard_of_rows(shard, rows)
            self._changelogs[shard] = ShardChangelog(self._producer, shard, end)
            self._balances[shard] = Balances(lambda: self._producer, shard)
        return {TopicPartition(TOPIC, n): state.offset + 1 for n, state in self._states.items()}

    async def absorb(self, polled: Mapping[TopicPartition, Sequence[ConsumerRecord]]) -> None:
        """Absorb the records of a poll; return when the broker has all that came of them."""
        flights = []
        done: dict[int, list[Absorbed]] = {}
        for partition, records in polled.items():
            shard = partition.partition
            done[shard] = []
            for record in records:
                raw = Raw(
                    shard,
                    record.offset,
                    record.timestamp,
                    record.key,
                    record.value,
                    list(record.headers),
                )
                found = opened(raw)
                assert isinstance(found, Opened), "a bench writes what can be read"
                absorbed = absorb(self._states[shard], found.record)
                outputs = absorbed.outputs
                if outputs.balances is not None:
                    flights += self._balances[shard].send([(outputs.balances, "")])
                flights += await send_outputs(self._producer, outputs.singly, raw, "")
                done[shard].append(absorbed)
        await kafka.all_acknowledged(flights)
        await self._write({n: [each.fact_rows for each in of] for n, of in done.items()})
        await self._write({n: [each.account_rows for each in of] for n, of in done.items()})
        await self._write({n: [[of[-1].header]] for n, of in done.items()})

    async def _write(self, rows: Mapping[int, Sequence[Sequence[Row]]]) -> None:
        writes = (self._changelogs[n].append(of, lambda: None) for n, of in rows.items())
        await asyncio.gather(*writes)


async def run(bootstrap: str) -> None:
    """Absorb what comes until the process is ended."""
    async with (
        kafka.producer(bootstrap, client_id=NAME, compression=kafka.COMPRESSION) as producer,
        kafka.consumer(bootstrap, client_id=NAME, group=APP_ID) as reader,
    ):
        loop = PlainLoop(producer)
        begins = await loop.recover(bootstrap)
        reader.assign(list(begins))
        for partition, offset in begins.items():
            reader.seek(partition, offset)
        await _group_is_free(reader)
        while True:
            polled = await reader.getmany(timeout_ms=POLL_MS, max_records=RECORDS_MAX)
            if polled:
                await loop.absorb(polled)
                await reader.commit()


async def _group_is_free(reader: AIOKafkaConsumer) -> None:
    """Wait until metering's member, which was stopped, is forgotten: then others may commit."""
    while True:
        try:
            await reader.commit()
        except (CommitFailedError, UnknownMemberIdError):
            await asyncio.sleep(GROUP_FREE_POLL_S)
        else:
            return


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1]))
