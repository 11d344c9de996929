"""Judges of vending: the tills' receipts against the book, and the book against the topics.

Both read the book from its SQLite file. What must stand in the topics is computed from it.
"""

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from aiokafka import ConsumerRecord

from services.common.kernel import names
from services.common.kernel.ids import house_account_id
from services.common.kernel.routing import partition_of
from services.common.runtime import codec, kafka, topics
from services.vending.application.stored import event_of
from services.vending.domain import chain, facts
from services.vending.domain.event_store import StoredEvent, StreamId
from services.vending.domain.events.accounts import AccountMeterJoined, AccountMeterLeft
from services.vending.domain.events.event import Event
from services.vending.domain.events.meters import MeterAssigned
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.facts import Fact, fact_of
from services.vending.domain.streams import entity_of, evolve_of
from tests.recovery import bus
from tests.recovery.vending_shop import NANO_PER_MINOR, Sale, Till
from tests.recovery.verdict import Verdict
from tests.unit.vending_chain import BrokenChain, check_stream_chain

LEDGER, SHARDS, REGISTRY = "ledger", "shard-log", "registry"
TOPICS = (REGISTRY, SHARDS, LEDGER)
"""Against the order in which the relay writes them: read so, what is told late was told early."""

Place = tuple[str, int]
Name = tuple[str, int, UUID]
"""(topic, partition, event id)."""
Said = tuple[bytes | None, bytes | None]
Records = Sequence[ConsumerRecord[bytes, bytes]]


def book(path: Path) -> list[StoredEvent]:
    """Return every event of the file, in order."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT e.position, s.name, e.revision, e.id, e.type, e.data, e.meta "
            "FROM event e JOIN stream s ON s.id = e.stream ORDER BY e.position"
        ).fetchall()
    return [
        StoredEvent(position, stream, revision, UUID(bytes=event_id), kind, data, meta)
        for position, stream, revision, event_id, kind, data, meta in rows
    ]


# --- receipts -------------------------------------------------------------------------------------


def judge_sales(
    events: Sequence[StoredEvent], tills: Iterable[Till], credited: Mapping[str, int]
) -> Verdict:
    """Hold the book against what the tills asked for and got.

    Each request is in it once, as its receipt says; nothing is in it that nobody asked for; and
    what vending says of an account (`credited`: account → nano) is the sum of its receipts.
    """
    verdict = Verdict()
    sold: dict[tuple[str, str], list[tuple[int, CreditSold]]] = defaultdict(list)
    for stored in events:
        event = event_of(stored)
        if isinstance(event, CreditSold):
            sold[event.key].append((stored.revision, event))
    due: Counter[str] = Counter()
    for till in tills:
        for sale, answers in till.asked.items():
            entries = sold.pop((till.name, sale.request_id), [])
            _judge_sale(verdict, sale, answers, entries)
            if answers:
                due[sale.account_id] += sale.amount_minor * NANO_PER_MINOR
    verdict.expect(not sold, f"{len(sold)} sales that nobody asked for")
    for account_id, nano in due.items():
        said = credited[account_id]
        verdict.expect(said == nano, f"{account_id}: credited {said} nano, receipts {nano}")
    _judge_chains(verdict, events)
    return verdict


def _judge_sale(
    verdict: Verdict,
    sale: Sale,
    answers: Sequence[Any],
    entries: Sequence[tuple[int, CreditSold]],
) -> None:
    verdict.expect(len(entries) < 2, f"{sale}: credited {len(entries)} times")
    if not answers:
        return
    verdict.expect(bool(entries), f"{sale}: acknowledged, and missing")
    verdict.expect(all(one == answers[0] for one in answers), f"{sale}: answered in two ways")
    for revision, event in entries[:1]:
        receipt, said = answers[0].sale, answers[0]
        found = (
            names.RECEIPT.name(event.receipt_id),
            names.ACCOUNT.name(event.account_id),
            event.amount_minor,
            event.credited_nano,
        )
        got = (receipt.receipt, receipt.account, receipt.amount_minor, said.credited_nano)
        verdict.expect(
            (*found, revision) == (*got, said.version.revision)
            and (sale.account_id, sale.amount_minor) == (event.account_id, event.amount_minor),
            f"{sale}: the receipt says {got}, the book {found}",
        )


def _judge_chains(verdict: Verdict, events: Sequence[StoredEvent]) -> None:
    positions = [event.position for event in events]
    verdict.expect(positions == list(range(1, len(events) + 1)), "positions are not dense")
    try:
        check_stream_chain(events)
    except BrokenChain as broken:
        verdict.expect(False, str(broken))


def requests_in(events: Sequence[StoredEvent]) -> set[tuple[str, str]]:
    """Return (caller, request id) of everything that was sold."""
    sold = (event_of(stored) for stored in events if stored.type == CreditSold.SUBJECT)
    return {event.key for event in sold}


def judge_moves(events: Sequence[StoredEvent]) -> Verdict:
    """Hold what the accounts were told against the moves in the meters' streams, once each."""
    told: Counter[tuple[str, str, str, int]] = Counter()
    due: set[tuple[str, str, str, int]] = set()
    for stored in events:
        event = event_of(stored)
        if isinstance(event, AccountMeterJoined | AccountMeterLeft):
            told[event.SUBJECT, event.account_id, event.meter_id, event.epoch] += 1
        elif isinstance(event, MeterAssigned):
            house = house_account_id(event.meter_id)
            sides = (
                (AccountMeterLeft, event.previous_account_id, event.epoch - 1),
                (AccountMeterJoined, event.account_id, event.epoch),
            )
            due |= {
                (kind.SUBJECT, account_id, event.meter_id, epoch)
                for kind, account_id, epoch in sides
                if account_id != house
            }
    verdict = Verdict()
    for side in due:
        _, account_id, meter_id, epoch = side
        verdict.expect(
            told[side] == 1,
            f"account-{account_id} was told {told[side]} times of {meter_id} in epoch {epoch}",
        )
    verdict.expect(not told.keys() - due, f"{told.keys() - due} were told and not decided")
    return verdict


