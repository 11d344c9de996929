"""`paper`: documents, by what a list of them asks for, so that it reads no stream to find them.

A row says what became of a document as far as that is written; what the clock alone changes stands
in it as instants: until when others may approve it, from when on its version applies, and when a
later one takes its place. `_STATE` makes of these what `domain.document.life_of` makes of streams;
`tests/property/test_document_laws.py` holds them together.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from services.common.kernel import filters
from services.vending.adapters.database import NEVER_MS, Statement
from services.vending.adapters.tables.table import Changes, Make, Table
from services.vending.domain.document import Kind, State
from services.vending.domain.events.approvals import (
    CommandProposed,
    ProposalApproved,
    ProposalDeclined,
    ProposalExpired,
    ProposalFailed,
)
from services.vending.domain.events.documents import DocumentDrafted, DocumentWithdrawn
from services.vending.domain.events.prices import PolicyPublished, PolicyScheduled, TariffPublished

SCHEMA = f"""
DROP TABLE IF EXISTS draft;
CREATE TABLE IF NOT EXISTS paper(
  document_id text PRIMARY KEY,
  position bigint NOT NULL UNIQUE,
  kind text NOT NULL,
  target_id text NOT NULL,
  legal_entity text NOT NULL,
  state text NOT NULL DEFAULT '{State.DRAFT}',
  approval_id text NOT NULL DEFAULT '',
  expires_at_ms bigint NOT NULL DEFAULT {NEVER_MS},
  version bigint NOT NULL DEFAULT 0,
  begins_at_ms bigint NOT NULL DEFAULT {NEVER_MS},
  applies_from_ms bigint NOT NULL DEFAULT {NEVER_MS},
  superseded_at_ms bigint NOT NULL DEFAULT {NEVER_MS}
);
CREATE INDEX IF NOT EXISTS paper_of ON paper(kind, target_id);
CREATE INDEX IF NOT EXISTS paper_asked ON paper(approval_id);
"""
"""`draft` is of an earlier release.

