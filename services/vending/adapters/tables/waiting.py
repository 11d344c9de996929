"""`waiting`: proposals and payments that wait to be decided, or to be carried out."""

from collections.abc import Iterator

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.approvals import (
    CommandProposed,
    ProposalApproved,
    ProposalDeclined,
    ProposalExecuted,
    ProposalExpired,
    ProposalFailed,
)
from services.vending.domain.events.payments import (
    PaymentConfirmed,
    PaymentRefused,
    PaymentSold,
    ReservationCancelled,
    ReservationTimedOut,
    SaleReserved,
)
from services.vending.domain.tables import APPROVAL, PAYMENT, Undecided

SCHEMA = """
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
"""

_ProposalEnded = ProposalDeclined | ProposalExpired | ProposalExecuted | ProposalFailed
_PaymentEnded = PaymentSold | PaymentRefused | ReservationCancelled | ReservationTimedOut


class Waiting(Table):
    """What waits to be decided, or is decided and not carried out."""

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

    async def undecided(self) -> Undecided:
        """Return what waits for a person, or for its instant."""
        rows = await self._database.rows(
            "SELECT (SELECT count(*) FROM waiting WHERE kind = $1 AND is_decided = 0), "
            "(SELECT count(*) FROM scheduled), "
            "(SELECT coalesce(min(effective_at_ms), 0) FROM scheduled)",
            APPROVAL,
        )
        return Undecided(*map(int, rows[0]))


def _proposed(event: CommandProposed, position: int) -> Iterator[Statement]:
    row = (APPROVAL, event.approval_id, event.legal_entity, 0, event.expires_at_ms, position)
    yield _waits(row)


def _reserved(event: SaleReserved, position: int) -> Iterator[Statement]:
    yield _waits((PAYMENT, event.payment_id, event.legal_entity, 0, event.expires_at_ms, position))


def _approved(event: ProposalApproved, position: int) -> Iterator[Statement]:
    yield _waits((APPROVAL, event.approval_id, "", 1, 0, position))


def _confirmed(event: PaymentConfirmed, position: int) -> Iterator[Statement]:
    # Perhaps it had timed out, and waited no more.
    yield _waits((PAYMENT, event.payment_id, "", 1, 0, position))


def _waits(row: tuple[str, str, str, int, int, int]) -> Statement:
    return Statement(
        "INSERT INTO waiting(kind, id, legal_entity, is_decided, expires_at_ms, position) "
        "VALUES($1, $2, $3, $4, $5, $6) ON CONFLICT(kind, id) DO UPDATE SET is_decided = 1",
        [row],
    )


def _proposal_ended(event: _ProposalEnded, _: int) -> Iterator[Statement]:
    yield _waits_no_more(APPROVAL, event.approval_id)


def _payment_ended(event: _PaymentEnded, _: int) -> Iterator[Statement]:
    yield _waits_no_more(PAYMENT, event.payment_id)


def _waits_no_more(kind: str, id_: str) -> Statement:
    return Statement("DELETE FROM waiting WHERE kind = $1 AND id = $2", [(kind, id_)])


CHANGES: Changes = {
    CommandProposed: _proposed,
    ProposalApproved: _approved,
    ProposalDeclined: _proposal_ended,
    ProposalExpired: _proposal_ended,
    ProposalExecuted: _proposal_ended,
    ProposalFailed: _proposal_ended,
    SaleReserved: _reserved,
    PaymentConfirmed: _confirmed,
    PaymentSold: _payment_ended,
    PaymentRefused: _payment_ended,
    ReservationCancelled: _payment_ended,
    ReservationTimedOut: _payment_ended,
}
