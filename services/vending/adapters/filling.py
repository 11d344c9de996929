"""Tables that came with a later release: made of all events of a book, once, when it is opened.

It reads the whole book, and takes the longer the more there is. A book that begins with such a
table is not read.
"""

from collections.abc import Collection

import structlog

from services.vending.adapters.database import Change, Database, Statement
from services.vending.adapters.tables import by_subject, changes, holds, openings, papers, payments
from services.vending.domain.event_store import FROM_START, EventStore

LATER = {"paper": papers, "payment": payments, "hold": holds, "opening": openings}
"""Each such table → its module."""
EVENTS_AT_ONCE_MAX = 5_000
EVENTS_BETWEEN_WORDS = 500_000
"""So many are some seconds of reading, of which the log tells."""


async def fill(store: EventStore, database: Database) -> None:
    """Make what is missing. If it is interrupted, the next one begins anew."""
    made = {name for (name,) in await database.rows("SELECT name FROM made")}
    if not (missing := LATER.keys() - made):
        return
    empty = [Statement(f"DELETE FROM {name}", [()]) for name in missing]  # noqa: S608 - constants
    await database.run(empty)
    made_by = by_subject(LATER[name] for name in missing)
    log = structlog.stdlib.get_logger().bind(tables=sorted(missing), events=store.count())
    after, done, next_word = FROM_START, 0, 0
    while events := await store.read_all(after, EVENTS_AT_ONCE_MAX):
        if done >= next_word:
            next_word = done + EVENTS_BETWEEN_WORDS
            log.info("tables that are new in this release are made of the whole book", done=done)
        after, done = events[-1].position, done + len(events)
        await database.run([_statement(c) for event in events for c in changes(event, made_by)])
    await database.run([mark(missing)])
    if done:
        log.info("the new tables are made", done=done)


def mark(names: Collection[str] = tuple(LATER)) -> Statement:
    """Return what says that tables are made."""
    return Statement("INSERT INTO made(name) VALUES($1)", [(name,) for name in names])


def _statement(change: Change) -> Statement:
    assert isinstance(change, Statement), "names are not claimed later"
    return change
