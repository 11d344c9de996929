"""One shard as arrays: one slot an account, one slot a meter."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from services.common.kernel.frames import ABSENT_REGISTER
from services.metering.domain.accumulations import Accumulations
from services.metering.domain.components import Components
from services.metering.domain.factlog import FactLog
from services.metering.domain.facts import Array, Names, Policies, grown
from services.metering.domain.keys import NO_SLOT, Keys, Standing
from services.metering.domain.ladders import Accumulation, Key, Ladder
from services.metering.domain.messages import Row
from services.metering.domain.rows import (
    ABSORB_VERSION,
    ACCOUNT,
    FLAGS,
    FORCED,
    LAYOUT_VERSION,
    METER,
    NEVER_MS,
    NO_POWER,
    NOT_DUE_MS,
    Fact,
    header_row,
    words,
)
from services.metering.domain.tails import Tails, Waiting
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
has exactly one. accumulation: slot of the one that energy comes to most likely; NO_SLOT where none
is known. first_accumulation: that of the first in the order of the row; NO_SLOT where it has none.
"""
_NAMING = ("tariff_id", "policy_id", "legal_entity", "currency", "commodity")
"""What an account-fact has of those links: the group's names."""
_UNLINKED = -1
"""Tariff of an account whose fact was read at the start: its links are made at first use."""
_METER_LINKS = np.dtype([("account", "<i4"), ("names", "<i4"), ("accumulation", "<i4")])
"""names: as above, "" for tariff and policy: what a charge of a house account is named by."""


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
        self.components = Components()
        self._unlinked = 0
        """How many accounts have a fact that was read at the start and not looked at yet."""
        self.due_ms = np.zeros(16, np.int64)
        """Copy of accounts["due_ms"], dense, because it is searched often."""
        self.meters = np.zeros(16, METER)
        self.silent_at_ms = np.full(16, NOT_DUE_MS)
        """Copy of meters["silent_at_ms"], dense, because it is searched often."""
        self.meter_links = np.zeros(16, _METER_LINKS)
        self.accumulations = Accumulations()
        self.windows = Windows()
        self.tails = Tails()
        self.account_keys = Keys()
        """An account's slot is the number of its key: accounts never go."""
        self._meters_of: dict[int, list[int]] = {}
        """Slots of the meters of accounts that have more than one."""
        self.standing = Standing()
        """Slots of meters, of those that stand in an account."""
        self._free_meter_slots: list[int] = []
        self.meter_slots_used = 0

    @classmethod
    def empty(cls, shard: int) -> "ShardState":
        return cls(shard)

    @property
    def account_count(self) -> int:
        return len(self.account_keys)

    @property
    def meter_count(self) -> int:
        return self.standing.count()

    def make_room(self, accounts: int, meters: int) -> None:
        """Have slots for so many accounts, and so many meters."""
        self.accounts = grown(self.accounts, accounts)
        self.account_links = grown(self.account_links, accounts)
        self.components.make_room(accounts)
        self.due_ms = grown(self.due_ms, accounts)
        self.meters = grown(self.meters, meters)
        self.silent_at_ms = grown(self.silent_at_ms, meters)
        self.meter_links = grown(self.meter_links, meters)

    def header_row(self) -> Row:
        return header_row(self.offset, self.now_ms)

    def next_deadline_ms(self) -> int | None:
        """Return when the next balance or fee is due, or silence told; None: none ever is."""
        count = self.account_count
        fees_ms = self.accounts["fees_due_ms"][:count].min(initial=NOT_DUE_MS)
        silent_at_ms = self.silent_at_ms[: self.meter_slots_used].min(initial=fees_ms)
        earliest = int(self.due_ms[:count].min(initial=silent_at_ms))
        return None if earliest == NOT_DUE_MS else earliest

    # Accounts

    def account_slot(self, account_key: int) -> int | None:
        """Return the slot of an account that a fact is about."""
        slot = self.account_keys.number(account_key)
        if slot < 0:
            return None
        self.link_read(np.array([slot]))
        return slot

    def account_fact(self, slot: int) -> Fact | None:
        """Return the newest fact of an account."""
        return self.facts.accounts.newest(int(self.accounts["key"][slot]))

    def account_values(self, slots: Array, fields: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        """Yield these fields of the newest facts of accounts that have one, in their order."""
        return self.facts.accounts.newest_values(self.accounts["key"].take(slots), fields)

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
        slot = self.account_keys.add(account_key)
        self.make_room(slot + 1, 0)
        self.due_ms[slot] = NOT_DUE_MS
        for link in ("only_meter", "accumulation", "first_accumulation"):
            self.account_links[link][slot] = NO_SLOT
        return slot

    def put_accounts(self, slots: Array, accounts: Array) -> None:
        """Write accounts (dtype ACCOUNT, one for each slot)."""
        words(self.accounts)[slots] = words(accounts)
        self.due_ms[slots] = accounts["due_ms"]

    def link_account(self, slot: int, fact: Fact) -> None:
        """Let an account be named and priced by its account-fact."""
        self._link([slot], tuple(fact[name] for name in _NAMING))

    def _link(self, slots: list[int], names: tuple[str, ...]) -> None:
        tariff_id, policy_id, *_ = names
        self.account_links["tariff"][slots] = self.tariffs.slot(tariff_id)
        self.account_links["policy"][slots] = self.policies.slot(policy_id)
        self.account_links["names"][slots] = self.names.group(names)

    def is_other_tariff(self, slot: int, fact: Fact) -> bool:
        """Say whether an account-fact names another tariff than the account has."""
        return bool(self.account_links["tariff"][slot] != self.tariffs.slot(fact["tariff_id"]))

    def link_later(self, account_keys: Array) -> None:
        """Let accounts whose facts were read at the start be linked when they are used."""
        slots = self.account_keys.numbers(account_keys)
        slots = slots[slots >= 0]
        self.account_links["tariff"][slots] = _UNLINKED
        self._unlinked = len(slots)

    def link_read(self, slots: Array) -> None:
        """Link those of the accounts whose facts were read at the start: before they are used."""
        if not self._unlinked:
            return
        unlinked = np.unique(slots[self.account_links["tariff"][slots] == _UNLINKED])
        alike: dict[tuple[Any, ...], list[int]] = {}
        for slot, names in zip(
            unlinked.tolist(), self.account_values(unlinked, _NAMING), strict=True
        ):
            alike.setdefault(names, []).append(slot)
        for names, some in alike.items():
            self._link(some, names)
        self._unlinked -= len(unlinked)

    # Meters

    def put_meters(self, slots: Array, meters: Array) -> None:
        """Write meters (dtype METER, one for each slot)."""
        words(self.meters)[slots] = words(meters)
        self.silent_at_ms[slots] = meters["silent_at_ms"]

    def meters_of(self, slot: int) -> list[int]:
        """Return the slots of an account's meters, in ascending meter_key."""
        only = int(self.account_links["only_meter"][slot])
        return self._meters_of.get(slot, []) if only == NO_SLOT else [only]

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
        self.meter_links["accumulation"][meter_slot] = NO_SLOT
        self.describe_meter(meter_slot, fact)
        keys = self.meters["key"]
        self.meter_links["account"][meter_slot] = slot
        meters = [*self.meters_of(slot), meter_slot]
        self.put_meters_of(slot, sorted(meters, key=lambda each: int(keys[each])))
        self.standing.put(fact["meter_key"], meter_slot)
        if stay is not None:
            self.tails.put_waiting(self.meters, meter_slot, stay.waiting)
            ladder = self.ladder_of(slot)
            slots, owned = self._accumulations_of(slot), [key for key, _ in ladder.sorted()]
            self._link_accumulations(slot, slots, owned, ladder.heads)
        return meter_slot

    def _grow_meters(self) -> int:
        self.meter_slots_used += 1
        self.make_room(0, self.meter_slots_used)
        return self.meter_slots_used - 1

    def put_meters_of(self, slot: int, meters: list[int]) -> None:
        """Let an account's meters be those at the slots `meters`, in ascending meter_key."""
        self.accounts["meters"][slot] = len(meters)
        self.account_links["only_meter"][slot] = meters[0] if len(meters) == 1 else NO_SLOT
        if len(meters) > 1:
            self._meters_of[slot] = meters
        else:
            self._meters_of.pop(slot, None)

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
        slots[meter_slots < 0] = NO_SLOT
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
        self.put_meters_of(slot, meters)
        self.put_windows(meter_slot, [])
        self.tails.clear(self.meters, meter_slot)
        self.silent_at_ms[meter_slot] = NOT_DUE_MS
        ladder = self.ladder_of(slot)
        if not stays and ladder.leave(meter_key):
            self.put_ladder(slot, ladder)
        if self.standing.find(np.array([meter_key]))[0] == meter_slot:
            self.standing.put(meter_key, NO_SLOT)
        self._free_meter_slots.append(meter_slot)

    def replay_entering(self, slot: int, fact: Fact) -> None:
        """Let readings find a meter in an account whose row has it already.

        At a start the row of the account that it left may be older than that of this one.
        """
        meter_slot = self.meter_in(slot, fact["meter_key"])
        if meter_slot is not None:
            self.standing.put(fact["meter_key"], meter_slot)
            self.link_meter(meter_slot, fact)

    # Ladders and windows

    def ladder_of(self, slot: int) -> Ladder:
        """Return a copy of an account's accumulations; `put_ladder` makes it stand."""
        found: dict[Key, Accumulation] = {}
        slots = self._accumulations_of(slot)
        for each in self.accumulations.entries[slots].tolist() if slots else ():
            owner, period, version, rate, days, days_of, _, base_milli, total_milli = each
            key = (owner, period, version, rate)
            found[key] = Accumulation(base_milli, total_milli, days, days_of)
        return Ladder(self.tariffs, int(self.account_links["tariff"][slot]), found)

    def put_ladder(self, slot: int, ladder: Ladder) -> None:
        """Let an account's accumulations be those of `ladder`."""
        slots = self._accumulations_of(slot)
        self.account_links["accumulation"][slot] = NO_SLOT
        self.meter_links["accumulation"][self.meters_of(slot)] = NO_SLOT
        while len(slots) > len(ladder):
            self.accumulations.release(slots.pop())
        while len(slots) < len(ladder):
            slots.append(self.accumulations.add())
        ordered = ladder.sorted()
        for at, (key, each) in zip(slots, ordered, strict=True):
            days = (each.days, each.days_of, b"", each.base_milli, each.total_milli)
            self.accumulations.entries[at] = (*key, *days)
        self.accounts["accumulations"][slot] = len(slots)
        self.account_links["first_accumulation"][slot] = slots[0] if slots else NO_SLOT
        self.accumulations.link(slots)
        self._link_accumulations(slot, slots, [key for key, _ in ordered], ladder.heads)

    def may_open(self, slots: Array, periods: Array) -> Array:
        """Say which accounts may begin an accumulation of a period by `open`.

        Those that have none; and those that have one or two, all their own, where the newest, which
        their energy comes to, is of the period before and the other of an earlier one.
        """
        counts, links = self.accounts["accumulations"][slots], self.account_links[slots]
        newest, first = links["accumulation"], links["first_accumulation"]
        kept = self.accumulations.entries["period"].take(newest)
        following = (counts <= 2) & (newest != NO_SLOT) & (kept == periods - 1)
        following &= self.accumulations.next.take(newest) == NO_SLOT
        following &= (first == newest) | (self.accumulations.entries["period"].take(first) < kept)
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
        at = np.where(first != newest, first, NO_SLOT)  # that of the first one, which goes
        fresh = np.flatnonzero(at == NO_SLOT)
        at[fresh] = [self.accumulations.add() for _ in range(len(fresh))]
        self.accumulations.entries[at] = opened
        self.accumulations.next[at] = NO_SLOT
        following = newest != NO_SLOT
        self.accumulations.next[newest[following]] = at[following]
        self.account_links["first_accumulation"][slots] = np.where(following, newest, at)
        self.account_links["accumulation"][slots] = at
        self.accounts["accumulations"][slots] = 1 + following

    def forget_shapes(self, slot: int) -> None:
        """Let an account's windows and accumulations go."""
        self.forget_windows(slot, 0)
        self.put_ladder(slot, Ladder(self.tariffs, 0, {}))

    def _accumulations_of(self, slot: int) -> list[int]:
        """Return the slots of an account's accumulations, in the order of its row."""
        return self.accumulations.of(int(self.account_links["first_accumulation"][slot]))

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

    def windows_of(self, meter_slot: int) -> list[Window]:
        """Return a meter's windows, ascending."""
        return self.windows.of(meter_slot, int(self.meters["windows"][meter_slot]))

    def put_windows(self, meter_slot: int, windows: Sequence[Window]) -> None:
        """Let a meter's windows be `windows`, ascending."""
        self.meters["windows"][meter_slot] = self.windows.put(meter_slot, windows)

    def append_windows(self, meter_slots: Array, newest: Array) -> None:
        """Let each of some meters have one more window: see `Windows.append`."""
        said = self.meters["windows"].take(meter_slots)
        self.meters["windows"][meter_slots] = self.windows.append(meter_slots, said, newest)

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

    # Silence

    def silent_meters(self, offset: int) -> list[int]:
        """Return the slots of meters whose silence the record at `offset` tells.

        In ascending (account_key, meter_key); not of accounts that have absorbed it already.
        """
        silent = np.flatnonzero(self.silent_at_ms[: self.meter_slots_used] <= self.now_ms)
        accounts = self.accounts[self.meter_links["account"][silent]]
        order = np.lexsort((self.meters["key"][silent], accounts["key"]))
        return [int(silent[i]) for i in order.tolist() if accounts["offset"][i] < offset]

    def tell_silence(self, meter_slot: int) -> None:
        """Let a meter be silent: until its next reading nothing more is told of it."""
        meter = self.meters[meter_slot]
        meter["flags"] |= 1 << FLAGS.index("silent")
        meter["silent_at_ms"] = self.silent_at_ms[meter_slot] = NOT_DUE_MS


def _billed_as(fact: Fact) -> tuple[str, str, str]:
    return fact["legal_entity"], fact["currency"], fact["commodity"]
