"""What is listed of the read models: a page of rows that a filter lets through, in one order."""

from collections.abc import Mapping
from uuid import UUID

import asyncpg

from services.common.kernel import filters, names
from services.common.kernel.filters import Filter
from services.common.kernel.names import Pattern
from services.common.kernel.values import value_class
from services.reporting.adapters.filters import where
from services.reporting.adapters.queries import EXCEPTIONS, Queries
from services.reporting.domain.rows import TABLES, AlarmRow

LEVELS = ("normal", "alarm-1", "alarm-2", "cut")
COMMODITIES = ("electricity", "water", "gas")


@value_class
class Known:
    """What a list can be filtered by: field → what it may be, field → what it is in SQL."""

    fields: Mapping[str, filters.Field]
    columns: Mapping[str, str]


def _known(**fields: filters.Field | tuple[filters.Field, str]) -> Known:
    """Return what is known; without a word of SQL a field is the column of its name."""
    return Known(
        {name: of[0] if isinstance(of, tuple) else of for name, of in fields.items()},
        {name: of[1] if isinstance(of, tuple) else name for name, of in fields.items()},
    )


def _of(pattern: Pattern, column: str = "") -> tuple[filters.Field, str]:
    kind = pattern.pattern.split("{")[-1].rstrip("}")
    return filters.name(pattern), column or f"{kind}_id"


_LEGAL_ENTITY = _of(names.LEGAL_ENTITY, "legal_entity")
_DECISION: dict[str, filters.Field | tuple[filters.Field, str]] = {
    "site": _of(names.SITE),
    "account": _of(names.ACCOUNT),
    "meter": _of(names.METER),
    "kind": filters.text(),
}
ALARMS = _known(**_DECISION, reason=filters.text(), decided_at_ms=filters.whole())
LASTING = _known(**_DECISION, reason=filters.text())
METERS = _known(
    site=_of(names.SITE),
    gateway=_of(names.GATEWAY),
    account=_of(names.ACCOUNT),
    serial=filters.text(),
    status=filters.choice("online", "offline", "quarantined", "unknown"),
    level=filters.choice(*LEVELS),
    wanted=filters.choice("open", "closed"),
    reported=filters.choice("open", "closed", "mixed"),
)
LOST = _known(site=_of(names.SITE), status=filters.choice("offline", "quarantined"))
ACCOUNTS = _known(
    site=_of(names.SITE),
    legal_entity=_LEGAL_ENTITY,
    tariff=_of(names.TARIFF),
    policy=_of(names.POLICY),
    commodity=filters.choice(*COMMODITIES),
    currency=filters.text(),
    subject_id=filters.text(),
    status=filters.choice("open", "closing", "closed"),
    level=filters.choice(*LEVELS),
    frozen=filters.flag(),
    available_nano=filters.whole(),
)
SITES = _known(legal_entity=_LEGAL_ENTITY, currency=filters.text(), cuts_held=filters.flag())
TARIFFS = _known(
    legal_entity=_LEGAL_ENTITY,
    commodity=filters.choice(*COMMODITIES),
    currency=filters.text(),
)
POLICIES = _known(currency=filters.text())

_ACCOUNTS = """(
  SELECT a.account_id, a.site_id, a.subject_id, a.status, a.currency, a.legal_entity, a.commodity,
    a.tariff_id, a.policy_id, a.credited_nano, a.held_nano, b.available_nano, b.level, b.frozen,
    a.book_epoch, a.revision
  FROM accounts a LEFT JOIN account_balances b ON b.account_id = a.account_id
) AS listed"""


def _newest(table: str, id_column: str) -> str:
    """Return the newest version of each."""
    return (
        f"(SELECT DISTINCT ON ({id_column}) * FROM {table} "  # noqa: S608 - our own names
        f"ORDER BY {id_column}, version DESC) AS listed"
    )


@value_class
class _Listed:
    """What a list goes through, in the order of a column of names."""

    source: str
    order: str
    known: Known


async def _by_name(
    queries: Queries, listed: _Listed, of: Filter, after: str, limit: int
) -> list[asyncpg.Record]:
    values: list[object] = []
    condition = where(of, listed.known.columns, values)
    return await queries.rows(
        f"SELECT * FROM {listed.source} "  # noqa: S608 - our own names
        f"WHERE ({condition}) AND {listed.order} > ${len(values) + 1} "
        f"ORDER BY {listed.order} LIMIT ${len(values) + 2}",
        *values,
        after,
        limit,
    )


