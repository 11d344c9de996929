"""One shard as arrays: one slot an account, one slot a meter."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from services.common.kernel.frames import ABSENT_REGISTER, FEE_RATE, NO_RATE
from services.common.kernel.units import INT64_MAX, fits_int64
from services.metering.domain.factlog import FactLog
from services.metering.domain.facts import Array, Names, Policies, are_distinct, grown
from services.metering.domain.groups import firsts
from services.metering.domain.keys import Keys
from services.metering.domain.ladders import Accumulation, Key, Ladder
from services.metering.domain.messages import Row, Rows, RowTable
from services.metering.domain.rows import (
    ABSORB_VERSION,
    ACCOUNT,
    ACCOUNT_PREFIX,
    ACCUMULATION,
    COMPONENTS,
    FACT_PREFIX,
    FLAGS,
    FORCED,
    HABITS,
    HEADER_KEY,
    HELD,
    HOURS,
    LAYOUT_VERSION,
    METER,
    NEVER_MS,
    NO_POWER,
    NOT_DUE_MS,
    READ_AGAIN,
    STAND,
    TAIL_HABITS,
    TAIL_STAND,
    TAIL_WAITING,
    UNDIVIDED,
    WITH_RATES,
    Fact,
    ParsedAccounts,
    account_row_keys,
    check_drained,
    header_of,
    header_row,
    joined,
    octets,
    parsed_accounts,
    sizes_of_tails,
    words,
)
from services.metering.domain.tariffs import Tariffs
from services.metering.domain.windows import Window, Windows

SILENCE_MS = 7 * 86_400_000
"""A meter that no reading was accepted of for so long is silent."""
ASSIGNED_QUALITY = ord("V")
"""Quality of a register that came with an assignment, at which an interval opens or closes."""

_ACCOUNT_LINKS = np.dtype(
    [
        ("tariff", "<i4"),
        ("policy", "<i4"),
        ("names", "<i4"),
        ("only_meter", "<i4"),
        ("accumulation", "<i4"),
        ("first_accumulation", "<i4"),
    ]
)
"""What facts say of an account, as numbers; made anew at each start, never stored.

names: the group that its charges are named by. only_meter: slot of its meter where it
has exactly one. accumulation: slot of the one that energy comes to most likely; _NONE where none
is known. first_accumulation: that of the first in the order of the row; _NONE where it has none.
"""
_NONE = -1
_STEPS_MAX = 8
"""Of chains walked side by side; a merged account's are longer, and there are few of those."""
_TAILS_END = 1 << 32
"""Shape of an account's row: how many accumulations × _TAILS_END + how many bytes of tails behind
them, which are words, + _DIVIDED where it has components."""
_DIVIDED = 1
_UNLINKED = -1
"""Tariff of an account whose fact was read at the start: its links are made at first use."""
_METER_LINKS = np.dtype([("account", "<i4"), ("names", "<i4"), ("accumulation", "<i4")])
"""names: as above, "" for tariff and policy: what a charge of a house account is named by."""


class Held(NamedTuple):
    """The reading that a hold waits for."""

    reading_id: bytes
    register_milli: int
    time_ms: int
    received_at_ms: int


class Habits(NamedTuple):
    """What a meter usually takes: since when and from which register its power is told next.

    Of each hour of the day its level, and how often it was told.
    """

    time_ms: int
    register_milli: int
    levels: tuple[int, ...]
    told: tuple[int, ...]


class Stand(NamedTuple):
    """Since when, by its device's clock, a register stands, and at what."""

    time_ms: int
    register_milli: int


class Waiting(NamedTuple):
    """A closing register that waits for a person, with the meter (dtype METER) it would close."""

    meters: Array
    held: Held


class Stay(NamedTuple):
    """What goes on where a meter begins a new epoch in its account: another device, or ratio."""

    since_ms: int
    waiting: Waiting | None


