"""drafting.Selection of vending over gRPC: reporting knows balances and relays."""

from typing import Any

import grpc
import grpc.aio

from services.common.kernel import names
from services.common.kernel.errors import InvalidInput, Retriable
from services.common.kernel.paging import PAGE_SIZE_MAX
from services.common.kernel.reasons import Reason
from services.vending.application.drafting import Selected
from services.vending.domain.batch import Of
from wattvend.reporting.v1 import fleet_pb2 as pb
from wattvend.reporting.v1 import fleet_pb2_grpc

CALL_TIMEOUT_S = 10.0
CALLER = (("wattvend-caller", "vending"),)


class ReportingSelection:
    """Finds the targets of a filter by asking reporting at `address`."""

    def __init__(self, channel: grpc.aio.Channel, address: str) -> None:
        """Ask over `channel`."""
        self._stub = fleet_pb2_grpc.FleetServiceStub(channel)
        self._address = address

    async def find(self, of: Of, filter_: str, at_most: int) -> Selected:
        """Return what a filter finds, by what was known when the first page of it was."""
        ids: list[str] = []
        token, as_of_ms = "", 0
        while True:
            page = await self._page(of, filter_, token)
            as_of_ms = as_of_ms or page.as_of_ms
            listed = page.meters if of is Of.METERS else page.accounts
            pattern = names.METER if of is Of.METERS else names.ACCOUNT
            ids += [pattern.id("filter", each.name) for each in listed]
            if len(ids) > at_most:
                text = f"it finds more than {at_most} {of}: say more, or draft several batches"
                raise InvalidInput(Reason.INVALID_ARGUMENT, text, field="filter")
            if not (token := page.next_page_token):
                return Selected(tuple(ids), as_of_ms)

    async def _page(self, of: Of, filter_: str, token: str) -> Any:
        """Return a page. Raises InvalidInput where the filter is none, else Retriable."""
        content: dict[str, Any] = {"filter": filter_, "page_token": token}
        content["page_size"] = PAGE_SIZE_MAX
        try:
            if of is Of.METERS:
                return await self._stub.ListFleetMeters(
                    pb.ListFleetMetersRequest(**content), timeout=CALL_TIMEOUT_S, metadata=CALLER
                )
            return await self._stub.ListFleetAccounts(
                pb.ListFleetAccountsRequest(**content), timeout=CALL_TIMEOUT_S, metadata=CALLER
            )
        except grpc.aio.AioRpcError as failed:
            message = failed.details() or failed.code().name
            if failed.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise InvalidInput(Reason.INVALID_ARGUMENT, message, field="filter") from failed
            raise Retriable(
                f"reporting at {self._address} does not resolve the filter now: {message}"
            ) from failed
