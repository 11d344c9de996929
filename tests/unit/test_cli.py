"""The operator's command line where something goes wrong: what it says, and what was asked.

Method: the commands run in this process; the services behind them are a script of answers.
"""

import json
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import yaml
from google.longrunning import operations_proto_pb2 as lro
from typer.testing import CliRunner, Result

from services.common.kernel import filters, names
from services.common.policies.rules import read as read_rules
from services.common.tariffs import plan as plans
from tests.unit.export_answers import answers
from tools import client
from tools.cli import asking, show
from tools.cli import main as cli
from tools.cli.affected import last_month
from tools.client import Clients, Refused
from tools.sitefile import Policy
from wattvend.reporting.v1 import fleet_pb2 as f
from wattvend.reporting.v1 import previews_pb2 as p
from wattvend.reporting.v1 import reporting_pb2 as r
from wattvend.vending.v1 import accounts_pb2 as a
from wattvend.vending.v1 import batches_pb2 as b
from wattvend.vending.v1 import closings_pb2 as c
from wattvend.vending.v1 import documents_pb2 as d
from wattvend.vending.v1 import openings_pb2 as o
from wattvend.vending.v1 import vending_pb2 as v

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs/examples/commercial-time-of-use.yaml"
ACCOUNT = v.Account(name="accounts/A1", currency="CNY", minor_decimals=2)
OPENED = o.Opening(
    account="accounts/A1", status="open", left_out=[o.LeftOutMeter(meter="meters/M2")]
)
BALANCE = r.Balance(name=names.BALANCE.name("A1"), currency="CNY")


EXPORT = "0d1b7c9e-4a52-5e86-8c1f-6b3a9d2e7f40"
"""Of the page on batches."""
PAPER = d.Document(
    name="documents/D1",
    state="submitted",
    approval="approvals/AP1",
    drafted_by="web u-alice",
    base_version=1,
    policy=v.PublishPolicyRequest(
        name="policies/homes", currency="CNY", rules='{"grace_minutes": 240}'
    ),
)
SUPERSEDED = d.Version(number=1, state="superseded", published_by="web u-alice")
DOCUMENTS = {
    **dict.fromkeys(("CreateDocument", "GetDocument", "SubmitDocument"), PAPER),
    "ListDocuments": d.ListDocumentsResponse(documents=[PAPER]),
    "ListVersions": d.ListVersionsResponse(versions=[SUPERSEDED]),
}

BEGAN = d.Version(number=3, state="in-force", document="documents/D1")
COMES_TO = p.AdjustmentPreview(
    accounts=[
        p.AdjustedAccount(
            account="accounts/A1", amount_minor=120, charged_nano="9", would_nano="1"
        ),
        p.AdjustedAccount(account="accounts/A2", amount_minor=-7, charged_nano="1", would_nano="9"),
        p.AdjustedAccount(account="accounts/A3", charged_nano="1", would_nano="1"),
        p.AdjustedAccount(
            account="accounts/A4",
            amount_minor=5,
            charged_nano="1",
            would_nano="1",
            left_out="not-read",
        ),
    ],
    currency="CNY",
    minor_decimals=2,
    credit_minor=120,
    debit_minor=7,
)
RUN = {
    "ListVersions": d.ListVersionsResponse(versions=[BEGAN]),
    "PreviewAdjustment": COMES_TO,
    "ListBatches": b.ListBatchesResponse(),
    "CreateBatch": b.Batch(name="batches/B1", status="draft", currency="CNY"),
}


