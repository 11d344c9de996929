"""The roles of deploy/postgres are enough for who has them, and stay so after a rebuild.

Method: a database of this test's own on the real PostgreSQL; the two files run by psql in the
order in which the image of PostgreSQL runs them; reporting's own migration and swap as the role
`reporting`; then what `grafana` can see and do.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import pytest
from prometheus_client import CollectorRegistry

from services.reporting.adapters import database, rebuild
from services.reporting.adapters.exports.store import Keeper, schema_of
from services.reporting.adapters.metrics import Metrics
from tools.stack.background import BackgroundStack
from tools.stack.postgres import binaries

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
POSTGRES = ROOT / "deploy" / "postgres"
PAGE = ROOT / "docs" / "operations" / "dashboard.md"
PASSWORDS = {"reporting": uuid4().hex, "grafana": uuid4().hex}
SCHEMA = "reporting"


class Server:
    """A database: how its roles reach it."""

    def __init__(self, superuser_dsn: str, name: str) -> None:
        self.superuser_dsn = superuser_dsn
        self.name = name

    def dsn(self, role: str) -> str:
        at = urlsplit(self.superuser_dsn)
        return f"postgresql://{role}:{PASSWORDS[role]}@{at.hostname}:{at.port}/{self.name}"

    def run(self, file: str) -> None:
        """Run a file as the image of PostgreSQL runs those of docker-entrypoint-initdb.d."""
        done = subprocess.run(
            [
                *(binaries() / "psql", "-v", "ON_ERROR_STOP=1", "--no-psqlrc", "--quiet"),
                *("--tuples-only", "--dbname", self.admin_dsn, "--file", POSTGRES / file),
            ],
            env={
                **os.environ,
                **{f"{role.upper()}_POSTGRES_PASSWORD": it for role, it in PASSWORDS.items()},
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    @property
    def admin_dsn(self) -> str:
        return urlsplit(self.superuser_dsn)._replace(path=f"/{self.name}").geturl()

    def types(self, command: str) -> None:
        """Run a command of the page, as an operator does in the checkout."""
        path = f"{binaries()}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "ADMIN_DSN": self.admin_dsn}
        subprocess.run(["sh", "-euc", command], cwd=ROOT, env=environment, check=True, timeout=30)

    async def asked(self, sql: str, password: str = PASSWORDS["grafana"]) -> list[asyncpg.Record]:
        """Return what the role of Grafana is answered."""
        connection = await asyncpg.connect(self.admin_dsn, user="grafana", password=password)
        try:
            return list(await connection.fetch(sql))
        finally:
            await connection.close()


@pytest.fixture
def server(stack: BackgroundStack) -> Iterator[Server]:
    name = f"roles_{uuid4().hex[:10]}"

    async def execute(*statements: str) -> None:
        connection = await asyncpg.connect(stack.postgres_dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(execute(f"CREATE DATABASE {name}"))
    yield Server(stack.postgres_dsn, name)
    asyncio.run(
        execute(f"DROP DATABASE {name} WITH (FORCE)", "DROP ROLE grafana", "DROP ROLE reporting")
    )


async def test_grafana_sees_the_tables_of_reporting_also_those_that_a_rebuild_swaps_in(
    server: Server,
) -> None:
    for _ in range(2):  # again changes nothing
        server.run("reporting.sql")
        server.run("grafana.sql")
    fresh = f"{SCHEMA}_next"
    async with database.connected(server.dsn("reporting"), SCHEMA, name="test") as connection:
        await database.migrate(connection, SCHEMA)
    assert await server.asked("SELECT * FROM reporting.sites") == []
    before = await server.asked("SELECT 'reporting.sites'::regclass::oid")
    async with database.connected(server.dsn("reporting"), fresh, name="test") as connection:
        await database.migrate(connection, fresh)
        await rebuild._swap(connection, SCHEMA, fresh)
    assert await server.asked("SELECT 'reporting.sites'::regclass::oid") != before
    for relation in ("sites", "account_balances", "charges", "receipts", "lost_devices"):
        assert await server.asked(f"SELECT * FROM reporting.{relation}") == []


@pytest.mark.parametrize("first", ["the role", "the exports"])
async def test_grafana_reads_no_exports_but_who_is_granted_them_later_does(
    server: Server, first: str
) -> None:
    beside = schema_of(SCHEMA)
    connected = partial(database.connected, server.dsn("reporting"), beside, name="test")
    keeper = Keeper(connected, beside, Metrics(CollectorRegistry()))
    server.run("reporting.sql")
    if first == "the role":
        server.run("grafana.sql")
    await keeper.keep(0)
    for _ in range(2):  # again changes nothing
        server.run("grafana.sql")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="schema reporting_exports"):
            await server.asked("SELECT * FROM reporting_exports.chunks")
    async with connected() as connection:
        await connection.execute(f"GRANT USAGE ON SCHEMA {beside} TO grafana")
        await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {beside} TO grafana")
    await keeper.keep(0)
    assert await server.asked("SELECT * FROM reporting_exports.chunks") == []


async def test_the_command_of_the_page_makes_the_role_after_the_tables_too(server: Server) -> None:
    server.run("reporting.sql")
    async with database.connected(server.dsn("reporting"), SCHEMA, name="test") as connection:
        await database.migrate(connection, SCHEMA)
    (command,) = re.findall(r"```sh\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    server.types(command)
    password = "<password>"  # as it stands on the page
    assert await server.asked("SELECT * FROM reporting.account_balances", password) == []


async def test_reporting_owns_its_database_and_is_nothing_beyond_it(server: Server) -> None:
    server.run("reporting.sql")
    connection = await asyncpg.connect(server.dsn("reporting"))
    try:
        own = await connection.fetchrow(
            "SELECT rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls "
            "FROM pg_roles WHERE rolname = current_user"
        )
    finally:
        await connection.close()
    assert own is not None
    assert not any(own.values())
    server.run("grafana.sql")
