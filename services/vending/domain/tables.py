"""What vending keeps beside its events: unique names, work half done, registers, roots. A port.

Names, todos and open proposals are derived from events, never out of step with them: an append that
takes another owner's name is refused. What was charged and how far a topic was read come from
Kafka. The book epoch and the roots are the book's own.
"""

from collections.abc import Iterable
from typing import Protocol

from services.common.kernel.values import value_class

SERIAL = "serial"
METER_KEY = "meter key"
ACCOUNT_KEY = "account key"
BUS_ADDRESS = "bus address"
GATEWAY_ADDRESS = "gateway address"

ROOTS_KEPT = 100
"""Checkpoints are written after their root is kept: the newest few are enough to meet again."""


@value_class
class Todo:
    """An assignment that the meter's stream decided, at `position`, and the account's has not."""

    kind: str
    account_id: str
    meter_id: str
    epoch: int
    register_milli: int
    position: int


@value_class
class Charged:
    """The newest charge of a meter: where it ended."""

    meter_key: int
    epoch: int
    sequence: int
    register_milli: int
    to_time_ms: int


@value_class
class Offset:
    """What is to be read next of a partition."""

    topic: str
    partition: int
    next_offset: int


@value_class
class Root:
    """The hash chain over the store after `count` events, the last at `position`."""

    position: int
    count: int
    root: bytes


class Tables(Protocol):
    """The tables of one book. All raise StoreUnavailable where they cannot be reached."""

    async def todos(self, meter_id: str | None = None) -> list[Todo]:
        """Return what is half done, oldest first: of one meter, or of all."""
        ...

    async def approved(self) -> list[str]:
        """Return the proposals that are approved and not concluded, oldest first."""
        ...

    async def overdue(self, now_ms: int) -> list[str]:
        """Return the proposals that nobody approved in time."""
        ...

    async def pending(self, legal_entity: str, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, approval id) of what waits for a second person, oldest first.

        Of a legal entity or, "", of all; at most `limit` above position `after`.
        """
        ...

    async def charged_register_milli(self, meter_key: int, epoch: int) -> int | None:
        """Return the last register charged in a meter's epoch; None where none is known."""
        ...

    async def keep_charged(self, charged: Iterable[Charged], offsets: Iterable[Offset]) -> None:
        """Keep what was charged and how far the topic was read, in one transaction."""
        ...

    async def offsets(self, topic: str) -> dict[int, int]:
        """Return partition → next offset of what was read of a topic."""
        ...

    async def book_epoch(self) -> int:
        """Return the epoch of the book."""
        ...

    async def raise_book_epoch(self, book_epoch: int, position: int) -> None:
        """Raise the epoch of the book, which begins after `position`."""
        ...

    async def raised_at(self) -> int:
        """Return the position of the last event before the present book epoch; 0 in the first."""
        ...

    async def root_at(self, position: int) -> Root | None:
        """Return the kept root at a position, where there is one."""
        ...

    async def latest_root(self) -> Root | None:
        """Return the newest kept root."""
        ...

    async def keep_root(self, root: Root) -> None:
        """Keep a root; of the old ones the newest ROOTS_KEPT stay."""
        ...
