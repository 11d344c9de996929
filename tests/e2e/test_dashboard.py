"""The dashboard shows an operator what really happened.

Goal: every query of deploy/grafana's dashboard runs as Grafana runs it, as the role Grafana has,
and its answer is the truth of the demo. Method: the queries are taken from the JSON that Grafana
reads; variables are put in by Grafana's own rules; the PostgreSQL is the one that the demo filled;
the truth is what the demo printed of its meters' registers and of its receipts.
"""

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.e2e.conftest import ROOT, STORY_WITHIN_S, PlayedDemo
from tools import mall
from tools.stack.ports import LOOPBACK, Ports, free_ports
from tools.stack.postgres import DATABASE, USER, Postgres, binaries, start_postgres
from tools.stack.process import Supervisor

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(STORY_WITHIN_S + 60),
]

BOARD = json.loads((ROOT / "deploy/grafana/dashboards/site.json").read_text("utf-8"))
ROLE_SQL = ROOT / "deploy/postgres/grafana.sql"
PASSWORD = "only-to-read"
AT_REST = "Exceptions that last"
"""The panel that is empty where all is well, as at the end of the demo."""
INTERVAL_MS = 60_000
SLACK_MS = 60_000
CLOSED = re.compile(r"✓ (shop-\d{3}) is closed, at exactly nothing")
VERDICT = re.compile(
    r"^ *(shop-\d{3})" + r" +(-?\d+\.\d+)" * 6 + r" +(open|closed)\s*$", re.MULTILINE
)
SHOWN = {"text", "numeric", "int8", "bool", "timestamptz"}
"""Types of PostgreSQL that Grafana's data source shows as they are."""

# Grafana's own expression for a variable in a text: $name, [[name:format]], ${name.field:format}.
VARIABLE = re.compile(
    r"\$(\w+)|\[\[(\w+?)(?::(\w+))?\]\]|\$\{(\w+)(?:\.([^:^\}]+))?(?::([^\}]+))?\}"
)


@dataclass(frozen=True)
class Panel:
    """A panel: its kind, its one query and the columns that it treats in a way of their own."""

    title: str
    kind: str
    shape: str
    sql: str
    columns: tuple[str, ...]


def panels() -> list[Panel]:
    found = []
    for panel in BOARD["panels"]:
        (target,) = panel["targets"]
        overrides = panel["fieldConfig"]["overrides"]
        assert {each["matcher"]["id"] for each in overrides} <= {"byName"}
        columns = tuple(each["matcher"]["options"] for each in overrides)
        found.append(
            Panel(panel["title"], panel["type"], target["format"], target["rawSql"], columns)
        )
    return found


VARIABLES = {each["name"]: each["query"] for each in BOARD["templating"]["list"]}


def sql_of(title: str) -> str:
    (found,) = [panel.sql for panel in panels() if panel.title.startswith(title)]
    return found


@dataclass(frozen=True)
class View:
    """What a person looks at: the site and the time that are chosen above."""

    site: str
    from_ms: int
    to_ms: int

    def interpolated(self, sql: str) -> str:
        """Put Grafana's variables in, each as its documentation says; an unknown one fails."""
        values = {
            ("site", "sqlstring"): "'" + self.site.replace("'", "''") + "'",
            ("__from", ""): str(self.from_ms),
            ("__to", ""): str(self.to_ms),
            ("__interval_ms", ""): str(INTERVAL_MS),
        }

        def value(found: re.Match[str]) -> str:
            name = found[1] or found[2] or found[4]
            return values[name, found[3] or found[6] or ""]

        return VARIABLE.sub(value, sql)


@dataclass(frozen=True)
class Truth:
    """A row of the demo's verdict: what the fleet's registers and the receipts say."""

    used: Decimal
    cost: Decimal
    receipts: Decimal
    relay: str
    is_closed: bool

    @property
    def credited(self) -> Decimal:
        """What stands as credited: of an account that is closed as much as was used."""
        return self.cost if self.is_closed else self.receipts

    @property
    def balance(self) -> Decimal:
        return self.credited - self.cost


@pytest.fixture(scope="module")
def truth(played_demo: PlayedDemo) -> dict[str, Truth]:
    assert played_demo.returncode == 0, played_demo.stdout + played_demo.stderr
    (closed,) = CLOSED.findall(played_demo.stdout)
    found = {
        account: Truth(Decimal(used), Decimal(cost), Decimal(receipts), relay, account == closed)
        for account, used, cost, _, receipts, _, _, relay in VERDICT.findall(played_demo.stdout)
    }
    assert len(found) == mall.METERS
    return found


