"""services.vending.domain.tables.Tables in SQL, in words that SQLite and PostgreSQL both know.

`unique_name`, `todo`, `batch`, `closing`, `waiting` (proposals, payments), `pending` (holds,
transfers, openings), `draft` (documents, also those long published) and `scheduled` (versions of
policies) are derived from events (`changes`) within the transaction that stores them. `charged` and
`consumer_offset` come from the topics that vending reads; `usage_ask` says when metering was asked
last what an account was charged. `book` holds the book epoch, `raised` the position after which
each began; `link` what the hash chain over the store is made of, `checkpoint` what the relay
vouched for. `root` is of earlier releases.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol
from uuid import UUID

from services.common.kernel.errors import Bug
from services.common.kernel.ids import column_key, house_account_id
from services.common.kernel.values import value_class
from services.common.runtime import codec
from services.vending.domain import chain
from services.vending.domain.event_store import FROM_START, StoredEvent, StreamId
from services.vending.domain.events import event_from
from services.vending.domain.events.accounts import (
    AccountMeterJoined,
    AccountMeterLeft,
    AccountOpened,
)
from services.vending.domain.events.approvals import (
    CommandProposed,
    ProposalApproved,
    ProposalDeclined,
    ProposalExecuted,
    ProposalExpired,
    ProposalFailed,
)
from services.vending.domain.events.batches import (
    BatchCancelled,
    BatchCreated,
    BatchFinished,
    BatchPaused,
    BatchResumed,
    BatchRoundBegun,
    BatchRoundEnded,
    BatchSubmitted,
)
from services.vending.domain.events.closings import (
    AccountClosed,
    AccountCloseRefused,
    AccountClosing,
    ClosingUndone,
    MetersClosed,
    MetersClosing,
)
from services.vending.domain.events.documents import DocumentDrafted
from services.vending.domain.events.event import Event
from services.vending.domain.events.meters import MeterAssigned, MeterRegistered, MeterReplaced
from services.vending.domain.events.openings import (
    OpeningCancelled,
    OpeningCompleted,
    OpeningPrepared,
    OpeningRefused,
    OpeningStarted,
)
from services.vending.domain.events.payments import (
    PaymentConfirmed,
    PaymentRefused,
    PaymentSold,
    ReservationCancelled,
    ReservationTimedOut,
    SaleReserved,
)
from services.vending.domain.events.prices import PolicyPublished, PolicyScheduled
from services.vending.domain.events.refunds import (
    CreditRefunded,
    CreditTransferred,
    RefundHeld,
    RefundRefused,
    TransferArrived,
    TransferReturned,
)
from services.vending.domain.events.sites import GatewayRegistered
from services.vending.domain.tables import (
    ACCOUNT_KEY,
    APPROVAL,
    BUS_ADDRESS,
    CHECKPOINTS_KEPT,
    GATEWAY_ADDRESS,
    HOLD,
    METER_KEY,
    OPENING,
    OPENING_PREPARED,
    PAYMENT,
    SERIAL,
    TRANSFER,
    Ask,
    BatchRow,
    Charged,
    Checkpoint,
    ClosingRow,
    ClosingsOpen,
    Document,
    Link,
    Offset,
    Root,
    Todo,
    Undecided,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS unique_name(
  kind text NOT NULL, name text NOT NULL, owner text NOT NULL, PRIMARY KEY(kind, name)
);
CREATE TABLE IF NOT EXISTS todo(
  kind text NOT NULL CHECK(kind IN ('join', 'leave')),
  account_id text NOT NULL,
  meter_id text NOT NULL,
  epoch bigint NOT NULL,
  register_milli bigint NOT NULL,
  position bigint NOT NULL,
  PRIMARY KEY(meter_id, epoch, kind)
);
CREATE TABLE IF NOT EXISTS waiting(
  kind text NOT NULL CHECK(kind IN ('approval', 'payment')),
  id text NOT NULL,
  legal_entity text NOT NULL,
  is_decided bigint NOT NULL CHECK(is_decided IN (0, 1)),
  expires_at_ms bigint NOT NULL,
  position bigint NOT NULL,
  PRIMARY KEY(kind, id)
);
CREATE INDEX IF NOT EXISTS waiting_until ON waiting(kind, is_decided, expires_at_ms);
CREATE TABLE IF NOT EXISTS batch(
  batch_id text PRIMARY KEY,
  kind text NOT NULL,
  legal_entity text NOT NULL,
  status text NOT NULL,
  round_is_open bigint NOT NULL CHECK(round_is_open IN (0, 1)),
  changed_at_ms bigint NOT NULL,
  position bigint NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS batch_position ON batch(position);
CREATE INDEX IF NOT EXISTS batch_changed ON batch(changed_at_ms);
CREATE INDEX IF NOT EXISTS batch_open ON batch(position)
  WHERE status = 'running' OR round_is_open = 1;
CREATE INDEX IF NOT EXISTS batch_paused ON batch(position) WHERE status = 'paused';
CREATE TABLE IF NOT EXISTS draft(
  document_id text PRIMARY KEY, position bigint NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS scheduled(
  policy_id text NOT NULL,
  version bigint NOT NULL,
  effective_at_ms bigint NOT NULL,
  PRIMARY KEY(policy_id, version)
);
CREATE INDEX IF NOT EXISTS scheduled_at ON scheduled(effective_at_ms);
CREATE TABLE IF NOT EXISTS closing(
  closing_id text PRIMARY KEY,
  account_id text NOT NULL,
  legal_entity text NOT NULL,
  position bigint NOT NULL,
  is_open bigint NOT NULL CHECK(is_open IN (0, 1)),
  began_at_ms bigint NOT NULL,
  deadline_ms bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS closing_of ON closing(account_id, position);
CREATE INDEX IF NOT EXISTS closing_open ON closing(is_open, position);
CREATE TABLE IF NOT EXISTS pending(
  id text PRIMARY KEY,
  kind text NOT NULL,
  due_ms bigint NOT NULL,
  position bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS pending_due ON pending(kind, due_ms);
CREATE TABLE IF NOT EXISTS document(
  receipt_id text PRIMARY KEY,
  legal_entity text NOT NULL,
  number bigint NOT NULL,
  stream text NOT NULL,
  revision bigint NOT NULL,
  position bigint NOT NULL,
  UNIQUE(legal_entity, number)
);
CREATE TABLE IF NOT EXISTS series(
  legal_entity text PRIMARY KEY, last_number bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS numbered(
  one bigint PRIMARY KEY CHECK(one = 1), position bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS charged(
  meter_key bigint PRIMARY KEY,
  epoch bigint NOT NULL,
  sequence bigint NOT NULL,
  register_milli bigint NOT NULL,
  to_time_ms bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS consumer_offset(
  topic text NOT NULL,
  partition bigint NOT NULL,
  next_offset bigint NOT NULL,
  PRIMARY KEY(topic, partition)
);
CREATE TABLE IF NOT EXISTS usage_ask(
  account_id text PRIMARY KEY,
  asked_at_ms bigint NOT NULL,
  waits_for text,
  is_last bigint NOT NULL CHECK(is_last IN (0, 1))
);
CREATE INDEX IF NOT EXISTS usage_ask_at ON usage_ask(asked_at_ms);
CREATE INDEX IF NOT EXISTS usage_ask_waiting ON usage_ask(asked_at_ms) WHERE waits_for IS NOT NULL;
CREATE TABLE IF NOT EXISTS book(
  one bigint PRIMARY KEY CHECK(one = 1), book_epoch bigint NOT NULL CHECK(book_epoch >= 1)
);
INSERT INTO book(one, book_epoch) VALUES(1, 1) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS raised(
  book_epoch bigint PRIMARY KEY, position bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS root(
  position bigint PRIMARY KEY, count bigint NOT NULL, root bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS checkpoint(
  position bigint PRIMARY KEY,
  book_epoch bigint NOT NULL,
  count bigint NOT NULL,
  root bytea NOT NULL,
  written_at_ms bigint NOT NULL,
  key_id text NOT NULL,
  signature bytea NOT NULL
);
INSERT INTO checkpoint
  SELECT position, (SELECT book_epoch FROM book), count, root, 0, '', CAST('' AS bytea)
  FROM root WHERE true ON CONFLICT DO NOTHING;
DELETE FROM root;
CREATE TABLE IF NOT EXISTS link(
  position bigint PRIMARY KEY,
  stream text NOT NULL,
  revision bigint NOT NULL,
  event_id bytea NOT NULL,
  type text NOT NULL,
  hash bytea NOT NULL
);
"""
"""Idempotent; PostgreSQL takes it as it is, SQLite as `sqlite_file.in_sqlite` says it."""
DERIVED = (
    "unique_name",
    "todo",
    "waiting",
    "pending",
    "draft",
    "scheduled",
    "batch",
    "closing",
    "document",
    "series",
    "numbered",
)
"""The tables that are of events alone: `changes` makes them, the last three the relay counts."""

