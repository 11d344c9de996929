"""exporting.Exports of vending over gRPC: reporting knows what was charged."""

import grpc
import grpc.aio
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.reasons import Reason
from services.vending.domain.batch import Exported
from wattvend.reporting.v1 import exports_pb2 as pb
from wattvend.reporting.v1 import exports_pb2_grpc

CALL_TIMEOUT_S = 30.0
"""A month of readings each minute takes a second or two of a slow processor."""
CALLER = (("wattvend-caller", "vending"),)
_REFUSALS = (
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INTERNAL,
)
"""Of a chunk that cannot be written, however often it is tried; all else may be over later."""


class ReportingExports:
    """Has exports written by reporting at `address`."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        """Ask over `channel`."""
        self._stub = exports_pb2_grpc.ExportServiceStub(channel)
        self._address = address

    async def write(
        self, export_id: str, meter_id: str, from_ms: int, to_ms: int, *, validate_only: bool
    ) -> Exported:
        """Have the readings of a meter written, once, or only counted."""
        request = pb.WriteExportChunkRequest(
            name=names.EXPORT_CHUNK.name(export_id, meter_id),
            from_ms=from_ms,
            to_ms=to_ms,
            validate_only=validate_only,
        )
        try:
            chunk = await self._stub.WriteExportChunk(
                request, timeout=CALL_TIMEOUT_S, metadata=CALLER
            )
        except grpc.aio.AioRpcError as failed:
            message = failed.details() or failed.code().name
            reason = _reason_of(failed)
            if failed.code() in _REFUSALS and reason is not None:
                raise InvalidInput(reason, message) from failed
            raise Retriable(
                f"reporting at {self._address} does not write the export now: {message}"
            ) from failed
        return Exported(chunk.rows_count, chunk.size_bytes, chunk.sha256, chunk.as_of_ms)


def _reason_of(failed: grpc.aio.AioRpcError) -> Reason | None:
    """Return the reason that reporting gave; None where it gave none that is known here."""
    status = rpc_status.from_call(failed)  # type: ignore[arg-type] # an AioRpcError quacks alike
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status is not None else ():
        if detail.Unpack(info) and info.reason in Reason.__members__:
            return Reason(info.reason)
    return None
