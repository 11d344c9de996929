"""Goal: what a caller is told of a failure helps him, and tells nobody where the data lies.

Method: the guard around a method that fails, and a context that keeps what it was told; no sockets.
"""

from typing import Any

import pytest
import structlog
from google.longrunning import operations_proto_pb2 as lro
from structlog.testing import capture_logs

from services.common.kernel.errors import Retriable
from services.common.runtime.grpc import Call, Guard
from services.vending.domain.event_store import StoreUnavailable


class Ended(Exception):  # noqa: N818 - what grpc does when a call is aborted
    """The call was ended with a status."""


class Context:
    """Of a call without a deadline."""

    told = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("wattvend-caller", "desk"),)

    def peer(self) -> str:
        return "ipv4:10.0.0.7:41234"

    def time_remaining(self) -> None:
        return None

    async def abort_with_status(self, status: Any) -> None:
        self.told = status.details
        raise Ended


async def told(failed: Exception) -> tuple[str, str]:
    """Return what a caller and the log are told of a failure."""

    async def fails(_: Any, __: Call) -> None:
        raise failed

    context = Context()
    with capture_logs() as log:
        guard = Guard(structlog.get_logger(), 1.0, 1)
        guarded: Any = guard._around(fails, lro.GetOperationRequest.FromString, "/wattvend.x/Y")
        with pytest.raises(Ended):
            await guarded(b"", context)
    return context.told, str(log)


async def test_a_store_that_is_away_tells_callers_no_address_and_the_log_which() -> None:
    message = "the event store failed: check PostgreSQL at postgresql://wattvend@10.0.3.7/book"
    caller, log = await told(StoreUnavailable(message))
    assert "repeat with the same request_id" in caller
    assert "10.0.3.7" not in caller
    assert message in log


async def test_what_else_may_be_over_in_a_moment_is_told_as_it_is() -> None:
    caller, log = await told(Retriable("metering has not answered yet"))
    assert caller == "metering has not answered yet"
    assert log == "[]"
