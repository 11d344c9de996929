"""`scheduled`: which versions of a policy are to follow the one in force."""

from collections.abc import Iterator

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Changes, Table
from services.vending.domain.events.prices import PolicyPublished, PolicyScheduled

SCHEMA = """
CREATE TABLE IF NOT EXISTS scheduled(
  policy_id text NOT NULL,
  version bigint NOT NULL,
  effective_at_ms bigint NOT NULL,
  PRIMARY KEY(policy_id, version)
);
CREATE INDEX IF NOT EXISTS scheduled_at ON scheduled(effective_at_ms);
"""


class Scheduled(Table):
    """Versions that wait for their instant."""

    async def scheduled_until(self, now_ms: int) -> list[tuple[str, int]]:
        """Return (policy, version) of those whose instant has come and that do not apply yet."""
        rows = await self._database.rows(
            "SELECT policy_id, version FROM scheduled WHERE effective_at_ms <= $1 "
            "ORDER BY effective_at_ms, policy_id",
            now_ms,
        )
        return [(policy_id, int(version)) for policy_id, version in rows]


def _published(event: PolicyPublished, _: int) -> Iterator[Statement]:
    yield Statement(
        "DELETE FROM scheduled WHERE policy_id = $1 AND version <= $2",
        [(event.policy_id, event.version)],
    )


def _scheduled(event: PolicyScheduled, _: int) -> Iterator[Statement]:
    yield Statement(
        "DELETE FROM scheduled WHERE policy_id = $1 AND effective_at_ms >= $2",
        [(event.policy_id, event.effective_at_ms)],
    )
    yield Statement(
        "INSERT INTO scheduled(policy_id, version, effective_at_ms) VALUES($1, $2, $3)",
        [(event.policy_id, event.version, event.effective_at_ms)],
    )


CHANGES: Changes = {PolicyPublished: _published, PolicyScheduled: _scheduled}
