"""Double entry: the chart of accounts, and what each movement of money posts (docs/ledger.md).

An amount is in ledger units of the event's currency, debit positive, credit negative. The postings
of an event sum to zero, and nothing is posted to an account at 0. The account of the customer is
the event's: `PREPAYMENT` of one account is what it was credited less what it used.
"""

from collections.abc import Iterable
from dataclasses import astuple, fields

from services.common.kernel.errors import Bug
from services.common.kernel.values import value_class

CASH = "assets:cash"
CLEARING = "assets:clearing"
"""With a method behind it: what its provider (POS, bank, QR) has taken in and owes us."""
RECEIVABLE = "assets:receivable"
"""Debts, which sales recover."""
EMERGENCY = "assets:emergency-credit"
"""Emergency credit that was granted and not yet recovered."""
PREPAYMENT = "liabilities:prepayment"
TRANSIT = "liabilities:transit"
"""Credit that has left an account for another: nothing when no transfer is under way."""
TAX = "liabilities:tax"
INCOME = "income"
"""With a commodity and a component of `Usage` behind it: what was used of it, without tax."""
BROUGHT_FORWARD = "equity:brought-forward"
"""Against debts that come from other books."""
ADJUSTMENT = "income:adjustment"
"""Credit that was set right: given (debit) or taken (credit), and nobody paid."""
SERVICE_FEE = "income:service-fee"
ROUNDING = "income:rounding"
WRITE_OFF = "expenses:write-off"

_MONEY = {"cash": CASH, **{name: f"{CLEARING}:{name}" for name in ("pos", "transfer", "qr")}}
"""Where money of a method of payment lies: the till, or what a provider owes us."""


@value_class
class Posting:
    """An amount on an account of the chart: debit positive, credit negative, never 0."""

    account: str
    amount_nano: int


Postings = tuple[Posting, ...]


@value_class
class Usage:
    """What an account was charged in all, lifetime totals by component.

    `energy_nano`: by the prices of rates; `undivided_nano`: before metering kept components apart.
    """

    energy_nano: int = 0
    surcharge_nano: int = 0
    ladder_nano: int = 0
    fees_nano: int = 0
    tax_nano: int = 0
    undivided_nano: int = 0

    @property
    def charged_nano(self) -> int:
        """All of it."""
        return sum(astuple(self))


COMPONENTS = tuple(field.name.removesuffix("_nano") for field in fields(Usage))


def check_balanced(postings: Postings) -> None:
    """Raise Bug where postings do not sum to zero, as integers: no schema would refuse a float."""
    total_nano = sum([posting.amount_nano for posting in postings])
    if total_nano or type(total_nano) is not int:
        raise Bug(f"these postings do not sum to zero: {postings}")


def posted(*amounts: tuple[str, int]) -> Postings:
    """Return the postings of (account, amount), those of 0 left out."""
    return tuple([Posting(account, nano) for account, nano in amounts if nano])


def reversed_of(postings: Iterable[Posting]) -> Postings:
    """Return what takes postings back."""
    return tuple([Posting(posting.account, -posting.amount_nano) for posting in postings])


def of_sale(
    method: str, amount_nano: int, emergency_nano: int, debt_nano: int, fee_nano: int = 0
) -> Postings:
    """Return what a sale posts.

    `emergency_nano`, `debt_nano`: what of the amount they recover; `fee_nano`: the service fee.
    """
    return posted(
        (_MONEY[method], amount_nano),
        (SERVICE_FEE, -fee_nano),
        (EMERGENCY, -emergency_nano),
        (RECEIVABLE, -debt_nano),
        (PREPAYMENT, emergency_nano + debt_nano + fee_nano - amount_nano),
    )


def of_grant(amount_nano: int) -> Postings:
    """Return what emergency credit posts: it is credited now, and owed."""
    return posted((EMERGENCY, amount_nano), (PREPAYMENT, -amount_nano))


def of_debt(more_nano: int) -> Postings:
    """Return what a debt that was set posts; `more_nano`: by how much it rose (fell: negative).

    A rise was owed in other books before; of a fall nothing is expected any more.
    """
    return posted(
        (RECEIVABLE, more_nano),
        (BROUGHT_FORWARD if more_nano > 0 else WRITE_OFF, -more_nano),
    )


def of_adjustment(amount_nano: int) -> Postings:
    """Return what credit that is set right posts; `amount_nano`: given to the customer."""
    return posted((ADJUSTMENT, amount_nano), (PREPAYMENT, -amount_nano))


def of_refund(method: str, amount_nano: int) -> Postings:
    """Return what paying credit out posts."""
    return posted((PREPAYMENT, amount_nano), (_MONEY[method], -amount_nano))


def of_transfer_out(amount_nano: int) -> Postings:
    """Return what credit posts that leaves for another account; it comes back by the opposite."""
    return posted((PREPAYMENT, amount_nano), (TRANSIT, -amount_nano))


def of_transfer_in(amount_nano: int) -> Postings:
    """Return what credit posts that comes in from transit."""
    return posted((TRANSIT, amount_nano), (PREPAYMENT, -amount_nano))


def of_write_off(kind: str, amount_nano: int) -> Postings:
    """Return what giving up `amount_nano` posts: emergency credit, a debt, or arrears."""
    owed = {"emergency": EMERGENCY, "debt": RECEIVABLE, "arrears": PREPAYMENT}[kind]
    return posted((WRITE_OFF, amount_nano), (owed, -amount_nano))


def of_usage(commodity: str, before: Usage, after: Usage) -> Postings:
    """Return what usage posts whose totals were `before` and are `after`, less in a correction.

    What was prepaid is earned now, and the tax on it is owed.
    """
    posts = [(PREPAYMENT, after.charged_nano - before.charged_nano)]
    for name, was_nano, is_nano in zip(COMPONENTS, astuple(before), astuple(after), strict=True):
        account = TAX if name == "tax" else f"{INCOME}:{commodity}:{name}"
        posts.append((account, was_nano - is_nano))
    return posted(*posts)


def of_settlement(
    recovered_nano: int, emergency_nano: int, debt_nano: int, due_nano: int
) -> Postings:
    """Return what the end of an account posts, but for what is paid out and dropped.

    `recovered_nano`: of what is left, for what is owed; `emergency_nano`: granted and not recovered
    before, which is a debt now where it is not recovered; `debt_nano`: by how much the debt rises;
    `due_nano`: used beyond the credit, in that debt.
    """
    return posted(
        (PREPAYMENT, recovered_nano - due_nano),
        (EMERGENCY, -emergency_nano),
        (RECEIVABLE, debt_nano),
    )


def of_rounding(dropped_nano: int) -> Postings:
    """Return what a remainder posts that a document drops of a balance.

    Negative: what is given, so that the balance is whole.
    """
    return posted((PREPAYMENT, dropped_nano), (ROUNDING, -dropped_nano))