class Vending:
    """Answers by method name, or what a function makes of a request; an exception is raised."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"GetAccount": ACCOUNT, **answers}
        self.asked: list[tuple[str, Any]] = []

    async def __call__(self, method: str, request: Any, **_: float) -> Any:
        self.asked.append((method, request))
        answer = self.answers[method]
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def wattvend(monkeypatch: pytest.MonkeyPatch, vending: Vending, *arguments: str) -> Result:
    @asynccontextmanager
    async def connect(*_: str) -> AsyncIterator[Clients]:
        yield Clients(*[vending] * len(fields(Clients)))  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "connect", connect)
    return CliRunner().invoke(cli.app, arguments)


def opening(*more: str) -> tuple[str, ...]:
    return ("account", "open", "A1", "--site", "S", "--tariff", "T", "--policy", "P", *more)


@pytest.mark.parametrize("amount", ["1e99999", "1e999999999", "9" * 30, "ten", "1,5", "NaN", "٣"])
def test_what_is_no_amount_is_refused_before_anything_is_asked(
    monkeypatch: pytest.MonkeyPatch, amount: str
) -> None:
    for command in (("sell", "A1", amount), opening("--sale", amount)):
        vending = Vending()
        result = wattvend(monkeypatch, vending, *command)
        assert result.exit_code == 2
        assert "no amount" in result.stderr
        assert vending.asked == []


def test_more_decimals_than_the_currency_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = ("authority", "publish", "LE1", "--currency", "CNY")
    for command, asked in (
        (("sell", "A1", "1.005"), ["GetAccount"]),
        (opening("--sale", "1.005"), []),
        (("opening", "start", "A1", "--sale", "1.005"), []),
        ((*publish, "--alone", "refund=1.005"), []),
    ):
        vending = Vending()
        result = wattvend(monkeypatch, vending, *command)
        assert (result.exit_code, [method for method, _ in vending.asked]) == (2, asked)
        assert "more than 2 decimals" in result.stderr


@pytest.mark.parametrize(
    ("alone", "says"),
    [
        (("refund", "refund=5.00"), "refund is named twice"),
        (("refund=5.00", "refund"), "refund is named twice"),
        (("batch=2.9",), "no whole number"),
    ],
)
def test_what_one_person_may_do_is_said_once(
    monkeypatch: pytest.MonkeyPatch, alone: tuple[str, ...], says: str
) -> None:
    vending = Vending()
    each = [part for text in alone for part in ("--alone", text)]
    publish = ("authority", "publish", "LE1", "--currency", "CNY", *each)
    result = wattvend(monkeypatch, vending, *publish)
    assert (result.exit_code, vending.asked) == (2, [])
    assert says in result.stderr


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("ended", "exit_code"),
    [(Refused("DEADLINE_EXCEEDED", "", "no answer"), 1), (KeyboardInterrupt(), 130)],
)
def test_a_sale_nobody_knows_the_outcome_of_tells_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, ended: BaseException, exit_code: int, as_json: bool
) -> None:
    vending = Vending(Sell=ended)
    flags = ("--json",) if as_json else ()
    result = wattvend(monkeypatch, vending, *flags, "sell", "A1", "10")
    assert result.exit_code == exit_code
    if as_json:
        told = json.loads(result.stderr)["request_id"]
    else:
        (told,) = re.findall(r"--request-id (\S+):", result.stderr)
    assert told == vending.asked[-1][1].request_id
    assert UUID(told)


def test_a_sale_that_was_refused_is_not_to_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = Refused("FAILED_PRECONDITION", "ACCOUNT_NOT_OPEN", "account A1 is [closed]")
    result = wattvend(monkeypatch, Vending(Sell=refused), "sell", "A1", "10")
    assert "account A1 is [closed]" in result.stderr
    assert "--request-id" not in result.stderr


def test_an_account_opens_in_one_command_and_is_repeated_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vending = Vending(CreateOpening=Refused("UNAVAILABLE", "", "no answer"))
    result = wattvend(monkeypatch, vending, *opening("--meter", "M1=7.5", "--sale", "10"))
    (told,) = re.findall(r"--request-id (\S+):", result.stderr)
    ((_, first),) = vending.asked
    again = Vending(CreateOpening=OPENED)
    more = ("--meter", "M1=7.5", "--sale", "10", "--request-id", told)
    done = wattvend(monkeypatch, again, *opening(*more))
    assert done.exit_code == 0, done.output
    assert again.asked[0][1] == first
    (meter,) = first.opening.meters
    assert (meter.meter, meter.register_milli) == ("meters/M1", 7_500)
    assert (first.opening.first_sale.amount_minor, first.opening.first_sale.currency) == (
        1000,
        "CNY",
    )
    assert "without M2" in done.output


def test_what_is_wrong_with_a_file_is_told_line_by_line_and_no_such_line_is_sent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shops.csv").write_text(
        "account,site,tariff,policy,meters,sale\n"
        "A1,S,T,P,M1=1 M2,10\n"
        "A2,S,T,,M3,ten\n"
        "A3,S,T,P,M2,\n"
        "A4,S,T,P,M4=x,1.005\n"
        "A5,S,T,P,,\n"
    )
    vending = Vending(CreateOpening=OPENED)
    path = str(tmp_path / "shops.csv")
    result = wattvend(monkeypatch, vending, "--json", "opening", "batch", path)
    assert result.exit_code == 1
    told = [
        [each["message"] for each in line["problems"]]
        for line in json.loads(result.stdout)["openings"]
    ]
    assert told == [
        ["meter M2 is in more than one line"],
        ["policy is empty", "'ten' is no amount; write e.g. 99.90"],
        ["meter M2 is in more than one line"],
        [
            "'x' is no register; write e.g. 1234.56",
            "1.005 has more than 2 decimals of its currency",
        ],
        [],
    ]
    assert [request.opening_id for _, request in vending.asked] == ["A5"]
    first = vending.asked[0][1]
    again = Vending(CreateOpening=OPENED)
    wattvend(monkeypatch, again, "opening", "batch", path)
    assert again.asked[0][1] == first, "run again, it is the same request"


def test_a_dry_run_asks_for_every_line_and_opens_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "shops.csv").write_text("account,site,tariff,policy\nA1,S,T,P\nA2,S,T,P\n")
    wrong = o.Opening(account="accounts/A1", problems=[o.OpeningProblem(reason="SITE_NOT_FOUND")])
    vending = Vending(CreateOpening=wrong)
    path = str(tmp_path / "shops.csv")
    result = wattvend(monkeypatch, vending, "opening", "batch", path, "--dry-run")
    assert (result.exit_code, len(vending.asked)) == (1, 2)
    assert all(request.validate_only for _, request in vending.asked)
    assert "0 of 2 lines are right" in result.stdout
    assert result.stdout.count("SITE_NOT_FOUND") == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [("account,site\nA1,S\n", "is missing"), ("account,site,tariff,policy,x\n", "unknown")],
)
def test_a_file_with_other_columns_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "shops.csv").write_text(text)
    result = wattvend(monkeypatch, Vending(), "opening", "batch", str(tmp_path / "shops.csv"))
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_plan_is_shown_all_in_and_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    vending = Vending()
    result = wattvend(monkeypatch, vending, "tariff", "check", str(EXAMPLE))
    assert (result.exit_code, vending.asked) == (0, [])
    # peak: 1.0571 and the fund's 0.0190, each with 13 %: 1.0571 x 1.13 + 0.019 x 1.13
    assert re.search(r"peak +1\.215993 +1\.272493 +1\.351593", result.stdout)
    assert "summer, from 07-01 on" in result.stdout


@pytest.mark.parametrize(
    ("kind", "file"), [("tariff", EXAMPLE), ("policy", ROOT / "docs/examples/homes-policy.yaml")]
)
def test_a_currency_that_nobody_knows_is_refused_by_a_check(
    monkeypatch: pytest.MonkeyPatch, kind: str, file: Path
) -> None:
    result = wattvend(monkeypatch, Vending(), kind, "check", str(file), "--currency", "CNX")
    assert result.exit_code == 1
    assert "'CNX' is unknown; known are CNY" in " ".join(result.stderr.split())


def test_fees_are_shown_with_their_taxes(monkeypatch: pytest.MonkeyPatch) -> None:
    example = str(ROOT / "docs/examples/monthly-fee.yaml")
    told = wattvend(monkeypatch, Vending(), "tariff", "check", example).stdout
    assert "fee management: 127.200000 a month, all in" in told
    assert "fee meter rent: 0.265000 a day, all in" in told


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("zone: [", "cannot be read"),
        ("zone: UTC", "rates_micro: Field required"),
        ("{zone: UTC, rates_micro: {flat: 1}, holidays: [1.5]}", "holidays.0"),
        ("{zone: 5, rates_micro: {flat: 1}}", "put times and days in quotes"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    result = wattvend(monkeypatch, Vending(), "tariff", "check", str(tmp_path / "plan.yaml"))
    assert result.exit_code == 1
    assert says in re.sub(r"\s+", " ", result.stderr)


def test_the_commands_of_the_page_on_tariffs_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^wattvend (.+)$", (ROOT / "docs/tariffs.md").read_text(), re.MULTILINE)
    assert len(commands) == 11
    vending = Vending(
        PublishTariff=v.Tariff(name="tariffs/shops", currency="CNY", plan="{}"),
        PreviewPolicy=p.PolicyPreview(currency="CNY"),
        **(DOCUMENTS | RUN),
    )
    for command in commands:
        result = wattvend(monkeypatch, vending, "--json", *shlex.split(command))
        assert result.exit_code == 0, result.output
    drafted = dict(vending.asked)["CreateDocument"].document.tariff
    asked = dict(vending.asked)["PublishTariff"]
    asked.request_id = ""
    assert drafted == asked
    assert dict(vending.asked)["ListDocuments"].filter == (
        'state = "submitted" AND legal_entity = "legalEntities/prop-co"'
    )
    # New Year in Shanghai: eight hours before it in UTC.
    assert asked.effective_at_ms == 1_798_732_800_000
    assert plans.read(asked.plan).zone == "Asia/Shanghai"


def test_the_commands_of_the_page_on_policies_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^wattvend (.+)$", (ROOT / "docs/policies.md").read_text(), re.MULTILINE)
    assert len(commands) == 6
    published = v.Policy(name="policies/homes", currency="CNY", rules='{"grace_minutes": 240}')
    vending = Vending(
        PublishPolicy=published, PreviewPolicy=p.PolicyPreview(currency="CNY"), **DOCUMENTS
    )
    for command in commands:
        result = wattvend(monkeypatch, vending, *shlex.split(command))
        assert result.exit_code == 0, result.output
        if "versions" not in command and "preview" not in command:
            assert "240 min after nothing was left" in result.stdout
    drafted = dict(vending.asked)["CreateDocument"].document.policy
    assert drafted.effective_at_ms == 1_798_732_800_000
    asked = dict(vending.asked)["PublishPolicy"]
    assert (asked.name, asked.overdraft_minor) == ("policies/homes", 1000)
    rules = read_rules(asked.rules)
    assert (rules.zone, len(rules.no_cut)) == ("Asia/Shanghai", 3)
    assert rules.notice is not None
    assert rules.notice.required


def test_documents_are_asked_for_by_a_legal_entity_of_any_script(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vending = Vending(**DOCUMENTS)
    wattvend(monkeypatch, vending, "document", "list", "--legal-entity", '物业 "A"')
    known = {"legal_entity": filters.name(names.LEGAL_ENTITY)}
    asked = filters.parse(dict(vending.asked)["ListDocuments"].filter, known)
    assert asked == filters.Match("legal_entity", "=", '物业 "A"')


def test_a_document_is_shown_with_who_must_look_at_it_and_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vending = Vending(WithdrawDocument=PAPER, **DOCUMENTS)
    shown = wattvend(monkeypatch, vending, "document", "show", "D1")
    for part in ("waits as", "AP1", "policy homes", "240 min after nothing was left", "at once"):
        assert part in shown.stdout
    listed = wattvend(monkeypatch, vending, "document", "list", "--kind", "policy")
    assert "submitted" in listed.stdout
    reason = ("--reason", "typed wrong")
    assert wattvend(monkeypatch, vending, "document", "withdraw", "D1", *reason).exit_code == 0
    versions = wattvend(monkeypatch, vending, "policy", "versions", "homes")
    assert "superseded" in versions.stdout
    taken_back = d.Document(name="documents/D1", state="withdrawn", published_version=2)
    vending = Vending(WithdrawDocument=taken_back)
    shown = wattvend(monkeypatch, vending, "document", "withdraw", "D1", *reason)
    assert "was to apply from" in shown.stdout


ADJUST = ("tariff", "adjust", "shops", "3", "--from", "2027-01-01T00:00+08:00")


def test_an_adjustment_run_is_shown_and_drafted_as_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    vending = Vending(**RUN)
    shown = wattvend(monkeypatch, vending, *ADJUST, "--dry-run")
    said = re.sub(r"\s+", " ", shown.stdout)
    assert "credited 1.20, taken back 0.07 CNY" in said
    assert "1 are left out" in said
    assert "CreateBatch" not in dict(vending.asked)
    assert wattvend(monkeypatch, vending, *ADJUST).exit_code == 0
    asked = dict(vending.asked)
    assert asked["PreviewAdjustment"].from_ms == 1_798_732_800_000
    batch = asked["CreateBatch"]
    assert (batch.kind, batch.reason) == ("adjustment", "document D1 from 1798732800000")
    assert [(t.name, t.amount_minor) for t in batch.list.targets] == [
        ("accounts/A1", 120),
        ("accounts/A2", -7),
    ]
    known = b.Batch(name="batches/B1", status="running", reason=batch.reason, currency="CNY")
    again = Vending(**(RUN | {"ListBatches": b.ListBatchesResponse(batches=[known])}))
    assert wattvend(monkeypatch, again, *ADJUST).exit_code == 0
    assert "CreateBatch" not in dict(again.asked), "another person has drafted it"
    known.status = "cancelled"
    anew = Vending(**(RUN | {"ListBatches": b.ListBatchesResponse(batches=[known])}))
    assert wattvend(monkeypatch, anew, *ADJUST).exit_code == 0
    assert dict(anew.asked)["CreateBatch"].request_id != batch.request_id


def test_a_run_of_a_version_that_has_not_begun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = d.Version(number=3, state="scheduled")
    vending = Vending(**(RUN | {"ListVersions": d.ListVersionsResponse(versions=[waits])}))
    result = wattvend(monkeypatch, vending, *ADJUST)
    assert result.exit_code == 1
    assert "has no version 3 that has begun" in re.sub(r"\s+", " ", result.stderr)


def test_who_is_affected_by_a_price_is_summed_by_site(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        r.PreviewedAccount(
            account=f"accounts/A{n}",
            site=f"sites/S{n % 2}",
            charged_nano=str(10**10),
            draft_nano=str(10**10 + change),
            difference_nano=str(change),
        )
        for n, change in enumerate((10**9, -(10**9), 2 * 10**9))
    ]
    tariff = v.PublishTariffRequest(name="tariffs/shops", price_micro=900_000)
    vending = Vending(
        GetDocument=d.Document(name="documents/D1", tariff=tariff),
        PreviewTariff=r.TariffPreview(accounts=lines, currency="CNY", minor_decimals=2),
    )
    shown = wattvend(monkeypatch, vending, "document", "preview", "D1")
    assert re.search(r"S0 +2 +2 +0 +20.00 +23.00 +3.00", shown.stdout)
    assert re.search(r"S1 +1 +0 +1 +10.00 +9.00 +-1.00", shown.stdout)
    asked = dict(vending.asked)["PreviewTariff"]
    assert (asked.tariff, asked.price_micro) == ("tariffs/shops", 900_000)
    assert 28 <= (asked.to_ms - asked.from_ms) // 86_400_000 <= 31


def test_a_plan_for_accounts_under_another_wall_clock_is_told_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    account = r.PreviewedAccount(
        account="accounts/A1",
        site="sites/S1",
        charged_nano="0",
        draft_nano="0",
        difference_nano="0",
    )
    for zone, is_told in (("Asia/Jayapura", True), ("Asia/Jakarta", False)):
        plan = '{"zone":"Asia/Jakarta","rates_micro":{"flat":1}}'
        vending = Vending(
            GetDocument=d.Document(tariff=v.PublishTariffRequest(name="tariffs/shops", plan=plan)),
            PreviewTariff=r.TariffPreview(accounts=[account], currency="CNY", minor_decimals=2),
            GetSite=v.Site(name="sites/S1", zone=zone),
        )
        said = " ".join(wattvend(monkeypatch, vending, "document", "preview", "D1").stdout.split())
        assert ("S1 is in Asia/Jayapura; its accounts would be charged" in said) == is_told


def test_the_last_month_is_that_of_the_wall_clock() -> None:
    now = datetime(2027, 1, 1, 0, 30, tzinfo=ZoneInfo("Asia/Shanghai"))
    begins_ms, ends_ms = last_month(now)
    assert (begins_ms, ends_ms) == (1_796_054_400_000, 1_798_732_800_000)


def test_who_is_affected_by_a_policy_is_shown_with_what_keeps_him_on_power(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def state(number: int, now: str, then: str, **more: Any) -> p.PreviewedState:
        return p.PreviewedState(
            account=f"accounts/A{number}", level_now=now, level_then=then, **more
        )

    preview = p.PolicyPreview(
        accounts=[
            state(1, "normal", "alarm-1"),
            state(2, "alarm-2", "alarm-2", due_then=True),
            state(3, "alarm-2", "alarm-2", due_then=True, kept_by="promised"),
            state(4, "alarm-2", "normal", due_now=True),
        ],
        accounts_count=90,
        unknown_count=2,
        also_asked=["grace", "notice"],
        currency="CNY",
        minor_decimals=2,
    )
    vending = Vending(GetDocument=PAPER, PreviewPolicy=preview)
    shown = wattvend(monkeypatch, vending, "document", "preview", "D1")
    said = re.sub(r"\s+", " ", shown.stdout)
    for part in (
        "due to be cut",
        "nothing left, kept by promised",
        "not due any more",
        "90 accounts are under it; 4 would be in another state at once, 2 of them due",
        "nobody is cut before the grace period passes, a notice goes out first",
        "of 2 more nobody can say",
    ):
        assert part in said


def test_what_a_policy_asks_of_its_meters_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(ROOT / "docs/examples/homes-policy.yaml")
    said = re.sub(r"\s+", " ", wattvend(monkeypatch, Vending(), "policy", "check", file).stdout)
    assert "a meter that takes more than 5 times what it usually takes at that hour is told" in said
    assert "a meter that counts nothing for 60 days, relay closed, is told" in said


def test_what_is_wrong_with_a_policy_is_said_with_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (ROOT / "docs/examples/homes-policy.yaml").read_text()
    for was, turned, why in (
        ("Asia/Shanghai", "Asia/Atlantis", "there is no IANA time zone"),
        ("qualities: AV", "qualities: ES", "nobody is ever cut"),
    ):
        (tmp_path / "policy.yaml").write_text(text.replace(was, turned))
        result = wattvend(monkeypatch, Vending(), "policy", "check", str(tmp_path / "policy.yaml"))
        assert result.exit_code == 1
        said = re.sub(r"\s+", " ", result.stderr)
        assert "policy, rules: " in said
        assert why in said


def test_the_commands_of_the_page_on_accounts_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (ROOT / "docs/accounts.md").read_text()
    (policy,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    site = "site: {id: mall-1, name: Mall, zone: UTC, currency: CNY, legal_entity: prop-co}\n"
    (tmp_path / "site.yaml").write_text(site + policy)
    monkeypatch.chdir(tmp_path)
    (file,) = re.findall(r"```csv\n(.*?)```", text, re.DOTALL)
    (tmp_path / "shops.csv").write_text(file)
    of_others = ("RegisterSite", "PublishPolicy")
    of_meters = ("AssignMeter", "MoveMeter", "ReleaseMeter")
    kinds = ("GrantEmergencyCredit", "SetDebt", "ChangeTerms", "ChangeTenant", "WriteOff")
    vending = Vending(
        **dict.fromkeys((*of_others, *kinds, "ForceRelay"), ACCOUNT),
        **dict.fromkeys(of_meters, v.Meter()),
        GetPolicy=Refused("NOT_FOUND", "POLICY_NOT_FOUND", "there is no policy"),
        CreateClosing=lro.Operation(),
        ListClosings=c.ListClosingsResponse(),
        **dict.fromkeys(("StartOpening", "GetOpening", "CancelOpening"), o.Opening(status="open")),
        CreateOpening=o.Opening(account="accounts/shop-001", status="open"),
        ListOpenings=o.ListOpeningsResponse(),
        ListOperations=lro.ListOperationsResponse(),
        **dict.fromkeys(("GetOperation", "WaitOperation"), lro.Operation(done=True)),
        Sell=v.SellResponse(),
        GetBalance=BALANCE,
        TransferCredit=a.TransferCreditResponse(amount_minor=5_000, currency="CNY"),
    )
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        result = wattvend(monkeypatch, vending, "--json", *shlex.split(command))
        assert result.exit_code == 0, result.output
    asked = dict(vending.asked)
    assert asked["PublishPolicy"].emergency_minor == 500
    assert (asked["SetDebt"].debt_minor, asked["SetDebt"].share_ppm) == (5000, 200_000)
    terms, tenant = asked["ChangeTerms"], asked["ChangeTenant"]
    assert (terms.name, terms.tariff) == ("accounts/shop-001", "tariffs/shops-night")
    assert (tenant.name, tenant.with_owed) == ("accounts/shop-001", True)
    whole, part = [request for what, request in vending.asked if what == "CreateClosing"]
    assert (whole.parent, whole.method, list(whole.meters)) == (
        "accounts/shop-001",
        "transfer",
        [],
    )
    assert (part.method, list(part.meters), part.without_cut) == ("", ["meters/meter-002"], True)
    moved = [request for what, request in vending.asked if what == "TransferCredit"]
    assert [(each.to_account, each.amount_minor) for each in moved] == [
        ("accounts/shop-002", 5_000),
        ("accounts/shop-002", 0),
    ]
    openings = [request for what, request in vending.asked if what == "CreateOpening"]
    assert [(each.opening_id, len(each.opening.meters)) for each in openings[:3]] == [
        ("shop-001", 1),
        ("shop-002", 2),
        ("shop-003", 1),
    ]
    assert [each.validate_only for each in openings[3:]] == [True, True, False, False]
    assert [each.prepare_only for each in openings] == [False, False, True, *[False] * 4]


def test_operations_of_every_kind_are_shown_by_what_they_say_of_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    goes_on = lro.Operation(name="operations/openings/O1")
    goes_on.metadata.Pack(o.Opening(account="accounts/shop-001", status="started"))
    failed = lro.Operation(name="operations/batches/B1", done=True)
    failed.metadata.Pack(b.Batch(name="batches/B1", kind="force-off"))
    failed.error.message = "batch B1 was [cancelled]"
    done = lro.Operation(name=goes_on.name, done=True)
    done.metadata.Pack(o.Opening(account="accounts/shop-001", status="open"))
    page = lro.ListOperationsResponse(operations=[goes_on, failed], next_page_token="T")
    vending = Vending(ListOperations=page, WaitOperation=done, GetOperation=failed)
    said = wattvend(monkeypatch, vending, "operation", "list", "--kind", "openings").stdout
    for part in ("openings/O1", "shop-001", "goes on", "force-off", "was [cancelled]", "--page T"):
        assert part in said
    for name in ("openings/O1", "operations/openings/O1"):
        said = wattvend(monkeypatch, vending, "operation", "wait", name).stdout
        assert re.search(r"status +open", said)
        assert re.search(r"state +done", said)
    assert "was [cancelled]" in wattvend(monkeypatch, vending, "operation", "show", "x").stdout
    listed, *named = [request for _, request in vending.asked]
    assert (listed.name, listed.filter) == ("operations/openings", "done = false")
    assert [each.name for each in named] == [*[goes_on.name] * 2, "operations/x"]


def test_the_commands_of_the_page_on_closings_work(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/operations/closings.md").read_text()
    closing = c.Closing(
        name="accounts/shop-001/closings/1",
        state="running",
        step="meters",
        meters=[c.ClosingMeter(meter="meters/meter-001", step="reading")],
        settlement=c.ClosingSettlement(currency="CNY", refund_minor=1234, dropped_nano=5),
    )
    kinds = ("GetClosing", "GiveRegister", "CancelClosing", "SettleClosing")
    vending = Vending(
        **dict.fromkeys(kinds, closing), ListClosings=c.ListClosingsResponse(closings=[closing])
    )
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        for flags in (("--json",), ()):
            result = wattvend(monkeypatch, vending, *flags, *shlex.split(command))
            assert result.exit_code == 0, result.output
    assert "12.34 CNY" in result.output
    assert {method for method, _ in vending.asked} == {*kinds, "ListClosings"}
    read, estimated = [r for method, r in vending.asked if method == "GiveRegister"][::2]
    assert (read.register_milli, estimated.HasField("register_milli")) == (4_821_370, False)


def test_the_commands_of_the_page_on_orders_work(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/operations/orders.md").read_text()
    of_meters = ("ReplaceMeter", "ChangeRatio", "ResolveReading", "ForceRelay", "GetMeter")
    of_accounts = ("KeepPower", "PromisePayment", "RecordNotice", "Thaw")
    vending = Vending(
        **dict.fromkeys(of_meters, v.Meter()),
        **dict.fromkeys(of_accounts, v.Account()),
        ListExceptions=r.ListExceptionsResponse(),
    )
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        for flags in (("--json",), ()):
            result = wattvend(monkeypatch, vending, *flags, *shlex.split(command))
            assert result.exit_code == 0, result.output
    assert {method for method, _ in vending.asked} == vending.answers.keys() - {
        "GetAccount",
    }
    replaced, ran_over = [r for method, r in vending.asked if method == "ReplaceMeter"][::2]
    assert (replaced.closing_register_milli, replaced.opening_register_milli) == (48_210_370, 120)
    assert replaced.serial == "202612010007"
    assert not any(replaced.HasField(name) for name in ("unit", "profile", "ratio", "max_power_w"))
    assert (ran_over.closing_register_milli, ran_over.HasField("serial")) == (10**9, False)
    kept, ended = [r for method, r in vending.asked if method == "KeepPower"][::2]
    assert kept.until_ms > 0
    assert not ended.HasField("until_ms")


def test_the_commands_of_the_page_on_sales_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/sales.md").read_text()
    vending = Vending(
        Sell=v.SellResponse(),
        ReverseSale=v.ReverseSaleResponse(reversal=v.Reversal(returned_debt_minor=5)),
        RefundCredit=v.RefundCreditResponse(refund=v.Refund(currency="CNY")),
        QuoteSale=v.QuoteSaleResponse(energy_milli=100_000, fee_minor=1, currency="CNY"),
        **dict.fromkeys(("AdjustCredit", "WriteOff"), ACCOUNT),
        PublishAuthority=v.Authority(currency="CNY", rules='{"reversal": 5000}'),
        GetReceipt=v.Receipt(number=7, sale=v.Sale(currency="CNY")),
        ListPayments=v.ListPaymentsResponse(
            payments=[
                v.Payment(
                    name="sellers/web-shop/payments/T%2F1",
                    account="accounts/shop-001",
                    amount_minor=10_000,
                    currency="CNY",
                    method="qr",
                    status=status,
                    refusal_reason="ACCOUNT_NOT_OPEN" if status == "refused" else "",
                    expires_at_ms=1,
                )
                for status in ("reserved", "refused", "sold")
            ],
            next_page_token="abc",
        ),
        PrintReceipt=v.PrintReceiptResponse(number=7, pdf=b"%PDF-"),
    )
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        for flags in (("--json",), ()):
            result = wattvend(monkeypatch, vending, *flags, *shlex.split(command))
            assert result.exit_code == 0, result.output
    assert {method for method, _ in vending.asked} == vending.answers.keys()
    adjusted = [request for method, request in vending.asked if method == "AdjustCredit"][::2]
    assert [request.amount_minor for request in adjusted] == [1250, -1250]
    refunds = [request for method, request in vending.asked if method == "RefundCredit"][::2]
    assert [request.amount_minor for request in refunds] == [0, 5_000]
    sold = [request for method, request in vending.asked if method == "Sell"][::2]
    told = [(request.amount_minor, request.energy_milli) for request in sold]
    assert told == [(10_000, 0), (8_000, 100_000)]
    (policies,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (policy,) = yaml.safe_load(policies)["policies"]
    published = Policy.model_validate(policy).request("", policy.pop("id"), "CNY", "LE1")
    assert (published.fee_ppm, published.ceiling_minor) == (10_000, 200_000)
    assert (tmp_path / "receipt.pdf").read_bytes() == b"%PDF-"
    rules = json.loads(dict(vending.asked)["PublishAuthority"].rules)
    assert rules == {"reversal": 5000, "adjustment": 500}


def test_payments_are_shown_with_what_a_clerk_has_to_do_about_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    payment = v.Payment(
        name="sellers/web-shop/payments/T%2F1",
        account="accounts/shop-001",
        amount_minor=10_000,
        currency="CNY",
        status="refused",
        refusal_reason="ACCOUNT_NOT_OPEN",
    )
    vending = Vending(ListPayments=v.ListPaymentsResponse(payments=[payment]))
    asked = ("payment", "list", "--seller", "web-shop", "--account", "shop-001", "--status", "sold")
    result = wattvend(monkeypatch, vending, *asked)
    assert result.exit_code == 0, result.output
    for shown in ("T/1", "100.00 CNY", "ACCOUNT_NOT_OPEN"):
        assert shown in result.output
    (request,) = (request for name, request in vending.asked if name == "ListPayments")
    assert request.parent == "sellers/web-shop"
    assert request.filter == 'account = "accounts/shop-001" AND status = "sold"'
    assert wattvend(monkeypatch, vending, "payment", "list").exit_code == 0
    assert dict(vending.asked)["ListPayments"].parent == "sellers/-"


def test_the_commands_of_the_page_on_four_eyes_work(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/operations/approvals.md").read_text()
    rules = '{"keep-power": 7, "force-off": null, "price-change": 0}'
    document = v.Authority(name="legalEntities/property-co/authority", currency="CNY", rules=rules)
    vending = Vending(
        **dict.fromkeys(("PublishAuthority", "GetAuthority"), document),
        **dict.fromkeys(("GetApproval", "Approve", "Decline"), v.Approval()),
        ListApprovals=v.ListApprovalsResponse(approvals=[v.Approval(name="approvals/x")]),
        ForceRelay=v.Meter(name="meters/meter-001"),
    )
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        for flags in (("--json",), ()):
            result = wattvend(monkeypatch, vending, *flags, *shlex.split(command))
            assert result.exit_code == 0, result.output
    asked = dict(vending.asked)
    assert asked.keys() == vending.answers.keys() - {"GetAccount"}
    assert json.loads(asked["PublishAuthority"].rules) == {"keep-power": 7, "force-off": None}
    assert asked["Approve"].reason


def test_the_commands_of_the_page_on_batches_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = (ROOT / "docs/operations/batches.md").read_text()
    batch = b.Batch(
        name="batches/x",
        kind="force-off",
        status="running",
        currency="CNY",
        summary=b.BatchSummary(targets_count=3, done_count=1, refused_count=1, waiting_count=1),
        paces=[b.BatchPace(site="sites/mall", waiting_count=1, per_minute=10, next_at_ms=1)],
    )
    result = b.BatchResult(target="accounts/A1", outcome="refused", reason="ACCOUNT_NOT_OPEN")
    operation = lro.Operation(done=True)
    operation.metadata.Pack(batch)
    exported = answers(("M1", b"M1,0,1.234\n"))
    of_batch = b.ListBatchResultsResponse(results=[result])

    def either(method: str, otherwise: Any) -> Any:
        return lambda request: exported[method](request) if EXPORT in str(request) else otherwise

    vending = Vending(
        **dict.fromkeys(("CreateBatch", "PauseBatch", "ResumeBatch", "CancelBatch"), batch),
        GetBatch=either("GetBatch", batch),
        ListBatches=b.ListBatchesResponse(batches=[batch]),
        PreviewBatch=b.BatchPreview(batch=batch, first=[result], needs_approval="it needs two"),
        SubmitBatch=operation,
        WaitOperation=operation,
        ListBatchResults=either("ListBatchResults", of_batch),
        ListApprovals=v.ListApprovalsResponse(),
        Approve=v.Approval(),
        PlaceSite=v.Site(name="sites/floor-3", parent="sites/mall-1"),
        ListFleetAccounts=f.ListFleetAccountsResponse(accounts=[f.FleetAccount(currency="CNY")]),
        GetExport=exported["GetExport"],
        GetExportChunk=exported["GetExportChunk"],
    )
    monkeypatch.chdir(tmp_path)
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        for flags in (("--json",), ()):
            result_ = wattvend(monkeypatch, vending, *flags, *shlex.split(command))
            assert result_.exit_code == 0, result_.output
    asked = dict(vending.asked)
    assert asked.keys() == vending.answers.keys()
    made = [request for method, request in vending.asked if method == "CreateBatch"]
    assert {request.filter for request in made} == {
        "",
        "mode = forced-off AND site_tree = sites/mall-1",
        "status = open AND available < 0",
        "site_tree = sites/mall-1",
    }
    (by_list,) = [request for request in made[::2] if request.amount_minor == 5_000]
    listed = by_list.list.targets
    assert [(each.name, each.amount_minor) for each in listed] == [
        ("accounts/shop-001", 0),
        ("accounts/shop-002", 8_000),
    ]
    (fund,) = [request for request in made[::2] if request.filter.startswith("status")]
    assert fund.amount_minor == 2_000
    (of_time,) = [request for request in made[::2] if request.kind == "export"]
    assert of_time.to_ms - of_time.from_ms == 31 * 86_400_000
    assert (tmp_path / "january.csv").read_text().splitlines()[1] == "M1,0,1.234"


def test_a_terminal_obeys_nothing_that_stands_in_the_book(monkeypatch: pytest.MonkeyPatch) -> None:
    """E.g. a batch of a release before, whose filter would write over what it says."""
    said = "wattvend\x1b[2K\x1b[1A \x9b2K \u202etxet 物业"
    batch = b.Batch(name="batches/x", kind="sale", status="draft", reason="[b]sale", filter=said)
    result = wattvend(monkeypatch, Vending(GetBatch=batch), "batch", "show", "x")
    assert result.exit_code == 0
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.stdout)
    assert "wattvend�[2K�[1A �2K �txet 物业" in result.stdout
    assert "[b]sale" in result.stdout
    refused = Vending(GetBatch=Refused("NOT_FOUND", "BATCH_NOT_FOUND", said))
    told = wattvend(monkeypatch, refused, "batch", "show", "x").stderr
    assert "\x1b" not in told


@pytest.mark.parametrize(
    ("price_micro", "currency", "commodity", "told"),
    [
        (850_000, "CNY", "electricity", "0.85 CNY a kWh"),
        (1_234_567, "CNY", "water", "1.234567 CNY a m³"),
        (2_000_000, "CNY", "", "2.00 CNY a unit"),
        (1_444_700, "IDR", "electricity", "1444.70 IDR a kWh"),
        (25_000_000, "JPY", "electricity", "25 JPY a kWh"),
    ],
)
def test_a_price_is_exact_and_has_no_idle_zeros(
    price_micro: int, currency: str, commodity: str, told: str
) -> None:
    assert show.price(price_micro, currency, commodity) == told


def test_what_a_device_calls_itself_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody registered it: its serial is whatever somebody sent to the broker."""
    lost = r.ListLostMetersResponse(devices=[r.LostDevice(name="unknown/mqtt/[/][b]1")])
    result = wattvend(monkeypatch, Vending(ListLostMeters=lost), "fleet", "--lost")
    assert result.exit_code == 0, result.exception
    assert "unknown/mqtt/[/][b]1" in result.stdout
    result = wattvend(monkeypatch, Vending(GetMeter=v.Meter(serial="[/]")), "meter", "show", "M1")
    assert result.exit_code == 0, result.exception
    assert "[/]" in result.stdout


