"""The clerk beside the book on paper: what is refused, what needs two, and what is written."""

from collections import Counter
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count
from math import ceil, floor

from services.vending.domain.payment import payment_id_of
from tests.property.vending_cards import PREPAID, Card
from tests.property.vending_ledger import PPM, Amount, Ledger, part
from tests.property.vending_paper import (
    BATCHES,
    DOCUMENTS,
    HOLDS,
    KEPT,
    LIMITS,
    MOVES,
    ORDERS,
    ROUNDED,
    ROUNDING,
    SHARE_PPM,
    VERSIONS,
    Ask,
    receipt_of,
)
from tests.unit.vending_world import LEAD_MS, T0_MS

OWED_AS = {"arrears": "prepaid"}
"""Where in the ledger that is which a person gives up, where it is called otherwise."""


@dataclass
class Shut:
    """A closing that is under way. `step`: what it waits for; `left`, `whole`: as was told.

    `meters`: of those that it `names` the ones that have not left.
    """

    ask: Ask
    names: list[str]
    meters: list[str]
    deadline_ms: int
    step: str = "meters"
    some_left: bool = False
    left: Amount = 0
    whole: int = 0


@dataclass
class Clerk:
    """Says what is refused and what needs two, and writes the rest into the ledger."""

    ledger: Ledger = field(default_factory=Ledger)
    ended: Counter[str] = field(default_factory=Counter)
    """How often a person has ended the debt of an account; and how often before each sale."""
    ended_before: dict[str, int] = field(default_factory=dict)
    shares: Counter[str] = field(default_factory=Counter)
    """Which part of a sale goes to the debt of an account, in millionths."""
    now_ms: int = T0_MS
    status: dict[str, str] = field(default_factory=dict)
    """Of each account: open, closing, closed."""
    terms: dict[str, dict[str, str]] = field(default_factory=dict)
    """The T(ariff) and the P(olicy) of each account."""
    versions: dict[str, list[tuple[int, str]]] = field(
        default_factory=lambda: {name: [(T0_MS, said)] for name, said in VERSIONS.items()}
    )
    """Of tariffs and policies, each with when it begins."""
    cards: dict[str, Card] = field(default_factory=dict)
    """Of each meter."""
    sequence: Counter[str] = field(default_factory=Counter)
    """Of metering's accounts, as it told last."""
    unsaid: Counter[str] = field(default_factory=Counter)
    """What metering has charged since, and told nobody."""
    back: set[str] = field(default_factory=set)
    """Receipts whose sale was reversed; then those that something else keeps from that."""
    kept: dict[str, str] = field(default_factory=dict)
    paid_late: set[str] = field(default_factory=set)
    """Receipts of what was sold to accounts that were closed, which owed it."""
    lent_most: Counter[str] = field(default_factory=Counter)
    """The most that an account was lent at once."""
    holding: dict[str, Ask] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    sent_to: dict[str, int] = field(default_factory=dict)
    """How many tenants the other account had when it was held."""
    tenants: Counter[str] = field(default_factory=Counter)
    """How many an account had."""
    seen: dict[Ask, tuple[object, int]] = field(default_factory=dict)
    """What an approver sees: whose it is, under which terms; and the most that changes hands."""
    drafted: dict[Ask, list[object]] = field(default_factory=dict)
    """Whose each target of a batch was."""
    named: dict[Ask, int] = field(default_factory=dict)
    """What a request came to when it was proposed: a refund of all, a grant; the version before."""
    promised: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Of a reservation: how many tenants the account had had, and whether it was closed."""
    reserved: dict[str, tuple[Ask, int, int]] = field(default_factory=dict)
    """With the share and the fee of then."""
    cancelled: set[str] = field(default_factory=set)
    """Of reservations those that are never sold."""
    paid: set[str] = field(default_factory=set)
    openings: dict[str, tuple[str, Ask]] = field(default_factory=dict)
    """Of an account: prepared, open or cancelled, and what was prepared."""
    shut: dict[str, Shut] = field(default_factory=dict)
    steps: dict[Ask, str] = field(default_factory=dict)
    """What each closing that ever began waits for, or came to."""
    batches: dict[Ask, str] = field(default_factory=dict)
    results: dict[Ask, list[str]] = field(default_factory=dict)

    # --- what is so --------------------------------------------------------------------------

    def left(self, name: str, more: int = 0) -> int:
        """Return what is left by the book, when `more` was used: less than nothing is nothing."""
        return max(floor(-self.ledger.stands["prepaid", name] - more), 0)

    def owed(self, name: str, what: str) -> int:
        return int(self.ledger.stands[what, name])

    def arrears(self, name: str) -> int:
        return max(ceil(self.ledger.stands["prepaid", name]), 0)

    def changes_hands(self, name: str) -> int:
        return self.left(name) + self.arrears(name) + self.owes(name)

    def owes(self, name: str) -> int:
        return self.owed(name, "emergency") + self.owed(name, "debt")

    def in_force(self, name: str) -> str:
        return next(said for at_ms, said in reversed(self.versions[name]) if at_ms <= self.now_ms)

    def policy(self, name: str) -> list[int]:
        """Return the fee's share, what of it is fixed, and emergency credit."""
        return [int(said) for said in self.in_force(self.terms[name]["P"]).split("/")]

    def fee(self, name: str, amount: int) -> int:
        ppm, fixed, _ = self.policy(name)
        return part(amount, ppm) + fixed

    def price(self, name: str, energy_milli: int) -> int:
        """Return the least amount that buys so much energy, its fee included."""
        price_micro = int(self.in_force(self.terms[name]["T"]))
        net = ceil(Fraction(energy_milli * price_micro, 10**7))
        return next(amount for amount in count(net) if amount - self.fee(name, amount) >= net)

    def has(self, name: str) -> list[str]:
        return [meter_id for meter_id, card in self.cards.items() if card.owner == name]

    def is_named(self, name: str, meter_id: str) -> bool:
        """Say whether a closing of the account names the meter, which is then its alone."""
        return name in self.shut and meter_id in self.shut[name].names

    def whose(self, target: str) -> object:
        """Return whose a meter or an account is: which tenant's, by how many there were."""
        if target not in self.cards:
            return self.tenants[target]
        owner = self.cards[target].owner
        return owner, self.tenants[owner]

    def earliest_ms(self, target: str) -> int:
        """Return from when on a new version may apply; of a tariff not before the one before."""
        if target.startswith("P"):
            return self.now_ms
        return max(self.now_ms + LEAD_MS, self.versions[target][-1][0])

    def batch(self, number: str) -> Ask:
        return next(ask for ask in self.batches if str(ask.number) == number)

    # --- what is refused ---------------------------------------------------------------------

    def needs_two(self, ask: Ask) -> bool:
        name = ask.account
        match ask.what:
            case "reverse":
                return sum(self.ledger.sales[ask.about][1].values()) > LIMITS["reversal"]
            case "refund" | "transfer":
                return (ask.amount or self.left(name)) > LIMITS[ask.what]
            case "adjust":
                return abs(ask.amount) > LIMITS["adjustment"]
            case "move in":
                return self.changes_hands(name) > LIMITS["transfer"]
            case "grant":
                return self.policy(name)[2] > LIMITS["emergency"]
            case "batch adjust" if abs(ask.amount) > LIMITS["adjustment"]:
                return True
            case _ if ask.what in MOVES:
                return self.cards[name].is_below(ask.register_milli)
            case "batch terms" | "batch export":
                return True
            case _ if ask.what in BATCHES:
                return len(ask.about.split()) > LIMITS["batch"]
        return ask.what in {*DOCUMENTS, "write-off", "terms", "give", "settle"}

    def refusal(self, ask: Ask) -> str:  # noqa: C901 - one a case
        name = ask.account
        if name in self.status and (refusal := self.not_open(ask)):
            return refusal
        match ask.what:
            case "sell" | "reserve" if self.status[name] == "closed":
                return ""
            case "sell" | "reserve" if self.fee(name, ask.amount) >= ask.amount:
                return "AMOUNT_BELOW_FEE"
            case "sell energy" if self.owes(name):
                return "CANNOT_QUOTE"
            case "grant" if self.owed(name, "emergency"):
                return "EMERGENCY_ALREADY_GRANTED"
            case "grant" if not self.policy(name)[2]:
                return "NO_EMERGENCY_CREDIT"
            case "reverse" if self.ledger.sales.get(ask.about, "?")[0] != name:
                return "RECEIPT_NOT_FOUND"
            case "reverse" if ask.about in self.back:
                return "ALREADY_REVERSED"
            case "reverse" if kept := self.kept.get(ask.about, ""):
                return kept
            case "reverse" if lent := self.ledger.sales[ask.about][1]["emergency"]:
                too_much = self.owed(name, "emergency") + lent > self.lent_most[name]
                return "EMERGENCY_GRANTED_SINCE" if too_much else ""
            case "transfer" if self.status[ask.about] != "open":
                return "ACCOUNT_NOT_OPEN"
            case "close" | "close part" if name in self.shut:
                return "CLOSING_UNDER_WAY"
            case "refund" | "transfer" | "move in" | "close" | "close part" if name in self.holding:
                return "REFUND_UNDER_WAY"
            case "refund" | "transfer" | "move in" if name in self.shut:
                return "CLOSING_UNDER_WAY"
            case "refund" | "transfer" if self.owes(name):
                return "ACCOUNT_HAS_DEBT"
            case "refund" | "transfer" if not 0 < self.to_hold(ask) <= self.left(name):
                return "BALANCE_TOO_LOW"
            case "move in" if ask.about == "owing nothing" and (
                self.owes(name) or self.arrears(name)
            ):
                return "ACCOUNT_HAS_DEBT"
            case "close" if not ask.about and self.has(name):
                return "ACCOUNT_HAS_METERS"
            case "close" if not ask.about and self.owes(name):
                return "ACCOUNT_HAS_DEBT"
            case "close part" if self.cards[ask.about].owner != name:
                return "METER_NOT_ASSIGNED"
            case "terms" if ask.about in self.terms[name].values():
                return "NOTHING_CHANGES"
            case "write-off" if ask.about == "arrears":
                return "NOT_OWED" if self.arrears(name) < ask.amount else ""
            case "write-off" if self.owed(name, ask.about) < ask.amount:
                return "NOT_OWED"
            case "confirm" | "cancel":
                return self.refusal_of_payment(ask)
            case "give" | "settle" | "settle by itself" | "cancel closing":
                return self.refusal_of_closing(ask)
            case "open" | "prepare" | "start" | "drop":
                return self.refusal_of_opening(ask)
            case "tariff" | "policy":
                return self.refusal_of_document(ask)
            case _ if ask.what in MOVES:
                return self.refusal_of_move(ask)
            case _ if ask.what in ORDERS:
                return self.cards[name].refusal_to_switch(ask.what, by_batch=ask.number < 0)
            case _ if ask.what in BATCHES:
                return "BATCH_STATE" if self.batches.get(ask, "draft") != "draft" else ""
            case "pause" | "resume" | "cancel batch":
                able = {"pause": ["running"], "resume": ["paused"]}
                wanted = able.get(ask.what, ["draft", "running", "paused"])
                return "" if self.batches[self.batch(ask.about)] in wanted else "BATCH_STATE"
        return ""

    def not_open(self, ask: Ask) -> str:
        """Return what is told where an account is not open: who left pays what he owes."""
        status, debt = self.status[ask.account], self.owed(ask.account, "debt")
        ends = {"give", "settle", "settle by itself", "cancel closing"}
        if status == "open" or ask.what in {*ends, "open", "prepare", "start", "drop"}:
            return ""
        pays = ask.what in {"sell", "reserve"} and ask.amount <= debt
        is_given_up = ask.what == "write-off" and ask.about == "debt"
        is_given_up = is_given_up or (ask.what == "reverse" and ask.about in self.paid_late)
        if status == "closed" and (pays or is_given_up or ask.what in {"confirm", "cancel"}):
            return ""
        return "" if ask.what in {"confirm", "cancel"} else "ACCOUNT_NOT_OPEN"

    def refusal_of_payment(self, ask: Ask) -> str:
        if ask.about not in self.reserved:
            return "PAYMENT_NOT_FOUND"
        if ask.what == "cancel":
            return "PAYMENT_CONFIRMED" if ask.about in self.paid else ""
        sold = replace(self.reserved[ask.about][0], what="sell")
        tenants, was_closed = self.promised[ask.about]
        is_closed = self.status[sold.account] == "closed"
        since = tenants != self.tenants[sold.account] or is_closed > was_closed
        if ask.about not in self.paid and (since or self.not_open(sold)):
            self.cancelled.add(ask.about)
        return "PAYMENT_TO_RETURN" if ask.about in self.cancelled else ""

    def refusal_of_closing(self, ask: Ask) -> str:
        shut = self.shut.get(ask.account)
        if shut is None or ask.about.split()[0] != shut.ask.closing_id:
            return "CLOSING_NOT_FOUND"
        match ask.what:
            case "cancel closing":
                return "CLOSING_NOT_CANCELLABLE" if shut.some_left else ""
            case "give":
                is_in = ask.about.split()[1] in shut.meters
                return "" if is_in and self.now_ms >= shut.deadline_ms else "CLOSING_NOT_WAITING"
        is_told = shut.step == "approval" and ask.amount == shut.whole - self.owes(ask.account)
        return "" if is_told else "CLOSING_NOT_WAITING"

    def refusal_of_opening(self, ask: Ask) -> str:
        status, prepared = self.openings.get(ask.account, ("", ask))
        if ask.what in {"open", "prepare"}:
            if status in {"prepared", "open"}:
                return "ALREADY_EXISTS"
            prepared = ask
        elif status != "prepared":
            return "OPENING_NOT_PREPARED" if status else "OPENING_NOT_FOUND"
        self.terms[ask.account] = {"T": "T1", "P": "P1"}
        sold = ask.amount if ask.what in {"open", "start"} else 0
        if sold and self.fee(ask.account, sold) >= sold:
            return "AMOUNT_BELOW_FEE"
        is_taken = ask.what != "drop" and prepared.about and self.cards[prepared.about].owner
        return "METER_ALREADY_ASSIGNED" if is_taken else ""

    def refusal_of_move(self, ask: Ask) -> str:
        card, owner = self.cards[ask.account], self.cards[ask.account].owner
        if ask.what in {"assign", "move"}:
            was, to = ask.about.split() if ask.what == "move" else ("", ask.about)
            if owner and owner == was == to:
                return "NOTHING_CHANGES"
            if owner != was:
                return "METER_ALREADY_ASSIGNED" if owner else "METER_NOT_ASSIGNED"
            if self.status[to] != "open":
                return "ACCOUNT_NOT_OPEN"
            if self.is_named(to, ask.account):
                return "CLOSING_UNDER_WAY"
        elif ask.what == "release" and not owner:
            return "METER_NOT_ASSIGNED"
        if card.ends_at(ask.register_milli) is None:
            return "NO_READING_YET"
        return "CLOSING_UNDER_WAY" if self.is_named(owner, ask.account) else ""

    def refusal_of_document(self, ask: Ask) -> str:
        versions, at_ms = self.versions[ask.account], ask.amount
        if self.named.get(ask, len(versions)) != len(versions):
            return "DOCUMENT_STALE"
        if at_ms and at_ms < self.now_ms:
            return "EFFECTIVE_IN_PAST"
        return "EFFECTIVE_TOO_EARLY" if at_ms and at_ms < self.earliest_ms(ask.account) else ""

    def sight(self, ask: Ask) -> tuple[object, int]:
        name = ask.account
        there = self.tenants[ask.about] if ask.what == "transfer" else 0
        if ask.what == "move":
            there = self.tenants[ask.about.split()[1]]
        under = list(self.terms[name].values()) if ask.what == "terms" else []
        epoch = self.cards[name].epoch if ask.what in MOVES else 0
        hands = self.changes_hands(name) if ask.what == "move in" else 0
        return (self.whose(name), there, under, epoch), hands

    def refusal_by_two(self, ask: Ask) -> str:
        """Return why what was approved is not done: as ever, or it is not what was seen."""
        refusal, (now, hands), (was, most) = self.refusal(ask), self.sight(ask), self.seen[ask]
        has_changed = "" if now == was and hands <= most else "CHANGED_SINCE"
        return self.first(ask, refusal, has_changed)

    def first(self, ask: Ask, refusal: str, has_changed: str) -> str:
        """Return which is told of two; a refusal that leaves no trace goes before."""
        return has_changed or refusal if ask.what in KEPT else refusal or has_changed

    # --- what happens ------------------------------------------------------------------------

    def draft(self, ask: Ask) -> None:
        """Let a batch be drafted, where it is not."""
        self.batches.setdefault(ask, "draft")
        self.drafted.setdefault(ask, [self.whose(target) for target in ask.about.split()])

    def name(self, ask: Ask) -> None:
        """Take note of what a request comes to that is proposed."""
        self.seen[ask] = self.sight(ask)
        if ask.what in HOLDS:
            self.named[ask] = self.left(ask.account)
        elif ask.what == "grant":
            self.named[ask] = self.policy(ask.account)[2]
        elif ask.what in DOCUMENTS:
            self.named[ask] = len(self.versions[ask.account])

    def to_hold(self, ask: Ask) -> int:
        left = self.left(ask.account)
        return ask.amount or min(left, self.named.get(ask, left))

    def keep(self, name: str, why: str) -> None:
        """Let no sale to an account be reversed any more; what kept it before still does."""
        sales = {receipt: why for receipt, sale in self.ledger.sales.items() if sale[0] == name}
        self.kept = sales | self.kept if why == "TENANT_CHANGED_SINCE" else self.kept | sales

    def echo(self, name: str, lost: int) -> str:
        """Settle what waits: the book has learnt what was used from the echo alone."""
        left = self.left(name, self.unsaid[name])
        ask = self.holding.pop(name)
        amount = ask.amount or min(left, self.held[name])
        if lost:
            return "EVIDENCE_TOO_OLD"
        if self.owes(name):
            return "ACCOUNT_HAS_DEBT"
        if not 0 < amount <= left:
            return "BALANCE_TOO_LOW"
        if ask.what == "transfer":
            if self.status[ask.about] != "open":
                return "ACCOUNT_NOT_OPEN"  # it comes back
            if self.tenants[ask.about] != self.sent_to[name]:
                return "TENANT_CHANGED_SINCE"  # and so it does then
        self.keep(name, "REFUNDED_SINCE")
        if ask.what == "transfer":
            self.ledger.enter(name, amount, "prepaid", "transit")
            self.ledger.enter(ask.about, amount, "transit", "prepaid")
        else:
            self.ledger.enter(name, amount, "prepaid", "cash")
        return "done"

    def told(self, name: str, lost: int) -> None:
        """Settle a closing as far as one person may, by what was used up to its echo."""
        shut = self.shut[name]
        if shut.ask.what == "close part":
            if not lost:  # else it is asked again
                self.over(name, "open", "done")
            return
        shut.left = -self.ledger.stands["prepaid", name]
        shut.whole = ROUNDED[ROUNDING[self.terms[name]["P"]]](shut.left)
        if lost:
            self.over(name, "open", "EVIDENCE_TOO_OLD")
        elif not shut.ask.about and shut.whole:
            self.over(name, "open", "ACCOUNT_HAS_BALANCE")
        elif shut.whole - self.owes(name) > LIMITS["refund"]:
            shut.step = self.steps[shut.ask] = "approval"
        else:
            self.settle(name)

    def settle(self, name: str) -> None:
        shut = self.shut[name]
        self.ledger.settle(name, shut.left, shut.whole)
        self.over(name, "closed", "done")

    def over(self, name: str, status: str, answer: str) -> None:
        self.status[name] = status
        self.steps[self.shut.pop(name).ask] = answer

    def read(self, meter_id: str) -> None:
        """Let what a meter shows be charged."""
        card = self.cards[meter_id]
        card.charged_milli = card.shows_milli
        self.leaves(meter_id, card.shows_milli)

    def leaves(self, meter_id: str, register_milli: int) -> None:
        """Let a meter leave at a register, where a closing waits for that."""
        card = self.cards[meter_id]
        shut = self.shut.get(card.owner)
        if shut is None or meter_id not in shut.meters:
            return
        card.goes_to("", register_milli)
        shut.some_left = True
        shut.meters.remove(meter_id)
        if not shut.meters:
            shut.step = self.steps[shut.ask] = "echo"

    def turn(self) -> None:
        """Give each batch that runs its round."""
        for ask in [ask for ask, status in self.batches.items() if status == "running"]:
            self.batches[ask] = "finished"
            targets = zip(ask.about.split(), self.drafted[ask], strict=True)
            self.results[ask] = [self.one(ask, name, whose) for name, whose in targets]

    def one(self, batch: Ask, name: str, whose: object) -> str:
        what = BATCHES[batch.what]
        if what == "export":
            return "done"  # of whoever had the meter
        about = "P2" if what == "terms" else ""
        ask = Ask(what, name, batch.person, -1, batch.amount, about)
        has_changed = "CHANGED_SINCE" if self.whose(name) != whose else ""
        refusal = self.first(ask, self.refusal(ask), has_changed)
        if not refusal:
            self.write(ask, receipt_of("batch", batch.batch_id, name))
        return refusal or "done"

    def write(self, ask: Ask, receipt: str) -> None:  # noqa: C901 - one a case
        name, amount, ledger = ask.account, ask.amount, self.ledger
        match ask.what:
            case "refund" | "transfer":
                self.holding[name], self.held[name] = ask, self.to_hold(ask)
                self.sent_to[name] = self.tenants[ask.about]
            case "reserve":
                self.reserved[ask.about] = ask, self.shares[name], self.fee(name, amount)
                self.promised[ask.about] = self.tenants[name], self.status[name] == "closed"
            case "cancel":
                self.cancelled.add(ask.about)
            case "confirm" if ask.about not in self.paid:
                self.paid.add(ask.about)
                asked, share, fee = self.reserved[ask.about]
                payment_id = payment_id_of("desk", ask.about)
                self.sell(asked, receipt_of("sell", payment_id), asked.amount, fee, share)
            case "sell":
                self.sell(ask, receipt, amount, self.fee(name, amount), self.shares[name])
            case "sell energy":
                amount = self.price(name, amount)
                self.sell(ask, receipt, amount, self.fee(name, amount), self.shares[name])
            case "reverse":
                self.reverse(ask.about)
            case "grant":
                lent = self.policy(name)[2]
                lent = min(lent, self.named.get(ask, lent))
                ledger.enter(name, lent, "emergency", "prepaid")
                self.lent_most[name] = max(self.lent_most[name], lent)
            case "owe":
                ledger.owe(name, amount)
                self.ended[name] += not amount
                self.shares[name] = SHARE_PPM if amount else 0
            case "adjust":
                ledger.enter(name, amount, "given", "prepaid")
            case "write-off":
                ledger.enter(name, amount, "lost", OWED_AS.get(ask.about, ask.about))
            case "move in":
                self.keep(name, "TENANT_CHANGED_SINCE")
                self.tenants[name] += 1
            case "terms":
                self.terms[name][ask.about[0]] = ask.about
            case "tariff" | "policy":
                begins_ms = amount or self.earliest_ms(name)
                self.versions[name].append((begins_ms, ask.about))
            case "prepare":
                self.openings[name] = "prepared", ask
            case "drop":
                self.openings[name] = "cancelled", ask
            case "open" | "start":
                self.open(ask)
            case "close" | "close part":
                self.shuts(ask)
            case "cancel closing":
                self.uncut(self.shut[name])
                self.over(name, "open", "done")
            case "give":
                self.leaves(ask.about.split()[1], ask.register_milli)
            case "assign" | "move" | "release" | "replace":
                self.moves(ask)
            case "off" | "on" | "prepaid":
                self.cards[name].switch(ask.what)
            case "settle" | "settle by itself":
                self.settle(name)
            case "pause" | "resume" | "cancel batch":
                became = {"pause": "paused", "resume": "running", "cancel batch": "cancelled"}
                self.batches[self.batch(ask.about)] = became[ask.what]
            case _ if ask.what in BATCHES:
                self.batches[ask] = "running"

    def sell(self, ask: Ask, receipt: str, amount: int, fee: int, share: int) -> None:
        if self.status[ask.account] == "closed":  # of what is owed nothing else is taken
            fee, share = 0, PPM
            self.paid_late.add(receipt)
        self.ledger.sell(receipt, ask.account, amount, fee, share)
        self.ended_before[receipt] = self.ended[ask.account]

    def reverse(self, receipt: str) -> None:
        """Take a sale back; a debt that a person has ended since does not come back with it."""
        self.back.add(receipt)
        self.ledger.reverse(receipt)
        name, paid = self.ledger.sales[receipt]
        if self.ended[name] > self.ended_before[receipt]:
            self.ledger.enter(name, paid["debt"], "lost", "debt")

    def open(self, ask: Ask) -> None:
        name, prepared = ask.account, self.openings.get(ask.account, ("", ask))[1]
        prepared = ask if ask.what == "open" else prepared
        self.openings[name], self.status[name] = ("open", prepared), "open"
        if prepared.about:
            self.cards[prepared.about].goes_to(name, prepared.register_milli)
        if ask.amount:
            fee, receipt = self.fee(name, ask.amount), receipt_of("open", name, *ask.request.key)
            self.sell(ask, receipt, ask.amount, fee, 0)

    def shuts(self, ask: Ask) -> None:
        name = ask.account
        meters = self.has(name) if ask.what == "close" else [ask.about]
        shut = self.shut[name] = Shut(ask, meters, [*meters], self.now_ms + 3_600_000)
        shut.step = self.steps[ask] = "meters" if meters else "echo"
        for card in [self.cards[meter_id] for meter_id in meters if ask.amount]:
            if card.forced == PREPAID:
                card.switch("off", ask.closing_id)
        if ask.what == "close":
            self.status[name] = "closing"

    def uncut(self, shut: Shut) -> None:
        """Give back what a closing has cut, where nobody has ordered otherwise since."""
        for card in [self.cards[meter_id] for meter_id in shut.names]:
            if card.cut_by == shut.ask.closing_id:
                card.switch(PREPAID)

    def moves(self, ask: Ask) -> None:
        card = self.cards[ask.account]
        ends_milli = card.ends_at(ask.register_milli)
        assert ends_milli is not None
        if ask.what == "replace":
            card.replaced(ask)
        else:
            card.goes_to(ask.about.split()[-1] if ask.about else "", ends_milli)
