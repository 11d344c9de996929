"""The life of an account: what it is under, whose it is, what it gives to another one."""

# ruff: noqa: N802 - names are those of the generated servicer

from typing import Any

from services.common.kernel.errors import Bug
from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers, said
from services.vending.domain.changes import ChangeTenant, ChangeTerms
from services.vending.domain.corrections import TransferCredit
from services.vending.domain.events.refunds import TransferArrived
from services.vending.domain.orders import ThawAccount
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

    async def Thaw(self, request: pb.ThawRequest, context: Any) -> vending_pb2.Account:
        """Let metering charge an account again that it froze."""
        command = ThawAccount(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.order_for(command)).state)

    async def MoveMeter(self, request: pb.MoveMeterRequest, context: Any) -> vending_pb2.Meter:
        """Give a meter of an account to another one."""
        outcome = await self._office.assign_meter(
            await self._desk.request(request, context),
            names.METER.id("name", request.name),
            names.ACCOUNT.id("to_account", request.to_account),
            said(request, "register_milli"),
            names.ACCOUNT.id("from_account", request.from_account),
        )
        return self._desk.told(messages.meter, outcome.state)

    async def TransferCredit(
        self, request: pb.TransferCreditRequest, context: Any
    ) -> pb.TransferCreditResponse:
        """Give credit to another account when metering's echo says what is left."""
        wait_s = self._desk.wait_s(context)
        command = TransferCredit(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            names.ACCOUNT.id("to_account", request.to_account),
            request.amount_minor,
            request.reason,
        )
        outcome = await self._office.transfer(command, wait_s)
        arrived = outcome.event
        if not isinstance(arrived, TransferArrived):
            raise Bug(f"a transfer came to {arrived}")
        return pb.TransferCreditResponse(
            account=names.ACCOUNT.name(arrived.account_id),
            to_account=names.ACCOUNT.name(arrived.to_account_id),
            amount_minor=arrived.amount_minor,
            currency=outcome.state.currency,
            version=self._desk.version(outcome.revision),
        )