# --- topics ---------------------------------------------------------------------------------------


@dataclass
class Told:
    """What a book must have told. `order`: of each partition, what is told there, in order.

    `newest`: key of the registry → its newest fact. `roots`: of the hash chain, by position.
    """

    records: dict[Name, Said] = field(default_factory=dict)
    order: dict[Place, list[UUID]] = field(default_factory=lambda: defaultdict(list))
    newest: dict[bytes, UUID] = field(default_factory=dict)
    roots: list[bytes] = field(default_factory=lambda: [chain.GENESIS])
    by_event: dict[UUID, list[Name]] = field(default_factory=lambda: defaultdict(list))

    def add(
        self, cause: StoredEvent, name: Name, key: str, subject: str, value: dict[str, Any]
    ) -> None:
        self.records[name] = (key.encode(), codec.encode(subject, value))
        self.order[name[:2]].append(name[2])
        self.by_event[cause.id].append(name)


def must_be_told(events: Sequence[StoredEvent], book_epoch: int = 1) -> Told:
    """Return what a relay that nothing disturbs makes known of a book."""
    told = Told()
    states: dict[StreamId, Any] = {}
    shards = topics.catalogue().shards
    for stored in events:
        event = event_of(stored)
        state = states[stored.stream] = evolve_of(stored.stream)(states.get(stored.stream), event)
        _add_ledger(told, stored, event, book_epoch)
        if isinstance(state, facts.Told):
            _add_fact(told, stored, fact_of(state, book_epoch=book_epoch, shards=shards))
        told.roots.append(chain.next_root(told.roots[-1], stored.id, chain.stored_hash(stored)))
    return told


def _add_fact(told: Told, stored: StoredEvent, fact: Fact) -> None:
    for shard in fact.shards:
        name = (SHARDS, shard, fact.event_id)
        told.add(stored, name, fact.log_key or str(shard), fact.subject, fact.record)
    name = (REGISTRY, _partition(REGISTRY, fact.entity), fact.event_id)
    told.add(stored, name, fact.entity, fact.subject, fact.record)
    told.newest[fact.entity.encode()] = fact.event_id


