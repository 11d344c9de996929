"""Which meters and accounts a filter finds: from its tree to SQL, every value a parameter.

What a filter says of an account's meters holds where it holds for one of them.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any

import asyncpg

from services.common.kernel import filters, names
from services.common.kernel.filters import Field, Fields, Filter, Match
from services.common.kernel.values import value_class
from services.reporting.adapters.queries import Queries

_MONEY = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,9})?")
NEVER_MINUTES = 10**9
"""How long a device was silent that never spoke."""
LEVELS = ("normal", "alarm-1", "alarm-2", "cut")
TEXT, NUMBER, MONEY, FLAG = "text", "bigint", "text", "boolean"


def _money() -> Field:
    return Field(
        lambda said: said if _MONEY.fullmatch(said) else None,
        "an amount in the account's currency, e.g. 12.50",
        is_ordered=True,
    )


@value_class
class Column:
    """A field of filters: how it is read, and what of a row it is. `now` stands for the instant.

    `is_of_meters`: of an account it is asked of each of its meters.
    """

    field: Field
    sql: str
    type: str = TEXT
    is_of_meters: bool = False


_SEEN = "coalesce(({now} - d.last_seen_ms) / 60000, " + str(NEVER_MINUTES) + ")"
_SUBTREE = (
    "EXISTS (WITH RECURSIVE up (site_id, depth) AS (SELECT {site}, 0 UNION ALL "
    "SELECT p.parent_site_id, up.depth + 1 FROM up JOIN site_places p ON p.site_id = up.site_id "
    "WHERE p.parent_site_id IS NOT NULL AND up.depth < 64) "
    "SELECT 1 FROM up WHERE up.site_id = {value})"
)
"""Whether a site is another, or lies within it."""
_AVAILABLE = (
    "(coalesce(a.credited_nano, 0)::numeric - coalesce(t.charged_nano, 0) "
    "- coalesce(a.held_nano, 0))"
)
COLUMNS: Mapping[str, Column] = {
    "account": Column(filters.name(names.ACCOUNT), "coalesce(a.account_id, '')"),
    "status": Column(filters.choice("open", "closing", "closed"), "coalesce(a.status, '')"),
    "alarm": Column(filters.choice(*LEVELS), "coalesce(l.level, 'normal')"),
    "available": Column(_money(), _AVAILABLE, MONEY),
    "tariff": Column(filters.name(names.TARIFF), "coalesce(a.tariff_id, '')"),
    "policy": Column(filters.name(names.POLICY), "coalesce(a.policy_id, '')"),
    "site": Column(filters.name(names.SITE), "s.site_id"),
    "site_tree": Column(filters.name(names.SITE), "s.site_id"),
    "legal_entity": Column(filters.name(names.LEGAL_ENTITY), "s.legal_entity"),
    "commodity": Column(filters.choice("electricity", "water", "gas"), "{owner}.commodity"),
    "meter": Column(filters.name(names.METER), "m.meter_id", is_of_meters=True),
    "gateway": Column(filters.name(names.GATEWAY), "m.gateway_id", is_of_meters=True),
    "online": Column(
        filters.flag(), "(coalesce(d.status, '') = 'online')", FLAG, is_of_meters=True
    ),
    "silent_minutes": Column(filters.whole(), _SEEN, NUMBER, is_of_meters=True),
    "mode": Column(
        filters.choice("prepaid", "forced-off", "forced-on"),
        "coalesce(i.mode, 'prepaid')",
        is_of_meters=True,
    ),
    "relay": Column(
        filters.choice("open", "closed", "mixed", "unknown"),
        "coalesce(r.position, 'unknown')",
        is_of_meters=True,
    ),
}
FIELDS: Fields = {name: column.field for name, column in COLUMNS.items()}

_OF_ACCOUNT = (
    "LEFT JOIN account_levels l ON l.account_id = a.account_id "
    "LEFT JOIN account_totals t ON t.account_key = a.account_key "
)
_OF_METER = (
    "LEFT JOIN device_status d ON d.device_id = 'meters/' || m.meter_id "
    "LEFT JOIN relay_intents i ON i.meter_id = m.meter_id "
    "LEFT JOIN relay_states r ON r.meter_id = m.meter_id "
)

_READINGS = (
    "SELECT to_time_ms, epoch, sequence, account_id, kind, from_register_milli, "
    "to_register_milli, to_quality, energy_milli, price_micro, amount_nano, currency, "
    "tariff_id, tariff_version FROM charge_lines "
    "WHERE meter_key = $1 AND to_time_ms >= $2 AND to_time_ms < $3 "
)
_IN_ORDER = "ORDER BY to_time_ms, epoch, sequence"


class _Where:
    """The condition of a filter, with its parameters in order."""

    def __init__(self, owner: str, values: list[Any], now: str) -> None:
        """`owner`: m for rows of meters, a for rows of accounts; `now`: the parameter."""
        self._owner = owner
        self._now = now
        self.values = values

    def of(self, tree: Filter) -> str:
        return f"({filters.joined(tree, self._compared)})"

    def _compared(self, match: Match) -> str:
        column = COLUMNS[match.field]
        self.values.append(match.value)
        value = f"${len(self.values)}::{column.type}"
        sign = "<>" if match.operator == "!=" else match.operator
        sql = column.sql.format(owner=self._owner, now=self._now)
        if match.field == "site_tree":
            within = _SUBTREE.format(site=sql, value=value)
            return f"NOT {within}" if sign == "<>" else within
        if match.field == "available":
            # The scale is that of the account's currency; numeric keeps it exact.
            value = f"({value}::numeric * 10::numeric ^ s.ledger_decimals)"
        found = f"({sql} {sign} {value})"
        if column.is_of_meters and self._owner == "a":
            return (
                f"EXISTS (SELECT 1 FROM meters m {_OF_METER}"  # noqa: S608 - our own words
                f"WHERE m.account_id = a.account_id AND {found})"
            )
        return found


class Fleet:
    """Meters and accounts by what a filter says of them."""

    def __init__(self, queries: Queries) -> None:
        """Ask `queries`, whose errors are raised."""
        self._queries = queries

    async def accounts(
        self, tree: Filter, now_ms: int, after: str, limit: int
    ) -> list[asyncpg.Record]:
        """Return accounts in the order of their ids, from after one on."""
        where = _Where("a", [after, limit, now_ms], "$3::bigint")
        return await self._queries.rows(
            "SELECT a.account_id, s.site_id, a.status, coalesce(l.level, 'normal') AS level, "  # noqa: S608 - our own words
            f"{_AVAILABLE} AS available_nano, a.currency, a.tariff_id, a.policy_id "
            f"FROM accounts a JOIN sites s ON s.site_id = a.site_id {_OF_ACCOUNT}"
            f"WHERE a.account_id > $1 AND {where.of(tree)} AND $3::bigint IS NOT NULL "
            "ORDER BY a.account_id LIMIT $2",
            *where.values,
        )

    async def meters(
        self, tree: Filter, now_ms: int, after: str, limit: int
    ) -> list[asyncpg.Record]:
        """Return meters in the order of their ids, from after one on."""
        where = _Where("m", [after, limit, now_ms], "$3::bigint")
        return await self._queries.rows(
            "SELECT m.meter_id, s.site_id, coalesce(a.account_id, '') AS account_id, "  # noqa: S608 - our own words
            "coalesce(a.status, '') AS status, coalesce(l.level, 'normal') AS level, "
            f"{_AVAILABLE} AS available_nano, m.currency, "
            "(coalesce(d.status, '') = 'online') AS online, d.last_seen_ms, "
            "coalesce(i.mode, 'prepaid') AS mode, coalesce(r.position, 'unknown') AS relay "
            "FROM meters m JOIN sites s ON s.site_id = m.site_id "
            f"LEFT JOIN accounts a ON a.account_id = m.account_id {_OF_ACCOUNT}{_OF_METER}"
            f"WHERE m.meter_id > $1 AND {where.of(tree)} AND $3::bigint IS NOT NULL "
            "ORDER BY m.meter_id LIMIT $2",
            *where.values,
        )

    async def meter_is_known(self, meter_id: str) -> bool:
        """Say whether the meter was registered."""
        return await self._queries.meter_is_known(meter_id)

    async def readings(
        self, meter_key: int, from_ms: int, to_ms: int, after: tuple[int, int, int], limit: int
    ) -> list[asyncpg.Record]:
        """Return charges of a meter that end in [from, to), by (end, epoch, sequence)."""
        return await self._queries.rows(
            f"{_READINGS}AND (to_time_ms, epoch, sequence) > ($4, $5, $6) {_IN_ORDER} LIMIT $7",
            meter_key,
            from_ms,
            to_ms,
            *after,
            limit,
        )

    def all_readings(
        self, meter_key: int, from_ms: int, to_ms: int
    ) -> AsyncGenerator[list[asyncpg.Record]]:
        """Yield the same, all of them, some at a time."""
        return self._queries.stretches(f"{_READINGS}{_IN_ORDER}", meter_key, from_ms, to_ms)

    async def readings_count(self, meter_key: int, from_ms: int, to_ms: int) -> int:
        """Return how many those are."""
        (found,) = await self._queries.rows(
            "SELECT count(*) FROM charges "
            "WHERE meter_key = $1 AND to_time_ms >= $2 AND to_time_ms < $3",
            meter_key,
            from_ms,
            to_ms,
        )
        return int(found[0])
