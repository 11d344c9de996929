"""The command line where it explains: what it asks, and what a person gets to read.

Method: as in test_cli.py, the services behind the commands are a script of answers.
"""

import re
import shlex

import pytest

from tests.unit.test_cli import ROOT, Vending, wattvend
from wattvend.reporting.v1 import reporting_pb2 as r


def told_charge() -> r.ChargeLine:
    from_reading = r.Reading(reading_id="", register_milli=4_000, quality="V")
    to_reading = r.Reading(reading_id="r-1", register_milli=6_500, quality="A")
    flat = r.PriceLine(version=2, rate="flat", energy_milli=2_500, rate_nano=1_700_000_000, basis=1)
    return r.ChargeLine(
        meter="meters/M1",
        epoch=2,
        sequence=7,
        kind="re-split",
        account="accounts/A1",
        from_reading=from_reading,
        to_reading=to_reading,
        ratio=1,
        energy_milli=2_500,
        amount_nano=1_700_000_000,
        currency="CNY",
        commodity="electricity",
        lines=[flat],
    )


TOLD_TARIFF = r.TariffVersion(tariff="tariffs/T", version=2, price_micro=680_000)
EXPLANATIONS = {
    "ExplainCharge": r.ChargeExplanation(
        charge=told_charge(),
        tariffs=[TOLD_TARIFF],
        policy=r.PolicyVersion(policy="policies/P", version=3),
        corrects_sequence=5,
        until_reading=r.Reading(reading_id="r-2", register_milli=9_000),
        minor_decimals=2,
    ),
    "ExplainCutoff": r.CutoffExplanation(
        decision=r.Alarm(
            account="accounts/A1",
            kind="not-cut",
            reason="grace",
            arrears_since_ms=1,
            reading_began_at_ms=2,
            reading_received_at_ms=2,
        ),
        charge=told_charge(),
        currency="CNY",
        orders=[
            r.AccountOrder(type="power-kept", until_ms=1, revision=4),
            r.AccountOrder(type="relay-forced", meter="meters/M1", position="off", revision=5),
        ],
        silent_since_ms=1,
        notice=r.Notice(notice_id="N1", decided_at_ms=1),
        refusals=[r.Alarm(reason="notice-running")],
    ),
    "ExplainBalance": r.BalanceExplanation(
        account="accounts/A1",
        currency="CNY",
        credited_nano=10**10,
        charged_nano=17 * 10**8,
        available_nano=83 * 10**8,
        held_nano=0,
        credits=[r.Credit(type="credit-sold", receipt="receipts/R1", added_nano=10**10)],
        charged=[r.ChargedSpan(meter="meters/M1", epoch=2, first_sequence=1, last_sequence=7)],
    ),
    "PreviewTariff": r.TariffPreview(
        accounts=[
            r.PreviewedAccount(
                account="accounts/A1",
                energy_milli="1000000",
                charged_nano="800000000000",
                draft_nano="900000000000",
                difference_nano="100000000000",
            )
        ],
        total=r.PreviewedAccount(
            energy_milli="30000000",
            charged_nano="24000000000000000000",
            draft_nano="12000000000000000000",
            difference_nano="-12000000000000000000",
        ),
        currency="CNY",
        commodity="electricity",
        charges=96,
    ),
    "ListExceptions": r.ListExceptionsResponse(
        exceptions=[
            r.ExceptionState(
                kind="reading-held",
                reason="implausible",
                meter="meters/M1",
                register_milli=9_999_000,
                last_register_milli=1_000,
                bound_milli=500,
            ),
            r.ExceptionState(
                kind="not-cut", threshold_nano=0, available_nano=-(10**9), currency="CNY"
            ),
            r.ExceptionState(kind="fact-late", ended_at_ms=1, ended_by="cleared"),
            r.ExceptionState(kind="meter-silent", silent_since_ms=1),
        ]
    ),
}


