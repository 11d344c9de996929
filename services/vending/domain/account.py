"""An account: its credit, its meters, its end. Each movement of money is an event of its stream."""

from dataclasses import replace
from enum import StrEnum
from typing import Any

from services.common.kernel.errors import Bug, InvalidInput
from services.common.kernel.ids import column_key, name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import (
    INT64_MAX,
    Currency,
    fits_int64,
    format_nano,
    format_scaled,
    nano_from_minor,
)
from services.common.kernel.values import value_class
from services.common.tariffs.plan import ENERGY_MILLI_MAX
from services.vending.domain import checks, postings, terms
from services.vending.domain.authority import Action, Authority, needs_another
from services.vending.domain.closing import Closing, begun
from services.vending.domain.decisions import (
    Accepted,
    Answers,
    Decision,
    Rejection,
    Request,
    answered,
    changed,
    first_problem,
    stamp,
)
from services.vending.domain.events.accounts import (
    AccountMeterJoined,
    AccountMeterLeft,
    AccountOpened,
    AccountTenantChanged,
    AccountTermsChanged,
    NoticeRecorded,
    PaymentPromised,
    PowerKept,
)
from services.vending.domain.events.closings import (
    AccountClosed,
    AccountCloseRefused,
    AccountClosing,
    AccountSettled,
    ClosingAsked,
    ClosingCancelled,
    ClosingMetersTold,
    ClosingRegisterGiven,
    ClosingTold,
    ClosingUndone,
    MetersClosed,
    MetersClosing,
    RemainderRounded,
)
from services.vending.domain.events.corrections import (
    CorrectionRefused,
    CreditAdjusted,
    OwedWrittenOff,
    SaleReversed,
)
from services.vending.domain.events.event import Event
from services.vending.domain.events.prices import TariffPublished
from services.vending.domain.events.refunds import (
    CreditRefunded,
    CreditTransferred,
    RefundHeld,
    RefundRefused,
    TransferArrived,
    TransferReceived,
    TransferReturned,
)
from services.vending.domain.events.sales import (
    CreditSold,
    DebtSet,
    EmergencyGranted,
    EmergencyRefused,
    SaleRefused,
)
from services.vending.domain.events.usage import UsagePosted
from services.vending.domain.orders import (
    KeepPower,
    Order,
    Orders,
    PromisePayment,
    RecordNotice,
    obeyed,
)
from services.vending.domain.owed import PPM, Owed
from services.vending.domain.policy import Policy
from services.vending.domain.refund import Refunding, refunding
from services.vending.domain.site import Site, site_not_found
from services.vending.domain.tariff import Tariff
from services.vending.domain.usage import PostUsage, Used

METERS_MAX = 256
"""Meters of one account: metering holds an account's row in one piece."""


class Status(StrEnum):
    """open → closing → closed, or open again where something is left."""

    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


@value_class
class JoinedMeter:
    """A meter of the account: since which epoch and register it belongs here, replaced or not."""

    meter_id: str
    epoch: int
    opening_register_milli: int


@value_class
class Tenancy:
    """Whose the account was before: until the event at `until_revision` of its stream."""

    subject_id: str | None
    until_revision: int
    until_ms: int


@value_class
class Account:
    """The folded stream of an account. `credited_nano`: lifetime total.

    `reversed_receipts`: (receipt of a sale, that of its reversal); `refunded_at`: the stream's
    revision at which credit was paid out last, -1: never; `debt_ended_at`, `closed_at`: the one at
    which a person ended a debt, and the account's end; `tenancies`: the ones that ended, oldest
    first.
    """

    answers: Answers
    account_id: str
    account_key: int
    shard: int
    site_id: str
    subject_id: str | None
    currency: str
    minor_decimals: int
    ledger_decimals: int
    legal_entity: str
    commodity: str
    tariff_id: str
    policy_id: str
    status: Status = Status.OPEN
    credited_nano: int = 0
    held_nano: int = 0
    owed: Owed = Owed()
    orders: Orders = Orders()
    meters: tuple[JoinedMeter, ...] = ()
    reversed_receipts: tuple[tuple[str, str], ...] = ()
    closing: Closing | None = None
    refunding: Refunding | None = None
    refunded_at: int = -1
    debt_ended_at: int = -1
    closed_at: int = -1
    used: Used = Used()
    tenancies: tuple[Tenancy, ...] = ()

    def subject_at(self, revision: int) -> str | None:
        """Return whose the account was at a revision of its stream."""
        before = (t.subject_id for t in self.tenancies if revision < t.until_revision)
        return next(before, self.subject_id)

    def has(self, meter_id: str) -> bool:
        """Say whether a meter stands in the account."""
        return any(meter.meter_id == meter_id for meter in self.meters)


