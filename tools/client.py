"""gRPC clients of vending and reporting, for the command line and the demo."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.longrunning import operations_grpc_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from wattvend.reporting.v1 import (
    exports_pb2_grpc,
    fleet_pb2_grpc,
    previews_pb2_grpc,
    reporting_pb2_grpc,
)
from wattvend.vending.v1 import (
    accounts_pb2_grpc,
    batches_pb2_grpc,
    closings_pb2_grpc,
    documents_pb2_grpc,
    openings_pb2_grpc,
    vending_pb2_grpc,
)

CALL_TIMEOUT_S = 15.0


class Refused(Exception):  # noqa: N818 - says what happened to the call
    """A service refused a call or could not be reached: gRPC code, reason, message."""

    def __init__(self, code: str, reason: str, message: str) -> None:
        super().__init__(f"{message} [{reason or code}]")
        self.code = code
        self.reason = reason
        self.message = message


def refusal(error: grpc.aio.AioRpcError, address: str) -> Refused:
    """Return what a person should read of a failed call."""
    code = error.code().name
    reason = ""
    status = rpc_status.from_call(error)  # type: ignore[arg-type] # an AioRpcError quacks alike
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            reason = info.reason
    message = error.details() or code
    if code == "UNAVAILABLE" and not reason:
        message = f"nobody answers at {address}: is the stack up (make status)? {message}"
    return Refused(code, reason, message)


class _Calls:
    """A stub whose methods add who asks and a deadline, and raise Refused."""

    def __init__(self, stub: Any, address: str, caller: str, actor: str) -> None:
        self._stub = stub
        self._address = address
        behind = (("wattvend-actor", actor),) if actor else ()
        self._metadata = (("wattvend-caller", caller), *behind)

    async def __call__(self, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        try:
            return await getattr(self._stub, method)(
                request, timeout=timeout_s, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise refusal(error, self._address) from error


@dataclass(frozen=True, slots=True)
class Clients:
    """`await clients.vending("Sell", SellRequest(...))`; likewise the others.

    `accounts`: the life of accounts, which is vending's too, as `documents`, `batches`, `closings`,
    `openings` and `operations` are; `fleet`, `previews` and `exports` are reporting's.
    """

    vending: _Calls
    accounts: _Calls
    batches: _Calls
    operations: _Calls
    documents: _Calls
    closings: _Calls
    openings: _Calls
    reporting: _Calls
    fleet: _Calls
    previews: _Calls
    exports: _Calls


def _channel(address: str, authority: bytes | None) -> grpc.aio.Channel:
    if authority is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(authority))


@asynccontextmanager
async def connect(
    vending: str, reporting: str, caller: str, authority: bytes | None = None, actor: str = ""
) -> AsyncIterator[Clients]:
    """Open both channels (host:port): with TLS where a certificate authority (PEM) is given.

    `actor`: an opaque id of the person behind the caller.
    """
    async with (
        _channel(vending, authority) as to_vending,
        _channel(reporting, authority) as to_reporting,
    ):
        yield Clients(
            _Calls(vending_pb2_grpc.VendingServiceStub(to_vending), vending, caller, actor),
            _Calls(accounts_pb2_grpc.AccountServiceStub(to_vending), vending, caller, actor),
            _Calls(batches_pb2_grpc.BatchServiceStub(to_vending), vending, caller, actor),
            _Calls(operations_grpc_pb2.OperationsStub(to_vending), vending, caller, actor),
            _Calls(documents_pb2_grpc.DocumentServiceStub(to_vending), vending, caller, actor),
            _Calls(closings_pb2_grpc.ClosingServiceStub(to_vending), vending, caller, actor),
            _Calls(openings_pb2_grpc.OpeningServiceStub(to_vending), vending, caller, actor),
            _Calls(reporting_pb2_grpc.ReportingServiceStub(to_reporting), reporting, caller, actor),
            _Calls(fleet_pb2_grpc.FleetServiceStub(to_reporting), reporting, caller, actor),
            _Calls(previews_pb2_grpc.PreviewServiceStub(to_reporting), reporting, caller, actor),
            _Calls(exports_pb2_grpc.ExportServiceStub(to_reporting), reporting, caller, actor),
        )
