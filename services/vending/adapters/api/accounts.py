"""Accounts: their life, and what is ordered for them."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

from typing import Any

from services.vending.adapters import names
from services.vending.adapters.api import messages
from services.vending.adapters.api.desk import Handlers, said
from services.vending.domain.closings import CloseAccount
from services.vending.domain.lending import SetDebt
from services.vending.domain.orders import KeepPower, PromisePayment, RecordNotice
from wattvend.vending.v1 import vending_pb2 as pb


class Accounts(Handlers):
    """Their methods of VendingService."""

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Any) -> pb.Account:
        """Let an account exist, with credit where a first sale is asked for."""
        outcome = await self._office.open_account(
            await self._desk.request(request, context),
            account_id=request.account_id,
            site_id=names.SITE.id("site", request.site),
            subject_id=request.subject_id or None,
            commodity=request.commodity,
            tariff_id=names.TARIFF.id("tariff", request.tariff),
            policy_id=names.POLICY.id("policy", request.policy),
            first_sale_minor=request.first_sale_minor,
            method=request.method,
        )
        return self._desk.told(messages.account, outcome.state)

    async def CloseAccount(self, request: pb.CloseAccountRequest, context: Any) -> pb.Account:
        """Close an account when metering's echo says that nothing is left."""
        wait_s = self._desk.wait_s(context)
        command = CloseAccount(
            await self._desk.request(request, context), names.ACCOUNT.id("name", request.name)
        )
        outcome = await self._office.close_account(command, wait_s)
        return self._desk.told(messages.account, outcome.state)

    async def GrantEmergencyCredit(
        self, request: pb.GrantEmergencyCreditRequest, context: Any
    ) -> pb.Account:
        """Grant emergency credit, once until it is recovered."""
        outcome = await self._office.grant_emergency_credit(
            await self._desk.request(request, context), names.ACCOUNT.id("name", request.name)
        )
        return self._desk.told(messages.account, outcome.state)

    async def SetDebt(self, request: pb.SetDebtRequest, context: Any) -> pb.Account:
        """Set what an account owes beside its use."""
        command = SetDebt(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.debt_minor,
            request.share_ppm,
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.set_debt(command)).state)

    async def KeepPower(self, request: pb.KeepPowerRequest, context: Any) -> pb.Account:
        """Let arrears cut nobody before an instant, or let them again."""
        command = KeepPower(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            said(request, "until_ms"),
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.order_for(command)).state)

    async def PromisePayment(self, request: pb.PromisePaymentRequest, context: Any) -> pb.Account:
        """Let nobody be cut before an instant, for the rest is promised."""
        command = PromisePayment(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.until_ms,
            request.reason,
        )
        return self._desk.told(messages.account, (await self._office.order_for(command)).state)

    async def RecordNotice(self, request: pb.RecordNoticeRequest, context: Any) -> pb.Account:
        """Take down what became of a notice."""
        command = RecordNotice(
            await self._desk.request(request, context),
            names.ACCOUNT.id("name", request.name),
            request.notice_id,
            request.outcome,
        )
        return self._desk.told(messages.account, (await self._office.order_for(command)).state)

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.Account:
        """Return an account as the book has it now."""
        return self._desk.told(
            messages.account, await self._office.account(names.ACCOUNT.id("name", request.name))
        )
