"""What stands in the book, as the messages of wattvend.vending.v1. No rules."""

from services.common.kernel.errors import Bug
from services.vending.adapters import names
from services.vending.application.book import Outcome
from services.vending.domain import checks
from services.vending.domain.account import Account
from services.vending.domain.approval import Proposal
from services.vending.domain.authority import Action, Authority, limit_of, rules_text
from services.vending.domain.events.corrections import SaleReversed
from services.vending.domain.events.refunds import CreditRefunded
from services.vending.domain.events.sales import CreditSold
from services.vending.domain.gateway import Gateway
from services.vending.domain.meter import Meter
from services.vending.domain.payment import REVERSED, Payment
from services.vending.domain.policy import Policy
from services.vending.domain.site import Site
from services.vending.domain.tariff import Tariff
from wattvend.vending.v1 import vending_pb2 as pb


def authority(state: Authority, version: pb.BookVersion) -> pb.Authority:
    """Return what one person may do alone, of every action."""
    return pb.Authority(
        name=names.AUTHORITY.name(state.legal_entity),
        authority_version=state.version,
        currency=state.currency,
        rules=rules_text({action.value: limit_of(state, action) for action in Action}),
        proposals_last_ms=state.proposals_last_ms,
        version=version,
    )


def approval(state: Proposal, version: pb.BookVersion) -> pb.Approval:
    """Return a proposal."""
    return pb.Approval(
        name=names.APPROVAL.name(state.approval_id),
        status=state.status.value,
        legal_entity=names.LEGAL_ENTITY.name(state.legal_entity),
        action=state.action,
        target=names.of_stream(state.target),
        command=state.command,
        content=state.content,
        proposed_by=state.proposer.who,
        proposed_at_ms=state.proposed_at_ms,
        expires_at_ms=state.expires_at_ms,
        decided_by=state.decider.who if state.decider else "",
        reason=state.reason,
        failure_reason=state.failure.reason if state.failure else "",
        failure_message=state.failure.message if state.failure else "",
        version=version,
    )


def reversal(event: SaleReversed) -> pb.Reversal:
    """Return the document of a sale that was taken back."""
    given_up_minor = event.given_up_debt_minor or 0
    owed_minor = event.returned_emergency_minor + event.returned_debt_minor + given_up_minor
    fee_minor = event.returned_fee_minor
    return pb.Reversal(
        receipt=names.RECEIPT.name(event.receipt_id),
        reversed_receipt=names.RECEIPT.name(event.reversed_receipt_id),
        account=names.ACCOUNT.name(event.account_id),
        amount_minor=event.amount_minor,
        currency=event.currency,
        legal_entity=names.LEGAL_ENTITY.name(event.legal_entity),
        method=event.method,
        reversed_at_ms=event.occurred_at_ms,
        reason=event.reason,
        returned_emergency_minor=event.returned_emergency_minor,
        returned_debt_minor=event.returned_debt_minor,
        credit_minor=event.amount_minor - fee_minor - owed_minor,
        fee_minor=fee_minor,
        emergency_left_minor=event.emergency_left_minor,
        debt_left_minor=event.debt_left_minor,
        given_up_debt_minor=given_up_minor,
    )


def payment(state: Payment, version: pb.BookVersion, reversal_id: str = "") -> pb.Payment:
    """Return a payment of an outside seller. `reversal_id`: the receipt that reversed its sale."""
    return pb.Payment(
        name=names.PAYMENT.name(state.seller.caller, state.transaction_id),
        uid=state.payment_id,
        account=names.ACCOUNT.name(state.account_id),
        amount_minor=state.amount_minor,
        currency=state.currency,
        method=state.method,
        status=REVERSED if reversal_id else state.status.value,
        reserved_at_ms=state.reserved_at_ms,
        expires_at_ms=state.expires_at_ms,
        receipt=names.RECEIPT.name_if(state.receipt_id),
        refusal_reason=state.failure.reason if state.failure else "",
        refusal_message=state.failure.message if state.failure else "",
        version=version,
        reversal=names.RECEIPT.name_if(reversal_id),
    )


def refund(event: CreditRefunded) -> pb.Refund:
    """Return the document of credit that was paid out."""
    return pb.Refund(
        receipt=names.RECEIPT.name(event.receipt_id),
        account=names.ACCOUNT.name(event.account_id),
        amount_minor=event.amount_minor,
        currency=event.currency,
        legal_entity=names.LEGAL_ENTITY.name(event.legal_entity),
        method=event.method,
        refunded_at_ms=event.occurred_at_ms,
        reason=event.reason,
        charged_nano=event.charged_nano,
        account_sequence=event.account_sequence,
    )


def site(state: Site, version: pb.BookVersion) -> pb.Site:
    """Return a site."""
    return pb.Site(
        name=names.SITE.name(state.site_id),
        display_name=state.display_name,
        zone=state.zone,
        currency=state.currency,
        legal_entity=names.LEGAL_ENTITY.name(state.legal_entity),
        cuts_held=state.cuts_held,
        cuts_per_minute=state.cuts_per_minute,
        version=version,
        parent=names.SITE.name_if(state.parent_site_id),
    )


