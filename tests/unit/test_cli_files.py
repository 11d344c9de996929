"""The command line and a clumsy clerk's files: nothing of them is lost without a word.

Method: that of test_cli, whose script of answers stands behind the commands.
"""

import json
from pathlib import Path

import pytest
from typer.testing import Result

from tests.unit.test_cli import OPENED, Vending, exporting, wattvend
from wattvend.vending.v1 import openings_pb2 as o

HEAD = "account,site,tariff,policy,meters,sale\n"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("A1,S1,T1,P1,M1=0,1,000.00", "it has 7 cells, of 6 columns"),
        ("A1,S1,T1,P1,M1=0", "it has 5 cells, of 6 columns"),
        ('A1,S1,T1,P1,M1=0,"1,000.00"', "no amount"),
        ("A1,S1,T1,P1,M1=0,1.000", "more than 2 decimals"),
    ],
)
def test_an_amount_with_a_mark_for_thousands_is_no_smaller_amount(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, says: str
) -> None:
    file = tmp_path / "shops.csv"
    file.write_text(f"{HEAD}{line}\nA2,S1,T1,P1,M2,1000.00\n")
    vending = Vending(CreateOpening=OPENED)
    result = wattvend(monkeypatch, vending, "--json", "opening", "batch", str(file))
    assert result.exit_code == 1
    wrong, _ = json.loads(result.stdout)["openings"]
    assert says in wrong["problems"][0]["message"]
    ((_, request),) = vending.asked
    assert (request.opening_id, request.opening.first_sale.amount_minor) == ("A2", 100_000)


def test_a_column_that_is_there_twice_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "shops.csv"
    file.write_text("account,site,tariff,policy,sale,sale\nA1,S1,T1,P1,10.00,1.00\n")
    result = wattvend(monkeypatch, Vending(), "opening", "batch", str(file))
    assert result.exit_code == 2
    assert "sale is there twice" in " ".join(result.stderr.split())


SALES = ("batch", "create", "sale", "--reason", "x", "--method", "cash")


@pytest.mark.parametrize("more", [(), ("--target", "A3=1.00")])
def test_an_account_that_a_list_names_twice_is_told_and_nothing_is_drafted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: tuple[str, ...]
) -> None:
    file = tmp_path / "subsidies.csv"
    file.write_text(f"A1,50.00\nA2,20.00\n{'A3' if more else 'A1'},30.00\n")
    vending = Vending()
    result = wattvend(monkeypatch, vending, *SALES, *more, "--file", str(file))
    assert (result.exit_code, vending.asked) == (2, [])
    assert "is named twice" in " ".join(result.stderr.split())


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_a_list_in_another_encoding_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    file = tmp_path / "list.csv"
    file.write_text("账户,金额\nA1,50.00\n", encoding=encoding)
    for command in (SALES, exporting()):
        result = wattvend(monkeypatch, Vending(), *command, "--file", str(file))
        assert result.exit_code == 2
        assert "in UTF-8" in " ".join(result.stderr.split())


def test_an_opening_that_was_cancelled_is_not_done_and_is_opened_only_where_its_line_says_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """To a repeated request vending says what became of it, so the line has to ask anew."""
    file = tmp_path / "shops.csv"

    def run(text: str, status: str) -> tuple[Result, list[str]]:
        file.write_text(text)
        opened = o.Opening(account="accounts/A1", status=status)
        vending = Vending(CreateOpening=opened)
        result = wattvend(monkeypatch, vending, "opening", "batch", str(file), "--prepare")
        return result, [request.request_id for _, request in vending.asked]

    two = "account,site,tariff,policy\nA1,S,T,P\nA2,S,T,P\n"
    done, first = run(two, "prepared")
    assert (done.exit_code, len(first)) == (0, 2)
    for status in ("cancelled", "refused"):
        ended, second = run(two, status)
        assert (ended.exit_code, second) == (1, first)
        told = " ".join(ended.stdout.replace("│", " ").split())
        assert "0 of 2 lines are done" in told
        assert f"it was {status}; if it shall be done after all" in told
    anew, third = run("account,site,tariff,policy,again\nA1,S,T,P,2\nA2,S,T,P,\n", "prepared")
    assert anew.exit_code == 0
    assert (third[0] in first, third[1] == first[1]) == (False, True)
