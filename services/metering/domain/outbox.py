"""What one record causes, gathered while it is absorbed, and turned into records at its end."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any
from uuid import UUID

import numpy as np

from services.common.kernel.frames import CHARGE_KINDS, Table, columns_of_charges
from services.common.kernel.ids import name_uuid
from services.common.policies.levels import LEVEL_NAMES, NORMAL
from services.metering.domain.causes import Cause, Evidence, began_at_ms, charged_meter, cited
from services.metering.domain.facts import Array
from services.metering.domain.messages import (
    FIGURES,
    IDENTITY,
    Absorbed,
    BalanceTable,
    Output,
    Outputs,
    Row,
)
from services.metering.domain.rows import NEVER_MS, NOT_DUE_MS, Fact
from services.metering.domain.shard import ShardState
from services.metering.domain.shard_rows import account_rows

CHARGES_MAX = 1000
"""Charges of a frame: a month's fees of a whole shard fall due in one record."""
_DECISIONS = ("cut", "not-cut")
_NO_EVIDENCE = dict.fromkeys(Evidence.__dataclass_fields__)


class Outbox:
    """The outputs, rows and counts of the record at `offset`."""

    def __init__(self, state: ShardState, offset: int, now_ms: int | None = None) -> None:
        self.state = state
        self.offset = offset
        self.now_ms: Any = state.now_ms if now_ms is None else now_ms
        self.counts: Counter[str] = Counter()
        self.fact_rows: list[Row] = []
        self._touched: list[Array] = []
        self._publish: list[Array] = []
        self._charges: list[tuple[Array, Table, Array, Array]] = []
        self._decisions: list[tuple[int, Output]] = []
        self._echoes: list[tuple[int, dict[str, Any]]] = []
        self._ordinals: Counter[tuple[str, str]] = Counter()

    def count(self, outcome: str, how_many: int = 1) -> None:
        if how_many:
            self.counts[outcome] += how_many

    def touch(self, slots: Array) -> None:
        """Accounts whose rows changed; at the record's end they have absorbed it."""
        self._touched.append(slots)

    def publish(self, slots: Array) -> None:
        """Publish balances at the record's end, one an account, as they are then."""
        self._publish.append(slots)

    def charge(self, positions: Array, charges: Table, names: Array, lines: Array) -> None:
        """Charges (dtype CHARGE) of the readings at `positions`; names: numbers of groups.

        lines: dtype LINE, of these charges.
        """
        self._charges.append((positions, charges, names, lines))

    def alarm(
        self,
        slot: int,
        kind: str,
        reason: str,
        cause: Cause,
        *,
        levels: tuple[int, int] | None = None,
        threshold_nano: int | None = None,
        intent_epoch: int | None = None,
        evidence: Evidence | None = None,
        forced_orders: str | None = None,
    ) -> None:
        """Raise an alarm for an account. levels: (before, after), by default as it is."""
        state, identity = self.state, self._identity(slot, cause)
        level = int(state.accounts["level"][slot])
        before, after = levels or (level, level)
        event_id = self._event_id("alarm", identity["account_id"], kind)
        record = {
            "alarm_id": str(event_id),
            "kind": kind,
            "reason": reason,
            "meter_id": cause.meter["meter_id"] if cause.meter else None,
            "meter_epoch": cause.meter["epoch"] if cause.meter else None,
            "reading_began_at_ms": began_at_ms(cause) if kind in _DECISIONS else None,
            "threshold_nano": threshold_nano,
            "level_before": LEVEL_NAMES[before],
            "level_after": LEVEL_NAMES[after],
            "intent_epoch": intent_epoch,
            "intent_offset": None if intent_epoch is None else self.offset,
            "log_offset": self.offset,
            "forced_orders": forced_orders,
            **(_NO_EVIDENCE if evidence is None else asdict(evidence)),
            **self._standing(slot, identity, cause),
            **self._arrears(slot),
        }
        output = Output("alarms", "alarm", identity["account_id"], record, event_id, state.now_ms)
        self._decisions.append((cause.position, output))

    def fact_late(self, fact: Fact, site_id: str) -> None:
        """Say that a tariff-fact came after its instant: a site was charged without it."""
        name = f"{fact['tariff_id']}/{fact['version']}/{site_id}"
        event_id = self._event_id("alarm", name, "fact-late")
        record = {
            "alarm_id": str(event_id),
            "kind": "fact-late",
            "reason": "after-its-instant",
            "meter_id": None,
            "meter_epoch": None,
            "threshold_nano": None,
            "level_before": LEVEL_NAMES[NORMAL],
            "level_after": LEVEL_NAMES[NORMAL],
            "intent_epoch": None,
            "intent_offset": None,
            "log_offset": self.offset,
            "account_id": "",
            "site_id": site_id,
            "available_nano": 0,
            "account_sequence": 0,
            "account_revision": fact["revision"],
            "book_epoch": fact["book_epoch"],
            "policy_id": None,
            "policy_version": None,
            "tariff_id": fact["tariff_id"],
            "currency": fact["currency"],
            "legal_entity": fact["legal_entity"],
            "commodity": fact["commodity"],
            "decided_at_ms": self.state.now_ms,
            **cited(Cause()),
            **_NO_EVIDENCE,
            "tariff_version": fact["version"],
            "forced_orders": None,
            "reading_began_at_ms": None,
            "arrears_since_ms": None,
            "notice_id": None,
            "notice_outcome": None,
        }
        now_ms = self.state.now_ms
        output = Output("alarms", "alarm", fact["tariff_id"], record, event_id, now_ms)
        self._decisions.append((0, output))

    def intent(
        self,
        slot: int,
        meter_slot: int,
        wanted: str,
        cause_name: str,
        cause: Cause,
        *,
        mode: str = "prepaid",
        send_before_ms: int | None = None,
        threshold_nano: int | None = None,
    ) -> None:
        """Want a position of a meter's relay."""
        state = self.state
        meter = state.meters[meter_slot]
        fact = state.meter_fact(int(meter["key"]))
        identity = self._identity(slot, cause)
        event_id = self._event_id("intent", fact["meter_id"], wanted)
        record = {
            "meter_id": fact["meter_id"],
            "meter_key": fact["meter_key"],
            "line_id": fact["line_id"],
            "epoch": int(meter["epoch"]),
            "version_offset": self.offset,
            "shard": state.shard,
            "wanted": wanted,
            "mode": mode,
            "cause": cause_name,
            "send_before_ms": send_before_ms,
            "cause_meter_id": charged_meter(cause),
            "threshold_nano": threshold_nano,
            **self._standing(slot, identity, cause),
            **self._arrears(slot),
        }
        output = Output(
            "relay-intents",
            "relay-intent",
            fact["meter_id"],
            record,
            event_id,
            state.now_ms,
            route=identity["site_id"],
        )
        self._decisions.append((cause.position, output))

    def notice(
        self, slot: int, cause: Cause, *, threshold_nano: int, cut_not_before_ms: int
    ) -> None:
        """Let a person be told that a cut is coming, by the notice in the account's row."""
        state, fact = self.state, self.state.account_fact(slot)
        assert fact is not None, "only accounts with an account-fact are judged"
        event_id = _notice_id(fact, state.accounts[slot])
        record = {
            "notice_id": str(event_id),
            "kind": "cut-off",
            "threshold_nano": threshold_nano,
            "cut_not_before_ms": cut_not_before_ms,
            "log_offset": self.offset,
            **self._standing(slot, fact, cause),
        }
        output = Output("notices", "notice", fact["account_id"], record, event_id, state.now_ms)
        self._decisions.append((cause.position, output))

    def echo(self, slot: int, *, hold_id: str = "", ask_id: str | None = None) -> None:
        """Answer a hold, or an ask, with what is known now; with the row at the record's end."""
        account, identity = self.state.accounts[slot], self._identity(slot, Cause())
        heard = bool(account["last_received_at_ms"] >= 0)
        divided_nano = self.state.components.of(slot, int(account["charged_nano"]))
        record = {
            "account_id": identity["account_id"],
            "account_revision": int(account["revision"]),
            "book_epoch": int(account["book_epoch"]),
            "hold_id": hold_id,
            "credited_nano": int(account["credited_nano"]),
            "charged_nano": int(account["charged_nano"]),
            "account_sequence": int(account["sequence"]),
            "open_meters": int(account["meters"]),
            "last_reading_received_at_ms": int(account["last_received_at_ms"]) if heard else None,
            "decided_at_ms": self.state.now_ms,
            "log_offset": self.offset,
            "currency": identity["currency"],
            "legal_entity": identity["legal_entity"],
            "commodity": identity["commodity"],
            "ask_id": ask_id,
            **{f"{name}_nano": amount_nano for name, amount_nano in divided_nano.items()},
            "meters": [self._stand(meter_slot) for meter_slot in self.state.meters_of(slot)],
            "row": b"",
            "frozen": bool(account["frozen"]),
            "waiting": self._waiting(slot),
        }
        event_id = self._event_id("echo", identity["account_id"], hold_id or ask_id or "")
        output = Output(
            "echoes", "echo", identity["account_id"], record, event_id, self.state.now_ms
        )
        self._decisions.append((0, output))
        self._echoes.append((slot, record))

    def _waiting(self, slot: int) -> list[dict[str, Any]]:
        """Return which meters of an account have a closing register that waits for a person."""
        found = []
        for meter_slot in self.state.meters_of(slot):
            if waiting := self.state.tails.waiting_of(meter_slot):
                fact = self.state.meter_fact(int(self.state.meters["key"][meter_slot]))
                reading_id = str(UUID(bytes=waiting.held.reading_id))
                found.append({"meter_id": fact["meter_id"], "reading_id": reading_id})
        return found

    def _stand(self, meter_slot: int) -> dict[str, Any]:
        """Return where a meter of an account stands."""
        meter = self.state.meters[meter_slot]
        return {
            "meter_id": self.state.meter_fact(int(meter["key"]))["meter_id"],
            "epoch": int(meter["epoch"]),
            "ratio": int(meter["ratio"]),
            "register_milli": int(meter["register_milli"]) if meter["opened"] else None,
            "time_ms": int(meter["time_ms"]) or None,
            "energy_total_milli": int(meter["energy_total_milli"]),
        }

    def absorbed(self) -> Absorbed:
        """Return all of it. The state's offset must be the record's by now."""
        published = _distinct(self._publish)
        self._set_published(published, self.now_ms)
        self._decisions.sort(key=lambda decision: decision[0])
        singly = [*self._charge_frames(), *(output for _, output in self._decisions)]
        outputs = Outputs(singly, self.balances(published))
        touched = _distinct(self._touched)
        self.state.accounts["offset"][touched] = self.offset
        for slot, echo in self._echoes:
            echo["row"] = account_rows(self.state, np.array([slot]))[0].value
        return Absorbed(
            outputs,
            tuple(self.fact_rows),
            account_rows(self.state, touched),
            self.state.header_row(),
            self.counts,
        )

    def _identity(self, slot: int, cause: Cause) -> Fact:
        identity = self.state.account_fact(slot) or cause.identity or cause.meter
        assert identity is not None, "an account that nobody named decides nothing"
        return identity

    def _event_id(self, kind: str, owner: str, what: str) -> UUID:
        """Return an id that a repeat has again: counted per owner, for accounts may be skipped."""
        ordinal = self._ordinals[owner, kind + what]
        self._ordinals[owner, kind + what] += 1
        return name_uuid(kind, self.state.shard, self.offset, owner, what, ordinal)

    def _standing(self, slot: int, identity: Fact, cause: Cause) -> dict[str, Any]:
        """Return what a decision says of the account, and what it cites."""
        state = self.state
        account = state.accounts[slot]
        fact = state.account_fact(slot)
        policy = state.policies.rows[state.account_links["policy"][slot]]
        return {
            "account_id": identity["account_id"],
            "site_id": identity["site_id"],
            "available_nano": available_nano(account),
            "account_sequence": int(account["sequence"]),
            "account_revision": int(account["revision"]),
            "book_epoch": int(account["book_epoch"]),
            "policy_id": fact["policy_id"] if fact else None,
            "policy_version": int(policy["version"]) if policy["present"] else None,
            "tariff_id": fact["tariff_id"] if fact and cause.charge is not None else None,
            "currency": identity["currency"],
            "legal_entity": identity["legal_entity"],
            "commodity": identity["commodity"],
            "decided_at_ms": state.now_ms,
            **cited(cause),
        }

    def _arrears(self, slot: int) -> dict[str, Any]:
        """Return since when an account is in arrears, and the notice of a cut that stands."""
        since_ms = int(self.state.accounts["arrears_since_ms"][slot])
        notice_id, outcome = notice_of(self.state, slot)
        return {
            "arrears_since_ms": None if since_ms == NEVER_MS else since_ms,
            "notice_id": notice_id,
            "notice_outcome": outcome,
        }

    def _charge_frames(self) -> Iterable[Output]:
        if not self._charges:
            return
        _, charges, numbers, lines = self._charges[0]
        if len(self._charges) > 1:
            charges, numbers, lines = _together(self._charges)
        if len(charges) <= CHARGES_MAX:
            yield self._charge_frame(charges, numbers, lines)
            return
        for begin in range(0, len(charges), CHARGES_MAX):
            end = begin + CHARGES_MAX
            within = (lines["charge"] >= begin) & (lines["charge"] < end)
            mine = lines[within]
            mine["charge"] -= begin
            some = charges.take(np.arange(begin, min(end, len(charges))))
            yield self._charge_frame(some, numbers[begin:end], mine, begin)

    def _charge_frame(self, charges: Table, numbers: Array, lines: Array, part: int = 0) -> Output:
        names, indexes = self.state.names.dictionary(numbers)
        set_names(charges, indexes)
        return self.charge_frame(columns_of_charges(names, charges, lines), part)

    def charge_frame(self, columns: dict[str, Any], part: int = 0) -> Output:
        """Return the output that holds charges of the record, those from `part` on."""
        shard = self.state.shard
        return Output(
            "charges",
            "charge-frame",
            str(shard),
            {**columns, "shard": shard, "log_offset": self.offset},
            name_uuid("charges", shard, self.offset, *([part] if part else [])),
            self.now_ms,
        )

    def _set_published(self, slots: Array, now_ms: Any) -> None:
        if len(slots):
            state = self.state
            state.accounts["published_at_ms"][slots] = now_ms
            state.accounts["due_ms"][slots] = NOT_DUE_MS
            state.due_ms[slots] = NOT_DUE_MS
            self.touch(slots)

    def balances(self, slots: Array) -> BalanceTable | None:
        """Return the balances of accounts as they are now; None where there is no account."""
        if not len(slots):
            return None
        return balances_of(self.state, slots, np.full(len(slots), self.offset), self.now_ms)