@value_class
class OpenAccount:
    """An account shall exist; with `first_sale_minor` > 0 credit is sold in the same append.

    `site`, `tariff`, `policy`: what those ids stand for, None where nothing. `shard` is for life.
    """

    request: Request
    account_id: str
    site_id: str
    subject_id: str | None
    commodity: str
    tariff_id: str
    policy_id: str
    first_sale_minor: int
    method: str
    shard: int
    site: Site | None
    tariff: Tariff | None
    policy: Policy | None

    def __post_init__(self) -> None:
        """Refuse what no account can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_id("site_id", self.site_id)
        checks.check_id("tariff_id", self.tariff_id)
        checks.check_id("policy_id", self.policy_id)
        checks.check_choice("commodity", self.commodity, checks.COMMODITIES)
        if self.subject_id is not None:
            checks.check_subject(self.subject_id)
        if self.first_sale_minor:
            checks.check_amount("first_sale_minor", self.first_sale_minor)
            checks.check_choice("method", self.method, checks.METHODS)


@value_class
class Sell:
    """A sale of credit. `amount_minor` in the account's minor currency unit, > 0.

    With `energy_milli` > 0 it is of what so much energy costs, by the version of the account's
    tariff in force, `tariff`; an amount beside it is what the buyer was told, 0: nothing. `policy`:
    the account's; `is_paid`: the money is there already, so no ceiling keeps it out; `fee_minor`,
    `debt_share_ppm`: what the buyer was promised before he paid, None: what holds now;
    `reserved_at`: at which revision of the stream, None: nothing was.
    """

    request: Request
    account_id: str
    amount_minor: int
    method: str
    energy_milli: int = 0
    policy: Policy | None = None
    tariff: TariffPublished | None = None
    is_paid: bool = False
    fee_minor: int | None = None
    debt_share_ppm: int | None = None
    reserved_at: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no sale can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_between("energy_milli", self.energy_milli, 0, ENERGY_MILLI_MAX)
        if self.amount_minor or not self.energy_milli:
            checks.check_amount("amount_minor", self.amount_minor)
        checks.check_choice("method", self.method, checks.METHODS)


@value_class
class GrantEmergencyCredit:
    """Credit of the account's policy, before it is paid: once, until sales have recovered it.

    `at_most_minor`: what a second person approved, None: it needed none; `policy`: the account's,
    None where there is no account; `authority`: what one person may do alone at the legal entity.
    """

    request: Request
    account_id: str
    policy: Policy | None = None
    at_most_minor: int | None = None
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what is not well formed."""
        checks.check_id("account_id", self.account_id)


@value_class
class SetDebt:
    """What the account shall owe from now on, whatever it owed before; 0 ends it.

    `share_ppm`: of the amount of each sale, what goes to the debt; `reason`: for the books;
    `authority`: what one person may do alone at the legal entity.
    """

    request: Request
    account_id: str
    debt_minor: int
    share_ppm: int
    reason: str
    authority: Authority | None = None

    def __post_init__(self) -> None:
        """Refuse what no debt can be."""
        checks.check_id("account_id", self.account_id)
        checks.check_between("debt_minor", self.debt_minor, 0, INT64_MAX)
        checks.check_between("share_ppm", self.share_ppm, 1 if self.debt_minor else 0, PPM)
        checks.check_text("reason", self.reason)


@value_class
class JoinMeter:
    """A meter whose stream says that it belongs here since `epoch`, from `register_milli` on."""

    request: Request
    account_id: str
    meter_id: str
    epoch: int
    register_milli: int


@value_class
class LeaveMeter:
    """A meter whose stream says that its `epoch` here ended at `register_milli`."""

    request: Request
    account_id: str
    meter_id: str
    epoch: int
    register_milli: int


