"""Filters of meters and accounts find in PostgreSQL what their rules say of each row.

Method: rows of two malls in a schema of their own; the same filters are judged in Python, by the
parser's own rule, over what each row is.
"""

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from services.common.kernel import filters
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.ids import column_key
from services.common.kernel.reasons import Reason
from services.reporting.adapters import queries
from services.reporting.adapters.commits import Commits
from services.reporting.adapters.database import upsert
from services.reporting.adapters.fleet import FIELDS, Fleet
from services.reporting.adapters.fleet_api import FleetServicer
from services.reporting.domain.rows import (
    AccountLevelRow,
    AccountRow,
    AccountTotalsRow,
    DeviceStatusRow,
    MeterRow,
    Row,
    SitePlaceRow,
    SiteRow,
    newest,
)
from tests.integration.test_reporting import migrated, schema
from tools.stack.background import BackgroundStack
from wattvend.reporting.v1 import fleet_pb2 as pb

pytestmark = pytest.mark.stack
__all__ = ["schema"]
NOW_MS = 1_790_000_000_000
MINUTE_MS = 60_000


def blank(kind: type[Row], **said: Any) -> Any:
    """Return a row that says nothing but what is given."""
    hints = kind.__annotations__
    empty: dict[Any, Any] = {int: 0, str: "", bool: False}
    values = {name: empty.get(hint) for name, hint in hints.items()}
    return kind(**{**values, **said})


def rows() -> list[Row]:
    found: list[Row] = []
    for site_id, decimals in (("group", 9), ("mall", 9), ("floor", 9), ("far", 6)):
        found.append(blank(SiteRow, site_id=site_id, ledger_decimals=decimals, legal_entity="LE 1"))
    found.append(blank(SitePlaceRow, site_id="mall", parent_site_id="group", revision=1))
    found.append(blank(SitePlaceRow, site_id="floor", parent_site_id="mall", revision=1))
    for number, (site_id, status, level, credited, charged) in enumerate(
        (
            ("mall", "open", "normal", 100 * 10**9, 1),
            ("mall", "open", "cut", 10**9, 10**9 + 1),
            ("floor", "closed", "normal", 0, 0),
            ("floor", "open", "alarm-1", 12_500_000_000, 0),
            ("far", "open", "alarm-2", 12_500_000, 0),
        ),
        1,
    ):
        name, key = f"A{number}", column_key("account", f"A{number}")
        found += [
            blank(
                AccountRow,
                account_id=name,
                account_key=key,
                site_id=site_id,
                status=status,
                commodity="water" if number == 3 else "electricity",
                tariff_id="T1" if number % 2 else "T2",
                policy_id="P1",
                credited_nano=credited,
            ),
            blank(AccountLevelRow, account_id=name, account_key=key, level=level),
            blank(AccountTotalsRow, account_key=key, charged_nano=charged),
            blank(
                MeterRow,
                meter_id=f"M{number}",
                meter_key=column_key("meter", f"M{number}"),
                site_id=site_id,
                account_id=name,
                gateway_id="G1",
                commodity="electricity",
            ),
        ]
        if number != 5:
            found.append(
                blank(
                    DeviceStatusRow,
                    device_id=f"meters/M{number}",
                    status="online" if number < 3 else "offline",
                    last_seen_ms=NOW_MS - number * 30 * MINUTE_MS,
                )
            )
    found.append(
        blank(MeterRow, meter_id="M6", site_id="mall", account_id="house:M6", is_house=True)
    )
    return found


@pytest.fixture
async def fleet(stack: BackgroundStack, schema: str) -> AsyncIterator[Fleet]:
    async with migrated(stack, schema) as connection:
        await put(connection, rows())
    dsn = stack.postgres_dsn
    async with queries.pool(dsn, schema, name="test", size_max=2) as connections:
        yield Fleet(queries.Queries(connections))


async def put(connection: asyncpg.Connection, some: list[Row]) -> None:
    for table, standing in newest(some).items():
        columns = (list(column) for column in zip(*standing, strict=True))
        await connection.execute(upsert(table), *columns)


