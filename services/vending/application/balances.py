"""The trial balance of a book at a position of the past, read from its events, for a person."""

from collections.abc import Callable, Iterator

from services.common.kernel.units import CURRENCIES, format_scaled
from services.common.kernel.values import value_class
from services.vending.application.stored import event_of
from services.vending.domain.event_store import FROM_START, EventStore
from services.vending.domain.events.event import MoneyEvent
from services.vending.domain.trial_balance import MONEY_EVENTS, Line, TrialBalance

PAGE_EVENTS = 5_000


@value_class
class Until:
    """Up to which event: the last one where nothing is said.

    `position`: that of the last one that counts; `at_ms`: what was decided later does not count.
    """

    position: int | None = None
    at_ms: int | None = None

    def has(self, event: MoneyEvent) -> bool:
        """Say whether an event up to the position was decided in time."""
        return self.at_ms is None or event.occurred_at_ms <= self.at_ms


@value_class
class Balanced:
    """A trial balance up to a position. `events`: how many of them moved money."""

    balance: TrialBalance
    position: int
    events: int


async def balanced(
    store: EventStore, until: Until, progress: Callable[[int, int], None] = lambda _at, _of: None
) -> Balanced:
    """Add up a book. `progress`: is told (position reached, last position) after each page."""
    head = await store.head()
    last = head if until.position is None else min(head, until.position)
    balance, position, count = TrialBalance(), FROM_START, 0
    while position < last:
        read = await store.read_all(position, PAGE_EVENTS)
        page = [stored for stored in read if stored.position <= last]
        if not page:
            break
        for stored in page:
            event = event_of(stored) if stored.type in MONEY_EVENTS else None
            if isinstance(event, MoneyEvent) and until.has(event):
                balance.add(event)
                count += 1
        position = page[-1].position
        progress(position, last)
    return Balanced(balance, position, count)


def tables_of(balanced: Balanced, legal_entity: str | None = None) -> Iterator[str]:
    """Yield a table for each legal entity and currency, in their order; or of one entity."""
    for (entity, currency), book in sorted(balanced.balance.books.items()):
        if legal_entity in (None, entity):
            yield "\n".join(_table(entity, currency, book))


def _table(entity: str, currency: str, book: dict[str, Line]) -> Iterator[str]:
    decimals = CURRENCIES[currency].ledger_decimals
    total = Line(
        sum(line.debit_nano for line in book.values()),
        sum(line.credit_nano for line in book.values()),
    )
    rows = [("account", "debit", "credit", "balance")]
    for name, line in [*sorted(book.items()), ("total", total)]:
        figures = (line.debit_nano, line.credit_nano, line.balance_nano)
        debit, credit, rest = (format_scaled(nano, decimals) for nano in figures)
        rows.append((name, debit, credit, rest))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    yield f"{entity}, {currency}"
    for name, *texts in rows:
        right = (text.rjust(width) for text, width in zip(texts, widths[1:], strict=True))
        yield "  ".join((name.ljust(widths[0]), *right))
