"""What vending keeps beside its events: unique names, work half done, registers, roots. A port.

Names, todos and what waits are derived from events, never out of step with them: an append that
takes another owner's name is refused. What was charged and how far a topic was read come from
Kafka. The book epoch and the roots are the book's own.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol
from uuid import UUID

from services.common.kernel import filters
from services.common.kernel.values import value_class
from services.vending.domain.event_store import StreamId

SERIAL = "serial"
METER_KEY = "meter key"
ACCOUNT_KEY = "account key"
BUS_ADDRESS = "bus address"
GATEWAY_ADDRESS = "gateway address"

APPROVAL = "approval"
"""What waits to be decided: proposals for a second person."""
PAYMENT = "payment"
"""And reservations for their payment."""

HOLD = "hold"
"""What is pending: holds that metering shall echo, by their accounts."""
TRANSFER = "transfer"
"""And credit in transit, by the accounts that it left."""
OPENING_PREPARED = "opening-prepared"
OPENING = "opening"
"""And openings, by their streams: those that wait to be started, and those that are."""

CHECKPOINTS_KEPT = 100
"""The newest; of those before them the last of each day (UTC) stays for good."""


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
class Document:
    """The number that a receipt has in its legal entity's series, and its event."""

    receipt_id: str
    legal_entity: str
    number: int
    stream: StreamId
    revision: int
    position: int


@value_class
class BatchRow:
    """Where a batch is, without what it is for. `position`: of the event that drafted it."""

    position: int
    batch_id: str
    kind: str
    legal_entity: str
    status: str
    round_is_open: bool


@value_class
class Undecided:
    """How many proposals wait for a second person, and how many versions of policies for theirs.

    `scheduled_next_ms`: the instant of the first of these; 0: there is none.
    """

    proposals: int
    scheduled: int
    scheduled_next_ms: int


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
class Ask:
    """Metering was asked at `asked_at_ms` what an account was charged; 0: never yet.

    `waits_for`: the ask that is not answered yet. `is_last`: nothing can come of another one.
    """

    account_id: str
    account_key: int
    asked_at_ms: int = 0
    waits_for: str | None = None
    is_last: bool = False


@value_class
class Root:
    """The hash chain over the store after `count` events, the last at `position`."""

    position: int
    count: int
    root: bytes


@value_class
class Checkpoint:
    """What the relay vouches for: everything up to `root` is acknowledged on every topic.

    `signature`: Ed25519 over `message` by the key `key_id`; both empty where no key was set.
    """

    book_epoch: int
    root: Root
    written_at_ms: int = 0
    key_id: str = ""
    signature: bytes = b""

    @property
    def message(self) -> bytes:
        """The bytes that are signed: ASCII, a value a line."""
        root = self.root
        said = (self.book_epoch, root.position, root.count, root.root.hex(), self.written_at_ms)
        return "".join(f"{part}\n" for part in ("wattvend ledger checkpoint", *said)).encode()


@value_class
class Link:
    """An event as the relay found it when it told it: what the root over the store was made of.

    It names an event that was altered, or is gone. `hash`: as chain.stored_hash says.
    """

    position: int
    stream: StreamId
    revision: int
    id: UUID
    type: str
    hash: bytes


@value_class
class ClosingRow:
    """A closing of an account, which began at a position; over where it is not open."""

    closing_id: str
    account_id: str
    legal_entity: str
    position: int
    is_open: bool
    began_at_ms: int
    deadline_ms: int


@value_class
class HoldRow:
    """A hold of a refund or, `is_transfer`, a transfer, at a position; over where not open."""

    position: int
    hold_id: str
    account_id: str
    is_transfer: bool
    is_open: bool


@value_class
class OpeningRow:
    """An opening that was started, at a position; over where it is not open."""

    position: int
    opening_id: str
    account_id: str
    is_open: bool


@value_class
class ClosingsOpen:
    """How many closings are under way, how many too late, when the oldest began (0: none)."""

    count: int
    overdue: int
    oldest_began_at_ms: int


