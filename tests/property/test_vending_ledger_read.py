"""Goal: from whatever a relay wrote, restarts and raised epochs and all, an import reads the book.

Method: Hypothesis plays a relay that writes events in batches over the partitions of `ledger`, is
restarted at its last checkpoint, and whose book epoch is raised. A consumer in memory answers as
Kafka's does. What is read above a position must be each event above it once, in the order of the
book, and after the events that it vouches for each checkpoint of that epoch.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from services.common.runtime import kafka
from services.vending.adapters import ledger
from services.vending.adapters.ledger import _merged, _Partition
from services.vending.application.ledger import LedgerEvent
from services.vending.domain.tables import Checkpoint
from tests.property.metering_runs import examples

PARTITIONS = 3
UNVOUCHED_MAX = 9
"""Then there is a checkpoint, as there is one each second."""
WINDOW_RECORDS = 8


class Said(NamedTuple):
    """What the envelope of a record says."""

    subject: str


Record = tuple[Said, dict[str, Any]]


@dataclass
class Relay:
    """Writes a book of events, one after the other, as the relay does."""

    logs: list[list[Record]] = field(default_factory=lambda: [[] for _ in range(PARTITIONS)])
    book_epoch: int = 1
    acknowledged: int = 0
    checkpointed: int = 0

    def play(self, steps: Sequence[tuple[str, int]]) -> None:
        for what, count in steps:
            match what:
                case "tell" if self.acknowledged - self.checkpointed < UNVOUCHED_MAX:
                    for position in range(self.acknowledged + 1, self.acknowledged + count + 1):
                        self._tell(position)
                    self.acknowledged += count
                case "checkpoint" if self.acknowledged - count % 3 > self.checkpointed:
                    self.checkpointed = self.acknowledged - count % 3  # the relay went on meanwhile
                    self._vouch(self.checkpointed)
                case "crash":
                    self.acknowledged = self.checkpointed
                case "raise":
                    self.book_epoch += 1
                    self.acknowledged = self.checkpointed = 0

    def _tell(self, position: int) -> None:
        value = {
            "book_epoch": self.book_epoch,
            "position": position,
            "stream": f"account-{position % 5}",
            "revision": position // 5,
            "event_id": str(UUID(int=position)),
            "type": "credit-sold",
            "data": bytes([position % 256]),
            "data_version": 1,
            "meta": None,
            "previous_hash": bytes(32),
        }
        self.logs[(position % 5) % PARTITIONS].append((Said("ledger-event"), value))

    def _vouch(self, position: int) -> None:
        value = {
            "book_epoch": self.book_epoch,
            "position": position,
            "count": position,
            "root": bytes(32),
            "written_at_ms": 0,
            "key_id": None,
            "signature": None,
        }
        self.logs[0].append((Said("ledger-checkpoint"), value))


class Consumer:
    """A consumer of the logs, as far as the reader of `ledger` uses one."""

    def __init__(self, logs: list[list[Record]]) -> None:
        self._logs = logs
        self._at = dict.fromkeys(range(PARTITIONS), 0)

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, 0)

    def seek(self, place: TopicPartition, offset: int) -> None:
        self._at[place.partition] = offset

    async def position(self, place: TopicPartition) -> int:
        return self._at[place.partition]

    async def getone(self, place: TopicPartition) -> Record:
        return (await self.getmany(place, max_records=1))[place][0]

    async def getmany(
        self, place: TopicPartition, *, max_records: int, **_: int
    ) -> dict[TopicPartition, list[Record]]:
        at = self._at[place.partition]
        records = self._logs[place.partition][at : at + min(max_records, 2)]
        self._at[place.partition] = at + len(records)
        return {place: records}


async def read(relay: Relay, position: int) -> list[LedgerEvent | Checkpoint]:
    reader: Any = Consumer(relay.logs)
    parts = [
        _Partition(reader, TopicPartition("ledger", n), len(log), relay.book_epoch)
        for n, log in enumerate(relay.logs)
    ]
    for part in parts:
        await part.seek(position)
    return [told async for told in _merged(parts, position)]


steps = st.lists(
    st.tuples(
        st.sampled_from(("tell",) * 4 + ("checkpoint",) * 2 + ("crash", "raise")),
        st.integers(1, 9),
    ),
    max_size=25,
)


@pytest.fixture(autouse=True, scope="module")
def _small_windows() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "WINDOW_RECORDS_FIRST", WINDOW_RECORDS)
        patch.setattr(kafka, "opened", lambda record: record)
        yield


@given(steps, st.integers(0, 40))
@examples(300)
def test_each_event_above_a_position_comes_once_in_the_order_of_the_book(
    played: list[tuple[str, int]], position: int
) -> None:
    relay = Relay()
    relay.play(played)
    told = asyncio.run(read(relay, position))
    values = [value for log in relay.logs for _, value in log]
    of_epoch = [value for value in values if value["book_epoch"] == relay.book_epoch]
    end = max((v["position"] for v in of_epoch if "event_id" in v), default=0)
    positions = [each.position for each in told if isinstance(each, LedgerEvent)]
    assert positions == list(range(position + 1, end + 1))
    seen = position
    for each in told:
        if isinstance(each, LedgerEvent):
            seen = each.position
        else:
            assert each.book_epoch == relay.book_epoch
            assert each.root.position <= max(seen, position)
    wanted = {v["position"] for v in of_epoch if "root" in v and v["position"] > position}
    found = {each.root.position for each in told if isinstance(each, Checkpoint)}
    assert wanted <= found
