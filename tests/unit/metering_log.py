"""A shard's log for the tests of metering's domain: facts and readings with little to write."""

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import numpy as np

from services.common.kernel.frames import (
    CHARGE_COLUMNS,
    LINE_COLUMNS,
    READING,
    RELAY_REPORTED,
    ChargeFrame,
    ReadingFrame,
)
from services.common.kernel.ids import column_key, house_account_id, name_uuid
from services.metering.domain.absorb import absorb
from services.metering.domain.messages import Absorbed, LogRecord, Output
from services.metering.domain.shard import ShardState
from tests.records import unsaid

SHARD = 2
START_MS = 1_760_000_000_000
KWH_MILLI = 1_000
CREDIT_NANO = 10**9
"""One currency unit: a kWh at PRICE_MICRO."""
PRICE_MICRO = 10**6
LEASE_MS = 300_000
EVIDENCE_AGE_MS = 900_000
CLOSED = RELAY_REPORTED | 0x07
OPEN = RELAY_REPORTED


def site(**changes: Any) -> dict[str, Any]:
    return {
        "site_id": "S1",
        "display_name": "Mall",
        "zone": "Asia/Shanghai",
        "currency": "CNY",
        "ledger_decimals": 9,
        "minor_decimals": 2,
        "legal_entity": "prop-co",
        "cuts_held": False,
        "cuts_per_minute": 10,
        "book_epoch": 0,
        "revision": 0,
        **changes,
    }


def tariff(**changes: Any) -> dict[str, Any]:
    return {
        "tariff_id": "T1",
        "version": 1,
        "kind": "flat",
        "commodity": "electricity",
        "currency": "CNY",
        "legal_entity": "prop-co",
        "price_micro": PRICE_MICRO,
        "plan": None,
        "effective_at_ms": 0,
        "published_at_ms": 0,
        "book_epoch": 0,
        "revision": changes.get("version", 1) - 1,
        **changes,
    }


def policy(**changes: Any) -> dict[str, Any]:
    """Alarms at 10 and 5, cut at -1, restored at 2."""
    return {
        "policy_id": "P1",
        "version": 1,
        "currency": "CNY",
        "alarm_1_nano": 10 * CREDIT_NANO,
        "alarm_2_nano": 5 * CREDIT_NANO,
        "overdraft_nano": CREDIT_NANO,
        "restore_nano": 2 * CREDIT_NANO,
        "lease_ms": LEASE_MS,
        "max_evidence_age_ms": EVIDENCE_AGE_MS,
        "rules": None,
        "published_at_ms": 0,
        "book_epoch": 0,
        "revision": changes.get("version", 1) - 1,
        **changes,
    }


def account(account_id: str = "A1", credit: int = 100, **changes: Any) -> dict[str, Any]:
    return {
        "account_id": account_id,
        "account_key": column_key("account", account_id),
        "shard": SHARD,
        "site_id": "S1",
        "subject_id": None,
        "status": "open",
        "currency": "CNY",
        "legal_entity": "prop-co",
        "commodity": "electricity",
        "tariff_id": "T1",
        "policy_id": "P1",
        "credited_nano": credit * CREDIT_NANO,
        "held_nano": 0,
        "hold_id": None,
        "keep_power_until_ms": None,
        "thaw_id": None,
        "promise_until_ms": None,
        "notice_id": None,
        "notice_outcome": None,
        "book_epoch": 0,
        "revision": 0,
        **changes,
    }


def meter(meter_id: str = "M1", account_id: str = "A1", **changes: Any) -> dict[str, Any]:
    return {
        **unsaid("meter-fact"),
        "meter_id": meter_id,
        "meter_key": column_key("meter", meter_id),
        "serial": f"SN-{meter_id}",
        "site_id": "S1",
        "gateway_id": "G1",
        "line_id": "L1",
        "unit": 1,
        "profile": "acrel-ddsy1352",
        "commodity": "electricity",
        "ratio": 1,
        "epoch": 1,
        "account_id": account_id,
        "account_key": column_key("account", account_id),
        "is_house": account_id.startswith("house:"),
        "shard": SHARD,
        "currency": "CNY",
        "legal_entity": "prop-co",
        "opening_register_milli": 0,
        "book_epoch": 0,
        "revision": 0,
        **changes,
    }


def moved(before: dict[str, Any], account_id: str, at_milli: int, **changes: Any) -> dict[str, Any]:
    """Return the fact that moves a meter to another account at a register."""
    return {
        **before,
        "account_id": account_id,
        "account_key": column_key("account", account_id),
        "is_house": account_id.startswith("house:"),
        "epoch": before["epoch"] + 1,
        "opening_register_milli": at_milli,
        "previous_account_id": before["account_id"],
        "previous_account_key": before["account_key"],
        "previous_shard": before["shard"],
        "previous_epoch": before["epoch"],
        "closing_register_milli": at_milli,
        "revision": before["revision"] + 1,
        **changes,
    }


