"""What the tables of a book have in common."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from services.vending.adapters.database import Change, Database
from services.vending.domain.events.event import Event

Make = Callable[[Any, int], Iterable[Change]]
"""What an event, at a position, changes in a table."""
Changes = Mapping[type[Event], Make]
"""By the event's class, which is what its `Make` takes."""


class Table:
    """A table, or a few that are asked together, in a database that has their SCHEMA."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database