def _add_ledger(told: Told, stored: StoredEvent, event: Event, book_epoch: int) -> None:
    kind, entity_id = entity_of(stored.stream)
    route = entity_id if kind == "account" else stored.stream
    value = {
        "position": stored.position,
        "stream": stored.stream,
        "revision": stored.revision,
        "book_epoch": book_epoch,
        "event_id": str(stored.id),
        "type": stored.type,
        "data_version": int(chain.schema_of(stored.meta).partition("/")[2]),
        "data": stored.data,
        "occurred_at_ms": event.occurred_at_ms,
        "caller": event.caller,
        "request_id": event.request_id,
        "previous_hash": told.roots[-1],
        "meta": stored.meta,
    }
    name = (LEDGER, _partition(LEDGER, route), stored.id)
    told.add(stored, name, stored.stream, "ledger-event", value)


def _partition(topic: str, route: str) -> int:
    return partition_of(route, topics.catalogue().partitions_of(topic))


@dataclass
class Heard:
    """What stands in the topics: once each, in the order of its first coming; and checkpoints."""

    records: dict[Name, Said] = field(default_factory=dict)
    order: dict[Place, list[UUID]] = field(default_factory=lambda: defaultdict(list))
    last: dict[bytes, UUID] = field(default_factory=dict)
    checkpoints: list[dict[str, Any]] = field(default_factory=list)
    repeats: int = 0
    two_ways: list[Name] = field(default_factory=list)


async def heard(bootstrap: str) -> Heard:
    """Read the topics that vending writes."""
    found = Heard()
    headers: dict[Name, Any] = {}
    for topic in TOPICS:
        for record in await bus.read(bootstrap, topic):
            envelope, value = kafka.opened(record)
            if envelope.subject == "ledger-checkpoint":
                found.checkpoints.append(value)
                continue
            if envelope.subject == "usage-ask":
                continue  # a question tells nothing
            name = (record.topic, record.partition, envelope.event_id)
            said = (record.key, record.value)
            if name not in found.records:
                found.records[name], headers[name] = said, record.headers
                found.order[name[:2]].append(envelope.event_id)
            else:
                found.repeats += 1
                if (found.records[name], headers[name]) != (said, record.headers):
                    found.two_ways.append(name)
            if topic == REGISTRY and record.key is not None:
                found.last[record.key] = envelope.event_id
    return found


def judge_topics(told: Told, found: Heard) -> Verdict:
    """Hold what stands in the topics against what the book must have told, all of it."""
    verdict = Verdict(judged=len(told.records))
    for name in told.records.keys() - found.records.keys():
        verdict.wrong.append(f"{name} is missing")
    for name in found.records.keys() - told.records.keys():
        verdict.wrong.append(f"{name} is in no book")
    for name in told.records.keys() & found.records.keys():
        if told.records[name] != found.records[name]:
            verdict.wrong.append(f"{name} says something else than the book")
    verdict.wrong += [f"{name} was told in two ways" for name in found.two_ways]
    for place, order in told.order.items():
        verdict.expect(found.order[place] == order, f"{place} is not in the book's order")
    verdict.expect(found.last == told.newest, "the registry's last are not the book's newest")
    return verdict + judge_now(told, found)


def judge_now(told: Told, found: Heard) -> Verdict:
    """Hold what is there now against the rules that hold at any moment.

    What a topic has, those before it have; up to a checkpoint everything is there.
    """
    verdict = Verdict()
    for records in told.by_event.values():
        there = [name in found.records for name in records]  # ledger, shards, registry
        verdict.expect(
            there[0] or not any(there), f"{records} were told before they stood in the ledger"
        )
        verdict.expect(
            all(there) or not there[-1], f"{records[-1]} was a route before it was a fact"
        )
    for checkpoint in found.checkpoints:
        position = checkpoint["position"]
        verdict.expect(
            checkpoint["root"] == told.roots[position], f"the root at {position} is another"
        )
    last = max((checkpoint["position"] for checkpoint in found.checkpoints), default=0)
    for records in list(told.by_event.values())[:last]:
        missing = [name for name in records if name not in found.records]
        verdict.expect(not missing, f"{missing} is missing below the checkpoint at {last}")
    return verdict
