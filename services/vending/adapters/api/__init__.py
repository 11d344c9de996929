"""wattvend.vending.v1 over gRPC: from messages to commands, from outcomes to messages. No rules.

A module for each kind of thing; what they share is in `desk`. A service of its own has a servicer
of its own, and a line in SERVICES.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from services.common.kernel.values import value_class
from services.vending.adapters.api import batches, closings, holds, openings, operations
from services.vending.adapters.api.accounts import Accounts
from services.vending.adapters.api.approvals import Approvals
from services.vending.adapters.api.changes import AccountApi
from services.vending.adapters.api.corrections import Corrections
from services.vending.adapters.api.desk import Desk, Handlers
from services.vending.adapters.api.documents import DocumentApi
from services.vending.adapters.api.meters import Meters
from services.vending.adapters.api.payments import Payments
from services.vending.adapters.api.prices import Prices
from services.vending.adapters.api.receipts import Receipts
from services.vending.adapters.api.sales import Sales
from services.vending.adapters.api.sites import Sites
from wattvend.vending.v1 import (
    accounts_pb2,
    accounts_pb2_grpc,
    batches_pb2_grpc,
    closings_pb2_grpc,
    documents_pb2,
    documents_pb2_grpc,
    openings_pb2_grpc,
    vending_pb2_grpc,
)
from wattvend.vending.v1 import vending_pb2 as pb


class VendingApi(
    Sites,
    Meters,
    Prices,
    Accounts,
    Sales,
    Corrections,
    Payments,
    Receipts,
    Approvals,
    vending_pb2_grpc.VendingServiceServicer,
):
    """The servicer of VendingService."""


@value_class
class Service:
    """A gRPC service: its full name, what handles it, and what generated code adds it with."""

    name: str
    handlers: Callable[[Desk], Handlers]
    add: Callable[[Any, Any], None]


OPERATIONS: dict[str, Callable[[Desk], operations.Kind]] = {
    batches.COLLECTION: batches.BatchOperations,
    closings.COLLECTION: closings.ClosingOperations,
    holds.REFUNDS: partial(holds.HoldOperations, are_transfers=False),
    holds.TRANSFERS: partial(holds.HoldOperations, are_transfers=True),
    openings.COLLECTION: openings.OpeningOperations,
}
"""What goes on after its call was answered: collection below `operations/` → its processes."""
SERVICES = (
    Service(
        pb.DESCRIPTOR.services_by_name["VendingService"].full_name,
        VendingApi,
        vending_pb2_grpc.add_VendingServiceServicer_to_server,
    ),
    Service(
        batches.SERVICE_NAME,
        batches.BatchApi,
        batches_pb2_grpc.add_BatchServiceServicer_to_server,
    ),
    Service(
        closings.SERVICE_NAME,
        closings.ClosingApi,
        closings_pb2_grpc.add_ClosingServiceServicer_to_server,
    ),
    Service(
        openings.SERVICE_NAME,
        openings.OpeningApi,
        openings_pb2_grpc.add_OpeningServiceServicer_to_server,
    ),
    Service(
        operations.SERVICE_NAME,
        partial(operations.OperationsApi, OPERATIONS),
        operations.add_to_server,
    ),
    Service(
        accounts_pb2.DESCRIPTOR.services_by_name["AccountService"].full_name,
        AccountApi,
        accounts_pb2_grpc.add_AccountServiceServicer_to_server,
    ),
    Service(
        documents_pb2.DESCRIPTOR.services_by_name["DocumentService"].full_name,
        DocumentApi,
        documents_pb2_grpc.add_DocumentServiceServicer_to_server,
    ),
)
NAMES = tuple(service.name for service in SERVICES)


def register(desk: Desk, server: Any) -> None:
    """Add every service of vending to a server."""
    for service in SERVICES:
        service.add(service.handlers(desk), server)
