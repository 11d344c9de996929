"""The scalar model of metering: the judge of the engine.

Written from "The rules" of services/metering/README.md, rule by rule, and from nothing else: one
reading after the other, Python integers and dicts, no arrays, no cleverness. Slow on purpose.
Records of outputs are dicts as Avro has them; a charge frame is {"names": [...], "rows": [...]}
with the names resolved. Ids of events are not modelled: the laws test them.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from uuid import UUID

from services.common.kernel.frames import (
    ABSENT_POWER,
    KIND_CLOSING,
    KIND_FEE,
    KIND_RESPLIT,
    KIND_ROLLOVER,
    KIND_USAGE,
    READING_COLUMNS,
    RELAY_REPORTED,
)
from services.common.kernel.ids import name_uuid
from services.common.kernel.units import fits_int64
from services.metering.domain.messages import LogRecord
from tests.property.metering_fee_model import FEE_RATE, instants, lines_of, next_due
from tests.property.metering_policy_model import (
    Standing,
    code_of,
    cut_not_before,
    first_no_cut,
    hour_of,
    hysteresis,
    keeping_order,
    powers,
    refusal,
    rules_of,
)
from tests.property.metering_tariff_model import (
    BY_TIME,
    NO_RATE,
    PERIOD_CLOSED,
    Accumulation,
    End,
    Key,
    Line,
    Pricing,
    Tariff,
    Where,
    amount_of,
)

LEVELS = ("normal", "alarm-1", "alarm-2", "cut")
CUT = 3
NO_READING = bytes(16)
ABSENT_RATES = (-1,) * 5
VERIFIED = ord("V")
BALANCE_EVERY_MS = 60_000
METERS_MAX = 256
REGISTER_MAX_MILLI = 10**15
YEAR_2000_MS, YEAR_2100_MS = 946_684_800_000, 4_102_444_800_000
WINDOWS_MAX = 4
WINDOW_AGE_MS = 40 * 86_400_000
HOLDS = ("negative", "implausible", "scale", "reset")
PASSING = ("other-serial", "absurd", "ratio-mismatch", "clock", "conflict")
STANDING = ("stuck", "use-while-open", "rates-disagree", "reverse", "clock-drift")
QUARTER_MS, TWO_HOURS_MS = 900_000, 7_200_000
SILENCE_MS = 7 * 86_400_000
MANUAL = ord("M")
COMPONENTS = ("surcharge", "ladder", "fees", "tax", "undivided")
ARREARS = ("arrears_since_ms", "notice_id", "notice_outcome")
EVIDENCE = (
    *("register_milli", "device_time_ms", "last_register_milli", "last_time_ms", "bound_milli"),
    "silent_since_ms",
)

Fact = dict[str, Any]
Reading = dict[str, Any]
Charge = dict[str, Any]
Window = tuple[int, int, int, int, tuple[int, ...], tuple[int, ...]]
"""(t1, r1, t2, r2, registers of rates at t1, at t2)."""
NO_RATES = (-1,) * 5


def ends_of(window: Window) -> tuple[End, End]:
    t1, r1, t2, r2, rates1, rates2 = window
    return (t1, r1, rates1), (t2, r2, rates2)


class Raised(Exception):  # noqa: N818 - rule 9's word for it
    """Rule 9: the account freezes."""


@dataclass(slots=True)
class Meter:
    """A meter as it stands in an account; `register` None: not read yet."""

    fact: Fact
    register: int | None
    since: int
    entered: int
    time: int = 0
    reading_id: bytes = NO_READING
    quality: int = VERIFIED
    rates: tuple[int, ...] = NO_RATES
    sequence: int = 0
    energy_total: int = 0
    hold: str = ""
    held: Reading | None = None
    flags: set[str] = field(default_factory=set)
    relay_bits: int = 0
    silent_at: int | None = None
    send_before: int | None = None
    relay: str = ""
    """Rule 7: not known, closed or tripped."""
    mark: tuple[int, int] | None = None
    """(time, register) since which its power is told; None: no habits."""
    unusual_by: Fact = field(default_factory=dict)
    """The evidence of the reading that told last."""
    stand: tuple[int, int] | None = None
    """(time, register) since which the register stands; None: nobody asks."""
    levels: list[int] = field(default_factory=lambda: [0] * 24)
    told: list[int] = field(default_factory=lambda: [0] * 24)
    waiting: "tuple[Meter, Reading] | None" = None
    """The meter as it stood in the epoch before, and the closing register that waits."""
    windows: list[Window] = field(default_factory=list)

    def copy(self) -> "Meter":
        waiting = self.waiting and (self.waiting[0].copy(), self.waiting[1])
        return replace(
            self,
            windows=list(self.windows),
            flags=set(self.flags),
            levels=list(self.levels),
            told=list(self.told),
            waiting=waiting,
        )

    def window_of(self, time: int) -> Window | None:
        return next((window for window in self.windows if window[0] < time < window[2]), None)

    def keep_windows(self, windows: list[Window]) -> None:
        """Rule 5: the young ones; while there are too many, the narrowest goes."""
        newest = max((window[2] for window in windows), default=0)
        kept = [window for window in windows if window[2] >= newest - WINDOW_AGE_MS]
        while len(kept) > WINDOWS_MAX:
            kept.remove(min(kept, key=lambda window: (window[2] - window[0], window[0])))
        self.windows = kept

    def span(self) -> int:
        """How many thousandths the register counts before it shows 0 again."""
        return int(self.fact["register_max_milli"]) + 1

    @property
    def key(self) -> int:
        return int(self.fact["meter_key"])

    @property
    def forced(self) -> str | None:
        return self.fact["forced"]

    @property
    def epoch(self) -> int:
        return int(self.fact["epoch"])


@dataclass(slots=True)
class Account:
    """An account; `fact` None: a house account, or its account-fact has not come."""

    account_id: str
    key: int
    house: bool
    fact: Fact | None = None
    level: int = 0
    credited: int = 0
    held: int = 0
    charged: int = 0
    divided: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COMPONENTS, 0))
    """Of what was charged, what was for what; the rest for energy."""
    sequence: int = 0
    refusal: str = ""
    arrears_since: int | None = None
    notice: tuple[int, int] | None = None
    """(sent at, account sequence then)."""
    frozen: bool = False
    echoed: str | None = None
    published_at: int | None = None
    due: int | None = None
    last_received: int | None = None
    since: int | None = None
    fees_until: int | None = None
    fees_sequence: int = 0
    accumulations: dict[Key, Accumulation] = field(default_factory=dict)
    meters: dict[int, Meter] = field(default_factory=dict)

    def copy(self) -> "Account":
        return replace(
            self,
            divided=dict(self.divided),
            meters={key: meter.copy() for key, meter in self.meters.items()},
            accumulations={key: replace(each) for key, each in self.accumulations.items()},
        )

    @property
    def revision(self) -> int:
        return -1 if self.fact is None else int(self.fact["revision"])

    @property
    def book_epoch(self) -> int:
        return 0 if self.fact is None else int(self.fact["book_epoch"])

    @property
    def available(self) -> int:
        return self.credited - self.charged - self.held


@dataclass(frozen=True, slots=True)
class Cause:
    """What led to a decision: a fact alone, a meter's closing charge, or its reading.

    `named`: the fact that names an account without account-fact. `was_silent`: the meter was.
    """

    meter: Fact | None = None
    charge: Charge | None = None
    reading: Reading | None = None
    named: Fact | None = None
    was_silent: bool = False


BY_FACT = Cause()

Stay = tuple[int, tuple[Meter, Reading] | None]
"""Rule 2: (since, the closing register that waits) of a meter that stays in its account."""


@dataclass(frozen=True, slots=True)
class Sent:
    """One output, without its ids."""

    topic: str
    key: str
    record: dict[str, Any]
    route: str | None = None


@dataclass(slots=True)
class Work:
    """What one record has caused so far. `publish`: accounts whose balance goes out at once."""

    offset: int
    charges: list[Charge] = field(default_factory=list)
    others: list[Sent] = field(default_factory=list)
    publish: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)


def checked(value: int) -> int:
    """Rule 5: a figure beyond int64 raises."""
    if not fits_int64(value):
        raise Raised
    return value


def reading_name(reading_id: bytes) -> str | None:
    """Return the id as text; None where a register came with an assignment."""
    return None if reading_id == NO_READING else str(UUID(bytes=reading_id))


def readings_of(record: LogRecord) -> list[Reading]:
    """Return a frame's readings as dicts of plain Python values."""
    assert not isinstance(record.value, dict)
    rows = record.value.rows
    return [
        {
            name: row[name].tobytes() if name == "reading_id" else row[name].tolist()
            for name, _, _ in READING_COLUMNS
        }
        for row in rows
    ]