def house(meter_id: str) -> str:
    return house_account_id(meter_id)


def reading(register_milli: int, **changes: Any) -> dict[str, Any]:
    """Return a reading of meter M1; `at_ms` is device time and receive time unless given."""
    meter_id = changes.pop("meter_id", "M1")
    at_ms = changes.pop("at_ms", START_MS)
    identity = name_uuid("test-reading", meter_id, at_ms, register_milli)
    return {
        "meter_key": column_key("meter", meter_id),
        "epoch": 1,
        "serial": f"SN-{meter_id}".encode(),
        "reading_id": identity.bytes,
        "device_time_ms": at_ms,
        "began_at_ms": at_ms,
        "received_at_ms": at_ms,
        "register_milli": register_milli,
        "rate_registers_milli": [-1] * 5,
        "ratio": 1,
        "quality": ord("A"),
        "relay_bits": CLOSED,
        "voltage_mv": [-1] * 3,
        "current_ma": [-1] * 3,
        "power_w": -(2**63),
        "power_factor_milli": -(2**31),
        **changes,
    }


def frame(readings: Iterable[dict[str, Any]], shard: int = SHARD) -> ReadingFrame:
    rows = np.array([tuple(one[name] for name in READING.names or ()) for one in readings], READING)
    return ReadingFrame(shard, "w1", "run-1", 1, rows)


class Log:
    """A shard and its log: each call appends a record, absorbs it and returns what it did."""

    def __init__(self, state: ShardState | None = None) -> None:
        self.state = state or ShardState.empty(SHARD)
        self.records: list[LogRecord] = []
        self.now_ms = START_MS

    def append(self, subject: str, value: Any) -> Absorbed:
        offset = self.records[-1].offset + 1 if self.records else self.state.offset + 1
        record = LogRecord(offset, self.now_ms, subject, value)
        self.records.append(record)
        return absorb(self.state, record)

    def fact(self, fact: dict[str, Any]) -> Absorbed:
        kinds = ("meter", "account", "tariff", "policy", "site")
        kind = next(kind for kind in kinds if f"{kind}_id" in fact)
        return self.append(f"{kind}-fact", fact)

    def read(self, *readings: dict[str, Any]) -> Absorbed:
        return self.append("reading-frame", frame(readings))

    def use(self, register_milli: int, **changes: Any) -> Absorbed:
        """Let a reading of M1 come now."""
        return self.read(reading(register_milli, at_ms=self.now_ms, **changes))

    def wake(self) -> Absorbed:
        return self.append("wake", {"shard": SHARD, "due_ms": self.now_ms})

    def later(self, duration_ms: int) -> "Log":
        self.now_ms += duration_ms
        return self


def standing_log(credit: int = 100, **meter_changes: Any) -> Log:
    """Return a log with one account, A1, that has one meter, M1, opened at register 0."""
    log = Log()
    for fact in (site(), tariff(), policy(), account(credit=credit), meter(**meter_changes)):
        log.fact(fact)
    log.later(1_000)
    return log


def of(done: Absorbed, subject: str) -> list[dict[str, Any]]:
    """Return the records of one subject that a record caused, in their order."""
    return [output.record for output in done.outputs if output.subject == subject]


def charges(done: Absorbed) -> list[dict[str, Any]]:
    """Return the charges that a record caused, names resolved, each with its lines."""
    found = []
    for record in of(done, "charge-frame"):
        charge_frame = ChargeFrame.from_record(record)
        for number, row in enumerate(charge_frame.rows):
            one = {name: row[name] for name, _, _ in CHARGE_COLUMNS}
            lines = charge_frame.lines[charge_frame.lines["charge"] == number]
            told = [name for name, _, _ in LINE_COLUMNS if name != "charge"]
            one["lines"] = [{name: line[name].item() for name in told} for line in lines]
            for name in ("tariff", "policy", "legal_entity", "currency", "commodity"):
                one[f"{name}_name"] = charge_frame.names[one[f"{name}_name"]]
            for name in ("from_reading_id", "to_reading_id"):
                one[name] = UUID(bytes=one[name].tobytes())
            found.append(one)
    return found


def kinds(done: Absorbed) -> list[str]:
    """Return what a record decided, in order: kinds of alarms, and of intents what is wanted."""
    return [
        output.record["kind"] if output.subject == "alarm" else output.record["wanted"]
        for output in done.outputs
        if output.subject in {"alarm", "relay-intent"}
    ]


def sent(done: Absorbed) -> list[Output]:
    return list(done.outputs)
