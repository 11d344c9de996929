"""Goal: a preview of the tariff that was in force is what was charged, to the last unit.

Method: metering's engine charges a history; its charges become reporting's rows, and the preview
adds them up under the plan that charged them. It knows neither versions nor accumulations nor the
order of arrival: so whatever both agree on, each of them is right about.
"""

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from services.common.kernel.frames import BASIS_CLOSED
from services.common.kernel.ids import column_key
from services.common.tariffs import plan as plans
from services.metering.domain.messages import LogRecord
from services.reporting.domain.rows import ChargeRow, PriceLineRow
from services.reporting.domain.whatif import (
    ACCOUNT,
    Draft,
    InForce,
    Owner,
    Preview,
    Recorded,
    Sums,
    fees_owed,
)
from tests.property.metering_histories import (
    ACCOUNTS,
    METERS,
    Book,
    Frame,
    Op,
    Read,
    calendared,
    steady,
)
from tests.property.metering_runs import examples, fresh_run
from tests.unit.reporting_tables import Tables


def all_of(charges: Iterable[ChargeRow]) -> tuple[int, int]:
    """Return the time in which charges end."""
    ends_ms = [charge.to_time_ms for charge in charges]
    return min(ends_ms), max(ends_ms) + 1


def begins_in(charge: ChargeRow, draft: Draft) -> bool:
    """Say whether a charge that ends behind a draft's time counts in part."""
    return draft.cuts and 0 < charge.from_time_ms < draft.to_ms


class History:
    """What reporting has of a log, and when accounts and meters began."""

    def __init__(self, records: list[LogRecord]) -> None:
        self.tables = Tables((*ACCOUNTS, *METERS))
        self.since_ms: dict[Any, int] = {}
        self.came: dict[tuple[int, int], int] = {}
        self.facts: dict[str, Any] = {}
        self.versions: dict[str, list[Any]] = {}
        _, done = fresh_run(records)
        now_ms = 0
        for record, absorbed in zip(records, done, strict=True):
            now_ms = max(now_ms, record.timestamp_ms)
            self._began(record, now_ms)
            self.tables.sent(absorbed.outputs)

    def _began(self, record: LogRecord, now_ms: int) -> None:
        fact: Any = record.value
        if record.subject == "account-fact":
            self.since_ms.setdefault(fact["account_key"], now_ms)
            self.facts[fact["account_id"]] = fact
        elif record.subject == "meter-fact":
            key, epoch = fact["meter_key"], fact["epoch"]
            self.since_ms.setdefault((key, epoch), now_ms)
            if fact["previous_account_key"] == fact["account_key"]:
                epoch = self.came[key, fact["previous_epoch"]]
            self.came.setdefault((key, fact["epoch"]), epoch)
        elif record.subject == "tariff-fact":
            self.facts[fact["tariff_id"]] = fact
            self.versions.setdefault(fact["tariff_id"], []).append(fact)

    def charges(self, account_id: str) -> list[ChargeRow]:
        key = column_key("account", account_id)
        charges = self.tables.of(ChargeRow)
        found = [row for row in charges if row.account_key == key and row.kind != "fee"]
        return [row for row in found if row.account_revision != -1 and row.to_time_ms]

    def has_closed(self, charges: Iterable[ChargeRow]) -> bool:
        """Say whether energy was moved out of the period that it belongs to."""
        keys = {charge[:3] for charge in charges}
        lines = self.tables.of(PriceLineRow)
        return any(line.basis & BASIS_CLOSED for line in lines if line[:3] in keys)

    def plan_of(self, account_id: str) -> plans.Plan:
        fact = self.facts[self.facts[account_id]["tariff_id"]]
        return plans.flat(fact["price_micro"]) if fact["plan"] is None else plans.read(fact["plan"])

    def versions_of(self, account_id: str) -> list[plans.Plan]:
        """Return the plans of an account's tariff, version by version."""
        versions = self.versions[self.facts[account_id]["tariff_id"]]
        return [
            plans.flat(fact["price_micro"]) if fact["plan"] is None else plans.read(fact["plan"])
            for fact in versions
        ]

    def since(self, account_id: str) -> dict[Owner, int]:
        meters = {key: at for key, at in self.since_ms.items() if isinstance(key, tuple)}
        return {**meters, ACCOUNT: self.since_ms[column_key("account", account_id)]}

    def preview(self, account_id: str, draft: Draft) -> Sums:
        """Return what the service would answer for an account, by the same steps."""
        charges = self.charges(account_id)
        reaches = [c for c in charges if c.to_time_ms >= draft.from_ms]
        within = [c for c in reaches if c.to_time_ms < draft.to_ms or begins_in(c, draft)]
        begins_ms = min((c.from_time_ms or c.to_time_ms for c in within), default=draft.from_ms)
        reads_ms = draft.reads_from_ms(begins_ms)
        timelines = draft.timelines(min(begins_ms, reads_ms))
        preview = Preview(draft, timelines, self.since(account_id), self.came)
        for charge in sorted(charges, key=lambda c: (c.meter_key, c.epoch, c.to_time_ms, c[2])):
            if (charge.to_time_ms < draft.to_ms or begins_in(charge, draft)) and (
                charge.to_time_ms >= reads_ms or charge.kind == "re-split"
            ):
                preview.add(Recorded(*(getattr(charge, name) for name in Recorded._fields)))
        return preview.sums()


