"""What is asked of the read models: SQL in, plain values out."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg

from services.common.kernel.errors import Retriable
from services.common.runtime.postgres import CONNECT_TIMEOUT_S, UNREACHABLE
from services.reporting.domain.explain import (
    CLEARED,
    CUT,
    NOT_CUT,
    OPEN,
    RESTORED,
    BookEvent,
    CutIntent,
    intents_of_cut,
)
from services.reporting.domain.rows import (
    TABLES,
    AccountRow,
    AlarmRow,
    ChargeRow,
    CommandOutcomeRow,
    NoticeRow,
    PolicyVersionRow,
    PriceLineRow,
    RelayIntentRow,
    Row,
    TariffVersionRow,
)
from services.reporting.domain.whatif import Recorded

QUERY_TIMEOUT_S = 10.0
EXCEPTIONS = (
    *("reading-held", "meter-flagged", "meter-silent", "resolution-refused"),
    *("not-cut", "not-restored", "frozen", "period-closed", "fact-late"),
)
"""Kinds of alarms that the view `exceptions` has."""
UNREADABLE = (
    "the read models cannot be read right now: try again in a moment; if it lasts, "
    "look at PostgreSQL and at /health/ready of reporting"
)
RECORDED_AT_ONCE = 2_000
"""Charges that a preview or an export has in memory: some ten milliseconds of its work."""


@asynccontextmanager
async def pool(
    dsn: str, schema: str, *, name: str, size_max: int, writes: bool = False
) -> AsyncIterator[asyncpg.Pool]:
    """Open a pool that connects when it is first asked, so that PostgreSQL may come later."""
    connections = asyncpg.create_pool(
        dsn,
        min_size=0,
        max_size=size_max,
        timeout=CONNECT_TIMEOUT_S,
        command_timeout=QUERY_TIMEOUT_S,
        server_settings={
            "search_path": schema,
            "application_name": name,
            "default_transaction_read_only": "off" if writes else "on",
        },
    )
    async with connections:
        yield connections


@asynccontextmanager
async def lent(connections: asyncpg.Pool, cannot: str) -> AsyncIterator[Any]:
    """Lend a connection. Raises Retriable while PostgreSQL, or a table in it, is not there.

    `cannot`: what that means, and what to do.
    """
    try:
        async with connections.acquire(timeout=CONNECT_TIMEOUT_S) as connection:
            yield connection
    except (*UNREACHABLE, asyncpg.UndefinedTableError) as away:
        raise Retriable(f"{cannot} ({str(away) or type(away).__name__})") from away


def _select(kind: type[Row]) -> str:
    table = TABLES[kind]
    return f"SELECT {', '.join(table.columns)} FROM {table.name} "  # noqa: S608 - our own names


class Queries:
    """Reads. Raises Retriable while PostgreSQL, or the schema in it, is not there."""

    def __init__(self, connections: asyncpg.Pool) -> None:
        self._connections = connections

    async def balance(self, account_id: str) -> asyncpg.Record | None:
        """Return the account's line of the view account_balances."""
        return await self._one("SELECT * FROM account_balances WHERE account_id = $1", account_id)

    async def account_is_known(self, account_id: str) -> bool:
        """Say whether the account, or the meter whose house account it is, was registered."""
        found = await self._one(
            "SELECT 1 FROM accounts WHERE account_id = $1 "
            "UNION ALL SELECT 1 FROM meters WHERE 'house:' || meter_id = $1 LIMIT 1",
            account_id,
        )
        return found is not None

    async def meter_is_known(self, meter_id: str) -> bool:
        """Say whether the meter was registered."""
        return await self._one("SELECT 1 FROM meters WHERE meter_id = $1", meter_id) is not None

    async def consumption(
        self, column: str, key: int, from_ms: int, to_ms: int
    ) -> list[asyncpg.Record]:
        """Return a line a meter, epoch and account of charges whose end lies in [from, to).

        `column`: account_key or meter_key. Sums are numeric (Decimal here, always whole).
        """
        assert column in ("account_key", "meter_key")
        return await self.rows(
            "SELECT meter_id, account_id, epoch, currency, commodity, "  # noqa: S608 - see assert
            # A re-split tells of a late reading, not of where the meter stood.
            "coalesce((array_agg(from_register_milli ORDER BY sequence) "
            "FILTER (WHERE kind <> 're-split'))[1], min(from_register_milli)) "
            "AS from_register_milli, "
            "coalesce((array_agg(to_register_milli ORDER BY sequence DESC) "
            "FILTER (WHERE kind <> 're-split'))[1], max(to_register_milli)) "
            "AS to_register_milli, "
            "coalesce(min(nullif(from_time_ms, 0)), min(to_time_ms)) AS first_ms, "
            "max(to_time_ms) AS last_ms, count(*) AS charges, "
            "sum(energy_milli) AS energy_milli, sum(amount_nano) AS amount_nano "
            f"FROM charge_lines WHERE {column} = $1 AND to_time_ms >= $2 AND to_time_ms < $3 "
            "GROUP BY meter_id, account_id, epoch, currency, commodity "
            "ORDER BY meter_id, epoch, account_id",
            key,
            from_ms,
            to_ms,
        )

    async def cut(self, account_id: str, alarm_id: UUID | None) -> AlarmRow | None:
        """Return a decision on a cut by its alarm, or the newest cut of an account, or None."""
        if alarm_id is not None:
            found = await self._one(
                f"{_select(AlarmRow)}WHERE alarm_id = $1 AND kind = ANY($2) "
                "AND ($3 = '' OR account_id = $3)",
                alarm_id,
                [CUT, NOT_CUT],
                account_id,
            )
        else:
            found = await self._one(
                f"{_select(AlarmRow)}WHERE account_id = $1 AND kind = $2 "
                "ORDER BY log_offset DESC LIMIT 1",
                account_id,
                CUT,
            )
        return AlarmRow(*found) if found else None

    async def notice(self, notice_id: UUID) -> NoticeRow | None:
        """Return a notice."""
        found = await self._one(f"{_select(NoticeRow)}WHERE notice_id = $1", notice_id)
        return NoticeRow(*found) if found else None

    async def refusals(self, decision: AlarmRow) -> list[AlarmRow]:
        """Return why an account was not cut before a decision, in the arrears that it is in.

        Since its level was last left.
        """
        found = await self.rows(
            f"{_select(AlarmRow)}WHERE account_id = $1 AND kind = $2 AND log_offset < $3 "  # noqa: S608 - our own names
            "AND log_offset > (SELECT coalesce(max(log_offset), -1) FROM alarms "
            "WHERE account_id = $1 AND kind = ANY($4) AND log_offset < $3) "
            "AND arrears_since_ms IS NOT DISTINCT FROM $5 ORDER BY log_offset",
            decision.account_id,
            NOT_CUT,
            decision.log_offset,
            [CUT, RESTORED, CLEARED],
            decision.arrears_since_ms,
        )
        return [AlarmRow(*line) for line in found]

    async def charge(
        self, meter_key: int, epoch: int | None, sequence: int | None
    ) -> ChargeRow | None:
        """Return a charge of a meter; without epoch and sequence its newest."""
        found = await self._one(
            f"{_select(ChargeRow)}WHERE meter_key = $1 "
            "AND ($2::integer IS NULL OR epoch = $2) AND ($3::bigint IS NULL OR sequence = $3) "
            "ORDER BY epoch DESC, sequence DESC LIMIT 1",
            meter_key,
            epoch,
            sequence,
        )
        return ChargeRow(*found) if found else None

    async def charge_of_account(self, account_key: int, sequence: int | None) -> ChargeRow | None:
        """Return an account's newest charge at or before an account sequence; None: of all."""
        found = await self._one(
            f"{_select(ChargeRow)}WHERE account_key = $1 "
            "AND ($2::bigint IS NULL OR account_sequence <= $2) "
            "ORDER BY account_sequence DESC LIMIT 1",
            account_key,
            sequence,
        )
        return ChargeRow(*found) if found else None

    async def behind(self, charge: ChargeRow, kinds: Sequence[str]) -> ChargeRow | None:
        """Return, of what was charged before of its meter, the first that ends after it."""
        found = await self._one(
            f"{_select(ChargeRow)}WHERE meter_key = $1 AND epoch = $2 AND sequence < $3 "
            "AND to_time_ms > $4 AND kind = ANY($5) ORDER BY to_time_ms LIMIT 1",
            charge.meter_key,
            charge.epoch,
            charge.sequence,
            charge.to_time_ms,
            list(kinds),
        )
        return ChargeRow(*found) if found else None

    async def received_at_ms(self, charge: ChargeRow) -> int:
        """Return when the first reading of a charge was received; 0 where nothing tells it."""
        found = await self._one(
            "SELECT to_received_at_ms FROM charges WHERE meter_key = $1 AND to_time_ms = $2 "
            "AND epoch = $3 AND to_reading_id = $4 LIMIT 1",
            charge.meter_key,
            charge.from_time_ms,
            charge.epoch,
            charge.from_reading_id,
        )
        return int(found["to_received_at_ms"]) if found else 0

    async def register_max_milli(self, meter_id: str, epoch: int) -> int | None:
        """Return the highest value of a meter's register in an epoch, as the ledger tells."""
        found = await self._one(
            "SELECT (data ->> 'register_max_milli')::bigint AS most FROM ledger "
            "WHERE stream = 'meter-' || $1 AND data ? 'register_max_milli' "
            "AND coalesce((data ->> 'epoch')::integer, 1) <= $2 "
            "ORDER BY book_epoch DESC, revision DESC LIMIT 1",
            meter_id,
            epoch,
        )
        return None if found is None else found["most"]

    async def names(self, charge: ChargeRow) -> tuple[str, str]:
        """Return the ids of a charge's meter and account."""
        found = await self._one(
            "SELECT meter_id, account_id FROM charge_lines "
            "WHERE meter_key = $1 AND epoch = $2 AND sequence = $3",
            charge.meter_key,
            charge.epoch,
            charge.sequence,
        )
        assert found is not None, "charges are never removed"
        return found["meter_id"], found["account_id"]

    async def price_lines(self, charge: ChargeRow) -> Sequence[PriceLineRow]:
        """Return the lines of a charge, in their order."""
        found = await self.rows(
            f"{_select(PriceLineRow)}WHERE meter_key = $1 AND epoch = $2 AND sequence = $3 "
            "ORDER BY line",
            charge.meter_key,
            charge.epoch,
            charge.sequence,
        )
        return [PriceLineRow(*line) for line in found]

    async def tariff_versions(
        self, tariff_id: str, versions: Iterable[int]
    ) -> Sequence[TariffVersionRow]:
        """Return those of the versions of a tariff that are known, ascending."""
        found = await self.rows(
            f"{_select(TariffVersionRow)}WHERE tariff_id = $1 AND version = ANY($2) "
            "ORDER BY version",
            tariff_id,
            sorted(versions),
        )
        return [TariffVersionRow(*line) for line in found]

    async def policy_version(
        self, policy_id: str | None, version: int | None
    ) -> PolicyVersionRow | None:
        """Return a version of a policy."""
        found = await self._one(
            f"{_select(PolicyVersionRow)}WHERE policy_id = $1 AND version = $2", policy_id, version
        )
        return PolicyVersionRow(*found) if found else None

    async def silence(self, decision: AlarmRow) -> AlarmRow | None:
        """Return what told the silence that the reading of a decision ended, or None."""
        found = await self._one(
            f"{_select(AlarmRow)}WHERE account_id = $1 AND meter_id = $2 AND kind = $3 "
            "AND log_offset < $4 ORDER BY log_offset DESC LIMIT 1",
            decision.account_id,
            decision.meter_id,
            "meter-silent",
            decision.log_offset,
        )
        return AlarmRow(*found) if found else None

    async def book_events(self, stream: str) -> Sequence[BookEvent]:
        """Return the events of a stream, account-{id} or meter-{id}, that the ledger has.

        The credit that a posting of usage tells is metering's, which may be behind the book's.
        """
        found = await self.rows(
            "SELECT type, event_id, coalesce(data ->> 'receipt_id', '') AS receipt_id, "
            "book_epoch, revision, CASE WHEN type <> 'usage-posted' "
            "THEN (data ->> 'credited_nano')::bigint END AS credited_nano, "
            "occurred_at_ms, (data ->> 'until_ms')::bigint AS until_ms, "
            "coalesce(data ->> 'notice_id', '') AS notice_id, "
            "coalesce(data ->> 'outcome', '') AS outcome "
            "FROM ledger WHERE stream = $1",
            stream,
        )
        return [BookEvent(*line) for line in found]

    async def charged_spans(self, account_key: int, sequence: int) -> list[asyncpg.Record]:
        """Return a line a meter and epoch of an account's charges up to an account sequence."""
        return await self.rows(
            "SELECT meter_id, epoch, min(sequence) AS first_sequence, "
            "max(sequence) AS last_sequence, count(*) AS charges, "
            "min(account_sequence) AS first_account_sequence, "
            "max(account_sequence) AS last_account_sequence, "
            "sum(energy_milli) AS energy_milli, sum(amount_nano) AS amount_nano "
            "FROM charge_lines WHERE account_key = $1 AND account_sequence <= $2 "
            "GROUP BY meter_id, epoch ORDER BY meter_id, epoch",
            account_key,
            sequence,
        )

    async def intents(self, cut: AlarmRow, policy: PolicyVersionRow | None) -> Sequence[CutIntent]:
        """Return the intents of a cut, with every step of their delivery."""
        # An account's shard is for life: offsets of its log order all that happened to it.
        restored = await self._one(
            "SELECT min(log_offset) AS log_offset FROM alarms "
            "WHERE account_id = $1 AND kind = $2 AND log_offset > $3",
            cut.account_id,
            RESTORED,
            cut.log_offset,
        )
        within = (cut.account_id, OPEN, cut.log_offset, restored and restored["log_offset"])
        outcomes = await self.rows(
            f"{_select(CommandOutcomeRow)}WHERE account_id = $1 AND wanted = $2 "
            "AND intent_offset >= $3 AND ($4::bigint IS NULL OR intent_offset < $4)",
            *within,
        )
        newest = await self.rows(
            f"{_select(RelayIntentRow)}WHERE account_id = $1 AND wanted = $2 "
            "AND version_offset >= $3 AND ($4::bigint IS NULL OR version_offset < $4)",
            *within,
        )
        return intents_of_cut(
            cut,
            policy,
            [CommandOutcomeRow(*line) for line in outcomes],
            [RelayIntentRow(*line) for line in newest],
        )

    async def previewed(
        self, account_ids: Sequence[str], site_id: str, tariff_id: str, limit: int
    ) -> list[AccountRow]:
        """Return accounts in order of their ids. Empty filters: any."""
        found = await self.rows(
            f"{_select(AccountRow)}WHERE ($1::text[] = '{{}}' OR account_id = ANY($1)) "
            "AND ($2 = '' OR site_id = $2) AND ($3 = '' OR tariff_id = $3) "
            "ORDER BY account_id LIMIT $4",
            list(account_ids),
            site_id,
            tariff_id,
            limit,
        )
        return [AccountRow(*line) for line in found]

    async def first_begin_ms(
        self, account_key: int, from_ms: int, to_ms: int, *, cuts: bool = False
    ) -> int | None:
        """Return when the first interval begins that ends in [from, to); None: there is none.

        `cuts`: one that begins before `to` counts too.
        """
        found = await self._one(
            "SELECT min(CASE from_time_ms WHEN 0 THEN to_time_ms ELSE from_time_ms END) AS at_ms "
            "FROM charges WHERE account_key = $1 AND to_time_ms >= $2 "
            "AND (to_time_ms < $3 OR ($4 AND from_time_ms > 0 AND from_time_ms < $3)) "
            "AND kind <> 'fee'",
            account_key,
            from_ms,
            to_ms,
            cuts,
        )
        return None if found is None else found["at_ms"]

    async def lived_ms(self, account_id: str) -> tuple[int, int]:
        """Return when an account was opened, and until when it may owe fees.

        0 where the ledger does not tell. Until it was closed, else as far as metering has come.
        """
        found = await self._one(
            "SELECT min(occurred_at_ms) FILTER (WHERE type = 'account-opened') AS opened_ms, "
            "min(occurred_at_ms) FILTER (WHERE type = 'account-closed') AS closed_ms, "
            "(SELECT as_of_ms + 1 FROM account_balances WHERE account_id = $1) AS as_of_ms "
            "FROM ledger WHERE stream = 'account-' || $1",
            account_id,
        )
        assert found is not None, "a line of aggregates"
        ends = (found["closed_ms"], found["as_of_ms"])
        return found["opened_ms"] or 0, min((at for at in ends if at is not None), default=0)

    async def stays(self, account_key: int) -> dict[tuple[int, int], tuple[int, int]]:
        """Return (meter_key, epoch) → (the epoch in which it came to the account, when).

        As the ledger tells: another device or ratio is a later epoch in the same account.
        """
        found = await self.rows(
            "SELECT DISTINCT ON (c.meter_key, c.epoch) c.meter_key, c.epoch, "
            "(l.data ->> 'epoch')::integer AS came, l.occurred_at_ms AS at_ms "
            "FROM (SELECT DISTINCT meter_key, epoch FROM charges WHERE account_key = $1) c "
            "JOIN meters m ON m.meter_key = c.meter_key "
            "JOIN ledger l ON l.stream = 'meter-' || m.meter_id AND l.type = 'meter-assigned' "
            "AND (l.data ->> 'epoch')::integer <= c.epoch "
            "ORDER BY c.meter_key, c.epoch, came DESC, at_ms",
            account_key,
        )
        return {(line["meter_key"], line["epoch"]): (line["came"], line["at_ms"]) for line in found}

    async def recorded(
        self, account_key: int, reads_from_ms: int, to_ms: int, *, cuts: bool = False
    ) -> AsyncIterator[Sequence[Recorded]]:
        """Yield an account's charges that end in [reads_from, to), and every re-split before.

        `cuts`: also those that begin before `to`. In the order in which a preview adds them up,
        some at a time: there may be millions.
        """
        stretches = self.stretches(
            f"SELECT {', '.join(Recorded._fields)} FROM charges "  # noqa: S608 - our own names
            "WHERE account_key = $1 AND account_revision <> -1 "
            "AND (to_time_ms < $3 OR ($4 AND from_time_ms > 0 AND from_time_ms < $3)) "
            "AND (to_time_ms >= $2 OR kind = 're-split') "
            "ORDER BY meter_key, epoch, to_time_ms, sequence",
            account_key,
            reads_from_ms,
            to_ms,
            cuts,
        )
        async for lines in stretches:
            yield [Recorded(*line) for line in lines]

    async def stretches(self, query: str, *values: Any) -> AsyncGenerator[list[asyncpg.Record]]:
        """Yield what a query finds, as of one instant, some at a time."""
        async with self._connection() as connection, connection.transaction():
            cursor = await connection.cursor(query, *values)
            while lines := await cursor.fetch(RECORDED_AT_ONCE):
                yield lines

    async def _one(self, query: str, *values: Any) -> asyncpg.Record | None:
        async with self._connection() as connection:
            return await connection.fetchrow(query, *values)

    async def rows(self, query: str, *values: Any) -> list[asyncpg.Record]:
        async with self._connection() as connection:
            return await connection.fetch(query, *values)

    def _connection(self) -> AbstractAsyncContextManager[Any]:
        return lent(self._connections, UNREADABLE)