class Tables(Protocol):
    """The tables of one book. All raise StoreUnavailable where they cannot be reached."""

    async def todos(self, meter_id: str | None = None) -> list[Todo]:
        """Return what is half done, oldest first: of one meter, or of all."""
        ...

    async def decided(self, kind: str) -> list[str]:
        """Return the ids of what is decided and not carried out, oldest first.

        `kind`: APPROVAL or PAYMENT, whose ids they are.
        """
        ...

    async def overdue(self, kind: str, now_ms: int) -> list[str]:
        """Return the ids of what was not decided in time."""
        ...

    async def waiting(
        self, kind: str, legal_entity: str, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of what waits to be decided, oldest first.

        Of a legal entity or, "", of all; at most `limit` above position `after`.
        """
        ...

    async def open_batches(self, since_ms: int) -> list[str]:
        """Return the ids of batches that run, have an open round, or changed after an instant.

        The oldest first.
        """
        ...

    async def paused_batches(self) -> list[str]:
        """Return the ids of batches that are paused, the oldest first."""
        ...

    async def batches(self, after: int, limit: int) -> list[BatchRow]:
        """Return at most `limit` batches above a position, the oldest first."""
        ...

    async def batch_drafts(self, legal_entity: str) -> int:
        """Return how many batches of a legal entity are drafted, and nothing else."""
        ...

    async def documents(
        self, wanted: filters.Filter, now_ms: int, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of documents of which a filter holds now, oldest first.

        At most `limit` above a position. The filter's fields: `state`, `kind`, `tariff`, `policy`
        ("" of the other kind), `legal_entity`.
        """
        ...

    async def payments(
        self, seller: str, wanted: filters.Filter, before: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of payments of which a filter holds, newest first.

        Of a seller or, "", of all; at most `limit` below a position. The filter's fields:
        `account`, `status`, `legal_entity`.
        """
        ...

    async def hold(self, hold_id: str) -> HoldRow | None:
        """Return a hold of a refund or transfer, where there is one."""
        ...

    async def holds(
        self, is_transfer: bool, is_open: bool | None, after: int, limit: int
    ) -> list[HoldRow]:
        """Return at most `limit` holds above a position, oldest first; `is_open` None: all."""
        ...

    async def opening(self, opening_id: str) -> OpeningRow | None:
        """Return an opening that was started, where there is one."""
        ...

    async def openings(self, is_open: bool | None, after: int, limit: int) -> list[OpeningRow]:
        """Return at most `limit` that started above a position, oldest first; None: all."""
        ...

    async def scheduled_until(self, now_ms: int) -> list[tuple[str, int]]:
        """Return (policy, version) of those whose instant has come and that do not apply yet."""
        ...

    async def undecided(self) -> Undecided:
        """Return what waits for a person, or for its instant."""
        ...

    async def pending(self, kind: str, due_by_ms: int) -> list[str]:
        """Return the ids of what is pending and due by an instant, oldest first.

        `kind`: HOLD, due at its deadline; TRANSFER, OPENING, due at once.
        """
        ...

    async def pending_page(
        self, kinds: tuple[str, str], after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of what is pending, oldest first: at most `limit` above one."""
        ...

    async def numbered_until(self) -> int:
        """Return the position up to which receipts have their numbers."""
        ...

    async def last_numbers(self) -> dict[str, int]:
        """Return legal entity → the last number of its series."""
        ...

    async def keep_documents(self, documents: Sequence[Document], until: int) -> None:
        """Keep numbers, and that all up to a position have theirs, in one transaction."""
        ...

    async def document(self, receipt_id: str) -> Document | None:
        """Return the number of a receipt, where it has one."""
        ...

    async def charged_register_milli(self, meter_key: int, epoch: int) -> int | None:
        """Return the last register charged in a meter's epoch; None where none is known."""
        ...

    async def charged(self, meter_key: int, epoch: int) -> Charged | None:
        """Return the newest charge of a meter's epoch; None where none is known."""
        ...

    async def closing(self, closing_id: str) -> ClosingRow | None:
        """Return a closing, where there is one."""
        ...

    async def closings(
        self, account_id: str, is_open: bool | None, after: int, limit: int
    ) -> list[ClosingRow]:
        """Return at most `limit` closings that began above a position, oldest first.

        Of an account or, "", of all; those under way, those that are over, or, None, both.
        """
        ...

    async def closings_open(self, now_ms: int) -> ClosingsOpen:
        """Return what is under way."""
        ...

    async def keep_charged(self, charged: Iterable[Charged], offsets: Iterable[Offset]) -> None:
        """Keep what was charged and how far the topic was read, in one transaction."""
        ...

    async def offsets(self, topic: str) -> dict[int, int]:
        """Return partition → next offset of what was read of a topic."""
        ...

    async def asks(self, after: Ask | None, limit: int) -> list[Ask]:
        """Return what was asked about the next accounts behind one, houses among them.

        All accounts have a fixed order; None: from the first one on.
        """
        ...

    async def asked_last(self, since_ms: int) -> list[str]:
        """Return the accounts of the newest ask; none where that was before an instant."""
        ...

    async def asks_waiting(self, since_ms: int) -> int:
        """Return how many asks since an instant are not answered yet."""
        ...

    async def keep_asks(self, asks: Iterable[Ask]) -> None:
        """Keep what was asked, in one transaction."""
        ...

    async def keep_answer(self, account_id: str, ask_id: str, *, is_last: bool) -> None:
        """Let an ask wait no more."""
        ...

    async def unfinished_copy_of(self) -> str:
        """Return which store this one is an unfinished copy of; "" where it is none."""
        ...

    async def begin_copy(self, source: str) -> None:
        """Note that this store becomes a copy; `source` is shown to a person."""
        ...

    async def end_copy(self) -> None:
        """Note that this store is a book of its own."""
        ...

    async def book_epoch(self) -> int:
        """Return the epoch of the book."""
        ...

    async def raise_book_epoch(self, book_epoch: int, position: int) -> None:
        """Raise the epoch of the book, which begins after `position`.

        Links, checkpoints and numbers of later positions are of events that the store lost, and
        go.
        """
        ...

    async def raised_at(self) -> int:
        """Return the position of the last event before the present book epoch; 0 in the first."""
        ...

    async def root_at(self, position: int) -> Root | None:
        """Return the kept root at a position, where there is one."""
        ...

    async def checkpoints(self) -> list[Checkpoint]:
        """Return the kept checkpoints in the order of positions."""
        ...

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint; of the old ones CHECKPOINTS_KEPT and one a day stay."""
        ...

    async def linked_until(self) -> int:
        """Return the position of the last link; FROM_START where there is none."""
        ...

    async def links(self, after: int, limit: int) -> list[Link]:
        """Return at most `limit` links above a position, in the order of positions."""
        ...

    async def link_of(self, event_id: UUID) -> Link | None:
        """Return where an event was told. Slow: it looks through all of them."""
        ...

    async def keep_links(self, links: Iterable[Link]) -> None:
        """Keep links; one that is kept already stays as it is."""
        ...