Command = (
    OpenAccount | Sell | GrantEmergencyCredit | SetDebt | JoinMeter | LeaveMeter | PostUsage | Order
)


def account_not_found(account_id: str) -> Rejection:
    """Return the refusal of a command on an account that is not there."""
    return Rejection(
        Reason.ACCOUNT_NOT_FOUND, f"there is no account {account_id!r}; open it first", "account_id"
    )


def not_open(state: Account) -> Rejection | None:
    """Return why an account takes nothing in; None where it is open."""
    if state.status is Status.OPEN:
        return None
    what = {
        Status.CLOSING: "is being closed; wait until that is answered",
        Status.CLOSED: "is closed; open another account",
    }[state.status]
    return Rejection(Reason.ACCOUNT_NOT_OPEN, f"account {state.account_id} {what}", "account_id")


def no_room(state: Account) -> Rejection | None:
    """Return why an account takes no more meters; None where it does."""
    if len(state.meters) < METERS_MAX:
        return None
    return Rejection(
        Reason.TOO_MANY_METERS,
        f"account {state.account_id} has {METERS_MAX} meters, the most; open another account",
        "account_id",
    )


def decide(state: Account | None, command: Command) -> Decision:  # noqa: C901, PLR0911
    """Return what a command does to an account, or why nothing may happen."""
    if isinstance(command, PostUsage):
        return Accepted(() if state is None else usage_news(state, command))
    if state and (earlier := answered(state.answers, command.request)):
        return earlier
    if isinstance(command, OpenAccount):
        if state:
            return account_exists(command.account_id)
        return _open(command)
    if state is None:
        return account_not_found(command.account_id)
    match command:
        case Sell():
            return _sell(state, command)
        case GrantEmergencyCredit():
            return _grant(state, command)
        case SetDebt():
            return _set_debt(state, command)
        case JoinMeter():
            return not_open(state) or no_room(state) or Accepted((_joined(command),))
        case LeaveMeter():
            return Accepted((_left(command),))
        case KeepPower() | PromisePayment() | RecordNotice():
            return _obey(state, command)


def _open(command: OpenAccount) -> Decision:
    site, tariff, policy = command.site, command.tariff, command.policy
    if site is None:
        return site_not_found(command.site_id)
    if tariff is None:
        return tariff_not_found(command.tariff_id)
    if policy is None:
        return policy_not_found(command.policy_id)
    if problem := unfit(site, command.commodity, tariff, policy):
        return problem
    opening = opened(command, site)
    if not command.first_sale_minor:
        return Accepted((opening,))
    state = evolve(None, opening)
    first = Sell(
        command.request,
        command.account_id,
        command.first_sale_minor,
        command.method,
        policy=command.policy,
    )
    sale = _sale(state, first)
    return sale if isinstance(sale, Rejection) else Accepted((opening, sale))


def opened(command: OpenAccount, site: Site) -> AccountOpened:
    """Return the event of an account that opens at a site."""
    return AccountOpened(
        **stamp(command.request),
        account_id=command.account_id,
        account_key=column_key("account", command.account_id),
        shard=command.shard,
        site_id=command.site_id,
        subject_id=command.subject_id,
        currency=site.currency,
        minor_decimals=site.minor_decimals,
        ledger_decimals=site.ledger_decimals,
        legal_entity=site.legal_entity,
        commodity=command.commodity,
        tariff_id=command.tariff_id,
        policy_id=command.policy_id,
    )


def account_exists(account_id: str) -> Rejection:
    """Return the refusal to open an account that is there."""
    text = f"account {account_id} exists already; choose another account_id"
    return Rejection(Reason.ALREADY_EXISTS, text, "account_id")


def tariff_not_found(tariff_id: str) -> Rejection:
    """Return the refusal of a command that names a tariff that is not there."""
    text = f"there is no tariff {tariff_id!r}; publish it first"
    return Rejection(Reason.TARIFF_NOT_FOUND, text, "tariff_id")


def policy_not_found(policy_id: str) -> Rejection:
    """Return the refusal of a command that names a policy that is not there."""
    text = f"there is no policy {policy_id!r}; publish it first"
    return Rejection(Reason.POLICY_NOT_FOUND, text, "policy_id")


