"""A story on the bus, as the services would tell it, for the tests of reporting.

One account with one meter: opened, credit sold, three charges of which the last one crosses the
threshold, cut, read back, topped up, restored. Everything adds up: registers × price = charges.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from aiokafka import ConsumerRecord

from services.common.kernel.envelope import Envelope
from services.common.kernel.frames import CHARGE, LINE, ChargeFrame
from services.common.kernel.ids import column_key, name_uuid
from services.common.kernel.routing import partition_of
from services.common.runtime import codec
from services.common.runtime.topics import catalogue
from tests.records import unsaid

T0 = 1_800_000_000_000
PRICE_MICRO = 800_000
FLAT = 2
REGISTERS_MILLI = (0, 1_000, 2_500, 12_500)
"""The register's opening and after each charge."""
CREDIT_NANO = 10 * 10**9
TOP_UP_NANO = 20 * 10**9
ALARM_1_NANO, ALARM_2_NANO, OVERDRAFT_NANO, RESTORE_NANO = 8 * 10**9, 4 * 10**9, 0, 10**9
LEASE_MS, EVIDENCE_MS = 60_000, 300_000
CUT_OFFSET, RESTORED_OFFSET = 103, 110


@dataclass(frozen=True)
class Sent:
    """One record as a service would send it."""

    topic: str
    partition: int
    key: str
    subject: str
    value: Mapping[str, Any]
    at_ms: int = T0

    def payload(self) -> bytes:
        return codec.encode(self.subject, dict(self.value))

    def headers(self) -> list[tuple[str, bytes]]:
        event_id = name_uuid(self.topic, self.key, self.payload().hex())
        return Envelope(codec.schema_header(self.subject), event_id, self.at_ms).headers()


def consumed(sent: Iterable[Sent], at: Mapping[tuple[str, int], int] | None = None) -> list[Any]:
    """Return the records as a consumer gets them, offsets dense from `at` (or 0) on."""
    next_offset = dict(at or {})
    records = []
    for one in sent:
        place = (one.topic, one.partition)
        offset = next_offset.get(place, 0)
        next_offset[place] = offset + 1
        records.append(record_of(one, offset))
    return records


def record_of(sent: Sent, offset: int) -> Any:
    payload = sent.payload()
    return ConsumerRecord(
        topic=sent.topic,
        partition=sent.partition,
        offset=offset,
        timestamp=sent.at_ms,
        timestamp_type=0,
        key=sent.key.encode(),
        value=payload,
        checksum=None,
        serialized_key_size=len(sent.key),
        serialized_value_size=len(payload),
        headers=tuple(sent.headers()),
    )