def is_opened(relay_bits: int) -> bool:
    """Say whether a relay was reported with no phase closed."""
    return bool(relay_bits & RELAY_REPORTED) and not relay_bits & 0b111


class ScalarShard:
    """The state of one shard and what its records do to it."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.now = -(2**63)
        self.accounts: dict[int, Account] = {}
        self.versions: dict[tuple[str, str], tuple[int, int]] = {}
        self.tariffs: dict[str, Tariff] = {}
        self.policies: dict[str, Fact] = {}
        self.work = Work(-1)

    def absorb(self, record: LogRecord) -> tuple[list[Sent], Counter[str]]:
        """Absorb one record; return its outputs in order and its counts."""
        self.now = max(self.now, record.timestamp_ms)
        self.work = Work(record.offset)
        if isinstance(record.value, dict):
            handle: dict[str, Callable[[Fact], None]] = {
                "site-fact": self._site_fact,
                "tariff-fact": self._tariff_fact,
                "policy-fact": self._policy_fact,
                "account-fact": self._account_fact,
                "meter-fact": self._meter_fact,
                "usage-ask": self._usage_ask,
                "wake": self._wake,
            }
            handle[record.subject](record.value)
        else:
            read = {reading["meter_key"] for reading in readings_of(record)}
            for account in self._by_key():
                if read & account.meters.keys():
                    self._post_fees(account)
            for reading in readings_of(record):
                self._reading(reading)
        return self._sent(), self.work.counts

    @property
    def next_deadline(self) -> int | None:
        """Rules 3 and 8: when the next balance, or fee, is due, or silence told, if any."""
        accounts = self.accounts.values()
        deadlines = [account.due for account in accounts]
        deadlines += [self.fee_due(account) for account in accounts]
        deadlines += [meter.silent_at for each in accounts for meter in each.meters.values()]
        return min((at for at in deadlines if at is not None), default=None)

    def _by_key(self) -> list[Account]:
        return [self.accounts[key] for key in sorted(self.accounts)]

    # -- Rule 2 -----------------------------------------------------------------------------

    def _is_old(self, kind: str, name: str, fact: Fact) -> bool:
        version = (fact["book_epoch"], fact["revision"])
        earlier = self.versions.get((kind, name))
        if earlier is not None and version <= earlier:
            self.work.counts["fact-old"] += 1
            return True
        return False

    def _keep(self, kind: str, name: str, fact: Fact) -> None:
        self.versions[kind, name] = (fact["book_epoch"], fact["revision"])

    def _site_fact(self, fact: Fact) -> None:
        if not self._is_old("site", fact["site_id"], fact):
            self._keep("site", fact["site_id"], fact)

    def _tariff_fact(self, fact: Fact) -> None:
        if self._is_old("tariff", f"{fact['tariff_id']}/{fact['version']}", fact):
            return
        self._keep("tariff", f"{fact['tariff_id']}/{fact['version']}", fact)
        if fact["version"] > 1 and self.now > fact["effective_at_ms"]:
            self.work.counts["fact-late"] += 1
            facts = [account.fact for account in self.accounts.values() if account.fact is not None]
            priced = [each for each in facts if each["tariff_id"] == fact["tariff_id"]]
            for site_id in sorted({each["site_id"] for each in priced}):
                self._fact_late(fact, site_id)
        self.tariffs.setdefault(fact["tariff_id"], Tariff()).facts[fact["version"]] = fact
        for account in self.accounts.values():
            if account.fact is not None and account.fact["tariff_id"] == fact["tariff_id"]:
                for meter in account.meters.values():
                    meter.windows = [w for w in meter.windows if w[2] <= fact["effective_at_ms"]]

    def _fact_late(self, fact: Fact, site_id: str) -> None:
        cited = ("charge_epoch", "charge_sequence", "from_reading_id", "to_reading_id")
        record = {
            **dict.fromkeys((*cited, *EVIDENCE, "reading_received_at_ms", *ARREARS)),
            "kind": "fact-late",
            "reason": "after-its-instant",
            "account_id": "",
            "site_id": site_id,
            "meter_id": None,
            "meter_epoch": None,
            "forced_orders": None,
            "reading_began_at_ms": None,
            "available_nano": 0,
            "threshold_nano": None,
            "account_sequence": 0,
            "account_revision": fact["revision"],
            "book_epoch": fact["book_epoch"],
            "policy_id": None,
            "policy_version": None,
            "tariff_id": fact["tariff_id"],
            "tariff_version": fact["version"],
            "level_before": "normal",
            "level_after": "normal",
            **{name: fact[name] for name in ("currency", "legal_entity", "commodity")},
            "intent_epoch": None,
            "intent_offset": None,
            "decided_at_ms": self.now,
            "log_offset": self.work.offset,
        }
        self.work.others.append(Sent("alarms", fact["tariff_id"], record))

    def _policy_fact(self, fact: Fact) -> None:
        if self._is_old("policy", fact["policy_id"], fact):
            return
        self._keep("policy", fact["policy_id"], fact)
        self.policies[fact["policy_id"]] = fact
        for key in sorted(self.accounts):
            account = self.accounts[key]
            if account.fact is not None and account.fact["policy_id"] == fact["policy_id"]:
                self._attempt(account, partial(self._judge, account, BY_FACT), BY_FACT)

    def _account_fact(self, fact: Fact) -> None:
        if fact["shard"] != self.shard or self._is_old("account", fact["account_id"], fact):
            return
        key = fact["account_key"]
        account = self.accounts.setdefault(key, Account(fact["account_id"], key, house=False))
        self._post_fees(account)
        self._attempt(account, lambda: self._apply_account_fact(account, fact), Cause(named=fact))
        self._post_fees(account)
        hold_id = fact["hold_id"]
        if account.fact is fact and hold_id is not None and hold_id != account.echoed:
            account.echoed = hold_id
            self._echo(account, hold_id=hold_id)

    def _usage_ask(self, ask: Fact) -> None:
        account = self.accounts.get(ask["account_key"])
        if account is None or account.fact is None:
            self.work.counts["ask-unknown"] += 1
        else:
            self._echo(account, ask_id=ask["ask_id"])

    def _apply_account_fact(self, account: Account, fact: Fact) -> None:
        thaw_id, thawed = fact["thaw_id"], account.fact and account.fact["thaw_id"]
        if fact["credited_nano"] != account.credited:
            account.sequence = checked(account.sequence + 1)
        if account.fact is None:
            account.since = self.now
            account.fees_until = self.now - 1
        elif account.fact["tariff_id"] != fact["tariff_id"]:
            account.fees_until = self.now
            account.accumulations = {}
            for meter in account.meters.values():
                meter.windows = []
        account.fact = fact
        account.credited = fact["credited_nano"]
        account.held = fact["held_nano"]
        checked(account.available)
        if account.frozen and thaw_id not in (None, thawed):
            account.frozen = False
            if not account.house:
                self._alarm(account, "thawed", "ordered", BY_FACT, None, account.level)
        self._judge(account, BY_FACT)
        self.work.publish.add(account.key)
        self._keep("account", fact["account_id"], fact)

    def _echo(self, account: Account, hold_id: str = "", ask_id: str | None = None) -> None:
        assert account.fact is not None
        divided = account.divided
        energy = account.charged - sum(divided.values())
        if not fits_int64(energy):
            energy, divided = 0, {**dict.fromkeys(COMPONENTS, 0), "undivided": account.charged}
        record = {
            "account_id": account.account_id,
            "account_revision": account.revision,
            "book_epoch": account.book_epoch,
            "hold_id": hold_id,
            "ask_id": ask_id,
            "energy_nano": energy,
            **{f"{name}_nano": divided[name] for name in COMPONENTS},
            "meters": [self._stand(account.meters[key]) for key in sorted(account.meters)],
            "credited_nano": account.credited,
            "charged_nano": account.charged,
            "account_sequence": account.sequence,
            "open_meters": len(account.meters),
            "last_reading_received_at_ms": account.last_received,
            "decided_at_ms": self.now,
            "log_offset": self.work.offset,
            "frozen": account.frozen,
            "waiting": [
                {
                    "meter_id": meter.fact["meter_id"],
                    "reading_id": str(UUID(bytes=meter.waiting[1]["reading_id"])),
                }
                for _, meter in sorted(account.meters.items())
                if meter.waiting
            ],
            **{name: account.fact[name] for name in ("currency", "legal_entity", "commodity")},
        }
        self.work.others.append(Sent("echoes", account.account_id, record))

    def _stand(self, meter: Meter) -> Fact:
        return {
            "meter_id": meter.fact["meter_id"],
            "epoch": meter.epoch,
            "ratio": meter.fact["ratio"],
            "register_milli": meter.register,
            "time_ms": meter.time or None,
            "energy_total_milli": meter.energy_total,
        }

    def _meter_fact(self, fact: Fact) -> None:
        is_concerned = self.shard in (fact["shard"], fact["previous_shard"])
        if not is_concerned and ("meter", fact["meter_id"]) not in self.versions:
            return
        if self._is_old("meter", fact["meter_id"], fact):
            return
        self._keep("meter", fact["meter_id"], fact)
        stay = None
        if fact["previous_shard"] == self.shard:
            left = self.accounts.get(fact["previous_account_key"])
            if left is not None:
                stay = self._leave(left, fact)
        self._miss(fact)
        if fact["shard"] == self.shard:
            key = fact["account_key"]
            entered = self.accounts.setdefault(
                key, Account(fact["account_id"], key, house=fact["is_house"])
            )
            self._attempt(entered, lambda: self._enter(entered, fact, stay), Cause(fact))

    def _leave(self, account: Account, fact: Fact) -> Stay | None:
        """Return what goes on where the meter stays in its account."""
        meter = account.meters.get(fact["meter_key"])
        if meter is None or meter.epoch != fact["previous_epoch"]:
            return None
        self._tell_leaving(account, meter)
        before, waiting = meter.copy(), self._waiting_closing(account, meter, fact)
        cause = Cause(meter.fact)
        self._attempt(account, lambda: self._close(account, meter, fact, waiting), cause)
        self._remove(account, meter.key, stays=self._stays(account, fact))
        if not self._stays(account, fact):
            return None
        return before.since, (before, waiting) if waiting else None

    def _stays(self, account: Account, fact: Fact) -> bool:
        return bool(fact["shard"] == self.shard and fact["account_key"] == account.key)

    def _waiting_closing(self, account: Account, meter: Meter, fact: Fact) -> Reading | None:
        """Return the closing register, as a reading, where a person must confirm it."""
        register, time = fact["closing_register_milli"], max(self.now, meter.time)
        deepest = (meter.time if meter.sequence else self.now) + 2**31
        above, below = self._bound(meter, time), self._bound(meter, deepest)
        if fact["account_key"] != account.key or account.frozen or above is None or below is None:
            return None
        assert meter.register is not None
        if meter.register - below <= register <= meter.register + above:
            return None
        return {
            "reading_id": name_uuid("closing", fact["meter_id"], fact["epoch"]).bytes,
            "register_milli": register,
            "device_time_ms": time,
            "received_at_ms": self.now,
        }

    def _miss(self, fact: Fact) -> None:
        """Rule 2: the meter may still stand where its leaving was missed; it is gone from there."""
        for account in self.accounts.values():
            meter = account.meters.get(fact["meter_key"])
            enters_again = self._stays(account, fact) and meter and meter.epoch == fact["epoch"]
            if meter is not None and not enters_again:
                self._tell_leaving(account, meter)
                self._remove(account, meter.key, stays=False)

    def _tell_leaving(self, account: Account, meter: Meter) -> None:
        if (meter.hold or meter.flags or meter.waiting) and not account.house:
            self._alarm(account, "meter-left", "meter-left", Cause(meter.fact), None, account.level)

    def _remove(self, account: Account, key: int, *, stays: bool) -> None:
        account.meters.pop(key, None)
        for each in [other for other in account.accumulations if other[0] == key and not stays]:
            del account.accumulations[each]

    def _close(self, account: Account, meter: Meter, fact: Fact, waiting: Reading | None) -> None:
        charge = None
        if waiting is not None:
            self.work.counts["closing"] += 1
            cause = Cause(meter.fact, reading=waiting)
            self._tell(account, "reading-held", "closing", cause, self._evidence(meter, waiting))
        elif meter.register is not None and not account.frozen:
            charge = self._closing_charge(account, meter, fact["closing_register_milli"])
            self._warn_of_closed(account, charge, Cause(meter.fact, charge))
        self._remove(account, meter.key, stays=self._stays(account, fact))
        self._judge(account, Cause(meter.fact, charge))

    def _enter(self, account: Account, fact: Fact, stay: Stay | None) -> None:
        standing = account.meters.get(fact["meter_key"])
        if standing is not None and standing.epoch == fact["epoch"]:
            self._resolve(account, standing, fact)
            self._resolve_closing(account, standing, fact)
            if standing.fact["ratio"] != fact["ratio"]:
                standing.windows = []
            forced, standing.fact = standing.forced, fact
            if forced != fact["forced"]:
                self._obey(account, standing, Cause(named=fact))
            return
        if len(account.meters) == METERS_MAX:
            raise Raised
        if account.house:
            account.frozen = False
        since, waiting = stay or (self.now, None)
        meter = Meter(fact, fact["opening_register_milli"], since, self.now)
        meter.silent_at = self.now + SILENCE_MS
        meter.waiting = waiting
        account.meters[meter.key] = meter
        if meter.forced:
            self._obey(account, meter, Cause(named=fact))
        elif not account.house and account.level != CUT:
            self._intent(account, meter, "closed", "assigned", Cause(named=fact), None, None)
        self._judge(account, BY_FACT)

    def _resolve(self, account: Account, meter: Meter, fact: Fact) -> None:
        """Rule 2: a person has judged the reading that the meter is held for."""
        held, resolution = meter.held, fact["resolution"]
        if held is None or resolution not in ("accept", "reject"):
            return
        if fact["resolves_reading_id"] != str(UUID(bytes=held["reading_id"])):
            return
        cause, evidence = Cause(fact, reading=held), self._evidence(meter, held)
        was_read_again = "read-again" in meter.flags
        assert meter.register is not None
        if resolution == "reject":
            meter.hold, meter.held = "", None
            meter.flags.discard("read-again")
            self.work.counts["hold-rejected"] += 1
            self._tell(account, "hold-resolved", "reject", cause, evidence)
            if was_read_again:
                self._tell(account, "meter-cleared", "read-again", cause, evidence)
        elif held["register_milli"] < meter.register or account.frozen:
            self.work.counts["resolution-refused"] += 1
            self._tell(account, "resolution-refused", meter.hold, cause, evidence)
        else:
            meter.hold, meter.held = "", None
            meter.flags.discard("read-again")
            charge = self._usage_charge(
                account, meter, {**held, "quality": MANUAL, "rate_registers_milli": NO_RATES}
            )
            self.work.counts["hold-accepted"] += 1
            told = Cause(fact, charge, held)
            self._tell(account, "hold-resolved", "accept", told, evidence)
            if was_read_again:
                self._tell(account, "meter-cleared", "read-again", told, evidence)
            correction = Cause(fact, charge)
            self._warn_of_closed(account, charge, correction)
            self._judge(account, correction)

    def _resolve_closing(self, account: Account, meter: Meter, fact: Fact) -> None:
        """Rule 2: a person has judged the closing register that waits."""
        if meter.waiting is None or fact["resolution"] not in ("accept", "reject"):
            return
        before, held = meter.waiting
        if fact["resolves_reading_id"] != str(UUID(bytes=held["reading_id"])):
            return
        cause, evidence = Cause(fact, reading=held), self._evidence(before, held)
        if fact["resolution"] == "reject":
            meter.waiting = None
            self.work.counts["hold-rejected"] += 1
            self._tell(account, "hold-resolved", "reject", cause, evidence)
        elif account.frozen:
            self.work.counts["resolution-refused"] += 1
            self._tell(account, "resolution-refused", "closing", cause, evidence)
        else:
            meter.waiting = None
            before.since = meter.since
            charge = self._closing_charge(account, before, held["register_milli"], MANUAL)
            correction = Cause(fact, charge)
            self.work.counts["hold-accepted"] += 1
            self._warn_of_closed(account, charge, correction)
            self._tell(account, "hold-resolved", "accept", Cause(fact, charge, held), evidence)
            self._judge(account, correction)

    def _wake(self, _wake: Fact) -> None:
        for account in self._by_key():
            self._post_fees(account)
        for account in self.accounts.values():
            if account.due is not None and account.due <= self.now:
                self.work.publish.add(account.key)
        for key in sorted(self.accounts):
            account = self.accounts[key]
            for meter_key in sorted(account.meters):
                meter = account.meters[meter_key]
                if meter.silent_at is not None and meter.silent_at <= self.now:
                    self._silent(account, meter)

    # -- Rule 3 -----------------------------------------------------------------------------

    def _reading(self, reading: Reading) -> None:
        standing = [a for a in self.accounts.values() if reading["meter_key"] in a.meters]
        assert len(standing) < 2, "a meter stands in two accounts"
        if not standing:
            self.work.counts["unknown-meter"] += 1
            return
        account = standing[0]
        cause = Cause(account.meters[reading["meter_key"]].fact, reading=reading)
        self._attempt(account, lambda: self._read(account, reading), cause)

    def _read(self, account: Account, reading: Reading) -> None:
        meter = account.meters[reading["meter_key"]]
        outcome = self._outcome(account, meter, reading)
        if outcome == "meter-held":
            self._read_again(account, meter, reading)
        if outcome in ("accepted", "rollover"):
            self._accept(account, meter, reading, outcome)
        elif outcome == "re-split":
            self._resplit(account, meter, reading)
        elif outcome in HOLDS or (outcome in PASSING and outcome not in meter.flags):
            cause, evidence = Cause(meter.fact, reading=reading), self._evidence(meter, reading)
            self._tell(account, "reading-held", outcome, cause, evidence)
            if outcome in HOLDS:
                meter.hold, meter.held = outcome, reading
            else:
                meter.flags.add(outcome)
        self.work.counts[outcome] += 1

    def _read_again(self, account: Account, meter: Meter, reading: Reading) -> None:
        """Rule 3: the first later reading of a meter that is held tells where it stands."""
        assert meter.held is not None
        is_later = reading["device_time_ms"] > meter.held["device_time_ms"]
        if is_later and not self._foreign(meter, reading) and "read-again" not in meter.flags:
            meter.flags.add("read-again")
            self.work.counts["read-again"] += 1
            cause, evidence = Cause(meter.fact, reading=reading), self._evidence(meter, reading)
            self._tell(account, "meter-flagged", "read-again", cause, evidence)

    def _silent(self, account: Account, meter: Meter) -> None:
        assert meter.silent_at is not None
        stood = {"last_register_milli": meter.register, "last_time_ms": meter.time or None}
        since = {"silent_since_ms": meter.silent_at - SILENCE_MS}
        evidence = {**dict.fromkeys(EVIDENCE), **stood, **since}
        meter.flags.add("silent")
        meter.silent_at = None
        self.work.counts["silent"] += 1
        self._tell(account, "meter-silent", "silent", Cause(meter.fact), evidence)

    def _tell(self, account: Account, kind: str, reason: str, cause: Cause, evidence: Fact) -> None:
        """Raise an alarm of a meter with its evidence; house accounts have none."""
        if not account.house:
            self._alarm(account, kind, reason, cause, None, account.level, evidence=evidence)

    def _evidence(self, meter: Meter, reading: Reading) -> Fact:
        time = reading["device_time_ms"]
        last = (meter.register, meter.time or None, self._bound(meter, time))
        return dict(zip(EVIDENCE, (reading["register_milli"], time, *last, None), strict=True))

    def _bound(self, meter: Meter, time: int) -> int | None:
        """Return by how much the register may have risen; None: unknown."""
        ratio, power_w = meter.fact["ratio"], meter.fact["max_power_w"]
        if power_w is None or meter.register is None or time < meter.time:
            return None
        duration = 2_000 if time == meter.time else min(time - meter.time, 2**31)
        if meter.sequence == 0:
            duration = min(max(time - meter.entered, 0) + SILENCE_MS, 2**31)
            duration = 2**31 if meter.silent_at is None else duration
        return int(power_w * duration // 3_000_000 + 100 * ratio) // ratio

    def _standing(self, meter: Meter, reading: Reading) -> set[str]:
        """Return the flags that an accepted reading raises itself."""
        found = set()
        power, ahead = reading["power_w"], reading["device_time_ms"] - reading["received_at_ms"]
        if meter.sequence and reading["register_milli"] == meter.register:
            used = power * (reading["device_time_ms"] - meter.time) // 3_600_000
            if power > 0 and used > 100 * meter.fact["ratio"]:
                found.add("stuck")
        was_open, is_open = is_opened(meter.relay_bits), is_opened(reading["relay_bits"])
        last = reading["register_milli"] if meter.register is None else meter.register
        if was_open and is_open and reading["register_milli"] - last > 100:
            found.add("use-while-open")
        rates = [rate for rate in reading["rate_registers_milli"] if rate >= 0]
        if rates and abs(sum(rates) - reading["register_milli"]) > 50:
            found.add("rates-disagree")
        if power < 0 and power != ABSENT_POWER:
            found.add("reverse")
        is_live = reading["began_at_ms"] < reading["received_at_ms"]
        if ahead > 120_000 or (is_live and ahead < -120_000):
            found.add("clock-drift")
        return found

    def _outcome(self, account: Account, meter: Meter, reading: Reading) -> str:
        register = reading["register_milli"]
        if reading["epoch"] != meter.epoch:
            return "other-epoch"
        if account.frozen:
            return "frozen"
        if meter.hold:
            return "meter-held"
        if foreign := self._foreign(meter, reading):
            return foreign
        if meter.register is None:
            return "accepted"
        if meter.sequence == 0:
            is_below = register < meter.register
            return "below-opening" if is_below else self._risen(meter, meter.register, reading)
        return self._outcome_after(meter, meter.register, reading)

    def _foreign(self, meter: Meter, reading: Reading) -> str:
        """Return why a reading is not the meter's, or has no time; else nothing."""
        register, time = reading["register_milli"], reading["device_time_ms"]
        if reading["serial"] != meter.fact["serial"].encode():
            return "other-serial"
        in_range = 0 <= register <= REGISTER_MAX_MILLI and YEAR_2000_MS <= time < YEAR_2100_MS
        if not in_range:
            return "absurd"
        if reading["ratio"] != meter.fact["ratio"]:
            return "ratio-mismatch"
        return "clock" if time - reading["received_at_ms"] > 300_000 else ""

    def _outcome_after(self, meter: Meter, last: int, reading: Reading) -> str:
        """Return the outcome where a reading was accepted before, in this epoch."""
        time, register = reading["device_time_ms"], reading["register_milli"]
        if reading["reading_id"] == meter.reading_id:
            return "duplicate"
        bound = self._bound(meter, time)
        if time == meter.time:
            beyond = bound is not None and register - last > bound
            return "conflict" if beyond or register < last else "late"
        if time < meter.time:
            window = meter.window_of(time)
            if window is None:
                return "late"
            within = window[1] <= register <= window[3]
            return "re-split" if within else "late-conflict"
        return self._risen(meter, last, reading)

    def _risen(self, meter: Meter, last: int, reading: Reading) -> str:
        register, bound = reading["register_milli"], self._bound(meter, reading["device_time_ms"])
        if register >= last and (bound is None or register - last <= bound):
            return "accepted"
        return self._jump(meter, last, register, bound)

    def _jump(self, meter: Meter, last: int, register: int, bound: int | None) -> str:
        """Return what a register that fell, or rose beyond its bound, comes to."""
        highest = meter.fact["register_max_milli"]
        ended = highest is not None and register < last <= highest and 10 * last > 9 * highest
        if ended and bound is not None and (register - last) % meter.span() <= bound <= highest:
            return "rollover"
        for scale in (10, 100) if bound is not None else ():
            assert bound is not None
            multiple = last <= register // scale <= last + bound
            if multiple or last // scale <= register <= (last + bound) // scale:
                return "scale"
        if register >= last:
            return "implausible"
        return "reset" if 100 * register <= last else "negative"

    def _accept(self, account: Account, meter: Meter, reading: Reading, outcome: str) -> None:
        before, flags = meter.flags, self._standing(meter, reading)
        evidence = self._evidence(meter, reading)
        is_gap = meter.sequence > 0 and reading["device_time_ms"] - meter.time > 3_600_000
        kind = KIND_ROLLOVER if outcome == "rollover" else KIND_USAGE
        unusual = self._unusual(account, meter, reading, kind)
        if unusual or (unusual is None and "unusual" in before):
            flags.add("unusual")
        idle_by = self._idle(account, meter, reading, kind)
        if idle_by:
            flags.add("idle")
        charge = self._usage_charge(account, meter, reading, kind)
        account.last_received = reading["received_at_ms"]
        self._see_relay(account, meter, reading["relay_bits"])
        meter.relay_bits, meter.flags = reading["relay_bits"], flags
        self.work.counts["gap"] += is_gap
        self.work.counts.update(flags if unusual else flags - {"unusual"})
        cause = Cause(meter.fact, charge, reading, was_silent="silent" in before)
        for flag in (*PASSING, *STANDING, "silent", "unusual", "idle"):
            if (flag in before) != (flag in flags):
                change = "meter-flagged" if flag in flags else "meter-cleared"
                by = {"unusual": meter.unusual_by, "idle": idle_by} if flag in flags else {}
                self._tell(account, change, flag, cause, by.get(flag, evidence))
        if account.fact is None:
            return
        was_cut = account.level == CUT
        self._warn_of_closed(account, charge, cause)
        self._judge(account, cause)
        if was_cut and account.level == CUT and account.fact["status"] != "closed":
            self._renew(account, meter, cause, self._policy(account))

    def _idle(self, account: Account, meter: Meter, reading: Reading, kind: int) -> Fact:
        """Rule 3, stands: return by what a meter is found idle; nothing: it is not."""
        policy = account.fact and self.policies.get(account.fact["policy_id"])
        days = rules_of(policy).get("idle_days") if policy and not account.house else None
        time, register = reading["device_time_ms"], reading["register_milli"]
        stand, both = meter.stand, (meter.relay_bits, reading["relay_bits"])
        if days is None:
            meter.stand = None
            return {}
        closed = all(bits & RELAY_REPORTED and bits & 0b111 for bits in both)
        if stand is None or not closed or kind == KIND_ROLLOVER or register > stand[1] + 100:
            meter.stand = (time, register)
            return {}
        if time < stand[0] + days * 86_400_000:
            return {}
        since = (register, time, stand[1], stand[0], None, None)
        return dict(zip(EVIDENCE, since, strict=True))

    def _unusual(self, account: Account, meter: Meter, reading: Reading, kind: int) -> bool | None:
        """Rule 3, habits: say whether a reading is unusual; None: it does not tell."""
        policy = account.fact and self.policies.get(account.fact["policy_id"])
        rules = rules_of(policy) if policy and not account.house else {}
        factor = rules.get("unusual_factor")
        if factor is None:
            meter.mark, meter.levels, meter.told = None, [0] * 24, [0] * 24
            return False
        time, register = reading["device_time_ms"], reading["register_milli"]
        mark = meter.mark
        if mark is None or time - mark[0] > TWO_HOURS_MS or kind == KIND_ROLLOVER:
            meter.mark = (time, register)
            return None
        if time - mark[0] < QUARTER_MS:
            return None
        rise = register - mark[1]
        power = rise * meter.fact["ratio"] * 3_600_000 // (time - mark[0])
        hour = hour_of(rules, mark[0])
        level, seen = meter.levels[hour], 8 * min(code_of(power), 255)
        above = next(p for p in powers() if code_of(p) > level // 8)
        found = meter.told[hour] >= 20 and power > factor * above and rise > 100
        # The most that gives no power above the limit: powers are rounded down.
        beyond = -(-(factor * above + 1) * (time - mark[0]) // (meter.fact["ratio"] * 3_600_000))
        since = (register, time, mark[1], mark[0], max(100, beyond - 1), None)
        meter.unusual_by = dict(zip(EVIDENCE, since, strict=True))
        if meter.told[hour] == 0:
            meter.levels[hour] = seen
        elif seen > level:
            meter.levels[hour] = min(level + 19, seen)
        elif seen < level:
            meter.levels[hour] = max(level - 1, seen)
        meter.told[hour] = min(meter.told[hour] + 1, 255)
        meter.mark = (time, register)
        return found

    def _see_relay(self, account: Account, meter: Meter, bits: int) -> None:
        """Rule 7: seen closed, then tripped, while no cut stands."""
        if account.level != CUT and bits & RELAY_REPORTED:
            if bits & 0b111:
                meter.relay = "closed"
            elif meter.relay == "closed":
                meter.relay = "tripped"

    def _renew(self, account: Account, meter: Meter, cause: Cause, policy: Fact) -> None:
        """Rule 7, renewal."""
        assert cause.reading is not None
        bits = cause.reading["relay_bits"]
        if not (bits & RELAY_REPORTED and bits & 0b111) or meter.forced:
            return
        lease = policy["lease_ms"]
        if meter.send_before is not None and self.now <= meter.send_before - lease // 2:
            return
        why_not = self._refusal(account, cause)
        if why_not:
            self._tell_refusal(account, why_not, cause)
            return
        self._end_refusal(account, cause)
        threshold, send_before = -policy["overdraft_nano"], self._send_before(cause, policy)
        self._intent(account, meter, "open", "lease-renewed", cause, threshold, send_before)

    # -- Rules 4 and 5 ----------------------------------------------------------------------

    def _policy(self, account: Account) -> Fact:
        assert account.fact is not None
        policy = self.policies.get(account.fact["policy_id"])
        if policy is None:
            raise Raised
        return policy

    def _tariff(self, account: Account) -> Tariff:
        assert account.fact is not None
        tariff = self.tariffs.get(account.fact["tariff_id"])
        if tariff is None:
            raise Raised
        return tariff

    def _pricing(self, account: Account, meter: Meter) -> Pricing:
        assert account.since is not None
        return Pricing(
            self._tariff(account), account.accumulations, meter.key, account.since, meter.since
        )

    def _usage_charge(
        self, account: Account, meter: Meter, reading: Reading, kind: int = KIND_USAGE
    ) -> Charge:
        register, time = reading["register_milli"], reading["device_time_ms"]
        opens = meter.register is None
        charge = self._charge(
            account,
            meter,
            kind=kind,
            from_reading_id=reading["reading_id"] if opens else meter.reading_id,
            from_time_ms=time if opens else meter.time,
            from_register_milli=register if opens else meter.register,
            from_quality=reading["quality"] if opens else meter.quality,
            to_reading_id=reading["reading_id"],
            to_time_ms=time,
            to_received_at_ms=reading["received_at_ms"],
            to_register_milli=register,
            to_quality=reading["quality"],
            from_rates_milli=list(meter.rates),
            to_rates_milli=list(reading["rate_registers_milli"]),
        )
        rates = tuple(reading["rate_registers_milli"])
        if account.fact is not None and not opens and meter.time and kind == KIND_USAGE:
            assert meter.register is not None
            window = (meter.time, meter.register, time, register, meter.rates, rates)
            if self._is_estimated(account, meter, window):
                meter.keep_windows([*meter.windows, window])
        meter.register, meter.time, meter.rates = register, time, rates
        meter.reading_id, meter.quality = reading["reading_id"], reading["quality"]
        meter.silent_at = self.now + SILENCE_MS
        return charge

    def _is_estimated(self, account: Account, meter: Meter, window: Window) -> bool:
        """Rule 5: time alone told the shape."""
        _, basis = self._tariff(account).shape(*ends_of(window), meter.fact["ratio"])
        return basis == BY_TIME

    def _closing_charge(
        self, account: Account, meter: Meter, register: int, quality: int = VERIFIED
    ) -> Charge:
        return self._charge(
            account,
            meter,
            kind=KIND_CLOSING,
            from_reading_id=meter.reading_id,
            from_time_ms=meter.time,
            from_register_milli=meter.register,
            from_quality=meter.quality,
            to_reading_id=NO_READING,
            to_time_ms=meter.time,
            to_received_at_ms=0,
            to_register_milli=register,
            to_quality=quality,
            from_rates_milli=list(meter.rates),
            to_rates_milli=list(NO_RATES),
        )

    def _charge(self, account: Account, meter: Meter, **interval: Any) -> Charge:
        ratio = meter.fact["ratio"]
        used = interval["to_register_milli"] - interval["from_register_milli"]
        used += meter.span() if interval["kind"] == KIND_ROLLOVER else 0
        energy = checked(used * ratio)
        if account.fact is None:
            return self._posted(account, meter, interval, energy, 0, 0, [])
        self._policy(account)
        tariff, end = self._tariff(account), interval["to_time_ms"]
        start = interval["from_time_ms"] or end
        begins = (start, interval["from_register_milli"], tuple(interval["from_rates_milli"]))
        ends = (end, interval["from_register_milli"] + used, tuple(interval["to_rates_milli"]))
        if interval["kind"] == KIND_ROLLOVER:
            ends = (end, ends[1], ABSENT_RATES)
        parts, basis = tariff.shape(begins, ends, ratio)
        version = list(parts)[-1][0]
        if start < end:
            version = tariff.where(end - 1)[0]
        terms = tariff.terms(version)
        if terms.is_plain and not basis:
            (price,) = terms.plan.rates_micro.values()
            checked(energy * price)
            return self._posted(account, meter, interval, energy, price, version, [])
        lines = self._pricing(account, meter).lines(parts, basis)
        return self._posted(account, meter, interval, energy, 0, version, lines)

    def _posted(
        self,
        account: Account,
        meter: Meter,
        interval: Fact,
        energy: int,
        price: int,
        version: int,
        lines: list[Line],
    ) -> Charge:
        """Rule 5: the charge, and the totals after it."""
        priced = account.fact is not None
        names = account.fact if account.fact is not None else meter.fact
        for line in lines:
            for figure in line.values():
                checked(figure)
            checked(amount_of(line))
        amount = checked(sum(map(amount_of, lines)) if lines else energy * price)
        meter.energy_total = checked(meter.energy_total + energy)
        account.charged = checked(account.charged + amount)
        meter.sequence = checked(meter.sequence + 1)
        account.sequence = checked(account.sequence + 1)
        checked(account.available)
        charge = {
            **interval,
            "meter_key": meter.key,
            "epoch": meter.epoch,
            "sequence": meter.sequence,
            "account_key": account.key,
            "account_sequence": account.sequence,
            "account_revision": account.revision,
            "book_epoch": account.book_epoch,
            "ratio": meter.fact["ratio"],
            "energy_milli": energy,
            "price_micro": price,
            "amount_nano": amount,
            "meter_energy_total_milli": meter.energy_total,
            "account_charged_total_nano": account.charged,
            "account_credited_total_nano": account.credited,
            "tariff_name": names["tariff_id"] if priced else "",
            "tariff_version": version,
            "policy_name": names["policy_id"] if priced else "",
            "policy_version": self._policy(account)["version"] if priced else 0,
            "legal_entity_name": names["legal_entity"],
            "currency_name": names["currency"],
            "commodity_name": names["commodity"],
            "lines": lines,
        }
        self.work.charges.append(charge)
        self._divide(account, lines)
        if priced:
            self._balance_after_charge(account)
        return charge

    def _divide(self, account: Account, lines: list[Line]) -> None:
        """Rule 5: what lines are for."""
        for line in lines:
            for name in ("surcharge", "ladder", "tax"):
                account.divided[name] += line[f"{name}_nano"]
            if FEE_RATE <= line["rate"] < NO_RATE:
                account.divided["fees"] += line["rate_nano"]
        if not all(map(fits_int64, account.divided.values())):
            account.divided = {**dict.fromkeys(COMPONENTS, 0), "undivided": account.charged}

    def _warn_of_closed(self, account: Account, charge: Charge, cause: Cause) -> None:
        """Rule 5: energy of a closed period is a person's to look at."""
        if any(line["basis"] & PERIOD_CLOSED for line in charge["lines"]):
            self.work.counts["period-closed"] += 1
            self._alarm(account, "period-closed", "period-closed", cause, None, account.level)

    def _resplit(self, account: Account, meter: Meter, reading: Reading) -> None:
        """Rule 5: a late reading changes the shape of an interval that was charged before."""
        time, register = reading["device_time_ms"], reading["register_milli"]
        window = meter.window_of(time)
        assert window is not None
        tariff, ratio = self._tariff(account), meter.fact["ratio"]
        self._policy(account)
        t1, r1, t2, r2, rates1, rates2 = window
        rates = tuple(reading["rate_registers_milli"])
        halves: tuple[Window, Window] = (
            (t1, r1, time, register, rates1, rates),
            (time, register, t2, r2, rates, rates2),
        )
        before, _ = tariff.shape(*ends_of(window), ratio)
        after: dict[Where, int] = {}
        for half in halves:
            for where, energy in tariff.shape(*ends_of(half), ratio)[0].items():
                after[where] = after.get(where, 0) + energy
        moved = {where: after.get(where, 0) - energy for where, energy in before.items()}
        moved |= {where: energy for where, energy in after.items() if where not in before}
        moved = {where: energy for where, energy in moved.items() if energy}
        lines = self._pricing(account, meter).lines(moved, BY_TIME)
        interval = {
            "kind": KIND_RESPLIT,
            "from_reading_id": NO_READING,
            "from_time_ms": t1,
            "from_register_milli": r1,
            "from_quality": VERIFIED,
            "from_rates_milli": list(rates1),
            "to_rates_milli": list(rates),
            "to_reading_id": reading["reading_id"],
            "to_time_ms": time,
            "to_received_at_ms": reading["received_at_ms"],
            "to_register_milli": register,
            "to_quality": reading["quality"],
        }
        version = tariff.where(t2 - 1)[0]
        charge = self._posted(account, meter, interval, 0, 0, version, lines)
        shaped = [half for half in halves if self._is_estimated(account, meter, half)]
        at = meter.windows.index(window)
        meter.keep_windows([*meter.windows[:at], *shaped, *meter.windows[at + 1 :]])
        cause = Cause(meter.fact, charge)
        self._warn_of_closed(account, charge, cause)
        self._judge(account, cause)

    # -- Rule 5, fees -----------------------------------------------------------------------

    def fee_due(self, account: Account) -> int | None:
        """Return when the next fee of an account falls due."""
        fact = account.fact
        if fact is None or account.house or account.frozen or fact["status"] != "open":
            return None
        tariff = self.tariffs.get(fact["tariff_id"])
        if tariff is None:
            return None
        assert account.since is not None
        assert account.fees_until is not None
        return next_due(tariff, account.since, account.fees_until)

    def _post_fees(self, account: Account) -> None:
        due = self.fee_due(account)
        if due is not None and due <= self.now:
            self._attempt(account, lambda: self._charge_fees(account), BY_FACT)

    def _charge_fees(self, account: Account) -> None:
        assert account.fact is not None
        assert account.since is not None
        assert account.fees_until is not None
        tariff = self._tariff(account)
        dues = list(instants(tariff, account.since, account.fees_until, self.now))
        lines = lines_of(dues)
        for line in lines:
            checked(amount_of(line))
            if line["days"] >= 2**16:
                raise Raised
        amount = checked(sum(map(amount_of, lines)))
        account.fees_until = self.now
        account.fees_sequence += 1
        account.sequence = checked(account.sequence + 1)
        account.charged = checked(account.charged + amount)
        checked(account.available)
        charge = {
            "kind": KIND_FEE,
            "from_rates_milli": list(NO_RATES),
            "to_rates_milli": list(NO_RATES),
            "from_reading_id": NO_READING,
            "from_time_ms": dues[0].at_ms,
            "from_register_milli": 0,
            "from_quality": VERIFIED,
            "to_reading_id": NO_READING,
            "to_time_ms": dues[-1].at_ms,
            "to_received_at_ms": 0,
            "to_register_milli": 0,
            "to_quality": VERIFIED,
            "meter_key": account.key,
            "epoch": 0,
            "sequence": account.fees_sequence,
            "account_key": account.key,
            "account_sequence": account.sequence,
            "account_revision": account.revision,
            "book_epoch": account.book_epoch,
            "ratio": 1,
            "energy_milli": 0,
            "price_micro": 0,
            "amount_nano": amount,
            "meter_energy_total_milli": 0,
            "account_charged_total_nano": account.charged,
            "account_credited_total_nano": account.credited,
            "tariff_name": account.fact["tariff_id"],
            "tariff_version": dues[-1].version,
            "policy_name": account.fact["policy_id"],
            "policy_version": self._policy(account)["version"],
            "legal_entity_name": account.fact["legal_entity"],
            "currency_name": account.fact["currency"],
            "commodity_name": account.fact["commodity"],
            "lines": lines,
        }
        self.work.charges.append(charge)
        self._divide(account, lines)
        self._balance_after_charge(account)
        self._judge(account, Cause(charge=charge))

    # -- Rule 6 -----------------------------------------------------------------------------

    def _judge(self, account: Account, cause: Cause) -> None:
        if account.fact is None:
            return
        if account.fact["status"] == "closed":
            self._end_refusal(account, cause)
            return
        policy, available = self._policy(account), account.available
        if not account.meters:
            return
        thresholds = (0, policy["alarm_1_nano"], policy["alarm_2_nano"], -policy["overdraft_nano"])
        target = max([level for level in (1, 2, 3) if available <= thresholds[level]], default=0)
        still = hysteresis(policy)
        kept = [at for at in (1, 2) if at <= account.level and available <= thresholds[at] + still]
        counted = max(min(target, 2), *kept, 0)
        if account.level == CUT:
            self._judge_cut(account, counted, cause)
        elif target == CUT and cause.reading is not None:
            self._judge_arrears(account, counted, cause)
        else:
            self._move(account, counted, thresholds, cause)
        if target != CUT and account.level != CUT:
            self._end_refusal(account, cause)
            account.arrears_since = account.notice = None

    def _end_refusal(self, account: Account, cause: Cause) -> None:
        """Rule 6: why it is not cut is forgotten, and that is told."""
        if account.refusal:
            reason, account.refusal = account.refusal, ""
            self._alarm(account, "not-cut-ended", reason, cause, None, account.level)

    def _judge_cut(self, account: Account, counted: int, cause: Cause) -> None:
        assert account.fact is not None
        policy = self._policy(account)
        restore: int | None = policy["restore_nano"]
        reason, why = "credit-restored", "paid"
        if account.available < policy["restore_nano"]:
            order = keeping_order(account.fact, self.now)
            if cause.reading is not None or not order:
                return
            reason = why = order
            restore = account.notice = None
        account.refusal = ""
        self._set_level(account, counted)
        free = self._free_meters(account)
        epochs = [meter.epoch for meter in free if meter.relay != "tripped"]
        epoch = epochs[0] if epochs else None
        self._alarm(account, "restored", reason, cause, restore, CUT, epoch)
        for meter in free:
            if meter.relay == "tripped":
                by = Cause(meter.fact)
                self._alarm(account, "not-restored", "tripped", by, None, account.level)
            else:
                self._intent(account, meter, "closed", why, cause, restore, None)

    def _free_meters(self, account: Account) -> list[Meter]:
        meters = [account.meters[key] for key in sorted(account.meters)]
        return [meter for meter in meters if not meter.forced]

    def _obey(self, account: Account, meter: Meter, cause: Cause) -> None:
        """Rule 7: a person's order, or its end."""
        if meter.forced == "off":
            self._intent(account, meter, "open", "forced", cause, None, None, "forced-off")
        elif meter.forced == "on":
            self._intent(account, meter, "closed", "forced", cause, None, None, "forced-on")
        elif account.level != CUT:
            self._intent(account, meter, "closed", "released", cause, None, None)
        else:
            self._intent(account, meter, "open", "released", cause, None, self.now)

    def _judge_arrears(self, account: Account, counted: int, cause: Cause) -> None:
        policy, before = self._policy(account), account.level
        floor = -policy["overdraft_nano"]
        if account.arrears_since is None:
            account.arrears_since = self.now
        why_not = self._refusal(account, cause)
        if why_not:
            alarms = (0, policy["alarm_1_nano"], policy["alarm_2_nano"])
            self._move(account, counted, alarms, cause)
            self._tell_refusal(account, why_not, cause)
            return
        account.refusal = ""
        self._set_level(account, CUT)
        assert cause.charge is not None
        free = self._free_meters(account)
        named = cause.charge["meter_key"] in [meter.key for meter in free]
        epoch = cause.charge["epoch"] if named else None
        self._alarm(account, "cut", "threshold-reached", cause, floor, before, epoch)
        for meter in free:
            tripped = meter.relay == "tripped"
            send_before = self._send_before(cause, policy)
            self._intent(account, meter, "open", "arrears", cause, floor, send_before)
            if tripped:
                meter.relay = "tripped"

    def _refusal(self, account: Account, cause: Cause) -> str:
        assert account.fact is not None
        assert account.arrears_since is not None
        assert cause.reading is not None
        standing = Standing(
            account.arrears_since,
            not self._free_meters(account),
            account.notice and account.notice[0],
            self.notice_of(account)[1],
            cause.was_silent,
        )
        return refusal(self._policy(account), account.fact, cause.reading, standing, self.now)

    def _tell_refusal(self, account: Account, reason: str, cause: Cause) -> None:
        floor = -self._policy(account)["overdraft_nano"]
        if account.refusal != reason:
            account.refusal = reason
            self._alarm(account, "not-cut", reason, cause, floor, account.level)
        if reason in {"keep-power", "promised", "forced"}:
            account.notice = None
        if reason == "notice-pending":
            self._give_notice(account, cause, floor)

    def _give_notice(self, account: Account, cause: Cause, floor: int) -> None:
        assert account.fact is not None
        assert account.arrears_since is not None
        account.notice = (self.now, account.sequence)
        record = {
            **self._citation(account, cause),
            "notice_id": self.notice_of(account)[0],
            "kind": "cut-off",
            "threshold_nano": floor,
            "cut_not_before_ms": cut_not_before(
                self._policy(account), account.arrears_since, self.now
            ),
            "log_offset": self.work.offset,
        }
        self.work.others.append(Sent("notices", account.account_id, record))

    def notice_of(self, account: Account) -> tuple[str | None, str | None]:
        """Return (id, outcome) of the notice that stands."""
        if account.notice is None or account.fact is None:
            return None, None
        notice_id = str(name_uuid("notice", account.account_id, account.notice[1]))
        known = account.fact["notice_id"] == notice_id
        return notice_id, account.fact["notice_outcome"] if known else None

    def _arrears(self, account: Account) -> dict[str, Any]:
        arrears = (account.arrears_since, *self.notice_of(account))
        return dict(zip(ARREARS, arrears, strict=True))

    def _move(
        self, account: Account, target: int, thresholds: tuple[int, ...], cause: Cause
    ) -> None:
        before = account.level
        if target > before:
            self._set_level(account, target)
            kind = LEVELS[target]
            self._alarm(account, kind, "threshold-reached", cause, thresholds[target], before)
        elif target < before:
            self._set_level(account, target)
            threshold = thresholds[before]
            self._alarm(account, "cleared", "credit-above-threshold", cause, threshold, before)

    def _set_level(self, account: Account, level: int) -> None:
        account.level = level
        self.work.publish.add(account.key)

    def _citation(self, account: Account, cause: Cause) -> dict[str, Any]:
        """Return what alarms and intents say of the account and of what caused them."""
        fact, charge, reading = account.fact, cause.charge, cause.reading
        policy = None if fact is None else self.policies.get(fact["policy_id"])
        names = fact or cause.named or cause.meter
        assert names is not None
        ends_at = (reading and reading["reading_id"]) or (charge and charge["to_reading_id"])
        return {
            "account_id": account.account_id,
            "site_id": names["site_id"],
            "available_nano": account.available,
            "account_sequence": account.sequence,
            "account_revision": account.revision,
            "book_epoch": account.book_epoch,
            "policy_id": fact and fact["policy_id"],
            "policy_version": policy and policy["version"],
            "tariff_id": (charge and charge["tariff_name"]) or None,
            "tariff_version": charge and charge["tariff_version"],
            "charge_epoch": charge and charge["epoch"],
            "charge_sequence": charge and charge["sequence"],
            "from_reading_id": charge and reading_name(charge["from_reading_id"]),
            "to_reading_id": ends_at and reading_name(ends_at),
            "reading_received_at_ms": reading and reading["received_at_ms"],
            "currency": names["currency"],
            "legal_entity": names["legal_entity"],
            "commodity": names["commodity"],
            "decided_at_ms": self.now,
        }

    def _alarm(
        self,
        account: Account,
        kind: str,
        reason: str,
        cause: Cause,
        threshold: int | None,
        before: int,
        intent_epoch: int | None = None,
        evidence: Fact | None = None,
    ) -> None:
        is_forced = (kind, reason) == ("not-cut", "forced")
        decided_by = cause.reading if kind in {"cut", "not-cut"} else None
        record = {
            **self._citation(account, cause),
            **(evidence or dict.fromkeys(EVIDENCE)),
            **self._arrears(account),
            "kind": kind,
            "reason": reason,
            "meter_id": cause.meter and cause.meter["meter_id"],
            "meter_epoch": cause.meter and cause.meter["epoch"],
            "forced_orders": self._forced_orders(account) if is_forced else None,
            "reading_began_at_ms": decided_by and decided_by["began_at_ms"],
            "threshold_nano": threshold,
            "intent_epoch": intent_epoch,
            "intent_offset": None if intent_epoch is None else self.work.offset,
            "level_before": LEVELS[before],
            "level_after": LEVELS[account.level],
            "log_offset": self.work.offset,
        }
        self.work.others.append(Sent("alarms", account.account_id, record))

    def _forced_orders(self, account: Account) -> str:
        """Return what the meter-facts say of each relay, in ascending meter_key."""
        facts = [account.meters[key].fact for key in sorted(account.meters)]
        orders = [
            {
                "meter_id": fact["meter_id"],
                "position": fact["forced"],
                "book_epoch": fact["book_epoch"],
                "revision": fact["revision"],
            }
            for fact in facts
        ]
        return json.dumps(orders)

    # -- Rule 7 -----------------------------------------------------------------------------

    def _send_before(self, cause: Cause, policy: Fact) -> int:
        assert cause.reading is not None
        evidence_ends = cause.reading["received_at_ms"] + policy["max_evidence_age_ms"]
        until = min(self.now + policy["lease_ms"], evidence_ends)
        return first_no_cut(policy, self.now, until)

    def _intent(
        self,
        account: Account,
        meter: Meter,
        wanted: str,
        why: str,
        cause: Cause,
        threshold: int | None,
        send_before: int | None,
        mode: str = "prepaid",
    ) -> None:
        record = {
            **self._citation(account, cause),
            **self._arrears(account),
            "meter_id": meter.fact["meter_id"],
            "meter_key": meter.key,
            "line_id": meter.fact["line_id"],
            "epoch": meter.epoch,
            "version_offset": self.work.offset,
            "shard": self.shard,
            "wanted": wanted,
            "mode": mode,
            "cause": why,
            "send_before_ms": send_before,
            "cause_meter_id": cause.charge and cause.meter and cause.meter["meter_id"],
            "threshold_nano": threshold,
        }
        meter.send_before = send_before
        meter.relay = ""
        meter_id, site_id = meter.fact["meter_id"], record["site_id"]
        self.work.others.append(Sent("relay-intents", meter_id, record, site_id))

    # -- Rule 8 -----------------------------------------------------------------------------

    def _balance_after_charge(self, account: Account) -> None:
        if account.published_at is None or self.now >= account.published_at + BALANCE_EVERY_MS:
            self.work.publish.add(account.key)
        elif account.due is None:
            account.due = account.published_at + BALANCE_EVERY_MS

    def _balance(self, account: Account) -> Sent:
        assert account.fact is not None
        account.published_at, account.due = self.now, None
        record = {
            "account_id": account.account_id,
            "account_key": account.key,
            "shard": self.shard,
            "site_id": account.fact["site_id"],
            "currency": account.fact["currency"],
            "legal_entity": account.fact["legal_entity"],
            "commodity": account.fact["commodity"],
            "credited_nano": account.credited,
            "charged_nano": account.charged,
            "held_nano": account.held,
            "available_nano": account.available,
            "level": LEVELS[account.level],
            "frozen": account.frozen,
            "account_sequence": account.sequence,
            "account_revision": account.revision,
            "book_epoch": account.book_epoch,
            "as_of_ms": self.now,
            "log_offset": self.work.offset,
        }
        return Sent("balances", account.account_id, record)

    # -- Rule 9 -----------------------------------------------------------------------------

    def _attempt(self, account: Account, change: Callable[[], None], cause: Cause) -> None:
        """Do it, or let nothing of it stay for the account but the freeze."""
        before, charges, others = account.copy(), len(self.work.charges), len(self.work.others)
        publish, counts = set(self.work.publish), Counter(self.work.counts)
        try:
            change()
        except Raised:
            for name in Account.__dataclass_fields__:
                setattr(account, name, getattr(before, name))
            del self.work.charges[charges:], self.work.others[others:]
            self.work.publish, self.work.counts = publish, counts
            if not account.frozen:
                account.frozen = True
                if not account.house:
                    self._alarm(account, "frozen", "cannot-charge", cause, None, account.level)

    # -- Order of outputs -------------------------------------------------------------------

    def _sent(self) -> list[Sent]:
        balances = [self._balance(self.accounts[key]) for key in sorted(self.work.publish)]
        if not self.work.charges:
            return [*self.work.others, *balances]
        names: list[str] = []
        for charge in self.work.charges:
            for column in ("tariff", "policy", "legal_entity", "currency", "commodity"):
                if charge[f"{column}_name"] not in names:
                    names.append(charge[f"{column}_name"])
        frame = {
            "shard": self.shard,
            "log_offset": self.work.offset,
            "names": names,
            "rows": self.work.charges,
        }
        return [Sent("charges", str(self.shard), frame), *self.work.others, *balances]
