"""A sale: what is sold, what is recovered of it first, and why an account is not sold to."""

from services.common.kernel.errors import InvalidInput
from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import Currency, format_scaled, nano_from_minor
from services.common.kernel.values import value_class
from services.common.tariffs.plan import ENERGY_MILLI_MAX
from services.vending.domain import checks, postings, terms
from services.vending.domain.account import Account, Status, no_more, not_open, of_what
from services.vending.domain.decisions import Accepted, Decision, Rejection, Request, stamp
from services.vending.domain.events.prices import TariffPublished
from services.vending.domain.events.sales import CreditSold, SaleRefused
from services.vending.domain.owed import PPM
from services.vending.domain.policy import Policy


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


def sell(state: Account, command: Sell) -> Decision:
    """Return the sale, or that it was refused: that is an event, too."""
    sale = _no_sale(state, command) or sold(state, command)
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


def why_not_sold(state: Account, command: Sell) -> Rejection | None:
    """Return why a sale could not be made now; None where it could."""
    sale = _no_sale(state, command) or sold(state, command)
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


def sold(state: Account, command: Sell) -> CreditSold | Rejection:
    """Return the sale to an account that may be sold to, or why it cannot be made."""
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
