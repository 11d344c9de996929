"""services.vending.domain.tables.Tables in SQL, in words that SQLite and PostgreSQL both know.

Each table has its module here: its SCHEMA, what is asked of it, and, where it is derived from
events, which of them change it (CHANGES), within the transaction that stores them. What of a module
is used outside is imported from there; what is of all tables stands here.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType

from services.vending.adapters.database import Change
from services.vending.adapters.tables import (
    asks,
    batches,
    charges,
    checkpoints,
    closings,
    copies,
    epochs,
    holds,
    links,
    made,
    numbers,
    openings,
    papers,
    payments,
    pending,
    scheduled,
    todos,
    unique_names,
    waiting,
)
from services.vending.adapters.tables.table import Changes, Make
from services.vending.application.stored import event_of
from services.vending.domain.event_store import StoredEvent

_TABLES = (
    unique_names,
    todos,
    waiting,
    batches,
    papers,
    payments,
    holds,
    openings,
    scheduled,
    closings,
    pending,
    numbers,
    charges,
    asks,
    epochs,
    checkpoints,
    links,
    copies,
    made,
)
SCHEMA = "".join(table.SCHEMA for table in _TABLES)
"""Idempotent; PostgreSQL takes it as it is, SQLite as `sqlite_file.in_sqlite` says it."""
DERIVED = (
    "unique_name",
    "todo",
    "waiting",
    "pending",
    "paper",
    "payment",
    "hold",
    "opening",
    "scheduled",
    "batch",
    "closing",
    "document",
    "series",
    "numbered",
)
"""The tables that are of events alone: `changes` makes them, the last three the relay counts."""
Projection = Callable[[StoredEvent], Iterable[Change]]
"""What an event changes beside the events. What it claims may refuse the append."""


class SqlTables(
    todos.Todos,
    waiting.Waiting,
    batches.Batches,
    papers.Papers,
    payments.Payments,
    holds.Holds,
    openings.Openings,
    scheduled.Scheduled,
    closings.Closings,
    pending.Pending,
    numbers.Numbers,
    charges.Charges,
    asks.Asks,
    epochs.Epochs,
    checkpoints.Checkpoints,
    links.Links,
    copies.Copies,
):
    """The tables in a database that has SCHEMA."""


def by_subject(tables: Iterable[ModuleType]) -> dict[str, list[Make]]:
    """Return subject → what its events change in some of the tables, in their order."""
    made: dict[str, list[Make]] = {}
    for table in tables:
        of_table: Changes = getattr(table, "CHANGES", {})
        for kind, make in of_table.items():
            made.setdefault(kind.SUBJECT, []).append(make)
    return made


_CHANGES = by_subject(_TABLES)


def changes(stored: StoredEvent, made: Mapping[str, list[Make]] = _CHANGES) -> Iterable[Change]:
    """Return what an event changes in the tables, in order: of most types nothing.

    Whoever stores the event makes the changes in the same transaction. `made`: of some of the
    tables, as `by_subject` says.
    """
    return _changes(stored, made[stored.type]) if stored.type in made else ()


def _changes(stored: StoredEvent, made: Iterable[Make]) -> Iterator[Change]:
    event = event_of(stored)
    for make in made:
        yield from make(event, stored.position)


def nothing(_: StoredEvent) -> Iterable[Change]:
    """Change nothing: the Projection of a store without tables."""
    return ()
