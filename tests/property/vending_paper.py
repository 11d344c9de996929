"""The book on paper: a ledger of thirty lines, and a clerk who knows what may be written into it.

Amounts are in minor units, a debit positive, as in docs/ledger.md.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

from services.common.kernel.ids import name_uuid
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.origin import Origin
from services.vending.domain.payment import payment_id_of
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
}
HOLDS = ("refund", "transfer")
"""What waits for metering to say what is left."""
LENT, SHARE_PPM = 300, 200_000
FEE_PPM, FEE = 15_000, 2
LIMITS = {"reversal": 500, "refund": 800, "adjustment": 100, "transfer": 1_000}
ALONE = {**LIMITS, **dict.fromkeys(("debt", "emergency", "authority"))}
"""What one person may do; giving up what is owed always needs two."""


class Ledger:
    """Who has how much where, and which share of a sale was promised to a debt."""

    def __init__(self) -> None:
        self.stands: Counter[tuple[str, str]] = Counter()
        self.share: Counter[str] = Counter()
        self.sales: dict[str, tuple[str, dict[str, int]]] = {}

    def move(self, name: str, **amounts: int) -> None:
        assert sum(amounts.values()) == 0
        self.stands.update({(account, name): amount for account, amount in amounts.items()})

    def sell(self, receipt: str, name: str, amount: int, fee: int, share: int) -> None:
        lent = min(amount - fee, self.stands["emergency", name])
        debt = min(part(amount - fee, share), self.stands["debt", name], amount - fee - lent)
        moved = {"cash": amount, "fees": -fee, "emergency": -lent, "debt": -debt}
        self.sales[receipt] = name, moved | {"prepaid": fee + lent + debt - amount}
        self.move(name, **self.sales[receipt][1])

    def reverse(self, receipt: str) -> None:
        name, moved = self.sales[receipt]
        self.move(name, **{account: -amount for account, amount in moved.items()})
        if not self.share[name]:  # a person has ended what comes back
            self.give_up(name, "debt", self.stands["debt", name])

    def owe(self, name: str, debt: int) -> None:
        more = debt - self.stands["debt", name]
        self.move(name, debt=more, **{"brought" if more > 0 else "lost": -more})
        self.share[name] = SHARE_PPM if debt else 0

    def give_up(self, name: str, what: str, amount: int) -> None:
        self.move(name, lost=amount, **{what: -amount})

    def use(self, name: str, energy: int, tax: int) -> None:
        more = {"energy": -energy, "tax": -tax}
        more = {account: to - self.stands[account, name] for account, to in more.items()}
        self.move(name, **more, prepaid=-sum(more.values()))


def part(amount: int, ppm: int) -> int:
    return (amount * ppm + 500_000) // 10**6


def fee_of(amount: int) -> int:
    return part(amount, FEE_PPM) + FEE


def receipt_of_payment(transaction_id: str) -> str:
    request_id = name_uuid("process", "sell", payment_id_of("desk", transaction_id))
    return str(name_uuid("receipt", "~vending", str(request_id)))


@dataclass(frozen=True)
class Ask:
    """A request of a person.

    `about`: a receipt, what is given up, an outside transaction, or where a transfer goes.
    """

    what: str
    account: str
    person: str
    number: int
    amount: int = 0
    about: str = ""

    @property
    def request(self) -> Request:
        content = (self.what, self.account, self.amount, self.about)
        request_id, origin = str(name_uuid("ask", self.number)), Origin("desk", self.person)
        return Request("desk", request_id, fingerprint(*content), T0_MS, origin=origin)


@dataclass
class Clerk:
    """Says what is refused and what needs two, and writes the rest into the ledger."""

    ledger: Ledger = field(default_factory=Ledger)
    sequence: Counter[str] = field(default_factory=Counter)
    """Of metering's accounts, as it told last."""
    unsaid: Counter[str] = field(default_factory=Counter)
    """What metering has charged since, and told nobody."""
    back: set[str] = field(default_factory=set)
    """Receipts whose sale was reversed; then those that something else keeps from that."""
    kept: dict[str, str] = field(default_factory=dict)
    holding: dict[str, Ask] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    sent_to: dict[str, int] = field(default_factory=dict)
    """How many tenants the other account had when it was held."""
    named: dict[Ask, int] = field(default_factory=dict)
    """What a refund of all came to when it was proposed."""
    tenants: Counter[str] = field(default_factory=Counter)
    """How many an account had."""
    seen: dict[Ask, tuple[int, int, int]] = field(default_factory=dict)
    """What an approver sees: tenants here and where it goes, and the most that changes hands."""
    reserved: dict[str, tuple[Ask, int]] = field(default_factory=dict)
    """With the share of then."""
    cancelled: set[str] = field(default_factory=set)
    paid: set[str] = field(default_factory=set)

    def left(self, name: str) -> int:
        """Return what the book knows to be left: less than nothing is nothing."""
        return max(-self.ledger.stands["prepaid", name], 0)

    def arrears(self, name: str) -> int:
        return max(self.ledger.stands["prepaid", name], 0)

    def sight(self, ask: Ask) -> tuple[int, int, int]:
        there = self.tenants[ask.about] if ask.what == "transfer" else 0
        hands = self.changes_hands(ask.account) if ask.what == "move in" else 0
        return self.tenants[ask.account], there, hands

    def has_changed(self, ask: Ask) -> str:
        (here, there, hands), was = self.sight(ask), self.seen[ask]
        return "" if (here, there) == was[:2] and hands <= was[2] else "CHANGED_SINCE"

    def changes_hands(self, name: str) -> int:
        owed = self.owed(name, "emergency") + self.owed(name, "debt")
        return self.left(name) + self.arrears(name) + owed

    def owed(self, name: str, what: str) -> int:
        return self.ledger.stands[what, name]

    def needs_two(self, ask: Ask) -> bool:
        match ask.what:
            case "reverse":
                return self.ledger.sales[ask.about][1]["cash"] > LIMITS["reversal"]
            case "refund" | "transfer":
                return (ask.amount or self.left(ask.account)) > LIMITS[ask.what]
            case "adjust":
                return abs(ask.amount) > LIMITS["adjustment"]
            case "move in":
                return self.changes_hands(ask.account) > LIMITS["transfer"]
        return ask.what == "write-off"

    def refusal(self, ask: Ask) -> str:  # noqa: C901 - one a case
        name = ask.account
        owes = self.owed(name, "emergency") or self.owed(name, "debt")
        match ask.what:
            case "sell" | "reserve" if fee_of(ask.amount) >= ask.amount:
                return "AMOUNT_BELOW_FEE"
            case "grant" if self.owed(name, "emergency"):
                return "EMERGENCY_ALREADY_GRANTED"
            case "reverse" if self.ledger.sales.get(ask.about, "?")[0] != name:
                return "RECEIPT_NOT_FOUND"
            case "reverse":
                return (
                    "ALREADY_REVERSED" if ask.about in self.back else self.kept.get(ask.about, "")
                )
            case "refund" | "transfer" | "move in" if name in self.holding:
                return "REFUND_UNDER_WAY"
            case "refund" | "transfer" if owes:
                return "ACCOUNT_HAS_DEBT"
            case "refund" | "transfer" if not 0 < self.to_hold(ask) <= self.left(name):
                return "BALANCE_TOO_LOW"
            case "move in" if (owes or self.arrears(name)) and ask.about == "owing nothing":
                return "ACCOUNT_HAS_DEBT"
            case "confirm" | "cancel" if ask.about not in self.reserved:
                return "PAYMENT_NOT_FOUND"
            case "confirm" if ask.about in self.cancelled:
                return "PAYMENT_TO_RETURN"
            case "cancel" if ask.about in self.paid:
                return "PAYMENT_CONFIRMED"
            case "write-off" if ask.about == "arrears":
                return "NOT_OWED" if self.arrears(name) < ask.amount else ""
            case "write-off" if self.owed(name, ask.about) < ask.amount:
                return "NOT_OWED"
        return ""

    def to_hold(self, ask: Ask) -> int:
        left = self.left(ask.account)
        return ask.amount or min(left, self.named.get(ask, left))

    def keep(self, name: str, why: str) -> None:
        """Let no sale to an account be reversed any more; what kept it before still does."""
        sales = {receipt: why for receipt, sale in self.ledger.sales.items() if sale[0] == name}
        self.kept = sales | self.kept if why == "TENANT_CHANGED_SINCE" else self.kept | sales

    def echo(self, name: str, lost: int) -> str:
        """Settle what waits: the book has learnt what was used from the echo alone."""
        left = max(self.left(name) - self.unsaid[name], 0)
        ask = self.holding.pop(name)
        amount = ask.amount or min(left, self.held[name])
        if lost:
            return "EVIDENCE_TOO_OLD"
        if self.owed(name, "emergency") or self.owed(name, "debt"):
            return "ACCOUNT_HAS_DEBT"
        if not 0 < amount <= left:
            return "BALANCE_TOO_LOW"
        if ask.what == "transfer":
            was_let = self.tenants[ask.about] != self.sent_to[name]
            to = name if was_let else ask.about
            self.ledger.move(name, prepaid=amount, transit=-amount)
            self.ledger.move(to, transit=amount, prepaid=-amount)
            if was_let:
                self.keep(name, "REFUNDED_SINCE")
                return "TENANT_CHANGED_SINCE"
        else:
            self.ledger.move(name, prepaid=amount, cash=-amount)
        self.keep(name, "REFUNDED_SINCE")
        return "done"

    def write(self, ask: Ask, receipt: str, promised: int | None = None) -> None:  # noqa: C901 - one a case
        name, amount, ledger = ask.account, ask.amount, self.ledger
        match ask.what:
            case "refund" | "transfer":
                self.holding[name], self.held[name] = ask, self.to_hold(ask)
                self.sent_to[name] = self.tenants[ask.about]
            case "reserve":
                self.reserved[ask.about] = ask, ledger.share[name]
            case "cancel":
                self.cancelled.add(ask.about)
            case "confirm" if ask.about not in self.paid:
                self.paid.add(ask.about)
                asked, share = self.reserved[ask.about]
                receipt = receipt_of_payment(asked.about)
                self.write(replace(asked, what="sell"), receipt, share)
            case "sell":
                share = ledger.share[name] if promised is None else promised
                ledger.sell(receipt, name, amount, fee_of(amount), share)
            case "reverse":
                self.back.add(ask.about)
                ledger.reverse(ask.about)
            case "grant":
                ledger.move(name, emergency=LENT, prepaid=-LENT)
            case "owe":
                ledger.owe(name, amount)
            case "adjust":
                ledger.move(name, given=amount, prepaid=-amount)
            case "write-off":
                what = "prepaid" if ask.about == "arrears" else ask.about
                ledger.give_up(name, what, amount)
            case "move in":
                self.keep(name, "TENANT_CHANGED_SINCE")
                self.tenants[name] += 1
