"""Histories of two shards: two logs that one book and the same devices fill.

As vending routes them: facts of tariffs, policies and sites go to both, of an account to its own,
of a meter to the one that it left last and the one in which it stands. Either shard may lag behind
with facts. Readings go where the ingest worker that takes them believes that the meter stands: one
that has not heard of a move yet sends them to the shard that it left, of the epoch that ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from services.common.kernel.frames import READING, RELAY_REPORTED, ReadingFrame
from services.common.kernel.ids import house_account_id
from services.metering.domain.messages import LogRecord
from tests.property.metering_histories import (
    CALENDARED,
    FIRST_OFFSET,
    METERS,
    OTHER_SHARD,
    READING_KINDS,
    SETTLED,
    SHARD,
    STEPS_MS,
    Book,
    Frame,
    Op,
    Read,
)

SHARDS = (SHARD, OTHER_SHARD)
ELSEWHERE = ("A1", "A3", *map(house_account_id, METERS[1::2]))
MOVES_BEHIND = {"stale": 1, "staler": 2}
"""Kinds of readings: how many moves of its meter the worker that takes one has not heard of."""


class Logs(NamedTuple):
    """What stands in both logs, by shard, and the turns in which their records are absorbed."""

    records: dict[int, list[LogRecord]]
    turns: tuple[int, ...]

    def __repr__(self) -> str:
        """Say how much there is: Hypothesis warns of more, and shows what it was played from."""
        return f"Logs({', '.join(f'{len(log)} of {shard}' for shard, log in self.records.items())})"

    def merged(self) -> list[tuple[int, LogRecord]]:
        """Return (shard, record) of both, each log in its order; what no turn names at the end."""
        left = {shard: iter(log) for shard, log in self.records.items()}
        taken = [(shard, next(left[shard], None)) for shard in self.turns]
        taken += [(shard, record) for shard in SHARDS for record in left[shard]]
        return [(shard, record) for shard, record in taken if record is not None]


@dataclass
class TwoShards(Book):
    """A book of two shards, one with A0 and A2, the other with A1 and A3."""

    elsewhere: frozenset[str] = frozenset(ELSEWHERE)
    logs: dict[int, list[LogRecord]] = field(default_factory=lambda: {s: [] for s in SHARDS})
    lag: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SHARDS, 0))
    queued: dict[int, list[tuple[str, Any]]] = field(
        default_factory=lambda: {shard: [] for shard in SHARDS}
    )
    entries: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """The first fact of each epoch of each meter: what the registry said one after the other."""

    def play_both(self, ops: Sequence[Op | Frame]) -> dict[int, list[LogRecord]]:
        """Return both logs that `ops` leave behind."""
        self.play(ops)
        self.lag = dict.fromkeys(SHARDS, 0)
        self._release_delayed()
        return self.logs

    def _log_of(self, shard: int) -> list[LogRecord]:
        return self.logs[shard]

    def _log(self, subject: str, value: Any) -> None:
        for shard in shards_of(subject, value):
            if self.lag[shard] and subject.endswith("-fact"):
                self.queued[shard].append((subject, value))
            else:
                self._append(shard, subject, value)

    def _append(self, shard: int, subject: str, value: Any) -> None:
        log = self.logs[shard]
        log.append(LogRecord(FIRST_OFFSET + len(log), self.now_ms, subject, value))

    def _lag(self, op: Op) -> None:
        """Let a shard get no fact for some operations, those that wait then in their order."""
        self.lag[SHARDS[op.a % 2]] += 1 + op.b % 4

    def _release_delayed(self) -> None:
        Book._release_delayed(self)
        for shard in SHARDS:
            self.lag[shard] = max(0, self.lag[shard] - 1)
            if self.lag[shard] == 0:
                waiting, self.queued[shard] = self.queued[shard], []
                for subject, value in waiting:
                    self._append(shard, subject, value)

    def _fact(self, subject: str, fact: dict[str, Any]) -> None:
        Book._fact(self, subject, fact)
        if subject == "meter-fact":
            known = self.entries.setdefault(fact["meter_id"], [])
            if not known or known[-1]["epoch"] != fact["epoch"]:
                known.append(dict(fact))

    def _assign(self, op: Op) -> None:
        """Assign a meter; its house account is in one shard for life."""
        Book._assign(self, op._replace(b=4) if op.b % 10 == 5 else op)

    def _wake(self, op: Op) -> None:
        self.now_ms += STEPS_MS[op.a % len(STEPS_MS)]
        for shard in (SHARDS, SHARDS[:1], SHARDS[1:])[op.b % 3]:
            self._log("wake", {"shard": shard, "due_ms": self.now_ms})

    def _quiet(self, op: Op) -> None:
        self.now_ms += 7 * 86_400_000 - op.b % 2
        for shard in SHARDS:
            self._log("wake", {"shard": shard, "due_ms": self.now_ms})

    def _read_all(self, _op: Op) -> None:
        """Let every meter be read once more, where it stands by now."""
        self.lag = dict.fromkeys(SHARDS, 1)
        self._release_delayed()
        self.now_ms += 60_000
        self._frame([Read(meter) for meter, name in enumerate(METERS) if name in self.devices])

    def _frame(self, reads: Sequence[Read]) -> None:
        told: dict[int, list[dict[str, Any]]] = {shard: [] for shard in SHARDS}
        for read in reads:
            shard, reading = self._taken(read)
            told[shard].append(reading)
        for shard, readings in told.items():
            rows = np.zeros(len(readings), READING)
            for row, reading in zip(rows, readings, strict=True):
                for name, value in reading.items():
                    row[name] = value
            if readings:
                frame = ReadingFrame(shard, "w0", "run", len(self.logs[shard]), rows)
                self._log("reading-frame", frame)

    def _taken(self, read: Read) -> tuple[int, dict[str, Any]]:
        """Return (shard, reading) as the worker that takes it believes."""
        behind = MOVES_BEHIND.get(read.kind, 0)
        reading = self._reading(read._replace(kind="next") if behind else read)
        known = self.entries.get(METERS[read.meter % len(METERS)])
        if not known:
            return SHARD, reading
        entry = known[max(0, len(known) - 1 - behind)]
        reading["epoch"] += entry["epoch"] - known[-1]["epoch"]
        return entry["shard"], reading


def shards_of(subject: str, value: Any) -> tuple[int, ...]:
    """Return the shards that a record goes to, as vending and ingest route it."""
    if isinstance(value, ReadingFrame):
        return (value.shard,)
    if subject == "meter-fact":
        return tuple(dict.fromkeys(s for s in (value["previous_shard"], value["shard"]) if s))
    if subject in {"account-fact", "wake"}:
        return (value["shard"],)
    return SHARDS


_small = st.integers(0, 11)
_kinds = st.sampled_from(
    (
        *("assign",) * 12,
        *("lag",) * 6,
        *("sell", "wake", "resolve", "calendar") * 2,
        *("hold", "policy", "tariff", "open", "register", "status", "order", "force"),
        *("overtake", "quiet", "delay", "repeat", "repeat", "restored_book", "clock_back"),
    )
)
_ops = st.builds(Op, _kinds, st.sampled_from((0, 0, 0, 1, 1, 2, 3)), _small, _small, _small)
_reads = st.builds(
    Read,
    st.sampled_from((0, 0, 0, 1, 1, 2, 3)),
    st.sampled_from((*READING_KINDS, *("stale", "stale", "staler", "between") * 8)),
    st.sampled_from((0, 1, 300, 900, 1_700, 9_000)),
    st.sampled_from((0, 0, 0, 0, 200, 60_001, 900_001, -5_000)),
    st.sampled_from((RELAY_REPORTED | 7, RELAY_REPORTED, 0)),
    st.sampled_from("AAAAVEM"),
)
_frames = st.builds(
    Frame, st.sampled_from(STEPS_MS), st.lists(_reads, min_size=1, max_size=6).map(tuple)
)
_bodies = st.lists(st.one_of(_frames, _ops), min_size=5, max_size=40)
_turns = st.lists(st.sampled_from(SHARDS), max_size=80).map(tuple)


def moves() -> st.SearchStrategy[Logs]:
    """Return logs in which meters move between accounts and shards, with every disorder."""
    heads = st.sampled_from((*(SETTLED,) * 5, *CALENDARED))
    logs = st.builds(lambda head, body: TwoShards().play_both([*head, *body]), heads, _bodies)
    return st.builds(Logs, logs, _turns)


_exact_heads = [
    [
        op._replace(b=0, c=0) if isinstance(op, Op) and op.kind == "register" else op
        for op in (*head, Op("register", 3))
    ]
    for head in (SETTLED, *CALENDARED)
]
"""Beginnings whose meters have ratio 1 and no bound: what a register says is what was used."""

_exact_assigns = st.builds(
    Op,
    st.just("assign"),
    st.sampled_from((0, 0, 1, 2, 3)),
    _small,
    st.sampled_from((0, 0, 0, 3, 4)),  # the closing register: what the device shows, or less
    st.just(0),  # the opening one the same
)
_exact_ops = st.builds(
    Op,
    st.sampled_from(("lag", "lag", "sell", "wake", "calendar", "repeat", "order", "force")),
    st.sampled_from((0, 1, 2, 3)),
    st.integers(0, 10),  # no sale of so much that no more fits int64, which would freeze
    _small,
    _small,
)
_exact_reads = st.builds(
    Read,
    st.sampled_from((0, 0, 1, 2, 3)),
    st.sampled_from((*("next", "stale") * 4, "staler")),
    st.sampled_from((0, 1, 300, 1_700, 9_000)),
    st.just(0),
    st.just(RELAY_REPORTED | 7),
    st.just("A"),
)
_exact_again = st.builds(
    lambda read, kind: read._replace(kind=kind, use_milli=0),
    _exact_reads,
    st.sampled_from(("duplicate", "between", "between")),
)
_exact_frames = st.builds(
    Frame,
    st.sampled_from((1_000, 60_001, 3_600_000, 90_000_000)),
    st.lists(st.one_of(_exact_reads, _exact_reads, _exact_again), min_size=1, max_size=5).map(
        tuple
    ),
)
_exact_bodies = st.lists(
    st.one_of(_exact_frames, _exact_assigns, _exact_ops), min_size=5, max_size=40
)


class Moved(NamedTuple):
    """Logs in which nothing is held or frozen, and what all devices show at their end."""

    logs: Logs
    registers_milli: dict[int, int]
    newest: dict[int, dict[str, Any]]
    """Of each meter, by its key, its newest fact."""

    def __repr__(self) -> str:
        """Say as little as of the logs."""
        return f"Moved({self.logs!r})"


def exact_moves() -> st.SearchStrategy[Moved]:
    """Return logs in which each meter closes where it opens, and is read once more at the end."""

    def played(head: list[Op | Frame], body: list[Op | Frame], turns: tuple[int, ...]) -> Moved:
        book = TwoShards()
        logs = Logs(book.play_both([*head, *body, Op("read_all")]), turns)
        newest = {d.fact["meter_key"]: d.fact for d in book.devices.values() if d.fact is not None}
        shown = {d.fact["meter_key"]: d.register_milli for d in book.devices.values() if d.fact}
        return Moved(logs, shown, newest)

    return st.builds(played, st.sampled_from(_exact_heads), _exact_bodies, _turns)
