"""The supervisor behind `up`: runs the stack until it is told to end, and tells how it fares."""

import asyncio
import os
from pathlib import Path

from tools import mall
from tools.stack.errors import DirectoryInUseError, StackError
from tools.stack.identity import ProcessIdentity
from tools.stack.ports import Ports
from tools.stack.process import PartStatus, Restart, State
from tools.stack.services import Addresses, ServiceSpec, fleet_spec, service_specs
from tools.stack.stack import LocalStack, no_services
from tools.stack.state import Phase, StackState


class Reporter:
    """Keeps the newest status of each part and writes every change to the state file."""

    def __init__(self, directory: Path, ports: Ports) -> None:
        identity = ProcessIdentity.of(os.getpid())
        assert identity is not None
        self._identity = identity
        self._directory = directory
        self._ports = ports
        self._parts: dict[str, PartStatus] = {}
        self._phase = Phase.STARTING

    def part(self, status: PartStatus) -> None:
        if status.state is State.STOPPED:
            self._parts.pop(status.name, None)
        else:
            self._parts[status.name] = status
        self.phase(self._phase)
        if status.detail and status.state is not State.STOPPED:
            print(f"{status.name} {status.state}: {status.detail}", flush=True)

    def phase(self, phase: Phase, error: str = "") -> None:
        self._phase = phase
        parts = tuple(self._parts.values())
        state = StackState(self._identity, phase, self._ports, parts, error)
        state.write(self._directory)


def with_fleet(at: Addresses) -> list[ServiceSpec]:
    """Return the services and the virtual fleet, whose site an operator can apply from a file."""
    config = mall.write(at.directory, at.ports.fleet_lines)
    return [*service_specs(at), fleet_spec(at, config)]


async def supervise(directory: Path, *, only_infrastructure: bool) -> None:
    """Run the stack until SIGTERM; raise a StackError if it cannot start."""
    ports = Ports.from_environment(os.environ)
    reporter = Reporter(directory, ports)
    try:
        async with LocalStack(
            directory,
            ports,
            services=no_services if only_infrastructure else with_fleet,
            restart=Restart(),
            watch=reporter.part,
        ):
            reporter.phase(Phase.READY)
            await asyncio.Event().wait()
    except DirectoryInUseError:
        raise  # The state file is the other stack's.
    except StackError as error:
        reporter.phase(Phase.FAILED, str(error))
        raise
    except asyncio.CancelledError:
        reporter.phase(Phase.DOWN)
        raise
