"""Goal: whoever has only the explanations can compute every charge, balance and cut-off again.

Method: metering's engine charges a history, its outputs become reporting's rows, and the handlers
of gRPC explain them; a calculator (calculator.py) that sees the JSON of the explanations and
nothing else comes to the same figures, to the last nano.
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from hypothesis import given

from services.common.kernel import names
from services.common.kernel.ids import name_uuid
from services.metering.domain.messages import LogRecord
from services.reporting.adapters.api import ReportingServicer
from services.reporting.adapters.commits import Commits
from services.reporting.domain.explain import BookEvent
from services.reporting.domain.rows import AlarmRow, ChargeRow
from tests.property.calculator import Told, amount_of, reason_of
from tests.property.metering_histories import ACCOUNTS, METERS, arrears, histories, shapes
from tests.property.metering_runs import examples, fresh_run
from tests.unit.metering_log import (
    CREDIT_NANO,
    Log,
    account,
    meter,
    moved,
    policy,
    reading,
    site,
)
from tests.unit.reporting_tables import Tables
from tests.unit.test_metering_tariffs import at, plan
from wattvend.reporting.v1 import reporting_pb2 as pb

HOUR_MS = 3_600_000


def asked(tables: Tables, method: str, request: Message) -> Told:
    """Return what a handler answers, as the command line's --json prints it."""
    servicer = ReportingServicer(tables, Commits())  # type: ignore[arg-type] # a fake
    answer = asyncio.run(getattr(servicer, method)(request, None))
    return as_json(answer)


