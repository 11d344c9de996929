"""What the tables of a book are made of: statements, claims of unique names, where both are run."""

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol
from uuid import UUID

from services.common.kernel.values import value_class

UUID_SIZE_BYTES = 16
NO_UUID = UUID(int=0)
NEVER_MS = 2**62
"""An instant that does not come."""


@value_class
class Statement:
    """SQL with the parameters `$1`, `$2`, ..., run once for each of `rows`."""

    sql: str
    rows: Sequence[Sequence[Any]]


@value_class
class Claim:
    """Let a name be the owner's. The append is refused with NameTaken where it is taken."""

    kind: str
    name: str
    owner: str


Change = Claim | Statement


class Database(Protocol):
    """Where the tables are."""

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a short query on what is committed."""
        ...

    def run(self, statements: Sequence[Statement]) -> Awaitable[None]:
        """Run statements in one transaction; done when it is durable."""
        ...


def uuid_of(stored: bytes) -> UUID:
    """Return the UUID of 16 bytes; one that none has, of others.

    Those were altered: the verifier shall come to say so.
    """
    return UUID(bytes=stored) if len(stored) == UUID_SIZE_BYTES else NO_UUID