_CLOSING = "closing_id, account_id, legal_entity, position, is_open, began_at_ms, deadline_ms"
NEVER_MS = 2**62
_LINK = "position, stream, revision, event_id, type, hash"
_DROP_CHECKPOINTS = """
DELETE FROM checkpoint WHERE position IN (
  SELECT old.position FROM (
    SELECT position, written_at_ms FROM checkpoint ORDER BY position DESC LIMIT 20 OFFSET $1
  ) AS old WHERE EXISTS (
    SELECT 1 FROM checkpoint AS later WHERE later.position > old.position
      AND later.written_at_ms / 86400000 = old.written_at_ms / 86400000))
"""
"""Only those that just came to be old are looked at."""
FREE = "DELETE FROM unique_name WHERE kind = $1 AND name = $2"
CLAIM = "INSERT INTO unique_name(kind, name, owner) VALUES($1, $2, $3) ON CONFLICT DO NOTHING"
OWNER = "SELECT owner FROM unique_name WHERE kind = $1 AND name = $2"


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


Projection = Callable[[StoredEvent], Iterable[Change]]
"""What an event changes beside the events. What it claims may refuse the append."""


class Database(Protocol):
    """Where the tables are."""

    async def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Return the rows of a short query on what is committed."""
        ...

    def run(self, statements: Sequence[Statement]) -> Awaitable[None]:
        """Run statements in one transaction; done when it is durable."""
        ...


_PROJECTED = {
    kind.SUBJECT
    for kind in (
        GatewayRegistered,
        MeterRegistered,
        AccountOpened,
        MeterAssigned,
        MeterReplaced,
        AccountMeterJoined,
        AccountMeterLeft,
        DocumentDrafted,
        PolicyScheduled,
        PolicyPublished,
        AccountClosing,
        MetersClosing,
        AccountClosed,
        AccountCloseRefused,
        MetersClosed,
        ClosingUndone,
        OpeningPrepared,
        OpeningStarted,
        OpeningCompleted,
        OpeningRefused,
        OpeningCancelled,
        RefundHeld,
        CreditRefunded,
        RefundRefused,
        CreditTransferred,
        TransferArrived,
        TransferReturned,
        CommandProposed,
        ProposalApproved,
        ProposalDeclined,
        ProposalExpired,
        ProposalExecuted,
        ProposalFailed,
        SaleReserved,
        PaymentConfirmed,
        PaymentSold,
        PaymentRefused,
        ReservationCancelled,
        ReservationTimedOut,
        BatchCreated,
        BatchSubmitted,
        BatchPaused,
        BatchResumed,
        BatchCancelled,
        BatchRoundBegun,
        BatchRoundEnded,
        BatchFinished,
    )
}


def event_of(stored: StoredEvent) -> Event:
    """Return what a stored event says."""
    meta = chain.read_meta(stored.meta)
    return event_from(stored.type, codec.decode(meta.schema, stored.data), meta.origin)


def changes(stored: StoredEvent) -> Iterable[Change]:
    """Return what an event changes in the tables, in order: of most types nothing.

    Whoever stores the event makes the changes in the same transaction.
    """
    return _changes(event_of(stored), stored.position) if stored.type in _PROJECTED else ()


def nothing(_: StoredEvent) -> Iterable[Change]:
    """Change nothing: the Projection of a store without tables."""
    return ()


class SqlTables:
    """The tables in a database that has SCHEMA."""

    def __init__(self, database: Database) -> None:
        """Use `database`."""
        self._database = database

    async def todos(self, meter_id: str | None = None) -> list[Todo]:
        """Return what is half done, oldest first: of one meter, or of all."""
        rows = await self._database.rows(
            "SELECT kind, account_id, meter_id, epoch, register_milli, position FROM todo "
            "WHERE CAST($1 AS text) IS NULL OR meter_id = $1 ORDER BY position, kind DESC",
            meter_id,
        )
        return [Todo(*row) for row in rows]

    async def decided(self, kind: str) -> list[str]:
        """Return the ids of what is decided and not carried out, oldest first."""
        rows = await self._database.rows(
            "SELECT id FROM waiting WHERE kind = $1 AND is_decided = 1 ORDER BY position", kind
        )
        return [row[0] for row in rows]

    async def overdue(self, kind: str, now_ms: int) -> list[str]:
        """Return the ids of what was not decided in time."""
        rows = await self._database.rows(
            "SELECT id FROM waiting WHERE kind = $1 AND is_decided = 0 AND expires_at_ms <= $2",
            kind,
            now_ms,
        )
        return [row[0] for row in rows]

    async def waiting(
        self, kind: str, legal_entity: str, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of what waits to be decided, oldest first."""
        rows = await self._database.rows(
            "SELECT position, id FROM waiting WHERE kind = $1 AND is_decided = 0 "
            "AND $2 IN ('', legal_entity) AND position > $3 ORDER BY position LIMIT $4",
            kind,
            legal_entity,
            after,
            limit,
        )
        return [(position, id_) for position, id_ in rows]

    async def open_batches(self, since_ms: int) -> list[str]:
        """Return the ids of batches that run, have an open round, or changed after an instant."""
        rows = await self._database.rows(
            "SELECT batch_id, position FROM batch WHERE status = 'running' OR round_is_open = 1 "
            "UNION SELECT batch_id, position FROM batch WHERE changed_at_ms > $1 "
            "ORDER BY position",
            since_ms,
        )
        return [batch_id for batch_id, _ in rows]

    async def paused_batches(self) -> list[str]:
        """Return the ids of batches that are paused, the oldest first."""
        rows = await self._database.rows(
            "SELECT batch_id FROM batch WHERE status = 'paused' ORDER BY position"
        )
        return [row[0] for row in rows]

    async def batches(self, after: int, limit: int) -> list[BatchRow]:
        """Return at most `limit` batches above a position, the oldest first."""
        rows = await self._database.rows(
            "SELECT position, batch_id, kind, legal_entity, status, round_is_open FROM batch "
            "WHERE position > $1 ORDER BY position LIMIT $2",
            after,
            limit,
        )
        return [
            BatchRow(position, batch_id, kind, legal_entity, status, bool(is_open))
            for position, batch_id, kind, legal_entity, status, is_open in rows
        ]

    async def documents(self, after: int, limit: int) -> list[tuple[int, str]]:
        """Return (position, id) of documents, oldest first: at most `limit` above a position."""
        rows = await self._database.rows(
            "SELECT position, document_id FROM draft WHERE position > $1 "
            "ORDER BY position LIMIT $2",
            after,
            limit,
        )
        return [(position, id_) for position, id_ in rows]

    async def scheduled_until(self, now_ms: int) -> list[tuple[str, int]]:
        """Return (policy, version) of those whose instant has come and that do not apply yet."""
        rows = await self._database.rows(
            "SELECT policy_id, version FROM scheduled WHERE effective_at_ms <= $1 "
            "ORDER BY effective_at_ms, policy_id",
            now_ms,
        )
        return [(policy_id, int(version)) for policy_id, version in rows]

    async def undecided(self) -> Undecided:
        """Return what waits for a person, or for its instant."""
        rows = await self._database.rows(
            "SELECT (SELECT count(*) FROM waiting WHERE kind = $1 AND is_decided = 0), "
            "(SELECT count(*) FROM scheduled), "
            "(SELECT coalesce(min(effective_at_ms), 0) FROM scheduled)",
            APPROVAL,
        )
        return Undecided(*map(int, rows[0]))

    async def pending(self, kind: str, due_by_ms: int) -> list[str]:
        """Return the ids of what is pending and due by an instant, oldest first."""
        rows = await self._database.rows(
            "SELECT id FROM pending WHERE kind = $1 AND due_ms <= $2 ORDER BY position",
            kind,
            due_by_ms,
        )
        return [row[0] for row in rows]

    async def pending_page(
        self, kinds: tuple[str, str], after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of what is pending, oldest first: at most `limit` above one."""
        rows = await self._database.rows(
            "SELECT position, id FROM pending WHERE kind IN ($1, $2) AND position > $3 "
            "ORDER BY position LIMIT $4",
            *kinds,
            after,
            limit,
        )
        return [(position, id_) for position, id_ in rows]

    async def numbered_until(self) -> int:
        """Return the position up to which receipts have their numbers."""
        rows = await self._database.rows("SELECT position FROM numbered")
        return int(rows[0][0]) if rows else FROM_START

    async def last_numbers(self) -> dict[str, int]:
        """Return legal entity → the last number of its series."""
        return dict(await self._database.rows("SELECT legal_entity, last_number FROM series"))

    async def keep_documents(self, documents: Sequence[Document], until: int) -> None:
        """Keep numbers, and that all up to a position have theirs, in one transaction."""
        keep = Statement(
            "INSERT INTO document(receipt_id, legal_entity, number, stream, revision, position) "
            "VALUES($1, $2, $3, $4, $5, $6)",
            [
                (d.receipt_id, d.legal_entity, d.number, d.stream, d.revision, d.position)
                for d in documents
            ],
        )
        last = {document.legal_entity: document.number for document in documents}
        count = Statement(
            "INSERT INTO series(legal_entity, last_number) VALUES($1, $2) "
            "ON CONFLICT(legal_entity) DO UPDATE SET last_number = excluded.last_number",
            list(last.items()),
        )
        move = Statement(
            "INSERT INTO numbered(one, position) VALUES(1, $1) "
            "ON CONFLICT(one) DO UPDATE SET position = excluded.position",
            [(until,)],
        )
        await self._database.run([keep, count, move])

    async def document(self, receipt_id: str) -> Document | None:
        """Return the number of a receipt, where it has one."""
        rows = await self._database.rows(
            "SELECT receipt_id, legal_entity, number, stream, revision, position FROM document "
            "WHERE receipt_id = $1",
            receipt_id,
        )
        return Document(*rows[0]) if rows else None

    async def charged_register_milli(self, meter_key: int, epoch: int) -> int | None:
        """Return the last register charged in a meter's epoch; None where none is known."""
        rows = await self._database.rows(
            "SELECT register_milli FROM charged WHERE meter_key = $1 AND epoch = $2",
            meter_key,
            epoch,
        )
        return rows[0][0] if rows else None

    async def charged(self, meter_key: int, epoch: int) -> Charged | None:
        """Return the newest charge of a meter's epoch; None where none is known."""
        rows = await self._database.rows(
            "SELECT meter_key, epoch, sequence, register_milli, to_time_ms FROM charged "
            "WHERE meter_key = $1 AND epoch = $2",
            meter_key,
            epoch,
        )
        return Charged(*rows[0]) if rows else None

    async def closing(self, closing_id: str) -> ClosingRow | None:
        """Return a closing, where there is one."""
        rows = await self._database.rows(
            f"SELECT {_CLOSING} FROM closing WHERE closing_id = $1",  # noqa: S608 - constants
            closing_id,
        )
        return _closing(rows[0]) if rows else None

    async def closings(
        self, account_id: str, is_open: bool | None, after: int, limit: int
    ) -> list[ClosingRow]:
        """Return at most `limit` closings that began above a position, oldest first."""
        rows = await self._database.rows(
            f"SELECT {_CLOSING} FROM closing WHERE $1 IN ('', account_id) "  # noqa: S608 - constants
            "AND is_open IN ($2, $3) AND position > $4 ORDER BY position LIMIT $5",
            account_id,
            0 if is_open is None else int(is_open),
            1 if is_open is None else int(is_open),
            after,
            limit,
        )
        return [_closing(row) for row in rows]

    async def closings_open(self, now_ms: int) -> ClosingsOpen:
        """Return what is under way."""
        rows = await self._database.rows(
            "SELECT count(*), coalesce(sum(CASE WHEN deadline_ms <= $1 THEN 1 ELSE 0 END), 0), "
            "coalesce(min(began_at_ms), 0) FROM closing WHERE is_open = 1",
            now_ms,
        )
        return ClosingsOpen(*map(int, rows[0]))

    async def keep_charged(self, charged: Iterable[Charged], offsets: Iterable[Offset]) -> None:
        """Keep what was charged and how far the topic was read, in one transaction."""
        charges = Statement(
            "INSERT INTO charged(meter_key, epoch, sequence, register_milli, to_time_ms) "
            "VALUES($1, $2, $3, $4, $5) ON CONFLICT(meter_key) DO UPDATE SET "
            "epoch = excluded.epoch, sequence = excluded.sequence, "
            "register_milli = excluded.register_milli, to_time_ms = excluded.to_time_ms "
            "WHERE (excluded.epoch, excluded.sequence) > (charged.epoch, charged.sequence)",
            [(c.meter_key, c.epoch, c.sequence, c.register_milli, c.to_time_ms) for c in charged],
        )
        positions = Statement(
            "INSERT INTO consumer_offset(topic, partition, next_offset) VALUES($1, $2, $3) "
            "ON CONFLICT(topic, partition) DO UPDATE SET next_offset = excluded.next_offset",
            [(o.topic, o.partition, o.next_offset) for o in offsets],
        )
        await self._database.run([charges, positions])

    async def offsets(self, topic: str) -> dict[int, int]:
        """Return partition → next offset of what was read of a topic."""
        rows = await self._database.rows(
            "SELECT partition, next_offset FROM consumer_offset WHERE topic = $1", topic
        )
        return dict(rows)

    async def asks(self, after: Ask | None, limit: int) -> list[Ask]:
        """Return what was asked about the next accounts behind one, in the order of their keys."""
        rows = await self._database.rows(
            "SELECT owner, name, coalesce(asked_at_ms, 0), waits_for, coalesce(is_last, 0) "
            "FROM unique_name LEFT JOIN usage_ask ON account_id = owner "
            "WHERE kind = $1 AND name > $2 ORDER BY name LIMIT $3",
            ACCOUNT_KEY,
            str(after.account_key) if after else "",
            limit,
        )
        return [Ask(owner, int(key), at, waits, bool(last)) for owner, key, at, waits, last in rows]

    async def asked_last(self, since_ms: int) -> list[str]:
        """Return the accounts of the newest ask; none where that was before an instant."""
        rows = await self._database.rows(
            "SELECT account_id FROM usage_ask WHERE asked_at_ms >= $1 "
            "AND asked_at_ms = (SELECT max(asked_at_ms) FROM usage_ask)",
            since_ms,
        )
        return [row[0] for row in rows]

    async def asks_waiting(self, since_ms: int) -> int:
        """Return how many asks since an instant are not answered yet."""
        rows = await self._database.rows(
            "SELECT count(*) FROM usage_ask WHERE waits_for IS NOT NULL AND asked_at_ms >= $1",
            since_ms,
        )
        return int(rows[0][0])

    async def keep_asks(self, asks: Iterable[Ask]) -> None:
        """Keep what was asked."""
        keep = Statement(
            "INSERT INTO usage_ask(account_id, asked_at_ms, waits_for, is_last) "
            "VALUES($1, $2, $3, $4) ON CONFLICT(account_id) DO UPDATE SET "
            "asked_at_ms = excluded.asked_at_ms, waits_for = excluded.waits_for, "
            "is_last = excluded.is_last",
            [(a.account_id, a.asked_at_ms, a.waits_for, int(a.is_last)) for a in asks],
        )
        await self._database.run([keep])

    async def keep_answer(self, account_id: str, ask_id: str, *, is_last: bool) -> None:
        """Let an ask wait no more."""
        keep = Statement(
            "UPDATE usage_ask SET waits_for = NULL, is_last = $3 "
            "WHERE account_id = $1 AND waits_for = $2",
            [(account_id, ask_id, int(is_last))],
        )
        await self._database.run([keep])

    async def book_epoch(self) -> int:
        """Return the epoch of the book."""
        return int((await self._database.rows("SELECT book_epoch FROM book"))[0][0])

    async def raise_book_epoch(self, book_epoch: int, position: int) -> None:
        """Raise the epoch of the book; it begins after `position`."""
        raise_it = Statement(
            "UPDATE book SET book_epoch = $1 WHERE book_epoch < $1", [(book_epoch,)]
        )
        note = Statement(
            "INSERT INTO raised(book_epoch, position) VALUES($1, $2) ON CONFLICT DO NOTHING",
            [(book_epoch, position)],
        )
        lost = [
            Statement(f"DELETE FROM {table} WHERE position > $1", [(position,)])  # noqa: S608 - constants
            for table in ("link", "checkpoint", "document")
        ]
        count_on = [
            Statement("DELETE FROM series", [()]),
            Statement(
                "INSERT INTO series(legal_entity, last_number) "
                "SELECT legal_entity, max(number) FROM document GROUP BY legal_entity",
                [()],
            ),
            Statement("UPDATE numbered SET position = $1 WHERE position > $1", [(position,)]),
        ]
        await self._database.run([raise_it, note, *lost, *count_on])

    async def raised_at(self) -> int:
        """Return the position of the last event before the present book epoch; 0 in the first."""
        rows = await self._database.rows("SELECT coalesce(max(position), 0) FROM raised")
        return int(rows[0][0])

    async def root_at(self, position: int) -> Root | None:
        """Return the kept root at a position, where there is one."""
        rows = await self._database.rows(
            "SELECT position, count, root FROM checkpoint WHERE position = $1", position
        )
        return Root(*rows[0]) if rows else None

    async def checkpoints(self) -> list[Checkpoint]:
        """Return the kept checkpoints in the order of positions."""
        rows = await self._database.rows(
            "SELECT book_epoch, position, count, root, written_at_ms, key_id, signature "
            "FROM checkpoint ORDER BY position"
        )
        return [
            Checkpoint(epoch, Root(position, count, root), *signed)
            for epoch, position, count, root, *signed in rows
        ]

    async def keep_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep a checkpoint, and drop old ones that are not the last of their day."""
        root = checkpoint.root
        keep = Statement(
            "INSERT INTO checkpoint"
            "(book_epoch, position, count, root, written_at_ms, key_id, signature) "
            "VALUES($1, $2, $3, $4, $5, $6, $7) ON CONFLICT(position) DO UPDATE SET "
            "book_epoch = excluded.book_epoch, count = excluded.count, root = excluded.root, "
            "written_at_ms = excluded.written_at_ms, key_id = excluded.key_id, "
            "signature = excluded.signature",
            [
                (
                    checkpoint.book_epoch,
                    root.position,
                    root.count,
                    root.root,
                    checkpoint.written_at_ms,
                    checkpoint.key_id,
                    checkpoint.signature,
                )
            ],
        )
        drop = Statement(_DROP_CHECKPOINTS, [(CHECKPOINTS_KEPT,)])
        await self._database.run([keep, drop])

    async def linked_until(self) -> int:
        """Return the position of the last link; FROM_START where there is none."""
        rows = await self._database.rows("SELECT coalesce(max(position), 0) FROM link")
        return int(rows[0][0])

    async def links(self, after: int, limit: int) -> list[Link]:
        """Return at most `limit` links above a position, in the order of positions."""
        rows = await self._database.rows(
            f"SELECT {_LINK} FROM link WHERE position > $1 ORDER BY position LIMIT $2",  # noqa: S608 - constants
            after,
            limit,
        )
        return [_link(row) for row in rows]

    async def link_of(self, event_id: UUID) -> Link | None:
        """Return where an event was told. Slow: it looks through all of them."""
        rows = await self._database.rows(
            f"SELECT {_LINK} FROM link WHERE event_id = $1",  # noqa: S608 - constants
            event_id.bytes,
        )
        return _link(rows[0]) if rows else None

    async def keep_links(self, links: Iterable[Link]) -> None:
        """Keep links; one that is kept already stays as it is."""
        keep = Statement(
            f"INSERT INTO link({_LINK}) VALUES($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            [(k.position, k.stream, k.revision, k.id.bytes, k.type, k.hash) for k in links],
        )
        await self._database.run([keep])


def _link(row: Sequence[Any]) -> Link:
    position, stream, revision, event_id, type_, hash_ = row
    return Link(position, StreamId(stream), revision, UUID(bytes=event_id), type_, hash_)


def _closing(row: Sequence[Any]) -> ClosingRow:
    closing_id, account_id, legal_entity, position, is_open, began_at_ms, deadline_ms = row
    return ClosingRow(
        closing_id, account_id, legal_entity, position, bool(is_open), began_at_ms, deadline_ms
    )


def _changes(event: Event, position: int) -> Iterator[Change]:
    match event:
        case GatewayRegistered():
            yield Claim(GATEWAY_ADDRESS, event.address, event.gateway_id)
        case MeterRegistered():
            house = house_account_id(event.meter_id)
            yield Claim(SERIAL, event.serial, event.meter_id)
            yield Claim(METER_KEY, str(event.meter_key), event.meter_id)
            yield Claim(ACCOUNT_KEY, str(column_key("account", house)), house)
            if event.unit:
                yield Claim(BUS_ADDRESS, f"{event.line_id}/{event.unit}", event.meter_id)
        case MeterReplaced():
            yield from _pass_on(SERIAL, event.previous_serial, event.serial, event.meter_id)
            before, now = (f"{event.line_id}/{u}" for u in (event.previous_unit, event.unit))
            yield from _pass_on(BUS_ADDRESS, before, now, event.meter_id)
        case AccountOpened():
            yield Claim(ACCOUNT_KEY, str(event.account_key), event.account_id)
        case MeterAssigned():
            yield _plan(event, position)
        case AccountMeterJoined() | AccountMeterLeft():
            yield _told(event)
        case DocumentDrafted() | PolicyScheduled() | PolicyPublished():
            yield from _on_paper(event, position)
        case _ if event.SUBJECT in _PENDING_AFTER:
            yield _pending(event, position)
        case _:
            is_of_batch = event.SUBJECT in _STATUS_AFTER
            yield _batch(event, position) if is_of_batch else _waiting(event, position)


def _told(event: AccountMeterJoined | AccountMeterLeft) -> Statement:
    """Let no account hear twice of an assignment; who has left hears no more that it had come."""
    joined = " AND kind = 'join'" if isinstance(event, AccountMeterJoined) else ""
    return Statement(
        f"DELETE FROM todo WHERE meter_id = $1 AND epoch = $2{joined}",  # noqa: S608 - constants
        [(event.meter_id, event.epoch)],
    )


_PENDING_AFTER: dict[str, str | None] = {
    OpeningPrepared.SUBJECT: OPENING_PREPARED,
    OpeningStarted.SUBJECT: OPENING,
    OpeningCompleted.SUBJECT: None,
    OpeningRefused.SUBJECT: None,
    OpeningCancelled.SUBJECT: None,
    RefundHeld.SUBJECT: HOLD,
    CreditRefunded.SUBJECT: None,
    RefundRefused.SUBJECT: None,
    CreditTransferred.SUBJECT: TRANSFER,
    TransferArrived.SUBJECT: None,
    TransferReturned.SUBJECT: None,
}
"""What of an account, or of its opening, is pending after an event: one thing; None: nothing."""
_OPENING = "opening-"


def _pending(event: Event, position: int) -> Statement:
    """Keep what is pending. A hold of an earlier release has no deadline."""
    id_: str = event.account_id  # type: ignore[attr-defined] # each of these has it
    if event.SUBJECT.startswith(_OPENING):
        id_ = f"{_OPENING}{id_}"
    kind = _PENDING_AFTER[event.SUBJECT]
    if kind is None:
        return Statement("DELETE FROM pending WHERE id = $1", [(id_,)])
    due_ms = event.deadline_ms if isinstance(event, RefundHeld) else 0
    return Statement(
        "INSERT INTO pending(id, kind, due_ms, position) VALUES($1, $2, $3, $4) "
        "ON CONFLICT(id) DO UPDATE SET kind = $2, due_ms = $3",
        [(id_, kind, NEVER_MS if due_ms is None else due_ms, position)],
    )


_STATUS_AFTER = {
    BatchCreated.SUBJECT: "draft",
    BatchSubmitted.SUBJECT: "running",
    BatchPaused.SUBJECT: "paused",
    BatchResumed.SUBJECT: "running",
    BatchCancelled.SUBJECT: "cancelled",
    BatchFinished.SUBJECT: "finished",
    BatchRoundBegun.SUBJECT: None,
    BatchRoundEnded.SUBJECT: None,
}
"""Where a batch is after an event; None: where it was."""


def _batch(event: Event, position: int) -> Statement:
    """Keep where a batch is."""
    if isinstance(event, BatchCreated):
        row = (event.batch_id, event.kind, event.legal_entity, event.occurred_at_ms, position)
        return Statement(
            "INSERT INTO batch"
            "(batch_id, kind, legal_entity, status, round_is_open, changed_at_ms, position) "
            "VALUES($1, $2, $3, 'draft', 0, $4, $5)",
            [row],
        )
    batch_id: str = event.batch_id  # type: ignore[attr-defined] # every event of a batch has it
    status = _STATUS_AFTER[event.SUBJECT]
    if status is not None:
        return Statement(
            "UPDATE batch SET status = $2, changed_at_ms = $3 WHERE batch_id = $1",
            [(batch_id, status, event.occurred_at_ms)],
        )
    is_open = int(isinstance(event, BatchRoundBegun))
    return Statement(
        "UPDATE batch SET round_is_open = $2, changed_at_ms = $3 WHERE batch_id = $1",
        [(batch_id, is_open, event.occurred_at_ms)],
    )


def _on_paper(
    event: DocumentDrafted | PolicyScheduled | PolicyPublished, position: int
) -> Iterator[Change]:
    """Keep documents, and which versions of a policy are to follow the one in force."""
    if isinstance(event, DocumentDrafted):
        yield Statement(
            "INSERT INTO draft(document_id, position) VALUES($1, $2)",
            [(event.document_id, position)],
        )
        return
    if isinstance(event, PolicyPublished):
        yield Statement(
            "DELETE FROM scheduled WHERE policy_id = $1 AND version <= $2",
            [(event.policy_id, event.version)],
        )
        return
    yield Statement(
        "DELETE FROM scheduled WHERE policy_id = $1 AND effective_at_ms >= $2",
        [(event.policy_id, event.effective_at_ms)],
    )
    yield Statement(
        "INSERT INTO scheduled(policy_id, version, effective_at_ms) VALUES($1, $2, $3)",
        [(event.policy_id, event.version, event.effective_at_ms)],
    )


def _begun(event: AccountClosing | MetersClosing, position: int) -> Statement:
    """Keep a closing that begins; of those that an earlier release began nothing was kept."""
    said = (event.closing_id, event.account_id, event.legal_entity, position, 1)
    row = (*said, event.occurred_at_ms, event.deadline_ms)
    return Statement(
        f"INSERT INTO closing({_CLOSING}) VALUES($1, $2, $3, $4, $5, $6, $7)",
        [] if event.deadline_ms is None else [row],
    )


def _waiting(event: Event, position: int) -> Statement:
    """Keep what waits to be decided, or is decided and not carried out."""
    match event:
        case AccountClosing() | MetersClosing():
            return _begun(event, position)
        case AccountClosed() | AccountCloseRefused() | MetersClosed() | ClosingUndone():
            over = "UPDATE closing SET is_open = 0 WHERE account_id = $1 AND is_open = 1"
            return Statement(over, [(event.account_id,)])
        case CommandProposed():
            row = (APPROVAL, event.approval_id, event.legal_entity, 0, event.expires_at_ms)
        case SaleReserved():
            row = (PAYMENT, event.payment_id, event.legal_entity, 0, event.expires_at_ms)
        case ProposalApproved():
            row = (APPROVAL, event.approval_id, "", 1, 0)
        case PaymentConfirmed():  # perhaps it had timed out, and waited no more
            row = (PAYMENT, event.payment_id, "", 1, 0)
        case ProposalDeclined() | ProposalExpired() | ProposalExecuted() | ProposalFailed():
            return _ended(APPROVAL, event.approval_id)
        case PaymentSold() | PaymentRefused() | ReservationCancelled() | ReservationTimedOut():
            return _ended(PAYMENT, event.payment_id)
        case _:
            raise Bug(f"{event.SUBJECT} changes no table")
    return Statement(
        "INSERT INTO waiting(kind, id, legal_entity, is_decided, expires_at_ms, position) "
        "VALUES($1, $2, $3, $4, $5, $6) ON CONFLICT(kind, id) DO UPDATE SET is_decided = 1",
        [(*row, position)],
    )


def _ended(kind: str, id_: str) -> Statement:
    return Statement("DELETE FROM waiting WHERE kind = $1 AND id = $2", [(kind, id_)])


def _pass_on(kind: str, before: str, now: str, owner: str) -> Iterator[Change]:
    """Let an owner have another name; the one before is free."""
    if now != before:
        yield Claim(kind, now, owner)
        yield Statement(FREE, [(kind, before)])


def _plan(event: MeterAssigned, position: int) -> Statement:
    """Note what accounts have still to hear of an assignment."""
    house = house_account_id(event.meter_id)
    sides = (
        ("leave", event.previous_account_id, event.epoch - 1),
        ("join", event.account_id, event.epoch),
    )
    return Statement(
        "INSERT INTO todo(kind, account_id, meter_id, epoch, register_milli, position) "
        "VALUES($1, $2, $3, $4, $5, $6)",
        [
            (kind, account_id, event.meter_id, epoch, event.register_milli, position)
            for kind, account_id, epoch in sides
            if account_id != house
        ],
    )