def balances_of(state: ShardState, slots: Array, log_offsets: Array, as_of_ms: Any) -> BalanceTable:
    """Return the balances of accounts as they are now, published by the records at `log_offsets`.

    `as_of_ms`: of each, or of all.
    """
    accounts = state.accounts.take(slots)
    order = np.lexsort((accounts["key"], log_offsets))
    figures = np.empty((len(slots), len(FIGURES)), np.int64)
    for column, name in enumerate(FIGURES):
        figures[:, column] = accounts[name]
    return BalanceTable(
        state.shard,
        log_offsets[order],
        np.broadcast_to(as_of_ms, len(slots))[order],
        list(state.account_values(slots[order], IDENTITY)),
        figures[order],
    )


def set_names(charges: Table, indexes: Array) -> None:
    """Set the names of charges: indexes (n, 5) into the dictionary of their frame."""
    kinds = ("tariff", "policy", "legal_entity", "currency", "commodity")
    for column, kind in enumerate(kinds):
        charges[f"{kind}_name"] = indexes[:, column]


def available_nano(account: Any) -> int:
    """Return credited − charged − held, exact."""
    return int(account["credited_nano"]) - int(account["charged_nano"]) - int(account["held_nano"])


def notice_of(state: ShardState, slot: int) -> tuple[str | None, str | None]:
    """Return (id, outcome) of the notice of an account that stands; None: none, or not known."""
    account, fact = state.accounts[slot], state.account_fact(slot)
    if fact is None or account["notice_at_ms"] == NEVER_MS:
        return None, None
    notice_id = str(_notice_id(fact, account))
    return notice_id, fact["notice_outcome"] if fact["notice_id"] == notice_id else None


def _notice_id(fact: Fact, account: Any) -> UUID:
    return name_uuid("notice", fact["account_id"], int(account["notice_sequence"]))


def _together(parts: list[tuple[Array, Table, Array, Array]]) -> tuple[Table, Array, Array]:
    """Return (charges, names, lines) of several rounds in the order of the readings."""
    order = np.argsort(np.concatenate([part[0] for part in parts]), kind="stable")
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    befores = np.cumsum([0, *(len(part[1]) for part in parts)])
    lines = np.concatenate([part[3] for part in parts])
    shifts = np.repeat(befores[:-1], [len(part[3]) for part in parts])
    lines["charge"] = places[lines["charge"] + shifts]
    return (
        Table.joined(CHARGE_KINDS, [part[1] for part in parts]).take(order),
        np.concatenate([part[2] for part in parts])[order],
        lines[np.argsort(lines["charge"], kind="stable")],
    )


def _distinct(parts: list[Array]) -> Array:
    """Return slots in order of first mention."""
    if not parts:
        return np.empty(0, np.int64)
    if len(parts) == 1:
        return parts[0]
    return np.array(list(dict.fromkeys(np.concatenate(parts).tolist())), np.int64)