@pytest.fixture(scope="module")
def view(played_demo: PlayedDemo) -> View:
    began, ended = played_demo.began_at_ms, played_demo.ended_at_ms
    return View(mall.SITE, began - SLACK_MS, ended + SLACK_MS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def postgres(played_demo: PlayedDemo) -> AsyncIterator[Postgres]:
    """Run the demo's PostgreSQL again, and give it the role of Grafana as the page says."""
    assert played_demo.returncode == 0, played_demo.stdout + played_demo.stderr
    directory, port = played_demo.directory, free_ports(1)[0]
    supervisor = Supervisor(directory)
    await start_postgres(supervisor, directory, replace(Ports(), postgres=port), None)
    try:
        server = Postgres(directory, port)
        give_role(server)
        yield server
    finally:
        await supervisor.stop_all()


def give_role(server: Postgres) -> None:
    password = server.password_path.read_text("ascii").strip()
    subprocess.run(
        [
            *(binaries() / "psql", "--no-psqlrc", "--quiet", "--tuples-only"),
            *("--host", LOOPBACK, "--port", str(server.port)),
            *("--username", USER, "--dbname", DATABASE, "--set", f"owner={USER}"),
            *("--file", ROLE_SQL),
        ],
        env={**os.environ, "PGPASSWORD": password, "GRAFANA_POSTGRES_PASSWORD": PASSWORD},
        check=True,
        timeout=30,
    )


@pytest_asyncio.fixture(loop_scope="module")
async def grafana(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(
        host=LOOPBACK,
        port=postgres.port,
        database=DATABASE,
        user="grafana",
        password=PASSWORD,
    )
    yield connection
    await connection.close()


@pytest_asyncio.fixture(loop_scope="module")
async def owner(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection whose one transaction is undone."""
    connection = await asyncpg.connect(postgres.dsn)
    undone = connection.transaction()
    await undone.start()
    yield connection
    await undone.rollback()
    await connection.close()


async def rows(connection: asyncpg.Connection, sql: str, view: View) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(view.interpolated(sql))]


async def one(connection: asyncpg.Connection, sql: str, view: View) -> dict[str, Any]:
    (row,) = await rows(connection, sql, view)
    return row


# --- every query ------------------------------------------------------------------------------


async def test_a_variable_is_put_in_as_grafana_does() -> None:
    view = View("o'hara", 1, 2)
    assert view.interpolated("${site:sqlstring} $__from.$__to $__interval_ms") == (
        "'o''hara' 1.2 60000"
    )
    with pytest.raises(KeyError):
        view.interpolated("$__timeFilter(decided_at)")


async def test_the_titles_name_variables_that_there_are() -> None:
    named = {found[1] for panel in panels() for found in VARIABLE.finditer(panel.title)}
    assert named == {"currency"}
    assert named <= VARIABLES.keys()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.title)
async def test_a_panel_gets_columns_that_it_can_show(
    panel: Panel, grafana: asyncpg.Connection, view: View
) -> None:
    statement = await grafana.prepare(view.interpolated(panel.sql))
    types = {column.name: column.type.name for column in statement.get_attributes()}
    assert set(types.values()) <= SHOWN
    assert set(panel.columns) <= types.keys()
    found = await statement.fetch()
    assert bool(found) == (panel.title.partition(",")[0] != AT_REST)
    match panel.kind, panel.shape:
        case "stat", "table":
            assert set(types.values()) <= {"numeric", "int8"}
        case "timeseries", "time_series":
            assert list(types.items())[:2] == [("time", "timestamptz"), ("metric", "text")]
            assert list(types.values())[2:] == ["numeric"]
        case other:
            assert other == ("table", "table")


async def test_every_query_sees_nothing_of_another_site(
    grafana: asyncpg.Connection, view: View
) -> None:
    elsewhere = replace(view, site="mall-2'; --")
    for panel in panels():
        found = await rows(grafana, panel.sql, elsewhere)
        assert not any(any(row.values()) for row in found), panel.title
    assert await rows(grafana, VARIABLES["currency"], elsewhere) == []


async def test_what_happens_in_time_is_not_seen_outside_of_it(
    grafana: asyncpg.Connection, view: View
) -> None:
    before = replace(view, from_ms=0, to_ms=view.from_ms)
    timed = [panel for panel in panels() if "$__from" in panel.sql]
    assert {panel.title.split(",")[0] for panel in timed} == {
        "Sold",
        "Alarms and decisions",
        "Consumption",
        "Sales",
        "Receipts",
    }
    for panel in timed:
        found = await rows(grafana, panel.sql, before)
        assert not any(any(row.values()) for row in found), panel.title


# --- the demo's truth ---------------------------------------------------------------------------


async def test_the_site_is_offered_by_its_name(grafana: asyncpg.Connection, view: View) -> None:
    assert await rows(grafana, VARIABLES["site"], view) == [
        {"__text": "Demo mall", "__value": mall.SITE}
    ]
    assert await rows(grafana, VARIABLES["currency"], view) == [{"currency": "CNY"}]


async def test_every_account_stands_with_its_balance_the_lowest_first(
    grafana: asyncpg.Connection, view: View, truth: dict[str, Truth]
) -> None:
    found = await rows(grafana, sql_of("Balances"), view)
    assert {row["account"]: row["available"] for row in found} == {
        account: row.balance for account, row in truth.items()
    }
    assert {row["account"]: (row["credited"], row["charged"]) for row in found} == {
        account: (row.credited, row.cost) for account, row in truth.items()
    }
    balances = [row["available"] for row in found]
    assert balances == sorted(balances)
    assert len(set(balances)) > 1
    assert {(row["level"], row["frozen"], row["held"]) for row in found} == {("normal", False, 0)}
    assert await one(grafana, sql_of("Accounts"), view) == {
        "cut off": 0,
        "alarm 2": 0,
        "alarm 1": 0,
        "enough credit": len(truth),
    }


async def test_an_account_that_is_cut_off_is_counted_and_stands_first(
    owner: asyncpg.Connection, view: View
) -> None:
    await owner.execute(
        "UPDATE reporting.account_levels SET level = 'cut' WHERE account_id = 'shop-001'"
    )
    await owner.execute(
        "UPDATE reporting.account_totals SET charged_nano = credited_nano + 500000000 WHERE "
        "account_key = (SELECT account_key FROM reporting.accounts WHERE account_id = 'shop-001')"
    )
    counted = await one(owner, sql_of("Accounts"), view)
    assert (counted["cut off"], counted["enough credit"]) == (1, mall.METERS - 1)
    first = (await rows(owner, sql_of("Balances"), view))[0]
    assert (first["account"], first["level"]) == ("shop-001", "cut")
    assert first["available"] == Decimal("-0.5")


async def test_the_alarms_tell_the_cut_and_the_restore_in_their_order(
    grafana: asyncpg.Connection, view: View
) -> None:
    found = await rows(grafana, sql_of("Alarms"), view)
    decided = [row["decided"] for row in found]
    assert decided == sorted(decided, reverse=True)
    # What a meter was flagged for (read late, say, on a busy machine) is another story.
    told = [row for row in reversed(found) if not row["kind"].startswith("meter-")]
    stories = {
        account: [row["kind"] for row in told if row["account"] == account]
        for account in {row["account"] for row in told}
    }
    assert set(map(tuple, stories.values())) == {("alarm-1", "alarm-2", "cut", "restored")}
    assert {"shop-025", "shop-037"} < stories.keys()
    assert len(stories) == 5
    for row in told:
        if row["kind"] == "restored":
            assert row["available"] >= row["threshold"] == mall.RESTORE_MINOR / Decimal(100)
        else:
            assert row["available"] <= row["threshold"]
    shown = {row["kind"] for row in found}
    assert shown <= words_of("Alarms")


async def test_every_kind_of_alarm_has_a_colour() -> None:
    schema = json.loads((ROOT / "schemas" / "avro" / "alarm.avsc").read_text())
    (told,) = [field["doc"] for field in schema["fields"] if field["name"] == "kind"]
    kinds = {each.strip().partition(" ")[0] for each in told.split(",")}
    assert {"cut", "meter-flagged", "fact-late"} < kinds
    assert kinds <= words_of("Alarms")


async def test_every_relay_is_shown_as_it_truly_is(
    grafana: asyncpg.Connection, view: View, truth: dict[str, Truth]
) -> None:
    found = await rows(grafana, sql_of("Relays: wanted"), view)
    assert {row["account"]: row["reported"] for row in found} == {
        "" if row.is_closed else account: row.relay for account, row in truth.items()
    }  # whose tenant moved out is the house's
    assert {(row["relay"], row["wanted"]) for row in found} == {("as wanted", "closed")}
    assert await one(grafana, sql_of("Relays that"), view) == {"relays": 0}
    for row in found:
        assert {row["relay"], row["wanted"], row["reported"], row["meter is"]} <= words_of(
            "Relays:"
        )


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("UPDATE reporting.relay_states SET position = 'open'", "not as wanted"),
        ("UPDATE reporting.relay_states SET position = 'mixed'", "not as wanted"),
        ("DELETE FROM reporting.relay_states", "not reported"),
    ],
)
async def test_a_relay_that_is_not_as_wanted_stands_first_in_red(
    change: str, shown: str, owner: asyncpg.Connection, view: View
) -> None:
    await owner.execute(f"{change} WHERE meter_id = 'meter-044'")
    first, second, *_ = await rows(owner, sql_of("Relays: wanted"), view)
    assert (first["meter"], first["relay"]) == ("meter-044", shown)
    assert second["relay"] == "as wanted"
    assert colour_of("Relays:", shown) == "red"
    assert await one(owner, sql_of("Relays that"), view) == {"relays": 1}


async def test_an_exception_that_lasts_is_listed_with_its_meter(
    owner: asyncpg.Connection, view: View
) -> None:
    """The first warning of the demo's shop, told again as a reading that was held."""
    await owner.execute(
        "UPDATE reporting.alarms SET kind = 'reading-held', reason = 'implausible', "
        "meter_id = 'meter-025' WHERE account_id = 'shop-025' AND kind = 'alarm-1'"
    )
    (listed,) = await rows(owner, sql_of(AT_REST), view)
    assert (listed["kind"], listed["reason"]) == ("reading-held", "implausible")
    assert listed["meter"] == "meter-025"


async def test_a_meter_that_stops_answering_is_counted(
    owner: asyncpg.Connection, view: View
) -> None:
    sql = "UPDATE reporting.device_status SET status = $1, reason = 'no-answer' WHERE kind = $2"
    await owner.execute(sql, "online", "meter")
    await owner.execute(sql, "online", "gateway")
    assert await one(owner, sql_of("Devices"), view) == {"meters": 0, "gateways": 0}
    await owner.execute(f"{sql} AND device_id = 'meters/meter-001'", "offline", "meter")
    assert await one(owner, sql_of("Devices"), view) == {"meters": 1, "gateways": 0}


async def test_the_consumption_is_what_the_registers_moved(
    grafana: asyncpg.Connection, view: View, truth: dict[str, Truth]
) -> None:
    found = await rows(grafana, sql_of("Consumption"), view)
    assert {row["metric"] for row in found} == {"electricity, kWh"}
    assert sum(row["used"] for row in found) == sum(row.used for row in truth.values()) > 0
    in_bars_within(found, view)


async def test_the_sales_are_the_receipts(
    grafana: asyncpg.Connection, view: View, truth: dict[str, Truth]
) -> None:
    total = sum(row.receipts for row in truth.values())
    receipts = await rows(grafana, sql_of("Receipts"), view)
    assert await one(grafana, sql_of("Sold"), view) == {"sold": total, "sales": len(receipts)}
    bars = await rows(grafana, sql_of("Sales"), view)
    assert {row["metric"] for row in bars} == {"qr"}
    assert sum(row["sold"] for row in bars) == total
    in_bars_within(bars, view)
    for account, row in truth.items():
        mine = [each["amount"] for each in receipts if each["account"] == account]
        assert sum(mine) == row.receipts
    assert {row["sold by"] for row in receipts} == {"demo-operator"}


def in_bars_within(found: list[dict[str, Any]], view: View) -> None:
    """Check that bars begin at whole intervals and lie in the time that is looked at."""
    interval = timedelta(milliseconds=INTERVAL_MS)
    began, ended = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (view.from_ms, view.to_ms))
    for row in found:
        assert (row["time"] - datetime.fromtimestamp(0, UTC)) % interval == timedelta(0)
        assert began - interval <= row["time"] <= ended


def words_of(title: str) -> set[str]:
    """Return the words that a panel's table gives a colour."""
    return set(mapped(title))


def colour_of(title: str, word: str) -> str:
    return str(mapped(title)[word]["color"])


def mapped(title: str) -> dict[str, Any]:
    (panel,) = [each for each in BOARD["panels"] if each["title"].startswith(title)]
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    options: dict[str, Any] = mapping["options"]
    return options


# --- the role -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM reporting.receipts",
        "UPDATE reporting.positions SET next_offset = 0",
        "CREATE TABLE reporting.mine (it integer)",
        "CREATE TABLE public.mine (it integer)",
        "SELECT rolpassword FROM pg_authid",
        "SELECT pg_read_file('postgresql.conf')",
    ],
)
async def test_grafana_may_read_the_read_models_and_nothing_else(
    statement: str, grafana: asyncpg.Connection
) -> None:
    await grafana.execute("SET default_transaction_read_only = off")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await grafana.execute(statement)