class Story:
    """The names of one run's site, meter and account, and the records about them."""

    def __init__(self, run: str = "a", shard: int = 3) -> None:
        self.run = run
        self.shard = shard
        self.site = f"S-{run}"
        self.gateway = f"G-{run}"
        self.meter = f"M-{run}"
        self.serial = f"SN{run}"
        self.account = f"A-{run}"
        self.tariff = f"T-{run}"
        self.policy = f"P-{run}"
        self.meter_key = column_key("meter", self.meter)
        self.account_key = column_key("account", self.account)

    def all(self) -> list[Sent]:
        """Return the story in the order in which it happened."""
        return [
            *self.book(),
            *self.registry(),
            self.balance(0, 100, credited=CREDIT_NANO, charged=0, level="normal", revision=1),
            *(self.charge(n) for n in (1, 2, 3)),
            self.notice(CUT_OFFSET - 1),
            self.cut(),
            self.intent("open", CUT_OFFSET, "arrears"),
            self.balance(4, CUT_OFFSET, credited=CREDIT_NANO, charged=CREDIT_NANO, level="cut"),
            self.outcome(CUT_OFFSET, "open", 1, "sent"),
            self.outcome(CUT_OFFSET, "open", 1, "acknowledged"),
            self.outcome(CUT_OFFSET, "open", 1, "confirmed"),
            self.relay_state("open", T0 + 5_000),
            self.credit_sold(2, TOP_UP_NANO),
            self.account_fact(2, CREDIT_NANO + TOP_UP_NANO),
            self.alarm("restored", RESTORED_OFFSET, threshold=RESTORE_NANO),
            self.intent("closed", RESTORED_OFFSET, "paid"),
            self.restored_balance(),
            self.outcome(RESTORED_OFFSET, "closed", 1, "confirmed"),
            self.relay_state("closed", T0 + 20_000),
            self.device_status(f"meters/{self.meter}", "online"),
            self.device_status(f"gateways/{self.gateway}", "offline"),
            self.device_status(f"unknown/modbus/{self.serial}X", "quarantined"),
        ]

    # --- vending ----------------------------------------------------------------------------

    def tariff_published(self, version: int, price_micro: int, effective_at_ms: int) -> Sent:
        said = {
            "tariff_id": self.tariff,
            "version": version,
            "kind": "flat",
            "commodity": "electricity",
            "price_micro": price_micro,
            "plan": None,
            "effective_at_ms": effective_at_ms,
            "document_id": None,
            "currency": "CNY",
            "legal_entity": "LE1",
        }
        return self.event(f"tariff-{self.tariff}", version - 1, "tariff-published", said)

    def book(self) -> list[Sent]:
        policy = {
            "policy_id": self.policy,
            "version": 1,
            "currency": "CNY",
            "alarm_1_nano": ALARM_1_NANO,
            "alarm_2_nano": ALARM_2_NANO,
            "overdraft_nano": OVERDRAFT_NANO,
            "restore_nano": RESTORE_NANO,
            "lease_ms": LEASE_MS,
            "max_evidence_age_ms": EVIDENCE_MS,
            "emergency_nano": 0,
            "rules": None,
            "legal_entity": "LE1",
            "document_id": None,
            "ceiling_nano": None,
            "fee_ppm": 0,
            "fee_minor": 0,
            "rounding": None,
        }
        placed = {"site_id": self.site, "parent_site_id": "property", "reason": "a building of it"}
        return [
            self.tariff_published(1, PRICE_MICRO, 0),
            self.event(f"policy-{self.policy}", 0, "policy-published", policy),
            self.credit_sold(1, CREDIT_NANO),
            self.event(f"site-{self.site}", 1, "site-placed", placed),
        ]

    def event(self, stream: str, revision: int, kind: str, data: Mapping[str, Any]) -> Sent:
        request = {
            "caller": "test",
            "request_id": str(name_uuid("request", stream, revision)),
            "occurred_at_ms": T0 + revision,
        }
        encoded = codec.encode(
            kind, {**unsaid(kind), **request, "fingerprint": b"\x01\xff", **data}
        )
        value = {
            "position": revision,
            "stream": stream,
            "revision": revision,
            "book_epoch": 0,
            "event_id": str(name_uuid(stream, revision)),
            "type": kind,
            "data_version": codec.version_of(kind),
            "data": encoded,
            "previous_hash": bytes(32),
            "meta": None,
            **request,
        }
        return self._hashed("ledger", stream, "ledger-event", value, key=stream)

    def credit_sold(self, revision: int, amount_nano: int) -> Sent:
        data = {
            "account_id": self.account,
            "amount_minor": amount_nano // 10**7,
            "amount_nano": amount_nano,
            "credited_nano": amount_nano if revision == 1 else CREDIT_NANO + amount_nano,
            "method": "cash",
            "receipt_id": str(name_uuid("receipt", self.account, revision)),
            "recovered_emergency_minor": 0,
            "recovered_debt_minor": 0,
            "emergency_left_minor": 0,
            "debt_left_minor": 0,
            "fee_minor": 0,
            "energy_milli": None,
            "price_micro": None,
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            "postings": [
                {"account": "assets:cash", "amount_nano": amount_nano},
                {"account": "liabilities:prepayment", "amount_nano": -amount_nano},
            ],
        }
        return self.event(f"account-{self.account}", revision, "credit-sold", data)

    def registry(self) -> list[Sent]:
        site = {
            "site_id": self.site,
            "display_name": "North mall",
            "zone": "Asia/Shanghai",
            "currency": "CNY",
            "ledger_decimals": 9,
            "minor_decimals": 2,
            "legal_entity": "LE1",
            "cuts_held": False,
            "cuts_per_minute": 60,
            "book_epoch": 0,
            "revision": 0,
        }
        gateway = {
            "gateway_id": self.gateway,
            "site_id": self.site,
            "line_id": f"L-{self.run}",
            "protocol": "modbus-tcp",
            "address": "127.0.0.1:1502",
            "book_epoch": 0,
            "revision": 0,
        }
        return [
            self._fact("sites", self.site, "site-fact", site),
            self._fact("gateways", self.gateway, "gateway-fact", gateway),
            self.meter_fact(),
            self.account_fact(1, CREDIT_NANO),
        ]

    def meter_fact(self, epoch: int = 2, revision: int = 1) -> Sent:
        value = {
            **unsaid("meter-fact"),
            "meter_id": self.meter,
            "meter_key": self.meter_key,
            "serial": self.serial,
            "site_id": self.site,
            "gateway_id": self.gateway,
            "line_id": f"L-{self.run}",
            "unit": 1,
            "profile": "acrel-ddsy1352",
            "commodity": "electricity",
            "ratio": 1,
            "epoch": epoch,
            "account_id": self.account,
            "account_key": self.account_key,
            "is_house": False,
            "shard": self.shard,
            "currency": "CNY",
            "legal_entity": "LE1",
            "opening_register_milli": 0,
            "book_epoch": 0,
            "revision": revision,
        }
        return self._fact("meters", self.meter, "meter-fact", value)

    def account_fact(self, revision: int, credited_nano: int) -> Sent:
        value = {
            "account_id": self.account,
            "account_key": self.account_key,
            "shard": self.shard,
            "site_id": self.site,
            "subject_id": "subject-1",
            "status": "open",
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            "tariff_id": self.tariff,
            "policy_id": self.policy,
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
        return self._fact("accounts", self.account, "account-fact", value)

    # --- metering ---------------------------------------------------------------------------

    def charge(self, n: int) -> Sent:
        """Return the n-th charge, n from 1; it is caused by the log's record 100 + n."""
        row = np.zeros(1, CHARGE)
        energy_milli = REGISTERS_MILLI[n] - REGISTERS_MILLI[n - 1]
        fields = {
            "meter_key": self.meter_key,
            "epoch": 2,
            "sequence": n,
            "account_key": self.account_key,
            "account_sequence": n + 1,
            "account_revision": 1,
            "from_reading_id": self.reading(n - 1).bytes if n > 1 else bytes(16),
            "from_time_ms": T0 + 1_000 * (n - 1) if n > 1 else 0,
            "from_register_milli": REGISTERS_MILLI[n - 1],
            "from_quality": ord("A"),
            "to_reading_id": self.reading(n).bytes,
            "to_time_ms": T0 + 1_000 * n,
            "to_received_at_ms": T0 + 1_000 * n + 100,
            "to_register_milli": REGISTERS_MILLI[n],
            "to_quality": ord("A"),
            "ratio": 1,
            "energy_milli": energy_milli,
            "price_micro": PRICE_MICRO,
            "amount_nano": energy_milli * PRICE_MICRO,
            "meter_energy_total_milli": REGISTERS_MILLI[n],
            "account_charged_total_nano": REGISTERS_MILLI[n] * PRICE_MICRO,
            "account_credited_total_nano": CREDIT_NANO,
            "tariff_name": 0,
            "tariff_version": 1,
            "policy_name": 1,
            "policy_version": 1,
            "legal_entity_name": 2,
            "currency_name": 3,
            "commodity_name": 4,
        }
        for name, value in fields.items():
            row[name] = np.void(value) if isinstance(value, bytes) else value
        names = (self.tariff, self.policy, "LE1", "CNY", "electricity")
        lines = np.zeros(int(n == 1), LINE)  # the first charge tells its price by a line
        if n == 1:
            row["price_micro"] = 0
            lines["version"], lines["rate"], lines["energy_milli"] = 1, FLAT, energy_milli
            lines["rate_nano"] = energy_milli * PRICE_MICRO
        frame = ChargeFrame(self.shard, 100 + n, names, row, lines)
        at_ms = T0 + 1_000 * n + 150
        return Sent(
            "charges", self.shard, str(self.shard), "charge-frame", frame.to_record(), at_ms
        )

    def reading(self, n: int) -> UUID:
        return name_uuid("reading", self.meter, n)

    def balance(
        self,
        sequence: int,
        log_offset: int,
        *,
        credited: int,
        charged: int,
        level: str,
        revision: int = 1,
    ) -> Sent:
        value = {
            "account_id": self.account,
            "account_key": self.account_key,
            "shard": self.shard,
            "site_id": self.site,
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            "credited_nano": credited,
            "charged_nano": charged,
            "held_nano": 0,
            "available_nano": credited - charged,
            "level": level,
            "frozen": False,
            "account_sequence": sequence,
            "account_revision": revision,
            "book_epoch": 0,
            "as_of_ms": T0 + log_offset,
            "log_offset": log_offset,
        }
        return Sent("balances", self.shard, self.account, "balance", value)

    def restored_balance(self) -> Sent:
        return self.balance(
            5,
            RESTORED_OFFSET,
            credited=CREDIT_NANO + TOP_UP_NANO,
            charged=CREDIT_NANO,
            level="normal",
            revision=2,
        )

    def cut(self) -> Sent:
        return self.alarm(
            "cut",
            CUT_OFFSET,
            threshold=-OVERDRAFT_NANO,
            meter_id=self.meter,
            charge_epoch=2,
            charge_sequence=3,
            from_reading_id=str(self.reading(2)),
            to_reading_id=str(self.reading(3)),
            reading_received_at_ms=T0 + 3_100,
            intent_epoch=2,
            intent_offset=CUT_OFFSET,
        )

    def alarm(self, kind: str, log_offset: int, *, threshold: int | None, **other: Any) -> Sent:
        value = {
            "alarm_id": str(self.alarm_id(kind, log_offset)),
            "kind": kind,
            "reason": "threshold-reached",
            **dict.fromkeys(
                (
                    "meter_id",
                    "charge_epoch",
                    "charge_sequence",
                    "from_reading_id",
                    "to_reading_id",
                    "reading_received_at_ms",
                    "intent_epoch",
                    "intent_offset",
                    "register_milli",
                    "device_time_ms",
                    "last_register_milli",
                    "last_time_ms",
                    "bound_milli",
                    "silent_since_ms",
                    "meter_epoch",
                    "arrears_since_ms",
                    "forced_orders",
                    "reading_began_at_ms",
                    "notice_id",
                    "notice_outcome",
                )
            ),
            "account_id": self.account,
            "site_id": self.site,
            "available_nano": 0,
            "threshold_nano": threshold,
            "account_sequence": 4,
            "account_revision": 1,
            "book_epoch": 0,
            "policy_id": self.policy,
            "policy_version": 1,
            "tariff_id": self.tariff,
            "tariff_version": 1,
            "level_before": "alarm-2",
            "level_after": "cut",
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            "decided_at_ms": T0 + log_offset,
            "log_offset": log_offset,
            **other,
        }
        return Sent("alarms", self.shard, self.account, "alarm", value)

    def notice(self, log_offset: int) -> Sent:
        cited = ("tariff_id", "tariff_version", "charge_epoch", "charge_sequence")
        readings = ("from_reading_id", "to_reading_id", "reading_received_at_ms")
        value = {
            "notice_id": str(name_uuid("notice", self.account, log_offset)),
            "kind": "cut-off",
            "account_id": self.account,
            "site_id": self.site,
            "available_nano": 1,
            "threshold_nano": 0,
            "cut_not_before_ms": T0 + log_offset,
            "account_sequence": 3,
            "account_revision": 1,
            "book_epoch": 0,
            "policy_id": self.policy,
            "policy_version": 1,
            **dict.fromkeys((*cited, *readings)),
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            "decided_at_ms": T0 + log_offset,
            "log_offset": log_offset,
        }
        return Sent("notices", self.shard, self.account, "notice", value)

    def alarm_id(self, kind: str, log_offset: int) -> UUID:
        return name_uuid("alarm", self.account, log_offset, kind)

    def intent(self, wanted: str, version_offset: int, cause: str) -> Sent:
        value = {
            "meter_id": self.meter,
            "meter_key": self.meter_key,
            "line_id": f"L-{self.run}",
            "epoch": 2,
            "version_offset": version_offset,
            "shard": self.shard,
            "wanted": wanted,
            "mode": "prepaid",
            "cause": cause,
            "send_before_ms": T0 + version_offset + LEASE_MS if wanted == "open" else None,
            "account_id": self.account,
            "site_id": self.site,
            "available_nano": 0,
            "threshold_nano": 0,
            "account_sequence": 4,
            "account_revision": 1,
            "book_epoch": 0,
            **dict.fromkeys(
                (
                    "cause_meter_id",
                    "policy_id",
                    "policy_version",
                    "tariff_id",
                    "tariff_version",
                    "charge_epoch",
                    "charge_sequence",
                    "from_reading_id",
                    "to_reading_id",
                    "reading_received_at_ms",
                    "arrears_since_ms",
                    "notice_id",
                    "notice_outcome",
                )
            ),
            "currency": "CNY",
            "legal_entity": "LE1",
            "commodity": "electricity",
            "decided_at_ms": T0 + version_offset,
        }
        return self._hashed("relay-intents", self.site, "relay-intent", value, key=self.meter)

    # --- control and ingest -------------------------------------------------------------------

    def outcome(self, offset: int, wanted: str, attempt: int, result: str) -> Sent:
        confirmed = result == "confirmed"
        cause = "arrears" if offset == CUT_OFFSET else "lease-renewed"
        cause = cause if wanted == "open" else "paid"
        value = {
            "outcome_id": str(name_uuid("outcome", self.meter, offset, attempt, result)),
            "meter_id": self.meter,
            "site_id": self.site,
            "account_id": self.account,
            "line_id": f"L-{self.run}",
            "intent_epoch": 2,
            "intent_offset": offset,
            "wanted": wanted,
            "mode": "prepaid",
            "cause": cause,
            "send_before_ms": T0 + offset + LEASE_MS if wanted == "open" else None,
            "intent_decided_at_ms": T0 + offset,
            "attempt": attempt,
            "result": result,
            "detail": "",
            "request_id": None,
            "commanded_at_ms": T0 + 4_000,
            "completed_at_ms": T0 + 4_100 if result != "sent" else None,
            "read_back_position": wanted if confirmed else None,
            "read_back_began_at_ms": T0 + 4_200 if confirmed else None,
            "decided_at_ms": T0 + 4_000,
            "worker": "control-0",
        }
        return self._hashed("command-outcomes", self.site, "command-outcome", value, key=self.meter)

    def relay_state(self, position: str, began_at_ms: int) -> Sent:
        value = {
            "meter_id": self.meter,
            "meter_key": self.meter_key,
            "site_id": self.site,
            "line_id": f"L-{self.run}",
            "epoch": 2,
            "position": position,
            "closed_mask": 1 if position == "closed" else 0,
            "began_at_ms": began_at_ms,
            "received_at_ms": began_at_ms + 10,
            "device_time_ms": None,
            "by": "poll",
            "request_id": None,
            "worker": "ingest-0",
        }
        return self._hashed("relay-states", self.site, "relay-state", value, key=self.meter)

    def device_status(self, device_id: str, status: str) -> Sent:
        kind = device_id.partition("/")[0]
        value = {
            "device_id": device_id,
            "kind": kind.removesuffix("s"),
            "site_id": None if kind == "unknown" else self.site,
            "line_id": f"L-{self.run}",
            "status": status,
            "reason": "",
            "since_ms": T0,
            "last_seen_ms": T0,
            "quarantined_readings": 7 if status == "quarantined" else 0,
            "worker": "ingest-0",
            "clock_tended_at_ms": None,
            "clock_result": None,
            "clock_ahead_ms": None,
        }
        return self._hashed("device-status", f"L-{self.run}", "device-status", value, key=device_id)

    def _fact(self, kind: str, name: str, subject: str, value: Mapping[str, Any]) -> Sent:
        key = f"{kind}/{name}"
        return self._hashed("registry", key, subject, value, key=key)

    def _hashed(
        self, topic: str, route: str, subject: str, value: Mapping[str, Any], *, key: str
    ) -> Sent:
        partition = partition_of(route, catalogue().partitions_of(topic))
        return Sent(topic, partition, key, subject, value)
