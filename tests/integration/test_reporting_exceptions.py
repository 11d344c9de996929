"""Goal: the view `exceptions` says what metering holds and flags, and why it does not cut.

Method: metering's engine absorbs drawn histories of any kind; what it sent becomes rows in the
real PostgreSQL, and the view, which knows only those, is compared with the rows as they stand.
"""

import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.kernel.ids import column_key
from services.metering.domain.messages import LogRecord
from services.metering.domain.verdict import REFUSALS
from services.reporting.adapters import database, queries
from services.reporting.domain.projections import Record, project
from services.reporting.domain.rows import AccountLevelRow, AccountTotalsRow, AlarmRow, newest
from tests.property.metering_histories import ACCOUNTS, METERS, arrears, histories, oddities
from tests.property.metering_runs import examples, fresh_run, outputs_of, totals
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

TOPICS = {"charge-frame": "charges", "balance": "balances", "alarm": "alarms"}
KINDS = (AlarmRow, AccountLevelRow, AccountTotalsRow)
JUDGED = "('reading-held', 'meter-flagged', 'meter-silent', 'not-cut', 'frozen')"


def test_what_lasts_is_what_metering_holds_and_flags_and_why_it_does_not_cut(
    stack: BackgroundStack,
) -> None:
    schema = f"exceptions_{uuid4().hex[:10]}"
    loop = asyncio.new_event_loop()
    opened = database.connected(stack.postgres_dsn, schema, name="test")
    connection = loop.run_until_complete(opened.__aenter__())
    loop.run_until_complete(database.migrate(connection, schema))

    @examples(120)
    @given(st.one_of(histories(), oddities(), arrears()))
    def law(records: list[LogRecord]) -> None:
        loop.run_until_complete(check(connection, records))

    try:
        law()
    finally:
        loop.run_until_complete(connection.execute(f'DROP SCHEMA "{schema}" CASCADE'))
        loop.run_until_complete(opened.__aexit__(None, None, None))
        loop.close()


async def test_who_answers_questions_can_change_nothing(stack: BackgroundStack) -> None:
    """A preview of a tariff too: what it asks by is this pool, and reporting has no producer."""
    pool = queries.pool(stack.postgres_dsn, "public", name="test", size_max=1)
    async with pool as connections:
        for statement in ("CREATE TABLE forbidden (id int)", "CREATE SCHEMA forbidden"):
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await connections.execute(statement)


async def check(connection: asyncpg.Connection, records: list[LogRecord]) -> None:
    state, done = fresh_run(records)
    rows = [
        row
        for output in outputs_of(done)
        if output.subject in TOPICS
        for row in project(Record(TOPICS[output.subject], 0, output.subject, output.record))
    ]
    transaction = connection.transaction()
    await transaction.start()
    for table, standing in newest(row for row in rows if isinstance(row, KINDS)).items():
        columns = (list(column) for column in zip(*standing, strict=True))
        await connection.execute(database.upsert(table), *columns)
    found = await connection.fetch(
        "SELECT account_id, CASE WHEN kind IN ('not-cut', 'frozen') THEN '' ELSE meter_id END, "
        f"reason FROM lasting_exceptions WHERE kind IN {JUDGED}"
    )
    still = await connection.fetch("SELECT * FROM exceptions WHERE ended_at_ms IS NULL")
    lasting = await connection.fetch("SELECT * FROM lasting_exceptions")
    await transaction.rollback()
    assert {tuple(line) for line in still} == {tuple(line) for line in lasting}
    assert {tuple(line) for line in found} == set(standing_of(totals(state)))
    assert len(found) == len({tuple(line) for line in found})


def standing_of(accounts: dict[int, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield (account, meter, reason) of meters as they stand, of accounts not cut, or frozen.

    House accounts have no alarms.
    """
    names = {column_key(kind, each): each for kind, ids in NAMES.items() for each in ids}
    for account_key, account in accounts.items():
        if account["house"]:
            continue
        if account["refusal"]:
            yield names[account_key], "", REFUSALS[account["refusal"]]
        if account["frozen"]:
            yield names[account_key], "", "cannot-charge"
        for meter_key, meter in account["meters"].items():
            waiting = ["closing"] * bool(meter["waiting"])
            for reason in (*meter["flags"], *filter(None, [meter["hold"]]), *waiting):
                yield names[account_key], names[meter_key], reason


NAMES = {"account": ACCOUNTS, "meter": METERS}