class Paged(Vending):
    """Answers a list in two pages."""

    def __init__(self, method: str, first: Any, last: Any) -> None:
        super().__init__(**{method: first})
        self.first, self.last = first, last
        first.next_page_token = "more"

    async def __call__(self, method: str, request: Any, **more: float) -> Any:
        self.answers[method] = self.last if request.page_token == "more" else self.first
        return await super().__call__(method, request, **more)


def test_nothing_that_is_lost_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(name: str) -> r.ListLostMetersResponse:
        return r.ListLostMetersResponse(devices=[r.LostDevice(name=name)])

    paged = Paged("ListLostMeters", lost("meters/M1"), lost("meters/M2"))
    shown = wattvend(monkeypatch, paged, "fleet", "--lost").stdout
    assert "meters/M1" in shown
    assert "meters/M2" in shown


@pytest.mark.parametrize(
    ("command", "method", "first", "last"),
    [
        (
            "alarms",
            "ListAlarms",
            r.ListAlarmsResponse(alarms=[r.Alarm(account="accounts/A1", currency="CNY")]),
            r.ListAlarmsResponse(alarms=[r.Alarm(account="accounts/A2", currency="CNY")]),
        ),
        (
            "exceptions",
            "ListExceptions",
            r.ListExceptionsResponse(exceptions=[r.ExceptionState(account="accounts/A1")]),
            r.ListExceptionsResponse(exceptions=[r.ExceptionState(account="accounts/A2")]),
        ),
    ],
)
def test_a_list_that_goes_on_says_how_to_see_the_rest(
    monkeypatch: pytest.MonkeyPatch, command: str, method: str, first: Any, last: Any
) -> None:
    paged = Paged(method, first, last)
    shown = wattvend(monkeypatch, paged, command).stdout
    assert "A1" in shown
    assert "more: --page more" in shown
    shown = wattvend(monkeypatch, paged, command, "--page", "more").stdout
    assert "A2" in shown
    assert "more:" not in shown


