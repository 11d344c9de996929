"""Histories of one shard's log, for the laws of metering.

Hypothesis draws a history as a list of short operations (`Op`: what happens, and small numbers);
`Book` plays vending, the devices and the broker and turns them into log records. So a failing
history shrinks to a few lines, and most of what is drawn is what the field would see: facts that
follow from each other, registers that count upwards, with every disorder of the field mixed in.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from hypothesis import strategies as st

from services.common.kernel.frames import (
    ABSENT_ELECTRICAL,
    ABSENT_POWER,
    ABSENT_POWER_FACTOR,
    ABSENT_REGISTER,
    READING,
    RELAY_REPORTED,
    ReadingFrame,
)
from services.common.kernel.ids import column_key, house_account_id, name_uuid, reading_id
from services.common.kernel.units import INT64_MAX
from services.metering.domain.messages import LogRecord
from tests.property.metering_model import WINDOWS_MAX, ScalarShard
from tests.property.metering_plans import (
    EVERY_DAY,
    FIVE,
    HOLIDAY,
    INSTANTS_MS,
    PLANS,
    VAT,
    WEEKDAY,
    WEEKEND,
    document,
    quarters,
    steps,
    table,
)
from tests.property.metering_tariff_model import Tariff

SHARD = 3
OTHER_SHARD = 5
FIRST_OFFSET = 100
START_MS = 1_800_000_000_000
SITE = "S1"
OTHER_SITE = "S2"
ACCOUNTS = ("A0", "A1", "A2", "A3")
METERS = ("M0", "M1", "M2", "M3", "M4", "M5")
TARIFFS = ("T0", "T1", "T2", "T3", "T4", "T5")
POLICIES = ("P0", "P1")
RATES_OF = {"M1": (0, 1, 2, 3), "M2": (0, 1, 2, 3, 4), "M4": (1, 3)}
"""The registers of rates that meters have: sharp 0 … deep valley 4."""
DAY_MS, QUARTER_MS = 86_400_000, 900_000
MICRO = 1_000_000
"""One currency unit per kWh; so a milli costs a thousandth: 1_000_000 nano."""
KWH_NANO = 10**9

PRICES_MICRO = (MICRO, 3 * MICRO, 0, 777_777, 10**12)
CREDITS_NANO = (
    *(0, 1, 2 * KWH_NANO, 10 * KWH_NANO, 5 * KWH_NANO, 30 * KWH_NANO, 10 * KWH_NANO),
    *(3 * KWH_NANO, 20 * KWH_NANO, 30 * KWH_NANO, 10 * KWH_NANO, 2**62),
)
THRESHOLDS_NANO = (  # alarm 1, alarm 2, overdraft, restore
    (5 * KWH_NANO, 2 * KWH_NANO, 0, 1),
    (5 * KWH_NANO, 2 * KWH_NANO, KWH_NANO, 3 * KWH_NANO),
    (0, 0, 0, 5 * KWH_NANO),
    (8 * KWH_NANO, 8 * KWH_NANO, 2 * KWH_NANO, -1),
    (-KWH_NANO, -3 * KWH_NANO, KWH_NANO, KWH_NANO),
)
RULES = (
    None,
    {"hysteresis_nano": KWH_NANO, "grace_minutes": 1, "unusual_factor": 2, "idle_days": 1},
    {"grace_minutes": 3, "qualities": "AM", "idle_days": 1},
    {"notice": {"lead_minutes": 1, "required": True}},
    {"notice": {"lead_minutes": 2}, "grace_minutes": 1, "qualities": "AVME"},
    {
        "zone": "Asia/Shanghai",  # where histories begin on a Friday at 16:00
        "no_cut": [
            {"days": [WEEKDAY], "begins": "16:04", "ends": "16:30"},
            {"days": [WEEKDAY, WEEKEND], "begins": "22:00", "ends": "08:00"},
            {"days": [HOLIDAY], "begins": "00:00", "ends": "00:00"},
        ],
        "unusual_factor": 3,
        "idle_days": 2,
        "holidays": ["2027-01-18"],
        "workdays": ["2027-01-16"],
    },
    {
        "zone": "America/St_Johns",
        "no_cut": [
            {"days": [*EVERY_DAY], "begins": "00:01", "ends": "02:30"},
            {"days": [WEEKEND], "begins": "23:59", "ends": "00:02"},
        ],
        "hysteresis_nano": 7,
    },
    {
        "zone": "Australia/Lord_Howe",
        "no_cut": [{"days": [WEEKDAY], "begins": "19:05", "ends": "19:05"}],
        "hysteresis_nano": 3 * KWH_NANO,
        "qualities": "AVE",
    },
)
"""Rules of policies, as documents."""
LEASES_MS = (300_000, 60_001, 1)
EVIDENCE_AGES_MS = (900_000, 60_000, 0)
RATIOS = (1, 1, 1, 1, 40, 1, 2_000_000_000)
MAX_POWERS_W = (None, 9_000, None, 0, 2**63 - 1, 60_000, 2_000_000)
REGISTER_MAXES_MILLI = (None, 19_999, 2_999, None, 9_999, None, 999_999)
STEPS_MS = (
    *(0, 500, 1_000, 20_000, 59_999, 60_000, 60_001, 300_000, 3_600_000),
    *(7_000_001, 90_000_000, 2_000_000_000, 3_456_000_000),
)
USES_MILLI = (0, 1, 300, 900, 1_700, 2_500, 9_000)
AGES_MS = (0, 0, 0, 0, 200, 59_999, 60_000, 60_001, 900_000, 900_001, 900_001, -5_000)
RELAY_BITS = (RELAY_REPORTED | 7, RELAY_REPORTED | 2, RELAY_REPORTED, 7, 0)
READING_KINDS = (
    *("next",) * 60,
    *("duplicate", "late", "negative", "absurd-register", "absurd-time", "unknown-meter"),
    *("other-epoch", "other-serial", "other-ratio", "jump", "huge", "zero-id", "below"),
    *("tenfold", "tenth", "spike", "same-time", "ahead", "fast", "pushed", "loaded", "loaded"),
    *("reversed", "rated", "brim", "brim", "kept"),
    *("brink", "beyond", "between", "between", "between", "between", "between-odd"),
)

YEARLY = {
    "period": "year",
    "steps": steps((700, 50_000), (2_500, 300_000), (15_000, -2), (60_000, 77_777)),
}
YEARLY_LATER = {
    "period": "year",
    "steps": steps((900, 9), (4_000, 100_000), (12_000, 400_003), (90_000, 0)),
}
TARIFF_PLANS: dict[str, tuple[str, ...]] = {
    **PLANS,
    # No ladder, or one on the account's year; plain, of a rate that is not called flat.
    "T3": (
        document("Asia/Shanghai", {"peak": 617_000}),
        document("Asia/Shanghai", {"flat": 488_300}, ladder=YEARLY),
        document(
            "America/St_Johns",
            FIVE,
            table(WEEKDAY, t0000="valley", t0600="sharp", t1000="flat", t1830="peak"),
            table(WEEKEND, t0000="valley", t1200="flat"),
            table(HOLIDAY, t0000="deep_valley"),
            holidays=["2027-12-31", "2028-01-01"],
            ladder=YEARLY_LATER,
            taxes=VAT,
        ),
    ),
    # A ladder of each rate of each meter, on its month; DST at midnight, and by half an hour.
    "T4": tuple(
        document(
            zone,
            {"sharp": 1_500_000, "valley": 300_001, "deep_valley": 8},
            table(*EVERY_DAY, **quarters("sharp", "valley", "deep_valley")),
            ladder={
                "period": "month",
                "scope": "meter",
                "basis": "rate",
                "rate_steps": {
                    "sharp": steps((400, -7), (1_500, 90_001)),
                    "deep_valley": steps((300, 13), (600, 5), (2_000, 40)),
                },
            },
            surcharges=[{"name": "fund", "price_micro": 3}],
            taxes=[{"name": "half", "ppm": 500_000, "base": ["energy", "surcharges"]}],
        )
        for zone in ("Asia/Beirut", "Australia/Lord_Howe")
    ),
    # Fees: a month that pays for all, or beside prices by the unit; where midnight is left out, and
    # comes twice; and a version without.
    "T5": (
        document(
            "America/Havana",
            {"flat": 0},
            fees=[
                {"name": "line", "period": "month", "amount_micro": 1_000_003},
                {"name": "meter", "period": "month", "amount_micro": 777},
            ],
            taxes=[{"name": "VAT", "ppm": 130_000, "base": ["energy", "fees"]}],
        ),
        document("Asia/Shanghai", {"flat": 1_000_000}),
        document(
            "Australia/Lord_Howe",
            {"peak": 900_000},
            fees=[{"name": "dear", "period": "day", "amount_micro": 10**13}],
        ),
        document(
            "Asia/Beirut",
            {"flat": 528_300},
            ladder={"period": "month", "steps": steps((900, 50_000))},
            fees=[
                {"name": "stand", "period": "day", "amount_micro": 300_001},
                {"name": "line", "period": "month", "amount_micro": 2_000_000},
            ],
            surcharges=[{"name": "fund", "price_micro": 3}],
            taxes=[
                {"name": "half", "ppm": 500_000, "base": ["fees"]},
                {"name": "VAT", "ppm": 130_000, "base": ["surcharges", "fees"]},
            ],
        ),
    ),
}


class Op(NamedTuple):
    """One thing that happens; the meaning of `a`..`d` is the kind's own."""

    kind: str
    a: int = 0
    b: int = 0
    c: int = 0
    d: int = 0


