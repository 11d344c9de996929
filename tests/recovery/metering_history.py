"""A small history for metering's shard log: facts, readings, top-ups, a price change, a move.

Deterministic for a seed and a start. Times are near the start's, because evidence must be fresh.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from uuid import UUID

import numpy as np

from services.common.kernel.frames import READING, RELAY_REPORTED, ReadingFrame
from services.common.kernel.ids import column_key, name_uuid, reading_id
from services.common.runtime.topics import catalogue
from tests.records import unsaid

SHARDS = catalogue().shards
ACCOUNTS = 48
NANO = 10**9
CREDIT_NANO = 3 * NANO
READINGS_A_FRAME = 6
TOP_UP_SHARE = 0.25
REPEAT_SHARE = 0.1
STEP_MS = 1_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One record to write to the shard log."""

    shard: int
    subject: str
    value: dict[str, Any]
    event_id: UUID


@dataclass
class History:
    """Facts first (`opening`), then as many records as asked for (`steps`)."""

    seed: int
    start_ms: int
    count: int = 0
    registers: dict[int, int] = field(default_factory=dict)
    revisions: dict[int, int] = field(default_factory=dict)
    credited: dict[int, int] = field(default_factory=dict)
    owners: dict[int, int] = field(default_factory=dict)
    epochs: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def opening(self) -> Iterator[Entry]:
        """Yield what every shard needs, then accounts and meters."""
        for shard in range(SHARDS):
            yield self._entry(shard, "site-fact", site())
            yield self._entry(shard, "tariff-fact", tariff(version=1, price_micro=500_000, at_ms=0))
            yield self._entry(shard, "policy-fact", policy(version=1, alarm_1_nano=2 * NANO))
        for number in range(ACCOUNTS):
            self.revisions[number], self.credited[number] = 1, CREDIT_NANO
            self.owners[number], self.epochs[number] = number, 1
            yield self._account(number)
            yield self._entry(number % SHARDS, "meter-fact", meter(number, owner=number))

    def steps(self, count: int) -> Iterator[Entry]:
        """Yield frames, some of them twice, top-ups, and now and then a new tariff or policy."""
        for _ in range(count):
            self.count += 1
            shard = self.count % SHARDS
            chance = self._random.random()
            if chance < TOP_UP_SHARE:
                yield self._top_up(shard)
            elif self.count % 41 == 0:
                yield self._move(shard)
            elif self.count % 97 == 0:
                yield self._entry(shard, "tariff-fact", self._new_tariff())
            elif self.count % 89 == 0:
                yield self._entry(shard, "policy-fact", self._new_policy())
            else:
                frame = self._frame(shard)
                yield frame
                if self._random.random() < REPEAT_SHARE:
                    yield frame

    def _entry(self, shard: int, subject: str, value: dict[str, Any]) -> Entry:
        self.count += 1
        return Entry(shard, subject, value, name_uuid("history", self.seed, self.count))

    def _account(self, number: int) -> Entry:
        return self._entry(
            number % SHARDS,
            "account-fact",
            account(number, revision=self.revisions[number], credited_nano=self.credited[number]),
        )

    def _top_up(self, shard: int) -> Entry:
        number = self._one_of(shard)
        self.revisions[number] += 1
        self.credited[number] += self._random.randrange(1, 4) * NANO
        return self._account(number)

    def _move(self, shard: int) -> Entry:
        """Give a meter to another account of its shard, at its last register."""
        number = self._one_of(shard)
        previous, self.owners[number] = self.owners[number], self._one_of(shard)
        self.epochs[number] += 1
        register = self.registers.get(number, 0)
        moved = meter(
            number,
            owner=self.owners[number],
            epoch=self.epochs[number],
            opening_register_milli=register,
            previous_account_id=f"A{previous}",
            previous_account_key=account_key(previous),
            previous_shard=shard,
            previous_epoch=self.epochs[number] - 1,
            closing_register_milli=register,
        )
        return self._entry(shard, "meter-fact", moved)

    def _one_of(self, shard: int) -> int:
        return self._random.randrange(ACCOUNTS // SHARDS) * SHARDS + shard

    def _new_tariff(self) -> dict[str, Any]:
        version = 1 + self.count
        price_micro = 100_000 * self._random.randrange(1, 10)
        return tariff(version=version, price_micro=price_micro, at_ms=self._now_ms() + 5 * STEP_MS)

    def _new_policy(self) -> dict[str, Any]:
        return policy(version=1 + self.count, alarm_1_nano=self._random.randrange(1, 5) * NANO)

    def _now_ms(self) -> int:
        return self.start_ms + self.count * STEP_MS

    def _frame(self, shard: int) -> Entry:
        rows = np.zeros(READINGS_A_FRAME, READING)
        for row in rows:
            number = self._one_of(shard)
            register = self.registers.get(number, 0) + self._random.randrange(400)
            self.registers[number] = register
            row["meter_key"] = meter_key(number)
            row["epoch"] = self.epochs[number]
            row["serial"] = serial(number).encode()
            for when in ("device_time_ms", "began_at_ms", "received_at_ms"):
                row[when] = self._now_ms()
            row["register_milli"] = register
            row["reading_id"] = np.void(
                reading_id(serial(number), self._now_ms(), (register,)).bytes
            )
            row["rate_registers_milli"] = -1
            row["ratio"] = 1
            row["quality"] = ord("A")
            row["relay_bits"] = RELAY_REPORTED | 1
        frame = ReadingFrame(shard, "history", str(self.seed), self.count, rows)
        return self._entry(shard, "reading-frame", frame.to_record())


def serial(number: int) -> str:
    return f"{number:012d}"


@cache
def meter_key(number: int) -> int:
    return column_key("meter", f"M{number}")


@cache
def account_key(number: int) -> int:
    return column_key("account", f"A{number}")


def site() -> dict[str, Any]:
    return {
        "site_id": "S1",
        "display_name": "S1",
        "zone": "Asia/Shanghai",
        "currency": "CNY",
        "ledger_decimals": 9,
        "minor_decimals": 2,
        "legal_entity": "LE1",
        "cuts_held": False,
        "cuts_per_minute": 10,
        "book_epoch": 0,
        "revision": 1,
    }


def tariff(*, version: int, price_micro: int, at_ms: int) -> dict[str, Any]:
    return {
        "tariff_id": "T1",
        "version": version,
        "kind": "flat",
        "commodity": "electricity",
        "currency": "CNY",
        "legal_entity": "LE1",
        "price_micro": price_micro,
        "plan": None,
        "effective_at_ms": at_ms,
        "published_at_ms": 0,
        "book_epoch": 0,
        "revision": version,
    }


def policy(*, version: int, alarm_1_nano: int) -> dict[str, Any]:
    return {
        "policy_id": "P1",
        "version": version,
        "currency": "CNY",
        "alarm_1_nano": alarm_1_nano,
        "alarm_2_nano": NANO,
        "overdraft_nano": 0,
        "restore_nano": NANO // 2,
        "lease_ms": 300_000,
        "max_evidence_age_ms": 3_600_000,
        "rules": '{"notice": {"lead_minutes": 0}}',
        "published_at_ms": 0,
        "book_epoch": 0,
        "revision": version,
    }


def account(number: int, *, revision: int, credited_nano: int) -> dict[str, Any]:
    return {
        "account_id": f"A{number}",
        "account_key": account_key(number),
        "shard": number % SHARDS,
        "site_id": "S1",
        "subject_id": None,
        "status": "open",
        "currency": "CNY",
        "legal_entity": "LE1",
        "commodity": "electricity",
        "tariff_id": "T1",
        "policy_id": "P1",
        "credited_nano": credited_nano,
        "held_nano": 0,
        "hold_id": None,
        "keep_power_until_ms": None,
        "thaw_id": None,
        "promise_until_ms": None,
        "notice_id": None,
        "notice_outcome": None,
        "book_epoch": 0,
        "revision": revision,
    }


def meter(number: int, *, owner: int, epoch: int = 1, **moved: Any) -> dict[str, Any]:
    fact = {
        **unsaid("meter-fact"),
        "meter_id": f"M{number}",
        "meter_key": meter_key(number),
        "serial": serial(number),
        "site_id": "S1",
        "gateway_id": "G1",
        "line_id": "L1",
        "unit": 1,
        "profile": "acrel-ddsy1352",
        "commodity": "electricity",
        "ratio": 1,
        "epoch": epoch,
        "account_id": f"A{owner}",
        "account_key": account_key(owner),
        "is_house": False,
        "shard": owner % SHARDS,
        "currency": "CNY",
        "legal_entity": "LE1",
        "opening_register_milli": 0,
        "book_epoch": 0,
        "revision": epoch,
    }
    return {**fact, **moved}