def test_a_file_lists_targets_with_their_amounts_or_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "list.csv"
    create = ("batch", "create", "sale", "--reason", "x", "--method", "cash", "--file", str(file))
    file.write_text("id,amount\nA1,5.00\n\nA2\n")
    vending = Vending(CreateBatch=b.Batch())
    assert wattvend(monkeypatch, vending, *create, "--amount", "1.00").exit_code == 0
    request = dict(vending.asked)["CreateBatch"]
    said = [(t.name, t.HasField("amount_minor") and t.amount_minor) for t in request.list.targets]
    assert said == [("accounts/A1", 500), ("accounts/A2", False)]
    file.write_text("A1,5.00,EUR\n")
    assert "line 1" in wattvend(monkeypatch, vending, *create).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("meter", "ratio", "M1", "2", "--register", "1.2345"), "no register"),
        (("meter", "replace", "M1", "--closing", "-1"), "no register"),
        (("account", "promise", "A1", "--until", "soon"), "no instant"),
        (("account", "keep-power", "A1"), "--until, or --end"),
        (("account", "keep-power", "A1", "--end", "--until", "2027-01-01"), "--until, or --end"),
    ],
)
def test_an_order_that_cannot_be_read_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    vending = Vending()
    result = wattvend(monkeypatch, vending, *arguments, "--reason", "why")
    assert (result.exit_code, vending.asked) == (2, [])
    assert says in result.stderr


