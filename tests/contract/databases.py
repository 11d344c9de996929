"""A database of a test's own on a PostgreSQL that runs already."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg


async def execute(dsn: str, *statements: str) -> None:
    """Run statements, each a transaction of its own."""
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@asynccontextmanager
async def fresh_database(server_dsn: str) -> AsyncIterator[str]:
    """Make an empty database and give its address; drop it afterwards."""
    name = f"book_{uuid4().hex[:12]}"
    await execute(server_dsn, f"CREATE DATABASE {name}")
    try:
        yield urlsplit(server_dsn)._replace(path=f"/{name}").geturl()
    finally:
        await execute(server_dsn, f"DROP DATABASE {name} WITH (FORCE)")