async def meters(queries: Queries, of: Filter, after: str, limit: int) -> list[asyncpg.Record]:
    """Return lines of the view meter_status in order of meter_id, from after one on."""
    return await _by_name(queries, _Listed("meter_status", "meter_id", METERS), of, after, limit)


async def lost(queries: Queries, of: Filter, after: str, limit: int) -> list[asyncpg.Record]:
    """Return lines of the view lost_devices in order of device_id, from after one on."""
    return await _by_name(queries, _Listed("lost_devices", "device_id", LOST), of, after, limit)


async def accounts(queries: Queries, of: Filter, after: str, limit: int) -> list[asyncpg.Record]:
    """Return accounts with what metering says of them in order of account_id."""
    return await _by_name(queries, _Listed(_ACCOUNTS, "account_id", ACCOUNTS), of, after, limit)


async def sites(queries: Queries, of: Filter, after: str, limit: int) -> list[asyncpg.Record]:
    """Return sites in order of site_id."""
    return await _by_name(queries, _Listed("sites", "site_id", SITES), of, after, limit)


async def tariffs(queries: Queries, of: Filter, after: str, limit: int) -> list[asyncpg.Record]:
    """Return the newest version of each tariff in order of tariff_id."""
    source = _newest("tariff_versions", "tariff_id")
    return await _by_name(queries, _Listed(source, "tariff_id", TARIFFS), of, after, limit)


async def policies(queries: Queries, of: Filter, after: str, limit: int) -> list[asyncpg.Record]:
    """Return the newest version of each policy in order of policy_id."""
    source = _newest("policy_versions", "policy_id")
    return await _by_name(queries, _Listed(source, "policy_id", POLICIES), of, after, limit)


async def alarms(
    queries: Queries, of: Filter, after: tuple[int, UUID] | None, limit: int
) -> list[AlarmRow]:
    """Return alarms, newest first, from after one on."""
    values: list[object] = []
    condition = where(of, ALARMS.columns, values)
    if after is not None:
        values.extend(after)
        before = f"(decided_at_ms, alarm_id) < (${len(values) - 1}, ${len(values)})"
        condition = f"({condition}) AND {before}"
    table = TABLES[AlarmRow]
    found = await queries.rows(
        f"SELECT {', '.join(table.columns)} FROM {table.name} WHERE {condition} "  # noqa: S608 - our own names
        f"ORDER BY decided_at_ms DESC, alarm_id DESC LIMIT ${len(values) + 1}",
        *values,
        limit,
    )
    return [AlarmRow(*line) for line in found]


async def exceptions(
    queries: Queries, of: Filter, after: tuple[int, UUID] | None, limit: int, *, ended: bool
) -> list[asyncpg.Record]:
    """Return lines of the view exceptions, newest first, from after one on.

    `ended`: also those that ended.
    """
    values: list[object] = []
    condition = where(of, LASTING.columns, values)
    at, id_, most = (f"${len(values) + number}" for number in (1, 2, 3))
    page = "ORDER BY since_ms DESC, exception_id DESC"
    if not ended:
        return await queries.rows(
            f"SELECT * FROM lasting_exceptions WHERE ({condition}) "  # noqa: S608 - our own words
            f"AND ({at}::bigint IS NULL OR (since_ms, exception_id) < ({at}, {id_}::uuid)) {page} "
            f"LIMIT {most}",
            *values,
            *(after or (None, None)),
            limit,
        )
    # First which ones, then what ended each of them: the view looks for that one by one.
    return await queries.rows(
        "SELECT * FROM exceptions WHERE exception_id = ANY(ARRAY("  # noqa: S608 - our own words
        f"SELECT alarm_id FROM alarms WHERE ({condition}) AND kind = ANY(${len(values) + 4}) "
        f"AND ({at}::bigint IS NULL OR (decided_at_ms, alarm_id) < ({at}, {id_}::uuid)) "
        f"ORDER BY decided_at_ms DESC, alarm_id DESC LIMIT {most})) {page}",
        *values,
        *(after or (None, None)),
        limit,
        list(EXCEPTIONS),
    )