@examples(200)
@given(steady())
def test_the_tariff_in_force_would_have_charged_what_it_charged(records: list[LogRecord]) -> None:
    history = History(records)
    for account_id in ACCOUNTS:
        charges = history.charges(account_id)
        if not charges or history.has_closed(charges):
            event("nothing to compare")
            continue
        event("re-split" if any(c.kind == "re-split" for c in charges) else "as it came")
        sums = history.preview(account_id, Draft(history.plan_of(account_id), *all_of(charges)))
        charged_nano = sum(charge.amount_nano for charge in charges)
        assert sums.charged_nano == sums.draft_nano == charged_nano
        assert sums.energy_milli == sum(charge.energy_milli for charge in charges)


def test_a_ladder_of_a_meter_goes_on_behind_another_device_in_a_preview_too() -> None:
    used = Frame(3_600_000, (Read(1, use_milli=1_700),))
    replaced = Op("assign", 1, 0)
    records = Book().play([*calendared(4, 0), *(used,) * 3, replaced, *(used,) * 3])
    history = History(records)
    charges = history.charges("A0")
    charged_nano = sum(charge.amount_nano for charge in charges)
    draft = Draft(history.plan_of("A0"), *all_of(charges))
    assert draft.plan.ladder is not None
    assert draft.plan.ladder.scope == "meter"
    assert history.preview("A0", draft).draft_nano == charged_nano
    history.came.clear()
    assert history.preview("A0", draft).draft_nano != charged_nano


@examples(100)
@given(steady(), st.integers(0, 40))
def test_fees_owed_are_fees_charged_up_to_the_last_one(records: list[LogRecord], cut: int) -> None:
    history = History(records)
    for account_id in ACCOUNTS:
        key = column_key("account", account_id)
        rows = [row for row in history.tables.of(ChargeRow) if row.account_key == key]
        fees = [row for row in rows if row.kind == "fee"]
        if not fees:
            continue
        event("fees")
        since_ms, until_ms = history.since_ms[key], max(row.to_time_ms for row in fees) + 1
        plan = history.plan_of(account_id)
        draft = Draft(plan, since_ms, until_ms)
        charged_nano = sum(row.amount_nano for row in fees)
        assert sum(fees_owed(draft, since_ms, until_ms)) == charged_nano
        middle_ms = fees[cut % len(fees)].to_time_ms
        halves = (Draft(plan, since_ms, middle_ms), Draft(plan, middle_ms, until_ms))
        owed = [sum(fees_owed(half, since_ms, until_ms)) for half in halves]
        assert sum(owed) == charged_nano
        assert sum(fees_owed(draft, since_ms, middle_ms)) == owed[0]


@examples(100)
@given(steady(), st.integers(0, 40))
def test_two_halves_of_time_come_to_the_whole(records: list[LogRecord], cut: int) -> None:
    history = History(records)
    for account_id in ACCOUNTS:
        charges = history.charges(account_id)
        if not charges:
            continue
        from_ms, to_ms = all_of(charges)
        middle_ms = charges[cut % len(charges)].to_time_ms
        plan = history.plan_of(account_id)
        halves = [
            history.preview(account_id, Draft(plan, *period))
            for period in ((from_ms, middle_ms), (middle_ms, to_ms))
        ]
        whole = Sums()
        for half in halves:
            whole.add(half)
        assert whole == history.preview(account_id, Draft(plan, from_ms, to_ms))


