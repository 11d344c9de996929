"""The stack's ports: one table of defaults, the settings that change them, and checks.

Everything listens on loopback. Each port has a setting `WATTVEND_STACK_<NAME>_PORT`.
"""

import errno
import random
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from tools.stack.errors import PortTakenError, SettingError

LOOPBACK = "127.0.0.1"
PORT_MAX = 65_535
FREE_PORT_MIN = 10_000
FREE_PORT_ATTEMPTS_MAX = 1_000
TCP_LISTEN = "0A"
COMMAND_SHOWN_LENGTH = 120


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of one stack; the defaults are those of `make up`."""

    kafka: int = 29_092
    kafka_controller: int = 29_093
    postgres: int = 25_432
    mqtt: int = 21_883
    vending_grpc: int = 27_001
    reporting_grpc: int = 27_002
    ingest_http: int = 27_101
    metering_http: int = 27_102
    vending_http: int = 27_103
    control_http: int = 27_104
    reporting_http: int = 27_105
    fleet_http: int = 27_110
    fleet_line_1: int = 27_121
    fleet_line_2: int = 27_122
    fleet_line_3: int = 27_123

    @property
    def fleet_lines(self) -> tuple[int, int, int]:
        """The Modbus gateways of the virtual fleet."""
        return (self.fleet_line_1, self.fleet_line_2, self.fleet_line_3)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Self:
        """Return the defaults with what `environ` sets; raise SettingError on an unusable value."""
        chosen = {}
        for name in port_names():
            text = environ.get(setting(name))
            if text is not None:
                chosen[name] = parse_port(setting(name), text)
        ports = cls(**chosen)
        seen: dict[int, str] = {}
        for name, port in ports.items():
            if port in seen:
                raise SettingError(
                    f"{setting(name)} and {setting(seen[port])} are both {port}; change one"
                )
            seen[port] = name
        return ports

    @classmethod
    def free(cls) -> Self:
        """Return ports that are free now, for tests and the demo."""
        names = port_names()
        return cls(**dict(zip(names, free_ports(len(names)), strict=True)))

    def items(self) -> Iterator[tuple[str, int]]:
        """Yield each port's name and number."""
        for name in port_names():
            yield name, getattr(self, name)


def port_names() -> list[str]:
    return [field.name for field in fields(Ports)]


def setting(name: str) -> str:
    """Return the environment variable that sets a port."""
    return f"WATTVEND_STACK_{name.upper()}_PORT"


def parse_port(variable: str, text: str) -> int:
    """Return a port number; raise SettingError with the variable's name."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= PORT_MAX:
        raise SettingError(f"{variable} is {text!r}; it must be a port, 1 to {PORT_MAX}")
    return int(text)


def free_ports(count: int) -> list[int]:
    """Return distinct free loopback ports below the range the kernel gives to clients.

    A port of that range could go to somebody's outgoing connection while a part restarts, and a
    client that retries there can even connect to itself.
    """
    chosen: list[int] = []
    below = client_port_min()
    with ExitStack() as held:
        for _ in range(FREE_PORT_ATTEMPTS_MAX):
            if len(chosen) == count:
                return chosen
            port = random.randrange(FREE_PORT_MIN, below)
            probe = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            chosen.append(port)
    raise PortTakenError(f"no {count} free ports between {FREE_PORT_MIN} and {below} on {LOOPBACK}")


def client_port_min() -> int:
    """Return the lowest port the kernel gives to outgoing connections."""
    try:
        text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii")
        lowest = int(text.split()[0])
    except (OSError, ValueError):
        lowest = 32_768
    return lowest if lowest > FREE_PORT_MIN + FREE_PORT_ATTEMPTS_MAX else 32_768


def check_free(ports: Ports, names: Iterable[str]) -> None:
    """Raise PortTakenError, naming port, holder and setting, unless all can be bound."""
    problems = []
    for name in names:
        port = getattr(ports, name)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            # Like the servers do: a connection in TIME_WAIT does not keep the port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError as error:
                why = holder(port) if error.errno == errno.EADDRINUSE else error.strerror
                problems.append(
                    f"port {port} ({name}) cannot be used: {why}. Stop it, or choose another "
                    f"port: {setting(name)}=<port>"
                )
    if problems:
        raise PortTakenError("\n".join(problems))


def holder(port: int) -> str:
    """Say which process listens on a port, as far as this user may know."""
    inodes = listening_inodes(port)
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.removeprefix("socket:[").removesuffix("]") in inodes:
            pid = link.parts[2]
            command = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
            text = command.decode("utf-8", "replace").strip()
            return f"pid {pid} listens there ({text[:COMMAND_SHOWN_LENGTH]})"
    return "another process (of another user) listens there"


def listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            columns = row.split()
            if columns[3] == TCP_LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes
