"""Goal: what an event posts is what an accountant would write down, and the page says the same.

Method: small sums whose entries are known by heart; the chart in docs/ledger.md against the code.
"""

import re
from pathlib import Path

import pytest

from services.common.kernel.errors import Bug
from services.vending.domain import postings
from services.vending.domain.checks import METHODS
from services.vending.domain.events.sales import DebtSet
from services.vending.domain.postings import Posting

ROOT = Path(__file__).parents[2]


def entries(posted: postings.Postings) -> dict[str, int]:
    postings.check_balanced(posted)
    assert len({posting.account for posting in posted}) == len(posted)
    return {posting.account: posting.amount_nano for posting in posted}


@pytest.mark.parametrize("method", METHODS)
def test_a_sale_is_money_in_hand_or_owed_by_a_provider_and_a_prepayment(method: str) -> None:
    money = "assets:cash" if method == "cash" else f"assets:clearing:{method}"
    assert entries(postings.of_sale(method, 100, 0, 0)) == {
        money: 100,
        "liabilities:prepayment": -100,
    }


def test_what_a_sale_recovers_is_no_prepayment() -> None:
    assert entries(postings.of_sale("cash", 100, 5, 20)) == {
        "assets:cash": 100,
        "assets:emergency-credit": -5,
        "assets:receivable": -20,
        "liabilities:prepayment": -75,
    }
    assert "liabilities:prepayment" not in entries(postings.of_sale("cash", 5, 5, 0))


def test_a_service_fee_is_income_of_the_sale() -> None:
    assert entries(postings.of_sale("cash", 100, 5, 20, 2)) == {
        "assets:cash": 100,
        "income:service-fee": -2,
        "assets:emergency-credit": -5,
        "assets:receivable": -20,
        "liabilities:prepayment": -73,
    }


def test_credit_that_is_set_right_and_what_is_given_up_move_no_money() -> None:
    assert entries(postings.of_adjustment(-7)) == {
        "income:adjustment": -7,
        "liabilities:prepayment": 7,
    }
    for kind, owed in (
        ("emergency", "assets:emergency-credit"),
        ("debt", "assets:receivable"),
        ("arrears", "liabilities:prepayment"),
    ):
        assert entries(postings.of_write_off(kind, 9)) == {"expenses:write-off": 9, owed: -9}


def test_a_refund_is_money_that_goes_out() -> None:
    assert entries(postings.of_refund("transfer", 9)) == {
        "liabilities:prepayment": 9,
        "assets:clearing:transfer": -9,
    }


def test_a_debt_comes_from_other_books_and_what_it_falls_by_is_written_off() -> None:
    assert entries(postings.of_debt(50)) == {
        "assets:receivable": 50,
        "equity:brought-forward": -50,
    }
    assert entries(postings.of_debt(-30)) == {"assets:receivable": -30, "expenses:write-off": 30}
    assert postings.of_debt(0) == ()


def test_a_remainder_that_is_dropped_is_income_and_one_that_is_given_costs() -> None:
    assert entries(postings.of_rounding(7)) == {"liabilities:prepayment": 7, "income:rounding": -7}
    assert entries(postings.of_rounding(-3)) == {"liabilities:prepayment": -3, "income:rounding": 3}


def test_what_is_taken_back_leaves_nothing() -> None:
    sold = postings.of_sale("qr", 100, 5, 20)
    assert {**entries(sold), **entries(postings.reversed_of(sold))} == {
        account: -nano for account, nano in entries(sold).items()
    }


def test_an_event_whose_postings_do_not_sum_to_zero_is_never_made() -> None:
    with pytest.raises(Bug, match="do not sum to zero"):
        DebtSet(
            caller="till",
            request_id="r",
            fingerprint=b"",
            occurred_at_ms=1,
            account_id="A1",
            debt_minor=1,
            share_ppm=1,
            reason="arrears",
            currency="CNY",
            legal_entity="LE1",
            commodity="electricity",
            postings=(Posting("assets:receivable", 10**7),),
        )


def test_the_chart_in_the_documents_is_the_code_s() -> None:
    page = (ROOT / "docs/ledger.md").read_text()
    listed = set(re.findall(r"^\| `([a-z-]+(?::[a-z<>-]+)+)` \|", page, re.MULTILINE))
    named = {
        value for name, value in vars(postings).items() if name.isupper() and isinstance(value, str)
    } - {postings.CLEARING, postings.INCOME}
    named |= {
        debit.account for method in METHODS for debit in postings.of_sale(method, 1, 0, 0)[:1]
    }
    components = [name for name in postings.COMPONENTS if name != "tax"]
    assert listed == named | {f"income:<commodity>:{name}" for name in components}


def test_postings_are_integers() -> None:
    with pytest.raises(Bug, match="do not sum to zero"):
        postings.check_balanced(postings.posted(("income:rounding", 1), ("assets:cash", -1.0)))  # type: ignore[arg-type] # the point