def test_an_instant_may_tell_its_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    vending = Vending(PromisePayment=v.Account())
    until = ("--until", "2027-01-31T18:00+08:00", "--reason", "why")
    assert wattvend(monkeypatch, vending, "account", "promise", "A1", *until).exit_code == 0
    assert vending.asked[0][1].until_ms == 1_801_389_600_000


def test_a_receipt_tells_what_was_recovered_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sale = v.Sale(
        account="accounts/A1",
        currency="CNY",
        amount_minor=10_000,
        recovered_emergency_minor=500,
        recovered_debt_minor=2_000,
        debt_left_minor=3_000,
        credit_minor=7_500,
    )
    answer = v.SellResponse(sale=sale, credited_nano=80 * 10**9)
    told = wattvend(monkeypatch, Vending(Sell=answer), "sell", "A1", "100").stdout
    for line in (
        r"of it to emergency credit +5\.00 CNY \(left: 0\.00 CNY\)",
        r"of it to debt +20\.00 CNY \(left: 30\.00 CNY\)",
        r"credited +75\.00 CNY",
        r"credited in all +80\.00 CNY",
    ):
        assert re.search(line, told), told


def test_an_instant_with_a_zone_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for instant in ("2027-01-01T00:00+01:00", "soon"):
        options = ("--legal-entity", "L", "--effective", instant)
        result = wattvend(monkeypatch, Vending(), "tariff", "publish", "T", str(EXAMPLE), *options)
        assert result.exit_code == 1
        assert "no wall clock's time" in result.stderr


