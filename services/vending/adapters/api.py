"""wattvend.vending.v1 over gRPC: from messages to commands, from outcomes to messages. No rules."""

# ruff: noqa: N802, ARG002 - names and parameters are those of the generated servicer

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

from services.common.kernel.clock import Clock
from services.common.kernel.errors import Bug
from services.common.kernel.paging import cursor_of, page_size_of, token_of
from services.common.runtime import points
from services.common.runtime.grpc import Call
from services.vending.adapters import messages
from services.vending.application.book import Outcome
from services.vending.application.gathering import Gathering
from services.vending.application.office import Office
from services.vending.application.receipts import Paper
from services.vending.domain import checks
from services.vending.domain.account import Account, CloseAccount, Sell, SetDebt
from services.vending.domain.approval import Approve, Decline, Proposal
from services.vending.domain.authority import PublishAuthority
from services.vending.domain.corrections import AdjustCredit, RefundCredit, ReverseSale, WriteOff
from services.vending.domain.decisions import Request, fingerprint
from services.vending.domain.events import CreditRefunded, CreditSold, SaleReversed
from services.vending.domain.gateway import Gateway
from services.vending.domain.meter import ForceRelay, Meter, ResolveReading
from services.vending.domain.orders import KeepPower, PromisePayment, RecordNotice
from services.vending.domain.origin import Origin
from services.vending.domain.payment import CancelSale, ConfirmSale, Payment, ReserveSale
from services.vending.domain.policy import Policy, PublishPolicy
from services.vending.domain.site import HoldCuts, RegisterSite, ReleaseCuts, Site
from services.vending.domain.tariff import PublishTariff, Tariff
from services.vending.metrics import Metrics
from wattvend.vending.v1 import vending_pb2 as pb
from wattvend.vending.v1 import vending_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["VendingService"].full_name
ANSWER_MARGIN_S = 0.5
"""What is kept of a call's deadline to send the answer that nothing came."""


@cache
def _content_of(message: Any) -> list[tuple[str, bool]]:
    """Return name and has_presence of a message's fields, less request_id."""
    fields = message.fields
    return [(field.name, field.has_presence) for field in fields if field.name != "request_id"]


def fingerprints(message: Any) -> tuple[bytes, bytes]:
    """Return that of what is set in a message, and that of all its fields.

    The first stays when the message gains a field, so a repeat is one across an upgrade too. The
    second is what releases until now recorded: their requests may be repeated after this one's.
    """
    name = message.DESCRIPTOR.name
    is_set = [(field.name, value) for field, value in message.ListFields()]
    every = [
        (field, None if has_presence and not message.HasField(field) else getattr(message, field))
        for field, has_presence in _content_of(message.DESCRIPTOR)
    ]
    content = [part for part in is_set if part[0] != "request_id"]
    return fingerprint(name, *content), fingerprint(name, *every)


