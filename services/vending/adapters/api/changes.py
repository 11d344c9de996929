"""The life of an account: what it is under, and whose it is."""

# ruff: noqa: N802 - names are those of the generated servicer

from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from wattvend.vending.v1 import accounts_pb2 as pb
from wattvend.vending.v1 import accounts_pb2_grpc, vending_pb2


class AccountApi(Handlers, accounts_pb2_grpc.AccountServiceServicer):
    """The servicer of AccountService."""

    async def ChangeTerms(
        self, request: pb.ChangeTermsRequest, context: Any
    ) -> vending_pb2.Account:
        """Give an account another tariff, another policy, or both."""
        command = ChangeTerms(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            names.TARIFF.id_if("tariff", request.tariff) or None,
            names.POLICY.id_if("policy", request.policy) or None,
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.change(command)).state)

    async def ChangeTenant(
        self, request: pb.ChangeTenantRequest, context: Any
    ) -> vending_pb2.Account:
        """Let an account be another person's."""
        command = ChangeTenant(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.subject_id or None,
            request.with_owed,
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.change(command)).state)