async def test_a_call_names_the_person_behind_the_caller_where_there_is_one() -> None:
    sent: list[tuple[tuple[str, str], ...]] = []

    class Stub:
        async def Sell(self, _: Any, *, timeout: float, metadata: Any) -> None:  # noqa: N802, ASYNC109
            assert timeout > 0
            sent.append(metadata)

    for actor in ("u-81", ""):
        await client._Calls(Stub(), "127.0.0.1:1", "till", actor)("Sell", v.SellRequest())
    caller = ("wattvend-caller", "till")
    assert sent == [(caller, ("wattvend-actor", "u-81")), (caller,)]


def test_the_command_line_passes_on_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    @asynccontextmanager
    async def connect(*of: Any) -> AsyncIterator[Clients]:
        asked.append(of[2:])
        yield Clients(*[Vending()] * len(fields(Clients)))  # type: ignore[arg-type]

    monkeypatch.setattr(asking, "connect", connect)
    environment = {"WATTVEND_CALLER": "desk-3", "WATTVEND_ACTOR": "u-81"}
    CliRunner(env=environment).invoke(cli.app, ["sell", "A1", "1.005"])
    assert asked[0] == ("desk-3", None, "u-81")


def test_the_commands_of_the_page_on_filters_list(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs/filters.md").read_text()
    account = r.AccountStatus(account="accounts/A1", site="sites/mall", currency="CNY")
    account.available_nano, account.level, account.frozen = 5 * 10**9, "cut", True
    refund = v.Refund(receipt="receipts/1", currency="CNY", amount_minor=1250, method="cash")
    vending = Vending(
        ListAccounts=r.ListAccountsResponse(accounts=[account], next_page_token="more"),
        ListReceipts=v.ListReceiptsResponse(
            receipts=[v.Receipt(name="receipts/1", number=7, refund=refund)]
        ),
        ListSites=r.ListSitesResponse(
            sites=[r.SiteStatus(site="sites/mall", legal_entity="legalEntities/A%2FS")]
        ),
        ListTariffs=r.ListTariffsResponse(
            tariffs=[
                r.TariffVersion(tariff="tariffs/T1", currency="CNY", price_micro=800_000),
                r.TariffVersion(tariff="tariffs/T2", currency="CNY", plan="{}"),
            ]
        ),
        ListPolicies=r.ListPoliciesResponse(
            policies=[r.PolicyVersion(policy="policies/P1", currency="CNY", alarm_1_nano=10**9)]
        ),
        GetSite=v.Site(name="sites/mall"),
        GetTariff=v.Tariff(name="tariffs/shops", currency="CNY"),
        GetPolicy=v.Policy(name="policies/homes", currency="CNY"),
    )
    shown = ""
    for command in re.findall(r"^wattvend (.+)$", text, re.MULTILINE):
        for flags in (("--json",), ()):
            result = wattvend(monkeypatch, vending, *flags, *shlex.split(command))
            assert result.exit_code == 0, result.output
        shown += result.stdout
    for part in (
        "frozen",
        "--page more",
        "-12.50 CNY (cash)",
        "A/S",
        "0.80 CNY a unit",
        "1.00",
    ):
        assert part in shown, shown
    assert {method for method, _ in vending.asked} >= {
        *("ListAccounts", "ListReceipts", "ListSites", "ListTariffs", "ListPolicies"),
    }
    fields = dict(vending.asked)
    assert fields["ListReceipts"].parent == "accounts/shop-001"
    assert fields["ListAccounts"].filter == "site = sites/mall status = open level = cut"