class VendingApi(vending_pb2_grpc.VendingServiceServicer):
    """The servicer. Errors are raised; services.common.runtime.grpc.Guard maps them.

    `context` of every method is the Guard's Call.
    """

    def __init__(
        self,
        office: Office,
        clock: Clock,
        metrics: Metrics,
        book_epoch: Callable[[], int],
        close_wait_s: float,
    ) -> None:
        """Answer for `office`; `close_wait_s`: how long a closing waits for metering's echo."""
        self._office = office
        self._gathering = Gathering()
        self._clock = clock
        self._metrics = metrics
        self._book_epoch = book_epoch
        self._close_wait_s = close_wait_s

    async def _request(self, message: Any, call: Call) -> Request:
        """Return who asks what, when it is its turn."""
        await self._gathering.turn()
        of_set, of_all = fingerprints(message)
        if call.actor:
            checks.check_actor(call.actor)
        return Request(
            call.caller,
            checks.request_id_of(message.request_id),
            of_set,
            self._clock.now_ms(),
            of_all,
            Origin(call.caller, call.actor, call.peer),
        )

    def _version(self, revision: int) -> pb.BookVersion:
        return pb.BookVersion(book_epoch=self._book_epoch(), revision=revision)

    async def RegisterSite(self, request: pb.RegisterSiteRequest, context: Any) -> pb.Site:
        """Let a site exist."""
        command = RegisterSite(
            await self._request(request, context),
            request.site_id,
            request.display_name,
            request.zone,
            request.currency,
            request.legal_entity,
            request.cuts_per_minute,
        )
        return self._site((await self._office.register_site(command)).state)

    async def HoldCuts(self, request: pb.HoldCutsRequest, context: Any) -> pb.Site:
        """Hold the cuts of a site."""
        command = HoldCuts(await self._request(request, context), request.site_id, request.reason)
        return self._site((await self._office.hold_cuts(command)).state)

    async def ReleaseCuts(self, request: pb.ReleaseCutsRequest, context: Any) -> pb.Site:
        """Let cuts of a site be sent again."""
        command = ReleaseCuts(
            await self._request(request, context), request.site_id, request.reason
        )
        return self._site((await self._office.release_cuts(command)).state)

    async def RegisterGateway(self, request: pb.RegisterGatewayRequest, context: Any) -> pb.Gateway:
        """Let a gateway exist."""
        outcome = await self._office.register_gateway(
            await self._request(request, context),
            request.gateway_id,
            request.site_id,
            request.protocol,
            request.address,
        )
        return self._gateway(outcome.state)

    async def RegisterMeter(self, request: pb.RegisterMeterRequest, context: Any) -> pb.Meter:
        """Let a meter exist, its house's."""
        outcome = await self._office.register_meter(
            await self._request(request, context),
            meter_id=request.meter_id,
            serial=request.serial,
            gateway_id=request.gateway_id,
            unit=request.unit,
            profile=request.profile,
            commodity=request.commodity,
            ratio=request.ratio,
            max_power_w=_said(request, "max_power_w"),
        )
        return self._meter(outcome.state)

    async def PublishTariff(self, request: pb.PublishTariffRequest, context: Any) -> pb.Tariff:
        """Publish a version of a tariff: a price, or a plan."""
        command = PublishTariff(
            await self._request(request, context),
            request.tariff_id,
            request.commodity,
            request.currency,
            request.legal_entity,
            request.price_micro,
            _said(request, "plan"),
            request.effective_at_ms,
            self._office.terms.tariff_lead_ms,
        )
        return self._tariff((await self._office.publish_tariff(command)).state)

    async def PublishPolicy(self, request: pb.PublishPolicyRequest, context: Any) -> pb.Policy:
        """Publish a version of a policy."""
        command = PublishPolicy(
            await self._request(request, context),
            request.policy_id,
            request.currency,
            request.alarm_1_minor,
            request.alarm_2_minor,
            request.overdraft_minor,
            request.restore_minor,
            request.lease_ms,
            request.max_evidence_age_ms,
            request.emergency_minor,
            _said(request, "rules"),
            request.ceiling_minor,
            request.fee_ppm,
            request.fee_minor,
        )
        return self._policy((await self._office.publish_policy(command)).state)

    async def OpenAccount(self, request: pb.OpenAccountRequest, context: Any) -> pb.Account:
        """Let an account exist, with credit where a first sale is asked for."""
        outcome = await self._office.open_account(
            await self._request(request, context),
            account_id=request.account_id,
            site_id=request.site_id,
            subject_id=request.subject_id or None,
            commodity=request.commodity,
            tariff_id=request.tariff_id,
            policy_id=request.policy_id,
            first_sale_minor=request.first_sale_minor,
            method=request.method,
        )
        return self._account(outcome.state)

    async def AssignMeter(self, request: pb.AssignMeterRequest, context: Any) -> pb.Meter:
        """Give a house's meter to an account."""
        outcome = await self._office.assign_meter(
            await self._request(request, context),
            request.meter_id,
            request.account_id,
            _said(request, "register_milli"),
        )
        return self._meter(outcome.state)

    async def ReleaseMeter(self, request: pb.ReleaseMeterRequest, context: Any) -> pb.Meter:
        """Give a meter back to its house."""
        outcome = await self._office.release_meter(
            await self._request(request, context),
            request.meter_id,
            _said(request, "register_milli"),
        )
        return self._meter(outcome.state)

    async def ReplaceMeter(self, request: pb.ReplaceMeterRequest, context: Any) -> pb.Meter:
        """Let another device, or a register that began anew, count on."""
        outcome = await self._office.replace_meter(
            await self._request(request, context),
            meter_id=request.meter_id,
            closing_register_milli=request.closing_register_milli,
            opening_register_milli=request.opening_register_milli,
            serial=_said(request, "serial"),
            unit=_said(request, "unit"),
            profile=_said(request, "profile"),
            ratio=_said(request, "ratio"),
            max_power_w=_said(request, "max_power_w"),
            reason=request.reason,
        )
        return self._meter(outcome.state)

    async def ChangeRatio(self, request: pb.ChangeRatioRequest, context: Any) -> pb.Meter:
        """Let the register count for another energy."""
        outcome = await self._office.change_ratio(
            await self._request(request, context),
            request.meter_id,
            request.ratio,
            _said(request, "register_milli"),
            request.reason,
        )
        return self._meter(outcome.state)

    async def ResolveReading(self, request: pb.ResolveReadingRequest, context: Any) -> pb.Meter:
        """Say what a held reading is."""
        command = ResolveReading(
            await self._request(request, context),
            request.meter_id,
            request.reading_id,
            request.resolution,
            request.reason,
        )
        return self._meter((await self._office.order(command)).state)

    async def ForceRelay(self, request: pb.ForceRelayRequest, context: Any) -> pb.Meter:
        """Let a relay be so whatever the balance, or as the balance says again."""
        command = ForceRelay(
            await self._request(request, context),
            request.meter_id,
            request.position,
            request.reason,
        )
        return self._meter((await self._office.order(command)).state)

    async def Sell(self, request: pb.SellRequest, context: Any) -> pb.SellResponse:
        """Sell credit; the answer is durable."""
        with self._metrics.sale.time():
            command = Sell(
                await self._request(request, context),
                request.account_id,
                request.amount_minor,
                request.method,
                request.energy_milli,
            )
            outcome = await self._office.sell(command)
        points.point("answering")
        return self._sold(outcome)

    async def QuoteSale(self, request: pb.QuoteSaleRequest, context: Any) -> pb.QuoteSaleResponse:
        """Return what energy costs an account now."""
        quoted, of = await self._office.quote(request.account_id, request.energy_milli)
        return pb.QuoteSaleResponse(
            energy_milli=quoted.energy_milli,
            price_micro=quoted.price_micro,
            amount_minor=quoted.amount_minor,
            fee_minor=quoted.fee_minor,
            currency=of.currency,
        )

    async def GetReceipt(
        self, request: pb.GetReceiptRequest, context: Any
    ) -> pb.GetReceiptResponse:
        """Return a receipt with its number."""
        paper = await self._office.receipts.paper(request.receipt_id)
        event = paper.event
        answer = pb.GetReceiptResponse(number=paper.number, other_number=paper.other_number or 0)
        match event:
            case CreditSold():
                answer.receipt.CopyFrom(_receipt(event))
            case SaleReversed():
                answer.reversal.CopyFrom(messages.reversal(event))
            case CreditRefunded():
                answer.refund.CopyFrom(messages.refund(event))
        return answer

    async def PrintReceipt(
        self, request: pb.PrintReceiptRequest, context: Any
    ) -> pb.PrintReceiptResponse:
        """Return a receipt as PDF."""
        paper = await self._office.receipts.paper(request.receipt_id)
        pdf = await asyncio.to_thread(_printed, paper)
        return pb.PrintReceiptResponse(number=paper.number, pdf=pdf)

    async def ReserveSale(self, request: pb.ReserveSaleRequest, context: Any) -> pb.Payment:
        """Ask whether a sale could be made."""
        command = ReserveSale(
            await self._request(request, context),
            request.transaction_id,
            request.account_id,
            request.amount_minor,
            request.method,
            request.lasts_ms,
        )
        return self._payment(await self._office.payments.reserve(command))

    async def ConfirmSale(self, request: pb.ConfirmSaleRequest, context: Any) -> pb.SellResponse:
        """Sell what is paid; the answer is durable."""
        command = ConfirmSale(await self._request(request, context), request.transaction_id)
        return self._sold(await self._office.payments.confirm(command))

    async def CancelSale(self, request: pb.CancelSaleRequest, context: Any) -> pb.Payment:
        """Let a reservation go."""
        command = CancelSale(
            await self._request(request, context), request.transaction_id, request.reason
        )
        return self._payment(await self._office.payments.cancel(command))

    async def GetPayment(self, request: pb.GetPaymentRequest, context: Any) -> pb.Payment:
        """Return a payment of the caller."""
        checks.check_text("transaction_id", request.transaction_id)
        return self._payment(await self._office.payments.of(context.caller, request.transaction_id))

    async def ReverseSale(
        self, request: pb.ReverseSaleRequest, context: Any
    ) -> pb.ReverseSaleResponse:
        """Take a sale back."""
        command = ReverseSale(
            await self._request(request, context),
            request.account_id,
            request.receipt_id,
            request.reason,
        )
        outcome = await self._office.correct(command)
        taken_back = outcome.event
        if not isinstance(taken_back, SaleReversed):
            raise Bug(f"a reversal came to {taken_back}")
        return pb.ReverseSaleResponse(
            reversal=messages.reversal(taken_back),
            credited_nano=taken_back.credited_nano,
            version=self._version(outcome.revision),
        )

    async def RefundCredit(
        self, request: pb.RefundCreditRequest, context: Any
    ) -> pb.RefundCreditResponse:
        """Pay credit out when metering's echo says what is left."""
        wait_s = self._wait_s(context)
        command = RefundCredit(
            await self._request(request, context),
            request.account_id,
            request.amount_minor,
            request.method,
            request.reason,
        )
        outcome = await self._office.refund(command, wait_s)
        paid = outcome.event
        if not isinstance(paid, CreditRefunded):
            raise Bug(f"a refund came to {paid}")
        return pb.RefundCreditResponse(
            refund=messages.refund(paid),
            credited_nano=paid.credited_nano,
            version=self._version(outcome.revision),
        )

    def _wait_s(self, call: Call) -> float:
        """Return how long a call may wait for metering's echo."""
        remaining_s = call.remaining_s
        wait_s = self._close_wait_s if remaining_s is None else remaining_s
        return max(0.0, wait_s - ANSWER_MARGIN_S)

    async def AdjustCredit(self, request: pb.AdjustCreditRequest, context: Any) -> pb.Account:
        """Set the credit of an account right."""
        command = AdjustCredit(
            await self._request(request, context),
            request.account_id,
            request.amount_minor,
            request.reason,
        )
        return self._account((await self._office.correct(command)).state)

    async def WriteOff(self, request: pb.WriteOffRequest, context: Any) -> pb.Account:
        """Give up what an account owes."""
        command = WriteOff(
            await self._request(request, context),
            request.account_id,
            request.kind,
            request.amount_minor,
            request.reason,
        )
        return self._account((await self._office.correct(command)).state)

    async def GrantEmergencyCredit(
        self, request: pb.GrantEmergencyCreditRequest, context: Any
    ) -> pb.Account:
        """Grant emergency credit, once until it is recovered."""
        outcome = await self._office.grant_emergency_credit(
            await self._request(request, context), request.account_id
        )
        return self._account(outcome.state)

    async def SetDebt(self, request: pb.SetDebtRequest, context: Any) -> pb.Account:
        """Set what an account owes beside its use."""
        command = SetDebt(
            await self._request(request, context),
            request.account_id,
            request.debt_minor,
            request.share_ppm,
            request.reason,
        )
        return self._account((await self._office.set_debt(command)).state)

    async def CloseAccount(self, request: pb.CloseAccountRequest, context: Any) -> pb.Account:
        """Close an account when metering's echo says that nothing is left."""
        wait_s = self._wait_s(context)
        command = CloseAccount(await self._request(request, context), request.account_id)
        outcome = await self._office.close_account(command, wait_s)
        return self._account(outcome.state)

    async def KeepPower(self, request: pb.KeepPowerRequest, context: Any) -> pb.Account:
        """Let arrears cut nobody before an instant, or let them again."""
        command = KeepPower(
            await self._request(request, context),
            request.account_id,
            _said(request, "until_ms"),
            request.reason,
        )
        return self._account((await self._office.order_for(command)).state)

    async def PromisePayment(self, request: pb.PromisePaymentRequest, context: Any) -> pb.Account:
        """Let nobody be cut before an instant, for the rest is promised."""
        command = PromisePayment(
            await self._request(request, context),
            request.account_id,
            request.until_ms,
            request.reason,
        )
        return self._account((await self._office.order_for(command)).state)

    async def RecordNotice(self, request: pb.RecordNoticeRequest, context: Any) -> pb.Account:
        """Take down what became of a notice."""
        command = RecordNotice(
            await self._request(request, context),
            request.account_id,
            request.notice_id,
            request.outcome,
        )
        return self._account((await self._office.order_for(command)).state)

    async def PublishAuthority(
        self, request: pb.PublishAuthorityRequest, context: Any
    ) -> pb.Authority:
        """Publish what one person may do alone at a legal entity."""
        command = PublishAuthority(
            await self._request(request, context),
            request.legal_entity,
            request.currency,
            request.rules,
            request.proposals_last_ms,
        )
        outcome = await self._office.publish_authority(command)
        return messages.authority(outcome.state, self._version(outcome.revision))

    async def GetAuthority(self, request: pb.GetAuthorityRequest, context: Any) -> pb.Authority:
        """Return what one person may do alone at a legal entity."""
        state = await self._office.authority(request.legal_entity)
        return messages.authority(state, self._version(state.answers.revision))

    async def Approve(self, request: pb.ApproveRequest, context: Any) -> pb.Approval:
        """Let a proposal happen, and carry it out."""
        command = Approve(
            await self._request(request, context), request.approval_id, request.reason
        )
        return self._approval(await self._office.approvals.approve(command))

    async def Decline(self, request: pb.DeclineRequest, context: Any) -> pb.Approval:
        """Let a proposal not happen."""
        command = Decline(
            await self._request(request, context), request.approval_id, request.reason
        )
        return self._approval(await self._office.approvals.decline(command))

    async def GetApproval(self, request: pb.GetApprovalRequest, context: Any) -> pb.Approval:
        """Return a proposal."""
        return self._approval(await self._office.approvals.proposal(request.approval_id))

    async def ListApprovals(
        self, request: pb.ListApprovalsRequest, context: Any
    ) -> pb.ListApprovalsResponse:
        """Return a page of what waits for a second person, the oldest first."""
        size = page_size_of(request.page_size)
        listed = ("approvals", request.legal_entity)
        after = cursor_of(listed, request.page_token, (int,))
        found, last = await self._office.approvals.pending(
            request.legal_entity, int(after[0]) if after else 0, size
        )
        return pb.ListApprovalsResponse(
            approvals=map(self._approval, found),
            next_page_token=token_of(listed, (last,)) if last else "",
        )

    async def GetAccount(self, request: pb.GetAccountRequest, context: Any) -> pb.Account:
        """Return an account as the book has it now."""
        return self._account(await self._office.account(request.account_id))

    async def GetMeter(self, request: pb.GetMeterRequest, context: Any) -> pb.Meter:
        """Return a meter as the book has it now."""
        return self._meter(await self._office.meter(request.meter_id))

    # --- messages ---------------------------------------------------------------------------------

    def _sold(self, outcome: Outcome[Account]) -> pb.SellResponse:
        sold = outcome.event
        if not isinstance(sold, CreditSold):
            raise Bug(f"a sale came to {sold}")
        return pb.SellResponse(
            receipt=_receipt(sold),
            credited_nano=sold.credited_nano,
            version=self._version(outcome.revision),
        )

    def _payment(self, state: Payment) -> pb.Payment:
        return messages.payment(state, self._version(state.answers.revision))

    def _approval(self, state: Proposal) -> pb.Approval:
        return messages.approval(state, self._version(state.answers.revision))

    def _site(self, state: Site) -> pb.Site:
        return pb.Site(
            site_id=state.site_id,
            display_name=state.display_name,
            zone=state.zone,
            currency=state.currency,
            legal_entity=state.legal_entity,
            cuts_held=state.cuts_held,
            cuts_per_minute=state.cuts_per_minute,
            version=self._version(state.answers.revision),
        )

    def _gateway(self, state: Gateway) -> pb.Gateway:
        return pb.Gateway(
            gateway_id=state.gateway_id,
            site_id=state.site_id,
            protocol=state.protocol,
            address=state.address,
            version=self._version(state.answers.revision),
        )

    def _meter(self, state: Meter) -> pb.Meter:
        return pb.Meter(
            meter_id=state.meter_id,
            serial=state.serial,
            site_id=state.site_id,
            gateway_id=state.gateway_id,
            unit=state.unit,
            profile=state.profile,
            commodity=state.commodity,
            ratio=state.ratio,
            epoch=state.epoch,
            account_id="" if state.is_house else state.account_id,
            shard=state.shard,
            opening_register_milli=state.opening_register_milli,
            max_power_w=state.max_power_w,
            register_max_milli=state.register_max_milli,
            forced=state.forced or "",
            version=self._version(state.answers.revision),
        )

    def _tariff(self, state: Tariff) -> pb.Tariff:
        return pb.Tariff(
            tariff_id=state.tariff_id,
            tariff_version=state.version,
            commodity=state.commodity,
            currency=state.currency,
            legal_entity=state.legal_entity,
            price_micro=state.price_micro,
            plan=state.plan,
            effective_at_ms=state.effective_at_ms,
            version=self._version(state.answers.revision),
        )

    def _policy(self, state: Policy) -> pb.Policy:
        currency = checks.currency_named(state.currency)
        minor = {
            f"{name}_minor": getattr(state, f"{name}_nano") // currency.nano_per_minor
            for name in ("alarm_1", "alarm_2", "overdraft", "restore", "emergency")
        }
        return pb.Policy(
            policy_id=state.policy_id,
            policy_version=state.version,
            currency=state.currency,
            lease_ms=state.lease_ms,
            max_evidence_age_ms=state.max_evidence_age_ms,
            rules=state.rules,
            ceiling_minor=(state.ceiling_nano or 0) // currency.nano_per_minor,
            fee_ppm=state.fee_ppm,
            fee_minor=state.fee_minor,
            version=self._version(state.answers.revision),
            **minor,
        )

    def _account(self, state: Account) -> pb.Account:
        return pb.Account(
            account_id=state.account_id,
            site_id=state.site_id,
            subject_id=state.subject_id or "",
            status=state.status.value,
            shard=state.shard,
            currency=state.currency,
            minor_decimals=state.minor_decimals,
            legal_entity=state.legal_entity,
            commodity=state.commodity,
            tariff_id=state.tariff_id,
            policy_id=state.policy_id,
            credited_nano=state.credited_nano,
            held_nano=state.held_nano,
            meters=[
                pb.AccountMeter(
                    meter_id=meter.meter_id,
                    epoch=meter.epoch,
                    opening_register_milli=meter.opening_register_milli,
                )
                for meter in state.meters
            ],
            emergency_minor=state.owed.emergency_minor,
            debt_minor=state.owed.debt_minor,
            debt_share_ppm=state.owed.debt_share_ppm,
            keep_power_until_ms=state.orders.keep_power_until_ms,
            promise_until_ms=state.orders.promise_until_ms,
            notice_id=state.orders.notice_id or "",
            notice_outcome=state.orders.notice_outcome or "",
            version=self._version(state.answers.revision),
        )