def as_json(answer: Message) -> Told:
    return MessageToDict(
        answer, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def explained(tables: Tables, meters: Iterable[str]) -> list[Told]:
    """Return the explanation of every charge of some meters, in the order of the log."""
    charged = {charge.meter_key for charge in tables.of(ChargeRow)}
    told = []
    for meter_id in meters:
        key = meter(meter_id)["meter_key"]
        if key in charged:
            told += [
                asked(
                    tables,
                    "ExplainCharge",
                    pb.ExplainChargeRequest(
                        meter=names.METER.name(meter_id),
                        epoch=charge.epoch,
                        sequence=charge.sequence,
                    ),
                )
                for charge in tables.of(ChargeRow)
                if charge.meter_key == key and charge.epoch
            ]
    accounts = {charge.account_key for charge in tables.of(ChargeRow) if charge.kind == "fee"}
    for account_id in ACCOUNTS:
        key = account(account_id)["account_key"]
        told += [
            asked(
                tables,
                "ExplainCharge",
                pb.ExplainChargeRequest(
                    account=names.ACCOUNT.name(account_id), sequence=charge.sequence
                ),
            )
            for charge in tables.of(ChargeRow)
            if key in accounts and charge.meter_key == key
        ]
    order = ("log_offset", "account", "account_sequence")
    return sorted(told, key=lambda each: [_number(each["charge"][name]) for name in order])


def _number(value: Any) -> Any:
    return int(value) if str(value).lstrip("-").isdigit() else value


# --- any history ------------------------------------------------------------------------------


@examples(100)
@given(histories())
def test_every_charge_of_a_history_is_computed_from_its_explanation(
    records: list[LogRecord],
) -> None:
    check(records)


@examples(100)
@given(shapes())
def test_and_of_one_of_calendars_ladders_and_late_readings(records: list[LogRecord]) -> None:
    check(records)


def check(records: list[LogRecord]) -> None:
    tables = Tables((*ACCOUNTS, *METERS))
    _, done = fresh_run(records)
    for record, absorbed in zip(records, done, strict=True):
        if record.subject in {"tariff-fact", "policy-fact", "meter-fact"}:
            tables.published(record.value)  # type: ignore[arg-type] # a fact
        tables.sent(absorbed.outputs)
    for told in explained(tables, METERS):
        assert amount_of(told) == int(told["charge"]["amount_nano"])


@examples(150)
@given(arrears())
def test_every_decision_on_a_cut_is_decided_again_from_its_explanation(
    records: list[LogRecord],
) -> None:
    tables = Tables((*ACCOUNTS, *METERS))
    before: dict[str, Any] = {}
    for record, absorbed in zip(records, fresh_run(records)[1], strict=True):
        fact: Any = record.value
        if record.subject in {"tariff-fact", "policy-fact"}:
            tables.published(fact)
        elif record.subject == "account-fact":
            stream = tables.streams.setdefault(f"account-{fact['account_id']}", [])
            stream += orders_in(before.get(fact["account_id"], {}), fact)
            before[fact["account_id"]] = fact
        tables.sent(absorbed.outputs)
    for alarm, told in decisions(tables):
        assert (reason_of(told) or "threshold-reached") == alarm.reason


def orders_in(before: dict[str, Any], fact: dict[str, Any]) -> Iterable[BookEvent]:
    """Yield what the ledger tells where a fact of an account brings, or ends, an order."""
    kinds = {"keep_power_until_ms": "power-kept", "promise_until_ms": "payment-promised"}
    for name, kind in kinds.items():
        if fact[name] != before.get(name):
            book = (fact["book_epoch"], fact["revision"])
            event_id = name_uuid(fact["account_id"], *book)
            yield BookEvent(kind, event_id, "", *book, None, 0, fact[name])


def decisions(tables: Tables) -> Iterable[tuple[AlarmRow, Told]]:
    """Yield each decision on a cut, with its explanation."""
    for alarm in tables.of(AlarmRow):
        if alarm.kind in {"cut", "not-cut"}:
            request = pb.ExplainCutoffRequest(alarm=names.ALARM.name(str(alarm.alarm_id)))
            yield alarm, asked(tables, "ExplainCutoff", request)


# --- a month ----------------------------------------------------------------------------------

SHOPS: dict[str, Any] = {
    "zone": "Asia/Shanghai",
    "rates_micro": {"peak": 1_057_100, "flat": 655_300, "valley": 312_800},
    "seasons": [
        {
            "name": "all",
            "begins": "01-01",
            "days": [
                {
                    "kinds": ["weekday"],
                    "slots": [
                        {"begins": "00:00", "rate": "valley"},
                        {"begins": "08:00", "rate": "peak"},
                        {"begins": "11:30", "rate": "flat"},
                        {"begins": "18:00", "rate": "peak"},
                        {"begins": "22:00", "rate": "valley"},
                    ],
                },
                {"kinds": ["weekend", "holiday"], "slots": [{"begins": "00:00", "rate": "valley"}]},
            ],
        }
    ],
    "ladder": {
        "period": "month",
        "steps": [
            {"above_milli": 100_000, "add_micro": 50_000},
            {"above_milli": 180_000, "add_micro": 300_000},
        ],
    },
    "surcharges": [{"name": "fund", "price_micro": 19_101}],
    "fees": [
        {"name": "stand", "period": "month", "amount_micro": 30_000_000},
        {"name": "meter", "period": "day", "amount_micro": 250_001},
    ],
    "taxes": [
        {"name": "VAT", "ppm": 130_000, "base": ["energy", "surcharges"]},
        {"name": "VAT on fees", "ppm": 60_000, "base": ["fees"]},
    ],
}
DEARER = {"rates_micro": {"peak": 1_212_345, "flat": 700_001, "valley": 333_333}}
SALE_NANO = 90 * CREDIT_NANO


class Month:
    """A shop's March: read each six hours by two meters, one of them replaced on the 20th."""

    def __init__(self, rules: str | None = None) -> None:
        self.tables = Tables(("A1", "M1", "M2"))
        self.log = Log()
        self.log.now_ms = at("02-27T10:00")
        self.registers_milli = {"M1": 4_000, "M2": 70_000}
        self.epochs = {"M1": 1, "M2": 1}
        opened = account(tariff_id="T1", credited_nano=0, held_nano=0)
        for fact in (
            site(),
            plan(SHOPS),
            policy(overdraft_nano=0, restore_nano=1, rules=rules),
            opened,
            meter("M1", opening_register_milli=4_000),
            meter("M2", opening_register_milli=70_000, ratio=40),
        ):
            self.fact(fact)
        self.sell(1, 1)
        self.log.now_ms = at("03-05T09:00")
        self.fact(plan(SHOPS, also=DEARER, version=2, effective_at_ms=at("03-15T00:00")))

    def fact(self, fact: dict[str, Any]) -> None:
        if "plan" in fact or "alarm_1_nano" in fact:
            self.tables.published(fact)
        self.tables.sent(self.log.fact(fact).outputs)

    def sell(self, revision: int, sales: int) -> None:
        credited_nano = sales * SALE_NANO
        receipt = str(name_uuid("sale", revision))
        self.told("credit-sold", revision, receipt_id=receipt, credited_nano=credited_nano)
        self.fact(account(credited_nano=credited_nano, revision=revision))

    def told(self, kind: str, revision: int, **fields: Any) -> None:
        """Let the ledger tell an event of the account."""
        event = {"receipt_id": "", "credited_nano": None, **fields}
        event_id = name_uuid("event", revision)
        event |= {"book_epoch": 0, "revision": revision, "occurred_at_ms": self.log.now_ms}
        self.tables.events.append(BookEvent(kind, event_id, **event))

    def read(self, meter_id: str, at_ms: int, more_milli: int = 0, **changes: Any) -> None:
        self.registers_milli[meter_id] += more_milli
        self.log.now_ms = max(self.log.now_ms, at_ms)
        one = reading(
            changes.pop("register_milli", self.registers_milli[meter_id]),
            meter_id=meter_id,
            at_ms=at_ms,
            epoch=self.epochs[meter_id],
            ratio={"M1": 1, "M2": 40}[meter_id],
            **changes,
        )
        self.tables.sent(self.log.read(one).outputs)

    def replace(self, meter_id: str) -> None:
        """Let a new meter, at register 12, take the place of one, in the same account."""
        before = meter(meter_id, epoch=self.epochs[meter_id])
        closing = self.registers_milli[meter_id] + 35
        self.fact(moved(before, "A1", closing, opening_register_milli=12))
        self.epochs[meter_id] += 1
        self.registers_milli[meter_id] = 12

    def pass_by(self) -> "Month":
        begins_ms = at("02-28T00:00")
        for number in range(33 * 4):
            at_ms = begins_ms + 6 * HOUR_MS * number + 17 * 60_000
            if at_ms > at("03-20T11:00") and self.epochs["M1"] == 1:
                self.replace("M1")
            if number == 70:
                self.sell(2, 2)
            if not 40 < number < 50:  # two days without an answer: split by time
                self.read("M1", at_ms, 400 + 173 * (number % 7))
            self.read("M2", at_ms, 20 + number % 11)
            if number == 52:  # what M1 had kept of those days
                late_ms = begins_ms + 6 * HOUR_MS * 44
                first = self.registers_milli["M1"] - 2_000
                self.read("M1", late_ms, register_milli=first)
        return self


def test_a_month_of_charges_is_computed_again_from_the_explanations_alone() -> None:
    told = explained(Month().pass_by().tables, ("M1", "M2"))
    kinds = [each["charge"]["kind"] for each in told]
    assert {"usage", "closing", "re-split", "fee"} == set(kinds)
    assert kinds.count("fee") > 25
    assert len(told) > 250
    charged = 0
    used: dict[tuple[str, int], int] = {}
    for each in told:
        charge = each["charge"]
        amount = amount_of(each)
        assert amount == int(charge["amount_nano"])
        charged += amount
        assert charged == int(charge["account_charged_total_nano"])
        meter_epoch = (charge["meter"], charge["epoch"])
        used[meter_epoch] = used.get(meter_epoch, 0) + int(charge["energy_milli"])
        assert used[meter_epoch] == int(charge["meter_energy_total_milli"])
    check_ladders(told)


def check_ladders(told: list[Told]) -> None:
    """Add up the lines month by month: the totals that they name are those before them."""
    shares = {2: (2, 28), 3: (31, 31), 4: (30, 30)}  # opened on the 27th of February
    totals: dict[tuple[int, int], int] = {}
    seen = set()
    for each in (each for each in told if each["charge"]["kind"] != "fee"):
        for line in each["charge"]["lines"]:
            key = (line["period"], line["version"])
            if line["rate"] != "none":
                totals[key] = totals.get(key, 0) + int(line["energy_milli"])
            lower = [totals[p, v] for p, v in totals if p == key[0] and v < key[1]]
            assert int(line["base_milli"]) == sum(lower)
            assert int(line["total_milli"]) == sum(lower) + totals.get(key, 0)
            assert (line["days"], line["days_of"]) == shares[key[0] % 12 + 1]
            seen.add(key)
    assert {version for _, version in seen} == {1, 2}


def test_a_balance_is_the_sum_of_what_explains_it() -> None:
    tables = Month().pass_by().tables
    balance = asked(tables, "ExplainBalance", pb.ExplainBalanceRequest(account="accounts/A1"))
    credited = sum(int(credit["added_nano"]) for credit in balance["credits"])
    assert credited == int(balance["credited_nano"]) == 2 * SALE_NANO
    told = explained(tables, ("M1", "M2"))
    for span in balance["charged"]:
        mine = [
            each
            for each in told
            if (each["charge"]["meter"], each["charge"]["epoch"]) == (span["meter"], span["epoch"])
        ]
        sequences = sorted(int(each["charge"]["sequence"]) for each in mine)
        first, last = int(span["first_sequence"]), int(span["last_sequence"])
        assert sequences == list(range(first, last + 1))
        assert sum(map(amount_of, mine)) == int(span["amount_nano"])
    charged = sum(int(span["amount_nano"]) for span in balance["charged"])
    assert charged == int(balance["charged_nano"])
    assert balance["charged_before_nano"] == "0"
    assert int(balance["available_nano"]) == credited - charged - int(balance["held_nano"])


def test_a_past_balance_is_told_as_of_its_charge() -> None:
    tables = Month().pass_by().tables
    then = asked(
        tables,
        "ExplainBalance",
        pb.ExplainBalanceRequest(account="accounts/A1", account_sequence=50),
    )
    assert [credit["revision"] for credit in then["credits"]] == ["1"]
    assert sum(int(span["charges"]) for span in then["charged"]) == 49  # and one sale
    assert "available_nano" not in then
    before = asked(
        tables,
        "ExplainBalance",
        pb.ExplainBalanceRequest(account="accounts/A1", account_sequence=0),
    )
    assert (before["credits"], before["charged"]) == ([], [])


def test_a_cut_off_is_decided_again_from_its_explanation() -> None:
    tables = Month().pass_by().tables
    told = asked(tables, "ExplainCutoff", pb.ExplainCutoffRequest(account="accounts/A1"))
    decision, policy_, charge = told["decision"], told["policy"], told["charge"]
    amount = amount_of({"charge": charge, "tariffs": told["tariffs"]})
    assert amount == int(charge["amount_nano"])
    available = int(charge["account_credited_total_nano"]) - int(
        charge["account_charged_total_nano"]
    )
    assert available == int(decision["available_nano"]) <= -int(policy_["overdraft_nano"])
    assert available + amount > -int(policy_["overdraft_nano"])
    age_ms = int(decision["decided_at_ms"]) - int(decision["reading_received_at_ms"])
    assert 0 <= age_ms <= int(policy_["max_evidence_age_ms"])
    assert decision["to_reading_id"] == charge["to_reading"]["reading_id"]
    assert (decision["policy"], decision["policy_version"]) == (
        policy_["policy"],
        policy_["version"],
    )


RULES = {
    "zone": "Asia/Shanghai",
    "grace_minutes": 600,
    "notice": {"lead_minutes": 300, "required": True},
    "no_cut": [{"days": ["weekday", "weekend", "holiday"], "begins": "22:00", "ends": "08:00"}],
}


def test_why_an_account_was_not_cut_is_decided_again_too() -> None:
    """One that owes more and more: a promise, a notice, grace and nights keep it on power."""
    month = Month(json.dumps(RULES))
    revision, credited = 1, SALE_NANO
    at_ms = at("03-05T00:17")
    while not any(alarm.kind == "cut" for alarm in month.tables.of(AlarmRow)):
        at_ms += HOUR_MS
        month.read("M2", at_ms, 40)
        alarms = month.tables.of(AlarmRow)
        if len(alarms) and alarms[-1].reason == "notice-pending" and revision == 1:
            revision, until_ms = 2, at_ms + 3 * HOUR_MS
            month.told("payment-promised", 2, until_ms=until_ms)
            fact: dict[str, Any] = {
                "credited_nano": credited,
                "revision": 2,
                "promise_until_ms": until_ms,
            }
            month.fact(account(**fact))
        if len(alarms) and alarms[-1].reason == "notice-failed":
            notice_id = alarms[-1].notice_id
            month.told("notice-recorded", 3, notice_id=notice_id, outcome="delivered")
            fact = {"credited_nano": credited, "revision": 3, "promise_until_ms": until_ms}
            month.fact(account(**fact, notice_id=notice_id, notice_outcome="delivered"))
    decided = []
    for alarm, told in decisions(month.tables):
        assert (reason_of(told) or "threshold-reached") == alarm.reason
        assert told["decision"]["kind"] == alarm.kind
        decided.append(alarm.reason)
    assert decided[-1] == "threshold-reached"
    assert {"notice-pending", "promised", "notice-running", "notice-failed"} < set(decided)
    assert {"grace", "no-cut-window"} & set(decided)


def test_grace_is_decided_again_without_the_decisions_before_it() -> None:
    month = Month(json.dumps({"grace_minutes": 600}))
    at_ms = at("03-05T00:17")
    while not any(alarm.kind == "cut" for alarm in month.tables.of(AlarmRow)):
        at_ms += HOUR_MS
        month.read("M2", at_ms, 40)
    (began, refused), (_, cut) = decisions(month.tables)
    assert (reason_of(refused), reason_of(cut)) == ("grace", "")
    month.tables.rows = [row for row in month.tables.rows if row != began]
    ((_, alone),) = decisions(month.tables)
    assert (alone["refusals"], alone["decision"]["arrears_since_ms"]) == (
        [],
        str(began.decided_at_ms),
    )
    assert reason_of(alone) == ""


def test_a_cut_that_persons_orders_hold_back_names_the_order_of_each_relay() -> None:
    """The book was restored in between: what it had forgotten holds no relay."""
    month, at_ms = Month(), at("03-05T09:17")
    told_at = [(0, 2), (0, 9), (1, 3), (1, 4)]
    for meter_id, forced, ratio in (("M1", "on", 1), ("M2", "off", 40)):
        month.fact(meter(meter_id, forced=forced, ratio=ratio, book_epoch=1, revision=3))
        month.tables.streams[f"meter-{meter_id}"] = [
            BookEvent("relay-forced", name_uuid(meter_id, *book), "", *book, None, at_ms)
            for book in told_at
        ]
    month.read("M2", at_ms, 9_000)
    ((alarm, told),) = decisions(month.tables)
    assert (alarm.reason, reason_of(told)) == ("forced", "forced")
    orders = [order for order in told["orders"] if order["type"] == "relay-forced"]
    assert {order["meter"]: order["position"] for order in orders} == {
        "meters/M1": "on",
        "meters/M2": "off",
    }
    assert {(order["book_epoch"], order["revision"]) for order in orders} == {(1, "3")}
    assert all(order["event_id"] for order in orders)
    assert reason_of({**told, "orders": []}) == ""


def test_a_reading_that_ends_a_silence_cuts_nobody_and_says_since_when_it_was() -> None:
    month = Month()
    read_at_ms = at("03-05T09:17")
    month.read("M2", read_at_ms, 40)
    month.log.now_ms = at("03-14T09:17")
    month.tables.sent(month.log.wake().outputs)
    month.read("M2", at("03-14T10:17"), 3_000)
    ((alarm, told),) = decisions(month.tables)
    assert (alarm.reason, reason_of(told)) == ("evidence-silent", "evidence-silent")
    assert told["silent_since_ms"] == str(read_at_ms)
    (silent,) = [
        row
        for row in month.tables.of(AlarmRow)
        if (row.kind, row.meter_id) == ("meter-silent", "M2")
    ]
    assert told["silent_alarm"] == names.ALARM.name(str(silent.alarm_id))
    assert silent.decided_at_ms - read_at_ms > 7 * 24 * HOUR_MS