def unfit(site: Site, commodity: str, tariff: Tariff, policy: Policy) -> Rejection | None:
    """Return why an account at a site cannot have a tariff and a policy; None where it can."""
    return first_problem(*misfits(site, commodity, tariff, policy))


def misfits(site: Site, commodity: str, tariff: Tariff, policy: Policy) -> list[Rejection]:
    """Return all that keeps an account at a site from having a tariff and a policy."""

    def same(reason: Reason, what: str, is_: str, wanted: str) -> Rejection | None:
        if is_ == wanted:
            return None
        text = f"{what} is {is_}, the account's is {wanted}: choose one of {wanted}"
        return Rejection(reason, text, what.partition(" ")[0] + "_id")

    problems = (
        same(Reason.CURRENCY_MISMATCH, "tariff currency", tariff.currency, site.currency),
        same(Reason.CURRENCY_MISMATCH, "policy currency", policy.currency, site.currency),
        same(Reason.COMMODITY_MISMATCH, "tariff commodity", tariff.commodity, commodity),
        same(
            Reason.LEGAL_ENTITY_MISMATCH,
            "policy legal entity",
            policy.legal_entity or site.legal_entity,
            site.legal_entity,
        ),
        same(
            Reason.LEGAL_ENTITY_MISMATCH,
            "tariff legal entity",
            tariff.legal_entity,
            site.legal_entity,
        ),
        # Also where the newest version needs no clock: the next one may.
        same(Reason.INVALID_ARGUMENT, "tariff zone", tariff.zone or site.zone, site.zone),
    )
    return [problem for problem in problems if problem]


def _sale(state: Account, command: Sell) -> CreditSold | Rejection:
    currency = checks.currency_named(state.currency)
    amount_minor, price_micro = command.amount_minor, None
    if command.energy_milli:
        quoted = quote_of(state, command.policy, command.tariff, command.energy_milli)
        if isinstance(quoted, Rejection):
            return quoted
        if amount_minor not in (0, quoted.amount_minor):
            return _quote_changed(quoted, currency)
        amount_minor, price_micro = quoted.amount_minor, quoted.price_micro
    try:
        amount_nano = nano_from_minor(amount_minor, currency)
    except InvalidInput as too_large:
        return Rejection(too_large.reason, too_large.message, too_large.field)
    fee_minor, share_ppm = command.fee_minor, command.debt_share_ppm
    if state.status is Status.CLOSED:  # of what is owed nothing else is taken
        fee_minor, share_ppm = terms.FREE, PPM
    if fee_minor is None:
        fee_minor = terms.fee_minor_of(command.policy, amount_minor)
    if fee_minor >= amount_minor:
        fee = format_scaled(fee_minor, currency.minor_decimals)
        text = f"the service fee is {fee} {currency.code}; sell more than that"
        return Rejection(Reason.AMOUNT_BELOW_FEE, text, "amount_minor")
    recovery = state.owed.recovery(amount_minor - fee_minor, share_ppm)
    left = state.owed.after(recovery)
    credit_nano = nano_from_minor(recovery.credit_minor, currency)
    if problem := no_more(state, credit_nano, currency) or _above_ceiling(
        state, command, credit_nano, currency
    ):
        return problem
    return CreditSold(
        **stamp(command.request),
        account_id=state.account_id,
        amount_minor=amount_minor,
        amount_nano=amount_nano,
        credited_nano=state.credited_nano + credit_nano,
        method=command.method,
        receipt_id=str(name_uuid("receipt", *command.request.key)),
        **of_what(state),
        recovered_emergency_minor=recovery.emergency_minor,
        recovered_debt_minor=recovery.debt_minor,
        emergency_left_minor=left.emergency_minor,
        debt_left_minor=left.debt_minor,
        fee_minor=fee_minor,
        energy_milli=command.energy_milli or None,
        price_micro=price_micro,
        postings=postings.of_sale(
            command.method,
            amount_nano,
            recovery.emergency_minor * currency.nano_per_minor,
            recovery.debt_minor * currency.nano_per_minor,
            fee_minor * currency.nano_per_minor,
        ),
    )


