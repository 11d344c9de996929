"""`usage_ask`: when metering was asked last what an account was charged."""

from collections.abc import Iterable

from services.vending.adapters.database import Statement
from services.vending.adapters.tables.table import Table
from services.vending.domain.tables import ACCOUNT_KEY, Ask

SCHEMA = """
CREATE TABLE IF NOT EXISTS usage_ask(
  account_id text PRIMARY KEY,
  asked_at_ms bigint NOT NULL,
  waits_for text,
  is_last bigint NOT NULL CHECK(is_last IN (0, 1))
);
CREATE INDEX IF NOT EXISTS usage_ask_at ON usage_ask(asked_at_ms);
CREATE INDEX IF NOT EXISTS usage_ask_waiting ON usage_ask(asked_at_ms) WHERE waits_for IS NOT NULL;
"""


class Asks(Table):
    """What metering was asked, account by account."""

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