def _receipt(sold: CreditSold) -> pb.Receipt:
    emergency_minor = sold.recovered_emergency_minor or 0
    debt_minor = sold.recovered_debt_minor or 0
    fee_minor = sold.fee_minor or 0
    return pb.Receipt(
        receipt_id=sold.receipt_id,
        account_id=sold.account_id,
        amount_minor=sold.amount_minor,
        currency=sold.currency,
        legal_entity=sold.legal_entity,
        method=sold.method,
        sold_at_ms=sold.occurred_at_ms,
        recovered_emergency_minor=emergency_minor,
        recovered_debt_minor=debt_minor,
        credit_minor=sold.amount_minor - fee_minor - emergency_minor - debt_minor,
        emergency_left_minor=sold.emergency_left_minor or 0,
        debt_left_minor=sold.debt_left_minor or 0,
        fee_minor=fee_minor,
        energy_milli=sold.energy_milli or 0,
        price_micro=sold.price_micro or 0,
    )


def _printed(paper: Paper) -> bytes:
    # What it takes would cost every start a second and 28 MB, for what is asked now and then.
    from services.vending.adapters import receipt_pdf  # noqa: PLC0415

    return receipt_pdf.printed(paper)


def _said(request: Any, name: str) -> Any:
    """Return an optional field of a request; None where the caller left it out."""
    return getattr(request, name) if request.HasField(name) else None
