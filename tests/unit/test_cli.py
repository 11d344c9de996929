"""The operator's command line where something goes wrong: what it says, and what was asked.

Method: the commands run in this process; the services behind them are a script of answers.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from tools.cli import main as cli
from tools.client import Clients, Refused
from wattvend.vending.v1 import vending_pb2 as v

ACCOUNT = v.Account(account_id="A1", currency="CNY", minor_decimals=2)


class Vending:
    """Answers by method name; an exception is raised instead."""

    def __init__(self, **answers: Any) -> None:
        self.answers = {"GetAccount": ACCOUNT, "OpenAccount": ACCOUNT, **answers}
        self.asked: list[tuple[str, Any]] = []

    async def __call__(self, method: str, request: Any) -> Any:
        self.asked.append((method, request))
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer


def wattvend(monkeypatch: pytest.MonkeyPatch, vending: Vending, *arguments: str) -> Result:
    @asynccontextmanager
    async def connect(*_: str) -> AsyncIterator[Clients]:
        yield Clients(vending, vending)  # type: ignore[arg-type]

    monkeypatch.setattr(cli, "connect", connect)
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
    vending = Vending()
    result = wattvend(monkeypatch, vending, "sell", "A1", "1.005")
    assert result.exit_code == 1
    assert "more than 2 decimals" in result.stderr
    assert [method for method, _ in vending.asked] == ["GetAccount"]


@pytest.mark.parametrize("as_json", [False, True])
def test_a_sale_nobody_knows_the_outcome_of_tells_how_to_repeat_it(
    monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    vending = Vending(Sell=Refused("DEADLINE_EXCEEDED", "", "no answer"))
    flags = ("--json",) if as_json else ()
    result = wattvend(monkeypatch, vending, *flags, "sell", "A1", "10")
    assert result.exit_code == 1
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


def test_an_account_that_was_opened_by_half_is_completed_with_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = Refused("FAILED_PRECONDITION", "NO_READING_YET", "no reading yet")
    vending = Vending(AssignMeter=refused)
    result = wattvend(monkeypatch, vending, *opening("--meter", "M1"))
    (told,) = re.findall(r"--request-id (\S+):", result.stderr)
    first = {method: request.request_id for method, request in vending.asked}
    again = Vending(AssignMeter=v.Meter(meter_id="M1"))
    done = wattvend(monkeypatch, again, *opening("--meter", "M1", "--request-id", told))
    assert done.exit_code == 0, done.output
    second = {method: getattr(request, "request_id", "") for method, request in again.asked}
    assert {name: second[name] for name in first} == first
