"""The trial balance: what stands on each account of the chart, by legal entity and currency.

A fold over the events of the book in the order of the store, so of any position of the past.
"""

from collections import defaultdict
from collections.abc import Iterable

from services.common.kernel.errors import Bug
from services.common.kernel.units import CURRENCIES
from services.common.kernel.values import value_class
from services.vending.domain import postings
from services.vending.domain.events import EVENTS
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.events.sales import CreditSold, DebtSet, EmergencyGranted
from services.vending.domain.postings import Postings

MONEY_EVENTS = {subject: kind for subject, kind in EVENTS.items() if issubclass(kind, MoneyEvent)}
"""Every other event moves no money."""


@value_class
class Line:
    """What was posted to one account of the chart: both sums >= 0, in ledger units."""

    debit_nano: int = 0
    credit_nano: int = 0

    @property
    def balance_nano(self) -> int:
        """What stands there: a debit positive, a credit negative."""
        return self.debit_nano - self.credit_nano

    def after(self, amount_nano: int) -> "Line":
        """Return the line after a posting."""
        if amount_nano > 0:
            return Line(self.debit_nano + amount_nano, self.credit_nano)
        return Line(self.debit_nano, self.credit_nano - amount_nano)


class TrialBalance:
    """The lines of all accounts after the events that were added.

    `books`: (legal entity, currency) → account of the chart → line. Python's integers: sums over
    customers outgrow int64.
    """

    def __init__(self, events: Iterable[MoneyEvent] = ()) -> None:
        """Begin with `events`."""
        self.books: dict[tuple[str, str], dict[str, Line]] = {}
        self._debts_minor: dict[str, int] = {}
        for event in events:
            self.add(event)

    def off_nano(self) -> dict[tuple[str, str], int]:
        """Return by how much each book does not balance: nothing, or a posting was altered."""
        sums = {
            key: sum(line.balance_nano for line in book.values())
            for key, book in self.books.items()
        }
        return {key: nano for key, nano in sums.items() if nano}

    def add(self, event: MoneyEvent) -> None:
        """Take in the next event of the store."""
        book = self.books.setdefault((event.legal_entity, event.currency), defaultdict(Line))
        for posting in self.postings_of(event):
            book[posting.account] = book[posting.account].after(posting.amount_nano)
        self._keep_debt(event)

    def postings_of(self, event: MoneyEvent) -> Postings:
        """Return what the next event posts: as it says, or, where it is old, as it would say."""
        if event.postings is not None:
            return event.postings
        nano_per_minor = CURRENCIES[event.currency].nano_per_minor
        match event:
            case CreditSold():
                recovered = (event.recovered_emergency_minor, event.recovered_debt_minor)
                emergency, debt = ((minor or 0) * nano_per_minor for minor in recovered)
                return postings.of_sale(event.method, event.amount_nano, emergency, debt)
            case EmergencyGranted():
                return postings.of_grant(event.amount_nano)
            case DebtSet():
                more_minor = event.debt_minor - self._debts_minor.get(event.account_id, 0)
                return postings.of_debt(more_minor * nano_per_minor)
        raise Bug(f"{event.SUBJECT} has always had postings, and this one has none")

    def _keep_debt(self, event: MoneyEvent) -> None:
        """Remember what is owed, where something is: an old debt-set says only what it became."""
        match event:
            case CreditSold():
                debt_minor = event.debt_left_minor or 0
            case DebtSet():
                debt_minor = event.debt_minor
            case _:
                return
        if debt_minor:
            self._debts_minor[event.account_id] = debt_minor
        else:
            self._debts_minor.pop(event.account_id, None)
