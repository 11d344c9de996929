"""The book on paper: in thirty lines of code (a test counts) where the money of each customer is.

An entry debits one account of the chart and credits another with the same amount, so all accounts
sum to zero whatever is entered. Amounts are in minor units, a debit positive, as in docs/ledger.md;
what is used is a fraction. What is entered, and when, the clerk says (vending_clerk.py).
"""

from collections import defaultdict
from fractions import Fraction

CHART = {
    "cash": "assets:cash",
    "fees": "income:service-fee",
    "prepaid": "liabilities:prepayment",
    "emergency": "assets:emergency-credit",
    "debt": "assets:receivable",
    "brought": "equity:brought-forward",
    "lost": "expenses:write-off",
    "given": "income:adjustment",
    "energy": "income:electricity:energy",
    "tax": "liabilities:tax",
    "transit": "liabilities:transit",
    "rounding": "income:rounding",
}
PPM = 10**6
Amount = int | Fraction


def part(amount: int, ppm: int) -> int:
    """Return so many millionths of an amount, to the nearest."""
    return (amount * ppm + PPM // 2) // PPM


class Ledger:
    """Who has how much where. `sales`: whose each is, and what it was a payment for."""

    def __init__(self) -> None:
        self.stands: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
        self.sales: dict[str, tuple[str, dict[str, int]]] = {}

    def enter(self, name: str, amount: Amount, debit: str, credit: str) -> None:
        self.stands[debit, name] += amount
        self.stands[credit, name] -= amount

    def sell(self, receipt: str, name: str, amount: int, fee: int, share_ppm: int) -> None:
        """Take the fee, what was lent, and its share of a debt; the rest is credit."""
        lent = min(amount - fee, int(self.stands["emergency", name]))
        share = min(part(amount - fee, share_ppm), amount - fee - lent)
        pays = {"fees": fee, "emergency": lent, "debt": min(share, int(self.stands["debt", name]))}
        self.sales[receipt] = name, {**pays, "prepaid": amount - sum(pays.values())}
        for account, paid in self.sales[receipt][1].items():
            self.enter(name, paid, "cash", account)

    def reverse(self, receipt: str) -> None:
        name, pays = self.sales[receipt]
        for account, paid in pays.items():
            self.enter(name, paid, account, "cash")

    def owe(self, name: str, debt: int) -> None:
        more = debt - self.stands["debt", name]
        self.enter(name, more, "debt", "brought" if more > 0 else "lost")

    def use(self, name: str, **totals: Amount) -> None:
        """Post what was used in all: of each kind what is more, or less, than before."""
        for kind, total in totals.items():
            self.enter(name, total + self.stands[kind, name], "prepaid", kind)

    def settle(self, name: str, left: Amount, whole: int) -> None:
        """End an account of which so much is left: first of all it pays what it owes."""
        self.enter(name, self.stands["emergency", name], "debt", "emergency")
        paid_out = max(whole - int(self.stands["debt", name]), 0)
        self.enter(name, left - whole, "prepaid", "rounding")
        self.enter(name, whole - paid_out, "prepaid", "debt")
        self.enter(name, paid_out, "prepaid", "cash")