def test_the_commands_of_the_page_on_explanations_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^wattvend (.+)$", (ROOT / "docs/explain.md").read_text(), re.MULTILINE)
    reporting = Vending(**EXPLANATIONS)
    for command in commands:
        for flags in ((), ("--json",)):
            asked = shlex.split(command, comments=True)
            result = wattvend(monkeypatch, reporting, *flags, *asked)
            assert result.exit_code == 0, result.output
    assert {method for method, _ in reporting.asked} == set(EXPLANATIONS)


def test_what_an_explanation_holds_is_shown_to_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    charge = wattvend(monkeypatch, Vending(**EXPLANATIONS), "explain", "charge", "M1").stdout
    shown = re.sub(r"\s+", " ", charge)
    for part in ("2.500 kWh", "1.70 CNY", "corrects #5: up to 9.00 kWh", "split by time", "0.68"):
        assert part in shown
    balance = wattvend(monkeypatch, Vending(**EXPLANATIONS), "explain", "balance", "A1").stdout
    assert "available 8.30 CNY" in balance
    assert "1..7" in balance


def test_what_kept_a_cut_off_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = wattvend(
        monkeypatch, Vending(**EXPLANATIONS), "explain", "A1", "--decision", "7"
    ).stdout
    for part in (
        *("not cut off: grace", "power-kept until", "outcome: not known", "notice-running"),
        *("relay-forced M1 off", "in arrears since", "silent since", "pushed by its device"),
    ):
        assert part in re.sub(r"[\s│]+", " ", shown), shown


def test_exceptions_are_shown_with_their_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    reporting = Vending(**EXPLANATIONS)
    result = wattvend(monkeypatch, reporting, "exceptions", "--site", "S", "--ended")
    shown = re.sub(r"[\s│]+", " ", result.stdout)
    for part in ("9999.00", "1.00", "0.50", "-1.00", "cleared", "silent since"):
        assert part in shown, result.stdout
    ((_, asked),) = reporting.asked
    assert (asked.filter, asked.ended, asked.page_size) == ('site = "sites/S"', True, 50)
    nothing = Vending(ListExceptions=r.ListExceptionsResponse())
    assert "nothing to look at" in wattvend(monkeypatch, nothing, "exceptions").stdout


def test_a_preview_shows_accounts_and_sums_beyond_64_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    reporting = Vending(**EXPLANATIONS)
    command = ("tariff", "what-if", "docs/examples/commercial-time-of-use.yaml", "--site", "S")
    period = ("--from", "2027-01-01 00:00", "--to", "2027-02-01 00:00")
    monkeypatch.chdir(ROOT)
    shown = wattvend(monkeypatch, reporting, *command, *period).stdout
    assert re.search(r"A1 +1000\.0 +800\.00 +900\.00 +100\.00 +12\.5", shown), shown
    assert re.search(r"in all .*-12000000000\.00", shown), shown
    ((_, asked),) = reporting.asked
    assert (asked.site, asked.to_ms - asked.from_ms) == ("sites/S", 31 * 86_400_000)
    assert asked.from_ms == 1_798_732_800_000  # New Year in Shanghai


def test_a_posting_of_fees_is_shown_as_the_account_s(monkeypatch: pytest.MonkeyPatch) -> None:
    line = r.PriceLine(version=1, rate="fee-1", rate_nano=31 * 10**9, days=1, days_of=1)
    told = r.ChargeLine(kind="fee", account="accounts/A1", sequence=3, currency="CNY", lines=[line])
    reporting = Vending(ExplainCharge=r.ChargeExplanation(charge=told, minor_decimals=2))
    shown = wattvend(monkeypatch, reporting, "explain", "fees", "A1").stdout
    assert "fees #3 of A1" in shown
    assert "fee-1, version 1: 31.00 (1 whole)" in shown
    assert "readings" not in shown
    assert reporting.asked == [("ExplainCharge", r.ExplainChargeRequest(account="accounts/A1"))]


def test_an_account_alone_asks_for_its_newest_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (("explain", "A1"), ("explain", "cutoff", "A1")):
        reporting = Vending(**EXPLANATIONS)
        assert wattvend(monkeypatch, reporting, *command).exit_code == 0
        assert reporting.asked == [("ExplainCutoff", r.ExplainCutoffRequest(account="accounts/A1"))]
