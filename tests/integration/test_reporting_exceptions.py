"""Goal: what the view `exceptions` says is still so of meters is what metering holds and flags.

Method: metering's engine absorbs drawn histories; what it sent becomes rows in the real
PostgreSQL, and the view, which knows only those, is compared with the meters as they stand.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from hypothesis import given, settings

from services.common.kernel.ids import column_key, name_uuid
from services.metering.domain.messages import LogRecord
from services.reporting.adapters import database
from services.reporting.domain.projections import Record, project
from services.reporting.domain.rows import (
    AccountLevelRow,
    AccountRow,
    AccountTotalsRow,
    AlarmRow,
    ChargeRow,
    Json,
    LedgerRow,
    MeterRow,
    Row,
    newest,
)
from tests.property.metering_histories import ACCOUNTS, METERS, oddities
from tests.property.metering_runs import examples, fresh_run, outputs_of, totals
from tools.stack.background import BackgroundStack

pytestmark = pytest.mark.stack

TOPICS = {"charge-frame": "charges", "balance": "balances", "alarm": "alarms"}
KINDS = (AccountRow, MeterRow, ChargeRow, AlarmRow, AccountLevelRow, AccountTotalsRow, LedgerRow)
OF_METERS = "('reading-held', 'meter-flagged', 'meter-silent')"


def test_the_exceptions_of_meters_are_what_metering_holds_and_flags(stack: BackgroundStack) -> None:
    schema = f"exceptions_{uuid4().hex[:10]}"
    loop = asyncio.new_event_loop()
    opened = database.connected(stack.postgres_dsn, schema, name="test")
    connection = loop.run_until_complete(opened.__aenter__())
    loop.run_until_complete(database.migrate(connection, schema))

    # The same draws each time: where a meter moves, the ledger's time and the shard's meet at an
    # instant, and one draw in some thousands still tells them apart.
    @settings(examples(60), derandomize=True)
    @given(oddities())
    def law(records: list[LogRecord]) -> None:
        loop.run_until_complete(check(connection, records))

    try:
        law()
    finally:
        loop.run_until_complete(connection.execute(f'DROP SCHEMA "{schema}" CASCADE'))
        loop.run_until_complete(opened.__aexit__(None, None, None))
        loop.close()


async def check(connection: asyncpg.Connection, history: list[LogRecord]) -> None:
    # A millisecond apart: the view compares the ledger's time with the shard's.
    records = [
        replace(record, timestamp_ms=record.timestamp_ms + number)
        for number, record in enumerate(history)
    ]
    state, done = fresh_run(records)
    rows = list(rows_of(records))
    for output in outputs_of(done):
        if output.subject in TOPICS:
            offset = output.record["log_offset"]
            record = Record(TOPICS[output.subject], offset, output.subject, output.record)
            rows += project(record)
    transaction = connection.transaction()
    await transaction.start()
    for table, standing in newest(row for row in rows if isinstance(row, KINDS)).items():
        columns = (list(column) for column in zip(*standing, strict=True))
        await connection.execute(database.upsert(table), *columns)
    found = await connection.fetch(
        f"SELECT account_id, meter_id, reason FROM lasting_exceptions WHERE kind IN {OF_METERS}"
    )
    still = await connection.fetch("SELECT * FROM exceptions WHERE ended_at_ms IS NULL")
    lasting = await connection.fetch("SELECT * FROM lasting_exceptions")
    assert {tuple(line) for line in still} == {tuple(line) for line in lasting}
    await transaction.rollback()
    assert {tuple(line) for line in found} == set(held_and_flagged(totals(state)))


def rows_of(records: list[LogRecord]) -> Iterator[Row]:
    """Yield what registry and ledger would tell of a log's facts.

    A fact that comes behind a later one of its meter happened before that one all the same.
    """
    seen: dict[str, dict[int, int]] = defaultdict(dict)
    now_ms = 0
    for record in records:
        now_ms = max(now_ms, record.timestamp_ms)
        fact: Any = record.value
        if record.subject in {"meter-fact", "account-fact"}:
            yield from project(Record("registry", record.offset, record.subject, fact))
        epochs = seen[fact["meter_id"]] if record.subject == "meter-fact" else {}
        if record.subject == "meter-fact" and fact["epoch"] not in epochs:
            later_ms = [at_ms for epoch, at_ms in epochs.items() if epoch > fact["epoch"]]
            at_ms = epochs[fact["epoch"]] = min([now_ms, *later_ms])
            if fact["previous_epoch"] is not None:
                stream, revision = f"meter-{fact['meter_id']}", fact["revision"]
                event = (name_uuid(stream, revision), "meter-assigned", Json("{}"), at_ms, "", "")
                yield LedgerRow(stream, fact["book_epoch"], revision, revision, *event)


def held_and_flagged(accounts: dict[int, dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield (account, meter, reason) of meters as they stand; house accounts have no alarms."""
    names = {column_key(kind, each): each for kind, ids in NAMES.items() for each in ids}
    for account_key, account in accounts.items():
        if account["house"]:
            continue
        for meter_key, meter in account["meters"].items():
            for reason in (*meter["flags"], *filter(None, [meter["hold"]])):
                yield names[account_key], names[meter_key], reason


NAMES = {"account": ACCOUNTS, "meter": METERS}
