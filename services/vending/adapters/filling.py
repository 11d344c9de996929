"""Tables that came with a later release: made of all events of a book, once, when it is opened.

It reads the whole book: a minute for some million events. A book that begins with such a table is
not read.
"""

from collections.abc import Collection
from types import ModuleType

from services.vending.adapters.database import Change, Claim, Database, Statement
from services.vending.adapters.tables import holds, papers, payments
from services.vending.application.stored import event_of
from services.vending.domain.event_store import FROM_START, EventStore, StoredEvent

LATER = {"paper": papers, "payment": payments, "hold": holds}
"""Each such table → its module."""
EVENTS_AT_ONCE_MAX = 5_000


async def fill(store: EventStore, database: Database) -> None:
    """Make what is missing. If it is interrupted, the next one begins anew."""
    made = {name for (name,) in await database.rows("SELECT name FROM made")}
    if not (missing := LATER.keys() - made):
        return
    empty = [Statement(f"DELETE FROM {name}", [()]) for name in missing]  # noqa: S608 - constants
    await database.run(empty)
    after = FROM_START
    while events := await store.read_all(after, EVENTS_AT_ONCE_MAX):
        after = events[-1].position
        await database.run([s for event in events for s in _statements(event, missing)])
    await database.run([mark(missing)])


def mark(names: Collection[str] = tuple(LATER)) -> Statement:
    """Return what says that tables are made."""
    return Statement("INSERT INTO made(name) VALUES($1)", [(name,) for name in names])


def _statements(stored: StoredEvent, names: Collection[str]) -> list[Statement]:
    changes: list[Change] = []
    for name in names:
        module: ModuleType = LATER[name]
        kinds = {kind.SUBJECT: make for kind, make in module.CHANGES.items()}
        if make := kinds.get(stored.type):
            changes += make(event_of(stored), stored.position)
    assert not any(isinstance(change, Claim) for change in changes), "names are not claimed later"
    return [change for change in changes if isinstance(change, Statement)]