class Read(NamedTuple):
    """One reading of a frame: which meter, what is odd about it, use, age and relay bits."""

    meter: int
    kind: str = "next"
    use_milli: int = 300
    age_ms: int = 0
    relay_bits: int = RELAY_REPORTED | 7
    quality: str = "A"


class Frame(NamedTuple):
    """A reading frame, `step_ms` after the record before."""

    step_ms: int
    reads: tuple[Read, ...]


@dataclass(slots=True)
class Device:
    """A meter as the book and the field know it."""

    meter_id: str
    ratio: int
    max_power_w: int | None
    register_max_milli: int | None = None
    revision: int = -1
    epoch: int = 0
    owner: str | None = None
    shard: int = SHARD
    register_milli: int = 0
    time_ms: int = 0
    last: dict[str, Any] | None = None
    odd: dict[str, Any] | None = None
    """The first reading that jumped: what a person is likely asked about."""
    forced: str | None = None
    past: list[tuple[int, int]] = field(default_factory=list)
    """(device time, register) of readings that came, in their order."""
    fact: dict[str, Any] | None = None

    @property
    def serial(self) -> str:
        return f"SN-{self.meter_id}"


@dataclass(slots=True)
class Book:
    """Vending, the devices and the broker: turns operations into records of the shard's log."""

    now_ms: int = START_MS
    book_epoch: int = 0
    records: list[LogRecord] = field(default_factory=list)
    accounts: dict[str, dict[str, Any]] = field(default_factory=dict)
    tariffs: dict[str, dict[str, Any]] = field(default_factory=dict)
    policies: dict[str, dict[str, Any]] = field(default_factory=dict)
    devices: dict[str, Device] = field(default_factory=dict)
    facts: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    delayed: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    delay: int = 0
    holds: int = 0
    site_revision: int = -1
    elsewhere: frozenset[str] = frozenset({"A3"})
    """The accounts of the other shard."""

    def play(self, ops: Sequence[Op | Frame]) -> list[LogRecord]:
        """Return the log that `ops` leave behind."""
        for op in ops:
            if isinstance(op, Frame):
                self.now_ms += op.step_ms
                self._frame(op.reads)
            else:
                getattr(self, f"_{op.kind}")(op)
            self._release_delayed()
        for _, subject, fact in self.delayed:
            self._log(subject, fact)
        return self.records

    # -- the log ----------------------------------------------------------------------------

    def _log(self, subject: str, value: Any) -> None:
        offset = FIRST_OFFSET + len(self.records)
        self.records.append(LogRecord(offset, self.now_ms, subject, value))

    def _log_of(self, _shard: int) -> list[LogRecord]:
        return self.records

    def _shard_of(self, account_id: str) -> int:
        return OTHER_SHARD if account_id in self.elsewhere else SHARD

    def _fact(self, subject: str, fact: dict[str, Any]) -> None:
        fact["book_epoch"] = self.book_epoch
        self.facts.append((subject, dict(fact)))
        if self.delay:
            self.delayed.append((self.delay, subject, dict(fact)))
            self.delay = 0
        else:
            self._log(subject, dict(fact))

    def _release_delayed(self) -> None:
        waiting, self.delayed = self.delayed, []
        for left, subject, fact in waiting:
            if left == 0:
                self._log(subject, fact)
            else:
                self.delayed.append((left - 1, subject, fact))

    def _delay(self, op: Op) -> None:
        """Let the next fact arrive some operations late: out of its order."""
        self.delay = 1 + op.a % 3

    def _repeat(self, op: Op) -> None:
        """Let a fact of the past arrive again."""
        if self.facts:
            self._log(*self.facts[op.a % len(self.facts)])

    def _restored_book(self, _op: Op) -> None:
        """Publish every account and meter again, book epoch up: the store was restored."""
        self.book_epoch += 1
        for fact in self.accounts.values():
            self._fact("account-fact", fact)
        for device in self.devices.values():
            if device.fact is not None:
                self._fact("meter-fact", device.fact)

    def _wake(self, op: Op) -> None:
        self.now_ms += STEPS_MS[op.a % len(STEPS_MS)]
        self._log("wake", {"shard": SHARD, "due_ms": self.now_ms})

    def _quiet(self, op: Op) -> None:
        """Let a week pass, nearly or fully, before a wake comes."""
        self.now_ms += 7 * 86_400_000 - op.b % 2
        self._log("wake", {"shard": SHARD, "due_ms": self.now_ms})

    def _clock_back(self, op: Op) -> None:
        """Let the broker's clock step back; the shard's `now` must not."""
        self.now_ms -= 1_000 * (op.a % 90)

    # -- tariffs, policies, accounts --------------------------------------------------------

    def _site(self, _op: Op) -> None:
        self.site_revision += 1
        fact: dict[str, Any] = {"site_id": SITE, "display_name": "Site", "zone": "Asia/Shanghai"}
        fact |= {"currency": "CNY", "ledger_decimals": 9, "minor_decimals": 2}
        fact |= {"legal_entity": "L", "cuts_held": False, "cuts_per_minute": 10}
        self._fact("site-fact", {**fact, "revision": self.site_revision})

    def _tariff(self, op: Op) -> None:
        name = TARIFFS[op.a % len(TARIFFS)]
        fact = self.tariffs.get(name, {"version": 0, "revision": -1})
        first = fact["version"] == 0
        plans = (None, *TARIFF_PLANS[name]) if op.d % 2 else TARIFF_PLANS[name]
        plan = plans[op.b % len(plans)]
        lead_ms = (0, 3_600_000, 60_000, -60_000)[op.c % 4]
        self.tariffs[name] = {
            "tariff_id": name,
            "version": fact["version"] + 1,
            "kind": "plan" if plan else "flat",
            "commodity": "electricity",
            "currency": "CNY",
            "legal_entity": "L",
            "price_micro": 0 if plan else PRICES_MICRO[op.b % len(PRICES_MICRO)],
            "plan": plan,
            "effective_at_ms": 0 if first else self.now_ms + lead_ms,
            "published_at_ms": self.now_ms,
            "revision": fact["revision"] + 1,
        }
        self._fact("tariff-fact", self.tariffs[name])

    def _calendar(self, op: Op) -> None:
        """Let time pass until about a moment at which a day, a month or the clock changes."""
        ahead = [at_ms for at_ms in INSTANTS_MS if at_ms > self.now_ms]
        if ahead:
            before_ms = (3_600_000, 90_000, 0, -1_800_000)[op.b % 4]
            self.now_ms = max(self.now_ms, ahead[op.a % min(3, len(ahead))] - before_ms)

    def _policy(self, op: Op) -> None:
        name = POLICIES[op.a % len(POLICIES)]
        fact = self.policies.get(name, {"version": 0, "revision": -1})
        alarm_1, alarm_2, overdraft, restore = THRESHOLDS_NANO[op.b % len(THRESHOLDS_NANO)]
        self.policies[name] = {
            "policy_id": name,
            "version": fact["version"] + 1,
            "currency": "CNY",
            "alarm_1_nano": alarm_1,
            "alarm_2_nano": alarm_2,
            "overdraft_nano": overdraft,
            "restore_nano": restore,
            "lease_ms": LEASES_MS[op.c % len(LEASES_MS)],
            "max_evidence_age_ms": EVIDENCE_AGES_MS[op.d % len(EVIDENCE_AGES_MS)],
            "rules": _document(RULES[(op.b + op.c + op.d) % len(RULES)]),
            "published_at_ms": self.now_ms,
            "revision": fact["revision"] + 1,
        }
        self._fact("policy-fact", self.policies[name])

    def _open(self, op: Op) -> None:
        """Open an account; where it is open already, change its tariff or its policy."""
        name = ACCOUNTS[op.a % len(ACCOUNTS)]
        fact = self.accounts.get(name, {"credited_nano": 0, "held_nano": 0, "revision": -1})
        self.accounts[name] = {
            "account_id": name,
            "account_key": column_key("account", name),
            "shard": self._shard_of(name),
            "site_id": SITE if name != "A1" else OTHER_SITE,
            "subject_id": None,
            "status": "open",
            "currency": "CNY",
            "legal_entity": f"L{op.c % 2}",
            "commodity": "electricity",
            "tariff_id": TARIFFS[op.b % len(TARIFFS)],
            "policy_id": POLICIES[op.c % len(POLICIES)],
            "credited_nano": _credited(fact, op.d),
            "held_nano": fact["held_nano"],
            "hold_id": None,
            "keep_power_until_ms": fact.get("keep_power_until_ms"),
            "promise_until_ms": fact.get("promise_until_ms"),
            "thaw_id": fact.get("thaw_id"),
            "notice_id": fact.get("notice_id"),
            "notice_outcome": fact.get("notice_outcome"),
            "revision": fact["revision"] + 1,
        }
        self._fact("account-fact", self.accounts[name])

    def _account(self, op: Op, **changes: Any) -> None:
        name = ACCOUNTS[op.a % len(ACCOUNTS)]
        fact = self.accounts.get(name)
        if fact is not None:
            fact |= changes
            fact["revision"] += 1
            self._fact("account-fact", fact)

    def _sell(self, op: Op) -> None:
        fact = self.accounts.get(ACCOUNTS[op.a % len(ACCOUNTS)], {"credited_nano": 0})
        self._account(op, credited_nano=_credited(fact, op.b))

    def _hold(self, op: Op) -> None:
        """Credit is held back and, mostly, metering is asked for an echo."""
        self.holds += op.c % 3 != 0
        hold = str(name_uuid("hold", self.holds)) if op.c % 4 else None
        self._account(op, held_nano=CREDITS_NANO[op.b % len(CREDITS_NANO)], hold_id=hold)

    def _ask(self, op: Op) -> None:
        """Vending asks what an account was charged, twice at times."""
        name = ACCOUNTS[op.a % len(ACCOUNTS)]
        ask = {"account_id": name, "account_key": column_key("account", name)}
        ask_id = str(name_uuid("ask", name, self.now_ms))
        for _ in range(1 + (op.b == 0)):
            self._log("usage-ask", {**ask, "ask_id": ask_id, "asked_at_ms": self.now_ms})

    def _order(self, op: Op) -> None:
        """Keep an account on power, or take its promise, for a while or no longer."""
        until_ms = (None, self.now_ms + STEPS_MS[op.d % len(STEPS_MS)])[op.c % 4 > 0]
        if op.b % 2:
            self._account(op, keep_power_until_ms=until_ms)
        else:
            self._account(op, promise_until_ms=until_ms)

    def _thaw(self, op: Op) -> None:
        """Order that an account be charged again, frozen or not."""
        self._account(op, thaw_id=str(name_uuid("thaw", op.a, op.c, self.now_ms)))

    def _outcome(self, op: Op) -> None:
        """Let it be known what became of the notice that stands, or of one that does not.

        Which one stands the log alone decides, so the model is asked.
        """
        name = ACCOUNTS[op.a % len(ACCOUNTS)]
        model = ScalarShard(self._shard_of(name))
        for record in self._log_of(model.shard):
            model.absorb(record)
        account = model.accounts.get(column_key("account", name))
        notice_id = account and model.notice_of(account)[0]
        self._account(
            op,
            notice_id=notice_id or str(name_uuid("notice", name, op.b)),
            notice_outcome=("delivered", "delivered", "failed")[op.c % 3],
        )

    def _status(self, op: Op) -> None:
        self._account(op, status=("open", "closing", "closed")[op.b % 3])

    # -- meters -----------------------------------------------------------------------------

    def _register(self, op: Op) -> None:
        """Register a meter: it stands in its house account."""
        name = METERS[op.a % len(METERS)]
        if name not in self.devices:
            ratio = RATIOS[op.b % len(RATIOS)]
            power_w = MAX_POWERS_W[op.c % len(MAX_POWERS_W)]
            highest_milli = REGISTER_MAXES_MILLI[op.c % len(REGISTER_MAXES_MILLI)]
            device = self.devices[name] = Device(name, ratio, power_w, highest_milli)
            device.register_milli = 1_000 * (op.d % 4)
            house = house_account_id(name)
            self._hand_over(device, house, self._shard_of(house), None, None)

    def _assign(self, op: Op) -> None:
        """Assign a meter to another account, or home, or anew to its own."""
        device = self.devices.get(METERS[op.a % len(METERS)])
        if device is None:
            return
        target = (*ACCOUNTS, "home", "home-elsewhere", *ACCOUNTS)[op.b % 10]
        owner = house_account_id(device.meter_id) if target.startswith("home") else target
        shard = OTHER_SHARD if target == "home-elsewhere" else self._shard_of(owner)
        last = device.register_milli
        closing = (last, last, last + 400, max(0, last - 700), 0, last + 10**15)[op.c % 6]
        opening = (closing, closing, closing, None, last + 500)[op.d % 5]
        self._hand_over(device, owner, shard, closing, opening)

    def _replace(self, op: Op) -> None:
        """Replace a device, or its transformers; the closing register is one that may be, or not.

        The most that the load allows since the last reading, the least that a person need not
        confirm, and a thousandth more or less.
        """
        device = self.devices.get(METERS[op.a % len(METERS)])
        if device is None or device.owner is None:
            return
        risen_milli = _allowed_milli(device, self.now_ms - device.time_ms) or 300
        fallen_milli = _allowed_milli(device, 2**31) or 300
        last = device.register_milli
        closing = (
            last
            + (
                *(0, 300, risen_milli, risen_milli + 1, 10**9),
                *(-fallen_milli, -fallen_milli - 1, -(10**9)),
            )[op.b % 8]
        )
        device.register_milli = (closing, 0, 10**10)[op.c % 3]
        self._hand_over(device, device.owner, device.shard, closing, device.register_milli)
        closing_id = name_uuid("closing", device.meter_id, device.epoch)
        device.odd = {"reading_id": closing_id.bytes, "register_milli": device.register_milli}

    def _overtake(self, op: Op) -> None:
        """Assign a meter twice; the later fact arrives first, so the earlier one is old."""
        self.delay = 2
        self._assign(op)
        self._assign(op._replace(b=op.b + 1))

    def _hand_over(
        self, device: Device, owner: str, shard: int, closing: int | None, opening: int | None
    ) -> None:
        before, before_shard, before_epoch = device.owner, device.shard, device.epoch
        device.revision += 1
        device.epoch += before is not None
        device.owner, device.shard, device.odd = owner, shard, None
        device.fact = {
            "meter_id": device.meter_id,
            "meter_key": column_key("meter", device.meter_id),
            "serial": device.serial,
            "site_id": SITE,
            "gateway_id": "G1",
            "line_id": "G1/1",
            "unit": 1,
            "profile": "acrel-ddsy1352",
            "commodity": "electricity",
            "ratio": device.ratio,
            "max_power_w": device.max_power_w,
            "epoch": device.epoch,
            "account_id": owner,
            "account_key": column_key("account", owner),
            "is_house": owner.startswith("house:"),
            "shard": shard,
            "currency": "CNY",
            "legal_entity": "L",
            "opening_register_milli": opening,
            "previous_account_id": before,
            "previous_account_key": None if before is None else column_key("account", before),
            "previous_shard": None if before is None else before_shard,
            "previous_epoch": None if before is None else before_epoch,
            "closing_register_milli": None if before is None else closing,
            "register_max_milli": device.register_max_milli,
            "forced": device.forced,
            "resolves_reading_id": None,
            "resolution": None,
            "revision": device.revision,
        }
        self._fact("meter-fact", device.fact)

    def _resolve(self, op: Op) -> None:
        """Let a person judge the reading that a meter is likely held for, mostly."""
        waiting = [device for device in self.devices.values() if device.odd is not None]
        if not waiting:
            return
        device = waiting[op.a % len(waiting)]
        assert device.fact is not None
        odd = device.odd if op.c % 6 else device.last
        resolution = ("accept", "reject", "accept", None)[op.b % 4]
        device.revision += 1
        device.fact |= {
            "revision": device.revision,
            "resolution": resolution,
            "resolves_reading_id": odd and str(UUID(bytes=odd["reading_id"])),
        }
        self._fact("meter-fact", device.fact)
        if resolution == "accept" and odd:
            device.register_milli = max(device.register_milli, odd["register_milli"])
        device.odd = None

    def _force(self, op: Op) -> None:
        """Let a person hold a relay in a position, or end that."""
        device = self.devices.get(METERS[op.a % len(METERS)])
        if device is not None and device.fact is not None:
            device.forced = ("off", "on", None, None)[op.b % 4]
            device.revision += 1
            device.fact = {**device.fact, "forced": device.forced, "revision": device.revision}
            self._fact("meter-fact", device.fact)

    # -- readings ---------------------------------------------------------------------------

    def _frame(self, reads: Sequence[Read]) -> None:
        rows = np.zeros(len(reads), READING)
        for row, read in zip(rows, reads, strict=True):
            for name, value in self._reading(read).items():
                row[name] = value
        self._log("reading-frame", ReadingFrame(SHARD, "w0", "run", len(self.records), rows))

    def _routine(self, op: Op) -> None:
        """Let a meter tell three weeks at once, of which each day is like the last, but one."""
        name = METERS[op.a % len(METERS)]
        device = self.devices.get(name)
        if device is None:
            return
        begins_ms, told = max(self.now_ms, device.time_ms + 1), []
        self.now_ms = begins_ms + 22 * DAY_MS
        for day in range(22):
            usual = (300, 0, 1_100, 30_000)[op.b % 4] + 7 * (day % 3)
            use = usual if day < 21 else (9_000, 2_000, usual, 60_000)[op.c % 4]
            for after_ms, milli in ((0, 40), (QUARTER_MS + op.d % 2, use)):
                at_ms = begins_ms + day * DAY_MS + after_ms
                reading = self._honest(device, Read(op.a, use_milli=milli))
                register = reading["register_milli"]
                reading["device_time_ms"] = at_ms
                reading["reading_id"] = reading_id(device.serial, at_ms, (register,)).bytes
                device.register_milli, device.time_ms, device.last = register, at_ms, reading
                told.append(reading)
        rows = np.zeros(len(told), READING)
        for row, reading in zip(rows, told, strict=True):
            for column, value in reading.items():
                row[column] = value
        self._log("reading-frame", ReadingFrame(SHARD, "w0", "run", len(self.records), rows))

    def _reading(self, read: Read) -> dict[str, Any]:
        name = METERS[read.meter % len(METERS)]
        device = self.devices.get(name) or Device(name, 1, None)
        reading = self._honest(device, read)
        if read.kind != "next":
            _ODD[read.kind](reading, device)
        reading["rate_registers_milli"] = rate_registers(name, reading["register_milli"])
        if device.odd is None and _jumps(reading, device):
            device.odd = reading
        if read.kind in _TRUE:
            device.register_milli = reading["register_milli"]
            device.time_ms = reading["device_time_ms"]
            device.last = reading
            device.past.append((device.time_ms, device.register_milli))
        return reading

    def _honest(self, device: Device, read: Read) -> dict[str, Any]:
        received_ms = self.now_ms - read.age_ms
        time_ms = max(device.time_ms + 1, received_ms - 700)
        register = device.register_milli + read.use_milli
        if device.register_max_milli is not None and device.register_milli < 10**6:
            register %= device.register_max_milli + 1
        identity = reading_id(device.serial, time_ms, (register,))
        return {
            "meter_key": column_key("meter", device.meter_id),
            "epoch": device.epoch,
            "serial": device.serial.encode(),
            "reading_id": identity.bytes,
            "device_time_ms": time_ms,
            "began_at_ms": received_ms - 50,
            "received_at_ms": received_ms,
            "register_milli": register,
            "rate_registers_milli": rate_registers(device.meter_id, register),
            "ratio": device.ratio,
            "quality": ord(read.quality),
            "relay_bits": read.relay_bits,
            "voltage_mv": (ABSENT_ELECTRICAL,) * 3,
            "current_ma": (ABSENT_ELECTRICAL,) * 3,
            "power_w": ABSENT_POWER,
            "power_factor_milli": ABSENT_POWER_FACTOR,
        }