class ShardState:
    """One shard: what absorb reads and writes. Mutable; owned by one worker."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.offset = -1
        self.now_ms = 0
        self.facts = FactLog()
        self.names = Names()
        self.tariffs = Tariffs()
        self.policies = Policies()
        self.accounts = np.zeros(16, ACCOUNT)
        self.account_links = np.zeros(16, _ACCOUNT_LINKS)
        self.components = np.zeros((16, len(COMPONENTS)), np.int64)
        """Of what each account was charged, by slot."""
        self._any_divided = False
        self._divided_most_nano = 0
        """No component is larger."""
        self._unlinked = 0
        """How many accounts have a fact that was read at the start and not looked at yet."""
        self.due_ms = np.zeros(16, np.int64)
        """Copy of accounts["due_ms"], dense, because it is searched often."""
        self.meters = np.zeros(16, METER)
        self.silent_at_ms = np.full(16, NOT_DUE_MS)
        """Copy of meters["silent_at_ms"], dense, because it is searched often."""
        self.meter_links = np.zeros(16, _METER_LINKS)
        self.accumulations = np.zeros(16, ACCUMULATION)
        self._next_accumulation = np.zeros(16, np.int32)
        """Slot of the next one of the same account; _NONE behind its last."""
        self._free_accumulations: list[int] = []
        self._accumulations_used = 0
        self._windows = Windows()
        self._held: dict[int, bytes] = {}
        self._waiting: dict[int, bytes] = {}
        self._habits: dict[int, bytes] = {}
        self._stands: dict[int, bytes] = {}
        self._account_keys = Keys()
        """An account's slot is the number of its key: accounts never go."""
        self._meters_of: dict[int, list[int]] = {}
        """Slots of the meters of accounts that have more than one."""
        self._meter_keys = Keys()
        self._standing = np.zeros(16, np.int32)
        """Slots of meters by the number of their key; _NONE: it stands in no account."""
        self._free_meter_slots: list[int] = []
        self._meter_slots_used = 0

    @classmethod
    def empty(cls, shard: int) -> "ShardState":
        return cls(shard)

    @property
    def account_count(self) -> int:
        return len(self._account_keys)

    @property
    def meter_count(self) -> int:
        return int(np.count_nonzero(self._standing[: len(self._meter_keys)] != _NONE))

    def next_deadline_ms(self) -> int | None:
        """Return when the next balance or fee is due, or silence told; None: none ever is."""
        count = self.account_count
        fees_ms = self.accounts["fees_due_ms"][:count].min(initial=NOT_DUE_MS)
        silent_at_ms = self.silent_at_ms[: self._meter_slots_used].min(initial=fees_ms)
        earliest = int(self.due_ms[:count].min(initial=silent_at_ms))
        return None if earliest == NOT_DUE_MS else earliest

    # Accounts

    def account_slot(self, account_key: int) -> int | None:
        """Return the slot of an account that a fact is about."""
        slot = self._account_keys.number(account_key)
        if slot < 0:
            return None
        self.link_read(np.array([slot]))
        return slot

    def account_fact(self, slot: int) -> Fact | None:
        """Return the newest fact of an account."""
        return self.facts.accounts.newest(int(self.accounts["key"][slot]))

    def account_facts(self, slots: Array) -> Iterator[Fact | None]:
        """Yield the newest facts of accounts, in the order of `slots`."""
        return self.facts.accounts.newest_of(self.accounts["key"].take(slots))

    def is_ahead(self, slot: int, offset: int) -> bool:
        """Say whether the account has absorbed the record at `offset` already (rule 1)."""
        return bool(self.accounts["offset"][slot] >= offset)

    def add_account(self, account_key: int, *, house: bool) -> int:
        """Create an account with totals 0; return its slot."""
        slot = self._new_account_slot(account_key)
        account = self.accounts[slot]
        account["layout"] = LAYOUT_VERSION
        account["absorb"] = ABSORB_VERSION
        account["key"] = account_key
        account["house"] = house
        account["revision"] = -1
        account["published_at_ms"] = NEVER_MS
        account["due_ms"] = NOT_DUE_MS
        account["last_received_at_ms"] = NEVER_MS
        account["since_ms"] = NEVER_MS
        account["fees_until_ms"] = NEVER_MS
        account["fees_due_ms"] = NOT_DUE_MS
        account["arrears_since_ms"] = NEVER_MS
        account["notice_at_ms"] = NEVER_MS
        return slot

    def _new_account_slot(self, account_key: int) -> int:
        slot = self._account_keys.add(account_key)
        self.accounts = grown(self.accounts, slot + 1)
        self.account_links = grown(self.account_links, slot + 1)
        self.components = grown(self.components, slot + 1)
        self.due_ms = grown(self.due_ms, slot + 1)
        self.due_ms[slot] = NOT_DUE_MS
        for link in ("only_meter", "accumulation", "first_accumulation"):
            self.account_links[link][slot] = _NONE
        return slot

    def put_accounts(self, slots: Array, accounts: Array) -> None:
        """Write accounts (dtype ACCOUNT, one for each slot)."""
        words(self.accounts)[slots] = words(accounts)
        self.due_ms[slots] = accounts["due_ms"]

    def divide(self, slots: Array, lines: Array) -> None:
        """Count what lines (dtype LINE, which are charged) come to by component (rule 5).

        `slots`: of each line its account's.
        """
        if not len(lines):
            return
        self._any_divided = True
        rates = lines["rate"]
        fees_nano = lines["rate_nano"] * ((rates >= FEE_RATE) & (rates != NO_RATE))
        parts = (lines["surcharge_nano"], lines["ladder_nano"], fees_nano, lines["tax_nano"])
        amounts = np.stack(parts)
        if not self._have_room(slots, len(lines) * _magnitude(amounts)):
            self._divide_exactly(slots, amounts)
            return
        heads = firsts(slots)
        sums, slots = np.add.reduceat(amounts, heads, axis=1), slots[heads]
        if are_distinct(slots):
            stood = self.components.take(slots, axis=0)
            stood[:, :UNDIVIDED] += sums.T
            self.components[slots] = stood
            return
        for number in np.flatnonzero(sums.any(axis=1)).tolist():
            np.add.at(self.components[:, number], slots, sums[number])

    def _have_room(self, slots: Array, more_nano: int) -> bool:
        """Say whether the components of accounts are sure to take so much more."""
        self._divided_most_nano += more_nano
        if self._divided_most_nano <= INT64_MAX:
            return True
        return _magnitude(self.components[slots]) + more_nano <= INT64_MAX

    def _divide_exactly(self, slots: Array, amounts: Array) -> None:
        """Do the same in integers that have no end: where a total has none, nothing is divided."""
        for slot in set(slots.tolist()):
            more = map(sum, amounts[:, slots == slot].tolist())
            stood = self.components[slot].tolist()
            totals = [*map(sum, zip(stood, more, strict=False)), stood[UNDIVIDED]]
            if not all(map(fits_int64, totals)):
                totals = [0] * UNDIVIDED + [int(self.accounts["charged_nano"][slot])]
            self.components[slot] = totals

    def divided_nano(self, slot: int) -> dict[str, int]:
        """Return what an account was charged by component, that of its rates as `energy`."""
        charged_nano = int(self.accounts["charged_nano"][slot])
        parts = dict(zip(COMPONENTS, self.components[slot].tolist(), strict=True))
        energy_nano = charged_nano - sum(parts.values())
        if not fits_int64(energy_nano):
            return {"energy": 0, **dict.fromkeys(COMPONENTS, 0), "undivided": charged_nano}
        return {"energy": energy_nano, **parts}

    def link_account(self, slot: int, fact: Fact) -> None:
        """Let an account be named and priced by its account-fact."""
        links = self.account_links[slot]
        links["tariff"] = self.tariffs.slot(fact["tariff_id"])
        links["policy"] = self.policies.slot(fact["policy_id"])
        links["names"] = self.names.group((fact["tariff_id"], fact["policy_id"], *_billed_as(fact)))

    def is_other_tariff(self, slot: int, fact: Fact) -> bool:
        """Say whether an account-fact names another tariff than the account has."""
        return bool(self.account_links["tariff"][slot] != self.tariffs.slot(fact["tariff_id"]))

    def link_read(self, slots: Array) -> None:
        """Link those of the accounts whose facts were read at the start: before they are used."""
        if not self._unlinked:
            return
        for slot in set(slots[self.account_links["tariff"][slots] == _UNLINKED].tolist()):
            fact = self.account_fact(slot)
            assert fact is not None, "only accounts with a fact are unlinked"
            self.link_account(slot, fact)
            self._unlinked -= 1

    # Meters

    def put_meters(self, slots: Array, meters: Array) -> None:
        """Write meters (dtype METER, one for each slot)."""
        words(self.meters)[slots] = words(meters)
        self.silent_at_ms[slots] = meters["silent_at_ms"]

    def find_meters(self, meter_keys: Array) -> Array:
        """Return the slot of each meter key, -1 where none stands here."""
        numbers = self._meter_keys.numbers(meter_keys)
        slots = self._standing.take(numbers, mode="clip").astype(np.int64)
        slots[numbers < 0] = _NONE
        return slots

    def meters_of(self, slot: int) -> list[int]:
        """Return the slots of an account's meters, in ascending meter_key."""
        only = int(self.account_links["only_meter"][slot])
        return self._meters_of.get(slot, []) if only == _NONE else [only]

    def meter_in(self, slot: int, meter_key: int) -> int | None:
        """Return the slot at which a meter stands in an account."""
        meters, keys = self.meters_of(slot), self.meters["key"]
        at = bisect_left(meters, meter_key, key=lambda meter: int(keys[meter]))
        return meters[at] if at < len(meters) and keys[meters[at]] == meter_key else None

    def add_meter(self, slot: int, fact: Fact, offset: int, stay: Stay | None) -> int:
        """Let a meter stand in an account, by its meter-fact absorbed at `offset`.

        `stay`: what goes on from its epoch before, in the same account.
        """
        meter_slot = self._free_meter_slots.pop() if self._free_meter_slots else self._grow_meters()
        opening_milli = fact["opening_register_milli"]
        meter = np.zeros((), METER)
        meter["key"] = fact["meter_key"]
        meter["entered_offset"] = offset
        meter["epoch"] = fact["epoch"]
        meter["opened"] = opening_milli is not None
        meter["quality"] = ASSIGNED_QUALITY
        meter["register_milli"] = opening_milli or 0
        meter["send_before_ms"] = NEVER_MS
        meter["since_ms"] = self.now_ms if stay is None else stay.since_ms
        meter["silent_at_ms"] = self.silent_at_ms[meter_slot] = self.now_ms + SILENCE_MS
        meter["rates_milli"] = ABSENT_REGISTER
        self.meters[meter_slot] = meter
        self.meter_links["accumulation"][meter_slot] = _NONE
        self.describe_meter(meter_slot, fact)
        keys = self.meters["key"]
        self.meter_links["account"][meter_slot] = slot
        meters = [*self.meters_of(slot), meter_slot]
        self._put_meters_of(slot, sorted(meters, key=lambda each: int(keys[each])))
        self._find_at(fact["meter_key"], meter_slot)
        if stay is not None:
            self.put_waiting(meter_slot, stay.waiting)
            ladder = self.ladder_of(slot)
            slots, owned = self._accumulations_of(slot), [key for key, _ in ladder.sorted()]
            self._link_accumulations(slot, slots, owned, ladder.heads)
        return meter_slot

    def _grow_meters(self) -> int:
        self._meter_slots_used += 1
        self.meters = grown(self.meters, self._meter_slots_used)
        self.silent_at_ms = grown(self.silent_at_ms, self._meter_slots_used)
        self.meter_links = grown(self.meter_links, self._meter_slots_used)
        return self._meter_slots_used - 1

    def _put_meters_of(self, slot: int, meters: list[int]) -> None:
        """Let an account's meters be those at the slots `meters`, in ascending meter_key."""
        self.accounts["meters"][slot] = len(meters)
        self.account_links["only_meter"][slot] = meters[0] if len(meters) == 1 else _NONE
        if len(meters) > 1:
            self._meters_of[slot] = meters
        else:
            self._meters_of.pop(slot, None)

    def _find_at(self, meter_key: int, meter_slot: int) -> None:
        """Let readings find a meter at a slot; _NONE: nowhere."""
        number = self._meter_keys.number(meter_key)
        if number < 0:
            number = self._meter_keys.add(meter_key)
            self._standing = grown(self._standing, number + 1)
        self._standing[number] = meter_slot

    def describe_meter(self, meter_slot: int, fact: Fact) -> None:
        """Set what a meter is, by its meter-fact."""
        meter, max_power_w = self.meters[meter_slot], fact["max_power_w"]
        if meter["ratio"] != fact["ratio"]:
            self.put_windows(meter_slot, [])  # what was charged there cannot be told from them now
        meter["ratio"] = fact["ratio"]
        meter["serial"] = fact["serial"].encode()
        meter["forced"] = FORCED.index(fact["forced"] or "")
        meter["max_power_w"] = NO_POWER if max_power_w is None else max_power_w
        self.link_meter(meter_slot, fact)

    def link_meter(self, meter_slot: int, fact: Fact) -> None:
        """Let the charges of a house account be named by the meter-fact."""
        self.meter_links["names"][meter_slot] = self.names.group(("", "", *_billed_as(fact)))

    def accounts_of(self, meter_slots: Array) -> Array:
        """Return the slots of the accounts in which meters stand (int64); -1 of -1."""
        slots = self.meter_links["account"][meter_slots].astype(np.int64)
        slots[meter_slots < 0] = _NONE
        return slots

    def names_of_meters(self, slots: Array) -> Array:
        """Return the names of what house accounts are charged at meters, as numbers of groups."""
        for slot in slots[self.meter_links["names"][slots] == 0].tolist():
            self.link_meter(slot, self.meter_fact(int(self.meters["key"][slot])))
        return self.meter_links["names"][slots]

    def meter_fact(self, meter_key: int) -> Fact:
        """Return the newest fact of a meter that stands, or stood, here."""
        fact = self.facts.meters.newest(meter_key)
        assert fact is not None, "a meter stands by its fact"
        return fact

    def spans_milli(self, meter_keys: Array) -> Array:
        """Return how many thousandths a register counts before it shows 0 again (int64).

        Of meters whose meter-fact tells its highest one.
        """
        facts = map(self.meter_fact, meter_keys.tolist())
        return np.array([fact["register_max_milli"] + 1 for fact in facts], np.int64)

    def remove_meter(self, meter_slot: int, *, stays: bool) -> None:
        """Let a meter stand in its account no more; with `stays` its accumulations wait for it."""
        slot = int(self.meter_links["account"][meter_slot])
        meter_key = int(self.meters["key"][meter_slot])
        meters = [each for each in self.meters_of(slot) if each != meter_slot]
        self._put_meters_of(slot, meters)
        self.put_windows(meter_slot, [])
        self.put_hold(meter_slot, 0)
        self.put_waiting(meter_slot, None)
        self.put_habits(meter_slot, None)
        self.put_stand(meter_slot, None)
        self.silent_at_ms[meter_slot] = NOT_DUE_MS
        ladder = self.ladder_of(slot)
        if not stays and ladder.leave(meter_key):
            self.put_ladder(slot, ladder)
        if self.find_meters(np.array([meter_key]))[0] == meter_slot:
            self._find_at(meter_key, _NONE)
        self._free_meter_slots.append(meter_slot)

    def replay_entering(self, slot: int, fact: Fact) -> None:
        """Let readings find a meter in an account whose row has it already.

        At a start the row of the account that it left may be older than that of this one.
        """
        meter_slot = self.meter_in(slot, fact["meter_key"])
        if meter_slot is not None:
            self._find_at(fact["meter_key"], meter_slot)
            self.link_meter(meter_slot, fact)

    # Ladders and windows

    def ladder_of(self, slot: int) -> Ladder:
        """Return a copy of an account's accumulations; `put_ladder` makes it stand."""
        found: dict[Key, Accumulation] = {}
        slots = self._accumulations_of(slot)
        for each in self.accumulations[slots].tolist() if slots else ():
            owner, period, version, rate, days, days_of, _, base_milli, total_milli = each
            key = (owner, period, version, rate)
            found[key] = Accumulation(base_milli, total_milli, days, days_of)
        return Ladder(self.tariffs, int(self.account_links["tariff"][slot]), found)

    def put_ladder(self, slot: int, ladder: Ladder) -> None:
        """Let an account's accumulations be those of `ladder`."""
        slots = self._accumulations_of(slot)
        self.account_links["accumulation"][slot] = _NONE
        self.meter_links["accumulation"][self.meters_of(slot)] = _NONE
        while len(slots) > len(ladder):
            self._free_accumulations.append(slots.pop())
        while len(slots) < len(ladder):
            slots.append(self._free_accumulation())
        ordered = ladder.sorted()
        for at, (key, each) in zip(slots, ordered, strict=True):
            days = (each.days, each.days_of, b"", each.base_milli, each.total_milli)
            self.accumulations[at] = (*key, *days)
        self.accounts["accumulations"][slot] = len(slots)
        self.account_links["first_accumulation"][slot] = slots[0] if slots else _NONE
        self._next_accumulation[slots] = [*slots[1:], _NONE][: len(slots)]
        self._link_accumulations(slot, slots, [key for key, _ in ordered], ladder.heads)

    def may_open(self, slots: Array, periods: Array) -> Array:
        """Say which accounts may begin an accumulation of a period by `open`.

        Those that have none; and those that have one or two, all their own, where the newest, which
        their energy comes to, is of the period before and the other of an earlier one.
        """
        counts, links = self.accounts["accumulations"][slots], self.account_links[slots]
        newest, first = links["accumulation"], links["first_accumulation"]
        kept = self.accumulations["period"].take(newest)
        following = (counts <= 2) & (newest != _NONE) & (kept == periods - 1)
        following &= self._next_accumulation.take(newest) == _NONE
        following &= (first == newest) | (self.accumulations["period"].take(first) < kept)
        may: Array = (counts == 0) | following
        return may

    def open(self, slots: Array, opened: Array) -> None:
        """Let accounts, no slot twice, have one accumulation more (dtype ACCUMULATION), the newest.

        Each may (`may_open`). One of a period before the last one goes.
        """
        if not len(slots):
            return
        newest = self.account_links["accumulation"][slots]
        first = self.account_links["first_accumulation"][slots]
        at = np.where(first != newest, first, _NONE)  # that of the first one, which goes
        fresh = np.flatnonzero(at == _NONE)
        at[fresh] = [self._free_accumulation() for _ in range(len(fresh))]
        self.accumulations[at] = opened
        self._next_accumulation[at] = _NONE
        following = newest != _NONE
        self._next_accumulation[newest[following]] = at[following]
        self.account_links["first_accumulation"][slots] = np.where(following, newest, at)
        self.account_links["accumulation"][slots] = at
        self.accounts["accumulations"][slots] = 1 + following

    def forget_shapes(self, slot: int) -> None:
        """Let an account's windows and accumulations go."""
        self.forget_windows(slot, 0)
        self.put_ladder(slot, Ladder(self.tariffs, 0, {}))

    def _accumulations_of(self, slot: int) -> list[int]:
        """Return the slots of an account's accumulations, in the order of its row."""
        slots, at = [], int(self.account_links["first_accumulation"][slot])
        following = self._next_accumulation.data
        while at != _NONE:
            slots.append(at)
            at = following[at]
        return slots

    def _link_accumulations(
        self, slot: int, slots: list[int], keys: list[Key], heads: set[Key]
    ) -> None:
        """Let each owner's newest accumulation be found at once, or that of the rate used last.

        `slots` and `keys`: of all of them, in the order of the row. `heads`: see `Ladder`.
        """
        newest = {key[0]: at for at, key in zip(slots, keys, strict=True)}
        newest |= {key[0]: at for at, key in zip(slots, keys, strict=True) if key in heads}
        for owner, at in newest.items():
            meter_slot = self.meter_in(slot, owner) if owner else None
            if meter_slot is not None:
                self.meter_links["accumulation"][meter_slot] = at
            elif not owner:
                self.account_links["accumulation"][slot] = at

    def _free_accumulation(self) -> int:
        if self._free_accumulations:
            return self._free_accumulations.pop()
        self._accumulations_used += 1
        self.accumulations = grown(self.accumulations, self._accumulations_used)
        self._next_accumulation = grown(self._next_accumulation, self._accumulations_used)
        return self._accumulations_used - 1

    def windows_of(self, meter_slot: int) -> list[Window]:
        """Return a meter's windows, ascending."""
        return self._windows.of(meter_slot, int(self.meters["windows"][meter_slot]))

    def put_windows(self, meter_slot: int, windows: Sequence[Window]) -> None:
        """Let a meter's windows be `windows`, ascending."""
        self.meters["windows"][meter_slot] = self._windows.put(meter_slot, windows)

    def append_windows(self, meter_slots: Array, newest: Array) -> None:
        """Let each of some meters have one more window: see `Windows.append`."""
        said = self.meters["windows"].take(meter_slots)
        self.meters["windows"][meter_slots] = self._windows.append(meter_slots, said, newest)

    def forget_windows(self, slot: int, from_ms: int) -> bool:
        """Let the windows of an account's meters go that end behind an instant; say whether any."""
        forgot = False
        for meter_slot in self.meters_of(slot):
            if self.meters["windows"][meter_slot]:
                windows = self.windows_of(meter_slot)
                kept = [window for window in windows if window[2] <= from_ms]
                self.put_windows(meter_slot, kept)
                forgot |= len(kept) < len(windows)
        return forgot

    # Holds

    def held_of(self, meter_slot: int) -> Held:
        """Return the reading that a meter's hold waits for."""
        return Held(*HELD.unpack(self._held[meter_slot]))

    def put_hold(self, meter_slot: int, hold: int, held: Held | None = None) -> None:
        """Let a meter be held for a reading; hold 0: for none."""
        self.meters["hold"][meter_slot] = hold
        if held is not None:
            self._held[meter_slot] = HELD.pack(*held)
        else:
            self._held.pop(meter_slot, None)
            self.meters["flags"][meter_slot] &= ~np.uint32(READ_AGAIN)

    def waiting_of(self, meter_slot: int) -> Waiting | None:
        """Return the closing register of the epoch before that waits with a meter."""
        packed = self._waiting.get(meter_slot)
        if packed is None:
            return None
        meters = np.frombuffer(packed[: METER.itemsize], METER).copy()
        return Waiting(meters, Held(*HELD.unpack(packed[METER.itemsize :])))

    def put_waiting(self, meter_slot: int, waiting: Waiting | None) -> None:
        """Let a closing register wait with a meter; None: none."""
        packed = b"" if waiting is None else waiting.meters.tobytes() + HELD.pack(*waiting.held)
        self._put_tail(self._waiting, TAIL_WAITING, meter_slot, packed)

    def _put_tail(self, tails: dict[int, bytes], bit: int, meter_slot: int, packed: bytes) -> None:
        if packed:
            self.meters["tails"][meter_slot] |= bit
            tails[meter_slot] = packed
        else:
            self.meters["tails"][meter_slot] &= ~np.uint8(bit)
            tails.pop(meter_slot, None)

    # Habits

    @property
    def have_habits(self) -> bool:
        """Whether any meter has some, or a stand."""
        return bool(self._habits or self._stands)

    def habits_of(self, meter_slot: int) -> Habits | None:
        """Return what a meter usually takes."""
        packed = self._habits.get(meter_slot)
        if packed is None:
            return None
        time_ms, register_milli, *hours = HABITS.unpack(packed)
        return Habits(time_ms, register_milli, tuple(hours[:HOURS]), tuple(hours[HOURS:]))

    def put_habits(self, meter_slot: int, habits: Habits | None) -> None:
        """Let a meter have habits; None: none."""
        packed = b""
        if habits is not None:
            mark = habits.time_ms, habits.register_milli
            packed = HABITS.pack(*mark, *habits.levels, *habits.told)
        self._put_tail(self._habits, TAIL_HABITS, meter_slot, packed)

    def stand_of(self, meter_slot: int) -> Stand | None:
        """Return since when a meter's register stands; None: nobody asked."""
        packed = self._stands.get(meter_slot)
        return None if packed is None else Stand(*STAND.unpack(packed))

    def put_stand(self, meter_slot: int, stand: Stand | None) -> None:
        """Let a meter have a stand; None: none."""
        packed = b"" if stand is None else STAND.pack(*stand)
        self._put_tail(self._stands, TAIL_STAND, meter_slot, packed)

    def silent_meters(self, offset: int) -> list[int]:
        """Return the slots of meters whose silence the record at `offset` tells.

        In ascending (account_key, meter_key); not of accounts that have absorbed it already.
        """
        silent = np.flatnonzero(self.silent_at_ms[: self._meter_slots_used] <= self.now_ms)
        accounts = self.accounts[self.meter_links["account"][silent]]
        order = np.lexsort((self.meters["key"][silent], accounts["key"]))
        return [int(silent[i]) for i in order.tolist() if accounts["offset"][i] < offset]

    def tell_silence(self, meter_slot: int) -> None:
        """Let a meter be silent: until its next reading nothing more is told of it."""
        meter = self.meters[meter_slot]
        meter["flags"] |= 1 << FLAGS.index("silent")
        meter["silent_at_ms"] = self.silent_at_ms[meter_slot] = NOT_DUE_MS

    # Rows

    def header_row(self) -> Row:
        return header_row(self.offset, self.now_ms)

    def rows(self) -> tuple[list[Row], list[Row], Row]:
        """Return (fact rows, account rows, header row): everything, to be written anew."""
        slots = np.arange(self.account_count)
        return list(self.facts.rows()), list(self.account_rows(slots)), self.header_row()

    def account_rows(self, slots: Array) -> Rows:
        """Return the rows of accounts, in the order of `slots`."""
        counts = self.accounts["meters"][slots]
        tables: list[RowTable] = []
        for count in np.unique(counts).tolist():
            places = np.flatnonzero(counts == count)
            tables += self._tables(places, slots[places], count)
        return Rows(tables)

    def _tables(self, places: Array, slots: Array, count: int) -> Iterator[RowTable]:
        """Yield the rows of accounts with so many meters each, together those of one shape."""
        if count == 1:
            meter_slots = self.account_links["only_meter"][slots]
        else:
            of_each = chain.from_iterable(map(self.meters_of, slots.tolist()))
            meter_slots = np.fromiter(of_each, np.int64)
        if not (self._accumulations_used or self._windows or any(self._tails) or self._any_divided):
            yield self._table(0, places, slots, meter_slots.reshape(len(slots), count))
            return
        tails = sizes_of_tails(self.meters, meter_slots).sum(axis=0)
        shapes = self.accounts["accumulations"][slots] * np.int64(_TAILS_END)
        shapes += tails.reshape(len(slots), count).sum(axis=1)
        shapes += self.components.take(slots, axis=0).any(axis=1) * _DIVIDED
        meter_slots = meter_slots.reshape(len(slots), count)
        for shape in sorted(set(shapes.tolist())):
            which = np.flatnonzero(shapes == shape)
            yield self._table(shape, places[which], slots[which], meter_slots[which])

    def _table(self, shape: int, places: Array, slots: Array, meter_slots: Array) -> RowTable:
        """Return the rows of accounts of one shape; `meter_slots`: of each, a line an account."""
        keys = account_row_keys(self.accounts["key"][slots])
        accounts, meters = words(self.accounts), words(self.meters)
        counted = meters.take(meter_slots.ravel(), axis=0)
        parts = [accounts.take(slots, axis=0), counted.reshape(len(slots), -1)]
        if shape // _TAILS_END:
            at = self._accumulations_of_each(slots, shape // _TAILS_END)
            counted = words(self.accumulations).take(at, axis=0)
            parts.append(counted.reshape(len(slots), -1))
        if shape % _TAILS_END > _DIVIDED:
            tails = self._tails_of(meter_slots.ravel())
            parts.append(tails.reshape(len(slots), -1))
        if shape & _DIVIDED:
            parts.append(self.components.take(slots, axis=0))
        return RowTable(places, keys, octets(np.concatenate(parts, axis=1)))

    @property
    def _tails(self) -> tuple[dict[int, bytes], ...]:
        """What stands behind a meter's windows in its row, packed, in its order."""
        return self._held, self._waiting, self._habits, self._stands

    def _tails_of(self, meter_slots: Array) -> Array:
        """Return what stands behind the meters in their rows, one meter's behind the other's."""
        said = self.meters["windows"].take(meter_slots)
        others = sizes_of_tails(self.meters, meter_slots)[1:]
        if not (others.any() or (said & WITH_RATES).any()):
            return self._windows.flat(meter_slots, said)
        each = zip(meter_slots.tolist(), said.tolist(), strict=True)
        return np.frombuffer(b"".join([self._tail(*meter) for meter in each]), np.int64)

    def _accumulations_of_each(self, slots: Array, count: int) -> Array:
        """Return the slots of the accumulations of accounts that have `count` each."""
        if count > _STEPS_MAX:
            of_each = chain.from_iterable(map(self._accumulations_of, slots.tolist()))
            return np.fromiter(of_each, np.int64)
        steps = [self.account_links["first_accumulation"][slots]]
        while len(steps) < count:
            steps.append(self._next_accumulation.take(steps[-1]))
        return np.stack(steps, axis=1).ravel()

    def _tail(self, meter_slot: int, said: int) -> bytes:
        others = [tail.get(meter_slot, b"") for tail in self._tails]
        return b"".join([self._windows.packed(meter_slot, said), *others])

    @classmethod
    def from_rows(cls, shard: int, rows: Iterable[tuple[bytes, bytes]]) -> "ShardState":
        """Return the shard that `rows` describe: any versions of each row, in any order.

        Raises BadRows where this version cannot stand on them.
        """
        return cls.from_newest(shard, joined(rows))

    @classmethod
    def from_newest(cls, shard: int, newest: Mapping[bytes, bytes]) -> "ShardState":
        """Return the shard that `newest` describes: what `joined` makes of its rows.

        Raises BadRows where this version cannot stand on them.
        """
        state = cls(shard)
        if header := newest.get(HEADER_KEY):
            state.offset, state.now_ms = header_of(header)
        check_drained(newest.values(), state.offset)
        state._load_accounts(
            [value for key, value in newest.items() if key.startswith(ACCOUNT_PREFIX)]
        )
        facts = (pair for pair in newest.items() if pair[0].startswith(FACT_PREFIX))
        state._load_facts((key.removeprefix(FACT_PREFIX).decode(), value) for key, value in facts)
        return state

    def _load_accounts(self, values: list[bytes]) -> None:
        parsed = parsed_accounts(values)
        accounts, meters = parsed.accounts, parsed.meters
        count = len(accounts)
        self._account_keys.extend(accounts["key"])
        self.accounts = grown(self.accounts, count)
        self.account_links = grown(self.account_links, count)
        self.components = grown(self.components, count)
        self.components[:count] = parsed.components
        self._any_divided = bool(parsed.components.any())
        self._divided_most_nano = _magnitude(self.components)
        self.due_ms = grown(self.due_ms, count)
        slots = np.arange(count)
        self.put_accounts(slots, accounts)
        self.accounts["layout"][slots] = LAYOUT_VERSION
        self.accounts["absorb"][slots] = ABSORB_VERSION
        self._meter_slots_used = len(meters)
        self.meters = grown(self.meters, len(meters))
        self.meter_links = grown(self.meter_links, len(meters))
        self.meters[: len(meters)] = meters
        self.silent_at_ms = grown(self.silent_at_ms, len(meters))
        self.silent_at_ms[: len(meters)] = meters["silent_at_ms"]
        self.account_links["accumulation"][slots] = _NONE
        self.meter_links["accumulation"][: len(meters)] = _NONE
        self._load_shapes(parsed)
        ends = np.cumsum(accounts["meters"], dtype=np.int64)
        starts = ends - accounts["meters"]
        self.account_links["only_meter"][slots] = np.where(accounts["meters"] == 1, starts, _NONE)
        self.meter_links["account"][: len(meters)] = np.repeat(slots, accounts["meters"])
        for slot in np.flatnonzero(accounts["meters"] > 1).tolist():
            self._meters_of[slot] = list(range(int(starts[slot]), int(ends[slot])))
        # Where a meter stands in two accounts, one row is older than the other. At the header's
        # offset it stands where it had entered last; later stands are found when replay is there.
        standing = np.flatnonzero(meters["entered_offset"] <= self.offset)
        order = standing[np.argsort(meters["entered_offset"][standing], kind="stable")]
        self._meter_keys.extend(np.unique(meters["key"][order]))
        self._standing = grown(self._standing, len(order))
        self._standing[self._meter_keys.numbers(meters["key"][order])] = order
        self._link_newest_accumulations()

    def _load_shapes(self, parsed: ParsedAccounts) -> None:
        self._windows = Windows.of_all(parsed.meters["windows"], parsed.windows)
        self._held = {slot: packed for slot, packed in enumerate(parsed.held) if packed}
        self._waiting = {slot: packed for slot, packed in enumerate(parsed.waiting) if packed}
        self._habits = {slot: packed for slot, packed in enumerate(parsed.habits) if packed}
        self._stands = {slot: packed for slot, packed in enumerate(parsed.stands) if packed}
        self.accumulations = grown(self.accumulations, len(parsed.accumulations))
        self.accumulations[: len(parsed.accumulations)] = parsed.accumulations
        self._accumulations_used = len(parsed.accumulations)
        counts = parsed.accounts["accumulations"].astype(np.int64)
        ends = np.cumsum(counts)
        firsts = np.where(counts, ends - counts, _NONE)
        self.account_links["first_accumulation"][: len(counts)] = firsts
        self._next_accumulation = np.arange(1, 1 + len(self.accumulations), dtype=np.int32)
        self._next_accumulation[ends[counts > 0] - 1] = _NONE

    def _link_newest_accumulations(self) -> None:
        """Let the newest accumulation of each owner be found at once: the last one in the row."""
        counts = self.accounts["accumulations"][: self.account_count]
        accounts = np.repeat(np.arange(len(counts)), counts)
        owners = self.accumulations["owner"][: self._accumulations_used]
        others = (owners[1:] != owners[:-1]) | (accounts[1:] != accounts[:-1])
        newest = np.flatnonzero(np.append(others, True)[: len(owners)])
        of_accounts = newest[owners[newest] == 0]
        self.account_links["accumulation"][accounts[of_accounts]] = of_accounts
        of_meters = newest[owners[newest] != 0]
        meter_slots = self.find_meters(owners[of_meters])
        here = self.meter_links["account"][meter_slots] == accounts[of_meters]
        here &= meter_slots != _NONE
        self.meter_links["accumulation"][meter_slots[here]] = of_meters[here]

    def _load_facts(self, values: Iterable[tuple[str, bytes]]) -> None:
        self.facts.load(values, self.offset)
        for fact in self.facts.told("tariffs"):
            self.tariffs.put(fact)
        for fact in self.facts.told("policies"):
            self.policies.put(fact)
        slots = self._account_keys.numbers(self.facts.accounts.keys.all())
        slots = slots[slots >= 0]
        self.account_links["tariff"][slots] = _UNLINKED
        self._unlinked = len(slots)


def _magnitude(figures: Array) -> int:
    return max(int(figures.max()), -int(figures.min()))


def _billed_as(fact: Fact) -> tuple[str, str, str]:
    return fact["legal_entity"], fact["currency"], fact["commodity"]
