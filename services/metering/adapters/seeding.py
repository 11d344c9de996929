"""The command that seeds a shard anew from what the book posted: see domain/seeding.py.

Nobody may write the shard's rows meanwhile, so it refuses while metering runs, and where a header
row is there. The header row is written last: a seed that was interrupted is simply done again.
"""

# ruff: noqa: T201 - what it prints is the answer to a person

import asyncio
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError

from services.common.kernel.errors import WattvendError
from services.common.runtime import kafka, service
from services.metering.adapters import changelog, decoding
from services.metering.config import Settings
from services.metering.domain.errors import BadRows
from services.metering.domain.messages import Row
from services.metering.domain.rows import HEADER_KEY
from services.metering.domain.seeding import (
    Posted,
    Seeds,
    ToldFact,
    entity_of,
    header_offset,
    seeded,
)

GROUP = "metering"
OPENED_MARGIN_MS = 600_000
"""By so much vending's clock and the broker's may differ."""
TOLD_BEFORE_RECORDS = 10_000
"""A relay that starts again tells again what it told in its last second: so far back is looked for
what stood at the header, beside what the book says."""
READ_WAIT_MS = 500


async def seed(settings: Settings, path: Path, *, is_dry: bool) -> int:
    """Write the rows of the shard that a file is of; or, dry, say what would be."""
    try:
        content = await asyncio.to_thread(path.read_bytes)
        await _seed(settings, read(content.splitlines()), is_dry=is_dry)
    except (OSError, WattvendError, BadRows, KafkaError) as failed:
        print(f"metering: nothing was seeded: {failed}", file=sys.stderr)
        return service.EXIT_FAILED
    return 0


def read(lines: Iterable[bytes]) -> Seeds:
    """Return what the lines of a file say, as vending's command `seeds` writes them."""
    shard, posted, opened = -1, [], {}
    facts: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        match orjson.loads(line):
            case {"shard": shard}:
                pass
            case {"posted": each}:
                row = bytes.fromhex(each["row"])
                key = each["account_key"]
                posted.append(Posted(key, each["log_offset"], row, each["fact"]))
            case {"opened": each}:
                opened[each["account_key"]] = each["at_ms"]
            case {"subject": subject, "fact": fact}:
                facts[entity_of(subject, fact)].append(fact)
    return Seeds(shard, posted, facts, opened)


async def _seed(settings: Settings, seeds: Seeds, *, is_dry: bool) -> None:
    shard, bootstrap = seeds.shard, settings.kafka_bootstrap
    if not is_dry:
        await _check_nobody_runs(bootstrap)
    versions, _ = (await changelog.read_rows(bootstrap, [shard], client_id="metering-seed"))[shard]
    if HEADER_KEY in dict(versions) and not is_dry:
        raise WattvendError(
            f"{changelog.TOPIC} has rows of shard {shard}, which would stand over what is seeded: "
            "remove them first, see docs/operations/seeding.md"
        )
    reader = kafka.consumer(bootstrap, client_id="metering-seed")
    await reader.start()
    try:
        log = _Log(reader, shard)
        begins = await log.begins()
        opened_at = [await log.offset_at(at_ms) for at_ms in seeds.opened_at_ms.values()]
        header = header_offset(seeds, begins, [at for at in opened_at if at > begins])
        now_ms, told = await log.read(header)
    finally:
        await kafka.stop(reader)
    facts, accounts, end = seeded(seeds, told, header, now_ms)
    behind = await log_behind(bootstrap, shard, header)
    print(f"shard {shard}: {len(accounts)} accounts, {len(facts)} facts, as of offset {header}")
    print(f"  of the accounts {len(seeds.posted)} were posted, the others are made of facts")
    print(f"  {behind} records of the shard log behind it are absorbed again")
    if is_dry:
        print("This was a dry run: nothing was written.")
        return
    await _write(bootstrap, shard, [facts, accounts, [end]])
    print("The rows are written. Start metering.")


class _Log:
    """The shard's log."""

    def __init__(self, reader: AIOKafkaConsumer, shard: int) -> None:
        self._reader = reader
        self._place = TopicPartition(decoding.TOPIC, shard)
        reader.assign([self._place])

    async def begins(self) -> int:
        return int((await self._reader.beginning_offsets([self._place]))[self._place])

    async def offset_at(self, at_ms: int) -> int:
        """Return an offset before which nothing was told that was decided at an instant."""
        at = {self._place: max(at_ms - OPENED_MARGIN_MS, 0)}
        found = (await self._reader.offsets_for_times(at))[self._place]
        ends = await self._reader.end_offsets([self._place])
        return int(ends[self._place] if found is None else found.offset)

    async def read(self, header: int) -> tuple[int, list[ToldFact]]:
        """Return the time of the record at an offset, and facts around and behind it."""
        place, reader = self._place, self._reader
        end = int((await reader.end_offsets([place]))[place])
        begin = max(await self.begins(), header - TOLD_BEFORE_RECORDS)
        reader.seek(place, begin)
        now_ms, told = 0, []
        while await reader.position(place) < end:
            batches = await reader.getmany(place, timeout_ms=READ_WAIT_MS)
            for record in batches.get(place, ()):
                if record.offset <= header:
                    now_ms = max(now_ms, record.timestamp)
                if not _is_fact(record.headers):
                    continue
                envelope, fact = kafka.opened(record)
                entity = entity_of(envelope.subject, fact)
                told.append(ToldFact(record.offset, entity, fact))
        return now_ms, told


def _is_fact(headers: Iterable[tuple[str, bytes]]) -> bool:
    return any(
        name == "schema" and value.partition(b"/")[0].endswith(b"-fact") for name, value in headers
    )


async def log_behind(bootstrap: str, shard: int, header: int) -> int:
    """Return how many records the shard log has behind an offset."""
    place = TopicPartition(decoding.TOPIC, shard)
    reader = kafka.consumer(bootstrap, client_id="metering-seed")
    await reader.start()
    try:
        return int((await reader.end_offsets([place]))[place]) - header - 1
    finally:
        await kafka.stop(reader)


async def _check_nobody_runs(bootstrap: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answers: list[Any] = await admin.describe_consumer_groups([GROUP])
        ((*_, members),) = [group[:6] for group in answers[0].groups]
    except GroupCoordinatorNotAvailableError:
        return  # no group was ever there
    finally:
        await admin.close()
    if members:
        raise WattvendError(
            f"{len(members)} workers of metering run, or ended less than "
            f"{kafka.SESSION_MS // 1000} s ago: stop all of them first"
        )


async def _write(bootstrap: str, shard: int, kinds: Iterable[list[Row]]) -> None:
    """Write rows, those of a kind when all before are durable: the header comes last."""
    async with kafka.producer(
        bootstrap, client_id="metering-seed", compression=kafka.COMPRESSION
    ) as producer:
        for rows in kinds:
            flights = [
                await producer.send(changelog.TOPIC, row.value, key=row.key, partition=shard)
                for row in rows
            ]
            await kafka.all_acknowledged(flights)