def rate_registers(meter_id: str, register_milli: int) -> tuple[int, ...]:
    """Return the registers of rates of a meter that has them: they take turns every 700 milli.

    Those of M1 are always right. Others round, and now and then by more than may be.
    """
    rates = RATES_OF.get(meter_id, ())
    turns, left = divmod(register_milli, 700 * max(len(rates), 1))
    found = [ABSENT_REGISTER] * 5
    for place, rate in enumerate(rates):
        found[rate] = turns * 700 + min(max(left - 700 * place, 0), 700)
    if rates and meter_id != "M1":
        found[rates[0]] += (0, 30, 30, 60)[register_milli // 5_000 % 4]
    return tuple(found)


def _document(rules: dict[str, Any] | None) -> str | None:
    return None if rules is None else json.dumps(rules)


def _credited(fact: dict[str, Any], more: int) -> int:
    """Return what an account's credit is after a sale; vending sells no more than int64 holds."""
    credited = fact["credited_nano"] + CREDITS_NANO[more % len(CREDITS_NANO)]
    return int(min(credited, INT64_MAX))


def _between(reading: dict[str, Any], device: Device) -> None:
    """Let a reading come late, from between two of the last that came before it."""
    if len(device.past) > 1:
        turn = reading["register_milli"]
        chosen = max(0, len(device.past) - 2 - turn % 4)
        (begins_ms, first), (ends_ms, last) = device.past[chosen : chosen + 2]
        at_ms = (2 * begins_ms + 3 * ends_ms) // 5
        register = first + (last - first) * (turn % 3) // 2
        reading["device_time_ms"], reading["register_milli"] = at_ms, register
        reading["reading_id"] = reading_id(device.serial, at_ms, (register,)).bytes


def _between_odd(reading: dict[str, Any], device: Device) -> None:
    """Let it have a register that does not lie between theirs."""
    _between(reading, device)
    reading["register_milli"] += 10_000


def _duplicate(reading: dict[str, Any], device: Device) -> None:
    reading.update(device.last or {})


def _late(reading: dict[str, Any], device: Device) -> None:
    reading["device_time_ms"] = max(1, device.time_ms - 1_000)


def _negative(reading: dict[str, Any], device: Device) -> None:
    reading["register_milli"] = max(0, device.register_milli - 1)


def _absurd_register(reading: dict[str, Any], device: Device) -> None:
    reading["register_milli"] = -1 if device.register_milli % 2 else 10**15 + 1


def _absurd_time(reading: dict[str, Any], _device: Device) -> None:
    reading["device_time_ms"] = 0


def _unknown_meter(reading: dict[str, Any], _device: Device) -> None:
    reading["meter_key"] = 7


def _other_epoch(reading: dict[str, Any], _device: Device) -> None:
    reading["epoch"] += 1


def _other_serial(reading: dict[str, Any], _device: Device) -> None:
    reading["serial"] = b"SN-OTHER-OF-20-BYTES"


def _other_ratio(reading: dict[str, Any], _device: Device) -> None:
    reading["ratio"] += 1


def _jump(reading: dict[str, Any], _device: Device) -> None:
    """Use far more; the device counts on from there. Plausible where no bound is known."""
    reading["register_milli"] += 20_000


def _brink(reading: dict[str, Any], device: Device) -> None:
    """Let the register rise by the most that the load behind the meter can take (rule 3)."""
    highest = _highest(reading, device)
    if highest is not None:
        reading["register_milli"] = highest


def _jumps(reading: dict[str, Any], device: Device) -> bool:
    if reading["device_time_ms"] <= device.time_ms:
        return False
    highest = _highest(reading, device)
    beyond = highest is not None and reading["register_milli"] > highest
    return beyond or reading["register_milli"] < device.register_milli


def _highest(reading: dict[str, Any], device: Device) -> int | None:
    """Return the highest register that rule 3 lets a reading have; None: any."""
    allowed_milli = _allowed_milli(device, reading["device_time_ms"] - device.time_ms)
    return None if allowed_milli is None else device.register_milli + allowed_milli


def _allowed_milli(device: Device, duration_ms: int) -> int | None:
    """Return by how much rule 3 lets the register rise in a while; None: by whatever."""
    if device.max_power_w is None or device.max_power_w > 10**8:
        return None
    allowed_milli = device.max_power_w * min(duration_ms, 2**31) // 3_000_000 + 100 * device.ratio
    return allowed_milli // device.ratio


def _beyond(reading: dict[str, Any], device: Device) -> None:
    """Let the register rise by a thousandth of a unit more."""
    _brink(reading, device)
    reading["register_milli"] += 1


def _huge(reading: dict[str, Any], _device: Device) -> None:
    reading["register_milli"] = 10**15


def _tenfold(reading: dict[str, Any], device: Device) -> None:
    """Let the register be ten times, or a hundred times, what it should."""
    if device.max_power_w is not None:
        reading["register_milli"] *= 10 if device.register_milli % 2 else 100


def _tenth(reading: dict[str, Any], device: Device) -> None:
    reading["register_milli"] //= 10 if device.register_milli % 2 else 100


def _spike(reading: dict[str, Any], device: Device) -> None:
    """Let a register jump that no load explains, and not by a scale."""
    if device.max_power_w is not None:
        reading["register_milli"] += 777_777_777


def _brim(reading: dict[str, Any], device: Device) -> None:
    """Let the register come close to its highest value, behind which it begins anew."""
    highest = _highest(reading, device)
    if device.register_max_milli is not None and highest is not None:
        near_milli = device.register_max_milli - device.register_milli % 2
        reading["register_milli"] = max(device.register_milli, min(near_milli, highest))


def _same_time(reading: dict[str, Any], device: Device) -> None:
    """Let a register be told again for the same instant, another one."""
    reading["device_time_ms"] = device.time_ms
    if device.register_milli % 2:
        reading["register_milli"] = max(0, device.register_milli - 1)


def _ahead(reading: dict[str, Any], _device: Device) -> None:
    reading["device_time_ms"] = reading["received_at_ms"] + 300_001


def _fast(reading: dict[str, Any], device: Device) -> None:
    """Let the clock go wrong by no more than what is charged."""
    ahead_ms = 120_001 if device.register_milli % 2 else -120_001
    reading["device_time_ms"] = reading["received_at_ms"] + ahead_ms


def _pushed(reading: dict[str, Any], device: Device) -> None:
    """Let the gateway push what it kept."""
    _fast(reading, device)
    reading["began_at_ms"] = reading["received_at_ms"]


def _kept(reading: dict[str, Any], device: Device) -> None:
    """Let the gateway push what it took long ago, by a millisecond more or less than is evidence.

    Of 15 min and a clock 2 min off, or of a minute and that.
    """
    age_ms = (1_020_000, 1_020_001, 180_000, 180_001)[device.register_milli % 4]
    kept_ms = reading["received_at_ms"] - age_ms
    reading["device_time_ms"] = max(device.time_ms + 1, kept_ms)
    reading["began_at_ms"] = reading["received_at_ms"]


def _loaded(reading: dict[str, Any], device: Device) -> None:
    """Let the register stand although power flows."""
    reading["register_milli"] = device.register_milli
    reading["power_w"] = 2**62 if device.register_milli % 2 else 500


def _reversed(reading: dict[str, Any], _device: Device) -> None:
    reading["power_w"] = -1


def _rated(reading: dict[str, Any], _device: Device) -> None:
    """Let registers of rates come along: two that make the total, or something else."""
    total = reading["register_milli"]
    odd = (0, 50, 51, 2**62)[reading["device_time_ms"] // 100 % 4]
    reading["rate_registers_milli"] = (total - total // 3 + odd, ABSENT_REGISTER, total // 3, -1, 0)


def _zero_id(reading: dict[str, Any], _device: Device) -> None:
    reading["reading_id"] = UUID(int=0).bytes


def _below(reading: dict[str, Any], _device: Device) -> None:
    reading["register_milli"] = 0


_ODD = {
    "duplicate": _duplicate,
    "late": _late,
    "negative": _negative,
    "absurd-register": _absurd_register,
    "absurd-time": _absurd_time,
    "unknown-meter": _unknown_meter,
    "other-epoch": _other_epoch,
    "other-serial": _other_serial,
    "other-ratio": _other_ratio,
    "jump": _jump,
    "huge": _huge,
    "zero-id": _zero_id,
    "brim": _brim,
    "same-time": _same_time,
    "ahead": _ahead,
    "fast": _fast,
    "pushed": _pushed,
    "kept": _kept,
    "loaded": _loaded,
    "reversed": _reversed,
    "rated": _rated,
    "tenfold": _tenfold,
    "tenth": _tenth,
    "spike": _spike,
    "below": _below,
    "brink": _brink,
    "beyond": _beyond,
    "between": _between,
    "between-odd": _between_odd,
}

_TRUE = (
    *("next", "jump", "brink", "brim", "fast", "pushed", "kept", "loaded", "reversed", "rated"),
)
"""What a device that counts on remembers."""

SETTLED: tuple[Op | Frame, ...] = (
    Op("site"),
    Op("tariff", 0, 0, 0, 3),
    Op("tariff", 1, 3),
    Op("tariff", 2, 4),
    Op("policy", 0),
    Op("open", 0, 0, 0, 3),
    Op("open", 1, 0, 0, 2),
    Op("register", 0, 0, 6),
    Op("register", 1),
    Op("register", 2, 4, 1),
    Frame(1_000, (Read(0), Read(1), Read(2))),
    Op("assign", 0, 0),
    Op("assign", 1, 0),
    Op("assign", 2, 1),
)
"""How half of the histories begin: two accounts with credit, the first of them with two meters."""


def calendared(one: int, other: int) -> tuple[Op | Frame, ...]:
    """Return a beginning like SETTLED, the accounts under two tariffs with calendars."""
    priced = {0: one, 1: other}
    head: list[Op | Frame] = []
    for op in SETTLED:
        if isinstance(op, Op) and op.kind == "tariff":
            continue
        if isinstance(op, Op) and op.kind == "policy":
            head += [Op("tariff", number, 2 + number) for number in range(len(TARIFFS))]
            head.append(Op("policy", 1))
        opens = isinstance(op, Op) and op.kind == "open"
        head.append(op._replace(b=priced[op.a]) if opens and isinstance(op, Op) else op)
    return tuple(head)


CALENDARS = ((0, 3), (1, 2), (2, 4), (3, 1), (4, 0), (5, 5), (5, 2))
CALENDARED = tuple(calendared(*pair) for pair in CALENDARS)
"""How most others begin: the same under tariffs with calendars and ladders, each equally often."""

_small = st.integers(0, 11)
_which = st.sampled_from((0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5))
_kinds = st.sampled_from(
    (
        *("sell", "sell", "assign", "wake", "resolve", "resolve", "resolve") * 3,
        *("replace",) * 3,
        *("hold", "ask", "policy", "tariff", "open", "register", "status", "calendar", "calendar")
        * 2,
        *("tariff", "order", "force", "thaw", "thaw"),
        *(
            "overtake",
            "overtake",
            "site",
            "quiet",
            "delay",
            "delay",
            "repeat",
            "repeat",
            "restored_book",
            "clock_back",
        ),
    )
)
_ops = st.builds(Op, _kinds, _which, _small, _small, _small)
_reads = st.builds(
    Read,
    _which,
    st.sampled_from(READING_KINDS),
    st.sampled_from(USES_MILLI),
    st.sampled_from(AGES_MS),
    st.sampled_from(RELAY_BITS),
    st.sampled_from("AAAAAAVEM"),
)
_frames = st.builds(
    Frame, st.sampled_from(STEPS_MS), st.lists(_reads, min_size=1, max_size=9).map(tuple)
)
_steps = st.lists(st.one_of(_frames, _ops), max_size=20)
_bodies = st.tuples(_steps, _steps, _steps).map(lambda parts: [*parts[0], *parts[1], *parts[2]])


_shape_reads = st.builds(
    Read,
    st.sampled_from((0, 0, 1, 1, 2)),
    st.sampled_from(("next",) * 4 + ("between",) * 3 + ("between-odd",)),
    st.sampled_from((0, 300, 1_700, 9_000)),
    st.just(0),
    st.just(RELAY_REPORTED | 7),
    st.just("A"),
)
_shape_steps = st.sampled_from(
    (60_001, 1_000_000, 7_000_001, 90_000_000, 2_000_000_000, 3_456_000_000)
)
_shape_frames = st.builds(
    Frame, _shape_steps, st.lists(_shape_reads, min_size=1, max_size=4).map(tuple)
)
_shape_kinds = st.sampled_from(
    ("tariff", "tariff", "calendar", "calendar", "open", "assign", "ask")
)
_shape_ops = st.builds(
    Op, _shape_kinds, st.sampled_from((0, 0, 1, 2, 3, 4)), _small, _small, _small
)
_shape_bodies = st.lists(st.one_of(_shape_frames, _shape_frames, _shape_ops), max_size=40)


_odd_reads = st.builds(
    Read,
    st.sampled_from((0, 0, 0, 2)),
    st.sampled_from(
        (
            *("next",) * 12,
            *("spike", "tenfold", "tenth", "negative", "below", "beyond", "other-serial"),
            *("same-time", "ahead", "fast", "pushed", "loaded", "loaded", "reversed", "rated"),
            *("rated", "brim", "brim", "brim"),
        )
    ),
    st.sampled_from((0, 100, 101, 1_700, 9_000)),
    st.just(0),
    st.sampled_from((RELAY_REPORTED | 7, RELAY_REPORTED)),
    st.just("A"),
)
_odd_frames = st.builds(
    Frame,
    st.sampled_from((300_000, 900_000, 900_000, 3_600_001, 90_000_000)),
    st.lists(_odd_reads, min_size=1, max_size=4).map(tuple),
)
_resolutions = st.builds(
    Op,
    st.sampled_from(("resolve",) * 6 + ("assign", "calendar", "quiet")),
    _small,
    _small,
    _small,
    _small,
)
_replacements = st.tuples(
    _odd_frames,
    st.builds(Op, st.just("replace"), st.sampled_from((0, 2)), _small, _small),
    st.builds(Op, st.sampled_from(("resolve", "resolve", "wake")), _small, _small, st.just(1)),
)
"""A device that was read is replaced, and mostly a person says at once what is true."""
_odd_parts = st.one_of(
    st.tuples(_odd_frames), st.tuples(_odd_frames), st.tuples(_resolutions), _replacements
)
_odd_bodies = st.lists(_odd_parts, max_size=30).map(lambda parts: [*chain(*parts)])


def oddities() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs in which registers jump and people say what is true: what rule 3 is about."""
    heads = st.sampled_from((SETTLED, *CALENDARED))
    return st.builds(lambda head, body: Book().play([*head, *body]), heads, _odd_bodies)


def shapes() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs in which little goes wrong and time passes: what tariffs are about."""
    heads = st.sampled_from(CALENDARED)
    return st.builds(lambda head, body: Book().play([*head, *body]), heads, _shape_bodies)


def _ruled(number: int) -> tuple[Op | Frame, ...]:
    """Return a beginning like SETTLED, with less credit, under a policy with rules."""
    turned = {
        Op("policy", 0): Op("policy", 0, 0, 0, number),
        Op("open", 0, 0, 0, 3): Op("open", 0, 0, 0, 2),
        Op("open", 1, 0, 0, 2): Op("open", 1, 0, 0, 7),
        Op("register", 2, 4, 1): Op("register", 2),
    }
    return tuple(turned.get(op, op) if isinstance(op, Op) else op for op in SETTLED)


_arrears_reads = st.builds(
    Read,
    st.sampled_from((0, 0, 1, 1, 2)),
    st.sampled_from(("next", "next", "next", "kept")),
    st.sampled_from((0, 300, 1_700, 1_700, 9_000)),
    st.sampled_from((0, 0, 0, 0, 0, 60_001, 900_001)),
    st.sampled_from(RELAY_BITS),
    st.sampled_from("AAAAAVEM"),
)
_arrears_frames = st.builds(
    Frame,
    st.sampled_from((1_000, 30_000, 61_000, 130_000, 300_000, 3_600_000, 21_600_000)),
    st.lists(_arrears_reads, min_size=1, max_size=3).map(tuple),
)
_arrears_ops = st.builds(
    Op,
    st.sampled_from(
        (*("sell", "order", "outcome", "force") * 3, "hold", "policy", "calendar", "assign")
    ),
    st.sampled_from((0, 0, 0, 1, 2)),
    _small,
    _small,
    _small,
)
_arrears_steps = st.lists(
    st.one_of(_arrears_frames, _arrears_frames, _arrears_ops), min_size=4, max_size=20
)
_arrears_bodies = st.tuples(_arrears_steps, _arrears_steps).map(lambda both: [*both[0], *both[1]])


def arrears() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs of accounts that run out and are kept on power for a while: what rules say."""
    noticed = [number for number, rules in enumerate(RULES) if rules and "notice" in rules]
    heads = st.sampled_from([_ruled(number) for number in (*range(len(RULES)), *noticed * 2)])
    return st.builds(lambda head, body: Book().play([*head, *body]), heads, _arrears_bodies)


_habit_ops = st.builds(
    Op,
    st.sampled_from((*("routine",) * 4, "policy", "replace", "resolve", "open")),
    st.sampled_from((0, 0, 1, 2)),
    _small,
    _small,
    _small,
)
_habit_bodies = st.lists(st.one_of(_odd_frames, _arrears_frames, _habit_ops), max_size=12)


def routines() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs of meters that take much the same day by day, and then do not."""
    asking = [number for number, rules in enumerate(RULES) if rules and "unusual_factor" in rules]
    heads = st.sampled_from([_ruled(number) for number in (*asking, *asking, 0)])
    return st.builds(lambda head, body: Book().play([*head, *body]), heads, _habit_bodies)


_steady_kinds = st.sampled_from(("calendar", "calendar", "assign", "sell", "ask"))
_steady_ops = st.builds(Op, _steady_kinds, st.sampled_from((0, 1, 2)), _small, _small, _small)
_steady_bodies = st.lists(st.one_of(_shape_frames, _shape_frames, _steady_ops), max_size=40)


def steady() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs like `shapes` in which no account gets another tariff, nor a tariff a version."""
    heads = st.sampled_from(CALENDARED)
    return st.builds(lambda head, body: Book().play([*head, *body]), heads, _steady_bodies)


def _gathered(head: tuple[Op | Frame, ...]) -> tuple[Op | Frame, ...]:
    """Return a beginning after which all meters but one stand in the first account."""
    more = [op for number in (3, 4, 5) for op in (Op("register", number), Op("assign", number, 0))]
    return (*head, *more)


_merged_reads = st.builds(
    Read,
    st.integers(0, 5),
    st.sampled_from((*("next",) * 24, "duplicate", "tenfold", "other-serial", "rated", "between")),
    st.sampled_from((0, 1, 300, 300, 900, 2_500)),
    st.just(0),
    st.sampled_from((*(RELAY_REPORTED | 7,) * 3, RELAY_REPORTED)),
    st.sampled_from("AAAAAE"),
)
_merged_frames = st.builds(
    Frame,
    st.sampled_from((1_000, 60_001, 900_000, 900_000, 3_600_000, 7_000_001, 90_000_000)),
    st.lists(_merged_reads, min_size=3, max_size=12).map(tuple),
)
_merged_kinds = st.sampled_from(
    (
        *("sell", "resolve", "calendar", "tariff") * 2,
        *("policy", "open", "assign", "order", "wake", "ask"),
    )
)
_merged_ops = st.builds(Op, _merged_kinds, st.sampled_from((0, 0, 1, 2)), _small, _small, _small)
_merged_bodies = st.lists(st.one_of(_merged_frames, _merged_frames, _merged_ops), max_size=30)


def merged() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs in which frames hold many readings of one account: what goes at once of them."""
    heads = (SETTLED, *CALENDARED, *map(_ruled, range(len(RULES))))
    return st.builds(
        lambda head, body: Book().play([*_gathered(head), *body]),
        st.sampled_from(heads),
        st.one_of(_merged_bodies, _bodies),
    )


def histories() -> st.SearchStrategy[list[LogRecord]]:
    """Return logs of some thirty records, at most about eighty."""
    heads = st.sampled_from((SETTLED,) * 5 + CALENDARED + ((),))
    return st.builds(lambda head, body: Book().play([*head, *body]), heads, _bodies)


# -- readings in any order --------------------------------------------------------------------


class Reordering(NamedTuple):
    """A settled meter, and readings of it that may arrive in another order.

    `facts`: the log before them; `readings` ascend, (device time, register); `order`: as they
    arrive, the earliest first. They straddle no more edges than a meter keeps windows: so whatever
    the order, no interval that was split is forgotten.
    """

    facts: tuple[LogRecord, ...]
    readings: tuple[tuple[int, int], ...]
    order: tuple[int, ...]
    tariff: Tariff

    def log(self, order: Sequence[int]) -> list[LogRecord]:
        """Return the log in which the readings arrive in `order`, a frame each."""
        now_ms = self.readings[-1][0] + 1_000
        last = self.facts[-1].offset
        frames = [one_reading(*self.readings[place]) for place in order]
        return [
            *self.facts,
            *(
                LogRecord(offset, now_ms, "reading-frame", frame)
                for offset, frame in enumerate(frames, last + 1)
            ),
        ]


def one_reading(at_ms: int, register_milli: int) -> ReadingFrame:
    """Return the frame of one reading of the meter of a Reordering."""
    device = Device(METERS[1], 1, None, epoch=1, register_milli=register_milli, time_ms=at_ms - 1)
    book = Book(now_ms=at_ms)
    rows = np.zeros(1, READING)
    for name, value in book._honest(device, Read(1, use_milli=0)).items():
        rows[0][name] = value
    return ReadingFrame(SHARD, "w0", "run", 0, rows)


@st.composite
def reorderings(draw: st.DrawFn) -> Reordering:
    """Return readings about an instant at which a calendar does something, under any plan.

    Of one version or of two that change about there; the account begins hours, a day or some
    weeks before.
    """
    number = draw(st.integers(0, len(TARIFFS) - 1))
    versions = st.integers(0, len(TARIFF_PLANS[TARIFFS[number]]))
    near_ms = draw(st.sampled_from(INSTANTS_MS))
    book = Book(now_ms=near_ms - draw(st.sampled_from((10_000_000, 10**8, 2 * 10**9))))
    book.play(
        [
            Op("site"),
            Op("tariff", number, draw(versions), 0, 1),
            Op("policy"),
            Op("open", 0, number, 0, 11),
            Op("register", 1),
            Op("assign", 1, 0),
        ]
    )
    edges = Tariff({1: book.tariffs[TARIFFS[number]]}).edges(near_ms - 1, near_ms + 86_400_000)
    begins_ms = draw(st.sampled_from(edges[:6] or [near_ms])) - draw(st.integers(1, 3_600_000))
    change_ms = draw(st.sampled_from((None, 60_000, 1_800_000, 5_400_007)))
    if change_ms is not None:
        book.now_ms = begins_ms + change_ms - 3_600_000  # what _tariff's second lead adds
        book.play([Op("tariff", number, draw(versions), 1, 1)])
    facts = [fact for subject, fact in book.facts if subject == "tariff-fact"]
    tariff = Tariff({fact["version"]: fact for fact in facts})
    durations = st.one_of(st.integers(1, 1_800_000), st.sampled_from((7_200_000, 250_000_000)))
    parts = st.tuples(durations, st.integers(0, 2_000))
    readings = [(begins_ms, draw(st.sampled_from((0, 0, 200, 5_000))))]
    for duration_ms, used in draw(st.lists(parts, min_size=3, max_size=7)):
        at_ms = readings[-1][0] + duration_ms
        if len(tariff.edges(begins_ms, at_ms)) <= WINDOWS_MAX:
            readings.append((at_ms, readings[-1][1] + used))
    order = draw(st.permutations(range(1, len(readings))))
    return Reordering(tuple(book.records), tuple(readings), (0, *order), tariff)