def dearer(text: str | None, price_micro: int) -> tuple[str | None, int]:
    """Return a version's plan and price that go on where those of another stop, at other prices."""
    if text is None:
        return None, price_micro + 77_000
    plan = json.loads(text)
    rates = plan["rates_micro"]
    plan["rates_micro"] = {rate: micro * 3 // 4 + 50_000 for rate, micro in rates.items()}
    for step in [step for name in ("steps",) for step in (plan.get("ladder") or {}).get(name, [])]:
        step["add_micro"] *= 2
    plan["surcharges"] = [{"name": "fund", "price_micro": 4_000}]
    return json.dumps(plan), 0


def with_version(records: list[LogRecord], effective_at_ms: int) -> list[LogRecord]:
    """Return a log in which each tariff has a second version, told at once behind its first."""
    told: list[LogRecord] = []
    for record in records:
        told.append(record)
        if record.subject == "tariff-fact":
            fact: Any = record.value
            plan, price_micro = dearer(fact["plan"], fact["price_micro"])
            second = {"version": 2, "revision": fact["revision"] + 1, "plan": plan}
            second |= {"price_micro": price_micro, "effective_at_ms": effective_at_ms}
            told.append(LogRecord(0, record.timestamp_ms, "tariff-fact", fact | second))
    return [
        LogRecord(offset, record.timestamp_ms, record.subject, record.value)
        for offset, record in enumerate(told)
    ]


def is_told_across(charges: Iterable[ChargeRow], *edges_ms: int) -> bool:
    """Say whether registers of rates tell an interval over an edge: a version splits it by time."""
    return any(
        charge.from_rates_milli and charge.from_time_ms < edge_ms < charge.to_time_ms
        for charge in charges
        for edge_ms in edges_ms
    )


def late_in(charges: Iterable[ChargeRow]) -> set[tuple[int, int]]:
    """Return the readings that came late and split an interval again: meter, time."""
    return {(c.meter_key, c.to_time_ms) for c in charges if c.kind == "re-split"}


@examples(200)
@given(steady(), st.integers(0, 49), st.integers(50, 99), st.integers(0, 3))
def test_an_adjustment_is_what_a_price_from_a_past_instant_on_would_have_changed(
    records: list[LogRecord], begins: int, ends: int, off: int
) -> None:
    ends_ms = sorted({c.to_time_ms for a in ACCOUNTS for c in History(records).charges(a)})
    if len(ends_ms) < 2:
        event("nothing to compare")
        return
    from_ms, to_ms = (ends_ms[len(ends_ms) * at // 100] for at in (begins, ends))
    from_ms, to_ms = from_ms + off * 3_333, to_ms - off * 10_001
    if from_ms >= to_ms:
        event("no time between")
        return
    before, after = (History(with_version(records, at_ms)) for at_ms in (from_ms, to_ms))
    for account_id in ACCOUNTS:
        charges = after.charges(account_id)
        moved = any(history.has_closed(history.charges(account_id)) for history in (before, after))
        if not charges or moved or is_told_across(charges, from_ms, to_ms):
            continue
        if late_in(before.charges(account_id)) != late_in(charges):
            event("a late reading that changed nothing then would have changed something")
            continue  # no charge tells of it, so the interval is split by time
        plans_of = after.versions_of(account_id)
        in_force = InForce(plans_of[0], (0, to_ms))
        drafts = [Draft(plan, from_ms, to_ms, in_force) for plan in plans_of]
        old, new = (after.preview(account_id, draft).draft_nano for draft in drafts)
        would, was = (sum(c.amount_nano for c in h.charges(account_id)) for h in (before, after))
        event("it is dearer" if new != old else "it is the same")
        assert new - old == would - was


@examples(200)
@given(steady(), st.lists(st.integers(0, 99), min_size=3, max_size=3), st.integers(0, 3))
def test_time_charged_anew_under_its_own_version_comes_to_what_was_charged(
    records: list[LogRecord], at: list[int], off: int
) -> None:
    """Cut anywhere: registers of rates, late readings, DST and a version that began included."""
    ends_ms = sorted({c.to_time_ms for a in ACCOUNTS for c in History(records).charges(a)})
    if not ends_ms:
        event("nothing to compare")
        return
    cuts_ms = [ends_ms[len(ends_ms) * each // 100] + off * 3_333 for each in sorted(at)]
    from_ms, begins_ms, to_ms = cuts_ms
    history = History(with_version(records, begins_ms))
    for account_id in ACCOUNTS:
        charges = history.charges(account_id)
        if not charges or history.has_closed(charges):
            continue
        if is_told_across(charges, from_ms, to_ms):
            event("registers of rates tell an interval over a cut")
        first, second = history.versions_of(account_id)
        last_ms = max(ends_ms[-1], to_ms) + 1
        parts = (
            (first, min(ends_ms[0], from_ms) - 1, from_ms),
            (first, from_ms, begins_ms),
            (second, begins_ms, to_ms),
            (second, to_ms, last_ms),
        )
        whole = Sums()
        for plan, begin_ms, end_ms in parts:
            in_force = InForce(plan, (0, begins_ms, last_ms))
            whole.add(history.preview(account_id, Draft(plan, begin_ms, end_ms, in_force)))
        assert whole.draft_nano == sum(charge.amount_nano for charge in charges)
        assert whole.energy_milli == sum(charge.energy_milli for charge in charges)