`state`: what was written; of one that became a `version`, only that it was withdrawn.
`begins_at_ms`: when that is to apply, `applies_from_ms`: when it does; of a policy's not before it
was brought into force.
"""
_STATE = f"""CASE
  WHEN state = '{State.WITHDRAWN}' THEN state
  WHEN version > 0 AND superseded_at_ms <= $1 THEN '{State.SUPERSEDED}'
  WHEN version > 0 AND applies_from_ms <= $1 THEN '{State.IN_FORCE}'
  WHEN version > 0 THEN '{State.SCHEDULED}'
  WHEN state = '{State.SUBMITTED}' AND expires_at_ms <= $1 THEN '{State.EXPIRED}'
  ELSE state END"""
"""$1: now, in ms."""
_LISTED = f"""SELECT position, document_id FROM (
  SELECT position, document_id, kind, target_id, legal_entity, {_STATE} AS state FROM paper
) AS listed WHERE position > $2 AND """  # noqa: S608 - constants
_COLUMNS = {
    "state": "state",
    "kind": "kind",
    "tariff": f"CASE kind WHEN '{Kind.TARIFF}' THEN target_id ELSE '' END",
    "policy": f"CASE kind WHEN '{Kind.POLICY}' THEN target_id ELSE '' END",
    "legal_entity": "legal_entity",
}
PUBLICATIONS = ("publish-tariff", "publish-policy")
"""The commands of proposals that a document may stand behind."""
_Decided = ProposalApproved | ProposalDeclined | ProposalExpired | ProposalFailed


class Papers(Table):
    """Documents, the oldest first."""

    async def documents(
        self, wanted: filters.Filter, now_ms: int, after: int, limit: int
    ) -> list[tuple[int, str]]:
        """Return (position, id) of documents of which a filter holds now, oldest first."""
        values: list[Any] = [now_ms, after, limit]

        def compared(match: filters.Match) -> str:
            values.append(match.value)
            return f"{_COLUMNS[match.field]} {match.operator} ${len(values)}"

        where = filters.joined(wanted, compared)
        sql = f"{_LISTED}({where}) ORDER BY position LIMIT $3"
        return [(int(at), id_) for at, id_ in await self._database.rows(sql, *values)]


def _drafted(event: DocumentDrafted, position: int) -> Iterator[Statement]:
    yield Statement(
        "INSERT INTO paper(document_id, position, kind, target_id, legal_entity) "
        "VALUES($1, $2, $3, $4, $5)",
        [(event.document_id, position, event.kind, event.target_id, event.legal_entity)],
    )


def _withdrawn(event: DocumentWithdrawn, _: int) -> Iterator[Statement]:
    yield Statement(
        f"UPDATE paper SET state = '{State.WITHDRAWN}' WHERE document_id = $1",  # noqa: S608 - constants
        [(event.document_id,)],
    )


def _submitted(event: CommandProposed, _: int) -> Iterator[Statement]:
    if event.command in PUBLICATIONS and (of := orjson.loads(event.content).get("document_id")):
        yield Statement(
            f"UPDATE paper SET state = '{State.SUBMITTED}', approval_id = $2, expires_at_ms = $3 "  # noqa: S608 - constants
            "WHERE document_id = $1",
            [(of, event.approval_id, event.expires_at_ms)],
        )


def _is_now(state: State) -> Make:
    def make(event: _Decided, _: int) -> Iterator[Statement]:
        decided = "UPDATE paper SET state = $2 WHERE approval_id = $1"
        yield Statement(decided, [(event.approval_id, state.value)])

    return make


def _published(event: TariffPublished, _: int) -> Iterator[Statement]:
    begins_at_ms = event.effective_at_ms or event.occurred_at_ms
    yield Statement(
        "UPDATE paper SET superseded_at_ms = CASE WHEN begins_at_ms >= $3 THEN 0 "  # noqa: S608 - constants
        "WHEN superseded_at_ms > $3 THEN $3 ELSE superseded_at_ms END "
        f"WHERE kind = '{Kind.TARIFF}' AND target_id = $1 AND version > 0 AND version < $2",
        [(event.tariff_id, event.version, begins_at_ms)],
    )
    yield _became(event.document_id, event.version, begins_at_ms, begins_at_ms)


def _scheduled(event: PolicyScheduled, _: int) -> Iterator[Statement]:
    """Let those not begin any more that this one, although later, comes before."""
    at_ms = event.effective_at_ms
    yield Statement(
        f"UPDATE paper SET superseded_at_ms = 0 WHERE kind = '{Kind.POLICY}' AND target_id = $1 "  # noqa: S608 - constants
        f"AND version > 0 AND version < $2 AND begins_at_ms >= $3 AND applies_from_ms = {NEVER_MS}",
        [(event.policy_id, event.version, at_ms)],
    )
    yield _became(event.document_id, event.version, at_ms, NEVER_MS)


def _in_force(event: PolicyPublished, _: int) -> Iterator[Statement]:
    yield Statement(
        f"UPDATE paper SET superseded_at_ms = 0 WHERE kind = '{Kind.POLICY}' AND target_id = $1 "  # noqa: S608 - constants
        "AND version > 0 AND version < $2",
        [(event.policy_id, event.version)],
    )
    yield _became(event.document_id, event.version, event.occurred_at_ms, 0)


def _became(
    document_id: str | None, version: int, begins_at_ms: int, applies_from_ms: int
) -> Statement:
    return Statement(
        "UPDATE paper SET version = $2, begins_at_ms = $3, applies_from_ms = $4 "
        "WHERE document_id = $1",
        [(document_id, version, begins_at_ms, applies_from_ms)] if document_id else [],
    )


CHANGES: Changes = {
    DocumentDrafted: _drafted,
    DocumentWithdrawn: _withdrawn,
    CommandProposed: _submitted,
    ProposalApproved: _is_now(State.APPROVED),
    ProposalDeclined: _is_now(State.DECLINED),
    ProposalExpired: _is_now(State.EXPIRED),
    ProposalFailed: _is_now(State.FAILED),
    TariffPublished: _published,
    PolicyScheduled: _scheduled,
    PolicyPublished: _in_force,
}
