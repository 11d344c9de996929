"""An account: its credit, its meters, its end. Each movement of money is an event of its stream."""

from enum import StrEnum
from typing import Any

from services.common.kernel.ids import name_uuid
from services.common.kernel.reasons import Reason
from services.common.kernel.units import Currency, fits_int64, format_nano
from services.common.kernel.values import value_class
from services.vending.domain import checks
from services.vending.domain.closing import Closing
from services.vending.domain.decisions import Answers, Rejection, Request
from services.vending.domain.orders import Orders
from services.vending.domain.owed import Owed
from services.vending.domain.refund import Refunding
from services.vending.domain.usage import Used

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
    which a person ended a debt, and the account's end; `emergency_most_minor`: the most that one
    grant ever was; `tenancies`: the ones that ended, oldest
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
    emergency_most_minor: int = 0
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