@pytest.mark.parametrize(
    ("said", "accounts", "meters"),
    [
        ("", "12345", "123456"),
        ("status = open", "1245", "1245"),
        ("status != open", "3", "36"),
        ("alarm = cut", "2", "2"),
        ("alarm = alarm-1 OR alarm = alarm-2", "45", "45"),
        ("available < 0", "2", "2"),
        ("available <= 0", "23", "236"),
        ("available = 12.50", "45", "45"),
        ("available > 12.5 AND available < 100", "1", "1"),
        ("available > 99.999999998", "1", "1"),
        ("site = sites/mall", "12", "126"),
        ("site_tree = sites/mall", "1234", "12346"),
        ("site_tree = sites/group AND status = open", "124", "124"),
        ("site_tree != sites/group", "5", "5"),
        ("NOT site_tree = sites/group", "5", "5"),
        ("tariff = tariffs/T2", "24", "24"),
        ("policy = policies/P1", "12345", "12345"),
        ("commodity = water", "3", ""),
        ("online = true", "12", "12"),
        ("online = false", "345", "3456"),
        ("silent_minutes >= 90", "345", "3456"),
        ("mode = prepaid", "12345", "123456"),
        ("mode = forced-off", "", ""),
        ("relay = unknown", "12345", "123456"),
        ("meter = meters/M2", "2", "2"),
        ("account = accounts/A4", "4", "4"),
        ('legal_entity = "legalEntities/LE 1"', "12345", "123456"),
        ("account = accounts/A1 OR account = accounts/A2 alarm = cut", "2", "2"),
    ],
)
async def test_a_filter_finds_what_it_says(
    fleet: Fleet, said: str, accounts: str, meters: str
) -> None:
    tree = filters.parse(said, FIELDS)
    found = await fleet.accounts(tree, NOW_MS, "", 100)
    assert "".join(row["account_id"][1:] for row in found) == accounts
    found = await fleet.meters(tree, NOW_MS, "", 100)
    assert "".join(row["meter_id"][1:] for row in found) == meters


async def test_pages_end_and_say_as_of_what_they_are(fleet: Fleet) -> None:
    commits = Commits()
    servicer = FleetServicer(fleet, commits)
    with pytest.raises(Retriable, match="does not project"):
        await servicer.ListFleetMeters(pb.ListFleetMetersRequest(), None)
    commits.as_of_ms = NOW_MS
    found, token = [], ""
    while True:
        request = pb.ListFleetMetersRequest(page_size=4, page_token=token)
        page = await servicer.ListFleetMeters(request, None)
        assert page.as_of_ms == NOW_MS
        found += [each.name for each in page.meters]
        if not (token := page.next_page_token):
            break
    assert found == [f"meters/M{number}" for number in range(1, 7)]
    accounts = await servicer.ListFleetAccounts(pb.ListFleetAccountsRequest(), None)
    assert accounts.accounts[1].available_nano == "-1"


@pytest.mark.parametrize(
    "said", ["balance > 1", "available > ten", "site = mall", "alarm = loud", "status > open"]
)
async def test_what_is_no_filter_is_refused(fleet: Fleet, said: str) -> None:
    commits = Commits()
    commits.as_of_ms = NOW_MS
    servicer = FleetServicer(fleet, commits)
    with pytest.raises(InvalidInput) as caught:
        await servicer.ListFleetAccounts(pb.ListFleetAccountsRequest(filter=said), None)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


async def test_readings_of_a_meter_nobody_knows_are_refused(fleet: Fleet) -> None:
    servicer = FleetServicer(fleet, Commits())
    known = pb.ListReadingsRequest(parent="meters/M1", from_ms=0, to_ms=NOW_MS)
    assert not (await servicer.ListReadings(known, None)).readings
    with pytest.raises(InvalidInput) as caught:
        await servicer.ListReadings(
            pb.ListReadingsRequest(parent="meters/M0", from_ms=0, to_ms=NOW_MS), None
        )
    assert caught.value.reason is Reason.METER_NOT_FOUND
