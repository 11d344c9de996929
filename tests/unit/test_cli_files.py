"""The command line and a clumsy clerk's files: nothing of them is lost without a word.

Method: that of test_cli, whose script of answers stands behind the commands.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput
from tests.unit.export_answers import answers
from tests.unit.test_cli import OPENED, Vending, wattvend
from tools import sitefile
from tools.client import Refused
from wattvend.vending.v1 import openings_pb2 as o
from wattvend.vending.v1 import vending_pb2 as v

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


EXPORTING = ("batch", "create", "export", "--reason", "x")
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
    for command in (SALES, EXPORTING):
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


def test_a_meter_that_is_no_id_is_told_and_the_other_lines_are_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Strict(Vending):
        async def __call__(self, method: str, request: Any, **more: float) -> Any:
            for each in request.opening.meters:
                try:
                    names.METER.id("meter", each.meter)
                except InvalidInput as wrong:
                    raise Refused("INVALID_ARGUMENT", wrong.reason, wrong.message) from None
            return await super().__call__(method, request, **more)

    file = tmp_path / "shops.csv"
    file.write_text(f"{HEAD}A1,S1,T1,P1,M1,1.00\nA2,S1,T1,P1,表2,1.00\n", encoding="utf-8")
    vending = Strict(CreateOpening=OPENED)
    result = wattvend(monkeypatch, vending, "opening", "batch", str(file))
    assert (result.exit_code, len(vending.asked)) == (1, 1)
    assert "1 of 2 lines are done" in result.stdout
    assert "is no name of this kind" in " ".join(result.stdout.replace("│", " ").split())


@pytest.mark.parametrize(
    "command",
    [
        ("batch", "download", "B1", "--out", "nowhere/out.csv"),
        ("receipt", "print", "R1", "--to", "nowhere/receipt.pdf"),
    ],
)
def test_a_file_that_cannot_be_written_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    vending = Vending(PrintReceipt=v.PrintReceiptResponse(), **answers(("M1", b"M1\n")))
    refused = wattvend(monkeypatch, vending, *command)
    assert refused.exit_code == 1
    assert "a file cannot be used" in " ".join(refused.stderr.split())


@pytest.mark.parametrize("encoding", ["gbk", "utf-16"])
def test_a_document_in_another_encoding_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str
) -> None:
    file = tmp_path / "mall.yaml"
    file.write_text("site: {id: mall-1, name: 商场}\n", encoding=encoding)
    with pytest.raises(sitefile.SiteFileError, match="cannot be read"):
        sitefile.read(file)
    checked = wattvend(monkeypatch, Vending(), "tariff", "check", str(file))
    assert checked.exit_code == 1
    assert "cannot be read" in " ".join(checked.stderr.split())


@pytest.mark.parametrize("text", ["price: 0.80\nprice: 0.08\n", '{"price": 1, "price": 2}'])
def test_a_document_that_says_something_twice_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text(text)
    with pytest.raises(sitefile.SiteFileError, match="price is there twice"):
        sitefile.read(file)
    for command in ("tariff", "policy"):
        checked = wattvend(monkeypatch, Vending(), command, "check", str(file))
        assert checked.exit_code == 1
        assert "price is there twice" in " ".join(checked.stderr.split())