def quote_of(
    state: Account, policy: Policy | None, tariff: TariffPublished | None, energy_milli: int
) -> terms.Quote | Rejection:
    """Return what energy costs the account now; or why that cannot be told."""
    currency = checks.currency_named(state.currency)
    price_micro = terms.price_micro_of(tariff)
    if isinstance(price_micro, Rejection):
        return price_micro
    if not price_micro:
        return Rejection(Reason.CANNOT_QUOTE, "energy costs nothing here: there is nothing to sell")
    if state.owed:
        text = f"account {state.account_id} owes, and a sale recovers that first; sell by money"
        return Rejection(Reason.CANNOT_QUOTE, text, "energy_milli")
    quoted = terms.quote(policy, price_micro, energy_milli, currency)
    try:
        nano_from_minor(quoted.amount_minor, currency)
    except InvalidInput as too_large:
        return Rejection(too_large.reason, too_large.message, "energy_milli")
    return quoted


def _quote_changed(quoted: terms.Quote, currency: Currency) -> Rejection:
    amount = format_scaled(quoted.amount_minor, currency.minor_decimals)
    text = f"that energy costs {amount} {currency.code} now; tell the buyer, and sell at that"
    return Rejection(Reason.QUOTE_CHANGED, text, "amount_minor")


def _above_ceiling(
    state: Account, command: Sell, credit_nano: int, currency: Currency
) -> Rejection | None:
    """Return why a sale would let the account have too much at hand; None where it would not.

    What was used is what the book knows: up to a day less than what metering has charged.
    """
    ceiling_nano = command.policy.ceiling_nano if command.policy else None
    if ceiling_nano is None or command.is_paid:
        return None
    at_hand_nano = state.credited_nano - state.used.usage.charged_nano
    if at_hand_nano + credit_nano <= ceiling_nano:
        return None
    room_minor = max(ceiling_nano - at_hand_nano, 0) // currency.nano_per_minor
    ceiling, room = (
        format_scaled(minor, currency.minor_decimals)
        for minor in (ceiling_nano // currency.nano_per_minor, room_minor)
    )
    return Rejection(
        Reason.ABOVE_CEILING,
        f"account {state.account_id} may have {ceiling} {currency.code} at hand: at most {room} "
        "can be credited now, by what the book knows of its use",
        "amount_minor",
    )


def no_more(state: Account, credit_nano: int, currency: Currency) -> Rejection | None:
    """Return why so much more cannot be credited; None where it can."""
    if fits_int64(state.credited_nano + in_transit_nano(state) + credit_nano):
        return None
    return Rejection(
        Reason.AMOUNT_TOO_LARGE,
        f"account {state.account_id} was credited {format_nano(state.credited_nano, currency)}"
        f"; {format_nano(credit_nano, currency)} more do not fit its ledger: open another account",
        "amount_minor",
    )


def in_transit_nano(state: Account) -> int:
    """Return what of a transfer has left the account, and may come back yet."""
    sent_minor = state.refunding.sent_minor if state.refunding else 0
    return sent_minor * checks.currency_named(state.currency).nano_per_minor


def of_what(state: Account) -> dict[str, Any]:
    """Return what every amount says of itself: which money, owed to whom, for what."""
    return {
        "currency": state.currency,
        "legal_entity": state.legal_entity,
        "commodity": state.commodity,
    }


def why_not_sold(state: Account, command: Sell) -> Rejection | None:
    """Return why a sale could not be made now; None where it could."""
    sale = _no_sale(state, command) or _sale(state, command)
    return sale if isinstance(sale, Rejection) else None


def _no_sale(state: Account, command: Sell) -> Rejection | None:
    """Return why an account is not sold to; a closed one pays what it owes, and no more.

    What was promised to a tenant before, or before the account closed, is paid back.
    """
    promised_at = state.answers.revision if command.reserved_at is None else command.reserved_at
    if state.tenancies and promised_at < state.tenancies[-1].until_revision:
        text = f"account {state.account_id} is another tenant's since the sale was reserved"
        return Rejection(Reason.TENANT_CHANGED_SINCE, text, "account_id")
    if promised_at < state.closed_at:
        return not_open(state)
    if state.status is not Status.CLOSED or not state.owed:
        return not_open(state)
    if not command.energy_milli and command.amount_minor <= state.owed.debt_minor:
        return None
    decimals = checks.currency_named(state.currency).minor_decimals
    owed = format_scaled(state.owed.debt_minor, decimals)
    text = f"account {state.account_id} is closed and owes {owed}: it pays that at most"
    return Rejection(Reason.ACCOUNT_NOT_OPEN, text, "amount_minor")


def _sell(state: Account, command: Sell) -> Decision:
    sale = _no_sale(state, command) or _sale(state, command)
    if isinstance(sale, CreditSold):
        return Accepted((sale,))
    refused = SaleRefused(
        **stamp(command.request),
        account_id=state.account_id,
        amount_minor=command.amount_minor,
        reason=sale.reason.value,
        message=sale.message,
        **of_what(state),
    )
    return Accepted((refused,))


def _grant(state: Account, command: GrantEmergencyCredit) -> Decision:
    granted = not_open(state) or _granted(state, command)
    if isinstance(granted, EmergencyGranted):
        return Accepted((granted,))
    if granted.reason is Reason.APPROVAL_REQUIRED:
        return granted
    refused = EmergencyRefused(
        **stamp(command.request),
        account_id=state.account_id,
        reason=granted.reason.value,
        message=granted.message,
    )
    return Accepted((refused,))


def _granted(state: Account, command: GrantEmergencyCredit) -> EmergencyGranted | Rejection:
    policy, currency = command.policy, checks.currency_named(state.currency)
    if policy is None:
        raise Bug(f"account {state.account_id} is open and its policy {state.policy_id} is not")
    if owed_minor := state.owed.emergency_minor:
        owed = format_scaled(owed_minor, currency.minor_decimals)
        return Rejection(
            Reason.EMERGENCY_ALREADY_GRANTED,
            f"account {state.account_id} has {owed} of emergency credit to pay back: "
            "the next sale recovers it",
            "account_id",
        )
    if not policy.emergency_nano:
        return Rejection(
            Reason.NO_EMERGENCY_CREDIT,
            f"policy {policy.policy_id} grants no emergency credit: publish a version that does",
            "account_id",
        )
    amount_minor = at_most(policy.emergency_nano // currency.nano_per_minor, command.at_most_minor)
    amount_nano = amount_minor * currency.nano_per_minor
    problem = no_more(state, amount_nano, currency) or needs_another(
        command.authority, Action.EMERGENCY, amount_minor, state.currency, command.request
    )
    if problem:
        return problem
    return EmergencyGranted(
        **stamp(command.request),
        account_id=state.account_id,
        amount_minor=amount_minor,
        amount_nano=amount_nano,
        credited_nano=state.credited_nano + amount_nano,
        policy_id=policy.policy_id,
        policy_version=policy.version,
        **of_what(state),
        postings=postings.of_grant(amount_nano),
    )


def at_most(amount_minor: int, approved_minor: int | None) -> int:
    """Return what of an amount was approved; None: it needed nobody's approval."""
    return amount_minor if approved_minor is None else min(amount_minor, approved_minor)


def grant_named(state: Account, command: GrantEmergencyCredit) -> GrantEmergencyCredit:
    """Return a grant as it is proposed: who approves sees, and approves, how much it is."""
    assert command.policy is not None, "the account's policy was judged"
    nano_per_minor = checks.currency_named(state.currency).nano_per_minor
    return replace(command, at_most_minor=command.policy.emergency_nano // nano_per_minor)


def _set_debt(state: Account, command: SetDebt) -> Decision:
    if problem := not_open(state):
        return problem
    more_minor = command.debt_minor - state.owed.debt_minor
    try:
        more_nano = nano_from_minor(more_minor, checks.currency_named(state.currency))
    except InvalidInput as too_large:
        return Rejection(too_large.reason, too_large.message, "debt_minor")
    if problem := needs_another(
        command.authority,
        Action.DEBT,
        debt_size_minor(state, command),
        state.currency,
        command.request,
    ):
        return problem
    owed = DebtSet(
        **stamp(command.request),
        account_id=state.account_id,
        debt_minor=command.debt_minor,
        share_ppm=command.share_ppm,
        reason=command.reason,
        **of_what(state),
        postings=postings.of_debt(more_nano),
    )
    return Accepted((owed,))


def debt_size_minor(state: Account, command: SetDebt) -> int:
    """Return how much a new debt is about: what is more or less of it, or all by another share."""
    size_minor = abs(command.debt_minor - state.owed.debt_minor)
    if command.share_ppm != state.owed.debt_share_ppm:  # of next to nothing, it is never paid
        size_minor = max(size_minor, state.owed.debt_minor)
    return size_minor


def _obey(state: Account, order: Order) -> Decision:
    # What became of a notice is known whenever it is known.
    problem = None if isinstance(order, RecordNotice) else not_open(state)
    said = problem or obeyed(state.orders, order)
    return said if isinstance(said, Rejection) else Accepted((said,))


def _joined(command: JoinMeter) -> AccountMeterJoined:
    return AccountMeterJoined(
        **stamp(command.request),
        account_id=command.account_id,
        meter_id=command.meter_id,
        epoch=command.epoch,
        register_milli=command.register_milli,
    )


def _left(command: LeaveMeter) -> AccountMeterLeft:
    return AccountMeterLeft(
        **stamp(command.request),
        account_id=command.account_id,
        meter_id=command.meter_id,
        epoch=command.epoch,
        register_milli=command.register_milli,
    )


def hold_id_of(account_id: str, request: Request, book_epoch: int) -> str:
    """Return by what metering's echo names a hold: another id in each epoch of the book.

    Metering answers a hold once, and a store that lost its end decides the same request anew.
    """
    return str(name_uuid("hold", account_id, *request.key, book_epoch))


def closing_under_way(state: Account) -> Rejection | None:
    """Return the refusal of what has to wait for a closing in part; None where there is none."""
    if state.closing is None:
        return None
    text = f"account {state.account_id} is in closing {state.closing.closing_id}"
    return Rejection(
        Reason.CLOSING_UNDER_WAY, f"{text}; wait for its end, or cancel it", "account_id"
    )


def closing_names(state: Account, meter_id: str) -> Rejection | None:
    """Return why a meter is the closing's alone; None where the account's closing names it not."""
    if state.closing is None or meter_id not in state.closing.meters:
        return None
    return closing_under_way(state)


def refund_under_way(state: Account) -> Rejection:
    """Return the refusal of what has to wait for a refund or a transfer."""
    text = (
        f"a refund or a transfer of account {state.account_id} is under way; try again when it has "
        "ended"
    )
    return Rejection(Reason.REFUND_UNDER_WAY, text, "account_id")


def usage_news(state: Account, told: PostUsage) -> tuple[Event, ...]:
    """Return the event that posts usage, where it is news; whatever became of the account."""
    return state.used.news(told, state.shard, of_what(state))


def evolve(state: Account | None, event: Event) -> Account:  # noqa: C901, PLR0911, PLR0912
    """Return the account after an event of its stream."""
    if isinstance(event, AccountOpened) and state is None:
        return Account(
            Answers().after(event),
            event.account_id,
            event.account_key,
            event.shard,
            event.site_id,
            event.subject_id,
            event.currency,
            event.minor_decimals,
            event.ledger_decimals,
            event.legal_entity,
            event.commodity,
            event.tariff_id,
            event.policy_id,
        )
    if state is None:
        raise Bug(f"an account's stream begins with {event.SUBJECT}")
    if isinstance(event, UsagePosted):
        used = Used(event.account_sequence, event.usage)
        return changed(state, answers=state.answers.passed(), used=used)
    answers = state.answers.after(event)
    match event:
        case CreditSold():
            owed = changed(
                state.owed,
                emergency_minor=event.emergency_left_minor or 0,
                debt_minor=event.debt_left_minor or 0,
            )
            return changed(state, answers=answers, credited_nano=event.credited_nano, owed=owed)
        case EmergencyGranted():
            owed = changed(state.owed, emergency_minor=event.amount_minor)
            return changed(state, answers=answers, credited_nano=event.credited_nano, owed=owed)
        case DebtSet():
            share_ppm = event.share_ppm if event.debt_minor else 0  # a debt of 0 is ended
            owed = changed(state.owed, debt_minor=event.debt_minor, debt_share_ppm=share_ppm)
            ended_at = state.debt_ended_at if event.debt_minor else answers.revision
            return changed(state, answers=answers, owed=owed, debt_ended_at=ended_at)
        case PowerKept() | PaymentPromised() | NoticeRecorded():
            return changed(state, answers=answers, orders=state.orders.after(event))
        case SaleReversed():
            pair = (event.reversed_receipt_id, event.receipt_id)
            reversed_receipts = (*state.reversed_receipts, pair)
            return changed(
                _corrected(state, event), answers=answers, reversed_receipts=reversed_receipts
            )
        case OwedWrittenOff():
            return changed(_corrected(state, event), answers=answers)
        case RefundHeld():
            return changed(
                state, answers=answers, held_nano=event.held_nano, refunding=refunding(event)
            )
        case CreditRefunded():
            return changed(
                state,
                answers=answers,
                credited_nano=event.credited_nano,
                held_nano=0,
                refunding=None,
                refunded_at=answers.revision,
            )
        case RefundRefused():
            return changed(state, answers=answers, held_nano=0, refunding=None)
        case CreditTransferred():
            assert state.refunding is not None, "what was sent was held"
            # Metering has said what it had to say; the transfer is under way until it arrives.
            sent = changed(
                state.refunding, hold_id="", sent_as=event.hold_id, sent_minor=event.amount_minor
            )
            return changed(
                state,
                answers=answers,
                credited_nano=event.credited_nano,
                held_nano=0,
                refunding=sent,
                refunded_at=answers.revision,
            )
        case TransferArrived():
            return changed(state, answers=answers, refunding=None)
        case TransferReturned():
            return changed(
                state, answers=answers, credited_nano=event.credited_nano, refunding=None
            )
        case TransferReceived():
            return changed(state, answers=answers, credited_nano=event.credited_nano)
        case CreditAdjusted():
            return changed(state, answers=answers, credited_nano=event.credited_nano)
        case SaleRefused() | EmergencyRefused() | CorrectionRefused():
            return changed(state, answers=answers)
        case AccountTermsChanged():
            return changed(
                state, answers=answers, tariff_id=event.tariff_id, policy_id=event.policy_id
            )
        case AccountTenantChanged():
            before = Tenancy(state.subject_id, answers.revision, event.occurred_at_ms)
            tenancies = (*state.tenancies, before)
            return changed(state, answers=answers, subject_id=event.subject_id, tenancies=tenancies)
        case AccountMeterJoined() | AccountMeterLeft():
            return changed(state, answers=answers, meters=_meters_after(state, event))
        case AccountSettled():
            return changed(_settled(state, event), answers=answers)
        case RemainderRounded():
            return changed(state, answers=answers, credited_nano=event.credited_nano)
        case AccountClosing() | MetersClosing():
            status = state.status if isinstance(event, MetersClosing) else Status.CLOSING
            return changed(state, answers=answers, status=status, closing=begun(event))
        case (
            ClosingRegisterGiven()
            | ClosingAsked()
            | ClosingMetersTold()
            | ClosingTold()
            | ClosingCancelled()
        ):
            status = Status.OPEN if isinstance(event, ClosingCancelled) else state.status
            closing = state.closing.after(event) if state.closing else None
            return changed(state, answers=answers, status=status, closing=closing)
        case AccountClosed():
            return changed(
                state,
                answers=answers,
                status=Status.CLOSED,
                closing=None,
                closed_at=answers.revision,
            )
        case AccountCloseRefused() | MetersClosed() | ClosingUndone():
            return changed(state, answers=answers, status=Status.OPEN, closing=None)
        case _:
            raise Bug(f"{event.SUBJECT} does not belong into an account's stream here")


def _settled(state: Account, event: AccountSettled) -> Account:
    debt_minor = event.debt_left_minor
    owed = Owed(debt_minor=debt_minor, debt_share_ppm=PPM if debt_minor else 0)
    return changed(state, credited_nano=event.credited_nano, owed=owed)


def _corrected(state: Account, event: SaleReversed | OwedWrittenOff) -> Account:
    owed = changed(
        state.owed,
        emergency_minor=event.emergency_left_minor,
        debt_minor=event.debt_left_minor,
    )
    return changed(state, credited_nano=event.credited_nano, owed=owed)


def _meters_after(
    state: Account, event: AccountMeterJoined | AccountMeterLeft
) -> tuple[JoinedMeter, ...]:
    others = tuple(meter for meter in state.meters if meter.meter_id != event.meter_id)
    if isinstance(event, AccountMeterLeft):
        return others
    return (*others, JoinedMeter(event.meter_id, event.epoch, event.register_milli))