def gateway(state: Gateway, version: pb.BookVersion) -> pb.Gateway:
    """Return a gateway."""
    return pb.Gateway(
        name=names.GATEWAY.name(state.gateway_id),
        site=names.SITE.name(state.site_id),
        protocol=state.protocol,
        address=state.address,
        version=version,
    )


def meter(state: Meter, version: pb.BookVersion) -> pb.Meter:
    """Return a meter."""
    return pb.Meter(
        name=names.METER.name(state.meter_id),
        serial=state.serial,
        site=names.SITE.name(state.site_id),
        gateway=names.GATEWAY.name(state.gateway_id),
        unit=state.unit,
        profile=state.profile,
        commodity=state.commodity,
        ratio=state.ratio,
        epoch=state.epoch,
        account="" if state.is_house else names.ACCOUNT.name(state.account_id),
        shard=state.shard,
        opening_register_milli=state.opening_register_milli,
        max_power_w=state.max_power_w,
        register_max_milli=state.register_max_milli,
        forced=state.forced or "",
        version=version,
    )


def tariff(state: Tariff, version: pb.BookVersion) -> pb.Tariff:
    """Return a tariff."""
    return pb.Tariff(
        name=names.TARIFF.name(state.tariff_id),
        tariff_version=state.version,
        commodity=state.commodity,
        currency=state.currency,
        legal_entity=names.LEGAL_ENTITY.name(state.legal_entity),
        price_micro=state.price_micro,
        plan=state.plan,
        effective_at_ms=state.effective_at_ms,
        version=version,
    )


def policy(state: Policy, version: pb.BookVersion) -> pb.Policy:
    """Return a policy."""
    currency = checks.currency_named(state.currency)
    minor = {
        f"{name}_minor": getattr(state, f"{name}_nano") // currency.nano_per_minor
        for name in ("alarm_1", "alarm_2", "overdraft", "restore", "emergency")
    }
    return pb.Policy(
        name=names.POLICY.name(state.policy_id),
        policy_version=state.version,
        currency=state.currency,
        lease_ms=state.lease_ms,
        max_evidence_age_ms=state.max_evidence_age_ms,
        rules=state.rules,
        ceiling_minor=(state.ceiling_nano or 0) // currency.nano_per_minor,
        fee_ppm=state.fee_ppm,
        fee_minor=state.fee_minor,
        legal_entity=names.LEGAL_ENTITY.name_if(state.legal_entity),
        rounding=state.rounding,
        version=version,
        **minor,
    )


def account(state: Account, version: pb.BookVersion) -> pb.Account:
    """Return an account."""
    return pb.Account(
        name=names.ACCOUNT.name(state.account_id),
        site=names.SITE.name(state.site_id),
        subject_id=state.subject_id or "",
        status=state.status.value,
        shard=state.shard,
        currency=state.currency,
        minor_decimals=state.minor_decimals,
        legal_entity=names.LEGAL_ENTITY.name(state.legal_entity),
        commodity=state.commodity,
        tariff=names.TARIFF.name(state.tariff_id),
        policy=names.POLICY.name(state.policy_id),
        credited_nano=state.credited_nano,
        held_nano=state.held_nano,
        meters=[
            pb.AccountMeter(
                meter=names.METER.name(meter.meter_id),
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
        version=version,
    )


def sale(sold: CreditSold) -> pb.Sale:
    """Return the document of a sale."""
    emergency_minor = sold.recovered_emergency_minor or 0
    debt_minor = sold.recovered_debt_minor or 0
    fee_minor = sold.fee_minor or 0
    return pb.Sale(
        receipt=names.RECEIPT.name(sold.receipt_id),
        account=names.ACCOUNT.name(sold.account_id),
        amount_minor=sold.amount_minor,
        currency=sold.currency,
        legal_entity=names.LEGAL_ENTITY.name(sold.legal_entity),
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


def sold(outcome: Outcome[Account], version: pb.BookVersion) -> pb.SellResponse:
    """Return the answer to a sale."""
    event = outcome.event
    if not isinstance(event, CreditSold):
        raise Bug(f"a sale came to {event}")
    return pb.SellResponse(sale=sale(event), credited_nano=event.credited_nano, version=version)


def receipt(
    event: CreditSold | SaleReversed | CreditRefunded, number: int, other_number: int
) -> pb.Receipt:
    """Return a receipt with its number, 0 while it has none."""
    told = pb.Receipt(
        name=names.RECEIPT.name(event.receipt_id), number=number, other_number=other_number
    )
    match event:
        case CreditSold():
            told.sale.CopyFrom(sale(event))
        case SaleReversed():
            told.reversal.CopyFrom(reversal(event))
        case CreditRefunded():
            told.refund.CopyFrom(refund(event))
    return told
