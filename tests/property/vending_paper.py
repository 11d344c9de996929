"""The book on paper: a ledger of some thirty lines, and what persons ask for that goes into it.

Amounts are in minor units, a debit positive, as in docs/ledger.md; what is used is a fraction.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor, trunc

from services.common.kernel.ids import name_uuid
from services.vending.domain.approval import approval_id_of
from services.vending.domain.batching import batch_id_of
from services.vending.domain.closing import closing_id_of
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.document import document_id_of
from services.vending.domain.origin import Origin
from tests.unit.vending_world import T0_MS

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
HOLDS = ("refund", "transfer")
"""What waits for metering to say what is left."""
KEPT = {*HOLDS, "sell", "sell energy", "grant", "adjust", "reverse", "write-off"}
"""Of these a refusal is an event, so that a repeat is refused alike; else it is judged anew."""
CLOSINGS = ("close", "close part")
DOCUMENTS = ("tariff", "policy")
BATCHES = {"batch sale": "sell", "batch adjust": "adjust", "batch terms": "terms"}
"""With what each does to its targets."""
SHARE_PPM, PPM = 200_000, 10**6
VERSIONS = {"T1": "800000", "T2": "900000", "P1": "15000/2/300", "P2": "0/0/500"}
"""A price in millionths; the fee's share in millionths, what of it is fixed, emergency credit."""
ROUNDING = {"P1": "down", "P2": "up"}
ROUNDED: dict[str, Callable[[Fraction], int]] = {
    "down": trunc,
    "up": lambda left: ceil(left) if left > 0 else floor(left),
    "half-even": round,
}
LIMITS = {
    "reversal": 500,
    "refund": 800,
    "adjustment": 100,
    "transfer": 1_000,
    "emergency": 400,
    "batch": 1,
}
ALONE = {**LIMITS, **dict.fromkeys(("debt", "authority", "force-off"))}
"""What one person may do; giving up what is owed, a register, a price always need two."""
Amount = int | Fraction


class Ledger:
    """Who has how much where, and which share of a sale was promised to a debt."""

    def __init__(self) -> None:
        self.stands: defaultdict[tuple[str, str], Fraction] = defaultdict(Fraction)
        self.share: Counter[str] = Counter()
        self.sales: dict[str, tuple[str, dict[str, Amount]]] = {}
        self.ended: Counter[str] = Counter()
        self.ended_before: dict[str, int] = {}

    def owed(self, name: str, what: str) -> int:
        return int(self.stands[what, name])

    def move(self, name: str, **amounts: Amount) -> None:
        assert sum(amounts.values()) == 0
        for account, amount in amounts.items():
            self.stands[account, name] += amount

    def sell(self, receipt: str, name: str, amount: int, fee: int, share: int) -> None:
        lent = min(amount - fee, self.owed(name, "emergency"))
        debt = min(part(amount - fee, share), self.owed(name, "debt"), amount - fee - lent)
        moved: dict[str, Amount] = {"cash": amount, "fees": -fee, "emergency": -lent, "debt": -debt}
        self.sales[receipt] = name, moved | {"prepaid": fee + lent + debt - amount}
        self.ended_before[receipt] = self.ended[name]
        self.move(name, **self.sales[receipt][1])

    def reverse(self, receipt: str) -> None:
        name, moved = self.sales[receipt]
        self.move(name, **{account: -amount for account, amount in moved.items()})
        if self.ended[name] > self.ended_before[receipt]:  # a person has ended what comes back
            self.give_up(name, "debt", -moved["debt"])

    def owe(self, name: str, debt: int) -> None:
        more = debt - self.stands["debt", name]
        self.move(name, debt=more, **{"brought" if more > 0 else "lost": -more})
        self.share[name] = SHARE_PPM if debt else 0
        self.ended[name] += not debt

    def give_up(self, name: str, what: str, amount: Amount) -> None:
        self.move(name, lost=amount, **{what: -amount})

    def use(self, name: str, energy: Amount, tax: int) -> None:
        more = {"energy": -energy, "tax": -tax}
        more = {account: to - self.stands[account, name] for account, to in more.items()}
        self.move(name, **more, prepaid=-sum(more.values()))

    def settle(self, name: str, left: Amount, whole: int) -> None:
        """End an account of which so much is left: first of all it pays what it owes."""
        lent, debt = self.owed(name, "emergency"), self.owed(name, "debt")
        paid = max(whole - lent - debt, 0)
        became = {"cash": -paid, "emergency": -lent, "debt": lent + paid - whole}
        self.move(name, prepaid=left, rounding=whole - left, **became)


def part(amount: int, ppm: int) -> int:
    return (amount * ppm + 500_000) // 10**6


def receipt_of(*name: str) -> str:
    """Return the receipt of a sale that is a step of a process."""
    return str(name_uuid("receipt", "~vending", str(name_uuid("process", *name))))


@dataclass(frozen=True)
class Ask:
    """A request of a person.

    `account`: or the tariff or policy of a document; `amount`: or when that shall apply; `about`: a
    receipt, what is given up, an outside transaction, where a transfer goes, meters, targets.
    """

    what: str
    account: str
    person: str
    number: int
    amount: int = 0
    about: str = ""
    register_milli: int = 0

    @property
    def request(self) -> Request:
        content = (self.what, self.account, self.amount, self.about)
        request_id, origin = str(name_uuid("ask", self.number)), Origin("desk", self.person)
        return Request("desk", request_id, fingerprint(*content), T0_MS, origin=origin)

    @property
    def submission(self) -> Request:
        """The request by which a batch is submitted that was drafted a moment before."""
        request_id = str(name_uuid("submission", self.number))
        return replace(self.request, request_id=request_id)

    @property
    def proposal_id(self) -> str:
        """What a second person approves."""
        request = self.submission if self.what in BATCHES else self.request
        if self.what in DOCUMENTS:
            request = process_step("publish", document_id_of(request))
        elif self.what == "settle by itself":
            request = process_step("closing-settle", self.about)
        return approval_id_of(request)

    @property
    def closing_id(self) -> str:
        return closing_id_of(*self.request.key)

    @property
    def batch_id(self) -> str:
        return batch_id_of(self.request)


def process_step(*name: str) -> Request:
    return Request("~vending", str(name_uuid("process", *name)), b"", T0_MS)
